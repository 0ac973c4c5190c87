//! Objects of more than a growing part plan reaches (24 TB), and of more than any does. The bytes are zeros that are stored
//! nowhere, and the state directory is on a file system that has such files.

use std::os::unix::fs::PermissionsExt as _;

use crate::support::call::Call;
use crate::support::mounted::MountSpec;
use crate::support::world::{BUCKET, World};
use crate::support::{Action, HoldAt, When};
use crate::{SMALL_PARTS, WAIT, shell, shell_fails, unmount};

/// 6,000 of the largest parts, and a block: 30 TB.
const HUGE: u64 = 6000 * (4768 << 20) + 4096;
/// What no list of 10,000 parts of 5 GB reaches.
const TOO_HUGE: u64 = 52_000_000_000_000;

/// A mount with its state directory in memory, where sparse files may be of any size.
fn spec(world: &World, dir: &tempfile::TempDir) -> MountSpec {
    let mut spec = world.spec(&[]);
    spec.state_dir = dir.path().join("state");
    spec
}

fn in_memory() -> tempfile::TempDir {
    let dir = tempfile::TempDir::with_prefix_in("bosfs-test-", "/dev/shm").expect("a tmpfs at /dev/shm");
    let file = std::fs::File::create(dir.path().join("probe")).unwrap();
    file.set_len(TOO_HUGE + (1 << 20)).expect("/dev/shm has files of 52 TB");
    dir
}

/// Longest time for an object of 30 TB: 6,000 requests.
const LONG: std::time::Duration = std::time::Duration::from_secs(500);

/// A new mode leaves an object of 30 TB whole: all of it is copied within BOS, and its size is compared before it counts.
#[test]
fn an_object_of_30_tb_stays_whole_when_it_gets_a_new_mode() {
    let world = World::new();
    let memory = in_memory();
    world.server.handle().put_sparse(BUCKET, "huge", HUGE).unwrap();
    let mut mount = spec(&world, &memory).mount().unwrap();
    let path = mount.path("huge");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), HUGE);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let output = mount.umount(LONG);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    let reply = world.bucket.head_reply("huge").unwrap().unwrap();
    assert_eq!((reply.size(), reply.header("x-bce-meta-bosfs-mode")), (HUGE, Some("33152")));
    assert_eq!(
        world.proxy.counts().requests(Call::UploadPartCopy),
        6000,
        "the last block goes with the part before it"
    );
}

/// An append leaves an object of 30 TB whole: all but its last part is copied within BOS, and its size is compared before
/// the close returns.
#[test]
fn an_object_of_30_tb_stays_whole_when_it_is_appended_to() {
    let world = World::new();
    let memory = in_memory();
    world.server.handle().put_sparse(BUCKET, "huge", HUGE).unwrap();
    let mut mount = spec(&world, &memory).mount().unwrap();
    let dir = mount.dir().display().to_string();
    let appended = crate::support::mounted::sh(&format!("printf tail >> {dir}/huge"), LONG);
    assert!(appended.status.success(), "{appended:?}\n{}", mount.log_text());
    let counts = world.proxy.counts();
    assert_eq!(world.bucket.head("huge").unwrap().unwrap().size, HUGE + 4);
    assert_eq!(counts.requests(Call::UploadPartCopy), 6000);
    assert!(counts.bytes_sent() < 2 << 20, "{} bytes sent", counts.bytes_sent());
    let range = format!("bytes={}-", HUGE - 2);
    assert_eq!(world.bucket.ask("GET", "huge", &[], &[("range", &range)], b"").unwrap().1, b"\0\0tail");
    unmount(&mut mount);
}

/// A size in BOS that is not that of what was written is seen before a close returns, also where the ETag is the one that was
/// to be expected.
#[test]
fn a_size_that_does_not_fit_is_seen_although_the_etag_does() {
    let world = World::new();
    world.server.handle().put_sparse(BUCKET, "big", 100 << 20).unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    let dir = mount.dir().display().to_string();
    shell(&format!("test -f {dir}/big"));
    // Told once, right behind the Complete.
    let cut = [("content-length".to_owned(), (64 << 20).to_string())];
    let held = world.proxy.hold(When::call(Call::Complete).once(), HoldAt::BeforeForward);
    let appending = std::thread::spawn(move || shell(&format!("printf tail >> {dir}/big")));
    assert!(held.wait_hit(WAIT), "{}", mount.log_text());
    let fault = Action::EditAnswer { set: cut.to_vec(), remove: Vec::new() };
    let told = world.proxy.fault(When::call(Call::HeadObject).key("big").once(), fault);
    held.release();
    appending.join().unwrap();
    assert_eq!(told.hits(), 1, "nobody asked how large it is\n{}", world.proxy.counts().log_text());
    assert!(mount.log_text().contains("67108864 bytes where 104857604 were written"), "{}", mount.log_text());
    assert_eq!(world.bucket.head("big").unwrap().unwrap().size, (100 << 20) + 4);
    unmount(&mut mount);
}

/// What is too large for the parts of one upload is refused with EFBIG before anything is sent: a write at once, a rename
/// too, and a new mode behind; the object stays as it was.
#[test]
fn an_object_that_no_upload_can_hold_is_refused_and_not_cut() {
    let world = World::new();
    let memory = in_memory();
    world.server.handle().put_sparse(BUCKET, "huge", TOO_HUGE).unwrap();
    world.server.handle().put_sparse(BUCKET, "other", TOO_HUGE).unwrap();
    let before = world.bucket.head("huge").unwrap();
    let mut mount = spec(&world, &memory).mount().unwrap();
    let dir = mount.dir().display().to_string();
    let complaint = shell_fails(&format!("printf tail >> {dir}/huge"));
    assert!(complaint.contains("File too large"), "{complaint}");
    let complaint = shell_fails(&format!("mv {dir}/huge {dir}/moved"));
    assert!(complaint.contains("File too large"), "{complaint}");
    shell(&format!("chmod 600 {dir}/other"));
    let output = mount.umount(WAIT);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("52000000000000 bytes"), "{output:?}\n{}", mount.log_text());
    let counts = world.proxy.counts();
    let changes = [Call::Initiate, Call::CopyObject, Call::PutObject, Call::DeleteObject, Call::BatchDelete];
    assert_eq!(changes.map(|call| counts.requests(call)), [0; 5], "{}", counts.log_text());
    assert_eq!(world.bucket.head("huge").unwrap(), before);
    assert_eq!(world.bucket.list("").unwrap(), ["huge", "other"]);
}

/// A file whose length is announced beforehand may have more than 24 TB.
#[test]
fn a_length_of_30_tb_can_be_announced() {
    let world = World::new();
    let memory = in_memory();
    let mut mount = spec(&world, &memory).mount().unwrap();
    let file = std::fs::File::create(mount.path("new")).unwrap();
    file.set_len(HUGE).unwrap();
    assert_eq!(file.metadata().unwrap().len(), HUGE);
    let error = file.set_len(TOO_HUGE).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    // Bytes behind what a stream of unknown length reaches.
    std::os::unix::fs::FileExt::write_all_at(&file, b"tail", HUGE).unwrap();
    assert_eq!(file.metadata().unwrap().len(), HUGE + 4);
    // 30 TB of zeros would have to be sent.
    file.set_len(0).unwrap();
    drop(file);
    unmount(&mut mount);
    assert_eq!(world.bucket.head("new").unwrap().unwrap().size, 0);
}
