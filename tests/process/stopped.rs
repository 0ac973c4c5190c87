//! Time in which bosfs is stopped, and a server that is: nothing times out because of the first, and the second is waited
//! out.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::mounted::{start_cp, wait_child};
use crate::support::{Call, HoldAt, Line, When, World};
use crate::{KEY, PART, SIZE, WAIT, assert_nothing_twice};

/// Longer than what a call at a prompt may take (30 s), than its deadline for BOS (25 s), than one answer to it (10 s), and
/// than the `--timeout` of this test. The timeouts of data (60 s and 120 s) are counted in the same way as that of an answer.
const STOPPED: Duration = Duration::from_secs(32);
/// Longer than the wait for one answer to a call at a prompt.
const SILENT: Duration = Duration::from_secs(13);

/// Time in which bosfs is stopped (SIGSTOP) counts for no time limit: the calls under way end well, and nothing is sent
/// or asked twice.
#[test]
fn time_while_bosfs_is_stopped_does_not_count() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    world.bucket.put("asked", b"content").unwrap();
    let mut mount = world.mount(&["--part-size", "5MiB", "--timeout", "30s"]);
    // Held where the server does not see it: that one would give up a body that stands still for so long.
    let part = world.proxy.hold(When::call(Call::UploadPart).part(2), HoldAt::BeforeForward);
    let asked = When { key: Some("asked".into()), ..When::any() };
    let head = world.proxy.hold(asked, HoldAt::BeforeAnswer);
    let mut child = start_cp(&source, mount.path(KEY));
    // Its close waits, under --timeout.
    mount.wait_state(KEY, WAIT, |entry| entry.is_some_and(|e| e["state"] == "uploading"));
    assert!(part.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    let path = mount.path("asked");
    let stat = std::thread::spawn(move || std::fs::metadata(path));
    assert!(head.wait_hit(WAIT), "{}", world.proxy.counts().log_text());
    mount.stop();
    std::thread::sleep(STOPPED);
    part.release();
    head.release();
    mount.signal(Signal::CONT);
    let size = stat.join().unwrap().map(|meta| meta.len());
    assert_eq!(size.unwrap_or_else(|e| panic!("stat: {e}\n{}", mount.log_text())), 7);
    let status = wait_child(&mut child, WAIT).expect("cp ends");
    assert!(status.success(), "{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
    let counts = world.proxy.counts();
    for part in 1..=4 {
        assert_eq!(counts.part(KEY, part).tries, 1, "part {part}\n{}", counts.log_text());
    }
    assert_eq!(head.hits(), 1, "asked again\n{}", counts.log_text());
    assert!(!mount.has_ended());
}

#[test]
fn a_server_that_is_silent_for_a_while_is_waited_out() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    world.bucket.put("asked", b"content").unwrap();
    let mount = world.mount(&["--part-size", "5MiB"]);
    let second = world.proxy.fault(When::call(Call::UploadPart).skip(1).once(), crate::support::Action::Pass);
    world.proxy.set_bandwidth(Some(PART));
    let mut child = start_cp(&source, mount.path(KEY));
    assert!(second.wait_hit(WAIT), "{}", mount.log_text());
    world.proxy.set_line(Line::Silent);
    world.proxy.set_bandwidth(None);
    let path = mount.path("asked");
    let stat = std::thread::spawn(move || std::fs::metadata(path));
    std::thread::sleep(SILENT);
    world.proxy.set_line(Line::Alive);
    let size = stat.join().unwrap().map(|meta| meta.len());
    assert_eq!(size.unwrap_or_else(|e| panic!("stat: {e}\n{}", mount.log_text())), 7);
    let status = wait_child(&mut child, WAIT).expect("cp ends");
    assert!(status.success(), "{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
    assert_nothing_twice(&world);
    let counts = world.proxy.counts();
    for part in 1..=4 {
        assert_eq!(counts.part(KEY, part).tries, 1, "part {part}\n{}", counts.log_text());
    }
}
