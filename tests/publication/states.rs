//! Every content that an object has at some moment, seen from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bosfs::object::Md5;
use parking_lot::Mutex;

use crate::support::Bucket;
use crate::support::files::md5_of_reader;

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Digest and size; `None`: no object.
type Content = Option<(Md5, u64)>;

/// Looks at an object all the time, and reads it whole whenever it is another one.
pub struct States {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    seen: Arc<Mutex<Vec<Content>>>,
    thread: Option<JoinHandle<()>>,
}

impl States {
    pub fn watch(bucket: &Bucket, key: &str) -> Self {
        let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let seen: Arc<Mutex<Vec<Content>>> = Arc::default();
        let (bucket, key) = (bucket.clone(), key.to_owned());
        let (stopped, counted, kept) = (stop.clone(), looks.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut last = None;
            while !stopped.load(Ordering::SeqCst) {
                if let Ok(head) = bucket.head(&key) {
                    counted.fetch_add(1, Ordering::SeqCst);
                    if last.as_ref() != Some(&head) {
                        // What is read may be a later one already, which is a state as well.
                        let content = head.as_ref().and_then(|_| bucket.get_md5(&key).ok());
                        let mut seen = kept.lock();
                        if seen.last() != Some(&content) {
                            seen.push(content);
                        }
                        last = Some(head);
                    }
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self { stop, looks, seen, thread: Some(thread) }
    }

    /// The object was never anything but these contents, in this order, some of them perhaps left out. It was never absent.
    #[track_caller]
    pub fn assert_in_order(&self, allowed: &[(&str, &[u8])]) {
        self.check(allowed.iter().map(|(name, bytes)| (*name, content_of(bytes))).collect());
    }

    /// The same of an object that was not there at first.
    #[track_caller]
    pub fn assert_in_order_or_absent(&self, allowed: &[(&str, &[u8])]) {
        let contents = allowed.iter().map(|(name, bytes)| (*name, content_of(bytes)));
        self.check([("none", None)].into_iter().chain(contents).collect());
    }

    #[track_caller]
    fn check(&self, allowed: Vec<(&str, Content)>) {
        // One look more than before: the last state is among them.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        let before = self.looks.load(Ordering::SeqCst);
        while self.looks.load(Ordering::SeqCst) < before + 2 {
            assert!(std::time::Instant::now() < end, "nobody looks at the object");
            std::thread::sleep(PAUSE);
        }
        let mut at = 0;
        let mut told = Vec::new();
        for content in self.seen.lock().iter() {
            let found = allowed[at..].iter().position(|(_, wanted)| wanted == content);
            let earlier = allowed[..at].iter().find(|(_, wanted)| wanted == content);
            match (found, earlier) {
                (Some(more), _) => {
                    at += more;
                    told.push(allowed[at].0.to_owned());
                }
                (None, Some((name, _))) => panic!("the object went back to {name:?}, after {told:?}"),
                (None, None) => panic!("after {told:?} the object was {content:?}, which nobody closed"),
            }
        }
    }
}

fn content_of(bytes: &[u8]) -> Content {
    md5_of_reader(bytes).ok().map(|md5| (md5, bytes.len() as u64))
}

impl Drop for States {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
