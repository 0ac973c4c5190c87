//! What requests do to objects and buckets.

use super::records::{BucketRecord, ObjectRecord};
use super::tables::Tx;
use super::{Result, Store, Stored};
use crate::bos::client::ObjectHeaders;
use crate::object::{Checksum, Timestamp};
use crate::serve::conditions::{Conditions, Present};
use crate::serve::error::ApiError;
use http::StatusCode;
use redb::ReadableTable as _;

/// Most buckets of one server, as of one BOS account.
const BUCKETS_MAX: usize = 100;
/// Largest object that one PutObject or CopyObject makes, in bytes (BOS docs).
pub const SIMPLE_BYTES_MAX: u64 = 5 << 30;

/// A received object.
pub struct NewObject {
    /// Of the content.
    pub checksum: Checksum,
    /// Without quotes.
    pub etag: String,
    /// Whether the ETag is the MD5, so that it can be shown as one.
    pub md5_shown: bool,
    /// Asked for or sent.
    pub crc32c_shown: bool,
    /// As sent and checked, in hex.
    pub sha256: Option<String>,
    /// Headers and metadata.
    pub headers: ObjectHeaders,
    /// The bytes.
    pub stored: Stored,
}

/// What a copy is to be besides a copy.
#[derive(Clone, Debug, Default)]
pub struct CopyWishes {
    /// Headers and metadata instead of the source's.
    pub replace: Option<ObjectHeaders>,
    /// Storage class.
    pub storage_class: Option<String>,
    /// Its CRC32C is to be shown.
    pub crc32c_asked: bool,
    /// An appendable object may be copied onto itself.
    pub appendable_onto_itself: bool,
}

/// One key of a batch delete that was not deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The key.
    pub key: String,
    /// Whether there was an object.
    pub existed: bool,
}

/// An object, as conditions see it.
pub fn present(object: Option<&ObjectRecord>) -> Option<Present<'_>> {
    object.map(|object| Present { etag: &object.etag, modified: object.modified })
}

/// Now, in seconds since 1970.
pub fn now_s() -> i64 {
    Timestamp::now().sec
}

impl Store {
    /// PutBucket.
    pub async fn create_bucket(&self, bucket: String) -> Result<()> {
        self.write(move |tx| tx.create_bucket(&bucket)).await
    }

    /// PutBucket, for threads outside a runtime.
    pub fn create_bucket_blocking(&self, bucket: &str) -> Result<()> {
        let bucket = bucket.to_owned();
        self.write_blocking(move |tx| tx.create_bucket(&bucket))
    }

    /// DeleteBucket.
    pub async fn delete_bucket(&self, bucket: String) -> Result<()> {
        self.write(move |tx| tx.delete_bucket(&bucket)).await
    }

    /// Sets or takes away the lifecycle document.
    pub async fn set_lifecycle(&self, bucket: String, document: Option<serde_json::Value>) -> Result<()> {
        self.write(move |tx| {
            let mut record = tx.bucket(&bucket)?;
            record.lifecycle = document;
            tx.put_bucket(&bucket, &record)
        })
        .await
    }

    /// Whether PutObject would be taken now; to refuse before the body is received.
    pub fn check_put(&self, bucket: &str, key: &str, conditions: &Conditions) -> Result<()> {
        let snapshot = self.snapshot()?;
        let object = match snapshot.object(bucket, key) {
            Ok(object) => Some(object),
            Err(error) if error.code == "NoSuchKey" => None,
            Err(error) => return Err(error),
        };
        conditions.check_write(present(object.as_ref()))
    }

    /// PutObject.
    pub async fn put_object(
        &self,
        bucket: String,
        key: String,
        object: NewObject,
        conditions: Conditions,
    ) -> Result<ObjectRecord> {
        self.write(move |tx| tx.store_object(&bucket, &key, object, &conditions)).await
    }

    /// DeleteObject. `false`: there was none.
    pub async fn delete_object(&self, bucket: String, key: String) -> Result<bool> {
        self.write(move |tx| {
            tx.bucket(&bucket)?;
            tx.remove_object(&bucket, &key)
        })
        .await
    }

    /// DeleteMultipleObjects, in the order given.
    pub async fn delete_objects(&self, bucket: String, keys: Vec<String>) -> Result<Vec<Deleted>> {
        self.write(move |tx| {
            tx.bucket(&bucket)?;
            keys.into_iter().map(|key| Ok(Deleted { existed: tx.remove_object(&bucket, &key)?, key })).collect()
        })
        .await
    }

    /// CopyObject: no byte moves.
    pub async fn copy_object(
        &self,
        source: (String, String),
        source_conditions: Conditions,
        target: (String, String),
        wishes: CopyWishes,
    ) -> Result<ObjectRecord> {
        self.write(move |tx| {
            tx.bucket(&target.0)?;
            tx.bucket(&source.0)?;
            let mut object = tx.object(&source.0, &source.1)?.ok_or_else(ApiError::no_such_key)?;
            source_conditions.check_source(Present { etag: &object.etag, modified: object.modified })?;
            if object.is_archived(now_s()) {
                return Err(ApiError::archived());
            }
            if object.appendable && !(wishes.appendable_onto_itself && source == target) {
                return Err(super::append::not_allowed());
            }
            object.restored_until = 0;
            if object.size > SIMPLE_BYTES_MAX {
                return Err(ApiError::bad(
                    "EntityTooLarge",
                    "The copy source is larger than 5 GB; copy it in parts (UploadPartCopy).",
                ));
            }
            if source == target && wishes.replace.is_none() && wishes.storage_class.is_none() {
                return Err(ApiError::argument(
                    "An object is copied onto itself only with x-bce-metadata-directive: replace.",
                ));
            }
            if let Some(headers) = wishes.replace {
                object.headers = headers;
            }
            if wishes.storage_class.is_some() {
                object.headers.storage_class = wishes.storage_class;
            }
            object.crc32c_shown |= wishes.crc32c_asked;
            object.modified = now_s();
            tx.retain(&object.place)?;
            tx.put_object(&target.0, &target.1, &object)?;
            Ok(object)
        })
        .await
    }

    /// RestoreObject: the bytes of an archived object can be read for so many days.
    pub async fn restore_object(&self, bucket: String, key: String, days: u32) -> Result<()> {
        self.write(move |tx| {
            tx.bucket(&bucket)?;
            let mut object = tx.object(&bucket, &key)?.ok_or_else(ApiError::no_such_key)?;
            if !object.is_archived(now_s()) {
                return Err(ApiError::argument("The object is not archived, or restored already."));
            }
            object.restored_until = now_s() + i64::from(days) * 24 * 3600;
            tx.retain(&object.place)?;
            tx.put_object(&bucket, &key, &object)
        })
        .await
    }

    /// An object of `size` zeros whose bytes are stored nowhere; for tests with huge objects. Its ETag is opaque and it
    /// has no CRCs.
    pub fn put_sparse(&self, bucket: &str, key: &str, size: u64) -> Result<()> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        self.write_blocking(move |tx| {
            tx.bucket(&bucket)?;
            let etag = format!("-{}", hex::encode(rand::random::<[u8; 16]>()));
            let place = tx.adopt(Stored::Zeros(size))?;
            let record = ObjectRecord {
                restored_until: 0,
                size,
                etag,
                md5: None,
                crcs: None,
                crc32c_shown: false,
                sha256: None,
                modified: now_s(),
                headers: ObjectHeaders::default(),
                appendable: false,
                place,
            };
            tx.put_object(&bucket, &key, &record)
        })
    }
}

impl Tx<'_> {
    fn create_bucket(&mut self, bucket: &str) -> Result<()> {
        if self.bucket(bucket).is_ok() {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "BucketAlreadyExists",
                "The requested bucket name is not available.",
            ));
        }
        if self.buckets.iter().map_err(ApiError::internal)?.count() >= BUCKETS_MAX {
            return Err(ApiError::bad("TooManyBuckets", format!("There are {BUCKETS_MAX} buckets already.")));
        }
        self.put_bucket(bucket, &BucketRecord { created: now_s(), lifecycle: None })
    }

    fn delete_bucket(&mut self, bucket: &str) -> Result<()> {
        self.bucket(bucket)?;
        let first = self.objects.range((bucket, "")..).map_err(ApiError::internal)?.next();
        let has_object = first.transpose().map_err(ApiError::internal)?.is_some_and(|(key, _)| key.value().0 == bucket);
        let first = self.uploads.range((bucket, "", "")..).map_err(ApiError::internal)?.next();
        let has_upload = first.transpose().map_err(ApiError::internal)?.is_some_and(|(key, _)| key.value().0 == bucket);
        if has_object || has_upload {
            let what = if has_object { "objects" } else { "unfinished uploads" };
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "BucketNotEmpty",
                format!("The bucket you tried to delete still has {what}."),
            ));
        }
        self.buckets.remove(bucket).map(drop).map_err(ApiError::internal)
    }

    fn store_object(
        &mut self,
        bucket: &str,
        key: &str,
        object: NewObject,
        conditions: &Conditions,
    ) -> Result<ObjectRecord> {
        self.bucket(bucket)?;
        conditions.check_write(present(self.object(bucket, key)?.as_ref()))?;
        let record = ObjectRecord {
            restored_until: 0,
            size: object.checksum.len,
            etag: object.etag,
            md5: object.md5_shown.then_some(object.checksum.md5),
            crcs: Some(object.checksum.crcs),
            crc32c_shown: object.crc32c_shown,
            sha256: object.sha256,
            modified: now_s(),
            headers: object.headers,
            appendable: false,
            place: self.adopt(object.stored)?,
        };
        self.put_object(bucket, key, &record)?;
        Ok(record)
    }
}
