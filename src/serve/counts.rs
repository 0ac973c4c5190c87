//! How often each call came in, and how many body bytes with it. For tests that promise request counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::request::Call;

/// Requests and body bytes received of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCount {
    /// Requests, refused ones too.
    pub requests: u64,
    /// Body bytes that arrived, of requests that have ended.
    pub body_bytes: u64,
}

/// The counters of a server.
#[derive(Default)]
pub struct Counts(Mutex<BTreeMap<Call, CallCount>>);

/// A counted request; its bytes are added when it ends.
pub struct Counting<'a> {
    counts: &'a Counts,
    call: Call,
    received: Arc<AtomicU64>,
}

impl Counts {
    /// Counts a request of `call`, whose bytes are counted in `received`.
    pub fn count(&self, call: Call, received: Arc<AtomicU64>) -> Counting<'_> {
        self.0.lock().entry(call).or_default().requests += 1;
        Counting { counts: self, call, received }
    }

    /// By name of the call.
    pub fn get(&self) -> BTreeMap<String, CallCount> {
        self.0.lock().iter().map(|(call, count)| (call.name(), *count)).collect()
    }

    /// Starts again at zero.
    pub fn reset(&self) {
        self.0.lock().clear();
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        let bytes = self.received.load(Ordering::Relaxed);
        self.counts.0.lock().entry(self.call).or_default().body_bytes += bytes;
    }
}
