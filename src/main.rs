//! Parses the command line, runs one command, prints the error, returns the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    bosfs::cli::run()
}
