use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::bos::client::ObjectHeaders;
use crate::journal::record::{FORMAT, Proof};
use crate::object::{ByteRange, Checksum, Condition, ETag, FileAttrs, ObjectKey, PartNumber, Timestamp};

fn replay(bytes: &[u8]) -> Replay {
    super::replay(bytes)
}

fn opened() -> Record {
    let mut headers = ObjectHeaders { content_type: Some("text/plain".into()), ..ObjectHeaders::default() };
    headers.metadata.insert("colour".into(), "gr\u{fc}n \"\n".into());
    Record::Opened {
        format: FORMAT,
        journal_id: "00112233aabbccdd".into(),
        key: ObjectKey::parse("dir/\u{76ee} file").unwrap(),
        base: None,
        condition: Condition::Absent,
        headers,
        attrs: FileAttrs { mode: 0o100_644, uid: 0, gid: 7, mtime: Timestamp { sec: -1, nsec: 999_999_999 } },
        boot_id: "boot".into(),
        at: 1_700_000_000,
    }
}

fn sent(part: u32) -> Record {
    let sum = Checksum::of(&part.to_le_bytes());
    let etag = ETag::new(&sum.md5.to_hex());
    Record::Sent { part: PartNumber::new(part).unwrap(), sum, etag, kept: part.is_multiple_of(2) }
}

fn some_records() -> Vec<Record> {
    vec![
        opened(),
        Record::Initiating,
        sent(1),
        Record::Partial {
            layer: 1,
            block: 12_206_079_999,
            ranges: vec![ByteRange::new(1, 5), ByteRange::new(9, 9)],
            adds: true,
        },
        Record::Completing {
            publication: 1,
            mark: "00112233aabbccdd.1".into(),
            condition: Condition::Matches(ETag::new("-ff")),
            size: 1 << 45,
            part_count: 10_000,
        },
        Record::Proved { publication: 1, proof: Proof::Composed },
        Record::UploadEnded,
    ]
}

fn bytes_of(records: &[Record]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut line = Vec::new();
    for record in records {
        encode(record, &mut line).unwrap();
        all.extend_from_slice(&line);
    }
    all
}

/// Number of whole lines in the first `len` bytes.
fn whole_lines(bytes: &[u8], len: usize) -> usize {
    bytes[..len].iter().filter(|b| **b == b'\n').count()
}

fn dir_with(bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(JOURNAL_NAME), bytes).unwrap();
    dir
}

fn file_bytes(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join(JOURNAL_NAME)).unwrap()
}

#[test]
fn what_is_appended_is_read_back_also_by_another_reader() {
    let dir = tempfile::tempdir().unwrap();
    let records = some_records();
    let mut journal = Journal::create(dir.path(), &records[0]).unwrap();
    assert!(Journal::create(dir.path(), &records[0]).is_err(), "never over an existing journal");
    for record in &records[1..3] {
        journal.append(record).unwrap();
    }
    journal.sync().unwrap();
    journal.sync_handle().unwrap().sync_data().unwrap();
    drop(journal);
    let (mut journal, replay) = Journal::open(dir.path()).unwrap();
    assert_eq!(replay.records, records[..3]);
    for record in &records[3..] {
        journal.append(record).unwrap();
    }
    let replay = Journal::read(dir.path()).unwrap();
    assert_eq!((replay.records, replay.torn_bytes, replay.damage), (records.clone(), 0, None));
    assert_eq!(file_bytes(dir.path()), bytes_of(&records));
    assert_eq!(journal.len_bytes(), bytes_of(&records).len() as u64);
    let mode = std::os::unix::fs::PermissionsExt::mode(&journal.path().metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_journal_cut_at_any_byte_opens_to_its_whole_lines_and_goes_on() {
    let records = some_records();
    let bytes = bytes_of(&records);
    for len in 0..=bytes.len() {
        let lines = whole_lines(&bytes, len);
        let found = replay(&bytes[..len]);
        assert_eq!(found.records, records[..lines], "cut at {len}");
        assert_eq!(found.damage, None, "cut at {len}");
        let torn = len - bytes_of(&records[..lines]).len();
        assert_eq!(found.torn_bytes, torn as u64);

        if len % 7 == 0 || torn <= 1 {
            let dir = dir_with(&bytes[..len]);
            let before = Journal::read(dir.path()).unwrap();
            assert_eq!(before.torn_bytes, torn as u64);
            assert_eq!(file_bytes(dir.path()).len(), len, "reading changes nothing");
            let (mut journal, _) = Journal::open(dir.path()).unwrap();
            journal.append(&Record::Reopened).unwrap();
            let mut expected = records[..lines].to_vec();
            expected.push(Record::Reopened);
            assert_eq!(file_bytes(dir.path()), bytes_of(&expected), "cut at {len}");
        }
    }
}

#[test]
fn every_changed_bit_is_seen_and_only_in_the_last_line_taken_for_a_torn_tail() {
    let records = some_records();
    let bytes = bytes_of(&records);
    let last_line = bytes_of(&records[..records.len() - 1]).len();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            let found = replay(&changed);
            let lines = whole_lines(&bytes, at);
            assert_eq!(found.records, records[..lines], "bit {bit} of byte {at}");
            assert_eq!(found.damage.is_some(), at < last_line, "bit {bit} of byte {at}");
            assert_eq!(found.torn_bytes > 0, at >= last_line, "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn a_tail_of_zeros_as_power_loss_leaves_it_is_cut_off() {
    let mut bytes = bytes_of(&some_records());
    let whole = bytes.len();
    bytes.resize(whole + 8192, 0);
    let dir = dir_with(&bytes);
    let (_, replay) = Journal::open(dir.path()).unwrap();
    assert_eq!((replay.records.len(), replay.torn_bytes, replay.damage), (some_records().len(), 8192, None));
    assert_eq!(file_bytes(dir.path()).len(), whole);
}

#[test]
fn damage_is_left_untouched_named_by_line_and_byte_and_refuses_appends() {
    let records = some_records();
    let mut bytes = bytes_of(&records);
    let second = bytes_of(&records[..1]).len();
    bytes[second + 20] ^= 4;
    let dir = dir_with(&bytes);
    let (mut journal, replay) = Journal::open(dir.path()).unwrap();
    assert_eq!(replay.records, records[..1]);
    let damage = replay.damage.unwrap();
    assert!(damage.starts_with(&format!("line 2 at byte {second} ")), "{damage}");
    let refused = journal.append(&Record::Initiating).unwrap_err().to_string();
    assert!(refused.contains("damaged") && refused.contains(&dir.path().display().to_string()), "{refused}");
    assert!(journal.sync().is_err());
    drop(journal);
    assert_eq!(file_bytes(dir.path()), bytes);
}

#[test]
fn lines_that_a_power_loss_tore_are_cut_off_by_whoever_knows_that_they_were_not_synced() {
    let records = some_records();
    let mut bytes = bytes_of(&records);
    let third = bytes_of(&records[..2]).len();
    bytes[third + 20] ^= 4;
    let dir = dir_with(&bytes);
    let (mut journal, replay) = Journal::open(dir.path()).unwrap();
    assert_eq!((replay.damaged_at, &replay.behind[..]), (Some(third as u64), &records[3..]));
    journal.cut_damage(&replay).unwrap();
    journal.append(&Record::Initiating).unwrap();
    drop(journal);
    let (_, replay) = Journal::open(dir.path()).unwrap();
    assert_eq!((replay.records.len(), replay.records.last(), replay.damage), (3, Some(&Record::Initiating), None));
}

fn framed(json: &str) -> Vec<u8> {
    format!("{:08x} {:08x} {json}\n", json.len(), crc32c(json.as_bytes())).into_bytes()
}

#[test]
fn lines_of_another_version_are_no_torn_tail_and_tell_to_update() {
    for json in [
        r#"{"t":"teleported","to":"mars"}"#.to_owned(),
        r#"{"no":"type"}"#.to_owned(),
        serde_json::to_string(&opened()).unwrap().replace(r#""format":2"#, r#""format":3"#),
    ] {
        let mut bytes = bytes_of(&some_records());
        let whole = bytes.len();
        bytes.extend(framed(&json));
        let found = replay(&bytes);
        assert_eq!(found.records.len(), some_records().len());
        let damage = found.damage.unwrap();
        assert!(damage.contains("newer") && damage.contains(&format!("byte {whole} ")), "{damage}");
        assert_eq!(found.torn_bytes, 0);
    }
}

#[test]
fn lines_that_name_blocks_beyond_the_largest_file_are_damage() {
    // 10,000 parts of 4768 MiB.
    let end = 10_000 * 4768 * (1 << 20) / 4096u64;
    let with = |form: &str, end: u64| replay(&framed(&form.replace("END", &end.to_string()))).damage;
    for form in [
        r#"{"t":"spooled","layer":1,"size":9,"blocks":[{"start":0,"end":3},{"start":7,"end":END}]}"#,
        r#"{"t":"spooled","layer":1,"size":9,"blocks":[{"start":7,"end":END},{"start":3,"end":4}]}"#,
        r#"{"t":"spooled","layer":1,"size":9,"blocks":[{"start":END,"end":END}]}"#,
        r#"{"t":"synced","size":9,"closes":0,"layers":[{"layer":1,"size":9,"blocks":[{"start":7,"end":END}]}]}"#,
    ] {
        assert_eq!(with(form, end), None, "{form}");
        for beyond in [end + 1, 84_294_967_296, u64::MAX] {
            let damage = with(form, beyond).unwrap();
            assert!(damage.contains("beyond the largest file"), "{form}: {damage}");
        }
    }
    let partial = r#"{"t":"partial","layer":1,"block":END,"ranges":[]}"#;
    assert_eq!(with(partial, end - 1), None);
    assert!(with(partial, end).unwrap().contains("beyond the largest file"));
}

#[test]
fn hostile_bytes_never_panic_and_never_reach_a_caller_as_records() {
    let reversed = r#"{"t":"copied","part":1,"range":{"start":9,"end":3},"etag":"x"}"#;
    assert!(replay(&framed(reversed)).damage.unwrap().contains("impossible range"));
    for json in [r#"{"t":"dirtied","part":0}"#, r#"{"t":"dirtied","part":10001}"#, "{}", "[]", r#"{"t":1}"#] {
        assert!(replay(&framed(json)).damage.is_some(), "{json}");
    }
    let deep = format!("{{\"t\":{}1", "[".repeat(100_000));
    assert!(replay(&framed(&deep)).damage.is_some());
    for head in ["ffffffff ffffffff {", "00000000 00000000 ", "00000001 00000000 {\n", "80000000 00000000 {}\n"] {
        let found = replay(head.as_bytes());
        assert_eq!((found.records.len(), found.torn_bytes, found.damage), (0, head.len() as u64, None));
    }
    // Lengths right around the bound.
    let longest = format!("{{\"t\":\"initiating\",\"x\":\"{}\"}}", "y".repeat(LINE_JSON_BYTES_MAX - 25));
    assert_eq!(longest.len(), LINE_JSON_BYTES_MAX);
    assert_eq!(replay(&framed(&longest)).records, [Record::Initiating]);
    assert_eq!(replay(&framed(&longest.replacen('y', "yy", 1))).records, []);
    // Endless seeming lines: the search stops and does not call them torn.
    let mut bait = b"00100000 00000000 {".repeat(100_000);
    bait.resize(3 << 20, b'\n');
    let found = replay(&bait);
    assert!(found.damage.is_some() && found.damaged_at.is_none(), "nothing behind it is believed");
    let mut budget = 1 << 20;
    assert!(find_valid_line(&bait, &mut budget).is_some());
    assert_eq!(budget, 0, "no more is checksummed than that");
}

proptest::proptest! {
    #[test]
    fn any_bytes_at_all_are_read_without_panic(bytes: Vec<u8>, at: usize, cut: usize) {
        let mut journal = bytes_of(&some_records());
        let at = at % journal.len();
        journal.splice(at..(at + cut % 64).min(at), bytes);
        let found = replay(&journal);
        proptest::prop_assert!(found.torn_bytes <= journal.len() as u64);
        proptest::prop_assert!(found.records.len() <= journal.len() / HEAD_BYTES);
    }
}

#[test]
fn a_record_beyond_the_line_bound_is_refused_without_harm() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(dir.path(), &opened()).unwrap();
    let long = Record::Conflict { message: "x".repeat(LINE_JSON_BYTES_MAX) };
    assert!(journal.append(&long).unwrap_err().to_string().contains("bytes"));
    journal.append(&Record::Reopened).unwrap();
    assert_eq!(Journal::read(dir.path()).unwrap().records, [opened(), Record::Reopened]);
}

#[test]
fn what_is_no_journal_is_an_error_and_not_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Journal::open(dir.path()).unwrap_err();
    assert_eq!((missing.kind(), errno_of(&missing)), (io::ErrorKind::NotFound, libc::ENOENT));
    std::fs::create_dir(dir.path().join(JOURNAL_NAME)).unwrap();
    assert!(Journal::open(dir.path()).is_err() && Journal::read(dir.path()).is_err());
    std::fs::remove_dir(dir.path().join(JOURNAL_NAME)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join(JOURNAL_NAME),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(Journal::open(dir.path()).is_err() && Journal::read(dir.path()).is_err(), "and does not hang");
}

/// A file in memory with room for `room` bytes, whose cuts and syncs can be made to fail.
#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    room: usize,
    cut_fails: bool,
    sync_fails: bool,
}

#[derive(Clone)]
struct FakeFile(Arc<Mutex<Disk>>);

impl JournalFile for FakeFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut disk = self.0.lock();
        let taken = disk.room.min(line.len());
        if taken == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        disk.room -= taken;
        disk.bytes.extend_from_slice(&line[..taken]);
        Ok(taken)
    }
    fn sync(&self) -> io::Result<()> {
        if self.0.lock().sync_fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().bytes.len() as u64)
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        if disk.cut_fails {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        disk.room += disk.bytes.len() - len as usize;
        disk.bytes.truncate(len as usize);
        Ok(())
    }
    fn sync_handle(&self) -> io::Result<File> {
        File::open("/dev/null")
    }
}

fn on_disk(disk: Disk) -> (Journal, FakeFile) {
    let file = FakeFile(Arc::new(Mutex::new(disk)));
    (Journal::over(Box::new(file.clone()), "/state/uploads/x/journal".into(), 0), file)
}

#[test]
fn a_disk_that_fills_up_at_any_byte_keeps_whole_lines_and_goes_on_with_room_again() {
    let records = some_records();
    let bytes = bytes_of(&records);
    for cut_fails in [false, true] {
        for room in 0..bytes.len() {
            let (mut journal, file) = on_disk(Disk { room, cut_fails, ..Disk::default() });
            let kept = records.iter().take_while(|record| journal.append(record).is_ok()).count();
            assert_eq!(kept, whole_lines(&bytes, room), "room {room}");
            file.0.lock().room = usize::MAX / 2;
            let later = journal.append(&Record::Reopened);
            if cut_fails {
                let later = later.unwrap_err();
                assert_eq!(errno_of(&later), libc::ENOSPC);
                assert!(later.to_string().contains("/state/uploads/x/journal"), "{later}");
            } else {
                later.unwrap();
            }
            let more = usize::from(!cut_fails);
            let left = file.0.lock().bytes.clone();
            let found = replay(&left);
            assert_eq!((found.records.len(), found.damage), (kept + more, None), "room {room}");
            assert_eq!(found.torn_bytes == 0, !cut_fails || room == bytes_of(&records[..kept]).len(), "room {room}");
        }
    }
}

#[test]
fn a_failed_sync_latches_whoever_met_it() {
    let (mut journal, file) = on_disk(Disk { room: 1 << 20, sync_fails: true, ..Disk::default() });
    journal.append(&opened()).unwrap();
    assert_eq!(errno_of(&journal.sync().unwrap_err()), libc::EIO);
    file.0.lock().sync_fails = false;
    assert!(journal.append(&Record::Initiating).is_err());
    assert!(journal.sync().unwrap_err().to_string().contains("could not be synced"));

    let (mut journal, _) = on_disk(Disk { room: 1 << 20, ..Disk::default() });
    let told = journal.sync_failed(&io::Error::from_raw_os_error(libc::EIO));
    assert!(told.to_string().contains("journal"), "{told}");
    assert!(journal.append(&opened()).is_err());
}

/// Run in release for figures: `cargo test --release --lib journal::log -- --ignored --nocapture`.
#[test]
#[ignore = "measures time"]
fn a_hundred_thousand_lines_are_read_in_time() {
    let records: Vec<_> = (0..100_000).map(|n| sent(n % 10_000 + 1)).collect();
    let bytes = bytes_of(&records);
    // Time of this thread, not of the clock on the wall: the machine may be busy.
    let thread_time = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let started = thread_time();
    assert_eq!(replay(&bytes).records.len(), records.len());
    let took = thread_time() - started;
    println!("{} bytes in {took:?}", bytes.len());
    assert!(took.as_millis() < if cfg!(debug_assertions) { 5_000 } else { 600 });
}

#[test]
fn a_journal_that_cannot_be_read_still_hints_at_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(JOURNAL_NAME);
    drop(Journal::create(dir.path(), &opened()).unwrap());
    let whole = std::fs::read(&path).unwrap();
    for at in [0, 9, 30, 40] {
        let mut bytes = whole.clone();
        bytes[at] = b'#';
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Journal::hint(dir.path(), "key").as_deref(), Some("dir/\u{76ee} file"), "byte {at}");
    }
    std::fs::write(&path, b"\"key\":\"cut off").unwrap();
    assert_eq!(Journal::hint(dir.path(), "key"), None);
    std::fs::write(&path, b"").unwrap();
    assert_eq!(Journal::hint(dir.path(), "key"), None);
}

/// What a checkpoint replaces the journal by is what all later lines follow, and a crash before that leaves the old one.
#[test]
fn a_checkpoint_takes_the_place_of_its_journal_with_every_line_since() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(dir.path(), &opened()).unwrap();
    for part in 1..100 {
        journal.append(&sent(part)).unwrap();
    }
    journal.begin_checkpoint(&[opened(), sent(99)]).unwrap();
    journal.append(&sent(100)).unwrap();
    journal.sync().unwrap();
    journal.sync_handle().unwrap().sync_data().unwrap();
    // As a crash would leave it.
    assert_eq!(Journal::read(dir.path()).unwrap().records.len(), 101);
    assert!(dir.path().join(CHECKPOINT_NAME).exists());
    assert!(journal.finish_checkpoint().unwrap() && !journal.finish_checkpoint().unwrap());
    journal.append(&Record::Reopened).unwrap();
    let expected = [opened(), sent(99), sent(100), Record::Reopened];
    assert_eq!(Journal::read(dir.path()).unwrap().records, expected);
    assert_eq!(journal.len_bytes(), std::fs::metadata(dir.path().join(JOURNAL_NAME)).unwrap().len());
    // One that is given up leaves nothing, and neither does one that a kill cut off.
    journal.begin_checkpoint(&[opened()]).unwrap();
    journal.abandon_checkpoint();
    assert!(!dir.path().join(CHECKPOINT_NAME).exists() && !journal.finish_checkpoint().unwrap());
    journal.begin_checkpoint(&[opened()]).unwrap();
    drop(journal);
    let (_, replay) = Journal::open(dir.path()).unwrap();
    assert_eq!(replay.records, expected);
    assert!(!dir.path().join(CHECKPOINT_NAME).exists());
}
