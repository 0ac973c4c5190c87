//! What hostile servers, other users and curious readers of logs must not reach. Real mounts, before a server that sends
//! whatever bytes a test likes.

mod support;

#[path = "security/answers.rs"]
mod answers;
#[path = "security/listings.rs"]
mod listings;
#[path = "security/metadata.rs"]
mod metadata;
#[path = "security/other_users.rs"]
mod other_users;
#[path = "security/private.rs"]
mod private;
#[path = "security/secrets.rs"]
mod secrets;
#[path = "security/uploads.rs"]
mod uploads;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use support::call::Asked;
use support::hostile::{Hostile, Raw};
use support::mounted::within;
use support::{MountSpec, Mounted, World};

/// Longest wait for anything that must happen.
const WAIT: Duration = Duration::from_secs(120);
/// Memory that a mount may take at its height while a server does its worst, MiB: the debug binary with its threads and
/// buffers, `--memory-limit`, and a few answers of the largest size that is read.
const MEMORY_MIB_MAX: u64 = 300;
/// Options of most mounts: each look at a name asks the server.
const LITTLE_MEMORY: [&str; 4] = ["--memory-limit", "32MiB", "--metadata-ttl", "0"];

/// A mount whose server answers by script.
struct Attacked {
    // Dropped in this order: the mount must go first.
    mount: Mounted,
    hostile: Hostile,
    world: World,
}

impl Attacked {
    fn with(args: &[&str], script: impl Fn(&Asked) -> Option<Raw> + Send + Sync + 'static) -> Self {
        let world = World::new();
        let hostile = Hostile::start(world.server.addr(), |_| None).unwrap();
        let mount = spec_at(&world, &hostile, args).mount().unwrap_or_else(|e| panic!("{e}"));
        hostile.answer_by(script);
        Self { mount, hostile, world }
    }

    /// Asserts that bosfs is alive, took bounded memory, kept to its own folders, and works once the server behaves.
    fn assert_unharmed(&mut self) {
        self.hostile.behave();
        assert!(!self.mount.has_ended(), "bosfs ended: {}", self.mount.log_text());
        let peak = peak_mib(self.mount.pid().unwrap());
        assert!(peak <= MEMORY_MIB_MAX, "bosfs took {peak} MiB");
        let log = self.mount.log_text();
        assert!(!log.contains("panicked"), "a panic: {log}");
        self.world.bucket.put("after-the-attack", b"well").unwrap();
        let path = self.mount.path("after-the-attack");
        assert_eq!(timed(move || std::fs::read(path)).unwrap(), b"well");
        let found: BTreeSet<String> = names(self.world.tmp.path());
        let own = ["bosfs.log", "credentials", "mnt", "server", "state"];
        assert!(found.iter().all(|name| own.contains(&name.as_str())), "written outside: {found:?}");
    }
}

/// How to mount through `hostile`.
fn spec_at(world: &World, hostile: &Hostile, args: &[&str]) -> MountSpec {
    let mut spec = world.spec(args);
    spec.endpoint = hostile.endpoint();
    spec
}

/// Ends a test that needs rights with a clear word.
fn need_root() {
    assert!(rustix::process::geteuid().is_root(), "this test acts as other users: run it as root");
}

/// Runs `job`, but does not hang with a mount that does not answer.
fn timed<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    within(WAIT, "a call on the mount", job)
}

/// Names in a directory outside of mounts.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Names in a directory of a mount, in bytes.
fn list(dir: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    use std::os::unix::ffi::OsStringExt as _;
    let dir = dir.to_owned();
    timed(move || std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_vec())).collect())
}

/// The most memory that a process ever had, MiB.
fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a line of the peak");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

/// The errno of a call that must fail.
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("it must fail").raw_os_error().expect("an errno")
}
