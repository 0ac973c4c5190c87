//! Figures beside their limits.

use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::support::World;

/// Requests that are shown when a figure is beyond its limit.
const SHOWN_REQUESTS_MAX: usize = 60;

/// What a figure may be.
#[derive(Clone, Copy)]
pub enum Limit {
    Exactly(u64),
    AtMost(u64),
    /// Ends included.
    Between(u64, u64),
}

impl Limit {
    fn holds(self, figure: u64) -> bool {
        match self {
            Limit::Exactly(n) => figure == n,
            Limit::AtMost(n) => figure <= n,
            Limit::Between(low, high) => (low..=high).contains(&figure),
        }
    }
}

impl Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Exactly(n) => write!(f, "= {n}"),
            Limit::AtMost(n) => write!(f, "<= {n}"),
            Limit::Between(low, high) => write!(f, "{low} to {high}"),
        }
    }
}

/// Prints every figure as it comes, and remembers those beyond their limits.
#[derive(Default)]
pub struct Report {
    checks: u32,
    failed: Vec<String>,
}

impl Report {
    /// A figure with a limit.
    pub fn check(&mut self, what: &str, figure: u64, limit: Limit) {
        self.line(what, &figure.to_string(), &limit.to_string(), limit.holds(figure));
    }

    /// A time that must be shorter than `limit`.
    pub fn check_time(&mut self, what: &str, time: Duration, limit: Duration) {
        let (shown, at_most) = (format!("{} ms", time.as_millis()), format!("< {} ms", limit.as_millis()));
        self.line(what, &shown, &at_most, time < limit);
    }

    /// Something that must be so.
    pub fn check_that(&mut self, what: &str, is: bool) {
        self.line(what, if is { "yes" } else { "no" }, "yes", is);
    }

    /// A figure without a limit.
    pub fn note(&mut self, what: &str, figure: impl Display) {
        println!("        {what:<62} {figure:>14}");
    }

    fn line(&mut self, what: &str, figure: &str, limit: &str, holds: bool) {
        self.checks += 1;
        println!("  {}  {what:<62} {figure:>14}  {limit}", if holds { "PASS" } else { "FAIL" });
        if !holds {
            self.failed.push(format!("{what}: {figure}, limit {limit}"));
        }
    }

    /// One measurement in a world of its own. An error or a panic of it counts as a failed check; with any failed check,
    /// the requests and the end of the log are shown.
    pub fn scene(&mut self, title: &str, scene: impl FnOnce(&World, &mut Report) -> Result<(), String>) {
        println!("\n{title}");
        let failed_before = self.failed.len();
        let world = match World::try_new() {
            Ok(world) => world,
            Err(e) => return self.line(&format!("{title}: no test server: {e}"), "error", "none", false),
        };
        let ended = catch_unwind(AssertUnwindSafe(|| scene(&world, self)));
        let error = match ended {
            Ok(Ok(())) => None,
            Ok(Err(message)) => Some(message),
            Err(panic) => Some(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".into())),
        };
        if let Some(error) = error {
            self.line(&format!("{title}: {error}"), "error", "none", false);
        }
        if self.failed.len() > failed_before {
            println!("    last requests:\n{}", tail(&world.proxy.counts().log_text()));
            println!("    end of the log:\n{}", tail(&world.log_text()));
        }
    }

    pub fn passed(&self) -> bool {
        self.failed.is_empty()
    }

    pub fn summary(&self) -> String {
        match self.failed.as_slice() {
            [] => format!("all {} checks passed", self.checks),
            failed => format!("{} of {} checks FAILED:\n  {}", failed.len(), self.checks, failed.join("\n  ")),
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_REQUESTS_MAX)..].join("\n")
}
