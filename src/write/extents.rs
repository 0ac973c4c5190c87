//! Where each byte of a dirty file is, to the byte: in the spool, in the base object, in a part that BOS holds, or zero.
//!
//! Built from three things that survive a kill of bosfs:
//! - the block map (one state per 4 KiB block, its own file);
//! - `base_end`, the smallest size the file had since it was opened: from there on the base does not count, and what would
//!   be the base's reads as zeros. The caller journals sizes and gives `base_end` back on open;
//! - *partial* blocks: in the spool, but only some of their bytes were written; the others, below `base_end`, are still
//!   the base's. The caller journals what [`WritePlan::partial_lines`] tells, adds the lines up with [`add_partial`] and
//!   [`cut_partials`], and gives each block's ranges back through [`Extents::set_partial`]. A line whose block is not in the
//!   spool says nothing.
//!
//! What is called the base here is whatever lies below: an object, or the state that a publication under way froze
//! (`layers.rs`).
//!
//! Two invariants let a part be sealed by reading the spool alone: bytes of the spool in blocks that are not in the spool
//! by the map are zeros, and so are the bytes of a spooled block from `base_end` on that nobody wrote. A kill between
//! writing the spool and setting the map breaks the first one; [`Extents::scrub`] restores it and is due after every open
//! and after every failed write. Until then [`Extents::pieces`] is right nevertheless, and a new write zeroes the edges
//! of the blocks it brings into the spool.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::block_map::{BLOCK_BYTES, BlockMap, BlockState, MAP_FILE};
use super::block_set::BlockSet;
use super::spool::Spool;
use crate::object::ByteRange;

/// What a write is going to change. Made by [`Extents::plan_write`], carried out in this order: put zeros over
/// `zero_edges`, put the bytes into the spool, journal `partial_lines`, call [`Extents::apply_write`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WritePlan {
    /// The blocks that are in the spool afterwards.
    pub blocks: Range<u64>,
    /// Blocks and their written ranges from now on; empty: the block is whole.
    pub partial_changes: Vec<(u64, Vec<ByteRange>)>,
    /// Lines to journal. They are as short as the write, however finely a block is scattered.
    pub partial_lines: Vec<PartialLine>,
    /// Blocks that are not in the spool yet: what the write costs in disk space.
    pub new_spool_blocks: u64,
    /// Ranges of the spool, within the file's present size, to be zeroed first; at most two, each less than a block.
    pub zero_edges: Vec<ByteRange>,
    /// The write covers a part of a block whose other bytes only BOS holds. It must not be carried out.
    pub held_partial: bool,
}

impl WritePlan {
    fn whole(&mut self, block: u64) {
        self.partial_changes.push((block, Vec::new()));
        self.partial_lines.push(PartialLine { block, ranges: Vec::new(), adds: false });
    }
}

/// What a journal has to say of a block before the map is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialLine {
    /// Index of the block.
    pub block: u64,
    /// Its written ranges; empty: it is whole.
    pub ranges: Vec<ByteRange>,
    /// They were written beside those that earlier lines name. Else these are all: the block was not in the spool before, and
    /// what an earlier line says of it is void.
    pub adds: bool,
}

/// Where a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the spool at the same offset.
    Spool,
    /// Nowhere: zeros.
    Zero,
    /// In the base object at the same offset.
    Base,
    /// Only in a part that BOS holds.
    Held,
}

/// A run of bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which bytes.
    pub range: ByteRange,
    /// Where they are.
    pub from: Source,
}

/// See the module.
pub struct Extents {
    map: BlockMap,
    /// Written ranges of each partial block: ascending, not touching, not all of the base's bytes in the block.
    partials: BTreeMap<u64, Vec<ByteRange>>,
    /// Blocks whose last journaled line names ranges. A line that makes such a block whole must follow before the block
    /// can be taken for whole after a replay.
    journaled: BTreeSet<u64>,
    base_end: u64,
    /// Blocks that came into the spool since the last [`Extents::begin_sync`].
    fresh: BlockSet,
    /// Blocks of syncs that are under way.
    syncing: BlockSet,
}

impl Extents {
    /// Of a new dirty file whose base counts up to `base_end` (0 without a base), with its map in `dir`.
    ///
    /// # Errors
    /// Those of the disk; `AlreadyExists` where there is a map.
    pub fn create(dir: &Path, base_end: u64) -> io::Result<Self> {
        Self::create_at(&dir.join(MAP_FILE), base_end)
    }

    /// As [`Extents::create`], with the map at `path`.
    ///
    /// # Errors
    /// See [`Extents::create`].
    pub fn create_at(path: &Path, base_end: u64) -> io::Result<Self> {
        Ok(Self::over(BlockMap::create_at(path)?, base_end))
    }

    /// Of the dirty file that an earlier process left in `dir`. To be followed by [`Extents::set_partial`] for the last
    /// line of every block, and [`Extents::scrub`].
    ///
    /// # Errors
    /// Those of the disk; `NotFound` where there is no map.
    pub fn open(dir: &Path, base_end: u64) -> io::Result<Self> {
        Self::open_at(&dir.join(MAP_FILE), base_end)
    }

    /// As [`Extents::open`], with the map at `path`.
    ///
    /// # Errors
    /// See [`Extents::open`].
    pub fn open_at(path: &Path, base_end: u64) -> io::Result<Self> {
        Ok(Self::over(BlockMap::open_at(path)?, base_end))
    }

    fn over(map: BlockMap, base_end: u64) -> Self {
        Self {
            map,
            partials: BTreeMap::new(),
            journaled: BTreeSet::new(),
            base_end,
            fresh: BlockSet::default(),
            syncing: BlockSet::default(),
        }
    }

    /// End of the last block that is anything but the base's, bytes.
    pub fn end(&self) -> u64 {
        self.map.last_end() * BLOCK_BYTES
    }

    /// Where the base ceases to count, bytes.
    pub fn base_end(&self) -> u64 {
        self.base_end
    }

    /// A second descriptor of the map's file, to be synced without holding anything.
    ///
    /// # Errors
    /// Those of `dup`.
    pub fn sync_handle(&self) -> io::Result<File> {
        self.map.sync_handle()
    }

    /// Spool and map are about to be synced: the blocks that are in the spool and were not certain to be. To be given back by
    /// [`Extents::end_sync`] once a line in the journal names them; until then every other sync names them too.
    pub fn begin_sync(&mut self) -> BlockSet {
        self.syncing.extend(&std::mem::take(&mut self.fresh));
        self.syncing.clone()
    }

    /// These blocks are certain to be in the spool.
    pub fn end_sync(&mut self, synced: &BlockSet) {
        self.syncing.subtract(synced);
    }

    /// Of a spool that an earlier process left: the next sync names every block for which `is_certain` is false, since nobody
    /// knows any more what came into it since the last one.
    pub fn distrust_unsynced(&mut self, is_certain: impl Fn(u64) -> bool) {
        let uncertain = self.uncertain(is_certain);
        self.fresh.extend(&uncertain);
    }

    /// Whether a sync of blocks is under way, or failed.
    pub fn is_syncing(&self) -> bool {
        !self.syncing.is_empty()
    }

    /// Whether blocks came into the spool that no sync has been told of.
    pub fn has_unsynced(&self) -> bool {
        !self.fresh.is_empty() || !self.syncing.is_empty()
    }

    /// After a restart of the machine: the blocks in the spool for which `is_certain` is false. They may have lost their
    /// bytes.
    pub fn uncertain(&self, is_certain: impl Fn(u64) -> bool) -> BlockSet {
        let mut uncertain = BlockSet::default();
        for (blocks, _) in self.map.runs(0..self.map.end()).filter(|(_, state)| *state == BlockState::Spool) {
            blocks.filter(|block| !is_certain(*block)).for_each(|block| uncertain.insert(block..block + 1));
        }
        uncertain
    }

    /// These blocks of the spool count no more: they are again what they were before the write that was never synced, as `was`
    /// says: BOS's alone, zeros, or the base's (which are zeros where it does not reach). [`Extents::scrub`] is due afterwards.
    ///
    /// # Errors
    /// Those of the disk. The call may be repeated.
    pub fn revert(&mut self, uncertain: &BlockSet, was: impl Fn(u64) -> BlockState) -> io::Result<()> {
        for run in uncertain.runs() {
            for block in run.clone() {
                self.map.set(block..block + 1, was(block))?;
            }
            self.partials.retain(|block, _| !run.contains(block));
            self.journaled.retain(|block| !run.contains(block));
        }
        Ok(())
    }

    /// Takes what the journaled lines of `block` add up to: its written ranges; empty: it is whole.
    pub fn set_partial(&mut self, block: u64, ranges: Vec<ByteRange>) {
        if ranges.is_empty() {
            self.journaled.remove(&block);
        } else {
            self.journaled.insert(block);
        }
        let ranges = merged(ranges.into_iter().map(|range| range.intersect(block_range(block))).collect());
        if ranges.is_empty() || self.map.state(block) != BlockState::Spool || self.completes(block, &ranges) {
            self.partials.remove(&block);
        } else {
            self.partials.insert(block, ranges);
        }
    }

    /// What writing `len` bytes at `offset` is going to change in a file of `size` bytes. Changes nothing.
    pub fn plan_write(&self, offset: u64, len: u64, size: u64) -> WritePlan {
        let write = ByteRange::at(offset, len);
        let mut plan = WritePlan { blocks: blocks_touching(write), ..WritePlan::default() };
        if write.is_empty() {
            return WritePlan::default();
        }
        plan.new_spool_blocks =
            plan.blocks.end - plan.blocks.start - self.map.count(plan.blocks.clone(), BlockState::Spool);
        let (first, last) = (plan.blocks.start, plan.blocks.end - 1);
        self.plan_edge(first, write, size, &mut plan);
        // What was partial in between is whole afterwards.
        for &block in self.journaled.range(first + 1..last.max(first + 1)) {
            plan.whole(block);
        }
        if last > first {
            self.plan_edge(last, write, size, &mut plan);
        }
        plan
    }

    fn plan_edge(&self, block: u64, write: ByteRange, size: u64, plan: &mut WritePlan) {
        let whole = block_range(block);
        let covered = whole.intersect(write);
        let mut ranges = vec![covered];
        let state = self.map.state(block);
        let zero_from = match state {
            BlockState::Spool => {
                match self.partials.get(&block) {
                    Some(before) => ranges.extend(before),
                    // Whole already.
                    None => ranges = vec![whole],
                }
                None
            }
            BlockState::Base => Some(self.base_end),
            BlockState::Zero => {
                ranges = vec![whole];
                Some(0)
            }
            BlockState::Held => {
                plan.held_partial |= covered != whole;
                None
            }
        };
        if let Some(from) = zero_from {
            let before = ByteRange::new(whole.start.max(from), covered.start.min(size));
            let after = ByteRange::new(covered.end.max(from), whole.end.min(size));
            plan.zero_edges.extend([before, after].into_iter().filter(|edge| !edge.is_empty()));
        }
        let ranges = merged(ranges);
        if !self.completes(block, &ranges) {
            plan.partial_changes.push((block, ranges));
            let adds = state == BlockState::Spool;
            plan.partial_lines.push(PartialLine { block, ranges: vec![covered], adds });
        } else if self.journaled.contains(&block) {
            plan.whole(block);
        }
    }

    /// Carries out `plan`, made by [`Extents::plan_write`] of this very state. The bytes are in the spool and
    /// `partial_changes` are journaled.
    ///
    /// # Errors
    /// Those of the disk. The write has then failed; what the file holds in its range is the old or the new bytes.
    pub fn apply_write(&mut self, plan: &WritePlan) -> io::Result<()> {
        // Even if the map cannot be set, the lines are in the journal.
        for (block, _) in plan.partial_changes.iter().filter(|(_, ranges)| !ranges.is_empty()) {
            self.journaled.insert(*block);
        }
        let new: Vec<_> = self.map.runs(plan.blocks.clone()).filter(|(_, state)| *state != BlockState::Spool).collect();
        new.into_iter().for_each(|(blocks, _)| self.fresh.insert(blocks));
        self.map.set(plan.blocks.clone(), BlockState::Spool)?;
        for (block, ranges) in &plan.partial_changes {
            if ranges.is_empty() {
                self.partials.remove(block);
                self.journaled.remove(block);
            } else {
                self.partials.insert(*block, ranges.clone());
            }
        }
        Ok(())
    }

    /// Where each byte of `range` is, in a file of `size` bytes: in order, without gaps, up to `size`; neighbours differ.
    pub fn pieces(&self, range: ByteRange, size: u64) -> Vec<Piece> {
        let range = range.intersect(ByteRange::new(0, size));
        let mut pieces = Pieces { list: Vec::new(), within: range };
        for (blocks, state) in self.map.runs(blocks_touching(range)) {
            let run = bytes_of(&blocks);
            match state {
                BlockState::Zero => pieces.push(run, Source::Zero),
                BlockState::Held => pieces.push(run, Source::Held),
                BlockState::Base => {
                    let end = run.start.max(run.end.min(self.base_end));
                    pieces.push(ByteRange::new(run.start, end), Source::Base);
                    pieces.push(ByteRange::new(end, run.end), Source::Zero);
                }
                BlockState::Spool => {
                    let mut at = run.start;
                    for (&block, written) in self.partials.range(blocks) {
                        for gap in gaps(self.base_bytes(block), written) {
                            pieces.push(ByteRange::new(at, gap.start), Source::Spool);
                            pieces.push(gap, Source::Base);
                            at = gap.end;
                        }
                    }
                    pieces.push(ByteRange::new(at, run.end), Source::Spool);
                }
            }
        }
        pieces.list
    }

    /// The bytes of `range` that must be fetched from the base before the range can be sealed.
    pub fn base_pieces(&self, range: ByteRange, size: u64) -> Vec<ByteRange> {
        self.pieces(range, size).into_iter().filter(|p| p.from == Source::Base).map(|p| p.range).collect()
    }

    /// Whether every byte of `range` (within `size`) is the base's at the same offset. Looks at whole blocks: a change
    /// beside the range but in its first or last block makes this `false` too.
    pub fn is_untouched(&self, range: ByteRange, size: u64) -> bool {
        let range = range.intersect(ByteRange::new(0, size));
        range.is_empty() || range.end <= self.base_end && self.map.all(blocks_touching(range), BlockState::Base)
    }

    /// Whether all blocks of `range` are in the spool, and whole.
    pub fn is_spooled(&self, range: ByteRange) -> bool {
        let blocks = blocks_touching(range);
        self.map.all(blocks.clone(), BlockState::Spool) && self.partials.range(blocks).next().is_none()
    }

    /// Whether the spool alone has the right bytes of `range` (zeros as holes), so that it can be sealed without a fetch.
    pub fn is_sealable(&self, range: ByteRange, size: u64) -> bool {
        let in_spool = |piece: &Piece| matches!(piece.from, Source::Spool | Source::Zero);
        self.is_spooled(range) || self.pieces(range, size).iter().all(in_spool)
    }

    /// Blocks of `range` that are in the spool.
    pub fn spool_blocks(&self, range: ByteRange) -> u64 {
        self.map.count(blocks_touching(range), BlockState::Spool)
    }

    /// Blocks of `range` that only BOS holds.
    pub fn held_blocks(&self, range: ByteRange) -> u64 {
        self.map.count(blocks_touching(range), BlockState::Held)
    }

    /// Number of partial blocks.
    pub fn partial_count(&self) -> usize {
        self.partials.len()
    }

    /// Takes bytes of the base that were fetched, from file offset `at` on. Only bytes that are still the base's are put
    /// into the spool, whatever was written meanwhile. A block that none of whose bytes were written is taken only if
    /// `bytes` hold all that the base has of it. Returns lines to journal, as [`WritePlan::partial_lines`]: without them
    /// a later process fetches the same bytes again, if the base is still there. `remembered` false: no lines are wanted. They
    /// would outlive a power loss that takes the bytes which they speak of.
    ///
    /// # Errors
    /// Those of the disk. The call may be repeated.
    pub fn fill(&mut self, spool: &Spool, at: u64, bytes: &[u8], remembered: bool) -> io::Result<Vec<PartialLine>> {
        let given = ByteRange::at(at, bytes.len() as u64).intersect(ByteRange::new(0, self.base_end));
        let part_of = |range: ByteRange| &bytes[(range.start - at) as usize..(range.end - at) as usize];
        let runs: Vec<_> = self.map.runs(blocks_touching(given)).collect();
        let mut lines = Vec::new();
        for (blocks, state) in runs {
            match state {
                BlockState::Zero | BlockState::Held => {}
                BlockState::Base => {
                    let start = blocks.start.max(given.start.div_ceil(BLOCK_BYTES));
                    // The last block of the base is whole when it is there up to `base_end`.
                    let reach = if given.end == self.base_end {
                        given.end.div_ceil(BLOCK_BYTES)
                    } else {
                        given.end / BLOCK_BYTES
                    };
                    let end = blocks.end.min(reach);
                    if start >= end {
                        continue;
                    }
                    let taken = bytes_of(&(start..end)).intersect(given);
                    spool.write_at(taken.start, part_of(taken))?;
                    spool.zero(ByteRange::new(taken.end, (end * BLOCK_BYTES).min(spool.len())))?;
                    self.fresh.insert(start..end);
                    self.map.set(start..end, BlockState::Spool)?;
                }
                BlockState::Spool => {
                    let partial: Vec<u64> = self.partials.range(blocks).map(|(&block, _)| block).collect();
                    for block in partial {
                        lines.extend(self.fill_partial(block, given, spool, part_of, remembered)?);
                    }
                }
            }
        }
        Ok(lines)
    }

    fn fill_partial<'a>(
        &mut self,
        block: u64,
        given: ByteRange,
        spool: &Spool,
        part_of: impl Fn(ByteRange) -> &'a [u8],
        remembered: bool,
    ) -> io::Result<Option<PartialLine>> {
        let Some(written) = self.partials.get(&block) else { return Ok(None) };
        let mut filled = false;
        let mut ranges = written.clone();
        for gap in gaps(self.base_bytes(block), written) {
            let taken = gap.intersect(given);
            if !taken.is_empty() {
                spool.write_at(taken.start, part_of(taken))?;
                ranges.push(taken);
                filled = true;
            }
        }
        let mut ranges = merged(ranges);
        if self.completes(block, &ranges) {
            ranges.clear();
            self.partials.remove(&block);
            if remembered {
                self.journaled.remove(&block);
            }
        } else {
            self.partials.insert(block, ranges.clone());
        }
        Ok((filled && remembered).then_some(PartialLine { block, ranges, adds: false }))
    }

    /// The file is cut or extended from `old_size` to `new_size`. Cut bytes are neither the spool's nor the base's any
    /// more, also when the file grows again. The caller has journaled the new size and calls [`Spool::set_len`]. A cut
    /// through a block that only BOS holds is not possible; see [`Extents::held_blocks`].
    ///
    /// # Errors
    /// Those of the disk. The call may be repeated.
    pub fn truncate(&mut self, old_size: u64, new_size: u64) -> io::Result<()> {
        if new_size >= old_size {
            return Ok(());
        }
        self.base_end = self.base_end.min(new_size);
        let end = new_size.div_ceil(BLOCK_BYTES);
        self.partials.split_off(&end);
        if new_size == 0 {
            return self.map.reset();
        }
        // Beyond `base_end` the state `Base` reads as zeros and costs nothing.
        self.map.cut(end)?;
        if let Some(written) = self.partials.remove(&(end - 1)) {
            let within = ByteRange::new(0, new_size);
            let ranges = merged(written.iter().map(|range| range.intersect(within)).collect());
            if ranges.is_empty() {
                // All that was written of it is cut: the rest is the base's as ever.
                self.map.set(end - 1..end, BlockState::Base)?;
            } else if !self.completes(end - 1, &ranges) {
                self.partials.insert(end - 1, ranges);
            }
        }
        Ok(())
    }

    /// The blocks of `range`, which is whole blocks (up to the end of the file), are zeros from now on. The caller has
    /// journaled that, and scrubs the spool afterwards.
    ///
    /// # Errors
    /// Those of the disk. The call may be repeated.
    pub fn zero(&mut self, range: ByteRange) -> io::Result<()> {
        let blocks = blocks_touching(range);
        self.map.set(blocks.clone(), BlockState::Zero)?;
        self.partials.retain(|block, _| !blocks.contains(block));
        self.journaled.retain(|block| !blocks.contains(block));
        Ok(())
    }

    /// The base counts up to `end` from now on: the file, all of which is the base's, was extended by bytes of the base.
    pub fn set_base_end(&mut self, end: u64) {
        self.base_end = end;
    }

    /// The whole blocks within `range` are only in BOS from now on, as far as they are in the spool and not partial.
    /// Returns the ranges to punch out of the spool now.
    ///
    /// # Errors
    /// Those of the disk. The call may be repeated; blocks that are held already are not returned again.
    pub fn hold(&mut self, range: ByteRange) -> io::Result<Vec<ByteRange>> {
        let blocks = range.start.div_ceil(BLOCK_BYTES)..range.end / BLOCK_BYTES;
        let mut held: Vec<Range<u64>> = Vec::new();
        for (run, state) in self.map.runs(blocks) {
            if state == BlockState::Spool {
                let mut at = run.start;
                for (&partial, _) in self.partials.range(run.clone()) {
                    held.push(at..partial);
                    at = partial + 1;
                }
                held.push(at..run.end);
            }
        }
        held.retain(|blocks| !blocks.is_empty());
        for blocks in &held {
            self.map.set(blocks.clone(), BlockState::Held)?;
        }
        Ok(held.iter().map(bytes_of).collect())
    }

    /// Every block of `range` is only in BOS from now on, whatever map and spool say of it: a restart of the machine may have
    /// left of either less than was there. [`Extents::scrub`] is due afterwards.
    ///
    /// # Errors
    /// Those of the disk. The call may be repeated.
    pub fn hold_all(&mut self, range: ByteRange) -> io::Result<()> {
        let blocks = blocks_touching(range);
        self.partials.retain(|block, _| !blocks.contains(block));
        self.journaled.retain(|block| !blocks.contains(block));
        self.map.set(blocks, BlockState::Held).map(drop)
    }

    /// Makes the spool zero within `range` wherever the map does not say that it counts; for the whole file after open.
    ///
    /// # Errors
    /// Those of the disk. The call may be repeated.
    pub fn scrub(&self, spool: &Spool, range: ByteRange) -> io::Result<()> {
        let range = range.intersect(ByteRange::new(0, spool.len()));
        if spool.allocated_bytes()? == 0 {
            return Ok(());
        }
        for (blocks, state) in self.map.runs(blocks_touching(range)) {
            if state == BlockState::Spool {
                continue;
            }
            let bytes = bytes_of(&blocks);
            match spool.punch(bytes) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    spool.zero(bytes.intersect(ByteRange::new(0, spool.len())))?;
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// The bytes of `block` that the base would have.
    fn base_bytes(&self, block: u64) -> ByteRange {
        block_range(block).intersect(ByteRange::new(0, self.base_end))
    }

    /// Whether a block of which `ranges` were written needs nothing of the base.
    fn completes(&self, block: u64, ranges: &[ByteRange]) -> bool {
        gaps(self.base_bytes(block), ranges).next().is_none()
    }
}

fn block_range(block: u64) -> ByteRange {
    bytes_of(&(block..block + 1))
}

fn bytes_of(blocks: &Range<u64>) -> ByteRange {
    ByteRange::new(blocks.start.saturating_mul(BLOCK_BYTES), blocks.end.saturating_mul(BLOCK_BYTES))
}

fn blocks_touching(range: ByteRange) -> Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES) }
}

/// Sorts `ranges` and joins those that overlap or touch; empty ones vanish.
fn merged(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let joins = next.start <= last.end;
        if joins {
            last.end = last.end.max(next.end);
        }
        joins
    });
    ranges
}

/// What `written` (ascending, not touching) leaves of `whole`.
fn gaps(whole: ByteRange, written: &[ByteRange]) -> impl Iterator<Item = ByteRange> {
    let starts = std::iter::once(whole.start).chain(written.iter().map(move |range| range.end.max(whole.start)));
    let ends = written.iter().map(|range| range.start).chain(std::iter::once(u64::MAX));
    starts.zip(ends).map(move |(start, end)| ByteRange::new(start, end.min(whole.end))).filter(|gap| !gap.is_empty())
}

/// Adds a journaled line to what the earlier ones add up to.
pub fn add_partial(known: &mut BTreeMap<u64, Vec<ByteRange>>, line: &PartialLine) {
    if line.ranges.is_empty() {
        known.remove(&line.block);
        return;
    }
    let ranges = known.entry(line.block).or_default();
    if !line.adds {
        ranges.clear();
    }
    ranges.extend_from_slice(&line.ranges);
    *ranges = merged(std::mem::take(ranges));
}

/// The file is cut to `size`: what was written behind it counts no more.
pub fn cut_partials(lines: &mut BTreeMap<u64, Vec<ByteRange>>, size: u64) {
    lines.split_off(&size.div_ceil(BLOCK_BYTES));
    if let Some(mut last) = lines.last_entry().filter(|last| block_range(*last.key()).end > size) {
        let within = ByteRange::new(0, size);
        let ranges = merged(last.get().iter().map(|range| range.intersect(within)).collect());
        if ranges.is_empty() {
            last.remove();
        } else {
            *last.get_mut() = ranges;
        }
    }
}

/// Collects pieces, clipped and merged.
struct Pieces {
    list: Vec<Piece>,
    within: ByteRange,
}

impl Pieces {
    fn push(&mut self, range: ByteRange, from: Source) {
        let range = range.intersect(self.within);
        if range.is_empty() {
            return;
        }
        match self.list.last_mut() {
            Some(last) if last.from == from => last.range.end = range.end,
            _ => self.list.push(Piece { range, from }),
        }
    }
}

#[cfg(test)]
mod tests;
