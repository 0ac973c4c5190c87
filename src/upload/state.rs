//! What a file's journal adds up to: one fold for the running mount, recovery, `uploads list` and `verify`.
//!
//! ```text
//!             write, truncate                 Closed               Putting / Completing
//!   (opened) ────────────────► Stage::Open ───────────► Stage::Closed ───────────► Stage::Putting | Stage::Completing
//!                                  ▲  ▲                     │  ▲                              │ Completed
//!                                  │  └──── Superseded ─────┘  └───── Disproved ─────┐        ▼
//!                                  └─────────────── Proved, Rebased ─────────── Stage::Completed
//! ```
//!
//! `DirtyFile::append` takes every arrow: it writes the line, then applies it here.

use std::collections::{BTreeMap, BTreeSet};

use crate::bos::client::ObjectHeaders;
use crate::journal::Record;
use crate::journal::record::{Proof, Publication};
use crate::object::{BaseObject, ByteRange, Checksum, Condition, ETag, FileAttrs, ObjectKey, PartNumber, UploadId};
use crate::posix_meta::XATTRS;
use crate::write::block_map::BLOCK_BYTES;
use crate::write::block_set::BlockSet;
use crate::write::part_plan::PartPlan;

/// The state that a publication froze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Which publication.
    pub publication: Publication,
    /// Size in bytes.
    pub size: u64,
    /// Attributes that travel with it.
    pub attrs: FileAttrs,
}

/// How far the publication is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing frozen.
    Open,
    /// Frozen; parts are on their way.
    Closed(Frozen),
    /// PutObject was sent and not answered.
    Putting {
        /// What is published.
        frozen: Frozen,
        /// The mark it carries.
        mark: String,
        /// The condition it carries.
        condition: Condition,
        /// The whole object.
        sum: Checksum,
    },
    /// Complete was sent and not answered.
    Completing {
        /// What is published.
        frozen: Frozen,
        /// The mark it carries.
        mark: String,
        /// The condition it carries.
        condition: Condition,
    },
    /// The object is ours; the proof is missing.
    Completed {
        /// What was published.
        frozen: Frozen,
        /// ETag of the object.
        etag: ETag,
        /// Checksum of a PutObject; `None` after Complete.
        put: Option<Checksum>,
    },
}

impl Stage {
    /// What is frozen, if anything is.
    pub fn frozen(&self) -> Option<&Frozen> {
        match self {
            Stage::Open => None,
            Stage::Closed(frozen)
            | Stage::Putting { frozen, .. }
            | Stage::Completing { frozen, .. }
            | Stage::Completed { frozen, .. } => Some(frozen),
        }
    }
}

/// What BOS holds under one part number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Size in bytes.
    pub len: u64,
    /// ETag.
    pub etag: ETag,
    /// What it is; `None` where only ListParts told of it.
    pub sum: Option<Checksum>,
}

impl Held {
    /// Whether a body with `sum` is what BOS holds.
    pub fn equals(&self, sum: &Checksum) -> bool {
        self.len == sum.len && self.sum.map_or_else(|| self.etag.is_md5(&sum.md5), |held| held == *sum)
    }
}

/// What is known of one part number of the present upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// What BOS holds.
    pub held: Option<Held>,
    /// The file's bytes may differ from what BOS holds.
    pub dirty: bool,
    /// It was changed after the freeze: what BOS holds is the frozen state.
    pub frozen: bool,
    /// A body was sent and not answered.
    pub sending: Option<Checksum>,
    /// An unanswered body differs from a later one: ListParts must show what BOS kept.
    pub contested: bool,
    /// The bytes are no longer in the spool.
    pub punched: bool,
    /// The part was copied from the base: its range may span several numbers of the plan.
    pub copied: Option<ByteRange>,
}

/// The present upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// BOS's ID.
    pub id: UploadId,
    /// Offsets of the parts, fixed for this ID.
    pub plan: PartPlan,
    /// Where its object will be.
    pub key: ObjectKey,
}

/// The attributes that an object carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Mode, owner, time.
    pub attrs: FileAttrs,
    /// Extended attributes, as stored.
    pub xattrs: Option<String>,
}

/// What the last finished publication left in BOS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastPublication {
    /// Its number.
    pub publication: Publication,
    /// The object.
    pub object: BaseObject,
    /// Attributes it carries.
    pub attrs: FileAttrs,
    /// How it was shown to be right.
    pub proof: Proof,
}

/// A killed writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interruption {
    /// Command name, empty where not known.
    pub process: String,
    /// Process ID, 0 where not known.
    pub pid: u32,
    /// Signal, 0 where not known.
    pub signal: i32,
}

/// Everything that a journal says of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    /// Name of the journal.
    pub journal_id: String,
    /// Key of the object.
    pub key: ObjectKey,
    /// The object that unchanged bytes come from.
    pub base: Option<BaseObject>,
    /// What the next publication demands of the key.
    pub condition: Condition,
    /// Headers that travel with publications.
    pub headers: ObjectHeaders,
    /// Mode, owner, time.
    pub attrs: FileAttrs,
    /// What the object under the file's key carries; `None` while there is none of this file.
    pub carried: Option<Carried>,
    /// A writer closed it, and its rename is waited for.
    pub parked: bool,
    /// It got its key by a rename.
    pub renamed: bool,
    /// Boot during which the last line was written.
    pub boot_id: String,
    /// When the journal was begun, seconds since 1970.
    pub opened_at: i64,
    /// Initiate was sent and not answered: an upload that nobody lists may exist.
    pub initiating: bool,
    /// The present upload.
    pub upload: Option<Upload>,
    /// Parts of the present upload.
    pub parts: BTreeMap<PartNumber, Part>,
    /// Blocks of which only some bytes are in the spool.
    pub partials: BTreeMap<u64, Vec<ByteRange>>,
    /// Beyond it the base does not exist.
    pub base_end: u64,
    /// The size by the last line that names one. The file is at least as long: what was written behind it since is in
    /// the map.
    pub size_journaled: u64,
    /// A resize that may not have reached spool and map.
    pub resizing: Option<u64>,
    /// Size at the last sync.
    pub synced_size: Option<u64>,
    /// Blocks that are certain to be in the spool after a restart of the machine; `None`: all are.
    pub synced_blocks: Option<BlockSet>,
    /// Blocks for the next sync.
    syncing_blocks: BlockSet,
    /// A sync came after the last freeze.
    pub synced_since_closed: bool,
    /// How far the publication is.
    pub stage: Stage,
    /// Number of the last publication that was begun.
    pub publications: Publication,
    /// The last one that was finished.
    pub published: Option<LastPublication>,
    /// Parts (of the plan in force at the freeze) that were changed after it.
    pub changed_since_freeze: BTreeSet<PartNumber>,
    /// Smallest size since the freeze; `None`: never resized.
    pub size_min_since_freeze: Option<u64>,
    /// BOS lost parts of the frozen state whose bytes were changed since: it is nowhere any more.
    pub frozen_lost: bool,
    /// What was changed since the freeze was closed, too, and not changed since.
    pub closed_again: bool,
    /// `Proved` was written, spool and map may still be those before it.
    pub rebasing: bool,
    /// The writer was killed.
    pub interrupted: Option<Interruption>,
    /// Trouble that does not pass by itself: message, errno.
    pub failed: Option<(String, i32)>,
    /// Somebody else's object is there.
    pub conflict: Option<String>,
    /// The file was removed.
    pub unlinked: bool,
    /// What was written is given up; the object at the key stays.
    pub discarded: bool,
    /// How often a publication was disproved in a row.
    pub disproofs: u32,
    /// Parts that were sent since [`FileState::count_from_here`], or ever.
    pub parts_sent: u64,
    /// Extended attributes of the publication that is on its way.
    frozen_xattrs: Option<Option<String>>,
    /// Those of the present upload.
    sent_here: BTreeSet<PartNumber>,
    /// What `parts_kept` gave when the last upload was proved.
    kept_before: u64,
}

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
            Record::Cloned { base, end } => {
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

    /// Extended attributes, as they are stored with the object.
    pub fn xattrs(&self) -> Option<String> {
        self.headers.metadata.get(XATTRS).cloned()
    }

    fn set_xattrs(&mut self, xattrs: Option<&String>) {
        match xattrs {
            Some(xattrs) => self.headers.metadata.insert(XATTRS.to_owned(), xattrs.clone()),
            None => self.headers.metadata.remove(XATTRS),
        };
    }

    /// Whether the object under the key has other attributes than the file.
    pub fn attrs_differ(&self) -> bool {
        let now = Carried { attrs: self.attrs, xattrs: self.xattrs() };
        self.carried.as_ref().is_some_and(|carried| *carried != now)
    }

    /// Key that the base's bytes are read from.
    pub fn base_key(&self) -> &ObjectKey {
        self.base.as_ref().and_then(|base| base.key.as_ref()).unwrap_or(&self.key)
    }

    /// Whether changes are told apart from a frozen state: from the freeze until spool and map have the new base.
    pub fn keeps_changes(&self) -> bool {
        self.stage.frozen().is_some() || self.rebasing
    }

    /// Begins to count sent parts: what the lines so far speak of was done by an earlier process.
    pub fn count_from_here(&mut self) {
        self.parts_sent = 0;
        self.sent_here.clear();
    }

    /// Parts of the present upload, or of the last one that was proved, that BOS already held when they were needed: from
    /// an earlier process, or from an earlier writer with the same bytes.
    pub fn parts_kept(&self) -> u64 {
        if self.upload.is_none() {
            return self.kept_before;
        }
        let is_kept = |(number, part): &(&PartNumber, &Part)| {
            part.held.is_some() && !part.dirty && part.copied.is_none() && !self.sent_here.contains(*number)
        };
        self.parts.iter().filter(is_kept).count() as u64
    }

    /// Whether BOS holds exactly what the file has in part `number`, which is `len` bytes long.
    pub fn is_sent(&self, number: PartNumber, len: u64) -> bool {
        self.parts.get(&number).is_some_and(|part| {
            !part.dirty && part.copied.is_none() && part.held.as_ref().is_some_and(|held| held.len == len)
        })
    }

    /// Whether BOS holds what the publication under way needs in part `number`: what the file has there, or what it had at
    /// the freeze.
    pub fn is_sent_for_publication(&self, number: PartNumber, len: u64) -> bool {
        let is_frozen = |part: &Part| {
            part.frozen && part.copied.is_none() && part.held.as_ref().is_some_and(|held| held.len == len)
        };
        self.is_sent(number, len) || (self.stage.frozen().is_some() && self.parts.get(&number).is_some_and(is_frozen))
    }

    /// Whether BOS holds a copy of `range` of the base under `number`.
    pub fn is_copied(&self, number: PartNumber, range: ByteRange) -> bool {
        self.parts.get(&number).is_some_and(|part| !part.dirty && part.held.is_some() && part.copied == Some(range))
    }

    /// The mark of publication `number`: new for every publication, so that an object that carries it is that very one.
    pub fn mark(&self, publication: Publication) -> String {
        format!("{}.{publication}", self.journal_id)
    }
}

/// Blocks that a line names.
fn set_of(ranges: &[ByteRange]) -> BlockSet {
    let mut set = BlockSet::default();
    ranges.iter().for_each(|range| set.insert(range.start..range.end));
    set
}

/// The same for a line.
pub fn ranges_of(set: &BlockSet) -> Vec<ByteRange> {
    set.runs().map(|run| ByteRange::new(run.start, run.end)).collect()
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
