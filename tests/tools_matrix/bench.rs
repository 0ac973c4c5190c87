//! The same commands on a mount and on a local folder, compared; and the mount once more by new processes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::mounted::{run, within};
use crate::support::{Mounted, World};

use crate::support::tree::{Times, Tree, differences, read_tree, without};

/// Longest time of one script on one side.
pub const SCRIPT_TIMEOUT: Duration = Duration::from_secs(150);
/// Before every script: a command that must fail is written `refused COMMAND`.
const PRELUDE: &str = r#"umask 022
refused() { if "$@" > /dev/null 2>&1; then echo "was not refused: $*" >&2; return 1; fi; }
trap 'echo "exit code $? of: $BASH_COMMAND" >&2' ERR"#;
/// Differences that a failure tells.
const TOLD_MAX: usize = 40;

/// A mount, a local folder, and what both have seen so far.
pub struct Bench {
    // Before the world: it must be gone when the server ends.
    mount: Option<Mounted>,
    pub world: World,
    args: Vec<String>,
    times: Times,
    /// Beginnings of relative paths that may differ between the sides (but not between two mounts).
    ignored: Vec<&'static str>,
    env: Vec<(String, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Mount,
    Local,
}

impl Bench {
    /// Parts of 5 MiB, so that few bytes make many of them.
    pub fn new(times: Times) -> Self {
        Self::with_args(times, &["--part-size", "5MiB"])
    }

    pub fn with_args(times: Times, args: &[&str]) -> Self {
        let world = World::new();
        for dir in ["in", "local/w", "out-local", "out-mount", "scratch-local", "scratch-mount"] {
            std::fs::create_dir_all(world.path(dir)).unwrap();
        }
        let mount = world.mount(args);
        std::fs::create_dir(mount.path("w")).unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { world, mount: Some(mount), args, times, ignored: Vec::new(), env: Vec::new() }
    }

    /// Names that begin so may differ from the local ones: the tool writes random or machine-dependent content there.
    pub fn ignoring(mut self, prefixes: &[&'static str]) -> Self {
        self.ignored.extend(prefixes);
        self
    }

    /// A variable of all scripts.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn mount(&self) -> &Mounted {
        self.mount.as_ref().expect("mounted")
    }

    /// Folder of the inputs that both sides read, `$IN`.
    pub fn input(&self) -> PathBuf {
        self.world.path("in")
    }

    /// Runs a shell script outside of both sides, to make the inputs. In `$IN`.
    pub fn prepare(&self, script: &str) -> &Self {
        let output = run(&mut self.command(script, Side::Local, &self.input()), SCRIPT_TIMEOUT);
        assert!(output.status.success(), "preparing: {}", shown(&output));
        self
    }

    fn dir(&self, side: Side) -> PathBuf {
        match side {
            Side::Mount => self.world.path("mnt").join("w"),
            Side::Local => self.world.path("local/w"),
        }
    }

    fn other_dir(&self, side: Side, name: &str) -> PathBuf {
        self.world.path(&format!("{name}-{}", if side == Side::Mount { "mount" } else { "local" }))
    }

    fn command(&self, script: &str, side: Side, dir: &Path) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", &format!("{PRELUDE}\n{script}")])
            .current_dir(dir)
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("HOME", self.other_dir(side, "scratch"))
            .env("IN", self.input())
            .env("OUT", self.other_dir(side, "out"))
            .env("SCRATCH", self.other_dir(side, "scratch"))
            .env("SIDE", if side == Side::Mount { "mount" } else { "local" })
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a script on one side, in its folder; it must end with 0. What it printed, with the folders' names taken out.
    fn run_on(&self, side: Side, script: &str) -> String {
        let dir = self.dir(side);
        let output = run(&mut self.command(script, side, &dir), SCRIPT_TIMEOUT);
        assert!(output.status.success(), "on the {side:?} side: {}", shown(&output));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = [(dir, "@w"), (self.other_dir(side, "out"), "@out"), (self.other_dir(side, "scratch"), "@scratch")];
        names.iter().fold(printed, |text, (dir, name)| text.replace(&dir.display().to_string(), name))
    }

    /// Runs a script on both sides: exit code 0, equal output, equal trees (also in `$OUT`). Returns the output.
    ///
    /// Scripts run in their own folder under `bash -euo pipefail`, with `$IN` (common inputs), `$OUT` (a local folder that
    /// is compared too) and `$SCRATCH` (one that is not).
    pub fn run(&self, script: &str) -> String {
        let expected = self.run_on(Side::Local, script);
        let found = self.run_on(Side::Mount, script);
        self.compare("after the commands");
        assert!(expected == found, "other output\n{}", first_difference(&expected, &found));
        found
    }

    /// Runs a script on the mount alone.
    pub fn run_on_mount(&self, script: &str) -> String {
        self.run_on(Side::Mount, script)
    }

    fn compare(&self, when: &str) {
        for (expected, found) in [
            (self.dir(Side::Local), self.dir(Side::Mount)),
            (self.other_dir(Side::Local, "out"), self.other_dir(Side::Mount, "out")),
        ] {
            let expected = without(&read_tree(&expected).unwrap(), &self.ignored);
            let found = without(&self.read(&found, when), &self.ignored);
            tell(when, &differences(&expected, &found, self.times));
        }
    }

    fn read(&self, dir: &Path, when: &str) -> Tree {
        let dir = dir.to_owned();
        within(SCRIPT_TIMEOUT, when, move || read_tree(&dir))
            .unwrap_or_else(|e| panic!("{when}: {e}\n{}", self.world.log_text()))
    }

    /// `umount` with exit code 0, then a new process; `empty_state`: which knows nothing but what is in BOS.
    pub fn remount(&mut self, empty_state: bool) {
        let mut mount = self.mount.take().expect("mounted");
        let output = mount.umount(SCRIPT_TIMEOUT);
        assert!(output.status.success(), "umount: {}\n{}", shown(&output), mount.log_text());
        drop(mount);
        if empty_state {
            std::fs::remove_dir_all(self.world.state_dir()).unwrap();
        }
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.mount = Some(self.world.mount(&args));
    }

    /// What the tools left must be there for new processes too, with the same state directory and with an empty one, as
    /// plain objects, and nothing else. `check` is a script that both sides must answer alike then.
    pub fn finish(mut self, check: &str) {
        let mut before = self.read(&self.dir(Side::Mount), "at the end");
        let stable = if self.times == Times::All { Times::All } else { Times::Files };
        for (empty_state, when) in [(false, "after a remount"), (true, "after a remount with an empty state directory")]
        {
            self.remount(empty_state);
            let after = self.read(&self.dir(Side::Mount), when);
            tell(&format!("{when}, against before it"), &differences(&before, &after, stable));
            self.compare(when);
            if !check.is_empty() {
                let expected = self.run_on(Side::Local, check);
                let found = self.run_on(Side::Mount, check);
                assert!(expected == found, "{when}: other output\n{}", first_difference(&expected, &found));
                // The check may have written (cargo copies its outputs anew).
                before = self.read(&self.dir(Side::Mount), when);
            }
        }
        if !check.is_empty() {
            // A check may have written (an index that git freshened).
            self.remount(false);
        }
        let tree = self.read(&self.dir(Side::Mount), "for the objects");
        self.check_objects(&tree);
    }

    /// Every file is one object with its bytes, and there is nothing in the bucket but files, symlinks and directories.
    fn check_objects(&self, tree: &Tree) {
        let keys = self.world.bucket.list("w/").unwrap();
        let name_of = |key: &str| PathBuf::from(key.trim_start_matches("w/").trim_end_matches('/'));
        let strange: Vec<_> =
            keys.iter().filter(|key| *key != "w/" && !tree.contains_key(&name_of(key))).take(TOLD_MAX).collect();
        assert!(strange.is_empty(), "objects that no name shows: {strange:?}");
        let wrong: Vec<_> = tree
            .iter()
            .filter(|(_, entry)| entry.is_file())
            .filter_map(|(name, entry)| {
                let key = format!("w/{}", name.to_str()?);
                match self.world.bucket.get_md5(&key) {
                    Ok((md5, size)) if Some(md5) == entry.md5 && size == entry.size => None,
                    other => Some(format!("object {key:?}: {other:?}, expected {:?} bytes {}", entry.md5, entry.size)),
                }
            })
            .collect();
        tell("in the bucket", &wrong);
        let uploads = self.world.bucket.uploads("").unwrap();
        assert!(uploads.is_empty(), "unfinished uploads are left: {uploads:?}");
    }
}

fn tell(when: &str, lines: &[String]) {
    let shown = lines.iter().take(TOLD_MAX).cloned().collect::<Vec<_>>().join("\n");
    assert!(lines.is_empty(), "{when}: {} differences\n{shown}", lines.len());
}

fn shown(output: &std::process::Output) -> String {
    let tail = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    };
    format!("{}\n{}\n{}", output.status, tail(&output.stdout), tail(&output.stderr))
}

fn first_difference(expected: &str, found: &str) -> String {
    let (mut left, mut right) = (expected.lines(), found.lines());
    for n in 1.. {
        match (left.next(), right.next()) {
            (None, None) => break,
            (a, b) if a != b => return format!("line {n}: {b:?}, expected {a:?}"),
            _ => {}
        }
    }
    "only line ends differ".into()
}
