//! Rounds of random calls, kills of bosfs and of its writers, and faults of the line, each drawn from a seed and checked
//! against a model of what must hold: what returned is there, what did not is old or new, what is published was closed.
//!
//! `crash-rounds [--rounds 10000] [--seed 1] [--jobs 2] [--wide yes|no|only] [--only ROUND_SEED] [--verbose yes]
//! [--keep FOLDER]`
//!
//! Wide rounds (`crash_rounds/wide`) have several handles on one file, and publications that overlap with what they do: one
//! round in four; with `--wide only` all, with `--wide no` none. Less than 2,000 rounds have none unless asked for.
//!
//! With `--keep` the folder of a failed round goes to FOLDER: log of bosfs, requests, state directory at the end and at each
//! kill.
//!
//! Ends with figures, and with a non-zero code if a round failed, if a kind of fault never happened, or if a model made
//! wrong on purpose was not noticed.

#[path = "crash_rounds/mod.rs"]
mod crash_rounds;
#[path = "../support/mod.rs"]
mod support;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crash_rounds::plan::Plan;
use crash_rounds::round::{self, Failure, Place, Sabotage};
use crash_rounds::totals::Counted;
use crash_rounds::wide::plan::WidePlan;
use crash_rounds::wide::round::{self as wide_round, WideSabotage};
use crash_rounds::wide::totals::WideCounted;
use crash_rounds::writer;
use parking_lot::Mutex;
use support::{FaultProxy, World};

/// Rounds that may fail before the rest is not run.
const FAILED_MAX: u64 = 20;
/// Rounds tried until a wrong model has something to be wrong about.
const SABOTAGE_TRIES: u64 = 20;
/// One round in so many has several handles on one file.
const WIDE_EVERY: u64 = 4;
/// From so many rounds on such rounds are among them, unless something else is said.
const WIDE_FROM: u64 = 2000;

/// Which rounds have several handles on one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wide {
    None,
    Some,
    All,
}

impl Wide {
    fn has(self, seed: u64) -> bool {
        match self {
            Wide::None => false,
            Wide::Some => seed.is_multiple_of(WIDE_EVERY),
            Wide::All => true,
        }
    }
}

/// A round to be run, perhaps with a model that is wrong on purpose.
#[derive(Clone, Copy)]
enum Ask {
    Plain(Option<Sabotage>),
    Wide(Option<WideSabotage>),
}

/// The figures of both kinds.
#[derive(Clone, Debug, Default)]
struct Sums {
    plain: Counted,
    wide: WideCounted,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == writer::WRITER) {
        let dir = PathBuf::from(arguments.next().unwrap_or_default());
        return match writer::main(&dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("crash-rounds: {message}");
            ExitCode::from(2)
        }
    }
}

struct Options {
    rounds: u64,
    seed: u64,
    jobs: u64,
    wide: Wide,
    only: Option<u64>,
    verbose: bool,
    keep: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { rounds: 10_000, seed: 1, jobs: 2, wide: Wide::None, only: None, verbose: false, keep: None };
    let mut wide = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"));
        match name.as_str() {
            "--rounds" => options.rounds = number()?,
            "--seed" => options.seed = number()?,
            "--jobs" => options.jobs = number()?.max(1),
            "--only" => options.only = Some(number()?),
            "--keep" => options.keep = Some(value.into()),
            "--wide" => {
                wide = Some(match value.as_str() {
                    "yes" => Wide::Some,
                    "no" => Wide::None,
                    "only" => Wide::All,
                    _ => return Err(format!("--wide takes yes, no or only, not {value}")),
                });
            }
            "--verbose" => options.verbose = value == "yes",
            _ => return Err(format!("unknown option {name}")),
        }
    }
    options.wide = wide.unwrap_or(if options.rounds >= WIDE_FROM { Wide::Some } else { Wide::None });
    Ok(options)
}

/// A server and a proxy, used by one round after the other.
struct Job {
    // Dropped before the world that it belongs to.
    proxy: Arc<FaultProxy>,
    world: World,
    rounds: u64,
    keep: Option<PathBuf>,
}

impl Job {
    fn new(keep: Option<PathBuf>) -> Result<Self, String> {
        let world = World::try_new().map_err(|e| e.to_string())?;
        let proxy = FaultProxy::start(world.server.addr()).map_err(|e| e.to_string())?;
        Ok(Self { proxy: Arc::new(proxy), world, rounds: 0, keep })
    }

    /// A round, with a prefix and folders of its own.
    fn round(&mut self, seed: u64, ask: Ask, sums: &mut Sums) -> Result<(), Failure> {
        self.rounds += 1;
        let dir = self.world.path(&format!("round{}", self.rounds));
        let failed = |why: String| Failure { why, bytes_lost: 0, calls: Vec::new() };
        std::fs::create_dir_all(&dir).map_err(|e| failed(e.to_string()))?;
        self.proxy.take_counts();
        let mut spec = self.world.spec(&[]);
        spec.endpoint = self.proxy.endpoint();
        let place = Place {
            proxy: self.proxy.clone(),
            bucket: self.world.bucket.clone(),
            spec,
            dir: dir.clone(),
            prefix: format!("r{}/", self.rounds),
            keeps: self.keep.is_some(),
        };
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| match ask {
            Ask::Plain(sabotage) => round::run(&place, &Plan::new(seed), sabotage, &mut sums.plain),
            Ask::Wide(sabotage) => wide_round::run(&place, &WidePlan::new(seed), sabotage, &mut sums.wide),
        }));
        let ended = ended.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            Err(failed(format!("the round broke off: {text}")))
        });
        support::mounted::detach(&dir.join("mnt"));
        self.proxy.set_line(support::Line::Alive);
        self.proxy.clear_rules();
        if let (Some(keep), Err(failure)) = (&self.keep, &ended) {
            let to = keep.join(format!("round-{seed}-{}", std::process::id()));
            std::fs::create_dir_all(keep)
                .and_then(|()| round::copy_folder(&dir, &to))
                .map_err(|e| failed(e.to_string()))?;
            std::fs::write(to.join("told"), told(seed, matches!(ask, Ask::Wide(_)), failure))
                .map_err(|e| failed(e.to_string()))?;
        }
        self.clear(&place.prefix).map_err(|e| failed(e.to_string()))?;
        std::fs::remove_dir_all(&dir).map_err(|e| failed(e.to_string()))?;
        ended
    }

    /// The next round begins with an empty bucket.
    fn clear(&self, prefix: &str) -> std::io::Result<()> {
        for key in self.world.bucket.list(prefix)? {
            self.world.bucket.delete(&key)?;
        }
        for upload in self.world.bucket.uploads(prefix)? {
            self.world.bucket.abort(&upload.key, &upload.upload_id)?;
        }
        Ok(())
    }
}

/// What all jobs share.
#[derive(Default)]
struct Shared {
    next: AtomicU64,
    done: AtomicU64,
    failed: Mutex<Vec<(u64, u64)>>,
    sums: Mutex<Sums>,
    stop: AtomicBool,
}

fn run() -> Result<bool, String> {
    let options = options()?;
    let started = Instant::now();
    if options.only.is_none() {
        self_check(options.seed, options.wide)?;
    }
    let seeds: Vec<u64> = match options.only {
        Some(seed) => vec![seed],
        None => (options.seed..options.seed + options.rounds).collect(),
    };
    let shared = Shared::default();
    let outcomes: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..options.jobs.min(seeds.len() as u64))
            .map(|_| scope.spawn(|| work(&shared, &seeds, &options, started)))
            .collect();
        jobs.into_iter().map(|job| job.join().unwrap_or_else(|_| Err("a job broke off".into()))).collect()
    });
    outcomes.into_iter().collect::<Result<(), String>>()?;
    let (done, failed) = (shared.done.load(Ordering::SeqCst), shared.failed.lock().clone());
    let sums = shared.sums.lock().clone();
    let lost: u64 = failed.iter().map(|(_, lost)| lost).sum();
    println!("\nrounds              {done} of {} in {:.0} s", seeds.len(), started.elapsed().as_secs_f64());
    if sums.plain.umounts > 0 {
        println!("{}", sums.plain.told());
    }
    if sums.wide.rounds > 0 {
        println!("{}", sums.wide.told());
    }
    println!("bytes lost          {lost}");
    println!("failed rounds       {}", failed.len());
    for (seed, _) in &failed {
        println!("    {}", again(*seed, options.wide.has(*seed)));
    }
    let mut good = failed.is_empty() && done == seeds.len() as u64;
    if options.only.is_none() {
        if options.wide != Wide::All {
            let missing = sums.plain.missing();
            if !missing.is_empty() {
                println!("never happened: {missing:?}");
                good = false;
            }
            if sums.plain.kills_in_call == 0 {
                println!("no kill fell into a call");
                good = false;
            }
        }
        if options.wide != Wide::None {
            let missing = sums.wide.missing();
            if !missing.is_empty() {
                println!("never happened with several handles: {missing:?}");
                good = false;
            }
        }
    }
    println!("{}", if good { "crash-rounds passed" } else { "crash-rounds FAILED" });
    Ok(good)
}

fn work(shared: &Shared, seeds: &[u64], options: &Options, started: Instant) -> Result<(), String> {
    let mut job = Job::new(options.keep.clone())?;
    while !shared.stop.load(Ordering::SeqCst) {
        let Some(seed) = seeds.get(shared.next.fetch_add(1, Ordering::SeqCst) as usize) else { break };
        let mut sums = Sums::default();
        let began = Instant::now();
        let is_wide = options.wide.has(*seed);
        let ended = job.round(*seed, if is_wide { Ask::Wide(None) } else { Ask::Plain(None) }, &mut sums);
        let done = shared.done.fetch_add(1, Ordering::SeqCst) + 1;
        {
            let mut all = shared.sums.lock();
            all.plain.add(&sums.plain);
            all.wide.add(&sums.wide);
        }
        if options.verbose {
            println!(
                "round {seed}{}: {} in {:.2} s",
                if is_wide { " (wide)" } else { "" },
                if ended.is_ok() { "ok" } else { "FAILED" },
                began.elapsed().as_secs_f64()
            );
        }
        if let Err(failure) = ended {
            let count = {
                let mut failed = shared.failed.lock();
                failed.push((*seed, failure.bytes_lost));
                println!("{}", told(*seed, is_wide, &failure));
                failed.len() as u64
            };
            if count >= FAILED_MAX {
                shared.stop.store(true, Ordering::SeqCst);
            }
            // A server that an unfinished round may still be talking to is of no use for the next.
            job = Job::new(options.keep.clone())?;
        }
        if done.is_multiple_of(500) {
            let failed = shared.failed.lock().len();
            println!("{done} rounds in {:.0} s, {failed} failed", started.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// The command that runs a round again.
fn again(seed: u64, is_wide: bool) -> String {
    format!("scripts/crash-rounds {}--only {seed}", if is_wide { "--wide only " } else { "--wide no " })
}

fn told(seed: u64, is_wide: bool, failure: &Failure) -> String {
    let (words, ends) = if is_wide {
        let plan = WidePlan::new(seed);
        let ends: Vec<_> = plan.phases.iter().map(|phase| phase.end).collect();
        let words =
            format!("{} handles, base {:?}, disk {}, {}", plan.handles, plan.base, plan.disk, plan.options().join(" "));
        (words, format!("{ends:?}"))
    } else {
        let plan = Plan::new(seed);
        let ends: Vec<_> = plan.phases.iter().map(|phase| phase.end).collect();
        let mode = if plan.write_back { "--write-back" } else { "default mode" };
        let kept = if plan.keep { ", --interrupted keep" } else { "" };
        (format!("{mode}{kept}, {} lanes", plan.lanes), format!("{ends:?}"))
    };
    format!(
        "\nFAILED round {seed} ({words})\n  {}\nends: {ends}\ncalls:\n  {}\nagain: {}\n",
        failure.why,
        failure.calls.join("\n  "),
        again(seed, is_wide),
    )
}

/// Rounds with a model that is wrong on purpose must fail.
fn self_check(seed: u64, wide: Wide) -> Result<(), String> {
    let plain = Sabotage::ALL.map(|sabotage| (Ask::Plain(Some(sabotage)), format!("{sabotage:?}")));
    let several =
        WideSabotage::ALL.map(|sabotage| (Ask::Wide(Some(sabotage)), format!("several handles, {sabotage:?}")));
    let asks: Vec<_> = match wide {
        Wide::None => plain.into(),
        Wide::Some => plain.into_iter().chain(several).collect(),
        Wide::All => several.into(),
    };
    let mut job = Job::new(None)?;
    for (ask, name) in &asks {
        let noticed = (seed..seed + SABOTAGE_TRIES).find_map(|seed| {
            let mut sums = Sums::default();
            let ended = job.round(seed, *ask, &mut sums);
            // With several handles a later close may take the place of the one that the model is wrong about, before anybody
            // sees it.
            let is_seen = ended.is_err() || matches!(ask, Ask::Plain(_));
            ((sums.plain.sabotaged || sums.wide.sabotaged) && is_seen).then_some((seed, ended.is_err()))
        });
        match noticed {
            Some((_, true)) => {}
            Some((seed, false)) => return Err(format!("self-check: round {seed} passes with a wrong model ({name})")),
            None => return Err(format!("self-check: no round of {SABOTAGE_TRIES} could be made wrong ({name})")),
        }
    }
    println!("self-check: {} wrong models noticed", asks.len());
    Ok(())
}
