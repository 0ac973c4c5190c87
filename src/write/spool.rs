//! The sparse file that holds what was written and not yet published, at the file's own offsets.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, Timespec, Timestamps, UTIME_OMIT, fallocate, futimens};

use super::block_map::BLOCK_BYTES;
use crate::bos::client::BodySource;
use crate::object::{ByteRange, Timestamp};

/// Name of the spool's file in an upload's directory.
pub const SPOOL_FILE: &str = "spool";

/// The spool of one dirty file. Its length is always the file's size; which of its bytes count is told by the block map.
///
/// Methods may be called side by side; writers and `set_len` are expected to be serialised by the caller.
pub struct Spool {
    file: Arc<File>,
    len: AtomicU64,
}

impl Spool {
    /// A new spool of `size` bytes, all of them a hole, as file [`SPOOL_FILE`] (mode 0600) in `dir`.
    ///
    /// # Errors
    /// Those of the disk; `AlreadyExists` where there is one.
    pub fn create(dir: &Path, size: u64) -> io::Result<Self> {
        Self::create_at(&dir.join(SPOOL_FILE), size)
    }

    /// As [`Spool::create`], as file `path`.
    ///
    /// # Errors
    /// See [`Spool::create`].
    pub fn create_at(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(size)?;
        Ok(Self { file: Arc::new(file), len: AtomicU64::new(size) })
    }

    /// The spool that an earlier process left in `dir`.
    ///
    /// # Errors
    /// Those of the disk; `NotFound` where there is none.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::open_at(&dir.join(SPOOL_FILE))
    }

    /// As [`Spool::open`], of file `path`.
    ///
    /// # Errors
    /// See [`Spool::open`].
    pub fn open_at(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), len: AtomicU64::new(len) })
    }

    /// Its length in bytes: the file's size.
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts all of `bytes` at `offset`; they survive a kill of bosfs when this returns. Extends the spool if need be.
    ///
    /// # Errors
    /// Those of the disk, ENOSPC among them. The length is then what it was; within it, bytes may have changed.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or_else(too_far)?;
        if let Err(error) = self.file.write_all_at(bytes, offset) {
            let len = self.len();
            if end > len {
                // A write that stopped half-way must not leave a longer file. Only an I/O error can make this fail too.
                self.file.set_len(len)?;
            }
            return Err(error);
        }
        self.len.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    /// Fills `bytes` from `offset` on. Holes are zeros.
    ///
    /// # Errors
    /// Those of the disk; `UnexpectedEof` beyond the end.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// Puts zeros over `range`, which may not reach beyond the length; for short ranges (whole blocks are punched).
    ///
    /// # Errors
    /// Those of the disk.
    pub fn zero(&self, range: ByteRange) -> io::Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut at = range.start;
        while at < range.end {
            let count = (range.end - at).min(ZEROS.len() as u64);
            self.write_at(at, &ZEROS[..count as usize])?;
            at += count;
        }
        Ok(())
    }

    /// Cuts or extends to `size` bytes. What is cut is gone: extended again, it reads as zeros.
    ///
    /// # Errors
    /// Those of the disk; the length is then what it was.
    pub fn set_len(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)?;
        self.len.store(size, Ordering::Release);
        Ok(())
    }

    /// Gives the whole blocks within `range` back to the disk; they read as zeros. The length stays.
    ///
    /// # Errors
    /// Those of the disk; EOPNOTSUPP where the file system cannot punch holes.
    pub fn punch(&self, range: ByteRange) -> io::Result<()> {
        let start = range.start.next_multiple_of(BLOCK_BYTES);
        let end = range.end / BLOCK_BYTES * BLOCK_BYTES;
        if start < end {
            fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, end - start)?;
        }
        Ok(())
    }

    /// Bytes that the spool takes on disk, by the file system's count.
    ///
    /// # Errors
    /// Those of `fstat`.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Time of the last write, or what [`Spool::set_modified`] set since. It survives a kill of bosfs as the bytes do.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn modified(&self) -> io::Result<Timestamp> {
        Ok(self.file.metadata()?.modified()?.into())
    }

    /// Sets that time, as far as the file system of the state directory knows such times.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn set_modified(&self, at: Timestamp) -> io::Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: at.sec, tv_nsec: i64::from(at.nsec) },
        };
        Ok(futimens(&*self.file, &times)?)
    }

    /// A second descriptor of the file, to be synced without holding anything.
    ///
    /// # Errors
    /// Those of `dup`.
    pub fn sync_handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The bytes of `range` as the body of a request. They are read when the body is sent, not now: the caller sees to it
    /// that they do not change meanwhile.
    pub fn body(&self, range: ByteRange) -> SpoolBody {
        SpoolBody { file: Arc::clone(&self.file), range }
    }
}

fn too_far() -> io::Error {
    io::Error::from_raw_os_error(libc::EFBIG)
}

/// A range of a spool as the body of a PutObject or UploadPart.
#[derive(Clone, Debug)]
pub struct SpoolBody {
    file: Arc<File>,
    range: ByteRange,
}

impl BodySource for SpoolBody {
    fn len(&self) -> u64 {
        self.range.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let asked = ByteRange::at(self.range.start.saturating_add(offset), buf.len() as u64);
        if asked.end > self.range.end {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read beyond the end of the body"));
        }
        self.file.read_exact_at(buf, asked.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_length_is_the_size_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(dir.path(), 10).unwrap();
        assert!(Spool::create(dir.path(), 10).is_err());
        let mode = std::fs::metadata(dir.path().join(SPOOL_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        spool.write_at(8, b"abcd").unwrap();
        assert_eq!((spool.len(), spool.is_empty()), (12, false));
        let mut bytes = [1; 12];
        spool.read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0\0\0\0\0\0\0abcd");
        assert_eq!(spool.read_at(1, &mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        // What is cut does not come back.
        spool.set_len(9).unwrap();
        spool.set_len(12).unwrap();
        spool.read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes[8..], b"a\0\0\0");
        assert_eq!(Spool::open(dir.path()).unwrap().len(), 12);
        assert!(spool.write_at(u64::MAX, b"ab").is_err());
        assert!(spool.write_at(i64::MAX as u64, b"ab").is_err());
        assert_eq!(spool.len(), 12);
    }

    #[test]
    fn a_punch_frees_whole_blocks_only() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(dir.path(), 0).unwrap();
        spool.write_at(0, &[7; 5 * BLOCK_BYTES as usize]).unwrap();
        spool.sync_handle().unwrap().sync_data().unwrap();
        let before = spool.allocated_bytes().unwrap();
        spool.punch(ByteRange::new(1, 4 * BLOCK_BYTES - 1)).unwrap();
        spool.punch(ByteRange::new(BLOCK_BYTES - 1, BLOCK_BYTES + 1)).unwrap();
        spool.punch(ByteRange::new(4 * BLOCK_BYTES, 4 * BLOCK_BYTES)).unwrap();
        assert_eq!(spool.len(), 5 * BLOCK_BYTES);
        assert_eq!(before - spool.allocated_bytes().unwrap(), 2 * BLOCK_BYTES);
        let mut bytes = vec![0; 5 * BLOCK_BYTES as usize];
        spool.read_at(0, &mut bytes).unwrap();
        for (i, &byte) in bytes.iter().enumerate() {
            assert_eq!(byte, if (1..3).contains(&(i as u64 / BLOCK_BYTES)) { 0 } else { 7 }, "byte {i}");
        }
    }

    #[test]
    fn zeros_of_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(dir.path(), 0).unwrap();
        spool.write_at(0, &[7; 200_000]).unwrap();
        spool.zero(ByteRange::new(1, 199_999)).unwrap();
        spool.zero(ByteRange::new(5, 5)).unwrap();
        let mut bytes = vec![1; 200_000];
        spool.read_at(0, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[199_999], bytes.iter().filter(|&&b| b == 0).count()), (7, 7, 199_998));
    }

    #[test]
    fn a_body_is_its_range_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(dir.path(), 0).unwrap();
        spool.write_at(0, b"0123456789").unwrap();
        let body = spool.body(ByteRange::new(2, 7));
        assert_eq!(body.len(), 5);
        let mut bytes = [0; 3];
        body.read_at(2, &mut bytes).unwrap();
        assert_eq!(&bytes, b"456");
        assert!(body.read_at(3, &mut bytes).is_err());
        assert!(body.read_at(u64::MAX, &mut bytes).is_err());
        body.read_at(5, &mut []).unwrap();
        // A spool that was cut under a body is an error, not a short body.
        spool.set_len(6).unwrap();
        assert!(body.read_at(2, &mut bytes).is_err());
    }
}
