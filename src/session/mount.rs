//! The kernel side of a session: file system, mount, and the moment it goes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Running, SessionOptions};
use crate::fs::{Fs, FsOptions, StatusSource};
use crate::fuse::{self, MountHandle, MountOptions};
use crate::read::reader::ReadPool;

/// Longest wait for the last requests after a detach.
const LAST_REQUESTS_WITHIN: Duration = Duration::from_millis(200);

/// Longest wait for acts whose callers have left, once there is nothing in BOS that they could wait for.
const LAST_ACTS_WITHIN: Duration = Duration::from_secs(10);

/// A mount that is served.
pub(super) struct Mounted {
    handle: Arc<MountHandle>,
    fs: Arc<Fs>,
}

impl Mounted {
    /// Waits until the mount is gone: unmounted, and its last file closed.
    pub(super) async fn gone(&mut self) {
        let handle = self.handle.clone();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // A thread of its own, not one of the runtime's: a stop must not wait for it.
        let waiting =
            std::thread::Builder::new().name("bosfs-gone".to_owned()).spawn(move || sender.send(handle.wait()));
        if let Err(error) = waiting {
            log::error!("cannot wait for the end of the mount: {error}; it is ended by SIGTERM only");
            std::future::pending::<()>().await;
        }
        if let Ok(Err(error)) = receiver.await {
            log::error!("serving the mount broke off: {error}");
        }
    }

    /// Lets go of the files whose close was seen and whose release was not, once the mount is gone.
    pub(super) fn release_left(&self) {
        self.fs.release_left();
    }

    /// Waits until BOS has what only the file system still knows.
    pub(super) async fn settle(&self) {
        self.fs.settle_dir_attrs().await;
    }

    /// Waits until acts have ended that went on behind callers who left: of a file that was just being opened, only its end
    /// tells what becomes of it.
    pub(super) async fn acts_ended(&self) {
        if tokio::time::timeout(LAST_ACTS_WITHIN, self.fs.acts_ended()).await.is_err() {
            log::warn!("a call whose program has left is still worked on; the next mount goes on with what it began");
        }
    }

    /// Takes the mount away at once, also when it is in use.
    pub(super) fn detach(&self) {
        if let Err(error) = self.handle.unmount_detached() {
            log::warn!("{} could not be detached: {error}", self.handle.dir().display());
        }
    }

    /// Waits a moment for requests that are under way, and keeps what was learned.
    pub(super) fn finish(&self) {
        let _ = self.handle.wait_for(LAST_REQUESTS_WITHIN);
        self.fs.close();
    }
}

/// Builds the file system and mounts it.
///
/// # Errors
/// The kernel, or fusermount3, refuses.
pub(super) async fn attach(options: &SessionOptions, running: &Arc<Running>) -> io::Result<Mounted> {
    let settings = &options.mount;
    // The other half is for what surrounds the blocks: sockets, replies, slices of parts being hashed and sent.
    let pool = ReadPool::new(options.client.clone(), settings.memory_bytes / 2, settings.downloads_max);
    let status: StatusSource = {
        let running = running.clone();
        Arc::new(move || serde_json::to_vec_pretty(&running.snapshot()).unwrap_or_default())
    };
    let fs_options = FsOptions {
        prefix: options.bucket.prefix.clone(),
        uid: settings.uid,
        gid: settings.gid,
        umask: settings.umask,
        metadata_ttl: settings.metadata_ttl,
        exact_types: settings.exact_types,
        read_only: settings.read_only,
        write_back: options.uploads.write_back,
        state_dir: Some(options.state_dir.clone()),
        memory_bytes: settings.memory_bytes,
    };
    let (uploads, moves) = (running.uploads.clone(), running.moves.clone());
    let runtime = tokio::runtime::Handle::current();
    let fs = Fs::new(fs_options, options.client.clone(), uploads, moves, pool, status, runtime);
    let mount_options = MountOptions {
        allow_other: settings.allow_other,
        read_only: settings.read_only,
        fsname: options.bucket.to_string(),
    };
    fs.load_root().await;
    let counted = Arc::downgrade(&fs);
    let count = move || counted.upgrade().map_or(0, |fs| fs.known_names());
    let _ = running.known_names.set(Box::new(count));
    let handle = fuse::mount(fs.clone(), &options.mount_point, &mount_options)?;
    Ok(Mounted { handle: Arc::new(handle), fs })
}
