//! Rows "closed", "completing" and "putting": the writer had closed the file; the mount alone finishes it.

use crate::support::{Action, Call, HoldAt, When, World};
use crate::{KEY, PART, SIZE, Stopped, WAIT, held_fault, wait_no_journal};

const BEFORE: HoldAt = HoldAt::BeforeForward;
const ACTED: HoldAt = HoldAt::BeforeAnswer;

fn complete() -> When {
    When::call(Call::Complete).key(KEY)
}

/// A closed file of which parts are missing in BOS is published by the next mount, which sends only these.
#[test]
fn closed_with_parts_missing_sends_only_those() {
    let last = When::call(Call::UploadPart).key(KEY).part(3).part(4);
    let mut s = Stopped::at(World::new(), SIZE, last, HoldAt::InsideBody { after_bytes: 500 });
    let held = {
        let upload = &s.world.bucket.uploads(KEY).unwrap()[0];
        s.world.bucket.parts(KEY, &upload.upload_id).unwrap()
    };
    let before = s.world.proxy.take_counts();
    assert!(before.part(KEY, 4).accepted == 0);
    s.recover();
    let counts = s.world.proxy.counts();
    assert!(counts.requests(Call::ListParts) >= 1, "{}", counts.log_text());
    assert_eq!(counts.requests(Call::Initiate), 0, "{}", counts.log_text());
    for part in held {
        assert_eq!(counts.part(KEY, part.number).tries, 0, "part {} again\n{}", part.number, counts.log_text());
    }
    assert_eq!(counts.requests(Call::Complete), 1);
}

#[test]
fn parts_that_bos_took_without_an_answer_are_not_sent_again() {
    let third = When::call(Call::UploadPart).key(KEY).part(3);
    let mut s = Stopped::at(World::new(), SIZE, third, ACTED);
    s.world.proxy.take_counts();
    s.recover();
    let counts = s.world.proxy.counts();
    assert_eq!(counts.part(KEY, 3).tries, 0, "{}", counts.log_text());
}

#[test]
fn closed_and_not_yet_completed_is_completed() {
    let mut s = Stopped::at(World::new(), SIZE, complete(), BEFORE);
    s.world.proxy.take_counts();
    s.recover();
    let counts = s.world.proxy.counts();
    assert_eq!((counts.requests(Call::UploadPart), counts.requests(Call::Complete)), (0, 1), "{}", counts.log_text());
}

/// A complete that was done but not answered before the kill is recognised by the object's mark: nothing is sent, and
/// nothing is completed twice.
#[test]
fn completing_with_our_mark_on_the_object_is_done() {
    let mut s = Stopped::at(World::new(), SIZE, complete(), ACTED);
    let etag = s.world.bucket.head(KEY).unwrap().expect("completed").etag;
    s.world.proxy.take_counts();
    s.recover();
    let counts = s.world.proxy.counts();
    assert_eq!(counts.bytes_sent(), 0, "{}", counts.log_text());
    assert_eq!(counts.of(Call::Complete).accepted, 0, "completed twice");
    assert_eq!(s.world.bucket.head(KEY).unwrap().unwrap().etag, etag);
}

/// The spool is kept until the object is proved; after a kill between complete and proof the next mount proves it
/// without sending a byte.
#[test]
fn completed_with_the_proof_missing_is_proved() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let complete = held_fault(&world, complete(), ACTED, Action::no_crc());
    assert!(crate::cp(&source, mount.path(KEY), WAIT).status.success());
    assert!(complete.wait_hit(WAIT));
    let proof = world.proxy.hold(When::call(Call::HeadObject).key(KEY), ACTED);
    complete.release();
    assert!(proof.wait_hit(WAIT));
    mount.kill();
    world.proxy.clear_rules();
    world.proxy.take_counts();
    assert!(!world.journals().is_empty(), "the spool went before the proof");
    let mut s = Stopped { world, mount, source };
    s.recover();
    let counts = s.world.proxy.counts();
    assert!(counts.requests(Call::HeadObject) >= 1, "{}", counts.log_text());
    assert_eq!(counts.bytes_sent(), 0, "{}", counts.log_text());
}

/// An object that does not match when the next mount proves it is sent again from the spool.
#[test]
fn a_mismatch_found_by_the_proof_is_sent_again() {
    let mut s = Stopped::at(World::new(), SIZE, complete(), ACTED);
    // What HEAD says of the object's bytes is wrong until the first repair: its checksums, and its ETag over the parts.
    let wrong = match Action::wrong_crc() {
        Action::EditAnswer { mut set, remove } => {
            set.push(("ETag".into(), format!("\"-{}\"", "0".repeat(32))));
            Action::EditAnswer { set, remove }
        }
        other => other,
    };
    let wrong = s.world.proxy.fault(When::call(Call::HeadObject).key(KEY).times(2), wrong);
    s.recover();
    assert!(wrong.hits() > 0);
    assert!(s.world.proxy.counts().bytes_sent() > 0);
}

/// If the upload is gone and the key is empty, the next mount sends all in a new upload, on the condition that the key
/// is still empty.
#[test]
fn closed_with_the_upload_gone_and_no_object_begins_a_new_upload() {
    let mut s = Stopped::at(World::new(), SIZE, complete(), BEFORE);
    let upload = s.world.bucket.uploads(KEY).unwrap().remove(0);
    s.world.bucket.abort(KEY, &upload.upload_id).unwrap();
    s.world.proxy.take_counts();
    s.recover();
    let counts = s.world.proxy.counts();
    assert_eq!(counts.requests(Call::Initiate), 1, "{}", counts.log_text());
    assert_eq!(counts.bytes_sent(), SIZE);
    let condition = counts.log.iter().rfind(|l| l.asked.call == Call::Complete).unwrap();
    assert_eq!(condition.asked.if_none_match.as_deref(), Some("*"), "the condition got lost");
}

#[test]
fn closed_with_the_upload_gone_and_the_base_in_place_begins_a_new_upload_on_it() {
    let world = World::new();
    let base = world.bucket.put(KEY, b"the base").unwrap();
    let mut s = Stopped::at(world, SIZE, complete(), BEFORE);
    let upload = s.world.bucket.uploads(KEY).unwrap().remove(0);
    s.world.bucket.abort(KEY, &upload.upload_id).unwrap();
    s.world.proxy.take_counts();
    s.recover();
    let counts = s.world.proxy.counts();
    assert_eq!(counts.requests(Call::Initiate), 1, "{}", counts.log_text());
    let condition = counts.log.iter().rfind(|l| l.asked.call == Call::Complete).unwrap();
    assert!(condition.asked.if_match.as_deref().is_some_and(|etag| etag.contains(&base)), "{condition:?}");
}

/// If somebody else wrote the key before the kill was recovered from, that is a conflict: their object stays, and so do
/// the bytes.
#[test]
fn closed_with_a_foreign_object_is_a_conflict_and_nothing_is_overwritten() {
    for upload_gone in [false, true] {
        let mut s = Stopped::at(World::new(), SIZE, complete(), BEFORE);
        if upload_gone {
            let upload = s.world.bucket.uploads(KEY).unwrap().remove(0);
            s.world.bucket.abort(KEY, &upload.upload_id).unwrap();
        }
        s.world.bucket.put(KEY, b"someone else's").unwrap();
        s.mount.remount().unwrap();
        let entry = crate::wait_for_state(&s.mount, KEY, "conflict");
        assert!(entry["last_error"].as_str().is_some_and(|e| !e.is_empty()), "{entry}");
        assert_eq!(s.world.bucket.get(KEY).unwrap(), b"someone else's");
        assert_eq!(s.world.journals().len(), 1, "the bytes are gone");
    }
}

#[test]
fn completed_and_then_replaced_by_another_is_a_conflict() {
    let mut s = Stopped::at(World::new(), SIZE, complete(), ACTED);
    s.world.bucket.put(KEY, b"someone else's").unwrap();
    s.mount.remount().unwrap();
    crate::wait_for_state(&s.mount, KEY, "conflict");
    assert_eq!(s.world.bucket.get(KEY).unwrap(), b"someone else's");
}

#[test]
fn putting_with_our_mark_on_the_object_is_done() {
    let put = When::call(Call::PutObject).key(KEY);
    let mut s = Stopped::at(World::new(), 100_000, put, ACTED);
    s.world.proxy.take_counts();
    s.recover();
    let counts = s.world.proxy.counts();
    assert_eq!(counts.requests(Call::PutObject), 0, "put twice\n{}", counts.log_text());
}

#[test]
fn putting_on_an_absent_key_or_the_base_puts_again() {
    for base in [None, Some(b"the base")] {
        let world = World::new();
        if let Some(base) = base {
            world.bucket.put(KEY, base).unwrap();
        }
        let mut s = Stopped::at(world, 100_000, When::call(Call::PutObject).key(KEY), BEFORE);
        s.world.proxy.take_counts();
        s.recover();
        let counts = s.world.proxy.counts();
        assert_eq!(counts.of(Call::PutObject).accepted, 1, "{}", counts.log_text());
        let put = counts.log.iter().find(|l| l.asked.call == Call::PutObject).unwrap();
        assert_eq!(put.asked.if_none_match.is_some(), base.is_none(), "{put:?}");
        assert_eq!(put.asked.if_match.is_some(), base.is_some(), "{put:?}");
    }
}

#[test]
fn putting_on_a_foreign_object_is_a_conflict() {
    let mut s = Stopped::at(World::new(), 100_000, When::call(Call::PutObject).key(KEY), BEFORE);
    s.world.bucket.put(KEY, b"someone else's").unwrap();
    s.mount.remount().unwrap();
    crate::wait_for_state(&s.mount, KEY, "conflict");
    assert_eq!(s.world.bucket.get(KEY).unwrap(), b"someone else's");
}

#[test]
fn a_put_that_arrives_late_is_recognised_as_ours() {
    // Killed before the answer, mounted while the request is still on its way, then it arrives.
    let world = World::new();
    let source = world.random_file("source", 1, 100_000);
    let mut mount = world.mount(&["--write-back"]);
    let late =
        world.proxy.hold(When::call(Call::PutObject).key(KEY).once(), HoldAt::InsideBody { after_bytes: 99_999 });
    assert!(crate::cp(&source, mount.path(KEY), WAIT).status.success());
    assert!(late.wait_hit(WAIT));
    mount.kill();
    let again = world.proxy.hold(When::call(Call::PutObject).key(KEY), BEFORE);
    mount.remount().unwrap();
    assert!(again.wait_hit(WAIT));
    late.release();
    world.wait_object(KEY, 100_000, WAIT);
    again.release();
    mount.wait_settled(KEY, WAIT);
    world.assert_object_is_file(KEY, &source);
    wait_no_journal(&world);
}

/// An upload whose initiate was not answered before the kill is neither used nor aborted: the next mount begins another
/// one, and `bosfs uploads list` shows the stray for `bosfs uploads abort --upload-id`.
#[test]
fn initiate_unanswered_starts_a_new_upload_and_the_stray_stays_listed() {
    let mut s = Stopped::at(World::new(), SIZE, When::call(Call::Initiate).key(KEY), ACTED);
    let stray = s.world.bucket.uploads(KEY).unwrap().remove(0);
    s.recover();
    let left = s.world.bucket.uploads(KEY).unwrap();
    assert_eq!(left, std::slice::from_ref(&stray), "an upload that may be foreign was touched");
    let listed = crate::bosfs_ok(&s.mount, &["uploads", "list", "bkt", "--json"]);
    assert!(listed.contains(&stray.upload_id), "{listed}");
    crate::bosfs_ok(&s.mount, &["uploads", "abort", "bkt/huge.iso", "--upload-id", &stray.upload_id, "--yes"]);
    assert!(s.world.bucket.uploads(KEY).unwrap().is_empty());
}

/// A closed file under recovery is there with its size and all its bytes before it is published.
#[test]
fn a_closed_file_under_recovery_is_visible_readable_and_writable() {
    let mut s = Stopped::at(World::new(), SIZE, complete(), BEFORE);
    let hold = s.world.proxy.hold(complete(), BEFORE);
    s.mount.remount().unwrap();
    assert!(hold.wait_hit(WAIT));
    let (path, source) = (s.mount.path(KEY), s.source.clone());
    crate::support::mounted::within(WAIT, "reading", move || {
        assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE);
        assert!(std::fs::read(&path).unwrap() == std::fs::read(source).unwrap(), "other bytes");
    });
    hold.release();
    s.mount.wait_settled(KEY, WAIT);
    s.world.assert_object_is_file(KEY, &s.source);
}

/// Recovery waits for a line that is dead, and then sends no part twice.
#[test]
fn recovery_waits_out_a_dead_line() {
    use crate::support::Line;
    let last = When::call(Call::UploadPart).key(KEY).part(4);
    let mut s = Stopped::at(World::new(), SIZE, last, BEFORE);
    let list = s.world.proxy.hold(When::call(Call::ListParts), BEFORE);
    s.mount.remount().unwrap();
    assert!(list.wait_hit(WAIT));
    s.world.proxy.set_line(Line::Dead);
    s.world.proxy.clear_rules();
    std::thread::sleep(std::time::Duration::from_secs(2));
    s.world.proxy.set_line(Line::Alive);
    s.world.wait_object(KEY, SIZE, WAIT);
    s.world.assert_object_is_file(KEY, &s.source);
    assert_eq!(s.world.proxy.counts().parts_accepted_twice(KEY), [] as [u32; 0]);
}

#[test]
fn many_kills_in_a_row_send_nothing_twice() {
    let size = 8 * PART;
    let held = |n: u32| When::call(Call::UploadPart).key(KEY).part(n);
    let mut s = Stopped::at(World::new(), size, held(2), ACTED);
    for part in [4, 6, 8] {
        let rule = s.world.proxy.hold(held(part), ACTED);
        s.mount.remount().unwrap();
        // Parts go side by side: this one may have been taken before an earlier kill.
        let _ = rule.wait_hit(std::time::Duration::from_secs(2));
        s.mount.kill();
        s.world.proxy.clear_rules();
        s.world.wait_quiet();
    }
    s.recover();
    let counts = s.world.proxy.counts();
    assert_eq!(counts.parts_accepted_twice(KEY), [] as [u32; 0], "{}", counts.log_text());
}
