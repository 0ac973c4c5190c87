//! What bosfs costs: requests, bytes sent, time of a mount. Real binary, real mount, real programs; counted at the fault
//! proxy, never inside bosfs. Each figure is printed beside its limit; one beyond its limit fails the run (exit code 1).
//!
//! `measure [--quick] [--only requests|writers|changes|mount|names]...`

#[path = "../support/mod.rs"]
mod support;

#[path = "measure/changes.rs"]
mod changes;
#[path = "measure/mount_time.rs"]
mod mount_time;
#[path = "measure/names.rs"]
mod names;
#[path = "measure/report.rs"]
mod report;
#[path = "measure/requests.rs"]
mod requests;
#[path = "measure/writers.rs"]
mod writers;

use std::process::{ExitCode, Output};
use std::time::{Duration, Instant};

use report::Report;
use support::mounted::sh;

/// Longest wait for anything that must happen.
const WAIT: Duration = Duration::from_secs(120);

/// How much is measured.
struct Sizes {
    /// Whole parts of the copied file.
    parts: u64,
    /// Keys of the listed directory.
    keys: u64,
    /// Size of the object that is changed, bytes.
    object_bytes: u64,
    /// Unfinished uploads in the journal, 1000 parts each.
    uploads: u32,
    /// Objects that are looked at one by one.
    names: u64,
    /// Objects of the largest folder.
    folder: u64,
}

const FULL: Sizes =
    Sizes { parts: 20, keys: 10_000, object_bytes: 1 << 30, uploads: 100, names: 300_000, folder: 2_000_000 };
const QUICK: Sizes =
    Sizes { parts: 5, keys: 2_000, object_bytes: 128 << 20, uploads: 10, names: 20_000, folder: 50_000 };

type Section = (&'static str, fn(&Sizes, &mut Report));

const SECTIONS: [Section; 5] = [
    ("requests", requests::run),
    ("writers", writers::run),
    ("changes", changes::run),
    ("mount", mount_time::run),
    ("names", names::run),
];

fn main() -> ExitCode {
    let (sizes, sections) = match read_arguments() {
        Ok(read) => read,
        Err(message) => {
            eprintln!("measure: {message}");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::default();
    for (name, run) in sections {
        let start = Instant::now();
        run(&sizes, &mut report);
        println!("  ({name}: {:.1} s)", start.elapsed().as_secs_f64());
    }
    println!("\n{}", report.summary());
    if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn read_arguments() -> Result<(Sizes, Vec<Section>), String> {
    let mut sizes = FULL;
    let mut sections = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => sizes = QUICK,
            "--only" => {
                let name = arguments.next().ok_or("--only needs a name")?;
                sections.push(*SECTIONS.iter().find(|(n, _)| *n == name).ok_or(format!("no section {name}"))?);
            }
            other => return Err(format!("unknown option {other}; usage: measure [--quick] [--only SECTION]...")),
        }
    }
    if sections.is_empty() {
        sections = SECTIONS.to_vec();
    }
    Ok((sizes, sections))
}

/// A shell line that must succeed; what it printed.
fn shell(line: &str) -> Result<String, String> {
    succeeded(line, sh(line, WAIT))
}

fn succeeded(what: &str, output: Output) -> Result<String, String> {
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{what}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr))),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
