//! Reading, writing, flush and fsync of open files.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::attr::{Content, published_object};
use super::error::{FsError, FsResult};
use super::handles::{OpenFile, PinnedReader, Writer};
use super::open::{cut_waiting, drop_privileges};
use super::process;
use super::verdict::{FlushDuty, Flusher};
use super::{Caller, Fs};
use crate::bos::error::{BosError, BosErrorKind};
use crate::fail_point::fail_point;
use crate::namespace::inode::Kind;
use crate::object::{BaseObject, ETag, ObjectKey};
use crate::read::reader::ObjectReader;
use crate::upload::{DirtyFile, WriteError};

/// How often a read begins anew because this mount itself replaced the object underneath.
const READ_TRIES: u32 = 4;

/// Bytes that one `copy_file_range` takes over at most; its answer has 32 bits.
const COPY_CALL_MAX: u64 = 1 << 31;

/// What a write without waiting came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// All bytes are in the spool.
    All,
    /// Not now: call [`Fs::write_waiting`] with a copy of the bytes.
    MustWait,
}

enum Source {
    Dirty(Arc<DirtyFile>),
    Object {
        key: ObjectKey,
        etag: ETag,
        size: u64,
    },
    /// The version that was open before somebody else replaced it.
    Pinned,
}

enum ReadFailure {
    Bos(ObjectKey, BosError),
    Local(FsError),
}

impl ReadFailure {
    /// Whether the version that was asked for is no longer there.
    fn is_replaced(&self) -> bool {
        match self {
            ReadFailure::Bos(_, error) => {
                matches!(error.kind, BosErrorKind::PreconditionFailed | BosErrorKind::NoSuchKey)
            }
            ReadFailure::Local(_) => false,
        }
    }
}

impl From<ReadFailure> for FsError {
    fn from(failure: ReadFailure) -> Self {
        match failure {
            ReadFailure::Bos(key, error) => FsError::from_read(key.as_str(), &error),
            ReadFailure::Local(error) => error,
        }
    }
}

impl Fs {
    pub(super) fn file(&self, fh: u64) -> FsResult<Arc<OpenFile>> {
        self.files.get(fh).ok_or(FsError::BAD_HANDLE)
    }

    fn writer(open: &OpenFile) -> FsResult<&Writer> {
        open.writer.as_ref().ok_or(FsError::BAD_HANDLE)
    }

    /// `read`: the bytes from `offset` on; fewer than `size` only at the end of the file.
    ///
    /// # Errors
    /// `ESTALE` when somebody else replaced the object since the file was opened; `EIO` and others.
    pub async fn read(&self, fh: u64, offset: u64, size: u32) -> FsResult<Bytes> {
        let open = self.file(fh)?;
        if let Some(snapshot) = &open.snapshot {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(snapshot.len());
            let end = start.saturating_add(size as usize).min(snapshot.len());
            return Ok(snapshot.slice(start..end));
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let result = match self.source(&open)? {
                Source::Dirty(file) => self.read_dirty(&open, &file, offset, size).await,
                Source::Object { key, etag, size: whole } => {
                    let reader = self.reader(&open, &key, &etag, whole);
                    read_object(&key, &reader, whole, offset, size).await
                }
                Source::Pinned => {
                    let pinned = open.reader.lock().as_ref().map(|p| (p.key.clone(), p.size, p.reader.clone()));
                    let Some((key, whole, reader)) = pinned else { return Err(FsError::STALE) };
                    return Ok(read_object(&key, &reader, whole, offset, size).await?);
                }
            };
            match result {
                Ok(bytes) => return Ok(bytes),
                // A publication, a rename or a copy of ours may have replaced what was just looked up.
                Err(failure) if failure.is_replaced() && tries < READ_TRIES => {}
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    fn source(&self, open: &OpenFile) -> FsResult<Source> {
        let mut state = open.node.body.state.lock();
        state.settle(true);
        match &state.content {
            Content::Dirty(file) => Ok(Source::Dirty(file.clone())),
            Content::Object(_) if open.epoch != state.epoch => Ok(Source::Pinned),
            Content::Object(object) => {
                let (etag, size) = (object.etag.clone(), object.size);
                drop(state);
                Ok(Source::Object { key: self.key_of(&open.node)?, etag, size })
            }
            Content::Dir(_) | Content::Virtual(_) => Err(FsError::BAD_HANDLE),
        }
    }

    /// The handle's reader of this version; made when it has none.
    fn reader(&self, open: &OpenFile, key: &ObjectKey, etag: &ETag, size: u64) -> Arc<ObjectReader> {
        let mut slot = open.reader.lock();
        if let Some(pinned) = &*slot
            && pinned.key == *key
            && pinned.etag == *etag
        {
            return pinned.reader.clone();
        }
        let reader = Arc::new(self.pool.reader(key.clone(), etag.clone(), size));
        *slot = Some(PinnedReader { key: key.clone(), etag: etag.clone(), size, reader: reader.clone() });
        reader
    }

    async fn read_dirty(
        &self,
        open: &OpenFile,
        file: &Arc<DirtyFile>,
        offset: u64,
        size: u32,
    ) -> Result<Bytes, ReadFailure> {
        let read = file.read(offset, size as usize).map_err(|error| ReadFailure::Local(error.into()))?;
        if read.gaps.is_empty() {
            return Ok(read.bytes.into());
        }
        let key = file.key();
        let Some(base) = read.base else { return Ok(read.bytes.into()) };
        let key = base.key.unwrap_or(key);
        let reader = self.reader(open, &key, &base.etag, base.size);
        let mut bytes = read.bytes;
        for gap in read.gaps {
            let piece = reader.read_gap(gap).await.map_err(|error| ReadFailure::Bos(key.clone(), error))?;
            let start = (gap.start - offset) as usize;
            let target = &mut bytes[start..];
            let len = piece.len().min(target.len());
            target[..len].copy_from_slice(&piece[..len]);
        }
        Ok(bytes.into())
    }

    /// `write`, as far as it goes without waiting. `kill_privileges`: the kernel asks to take set-user-ID away.
    ///
    /// # Errors
    /// `ENOSPC`, `EFBIG`, `EIO` of the state directory: nothing of `bytes` was accepted.
    pub fn try_write(&self, fh: u64, offset: u64, bytes: &[u8], kill_privileges: bool) -> FsResult<Written> {
        let open = self.file(fh)?;
        let writer = Self::writer(&open)?;
        writer.tell_failure()?;
        match writer.file.write(offset, bytes) {
            Ok(()) => {}
            Err(WriteError::MustWait) => return Ok(Written::MustWait),
            Err(error) => return Err(error.into()),
        }
        open.wrote();
        if kill_privileges {
            drop_privileges(&writer.file)?;
        }
        Ok(Written::All)
    }

    /// `write` that waits for room or for a frozen part.
    ///
    /// # Errors
    /// As [`Fs::try_write`], and `EIO` after `--timeout`.
    pub async fn write_waiting(&self, fh: u64, offset: u64, bytes: Bytes, kill_privileges: bool) -> FsResult<()> {
        let open = self.file(fh)?;
        let writer = Self::writer(&open)?;
        loop {
            if self.try_write(fh, offset, &bytes, kill_privileges)? == Written::All {
                return Ok(());
            }
            writer.told_by_wait(writer.file.wait_writable(bytes.len() as u64).await)?;
        }
    }

    /// `flush`: one close of one duplicate. Publishes and waits, or has nothing to do, by the rule of
    /// [`super::verdict::WriterVerdict`].
    ///
    /// # Errors
    /// What kept the file from being published; it is the result of close(2). The bytes stay in the journal.
    pub async fn flush(&self, fh: u64, caller: Caller) -> FsResult<()> {
        let open = self.file(fh)?;
        fail_point!("fs.flush");
        let Some(writer) = &open.writer else { return Ok(()) };
        let state = process::process_state(caller.tid);
        let killed = state.and_then(|state| state.killed_by.map(|signal| (state.name, signal)));
        let writes = open.node.body.state.lock().endings.writes();
        let duty = {
            let mut verdict = writer.verdict.lock();
            // A process that cannot be read any more but is the very thread that opened the file is the opener.
            let same_thread = caller.tid != 0 && caller.tid == writer.opener_tid;
            let process =
                process::thread_group(caller.tid).or_else(|| if same_thread { verdict.opener() } else { None });
            verdict.on_flush(&Flusher { process, killed }, writes)
        };
        if duty == FlushDuty::JournalOnly || !open.node.is_linked() {
            return Ok(());
        }
        writer.told_by_close(writer.file.publish().await)
    }

    /// `fsync` and `fdatasync`, through whatever handle: what was accepted of the file, from whomever, is on stable storage.
    ///
    /// # Errors
    /// When the local disk, or with `--fsync bos` BOS, does not take the bytes.
    pub async fn fsync(&self, fh: u64) -> FsResult<()> {
        let open = self.file(fh)?;
        if !open.node.is_linked() {
            // Nobody finds it again.
            return Ok(());
        }
        if let Some(writer) = &open.writer {
            return writer.told_by_wait(writer.file.fsync().await);
        }
        let dirty = match &open.node.body.state.lock().content {
            Content::Dirty(file) => Some(file.clone()),
            _ => None,
        };
        // What failed before is told to writers: whoever reads is not troubled by it.
        match dirty {
            Some(file) => Ok(file.fsync_by_reader().await?),
            None => Ok(()),
        }
    }

    /// The rest of a write that is to be durable when it returns (`O_SYNC`, `O_DSYNC`, `RWF_DSYNC`): its bytes are accepted.
    ///
    /// # Errors
    /// When the local disk fails; the bytes stay accepted.
    pub async fn sync_written(&self, fh: u64) -> FsResult<()> {
        let open = self.file(fh)?;
        // Nobody finds again what has no name.
        if open.node.is_linked() { Ok(Self::writer(&open)?.file.make_durable().await?) } else { Ok(()) }
    }

    /// `fallocate`: mode 0 extends the file, `FALLOC_FL_KEEP_SIZE` alone is nothing to do, `FALLOC_FL_PUNCH_HOLE` and
    /// `FALLOC_FL_ZERO_RANGE` make zeros that take no room.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for every other mode; as [`Fs::try_write`].
    pub async fn fallocate(&self, fh: u64, offset: u64, length: u64, mode: i32) -> FsResult<()> {
        let open = self.file(fh)?;
        let writer = Self::writer(&open)?;
        let end = offset.checked_add(length).ok_or(FsError::plain(libc::EFBIG))?;
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let what = mode & !libc::FALLOC_FL_KEEP_SIZE;
        match what {
            0 => {}
            libc::FALLOC_FL_PUNCH_HOLE if !keep_size => return Err(FsError::plain(libc::EOPNOTSUPP)),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {
                loop {
                    match writer.file.zero(offset, length) {
                        Ok(()) => break,
                        Err(WriteError::MustWait) => writer.file.wait_writable(length).await?,
                        Err(error) => return Err(error.into()),
                    }
                }
                open.wrote();
                drop_privileges(&writer.file)?;
            }
            _ => return Err(FsError::plain(libc::EOPNOTSUPP)),
        }
        if !keep_size && end > writer.file.size() {
            cut_waiting(&writer.file, end).await?;
            open.wrote();
        }
        writer.make_durable_if_asked().await
    }

    /// `lseek` with `SEEK_DATA` or `SEEK_HOLE`: all of an object is data, with a hole at its end; a file that is being
    /// written has the holes that were left or punched.
    ///
    /// # Errors
    /// `ENXIO` at or past the end, and where no data follows.
    pub fn lseek(&self, fh: u64, offset: i64, whence: i32) -> FsResult<i64> {
        let open = self.file(fh)?;
        let dirty = match &open.node.body.state.lock().content {
            Content::Dirty(file) => Some(file.clone()),
            _ => None,
        };
        let Some(file) = dirty else { return seek(self.attr_of(&open.node).size, offset, whence) };
        let at = u64::try_from(offset).map_err(|_| FsError::plain(libc::ENXIO))?;
        let found = match whence {
            libc::SEEK_DATA => file.seek(at, false),
            libc::SEEK_HOLE => file.seek(at, true),
            _ => return Err(FsError::plain(libc::EINVAL)),
        };
        let found = found.ok_or(FsError::plain(libc::ENXIO))?;
        i64::try_from(found).map_err(|_| FsError::plain(libc::EOVERFLOW))
    }

    /// `copy_file_range` from an object to the end of a file that has nothing else: BOS copies the bytes itself when the
    /// file is closed. Returns how many were taken over.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for any other copy: the kernel then reads and writes.
    pub async fn copy_file_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> FsResult<u32> {
        let (source, target) = (self.file(from.0)?, self.file(to.0)?);
        let writer = Self::writer(&target)?;
        let unfit = FsError::plain(libc::EOPNOTSUPP);
        if from.1 != to.1 || source.snapshot.is_some() || !source.node.is_linked() {
            return Err(unfit);
        }
        let object = {
            let mut state = source.node.body.state.lock();
            state.settle(true);
            match &state.content {
                Content::Object(object) if source.epoch == state.epoch => object.clone(),
                _ => return Err(unfit),
            }
        };
        let key = self.key_of(&source.node)?;
        let len = len.min(object.size.saturating_sub(from.1)).min(COPY_CALL_MAX);
        if len == 0 {
            return Ok(0);
        }
        let base = BaseObject { etag: object.etag, size: object.size, key: Some(key), stored: None };
        if !writer.file.clone_from_object(&base, from.1, len)? {
            return Err(unfit);
        }
        target.wrote();
        drop_privileges(&writer.file)?;
        writer.make_durable_if_asked().await?;
        Ok(len as u32)
    }

    /// `readlink`.
    ///
    /// # Errors
    /// `EINVAL` for anything but a symbolic link; what BOS says.
    pub async fn readlink(&self, ino: u64) -> FsResult<Bytes> {
        let node = self.node(ino)?;
        let object = match node.body.state.lock().content.clone() {
            Content::Object(object) => object,
            // Its attributes are on their way.
            Content::Dirty(file) => file.object().map(published_object).ok_or(FsError::STALE)?,
            Content::Dir(_) | Content::Virtual(_) => return Err(FsError::plain(libc::EINVAL)),
        };
        if node.kind != Kind::Symlink {
            return Err(FsError::plain(libc::EINVAL));
        }
        let key = self.key_of(&node)?;
        if let Some(target) = self.namespace.link_target(&key, &object.etag) {
            return Ok(target.into());
        }
        let impossible = || {
            let message = format!(
                "the target of the link {key} is none that a link can have ({} bytes); nothing was changed",
                object.size
            );
            FsError::told(libc::EIO, message)
        };
        let size = u32::try_from(object.size).ok().filter(|size| (1..libc::PATH_MAX as u32).contains(size));
        let size = size.ok_or_else(impossible)?;
        let reader = self.pool.reader(key.clone(), object.etag.clone(), object.size);
        let target = read_object(&key, &reader, object.size, 0, size).await?;
        // A program would see the part before it, which leads elsewhere.
        if target.contains(&0) {
            return Err(impossible());
        }
        self.namespace.learn_link(&key, &object.etag, &target);
        Ok(target)
    }
}

fn seek(size: u64, offset: i64, whence: i32) -> FsResult<i64> {
    let at = u64::try_from(offset).map_err(|_| FsError::plain(libc::ENXIO))?;
    if at >= size {
        return Err(FsError::plain(libc::ENXIO));
    }
    match whence {
        libc::SEEK_DATA => Ok(offset),
        libc::SEEK_HOLE => i64::try_from(size).map_err(|_| FsError::plain(libc::EOVERFLOW)),
        _ => Err(FsError::plain(libc::EINVAL)),
    }
}

/// Exactly the bytes that the object has in the range asked for.
async fn read_object(
    key: &ObjectKey,
    reader: &ObjectReader,
    whole: u64,
    offset: u64,
    size: u32,
) -> Result<Bytes, ReadFailure> {
    let fetch = async |at, len| reader.read(at, len).await.map_err(|error| ReadFailure::Bos(key.clone(), error));
    let len = u64::from(size).min(whole.saturating_sub(offset)) as usize;
    if len == 0 {
        return Ok(Bytes::new());
    }
    let first = fetch(offset, len).await?;
    if first.len() >= len {
        return Ok(first.slice(..len));
    }
    // A reader may stop at the border of its blocks; a short answer would mean the end of the file to the kernel.
    let mut bytes = BytesMut::with_capacity(len);
    bytes.extend_from_slice(&first);
    while bytes.len() < len {
        let piece = fetch(offset + bytes.len() as u64, len - bytes.len()).await?;
        if piece.is_empty() {
            let message = format!("reading {key:?}: BOS gave fewer than its {whole} bytes; try again");
            return Err(ReadFailure::Local(FsError::told(libc::EIO, message)));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_file_is_data() {
        assert_eq!(seek(10, 0, libc::SEEK_DATA).unwrap(), 0);
        assert_eq!(seek(10, 9, libc::SEEK_HOLE).unwrap(), 10);
        for (size, offset) in [(10, 10), (0, 0), (10, -1)] {
            assert_eq!(seek(size, offset, libc::SEEK_DATA).unwrap_err().errno, libc::ENXIO);
        }
    }
}
