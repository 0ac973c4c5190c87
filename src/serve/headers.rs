//! Request headers into values, records into answer headers.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Variants;
use super::error::ApiError;
use super::store::ObjectRecord;
use crate::bos::client::ObjectHeaders;
use crate::bos::header_text::{from_wire, to_wire, trimmed, wire_len};
use crate::object::{Checksum, Crcs, Md5};

/// All metadata of an object, counting prefix, name and value (BOS docs; live test).
pub const METADATA_BYTES_MAX: usize = 2048;
const META_PREFIX: &str = "x-bce-meta-";
/// Without an owner's `Expires`, BOS shows one so far ahead.
const EXPIRES_AFTER: Duration = Duration::from_secs(3 * 24 * 3600);
const STORAGE_CLASSES: [&str; 7] =
    ["STANDARD", "STANDARD_IA", "COLD", "ARCHIVE", "MAZ_STANDARD", "MAZ_STANDARD_IA", "MAZ_COLD"];

/// The text of a header, whatever its encoding: see [`header_text`](crate::bos::header_text).
pub fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| from_wire(value.as_bytes()))
}

/// A header that has a text, trimmed.
fn filled(headers: &HeaderMap, name: &str) -> Option<String> {
    text(headers, name).map(|value| trimmed(&value).to_owned()).filter(|value| !value.is_empty())
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Result<Option<T>, ApiError> {
    filled(headers, name)
        .map(|value| {
            value.parse().map_err(|_| ApiError::argument(format!("{name}: {value:?} is no number of its kind")))
        })
        .transpose()
}

/// User metadata by name without prefix, in lowercase; empty values are not stored.
pub fn metadata(headers: &HeaderMap) -> Result<BTreeMap<String, String>, ApiError> {
    let mut metadata = BTreeMap::new();
    let mut bytes = 0;
    for name in headers.keys() {
        let Some(short) = name.as_str().strip_prefix(META_PREFIX) else { continue };
        let Some(value) = filled(headers, name.as_str()) else { continue };
        bytes += name.as_str().len() + wire_len(&value);
        metadata.insert(short.to_owned(), value);
    }
    if bytes > METADATA_BYTES_MAX {
        return Err(ApiError::bad(
            "MetadataTooLarge",
            format!("Your metadata headers exceed the maximum allowed metadata size: {bytes} > {METADATA_BYTES_MAX}."),
        ));
    }
    Ok(metadata)
}

/// The storage class asked for.
pub fn storage_class(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let class = filled(headers, "x-bce-storage-class");
    match class {
        Some(class) if !STORAGE_CLASSES.contains(&class.as_str()) => {
            Err(ApiError::argument(format!("The storage class {class:?} does not exist.")))
        }
        class => Ok(class),
    }
}

/// What is stored with an object.
pub fn object_headers(headers: &HeaderMap) -> Result<ObjectHeaders, ApiError> {
    Ok(ObjectHeaders {
        content_type: filled(headers, "content-type"),
        cache_control: filled(headers, "cache-control"),
        content_encoding: filled(headers, "content-encoding"),
        content_disposition: filled(headers, "content-disposition"),
        expires: filled(headers, "expires"),
        storage_class: storage_class(headers)?,
        metadata: metadata(headers)?,
    })
}

/// What the client says of the body, or of the object to be composed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    md5: Option<Md5>,
    sha256: Option<String>,
    crc32: Option<u32>,
    /// `x-bce-content-crc32c`.
    pub crc32c: Option<u32>,
    /// `x-bce-content-crc32c-flag: true`.
    pub crc32c_flag: bool,
    crc64: Option<u64>,
}

fn bad_digest(which: &str) -> ApiError {
    ApiError::bad("BadDigest", format!("The {which} you specified did not match what was received."))
}

impl Digests {
    /// Of the headers.
    ///
    /// # Errors
    /// `InvalidDigest`, `InvalidArgument`.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let invalid = |which: &str| ApiError::bad("InvalidDigest", format!("The {which} you specified is not valid."));
        let md5 = match filled(headers, "content-md5") {
            None => None,
            Some(value) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(value).ok();
                let bytes: Option<[u8; 16]> = bytes.and_then(|bytes| bytes.try_into().ok());
                Some(Md5(bytes.ok_or_else(|| invalid("Content-MD5"))?))
            }
        };
        let sha256 = filled(headers, "x-bce-content-sha256").map(|value| value.to_ascii_lowercase());
        if sha256.as_ref().is_some_and(|value| hex::decode(value).map_or(0, |bytes| bytes.len()) != 32) {
            return Err(invalid("x-bce-content-sha256"));
        }
        Ok(Self {
            md5,
            sha256,
            crc32: number(headers, "x-bce-content-crc32")?,
            crc32c: number(headers, "x-bce-content-crc32c")?,
            crc32c_flag: filled(headers, "x-bce-content-crc32c-flag")
                .is_some_and(|value| value.eq_ignore_ascii_case("true")),
            crc64: number(headers, "x-bce-content-crc64ecma")?,
        })
    }

    /// Whether a SHA-256 must be computed.
    pub fn wants_sha256(&self) -> bool {
        self.sha256.is_some()
    }

    /// Whether the CRC32C is to be shown.
    pub fn shows_crc32c(&self) -> bool {
        self.crc32c_flag || self.crc32c.is_some()
    }

    /// Compares with what was received. Returns the SHA-256 to be stored.
    ///
    /// # Errors
    /// `BadDigest`.
    pub fn check(&self, received: &Checksum, sha256: Option<&str>) -> Result<Option<String>, ApiError> {
        if self.md5.is_some_and(|md5| md5 != received.md5) {
            return Err(bad_digest("Content-MD5"));
        }
        if self.sha256.is_some() && self.sha256.as_deref() != sha256 {
            return Err(bad_digest("x-bce-content-sha256"));
        }
        self.check_crcs(&received.crcs)?;
        Ok(self.sha256.clone())
    }

    /// Compares the CRCs alone.
    ///
    /// # Errors
    /// `BadDigest`.
    pub fn check_crcs(&self, crcs: &Crcs) -> Result<(), ApiError> {
        if self.crc32.is_some_and(|crc| crc != crcs.crc32) {
            return Err(bad_digest("x-bce-content-crc32"));
        }
        if self.crc32c.is_some_and(|crc| crc != crcs.crc32c) {
            return Err(bad_digest("x-bce-content-crc32c"));
        }
        if self.crc64.is_some_and(|crc| crc != crcs.crc64) {
            return Err(bad_digest("x-bce-content-crc64ecma"));
        }
        Ok(())
    }
}

/// Sets a header, if `value` can be one. Stored values came as headers, so they can.
pub fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_bytes(&to_wire(value)) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// The CRC headers of an answer.
pub fn set_crcs(headers: &mut HeaderMap, crcs: &Crcs, crc32c_shown: bool, variants: &Variants) {
    if variants.no_crc_headers {
        return;
    }
    set(headers, "x-bce-content-crc32", &crcs.crc32.to_string());
    set(headers, "x-bce-content-crc64ecma", &crcs.crc64.to_string());
    if crc32c_shown {
        set(headers, "x-bce-content-crc32c", &crcs.crc32c.to_string());
    }
}

/// A date as headers have it.
pub fn http_date(unix_s: i64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_s).unwrap_or(0));
    httpdate::fmt_http_date(time)
}

/// The headers of GET and HEAD.
pub fn describe(object: &ObjectRecord, variants: &Variants) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let stored = &object.headers;
    set(&mut headers, "content-type", stored.content_type.as_deref().unwrap_or("application/octet-stream"));
    let optional = [
        ("cache-control", &stored.cache_control),
        ("content-encoding", &stored.content_encoding),
        ("content-disposition", &stored.content_disposition),
        ("x-bce-content-sha256", &object.sha256),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            set(&mut headers, name, value);
        }
    }
    let default_expiry = || httpdate::fmt_http_date(SystemTime::now() + EXPIRES_AFTER);
    set(&mut headers, "expires", &stored.expires.clone().unwrap_or_else(default_expiry));
    set(&mut headers, "last-modified", &http_date(object.modified));
    set(&mut headers, "etag", &format!("\"{}\"", object.etag));
    set(&mut headers, "accept-ranges", "bytes");
    if let Some(md5) = object.md5 {
        set(&mut headers, "content-md5", &md5.to_base64());
    }
    // Only objects that came in one piece have an MD5.
    let composed = object.md5.is_none();
    if let Some(crcs) = &object.crcs
        && !(composed && variants.no_crc_on_composed_objects)
    {
        set_crcs(&mut headers, crcs, object.crc32c_shown, variants);
    }
    set(&mut headers, "x-bce-storage-class", stored.storage_class.as_deref().unwrap_or("STANDARD"));
    if object.restored_until > 0 {
        let expiry = http_date(object.restored_until);
        set(&mut headers, "x-bce-restore", &format!("ongoing-request=\"false\", expiry-date=\"{expiry}\""));
    }
    if object.appendable {
        set(&mut headers, "x-bce-object-type", "Appendable");
        set(&mut headers, "x-bce-next-append-offset", &object.size.to_string());
    } else {
        set(&mut headers, "x-bce-object-type", "Normal");
    }
    set(&mut headers, "x-bce-flow-control-type", "-1");
    set(&mut headers, "x-bce-is-transition", "false");
    for (name, value) in &stored.metadata {
        if let (Ok(name), Ok(value)) =
            (HeaderName::try_from(format!("{META_PREFIX}{name}")), HeaderValue::from_bytes(&to_wire(value)))
        {
            headers.insert(name, value);
        }
    }
    headers
}

/// What a `Range` header asks of an object of `size` bytes: first byte and one past the last.
///
/// # Errors
/// `InvalidRange`: 400 for an empty object and for a range that cannot be read, 416 when it begins behind the end.
pub fn range(value: &str, size: u64) -> Result<(u64, u64), ApiError> {
    let malformed = || ApiError::bad("InvalidRange", format!("The range {value:?} is not of the form bytes=a-b."));
    let (first, last) = value.trim().strip_prefix("bytes=").and_then(|r| r.split_once('-')).ok_or_else(malformed)?;
    if size == 0 {
        return Err(ApiError::bad("InvalidRange", "The object has no bytes; it has no ranges either."));
    }
    let parse = |text: &str| text.trim().parse::<u64>().map_err(|_| malformed());
    let outside = || {
        ApiError::new(
            http::StatusCode::RANGE_NOT_SATISFIABLE,
            "InvalidRange",
            format!("The requested range {value:?} cannot be satisfied: the object has {size} bytes."),
        )
    };
    let (start, end) = match (first.trim(), last.trim()) {
        ("", "") => return Err(malformed()),
        ("", count) => (size.saturating_sub(parse(count)?), size),
        (first, "") => (parse(first)?, size),
        (first, last) => {
            let (first, last) = (parse(first)?, parse(last)?);
            if last < first {
                return Err(malformed());
            }
            (first, last.saturating_add(1).min(size))
        }
    };
    if start >= end { Err(outside()) } else { Ok((start, end)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_of_2048_bytes_is_taken_and_2049_refused() {
        // The vendor's live test counts prefix, name and value.
        let mut headers = HeaderMap::new();
        let room = METADATA_BYTES_MAX - "x-bce-meta-a".len() - "x-bce-meta-b".len();
        headers.insert("x-bce-meta-a", "v".repeat(1000).parse().unwrap());
        headers.insert("x-bce-meta-b", "v".repeat(room - 1000).parse().unwrap());
        headers.insert("x-bce-meta-empty", HeaderValue::from_static(""));
        assert_eq!(metadata(&headers).unwrap().len(), 2);
        headers.insert("x-bce-meta-b", "v".repeat(room - 999).parse().unwrap());
        assert_eq!(metadata(&headers).unwrap_err().code, "MetadataTooLarge");
    }

    #[test]
    fn ranges() {
        assert_eq!(range("bytes=0-0", 10), Ok((0, 1)));
        assert_eq!(range("bytes=3-", 10), Ok((3, 10)));
        assert_eq!(range("bytes=9-100", 10), Ok((9, 10)));
        assert_eq!(range("bytes=-4", 10), Ok((6, 10)));
        assert_eq!(range("bytes=-40", 10), Ok((0, 10)));
        let status = |value, size| range(value, size).unwrap_err().status.as_u16();
        assert_eq!(status("bytes=10-", 10), 416);
        assert_eq!(status("bytes=10-12", 10), 416);
        assert_eq!(status("bytes=0-0", 0), 400);
        assert_eq!(status("bytes=5-4", 10), 400);
        assert_eq!(status("bytes=-", 10), 400);
        assert_eq!(status("bytes=0-1,3-4", 10), 400);
        assert_eq!(status("lines=0-1", 10), 400);
    }

    #[test]
    fn digests_that_cannot_be_read_or_do_not_match_are_told_apart() {
        let digests = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            Digests::of(&headers)
        };
        let body = Checksum::of(b"01234567");
        for (name, good, wrong) in [
            ("content-md5", "Lp7DF+GXgZNY+8Q6/KfYNw==", "Lp7DF+GXgZNY+8Q6/KfYNg=="),
            ("x-bce-content-crc32", "763378421", "763378422"),
            ("x-bce-content-crc32c", "2887918368", "0"),
            ("x-bce-content-crc64ecma", "4997537838264543561", "1"),
        ] {
            assert!(digests(name, good).unwrap().check(&body, None).is_ok(), "{name}");
            assert_eq!(digests(name, wrong).unwrap().check(&body, None).unwrap_err().code, "BadDigest", "{name}");
        }
        assert_eq!(digests("content-md5", "short").unwrap_err().code, "InvalidDigest");
        assert_eq!(digests("x-bce-content-sha256", "abc").unwrap_err().code, "InvalidDigest");
        assert_eq!(digests("x-bce-content-crc32", "-1").unwrap_err().code, "InvalidArgument");
        let sum = "11".repeat(32);
        let sha256 = digests("x-bce-content-sha256", &sum).unwrap();
        assert_eq!(sha256.check(&body, Some(&sum)).unwrap(), Some(sum.clone()));
        assert_eq!(sha256.check(&body, Some("22")).unwrap_err().code, "BadDigest");
    }
}
