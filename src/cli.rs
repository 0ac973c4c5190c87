//! The commands for people.

pub mod args;
pub mod exit;
pub mod output;

use std::process::ExitCode;

/// Runs the command that the process arguments name.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
