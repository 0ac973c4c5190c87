//! The journal of a file's upload. Input: `r` and the bytes of a file, or `f` and JSON texts, one a line, which are put
//! into lines with right lengths and checksums; a text that begins with `!` stands in the file as it is.

use bosfs::journal::{Line, Record, RecordReplay, line_of};
use bosfs::object::{ByteRange, PART_NUMBER_MAX};
use bosfs::upload::state::{FileState, Stage};
use crc_fast::{CrcAlgorithm, checksum};

use super::feed::Feed;

pub fn check(data: &[u8]) {
    let Some(replay) = check_file::<Record>(&file_of(data)) else { return };
    if let Ok(state) = FileState::replay(&replay.records) {
        check_state(&state, &replay.records);
    }
}

/// The journal that the input stands for.
pub fn file_of(data: &[u8]) -> Vec<u8> {
    let Some((kind, rest)) = data.split_first() else { return Vec::new() };
    if *kind != b'f' {
        return rest.to_vec();
    }
    let mut feed = Feed::new(rest);
    let mut file = Vec::new();
    while !feed.is_empty() {
        match feed.line() {
            [b'!', raw @ ..] => file.extend_from_slice(raw),
            json => file.extend(framed(json)),
        }
    }
    file
}

/// A line whose head is right, whatever stands in it.
fn framed(json: &[u8]) -> Vec<u8> {
    let sum = checksum(CrcAlgorithm::Crc32Iscsi, json) as u32;
    [format!("{:08x} {sum:08x} ", json.len()).as_bytes(), json, b"\n"].concat()
}

/// What holds of every journal, whatever its lines say. `None`: nothing was read.
pub fn check_file<R: Line + PartialEq + std::fmt::Debug>(file: &[u8]) -> Option<RecordReplay<R>> {
    let replay = RecordReplay::<R>::of_bytes(file);
    assert!(replay.records.len() <= file.len() / 20, "more records than lines fit");
    assert!(replay.torn_bytes <= file.len() as u64);
    assert!(replay.damage.is_none() || replay.torn_bytes == 0, "damage is no torn tail: nothing may be cut off");

    // What was read is what is read when it is written again.
    let mut again = Vec::new();
    for record in &replay.records {
        again.extend(line_of(record).ok()?);
    }
    let replayed = RecordReplay::<R>::of_bytes(&again);
    assert_eq!((replayed.damage, replayed.torn_bytes), (None, 0));
    assert_eq!(replayed.records, replay.records, "a record changes on its way to the disk and back");

    // A cut at any place takes away nothing before it, and adds nothing.
    for i in 0..8 {
        let cut = (file.len() * i / 8 + usize::from(file.get(i).copied().unwrap_or(0)) % 61).min(file.len());
        let part = RecordReplay::<R>::of_bytes(&file[..cut]);
        assert!(replay.records.starts_with(&part.records), "a cut at {cut} shows other records");
    }
    // A torn tail drops no line before it: what is left without the tail is the same, and whole.
    if replay.damage.is_none() {
        let kept = &file[..file.len() - replay.torn_bytes as usize];
        let part = RecordReplay::<R>::of_bytes(kept);
        assert_eq!((part.torn_bytes, &part.damage), (0, &None));
        assert_eq!(part.records, replay.records);
        // One more line behind it is read; the journal goes on.
        if let Some(first) = replay.records.first() {
            let longer = [kept, &line_of(first).ok()?].concat();
            assert_eq!(RecordReplay::<R>::of_bytes(&longer).records.len(), replay.records.len() + 1);
        }
    }
    Some(replay)
}

/// What may be relied on of a folded state.
fn check_state(state: &FileState, records: &[Record]) {
    let mut folded = FileState::opened(&records[0]).expect("it was folded before");
    for record in &records[1..] {
        folded.apply(record);
        assert!(folded.parts_kept() <= u64::from(PART_NUMBER_MAX));
    }
    assert_eq!(folded, *state, "line by line is something else than at once");
    assert!(state.parts.len() <= PART_NUMBER_MAX as usize);
    assert!(state.depth() <= state.layers.len() && state.layers.len() <= records.len() + 1);
    let again = state.checkpoint().expect("a state that is JSON");
    assert_eq!(FileState::replay(&again).as_ref(), Ok(state), "its checkpoint folds to something else");
    for (number, part) in &state.parts {
        assert!((1..=PART_NUMBER_MAX).contains(&number.get()));
        assert!(part.copied.is_none_or(|range| range.start <= range.end), "a range that is reversed");
        let len = part.held.as_ref().map_or(0, |held| held.len);
        assert!(!state.is_sent(*number, len) || part.held.is_some());
        assert!(!state.is_copied(*number, part.copied.unwrap_or(ByteRange::new(0, 0))) || part.copied.is_some());
    }
    if let Some(upload) = &state.upload {
        let end = upload.plan.size_max();
        assert!(upload.plan.part_at(end).is_none() && upload.plan.part_count(u64::MAX) == PART_NUMBER_MAX);
    }
    if let Some(frozen) = state.stage.frozen() {
        assert!(!matches!(state.stage, Stage::Open));
        assert!(state.mark(frozen.publication).starts_with(&state.journal_id));
    }
    assert!(!state.key.as_str().is_empty() && !state.key.as_str().contains('\0'));
    assert!(state.key.as_str().split('/').all(|segment| segment != ".."), "a key that leaves its folder");
    let _ = (state.attrs_differ(), state.base_key(), state.open_layer(), state.base_end());
}
