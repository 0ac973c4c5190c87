//! A local file that must not change while it is hashed and sent.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::bos::client::BodySource;
use crate::object::{ByteRange, Checksum, Hasher};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// Why a local file is of no use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LocalFileError {
    /// It cannot be opened or read.
    #[error("cannot read {path}: {message}", path = path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        message: String,
    },
    /// A directory, a device, a pipe.
    #[error("{} is no regular file", .0.display())]
    NotRegular(PathBuf),
    /// Size, modification time or identity differ from those at the beginning.
    #[error("{} changed while it was read; nothing was completed, run the command again", .0.display())]
    Changed(PathBuf),
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// An open regular file, as it was when it was opened.
#[derive(Debug)]
pub struct LocalFile {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

impl LocalFile {
    /// Opens `path`. Blocks.
    ///
    /// # Errors
    /// It cannot be opened, or is no regular file.
    pub fn open(path: &Path) -> Result<Arc<Self>, LocalFileError> {
        let unreadable =
            |error: io::Error| LocalFileError::Unreadable { path: path.to_owned(), message: error.to_string() };
        // Looked at before it is opened: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(LocalFileError::NotRegular(path.to_owned()));
        }
        let file = File::open(path).map_err(unreadable)?;
        let stamp = Stamp::of(&file.metadata().map_err(unreadable)?);
        Ok(Arc::new(Self { path: path.to_owned(), file, stamp }))
    }

    /// Its size when it was opened, bytes.
    pub fn size(&self) -> u64 {
        self.stamp.size
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails unless the file is still as it was opened, at the same path.
    ///
    /// # Errors
    /// [`LocalFileError::Changed`], also where it is gone.
    pub fn check_unchanged(&self) -> Result<(), LocalFileError> {
        let same = |metadata: io::Result<Metadata>| metadata.is_ok_and(|now| Stamp::of(&now) == self.stamp);
        if same(self.file.metadata()) && same(std::fs::metadata(&self.path)) {
            return Ok(());
        }
        Err(LocalFileError::Changed(self.path.clone()))
    }

    /// Hands the bytes of `range` to `take`, in order. Blocks.
    ///
    /// # Errors
    /// It cannot be read, or ends before the range does.
    pub fn read(&self, range: ByteRange, mut take: impl FnMut(&[u8])) -> Result<(), LocalFileError> {
        let mut buffer = vec![0; READ_BYTES.min(range.len() as usize)];
        let mut offset = range.start;
        while offset < range.end {
            let len = buffer.len().min((range.end - offset) as usize);
            self.read_exactly(offset, &mut buffer[..len])?;
            take(&buffer[..len]);
            offset += len as u64;
        }
        Ok(())
    }

    fn read_exactly(&self, offset: u64, buffer: &mut [u8]) -> Result<(), LocalFileError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => LocalFileError::Changed(self.path.clone()),
            _ => LocalFileError::Unreadable { path: self.path.clone(), message: error.to_string() },
        })
    }

    /// Length, MD5 and CRCs of `range`, computed on a blocking thread.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn checksum(self: &Arc<Self>, range: ByteRange) -> Result<Checksum, LocalFileError> {
        let file = self.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let mut hasher = Hasher::new();
            file.read(range, |bytes| hasher.update(bytes))?;
            Ok(hasher.finish())
        });
        hashed.await.unwrap_or_else(|error| {
            Err(LocalFileError::Unreadable { path: self.path.clone(), message: error.to_string() })
        })
    }

    /// The checksums of `ranges`, in their order, `at_once` at a time; `done` is told the length of each.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn checksums(
        self: &Arc<Self>,
        ranges: Vec<ByteRange>,
        at_once: usize,
        done: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Vec<Checksum>, LocalFileError> {
        stream::iter(ranges)
            .map(|range| async move {
                let sum = self.checksum(range).await;
                done(range.len());
                sum
            })
            .buffered(at_once.max(1))
            .try_collect()
            .await
    }
}

/// A range of a local file, as the body of a part.
pub struct FileRange {
    /// The file.
    pub file: Arc<LocalFile>,
    /// Which bytes.
    pub range: ByteRange,
}

impl BodySource for FileRange {
    fn len(&self) -> u64 {
        self.range.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exactly(self.range.start + offset, buf).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Crcs;

    #[tokio::test]
    async fn ranges_combine_to_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..3_000_001u32).map(|i| (i % 253) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = LocalFile::open(&path).unwrap();
        let ranges = [0..0, 0..1, 1..1_048_577, 1_048_577..3_000_001].map(|r| ByteRange::new(r.start, r.end));
        let sums = file.checksums(ranges.to_vec(), 2, &|_| {}).await.unwrap();
        let whole = sums.iter().fold(Crcs::default(), |crcs, sum| crcs.then(sum.crcs, sum.len));
        assert_eq!(whole, Checksum::of(&bytes).crcs);
        file.check_unchanged().unwrap();
        assert!(matches!(file.checksum(ByteRange::at(3_000_000, 2)).await, Err(LocalFileError::Changed(_))));
    }

    #[test]
    fn a_change_a_replacement_and_a_removal_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let fresh = || {
            std::fs::write(&path, b"abc").unwrap();
            LocalFile::open(&path).unwrap()
        };
        let file = fresh();
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut f| io::Write::write_all(&mut f, b"d"))
            .unwrap();
        assert!(file.check_unchanged().is_err());
        let file = fresh();
        std::fs::write(dir.path().join("g"), b"abc").unwrap();
        std::fs::rename(dir.path().join("g"), &path).unwrap();
        assert!(file.check_unchanged().is_err());
        let file = fresh();
        std::fs::remove_file(&path).unwrap();
        assert!(file.check_unchanged().is_err());
        assert!(matches!(LocalFile::open(dir.path()), Err(LocalFileError::NotRegular(_))));
        assert!(matches!(LocalFile::open(&path), Err(LocalFileError::Unreadable { .. })));
    }
}
