//! Rows "renaming a directory" and removals in batches: bosfs is killed in each phase, and the next mount ends what it
//! began, or takes it back. Where the kill fell is counted at the fault proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::WAIT;
use crate::support::bucket::Reply;
use crate::support::mounted::within;
use crate::support::{Call, HoldAt, Mounted, When, World};

const OBJECTS: usize = 300;

/// Objects below `prefix`, nested, some with markers; and one beside it.
fn fill(world: &World, prefix: &str) -> BTreeMap<String, String> {
    world.bucket.put("beside", b"beside").unwrap();
    for i in 0..OBJECTS {
        let key = match i % 30 {
            0 => format!("{prefix}{}/marked {i}/", i % 7),
            _ => format!("{prefix}{}/deep {}/f{i}", i % 7, i % 3),
        };
        let bytes = if key.ends_with('/') { b"" } else { key.as_bytes() };
        world.bucket.put(&key, bytes).unwrap();
    }
    etags(world, prefix)
}

fn etags(world: &World, prefix: &str) -> BTreeMap<String, String> {
    let keys = world.bucket.list(prefix).unwrap();
    let etag = |key: &str| world.bucket.head(key).unwrap().map(|seen| seen.etag).unwrap_or_default();
    keys.iter().map(|key| (key[prefix.len()..].to_owned(), etag(key))).collect()
}

/// Waits until recovery has nothing to do any more.
fn wait_moves(world: &World) {
    let end = Instant::now() + WAIT;
    let left = || fs::read_dir(world.state_dir().join("moves")).unwrap().count();
    while left() > 0 {
        assert!(Instant::now() < end, "{} moves stay\n{}", left(), world.log_text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts `act` in a thread, kills bosfs when `when` has been held, and lets nothing of it go on.
fn killed_at(
    world: &World,
    mount: &mut Mounted,
    when: When,
    hold: HoldAt,
    act: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) {
    let rule = world.proxy.hold(when.clone(), hold);
    let acting = std::thread::spawn(act);
    assert!(rule.wait_hit(WAIT), "{when:?} never came\n{}\n{}", world.proxy.counts().log_text(), mount.log_text());
    mount.kill();
    let _ = within(WAIT, "the act", move || acting.join());
    world.proxy.clear_rules();
    world.wait_quiet();
}

/// A rename of a folder that is cut off by a kill is wholly old or wholly new for whoever looks, from the first lookup
/// of the next mount on.
#[test]
fn a_directory_rename_killed_in_any_phase_is_wholly_old_or_wholly_new() {
    use HoldAt::{BeforeAnswer, BeforeForward};
    let copy = |count| When::call(Call::CopyObject).skip(count);
    let list = |count| When::call(Call::ListObjects).skip(count);
    let delete = || When::call(Call::BatchDelete);
    // (moment, what must be there afterwards)
    let mut moments = Vec::new();
    for count in [0, 1, 37, 100, 150, 222, 290] {
        moments.push((copy(count), BeforeForward, "old"));
        moments.push((copy(count), BeforeAnswer, "old"));
    }
    moments.push((When::call(Call::CopyObject).skip(OBJECTS as u64 - 1), BeforeAnswer, "old"));
    moments.push((When::call(Call::PutObject).key("new/"), BeforeForward, "old"));
    moments.push((When::call(Call::PutObject).key("new/"), BeforeAnswer, "old"));
    moments.push((delete(), BeforeForward, "new"));
    moments.push((delete(), BeforeAnswer, "new"));
    // The listings: is the target empty, what is to be copied; has anything changed; what is to be deleted.
    for (count, expected) in [(0, "old"), (1, "old"), (2, "old"), (3, "new")] {
        moments.push((list(count), BeforeAnswer, expected));
    }
    let mut outcomes: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for (when, hold, expected) in moments {
        let world = World::new();
        let before = fill(&world, "old/");
        let mut mount = world.mount(&[]);
        let (old, new) = (mount.path("old"), mount.path("new"));
        // Looked up beforehand, so that the listings that follow are those of the rename.
        assert!(old.is_dir() && !new.exists());
        let call = when.calls[0];
        killed_at(&world, &mut mount, when.clone(), hold, move || fs::rename(old, new));
        mount.remount().unwrap();
        // While recovery runs, no half of anything is to be seen.
        let seen = [mount.path("old").exists(), mount.path("new").exists()];
        assert_ne!(seen[0], seen[1], "{when:?} {hold:?}");
        wait_moves(&world);
        let (old, mut new) = (etags(&world, "old/"), etags(&world, "new/"));
        let marker = new.remove("");
        let told = || format!("{when:?} {hold:?}: {} old, {} new\n{}", old.len(), new.len(), world.log_text());
        match expected {
            "old" => assert!(old == before && new.is_empty() && marker.is_none(), "{}", told()),
            _ => assert!(old.is_empty() && new == before && marker.is_some(), "{}", told()),
        }
        assert_eq!(mount.path("old").is_dir(), expected == "old");
        assert_eq!(mount.path("new").is_dir(), expected == "new");
        assert!(world.bucket.head("beside").unwrap().is_some());
        *outcomes.entry((call.to_string(), expected)).or_default() += 1;
        let output = mount.umount(WAIT);
        assert!(output.status.success(), "{output:?}");
    }
    println!("kills in a directory rename of {OBJECTS} objects, by request and outcome: {outcomes:?}");
}

/// Names that were removed before a kill do not come back, and what somebody else wrote under one of them stays.
#[test]
fn names_removed_before_a_kill_do_not_come_back() {
    use HoldAt::{BeforeAnswer, BeforeForward};
    for hold in [BeforeForward, BeforeAnswer] {
        let world = World::new();
        fill(&world, "tree/");
        fill(&world, "other/");
        let other = etags(&world, "other/");
        let mut mount = world.mount(&[]);
        let tree = mount.path("tree");
        let rule = world.proxy.hold(When::call(Call::BatchDelete), hold);
        let mut removed = BTreeSet::new();
        for dir in fs::read_dir(&tree).unwrap().flatten().take(4) {
            for deep in fs::read_dir(dir.path()).unwrap().flatten() {
                for file in fs::read_dir(deep.path()).unwrap().flatten() {
                    fs::remove_file(file.path()).unwrap();
                    removed.insert(file.path().strip_prefix(mount.dir()).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        assert!(rule.wait_hit(WAIT));
        mount.kill();
        world.proxy.clear_rules();
        world.wait_quiet();
        let left = |world: &World| world.bucket.list("tree/").unwrap().into_iter().collect::<BTreeSet<_>>();
        let before = left(&world);
        let still_there = before.intersection(&removed).count();
        // One of them is written again by somebody else: that one is not deleted.
        let rewritten = removed.last().unwrap().clone();
        world.bucket.put(&rewritten, b"by somebody else").unwrap();
        mount.remount().unwrap();
        wait_moves(&world);
        let after = left(&world);
        println!(
            "{hold:?}: {} names removed, {still_there} objects of them there after the kill, {} after recovery",
            removed.len(),
            after.intersection(&removed).count()
        );
        if hold == BeforeForward {
            assert!(still_there > 50, "the kill fell before the deletion");
        }
        let expected: BTreeSet<_> =
            before.difference(&removed).cloned().chain(std::iter::once(rewritten.clone())).collect();
        assert_eq!(after, expected);
        assert_eq!(etags(&world, "other/"), other);
        assert_eq!(fs::read(mount.path(&rewritten)).unwrap(), b"by somebody else");
    }
}

/// What a folder shows: mode, time, names in it.
fn folder(path: &Path) -> (u32, i64, Vec<String>) {
    let meta = fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    (meta.mode() & 0o7777, meta.mtime(), names)
}

/// A rename of a folder over an empty one that is cut off by a kill leaves the empty one as it was, or has wholly
/// replaced it.
#[test]
fn a_directory_rename_over_an_empty_one_that_is_killed_leaves_or_replaces_it() {
    use HoldAt::{BeforeAnswer, BeforeForward};
    let (copy, put) = (|key| When::call(Call::CopyObject).key(key), |key| When::call(Call::PutObject).key(key));
    // (has the renamed folder a marker, moment, is the empty folder replaced)
    let mut moments = Vec::new();
    for hold in [BeforeForward, BeforeAnswer] {
        for marked in [true, false] {
            moments.push((marked, copy("new/sub/f"), hold, false));
        }
        moments.push((true, copy("new/"), hold, true));
        moments.push((false, put("new/"), hold, true));
        moments.push((true, When::call(Call::BatchDelete), hold, true));
    }
    for (marked, when, hold, replaced) in moments {
        let world = World::new();
        if !marked {
            world.bucket.put("old/g", b"an object without the marker of a folder above").unwrap();
        }
        let mut mount = world.mount(&["--metadata-ttl", "0"]);
        let (old, new) = (mount.path("old"), mount.path("new"));
        fs::create_dir_all(old.join("sub")).unwrap();
        fs::write(old.join("sub/f"), b"content").unwrap();
        fs::create_dir(&new).unwrap();
        for (path, mode, seconds) in [(&old, 0o750, 1_000_000_000), (&new, 0o711, 1_100_000_000)] {
            if path == &new || marked {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
                File::open(path).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
            }
        }
        // All of it is in BOS before the rename.
        assert!(mount.umount(WAIT).status.success(), "{}", mount.log_text());
        let mut mount = world.mount(&["--metadata-ttl", "0"]);
        let (before_old, before_new) = (folder(&old), folder(&new));
        assert_eq!(before_new, (0o711, 1_100_000_000, Vec::new()));
        let before = world.bucket.head_reply("new/").unwrap().unwrap();
        let told = |mount: &Mounted| format!("{when:?} {hold:?} marked {marked}\n{}", mount.log_text());
        let (from, to) = (old.clone(), new.clone());
        killed_at(&world, &mut mount, when.clone(), hold, move || fs::rename(from, to));
        mount.remount().unwrap();
        for recovered in [false, true] {
            if recovered {
                wait_moves(&world);
            }
            let told = || format!("recovered {recovered}, {}", told(&mount));
            if replaced {
                assert_eq!((old.exists(), folder(&new).2), (false, before_old.2.clone()), "{}", told());
            } else {
                assert_eq!((folder(&old), folder(&new)), (before_old.clone(), before_new.clone()), "{}", told());
            }
        }
        if replaced {
            assert_eq!(folder(&new).0, before_old.0, "{}", told(&mount));
            assert!(!marked || folder(&new).1 == before_old.1, "{}", told(&mount));
        } else {
            let after = world.bucket.head_reply("new/").unwrap().unwrap();
            let of_marker = |reply: &Reply| {
                let is_ours = |name: &str| name.starts_with("x-bce-meta-") || name == "last-modified" || name == "etag";
                let all = reply.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
                all.filter(|(name, _)| is_ours(name)).collect::<BTreeSet<_>>()
            };
            assert_eq!(of_marker(&after), of_marker(&before), "{}", told(&mount));
        }
        let top = if replaced { "new" } else { "old" };
        assert_eq!(fs::read(mount.path(top).join("sub/f")).unwrap(), b"content");
        let output = mount.umount(WAIT);
        assert!(output.status.success(), "{output:?}\n{}", told(&mount));
    }
}
