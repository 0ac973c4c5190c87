//! Which cells are run, in what order, how many at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::faults::{FAULTS, Fault};
use crate::phases::{PHASES, Phase};
use crate::round::{Ask, Shown, run};
use crate::sense::{left_out, patience_s};
use crate::stage::Sources;
use crate::support::files::splitmix64;

/// From so many seconds of waiting on, a cell is run beside the others: it needs no processor meanwhile.
const WAITS_S: u64 = 10;
/// Longest wait in a cell of `--quick`, seconds.
const QUICK_WAIT_S: u64 = 10;
/// How often `--quick` touches every fault and every phase.
const QUICK_TIMES: usize = 3;
/// Cells that wait for timeouts, at a time.
const WAITERS: usize = 24;

/// The command line.
pub struct Settings {
    patterns: Vec<(String, String)>,
    pub rounds: Option<u32>,
    pub seed: u64,
    pub quick: bool,
    /// Columns with two handles on a file, and the points of a disk: in the full form, and where they are asked for.
    pub wide: bool,
    pub jobs: usize,
    pub page: Option<PathBuf>,
    pub self_checks: bool,
    pub lists: bool,
    /// As given, for the page.
    pub line: String,
}

impl Settings {
    pub fn read() -> Result<Self, String> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let mut settings = Self {
            patterns: Vec::new(),
            rounds: None,
            seed: 1,
            quick: false,
            wide: false,
            jobs: 3 * cores,
            page: None,
            self_checks: false,
            lists: false,
            line: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            match name.as_str() {
                "--quick" => settings.quick = true,
                "--wide" => settings.wide = true,
                "--self-check" => settings.self_checks = true,
                "--list" => settings.lists = true,
                _ => {
                    let value = arguments.next().ok_or_else(|| format!("{name} needs a value, or is unknown"))?;
                    let number = || value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"));
                    match name.as_str() {
                        "--cells" => {
                            let (fault, phase) = value.split_once('/').unwrap_or((&value, "*"));
                            settings.patterns.push((fault.to_owned(), phase.to_owned()));
                        }
                        "--fault" => settings.patterns.push((value.clone(), "*".to_owned())),
                        "--phase" => settings.patterns.push(("*".to_owned(), value.clone())),
                        "--rounds" => settings.rounds = Some(number()? as u32),
                        "--seed" => settings.seed = number()?,
                        "--jobs" => settings.jobs = number()?.max(1) as usize,
                        "--page" => settings.page = Some(value.into()),
                        _ => return Err(format!("unknown option {name}")),
                    }
                }
            }
        }
        settings.self_checks |= settings.quick;
        settings.wide |= !settings.quick;
        Ok(settings)
    }

    /// Rows and columns that are asked for; none: all.
    pub fn patterns(&self) -> &[(String, String)] {
        &self.patterns
    }

    /// The cells of the table that are asked for.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for fault in FAULTS {
            for phase in PHASES {
                let fits = |(f, p): &(String, String)| like(f, fault.name) && like(p, phase.name);
                if phase.story.is_shared() && !self.wide {
                    continue;
                }
                if left_out(fault, phase).is_none() && (self.patterns.is_empty() || self.patterns.iter().any(fits)) {
                    // A timeout is as long the second time.
                    let rounds = if patience_s(fault, phase) > WAITS_S { 1 } else { self.rounds.unwrap_or(2) };
                    cells.push(Cell { fault, phase, rounds, seed: cell_seed(self.seed, fault, phase) });
                }
            }
        }
        if self.quick { self.selection(cells) } else { cells }
    }

    /// Every fault and every phase [`QUICK_TIMES`] times where there are so many cells, chosen by the seed; one round each.
    fn selection(&self, mut cells: Vec<Cell>) -> Vec<Cell> {
        cells.retain(|cell| patience_s(cell.fault, cell.phase) <= QUICK_WAIT_S);
        // Rows with few cells first: they leave less choice.
        let cells_of = |fault: &str| cells.iter().filter(|cell| cell.fault.name == fault).count();
        let mut order: Vec<(usize, u64, Cell)> =
            cells.iter().map(|cell| (cells_of(cell.fault.name), splitmix64(cell.seed), *cell)).collect();
        order.sort_by_key(|(count, random, _)| (*count, *random));
        let mut touched: BTreeMap<&str, usize> = BTreeMap::new();
        let mut chosen: Vec<Cell> = Vec::new();
        // First those of which both need it, then those of which one does.
        for needy in [2, 1] {
            for (_, _, cell) in &order {
                let names = [cell.fault.name, cell.phase.name];
                let lacks = |name: &&str| touched.get(*name).is_none_or(|times| *times < QUICK_TIMES);
                let is_chosen = chosen.iter().any(|other| other.name() == cell.name());
                if names.iter().filter(|name| lacks(name)).count() >= needy && !is_chosen {
                    names.iter().for_each(|name| *touched.entry(name).or_default() += 1);
                    chosen.push(Cell { rounds: self.rounds.unwrap_or(1), ..*cell });
                }
            }
        }
        chosen
    }
}

/// Whether `name` is like `pattern`, in which `*` stands for anything.
pub fn like(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|name| (0..=name.len()).any(|n| name.is_char_boundary(n) && like(rest, &name[n..]))),
    }
}

fn cell_seed(seed: u64, fault: &Fault, phase: &Phase) -> u64 {
    let name = format!("{}/{}", fault.name, phase.name);
    name.bytes().fold(splitmix64(seed), |hash, byte| splitmix64(hash ^ u64::from(byte))) >> 32
}

/// A fault in a phase.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub fault: &'static Fault,
    pub phase: &'static Phase,
    pub rounds: u32,
    pub seed: u64,
}

impl Cell {
    pub fn name(&self) -> String {
        format!("{}/{}", self.fault.name, self.phase.name)
    }
}

/// A cell that was run.
#[derive(Debug)]
pub struct Done {
    pub cell: Cell,
    pub shown: Vec<Shown>,
    pub took: Duration,
}

impl Done {
    pub fn is_good(&self) -> bool {
        !self.shown.is_empty() && self.shown.iter().all(|shown| shown.problem.is_none() && shown.hits > 0)
    }

    pub fn sum(&self, of: impl Fn(&Shown) -> u64) -> u64 {
        self.shown.iter().map(of).sum()
    }
}

/// Runs all cells, `settings.jobs` at a time, and beside them those that wait for timeouts. In the order of the table.
pub fn run_cells(cells: Vec<Cell>, sources: &Sources, settings: &Settings) -> Vec<Done> {
    let place = |cell: &Cell| (row(cell.fault), column(cell.phase));
    let (mut waiting, mut working): (Vec<Cell>, Vec<Cell>) =
        cells.into_iter().partition(|cell| patience_s(cell.fault, cell.phase) >= WAITS_S);
    waiting.sort_by_key(|cell| std::cmp::Reverse(patience_s(cell.fault, cell.phase)));
    // Mixed, so that not all of a kind run at the same time.
    working.sort_by_key(|cell| splitmix64(cell.seed));
    let done = Mutex::new(Vec::new());
    let (next_waiting, next_working) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let total = waiting.len() + working.len();
    let work = |queue: &[Cell], next: &AtomicUsize| {
        while let Some(cell) = queue.get(next.fetch_add(1, Ordering::SeqCst)) {
            let finished = run_cell(*cell, sources);
            let mut done = done.lock();
            done.push(finished);
            tell(&done, total);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WAITERS.min(waiting.len()) {
            scope.spawn(|| work(&waiting, &next_waiting));
        }
        for _ in 0..settings.jobs.min(working.len()) {
            scope.spawn(|| work(&working, &next_working));
        }
    });
    let mut done = done.into_inner();
    done.sort_by_key(|done| place(&done.cell));
    done
}

pub fn row(fault: &Fault) -> usize {
    FAULTS.iter().position(|f| f.name == fault.name).unwrap_or(usize::MAX)
}

pub fn column(phase: &Phase) -> usize {
    PHASES.iter().position(|p| p.name == phase.name).unwrap_or(usize::MAX)
}

fn run_cell(cell: Cell, sources: &Sources) -> Done {
    let start = Instant::now();
    let mut shown = Vec::new();
    for n in 0..cell.rounds {
        // One round of two has the fault once, the other one again and again.
        let is_brief = (u64::from(n) + cell.seed).is_multiple_of(2);
        let seed = splitmix64(cell.seed ^ u64::from(n) << 40);
        let ask = Ask { fault: cell.fault, phase: cell.phase, seed, is_brief, sabotage: None };
        let round = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(ask, sources)));
        shown.push(round.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Shown { problem: Some(text.unwrap_or_else(|| "a panic".into())), ..Shown::default() }
        }));
    }
    Done { cell, shown, took: start.elapsed() }
}

fn tell(done: &[Done], total: usize) {
    let Some(last) = done.last() else { return };
    let count = done.len();
    let words: Vec<&str> = last.shown.iter().map(|shown| shown.word).collect();
    let (name, took) = (last.cell.name(), last.took.as_secs_f64());
    if last.is_good() {
        println!(
            "{count:>4}/{total} {name}: {}; {} hits, {} bytes, {} lost, {} twice, {} half, {} hangs, seed {}, {took:.1} s",
            words.join(", "),
            last.sum(|shown| shown.hits),
            last.sum(|shown| shown.written_bytes),
            last.sum(|shown| shown.lost_bytes),
            last.sum(|shown| shown.sent_twice_bytes),
            last.sum(|shown| shown.half_published),
            last.sum(|shown| shown.hangs),
            last.cell.seed
        );
        return;
    }
    for (n, shown) in last.shown.iter().enumerate() {
        if shown.problem.is_some() || shown.hits == 0 {
            let problem = shown.problem.as_deref().unwrap_or("the fault never happened (0 hits)");
            println!("{count:>4}/{total} {name} round {}: FAILED after {took:.1} s: {problem}", n + 1);
        }
    }
}
