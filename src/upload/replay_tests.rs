//! Tests of the fold.

use super::*;
use crate::bos::client::ObjectHeaders;
use crate::object::{Checksum, ETag, FileAttrs, ObjectKey, PartNumber, UploadId};
use crate::write::part_plan::PartPlan;

pub(crate) fn opened(base: Option<BaseObject>) -> Record {
    Record::Opened {
        format: 1,
        journal_id: "00000000000000aa".into(),
        key: ObjectKey::parse("d/big.bin").unwrap(),
        condition: base.as_ref().map_or(Condition::Absent, |b| Condition::Matches(b.etag.clone())),
        base,
        headers: ObjectHeaders::default(),
        attrs: attrs(),
        boot_id: "boot-1".into(),
        at: 1_700_000_000,
    }
}

fn attrs() -> FileAttrs {
    FileAttrs { mode: 0o100_644, uid: 1, gid: 2, mtime: crate::object::Timestamp { sec: 5, nsec: 0 } }
}

fn n(number: u32) -> PartNumber {
    PartNumber::new(number).unwrap()
}

const PART: u64 = 8 << 20;

fn sent(part: u32, sum: Checksum) -> Record {
    Record::Sent { part: n(part), sum, etag: ETag::new(&sum.md5.to_hex()), kept: false }
}

fn sum(len: u64, seed: u8) -> Checksum {
    Checksum { len, ..Checksum::of(&[seed]) }
}

fn started() -> Vec<Record> {
    vec![
        opened(None),
        Record::Initiating,
        Record::Initiated { upload_id: UploadId::new("u1"), plan: PartPlan::growing(PART), key: None },
    ]
}

#[test]
fn a_journal_must_begin_with_opened_of_a_known_format() {
    assert_eq!(FileState::replay(&[]), Err(ReplayError::NotOpened));
    assert_eq!(FileState::replay(&[Record::Initiating]), Err(ReplayError::NotOpened));
    let Record::Opened { journal_id, key, base, condition, headers, attrs, boot_id, at, .. } = opened(None) else {
        unreachable!()
    };
    let newer = Record::Opened { format: 2, journal_id, key, base, condition, headers, attrs, boot_id, at };
    assert_eq!(FileState::replay(&[newer]), Err(ReplayError::Format(2)));
}

#[test]
fn parts_of_an_earlier_process_or_writer_count_as_kept() {
    let mut records = started();
    records.extend([sent(1, sum(PART, 1)), sent(2, sum(PART, 2)), sent(3, sum(PART, 3))]);
    let mut state = FileState::replay(&records).unwrap();
    assert_eq!((state.parts_kept(), state.parts_sent), (0, 3), "one process did it all");
    state.count_from_here();
    assert_eq!((state.parts_kept(), state.parts_sent), (3, 0));
    // A writer begins anew: one part turns out equal, one does not, one is new.
    state.apply(&Record::Resizing { size: 0 });
    assert_eq!(state.parts_kept(), 0);
    let Record::Sent { part, sum: equal, etag, .. } = sent(1, sum(PART, 1)) else { unreachable!() };
    state.apply(&Record::Sent { part, sum: equal, etag, kept: true });
    state.apply(&sent(2, sum(PART, 9)));
    state.apply(&sent(4, sum(PART, 4)));
    assert_eq!((state.parts_kept(), state.parts_sent), (1, 2));
    state.apply(&Record::Closed { publication: 1, size: 4 * PART, attrs: attrs() });
    state.apply(&Record::Completed { publication: 1, etag: ETag::new("e"), size: 4 * PART });
    state.apply(&Record::Proved { publication: 1, proof: Proof::Proved });
    assert_eq!((state.parts_kept(), state.parts_sent), (1, 2), "still known when the parts are forgotten");
}

#[test]
fn an_initiate_without_an_answer_is_remembered_until_one_comes() {
    let mut state = FileState::replay(&[opened(None), Record::Initiating]).unwrap();
    assert!(state.initiating && state.upload.is_none());
    state.apply(&started()[2]);
    assert!(!state.initiating && state.upload.is_some());
}

#[test]
fn a_rewritten_part_is_no_longer_sent_but_what_bos_holds_is_remembered() {
    let mut records = started();
    records.push(sent(1, sum(PART, 1)));
    let mut state = FileState::replay(&records).unwrap();
    assert!(state.is_sent(n(1), PART));
    assert!(!state.is_sent(n(1), PART - 1), "another length is another part");
    state.apply(&Record::Dirtied { part: n(1) });
    assert!(!state.is_sent(n(1), PART));
    assert!(state.parts[&n(1)].held.as_ref().unwrap().equals(&sum(PART, 1)));
    assert!(!state.parts[&n(1)].held.as_ref().unwrap().equals(&sum(PART, 2)));
}

#[test]
fn truncation_unsends_every_part_it_touches_and_no_other() {
    let mut records = started();
    for part in 1..=3 {
        records.push(sent(part, sum(PART, part as u8)));
    }
    records.push(Record::Resizing { size: PART + 1 });
    records.push(Record::Resized);
    let state = FileState::replay(&records).unwrap();
    assert!(state.is_sent(n(1), PART));
    assert!(!state.is_sent(n(2), PART) && !state.is_sent(n(3), PART));
    assert_eq!(state.resizing, None);
}

#[test]
fn a_truncation_to_zero_keeps_all_parts_as_candidates() {
    let mut records = started();
    records.push(sent(1, sum(PART, 1)));
    records.push(sent(2, sum(PART, 2)));
    records.push(Record::Resizing { size: 0 });
    let state = FileState::replay(&records).unwrap();
    assert_eq!(state.parts.values().filter(|p| p.dirty && p.held.is_some()).count(), 2);
    assert_eq!(state.resizing, Some(0), "without `resized` the cut is done again");
}

#[test]
fn two_different_unanswered_bodies_make_a_part_contested() {
    let mut records = started();
    records.push(Record::Sending { part: n(1), sum: sum(PART, 1) });
    records.push(Record::Sending { part: n(1), sum: sum(PART, 1) });
    assert!(!FileState::replay(&records).unwrap().parts[&n(1)].contested, "the same body again");
    records.push(Record::Sending { part: n(1), sum: sum(PART, 2) });
    records.push(sent(1, sum(PART, 2)));
    let state = FileState::replay(&records).unwrap();
    assert!(state.parts[&n(1)].contested, "the first body may still arrive");
}

#[test]
fn a_proved_publication_becomes_the_base_and_keeps_later_changes() {
    let mut records = started();
    records.push(sent(1, sum(PART, 1)));
    records.push(sent(2, sum(100, 2)));
    records.push(Record::Closed { publication: 1, size: PART + 100, attrs: attrs() });
    let mark = FileState::replay(&records).unwrap().mark(1);
    records.push(Record::Completing {
        publication: 1,
        mark: mark.clone(),
        condition: Condition::Absent,
        size: PART + 100,
        part_count: 2,
    });
    records.push(Record::Dirtied { part: n(2) });
    records.push(Record::Resizing { size: PART + 50 });
    records.push(Record::Resized);
    let etag = ETag::new("-e");
    records.push(Record::Completed { publication: 1, etag: etag.clone(), size: PART + 100 });
    let mut state = FileState::replay(&records).unwrap();
    assert!(matches!(&state.stage, Stage::Completed { put: None, .. }));
    state.apply(&Record::Proved { publication: 1, proof: Proof::Proved });
    assert_eq!(state.base, Some(BaseObject::own(etag.clone(), PART + 100)));
    assert_eq!(state.condition, Condition::Matches(etag));
    assert_eq!(state.base_end, PART + 50, "what was cut after the freeze does not come back");
    assert!(state.rebasing && state.upload.is_none() && state.parts.is_empty());
    assert_eq!(state.changed_since_freeze.iter().copied().collect::<Vec<_>>(), [n(2)]);
    state.apply(&Record::Rebased { blocks: None });
    assert!(!state.rebasing && state.changed_since_freeze.is_empty());
    assert_eq!(mark, "00000000000000aa.1");
}

#[test]
fn changes_between_the_proof_and_the_rebase_are_kept_apart() {
    let mut records = started();
    records.push(sent(1, sum(PART, 1)));
    records.push(Record::Closed { publication: 1, size: PART, attrs: attrs() });
    records.push(Record::Completed { publication: 1, etag: ETag::new("e"), size: PART });
    records.push(Record::Proved { publication: 1, proof: Proof::Proved });
    records.push(Record::Dirtied { part: n(1) });
    records.push(Record::Resizing { size: 5 });
    let state = FileState::replay(&records).unwrap();
    assert!(state.rebasing && state.changed_since_freeze.contains(&n(1)));
    assert_eq!(state.base_end, 5);
}

#[test]
fn a_disproved_object_is_published_again_over_itself() {
    let mut records = started();
    records.push(sent(1, sum(PART, 1)));
    records.push(Record::Closed { publication: 1, size: PART, attrs: attrs() });
    let mark = "00000000000000aa.1".to_string();
    let condition = Condition::Absent;
    records.push(Record::Completing { publication: 1, mark, condition, size: PART, part_count: 1 });
    records.push(Record::Completed { publication: 1, etag: ETag::new("bad"), size: PART });
    records.push(Record::Disproved { publication: 1, message: "crc".into() });
    let state = FileState::replay(&records).unwrap();
    assert!(matches!(state.stage, Stage::Closed(f) if f.size == PART));
    assert_eq!(state.condition, Condition::Matches(ETag::new("bad")));
    assert!(state.parts.is_empty() && state.disproofs == 1);
}

#[test]
fn attributes_set_after_close_ride_on_a_publication_not_yet_sent() {
    let later = FileAttrs { mode: 0o100_600, ..attrs() };
    let mut records = started();
    records.push(Record::Closed { publication: 1, size: 5, attrs: attrs() });
    records.push(Record::Attrs { attrs: later });
    let state = FileState::replay(&records).unwrap();
    assert_eq!(state.stage.frozen().unwrap().attrs, later);
}

#[test]
fn parts_that_were_changed_after_the_freeze_still_count_for_it() {
    let mut records = started();
    records.push(sent(1, sum(PART, 1)));
    records.push(Record::Closed { publication: 1, size: 2 * PART, attrs: attrs() });
    records.push(Record::Dirtied { part: n(1) });
    let mut state = FileState::replay(&records).unwrap();
    assert!(!state.is_sent(n(1), PART) && state.is_sent_for_publication(n(1), PART));
    assert!(!state.is_sent_for_publication(n(2), PART), "never sent");
    assert!(!state.frozen_lost);
    let mut lost = state.clone();
    lost.apply(&Record::PartLost { part: n(1) });
    assert!(lost.frozen_lost && !lost.is_sent_for_publication(n(1), PART));
    let mut ended = state.clone();
    ended.apply(&Record::UploadEnded);
    assert!(ended.frozen_lost);
    ended.apply(&Record::Superseded { publication: 1 });
    assert!(!ended.frozen_lost);
    state.apply(&Record::Closed { publication: 2, size: 2 * PART, attrs: attrs() });
    assert!(!state.is_sent_for_publication(n(1), PART), "the next freeze has the newer bytes");
}

#[test]
fn a_part_that_was_dirty_at_the_freeze_does_not_count_for_it() {
    let mut records = started();
    records.push(sent(1, sum(PART, 1)));
    records.push(Record::Dirtied { part: n(1) });
    records.push(Record::Closed { publication: 1, size: 2 * PART, attrs: attrs() });
    records.push(Record::Dirtied { part: n(1) });
    let state = FileState::replay(&records).unwrap();
    assert!(!state.is_sent_for_publication(n(1), PART));
}
