//! How writers end, and what of them is published.

use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::files::random_bytes;
use crate::support::mounted::{SlowWriter, cp, run, start_cp, wait_child};
use crate::support::{Call, HoldAt, KeyWatch, MappedFile, When, World};
use crate::{PART, SMALL_PARTS, WAIT, shell};

/// A program with threads that writes 6 MiB and ends without closing: by itself, or waits to be killed.
const THREADED: &str = r#"
import os, sys, threading, time
path, mode = sys.argv[1], sys.argv[2]
fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
def work(start):
    for i in range(start, 6 << 20, 2 << 16):
        os.pwrite(fd, bytes([i >> 16 & 255]) * (1 << 16), i)
threads = [threading.Thread(target=work, args=(s,)) for s in (0, 1 << 16)]
for t in threads: t.start()
if mode == "wait":
    for t in threads: t.join()
    print("written", flush=True)
    time.sleep(100)
for t in threads: t.join()
"#;

fn expected_of_threaded() -> Vec<u8> {
    (0..96u32).flat_map(|i| vec![i as u8; 1 << 16]).collect()
}

/// A program with threads that exits without closing its file is no killed one: the file is published.
#[test]
fn a_threaded_program_that_exits_without_closing_is_published() {
    let world = World::new();
    let mount = world.mount(&SMALL_PARTS);
    let output = run(Command::new("python3").args(["-c", THREADED]).arg(mount.path("f")).arg("exit"), WAIT);
    assert!(output.status.success(), "{output:?}");
    world.wait_object("f", 6 << 20, WAIT);
    assert!(world.bucket.get("f").unwrap() == expected_of_threaded());
}

/// A program that ends by SIGTERM, SIGKILL or SIGINT publishes nothing: its file is `interrupted`, and all that it
/// wrote is there.
#[test]
fn a_threaded_program_that_is_terminated_is_not_published() {
    for signal in ["TERM", "KILL", "INT"] {
        let world = World::new();
        let mount = world.mount(&SMALL_PARTS);
        // Python turns SIGINT into an exception; the default is what most programs have.
        let script = if signal == "INT" {
            format!("import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n{THREADED}")
        } else {
            THREADED.to_owned()
        };
        let mut command = Command::new("python3");
        command.args(["-c", &script]).arg(mount.path("f")).arg("wait").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "written\n");
        shell(&format!("kill -{signal} {}", child.id()));
        assert!(wait_child(&mut child, WAIT).is_some());
        mount.wait_state("f", WAIT, |entry| entry.is_some_and(|e| e["state"] == "interrupted"));
        assert!(world.bucket.head("f").unwrap().is_none(), "published after SIG{signal}");
        // It is there for who wants to go on with it.
        assert_eq!(shell(&format!("stat -c %s {}/f", mount.dir().display())).trim(), (6 << 20).to_string());
    }
}

/// A program that closed its file properly before another one wrote to it says nothing of what that one wrote: killed,
/// it leaves an interrupted file and the object as it was closed.
#[test]
fn a_close_says_nothing_of_what_a_killed_program_wrote_after_it() {
    let world = World::new();
    let mount = world.mount(&SMALL_PARTS);
    let first = MappedFile::closed(&mount.path("f"), "first");
    assert_eq!(world.bucket.get("f").unwrap(), b"first");
    let script = "import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY), b'second'); os.kill(os.getpid(), 9)";
    let second = run(Command::new("python3").args(["-c", script]).arg(mount.path("f")), WAIT);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&second.status), Some(9), "{second:?}");
    first.release(WAIT);
    mount.wait_state("f", WAIT, |entry| entry.is_some_and(|e| e["state"] == "interrupted"));
    assert_eq!(world.bucket.get("f").unwrap(), b"first");
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), b"second");
}

/// `truncate` of a file that was closed returns only once the object has the new size, also if the release of a handle,
/// which comes behind the close, is still to arrive.
#[test]
fn a_truncate_of_a_closed_file_waits_for_the_object_before_the_release() {
    let world = World::new();
    let mount = world.mount(&SMALL_PARTS);
    let first = MappedFile::closed(&mount.path("f"), "first");
    let script = "import os, sys; os.truncate(sys.argv[1], 3)";
    let cut = run(Command::new("python3").args(["-c", script]).arg(mount.path("f")), WAIT);
    assert!(cut.status.success(), "{cut:?}");
    assert_eq!(world.bucket.get("f").unwrap(), b"fir");
    first.release(WAIT);
}

#[test]
fn a_killed_cp_is_not_published_and_the_next_one_goes_on() {
    let world = World::new();
    let source = world.random_file("source", 1, 8 * PART);
    let mount = world.mount(&SMALL_PARTS);
    let watch = KeyWatch::start(&world.bucket, "huge.iso");
    // The first five parts pass; close waits for the others.
    let hold = world
        .proxy
        .hold(When::call(Call::UploadPart).part(6).part(7).part(8), HoldAt::InsideBody { after_bytes: 100_000 });
    let mut writer = SlowWriter::start(&mount.path("huge.iso"));
    writer.feed(&source, 7 * PART).unwrap();
    assert!(hold.wait_hit(WAIT));
    // A part that is still under way when the next `cp` begins may go again.
    mount.wait_state("huge.iso", WAIT, |entry| entry.is_some_and(|e| e["parts_in_bos"].as_u64() >= Some(5)));
    writer.end_by(Signal::KILL);
    mount.wait_state("huge.iso", WAIT, |entry| entry.is_some_and(|e| e["state"] == "interrupted"));
    world.proxy.clear_rules();
    let before = world.proxy.counts();
    assert!(cp(&source, mount.path("huge.iso"), WAIT).status.success());
    let counts = world.proxy.counts();
    world.assert_object_is_file("huge.iso", &source);
    for part in 1..=5 {
        let count = counts.part("huge.iso", part);
        assert_eq!(count.accepted, 1, "part {part} went twice\n{}", counts.log_text());
    }
    assert!(counts.bytes_sent() - before.bytes_sent() <= 4 * PART, "{}", counts.log_text());
    assert_eq!(watch.half_files(&[8 * PART]), [] as [u64; 0]);
}

/// Ctrl-C ends the wait of a `cp` at once, not the upload: the object is complete later.
#[test]
fn ctrl_c_of_a_waiting_cp_ends_the_wait_and_not_the_upload() {
    let world = World::new();
    let source = world.random_file("source", 2, 3 * PART);
    let mount = world.mount(&SMALL_PARTS);
    let hold = world.proxy.hold(When::call(Call::Complete), HoldAt::BeforeForward);
    let mut child = start_cp(&source, mount.path("f"));
    assert!(hold.wait_hit(WAIT));
    shell(&format!("kill -INT {}", child.id()));
    assert!(wait_child(&mut child, Duration::from_secs(5)).is_some(), "cp stays after Ctrl-C");
    hold.release();
    world.wait_object("f", 3 * PART, WAIT);
    world.assert_object_is_file("f", &source);
}

/// `close` returns only once the object is complete in BOS: while a part is missing, `cp` waits.
#[test]
fn close_waits_for_the_proved_object() {
    let world = World::new();
    let source = world.random_file("source", 3, 3 * PART);
    let mount = world.mount(&SMALL_PARTS);
    let hold = world.proxy.hold(When::call(Call::UploadPart).part(2), HoldAt::BeforeForward);
    let mut child = start_cp(&source, mount.path("f"));
    assert!(hold.wait_hit(WAIT));
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "close returned before the object is complete");
    hold.release();
    assert!(wait_child(&mut child, WAIT).unwrap().success());
    // No waiting here: it is there when cp has ended.
    world.assert_object_is_file("f", &source);
}

/// With `--write-back`, `close` succeeds while no part can be sent; if bosfs is then killed, the next mount publishes
/// the file by itself.
#[test]
fn write_back_answers_close_while_the_line_is_down() {
    use crate::support::Line;
    let world = World::new();
    let source = world.random_file("source", 4, 3 * PART);
    let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    // The name is looked up while the line is up.
    shell(&format!("test ! -e {}/f", mount.dir().display()));
    let parts = world.proxy.fault(When::call(Call::UploadPart), crate::support::Action::Refuse);
    assert!(cp(&source, mount.path("f"), WAIT).status.success());
    assert!(world.bucket.head("f").unwrap().is_none());
    assert!(parts.wait_hit(WAIT));
    world.proxy.set_line(Line::Dead);
    mount.kill();
    world.proxy.clear_rules();
    world.proxy.set_line(Line::Alive);
    mount.remount().unwrap();
    world.wait_object("f", 3 * PART, WAIT);
    world.assert_object_is_file("f", &source);
}

#[test]
fn umount_waits_until_everything_closed_is_in_the_bucket() {
    let world = World::new();
    let source = world.random_file("source", 5, 4 * PART);
    let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let hold = world.proxy.hold(When::call(Call::UploadPart).part(4), HoldAt::BeforeForward);
    assert!(cp(&source, mount.path("f"), WAIT).status.success());
    assert!(hold.wait_hit(WAIT));
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        hold.release();
    });
    let output = mount.umount(WAIT);
    release.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    world.assert_object_is_file("f", &source);
    assert!(!crate::support::mounted::is_mounted(mount.dir()));
}

#[test]
fn sigterm_ends_at_once_and_the_next_mount_goes_on() {
    let world = World::new();
    let source = world.random_file("source", 6, 6 * PART);
    let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let hold = world.proxy.hold(When::call(Call::UploadPart).part(5), HoldAt::BeforeForward);
    assert!(cp(&source, mount.path("f"), WAIT).status.success());
    assert!(hold.wait_hit(WAIT));
    let status = mount.end_by(Signal::TERM, Duration::from_secs(15)).expect("bosfs ends at SIGTERM");
    assert!(status.success(), "{status}\n{}", mount.log_text());
    world.proxy.clear_rules();
    world.wait_quiet();
    let before = world.proxy.counts();
    mount.remount().unwrap();
    world.wait_object("f", 6 * PART, WAIT);
    world.assert_object_is_file("f", &source);
    let counts = world.proxy.counts();
    assert_eq!(counts.parts_accepted_twice("f"), [] as [u32; 0]);
    assert!(counts.bytes_sent() - before.bytes_sent() < 6 * PART);
}

#[test]
fn two_writers_of_one_file_share_it() {
    let world = World::new();
    let mount = world.mount(&SMALL_PARTS);
    let dir = mount.dir().display();
    shell(&format!(
        "exec 3> {dir}/f; (exec 4<> {dir}/f; printf 'second' >&4); printf 'first' >&3; exec 3>&-; cat {dir}/f"
    ));
    mount.wait_settled("f", WAIT);
    assert_eq!(world.bucket.get("f").unwrap(), b"firstd");
}

/// A close that comes while an earlier one is being published publishes the file as it is then: what another program writes
/// meanwhile waits for nothing, and is not in the object.
#[test]
fn a_second_close_publishes_what_was_closed_and_not_what_another_program_writes_meanwhile() {
    let world = World::new();
    let mut bytes = random_bytes(9, 2 * PART as usize + 100);
    let mount = world.mount(&SMALL_PARTS);
    let held = world.proxy.hold(When::call(Call::Complete).key("f").once(), HoldAt::BeforeForward);
    let (path, first) = (mount.path("f"), bytes.clone());
    let closing = std::thread::spawn(move || std::fs::write(path, first));
    assert!(held.wait_hit(WAIT), "{}", mount.log_text());
    let open = || std::fs::OpenOptions::new().write(true).open(mount.path("f")).unwrap();
    let (second, third) = (open(), open());
    second.write_all_at(b"closed", 10).unwrap();
    bytes[10..16].copy_from_slice(b"closed");
    let closing_again = std::thread::spawn(move || drop(second));
    let journal = world.journals().remove(0).join("journal");
    let end = std::time::Instant::now() + WAIT;
    while !std::fs::read_to_string(&journal).unwrap().contains(r#""t":"closed","publication":2"#) {
        assert!(std::time::Instant::now() < end, "the second close does not arrive");
        std::thread::sleep(Duration::from_millis(5));
    }
    let third = crate::timed(move || third.write_all_at(b"not closed", 100).map(|()| third)).unwrap();
    held.release();
    closing.join().unwrap().unwrap();
    closing_again.join().unwrap();
    assert!(world.bucket.get("f").unwrap() == bytes, "published with what was not closed");
    drop(third);
    bytes[100..110].copy_from_slice(b"not closed");
    assert!(world.bucket.get("f").unwrap() == bytes);
}

/// With `--fsync bos`, BOS holds every byte as a part when `fsync` returns, and nothing is published by it.
#[test]
fn fsync_to_bos_leaves_every_byte_in_parts() {
    let world = World::new();
    let mount = world.mount(&["--part-size", "5MiB", "--fsync", "bos"]);
    let path = mount.path("f");
    let bucket = world.bucket.clone();
    crate::timed(move || {
        use std::io::Write;
        let mut file = std::fs::File::create(path).unwrap();
        file.write_all(&vec![3; 2 * PART as usize + 10]).unwrap();
        file.sync_all().unwrap();
        let uploads = bucket.uploads("f").unwrap();
        assert_eq!(uploads.len(), 1);
        let parts = bucket.parts("f", &uploads[0].upload_id).unwrap();
        assert_eq!(parts.iter().map(|part| part.size).sum::<u64>(), 2 * PART + 10);
        assert!(bucket.head("f").unwrap().is_none(), "fsync published");
    });
}

/// A program that is killed after an `open` with O_TRUNC publishes nothing: the object stays what was closed before, also
/// where that was still on its way, and the open did not wait for it.
#[test]
fn a_program_killed_in_a_truncating_open_publishes_nothing() {
    let world = World::new();
    let mount = world.mount(&["--write-back"]);
    let put = world.proxy.hold(When::call(Call::PutObject).key("f").once(), HoldAt::BeforeAnswer);
    std::fs::write(mount.path("f"), b"closed before").unwrap();
    assert!(put.wait_hit(WAIT));
    let script = format!("exec 3> {}; echo open; exec sleep 60", mount.path("f").display());
    let mut child = Command::new("sh").arg("-c").arg(script).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = [0; 5];
    let mut output = child.stdout.take().unwrap();
    crate::timed(move || std::io::Read::read_exact(&mut output, &mut told).map(|()| output)).unwrap();
    assert_eq!(std::fs::metadata(mount.path("f")).unwrap().len(), 0);
    child.kill().unwrap();
    child.wait().unwrap();
    put.release();
    mount.wait_state("f", WAIT, |entry| entry.is_some_and(|entry| entry["state"] == "interrupted"));
    assert_eq!(world.bucket.get("f").unwrap(), b"closed before");
    assert_eq!(world.proxy.counts().requests(Call::PutObject), 1);
}
