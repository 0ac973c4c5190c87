//! Memory of names: what `find -ls` of many objects leaves, whether it comes back, and a folder of very many objects.

use std::time::{Duration, Instant};

use crate::report::{Limit, Report};
use crate::support::mounted::sh;
use crate::support::{BUCKET, Call, Mounted, World};
use crate::{Sizes, succeeded, text};

/// Longest time of one command.
const LONG: Duration = Duration::from_secs(3600);
/// Within this time memory comes back: the kernel's FORGETs are worked off, and the allocator gives pages back.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of a known name that nobody has open.
const NAME_BYTES_MAX: u64 = 400;
/// Names of one folder.
const FOLDER: u64 = 1000;
const THREADS: u64 = 64;

pub fn run(sizes: &Sizes, report: &mut Report) {
    let (names, folder) = (sizes.names, sizes.folder);
    report.scene(&format!("find -ls of {names} objects, memory for all"), |world, report| {
        all_known(world, report, names)
    });
    report.scene(&format!("find -ls of {names} objects, --memory-limit 32MiB"), |world, report| {
        little_memory(world, report, names)
    });
    report.scene(&format!("a folder of {folder} objects"), |world, report| large_folder(world, report, folder));
}

/// Sparse objects of 5000 bytes (which are no links) under the keys that `key` makes.
fn put(world: &World, count: u64, key: impl Fn(u64) -> String + Sync) {
    let (server, key) = (world.server.handle(), &key);
    std::thread::scope(|scope| {
        for part in 0..THREADS {
            scope.spawn(move || {
                for i in (part..count).step_by(THREADS as usize) {
                    server.put_sparse(BUCKET, &key(i), 5000).expect("the embedded server takes it");
                }
            });
        }
    });
}

fn in_folders(i: u64) -> String {
    format!("tree/folder-{:04}/file-{i:07}", i / FOLDER)
}

fn resident_bytes(mount: &Mounted) -> Result<u64, String> {
    let pid = mount.pid().ok_or("bosfs has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(text)?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).ok_or("no number")?;
    Ok(kib << 10)
}

fn known_names(mount: &Mounted) -> u64 {
    mount.status()["mounts"][0]["known_names"].as_u64().unwrap_or(0)
}

fn long(line: &str) -> Result<String, String> {
    succeeded(line, sh(line, LONG))
}

/// `find -ls`; memory before and behind it.
fn found(mount: &Mounted, report: &mut Report, names: u64) -> Result<(u64, u64), String> {
    long(&format!("ls {}", mount.dir().display()))?;
    let before = resident_bytes(mount)?;
    let start = Instant::now();
    let lines = long(&format!("find {}/tree -ls | wc -l", mount.dir().display()))?;
    report.note("find -ls: s", start.elapsed().as_secs());
    let all = names + names.div_ceil(FOLDER) + 1;
    report.check("find -ls: names", lines.trim().parse().unwrap_or(0), Limit::Exactly(all));
    Ok((before, resident_bytes(mount)?))
}

fn all_known(world: &World, report: &mut Report, names: u64) -> Result<(), String> {
    put(world, names, in_folders);
    let mount = world.spec(&["--memory-limit", "4GiB"]).mount().map_err(text)?;
    let (before, behind) = found(&mount, report, names)?;
    let known = known_names(&mount);
    report.note("names that the kernel knows", known);
    report.note("VmRSS before, MiB", before >> 20);
    report.note("VmRSS behind, MiB", behind >> 20);
    report.check("bytes for each name", behind.saturating_sub(before) / names, Limit::AtMost(NAME_BYTES_MAX));
    if std::fs::write("/proc/sys/vm/drop_caches", "2").is_err() {
        report.note("drop_caches", "not allowed here");
        return Ok(());
    }
    let end = Instant::now() + BACK_WITHIN;
    let goal = before + (behind - before) / 3;
    while resident_bytes(&mount)? > goal && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
    }
    report.note("names known after drop_caches", known_names(&mount));
    report.check("VmRSS after drop_caches, MiB", resident_bytes(&mount)? >> 20, Limit::AtMost(goal.div_ceil(1 << 20)));
    Ok(())
}

fn little_memory(world: &World, report: &mut Report, names: u64) -> Result<(), String> {
    put(world, names, in_folders);
    let mount = world.spec(&["--memory-limit", "32MiB"]).mount().map_err(text)?;
    let (before, behind) = found(&mount, report, names)?;
    report.note("names that the kernel knows", known_names(&mount));
    report.note("VmRSS before, MiB", before >> 20);
    report.check("VmRSS that came, MiB", behind.saturating_sub(before) >> 20, Limit::AtMost(32));
    Ok(())
}

fn large_folder(world: &World, report: &mut Report, names: u64) -> Result<(), String> {
    let start = Instant::now();
    put(world, names, |i| format!("large/file-{i:07}"));
    report.note("objects made: s", start.elapsed().as_secs());
    let mut mount = world.spec(&[]).mount().map_err(text)?;
    let dir = mount.path("large");
    long(&format!("test -d {}", dir.display()))?;
    let before = resident_bytes(&mount)?;
    world.proxy.take_counts();
    let start = Instant::now();
    let listed = long(&format!("ls -f {} | grep -c file-", dir.display()))?;
    report.note("ls -f: s", start.elapsed().as_secs());
    report.check("ls -f: names", listed.trim().parse().unwrap_or(0), Limit::Exactly(names));
    let lists = world.proxy.take_counts().requests(Call::ListObjects);
    report.check("ls -f: lists", lists, Limit::AtMost(names.div_ceil(1000) + 3));
    report.check("VmRSS that came, MiB", resident_bytes(&mount)?.saturating_sub(before) >> 20, Limit::AtMost(128));
    let start = Instant::now();
    long(&format!("rm -rf {}", dir.display()))?;
    report.note("rm -rf: s", start.elapsed().as_secs());
    let counts = world.proxy.take_counts();
    report.note("rm -rf: lists", counts.requests(Call::ListObjects));
    report.note("rm -rf: requests in all", counts.requests_all());
    report.check("VmRSS that came, MiB", resident_bytes(&mount)?.saturating_sub(before) >> 20, Limit::AtMost(128));
    let left = mount.umount(LONG);
    report.check_that("umount ends with all of it done", left.status.success());
    report.check("objects that are left", world.bucket.list("large/").map_err(text)?.len() as u64, Limit::Exactly(0));
    Ok(())
}
