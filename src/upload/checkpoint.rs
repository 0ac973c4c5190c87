//! A folded journal as the first lines of a shorter one, and back.
//!
//! The state goes into one [`Record::Checkpoint`], but for what may be long: parts and blocks follow in
//! [`Record::CheckpointMore`] lines, a bounded number in each.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::replay::ReplayError;
use super::state::{FileState, Part, PartialsBefore};
use crate::journal::Record;
use crate::journal::record::{FORMAT, LayerId};
use crate::object::{ByteRange, ObjectKey, PartNumber};
use crate::write::block_map::BLOCK_BYTES;
use crate::write::block_set::BlockSet;
use crate::write::part_plan::FILE_BYTES_MAX;

/// Parts in one line: about 300 bytes each.
const LINE_PARTS_MAX: usize = 1000;
/// Ranges of blocks, or of bytes within blocks, in one line: about 30 bytes each.
const LINE_RANGES_MAX: usize = 8192;
/// A journal up to this length is left as it is, bytes.
pub(super) const JOURNAL_BYTES_MIN: u64 = 32 << 10;

type Before = (u32, Vec<(u64, Option<Vec<ByteRange>>)>);

/// A piece of a checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
struct More {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parts: Vec<(PartNumber, Part)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sent_here: Vec<PartNumber>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer: Option<LayerId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    partials: Vec<(u64, Vec<ByteRange>)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    synced: Vec<Range<u64>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    zeroed: Vec<Range<u64>>,
    /// Number of a sync, and partly written blocks as they were when it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Before>,
    /// Size and blocks of a sync that is being noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    syncing: Option<(u64, Vec<Range<u64>>)>,
}

impl More {
    fn runs(&self) -> impl Iterator<Item = &Range<u64>> {
        self.synced.iter().chain(&self.zeroed).chain(self.syncing.iter().flat_map(|(_, blocks)| blocks))
    }

    fn is_sane(&self) -> bool {
        let block_max = FILE_BYTES_MAX / BLOCK_BYTES;
        let before = || self.before.iter().flat_map(|(_, blocks)| blocks);
        let mut ranges = self
            .partials
            .iter()
            .flat_map(|(_, ranges)| ranges)
            .chain(before().flat_map(|(_, ranges)| ranges.iter().flatten()));
        let mut copied = self.parts.iter().filter_map(|(_, part)| part.copied.as_ref());
        ranges.all(|range| range.start <= range.end)
            && copied.all(|range| range.start <= range.end)
            && self.partials.iter().all(|(block, _)| *block < block_max)
            && before().all(|(block, _)| *block < block_max)
            && self.runs().all(|run| run.start <= run.end && run.end <= block_max)
    }
}

/// Splits `items` into runs of at most [`LINE_RANGES_MAX`] by `weight`.
fn chunked<T>(items: impl IntoIterator<Item = T>, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let (mut chunks, mut chunk, mut full) = (Vec::new(), Vec::new(), 0);
    for item in items {
        let more = weight(&item);
        if full + more > LINE_RANGES_MAX && !chunk.is_empty() {
            chunks.push(std::mem::take(&mut chunk));
            full = 0;
        }
        full += more;
        chunk.push(item);
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

/// As [`chunked`], for what counts although it is empty: at least one run.
fn chunked_or_empty<T>(items: impl IntoIterator<Item = T>, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let chunks = chunked(items, weight);
    if chunks.is_empty() { vec![Vec::new()] } else { chunks }
}

impl FileState {
    /// Lines that fold to this very state.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn checkpoint(&self) -> serde_json::Result<Vec<Record>> {
        let mut core = self.clone();
        let parts = std::mem::take(&mut core.parts);
        let sent_here = std::mem::take(&mut core.sent_here);
        let mut pieces: Vec<More> = Vec::new();
        let parts: Vec<(PartNumber, Part)> = parts.into_iter().collect();
        pieces.extend(parts.chunks(LINE_PARTS_MAX).map(|parts| More { parts: parts.to_vec(), ..More::default() }));
        if !sent_here.is_empty() {
            pieces.push(More { sent_here: sent_here.into_iter().collect(), ..More::default() });
        }
        for layer in &mut core.layers {
            let id = Some(layer.id);
            let partials = std::mem::take(&mut layer.partials);
            for partials in chunked(partials, |(_, ranges)| ranges.len() + 1) {
                pieces.push(More { layer: id, partials, ..More::default() });
            }
            for before in std::mem::take(&mut layer.before) {
                let chunks = chunked_or_empty(before.blocks, |(_, ranges)| ranges.as_ref().map_or(0, Vec::len) + 1);
                for blocks in chunks {
                    pieces.push(More { layer: id, before: Some((before.sync, blocks)), ..More::default() });
                }
            }
            let synced: Vec<Range<u64>> = std::mem::take(&mut layer.synced_blocks).into();
            for synced in chunked(synced, |_| 1) {
                pieces.push(More { layer: id, synced, ..More::default() });
            }
            let zeroed: Vec<Range<u64>> = std::mem::take(&mut layer.zeroed).into();
            for zeroed in chunked(zeroed, |_| 1) {
                pieces.push(More { layer: id, zeroed, ..More::default() });
            }
            if let Some((size, blocks)) = layer.syncing.take() {
                for blocks in chunked_or_empty(Vec::from(blocks), |_| 1) {
                    pieces.push(More { layer: id, syncing: Some((size, blocks)), ..More::default() });
                }
            }
        }
        let first = Record::Checkpoint { format: FORMAT, key: self.key.clone(), state: serde_json::to_value(&core)? };
        let mut lines = vec![first];
        for piece in &pieces {
            lines.push(Record::CheckpointMore { state: serde_json::to_value(piece)? });
        }
        Ok(lines)
    }

    /// The first line of a checkpoint.
    pub(super) fn of_checkpoint(key: &ObjectKey, state: &serde_json::Value) -> Result<Self, ReplayError> {
        let state = Self::deserialize(state).map_err(|e| ReplayError::Checkpoint(e.to_string()))?;
        if state.key != *key {
            return Err(ReplayError::Checkpoint(format!("it is that of {}, not of {key}", state.key)));
        }
        Ok(state)
    }

    /// A further line of it.
    pub(super) fn take_more(&mut self, more: &serde_json::Value) -> Result<(), ReplayError> {
        let more = More::deserialize(more).map_err(|e| ReplayError::Checkpoint(e.to_string()))?;
        if !more.is_sane() {
            return Err(ReplayError::Checkpoint("it names impossible ranges".into()));
        }
        self.parts.extend(more.parts);
        self.sent_here.extend(more.sent_here);
        if let Some(layer) = self.layers.iter_mut().find(|layer| Some(layer.id) == more.layer) {
            layer.partials.extend(more.partials);
            layer.synced_blocks.extend(&BlockSet::from(more.synced));
            layer.zeroed.extend(&BlockSet::from(more.zeroed));
            if let Some((sync, blocks)) = more.before {
                if layer.before.last().is_none_or(|last| last.sync != sync) {
                    layer.before.push(PartialsBefore { sync, ..PartialsBefore::default() });
                }
                if let Some(last) = layer.before.last_mut() {
                    last.blocks.extend(blocks);
                }
            }
            if let Some((size, blocks)) = more.syncing {
                let (of, known) = layer.syncing.get_or_insert_default();
                *of = size;
                known.extend(&BlockSet::from(blocks));
            }
        }
        Ok(())
    }

    /// About how many bytes [`FileState::checkpoint`] takes, never much more: cheap enough to be asked now and then.
    pub(super) fn checkpoint_bytes(&self) -> u64 {
        let ranges = |partials: &BTreeMap<u64, Vec<ByteRange>>| -> u64 {
            partials.values().map(|ranges| 16 + 34 * ranges.len() as u64).sum()
        };
        let layers: u64 = self
            .layers
            .iter()
            .map(|layer| {
                let before = layer.before.iter().flat_map(|before| before.blocks.values());
                let before: u64 = before.map(|ranges| 16 + 34 * ranges.as_ref().map_or(0, Vec::len) as u64).sum();
                let runs = layer.synced_blocks.runs().count() + layer.zeroed.runs().count();
                150 + ranges(&layer.partials) + before + 24 * runs as u64
            })
            .sum();
        600 + 180 * self.parts.len() as u64 + layers
    }

    /// Whether a journal of `len` bytes is to be replaced by a checkpoint of this state. A journal takes at most
    /// 64 KiB and twice what its checkpoint takes.
    pub(super) fn wants_checkpoint(&self, len: u64) -> bool {
        len > JOURNAL_BYTES_MIN && len > JOURNAL_BYTES_MIN + self.checkpoint_bytes() * 7 / 4
    }
}

#[cfg(test)]
mod tests {
    use super::super::replay::tests::opened;
    use super::*;
    use crate::journal::record::SyncedLayer;
    use crate::object::{Checksum, ETag, UploadId};
    use crate::write::part_plan::PartPlan;

    fn n(number: u32) -> PartNumber {
        PartNumber::new(number).unwrap()
    }

    fn large() -> FileState {
        let mut state = FileState::replay(&[opened(None)]).unwrap();
        let plan = PartPlan::growing(8 << 20);
        state.apply(&Record::Initiated { upload_id: UploadId::new("u"), plan, key: None });
        for number in 1..=2500 {
            let sum = Checksum::of(&[number as u8]);
            let etag = ETag::new(&sum.md5.to_hex());
            state.apply(&Record::Sending { part: n(number), sum });
            state.apply(&Record::Sent { part: n(number), sum, etag, kept: number % 2 == 0 });
        }
        for block in 0..300 {
            let ranges = (0..40).map(|i| ByteRange::at(block * BLOCK_BYTES + i * 100, 1)).collect();
            state.apply(&Record::Partial { layer: 1, block, ranges, adds: false });
        }
        let blocks = (0..20_000).map(|i| ByteRange::at(i * 3, 1)).collect();
        state.apply(&Record::Spooled { layer: 1, size: 1 << 30, blocks });
        let layers = vec![SyncedLayer { layer: 1, size: 1 << 30, blocks: Vec::new() }];
        state.apply(&Record::Synced { size: 1 << 30, closes: 0, sync: 0, layers });
        for i in 0..500 {
            state.apply(&Record::Zeroed { layer: 1, range: ByteRange::at((1000 + 2 * i) * BLOCK_BYTES, BLOCK_BYTES) });
        }
        state.apply(&Record::Spooled { layer: 1, size: 2 << 30, blocks: vec![ByteRange::new(70_000, 70_005)] });
        state
    }

    #[test]
    fn a_checkpoint_folds_to_the_state_it_was_made_of() {
        let state = large();
        let lines = state.checkpoint().unwrap();
        assert!(lines.len() > 4);
        for line in &lines {
            crate::journal::line_of(line).unwrap();
        }
        assert_eq!(FileState::replay(&lines).unwrap(), state);
        assert_eq!(
            FileState::replay(&FileState::replay(&[opened(None)]).unwrap().checkpoint().unwrap()).unwrap().layers.len(),
            1
        );
    }

    #[test]
    fn the_estimate_is_near_what_is_written_and_not_above_it() {
        for state in [large(), FileState::replay(&[opened(None)]).unwrap()] {
            let written: usize =
                state.checkpoint().unwrap().iter().map(|line| crate::journal::line_of(line).unwrap().len()).sum();
            let guess = state.checkpoint_bytes() as f64 / written as f64;
            assert!((0.4..=1.1).contains(&guess), "{guess} of {written}");
        }
    }

    #[test]
    fn a_checkpoint_of_another_key_or_with_impossible_ranges_is_refused() {
        let state = large();
        let mut lines = state.checkpoint().unwrap();
        if let Record::Checkpoint { key, .. } = &mut lines[0] {
            *key = ObjectKey::parse("other").unwrap();
        }
        assert!(matches!(FileState::replay(&lines), Err(ReplayError::Checkpoint(_))));
        let bad = serde_json::json!({ "layer": 1, "partials": [[0, [{ "start": 9, "end": 2 }]]] });
        let lines = [opened(None), Record::CheckpointMore { state: bad }];
        assert!(matches!(FileState::replay(&lines), Err(ReplayError::Checkpoint(_))));
    }
}
