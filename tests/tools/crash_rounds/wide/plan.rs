//! What happens in a round of several handles: drawn from its seed alone.

use crate::crash_rounds::draw::Draw;
use crate::support::disk::power::Loss;

/// Bytes of a part: the least that BOS allows.
pub const PART: u64 = 5 << 20;
/// Rounds of which one has an outage that lasts longer than every interactive timeout.
const LONG_OUTAGE_EVERY: u64 = 400;
const LONG_OUTAGE_MS: u64 = 40_000;

#[derive(Clone, Debug)]
pub struct WidePlan {
    pub write_back: bool,
    /// `--timeout`: calls that wait longer fail, and the work goes on behind.
    pub timeout_s: Option<u64>,
    pub base: Base,
    pub handles: usize,
    /// The state directory is on a disk that can fail.
    pub disk: bool,
    pub phases: Vec<WidePhase>,
}

/// What the key has before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    None,
    /// Goes by one PutObject.
    Small,
    /// Several parts' worth, put as one.
    Large,
    /// Several parts' worth, composed by somebody else of parts of another size.
    Composed,
}

#[derive(Clone, Debug)]
pub struct WidePhase {
    pub steps: Vec<WideStep>,
    /// What is stuck from which step to which.
    pub stuck: Vec<StuckFor>,
    pub end: WideEnd,
}

#[derive(Clone, Copy, Debug)]
pub struct WideStep {
    pub handle: usize,
    pub what: Doing,
    pub pick: [u64; 3],
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Doing {
    Open,
    /// With `O_TRUNC`, and a write behind it.
    OpenEmpty,
    /// Near the beginning, where bytes mostly come from the base.
    WriteCopied,
    /// Where somebody wrote before.
    WriteAgain,
    /// Over the border of two parts.
    WriteSeam,
    WriteLarge,
    Append,
    Shrink,
    /// To nothing, and a write behind it.
    Empty,
    Grow,
    Fallocate,
    Punch,
    CopyRange,
    /// Many writes of one byte.
    Burst,
    Fsync,
    Close,
    Chmod,
    /// Somebody else writes the object, or removes it, while no request gets through.
    Foreign,
}

impl Doing {
    pub const ALL: [Doing; 18] = [
        Doing::Open,
        Doing::OpenEmpty,
        Doing::WriteCopied,
        Doing::WriteAgain,
        Doing::WriteSeam,
        Doing::WriteLarge,
        Doing::Append,
        Doing::Shrink,
        Doing::Empty,
        Doing::Grow,
        Doing::Fallocate,
        Doing::Punch,
        Doing::CopyRange,
        Doing::Burst,
        Doing::Fsync,
        Doing::Close,
        Doing::Chmod,
        Doing::Foreign,
    ];

    /// It changes the bytes.
    pub fn changes(self) -> bool {
        !matches!(self, Doing::Open | Doing::Fsync | Doing::Close | Doing::Chmod | Doing::Foreign)
    }
}

/// What does not get through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stuck {
    /// 503 to Complete.
    Complete,
    /// The connection is cut behind Complete: nobody knows whether BOS acted.
    CompleteUnanswered,
    /// 503 to UploadPart.
    Part,
    /// 503 to UploadPartCopy.
    Copy,
    /// 503 to PutObject.
    Put,
    /// The line is dead.
    Line,
    /// Nothing is refused, but the line is slow.
    Slow,
    /// Syncs of the disk are late.
    Syncs,
}

impl Stuck {
    pub const ALL: [Stuck; 8] = [
        Stuck::Complete,
        Stuck::CompleteUnanswered,
        Stuck::Part,
        Stuck::Copy,
        Stuck::Put,
        Stuck::Line,
        Stuck::Slow,
        Stuck::Syncs,
    ];
}

#[derive(Clone, Copy, Debug)]
pub struct StuckFor {
    pub what: Stuck,
    pub from: usize,
    /// Steps up to this one are made meanwhile.
    pub to: usize,
    /// Not sooner than so long after it began.
    pub ms: u64,
}

/// How a phase ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WideEnd {
    /// SIGKILL of bosfs, so long after the last step was begun.
    Kill { micros: u64 },
    /// SIGTERM.
    Stop,
    /// SIGKILL of the writer.
    KillWriter,
    /// Everything is closed, then `bosfs umount`.
    Umount,
    /// SIGKILL at a change of the state directory, so many others before it, from this step on.
    DiskKill { step: usize, skip: u64, after: bool },
    /// The same, at a step of a checkpoint of the journal.
    CheckpointKill { skip: u64, after: bool },
    /// The power fails so long after the last step was begun.
    Power { micros: u64, loss: Loss, seed: u64 },
}

impl WideEnd {
    pub fn name(self) -> &'static str {
        match self {
            WideEnd::Kill { .. } => "kill",
            WideEnd::Stop => "stop",
            WideEnd::KillWriter => "kill writer",
            WideEnd::Umount => "umount",
            WideEnd::DiskKill { .. } => "kill at a change of the disk",
            WideEnd::CheckpointKill { .. } => "kill in a checkpoint",
            WideEnd::Power { .. } => "power loss",
        }
    }
}

impl WidePlan {
    pub fn new(seed: u64) -> Self {
        let mut draw = Draw::new(seed ^ 0x51de);
        let write_back = draw.chance(50);
        let disk = draw.chance(40);
        let base = draw.weighted(&[(15, Base::None), (15, Base::Small), (40, Base::Large), (30, Base::Composed)]);
        let handles = draw.weighted(&[(45, 2), (35, 3), (20, 4)]);
        let phase_count = draw.weighted(&[(65, 1), (35, 2)]);
        let phases = (0..phase_count).map(|n| phase(&mut draw, seed, n, handles, disk)).collect();
        let timeout_s = draw.chance(10).then_some(2);
        Self { write_back, timeout_s, base, handles, disk, phases }
    }

    pub fn options(&self) -> Vec<String> {
        let mut options = vec!["--part-size".to_owned(), "5MiB".into()];
        if self.write_back {
            options.push("--write-back".into());
        }
        if let Some(seconds) = self.timeout_s {
            options.extend(["--timeout".into(), format!("{seconds}s")]);
        }
        options
    }
}

fn phase(draw: &mut Draw, seed: u64, number: u64, handles: usize, disk: bool) -> WidePhase {
    let mut drawn = Drawn { steps: Vec::new(), stuck: Vec::new(), handles, disk };
    drawn.step(draw, 0, Doing::Open);
    for _ in 0..draw.below(4) {
        drawn.any(draw, None);
    }
    for _ in 0..draw.weighted(&[(65, 1), (35, 2)]) {
        drawn.scene(draw);
    }
    for _ in 0..draw.below(4) {
        drawn.any(draw, None);
    }
    if draw.chance(12) && number == 0 {
        drawn.step(draw, 0, Doing::Foreign);
    }
    let Drawn { steps, mut stuck, .. } = drawn;
    let last = steps.len();
    if seed.is_multiple_of(LONG_OUTAGE_EVERY) && number == 0 {
        stuck.push(StuckFor { what: Stuck::Line, from: last / 2, to: last, ms: LONG_OUTAGE_MS });
    }
    WidePhase { end: end(draw, last, disk), steps, stuck }
}

/// The steps of a phase as they are drawn.
struct Drawn {
    steps: Vec<WideStep>,
    stuck: Vec<StuckFor>,
    handles: usize,
    disk: bool,
}

impl Drawn {
    fn step(&mut self, draw: &mut Draw, handle: usize, what: Doing) {
        self.steps.push(WideStep { handle, what, pick: [draw.number(), draw.number(), draw.number()] });
    }

    /// One of a handle, but not of `not`.
    fn any(&mut self, draw: &mut Draw, not: Option<usize>) {
        let handle = loop {
            let handle = draw.below(self.handles as u64) as usize;
            if Some(handle) != not {
                break handle;
            }
        };
        let what = draw.weighted(&[
            (14, Doing::WriteCopied),
            (10, Doing::WriteAgain),
            (5, Doing::WriteSeam),
            (3, Doing::WriteLarge),
            (8, Doing::Append),
            (4, Doing::Shrink),
            (3, Doing::Empty),
            (2, Doing::Grow),
            (2, Doing::Fallocate),
            (3, Doing::Punch),
            (2, Doing::CopyRange),
            (if self.disk { 6 } else { 2 }, Doing::Burst),
            (5, Doing::Fsync),
            (14, Doing::Close),
            (3, Doing::Chmod),
            (3, Doing::OpenEmpty),
            (10, Doing::Open),
        ]);
        self.step(draw, handle, what);
    }

    /// Two have the file open; one writes, and closes while something is stuck; the others go on meanwhile.
    fn scene(&mut self, draw: &mut Draw) {
        let a = draw.below(self.handles as u64) as usize;
        let b = (a + 1 + draw.below(self.handles as u64 - 1) as usize) % self.handles;
        let what = draw.weighted(&[
            (24, Stuck::Complete),
            (8, Stuck::CompleteUnanswered),
            (16, Stuck::Part),
            (16, Stuck::Copy),
            (10, Stuck::Put),
            (12, Stuck::Line),
            (6, Stuck::Slow),
            (if self.disk { 20 } else { 0 }, Stuck::Syncs),
        ]);
        let writes = draw.of(&[Doing::WriteCopied, Doing::WriteSeam, Doing::Append, Doing::WriteAgain]);
        self.step(draw, b, Doing::Open);
        self.step(draw, a, Doing::Open);
        // What becomes one part goes by PutObject.
        self.step(draw, a, if what == Stuck::Put { Doing::Empty } else { writes });
        let from = self.steps.len();
        self.step(draw, a, Doing::Close);
        for _ in 0..2 + draw.below(5) {
            self.any(draw, Some(a));
        }
        self.stuck.push(StuckFor { what, from, to: self.steps.len(), ms: draw.below(400) });
    }
}

fn end(draw: &mut Draw, steps: usize, disk: bool) -> WideEnd {
    let micros = draw.of(&[0, 200, 1000, 5000, 50_000]);
    let (skip, skip_few, after) = (draw.below(60), draw.below(6), draw.chance(50));
    let step = draw.below(steps as u64) as usize;
    let power = WideEnd::Power { micros, loss: draw.of(&Loss::ALL), seed: draw.number() };
    match disk {
        true => draw.weighted(&[
            (40, power),
            (25, WideEnd::DiskKill { step, skip, after }),
            (20, WideEnd::CheckpointKill { skip: skip_few, after }),
            (15, WideEnd::Umount),
        ]),
        false => draw.weighted(&[
            (50, WideEnd::Kill { micros }),
            (10, WideEnd::Stop),
            (15, WideEnd::KillWriter),
            (25, WideEnd::Umount),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_plan_comes_from_its_seed_alone() {
        for seed in 0..50 {
            assert_eq!(format!("{:?}", WidePlan::new(seed)), format!("{:?}", WidePlan::new(seed)));
        }
        assert_ne!(format!("{:?}", WidePlan::new(1)), format!("{:?}", WidePlan::new(2)));
    }

    #[test]
    fn every_kind_of_step_trouble_base_and_end_comes() {
        let (mut doings, mut stuck, mut ends) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (mut bases, mut handles, mut long) = (BTreeSet::new(), BTreeSet::new(), 0);
        for seed in 0..2000 {
            let plan = WidePlan::new(seed);
            bases.insert(format!("{:?}", plan.base));
            handles.insert(plan.handles);
            for phase in &plan.phases {
                assert!(phase.steps.iter().all(|step| step.handle < plan.handles), "{plan:?}");
                let at_disk = ["DiskKill", "CheckpointKill", "Power"];
                let needs_disk = at_disk.iter().any(|end| format!("{:?}", phase.end).starts_with(end));
                assert!(plan.disk || !needs_disk, "{plan:?}");
                assert!(plan.disk || phase.stuck.iter().all(|stuck| stuck.what != Stuck::Syncs), "{plan:?}");
                doings.extend(phase.steps.iter().map(|step| step.what));
                stuck.extend(phase.stuck.iter().map(|stuck| stuck.what));
                long += phase.stuck.iter().filter(|stuck| stuck.ms > 30_000).count();
                ends.insert(phase.end.name());
            }
        }
        assert_eq!(doings.len(), Doing::ALL.len(), "{doings:?}");
        assert_eq!(stuck.len(), Stuck::ALL.len(), "{stuck:?}");
        assert_eq!((ends.len(), bases.len(), handles.len()), (7, 4, 3), "{ends:?}");
        assert_eq!(long, 5);
    }
}
