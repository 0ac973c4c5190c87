//! What can go wrong in a BOS call.

/// Kinds of failure that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BosErrorKind {
    /// No such object (NoSuchKey, or 404 of HEAD).
    NoSuchKey,
    /// No such bucket.
    NoSuchBucket,
    /// The upload ID is unknown: completed, aborted or never was.
    NoSuchUpload,
    /// 412.
    PreconditionFailed,
    /// InvalidPart at Complete: a listed part is missing or differs.
    InvalidPart,
    /// InvalidRange.
    InvalidRange,
    /// BadDigest: what arrived is not what was hashed.
    BadDigest,
    /// 403 that is neither throttling nor a bad signature; also bad credentials.
    Denied,
    /// Quota or capacity.
    Quota,
    /// More than 2048 bytes of metadata.
    MetadataTooLarge,
    /// A name BOS refuses.
    InvalidName,
    /// Asked to slow down; may pass.
    Throttled,
    /// 5xx, expired date, request timeout; may pass.
    Server,
    /// No answer: refused, reset, stalled, resolved to nothing; may pass.
    Network,
    /// The answer makes no sense.
    BadAnswer,
    /// The local body could not be read.
    LocalRead,
    /// Anything else that will not pass by itself.
    Refused,
}

/// A failed BOS call: what was asked for which key, how often and how long it was tried, and what came back.
#[derive(Clone, Debug)]
pub struct BosError {
    /// For the caller to act on.
    pub kind: BosErrorKind,
    // further fields by the client's author: method, key, tries, elapsed, http status, code, message, request id
    pub(crate) ambiguous: bool,
}

impl BosError {
    /// Whether trying again later may help (no network, 5xx, throttling, expired token).
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            BosErrorKind::Throttled | BosErrorKind::Server | BosErrorKind::Network | BosErrorKind::BadAnswer
        )
    }
    /// Whether BOS may have acted although no success was seen.
    pub fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }
    /// The errno that a program is shown.
    pub fn errno(&self) -> i32 {
        libc::EIO
    }
}

impl std::fmt::Display for BosError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for BosError {}
