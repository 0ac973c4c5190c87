//! Two processes with a state directory each mount one bucket: they meet as strangers do.

use serde_json::Value;

use crate::actor::{Actor, Given, close, on, rename};
use crate::foreign::{BASE, ForeignUploads};
use crate::support::files::md5_of_file;
use crate::support::{Call, HoldAt, Mounted, When, World};
use crate::{PART, WAIT, told_error, wait_for_state, wait_no_journal, wait_until};

/// Another mount of the bucket, with a place and a state directory of its own.
fn second(world: &World, args: &[&str]) -> Mounted {
    let mut spec = world.spec(args);
    spec.dir = world.path("mnt-b");
    spec.state_dir = world.path("state-b");
    spec.log = world.path("bosfs-b.log");
    spec.mount().unwrap_or_else(|e| panic!("{e}"))
}

/// Both write their file to one key, each several parts or one; both publications meet at the server at once.
fn collide(key: &str, flags: &str, several: bool) {
    let world = World::new();
    let foreign = ForeignUploads::begin(&world, &[key]);
    let size = if several { 2 * PART + 1 } else { 70_000 };
    let sources = [world.random_file("a", 1, size), world.random_file("b", 2, size)];
    if !flags.contains("CREAT") {
        world.bucket.put(key, BASE).unwrap();
    }
    let mounts = [world.mount(&["--part-size", "5MiB"]), second(&world, &["--part-size", "5MiB"])];
    let call = if several { Call::Complete } else { Call::PutObject };
    let hold = world.proxy.hold(When::call(call).key(key), HoldAt::BeforeForward);
    let mut actors = [Actor::start(), Actor::start()];
    for ((actor, mount), source) in actors.iter_mut().zip(&mounts).zip(&sources) {
        actor.open("f", &mount.path(key), flags);
        actor.write_all("f", source);
        actor.begin(close("f"));
    }
    assert!(hold.wait_hits(2, WAIT), "not both publish\n{}", world.proxy.counts().log_text());
    hold.release();
    let given: Vec<Given> = actors.iter_mut().map(|actor| actor.answer("close")).collect();
    let lost: Given = Err(if flags.contains("EXCL") { "EEXIST" } else { "ESTALE" }.into());
    let winner = given.iter().position(Result::is_ok).unwrap_or_else(|| panic!("nobody won: {given:?}"));
    let loser = 1 - winner;
    assert_eq!(given[loser], lost, "{}", mounts[loser].log_text());
    world.assert_object_is_file(key, &sources[winner]);
    // The loser has its own bytes and says so; the winner has nothing left to do.
    told_error(&wait_for_state(&mounts[loser], key, "conflict"));
    mounts[winner].wait_settled(key, WAIT);
    let path = mounts[loser].path(key);
    let kept = crate::support::mounted::within(WAIT, "reading", move || md5_of_file(&path).unwrap());
    assert_eq!(kept, md5_of_file(&sources[loser]).unwrap());
    foreign.assert_untouched(&world);
}

#[test]
fn of_two_new_files_of_several_parts_one_wins() {
    collide("f", "WRONLY|CREAT|EXCL", true);
}

#[test]
fn of_two_new_files_of_one_part_one_wins() {
    collide("f", "WRONLY|CREAT", false);
}

/// Of two mounts that overwrite one object at the same time one wins; the other's `close` gives ESTALE, and its bytes
/// are kept.
#[test]
fn of_two_overwrites_one_wins() {
    collide("f", "WRONLY|TRUNC", true);
    collide("f", "WRONLY|TRUNC", false);
}

/// What another mount publishes between the copies of a folder rename and the deletion of the old names is not deleted:
/// it stays under the old name and is told.
#[test]
fn what_the_other_mount_publishes_while_a_folder_is_renamed_stays_under_the_old_name() {
    let world = World::new();
    world.bucket.put("dir/f", BASE).unwrap();
    world.bucket.put("dir/other", b"other").unwrap();
    let source = world.random_file("source", 3, 5000);
    let mut a = world.mount(&[]);
    let b = second(&world, &[]);
    let put = world.proxy.hold(When::call(Call::PutObject).key("dir/f"), HoldAt::BeforeForward);
    let copied = world.proxy.hold(When::call(Call::CopyObject).key("renamed/f"), HoldAt::BeforeAnswer);
    let (mut in_a, mut in_b) = (Actor::start(), Actor::start());
    in_b.open("f", &b.path("dir/f"), "WRONLY|TRUNC");
    in_b.write_all("f", &source);
    in_b.begin(close("f"));
    assert!(put.wait_hit(WAIT));
    in_a.begin(rename(&a.path("dir"), &a.path("renamed")));
    assert!(copied.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    // The second listing after the copies is that of the old names, right before they go.
    let list = world.proxy.hold(When::call(Call::ListObjects).skip(1).once(), HoldAt::BeforeForward);
    copied.release();
    assert!(list.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    put.release();
    assert_eq!(in_b.answer("close"), Ok(Value::Null), "{}", b.log_text());
    list.release();
    assert_eq!(in_a.answer("rename"), Ok(Value::Null), "{}", a.log_text());
    wait_until("the rename is over", || world.bucket.head("dir/other").unwrap().is_none());
    wait_until("status tells of it", || crate::status_text(&a).contains("dir/f: "));
    world.assert_object_is_file("dir/f", &source);
    assert_eq!(world.bucket.get("renamed/other").unwrap(), b"other");
    assert_eq!(world.bucket.get("renamed/f").unwrap(), BASE, "what was there when it was renamed");
    assert!(crate::status_text(&a).contains("kept under its old name"), "{}", crate::status_text(&a));
    assert_eq!(a.umount(WAIT).status.code(), Some(3), "umount must name what was left");
    world.assert_object_is_file("dir/f", &source);
}

#[test]
fn what_the_other_mount_publishes_before_a_folder_is_copied_whole_goes_along() {
    let world = World::new();
    world.bucket.put("dir/f", BASE).unwrap();
    let source = world.random_file("source", 3, 5000);
    let (mut a, b) = (world.mount(&[]), second(&world, &[]));
    let put = world.proxy.hold(When::call(Call::PutObject).key("dir/f"), HoldAt::BeforeForward);
    let copied = world.proxy.hold(When::call(Call::CopyObject).key("renamed/f").once(), HoldAt::BeforeAnswer);
    let (mut in_a, mut in_b) = (Actor::start(), Actor::start());
    in_b.open("f", &b.path("dir/f"), "WRONLY|TRUNC");
    in_b.write_all("f", &source);
    in_b.begin(close("f"));
    assert!(put.wait_hit(WAIT));
    in_a.begin(rename(&a.path("dir"), &a.path("renamed")));
    assert!(copied.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    put.release();
    assert_eq!(in_b.answer("close"), Ok(Value::Null), "{}", b.log_text());
    copied.release();
    assert_eq!(in_a.answer("rename"), Ok(Value::Null), "{}", a.log_text());
    wait_until("the old name is gone", || world.bucket.head("dir/f").unwrap().is_none());
    world.assert_object_is_file("renamed/f", &source);
    assert!(a.umount(WAIT).status.success());
}

/// A writer whose file another mount renames or removes gets ESTALE at `close`; nothing comes back under the old name,
/// and `--as` rescues the bytes.
#[test]
fn a_writer_whose_file_the_other_mount_renames_or_removes_keeps_its_bytes() {
    for removed in [false, true] {
        let world = World::new();
        world.bucket.put("dir/f", BASE).unwrap();
        let source = world.random_file("source", 4, 6000);
        let (a, b) = (world.mount(&[]), second(&world, &[]));
        let (mut in_a, mut in_b) = (Actor::start(), Actor::start());
        in_b.open("f", &b.path("dir/f"), "WRONLY|TRUNC");
        in_b.write_all("f", &source);
        if removed {
            in_a.must(on("unlink", &a.path("dir/f")));
        } else {
            in_a.must(rename(&a.path("dir"), &a.path("renamed")));
        }
        wait_until("the object went", || world.bucket.head("dir/f").unwrap().is_none());
        assert_eq!(in_b.close("f"), Err("ESTALE".into()), "{}", b.log_text());
        told_error(&wait_for_state(&b, "dir/f", "conflict"));
        assert_eq!(world.bucket.head("dir/f").unwrap(), None, "a removed object came back");
        if !removed {
            assert_eq!(world.bucket.get("renamed/f").unwrap(), BASE);
        }
        // The bytes can still be had.
        let command = ["uploads", "complete", "bkt/dir/f", "--as", "dir/rescued"];
        crate::bosfs_ok(&b, &command);
        world.assert_object_is_file("dir/rescued", &source);
    }
}

#[test]
fn a_file_made_in_a_folder_that_the_other_mount_removes_is_published() {
    let world = World::new();
    let source = world.random_file("source", 5, 6000);
    let (a, b) = (world.mount(&["--metadata-ttl", "0s"]), second(&world, &["--metadata-ttl", "0s"]));
    let (mut in_a, mut in_b) = (Actor::start(), Actor::start());
    in_a.must(on("mkdir", &a.path("dir")));
    in_b.open("f", &b.path("dir/f"), "WRONLY|CREAT|EXCL");
    in_b.write_all("f", &source);
    in_a.must(on("rmdir", &a.path("dir")));
    assert_eq!(in_b.close("f"), Ok(Value::Null), "{}", b.log_text());
    world.assert_object_is_file("dir/f", &source);
    // The folder is there again for both, since it has a file.
    wait_until("both see the file", || {
        let lists: Vec<Given> = [(&mut in_a, &a), (&mut in_b, &b)]
            .into_iter()
            .map(|(who, at)| who.ask(on("list", &at.path("dir"))))
            .collect();
        lists.iter().all(|list| *list == Ok(serde_json::json!(["f"])))
    });
}

/// Uploads that another mount or tool has begun for the same key are neither completed nor aborted by writing,
/// removing, mounting or `--interrupted discard`.
#[test]
fn the_other_mount_neither_completes_nor_aborts_what_is_not_its_own() {
    let world = World::new();
    let source = world.random_file("source", 6, 4 * PART + 1);
    let a = world.mount(&["--part-size", "5MiB"]);
    let hold = world.proxy.hold(When::call(Call::UploadPart).part(4), HoldAt::BeforeForward);
    let mut in_a = Actor::start();
    in_a.open("f", &a.path("f"), "WRONLY|CREAT");
    in_a.write_all("f", &source);
    in_a.begin(close("f"));
    assert!(hold.wait_hit(WAIT));
    let upload = world.bucket.uploads("f").unwrap().remove(0);
    wait_until("all others are there", || world.bucket.parts("f", &upload.upload_id).unwrap().len() == 4);
    let before = world.bucket.parts("f", &upload.upload_id).unwrap();
    // It mounts, writes and removes the same key, and leaves.
    let mut b = second(&world, &["--part-size", "5MiB", "--write-back"]);
    let mut in_b = Actor::start();
    let small = world.random_file("small", 7, 100);
    in_b.open("f", &b.path("f"), "WRONLY|CREAT");
    in_b.write_all("f", &small);
    assert_eq!(in_b.close("f"), Ok(Value::Null));
    b.wait_settled("f", WAIT);
    in_b.must(on("unlink", &b.path("f")));
    assert!(b.umount(WAIT).status.success());
    assert_eq!(world.bucket.head("f").unwrap(), None);
    let mut b = second(&world, &["--part-size", "5MiB", "--interrupted", "discard"]);
    assert!(b.umount(WAIT).status.success());
    assert_eq!(world.bucket.parts("f", &upload.upload_id).unwrap(), before, "parts of the other mount");
    hold.release();
    assert_eq!(in_a.answer("close"), Ok(Value::Null), "{}", a.log_text());
    world.assert_object_is_file("f", &source);
    wait_no_journal(&world);
}
