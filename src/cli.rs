//! The commands for people.

use std::process::ExitCode;

/// Runs the command that the process arguments name.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
