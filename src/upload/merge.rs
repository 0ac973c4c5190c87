//! Fewer layers, and shorter journals: what makes a file's place on the disk smaller without changing what it says.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::WriteError;
use super::checkpoint::JOURNAL_BYTES_MIN;
use super::dirty_file::{DirtyFile, disk_error};
use super::inner::Inner;
use super::state::Stage;
use crate::journal::Record;
use crate::journal::record::LayerId;
use crate::object::ByteRange;
use crate::write::block_map::BLOCK_BYTES;
use crate::write::extents::PartialLine;
use crate::write::layers::{Layer, MergeStep, merge_steps, remove_files};

/// Bytes that are copied at once from one layer to another while the file is locked. A larger layer stays as it is.
const MERGE_BYTES_MAX: u64 = 64 << 20;
/// How much a journal grows at least before it is looked at again.
const LOOK_AGAIN_BYTES: u64 = 4 << 10;
/// Bytes of lines that may come while a checkpoint is synced, before writers wait for it: else a slow disk would let the
/// journal grow without bound.
const LINES_MEANWHILE_MAX: u64 = 12 << 10;

impl DirtyFile {
    /// After a close: layers that no publication tells apart any more become one, so that a file which is closed again and
    /// again behind a slow publication does not pile them up. Trouble is no error: then they stay as they are.
    pub(super) fn merge_closed(self: &Arc<Self>, inner: &mut Inner) {
        while let Some(index) = mergeable(inner) {
            match self.merge_at(inner, index) {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => {
                    log::warn!("{}: layers are left apart: {e}", inner.state.key);
                    return;
                }
            }
        }
    }

    /// Puts layer `index` and the one below it together. `false`: that takes too long, or cannot be done.
    fn merge_at(self: &Arc<Self>, inner: &mut Inner, index: usize) -> Result<bool, WriteError> {
        let Some(line) = self.copy_down(inner, index)? else { return Ok(false) };
        self.append(inner, &line)?;
        self.shed(inner);
        Ok(true)
    }

    /// Before a sync: copies what one closed layer holds into the one below it, if both belong to the same states. Nothing that
    /// is seen changes by that; [`DirtyFile::end_merge`] takes the upper one out once the copies are on stable storage. So a
    /// state that a sync vouches for is whole at every moment.
    pub(super) fn begin_merge(self: &Arc<Self>, inner: &mut Inner) -> Option<(LayerId, Record)> {
        let index = mergeable_below(inner)?;
        let lower = inner.state.layers[index - 1].id;
        match self.copy_down(inner, index) {
            Ok(line) => Some((lower, line?)),
            Err(e) => {
                log::warn!("{}: layers are left apart: {e}", inner.state.key);
                None
            }
        }
    }

    /// The copies of [`DirtyFile::begin_merge`] are synced: the line that says so, unless the layers do not belong together any
    /// more.
    pub(super) fn end_merge(
        self: &Arc<Self>,
        inner: &mut Inner,
        (lower, line): (LayerId, Record),
    ) -> Result<(), WriteError> {
        let Some(index) = mergeable_below(inner).filter(|index| inner.state.layers[index - 1].id == lower) else {
            return Ok(());
        };
        let goes = match line {
            Record::Merged { layer } => inner.state.layers[index].id == layer,
            _ => true,
        };
        if goes {
            self.append(inner, &line)?;
            self.shed(inner);
        }
        Ok(())
    }

    /// Copies what layer `index` holds into the one below it. Returns the line that makes one of them superfluous; `None`: that
    /// takes too long, or cannot be done.
    fn copy_down(self: &Arc<Self>, inner: &mut Inner, index: usize) -> Result<Option<Record>, WriteError> {
        let key = inner.state.key.clone();
        let store = inner.store()?;
        let (lower, upper) = (&store.layers[index - 1], &store.layers[index]);
        let (lower_id, upper_id) = (lower.id, upper.id);
        if upper.extents.base_end() == 0 {
            // It was emptied and written anew: nothing below it counts.
            return Ok(Some(Record::Dropped { layer: lower_id }));
        }
        if upper.spool_blocks() * BLOCK_BYTES > MERGE_BYTES_MAX {
            return Ok(None);
        }
        let Some(steps) = merge_steps(lower, upper) else { return Ok(None) };
        let upper_spool = upper.spool.clone();
        for step in steps {
            let read = |bytes: &mut [u8], range: ByteRange| upper_spool.read_at(range.start, bytes);
            if let Err(e) = self.merge_step(inner, index - 1, &step, read) {
                // What came into the lower layer is what the upper one shows: nothing changed, but for the room it takes.
                self.recount(inner);
                return Err(disk_error(&key, &e));
            }
        }
        self.recount(inner);
        Ok(Some(Record::Merged { layer: upper_id }))
    }

    /// One step, journaled as if a program had made it.
    fn merge_step(
        &self,
        inner: &mut Inner,
        index: usize,
        step: &MergeStep,
        read: impl Fn(&mut [u8], ByteRange) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let failed = |e: WriteError| std::io::Error::other(e.to_string());
        let layer = inner.store().map_err(failed)?.layers[index].id;
        match *step {
            MergeStep::Resize(size) => {
                self.append(inner, &Record::Resizing { layer, size }).map_err(failed)?;
                let lower = &mut inner.store().map_err(failed)?.layers[index];
                let old = lower.size();
                lower.spool.set_len(size)?;
                lower.extents.truncate(old, size)?;
                self.append(inner, &Record::Resized { layer }).map_err(failed)
            }
            MergeStep::Zero(range) => {
                self.append(inner, &Record::Zeroed { layer, range }).map_err(failed)?;
                let lower = &mut inner.store().map_err(failed)?.layers[index];
                lower.extents.zero(range)?;
                lower.extents.scrub(&lower.spool, range)
            }
            MergeStep::Copy(range) => {
                let mut bytes = vec![0; range.len() as usize];
                read(&mut bytes, range)?;
                let lower = &mut inner.store().map_err(failed)?.layers[index];
                let plan = lower.extents.plan_write(range.start, range.len(), lower.size());
                plan.zero_edges.iter().try_for_each(|edge| lower.spool.zero(*edge))?;
                lower.spool.write_at(range.start, &bytes)?;
                for PartialLine { block, ranges, adds } in plan.partial_lines.iter().cloned() {
                    self.append(inner, &Record::Partial { layer, block, ranges, adds }).map_err(failed)?;
                }
                inner.store().map_err(failed)?.layers[index].extents.apply_write(&plan)
            }
        }
    }

    /// Layers went out of use: the spools are counted anew, and what is not needed is put away.
    pub(super) fn shed(self: &Arc<Self>, inner: &mut Inner) {
        self.recount(inner);
        let file = self.clone();
        let put_away = move || {
            if let Err(e) = file.put_away_layers() {
                log::warn!("{}: layers that are not needed any more stay on the disk for now: {e}", file.key());
            }
        };
        self.shared.tasks.spawn_blocking_on(put_away, &self.shared.runtime);
    }

    fn recount(&self, inner: &mut Inner) {
        let Some(store) = &inner.store else { return };
        let now = store.spool_blocks() * BLOCK_BYTES;
        self.shared.budget.take(now.saturating_sub(inner.spooled_bytes));
        self.shared.budget.release(inner.spooled_bytes.saturating_sub(now));
        inner.spooled_bytes = now;
    }

    /// Removes the files of layers that no state needs any more, once the line that says so is on stable storage: after a
    /// power loss, a journal that names them without their files would be worth nothing. Takes as long as the disk does.
    ///
    /// # Errors
    /// The disk failed: they stay, and are tried again with the next ones or by the next mount.
    pub(super) fn put_away_layers(&self) -> std::io::Result<()> {
        let (handle, dir, ids) = {
            let inner = self.lock();
            let Some(store) = inner.store.as_ref().filter(|store| !store.dropped.is_empty()) else { return Ok(()) };
            let ids: Vec<LayerId> = store.dropped.iter().map(|layer| layer.id).collect();
            (store.journal.sync_handle()?, store.dir.clone(), ids)
        };
        handle.sync_data()?;
        self.remove_layers(&dir, &ids)
    }

    /// The second half of [`DirtyFile::put_away_layers`]: the line that says that these layers are not needed is on stable
    /// storage.
    ///
    /// # Errors
    /// As there.
    pub(super) fn remove_layers(&self, dir: &Path, ids: &[LayerId]) -> std::io::Result<()> {
        let gone: Vec<Layer> = {
            let mut inner = self.lock();
            let Some(store) = inner.store.as_mut().filter(|store| store.dir == *dir) else { return Ok(()) };
            let (gone, kept) = std::mem::take(&mut store.dropped).into_iter().partition(|l| ids.contains(&l.id));
            store.dropped = kept;
            gone
        };
        let freed = gone.iter().map(Layer::spool_blocks).sum::<u64>() * BLOCK_BYTES;
        for layer in gone {
            remove_files(dir, layer.id)?;
        }
        let mut inner = self.lock();
        let freed = freed.min(inner.spooled_bytes);
        inner.spooled_bytes -= freed;
        drop(inner);
        self.shared.budget.release(freed);
        self.notify();
        Ok(())
    }

    /// Whether writers have to wait for a checkpoint that is being synced.
    pub(super) fn is_journal_ahead(&self, inner: &Inner) -> bool {
        inner.store.as_ref().is_some_and(|store| store.journal.lines_beside_checkpoint() > LINES_MEANWHILE_MAX)
    }

    /// Called when the journal has grown: begins to replace it by a checkpoint, where that is much shorter.
    pub(super) fn consider_checkpoint(&self, inner: &mut Inner) {
        let state = &inner.state;
        let Some(store) = &mut inner.store else { return };
        let len = store.journal.len_bytes();
        store.checkpoint_at = len + LOOK_AGAIN_BYTES;
        if store.journal.has_checkpoint() || !state.wants_checkpoint(len) {
            return;
        }
        let begun =
            state.checkpoint().map_err(std::io::Error::from).and_then(|lines| store.journal.begin_checkpoint(&lines));
        if let Err(e) = begun {
            log::warn!("{}: {e}", state.key);
            // The journal goes on; a full disk is not asked each time.
            store.checkpoint_at = len + len / 2;
            return;
        }
        let Some(file) = self.me() else { return store.journal.abandon_checkpoint() };
        self.shared.tasks.spawn_blocking_on(move || file.end_checkpoint(), &self.shared.runtime);
    }

    fn end_checkpoint(self: &Arc<Self>) {
        self.put_checkpoint_in_place();
        self.notify();
    }

    /// Syncs the checkpoint without the file's lock, then puts it in the journal's place.
    fn put_checkpoint_in_place(self: &Arc<Self>) {
        let handle = match &self.lock().store {
            Some(store) if store.journal.has_checkpoint() => store.journal.sync_handle(),
            // Published and put away meanwhile.
            _ => return,
        };
        let synced = handle.and_then(|handle| handle.sync_data());
        let dir = {
            let mut inner = self.lock();
            let Some(store) = &mut inner.store else { return };
            if let Err(e) = synced {
                // The old journal may have lost lines: nobody knows.
                store.journal.abandon_checkpoint();
                log::error!("{}: {}", store.dir.display(), store.journal.sync_failed(&e));
                return;
            }
            match store.journal.finish_checkpoint() {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => return log::warn!("{e}"),
            }
            store.checkpoint_at = JOURNAL_BYTES_MIN.max(store.journal.len_bytes() + LOOK_AGAIN_BYTES);
            File::open(&store.dir)
        };
        if let Err(e) = dir.and_then(|dir| dir.sync_all()) {
            // The old name leads to the old journal, which has every line that was synced by then.
            log::warn!("{}: a checkpoint's name could not be synced: {e}", self.key());
            self.changes.add();
        }
    }
}

/// The topmost layer, if it is closed and belongs to the same states as the one below it, none of which a sync vouches for, and
/// no sync vouches for bytes of it, or is about to: they can be put together at once. Bytes that were synced where they are go
/// only once their copies are ([`DirtyFile::end_merge`]).
fn mergeable(inner: &Inner) -> Option<usize> {
    let state = &inner.state;
    let closed = state.last_closed();
    let top = closed.map_or(state.layers.len(), |closed| state.depth_of(closed));
    let is_free = state.behind.is_empty() && closed.is_none_or(|closed| closed.close > state.vouched_closes);
    let is_topmost = top == state.layers.len() && top > on_its_way(inner) + 1;
    let index = (is_free && is_topmost).then(|| top - 1)?;
    let is_syncing = || inner.store.as_ref().is_some_and(|store| store.layers[index].extents.is_syncing());
    (state.layers[index].synced_size.is_none() && !is_syncing()).then_some(index)
}

/// A closed layer that belongs to the same states as the one below it; the topmost such one.
fn mergeable_below(inner: &Inner) -> Option<usize> {
    let state = &inner.state;
    let top = state.depth_of(state.last_closed()?);
    let is_between = |index: &usize| state.behind.iter().any(|earlier| state.depth_of(earlier) == *index);
    (on_its_way(inner) + 1..top).rev().find(|index| !is_between(index))
}

/// Number of layers, from the bottom, of what is on its way, which nothing touches.
fn on_its_way(inner: &Inner) -> usize {
    match &inner.state.stage {
        Stage::Open => 0,
        _ => inner.state.depth(),
    }
}
