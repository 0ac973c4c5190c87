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
//! `DirtyFile::append` takes every arrow: it writes the line, then applies it (`replay.rs`).

use std::collections::{BTreeMap, BTreeSet};

pub use super::replay::ReplayError;
use crate::bos::client::ObjectHeaders;
use crate::journal::record::{Proof, Publication};
use crate::object::{BaseObject, ByteRange, Checksum, Condition, ETag, FileAttrs, ObjectKey, PartNumber, UploadId};
use crate::posix_meta::XATTRS;
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
    pub(super) syncing_blocks: BlockSet,
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
    pub(super) frozen_xattrs: Option<Option<String>>,
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
pub(super) fn set_of(ranges: &[ByteRange]) -> BlockSet {
    let mut set = BlockSet::default();
    ranges.iter().for_each(|range| set.insert(range.start..range.end));
    set
}

/// The same for a line.
pub fn ranges_of(set: &BlockSet) -> Vec<ByteRange> {
    set.runs().map(|run| ByteRange::new(run.start, run.end)).collect()
}
