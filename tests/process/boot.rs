//! Another boot of the machine between two mounts: the real binary sees another boot ID in a mount namespace of its own.

use std::path::Path;

use rustix::mount::{MountPropagationFlags, UnmountFlags};

use crate::support::mounted::{cp, is_mounted};
use crate::support::{Call, HoldAt, MountSpec, When, World};
use crate::{ARGS, KEY, PART, SIZE, WAIT, assert_nothing_twice, bosfs_after, wait_no_journal};

/// A folder whose mounts other namespaces share, so that the test sees what a bosfs in one of them mounts there.
struct SharedFolder<'a>(&'a Path);

impl<'a> SharedFolder<'a> {
    fn over(dir: &'a Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        rustix::mount::mount_bind(dir, dir).expect("bind mount (needs root)");
        let shared = Self(dir);
        rustix::mount::mount_change(dir, MountPropagationFlags::SHARED).unwrap();
        shared
    }
}

impl Drop for SharedFolder<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, UnmountFlags::DETACH);
    }
}

/// A mount below `world.path("shared")` by a bosfs that sees `boot_id`.
fn spec(world: &World, args: &[&str], boot_id: &str) -> MountSpec {
    let file = world.path(&format!("boot-{boot_id}"));
    std::fs::write(&file, format!("{boot_id}\n")).unwrap();
    let namespaced = bosfs_after(
        world,
        &format!("inner-{boot_id}"),
        &format!(
            "{}\nleave_other_mounts '{}'\nmount --make-private /proc\nmount --bind '{}' /proc/sys/kernel/random/boot_id\n\
             test \"$(cat /proc/sys/kernel/random/boot_id)\" = '{boot_id}'",
            include_str!("../support/alone.sh"),
            file.parent().unwrap().display(),
            file.display()
        ),
    );
    let outer = world.path(&format!("outer-{boot_id}"));
    let text = format!("#!/bin/sh\nexec unshare --mount --propagation unchanged '{}' \"$@\"\n", namespaced.display());
    std::fs::write(&outer, text).unwrap();
    std::fs::set_permissions(&outer, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut spec = world.spec(args);
    spec.dir = world.path("shared").join("mnt");
    spec.binary = outer;
    spec
}

/// The journal notes the boots that worked on it.
fn assert_boots(world: &World, boots: &[&str]) {
    let journals = world.journals();
    assert_eq!(journals.len(), 1);
    let text = std::fs::read(journals[0].join("journal")).unwrap();
    let text = String::from_utf8_lossy(&text);
    for boot in boots {
        assert!(text.contains(boot), "boot {boot} did not work on it\n{text}");
    }
}

/// After a reboot an interrupted file is shown as far as BOS holds its parts, and the same `cp` run again sends none of
/// them.
#[test]
fn after_another_boot_an_interrupted_file_is_as_long_as_it_is_known_to_be_whole() {
    let world = World::new();
    let shared = world.path("shared");
    let _folder = SharedFolder::over(&shared);
    let source = world.random_file("source", 1, SIZE);
    let mut mount = spec(&world, &ARGS, "first").mount().unwrap_or_else(|e| panic!("{e}"));
    let writer = crate::writing(&world, &mount, &source, 2);
    mount.kill();
    drop(writer);
    world.wait_quiet();
    assert_boots(&world, &["first"]);
    // What never reached the disk is zeros after the power came back.
    let spool = std::fs::File::options().write(true).open(world.journals()[0].join("spool")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&spool, &[0; 5000], 2 * PART).unwrap();
    world.proxy.take_counts();
    let mount = spec(&world, &ARGS, "second").mount().unwrap_or_else(|e| panic!("{e}"));
    crate::wait_for_state(&mount, KEY, "interrupted");
    assert_boots(&world, &["first", "second"]);
    let shown = std::fs::read(mount.path(KEY)).unwrap();
    assert_eq!(shown.len() as u64, 2 * PART, "beyond what BOS holds nothing is known to be whole");
    assert!(shown == std::fs::read(&source).unwrap()[..shown.len()]);
    assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
    let counts = world.proxy.counts();
    for part in 1..=2 {
        assert_eq!(counts.part(KEY, part).tries, 0, "part {part} again\n{}", counts.log_text());
    }
    drop(mount);
    assert!(!is_mounted(&shared.join("mnt")));
}

/// After a reboot a file that was closed with `--write-back` is published by the next mount, and no part is sent twice.
#[test]
fn after_another_boot_a_file_that_was_synced_and_closed_goes_on() {
    let world = World::new();
    let shared = world.path("shared");
    let _folder = SharedFolder::over(&shared);
    let source = world.random_file("source", 1, SIZE);
    let args = ["--part-size", "5MiB", "--write-back"];
    let mut mount = spec(&world, &args, "first").mount().unwrap_or_else(|e| panic!("{e}"));
    let held = world.proxy.hold(When::call(Call::UploadPart).skip(1), HoldAt::BeforeForward);
    assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    assert!(held.wait_hits(1, WAIT), "{}", mount.log_text());
    mount.kill();
    world.proxy.clear_rules();
    world.wait_quiet();
    let mount = spec(&world, &args, "second").mount().unwrap_or_else(|e| panic!("{e}"));
    mount.wait_settled(KEY, WAIT);
    world.assert_object_is_file(KEY, &source);
    assert_nothing_twice(&world);
    wait_no_journal(&world);
}
