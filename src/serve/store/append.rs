//! AppendObject: objects that grow in place.
//!
//! Those of several appends have an ETag that follows no rule here and no MD5: that would need the bytes once more.

use http::StatusCode;

use super::objects::now_s;
use super::records::ObjectRecord;
use super::tables::Tx;
use super::{Result, Store, Stored};
use crate::bos::client::ObjectHeaders;
use crate::object::{Checksum, Crcs, Md5};
use crate::serve::error::ApiError;

/// Bytes for the end of an appendable object.
pub struct Append {
    /// Of the bytes.
    pub checksum: Checksum,
    /// The bytes.
    pub stored: Stored,
    /// Where they go; `None` and 0 on a key without an object: a new object, in place of whatever is there.
    pub offset: Option<u64>,
    /// Headers and metadata, which only the first append sets.
    pub headers: ObjectHeaders,
}

/// The refusal to copy an appendable object (live test).
pub fn not_allowed() -> ApiError {
    ApiError::bad("NotAllowCopy", "An appendable object cannot be copied.")
}

impl Store {
    /// AppendObject.
    pub async fn append_object(&self, bucket: String, key: String, append: Append) -> Result<ObjectRecord> {
        self.write(move |tx| tx.append(&bucket, &key, append)).await
    }
}

impl Tx<'_> {
    fn append(&mut self, bucket: &str, key: &str, append: Append) -> Result<ObjectRecord> {
        self.bucket(bucket)?;
        let record = match (append.offset, self.object(bucket, key)?) {
            (None | Some(0), None) | (None, Some(_)) => ObjectRecord {
                restored_until: 0,
                size: append.checksum.len,
                etag: append.checksum.md5.to_hex(),
                md5: Some(append.checksum.md5),
                crcs: Some(append.checksum.crcs),
                crc32c_shown: false,
                sha256: None,
                modified: now_s(),
                headers: append.headers,
                appendable: true,
                place: self.adopt(append.stored)?,
            },
            (Some(_), None) => return Err(ApiError::no_such_key()),
            (Some(_), Some(object)) if !object.appendable => {
                return Err(ApiError::denied("ObjectUnappendable", "The object is not appendable."));
            }
            (Some(offset), Some(object)) if offset != object.size => {
                let message = format!("The offset is {offset}, the object has {} bytes.", object.size);
                return Err(ApiError::new(StatusCode::CONFLICT, "OffsetIncorrect", message));
            }
            (Some(_), Some(object)) => {
                let added = self.adopt(append.stored)?;
                let mut extents = self.extents_of(&object.place)?;
                extents.extend(self.extents_of(&added)?);
                // Its own references first, so that none of the files is let go in between.
                let place = self.compose(extents)?;
                self.release(&added)?;
                let parts = format!("{} {}", object.etag, append.checksum.md5.to_hex());
                ObjectRecord {
                    size: object.size + append.checksum.len,
                    etag: format!("-{}", Md5::of(parts.as_bytes()).to_hex()),
                    md5: None,
                    crcs: object.crcs.map(|crcs: Crcs| crcs.then(append.checksum.crcs, append.checksum.len)),
                    modified: now_s(),
                    place,
                    ..object
                }
            }
        };
        self.put_object(bucket, key, &record)?;
        Ok(record)
    }
}
