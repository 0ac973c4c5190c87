//! Time until a mount answers that has many unfinished uploads in its journal.
//!
//! The parts are really in BOS, but of 100 bytes each, where the part plan of the journal has 5 MiB: the lines of the
//! journal are true to what BOS holds (sums, ETags, lengths) and are read by the same code, but such an upload could not
//! be completed. So its writers count as killed (`interrupted`), which a mount shows and leaves alone. Beside them stand
//! a few closed files with whole parts, one part not yet sent, which each mount must finish behind its answer.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bosfs::bos::client::ObjectHeaders;
use bosfs::journal::record::{FORMAT, SyncedLayer};
use bosfs::journal::state_dir::read_identity;
use bosfs::journal::{Journal, Record, StateDir, boot_id};
use bosfs::object::{ByteRange, Checksum, Condition, ETag, FileAttrs, ObjectKey, PartNumber, Timestamp, UploadId};
use bosfs::write::block_map::BLOCK_BYTES;
use bosfs::write::extents::Extents;
use bosfs::write::part_plan::PartPlan;
use bosfs::write::spool::Spool;

use crate::report::{Limit, Report};
use crate::support::fault::HoldAt;
use crate::support::files::{fill_random, random_bytes};
use crate::support::mounted::run as run_command;
use crate::support::{BUCKET, Bucket, Call, Mounted, When, World};
use crate::{Sizes, WAIT, succeeded, text};

const PARTS_PER_UPLOAD: u32 = 1000;
const TINY_BYTES: usize = 100;
const PART_BYTES: u64 = 5 << 20;
const ARGS: [&str; 2] = ["--part-size", "5MiB"];
/// Closed files of every remount.
const CLOSED: u32 = 4;
/// Size of a closed file: two parts and a tail.
const CLOSED_BYTES: u64 = 2 * PART_BYTES + 1000;
const ROUNDS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(1);
const THREADS: u32 = 4;

pub fn run(sizes: &Sizes, report: &mut Report) {
    let uploads = sizes.uploads;
    let title = format!("mount with {} journaled parts in {uploads} uploads", uploads * PARTS_PER_UPLOAD);
    report.scene(&title, |world, report| scene(world, report, uploads));
}

fn scene(world: &World, report: &mut Report, uploads: u32) -> Result<(), String> {
    // The first mount makes the state directory.
    let empty = remount(world, 0)?;
    report.note("mount with an empty journal, until ls answers: ms", empty.1.as_millis());
    drop(empty);
    let start = Instant::now();
    let dirs = in_state_dir(world, |state| make_interrupted(world, state, uploads))?;
    report.note("parts uploaded through the API and journaled: s", start.elapsed().as_secs());
    let journal_bytes: u64 = dirs.iter().map(|dir| std::fs::metadata(dir.join("journal")).map_or(0, |m| m.len())).sum();
    report.note("bytes of journals", journal_bytes);
    let held = world.bucket.uploads("upload-").map_err(text)?;
    report.check("unfinished uploads in BOS", held.len() as u64, Limit::Exactly(uploads.into()));

    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let closed = in_state_dir(world, |state| make_closed(world, state, round))?;
        world.proxy.take_counts();
        let (mount, time) = remount(world, uploads + (round + 1) * CLOSED)?;
        report.note(&format!("remount {}: ms until ls answers", round + 1), time.as_millis());
        times.push(time);
        for key in &closed {
            world.wait_object(key, CLOSED_BYTES, WAIT);
            mount.wait_settled(key, WAIT);
        }
        let counts = world.proxy.counts();
        report.check(
            "  ListParts behind it (one per closed file)",
            counts.requests(Call::ListParts),
            Limit::Exactly(CLOSED.into()),
        );
        report.check(
            "  parts sent (one per closed file)",
            counts.requests(Call::UploadPart),
            Limit::Exactly(CLOSED.into()),
        );
        report.check("  completes", counts.requests(Call::Complete), Limit::Exactly(CLOSED.into()));
        report.note("  requests in all", counts.requests_all());
        let right = closed.iter().all(|key| is_right(&world.bucket, key));
        report.check_that("  closed files are whole in BOS", right);
        if round + 1 == ROUNDS {
            let listed = mount.status().to_string().matches("\"state\":\"interrupted\"").count() as u64;
            report.check("interrupted files in status", listed, Limit::Exactly(uploads.into()));
        }
    }
    times.sort_unstable();
    report.check_time("median of the remounts", times[times.len() / 2], LIMIT);

    world.proxy.take_counts();
    let mount = remount(world, uploads + ROUNDS * CLOSED)?.0;
    let output = run_command(&mut mount.command(&["uploads", "list", BUCKET, "--json"]), WAIT);
    let listed = succeeded("uploads list", output)?;
    let ours = listed.matches("\"ours\"").count() as u64;
    report.check("bosfs uploads list: ours", ours, Limit::Exactly(uploads.into()));
    report.check(
        "bosfs uploads list: ListParts",
        world.proxy.counts().requests(Call::ListParts),
        Limit::Exactly(uploads.into()),
    );
    drop(mount);

    all_closed(world, report, &dirs, uploads)
}

/// The same uploads as if their writers had closed them: each asks BOS at once what it holds. The answers are held back,
/// since what would follow could not succeed (see the module); the mount must not wait for them.
fn all_closed(world: &World, report: &mut Report, dirs: &[PathBuf], uploads: u32) -> Result<(), String> {
    for dir in dirs {
        let size = u64::from(PARTS_PER_UPLOAD) * PART_BYTES;
        let closed = Record::Closed { publication: 1, size, attrs: attrs(), layer: 1, durable: false, synced: false };
        Journal::open(dir).and_then(|(mut journal, _)| journal.append(&closed)).map_err(text)?;
    }
    world.proxy.take_counts();
    let rule = world.proxy.hold(When::call(Call::ListParts), HoldAt::BeforeAnswer);
    let (mount, time) = remount(world, uploads + ROUNDS * CLOSED)?;
    report.check_time("remount with all of them closed, ListParts unanswered", time, LIMIT);
    let all_asked = rule.wait_hits(uploads.into(), WAIT);
    let counts = world.proxy.counts();
    report.check(
        "  ListParts that follow (one per upload)",
        counts.requests(Call::ListParts),
        Limit::Exactly(uploads.into()),
    );
    report.check_that("  all uploads asked", all_asked);
    let asked = counts.requests(Call::ListParts) + counts.requests(Call::HeadObject);
    report.check("  other requests but HEADs of finished files", counts.requests_all() - asked, Limit::AtMost(5));
    drop(mount);
    world.proxy.clear_rules();
    Ok(())
}

/// Mounts, and the time until the root lists `names` names.
fn remount(world: &World, names: u32) -> Result<(Mounted, Duration), String> {
    let start = Instant::now();
    let mount = world.spec(&ARGS).mount().map_err(text)?;
    let found = std::fs::read_dir(mount.dir()).map_err(text)?.count();
    let time = start.elapsed();
    match found == names as usize {
        true => Ok((mount, time)),
        false => Err(format!("ls shows {found} names instead of {names}")),
    }
}

/// Does `job` with the lease of the state directory, as the mount did that made it.
fn in_state_dir<T>(world: &World, job: impl FnOnce(&StateDir) -> Result<T, String>) -> Result<T, String> {
    let path = world.state_dir();
    let identity = read_identity(&path).ok_or("the state directory has no identity")?;
    job(&StateDir::open(&path, &identity).map_err(text)?)
}

fn attrs() -> FileAttrs {
    FileAttrs { mode: 0o100_644, uid: 0, gid: 0, mtime: Timestamp::now() }
}

/// Journal of a new file at the state after Initiate, with a spool of `size` bytes that are all accounted for.
fn begin(state: &StateDir, key: &str, upload_id: &str, size: u64) -> Result<(PathBuf, Journal, Spool), String> {
    let (journal_id, dir) = state.create_upload().map_err(text)?;
    let spool = Spool::create(&dir, size).map_err(text)?;
    let mut extents = Extents::create(&dir, 0).map_err(text)?;
    let write = extents.plan_write(0, size, size);
    extents.apply_write(&write).map_err(text)?;
    let opened = Record::Opened {
        format: FORMAT,
        journal_id,
        key: ObjectKey::parse(key).map_err(text)?,
        base: None,
        condition: Condition::Absent,
        headers: ObjectHeaders::default(),
        attrs: attrs(),
        boot_id: boot_id(),
        at: Timestamp::now().sec,
    };
    let mut journal = Journal::create(&dir, &opened).map_err(text)?;
    journal.append(&Record::Initiating).map_err(text)?;
    let initiated =
        Record::Initiated { upload_id: UploadId::new(upload_id), plan: PartPlan::growing(PART_BYTES), key: None };
    journal.append(&initiated).map_err(text)?;
    Ok((dir, journal, spool))
}

/// Uploads a part past the mount and journals it.
fn send(
    bucket: &Bucket,
    journal: &mut Journal,
    key: &str,
    upload_id: &str,
    part: u32,
    body: &[u8],
) -> Result<(), String> {
    let sum = Checksum::of(body);
    let number = PartNumber::new(part).ok_or("no part number")?;
    journal.append(&Record::Sending { part: number, sum }).map_err(text)?;
    let etag = ETag::new(&bucket.upload_part(key, upload_id, part, body).map_err(text)?);
    journal.append(&Record::Sent { part: number, sum, etag, kept: false }).map_err(text)
}

/// Uploads of tiny parts whose writers were killed. Returns their directories.
fn make_interrupted(world: &World, state: &StateDir, uploads: u32) -> Result<Vec<PathBuf>, String> {
    let make = |bucket: &Bucket, n: u32| {
        let key = format!("upload-{n:04}");
        let upload_id = bucket.initiate(&key).map_err(text)?;
        let (dir, mut journal, _spool) = begin(state, &key, &upload_id, u64::from(PARTS_PER_UPLOAD) * PART_BYTES)?;
        let mut body = [0; TINY_BYTES];
        for part in 1..=PARTS_PER_UPLOAD {
            fill_random(u64::from(n), u64::from(part) * TINY_BYTES as u64, &mut body);
            send(bucket, &mut journal, &key, &upload_id, part, &body)?;
        }
        let killed = Record::Interrupted { process: "cp".into(), pid: 1, signal: 9 };
        journal.append(&killed).map_err(text)?;
        Ok(dir)
    };
    let work = |first: u32| {
        let bucket = world.bucket.clone();
        move || (first..uploads).step_by(THREADS as usize).map(|n| make(&bucket, n)).collect::<Result<Vec<_>, String>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(work(first))).collect();
        let mut dirs = Vec::new();
        for thread in threads {
            dirs.extend(thread.join().expect("no panic")?);
        }
        Ok(dirs)
    })
}

/// Closed files (write-back) with all but one part in BOS. Returns their keys.
fn make_closed(world: &World, state: &StateDir, round: u32) -> Result<Vec<String>, String> {
    (0..CLOSED)
        .map(|n| {
            let key = format!("closed-{round}-{n}");
            let upload_id = world.bucket.initiate(&key).map_err(text)?;
            let (dir, mut journal, spool) = begin(state, &key, &upload_id, CLOSED_BYTES)?;
            let bytes = closed_bytes(&key);
            spool.write_at(0, &bytes).map_err(text)?;
            let plan = PartPlan::growing(PART_BYTES);
            for number in plan.parts_in(ByteRange::new(0, CLOSED_BYTES)).filter(|number| number.get() != 2) {
                let range = plan.range_in(number, CLOSED_BYTES);
                let body = &bytes[range.start as usize..range.end as usize];
                send(&world.bucket, &mut journal, &key, &upload_id, number.get(), body)?;
            }
            let closed = Record::Closed {
                publication: 1,
                size: CLOSED_BYTES,
                attrs: attrs(),
                layer: 1,
                durable: false,
                synced: false,
            };
            journal.append(&closed).map_err(text)?;
            let blocks = vec![ByteRange::new(0, CLOSED_BYTES.div_ceil(BLOCK_BYTES))];
            let layers = vec![SyncedLayer { layer: 1, size: CLOSED_BYTES, blocks }];
            journal.append(&Record::Synced { size: CLOSED_BYTES, closes: 1, sync: 0, layers }).map_err(text)?;
            sync(&dir, &mut journal)?;
            Ok(key)
        })
        .collect()
}

fn sync(dir: &Path, journal: &mut Journal) -> Result<(), String> {
    journal.sync().map_err(text)?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(text)
}

fn closed_bytes(key: &str) -> Vec<u8> {
    random_bytes(key.bytes().fold(0, |seed, byte| seed * 31 + u64::from(byte)), CLOSED_BYTES as usize)
}

fn is_right(bucket: &Bucket, key: &str) -> bool {
    bucket.get(key).is_ok_and(|found| found == closed_bytes(key))
}
