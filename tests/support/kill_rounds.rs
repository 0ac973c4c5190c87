//! Rounds in which bosfs is killed while a program works on the mount: `rsync -a`, `mv` of a directory, and several writers
//! at random. A round tells whether the kill fell into the operation; every miss of what must hold is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sha2::Digest as _;

use super::call::Call;
use super::fault::{HoldAt, When};
use super::files::{splitmix64, write_random};
use super::mounted::{Mounted, run, wait_child};
use super::tree::{Times, differences, read_tree};
use super::world::World;

/// Longest wait for anything.
const WAIT: Duration = Duration::from_secs(120);
const ARGS: [&str; 2] = ["--part-size", "5MiB"];
const WRITERS: &str = include_str!("writers.py");
const WRITER_COUNT: u64 = 3;
/// Objects of the directory that is moved.
pub const MOVED_OBJECTS: usize = 1000;

/// How a round ended that found nothing wrong.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// The program was in the middle when bosfs was killed.
    pub hit: bool,
    /// At which request.
    pub moment: String,
    /// What stood there after the remount.
    pub found: String,
}

/// The programs that are cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tool {
    Rsync,
    Mv,
    Writers,
}

impl Tool {
    pub const ALL: [Tool; 3] = [Tool::Rsync, Tool::Mv, Tool::Writers];

    pub fn name(self) -> &'static str {
        match self {
            Tool::Rsync => "rsync",
            Tool::Mv => "mv",
            Tool::Writers => "writers",
        }
    }

    /// One round; `seed` chooses the moment and the contents.
    ///
    /// # Errors
    /// What did not hold, with the end of the log.
    pub fn round(self, seed: u64) -> Result<Round, String> {
        let world = World::try_new().map_err(|e| e.to_string())?;
        let round = match self {
            Tool::Rsync => rsync_round(&world, seed),
            Tool::Mv => mv_round(&world, seed),
            Tool::Writers => writers_round(&world, seed),
        };
        round.map_err(|e| {
            let log = world.log_text();
            let lines: Vec<&str> = log.lines().collect();
            format!("{} seed {seed}: {e}\n{}", self.name(), lines[lines.len().saturating_sub(40)..].join("\n"))
        })
    }
}

fn mount(world: &World) -> Result<Mounted, String> {
    world.spec(&ARGS).mount().map_err(|e| e.to_string())
}

fn start(command: &mut Command) -> Result<Child, String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|e| format!("{command:?}: {e}"))
}

/// How long a request with a body is waited for.
const BODY_WITHIN: Duration = Duration::from_secs(3);

/// Holds a request, chosen by `seed` among those that `when` takes and at one of three points of it, and kills bosfs there.
fn kill_at(
    world: &World,
    mount: &mut Mounted,
    seed: u64,
    when: When,
    children: &mut [Child],
) -> Result<Option<String>, String> {
    let at = match splitmix64(seed ^ 0xa7) % 3 {
        0 => HoldAt::BeforeForward,
        1 => HoldAt::BeforeAnswer,
        _ => HoldAt::InsideBody { after_bytes: 1 },
    };
    let mut rule = world.proxy.hold(when.once(), at);
    let (start, mut another) = (Instant::now(), false);
    let end = start + WAIT;
    while rule.hits() == 0 {
        if !another && matches!(at, HoldAt::InsideBody { .. }) && start.elapsed() > BODY_WITHIN {
            // The request that was chosen has no body: the next one is held instead.
            another = true;
            rule = world.proxy.hold(When::any().once(), HoldAt::BeforeAnswer);
        }
        if children.iter_mut().all(|child| matches!(child.try_wait(), Ok(Some(_)))) || Instant::now() > end {
            // They were quicker: no hit.
            world.proxy.clear_rules();
            return Ok(None);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    // A little later for some: other requests go on meanwhile.
    std::thread::sleep(Duration::from_millis(splitmix64(seed ^ 0x1a7e) % 3 * 5));
    let counts = world.proxy.counts();
    let held =
        counts.calls.iter().filter(|(_, count)| count.open > 0).map(|(call, count)| format!("{call}x{}", count.open));
    let moment = format!("request {} {at:?}, open: {}", counts.requests_all(), held.collect::<Vec<_>>().join(" "));
    mount.kill();
    world.proxy.clear_rules();
    world.wait_quiet();
    Ok(Some(moment))
}

/// The programs ended before the request came: fine only if they did what they should.
fn not_hit(world: &World, children: &mut [Child]) -> Result<Round, String> {
    let codes = ends(children)?;
    let calls = super::rsync_cost::calls_text(&world.proxy.counts());
    match codes.iter().all(|code| *code == Some(0)) {
        true => Ok(Round { hit: false, moment: format!("never came: {calls}"), found: String::new() }),
        false => Err(format!("without a kill the programs end with {codes:?}: {calls}")),
    }
}

/// Ends of the programs after the kill; a program that hangs is killed and told.
fn ends(children: &mut [Child]) -> Result<Vec<Option<i32>>, String> {
    let mut codes = Vec::new();
    for child in children {
        match wait_child(child, WAIT) {
            Some(status) => codes.push(status.code()),
            None => {
                let _ = child.kill();
                return Err("a program hangs after bosfs was killed".into());
            }
        }
    }
    Ok(codes)
}

/// `umount`, which must succeed, and a mount by a new process.
fn mount_again(world: &World, mut mount: Mounted, empty_state: bool) -> Result<Mounted, String> {
    let output = mount.umount(WAIT);
    if !output.status.success() {
        return Err(format!("umount: {}", told(&output)));
    }
    drop(mount);
    if empty_state {
        std::fs::remove_dir_all(world.state_dir()).map_err(|e| e.to_string())?;
    }
    self::mount(world)
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().take(8).collect::<Vec<_>>().join(" | ");
    format!("{} {} {}", output.status, text(&output.stdout), text(&output.stderr))
}

fn sha(bytes: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(bytes))
}

/// The tree that rsync copies: new names, and changed ones over an older state.
fn rsync_source(world: &World, seed: u64) -> (PathBuf, PathBuf) {
    let (old, new) = (world.path("old"), world.path("new"));
    let time = |path: &Path, sec: i64| {
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: sec, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: sec, tv_nsec: 123_456_789 },
        };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("utimensat");
    };
    for (root, age) in [(&old, 0), (&new, 1)] {
        for dir in 0..6u64 {
            let folder = root.join(format!("dir {dir}/中文"));
            std::fs::create_dir_all(&folder).expect("mkdir");
            for file in 0..12u64 {
                let n = dir * 12 + file;
                // A third is in both and equal, a third in both and changed, a third new.
                if age == 0 && n % 3 == 2 {
                    continue;
                }
                let content = if n % 3 == 0 { n } else { n + 1000 * (age + 1) };
                let size = match n % 24 {
                    7 => 12_000_000 + age,
                    5 => 0,
                    k => k * 3001 + if n % 3 == 0 { 0 } else { age },
                };
                let path =
                    if file % 2 == 0 { folder.join(format!("f{n}")) } else { root.join(format!("dir {dir}/f+%{n}")) };
                write_random(&path, seed.wrapping_mul(1000) + content, size).expect("source");
                time(&path, 1_500_000_000 + if n % 3 == 0 { 0 } else { age as i64 });
            }
            std::os::unix::fs::symlink(format!("f{age}"), folder.join("link")).expect("symlink");
            time(&folder.join("link"), 1_500_000_000);
        }
        for dir in 0..6 {
            time(&root.join(format!("dir {dir}/中文")), 1_400_000_000);
            time(&root.join(format!("dir {dir}")), 1_400_000_000);
        }
    }
    (old, new)
}

fn rsync_command(source: &Path, target: &Path) -> Command {
    let mut command = Command::new("rsync");
    command.args(["-a", "--delete"]).arg(format!("{}/", source.display())).arg(format!("{}/", target.display()));
    command
}

/// Killed in `rsync -a` over an older state: each name has its old or its new content; rsync again ends with equal trees.
fn rsync_round(world: &World, seed: u64) -> Result<Round, String> {
    let (old, new) = rsync_source(world, seed);
    let mut mount = mount(world)?;
    let target = mount.path("to");
    let first = run(&mut rsync_command(&old, &target), WAIT);
    if !first.status.success() {
        return Err(format!("the first rsync: {}", told(&first)));
    }
    mount = mount_again(world, mount, false)?;
    let older = read_tree(&old).map_err(|e| e.to_string())?;
    let newer = read_tree(&new).map_err(|e| e.to_string())?;
    // The requests that write: one for each small file, several for each large one.
    world.proxy.take_counts();
    let nth = splitmix64(seed) % 45;
    let mut children = [start(&mut rsync_command(&new, &target))?];
    let when = When::any().key_contains("to/").skip(nth);
    let Some(moment) = kill_at(world, &mut mount, seed, when, &mut children)? else {
        return not_hit(world, &mut children);
    };
    let codes = ends(&mut children)?;
    if codes[0] == Some(0) {
        return Ok(Round { hit: false, moment, found: "rsync was done".into() });
    }
    mount.remount().map_err(|e| e.to_string())?;
    let shown = read_tree(&target).map_err(|e| format!("after the remount: {e}"))?;
    let (mut olds, mut news) = (0, 0);
    for (name, was) in older.iter().filter(|(_, entry)| entry.is_file()) {
        let now = shown.get(name).ok_or_else(|| format!("{name:?} is lost"))?;
        match (now.md5 == was.md5, newer.get(name).is_some_and(|new| now.md5 == new.md5)) {
            (_, true) => news += 1,
            (true, _) => olds += 1,
            _ => return Err(format!("{name:?} is neither old nor new: {} bytes", now.size)),
        }
    }
    for (name, entry) in shown.iter().filter(|(name, entry)| entry.is_file() && !older.contains_key(*name)) {
        let whole = newer.get(name).is_some_and(|new| new.md5 == entry.md5);
        let text = name.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // A temporary may be cut off where it was when bosfs died: shown, not published.
        if !whole && !text.starts_with('.') {
            return Err(format!("{name:?} is half: {} bytes", entry.size));
        }
    }
    check_no_half_objects(world, "to/", &[&older, &newer])?;
    let again = run(&mut rsync_command(&new, &target), WAIT);
    if !again.status.success() {
        return Err(format!("rsync run again: {}", told(&again)));
    }
    for empty_state in [false, true] {
        let found = read_tree(&target).map_err(|e| e.to_string())?;
        let lines = differences(&newer, &found, Times::All);
        if !lines.is_empty() {
            return Err(format!("after rsync again (empty state: {empty_state}): {}", lines.join("; ")));
        }
        if !empty_state {
            mount = mount_again(world, mount, true)?;
        }
    }
    let uploads = world.bucket.uploads("").map_err(|e| e.to_string())?;
    if !uploads.is_empty() {
        return Err(format!("unfinished uploads are left: {uploads:?}"));
    }
    Ok(Round { hit: true, moment, found: format!("{olds} old, {news} new") })
}

/// Every object that is not a directory has the content of some whole file of one of the trees (a temporary too).
fn check_no_half_objects(world: &World, prefix: &str, trees: &[&super::tree::Tree]) -> Result<(), String> {
    let files = || trees.iter().flat_map(|tree| tree.values()).filter(|entry| entry.is_file());
    let whole: Vec<_> = files().map(|entry| (entry.size, entry.md5)).collect();
    for key in world.bucket.list(prefix).map_err(|e| e.to_string())? {
        // Symlinks, and rsync's temporaries of them.
        if key.ends_with('/') || key.ends_with("/link") || key.contains("/.link.") {
            continue;
        }
        let (md5, size) = world.bucket.get_md5(&key).map_err(|e| e.to_string())?;
        if !whole.contains(&(size, Some(md5))) {
            return Err(format!("object {key:?} is half: {size} bytes"));
        }
    }
    Ok(())
}

/// Killed in `mv` of a directory: each file is on one side, all are on the same, and `mv` can be run again.
fn mv_round(world: &World, seed: u64) -> Result<Round, String> {
    let content = move |n: usize| format!("file {n} of {seed}\n").repeat(n % 7 + 1).into_bytes();
    let name = |n: usize| match n % 5 {
        0 => format!("sub {}/深/f{n}", n % 11),
        1 => format!("sub {}/f+%{n}", n % 11),
        _ => format!("f{n}"),
    };
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let bucket = world.bucket.clone();
            std::thread::spawn(move || {
                (thread..MOVED_OBJECTS).step_by(4).try_for_each(|n| {
                    bucket.put(&format!("from/{}", name(n)), &content(n)).map(|_| ()).map_err(|e| e.to_string())
                })
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a thread ended badly".to_owned())??;
    }
    let expected: BTreeMap<PathBuf, String> =
        (0..MOVED_OBJECTS).map(|n| (PathBuf::from(name(n)), sha(&content(n)))).collect();
    let mut mount = mount(world)?;
    let (from, to) = (mount.path("from"), mount.path("to"));
    if seed.is_multiple_of(2) {
        // Known to the mount before.
        read_hashes(&from)?;
    }
    world.proxy.take_counts();
    let mut children = [start(Command::new("mv").arg("-T").arg(&from).arg(&to))?];
    // Anywhere in the copies, and in the deletions behind them.
    let when = match splitmix64(seed) % 4 {
        0 => When::call(Call::BatchDelete),
        1 => When::call(Call::CopyObject).skip(MOVED_OBJECTS as u64 - 1 - splitmix64(seed ^ 5) % 20),
        _ => When::call(Call::CopyObject).skip(splitmix64(seed ^ 6) % MOVED_OBJECTS as u64),
    };
    let Some(moment) = kill_at(world, &mut mount, seed, when, &mut children)? else {
        return not_hit(world, &mut children);
    };
    if ends(&mut children)?[0] == Some(0) {
        // The name had changed already; what is left is removed behind it. Nothing may be lost then either.
        return settle_move(world, mount, &expected, &from, &to, moment, true)
            .map(|round| Round { hit: false, ..round });
    }
    settle_move(world, mount, &expected, &from, &to, moment, false)
}

fn settle_move(
    world: &World,
    mut mount: Mounted,
    expected: &BTreeMap<PathBuf, String>,
    from: &Path,
    to: &Path,
    moment: String,
    acknowledged: bool,
) -> Result<Round, String> {
    mount.remount().map_err(|e| e.to_string())?;
    let union = |old: &BTreeMap<PathBuf, String>, new: &BTreeMap<PathBuf, String>| {
        expected
            .iter()
            .find(|(name, sha)| old.get(*name) != Some(sha) && new.get(*name) != Some(sha))
            .map(|(name, _)| name.clone())
    };
    // At once, while recovery may be at work: a name may be on either side, and even change it between two looks.
    let first = read_hashes_if_any(from)?;
    let second = read_hashes_if_any(to)?;
    let third = read_hashes_if_any(from)?;
    if let Some(name) = union(&first, &second).filter(|_| union(&third, &second).is_some()) {
        return Err(format!("{name:?} is on neither side ({} and {} files), {moment}", first.len(), second.len()));
    }
    mount = mount_again(world, mount, false)?;
    let (old, new) = (read_hashes_if_any(from)?, read_hashes_if_any(to)?);
    let found = format!("{} in the old, {} in the new folder", old.len(), new.len());
    let all_old = old == *expected && new.is_empty();
    let all_new = new == *expected && old.is_empty();
    if !(all_new || all_old && !acknowledged) {
        return Err(format!("after recovery {found}, {moment}"));
    }
    if all_old {
        let output = run(Command::new("mv").arg("-T").arg(from).arg(to), WAIT);
        if !output.status.success() {
            return Err(format!("mv run again: {}", told(&output)));
        }
    }
    let _mount = mount_again(world, mount, true)?;
    if read_hashes_if_any(to)? != *expected || from.exists() {
        return Err(format!("at the end {from:?} exists: {}; {found}", from.exists()));
    }
    let left = world.bucket.list("from/").map_err(|e| e.to_string())?;
    if !left.is_empty() {
        return Err(format!("{} objects are left under the old name", left.len()));
    }
    Ok(Round { hit: true, moment, found })
}

fn read_hashes(dir: &Path) -> Result<BTreeMap<PathBuf, String>, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).map_err(|e| format!("{at:?}: {e}"))? {
            let path = entry.map_err(|e| e.to_string())?.path();
            let kind = match std::fs::symlink_metadata(&path) {
                Ok(meta) => meta,
                // Moved between the listing and the look.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(format!("{path:?}: {e}")),
            };
            if kind.is_dir() {
                open.push(path);
            } else {
                match std::fs::read(&path) {
                    Ok(bytes) => {
                        found.insert(path.strip_prefix(dir).map_err(|e| e.to_string())?.to_owned(), sha(&bytes))
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                    Err(e) => return Err(format!("{path:?}: {e}")),
                };
            }
        }
    }
    Ok(found)
}

fn read_hashes_if_any(dir: &Path) -> Result<BTreeMap<PathBuf, String>, String> {
    match std::fs::symlink_metadata(dir) {
        Ok(_) => read_hashes(dir),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(e) => Err(format!("{dir:?}: {e}")),
    }
}

/// Killed under several processes that write, truncate, rename and remove: what a call returned for is there; what was
/// closed is published, and nothing else.
fn writers_round(world: &World, seed: u64) -> Result<Round, String> {
    let script = world.path("writers.py");
    std::fs::write(&script, WRITERS).map_err(|e| e.to_string())?;
    let mut mount = mount(world)?;
    let dir = |n: u64| mount_dir(world, n);
    let log = |n: u64| world.path(&format!("log{n}"));
    for n in 0..WRITER_COUNT {
        std::fs::create_dir_all(dir(n).join("sub")).map_err(|e| e.to_string())?;
    }
    let python = |args: Vec<OsString>| {
        let mut command = Command::new("python3");
        command.arg(&script).args(args);
        command
    };
    let mut children = Vec::new();
    for n in 0..WRITER_COUNT {
        let writer_seed = (seed * 100 + n).to_string();
        let args = vec!["run".into(), dir(n).into(), log(n).into(), writer_seed.into()];
        children.push(start(&mut python(args))?);
    }
    let when = When::any().skip(30 + splitmix64(seed) % 250);
    let moment = kill_at(world, &mut mount, seed, when, &mut children)?;
    let codes = ends(&mut children)?;
    // They end only by an error: that of a call on the dead mount.
    if codes.iter().any(|code| *code != Some(3)) {
        return Err(format!("writers ended with {codes:?}"));
    }
    let Some(moment) = moment else { return Err("all writers failed before bosfs was killed".into()) };
    let mut found = String::new();
    let check = |what: &str, n: u64| {
        let output = run(&mut python(vec![what.into(), dir(n).into(), log(n).into()]), WAIT);
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            false => Err(format!("{what}: {}, {moment}", told(&output))),
        }
    };
    mount.remount().map_err(|e| e.to_string())?;
    for n in 0..WRITER_COUNT {
        found = format!("{found}{} ", check("shown", n)?);
    }
    check_whole_objects(world, &python)?;
    let _mount = mount_again(world, mount, true)?;
    check_whole_objects(world, &python)?;
    for n in 0..WRITER_COUNT {
        check("published", n)?;
    }
    Ok(Round { hit: true, moment, found })
}

fn mount_dir(world: &World, n: u64) -> PathBuf {
    world.path("mnt").join(format!("w{n}"))
}

/// Every object is a state in which some file was closed.
fn check_whole_objects(world: &World, python: &dyn Fn(Vec<OsString>) -> Command) -> Result<(), String> {
    for n in 0..WRITER_COUNT {
        let output = run(&mut python(vec!["whole".into(), world.path(&format!("log{n}")).into()]), WAIT);
        let whole: BTreeSet<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        for key in world.bucket.list(&format!("w{n}/")).map_err(|e| e.to_string())? {
            if key.ends_with('/') {
                continue;
            }
            let bytes = world.bucket.get(&key).map_err(|e| e.to_string())?;
            if !whole.contains(&sha(&bytes)) {
                return Err(format!("object {key:?} of {} bytes is no state that was ever closed", bytes.len()));
            }
        }
    }
    Ok(())
}
