//! What write, truncate and read do to spool, map and journal.

use std::sync::Arc;

use super::dirty_file::{DirtyFile, disk_error};
use super::inner::{Inner, Removal};
use super::state::Stage;
use super::{DirtyRead, WriteError};
use crate::fail_point::fail_point;
use crate::journal::Record;
use crate::object::ByteRange;
use crate::write::block_map::BLOCK_BYTES;
use crate::write::extents::Source;

impl DirtyFile {
    /// Puts bytes into the spool; they survive a kill of bosfs when this returns. Sets mtime.
    ///
    /// # Errors
    /// [`WriteError::MustWait`] when the spool is full or the bytes belong to a frozen part that is not sent yet: await
    /// [`DirtyFile::wait_writable`], then call again. `EFBIG` beyond the largest object, `ENOSPC` on a full disk: nothing
    /// of these bytes was accepted, all earlier ones stay.
    pub fn write(self: &Arc<Self>, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let range = ByteRange::at(offset, bytes.len() as u64);
        if range.is_empty() {
            return Ok(());
        }
        inner.check_whole()?;
        inner.reach(&self.shared, range.end.max(inner.size))?;
        if self.is_held(inner, range) {
            return Err(WriteError::MustWait);
        }
        self.materialise(inner)?;
        inner.reach(&self.shared, range.end.max(inner.size))?;
        if let Some(size) = inner.state.resizing {
            // A cut met trouble half-way. Recovery would finish it, and with it cut off what is written now.
            self.resize_store(inner, size)?;
            self.append(inner, &Record::Resized)?;
        }
        let size = inner.size;
        let plan = inner.store()?.extents.plan_write(offset, range.len(), size);
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
            let store = inner.store()?;
            if let Err(e) = store.extents.scrub(&store.spool, range) {
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
        plan: &crate::write::extents::WritePlan,
    ) -> Result<(), WriteError> {
        self.reopen_parked(inner)?;
        self.dirty_parts(inner, range)?;
        fail_point!("file.write");
        let key = inner.state.key.clone();
        let store = inner.store()?;
        for edge in &plan.zero_edges {
            store.spool.zero(*edge).map_err(|e| disk_error(&key, &e))?;
        }
        store.spool.write_at(range.start, bytes).map_err(|e| disk_error(&key, &e))?;
        for (block, ranges) in &plan.partial_changes {
            self.append(inner, &Record::Partial { block: *block, ranges: ranges.clone() })?;
        }
        inner.store()?.extents.apply_write(plan).map_err(|e| disk_error(&key, &e))?;
        inner.size = inner.size.max(range.end);
        inner.touched();
        inner.new_content = true;
        inner.inherited = false;
        Ok(())
    }

    /// Whether a change of `range` must wait: it belongs to a state that was closed and is not in BOS yet. A state that was
    /// closed while an earlier one was on its way is frozen once that one is there, and must be the same then. With
    /// `--write-back` nobody waits for it, and the close of whoever changes it publishes in its place.
    pub(super) fn is_held(&self, inner: &Inner, range: ByteRange) -> bool {
        let closed_again = inner.publish_again && inner.removal == Removal::None && !self.shared.options.write_back;
        closed_again || inner.is_frozen(range)
    }

    /// A file that was closed and waits for its rename is about to change: that close no longer counts.
    pub(super) fn reopen_parked(&self, inner: &mut Inner) -> Result<(), WriteError> {
        if inner.state.parked {
            self.append(inner, &Record::Reopened)?;
        }
        Ok(())
    }

    /// Journals that the parts of `range` are about to change, where that matters, and stops jobs that send them.
    pub(super) fn dirty_parts(&self, inner: &mut Inner, range: ByteRange) -> Result<(), WriteError> {
        let frozen = inner.state.keeps_changes();
        if self.shared.options.write_back {
            // Nobody waits for the state of a second close: the newer writer's close publishes in its place.
            inner.publish_again = false;
        }
        for number in inner.plan.parts_in(range) {
            let known = inner.state.parts.get(&number);
            let was_sent = known.is_some_and(|part| part.held.is_some() && !part.dirty);
            // After a kill BOS may show this body as the part; without a line it would pass for the present bytes.
            let is_sent = known.is_some_and(|part| part.sending.is_some() && !part.dirty);
            let journaled = frozen && inner.state.changed_since_freeze.contains(&number) && !inner.state.closed_again;
            if was_sent || is_sent || (frozen && !journaled) {
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
            self.retry(inner, false)?;
        }
        if size == 0 && matches!(inner.state.stage, Stage::Closed(_)) {
            self.supersede(inner)?;
        }
        let touched = ByteRange::new(old.min(size), old.max(size));
        if !touched.is_empty() && self.is_held(inner, touched) {
            drop(guard);
            // After a failure nobody works on what must be waited for.
            self.start_driver();
            return Err(WriteError::MustWait);
        }
        self.materialise(inner)?;
        inner.reach(&self.shared, size)?;
        if let Some(cut) = inner.plan.part_at(size)
            && size < old
        {
            let kept = ByteRange::new(inner.plan.range(cut).start, size);
            if inner.store()?.extents.held_blocks(kept) > 0 {
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
            let boundary = ByteRange::at(touched.start, touched.len().max(1));
            if inner.state.keeps_changes() {
                self.dirty_parts(inner, boundary)?;
            } else {
                inner.forget_live(boundary);
            }
            let synced = inner.state.synced_size.is_some_and(|synced| synced > size);
            self.append(inner, &Record::Resizing { size })?;
            if synced {
                // A cut that reached the disk without its line would look as if synced bytes had become zeros.
                inner.store()?.journal.sync()?;
            }
            self.resize_store(inner, size)?;
            self.append(inner, &Record::Resized)?;
        }
        inner.touched();
        inner.inherited = false;
        if size == 0 {
            inner.new_content = false;
            inner.new_file = true;
            inner.live.clear();
            inner.ready.clear();
        } else if size != old {
            inner.new_content = true;
        }
        drop(guard);
        self.notify();
        Ok(())
    }

    /// Gives spool and map the size that the journal says already.
    pub(super) fn resize_store(&self, inner: &mut Inner, size: u64) -> Result<(), WriteError> {
        let key = inner.state.key.clone();
        let old = inner.size;
        let store = inner.store()?;
        let before = store.extents.spool_blocks(ByteRange::new(0, old.max(size)));
        store.spool.set_len(size).map_err(|e| disk_error(&key, &e))?;
        store.extents.truncate(old, size).map_err(|e| disk_error(&key, &e))?;
        let after = store.extents.spool_blocks(ByteRange::new(0, size));
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
        let Some(store) = &inner.store else {
            let base_end = inner.state.base.as_ref().map_or(0, |base| base.size);
            let gap = range.intersect(ByteRange::new(0, base_end));
            read.gaps.extend((!gap.is_empty()).then_some(gap));
            return Ok(read);
        };
        for piece in store.extents.pieces(range, inner.size) {
            let start = (piece.range.start - range.start) as usize;
            let bytes = &mut read.bytes[start..start + piece.range.len() as usize];
            match piece.from {
                Source::Zero => {}
                Source::Base => read.gaps.push(piece.range),
                Source::Spool => {
                    store.spool.read_at(piece.range.start, bytes).map_err(|e| disk_error(&inner.state.key, &e))?
                }
                Source::Held => {
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
