//! Looks at a key all the time, from outside, and remembers every state it was in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::bucket::{Bucket, Seen};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// A thread that sends HEAD after HEAD for one key.
pub struct KeyWatch {
    stop: Arc<AtomicBool>,
    states: Arc<Mutex<Vec<Option<Seen>>>>,
    looks: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl KeyWatch {
    pub fn start(bucket: &Bucket, key: &str) -> Self {
        Self::start_every(bucket, key, PAUSE)
    }

    /// With another time between two looks.
    pub fn start_every(bucket: &Bucket, key: &str, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let states: Arc<Mutex<Vec<Option<Seen>>>> = Arc::default();
        let looks = Arc::new(AtomicU64::new(0));
        let (bucket, key) = (bucket.clone(), key.to_owned());
        let (stopped, kept, counted) = (stop.clone(), states.clone(), looks.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                // A server that is being restarted has no state to show.
                if let Ok(state) = bucket.head(&key) {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let mut states = kept.lock();
                    if states.last() != Some(&state) {
                        states.push(state);
                    }
                }
                std::thread::sleep(pause);
            }
        });
        Self { stop, states, looks, thread: Some(thread) }
    }

    /// The states so far, each change once; `None`: no object.
    pub fn states(&self) -> Vec<Option<Seen>> {
        self.states.lock().clone()
    }

    /// Answered HEADs.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    /// Sizes of published states that are not among `whole`: half files, if any.
    pub fn half_files(&self, whole: &[u64]) -> Vec<u64> {
        self.states().iter().flatten().map(|seen| seen.size).filter(|size| !whole.contains(size)).collect()
    }
}

impl Drop for KeyWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
