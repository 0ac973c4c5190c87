//! A lifecycle rule of the bucket aborts unfinished uploads: what BOS holds as parts may go at any time.

use serde_json::{Value, json};

use crate::actor::{Actor, close, write};
use crate::support::files::allocated_bytes;
use crate::support::mounted::{start_cp, wait_child};
use crate::support::{Action, Call, HoldAt, Mounted, When, World};
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
fn without_a_rule_that_aborts_uploads_nothing_is_told() {
    let world = World::new();
    let reads = world.proxy.fault(When::call(Call::BucketSetting), Action::Pass);
    let mount = world.mount(&["--part-size", "5MiB"]);
    assert!(reads.hits() > 0);
    assert_eq!(mount.status()["mounts"][0]["abort_rule_days"], Value::Null);
    assert!(!status_text(&mount).contains("lifecycle"));
}

/// Fills a spool of 20 MiB with a file of which parts are in BOS, and begins a write that does not fit any more.
fn fill_spool(mount: &Mounted, source: &std::path::Path) -> Actor {
    let mut actor = Actor::start();
    actor.open("f", &mount.path("f"), "WRONLY|CREAT");
    actor.must(write("f", source, 0, 3 * PART));
    wait_until("two parts are in BOS", || {
        mount.file_status("f").is_some_and(|entry| entry["parts_in_bos"].as_u64() >= Some(2))
    });
    actor.begin(write("f", source, 3 * PART, 3 * PART));
    actor
}

fn spooled(world: &World) -> u64 {
    world.journals().iter().map(|dir| allocated_bytes(dir)).sum()
}

/// Where the key may not read the lifecycle rules of the bucket, nothing is dropped from the spool: a write into a full one
/// gives ENOSPC, and `bosfs status` and the log say why and what to do.
#[test]
fn rules_that_may_not_be_read_keep_the_spool_whole() {
    let world = World::new();
    world.proxy.fault(When::call(Call::BucketSetting), Action::error(403, "AccessDenied"));
    let source = world.random_file("source", 1, 6 * PART);
    let mount = world.mount(&["--part-size", "5MiB", "--spool-limit", "20MiB"]);
    let unknown = mount.status()["mounts"][0]["abort_rules_unknown"].as_str().unwrap_or_default().to_owned();
    assert!(unknown.contains("AccessDenied"), "{}", mount.status());
    assert!(status_text(&mount).contains("rules of the bucket cannot be read"), "{}", status_text(&mount));
    let mut actor = fill_spool(&mount, &source);
    assert_eq!(actor.answer("a write into a full spool"), Err("ENOSPC".into()), "{}", mount.log_text());
    assert!(spooled(&world) >= 3 * PART, "parts were taken out of the spool: {}", spooled(&world));
    assert!(mount.log_text().contains("GetBucketLifecycle"), "{}", mount.log_text());
}

/// Where the lifecycle rules of the bucket cannot be read for trouble that passes, nothing is dropped from the spool, and a
/// writer whose spool is full waits until they can.
#[test]
fn rules_that_cannot_be_read_now_are_waited_for() {
    let world = World::new();
    // A gateway's page with status 200: nothing in it says that there is no rule.
    world.proxy.fault(When::call(Call::BucketSetting), Action::html(200));
    let source = world.random_file("source", 1, 6 * PART);
    let mount = world.mount(&["--part-size", "5MiB", "--spool-limit", "20MiB"]);
    let mut actor = fill_spool(&mount, &source);
    assert_eq!(actor.answer_within(std::time::Duration::from_secs(3)), None, "{}", mount.log_text());
    assert!(spooled(&world) >= 3 * PART, "parts were taken out of the spool: {}", spooled(&world));
    actor.interrupt();
    assert_eq!(actor.answer("an interrupted write"), Err("EINTR".into()));
}

/// With `--punch no` a writer whose spool is full waits for another file that is on its way, and goes on once that is
/// published; a file that does not fit into the spool alone gets ENOSPC, and the log says what to do.
#[test]
fn without_punching_a_writer_waits_for_other_files_and_not_for_its_own() {
    let world = World::new();
    let (first, second) = (world.random_file("first", 1, 2 * PART + 5), world.random_file("second", 2, 6 * PART));
    let mount = world.mount(&["--part-size", "5MiB", "--spool-limit", "20MiB", "--punch", "no"]);
    let held = world.proxy.hold(When::call(Call::Complete).key("first").once(), HoldAt::BeforeForward);
    let mut copy = start_cp(&first, mount.path("first"));
    assert!(held.wait_hit(WAIT));
    let mut actor = Actor::start();
    actor.open("f", &mount.path("f"), "WRONLY|CREAT");
    actor.begin(write("f", &second, 0, 3 * PART));
    assert_eq!(actor.answer_within(std::time::Duration::from_secs(2)), None, "{}", mount.log_text());
    held.release();
    assert!(actor.answer("a write that waited for room").is_ok(), "{}", mount.log_text());
    assert!(wait_child(&mut copy, WAIT).is_some_and(|status| status.success()), "{}", mount.log_text());
    world.assert_object_is_file("first", &first);
    // Alone now: its own parts are all in BOS and stay in the spool all the same.
    actor.begin(write("f", &second, 3 * PART, 3 * PART));
    assert_eq!(actor.answer("a write that can never fit"), Err("ENOSPC".into()), "{}", mount.log_text());
    assert!(mount.log_text().contains("--spool-limit larger than the file"), "{}", mount.log_text());
    let accepted = 3 * PART + actor.written;
    assert_eq!(actor.close("f"), Ok(Value::Null), "{}", mount.log_text());
    let whole = std::fs::read(&second).unwrap();
    assert!(world.bucket.get("f").unwrap() == whole[..accepted as usize], "other bytes than were accepted");
}
