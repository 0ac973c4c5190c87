//! Extents against a plain array of bytes, and single rules by example.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Blocks of the largest file of the model test.
const BLOCKS: u64 = 6;

/// A dirty file with its spool, its journaled lines, its base and the bytes that only BOS holds, beside what a plain file
/// would hold.
struct Rig {
    dir: TempDir,
    spool: Spool,
    extents: Extents,
    lines: BTreeMap<u64, Vec<ByteRange>>,
    base: Vec<u8>,
    held: BTreeMap<u64, Vec<u8>>,
    model: Vec<u8>,
    /// A kill may have left bytes in the spool that do not count.
    unscrubbed: bool,
    next_byte: u8,
}

impl Rig {
    fn new(base_len: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base: Vec<u8> = (0..base_len).map(|i| 100 + (i % 97) as u8).collect();
        Self {
            spool: Spool::create(dir.path(), base_len).unwrap(),
            extents: Extents::create(dir.path(), base_len).unwrap(),
            dir,
            lines: BTreeMap::new(),
            held: BTreeMap::new(),
            model: base.clone(),
            base,
            unscrubbed: false,
            next_byte: 0,
        }
    }

    fn size(&self) -> u64 {
        self.model.len() as u64
    }

    /// Bytes that nothing else has.
    fn fresh(&mut self, len: u64) -> Vec<u8> {
        (0..len)
            .map(|_| {
                self.next_byte = self.next_byte % 99 + 1;
                self.next_byte
            })
            .collect()
    }

    /// `steps`: after how many of the steps of a write bosfs is killed; `None`: not at all.
    fn write(&mut self, offset: u64, len: u64, killed_after: Option<u8>) {
        let bytes = self.fresh(len);
        let plan = self.extents.plan_write(offset, len, self.size());
        if plan.held_partial {
            return;
        }
        assert!(plan.zero_edges.len() <= 2 && plan.zero_edges.iter().all(|edge| edge.len() < BLOCK_BYTES));
        assert!(plan.zero_edges.iter().all(|edge| edge.end <= self.size()), "an edge extends the file");
        let before = self.model.clone();
        let end = (offset + len) as usize;
        if len > 0 {
            if self.model.len() < end {
                self.model.resize(end, 0);
            }
            self.model[offset as usize..end].copy_from_slice(&bytes);
        }
        let steps = killed_after.unwrap_or(u8::MAX);
        if steps > 0 {
            plan.zero_edges.iter().for_each(|&edge| self.spool.zero(edge).unwrap());
        }
        if steps > 1 && len > 0 {
            self.spool.write_at(offset, &bytes).unwrap();
        }
        if steps > 2 {
            plan.partial_lines.iter().for_each(|line| add_partial(&mut self.lines, line));
        }
        if steps > 3 {
            let spooled = self.extents.spool_blocks(ByteRange::new(0, u64::MAX / 2));
            self.extents.apply_write(&plan).unwrap();
            let after = self.extents.spool_blocks(ByteRange::new(0, u64::MAX / 2));
            assert_eq!(after - spooled, plan.new_spool_blocks);
        }
        if killed_after.is_some() {
            self.reopen(false);
            // The write did not return: within its range old or new bytes may be there, beside it nothing changed.
            let after = self.view(self.spool.len());
            for (i, &byte) in after.iter().enumerate() {
                let old = before.get(i).copied().unwrap_or(0);
                let inside = (offset..offset + len).contains(&(i as u64));
                assert!(byte == old || inside && byte == self.model[i], "byte {i} is {byte} after a kill, was {old}");
            }
            assert!(after.len() >= before.len());
            self.model = after;
        }
    }

    fn truncate(&mut self, new_size: u64) {
        let old_size = self.size();
        let cut_block = ByteRange::new(new_size / BLOCK_BYTES * BLOCK_BYTES, new_size);
        if new_size < old_size && self.extents.held_blocks(cut_block) > 0 {
            return;
        }
        self.spool.set_len(new_size).unwrap();
        self.extents.truncate(old_size, new_size).unwrap();
        self.model.resize(new_size as usize, 0);
        cut_partials(&mut self.lines, new_size);
    }

    fn fill(&mut self, start: u64, end: u64) {
        let range = ByteRange::new(start, end.min(self.base.len() as u64));
        let bytes = self.base.get(range.start as usize..range.end as usize).unwrap_or_default();
        let lines = self.extents.fill(&self.spool, start, bytes, start.is_multiple_of(2)).unwrap();
        lines.iter().for_each(|line| add_partial(&mut self.lines, line));
    }

    fn hold(&mut self, start: u64, end: u64) {
        let range = ByteRange::new(start, end.min(self.size()));
        for range in self.extents.hold(range).unwrap() {
            for block in blocks_touching(range) {
                let bytes = block_range(block);
                self.held.insert(block, self.model[bytes.start as usize..bytes.end as usize].to_vec());
            }
            self.spool.punch(range).unwrap();
        }
    }

    fn reopen(&mut self, scrub: bool) {
        self.spool = Spool::open(self.dir.path()).unwrap();
        self.extents = Extents::open(self.dir.path(), self.extents.base_end()).unwrap();
        for (&block, ranges) in &self.lines {
            self.extents.set_partial(block, ranges.clone());
        }
        self.unscrubbed = !scrub;
        if scrub {
            self.extents.scrub(&self.spool, ByteRange::new(0, u64::MAX)).unwrap();
        }
    }

    /// The file as the pieces tell.
    fn view(&self, size: u64) -> Vec<u8> {
        let mut view = vec![0; size as usize];
        let mut last: Option<Piece> = None;
        let mut at = 0;
        for piece in self.extents.pieces(ByteRange::new(0, u64::MAX), size) {
            assert!(piece.range.start == at && !piece.range.is_empty());
            assert!(last.is_none_or(|last| last.from != piece.from), "pieces not merged");
            at = piece.range.end;
            last = Some(piece);
            let range = piece.range.start as usize..piece.range.end as usize;
            match piece.from {
                Source::Zero => {}
                Source::Spool => self.spool.read_at(piece.range.start, &mut view[range]).unwrap(),
                Source::Base => view[range.clone()].copy_from_slice(&self.base[range]),
                Source::Held => {
                    for block in blocks_touching(piece.range) {
                        let bytes = block_range(block).intersect(piece.range);
                        view[bytes.start as usize..bytes.end as usize]
                            .copy_from_slice(&self.held[&block][..bytes.len() as usize]);
                    }
                }
            }
        }
        assert_eq!(at, size);
        view
    }

    fn check(&self) {
        let size = self.size();
        assert_eq!(self.spool.len(), size);
        let view = self.view(size);
        if let Some(i) = (0..view.len()).find(|&i| view[i] != self.model[i]) {
            panic!(
                "byte {i} is {} instead of {}: {:?}",
                view[i],
                self.model[i],
                self.extents.pieces(ByteRange::new(0, size), size)
            );
        }
        // Some parts, the last one cut to the size.
        for (start, end) in [(0, size), (0, BLOCK_BYTES), (BLOCK_BYTES, 3 * BLOCK_BYTES), (2 * BLOCK_BYTES, size)] {
            let range = ByteRange::new(start.min(size), end.min(size));
            let pieces = self.extents.pieces(range, size);
            let usual = range.start as usize..range.end as usize;
            if !range.is_empty() && self.extents.is_untouched(range, size) {
                assert!(pieces.iter().all(|p| p.from == Source::Base));
                assert_eq!(self.model.get(usual.clone()), self.base.get(usual.clone()));
            }
            let whole = pieces.iter().all(|p| p.from == Source::Spool);
            assert!(!self.extents.is_spooled(range) || whole);
            if self.extents.is_sealable(range, size) && !self.unscrubbed {
                let mut raw = vec![1; range.len() as usize];
                self.spool.read_at(range.start, &mut raw).unwrap();
                assert_eq!(raw, self.model[usual], "a part read from the spool alone: {range:?}");
            }
            let fetched: u64 = self.extents.base_pieces(range, size).iter().map(ByteRange::len).sum();
            assert_eq!(fetched, pieces.iter().filter(|p| p.from == Source::Base).map(|p| p.range.len()).sum::<u64>());
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    KilledWrite(u64, u64, u8),
    Append(u64),
    Truncate(u64),
    Fill(u64, u64),
    /// What sealing a part does: fetch all that is missing in it.
    Seal(u64, u64),
    Hold(u64, u64),
    Reopen(bool),
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..BLOCKS * BLOCK_BYTES,
        (0..BLOCKS).prop_map(|block| block * BLOCK_BYTES),
        (1..BLOCKS, 0..3u64).prop_map(|(block, off)| block * BLOCK_BYTES + off - 1),
    ]
}

fn len() -> impl Strategy<Value = u64> {
    prop_oneof![0..100u64, 0..2 * BLOCK_BYTES, Just(BLOCK_BYTES), Just(2 * BLOCK_BYTES), 0..BLOCKS * BLOCK_BYTES]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (offset(), len()).prop_map(|(o, l)| Step::Write(o, l)),
        2 => (offset(), len(), 0..5u8).prop_map(|(o, l, s)| Step::KilledWrite(o, l, s)),
        2 => (1..3000u64).prop_map(Step::Append),
        3 => offset().prop_map(Step::Truncate),
        1 => Just(Step::Truncate(0)),
        2 => (offset(), offset()).prop_map(|(a, b)| Step::Fill(a.min(b), a.max(b))),
        3 => (offset(), offset()).prop_map(|(a, b)| Step::Seal(a.min(b), a.max(b))),
        2 => (offset(), offset()).prop_map(|(a, b)| Step::Hold(a.min(b), a.max(b))),
        2 => any::<bool>().prop_map(Step::Reopen),
    ]
}

fn run(base_len: u64, steps: Vec<Step>) {
    let mut rig = Rig::new(base_len);
    rig.check();
    for step in steps {
        match step {
            Step::Write(offset, len) => rig.write(offset, len, None),
            Step::KilledWrite(offset, len, after) => rig.write(offset, len, Some(after)),
            Step::Append(len) => rig.write(rig.size(), len, None),
            Step::Truncate(size) => rig.truncate(size),
            Step::Fill(start, end) => rig.fill(start, end),
            Step::Seal(start, end) => {
                let range = ByteRange::new(start, end);
                for piece in rig.extents.base_pieces(range, rig.size()) {
                    rig.fill(piece.start, piece.end);
                }
            }
            Step::Hold(start, end) => rig.hold(start, end),
            Step::Reopen(scrub) => rig.reopen(scrub),
        }
        rig.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_dirty_file_holds_what_a_plain_file_would(
        base_len in prop_oneof![Just(0), offset()],
        steps in prop::collection::vec(step(), 1..25),
    ) {
        run(base_len, steps);
    }
}

#[test]
fn small_appends_cost_no_zeros_and_no_lines() {
    let mut rig = Rig::new(0);
    for _ in 0..100 {
        let plan = rig.extents.plan_write(rig.size(), 100, rig.size());
        assert!(plan.zero_edges.is_empty() && plan.partial_changes.is_empty());
        rig.write(rig.size(), 100, None);
    }
    rig.check();
    // The same behind a base that ends within a block: one line, for the bytes of the base in that block.
    let mut rig = Rig::new(5000);
    let mut lines = 0;
    for _ in 0..100 {
        let plan = rig.extents.plan_write(rig.size(), 100, rig.size());
        assert!(plan.zero_edges.is_empty());
        lines += usize::from(plan.partial_changes.iter().any(|(block, _)| *block != 1));
        rig.write(rig.size(), 100, None);
    }
    rig.check();
    assert_eq!((lines, rig.lines.len()), (0, 1));
    assert_eq!(rig.extents.base_pieces(ByteRange::new(4096, 20_000), rig.size()), [ByteRange::new(4096, 5000)]);
}

#[test]
fn a_block_is_whole_when_all_of_the_base_in_it_is_written() {
    let mut rig = Rig::new(10_000);
    rig.write(4096 + 10, 20, None);
    assert_eq!(rig.lines[&1], [ByteRange::at(4106, 20)]);
    rig.write(4096 + 50, 20, None);
    rig.write(4096 + 30, 20, None);
    assert_eq!(rig.lines[&1], [ByteRange::at(4106, 60)]);
    assert_eq!(rig.extents.partial_count(), 1);
    rig.write(4096, 10, None);
    rig.write(4096 + 70, 4096 - 70, None);
    assert!(!rig.lines.contains_key(&1));
    assert!(rig.extents.is_spooled(ByteRange::new(4096, 8192)));
    // The last block of the base ends with the base.
    rig.write(8192, 10_000 - 8192, None);
    assert!(!rig.lines.contains_key(&2));
    rig.check();
}

#[test]
fn what_was_fetched_is_there_after_a_kill_without_the_base() {
    let mut rig = Rig::new(8192);
    rig.write(10, 20, None);
    rig.write(5000, 20, None);
    rig.fill(0, 4096);
    assert!(!rig.lines.contains_key(&0) && !rig.lines[&1].is_empty());
    rig.reopen(true);
    assert_eq!(rig.extents.base_pieces(ByteRange::new(0, 4096), rig.size()), []);
    assert_eq!(rig.extents.partial_count(), 1);
    rig.write(100, 20, None);
    rig.reopen(true);
    rig.check();
    // Killed between the bytes and the line: they are fetched again.
    let bytes = rig.base[4096..8192].to_vec();
    rig.extents.fill(&rig.spool, 4096, &bytes, true).unwrap();
    rig.reopen(true);
    assert_eq!(rig.extents.partial_count(), 1);
    rig.check();
}

#[test]
fn a_write_over_part_of_a_held_block_is_told() {
    let mut rig = Rig::new(0);
    rig.write(0, 3 * BLOCK_BYTES, None);
    rig.hold(1, 3 * BLOCK_BYTES);
    assert_eq!(rig.extents.held_blocks(ByteRange::new(0, 3 * BLOCK_BYTES)), 2);
    assert!(rig.extents.plan_write(BLOCK_BYTES + 1, BLOCK_BYTES, rig.size()).held_partial);
    assert!(rig.extents.plan_write(0, BLOCK_BYTES + 1, rig.size()).held_partial);
    assert!(!rig.extents.plan_write(BLOCK_BYTES, 2 * BLOCK_BYTES, rig.size()).held_partial);
    assert!(!rig.extents.is_sealable(ByteRange::new(0, rig.size()), rig.size()));
    rig.check();
}

#[test]
fn a_sparse_giant_is_cheap() {
    let mut rig = Rig::new(0);
    let size = 20 << 40;
    rig.extents.truncate(0, size).unwrap();
    let plan = rig.extents.plan_write(size - 5, 5, size);
    assert_eq!(plan.zero_edges, [ByteRange::new(size - 4096, size - 5)]);
    rig.extents.apply_write(&plan).unwrap();
    let pieces = rig.extents.pieces(ByteRange::new(0, u64::MAX), size);
    assert_eq!(pieces.iter().map(|p| p.from).collect::<Vec<_>>(), [Source::Zero, Source::Spool]);
    rig.extents.truncate(size, 1).unwrap();
    assert_eq!(rig.extents.sync_handle().unwrap().metadata().unwrap().len(), 1);
    rig.extents.truncate(1, 0).unwrap();
    assert_eq!(rig.extents.sync_handle().unwrap().metadata().unwrap().len(), 0);
}

#[test]
fn no_bytes_change_nothing() {
    let rig = Rig::new(5000);
    assert_eq!(rig.extents.plan_write(4097, 0, 5000), WritePlan::default());
    assert!(rig.extents.pieces(ByteRange::new(9, 9), 5000).is_empty());
    assert!(rig.extents.pieces(ByteRange::new(6000, 7000), 5000).is_empty());
    assert!(rig.extents.is_untouched(ByteRange::new(0, 9000), 5000));
    assert!(!rig.extents.is_untouched(ByteRange::new(0, 9000), 5001));
}

#[test]
fn what_a_failed_write_left_is_scrubbed() {
    let mut rig = Rig::new(0);
    rig.truncate(4 * BLOCK_BYTES);
    rig.spool.write_at(100, &[9; 9000]).unwrap();
    rig.extents.scrub(&rig.spool, ByteRange::new(100, 9100)).unwrap();
    let mut raw = vec![1; 4 * BLOCK_BYTES as usize];
    rig.spool.read_at(0, &mut raw).unwrap();
    assert!(raw.iter().all(|&byte| byte == 0));
    assert_eq!(rig.spool.len(), 4 * BLOCK_BYTES);
}
