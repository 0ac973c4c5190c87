//! What happens in a round: drawn from its seed alone. Which file a step means is settled when its turn comes, because what
//! a kill left behind is known only then.

use super::draw::Draw;
use crate::support::HoldAt;

/// Bytes of a part in all rounds: the least that BOS allows.
pub const PART: u64 = 5 << 20;

#[derive(Clone, Debug)]
pub struct Plan {
    pub write_back: bool,
    /// `--interrupted keep` is said, not left to the default.
    pub keep: bool,
    pub lanes: usize,
    /// Calls of different lanes overlap.
    pub overlap: bool,
    pub phases: Vec<Phase>,
    /// After the last umount everything is looked at once more, from the bucket alone if nothing interrupted is left.
    pub look_again: bool,
}

/// What happens up to the moment when something is killed or ended.
#[derive(Clone, Debug)]
pub struct Phase {
    pub steps: Vec<Step>,
    pub faults: Vec<Fault>,
    pub end: End,
}

/// A call to be made by one lane; `pick` chooses among what is there then.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub lane: usize,
    pub what: What,
    pub slot: usize,
    pub pick: [u64; 3],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Create,
    /// As mkstemp does, with the name that rsync gives.
    CreateTemporary,
    /// A name that ends with `.part`.
    CreatePart,
    Open,
    Write {
        large: bool,
    },
    Append {
        large: bool,
    },
    Cut,
    CutPath,
    Fsync,
    Close,
    Rename,
    /// A temporary to the name that it is for.
    RenameTemporary,
    RenameDir,
    Unlink,
    Mkdir,
    Rmdir,
    Chmod,
    CopyRange,
}

/// Something that is done to the line from a step on.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub at_step: usize,
    pub kind: FaultKind,
    /// Fitting requests that pass before.
    pub skip: u64,
    pub ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultKind {
    /// The server acted, the answer is lost.
    LostAnswer,
    Refused,
    ResetBeforeBody,
    ResetInsideBody,
    ResetAfterBody,
    /// The answer of a read ends early.
    ShortAnswer,
    Status500,
    /// The server acted, and a gateway says 500.
    Status500Acted,
    Status502Page,
    Status503,
    Status429,
    /// Throttling in the form of a 403.
    RateRefused,
    /// Silence, then the request goes on.
    StallThenGo,
    /// Silence, then the connection is closed.
    StallThenReset,
    /// A second client aborts the upload before a part.
    AbortBeforePart,
    /// A second client aborts the upload before Complete.
    AbortBeforeComplete,
    /// All connections are reset, new ones too, for a while.
    DeadLine,
    /// No byte moves for a while.
    SilentLine,
}

impl FaultKind {
    pub const ALL: [FaultKind; 18] = [
        FaultKind::LostAnswer,
        FaultKind::Refused,
        FaultKind::ResetBeforeBody,
        FaultKind::ResetInsideBody,
        FaultKind::ResetAfterBody,
        FaultKind::ShortAnswer,
        FaultKind::Status500,
        FaultKind::Status500Acted,
        FaultKind::Status502Page,
        FaultKind::Status503,
        FaultKind::Status429,
        FaultKind::RateRefused,
        FaultKind::StallThenGo,
        FaultKind::StallThenReset,
        FaultKind::AbortBeforePart,
        FaultKind::AbortBeforeComplete,
        FaultKind::DeadLine,
        FaultKind::SilentLine,
    ];

    /// Fires only in a round with files of several parts.
    pub fn needs_parts(self) -> bool {
        matches!(self, FaultKind::AbortBeforePart | FaultKind::AbortBeforeComplete)
    }
}

/// How a phase ends. What is killed then is mounted or started again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// SIGKILL of bosfs.
    Kill(Moment),
    /// SIGTERM of bosfs.
    Stop(Moment),
    /// SIGKILL of the writer process; the mount lives on.
    KillWriter(Moment),
    /// Everything is closed, then `bosfs umount`.
    Umount,
}

impl End {
    pub fn moment(self) -> Moment {
        match self {
            End::Kill(moment) | End::Stop(moment) | End::KillWriter(moment) => moment,
            End::Umount => Moment::Last,
        }
    }
}

/// When it is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// When a request that changes something is held at this point, `skip` others before it.
    Held { skip: u64, at: HoldAt },
    /// So long after a step was begun.
    After { step: usize, micros: u64 },
    /// After the last step has returned.
    Last,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let write_back = draw.chance(45);
        let keep = draw.chance(30);
        let lanes = draw.weighted(&[(60, 1), (30, 2), (10, 3)]);
        let large = draw.chance(15);
        let phase_count = draw.weighted(&[(60, 1), (30, 2), (10, 3)]);
        let mut phases = Vec::new();
        for _ in 0..phase_count {
            let stories = draw.weighted(&[(10, 2), (25, 4), (35, 6), (30, 9)]).max(lanes as u64);
            let mut steps = Vec::new();
            let mut rows: Vec<Vec<Step>> = (0..lanes).map(|_| Vec::new()).collect();
            for n in 0..stories {
                let lane = (n % lanes as u64) as usize;
                story(&mut draw, lane, large, &mut rows[lane]);
            }
            let mut rows: Vec<_> = rows.into_iter().map(|row| row.into_iter().peekable()).collect();
            while rows.iter_mut().any(|row| row.peek().is_some()) {
                let row = draw.below(lanes as u64) as usize;
                steps.extend(rows[row].next());
            }
            let moment = moment(&mut draw, steps.len());
            let end = draw.weighted(&[
                (60, End::Kill(moment)),
                (15, End::Stop(moment)),
                (12, End::KillWriter(moment)),
                (13, End::Umount),
            ]);
            let fault_count = draw.weighted(&[(30, 0), (45, 1), (20, 2), (5, 3)]);
            let faults = (0..fault_count).map(|_| fault(&mut draw, steps.len(), large)).collect();
            phases.push(Phase { steps, faults, end });
        }
        // At least one remount.
        if phases.iter().all(|phase| matches!(phase.end, End::KillWriter(_)))
            && let Some(last) = phases.last_mut()
        {
            last.end = End::Kill(last.end.moment());
        }
        Self { write_back, keep, lanes, overlap: draw.chance(80), phases, look_again: draw.chance(20) }
    }

    pub fn options(&self) -> Vec<String> {
        let mut options = vec!["--part-size".to_owned(), "5MiB".into()];
        if self.write_back {
            options.push("--write-back".into());
        }
        if self.keep {
            options.extend(["--interrupted".into(), "keep".into()]);
        }
        options
    }
}

fn moment(draw: &mut Draw, steps: usize) -> Moment {
    let at = match draw.below(3) {
        0 => HoldAt::BeforeForward,
        1 => HoldAt::BeforeAnswer,
        _ => HoldAt::InsideBody { after_bytes: 1 },
    };
    let held = Moment::Held { skip: draw.below(2 + steps as u64 / 2), at };
    let late = draw.below(steps as u64) as usize;
    let micros = draw.of(&[0, 100, 300, 1000, 3000]);
    draw.weighted(&[(55, held), (35, Moment::After { step: late, micros }), (10, Moment::Last)])
}

fn fault(draw: &mut Draw, steps: usize, large: bool) -> Fault {
    let mut kind = draw.of(&FaultKind::ALL);
    while kind.needs_parts() && !large {
        kind = draw.of(&FaultKind::ALL);
    }
    if large && draw.chance(25) {
        kind = draw.of(&[FaultKind::AbortBeforePart, FaultKind::AbortBeforeComplete]);
    }
    let skip = if kind.needs_parts() { 0 } else { draw.weighted(&[(60, 0), (25, 1), (15, 3)]) };
    Fault { at_step: draw.below(steps as u64) as usize, kind, skip, ms: 20 + draw.below(130) }
}

/// A few calls that belong together, as a program makes them.
fn story(draw: &mut Draw, lane: usize, large: bool, steps: &mut Vec<Step>) {
    let slot = draw.below(2) as usize;
    let mut step = |draw: &mut Draw, what| {
        steps.push(Step { lane, what, slot, pick: [draw.number(), draw.number(), draw.number()] });
    };
    let big = |draw: &mut Draw| large && draw.chance(40);
    let left_open = draw.chance(15);
    match draw.below(100) {
        // A file is written.
        0..26 => {
            step(draw, What::Create);
            for _ in 0..draw.weighted(&[(10, 0), (45, 1), (30, 2), (15, 3)]) {
                let what = What::Append { large: big(draw) };
                step(draw, what);
            }
            if draw.chance(20) {
                step(draw, What::Fsync);
                step(draw, What::Write { large: false });
            }
            if draw.chance(10) {
                step(draw, What::Chmod);
            }
            if !left_open {
                step(draw, What::Close);
            }
        }
        // rsync, a download: under another name first.
        26..44 => {
            let temporary = draw.chance(70);
            step(draw, if temporary { What::CreateTemporary } else { What::CreatePart });
            for _ in 0..1 + draw.below(2) {
                let what = What::Append { large: big(draw) };
                step(draw, what);
            }
            if draw.chance(30) {
                step(draw, What::Cut);
            }
            step(draw, What::Close);
            if draw.chance(50) {
                step(draw, What::Chmod);
            }
            if !left_open {
                step(draw, What::RenameTemporary);
            }
        }
        // A file is changed.
        44..66 => {
            step(draw, What::Open);
            for _ in 0..1 + draw.below(3) {
                let what = match draw.below(10) {
                    0..5 => What::Write { large: big(draw) },
                    5..8 => What::Append { large: big(draw) },
                    8 => What::Cut,
                    _ => What::CopyRange,
                };
                step(draw, what);
                if draw.chance(15) {
                    step(draw, What::Fsync);
                }
            }
            if draw.chance(10) {
                let what = draw.of(&[What::Rename, What::Unlink]);
                step(draw, what);
            }
            if !left_open {
                step(draw, What::Close);
            }
        }
        // One copied within the mount.
        66..70 => {
            step(draw, What::Create);
            step(draw, What::CopyRange);
            step(draw, What::Close);
        }
        70..79 => step(draw, What::Rename),
        79..85 => step(draw, What::Unlink),
        85..89 => step(draw, What::CutPath),
        89..92 => step(draw, What::Chmod),
        92..95 => step(draw, What::Mkdir),
        95..96 => step(draw, What::RenameDir),
        96..98 => step(draw, What::Rmdir),
        _ => {
            step(draw, What::Mkdir);
            step(draw, What::Create);
            step(draw, What::Append { large: false });
            step(draw, What::Close);
            step(draw, What::RenameDir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_comes_from_its_seed_alone() {
        for seed in 0..50 {
            assert_eq!(format!("{:?}", Plan::new(seed)), format!("{:?}", Plan::new(seed)));
        }
        assert_ne!(format!("{:?}", Plan::new(1)), format!("{:?}", Plan::new(2)));
    }

    #[test]
    fn every_plan_has_steps_and_a_remount_and_all_kinds_come() {
        let mut faults = std::collections::BTreeSet::new();
        let mut ends = std::collections::BTreeSet::new();
        let mut whats = std::collections::BTreeSet::new();
        for seed in 0..2000 {
            let plan = Plan::new(seed);
            assert!(plan.phases.iter().all(|phase| !phase.steps.is_empty()), "{plan:?}");
            assert!(plan.phases.iter().any(|phase| !matches!(phase.end, End::KillWriter(_))), "{plan:?}");
            for phase in &plan.phases {
                assert!(phase.faults.iter().all(|fault| fault.at_step < phase.steps.len()));
                faults.extend(phase.faults.iter().map(|fault| fault.kind));
                ends.insert(format!("{:?}", phase.end).split('(').next().unwrap_or_default().to_owned());
                whats.extend(phase.steps.iter().map(|step| format!("{:?}", step.what)));
            }
        }
        assert_eq!(faults.len(), FaultKind::ALL.len(), "{faults:?}");
        assert_eq!(ends.len(), 4, "{ends:?}");
        assert!(whats.len() >= 18, "{whats:?}");
    }
}
