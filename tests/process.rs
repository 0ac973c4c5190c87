//! What can happen to the process itself: signals, the OOM killer, too few descriptors, panics, a jumping clock, another
//! boot, credentials that end, a call that is slow between two of its steps. Each on a real mount, with the fault counted where it happens.

mod support;

#[path = "process/between.rs"]
mod between;
#[path = "process/boot.rs"]
mod boot;
#[path = "process/clock.rs"]
mod clock;
#[path = "process/credentials.rs"]
mod credentials;
#[path = "process/descriptors.rs"]
mod descriptors;
#[path = "process/memory.rs"]
mod memory;
#[path = "process/panics.rs"]
mod panics;
#[path = "process/signals.rs"]
mod signals;
#[path = "process/stopped.rs"]
mod stopped;
#[path = "process/unmounts.rs"]
mod unmounts;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::mounted::{SlowWriter, bosfs_binary};
use support::{Call, Mounted, World};

/// Longest wait for anything that must happen.
const WAIT: Duration = Duration::from_secs(90);
const PART: u64 = 5 << 20;
/// Size of most files: four parts, the last one short.
const SIZE: u64 = 3 * PART + 1000;
const KEY: &str = "huge.iso";
const ARGS: [&str; 2] = ["--part-size", "5MiB"];

/// Waits until `done`; `what` says what did not happen.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + WAIT;
    while !done() {
        assert!(Instant::now() < end, "not within {WAIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `status` gives `key` this state, and returns the entry.
fn wait_for_state(mount: &Mounted, key: &str, state: &str) -> serde_json::Value {
    mount.wait_state(key, WAIT, |entry| entry.is_some_and(|e| e["state"] == state));
    mount.file_status(key).expect("just seen")
}

/// Waits until every record is dropped.
fn wait_no_journal(world: &World) {
    wait_until("no journal is left", || world.journals().is_empty());
}

/// A `cp` in the middle of [`KEY`]: `parts` and a little more are written, and the server has taken `parts` of them.
fn writing(world: &World, mount: &Mounted, source: &Path, parts: u64) -> SlowWriter {
    let mut writer = SlowWriter::start(&mount.path(KEY));
    writer.feed(source, parts * PART + 5000).unwrap();
    wait_until("the first parts are in the server", || world.proxy.counts().of(Call::UploadPart).accepted >= parts);
    mount.wait_state(KEY, WAIT, |entry| entry.is_some_and(|e| e["parts_in_bos"].as_u64() >= Some(parts)));
    writer
}

/// A piece of an object's metadata, without `x-bce-meta-`.
fn meta(world: &World, key: &str, name: &str) -> Option<String> {
    let reply = world.bucket.call("HEAD", key, &[], &[], b"", &mut |_| {}).unwrap();
    reply.header(&format!("x-bce-meta-{name}")).map(str::to_owned)
}

/// Part numbers of [`KEY`] that the server has taken so far.
fn parts_taken(world: &World) -> Vec<u32> {
    let counts = world.proxy.counts();
    (1..=8).filter(|part| counts.part(KEY, *part).accepted > 0).collect()
}

/// No part of [`KEY`] was taken twice.
fn assert_nothing_twice(world: &World) {
    let counts = world.proxy.counts();
    assert_eq!(counts.parts_accepted_twice(KEY), [] as [u32; 0], "{}", counts.log_text());
}

/// A program that does the shell lines `before`, then becomes `binary` with the arguments given.
fn wrapper(world: &World, name: &str, before: &str, binary: &Path) -> PathBuf {
    let path = world.path(name);
    let text = format!("#!/bin/sh\nset -e\n{before}\nexec '{}' \"$@\"\n", binary.display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The same around bosfs itself.
fn bosfs_after(world: &World, name: &str, before: &str) -> PathBuf {
    wrapper(world, name, before, &bosfs_binary())
}
