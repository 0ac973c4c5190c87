//! Other writers of the same keys, a long time without a network, and errors that stay until somebody has seen them: the
//! real binary on real mounts. What is in the bucket is looked at, and changed, past the mount.

mod support;

#[path = "world/actor.rs"]
mod actor;
#[path = "world/decisions.rs"]
mod decisions;
#[path = "world/foreign.rs"]
mod foreign;
#[path = "world/lifecycle.rs"]
mod lifecycle;
#[path = "world/meddling.rs"]
mod meddling;
#[path = "world/offline.rs"]
mod offline;
#[path = "world/patience.rs"]
mod patience;
#[path = "world/processes.rs"]
mod processes;
#[path = "world/races.rs"]
mod races;
#[path = "world/sticky.rs"]
mod sticky;
#[path = "world/two_mounts.rs"]
mod two_mounts;
#[path = "world/unknown.rs"]
mod unknown;

use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use support::mounted::run;
use support::{Mounted, World};

/// Longest wait for anything that must happen.
const WAIT: Duration = Duration::from_secs(90);
/// The smallest part, so that few bytes make many parts.
const PART: u64 = 5 << 20;

/// A `bosfs` command with this mount's settings, to its end.
fn bosfs(mount: &Mounted, args: &[&str]) -> Output {
    run(&mut mount.command(args), WAIT)
}

/// The same; it must succeed.
fn bosfs_ok(mount: &Mounted, args: &[&str]) -> String {
    let output = bosfs(mount, args);
    assert!(output.status.success(), "{args:?}: {output:?}\n{}", mount.log_text());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The same; it must fail. What it complained.
fn bosfs_fails(mount: &Mounted, args: &[&str]) -> String {
    let output = bosfs(mount, args);
    assert!(!output.status.success(), "{args:?} succeeds: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `bosfs status DIR` prints for people.
fn status_text(mount: &Mounted) -> String {
    let mut command = std::process::Command::new(support::mounted::bosfs_binary());
    let output = run(command.arg("status").arg(mount.dir()), WAIT);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `status` gives `key` this state, and returns the entry.
fn wait_for_state(mount: &Mounted, key: &str, state: &str) -> Value {
    mount.wait_state(key, WAIT, |entry| entry.is_some_and(|e| e["state"] == state));
    mount.file_status(key).expect("just seen")
}

/// Waits until every record is dropped.
fn wait_no_journal(world: &World) {
    wait_until("every journal is dropped", || world.journals().is_empty());
}

/// Waits for something that must come.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + WAIT;
    while !is_so() {
        assert!(std::time::Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The error of a file as `status` tells it; it must say which key, what became of the bytes, and what to do.
fn told_error(entry: &Value) -> String {
    let (key, error) = (entry["key"].as_str().unwrap_or_default(), entry["last_error"].as_str().unwrap_or_default());
    assert_tells_all(error, key);
    error.to_owned()
}

/// A message about trouble with `key` names it, says what became of the bytes and what to do next.
fn assert_tells_all(message: &str, key: &str) {
    assert!(message.contains(key), "which key? {message:?}");
    let bytes = ["kept", "keeps", "nothing was", "nothing of", "lost", "left"];
    assert!(bytes.iter().any(|word| message.contains(word)), "what became of the bytes? {message:?}");
    let next = [
        "bosfs uploads",
        "mount again",
        "next mount",
        "try again",
        "bosfs mount",
        "write",
        "copy",
        "remove them again",
        "remove it again",
    ];
    assert!(next.iter().any(|word| message.contains(word)), "what to do? {message:?}");
}
