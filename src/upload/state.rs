//! What a file's journal adds up to: one fold for the running mount, recovery, `uploads list` and `verify`.
//!
//! A publication is a value ([`Frozen`]): a number, a size, attributes, headers, and the layers of bytes that were there
//! when it was closed (`write/layers.rs`). A layer that belongs to a publication never changes again: what is written later
//! goes into a new layer above it. At most one publication is on its way, one more waits behind it.
//!
//! ```text
//!   layers   [1 .. n] of the publication on its way   [n+1 .. m] of the one behind it   [m+1] open: takes what is written
//!
//!                       Closed                  Putting / Completing                 Completed
//!   Stage::Open ──────────────► Stage::Closed ──────────────► Putting | Completing ───────────► Stage::Completed
//!     ▲   ▲                       ▲    │   ▲                                                       │        │
//!     │   └────── Superseded ─────│────┘   └──────────────────────── Disproved ────────────────────┘        │ Proved
//!     │                           └──────────────── a close waits behind: it is next ◄──────────────────────┤
//!     └──────────────────────────────────────────── none waits ◄────────────────────────────────────────────┘
//! ```
//!
//! Proved: the object is the new base, the publication's layers go, those above lie over the object as they are.
//! A close while something is on its way waits as `next`; a later one takes its place, under the same number. With
//! `--write-back` the earlier one is kept (`behind`) until a sync vouches for the later one: power loss must not take both.
//!
//! `DirtyFile::append` takes every arrow: it writes the line, then applies it (`replay.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use super::replay::ReplayError;
use crate::bos::BosClient;
use crate::bos::client::ObjectHeaders;
use crate::journal::record::{LayerId, Proof, Publication};
use crate::object::{BaseObject, ByteRange, Checksum, Condition, ETag, FileAttrs, ObjectKey, PartNumber, UploadId};
use crate::posix_meta::XATTRS;
pub use crate::transfer::Held;
use crate::transfer::{self, Unanswered};
use crate::write::block_map::BLOCK_BYTES;
use crate::write::block_set::BlockSet;
use crate::write::extents::{PartialLine, add_partial, cut_partials};
use crate::write::part_plan::PartPlan;

/// The state that a close froze for publication. Nothing that happens to the open file afterwards reaches it, but for
/// attributes that are set before it is sent: they go along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Which publication.
    pub publication: Publication,
    /// Size in bytes.
    pub size: u64,
    /// Mode, owner, time that travel with it.
    pub attrs: FileAttrs,
    /// Other headers that travel with it, extended attributes among them.
    pub headers: ObjectHeaders,
    /// Its topmost layer; 0: it has none.
    pub layer: LayerId,
    /// Number of the close that froze it: each close has a new one.
    pub close: u32,
    /// Once a sync vouches for it, it is published, or a later state that is vouched for as well.
    #[serde(default)]
    pub durable: bool,
}

/// How far the publication is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// What the journal says of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerState {
    /// Which.
    pub id: LayerId,
    /// Beyond it nothing of what is below counts.
    pub base_end: u64,
    /// The size by the last line that names one. The layer is at least as long: what was written behind it since is in the
    /// map.
    pub size_journaled: u64,
    /// A resize that may not have reached spool and map.
    pub resizing: Option<u64>,
    /// Blocks of which only some bytes are in the spool.
    pub partials: BTreeMap<u64, Vec<ByteRange>>,
    /// What blocks of [`LayerState::partials`] were before lines that no sync vouches for yet; oldest first.
    pub(super) before: Vec<PartialsBefore>,
    /// Size at the last sync.
    pub synced_size: Option<u64>,
    /// Blocks that are certain to be in the spool after a restart of the machine.
    pub synced_blocks: BlockSet,
    /// Blocks that a line made zeros: where a later write into them is lost, the base does not show again.
    #[serde(default)]
    pub zeroed: BlockSet,
    /// Blocks and size for the next `Synced`.
    pub(super) syncing: Option<(u64, BlockSet)>,
}

/// Partly written blocks as they were when a sync began, as far as they were changed since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartialsBefore {
    /// Number of that sync; 0: none began yet.
    pub(super) sync: u32,
    /// Their written ranges then; `None`: the block was whole, or not in the spool.
    pub(super) blocks: BTreeMap<u64, Option<Vec<ByteRange>>>,
}

impl LayerState {
    /// Takes what a line says of a partly written block, and keeps what was known before.
    pub(super) fn take_partial(&mut self, line: &PartialLine) {
        if self.before.is_empty() {
            self.before.push(PartialsBefore::default());
        }
        if let Some(before) = self.before.last_mut() {
            before.blocks.entry(line.block).or_insert_with(|| self.partials.get(&line.block).cloned());
        }
        add_partial(&mut self.partials, line);
    }

    /// A sync of this number begins; numbers grow.
    pub(super) fn begin_sync(&mut self, sync: u32) {
        if self.knows_partials() && self.before.last().is_none_or(|last| last.sync < sync) {
            self.before.push(PartialsBefore { sync, ..PartialsBefore::default() });
        }
    }

    /// The sync of this number vouches for the layer as it was when it began.
    pub(super) fn vouch_partials(&mut self, sync: u32) {
        if sync > 0 {
            self.before.retain(|before| before.sync >= sync);
        }
    }

    /// The written ranges of partly written blocks by the last sync: a line may be on stable storage without the bytes that
    /// it speaks of.
    pub fn synced_partials(&self) -> BTreeMap<u64, Vec<ByteRange>> {
        let mut partials = self.partials.clone();
        for (block, ranges) in self.before.iter().rev().flat_map(|before| &before.blocks) {
            match ranges {
                Some(ranges) => partials.insert(*block, ranges.clone()),
                None => partials.remove(block),
            };
        }
        partials
    }

    /// Whether lines have spoken of partly written blocks that may still matter.
    pub(super) fn knows_partials(&self) -> bool {
        !self.partials.is_empty() || !self.before.is_empty()
    }

    /// The layer is cut to `size`.
    pub(super) fn cut_partials(&mut self, size: u64) {
        cut_partials(&mut self.partials, size);
        for before in &mut self.before {
            before.blocks.split_off(&size.div_ceil(BLOCK_BYTES));
            if let Some(mut last) = before.blocks.last_entry()
                && let Some(ranges) = last.get_mut()
            {
                let within = ByteRange::new(0, size);
                ranges.iter_mut().for_each(|range| *range = range.intersect(within));
                ranges.retain(|range| !range.is_empty());
            }
        }
    }

    /// Blocks that nothing is known of any more as partly written.
    pub(super) fn forget_partials(&mut self, blocks: std::ops::Range<u64>) {
        self.partials.retain(|block, _| !blocks.contains(block));
        self.before.iter_mut().for_each(|before| before.blocks.retain(|block, _| !blocks.contains(block)));
    }

    /// A layer over `base_end` bytes, in which nothing was written yet.
    pub fn new(id: LayerId, base_end: u64) -> Self {
        Self {
            id,
            base_end,
            size_journaled: base_end,
            resizing: None,
            partials: BTreeMap::new(),
            before: Vec::new(),
            synced_size: None,
            synced_blocks: BlockSet::default(),
            zeroed: BlockSet::default(),
            syncing: None,
        }
    }
}

impl Stage {
    /// Whether what publishes it was sent, and not answered as far as is known.
    pub fn is_sent(&self) -> bool {
        matches!(self, Stage::Putting { .. } | Stage::Completing { .. })
    }

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

/// What is known of one part number of the present upload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What BOS holds.
    pub held: Option<Held>,
    /// The file's bytes may differ from what BOS holds.
    pub dirty: bool,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// BOS's ID.
    pub id: UploadId,
    /// Offsets of the parts, fixed for this ID.
    pub plan: PartPlan,
    /// Where its object will be.
    pub key: ObjectKey,
}

impl Upload {
    /// The same for requests.
    pub(super) fn in_bos<'a>(&'a self, client: &'a BosClient) -> transfer::Upload<'a> {
        transfer::Upload { client, key: &self.key, id: &self.id }
    }
}

/// The attributes that an object carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Mode, owner, time.
    pub attrs: FileAttrs,
    /// Extended attributes, as stored.
    pub xattrs: Option<String>,
}

/// What the last finished publication left in BOS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interruption {
    /// Command name, empty where not known.
    pub process: String,
    /// Process ID, 0 where not known.
    pub pid: u32,
    /// Signal, 0 where not known.
    pub signal: i32,
}

/// Everything that a journal says of its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The machine was restarted since the last line that announced a publication: lines of later ones may be lost.
    #[serde(default)]
    pub restarted: bool,
    /// Closes that no sync vouched for when the machine was restarted: their bytes may be gone from here.
    #[serde(default)]
    pub uncertain_closes: Range<u32>,
    /// When the journal was begun, seconds since 1970.
    pub opened_at: i64,
    /// What was written, bottom first.
    pub layers: Vec<LayerState>,
    /// Number of the last layer that was begun.
    pub layers_made: LayerId,
    /// How often Initiate was sent and not answered: as many uploads may exist that nobody knows.
    pub initiating: u32,
    /// The upload of the publication under way, or of the open state.
    pub upload: Option<Upload>,
    /// Parts of it.
    pub parts: BTreeMap<PartNumber, Part>,
    /// How far the publication is.
    pub stage: Stage,
    /// What was closed behind it.
    pub next: Option<Frozen>,
    /// Durable states, oldest first, whose place was taken by later ones that no sync vouches for yet.
    #[serde(default)]
    pub behind: Vec<Frozen>,
    /// Number of the last publication that was begun.
    pub publications: Publication,
    /// Number of the last close.
    pub closes: u32,
    /// Number of the last sync that a line told of.
    pub syncs_begun: u32,
    /// Closes that a sync vouches for: up to this number they are whole after a restart of the machine.
    pub vouched_closes: u32,
    /// The last publication that was finished.
    pub published: Option<LastPublication>,
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
    /// Those of the present upload.
    pub(super) sent_here: BTreeSet<PartNumber>,
    /// What `parts_kept` gave when the last upload was proved.
    pub(super) kept_before: u64,
}

impl FileState {
    /// Extended attributes, as they are stored with the object.
    pub fn xattrs(&self) -> Option<String> {
        self.headers.metadata.get(XATTRS).cloned()
    }

    /// Whether the object under the key has other attributes than the file.
    pub fn attrs_differ(&self) -> bool {
        let now = Carried { attrs: self.attrs, xattrs: self.xattrs() };
        self.carried.as_ref().is_some_and(|carried| *carried != now)
    }

    /// Whether the base's bytes are those of an object under another key.
    pub fn reads_elsewhere(&self) -> bool {
        self.base.as_ref().is_some_and(|base| base.key.is_some())
    }

    /// Key that the base's bytes are read from.
    pub fn base_key(&self) -> &ObjectKey {
        self.base.as_ref().and_then(|base| base.key.as_ref()).unwrap_or(&self.key)
    }

    /// The newest state that was closed and is not proved yet.
    pub fn last_closed(&self) -> Option<&Frozen> {
        self.next.as_ref().or_else(|| self.stage.frozen())
    }

    /// Every state that was closed and is not proved yet.
    pub fn closed(&self) -> impl Iterator<Item = &Frozen> {
        self.stage.frozen().into_iter().chain(&self.behind).chain(&self.next)
    }

    /// Number of layers, from the bottom, that belong to `frozen`.
    pub fn depth_of(&self, frozen: &Frozen) -> usize {
        self.layers.iter().position(|layer| layer.id == frozen.layer).map_or(0, |index| index + 1)
    }

    /// Number of layers that belong to the publication under way; of all, where there is none.
    pub fn depth(&self) -> usize {
        self.stage.frozen().map_or(self.layers.len(), |frozen| self.depth_of(frozen))
    }

    /// The layer that takes what is written; `None`: one has to be begun.
    pub fn open_layer(&self) -> Option<&LayerState> {
        let closed = self.last_closed().map_or(0, |closed| closed.layer);
        self.layers.last().filter(|layer| layer.id != closed)
    }

    /// Whether anything of it is certain to be there after a restart of the machine.
    pub fn was_synced(&self) -> bool {
        self.vouched_closes > 0 || self.layers.iter().any(|layer| layer.synced_size.is_some())
    }

    /// A layer by its number.
    pub fn layer(&self, id: LayerId) -> Option<&LayerState> {
        self.layers.iter().find(|layer| layer.id == id)
    }

    /// Beyond it the base object does not exist for this file.
    pub fn base_end(&self) -> u64 {
        let size = self.base.as_ref().map_or(0, |base| base.size);
        self.layers.first().map_or(size, |layer| layer.base_end)
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

    /// Whether BOS holds a copy of `range` of the base under `number`.
    pub fn is_copied(&self, number: PartNumber, range: ByteRange) -> bool {
        self.parts.get(&number).is_some_and(|part| !part.dirty && part.held.is_some() && part.copied == Some(range))
    }

    /// What may still arrive under `number` besides what was sent last.
    pub(super) fn unanswered(&self, number: PartNumber) -> Unanswered {
        let contested = self.parts.get(&number).is_some_and(|part| part.contested);
        if contested { Unanswered::Other } else { Unanswered::None }
    }

    /// The mark of publication `number`: new for every publication, so that an object that carries it is that very one.
    pub fn mark(&self, publication: Publication) -> String {
        format!("{}.{publication}", self.journal_id)
    }
}

/// Blocks that a line names.
pub(super) fn set_of(ranges: &[ByteRange]) -> BlockSet {
    let mut set = BlockSet::default();
    ranges.iter().for_each(|range| set.insert(range.start..range.end));
    set
}

/// The same for a line.
pub fn ranges_of(set: &BlockSet) -> Vec<ByteRange> {
    set.runs().map(|run| ByteRange::new(run.start, run.end)).collect()
}
