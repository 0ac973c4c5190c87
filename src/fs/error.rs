//! The one place that knows errno.

use crate::bos::error::{BosError, BosErrorKind};
use crate::object::KeyError;
use crate::upload::WriteError;

/// A failed operation: what the program is told, and what people are told.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct FsError {
    /// For the program.
    pub errno: i32,
    /// What happened to which file, what bosfs did with the bytes, what to do; empty for everyday answers (no such
    /// file, directory not empty, ...), which nobody wants in a log.
    pub message: String,
}

/// Result of an operation.
pub type FsResult<T> = Result<T, FsError>;

impl FsError {
    /// An everyday answer that needs no words.
    pub const fn plain(errno: i32) -> Self {
        Self { errno, message: String::new() }
    }

    /// An answer that people should read.
    pub fn told(errno: i32, message: impl Into<String>) -> Self {
        Self { errno, message: message.into() }
    }

    /// No such file.
    pub const ABSENT: FsError = FsError::plain(libc::ENOENT);
    /// The inode or the content that a handle stands for is gone.
    pub const STALE: FsError = FsError::plain(libc::ESTALE);
    /// A handle that was never given out, or not for this purpose.
    pub const BAD_HANDLE: FsError = FsError::plain(libc::EBADF);
    /// The mount, or this part of it, cannot be changed.
    pub const READ_ONLY: FsError = FsError::plain(libc::EROFS);

    /// A BOS call failed while `doing` (such as "reading") something with `key`.
    pub fn from_bos(doing: &str, key: &str, error: &BosError) -> Self {
        let errno = match error.kind {
            BosErrorKind::NoSuchKey => libc::ENOENT,
            // The version that a handle was opened for is no longer there.
            BosErrorKind::PreconditionFailed => libc::ESTALE,
            BosErrorKind::Denied => libc::EACCES,
            // What changes it has to copy it.
            BosErrorKind::Archived => libc::EPERM,
            BosErrorKind::Quota => libc::EDQUOT,
            BosErrorKind::MetadataTooLarge => libc::ENOSPC,
            BosErrorKind::InvalidName => libc::EINVAL,
            // Never ENOENT: "cannot ask" is not "does not exist". ENXIO or ENODEV would make programs think that the
            // mount itself is gone.
            BosErrorKind::NoSuchBucket
            | BosErrorKind::NoSuchUpload
            | BosErrorKind::InvalidPart
            | BosErrorKind::InvalidRange
            | BosErrorKind::BadDigest
            | BosErrorKind::Throttled
            | BosErrorKind::Server
            | BosErrorKind::Network
            | BosErrorKind::BadAnswer
            | BosErrorKind::LocalRead
            | BosErrorKind::Refused => libc::EIO,
        };
        if errno == libc::ENOENT {
            return Self::ABSENT;
        }
        Self::told(errno, format!("{doing} {key:?}: {error}"))
    }

    /// A read through a handle failed: a vanished or changed object makes the handle stale, it is not "no such file".
    pub fn from_read(key: &str, error: &BosError) -> Self {
        match error.kind {
            BosErrorKind::NoSuchKey | BosErrorKind::PreconditionFailed => Self::told(
                libc::ESTALE,
                format!("reading {key:?}: the object was replaced or removed since the file was opened; open it again"),
            ),
            // No permission helps: its bytes are not there to be read before somebody restores them.
            BosErrorKind::Archived => Self::told(libc::EIO, format!("reading {key:?}: {error}")),
            _ => Self::from_bos("reading", key, error),
        }
    }
}

impl From<WriteError> for FsError {
    fn from(error: WriteError) -> Self {
        match error {
            // Callers wait instead; should one not, the program may try again.
            WriteError::MustWait => Self::plain(libc::EAGAIN),
            WriteError::Failed { errno, message } => Self { errno, message },
        }
    }
}

impl From<KeyError> for FsError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::TooLong(_) => Self::told(libc::ENAMETOOLONG, error.to_string()),
            KeyError::Empty | KeyError::BadSegment(_) => Self::told(libc::EINVAL, error.to_string()),
        }
    }
}
