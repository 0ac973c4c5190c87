//! What write, truncate and read do to spool, map and journal.

use std::sync::Arc;

use super::dirty_file::{DirtyFile, disk_error};
use super::inner::Inner;
use super::state::Stage;
use super::{DirtyRead, WriteError};
use crate::fail_point::fail_point;
use crate::journal::Record;
use crate::object::ByteRange;
use crate::write::block_map::BLOCK_BYTES;
use crate::write::extents::WritePlan;
use crate::write::layers::Place;

impl DirtyFile {
    /// Puts bytes into the spool; they survive a kill of bosfs when this returns. Sets mtime.
    ///
    /// # Errors
    /// [`WriteError::MustWait`] when the spool is full or the journal's checkpoint is still being synced: await [`DirtyFile::wait_writable`], then call again. `EFBIG` beyond
    /// the largest object, `ENOSPC` on a full disk: nothing of these bytes was accepted, all earlier ones stay. What is on
    /// its way to BOS is never waited for.
    pub fn write(self: &Arc<Self>, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let range = ByteRange::at(offset, bytes.len() as u64);
        if range.is_empty() {
            return Ok(());
        }
        inner.check_whole()?;
        inner.reach(&self.shared, range.end.max(inner.size))?;
        self.open_layer(inner)?;
        inner.reach(&self.shared, range.end.max(inner.size))?;
        if let Some((layer, size)) = inner.state.open_layer().and_then(|layer| Some((layer.id, layer.resizing?))) {
            // A cut met trouble half-way. Recovery would finish it, and with it cut off what is written now.
            self.resize_store(inner, size)?;
            self.append(inner, &Record::Resized { layer })?;
        }
        if self.is_journal_ahead(inner) {
            return Err(WriteError::MustWait);
        }
        let size = inner.size;
        let plan = inner.top()?.extents.plan_write(offset, range.len(), size);
        if plan.held_partial {
            return Err(WriteError::failed(
                libc::ENOSPC,
                format!(
                    "{}: bytes {range:?} lie in a part that only BOS holds (the spool was full); nothing of this write was \
                     accepted: rewrite the whole part, or finish the upload with `bosfs uploads complete` first",
                    inner.state.key
                ),
            ));
        }
        let more_bytes = plan.new_spool_blocks * BLOCK_BYTES;
        if self.shared.budget.try_reserve(more_bytes).is_err() {
            return Err(WriteError::MustWait);
        }
        inner.spooled_bytes += more_bytes;
        let result = self.write_reserved(inner, range, bytes, &plan);
        if result.is_err() {
            inner.spooled_bytes -= more_bytes;
            self.shared.budget.release(more_bytes);
            // What a failed write left in blocks that do not count must read as zeros again.
            let top = inner.top()?;
            if let Err(e) = top.extents.scrub(&top.spool, range) {
                log::error!("{}: {e}", inner.state.key);
            }
        }
        result?;
        let woken = inner.advance_writer(range);
        drop(guard);
        if woken {
            self.start_driver();
        }
        Ok(())
    }

    fn write_reserved(
        &self,
        inner: &mut Inner,
        range: ByteRange,
        bytes: &[u8],
        plan: &WritePlan,
    ) -> Result<(), WriteError> {
        self.reopen_parked(inner)?;
        self.dirty_parts(inner, range)?;
        fail_point!("file.write");
        let key = inner.state.key.clone();
        let top = inner.top()?;
        let layer = top.id;
        for edge in &plan.zero_edges {
            top.spool.zero(*edge).map_err(|e| disk_error(&key, &e))?;
        }
        top.spool.write_at(range.start, bytes).map_err(|e| disk_error(&key, &e))?;
        for line in plan.partial_lines.iter().cloned() {
            let (block, ranges, adds) = (line.block, line.ranges, line.adds);
            self.append(inner, &Record::Partial { layer, block, ranges, adds })?;
        }
        inner.top()?.extents.apply_write(plan).map_err(|e| disk_error(&key, &e))?;
        inner.size = inner.size.max(range.end);
        inner.touched();
        self.changes.add();
        inner.new_content = true;
        inner.inherited = false;
        Ok(())
    }

    /// A file that was closed and waits for its rename is about to change: that close no longer counts.
    pub(super) fn reopen_parked(&self, inner: &mut Inner) -> Result<(), WriteError> {
        if inner.state.parked {
            self.append(inner, &Record::Reopened)?;
        }
        Ok(())
    }

    /// Journals that the parts of `range` are about to change, where that matters, and stops jobs that send them. Parts of
    /// a publication that is on its way never change.
    pub(super) fn dirty_parts(&self, inner: &mut Inner, range: ByteRange) -> Result<(), WriteError> {
        if inner.state.stage != Stage::Open {
            return Ok(());
        }
        for number in inner.plan.parts_in(range) {
            let known = inner.state.parts.get(&number);
            let was_sent = known.is_some_and(|part| part.held.is_some() && !part.dirty);
            // After a kill BOS may show this body as the part; without a line it would pass for the present bytes.
            let is_sent = known.is_some_and(|part| part.sending.is_some() && !part.dirty);
            if was_sent || is_sent {
                self.append(inner, &Record::Dirtied { part: number })?;
            }
            let live = inner.live.entry(number).or_default();
            live.generation += 1;
            live.sealed = None;
            live.rewritten |= was_sent || live.job.is_some();
            if let Some(job) = &live.job {
                job.cancel();
            }
            inner.ready.remove(&number);
        }
        Ok(())
    }

    /// Cuts or extends. Sets mtime.
    ///
    /// # Errors
    /// As [`DirtyFile::write`].
    pub fn truncate(self: &Arc<Self>, size: u64) -> Result<(), WriteError> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.check_whole()?;
        inner.reach(&self.shared, size)?;
        let old = inner.size;
        if size == 0 && inner.state.failed.is_some() {
            // What could not be published is given up for what is written now.
            self.withdraw(inner)?;
        }
        inner.reach(&self.shared, size)?;
        self.open_layer(inner)?;
        inner.reach(&self.shared, size)?;
        if let Some(cut) = inner.plan.part_at(size)
            && size < old
        {
            let kept = ByteRange::new(inner.plan.range(cut).start, size);
            if inner.top()?.extents.held_blocks(kept) > 0 {
                return Err(WriteError::failed(
                    libc::ENOSPC,
                    format!(
                        "{}: {size} lies in a part that only BOS holds (the spool was full); the file keeps its size: cut it \
                         to 0, or finish the upload with `bosfs uploads complete` first",
                        inner.state.key
                    ),
                ));
            }
        }
        if size != old || size == 0 {
            self.reopen_parked(inner)?;
            let touched = ByteRange::new(old.min(size), old.max(size));
            let boundary = ByteRange::at(touched.start, touched.len().max(1));
            let layer = inner.top()?.id;
            let synced =
                inner.state.layer(layer).and_then(|layer| layer.synced_size).is_some_and(|synced| synced > size);
            if inner.state.stage == Stage::Open {
                inner.forget_live(boundary);
            }
            self.append(inner, &Record::Resizing { layer, size })?;
            if synced {
                // A cut that reached the disk without its line would look as if synced bytes had become zeros.
                inner.store()?.journal.sync()?;
            }
            self.resize_store(inner, size)?;
            self.append(inner, &Record::Resized { layer })?;
        }
        inner.touched();
        inner.inherited = false;
        if size == 0 {
            inner.new_content = false;
            inner.new_file = true;
            if inner.state.stage == Stage::Open {
                inner.live.clear();
                inner.ready.clear();
            }
        } else if size != old {
            inner.new_content = true;
        }
        drop(guard);
        self.notify();
        Ok(())
    }

    /// Gives spool and map of the open layer the size that the journal says already.
    pub(super) fn resize_store(&self, inner: &mut Inner, size: u64) -> Result<(), WriteError> {
        let key = inner.state.key.clone();
        let old = inner.size;
        let top = inner.top()?;
        let before = top.extents.spool_blocks(ByteRange::new(0, old.max(size)));
        top.spool.set_len(size).map_err(|e| disk_error(&key, &e))?;
        top.extents.truncate(old, size).map_err(|e| disk_error(&key, &e))?;
        let after = top.extents.spool_blocks(ByteRange::new(0, size));
        let freed = before.saturating_sub(after) * BLOCK_BYTES;
        inner.size = size;
        inner.spooled_bytes = inner.spooled_bytes.saturating_sub(freed);
        self.shared.budget.release(freed);
        Ok(())
    }

    /// Reads what is written, with gaps for the base.
    ///
    /// # Errors
    /// `EIO` when the spool cannot be read or a range is held by BOS only.
    pub fn read(&self, offset: u64, len: usize) -> Result<DirtyRead, WriteError> {
        let inner = self.lock();
        let range = ByteRange::at(offset, len as u64).intersect(ByteRange::new(0, inner.size));
        let mut read =
            DirtyRead { bytes: vec![0; range.len() as usize], gaps: Vec::new(), base: inner.state.base.clone() };
        if inner.store.is_none() {
            let base_end = inner.state.base.as_ref().map_or(0, |base| base.size);
            let gap = range.intersect(ByteRange::new(0, base_end));
            read.gaps.extend((!gap.is_empty()).then_some(gap));
            return Ok(read);
        }
        let layers = inner.store.as_ref().map_or(&[][..], |store| &store.layers);
        for piece in inner.open_view().pieces(range) {
            let start = (piece.range.start - range.start) as usize;
            let bytes = &mut read.bytes[start..start + piece.range.len() as usize];
            match piece.from {
                Place::Zero => {}
                Place::Base => read.gaps.push(piece.range),
                Place::Spool(layer) => {
                    let spool = &layers[layer].spool;
                    spool.read_at(piece.range.start, bytes).map_err(|e| disk_error(&inner.state.key, &e))?;
                }
                Place::Held => {
                    return Err(WriteError::failed(
                        libc::EIO,
                        format!(
                            "{}: bytes {:?} are only in an unfinished upload, which cannot be read back; they are readable \
                             once the file is published",
                            inner.state.key, piece.range
                        ),
                    ));
                }
            }
        }
        Ok(read)
    }
}
