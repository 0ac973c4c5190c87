//! Bosfs with the places of `FAILPOINTS` armed (`name=action;...`): for tests of what a panic leaves.

use std::process::ExitCode;

fn main() -> ExitCode {
    let _scenario = fail::FailScenario::setup();
    bosfs::cli::run()
}
