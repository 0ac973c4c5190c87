//! What was closed, written or set while an earlier state of the same file was on its way, or a moment before the kill.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use crate::support::files::random_bytes;
use crate::support::{Action, Call, HoldAt, KeyWatch, Mounted, When, World};
use crate::{KEY, PART, WAIT, wait_for_state, wait_no_journal};

const ARGS: [&str; 3] = ["--part-size", "5MiB", "--write-back"];
const LEN: usize = 2 * PART as usize + 1000;

/// A file of three parts that is closed and whose Complete is held.
fn closed_and_held(world: &World) -> (Mounted, crate::support::fault::Rule, Vec<u8>) {
    let first = random_bytes(1, LEN);
    let mount = world.mount(&ARGS);
    let held = world.proxy.hold(When::call(Call::Complete).key(KEY).once(), HoldAt::BeforeForward);
    std::fs::write(mount.path(KEY), &first).unwrap();
    assert!(held.wait_hit(WAIT), "{}", mount.log_text());
    (mount, held, first)
}

/// Opens the file once more and writes something else at its start.
fn change(mount: &Mounted, first: &[u8]) -> (std::fs::File, Vec<u8>) {
    let file = OpenOptions::new().write(true).open(mount.path(KEY)).unwrap();
    file.write_all_at(b"changed", 10).unwrap();
    let mut second = first.to_vec();
    second[10..17].copy_from_slice(b"changed");
    (file, second)
}

/// A file that was changed and closed again before its first state was in BOS is published in the newer state after a
/// kill.
#[test]
fn a_file_closed_again_before_its_first_state_is_in_bos_is_published_after_a_kill() {
    let world = World::new();
    let (mut mount, held, first) = closed_and_held(&world);
    let (file, second) = change(&mount, &first);
    drop(file);
    // The release comes behind the close.
    let end = Instant::now() + WAIT;
    while mount.file_status(KEY).is_none_or(|entry| entry["state"] == "writing") {
        assert!(Instant::now() < end, "{}", mount.log_text());
        std::thread::sleep(Duration::from_millis(5));
    }
    mount.kill();
    assert_eq!(held.hits(), 1);
    world.proxy.clear_rules();
    world.wait_quiet();
    mount.remount().unwrap();
    wait_no_journal(&world);
    assert!(world.bucket.get(KEY).unwrap() == second, "{}", mount.log_text());
}

/// What a writer wrote and did not close, after the file had been closed twice, is shown after a kill and not published: the
/// object has the state of the last close.
#[test]
fn what_a_writer_has_not_closed_after_that_is_kept_and_not_published() {
    let world = World::new();
    let (mut mount, held, first) = closed_and_held(&world);
    let (file, second) = change(&mount, &first);
    drop(file);
    let file = OpenOptions::new().write(true).open(mount.path(KEY)).unwrap();
    file.write_all_at(b"unfinished", 100).unwrap();
    mount.kill();
    drop(file);
    assert_eq!(held.hits(), 1);
    world.proxy.clear_rules();
    world.wait_quiet();
    mount.remount().unwrap();
    wait_for_state(&mount, KEY, "interrupted");
    let shown = std::fs::read(mount.path(KEY)).unwrap();
    assert_eq!((&shown[10..17], &shown[100..110]), (&b"changed"[..], &b"unfinished"[..]));
    assert!(world.bucket.get(KEY).unwrap() == second, "{}", mount.log_text());
}

/// The upload of a closed file that somebody aborts is sent again as it was closed, whatever is being written meanwhile; what
/// is being written is published with its close, also over a kill.
#[test]
fn an_upload_that_somebody_aborted_is_sent_again_without_what_is_being_written() {
    for killed in [false, true] {
        let world = World::new();
        let watch = KeyWatch::start(&world.bucket, KEY);
        let (mut mount, held, first) = closed_and_held(&world);
        let (file, second) = change(&mount, &first);
        let upload = world.bucket.uploads("").unwrap().remove(0);
        world.bucket.abort(&upload.key, &upload.upload_id).unwrap();
        held.release();
        let end = Instant::now() + WAIT;
        while !watch.states().iter().any(Option::is_some) {
            assert!(Instant::now() < end, "{}", mount.log_text());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(world.bucket.get(KEY).unwrap() == first, "{}", mount.log_text());
        if killed {
            mount.kill();
            drop(file);
            world.proxy.clear_rules();
            world.wait_quiet();
            mount.remount().unwrap();
            wait_for_state(&mount, KEY, "interrupted");
            assert!(std::fs::read(mount.path(KEY)).unwrap() == second);
            assert!(world.bucket.get(KEY).unwrap() == first, "published without a close");
        } else {
            assert!(world.bucket.get(KEY).unwrap() == first, "published without a close");
            drop(file);
            wait_no_journal(&world);
            assert!(world.bucket.get(KEY).unwrap() == second, "{}", mount.log_text());
        }
    }
}

/// Bytes changed while their part was on its way and unanswered are in the published object, also when bosfs was
/// killed before the answer.
#[test]
fn bytes_changed_while_their_part_was_on_its_way_are_published_after_a_kill() {
    let world = World::new();
    let mut mount = world.mount(&["--part-size", "5MiB"]);
    let sent = world.proxy.hold(When::call(Call::UploadPart).key(KEY).part(1).once(), HoldAt::BeforeAnswer);
    let mut bytes = random_bytes(5, LEN);
    let file = OpenOptions::new().create_new(true).write(true).open(mount.path(KEY)).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    assert!(sent.wait_hit(WAIT), "{}", mount.log_text());
    file.write_all_at(b"changed", 10).unwrap();
    bytes[10..17].copy_from_slice(b"changed");
    mount.kill();
    drop(file);
    world.proxy.clear_rules();
    world.wait_quiet();
    mount.remount().unwrap();
    assert!(std::fs::read(mount.path(KEY)).unwrap() == bytes);
    // Somebody goes on at the end and closes.
    let file = OpenOptions::new().write(true).open(mount.path(KEY)).unwrap();
    file.write_all_at(b"!", LEN as u64).unwrap();
    bytes.push(b'!');
    drop(file);
    world.wait_object(KEY, bytes.len() as u64, WAIT);
    assert!(world.bucket.get(KEY).unwrap() == bytes, "{}", mount.log_text());
}

/// `from` is renamed to `to`, and bosfs is killed while a request of that is held.
pub(crate) fn rename_killed_at(world: &World, mount: &mut Mounted, from: &str, to: &str, call: Call, at: HoldAt) {
    let held = world.proxy.hold(When::call(call).once(), at);
    let (from, to) = (mount.path(from), mount.path(to));
    let renaming = std::thread::spawn(move || std::fs::rename(from, to));
    assert!(held.wait_hit(WAIT), "{}", mount.log_text());
    mount.kill();
    renaming.join().unwrap().unwrap_err();
    world.proxy.clear_rules();
    world.wait_quiet();
    mount.remount().unwrap();
}

/// Waits until `name` has these bytes.
fn wait_shown(mount: &Mounted, name: &str, bytes: &[u8]) {
    let end = Instant::now() + WAIT;
    loop {
        let shown = std::fs::read(mount.path(name));
        if shown.as_ref().is_ok_and(|shown| shown == bytes) {
            return;
        }
        let size = shown.map(|shown| shown.len());
        assert!(Instant::now() < end, "{name} is {size:?}\n{}", mount.log_text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_rename_over_a_file_that_is_being_written_ends_on_the_new_side_after_a_kill() {
    for at in [HoldAt::BeforeForward, HoldAt::BeforeAnswer] {
        let world = World::new();
        let mut mount = world.mount(&[]);
        std::fs::write(mount.path("new"), b"the new content").unwrap();
        std::fs::write(mount.path(KEY), random_bytes(7, 30_000)).unwrap();
        let file = OpenOptions::new().write(true).open(mount.path(KEY)).unwrap();
        file.write_all_at(b"not closed", 9000).unwrap();
        rename_killed_at(&world, &mut mount, "new", KEY, Call::DeleteObject, at);
        drop(file);
        wait_shown(&mount, KEY, b"the new content");
        wait_no_journal(&world);
        assert!(!mount.path("new").exists());
        assert_eq!(world.bucket.list("").unwrap(), [KEY]);
        assert_eq!(world.bucket.get(KEY).unwrap(), b"the new content");
    }
}

#[test]
fn what_is_being_written_goes_along_with_a_rename_that_a_kill_cut_off() {
    let moments = [
        (Call::CopyObject, HoldAt::BeforeForward),
        (Call::CopyObject, HoldAt::BeforeAnswer),
        (Call::DeleteObject, HoldAt::BeforeForward),
        (Call::DeleteObject, HoldAt::BeforeAnswer),
    ];
    for (call, at) in moments {
        let world = World::new();
        let mut mount = world.mount(&[]);
        let mut bytes = random_bytes(8, 30_000);
        std::fs::write(mount.path("old"), &bytes).unwrap();
        let file = OpenOptions::new().write(true).open(mount.path("old")).unwrap();
        file.write_all_at(b"not closed", 9000).unwrap();
        rename_killed_at(&world, &mut mount, "old", KEY, call, at);
        drop(file);
        let closed = bytes.clone();
        bytes[9000..9010].copy_from_slice(b"not closed");
        wait_shown(&mount, KEY, &bytes);
        assert!(!mount.path("old").exists(), "{call} {at:?}");
        assert_eq!(world.bucket.list("").unwrap(), [KEY], "{call} {at:?}");
        assert!(world.bucket.get(KEY).unwrap() == closed, "published without a close");
        // Somebody goes on with it.
        OpenOptions::new().write(true).open(mount.path(KEY)).unwrap().write_all_at(b"closed now", 0).unwrap();
        bytes[..10].copy_from_slice(b"closed now");
        wait_no_journal(&world);
        assert!(world.bucket.get(KEY).unwrap() == bytes, "{}", mount.log_text());
    }
}

/// A `write` that was cut off by a kill within a block may leave the bytes that it brought up to the end of that
/// block, but no zeros behind them; a size that was set by `ftruncate` stays.
#[test]
fn a_write_that_was_cut_off_leaves_no_zeros_at_the_end() {
    let world = World::new();
    let mut mount = world.mount(&ARGS);
    let file = OpenOptions::new().create_new(true).write(true).open(mount.path(KEY)).unwrap();
    file.write_all_at(&random_bytes(3, 5000), 0).unwrap();
    mount.kill();
    drop(file);
    // As if it had been killed between the spool and the map.
    let spool = world.journals().remove(0).join("spool");
    let spool = OpenOptions::new().write(true).open(spool).unwrap();
    assert_eq!(spool.metadata().unwrap().len(), 5000);
    spool.write_all_at(&random_bytes(4, 60_000), 5000).unwrap();
    mount.remount().unwrap();
    let shown = std::fs::read(mount.path(KEY)).unwrap();
    assert_eq!(shown.len(), 8192, "up to the last block that the map knows, as far as the spool reached");
    assert!(shown[..5000] == random_bytes(3, 5000) && shown[5000..] == random_bytes(4, 60_000)[..3192]);
    drop(spool);
    mount.kill();
    // What was extended on purpose stays.
    mount.remount().unwrap();
    let file = OpenOptions::new().write(true).open(mount.path(KEY)).unwrap();
    file.set_len(100_000).unwrap();
    mount.kill();
    drop(file);
    mount.remount().unwrap();
    assert_eq!(std::fs::metadata(mount.path(KEY)).unwrap().len(), 100_000);
}

/// A `write` over an object that was cut off by a kill leaves each of its bytes old or new: those that the object alone
/// had stay old.
#[test]
fn a_write_over_an_object_that_was_cut_off_leaves_each_byte_old_or_new() {
    let world = World::new();
    world.bucket.put(KEY, b"o").unwrap();
    let mut mount = world.mount(&ARGS);
    let file = OpenOptions::new().write(true).open(mount.path(KEY)).unwrap();
    file.write_all_at(&[b'1'; 10_000], 1).unwrap();
    mount.kill();
    drop(file);
    // As if it had been killed between the spool and the map.
    let spool = world.journals().remove(0).join("spool");
    OpenOptions::new().write(true).open(spool).unwrap().write_all_at(&[b'2'; 6000], 0).unwrap();
    mount.remount().unwrap();
    let shown = std::fs::read(mount.path(KEY)).unwrap();
    assert_eq!(shown.len(), 10_001);
    assert!(shown[0] == b'o' && shown[1..6000] == [b'2'; 5999] && shown[6000..] == [b'1'; 4001], "{:?}", &shown[..3]);
}

/// A copy within the mount that is cut off by a kill is there as a whole or not at all: never zeros in place of its bytes.
#[test]
fn a_copy_that_was_cut_off_leaves_no_zeros() {
    let world = World::new();
    let bytes = random_bytes(10, 100_000);
    world.bucket.put("source", &bytes).unwrap();
    let mut mount = world.mount(&ARGS);
    let source = std::fs::File::open(mount.path("source")).unwrap();
    let target = OpenOptions::new().create_new(true).write(true).open(mount.path(KEY)).unwrap();
    assert_eq!(rustix::fs::copy_file_range(&source, None, &target, None, bytes.len()).unwrap(), bytes.len());
    mount.kill();
    drop((source, target));
    let dir = world.journals().remove(0);
    let saved: Vec<_> = ["map", "spool"].map(|name| (name, std::fs::read(dir.join(name)).unwrap())).into();
    let lines = std::fs::read_to_string(dir.join("journal")).unwrap();
    let count = lines.lines().count();
    let mut seen = Vec::new();
    for kept in 1..=count {
        // As if it had been killed behind each of its lines.
        std::fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in &saved {
            let cut = *name == "spool" && kept < count;
            std::fs::write(dir.join(name), if cut { &[] } else { &bytes[..] }).unwrap();
        }
        let beginning: String = lines.split_inclusive('\n').take(kept).collect();
        std::fs::write(dir.join("journal"), beginning).unwrap();
        mount.remount().unwrap();
        let shown = std::fs::read(mount.path(KEY)).unwrap_or_default();
        assert!(shown.is_empty() || shown == bytes, "{kept} of {count} lines: {} bytes\n{lines}", shown.len());
        seen.push(shown.len());
        mount.kill();
    }
    assert_eq!((seen[0], seen[count - 1]), (0, bytes.len()), "{seen:?}\n{lines}");
}

/// A copy within the mount whose CopyObject must be tried again is published as it was closed, and what is written
/// into the file meanwhile comes after it.
#[test]
fn a_copy_that_is_tried_again_is_not_changed_by_what_is_written_meanwhile() {
    let world = World::new();
    world.bucket.put("source", b"the bytes of the source").unwrap();
    let mount = world.mount(&["--write-back"]);
    let busy = world.proxy.fault(When::call(Call::CopyObject).times(3), Action::error(503, "SlowDown"));
    let watch = KeyWatch::start(&world.bucket, KEY);
    let source = std::fs::File::open(mount.path("source")).unwrap();
    let target = OpenOptions::new().create_new(true).write(true).open(mount.path(KEY)).unwrap();
    let copied = rustix::fs::copy_file_range(&source, None, &target, None, 23).unwrap();
    assert_eq!(copied, 23);
    drop(target);
    assert!(busy.wait_hit(WAIT));
    std::fs::write(mount.path(KEY), b"x").unwrap();
    world.wait_object(KEY, 1, WAIT);
    assert_eq!(world.bucket.get(KEY).unwrap(), b"x");
    assert_eq!(busy.hits(), 3);
    assert_eq!(watch.half_files(&[23, 1]), [] as [u64; 0]);
}

/// A file that recovery publishes while its directory is being looked at is in the next listing of that directory.
#[test]
fn a_file_that_recovery_publishes_while_its_directory_is_looked_at_is_listed() {
    const NEW: &str = "d/new";
    let world = World::new();
    let mut mount = world.mount(&["--write-back"]);
    std::fs::create_dir(mount.path("d")).unwrap();
    std::fs::write(mount.path("d/old"), b"old").unwrap();
    world.wait_object("d/old", 3, WAIT);
    let put = world.proxy.hold(When::call(Call::PutObject).key(NEW).once(), HoldAt::BeforeForward);
    std::fs::write(mount.path(NEW), b"new").unwrap();
    assert!(put.wait_hit(WAIT), "{}", mount.log_text());
    // What is remembered of the directory reaches the disk within half a second; then a look at it is one at its listing.
    std::thread::sleep(Duration::from_millis(600));
    mount.kill();
    put.drop_held();
    world.proxy.clear_rules();
    world.wait_quiet();

    let put = world.proxy.hold(When::call(Call::PutObject).key(NEW).once(), HoldAt::BeforeForward);
    let list = When::call(Call::ListObjects).target_contains("prefix=d%2F").once();
    let list = world.proxy.hold(list, HoldAt::BeforeAnswer);
    mount.remount().unwrap();
    let dir = mount.path("d");
    let looking = std::thread::spawn(move || std::fs::metadata(dir).map(|meta| meta.is_dir()));
    assert!(list.wait_hit(WAIT) && put.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    put.release();
    wait_no_journal(&world);
    list.release();
    assert!(looking.join().unwrap().unwrap());
    let names = std::fs::read_dir(mount.path("d")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["new", "old"], "{}", world.proxy.counts().log_text());
}

/// A copy within the mount that nobody closed has all its bytes after a kill in the middle of the removal of its source.
#[test]
fn an_unfinished_copy_has_its_bytes_after_a_kill_in_the_removal_of_its_source() {
    let world = World::new();
    let mut expected = random_bytes(8, 10_000);
    world.bucket.put("source", &expected).unwrap();
    let mut mount = world.mount(&ARGS);
    let source = std::fs::File::open(mount.path("source")).unwrap();
    let copy = OpenOptions::new().create_new(true).write(true).open(mount.path(KEY)).unwrap();
    assert_eq!(rustix::fs::copy_file_range(&source, None, &copy, None, expected.len()).unwrap(), expected.len());
    // Within blocks whose other bytes are the source's, and behind its end.
    copy.write_all_at(b"changed", 5000).unwrap();
    copy.write_all_at(b"and longer", 10_100).unwrap();
    expected[5000..5007].copy_from_slice(b"changed");
    expected.resize(10_100, 0);
    expected.extend_from_slice(b"and longer");
    drop(source);
    let removed = world.proxy.hold(When::call(Call::DeleteObject).key("source").once(), HoldAt::BeforeAnswer);
    let name = mount.path("source");
    let removing = std::thread::spawn(move || std::fs::remove_file(name));
    assert!(removed.wait_hit(WAIT), "{}", mount.log_text());
    mount.kill();
    let _ = removing.join();
    drop(copy);
    world.proxy.clear_rules();
    world.wait_quiet();
    assert!(world.bucket.head("source").unwrap().is_none());
    mount.remount().unwrap();
    assert!(std::fs::read(mount.path(KEY)).unwrap() == expected, "{}", mount.log_text());
}

/// A file that was closed, and over whose name an object was renamed, gives way to that one, also where bosfs was killed in
/// the middle of the rename and the next mount goes on with both.
#[test]
fn a_rename_over_a_file_on_its_way_counts_after_a_kill_too() {
    let world = World::new();
    let mut mount = world.mount(&ARGS);
    world.bucket.put("other", b"the renamed one").unwrap();
    let parts = world.proxy.hold(When::call(Call::UploadPart).key(KEY), HoldAt::BeforeForward);
    std::fs::write(mount.path(KEY), random_bytes(9, LEN)).unwrap();
    assert!(parts.wait_hit(WAIT), "{}", mount.log_text());
    let removed = world.proxy.hold(When::call(Call::DeleteObject).key("other").once(), HoldAt::BeforeAnswer);
    let (from, to) = (mount.path("other"), mount.path(KEY));
    let renaming = std::thread::spawn(move || std::fs::rename(from, to));
    assert!(removed.wait_hit(WAIT), "{}", mount.log_text());
    mount.kill();
    let _ = renaming.join();
    world.proxy.clear_rules();
    world.wait_quiet();

    // The file is about to be completed when the rename goes on.
    let complete = world.proxy.hold(When::call(Call::Complete).key(KEY).once(), HoldAt::BeforeForward);
    let renamed = world.proxy.hold(When::call(Call::HeadObject).key("other").once(), HoldAt::BeforeForward);
    mount.remount().unwrap();
    assert!(complete.wait_hit(WAIT) && renamed.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    renamed.release();
    std::thread::sleep(Duration::from_millis(300));
    complete.release();
    wait_no_journal(&world);
    assert_eq!(world.bucket.get(KEY).unwrap(), b"the renamed one", "{}", mount.log_text());
    assert_eq!(std::fs::read(mount.path(KEY)).unwrap(), b"the renamed one", "{}", mount.log_text());
    assert!(world.bucket.head("other").unwrap().is_none() && world.bucket.uploads("").unwrap().is_empty());
}
