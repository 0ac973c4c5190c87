//! How many bytes all spools of one mount may take on the disk, and who waits for room.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

/// How long one look at the free space counts.
const RECHECK: Duration = Duration::from_millis(200);
/// After this time a waiter looks again by itself: others may have made room on the disk.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Bytes that stay free at least, where 5 % of the disk are less.
const RESERVE_BYTES_MIN: u64 = 2 << 30;

/// No room in the spool now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the spool takes {used} of {limit} bytes (--spool-limit; without it, free space less a reserve)")]
pub struct Full {
    /// Bytes reserved.
    pub used: u64,
    /// Bytes that may be reserved.
    pub limit: u64,
}

/// Room on the disk of the state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that this user may still take.
    pub free: u64,
    /// Bytes of the whole file system.
    pub total: u64,
}

impl DiskSpace {
    /// Of the file system that holds `dir`.
    ///
    /// # Errors
    /// Those of `statvfs`.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(dir)?;
        let bytes = |count: u64| count.saturating_mul(stat.f_frsize);
        Ok(Self { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
    }
}

/// Bytes that the spool may take in all, with `used` bytes taken now: what is configured, else what is free less the
/// larger of 5 % of the disk and 2 GiB. The reserve is at most half of the disk, so that a small one is of use too.
/// A configured limit is not cut to the free space: a full disk then shows as ENOSPC.
pub fn limit_bytes(space: DiskSpace, used: u64, configured: Option<u64>) -> u64 {
    let reserve = (space.total / 20).max(RESERVE_BYTES_MIN).min(space.total / 2);
    configured.unwrap_or_else(|| used.saturating_add(space.free.saturating_sub(reserve)))
}

struct State {
    used: u64,
    limit: u64,
    /// When `limit` was computed; `None`: look again.
    checked: Option<Instant>,
}

/// The room that all spools of one mount share. Methods never wait, except on [`Freed`].
pub struct SpoolBudget {
    space: Box<dyn Fn() -> io::Result<DiskSpace> + Send + Sync>,
    configured: Option<u64>,
    recheck: Duration,
    state: Mutex<State>,
    freed: watch::Sender<u64>,
}

impl SpoolBudget {
    /// The budget of spools under `dir`, with `configured` bytes at most (`--spool-limit`).
    ///
    /// # Errors
    /// Those of `statvfs`.
    pub fn new(dir: &Path, configured: Option<u64>) -> io::Result<Self> {
        let dir = dir.to_owned();
        Self::with_space(Box::new(move || DiskSpace::of(&dir)), configured, RECHECK)
    }

    /// The same, with another way to learn the room on the disk, asked at most once per `recheck`.
    ///
    /// # Errors
    /// Those of the first call of `space`.
    pub fn with_space(
        space: Box<dyn Fn() -> io::Result<DiskSpace> + Send + Sync>,
        configured: Option<u64>,
        recheck: Duration,
    ) -> io::Result<Self> {
        let limit = limit_bytes(space()?, 0, configured);
        let state = Mutex::new(State { used: 0, limit, checked: Some(Instant::now()) });
        Ok(Self { space, configured, recheck, state, freed: watch::Sender::new(0) })
    }

    /// Takes `bytes` for something about to be written.
    ///
    /// # Errors
    /// [`Full`]: nothing was taken. Free something (punch) and wait with [`SpoolBudget::freed`].
    pub fn try_reserve(&self, bytes: u64) -> Result<(), Full> {
        let mut state = self.state.lock();
        self.refresh(&mut state);
        let used = state.used.saturating_add(bytes);
        if bytes > 0 && used > state.limit {
            return Err(Full { used: state.used, limit: state.limit });
        }
        state.used = used;
        Ok(())
    }

    /// Takes `bytes` whether or not there is room: those of spools found at mount, and seams without which a part could
    /// not be sent and no room be made.
    pub fn take(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_add(bytes);
        state.checked = None;
    }

    /// Gives `bytes` back and wakes who waits.
    pub fn release(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(bytes);
        drop(state);
        self.freed.send_modify(|count| *count += 1);
    }

    /// Bytes taken.
    pub fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// Bytes that may be taken in all, at present.
    pub fn limit(&self) -> u64 {
        let mut state = self.state.lock();
        self.refresh(&mut state);
        state.limit
    }

    /// Bytes that may still be taken: what `statfs` of the mount calls free.
    pub fn free_bytes(&self) -> u64 {
        let mut state = self.state.lock();
        self.refresh(&mut state);
        state.limit.saturating_sub(state.used)
    }

    /// A way to wait for room. To miss no wake-up: get it first, try to reserve, then wait on it, again and again.
    pub fn freed(&self) -> Freed {
        Freed(self.freed.subscribe())
    }

    fn refresh(&self, state: &mut State) {
        if self.configured.is_some() || state.checked.is_some_and(|at| at.elapsed() < self.recheck) {
            return;
        }
        state.checked = Some(Instant::now());
        // Where the disk cannot be asked, the last limit counts; writing to it will tell.
        if let Ok(space) = (self.space)() {
            state.limit = limit_bytes(space, state.used, self.configured);
        }
    }
}

/// See [`SpoolBudget::freed`].
pub struct Freed(watch::Receiver<u64>);

impl Freed {
    /// Returns once something was released since the last return (or since this was made), and after a second anyway.
    pub async fn wait(&mut self) {
        // An error means that the budget is gone; then waiting keeps a caller's loop from spinning.
        if let Ok(Err(_)) = tokio::time::timeout(WAIT_MAX, self.0.changed()).await {
            tokio::time::sleep(WAIT_MAX).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_limit_leaves_5_percent_or_2_gib() {
        let limit = |free, total, used, configured| limit_bytes(DiskSpace { free, total }, used, configured);
        assert_eq!(limit(100 * GIB, 1000 * GIB, 0, None), 50 * GIB);
        assert_eq!(limit(10 * GIB, 20 * GIB, 0, None), 8 * GIB);
        assert_eq!(limit(10 * GIB, 20 * GIB, 3 * GIB, None), 11 * GIB);
        // Little left: what is used stays, nothing more is taken.
        assert_eq!(limit(GIB, 20 * GIB, 3 * GIB, None), 3 * GIB);
        assert_eq!(limit(0, 0, 0, None), 0);
        assert_eq!(limit(GIB, GIB, 0, None), GIB / 2);
        assert_eq!(limit(u64::MAX, u64::MAX, u64::MAX, None), u64::MAX);
        assert_eq!(limit(100 * GIB, 1000 * GIB, 7, Some(5)), 5);
        assert_eq!(limit(0, GIB, 0, Some(5)), 5);
    }

    #[test]
    fn a_configured_limit_is_exact() {
        let space = || Ok(DiskSpace { free: 0, total: 0 });
        let budget = SpoolBudget::with_space(Box::new(space), Some(100), Duration::ZERO).unwrap();
        budget.try_reserve(60).unwrap();
        assert_eq!(budget.try_reserve(41), Err(Full { used: 60, limit: 100 }));
        assert_eq!(budget.try_reserve(u64::MAX), Err(Full { used: 60, limit: 100 }));
        budget.try_reserve(40).unwrap();
        assert_eq!(budget.free_bytes(), 0);
        budget.take(10);
        assert_eq!((budget.used(), budget.free_bytes()), (110, 0));
        budget.try_reserve(0).unwrap();
        assert!(budget.try_reserve(1).is_err());
        budget.release(50);
        budget.try_reserve(40).unwrap();
        budget.release(u64::MAX);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_disk_is_looked_at_again_but_not_each_time() {
        let free = Arc::new(AtomicU64::new(12 * GIB));
        let looks = Arc::new(AtomicUsize::new(0));
        let make = |recheck| {
            let (free, looks) = (free.clone(), looks.clone());
            let space = move || {
                looks.fetch_add(1, Ordering::Relaxed);
                Ok(DiskSpace { free: free.load(Ordering::Relaxed), total: 20 * GIB })
            };
            SpoolBudget::with_space(Box::new(space), None, recheck).unwrap()
        };
        let slow = make(Duration::from_secs(3600));
        for _ in 0..1000 {
            slow.try_reserve(1 << 20).unwrap();
        }
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        let quick = make(Duration::ZERO);
        assert_eq!(quick.free_bytes(), 10 * GIB);
        // Someone else fills the disk.
        free.store(GIB, Ordering::Relaxed);
        assert_eq!(quick.try_reserve(1), Err(Full { used: 0, limit: 0 }));
        free.store(3 * GIB, Ordering::Relaxed);
        quick.try_reserve(GIB).unwrap();
    }

    #[test]
    fn a_real_disk_has_room() {
        let dir = tempfile::tempdir().unwrap();
        let space = DiskSpace::of(dir.path()).unwrap();
        assert!(space.free <= space.total && space.total > 0);
        assert!(SpoolBudget::new(&dir.path().join("none"), None).is_err());
    }

    #[tokio::test]
    async fn no_wake_up_is_missed() {
        let space = || Ok(DiskSpace { free: 0, total: 0 });
        let budget = Arc::new(SpoolBudget::with_space(Box::new(space), Some(1), Duration::ZERO).unwrap());
        budget.try_reserve(1).unwrap();
        let mut freed = budget.freed();
        assert!(budget.try_reserve(1).is_err());
        // Released between the failed try and the wait.
        budget.release(1);
        let start = Instant::now();
        freed.wait().await;
        assert!(start.elapsed() < WAIT_MAX / 2);
        budget.try_reserve(1).unwrap();
        // Released by another task while waiting.
        let other = budget.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            other.release(1);
        });
        freed.wait().await;
        assert!(start.elapsed() >= Duration::from_millis(100) && start.elapsed() < WAIT_MAX);
        task.await.unwrap();
        // Nothing released: looked again after a while.
        freed.wait().await;
        assert!(start.elapsed() >= WAIT_MAX);
    }
}
