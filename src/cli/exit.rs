//! Exit codes and errors for people: the one place that fixes both.

use std::fmt;
use std::process::ExitCode;

use crate::bos::{BosError, BosErrorKind};
use crate::config::CredentialsError;

/// How a command ended. The numbers are part of the interface; scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything that was asked for is done.
    Ok = 0,
    /// It failed for a reason that has no code of its own.
    Failed = 1,
    /// The command line is wrong; nothing was done.
    Usage = 2,
    /// The command itself went well, but files remain that are not in BOS: failed, in conflict or still pending.
    FilesRemain = 3,
    /// Ended by Ctrl-C, a signal or `--timeout` before it was done; what was running behind goes on.
    Interrupted = 4,
    /// No credentials, wrong ones, or ones without the permission.
    Credentials = 5,
    /// BOS could not be reached or did not answer in time.
    Network = 6,
}

/// The table of exit codes as `--help` shows it.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done (umount: everything closed is in BOS)
  1  failed
  2  wrong command line; nothing was done
  3  files remain that are not in BOS (failed, in conflict or pending)
  4  interrupted by a signal, Ctrl-C or --timeout; work behind goes on
  5  no credentials, wrong ones, or no permission
  6  BOS could not be reached";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed: what happened, what caused it, what to do next.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CliError {
    code: u8,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

impl CliError {
    /// With a code of its own.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { code: exit as u8, message: message.into(), causes: Vec::new(), hint: None }
    }

    /// [`Exit::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// [`Exit::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Nobody reads our output any more: ends the command without a word and with code 0.
    pub fn reader_gone() -> Self {
        Self::new(Exit::Ok, "")
    }

    /// `error` and its chain of causes under the sentence `message`.
    pub fn caused(message: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut this = Self::failed(message);
        let mut cause = Some(error);
        while let Some(error) = cause {
            let text = error.to_string();
            // Errors that repeat their source in their own text are shown once.
            if !this.causes.iter().any(|earlier: &String| earlier.contains(&text)) {
                this.causes.push(text);
            }
            cause = error.source();
        }
        this
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Gives it another code.
    #[must_use]
    pub fn code(mut self, exit: Exit) -> Self {
        self.code = exit as u8;
        self
    }

    /// The code for the shell.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// Writes the error to stderr; nothing for [`CliError::reader_gone`].
    pub fn print(&self) {
        if !self.message.is_empty() {
            use std::io::Write as _;
            // A closed stderr must not turn an exit code into a panic.
            let _ = writeln!(std::io::stderr().lock(), "{self}");
        }
    }

    /// For a failed call of BOS: the sentence, the story of the call, the code that fits its kind.
    pub fn bos(message: impl Into<String>, error: &BosError) -> Self {
        // The error's own text ends in what to do.
        let this = Self::caused(message, error);
        match error.kind {
            BosErrorKind::Denied => this.code(Exit::Credentials),
            BosErrorKind::Network | BosErrorKind::Server | BosErrorKind::Throttled => this.code(Exit::Network),
            _ => this,
        }
    }
}

impl From<CredentialsError> for CliError {
    fn from(error: CredentialsError) -> Self {
        let hint = match &error {
            CredentialsError::None { .. } => Some(
                "set BCE_ACCESS_KEY_ID and BCE_SECRET_ACCESS_KEY, or write both into a file and name it with --credentials \
                 (without an account: bosfs mount --local BUCKET DIR)",
            ),
            _ => None,
        };
        Self {
            code: Exit::Credentials as u8,
            message: error.to_string(),
            causes: Vec::new(),
            hint: hint.map(String::from),
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::reader_gone();
        }
        Self::failed(error.to_string())
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bosfs: {}", self.message)?;
        for cause in &self.causes {
            write!(f, "\n  caused by: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_show_cause_chain_and_hint_once_each() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("inner"));
        let shown = CliError::caused("cannot do it", &error).hint("try harder").to_string();
        assert_eq!(shown, "bosfs: cannot do it\n  caused by: outer: inner\n  hint: try harder");
    }

    #[test]
    fn a_closed_pipe_is_success() {
        let error = CliError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(error.exit_code(), 0);
    }

    #[test]
    fn the_help_names_every_code() {
        for code in [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::FilesRemain,
            Exit::Interrupted,
            Exit::Credentials,
            Exit::Network,
        ] {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", code as u8)));
        }
    }
}
