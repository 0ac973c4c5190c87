//! SIGKILL at the n-th change that bosfs makes in its state directory.

use std::io::Write as _;
use std::path::PathBuf;

use super::outcome::Outcome;
use super::steps::{Told, copy, patch, program};
use super::{KEY, PART, Place, SIZE, WAIT, wait_until};
use crate::support::call::Call;
use crate::support::disk::fault::{DiskFault, DiskRule, DiskWhen};
use crate::support::fault::{HoldAt, When};
use crate::support::files::random_bytes;
use crate::support::mounted::{Mounted, within};
use crate::support::watch::KeyWatch;

const SMALL: usize = 100_000;
const TEMPORARY: &str = ".huge.iso.Ab12Cd";
/// The part that [`Scenario::OverwritePart`] changes: 2 MiB within part 2.
const PATCH_AT: u64 = 6 << 20;
const PATCH_BYTES: usize = 2 << 20;

/// What goes on when bosfs is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scenario {
    FirstMount,
    CopyParts,
    CopyPartsWriteBack,
    CopySmall,
    OverwritePart,
    RenameObject,
    RenameTemporary,
    UnlinkHalf,
    RenameDirectory,
    Attributes,
    Recovery,
}

impl Scenario {
    pub const ALL: [Scenario; 11] = [
        Scenario::FirstMount,
        Scenario::CopyParts,
        Scenario::CopyPartsWriteBack,
        Scenario::CopySmall,
        Scenario::OverwritePart,
        Scenario::RenameObject,
        Scenario::RenameTemporary,
        Scenario::UnlinkHalf,
        Scenario::RenameDirectory,
        Scenario::Attributes,
        Scenario::Recovery,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Scenario::FirstMount => "first mount",
            Scenario::CopyParts => "cp of 4 parts",
            Scenario::CopyPartsWriteBack => "cp of 4 parts, write-back",
            Scenario::CopySmall => "cp of a small file",
            Scenario::OverwritePart => "overwrite of one part",
            Scenario::RenameObject => "rename of an object",
            Scenario::RenameTemporary => "rename of a temporary",
            Scenario::UnlinkHalf => "unlink of a half-sent file",
            Scenario::RenameDirectory => "rename of a directory",
            Scenario::Attributes => "chmod",
            Scenario::Recovery => "recovery",
        }
    }

    fn args(self) -> &'static [&'static str] {
        match self {
            Scenario::CopyPartsWriteBack | Scenario::Recovery => &["--write-back"],
            _ => &[],
        }
    }

    /// One round: killed at change `n` (from 0), before it is carried out, or after it and before the answer.
    pub fn round(self, n: u64, after: bool) -> Outcome {
        Outcome::of(|outcome| {
            let place = Place::new().expect("a place");
            let before = outcome.messages.len();
            Round::new(self, &place).run(n, after, outcome);
            if let Some(trouble) = place.disk.trouble() {
                outcome.other(trouble);
            }
            if outcome.messages.len() > before {
                let point = format!("{} at change {n} ({})", self.name(), if after { "after" } else { "before" });
                let log = place.log_tail();
                outcome.messages.push(format!("  in {point}\n{log}\n{}", place.world.proxy.counts().log_text()));
            }
        })
    }
}

/// How the programs of a round ended.
#[derive(Clone, Debug, Default)]
struct Acts {
    write: Told,
    /// The rename, the unlink or the chmod.
    second: Told,
}

struct Round<'a> {
    scenario: Scenario,
    place: &'a Place,
    source: PathBuf,
    content: Vec<u8>,
    /// What the key had before.
    base: Option<Vec<u8>>,
}

impl<'a> Round<'a> {
    fn new(scenario: Scenario, place: &'a Place) -> Self {
        let bucket = &place.world.bucket;
        let put = |key: &str, seed, len| {
            let bytes = random_bytes(seed, len);
            bucket.put(key, &bytes).expect("an object");
            bytes
        };
        let len = if scenario == Scenario::CopySmall { SMALL } else { SIZE as usize };
        let mut content = random_bytes(1, len);
        let mut base = None;
        match scenario {
            Scenario::OverwritePart => {
                let before = put(KEY, 7, SIZE as usize);
                let patch = random_bytes(1, PATCH_BYTES);
                content = before.clone();
                content[PATCH_AT as usize..][..PATCH_BYTES].copy_from_slice(&patch);
                base = Some(before);
            }
            Scenario::RenameObject | Scenario::Attributes => content = put(KEY, 1, SMALL),
            Scenario::RenameDirectory => {
                (1..=3).for_each(|n| drop(put(&format!("from/{n}"), n, SMALL)));
            }
            _ => {}
        }
        let source = place.world.path("source");
        std::fs::write(&source, &content).expect("source");
        Self { scenario, place, source, content, base }
    }

    fn run(&self, n: u64, after: bool, outcome: &mut Outcome) {
        let world = &self.place.world;
        let spec = self.place.spec(self.scenario.args());
        if self.scenario == Scenario::Recovery {
            self.leave_half(&spec);
        }
        let fault = if after { DiskFault::KillAfter } else { DiskFault::KillBefore };
        let when = DiskWhen::change().skip(n).once();
        let watch = KeyWatch::start(&world.bucket, KEY);
        let (mounted, rule, acts) = if matches!(self.scenario, Scenario::FirstMount | Scenario::Recovery) {
            let rule = self.place.disk.fault(when, fault);
            let mounted = spec.mount();
            if rule.hits() == 0
                && let Err(e) = &mounted
            {
                return outcome.other(format!("mount: {e}"));
            }
            (mounted.ok(), rule, Acts::default())
        } else {
            let mounted = spec.mount().expect("first mount");
            let rule = self.place.disk.fault(when, fault);
            let acts = self.act(&mounted, &rule);
            (Some(mounted), rule, acts)
        };
        outcome.bytes_written += acts.write.bytes;
        // What goes on behind ends, or meets its end.
        if !wait_until(WAIT, || rule.hits() > 0 || self.is_idle(&acts)) {
            return outcome.hang(format!("neither killed nor done: {:?}", self.place.journals()));
        }
        if rule.hits() == 0 {
            // The point lies behind the end: without a kill everything must be well.
            let ended_well = (acts.write.ok || !self.writes()) && (acts.second.ok || !self.has_second());
            if !ended_well {
                outcome.other(format!("without a kill: {acts:?}"));
            }
            return;
        }
        outcome.fired += 1;
        drop(mounted);
        world.wait_quiet();
        self.place.disk.heal();
        let mut mounted = match spec.mount() {
            Ok(mounted) => mounted,
            Err(e) => return outcome.other(format!("does not mount again: {e}")),
        };
        self.check(&mut mounted, &acts, outcome);
        let whole: Vec<u64> = [self.content.len(), self.base.as_ref().map_or(0, Vec::len)].map(|n| n as u64).into();
        if watch.looks() == 0 {
            outcome.other("nobody looked at the key".into());
        }
        for size in watch.half_files(&whole) {
            outcome.half(format!("an object of {size} bytes was seen"));
        }
        self.count_twice(outcome);
        self.check_rest(&mounted, outcome);
    }

    fn writes(&self) -> bool {
        use Scenario::*;
        matches!(
            self.scenario,
            CopyParts | CopyPartsWriteBack | CopySmall | OverwritePart | RenameTemporary | UnlinkHalf
        )
    }

    fn has_second(&self) -> bool {
        use Scenario::*;
        matches!(self.scenario, RenameObject | RenameTemporary | UnlinkHalf | RenameDirectory | Attributes)
    }

    /// Nothing is left to do in the background.
    fn is_idle(&self, acts: &Acts) -> bool {
        match self.scenario {
            Scenario::FirstMount => true,
            _ => self.place.journals().is_empty() || (!acts.write.ok && self.writes()),
        }
    }

    /// A write-back copy that was cut off within its last part.
    fn leave_half(&self, spec: &crate::support::mounted::MountSpec) {
        let mut mounted = spec.mount().expect("first mount");
        let proxy = &self.place.world.proxy;
        let last = When::call(Call::UploadPart).key(KEY).part(4);
        let rule = proxy.hold(last, HoldAt::InsideBody { after_bytes: 500 });
        let told = copy(&self.source, &mounted.path(KEY));
        assert!(told.ok, "{told:?}");
        assert!(rule.wait_hit(WAIT), "the last part was never sent");
        mounted.kill();
        proxy.clear_rules();
        self.place.world.wait_quiet();
    }

    fn act(&self, mounted: &Mounted, rule: &DiskRule) -> Acts {
        let path = |name: &str| mounted.path(name).to_string_lossy().into_owned();
        let mut acts = Acts::default();
        match self.scenario {
            Scenario::FirstMount | Scenario::Recovery => {}
            Scenario::CopyParts | Scenario::CopyPartsWriteBack | Scenario::CopySmall => {
                acts.write = copy(&self.source, &mounted.path(KEY));
            }
            Scenario::OverwritePart => acts.write = self.patch(mounted),
            Scenario::RenameObject => acts.second = program(&["mv", &path(KEY), &path("renamed")]),
            Scenario::RenameDirectory => acts.second = program(&["mv", "-T", &path("from"), &path("to")]),
            Scenario::Attributes => acts.second = program(&["chmod", "600", &path(KEY)]),
            Scenario::RenameTemporary => {
                acts.write = copy(&self.source, &mounted.path(TEMPORARY));
                if acts.write.ok {
                    acts.second = program(&["mv", &path(TEMPORARY), &path(KEY)]);
                }
            }
            Scenario::UnlinkHalf => acts = self.unlink_half(mounted.path(KEY), rule),
        }
        acts
    }

    fn patch(&self, mounted: &Mounted) -> Told {
        patch(&self.source, &mounted.path(KEY), PATCH_AT, PATCH_BYTES as u64)
    }

    /// Writes most of the file, waits until BOS has a part of it, and removes it while it is open.
    fn unlink_half(&self, path: PathBuf, rule: &DiskRule) -> Acts {
        let bytes = self.content[..(2 * PART + 1000) as usize].to_vec();
        let proxy_has_part = || self.place.world.proxy.counts().of(Call::UploadPart).accepted > 0;
        let opened = {
            let path = path.clone();
            within(WAIT, "writing", move || {
                let mut file = std::fs::File::create(path)?;
                let mut taken = 0;
                let written = bytes.chunks(1 << 20).try_for_each(|piece| {
                    file.write_all(piece)?;
                    taken += piece.len() as u64;
                    Ok::<(), std::io::Error>(())
                });
                Ok::<_, std::io::Error>((file, taken, written.is_ok()))
            })
        };
        let Ok((file, bytes, ok)) = opened else { return Acts::default() };
        let mut acts = Acts { write: Told { bytes, ok, ..Told::default() }, second: Told::default() };
        wait_until(WAIT, || proxy_has_part() || rule.hits() > 0);
        if ok && rule.hits() == 0 {
            acts.second.ok = within(WAIT, "unlink", move || std::fs::remove_file(path).is_ok());
        }
        within(WAIT, "close", move || drop(file));
        acts
    }

    /// What must hold after the remount.
    fn check(&self, mounted: &mut Mounted, acts: &Acts, outcome: &mut Outcome) {
        match self.scenario {
            Scenario::FirstMount => {
                let told = copy(&self.source, &mounted.path(KEY));
                if !told.ok {
                    outcome.other(format!("a copy after the remount: {told:?}"));
                }
                self.check_object(KEY, &self.content, outcome);
            }
            Scenario::CopyParts | Scenario::CopyPartsWriteBack | Scenario::CopySmall | Scenario::OverwritePart => {
                self.check_written(mounted, acts, outcome);
            }
            Scenario::Recovery => self.wait_published(KEY, &self.content, outcome),
            Scenario::RenameTemporary => self.check_temporary(mounted, acts, outcome),
            Scenario::RenameObject => {
                let names = vec![(KEY.to_owned(), "renamed".to_owned(), self.content.clone())];
                self.check_moved(mounted, acts, &names, outcome);
            }
            Scenario::RenameDirectory => {
                let name = |n: u64| (format!("from/{n}"), format!("to/{n}"), random_bytes(n, SMALL));
                self.check_moved(mounted, acts, &(1..=3).map(name).collect::<Vec<_>>(), outcome);
            }
            Scenario::Attributes => self.check_mode(mounted, acts, outcome),
            Scenario::UnlinkHalf => self.check_unlinked(mounted, acts, outcome),
        }
    }

    /// A copy or an overwrite: accepted bytes are there; a closed file ends in the bucket; the same command again ends well.
    fn check_written(&self, mounted: &mut Mounted, acts: &Acts, outcome: &mut Outcome) {
        if acts.write.ok {
            if self.scenario != Scenario::CopyPartsWriteBack {
                // Closed means complete, whatever was killed afterwards.
                self.check_object(KEY, &self.content, outcome);
            }
            self.check_shown(mounted.path(KEY), &self.content, outcome);
            return self.wait_published(KEY, &self.content, outcome);
        }
        let at = if self.base.is_some() { PATCH_AT as usize } else { 0 };
        let accepted = at..at + acts.write.bytes as usize;
        self.check_accepted(mounted.path(KEY), accepted, outcome);
        let state = mounted.file_status(KEY).map(|entry| entry["state"].as_str().unwrap_or_default().to_owned());
        if !matches!(state.as_deref(), None | Some("interrupted")) {
            // The close was journaled: recovery publishes it, and nobody has to do anything.
            return self.wait_published(KEY, &self.content, outcome);
        }
        if self.place.world.bucket.get(KEY).is_ok_and(|bytes| bytes == self.content) {
            return;
        }
        let again = match self.scenario {
            Scenario::OverwritePart => self.patch(mounted),
            _ => copy(&self.source, &mounted.path(KEY)),
        };
        if !again.ok {
            outcome.other(format!("the same command again: {again:?}"));
        }
        self.wait_published(KEY, &self.content, outcome);
    }

    /// Bytes of `accepted` are in the mount, and what is shown beside them is the base's or what was being written.
    fn check_accepted(&self, path: PathBuf, accepted: std::ops::Range<usize>, outcome: &mut Outcome) {
        let shown = within(WAIT, "reading", move || std::fs::read(path)).unwrap_or_default();
        let found = shown.get(accepted.clone()).unwrap_or_default();
        let missing =
            accepted.len() - found.iter().zip(&self.content[accepted.clone()]).filter(|(a, b)| a == b).count();
        if missing > 0 {
            outcome.lost(
                missing as u64,
                format!("{missing} of the accepted bytes {accepted:?} are lost; {} shown", shown.len()),
            );
        }
        let is_known = |(at, byte): (usize, &u8)| {
            self.content.get(at) == Some(byte) || self.base.as_ref().is_some_and(|base| base.get(at) == Some(byte))
        };
        if let Some(at) = shown.iter().enumerate().position(|pair| !is_known(pair)) {
            outcome.other(format!("byte {at} of {} shown is neither old nor new", shown.len()));
        }
    }

    fn check_shown(&self, path: PathBuf, expected: &[u8], outcome: &mut Outcome) {
        let name = path.display().to_string();
        match within(WAIT, "reading", move || std::fs::read(path)) {
            Ok(shown) if shown == expected => {}
            Ok(shown) => {
                let same = shown.iter().zip(expected).filter(|(a, b)| a == b).count();
                let lost = (expected.len() - same) as u64;
                outcome.lost(lost, format!("{name} shows other bytes: {} of {}", shown.len(), expected.len()));
            }
            Err(e) => outcome.lost(expected.len() as u64, format!("{name} cannot be read: {e}")),
        }
    }

    fn check_object(&self, key: &str, expected: &[u8], outcome: &mut Outcome) {
        match self.place.world.bucket.get(key) {
            Ok(bytes) if bytes == expected => {}
            Ok(bytes) => outcome.half(format!("object {key} has {} bytes that are not what was closed", bytes.len())),
            Err(e) => outcome.lost(expected.len() as u64, format!("{key} is not complete in the bucket: {e}")),
        }
    }

    fn wait_published(&self, key: &str, expected: &[u8], outcome: &mut Outcome) {
        if !self.place.wait_idle(WAIT) {
            return outcome.hang(format!("{key} is not settled: {:?}", self.place.journals()));
        }
        self.check_object(key, expected, outcome);
    }

    fn check_temporary(&self, mounted: &mut Mounted, acts: &Acts, outcome: &mut Outcome) {
        let bucket = &self.place.world.bucket;
        if acts.second.ok {
            self.check_object(KEY, &self.content, outcome);
        } else if acts.write.ok {
            // Under its own name or under the new one.
            if !self.place.wait_idle(WAIT) {
                return outcome.hang(format!("the temporary is not settled: {:?}", self.place.journals()));
            }
            let key = if bucket.head(KEY).ok().flatten().is_some() { KEY } else { TEMPORARY };
            self.check_object(key, &self.content, outcome);
        } else {
            self.check_accepted(mounted.path(TEMPORARY), 0..acts.write.bytes as usize, outcome);
        }
        let path = |name: &str| mounted.path(name).to_string_lossy().into_owned();
        let written = copy(&self.source, &mounted.path(TEMPORARY));
        let moved = program(&["mv", &path(TEMPORARY), &path(KEY)]);
        if !written.ok || !moved.ok {
            outcome.other(format!("the same again: {written:?} {moved:?}"));
        }
        self.wait_published(KEY, &self.content, outcome);
        if bucket.head(TEMPORARY).ok().flatten().is_some() {
            outcome.other("the temporary is left in the bucket".into());
        }
    }

    /// All names are on one side, with their content; on the new side if the program said so.
    fn check_moved(
        &self,
        mounted: &mut Mounted,
        acts: &Acts,
        names: &[(String, String, Vec<u8>)],
        outcome: &mut Outcome,
    ) {
        for (from, to, content) in names {
            let (from, to) = (mounted.path(from), mounted.path(to));
            let there = within(WAIT, "looking", move || (from.exists(), to.exists()));
            if there == (false, false) {
                outcome.lost(content.len() as u64, format!("{:?} is under neither name after the remount", names[0]));
            }
        }
        if !self.place.wait_idle(WAIT) {
            return outcome.hang(format!("the move is not settled: {:?}", self.place.journals()));
        }
        let mut sides = Vec::new();
        for (from, to, content) in names {
            let bucket = &self.place.world.bucket;
            let has = |key: &str| bucket.get(key).ok();
            match (has(from), has(to)) {
                (Some(bytes), None) if bytes == *content => sides.push(false),
                (None, Some(bytes)) if bytes == *content => sides.push(true),
                (None, None) => outcome.lost(content.len() as u64, format!("{from} is lost")),
                (a, b) => outcome.other(format!("{from}: {:?}, {to}: {:?}", a.map(|b| b.len()), b.map(|b| b.len()))),
            }
        }
        sides.dedup();
        if sides.len() > 1 || (acts.second.ok && sides.contains(&false)) {
            outcome.other(format!("names on sides {sides:?}, the program said {:?}", acts.second));
        }
    }

    fn check_mode(&self, mounted: &mut Mounted, acts: &Acts, outcome: &mut Outcome) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = mounted.path(KEY);
        let mode = within(WAIT, "stat", move || std::fs::metadata(path).map(|meta| meta.permissions().mode() & 0o7777));
        let Ok(mode) = mode else { return outcome.other(format!("stat: {mode:?}")) };
        if acts.second.ok && mode != 0o600 {
            outcome.other(format!("chmod ended well, the mode is {mode:o}"));
        }
        self.wait_published(KEY, &self.content, outcome);
        let stored = self.place.world.bucket.head_reply(KEY).ok().flatten();
        let stored = stored.and_then(|reply| reply.header("x-bce-meta-bosfs-mode").map(str::to_owned));
        // BOSFS writes the whole st_mode in decimal.
        let stored = stored.and_then(|text| text.parse::<u32>().ok()).map(|mode| mode & 0o7777);
        if mode == 0o600 && stored != Some(0o600) {
            outcome.other(format!("the mode in BOS is {stored:?}"));
        }
    }

    fn check_unlinked(&self, mounted: &mut Mounted, acts: &Acts, outcome: &mut Outcome) {
        let path = mounted.path(KEY);
        let there = {
            let path = path.clone();
            within(WAIT, "stat", move || path.exists())
        };
        if acts.second.ok && there {
            outcome.other("unlink ended well, and the file is there".into());
        }
        if there {
            self.check_accepted(path.clone(), 0..acts.write.bytes as usize, outcome);
            let removed = within(WAIT, "unlink", move || std::fs::remove_file(path));
            if let Err(e) = removed {
                outcome.other(format!("unlink again: {e}"));
            }
        } else if !acts.second.ok && acts.write.bytes > 0 && self.place.journals().is_empty() && !acts.write.ok {
            outcome.lost(acts.write.bytes, "the file is gone, and nobody removed it".into());
        }
        if !self.place.wait_idle(WAIT) {
            return outcome.hang(format!("the removal is not settled: {:?}", self.place.journals()));
        }
        if self.place.world.bucket.head(KEY).ok().flatten().is_some() {
            outcome.other("the removed file is in the bucket".into());
        }
    }

    /// Parts and objects that the server took more than once.
    fn count_twice(&self, outcome: &mut Outcome) {
        let counts = self.place.world.proxy.counts();
        for ((key, number), part) in &counts.parts {
            let copies = |l: &&crate::support::counts::Logged| {
                l.asked.call == Call::UploadPartCopy && l.asked.key == *key && l.asked.part == Some(*number)
            };
            let taken = part.accepted.saturating_sub(counts.log.iter().filter(copies).count() as u64);
            let len = PART.min((self.content.len() as u64).saturating_sub(PART * u64::from(number - 1)));
            outcome.bytes_in_flight += part.body_bytes.saturating_sub(taken * len);
            // A guess about a temporary that did not come true is paid for (it is published under its own name).
            let guessed = self.scenario == Scenario::RenameTemporary;
            if taken > 1 && !guessed {
                outcome.bytes_twice += (taken - 1) * len;
                outcome.messages.push(format!("part {number} of {key} was taken {taken} times"));
            }
        }
    }

    /// Nothing is left over, and the mount is fine.
    fn check_rest(&self, mounted: &Mounted, outcome: &mut Outcome) {
        let bucket = &self.place.world.bucket;
        match bucket.uploads("") {
            // An upload whose Initiate was answered and not journaled any more has no part, and is only listed.
            Ok(left) => {
                let holds = |upload: &&crate::support::bucket::Unfinished| {
                    bucket.parts(&upload.key, &upload.upload_id).map_or(true, |parts| !parts.is_empty())
                };
                let with_parts: Vec<_> = left.iter().filter(holds).collect();
                if !with_parts.is_empty() || left.len() > 1 {
                    outcome.other(format!("uploads are left: {left:?}"));
                }
            }
            Err(e) => outcome.other(format!("uploads: {e}")),
        }
        let status = mounted.status();
        let stuck = status.to_string();
        if stuck.contains("\"failed\"") || stuck.contains("\"conflict\"") {
            outcome.other(format!("status: {stuck}"));
        }
    }
}

/// Runs the points of a scenario that `points` gives, until one lies behind the end; `told` hears of every round.
pub fn run_points(
    scenario: Scenario,
    points: impl Iterator<Item = (u64, bool)>,
    mut told: impl FnMut(u64, &Outcome),
) -> Outcome {
    let mut sum = Outcome::default();
    for (n, after) in points {
        let outcome = scenario.round(n, after);
        told(n, &outcome);
        let is_behind = outcome.fired == 0;
        sum.add(outcome);
        if is_behind {
            break;
        }
    }
    sum
}
