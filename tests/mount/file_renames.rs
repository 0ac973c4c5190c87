//! Renames of single files in every state of the file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};

use crate::support::call::Call;
use crate::support::files::random_bytes;
use crate::support::world::World;
use crate::support::{HoldAt, When};
use crate::{PART, SMALL_PARTS, mount_afresh, shell, unmount};

/// A rename of a file that is new here costs nothing: what is written before and after it goes by one PutObject under
/// the new name.
#[test]
fn a_new_file_that_is_being_written_just_changes_its_name() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    let bytes = random_bytes(1, 1 << 20);
    let mut file = File::create(mount.path("a")).unwrap();
    file.write_all(&bytes[..300_000]).unwrap();
    std::fs::rename(mount.path("a"), mount.path("b")).unwrap();
    file.write_all(&bytes[300_000..]).unwrap();
    drop(file);
    assert!(!mount.path("a").exists());
    assert!(std::fs::read(mount.path("b")).unwrap() == bytes);
    unmount(&mut mount);
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::PutObject), 1, "{}", counts.log_text());
    assert_eq!(counts.requests(Call::CopyObject) + counts.requests(Call::DeleteObject), 0);
    assert!(world.bucket.get("b").unwrap() == bytes);
    assert!(world.bucket.head("a").unwrap().is_none());
}

#[test]
fn a_half_sent_file_is_sent_again_under_its_new_name() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    let bytes = random_bytes(2, 4 * PART as usize + 77);
    let mut file = File::create(mount.path("a")).unwrap();
    file.write_all(&bytes[..3 * PART as usize]).unwrap();
    world.wait_for_requests(Call::UploadPart, 2);
    std::fs::rename(mount.path("a"), mount.path("b")).unwrap();
    file.write_all(&bytes[3 * PART as usize..]).unwrap();
    drop(file);
    unmount(&mut mount);
    assert!(world.bucket.get("b").unwrap() == bytes);
    assert!(world.bucket.head("a").unwrap().is_none());
    assert!(world.bucket.uploads("").unwrap().is_empty(), "the upload under the old name is gone");
}

/// A rename of an object that is being changed takes the unpublished changes along; they are published by the close.
#[test]
fn an_object_that_is_being_changed_takes_its_changes_along() {
    let world = World::new();
    let mut bytes = random_bytes(3, 3 * PART as usize);
    world.bucket.put("a", &bytes).unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    let mut file = OpenOptions::new().read(true).write(true).open(mount.path("a")).unwrap();
    file.seek(SeekFrom::Start(1000)).unwrap();
    file.write_all(b"before").unwrap();
    bytes[1000..1006].copy_from_slice(b"before");
    std::fs::rename(mount.path("a"), mount.path("b")).unwrap();
    assert!(world.bucket.get("b").unwrap()[1000..1006] != *b"before", "not closed, not published");
    file.seek(SeekFrom::Start(2 * PART)).unwrap();
    file.write_all(b"after").unwrap();
    bytes[2 * PART as usize..][..5].copy_from_slice(b"after");
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut seen = Vec::new();
    file.read_to_end(&mut seen).unwrap();
    assert!(seen == bytes, "through the handle that was open before");
    drop(file);
    unmount(&mut mount);
    assert!(world.bucket.get("b").unwrap() == bytes);
    assert!(world.bucket.head("a").unwrap().is_none());
}

#[test]
fn readers_of_a_renamed_object_go_on() {
    let world = World::new();
    let bytes = random_bytes(4, 3 << 20);
    world.bucket.put("a", &bytes).unwrap();
    let mount = world.mount(&SMALL_PARTS);
    let mut file = File::open(mount.path("a")).unwrap();
    let mut seen = vec![0; 1000];
    file.read_exact(&mut seen).unwrap();
    std::fs::rename(mount.path("a"), mount.path("b")).unwrap();
    file.read_to_end(&mut seen).unwrap();
    assert!(seen == bytes);
}

/// A rename over a file that somebody has open leaves the open handles with the old bytes.
#[test]
fn a_rename_over_an_open_file_leaves_its_handles_with_the_old_bytes() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    let mut old = File::options().create(true).truncate(true).read(true).write(true).open(mount.path("t")).unwrap();
    old.write_all(b"old and being written").unwrap();
    std::fs::write(mount.path("n"), b"new").unwrap();
    std::fs::rename(mount.path("n"), mount.path("t")).unwrap();
    old.write_all(b", still").unwrap();
    old.seek(SeekFrom::Start(0)).unwrap();
    let mut seen = String::new();
    old.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "old and being written, still");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&old.metadata().unwrap()), 0);
    assert_eq!(std::fs::read(mount.path("t")).unwrap(), b"new");
    drop(old);
    unmount(&mut mount);
    assert_eq!(world.bucket.get("t").unwrap(), b"new");
    assert_eq!(world.bucket.list("").unwrap(), ["t"]);
}

#[test]
fn attributes_that_are_not_sent_yet_travel_with_the_copy() {
    let world = World::new();
    world.bucket.put("a", b"x").unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    let dir = mount.dir().display().to_string();
    shell(&format!("chmod 751 {dir}/a && mv {dir}/a {dir}/b"));
    unmount(&mut mount);
    assert_eq!(world.proxy.counts().requests(Call::CopyObject), 1, "{}", world.proxy.counts().log_text());
    let mount = mount_afresh(&world);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(mount.path("b")).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o751);
}

/// A file in BOS that is being written and gets the name of another one takes what is written along.
#[test]
fn what_is_being_written_goes_along_with_a_rename_over_another_file() {
    for args in [&SMALL_PARTS[..], &[&SMALL_PARTS[..], &["--write-back"]].concat()] {
        let world = World::new();
        let mut mount = world.mount(args);
        let bytes = random_bytes(4, 100_000);
        for name in ["a", "b"] {
            fs::write(mount.path(name), &bytes[..50_000]).unwrap();
        }
        let mut file = OpenOptions::new().append(true).open(mount.path("a")).unwrap();
        file.write_all(&bytes[50_000..80_000]).unwrap();
        fs::rename(mount.path("a"), mount.path("b")).unwrap();
        assert!(fs::read(mount.path("b")).unwrap() == bytes[..80_000]);
        file.write_all(&bytes[80_000..]).unwrap();
        drop(file);
        unmount(&mut mount);
        assert!(world.bucket.get("b").unwrap() == bytes, "{args:?}");
        assert_eq!(world.bucket.list("").unwrap(), ["b"]);
    }
}

/// Attributes that were set on a file right before another one with the same content was renamed over it are not sent to
/// the other one, however long the rename takes.
#[test]
fn attributes_of_a_replaced_file_do_not_come_behind_the_rename() {
    let world = World::new();
    for key in ["a", "b"] {
        world.bucket.put(key, b"x").unwrap();
    }
    let mut mount = world.mount(&SMALL_PARTS);
    let dir = mount.dir().display().to_string();
    let held = world.proxy.hold(When::call(Call::DeleteObject).key("a").once(), HoldAt::BeforeForward);
    let renaming =
        std::thread::spawn(move || shell(&format!("chmod 711 {dir}/b && chmod 751 {dir}/a && mv {dir}/a {dir}/b")));
    assert!(held.wait_hit(crate::WAIT), "{}", mount.log_text());
    // Attributes are gathered for half a second.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    held.release();
    renaming.join().unwrap();
    unmount(&mut mount);
    assert_eq!(world.proxy.counts().requests(Call::CopyObject), 1, "{}", world.proxy.counts().log_text());
    let mount = mount_afresh(&world);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(mount.path("b")).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o751);
}

#[test]
fn an_interrupted_file_keeps_being_one_under_its_new_name() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    let mut writer = crate::support::mounted::SlowWriter::start(&mount.path("a"));
    let source = world.random_file("source", 5, 2 * PART);
    writer.feed(&source, 2 * PART).unwrap();
    writer.end_by(rustix::process::Signal::KILL);
    mount.wait_state("a", crate::WAIT, |entry| entry.is_some_and(|entry| entry["state"] == "interrupted"));
    std::fs::rename(mount.path("a"), mount.path("b")).unwrap();
    mount.kill();
    let mount = world.mount(&SMALL_PARTS);
    assert!(!mount.path("a").exists());
    let (kept, source) = (std::fs::read(mount.path("b")).unwrap(), std::fs::read(&source).unwrap());
    assert!(kept.len() as u64 >= PART && source.starts_with(&kept), "{} bytes", kept.len());
    assert!(world.bucket.list("").unwrap().is_empty(), "not published");
}

#[test]
fn what_others_wrote_under_the_new_name_is_seen_before_it_is_replaced() {
    let world = World::new();
    world.bucket.put("a", b"the file").unwrap();
    world.bucket.put("b", b"as it was seen").unwrap();
    let mount = world.mount(&["--metadata-ttl", "60s"]);
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"as it was seen");
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"the file");
    world.bucket.put("b", b"by somebody else").unwrap();
    // The kernel asks again with what is there now.
    fs::rename(mount.path("a"), mount.path("b")).unwrap();
    assert_eq!(world.bucket.get("b").unwrap(), b"the file");
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"the file");
    assert_eq!(world.bucket.list("").unwrap(), ["b"]);
}

/// A rename of a file that is cut off by a kill at its copy or its deletion is finished by the next mount.
#[test]
fn a_rename_of_a_file_that_is_killed_is_finished() {
    use crate::support::{HoldAt, When};
    for (call, hold) in [
        (Call::CopyObject, HoldAt::BeforeForward),
        (Call::CopyObject, HoldAt::BeforeAnswer),
        (Call::DeleteObject, HoldAt::BeforeForward),
        (Call::DeleteObject, HoldAt::BeforeAnswer),
    ] {
        let world = World::new();
        world.bucket.put("a", b"the file").unwrap();
        let mut mount = world.mount(&[]);
        let rule = world.proxy.hold(When::call(call), hold);
        let (a, b) = (mount.path("a"), mount.path("b"));
        let renaming = std::thread::spawn(move || fs::rename(a, b));
        assert!(rule.wait_hit(crate::WAIT));
        mount.kill();
        let _ = crate::timed(move || renaming.join());
        world.proxy.clear_rules();
        world.wait_quiet();
        mount.remount().unwrap();
        assert!(mount.umount(crate::WAIT).status.success());
        assert_eq!(world.bucket.list("").unwrap(), ["b"], "{call} {hold:?}");
        assert_eq!(world.bucket.get("b").unwrap(), b"the file");
    }
}

#[test]
fn a_new_file_under_the_name_of_an_unlinked_one_can_be_renamed() {
    let world = World::new();
    world.bucket.put("a", b"old").unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    let old = OpenOptions::new().read(true).write(true).open(mount.path("a")).unwrap();
    std::fs::remove_file(mount.path("a")).unwrap();
    let mut new = File::create(mount.path("a")).unwrap();
    new.write_all(b"new").unwrap();
    let (from, to) = (mount.path("a"), mount.path("b"));
    crate::timed(move || std::fs::rename(from, to)).unwrap();
    drop((old, new));
    unmount(&mut mount);
    assert_eq!(world.bucket.list("").unwrap(), ["b"]);
    assert_eq!(world.bucket.get("b").unwrap(), b"new");
}

#[test]
fn attributes_set_between_close_and_rename_are_shown_and_kept() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    std::fs::write(mount.path("a"), random_bytes(6, 2 * PART as usize)).unwrap();
    let dir = mount.dir().display().to_string();
    let look = |dir: &str| shell(&format!("stat -c '%a %Y' {dir}/b"));
    shell(&format!("chmod 444 {dir}/a && touch -d @1500000000 {dir}/a && mv {dir}/a {dir}/b"));
    assert_eq!(look(&dir), "444 1500000000\n");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(look(&dir), "444 1500000000\n", "asked again");
    unmount(&mut mount);
    let mount = mount_afresh(&world);
    assert_eq!(look(&mount.dir().display().to_string()), "444 1500000000\n");
}

/// `bosfs umount` ends the upload of a file that was replaced by a rename while its upload was being begun.
#[test]
fn umount_ends_the_upload_of_a_file_that_a_rename_replaced() {
    use crate::support::{HoldAt, When};
    let world = World::new();
    let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let begun = world.proxy.hold(When::call(Call::Initiate).key("f").once(), HoldAt::BeforeAnswer);
    fs::write(mount.path("f"), random_bytes(7, 2 * PART as usize)).unwrap();
    assert!(begun.wait_hit(crate::WAIT), "{}", mount.log_text());
    fs::write(mount.path("g"), b"instead").unwrap();
    fs::rename(mount.path("g"), mount.path("f")).unwrap();
    world.wait_object("f", 7, crate::WAIT);
    let answering = std::thread::spawn(move || {
        // Long after an unmount that waits for nothing.
        std::thread::sleep(std::time::Duration::from_secs(1));
        begun.release();
    });
    unmount(&mut mount);
    answering.join().unwrap();
    assert_eq!(world.bucket.get("f").unwrap(), b"instead");
    assert!(world.bucket.uploads("").unwrap().is_empty(), "{}", world.proxy.counts().log_text());
    assert!(world.journals().is_empty());
}
