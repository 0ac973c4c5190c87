//! One round of several handles on one file: a real mount, a program with a thread for each handle, trouble, an end.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::model::{Change, FileModel, Mismatch, Shown, Stage};
use super::plan::{Base, Doing, Stuck, WideEnd, WidePhase, WidePlan, WideStep};
use super::resolve::{Act, Around, NAME, OTHER, resolve};
use super::stuck::Troubles;
use super::totals::WideCounted;
use crate::crash_rounds::calls::{Ended, Op, Reply};
use crate::crash_rounds::round::{Failure, Place};
use crate::crash_rounds::writer::Writer;
use crate::support::crash::contents::{Watch, content, sum_of};
use crate::support::disk::FaultDisk;
use crate::support::disk::boot::Boot;
use crate::support::disk::fault::{DiskFault, DiskRule, DiskWhen};
use crate::support::disk::power::{Loss, build};
use crate::support::files::random_bytes;
use crate::support::mounted::{detach, run as run_command, within};
use crate::support::{Line, MountSpec, Mounted};

/// Longest time for one call, one command, one look. It only bounds a hang.
const WITHIN: Duration = Duration::from_secs(90);
/// A call that waits so long for what is stuck gets what it waits for.
const PATIENCE: Duration = Duration::from_millis(2500);
/// A close that waits in the kernel and has been journaled has arrived after so long.
const ARRIVED_AFTER: Duration = Duration::from_millis(20);
/// A close of which that cannot be seen may have arrived, or not, after so long.
const ARRIVES_WITHIN: Duration = Duration::from_millis(400);

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

type Outcome<T> = Result<T, Mismatch>;

fn broken(e: impl std::fmt::Display) -> Mismatch {
    Mismatch::of(e.to_string())
}

/// A call that has not returned.
struct Flying {
    op: Op,
    since: Instant,
    changes: Vec<Change>,
    /// The state that a close asks for.
    state: Option<usize>,
    /// Changes of the file when it began.
    count: usize,
    /// The line was dead then.
    without_line: bool,
}

/// What somebody else did to the object.
#[derive(Clone, Copy, Debug)]
struct Foreign {
    /// The state that it is.
    state: usize,
    /// There was something unpublished here.
    unpublished: bool,
    /// Nothing of the file came from an object.
    all_here: bool,
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

fn other_bytes() -> Arc<Vec<u8>> {
    static OTHER: OnceLock<Arc<Vec<u8>>> = OnceLock::new();
    OTHER.get_or_init(|| Arc::new(random_bytes(78, 400_000))).clone()
}

struct Round<'a> {
    place: &'a Place,
    plan: &'a WidePlan,
    began: Instant,
    spec: MountSpec,
    /// Key of the file.
    key: String,
    mount: Option<Mounted>,
    writer: Option<Writer>,
    watch: Watch,
    disk: Option<FaultDisk>,
    boot: Option<Boot>,
    troubles: Troubles,
    file: FileModel,
    exists: bool,
    open: Vec<bool>,
    last_at: u64,
    flying: Vec<Option<Flying>>,
    foreign: Option<Foreign>,
    calls: Vec<String>,
    sabotage: Option<WideSabotage>,
    counted: &'a mut WideCounted,
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

    fn note(&mut self, line: String) {
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

    fn kill_at(&self, when: DiskWhen, skip: u64, after: bool) -> Option<DiskRule> {
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

    fn send(&mut self, lane: usize, act: Act) -> Outcome<()> {
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
        self.flying[lane] = Some(Flying { op: op.clone(), since: Instant::now(), changes, state, count, without_line });
        let writer = self.writer.as_mut().ok_or_else(|| Mismatch::of("no writer"))?;
        writer.send(lane, &op).map_err(broken)
    }

    /// Takes what ends of calls there are within `wait`.
    fn take_replies(&mut self, wait: Duration, killer: Option<&DiskRule>) -> Outcome<()> {
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
    fn wait_returned(&mut self, lane: usize, killer: Option<&DiskRule>) -> Outcome<bool> {
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
        loop {
            self.take_replies(Duration::from_millis(2), killer)?;
            let Some(flying) = &self.flying[lane] else { return Ok(is_hit(killer)) };
            if is_hit(killer) {
                return Ok(true);
            }
            let (state, waited) = (flying.state, flying.since.elapsed());
            if waited > ARRIVES_WITHIN {
                return Ok(false);
            }
            let waits = self.writer.as_ref().and_then(|writer| writer.waits_for_mount(lane));
            if waits == Some(true) && self.journal_signature() != before {
                self.take_replies(ARRIVED_AFTER, killer)?;
                if let (Some(state), Some(_), false) = (state, &self.flying[lane], is_hit(killer)) {
                    self.file.arrived(state);
                }
                return Ok(is_hit(killer));
            }
        }
    }

    /// Names, lengths and times of all journals.
    fn journal_signature(&self) -> String {
        use std::os::unix::fs::MetadataExt as _;
        let mut found = Vec::new();
        for dir in std::fs::read_dir(self.state_dir().join("uploads")).into_iter().flatten().flatten() {
            if let Ok(meta) = std::fs::metadata(dir.path().join("journal")) {
                found.push(format!("{:?} {} {}.{}", dir.file_name(), meta.size(), meta.mtime(), meta.mtime_nsec()));
            }
        }
        found.sort();
        found.join("\n")
    }

    /// The state directory, past the disk.
    fn state_dir(&self) -> PathBuf {
        match &self.disk {
            Some(disk) => disk.backing().join("state"),
            None => self.spec.state_dir.clone(),
        }
    }

    /// A call ended.
    fn returned(&mut self, reply: &Reply, killed: bool) -> Outcome<()> {
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
                self.flying[lane] = Some(flying);
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

    fn end(&mut self, end: WideEnd, killer: Option<DiskRule>) -> Outcome<()> {
        let fell = is_hit(killer.as_ref());
        self.note(format!("end: {end:?}"));
        match end {
            // What was to be killed at the disk and was not is killed now.
            WideEnd::DiskKill { .. } | WideEnd::CheckpointKill { .. } if !fell => {
                self.counted.end(WideEnd::Kill { micros: 0 });
                self.kill(true)
            }
            WideEnd::Power { .. } if self.foreign.is_some() || self.disk.is_none() => self.kill(true),
            WideEnd::Power { loss, seed, .. } => {
                self.counted.end(end);
                self.lose_power(loss, seed)
            }
            WideEnd::Kill { .. } | WideEnd::DiskKill { .. } | WideEnd::CheckpointKill { .. } => {
                self.counted.end(end);
                self.kill(true)
            }
            WideEnd::Stop => {
                self.counted.end(end);
                self.kill(false)
            }
            WideEnd::KillWriter => {
                self.counted.end(end);
                self.kill_writer()
            }
            WideEnd::Umount if self.foreign.is_some() => Ok(()),
            WideEnd::Umount => {
                self.counted.end(end);
                self.troubles.end_all(true, self.counted);
                self.close_all()?;
                self.umount()?;
                self.mount_now()
            }
        }
    }

    fn mount_now(&mut self) -> Outcome<()> {
        self.mount = Some(self.spec.mount().map_err(broken)?);
        Ok(())
    }

    /// bosfs ends, and so does every call; what was in flight is returned.
    fn end_bosfs(&mut self, kill: bool) -> Outcome<Vec<Change>> {
        self.counted.cut_closes += u64::from(self.flying.iter().flatten().any(|f| f.state.is_some()));
        if let Some(disk) = &self.disk {
            // What is late would keep the process from ending.
            self.counted.checkpoints_of(disk);
            self.troubles.tick_all();
        }
        let mut mount = self.mount.take().ok_or_else(|| Mismatch::of("no mount"))?;
        if kill {
            mount.kill();
        } else {
            let status = mount.end_by(Signal::TERM, WITHIN);
            let status = status.ok_or_else(|| Mismatch::of(format!("HANG: SIGTERM: no end within {WITHIN:?}")))?;
            if !status.success() {
                return Err(Mismatch::of(format!("SIGTERM: bosfs ended with {status}")));
            }
        }
        drop(mount);
        let mut flying = Vec::new();
        while let Some(lane) = self.flying.iter().position(Option::is_some) {
            let writer = self.writer.as_ref().ok_or_else(|| Mismatch::of("no writer"))?;
            let Some(reply) = writer.reply(WITHIN).map_err(broken)? else {
                return Err(Mismatch::of(format!("HANG: h{lane} does not end with bosfs")));
            };
            let lane = reply.lane;
            self.returned(&reply, true)?;
            // It stays only if it was cut off.
            flying.extend(self.flying[lane].take().map(|cut| cut.changes).unwrap_or_default());
        }
        self.troubles.end_all(false, self.counted);
        for lane in 0..self.open.len() {
            self.open[lane] = false;
            self.send(lane, Act { op: Op::Forget, changes: Vec::new() })?;
            self.wait_returned(lane, None)?;
        }
        self.wait_quiet();
        Ok(flying)
    }

    /// SIGKILL or SIGTERM of bosfs, and what must hold after it.
    fn kill(&mut self, kill: bool) -> Outcome<()> {
        let flying = self.end_bosfs(kill)?;
        if let Some(disk) = &self.disk {
            if let Some(trouble) = disk.trouble() {
                return Err(Mismatch::of(trouble));
            }
            disk.heal();
        }
        self.check_object()?;
        self.counted.remounts += 1;
        self.mount_now()?;
        self.check_shown(&flying)
    }

    fn kill_writer(&mut self) -> Outcome<()> {
        for lane in 0..self.flying.len() {
            if self.flying[lane].as_ref().is_some_and(|flying| !matches!(flying.op, Op::Close { .. })) {
                self.wait_returned(lane, None)?;
            }
        }
        self.counted.cut_closes += u64::from(self.flying.iter().flatten().any(|f| f.state.is_some()));
        let writer = self.writer.take().ok_or_else(|| Mismatch::of("no writer"))?;
        let (replies, ended) = writer.kill(WITHIN);
        for reply in replies {
            let lane = reply.lane;
            self.returned(&reply, true)?;
            self.flying[lane] = None;
        }
        if !ended {
            return Err(Mismatch::of(format!("HANG: the killed writer does not end within {WITHIN:?}")));
        }
        self.flying.iter_mut().for_each(|flying| *flying = None);
        self.open.iter_mut().for_each(|open| *open = false);
        self.troubles.end_all(true, self.counted);
        self.writer = Some(Writer::start(&self.spec.dir).map_err(broken)?);
        self.note("writer killed and started again".into());
        if self.foreign.is_some() {
            // The next mount finds out what became of its base.
            return self.kill(true);
        }
        // Its releases come behind it.
        self.umount_only()?;
        self.check_object()?;
        self.mount_now()?;
        self.check_shown(&[])
    }

    /// The power fails: the disk keeps what `loss` leaves, and bosfs is mounted in another boot.
    fn lose_power(&mut self, loss: Loss, seed: u64) -> Outcome<()> {
        let disk = self.disk.take().ok_or_else(|| Mismatch::of("no disk"))?;
        disk.freeze();
        self.disk = Some(disk);
        let flying = self.end_bosfs(true)?;
        self.check_object()?;
        let image = self.place.dir.join("image");
        let disk = self.disk.take().ok_or_else(|| Mismatch::of("no disk"))?;
        build(&disk.changes(), loss, seed, &image).map_err(broken)?;
        drop(disk);
        let boot = self.boot.as_mut().ok_or_else(|| Mismatch::of("no boot"))?;
        boot.restart(&mut self.spec).map_err(broken)?;
        self.spec.state_dir = image.join("state");
        self.counted.remounts += 1;
        self.mount_now()?;
        self.file.power_lost();
        self.wait_settled()?;
        let shown = self.read_shown()?;
        self.file.after_power(shown.as_ref(), &flying)?;
        self.check_object()?;
        // The object is one of the states that may be there; which one, it tells itself.
        let sum = content(&self.place.bucket, &self.key).map_err(broken)?;
        self.file.settle(&sum)?;
        self.exists = shown.is_some();
        // Written anew, it is whole again whatever was lost.
        let bytes = Arc::new(random_bytes(seed, 70_000));
        let create = Op::Create { slot: 0, path: NAME.into(), exclusive: false, mode: 0o644 };
        let write = Op::Write { slot: 0, at: 0, seed, len: bytes.len() };
        for (op, changes) in [
            (create, vec![Change::Size(0)]),
            (write, vec![Change::Put { at: 0, bytes }]),
            (Op::Close { slot: 0 }, Vec::new()),
        ] {
            self.send(0, Act { op, changes })?;
            self.wait_returned(0, None)?;
        }
        self.file.begin_anew();
        Ok(())
    }

    /// Until nothing more becomes of the file by itself.
    fn wait_settled(&mut self) -> Outcome<()> {
        let end = Instant::now() + WITHIN;
        loop {
            let Some(mount) = &self.mount else { return Err(Mismatch::of("no mount")) };
            let entry = mount.file_status(&self.key);
            let state = entry.as_ref().and_then(|entry| entry["state"].as_str()).unwrap_or("none").to_owned();
            match state.as_str() {
                "none" | "idle" | "done" | "interrupted" => return Ok(()),
                "conflict" | "failed" if self.foreign.is_some() => return Ok(()),
                "failed" | "conflict" => return Err(Mismatch::of(format!("without a reason: {entry:?}"))),
                _ if Instant::now() > end => return Err(Mismatch::of(format!("HANG: stays {entry:?}"))),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Waits until the proxy has nothing of a dead process any more.
    fn wait_quiet(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.place.proxy.counts().calls.values().any(|count| count.open > 0) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        // The server may still be at work on what it was sent.
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Every content that the object had was a closed state, in order.
    fn check_object(&mut self) -> Outcome<()> {
        self.watch.look();
        self.counted.contents += self.watch.check(&self.file.sums()).map_err(broken)?;
        Ok(())
    }

    /// What the mount shows; `None`: no such file.
    fn read_shown(&self) -> Outcome<Option<Shown>> {
        use std::os::unix::fs::FileExt as _;
        let path = self.spec.dir.join(NAME);
        // Beside somebody else's object most of the file may be like that, and each try takes its time.
        let coarse = self.foreign.is_some();
        let read = move || -> std::io::Result<Option<Shown>> {
            let file = match std::fs::File::open(path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            let len = file.metadata()?.len() as usize;
            let mut shown = Shown { bytes: vec![0; len], unreadable: Vec::new() };
            for at in (0..len).step_by(128 << 10) {
                let end = len.min(at + (128 << 10));
                if file.read_exact_at(&mut shown.bytes[at..end], at as u64).is_ok() {
                    continue;
                }
                if coarse {
                    shown.unreadable.push(at..end);
                    continue;
                }
                for at in (at..end).step_by(4096) {
                    let end = end.min(at + 4096);
                    if file.read_exact_at(&mut shown.bytes[at..end], at as u64).is_err() {
                        shown.unreadable.push(at..end);
                    }
                }
            }
            Ok(Some(shown))
        };
        within(WITHIN, "reading the file in the mount", read).map_err(|e| broken(format!("reading in the mount: {e}")))
    }

    fn check_shown(&mut self, flying: &[Change]) -> Outcome<()> {
        let mut shown = self.read_shown()?;
        if let Some(foreign) = &self.foreign {
            if !foreign.unpublished {
                return Ok(());
            }
            // What was never written here came from the object that is gone.
            if !foreign.all_here
                && let Some(shown) = &mut shown
            {
                for range in std::mem::take(&mut shown.unreadable) {
                    let end = range.end.min(self.file.live.len());
                    if let Some(bytes) = self.file.live.get(range.start..end) {
                        shown.bytes[range.start..end].copy_from_slice(bytes);
                    }
                }
            }
        }
        if shown.is_none() && !self.exists {
            return Ok(());
        }
        if shown.is_none() && flying.first() == Some(&Change::Size(0)) && self.file.states.len() == 1 {
            // Its creation was cut off.
            return Ok(());
        }
        self.exists |= shown.is_some();
        // A byte under a call in flight may be one or the other.
        if self.sabotage == Some(WideSabotage::Shown) && flying.is_empty() && !self.file.live.is_empty() {
            self.file.live[0] ^= 1;
            self.sabotage = None;
            self.counted.sabotaged = true;
        }
        self.file.after_kill(shown.as_ref(), flying)
    }

    fn close_all(&mut self) -> Outcome<()> {
        self.troubles.end_all(true, self.counted);
        for lane in 0..self.open.len() {
            self.wait_returned(lane, None)?;
            if self.open[lane] {
                self.send(lane, Act { op: Op::Close { slot: 0 }, changes: Vec::new() })?;
                self.wait_returned(lane, None)?;
            }
        }
        Ok(())
    }

    fn umount_only(&mut self) -> Outcome<()> {
        let mut mount = self.mount.take().ok_or_else(|| Mismatch::of("no mount"))?;
        let output = mount.umount(WITHIN);
        if !output.status.success() {
            self.mount = Some(mount);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Mismatch::of(format!("bosfs umount: {} {text}", output.status)));
        }
        self.note("unmounted".into());
        Ok(())
    }

    /// `bosfs umount`, after which the object must be what was closed last.
    fn umount(&mut self) -> Outcome<()> {
        self.umount_only()?;
        self.check_object()?;
        if self.sabotage == Some(WideSabotage::Published)
            && let Some((_, crc)) = self.file.states.last_mut().and_then(|state| state.sum.as_mut())
        {
            *crc ^= 1;
            self.sabotage = None;
            self.counted.sabotaged = true;
        }
        let sum = content(&self.place.bucket, &self.key).map_err(broken)?;
        self.file.settle(&sum)?;
        self.no_uploads_left()
    }

    /// Nothing is left of uploads, unless the file is kept.
    fn no_uploads_left(&self) -> Outcome<()> {
        let left = self.place.bucket.uploads(&self.key).map_err(broken)?;
        let kills = self.counted.remounts > 0;
        if left.is_empty() || self.file.stage != Stage::Clean || kills {
            return Ok(());
        }
        Err(Mismatch::of(format!("{} uploads are left after umount", left.len())))
    }

    /// The line is dead, and somebody else writes the object or removes it.
    fn somebody_else(&mut self, step: &WideStep) -> Outcome<()> {
        if self.flying.iter().flatten().any(|flying| !matches!(flying.op, Op::Close { .. })) {
            return Ok(());
        }
        self.place.proxy.set_line(Line::Dead);
        self.wait_quiet();
        self.check_object()?;
        let sum = content(&self.place.bucket, &self.key).map_err(broken)?;
        let Some(now) = self.file.find(&sum, self.file.floor) else {
            return Err(Mismatch::of("MIXED: the object is none of the closed states"));
        };
        let unpublished = now < self.file.last() || self.file.stage != Stage::Clean;
        let removes = step.pick[0] % 4 == 0 && sum.is_some();
        let bytes = random_bytes(step.pick[1], 1000 + (step.pick[2] % 90_000) as usize);
        let theirs = if removes { None } else { sum_of(&bytes) };
        self.file.states.push(super::model::Closed { sum: theirs, certain: true });
        let state = self.file.last();
        self.foreign = Some(Foreign { state, unpublished, all_here: sum.is_none() });
        let count = if unpublished { &mut self.counted.foreign.0 } else { &mut self.counted.foreign.1 };
        *count += 1;
        self.note(format!("somebody else {} it", if removes { "removes" } else { "writes" }));
        match removes {
            true => self.place.bucket.delete(&self.key).map_err(broken)?,
            false => drop(self.place.bucket.put(&self.key, &bytes).map_err(broken)?),
        }
        self.file.floor = state;
        self.watch.is_at_least(state);
        self.take_replies(Duration::from_millis(step.pick[2] % 500), None)?;
        self.place.proxy.set_line(Line::Alive);
        Ok(())
    }

    /// What somebody else wrote stays, and what was accepted here is kept and can be published beside it.
    fn end_beside_foreign(&mut self) -> Outcome<()> {
        let Foreign { state, unpublished, all_here } = self.foreign.ok_or_else(|| Mismatch::of("nobody else"))?;
        self.close_all()?;
        if unpublished {
            let end = Instant::now() + WITHIN;
            let is_told = |mount: &Mounted, key: &str| mount.file_status(key).is_some_and(|e| e["state"] == "conflict");
            while !self.mount.as_ref().is_some_and(|mount| is_told(mount, &self.key)) {
                if Instant::now() > end {
                    let entry = self.mount.as_ref().and_then(|mount| mount.file_status(&self.key));
                    return Err(Mismatch::of(format!("somebody else's object, and no conflict is told: {entry:?}")));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            self.rescue(all_here)?;
        }
        self.umount_only()?;
        self.check_object()?;
        let sum = content(&self.place.bucket, &self.key).map_err(broken)?;
        match sum == self.file.states[state].sum {
            true => Ok(()),
            false => Err(Mismatch::of(format!("FOREIGN: somebody else's object became {sum:?}"))),
        }
    }

    /// `bosfs uploads complete --as`: the bytes are all there. With a base that is gone it may not be able to; then the bytes
    /// stay until somebody gives them up.
    fn rescue(&mut self, all_here: bool) -> Outcome<()> {
        let Some(mount) = &self.mount else { return Err(Mismatch::of("no mount")) };
        let object = format!("{}/{}", self.place.spec.target, self.key);
        let beside = format!("{}rescued", self.place.prefix);
        let output = run_command(&mut mount.command(&["uploads", "complete", &object, "--as", &beside]), WITHIN);
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_kept =
                std::fs::read_dir(self.state_dir().join("uploads")).is_ok_and(|mut left| left.next().is_some());
            if all_here || !is_kept {
                return Err(Mismatch::of(format!("uploads complete --as: {} {text}", output.status)));
            }
            self.counted.not_rescued += 1;
            // It may have got the other key before it was found out.
            let beside = format!("{}/{beside}", self.place.spec.target);
            let given_up = [&object, &beside].into_iter().any(|object| {
                run_command(&mut mount.command(&["uploads", "abort", object, "--yes"]), WITHIN).status.success()
            });
            return match given_up {
                true => Ok(()),
                false => Err(Mismatch::of(format!("what could not be published cannot be given up either: {text}"))),
            };
        }
        let found = content(&self.place.bucket, &beside).map_err(broken)?;
        let live = sum_of(&self.file.live);
        match found == live || self.file.find(&found, 0).is_some_and(|n| n > 0) {
            true => Ok(()),
            false => Err(Mismatch {
                why: format!("LOST: rescued is {found:?}, the file was {live:?}"),
                bytes_lost: self.file.live.len() as u64,
            }),
        }
    }
}

/// The call may have to ask BOS before it does anything.
fn asks(op: &Op) -> bool {
    matches!(op, Op::Open { .. } | Op::CopyRange { .. } | Op::Chmod { .. })
}

fn is_hit(killer: Option<&DiskRule>) -> bool {
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
