//! Deletions and other writers: BOS knows no condition for a delete, so bosfs looks right before each one, and takes only
//! what was there when the name was removed.

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::support::fault::Rule;
use crate::support::{Action, Call, HoldAt, Line, Mounted, When, World};
use crate::{WAIT, shell, timed, unmount};

/// Files of a burst: the first eight are deleted one by one, the others behind.
const FILES: usize = 24;
/// Somebody else's object under the names `f20` and `f21`: other bytes, and the same bytes once more.
const FOREIGN: [&str; 2] = ["d/f20", "d/f21"];
const OTHER: &[u8] = b"by somebody else";

fn name(i: usize) -> String {
    format!("f{i:02}")
}

fn busy() -> Action {
    Action::error(503, "ServiceUnavailable")
}

/// [`FILES`] objects in a folder that the mount has seen.
fn seen_folder(world: &World) -> Mounted {
    for i in 0..FILES {
        let key = format!("d/{}", name(i));
        world.bucket.put(&key, key.as_bytes()).unwrap();
    }
    let mount = world.mount(&[]);
    shell(&format!("ls -l '{}'", mount.path("d").display()));
    mount
}

fn remove_all(mount: &Mounted) {
    for i in 0..FILES {
        fs::remove_file(mount.path(&format!("d/{}", name(i)))).unwrap();
    }
}

/// Somebody else writes [`FOREIGN`].
fn write_foreign(world: &World) {
    // An equal object that is written later is told by its time, which has whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    world.bucket.put(FOREIGN[0], OTHER).unwrap();
    world.bucket.put(FOREIGN[1], FOREIGN[1].as_bytes()).unwrap();
}

/// Two more requests end at the rule: the look of the second came behind whatever was done before this call. What lies
/// between a look and its delete is the window that remains, and no business of these tests.
fn wait_for_a_look(rule: &Rule) {
    let hits = rule.hits();
    assert!(rule.wait_hits(hits + 2, WAIT), "nobody tries again");
}

fn wait_until(what: &str, mount: &Mounted, holds: impl Fn() -> bool) {
    let end = Instant::now() + WAIT;
    while !holds() {
        assert!(Instant::now() < end, "not within {WAIT:?}: {what}\n{}", mount.log_text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_told(mount: &Mounted, key: &str) {
    mount.wait_state(key, WAIT, |entry| entry.is_some_and(|entry| entry["state"] == "conflict"));
    assert!(mount.log_text().contains(key), "{}", mount.log_text());
}

/// Everything but [`FOREIGN`] goes; those stay, show in the mount, and are told by `status` and `umount`.
fn assert_foreign_is_left(world: &World, mut mount: Mounted) {
    wait_until("only the foreign objects are left", &mount, || world.bucket.list("d/").unwrap() == FOREIGN);
    FOREIGN.iter().for_each(|key| wait_told(&mount, key));
    assert_eq!(world.bucket.get(FOREIGN[0]).unwrap(), OTHER);
    assert_eq!(world.bucket.get(FOREIGN[1]).unwrap(), FOREIGN[1].as_bytes());
    assert_eq!(fs::read(mount.path(FOREIGN[0])).unwrap(), OTHER);
    let output = mount.umount(WAIT);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(FOREIGN[0]), "{output:?}");
}

/// What somebody else writes between `rm -rf` and its deletions in BOS stays, is shown, and is told by `bosfs status` and
/// `bosfs umount`.
#[test]
fn what_is_written_between_rm_and_its_batch_stays() {
    let world = World::new();
    let mount = seen_folder(&world);
    // The look of a batch begins right before its first key.
    let look = world.proxy.hold(When::call(Call::ListObjects).target_contains("~"), HoldAt::BeforeForward);
    remove_all(&mount);
    assert!(look.wait_hit(WAIT), "nobody looks before the batch leaves\n{}", world.proxy.counts().log_text());
    write_foreign(&world);
    look.release();
    assert_foreign_is_left(&world, mount);
}

/// What somebody else writes while the deletions of an `rm -rf` wait for BOS or for the line stays.
#[test]
fn what_is_written_while_a_batch_waits_for_bos_or_the_line_stays() {
    for trouble in [busy(), Action::Refuse, Action::CutAfterBody] {
        let world = World::new();
        let mount = seen_folder(&world);
        let rule = world.proxy.fault(When::call(Call::BatchDelete), trouble);
        remove_all(&mount);
        assert!(rule.wait_hit(WAIT));
        write_foreign(&world);
        wait_for_a_look(&rule);
        rule.turn_off();
        assert_foreign_is_left(&world, mount);
    }
    // The whole line.
    let world = World::new();
    let mount = seen_folder(&world);
    let rule = world.proxy.fault(When::call(Call::BatchDelete), busy());
    remove_all(&mount);
    assert!(rule.wait_hit(WAIT));
    world.proxy.set_line(Line::Refused);
    rule.turn_off();
    write_foreign(&world);
    // Longer than the requests that are tried at once.
    std::thread::sleep(Duration::from_secs(3));
    world.proxy.set_line(Line::Alive);
    assert_foreign_is_left(&world, mount);
}

#[test]
fn what_is_written_behind_a_batch_whose_answer_was_lost_stays() {
    let world = World::new();
    let mount = seen_folder(&world);
    let hold = world.proxy.hold(When::call(Call::BatchDelete).once(), HoldAt::BeforeAnswer);
    remove_all(&mount);
    assert!(hold.wait_hit(WAIT));
    wait_until("BOS has deleted everything", &mount, || world.bucket.list("d/").unwrap().is_empty());
    write_foreign(&world);
    hold.drop_held();
    assert_foreign_is_left(&world, mount);
}

/// What somebody else writes between `rm -rf`, a kill of bosfs and the next mount stays.
#[test]
fn what_is_written_before_a_killed_batch_is_made_up_for_stays() {
    let world = World::new();
    let mut mount = seen_folder(&world);
    let rule = world.proxy.fault(When::call(Call::BatchDelete), busy());
    remove_all(&mount);
    assert!(rule.wait_hit(WAIT));
    mount.kill();
    world.wait_quiet();
    write_foreign(&world);
    rule.turn_off();
    mount.remount().unwrap();
    assert_foreign_is_left(&world, mount);
}

/// `rm` of an object that somebody else has written since it was last looked at gives EBUSY and leaves it; once it was
/// seen, it can be removed.
#[test]
fn rm_of_what_others_wrote_since_the_last_look_leaves_it_once() {
    let world = World::new();
    world.bucket.put("f", b"as it was seen").unwrap();
    let mut mount = world.mount(&["--metadata-ttl", "600"]);
    assert_eq!(fs::metadata(mount.path("f")).unwrap().len(), 14);
    world.bucket.put("f", OTHER).unwrap();
    let refused = fs::remove_file(mount.path("f")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EBUSY), "{refused}");
    assert_eq!(world.bucket.get("f").unwrap(), OTHER);
    assert!(mount.log_text().contains("removing f: somebody else has written it"), "{}", mount.log_text());
    fs::remove_file(mount.path("f")).unwrap();
    assert_eq!(world.bucket.head("f").unwrap(), None);
    unmount(&mut mount);
}

#[test]
fn a_single_rm_looks_again_before_it_is_repeated() {
    for trouble in [busy(), Action::Refuse, Action::CutAfterBody] {
        let world = World::new();
        world.bucket.put("f", b"as it was seen").unwrap();
        let mut mount = world.mount(&[]);
        assert!(mount.path("f").exists());
        let rule = world.proxy.fault(When::call(Call::DeleteObject).key("f"), trouble);
        let path = mount.path("f");
        let rm = std::thread::spawn(move || fs::remove_file(path));
        assert!(rule.wait_hit(WAIT));
        world.bucket.put("f", OTHER).unwrap();
        // The rule stands: a delete whose look came before that must not pass either.
        let refused = timed(move || rm.join().unwrap()).unwrap_err();
        rule.turn_off();
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY), "{refused}\n{}", mount.log_text());
        assert_eq!(world.bucket.get("f").unwrap(), OTHER);
        unmount(&mut mount);
    }
}

/// A delete that the line held back for longer than half a minute is refused by BOS when it arrives, and takes nothing
/// that was written since.
#[test]
fn a_delete_that_arrives_late_takes_nothing() {
    let world = World::new();
    world.bucket.put("f", b"as it was seen").unwrap();
    let mut mount = world.mount(&[]);
    assert!(mount.path("f").exists());
    let held = world.proxy.hold(When::call(Call::DeleteObject).key("f").once(), HoldAt::BeforeForward);
    let since = Instant::now();
    let path = mount.path("f");
    // The second try reaches BOS, after the first one was given up.
    timed(move || fs::remove_file(path)).unwrap();
    assert_eq!(held.hits(), 1);
    world.bucket.put("f", OTHER).unwrap();
    // The delete is valid for 30 s and those of its look, which took under one; times have whole seconds.
    std::thread::sleep(Duration::from_secs(33).saturating_sub(since.elapsed()));
    held.release();
    world.wait_quiet();
    let arrived = world.server.handle().counts()["DeleteObject"].requests;
    let accepted = world.proxy.counts().of(Call::DeleteObject).accepted;
    assert_eq!((arrived, accepted), (2, 1), "{}", world.proxy.counts().log_text());
    assert_eq!(world.bucket.get("f").unwrap(), OTHER);
    unmount(&mut mount);
}

#[test]
fn the_folder_that_others_make_anew_while_it_is_removed_stays() {
    let world = World::new();
    world.bucket.put("d/", b"").unwrap();
    let mut mount = world.mount(&[]);
    assert!(mount.path("d").exists());
    let look = world.proxy.hold(When::call(Call::HeadObject).key("d/").once(), HoldAt::BeforeForward);
    let path = mount.path("d");
    let rmdir = std::thread::spawn(move || fs::remove_dir(path));
    assert!(look.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    std::thread::sleep(Duration::from_millis(1100));
    world.bucket.put("d/", b"").unwrap();
    look.release();
    let refused = timed(move || rmdir.join().unwrap()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EBUSY), "{refused}");
    assert_eq!(world.bucket.list("").unwrap(), ["d/"]);
    fs::remove_dir(mount.path("d")).unwrap();
    assert!(world.bucket.list("").unwrap().is_empty());
    unmount(&mut mount);
}

fn renaming(mount: &Mounted, from: &str, to: &str) -> JoinHandle<std::io::Result<()>> {
    let (from, to): (PathBuf, PathBuf) = (mount.path(from), mount.path(to));
    std::thread::spawn(move || fs::rename(from, to))
}

/// A rename whose deletions BOS refuses, as long as the rule stands; then somebody else writes under an old name. `killed`:
/// bosfs dies in between.
fn rename_meanwhile(world: &World, mount: &mut Mounted, names: (&str, &str), killed: bool, writes: impl FnOnce()) {
    let calls = vec![Call::DeleteObject, Call::BatchDelete];
    let rule: Rule = world.proxy.fault(When { calls, ..When::any() }, busy());
    let renaming = renaming(mount, names.0, names.1);
    assert!(rule.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    if killed {
        mount.kill();
        world.wait_quiet();
    }
    std::thread::sleep(Duration::from_millis(1100));
    writes();
    let told = || mount.file_status(names.0).is_some_and(|entry| entry["state"] == "conflict");
    match (killed, names.0) {
        (true, _) => {}
        // Nothing is left to be deleted, once it has been looked at.
        (false, "a") => wait_until("what is there is told", mount, told),
        (false, _) => wait_for_a_look(&rule),
    }
    rule.turn_off();
    let renamed = timed(move || renaming.join().unwrap());
    if killed {
        mount.remount().unwrap();
    } else {
        renamed.unwrap();
    }
}

/// What somebody else writes under the old name of a renamed file, or in a renamed folder, while the old names wait for
/// their deletion stays and is told, also after a kill and a remount in between.
#[test]
fn what_is_written_under_an_old_name_before_its_deletion_stays() {
    for killed in [false, true] {
        for bytes in [OTHER, b"content"] {
            let world = World::new();
            world.bucket.put("a", b"content").unwrap();
            let mut mount = world.mount(&[]);
            assert!(mount.path("a").exists());
            rename_meanwhile(&world, &mut mount, ("a", "b"), killed, || drop(world.bucket.put("a", bytes).unwrap()));
            wait_told(&mount, "a");
            assert_eq!(world.bucket.get("a").unwrap(), bytes, "killed: {killed}");
            assert_eq!(world.bucket.get("b").unwrap(), b"content");
            assert_eq!(mount.umount(WAIT).status.code(), Some(3));
        }
        let world = World::new();
        for i in 0..5 {
            world.bucket.put(&format!("old/{i}"), b"content").unwrap();
        }
        let mut mount = world.mount(&[]);
        assert!(mount.path("old").exists());
        let foreign = ["old/2", "old/3", "old/new"];
        rename_meanwhile(&world, &mut mount, ("old", "new"), killed, || {
            let bytes = [OTHER, b"content", OTHER];
            foreign.iter().zip(bytes).for_each(|(key, bytes)| drop(world.bucket.put(key, bytes).unwrap()));
        });
        wait_until("the other old names are gone", &mount, || world.bucket.list("old/").unwrap() == foreign);
        // The third is a new name: in its own time a file as any other.
        foreign[..2].iter().for_each(|key| wait_told(&mount, key));
        for i in 0..5 {
            assert_eq!(world.bucket.get(&format!("new/{i}")).unwrap(), b"content");
        }
        assert_eq!(mount.umount(WAIT).status.code(), Some(3));
    }
}

#[test]
fn a_copy_onto_a_name_that_must_be_free_looks_again_before_it_is_repeated() {
    let world = World::new();
    world.bucket.put("a", b"content").unwrap();
    let mut mount = world.mount(&[]);
    assert!(mount.path("a").exists() && !mount.path("b").exists());
    let rule = world.proxy.fault(When::call(Call::CopyObject).key("b"), busy());
    let (from, to) = (mount.path("a"), mount.path("b"));
    let renaming = std::thread::spawn(move || renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE));
    assert!(rule.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    world.bucket.put("b", OTHER).unwrap();
    let refused = timed(move || renaming.join().unwrap()).unwrap_err();
    assert!(rule.hits() > 0);
    assert_eq!(refused, rustix::io::Errno::EXIST, "{}", mount.log_text());
    assert_eq!(world.bucket.get("a").unwrap(), b"content");
    assert_eq!(world.bucket.get("b").unwrap(), OTHER);
    unmount(&mut mount);
}

/// What somebody else writes under the name of a removed file before its object goes with the last handle stays and is
/// told, also after a kill and a remount in between.
#[test]
fn what_is_written_under_the_name_of_an_unlinked_file_stays() {
    let cases = [false, true].into_iter().flat_map(|killed| [(killed, OTHER), (killed, b"content".as_slice())]);
    for (killed, bytes) in cases {
        let world = World::new();
        world.bucket.put("f", b"content").unwrap();
        let mut mount = world.mount(&[]);
        let rule = world.proxy.fault(When::call(Call::DeleteObject).key("f"), busy());
        let file = File::open(mount.path("f")).unwrap();
        fs::remove_file(mount.path("f")).unwrap();
        drop(file);
        assert!(rule.wait_hit(WAIT));
        if killed {
            mount.kill();
            world.wait_quiet();
        }
        // The same bytes are told by their time, which has whole seconds.
        std::thread::sleep(Duration::from_millis(1100));
        world.bucket.put("f", bytes).unwrap();
        if killed {
            mount.remount().unwrap();
        }
        // The rule stands: a delete whose look came before that must not pass either.
        wait_told(&mount, "f");
        rule.turn_off();
        assert_eq!(world.bucket.get("f").unwrap(), bytes, "killed: {killed}");
        wait_until("it shows again", &mount, || mount.path("f").exists());
        assert_eq!(fs::read(mount.path("f")).unwrap(), bytes);
        assert_eq!(mount.umount(WAIT).status.code(), Some(3));
    }
}

/// `rm -rf` of 2500 objects costs one page of a listing and one request for each batch of up to 1000, besides the first
/// few and what it costs to walk the tree.
#[test]
fn a_batch_costs_one_look_and_one_request() {
    let world = World::new();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let bucket = world.bucket.clone();
            std::thread::spawn(move || {
                for i in (thread..2500).step_by(4) {
                    bucket.put(&format!("many/file-{i:05}"), b"x").unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut mount = world.mount(&[]);
    shell(&format!("ls -l '{}' | tail -n 1", mount.path("many").display()));
    world.proxy.take_counts();
    shell(&format!("rm -rf '{}'", mount.path("many").display()));
    unmount(&mut mount);
    let counts = world.proxy.counts();
    let (singles, batches) = (counts.requests(Call::DeleteObject), counts.requests(Call::BatchDelete));
    let looks = counts.log.iter().filter(|l| l.asked.call == Call::ListObjects && l.asked.target.contains('~')).count();
    println!(
        "rm -rf of 2500 objects: {singles} single deletes, {} HEADs, {looks} looks and {batches} batches, {} lists in all",
        counts.requests(Call::HeadObject),
        counts.requests(Call::ListObjects)
    );
    // Eight, but for a machine so busy that they take longer than a second.
    assert!(singles >= 8, "{singles} single deletes");
    assert_eq!(singles, counts.requests(Call::HeadObject), "{}", counts.log_text());
    assert_eq!(looks as u64, batches, "{}", counts.log_text());
    // Three, but for a machine so busy that batches have to leave before they are full.
    assert!((3..=40).contains(&batches), "{batches} batches");
    assert!(world.bucket.list("").unwrap().is_empty());
}
