//! A log that is appended to all the time on a slow line: the object follows it, and each publication sends what is new and
//! one part.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use crate::hand::{Hand, Pending};
use crate::support::files::random_bytes;
use crate::support::mounted::sh;
use crate::support::{Call, Mounted, World};
use crate::{MIB, WAIT};

const KEY: &str = "log";
const LOG_BYTES: usize = 20_000_000;
const PART: u64 = 5 << 20;
const LINE_BYTES_PER_S: u64 = 1_000_000;

/// The log as an object, and a line of 1 MB/s.
fn with_log(args: &[&str]) -> (World, Mounted, Vec<u8>) {
    let world = World::new();
    let log = random_bytes(1, LOG_BYTES);
    world.bucket.put(KEY, &log).unwrap();
    let mount = world.mount(&[&["--part-size", "5MiB"], args].concat());
    world.proxy.set_bandwidth(Some(LINE_BYTES_PER_S));
    world.proxy.take_counts();
    (world, mount, log)
}

/// With `--write-back` the object of a log that is appended to each second follows the log, and each publication sends
/// little more than what is new and one part.
#[test]
fn a_log_that_is_appended_to_each_second_is_followed_by_its_object() {
    const APPENDS: u32 = 25;
    let (world, mut mount, mut log) = with_log(&["--write-back"]);
    let start = Instant::now();
    let mut published_last = LOG_BYTES as u64;
    let mut sizes = Vec::new();
    for n in 0..APPENDS {
        let line = format!("date >> {}", mount.path(KEY).display());
        let output = sh(&line, WAIT);
        assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
        let published = world.bucket.head(KEY).unwrap().unwrap().size;
        assert!(published >= published_last, "the object went back from {published_last} to {published} bytes");
        published_last = published;
        sizes.push(published);
        std::thread::sleep((start + Duration::from_secs(u64::from(n) + 1)).saturating_duration_since(Instant::now()));
    }
    // A part takes 4.3 s on this line, so 25 s have room for five; two are asked for.
    let completes = world.proxy.counts().of(Call::Complete).accepted;
    assert!(completes >= 2, "{completes} publications while the log grew: {sizes:?}\n{}", world.log_text());
    let output = mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    let found = world.bucket.get(KEY).unwrap();
    let new = &found[LOG_BYTES..];
    assert!(found.len() > LOG_BYTES && found[..LOG_BYTES] == log[..], "the beginning differs");
    assert_eq!(new.iter().filter(|byte| **byte == b'\n').count(), APPENDS as usize, "lines in the object");
    log.extend_from_slice(new);
    let counts = world.proxy.counts();
    let completes = counts.of(Call::Complete).accepted;
    let allowed = new.len() as u64 + (completes + 1) * PART;
    println!("{completes} publications, {} bytes sent", counts.bytes_sent());
    assert!(
        counts.bytes_sent() <= allowed,
        "{} bytes for {completes} publications of a part each\n{}",
        counts.bytes_sent(),
        counts.log_text()
    );
}

/// Appends to a log by short lines until it is told to stop; how many.
fn append_all_the_time(path: PathBuf, stop: std::sync::mpsc::Receiver<()>, every: Duration) -> Pending<u64> {
    Pending::of(move || {
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        let mut lines = 0;
        while stop.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            writeln!(file, "b's line {lines:08}").unwrap();
            lines += 1;
        }
        lines
    })
}

/// In the default mode, A's close ends while B goes on appending.
fn a_closes_while_b_appends(hold_b_open: bool) {
    let (world, mut mount, log) = with_log(&[]);
    let path = mount.path(KEY);
    let a = Hand::begin_open(&path, OpenOptions::new().append(true)).0;
    a.local("append", |file| (&*file).write_all(b"a's line\n"));
    let (stop, stopped) = std::sync::mpsc::channel();
    let appending = match hold_b_open {
        true => append_all_the_time(path.clone(), stopped, Duration::from_millis(200)),
        false => append_and_close_all_the_time(&path, stopped),
    };
    std::thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    // One part of at most 5 MiB, perhaps behind another publication of one, on a line of 1 MB/s.
    let closed = a.begin_close().within(Duration::from_secs(30), "A's close while B appends");
    assert!(closed.is_ok(), "{closed:?}\n{}", mount.log_text());
    println!("A's close took {:.1} s", began.elapsed().as_secs_f64());
    let found = world.bucket.get(KEY).unwrap();
    assert!(found[..LOG_BYTES] == log[..] && found[LOG_BYTES..].starts_with(b"a's line\n"), "A's line is not there");
    drop(stop);
    let lines = appending.within(WAIT, "B's last close");
    assert!(lines > 10, "B wrote {lines} lines only");
    world.proxy.set_bandwidth(None);
    let output = mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    let found = world.bucket.get(KEY).unwrap();
    assert!(found[..LOG_BYTES] == log[..]);
    assert_eq!(found[LOG_BYTES..].iter().filter(|byte| **byte == b'\n').count() as u64, lines + 1);
}

/// Lines by programs that each open, append and close, and wait for their closes side by side.
fn append_and_close_all_the_time(path: &Path, stop: std::sync::mpsc::Receiver<()>) -> Pending<u64> {
    let path = path.to_owned();
    Pending::of(move || {
        let mut closing = Vec::new();
        while stop.recv_timeout(Duration::from_millis(400)) == Err(RecvTimeoutError::Timeout) {
            let hand = Hand::begin_open(&path, OpenOptions::new().append(true)).0;
            hand.local("append", |file| (&*file).write_all(b"b's line\n"));
            closing.push(hand.begin_close());
        }
        let lines = closing.len() as u64;
        closing.into_iter().for_each(|closed| closed.within(2 * WAIT, "one of B's closes").unwrap());
        lines
    })
}

#[test]
fn a_close_ends_while_another_program_holds_the_log_open_and_appends() {
    a_closes_while_b_appends(true);
}

/// A close ends although other programs append to the file and close it all the time.
#[test]
fn a_close_ends_while_other_programs_append_and_close() {
    a_closes_while_b_appends(false);
}

// What is appended while a new file of several parts is on its way takes nothing of it back: each part is sent once, but for
// the last one.
#[test]
fn an_append_while_a_new_file_is_on_its_way_takes_nothing_back() {
    let world = World::new();
    let source = world.random_file("source", 3, 4 * PART + 1000);
    let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    world.proxy.set_bandwidth(Some(8 * MIB));
    let path = mount.path(KEY);
    let copied = crate::support::mounted::cp(&source, &path, WAIT);
    assert!(copied.status.success(), "{copied:?}");
    for n in 0..8 {
        let hand = Hand::open(&path);
        hand.local("append", move |file| file.write_all_at(b"0123456789", 4 * PART + 1000 + n * 10));
        hand.close(WAIT, "a write-back close");
        std::thread::sleep(Duration::from_millis(300));
    }
    let output = mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    let counts = world.proxy.counts();
    let completes = counts.of(Call::Complete).accepted;
    assert_eq!(world.bucket.head(KEY).unwrap().unwrap().size, 4 * PART + 1080);
    // The last part has 1000 bytes and what was appended.
    let allowed = 4 * PART + (completes + 2) * 1080;
    println!("{completes} publications, {} bytes sent", counts.bytes_sent());
    assert!(counts.bytes_sent() <= allowed, "{} bytes\n{}", counts.bytes_sent(), counts.log_text());
}
