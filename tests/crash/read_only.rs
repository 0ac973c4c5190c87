//! A state directory that cannot be written, or is taken away: errors, no hang, nothing wrong in the bucket.

use rustix::io::Errno;

use crate::support::crash::steps::{Writer, copy};
use crate::support::crash::{KEY, Place, SIZE, WAIT, wait_until};
use crate::support::disk::fault::{DiskFault, DiskWhen, Kind};
use crate::support::files::random_bytes;
use crate::support::mounted::within;

/// A mount whose state directory cannot be written says so and names `--state-dir`.
#[test]
fn a_mount_on_a_read_only_disk_says_so() {
    for first in [true, false] {
        let place = Place::new().unwrap();
        if !first {
            drop(place.mount(&[]));
        }
        let rule = place.disk.fault(DiskWhen::kinds(&Kind::REFUSED_READ_ONLY), DiskFault::Fail(Errno::ROFS));
        let error = place.spec(&[]).mount().err().expect("nothing can be written").to_string();
        assert!(rule.hits() > 0);
        assert!(error.contains("cannot be written") && error.contains("--state-dir"), "{error}");
        place.disk.heal();
        let mount = place.mount(&[]);
        std::fs::write(mount.path("file"), b"text").unwrap();
    }
}

/// On a disk that turns read-only `write` and `open` of a new file give EROFS, what was accepted stays readable, and
/// after a remount on a writable disk the same copy ends well.
#[test]
fn a_disk_that_turns_read_only_refuses_writes_and_keeps_what_it_has() {
    let place = Place::new().unwrap();
    place.world.bucket.put("other", b"an object").unwrap();
    let source = place.world.random_file("source", 1, SIZE);
    let mut mount = place.mount(&[]);
    let mut writer = Writer::start(&source, &mount.path(KEY), true, &["0:6291456", "hold", "6291456:6291456"]);
    assert!(writer.wait_for("held"), "{:?}", writer.told);
    let rule = place.disk.fault(DiskWhen::kinds(&Kind::REFUSED_READ_ONLY), DiskFault::Fail(Errno::ROFS));
    let told = writer.end();
    assert!(rule.hits() > 0);
    assert_eq!((told.errno(), told.bytes), (Some(libc::EROFS), 6 << 20), "{told:?}");
    // Reading goes on: what was accepted, and other objects.
    let shown = std::fs::read(mount.path(KEY)).unwrap();
    assert!(shown == random_bytes(1, 6 << 20), "{} bytes", shown.len());
    assert_eq!(std::fs::read(mount.path("other")).unwrap(), b"an object");
    let refused = std::fs::write(mount.path("new"), b"text").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    // Nobody closed it well, so nothing half is published; on a disk that can be written the copy ends well.
    let half = place.world.bucket.head(KEY).unwrap();
    assert!(half.as_ref().is_none_or(|seen| seen.size == 6 << 20), "{half:?}");
    place.disk.heal();
    mount.remount().unwrap();
    let told = copy(&source, &mount.path(KEY));
    assert!(told.ok, "{told:?}\n{}", place.log_tail());
    place.world.assert_object_is_file(KEY, &source);
}

/// When the state directory is removed under a mount, new files are refused, nothing hangs, and no object that is not
/// whole appears.
#[test]
fn a_state_directory_that_is_removed_is_an_error_and_no_hang() {
    let place = Place::new().unwrap();
    let source = place.world.random_file("source", 1, SIZE);
    let mut mount = place.mount(&[]);
    let mut writer = Writer::start(&source, &mount.path(KEY), true, &["0:6291456", "hold", "6291456:6291456"]);
    assert!(writer.wait_for("held"), "{:?}", writer.told);
    let before = place.disk.change_count();
    std::fs::remove_dir_all(place.disk.backing().join("state")).unwrap();
    let told = writer.end();
    // The open files are still there, so this file may even end well; then the object is whole.
    let object = place.world.bucket.get(KEY).ok();
    let content = random_bytes(1, SIZE as usize);
    let as_far = content[..12 << 20].to_vec();
    assert!(object.as_ref().is_none_or(|bytes| told.ok && *bytes == as_far), "{told:?}");
    assert!(!told.ok || object.is_some(), "closed well, and not in the bucket: {told:?}");
    assert!(place.disk.change_count() > before, "nothing was tried");
    // A new file has no place.
    let path = mount.path("new");
    let refused = within(WAIT, "a write", move || std::fs::write(path, b"text"));
    assert!(refused.is_err(), "written to a state directory that is gone");
    assert_eq!(place.world.bucket.head("new").unwrap(), None);
    assert!(!mount.has_ended(), "bosfs ended");
    let path = mount.path("");
    assert!(within(WAIT, "a listing", move || std::fs::read_dir(path).is_ok()));
    let ended = mount.end_by(rustix::process::Signal::TERM, WAIT);
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}\n{}", place.log_tail());
    assert!(wait_until(WAIT, || !crate::support::mounted::is_mounted(mount.dir())));
}
