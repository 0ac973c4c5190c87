//! A full disk: write and close say so or wait, nothing accepted is lost, and with room again the file is finished.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;

use crate::support::World;
use crate::support::crash::steps::{copy, program};
use crate::support::crash::{KEY, Place, SIZE, WAIT, wait_until};
use crate::support::disk::fault::{DiskFault, DiskWhen, Kind};
use crate::support::files::{random_bytes, write_random};
use crate::support::mounted::{detach, run, within};

/// From the n-th write, create or mkdir on there is no room; when the program was told, there is room again.
fn full_from(n: u64, args: &[&str]) -> bool {
    let place = Place::new().unwrap();
    let source = place.world.random_file("source", 1, SIZE);
    let content = random_bytes(1, SIZE as usize);
    let mount = place.mount(args);
    let rule = place
        .disk
        .fault(DiskWhen::kinds(&Kind::NEEDS_ROOM).path_contains("/uploads/").skip(n), DiskFault::Fail(Errno::NOSPC));
    let told = copy(&source, &mount.path(KEY));
    if rule.hits() == 0 {
        assert!(told.ok, "{told:?}");
        return false;
    }
    let what = format!(
        "full from write {n} on {args:?}: {:?} at {:?}\n{}",
        told.failed,
        rule.hit_paths().first(),
        place.log_tail()
    );
    assert!(told.ok || told.errno() == Some(libc::ENOSPC), "{what}");
    place.disk.heal();
    if told.ok {
        // Only what goes on behind met the full disk.
        wait_published(&place, &mount, &what);
    } else {
        // What was accepted is there, on the same mount.
        let shown = std::fs::read(mount.path(KEY)).unwrap_or_default();
        let accepted = told.bytes as usize;
        assert!(shown.get(..accepted) == Some(&content[..accepted]), "{what}: {} of {accepted} are shown", shown.len());
        let again = copy(&source, &mount.path(KEY));
        assert!(again.ok, "with room again: {again:?}\n{what}\n{}", place.log_tail());
        wait_published(&place, &mount, &what);
    }
    place.world.assert_object_is_file(KEY, &source);
    true
}

/// Until the journal is gone; a file whose work behind failed is tried again by the next mount.
fn wait_published(place: &Place, mount: &crate::support::Mounted, what: &str) {
    let settled =
        || place.journals().is_empty() || mount.file_status(KEY).is_some_and(|entry| entry["state"] == "failed");
    assert!(wait_until(WAIT, settled), "{what}: stays {:?}", mount.file_status(KEY));
    if let Some(entry) = mount.file_status(KEY).filter(|entry| entry["state"] == "failed") {
        assert!(entry["last_error"].as_str().is_some_and(|text| text.contains(KEY)), "{entry}");
        let told = program(&[
            crate::support::mounted::bosfs_binary().to_str().unwrap(),
            "uploads",
            "resume",
            &format!("bkt/{KEY}"),
            "--endpoint",
            &mount.spec().endpoint,
            "--credentials",
            mount.spec().credentials.to_str().unwrap(),
            "--state-dir",
            mount.spec().state_dir.to_str().unwrap(),
        ]);
        assert!(told.ok, "{what}: uploads resume: {}", told.text);
        assert!(wait_until(WAIT, || place.journals().is_empty()), "{what}: {:?}", mount.file_status(KEY));
    }
}

#[test]
fn at_every_write_of_a_copy() {
    // Spool and map of sixteen pieces, and the lines of the journal: a sample of them.
    let hit = (0..).step_by(9).take_while(|n| full_from(*n, &[])).count();
    assert!(hit >= 4, "full only {hit} times");
}

#[test]
fn at_every_write_of_a_write_back_copy() {
    let hit = (4..).step_by(13).take_while(|n| full_from(*n, &["--write-back"])).count();
    assert!(hit >= 3, "full only {hit} times");
}

/// A full disk that takes a write only in part gives ENOSPC or a complete copy, and once there is room the same copy
/// ends well.
#[test]
fn at_a_write_that_is_taken_in_part() {
    for path in ["/spool", "/map", "/journal"] {
        let place = Place::new().unwrap();
        let source = place.world.random_file("source", 1, SIZE);
        let mount = place.mount(&[]);
        let when = |skip| DiskWhen::kinds(&[Kind::Write]).path_ends(path).skip(skip);
        let short = place.disk.fault(when(1).once(), DiskFault::Short { bytes: 10 });
        let full = place.disk.fault(when(1), DiskFault::Fail(Errno::NOSPC));
        let told = copy(&source, &mount.path(KEY));
        assert!(
            short.hits() == 1 && (full.hits() > 0 || path == "/journal"),
            "{path}: {} {}",
            short.hits(),
            full.hits()
        );
        assert!(told.ok || told.errno() == Some(libc::ENOSPC), "{path}: {told:?}");
        place.disk.heal();
        let again = copy(&source, &mount.path(KEY));
        assert!(again.ok, "{path}: with room again: {again:?}\n{}", place.log_tail());
        wait_published(&place, &mount, path);
        place.world.assert_object_is_file(KEY, &source);
    }
}

/// A mount whose state directory has no room says that the disk is full and names `--state-dir`.
#[test]
fn a_mount_says_that_the_disk_is_full() {
    let place = Place::new().unwrap();
    let rule = place.disk.fault(DiskWhen::kinds(&Kind::NEEDS_ROOM), DiskFault::Fail(Errno::NOSPC));
    let error = place.spec(&[]).mount().err().expect("no room for anything").to_string();
    assert!(rule.hits() > 0);
    assert!(error.contains("is full") && error.contains("--state-dir"), "{error}");
    place.disk.heal();
    let mount = place.mount(&[]);
    std::fs::write(mount.path("file"), b"text").unwrap();
    assert_eq!(place.world.bucket.get("file").unwrap(), b"text");
}

/// A real ext4 of 64 MiB, which goes away with this value.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn new(world: &World) -> Self {
        let (image, dir) = (world.path("ext4.img"), world.path("ext4"));
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        std::fs::create_dir(&dir).unwrap();
        let ok = |command: &mut Command| {
            let output = run(command, Duration::from_secs(60));
            assert!(output.status.success(), "{command:?}: {output:?}");
        };
        ok(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        ok(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&dir));
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

/// Fills the rest of the disk with one file.
fn fill(dir: &Path) -> std::path::PathBuf {
    use std::io::Write as _;
    let path = dir.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    for piece in [1 << 20, 4096] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
    path
}

/// A file larger than the local disk can be copied in, since its sent parts make room; when somebody else fills the
/// disk, the copy of a file gives ENOSPC, and ends well once there is room.
#[test]
fn a_real_disk_of_64_mib() {
    let world = World::new();
    let disk = SmallDisk::new(&world);
    let mut spec = world.spec(&["--part-size", "5MiB"]);
    spec.state_dir = disk.0.join("state");
    let mut mount = spec.mount().unwrap();
    // A file that is larger than the disk: its parts make room as they are sent.
    let source = world.path("source");
    write_random(&source, 1, 100 << 20).unwrap();
    let target = mount.path(KEY);
    let told = within(WAIT * 2, "a copy larger than the disk", {
        let source = source.clone();
        move || copy(&source, &target)
    });
    assert!(told.ok, "{told:?}\n{}", world.log_text());
    world.assert_object_is_file(KEY, &source);
    // Somebody else fills it to the last block.
    let filler = fill(&disk.0);
    let small = world.random_file("small", 2, 3 << 20);
    let told = copy(&small, &mount.path("small"));
    assert_eq!((told.ok, told.errno()), (false, Some(libc::ENOSPC)), "{told:?}");
    assert!(
        world.log_text().contains("No space left") || world.log_text().contains("spool is full"),
        "{}",
        world.log_text()
    );
    std::fs::remove_file(filler).unwrap();
    let told = copy(&small, &mount.path("small"));
    assert!(told.ok, "with room again: {told:?}\n{}", world.log_text());
    world.assert_object_is_file("small", &small);
    assert!(mount.umount(WAIT).status.success());
    drop(mount);
}
