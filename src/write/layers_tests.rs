//! Layers against plain arrays of bytes: what is written never reaches what was frozen.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::write::extents::{add_partial, cut_partials};

/// Blocks of the largest file.
const BLOCKS: u64 = 5;

/// A file with its layers, its journaled partial blocks, and what plain files would hold.
struct Rig {
    dir: TempDir,
    layers: Vec<Layer>,
    lines: BTreeMap<LayerId, BTreeMap<u64, Vec<ByteRange>>>,
    base: Vec<u8>,
    open: Vec<u8>,
    /// Frozen states, oldest first: number of layers and bytes.
    frozen: Vec<(usize, Vec<u8>)>,
    made: LayerId,
    next_byte: u8,
}

impl Rig {
    fn new(base_len: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base: Vec<u8> = (0..base_len).map(|i| 100 + (i % 97) as u8).collect();
        let layers = vec![Layer::create(dir.path(), 1, base_len).unwrap()];
        let open = base.clone();
        let lines = BTreeMap::from([(1, BTreeMap::new())]);
        Self { dir, layers, lines, base, open, frozen: Vec::new(), made: 1, next_byte: 0 }
    }

    fn size(&self) -> u64 {
        self.open.len() as u64
    }

    /// Index of the layer that takes what is written.
    fn top(&mut self) -> usize {
        let closed = self.frozen.last().map_or(0, |(depth, _)| *depth);
        if self.layers.len() == closed {
            self.made += 1;
            self.layers.push(Layer::create(self.dir.path(), self.made, self.size()).unwrap());
            self.lines.insert(self.made, BTreeMap::new());
        }
        self.layers.len() - 1
    }

    fn write_at(&mut self, index: usize, at: u64, bytes: &[u8]) {
        let layer = &mut self.layers[index];
        let plan = layer.extents.plan_write(at, bytes.len() as u64, layer.size());
        plan.zero_edges.iter().for_each(|edge| layer.spool.zero(*edge).unwrap());
        layer.spool.write_at(at, bytes).unwrap();
        let lines = self.lines.get_mut(&layer.id).unwrap();
        plan.partial_lines.iter().for_each(|line| add_partial(lines, line));
        layer.extents.apply_write(&plan).unwrap();
    }

    fn resize_at(&mut self, index: usize, size: u64) {
        let layer = &mut self.layers[index];
        let old = layer.size();
        cut_partials(self.lines.get_mut(&layer.id).unwrap(), size);
        layer.spool.set_len(size).unwrap();
        layer.extents.truncate(old, size).unwrap();
    }

    fn zero_at(&mut self, index: usize, range: ByteRange) {
        let layer = &mut self.layers[index];
        let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        self.lines.get_mut(&layer.id).unwrap().retain(|block, _| !blocks.contains(block));
        layer.extents.zero(range).unwrap();
        layer.extents.scrub(&layer.spool, range).unwrap();
    }

    fn write(&mut self, at: u64, len: u64) {
        if len == 0 {
            return;
        }
        self.next_byte = self.next_byte % 99 + 1;
        let bytes = vec![self.next_byte; len as usize];
        let end = (at + len) as usize;
        let top = self.top();
        self.write_at(top, at, &bytes);
        self.open.resize(self.open.len().max(end), 0);
        self.open[at as usize..end].copy_from_slice(&bytes);
    }

    fn truncate(&mut self, size: u64) {
        let top = self.top();
        self.resize_at(top, size);
        self.open.resize(size as usize, 0);
    }

    fn zero(&mut self, first: u64, end: u64) {
        let range = ByteRange::new(first * BLOCK_BYTES, (end * BLOCK_BYTES).min(self.size()));
        if range.is_empty() || range.end <= range.start {
            return;
        }
        let top = self.top();
        self.zero_at(top, range);
        self.open[range.start as usize..range.end as usize].fill(0);
    }

    fn freeze(&mut self) {
        if self.frozen.len() < 3 {
            self.frozen.push((self.layers.len(), self.open.clone()));
        }
    }

    /// The oldest frozen state is the base from here on.
    fn publish(&mut self) {
        if self.frozen.is_empty() {
            return;
        }
        let (depth, bytes) = self.frozen.remove(0);
        for layer in self.layers.drain(..depth) {
            self.lines.remove(&layer.id);
            remove_files(self.dir.path(), layer.id).unwrap();
        }
        self.frozen.iter_mut().for_each(|(known, _)| *known -= depth.min(*known));
        self.base = bytes;
    }

    /// Seals: what is missing of the base is fetched, then the body is what it should be.
    fn seal(&mut self, which: usize, start: u64, end: u64) {
        let Some((depth, bytes)) = self.frozen.get(which % self.frozen.len().max(1)).cloned() else { return };
        let range = ByteRange::new(start, end.min(bytes.len() as u64));
        if range.is_empty() || depth == 0 {
            return;
        }
        let mut fetched = 0;
        while let Some(gap) = View::new(&self.layers[..depth], bytes.len() as u64).base_gap(range, 3 * BLOCK_BYTES) {
            let part = &self.base[gap.start as usize..gap.end as usize];
            let bottom = &mut self.layers[0];
            let spool = bottom.spool.clone();
            let lines = bottom.extents.fill(&spool, gap.start, part, gap.start.is_multiple_of(2)).unwrap();
            let known = self.lines.get_mut(&bottom.id).unwrap();
            lines.iter().for_each(|line| add_partial(known, line));
            fetched += 1;
            assert!(fetched < 100, "the same gap again and again: {gap:?}");
        }
        let body = View::new(&self.layers[..depth], bytes.len() as u64).body(range).expect("all of it is here");
        let mut read = vec![7; range.len() as usize];
        body.read_at(0, &mut read).unwrap();
        assert_eq!(read, bytes[range.start as usize..range.end as usize]);
        let half = read.len() / 2;
        let mut rest = vec![7; read.len() - half];
        body.read_at(half as u64, &mut rest).unwrap();
        assert_eq!(rest, read[half..]);
    }

    /// The topmost two layers of one state become one, up to `steps` of the steps.
    fn merge(&mut self, steps: usize) {
        let closed = self.frozen.last().map_or(0, |(depth, _)| *depth);
        let index = self.layers.len().wrapping_sub(1);
        if self.layers.len() < closed + 2 {
            return;
        }
        let Some(list) = merge_steps(&self.layers[index - 1], &self.layers[index]) else { return };
        let done = steps >= list.len();
        for step in list.into_iter().take(steps) {
            match step {
                MergeStep::Resize(size) => self.resize_at(index - 1, size),
                MergeStep::Zero(range) => self.zero_at(index - 1, range),
                MergeStep::Copy(range) => {
                    let mut bytes = vec![0; range.len() as usize];
                    self.layers[index].spool.read_at(range.start, &mut bytes).unwrap();
                    self.write_at(index - 1, range.start, &bytes);
                }
            }
        }
        if done {
            let upper = self.layers.pop().unwrap();
            self.lines.remove(&upper.id);
            remove_files(self.dir.path(), upper.id).unwrap();
        }
    }

    /// A layer of its own without a freeze, as a publication that is taken back leaves it.
    fn split(&mut self) {
        self.made += 1;
        self.layers.push(Layer::create(self.dir.path(), self.made, self.size()).unwrap());
        self.lines.insert(self.made, BTreeMap::new());
    }

    fn reopen(&mut self) {
        let known: Vec<(LayerId, u64)> = self.layers.iter().map(|l| (l.id, l.extents.base_end())).collect();
        self.layers.clear();
        for (id, base_end) in known {
            let mut layer = Layer::open(self.dir.path(), id, base_end).unwrap();
            for (block, ranges) in &self.lines[&id] {
                layer.extents.set_partial(*block, ranges.clone());
            }
            layer.extents.scrub(&layer.spool, ByteRange::new(0, u64::MAX)).unwrap();
            self.layers.push(layer);
        }
    }

    fn shown(&self, depth: usize, size: u64) -> Vec<u8> {
        let mut shown = vec![0; size as usize];
        let mut at = 0;
        for piece in View::new(&self.layers[..depth], size).pieces(ByteRange::new(0, u64::MAX)) {
            assert_eq!(piece.range.start, at);
            at = piece.range.end;
            let range = piece.range.start as usize..piece.range.end as usize;
            match piece.from {
                Place::Zero => {}
                Place::Spool(layer) => self.layers[layer].spool.read_at(piece.range.start, &mut shown[range]).unwrap(),
                Place::Base => shown[range.clone()].copy_from_slice(&self.base[range]),
                Place::Held => panic!("nothing is held"),
            }
        }
        assert_eq!(at, size);
        shown
    }

    fn check(&self) {
        assert_eq!(self.shown(self.layers.len(), self.size()), self.open, "the open state");
        for (depth, bytes) in &self.frozen {
            let size = bytes.len() as u64;
            assert_eq!(self.shown(*depth, size), *bytes, "a frozen state");
            let view = View::new(&self.layers[..*depth], size);
            for (start, end) in [(0, size), (BLOCK_BYTES, 2 * BLOCK_BYTES)] {
                let range = ByteRange::new(start.min(size), end.min(size));
                if !range.is_empty() && view.is_untouched(range) {
                    let usual = range.start as usize..range.end as usize;
                    assert_eq!(self.base.get(usual.clone()), bytes.get(usual));
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Truncate(u64),
    Zero(u64, u64),
    Freeze,
    Publish,
    Seal(usize, u64, u64),
    Split,
    Merge(usize),
    Reopen,
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![0..BLOCKS * BLOCK_BYTES, (0..BLOCKS).prop_map(|block| block * BLOCK_BYTES)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (offset(), prop_oneof![0..100u64, 0..2 * BLOCK_BYTES, Just(BLOCK_BYTES)]).prop_map(|(o, l)| Step::Write(o, l)),
        3 => offset().prop_map(Step::Truncate),
        1 => Just(Step::Truncate(0)),
        2 => (0..BLOCKS, 0..=BLOCKS).prop_map(|(a, b)| Step::Zero(a.min(b), a.max(b))),
        4 => Just(Step::Freeze),
        3 => Just(Step::Publish),
        3 => (0..3usize, offset(), offset()).prop_map(|(w, a, b)| Step::Seal(w, a.min(b), a.max(b))),
        2 => Just(Step::Split),
        3 => prop_oneof![0..4usize, Just(usize::MAX)].prop_map(Step::Merge),
        2 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn nothing_that_is_written_reaches_what_was_frozen(
        base_len in prop_oneof![Just(0), offset()],
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut rig = Rig::new(base_len);
        for step in steps {
            match step {
                Step::Write(at, len) => rig.write(at, len),
                Step::Truncate(size) => rig.truncate(size),
                Step::Zero(first, end) => rig.zero(first, end),
                Step::Freeze => rig.freeze(),
                Step::Publish => rig.publish(),
                Step::Seal(which, start, end) => rig.seal(which, start, end),
                Step::Split => rig.split(),
                Step::Merge(steps) => rig.merge(steps),
                Step::Reopen => rig.reopen(),
            }
            rig.check();
        }
    }
}

#[test]
fn files_are_named_by_their_layer() {
    for layer in [1, 2, 17] {
        assert_eq!(layer_of_name(&spool_name(layer)), Some(layer));
        assert_eq!(layer_of_name(&map_name(layer)), Some(layer));
    }
    assert_eq!((spool_name(1).as_str(), map_name(3).as_str()), ("spool", "map.3"));
    for other in ["journal", "spool.1", "spool.x", "map.02", "journal.new"] {
        assert_eq!(layer_of_name(other), None, "{other}");
    }
}
