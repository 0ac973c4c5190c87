//! The calls on one object.

use bytes::Bytes;
use http::{HeaderName, Method, header};

use super::body::Body;
use super::client::{BosClient, Result, metadata_headers, stored_headers};
use super::error::{BosError, BosErrorKind};
use super::failure::Failure;
use super::model::{CopyOutcome, ObjectHeaders, ObjectMeta, StoredOutcome};
use super::retry::RetryPolicy;
use super::send::{Answer, Call, content_length, unix_now_s};
use super::sign::uri_encode_except_slash;
use super::wire::{self, ANSWER_BYTES_MAX, WireStored};
use crate::object::{Condition, ETag, Md5, ObjectKey};

pub(super) const CRC32C_FLAG: HeaderName = HeaderName::from_static("x-bce-content-crc32c-flag");
const COPY_SOURCE: HeaderName = HeaderName::from_static("x-bce-copy-source");
const COPY_IF_MATCH: HeaderName = HeaderName::from_static("x-bce-copy-source-if-match");
const METADATA_DIRECTIVE: HeaderName = HeaderName::from_static("x-bce-metadata-directive");
pub(super) const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

impl BosClient {
    /// `HEAD /key`.
    pub async fn head_object(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        Ok(self.head_dated(&self.sender.config.retry, key).await?.0)
    }

    /// [`BosClient::head_object`], and BOS's time of the answer, seconds since 1970, where it told it.
    pub(super) async fn head_dated(&self, policy: &RetryPolicy, key: &ObjectKey) -> Result<(ObjectMeta, Option<i64>)> {
        let call = Call { policy, ..self.call("GetObjectMeta", Method::HEAD, Some(key)) };
        self.sender
            .gather(&call, 0, |answer| {
                let odd = |message| Failure::odd(&answer.headers, message);
                let size = content_length(&answer.headers)
                    .ok_or_else(|| odd("the answer does not say how large the object is".to_owned()))?;
                let meta = wire::object_meta(&answer.headers, size, unix_now_s()).map_err(odd)?;
                Ok((meta, wire::answer_date(&answer.headers)))
            })
            .await
    }

    /// Whether the object is in class ARCHIVE and was not restored, so that its bytes can be neither read nor copied. Asks BOS.
    pub async fn is_archived(&self, key: &ObjectKey) -> Result<bool> {
        let call = self.call("GetObjectMeta", Method::HEAD, Some(key));
        self.sender
            .gather(&call, 0, |answer| {
                let class = wire::text(&answer.headers, "x-bce-storage-class");
                let restored = wire::text(&answer.headers, "x-bce-restore");
                Ok(class.as_deref().is_some_and(is_archive_class) && !restored.is_some_and(|text| is_restored(&text)))
            })
            .await
    }

    /// An error of a call that needs the bytes of `source`, named for what it is: BOS documents no code for an object that
    /// is archived, so where it refuses, the storage class tells.
    pub(super) async fn explained(&self, source: &ObjectKey, error: BosError) -> BosError {
        let refused = matches!(error.kind, BosErrorKind::Denied | BosErrorKind::Refused);
        if refused && !error.refuses_credentials() && self.is_archived(source).await.unwrap_or(false) {
            return error.of_archived();
        }
        error
    }

    /// PutObject, with Content-MD5 and the CRC32C flag. Repeated after an unanswered try only without a condition:
    /// otherwise the repeat could be refused by its own first success, and the caller settles by its mark.
    pub async fn put_object(
        &self,
        key: &ObjectKey,
        body: Body,
        md5: &Md5,
        headers: &ObjectHeaders,
        condition: &Condition,
    ) -> Result<StoredOutcome> {
        let mut call = self.data_call("PutObject", Method::PUT, key);
        call.idempotent = matches!(condition, Condition::Any);
        call.headers = stored_headers(headers)?;
        call.headers.push((CONTENT_MD5, md5.to_base64()));
        call.headers.push((CRC32C_FLAG, "true".to_owned()));
        call.headers.extend(condition_header(condition));
        call.body = Some(body);
        self.sender
            .gather(&call, ANSWER_BYTES_MAX, |answer| {
                wire::stored_outcome(&answer.headers, None).map_err(|odd| Failure::odd(&answer.headers, odd))
            })
            .await
    }

    /// CopyObject within the bucket. `replace`: new headers and metadata instead of the source's (needed when `dst == src`).
    pub async fn copy_object(
        &self,
        src: &ObjectKey,
        if_match: Option<&ETag>,
        dst: &ObjectKey,
        replace: Option<&ObjectHeaders>,
    ) -> Result<CopyOutcome> {
        self.copy_by(src, if_match, dst, replace, false).await
    }

    /// [`BosClient::copy_object`] that is not repeated: BOS knows no condition on the target of a copy, so whoever demands
    /// something of it looks right before, and again before a repeat.
    pub async fn copy_object_once(
        &self,
        src: &ObjectKey,
        if_match: Option<&ETag>,
        dst: &ObjectKey,
        replace: Option<&ObjectHeaders>,
    ) -> Result<CopyOutcome> {
        self.copy_by(src, if_match, dst, replace, true).await
    }

    async fn copy_by(
        &self,
        src: &ObjectKey,
        if_match: Option<&ETag>,
        dst: &ObjectKey,
        replace: Option<&ObjectHeaders>,
        once: bool,
    ) -> Result<CopyOutcome> {
        let mut call = self.data_call("CopyObject", Method::PUT, dst);
        call.once = once;
        // A copy onto itself may change the ETag that a repeat would demand.
        call.idempotent = src != dst || if_match.is_none();
        call.works_long = true;
        call.headers = match replace {
            Some(headers) => stored_headers(headers)?,
            None => Vec::new(),
        };
        let directive = if replace.is_some() { "replace" } else { "copy" };
        call.headers.push((METADATA_DIRECTIVE, directive.to_owned()));
        call.headers.push((CRC32C_FLAG, "true".to_owned()));
        call.headers.extend(self.copy_source(src, if_match));
        call.body = Some(Body::Bytes(Bytes::new()));
        match self.sender.gather(&call, ANSWER_BYTES_MAX, copy_answer).await {
            Err(error) => Err(self.explained(src, error).await),
            copied => copied,
        }
    }

    /// The headers that name the source of a copy, and demand its ETag.
    pub(super) fn copy_source(&self, src: &ObjectKey, if_match: Option<&ETag>) -> Vec<(HeaderName, String)> {
        let source = format!("/{}/{}", self.bucket(), uri_encode_except_slash(src.as_str()));
        let mut headers = vec![(COPY_SOURCE, source)];
        headers.extend(if_match.map(|etag| (COPY_IF_MATCH, etag.quoted())));
        headers
    }
}

/// Whether objects of this storage class must be restored before they are read.
pub fn is_archive_class(class: &str) -> bool {
    class.trim().eq_ignore_ascii_case("ARCHIVE")
}

/// Whether `x-bce-restore` says that a restored copy is there: not one that is still being made.
fn is_restored(text: &str) -> bool {
    text.to_ascii_lowercase().replace([' ', '"'], "").contains("ongoing-request=false")
}

/// Reads a copy's answer.
pub(super) fn copy_answer(answer: Answer) -> Result<CopyOutcome, Failure> {
    let odd = |message| Failure::odd(&answer.headers, message);
    let body: Option<WireStored> = wire::parse(&answer.body).map_err(odd)?;
    let body = body.ok_or_else(|| odd("the answer is empty".to_owned()))?;
    wire::copy_outcome(&answer.headers, body).map_err(odd)
}

/// The header that states `condition`.
pub(super) fn condition_header(condition: &Condition) -> Option<(HeaderName, String)> {
    match condition {
        Condition::Any => None,
        Condition::Absent => Some((header::IF_NONE_MATCH, "*".to_owned())),
        Condition::Matches(etag) => Some((header::IF_MATCH, etag.quoted())),
    }
}

/// The headers of Complete: metadata and condition. What else is stored with the object was given to Initiate.
pub(super) fn complete_headers(headers: &ObjectHeaders, condition: &Condition) -> Result<Vec<(HeaderName, String)>> {
    let mut list = metadata_headers(headers)?;
    list.push((CRC32C_FLAG, "true".to_owned()));
    list.extend(condition_header(condition));
    Ok(list)
}
