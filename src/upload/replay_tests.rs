//! Tests of the fold.

use super::*;
use crate::bos::client::ObjectHeaders;
use crate::journal::record::SyncedLayer;
use crate::object::{ByteRange, Checksum, ETag, FileAttrs, ObjectKey, PartNumber, UploadId};
use crate::write::part_plan::PartPlan;

pub(crate) fn opened(base: Option<BaseObject>) -> Record {
    Record::Opened {
        format: crate::journal::record::FORMAT,
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

fn closed(publication: u32, size: u64) -> Record {
    Record::Closed { publication, size, attrs: attrs(), layer: 1, durable: false, synced: false }
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
    for format in [1, FORMAT + 1] {
        let (journal_id, key, base, condition) = (journal_id.clone(), key.clone(), base.clone(), condition.clone());
        let (headers, boot_id) = (headers.clone(), boot_id.clone());
        let other = Record::Opened { format, journal_id, key, base, condition, headers, attrs, boot_id, at };
        let refused = FileState::replay(&[other]).unwrap_err();
        assert_eq!(refused, ReplayError::Format(format));
        assert!(refused.to_string().contains("finish the file with the bosfs that wrote it"), "{refused}");
    }
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
    state.apply(&Record::Resizing { layer: 1, size: 0 });
    assert_eq!(state.parts_kept(), 0);
    let Record::Sent { part, sum: equal, etag, .. } = sent(1, sum(PART, 1)) else { unreachable!() };
    state.apply(&Record::Sent { part, sum: equal, etag, kept: true });
    state.apply(&sent(2, sum(PART, 9)));
    state.apply(&sent(4, sum(PART, 4)));
    assert_eq!((state.parts_kept(), state.parts_sent), (1, 2));
    state.apply(&closed(1, 4 * PART));
    state.apply(&Record::Completed { publication: 1, etag: ETag::new("e"), size: 4 * PART });
    state.apply(&Record::Proved { publication: 1, proof: Proof::Proved });
    assert_eq!((state.parts_kept(), state.parts_sent), (1, 2), "still known when the parts are forgotten");
}

#[test]
fn an_initiate_without_an_answer_is_remembered_until_one_comes() {
    let mut state = FileState::replay(&[opened(None), Record::Initiating]).unwrap();
    assert!(state.initiating == 1 && state.upload.is_none());
    state.apply(&started()[2]);
    assert!(state.initiating == 0 && state.upload.is_some());
    state.apply(&Record::Initiating);
    state.apply(&Record::Initiating);
    state.apply(&started()[2]);
    assert_eq!(state.initiating, 1, "an upload that nobody knows may be left of the first one");
    let again = FileState::replay(&state.checkpoint().unwrap()).unwrap();
    assert_eq!(again.initiating, 1, "also behind a checkpoint");
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
    records.push(Record::Resizing { layer: 1, size: PART + 1 });
    records.push(Record::Resized { layer: 1 });
    let state = FileState::replay(&records).unwrap();
    assert!(state.is_sent(n(1), PART));
    assert!(!state.is_sent(n(2), PART) && !state.is_sent(n(3), PART));
    assert_eq!(state.layers[0].resizing, None);
}

#[test]
fn a_truncation_to_zero_keeps_all_parts_as_candidates() {
    let mut records = started();
    records.push(sent(1, sum(PART, 1)));
    records.push(sent(2, sum(PART, 2)));
    records.push(Record::Resizing { layer: 1, size: 0 });
    let state = FileState::replay(&records).unwrap();
    assert_eq!(state.parts.values().filter(|p| p.dirty && p.held.is_some()).count(), 2);
    assert_eq!(state.layers[0].resizing, Some(0), "without `resized` the cut is done again");
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

fn completing(publication: u32, size: u64) -> Record {
    let mark = format!("00000000000000aa.{publication}");
    Record::Completing { publication, mark, condition: Condition::Absent, size, part_count: 2 }
}

#[test]
fn a_proved_publication_becomes_the_base_of_what_was_written_since() {
    let mut records = started();
    records.extend([sent(1, sum(PART, 1)), sent(2, sum(100, 2)), closed(1, PART + 100), completing(1, PART + 100)]);
    assert_eq!(FileState::replay(&records).unwrap().mark(1), "00000000000000aa.1");
    records.push(Record::Layer { layer: 2, base_end: PART + 100 });
    records.push(Record::Resizing { layer: 2, size: PART + 50 });
    records.push(Record::Resized { layer: 2 });
    let etag = ETag::new("-e");
    records.push(Record::Completed { publication: 1, etag: etag.clone(), size: PART + 100 });
    let mut state = FileState::replay(&records).unwrap();
    assert!(matches!(&state.stage, Stage::Completed { put: None, .. }));
    assert_eq!((state.depth(), state.open_layer().map(|layer| layer.id)), (1, Some(2)));
    assert!(state.is_sent(n(2), 100), "what is cut now belongs to another layer");
    state.apply(&Record::Proved { publication: 1, proof: Proof::Proved });
    assert_eq!(state.base, Some(BaseObject::own(etag.clone(), PART + 100)));
    assert_eq!(state.condition, Condition::Matches(etag));
    assert_eq!(state.base_end(), PART + 50, "what was cut after the freeze does not come back");
    assert!(state.upload.is_none() && state.parts.is_empty() && state.stage == Stage::Open);
    assert_eq!(state.layers.iter().map(|layer| layer.id).collect::<Vec<_>>(), [2]);
}

#[test]
fn what_is_closed_while_something_is_on_its_way_follows_it() {
    let mut records = started();
    records.extend([closed(1, 10), Record::Layer { layer: 2, base_end: 10 }]);
    let mut state = FileState::replay(&records).unwrap();
    state.apply(&Record::Closed { publication: 2, size: 20, attrs: attrs(), layer: 2, durable: false, synced: false });
    assert_eq!((state.stage.frozen().unwrap().size, state.next.as_ref().unwrap().size), (10, 20));
    assert!(state.open_layer().is_none(), "the next write needs a layer of its own");
    state.apply(&Record::Layer { layer: 3, base_end: 20 });
    state.apply(&Record::Closed { publication: 2, size: 30, attrs: attrs(), layer: 3, durable: false, synced: false });
    let next = state.next.clone().unwrap();
    assert_eq!((next.publication, next.size, next.close), (2, 30, 3), "a later close takes its place");
    state.apply(&Record::Merged { layer: 3 });
    assert_eq!((state.layers.len(), state.next.as_ref().unwrap().layer), (2, 2));
    state.apply(&Record::Completed { publication: 1, etag: ETag::new("e"), size: 10 });
    state.apply(&Record::Proved { publication: 1, proof: Proof::Proved });
    assert!(matches!(&state.stage, Stage::Closed(frozen) if frozen.size == 30 && frozen.publication == 2));
    assert_eq!((state.next.clone(), state.depth()), (None, 1));
}

#[test]
fn a_publication_that_is_taken_back_leaves_its_layers_open() {
    let mut records = started();
    records.extend([closed(1, 10), Record::Layer { layer: 2, base_end: 10 }]);
    records.push(Record::Closed { publication: 2, size: 20, attrs: attrs(), layer: 2, durable: false, synced: false });
    records.push(Record::Superseded { publication: 1, lost: false });
    let mut state = FileState::replay(&records).unwrap();
    assert_eq!((state.stage.clone(), state.next.clone(), state.depth()), (Stage::Open, None, 2));
    state.apply(&Record::Closed { publication: 3, size: 20, attrs: attrs(), layer: 2, durable: false, synced: false });
    assert_eq!((state.depth(), state.layers.len()), (2, 2), "all of them belong to what is closed next");
}

#[test]
fn a_sync_vouches_for_what_was_closed_before_it_began() {
    let mut records = started();
    records.push(closed(1, 10));
    let mut state = FileState::replay(&records).unwrap();
    let began_with = state.closes;
    state.apply(&Record::Layer { layer: 2, base_end: 10 });
    state.apply(&Record::Closed { publication: 2, size: 20, attrs: attrs(), layer: 2, durable: false, synced: false });
    state.apply(&Record::Spooled { layer: 1, size: 10, blocks: vec![ByteRange::new(0, 1)] });
    assert!(!state.layers[0].synced_blocks.contains(0), "not before the line that ends it");
    let layers = vec![SyncedLayer { layer: 1, size: 10, blocks: vec![ByteRange::new(3, 4)] }];
    state.apply(&Record::Synced { size: 10, closes: began_with, sync: 0, layers });
    assert!(state.layers[0].synced_blocks.contains(0) && state.layers[1].synced_blocks.is_empty());
    assert!(state.layers[0].synced_blocks.contains(3) && state.layers[0].synced_size == Some(10));
    assert!(state.stage.frozen().unwrap().close <= state.vouched_closes);
    assert!(state.next.as_ref().unwrap().close > state.vouched_closes);
}

#[test]
fn a_durable_state_is_kept_until_a_sync_vouches_for_the_one_that_took_its_place() {
    let mut records = started();
    records.push(closed(1, 10));
    let mut state = FileState::replay(&records).unwrap();
    let close = |state: &mut FileState, layer: u32, size: u64| {
        state.apply(&Record::Layer { layer, base_end: 10 });
        state.apply(&Record::Closed { publication: 2, size, attrs: attrs(), layer, durable: true, synced: false });
    };
    let synced = |closes: u32| Record::Synced { size: 0, closes, sync: 0, layers: Vec::new() };
    close(&mut state, 2, 20);
    state.apply(&synced(2));
    close(&mut state, 3, 30);
    close(&mut state, 4, 40);
    assert_eq!(state.behind.iter().map(|earlier| earlier.size).collect::<Vec<_>>(), [20, 30]);
    let mut lost = state.clone();
    lost.apply(&Record::Superseded { publication: 2, lost: true });
    assert_eq!((lost.next.unwrap().size, lost.behind.len(), lost.stage.frozen().unwrap().size), (20, 0, 10));
    let mut proved = state.clone();
    proved.apply(&Record::Completed { publication: 1, etag: ETag::new("e"), size: 10 });
    proved.apply(&Record::Proved { publication: 1, proof: Proof::Proved });
    proved.apply(&Record::Superseded { publication: 2, lost: true });
    assert!(
        matches!(&proved.stage, Stage::Closed(frozen) if frozen.size == 20),
        "also where the later one is on its way"
    );
    state.apply(&synced(3));
    assert_eq!(state.behind.iter().map(|earlier| earlier.size).collect::<Vec<_>>(), [30], "the newest that is certain");
    state.apply(&synced(4));
    assert!(state.behind.is_empty());
    assert_eq!(FileState::replay(&state.checkpoint().unwrap()).unwrap(), state);
}

#[test]
fn a_disproved_object_is_published_again_over_itself() {
    let mut records = started();
    records.push(sent(1, sum(PART, 1)));
    records.push(closed(1, PART));
    let mark = "00000000000000aa.1".to_string();
    let condition = Condition::Absent;
    records.push(Record::Completing { publication: 1, mark, condition, size: PART, part_count: 1 });
    records.push(Record::Completed { publication: 1, etag: ETag::new("bad"), size: PART });
    records.push(Record::Disproved { publication: 1, message: "crc".into() });
    let state = FileState::replay(&records).unwrap();
    assert!(matches!(&state.stage, Stage::Closed(f) if f.size == PART));
    assert_eq!(state.condition, Condition::Matches(ETag::new("bad")));
    assert!(state.parts.is_empty() && state.disproofs == 1);
}

#[test]
fn attributes_set_after_close_ride_on_a_publication_not_yet_sent() {
    let later = FileAttrs { mode: 0o100_600, ..attrs() };
    let mut records = started();
    records.push(closed(1, 5));
    records.push(Record::Attrs { attrs: later });
    let state = FileState::replay(&records).unwrap();
    assert_eq!(state.stage.frozen().unwrap().attrs, later);
}

#[test]
fn a_partly_written_block_is_after_a_restart_what_it_was_when_the_last_sync_began() {
    let partial = |block: u64, at: u64, adds: bool| {
        let ranges = vec![ByteRange::at(block * 4096 + at, 4)];
        Record::Partial { layer: 1, block, ranges, adds }
    };
    let whole = |block| Record::Partial { layer: 1, block, ranges: Vec::new(), adds: false };
    let synced = |sync| {
        let layers = vec![SyncedLayer { layer: 1, size: 1 << 20, blocks: Vec::new() }];
        Record::Synced { size: 1 << 20, closes: 0, sync, layers }
    };
    let base = BaseObject::own(ETag::new("e"), 1 << 20);
    let mut state = FileState::replay(&[opened(Some(base)), partial(0, 0, false), partial(7, 0, false)]).unwrap();
    let certain = |state: &FileState| state.layers[0].synced_partials();
    assert!(certain(&state).is_empty(), "nothing was synced");
    state.apply(&Record::Syncing { sync: 1 });
    state.apply(&partial(0, 100, true));
    state.apply(&whole(7));
    // A second sync begins before the first one has ended.
    state.apply(&Record::Syncing { sync: 2 });
    state.apply(&partial(0, 200, true));
    state.apply(&partial(9, 0, false));
    state.apply(&synced(1));
    let first = certain(&state);
    assert_eq!((first[&0].len(), first.contains_key(&7), first.contains_key(&9)), (1, true, false));
    for again in [state.clone(), FileState::replay(&state.checkpoint().unwrap()).unwrap()] {
        assert_eq!(certain(&again), first, "also behind a checkpoint");
        let mut later = again;
        later.apply(&synced(2));
        let second = certain(&later);
        assert_eq!((second[&0].len(), second.contains_key(&7), second.contains_key(&9)), (2, false, false));
        later.apply(&Record::Resizing { layer: 1, size: 150 });
        assert_eq!(certain(&later)[&0], [ByteRange::at(0, 4), ByteRange::at(100, 4)]);
        assert_eq!(later.layers[0].partials[&0].len(), 2, "what was cut is not there");
        later.apply(&Record::Resizing { layer: 1, size: 0 });
        assert!(certain(&later).is_empty());
    }
}
