//! What the mount keeps with each inode, and the attributes that follow from it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use super::introspect::Virtual;
use super::verdict::Endings;
use crate::namespace::Object;
use crate::namespace::headers::PackedHeaders;
use crate::namespace::inode::{Inode, Kind};
use crate::object::{FileAttrs, Timestamp};
use crate::posix_meta;
use crate::upload::{DirtyFile, Published};

/// An inode of the mount.
pub type Node = Inode<Body>;

/// Preferred size of reads and writes, told as `st_blksize`: cp, cat and stdio size their buffers by it.
pub const IO_BYTES: u32 = 1 << 20;

/// Attributes as `stat` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Size in bytes.
    pub size: u64,
    /// Mode, owner, time.
    pub attrs: FileAttrs,
    /// Time of the last access, as far as a program set it; else that of the last change of the content.
    pub atime: Timestamp,
    /// Time of the last change of content or attributes.
    pub ctime: Timestamp,
    /// 0 once the last name is gone. A directory: 2 and one for each directory in it, as far as known, else 1 ("unknown").
    pub nlink: u32,
}

/// Where the content of an inode is.
#[derive(Clone)]
pub enum Content {
    /// In BOS: a file or a symbolic link.
    Object(Object),
    /// In the spool and the journal, as far as BOS does not have it yet.
    Dirty(Arc<DirtyFile>),
    /// A directory.
    Dir(FileAttrs),
    /// Made up by this mount.
    Virtual(Virtual),
}

/// What changes about an inode. Most inodes are names that were looked at and never opened or changed: only `content` and
/// `confirmed` take memory for each; the rest, which reads and writes as if it were fields of the state, is made when it is
/// first written.
pub struct State {
    /// Where its content is.
    pub content: Content,
    /// When BOS, or an act of this mount, last confirmed `content`; `None`: must be asked again.
    pub confirmed: Option<Instant>,
    usage: Option<Box<Usage>>,
}

/// What is known of an inode that was opened, or changed by this mount.
#[derive(Debug, Default)]
pub struct Usage {
    /// When this mount last published the content: an answer of BOS to an earlier question is older than what is known.
    pub published: Option<Instant>,
    /// Grows when somebody else replaced the object: handles opened before stay with what they opened.
    pub epoch: u64,
    /// Epoch whose pages the kernel may still have.
    pub cached_epoch: Option<u64>,
    /// Open handles.
    pub handles: u32,
    /// Those among them that write.
    pub writers: u32,
    /// Those among them through which it is being executed.
    pub executors: u32,
    /// How the writers ended since there was none.
    pub endings: Endings,
    /// When this mount last changed the inode (its attributes, its name); `None`: not since it is known.
    pub changed: Option<Timestamp>,
    /// Time of the last access that a program set. Kept here only: no object carries one.
    pub atime: Option<Timestamp>,
    /// Directories in this directory, where this mount made it or listed it.
    pub subdirs: Option<Subdirs>,
    /// Who acts on the object: see [`Body::turn`].
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// That of an inode that was neither opened nor changed.
static UNUSED: LazyLock<Usage> = LazyLock::new(Usage::default);

impl Deref for State {
    type Target = Usage;

    fn deref(&self) -> &Usage {
        self.usage.as_deref().unwrap_or_else(|| &UNUSED)
    }
}

impl DerefMut for State {
    fn deref_mut(&mut self) -> &mut Usage {
        self.usage.get_or_insert_default()
    }
}

/// How many directories a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subdirs {
    count: u32,
    /// When this mount last changed it, or a listing that told it began.
    as_of: Instant,
}

impl Subdirs {
    /// Of a directory that was made now.
    pub fn none() -> Self {
        Self { count: 0, as_of: Instant::now() }
    }
}

/// What the mount keeps with an inode.
pub struct Body {
    /// Never locked while waiting.
    pub state: Mutex<State>,
}

impl Body {
    /// Of an inode with this content, just confirmed.
    pub fn new(content: Content) -> Self {
        Self::confirmed_at(content, Instant::now())
    }

    /// Of an inode with this content, confirmed at `as_of`.
    pub fn confirmed_at(content: Content, as_of: Instant) -> Self {
        Self { state: Mutex::new(State { content, confirmed: Some(as_of), usage: None }) }
    }

    /// One act at a time on the object: opening for writing, copying attributes, unlink, rename. Taken by tasks only, as
    /// it is held while BOS is asked. The turn ends when what this returns is dropped.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        // Of the inode's own usage, which is made by it.
        let turn = self.state.lock().usage.get_or_insert_default().turn.clone();
        turn.lock_owned().await
    }

    /// Memory that the body of a file points to that nobody has open, roughly, bytes: its ETag, and the headers of a file
    /// that bosfs itself wrote.
    pub const HEAP_BYTES: usize = 48 + 80;

    /// Whether the kernel may be asked to forget the inode: what is known of it is in BOS, and nobody has it open.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        let in_bos = matches!(state.content, Content::Object(_) | Content::Dir(_));
        in_bos && state.handles == 0 && state.writers == 0
    }
}

impl State {
    /// Whether the content may be shown without asking BOS. A file is not asked for while it is open: its reads are
    /// pinned, and `getattr` must not wait for the network then.
    pub fn is_fresh(&self, ttl: Duration) -> bool {
        match self.content {
            Content::Dirty(_) | Content::Virtual(_) => true,
            Content::Object(_) | Content::Dir(_) => self.handles > 0 || self.confirmed_within(ttl),
        }
    }

    /// Whether the content was confirmed less than `ttl` ago.
    pub fn confirmed_within(&self, ttl: Duration) -> bool {
        self.confirmed.is_some_and(|at| at.elapsed() < ttl)
    }

    /// Takes over what BOS had at `as_of`. A dirty file is local truth and stays; so does what was confirmed later.
    pub fn adopt(&mut self, object: Object, as_of: Instant) {
        let older = self.confirmed.max(self.published).is_some_and(|known| as_of < known);
        match &self.content {
            Content::Dirty(_) | Content::Virtual(_) | Content::Dir(_) => return,
            Content::Object(known) if older && *known != object => return,
            Content::Object(known) if known.etag != object.etag => {
                // Handles that are open stay with what they opened; pages that the kernel has are of the old content.
                self.epoch += 1;
                self.changed = None;
            }
            Content::Object(_) => {}
        }
        self.content = Content::Object(object);
        if !older {
            self.confirmed = Some(as_of);
        }
    }

    /// The name is that of a dirty file.
    pub fn take_over(&mut self, file: Arc<DirtyFile>) {
        let known = matches!(&self.content, Content::Dirty(known) if Arc::ptr_eq(known, &file));
        if self.writers == 0 && !known {
            self.content = Content::Dirty(file);
            // Pages that the kernel has of the object are not those of the file.
            self.epoch += 1;
        }
    }

    /// An attribute of `file` was set, which a release may have taken for finished in this moment.
    pub fn keep(&mut self, file: &Arc<DirtyFile>) {
        if matches!(self.content, Content::Object(_)) && file.settled().is_none() {
            self.content = Content::Dirty(file.clone());
        }
    }

    /// A dirty file whose last publication is proved, and that nobody writes, is its object again.
    /// `just_now`: it was published in the moment before, so that nobody else can have changed it unseen.
    pub fn settle(&mut self, just_now: bool) {
        if self.writers > 0 {
            return;
        }
        let Content::Dirty(file) = &self.content else { return };
        if let Some(published) = file.settled() {
            let proved_at = file.proved_at();
            self.changed = self.changed.max(Some(file.ctime()));
            self.content = Content::Object(published_object(published));
            // It may have been published long before; nothing that was asked before its proof is believed against it.
            self.published = Some(proved_at.unwrap_or_else(Instant::now));
            self.confirmed = if just_now { Some(Instant::now()) } else { proved_at };
        }
    }

    /// The attributes of the inode in this state.
    pub fn attr(&self, node: &Node) -> Attr {
        let (size, attrs) = match &self.content {
            Content::Object(object) => (object.size, object.attrs),
            Content::Dirty(file) => (file.size(), file.attrs()),
            Content::Dir(attrs) => (0, *attrs),
            Content::Virtual(file) => (0, file.attrs()),
        };
        let nlink = match self.subdirs {
            _ if !node.is_linked() => 0,
            Some(subdirs) if node.kind == Kind::Dir => subdirs.count.saturating_add(2),
            _ => 1,
        };
        let atime = self.atime.unwrap_or(attrs.mtime);
        Attr { ino: node.ino, kind: node.kind, size, attrs, atime, ctime: self.ctime(), nlink }
    }

    /// Time of the last change of content or attributes: of this mount's last act, else what BOS tells.
    fn ctime(&self) -> Timestamp {
        match &self.content {
            Content::Dirty(file) => self.changed.unwrap_or_default().max(file.ctime()),
            Content::Object(object) => self.changed.unwrap_or(match object.last_modified {
                0 => object.attrs.mtime,
                sec => Timestamp { sec, nsec: 0 },
            }),
            Content::Dir(attrs) => self.changed.unwrap_or(attrs.mtime),
            Content::Virtual(file) => file.attrs().mtime,
        }
    }

    /// A directory came into this one (`1`), or left it (`-1`).
    pub fn subdir_changed(&mut self, by: i32) {
        if let Some(subdirs) = &mut self.subdirs {
            *subdirs = Subdirs { count: subdirs.count.saturating_add_signed(by), as_of: Instant::now() };
        }
    }

    /// A listing of this directory that began at `as_of` has `count` directories. What this mount did since is not in it.
    pub fn subdirs_listed(&mut self, count: usize, as_of: Instant) {
        if self.subdirs.is_none_or(|subdirs| subdirs.as_of <= as_of) {
            self.subdirs = Some(Subdirs { count: u32::try_from(count).unwrap_or(u32::MAX), as_of });
        }
    }

    /// When this mount last changed the inode, as it is remembered.
    pub fn recall_change(&mut self, changed: Option<Timestamp>) {
        if self.changed != changed {
            self.changed = changed;
        }
    }

    /// The inode's attributes or its name changed now.
    pub fn touch(&mut self) {
        self.changed = Some(Timestamp::now());
    }
}

/// The object that a publication left.
pub fn published_object(published: Published) -> Object {
    Object {
        size: published.size,
        etag: published.etag,
        last_modified: 0,
        attrs: published.attrs,
        headers: PackedHeaders::from(published.headers),
    }
}

/// The kind that a mode tells.
pub fn kind_of(mode: u32) -> Kind {
    match mode & posix_meta::S_IFMT {
        posix_meta::S_IFLNK => Kind::Symlink,
        posix_meta::S_IFDIR => Kind::Dir,
        _ => Kind::File,
    }
}

/// The mode after a write, a change of size or a change of owner: set-user-ID always goes, set-group-ID where the group
/// may execute. The kernel leaves this to the file system (`FUSE_HANDLE_KILLPRIV_V2`).
pub fn without_privileges(mode: u32) -> u32 {
    const S_ISUID: u32 = 0o4000;
    const S_ISGID: u32 = 0o2000;
    const S_IXGRP: u32 = 0o0010;
    let mode = mode & !S_ISUID;
    if mode & S_IXGRP != 0 { mode & !S_ISGID } else { mode }
}

/// What `setattr` asks for; `None` leaves a value as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttrChange {
    /// Permission bits; type bits are not looked at.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of the last change.
    pub mtime: Option<Timestamp>,
    /// Time of the last access.
    pub atime: Option<Timestamp>,
}

impl AttrChange {
    /// `present` with the changes of mode, owner and time. A change of owner of a regular file takes its privileges.
    pub fn apply(&self, present: FileAttrs) -> FileAttrs {
        let mut attrs = present;
        let regular = present.mode & posix_meta::S_IFMT == posix_meta::S_IFREG;
        if regular && (self.uid.is_some() || self.gid.is_some()) {
            attrs.mode = without_privileges(attrs.mode);
        }
        if let Some(mode) = self.mode {
            attrs.mode = (present.mode & posix_meta::S_IFMT) | (mode & 0o7777);
        }
        attrs.uid = self.uid.unwrap_or(attrs.uid);
        attrs.gid = self.gid.unwrap_or(attrs.gid);
        attrs.mtime = self.mtime.unwrap_or(attrs.mtime);
        attrs
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::namespace::inode::{InodeTable, ROOT};
    use crate::object::ETag;

    fn object(etag: &str) -> Object {
        Object {
            size: 1,
            etag: ETag::new(etag),
            last_modified: 0,
            attrs: FileAttrs { mode: 0o100_644, uid: 0, gid: 0, mtime: Timestamp::default() },
            headers: PackedHeaders::default(),
        }
    }

    #[test]
    fn privileges_go_as_the_kernel_would_take_them() {
        assert_eq!(without_privileges(0o106_755), 0o100_755);
        assert_eq!(without_privileges(0o102_644), 0o102_644, "mandatory locking bit, not set-group-ID");
        assert_eq!(without_privileges(0o104_644), 0o100_644);
    }

    #[test]
    fn changes_leave_the_type_and_all_else_alone() {
        let present = FileAttrs { mode: 0o104_711, uid: 1, gid: 2, mtime: Timestamp { sec: 3, nsec: 4 } };
        assert_eq!(AttrChange::default().apply(present), present);
        let chmod = AttrChange { mode: Some(0o100_600), ..AttrChange::default() };
        assert_eq!(chmod.apply(present), FileAttrs { mode: 0o100_600, ..present });
        let chown = AttrChange { uid: Some(1), ..AttrChange::default() };
        assert_eq!(chown.apply(present), FileAttrs { mode: 0o100_711, ..present });
        let directory = FileAttrs { mode: 0o042_755, ..present };
        assert_eq!(chown.apply(directory), directory);
    }

    #[test]
    fn a_foreign_change_begins_a_new_epoch_and_the_same_content_does_not() {
        let mut state = Body::new(Content::Object(object("a"))).state.into_inner();
        state.adopt(object("a"), Instant::now());
        assert_eq!(state.epoch, 0);
        let before = Instant::now();
        state.adopt(object("b"), Instant::now());
        assert_eq!(state.epoch, 1);
        state.adopt(object("c"), before - Duration::from_secs(1));
        assert_eq!(state.epoch, 1, "news from before what is known");
    }

    #[test]
    fn news_from_before_a_publication_of_our_own_is_old() {
        let asked_at = Instant::now();
        let mut state = Body::new(Content::Object(object("ours"))).state.into_inner();
        (state.confirmed, state.published) = (None, Some(Instant::now()));
        state.adopt(object("before"), asked_at);
        assert!(matches!(&state.content, Content::Object(known) if known.etag == ETag::new("ours")));
        assert!(state.confirmed.is_none(), "asked again");
        state.adopt(object("after"), Instant::now());
        assert!(matches!(&state.content, Content::Object(known) if known.etag == ETag::new("after")));
    }

    #[test]
    fn a_name_that_nobody_has_open_is_one_small_inode() {
        // Exact, so that whoever lets it grow sees it: an inode of 192 bytes with the counts of its `Arc`.
        assert_eq!((size_of::<Object>(), size_of::<Content>(), size_of::<State>()), (80, 88, 112));
        assert_eq!(size_of::<Node>(), 176);
        let table = InodeTable::new(Body::new(Content::Object(object("root"))), u64::MAX, Body::HEAP_BYTES);
        let root = table.get(ROOT).unwrap();
        let before = table.bytes();
        table.enter(&root, "eleven-byte", Kind::File, || Body::new(Content::Object(object("a"))));
        let bytes = table.bytes() - before;
        assert!((300..400).contains(&bytes), "{bytes} bytes");
    }

    fn resident_bytes() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size() as u64
    }

    /// What a name costs that was looked up and that nobody has open, with the headers of a file that bosfs itself wrote, as
    /// the system counts it; and that it comes back.
    #[test]
    fn two_hundred_thousand_known_names_take_less_than_400_bytes_each_and_give_them_back() {
        const NAMES: u64 = 200_000;
        let usual = [
            ("bosfs-gid", "1000"),
            ("bosfs-mode", "33188"),
            ("bosfs-mtime", "1764532427"),
            ("bosfs-mtime-nsec", "123456789"),
            ("bosfs-uid", "1000"),
        ];
        let root = Body::new(Content::Dir(FileAttrs { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default() }));
        let table = InodeTable::new(root, u64::MAX, Body::HEAP_BYTES);
        let root = table.get(ROOT).unwrap();
        // Of the test, not of the names: it is there before they are counted.
        let mut numbers = vec![u64::MAX; NAMES as usize];
        let before = resident_bytes();
        for i in 0..NAMES {
            let mut metadata: BTreeMap<String, String> =
                usual.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            metadata.insert(posix_meta::MARK.to_owned(), format!("{i:016x}.1"));
            let headers = crate::bos::client::ObjectHeaders { metadata, ..Default::default() };
            let known = Object { headers: headers.into(), ..object(&format!("{i:032x}")) };
            let name = format!("file-{i:06}");
            numbers[i as usize] = table.enter(&root, &name, Kind::File, || Body::new(Content::Object(known))).ino;
        }
        let estimated = table.bytes() / NAMES;
        let end = Instant::now() + Duration::from_secs(120);
        let each = || (resident_bytes() - before.min(resident_bytes())) / NAMES;
        // What tables had before they grew is given back a moment later.
        while each() > 400 {
            assert!(Instant::now() < end, "{} bytes each", each());
            std::thread::sleep(Duration::from_millis(200));
        }
        let full = each();
        println!("{full} bytes each, estimated {estimated}");
        assert!(estimated.abs_diff(full) < 100, "{full} bytes each, estimated {estimated}");
        numbers.into_iter().for_each(|ino| table.forget(ino, 1));
        while each() > full / 4 {
            assert!(Instant::now() < end, "{} of {full} bytes stay", each());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    #[test]
    fn only_what_was_opened_or_changed_takes_memory_for_it() {
        let mut state = Body::new(Content::Object(object("a"))).state.into_inner();
        state.settle(false);
        state.adopt(object("a"), Instant::now());
        state.recall_change(None);
        assert!(state.handles == 0 && state.changed.is_none() && state.usage.is_none());
        state.handles += 1;
        assert_eq!(state.usage.as_ref().map(|usage| usage.handles), Some(1));
    }

    #[test]
    fn an_open_file_is_not_asked_for_again() {
        let mut state = Body::new(Content::Object(object("a"))).state.into_inner();
        state.confirmed = None;
        assert!(!state.is_fresh(Duration::from_secs(1)));
        state.handles = 1;
        assert!(state.is_fresh(Duration::from_secs(1)));
    }
}
