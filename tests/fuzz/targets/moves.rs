//! The journal of a rename, exchange or batch of deletions. Input as that of `journal`.

use bosfs::moves::record::MoveRecord;
use bosfs::moves::state::{Kind, MoveState, Recovery, Stage};
use bosfs::object::KEY_BYTES_MAX;

use super::journal::{check_file, file_of};

pub fn check(data: &[u8]) {
    let Some(replay) = check_file::<MoveRecord>(&file_of(data)) else { return };
    let Ok(state) = MoveState::replay(&replay.records) else { return };
    let mut folded = MoveState::begun(&replay.records[0]).expect("it was folded before");
    replay.records[1..].iter().for_each(|record| folded.apply(record));
    assert_eq!(folded, state, "line by line is something else than at once");
    assert!(state.copies.len() < replay.records.len() && state.deletes.len() < replay.records.len());
    assert_eq!(state.recovery() == Recovery::Drop && state.stage != Stage::Done, only_deletions(&state));
    for key in state.copies.keys().chain(state.deletes.keys()).chain(state.uploads.keys()) {
        let text = key.as_str();
        assert!(!text.is_empty() && text.len() <= KEY_BYTES_MAX && !text.contains('\0'));
        assert!(!text.split('/').any(|segment| segment == ".." || segment == "."), "{text:?} leaves its folder");
        let _ = (state.hides(text), state.touches(text));
    }
    // Nothing is removed by a batch that does not tell so when it is asked.
    if let Kind::Deletions { .. } = state.kind {
        for key in state.deletes.keys() {
            assert!(state.touches(key.as_str()), "{key} is deleted without being touched");
        }
    }
}

/// Deletions without one key.
fn only_deletions(state: &MoveState) -> bool {
    matches!(state.kind, Kind::Deletions { .. }) && state.deletes.is_empty() && state.stage != Stage::Done
}
