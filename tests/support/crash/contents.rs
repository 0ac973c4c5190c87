//! Looks at the object all the time, past proxy and mount, and remembers every content that it had.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crc_fast::CrcAlgorithm;
use parking_lot::Mutex;

use crate::support::bucket::Bucket;

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(8);

/// What tells one content from another: length and checksum. `None`: no object.
pub type Sum = Option<(u64, u64)>;

/// The sum of an object with these bytes.
pub fn sum_of(bytes: &[u8]) -> Sum {
    Some((bytes.len() as u64, crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)))
}

/// The number of the first state with this content, from `after` on.
pub fn find(states: &[Sum], sum: &Sum, after: usize) -> Option<usize> {
    (after..states.len()).find(|n| states[*n] == *sum)
}

/// A content, and the least state that was certain to be there when it was looked for.
#[derive(Clone, Copy, Debug)]
struct Look {
    floor: usize,
    sum: Sum,
}

/// See the module.
pub struct Watch {
    stop: Arc<AtomicBool>,
    floor: Arc<AtomicUsize>,
    looks: Arc<AtomicU64>,
    seen: Arc<Mutex<Vec<Look>>>,
    thread: Option<JoinHandle<()>>,
    /// The last state that was seen.
    last: usize,
}

/// What the object is.
///
/// # Errors
/// The bucket cannot be asked.
pub fn content(bucket: &Bucket, key: &str) -> std::io::Result<Sum> {
    // Put anew between the two requests, it is another content all the same.
    for _ in 0..10 {
        let Some(head) = bucket.head(key)? else { return Ok(None) };
        match bucket.get(key) {
            Ok(bytes) if bytes.len() as u64 == head.size => return Ok(sum_of(&bytes)),
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    Err(std::io::Error::other(format!("{key:?} cannot be read whole")))
}

impl Watch {
    pub fn start(bucket: &Bucket, key: &str) -> Self {
        let (stop, floor) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let looks = Arc::new(AtomicU64::new(0));
        let seen: Arc<Mutex<Vec<Look>>> = Arc::default();
        let (bucket, key) = (bucket.clone(), key.to_owned());
        let (stopped, least, counted, kept) = (stop.clone(), floor.clone(), looks.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut last = None;
            while !stopped.load(Ordering::SeqCst) {
                let floor = least.load(Ordering::SeqCst);
                if let Ok(head) = bucket.head(&key) {
                    if last.as_ref() != Some(&(floor, head.clone()))
                        && let Ok(sum) = content(&bucket, &key)
                    {
                        kept.lock().push(Look { floor, sum });
                        last = Some((floor, head));
                    }
                    counted.fetch_add(1, Ordering::SeqCst);
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self { stop, floor, looks, seen, thread: Some(thread), last: 0 }
    }

    /// From here on the object is this state or a later one.
    pub fn is_at_least(&self, floor: usize) {
        self.floor.store(floor, Ordering::SeqCst);
    }

    /// Waits for a look that begins now.
    pub fn look(&self) {
        let (before, end) = (self.looks.load(Ordering::SeqCst), Instant::now() + Duration::from_secs(20));
        while self.looks.load(Ordering::SeqCst) < before + 2 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }

    /// Everything seen so far was one of these states, and none earlier than one before it. How often it became another one.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&mut self, states: &[Sum]) -> Result<u64, String> {
        let mut contents = 0;
        for look in self.seen.lock().drain(..) {
            let after = self.last.max(look.floor);
            let Some(state) = find(states, &look.sum, after) else {
                let what = match find(states, &look.sum, 0) {
                    Some(state) => format!("state {state} again, after state {after}"),
                    None => "none in which it was closed".to_owned(),
                };
                return Err(format!("MIXED: the object had {:?}, {what}; states from 0: {states:?}", look.sum));
            };
            contents += u64::from(state != self.last);
            self.last = state;
        }
        Ok(contents)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
