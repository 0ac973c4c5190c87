//! What requests do to unfinished uploads.

use super::objects::{SIMPLE_BYTES_MAX, now_s, present};
use super::records::{ObjectRecord, PartRecord, UploadRecord};
use super::tables::{PARTS, Snapshot, Tx};
use super::{Result, Store, Stored};
use crate::bos::client::ObjectHeaders;
use crate::object::{Checksum, Crcs, ETag, Md5, composed_etag};
use crate::serve::conditions::{Conditions, Present};
use crate::serve::error::ApiError;
use crate::serve::headers::Digests;

/// Every part but the last has at least this many bytes (BOS docs, UploadPart, since 2025).
const PART_BYTES_MIN: u64 = 100 << 10;
/// The older rule: at least this, and a multiple of [`OLD_PART_BYTES_STEP`].
const OLD_PART_BYTES_MIN: u64 = 5 << 20;
const OLD_PART_BYTES_STEP: u64 = 1 << 20;

/// A CompleteMultipartUpload.
pub struct CompleteRequest {
    /// Number and ETag without quotes, as sent.
    pub parts: Vec<(u32, String)>,
    /// User metadata by name without prefix.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// On the present object.
    pub conditions: Conditions,
    /// CRCs of the whole object as sent, and whether CRC32C is asked for.
    pub digests: Digests,
    /// Demand the older part size rule.
    pub old_part_rule: bool,
    /// Give the object an ETag that follows no rule.
    pub opaque_etag: bool,
}

/// A received part.
pub struct NewPart {
    /// Of the content.
    pub checksum: Checksum,
    /// Without quotes.
    pub etag: String,
    /// Asked for or sent.
    pub crc32c_shown: bool,
    /// The bytes.
    pub stored: Stored,
}

/// A page of ListParts.
pub struct PartsPage {
    /// The upload.
    pub upload: UploadRecord,
    /// Parts in order.
    pub parts: Vec<(u32, PartRecord)>,
    /// Whether more follow.
    pub truncated: bool,
}

impl Store {
    /// InitiateMultipartUpload.
    pub async fn initiate(&self, bucket: String, key: String, headers: ObjectHeaders) -> Result<String> {
        let upload_id = hex::encode(rand::random::<[u8; 16]>());
        let id = upload_id.clone();
        self.write(move |tx| {
            tx.bucket(&bucket)?;
            tx.put_upload(&bucket, &key, &id, &UploadRecord { initiated: now_s(), headers })
        })
        .await?;
        Ok(upload_id)
    }

    /// UploadPart.
    pub async fn put_part(
        &self,
        bucket: String,
        key: String,
        upload_id: String,
        number: u32,
        part: NewPart,
    ) -> Result<()> {
        self.write(move |tx| {
            tx.upload(&bucket, &key, &upload_id)?;
            let record = PartRecord {
                size: part.checksum.len,
                etag: part.etag,
                crcs: Some(part.checksum.crcs),
                crc32c_shown: part.crc32c_shown,
                modified: now_s(),
                place: tx.adopt(part.stored)?,
            };
            tx.put_part(&upload_id, number, &record)
        })
        .await
    }

    /// UploadPartCopy of `range` (first and last byte; none: all) of the source. No byte moves.
    pub async fn copy_part(
        &self,
        target: (String, String, String, u32),
        source: (String, String),
        range: Option<(u64, u64)>,
        conditions: Conditions,
        crc32c_asked: bool,
        appendable_too: bool,
    ) -> Result<PartRecord> {
        self.write(move |tx| {
            let (bucket, key, upload_id, number) = target;
            tx.upload(&bucket, &key, &upload_id)?;
            tx.bucket(&source.0)?;
            let object = tx.object(&source.0, &source.1)?.ok_or_else(ApiError::no_such_key)?;
            conditions.check_source(Present { etag: &object.etag, modified: object.modified })?;
            if object.is_archived(now_s()) {
                return Err(ApiError::archived());
            }
            if object.appendable && !appendable_too {
                return Err(super::append::not_allowed());
            }
            let part = tx.part_of(&object, range, crc32c_asked)?;
            tx.put_part(&upload_id, number, &part)?;
            Ok(part)
        })
        .await
    }

    /// CompleteMultipartUpload: the object is the list of its parts' extents.
    pub async fn complete(
        &self,
        bucket: String,
        key: String,
        upload_id: String,
        request: CompleteRequest,
    ) -> Result<ObjectRecord> {
        self.write(move |tx| tx.complete(&bucket, &key, &upload_id, request)).await
    }

    /// AbortMultipartUpload.
    pub async fn abort(&self, bucket: String, key: String, upload_id: String) -> Result<()> {
        self.write(move |tx| {
            tx.upload(&bucket, &key, &upload_id)?;
            tx.remove_upload(&bucket, &key, &upload_id)
        })
        .await
    }
}

impl Snapshot {
    /// ListParts: at most `max` parts with numbers above `marker`.
    pub fn list_parts(&self, bucket: &str, key: &str, upload_id: &str, marker: u32, max: usize) -> Result<PartsPage> {
        let upload = self.upload(bucket, key, upload_id)?;
        let table = self.table(PARTS)?;
        let from = (upload_id, marker.saturating_add(1));
        let mut parts = Vec::new();
        for row in table.range(from..=(upload_id, u32::MAX)).map_err(ApiError::internal)? {
            let (number, part) = row.map_err(ApiError::internal)?;
            if parts.len() == max {
                return Ok(PartsPage { upload, parts, truncated: true });
            }
            let part = serde_json::from_slice(part.value()).map_err(ApiError::internal)?;
            parts.push((number.value().1, part));
        }
        Ok(PartsPage { upload, parts, truncated: false })
    }
}

impl Tx<'_> {
    /// The part that a range of `object` makes. A range has an ETag of its own and no CRCs: nothing is read for it.
    fn part_of(&mut self, object: &ObjectRecord, range: Option<(u64, u64)>, crc32c_asked: bool) -> Result<PartRecord> {
        let (start, end) = match range {
            None => (0, object.size),
            Some((first, last)) if first <= last && last < object.size => (first, last + 1),
            Some((first, last)) => {
                return Err(ApiError::argument(format!(
                    "The range {first}-{last} is not within the copy source of {} bytes.",
                    object.size
                )));
            }
        };
        if end - start > SIMPLE_BYTES_MAX {
            return Err(ApiError::bad("EntityTooLarge", "A copied part is larger than 5 GB."));
        }
        let whole = start == 0 && end == object.size;
        let etag = if whole && !object.etag.starts_with('-') {
            object.etag.clone()
        } else {
            Md5::of(format!("{} {start} {end}", object.etag).as_bytes()).to_hex()
        };
        let extents = self.extents_in(&object.place, start, end)?;
        Ok(PartRecord {
            size: end - start,
            etag,
            crcs: if whole { object.crcs } else { None },
            crc32c_shown: whole && (object.crc32c_shown || crc32c_asked),
            modified: now_s(),
            place: self.compose(extents)?,
        })
    }

    fn complete(&mut self, bucket: &str, key: &str, upload_id: &str, request: CompleteRequest) -> Result<ObjectRecord> {
        let upload = self.upload(bucket, key, upload_id)?;
        request.conditions.check_write(present(self.object(bucket, key)?.as_ref()))?;
        let parts = self.listed_parts(upload_id, &request)?;
        let mut crcs = Some(Crcs::default());
        let mut size = 0;
        for part in &parts {
            crcs = crcs.zip(part.crcs).map(|(all, next)| all.then(next, part.size));
            size += part.size;
        }
        if let Some(crcs) = crcs {
            request.digests.check_crcs(&crcs)?;
        }
        let tags: Vec<ETag> = parts.iter().map(|part| ETag::new(&part.etag)).collect();
        let etag = if request.opaque_etag && parts.len() > 1 {
            format!("-{}", hex::encode(rand::random::<[u8; 16]>()))
        } else {
            composed_etag(tags.iter()).as_str().to_owned()
        };
        let asked = request.digests.crc32c_flag || request.digests.crc32c.is_some();
        let mut extents = Vec::new();
        for part in &parts {
            extents.extend(self.extents_of(&part.place)?);
        }
        let mut headers = upload.headers;
        headers.metadata = request.metadata;
        let record = ObjectRecord {
            restored_until: 0,
            size,
            etag,
            md5: None,
            crcs,
            crc32c_shown: asked && crcs.is_some() && parts.iter().all(|part| part.crc32c_shown),
            sha256: None,
            modified: now_s(),
            headers,
            appendable: false,
            // Its own references first, so that none of the parts' files is let go in between.
            place: self.compose(extents)?,
        };
        self.put_object(bucket, key, &record)?;
        self.remove_upload(bucket, key, upload_id)?;
        Ok(record)
    }

    /// The parts that Complete lists, or why it is refused.
    fn listed_parts(&self, upload_id: &str, request: &CompleteRequest) -> Result<Vec<PartRecord>> {
        if request.parts.is_empty() {
            return Err(ApiError::bad("MalformedJSON", "The list of parts is empty."));
        }
        if request.parts.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(ApiError::bad(
                "InvalidPartOrder",
                "The list of parts was not in ascending order. Parts must be ordered by part number.",
            ));
        }
        let mut parts = Vec::with_capacity(request.parts.len());
        for (number, etag) in &request.parts {
            match self.part(upload_id, *number)? {
                Some(part) if part.etag.eq_ignore_ascii_case(etag) => parts.push(part),
                Some(_) => return Err(invalid_part(*number, "has another ETag")),
                None => return Err(invalid_part(*number, "was not uploaded")),
            }
        }
        let (min, step) =
            if request.old_part_rule { (OLD_PART_BYTES_MIN, OLD_PART_BYTES_STEP) } else { (PART_BYTES_MIN, 1) };
        let early = parts.iter().zip(&request.parts).take(parts.len() - 1);
        for (part, (number, _)) in early {
            if part.size < min || part.size % step != 0 {
                return Err(ApiError::bad(
                    "EntityTooSmall",
                    format!(
                        "Your proposed upload is smaller than the minimum allowed size: part {number} has {} bytes.",
                        part.size
                    ),
                ));
            }
        }
        Ok(parts)
    }
}

fn invalid_part(number: u32, why: &str) -> ApiError {
    ApiError::bad("InvalidPart", format!("One or more of the specified parts could not be found: part {number} {why}."))
}
