//! Which call a request is, on which bucket and key, and whether it is signed.

use http::request::Parts;
use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;

use super::error::ApiError;
use super::headers::text;
use crate::bos::endpoint::without_version;
use crate::bos::sign::{Credentials, ReceivedAuthorization, SignedParts};
use crate::object::Timestamp;

/// Longest key, in bytes (live test of the Java SDK).
const KEY_BYTES_MAX: usize = 1024;
/// How far the clock of a client may be ahead. BOS documents no value.
const CLOCK_AHEAD_MAX_S: i64 = 15 * 60;

/// The calls, by BOS's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Call {
    ListBuckets,
    PutBucket,
    HeadBucket,
    DeleteBucket,
    GetBucketLocation,
    GetBucketLifecycle,
    PutBucketLifecycle,
    DeleteBucketLifecycle,
    ListObjects,
    ListMultipartUploads,
    DeleteMultipleObjects,
    PutObject,
    AppendObject,
    CopyObject,
    GetObject,
    HeadObject,
    DeleteObject,
    RestoreObject,
    InitiateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListParts,
    /// Anything else: refused.
    Unknown,
}

impl Call {
    /// BOS's name of it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// A request, taken apart.
#[derive(Debug)]
pub struct Request {
    /// What it asks for.
    pub call: Call,
    /// Method.
    pub method: Method,
    /// Headers.
    pub headers: HeaderMap,
    /// Path as meant, with the bucket in path style.
    path: String,
    /// Parameters as meant.
    query: Vec<(String, String)>,
    /// Bucket; empty: none.
    pub bucket: String,
    /// Key; empty: none.
    pub key: String,
}

fn decode(text: &str) -> Result<String, ApiError> {
    percent_decode_str(text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| ApiError::bad("InvalidURI", "The request URI is not UTF-8."))
}

/// The bucket that a host name carries: the label before `base_host`, before a region of `bcebos.com`, or before
/// anything else if it `is_bucket`.
fn bucket_of_host(host: &str, base_host: &str, is_bucket: impl Fn(&str) -> bool) -> Option<String> {
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    if host.parse::<std::net::IpAddr>().is_ok() || host.starts_with('[') || host.eq_ignore_ascii_case(base_host) {
        return None;
    }
    let host = host.to_ascii_lowercase();
    if let Some(bucket) = host.strip_suffix(base_host).and_then(|rest| rest.strip_suffix('.')) {
        return Some(bucket.to_owned());
    }
    let (first, rest) = host.split_once('.')?;
    if let Some(region) = rest.strip_suffix("bcebos.com") {
        // `bj.bcebos.com` is a region's own name, `bucket.bj.bcebos.com` a bucket's.
        return region.ends_with('.').then(|| first.to_owned());
    }
    is_bucket(first).then(|| first.to_owned())
}

impl Request {
    /// Takes a request apart. Refuses only what has no path or query that can be read.
    ///
    /// # Errors
    /// `InvalidURI`.
    pub fn parse(parts: Parts, base_host: &str, is_bucket: impl Fn(&str) -> bool) -> Result<Self, ApiError> {
        let path = decode(parts.uri.path())?;
        let mut query = Vec::new();
        for item in parts.uri.query().unwrap_or_default().split('&').filter(|item| !item.is_empty()) {
            let (name, value) = item.split_once('=').unwrap_or((item, ""));
            query.push((decode(name)?, decode(value)?));
        }
        let host = text(&parts.headers, "host").unwrap_or_default();
        // The signature covers the path as it was sent; the version in front of it is no part of bucket or key.
        let below_root = without_version(path.strip_prefix('/').unwrap_or(&path)).to_owned();
        let (bucket, key) = match bucket_of_host(&host, base_host, is_bucket) {
            Some(bucket) => (bucket, below_root),
            None => match below_root.split_once('/') {
                Some((bucket, key)) => (bucket.to_owned(), key.to_owned()),
                None => (below_root, String::new()),
            },
        };
        let mut request =
            Self { call: Call::Unknown, method: parts.method, headers: parts.headers, path, query, bucket, key };
        request.call = request.classify();
        Ok(request)
    }

    /// The value of a parameter; empty for one without a value.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter that must be there.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn demanded(&self, name: &str) -> Result<String, ApiError> {
        self.parameter(name).map(str::to_owned).ok_or_else(|| ApiError::argument(format!("{name} is missing.")))
    }

    /// A parameter that is a number; `None` when missing or empty.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn number(&self, name: &str) -> Result<Option<u32>, ApiError> {
        self.parameter(name)
            .filter(|value| !value.is_empty())
            .map(|value| value.parse().map_err(|_| ApiError::argument(format!("{name}={value:?} is no such number."))))
            .transpose()
    }

    fn classify(&self) -> Call {
        let has = |name: &str| self.parameter(name).is_some();
        let copies = self.headers.contains_key("x-bce-copy-source");
        // Sub-resources that are not served must not be taken for the resource itself.
        const ELSEWHERE: [&str; 27] = [
            "acl",
            "fetch",
            "symlink",
            "versions",
            "versioning",
            "cors",
            "logging",
            "website",
            "encryption",
            "replication",
            "replicationProgress",
            "inventory",
            "trash",
            "quota",
            "notification",
            "mirroring",
            "tagging",
            "objectlock",
            "extendobjectlock",
            "completeobjectlock",
            "copyrightProtection",
            "storageClass",
            "select",
            "restore",
            "versionId",
            "userQuota",
            "requestPayment",
        ];
        if self.method == Method::POST && has("restore") && !self.key.is_empty() {
            return Call::RestoreObject;
        }
        let appends = self.method == Method::POST && has("append");
        let elsewhere = (has("append") || has("offset")) && !appends;
        if elsewhere || ELSEWHERE.iter().any(|name| has(name)) || self.headers.contains_key("x-bce-rename-key") {
            return Call::Unknown;
        }
        let method = self.method.as_str();
        if self.bucket.is_empty() {
            return if method == "GET" && self.key.is_empty() { Call::ListBuckets } else { Call::Unknown };
        }
        if self.key.is_empty() {
            return match method {
                "GET" if has("location") => Call::GetBucketLocation,
                "GET" if has("lifecycle") => Call::GetBucketLifecycle,
                "GET" if has("uploads") => Call::ListMultipartUploads,
                "GET" => Call::ListObjects,
                "PUT" if has("lifecycle") => Call::PutBucketLifecycle,
                "PUT" => Call::PutBucket,
                "HEAD" => Call::HeadBucket,
                "DELETE" if has("lifecycle") => Call::DeleteBucketLifecycle,
                "DELETE" => Call::DeleteBucket,
                "POST" if has("delete") => Call::DeleteMultipleObjects,
                _ => Call::Unknown,
            };
        }
        match method {
            "PUT" if has("partNumber") || has("uploadId") => {
                if copies {
                    Call::UploadPartCopy
                } else {
                    Call::UploadPart
                }
            }
            "PUT" if copies => Call::CopyObject,
            "PUT" => Call::PutObject,
            "GET" if has("uploadId") => Call::ListParts,
            "GET" => Call::GetObject,
            "HEAD" => Call::HeadObject,
            "POST" if has("append") => Call::AppendObject,
            "POST" if has("uploads") => Call::InitiateMultipartUpload,
            "POST" if has("uploadId") => Call::CompleteMultipartUpload,
            "DELETE" if has("uploadId") => Call::AbortMultipartUpload,
            "DELETE" => Call::DeleteObject,
            _ => Call::Unknown,
        }
    }

    /// Whether the key is one that BOS takes.
    ///
    /// # Errors
    /// `InvalidObjectName`, `InvalidURI`.
    pub fn check_key(&self) -> Result<(), ApiError> {
        check_key(&self.key)
    }

    /// The announced length of the body.
    ///
    /// # Errors
    /// `MissingContentLength`, `InvalidArgument`.
    pub fn content_length(&self) -> Result<u64, ApiError> {
        match text(&self.headers, "content-length") {
            None => Err(ApiError::new(
                http::StatusCode::LENGTH_REQUIRED,
                "MissingContentLength",
                "You must provide the Content-Length HTTP header.",
            )),
            Some(value) => {
                value.trim().parse().map_err(|_| ApiError::argument(format!("Content-Length {value:?} is no number.")))
            }
        }
    }

    /// Checks the signature, in the header or in the parameter of a link.
    ///
    /// # Errors
    /// What BOS answers to bad ones.
    pub fn check_signature(&self, credentials: &Credentials) -> Result<(), ApiError> {
        let in_header = text(&self.headers, "authorization");
        let is_link = in_header.is_none();
        let in_query = self.query.iter().find(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        let Some(value) = in_header.or_else(|| in_query.map(|(_, value)| value.clone())) else {
            return Err(ApiError::denied("AccessDenied", "Access Denied: the request is not signed."));
        };
        let received = ReceivedAuthorization::parse(&value).map_err(|error| {
            ApiError::bad("InvalidHTTPAuthHeader", format!("The Authorization is invalid: {error}."))
        })?;
        if received.access_key_id != credentials.access_key_id {
            return Err(ApiError::denied(
                "InvalidAccessKeyId",
                "The Access Key ID you provided does not exist in our records.",
            ));
        }
        self.check_time(&received, is_link)?;
        let mut headers = Vec::with_capacity(self.headers.len());
        for name in self.headers.keys() {
            headers.push((name.as_str().to_owned(), text(&self.headers, name.as_str()).unwrap_or_default()));
        }
        let signed = &received.signed_headers;
        let host_signed = signed.is_empty() || signed.iter().any(|name| name == "host");
        let parts =
            SignedParts { method: self.method.as_str(), path: &self.path, query: &self.query, headers: &headers };
        if !host_signed || !received.is_signed_by(&credentials.secret_access_key, parts) {
            return Err(ApiError::denied(
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. Check your Secret \
                 Access Key and signing method; the host must be signed.",
            ));
        }
        if let Some(token) = &credentials.session_token {
            let sent = text(&self.headers, "x-bce-security-token");
            if sent.as_deref().or_else(|| self.parameter("x-bce-security-token")) != Some(token) {
                return Err(ApiError::bad("InvalidSessionToken", "The session token is missing, wrong or expired."));
            }
        }
        Ok(())
    }

    fn check_time(&self, received: &ReceivedAuthorization, is_link: bool) -> Result<(), ApiError> {
        if !is_link && !self.headers.contains_key("x-bce-date") && !self.headers.contains_key("date") {
            return Err(ApiError::bad("MissingDateHeader", "The request has neither x-bce-date nor Date."));
        }
        let now = Timestamp::now().sec;
        if received.expires_at_s().is_some_and(|end| end < now) {
            let date = crate::bos::sign::format_timestamp(received.signed_at_s);
            return Err(ApiError::bad("RequestExpired", format!("Request has expired. Timestamp date is {date}.")));
        }
        if received.signed_at_s > now + CLOCK_AHEAD_MAX_S {
            return Err(ApiError::denied(
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
            ));
        }
        Ok(())
    }

    /// Source bucket and key of a copy.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn copy_source(&self) -> Result<(String, String), ApiError> {
        let value = text(&self.headers, "x-bce-copy-source").unwrap_or_default();
        let path = value.split_once('?').map_or(value.as_str(), |(path, _)| path);
        let path = decode(path)?;
        match path.strip_prefix('/').unwrap_or(&path).split_once('/') {
            Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => Ok((bucket.to_owned(), key.to_owned())),
            _ => Err(ApiError::argument("x-bce-copy-source is not of the form /bucket/key.")),
        }
    }
}

/// See [`Request::check_key`].
fn check_key(key: &str) -> Result<(), ApiError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(ApiError::bad("InvalidObjectName", format!("A key has 1 to {KEY_BYTES_MAX} bytes.")));
    }
    if key.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(ApiError::bad("InvalidURI", "The request URI has a segment that is . or .."));
    }
    Ok(())
}

/// Whether `name` can name a bucket: `[a-z0-9-]`, begin and end alphanumeric, 3 to 63 characters (Go SDK).
pub fn is_bucket_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (3..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request {
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        Request::parse(parts, "localhost", |bucket| bucket == "known").unwrap()
    }

    #[test]
    fn bucket_and_key_come_from_the_path_or_from_the_host() {
        let target = |host: &str, uri: &str| {
            let request = parse("GET", uri, &[("host", host)]);
            (request.bucket, request.key)
        };
        let pair = |bucket: &str, key: &str| (bucket.to_owned(), key.to_owned());
        assert_eq!(target("127.0.0.1:80", "/bkt/a//b%20c"), pair("bkt", "a//b c"));
        assert_eq!(target("[::1]:80", "/bkt"), pair("bkt", ""));
        assert_eq!(target("localhost:80", "/bkt/"), pair("bkt", ""));
        assert_eq!(target("bkt.localhost:80", "/a/b"), pair("bkt", "a/b"));
        assert_eq!(target("bkt.bj.bcebos.com", "/%E7%9B%AE"), pair("bkt", "目"));
        assert_eq!(target("bj.bcebos.com", "/bkt/k"), pair("bkt", "k"));
        assert_eq!(target("known.example.org", "/k"), pair("known", "k"));
        assert_eq!(target("other.example.org", "/b/k"), pair("b", "k"));
    }

    #[test]
    fn a_version_in_front_of_the_path_is_no_part_of_bucket_or_key() {
        let target = |host: &str, uri: &str| {
            let request = parse("GET", uri, &[("host", host)]);
            (request.bucket, request.key)
        };
        let pair = |bucket: &str, key: &str| (bucket.to_owned(), key.to_owned());
        assert_eq!(target("bkt.bj.bcebos.com", "/v1/k"), pair("bkt", "k"));
        assert_eq!(target("bkt.bj.bcebos.com", "/v1"), pair("bkt", ""));
        assert_eq!(target("bkt.bj.bcebos.com", "/v1/v1/k"), pair("bkt", "v1/k"));
        assert_eq!(target("bkt.bj.bcebos.com", "/v1x/k"), pair("bkt", "v1x/k"));
        assert_eq!(target("127.0.0.1:80", "/v1/bkt/k"), pair("bkt", "k"));
        assert_eq!(target("127.0.0.1:80", "/v1/bkt/v1/k"), pair("bkt", "v1/k"));
        assert_eq!(target("127.0.0.1:80", "/bkt/v1/k"), pair("bkt", "v1/k"));
        assert_eq!(target("127.0.0.1:80", "/v1"), pair("", ""));
    }

    #[test]
    fn calls_are_told_apart() {
        let call = |method: &str, uri: &str| parse(method, uri, &[]).call;
        assert_eq!(call("GET", "/"), Call::ListBuckets);
        assert_eq!(call("GET", "//k"), Call::Unknown, "a key of no bucket");
        assert_eq!(call("GET", "/b?uploads"), Call::ListMultipartUploads);
        assert_eq!(call("GET", "/b/k?uploadId=1"), Call::ListParts);
        assert_eq!(call("POST", "/b/k?uploads="), Call::InitiateMultipartUpload);
        assert_eq!(call("PUT", "/b/k?acl"), Call::Unknown);
        assert_eq!(call("POST", "/b/k?append&offset=3"), Call::AppendObject);
        assert_eq!(call("PUT", "/b/k?append"), Call::Unknown);
        assert_eq!(call("GET", "/b/k?offset=3"), Call::Unknown);
        assert_eq!(call("PUT", "/b/k?partNumber=1&uploadId=2"), Call::UploadPart);
        let copy = [("x-bce-copy-source", "/b/a%20b?versionId=1")];
        assert_eq!(parse("PUT", "/b/k?partNumber=1&uploadId=2", &copy).call, Call::UploadPartCopy);
        let request = parse("PUT", "/b/k", &copy);
        assert_eq!(request.call, Call::CopyObject);
        assert_eq!(request.copy_source().unwrap(), ("b".to_owned(), "a b".to_owned()));
    }

    #[test]
    fn names() {
        assert!(is_bucket_name("abc") && is_bucket_name(&"a".repeat(63)));
        for bad in ["ab", "Abc", "a_b", "-ab", "ab-", "a.b", &"a".repeat(64)] {
            assert!(!is_bucket_name(bad), "{bad}");
        }
        assert_eq!(check_key(&"k".repeat(1025)).unwrap_err().code, "InvalidObjectName");
        assert_eq!(check_key("a/../b").unwrap_err().code, "InvalidURI");
        for good in ["///~`+_|!@#$%^&*()", "  ", " a ", "a//b", &"k".repeat(1024), "...", "v1"] {
            assert!(check_key(good).is_ok(), "{good}");
        }
    }
}
