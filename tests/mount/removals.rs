//! Files and trees are removed: what programs see at once, and what it costs in BOS.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::{Duration, Instant};

use crate::support::{Action, Call, HoldAt, Mounted, When, World};
use crate::{WAIT, shell, timed, unmount};

/// Puts `files` objects below `prefix` into `dirs` nested directories, with markers.
pub fn fill(world: &World, prefix: &str, dirs: usize, files: usize) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    world.bucket.put(prefix, b"").unwrap();
    keys.insert(prefix.to_owned());
    let dir = |i: usize| match i % 4 {
        0 => format!("{prefix}d{i}/"),
        _ => format!("{prefix}d{}/s{i}/", i / 4 * 4),
    };
    for i in 0..dirs {
        world.bucket.put(&dir(i), b"").unwrap();
        keys.insert(dir(i));
    }
    for i in 0..files {
        let key = format!("{}f{i}", dir(i % dirs));
        world.bucket.put(&key, key.as_bytes()).unwrap();
        keys.insert(key);
    }
    keys
}

fn wait_gone(world: &World, prefix: &str) {
    let end = Instant::now() + WAIT;
    while !world.bucket.list(prefix).unwrap().is_empty() {
        assert!(Instant::now() < end, "{:?} stay\n{}", world.bucket.list(prefix).unwrap(), world.log_text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `rm -rf` of 2000 objects costs at most 40 requests that delete, and `bosfs umount` waits for them.
#[test]
fn a_tree_of_two_thousand_objects_is_removed_in_batches() {
    let world = World::new();
    fill(&world, "tree/", 40, 2000);
    world.bucket.put("trees", b"stays").unwrap();
    let mut mount = world.mount(&[]);
    world.proxy.take_counts();
    let since = Instant::now();
    shell(&format!("rm -rf '{}'", mount.path("tree").display()));
    let took = since.elapsed();
    assert!(!mount.path("tree").exists());
    let output = mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}");
    let counts = world.proxy.counts();
    let deletes = counts.requests(Call::DeleteObject) + counts.requests(Call::BatchDelete);
    println!(
        "rm -rf of 2000 objects in 41 directories: {} single and {} batch deletes, {} lists, {} HEADs, {took:?}",
        counts.requests(Call::DeleteObject),
        counts.requests(Call::BatchDelete),
        counts.requests(Call::ListObjects),
        counts.requests(Call::HeadObject),
    );
    assert!(deletes <= 40, "{deletes} delete requests");
    assert_eq!(world.bucket.list("").unwrap(), ["trees"]);
}

#[test]
fn a_name_may_be_made_again_while_its_deletion_waits() {
    let world = World::new();
    fill(&world, "d/", 1, 40);
    let mount = world.mount(&[]);
    let path = |i: usize| mount.path(&format!("d/d0/f{i}"));
    let hold = world.proxy.hold(When::call(Call::BatchDelete), HoldAt::BeforeForward);
    for i in 0..30 {
        fs::remove_file(path(i)).unwrap();
        assert!(!path(i).exists());
    }
    assert!(hold.wait_hit(WAIT));
    assert_eq!(fs::read_dir(mount.path("d/d0")).unwrap().count(), 10);
    assert!(world.bucket.head("d/d0/f29").unwrap().is_some(), "not deleted yet");
    // Another name is not held up; this one waits for its own deletion.
    fs::write(mount.path("d/d0/other"), b"other").unwrap();
    let again = path(29);
    let creating = std::thread::spawn(move || fs::write(again, b"again"));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!creating.is_finished());
    hold.release();
    timed(move || creating.join().unwrap()).unwrap();
    assert_eq!(fs::read(path(29)).unwrap(), b"again");
    assert_eq!(world.bucket.get("d/d0/f29").unwrap(), b"again");
    // A rename onto such a name, too.
    for i in 30..39 {
        fs::remove_file(path(i)).unwrap();
    }
    fs::rename(mount.path("d/d0/other"), path(38)).unwrap();
    let end = Instant::now() + WAIT;
    while world.bucket.list("d/d0/").unwrap() != ["d/d0/", "d/d0/f29", "d/d0/f38", "d/d0/f39"] {
        assert!(Instant::now() < end, "{:?}", world.bucket.list("d/d0/").unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::read(path(38)).unwrap(), b"other");
}

/// Without permission to delete, `unlink` gives EACCES, and the files stay.
#[test]
fn missing_permission_shows_at_the_first_unlink() {
    let world = World::new();
    fill(&world, "d/", 1, 20);
    let mount = world.mount(&[]);
    for call in [Call::DeleteObject, Call::BatchDelete] {
        world.proxy.fault(When::call(call), Action::error(403, "AccessDenied"));
    }
    for i in 0..20 {
        let refused = fs::remove_file(mount.path(&format!("d/d0/f{i}"))).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    }
    assert_eq!(fs::read_dir(mount.path("d/d0")).unwrap().count(), 20);
}

/// A deletion that BOS refuses later shows the file again, is named by `bosfs status`, and makes `bosfs umount` fail.
#[test]
fn a_deletion_that_is_refused_later_shows_again_and_is_told() {
    let world = World::new();
    fill(&world, "d/", 1, 20);
    let mut mount = world.mount(&[]);
    world.proxy.fault(When::call(Call::BatchDelete), Action::error(403, "AccessDenied"));
    for i in 0..20 {
        fs::remove_file(mount.path(&format!("d/d0/f{i}"))).unwrap();
    }
    let end = Instant::now() + WAIT;
    while fs::read_dir(mount.path("d/d0")).unwrap().count() != 12 {
        assert!(Instant::now() < end, "{:?}", fs::read_dir(mount.path("d/d0")).unwrap().count());
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = mount.status().to_string();
    assert!(status.contains("AccessDenied"), "{status}");
    let output = mount.umount(WAIT);
    println!("umount after refused deletions: {:?}", output.status);
    assert!(!output.status.success(), "{output:?}");
}

fn open_and_removed(world: &World, key: &str, bytes: &[u8]) -> (Mounted, File) {
    world.bucket.put(key, bytes).unwrap();
    let mount = world.mount(&[]);
    let file = File::open(mount.path(key)).unwrap();
    fs::remove_file(mount.path(key)).unwrap();
    (mount, file)
}

#[test]
fn a_clean_file_that_is_open_is_read_on_after_its_unlink() {
    let world = World::new();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 249) as u8).collect();
    let (mount, mut file) = open_and_removed(&world, "d/f", &bytes);
    assert!(!mount.path("d/f").exists());
    assert_eq!(fs::read_dir(mount.path("d")).unwrap().count(), 0);
    let mut found = Vec::new();
    file.read_to_end(&mut found).unwrap();
    assert!(found == bytes);
    file.seek(SeekFrom::Start(2_999_999)).unwrap();
    assert_eq!(file.read(&mut [0; 10]).unwrap(), 1);
    assert!(world.bucket.head("d/f").unwrap().is_some(), "it goes with the last handle");
    let other = file.try_clone().unwrap();
    drop(file);
    std::thread::sleep(Duration::from_millis(100));
    assert!(world.bucket.head("d/f").unwrap().is_some());
    drop(other);
    wait_gone(&world, "d/f");
    fs::write(mount.path("d/f"), b"a new one").unwrap();
    assert_eq!(world.bucket.get("d/f").unwrap(), b"a new one");
}

#[test]
fn a_clean_open_file_that_was_removed_goes_after_a_kill() {
    let world = World::new();
    let (mut mount, file) = open_and_removed(&world, "f", b"content");
    mount.kill();
    drop(file);
    assert!(world.bucket.head("f").unwrap().is_some());
    mount.remount().unwrap();
    assert!(!mount.path("f").exists());
    wait_gone(&world, "f");
}

/// `fsync` of a folder waits for the removals in it.
#[test]
fn fsync_of_a_directory_waits_for_its_removals() {
    let world = World::new();
    fill(&world, "d/", 1, 30);
    let mount = world.mount(&[]);
    for i in 0..30 {
        fs::remove_file(mount.path(&format!("d/d0/f{i}"))).unwrap();
    }
    File::open(mount.path("d")).unwrap().sync_all().unwrap();
    assert_eq!(world.bucket.list("d/d0/").unwrap(), ["d/d0/"]);
}

/// `bosfs umount` right behind the last close of a removed file waits until its object is gone.
#[test]
fn umount_waits_for_the_object_of_a_file_that_was_removed_while_it_was_open() {
    let world = World::new();
    world.bucket.put("f", b"bytes").unwrap();
    let mut mount = world.mount(&[]);
    let mut file = fs::File::options().append(true).open(mount.path("f")).unwrap();
    std::io::Write::write_all(&mut file, b" and more").unwrap();
    fs::remove_file(mount.path("f")).unwrap();
    let slow = world.proxy.fault(When::call(Call::DeleteObject).key("f"), Action::Delay { ms: 1500, jitter_ms: 0 });
    drop(file);
    unmount(&mut mount);
    assert_eq!(slow.hits(), 1);
    assert_eq!(world.bucket.head("f").unwrap(), None);
}
