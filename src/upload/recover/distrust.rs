//! The machine was restarted: only synced bytes and parts that BOS holds are what they were. Everything else is again what
//! it was before it was written, and what was to be published of it is not.

use super::append;
use crate::journal::Record;
use crate::object::ByteRange;
use crate::upload::WriteError;
use crate::upload::inner::Store;
use crate::upload::part::hash;
use crate::upload::state::{FileState, Frozen, Stage};
use crate::write::block_map::{BLOCK_BYTES, BlockState};
use crate::write::layers::View;

/// Ranges of the lowest layer that BOS holds as parts.
#[derive(Default)]
struct InBos {
    /// All of them.
    ranges: Vec<ByteRange>,
    /// Those that the spool has as well. The others are BOS's alone from here on.
    intact: Vec<ByteRange>,
}

/// Takes back what was not synced. May be repeated from any point in it.
pub(super) fn distrust(state: &mut FileState, store: &mut Store) -> Result<(), WriteError> {
    lengthen(state, store)?;
    let in_bos = check_sent(state, store)?;
    let whole_body = puts_what_is_here(state, store);
    // Layers from the bottom, of which every byte is what it was, or is BOS's business.
    let mut trusted = vouched_depth(state);
    let in_flight = state.stage.frozen().cloned();
    let depth = in_flight.as_ref().map_or(0, |frozen| state.depth_of(frozen));
    let settled_by_bos = matches!(state.stage, Stage::Completing { .. } | Stage::Completed { .. }) || whole_body;
    let mut has_lost = false;
    for index in 0..state.layers.len() {
        if whole_body && index < depth {
            continue;
        }
        // What a sync vouches for is in its blocks. Others in the spool of such a layer were fetched from the base since, and
        // can be again.
        let reverted = revert_layer(state, store, index, &in_bos)?;
        has_lost |= reverted && index >= trusted;
    }
    if settled_by_bos {
        trusted = trusted.max(depth);
    }
    let known = known_ends(state, store, trusted, &in_bos);
    // That nothing seems to be lost of a layer tells nothing: its map, which says what was written, may be lost as well.
    let is_whole = |frozen: &Frozen| state.depth_of(frozen) <= trusted || is_all_in_bos(state, frozen);
    let next = state.next.clone().filter(|next| !is_whole(next));
    let in_flight = in_flight.filter(|frozen| !settled_by_bos && !is_whole(frozen));
    if let Some(frozen) = in_flight.or(next) {
        let key = &state.key;
        log::warn!("{key}: the machine was restarted before all of it was synced; it is not published");
        append(state, store, &Record::Superseded { publication: frozen.publication, lost: true })?;
    }
    let top = state.layers.last().zip(store.layers.last());
    let certain = top.is_none_or(|(known, top)| known.synced_size == Some(top.size()));
    if state.parked && (has_lost || !certain) {
        // No line says how long it was when it was closed.
        log::warn!("{}: the machine was restarted before all of it was synced; it is not published", state.key);
        append(state, store, &Record::Reopened)?;
    }
    let kept = state.last_closed().map_or(0, |closed| state.depth_of(closed));
    for (index, end) in known.into_iter().enumerate().skip(kept.max(trusted)) {
        cut_layer(state, store, index, end)?;
    }
    Ok(())
}

/// What lines say of partly written blocks is again what it was at the last sync: the disk may have lines without the bytes
/// that they speak of, and what would be shown there was never in the file.
pub(super) fn distrust_partials(state: &mut FileState, store: &mut Store, index: usize) -> Result<(), WriteError> {
    let layer = &state.layers[index];
    let (id, certain) = (layer.id, layer.synced_partials());
    let changed: Vec<u64> = layer.before.iter().flat_map(|before| before.blocks.keys().copied()).collect();
    for block in changed {
        let ranges = certain.get(&block).cloned().unwrap_or_default();
        if state.layers[index].partials.get(&block).cloned().unwrap_or_default() != ranges {
            append(state, store, &Record::Partial { layer: id, block, ranges, adds: false })?;
        }
    }
    Ok(())
}

/// A spool whose length was never synced may be empty: the file is as long as what the layer lies over, unless a line says
/// that it was cut, and reaches as far as what BOS holds of it.
fn lengthen(state: &FileState, store: &mut Store) -> Result<(), WriteError> {
    let mut below = u64::MAX;
    let sent = sent_end(state);
    for (index, (known, layer)) in state.layers.iter().zip(&mut store.layers).enumerate() {
        let mut least = known.synced_size.unwrap_or(0).max(layer.extents.base_end().min(below));
        if index == 0 {
            least = least.max(sent);
        }
        if layer.size() < least {
            layer.spool.set_len(least)?;
        }
        below = layer.size();
    }
    Ok(())
}

/// How far the parts reach that BOS holds as the file has them: their bytes were accepted, whatever is left of spool and map.
pub(super) fn sent_end(state: &FileState) -> u64 {
    let Some(upload) = state.upload.as_ref().filter(|_| state.depth() == 1) else { return 0 };
    let sent = state.parts.iter().filter(|(_, part)| !part.dirty && part.copied.is_none());
    let ends = sent.filter_map(|(number, part)| Some(upload.plan.range(*number).start + part.held.as_ref()?.len));
    ends.max().unwrap_or(0)
}

/// Number of layers, from the bottom, that a sync vouches for as a whole.
fn vouched_depth(state: &FileState) -> usize {
    let vouched = state.closed().filter(|frozen| frozen.close <= state.vouched_closes && is_unsent(state, frozen));
    vouched.map(|frozen| state.depth_of(frozen)).max().unwrap_or(0)
}

/// Whether BOS holds every byte of it in parts.
fn is_all_in_bos(state: &FileState, frozen: &Frozen) -> bool {
    let Some(upload) = state.upload.as_ref().filter(|_| state.stage.frozen() == Some(frozen)) else { return false };
    let held = state.parts.iter().filter(|(_, part)| part.held.is_some() && !part.dirty && !part.contested);
    let mut ranges: Vec<ByteRange> =
        held.map(|(number, part)| part.copied.unwrap_or_else(|| upload.plan.range_in(*number, frozen.size))).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.iter().fold(0, |end, range| if range.start <= end { end.max(range.end) } else { end }) >= frozen.size
}

/// From PutObject or Complete on, BOS tells what became of the state.
fn is_unsent(state: &FileState, frozen: &Frozen) -> bool {
    state.stage.frozen() != Some(frozen) || matches!(state.stage, Stage::Closed(_) | Stage::Putting { .. })
}

/// Whether the body of a PutObject that was not answered is here as it was sent.
fn puts_what_is_here(state: &FileState, store: &Store) -> bool {
    let Stage::Putting { sum, frozen, .. } = &state.stage else { return false };
    let view = View::new(&store.layers[..state.depth_of(frozen)], frozen.size);
    let body = view.body(ByteRange::new(0, frozen.size));
    body.is_some_and(|body| hash(&body).is_ok_and(|found| found == *sum))
}

/// Whether something of the layer is gone.
fn revert_layer(state: &FileState, store: &mut Store, index: usize, in_bos: &InBos) -> Result<bool, WriteError> {
    let known = &state.layers[index];
    let layer = &mut store.layers[index];
    let size = layer.size();
    let is_intact = |block: u64| {
        let range = ByteRange::at(block * BLOCK_BYTES, BLOCK_BYTES).intersect(ByteRange::new(0, size));
        index == 0 && in_bos.intact.iter().any(|part| part.start <= range.start && range.end <= part.end)
    };
    let uncertain = layer.extents.uncertain(|block| known.synced_blocks.contains(block) || is_intact(block));
    let was = |block: u64| {
        let upload = state.upload.as_ref().filter(|_| index == 0);
        let part = upload.and_then(|upload| upload.plan.part_at(block * BLOCK_BYTES));
        match part.and_then(|part| state.parts.get(&part)) {
            Some(part) if part.punched => BlockState::Held,
            _ if known.zeroed.contains(block) => BlockState::Zero,
            _ => BlockState::Base,
        }
    };
    layer.extents.revert(&uncertain, was)?;
    Ok(!uncertain.is_empty())
}

/// How far each layer is known to be what it was: as far as synced bytes, what is below, and what BOS holds reach without a
/// gap. The lowest `trusted` ones are known to their end.
fn known_ends(state: &FileState, store: &Store, trusted: usize, in_bos: &InBos) -> Vec<u64> {
    let mut below = u64::MAX;
    let mut ends = Vec::with_capacity(store.layers.len());
    for (index, layer) in store.layers.iter().enumerate() {
        let mut end = layer.size();
        if index >= trusted {
            let synced = state.layers[index].synced_size.unwrap_or(0);
            end = synced.max(layer.extents.base_end().min(below)).min(layer.size());
            if index == 0 {
                for part in in_bos.ranges.iter().filter(|part| part.end <= layer.size()) {
                    if part.start <= end {
                        end = end.max(part.end);
                    }
                }
            }
        }
        below = end;
        ends.push(end);
    }
    ends
}

fn cut_layer(state: &mut FileState, store: &mut Store, index: usize, known_end: u64) -> Result<(), WriteError> {
    let id = state.layers[index].id;
    let size = store.layers[index].size();
    if known_end >= size {
        return Ok(());
    }
    log::warn!(
        "{}: the machine was restarted; of its {size} bytes the first {known_end} are known to be whole",
        state.key
    );
    append(state, store, &Record::Resizing { layer: id, size: known_end })?;
    let layer = &mut store.layers[index];
    layer.spool.set_len(known_end)?;
    layer.extents.truncate(size, known_end)?;
    append(state, store, &Record::Resized { layer: id })
}

/// Looks which parts that BOS holds are still in the spool.
fn check_sent(state: &mut FileState, store: &mut Store) -> Result<InBos, WriteError> {
    let mut in_bos = InBos::default();
    let Some(upload) = state.upload.clone() else { return Ok(in_bos) };
    let depth = state.depth().min(store.layers.len());
    if depth != 1 {
        // Parts of several layers: those are sent again where the spools have lost them.
        return Ok(in_bos);
    }
    let size = state.stage.frozen().map_or_else(|| store.layers[0].size(), |frozen| frozen.size);
    // Then the spool has all that was written. What was fetched from the base for a part, and is gone, can be fetched again.
    let is_vouched_for = state.stage.frozen().is_some_and(|frozen| frozen.close <= state.vouched_closes);
    for number in upload.plan.parts_in(ByteRange::new(0, size)) {
        let range = upload.plan.range_in(number, size);
        if !state.is_sent(number, range.len()) {
            continue;
        }
        in_bos.ranges.push(range);
        if is_vouched_for && !state.parts[&number].punched {
            continue;
        }
        let part = &state.parts[&number];
        let sum = part.held.as_ref().and_then(|held| held.sum);
        let body = View::new(&store.layers[..1], size).body(range);
        if sum.is_some_and(|sum| body.is_some_and(|body| hash(&body).is_ok_and(|found| found == sum))) {
            in_bos.intact.push(range);
            continue;
        }
        if !part.punched {
            append(state, store, &Record::Punched { part: number })?;
        }
        store.layers[0].extents.hold_all(range)?;
    }
    Ok(in_bos)
}
