//! A panic in any part is an error for the file that it concerned, never a mount that hangs: what waits is told, other files
//! go on, `umount` ends, and the next mount goes on with the file.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::mounted::{cp, run, within};
use crate::support::{Mounted, World};
use crate::{ARGS, KEY, SIZE, WAIT, assert_nothing_twice, wait_no_journal, wait_until};

/// Bosfs with places that can be told to panic; built here if need be, beside what is there and not in its place.
fn armed_binary() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    // target/PROFILE/deps/TEST
    let target = own.ancestors().nth(2).unwrap();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", "bosfs-failpoints", "--features", "failpoints"]);
    build.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    build.arg("--target-dir").arg(target.parent().unwrap());
    if target.ends_with("release") {
        build.arg("--release");
    }
    let output = run(&mut build, Duration::from_secs(600));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    target.join("examples/bosfs-failpoints")
}

/// A mount in which `points` are armed.
pub fn armed(world: &World, args: &[&str], points: &str) -> Mounted {
    let mut spec = world.spec(args);
    spec.binary = armed_binary();
    spec.env.push(("FAILPOINTS".into(), points.into()));
    spec.mount().unwrap_or_else(|e| panic!("{e}"))
}

/// The panic happened, at this place.
fn assert_fired(world: &World, point: &str) {
    let log = world.log_text();
    assert!(log.contains(&format!("failpoint {point} panic")), "{point} did not fire\n{log}");
}

/// The error for people says which key, where its bytes are and what to do.
fn assert_told(text: &str, key: &str) {
    for part in [key, "panicked", "kept", "mount again"] {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
}

/// `umount` of a mount with a file that failed ends, and says so.
fn umount_with_trouble(mount: &mut Mounted, key: &str) {
    let output = mount.umount(WAIT);
    assert_eq!(output.status.code(), Some(3), "{output:?}\n{}", mount.log_text());
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(told.contains(key), "{told}");
}

/// The line of the log that tells what became of `key`.
fn told_line(world: &World, key: &str) -> String {
    let log = world.log_text();
    let line = log.lines().find(|line| line.contains(key) && line.contains("mount again"));
    line.unwrap_or_else(|| panic!("nothing is told of {key}\n{log}")).to_owned()
}

/// Another file of the same mount goes all the way.
fn another_file_goes_on(world: &World, mount: &Mounted) {
    let source = world.random_file("other-source", 2, SIZE);
    assert!(cp(&source, mount.path("other"), WAIT).status.success(), "{}", mount.log_text());
    world.assert_object_is_file("other", &source);
}

/// Copies a file while `point` is armed to panic once: `cp` fails, and all else is as it should be.
fn copy_with(point: &str) {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mut mount = armed(&world, &ARGS, &format!("{point}=1*panic->off"));
    let output = cp(&source, mount.path(KEY), WAIT);
    assert!(!output.status.success(), "cp says that all is well\n{}", mount.log_text());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Input/output error"), "{output:?}");
    assert_fired(&world, point);
    assert_told(&told_line(&world, KEY), KEY);
    let entry = crate::wait_for_state(&mount, KEY, "failed");
    assert_told(entry["last_error"].as_str().unwrap_or_default(), KEY);
    another_file_goes_on(&world, &mount);
    umount_with_trouble(&mut mount, KEY);
    drop(mount);
    goes_on_after_remount(&world, &source);
}

/// A mount of the usual binary goes on with the file: by itself if it was closed, else `cp` run again ends well. Nothing is
/// sent twice.
fn goes_on_after_remount(world: &World, source: &Path) {
    world.wait_quiet();
    let mount = world.mount(&ARGS);
    // What was closed before the panic is published without further ado.
    let ended = |state: &serde_json::Value| ["interrupted", "idle", "done"].iter().any(|word| state == word);
    mount.wait_state(KEY, WAIT, |entry| entry.is_none_or(|e| ended(&e["state"])));
    if world.bucket.head(KEY).unwrap().is_none() {
        assert!(cp(source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    }
    world.assert_object_is_file(KEY, source);
    assert_nothing_twice(world);
    wait_no_journal(world);
}

#[test]
fn a_panic_in_a_write() {
    copy_with("file.write");
}

#[test]
fn a_panic_in_a_flush() {
    copy_with("fs.flush");
}

#[test]
fn a_panic_in_hashing() {
    copy_with("upload.hash");
}

#[test]
fn a_panic_in_sending_a_part() {
    copy_with("upload.part");
}

/// An error within bosfs (a panic) while it publishes is EIO for that file and told with what to do; other files go on,
/// `bosfs umount` exits 3, and a new mount ends well with no part sent twice.
#[test]
fn a_panic_in_a_step_of_the_publication() {
    copy_with("upload.step");
}

#[test]
fn a_panic_behind_a_write_back_close_is_told_by_umount_and_mended_by_the_next_mount() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let args = ["--part-size", "5MiB", "--write-back"];
    // The first steps pass, then Complete does not.
    let mut mount = armed(&world, &args, "upload.step=1*off->1*panic->off");
    assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    let entry = crate::wait_for_state(&mount, KEY, "failed");
    assert_fired(&world, "upload.step");
    assert_told(entry["last_error"].as_str().unwrap_or_default(), KEY);
    another_file_goes_on_behind(&world, &mount);
    umount_with_trouble(&mut mount, KEY);
    drop(mount);
    let mount = world.mount(&args);
    mount.wait_settled(KEY, WAIT);
    world.assert_object_is_file(KEY, &source);
    assert_nothing_twice(&world);
}

fn another_file_goes_on_behind(world: &World, mount: &Mounted) {
    let source = world.random_file("other-source", 2, SIZE);
    assert!(cp(&source, mount.path("other"), WAIT).status.success(), "{}", mount.log_text());
    world.wait_object("other", SIZE, WAIT);
    world.assert_object_is_file("other", &source);
}

#[test]
fn a_panic_in_recovery_costs_one_file_for_one_mount() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&ARGS);
    let writer = crate::writing(&world, &mount, &source, 2);
    mount.kill();
    drop(writer);
    world.wait_quiet();
    let mut mount = armed(&world, &ARGS, "upload.recover=panic");
    assert_fired(&world, "upload.recover");
    let entry = crate::wait_for_state(&mount, KEY, "failed");
    let told = entry["last_error"].as_str().unwrap_or_default().to_owned();
    assert!(told.contains("panic") && told.contains("nothing of it was deleted"), "{told}");
    another_file_goes_on(&world, &mount);
    umount_with_trouble(&mut mount, KEY);
    drop(mount);
    goes_on_after_remount(&world, &source);
}

#[test]
fn a_panic_while_attributes_are_sent_behind() {
    let world = World::new();
    world.bucket.put("file", b"content").unwrap();
    let mut mount = armed(&world, &ARGS, "upload.attrs=1*panic->off");
    let path = mount.path("file");
    within(WAIT, "chmod", move || {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    });
    let entry = crate::wait_for_state(&mount, "file", "failed");
    assert_fired(&world, "upload.attrs");
    assert_told(entry["last_error"].as_str().unwrap_or_default(), "file");
    assert!(
        within(WAIT, "reading", {
            let path = mount.path("file");
            move || std::fs::read(path).unwrap()
        }) == b"content"
    );
    another_file_goes_on(&world, &mount);
    umount_with_trouble(&mut mount, "file");
    drop(mount);
    let mount = world.mount(&ARGS);
    wait_until("the next mount sends the mode", || crate::meta(&world, "file", "bosfs-mode").is_some());
    drop(mount);
}

#[test]
fn a_panic_while_attributes_of_a_directory_are_sent_behind() {
    let world = World::new();
    let mut mount = armed(&world, &ARGS, "fs.dir_attrs=1*panic->off");
    let path = mount.path("dir");
    within(WAIT, "chmod", move || {
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    });
    wait_until("the panic happens", || world.log_text().contains("failpoint fs.dir_attrs panic"));
    another_file_goes_on(&world, &mount);
    let output = mount.umount(WAIT);
    assert!(output.status.code().is_some(), "umount ends: {output:?}");
    drop(mount);
    let mount = world.mount(&ARGS);
    let mode = || std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(mount.path("dir")).unwrap().permissions());
    assert_eq!(mode() & 0o7777, 0o700);
    wait_until("the next mount sends the mode", || {
        crate::meta(&world, "dir/", "bosfs-mode").as_deref() == Some("16832")
    });
}

#[test]
fn a_panic_in_a_rename_is_an_error_and_the_next_mount_finishes_it() {
    let world = World::new();
    world.bucket.put("from", b"content").unwrap();
    let mut mount = armed(&world, &ARGS, "moves.copied=1*panic->off");
    let (from, to) = (mount.path("from"), mount.path("to"));
    let renamed = within(WAIT, "rename", move || std::fs::rename(from, to));
    assert_eq!(renamed.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_fired(&world, "moves.copied");
    assert!(told_line(&world, "from").contains("no name is lost"));
    crate::wait_for_state(&mount, "from", "failed");
    another_file_goes_on(&world, &mount);
    umount_with_trouble(&mut mount, "from");
    drop(mount);
    let mount = world.mount(&ARGS);
    wait_until("the rename is finished", || world.bucket.head("from").unwrap().is_none());
    assert_eq!(std::fs::read(mount.path("to")).unwrap(), b"content");
}

#[test]
fn a_panic_while_removed_names_are_deleted_behind() {
    let world = World::new();
    for n in 0..40 {
        world.bucket.put(&format!("dir/f{n:02}"), b"content").unwrap();
    }
    let mut mount = armed(&world, &ARGS, "moves.delete=1*panic->off");
    let dir = mount.path("dir");
    let removed = run(Command::new("rm").arg("-r").arg(&dir), WAIT);
    another_file_goes_on(&world, &mount);
    wait_until("the panic happens", || world.log_text().contains("failpoint moves.delete panic"));
    let output = mount.umount(WAIT);
    assert!(output.status.code().is_some(), "umount ends: {removed:?} {output:?}");
    drop(mount);
    let mount = world.mount(&ARGS);
    if !removed.status.success() {
        assert!(run(Command::new("rm").arg("-rf").arg(mount.path("dir")), WAIT).status.success());
    }
    wait_until("the next mount deletes them", || world.bucket.list("dir/").unwrap().is_empty());
}

#[test]
fn a_panic_in_reading_is_an_error_of_that_read() {
    let world = World::new();
    world.bucket.put("file", &crate::support::files::random_bytes(3, 100_000)).unwrap();
    // Always: a reader that only began anew would never end.
    let mut mount = armed(&world, &ARGS, "read.fill=panic");
    let path = mount.path("file");
    let read = within(WAIT, "reading", move || std::fs::read(path));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_fired(&world, "read.fill");
    another_file_goes_on(&world, &mount);
    assert!(mount.umount(WAIT).status.success());
}

#[test]
fn a_panic_in_an_unlink_keeps_the_task_and_a_new_file_of_that_name_is_told() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&ARGS);
    let writer = crate::writing(&world, &mount, &source, 1);
    mount.kill();
    drop(writer);
    world.wait_quiet();
    // The file is looked at first (one step), then its upload has to be aborted.
    let mut mount = armed(&world, &ARGS, "upload.step=1*off->1*panic->off");
    crate::wait_for_state(&mount, KEY, "interrupted");
    let path = mount.path(KEY);
    let removed = within(WAIT, "rm", move || std::fs::remove_file(path));
    assert_fired(&world, "upload.step");
    let path = mount.path(KEY);
    let created = within(WAIT, "a new file", move || std::fs::write(path, b"new"));
    assert_eq!(removed.map_err(|e| e.raw_os_error()), Err(Some(libc::EIO)), "then a new file: {created:?}");
    another_file_goes_on(&world, &mount);
    let output = mount.umount(WAIT);
    assert!(output.status.code().is_some(), "umount ends: {output:?}");
    drop(mount);
    let mount = world.mount(&ARGS);
    assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
    wait_no_journal(&world);
    assert!(world.bucket.uploads("").unwrap().is_empty());
}
