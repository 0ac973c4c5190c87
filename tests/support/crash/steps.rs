//! What programs do to the mount in a round, and what they were told.

use std::path::Path;
use std::process::Command;

use super::WAIT;
use crate::support::mounted::run;

/// How a program ended.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Bytes whose write returned.
    pub bytes: u64,
    /// It ended well: every close it made returned 0.
    pub ok: bool,
    pub stderr: String,
}

/// `dd if=SOURCE of=TARGET bs=1M` with further operands: writes from the start on, and says how many bytes were taken.
pub fn dd(source: &Path, target: &Path, operands: &[&str]) -> Told {
    let mut command = Command::new("dd");
    command.arg(format!("if={}", source.display())).arg(format!("of={}", target.display())).arg("bs=1M");
    let output = run(command.args(operands).env("LC_ALL", "C"), WAIT);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    // 15730640 bytes (16 MB, 15 MiB) copied, 0.02 s, 800 MB/s
    let bytes = stderr.lines().find_map(|line| line.split_once(" byte")?.0.parse().ok()).unwrap_or(0);
    Told { bytes, ok: output.status.success(), stderr }
}

/// Another program; no bytes.
pub fn program(words: &[&str]) -> Told {
    let output = run(Command::new(words[0]).args(&words[1..]).env("LC_ALL", "C"), WAIT);
    Told { bytes: 0, ok: output.status.success(), stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
}
