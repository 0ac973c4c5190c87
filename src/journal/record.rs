//! What one line of a journal says.
//!
//! The order of lines is the order of events. A line is *written* (survives a kill of bosfs) when `append` returns and
//! *synced* (survives power loss) after `sync`.

use serde::{Deserialize, Serialize};

use super::log::Line;
use crate::bos::client::ObjectHeaders;
use crate::object::{BaseObject, ByteRange, Checksum, Condition, ETag, FileAttrs, ObjectKey, PartNumber, UploadId};
use crate::write::block_map::BLOCK_BYTES;
use crate::write::part_plan::{FILE_BYTES_MAX, PartPlan};

/// Version of the format that this bosfs writes, and the highest it reads.
pub const FORMAT: u32 = 2;

/// Number of a publication within one journal, from 1.
pub type Publication = u32;

/// Name of a layer within one journal, from 1, never used twice. A layer is a spool and a map: what was written since the
/// freeze below it (see `upload/state.rs`).
pub type LayerId = u32;

/// One line of a file's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one Opened per journal; records are folded and dropped")]
pub enum Record {
    /// The first line: which file this is.
    Opened {
        /// Version of this format: 2.
        format: u32,
        /// Name of this journal: random, 16 hex digits; first half of every mark.
        journal_id: String,
        /// Key of the object.
        key: ObjectKey,
        /// Where unchanged bytes come from; `None`: a new file.
        base: Option<BaseObject>,
        /// What a publication demands of the key.
        condition: Condition,
        /// Headers carried over from the base, or made for a new file.
        headers: ObjectHeaders,
        /// Mode, owner, time.
        attrs: FileAttrs,
        /// `/proc/sys/kernel/random/boot_id` at that time.
        boot_id: String,
        /// Seconds since 1970.
        at: i64,
    },
    /// This boot goes on with the journal.
    Booted {
        /// Boot ID of the process that goes on.
        boot_id: String,
    },
    /// Initiate is about to be sent. Without a following `Initiated` an unlisted upload may exist.
    Initiating,
    /// BOS gave an upload ID; the part plan is fixed for it.
    Initiated {
        /// The ID.
        upload_id: UploadId,
        /// Which offsets each part has.
        plan: PartPlan,
        /// Key of the upload, unless it is the file's own: the parts of a temporary go to the name that it will get.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<ObjectKey>,
    },
    /// The body of a part is about to be sent.
    Sending {
        /// Part.
        part: PartNumber,
        /// What the body is.
        sum: Checksum,
    },
    /// BOS holds this part and its ETag was checked.
    Sent {
        /// Part.
        part: PartNumber,
        /// What it is.
        sum: Checksum,
        /// Its ETag.
        etag: ETag,
        /// It was already there: nothing went over the wire now.
        kept: bool,
    },
    /// BOS copied this range of the base into a part.
    Copied {
        /// Part.
        part: PartNumber,
        /// Range of the base (and of the file).
        range: ByteRange,
        /// ETag of the new part.
        etag: ETag,
    },
    /// The bytes of a part that was sealed, sent or frozen are about to change.
    Dirtied {
        /// Part.
        part: PartNumber,
    },
    /// A new layer lies on top: what is written from here on goes there, and nothing below it changes any more.
    Layer {
        /// Which.
        layer: LayerId,
        /// Size of what is below it: as far as that counts.
        base_end: u64,
    },
    /// All that was in this layer is in the one below it, too.
    Merged {
        /// Which.
        layer: LayerId,
    },
    /// Nothing of this layer counts any more: those above it cover it, or what it holds is thrown away.
    Dropped {
        /// Which.
        layer: LayerId,
    },
    /// Only these bytes of a block were written; the rest still comes from what is below.
    Partial {
        /// Which layer.
        layer: LayerId,
        /// Index of the block.
        block: u64,
        /// Written ranges, as offsets in the file, ascending, not touching. Empty: the block is whole.
        ranges: Vec<ByteRange>,
        /// They were written beside those that earlier lines name; else these are all.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        adds: bool,
    },
    /// The layer is about to get this size.
    Resizing {
        /// Which layer.
        layer: LayerId,
        /// New size in bytes.
        size: u64,
    },
    /// Spool and map have the size of the last `Resizing`.
    Resized {
        /// Which layer.
        layer: LayerId,
    },
    /// Mode, owner or time changed.
    Attrs {
        /// All of them.
        attrs: FileAttrs,
    },
    /// Extended attributes changed.
    Xattrs {
        /// All of them, as they are stored with the object; `None`: none.
        xattrs: Option<String>,
    },
    /// The object at the key was copied onto itself to carry these attributes.
    AttrsCopied {
        /// Its ETag now.
        etag: ETag,
        /// Mode, owner, time.
        attrs: FileAttrs,
        /// Extended attributes.
        xattrs: Option<String>,
    },
    /// Bytes up to `end` are those of this object from here on (a copy within the mount).
    Cloned {
        /// Which object.
        base: BaseObject,
        /// Where it ceases to count, bytes.
        end: u64,
        /// The file grows to `end` by it, which [`Record::Resized`] ends.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        grows: bool,
    },
    /// These blocks are zeros (punched or zeroed by the program) and are in the map as such.
    Zeroed {
        /// Which layer.
        layer: LayerId,
        /// Whole blocks, as offsets in the file.
        range: ByteRange,
    },
    /// Blocks of one layer that the next [`Record::Synced`] vouches for, too, where there are too many for that line. On stable
    /// storage before it is written.
    Spooled {
        /// Which layer.
        layer: LayerId,
        /// Size of the layer at that time.
        size: u64,
        /// Ranges of block indices that came into the spool since the last such line.
        blocks: Vec<ByteRange>,
    },
    /// A sync begins: what lines say of partly written blocks from here on is not what it vouches for. Only where there are
    /// such blocks.
    Syncing {
        /// Number of the sync, from 1.
        sync: u32,
    },
    /// Spools, maps and all lines before this sync began are on stable storage.
    Synced {
        /// Which [`Record::Syncing`] it ends; 0: it had none.
        #[serde(default)]
        sync: u32,
        /// Size of the file when the sync began.
        size: u64,
        /// Number of the last close that came before it: what was closed later is not vouched for.
        closes: u32,
        /// What is certain of each layer. In this very line, as a power loss may leave a later line whole and not an earlier
        /// one.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        layers: Vec<SyncedLayer>,
    },
    /// The ranges of this part were punched out of the spool; only BOS holds them.
    Punched {
        /// Part.
        part: PartNumber,
    },
    /// A writer closed a temporary: its rename, or its time, publishes it.
    Parked,
    /// A writer closed the file: publish this state, behind one that is on its way. A later line of the same number replaces it.
    Closed {
        /// Which publication.
        publication: Publication,
        /// Frozen size.
        size: u64,
        /// Frozen attributes.
        attrs: FileAttrs,
        /// The topmost layer that belongs to it; 0: none does, all its bytes are the base's.
        layer: LayerId,
        /// Its close returns once a sync vouches for it (`--write-back`): then it must be published, also if a later one takes
        /// its place that no sync vouches for yet when the power fails.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        durable: bool,
        /// All its bytes were synced before.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        synced: bool,
    },
    /// A publication that could not be sent is taken back: what is closed next takes its place.
    Superseded {
        /// Which.
        publication: Publication,
        /// Power loss took its bytes: what was closed before it, and is vouched for, is published instead.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lost: bool,
    },
    /// PutObject is about to be sent.
    Putting {
        /// Which publication.
        publication: Publication,
        /// Value of `x-bce-meta-bosfs-upload`.
        mark: String,
        /// Condition it carries.
        condition: Condition,
        /// The whole object.
        sum: Checksum,
    },
    /// Complete is about to be sent.
    Completing {
        /// Which publication.
        publication: Publication,
        /// Value of `x-bce-meta-bosfs-upload`.
        mark: String,
        /// Condition it carries.
        condition: Condition,
        /// Size of the whole.
        size: u64,
        /// Number of listed parts.
        part_count: u32,
    },
    /// The publication is the object now.
    Completed {
        /// Which publication.
        publication: Publication,
        /// ETag of the object.
        etag: ETag,
        /// Its size.
        size: u64,
    },
    /// The object was shown to be what was written.
    Proved {
        /// Which publication.
        publication: Publication,
        /// `proved` (whole-object checksum) or `composed` (parts, sizes and conditions).
        proof: Proof,
    },
    /// The object differs from what was written; it is published again from the spool.
    Disproved {
        /// Which publication.
        publication: Publication,
        /// How it differs.
        message: String,
    },
    /// BOS does not hold what an earlier line said of this part (ListParts, InvalidPart).
    PartLost {
        /// Part.
        part: PartNumber,
    },
    /// The upload is gone (completed by us, aborted or destroyed from outside); its parts count no more.
    UploadEnded,
    /// The writer was killed before it closed the file.
    Interrupted {
        /// Command name of the killed process, where known.
        process: String,
        /// Its process ID.
        pid: u32,
        /// The signal.
        signal: i32,
    },
    /// A writer goes on with the file.
    Reopened,
    /// The publication met trouble that does not pass by itself.
    Failed {
        /// What happened.
        message: String,
        /// errno that programs are shown.
        errno: i32,
    },
    /// The key holds neither the base nor our object.
    Conflict {
        /// What is there.
        message: String,
    },
    /// The file was removed: abort the upload, delete the object if it is ours or the base.
    Unlinked,
    /// What was written since the last publication is given up: abort the upload, leave the object.
    Discarded,
    /// The file has another key from here on.
    Renamed {
        /// New key.
        key: ObjectKey,
        /// What the next publication demands of it.
        condition: Condition,
        /// The object under the new key that has the base's bytes, where one was copied there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<BaseObject>,
    },
    /// The first line of a journal that replaces a longer one: what all lines so far add up to. More of it stands in the
    /// [`Record::CheckpointMore`] lines that follow.
    Checkpoint {
        /// Version of this format: 2.
        format: u32,
        /// Key of the object.
        key: ObjectKey,
        /// The folded state, as `upload/checkpoint.rs` writes it.
        state: serde_json::Value,
    },
    /// Parts or blocks of a checkpoint.
    CheckpointMore {
        /// As `upload/checkpoint.rs` writes it.
        state: serde_json::Value,
    },
}

/// What a sync vouches for of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncedLayer {
    /// Which.
    pub layer: LayerId,
    /// Its size when the sync began.
    pub size: u64,
    /// Ranges of block indices that came into its spool since the sync before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<ByteRange>,
}

impl Line for Record {
    const FORMAT: u32 = FORMAT;

    fn format(&self) -> Option<u32> {
        match self {
            Record::Opened { format, .. } | Record::Checkpoint { format, .. } => Some(*format),
            _ => None,
        }
    }

    /// Ranges are not reversed, and no block lies beyond the largest file.
    fn check(&self) -> Result<(), String> {
        let ranges: Vec<&ByteRange> = match self {
            Record::Copied { range, .. } | Record::Zeroed { range, .. } => vec![range],
            Record::Partial { ranges, .. } => ranges.iter().collect(),
            _ => self.blocks().collect(),
        };
        let last_block = match self {
            Record::Partial { block, .. } => Some(*block),
            _ => self.blocks().filter_map(|range| range.end.checked_sub(1)).max(),
        };
        if let Some(range) = ranges.iter().find(|range| range.end < range.start) {
            return Err(format!("has the impossible range {range:?}"));
        }
        match last_block {
            Some(block) if block >= FILE_BYTES_MAX / BLOCK_BYTES => {
                Err(format!("names block {block}, which lies beyond the largest file of {FILE_BYTES_MAX} bytes"))
            }
            _ => Ok(()),
        }
    }
}

impl Record {
    /// Key of the file, where this is the first line of its journal.
    pub fn first_key(&self) -> Option<&ObjectKey> {
        match self {
            Record::Opened { key, .. } | Record::Checkpoint { key, .. } => Some(key),
            _ => None,
        }
    }

    /// The blocks that the line names as ranges of their indices.
    fn blocks(&self) -> impl Iterator<Item = &ByteRange> {
        let (spooled, synced) = match self {
            Record::Spooled { blocks, .. } => (blocks.as_slice(), [].as_slice()),
            Record::Synced { layers, .. } => ([].as_slice(), layers.as_slice()),
            _ => ([].as_slice(), [].as_slice()),
        };
        spooled.iter().chain(synced.iter().flat_map(|layer| &layer.blocks))
    }
}

/// How an object was shown to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// A checksum of the whole, computed by BOS, equals the local one.
    Proved,
    /// Size, each sent part, source conditions and the ETag rule hold; BOS gave no checksum of the whole, or copied
    /// ranges have an unknown one.
    Composed,
}
