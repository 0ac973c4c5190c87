//! A lifecycle rule of the bucket aborts unfinished uploads: what BOS holds as parts may go at any time.

use serde_json::{Value, json};

use crate::actor::{Actor, close, write};
use crate::support::files::allocated_bytes;
use crate::support::{Call, HoldAt, When, World};
use crate::{PART, WAIT, status_text, wait_no_journal, wait_until};

fn put_rule(world: &World) {
    let rule = json!({"rule": [{
        "id": "sweep", "status": "enabled", "resource": ["bkt/*"],
        "condition": {"time": {"dateGreaterThan": "$(lastModified)+P7D"}},
        "action": {"name": "AbortMultipartUpload"},
    }]});
    world.bucket.ask("PUT", "", &[("lifecycle", "")], &[], rule.to_string().as_bytes()).expect("a lifecycle rule");
}

/// Under a lifecycle rule that aborts uploads nothing is dropped from the spool: a write into a full one gives ENOSPC,
/// and when the rule strikes, all that was accepted is sent again and published.
#[test]
fn under_a_rule_that_aborts_uploads_the_spool_is_kept_whole_and_can_send_everything_again() {
    let world = World::new();
    put_rule(&world);
    let source = world.random_file("source", 1, 8 * PART + 5);
    let mount = world.mount(&["--part-size", "5MiB", "--spool-limit", "20MiB"]);
    assert!(world.proxy.counts().requests(Call::BucketSetting) > 0, "the rules were not read");
    assert!(mount.log_text().contains("lifecycle rule"), "{}", mount.log_text());
    assert_eq!(mount.status()["mounts"][0]["abort_rule_days"], 7, "{}", mount.status());
    assert!(status_text(&mount).contains("aborts unfinished uploads after 7 days"), "{}", status_text(&mount));
    let mut actor = Actor::start();
    actor.open("f", &mount.path("f"), "WRONLY|CREAT");
    actor.must(write("f", &source, 0, 3 * PART));
    wait_until("two parts are in BOS", || {
        mount.file_status("f").is_some_and(|entry| entry["parts_in_bos"].as_u64() >= Some(2))
    });
    // The spool is full: without the rule, sent parts would be taken out of it now.
    actor.begin(write("f", &source, 3 * PART, 3 * PART));
    // Nothing else is under way that could make room for it: waiting would be for ever.
    assert_eq!(actor.answer("a write into a full spool"), Err("ENOSPC".into()), "{}", mount.log_text());
    let held: u64 = world.journals().iter().map(|dir| allocated_bytes(dir)).sum();
    assert!(held >= 3 * PART, "parts were taken out of the spool: {held}");
    // What was accepted, and no more.
    let accepted = 3 * PART + actor.written;
    let hold = world.proxy.hold(When::call(Call::Complete), HoldAt::BeforeForward);
    actor.begin(close("f"));
    assert!(hold.wait_hit(WAIT));
    // The rule strikes.
    let upload = world.bucket.uploads("f").unwrap().remove(0);
    world.bucket.abort("f", &upload.upload_id).unwrap();
    hold.release();
    assert_eq!(actor.answer("close"), Ok(Value::Null), "{}", mount.log_text());
    let whole = std::fs::read(&source).unwrap();
    assert!(world.bucket.get("f").unwrap() == whole[..accepted as usize], "other bytes than were accepted");
    wait_no_journal(&world);
}

#[test]
fn rules_that_cannot_be_read_or_do_something_else_change_nothing() {
    for answer in [crate::support::Action::error(403, "AccessDenied"), crate::support::Action::Pass] {
        let world = World::new();
        let reads = world.proxy.fault(When::call(Call::BucketSetting), answer);
        let mount = world.mount(&["--part-size", "5MiB"]);
        assert!(reads.hits() > 0);
        assert_eq!(mount.status()["mounts"][0]["abort_rule_days"], Value::Null);
        assert!(!status_text(&mount).contains("lifecycle"));
    }
}
