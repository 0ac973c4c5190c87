//! What calls take and give: the domain types of [`client`](super::client), which re-exports them.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use crate::object::{Checksum, ETag, PartNumber, UploadId};

/// What HEAD, or the headers of GET, tell of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Size in bytes of the whole object.
    pub size: u64,
    /// Which content.
    pub etag: ETag,
    /// Seconds since 1970; 0 where BOS did not say.
    pub last_modified: i64,
    /// `x-bce-content-crc32c`, where BOS gives it.
    pub crc32c: Option<u32>,
    /// `x-bce-content-crc32`.
    pub crc32: Option<u32>,
    /// `x-bce-content-crc64ecma`.
    pub crc64: Option<u64>,
    /// It was made by AppendObject (`x-bce-object-type`): BOS does not copy it to another key.
    pub appendable: bool,
    /// What the object was stored with.
    pub headers: ObjectHeaders,
}

/// Headers that are stored with an object. The values are texts of [`header_text`](super::header_text): they go back over
/// the wire as they came, byte for byte. What bosfs itself puts there is ASCII, so that every tool reads the same.
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
    /// `Expires`, only where an owner set it (BOS makes one up otherwise: now and three days).
    pub expires: Option<String>,
    /// `x-bce-storage-class`.
    pub storage_class: Option<String>,
    /// `x-bce-meta-NAME` by NAME in lowercase.
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
    /// Server time of the answer (`Date`), seconds since 1970; `None` where it was not given.
    pub date: Option<i64>,
}

impl StoredOutcome {
    /// Whether BOS took a body as it was: by the ETag where that is the MD5, else by the strongest CRC of the answer.
    /// Content-MD5 was checked by BOS in any case.
    pub fn is_of(&self, sum: &Checksum) -> bool {
        let crcs = [
            self.crc32c.map(|crc| crc == sum.crcs.crc32c),
            self.crc64.map(|crc| crc == sum.crcs.crc64),
            self.crc32.map(|crc| crc == sum.crcs.crc32),
        ];
        self.etag.is_md5(&sum.md5) || crcs.into_iter().flatten().next().unwrap_or(false)
    }
}

/// What BOS says of a copy that it made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOutcome {
    /// ETag of the copy.
    pub etag: ETag,
    /// `lastModified` of the copy, seconds since 1970; `None` where it was not given or cannot be read.
    pub last_modified: Option<i64>,
    /// Server time of the answer (`Date`), seconds since 1970; `None` where it was not given.
    pub date: Option<i64>,
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

/// An object in a listing. The key is as listed: not every key is an [`ObjectKey`](crate::object::ObjectKey).
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
    /// Where the next page starts; `None` at the end.
    pub next: Option<UploadsMarker>,
}

/// Where a page of ListMultipartUploads starts. A page can only lead to where none before it began, so that a list ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadsMarker {
    /// `keyMarker`, not empty.
    pub key: String,
    /// `uploadIdMarker`, where BOS gave one.
    pub upload_id: Option<String>,
    /// The `uploadIdMarker`s of earlier pages with this key: the order of IDs within a key is not known.
    earlier_ids: HashSet<Option<String>>,
}

impl UploadsMarker {
    /// What follows a page that began `after` there. `None`: the list goes back, or began there before.
    pub(super) fn following(after: Option<&Self>, key: &str, upload_id: Option<&str>) -> Option<Self> {
        let (key, upload_id) = (key.to_owned(), upload_id.map(str::to_owned));
        let mut earlier_ids = HashSet::new();
        let goes_back = match after {
            None => key.is_empty(),
            Some(after) if after.key == key => {
                earlier_ids.clone_from(&after.earlier_ids);
                earlier_ids.insert(after.upload_id.clone());
                earlier_ids.contains(&upload_id)
            }
            Some(after) => key < after.key,
        };
        (!goes_back).then_some(Self { key, upload_id, earlier_ids })
    }
}

/// What HEAD of a bucket tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketInfo {
    /// `x-bce-bucket-region`.
    pub region: Option<String>,
    /// Hierarchical namespace (`x-bce-bucket-type: namespace`).
    pub hierarchical: bool,
}

/// The server's times, seconds since 1970, between which an object was stored, from the `Date` of the answer and the
/// moment when the (first) request was sent. `None`: the answer had no `Date`.
///
/// A server may set `Date` before it has stored the object, and a busy one long before: all that is sure is that both
/// happened between sending and answer.
pub fn stored_between(date: Option<i64>, sent: Instant) -> Option<(i64, i64)> {
    let date = date?;
    let took = sent.elapsed();
    let whole = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let (before, after) = (whole(took.saturating_add(Duration::from_millis(999))), whole(took));
    Some((date.saturating_sub(before), date.saturating_add(after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_was_stored_between_sending_and_answer_wherever_its_date_lies() {
        let sent = Instant::now() - Duration::from_millis(2500);
        assert_eq!(stored_between(Some(1000), sent), Some((997, 1002)));
        let (from, to) = stored_between(Some(1000), Instant::now()).unwrap();
        assert!((999..=1000).contains(&from) && to == 1000, "{from} {to}");
        assert_eq!(stored_between(None, sent), None);
    }
}
