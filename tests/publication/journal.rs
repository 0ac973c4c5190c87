//! The journal of a file stays small whatever is written, and one that cannot be read is told of.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::hand::Hand;
use crate::scene::assert_bytes;
use crate::support::files::random_bytes;
use crate::support::mounted::within;
use crate::support::{Mounted, World};
use crate::{KIB, LOCAL, MIB, WAIT};

const KEY: &str = "f";
/// What a journal may have beside two checkpoints.
const JOURNAL_SLACK_BYTES: u64 = 64 * KIB;
/// What a checkpoint takes of a file with little to tell: its key, base, headers, attributes, size.
const CHECKPOINT_BASE_BYTES: u64 = 8 * KIB;
/// What it takes for one range of a block over a base, as text with two numbers.
const CHECKPOINT_RANGE_BYTES: u64 = 48;

/// The most that a journal may have while a checkpoint has to name `ranges` written ranges.
fn journal_bytes_max(ranges: u64) -> u64 {
    JOURNAL_SLACK_BYTES + 2 * (CHECKPOINT_BASE_BYTES + ranges * CHECKPOINT_RANGE_BYTES)
}

/// The directory of the one journal.
fn journal_dir(world: &World) -> PathBuf {
    let dirs = world.journals();
    assert_eq!(dirs.len(), 1, "{dirs:?}");
    dirs[0].clone()
}

/// Bytes of the journal, without a checkpoint that is being written beside it.
fn journal_bytes(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("journal")).unwrap().size()
}

/// `count` one-byte writes at every `step`-th byte of an object of 1 MiB: the journal stays bounded, and after SIGKILL and a
/// mount every byte is there.
fn one_byte_writes(count: u64, step: u64) {
    let world = World::new();
    let base = random_bytes(1, MIB as usize);
    world.bucket.put(KEY, &base).unwrap();
    let mut mount = world.mount(&[]);
    let file = Hand::open(&mount.path(KEY));
    file.write(0, &[base[0] ^ 1]);
    let dir = journal_dir(&world);
    let mut expected = base.clone();
    expected[0] ^= 1;
    let mut most = 0;
    for first in (1..count).step_by(1024) {
        let writes: Vec<(u64, u8)> = (first..count.min(first + 1024))
            .map(|n| {
                let at = n * step % MIB;
                expected[at as usize] = base[at as usize] ^ 1;
                (at, expected[at as usize])
            })
            .collect();
        let written = file.begin(move |file| writes.iter().try_for_each(|(at, byte)| file.write_all_at(&[*byte], *at)));
        written.within(WAIT, "1024 one-byte writes").unwrap();
        let bytes = journal_bytes(&dir);
        most = most.max(bytes);
        let allowed = journal_bytes_max(first + 1024);
        assert!(bytes <= allowed, "after {} writes the journal has {bytes} bytes, allowed {allowed}", first + 1023);
    }
    let began = Instant::now();
    mount.remount().unwrap();
    let took = began.elapsed();
    println!("{count} writes: {most} bytes of journal at most, kill and mount {} ms", took.as_millis());
    assert!(took < Duration::from_secs(5), "the mount takes {took:?}");
    mount.wait_state(KEY, WAIT, |entry| entry.is_some_and(|e| e["state"] == "interrupted"));
    assert_shown(&mount, &expected);
    assert!(world.bucket.get(KEY).unwrap() == base, "published without a close");
    // Whoever goes on publishes it, whole.
    let again = Hand::open(&mount.path(KEY));
    again.write(5, b"again");
    expected[5..10].copy_from_slice(b"again");
    again.close(WAIT, "close");
    assert_bytes(&world.bucket.get(KEY).unwrap(), &expected, "the object", || world.log_text());
}

fn assert_shown(mount: &Mounted, expected: &[u8]) {
    let path = mount.path(KEY);
    let shown = within(WAIT, "reading", move || std::fs::read(path)).unwrap();
    assert_bytes(&shown, expected, "the file in the mount", || mount.log_text());
}

/// The journal of a file takes at most 64 KiB and twice what it takes to tell the state of the file, however often it
/// is written.
#[test]
fn one_byte_writes_into_an_object_leave_a_small_journal() {
    one_byte_writes(40_960, 2);
}

// All over the object.
#[test]
fn scattered_one_byte_writes_into_an_object_leave_a_small_journal() {
    one_byte_writes(40_960, 25_013);
}

// The same few bytes again and again: there is nothing more to tell than after the first time.
#[test]
fn the_same_bytes_written_again_and_again_leave_a_small_journal() {
    let world = World::new();
    world.bucket.put(KEY, &random_bytes(1, MIB as usize)).unwrap();
    let mount = world.mount(&[]);
    let file = Hand::open(&mount.path(KEY));
    file.write(10, b"0123456789");
    let dir = journal_dir(&world);
    for round in 0..10u64 {
        let written = file.begin(move |file| {
            (0..1000).try_for_each(|n| file.write_all_at(&(round * 1000 + n).to_le_bytes(), 10 + n % 3 * 5000))
        });
        written.within(WAIT, "1000 writes").unwrap();
    }
    let bytes = journal_bytes(&dir);
    println!("10,000 writes to the same bytes: {bytes} bytes of journal");
    assert!(bytes <= journal_bytes_max(8), "{bytes} bytes");
}

/// Write and fsync in a loop, as databases and loggers do.
fn write_and_fsync(at: impl Fn(u64) -> u64 + Send + 'static, over: usize) {
    const TIMES: u64 = 2000;
    let world = World::new();
    world.bucket.put(KEY, &random_bytes(1, over)).unwrap();
    let mut mount = world.mount(&[]);
    let file = Hand::open(&mount.path(KEY));
    file.write(0, b"begin");
    let dir = journal_dir(&world);
    let line = |n: u64| format!("line {n:094}\n");
    let places: Vec<u64> = (0..TIMES).map(at).collect();
    let mut expected = random_bytes(1, over);
    expected[..5].copy_from_slice(b"begin");
    for (n, at) in places.iter().enumerate() {
        let text = line(n as u64);
        expected.resize(expected.len().max(*at as usize + text.len()), 0);
        expected[*at as usize..][..text.len()].copy_from_slice(text.as_bytes());
    }
    let synced = file.begin(move |file| {
        places.iter().enumerate().try_for_each(|(n, at)| {
            file.write_all_at(line(n as u64).as_bytes(), *at)?;
            file.sync_data()
        })
    });
    synced.within(Duration::from_secs(150), "2000 times write and fsync").unwrap();
    let bytes = journal_bytes(&dir);
    println!("{TIMES} times write and fsync: {bytes} bytes of journal");
    assert!(bytes <= journal_bytes_max(8), "{bytes} bytes of journal after {TIMES} fsyncs");
    mount.remount().unwrap();
    mount.wait_state(KEY, WAIT, |entry| entry.is_some_and(|e| e["state"] == "interrupted"));
    assert_shown(&mount, &expected);
}

#[test]
fn fsyncs_of_one_place_leave_a_small_journal() {
    write_and_fsync(|_| 5000, MIB as usize);
}

#[test]
fn fsyncs_of_a_growing_file_leave_a_small_journal() {
    write_and_fsync(|n| 8192 + n * 100, 8192);
}

/// An `fsync` of a file in which nothing changed since the last one writes nothing.
#[test]
fn an_fsync_of_an_unchanged_file_adds_no_line() {
    let world = World::new();
    world.bucket.put(KEY, &random_bytes(1, MIB as usize)).unwrap();
    let mount = world.mount(&[]);
    let file = Hand::open(&mount.path(KEY));
    file.write(10, b"0123456789");
    file.local("fsync", File::sync_all);
    let dir = journal_dir(&world);
    let before = std::fs::read(dir.join("journal")).unwrap();
    file.local("100 fsyncs", |file| (0..100).try_for_each(|_| file.sync_all()));
    let path = mount.path(KEY);
    within(LOCAL, "fsync of another descriptor", move || File::open(path).unwrap().sync_all()).unwrap();
    let after = std::fs::read(dir.join("journal")).unwrap();
    let added = String::from_utf8_lossy(&after[before.len().min(after.len())..]).into_owned();
    assert!(after == before, "{} bytes were added: {added:.300}", after.len() as i64 - before.len() as i64);
    // What changes after that is synced again.
    file.write(10, b"9876543210");
    file.local("fsync", File::sync_all);
}

/// An object that was changed, and synced, by a writer that was cut off; bosfs is gone.
fn cut_off() -> (World, Mounted, Vec<u8>) {
    let world = World::new();
    let base = random_bytes(1, MIB as usize);
    world.bucket.put(KEY, &base).unwrap();
    world.bucket.put("other", b"another object").unwrap();
    let mut mount = world.mount(&[]);
    let file = Hand::open(&mount.path(KEY));
    file.write(5000, b"accepted");
    file.local("fsync", File::sync_all);
    mount.kill();
    (world, mount, base)
}

/// `status` names the file that cannot be read as `failed`, and the mount does not show the old object as if nothing had been
/// written: it gives an error, or the new bytes.
fn is_told_and_not_shown_old(world: &World, mount: &Mounted, base: &[u8]) {
    let end = Instant::now() + WAIT;
    let dir = journal_dir(world);
    let name = dir.file_name().unwrap().to_string_lossy().into_owned();
    loop {
        let status = mount.status();
        let text = status.to_string();
        if (text.contains(&format!("\"{KEY}\"")) || text.contains(&name)) && text.contains("failed") {
            break;
        }
        assert!(Instant::now() < end, "not told as failed: {text}\n{}", mount.log_text());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(dir.join("spool").exists(), "bytes were thrown away");
    assert!(world.bucket.get(KEY).unwrap() == base, "the object was changed");
    let path = mount.path(KEY);
    if let Ok(shown) = within(WAIT, "reading", move || std::fs::read(path)) {
        assert!(shown != base, "the old object is shown as if nothing had been written\n{}", mount.log_text());
    }
    // Nothing else suffers.
    let path = mount.path("other");
    assert_eq!(within(WAIT, "reading another file", move || std::fs::read(path)).unwrap(), b"another object");
}

/// A file whose journal cannot be read is named as failed by `bosfs status`, and gives an error instead of the older
/// object.
#[test]
fn a_file_with_a_damaged_journal_is_failed_and_does_not_show_the_old_object() {
    let (world, mut mount, base) = cut_off();
    let journal = OpenOptions::new().write(true).open(journal_dir(&world).join("journal")).unwrap();
    journal.write_all_at(b"#", 40).unwrap();
    mount.remount().unwrap();
    is_told_and_not_shown_old(&world, &mount, &base);
}

// 3 GiB, of which the disk has a few pages: more than any state takes.
#[test]
fn a_file_with_a_journal_that_is_too_large_is_failed_and_does_not_show_the_old_object() {
    let (world, mut mount, base) = cut_off();
    let journal = OpenOptions::new().write(true).open(journal_dir(&world).join("journal")).unwrap();
    journal.set_len(3 << 30).unwrap();
    let began = Instant::now();
    mount.remount().unwrap();
    println!("mount beside a journal of 3 GiB: {} ms", began.elapsed().as_millis());
    is_told_and_not_shown_old(&world, &mount, &base);
}

#[test]
fn a_file_with_a_journal_of_another_format_is_failed_and_does_not_show_the_old_object() {
    let (world, mut mount, base) = cut_off();
    let path = journal_dir(&world).join("journal");
    let text = std::fs::read(&path).unwrap();
    let place = text.windows(10).position(|w| w == b"\"format\":1").or_else(|| {
        // A later format begins with another number.
        text.windows(9).position(|w| w == b"\"format\":")
    });
    let mut changed = text.clone();
    changed[place.expect("the first line tells its format") + 9] = b'9';
    std::fs::write(&path, rechecked(&changed)).unwrap();
    mount.remount().unwrap();
    is_told_and_not_shown_old(&world, &mount, &base);
}

/// The first line with the checksum that belongs to its JSON; the others as they were.
fn rechecked(text: &[u8]) -> Vec<u8> {
    let end = text.iter().position(|byte| *byte == b'\n').expect("a line");
    let json_at = text.iter().position(|byte| *byte == b'{').expect("JSON");
    let json = &text[json_at..end];
    let head = String::from_utf8_lossy(&text[..json_at]).into_owned();
    let mut fields: Vec<String> = head.split(' ').map(str::to_owned).collect();
    fields[1] = format!("{:08x}", crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, json));
    let mut changed = fields.join(" ").into_bytes();
    changed.extend_from_slice(&text[json_at..]);
    changed
}
