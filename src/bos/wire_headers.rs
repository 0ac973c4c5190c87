//! What the headers of answers tell of an object. They are no more trusted than the rest of an answer: see `wire.rs`.

use http::HeaderMap;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use super::header_text::from_wire;
use super::model::{CopyOutcome, ObjectHeaders, ObjectMeta, StoredOutcome};
use super::wire::{Odd, WireStored, given_etag, timestamp_of};

/// BOS makes up an `Expires` of now and three days for objects without one (BOS docs, PutObject).
const MADE_UP_EXPIRY_S: i64 = 3 * 24 * 3600;
const MADE_UP_EXPIRY_SLACK_S: i64 = 10 * 60;

/// What the headers of HEAD or GET tell of an object of `size` bytes. `now_s` stands in for a missing `Date`.
pub fn object_meta(headers: &HeaderMap, size: u64, now_s: i64) -> Result<ObjectMeta, Odd> {
    let etag = given_etag(&text(headers, "etag").unwrap_or_default())?;
    if i64::try_from(size).is_err() {
        return Err(format!("the object is said to have {size} bytes"));
    }
    let (crc32c, crc32, crc64) = crcs(headers);
    Ok(ObjectMeta {
        size,
        etag,
        last_modified: text(headers, "last-modified").and_then(|text| http_date(&text)).unwrap_or_default(),
        crc32c,
        crc32,
        crc64,
        appendable: text(headers, "x-bce-object-type").is_some_and(|kind| kind.eq_ignore_ascii_case("appendable")),
        headers: object_headers(headers, now_s),
    })
}

/// ETag and CRCs of an answer to PutObject or UploadPart; of Complete with the ETag from its body.
pub fn stored_outcome(headers: &HeaderMap, body_etag: Option<String>) -> Result<StoredOutcome, Odd> {
    let etag = given_etag(&body_etag.or_else(|| text(headers, "etag")).unwrap_or_default())?;
    let (crc32c, crc32, crc64) = crcs(headers);
    Ok(StoredOutcome { etag, crc32c, crc32, crc64, date: answer_date(headers) })
}

/// What the answer to CopyObject or UploadPartCopy tells.
pub fn copy_outcome(headers: &HeaderMap, body: WireStored) -> Result<CopyOutcome, Odd> {
    let etag = given_etag(&body.etag)?;
    let last_modified = body.last_modified.map(|text| timestamp_of(&text)).filter(|at| *at != 0);
    Ok(CopyOutcome { etag, last_modified, date: answer_date(headers) })
}

/// Server time of an answer.
/// `Date` of an answer, seconds since 1970.
pub fn answer_date(headers: &HeaderMap) -> Option<i64> {
    text(headers, "date").and_then(|text| http_date(&text))
}

fn crcs(headers: &HeaderMap) -> (Option<u32>, Option<u32>, Option<u64>) {
    let of = |name| text(headers, name);
    (
        of("x-bce-content-crc32c").and_then(|text| text.trim().parse().ok()),
        of("x-bce-content-crc32").and_then(|text| text.trim().parse().ok()),
        of("x-bce-content-crc64ecma").and_then(|text| text.trim().parse().ok()),
    )
}

fn object_headers(headers: &HeaderMap, now_s: i64) -> ObjectHeaders {
    let metadata = headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("x-bce-meta-")?;
            (!name.is_empty()).then(|| (name.to_owned(), from_wire(value.as_bytes())))
        })
        .collect();
    let answered_at = answer_date(headers).unwrap_or(now_s);
    let value = |name| headers.get(name).map(|value| from_wire(value.as_bytes()));
    let expires = value("expires").filter(|expires| {
        // One that cannot be read was not made up by BOS.
        http_date(expires).is_none_or(|at| {
            (at.saturating_sub(answered_at).saturating_sub(MADE_UP_EXPIRY_S)).abs() > MADE_UP_EXPIRY_SLACK_S
        })
    });
    ObjectHeaders {
        content_type: value("content-type"),
        cache_control: value("cache-control"),
        content_encoding: value("content-encoding"),
        content_disposition: value("content-disposition"),
        expires,
        storage_class: value("x-bce-storage-class"),
        metadata,
    }
}

/// The value of a header, made ASCII: for what is read, not for what is stored with an object.
pub fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| ascii(value.as_bytes()))
}

/// Whether the headers tell of a bucket with real folders (BOS docs, HeadBucket).
pub fn is_hierarchical(headers: &HeaderMap) -> bool {
    text(headers, "x-bce-bucket-type").is_some_and(|kind| kind.trim().eq_ignore_ascii_case("namespace"))
}

/// Seconds since 1970 of an HTTP date.
pub fn http_date(text: &str) -> Option<i64> {
    let time = httpdate::parse_http_date(text).ok()?;
    Some(crate::object::Timestamp::from(time).sec)
}

const NOT_PLAIN: &AsciiSet = CONTROLS;

/// `bytes` with everything that is not printable ASCII as `%XX`; a `%` stays as it is.
fn ascii(bytes: &[u8]) -> String {
    percent_encode(bytes, NOT_PLAIN).to_string()
}
