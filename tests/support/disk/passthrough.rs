//! The requests of the kernel, carried out on the folder behind the disk.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::fault::Kind;
use super::nodes::{Handle, Passthrough, ROOT, errno, errno_of, open_again};
use super::record::Act;

/// The kernel remembers nothing.
const TTL: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
/// Largest write in one request.
const WRITE_BYTES_MAX: u32 = 1 << 20;

macro_rules! reply {
    ($reply:expr, $result:expr, |$value:pat_param| $ok:expr) => {
        match $result {
            Ok($value) => $ok,
            Err(error) => $reply.error(errno(error)),
        }
    };
}

impl Filesystem for Passthrough {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.node(parent).and_then(|dir| {
            self.pass(req, Kind::Read, "", (0, 0))?;
            self.enter(&dir, name)
        });
        reply!(reply, found, |attr| reply.entry(&TTL, &attr, GENERATION));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get_mut(&ino.0) {
            node.lookups = node.lookups.saturating_sub(nlookup);
            if node.lookups == 0 && ino.0 != ROOT {
                nodes.remove(&ino.0);
            }
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let stat = self.node(ino).and_then(|fd| rustix::fs::fstat(&*fd));
        reply!(reply, stat, |stat| reply.attr(&TTL, &self.attr(&stat, ino.0)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.node(ino).and_then(|fd| {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            if let Some(len) = size {
                self.set_len(req, &fd, len)?;
            }
            if let Some(mode) = mode {
                self.change(req, Kind::Mode, self.path_of(&*fd), (0, 0), |_| {
                    rustix::fs::chmod(&path, Mode::from_raw_mode(mode & 0o7777)).map(|()| ((), Act::Mode))
                })?;
            }
            if uid.is_some() || gid.is_some() {
                self.change(req, Kind::Mode, self.path_of(&*fd), (0, 0), |_| {
                    let done = std::os::unix::fs::chown(&path, uid, gid);
                    done.map(|()| ((), Act::Mode)).map_err(|e| errno_of(&e))
                })?;
            }
            if size.is_none() && (atime.is_some() || mtime.is_some()) {
                self.change(req, Kind::Mode, self.path_of(&*fd), (0, 0), |_| {
                    let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
                    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::empty()).map(|()| ((), Act::Mode))
                })?;
            }
            rustix::fs::fstat(&*fd)
        });
        reply!(reply, changed, |stat| reply.attr(&TTL, &self.attr(&stat, ino.0)));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let socket = rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Socket;
        let made = self.make(req, Kind::Create, parent, name, |dir| {
            if !socket {
                return Err(Errno::PERM);
            }
            let mode = Mode::from_raw_mode(mode & 0o7777 & !umask);
            rustix::fs::mknodat(dir, name, rustix::fs::FileType::Socket, mode, 0)
        });
        reply!(reply, made, |attr| reply.entry(&TTL, &attr, GENERATION));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mode = Mode::from_raw_mode(mode & 0o7777 & !umask);
        let made = self.make(req, Kind::Mkdir, parent, name, |dir| rustix::fs::mkdirat(dir, name, mode));
        reply!(reply, made, |attr| reply.entry(&TTL, &attr, GENERATION));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(reply, self.remove(req, Kind::Unlink, parent, name), |()| reply.ok());
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(reply, self.remove(req, Kind::Rmdir, parent, name), |()| reply.ok());
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply!(reply, self.rename_entry(req, (parent, name), (newparent, newname), flags), |()| reply.ok());
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.node(ino).and_then(|fd| {
            let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
            let kind = if writes { Kind::OpenForWriting } else { Kind::Read };
            self.pass(req, kind, &self.path_of(&*fd), (0, 0))?;
            open_again(&fd, if writes { OFlags::RDWR } else { OFlags::RDONLY })
        });
        reply!(reply, opened, |file| {
            reply.opened(self.keep(Handle::File(Arc::new(file))), FopenFlags::FOPEN_DIRECT_IO);
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let created = self.create_file(req, parent, name, mode & !umask, flags);
        reply!(reply, created, |(attr, fh)| {
            reply.created(&TTL, &attr, GENERATION, fh, FopenFlags::FOPEN_DIRECT_IO);
        });
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.file(fh).and_then(|file| {
            self.pass(req, Kind::Read, &self.path_of(&*file), (offset, offset + u64::from(size)))?;
            let mut bytes = vec![0; size as usize];
            let mut filled = 0;
            while filled < bytes.len() {
                match file.read_at(&mut bytes[filled..], offset + filled as u64).map_err(|e| errno_of(&e))? {
                    0 => break,
                    n => filled += n,
                }
            }
            bytes.truncate(filled);
            Ok(bytes)
        });
        reply!(reply, read, |bytes| reply.data(&bytes));
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply!(reply, self.write_file(req, fh, offset, data), |taken| reply.written(taken));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.lock().remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let synced = self.file(fh).and_then(|file| {
            let node = self.id_of(&file)?;
            let path = self.path_of(&*file);
            self.change(req, Kind::SyncFile, path, (0, u64::MAX), |_| Ok(((), Act::SyncFile { node })))
        });
        reply!(reply, synced, |()| reply.ok());
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.node(ino).and_then(|fd| {
            self.pass(req, Kind::Read, &self.path_of(&*fd), (0, 0))?;
            self.list(&fd)
        });
        reply!(reply, opened, |list| reply.opened(self.keep(Handle::Dir(Arc::new(list))), FopenFlags::empty()));
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let list = match self.handles.lock().get(&fh.0) {
            Some(Handle::Dir(list)) => list.clone(),
            _ => return reply.error(errno(Errno::BADF)),
        };
        for (index, (ino, kind, name)) in list.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*ino), index as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.handles.lock().remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let synced = self.node(ino).and_then(|fd| {
            let node = self.id_of(&*fd)?;
            self.change(req, Kind::SyncDir, self.path_of(&*fd), (0, u64::MAX), |_| Ok(((), Act::SyncDir { node })))
        });
        reply!(reply, synced, |()| reply.ok());
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply!(reply, rustix::fs::statvfs(&self.backing), |s| reply.statfs(
            s.f_blocks,
            s.f_bfree,
            s.f_bavail,
            s.f_files,
            s.f_ffree,
            s.f_bsize as u32,
            s.f_namemax as u32,
            s.f_frsize as u32,
        ));
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply!(reply, self.punch(req, fh, offset, length, mode), |()| reply.ok());
    }
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() }
        }
    }
}
