//! Where the parts of an upload begin and end, inferred from what BOS lists of it. A pure function.
//!
//! BOS keeps the sizes of the parts it holds, not their offsets. Every tool known cuts a file into parts of one size, the
//! last one shorter; bosfs cuts it by a [`PartPlan`]. A wrong guess cannot damage anything: a part is kept only if its
//! MD5 equals that of its range of the file.

use std::collections::BTreeMap;

use crate::bos::client::ListedPart;
use crate::object::{ByteRange, PART_NUMBER_MAX, PartNumber};
use crate::transfer::PlanError;
use crate::write::part_plan::{PART_BYTES_DEFAULT, PART_BYTES_MAX, PART_UNIT_BYTES, PartPlan};

/// The parts of one file: number to range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundaries {
    layout: Layout,
    file_size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Layout {
    /// `count` parts of `bytes`, then parts of `rest_bytes`.
    Uniform {
        count: u32,
        bytes: u64,
        rest_bytes: u64,
    },
    Plan(PartPlan),
}

/// Why no boundaries fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BoundaryError {
    /// No bytes, no parts.
    #[error("the file is empty")]
    EmptyFile,
    /// No one layout explains the listed sizes.
    #[error(
        "the parts in BOS do not fit the file: part {part} has {found} bytes where {expected} belong if parts have \
         {part_bytes} bytes and the file {file_size}; this is not the file they were made from, or they were cut unevenly"
    )]
    Contradiction {
        /// The first part that does not fit.
        part: PartNumber,
        /// Its size in BOS.
        found: u64,
        /// What it would have to be; 0: it lies beyond the file.
        expected: u64,
        /// Part size of the layout that fits best.
        part_bytes: u64,
        /// Size of the file.
        file_size: u64,
    },
    /// Even the largest parts are not enough.
    #[error("the file needs more than {PART_NUMBER_MAX} parts")]
    TooManyParts,
    /// The parts do not make up the file.
    #[error("{0}")]
    Plan(#[from] PlanError),
}

impl Boundaries {
    /// The range of `part`; empty beyond the file.
    pub fn range(&self, part: PartNumber) -> ByteRange {
        let range = match &self.layout {
            Layout::Plan(plan) => plan.range(part),
            Layout::Uniform { count, bytes, rest_bytes } => {
                let index = part.get() - 1;
                let (whole, rest) = (index.min(*count), index.saturating_sub(*count));
                let start = u64::from(whole).saturating_mul(*bytes).saturating_add(u64::from(rest) * rest_bytes);
                ByteRange::at(start, if index < *count { *bytes } else { *rest_bytes })
            }
        };
        range.intersect(ByteRange::new(0, self.file_size))
    }

    /// The parts that make up the file, in order.
    pub fn parts(&self) -> impl Iterator<Item = (PartNumber, ByteRange)> + '_ {
        (1..=PART_NUMBER_MAX)
            .filter_map(PartNumber::new)
            .map(|part| (part, self.range(part)))
            .take_while(|(_, range)| !range.is_empty())
    }

    fn reaches_end(&self) -> bool {
        PartNumber::new(PART_NUMBER_MAX).is_some_and(|last| self.range(last).end >= self.file_size)
    }

    /// The listed parts whose size is not that of their range.
    fn mismatches<'a>(&'a self, parts: &'a [ListedPart]) -> impl Iterator<Item = &'a ListedPart> {
        parts.iter().filter(|part| self.range(part.number).len() != part.size)
    }

    /// Whether they are these parts' boundaries. The highest part may be shorter than its range: the end of an earlier,
    /// shorter state of the file. It will be sent again.
    fn fit(&self, parts: &[ListedPart]) -> bool {
        let mut mismatches = self.mismatches(parts);
        match (mismatches.next(), mismatches.next()) {
            (None, _) => true,
            (Some(only), None) => {
                let is_last = parts.last().is_some_and(|last| last.number == only.number);
                // Alone it says nothing of the size of the others.
                is_last && parts.len() > 1 && only.size < self.range(only.number).len()
            }
            _ => false,
        }
    }
}

/// The boundaries of all parts of a file of `file_size` bytes of which BOS lists `parts` (ascending).
///
/// # Errors
/// Sizes that contradict one another or the file.
pub fn infer_boundaries(parts: &[ListedPart], file_size: u64) -> Result<Boundaries, BoundaryError> {
    if file_size == 0 {
        return Err(BoundaryError::EmptyFile);
    }
    let plan = |plan: PartPlan| Boundaries { layout: Layout::Plan(plan), file_size };
    if parts.is_empty() {
        return Some(plan(PartPlan::for_length(file_size)))
            .filter(Boundaries::reaches_end)
            .ok_or(BoundaryError::TooManyParts);
    }
    let sizes = likely_sizes(parts, file_size);
    let highest = parts.last().map_or(1, |part| part.number.get());
    let uniform: Vec<Boundaries> =
        sizes.iter().filter_map(|&bytes| uniform_with_room(bytes, highest, file_size)).collect();
    let plans = sizes
        .iter()
        .filter(|&&bytes| bytes % PART_UNIT_BYTES == 0)
        // A part of a later step of the plan tells the first size only up to the steps in between.
        .flat_map(|&bytes| [bytes, bytes / 4, bytes / 16, bytes / 64])
        .chain([PART_BYTES_DEFAULT])
        .flat_map(|bytes| [PartPlan::growing(bytes), PartPlan::for_length_from(file_size, bytes)])
        .map(plan)
        .filter(Boundaries::reaches_end);
    let candidates: Vec<Boundaries> = uniform.into_iter().chain(plans).collect();
    // Those that fit without an exception come first.
    let exact = candidates.iter().find(|candidate| candidate.mismatches(parts).next().is_none());
    if let Some(found) = exact.or_else(|| candidates.iter().find(|candidate| candidate.fit(parts))) {
        return Ok(found.clone());
    }
    let best = candidates.iter().min_by_key(|candidate| candidate.mismatches(parts).count());
    Err(best.and_then(|best| contradiction(best, parts)).unwrap_or(BoundaryError::TooManyParts))
}

fn contradiction(best: &Boundaries, parts: &[ListedPart]) -> Option<BoundaryError> {
    let odd = best.mismatches(parts).next()?;
    let first = PartPlan::first_bytes;
    Some(BoundaryError::Contradiction {
        part: odd.number,
        found: odd.size,
        expected: best.range(odd.number).len(),
        part_bytes: match &best.layout {
            Layout::Uniform { bytes, .. } => *bytes,
            Layout::Plan(plan) => first(plan),
        },
        file_size: best.file_size,
    })
}

/// Part sizes that the listed parts speak for, the most likely first: that of part 1, the most frequent one, the one that
/// makes the highest part end with the file, and all others.
fn likely_sizes(parts: &[ListedPart], file_size: u64) -> Vec<u64> {
    let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
    for part in parts {
        *counts.entry(part.size).or_default() += 1;
    }
    let mut by_count: Vec<(u64, u32)> = counts.into_iter().collect();
    by_count.sort_by_key(|&(bytes, count)| (std::cmp::Reverse(count), std::cmp::Reverse(bytes)));
    let first = parts.first().filter(|part| part.number == PartNumber::FIRST).map(|part| part.size);
    let before_last = parts.last().and_then(|last| {
        let (before, bytes) = (u64::from(last.number.get()) - 1, file_size.checked_sub(last.size)?);
        (before > 0 && bytes % before == 0 && bytes / before >= last.size).then(|| bytes / before)
    });
    // A part that stands alone, and is no size anyone would choose, is the last one.
    let lone_last = before_last.filter(|bytes| {
        parts.len() == 1 && bytes % PART_UNIT_BYTES == 0 && parts.iter().all(|part| part.size % PART_UNIT_BYTES != 0)
    });
    let mut sizes: Vec<u64> = Vec::new();
    // Ten distinct sizes are plenty: a plan has four.
    let frequent = by_count.iter().take(10).map(|&(bytes, _)| bytes);
    for bytes in lone_last.into_iter().chain(first).chain(frequent).chain(before_last) {
        if bytes > 0 && !sizes.contains(&bytes) {
            sizes.push(bytes);
        }
    }
    sizes
}

/// Parts of `bytes`, at least up to part `highest`; behind it larger ones, if 10,000 parts of `bytes` do not reach the end.
fn uniform_with_room(bytes: u64, highest: u32, file_size: u64) -> Option<Boundaries> {
    let layout = |count, rest_bytes| Boundaries { layout: Layout::Uniform { count, bytes, rest_bytes }, file_size };
    if file_size.div_ceil(bytes) <= u64::from(PART_NUMBER_MAX) {
        return Some(layout(PART_NUMBER_MAX, bytes));
    }
    let left = file_size - u64::from(highest) * bytes;
    let rest_bytes =
        left.div_ceil(u64::from(PART_NUMBER_MAX - highest).max(1)).next_multiple_of(PART_UNIT_BYTES).max(bytes);
    (highest < PART_NUMBER_MAX && rest_bytes <= PART_BYTES_MAX).then(|| layout(highest, rest_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ETag;

    const MIB: u64 = 1 << 20;

    fn listed(sizes: impl IntoIterator<Item = (u32, u64)>) -> Vec<ListedPart> {
        sizes
            .into_iter()
            .map(|(number, size)| ListedPart { number: PartNumber::new(number).unwrap(), size, etag: ETag::new("e") })
            .collect()
    }

    fn range(boundaries: &Boundaries, part: u32) -> ByteRange {
        boundaries.range(PartNumber::new(part).unwrap())
    }

    fn count(boundaries: &Boundaries) -> usize {
        let mut end = 0;
        let parts = boundaries.parts().inspect(|(_, range)| {
            assert_eq!(range.start, end, "a gap or an overlap");
            end = range.end;
        });
        let count = parts.count();
        assert_eq!(end, boundaries.file_size, "the file is not covered");
        count
    }

    #[test]
    fn the_first_28_parts_of_5_mib_of_a_bigger_file() {
        let size = 1_400 * MIB + 17;
        let boundaries = infer_boundaries(&listed((1..=28).map(|n| (n, 5 * MIB))), size).unwrap();
        assert_eq!(range(&boundaries, 29), ByteRange::at(140 * MIB, 5 * MIB));
        assert_eq!(count(&boundaries), 281);
        assert_eq!(range(&boundaries, 281).len(), 17);
        assert!(range(&boundaries, 282).is_empty());
    }

    #[test]
    fn gaps_leave_the_offsets_of_the_others_alone() {
        let parts = listed([(2, 12 * MIB), (5, 12 * MIB), (9, 3)]);
        let boundaries = infer_boundaries(&parts, 96 * MIB + 3).unwrap();
        assert_eq!(range(&boundaries, 5), ByteRange::at(48 * MIB, 12 * MIB));
        assert_eq!(count(&boundaries), 9);
    }

    #[test]
    fn a_single_part_is_the_first_of_many_the_whole_or_the_odd_last() {
        let boundaries = infer_boundaries(&listed([(1, 5_000_000)]), 12_000_000).unwrap();
        assert_eq!((count(&boundaries), range(&boundaries, 3).len()), (3, 2_000_000));
        assert_eq!(count(&infer_boundaries(&listed([(1, 77)]), 77).unwrap()), 1);
        let last = infer_boundaries(&listed([(4, 7)]), 30 * MIB + 7).unwrap();
        assert_eq!((range(&last, 1).len(), count(&last)), (10 * MIB, 4));
    }

    #[test]
    fn no_parts_leave_the_choice_free() {
        let boundaries = infer_boundaries(&[], 100 * MIB).unwrap();
        assert_eq!(count(&boundaries), 13);
        assert_eq!(infer_boundaries(&[], 0), Err(BoundaryError::EmptyFile));
    }

    #[test]
    fn the_last_part_of_a_file_that_has_grown_is_sent_again() {
        let parts = listed([(1, 5 * MIB), (2, 5 * MIB), (3, 99)]);
        let boundaries = infer_boundaries(&parts, 40 * MIB).unwrap();
        assert_eq!((range(&boundaries, 3).len(), count(&boundaries)), (5 * MIB, 8));
    }

    #[test]
    fn sizes_that_contradict_are_an_error_that_says_so() {
        let parts = listed([(1, 5 * MIB), (2, 6 * MIB), (3, 7 * MIB), (4, 5 * MIB)]);
        let error = infer_boundaries(&parts, 100 * MIB).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("part 2 has 6291456 bytes where 5242880 belong"), "{text}");
        // Beyond the end, and larger than the file.
        for parts in [listed([(1, 5 * MIB), (9, 5 * MIB)]), listed([(1, 50 * MIB)])] {
            let error = infer_boundaries(&parts, 20 * MIB).unwrap_err();
            assert!(matches!(error, BoundaryError::Contradiction { .. }), "{error}");
        }
    }

    #[test]
    fn parts_of_a_growing_plan_are_recognised() {
        let plan = PartPlan::growing(8 * MIB);
        let size = plan.range(PartNumber::new(2500).unwrap()).end - 5;
        let sizes = |numbers: std::ops::RangeInclusive<u32>| {
            listed(numbers.map(|n| (n, plan.range_in(PartNumber::new(n).unwrap(), size).len())))
        };
        for numbers in [1..=2500, 1..=1200, 999..=1001, 2400..=2500] {
            let boundaries = infer_boundaries(&sizes(numbers.clone()), size).unwrap();
            assert_eq!(boundaries.layout, Layout::Plan(plan.clone()), "{numbers:?}");
            assert_eq!(count(&boundaries), 2500);
        }
    }

    #[test]
    fn a_file_too_large_for_its_part_size_goes_on_with_larger_parts() {
        let boundaries = infer_boundaries(&listed((1..=28).map(|n| (n, 5 * MIB))), 60_000 * MIB).unwrap();
        assert_eq!(range(&boundaries, 28), ByteRange::at(135 * MIB, 5 * MIB));
        assert!(count(&boundaries) <= PART_NUMBER_MAX as usize);
        assert_eq!(range(&boundaries, 29), ByteRange::at(140 * MIB, 7 * MIB));
        // All numbers used up, and bytes left.
        let all = listed((1..=10_000).map(|n| (n, 5 * MIB)));
        assert!(infer_boundaries(&all, 60_000 * MIB).is_err());
        assert!(infer_boundaries(&listed([(1, 5)]), u64::MAX).is_err());
    }
}
