//! Which call a step is, given the file as it is: pure.

use std::sync::Arc;

use super::model::Change;
use super::plan::{Doing, PART, WideStep};
use crate::crash_rounds::calls::Op;
use crate::support::files::random_bytes;

/// Name of the file, and of another one that was there before.
pub const NAME: &str = "f";
pub const OTHER: &str = "other";
/// Largest file.
const SIZE_MAX: u64 = 3 * PART + 700_000;
const MIB: u64 = 1 << 20;

/// A call, and what it does to the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    pub op: Op,
    pub changes: Vec<Change>,
}

/// What a step can be chosen from.
pub struct Around<'a> {
    pub live: &'a [u8],
    pub exists: bool,
    pub is_open: bool,
    /// Where was written last.
    pub last_at: u64,
    pub other: &'a Arc<Vec<u8>>,
}

fn put(at: u64, seed: u64, len: u64) -> Act {
    let bytes = Arc::new(random_bytes(seed, len as usize));
    Act { op: Op::Write { slot: 0, at, seed, len: len as usize }, changes: vec![Change::Put { at, bytes }] }
}

fn cut(size: u64) -> Act {
    Act { op: Op::Cut { slot: 0, size }, changes: vec![Change::Size(size)] }
}

fn plain(op: Op) -> Act {
    Act { op, changes: Vec::new() }
}

/// The calls of a step, one after the other; none: nothing fits.
pub fn resolve(step: &WideStep, around: &Around<'_>) -> Vec<Act> {
    let [first, second, third] = step.pick;
    let size = around.live.len() as u64;
    let small = [1, 100, 512, 4096, 5000, 33_333][(third % 6) as usize];
    let write = |at: u64, len: u64| {
        let at = at.min(SIZE_MAX - 1);
        vec![put(at, third, len.min(SIZE_MAX - at).max(1))]
    };
    let path = || NAME.to_owned();
    let create = || Act {
        op: Op::Create { slot: 0, path: path(), exclusive: false, mode: 0o644 },
        changes: vec![Change::Size(0)],
    };
    match (step.what, around.is_open) {
        (Doing::Open, false) if around.exists => vec![plain(Op::Open { slot: 0, path: path() })],
        // Whoever empties it writes at once: an empty file that nobody writes to is published by other rules.
        (Doing::Open | Doing::OpenEmpty, false) => vec![create(), put(0, third, small)],
        (Doing::Chmod, _) if around.exists => {
            vec![plain(Op::Chmod { path: path(), mode: [0o600, 0o640, 0o644][(first % 3) as usize] })]
        }
        (_, false) | (Doing::Open | Doing::OpenEmpty | Doing::Foreign | Doing::Chmod, _) => Vec::new(),
        (Doing::WriteCopied, _) => write(first % (size / 2).max(1), small),
        (Doing::WriteAgain, _) => write((around.last_at + second % 9000).saturating_sub(4500), small),
        (Doing::WriteSeam, _) => write((PART * (1 + first % 2)).min(size).saturating_sub(second % 5000), 6000 + small),
        (Doing::WriteLarge, _) => write(first % (size + 1), [PART, PART + 300_000, 2 * MIB + 1][(second % 3) as usize]),
        (Doing::Append, _) => write(size, small),
        (Doing::Shrink, _) if size > 1 => vec![cut(1 + first % (size - 1))],
        (Doing::Shrink, _) => Vec::new(),
        (Doing::Empty, _) => vec![cut(0), put(second % 100, third, small)],
        (Doing::Grow, _) => vec![cut((size + 1 + first % (2 * MIB)).min(SIZE_MAX))],
        (Doing::Fallocate, _) => {
            let (at, len) = (size.saturating_sub(second % 10_000), 20_000 + first % MIB);
            let act = Act { op: Op::Grow { slot: 0, at, len }, changes: vec![Change::Size(at + len)] };
            if at + len > SIZE_MAX { Vec::new() } else { vec![act] }
        }
        (Doing::Punch, _) if size > 0 => {
            let (at, len) = (first % size, 1 + second % MIB);
            let change = Change::Zero { at, len };
            vec![Act { op: Op::Punch { slot: 0, at, len }, changes: vec![change] }]
        }
        (Doing::Punch, _) => Vec::new(),
        (Doing::CopyRange, _) => {
            let (at, len) = (first % (size + 1), around.other.len() as u64);
            let op = Op::CopyRange { from: OTHER.to_owned(), slot: 0, at, len };
            let fits = at + len <= SIZE_MAX;
            let act = Act { op, changes: vec![Change::Put { at, bytes: around.other.clone() }] };
            if fits { vec![act] } else { Vec::new() }
        }
        (Doing::Burst, _) => {
            let (step, count) = (2 + second % 3, 300 + (third % 700) as usize);
            let at = first % (size + 1).min(SIZE_MAX - 10_000);
            let bytes = random_bytes(third, count);
            let changes =
                (0..).zip(bytes).map(|(n, byte)| Change::Put { at: at + n * step, bytes: Arc::new(vec![byte]) });
            vec![Act { op: Op::Burst { slot: 0, at, step, count, seed: third }, changes: changes.collect() }]
        }
        (Doing::Fsync, _) => vec![plain(Op::Fsync { slot: 0 })],
        (Doing::Close, _) => vec![plain(Op::Close { slot: 0 })],
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::FileModel;
    use super::super::plan::WidePlan;
    use super::*;

    #[test]
    fn every_step_of_every_plan_is_a_call_that_the_model_takes() {
        let other = Arc::new(random_bytes(3, 1000));
        let mut names = std::collections::BTreeMap::new();
        for seed in 0..40 {
            let plan = WidePlan::new(seed);
            let mut file = FileModel::new(seed.is_multiple_of(2).then(|| random_bytes(1, 700_000)));
            let mut open = [false; 4];
            let mut exists = seed.is_multiple_of(2);
            for step in plan.phases.iter().flat_map(|phase| &phase.steps) {
                let around =
                    Around { live: &file.live, exists, is_open: open[step.handle], last_at: 5000, other: &other };
                for act in resolve(step, &around) {
                    *names.entry(act.op.name()).or_insert(0) += 1;
                    match &act.op {
                        Op::Open { .. } | Op::Create { .. } => (open[step.handle], exists) = (true, true),
                        Op::Close { .. } => {
                            open[step.handle] = false;
                            file.close();
                        }
                        _ => {}
                    }
                    act.changes.into_iter().for_each(|change| file.apply(change));
                    assert!(file.live.len() as u64 <= SIZE_MAX, "{step:?}");
                }
            }
            assert!(file.states.len() < 40);
        }
        assert!(names.len() >= 10 && names["close"] > 40, "{names:?}");
    }
}
