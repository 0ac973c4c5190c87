//! A new file under the name of one that was removed while it was open.

use std::fs::File;
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::WAIT;
use crate::support::{Call, HoldAt, Mounted, When, World, mounted::within};

/// A published file that was removed and is still open.
fn removed(mount: &Mounted) -> File {
    let path = mount.path("f");
    std::fs::write(&path, b"old").unwrap();
    let mut file = File::options().read(true).write(true).open(&path).unwrap();
    file.write_all(b"OLD, changed").unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    file
}

/// Waits until nothing is to be done any more, and looks at the object.
fn ends_with_the_new_file(world: &World, mount: &Mounted) {
    let end = Instant::now() + WAIT;
    while !world.journals().is_empty() {
        assert!(Instant::now() < end, "{:?}\n{}", world.journals(), mount.log_text());
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(world.bucket.get("f").unwrap(), b"new", "{}", mount.log_text());
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), b"new");
}

/// A new file under the name of a removed one that is still open is not touched by the last close of the removed one.
#[test]
fn the_last_close_of_a_removed_file_leaves_the_new_one() {
    for mode in ["--write-back", "--punch=yes"] {
        let world = World::new();
        let mount = world.mount(&[mode]);
        let mut old = removed(&mount);
        std::fs::write(mount.path("f"), b"new").unwrap();
        mount.wait_settled("f", WAIT);
        let mut text = String::new();
        std::io::Seek::rewind(&mut old).unwrap();
        old.read_to_string(&mut text).unwrap();
        assert_eq!(text, "OLD, changed", "still there for who has it open");
        drop(old);
        // Its release is seen by what it leaves behind.
        thread::sleep(Duration::from_millis(100));
        ends_with_the_new_file(&world, &mount);
    }
}

#[test]
fn a_file_that_is_made_while_the_removed_one_goes_stays() {
    let world = World::new();
    let mount = world.mount(&[]);
    let old = removed(&mount);
    let held = world.proxy.hold(When::call(Call::DeleteObject).key("f").once(), HoldAt::BeforeForward);
    drop(old);
    assert!(held.wait_hit(WAIT), "{}", mount.log_text());
    let path = mount.path("f");
    let new = thread::spawn(move || std::fs::write(path, b"new"));
    thread::sleep(Duration::from_millis(200));
    held.release();
    within(WAIT, "write", move || new.join().unwrap()).unwrap();
    ends_with_the_new_file(&world, &mount);
}

#[test]
fn a_removed_file_is_not_seen_again_after_a_kill() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    let old = removed(&mount);
    mount.kill();
    drop(old);
    world.wait_quiet();
    let held = world.proxy.hold(When::call(Call::DeleteObject).key("f").once(), HoldAt::BeforeForward);
    mount.remount().unwrap();
    assert!(held.wait_hit(WAIT), "{}", mount.log_text());
    assert!(!mount.path("f").exists());
    assert_eq!(std::fs::read_dir(mount.dir()).unwrap().count(), 0);
    let path = mount.path("f");
    let new = thread::spawn(move || std::fs::write(path, b"new"));
    thread::sleep(Duration::from_millis(200));
    held.release();
    within(WAIT, "write", move || new.join().unwrap()).unwrap();
    ends_with_the_new_file(&world, &mount);
}

#[test]
fn a_file_that_is_renamed_over_another_and_on_while_it_is_written_arrives() {
    let world = World::new();
    let mount = world.mount(&["--write-back"]);
    std::fs::write(mount.path("b"), b"replaced").unwrap();
    mount.wait_settled("b", WAIT);
    let mut file = File::create(mount.path("a")).unwrap();
    file.write_all(b"ne").unwrap();
    std::fs::rename(mount.path("a"), mount.path("b")).unwrap();
    file.write_all(b"w").unwrap();
    let (b, f) = (mount.path("b"), mount.path("f"));
    within(WAIT, "rename", move || std::fs::rename(b, f)).unwrap();
    drop(file);
    mount.wait_settled("f", WAIT);
    ends_with_the_new_file(&world, &mount);
    assert!(!mount.path("b").exists() && world.bucket.head("b").unwrap().is_none());
}
