//! Which BOS call a request is.

use std::fmt;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

/// The calls of the BOS API, as far as tests tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    ListBuckets,
    PutBucket,
    DeleteBucket,
    HeadBucket,
    /// `GET /?location`, `?lifecycle` and the like.
    BucketSetting,
    ListObjects,
    ListUploads,
    BatchDelete,
    HeadObject,
    GetObject,
    PutObject,
    CopyObject,
    RenameObject,
    DeleteObject,
    Initiate,
    UploadPart,
    UploadPartCopy,
    ListParts,
    Complete,
    Abort,
    Other,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A request as the proxy reads its head (path style).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Asked {
    pub call: Call,
    pub method: String,
    /// Path and query as they came.
    pub target: String,
    pub bucket: String,
    /// Decoded; empty for calls of a bucket.
    pub key: String,
    pub part: Option<u32>,
    pub upload_id: Option<String>,
    pub body_bytes: u64,
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
}

impl Asked {
    /// Classifies a request by method, target and headers (looked up by lowercase name).
    pub fn read<'h>(method: &str, target: &str, header: impl Fn(&str) -> Option<&'h str>) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
        let (bucket, key) = (decode(bucket), decode(key));
        let parameter = |name: &str| {
            query.split('&').find_map(|pair| {
                let (n, v) = pair.split_once('=').unwrap_or((pair, ""));
                (n == name).then(|| decode(v))
            })
        };
        let part = parameter("partNumber").and_then(|n| n.parse().ok());
        let upload_id = parameter("uploadId");
        let copies = header("x-bce-copy-source").is_some();
        let call = match (method, bucket.is_empty(), key.is_empty()) {
            ("GET", true, _) => Call::ListBuckets,
            (_, true, _) => Call::Other,
            ("HEAD", _, true) => Call::HeadBucket,
            ("GET", _, true) if parameter("uploads").is_some() => Call::ListUploads,
            ("GET", _, true) if parameter("location").or(parameter("lifecycle")).is_some() => Call::BucketSetting,
            ("GET", _, true) => Call::ListObjects,
            ("POST", _, true) if parameter("delete").is_some() => Call::BatchDelete,
            ("PUT", _, true) if query.is_empty() => Call::PutBucket,
            ("DELETE", _, true) if query.is_empty() => Call::DeleteBucket,
            (_, _, true) => Call::BucketSetting,
            ("HEAD", ..) => Call::HeadObject,
            ("GET", ..) if upload_id.is_some() => Call::ListParts,
            ("GET", ..) => Call::GetObject,
            ("PUT", ..) if part.is_some() && copies => Call::UploadPartCopy,
            ("PUT", ..) if part.is_some() => Call::UploadPart,
            ("PUT", ..) if copies => Call::CopyObject,
            ("PUT", ..) => Call::PutObject,
            ("POST", ..) if parameter("uploads").is_some() => Call::Initiate,
            ("POST", ..) if upload_id.is_some() => Call::Complete,
            ("POST", ..) if header("x-bce-rename-key").is_some() => Call::RenameObject,
            ("DELETE", ..) if upload_id.is_some() => Call::Abort,
            ("DELETE", ..) => Call::DeleteObject,
            _ => Call::Other,
        };
        Self {
            call,
            method: method.to_owned(),
            target: target.to_owned(),
            bucket,
            key,
            part,
            upload_id,
            body_bytes: header("content-length").and_then(|n| n.trim().parse().ok()).unwrap_or(0),
            if_match: header("if-match").map(str::to_owned),
            if_none_match: header("if-none-match").map(str::to_owned),
        }
    }
}
