//! SIGKILL at every change that bosfs makes in its state directory, before and after it, and power loss at every one of them
//! with every kind of loss; `tests/crash.rs` runs a sample of the same. Ends with a table, and with a non-zero code if
//! something did not hold or a fault never fired.
//!
//! `crash-points [--only NAME]... [--every 1] [--seed 1] [--jobs 2] [--kills-only] [--power-only]`

#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use support::crash::kill::Scenario;
use support::crash::outcome::Outcome;
use support::crash::power::{Story, loss_of};
use support::disk::power::Loss;

/// Rounds in a row that lie behind the end of an operation, before it counts as over: requests go side by side, so the
/// number of changes differs a little from run to run.
const BEHIND_MAX: u64 = 4;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("crash-points: {message}");
            ExitCode::from(2)
        }
    }
}

#[derive(Clone, Copy)]
enum What {
    Kill(Scenario),
    Power(Story),
}

impl What {
    fn name(self) -> &'static str {
        match self {
            What::Kill(scenario) => scenario.name(),
            What::Power(story) => story.name(),
        }
    }

    /// How often each point is run.
    fn variants(self) -> u64 {
        match self {
            What::Kill(_) => 2,
            What::Power(_) => Loss::ALL.len() as u64,
        }
    }

    fn round(self, point: u64, variant: u64, seed: u64) -> Outcome {
        match self {
            What::Kill(scenario) => scenario.round(point, variant == 1),
            What::Power(story) => story.round(point, loss_of(variant), seed.wrapping_add(point * 7 + variant)),
        }
    }
}

struct Settings {
    every: u64,
    seed: u64,
    jobs: u64,
}

/// All points of one row of the table: their number, and what all rounds found.
fn row(what: What, settings: &Settings) -> (u64, Outcome) {
    let (sum, next, last_fired) = (Arc::new(Mutex::new(Outcome::default())), AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..settings.jobs {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let (point, variant) = (index / what.variants() * settings.every, index % what.variants());
                    let outcome = what.round(point, variant, settings.seed);
                    for message in &outcome.messages {
                        println!("  FAILED {} point {point} variant {variant}: {message}", what.name());
                    }
                    if outcome.fired > 0 {
                        last_fired.fetch_max(index, Ordering::SeqCst);
                    } else if index > last_fired.load(Ordering::SeqCst) + BEHIND_MAX * what.variants() {
                        over.store(true, Ordering::SeqCst);
                    }
                    sum.lock().add(outcome);
                }
            });
        }
    });
    let points = if sum.lock().fired == 0 { 0 } else { last_fired.into_inner() / what.variants() + 1 };
    let sum = sum.lock().clone();
    (points, sum)
}

fn run() -> Result<bool, String> {
    let mut settings = Settings { every: 1, seed: 1, jobs: 2 };
    let (mut only, mut kills, mut power) = (Vec::new(), true, true);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--kills-only" => power = false,
            "--power-only" => kills = false,
            _ => {
                let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
                let number = || value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"));
                match name.as_str() {
                    "--only" => only.push(value),
                    "--every" => settings.every = number()?.max(1),
                    "--seed" => settings.seed = number()?,
                    "--jobs" => settings.jobs = number()?.max(1),
                    _ => return Err(format!("unknown option {name}")),
                }
            }
        }
    }
    let mut all = Vec::new();
    all.extend(Scenario::ALL.into_iter().filter(|_| kills).map(What::Kill));
    all.extend(Story::ALL.into_iter().filter(|_| power).map(What::Power));
    all.retain(|what| only.is_empty() || only.iter().any(|name| name == what.name()));
    if all.is_empty() {
        return Err("nothing of that name".into());
    }
    let start = Instant::now();
    let mut table = Vec::new();
    for what in all {
        let (points, sum) = row(what, &settings);
        println!(
            "{}: {points} points, {} rounds, {:.0} s so far",
            what.name(),
            sum.rounds,
            start.elapsed().as_secs_f64()
        );
        table.push((what, points, sum));
    }
    println!(
        "\n{:<28} {:>6} {:>6} {:>6} {:>9} {:>9} {:>6} {:>6} {:>6} {:>6} {:>6}",
        "scenario", "points", "rounds", "fired", "MiB", "in flight", "lost", "twice", "half", "hangs", "others"
    );
    for (what, points, sum) in &table {
        println!(
            "{:<28} {points:>6} {:>6} {:>6} {:>9.1} {:>9.1} {:>6} {:>6} {:>6} {:>6} {:>6}",
            what.name(),
            sum.rounds,
            sum.fired,
            sum.bytes_written as f64 / (1 << 20) as f64,
            sum.bytes_in_flight as f64 / (1 << 20) as f64,
            sum.bytes_lost,
            sum.bytes_twice,
            sum.half_published,
            sum.hangs,
            sum.others
        );
    }
    let good = table.iter().all(|(_, points, sum)| *points > 0 && sum.is_good());
    println!(
        "every {}. change, seed {}, {:.0} s; MiB: written and accepted, bodies cut off on their way; bytes lost, bytes that BOS \
         held and was sent again, half objects, hangs and everything else must be 0",
        settings.every,
        settings.seed,
        start.elapsed().as_secs_f64()
    );
    println!("{}", if good { "crash-points passed" } else { "crash-points FAILED" });
    Ok(good)
}
