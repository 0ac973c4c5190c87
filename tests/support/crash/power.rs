//! Power loss at the n-th change of the state directory: bosfs is killed there, what the disk may hold then is built from the
//! record of its changes, and bosfs is mounted on that in another boot. BOS stays what it was.

use std::path::{Path, PathBuf};

use super::outcome::Outcome;
use super::steps::{Told, Writer, copy, patch, program};
use super::{KEY, Place, SIZE, WAIT, journals_in, wait_until};
use crate::support::disk::boot::Boot;
use crate::support::disk::fault::{DiskFault, DiskRule, DiskWhen};
use crate::support::disk::power::{Loss, build};
use crate::support::files::random_bytes;
use crate::support::mounted::{Mounted, within};
use crate::support::watch::KeyWatch;

const SMALL: usize = 100_000;
const MIB: u64 = 1 << 20;
/// What [`Story::FsyncOver`] writes into the object: before its fsync, and after it.
const SYNCED_AT: u64 = MIB;
const LATER_AT: u64 = 6 * MIB;

/// What programs had done when the power failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Story {
    /// A file of four parts is written and closed; close means synced.
    CloseWriteBack,
    CloseSmallWriteBack,
    /// Close means complete in BOS; the local disk is never synced.
    Close,
    CloseSmall,
    /// As [`Story::CloseSmall`], with an fsync before the close.
    FsyncSmall,
    /// Half of a new file is written and synced, the rest written only; nobody closes it.
    FsyncNew,
    /// The same within an object.
    FsyncOver,
    RenameObject,
    RenameDirectory,
}

impl Story {
    pub const ALL: [Story; 9] = [
        Story::CloseWriteBack,
        Story::CloseSmallWriteBack,
        Story::Close,
        Story::CloseSmall,
        Story::FsyncSmall,
        Story::FsyncNew,
        Story::FsyncOver,
        Story::RenameObject,
        Story::RenameDirectory,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Story::CloseWriteBack => "power: close, write-back",
            Story::CloseSmallWriteBack => "power: small, write-back",
            Story::Close => "power: close",
            Story::CloseSmall => "power: close, small",
            Story::FsyncSmall => "power: fsync and close, small",
            Story::FsyncNew => "power: fsync of a new file",
            Story::FsyncOver => "power: fsync in an object",
            Story::RenameObject => "power: rename of an object",
            Story::RenameDirectory => "power: rename of a directory",
        }
    }

    fn is_small(self) -> bool {
        use Story::*;
        matches!(self, CloseSmall | CloseSmallWriteBack | FsyncSmall | RenameObject | RenameDirectory)
    }

    fn is_write_back(self) -> bool {
        matches!(self, Story::CloseWriteBack | Story::CloseSmallWriteBack)
    }

    /// One round: the power fails right before change `n`; `loss` and `seed` say what the disk keeps.
    pub fn round(self, n: u64, loss: Loss, seed: u64) -> Outcome {
        Outcome::of(|outcome| {
            let mut place = Place::new().expect("a place");
            place.disk.keep_bytes();
            let before = outcome.messages.len();
            Round::new(self, &mut place).run(n, loss, seed, outcome);
            if let Some(trouble) = place.disk.trouble() {
                outcome.other(trouble);
            }
            if outcome.messages.len() > before {
                let changes = place.disk.changes();
                let from = changes.len().saturating_sub(25);
                let lines: Vec<String> = changes[from..].iter().map(|change| change.line()).collect();
                outcome.messages.push(format!(
                    "  in {} before change {n}, {loss:?}, seed {seed}; last changes:\n{}\n{}",
                    self.name(),
                    lines.join("\n"),
                    place.log_tail()
                ));
            }
        })
    }
}

struct Round<'a> {
    story: Story,
    place: &'a mut Place,
    source: PathBuf,
    content: Vec<u8>,
    base: Option<Vec<u8>>,
}

impl<'a> Round<'a> {
    fn new(story: Story, place: &'a mut Place) -> Self {
        let len = if story.is_small() { SMALL } else { SIZE as usize };
        let mut content = random_bytes(1, len);
        let mut base = None;
        let bucket = &place.world.bucket;
        match story {
            Story::FsyncOver => {
                let before = random_bytes(7, len);
                let mut after = before.clone();
                for at in [SYNCED_AT, LATER_AT].map(|at| at as usize) {
                    after[at..at + MIB as usize].copy_from_slice(&content[at..at + MIB as usize]);
                }
                content = after;
                bucket.put(KEY, &before).expect("an object");
                base = Some(before);
            }
            Story::RenameObject => drop(bucket.put(KEY, &content).expect("an object")),
            Story::RenameDirectory => {
                for n in 1..=3 {
                    bucket.put(&format!("from/{n}"), &random_bytes(n, SMALL)).expect("an object");
                }
            }
            _ => {}
        }
        let source = place.world.path("source");
        std::fs::write(&source, &content).expect("source");
        Self { story, place, source, content, base }
    }

    fn run(&mut self, n: u64, loss: Loss, seed: u64, outcome: &mut Outcome) {
        let args: &[&str] = if self.story.is_write_back() { &["--write-back"] } else { &[] };
        let mut spec = self.place.spec(args);
        let mut boot = Boot::new(&self.place.world.path("shared")).expect("a shared folder");
        boot.restart(&mut spec).expect("boot");
        let watch = KeyWatch::start(&self.place.world.bucket, KEY);
        let mut mounted = spec.mount().expect("first mount");
        let rule = self.place.disk.fault(DiskWhen::change().skip(n).once(), DiskFault::KillBefore);
        let told = self.act(&mounted, &rule);
        outcome.bytes_written += told.bytes;
        let idle = || rule.hits() > 0 || !told.ok || journals_in(&self.place.disk.backing().join("state")).is_empty();
        if !self.story.has_held_writer() && !wait_until(WAIT, idle) {
            return outcome.hang("neither cut off nor done".into());
        }
        outcome.fired += u64::from(rule.hits() > 0);
        // Behind the last change the power fails all the same.
        self.place.disk.freeze();
        mounted.kill();
        self.place.world.wait_quiet();
        let image = self.place.world.path("image");
        build(&self.place.disk.changes(), loss, seed, &image).expect("an image");
        boot.restart(&mut spec).expect("boot");
        spec.state_dir = image.join("state");
        let mounted = match spec.mount() {
            Ok(mounted) => mounted,
            Err(e) => return outcome.other(format!("does not mount again: {e}")),
        };
        self.check(&mounted, &told, &spec.state_dir, outcome);
        let sizes: Vec<u64> =
            [self.content.len() as u64].into_iter().chain(self.base.iter().map(|b| b.len() as u64)).collect();
        if watch.looks() == 0 {
            outcome.other("nobody looked at the key".into());
        }
        for size in watch.half_files(&sizes) {
            outcome.half(format!("an object of {size} bytes was seen"));
        }
        drop(mounted);
    }

    fn act(&self, mounted: &Mounted, rule: &DiskRule) -> Told {
        let path = |name: &str| mounted.path(name).to_string_lossy().into_owned();
        let target = mounted.path(KEY);
        match self.story {
            Story::RenameObject => program(&["mv", &path(KEY), &path("renamed")]),
            Story::RenameDirectory => program(&["mv", "-T", &path("from"), &path("to")]),
            Story::FsyncSmall => {
                let all = format!("0:{SMALL}");
                Writer::start(&self.source, &target, true, &[&all, "fsync"]).end()
            }
            Story::FsyncNew | Story::FsyncOver => {
                let (first, second) = if self.story == Story::FsyncNew {
                    (format!("0:{}", 6 * MIB), format!("{}:{}", 6 * MIB, 6 * MIB))
                } else {
                    (format!("{SYNCED_AT}:{MIB}"), format!("{LATER_AT}:{MIB}"))
                };
                let acts = [first.as_str(), "fsync", second.as_str(), "hold"];
                let mut writer = Writer::start(&self.source, &target, self.story == Story::FsyncNew, &acts);
                let held = writer.wait_for("held");
                assert!(held || rule.hits() > 0, "the writer stopped before: {:?}", writer.told);
                // It is in the middle of its file when the power fails.
                self.place.disk.freeze();
                mounted.signal(rustix::process::Signal::KILL);
                let told = writer.end();
                Told { ok: false, closed: false, ..told }
            }
            _ => copy(&self.source, &target),
        }
    }

    fn check(&self, mounted: &Mounted, told: &Told, state: &Path, outcome: &mut Outcome) {
        match self.story {
            Story::RenameObject => {
                let names = [(KEY.to_owned(), "renamed".to_owned(), self.content.clone())];
                self.check_moved(&names, state, outcome);
            }
            Story::RenameDirectory => {
                let names = [1, 2, 3].map(|n| (format!("from/{n}"), format!("to/{n}"), random_bytes(n, SMALL)));
                self.check_moved(&names, state, outcome);
            }
            _ => self.check_file(mounted, told, state, outcome),
        }
        let status = mounted.status().to_string();
        if status.contains("\"failed\"") || status.contains("\"conflict\"") {
            outcome.other(format!("status: {status}"));
        }
    }

    fn check_file(&self, mounted: &Mounted, told: &Told, state: &Path, outcome: &mut Outcome) {
        let bucket = &self.place.world.bucket;
        if told.ok && !self.story.is_write_back() {
            // Closed means complete, before and after.
            self.check_object(outcome);
        }
        let promised = match self.story {
            _ if told.ok => 0..self.content.len(),
            Story::FsyncOver if told.synced > 0 => SYNCED_AT as usize..(SYNCED_AT + MIB) as usize,
            Story::FsyncOver => 0..0,
            _ => 0..told.synced as usize,
        };
        // Journals of what is in BOS already are put away behind the mount.
        let is_settled = || {
            let entry = mounted.file_status(KEY);
            entry.is_none_or(|e| {
                matches!(e["state"].as_str(), Some("interrupted" | "failed" | "conflict" | "done" | "idle"))
            })
        };
        if !wait_until(WAIT, is_settled) {
            return outcome.hang(format!("not settled: {:?}", mounted.file_status(KEY)));
        }
        self.check_shown(mounted.path(KEY), promised, outcome);
        match bucket.get(KEY) {
            Ok(bytes) if bytes == self.content || self.base.as_ref() == Some(&bytes) => {}
            Ok(bytes) => outcome.half(format!("the object has {} bytes that nobody closed", bytes.len())),
            Err(_) if self.base.is_none() && !(told.ok && self.story.is_write_back()) => {}
            Err(e) => outcome.lost(self.content.len() as u64, format!("the object is gone: {e}")),
        }
        if bucket.get(KEY).is_ok_and(|bytes| bytes == self.content) && journals_in(state).is_empty() {
            return;
        }
        let again = if self.base.is_some() {
            patch(&self.source, &mounted.path(KEY), 0, SIZE)
        } else {
            copy(&self.source, &mounted.path(KEY))
        };
        if !again.ok {
            outcome.other(format!("the same again: {again:?}"));
        }
        if !wait_until(WAIT, || journals_in(state).is_empty()) {
            return outcome.hang(format!(
                "left after the same again: {:?} {:?}",
                journals_in(state),
                mounted.file_status(KEY)
            ));
        }
        self.check_object(outcome);
    }

    /// The promised bytes are there; every other byte that is shown is old or new, or cannot be read.
    fn check_shown(&self, path: PathBuf, promised: std::ops::Range<usize>, outcome: &mut Outcome) {
        let shown = within(WAIT, "reading", move || read_pieces(&path));
        let mut lost = 0;
        for at in promised.clone() {
            lost += u64::from(shown.get(at).copied().flatten() != Some(self.content[at]));
        }
        if lost > 0 {
            let first = promised.clone().find(|at| shown.get(*at).copied().flatten() != Some(self.content[*at]));
            outcome.lost(
                lost,
                format!(
                    "{lost} of the promised bytes {promised:?} are lost, the first {first:?}; {} shown",
                    shown.len()
                ),
            );
        }
        let is_known = |(at, byte): (usize, &Option<u8>)| {
            let Some(byte) = byte else { return true };
            self.content.get(at) == Some(byte) || self.base.as_ref().is_some_and(|base| base.get(at) == Some(byte))
        };
        let wrong: Vec<usize> = shown.iter().enumerate().filter(|pair| !is_known(*pair)).map(|(at, _)| at).collect();
        if let (Some(first), Some(last)) = (wrong.first(), wrong.last()) {
            outcome.other(format!(
                "{} of {} bytes shown are neither old nor new, from {first} to {last}",
                wrong.len(),
                shown.len()
            ));
        }
    }

    fn check_object(&self, outcome: &mut Outcome) {
        match self.place.world.bucket.get(KEY) {
            Ok(bytes) if bytes == self.content => {}
            Ok(bytes) => outcome.half(format!("the object has {} bytes that are not what was closed", bytes.len())),
            Err(e) => outcome.lost(self.content.len() as u64, format!("the object is not complete: {e}")),
        }
    }

    /// Every content is under one of its names, whole; a name that is there twice has the same content twice.
    fn check_moved(&self, names: &[(String, String, Vec<u8>)], state: &Path, outcome: &mut Outcome) {
        if !wait_until(WAIT, || journals_in(state).is_empty()) {
            return outcome.hang(format!("the move is not settled: {:?}", journals_in(state)));
        }
        for (from, to, content) in names {
            let bucket = &self.place.world.bucket;
            let there: Vec<Vec<u8>> = [from, to].into_iter().filter_map(|key| bucket.get(key).ok()).collect();
            if there.is_empty() {
                outcome.lost(content.len() as u64, format!("{from} is lost"));
            }
            if there.iter().any(|bytes| bytes != content) {
                outcome.half(format!("{from} or {to} is wrong"));
            }
        }
    }
}

impl Story {
    fn has_held_writer(self) -> bool {
        matches!(self, Story::FsyncNew | Story::FsyncOver)
    }
}

/// The bytes of a file; `None`: cannot be read (EIO).
fn read_pieces(path: &Path) -> Vec<Option<u8>> {
    use std::os::unix::fs::FileExt as _;
    let Ok(file) = std::fs::File::open(path) else { return Vec::new() };
    let len = file.metadata().map_or(0, |meta| meta.len());
    let mut shown = Vec::with_capacity(len as usize);
    while (shown.len() as u64) < len {
        let mut piece = vec![0; (len - shown.len() as u64).min(64 << 10) as usize];
        match file.read_exact_at(&mut piece, shown.len() as u64) {
            Ok(()) => shown.extend(piece.into_iter().map(Some)),
            Err(_) => shown.extend(piece.iter().map(|_| None)),
        }
    }
    shown
}

/// A loss and a seed for the k-th round.
pub fn loss_of(k: u64) -> Loss {
    Loss::ALL[(k % Loss::ALL.len() as u64) as usize]
}
