//! What programs do to the mount in a round, and what they were told.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::WAIT;
use crate::support::mounted::{run, wait_child};

const WRITE_FILE: &str = include_str!("write_file.py");

/// How a program ended.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Bytes whose write returned.
    pub bytes: u64,
    /// Bytes that had been written when the last fsync returned.
    pub synced: u64,
    /// Every call returned well, and the close at the end did.
    pub ok: bool,
    /// The last close returned 0, whatever was before.
    pub closed: bool,
    /// The first call that failed, and its errno.
    pub failed: Option<(String, i32)>,
    /// What was said.
    pub text: String,
}

impl Told {
    fn take(&mut self, line: &str) {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("written"), Some(bytes), _) => self.bytes += bytes.parse::<u64>().unwrap_or(0),
            (Some("synced"), ..) => self.synced = self.bytes,
            (Some("closed"), ..) => self.closed = true,
            (Some("failed"), Some(what), Some(errno)) => {
                let errno = errno.trim().parse().unwrap_or(0);
                self.failed.get_or_insert((what.to_owned(), errno));
            }
            _ => {}
        }
        self.ok = self.closed && self.failed.is_none();
        self.text += line;
        self.text += "; ";
    }

    /// The errno of the first call that failed.
    pub fn errno(&self) -> Option<i32> {
        self.failed.as_ref().map(|(_, errno)| *errno)
    }
}

/// A program that writes to one file by `acts` (see `write_file.py`).
pub struct Writer {
    child: Child,
    lines: mpsc::Receiver<String>,
    pub told: Told,
}

impl Writer {
    /// Starts it: `new` truncates or creates.
    pub fn start(source: &Path, target: &Path, new: bool, acts: &[&str]) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", WRITE_FILE]).arg(target).arg(source).arg(if new { "new" } else { "update" }).args(acts);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 starts");
        let out = child.stdout.take().expect("a pipe");
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|l| tell.send(l)));
        Self { child, lines, told: Told::default() }
    }

    /// Waits until it says `word` first in a line, or fails. `false`: it failed or ended before.
    pub fn wait_for(&mut self, word: &str) -> bool {
        loop {
            let line = match self.lines.recv_timeout(WAIT) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("the writer did not end within {WAIT:?}: {:?}", self.told)
                }
            };
            self.told.take(&line);
            if line.starts_with(word) {
                return true;
            }
            if line.starts_with("failed") {
                return false;
            }
        }
    }

    /// The same, but no longer than `limit`. `None`: it said neither.
    pub fn said_within(&mut self, word: &str, limit: Duration) -> Option<bool> {
        let end = Instant::now() + limit;
        loop {
            let line = match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Some(false),
                Err(mpsc::RecvTimeoutError::Timeout) => return None,
            };
            self.told.take(&line);
            if line.starts_with(word) || line.starts_with("failed") {
                return Some(line.starts_with(word));
            }
        }
    }

    /// Lets a held one go on, and waits for its end.
    pub fn end(mut self) -> Told {
        self.child.stdin = None;
        loop {
            match self.lines.recv_timeout(WAIT) {
                Ok(line) => self.told.take(&line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("the writer did not end within {WAIT:?}: {:?}", self.told)
                }
            }
        }
        self.told.clone()
    }

    /// SIGKILL: as a program that is killed in the middle of its file.
    pub fn kill(mut self) -> Told {
        let _ = self.child.kill();
        while let Ok(line) = self.lines.recv_timeout(WAIT) {
            self.told.take(&line);
        }
        self.told.clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.stdin = None;
        if wait_child(&mut self.child, WAIT).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Writes all of `source` to `target`, made anew, and closes it.
pub fn copy(source: &Path, target: &Path) -> Told {
    let len = std::fs::metadata(source).expect("source").len();
    Writer::start(source, target, true, &[&format!("0:{len}")]).end()
}

/// Writes the bytes `at..at + len` of `source` to the same place of `target`, and closes it.
pub fn patch(source: &Path, target: &Path, at: u64, len: u64) -> Told {
    Writer::start(source, target, false, &[&format!("{at}:{len}")]).end()
}

/// Another program; no bytes.
pub fn program(words: &[&str]) -> Told {
    let output = run(Command::new(words[0]).args(&words[1..]).env("LC_ALL", "C"), WAIT);
    let ok = output.status.success();
    Told { ok, closed: ok, text: String::from_utf8_lossy(&output.stderr).into_owned(), ..Told::default() }
}
