//! The shared nouns: keys, ETags, upload IDs, part numbers, byte ranges and checksums.
//!
//! Everything here is a plain value that proves itself when it is made; no module of ours is used, so any
//! module may use these without pulling another one in.

mod crc_join;

use std::fmt;
use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest, checksum_combine};
use md5::Digest as _;
use serde::{Deserialize, Serialize};

/// Longest key, in bytes of UTF-8. BOS documents 1024, its SDK pages 1023; the smaller one is accepted everywhere.
pub const KEY_BYTES_MAX: usize = 1023;
/// Longest entry name of the mount, in bytes (Linux `NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// Highest part number of an upload (BOS, UploadPart).
pub const PART_NUMBER_MAX: u32 = 10_000;

/// Why a text is no key that bosfs would send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing in it.
    #[error("the key is empty")]
    Empty,
    /// Longer than [`KEY_BYTES_MAX`].
    #[error("the key has {0} bytes, BOS takes at most {KEY_BYTES_MAX}")]
    TooLong(usize),
    /// A segment that no file name can be, or that URL libraries resolve away.
    #[error("the key {0:?} has an empty, `.` or `..` segment or a NUL byte")]
    BadSegment(String),
}

/// The key of an object: UTF-8, 1 to [`KEY_BYTES_MAX`] bytes, no leading `/`, no empty, `.` or `..` segment.
///
/// A trailing `/` is allowed: that is a directory marker.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectKey(Arc<str>);

/// Ordered and hashed as its text.
impl std::borrow::Borrow<str> for ObjectKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl ObjectKey {
    /// Checks `text` and makes it a key.
    ///
    /// # Errors
    /// The rule of [`KeyError`] that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if text.len() > KEY_BYTES_MAX {
            return Err(KeyError::TooLong(text.len()));
        }
        let body = text.strip_suffix('/').unwrap_or(text);
        if text.contains('\0') || body.split('/').any(|s| matches!(s, "" | "." | "..")) {
            return Err(KeyError::BadSegment(text.to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the key of a directory marker.
    pub fn is_marker(&self) -> bool {
        self.0.ends_with('/')
    }

    /// The last segment, without a marker's `/`.
    pub fn name(&self) -> &str {
        let body = self.0.strip_suffix('/').unwrap_or(&self.0);
        body.rsplit_once('/').map_or(body, |(_, name)| name)
    }
}

impl TryFrom<String> for ObjectKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::parse(&text)
    }
}

impl From<ObjectKey> for String {
    fn from(key: ObjectKey) -> String {
        key.0.as_ref().to_owned()
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Which content an object has, as BOS names it, without quotes. Opaque: 32 hex digits are often, not always, an MD5.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ETag(Arc<str>);

impl ETag {
    /// Takes an ETag as it came, with or without quotes.
    pub fn new(text: &str) -> Self {
        Self(text.trim().trim_matches('"').into())
    }

    /// The ETag without quotes, as JSON bodies carry it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ETag in quotes, as headers carry it.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }

    /// Whether this is the plain MD5 `md5` in hex. BOS gives it to parts and simple objects of unencrypted buckets.
    pub fn is_md5(&self, md5: &Md5) -> bool {
        self.0.eq_ignore_ascii_case(&md5.to_hex())
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The ETag that BOS is known to give an object composed of `parts`: `-` and the MD5 of the parts' hex ETags joined as
/// text; for a single part, that part's ETag (vendor test of the JS SDK, `uploadPartFromFile`). A hint, never a
/// disproof.
pub fn composed_etag<'a>(parts: impl ExactSizeIterator<Item = &'a ETag>) -> ETag {
    let single = parts.len() == 1;
    let mut md5 = md5::Md5::new();
    for part in parts {
        if single {
            return part.clone();
        }
        md5.update(part.as_str().as_bytes());
    }
    ETag(format!("-{}", hex::encode(md5.finalize())).into())
}

/// BOS's name for one multipart upload. Opaque.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UploadId(Arc<str>);

impl UploadId {
    /// Takes an upload ID as it came.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Number of a part within an upload: 1 to [`PART_NUMBER_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PartNumber(u32);

impl PartNumber {
    /// The first part.
    pub const FIRST: PartNumber = PartNumber(1);

    /// `None` outside 1..=[`PART_NUMBER_MAX`].
    pub fn new(number: u32) -> Option<Self> {
        (1..=PART_NUMBER_MAX).contains(&number).then_some(Self(number))
    }

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for PartNumber {
    type Error = String;
    fn try_from(number: u32) -> Result<Self, String> {
        Self::new(number).ok_or_else(|| format!("part number {number} is outside 1..={PART_NUMBER_MAX}"))
    }
}

impl From<PartNumber> for u32 {
    fn from(number: PartNumber) -> u32 {
        number.0
    }
}

impl fmt::Display for PartNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PartNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A half-open range of bytes, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; never below `start`.
    pub end: u64,
}

impl ByteRange {
    /// The range `start..end`; empty when `end` lies before `start`.
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end: end.max(start) }
    }

    /// The `len` bytes from `start` on.
    pub fn at(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// What both ranges have in common (possibly empty).
    pub fn intersect(&self, other: ByteRange) -> ByteRange {
        ByteRange::new(self.start.max(other.start), self.end.min(other.end))
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// An MD5 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Md5(pub [u8; 16]);

impl Md5 {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(md5::Md5::digest(bytes).into())
    }

    /// 32 lowercase hex digits, the form of ETags.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// The form of the `Content-MD5` header.
    pub fn to_base64(self) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(self.0)
    }

    /// Reads 32 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl TryFrom<String> for Md5 {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::from_hex(&text).ok_or_else(|| format!("{text:?} is no MD5 in hex"))
    }
}

impl From<Md5> for String {
    fn from(md5: Md5) -> String {
        md5.to_hex()
    }
}

impl fmt::Debug for Md5 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// The three CRCs that BOS may answer with, of one run of bytes. All are cheap to compute and can be combined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Crcs {
    /// CRC32C (Castagnoli), header `x-bce-content-crc32c`.
    pub crc32c: u32,
    /// CRC32 (IEEE), header `x-bce-content-crc32`.
    pub crc32: u32,
    /// CRC64-ECMA as BOS means it, which is CRC-64/XZ, header `x-bce-content-crc64ecma`.
    pub crc64: u64,
}

impl Crcs {
    /// Of the bytes of `self` (any number) followed by `len` bytes that have `next`.
    /// `len` is below 2^46.
    #[must_use]
    pub fn then(self, next: Crcs, len: u64) -> Crcs {
        crc_join::join(self, next, len)
    }

    /// The same by the CRC library: any length, but a hundred times slower when thousands of parts are joined.
    fn then_by_library(self, next: Crcs, len: u64) -> Crcs {
        let join = |algorithm, a, b| checksum_combine(algorithm, a, b, len);
        Crcs {
            crc32c: join(CrcAlgorithm::Crc32Iscsi, self.crc32c.into(), next.crc32c.into()) as u32,
            crc32: join(CrcAlgorithm::Crc32IsoHdlc, self.crc32.into(), next.crc32.into()) as u32,
            crc64: join(CrcAlgorithm::Crc64Xz, self.crc64, next.crc64),
        }
    }
}

/// What is known of a sealed run of bytes: its length, MD5 and CRCs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checksum {
    /// Number of bytes.
    pub len: u64,
    /// MD5, the ETag of a part.
    pub md5: Md5,
    /// CRCs, to be combined for the whole object.
    #[serde(flatten)]
    pub crcs: Crcs,
}

impl Checksum {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Computes a [`Checksum`] piece by piece.
pub struct Hasher {
    len: u64,
    md5: md5::Md5,
    crc32c: Digest,
    crc32: Digest,
    crc64: Digest,
}

impl Hasher {
    /// Of no bytes yet.
    pub fn new() -> Self {
        Self {
            len: 0,
            md5: md5::Md5::new(),
            crc32c: Digest::new(CrcAlgorithm::Crc32Iscsi),
            crc32: Digest::new(CrcAlgorithm::Crc32IsoHdlc),
            crc64: Digest::new(CrcAlgorithm::Crc64Xz),
        }
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        self.md5.update(bytes);
        self.crc32c.update(bytes);
        self.crc32.update(bytes);
        self.crc64.update(bytes);
    }

    /// The checksum of all bytes added.
    pub fn finish(self) -> Checksum {
        Checksum {
            len: self.len,
            md5: Md5(self.md5.finalize().into()),
            crcs: Crcs {
                crc32c: self.crc32c.finalize() as u32,
                crc32: self.crc32.finalize() as u32,
                crc64: self.crc64.finalize(),
            },
        }
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

/// Seconds and nanoseconds since 1970, as `stat` has them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds, negative before 1970.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

impl Timestamp {
    /// Now, by the wall clock.
    pub fn now() -> Self {
        std::time::SystemTime::now().into()
    }
}

impl From<std::time::SystemTime> for Timestamp {
    fn from(time: std::time::SystemTime) -> Self {
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(d) => Self { sec: d.as_secs() as i64, nsec: d.subsec_nanos() },
            Err(before) => {
                let d = before.duration();
                let borrow = i64::from(d.subsec_nanos() > 0);
                let nsec = if borrow == 1 { 1_000_000_000 - d.subsec_nanos() } else { 0 };
                Self { sec: -(d.as_secs() as i64) - borrow, nsec }
            }
        }
    }
}

impl From<Timestamp> for std::time::SystemTime {
    fn from(t: Timestamp) -> Self {
        let nsec = std::time::Duration::from_nanos(t.nsec.into());
        if t.sec >= 0 {
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(t.sec as u64) + nsec
        } else {
            std::time::UNIX_EPOCH - std::time::Duration::from_secs(t.sec.unsigned_abs()) + nsec
        }
    }
}

/// Mode, owner and time of a file, as they travel on its object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileAttrs {
    /// Mode with the type bits (`S_IFREG`, ...).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the content, or as set by utimens.
    pub mtime: Timestamp,
}

/// What a publication demands of the key at that moment. The loser of a race gets 412.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// No object there (`If-None-Match: *`).
    Absent,
    /// This very object is there (`If-Match`).
    Matches(ETag),
    /// Nothing: the user chose to overwrite.
    Any,
}

/// The object that a file's unchanged bytes come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BaseObject {
    /// Which content.
    pub etag: ETag,
    /// Its size in bytes.
    pub size: u64,
    /// Where it lies, unless under the file's own key: the file began as a copy of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ObjectKey>,
    /// Between which times BOS stored it, both included, seconds since 1970; `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<(i64, i64)>,
}

impl BaseObject {
    /// The object under the file's own key.
    pub fn own(etag: ETag, size: u64) -> Self {
        Self { etag, size, key: None, stored: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_bos_or_url_libraries_would_bend_are_refused() {
        for bad in ["", "/a", "a//b", "a/../b", ".", "a/.", "a\0b", "//"] {
            assert!(ObjectKey::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ObjectKey::parse(&"k".repeat(1024)).is_err());
        for good in ["a", "a/b", "d/", "v1", "V1/", "v1/a", "目录 1/a+b%c d.bin", "...", &"k".repeat(1023)] {
            assert_eq!(ObjectKey::parse(good).unwrap().as_str(), good);
        }
        assert_eq!(ObjectKey::parse("a/b/").unwrap().name(), "b");
    }

    #[test]
    fn crcs_have_the_values_that_bos_sends() {
        // bos-api.md 2.6
        let c = Checksum::of(b"123456789").crcs;
        assert_eq!((c.crc32, c.crc32c, c.crc64), (3421780262, 3808858755, 11051210869376104954));
        let c = Checksum::of(b"01234567").crcs;
        assert_eq!((c.crc32, c.crc32c, c.crc64), (763378421, 2887918368, 4997537838264543561));
        assert_eq!(Checksum::of(b"").crcs, Crcs::default());
    }

    #[test]
    fn combined_crcs_equal_those_of_the_whole() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for cut in [0, 1, 4096, 99_999, 100_000] {
            let (a, b) = bytes.split_at(cut);
            let joined = Checksum::of(a).crcs.then(Checksum::of(b).crcs, b.len() as u64);
            assert_eq!(joined, Checksum::of(&bytes).crcs, "cut at {cut}");
        }
    }

    #[test]
    fn composed_etag_is_the_one_of_the_vendors_test() {
        // JS SDK `uploadPartFromFile`: four parts of 5 MiB of zeros and one of 317 zeros.
        let full = ETag::new("5f363e0e58a95f06cbe9bbc662c5dfb6");
        let last = ETag::new("\"443e36e2a145d6a6dfa8fb6f120f0e1b\"");
        let parts = [&full, &full, &full, &full, &last];
        assert_eq!(composed_etag(parts.into_iter()).as_str(), "-184a38c7094bf6ecf27510dc15b816a8");
        assert_eq!(composed_etag([&full].into_iter()), full);
    }

    #[test]
    fn times_before_1970_survive_the_round_trip() {
        for t in
            [Timestamp { sec: -2, nsec: 300 }, Timestamp { sec: 0, nsec: 0 }, Timestamp { sec: 5, nsec: 999_999_999 }]
        {
            assert_eq!(Timestamp::from(std::time::SystemTime::from(t)), t);
        }
    }
}
