//! Signals that end bosfs, in each stage of a copy, and one that must not.

use rustix::process::Signal;

use crate::support::mounted::{cp, is_mounted, start_cp, wait_child};
use crate::support::{Call, HoldAt, Mounted, When, World};
use crate::{ARGS, KEY, SIZE, WAIT, assert_nothing_twice, parts_taken, wait_for_state, wait_no_journal, writing};

/// Sends the signal: the process ends by itself with code 0 and takes the mount away.
fn ends_orderly(mount: &mut Mounted, signal: Signal) {
    let dir = mount.dir().to_owned();
    mount.signal(signal);
    crate::wait_until("the mount is taken away", || !is_mounted(&dir));
    let status = mount.end_by(Signal::CONT, WAIT).unwrap_or_else(|| panic!("{signal:?} does not end bosfs"));
    assert_eq!(status.code(), Some(0), "{signal:?}: {status}\n{}", mount.log_text());
    let log = mount.log_text();
    assert!(!log.contains("did not stop within"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// SIGTERM while a file is being written ends bosfs with exit code 0 and keeps what was written; the same `cp` after
/// the next mount sends no part that BOS has taken.
#[test]
fn sigterm_while_the_file_is_being_written_keeps_what_was_written() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&ARGS);
    let writer = writing(&world, &mount, &source, 2);
    ends_orderly(&mut mount, Signal::TERM);
    drop(writer);
    let taken = parts_taken(&world);
    world.proxy.take_counts();
    mount.remount().unwrap();
    wait_for_state(&mount, KEY, "interrupted");
    let shown = std::fs::read(mount.path(KEY)).unwrap();
    assert!(shown.len() as u64 >= 2 * crate::PART, "{} bytes", shown.len());
    assert!(shown == std::fs::read(&source).unwrap()[..shown.len()], "other bytes than were written");
    assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
    let counts = world.proxy.counts();
    for part in taken {
        assert_eq!(counts.part(KEY, part).tries, 0, "part {part} again\n{}", counts.log_text());
    }
}

/// SIGTERM while a closing `cp` waits makes `cp` fail; the next mount publishes the file by itself, and no part is sent
/// twice.
#[test]
fn sigterm_while_parts_are_on_their_way_leaves_the_rest_to_the_next_mount() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&ARGS);
    let held = world.proxy.hold(When::call(Call::UploadPart).skip(1), HoldAt::InsideBody { after_bytes: 1000 });
    let mut child = start_cp(&source, mount.path(KEY));
    assert!(held.wait_hits(2, WAIT), "{}", mount.log_text());
    mount.wait_state(KEY, WAIT, |entry| entry.is_some_and(|e| e["state"] == "uploading"));
    ends_orderly(&mut mount, Signal::TERM);
    let status = wait_child(&mut child, WAIT).expect("cp ends with the mount");
    assert!(!status.success(), "cp must not say that all is well");
    assert_eq!(world.journals().len(), 1);
    assert!(world.bucket.head(KEY).unwrap().is_none());
    world.proxy.clear_rules();
    world.wait_quiet();
    mount.remount().unwrap();
    mount.wait_settled(KEY, WAIT);
    world.assert_object_is_file(KEY, &source);
    assert_nothing_twice(&world);
    wait_no_journal(&world);
}

#[test]
fn sigterm_while_complete_is_unanswered_is_settled_by_the_next_mount() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&ARGS);
    let held = world.proxy.hold(When::call(Call::Complete), HoldAt::BeforeAnswer);
    let mut child = start_cp(&source, mount.path(KEY));
    assert!(held.wait_hit(WAIT), "{}", mount.log_text());
    ends_orderly(&mut mount, Signal::TERM);
    assert!(!wait_child(&mut child, WAIT).expect("cp ends with the mount").success());
    world.proxy.clear_rules();
    world.wait_quiet();
    world.proxy.take_counts();
    mount.remount().unwrap();
    mount.wait_settled(KEY, WAIT);
    world.assert_object_is_file(KEY, &source);
    let counts = world.proxy.counts();
    assert_eq!((counts.bytes_sent(), counts.requests(Call::Complete)), (0, 0), "{}", counts.log_text());
    wait_no_journal(&world);
}

#[test]
fn sigterm_while_nothing_answers_at_the_start_ends_the_command() {
    let world = World::new();
    world.proxy.set_line(crate::support::Line::Silent);
    let mut spec = world.spec(&ARGS);
    spec.args.push("--foreground".into());
    std::fs::create_dir_all(&spec.dir).unwrap();
    let mut child = spec.command().spawn().unwrap();
    // The first request is on its way: the signals are caught from here on.
    crate::wait_until("a connection is made", || world.proxy.counts().connections > 0);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let ended = wait_child(&mut child, WAIT);
    let requests = world.proxy.counts().connections;
    let _ = child.kill();
    let status = ended.expect("SIGTERM does not end a mount that is being made");
    assert_eq!(status.code(), Some(4), "interrupted");
    assert_eq!(requests, 1, "it tried again after it was told to end");
}

/// SIGHUP, SIGINT and SIGQUIT end bosfs as SIGTERM does: exit code 0, the mount is taken away, and the journal keeps
/// what was written.
#[test]
fn hangup_interrupt_and_quit_end_bosfs_as_sigterm_does() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT] {
        let mut mount = world.mount(&ARGS);
        let mut writer = crate::support::mounted::SlowWriter::start(&mount.path(KEY));
        writer.feed(&source, 100_000).unwrap();
        mount.wait_state(KEY, WAIT, |entry| entry.is_some());
        ends_orderly(&mut mount, signal);
        drop(writer);
        assert_eq!(world.journals().len(), 1, "{signal:?}");
    }
    let mount = world.mount(&ARGS);
    assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
}

/// SIGPIPE does not end bosfs.
#[test]
fn a_broken_pipe_does_not_end_bosfs() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&ARGS);
    let writer = writing(&world, &mount, &source, 1);
    mount.signal(Signal::PIPE);
    drop(writer);
    assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    assert!(!mount.has_ended());
    world.assert_object_is_file(KEY, &source);
}

/// bosfs asks nothing of its own mount: killed in the middle of that, it would wait for its own answer for ever.
#[test]
fn bosfs_asks_nothing_of_its_own_mount() {
    let world = World::new();
    // At this level the library logs every request of the kernel.
    let mount = world.spec(&["--log-level", "trace"]).start().unwrap();
    let read_ahead = || {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = table.lines().find(|line| line.split(' ').nth(4) == mount.dir().to_str())?;
        let path = format!("/sys/class/bdi/{}/read_ahead_kb", ours.split(' ').nth(2)?);
        Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
    };
    crate::wait_until("it is mounted, and read-ahead is set", || read_ahead().as_deref() == Some("1024"));
    crate::wait_until("it says that it is mounted", || mount.log_text().contains("end it with Ctrl-C"));
    let asked = || {
        let log = mount.log_text();
        let requests = log.lines().filter(|line| line.contains("fuser::request] FUSE("));
        requests.filter(|line| !line.contains(" INIT ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(asked().is_empty(), "{:?}", asked());
    // It would be seen.
    std::fs::metadata(mount.dir()).unwrap();
    crate::wait_until("the stat of this test is logged", || asked().iter().any(|line| line.contains("GETATTR")));
}
