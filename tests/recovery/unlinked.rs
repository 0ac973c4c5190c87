//! Row "unlinked": the file was removed, but bosfs was killed before BOS had been told.

use crate::support::mounted::{cp, within};
use crate::support::{Call, HoldAt, Mounted, When, World};
use crate::{KEY, SIZE, WAIT, wait_no_journal};

/// A file of an upload under way is removed; bosfs is killed when it is about to tell BOS.
fn removed(world: &World, killed_at: Call) -> Mounted {
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let hold = world.proxy.hold(When::call(Call::UploadPart).key(KEY).part(4), HoldAt::BeforeForward);
    assert!(cp(&source, mount.path(KEY), WAIT).status.success());
    assert!(hold.wait_hit(WAIT));
    let told = world.proxy.hold(When::call(killed_at).key(KEY), HoldAt::BeforeForward);
    let path = mount.path(KEY);
    // It may wait for BOS, or end with an error when bosfs is killed under it.
    let rm = std::thread::spawn(move || std::fs::remove_file(path));
    hold.drop_held();
    assert!(told.wait_hit(WAIT), "{}\n{}", world.proxy.counts().log_text(), mount.log_text());
    mount.kill();
    let _ = within(WAIT, "rm", move || rm.join());
    world.proxy.clear_rules();
    world.wait_quiet();
    mount
}

fn wait_no_upload(world: &World) {
    let end = std::time::Instant::now() + WAIT;
    while !world.bucket.uploads("").unwrap().is_empty() {
        assert!(std::time::Instant::now() < end, "the upload stays");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn an_unlinked_upload_is_aborted() {
    let world = World::new();
    let mut mount = removed(&world, Call::Abort);
    assert_eq!(world.bucket.uploads("").unwrap().len(), 1);
    mount.remount().unwrap();
    wait_no_upload(&world);
    wait_no_journal(&world);
    assert!(world.bucket.head(KEY).unwrap().is_none());
    assert!(!mount.path(KEY).exists());
}

#[test]
fn an_unlinked_overwrite_deletes_the_base() {
    let world = World::new();
    world.bucket.put(KEY, b"the base").unwrap();
    let mut mount = removed(&world, Call::Abort);
    mount.remount().unwrap();
    wait_no_upload(&world);
    wait_no_journal(&world);
    assert!(world.bucket.head(KEY).unwrap().is_none(), "the removed file is back");
}

/// If somebody else replaced the object of a removed file before the removal was recovered, theirs stays.
#[test]
fn an_unlinked_file_whose_key_others_replaced_is_left() {
    let world = World::new();
    world.bucket.put(KEY, b"the base").unwrap();
    let mut mount = removed(&world, Call::Abort);
    world.bucket.put(KEY, b"someone else's").unwrap();
    mount.remount().unwrap();
    wait_no_upload(&world);
    wait_no_journal(&world);
    assert_eq!(world.bucket.get(KEY).unwrap(), b"someone else's");
}
