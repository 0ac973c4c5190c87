//! The fold itself: what each line of a journal does to the state of its file.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{Carried, FileState, Frozen, Held, Interruption, LastPublication, Stage, Upload, set_of};
use crate::journal::Record;
use crate::journal::record::Proof;
use crate::object::{BaseObject, ByteRange, Condition};
use crate::posix_meta::XATTRS;
use crate::write::block_map::BLOCK_BYTES;
use crate::write::block_set::BlockSet;

/// Why records do not add up to a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The first line must say which file this is.
    #[error("the journal does not begin with an `opened` line")]
    NotOpened,
    /// Written by a newer bosfs.
    #[error("the journal has format {0}; this bosfs knows format 1: update bosfs")]
    Format(u32),
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
            state.apply(record);
        }
        Ok(state)
    }

    /// The state after the first line.
    ///
    /// # Errors
    /// See [`FileState::replay`].
    pub fn opened(first: &Record) -> Result<Self, ReplayError> {
        let Record::Opened { format, journal_id, key, base, condition, headers, attrs, boot_id, at } = first else {
            return Err(ReplayError::NotOpened);
        };
        if *format != 1 {
            return Err(ReplayError::Format(*format));
        }
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
            opened_at: *at,
            initiating: false,
            upload: None,
            parts: BTreeMap::new(),
            partials: BTreeMap::new(),
            base_end: base.as_ref().map_or(0, |b| b.size),
            size_journaled: base.as_ref().map_or(0, |b| b.size),
            resizing: None,
            synced_size: None,
            synced_blocks: Some(BlockSet::default()),
            syncing_blocks: BlockSet::default(),
            synced_since_closed: false,
            stage: Stage::Open,
            publications: 0,
            published: None,
            changed_since_freeze: BTreeSet::new(),
            size_min_since_freeze: None,
            frozen_lost: false,
            closed_again: false,
            rebasing: false,
            interrupted: None,
            failed: None,
            conflict: None,
            unlinked: false,
            discarded: false,
            disproofs: 0,
            parts_sent: 0,
            frozen_xattrs: None,
            sent_here: BTreeSet::new(),
            kept_before: 0,
        })
    }

    /// Takes one more line. Lines that make no sense at this point change nothing: the journal is written by the same
    /// code, and what is lost by a lost line is asked of BOS again.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Opened { .. } => {}
            Record::Booted { boot_id } => self.boot_id.clone_from(boot_id),
            Record::Initiating => self.initiating = true,
            Record::Initiated { upload_id, plan, key } => {
                self.initiating = false;
                self.forget_parts();
                self.sent_here.clear();
                let key = key.as_ref().unwrap_or(&self.key).clone();
                self.upload = Some(Upload { id: upload_id.clone(), plan: plan.clone(), key });
            }
            Record::Sending { part, sum } => {
                let entry = self.parts.entry(*part).or_default();
                if entry.sending.is_some_and(|earlier| earlier != *sum) {
                    entry.contested = true;
                }
                entry.sending = Some(*sum);
            }
            Record::Sent { part, sum, etag, kept } => {
                let entry = self.parts.entry(*part).or_default();
                entry.held = Some(Held { len: sum.len, etag: etag.clone(), sum: Some(*sum) });
                entry.dirty = false;
                entry.frozen = false;
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
                entry.frozen = false;
                entry.copied = Some(*range);
            }
            Record::Dirtied { part } => {
                let is_frozen = self.stage.frozen().is_some();
                if let Some(entry) = self.parts.get_mut(part) {
                    entry.frozen |= is_frozen && !entry.dirty && entry.held.is_some();
                    entry.dirty = true;
                }
                self.closed_again = false;
                if self.keeps_changes() {
                    self.changed_since_freeze.insert(*part);
                }
            }
            Record::PartLost { part } => {
                if let Some(entry) = self.parts.get_mut(part) {
                    entry.held = None;
                    self.frozen_lost |= std::mem::take(&mut entry.frozen);
                    entry.copied = None;
                    entry.sending = None;
                    entry.contested = false;
                }
            }
            Record::Partial { block, ranges } => {
                if ranges.is_empty() {
                    self.partials.remove(block);
                } else {
                    self.partials.insert(*block, ranges.clone());
                }
            }
            Record::Resizing { size } => self.resize(*size),
            Record::Resized => self.resizing = None,
            Record::Attrs { attrs } => {
                self.attrs = *attrs;
                if let Stage::Closed(frozen) = &mut self.stage {
                    frozen.attrs = *attrs;
                }
            }
            Record::Xattrs { xattrs } => self.set_xattrs(xattrs.as_ref()),
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
                if *grows {
                    self.resize(*end);
                }
                self.base = Some(base.clone());
                self.base_end = *end;
                self.size_journaled = *end;
            }
            Record::Zeroed { range } => {
                let first = range.start / BLOCK_BYTES;
                let end = range.end.div_ceil(BLOCK_BYTES);
                self.partials.retain(|block, _| !(first..end).contains(block));
            }
            Record::Parked => self.parked = true,
            Record::Synced { size, blocks } => {
                self.blocks_synced(blocks.as_deref());
                self.synced_size = Some(*size);
                self.size_journaled = self.size_journaled.max(*size);
                self.synced_since_closed = true;
            }
            Record::Spooled { blocks } => blocks.iter().for_each(|b| self.syncing_blocks.insert(b.start..b.end)),
            Record::Punched { part } => {
                if let (Some(upload), Some(certain)) = (&self.upload, &mut self.synced_blocks) {
                    let range = upload.plan.range(*part);
                    certain.remove(range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES));
                }
                if let Some(entry) = self.parts.get_mut(part) {
                    entry.punched = true;
                }
            }
            Record::Closed { publication, size, attrs } => {
                self.publications = *publication;
                self.size_journaled = *size;
                self.attrs = *attrs;
                self.stage = Stage::Closed(Frozen { publication: *publication, size: *size, attrs: *attrs });
                self.unfreeze_parts();
                self.changed_since_freeze.clear();
                self.size_min_since_freeze = None;
                self.synced_since_closed = false;
                self.interrupted = None;
                self.failed = None;
                self.parked = false;
                self.closed_again = false;
            }
            Record::ClosedAgain => self.closed_again = true,
            Record::Superseded { .. } => {
                self.stage = Stage::Open;
                self.closed_again = false;
                self.unfreeze_parts();
                self.changed_since_freeze.clear();
                self.size_min_since_freeze = None;
            }
            Record::Putting { mark, condition, sum, .. } => {
                self.frozen_xattrs = Some(self.xattrs());
                if let Some(frozen) = self.stage.frozen().copied() {
                    self.stage = Stage::Putting { frozen, mark: mark.clone(), condition: condition.clone(), sum: *sum };
                }
            }
            Record::Completing { mark, condition, .. } => {
                self.frozen_xattrs = Some(self.xattrs());
                if let Some(frozen) = self.stage.frozen().copied() {
                    self.stage = Stage::Completing { frozen, mark: mark.clone(), condition: condition.clone() };
                }
            }
            Record::Completed { etag, .. } => {
                if let Some(frozen) = self.stage.frozen().copied() {
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
                    self.stage = Stage::Closed(*frozen);
                    self.disproofs += 1;
                    self.upload = None;
                    self.forget_parts();
                }
            }
            Record::Rebased { blocks } => {
                self.synced_blocks = blocks.as_ref().map(|blocks| set_of(blocks));
                self.rebasing = false;
                self.changed_since_freeze.clear();
                self.size_min_since_freeze = None;
            }
            Record::UploadEnded => {
                self.upload = None;
                self.initiating = false;
                self.forget_parts();
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
                    self.stage = Stage::Closed(*frozen);
                }
            }
        }
    }

    /// These blocks, and those named before, are certain to be in the spool.
    fn blocks_synced(&mut self, blocks: Option<&[ByteRange]>) {
        let more = std::mem::take(&mut self.syncing_blocks);
        match (blocks, &mut self.synced_blocks) {
            (Some(blocks), Some(certain)) => {
                certain.extend(&more);
                certain.extend(&set_of(blocks));
            }
            _ => self.synced_blocks = None,
        }
    }

    fn resize(&mut self, size: u64) {
        self.resizing = Some(size);
        self.size_journaled = size;
        self.synced_size = self.synced_size.map(|synced| synced.min(size));
        if let Some(certain) = &mut self.synced_blocks {
            certain.remove(size.div_ceil(BLOCK_BYTES)..u64::MAX);
        }
        self.closed_again = false;
        self.base_end = self.base_end.min(size);
        if let Some(upload) = &self.upload {
            for (number, part) in &mut self.parts {
                let end = part.copied.map_or_else(|| upload.plan.range(*number).end, |range| range.end);
                // The part that straddles the cut loses bytes; a short last part that would grow is seen by its length.
                if end > size {
                    part.dirty = true;
                }
            }
        }
        if self.keeps_changes() {
            let min = self.size_min_since_freeze.map_or(size, |min| min.min(size));
            self.size_min_since_freeze = Some(min);
        }
    }

    /// A new frozen state, or none: what BOS holds of the last one does not count.
    fn unfreeze_parts(&mut self) {
        self.parts.values_mut().for_each(|part| part.frozen = false);
        self.frozen_lost = false;
    }

    /// BOS holds nothing any more.
    fn forget_parts(&mut self) {
        self.frozen_lost |= self.stage.frozen().is_some() && self.parts.values().any(|part| part.frozen);
        self.parts.clear();
    }

    fn proved(&mut self, proof: Proof) {
        self.kept_before = self.parts_kept();
        let Stage::Completed { frozen, etag, .. } = &self.stage else { return };
        let object = BaseObject::own(etag.clone(), frozen.size);
        self.carried =
            Some(Carried { attrs: frozen.attrs, xattrs: self.frozen_xattrs.take().unwrap_or_else(|| self.xattrs()) });
        self.published = Some(LastPublication {
            publication: frozen.publication,
            object: object.clone(),
            attrs: frozen.attrs,
            proof,
        });
        self.base_end = frozen.size.min(self.size_min_since_freeze.unwrap_or(u64::MAX));
        self.condition = Condition::Matches(object.etag.clone());
        self.base = Some(object);
        self.stage = Stage::Open;
        self.upload = None;
        self.parts.clear();
        self.rebasing = true;
        self.disproofs = 0;
        self.failed = None;
        self.conflict = None;
    }

    fn set_xattrs(&mut self, xattrs: Option<&String>) {
        match xattrs {
            Some(xattrs) => self.headers.metadata.insert(XATTRS.to_owned(), xattrs.clone()),
            None => self.headers.metadata.remove(XATTRS),
        };
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
