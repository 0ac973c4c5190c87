//! Our values as fuser's.

use std::time::SystemTime;

use fuser::{FileAttr, FileType, FopenFlags, INodeNo, TimeOrNow};

use crate::fs::Opened;
use crate::fs::attr::{Attr, IO_BYTES};
use crate::namespace::inode::Kind;
use crate::object::Timestamp;

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    let mtime: SystemTime = attr.attrs.mtime.into();
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.atime.into(),
        mtime,
        ctime: attr.ctime.into(),
        crtime: mtime,
        kind: file_type(attr.kind),
        perm: (attr.attrs.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.attrs.uid,
        gid: attr.attrs.gid,
        rdev: 0,
        blksize: IO_BYTES,
        flags: 0,
    }
}

/// An entry with inode 0: the kernel remembers for a time that the name is absent.
pub(super) fn absent_attr() -> FileAttr {
    let zero = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        crtime: zero,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: IO_BYTES,
        flags: 0,
    }
}

pub(super) fn open_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_NOFLUSH, opened.no_flush);
    flags
}

pub(super) fn timestamp(time: TimeOrNow) -> Timestamp {
    let time = match time {
        TimeOrNow::Now => return Timestamp::now(),
        TimeOrNow::SpecificTime(time) => time,
    };
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(_) => time.into(),
        // fuser 0.18 makes `UNIX_EPOCH - (-sec + nsec)` of the kernel's (sec, nsec), where the nanoseconds of a negative
        // time count forwards: taken apart in the same way, it is the kernel's pair again.
        Err(before) => {
            let before = before.duration();
            Timestamp { sec: -(before.as_secs() as i64), nsec: before.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::FileAttrs;

    #[test]
    fn times_before_1970_arrive_as_the_kernel_sent_them() {
        for (sec, nsec) in [(-1, 0), (-1, 500_000_000), (-14_182_940, 250_000_000), (-2_000_000_000, 999_999_999)] {
            // As fuser 0.18 decodes the fields of SETATTR.
            let decoded = SystemTime::UNIX_EPOCH - std::time::Duration::new(i64::unsigned_abs(sec), nsec);
            assert_eq!(timestamp(TimeOrNow::SpecificTime(decoded)), Timestamp { sec, nsec });
        }
    }

    #[test]
    fn blocks_are_counted_so_that_no_file_looks_sparse() {
        for (size, blocks) in [(0, 0), (1, 1), (512, 1), (513, 2), (u64::MAX, u64::MAX / 512 + 1)] {
            let attrs = FileAttrs { mode: 0o104_755, uid: 1, gid: 2, mtime: Timestamp { sec: -1, nsec: 5 } };
            let (atime, ctime) = (Timestamp::default(), Timestamp::default());
            let attr = file_attr(&Attr { ino: 9, kind: Kind::File, size, attrs, atime, ctime, nlink: 1 });
            assert_eq!((attr.blocks, attr.perm), (blocks, 0o4755));
            assert_eq!(Timestamp::from(attr.mtime), attrs.mtime);
        }
    }
}
