//! One method per request: decode, call, reply.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use super::convert::{absent_attr, file_attr, file_type, open_flags, timestamp};
use super::options;
use super::wait::{Wait, answer};
use crate::fs::About;
use crate::fs::attr::AttrChange;
use crate::fs::error::{FsError, FsResult};
use crate::fs::{Caller, Entry, Fs, RenameOptions, Space, Written};
use crate::object::NAME_BYTES_MAX;

/// Inode numbers are never used for another inode while the kernel knows them, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// Turns kernel requests into calls on [`Fs`].
pub(super) struct Adapter {
    fs: Arc<Fs>,
}

impl Adapter {
    pub(super) fn new(fs: Arc<Fs>) -> Self {
        Self { fs }
    }
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), tid: req.pid() }
}

/// The errno of a failed request; what people should know of it goes to the log.
fn told(request: &str, error: &FsError) -> Errno {
    if !error.message.is_empty() {
        log::warn!("{request}: {error}");
    }
    Errno::from_i32(error.errno)
}

/// Who asks for something about this inode, or a name in it.
fn by(req: &Request, ino: INodeNo) -> About {
    About { tid: req.pid(), ino: ino.0, fh: None }
}

/// Who asks for something about this open file.
fn by_handle(req: &Request, ino: INodeNo, fh: FileHandle) -> About {
    About { fh: Some(fh.0), ..by(req, ino) }
}

/// What `act` gives. Should it panic, that is an error like others, and the file is given up before anybody hears of it.
fn guarded<T>(fs: &Fs, about: About, act: impl FnOnce() -> FsResult<T>) -> FsResult<T> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| Err(FsError::told(libc::EIO, fs.panicked(about))))
}

/// A name as text; keys are UTF-8, so other names exist nowhere.
macro_rules! text_or_reply {
    ($name:expr, $reply:expr, $errno:expr) => {
        match $name.to_str() {
            Some(name) => name.to_owned(),
            None => return $reply.error($errno),
        }
    };
}

impl Adapter {
    fn reply_entry(
        &self,
        request: &'static str,
        ttl: Duration,
        reply: ReplyEntry,
    ) -> impl FnOnce(Result<Entry, FsError>) + Send + 'static {
        move |result| match result {
            Ok(entry) => reply.entry(&ttl, &file_attr(&entry.attr), GENERATION),
            Err(error) => reply.error(told(request, &error)),
        }
    }

    /// Takes back the lookup of an entry that the kernel was not told of.
    fn forget_entry(&self) -> impl FnOnce(Entry) + Send + 'static {
        let fs = self.fs.clone();
        move |entry| fs.forget(entry.attr.ino, 1)
    }
}

fn reply_empty(request: &'static str, reply: ReplyEmpty) -> impl FnOnce(Result<(), FsError>) + Send + 'static {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(told(request, &error)),
    }
}

/// The length alone for a size of 0, else the bytes, if they fit.
fn reply_xattr(
    request: &'static str,
    size: u32,
    reply: ReplyXattr,
) -> impl FnOnce(Result<Vec<u8>, FsError>) + Send + 'static {
    move |result| match result {
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(told(request, &error)),
    }
}

/// Answers a write whose bytes are accepted: at once, or, if it is to be `durable`, once they are synced. A signal does not end
/// that wait, as on any disk: an append that is told EINTR would be made a second time.
fn reply_written(fs: &Arc<Fs>, about: About, fh: FileHandle, len: u32, durable: bool, reply: ReplyWrite) {
    if !durable {
        return reply.written(len);
    }
    let work = {
        let fs = fs.clone();
        async move { fs.sync_written(fh.0).await }
    };
    answer(fs, About { tid: 0, ..about }, Wait::Publishing, work, drop, move |result| match result {
        Ok(()) => reply.written(len),
        Err(error) => reply.error(told("write", &error)),
    });
}

/// Releases a handle; what it leaves behind is removed in a task.
fn release(fs: &Arc<Fs>, fh: u64) {
    let _runtime = fs.runtime().enter();
    fs.bury_later(fs.release(fh));
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        options::negotiate(config);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = text_or_reply!(name, reply, Errno::ENOENT);
        let (fs, undo, ttl) = (self.fs.clone(), self.fs.clone(), self.fs.ttl());
        answer(
            &self.fs,
            by(req, parent),
            Wait::Asking,
            async move { fs.lookup(parent.0, &name).await },
            move |entry| {
                if let Some(entry) = entry {
                    undo.forget(entry.attr.ino, 1);
                }
            },
            move |result| match result {
                Ok(Some(entry)) => reply.entry(&ttl, &file_attr(&entry.attr), GENERATION),
                Ok(None) if ttl.is_zero() => reply.error(Errno::ENOENT),
                Ok(None) => reply.entry(&ttl, &absent_attr(), GENERATION),
                Err(error) => reply.error(told("lookup", &error)),
            },
        );
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        let forgotten = guarded(&self.fs, by(req, ino), || {
            self.fs.forget(ino.0, nlookup);
            Ok(())
        });
        if let Err(error) = forgotten {
            told("forget", &error);
        }
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (fs, ttl) = (self.fs.clone(), self.fs.ttl());
        let work = async move { fs.getattr(ino.0).await };
        answer(&self.fs, by(req, ino), Wait::Asking, work, drop, move |result| match result {
            Ok(attr) => reply.attr(&ttl, &file_attr(&attr)),
            Err(error) => reply.error(told("getattr", &error)),
        });
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
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = AttrChange { mode, uid, gid, size, mtime: mtime.map(timestamp), atime: atime.map(timestamp) };
        let wait = if size.is_some() { Wait::Publishing } else { Wait::Acting };
        let (fs, ttl) = (self.fs.clone(), self.fs.ttl());
        let work = async move { fs.setattr(ino.0, change, fh.map(|fh| fh.0)).await };
        answer(
            &self.fs,
            About { fh: fh.map(|fh| fh.0), ..by(req, ino) },
            wait,
            work,
            drop,
            move |result| match result {
                Ok(attr) => reply.attr(&ttl, &file_attr(&attr)),
                Err(error) => reply.error(told("setattr", &error)),
            },
        );
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let fs = self.fs.clone();
        let work = async move { fs.readlink(ino.0).await };
        answer(&self.fs, by(req, ino), Wait::Asking, work, drop, move |result| match result {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(told("readlink", &error)),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let name = text_or_reply!(name, reply, Errno::EILSEQ);
        let (fs, caller) = (self.fs.clone(), caller(req));
        let work = async move { fs.mknod(parent.0, &name, mode, caller).await };
        let reply = self.reply_entry("mknod", self.fs.ttl(), reply);
        answer(&self.fs, by(req, parent), Wait::Acting, work, self.forget_entry(), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let name = text_or_reply!(name, reply, Errno::EILSEQ);
        let (fs, caller) = (self.fs.clone(), caller(req));
        let work = async move { fs.mkdir(parent.0, &name, mode, caller).await };
        let reply = self.reply_entry("mkdir", self.fs.ttl(), reply);
        answer(&self.fs, by(req, parent), Wait::Acting, work, self.forget_entry(), reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = text_or_reply!(name, reply, Errno::ENOENT);
        let fs = self.fs.clone();
        let work = async move { fs.unlink(parent.0, &name).await };
        answer(&self.fs, by(req, parent), Wait::Acting, work, drop, reply_empty("unlink", reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = text_or_reply!(name, reply, Errno::ENOENT);
        let fs = self.fs.clone();
        let work = async move { fs.rmdir(parent.0, &name).await };
        answer(&self.fs, by(req, parent), Wait::Acting, work, drop, reply_empty("rmdir", reply));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let name = text_or_reply!(link_name, reply, Errno::EILSEQ);
        let target = text_or_reply!(target, reply, Errno::EILSEQ);
        let (fs, caller) = (self.fs.clone(), caller(req));
        let work = async move { fs.symlink(parent.0, &name, &target, caller).await };
        let reply = self.reply_entry("symlink", self.fs.ttl(), reply);
        answer(&self.fs, by(req, parent), Wait::Acting, work, self.forget_entry(), reply);
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
        let exchange = flags == RenameFlags::RENAME_EXCHANGE;
        if !exchange && !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let options = RenameOptions { no_replace: flags.contains(RenameFlags::RENAME_NOREPLACE) };
        let name = text_or_reply!(name, reply, Errno::ENOENT);
        let new_name = text_or_reply!(newname, reply, Errno::EILSEQ);
        let fs = self.fs.clone();
        let work = async move {
            let _in_new = fs.waiting_in(newparent.0);
            match exchange {
                true => fs.exchange(parent.0, &name, newparent.0, &new_name).await,
                false => fs.rename(parent.0, &name, newparent.0, &new_name, options).await,
            }
        };
        answer(&self.fs, by(req, parent), Wait::Moving(self.fs.timeout()), work, drop, reply_empty("rename", reply));
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        // An object has one key; hard links cannot be kept as plain objects.
        reply.error(Errno::EPERM);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (fs, undo, caller) = (self.fs.clone(), self.fs.clone(), caller(req));
        // Truncation waits for frozen parts, which is a wait for data.
        let wait = if flags.0 & libc::O_TRUNC != 0 { Wait::Publishing } else { Wait::Acting };
        answer(
            &self.fs,
            by(req, ino),
            wait,
            async move { fs.open(ino.0, flags.0, caller).await },
            move |opened| undo.bury_later(undo.abandon(opened.fh)),
            move |result| match result {
                Ok(opened) => reply.opened(FileHandle(opened.fh), open_flags(&opened)),
                Err(error) => reply.error(told("open", &error)),
            },
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = text_or_reply!(name, reply, Errno::EILSEQ);
        let (fs, undo, caller, ttl) = (self.fs.clone(), self.fs.clone(), caller(req), self.fs.ttl());
        answer(
            &self.fs,
            by(req, parent),
            Wait::Acting,
            async move { fs.create(parent.0, &name, mode, flags, caller).await },
            move |(entry, opened)| {
                undo.bury_later(undo.abandon(opened.fh));
                undo.forget(entry.attr.ino, 1);
            },
            move |result| match result {
                Ok((entry, opened)) => {
                    let (attr, fh) = (file_attr(&entry.attr), FileHandle(opened.fh));
                    reply.created(&ttl, &attr, GENERATION, fh, open_flags(&opened));
                }
                Err(error) => reply.error(told("create", &error)),
            },
        );
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = self.fs.clone();
        let work = async move { fs.read(fh.0, offset, size).await };
        answer(&self.fs, by_handle(req, ino, fh), Wait::Reading, work, drop, move |result| match result {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(told("read", &error)),
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // One request has at most 1 MiB.
        let len = data.len() as u32;
        // O_SYNC has the bit of O_DSYNC, too; the kernel adds what a single call asks for (RWF_DSYNC). Behind a write through a
        // handle that it caches (open for reading, too) it sends an fsync itself, which finds nothing new.
        let durable = flags.0 & libc::O_DSYNC != 0;
        let about = by_handle(req, ino, fh);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let result = guarded(&self.fs, about, || {
            let _runtime = self.fs.runtime().enter();
            self.fs.try_write(fh.0, offset, data, kill)
        });
        match result {
            Ok(Written::All) => reply_written(&self.fs, about, fh, len, durable, reply),
            Err(error) => reply.error(told("write", &error)),
            Ok(Written::MustWait) => {
                // The worker's buffer is needed for the next request.
                let bytes = Bytes::copy_from_slice(data);
                let (fs, accepted) = (self.fs.clone(), self.fs.clone());
                let work = async move { fs.write_waiting(fh.0, offset, bytes, kill).await };
                answer(&self.fs, about, Wait::Reading, work, drop, move |result| match result {
                    Ok(()) => reply_written(&accepted, about, fh, len, durable, reply),
                    Err(error) => reply.error(told("write", &error)),
                });
            }
        }
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let (fs, caller) = (self.fs.clone(), caller(req));
        let work = async move { fs.flush(fh.0, caller).await };
        answer(&self.fs, by_handle(req, ino, fh), Wait::Publishing, work, drop, reply_empty("flush", reply));
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let released = guarded(&self.fs, by_handle(req, ino, fh), || {
            release(&self.fs, fh.0);
            Ok(())
        });
        reply_empty("release", reply)(released);
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        let work = async move { fs.fsync(fh.0).await };
        answer(&self.fs, by_handle(req, ino, fh), Wait::Publishing, work, drop, reply_empty("fsync", reply));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match guarded(&self.fs, by(req, ino), || self.fs.opendir(ino.0)) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(told("opendir", &error)),
        }
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let fs = self.fs.clone();
        let work = async move { fs.readdir(fh.0, offset).await };
        answer(&self.fs, by(req, ino), Wait::Asking, work, drop, move |result| match result {
            Ok(entries) => {
                for entry in entries {
                    let kind = file_type(entry.kind);
                    if reply.add(INodeNo(entry.ino), entry.next_offset, kind, &*entry.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(told("readdir", &error)),
        });
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let (fs, undo, back, ttl) = (self.fs.clone(), self.fs.clone(), self.fs.clone(), self.fs.ttl());
        answer(
            &self.fs,
            by(req, ino),
            Wait::Asking,
            async move { fs.readdirplus(fh.0, offset).await },
            move |entries| {
                for entry in entries.iter().filter(|entry| entry.counted) {
                    undo.forget(entry.attr.ino, 1);
                }
            },
            move |result| match result {
                Ok(entries) => {
                    let mut full = false;
                    for entry in entries {
                        let attr = file_attr(&entry.attr);
                        full = full || reply.add(attr.ino, entry.next_offset, &*entry.name, &ttl, &attr, GENERATION);
                        if full && entry.counted {
                            back.forget(entry.attr.ino, 1);
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(told("readdirplus", &error)),
            },
        );
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let released = guarded(&self.fs, by(req, ino), || {
            self.fs.releasedir(fh.0);
            Ok(())
        });
        reply_empty("releasedir", reply)(released);
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        let work = async move { fs.fsyncdir(ino.0).await };
        answer(&self.fs, by(req, ino), Wait::Moving(self.fs.timeout()), work, drop, reply_empty("fsyncdir", reply));
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match guarded(&self.fs, by(req, ino), || Ok(self.fs.statfs())) {
            Ok(space) => {
                let (block, name_max) = (Space::BLOCK_BYTES, NAME_BYTES_MAX as u32);
                reply.statfs(space.blocks, space.free, space.free, space.blocks, space.blocks, block, name_max, block);
            }
            Err(error) => reply.error(told("statfs", &error)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let name = text_or_reply!(name, reply, Errno::EINVAL);
        let (fs, value) = (self.fs.clone(), value.to_vec());
        let work = async move { fs.setxattr(ino.0, &name, &value, flags).await };
        answer(&self.fs, by(req, ino), Wait::Acting, work, drop, reply_empty("setxattr", reply));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = text_or_reply!(name, reply, Errno::NO_XATTR);
        let fs = self.fs.clone();
        let work = async move { fs.getxattr(ino.0, &name).await };
        answer(&self.fs, by(req, ino), Wait::Asking, work, drop, reply_xattr("getxattr", size, reply));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let fs = self.fs.clone();
        let work = async move { fs.listxattr(ino.0).await };
        answer(&self.fs, by(req, ino), Wait::Asking, work, drop, reply_xattr("listxattr", size, reply));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = text_or_reply!(name, reply, Errno::NO_XATTR);
        let fs = self.fs.clone();
        let work = async move { fs.removexattr(ino.0, &name).await };
        answer(&self.fs, by(req, ino), Wait::Acting, work, drop, reply_empty("removexattr", reply));
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself (`default_permissions`).
        reply.ok();
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // isatty() asks this way.
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        let work = async move { fs.fallocate(fh.0, offset, length, mode).await };
        answer(&self.fs, by_handle(req, ino, fh), Wait::Reading, work, drop, reply_empty("fallocate", reply));
    }

    fn lseek(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        match guarded(&self.fs, by_handle(req, ino, fh), || self.fs.lseek(fh.0, offset, whence)) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(told("lseek", &error)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let fs = self.fs.clone();
        let work = async move { fs.copy_file_range((fh_in.0, offset_in), (fh_out.0, offset_out), len).await };
        answer(&self.fs, by_handle(req, ino_out, fh_out), Wait::Reading, work, drop, move |result| match result {
            Ok(copied) => reply.written(copied),
            Err(error) => reply.error(told("copy_file_range", &error)),
        });
    }
}
