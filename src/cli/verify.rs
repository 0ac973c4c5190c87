//! `bosfs verify`.

use super::args::VerifyArgs;
use super::exit::CliError;

/// Runs the command.
///
/// # Errors
/// Always, until the engine can.
pub fn run(_args: &VerifyArgs) -> Result<(), CliError> {
    Err(CliError::failed("verify is not there yet"))
}
