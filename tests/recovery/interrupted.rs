//! Row "not closed": the writer never closed the file. Nothing of it is published by itself.

use crate::support::mounted::{SlowWriter, cp};
use crate::support::{Call, KeyWatch, Mounted, When, World};
use crate::{KEY, PART, WAIT, bosfs_ok, wait_for_state, wait_no_journal};

const WRITTEN: u64 = 4 * PART;

/// A writer that wrote [`WRITTEN`] bytes of the source and lived when bosfs was killed.
fn interrupted(world: &World, args: &[&str]) -> (Mounted, std::path::PathBuf) {
    let source = world.random_file("source", 1, 6 * PART + 10);
    let mut mount = world.mount(args);
    let third = world.proxy.fault(When::call(Call::UploadPart).skip(2).once(), crate::support::Action::Pass);
    let mut writer = SlowWriter::start(&mount.path(KEY));
    writer.feed(&source, WRITTEN).unwrap();
    assert!(third.wait_hit(WAIT), "{}", mount.log_text());
    // The last bytes may still be in the pipe.
    let end = std::time::Instant::now() + WAIT;
    while mount.file_status(KEY).is_none_or(|e| e["size"] != WRITTEN) {
        assert!(std::time::Instant::now() < end);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Until the server has taken three parts and their answers have been journaled.
    let end = std::time::Instant::now() + WAIT;
    while world.proxy.counts().of(Call::UploadPart).accepted < 3 {
        assert!(std::time::Instant::now() < end);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    mount.kill();
    drop(writer);
    world.proxy.clear_rules();
    world.wait_quiet();
    (mount, source)
}

const ARGS: [&str; 2] = ["--part-size", "5MiB"];

/// A file whose writer was cut off by a kill of bosfs is shown with all that was written and stays unpublished.
#[test]
fn an_interrupted_file_is_visible_and_readable_and_not_published() {
    let world = World::new();
    let watch = KeyWatch::start(&world.bucket, KEY);
    let (mut mount, source) = interrupted(&world, &ARGS);
    mount.remount().unwrap();
    wait_for_state(&mount, KEY, "interrupted");
    let path = mount.path(KEY);
    let shown = crate::support::mounted::within(WAIT, "reading", move || std::fs::read(path).unwrap());
    assert_eq!(shown.len() as u64, WRITTEN);
    assert!(shown == std::fs::read(&source).unwrap()[..WRITTEN as usize]);
    assert_eq!(watch.states(), [None], "published without a close");
}

/// The same `cp` run again sends only the parts that BOS does not hold, in the same upload.
#[test]
fn a_second_cp_sends_only_what_bos_does_not_hold() {
    let world = World::new();
    let (mut mount, source) = interrupted(&world, &ARGS);
    mount.remount().unwrap();
    wait_for_state(&mount, KEY, "interrupted");
    let before = world.proxy.take_counts();
    let held: Vec<u32> = (1..=6).filter(|n| before.part(KEY, *n).accepted > 0).collect();
    assert!(held.len() >= 3);
    assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
    let counts = world.proxy.counts();
    for part in held {
        assert_eq!(counts.part(KEY, part).tries, 0, "part {part} again\n{}", counts.log_text());
    }
    assert_eq!(counts.requests(Call::Initiate), 0, "{}", counts.log_text());
}

/// Another file copied under the name of an interrupted one sends what differs and keeps the parts that are equal.
#[test]
fn a_second_cp_of_another_file_of_that_name_sends_what_differs() {
    let world = World::new();
    let (mut mount, source) = interrupted(&world, &ARGS);
    let mut other = std::fs::read(&source).unwrap();
    other[PART as usize + 5] ^= 1;
    let changed = world.path("changed");
    std::fs::write(&changed, &other).unwrap();
    mount.remount().unwrap();
    world.proxy.take_counts();
    assert!(cp(&changed, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    world.assert_object_is_file(KEY, &changed);
    let counts = world.proxy.counts();
    assert!(counts.part(KEY, 2).accepted == 1, "{}", counts.log_text());
    assert_eq!(counts.part(KEY, 1).tries, 0, "{}", counts.log_text());
}

#[test]
fn a_writer_that_goes_on_at_the_end_publishes_the_whole() {
    let world = World::new();
    let (mut mount, source) = interrupted(&world, &ARGS);
    mount.remount().unwrap();
    world.proxy.take_counts();
    let line = format!("tail -c +{} {} >> {}", WRITTEN + 1, source.display(), mount.path(KEY).display());
    let output = crate::support::mounted::sh(&line, WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
    let counts = world.proxy.counts();
    assert_eq!(counts.part(KEY, 1).tries, 0, "{}", counts.log_text());
}

#[test]
fn uploads_complete_publishes_what_is_there() {
    let world = World::new();
    let (mut mount, source) = interrupted(&world, &ARGS);
    mount.remount().unwrap();
    wait_for_state(&mount, KEY, "interrupted");
    bosfs_ok(&mount, &["uploads", "complete", "bkt/huge.iso"]);
    world.wait_object(KEY, WRITTEN, WAIT);
    assert!(world.bucket.get(KEY).unwrap() == std::fs::read(&source).unwrap()[..WRITTEN as usize]);
}

#[test]
fn uploads_abort_drops_the_file_and_its_upload() {
    let world = World::new();
    let (mut mount, _) = interrupted(&world, &ARGS);
    mount.remount().unwrap();
    wait_for_state(&mount, KEY, "interrupted");
    bosfs_ok(&mount, &["uploads", "abort", "bkt/huge.iso", "--yes"]);
    wait_no_journal(&world);
    assert!(world.bucket.uploads("").unwrap().is_empty());
    assert!(world.bucket.head(KEY).unwrap().is_none());
}

/// `--interrupted complete` publishes what a killed writer left, and `--interrupted discard` drops it with its upload.
#[test]
fn the_option_interrupted_complete_publishes_and_discard_drops() {
    let world = World::new();
    let (mut mount, source) = interrupted(&world, &ARGS);
    mount.kill();
    let mount = world.mount(&["--part-size", "5MiB", "--interrupted", "complete"]);
    world.wait_object(KEY, WRITTEN, WAIT);
    assert!(world.bucket.get(KEY).unwrap() == std::fs::read(&source).unwrap()[..WRITTEN as usize]);
    drop(mount);
    let world = World::new();
    let (mut mount, _) = interrupted(&world, &ARGS);
    mount.kill();
    let _mount = world.mount(&["--part-size", "5MiB", "--interrupted", "discard"]);
    wait_no_journal(&world);
    assert!(world.bucket.head(KEY).unwrap().is_none());
    assert!(world.bucket.uploads("").unwrap().is_empty(), "the discarded upload stays");
}

/// If the object that an interrupted writer had opened is changed or removed by somebody else, the file is a
/// `conflict`, and its bytes are kept.
#[test]
fn an_interrupted_file_whose_base_changed_is_a_conflict_and_kept() {
    for gone in [false, true] {
        let world = World::new();
        world.bucket.put(KEY, b"the base").unwrap();
        let (mut mount, _) = interrupted(&world, &ARGS);
        if gone {
            world.bucket.delete(KEY).unwrap();
        } else {
            world.bucket.put(KEY, b"someone else's").unwrap();
        }
        mount.remount().unwrap();
        wait_for_state(&mount, KEY, "conflict");
        assert_eq!(world.journals().len(), 1, "the bytes are gone");
        match gone {
            true => assert!(world.bucket.head(KEY).unwrap().is_none()),
            false => assert_eq!(world.bucket.get(KEY).unwrap(), b"someone else's"),
        }
    }
}

/// An interrupted overwrite leaves the old object until a program closes the new file.
#[test]
fn an_interrupted_overwrite_leaves_the_old_object() {
    let world = World::new();
    world.bucket.put(KEY, b"the base").unwrap();
    let (mut mount, source) = interrupted(&world, &ARGS);
    mount.remount().unwrap();
    wait_for_state(&mount, KEY, "interrupted");
    assert_eq!(world.bucket.get(KEY).unwrap(), b"the base");
    assert!(cp(&source, mount.path(KEY), WAIT).status.success());
    world.assert_object_is_file(KEY, &source);
}

/// `rm` of an interrupted file aborts its upload.
#[test]
fn rm_of_an_interrupted_file_aborts_its_upload() {
    let world = World::new();
    let (mut mount, _) = interrupted(&world, &ARGS);
    mount.remount().unwrap();
    let path = mount.path(KEY);
    crate::support::mounted::within(WAIT, "rm", move || std::fs::remove_file(path).unwrap());
    wait_no_journal(&world);
    assert!(world.bucket.uploads("").unwrap().is_empty());
}

/// With `--adopt` a `cp` goes on with an upload that no journal knows: the parts that BOS holds are not sent again.
#[test]
fn adopt_goes_on_with_an_upload_that_no_journal_knows() {
    let world = World::new();
    let (mut mount, source) = interrupted(&world, &ARGS);
    mount.kill();
    std::fs::remove_dir_all(world.state_dir()).unwrap();
    let before = world.proxy.take_counts();
    let mount = world.mount(&["--part-size", "5MiB", "--adopt"]);
    assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
    let counts = world.proxy.counts();
    for part in (1..=6).filter(|n| before.part(KEY, *n).accepted > 0) {
        assert_eq!(counts.part(KEY, part).tries, 0, "part {part} again\n{}", counts.log_text());
    }
    assert!(world.bucket.uploads("").unwrap().is_empty());
}

/// `bosfs uploads resume BUCKET/KEY --from FILE` finishes an upload that no journal knows, and sends no part that BOS
/// holds.
#[test]
fn resume_from_a_source_file_needs_no_journal() {
    let world = World::new();
    let (mut mount, source) = interrupted(&world, &ARGS);
    mount.kill();
    std::fs::remove_dir_all(world.state_dir()).unwrap();
    let before = world.proxy.take_counts();
    bosfs_ok(&mount, &["uploads", "resume", "bkt/huge.iso", "--from", &source.display().to_string()]);
    world.assert_object_is_file(KEY, &source);
    let counts = world.proxy.counts();
    for part in (1..=6).filter(|n| before.part(KEY, *n).accepted > 0) {
        assert_eq!(counts.part(KEY, part).tries, 0, "part {part} again\n{}", counts.log_text());
    }
}
