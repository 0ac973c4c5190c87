//! Answers of BOS that are right only in the end, and refusals that are taken back: bosfs asks and tries again by itself.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::support::mounted::cp;
use crate::support::{Action, Call, HoldAt, When, World};
use crate::{PART, WAIT, wait_no_journal};

const SIZE: u64 = 3 * PART + 17;
const ARGS: [&str; 2] = ["--part-size", "5MiB"];

/// A HEAD that still shows the former object right after a completion is not taken for somebody else's change: BOS is asked
/// again, and the spool goes only once the object is proved.
#[test]
fn a_stale_head_after_a_completion_is_asked_for_again_before_the_spool_goes() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    world.bucket.put("f", b"the former object").unwrap();
    let mount = world.mount(&ARGS);
    // Without a checksum in the answer the proof is left to HEAD.
    world.proxy.fault(When::call(Call::Complete), Action::no_crc());
    world.proxy.set_stale_heads(4);
    let output = cp(&source, mount.path("f"), WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    assert!(world.proxy.stale_heads_served() >= 4, "{}", world.proxy.counts().log_text());
    assert!(!mount.log_text().contains("replaced by somebody else"), "{}", mount.log_text());
    world.assert_object_is_file("f", &source);
    let entry = mount.file_status("f").expect("the last file");
    assert_eq!((&entry["state"], &entry["proof"]), (&"done".into(), &"proved".into()), "{entry}");
    wait_no_journal(&world);
}

/// A completion whose answer is lost and that HEAD does not show yet is asked for again before its upload is given up: no
/// byte is sent twice.
#[test]
fn a_lost_completion_that_head_does_not_show_yet_is_not_sent_again() {
    for base in [false, true] {
        let world = World::new();
        let source = world.random_file("source", 1, SIZE);
        if base {
            world.bucket.put("f", b"the former object").unwrap();
        }
        let mount = world.mount(&ARGS);
        let lost = world.proxy.fault(When::call(Call::Complete).once(), Action::LoseAnswer);
        world.proxy.set_stale_heads(4);
        let output = cp(&source, mount.path("f"), WAIT);
        assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
        assert_eq!(lost.hits(), 1);
        let counts = world.proxy.counts();
        assert_eq!(counts.bytes_sent(), SIZE, "{}", counts.log_text());
        assert_eq!(counts.requests(Call::Initiate), 1, "{}", counts.log_text());
        world.assert_object_is_file("f", &source);
    }
}

/// A HEAD that is behind by two publications of the same program is no conflict.
#[test]
fn a_head_that_is_behind_by_two_publications_is_no_conflict() {
    let world = World::new();
    let mount = world.mount(&ARGS);
    let file = File::create(mount.path("f")).unwrap();
    let publish = |text: &[u8]| {
        file.write_all_at(text, 0).unwrap();
        // The close of a second descriptor.
        drop(file.try_clone().unwrap());
    };
    world.proxy.set_stale_heads(4);
    publish(b"first");
    world.wait_object("f", 5, WAIT);
    let lost = world.proxy.fault(When::call(Call::PutObject).once(), Action::LoseAnswer);
    publish(b"the second");
    assert_eq!(lost.hits(), 1);
    assert_eq!(world.bucket.get("f").unwrap(), b"the second");
    assert_eq!(mount.status()["mounts"][0]["totals"]["stuck"], 0, "{}\n{}", mount.status(), mount.log_text());
    publish(b"and a third one");
    assert_eq!(world.bucket.get("f").unwrap(), b"and a third one", "{}", mount.log_text());
}

/// A mode that is set right behind a publication is not dropped when BOS does not see the object yet where it copies from: the
/// copy is made again.
#[test]
fn a_mode_is_not_dropped_when_bos_does_not_see_the_object_yet() {
    use std::os::unix::fs::PermissionsExt as _;
    for (status, code) in [(404, "NoSuchKey"), (412, "PreconditionFailed")] {
        let world = World::new();
        let mut mount = world.mount(&ARGS);
        let unseen = world.proxy.fault(When::call(Call::CopyObject).times(2), Action::error(status, code));
        std::fs::write(mount.path("f"), b"x").unwrap();
        std::fs::set_permissions(mount.path("f"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let output = mount.umount(WAIT);
        assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
        assert_eq!(unseen.hits(), 2, "{code}");
        let reply = world.bucket.head_reply("f").unwrap().expect("published");
        let mode = reply.header("x-bce-meta-bosfs-mode").unwrap_or_default().to_owned();
        assert_eq!(mode, 0o100_600.to_string(), "{code}: {}", mount.log_text());
    }
}

/// Where the checksums that BOS gives of composed objects do not fit although every part's did, the log says so once, the ETag
/// over the parts counts, and no file is sent a second time.
#[test]
fn checksums_of_composed_objects_that_do_not_fit_are_told_once_and_cost_nothing() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mount = world.mount(&ARGS);
    for call in [Call::Complete, Call::HeadObject] {
        world.proxy.fault(When::call(call), Action::wrong_crc());
    }
    for name in ["f", "g"] {
        let output = cp(&source, mount.path(name), WAIT);
        assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
        world.assert_object_is_file(name, &source);
    }
    let counts = world.proxy.counts();
    assert_eq!(counts.bytes_sent(), 2 * SIZE, "{}", counts.log_text());
    assert_eq!(mount.log_text().matches("are not believed").count(), 1, "{}", mount.log_text());
    assert_eq!(mount.file_status("g").expect("the last file")["proof"], "composed");
}

// Where not even the ETag tells anything, one repair is tried.
#[test]
fn checksums_that_do_not_fit_beside_opaque_etags_cost_one_repair() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mount = world.mount(&ARGS);
    world.proxy.fault(When::call(Call::Complete), Action::no_crc());
    let opaque = match Action::wrong_crc() {
        Action::EditAnswer { mut set, remove } => {
            set.push(("ETag".into(), format!("\"{}\"", "0".repeat(32))));
            Action::EditAnswer { set, remove }
        }
        other => other,
    };
    world.proxy.fault(When::call(Call::HeadObject), opaque);
    let output = cp(&source, mount.path("f"), WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    let counts = world.proxy.counts();
    assert_eq!(counts.bytes_sent(), 2 * SIZE, "{}", counts.log_text());
    world.assert_object_is_file("f", &source);
}

/// A file that BOS refused is tried again by itself, with pauses that `bosfs status` shows; meanwhile programs are told of the
/// failure at once, also while a try is under way, and no part is sent twice.
#[test]
fn a_refused_file_is_tried_again_by_itself_until_it_is_taken() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mount = world.mount(&["--part-size", "5MiB", "--retry-failed", "1s"]);
    let overdue = world.proxy.fault(When::call(Call::Complete).times(2), Action::error(403, "AccountOverdue"));
    // Later tries are neither refused nor answered, as long as this holds them.
    let held = world.proxy.hold(When::call(Call::Complete), HoldAt::BeforeForward);
    let first = File::create(mount.path("f")).unwrap();
    first.write_all_at(&std::fs::read(&source).unwrap(), 0).unwrap();
    let second = std::fs::OpenOptions::new().append(true).open(mount.path("f")).unwrap();
    drop(first);
    let entry = crate::wait_for_state(&mount, "f", "failed");
    assert!(entry["retry_in_s"].as_u64().is_some_and(|left| left <= 1), "{entry}");
    assert!(overdue.wait_hits(2, WAIT), "not tried again by itself: {}", mount.log_text());
    assert!(held.wait_hit(WAIT), "{}", mount.log_text());
    // A try is under way and BOS says nothing: nobody waits for it.
    let touched = std::time::Instant::now();
    let error = second.sync_all().expect_err("the failure").raw_os_error();
    assert_eq!(error, Some(libc::EDQUOT), "{}", mount.log_text());
    drop(second);
    drop(std::fs::OpenOptions::new().append(true).open(mount.path("f")).unwrap());
    assert!(touched.elapsed() < std::time::Duration::from_secs(10), "{:?}", touched.elapsed());
    assert_eq!(mount.file_status("f").expect("not in BOS yet")["state"], "failed");
    held.release();
    mount.wait_settled("f", WAIT);
    world.assert_object_is_file("f", &source);
    let counts = world.proxy.counts();
    assert_eq!(counts.bytes_sent(), SIZE, "{}", counts.log_text());
    assert_eq!(counts.requests(Call::Complete), 3, "{}", counts.log_text());
    wait_no_journal(&world);
}

// What BOS refuses to delete is asked again with pauses, and not as fast as the line allows.
#[test]
fn a_refused_removal_of_an_unfinished_file_is_not_repeated_without_a_pause() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mount = world.mount(&["--part-size", "5MiB", "--retry-failed", "1s"]);
    let refused = world.proxy.fault(When::call(Call::Complete), Action::error(403, "AccessDenied"));
    assert!(!cp(&source, mount.path("f"), WAIT).status.success());
    assert!(refused.hits() > 0);
    let aborts = world.proxy.fault(When::call(Call::Abort), Action::error(403, "AccessDenied"));
    let _ = std::fs::remove_file(mount.path("f"));
    assert!(aborts.wait_hit(WAIT), "{}", mount.log_text());
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(aborts.hits() <= 4, "{} aborts in 3 s", aborts.hits());
    world.proxy.clear_rules();
    wait_no_journal(&world);
    assert!(world.bucket.uploads("").unwrap().is_empty());
}
