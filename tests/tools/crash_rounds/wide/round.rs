//! One round of several handles on one file: a real mount, a program with a thread for each handle, trouble, an end.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::model::{Change, FileModel, Mismatch};
use super::plan::{Base, Doing, Stuck, WideEnd, WidePhase, WidePlan, WideStep};
use super::resolve::{Act, Around, NAME, OTHER, resolve};
use super::stuck::Troubles;
use super::totals::WideCounted;
use crate::crash_rounds::calls::{Ended, Op, Reply};
use crate::crash_rounds::round::{Failure, Place};
use crate::crash_rounds::writer::Writer;
use crate::support::crash::contents::Watch;
use crate::support::disk::FaultDisk;
use crate::support::disk::boot::Boot;
use crate::support::disk::fault::{DiskFault, DiskRule, DiskWhen};
use crate::support::files::random_bytes;
use crate::support::mounted::detach;
use crate::support::{MountSpec, Mounted};

/// Longest time for one call, one command, one look. It only bounds a hang.
pub(super) const WITHIN: Duration = Duration::from_secs(90);
/// A call that waits so long for what is stuck gets what it waits for.
const PATIENCE: Duration = Duration::from_millis(2500);
/// A close that waits in the kernel and has been journaled has arrived after so long.
const ARRIVED_AFTER: Duration = Duration::from_millis(20);
/// A close of which that cannot be seen may have arrived, or not, after so long.
const ARRIVES_WITHIN: Duration = Duration::from_secs(3);

/// What is expected wrongly on purpose, to see that it is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WideSabotage {
    /// A byte that the mount shows.
    Shown,
    /// The object at the end.
    Published,
    /// A state in which the file was closed.
    Closed,
}

impl WideSabotage {
    pub const ALL: [WideSabotage; 3] = [WideSabotage::Shown, WideSabotage::Published, WideSabotage::Closed];
}

pub(super) type Outcome<T> = Result<T, Mismatch>;

pub(super) fn broken(e: impl std::fmt::Display) -> Mismatch {
    Mismatch::of(e.to_string())
}

/// A call that has not returned.
pub(super) struct Flying {
    pub(super) op: Op,
    pub(super) since: Instant,
    pub(super) changes: Vec<Change>,
    /// The state that a close asks for.
    pub(super) state: Option<usize>,
    /// Changes of the file when it began.
    pub(super) count: usize,
    /// The line was dead then.
    pub(super) without_line: bool,
    /// It has returned: the kill cut it off, maybe before anybody here knew of the kill.
    pub(super) is_cut: bool,
}

/// What somebody else did to the object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foreign {
    /// The state that it is.
    pub(super) state: usize,
    /// There was something unpublished here.
    pub(super) unpublished: bool,
    /// All was published, and bosfs did not know that for certain yet: it may have been somebody else's doing.
    pub(super) unclear: bool,
    /// Nothing of the file came from an object.
    pub(super) all_here: bool,
}

/// Runs a round.
///
/// # Errors
/// What did not hold.
pub fn run(
    place: &Place,
    plan: &WidePlan,
    sabotage: Option<WideSabotage>,
    counted: &mut WideCounted,
) -> Result<(), Failure> {
    let failed = |e: Mismatch| Failure { why: e.why, bytes_lost: e.bytes_lost, calls: Vec::new() };
    let mut round = Round::new(place, plan, sabotage, counted).map_err(failed)?;
    let mut result = round.all();
    let log = std::fs::read_to_string(&round.spec.log).unwrap_or_default();
    if result.is_ok()
        && let Some(line) = log.lines().find(|line| line.contains("panicked at"))
    {
        result = Err(Mismatch::of(format!("bosfs panicked: {line}")));
    }
    let calls = std::mem::take(&mut round.calls);
    round.put_away();
    drop(round);
    place.proxy.clear_rules();
    result.map_err(|wrong| {
        let tail = |text: &str, lines: usize| {
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        };
        let requests = place.proxy.counts().log_text();
        let why = format!("{}\nlog of bosfs:\n{}\nrequests:\n{}", wrong.why, tail(&log, 60), tail(&requests, 60));
        Failure { why, bytes_lost: wrong.bytes_lost, calls }
    })
}

/// Bytes that all rounds begin with.
fn base_bytes(base: Base) -> Option<Vec<u8>> {
    static LARGE: OnceLock<Vec<u8>> = OnceLock::new();
    let large = || LARGE.get_or_init(|| random_bytes(77, (14 << 20) + 12_345));
    match base {
        Base::None => None,
        Base::Small => Some(large()[..300_000].to_vec()),
        Base::Large => Some(large()[..(11 << 20) + 77].to_vec()),
        Base::Composed => Some(large().clone()),
    }
}

pub(super) fn other_bytes() -> Arc<Vec<u8>> {
    static OTHER: OnceLock<Arc<Vec<u8>>> = OnceLock::new();
    OTHER.get_or_init(|| Arc::new(random_bytes(78, 400_000))).clone()
}

pub(super) struct Round<'a> {
    pub(super) place: &'a Place,
    pub(super) plan: &'a WidePlan,
    pub(super) began: Instant,
    pub(super) spec: MountSpec,
    /// Key of the file.
    pub(super) key: String,
    pub(super) mount: Option<Mounted>,
    pub(super) writer: Option<Writer>,
    pub(super) watch: Watch,
    pub(super) disk: Option<FaultDisk>,
    pub(super) boot: Option<Boot>,
    pub(super) troubles: Troubles,
    pub(super) file: FileModel,
    pub(super) exists: bool,
    pub(super) open: Vec<bool>,
    pub(super) last_at: u64,
    pub(super) flying: Vec<Option<Flying>>,
    pub(super) foreign: Option<Foreign>,
    pub(super) calls: Vec<String>,
    pub(super) sabotage: Option<WideSabotage>,
    pub(super) counted: &'a mut WideCounted,
}

impl<'a> Round<'a> {
    fn new(
        place: &'a Place,
        plan: &'a WidePlan,
        sabotage: Option<WideSabotage>,
        counted: &'a mut WideCounted,
    ) -> Outcome<Self> {
        let key = format!("{}{NAME}", place.prefix);
        let base = base_bytes(plan.base);
        if let Some(bytes) = &base {
            put_base(place, &key, bytes, plan.base).map_err(broken)?;
        }
        place.bucket.put(&format!("{}{OTHER}", place.prefix), &other_bytes()).map_err(broken)?;
        let mut spec = MountSpec {
            target: format!("{}/{}", place.spec.target, place.prefix.trim_end_matches('/')),
            dir: place.dir.join("mnt"),
            state_dir: place.dir.join("state"),
            log: place.dir.join("bosfs.log"),
            args: plan.options(),
            ..place.spec.clone()
        };
        let (mut disk, mut boot) = (None, None);
        if plan.disk {
            let made = FaultDisk::start(&place.dir.join("disk"), &place.dir.join("backing")).map_err(broken)?;
            made.keep_bytes();
            spec.state_dir = made.dir().join("state");
            disk = Some(made);
        }
        if plan.phases.iter().any(|phase| matches!(phase.end, WideEnd::Power { .. })) {
            let mut made = Boot::new(&place.dir.join("shared")).map_err(broken)?;
            made.restart(&mut spec).map_err(broken)?;
            boot = Some(made);
        }
        let watch = Watch::start(&place.bucket, &key);
        let exists = base.is_some();
        Ok(Self {
            place,
            plan,
            began: Instant::now(),
            spec,
            key,
            mount: None,
            writer: None,
            watch,
            disk,
            boot,
            troubles: Troubles::new(&place.proxy),
            file: FileModel::new(base),
            exists,
            open: vec![false; plan.handles],
            last_at: 0,
            flying: (0..plan.handles).map(|_| None).collect(),
            foreign: None,
            calls: Vec::new(),
            sabotage,
            counted,
        })
    }

    pub(super) fn note(&mut self, line: String) {
        self.calls.push(format!("{:6} ms {line}", self.began.elapsed().as_millis()));
    }

    fn all(&mut self) -> Outcome<()> {
        self.counted.rounds += 1;
        self.mount_now()?;
        self.writer = Some(Writer::start(&self.spec.dir).map_err(broken)?);
        for phase in &self.plan.phases {
            self.phase(phase)?;
            if self.foreign.is_some() {
                return self.end_beside_foreign();
            }
        }
        self.close_all()?;
        self.umount()
    }

    /// Ends whatever is left, so that nothing of the round stays behind.
    fn put_away(&mut self) {
        self.troubles.end_all(false, self.counted);
        if let Some(disk) = &self.disk {
            disk.heal();
        }
        if let Some(mut mount) = self.mount.take() {
            mount.kill();
        }
        self.writer = None;
        detach(&self.spec.dir);
        self.counted.looks += self.watch.looks();
    }

    fn phase(&mut self, phase: &WidePhase) -> Outcome<()> {
        let mut killer = None;
        if let WideEnd::CheckpointKill { skip, after } = phase.end {
            killer = self.kill_at(DiskWhen::change().path_contains("journal.new"), skip, after);
        }
        for (n, step) in phase.steps.iter().enumerate() {
            self.troubles.step(n, self.counted);
            for stuck in phase.stuck.iter().filter(|stuck| stuck.from == n) {
                self.note(format!("stuck: {:?} up to step {}, {} ms", stuck.what, stuck.to, stuck.ms));
                self.troubles.begin(stuck, &self.key, self.disk.as_ref());
            }
            if let WideEnd::DiskKill { step, skip, after } = phase.end
                && step == n
            {
                killer = self.kill_at(DiskWhen::change().path_contains("/uploads"), skip, after);
            }
            if step.what == Doing::Foreign {
                self.somebody_else(step)?;
                continue;
            }
            let is_last = n + 1 == phase.steps.len();
            if self.step(step, is_last.then_some(phase.end), killer.as_ref())? {
                break;
            }
        }
        self.end(phase.end, killer)
    }

    pub(super) fn kill_at(&self, when: DiskWhen, skip: u64, after: bool) -> Option<DiskRule> {
        let fault = if after { DiskFault::KillAfter } else { DiskFault::KillBefore };
        self.disk.as_ref().map(|disk| disk.fault(when.skip(skip).once(), fault))
    }

    /// Makes the calls of a step. `true`: bosfs was killed meanwhile.
    fn step(&mut self, step: &WideStep, end: Option<WideEnd>, killer: Option<&DiskRule>) -> Outcome<bool> {
        let lane = step.handle;
        self.take_replies(Duration::ZERO, killer)?;
        // It is not known what an emptying open did that failed.
        let is_unsure = step.what == Doing::OpenEmpty && self.troubles.has(Stuck::Line);
        if self.flying[lane].is_some() || self.foreign.is_some() || is_unsure {
            return Ok(is_hit(killer));
        }
        let other = other_bytes();
        let around = Around {
            live: &self.file.live,
            exists: self.exists,
            is_open: self.open[lane],
            last_at: self.last_at,
            other: &other,
        };
        let acts = resolve(step, &around);
        let count = acts.len();
        for (n, act) in acts.into_iter().enumerate() {
            if self.is_pending() {
                let met = self.troubles.met();
                self.counted.during(step.what, &met);
            }
            let is_close = matches!(act.op, Op::Close { .. });
            let before = self.journal_signature();
            self.send(lane, act)?;
            if let Some(WideEnd::Kill { micros } | WideEnd::Power { micros, .. }) = end
                && n + 1 == count
            {
                self.take_replies(Duration::from_micros(micros), killer)?;
                return Ok(is_hit(killer));
            }
            let killed = match is_close {
                true => self.wait_arrived(lane, &before, killer)?,
                false => self.wait_returned(lane, killer)?,
            };
            if killed {
                return Ok(true);
            }
        }
        Ok(is_hit(killer))
    }

    /// Something was closed that is not known to be published.
    fn is_pending(&self) -> bool {
        self.file.last() > self.file.floor
    }

    pub(super) fn send(&mut self, lane: usize, act: Act) -> Outcome<()> {
        let Act { op, changes } = act;
        self.note(format!("h{lane} {op}"));
        self.counted.calls += 1;
        let (mut state, count) = (None, self.file.change_count());
        let without_line = self.troubles.has(Stuck::Line);
        if let Op::Close { .. } = op {
            self.counted.closes_at_once += u64::from(self.flying.iter().flatten().count() > 0);
            self.open[lane] = false;
            state = self.file.close();
            if let (Some(state), Some(WideSabotage::Closed)) = (state, self.sabotage)
                && let Some((_, crc)) = &mut self.file.states[state].sum
            {
                *crc ^= 1;
                self.sabotage = None;
                self.counted.sabotaged = true;
            }
        }
        self.flying[lane] =
            Some(Flying { op: op.clone(), since: Instant::now(), changes, state, count, without_line, is_cut: false });
        let writer = self.writer.as_mut().ok_or_else(|| Mismatch::of("no writer"))?;
        writer.send(lane, &op).map_err(broken)
    }

    /// Takes what ends of calls there are within `wait`.
    pub(super) fn take_replies(&mut self, wait: Duration, killer: Option<&DiskRule>) -> Outcome<()> {
        let end = Instant::now() + wait;
        loop {
            self.troubles.tick();
            if is_hit(killer) {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now()).min(Duration::from_millis(2));
            let writer = self.writer.as_ref().ok_or_else(|| Mismatch::of("no writer"))?;
            match writer.reply(left).map_err(broken)? {
                Some(reply) => self.returned(&reply, is_hit(killer))?,
                None if Instant::now() >= end => return Ok(()),
                None => {}
            }
        }
    }

    /// Waits until the call of a lane has returned. `true`: bosfs was killed first.
    pub(super) fn wait_returned(&mut self, lane: usize, killer: Option<&DiskRule>) -> Outcome<bool> {
        let mut is_let_go = false;
        while let Some(flying) = &self.flying[lane] {
            if is_hit(killer) {
                return Ok(true);
            }
            let waited = flying.since.elapsed();
            if waited > PATIENCE && !is_let_go {
                // It waits for what is stuck, which it should not; the round goes on.
                is_let_go = true;
                self.counted.waited += 1;
                let line = format!("h{lane} {} waits", flying.op.name());
                self.note(line);
                self.troubles.end_all(false, self.counted);
                continue;
            }
            if waited > WITHIN {
                return Err(Mismatch::of(format!("HANG: h{lane} {}: no end within {WITHIN:?}", flying.op)));
            }
            self.take_replies(Duration::from_millis(2), killer)?;
        }
        Ok(is_hit(killer))
    }

    /// Waits until a close has returned, or waits for BOS; what comes after it is not in its state then. `true`: bosfs was
    /// killed first.
    fn wait_arrived(&mut self, lane: usize, before: &str, killer: Option<&DiskRule>) -> Outcome<bool> {
        let mut in_kernel: Option<Instant> = None;
        loop {
            self.take_replies(Duration::from_millis(2), killer)?;
            let Some(flying) = &self.flying[lane] else { return Ok(is_hit(killer)) };
            if is_hit(killer) {
                return Ok(true);
            }
            let state = flying.state;
            if flying.since.elapsed() > WITHIN {
                return Err(Mismatch::of(format!("HANG: h{lane} {}: no end within {WITHIN:?}", flying.op)));
            }
            // On a busy machine it takes its time until the call is where it waits.
            let waits = self.writer.as_ref().and_then(|writer| writer.waits_for_mount(lane));
            if waits == Some(false) {
                continue;
            }
            let since = *in_kernel.get_or_insert_with(Instant::now);
            let is_journaled = waits == Some(true) && self.journal_signature() != before;
            if is_journaled {
                self.take_replies(ARRIVED_AFTER, killer)?;
                if let (Some(state), Some(_), false) = (state, &self.flying[lane], is_hit(killer)) {
                    self.file.arrived(state);
                }
            }
            // A close with nothing new has nothing to be journaled.
            let limit = if state.is_some() { ARRIVES_WITHIN } else { ARRIVED_AFTER };
            if is_journaled || since.elapsed() > limit {
                return Ok(is_hit(killer));
            }
        }
    }

    /// Names of all journals, and how many closes each tells of. Other lines come at any time.
    fn journal_signature(&self) -> String {
        let mut found = Vec::new();
        for dir in std::fs::read_dir(self.state_dir().join("uploads")).into_iter().flatten().flatten() {
            if let Ok(text) = std::fs::read(dir.path().join("journal")) {
                found.push(format!("{:?} {}", dir.file_name(), closes_of(&String::from_utf8_lossy(&text))));
            }
        }
        found.sort();
        found.join("\n")
    }

    /// The state directory, past the disk.
    pub(super) fn state_dir(&self) -> PathBuf {
        match &self.disk {
            Some(disk) => disk.backing().join("state"),
            None => self.spec.state_dir.clone(),
        }
    }

    /// A call ended.
    pub(super) fn returned(&mut self, reply: &Reply, killed: bool) -> Outcome<()> {
        let lane = reply.lane;
        let flying = self.flying[lane].take().ok_or_else(|| Mismatch::of(format!("h{lane}: an answer to nothing")))?;
        self.note(format!("h{lane} {} -> {:?}", flying.op.name(), reply.ended));
        let wanted = match &flying.op {
            Op::Write { len, .. } => *len as u64,
            Op::CopyRange { len, .. } => *len,
            Op::Burst { count, .. } => *count as u64,
            _ => 0,
        };
        match reply.ended {
            Ended::Done(taken) if taken == wanted => {
                self.done(lane, flying, taken);
                Ok(())
            }
            Ended::Failed(errno) if matches!(flying.op, Op::Close { .. }) && self.may_fail(errno, flying.state) => {
                Ok(())
            }
            _ if killed => {
                self.flying[lane] = Some(Flying { is_cut: true, ..flying });
                Ok(())
            }
            // What has to ask BOS ends with an error then, and does nothing.
            Ended::Failed(libc::EIO | libc::ETIMEDOUT) if flying.without_line && asks(&flying.op) => Ok(()),
            ended => Err(Mismatch::of(format!("h{lane} {}: {ended:?}, and nothing was killed", flying.op))),
        }
    }

    /// Whether a close may fail so. A close that ran out of its time has arrived.
    fn may_fail(&mut self, errno: i32, state: Option<usize>) -> bool {
        if self.foreign.is_some() {
            return true;
        }
        let in_time = self.plan.timeout_s.is_some() && matches!(errno, libc::EIO | libc::ETIMEDOUT);
        if let (true, Some(state)) = (in_time, state) {
            self.file.arrived(state);
        }
        in_time
    }

    fn done(&mut self, lane: usize, flying: Flying, taken: u64) {
        self.counted.bytes_written += taken;
        match &flying.op {
            Op::Open { .. } => self.open[lane] = true,
            Op::Create { .. } => (self.open[lane], self.exists) = (true, true),
            Op::Write { at, .. } | Op::Burst { at, .. } | Op::CopyRange { at, .. } => self.last_at = *at,
            Op::Fsync { .. } => self.file.fsynced(flying.count),
            Op::Close { .. } => {
                if let Some(state) = flying.state {
                    self.file.closed(state, !self.plan.write_back, flying.count);
                    self.watch.is_at_least(self.file.floor);
                }
            }
            _ => {}
        }
        flying.changes.into_iter().for_each(|change| self.file.apply(change));
    }
}

/// Closes that a journal tells of, those in its checkpoint included. A temporary's close parks it.
fn closes_of(journal: &str) -> u64 {
    let records = journal.lines().filter_map(|line| line.splitn(3, ' ').nth(2));
    let records = records.filter_map(|record| serde_json::from_str::<serde_json::Value>(record).ok());
    records.fold(0, |closes, record| match record["t"].as_str() {
        Some("checkpoint") => record["state"]["closes"].as_u64().unwrap_or(0),
        Some("closed" | "parked") => closes + 1,
        _ => closes,
    })
}

/// The call may have to ask BOS before it does anything.
fn asks(op: &Op) -> bool {
    matches!(op, Op::Open { .. } | Op::CopyRange { .. } | Op::Chmod { .. })
}

pub(super) fn is_hit(killer: Option<&DiskRule>) -> bool {
    killer.is_some_and(|rule| rule.hits() > 0)
}

fn put_base(place: &Place, key: &str, bytes: &[u8], base: Base) -> std::io::Result<()> {
    if base != Base::Composed {
        return place.bucket.put(key, bytes).map(|_| ());
    }
    let upload = place.bucket.initiate(key)?;
    let mut parts = Vec::new();
    for (number, piece) in (1..).zip(bytes.chunks(6 << 20)) {
        parts.push((number, place.bucket.upload_part(key, &upload, number, piece)?));
    }
    place.bucket.complete(key, &upload, &parts)
}
