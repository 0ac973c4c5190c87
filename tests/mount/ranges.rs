//! Holes, zeros, and copies within the mount.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use crate::support::call::Call;
use crate::support::files::random_bytes;
use crate::support::{HoldAt, Mounted, When, World};
use crate::{PART, SMALL_PARTS, WAIT, shell, unmount};

/// What `cp FROM TO` does with a file of `len` bytes in one mount.
fn copy_within(mount: &Mounted, from: &str, to: &str, len: usize) {
    let (source, copy) = (File::open(mount.path(from)).unwrap(), File::create(mount.path(to)).unwrap());
    assert_eq!(rustix::fs::copy_file_range(&source, None, &copy, None, len).unwrap(), len);
}

/// `fallocate` punches and zeroes ranges as on a disk: they read as zeros at once, and so they are published.
#[test]
fn punched_and_zeroed_ranges_read_as_zeros_and_are_published_so() {
    let world = World::new();
    let mut bytes = random_bytes(1, 3 * PART as usize + 100);
    world.bucket.put("f", &bytes).unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    let file = OpenOptions::new().read(true).write(true).open(mount.path("f")).unwrap();
    file.write_all_at(b"written", PART + 3).unwrap();
    bytes[PART as usize + 3..][..7].copy_from_slice(b"written");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, PART - 10, 100_000).unwrap();
    bytes[PART as usize - 10..][..100_000].fill(0);
    fallocate(&file, punch, bytes.len() as u64 - 50, 5000).unwrap();
    let len = bytes.len();
    bytes[len - 50..].fill(0);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 5, 20).unwrap();
    bytes[5..25].fill(0);
    fallocate(&file, FallocateFlags::ZERO_RANGE, len as u64 - 10, 30).unwrap();
    bytes.resize(len + 20, 0);
    assert!(std::fs::read(mount.path("f")).unwrap() == bytes);
    file.write_all_at(b"again", PART + 50_000).unwrap();
    bytes[PART as usize + 50_000..][..5].copy_from_slice(b"again");
    assert!(std::fs::read(mount.path("f")).unwrap() == bytes);
    drop(file);
    unmount(&mut mount);
    assert!(world.bucket.get("f").unwrap() == bytes);
}

#[test]
fn holes_of_a_file_that_is_written_are_found() {
    let world = World::new();
    let mount = world.mount(&SMALL_PARTS);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(mount.path("f")).unwrap();
    file.write_all_at(&[1; 8192], 1 << 20).unwrap();
    file.set_len(3 << 20).unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(0)).unwrap(), 1 << 20);
    assert_eq!(seek(&file, SeekFrom::Hole(1 << 20)).unwrap(), (1 << 20) + 8192);
    assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), 0);
    assert_eq!(seek(&file, SeekFrom::Data(2 << 20)).unwrap_err(), rustix::io::Errno::NXIO);
    fallocate(&file, FallocateFlags::empty(), 4 << 20, 100).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (4 << 20) + 100);
    fallocate(&file, FallocateFlags::KEEP_SIZE, 9 << 20, 100).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (4 << 20) + 100);
}

#[test]
fn a_killed_mount_has_the_punched_ranges_too() {
    let world = World::new();
    let mut bytes = random_bytes(2, 1 << 20);
    world.bucket.put("f", &bytes).unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    let file = OpenOptions::new().read(true).write(true).open(mount.path("f")).unwrap();
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 10_000, 500_000).unwrap();
    bytes[10_000..510_000].fill(0);
    mount.kill();
    drop(file);
    let mount = world.mount(&SMALL_PARTS);
    assert!(std::fs::read(mount.path("f")).unwrap() == bytes);
}

/// `cp a b` within the mount is one copy within BOS: no byte of the file is sent or fetched.
#[test]
fn a_copy_within_the_mount_moves_no_bytes() {
    let world = World::new();
    let (small, large) = (random_bytes(3, 1000), random_bytes(4, 4 * PART as usize + 11));
    world.bucket.put("small", &small).unwrap();
    world.bucket.put("large", &large).unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    let dir = mount.dir().display().to_string();
    world.proxy.take_counts();
    shell(&format!("cp {dir}/small {dir}/small2 && cp --reflink=auto {dir}/large {dir}/large2"));
    unmount(&mut mount);
    let counts = world.proxy.counts();
    assert_eq!(counts.bytes_sent(), 0, "{}", counts.log_text());
    assert_eq!(counts.requests(Call::GetObject) + counts.requests(Call::PutObject), 0, "{}", counts.log_text());
    assert_eq!(counts.requests(Call::CopyObject), 2, "{}", counts.log_text());
    assert!(world.bucket.get("small2").unwrap() == small);
    assert!(world.bucket.get("large2").unwrap() == large);
}

#[test]
fn a_copy_that_is_changed_before_it_is_closed_sends_the_changed_part_alone() {
    let world = World::new();
    let mut bytes = random_bytes(5, 4 * PART as usize);
    world.bucket.put("a", &bytes).unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    let source = File::open(mount.path("a")).unwrap();
    let mut copy = File::create_new(mount.path("b")).unwrap();
    let mut copied = 0;
    while copied < bytes.len() {
        let n = rustix::fs::copy_file_range(&source, None, &copy, None, bytes.len() - copied).unwrap();
        assert!(n > 0);
        copied += n;
    }
    copy.write_all_at(b"changed", 2 * PART + 100).unwrap();
    copy.write_all(b"and longer").unwrap();
    bytes[2 * PART as usize + 100..][..7].copy_from_slice(b"changed");
    bytes.extend_from_slice(b"and longer");
    assert!(std::fs::read(mount.path("b")).unwrap() == bytes, "before it is published");
    drop((source, copy));
    unmount(&mut mount);
    assert!(world.bucket.get("b").unwrap() == bytes);
    assert_eq!(world.proxy.counts().bytes_sent(), PART + 10, "{}", world.proxy.counts().log_text());
}

/// A copy within the mount that is not closed yet comes out whole although its source is removed, overwritten or
/// renamed meanwhile.
#[test]
fn an_unfinished_copy_survives_its_source() {
    let world = World::new();
    let bytes = random_bytes(6, 2 * PART as usize);
    world.bucket.put("a", &bytes).unwrap();
    for (round, act) in ["rm $A", "echo x > $A", "mv $A $C"].iter().enumerate() {
        world.bucket.put("a", &bytes).unwrap();
        let mut mount = world.mount(&SMALL_PARTS);
        let copy = File::create(mount.path("b")).unwrap();
        let source = File::open(mount.path("a")).unwrap();
        assert!(rustix::fs::copy_file_range(&source, None, &copy, None, bytes.len()).unwrap() > 0);
        drop(source);
        let dir = mount.dir().display();
        shell(&format!("A={dir}/a; C={dir}/c; {act}"));
        drop(copy);
        unmount(&mut mount);
        assert!(world.bucket.get("b").unwrap() == bytes, "round {round}: {act}");
    }
}

/// A copy within the mount onto an existing file can be renamed before it is closed, alone, over another file and with its
/// folder, as any file that is being written.
#[test]
fn an_unfinished_copy_onto_a_file_can_be_renamed() {
    let world = World::new();
    let bytes = random_bytes(6, 2 * PART as usize);
    for (round, act) in ["mv $D/d/b $D/c", "echo x > $D/c; mv $D/d/b $D/c", "mv $D/d $D/e"].iter().enumerate() {
        world.bucket.put("a", &bytes).unwrap();
        world.bucket.put("d/b", b"what was there").unwrap();
        let mut mount = world.mount(&SMALL_PARTS);
        let copy = OpenOptions::new().write(true).truncate(true).open(mount.path("d/b")).unwrap();
        let source = File::open(mount.path("a")).unwrap();
        assert!(rustix::fs::copy_file_range(&source, None, &copy, None, bytes.len()).unwrap() > 0);
        shell(&format!("D={}; {act}", mount.dir().display()));
        drop((copy, source));
        unmount(&mut mount);
        let now = if round == 2 { "e/b" } else { "c" };
        assert!(world.bucket.get(now).unwrap() == bytes, "round {round}: {act}\n{}", mount.log_text());
        assert!(world.bucket.head("d/b").unwrap().is_none(), "round {round}: {act}");
    }
}

/// A copy within the mount that is finished while its source is overwritten, and while bytes of the source are being
/// fetched for it, disturbs neither: the copy has the old bytes and the source the new ones.
#[test]
fn a_copy_that_is_finished_while_its_source_is_overwritten_disturbs_nobody() {
    let world = World::new();
    let bytes = random_bytes(7, 100_000);
    world.bucket.put("a", &bytes).unwrap();
    let mut mount = world.mount(&["--write-back"]);
    let copying = world.proxy.hold(When::call(Call::CopyObject).key("b").once(), HoldAt::BeforeForward);
    let fetching = world.proxy.hold(When::call(Call::GetObject).key("a").once(), HoldAt::BeforeAnswer);
    copy_within(&mount, "a", "b", bytes.len());
    assert!(copying.wait_hit(WAIT), "{}", mount.log_text());
    std::fs::write(mount.path("a"), b"overwritten").unwrap();
    assert!(fetching.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    copying.release();
    mount.wait_settled("b", WAIT);
    fetching.release();
    world.wait_object("a", 11, WAIT);
    unmount(&mut mount);
    assert!(world.bucket.get("b").unwrap() == bytes);
    assert_eq!(world.bucket.get("a").unwrap(), b"overwritten");
}

/// A copy within the mount whose CopyObject has to be sent again after its source was overwritten here is finished with the
/// bytes that were fetched before.
#[test]
fn a_copy_that_is_tried_again_after_its_source_was_overwritten_is_finished() {
    let world = World::new();
    let bytes = random_bytes(8, 100_000);
    world.bucket.put("a", &bytes).unwrap();
    let mut mount = world.mount(&["--write-back"]);
    let hold = || world.proxy.hold(When::call(Call::CopyObject).key("b").once(), HoldAt::BeforeForward);
    let lost = hold();
    copy_within(&mount, "a", "b", bytes.len());
    assert!(lost.wait_hit(WAIT), "{}", mount.log_text());
    let again = hold();
    lost.drop_held();
    assert!(again.wait_hit(WAIT), "it is not tried again\n{}", mount.log_text());
    std::fs::write(mount.path("a"), b"overwritten").unwrap();
    world.wait_object("a", 11, WAIT);
    again.release();
    unmount(&mut mount);
    assert!(world.bucket.get("b").unwrap() == bytes, "{}", mount.log_text());
}

/// Bytes of a file's former object that come late, after the file was emptied and made a copy of another one, do not get
/// into it.
#[test]
fn bytes_of_the_former_object_that_come_late_do_not_get_into_a_copy() {
    let world = World::new();
    let bytes = random_bytes(9, 100_000);
    world.bucket.put("a", &bytes).unwrap();
    world.bucket.put("f", &random_bytes(10, 5000)).unwrap();
    let mut mount = world.mount(&["--write-back"]);
    let late = world.proxy.hold(When::call(Call::GetObject).key("f").once(), HoldAt::BeforeAnswer);
    OpenOptions::new().write(true).open(mount.path("f")).unwrap().write_all_at(b"changed", 2000).unwrap();
    assert!(late.wait_hit(WAIT), "{}", mount.log_text());
    copy_within(&mount, "a", "f", bytes.len());
    late.release();
    unmount(&mut mount);
    assert!(world.bucket.get("f").unwrap() == bytes, "{}", mount.log_text());
    // What was closed before is on its way: its bytes first, then those of the copy, which are sent.
    let counts = world.proxy.counts();
    let requests = (counts.requests(Call::CopyObject), counts.requests(Call::PutObject));
    assert_eq!(requests, (0, 2), "{}", counts.log_text());
}

/// A copy within the mount that is emptied and written anew right before its CopyObject is sent is published as it was
/// closed last.
#[test]
fn a_copy_that_is_written_anew_before_it_is_made_is_published_as_it_was_closed_last() {
    let world = World::new();
    world.bucket.put("a", &random_bytes(11, 5000)).unwrap();
    world.bucket.put("f", b"before").unwrap();
    let mut mount = world.mount(&["--write-back", "--metadata-ttl", "60s"]);
    assert_eq!(std::fs::metadata(mount.path("f")).unwrap().len(), 6);
    let looking = world.proxy.hold(When::call(Call::HeadObject).key("f").once(), HoldAt::BeforeAnswer);
    copy_within(&mount, "a", "f", 5000);
    assert!(looking.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    std::fs::write(mount.path("f"), b"written anew").unwrap();
    looking.release();
    unmount(&mut mount);
    assert_eq!(world.bucket.get("f").unwrap(), b"written anew", "{}", world.proxy.counts().log_text());
    // Both were closed: the copy is made first, as it was on its way already.
    let counts = world.proxy.counts();
    let requests = (counts.requests(Call::CopyObject), counts.requests(Call::PutObject));
    assert_eq!(requests, (1, 1), "{}", counts.log_text());
}
