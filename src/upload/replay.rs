//! The fold itself: what each line of a journal does to the state of its file.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{
    Carried, FileState, Frozen, Held, Interruption, LastPublication, LayerState, Stage, Upload, set_of,
};
use crate::journal::Record;
use crate::journal::record::{FORMAT, LayerId, Proof};
use crate::object::{BaseObject, ByteRange, Condition};
use crate::posix_meta::XATTRS;
use crate::transfer::Unanswered;
use crate::write::block_map::BLOCK_BYTES;
use crate::write::extents::PartialLine;
use crate::write::part_plan::FILE_BYTES_MAX;

/// Why records do not add up to a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The first line must say which file this is.
    #[error("the journal does not begin with an `opened` line")]
    NotOpened,
    /// Written by a newer or an older bosfs.
    #[error(
        "the journal has format {0}; this bosfs reads format {FORMAT}: finish the file with the bosfs that wrote it (format 1 \
         is that of bosfs 0.1.0)"
    )]
    Format(u32),
    /// The first lines are a checkpoint that does not say what they should.
    #[error("the journal's checkpoint cannot be understood: {0}")]
    Checkpoint(String),
}

impl FileState {
    /// The state that `records` add up to.
    ///
    /// # Errors
    /// [`ReplayError`] when the first record is no `Opened` of a known format.
    pub fn replay(records: &[Record]) -> Result<Self, ReplayError> {
        let (first, rest) = records.split_first().ok_or(ReplayError::NotOpened)?;
        let mut state = Self::opened(first)?;
        for record in rest {
            match record {
                Record::CheckpointMore { state: more } => state.take_more(more)?,
                record => state.apply(record),
            }
        }
        Ok(state)
    }

    /// The state after the first line.
    ///
    /// # Errors
    /// See [`FileState::replay`].
    pub fn opened(first: &Record) -> Result<Self, ReplayError> {
        let format = match first {
            Record::Opened { format, .. } | Record::Checkpoint { format, .. } => *format,
            _ => return Err(ReplayError::NotOpened),
        };
        if format != FORMAT {
            return Err(ReplayError::Format(format));
        }
        if let Record::Checkpoint { state, key, .. } = first {
            return Self::of_checkpoint(key, state);
        }
        let Record::Opened { journal_id, key, base, condition, headers, attrs, boot_id, at, .. } = first else {
            return Err(ReplayError::NotOpened);
        };
        let base_bytes = base.as_ref().map_or(0, |base| base.size);
        Ok(Self {
            journal_id: journal_id.clone(),
            key: key.clone(),
            base: base.clone(),
            condition: condition.clone(),
            headers: headers.clone(),
            attrs: *attrs,
            carried: base
                .as_ref()
                .filter(|base| base.key.is_none())
                .map(|_| Carried { attrs: *attrs, xattrs: headers.metadata.get(XATTRS).cloned() }),
            parked: false,
            renamed: false,
            boot_id: boot_id.clone(),
            restarted: false,
            uncertain_closes: 0..0,
            opened_at: *at,
            initiating: 0,
            upload: None,
            parts: BTreeMap::new(),
            layers: vec![LayerState::new(1, base_bytes)],
            layers_made: 1,
            stage: Stage::Open,
            next: None,
            behind: Vec::new(),
            publications: 0,
            closes: 0,
            syncs_begun: 0,
            vouched_closes: 0,
            published: None,
            interrupted: None,
            failed: None,
            conflict: None,
            unlinked: false,
            discarded: false,
            disproofs: 0,
            parts_sent: 0,
            sent_here: BTreeSet::new(),
            kept_before: 0,
        })
    }

    /// Takes one more line. Lines that make no sense at this point change nothing: the journal is written by the same
    /// code, and what is lost by a lost line is asked of BOS again.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Opened { .. } | Record::Checkpoint { .. } => {}
            // One that makes no sense is an error of `replay`.
            Record::CheckpointMore { state } => drop(self.take_more(state)),
            Record::Booted { boot_id } => {
                self.boot_id.clone_from(boot_id);
                self.restarted = true;
                let (first, earlier) = (self.vouched_closes + 1, &self.uncertain_closes);
                let first = if earlier.is_empty() { first } else { first.min(earlier.start) };
                self.uncertain_closes = first..self.closes + 1;
            }
            Record::Initiating => self.initiating = self.initiating.saturating_add(1),
            Record::Initiated { upload_id, plan, key } => {
                self.initiating = self.initiating.saturating_sub(1);
                self.parts.clear();
                self.sent_here.clear();
                let key = key.as_ref().unwrap_or(&self.key).clone();
                self.upload = Some(Upload { id: upload_id.clone(), plan: plan.clone(), key });
            }
            Record::Sending { part, sum } => {
                let entry = self.parts.entry(*part).or_default();
                entry.contested |= Unanswered::of(sum, entry.sending.as_ref()) == Unanswered::Other;
                entry.sending = Some(*sum);
            }
            Record::Sent { part, sum, etag, kept } => {
                let entry = self.parts.entry(*part).or_default();
                entry.held = Some(Held { len: sum.len, etag: etag.clone(), sum: Some(*sum) });
                entry.dirty = false;
                entry.copied = None;
                if entry.sending == Some(*sum) {
                    entry.sending = None;
                }
                if *kept {
                    self.sent_here.remove(part);
                } else {
                    self.sent_here.insert(*part);
                    self.parts_sent += 1;
                }
            }
            Record::Copied { part, range, etag } => {
                let entry = self.parts.entry(*part).or_default();
                entry.held = Some(Held { len: range.len(), etag: etag.clone(), sum: None });
                entry.dirty = false;
                entry.copied = Some(*range);
            }
            Record::Dirtied { part } => {
                if let Some(entry) = self.parts.get_mut(part) {
                    entry.dirty = true;
                }
            }
            Record::PartLost { part } => {
                if let Some(entry) = self.parts.get_mut(part) {
                    entry.held = None;
                    entry.copied = None;
                    entry.sending = None;
                    entry.contested = false;
                }
            }
            Record::Layer { layer, base_end } => {
                self.layers_made = self.layers_made.max(*layer);
                if self.layer(*layer).is_none() {
                    self.layers.push(LayerState::new(*layer, *base_end));
                }
            }
            Record::Merged { layer } => self.merged(*layer),
            Record::Dropped { layer } => self.layers.retain(|known| known.id != *layer),
            Record::Partial { layer, block, ranges, adds } => {
                let line = PartialLine { block: *block, ranges: ranges.clone(), adds: *adds };
                self.with_layer(*layer, |layer| layer.take_partial(&line));
            }
            Record::Resizing { layer, size } => self.resize(*layer, *size),
            Record::Resized { layer } => self.with_layer(*layer, |layer| layer.resizing = None),
            Record::Attrs { attrs } => {
                self.attrs = *attrs;
                self.unsent().for_each(|frozen| frozen.attrs = *attrs);
            }
            Record::Xattrs { xattrs } => {
                let (name, value) = (XATTRS, xattrs.as_ref());
                let set = |metadata: &mut BTreeMap<String, String>| match value {
                    Some(value) => metadata.insert(name.to_owned(), value.clone()),
                    None => metadata.remove(name),
                };
                set(&mut self.headers.metadata);
                self.unsent().for_each(|frozen| drop(set(&mut frozen.headers.metadata)));
            }
            Record::AttrsCopied { etag, attrs, xattrs } => {
                self.condition = Condition::Matches(etag.clone());
                if let Some(base) = &mut self.base {
                    base.etag.clone_from(etag);
                }
                if let Some(published) = &mut self.published {
                    published.attrs = *attrs;
                    published.object.etag.clone_from(etag);
                }
                self.carried = Some(Carried { attrs: *attrs, xattrs: xattrs.clone() });
            }
            Record::Cloned { base, end, grows } => {
                self.base = Some(base.clone());
                let top = self.layers.last().map_or(0, |layer| layer.id);
                if *grows {
                    self.resize(top, *end);
                }
                if let Some(bottom) = self.layers.first_mut() {
                    bottom.base_end = *end;
                }
            }
            Record::Zeroed { layer, range } => {
                // No file is longer, whatever a damaged line says.
                let range = range.intersect(ByteRange::new(0, FILE_BYTES_MAX));
                let blocks = match range.is_empty() {
                    true => 0..0,
                    false => range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES),
                };
                self.with_layer(*layer, |layer| {
                    layer.forget_partials(blocks.clone());
                    layer.zeroed.insert(blocks);
                });
            }
            Record::Parked => self.parked = true,
            Record::Spooled { layer, size, blocks } => self.with_layer(*layer, |layer| {
                let (of, known) = layer.syncing.get_or_insert_default();
                *of = *size;
                known.extend(&set_of(blocks));
            }),
            Record::Syncing { sync } => {
                self.syncs_begun = self.syncs_begun.max(*sync);
                self.layers.iter_mut().for_each(|layer| layer.begin_sync(*sync));
            }
            Record::Synced { closes, layers, sync, .. } => {
                for synced in layers {
                    self.with_layer(synced.layer, |layer| {
                        layer.vouch_partials(*sync);
                        if let Some((_, blocks)) = layer.syncing.take() {
                            layer.synced_blocks.extend(&blocks);
                        }
                        layer.synced_blocks.extend(&set_of(&synced.blocks));
                        layer.synced_size = Some(synced.size);
                        layer.size_journaled = layer.size_journaled.max(synced.size);
                    });
                }
                self.vouched_closes = self.vouched_closes.max(*closes);
                self.forget_behind();
            }
            Record::Punched { part } => {
                if let (Some(upload), Some(bottom)) = (&self.upload, self.layers.first_mut()) {
                    let range = upload.plan.range(*part);
                    bottom.synced_blocks.remove(range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES));
                }
                if let Some(entry) = self.parts.get_mut(part) {
                    entry.punched = true;
                }
            }
            Record::Closed { publication, size, attrs, layer, durable, synced } => {
                self.publications = *publication;
                self.closes = self.closes.saturating_add(1);
                self.attrs = *attrs;
                self.with_layer(*layer, |layer| layer.size_journaled = *size);
                let frozen = Frozen {
                    publication: *publication,
                    size: *size,
                    attrs: *attrs,
                    headers: self.headers.clone(),
                    layer: *layer,
                    close: self.closes,
                    durable: *durable,
                };
                if self.stage == Stage::Open {
                    self.stage = Stage::Closed(frozen);
                } else {
                    let earlier = self.next.replace(frozen);
                    self.behind.extend(earlier.filter(|earlier| earlier.durable));
                }
                if *synced {
                    self.vouched_closes = self.closes;
                    self.forget_behind();
                }
                self.interrupted = None;
                self.failed = None;
                self.parked = false;
            }
            Record::Superseded { publication, lost } => {
                self.next = None;
                let vouched = self.vouched_closes;
                let mut behind = std::mem::take(&mut self.behind);
                behind.retain(|earlier| *lost && earlier.close <= vouched);
                let instead = behind.pop();
                if self.stage.frozen().is_some_and(|frozen| frozen.publication == *publication) {
                    self.stage = instead.map_or(Stage::Open, Stage::Closed);
                } else {
                    let close = self.stage.frozen().map_or(0, |frozen| frozen.close);
                    self.next = instead.filter(|instead| instead.close > close);
                }
            }
            Record::Putting { mark, condition, sum, .. } => {
                self.restarted = false;
                if let Some(frozen) = self.stage.frozen().cloned() {
                    self.stage = Stage::Putting { frozen, mark: mark.clone(), condition: condition.clone(), sum: *sum };
                }
            }
            Record::Completing { mark, condition, .. } => {
                self.restarted = false;
                if let Some(frozen) = self.stage.frozen().cloned() {
                    self.stage = Stage::Completing { frozen, mark: mark.clone(), condition: condition.clone() };
                }
            }
            Record::Completed { etag, .. } => {
                if let Some(frozen) = self.stage.frozen().cloned() {
                    let put = match &self.stage {
                        Stage::Putting { sum, .. } => Some(*sum),
                        _ => None,
                    };
                    self.stage = Stage::Completed { frozen, etag: etag.clone(), put };
                }
            }
            Record::Proved { proof, .. } => self.proved(*proof),
            Record::Disproved { .. } => {
                if let Stage::Completed { frozen, etag, .. } = &self.stage {
                    self.condition = Condition::Matches(etag.clone());
                    self.stage = Stage::Closed(frozen.clone());
                    self.disproofs += 1;
                    self.upload = None;
                    self.parts.clear();
                }
            }
            Record::UploadEnded => {
                self.upload = None;
                self.parts.clear();
            }
            Record::Interrupted { process, pid, signal } => {
                self.interrupted = Some(Interruption { process: process.clone(), pid: *pid, signal: *signal });
            }
            Record::Reopened => {
                self.interrupted = None;
                self.failed = None;
                self.parked = false;
            }
            Record::Failed { message, errno } => self.failed = Some((message.clone(), *errno)),
            Record::Conflict { message } => self.conflict = Some(message.clone()),
            Record::Unlinked => {
                self.unlinked = true;
                self.failed = None;
                self.conflict = None;
            }
            Record::Discarded => {
                self.discarded = true;
                self.failed = None;
                self.conflict = None;
            }
            Record::Renamed { key, condition, base } => {
                self.renamed |= self.key != *key;
                self.key = key.clone();
                self.condition = condition.clone();
                self.conflict = None;
                if let Some(base) = base {
                    self.base = Some(base.clone());
                    if let Some(published) = &mut self.published {
                        published.object = base.clone();
                    }
                }
                // What was sent under the old condition was refused; it goes again under the new one.
                if let Stage::Putting { frozen, .. } | Stage::Completing { frozen, .. } = &self.stage {
                    self.stage = Stage::Closed(frozen.clone());
                }
            }
        }
    }

    fn with_layer(&mut self, id: LayerId, change: impl FnOnce(&mut LayerState)) {
        if let Some(layer) = self.layers.iter_mut().find(|layer| layer.id == id) {
            change(layer);
        }
    }

    /// States that were closed and whose object was not asked for yet.
    fn unsent(&mut self) -> impl Iterator<Item = &mut Frozen> {
        let first = match &mut self.stage {
            Stage::Closed(frozen) => Some(frozen),
            _ => None,
        };
        first.into_iter().chain(&mut self.behind).chain(&mut self.next)
    }

    /// Of durable states only the newest that a sync vouches for can be needed.
    fn forget_behind(&mut self) {
        let vouched = self.vouched_closes;
        let newest = self.last_closed().map_or(0, |closed| closed.close);
        let needed = self.behind.iter().rposition(|earlier| earlier.close <= vouched);
        self.behind.drain(..needed.unwrap_or(0));
        if newest <= vouched {
            self.behind.clear();
        }
    }

    fn resize(&mut self, id: LayerId, size: u64) {
        self.with_layer(id, |layer| {
            layer.resizing = Some(size);
            layer.size_journaled = size;
            layer.synced_size = layer.synced_size.map(|synced| synced.min(size));
            let behind = size.div_ceil(BLOCK_BYTES)..u64::MAX;
            layer.synced_blocks.remove(behind.clone());
            layer.zeroed.remove(behind.clone());
            if let Some((_, blocks)) = &mut layer.syncing {
                blocks.remove(behind);
            }
            layer.base_end = layer.base_end.min(size);
            layer.cut_partials(size);
        });
        // A frozen state has layers of its own: parts of it do not change.
        if self.stage == Stage::Open
            && let Some(upload) = &self.upload
        {
            for (number, part) in &mut self.parts {
                let end = part.copied.map_or_else(|| upload.plan.range(*number).end, |range| range.end);
                // The part that straddles the cut loses bytes; a short last part that would grow is seen by its length.
                if end > size {
                    part.dirty = true;
                }
            }
        }
    }

    /// What layer `id` held is in the one below it.
    fn merged(&mut self, id: LayerId) {
        let Some(index) = self.layers.iter().position(|layer| layer.id == id).filter(|index| *index > 0) else {
            return;
        };
        let below = self.layers[index - 1].id;
        let frozen = match &mut self.stage {
            Stage::Open => None,
            Stage::Closed(frozen)
            | Stage::Putting { frozen, .. }
            | Stage::Completing { frozen, .. }
            | Stage::Completed { frozen, .. } => Some(frozen),
        };
        let all = frozen.into_iter().chain(&mut self.behind).chain(&mut self.next);
        for frozen in all.filter(|frozen| frozen.layer == id) {
            frozen.layer = below;
        }
        self.layers.remove(index);
    }

    fn proved(&mut self, proof: Proof) {
        self.kept_before = self.parts_kept();
        let Stage::Completed { frozen, etag, .. } = self.stage.clone() else { return };
        let object = BaseObject::own(etag, frozen.size);
        self.carried = Some(Carried { attrs: frozen.attrs, xattrs: frozen.headers.metadata.get(XATTRS).cloned() });
        self.published = Some(LastPublication {
            publication: frozen.publication,
            object: object.clone(),
            attrs: frozen.attrs,
            proof,
        });
        self.layers.drain(..self.depth_of(&frozen));
        self.condition = Condition::Matches(object.etag.clone());
        self.base = Some(object);
        self.behind.retain(|earlier| earlier.close > frozen.close);
        self.stage = self.next.take().map_or(Stage::Open, Stage::Closed);
        self.upload = None;
        self.parts.clear();
        self.disproofs = 0;
        self.failed = None;
        self.conflict = None;
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
pub(super) mod tests;
