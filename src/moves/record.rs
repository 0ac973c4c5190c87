//! What one line of a move's journal says.
//!
//! The first line tells which move it is; the order of lines is the order of events. A line is *written* (survives a kill
//! of bosfs) when it is appended and *synced* (survives power loss) where the driver says so.

use serde::{Deserialize, Serialize};

use crate::bos::client::ObjectHeaders;
use crate::journal::Line;
use crate::object::{BaseObject, Condition, ETag, ObjectKey, PartNumber, UploadId};

/// Version of the format that this bosfs writes, and the highest it reads.
pub const FORMAT: u32 = 1;

/// An object below a directory that is moved, as a listing showed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Key behind the directory's prefix; empty for the directory's marker.
    pub rest: String,
    /// Which content.
    pub etag: ETag,
    /// Size in bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub last_modified: i64,
}

/// How the bytes of a copy get into the parts of its upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartsBy {
    /// Preferred bytes of a part.
    pub part_bytes: u64,
    /// They are read and sent again, as BOS does not copy them.
    pub sent: bool,
}

/// One line of a move's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum MoveRecord {
    /// First line: one object gets another key.
    Object {
        /// Version of this format.
        format: u32,
        /// Present key.
        from: ObjectKey,
        /// What is there.
        source: BaseObject,
        /// New key.
        to: ObjectKey,
        /// What must be at the new key before the copy.
        condition: Condition,
        /// Headers of the copy; `None`: those of the source.
        replace: Option<ObjectHeaders>,
        /// Seconds since 1970.
        at: i64,
    },
    /// First line: all objects below a prefix get another one.
    Directory {
        /// Version of this format.
        format: u32,
        /// Present prefix, ending in `/`.
        from: String,
        /// New prefix, ending in `/`.
        to: String,
        /// Keys that stay out of it: files that are only on this machine.
        leave_out: Vec<ObjectKey>,
        /// Seconds since 1970.
        at: i64,
    },
    /// First line: two objects change places.
    Exchange {
        /// Version of this format.
        format: u32,
        /// One of them.
        a: ObjectKey,
        /// What is there.
        a_object: BaseObject,
        /// The other one.
        b: ObjectKey,
        /// What is there.
        b_object: BaseObject,
        /// Key of the copy of `a` that is made first and deleted last.
        hidden: ObjectKey,
        /// Seconds since 1970.
        at: i64,
    },
    /// First line: objects whose names were removed.
    Deletions {
        /// Version of this format.
        format: u32,
        /// `/proc/sys/kernel/random/boot_id` at that time.
        boot_id: String,
        /// Seconds since 1970.
        at: i64,
    },
    /// The new prefix of a directory has a marker of its own. It stays as it is until everything else is copied, so that the
    /// directory there is what it was when the move is taken back.
    TargetMarker {
        /// What is there.
        etag: ETag,
        /// `Last-Modified` of what is there, seconds since 1970.
        last_modified: i64,
        /// Headers of the marker that takes its place if the old prefix has none.
        headers: Option<ObjectHeaders>,
    },
    /// These objects below the directory are about to be copied. A later line for the same `rest` replaces an earlier one.
    Planned {
        /// Which.
        entries: Vec<Listed>,
    },
    /// Initiate of an upload for a copy by parts is about to be sent. One such line per try: without a following
    /// `Initiated` an upload that nobody knows may exist.
    Initiating {
        /// Its key.
        to: ObjectKey,
    },
    /// An upload was begun for a copy by parts.
    Initiated {
        /// Its key.
        to: ObjectKey,
        /// BOS's ID.
        upload_id: UploadId,
        /// What its parts are, for as long as it lives.
        by: PartsBy,
    },
    /// BOS copied a range into a part of that upload.
    PartCopied {
        /// Key of the upload.
        to: ObjectKey,
        /// Which part.
        part: PartNumber,
        /// ETag of the part.
        etag: ETag,
    },
    /// The upload is gone: completed, aborted, or destroyed from outside.
    UploadEnded {
        /// Its key.
        to: ObjectKey,
    },
    /// The copy at this key is complete.
    Copied {
        /// Key of the copy.
        to: ObjectKey,
        /// ETag of what was copied.
        from_etag: ETag,
        /// `Last-Modified` of what was copied, seconds since 1970; `None`: not asked for.
        from_last_modified: Option<i64>,
        /// ETag of the copy.
        etag: ETag,
        /// Between which times BOS stored the copy, both included, seconds since 1970; `None`: not known.
        #[serde(default)]
        stored: Option<(i64, i64)>,
    },
    /// The copy at this key was deleted again.
    Dropped {
        /// Key of the copy.
        to: ObjectKey,
    },
    /// A marker is about to be written at the new prefix of a directory that had none; behind `AllCopied`: was written.
    MarkerMade,
    /// Everything is copied: from here on the new names count.
    AllCopied,
    /// It cannot be finished: the copies are deleted again, the old names count.
    RollingBack {
        /// Why.
        message: String,
    },
    /// This object is to be deleted.
    Delete {
        /// Its key.
        key: ObjectKey,
        /// What is there.
        etag: ETag,
        /// Between which times BOS stored it, both included, seconds since 1970; `None`: not known.
        #[serde(default)]
        stored: Option<(i64, i64)>,
    },
    /// All is over; only the journal itself is left to be removed.
    Done,
}

impl Line for MoveRecord {
    const FORMAT: u32 = FORMAT;

    fn format(&self) -> Option<u32> {
        match self {
            MoveRecord::Object { format, .. }
            | MoveRecord::Directory { format, .. }
            | MoveRecord::Exchange { format, .. }
            | MoveRecord::Deletions { format, .. } => Some(*format),
            _ => None,
        }
    }

    /// Prefixes end in `/`, and a directory is not moved into itself.
    fn check(&self) -> Result<(), String> {
        match self {
            MoveRecord::Directory { from, to, .. } if !from.ends_with('/') || !to.ends_with('/') => {
                Err(format!("moves {from:?} to {to:?}, which are no prefixes of directories"))
            }
            MoveRecord::Directory { from, to, .. } if from.starts_with(to) || to.starts_with(from) => {
                Err(format!("moves {from:?} to {to:?}, of which one lies in the other"))
            }
            _ => Ok(()),
        }
    }
}
