//! Lookups and listings that cost almost nothing, counted at the proxy.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{RawDir, SeekFrom, seek};

use crate::support::{BUCKET, Call, World};
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

/// A second `ls -lR` of an unchanged tree costs listings only, also after a remount.
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

/// What others make and delete is seen once the time is over for which attributes are believed (`--metadata-ttl`).
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
                let mut made =
                    File::options().read(true).write(true).create_new(true).mode(0o600).open(&temporary).unwrap();
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

/// Names and positions behind them, at most `max` from the present position on.
pub fn read_some(dir: &File, max: usize) -> Vec<(String, u64)> {
    let mut buffer = vec![MaybeUninit::uninit(); 16 << 10];
    let mut entries = Vec::new();
    let mut raw = RawDir::new(dir, &mut buffer);
    while entries.len() < max {
        let Some(entry) = raw.next() else { break };
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        entries.push((name, entry.next_entry_cookie()));
    }
    let behind = entries.last().map(|(_, behind)| *behind);
    if let Some(behind) = behind {
        // The last call gave more entries than were looked at.
        seek(dir, SeekFrom::Start(behind)).unwrap();
    }
    entries.retain(|(name, _)| name != "." && name != "..");
    entries
}

pub fn read_rest(dir: &File) -> Vec<(String, u64)> {
    let mut entries = Vec::new();
    loop {
        let more = read_some(dir, 4000);
        if more.is_empty() {
            return entries;
        }
        entries.extend(more);
    }
}

/// A folder of 100,000 entries that is listed while files come and go gives each of the others once, and each position
/// leads back to its place.
#[test]
fn a_hundred_thousand_entries_keep_their_places_while_others_come_and_go() {
    const FILES: usize = 100_000;
    let world = World::new();
    let server = world.server.handle();
    thread::scope(|scope| {
        for part in 0..64 {
            scope.spawn(move || {
                for i in (part..FILES).step_by(64) {
                    server.put_sparse(BUCKET, &format!("d/f{i:06}"), 5000).unwrap();
                }
            });
        }
    });
    let mount = world.mount(&[]);
    let path = mount.path("d");
    shell(&format!("test -d {}", path.display()));
    world.proxy.take_counts();
    timed(move || {
        let dir = File::open(&path).unwrap();
        let mut seen = read_some(&dir, 20_000);
        let count = seen.len();
        assert!(count > 19_000, "{count}");
        // Behind the place where the reader stands, before it, and new ones at both ends.
        for i in [5, 10_000, 30_000, 99_998] {
            fs::remove_file(path.join(format!("f{i:06}"))).unwrap();
        }
        for name in ["a-new", "f050000-new", "z-new"] {
            fs::write(path.join(name), "new").unwrap();
        }
        seen.extend(read_rest(&dir));
        let names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
        let unique: HashSet<&str> = names.iter().copied().collect();
        assert_eq!(unique.len(), names.len(), "a name came twice");
        for i in 0..FILES {
            let name = format!("f{i:06}");
            let gone = [30_000, 99_998].contains(&i);
            let either = [5, 10_000].contains(&i);
            assert!(either || unique.contains(name.as_str()) != gone, "{name}");
        }
        // Any place that was given leads back to the same next name.
        for at in [0, 1, 17, 999, 1000, 12_345, 19_999, 20_000, 77_777, seen.len() - 3] {
            seek(&dir, SeekFrom::Start(seen[at].1)).unwrap();
            let next = seen[at + 1..].iter().map(|(name, _)| name);
            let mut next = next.skip_while(|name| ["f000005", "f010000"].contains(&name.as_str()));
            assert_eq!(Some(&read_some(&dir, 1)[0].0), next.next(), "behind entry {at}");
        }
        // From the start again: what came is there, what went is not.
        seek(&dir, SeekFrom::Start(0)).unwrap();
        let again: Vec<String> = read_rest(&dir).into_iter().map(|(name, _)| name).collect();
        assert_eq!(again.len(), FILES - 4 + 3);
        assert!(again.contains(&"a-new".to_owned()) && !again.contains(&"f000005".to_owned()));
    });
    let counts = world.proxy.counts();
    let asked = (counts.requests(Call::ListObjects), counts.requests(Call::HeadObject));
    println!("100,000 entries read twice: {} LIST, {} HEAD", asked.0, asked.1);
    assert!(asked.0 <= 2 * 101 + 20, "{} LIST", asked.0);
}

#[test]
fn a_directory_is_emptied_while_it_is_read() {
    let world = World::new();
    put_all(&world, &(0..3000).map(|i| format!("d/f{i:04}")).collect::<Vec<_>>(), b"");
    let mut mount = world.mount(&[]);
    let path = mount.path("d");
    timed(move || {
        let mut removed = 0;
        for entry in fs::read_dir(&path).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
            removed += 1;
        }
        assert_eq!(removed, 3000);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        fs::remove_dir(&path).unwrap();
    });
    // Removals are gathered for a moment.
    assert!(mount.umount(WAIT).status.success());
    assert_eq!(world.bucket.list("").unwrap(), [] as [String; 0]);
}

#[test]
fn exact_types_tell_links_from_files_in_every_listing() {
    let world = World::new();
    put_all(&world, &(0..600).map(|i| format!("d/f{i:04}")).collect::<Vec<_>>(), &[b'x'; 5000]);
    let headers = [("x-bce-meta-bosfs-mode", "41471")];
    world.bucket.ask("PUT", "d/link", &[], &headers, b"f0001").unwrap();
    world.bucket.put("d/small", b"x").unwrap();
    let types = |args: &[&str], state: &str| {
        let mut spec = world.spec(args);
        spec.state_dir = world.path(state);
        let mut mount = spec.mount().unwrap();
        let path = mount.path("d");
        shell(&format!("test -d {}", path.display()));
        world.proxy.take_counts();
        let types = timed(move || {
            let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
            let links = entries.filter(|entry| entry.file_type().unwrap().is_symlink());
            links.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
        });
        let heads = world.proxy.counts().requests(Call::HeadObject);
        assert!(mount.umount(WAIT).status.success());
        (types, heads)
    };
    let (links, heads) = types(&["--exact-types"], "state-a");
    assert_eq!(links, ["link"]);
    assert!(heads <= 200, "large objects were asked for: {heads} HEAD");
    // Remembered from then on, also without the option.
    assert_eq!(types(&[], "state-a"), (vec!["link".to_owned()], 0));
}

#[test]
fn rsync_of_a_tree_costs_about_a_request_per_file_and_the_second_time_listings_only() {
    const FILES: usize = 1500;
    let world = World::new();
    let source = world.path("source");
    for i in 0..FILES {
        let dir = source.join(format!("part-{}/dir-{:02}", i % 3, i % 30));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file-{i:04}.rs")), format!("content {i}")).unwrap();
    }
    shell(&format!("find {} -exec touch -d '2020-02-03 04:05:06.789' {{}} +", source.display()));
    let mut mount = world.mount(&[]);
    world.proxy.take_counts();
    let line = format!("rsync -a -i {}/ {}/tree/", source.display(), mount.dir().display());
    let started = Instant::now();
    shell(&line);
    assert!(mount.umount(WAIT).status.success());
    let counts = world.proxy.counts();
    let calls: Vec<String> = counts.calls.iter().map(|(call, count)| format!("{call} {}", count.requests)).collect();
    let all = counts.requests_all();
    println!(
        "rsync -a of {FILES} files in 34 directories, {:?}: {all} requests: {}",
        started.elapsed(),
        calls.join(", ")
    );
    mount.remount().unwrap();
    world.proxy.take_counts();
    let second = shell(&line);
    assert_eq!(second, "", "the second run found something to do");
    let counts = world.proxy.counts();
    let again: Vec<String> = counts.calls.iter().map(|(call, count)| format!("{call} {}", count.requests)).collect();
    println!("the same again after a remount: {}", again.join(", "));
    assert!(all * 10 <= FILES as u64 * 13, "{all} requests");
    assert_eq!(counts.requests_all(), counts.requests(Call::ListObjects), "{}", counts.log_text());
    assert!(counts.requests(Call::ListObjects) <= 2 * 35 + 5, "{}", counts.log_text());
}
