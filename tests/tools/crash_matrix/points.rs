//! Beside the table: what happens to the disk of the state directory inside a checkpoint of a journal, under thousands of small
//! writes. A row for each fault, a column for each step of the checkpoint.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::plan::{Settings, like};
use crate::support::crash::checkpoint::{Cut, Point, round};
use crate::support::crash::outcome::Outcome;
use crate::support::disk::power::Loss;
use crate::support::files::splitmix64;

/// Changes of one new journal that are looked at: it is made, written (in one piece or more), synced, renamed.
const NEW_JOURNAL_STEPS: u64 = 6;
const DIR_SYNCS: u64 = 2;
/// Points of `--quick`.
const QUICK_POINTS: usize = 6;

/// A fault at a step.
#[derive(Clone, Copy, Debug)]
struct PointCell {
    cut: Cut,
    point: Point,
}

impl PointCell {
    fn fault(&self) -> &'static str {
        match self.cut {
            Cut::KillBefore => "disk-kill-before",
            Cut::KillAfter => "disk-kill-after",
            Cut::Fail(rustix::io::Errno::NOSPC) => "disk-full",
            Cut::Fail(_) => "disk-error",
            Cut::Power(Loss::Everything) => "power-everything",
            Cut::Power(Loss::Nothing) => "power-nothing",
            Cut::Power(Loss::Tail) => "power-tail",
            Cut::Power(Loss::Sectors) => "power-sectors",
            Cut::Power(Loss::Pages) => "power-pages",
            Cut::Power(Loss::Bytes) => "power-bytes",
        }
    }

    fn step(&self) -> String {
        match self.point {
            Point::NewJournal(n) => format!("checkpoint-{n}"),
            Point::DirSync(n) => format!("checkpoint-dir-sync-{n}"),
            Point::Any(n) => format!("change-{n}"),
        }
    }

    fn name(&self) -> String {
        format!("{}/{}", self.fault(), self.step())
    }
}

/// The cells that are asked for.
fn cells(settings: &Settings) -> Vec<PointCell> {
    if !settings.wide {
        return Vec::new();
    }
    let points = (0..NEW_JOURNAL_STEPS).map(Point::NewJournal).chain((0..DIR_SYNCS).map(Point::DirSync));
    let points: Vec<Point> = points.collect();
    let all = Cut::ALL.into_iter().flat_map(|cut| points.iter().map(move |point| PointCell { cut, point: *point }));
    let patterns = settings.patterns();
    let fits = |cell: &PointCell| {
        patterns.is_empty() || patterns.iter().any(|(f, p)| like(f, cell.fault()) && like(p, &cell.step()))
    };
    let mut cells: Vec<PointCell> = all.filter(fits).collect();
    if settings.quick {
        let random =
            |cell: &PointCell| cell.name().bytes().fold(settings.seed, |s, byte| splitmix64(s ^ u64::from(byte)));
        cells.sort_by_key(random);
        cells.truncate(QUICK_POINTS);
    }
    cells
}

/// The names of all that are asked for.
pub fn names(settings: &Settings) -> Vec<String> {
    cells(settings).iter().map(PointCell::name).collect()
}

/// Runs them. `true`: all is well; also if none was asked for.
pub fn run(settings: &Settings) -> bool {
    let cells = cells(settings);
    if cells.is_empty() {
        return true;
    }
    let (start, next) = (Instant::now(), AtomicUsize::new(0));
    let sum = Mutex::new((Outcome::default(), 0));
    std::thread::scope(|scope| {
        for _ in 0..settings.jobs.min(cells.len()) {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let began = Instant::now();
                    let outcome = round(cell.point, cell.cut, settings.seed);
                    let took = began.elapsed().as_secs_f64();
                    let mut sum = sum.lock();
                    if outcome.is_good() && outcome.fired > 0 {
                        println!(
                            "     {}: nothing lost; {} checkpoints, {took:.1} s",
                            cell.name(),
                            outcome.checkpoints
                        );
                    } else {
                        sum.1 += 1;
                        let never = "the fault never happened (0 hits)".to_owned();
                        let problem = if outcome.is_good() { never } else { outcome.messages.join("\n") };
                        println!("     {}: FAILED after {took:.1} s: {problem}", cell.name());
                    }
                    sum.0.add(outcome);
                }
            });
        }
    });
    let (sum, failed) = sum.into_inner();
    println!(
        "\nfaults of the disk inside checkpoints: {} rounds, {} with the fault, {} checkpoints in place, {} writes accepted, {} \
         lost, {} half files published, {} hangs, {} others, {failed} failed, {:.0} s",
        sum.rounds,
        sum.fired,
        sum.checkpoints,
        sum.bytes_written,
        sum.bytes_lost,
        sum.half_published,
        sum.hangs,
        sum.others,
        start.elapsed().as_secs_f64()
    );
    failed == 0
}
