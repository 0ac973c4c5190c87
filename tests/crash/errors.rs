//! A disk that cannot read or sync: only the file concerned fails, and whoever asks is told which, why and what to do.

use std::time::Duration;

use rustix::io::Errno;

use crate::support::crash::steps::{Writer, copy};
use crate::support::crash::{KEY, PART, Place, SIZE, WAIT, wait_until};
use crate::support::disk::fault::{DiskFault, DiskWhen, Kind};
use crate::support::fault::{HoldAt, When};
use crate::support::{Mounted, call::Call};

fn cannot_read() -> DiskFault {
    DiskFault::Fail(Errno::IO)
}

/// Mounts with two write-back files whose publication is held until bosfs was killed.
fn two_left(place: &Place, args: &[&str]) -> Mounted {
    let mut mount = place.mount(args);
    let hold = place.world.proxy.hold(When::call(Call::Initiate), HoldAt::BeforeForward);
    for (name, seed) in [("file a", 1), ("file b", 2)] {
        let source = place.world.random_file(name, seed, SIZE);
        let told = copy(&source, &mount.path(name));
        assert!(told.ok, "{told:?}");
    }
    assert!(hold.wait_hit(WAIT));
    mount.kill();
    place.world.proxy.clear_rules();
    place.world.wait_quiet();
    assert_eq!(place.journals().len(), 2);
    mount
}

/// The directory of the journal that `key` has.
fn journal_of(place: &Place, key: &str) -> String {
    let has = |dir: &&std::path::PathBuf| {
        std::fs::read(dir.join("journal")).is_ok_and(|text| String::from_utf8_lossy(&text).contains(key))
    };
    let dirs = place.journals();
    let dir = dirs.iter().find(has).expect("a journal");
    dir.file_name().unwrap().to_string_lossy().into_owned()
}

/// A spool that cannot be read makes its file `failed`, told with its key; bytes beside the bad ones are readable, the
/// bad ones give EIO, other files are published, and the next mount finishes the file once the disk reads again.
#[test]
fn a_spool_that_cannot_be_read_fails_its_file_alone() {
    let place = Place::new().unwrap();
    let mut mount = two_left(&place, &["--write-back"]);
    let spool = format!("{}/spool", journal_of(&place, "file a"));
    let bad = DiskWhen::kinds(&[Kind::Read]).path_ends(&spool).range(PART + 5000..PART + 6000);
    let rule = place.disk.fault(bad, cannot_read());
    mount = mount.spec().mount().unwrap();
    mount.wait_state("file a", WAIT, |entry| {
        entry.is_some_and(|e| e["state"] == "failed" || e["tries"].as_u64() > Some(1))
    });
    assert!(rule.hits() > 0);
    let entry = mount.file_status("file a").unwrap();
    assert_eq!(entry["state"], "failed", "{entry}");
    let told = entry["last_error"].as_str().unwrap();
    assert!(told.contains("file a") && told.contains("disk"), "{told}");
    // Bytes beside the bad ones are readable, the bad ones are an error, and the other file goes on.
    place.world.wait_object("file b", SIZE, WAIT);
    place.world.assert_object_is_file("file b", &place.world.path("file b"));
    assert_eq!(place.world.bucket.head("file a").unwrap(), None);
    let file = std::fs::File::open(mount.path("file a")).unwrap();
    let mut bytes = [0; 100];
    use std::os::unix::fs::FileExt as _;
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(file.read_exact_at(&mut bytes, PART + 5500).unwrap_err().raw_os_error(), Some(libc::EIO));
    drop(file);
    // Once the disk reads again, the next mount finishes.
    place.disk.heal();
    mount.remount().unwrap();
    place.world.wait_object("file a", SIZE, WAIT);
    place.world.assert_object_is_file("file a", &place.world.path("file a"));
}

/// A map or journal that cannot be read at a mount makes its file `failed` and keeps its bytes; other files are
/// published, and a mount on the healed disk finishes it.
#[test]
fn a_map_or_journal_that_cannot_be_read_fails_its_file_alone() {
    for name in ["map", "journal"] {
        let place = Place::new().unwrap();
        let mut mount = two_left(&place, &["--write-back"]);
        let id = journal_of(&place, "file a");
        let bad = DiskWhen::kinds(&[Kind::Read]).path_ends(&format!("{id}/{name}")).range(0..1);
        let rule = place.disk.fault(bad, cannot_read());
        mount = mount.spec().mount().unwrap();
        assert!(rule.hits() > 0, "{name} was not read");
        place.world.wait_object("file b", SIZE, WAIT);
        let status = mount.status().to_string();
        assert!(status.contains("failed") && status.contains(&id), "{name}: {status}");
        assert!(name == "journal" || mount.file_status("file a").is_some_and(|e| e["state"] == "failed"), "{status}");
        assert!(place.journals().iter().any(|dir| dir.ends_with(&id)), "{name}: the bytes are gone");
        place.disk.heal();
        mount.remount().unwrap();
        place.world.wait_object("file a", SIZE, WAIT);
        place.world.assert_object_is_file("file a", &place.world.path("file a"));
        mount.kill();
    }
}

#[test]
fn a_failed_sync_is_not_made_good_by_a_later_one() {
    for path in ["/spool", "/map", "/journal"] {
        let place = Place::new().unwrap();
        let source = place.world.random_file("source", 1, SIZE);
        let mount = place.mount(&[]);
        let rule =
            place.disk.fault(DiskWhen::kinds(&[Kind::SyncFile]).path_ends(path).once(), DiskFault::Fail(Errno::IO));
        let first = Writer::start(&source, &mount.path(KEY), true, &["0:1048576", "fsync", "hold"]);
        let told = first.end();
        assert_eq!(rule.hits(), 1, "{path}");
        assert_eq!(told.failed, Some(("fsync".to_owned(), libc::EIO)), "{path}: {told:?}");
        // Another program that syncs the same file is told as well.
        let again = Writer::start(&source, &mount.path(KEY), false, &["fsync"]).end();
        let published = place.world.bucket.head(KEY).unwrap().is_some();
        assert!(published || again.failed.is_some(), "{path}: {again:?}\n{}", place.log_tail());
        let log = place.log_tail();
        assert!(log.contains(KEY) && log.contains("sync"), "{path}: {log}");
    }
}

/// After an `fsync` that the disk failed, every further `fsync` of the same bytes gives EIO until they are in BOS.
#[test]
fn two_programs_are_told_of_a_failed_sync() {
    let place = Place::new().unwrap();
    let source = place.world.random_file("source", 1, SIZE);
    let mount = place.mount(&[]);
    let rule =
        place.disk.fault(DiskWhen::kinds(&[Kind::SyncFile]).path_ends("/spool").once(), DiskFault::Fail(Errno::IO));
    // The first one keeps the file open, so that it is not published in between.
    let mut holder = Writer::start(&source, &mount.path(KEY), true, &["0:1048576", "hold"]);
    assert!(holder.wait_for("held"));
    let file = std::fs::File::options().write(true).open(mount.path(KEY)).unwrap();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(rule.hits(), 1);
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO), "the same bytes are claimed to be safe");
    let entry = mount.file_status(KEY).unwrap();
    assert!(entry["last_error"].as_str().is_some_and(|text| text.contains(KEY) && text.contains("sync")), "{entry}");
    // They can be published all the same, and are then safe in BOS.
    drop(file);
    let told = holder.end();
    assert!(told.closed, "{told:?}");
    assert!(wait_until(WAIT, || place.world.bucket.head(KEY).unwrap().is_some_and(|seen| seen.size == 1 << 20)));
    let file = std::fs::File::options().write(true).open(mount.path(KEY)).unwrap();
    crate::support::mounted::within(Duration::from_secs(60), "fsync", move || file.sync_all()).unwrap();
}

/// A write-back `close` gives EIO when the local disk cannot sync; the upload goes on behind.
#[test]
fn a_close_with_write_back_fails_when_the_disk_cannot_sync() {
    let place = Place::new().unwrap();
    let source = place.world.random_file("source", 1, SIZE);
    let mount = place.mount(&["--write-back"]);
    let rule =
        place.disk.fault(DiskWhen::kinds(&[Kind::SyncFile]).path_ends("/spool").once(), DiskFault::Fail(Errno::IO));
    let told = copy(&source, &mount.path(KEY));
    assert_eq!((rule.hits(), told.failed.clone()), (1, Some(("close".to_owned(), libc::EIO))), "{told:?}");
    // The upload goes on behind: in BOS the bytes are safe.
    place.world.wait_object(KEY, SIZE, WAIT);
    place.world.assert_object_is_file(KEY, &source);
    assert_eq!(place.world.proxy.counts().of(Call::Complete).accepted, 1);
}
