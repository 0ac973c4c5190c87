//! Files that are written to be renamed, and what the guess about them costs when it is wrong.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::support::call::Call;
use crate::support::files::random_bytes;
use crate::support::{HoldAt, MappedFile, When, World};
use crate::{PART, SMALL_PARTS, WAIT, shell, unmount};

/// What mkstemp(3) does.
fn mkstemp(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).unwrap()
}

/// rsync's temporaries (`.NAME.XXXXXX`) are sent to `NAME` from the start and completed by their rename: no copy, no
/// deletion.
#[test]
fn rsyncs_temporaries_are_completed_under_the_final_name_without_a_copy() {
    let world = World::new();
    let big = random_bytes(1, 3 * PART as usize + 5);
    std::fs::create_dir(world.path("tree")).unwrap();
    std::fs::write(world.path("tree/big"), &big).unwrap();
    for i in 0..20 {
        std::fs::write(world.path(&format!("tree/small-{i}")), random_bytes(i, 1000)).unwrap();
    }
    let mut mount = world.mount(&SMALL_PARTS);
    shell(&format!("rsync -a {}/ {}/", world.path("tree").display(), mount.dir().display()));
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::PutObject), 20, "{}", counts.log_text());
    assert_eq!(counts.requests(Call::Initiate), 1);
    assert_eq!(counts.requests(Call::UploadPart), 4);
    assert_eq!(counts.requests(Call::Complete), 1);
    assert_eq!(counts.requests(Call::CopyObject) + counts.requests(Call::DeleteObject), 0, "{}", counts.log_text());
    assert!(world.bucket.get("big").unwrap() == big, "published when rsync has ended");
    assert!(mount.file_status("big").is_none_or(|entry| entry["state"] == "done"));
    unmount(&mut mount);
    assert_eq!(world.bucket.list("").unwrap().len(), 21);
}

#[test]
fn a_temporary_renamed_elsewhere_is_sent_again_from_the_spool() {
    let world = World::new();
    let bytes = random_bytes(2, 2 * PART as usize + 9);
    let mut mount = world.mount(&SMALL_PARTS);
    let mut file = mkstemp(&mount.path(".wanted.AbCd12"));
    file.write_all(&bytes).unwrap();
    drop(file);
    world.wait_for_requests(Call::UploadPart, 1);
    assert_eq!(world.bucket.uploads("").unwrap()[0].key, "wanted", "sent to the name that was expected");
    std::fs::rename(mount.path(".wanted.AbCd12"), mount.path("other")).unwrap();
    assert!(world.bucket.get("other").unwrap() == bytes);
    unmount(&mut mount);
    assert_eq!(world.bucket.list("").unwrap(), ["other"]);
    assert!(world.bucket.uploads("").unwrap().is_empty());
}

/// The rename of a closed temporary returns only once the object is there, also if the release of its handle, which comes
/// behind the close, is still to arrive.
#[test]
fn the_rename_of_a_closed_temporary_waits_for_the_object_before_its_release() {
    let world = World::new();
    let mount = world.mount(&[]);
    let put = world.proxy.hold(When::call(Call::PutObject).key("f").once(), HoldAt::BeforeForward);
    let closed = MappedFile::closed(&mount.path(".f.AbCd12"), "closed");
    let (temporary, name) = (mount.path(".f.AbCd12"), mount.path("f"));
    let renaming = std::thread::spawn(move || std::fs::rename(temporary, name));
    assert!(put.wait_hit(WAIT), "the rename does not publish\n{}", mount.log_text());
    put.release();
    renaming.join().unwrap().unwrap();
    assert_eq!(world.bucket.get("f").unwrap(), b"closed", "not there when the rename had returned");
    closed.release(WAIT);
    assert_eq!(world.proxy.counts().requests(Call::PutObject), 1, "{}", world.proxy.counts().log_text());
}

/// A temporary that is never renamed waits for its rename, and is then published under its own name.
#[test]
fn a_temporary_that_is_never_renamed_is_published_under_its_own_name() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    mkstemp(&mount.path(".name.AbCd12")).write_all(b"small").unwrap();
    let large = random_bytes(3, 2 * PART as usize);
    mkstemp(&mount.path(".big.AbCd12")).write_all(&large).unwrap();
    std::fs::write(mount.path("download.part"), b"part").unwrap();
    assert_eq!(world.bucket.list("").unwrap(), Vec::<String>::new(), "they wait for their rename");
    mount.wait_settled(".name.AbCd12", WAIT);
    mount.wait_settled(".big.AbCd12", WAIT);
    mount.wait_settled("download.part", WAIT);
    assert_eq!(world.bucket.get(".name.AbCd12").unwrap(), b"small");
    assert!(world.bucket.get(".big.AbCd12").unwrap() == large);
    assert_eq!(world.bucket.get("download.part").unwrap(), b"part");
    unmount(&mut mount);
    assert!(world.bucket.uploads("").unwrap().is_empty());
}

/// `bosfs umount`, and the mount after a kill, publish temporaries that waited for their rename under their own names.
#[test]
fn umount_and_a_kill_publish_what_waited_for_its_rename() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    std::fs::write(mount.path("a.tmp"), b"one").unwrap();
    unmount(&mut mount);
    assert_eq!(world.bucket.get("a.tmp").unwrap(), b"one");
    let mut mount = world.mount(&SMALL_PARTS);
    mkstemp(&mount.path(".b.AbCd12")).write_all(&random_bytes(4, 2 * PART as usize)).unwrap();
    std::fs::write(mount.path("c.tmp"), b"three").unwrap();
    mount.kill();
    assert_eq!(world.bucket.list("").unwrap(), ["a.tmp"]);
    let mut mount = world.mount(&SMALL_PARTS);
    unmount(&mut mount);
    assert_eq!(world.bucket.list("").unwrap(), [".b.AbCd12", "a.tmp", "c.tmp"]);
    assert!(world.bucket.get(".b.AbCd12").unwrap() == random_bytes(4, 2 * PART as usize));
    assert!(world.bucket.uploads("").unwrap().is_empty());
}

/// A temporary never replaces `NAME` before its rename.
#[test]
fn a_temporary_renamed_over_an_existing_file_replaces_it() {
    let world = World::new();
    world.bucket.put("f", b"before").unwrap();
    let bytes = random_bytes(5, 2 * PART as usize);
    let mut mount = world.mount(&SMALL_PARTS);
    mkstemp(&mount.path(".f.AbCd12")).write_all(&bytes).unwrap();
    assert_eq!(world.bucket.get("f").unwrap(), b"before", "never completed before the rename");
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), b"before");
    std::fs::rename(mount.path(".f.AbCd12"), mount.path("f")).unwrap();
    assert!(world.bucket.get("f").unwrap() == bytes);
    assert!(std::fs::read(mount.path("f")).unwrap() == bytes);
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::UploadPart), 2, "{}", counts.log_text());
    unmount(&mut mount);
}

#[test]
fn two_temporaries_of_one_name_have_uploads_of_their_own() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    let (one, two) = (random_bytes(6, 2 * PART as usize + 1), random_bytes(7, 2 * PART as usize + 2));
    let (mut a, mut b) = (mkstemp(&mount.path(".f.aaaaa1")), mkstemp(&mount.path(".f.bbbbb2")));
    for i in 0..2 {
        let part = i * PART as usize..(i + 1) * PART as usize;
        a.write_all(&one[part.clone()]).unwrap();
        b.write_all(&two[part]).unwrap();
    }
    a.write_all(&one[2 * PART as usize..]).unwrap();
    b.write_all(&two[2 * PART as usize..]).unwrap();
    drop((a, b));
    std::fs::rename(mount.path(".f.aaaaa1"), mount.path("f")).unwrap();
    assert!(world.bucket.get("f").unwrap() == one);
    std::fs::rename(mount.path(".f.bbbbb2"), mount.path("f")).unwrap();
    assert!(world.bucket.get("f").unwrap() == two);
    unmount(&mut mount);
    assert_eq!(world.bucket.list("").unwrap(), ["f"]);
    assert!(world.bucket.uploads("").unwrap().is_empty());
}

#[test]
fn an_unlinked_temporary_leaves_neither_object_nor_upload() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    mkstemp(&mount.path(".f.AbCd12")).write_all(&random_bytes(8, 2 * PART as usize)).unwrap();
    world.wait_for_requests(Call::UploadPart, 1);
    std::fs::remove_file(mount.path(".f.AbCd12")).unwrap();
    unmount(&mut mount);
    assert!(world.bucket.list("").unwrap().is_empty());
    assert!(world.bucket.uploads("").unwrap().is_empty());
}

#[test]
fn a_kill_between_the_temporarys_end_and_its_rename_keeps_the_parts_and_the_bytes() {
    let world = World::new();
    let source = world.random_file("big", 9, 4 * PART);
    let mut mount = world.mount(&SMALL_PARTS);
    let hold = world
        .proxy
        .hold(crate::support::fault::When::call(Call::Complete), crate::support::fault::HoldAt::BeforeAnswer);
    let mut rsync = std::process::Command::new("rsync").arg("-a").arg(&source).arg(mount.dir()).spawn().unwrap();
    assert!(hold.wait_hits(1, WAIT), "the rename waits for its Complete");
    mount.kill();
    hold.drop_held();
    crate::support::mounted::wait_child(&mut rsync, WAIT);
    world.proxy.clear_rules();
    let mut mount = world.mount(&SMALL_PARTS);
    mount.wait_settled("big", Duration::from_secs(30));
    unmount(&mut mount);
    world.assert_object_is_file("big", &source);
    assert_eq!(world.bucket.list("").unwrap(), ["big"]);
    assert!(world.bucket.uploads("").unwrap().is_empty());
}

#[test]
fn editors_and_lock_files_cost_one_put() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    let dir = mount.dir().display().to_string();
    std::fs::write(mount.path("f"), b"one two").unwrap();
    world.proxy.take_counts();
    shell(&format!("sed -i s/two/three/ {dir}/f"));
    std::fs::write(mount.path("index.lock"), b"index").unwrap();
    std::fs::rename(mount.path("index.lock"), mount.path("index")).unwrap();
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::PutObject), 2, "{}", counts.log_text());
    assert_eq!(counts.requests(Call::CopyObject) + counts.requests(Call::DeleteObject), 0, "{}", counts.log_text());
    assert_eq!(world.bucket.get("f").unwrap(), b"one three");
    unmount(&mut mount);
    assert_eq!(world.bucket.list("").unwrap(), ["f", "index"]);
}

#[test]
fn a_rename_that_the_publication_overtakes_does_not_fail() {
    let world = World::new();
    let mut mount = world.mount(&["--write-back"]);
    for i in 0..100 {
        let temporary = mount.path(&format!(".f{i}.AbCd12"));
        mkstemp(&temporary).write_all(&random_bytes(i, 3000)).unwrap();
        std::fs::rename(&temporary, mount.path(&format!("f{i}"))).unwrap_or_else(|e| panic!("{i}: {e}"));
    }
    unmount(&mut mount);
    assert_eq!(world.bucket.list("").unwrap().len(), 100);
}
