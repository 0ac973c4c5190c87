//! The objects, parts and buckets of the embedded server, in one folder.
//!
//! ```text
//! DIR/lock            held (flock) while a server runs; names its process
//! DIR/credentials     the access key that clients need, see `credentials.rs`
//! DIR/index.redb      the index, tables below
//! DIR/data/xx/N       data files: N is a number in 16 hex digits, xx its last two
//! ```
//!
//! | table | key | value |
//! |---|---|---|
//! | `buckets` | bucket | JSON `BucketRecord` |
//! | `objects` | (bucket, key) | JSON `ObjectRecord` |
//! | `uploads` | (bucket, key, upload ID) | JSON `UploadRecord` |
//! | `parts` | (upload ID, part number) | JSON `PartRecord` |
//! | `extents` | number | extents of a content that has more than a few: 32 bytes each, see `encode_extents` |
//! | `small` | number with bit 63 | the bytes of a content of at most [`SMALL_BYTES_MAX`] |
//! | `refs` | number of a data file, `extents` or `small` row | how many records (or `extents` entries) name it |
//! | `meta` | `generation` | number of starts so far |
//!
//! Invariants: a number is never used twice; whatever a record names has a row in `refs`; a data file is complete
//! before a record names it and is removed only after the transaction that took its last reference; so a kill at any
//! moment leaves at worst files that nothing names, and the next start removes those. Objects share data files by
//! reference: neither Complete nor a copy moves a byte.
//!
//! One thread writes the index and answers many requests with one transaction. A transaction is written to the file
//! before its requests are answered: `kill -9` loses nothing that was acknowledged. It and the data files wait for the
//! medium only with `sync`: without, a power failure may cost the folder its last half minute or its index.

mod append;
mod files;
mod listing;
mod objects;
mod records;
mod tables;
#[cfg(test)]
mod tests;
mod uploads;
mod writer;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase as _};

pub use append::Append;
pub use files::{DataFiles, NewFile, ReadPin};
pub use listing::{ListQuery, Listed, Listing, UploadListing};
pub use objects::{CopyWishes, Deleted, NewObject, SIMPLE_BYTES_MAX};
pub use records::{BucketRecord, Extent, ObjectRecord, PartRecord, Place, SMALL_BIT, UploadRecord, ZEROS};
pub use tables::{Snapshot, Tx};
pub use uploads::{CompleteRequest, NewPart, PartsPage};

use super::error::ApiError;
use writer::Writer;

/// Contents up to this many bytes are rows of the index instead of files.
pub const SMALL_BYTES_MAX: u64 = 4096;

const INDEX_CACHE_BYTES: usize = 64 << 20;

/// Result of what a request asks of the store.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// The bytes of a received body.
pub enum Stored {
    /// None at all.
    Nothing,
    /// At most [`SMALL_BYTES_MAX`].
    Small(Vec<u8>),
    /// In a file of `1` bytes.
    File(NewFile, u64),
    /// This many zeros, stored nowhere.
    Zeros(u64),
}

/// An open folder.
pub struct Store {
    database: Arc<Database>,
    files: Arc<DataFiles>,
    writer: Writer,
    sync: bool,
    // Released last: fields are dropped in this order.
    _lock: File,
}

impl Store {
    /// Opens `dir`, making it if needed (0700). `sync`: every transaction reaches the medium before it is answered.
    ///
    /// # Errors
    /// `AddrInUse`-like errors with a sentence when another server has the folder; otherwise what the disk said.
    pub fn open(dir: &Path, sync: bool) -> io::Result<Arc<Self>> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let lock = lock_folder(dir)?;
        let file = private_file(&dir.join("index.redb"))?;
        let database = Database::builder()
            .set_cache_size(INDEX_CACHE_BYTES)
            .create_with_backend(writer::Backend::new(file, sync))
            .map_err(|error| io::Error::other(format!("cannot open {}: {error}", dir.join("index.redb").display())))?;
        let database = Arc::new(database);
        let generation = tables::begin_generation(&database).map_err(io::Error::other)?;
        let files = DataFiles::open(&dir.join("data"), generation)?;
        sweep(&database, &files, generation)?;
        let writer = Writer::start(database.clone(), files.clone())?;
        Ok(Arc::new(Self { database, files, writer, sync, _lock: lock }))
    }

    /// Whether data files must be synced before the index names them.
    pub fn syncs(&self) -> bool {
        self.sync
    }

    /// The data files.
    pub fn files(&self) -> &Arc<DataFiles> {
        &self.files
    }

    /// What the index says now, unmoved by later writes.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::new(self.database.begin_read().map_err(ApiError::internal)?)
    }

    /// Runs `act` on the index, alone, and returns once its changes are written. When `act` refuses, it must not have
    /// changed anything yet.
    pub async fn write<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.writer.submit(act).await.unwrap_or_else(|_| Err(stopped()))
    }

    /// As [`write`](Self::write), for callers that wait as a thread, within a runtime or not.
    pub fn write_blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let result = self.writer.submit(act);
        // A thread of its own: waiting like this is refused on the threads of a runtime.
        let waited = std::thread::scope(|scope| scope.spawn(|| result.blocking_recv()).join());
        waited.ok().and_then(std::result::Result::ok).unwrap_or_else(|| Err(stopped()))
    }
}

fn stopped() -> ApiError {
    ApiError::new(http::StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "The server is stopping.")
}

/// Opens a file, made if needed (0600): a folder that was there before may be open to others.
fn private_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Takes the folder for this process.
fn lock_folder(dir: &Path) -> io::Result<File> {
    let path = dir.join("lock");
    let mut lock = private_file(&path)?;
    if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        let _ = lock.read_to_string(&mut holder);
        let holder = holder.trim();
        let holder = if holder.is_empty() { "another process" } else { holder };
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!(
                "the folder {} is already served by {holder}; stop that server or use another folder",
                dir.display()
            ),
        ));
    }
    lock.set_len(0)?;
    write!(lock, "process {}", std::process::id())?;
    Ok(lock)
}

/// Removes data files that a killed server left unnamed.
fn sweep(database: &Database, files: &DataFiles, generation: u64) -> io::Result<()> {
    let transaction = database.begin_read().map_err(io::Error::other)?;
    let refs = transaction.open_table(tables::REFS).map_err(io::Error::other)?;
    let mut failure = None;
    let swept = files.sweep(generation, |number| match refs.get(number) {
        Ok(row) => row.is_some(),
        Err(error) => {
            failure = Some(error);
            true
        }
    })?;
    if let Some(error) = failure {
        return Err(io::Error::other(error));
    }
    if swept > 0 {
        log::info!("removed {swept} data files that a killed server had left unnamed");
    }
    Ok(())
}
