//! One method per operation; decides which part acts. Knows no kernel: `fuse` turns requests into these calls.
//!
//! Where a file's content is (see [`attr::Content`]):
//!
//! ```text
//!   Object  --begin_write()-->  Dirty  --settle(): published, proved, no writer-->  Object
//! ```
//!
//! Methods that are `async` may ask BOS; polled once they answer at once whenever memory and the local disk suffice.

pub mod attr;
mod change;
mod create;
mod data;
pub mod dir_attrs;
mod dirs;
pub mod error;
mod exchange;
mod forgetting;
pub mod handles;
pub mod introspect;
mod lookup;
mod open;
pub mod process;
mod remove;
mod rename;
mod rename_dir;
pub mod temporary;
mod tree_gate;
pub mod verdict;
pub mod xattr;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::bos::client::BosClient;
use crate::moves::Moves;
use crate::namespace::Namespace;
use crate::namespace::inode::InodeTable;
use crate::namespace::memory::Shares;
use crate::object::ObjectKey;
use crate::posix_meta::AttrDefaults;
use crate::read::reader::ReadPool;
use crate::upload::Uploads;
use attr::{Attr, Body, Content, Node, published_object};
use dir_attrs::DirAttrs;
use error::{FsError, FsResult};
use forgetting::Waits;
use handles::{HandleTable, OpenDir, OpenFile};
use remove::Burst;
use tree_gate::{Pass, TreeGate};

pub use crate::namespace::NamesFull;
pub use data::Written;
pub use dirs::{DirEntry, DirEntryPlus};
pub use open::{Opened, Orphan};
pub use rename::RenameOptions;

/// Stands for the inode of a name whose file an earlier process unlinked.
const NO_INODE: u64 = 0;
/// Removals of an earlier process that are waited for at the same time.
const REMOVALS_WATCHED_MAX: usize = 64;

/// Settings of one mount.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// Key prefix that is the root of the mount; empty: the whole bucket.
    pub prefix: String,
    /// Owner of what has none of its own.
    pub uid: u32,
    /// Group of what has none of its own.
    pub gid: u32,
    /// Permission bits taken away from what has none of its own.
    pub umask: u32,
    /// How long what BOS said of a name is believed.
    pub metadata_ttl: Duration,
    /// Ask what small objects are before they are listed: a symbolic link looks like a file to a listing.
    pub exact_types: bool,
    /// Refuse every change.
    pub read_only: bool,
    /// A call that changes a file need not wait until the object is complete.
    pub write_back: bool,
    /// Where attributes are remembered across mounts; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Memory of the mount (`--memory-limit`), of which names have a share, bytes.
    pub memory_bytes: u64,
}

/// Makes the content of `.bosfs/status.json`.
pub type StatusSource = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Calling thread; 0: not visible from here.
    pub tid: u32,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// Calling thread; 0: not visible from here.
    pub tid: u32,
    /// Inode, or the directory of the name.
    pub ino: u64,
    /// Open file.
    pub fh: Option<u64>,
}

/// A name and what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its attributes; `attr.ino` is what later requests name it by.
    pub attr: Attr,
}

/// Free space as `statfs` shows it, in blocks of [`Space::BLOCK_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All blocks.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
}

impl Space {
    /// Size of a block.
    pub const BLOCK_BYTES: u32 = 4096;
    /// What a bucket is shown with, as it has no size: 1 PiB.
    const BLOCKS: u64 = (1 << 50) / Self::BLOCK_BYTES as u64;
}

/// The file system over one prefix of a bucket.
pub struct Fs {
    options: FsOptions,
    client: BosClient,
    namespace: Arc<Namespace>,
    dir_attrs: DirAttrs,
    uploads: Arc<Uploads>,
    moves: Arc<Moves>,
    pool: Arc<ReadPool>,
    inodes: InodeTable<Body>,
    files: HandleTable<OpenFile>,
    dirs: HandleTable<OpenDir>,
    /// Keys whose name was removed while handles are open: BOS may still have the object. With the inode that waits.
    hidden: Mutex<HashMap<String, u64>>,
    /// Keeps acts on names and renames of the directories above them apart.
    trees: TreeGate,
    /// Recent removals of files.
    burst: Mutex<Burst>,
    waits: Waits,
    status_json: StatusSource,
    runtime: tokio::runtime::Handle,
    /// Acts that go on when their callers leave.
    acts: TaskTracker,
}

impl Fs {
    /// A file system over what `client` reaches. Tasks run on `runtime`.
    pub fn new(
        options: FsOptions,
        client: BosClient,
        uploads: Arc<Uploads>,
        moves: Arc<Moves>,
        pool: Arc<ReadPool>,
        status_json: StatusSource,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Self> {
        let defaults = AttrDefaults { uid: options.uid, gid: options.gid, umask: options.umask };
        let state_dir = options.state_dir.as_deref();
        let shares = Shares::of(options.memory_bytes);
        let namespace =
            Namespace::new(client.clone(), &options.prefix, options.metadata_ttl, defaults, state_dir, &shares);
        let namespace = Arc::new(namespace);
        let root = Body::new(Content::Dir(namespace.plain_dir()));
        let dir_attrs = DirAttrs::new(namespace.clone(), state_dir, runtime.clone());
        let learner = namespace.clone();
        moves.on_deleted(Box::new(move |key, gone| learner.changed(key.trim_end_matches('/'), gone)));
        let learner = namespace.clone();
        moves.on_replaced(Box::new(move |key| learner.replaced(key)));
        let learner = namespace.clone();
        uploads.on_published(Box::new(move |key, published| {
            learner.learn_published(key, &published_object(published.clone()), published.stored_between);
        }));
        let removed = uploads.removals();
        let hidden = removed.iter().map(|key| (key.as_str().to_owned(), NO_INODE)).collect();
        let fs = Arc::new(Self {
            options,
            client,
            namespace,
            dir_attrs,
            uploads,
            moves,
            pool,
            inodes: InodeTable::new(root, shares.inodes_bytes, Body::HEAP_BYTES),
            files: HandleTable::new(),
            dirs: HandleTable::new(),
            hidden: Mutex::new(hidden),
            trees: TreeGate::new(),
            burst: Mutex::default(),
            waits: Waits::default(),
            status_json,
            runtime,
            acts: TaskTracker::new(),
        });
        if !removed.is_empty() {
            fs.runtime.spawn(fs.clone().show_after_removal(removed));
        }
        fs
    }

    /// Keys that an earlier process unlinked are shown again, should they come back, once their objects are gone.
    async fn show_after_removal(self: Arc<Self>, keys: Vec<ObjectKey>) {
        let fs = &self;
        let wait = |key: ObjectKey| async move {
            // What keeps one from being removed is in the log and in `status`; its name stays away.
            if fs.uploads.wait_removal(&key).await.is_ok() {
                let mut hidden = fs.hidden.lock();
                if hidden.get(key.as_str()) == Some(&NO_INODE) {
                    hidden.remove(key.as_str());
                    fs.namespace.changed(key.as_str(), true);
                }
            }
        };
        stream::iter(keys).for_each_concurrent(REMOVALS_WATCHED_MAX, wait).await;
    }

    /// How long the kernel may believe an answer.
    pub fn ttl(&self) -> Duration {
        self.options.metadata_ttl
    }

    /// How long a call that waits for BOS may take (`--timeout`); `None`: as long as it needs.
    pub fn timeout(&self) -> Option<Duration> {
        self.uploads.timeout()
    }

    /// Where the tasks of this file system run.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// To be held as long as an act is worked on that goes on when its caller leaves.
    pub fn act_under_way(&self) -> TaskTrackerToken {
        self.acts.token()
    }

    /// Waits until no act is under way any more, with what its end leaves to be done. For when the mount is gone: nothing
    /// new comes.
    pub async fn acts_ended(&self) {
        self.acts.close();
        self.acts.wait().await;
    }

    /// Free space. A bucket has no end; only a spool that can take nothing more shows as a full disk, because writers
    /// wait for it.
    pub fn statfs(&self) -> Space {
        let free = if self.uploads.spool_free_bytes() == 0 { 0 } else { Space::BLOCKS };
        Space { blocks: Space::BLOCKS, free }
    }

    /// Writes what is remembered of attributes to disk; the last act of a mount.
    pub fn close(&self) {
        self.namespace.close_memory();
    }

    /// Files open at present.
    pub fn open_files(&self) -> usize {
        self.files.len()
    }

    /// Whether the name is gone although BOS may still have its object.
    fn is_hidden(&self, key: &str) -> bool {
        self.hidden.lock().contains_key(key) || self.moves.hides(key)
    }

    /// Begins an act on the key that `find` tells: it is in no directory under rename then, and what an earlier process or a
    /// removal left to be done about it is done. Not to be asked for again within the act.
    ///
    /// # Errors
    /// When what was left cannot be done; those of `find`.
    async fn act_on<K: AsRef<[ObjectKey]>>(&self, find: impl Fn() -> FsResult<K>) -> FsResult<(Pass<'_>, K)> {
        let mut keys = find()?;
        loop {
            let names: Vec<&str> = keys.as_ref().iter().map(ObjectKey::as_str).collect();
            let pass = self.trees.act(&names).await;
            // A rename that was waited for gave them other keys.
            let again = find()?;
            if again.as_ref() == keys.as_ref() {
                for key in &names {
                    self.moves.wait_clear(key).await?;
                }
                return Ok((pass, keys));
            }
            drop(pass);
            keys = again;
        }
    }

    /// As [`Fs::act_on`] for the name `name` in `dir`.
    async fn act_on_child(&self, dir: &Node, name: &str) -> FsResult<(Pass<'_>, ObjectKey)> {
        let (pass, [key]) = self.act_on(|| Ok([self.child_key(dir, name)?])).await?;
        Ok((pass, key))
    }

    /// A request panicked. A file that it may have left half-changed is given up for this mount. Returns what people should
    /// know.
    pub fn panicked(&self, about: About) -> String {
        let path = self.inodes.get(about.ino).map_or_else(String::new, |node| node.path());
        let open = about.fh.and_then(|fh| self.files.get(fh));
        let written = match open.and_then(|open| open.writer.as_ref().map(|writer| writer.file.clone())) {
            Some(file) => Some(file),
            None => self.inodes.get(about.ino).and_then(|node| match &node.body.state.lock().content {
                Content::Dirty(file) => Some(file.clone()),
                Content::Object(_) | Content::Dir(_) | Content::Virtual(_) => None,
            }),
        };
        if let Some(file) = written {
            file.broke("a request for it was served");
        }
        format!(
            "a request for {path:?} made bosfs panic, and is answered with EIO; please report the panic that the log shows"
        )
    }

    fn check_writable(&self) -> FsResult<()> {
        if self.options.read_only { Err(FsError::READ_ONLY) } else { Ok(()) }
    }
}
