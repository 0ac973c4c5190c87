//! The real binary on a real FUSE mount before the embedded server: what programs see, what goes over the wire, and what
//! happens at bad moments. What is in the bucket is looked at past the mount.

mod support;

#[path = "mount/attributes.rs"]
mod attributes;
#[path = "mount/bad_input.rs"]
mod bad_input;
#[path = "mount/bad_line.rs"]
mod bad_line;
#[path = "mount/content.rs"]
mod content;
#[path = "mount/deletions.rs"]
mod deletions;
#[path = "mount/dir_attrs.rs"]
mod dir_attrs;
#[path = "mount/dir_renames.rs"]
mod dir_renames;
#[path = "mount/file_renames.rs"]
mod file_renames;
#[path = "mount/foreign_objects.rs"]
mod foreign_objects;
#[path = "mount/huge.rs"]
mod huge;
#[path = "mount/listing.rs"]
mod listing;
#[path = "mount/many_names.rs"]
mod many_names;
#[path = "mount/names.rs"]
mod names;
#[path = "mount/odd_answers.rs"]
mod odd_answers;
#[path = "mount/own_uploads.rs"]
mod own_uploads;
#[path = "mount/ranges.rs"]
mod ranges;
#[path = "mount/removals.rs"]
mod removals;
#[path = "mount/requests.rs"]
mod requests;
#[path = "mount/temporaries.rs"]
mod temporaries;
#[path = "mount/writers.rs"]
mod writers;

use std::time::Duration;

/// Longest wait for anything that must happen.
const WAIT: Duration = Duration::from_secs(60);
/// The smallest part, so that few bytes make many parts.
const PART: u64 = 5 << 20;
/// Options of most mounts.
const SMALL_PARTS: [&str; 2] = ["--part-size", "5MiB"];

/// Runs `job` and fails instead of hanging with a mount that does not answer.
fn timed<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    support::mounted::within(WAIT, "a call on the mount", job)
}

/// A shell line that must succeed; what it printed.
fn shell(line: &str) -> String {
    let output = support::mounted::sh(line, WAIT);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A shell line that must fail; what it complained.
fn shell_fails(line: &str) -> String {
    let output = support::mounted::sh(line, WAIT);
    assert!(!output.status.success(), "{line} succeeds: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Unmounts; everything that was closed is in BOS then.
fn unmount(mount: &mut support::mounted::Mounted) {
    let output = mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
}

/// Mounts with another, empty state directory: whatever is seen then is in BOS.
fn mount_afresh(world: &support::world::World) -> support::mounted::Mounted {
    let mut spec = world.spec(&SMALL_PARTS);
    spec.state_dir = world.path("empty-state");
    spec.mount().unwrap_or_else(|e| panic!("{e}"))
}
