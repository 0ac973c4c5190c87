//! Which offsets each part has: a pure function, fixed per upload.

use serde::{Deserialize, Serialize};

use crate::object::{ByteRange, PartNumber};

/// Parts of growing size: `steps` of (count, part size in bytes), in order; the last step goes on to part 10,000.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartPlan {
    steps: Vec<(u32, u64)>,
}

impl PartPlan {
    /// The plan for a stream of unknown length: starts with parts of `first_bytes` (8 MiB by default; a multiple of 1 MiB,
    /// at least 5 MiB) and reaches at least 20 TiB within 10,000 parts.
    pub fn growing(_first_bytes: u64) -> Self {
        todo!()
    }
    /// The range that `part` would have in an endless file.
    pub fn range(&self, _part: PartNumber) -> ByteRange {
        todo!()
    }
    /// The range of `part` in a file of `size` bytes; empty beyond it.
    pub fn range_in(&self, _part: PartNumber, _size: u64) -> ByteRange {
        todo!()
    }
    /// The part that holds `offset`; `None` beyond the largest file.
    pub fn part_at(&self, _offset: u64) -> Option<PartNumber> {
        todo!()
    }
    /// Number of parts of a file of `size` bytes (0 for an empty one).
    pub fn part_count(&self, _size: u64) -> u32 {
        todo!()
    }
    /// Size in bytes of the largest file.
    pub fn size_max(&self) -> u64 {
        todo!()
    }
    /// Size in bytes of the first part: files up to it go by PutObject.
    pub fn first_bytes(&self) -> u64 {
        todo!()
    }
}
