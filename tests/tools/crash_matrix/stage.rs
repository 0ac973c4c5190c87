//! One round's world and the program that runs in it: what is there before, what is started, and what must be there at the
//! end.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::phases::{BIG_BYTES, FROM_DIR, KEY, OTHER_KEY, Phase, SMALL_BYTES, Story, TO_DIR};
use crate::programs::{Ended, Program};
use crate::shared::{A_AT, A_BYTES, B_AT, B_BYTES};
use crate::support::crash::contents::{Sum, Watch, sum_of};
use crate::support::crash::steps::{Told, Writer};
use crate::support::files::random_bytes;
use crate::support::mounted::{bosfs_binary, is_mounted};
use crate::support::{Call, HoldAt, KeyWatch, Mounted, When, World};

/// Longest wait for what must happen by itself once no fault is left.
pub const WAIT: Duration = Duration::from_secs(90);
/// Time between two looks at a key, and the same where bosfs waits for a timeout most of the time.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_SELDOM: Duration = Duration::from_millis(250);
/// Files of the directory that is renamed.
const DIR_FILES: usize = 8;
/// Mode that `chmod` sets.
const MODE: u32 = 0o640;

/// Bytes that are written or read.
pub struct Content {
    pub bytes: Vec<u8>,
    /// As a file outside any mount.
    pub path: PathBuf,
}

/// What all rounds read from.
pub struct Sources {
    pub big: Content,
    pub small: Content,
    /// The object that some keys have before.
    pub old: Vec<u8>,
    /// What two programs make of an object of several parts: before, as the first one closes it, as the second one does.
    pub shared: [Content; 3],
    /// The second one empties it.
    pub emptied: Content,
    _folder: tempfile::TempDir,
}

impl Sources {
    pub fn new(seed: u64) -> std::io::Result<Self> {
        let folder = tempfile::TempDir::with_prefix("bosfs-matrix-")?;
        let content = |name: &str, seed: u64, len: u64| {
            let bytes = random_bytes(seed, len as usize);
            let path = folder.path().join(name);
            std::fs::write(&path, &bytes)?;
            Ok::<_, std::io::Error>(Content { bytes, path })
        };
        let (big, small) = (content("big", seed, BIG_BYTES)?, content("small", seed ^ 1, SMALL_BYTES)?);
        let emptied = content("emptied", seed ^ 3, B_BYTES as u64)?;
        let keep = |name: &str, bytes: Vec<u8>| {
            let path = folder.path().join(name);
            std::fs::write(&path, &bytes)?;
            Ok::<_, std::io::Error>(Content { bytes, path })
        };
        let base = big.bytes.clone();
        let mut closed = base.clone();
        closed[A_AT as usize..][..A_BYTES].copy_from_slice(&random_bytes(seed ^ 4, A_BYTES));
        let mut both = closed.clone();
        both[B_AT as usize..][..B_BYTES].copy_from_slice(&random_bytes(seed ^ 5, B_BYTES));
        let shared = [keep("base", base)?, keep("closed", closed)?, keep("both", both)?];
        Ok(Self { big, small, old: random_bytes(seed ^ 2, 70_007), shared, emptied, _folder: folder })
    }
}

/// A round's world. The mount goes before the world.
pub struct Stage<'a> {
    pub mount: Option<Mounted>,
    pub watches: Vec<(KeyWatch, Vec<u64>)>,
    /// Of two programs, the second.
    pub second: Option<Writer>,
    /// What the second of two programs was told, once it has ended.
    pub second_told: Option<Told>,
    /// The contents of their object, and the states that it may have.
    pub contents: Option<(Watch, [Sum; 3])>,
    pub world: World,
    pub sources: &'a Sources,
    pub phase: &'static Phase,
    /// The key has an object before.
    pub is_over_old: bool,
    /// bosfs waits for a timeout most of the time.
    pub waits: bool,
    /// One byte of what is expected is made wrong, to see that it is noticed.
    pub expects_wrong: bool,
}

impl<'a> Stage<'a> {
    pub fn new(phase: &'static Phase, sources: &'a Sources, is_over_old: bool, waits: bool) -> Result<Self, String> {
        let world = World::try_new().map_err(|e| format!("world: {e}"))?;
        Ok(Self {
            mount: None,
            watches: Vec::new(),
            second: None,
            second_told: None,
            contents: None,
            world,
            sources,
            phase,
            is_over_old,
            waits,
            expects_wrong: false,
        })
    }

    pub fn story(&self) -> Story {
        self.phase.story
    }

    fn args(&self) -> &'static [&'static str] {
        match self.story() {
            Story::Recovery | Story::Umount | Story::Resume => &["--part-size", "5MiB", "--write-back"],
            Story::Read | Story::Reopen => &["--part-size", "5MiB", "--metadata-ttl", "0s"],
            _ => &["--part-size", "5MiB"],
        }
    }

    pub fn mount_now(&mut self) -> Result<(), String> {
        let mount = self.world.spec(self.args()).mount().map_err(|e| format!("mount: {e}"))?;
        self.mount = Some(mount);
        Ok(())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.world.path("mnt").join(name)
    }

    /// The file that the story writes, or that is there.
    pub fn content(&self) -> &'a Content {
        match self.story() {
            Story::Copy | Story::Read | Story::Reopen | Story::Recovery | Story::Umount | Story::Resume => {
                &self.sources.big
            }
            Story::Share => &self.sources.shared[2],
            Story::ShareEmpty => &self.sources.emptied,
            _ => &self.sources.small,
        }
    }

    /// Objects that are there before; then the mount, and what happens on it before the fault.
    pub fn prepare(&mut self) -> Result<(), String> {
        let put = |key: &str, bytes: &[u8]| self.world.bucket.put(key, bytes).map(|_| ()).map_err(|e| e.to_string());
        let content = self.content();
        put("dir/other", b"another file\n")?;
        match self.story() {
            Story::Mount | Story::Lookup | Story::List | Story::Read | Story::Reopen => put(KEY, &content.bytes)?,
            Story::Chmod | Story::Unlink => put(KEY, &content.bytes)?,
            Story::Rename => {
                put(KEY, &content.bytes)?;
                if self.is_over_old {
                    put(OTHER_KEY, &self.sources.old)?;
                }
            }
            Story::RenameDir => {
                for n in 0..DIR_FILES {
                    put(&format!("{FROM_DIR}/{}", dir_file(n)), &dir_content(n))?;
                }
            }
            Story::Share | Story::ShareEmpty => put(KEY, &self.sources.shared[0].bytes)?,
            _ if self.is_over_old => put(KEY, &self.sources.old)?,
            _ => {}
        }
        self.watch();
        if self.story() == Story::Mount {
            return Ok(());
        }
        self.mount_now()?;
        match self.story() {
            Story::Lookup => self.must("stat", &["dir/other"])?,
            Story::Read => self.must("stat", &[KEY])?,
            Story::Reopen => self.must("cat", &[KEY])?,
            Story::Recovery | Story::Resume => self.copy_and_kill()?,
            _ => {}
        }
        Ok(())
    }

    /// Looks all the time whether a key shows anything but whole files.
    fn watch(&mut self) {
        let (new, old) = (self.content().bytes.len() as u64, self.sources.old.len() as u64);
        let keys = match self.story() {
            Story::RenameDir => vec![format!("{TO_DIR}/{}", dir_file(0)), format!("{FROM_DIR}/{}", dir_file(0))],
            Story::Rename => vec![KEY.to_owned(), OTHER_KEY.to_owned()],
            _ => vec![KEY.to_owned()],
        };
        let pause = if self.waits { LOOK_SELDOM } else { LOOK_EVERY };
        for key in keys {
            let whole = match self.story() {
                Story::RenameDir => vec![dir_content(0).len() as u64],
                _ if self.story().is_shared() => vec![new, BIG_BYTES],
                _ => vec![new, old],
            };
            self.watches.push((KeyWatch::start_every(&self.world.bucket, &key, pause), whole));
        }
        if self.story().is_shared() {
            let closed = [&self.sources.shared[0], &self.sources.shared[1], self.content()];
            let states = closed.map(|content| sum_of(&content.bytes));
            self.contents = Some((Watch::start(&self.world.bucket, KEY), states));
        }
    }

    /// A program that must succeed while there is no fault.
    fn must(&self, program: &str, names: &[&str]) -> Result<(), String> {
        let ended = self.run(Command::new(program).args(names.iter().map(|name| self.path(name))))?;
        match ended.is_success() {
            true => Ok(()),
            false => Err(format!("{program} {names:?} fails without a fault: {}", ended.told())),
        }
    }

    /// Runs a program to its end.
    pub fn run(&self, command: &mut Command) -> Result<Ended, String> {
        Program::start(command, self.world.tmp.path(), Some(&self.world.path("output")))?.wait(WAIT)
    }

    /// `cp` to its end on a write-back mount; bosfs is killed at a moment that leaves to recovery what the phase needs.
    fn copy_and_kill(&mut self) -> Result<(), String> {
        let (when, at) = match self.phase.call {
            Call::Complete => (When::call(Call::Complete), HoldAt::BeforeForward),
            Call::HeadObject => (When::call(Call::Complete), HoldAt::BeforeAnswer),
            _ => (
                When::call(Call::UploadPart).part(crate::phases::LAST_PART),
                HoldAt::InsideBody { after_bytes: 64 << 10 },
            ),
        };
        let hold = self.world.proxy.hold(when.key(KEY), at);
        self.copy_behind()?;
        if !hold.wait_hit(WAIT) {
            return Err("the request at which bosfs is to be killed never came".into());
        }
        // All other parts first, so that it is known what is in BOS.
        self.wait_parts()?;
        if let Some(mount) = &mut self.mount {
            mount.kill();
        }
        self.mount = None;
        self.world.proxy.clear_rules();
        self.world.wait_quiet();
        match self.world.journals().is_empty() {
            true => Err("no journal is left for the recovery".into()),
            false => Ok(()),
        }
    }

    fn wait_parts(&self) -> Result<(), String> {
        let end = Instant::now() + WAIT;
        while self.world.proxy.counts().of(Call::UploadPart).accepted < u64::from(crate::phases::LAST_PART) - 1 {
            if Instant::now() > end {
                return Err("the first parts never came".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    /// `cp` on a write-back mount.
    pub fn copy_behind(&self) -> Result<(), String> {
        let ended = self.run(Command::new("cp").arg(&self.content().path).arg(self.path(KEY)))?;
        match ended.is_success() {
            true => Ok(()),
            false => Err(format!("cp fails on a write-back mount: {}", ended.told())),
        }
    }

    pub fn bosfs(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bosfs_binary());
        command.args(args);
        command
    }

    fn resume_command(&self) -> Command {
        let spec = self.world.spec(&[]);
        let mut command = self.bosfs(&["uploads", "resume", &format!("{}/{KEY}", spec.target)]);
        command.args(["--endpoint", &spec.endpoint]).arg("--credentials").arg(&spec.credentials);
        command.arg("--state-dir").arg(&spec.state_dir);
        command
    }

    fn umount_command(&self) -> Command {
        let mut command = self.bosfs(&["umount"]);
        command.arg(self.world.path("mnt"));
        command
    }

    /// The program of the story; for a mount, its process.
    pub fn start(&mut self) -> Result<Option<Program>, String> {
        let copy = |from: &PathBuf, to: PathBuf| {
            let mut command = Command::new("cp");
            command.arg(from).arg(to);
            command
        };
        let on = |program: &str, args: &[&str], names: &[&str]| {
            let mut command = Command::new(program);
            command.args(args).args(names.iter().map(|name| self.path(name)));
            command
        };
        let mut command = match self.story() {
            Story::Mount | Story::Recovery => {
                let mount = self.world.spec(self.args()).start().map_err(|e| format!("mount: {e}"))?;
                self.mount = Some(mount);
                return Ok(None);
            }
            Story::Lookup => on("stat", &["-c", "%s"], &[KEY]),
            Story::List => on("ls", &[], &["dir"]),
            Story::Copy | Story::CopySmall => copy(&self.content().path, self.path(KEY)),
            Story::Rename => on("mv", &["-f", "-T"], &[KEY, OTHER_KEY]),
            Story::RenameDir => on("mv", &["-T"], &[FROM_DIR, TO_DIR]),
            Story::Chmod => on("chmod", &[&format!("{MODE:o}")], &[KEY]),
            Story::Unlink => on("rm", &["-f"], &[KEY]),
            Story::Read | Story::Reopen => on("cat", &[], &[KEY]),
            Story::Share | Story::ShareEmpty => self.first_command(),
            Story::Umount => self.umount_command(),
            Story::Resume => self.resume_command(),
        };
        Program::start(&mut command, self.world.tmp.path(), Some(&self.world.path("output"))).map(Some)
    }

    /// What `cat` handed over so far is the beginning of the file.
    pub fn check_output(&self, whole: bool) -> Result<u64, String> {
        if !matches!(self.story(), Story::Read | Story::Reopen) {
            return Ok(0);
        }
        let output = std::fs::read(self.world.path("output")).map_err(|e| e.to_string())?;
        let wrong = differing(&output, &self.content().bytes[..output.len().min(self.content().bytes.len())]);
        match wrong {
            0 if !whole || output.len() == self.content().bytes.len() => Ok(0),
            0 => Err(format!("cat says success after {} bytes of {}", output.len(), self.content().bytes.len())),
            wrong => Err(format!("LOST {wrong} bytes: cat was handed wrong ones")),
        }
    }

    /// Brings the story to its end once there is no fault any more, and the mount stands: what was closed ends by itself,
    /// what was cut off is run again.
    pub fn settle(&mut self, failed: bool) -> Result<(), String> {
        match self.story() {
            Story::Mount | Story::Lookup | Story::List => self.must("cat", &[KEY]),
            Story::Read | Story::Reopen => self.must("cat", &[KEY]).and_then(|()| self.check_output(true).map(|_| ())),
            Story::Copy | Story::CopySmall | Story::Recovery | Story::Umount => self.settle_copy(failed),
            Story::Resume if failed => {
                let ended = self.run(&mut self.resume_command())?;
                match ended.is_success() || self.is_published()? {
                    true => Ok(()),
                    false => Err(format!("resume run again fails: {}", ended.told())),
                }
            }
            Story::Resume => Ok(()),
            Story::Rename | Story::RenameDir | Story::Chmod | Story::Unlink => self.settle_change(),
            Story::Share | Story::ShareEmpty => self.settle_shared(),
        }
    }

    pub fn is_published(&self) -> Result<bool, String> {
        let seen = self.world.bucket.head(KEY).map_err(|e| e.to_string())?;
        Ok(seen.is_some_and(|seen| seen.size == self.content().bytes.len() as u64))
    }

    fn settle_copy(&mut self, failed: bool) -> Result<(), String> {
        let Some(mount) = &self.mount else { return Err("nothing is mounted".into()) };
        let end = Instant::now() + WAIT;
        let closed = !matches!(self.story(), Story::Copy | Story::CopySmall);
        loop {
            let entry = mount.file_status(KEY);
            let state = entry.as_ref().map_or("none", |e| e["state"].as_str().unwrap_or("?")).to_owned();
            match state.as_str() {
                "none" | "idle" | "done" | "interrupted" => {
                    if state != "interrupted" && self.is_published()? {
                        return Ok(());
                    }
                    if closed || !failed {
                        return Err(format!("closed, and yet {state}: {entry:?}"));
                    }
                    break;
                }
                "failed" | "conflict" => return Err(format!("without a fault: {entry:?}")),
                _ if Instant::now() > end => return Err(format!("HANG: no end of {entry:?}")),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        // The writer was cut off: run again.
        let ended = self.run(Command::new("cp").arg(&self.content().path).arg(self.path(KEY)))?;
        match ended.is_success() {
            true => Ok(()),
            false => Err(format!("cp run again fails: {}", ended.told())),
        }
    }

    /// Waits for what goes on behind, and runs the program again where nothing of it is left to do and nothing was done.
    fn settle_change(&mut self) -> Result<(), String> {
        let end = Instant::now() + WAIT;
        let mut again = 0;
        while let Some(missing) = self.change_missing()? {
            let Some(mount) = &self.mount else { return Err("nothing is mounted".into()) };
            if Instant::now() > end {
                return Err(format!("HANG: {missing}: {}", mount.status()));
            }
            if files_of(&mount.status()).is_empty() && again < 3 {
                again += 1;
                if let Some(program) = self.start()? {
                    program.wait(WAIT)?;
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// What the change has not brought about yet.
    fn change_missing(&self) -> Result<Option<String>, String> {
        let bucket = &self.world.bucket;
        let head = |key: &str| bucket.head_reply(key).map_err(|e| e.to_string());
        Ok(match self.story() {
            Story::Rename => match (head(KEY)?.is_some(), head(OTHER_KEY)?.map(|reply| reply.size())) {
                (false, Some(size)) if size == self.content().bytes.len() as u64 => None,
                sides => Some(format!("the old and the new name are {sides:?}")),
            },
            Story::RenameDir => {
                let list = |prefix: &str| bucket.list(&format!("{prefix}/")).map_err(|e| e.to_string());
                let files = |keys: Vec<String>| keys.iter().filter(|key| !key.ends_with('/')).count();
                let (old, new) = (list(FROM_DIR)?, files(list(TO_DIR)?));
                let done = old.is_empty() && new == DIR_FILES;
                (!done).then(|| format!("{} objects under the old name, {new} files under the new", old.len()))
            }
            Story::Chmod => {
                let mode = head(KEY)?.and_then(|reply| reply.header("x-bce-meta-bosfs-mode").map(str::to_owned));
                let done = mode.as_deref().and_then(|m| m.parse::<u32>().ok()).is_some_and(|m| m & 0o7777 == MODE);
                (!done).then(|| format!("the mode is {mode:?}"))
            }
            Story::Unlink => head(KEY)?.map(|_| "the object is still there".to_owned()),
            _ => None,
        })
    }

    /// Bytes of what must be in BOS that are not there, or not as written; by GETs past mount and proxy.
    pub fn lost_bytes(&self) -> Result<u64, String> {
        let compare = |key: &str, expected: &[u8]| match self.world.bucket.head(key).map_err(|e| e.to_string())? {
            None => Ok(expected.len() as u64),
            Some(_) => {
                let mut found = self.world.bucket.get(key).map_err(|e| e.to_string())?;
                if self.expects_wrong && key == KEY {
                    found[0] ^= 1;
                }
                Ok(differing(&found, expected))
            }
        };
        let mut lost = compare("dir/other", b"another file\n")?;
        lost += match self.story() {
            Story::Unlink => 0,
            Story::Rename => compare(OTHER_KEY, &self.content().bytes)?,
            Story::RenameDir => {
                let all = (0..DIR_FILES).map(|n| compare(&format!("{TO_DIR}/{}", dir_file(n)), &dir_content(n)));
                all.sum::<Result<u64, String>>()?
            }
            _ => compare(KEY, &self.content().bytes)?,
        };
        Ok(lost)
    }

    /// While a fault lasts: what was there is there, or what was written is; nothing else. Bytes that are neither.
    pub fn torn_bytes(&self) -> Result<u64, String> {
        let get = |key: &str| match self.world.bucket.head(key).map_err(|e| e.to_string())? {
            None => Ok(None),
            Some(_) => self.world.bucket.get(key).map(Some).map_err(|e| e.to_string()),
        };
        let new = self.content().bytes.as_slice();
        let is = |found: &Option<Vec<u8>>, bytes: &[u8]| found.as_deref() == Some(bytes);
        let good = match self.story() {
            Story::RenameDir => {
                let mut good = true;
                for n in 0..DIR_FILES {
                    let (old, new) =
                        (get(&format!("{FROM_DIR}/{}", dir_file(n)))?, get(&format!("{TO_DIR}/{}", dir_file(n)))?);
                    good &= is(&old, &dir_content(n)) || is(&new, &dir_content(n));
                }
                good
            }
            Story::Rename => is(&get(KEY)?, new) || is(&get(OTHER_KEY)?, new),
            Story::Unlink => {
                let found = get(KEY)?;
                found.is_none() || is(&found, new)
            }
            story if story.is_shared() => {
                let found = get(KEY)?;
                is(&found, &self.sources.shared[0].bytes) || is(&found, &self.sources.shared[1].bytes)
            }
            story => {
                let found = get(KEY)?;
                let before =
                    story.writes() && if self.is_over_old { is(&found, &self.sources.old) } else { found.is_none() };
                before || is(&found, new)
            }
        };
        Ok(if good { 0 } else { new.len() as u64 })
    }

    /// Bytes that the story has in BOS at the end.
    pub fn written_bytes(&self) -> u64 {
        match self.story() {
            Story::RenameDir => (0..DIR_FILES).map(|n| dir_content(n).len() as u64).sum(),
            Story::Unlink => 0,
            _ => self.content().bytes.len() as u64,
        }
    }

    /// The last step of each round: `bosfs umount` says that nothing is left, and nothing is.
    pub fn unmount(&mut self) -> Result<(), String> {
        if !is_mounted(&self.world.path("mnt")) {
            self.mount = None;
            return Ok(());
        }
        let ended = self.run(&mut self.umount_command())?;
        if !ended.is_success() {
            return Err(format!("umount at the end: {}", ended.told()));
        }
        if let Some(mut mount) = self.mount.take() {
            let end = Instant::now() + WAIT;
            while !mount.has_ended() {
                if Instant::now() > end {
                    return Err("HANG: the process lives on after umount".into());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

fn dir_file(n: usize) -> String {
    if n % 3 == 2 { format!("sub/f {n}") } else { format!("f{n}") }
}

fn dir_content(n: usize) -> Vec<u8> {
    random_bytes(1000 + n as u64, 3000 + n)
}

/// Bytes in which two contents differ, those included that only one has.
fn differing(found: &[u8], expected: &[u8]) -> u64 {
    if found == expected {
        return 0;
    }
    let differing = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    (differing + found.len().abs_diff(expected.len())) as u64
}

/// The entries of a status document.
pub fn files_of(status: &serde_json::Value) -> Vec<serde_json::Value> {
    let mounts = status["mounts"].as_array().into_iter().flatten();
    mounts.filter_map(|mount| mount["files"].as_array()).flatten().cloned().collect()
}
