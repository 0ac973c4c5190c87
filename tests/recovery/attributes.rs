//! Modes and times that were set right before a kill.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::overtaken::rename_killed_at;
use crate::support::{Call, HoldAt, When, World};
use crate::{KEY, WAIT, wait_no_journal};

/// A time that was set right before a kill is shown and sent by the next mount, and a mode alone does not change the time.
#[test]
fn a_time_that_was_set_right_before_a_kill_stays() {
    const SET: i64 = 1_000_000_000;
    let world = World::new();
    for (key, set_before) in [(KEY, false), ("mode", true), ("written", false)] {
        let mut mount = world.mount(&[]);
        let path = mount.path(key);
        std::fs::write(&path, b"some text").unwrap();
        let set_time = |file: &File| file.set_modified(UNIX_EPOCH + Duration::from_secs(SET as u64)).unwrap();
        if set_before {
            set_time(&File::open(&path).unwrap());
            wait_no_journal(&world);
            std::fs::set_permissions(&path, Permissions::from_mode(0o711)).unwrap();
            mount.kill();
        } else if key == KEY {
            set_time(&File::open(&path).unwrap());
            mount.kill();
        } else {
            // As `cp -p` does.
            let file = OpenOptions::new().append(true).open(&path).unwrap();
            std::io::Write::write_all(&mut &file, b", and more").unwrap();
            set_time(&file);
            mount.kill();
        }
        let mount = world.mount(&["--interrupted", "complete"]);
        assert_eq!(std::fs::metadata(&path).unwrap().mtime(), SET, "{key}\n{}", mount.log_text());
        wait_no_journal(&world);
        let reply = world.bucket.head_reply(key).unwrap().unwrap();
        assert_eq!(reply.header("x-bce-meta-bosfs-mtime"), Some("1000000000"), "{key}\n{}", mount.log_text());
    }
}

/// Attributes that were set and set back on a file are not sent to another one that was renamed over it right before a kill.
#[test]
fn attributes_set_back_before_a_rename_over_the_file_are_not_sent_after_a_kill() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    let path = mount.path(KEY);
    std::fs::write(&path, b"some text").unwrap();
    wait_no_journal(&world);
    for mode in [0o711, 0o644] {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    let temporary = mount.path(&format!(".{KEY}.aBc123"));
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&temporary).unwrap();
    std::io::Write::write_all(&mut file, b"some text").unwrap();
    drop(file);
    std::fs::rename(&temporary, &path).unwrap();
    mount.kill();
    mount.remount().unwrap();
    wait_no_journal(&world);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{}", mount.log_text());
    assert!(mount.umount(WAIT).status.success(), "{}", mount.log_text());
    assert_eq!(world.proxy.counts().requests(Call::CopyObject), 0, "{}", world.proxy.counts().log_text());
}

#[test]
fn a_mode_set_in_the_second_of_the_publication_is_shown_after_a_kill() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    std::fs::write(mount.path(KEY), b"some text").unwrap();
    // What was published reaches the memory on disk within half a second.
    std::thread::sleep(Duration::from_millis(600));
    std::fs::set_permissions(mount.path(KEY), std::fs::Permissions::from_mode(0o751)).unwrap();
    let copied = world.proxy.fault(When::call(Call::CopyObject).key(KEY), crate::support::Action::Pass);
    assert!(copied.wait_hit(WAIT));
    wait_no_journal(&world);
    mount.kill();
    mount.remount().unwrap();
    let listed = std::fs::read_dir(mount.dir()).unwrap().next().unwrap().unwrap();
    assert_eq!(listed.metadata().unwrap().permissions().mode() & 0o777, 0o751, "{}", mount.log_text());
}

/// A file that was renamed over another one with the same content, in the second of that one's publication, keeps its own
/// mode when a kill cuts the rename off.
#[test]
fn a_rename_over_an_equal_file_within_its_second_keeps_its_mode_after_a_kill() {
    const TRIES: u32 = 20;
    let second = |world: &World| {
        let reply = world.bucket.head_reply(KEY).unwrap().unwrap();
        // "Thu, 26 Nov 2026 21:04:53 GMT"
        let time = reply.header("last-modified").unwrap().split(' ').nth(4).unwrap();
        time.rsplit(':').next().unwrap().parse::<i64>().unwrap()
    };
    for (call, at) in [(Call::CopyObject, HoldAt::BeforeAnswer), (Call::DeleteObject, HoldAt::BeforeForward)] {
        // The answer to a publication tells its time but to a second or so.
        let was_within_a_second = (0..TRIES).any(|_| {
            let world = World::new();
            let mut mount = world.mount(&[]);
            for (name, mode) in [("new", 0o600), (KEY, 0o644)] {
                let path = mount.path(name);
                let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(path).unwrap();
                std::io::Write::write_all(&mut file, b"some text").unwrap();
            }
            // What was published reaches the memory on disk within half a second.
            std::thread::sleep(Duration::from_millis(600));
            let stored = second(&world);
            rename_killed_at(&world, &mut mount, "new", KEY, call, at);
            let end = Instant::now() + WAIT;
            while mount.path("new").exists() {
                assert!(Instant::now() < end, "{}", mount.log_text());
            }
            let listed = std::fs::read_dir(mount.dir()).unwrap().next().unwrap().unwrap();
            let mode = listed.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{call} {at:?}\n{}", mount.log_text());
            (second(&world) - stored).rem_euclid(60) <= 1
        });
        assert!(was_within_a_second, "{call} {at:?}: never within one second in {TRIES} tries");
    }
}

/// A mode that was set right before a rename, which a kill cut off behind its copy, is not sent to the old name by the next
/// mount: the rename is finished, and only the new name is left.
#[test]
fn attributes_wait_for_a_rename_that_the_next_mount_finishes() {
    let world = World::new();
    world.bucket.put("a", b"the file").unwrap();
    let mut mount = world.mount(&[]);
    let removed = world.proxy.hold(When::call(Call::DeleteObject).key("a").once(), HoldAt::BeforeForward);
    let (a, b) = (mount.path("a"), mount.path("b"));
    std::fs::set_permissions(&a, std::fs::Permissions::from_mode(0o640)).unwrap();
    let renaming = std::thread::spawn(move || std::fs::rename(a, b));
    assert!(removed.wait_hit(WAIT), "{}", mount.log_text());
    mount.kill();
    let _ = renaming.join();
    world.proxy.clear_rules();
    world.wait_quiet();
    world.proxy.take_counts();
    // The rename goes on with a look at the old name. What is stored a second later is told apart from what was copied.
    let looked = world.proxy.hold(When::call(Call::HeadObject).key("a").once(), HoldAt::BeforeForward);
    mount.remount().unwrap();
    assert!(looked.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    std::thread::sleep(Duration::from_millis(1500));
    looked.release();
    wait_no_journal(&world);
    assert!(mount.umount(WAIT).status.success(), "{}", mount.log_text());
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::CopyObject), 0, "{}", counts.log_text());
    assert_eq!(world.bucket.list("").unwrap(), ["b"], "{}", counts.log_text());
    mount.remount().unwrap();
    assert_eq!(std::fs::metadata(mount.path("b")).unwrap().permissions().mode() & 0o777, 0o640);
}
