//! Drives each written file from its first byte in the spool to the proved object, also after a restart.

mod after_restart;
mod again;
mod change;
mod checkpoint;
mod complete;
mod dirty_file;
mod driver;
mod durable;
mod file_status;
mod inner;
mod limits;
mod merge;
pub mod meter;
mod part;
mod proof;
mod publish;
mod ranges;
mod rate_limit;
mod reconcile;
mod recover;
mod registry;
mod remove;
mod rename;
mod replay;
pub mod resume;
mod room;
mod shared;
mod spool_room;
pub mod state;
mod sync;
mod unlink;
mod unsynced;
pub mod verify;
mod writers;

pub use dirty_file::DirtyFile;
pub use inner::COPY_BYTES_MAX;
pub use registry::Uploads;
pub use rename::{Displaced, OnTheWay, RenameWay};
pub use spool_room::AbortRules;

use std::io;
use std::time::Duration;

use crate::bos::client::ObjectHeaders;
use crate::object::{BaseObject, ByteRange, Condition, ETag, FileAttrs, ObjectKey, UploadId};

/// Settings of all uploads of one mount.
#[derive(Clone, Debug)]
pub struct UploadOptions {
    /// Size of the first parts, bytes.
    pub part_bytes: u64,
    /// Parts in flight at once, over all files.
    pub uploads_max: usize,
    /// Answer `close` before the object is complete.
    pub write_back: bool,
    /// `fsync` also waits until every byte is in BOS as a part.
    pub fsync_bos: bool,
    /// What becomes of a file whose writer was killed.
    pub interrupted: InterruptedPolicy,
    /// Longest wait of one data call; `None`: no limit.
    pub timeout: Option<Duration>,
    /// Overwrite what another writer put there meanwhile.
    pub overwrite_on_conflict: bool,
    /// Adopt the parts of uploads that no journal knows.
    pub adopt: bool,
    /// Punch uploaded parts out of the spool when room runs out.
    pub punch: bool,
    /// Spool bytes at most; `None`: free space less a reserve.
    pub spool_limit_bytes: Option<u64>,
    /// Upload rate, bytes per second; `None`: no limit.
    pub rate_bytes_per_s: Option<u64>,
    /// `x-bce-storage-class` of new objects.
    pub storage_class: Option<String>,
}

/// `--interrupted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptedPolicy {
    /// Keep it, unpublished.
    Keep,
    /// Publish what is there.
    Complete,
    /// Throw it away.
    Discard,
}

/// Why a write, truncate, fsync or publication failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// Not now: await [`DirtyFile::wait_writable`] and try again (spool full, or the part is frozen and not yet sent).
    #[error("must wait")]
    MustWait,
    /// Final for this call. The message says what happened to which key, what became of the bytes and what to do.
    #[error("{message}")]
    Failed {
        /// errno for the program.
        errno: i32,
        /// For people.
        message: String,
    },
}

/// How a dirty file begins.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Key of the object.
    pub key: ObjectKey,
    /// The object whose bytes stay unless overwritten; `None` for a new file.
    pub base: Option<BaseObject>,
    /// What a publication demands of the key (`Absent` for a name seen as absent, `Matches` for a base).
    pub condition: Condition,
    /// Headers carried over from the base (foreign metadata included), or made for a new file.
    pub headers: ObjectHeaders,
    /// Mode, owner, time.
    pub attrs: FileAttrs,
    /// A new file: publish it even if nothing is ever written.
    pub created: bool,
    /// It is expected to be renamed soon after it is closed.
    pub temporary: Option<Temporary>,
}

/// What is expected of a new file by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Temporary {
    /// It is written to become this key: its parts go there from the start, and the rename completes them.
    Of(ObjectKey),
    /// It gets another name, not known yet. Worth waiting for while it fits into one part.
    Small,
}

/// What a publication left in BOS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// ETag of the object.
    pub etag: ETag,
    /// Its size.
    pub size: u64,
    /// Attributes it carries.
    pub attrs: FileAttrs,
    /// All headers it carries.
    pub headers: ObjectHeaders,
    /// BOS stored it between these times of its own clock (seconds since 1970), where it said so.
    pub stored_between: Option<(i64, i64)>,
}

/// What a read of a dirty file gave.
#[derive(Debug, Default)]
pub struct DirtyRead {
    /// The bytes, gaps filled with zeros; shorter than asked only at the end of the file.
    pub bytes: Vec<u8>,
    /// Ranges of the file (within `bytes`) that must be fetched from the base object at the same offsets.
    pub gaps: Vec<ByteRange>,
    /// The base that `gaps` refer to.
    pub base: Option<BaseObject>,
}

/// How the last writer of a file ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriterEnd {
    /// Closed it, or ended properly: publish in the background what is new.
    Closed,
    /// Was killed before it closed the file.
    Killed {
        /// Command name.
        process: String,
        /// Process ID.
        pid: u32,
        /// Signal.
        signal: i32,
    },
}

/// An unfinished upload that a journal of ours opened, or may have opened.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OwnUpload {
    /// Key that its object would have; not always that of the file (a temporary's parts go to the name that it will get).
    pub key: String,
    /// BOS's ID; `None`: Initiate was sent and not answered.
    pub upload_id: Option<String>,
}

impl OwnUpload {
    /// One that BOS told of.
    pub fn known(key: &ObjectKey, id: &UploadId) -> Self {
        Self { key: key.to_string(), upload_id: Some(id.to_string()) }
    }

    /// One that may exist.
    pub fn possible(key: &ObjectKey) -> Self {
        Self { key: key.to_string(), upload_id: None }
    }
}

/// State of one journaled file, for `status`.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct FileStatus {
    /// Key of the object.
    pub key: String,
    /// Name of the journal.
    pub journal_id: String,
    /// `writing`, `parked` (closed, its rename is waited for), `uploading`, `completing`, `proving`, `interrupted`, `failed`, `conflict`, `removing`,
    /// `renaming`, `idle`, `done`.
    pub state: String,
    /// Upload ID, once there is one.
    pub upload_id: Option<String>,
    /// The uploads that its journal opened: that of the file, or those of the copies that a rename makes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uploads: Vec<OwnUpload>,
    /// It is no file but a rename or a removal, which goes on by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_move: bool,
    /// Size in bytes.
    pub size: u64,
    /// Bytes that BOS holds as parts.
    pub bytes_in_bos: u64,
    /// Bytes only in the spool.
    pub bytes_spooled: u64,
    /// Parts of the present size.
    pub parts_total: u32,
    /// Parts that BOS holds.
    pub parts_in_bos: u32,
    /// Parts that this process did not have to send, because BOS held them from an earlier process or writer.
    pub parts_kept: u64,
    /// Parts sent by this process, repeats included; without a process, by all that worked on the file.
    pub parts_sent: u64,
    /// Bytes sent by this process, by speed of the last seconds, bytes per second.
    pub bytes_per_s: u64,
    /// Tries of the request that fails at present.
    pub tries: u32,
    /// Seconds until a failed file is tried again by itself; `None`: it is not, or it is being tried now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_s: Option<u64>,
    /// Last error, with what to do.
    pub last_error: Option<String>,
    /// How the last publication was proved.
    pub proof: Option<crate::journal::record::Proof>,
    /// When this was so, seconds since 1970.
    pub updated_at: i64,
    /// Parts, by number: `sent`, `copied`, `sending`, `dirty`, `base`; only in `.bosfs/uploads/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<(u32, String)>>,
}

impl WriteError {
    /// A failure that is final for this call.
    pub fn failed(errno: i32, message: impl Into<String>) -> Self {
        WriteError::Failed { errno, message: message.into() }
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        WriteError::Failed { errno: crate::journal::log::errno_of(&error), message: error.to_string() }
    }
}
