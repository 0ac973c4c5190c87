//! One method per BOS call.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::error::BosError;
use crate::object::{ByteRange, Condition, ETag, Md5, ObjectKey, PartNumber, UploadId};

type Result<T, E = BosError> = std::result::Result<T, E>;

/// A request body that can be read again for every try, in slices, so that memory does not grow with its size.
pub trait BodySource: Send + Sync + 'static {
    /// Exact number of bytes.
    fn len(&self) -> u64;
    /// Whether it has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buf` from `offset` on; called from a blocking thread.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// The body of a PutObject or UploadPart.
#[derive(Clone)]
pub enum Body {
    /// Held in memory.
    Bytes(Bytes),
    /// Read in slices while it is sent.
    Source(Arc<dyn BodySource>),
}

/// Where and as whom a client speaks.
#[derive(Clone, Debug)]
pub struct BosClientConfig {
    // filled in by the client's author: endpoint, bucket, credentials provider, path style, retry policy, max connections
}

/// What HEAD, or the headers of GET, tell of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Size in bytes of the whole object.
    pub size: u64,
    /// Which content.
    pub etag: ETag,
    /// Seconds since 1970.
    pub last_modified: i64,
    /// `x-bce-content-crc32c`, where BOS gives it.
    pub crc32c: Option<u32>,
    /// `x-bce-content-crc32`.
    pub crc32: Option<u32>,
    /// `x-bce-content-crc64ecma`.
    pub crc64: Option<u64>,
    /// What the object was stored with.
    pub headers: ObjectHeaders,
}

/// Headers that are stored with an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ObjectHeaders {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Cache-Control`.
    pub cache_control: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// `Content-Disposition`.
    pub content_disposition: Option<String>,
    /// `Expires`, only where an owner set it (BOS makes one up otherwise).
    pub expires: Option<String>,
    /// `x-bce-storage-class`.
    pub storage_class: Option<String>,
    /// `x-bce-meta-NAME` by NAME in lowercase; ASCII values.
    pub metadata: BTreeMap<String, String>,
}

/// What BOS says of a body it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredOutcome {
    /// ETag of the object or part.
    pub etag: ETag,
    /// CRC headers of the answer, where given.
    pub crc32c: Option<u32>,
    /// See `crc32c`.
    pub crc32: Option<u32>,
    /// See `crc32c`.
    pub crc64: Option<u64>,
}

/// One page of ListObjects.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Objects, in order.
    pub objects: Vec<ListedObject>,
    /// Common prefixes, each ending in the delimiter.
    pub prefixes: Vec<String>,
    /// Where the next page starts; `None` at the end.
    pub next_marker: Option<String>,
}

/// An object in a listing. The key is as listed: not every key is an [`ObjectKey`].
#[derive(Clone, Debug)]
pub struct ListedObject {
    /// Key as listed.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// Which content.
    pub etag: ETag,
    /// Seconds since 1970.
    pub last_modified: i64,
    /// `STANDARD`, ...
    pub storage_class: Option<String>,
}

/// A part that BOS holds (ListParts).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPart {
    /// Its number.
    pub number: PartNumber,
    /// Its size in bytes.
    pub size: u64,
    /// Its ETag.
    pub etag: ETag,
}

/// An unfinished upload (ListMultipartUploads). The key is as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedUpload {
    /// Key as listed.
    pub key: String,
    /// Upload ID.
    pub upload_id: UploadId,
    /// When it was initiated, seconds since 1970.
    pub initiated: i64,
}

/// One page of ListMultipartUploads.
#[derive(Clone, Debug, Default)]
pub struct UploadsPage {
    /// Uploads, by key.
    pub uploads: Vec<ListedUpload>,
    /// `keyMarker` (and `uploadIdMarker`, where BOS gave one) of the next page; `None` at the end.
    pub next: Option<(String, Option<String>)>,
}

/// An answered GetObject: headers, then the body as it comes. Counts bytes: a body shorter or longer than announced is
/// an error.
pub struct GetObject {
    /// Headers. `meta.size` is the size of the whole object (from Content-Range when partial).
    pub meta: ObjectMeta,
}

impl GetObject {
    /// The next piece of the body; `None` after the last.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        todo!()
    }
}

/// A client of one bucket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BosClient {
    config: Arc<BosClientConfig>,
}

impl BosClient {
    /// `HEAD /`.
    pub async fn head_bucket(&self) -> Result<BucketInfo> {
        todo!()
    }
    /// `HEAD /key`.
    pub async fn head_object(&self, _key: &ObjectKey) -> Result<ObjectMeta> {
        todo!()
    }
    /// `GET /key`, whole or `range` (which must not be empty).
    pub async fn get_object(
        &self,
        _key: &ObjectKey,
        _range: Option<ByteRange>,
        _if_match: Option<&ETag>,
    ) -> Result<GetObject> {
        todo!()
    }
    /// `GET /key` of `range`, gathered; retried as a whole. Exactly `range.len()` bytes.
    pub async fn get_range(&self, _key: &ObjectKey, _range: ByteRange, _if_match: Option<&ETag>) -> Result<Bytes> {
        todo!()
    }
    /// PutObject, with Content-MD5 and the CRC32C flag. Retried where that cannot publish twice: `idempotent` says that a
    /// repeat after an unanswered try is harmless (false with If-None-Match or If-Match, where the caller settles by mark).
    pub async fn put_object(
        &self,
        _key: &ObjectKey,
        _body: Body,
        _md5: &Md5,
        _headers: &ObjectHeaders,
        _condition: &Condition,
    ) -> Result<StoredOutcome> {
        todo!()
    }
    /// DeleteObject. `false`: there was none (404), which is fine.
    pub async fn delete_object(&self, _key: &ObjectKey) -> Result<bool> {
        todo!()
    }
    /// DeleteMultipleObjects, at most 1000 keys. Returns the failures (key, code, message); NoSuchKey is none.
    pub async fn delete_objects(&self, _keys: &[ObjectKey]) -> Result<Vec<(String, String, String)>> {
        todo!()
    }
    /// CopyObject within the bucket. `replace`: new headers and metadata instead of the source's (needed when `dst == src`).
    pub async fn copy_object(
        &self,
        _src: &ObjectKey,
        _if_match: Option<&ETag>,
        _dst: &ObjectKey,
        _replace: Option<&ObjectHeaders>,
    ) -> Result<ETag> {
        todo!()
    }
    /// ListObjects, one page of at most `max_keys` (1..=1000).
    pub async fn list_objects(
        &self,
        _prefix: &str,
        _delimiter: Option<char>,
        _marker: Option<&str>,
        _max_keys: u32,
    ) -> Result<ListPage> {
        todo!()
    }
    /// InitiateMultipartUpload. Never repeated after an ambiguous failure (`BosError::is_ambiguous`).
    pub async fn initiate(&self, _key: &ObjectKey, _headers: &ObjectHeaders) -> Result<UploadId> {
        todo!()
    }
    /// UploadPart, with Content-MD5 and the CRC32C flag.
    pub async fn upload_part(
        &self,
        _key: &ObjectKey,
        _upload: &UploadId,
        _part: PartNumber,
        _body: Body,
        _md5: &Md5,
    ) -> Result<StoredOutcome> {
        todo!()
    }
    /// UploadPartCopy of `range` of `src`.
    pub async fn upload_part_copy(
        &self,
        _key: &ObjectKey,
        _upload: &UploadId,
        _part: PartNumber,
        _src: &ObjectKey,
        _range: ByteRange,
        _if_match: Option<&ETag>,
    ) -> Result<ETag> {
        todo!()
    }
    /// CompleteMultipartUpload with `headers.metadata`, the condition and the CRC32C flag. Never repeated after an
    /// ambiguous failure.
    pub async fn complete(
        &self,
        _key: &ObjectKey,
        _upload: &UploadId,
        _parts: &[(PartNumber, ETag)],
        _headers: &ObjectHeaders,
        _condition: &Condition,
    ) -> Result<StoredOutcome> {
        todo!()
    }
    /// AbortMultipartUpload. `false`: NoSuchUpload.
    pub async fn abort(&self, _key: &ObjectKey, _upload: &UploadId) -> Result<bool> {
        todo!()
    }
    /// ListParts, all pages.
    pub async fn list_parts(&self, _key: &ObjectKey, _upload: &UploadId) -> Result<Vec<ListedPart>> {
        todo!()
    }
    /// ListMultipartUploads, one page.
    pub async fn list_uploads(&self, _prefix: &str, _next: Option<&(String, Option<String>)>) -> Result<UploadsPage> {
        todo!()
    }
    /// Days after which a lifecycle rule of the bucket aborts unfinished uploads under `prefix`; `None`: no such rule.
    pub async fn abort_rule_days(&self, _prefix: &str) -> Result<Option<u32>> {
        todo!()
    }
}

/// What HEAD of a bucket tells.
#[derive(Clone, Debug, Default)]
pub struct BucketInfo {
    /// `x-bce-bucket-region`.
    pub region: Option<String>,
    /// Hierarchical namespace (`x-bce-bucket-type: namespace`).
    pub hierarchical: bool,
}
