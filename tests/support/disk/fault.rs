//! What a disk is told to do to which request.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

/// Longest time that an answer is late: a disk that is taken away must not leave its threads behind.
const LATE_AT_MOST: Duration = Duration::from_secs(120);

/// Kinds of requests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    Write,
    /// ftruncate, and fallocate that extends.
    SetLen,
    Punch,
    Create,
    Mkdir,
    Rename,
    Unlink,
    Rmdir,
    SyncFile,
    SyncDir,
    /// chmod, chown, utimens.
    Mode,
    /// Not a change.
    Read,
    /// Opening of a file for writing; not a change.
    OpenForWriting,
}

impl Kind {
    /// All that change something, syncs among them.
    pub const CHANGES: [Kind; 11] = [
        Kind::Write,
        Kind::SetLen,
        Kind::Punch,
        Kind::Create,
        Kind::Mkdir,
        Kind::Rename,
        Kind::Unlink,
        Kind::Rmdir,
        Kind::SyncFile,
        Kind::SyncDir,
        Kind::Mode,
    ];
    /// What needs room on the disk.
    pub const NEEDS_ROOM: [Kind; 3] = [Kind::Write, Kind::Create, Kind::Mkdir];
    /// What a file system that became read-only refuses.
    pub const REFUSED_READ_ONLY: [Kind; 10] = [
        Kind::Write,
        Kind::SetLen,
        Kind::Punch,
        Kind::Create,
        Kind::Mkdir,
        Kind::Rename,
        Kind::Unlink,
        Kind::Rmdir,
        Kind::Mode,
        Kind::OpenForWriting,
    ];
}

/// Which requests a rule takes.
#[derive(Clone, Debug, Default)]
pub struct DiskWhen {
    /// Empty: all changes.
    pub kinds: Vec<Kind>,
    /// Part of the path below the disk.
    pub path_contains: Option<String>,
    /// What the path ends in.
    pub path_ends: Option<String>,
    /// Only reads and writes that touch these bytes.
    pub range: Option<Range<u64>>,
    /// Lets the first `skip` fitting requests pass.
    pub skip: u64,
    /// Takes at most so many.
    pub times: Option<u64>,
}

impl DiskWhen {
    /// Any change.
    pub fn change() -> Self {
        Self::default()
    }
    pub fn kinds(kinds: &[Kind]) -> Self {
        Self { kinds: kinds.to_vec(), ..Self::default() }
    }
    pub fn path_contains(mut self, text: &str) -> Self {
        self.path_contains = Some(text.to_owned());
        self
    }
    pub fn path_ends(mut self, text: &str) -> Self {
        self.path_ends = Some(text.to_owned());
        self
    }
    pub fn range(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }
    pub fn skip(mut self, requests: u64) -> Self {
        self.skip = requests;
        self
    }
    pub fn once(mut self) -> Self {
        self.times = Some(1);
        self
    }

    fn fits(&self, kind: Kind, path: &str, range: (u64, u64)) -> bool {
        let kinds: &[Kind] = if self.kinds.is_empty() { &Kind::CHANGES } else { &self.kinds };
        kinds.contains(&kind)
            && self.path_contains.as_ref().is_none_or(|text| path.contains(text))
            && self.path_ends.as_ref().is_none_or(|text| path.ends_with(text))
            && self.range.as_ref().is_none_or(|wanted| range.0 < wanted.end && wanted.start < range.1)
    }
}

/// What is done to a request that a rule takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFault {
    /// Nothing: the rule only counts.
    Pass,
    /// bosfs gets SIGKILL; the request is not carried out.
    KillBefore,
    /// The request is carried out; bosfs gets SIGKILL before the answer.
    KillAfter,
    /// This error in place of the act.
    Fail(Errno),
    /// So many bytes of the write are taken.
    Short { bytes: u64 },
    /// The request is carried out and recorded, and answered once the rule is released. Requests to other files go on
    /// meanwhile; to the same one the kernel sends none beside a sync.
    AnswerLate,
    /// The same, but carried out only then, if at all.
    ActLate,
}

/// A rule at work. Clones are the same rule.
#[derive(Clone)]
pub struct DiskRule(Arc<RuleState>);

struct RuleState {
    when: DiskWhen,
    fault: DiskFault,
    fitting: AtomicU64,
    taken: AtomicU64,
    hits: Mutex<Vec<String>>,
    hit: Condvar,
    released: Mutex<bool>,
    release: Condvar,
}

impl DiskRule {
    pub(super) fn new(when: DiskWhen, fault: DiskFault) -> Self {
        Self(Arc::new(RuleState {
            when,
            fault,
            fitting: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            hits: Mutex::default(),
            hit: Condvar::new(),
            released: Mutex::default(),
            release: Condvar::new(),
        }))
    }

    pub(super) fn fault(&self) -> DiskFault {
        self.0.fault
    }

    /// Whether the rule takes this request; counted. One at a time, under the lock of the disk.
    pub(super) fn takes(&self, kind: Kind, path: &str, range: (u64, u64)) -> bool {
        let when = &self.0.when;
        if !when.fits(kind, path, range) {
            return false;
        }
        let place = self.0.fitting.fetch_add(1, Ordering::SeqCst);
        if place < when.skip || when.times.is_some_and(|times| self.0.taken.load(Ordering::SeqCst) >= times) {
            return false;
        }
        self.0.taken.fetch_add(1, Ordering::SeqCst);
        true
    }

    pub(super) fn count_hit(&self, path: &str) {
        self.0.hits.lock().push(path.to_owned());
        self.0.hit.notify_all();
    }

    /// Lets late answers out, and later ones pass without a stop.
    pub fn release(&self) {
        *self.0.released.lock() = true;
        self.0.release.notify_all();
    }

    /// Waits until the answer may go out, or for as long as any test lasts.
    pub(super) fn wait_released(&self) {
        let deadline = Instant::now() + LATE_AT_MOST;
        let mut released = self.0.released.lock();
        while !*released && !self.0.release.wait_until(&mut released, deadline).timed_out() {}
    }

    /// How often the fault has really happened.
    pub fn hits(&self) -> u64 {
        self.0.hits.lock().len() as u64
    }

    /// How many requests fitted so far, taken or not.
    pub fn fitting(&self) -> u64 {
        self.0.fitting.load(Ordering::SeqCst)
    }

    /// Paths that were hit.
    pub fn hit_paths(&self) -> Vec<String> {
        self.0.hits.lock().clone()
    }

    /// Waits for the first hit. `false`: not within `timeout`.
    #[must_use]
    pub fn wait_hit(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut hits = self.0.hits.lock();
        while hits.is_empty() {
            if self.0.hit.wait_until(&mut hits, deadline).timed_out() {
                return !hits.is_empty();
            }
        }
        true
    }
}
