//! The JSON of requests and answers, and how answers become domain types. Hostile input is refused, never trusted to
//! be bounded or to make sense, and nothing here panics on it.

use serde::{Deserialize, Serialize};

use super::model::{ListPage, ListedObject, ListedPart, ListedUpload, UploadsMarker, UploadsPage};
use super::sign::parse_timestamp;
pub use super::wire_headers::{
    answer_date, copy_outcome, http_date, is_hierarchical, object_meta, stored_outcome, text,
};
use crate::object::{ETag, PART_NUMBER_MAX, PartNumber, UploadId};

/// Longest answer body that is read, except object data. A full page of 1000 keys of 1 KiB with escapes fits twice.
pub const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Most entries of one list in an answer. BOS gives at most 1000 a page; more would be more than was asked for.
const LIST_ENTRIES_MAX: usize = 10_000;
/// Longest ETag and upload ID, bytes. BOS's have 32 to 64.
const NAME_BYTES_MAX: usize = 256;

/// Why an answer was not understood: words for the error's message.
pub type Odd = String;

/// JSON from a body that may begin with white space (keep-alive of slow calls). `None`: nothing but white space.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<Option<T>, Odd> {
    let body = body.trim_ascii();
    if body.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(body).map(Some).map_err(|error| format!("the answer is not the JSON it should be: {error}"))
}

/// A list, or nothing, of at most [`LIST_ENTRIES_MAX`] entries: what a body of few bytes an entry would become takes many
/// times its memory.
fn bounded_list<'de, T, D>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    struct Entries<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Entries<T> {
        type Value = Option<Vec<T>>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "a list of at most {LIST_ENTRIES_MAX} entries")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(entry) = entries.next_element()? {
                if list.len() == LIST_ENTRIES_MAX {
                    return Err(serde::de::Error::invalid_length(list.len() + 1, &self));
                }
                list.push(entry);
            }
            Ok(Some(list))
        }
    }
    deserializer.deserialize_any(Entries(std::marker::PhantomData))
}

/// The body of an error answer, also of one that comes with status 200.
#[derive(Debug, Default, Deserialize)]
pub struct WireError {
    /// Empty: this is no error.
    #[serde(default)]
    pub code: String,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// Same as the header `x-bce-request-id`.
    #[serde(default, rename = "requestId")]
    pub request_id: Option<String>,
}

impl WireError {
    /// What `body` says, if it is an error at all. Anything that cannot be read is none.
    pub fn in_body(body: &[u8]) -> Option<Self> {
        let error: Self = parse(body).ok().flatten()?;
        (!error.code.is_empty()).then_some(error)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireObject {
    key: String,
    #[serde(default)]
    size: i64,
    #[serde(default, rename = "eTag")]
    etag: String,
    #[serde(default)]
    last_modified: String,
    storage_class: Option<String>,
}

#[derive(Debug, Deserialize)]
struct WirePrefix {
    prefix: String,
}

/// Answer of ListObjects.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireListObjects {
    #[serde(default)]
    is_truncated: bool,
    next_marker: Option<String>,
    #[serde(default, deserialize_with = "bounded_list")]
    contents: Option<Vec<WireObject>>,
    #[serde(default, deserialize_with = "bounded_list")]
    common_prefixes: Option<Vec<WirePrefix>>,
}

impl TryFrom<WireObject> for ListedObject {
    type Error = Odd;
    fn try_from(wire: WireObject) -> Result<Self, Odd> {
        Ok(Self {
            size: size_of(wire.size, &wire.key)?,
            etag: etag_of(&wire.etag)?,
            last_modified: timestamp_of(&wire.last_modified),
            storage_class: wire.storage_class,
            key: wire.key,
        })
    }
}

impl WireListObjects {
    /// The page that follows `marker`. Refused: keys outside `prefix` and empty ones, and a marker that does not advance,
    /// which would make a listing endless.
    pub fn into_page(self, prefix: &str, marker: Option<&str>) -> Result<ListPage, Odd> {
        let objects: Vec<ListedObject> =
            self.contents.unwrap_or_default().into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        let prefixes: Vec<String> = self.common_prefixes.unwrap_or_default().into_iter().map(|p| p.prefix).collect();
        check_names(objects.iter().map(|object| &object.key).chain(&prefixes), prefix, "listing")?;
        let next_marker = if self.is_truncated {
            // Documented to be there; without a delimiter the last key says the same.
            let next = self
                .next_marker
                .filter(|next| !next.is_empty())
                .or_else(|| prefixes.is_empty().then(|| objects.last().map(|object| object.key.clone())).flatten())
                .ok_or("the listing is cut off but does not say where to go on")?;
            if marker.is_some_and(|marker| next.as_str() <= marker) {
                return Err(format!("the listing does not advance: after {marker:?} comes {next:?}"));
            }
            Some(next)
        } else {
            None
        };
        Ok(ListPage { objects, prefixes, next_marker })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WirePart {
    part_number: u32,
    #[serde(default)]
    size: i64,
    #[serde(default, rename = "eTag")]
    etag: String,
}

/// Answer of ListParts.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireListParts {
    #[serde(default)]
    is_truncated: bool,
    next_part_number_marker: Option<u32>,
    #[serde(default, deserialize_with = "bounded_list")]
    parts: Option<Vec<WirePart>>,
}

impl WireListParts {
    /// Adds this page to `parts`. Returns the marker of the next page. Part numbers ascend over all pages, so there are
    /// at most 10,000 parts and 10,000 pages.
    pub fn append_to(self, parts: &mut Vec<ListedPart>) -> Result<Option<PartNumber>, Odd> {
        let before = parts.len();
        for wire in self.parts.unwrap_or_default() {
            let number = PartNumber::new(wire.part_number)
                .ok_or_else(|| format!("part number {} is outside 1..={PART_NUMBER_MAX}", wire.part_number))?;
            if parts.last().is_some_and(|last| last.number >= number) {
                return Err(format!("part {number} is listed out of order"));
            }
            parts.push(ListedPart { number, size: size_of(wire.size, "a part")?, etag: etag_of(&wire.etag)? });
        }
        if !self.is_truncated {
            return Ok(None);
        }
        if parts.len() == before {
            return Err("the list of parts is cut off without a single part".to_owned());
        }
        // Everything up to the last part was listed, whatever the answer gives as marker.
        let last = parts.last().map(|last| last.number);
        match (self.next_part_number_marker, last) {
            (Some(marker), Some(last)) if marker != last.get() => {
                Err(format!("the list of parts ends with part {last} but goes on after {marker}"))
            }
            (_, last) => Ok(last),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireUpload {
    key: String,
    upload_id: String,
    #[serde(default)]
    initiated: String,
}

/// Answer of ListMultipartUploads.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireListUploads {
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_upload_id_marker: Option<String>,
    #[serde(default, deserialize_with = "bounded_list")]
    uploads: Option<Vec<WireUpload>>,
}

impl WireListUploads {
    /// The page that follows `marker`. Refused as in [`WireListObjects::into_page`]: keys outside `prefix` and empty ones,
    /// and a marker that does not advance.
    pub fn into_page(self, prefix: &str, marker: Option<&UploadsMarker>) -> Result<UploadsPage, Odd> {
        let uploads: Vec<ListedUpload> = self
            .uploads
            .unwrap_or_default()
            .into_iter()
            .map(|wire| {
                let upload_id = upload_id_of(&wire.upload_id)?;
                Ok(ListedUpload { initiated: timestamp_of(&wire.initiated), upload_id, key: wire.key })
            })
            .collect::<Result<_, Odd>>()?;
        check_names(uploads.iter().map(|upload| &upload.key), prefix, "list of uploads")?;
        if !self.is_truncated {
            return Ok(UploadsPage { uploads, next: None });
        }
        let key = self
            .next_key_marker
            .filter(|key| !key.is_empty())
            .or_else(|| uploads.last().map(|upload| upload.key.clone()))
            .ok_or("the list of uploads is cut off but does not say where to go on")?;
        let id = self.next_upload_id_marker.filter(|id| !id.is_empty());
        let id = id.map(|id| upload_id_of(&id)).transpose()?;
        let id = id.as_ref().map(UploadId::as_str);
        let next = UploadsMarker::following(marker, &key, id).ok_or_else(|| {
            let from = marker.map(|marker| (&marker.key, &marker.upload_id));
            format!("the list of uploads does not advance: after {from:?} comes {:?}", (&key, id))
        })?;
        Ok(UploadsPage { uploads, next: Some(next) })
    }
}

/// Refuses a list of `prefix` that has other names, or a name that nothing can have.
fn check_names<'a>(names: impl Iterator<Item = &'a String>, prefix: &str, list: &str) -> Result<(), Odd> {
    for name in names {
        if !name.starts_with(prefix) {
            return Err(format!("the {list} of {prefix:?} names {name:?}"));
        }
        if name.is_empty() {
            return Err(format!("the {list} of {prefix:?} has an entry with an empty key"));
        }
    }
    Ok(())
}

/// Answer of InitiateMultipartUpload.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireInitiated {
    /// The upload ID.
    pub upload_id: String,
}

/// Answer of copies and of Complete.
#[derive(Debug, Deserialize)]
pub struct WireStored {
    /// ETag without quotes.
    #[serde(rename = "eTag")]
    pub etag: String,
    /// When the copy was made; Complete does not tell.
    #[serde(default, rename = "lastModified")]
    pub last_modified: Option<String>,
}

/// Answer of GetBucketLocation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireLocation {
    /// Region code, such as `bj`.
    pub location_constraint: String,
}

#[derive(Debug, Deserialize)]
struct WireFailedKey {
    #[serde(default)]
    key: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Answer of DeleteMultipleObjects, in its present and in its older form.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireDeleted {
    #[serde(default, deserialize_with = "bounded_list")]
    errors: Option<Vec<WireFailedKey>>,
    #[serde(default)]
    delete_result: Option<Box<WireDeleted>>,
}

impl WireDeleted {
    /// Key, code and message of what was not deleted, but for keys that were not there.
    pub fn into_failures(self) -> Vec<(String, String, String)> {
        let inner = self.delete_result.and_then(|inner| inner.errors);
        let failed = self.errors.into_iter().chain(inner).flatten();
        failed.filter(|f| f.code != "NoSuchKey").map(|f| (f.key, f.code, f.message)).collect()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireRuleTime {
    #[serde(default)]
    date_greater_than: String,
}

#[derive(Debug, Default, Deserialize)]
struct WireRuleCondition {
    #[serde(default)]
    time: WireRuleTime,
}

#[derive(Debug, Deserialize)]
struct WireRuleAction {
    name: String,
}

#[derive(Debug, Deserialize)]
struct WireRule {
    #[serde(default)]
    status: String,
    #[serde(default)]
    resource: Vec<String>,
    #[serde(default)]
    condition: WireRuleCondition,
    action: WireRuleAction,
}

/// Answer of GetBucketLifecycle. One without rules, or with a rule that does not say what it does, is not understood: that it
/// aborts no uploads would be a guess.
#[derive(Debug, Deserialize)]
pub struct WireLifecycle {
    rule: Vec<WireRule>,
}

impl WireLifecycle {
    /// The fewest days after which an enabled rule aborts uploads of keys that begin with `prefix` in `bucket`. A rule
    /// with a fixed date, or a time that is not understood, counts as 0 days: it may act at any moment.
    pub fn abort_days(&self, bucket: &str, prefix: &str) -> Option<u32> {
        let touches = |resource: &String| {
            let key = resource.strip_prefix(bucket).and_then(|rest| rest.strip_prefix('/')).unwrap_or(resource);
            let key = key.split('*').next().unwrap_or_default();
            key.starts_with(prefix) || prefix.starts_with(key)
        };
        self.rule
            .iter()
            .filter(|rule| rule.action.name.eq_ignore_ascii_case("AbortMultipartUpload"))
            .filter(|rule| !rule.status.eq_ignore_ascii_case("disabled"))
            .filter(|rule| rule.resource.is_empty() || rule.resource.iter().any(touches))
            .map(|rule| days_after_change(&rule.condition.time.date_greater_than))
            .min()
    }
}

/// Days of `$(lastModified)+P7D`; 0 for every other form.
fn days_after_change(time: &str) -> u32 {
    time.trim()
        .strip_prefix("$(lastModified)+P")
        .and_then(|rest| rest.strip_suffix(['D', 'd']))
        .and_then(|days| days.parse().ok())
        .unwrap_or(0)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireListedPart<'a> {
    part_number: u32,
    e_tag: &'a str,
}

/// Body of Complete.
pub fn complete_body(parts: &[(PartNumber, ETag)]) -> Vec<u8> {
    let parts: Vec<_> =
        parts.iter().map(|(number, etag)| WireListedPart { part_number: number.get(), e_tag: etag.as_str() }).collect();
    serde_json::json!({ "parts": parts }).to_string().into_bytes()
}

/// Body of DeleteMultipleObjects.
pub fn delete_body<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let objects: Vec<_> = keys.map(|key| serde_json::json!({ "key": key })).collect();
    serde_json::json!({ "objects": objects }).to_string().into_bytes()
}

/// An ETag as it came; possibly none.
fn etag_of(text: &str) -> Result<ETag, Odd> {
    let etag = ETag::new(text);
    if etag.as_str().len() > NAME_BYTES_MAX || etag.as_str().contains(char::is_control) {
        return Err(format!("the answer has an impossible ETag of {} bytes", etag.as_str().len()));
    }
    Ok(etag)
}

/// An ETag that must be there: without one, a condition on it would hold for anything.
pub(super) fn given_etag(text: &str) -> Result<ETag, Odd> {
    let etag = etag_of(text)?;
    if etag.as_str().is_empty() { Err("the answer has no ETag".to_owned()) } else { Ok(etag) }
}

/// An upload ID as it came.
pub fn upload_id_of(text: &str) -> Result<UploadId, Odd> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.contains(char::is_control) {
        return Err(format!("the answer has an impossible upload ID of {} bytes", text.len()));
    }
    Ok(UploadId::new(text))
}

fn size_of(size: i64, what: &str) -> Result<u64, Odd> {
    u64::try_from(size).map_err(|_| format!("{what} is listed with {size} bytes"))
}

/// Seconds since 1970 of `2026-01-02T03:04:05Z`, with or without a fraction; 0 where it cannot be read.
pub(super) fn timestamp_of(text: &str) -> i64 {
    let plain = text.split_once('.').map(|(seconds, _)| format!("{seconds}Z"));
    parse_timestamp(plain.as_deref().unwrap_or(text)).unwrap_or_default()
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
