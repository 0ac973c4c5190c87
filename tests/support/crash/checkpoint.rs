//! Thousands of small writes into an object, so that the journal is written anew again and again (a checkpoint: `journal.new`
//! is written, synced and renamed over `journal`, and the directory is synced), and something that happens to the disk in the
//! middle of that.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;

use super::outcome::Outcome;
use super::{KEY, Place, WAIT, journals_in, wait_until};
use crate::support::disk::boot::Boot;
use crate::support::disk::fault::{DiskFault, DiskRule, DiskWhen, Kind};
use crate::support::disk::power::{Loss, build};
use crate::support::files::random_bytes;
use crate::support::mounted::{MountSpec, Mounted, within};
use crate::support::watch::KeyWatch;

/// Size of the object.
const OBJECT_BYTES: usize = 1 << 20;
/// One-byte writes of a round: three checkpoints, the first behind some 70 KiB of journal, the next ones later each time.
const WRITES: usize = 5000;
/// One fsync after so many writes.
const FSYNC_EVERY: usize = 500;
/// Name of a journal that is being written anew.
pub const NEW_JOURNAL: &str = "/journal.new";

/// Which change of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// The n-th that has to do with a new journal: made, written, synced, renamed.
    NewJournal(u64),
    /// The n-th sync of the upload's directory, which ends a checkpoint.
    DirSync(u64),
    /// The n-th of all.
    Any(u64),
}

impl Point {
    fn when(self) -> DiskWhen {
        match self {
            Point::NewJournal(n) => DiskWhen::change().path_contains(NEW_JOURNAL).skip(n),
            Point::DirSync(n) => DiskWhen::kinds(&[Kind::SyncDir]).path_contains("/uploads/").skip(n),
            Point::Any(n) => DiskWhen::change().skip(n),
        }
    }
}

/// What happens there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    KillBefore,
    KillAfter,
    /// This request and the next two get this error, then the disk is well again.
    Fail(Errno),
    Power(Loss),
}

impl Cut {
    pub const ALL: [Cut; 10] = [
        Cut::KillBefore,
        Cut::KillAfter,
        Cut::Fail(Errno::NOSPC),
        Cut::Fail(Errno::IO),
        Cut::Power(Loss::Everything),
        Cut::Power(Loss::Nothing),
        Cut::Power(Loss::Tail),
        Cut::Power(Loss::Sectors),
        Cut::Power(Loss::Pages),
        Cut::Power(Loss::Bytes),
    ];

    fn fault(self) -> DiskFault {
        match self {
            Cut::KillAfter => DiskFault::KillAfter,
            Cut::Fail(errno) => DiskFault::Fail(errno),
            Cut::KillBefore | Cut::Power(_) => DiskFault::KillBefore,
        }
    }
}

/// Which byte the n-th write changes: all over the object, most blocks have many.
fn place_of(n: usize) -> usize {
    n * 25_013 % OBJECT_BYTES
}

/// The object with the first `n` writes.
fn content(n: usize) -> Vec<u8> {
    let mut bytes = random_bytes(1, OBJECT_BYTES);
    (0..n).for_each(|n| bytes[place_of(n)] ^= 1);
    bytes
}

/// What the writer had done.
#[derive(Clone, Debug, Default)]
struct Written {
    /// Writes that returned.
    accepted: usize,
    /// Of these, when the last fsync that returned began.
    synced: usize,
    /// The first call that failed, with its errno.
    failed: Option<i32>,
}

/// One round: `cut` happens at `point`.
pub fn round(point: Point, cut: Cut, seed: u64) -> Outcome {
    Outcome::of(|outcome| {
        let mut place = Place::new().expect("a place");
        let before = outcome.messages.len();
        run(&mut place, point, cut, seed, outcome);
        if let Some(trouble) = place.disk.trouble() {
            outcome.other(trouble);
        }
        if outcome.messages.len() > before {
            let changes = place.disk.changes();
            let from = changes.len().saturating_sub(25);
            let lines: Vec<String> = changes[from..].iter().map(|change| change.line()).collect();
            let log = place.log_tail();
            outcome.messages.push(format!("  in {cut:?} at {point:?}; last changes:\n{}\n{log}", lines.join("\n")));
        }
    })
}

fn run(place: &mut Place, point: Point, cut: Cut, seed: u64, outcome: &mut Outcome) {
    place.disk.keep_bytes();
    let base = content(0);
    place.world.bucket.put(KEY, &base).expect("an object");
    let mut spec = place.spec(&[]);
    let mut boot = None;
    if let Cut::Power(_) = cut {
        let mut made = Boot::new(&place.world.path("shared")).expect("a shared folder");
        made.restart(&mut spec).expect("boot");
        boot = Some(made);
    }
    let watch = KeyWatch::start(&place.world.bucket, KEY);
    let mut mounted = spec.mount().expect("first mount");
    let when = point.when();
    let when = if let Cut::Fail(_) = cut { DiskWhen { times: Some(3), ..when } } else { when.once() };
    let rule = place.disk.fault(when, cut.fault());
    let written = write_all(&mounted, &rule, cut);
    outcome.bytes_written += written.accepted as u64;
    outcome.fired += u64::from(rule.hits() > 0);
    outcome.checkpoints += place.disk.changes().iter().filter(|change| is_in_place(change)).count() as u64;
    if let Some(errno) = written.failed
        && rule.hits() == 0
    {
        return outcome.other(format!("without a fault: errno {errno}"));
    }
    check_sizes(place, written.accepted, outcome);
    match cut {
        Cut::Fail(errno) => check_on_the_same_mount(place, &mut mounted, &written, errno, outcome),
        Cut::KillBefore | Cut::KillAfter => {
            mounted.kill();
            place.world.wait_quiet();
            place.disk.heal();
            let Ok(mounted) = spec.mount().map_err(|e| outcome.other(format!("does not mount again: {e}"))) else {
                return;
            };
            check_kept(place, &mounted, &spec, written.accepted, written.accepted, outcome);
        }
        Cut::Power(loss) => {
            place.disk.freeze();
            mounted.kill();
            place.world.wait_quiet();
            let image = place.world.path("image");
            build(&place.disk.changes(), loss, seed, &image).expect("an image");
            boot.as_mut().expect("a boot").restart(&mut spec).expect("boot");
            spec.state_dir = image.join("state");
            let Ok(mounted) = spec.mount().map_err(|e| outcome.other(format!("does not mount again: {e}"))) else {
                return;
            };
            check_kept(place, &mounted, &spec, written.synced, written.accepted, outcome);
        }
    }
    if watch.looks() == 0 {
        outcome.other("nobody looked at the key".into());
    }
    for size in watch.half_files(&[OBJECT_BYTES as u64]) {
        outcome.half(format!("an object of {size} bytes was seen"));
    }
}

fn is_in_place(change: &crate::support::disk::record::Change) -> bool {
    change.kind == Kind::Rename && change.path.ends_with(NEW_JOURNAL)
}

/// All writes, until one fails or the fault has come; then the file stays open for as long as the mount lives.
fn write_all(mounted: &Mounted, rule: &DiskRule, cut: Cut) -> Written {
    let (path, rule) = (mounted.path(KEY), rule.clone());
    let progress = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counted = progress.clone();
    let failed = within(WAIT, "thousands of writes", move || {
        let base = content(0);
        let Ok(file) = std::fs::OpenOptions::new().read(true).write(true).open(path) else { return Some(0) };
        let mut failed = None;
        for n in 0..WRITES {
            let at = place_of(n);
            let written = file.write_all_at(&[base[at] ^ 1], at as u64);
            if written.is_ok() {
                counted[0].store(n + 1, Ordering::SeqCst);
            }
            let synced =
                written.and_then(|()| if n % FSYNC_EVERY == FSYNC_EVERY - 1 { file.sync_data() } else { Ok(()) });
            match synced {
                Ok(()) if n % FSYNC_EVERY == FSYNC_EVERY - 1 => counted[1].store(n + 1, Ordering::SeqCst),
                Ok(()) => {}
                Err(e) => {
                    failed = e.raw_os_error().or(Some(0));
                    break;
                }
            }
            // With an error it goes on a little, to see whether the next writes are taken.
            if rule.hits() > 0 && !matches!(cut, Cut::Fail(_)) {
                break;
            }
        }
        // Closed by a program that does not live any more, it is not published.
        std::mem::forget(file);
        failed
    });
    let [accepted, synced] = [0, 1].map(|n| progress[n].load(Ordering::SeqCst));
    Written { accepted, synced, failed }
}

/// The journal stays small all the time.
fn check_sizes(place: &Place, writes: usize, outcome: &mut Outcome) {
    for dir in journals_in(&place.disk.backing().join("state")) {
        let bytes = std::fs::metadata(dir.join("journal")).map_or(0, |meta| meta.len());
        // A checkpoint tells each written range, with two numbers as text.
        let allowed = (64 << 10) + 2 * ((8 << 10) + 48 * writes as u64);
        if bytes > allowed {
            outcome.other(format!("{bytes} bytes of journal after {writes} writes, allowed {allowed}"));
        }
    }
}

/// The disk had no room, or failed, for a moment: what was accepted is shown, and the close publishes it.
fn check_on_the_same_mount(
    place: &Place,
    mounted: &mut Mounted,
    written: &Written,
    errno: Errno,
    outcome: &mut Outcome,
) {
    if let Some(told) = written.failed
        && told != errno.raw_os_error()
        && told != libc::EIO
    {
        outcome.other(format!("the writer was told {told} for {errno:?}"));
    }
    check_shown(mounted.path(KEY).as_path(), written.accepted, written.accepted, outcome);
    // A new mount on the disk that is well again has it all the same.
    place.disk.heal();
    let spec = mounted.spec().clone();
    mounted.kill();
    place.world.wait_quiet();
    match spec.mount() {
        Ok(mounted) => check_kept(place, &mounted, &spec, written.accepted, written.accepted, outcome),
        Err(e) => outcome.other(format!("does not mount again: {e}")),
    }
}

/// After a mount: nothing is published, the first `certain` writes are shown, of the others up to `accepted` and one more each
/// is there or not, and whoever goes on publishes the file.
fn check_kept(
    place: &Place,
    mounted: &Mounted,
    spec: &MountSpec,
    certain: usize,
    accepted: usize,
    outcome: &mut Outcome,
) {
    let is_settled = || {
        let state = mounted.file_status(KEY).and_then(|entry| entry["state"].as_str().map(str::to_owned));
        state.is_none_or(|state| matches!(state.as_str(), "interrupted" | "failed" | "conflict" | "idle" | "done"))
    };
    if !wait_until(WAIT, is_settled) {
        return outcome.hang(format!("not settled: {:?}", mounted.file_status(KEY)));
    }
    let status = mounted.status().to_string();
    if status.contains("\"failed\"") || status.contains("\"conflict\"") {
        return outcome.lost(certain as u64, format!("the file is not usable any more: {status}"));
    }
    check_shown(mounted.path(KEY).as_path(), certain, accepted, outcome);
    match place.world.bucket.get(KEY) {
        Ok(bytes) if bytes == content(0) => {}
        Ok(bytes) => outcome.half(format!("an object of {} bytes was published that nobody closed", bytes.len())),
        Err(e) => outcome.lost(OBJECT_BYTES as u64, format!("the object is gone: {e}")),
    }
    // Written anew as a whole, it is whole whatever the disk lost.
    let (path, whole) = (mounted.path(KEY), content(WRITES));
    let again = within(WAIT, "the file written anew", move || std::fs::write(path, whole));
    if let Err(e) = again {
        outcome.other(format!("the file written anew: {e}"));
    }
    if !wait_until(WAIT, || journals_in(&real_state(place, spec)).is_empty()) {
        return outcome.hang(format!("left after the file was written anew: {:?}", mounted.file_status(KEY)));
    }
    match place.world.bucket.get(KEY) {
        Ok(bytes) if bytes == content(WRITES) => {}
        _ => outcome.half("the object is not what was written at the end".into()),
    }
}

/// The state directory past the disk.
fn real_state(place: &Place, spec: &MountSpec) -> std::path::PathBuf {
    match spec.state_dir.strip_prefix(place.disk.dir()) {
        Ok(below) => place.disk.backing().join(below),
        Err(_) => spec.state_dir.clone(),
    }
}

fn check_shown(path: &Path, certain: usize, accepted: usize, outcome: &mut Outcome) {
    let path = path.to_owned();
    let shown = within(WAIT, "reading", move || read_blocks(&path));
    if shown.len() != OBJECT_BYTES {
        return outcome.lost(certain as u64, format!("{} bytes are shown, not {OBJECT_BYTES}", shown.len()));
    }
    let (base, mut order) = (content(0), vec![usize::MAX; OBJECT_BYTES]);
    (0..WRITES).for_each(|n| order[place_of(n)] = n);
    let (mut lost, mut strange) = (Vec::new(), Vec::new());
    for at in 0..OBJECT_BYTES {
        let (old, new) = (base[at], base[at] ^ 1);
        match shown[at] {
            Some(byte) if order[at] < certain && byte != new => lost.push(order[at]),
            None if order[at] < certain => lost.push(order[at]),
            // What nobody wrote is the object's, and one write more than were told may have been taken.
            Some(byte) if byte != old && !(byte == new && order[at] <= accepted) => strange.push(at),
            _ => {}
        }
    }
    if let Some(first) = lost.iter().min() {
        outcome.lost(lost.len() as u64, format!("{} of {certain} writes are lost, the first is {first}", lost.len()));
    }
    if let Some(first) = strange.first() {
        outcome.other(format!("{} bytes shown are neither old nor new, the first at {first}", strange.len()));
    }
}

/// The bytes of a file; `None`: cannot be read.
fn read_blocks(path: &Path) -> Vec<Option<u8>> {
    let Ok(file) = std::fs::File::open(path) else { return Vec::new() };
    let len = file.metadata().map_or(0, |meta| meta.len() as usize);
    let mut shown = Vec::with_capacity(len);
    for at in (0..len).step_by(4096) {
        let mut block = vec![0; 4096.min(len - at)];
        match file.read_exact_at(&mut block, at as u64) {
            Ok(()) => shown.extend(block.into_iter().map(Some)),
            Err(_) => shown.extend(block.iter().map(|_| None)),
        }
    }
    shown
}
