//! Every fault in every phase: a real bosfs on a real mount before the embedded server, through the fault proxy, with real
//! programs; after each round the bytes in BOS are compared past mount and proxy.
//!
//! `crash-matrix [--cells FAULT/PHASE] [--fault NAME] [--phase NAME] [--rounds 2] [--seed 1] [--quick] [--wide] [--jobs N]
//! [--page FILE] [--self-check] [--list]`. `*` in a pattern stands for anything. Rows are in `crash_matrix/faults.rs`, columns in
//! `phases.rs`, cells that make no sense, with their reasons, in `sense.rs`. Columns with a second program on the same file,
//! and faults of the disk inside checkpoints of a journal (`points.rs`, rows `disk-*` and `power-*`), belong to the full form
//! and to `--wide`.

#[path = "crash_matrix/faults.rs"]
mod faults;
#[path = "crash_matrix/page.rs"]
mod page;
#[path = "crash_matrix/phases.rs"]
mod phases;
#[path = "crash_matrix/plan.rs"]
mod plan;
#[path = "crash_matrix/points.rs"]
mod points;
#[path = "crash_matrix/programs.rs"]
mod programs;
#[path = "crash_matrix/round.rs"]
mod round;
#[path = "crash_matrix/self_check.rs"]
mod self_check;
#[path = "crash_matrix/sense.rs"]
mod sense;
#[path = "crash_matrix/shared.rs"]
mod shared;
#[path = "crash_matrix/stage.rs"]
mod stage;
#[path = "../support/mod.rs"]
mod support;
#[path = "crash_matrix/verdict.rs"]
mod verdict;

use std::process::ExitCode;
use std::time::Instant;

use plan::{Settings, run_cells};
use stage::Sources;

fn main() -> ExitCode {
    match Settings::read().and_then(|settings| run(&settings)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("crash-matrix: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(settings: &Settings) -> Result<bool, String> {
    let started = Instant::now();
    let cells = settings.cells();
    let points = points::names(settings);
    if cells.is_empty() && points.is_empty() {
        return Err("no cell is like that; --list shows them all".into());
    }
    if settings.lists {
        cells.iter().map(plan::Cell::name).chain(points).for_each(|name| println!("{name}"));
        return Ok(true);
    }
    let sources = Sources::new(settings.seed).map_err(|e| e.to_string())?;
    if settings.self_checks {
        self_check::run(&sources, settings.seed, settings.wide)?;
    }
    let rounds: u32 = cells.iter().map(|cell| cell.rounds).sum();
    println!(
        "crash matrix: {} cells, {rounds} rounds, {} at a time, seed {}",
        cells.len(),
        settings.jobs,
        settings.seed
    );
    let has_cells = !cells.is_empty();
    let done = run_cells(cells, &sources, settings);
    let points_are_good = points::run(settings);
    let took = started.elapsed();
    page::print_summary(&done, points_are_good, took);
    if let Some(path) = &settings.page {
        let text = page::render(&done, settings, took);
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(points_are_good && has_cells != done.is_empty() && done.iter().all(plan::Done::is_good))
}
