//! Rounds of random calls, kills of bosfs and of its writers, and faults of the line, each drawn from a seed and checked
//! against a model of what must hold: what returned is there, what did not is old or new, what is published was closed.
//!
//! `crash-rounds [--rounds 10000] [--seed 1] [--jobs 2] [--only ROUND_SEED] [--verbose yes] [--keep FOLDER]`
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
use crash_rounds::writer;
use parking_lot::Mutex;
use support::{FaultProxy, World};

/// Rounds that may fail before the rest is not run.
const FAILED_MAX: u64 = 20;
/// Rounds tried until a wrong model has something to be wrong about.
const SABOTAGE_TRIES: u64 = 20;

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
    only: Option<u64>,
    verbose: bool,
    keep: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut options = Options { rounds: 10_000, seed: 1, jobs: 2, only: None, verbose: false, keep: None };
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
            "--verbose" => options.verbose = value == "yes",
            _ => return Err(format!("unknown option {name}")),
        }
    }
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
    fn round(&mut self, seed: u64, sabotage: Option<Sabotage>, counted: &mut Counted) -> Result<(), Failure> {
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
        let plan = Plan::new(seed);
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| round::run(&place, &plan, sabotage, counted)));
        let ended = ended.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            Err(failed(format!("the round broke off: {text}")))
        });
        support::mounted::detach(&dir.join("mnt"));
        if let (Some(keep), Err(failure)) = (&self.keep, &ended) {
            let to = keep.join(format!("round-{seed}-{}", std::process::id()));
            std::fs::create_dir_all(keep)
                .and_then(|()| round::copy_folder(&dir, &to))
                .map_err(|e| failed(e.to_string()))?;
            std::fs::write(to.join("told"), told(seed, failure)).map_err(|e| failed(e.to_string()))?;
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
    counted: Mutex<Counted>,
    stop: AtomicBool,
}

fn run() -> Result<bool, String> {
    let options = options()?;
    let started = Instant::now();
    if options.only.is_none() {
        self_check(options.seed)?;
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
    let counted = shared.counted.lock().clone();
    let lost: u64 = failed.iter().map(|(_, lost)| lost).sum();
    println!("\nrounds              {done} of {} in {:.0} s", seeds.len(), started.elapsed().as_secs_f64());
    println!("{}", counted.told());
    println!("bytes lost          {lost}");
    println!("failed rounds       {}", failed.len());
    for (seed, _) in &failed {
        println!("    scripts/crash-rounds --only {seed}");
    }
    let mut good = failed.is_empty() && done == seeds.len() as u64;
    if options.only.is_none() {
        let missing = counted.missing();
        if !missing.is_empty() {
            println!("never happened: {missing:?}");
            good = false;
        }
        if counted.kills_in_call == 0 {
            println!("no kill fell into a call");
            good = false;
        }
    }
    println!("{}", if good { "crash-rounds passed" } else { "crash-rounds FAILED" });
    Ok(good)
}

fn work(shared: &Shared, seeds: &[u64], options: &Options, started: Instant) -> Result<(), String> {
    let mut job = Job::new(options.keep.clone())?;
    while !shared.stop.load(Ordering::SeqCst) {
        let Some(seed) = seeds.get(shared.next.fetch_add(1, Ordering::SeqCst) as usize) else { break };
        let mut counted = Counted::default();
        let began = Instant::now();
        let ended = job.round(*seed, None, &mut counted);
        let done = shared.done.fetch_add(1, Ordering::SeqCst) + 1;
        shared.counted.lock().add(&counted);
        if options.verbose {
            println!(
                "round {seed}: {} in {:.2} s",
                if ended.is_ok() { "ok" } else { "FAILED" },
                began.elapsed().as_secs_f64()
            );
        }
        if let Err(failure) = ended {
            let count = {
                let mut failed = shared.failed.lock();
                failed.push((*seed, failure.bytes_lost));
                println!("{}", told(*seed, &failure));
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

fn told(seed: u64, failure: &Failure) -> String {
    let plan = Plan::new(seed);
    let kept = if plan.keep { ", --interrupted keep" } else { "" };
    format!(
        "\nFAILED round {seed} ({}{kept}, {} lanes)\n  {}\nends: {:?}\ncalls:\n  {}\nagain: scripts/crash-rounds --only {seed}\n",
        if plan.write_back { "--write-back" } else { "default mode" },
        plan.lanes,
        failure.why,
        plan.phases.iter().map(|phase| phase.end).collect::<Vec<_>>(),
        failure.calls.join("\n  "),
    )
}

/// Rounds with a model that is wrong on purpose must fail.
fn self_check(seed: u64) -> Result<(), String> {
    let mut job = Job::new(None)?;
    for sabotage in Sabotage::ALL {
        let noticed = (seed..seed + SABOTAGE_TRIES).find_map(|seed| {
            let mut counted = Counted::default();
            let ended = job.round(seed, Some(sabotage), &mut counted);
            counted.sabotaged.then_some((seed, ended.is_err()))
        });
        match noticed {
            Some((_, true)) => {}
            Some((seed, false)) => {
                return Err(format!("self-check: round {seed} passes with a wrong model ({sabotage:?})"));
            }
            None => return Err(format!("self-check: no round of {SABOTAGE_TRIES} could be made wrong ({sabotage:?})")),
        }
    }
    println!("self-check: {} wrong models noticed", Sabotage::ALL.len());
    Ok(())
}
