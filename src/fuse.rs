//! The kernel's side: mounting, requests in, errno out.

mod adapter;
mod convert;
mod forget;
mod options;
mod wait;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fuser::Session;
use parking_lot::{Condvar, Mutex};

use crate::fs::Fs;
use crate::observe::mount_table;
use adapter::Adapter;

/// What a mount is made with.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Users other than the one who mounts may use it.
    pub allow_other: bool,
    /// The kernel refuses every change.
    pub read_only: bool,
    /// Source as `mount` and `df` show it.
    pub fsname: String,
}

#[derive(Default)]
struct Ended {
    result: Mutex<Option<Result<(), String>>>,
    told: Condvar,
}

/// A mount that is served.
pub struct MountHandle {
    dir: PathBuf,
    ended: Arc<Ended>,
}

/// Mounts `fs` on `dir` and serves it. When this returns, the kernel has agreed on the settings and requests are answered.
///
/// # Errors
/// What mount(2) or fusermount3 say.
pub fn mount(fs: Arc<Fs>, dir: &Path, options: &MountOptions) -> io::Result<MountHandle> {
    if is_dead_mount(dir) {
        log::warn!("{}: a mount whose process is gone is detached first", dir.display());
        detach(dir)?;
    }
    // From here on nothing is asked of the mount: a thread that waited for this process would outlive its end.
    let resolved = mount_table::resolve(dir)?;
    let session = Session::new(Adapter::new(fs.clone()), dir, &options::config(options))?;
    let full = forget::start(&fs, session.notifier(), resolved.clone())?;
    let mut background = session.spawn()?;
    // `BackgroundSession` unmounts by path when it is dropped, also after somebody else has unmounted, and could then hit a
    // later mount of the same directory. Only its thread is taken; unmounting is done here.
    let idle = thread::Builder::new().name("fuse-idle".to_owned()).spawn(|| Ok(()))?;
    let serving = std::mem::replace(&mut background.guard, idle);
    std::mem::forget(background);
    let ended = Arc::new(Ended::default());
    let tell = ended.clone();
    thread::Builder::new().name("fuse-end".to_owned()).spawn(move || {
        let result = match serving.join() {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("a thread that serves the mount panicked".to_owned()),
        };
        *tell.result.lock() = Some(result);
        tell.told.notify_all();
        full.end();
    })?;
    options::tune_readahead(&resolved);
    Ok(MountHandle { dir: dir.to_owned(), ended })
}

impl MountHandle {
    /// Waits until the mount is served no more: it was unmounted, by whomever, and its last file was closed.
    ///
    /// # Errors
    /// When serving it broke off.
    pub fn wait(&self) -> io::Result<()> {
        let mut result = self.ended.result.lock();
        while result.is_none() {
            self.ended.told.wait(&mut result);
        }
        told(&result)
    }

    /// As [`wait`](Self::wait), for at most `limit`. `None`: it is still served.
    pub fn wait_for(&self, limit: Duration) -> Option<io::Result<()>> {
        let deadline = Instant::now() + limit;
        let mut result = self.ended.result.lock();
        while result.is_none() {
            if self.ended.told.wait_until(&mut result, deadline).timed_out() && result.is_none() {
                return None;
            }
        }
        Some(told(&result))
    }

    /// Whether the mount is served no more.
    pub fn has_ended(&self) -> bool {
        self.ended.result.lock().is_some()
    }

    /// Takes the mount out of the tree at once; open files stay usable until they are closed. Does nothing when it is
    /// gone already.
    ///
    /// # Errors
    /// What umount2(2) or fusermount3 say.
    pub fn unmount_detached(&self) -> io::Result<()> {
        if self.has_ended() { Ok(()) } else { detach(&self.dir) }
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn told(result: &Option<Result<(), String>>) -> io::Result<()> {
    match result {
        Some(Err(message)) => Err(io::Error::other(message.clone())),
        Some(Ok(())) | None => Ok(()),
    }
}

/// Whether `dir` is a FUSE mount whose process is gone ("Transport endpoint is not connected").
///
/// Asked by statfs(2): the kernel may go on answering a stat of the root from memory for the time to live of attributes.
pub fn is_dead_mount(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_err_and(|error| error == rustix::io::Errno::NOTCONN)
}

/// Takes whatever is mounted on `dir` out of the tree.
///
/// # Errors
/// What umount2(2) or fusermount3 say.
pub fn detach(dir: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        use rustix::mount::{UnmountFlags, unmount};
        return Ok(unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?);
    }
    let output = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(dir).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("fusermount3: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
