//! Kills bosfs with SIGKILL while `rsync -a`, `mv` of a directory of 1,000 objects, or several random writers work on the
//! mount, round after round, and checks what must hold. Ends with a table, and with a non-zero code if a round failed or a
//! kill never fell into the operation.
//!
//! `kill-tools [--rounds 20] [--seed 1] [--only rsync|mv|writers]...`

#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Instant;

use support::kill_rounds::Tool;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("kill-tools: {message}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let (mut rounds, mut seed, mut tools) = (20, 1, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"));
        match name.as_str() {
            "--rounds" => rounds = number()?,
            "--seed" => seed = number()?,
            "--only" => {
                tools
                    .push(Tool::ALL.into_iter().find(|t| t.name() == value).ok_or_else(|| format!("no tool {value}"))?);
            }
            _ => return Err(format!("unknown option {name}")),
        }
    }
    if tools.is_empty() {
        tools = Tool::ALL.to_vec();
    }
    let mut table = Vec::new();
    for tool in tools {
        let (mut hits, mut failed) = (0, 0);
        for seed in seed..seed + rounds {
            let start = Instant::now();
            match tool.round(seed) {
                Ok(round) => {
                    hits += u64::from(round.hit);
                    let hit = if round.hit { "hit" } else { "no hit" };
                    let took = start.elapsed().as_secs_f64();
                    println!(
                        "  {} seed {seed}: ok in {took:.1} s, {hit}, {}; {}",
                        tool.name(),
                        round.moment,
                        round.found
                    );
                }
                Err(message) => {
                    failed += 1;
                    println!("  FAILED {message}");
                }
            }
        }
        table.push((tool, hits, failed));
    }
    println!("\n{:<10} {:>6} {:>6} {:>6}", "tool", "rounds", "hits", "failed");
    for (tool, hits, failed) in &table {
        println!("{:<10} {rounds:>6} {hits:>6} {failed:>6}", tool.name());
    }
    let good = table.iter().all(|(_, hits, failed)| *hits > 0 && *failed == 0);
    println!("{}", if good { "kill-tools passed" } else { "kill-tools FAILED" });
    Ok(good)
}
