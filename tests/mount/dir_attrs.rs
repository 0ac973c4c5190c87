//! Mode, owner and times of directories.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::support::{Call, World};
use crate::{WAIT, shell, timed};

/// A value of the marker's metadata, asked past the mount.
fn marker(world: &World, key: &str, name: &str) -> Option<String> {
    let reply = world.bucket.head_reply(key).unwrap()?;
    reply.header(&format!("x-bce-meta-bosfs-{name}")).map(str::to_owned)
}

fn wait_marker(world: &World, key: &str, name: &str, value: &str) {
    let end = Instant::now() + Duration::from_secs(10);
    while marker(world, key, name).as_deref() != Some(value) {
        assert!(
            Instant::now() < end,
            "{key} has {name} {:?}, not {value}\n{}",
            marker(world, key, name),
            world.log_text()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn set_mtime(path: &Path, seconds: u64) {
    File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

#[test]
fn a_directory_made_and_given_attributes_is_two_puts() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    world.proxy.take_counts();
    let dir = mount.path("d");
    timed(move || {
        fs::create_dir(&dir).unwrap();
        chmod(&dir, 0o2751);
        chown(&dir, Some(1234), Some(4321)).unwrap();
        set_mtime(&dir, 1_000_000_000);
        chmod(&dir, 0o2751);
        let meta = fs::metadata(&dir).unwrap();
        assert_eq!((meta.mode(), meta.uid(), meta.gid(), meta.mtime()), (0o42751, 1234, 4321, 1_000_000_000));
    });
    assert!(mount.umount(WAIT).status.success(), "{}", mount.log_text());
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::PutObject), 2, "{}", counts.log_text());
    let value = |name| marker(&world, "d/", name).unwrap();
    assert_eq!((value("mode"), value("mtime")), (0o42751.to_string(), "1000000000".to_owned()));
    assert_eq!((value("uid"), value("gid")), ("1234".to_owned(), "4321".to_owned()));
    // The same values again, after a remount: nothing is sent.
    let mut mount = world.mount(&[]);
    world.proxy.take_counts();
    let dir = mount.path("d");
    timed(move || {
        let meta = fs::metadata(&dir).unwrap();
        assert_eq!((meta.mode(), meta.uid(), meta.gid(), meta.mtime()), (0o42751, 1234, 4321, 1_000_000_000));
        chmod(&dir, 0o2751);
        set_mtime(&dir, 1_000_000_000);
    });
    assert!(mount.umount(WAIT).status.success());
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::PutObject), 0, "{}", counts.log_text());
}

#[test]
fn attributes_of_a_directory_without_marker_make_one() {
    let world = World::new();
    world.bucket.put("implicit/file", b"x").unwrap();
    let mount = world.mount(&[]);
    shell(&format!("chmod 700 {0}/implicit && stat -c %a {0}/implicit | grep -x 700", mount.dir().display()));
    wait_marker(&world, "implicit/", "mode", &0o40700.to_string());
}

#[test]
fn attributes_set_right_before_a_kill_are_shown_and_sent_by_the_next_mount() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    shell(&format!("cd {} && mkdir a b c", mount.dir().display()));
    shell(&format!("cd {} && chmod 711 a b c", mount.dir().display()));
    mount.kill();
    assert_eq!(marker(&world, "a/", "mode"), Some(0o40755.to_string()), "it was sent before the kill");
    // Somebody else has b written anew meanwhile, and c removed.
    std::thread::sleep(Duration::from_millis(3100));
    world.bucket.put("b/", b"").unwrap();
    world.bucket.delete("c/").unwrap();
    mount.remount().unwrap();
    shell(&format!("stat -c %a {}/a | grep -x 711", mount.dir().display()));
    wait_marker(&world, "a/", "mode", &0o40711.to_string());
    assert!(mount.umount(WAIT).status.success());
    assert_eq!(marker(&world, "b/", "mode"), None, "a foreign change was overwritten");
    assert!(world.bucket.head("c/").unwrap().is_none(), "a removed directory came back");
    assert_eq!(fs::metadata(world.state_dir().join("dir-attributes.log")).unwrap().len(), 0);
}

#[test]
fn a_directory_removed_right_after_a_change_stays_removed() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    shell(&format!("cd {} && mkdir a && chmod 711 a && rmdir a", mount.dir().display()));
    shell(&format!("cd {} && mkdir b && chmod 711 b && sleep 0.6 && chmod 701 b && rmdir b", mount.dir().display()));
    assert!(mount.umount(WAIT).status.success());
    assert_eq!(world.bucket.list("").unwrap(), [] as [String; 0]);
}

/// Changes something in a directory.
type Act = fn(&Path);

#[test]
fn entries_that_come_and_go_change_the_times_of_their_directory() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    let dir = mount.path("d");
    let last = timed(move || {
        fs::create_dir(&dir).unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        let acts: [(&str, Act); 6] = [
            ("create", |d| drop(File::create(d.join("f")).unwrap())),
            ("symlink", |d| std::os::unix::fs::symlink("t", d.join("l")).unwrap()),
            ("mkdir", |d| fs::create_dir(d.join("e")).unwrap()),
            ("rename", |d| fs::rename(d.join("f"), d.join("sub/g")).unwrap()),
            ("unlink", |d| fs::remove_file(d.join("l")).unwrap()),
            ("rmdir", |d| fs::remove_dir(d.join("e")).unwrap()),
        ];
        let mut last = 0;
        for (name, act) in acts {
            set_mtime(&dir, 1_000_000_000);
            assert_eq!(fs::metadata(&dir).unwrap().mtime(), 1_000_000_000, "an explicit time wins");
            act(&dir);
            last = fs::metadata(&dir).unwrap().mtime();
            assert!(last > 1_000_000_000, "{name} left the time of the directory alone");
        }
        assert!(fs::metadata(dir.join("sub")).unwrap().mtime() > 1_000_000_000);
        last
    });
    assert!(mount.umount(WAIT).status.success());
    // BOS has what was set, the state directory what happened since.
    assert_eq!(marker(&world, "d/", "mtime").as_deref(), Some("1000000000"));
    mount.remount().unwrap();
    let dir = mount.path("d");
    assert_eq!(timed(move || fs::metadata(dir).unwrap().mtime()), last);
    assert!(mount.umount(WAIT).status.success());
    fs::remove_dir_all(world.state_dir()).unwrap();
    mount.remount().unwrap();
    let dir = mount.path("d");
    assert_eq!(timed(move || fs::metadata(dir).unwrap().mtime()), 1_000_000_000);
}

#[test]
fn the_root_has_attributes_too() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    let root = mount.dir().to_owned();
    timed(move || chmod(&root, 0o711));
    assert!(mount.umount(WAIT).status.success());
    mount.remount().unwrap();
    assert_eq!(fs::metadata(mount.dir()).unwrap().mode(), 0o40711, "remembered by the state directory");
    assert!(mount.umount(WAIT).status.success());
    assert_eq!(world.bucket.list("").unwrap(), [] as [String; 0]);

    let mut spec = world.spec(&[]);
    spec.target = format!("{}/some/prefix", crate::support::BUCKET);
    spec.state_dir = world.path("state-of-prefix");
    let mut mount = spec.mount().unwrap();
    let root = mount.dir().to_owned();
    timed(move || chmod(&root, 0o711));
    assert!(mount.umount(WAIT).status.success());
    assert_eq!(marker(&world, "some/prefix/", "mode"), Some(0o40711.to_string()));
    fs::remove_dir_all(&spec.state_dir).unwrap();
    mount.remount().unwrap();
    assert_eq!(fs::metadata(mount.dir()).unwrap().mode(), 0o40711);
}

#[test]
fn the_change_time_of_a_directory_outlives_the_kernels_memory_and_a_remount() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    let dir = mount.path("d");
    let times = timed(move || {
        fs::create_dir(&dir).unwrap();
        File::create(dir.join("f")).unwrap();
        let made = fs::metadata(&dir).unwrap();
        set_mtime(&dir, 1_000_000_000);
        chmod(&dir, 0o700);
        let set = fs::metadata(&dir).unwrap();
        assert_eq!(set.mtime(), 1_000_000_000);
        assert!((set.ctime(), set.ctime_nsec()) > (made.ctime(), made.ctime_nsec()), "chmod leaves ctime alone");
        (set.ctime(), set.ctime_nsec())
    });
    assert!(mount.umount(WAIT).status.success());
    mount.remount().unwrap();
    let dir = mount.path("d");
    let later = timed(move || fs::metadata(dir).unwrap());
    assert_eq!((later.mtime(), later.ctime(), later.ctime_nsec()), (1_000_000_000, times.0, times.1));
}

#[test]
fn a_directorys_link_count_follows_its_subdirectories_once_they_are_known() {
    let world = World::new();
    for key in ["there/", "there/a/x", "there/b/", "there/file"] {
        world.bucket.put(key, b"").unwrap();
    }
    let mount = world.mount(&[]);
    let links = |path: &str| fs::symlink_metadata(mount.path(path)).unwrap().nlink();
    let listed = |path: &str| fs::read_dir(mount.path(path)).unwrap().count();
    assert_eq!(links("there"), 1, "not known before it was listed");
    assert_eq!(listed("there"), 3);
    assert_eq!(links("there"), 4);
    fs::create_dir(mount.path("made")).unwrap();
    assert_eq!(links("made"), 2);
    fs::create_dir(mount.path("made/c")).unwrap();
    fs::write(mount.path("made/file"), b"").unwrap();
    assert_eq!(links("made"), 3);
    fs::rename(mount.path("there/a"), mount.path("made/a")).unwrap();
    assert_eq!((links("there"), links("made")), (3, 4));
    fs::create_dir(mount.path("made/d")).unwrap();
    fs::rename(mount.path("made/c"), mount.path("made/d")).unwrap();
    assert_eq!(links("made"), 4, "one took the place of another");
    fs::remove_dir(mount.path("made/d")).unwrap();
    assert_eq!((links("made"), listed("made")), (3, 2));
    assert_eq!(links("made"), 3, "a listing tells the same");
}
