//! Row "failed, conflict": the first is tried again by the next mount, the second waits for a command.

use crate::support::mounted::cp;
use crate::support::{Action, Call, HoldAt, When, World};
use crate::{KEY, SIZE, Stopped, WAIT, bosfs_ok, wait_for_state};

/// What failed before the kill is tried again by the next mount, and no part is sent twice.
#[test]
fn failed_is_tried_again_by_the_next_mount() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&["--part-size", "5MiB"]);
    let denied = world.proxy.fault(When::call(Call::Complete), Action::error(403, "AccessDenied"));
    assert!(!cp(&source, mount.path(KEY), WAIT).status.success());
    assert!(denied.hits() > 0);
    wait_for_state(&mount, KEY, "failed");
    mount.kill();
    world.proxy.clear_rules();
    mount.remount().unwrap();
    world.wait_object(KEY, SIZE, WAIT);
    world.assert_object_is_file(KEY, &source);
    assert_eq!(world.proxy.counts().parts_accepted_twice(KEY), [] as [u32; 0]);
}

fn conflict() -> Stopped {
    let complete = When::call(Call::Complete).key(KEY);
    let mut s = Stopped::at(World::new(), SIZE, complete, HoldAt::BeforeForward);
    s.world.bucket.put(KEY, b"someone else's").unwrap();
    s.mount.remount().unwrap();
    wait_for_state(&s.mount, KEY, "conflict");
    s
}

/// A conflict waits over mounts for a command.
#[test]
fn a_conflict_waits_for_a_command_over_mounts() {
    let mut s = conflict();
    s.mount.remount().unwrap();
    wait_for_state(&s.mount, KEY, "conflict");
    assert_eq!(s.world.bucket.get(KEY).unwrap(), b"someone else's");
}

#[test]
fn a_conflict_is_decided_by_force() {
    let s = conflict();
    bosfs_ok(&s.mount, &["uploads", "complete", "bkt/huge.iso", "--force"]);
    s.world.wait_object(KEY, SIZE, WAIT);
    s.world.assert_object_is_file(KEY, &s.source);
}

#[test]
fn a_conflict_is_decided_for_the_other_one() {
    let s = conflict();
    bosfs_ok(&s.mount, &["uploads", "abort", "bkt/huge.iso", "--yes"]);
    crate::wait_no_journal(&s.world);
    assert_eq!(s.world.bucket.get(KEY).unwrap(), b"someone else's");
}
