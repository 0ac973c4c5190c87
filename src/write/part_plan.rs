//! Which offsets each part has: a pure function of the part number, fixed per upload.
//!
//! A plan divides an endless file into the 10,000 parts that BOS allows; a file of a given size uses the first
//! [`PartPlan::part_count`] of them, the last one cut to the size. Since the plan is journaled when the upload begins, the
//! same offset belongs to the same part for ever, whatever is written, cut or resumed in between.

use serde::{Deserialize, Serialize};

use crate::object::{ByteRange, PART_NUMBER_MAX, PartNumber};

/// Every part size is a multiple of this, bytes.
pub const PART_UNIT_BYTES: u64 = 1 << 20;
/// Smallest size of a part that is not the last, bytes. BOS itself takes less (100 KB); 5 MiB is what its tools assume.
pub const PART_BYTES_MIN: u64 = 5 << 20;
/// Largest size of a part, bytes: the largest multiple of 1 MiB within the 5 GB of UploadPart, read as 5 * 10^9.
pub const PART_BYTES_MAX: u64 = COPY_BYTES_MAX / PART_UNIT_BYTES * PART_UNIT_BYTES;
/// Largest range of one UploadPartCopy, bytes: 5 GB, read as 5 * 10^9.
pub const COPY_BYTES_MAX: u64 = 5_000_000_000;
/// Size of the largest file that any plan has, bytes; BOS's own limit is 48.8 TB.
pub const FILE_BYTES_MAX: u64 = PART_NUMBER_MAX as u64 * PART_BYTES_MAX;
/// Size of the first parts where nothing else is asked for, bytes.
pub const PART_BYTES_DEFAULT: u64 = 8 << 20;

/// Largest part that a growing plan grows to by itself, bytes.
const GROWN_BYTES_MAX: u64 = 4 << 30;
/// Size that every plan reaches at least, bytes: 20 TiB.
const REACH_BYTES: u64 = 20 << 40;
/// Parts of one size in a growing plan, before the size is multiplied by [`GROWTH`].
const GROWING_STEP_COUNT: u32 = 1000;
/// The same behind an announced length, where fewer numbers are left to grow with.
const BEHIND_STEP_COUNT: u32 = 200;
/// Parts at most for an announced length up to [`REACH_BYTES`]: leaves enough numbers to reach it if the file turns
/// out longer than announced.
const ANNOUNCED_COUNT_MAX: u64 = 4000;
/// Factor between the sizes of two steps.
const GROWTH: u64 = 4;

/// Parts of growing size: `steps` of (count, part size in bytes), in order. The counts add up to 10,000.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PlanForm")]
pub struct PartPlan {
    steps: Vec<(u32, u64)>,
}

/// What a journal line holds, before it is checked.
#[derive(Deserialize)]
struct PlanForm {
    steps: Vec<(u32, u64)>,
}

/// Why journaled steps are no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A step without parts.
    #[error("step {0} of the part plan has no parts")]
    EmptyStep(usize),
    /// The counts do not add up to 10,000.
    #[error("the part plan has {0} parts instead of {PART_NUMBER_MAX}")]
    WrongCount(u64),
    /// A size that bosfs does not send.
    #[error("the part plan has parts of {0} bytes; {PART_BYTES_MIN} to {PART_BYTES_MAX} in whole MiB are allowed")]
    WrongSize(u64),
}

impl TryFrom<PlanForm> for PartPlan {
    type Error = PlanError;
    fn try_from(form: PlanForm) -> Result<Self, PlanError> {
        for (i, &(count, bytes)) in form.steps.iter().enumerate() {
            if count == 0 {
                return Err(PlanError::EmptyStep(i));
            }
            if !(PART_BYTES_MIN..=PART_BYTES_MAX).contains(&bytes) || !bytes.is_multiple_of(PART_UNIT_BYTES) {
                return Err(PlanError::WrongSize(bytes));
            }
        }
        let count = form.steps.iter().map(|&(count, _)| u64::from(count)).sum();
        if count != u64::from(PART_NUMBER_MAX) {
            return Err(PlanError::WrongCount(count));
        }
        Ok(Self { steps: form.steps })
    }
}

impl PartPlan {
    /// The plan for a stream of unknown length: starts with parts of `first_bytes` (rounded up to 1 MiB, then brought
    /// into [`PART_BYTES_MIN`]..=[`PART_BYTES_MAX`]) and reaches at least 20 TiB within 10,000 parts.
    pub fn growing(first_bytes: u64) -> Self {
        Self::steps_from(GROWING_STEP_COUNT, allowed_bytes(first_bytes), GROWING_STEP_COUNT)
    }

    /// 10,000 parts of `part_bytes` (rounded and bounded as in [`PartPlan::growing`]).
    pub fn uniform(part_bytes: u64) -> Self {
        Self { steps: vec![(PART_NUMBER_MAX, allowed_bytes(part_bytes))] }
    }

    /// The plan for a file whose length is known before its first part is sent: parts of one size, 8 MiB or more, up to
    /// `len`. See [`PartPlan::for_length_from`].
    pub fn for_length(len: u64) -> Self {
        Self::for_length_from(len, PART_BYTES_DEFAULT)
    }

    /// Parts of one size, at least `part_bytes`, up to `len`. Up to 20 TiB they are at most 4,000, and behind them the
    /// parts grow so that a file that turns out longer than announced still reaches 20 TiB. Beyond 20 TiB all 10,000
    /// parts have [`PART_BYTES_MAX`], which reaches beyond BOS's 48.8 TB; a longer `len` gets that plan, too, which
    /// [`PartPlan::size_max`] tells.
    pub fn for_length_from(len: u64, part_bytes: u64) -> Self {
        if len > REACH_BYTES {
            return Self::uniform(PART_BYTES_MAX);
        }
        let bytes = allowed_bytes(len.div_ceil(ANNOUNCED_COUNT_MAX).max(part_bytes));
        // At least one part, at most ANNOUNCED_COUNT_MAX: fits u32.
        Self::steps_from(len.div_ceil(bytes).max(1) as u32, bytes, BEHIND_STEP_COUNT)
    }

    /// The plan for a file that has `len` bytes already, or is announced to have them, and may change: that of a stream as
    /// far as it reaches `len`, else the one that reaches furthest of all.
    pub fn reaching(len: u64, first_bytes: u64) -> Self {
        let growing = Self::growing(first_bytes);
        if len <= growing.size_max() { growing } else { Self::uniform(PART_BYTES_MAX) }
    }

    /// `first_count` parts of `bytes`, then `step_count` parts of each [`GROWTH`]-fold size, then the largest size.
    fn steps_from(first_count: u32, mut bytes: u64, step_count: u32) -> Self {
        let mut steps = Vec::new();
        let (mut left, mut count) = (PART_NUMBER_MAX, first_count);
        while bytes < GROWN_BYTES_MAX && left > count {
            steps.push((count, bytes));
            left -= count;
            bytes = (bytes * GROWTH).min(GROWN_BYTES_MAX);
            count = step_count;
        }
        steps.push((left, bytes));
        Self { steps }
    }

    /// The range that `part` would have in an endless file.
    pub fn range(&self, part: PartNumber) -> ByteRange {
        let mut before = part.get() - 1;
        let mut start = 0;
        for &(count, bytes) in &self.steps {
            if before < count {
                return ByteRange::at(start + u64::from(before) * bytes, bytes);
            }
            before -= count;
            start += u64::from(count) * bytes;
        }
        // Not reached: the counts add up to PART_NUMBER_MAX and no PartNumber is above it.
        ByteRange::at(start, 0)
    }

    /// The range of `part` in a file of `size` bytes; empty beyond it.
    pub fn range_in(&self, part: PartNumber, size: u64) -> ByteRange {
        let range = self.range(part);
        ByteRange::new(range.start.min(size), range.end.min(size))
    }

    /// The part that holds `offset`; `None` beyond the largest file.
    pub fn part_at(&self, offset: u64) -> Option<PartNumber> {
        let (mut number, mut start) = (1, 0);
        for &(count, bytes) in &self.steps {
            let index = (offset - start) / bytes;
            if index < u64::from(count) {
                return PartNumber::new(number + index as u32);
            }
            number += count;
            start += u64::from(count) * bytes;
        }
        None
    }

    /// The parts that hold the bytes of `range`, in order; those beyond the largest file are left out.
    pub fn parts_in(&self, range: ByteRange) -> impl Iterator<Item = PartNumber> + use<> {
        let numbers = match self.part_at(range.start) {
            Some(first) if !range.is_empty() => {
                first.get()..self.part_at(range.end - 1).map_or(PART_NUMBER_MAX, PartNumber::get) + 1
            }
            _ => 0..0,
        };
        numbers.filter_map(PartNumber::new)
    }

    /// Number of parts of a file of `size` bytes (0 for an empty one, at most 10,000).
    pub fn part_count(&self, size: u64) -> u32 {
        match size.checked_sub(1) {
            None => 0,
            Some(last) => self.part_at(last).map_or(PART_NUMBER_MAX, PartNumber::get),
        }
    }

    /// Size in bytes of the largest file.
    pub fn size_max(&self) -> u64 {
        self.steps.iter().map(|&(count, bytes)| u64::from(count) * bytes).sum()
    }

    /// Size in bytes of the first part: files up to it go by PutObject.
    pub fn first_bytes(&self) -> u64 {
        self.steps[0].1
    }
}

/// The nearest part size that bosfs sends.
fn allowed_bytes(bytes: u64) -> u64 {
    let bytes = bytes.clamp(PART_BYTES_MIN, PART_BYTES_MAX);
    bytes.next_multiple_of(PART_UNIT_BYTES).min(PART_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn all_parts() -> impl Iterator<Item = PartNumber> {
        (1..=PART_NUMBER_MAX).map(|n| PartNumber::new(n).unwrap())
    }

    fn assert_sound(plan: &PartPlan) {
        let mut end = 0;
        for part in all_parts() {
            let range = plan.range(part);
            assert_eq!(range.start, end, "{plan:?} part {part}");
            assert!(range.len() >= PART_BYTES_MIN && range.len() <= PART_BYTES_MAX && range.len().is_multiple_of(MIB));
            assert_eq!(plan.part_at(range.start), Some(part));
            assert_eq!(plan.part_at(range.end - 1), Some(part));
            assert_eq!(plan.part_count(range.end), part.get());
            assert_eq!(plan.part_count(range.start + 1), part.get());
            end = range.end;
        }
        assert_eq!(end, plan.size_max());
        assert_eq!(plan.part_at(end), None);
        assert_eq!(plan.part_at(u64::MAX), None);
        assert_eq!(plan.part_count(0), 0);
        assert_eq!(plan.part_count(u64::MAX), PART_NUMBER_MAX);
        assert_eq!(plan.first_bytes(), plan.range(PartNumber::FIRST).len());
    }

    #[test]
    fn the_default_plan_is_the_documented_one() {
        let plan = PartPlan::growing(8 * MIB);
        let expected = [(1000, 8), (1000, 32), (1000, 128), (1000, 512), (1000, 2048), (5000, 4096)];
        assert_eq!(plan.steps, expected.map(|(count, mib)| (count, mib * MIB)));
    }

    #[test]
    fn every_plan_tiles_the_file_and_reaches_20_tib() {
        for first in [0, 1, 5 * MIB, 5 * MIB + 1, 8 * MIB, 100 * MIB, 1 << 30, 4 << 30, 5_000_000_000, u64::MAX] {
            let plan = PartPlan::growing(first);
            assert_sound(&plan);
            assert!(plan.size_max() >= 20 << 40, "{first}");
            assert_sound(&PartPlan::uniform(first));
        }
        for len in [0, 1, 8 * MIB, 60_000_000_000, 1 << 40, 20 << 40, (20 << 40) + 1, 48_800_000_000_000, u64::MAX] {
            let plan = PartPlan::for_length(len);
            assert_sound(&plan);
            assert!(plan.size_max() >= (20 << 40).max(len.min(48_800_000_000_000)), "{len}: {plan:?}");
            assert!(plan.size_max() <= FILE_BYTES_MAX);
            // One size up to the announced length.
            let last = plan.part_at(len.saturating_sub(1)).unwrap_or(PartNumber::FIRST);
            assert_eq!(plan.range(last).len(), plan.first_bytes(), "{len}");
        }
        assert_eq!(PartPlan::for_length(1).first_bytes(), 8 * MIB);
        assert_eq!(PartPlan::for_length_from(1, 64 * MIB).first_bytes(), 64 * MIB);
    }

    #[test]
    fn a_known_length_beyond_what_a_stream_reaches_gets_the_plan_that_reaches_furthest() {
        const TB: u64 = 1_000_000_000_000;
        let growing = PartPlan::growing(8 * MIB);
        assert!((24 * TB..25 * TB).contains(&growing.size_max()), "{}", growing.size_max());
        for len in [0, 1, 50_000_000_000, growing.size_max()] {
            assert_eq!(PartPlan::reaching(len, 8 * MIB), growing, "{len}: as before");
        }
        for len in [growing.size_max() + 1, 30 * TB, 48_800_000_000_000, FILE_BYTES_MAX] {
            let plan = PartPlan::reaching(len, 8 * MIB);
            assert_sound(&plan);
            assert_eq!(plan.size_max(), FILE_BYTES_MAX, "{len}: it may grow up to BOS's own limit");
        }
        // What no plan reaches is told by the plan, not cut in silence.
        assert!(PartPlan::reaching(FILE_BYTES_MAX + 1, 8 * MIB).size_max() < FILE_BYTES_MAX + 1);
        for first in [5 * MIB, 8 * MIB, 100 * MIB, 4 << 30] {
            assert!(PartPlan::reaching(30 * TB, first).size_max() >= 30 * TB, "{first}");
        }
    }

    #[test]
    fn the_journaled_form_is_stable_and_checked() {
        let plan = PartPlan::growing(8 * MIB);
        let text = serde_json::to_string(&plan).unwrap();
        assert!(text.starts_with(r#"{"steps":[[1000,8388608],[1000,33554432],"#), "{text}");
        assert_eq!(serde_json::from_str::<PartPlan>(&text).unwrap(), plan);
        for hostile in [
            r#"{"steps":[]}"#,
            r#"{"steps":[[10000,0]]}"#,
            r#"{"steps":[[10000,8388609]]}"#,
            r#"{"steps":[[10000,18446744073709551615]]}"#,
            r#"{"steps":[[9999,8388608]]}"#,
            r#"{"steps":[[10001,8388608]]}"#,
            r#"{"steps":[[0,8388608],[10000,8388608]]}"#,
            r#"{"steps":[[4294967295,8388608],[4294967295,8388608]]}"#,
        ] {
            assert!(serde_json::from_str::<PartPlan>(hostile).is_err(), "{hostile}");
        }
    }

    #[test]
    fn parts_in_a_range() {
        let plan = PartPlan::uniform(5 * MIB);
        let numbers = |start, end| plan.parts_in(ByteRange::new(start, end)).map(PartNumber::get).collect::<Vec<_>>();
        assert!(numbers(0, 0).is_empty());
        assert!(numbers(5 * MIB, 5 * MIB).is_empty());
        assert_eq!(numbers(5 * MIB - 1, 5 * MIB), [1]);
        assert_eq!(numbers(5 * MIB - 1, 5 * MIB + 1), [1, 2]);
        assert_eq!(numbers(plan.size_max() - 1, u64::MAX), [10_000]);
        assert!(numbers(plan.size_max(), u64::MAX).is_empty());
    }

    proptest! {
        #[test]
        fn part_at_inverts_range(first in 5u64..5000, offset in 0u64..(20 << 40)) {
            let plan = PartPlan::growing(first * MIB);
            let part = plan.part_at(offset).unwrap();
            let range = plan.range(part);
            prop_assert!(range.start <= offset && offset < range.end);
            prop_assert_eq!(plan.range_in(part, offset), ByteRange::new(range.start, offset));
            prop_assert_eq!(plan.range_in(part, 0).len(), 0);
        }
    }
}
