//! Exclusive right of one process to a state directory: a `flock` on its file `lease`.
//!
//! The kernel drops the lock when the last descriptor of it goes, so a killed process holds nothing. A forked child that
//! keeps the descriptor keeps the lease: that is how a mount daemonises.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Name of the file in the state directory.
pub(super) const LEASE_NAME: &str = "lease";
/// Tries of the lock: [`read_holder`] of another process has it for a moment when it asks whether it is held.
const TRIES: u32 = 10;
const TRY_PAUSE: Duration = Duration::from_millis(10);
/// Longest holder line that is read, bytes.
const HOLDER_BYTES_MAX: u64 = 64 << 10;

/// Who holds a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process ID; 0 where it could not be read.
    pub pid: u32,
    /// What it mounts where, if it is a mount.
    pub mount_point: Option<PathBuf>,
    /// Where it answers `bosfs status`.
    pub socket: Option<PathBuf>,
    /// Since when, seconds since 1970.
    pub since: i64,
}

impl Holder {
    /// This process, from now on.
    pub fn this_process(mount_point: Option<PathBuf>, socket: Option<PathBuf>) -> Self {
        let since = crate::object::Timestamp::now().sec;
        Self { pid: std::process::id(), mount_point, socket, since }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            0 => f.write_str("a process that did not leave its name")?,
            pid => write!(f, "process {pid}")?,
        }
        match &self.mount_point {
            Some(dir) => write!(f, ", mounted at {0}; end it with `bosfs umount {0}`", dir.display()),
            None => f.write_str("; wait until it has ended"),
        }
    }
}

/// Exclusive right to a state directory.
#[derive(Debug)]
pub struct Lease {
    file: File,
}

/// Takes the lease of `dir` for this process. `Ok(Err(holder))`: another process has it.
pub(super) fn acquire(dir: &Path) -> io::Result<Result<Lease, Holder>> {
    let path = dir.join(LEASE_NAME);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    for attempt in 1.. {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if attempt < TRIES => std::thread::sleep(TRY_PAUSE),
            Err(Errno::WOULDBLOCK) => return Ok(Err(read_line(&file).unwrap_or_default())),
            Err(errno) => return Err(errno.into()),
        }
    }
    let lease = Lease { file };
    lease.set_holder(&Holder::this_process(None, None))?;
    Ok(Ok(lease))
}

/// Who holds the lease of the state directory `dir`; `None` if nobody does, whatever its file says.
pub fn read_holder(dir: &Path) -> Option<Holder> {
    let file = File::open(dir.join(LEASE_NAME)).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => Some(read_line(&file).unwrap_or_default()),
        _ => None,
    }
}

/// The first line; `None` where it makes no sense (the holder is just writing it, or disk trouble).
fn read_line(file: &File) -> Option<Holder> {
    for _ in 0..TRIES {
        let mut text = Vec::new();
        let mut from_start = file.try_clone().ok()?;
        io::Seek::rewind(&mut from_start).ok()?;
        from_start.take(HOLDER_BYTES_MAX).read_to_end(&mut text).ok()?;
        let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
        if let Ok(holder) = serde_json::from_slice(line) {
            return Some(holder);
        }
        std::thread::sleep(TRY_PAUSE);
    }
    None
}

impl Lease {
    /// Tells others who holds the lease. One write; what an earlier, longer line leaves behind its newline is cut off
    /// after it and never read.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_holder(&self, holder: &Holder) -> io::Result<()> {
        // JSON is UTF-8: a path that is not shows with replacement characters.
        let readable = |p: &PathBuf| PathBuf::from(p.to_string_lossy().into_owned());
        let shown = Holder {
            mount_point: holder.mount_point.as_ref().map(readable),
            socket: holder.socket.as_ref().map(readable),
            ..holder.clone()
        };
        let mut line = serde_json::to_vec(&shown)?;
        line.push(b'\n');
        self.file.write_all_at(&line, 0)?;
        self.file.set_len(line.len() as u64)
    }
}
