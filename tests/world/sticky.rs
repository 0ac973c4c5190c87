//! An error that does not pass stays with its file until some program, and whoever looks, has seen it and done something.

use serde_json::Value;

use crate::actor::{Actor, close, fsync, on, rename, write};
use crate::support::fault::Rule;
use crate::support::{Action, Call, Mounted, When, World};
use crate::{PART, WAIT, assert_tells_all, bosfs_ok, status_text, told_error, wait_for_state, wait_no_journal};

/// A refusal that does not pass, and what programs are told.
struct Refusal {
    name: &'static str,
    action: Action,
    errno: &'static str,
}

fn refusals() -> Vec<Refusal> {
    let refusal = |name, status, code, errno| Refusal { name, action: Action::error(status, code), errno };
    vec![
        refusal("denied", 403, "AccessDenied", "EACCES"),
        refusal("overdue", 403, "AccountOverdue", "EDQUOT"),
        refusal("capacity", 403, "CapacityExceeded", "ENOSPC"),
        refusal("metadata", 400, "MetadataTooLarge", "ENOSPC"),
        refusal("bucket", 404, "NoSuchBucket", "ENODEV"),
    ]
}

/// Writes and closes a new file; what close gave.
fn store(actor: &mut Actor, mount: &Mounted, key: &str, source: &std::path::Path) -> crate::actor::Given {
    actor.open(key, &mount.path(key), "WRONLY|CREAT");
    actor.write_all(key, source);
    actor.close(key)
}

fn refuse(world: &World, key: &str, action: Action) -> Rule {
    world
        .proxy
        .fault(When { calls: vec![Call::PutObject, Call::Complete, Call::Initiate], ..When::any() }.key(key), action)
}

/// The same, but only once the rule is released: what is answered before says nothing of it.
fn refuse_later(world: &World, key: &str) -> Rule {
    let calls = vec![Call::PutObject, Call::Complete, Call::Initiate];
    world.proxy.add(crate::support::fault::RuleSpec {
        when: When { calls, ..When::any() }.key(key),
        hold: Some(crate::support::HoldAt::BeforeForward),
        action: Action::error(403, "AccessDenied"),
    })
}

/// Everybody who asks is told of `key`, and of nothing else.
fn assert_everybody_is_told(mount: &Mounted, key: &str) {
    let error = told_error(&wait_for_state(mount, key, "failed"));
    assert!(status_text(mount).contains(&error), "status for people: {}", status_text(mount));
    assert!(mount.log_text().contains(&error), "the log: {}", mount.log_text());
    assert_eq!(mount.status()["mounts"][0]["totals"]["stuck"], 1, "{}", mount.status());
}

/// What BOS refuses for good fails the `close`: no permission EACCES, an overdue account EDQUOT, no capacity or too
/// much metadata ENOSPC, no such bucket ENODEV; `bosfs status` and the log name the file until the same copy ends well.
#[test]
fn every_refusal_fails_the_close_and_is_shown_until_it_is_repaired() {
    for several in [false, true] {
        let world = World::new();
        let source = world.random_file("source", 1, if several { PART + 5 } else { 3000 });
        let mut mount = world.mount(&["--part-size", "5MiB"]);
        let mut actor = Actor::start();
        for Refusal { name, action, errno } in refusals() {
            let rule = refuse(&world, name, action);
            assert_eq!(store(&mut actor, &mount, name, &source), Err(errno.into()), "{name}\n{}", mount.log_text());
            assert!(rule.hits() > 0);
            assert_everybody_is_told(&mount, name);
            assert_eq!(world.bucket.head(name).unwrap(), None);
            // Others are not disturbed.
            assert_eq!(store(&mut actor, &mount, "well", &source), Ok(Value::Null));
            actor.must(on("unlink", &mount.path("well")));
            rule.turn_off();
            // The same command again repairs it.
            actor.open("again", &mount.path(name), "WRONLY|CREAT|TRUNC");
            actor.write_all("again", &source);
            assert_eq!(actor.close("again"), Ok(Value::Null), "{name}\n{}", mount.log_text());
            world.assert_object_is_file(name, &source);
            wait_no_journal(&world);
            assert!(mount.file_status(name).is_none_or(|entry| entry["state"] == "done"));
        }
        assert!(mount.umount(WAIT).status.success(), "what was repaired is told of no more");
    }
}

/// What failed behind a `--write-back` close is named by `bosfs umount` (exit 3) and by `bosfs status`, also while
/// nothing is mounted and over several mounts, until it is published.
#[test]
fn a_failed_publication_is_named_by_umount_and_survives_mounts_until_its_cause_is_gone() {
    let world = World::new();
    let source = world.random_file("source", 2, PART + 5);
    let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let mut actor = Actor::start();
    let rule = refuse_later(&world, "f");
    assert_eq!(store(&mut actor, &mount, "f", &source), Ok(Value::Null), "write-back answers at once");
    rule.release();
    assert_eq!(store(&mut actor, &mount, "well", &source), Ok(Value::Null));
    assert_everybody_is_told(&mount, "f");
    let hits = rule.hits();
    for round in 0..2 {
        let output = mount.umount(WAIT);
        assert_eq!(output.status.code(), Some(3), "round {round}: {output:?}");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_tells_all(&complaint, "f");
        assert!(!complaint.contains("well"), "{complaint}");
        // Also while nothing is mounted.
        let mut command = std::process::Command::new(crate::support::mounted::bosfs_binary());
        let shown = crate::support::mounted::run(command.arg("status").arg(world.state_dir()), WAIT);
        assert!(String::from_utf8_lossy(&shown.stdout).contains("failed"), "{shown:?}");
        mount.remount().unwrap();
        assert_everybody_is_told(&mount, "f");
    }
    assert!(rule.hits() > hits, "no mount tried it again");
    assert_eq!(world.bucket.head("f").unwrap(), None);
    rule.turn_off();
    mount.remount().unwrap();
    world.wait_object("f", PART + 5, WAIT);
    world.assert_object_is_file("f", &source);
    wait_no_journal(&world);
    assert!(mount.umount(WAIT).status.success());
}

/// What failed behind is told by the next `write`, `fsync` or `close` of an open handle (EACCES where permission is
/// missing); a `write` that tells it writes nothing, and the next one goes on.
#[test]
fn what_failed_behind_is_told_by_the_next_call_that_can_tell_it() {
    let world = World::new();
    let source = world.random_file("source", 3, 2 * PART);
    let mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let mut actor = Actor::start();
    for (call, key) in [("write", "by-write"), ("fsync", "by-fsync"), ("close", "by-close")] {
        let rule = refuse_later(&world, key);
        actor.open("f", &mount.path(key), "WRONLY|CREAT");
        actor.must(write("f", &source, 0, PART + 10));
        // A duplicate is closed: published behind, while the handle stays open.
        actor.must(serde_json::json!({"do": "dup", "as": "dup", "of": "f"}));
        assert_eq!(actor.close("dup"), Ok(Value::Null), "write-back answers at once");
        rule.release();
        wait_for_state(&mount, key, "failed");
        let order = match call {
            "write" => write("f", &source, PART + 10, 10),
            "fsync" => fsync("f"),
            _ => close("f"),
        };
        assert_eq!(actor.ask(order), Err("EACCES".into()), "{call} tells nothing\n{}", mount.log_text());
        if call == "write" {
            assert_eq!(actor.written, 0, "told, and written all the same");
            // Told once; the program may go on.
            actor.must(write("f", &source, PART + 10, 10));
        }
        if call != "close" {
            rule.turn_off();
            actor.must(fsync("f"));
            actor.must(close("f"));
            // Something new was closed, so it is tried again; what only failed is with `uploads resume`.
            if call == "fsync" {
                bosfs_ok(&mount, &["uploads", "resume", &format!("bkt/{key}")]);
            }
            world.wait_object(key, if call == "write" { PART + 20 } else { PART + 10 }, WAIT);
        } else {
            wait_for_state(&mount, key, "failed");
            rule.turn_off();
            bosfs_ok(&mount, &["uploads", "abort", &format!("bkt/{key}"), "--yes"]);
        }
    }
    wait_no_journal(&world);
}

/// A failure that nobody was told of is told once, to the next program that opens the file for writing and syncs it;
/// readers, later programs and other files are not troubled.
#[test]
fn a_failure_that_nobody_was_told_of_is_told_to_who_opens_the_file_next_and_to_nobody_twice() {
    let world = World::new();
    let source = world.random_file("source", 4, PART + 10);
    let mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let (mut writer, mut other) = (Actor::start(), Actor::start());
    let rule = refuse_later(&world, "f");
    assert_eq!(store(&mut writer, &mount, "f", &source), Ok(Value::Null));
    rule.release();
    wait_for_state(&mount, "f", "failed");
    // Readers are not concerned: the bytes are there.
    other.open("r", &mount.path("f"), "RDONLY");
    assert_eq!(other.must(serde_json::json!({"do": "read", "as": "r", "offset": 0, "len": 100}))["bytes"], 100);
    assert_eq!(other.close("r"), Ok(Value::Null));
    // The first who could write hears of it, once.
    other.open("w", &mount.path("f"), "WRONLY");
    assert_eq!(other.ask(fsync("w")), Err("EACCES".into()));
    assert_eq!(other.ask(fsync("w")), Ok(Value::Null), "told twice");
    assert_eq!(other.close("w"), Ok(Value::Null), "told twice");
    // Whoever comes later and changes nothing is not concerned any more.
    writer.open("w", &mount.path("f"), "WRONLY");
    assert_eq!(writer.ask(fsync("w")), Ok(Value::Null));
    assert_eq!(writer.close("w"), Ok(Value::Null));
    // Nor is another file.
    assert_eq!(store(&mut other, &mount, "well", &source), Ok(Value::Null));
    mount.wait_settled("well", WAIT);
    // `status` and umount go on telling.
    assert_everybody_is_told(&mount, "f");
    bosfs_ok(&mount, &["uploads", "abort", "bkt/f", "--yes"]);
    wait_no_journal(&world);
}

/// Trouble that passes (500, 503, a rate limit, refused connections, a gateway's page) fails no `close` and is no
/// failure in `bosfs status`.
#[test]
fn trouble_that_passes_is_not_kept() {
    let world = World::new();
    let source = world.random_file("source", 5, PART + 10);
    let mut mount = world.mount(&["--part-size", "5MiB"]);
    let mut actor = Actor::start();
    for (key, action) in [
        ("server", Action::error(500, "InternalError")),
        ("busy", Action::error(503, "SlowDown")),
        ("rate", Action::rate_403()),
        ("refused", Action::Refuse),
        ("page", Action::html(502)),
    ] {
        let rule = world.proxy.fault(When::call(Call::Complete).key(key).times(2), action);
        assert_eq!(store(&mut actor, &mount, key, &source), Ok(Value::Null), "{key}\n{}", mount.log_text());
        assert_eq!(rule.hits(), 2, "{key}");
        world.assert_object_is_file(key, &source);
        assert_eq!(mount.status()["mounts"][0]["totals"]["stuck"], 0);
    }
    wait_no_journal(&world);
    assert!(mount.umount(WAIT).status.success());
}

/// `rm` or `bosfs uploads abort` gives a failed file up: its upload goes, and `bosfs umount` exits 0.
#[test]
fn a_failed_file_is_given_up_by_rm_and_by_abort() {
    let world = World::new();
    let source = world.random_file("source", 6, PART + 10);
    let mut mount = world.mount(&["--part-size", "5MiB"]);
    let mut actor = Actor::start();
    let rule = world.proxy.fault(When::call(Call::Complete), Action::error(403, "AccessDenied"));
    for key in ["rm", "abort"] {
        assert_eq!(store(&mut actor, &mount, key, &source), Err("EACCES".into()));
        wait_for_state(&mount, key, "failed");
    }
    actor.must(on("unlink", &mount.path("rm")));
    bosfs_ok(&mount, &["uploads", "abort", "bkt/abort", "--yes"]);
    wait_no_journal(&world);
    assert!(rule.hits() >= 2);
    assert!(world.bucket.uploads("").unwrap().is_empty(), "uploads of ours stay");
    assert!(mount.umount(WAIT).status.success(), "what was given up is told of no more");
}

/// A failure with nobody waiting for it is told by `status`, by the log and by umount, and the next mount goes on.
fn assert_reaches_someone(world: &World, mount: &mut Mounted, key: &str, rule: &Rule) {
    let entry = wait_for_state(mount, key, "failed");
    let error = told_error(&entry);
    assert!(mount.log_text().contains(&error), "the log: {}", mount.log_text());
    let output = mount.umount(WAIT);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_tells_all(&String::from_utf8_lossy(&output.stderr), key);
    assert!(rule.hits() > 0);
    rule.turn_off();
    mount.remount().unwrap();
    wait_no_journal(world);
    crate::wait_until("the next mount has done it", || {
        let status = mount.status();
        status["mounts"][0]["files"].as_array().is_some_and(Vec::is_empty)
    });
    assert!(mount.umount(WAIT).status.success());
}

/// New attributes that BOS refuses are named by `bosfs status`, by the log and by `bosfs umount` (exit 3), and the next
/// mount sends them once it may.
#[test]
fn new_attributes_that_bos_refuses_reach_someone() {
    let world = World::new();
    world.bucket.put("f", b"bytes").unwrap();
    let mut mount = world.mount(&[]);
    let rule = world.proxy.fault(When::call(Call::CopyObject), Action::error(403, "AccessDenied"));
    let mut actor = Actor::start();
    actor.must(serde_json::json!({"do": "chmod", "path": mount.path("f"), "mode": 0o600}));
    assert_reaches_someone(&world, &mut mount, "f", &rule);
    let head = world.bucket.head_reply("f").unwrap().unwrap();
    assert_eq!(head.header("x-bce-meta-bosfs-mode"), Some("33152"), "{head:?}");
    assert_eq!(world.bucket.get("f").unwrap(), b"bytes");
}

#[test]
fn a_batch_of_deletes_that_bos_refuses_reaches_someone() {
    let world = World::new();
    let keys: Vec<String> = (0..40).map(|n| format!("dir/{n:02}")).collect();
    for key in &keys {
        world.bucket.put(key, b"x").unwrap();
    }
    let mut mount = world.mount(&[]);
    let rule = world.proxy.fault(When::call(Call::BatchDelete), Action::error(403, "AccessDenied"));
    let mut actor = Actor::start();
    for key in &keys {
        // In a burst names go at once, and objects behind.
        actor.must(on("unlink", &mount.path(key)));
    }
    crate::wait_until("a batch was refused", || rule.hits() > 0);
    let failed = || {
        let status = mount.status();
        let files = status["mounts"][0]["files"].as_array().cloned().unwrap_or_default();
        files.into_iter().find(|file| file["state"] == "failed" || file["state"] == "conflict")
    };
    crate::wait_until("status names it", || failed().is_some());
    let error = told_error(&failed().unwrap());
    assert!(mount.log_text().contains(&error), "{}", mount.log_text());
    let output = mount.umount(WAIT);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let left = world.bucket.list("dir/").unwrap();
    assert!(!left.is_empty(), "nothing was refused");
    rule.turn_off();
    // What is there again can be seen and removed again.
    mount.remount().unwrap();
    let seen = actor.must(on("list", &mount.path("dir")));
    assert_eq!(seen.as_array().map(Vec::len), Some(left.len()), "{seen} of {left:?}");
    for key in &left {
        actor.must(on("unlink", &mount.path(key)));
    }
    assert!(mount.umount(WAIT).status.success());
    assert_eq!(world.bucket.list("dir/").unwrap(), [] as [String; 0]);
}

/// A rename of a folder that BOS refuses to copy gives EACCES and leaves the old names; one whose old names it refuses
/// to delete is told by `bosfs status` and `bosfs umount` (exit 3), and finished by the next mount.
#[test]
fn a_rename_of_a_folder_that_bos_refuses_is_told_and_taken_back_or_finished() {
    for call in [Call::CopyObject, Call::DeleteObject] {
        let world = World::new();
        for n in 0..5 {
            world.bucket.put(&format!("dir/{n}"), format!("bytes {n}").as_bytes()).unwrap();
        }
        let mut mount = world.mount(&[]);
        let calls = if call == Call::CopyObject { vec![call] } else { vec![call, Call::BatchDelete] };
        let rule = world.proxy.fault(When { calls, ..When::any() }, Action::error(403, "AccessDenied"));
        let mut actor = Actor::start();
        let given = actor.ask(rename(&mount.path("dir"), &mount.path("renamed")));
        assert!(rule.hits() > 0, "{given:?}");
        if call == Call::CopyObject {
            // Nothing was copied: the old names count, and the program is told.
            assert_eq!(given, Err("EACCES".into()), "{}", mount.log_text());
            assert_eq!(world.bucket.list("renamed").unwrap(), [] as [String; 0]);
            assert_eq!(world.bucket.list("dir/").unwrap().len(), 5);
            assert_tells_all(last_complaint(&mount, "dir").as_str(), "dir");
            rule.turn_off();
            actor.must(rename(&mount.path("dir"), &mount.path("renamed")));
        } else {
            // Everything has its new name; the old ones could not be removed.
            let entry = wait_for_state(&mount, "dir/", "failed");
            told_error(&entry);
            let output = mount.umount(WAIT);
            assert_eq!(output.status.code(), Some(3), "{output:?}");
            assert_tells_all(&String::from_utf8_lossy(&output.stderr), "dir/");
            rule.turn_off();
            mount.remount().unwrap();
        }
        crate::wait_until("the old names are gone", || world.bucket.list("dir/").unwrap().is_empty());
        for n in 0..5 {
            assert_eq!(world.bucket.get(&format!("renamed/{n}")).unwrap(), format!("bytes {n}").into_bytes());
        }
        assert!(mount.umount(WAIT).status.success());
    }
}

/// The last line of the log that speaks of `key` as a warning or an error.
fn last_complaint(mount: &Mounted, key: &str) -> String {
    let log = mount.log_text();
    let lines = log.lines().rev().find(|line| (line.contains("WARN") || line.contains("ERROR")) && line.contains(key));
    lines.unwrap_or_else(|| panic!("no complaint of {key} in {log}")).to_owned()
}
