//! What the index says of buckets, objects, uploads and parts.

use serde::{Deserialize, Serialize};

use crate::bos::client::ObjectHeaders;
use crate::object::{Crcs, Md5};

/// File number of an extent whose bytes are zeros that are stored nowhere.
pub const ZEROS: u64 = 0;

/// This bit of a file number says that the bytes are a row of the table `small`, not a file.
pub const SMALL_BIT: u64 = 1 << 63;

/// A run of bytes of a data file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// Number of the file; [`ZEROS`], or with [`SMALL_BIT`] the row of `small`.
    pub file: u64,
    /// Offset of the first byte in it.
    pub at: u64,
    /// Number of bytes, at least 1.
    pub len: u64,
}

/// Where the bytes of an object or part are, in order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In these few extents (none: it has no byte). The holder has a reference on the file of each.
    Few(Vec<Extent>),
    /// In the extents of this row of the table `extents`, on which the holder has a reference.
    Row(u64),
}

/// A bucket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BucketRecord {
    /// Seconds since 1970.
    pub created: i64,
    /// The document of `PUT ?lifecycle`, as it came.
    pub lifecycle: Option<serde_json::Value>,
}

/// An object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Bytes.
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    /// Of the whole content; known for objects that came in one piece.
    pub md5: Option<Md5>,
    /// Of the whole content; unknown when a range was copied into it.
    pub crcs: Option<Crcs>,
    /// Whether `x-bce-content-crc32c` was asked for or sent, for every part too.
    pub crc32c_shown: bool,
    /// As sent by the client and checked, in hex.
    pub sha256: Option<String>,
    /// Seconds since 1970.
    pub modified: i64,
    /// Headers and metadata.
    pub headers: ObjectHeaders,
    /// Until when the bytes of an archived object can be read, seconds since 1970.
    #[serde(default)]
    pub restored_until: i64,
    /// It was made by AppendObject.
    #[serde(default)]
    pub appendable: bool,
    /// Its bytes.
    pub place: Place,
}

impl ObjectRecord {
    /// Whether its bytes can be neither read nor copied at `now_s`, since it is archived and not restored.
    pub fn is_archived(&self, now_s: i64) -> bool {
        self.headers.storage_class.as_deref() == Some("ARCHIVE") && self.restored_until <= now_s
    }
}

/// An unfinished upload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UploadRecord {
    /// Seconds since 1970.
    pub initiated: i64,
    /// Headers of Initiate; they go to the object.
    pub headers: ObjectHeaders,
}

/// A part of an unfinished upload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartRecord {
    /// Bytes.
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    /// Unknown for copied ranges.
    pub crcs: Option<Crcs>,
    /// Whether CRC32C was asked for or sent with this part.
    pub crc32c_shown: bool,
    /// Seconds since 1970.
    pub modified: i64,
    /// Its bytes.
    pub place: Place,
}

/// Bytes of one row of the table `extents` per extent.
pub const EXTENT_BYTES: usize = 32;

/// Writes extents as a row of the table `extents`: start in the content, file, offset, length; little-endian.
pub fn encode_extents(extents: &[Extent]) -> Vec<u8> {
    let mut row = Vec::with_capacity(extents.len() * EXTENT_BYTES);
    let mut start = 0u64;
    for extent in extents {
        for number in [start, extent.file, extent.at, extent.len] {
            row.extend_from_slice(&number.to_le_bytes());
        }
        start += extent.len;
    }
    row
}

fn number(row: &[u8], index: usize) -> u64 {
    let at = index * 8;
    row.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// All extents of a row.
pub fn decode_extents(row: &[u8]) -> Vec<Extent> {
    row.chunks_exact(EXTENT_BYTES)
        .map(|row| Extent { file: number(row, 1), at: number(row, 2), len: number(row, 3) })
        .collect()
}

/// The extents of a row that hold `start..end` of the content, cut to it. Looks at as few as possible.
pub fn slice_row(row: &[u8], start: u64, end: u64) -> Vec<Extent> {
    let count = row.len() / EXTENT_BYTES;
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = (low + high) / 2;
        if number(row, middle * 4) <= start { low = middle + 1 } else { high = middle }
    }
    let first = low.saturating_sub(1);
    let mut extents = Vec::new();
    for index in first..count {
        let from = number(row, index * 4);
        if from >= end {
            break;
        }
        let extent = Extent {
            file: number(row, index * 4 + 1),
            at: number(row, index * 4 + 2),
            len: number(row, index * 4 + 3),
        };
        extents.extend(cut(extent, from, start, end));
    }
    extents
}

/// The extents of `extents` that hold `start..end` of the content, cut to it.
pub fn slice_few(extents: &[Extent], start: u64, end: u64) -> Vec<Extent> {
    let mut from = 0;
    let mut out = Vec::new();
    for extent in extents {
        out.extend(cut(*extent, from, start, end));
        from += extent.len;
    }
    out
}

/// What `extent`, which begins at `from` of the content, has of `start..end`.
fn cut(extent: Extent, from: u64, start: u64, end: u64) -> Option<Extent> {
    let (low, high) = (start.max(from), end.min(from + extent.len));
    (low < high).then(|| Extent { file: extent.file, at: extent.at + (low - from), len: high - low })
}

/// Joins neighbours that continue one another.
pub fn merge(extents: Vec<Extent>) -> Vec<Extent> {
    let mut out: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match out.last_mut() {
            Some(last) if last.file == extent.file && (extent.file == ZEROS || last.at + last.len == extent.at) => {
                last.len += extent.len;
            }
            _ => out.push(extent),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_and_a_list_of_extents_are_cut_alike() {
        let extents = vec![
            Extent { file: 7, at: 100, len: 10 },
            Extent { file: ZEROS, at: 0, len: 5 },
            Extent { file: 9 | SMALL_BIT, at: 0, len: 1 },
            Extent { file: 7, at: 0, len: 100 },
        ];
        let row = encode_extents(&extents);
        assert_eq!(decode_extents(&row), extents);
        for start in 0..=117 {
            for end in start..=117 {
                let cut = slice_row(&row, start, end);
                assert_eq!(cut, slice_few(&extents, start, end), "{start}..{end}");
                let bytes = cut.iter().map(|e| e.len).sum::<u64>();
                assert_eq!(bytes, end.min(116).saturating_sub(start), "{start}..{end}");
            }
        }
        assert_eq!(
            slice_row(&row, 12, 16),
            vec![Extent { file: ZEROS, at: 2, len: 3 }, Extent { file: 9 | SMALL_BIT, at: 0, len: 1 },]
        );
    }

    #[test]
    fn neighbours_of_one_file_become_one_extent() {
        let joined = merge(vec![
            Extent { file: 1, at: 0, len: 4 },
            Extent { file: 1, at: 4, len: 4 },
            Extent { file: 1, at: 9, len: 1 },
            Extent { file: ZEROS, at: 3, len: 1 },
            Extent { file: ZEROS, at: 0, len: 2 },
        ]);
        assert_eq!(joined.iter().map(|e| e.len).collect::<Vec<_>>(), [8, 1, 3]);
    }
}
