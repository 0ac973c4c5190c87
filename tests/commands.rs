//! The commands against a real mount and the embedded server: umount, status, uploads, verify.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::mounted::{bosfs_binary, is_mounted, run};
use support::{Call, HoldAt, Mounted, When, World};

/// Longest wait for anything that must happen.
const WAIT: Duration = Duration::from_secs(60);
const SMALL_PARTS: [&str; 2] = ["--part-size", "5MiB"];
const MIB: u64 = 1 << 20;

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn ends(output: &Output, code: i32, parts: &[&str]) {
    let text = text(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// Writes `bytes` to `path` in a process that is killed before it closes the file.
fn write_and_die(path: &Path, bytes: u64) {
    let script = format!(
        "import os,signal\nf=open({path:?},'wb')\nf.write(b'x'*{bytes})\nf.flush()\nos.kill(os.getpid(),signal.SIGKILL)"
    );
    let output = run(Command::new("python3").args(["-c", &script]), WAIT);
    assert!(!output.status.success());
}

fn wait_interrupted(mount: &Mounted, key: &str) {
    mount.wait_state(key, WAIT, |entry| entry.is_some_and(|e| e["state"] == "interrupted"));
}

/// A command on the bucket past any mount.
fn offline(world: &World, args: &[&str]) -> Output {
    let spec = world.spec(&[]);
    let mut command = Command::new(bosfs_binary());
    command.args(args).args(["--endpoint", &spec.endpoint]).arg("--credentials").arg(&spec.credentials);
    command.arg("--state-dir").arg(&spec.state_dir).stdin(Stdio::null());
    run(&mut command, WAIT)
}

fn object(world: &World, key: &str) -> String {
    format!("{}/{key}", world.spec(&[]).target)
}

/// `bosfs umount` waits for what `--write-back` left, exits 0 when all is in BOS, and the process is gone then.
#[test]
fn umount_waits_for_what_write_back_left_and_the_process_is_gone_then() {
    let world = World::new();
    let file = world.random_file("source", 1, 30 * MIB);
    let mut mount = world.mount(&["--write-back", "--upload-rate", "20MiB", SMALL_PARTS[0], SMALL_PARTS[1]]);
    std::fs::copy(&file, mount.path("big")).unwrap();
    assert!(world.server.bucket().head("big").unwrap().is_none(), "complete before the umount: nothing to wait for");
    ends(&mount.umount(WAIT), 0, &[]);
    assert!(mount.has_ended() && !is_mounted(mount.dir()));
    world.assert_object_is_file("big", &file);
    assert!(world.journals().is_empty());
}

/// `bosfs umount` of a mount in use exits 1, names who uses it, and leaves it.
#[test]
fn umount_of_a_busy_mount_names_who_uses_it_and_leaves_it() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    let path = mount.path("open");
    let script = format!("f = open({path:?}, 'wb')\nprint('open', flush=True)\ninput()");
    let mut user =
        Command::new("python3").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(user.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    ends(&mount.umount(WAIT), 1, &["stays mounted", &format!("({})", user.id()), "--lazy"]);
    assert!(is_mounted(mount.dir()));
    drop(user.stdin.take());
    user.wait().unwrap();
    ends(&mount.umount(WAIT), 0, &[]);
}

/// `bosfs umount --timeout` exits 4 when the time has passed; the mount stays and the upload goes on.
#[test]
fn umount_gives_up_after_its_timeout_and_the_upload_goes_on() {
    let world = World::new();
    let file = world.random_file("source", 2, 20 * MIB);
    let mut mount = world.mount(&["--write-back", "--upload-rate", "4MiB", SMALL_PARTS[0], SMALL_PARTS[1]]);
    std::fs::copy(&file, mount.path("slow")).unwrap();
    let output = run(Command::new(bosfs_binary()).arg("umount").arg(mount.dir()).args(["--timeout", "300ms"]), WAIT);
    ends(&output, 4, &["--timeout has passed", "still mounted", "bosfs status"]);
    assert!(is_mounted(mount.dir()) && !mount.has_ended());
    ends(&mount.umount(WAIT), 0, &[]);
    world.assert_object_is_file("slow", &file);
}

#[test]
fn ctrl_c_of_umount_says_what_goes_on() {
    let world = World::new();
    let file = world.random_file("source", 3, 20 * MIB);
    let mount = world.mount(&["--write-back", "--upload-rate", "4MiB", SMALL_PARTS[0], SMALL_PARTS[1]]);
    std::fs::copy(&file, mount.path("slow")).unwrap();
    let child = Command::new(bosfs_binary())
        .arg("umount")
        .arg(mount.dir())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    ends(&child.wait_with_output().unwrap(), 4, &["interrupted", "stays mounted", "bosfs status"]);
    assert!(is_mounted(mount.dir()));
}

/// `bosfs umount` names interrupted files and the command that publishes them, and exits 0.
#[test]
fn umount_names_interrupted_files_and_is_no_failure() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    write_and_die(&mount.path("half"), 12 * MIB);
    wait_interrupted(&mount, "half");
    let published = format!("bosfs uploads complete {}", object(&world, "half"));
    ends(&mount.umount(WAIT), 0, &["half", "not published", &published]);
    assert!(world.server.bucket().head("half").unwrap().is_none());
    let output = run(Command::new(bosfs_binary()).arg("status").arg(world.state_dir()), WAIT);
    ends(&output, 0, &["not mounted", "interrupted", &published]);
}

/// Whether the process `pid` is seen in open(2) for a while.
fn is_opening(pid: u32) -> bool {
    let in_open = || {
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        call.split(' ').next() == Some(libc::SYS_openat.to_string().as_str())
    };
    (0..5).all(|_| {
        std::thread::sleep(Duration::from_millis(50));
        in_open()
    })
}

/// `bosfs umount` behind a program that was killed while its `open` waited names the interrupted file, and exits 0.
#[test]
fn umount_waits_for_an_open_whose_program_was_killed() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    let path = mount.path("f");
    std::fs::write(&path, b"first").unwrap();
    // The creation waits until the object of the unlinked file is gone, and then asks what is there.
    let removal = world.proxy.hold(When::call(Call::DeleteObject).key("f"), HoldAt::BeforeForward);
    let script = format!("import os\nf = open({path:?}, 'wb')\nos.unlink({path:?})\nf.close()\nopen({path:?}, 'wb')");
    let mut program = Command::new("python3").args(["-c", &script]).spawn().unwrap();
    assert!(removal.wait_hit(WAIT), "{}", mount.log_text());
    let end = Instant::now() + WAIT;
    while !is_opening(program.id()) {
        assert!(Instant::now() < end, "the program does not wait in open\n{}", mount.log_text());
    }
    let asked = world.proxy.hold(When::call(Call::HeadObject).key("f"), HoldAt::BeforeForward);
    removal.release();
    assert!(asked.wait_hit(WAIT), "{}", mount.log_text());
    program.kill().unwrap();
    program.wait().unwrap();
    let dir = mount.dir().to_owned();
    let umount = std::thread::spawn(move || (mount.umount(WAIT), mount));
    let end = Instant::now() + WAIT;
    while is_mounted(&dir) {
        assert!(Instant::now() < end, "it stays mounted\n{}", world.log_text());
        std::thread::sleep(Duration::from_millis(10));
    }
    // Time to end without it.
    std::thread::sleep(Duration::from_millis(500));
    asked.release();
    let (output, mount) = umount.join().unwrap();
    ends(&output, 0, &["f was interrupted"]);
    assert!(mount.log_text().contains("was killed by signal 9"), "{}", mount.log_text());
    assert_eq!(world.journals().len(), 1);
}

/// `bosfs uploads complete` works through the mount and without one, and `bosfs uploads resume` of an interrupted file
/// exits 1 and says why.
#[test]
fn an_interrupted_file_is_completed_through_the_mount_or_without_one() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    for key in ["one", "two"] {
        write_and_die(&mount.path(key), 12 * MIB);
        wait_interrupted(&mount, key);
    }
    let resumed = offline(&world, &["uploads", "resume", &object(&world, "one")]);
    ends(&resumed, 1, &["its writer was killed", "uploads complete"]);
    ends(&offline(&world, &["uploads", "complete", &object(&world, "one")]), 0, &["one is complete and proved"]);
    ends(&mount.umount(WAIT), 0, &[]);
    ends(&offline(&world, &["uploads", "complete", &object(&world, "two")]), 0, &["two is complete and proved"]);
    for key in ["one", "two"] {
        let (md5, size) = world.server.bucket().get_md5(key).unwrap();
        let expected = bosfs::object::Md5::of(&vec![b'x'; (12 * MIB) as usize]);
        assert_eq!((md5, size), (expected, 12 * MIB), "{key}");
    }
    assert!(world.journals().is_empty());
}

#[test]
fn an_aborted_overwrite_leaves_the_earlier_object() {
    let world = World::new();
    world.server.bucket().put("old", b"precious").unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    write_and_die(&mount.path("old"), 12 * MIB);
    wait_interrupted(&mount, "old");
    let name = object(&world, "old");
    ends(&offline(&world, &["uploads", "abort", &name]), 4, &["nothing was dropped"]);
    let through_mount = offline(&world, &["uploads", "abort", &name, "--yes"]);
    assert_eq!(world.server.bucket().get("old").unwrap(), b"precious", "{}", text(&through_mount));
    ends(&mount.umount(WAIT), 0, &[]);
    if !through_mount.status.success() {
        ends(&offline(&world, &["uploads", "abort", &name, "--yes"]), 0, &["is gone"]);
    }
    assert_eq!(world.server.bucket().get("old").unwrap(), b"precious");
    assert!(world.server.bucket().uploads("").unwrap().is_empty());
    assert!(world.journals().is_empty());
}

/// `bosfs uploads resume BUCKET/KEY` publishes a closed file from the journal without any mount.
#[test]
fn a_closed_file_is_resumed_without_a_mount() {
    let world = World::new();
    let file = world.random_file("source", 4, 22 * MIB);
    let mut mount = world.mount(&["--write-back", "--upload-rate", "4MiB", SMALL_PARTS[0], SMALL_PARTS[1]]);
    std::fs::copy(&file, mount.path("closed")).unwrap();
    mount.kill();
    ends(&offline(&world, &["uploads", "list", &world.spec(&[]).target]), 0, &["closed", "ours"]);
    ends(&offline(&world, &["uploads", "resume", &object(&world, "closed")]), 0, &["closed is complete and proved"]);
    world.assert_object_is_file("closed", &file);
    assert!(world.journals().is_empty());
}

/// `bosfs verify --against FILE` exits 0 if the object is the file, and 1 if it differs, if there is none, or if there
/// is nothing to compare.
#[test]
fn an_upload_without_a_journal_is_resumed_from_its_file_and_verified() {
    let world = World::new();
    let file = world.random_file("source", 5, 17 * MIB);
    let bytes = std::fs::read(&file).unwrap();
    let bucket = world.server.bucket();
    let id = bucket.initiate("lost").unwrap();
    for part in [1u32, 3] {
        let start = (part as usize - 1) * 5 * MIB as usize;
        bucket.upload_part("lost", &id, part, &bytes[start..start + 5 * MIB as usize]).unwrap();
    }
    let name = object(&world, "lost");
    ends(&offline(&world, &["uploads", "list", &world.spec(&[]).target]), 0, &["lost", &id, "foreign", "10.0 MiB"]);
    let from = file.to_str().unwrap();
    ends(&offline(&world, &["uploads", "resume", &name, "--from", from]), 0, &["2 parts kept", "2 sent", "proved"]);
    world.assert_object_is_file("lost", &file);

    ends(&offline(&world, &["verify", &name, "--against", from]), 0, &["proved", "CRC"]);
    std::fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"!").unwrap();
    ends(&offline(&world, &["verify", &name, "--against", from]), 1, &["DIFFERS", "not proved"]);
    ends(&offline(&world, &["verify", &name]), 1, &["nothing to compare"]);
    ends(&offline(&world, &["verify", &object(&world, "none"), "--against", from]), 1, &["there is no object"]);
}

#[test]
fn status_json_tells_parts_of_unfinished_and_finished_files() {
    let world = World::new();
    let file = world.random_file("source", 6, 11 * MIB);
    let mount = world.mount(&SMALL_PARTS);
    std::fs::copy(&file, mount.path("done")).unwrap();
    write_and_die(&mount.path("half"), 12 * MIB);
    wait_interrupted(&mount, "half");
    let status = mount.status();
    let this = &status["mounts"][0];
    assert_eq!(this["phase"], "mounted", "{status}");
    assert_eq!(this["mount_point"].as_str(), mount.dir().to_str());
    let done = this["recent"].as_array().unwrap().iter().find(|f| f["key"] == "done").unwrap();
    assert_eq!((&done["state"], &done["parts_sent"], &done["parts_kept"]), (&"done".into(), &3.into(), &0.into()));
    let half = this["files"].as_array().unwrap().iter().find(|f| f["key"] == "half").unwrap();
    assert_eq!((&half["size"], &half["parts_total"]), (&(12 * MIB).into(), &3.into()), "{half}");
    assert_eq!(this["totals"]["interrupted"], 1);
    let inside = std::fs::read(mount.path(".bosfs/status.json")).unwrap();
    let inside: serde_json::Value = serde_json::from_slice(&inside).unwrap();
    assert_eq!(inside["pid"], this["pid"]);
}

#[test]
fn the_daemons_arguments_and_environment_carry_no_secret() {
    let world = World::new();
    let mut spec = world.spec(&[]);
    std::fs::create_dir_all(&spec.dir).unwrap();
    let keys = world.server.keys();
    let mut command = Command::new(bosfs_binary());
    command.arg("mount").arg(&spec.target).arg(&spec.dir).arg("--state-dir").arg(&spec.state_dir);
    command.arg("-o").arg(format!("endpoint={},ak={},sk={}", spec.endpoint, keys.access_key, keys.secret_key));
    command.env("BCE_SECRET_ACCESS_KEY", &keys.secret_key).env("BCE_ACCESS_KEY_ID", &keys.access_key);
    ends(&run(&mut command, WAIT), 0, &[]);
    spec.args.clear();
    let output = run(Command::new(bosfs_binary()).arg("status").arg(&spec.dir).arg("--json"), WAIT);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pid = status["mounts"][0]["pid"].as_u64().unwrap();
    for name in ["cmdline", "environ"] {
        let shown = std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
        let shown = String::from_utf8_lossy(&shown).into_owned();
        assert!(!shown.contains(&keys.secret_key), "{name}: {shown}");
    }
    let log = std::fs::read_to_string(spec.state_dir.join("bosfs.log")).unwrap();
    assert!(log.contains("is mounted at") && !log.contains(&keys.secret_key), "{log}");
    ends(&run(Command::new(bosfs_binary()).arg("umount").arg(&spec.dir), WAIT), 0, &[]);
}
