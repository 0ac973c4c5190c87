//! A server that is consistent only in the end: HEAD still shows for some asks what was at a key before its last change.

use std::collections::HashMap;
use std::io;

use super::bucket::Reply;
use super::call::{Asked, Call};
use super::http::{Head, Start};
use super::proxy::Shared;

/// What HEADs still show, and how often.
#[derive(Default)]
pub struct StaleHeads {
    asks: u32,
    /// By key: what was there before its last change (`None`: nothing), and how many HEADs still say so.
    old: HashMap<String, (Option<Reply>, u32)>,
    /// HEADs that were answered so.
    served: u64,
}

impl StaleHeads {
    /// After each change the next `asks` HEADs are stale.
    pub fn of(asks: u32) -> Self {
        Self { asks, ..Self::default() }
    }

    pub fn served(&self) -> u64 {
        self.served
    }

    /// The answer to one more HEAD of `key`, if it is a stale one.
    fn take(&mut self, key: &str) -> Option<Head> {
        let (reply, left) = self.old.get_mut(key)?;
        *left = left.checked_sub(1)?;
        self.served += 1;
        let (status, headers) = match reply {
            Some(reply) => (reply.status, reply.headers.clone()),
            // Every answer of BOS has a request ID.
            None => (404, vec![("x-bce-request-id".into(), "stale".into()), ("content-length".into(), "0".into())]),
        };
        let headers =
            headers.into_iter().filter(|(name, _)| name != "connection" && name != "transfer-encoding").collect();
        Some(Head { start: Start::Answer { status, reason: "Stale".into() }, headers })
    }
}

/// What the proxy answers by itself to this request. Of a request that changes an object, what is there before is noted.
pub(super) async fn answer(shared: &Shared, asked: &Asked) -> io::Result<Option<Head>> {
    let asks = match &mut *shared.stale.lock() {
        None => return Ok(None),
        Some(stale) if asked.call == Call::HeadObject => return Ok(stale.take(&asked.key)),
        Some(stale) => stale.asks,
    };
    let changes = [Call::PutObject, Call::Complete, Call::CopyObject, Call::DeleteObject];
    if !changes.contains(&asked.call) {
        return Ok(None);
    }
    let bucket = shared.hands.lock().clone().ok_or_else(|| io::Error::other("the proxy has no hands"))?;
    let key = asked.key.clone();
    let before = tokio::task::spawn_blocking(move || bucket.head_reply(&key)).await.map_err(io::Error::other)??;
    if let Some(stale) = &mut *shared.stale.lock() {
        let entry = stale.old.entry(asked.key.clone()).or_default();
        // A server that is behind by several changes shows what was before the first of them.
        if entry.1 == 0 {
            *entry = (before, asks);
        }
    }
    Ok(None)
}
