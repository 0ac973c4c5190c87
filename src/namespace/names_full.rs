//! How the one who speaks to the kernel hears that it knows too many names.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Tells that names take more memory than they may. Outlives the file system, and tells its end, too.
#[derive(Default)]
pub struct NamesFull {
    /// Whether there are too many; whether nobody need wait any more.
    told: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl NamesFull {
    /// There are too many.
    pub fn tell(&self) {
        self.told.lock().0 = true;
        self.changed.notify_all();
    }

    /// Nobody need wait any more.
    pub fn end(&self) {
        self.told.lock().1 = true;
        self.changed.notify_all();
    }

    /// Waits until there are too many; `false`: the end.
    pub fn wait(&self) -> bool {
        let mut told = self.told.lock();
        while !told.0 && !told.1 {
            self.changed.wait(&mut told);
        }
        told.0 = false;
        !told.1
    }

    /// Waits for `pause`, whatever is told meanwhile; `false`: the end.
    pub fn pause(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut told = self.told.lock();
        while !told.1 && !self.changed.wait_until(&mut told, end).timed_out() {}
        !told.1
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn whoever_waits_hears_of_too_many_names_once_and_of_the_end() {
        let full = Arc::new(NamesFull::default());
        full.tell();
        assert!(full.wait(), "told before it waited");
        let waiting = std::thread::spawn({
            let full = full.clone();
            move || (full.wait(), full.wait())
        });
        full.tell();
        while !waiting.is_finished() {
            full.end();
            std::thread::yield_now();
        }
        assert!(!waiting.join().unwrap().1);
        assert!(!full.pause(Duration::from_secs(3600)), "no pause after the end");
    }

    #[test]
    fn a_pause_is_not_cut_short_by_more_names() {
        let full = NamesFull::default();
        let start = Instant::now();
        std::thread::scope(|scope| {
            let pausing = scope.spawn(|| full.pause(Duration::from_millis(100)));
            while !pausing.is_finished() {
                full.tell();
                std::thread::yield_now();
            }
            assert!(pausing.join().unwrap());
        });
        assert!(start.elapsed() >= Duration::from_millis(100));
    }
}
