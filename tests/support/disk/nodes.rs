//! The inodes, handles and acts of the disk, on the folder behind it.
//!
//! Inode numbers are those of the backing file system (the disk's top folder is 1); each known inode is held by an `O_PATH`
//! descriptor, so that names may change underneath.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileHandle, FileType, INodeNo, RenameFlags, Request};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::fault::Kind;
use super::record::{Act, Change, NodeId, NodeKind};
use super::{Gate, Verdict};

/// Inode of the top folder.
pub(super) const ROOT: u64 = 1;

pub(super) struct Node {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) lookups: u64,
}

pub(super) enum Handle {
    File(Arc<File>),
    Dir(Arc<Vec<(u64, FileType, std::ffi::OsString)>>),
}

pub(super) struct Passthrough {
    pub(super) backing: PathBuf,
    pub(super) gate: Arc<Mutex<Gate>>,
    pub(super) nodes: Mutex<HashMap<u64, Node>>,
    pub(super) handles: Mutex<HashMap<u64, Handle>>,
    /// Which node an inode number of the backing file system is at present.
    ids: Mutex<HashMap<u64, NodeId>>,
    next: AtomicU64,
}

pub(super) fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

pub(super) fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

pub(super) fn time(sec: i64, nsec: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(sec.max(0) as u64, nsec as u32)
}

pub(super) fn file_type(mode: u32) -> FileType {
    match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        _ => FileType::RegularFile,
    }
}

impl Passthrough {
    pub(super) fn new(backing: &Path, gate: Arc<Mutex<Gate>>) -> io::Result<Self> {
        let fd = rustix::fs::open(backing, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let root = rustix::fs::fstat(&fd)?.st_ino;
        let nodes = HashMap::from([(ROOT, Node { fd: Arc::new(fd), lookups: 1 })]);
        Ok(Self {
            backing: backing.to_owned(),
            gate,
            nodes: Mutex::new(nodes),
            handles: Mutex::default(),
            ids: Mutex::new(HashMap::from([(root, NodeId::ROOT)])),
            next: AtomicU64::new(1),
        })
    }

    pub(super) fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    pub(super) fn node(&self, ino: INodeNo) -> Result<Arc<OwnedFd>, Errno> {
        self.nodes.lock().get(&ino.0).map(|node| node.fd.clone()).ok_or(Errno::STALE)
    }

    pub(super) fn file(&self, fh: FileHandle) -> Result<Arc<File>, Errno> {
        match self.handles.lock().get(&fh.0) {
            Some(Handle::File(file)) => Ok(file.clone()),
            _ => Err(Errno::BADF),
        }
    }

    pub(super) fn keep(&self, handle: Handle) -> FileHandle {
        let fh = self.next();
        self.handles.lock().insert(fh, handle);
        FileHandle(fh)
    }

    /// Path below the disk of what a descriptor means.
    pub(super) fn path_of(&self, fd: &impl std::os::fd::AsRawFd) -> String {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
        let path = path.strip_prefix(&self.backing).unwrap_or(&path).to_string_lossy().into_owned();
        path.strip_suffix(" (deleted)").map_or(path.clone(), str::to_owned)
    }

    pub(super) fn path_in(&self, parent: &OwnedFd, name: &OsStr) -> String {
        let dir = self.path_of(parent);
        let name = name.to_string_lossy();
        if dir.is_empty() { name.into_owned() } else { format!("{dir}/{name}") }
    }

    /// The node of an inode, which gets a number at its first sight.
    pub(super) fn id(&self, st_ino: u64) -> NodeId {
        let mut ids = self.ids.lock();
        *ids.entry(st_ino).or_insert_with(|| NodeId(self.next()))
    }

    pub(super) fn new_id(&self, st_ino: u64) -> NodeId {
        let id = NodeId(self.next());
        self.ids.lock().insert(st_ino, id);
        id
    }

    pub(super) fn id_of(&self, fd: &impl std::os::fd::AsFd) -> Result<NodeId, Errno> {
        Ok(self.id(rustix::fs::fstat(fd)?.st_ino))
    }

    pub(super) fn attr(&self, stat: &Stat, ino: u64) -> FileAttr {
        FileAttr {
            ino: INodeNo(ino),
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            atime: time(stat.st_atime, stat.st_atime_nsec as i64),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec as i64),
            crtime: SystemTime::UNIX_EPOCH,
            kind: file_type(stat.st_mode),
            perm: (stat.st_mode & 0o7777) as u16,
            nlink: stat.st_nlink as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Looks a name up and remembers its inode once more.
    pub(super) fn enter(&self, parent: &OwnedFd, name: &OsStr) -> Result<FileAttr, Errno> {
        let fd = rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        let ino = stat.st_ino;
        let mut nodes = self.nodes.lock();
        nodes.entry(ino).or_insert_with(|| Node { fd: Arc::new(fd), lookups: 0 }).lookups += 1;
        Ok(self.attr(&stat, ino))
    }

    /// Puts a change through the gate: asks the rules, carries it out, records it.
    pub(super) fn change<T>(
        &self,
        req: &Request,
        kind: Kind,
        path: String,
        range: (u64, u64),
        act: impl FnOnce(Option<u64>) -> Result<(T, Act), Errno>,
    ) -> Result<T, Errno> {
        let mut gate = self.gate.lock();
        let verdict = gate.ask(req.pid(), kind, &path, range)?;
        if let Verdict::ActLate(rule) = &verdict {
            rule.count_hit(&path);
            drop(gate);
            rule.wait_released();
            gate = self.gate.lock();
            if gate.frozen {
                return Err(Errno::IO);
            }
        }
        let short = if let Verdict::Short(bytes) = &verdict { Some(*bytes) } else { None };
        let (value, act) = act(short)?;
        gate.record.changes.push(Change { kind, path: path.clone(), act });
        if let Verdict::GoAndKill(rule) = &verdict {
            gate.kill(req.pid(), rule, &path);
            return Err(Errno::IO);
        }
        if let Verdict::AnswerLate(rule) = verdict {
            rule.count_hit(&path);
            drop(gate);
            rule.wait_released();
        }
        Ok(value)
    }

    /// Asks the rules for something that changes nothing.
    pub(super) fn pass(&self, req: &Request, kind: Kind, path: &str, range: (u64, u64)) -> Result<(), Errno> {
        self.gate.lock().ask(req.pid(), kind, path, range).map(|_| ())
    }

    pub(super) fn make(
        &self,
        req: &Request,
        kind: Kind,
        parent: INodeNo,
        name: &OsStr,
        act: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<FileAttr, Errno> {
        let dir = self.node(parent)?;
        let node_kind = match kind {
            Kind::Mkdir => NodeKind::Dir,
            _ => NodeKind::Other,
        };
        self.change(req, kind, self.path_in(&dir, name), (0, 0), |_| {
            act(&dir)?;
            let attr = self.enter(&dir, name)?;
            let node = self.new_id(attr.ino.0);
            let name = name.to_string_lossy().into_owned();
            Ok((attr, Act::Create { parent: self.id_of(&dir)?, name, node, kind: node_kind }))
        })
    }

    pub(super) fn remove(&self, req: &Request, kind: Kind, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let dir = self.node(parent)?;
        self.change(req, kind, self.path_in(&dir, name), (0, 0), |_| {
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let flags = if kind == Kind::Rmdir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(&dir, name, flags)?;
            let name = name.to_string_lossy().into_owned();
            Ok(((), Act::Remove { parent: self.id_of(&dir)?, name, node: self.id(stat.st_ino) }))
        })
    }

    pub(super) fn create_file(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(FileAttr, FileHandle), Errno> {
        let dir = self.node(parent)?;
        let exclusive = flags & libc::O_EXCL != 0;
        self.change(req, Kind::Create, self.path_in(&dir, name), (0, 0), |_| {
            let mut wanted = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
            wanted.set(OFlags::EXCL, exclusive);
            let existed = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            let file = File::from(rustix::fs::openat(&dir, name, wanted, Mode::from_raw_mode(mode & 0o7777))?);
            let attr = self.enter(&dir, name)?;
            let act = if existed {
                Act::Mode
            } else {
                let node = self.new_id(attr.ino.0);
                let name = name.to_string_lossy().into_owned();
                Act::Create { parent: self.id_of(&dir)?, name, node, kind: NodeKind::File }
            };
            Ok(((attr, self.keep(Handle::File(Arc::new(file)))), act))
        })
    }

    pub(super) fn write_file(&self, req: &Request, fh: FileHandle, offset: u64, bytes: &[u8]) -> Result<u32, Errno> {
        let file = self.file(fh)?;
        let range = (offset, offset + bytes.len() as u64);
        let kept = self.gate.lock().record.keep_bytes;
        self.change(req, Kind::Write, self.path_of(&*file), range, |short| {
            let taken = short.map_or(bytes.len(), |short| bytes.len().min(short as usize));
            let bytes = &bytes[..taken];
            file.write_all_at(bytes, offset).map_err(|e| errno_of(&e))?;
            let node = self.id_of(&file)?;
            let len = taken as u64;
            let bytes = if kept { bytes.into() } else { [].into() };
            Ok((taken as u32, Act::Write { node, offset, len, bytes }))
        })
    }

    pub(super) fn rename_entry(
        &self,
        req: &Request,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let (old, new) = (self.node(from.0)?, self.node(to.0)?);
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return Err(Errno::INVAL);
        }
        self.change(req, Kind::Rename, self.path_in(&old, from.1), (0, 0), |_| {
            let stat = rustix::fs::statat(&old, from.1, AtFlags::SYMLINK_NOFOLLOW)?;
            let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
            rustix::fs::renameat_with(&old, from.1, &new, to.1, flags)?;
            let text = |name: &OsStr| name.to_string_lossy().into_owned();
            let act = Act::Rename {
                from: (self.id_of(&old)?, text(from.1)),
                to: (self.id_of(&new)?, text(to.1)),
                node: self.id(stat.st_ino),
            };
            Ok(((), act))
        })
    }

    pub(super) fn set_len(&self, req: &Request, fd: &OwnedFd, len: u64) -> Result<(), Errno> {
        self.change(req, Kind::SetLen, self.path_of(fd), (len, u64::MAX), |_| {
            let file = open_again(fd, OFlags::WRONLY)?;
            rustix::fs::ftruncate(&file, len)?;
            Ok(((), Act::SetLen { node: self.id_of(fd)?, len }))
        })
    }

    pub(super) fn punch(
        &self,
        req: &Request,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        let file = self.file(fh)?;
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        if mode != punch {
            return Err(Errno::OPNOTSUPP);
        }
        self.change(req, Kind::Punch, self.path_of(&*file), (offset, offset + length), |_| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, flags, offset, length)?;
            Ok(((), Act::Punch { node: self.id_of(&file)?, offset, len: length }))
        })
    }

    pub(super) fn list(&self, dir: &OwnedFd) -> Result<Vec<(u64, FileType, std::ffi::OsString)>, Errno> {
        let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
        let mut list = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| errno_of(&e))? {
            let entry = entry.map_err(|e| errno_of(&e))?;
            let kind = entry.file_type().ok().and_then(FileType::from_std).unwrap_or(FileType::RegularFile);
            list.push((std::os::unix::fs::DirEntryExt::ino(&entry), kind, entry.file_name()));
        }
        Ok(list)
    }
}

/// The file behind an `O_PATH` descriptor, opened.
pub(super) fn open_again(fd: &OwnedFd, flags: OFlags) -> Result<File, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(File::from(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?))
}
