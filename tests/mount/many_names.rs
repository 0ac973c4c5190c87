//! More names than the memory of a mount may hold: they are listed, looked at and removed, and the kernel is asked to forget
//! them.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};

use crate::listing::{read_rest, read_some};
use crate::support::mounted::sh;
use crate::support::{BUCKET, Call, World};
use crate::{WAIT, shell, timed};

/// So little that listings may take 1 MiB (about 6000 names) and inodes 1 MiB (about 3000).
const LITTLE: [&str; 2] = ["--memory-limit", "4MiB"];

/// A shell line that may take long on a busy machine, as it asks for thousands of names one by one.
fn long(line: &str) -> String {
    let output = sh(line, Duration::from_secs(600));
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Puts `count` objects of 5000 bytes, which are no links, below `prefix` past the mount.
fn put_many(world: &World, prefix: &str, count: usize) {
    let server = world.server.handle();
    thread::scope(|scope| {
        for part in 0..64 {
            scope.spawn(move || {
                for i in (part..count).step_by(64) {
                    server.put_sparse(BUCKET, &format!("{prefix}f{i:06}"), 5000).unwrap();
                }
            });
        }
    });
}

/// Memory that a process has at present, KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line of the memory");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A folder of more names than memory may hold at once is listed to its end, each once, at the price of its pages, and any
/// place that was given is found again.
#[test]
fn a_folder_of_more_names_than_memory_may_hold_is_listed_to_its_end() {
    const FILES: usize = 40_000;
    let world = World::new();
    put_many(&world, "d/", FILES);
    let mount = world.mount(&LITTLE);
    let path = mount.path("d");
    shell(&format!("test -d {}", path.display()));
    world.proxy.take_counts();
    let mut lists = Vec::new();
    let dir = File::open(&path).unwrap();
    let (dir, seen) = timed(move || {
        let seen = read_rest(&dir);
        (dir, seen)
    });
    lists.push(world.proxy.take_counts().requests(Call::ListObjects));
    let unique: HashSet<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((seen.len(), unique.len()), (FILES, FILES));
    let listed_by_own = path.clone();
    timed(move || {
        for gone in [17, 18, 19_999] {
            fs::remove_file(listed_by_own.join(format!("f{gone:06}"))).unwrap();
        }
        fs::write(listed_by_own.join("f000016-new"), "new").unwrap();
        for at in [0, 1, 15, 999, 1000, 12_345, 20_000, 39_990] {
            seek(&dir, SeekFrom::Start(seen[at].1)).unwrap();
            let mut next = seen[at + 1..].iter().map(|(name, _)| name);
            let next = next.find(|name| !["f000017", "f000018", "f019999"].contains(&name.as_str()));
            assert_eq!(Some(&read_some(&dir, 1)[0].0), next, "behind entry {at}");
        }
        seek(&dir, SeekFrom::Start(0)).unwrap();
        let again = read_rest(&dir);
        assert_eq!(again.len(), FILES - 3 + 1, "from the start: as it is now");
    });
    println!("{FILES} names in 1 MiB: {} LIST", lists[0]);
    assert!(lists[0] <= FILES as u64 / 1000 + 3, "{} LIST for the first look", lists[0]);
    let log = mount.log_text();
    assert!(!log.contains("memory may not hold"), "{log}");
}

/// A folder of more names than memory may hold at once is removed by `rm -rf`.
#[test]
fn a_folder_of_more_names_than_memory_may_hold_is_removed() {
    let world = World::new();
    put_many(&world, "d/", 9_000);
    world.bucket.put("other", b"x").unwrap();
    let mut mount = world.mount(&LITTLE);
    long(&format!("rm -rf {}", mount.path("d").display()));
    assert!(!mount.path("d").exists());
    assert!(mount.umount(WAIT).status.success());
    assert_eq!(world.bucket.list("").unwrap(), ["other"]);
}

/// Names beyond `--memory-limit` are forgotten, also by the kernel, and found again where they were; what is open, and the
/// working directory of a program, stays.
#[test]
fn names_beyond_the_memory_limit_are_forgotten_and_found_again() {
    const FOLDERS: usize = 8;
    const FILES: usize = 1000;
    let world = World::new();
    (0..FOLDERS).for_each(|folder| put_many(&world, &format!("d/{folder}/"), FILES));
    world.bucket.put("home/below/file", b"content").unwrap();
    let mount = world.mount(&LITTLE);
    let dir = mount.dir().to_owned();
    let home = format!("{}/home/below", dir.display());
    let mut sleeper = std::process::Command::new("sleep").arg("600").current_dir(&home).spawn().unwrap();
    let open = File::open(format!("{home}/file")).unwrap();
    let path = mount.path("d");
    let (first, pid) = (path.join("0/f000000"), mount.pid().unwrap());
    let number = fs::metadata(&first).unwrap().ino();
    let known = |mount: &crate::support::Mounted| mount.status()["mounts"][0]["known_names"].as_u64().unwrap();
    let before = resident_kib(pid);
    let listed = long(&format!("find {} -ls | wc -l", path.display()));
    assert_eq!(listed.trim(), (FOLDERS * (FILES + 1) + 1).to_string());
    let end = Instant::now() + WAIT;
    while known(&mount) > 4000 {
        assert!(Instant::now() < end, "{} names are known", known(&mount));
        thread::sleep(Duration::from_millis(100));
    }
    println!("{} names: {} are known, VmRSS {before} -> {} KiB", FOLDERS * FILES, known(&mount), resident_kib(pid));
    assert_eq!(fs::metadata(&first).unwrap().ino(), number, "the same file has the same number");
    // The kernel tells the path of a directory that it knows by a name, and of one that it does not with a mark.
    let cwd = fs::read_link(format!("/proc/{}/cwd", sleeper.id())).unwrap();
    assert_eq!(cwd.to_str(), Some(home.as_str()));
    let opened = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open))).unwrap();
    assert_eq!(opened.to_str(), Some(format!("{home}/file").as_str()));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

/// Folders that lose their last file stay without end, and are forgotten once something else is in them.
#[test]
fn a_kept_folder_is_kept_as_long_as_nothing_else_keeps_it() {
    let world = World::new();
    world.bucket.put("d/below/file", b"x").unwrap();
    let mount = world.mount(&["--metadata-ttl", "0"]);
    let (path, below) = (mount.path("d"), mount.path("d/below"));
    timed(move || {
        fs::remove_file(below.join("file")).unwrap();
        let names = |dir: &std::path::Path| {
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
        };
        for _ in 0..2 {
            assert_eq!(names(&path), ["below"]);
            assert!(names(&below).is_empty());
            assert!(fs::symlink_metadata(&below).unwrap().is_dir());
        }
        fs::remove_dir(&below).unwrap();
        assert!(names(&path).is_empty() && !below.exists());
    });
}
