//! Rows "spool, map missing or a damaged line" and torn tails: one file fails, it is told, the rest goes on.

use std::io::{Seek, SeekFrom, Write};

use crate::support::mounted::cp;
use crate::support::{Call, HoldAt, Mounted, When, World};
use crate::{KEY, SIZE, WAIT, wait_for_state};

/// Two closed files whose Complete never left; bosfs is killed. Returns the journal directories of [`KEY`] and `other`.
fn two_files(world: &World) -> (Mounted, std::path::PathBuf, std::path::PathBuf) {
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let hold = world.proxy.hold(When::call(Call::Complete), HoldAt::BeforeForward);
    assert!(cp(&source, mount.path(KEY), WAIT).status.success());
    assert!(cp(&source, mount.path("other"), WAIT).status.success());
    assert!(hold.wait_hits(2, WAIT));
    mount.kill();
    world.proxy.clear_rules();
    world.wait_quiet();
    let journals = world.journals();
    assert_eq!(journals.len(), 2);
    let is_key = |dir: &std::path::PathBuf| {
        let text = std::fs::read(dir.join("journal")).unwrap();
        text.windows(KEY.len()).any(|w| w == KEY.as_bytes())
    };
    let ours = journals.iter().find(|dir| is_key(dir)).unwrap().clone();
    let other = journals.iter().find(|dir| !is_key(dir)).unwrap().clone();
    (mount, ours, other)
}

/// If the spool or the map of a file is lost, and its upload with it, that file alone fails: `bosfs status` says so,
/// its journal stays, nothing is published, and other files go on.
#[test]
fn a_missing_spool_or_map_fails_that_file_only() {
    for name in ["spool", "map"] {
        let world = World::new();
        let (mut mount, ours, _) = two_files(&world);
        // The parts are in BOS, but one of them is lost there too: without the spool it cannot be made again.
        std::fs::remove_file(ours.join(name)).unwrap();
        let upload = world.bucket.uploads(KEY).unwrap().remove(0);
        world.bucket.abort(KEY, &upload.upload_id).unwrap();
        mount.remount().unwrap();
        world.wait_object("other", SIZE, WAIT);
        let entry = wait_for_state(&mount, KEY, "failed");
        assert!(entry["last_error"].as_str().is_some_and(|e| e.contains(name) || e.contains("spool")), "{entry}");
        assert!(world.bucket.head(KEY).unwrap().is_none());
        assert!(ours.join("journal").exists(), "the journal of a failed file was thrown away");
    }
}

/// A damaged line within a journal fails that file only: `bosfs status` names it, its spool stays, nothing is
/// published, and other files go on.
#[test]
fn a_damaged_line_before_valid_ones_fails_that_file_only() {
    let world = World::new();
    let (mut mount, ours, _) = two_files(&world);
    let mut file = std::fs::File::options().write(true).open(ours.join("journal")).unwrap();
    file.seek(SeekFrom::Start(40)).unwrap();
    file.write_all(b"#").unwrap();
    mount.remount().unwrap();
    world.wait_object("other", SIZE, WAIT);
    let status = mount.status().to_string();
    assert!(status.contains(ours.file_name().unwrap().to_str().unwrap()), "not told: {status}");
    assert!(ours.join("spool").exists(), "bytes were thrown away");
    assert!(world.bucket.head(KEY).unwrap().is_none());
}

/// A journal whose last line was cut off is used up to there: the file goes on, and no part is sent twice.
#[test]
fn a_torn_tail_is_cut_off_and_the_file_goes_on() {
    for torn in [&b"0000"[..], b"000001f4 deadbeef {\"t\":\"comple", b"\0\0\0\0\0\0\0\0\0\0"] {
        let world = World::new();
        let (mut mount, ours, _) = two_files(&world);
        let mut file = std::fs::File::options().append(true).open(ours.join("journal")).unwrap();
        file.write_all(torn).unwrap();
        mount.remount().unwrap();
        world.wait_object(KEY, SIZE, WAIT);
        world.wait_object("other", SIZE, WAIT);
        world.assert_object_is_file(KEY, &world.path("source"));
        assert_eq!(world.proxy.counts().parts_accepted_twice(KEY), [] as [u32; 0]);
    }
}

#[test]
fn a_directory_without_a_journal_harms_nothing() {
    let world = World::new();
    let (mut mount, _, _) = two_files(&world);
    std::fs::create_dir(world.state_dir().join("uploads/0123456789abcdef")).unwrap();
    mount.remount().unwrap();
    world.wait_object(KEY, SIZE, WAIT);
    world.wait_object("other", SIZE, WAIT);
}
