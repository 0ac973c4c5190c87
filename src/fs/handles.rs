//! Open files and directories.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::attr::Node;
use super::error::{FsError, FsResult};
use super::verdict::WriterVerdict;
use crate::namespace::SharedListing;
use crate::object::{ETag, ObjectKey};
use crate::read::reader::ObjectReader;
use crate::upload::{DirtyFile, WriteError};

/// The writing side of a handle.
pub struct Writer {
    /// What it writes to.
    pub file: Arc<DirtyFile>,
    /// How the writing ends.
    pub verdict: Mutex<WriterVerdict>,
    /// The kernel's thread number of the opener, for callers whose process cannot be read any more.
    pub opener_tid: u32,
    /// It was to make a new file (`O_EXCL`).
    pub exclusive: bool,
    /// Failures of the file that this handle was told of, or that were told to others before it was opened.
    pub failures_seen: AtomicU64,
    /// It changed the file.
    pub has_written: AtomicBool,
    /// What is done through it is durable when the call returns (`O_SYNC`, `O_DSYNC`).
    pub synchronous: bool,
}

impl Writer {
    /// A publication that failed while nobody waited is told once, to the next call that can tell it.
    ///
    /// # Errors
    /// That of the publication.
    pub fn tell_failure(&self) -> FsResult<()> {
        self.file.untold_failure(&self.failures_seen).map_err(|error| self.told(error))
    }

    /// What close is answered with when the publication that it waited for gave `result`. Who changed the file is told each
    /// time; who did not, only of what nobody was told yet.
    ///
    /// # Errors
    /// That of the publication.
    pub fn told_by_close(&self, result: Result<(), WriteError>) -> FsResult<()> {
        // Write-back waits for nothing; what failed earlier is told now.
        let Err(error) = result else { return self.tell_failure() };
        let is_news = self.file.untold_failure(&self.failures_seen).is_err();
        if is_news || self.has_written.load(Ordering::Relaxed) || !self.file.is_stuck() {
            return Err(self.told(error));
        }
        Ok(())
    }

    /// What fsync, and a write that had to wait, is answered with: its own trouble, else that of an earlier publication.
    ///
    /// # Errors
    /// Those.
    pub fn told_by_wait(&self, result: Result<(), WriteError>) -> FsResult<()> {
        let failure = self.tell_failure();
        result.map_err(|error| self.told(error))?;
        failure
    }

    /// The end of a call that changed the file otherwise than by a write.
    ///
    /// # Errors
    /// When the local disk fails.
    pub async fn make_durable_if_asked(&self) -> FsResult<()> {
        if self.synchronous { Ok(self.file.make_durable().await?) } else { Ok(()) }
    }

    fn told(&self, error: WriteError) -> FsError {
        let mut error = FsError::from(error);
        if error.errno == libc::ESTALE && self.exclusive && self.file.lost_a_new_name() {
            error.errno = libc::EEXIST;
        }
        error
    }
}

/// A reader that is kept for the next read.
pub struct PinnedReader {
    /// Key it reads.
    pub key: ObjectKey,
    /// Content it is pinned to.
    pub etag: ETag,
    /// Size of that content.
    pub size: u64,
    /// The reader.
    pub reader: Arc<ObjectReader>,
}

/// One open of a file.
pub struct OpenFile {
    /// What is open.
    pub node: Arc<Node>,
    /// Set for handles that write.
    pub writer: Option<Writer>,
    /// Content of a made-up file, as it was at open.
    pub snapshot: Option<Bytes>,
    /// Epoch of the inode at open.
    pub epoch: u64,
    /// It is open to be executed, which lasts as long as the program runs.
    pub executes: bool,
    /// The last reader used.
    pub reader: Mutex<Option<PinnedReader>>,
}

impl OpenFile {
    /// Bytes of the file were changed through this handle.
    pub fn wrote(&self) {
        if let Some(writer) = &self.writer {
            writer.has_written.store(true, Ordering::Relaxed);
            self.node.body.state.lock().endings.on_write();
            writer.verdict.lock().on_write();
        }
    }
}

/// One open of a directory.
pub struct OpenDir {
    /// What is open.
    pub node: Arc<Node>,
    /// Its entries as this handle sees them; replaced when the reader rewinds.
    pub listing: Mutex<DirSnapshot>,
}

/// The entries of a directory as one handle sees them.
pub struct DirSnapshot {
    /// Pages fetched so far, then local entries.
    pub listing: SharedListing,
    /// Whether local entries were merged (once all pages are there).
    pub merged: bool,
    /// Whether something was read from it.
    pub used: bool,
    /// Names that only this mount knew before the first page was asked for: whether it is a directory, and whether a page had
    /// it. One of the others may be in BOS by now.
    pub local: BTreeMap<String, (bool, bool)>,
    /// When `local` was so.
    pub local_at: Instant,
}

/// Handles by number. Numbers are never used twice.
pub struct HandleTable<T> {
    handles: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> HandleTable<T> {
    /// No handles.
    pub fn new() -> Self {
        Self { handles: RwLock::new(HashMap::new()), next: AtomicU64::new(1) }
    }

    /// Adds one; returns its number.
    pub fn insert(&self, handle: T) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.handles.write().insert(fh, Arc::new(handle));
        fh
    }

    /// The handle with this number.
    pub fn get(&self, fh: u64) -> Option<Arc<T>> {
        self.handles.read().get(&fh).cloned()
    }

    /// Takes it out.
    pub fn remove(&self, fh: u64) -> Option<Arc<T>> {
        self.handles.write().remove(&fh)
    }

    /// The numbers of those that are open.
    pub fn numbers(&self) -> Vec<u64> {
        self.handles.read().keys().copied().collect()
    }

    /// Number of open handles.
    pub fn len(&self) -> usize {
        self.handles.read().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Default for HandleTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_never_used_twice() {
        let table = HandleTable::new();
        let a = table.insert("a");
        assert_eq!(table.remove(a).as_deref(), Some(&"a"));
        let b = table.insert("b");
        assert_ne!(a, b);
        assert!(table.get(a).is_none() && table.remove(a).is_none());
        assert_eq!(table.len(), 1);
    }
}
