//! A conflict waits for one of three commands, or for `rm`: publish over the other's, publish under another key, give up.

use serde_json::json;

use crate::actor::{Actor, close, on, write};
use crate::foreign::{BASE, ForeignUploads, OTHER};
use crate::support::files::random_bytes;
use crate::support::{Action, Call, HoldAt, Line, Mounted, When, World};
use crate::{PART, WAIT, assert_tells_all, bosfs, bosfs_fails, bosfs_ok, told_error, wait_for_state, wait_no_journal};

const SIZE: u64 = 2 * PART + 99;

/// A mount with a new file `KEY` of [`SIZE`] bytes, `source`, that lost against somebody else's object.
fn lost(world: &World, key: &str) -> Mounted {
    let source = world.random_file("source", 1, SIZE);
    let mount = world.mount(&["--part-size", "5MiB"]);
    let hold = world.proxy.hold(When::call(Call::Complete).key(key), HoldAt::BeforeForward);
    let mut actor = Actor::start();
    if let Some((dir, _)) = key.rsplit_once('/') {
        actor.must(on("mkdir", &mount.path(dir)));
    }
    actor.open("f", &mount.path(key), "WRONLY|CREAT");
    actor.write_all("f", &source);
    actor.begin(close("f"));
    assert!(hold.wait_hit(WAIT));
    world.bucket.put(key, OTHER).unwrap();
    hold.release();
    assert_eq!(actor.answer("close"), Err("ESTALE".into()));
    wait_for_state(&mount, key, "conflict");
    mount
}

/// `bosfs uploads complete --force` publishes over the other one without sending parts again; without `--force` it
/// refuses and changes nothing.
#[test]
fn force_publishes_over_the_other_one() {
    let world = World::new();
    let foreign = ForeignUploads::begin(&world, &["f"]);
    let mount = lost(&world, "f");
    // Without it nothing happens.
    let refusal = bosfs_fails(&mount, &["uploads", "complete", "bkt/f"]);
    assert_tells_all(&refusal, "f");
    assert_eq!(world.bucket.get("f").unwrap(), OTHER);
    bosfs_ok(&mount, &["uploads", "complete", "bkt/f", "--force"]);
    world.assert_object_is_file("f", &world.path("source"));
    wait_no_journal(&world);
    assert_eq!(world.proxy.counts().parts_accepted_twice("f"), [] as [u32; 0], "parts of the conflict are kept");
    foreign.assert_untouched(&world);
}

/// `bosfs uploads complete --as KEY` publishes beside the other one, which stays.
#[test]
fn as_publishes_beside_the_other_one() {
    let world = World::new();
    let foreign = ForeignUploads::begin(&world, &["dir/f", "dir/mine"]);
    let mut mount = lost(&world, "dir/f");
    bosfs_ok(&mount, &["uploads", "complete", "bkt/dir/f", "--as", "dir/mine"]);
    world.assert_object_is_file("dir/mine", &world.path("source"));
    assert_eq!(world.bucket.get("dir/f").unwrap(), OTHER);
    wait_no_journal(&world);
    // Both names show what they are now.
    let mut actor = Actor::start();
    assert_eq!(actor.must(on("stat", &mount.path("dir/mine"))), SIZE);
    assert_eq!(actor.must(on("stat", &mount.path("dir/f"))), OTHER.len());
    assert_eq!(actor.must(on("list", &mount.path("dir"))), json!(["f", "mine"]));
    foreign.assert_untouched(&world);
    assert!(mount.umount(WAIT).status.success());
    let left = world.bucket.uploads("").unwrap();
    assert!(left.iter().all(|upload| foreign.ids().contains(&upload.upload_id.as_str())), "{left:?}");
}

/// `--as` a key that is taken is refused, and the bytes stay; `--as` something that is no key exits 2.
#[test]
fn as_refuses_a_key_that_is_taken_and_keeps_the_bytes() {
    let world = World::new();
    let mut mount = lost(&world, "f");
    world.bucket.put("taken", BASE).unwrap();
    let refusal = bosfs_fails(&mount, &["uploads", "complete", "bkt/f", "--as", "taken"]);
    assert_tells_all(&refusal, "taken");
    assert_eq!(world.bucket.get("taken").unwrap(), BASE);
    assert_eq!(world.bucket.get("f").unwrap(), OTHER);
    assert_eq!(bosfs(&mount, &["uploads", "complete", "bkt/f", "--as", "bad//key"]).status.code(), Some(2));
    // It can be decided all the same, also while nothing is mounted.
    mount.kill();
    bosfs_ok(&mount, &["uploads", "complete", "bkt/f", "--as", "free"]);
    world.assert_object_is_file("free", &world.path("source"));
    assert_eq!(world.bucket.get("f").unwrap(), OTHER);
    wait_no_journal(&world);
}

/// `bosfs uploads abort` of a conflict leaves the other one and aborts the own upload; without `--yes` and without an
/// answer it exits 4.
#[test]
fn abort_leaves_the_other_one_and_asks_first() {
    let world = World::new();
    let mount = lost(&world, "f");
    // Nobody answers the question.
    assert_eq!(bosfs(&mount, &["uploads", "abort", "bkt/f"]).status.code(), Some(4));
    wait_for_state(&mount, "f", "conflict");
    bosfs_ok(&mount, &["uploads", "abort", "bkt/f", "--yes"]);
    wait_no_journal(&world);
    assert_eq!(world.bucket.get("f").unwrap(), OTHER);
    assert!(world.bucket.uploads("").unwrap().is_empty(), "the upload stays");
}

/// `rm` of a conflict removes the local bytes and not the other one's object.
#[test]
fn rm_of_a_conflict_leaves_the_other_one() {
    let world = World::new();
    let mut mount = lost(&world, "f");
    let mut actor = Actor::start();
    actor.must(on("unlink", &mount.path("f")));
    wait_no_journal(&world);
    assert_eq!(world.bucket.get("f").unwrap(), OTHER, "rm of the local bytes removed somebody else's object");
    assert!(world.bucket.uploads("").unwrap().is_empty(), "the upload stays");
    assert!(mount.umount(WAIT).status.success());
}

/// A mount over an object of several parts.
fn over_a_base(args: &[&str]) -> (World, Mounted) {
    let world = World::new();
    world.bucket.put("f", &random_bytes(9, 3 * PART as usize)).unwrap();
    let mount = world.mount(args);
    (world, mount)
}

/// A change of a few bytes in the middle of that object, which is then taken away.
fn changed_in_the_middle(world: &World, mount: &Mounted, then: impl FnOnce(&World)) -> crate::actor::Given {
    let key = "f";
    let source = world.random_file("patch", 5, 2 * PART);
    let hold = world.proxy.hold(When::call(Call::Initiate).key(key), HoldAt::BeforeForward);
    let mut actor = Actor::start();
    actor.open("f", &mount.path(key), "WRONLY");
    actor.must(write("f", &source, PART + 1000, 100));
    actor.begin(close("f"));
    assert!(hold.wait_hit(WAIT));
    then(world);
    hold.release();
    actor.answer("close")
}

/// A change in the middle of an object that somebody else replaces or deletes before it is published is a conflict:
/// nothing is overwritten and the changed bytes are kept.
#[test]
fn a_change_in_the_middle_of_an_object_that_goes_is_a_conflict() {
    for (size, held) in [(100_000, Call::GetObject), (3 * PART as usize, Call::Initiate)] {
        for deleted in [false, true] {
            let world = World::new();
            let foreign = ForeignUploads::begin(&world, &["f"]);
            world.bucket.put("f", &random_bytes(9, size)).unwrap();
            let mount = world.mount(&["--part-size", "5MiB"]);
            let patch = world.random_file("patch", 5, 20_000);
            // Before the rest of the file is fetched or copied from what was there.
            let hold = world.proxy.hold(When::call(held).key("f"), HoldAt::BeforeForward);
            let mut actor = Actor::start();
            actor.open("f", &mount.path("f"), "WRONLY");
            actor.must(write("f", &patch, 10_001, 100));
            actor.begin(close("f"));
            assert!(hold.wait_hit(WAIT), "{held}\n{}", world.proxy.counts().log_text());
            if deleted {
                world.bucket.delete("f").unwrap();
            } else {
                world.bucket.put("f", OTHER).unwrap();
            }
            hold.release();
            // Never ENOENT: the program has the file open.
            assert_eq!(actor.answer("close"), Err("ESTALE".into()), "{size} {deleted}\n{}", mount.log_text());
            told_error(&wait_for_state(&mount, "f", "conflict"));
            let there = world.bucket.head("f").unwrap();
            assert_eq!(there.map(|seen| seen.size), (!deleted).then_some(OTHER.len() as u64));
            foreign.assert_untouched(&world);
        }
    }
}

/// A conflict whose unchanged bytes went with the replaced object cannot be forced: the refusal says so, and the
/// changed bytes are kept.
#[test]
fn force_says_so_when_bytes_that_were_never_read_went_with_the_base() {
    let (world, mut mount) = over_a_base(&["--part-size", "5MiB"]);
    let given = changed_in_the_middle(&world, &mount, |world| drop(world.bucket.put("f", OTHER).unwrap()));
    assert_eq!(given, Err("ESTALE".into()), "{}", mount.log_text());
    told_error(&wait_for_state(&mount, "f", "conflict"));
    // There is nothing that the rest of the file could be made of.
    let refusal = bosfs_fails(&mount, &["uploads", "complete", "bkt/f", "--force"]);
    assert_tells_all(&refusal, "f");
    assert_eq!(world.bucket.get("f").unwrap(), OTHER);
    assert_eq!(mount.umount(WAIT).status.code(), Some(3));
    mount.remount().unwrap();
    assert_eq!(world.journals().len(), 1, "the changed bytes are gone");
    bosfs_ok(&mount, &["uploads", "abort", "bkt/f", "--yes"]);
    assert_eq!(world.bucket.get("f").unwrap(), OTHER);
}

#[test]
fn overwriting_on_conflict_ends_when_the_rest_of_the_file_is_gone() {
    let (world, mount) = over_a_base(&["--part-size", "5MiB", "--on-conflict", "overwrite"]);
    let given = changed_in_the_middle(&world, &mount, |world| world.bucket.delete("f").unwrap());
    assert_eq!(given, Err("ESTALE".into()), "{}", mount.log_text());
    assert_eq!(world.bucket.head("f").unwrap(), None, "something was published");
    let entry = mount.file_status("f").expect("status names it");
    told_error(&entry);
}

#[test]
fn a_decision_waits_out_a_dead_line() {
    let world = World::new();
    let mount = lost(&world, "f");
    world.proxy.clear_rules();
    world.proxy.set_line(Line::Dead);
    let mut command = mount.command(&["uploads", "complete", "bkt/f", "--force"]);
    let passed = world.proxy.fault(When::call(Call::Complete).once(), Action::Pass);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(child.try_wait().unwrap().is_none(), "decided without a line");
    world.proxy.set_line(Line::Alive);
    let status = crate::support::mounted::wait_child(&mut child, WAIT).expect("the command ends");
    assert!(status.success() && passed.hits() > 0, "{status}");
    world.assert_object_is_file("f", &world.path("source"));
}
