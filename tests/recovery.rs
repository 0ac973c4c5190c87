//! One test for each row of the recovery table: what the journal says, what BOS says, and what the next mount does.
//!
//! Each one brings the real binary to the situation with the fault proxy, kills it with SIGKILL, changes the bucket where
//! the row says so, mounts again, and looks at the bucket past the mount.

mod support;

#[path = "recovery/attributes.rs"]
mod attributes;
#[path = "recovery/closed.rs"]
mod closed;
#[path = "recovery/damaged.rs"]
mod damaged;
#[path = "recovery/interrupted.rs"]
mod interrupted;
#[path = "recovery/names.rs"]
mod names;
#[path = "recovery/overtaken.rs"]
mod overtaken;
#[path = "recovery/stuck.rs"]
mod stuck;
#[path = "recovery/tools.rs"]
mod tools;
#[path = "recovery/unlinked.rs"]
mod unlinked;

use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use support::fault::RuleSpec;
use support::mounted::{cp, run};
use support::{Action, HoldAt, Mounted, When, World};

/// Longest wait for anything that must happen.
const WAIT: Duration = Duration::from_secs(60);
const PART: u64 = 5 << 20;
/// Size of most files: four parts, the last one short.
const SIZE: u64 = 3 * PART + 1000;
const KEY: &str = "huge.iso";

/// A world with a source file, a write-back mount, and `cp` done up to the moment that `stop` holds.
struct Stopped {
    world: World,
    mount: Mounted,
    source: PathBuf,
}

impl Stopped {
    /// Copies a file of `size` bytes to [`KEY`]; when the request is held, bosfs is killed. What is held never goes on.
    fn at(world: World, size: u64, when: When, hold: HoldAt) -> Self {
        let source = world.random_file("source", 1, size);
        let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
        let rule = world.proxy.hold(when, hold);
        let output = cp(&source, mount.path(KEY), WAIT);
        assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
        assert!(rule.wait_hit(WAIT), "never came\n{}\n{}", world.proxy.counts().log_text(), mount.log_text());
        mount.kill();
        world.proxy.clear_rules();
        world.wait_quiet();
        Self { world, mount, source }
    }

    /// Mounts again and waits for the whole object.
    fn recover(&mut self) {
        self.mount.remount().unwrap();
        self.world.wait_object(KEY, std::fs::metadata(&self.source).unwrap().len(), WAIT);
        self.mount.wait_settled(KEY, WAIT);
        self.world.assert_object_is_file(KEY, &self.source);
        wait_no_journal(&self.world);
    }
}

/// Waits until every record is dropped.
fn wait_no_journal(world: &World) {
    let end = std::time::Instant::now() + WAIT;
    while !world.journals().is_empty() {
        assert!(std::time::Instant::now() < end, "{:?} stay\n{}", world.journals(), world.log_text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `status` gives `key` this state, and returns the entry.
fn wait_for_state(mount: &Mounted, key: &str, state: &str) -> serde_json::Value {
    mount.wait_state(key, WAIT, |entry| entry.is_some_and(|e| e["state"] == state));
    mount.file_status(key).expect("just seen")
}

/// A `bosfs` command with this mount's settings, to its end.
fn bosfs(mount: &Mounted, args: &[&str]) -> Output {
    run(&mut mount.command(args), WAIT)
}

/// The same; it must succeed.
fn bosfs_ok(mount: &Mounted, args: &[&str]) -> String {
    let output = bosfs(mount, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Does `action` to what `when` takes, held at `hold` before.
fn held_fault(world: &World, when: When, hold: HoldAt, action: Action) -> support::fault::Rule {
    world.proxy.add(RuleSpec { when, hold: Some(hold), action })
}
