//! What POSIX makes durable of names: removals, renames, and the sync of a directory. The power fails right behind the call, and
//! what was not synced is lost.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::support::Call;
use crate::support::crash::scene::Scene;
use crate::support::crash::steps::{copy, patch, program};
use crate::support::crash::{PART, Place, SIZE, WAIT};
use crate::support::disk::fault::{DiskFault, DiskWhen};
use crate::support::disk::power::Loss;
use crate::support::fault::When;
use crate::support::files::random_bytes;
use crate::support::mounted::within;

const SMALL: u64 = 100_000;
const TWO_PARTS: u64 = PART + 1000;

fn sync_dir(path: &Path) {
    let dir = File::open(path).unwrap();
    within(WAIT, "fsync of a folder", move || dir.sync_all()).unwrap();
}

fn remove(scene: &Scene, name: &str) {
    let path = scene.path(name);
    within(WAIT, "removing", move || fs::remove_file(path)).unwrap();
}

/// BOS takes no bytes.
fn refuse_bytes(scene: &Scene) {
    scene.refuse(When { calls: vec![Call::PutObject, Call::UploadPart], ..When::default() });
}

/// A file that was closed with `--write-back` and removed before BOS had it does not come back by power loss.
#[test]
fn a_removed_file_does_not_come_back_by_power_loss() {
    for size in [SMALL, SIZE] {
        let mut scene = Scene::new(&["--write-back"]);
        refuse_bytes(&scene);
        let source = scene.place.world.random_file("source", 1, size);
        let told = copy(&source, &scene.path("f"));
        assert!(told.ok, "{told:?}");
        remove(&scene, "f");
        scene.power_loss(Loss::Everything);
        scene.heal();
        scene.wait_idle();
        assert!(!scene.exists("f"), "{size} bytes are back\n{}", scene.place.log_tail());
        assert_eq!(scene.place.world.bucket.head("f").unwrap(), None, "{size} bytes are published");
    }
}

/// Power loss at any change of the state directory in the middle of the removal of a closed file that BOS does not have yet
/// leaves it whole or takes it away; once `rm` has returned it is away.
#[test]
fn power_loss_in_the_middle_of_a_removal_leaves_all_or_nothing() {
    let mut cut_off = 0;
    for (n, loss) in (0..20).zip(Loss::ALL.into_iter().cycle()) {
        let mut scene = Scene::new(&["--write-back"]);
        refuse_bytes(&scene);
        let source = scene.place.world.random_file("source", 1, TWO_PARTS);
        assert!(copy(&source, &scene.path("f")).ok);
        let rule = scene.place.disk.fault(DiskWhen::change().skip(n).once(), DiskFault::KillBefore);
        let told = program(&["rm", &scene.path("f").to_string_lossy()]);
        let hits = rule.hits();
        scene.power_loss(loss);
        scene.heal();
        scene.wait_idle();
        match scene.place.world.bucket.head("f").unwrap() {
            Some(_) => {
                assert!(!told.ok, "before change {n}, {loss:?}: it is back\n{}", scene.place.log_tail());
                scene.place.world.assert_object_is_file("f", &source);
            }
            None => assert!(!scene.exists("f"), "before change {n}, {loss:?}"),
        }
        cut_off += hits;
        if hits == 0 {
            break;
        }
    }
    assert!(cut_off >= 5, "cut off only {cut_off} times");
}

/// Power loss at one of the first 16 changes of the state directory in a rename over a closed file that BOS does not have yet
/// leaves the old file or the new one, whole; once `mv` has returned it is the new one.
#[test]
fn power_loss_in_the_middle_of_a_rename_over_a_file_leaves_one_of_them() {
    let second = random_bytes(2, SMALL as usize);
    let mut cut_off = 0;
    for (n, loss) in (0..16).zip(Loss::ALL.into_iter().cycle()) {
        let mut scene = Scene::new(&["--write-back"]);
        scene.refuse(When::call(Call::UploadPart));
        let first = scene.place.world.random_file("first", 1, TWO_PARTS);
        assert!(copy(&first, &scene.path("f")).ok);
        fs::write(scene.path("f.tmp"), &second).unwrap();
        let names = [scene.path("f.tmp"), scene.path("f")].map(|path| path.to_string_lossy().into_owned());
        let rule = scene.place.disk.fault(DiskWhen::change().skip(n).once(), DiskFault::KillBefore);
        let told = program(&["mv", &names[0], &names[1]]);
        let hits = rule.hits();
        scene.power_loss(loss);
        scene.heal();
        scene.wait_idle();
        let there = scene.place.world.bucket.get("f").unwrap_or_else(|e| {
            panic!("before change {n}, {loss:?}: {e}\n{}", scene.place.log_tail());
        });
        if there != second {
            assert!(!told.ok, "before change {n}, {loss:?}: the old one is back\n{}", scene.place.log_tail());
            scene.place.world.assert_object_is_file("f", &first);
            assert_eq!(scene.place.world.bucket.get("f.tmp").unwrap(), second);
        }
        cut_off += hits;
        if hits == 0 {
            break;
        }
    }
    assert!(cut_off >= 5, "cut off only {cut_off} times");
}

/// What somebody writes under the name of a removed file stays after power loss, also if it is equal to what was there before.
#[test]
fn an_equal_object_under_the_name_of_a_removed_file_stays_after_power_loss() {
    let base = random_bytes(7, SMALL as usize);
    let mut scene =
        Scene::prepared(&["--write-back"], |place| drop(place.world.bucket.put("f", &base).expect("an object")));
    refuse_bytes(&scene);
    let source = scene.place.world.random_file("source", 1, SMALL);
    let told = patch(&source, &scene.path("f"), 0, 5000);
    assert!(told.ok, "{told:?}");
    remove(&scene, "f");
    let bucket = &scene.place.world.bucket;
    assert_eq!(bucket.head("f").unwrap(), None, "the old object is there");
    bucket.put("f", &base).unwrap();
    scene.power_loss(Loss::Everything);
    scene.heal();
    scene.wait_idle();
    let there = scene.place.world.bucket.get("f");
    assert!(there.is_ok_and(|bytes| bytes == base), "{}", scene.place.log_tail());
}

/// A file whose name another one took before BOS had it does not come back by power loss, also while a program still reads it.
#[test]
fn a_replaced_file_does_not_come_back_by_power_loss() {
    let second = random_bytes(2, SMALL as usize);
    // One that waits for its rename, and a finished object.
    for name in ["f.tmp", "object"] {
        let prepare = |place: &Place| drop(place.world.bucket.put("object", &second).expect("an object"));
        let mut scene = Scene::prepared(&["--write-back"], prepare);
        scene.refuse(When::call(Call::UploadPart));
        let first = scene.place.world.random_file("first", 1, SIZE);
        assert!(copy(&first, &scene.path("f")).ok);
        if name == "f.tmp" {
            fs::write(scene.path(name), &second).unwrap();
        }
        let reader = File::open(scene.path("f")).unwrap();
        let names = [scene.path(name), scene.path("f")].map(|path| path.to_string_lossy().into_owned());
        let told = program(&["mv", &names[0], &names[1]]);
        assert!(told.ok, "{told:?}");
        scene.place.world.wait_object("f", SMALL, WAIT);
        scene.heal();
        // Names, but no bytes, are there beyond what was synced.
        scene.power_loss(Loss::Bytes);
        scene.wait_idle();
        let status = scene.mount().status().to_string();
        assert!(!status.contains("conflict"), "{name}: {status}");
        assert!(scene.place.world.bucket.get("f").unwrap() == second, "{name}: what was replaced is back");
        assert!(!scene.exists(name));
        drop(reader);
    }
}

/// `fsync` of a folder makes files that were made, renamed into it, renamed out of it or removed there before stay so after
/// power loss, also those that no program has closed.
#[test]
fn fsync_of_a_folder_makes_its_names_survive_power_loss() {
    let mut scene = Scene::new(&[]);
    for dir in ["a", "b", "c", "d"] {
        fs::create_dir(scene.path(dir)).unwrap();
    }
    let content = random_bytes(1, SMALL as usize);
    // Their bytes are synced; what is to be seen is what becomes of their names.
    let open = |name: &str| {
        let file = File::create(scene.path(name)).unwrap();
        file.write_all_at(&content, 0).unwrap();
        file.sync_all().unwrap();
        file
    };
    let open_files = [open("b/old"), open("c/old"), open("d/gone")];
    let made = File::create(scene.path("a/made")).unwrap();
    made.write_all_at(b"not synced", 0).unwrap();
    sync_dir(&scene.path("a"));
    fs::rename(scene.path("b/old"), scene.path("a/from b")).unwrap();
    sync_dir(&scene.path("a"));
    fs::rename(scene.path("c/old"), scene.path("b/from c")).unwrap();
    sync_dir(&scene.path("c"));
    remove(&scene, "d/gone");
    sync_dir(&scene.path("d"));
    let before = scene.syncs();
    for dir in ["a", "b", "c", "d"] {
        sync_dir(&scene.path(dir));
    }
    assert_eq!(scene.syncs(), before, "nothing was new");
    scene.power_loss(Loss::Everything);
    assert!(scene.exists("a/made"), "what was made is gone");
    assert!(!scene.exists("b/old") && scene.shown("a/from b") == content, "the rename into the folder is lost");
    assert!(!scene.exists("c/old") && scene.shown("b/from c") == content, "the rename out of the folder is lost");
    assert!(!scene.exists("d/gone"), "what was removed is back");
    drop((open_files, made));
}

/// A file that was closed after its folder was synced is what was closed after power loss, and so is one that took the name of a
/// removed file that a program still reads.
#[test]
fn a_file_whose_name_was_synced_before_its_close_is_there_after_power_loss() {
    let content = random_bytes(1, SMALL as usize);
    let prepare = |place: &Place| drop(place.world.bucket.put("again", &content).expect("an object"));
    let mut scene = Scene::prepared(&[], prepare);
    let made = File::create(scene.path("made")).unwrap();
    let reader = File::open(scene.path("again")).unwrap();
    remove(&scene, "again");
    sync_dir(scene.mount().dir());
    made.write_all_at(&content, 0).unwrap();
    within(WAIT, "closing", move || drop(made));
    // Equal to what the reader still has.
    fs::write(scene.path("again"), &content).unwrap();
    scene.power_loss(Loss::Everything);
    scene.wait_idle();
    for name in ["made", "again"] {
        let there = scene.place.world.bucket.get(name);
        assert!(there.is_ok_and(|bytes| bytes == content), "{name}\n{}", scene.place.log_tail());
        assert!(scene.shown(name) == content, "{name}");
    }
    drop(reader);
}

/// `fsync` of a folder makes its own mode and times survive power loss before BOS has them.
#[test]
fn fsync_of_a_folder_makes_its_mode_survive_power_loss() {
    let mut scene = Scene::new(&[]);
    for dir in ["d", "e"] {
        fs::create_dir(scene.path(dir)).unwrap();
    }
    refuse_bytes(&scene);
    fs::set_permissions(scene.path("d"), fs::Permissions::from_mode(0o2750)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    File::open(scene.path("d")).unwrap().set_modified(time).unwrap();
    sync_dir(&scene.path("d"));
    let before = scene.syncs();
    sync_dir(&scene.path("e"));
    assert_eq!(scene.syncs(), before, "nothing was new");
    scene.power_loss(Loss::Everything);
    let meta = fs::metadata(scene.path("d")).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.modified().unwrap()), (0o2750, time));
    scene.heal();
}

/// A temporary of rsync whose name was synced with its folder is not published without its bytes after power loss.
#[test]
fn a_temporary_without_its_bytes_is_not_published_after_power_loss() {
    let mut scene = Scene::new(&[]);
    // Also should the test take longer than it waits for its rename.
    refuse_bytes(&scene);
    // As rsync opens them: a new file, for its owner alone.
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(scene.path(".f.AbCdEf")).unwrap();
    file.write_all_at(&random_bytes(1, SMALL as usize), 0).unwrap();
    within(WAIT, "closing", move || drop(file));
    sync_dir(scene.mount().dir());
    scene.power_loss(Loss::Everything);
    let is_kept = |entry: Option<&serde_json::Value>| entry.is_some_and(|entry| entry["state"] == "interrupted");
    scene.mount().wait_state(".f.AbCdEf", WAIT, is_kept);
    scene.heal();
    assert_eq!(scene.place.world.bucket.list("").unwrap(), [] as [String; 0], "published without its bytes");
}

/// Folders that were made or removed, symbolic links, and the renames and removals of finished files are in BOS when their
/// call returns: power loss changes nothing about them.
#[test]
fn what_goes_to_bos_at_once_survives_power_loss() {
    for loss in [Loss::Everything, Loss::Nothing, Loss::Bytes] {
        let mut scene = Scene::prepared(&[], |place| {
            for key in ["kept/", "empty/", "moved", "removed", "tree/1", "tree/2"] {
                place.world.bucket.put(key, if key.ends_with('/') { b"" } else { key.as_bytes() }).expect("an object");
            }
        });
        fs::create_dir(scene.path("new")).unwrap();
        std::os::unix::fs::symlink("moved", scene.path("link")).unwrap();
        fs::remove_dir(scene.path("empty")).unwrap();
        fs::rename(scene.path("moved"), scene.path("kept/moved")).unwrap();
        remove(&scene, "removed");
        fs::rename(scene.path("tree"), scene.path("moved tree")).unwrap();
        fs::write(scene.path("file"), b"closed").unwrap();
        scene.power_loss(loss);
        let there = ["kept/moved", "new", "link", "moved tree/1", "moved tree/2", "file"];
        let gone = ["empty", "moved", "removed", "tree"];
        assert!(there.iter().all(|name| scene.exists(name)), "{loss:?}: {there:?}\n{}", scene.place.log_tail());
        assert!(!gone.iter().any(|name| scene.exists(name)), "{loss:?}: {gone:?}\n{}", scene.place.log_tail());
        assert_eq!(scene.shown("file"), b"closed");
        assert_eq!(fs::read_link(scene.path("link")).unwrap(), Path::new("moved"));
    }
}
