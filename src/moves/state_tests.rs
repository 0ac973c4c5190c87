use super::*;
use crate::bos::client::ObjectMeta;
use crate::journal::Line as _;

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn etag(text: &str) -> ETag {
    ETag::new(text)
}

fn base(tag: &str) -> BaseObject {
    BaseObject::own(etag(tag), 3)
}

fn head(tag: &str, size: u64) -> ObjectMeta {
    let headers = ObjectHeaders::default();
    let etag = etag(tag);
    ObjectMeta { size, etag, last_modified: 7, crc32c: None, crc32: None, crc64: None, appendable: false, headers }
}

fn object() -> MoveRecord {
    MoveRecord::Object {
        format: 1,
        from: key("a"),
        source: base("s"),
        to: key("b"),
        condition: Condition::Absent,
        replace: None,
        at: 0,
    }
}

fn directory() -> MoveRecord {
    MoveRecord::Directory { format: 1, from: "old/".into(), to: "new/".into(), leave_out: vec![key("old/open")], at: 0 }
}

fn listed(rest: &str, tag: &str) -> Listed {
    Listed { rest: rest.into(), etag: etag(tag), size: 3, last_modified: 7 }
}

fn copied(to: &str, from: &str, tag: &str) -> MoveRecord {
    MoveRecord::Copied {
        to: key(to),
        from_etag: etag(from),
        from_last_modified: Some(7),
        etag: etag(tag),
        stored: None,
    }
}

fn replay(records: &[MoveRecord]) -> MoveState {
    // As it comes back from the disk.
    let text: Vec<String> = records.iter().map(|record| serde_json::to_string(record).unwrap()).collect();
    let records: Vec<MoveRecord> = text.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    MoveState::replay(&records).unwrap()
}

#[test]
fn each_line_of_a_directory_leads_back_until_all_is_copied_and_forward_from_there() {
    let lines = [
        directory(),
        MoveRecord::Planned { entries: vec![listed("x", "1"), listed("", "0")] },
        copied("new/x", "1", "1"),
        copied("new/", "0", "0"),
        MoveRecord::MarkerMade,
        MoveRecord::AllCopied,
        MoveRecord::Done,
    ];
    let expected = [
        Recovery::Back,
        Recovery::Back,
        Recovery::Back,
        Recovery::Back,
        Recovery::Back,
        Recovery::Forward,
        Recovery::Drop,
    ];
    for (count, expected) in (1..).zip(expected) {
        assert_eq!(replay(&lines[..count]).recovery(), expected, "after {count} lines");
    }
    let mut back = lines[..3].to_vec();
    back.push(MoveRecord::RollingBack { message: "denied".into() });
    assert_eq!(replay(&back).recovery(), Recovery::Back);
}

#[test]
fn single_objects_and_exchanges_go_forward_from_every_line() {
    assert_eq!(replay(&[object()]).recovery(), Recovery::Forward);
    assert_eq!(replay(&[object(), copied("b", "s", "s")]).recovery(), Recovery::Forward);
    assert_eq!(replay(&[object(), copied("b", "s", "s"), MoveRecord::Done]).recovery(), Recovery::Drop);
    assert!(MoveState::replay(&[MoveRecord::AllCopied]).is_err());
    assert!(MoveState::replay(&[]).is_err());
}

#[test]
fn every_initiate_without_an_answer_may_have_left_an_upload() {
    let by = super::super::record::PartsBy { part_bytes: 1 << 30, sent: false };
    let initiating = MoveRecord::Initiating { to: key("b") };
    let initiated = MoveRecord::Initiated { to: key("b"), upload_id: UploadId::new("u"), by };
    let state = replay(&[object(), initiating.clone()]);
    assert_eq!((state.initiating.get(&key("b")), state.uploads.len()), (Some(&1), 0));
    let state = replay(&[object(), initiating.clone(), initiated.clone()]);
    assert_eq!((state.initiating.len(), state.uploads[&key("b")].by), (0, by), "answered");
    let state = replay(&[object(), initiating.clone(), initiating, initiated]);
    assert_eq!((state.initiating.get(&key("b")), state.uploads.len()), (Some(&1), 1), "the first one never was");
}

#[test]
fn what_recovery_hides_is_what_is_about_to_go() {
    let begun = [directory(), MoveRecord::Planned { entries: vec![listed("x", "1"), listed("sub/y", "2")] }];
    let state = replay(&begun);
    for hidden in ["new", "new/x", "new/sub/y"] {
        assert!(state.hides(hidden), "{hidden}: half of a copy");
    }
    for shown in ["old", "old/x", "new/other", "newer", "ne"] {
        assert!(!state.hides(shown), "{shown}");
    }
    let mut forward = begun.to_vec();
    forward.push(MoveRecord::AllCopied);
    let state = replay(&forward);
    assert!(state.hides("old") && state.hides("old/x") && !state.hides("new/x") && !state.hides("old/open"));
    let state = replay(&[object()]);
    assert!(!state.hides("a"), "nothing is copied yet");
    let state = replay(&[object(), copied("b", "s", "s")]);
    assert!(state.hides("a") && !state.hides("b"));
}

#[test]
fn a_directory_that_was_there_before_is_not_hidden_but_what_is_copied_into_it_is() {
    assert!(!replay(&[directory()]).hides("new"), "nothing is there yet");
    let marker = MoveRecord::TargetMarker { etag: etag("m"), last_modified: 5, headers: None };
    let entries = vec![listed("sub/y", "2"), listed("x", "1")];
    let mut lines = vec![directory(), marker, MoveRecord::Planned { entries }];
    let state = replay(&lines);
    assert!(!state.hides("new") && !state.hides("new/su") && !state.hides("new/y"));
    for hidden in ["new/x", "new/sub", "new/sub/y"] {
        assert!(state.hides(hidden), "{hidden}: half of a copy");
    }
    lines.push(MoveRecord::AllCopied);
    let state = replay(&lines);
    assert!(state.hides("old") && !state.hides("new") && !state.hides("new/sub"));
}

fn deletions(keys: &[&str]) -> MoveState {
    let mut lines = vec![MoveRecord::Deletions { format: 1, boot_id: "boot".into(), at: 0 }];
    lines.extend(keys.iter().map(|k| MoveRecord::Delete { key: key(k), etag: etag("e"), stored: None }));
    replay(&lines)
}

#[test]
fn deletions_touch_their_names_and_what_is_above() {
    let state = deletions(&["d/e/f", "d/marker/", "z"]);
    for touched in ["z", "d/e/f", "d/", "d/e/", "d/marker", "d/marker/"] {
        assert!(state.touches(touched), "{touched}");
    }
    for other in ["d/e/g", "e/", "d/f/", "y", "d", "zz"] {
        assert!(!state.touches(other), "{other}");
    }
    assert!(state.hides("d/marker") && state.hides("z") && !state.hides("d"));
    assert_eq!(deletions(&[]).recovery(), Recovery::Drop);
    assert_eq!(state.recovery(), Recovery::Forward);
}

#[test]
fn a_directory_touches_both_trees_and_what_they_are_in() {
    let state = replay(&[directory()]);
    for touched in ["old", "old/", "old/x", "old/x/", "new", "new/y/z"] {
        assert!(state.touches(touched), "{touched}");
    }
    for other in ["older", "older/", "ol/", "x"] {
        assert!(!state.touches(other), "{other}");
    }
}

fn object_at(key: &str, tag: &str) -> ListedObject {
    ListedObject { key: key.into(), size: 3, etag: etag(tag), last_modified: 7, storage_class: None }
}

#[test]
fn a_second_listing_finds_what_is_new_changed_and_gone() {
    let state = replay(&[
        directory(),
        MoveRecord::Planned {
            entries: vec![listed("same", "1"), listed("changed", "2"), listed("gone", "3"), listed("missed", "4")],
        },
        copied("new/same", "1", "1"),
        copied("new/changed", "2", "2"),
        copied("new/gone", "3", "3"),
    ]);
    let now = [
        object_at("old/changed", "2b"),
        object_at("old/missed", "4"),
        object_at("old/new", "5"),
        object_at("old/open", "6"),
        object_at("old/same", "1"),
    ];
    let Kind::Directory { from, to, leave_out } = &state.kind else { unreachable!() };
    let found = difference(&state.entries, from, to, leave_out, &now);
    let copy: Vec<_> = found.copy.iter().map(|entry| entry.rest.as_str()).collect();
    assert_eq!(copy, ["changed", "missed", "new"]);
    assert_eq!(found.gone, ["gone"]);
    assert_eq!((found.impossible.len(), &found.too_long), (0, &None));
}

#[test]
fn an_object_that_is_listed_again_counts_as_copied_only_in_its_new_state() {
    let mut lines = vec![
        directory(),
        MoveRecord::Planned { entries: vec![listed("x", "1")] },
        copied("new/x", "1", "1"),
        MoveRecord::Planned { entries: vec![listed("x", "2")] },
    ];
    assert_eq!(replay(&lines).entries["x"].copied, Some((etag("1"), false)));
    // An answer for the earlier state that came late.
    lines.push(copied("new/x", "1", "1"));
    assert_eq!(replay(&lines).entries["x"].copied, Some((etag("1"), false)));
    lines.push(copied("new/x", "2", "2"));
    assert_eq!(replay(&lines).entries["x"].copied, Some((etag("2"), true)));
    lines.push(MoveRecord::Dropped { to: key("new/x") });
    assert!(replay(&lines).entries.is_empty());
}

#[test]
fn keys_that_cannot_move_are_found_before_anything_is_copied() {
    let long = format!("old/{}/{}", "d".repeat(500), "f".repeat(500));
    let none = (BTreeMap::new(), HashSet::new());
    let keys = [object_at("old/a//b", "1"), object_at(&long, "2")];
    let found = difference(&none.0, "old/", &format!("{}/", "n".repeat(21)), &none.1, &keys);
    assert_eq!(found.impossible, ["old/a//b"]);
    assert_eq!(found.too_long, None, "1023 bytes");
    let found = difference(&none.0, "old/", &format!("{}/", "n".repeat(22)), &none.1, &keys);
    assert!(found.too_long.is_some(), "1024 bytes");
}

#[test]
fn an_unanswered_copy_is_settled_by_what_is_at_the_target() {
    let source = base("s");
    let judge = |head: Option<&ObjectMeta>, condition: &Condition, sent| {
        judge_copy(head, &source, None, "id.1", condition, sent)
    };
    let ours = CopyFound::Ours { etag: etag("s") };
    assert_eq!(judge(None, &Condition::Absent, true), CopyFound::AsExpected);
    assert_eq!(judge(Some(&head("s", 3)), &Condition::Absent, true), ours);
    assert!(matches!(judge(Some(&head("s", 3)), &Condition::Absent, false), CopyFound::Other { .. }), "not ours");
    assert!(matches!(judge(Some(&head("s", 4)), &Condition::Absent, true), CopyFound::Other { .. }), "another size");
    let over = Condition::Matches(etag("t"));
    assert_eq!(judge(Some(&head("t", 9)), &over, true), CopyFound::AsExpected);
    assert_eq!(judge(Some(&head("s", 3)), &over, true), ours);
    assert!(matches!(judge(None, &over, true), CopyFound::Other { .. }));
    // Equal bytes that were there before have other metadata: copied again.
    assert_eq!(judge(Some(&head("s", 3)), &Condition::Matches(etag("s")), true), CopyFound::AsExpected);
    let mut marked = head("composed", 3);
    marked.headers.metadata.insert(MARK.into(), "id.1".into());
    assert_eq!(judge(Some(&marked), &Condition::Absent, true), CopyFound::Ours { etag: etag("composed") });
}

#[test]
fn a_composed_source_is_recognised_by_the_checksum_of_the_whole() {
    let source = base("-s");
    let with_crc = |tag: &str, crc| ObjectMeta { crc32c: Some(crc), ..head(tag, 3) };
    let (copy, checks) = (with_crc("c", 5), with_crc("-s", 5));
    assert!(is_copy(&copy, &source, Some(&checks), "id.1"));
    assert!(!is_copy(&copy, &source, Some(&with_crc("-s", 6)), "id.1"));
    assert!(!is_copy(&copy, &source, Some(&with_crc("-other", 5)), "id.1"), "the source was replaced");
    assert!(!is_copy(&copy, &source, None, "id.1"));
}

#[test]
fn a_first_line_that_moves_a_directory_into_itself_is_damage() {
    for (from, to) in [("a/", "a/b/"), ("a/b/", "a/"), ("a/", "a/"), ("a", "b/"), ("a/", "b")] {
        let line = MoveRecord::Directory { format: 1, from: from.into(), to: to.into(), leave_out: Vec::new(), at: 0 };
        assert!(line.check().is_err(), "{from} {to}");
    }
    assert!(directory().check().is_ok());
}
