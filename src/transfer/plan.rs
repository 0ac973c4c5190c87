//! How an object is cut into pieces: pure.
//!
//! A [`Plan`] cannot be had that does not hold every byte of its object exactly once: whoever has one may send.

use crate::object::{ByteRange, PART_NUMBER_MAX, PartNumber};
use crate::write::part_plan::{COPY_BYTES_MAX, PART_BYTES_MAX, PART_UNIT_BYTES, PartPlan};

/// Preferred size of a copied part of a whole object, bytes.
pub const COPY_PART_BYTES: u64 = 1 << 30;

/// How one piece gets into BOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// UploadPart of bytes that are here.
    Send,
    /// UploadPartCopy of the same range of another object.
    Copy,
    /// BOS holds it already.
    Held,
}

/// One part of the object that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its number; numbers ascend, and some may stay unused.
    pub number: PartNumber,
    /// Which bytes of the object.
    pub range: ByteRange,
    /// How they get there.
    pub way: Way,
}

/// Where the bytes of one part of a [`PartPlan`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Here.
    Local,
    /// In another object, at the same offset.
    Source,
    /// In BOS under this part's number, together with those of all further parts up to `end`.
    Held {
        /// Where the bytes that BOS holds under the number end.
        end: u64,
    },
}

/// All pieces of an object, in order: every byte of it exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pieces: Vec<Piece>,
    size: u64,
}

/// Why an object cannot be made of the pieces that were meant. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No bytes, no parts: PutObject makes an empty object.
    #[error("an empty object has no parts")]
    Empty,
    /// The last piece ends before the object does.
    #[error(
        "its parts reach {reaches} bytes, and it has {size}: more than the {PART_NUMBER_MAX} parts of its upload can hold; \
         nothing was sent that would cut it"
    )]
    Short {
        /// End of the last piece.
        reaches: u64,
        /// Size of the object.
        size: u64,
    },
    /// A piece does not begin where the one before it ends, goes beyond the object, or its number does not ascend.
    #[error("part {part} holds bytes {range:?}, where bytes from {expected} on belong; nothing was sent")]
    Uneven {
        /// The first one that does not fit.
        part: PartNumber,
        /// Its bytes.
        range: ByteRange,
        /// Where it should begin.
        expected: u64,
    },
    /// More than one part may hold.
    #[error("part {part} would have {bytes} bytes, and BOS takes {COPY_BYTES_MAX} in one part; nothing was sent")]
    TooLong {
        /// Which.
        part: PartNumber,
        /// Its length.
        bytes: u64,
    },
}

impl Plan {
    /// The pieces of an object of `size` bytes whose offsets `plan` fixed when the upload began. `origin` tells where the
    /// bytes of each part are. Neighbouring parts that come from the other object are copied together, up to
    /// [`COPY_BYTES_MAX`] bytes: since they are whole parts, only the last piece may be shorter than BOS's smallest part.
    ///
    /// # Errors
    /// The plan does not reach the size; what BOS holds does not end where a part ends.
    pub fn cut(
        plan: &PartPlan,
        size: u64,
        mut origin: impl FnMut(PartNumber, ByteRange) -> Origin,
    ) -> Result<Self, PlanError> {
        let mut pieces: Vec<Piece> = Vec::new();
        for number in (1..=plan.part_count(size)).filter_map(PartNumber::new) {
            let range = plan.range_in(number, size);
            if pieces.last().is_some_and(|last| range.start < last.range.end) {
                // Held together with an earlier one.
                continue;
            }
            let (range, way) = match origin(number, range) {
                Origin::Local => (range, Way::Send),
                Origin::Source => (range, Way::Copy),
                Origin::Held { end } => (ByteRange::new(range.start, end), Way::Held),
            };
            match pieces.last_mut() {
                Some(Piece { range: run, way: Way::Copy, .. })
                    if way == Way::Copy && run.end == range.start && run.len() + range.len() <= COPY_BYTES_MAX =>
                {
                    run.end = range.end;
                }
                _ => pieces.push(Piece { number, range, way }),
            }
        }
        Self::of_pieces(pieces, size)
    }

    /// The pieces of a whole object of `size` bytes that all go the same `way`: even ones of about `part_bytes`, as many as BOS
    /// takes, none longer than `bytes_max`.
    ///
    /// # Errors
    /// The object is empty, or larger than any number of such parts.
    pub fn even(size: u64, part_bytes: u64, bytes_max: u64, way: Way) -> Result<Self, PlanError> {
        let count = size.div_ceil(part_bytes.max(1)).clamp(1, u64::from(PART_NUMBER_MAX));
        let even =
            size.div_ceil(count).next_multiple_of(PART_UNIT_BYTES).clamp(1, PART_BYTES_MAX.min(bytes_max).max(1));
        let numbers = (1..=PART_NUMBER_MAX).filter_map(PartNumber::new);
        let ranges = (0..size.div_ceil(even)).map(|i| ByteRange::new(i * even, ((i + 1) * even).min(size)));
        let pieces = numbers.zip(ranges).map(|(number, range)| Piece { number, range, way }).collect();
        Self::of_pieces(pieces, size)
    }

    /// The plan that these parts are, all of them to be sent: another tool cut the object.
    ///
    /// # Errors
    /// They do not make up the object.
    pub fn of_parts(parts: impl IntoIterator<Item = (PartNumber, ByteRange)>, size: u64) -> Result<Self, PlanError> {
        let pieces = parts.into_iter().map(|(number, range)| Piece { number, range, way: Way::Send }).collect();
        Self::of_pieces(pieces, size)
    }

    /// The plan that these pieces are.
    ///
    /// # Errors
    /// They do not make up the object.
    pub fn of_pieces(pieces: Vec<Piece>, size: u64) -> Result<Self, PlanError> {
        if size == 0 {
            return Err(PlanError::Empty);
        }
        let (mut end, mut before) = (0, 0);
        for &Piece { number, range, .. } in &pieces {
            if range.start != end || range.is_empty() || range.end > size || number.get() <= before {
                return Err(PlanError::Uneven { part: number, range, expected: end });
            }
            if range.len() > COPY_BYTES_MAX {
                return Err(PlanError::TooLong { part: number, bytes: range.len() });
            }
            (end, before) = (range.end, number.get());
        }
        if end != size {
            return Err(PlanError::Short { reaches: end, size });
        }
        Ok(Self { pieces, size })
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Size of the object.
    pub fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::part_plan::{FILE_BYTES_MAX, PART_BYTES_DEFAULT, PART_BYTES_MIN};
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn copy(size: u64, part_bytes: u64) -> Result<Plan, PlanError> {
        Plan::even(size, part_bytes, COPY_BYTES_MAX, Way::Copy)
    }

    fn part(number: u32) -> PartNumber {
        PartNumber::new(number).unwrap()
    }

    fn shape(plan: &Plan) -> Vec<(u32, u64, u64, Way)> {
        plan.pieces().iter().map(|p| (p.number.get(), p.range.start / MIB, p.range.end / MIB, p.way)).collect()
    }

    #[test]
    fn untouched_parts_are_copied_together_and_held_runs_stay_as_they_are() {
        let plan = PartPlan::uniform(8 * MIB);
        let cut = Plan::cut(&plan, 60 * MIB, |number, range| match number.get() {
            1 | 2 | 7 | 8 => Origin::Source,
            3 => Origin::Held { end: range.end },
            4 => Origin::Held { end: range.end + 8 * MIB },
            _ => Origin::Local,
        });
        let expected = [
            (1, 0, 16, Way::Copy),
            (3, 16, 24, Way::Held),
            (4, 24, 40, Way::Held),
            (6, 40, 48, Way::Send),
            (7, 48, 60, Way::Copy),
        ];
        assert_eq!(shape(&cut.unwrap()), expected);
    }

    #[test]
    fn a_run_of_copies_ends_where_one_request_does() {
        let plan = PartPlan::uniform(GIB);
        let size = 11 * GIB + 1;
        let cut = Plan::cut(&plan, size, |_, _| Origin::Source).unwrap();
        assert_eq!(cut.pieces().iter().map(|p| p.range.len()).collect::<Vec<_>>(), [4 * GIB, 4 * GIB, 3 * GIB + 1]);
        assert_eq!(cut.pieces().iter().map(|p| p.number.get()).collect::<Vec<_>>(), [1, 5, 9]);
    }

    #[test]
    fn a_plan_that_does_not_reach_the_size_is_refused() {
        let growing = PartPlan::growing(PART_BYTES_DEFAULT);
        let size = 30_000_000_000_000;
        let cut = Plan::cut(&growing, size, |_, _| Origin::Source);
        assert_eq!(cut, Err(PlanError::Short { reaches: growing.size_max(), size }));
        let known = PartPlan::for_length(size);
        for origin in [Origin::Source, Origin::Local] {
            let whole = Plan::cut(&known, size, |_, _| origin).unwrap();
            assert!(whole.size() == size && whole.pieces().len() <= PART_NUMBER_MAX as usize, "{origin:?}");
        }
        assert!(matches!(copy(FILE_BYTES_MAX + 1, COPY_PART_BYTES), Err(PlanError::Short { .. })));
        assert!(matches!(copy(u64::MAX, 1), Err(PlanError::Short { .. })));
        // Parts that are held in memory while they are sent.
        assert!(matches!(Plan::even(700 * GIB, 8 * MIB, 64 * MIB, Way::Send), Err(PlanError::Short { .. })));
        assert!(Plan::even(600 * GIB, 8 * MIB, 64 * MIB, Way::Send).is_ok());
        assert_eq!(Plan::cut(&growing, 0, |_, _| Origin::Local), Err(PlanError::Empty));
        assert_eq!(copy(0, COPY_PART_BYTES), Err(PlanError::Empty));
    }

    #[test]
    fn pieces_that_leave_a_gap_overlap_or_run_over_are_refused() {
        let plan = PartPlan::uniform(8 * MIB);
        for end in [12 * MIB, 8 * MIB + 1, 40 * MIB, 3] {
            let cut = Plan::cut(&plan, 32 * MIB, |number, _| match number.get() {
                1 => Origin::Held { end },
                _ => Origin::Local,
            });
            assert!(matches!(cut, Err(PlanError::Uneven { .. })), "{end}: {cut:?}");
        }
        let of = |parts: &[(u32, u64, u64)], size| {
            Plan::of_parts(parts.iter().map(|&(n, start, end)| (part(n), ByteRange::new(start, end))), size)
        };
        assert!(of(&[(1, 0, 5), (3, 5, 9)], 9).is_ok(), "numbers may be left out");
        for (parts, size) in [
            (&[(1, 0, 5), (2, 6, 9)][..], 9),
            (&[(1, 0, 5), (2, 4, 9)], 9),
            (&[(2, 0, 5), (1, 5, 9)], 9),
            (&[(1, 0, 5), (2, 5, 5)], 9),
            (&[(1, 0, 5), (2, 5, 10)], 9),
            (&[(1, 1, 9)], 9),
        ] {
            assert!(matches!(of(parts, size), Err(PlanError::Uneven { .. })), "{parts:?}");
        }
        assert_eq!(of(&[(1, 0, 5)], 9), Err(PlanError::Short { reaches: 5, size: 9 }));
        assert!(matches!(of(&[(1, 0, 5_000_000_001)], 5_000_000_001), Err(PlanError::TooLong { .. })));
    }

    #[test]
    fn copies_are_even_multiples_of_a_mebibyte_within_the_limits() {
        for size in [1, MIB, COPY_BYTES_MAX, COPY_BYTES_MAX + 1, 60 * GIB + 7, 48_800_000_000_000, FILE_BYTES_MAX] {
            let plan = copy(size, COPY_PART_BYTES).unwrap();
            let pieces = plan.pieces();
            assert!(pieces.len() <= PART_NUMBER_MAX as usize, "{size}: {} parts", pieces.len());
            for pair in pieces.windows(2) {
                assert_eq!(pair[0].range.len() % MIB, 0);
                assert_eq!(pair[0].range.len(), pieces[0].range.len(), "even");
                assert_eq!(pair[0].number.get() + 1, pair[1].number.get());
            }
        }
        assert_eq!(copy(5 * GIB, GIB).unwrap().pieces().len(), 5);
    }
    #[test]
    fn appending_to_50_gb_takes_few_requests() {
        let plan = PartPlan::growing(PART_BYTES_DEFAULT);
        let (base, size) = (50_000_000_000, 50_000_000_000 + MIB);
        let origin = |_, range: ByteRange| if range.end <= base { Origin::Source } else { Origin::Local };
        let cut = Plan::cut(&plan, size, origin).unwrap();
        assert!(cut.pieces().len() <= 13, "{}", cut.pieces().len());
        assert_eq!(cut.pieces().last().map(|piece| piece.way), Some(Way::Send));
        assert_eq!(cut.pieces().iter().filter(|piece| piece.way == Way::Send).count(), 1);
    }

    proptest! {
        #[test]
        fn a_cut_plan_holds_every_byte_once(
            first in 5u64..40,
            size in prop_oneof![1u64..(100 << 20), 1u64..(4 << 40), Just(20u64 << 40)],
            seed in any::<u64>(),
            density in 0u64..8,
        ) {
            let plan = PartPlan::growing(first * MIB);
            // A fixed pseudo-random choice per part; density 0: all from the other object.
            let origin = |number: PartNumber, range: ByteRange| {
                let drawn = (u64::from(number.get()).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed).rotate_left(23) % 16;
                match drawn {
                    drawn if drawn / 2 >= density => Origin::Source,
                    drawn if drawn % 2 == 0 => Origin::Local,
                    _ => Origin::Held { end: range.end },
                }
            };
            let way = |number: PartNumber| match origin(number, plan.range_in(number, size)) {
                Origin::Source => Way::Copy,
                Origin::Local => Way::Send,
                Origin::Held { .. } => Way::Held,
            };
            let cut = Plan::cut(&plan, size, origin).unwrap();
            let (mut end, mut before) = (0, 0);
            for (i, piece) in cut.pieces().iter().enumerate() {
                let range = piece.range;
                prop_assert_eq!(range.start, end);
                prop_assert!(!range.is_empty());
                prop_assert!(piece.number.get() > before);
                prop_assert_eq!(plan.part_at(range.start), Some(piece.number));
                if i + 1 < cut.pieces().len() {
                    prop_assert!(range.len() >= PART_BYTES_MIN && range.len().is_multiple_of(MIB));
                }
                let parts: Vec<_> = plan.parts_in(range).collect();
                prop_assert!(parts.iter().all(|number| way(*number) == piece.way));
                prop_assert!(parts.len() == 1 || (piece.way == Way::Copy && range.len() <= COPY_BYTES_MAX));
                (end, before) = (range.end, piece.number.get());
            }
            prop_assert_eq!(end, size);
            // Two neighbouring copies are only there because one would be too long.
            for pair in cut.pieces().windows(2) {
                if pair[0].way == Way::Copy && pair[1].way == Way::Copy {
                    let next = plan.range_in(pair[1].number, size);
                    prop_assert!(pair[0].range.len() + next.len() > COPY_BYTES_MAX);
                }
            }
        }
    }
}
