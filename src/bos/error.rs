//! What can go wrong in a BOS call, what it means, and which errno a program is shown for it.

use std::fmt;
use std::time::Duration;

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
    /// The object is in class ARCHIVE, and nobody restored it.
    Archived,
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

impl BosErrorKind {
    /// The kind of an error answer: `code` from the JSON body (empty where there was none), `message` likewise.
    ///
    /// `on_object`: the call names a key, so that a bare 404 of HEAD means the key. BOS has throttled with 429, with 503
    /// and, in old versions, with a 403 whose text speaks of the request rate.
    pub fn of_answer(status: u16, code: &str, message: &str, is_head: bool, on_object: bool) -> Self {
        use BosErrorKind::*;
        match code {
            // Of a call that names no key it would make a folder that cannot be listed look like one that is not there.
            "NoSuchKey" | "InvalidVersion" | "SymlinkTargetNotExist" => {
                return if on_object { NoSuchKey } else { BadAnswer };
            }
            "NoSuchBucket" => return NoSuchBucket,
            "NoSuchUpload" => return NoSuchUpload,
            "PreconditionFailed" => return PreconditionFailed,
            "InvalidPart" => return InvalidPart,
            "InvalidRange" => return InvalidRange,
            "BadDigest" => return BadDigest,
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidSessionToken" | "OptInRequired" => return Denied,
            "AccountOverdue" | "CapacityExceeded" | "BucketCapacityExceeded" | "ObjectNumExceeded" => return Quota,
            // As other stores call it. BOS documents no code of its own: the client looks at the storage class, too.
            "InvalidObjectState" => return Archived,
            "MetadataTooLarge" => return MetadataTooLarge,
            "InvalidObjectName" | "InvalidURI" | "InvalidBucketName" => return InvalidName,
            "RequestRateLimitExceeded" | "SlowDown" | "ServiceUnavailable" => return Throttled,
            "RequestExpired"
            | "RequestTimeTooSkewed"
            | "RequestTimeout"
            | "ReadBodyError"
            | "InternalError"
            | "Http400" => return Server,
            _ => {}
        }
        match status {
            429 | 503 => Throttled,
            403 if speaks_of_rate(message) => Throttled,
            403 | 401 => Denied,
            412 => PreconditionFailed,
            416 => InvalidRange,
            404 if is_head && on_object => NoSuchKey,
            404 if is_head => NoSuchBucket,
            408 => Server,
            501 | 505 => Refused,
            500..=599 => Server,
            200..=299 => Server,
            // 4xx without a code did not come from BOS itself but from something on the way.
            400 | 404 if code.is_empty() && !is_head => BadAnswer,
            _ => Refused,
        }
    }
}

fn speaks_of_rate(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["request rate", "rate is too high", "rate limit", "too many request", "slow down"]
        .iter()
        .any(|words| message.contains(words))
}

/// A failed BOS call: what was asked for which key, how often and how long it was tried, and what came back.
///
/// Never holds a secret, a signature or a signed link.
#[derive(Clone)]
pub struct BosError {
    /// For the caller to act on.
    pub kind: BosErrorKind,
    pub(crate) ambiguous: bool,
    story: Box<Story>,
}

/// All that is known of a failed call, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Story {
    /// Name of the call in BOS's documentation, such as `UploadPart`.
    pub call: &'static str,
    /// Endpoint, with scheme.
    pub endpoint: String,
    /// Bucket.
    pub bucket: String,
    /// Key, where the call has one.
    pub key: Option<String>,
    /// HTTP status of the last answer.
    pub status: Option<u16>,
    /// `code` of the last answer; empty: none.
    pub code: String,
    /// `message` of the last answer, or what happened instead of one.
    pub message: String,
    /// `x-bce-request-id` of the last answer.
    pub request_id: Option<String>,
    /// How often it was tried, 1 for no repeat; 0: it was not sent at all.
    pub tries: u32,
    /// Time from the first try to the end.
    pub elapsed: Duration,
    /// The last try ended because nothing moved for too long.
    pub timed_out: bool,
    /// The credentials were given once and cannot be had anew.
    pub keys_fixed: bool,
    /// The last answer says that the bucket has real folders: BOS tells that also where it refuses everything else.
    pub hierarchical: bool,
}

impl BosError {
    /// An error of `kind` with a message, of no particular call.
    pub fn new(kind: BosErrorKind, message: impl Into<String>) -> Self {
        Self::with_story(kind, false, Story { message: message.into(), ..Story::default() })
    }

    pub(crate) fn with_story(kind: BosErrorKind, ambiguous: bool, story: Story) -> Self {
        Self { kind, ambiguous, story: Box::new(story) }
    }

    /// What happened, field by field.
    pub fn story(&self) -> &Story {
        &self.story
    }

    /// How often the call was tried.
    pub fn tries(&self) -> u32 {
        self.story.tries
    }

    /// Whether trying again later may help (no network, 5xx, throttling, expired token).
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            BosErrorKind::Throttled | BosErrorKind::Server | BosErrorKind::Network | BosErrorKind::BadAnswer
        ) || (self.story.code == "InvalidSessionToken" && !self.story.keys_fixed)
    }

    /// The same error of an object that turned out to be archived.
    pub(crate) fn of_archived(self) -> Self {
        Self { kind: BosErrorKind::Archived, ..self }
    }

    /// Whether the credentials themselves are not accepted, whatever is asked for.
    pub fn refuses_credentials(&self) -> bool {
        self.kind == BosErrorKind::Denied && is_credential_code(&self.story.code)
    }

    /// Whether BOS refuses to copy an object because it was made by AppendObject: to another key always (live test of the
    /// JS SDK, 2016), perhaps in other ways as well. Its bytes can be read and stored again.
    pub fn is_copy_refused(&self) -> bool {
        let told = || self.story.message.to_ascii_lowercase().contains("appendable");
        self.story.code == "NotAllowCopy" || (self.kind == BosErrorKind::Refused && told())
    }

    /// Whether BOS may have acted although no success was seen: some try (not only the last) may have reached it, and
    /// it answered nothing, nothing understood, or a 5xx.
    pub fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    /// The errno that a program is shown. The only place where BOS's failures become errnos.
    pub fn errno(&self) -> i32 {
        match self.story.code.as_str() {
            "AccountOverdue" => return libc::EDQUOT,
            "EntityTooLarge" => return libc::EFBIG,
            "InvalidObjectName" => return libc::ENAMETOOLONG,
            "InvalidArgument" => return libc::EINVAL,
            "MethodNotAllowed" | "NotImplemented" | "NotAllowCopy" => return libc::ENOTSUP,
            "FileAlreadyExists" => return libc::EEXIST,
            "ObjectImmutable" | "OnlyAllowModify" | "ObjectUnappendable" => return libc::EPERM,
            _ => {}
        }
        match self.kind {
            BosErrorKind::NoSuchKey => libc::ENOENT,
            // Not ENOENT: a missing bucket must not look like a missing file.
            BosErrorKind::NoSuchBucket => libc::ENODEV,
            // The loser of a race. A caller that asked for a new name (O_EXCL) says EEXIST itself.
            BosErrorKind::PreconditionFailed => libc::ESTALE,
            BosErrorKind::Denied => libc::EACCES,
            // What changes it has to copy it; whoever reads it says EIO itself.
            BosErrorKind::Archived => libc::EPERM,
            BosErrorKind::Quota | BosErrorKind::MetadataTooLarge => libc::ENOSPC,
            BosErrorKind::InvalidName => libc::EINVAL,
            BosErrorKind::Network if self.story.timed_out => libc::ETIMEDOUT,
            BosErrorKind::NoSuchUpload
            | BosErrorKind::InvalidPart
            | BosErrorKind::InvalidRange
            | BosErrorKind::BadDigest
            | BosErrorKind::Throttled
            | BosErrorKind::Server
            | BosErrorKind::Network
            | BosErrorKind::BadAnswer
            | BosErrorKind::LocalRead
            | BosErrorKind::Refused => libc::EIO,
        }
    }

    /// What a person can do about it; `None` where waiting is all there is.
    pub fn hint(&self) -> Option<String> {
        let Story { bucket, endpoint, code, status, .. } = &*self.story;
        if bucket.is_empty() {
            return None;
        }
        Some(match self.kind {
            BosErrorKind::NoSuchBucket => format!(
                "bucket {bucket} is not at {endpoint}; check its name, or give the endpoint of its region with --endpoint"
            ),
            BosErrorKind::Denied if code == "InvalidSessionToken" && self.story.keys_fixed => {
                "the session token is wrong or has run out, and it was given once, by an option or the environment, so that no \
                 other one can come: mount again with new keys, or keep them in a file named by --credentials, which is read \
                 again when it changes"
                    .to_owned()
            }
            BosErrorKind::Archived => "the object is archived (storage class ARCHIVE) and cannot be read or copied: restore \
                                       it first, in the console or by RestoreObject, then try again"
                .to_owned(),
            BosErrorKind::Denied if is_credential_code(code) => format!(
                "{endpoint} does not accept this access key; check the key, secret and token given by --credentials or \
                 the BCE_... environment variables"
            ),
            BosErrorKind::Denied => {
                format!("this access key may not do that in bucket {bucket}; give it the permission, or another key")
            }
            BosErrorKind::Quota => "raise the quota or settle the account of the bucket's owner".to_owned(),
            BosErrorKind::MetadataTooLarge => {
                "BOS keeps at most 2048 bytes of metadata; remove extended attributes".to_owned()
            }
            BosErrorKind::Network if self.story.tries > 0 => {
                format!("check the network, and --endpoint if {endpoint} was not meant")
            }
            BosErrorKind::Refused if matches!(status, Some(300..=399)) => {
                format!("{endpoint} redirects elsewhere; give the endpoint of the bucket's region with --endpoint")
            }
            _ if code == "RequestExpired" || code == "RequestTimeTooSkewed" => {
                "set the clock of this machine".to_owned()
            }
            _ => return None,
        })
    }
}

/// Whether `code` says that the credentials themselves are not accepted.
pub(crate) fn is_credential_code(code: &str) -> bool {
    matches!(code, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidSessionToken")
}

impl fmt::Display for BosError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let story = &*self.story;
        if !story.call.is_empty() {
            match &story.key {
                Some(key) => write!(f, "{} of {key:?} in bucket {} failed: ", story.call, story.bucket)?,
                None => write!(f, "{} of bucket {} failed: ", story.call, story.bucket)?,
            }
        }
        match (story.status, story.code.as_str()) {
            (Some(status), "") => write!(f, "HTTP {status}")?,
            (Some(status), code) => write!(f, "HTTP {status} {code}")?,
            (None, _) => {}
        }
        if !story.message.is_empty() {
            let colon = if story.status.is_some() { ": " } else { "" };
            write!(f, "{colon}{}", story.message)?;
        } else if story.status.is_none() {
            write!(f, "{:?}", self.kind)?;
        }
        if let Some(request_id) = &story.request_id {
            write!(f, " (request {request_id})")?;
        }
        if story.tries > 1 {
            write!(f, ", after {} tries in {:.1} s", story.tries, story.elapsed.as_secs_f64())?;
        }
        if self.ambiguous {
            write!(f, "; BOS may have done it all the same")?;
        }
        match self.hint() {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for BosError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BosError")
            .field("kind", &self.kind)
            .field("ambiguous", &self.ambiguous)
            .field("story", &self.story)
            .finish()
    }
}

impl std::error::Error for BosError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, code: &str, message: &str) -> BosErrorKind {
        BosErrorKind::of_answer(status, code, message, false, true)
    }

    #[test]
    fn throttling_is_seen_in_all_its_forms() {
        assert_eq!(kind(429, "", ""), BosErrorKind::Throttled);
        assert_eq!(kind(429, "RequestRateLimitExceeded", ""), BosErrorKind::Throttled);
        assert_eq!(kind(503, "", "<html>busy</html>"), BosErrorKind::Throttled);
        assert_eq!(kind(503, "SlowDown", ""), BosErrorKind::Throttled);
        assert_eq!(kind(403, "AccessDenied", "Your Request rate is too high."), BosErrorKind::Throttled);
        assert_eq!(kind(403, "AccessDenied", "Access denied."), BosErrorKind::Denied);
    }

    #[test]
    fn an_unexplained_404_is_a_missing_key_only_for_head() {
        assert_eq!(BosErrorKind::of_answer(404, "", "", true, true), BosErrorKind::NoSuchKey);
        assert_eq!(BosErrorKind::of_answer(404, "", "", true, false), BosErrorKind::NoSuchBucket);
        assert_eq!(kind(404, "", "<html>"), BosErrorKind::BadAnswer);
        assert_eq!(kind(404, "NoSuchBucket", ""), BosErrorKind::NoSuchBucket);
        assert_eq!(
            BosErrorKind::of_answer(404, "NoSuchKey", "", false, false),
            BosErrorKind::BadAnswer,
            "of a listing"
        );
        assert_eq!(kind(404, "NoSuchUpload", ""), BosErrorKind::NoSuchUpload);
    }

    #[test]
    fn invalid_range_is_one_kind_whether_400_or_416() {
        assert_eq!(kind(400, "InvalidRange", ""), BosErrorKind::InvalidRange);
        assert_eq!(kind(416, "", ""), BosErrorKind::InvalidRange);
    }

    #[test]
    fn only_a_missing_key_is_enoent() {
        for (status, code, errno) in [
            (404, "NoSuchKey", libc::ENOENT),
            (404, "NoSuchBucket", libc::ENODEV),
            (404, "NoSuchUpload", libc::EIO),
            (404, "", libc::EIO),
            (500, "InternalError", libc::EIO),
            (502, "", libc::EIO),
            (412, "", libc::ESTALE),
            (403, "AccessDenied", libc::EACCES),
            (403, "AccountOverdue", libc::EDQUOT),
            (403, "CapacityExceeded", libc::ENOSPC),
            (400, "EntityTooLarge", libc::EFBIG),
            (400, "InvalidObjectName", libc::ENAMETOOLONG),
            (400, "InvalidURI", libc::EINVAL),
            (405, "MethodNotAllowed", libc::ENOTSUP),
            (501, "NotImplemented", libc::ENOTSUP),
            (409, "ObjectImmutable", libc::EPERM),
            (302, "", libc::EIO),
        ] {
            let story = Story { status: Some(status), code: code.to_owned(), ..Story::default() };
            let error = BosError::with_story(kind(status, code, ""), false, story);
            assert_eq!(error.errno(), errno, "{status} {code}");
        }
    }

    #[test]
    fn display_tells_the_story_and_what_to_do() {
        let story = Story {
            call: "UploadPart",
            endpoint: "https://bj.bcebos.com".to_owned(),
            bucket: "photos".to_owned(),
            key: Some("a/b".to_owned()),
            status: Some(404),
            code: "NoSuchBucket".to_owned(),
            message: "none here".to_owned(),
            request_id: Some("4db2".to_owned()),
            tries: 2,
            elapsed: Duration::from_millis(1500),
            ..Story::default()
        };
        let error = BosError::with_story(BosErrorKind::NoSuchBucket, true, story);
        assert_eq!(
            error.to_string(),
            "UploadPart of \"a/b\" in bucket photos failed: HTTP 404 NoSuchBucket: none here (request 4db2), after 2 \
             tries in 1.5 s; BOS may have done it all the same; bucket photos is not at https://bj.bcebos.com; check its \
             name, or give the endpoint of its region with --endpoint"
        );
        assert_eq!(BosError::new(BosErrorKind::BadAnswer, "odd").to_string(), "odd");
        assert_eq!(BosError::new(BosErrorKind::Network, "").to_string(), "Network");
    }
}
