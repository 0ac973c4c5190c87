//! Lookups and listings that cost almost nothing, counted at the proxy.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Call, World};
use crate::{WAIT, shell, timed};

/// Puts `count` objects past the mount, side by side.
fn put_all(world: &World, keys: &[String], body: &[u8]) {
    thread::scope(|scope| {
        for part in keys.chunks(keys.len().div_ceil(4).max(1)) {
            let bucket = &world.bucket;
            scope.spawn(move || part.iter().for_each(|key| bucket.put(key, body).map(drop).unwrap()));
        }
    });
}

#[test]
fn a_second_ls_of_an_unchanged_tree_after_a_remount_is_listings_only() {
    let world = World::new();
    let keys: Vec<String> = (0..3000).map(|i| format!("tree/dir-{:02}/file-{:03}", i % 30, i / 30)).collect();
    put_all(&world, &keys, b"content");
    let mut mount = world.mount(&[]);
    let first = shell(&format!("cd {} && ls -lnR --time-style=full-iso", mount.dir().display()));
    assert_eq!(first.lines().filter(|line| line.contains(" file-")).count(), 3000);
    assert!(mount.umount(WAIT).status.success());
    let mount = world.mount(&[]);
    world.proxy.take_counts();
    let second = shell(&format!("cd {} && ls -lnR --time-style=full-iso", mount.dir().display()));
    let counts = world.proxy.counts();
    let told = counts.log_text();
    println!("second ls -lR of 3000 files in 30 directories: {} LIST", counts.requests(Call::ListObjects));
    let differ = first.lines().zip(second.lines()).find(|(before, after)| before != after);
    assert_eq!(differ, None, "the attributes differ");
    assert_eq!(counts.requests(Call::HeadObject), 0, "{told}");
    assert_eq!(counts.requests_all(), counts.requests(Call::ListObjects), "{told}");
    assert!(counts.requests(Call::ListObjects) <= 2 * 32, "{told}");
}

/// Looks up absent names for `time`; how many.
fn look_up_absent(dir: &Path, time: Duration) -> u64 {
    let end = Instant::now() + time;
    let mut count = 0;
    while Instant::now() < end {
        assert!(!dir.join(format!("file-{:05}.absent", count * 7)).exists());
        count += 1;
    }
    count
}

#[test]
fn lookups_cost_about_one_list_per_second_however_many_they_are() {
    for (files, directories) in [(300u64, 1u64), (2500, 1)] {
        let world = World::new();
        let keys: Vec<String> = (0..files).map(|i| format!("d/file-{:05}", i * 11)).collect();
        put_all(&world, &keys, b"");
        let mount = world.mount(&[]);
        let dir = mount.path("d");
        shell(&format!("test -d {}", dir.display()));
        world.proxy.take_counts();
        let time = Duration::from_secs(3);
        let lookups = timed(move || look_up_absent(&dir, time));
        let counts = world.proxy.counts();
        let (lists, heads) = (counts.requests(Call::ListObjects), counts.requests(Call::HeadObject));
        println!("{lookups} lookups of absent names among {files} in {time:?}: {lists} LIST, {heads} HEAD");
        assert!(lookups > 500, "{lookups} lookups in {time:?}");
        // One per second for the names, one per second for the directory itself; a window ends after 1000 names.
        let windows = if files > 1000 { lookups * 7 / 11 / 1000 + 4 } else { 0 };
        assert!(lists <= 2 * 4 + directories + windows, "{lists} LIST for {lookups} lookups\n{}", counts.log_text());
        assert!(heads <= 2, "{}", counts.log_text());
    }
}

#[test]
fn what_others_make_is_seen_when_the_time_to_live_is_over() {
    let world = World::new();
    put_all(&world, &(0..50).map(|i| format!("d/f{i}")).collect::<Vec<_>>(), b"");
    let mount = world.mount(&[]);
    let dir = mount.path("d");
    let bucket = world.bucket.clone();
    timed(move || {
        for round in 0..3 {
            for i in 0..50 {
                assert!(!dir.join(format!("new{i}")).exists() || i < round);
            }
            bucket.put(&format!("d/new{round}"), b"x").unwrap();
            bucket.delete(&format!("d/f{round}")).unwrap();
            // The kernel and bosfs believe what they know for a second each.
            thread::sleep(Duration::from_millis(2200));
            assert!(dir.join(format!("new{round}")).exists(), "a new object is not seen");
            assert!(!dir.join(format!("f{round}")).exists(), "a removed object is still seen");
        }
    });
}

#[test]
fn the_lookups_of_rsync_cost_almost_nothing() {
    let world = World::new();
    let mount = world.mount(&[]);
    world.proxy.take_counts();
    let root = mount.path("tree");
    let started = Instant::now();
    timed(move || {
        fs::create_dir(&root).unwrap();
        for dir in 0..10 {
            let dir = root.join(format!("dir-{dir}"));
            assert!(fs::symlink_metadata(&dir).is_err());
            fs::create_dir(&dir).unwrap();
            for file in 0..50 {
                let (name, temporary) = (dir.join(format!("f{file}")), dir.join(format!(".f{file}.a8Xk2q")));
                assert!(fs::symlink_metadata(&name).is_err());
                let mut made = File::create_new(&temporary).unwrap();
                made.write_all(b"content").unwrap();
                drop(made);
                assert!(fs::symlink_metadata(&name).is_err());
                fs::rename(&temporary, &name).unwrap();
                assert!(fs::symlink_metadata(&temporary).is_err());
            }
        }
    });
    let seconds = started.elapsed().as_secs() + 1;
    let counts = world.proxy.counts();
    let (lists, heads) = (counts.requests(Call::ListObjects), counts.requests(Call::HeadObject));
    println!("lookups of 500 files in 10 directories, in {seconds} s: {lists} LIST, {heads} HEAD");
    // Two directories are busy at any time, and each new one is entered once.
    assert!(lists <= 3 * seconds + 12, "{lists} LIST in {seconds} s\n{}", counts.log_text());
    assert!(heads <= 12, "{heads} HEAD\n{}", counts.log_text());
}

#[test]
fn own_files_are_known_without_a_head_by_the_next_mount() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    let line = "mkdir d && cd d && for i in $(seq 100); do ln -s target-$i link-$i; done";
    shell(&format!("cd {} && {line}", mount.dir().display()));
    assert!(mount.umount(WAIT).status.success());
    mount.remount().unwrap();
    world.proxy.take_counts();
    let listed = shell(&format!("ls -l {}/d", mount.dir().display()));
    assert_eq!(listed.lines().filter(|line| line.starts_with('l')).count(), 100, "{listed}");
    let counts = world.proxy.counts();
    // One HEAD and one LIST look the directory up.
    assert!(counts.requests(Call::HeadObject) <= 1, "{}", counts.log_text());
    assert!(counts.requests(Call::ListObjects) <= 3, "{}", counts.log_text());
    assert_eq!(counts.requests(Call::GetObject), 0, "the targets are remembered\n{}", counts.log_text());
}
