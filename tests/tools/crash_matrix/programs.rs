//! Programs that run on a mount, with a limit for each, and the look whether anything of them hangs in the kernel.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// `None`: by a signal.
    pub code: Option<i32>,
    /// What it complained.
    pub errors: String,
}

impl Ended {
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// The errno in its complaint, by name.
    pub fn errno(&self) -> Option<&'static str> {
        const NAMES: &[(&str, &str)] = &[
            ("Permission denied", "EACCES"),
            ("Input/output error", "EIO"),
            ("Connection timed out", "ETIMEDOUT"),
            ("No space left on device", "ENOSPC"),
            ("Disk quota exceeded", "EDQUOT"),
            ("No such device", "ENODEV"),
            ("No such file", "ENOENT"),
            ("Stale file handle", "ESTALE"),
            ("File exists", "EEXIST"),
            ("Transport endpoint is not connected", "ENOTCONN"),
            ("Software caused connection abort", "ECONNABORTED"),
            ("Read-only file system", "EROFS"),
        ];
        NAMES.iter().find(|(text, _)| self.errors.contains(text)).map(|(_, name)| *name)
    }

    pub fn told(&self) -> String {
        let code = self.code.map_or("a signal".to_owned(), |code| format!("code {code}"));
        format!("{code}: {}", self.errors.trim().replace('\n', " | "))
    }
}

/// A program under way.
pub struct Program {
    child: Child,
    errors: PathBuf,
    name: String,
}

impl Program {
    /// Starts it; its output goes to `output` where given, its complaints beside `folder`.
    pub fn start(command: &mut Command, folder: &Path, output: Option<&Path>) -> Result<Self, String> {
        let errors = folder.join("errors");
        let name = format!("{:?}", command.get_program());
        let file = |path: &Path| std::fs::File::create(path).map_err(|e| format!("{}: {e}", path.display()));
        let stdout = match output {
            Some(path) => Stdio::from(file(path)?),
            None => Stdio::null(),
        };
        command.stdin(Stdio::null()).stdout(stdout).stderr(file(&errors)?).env("LC_ALL", "C");
        let child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        Ok(Self { child, errors, name })
    }

    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It hangs: not within `limit`. It is killed then.
    pub fn wait(mut self, limit: Duration) -> Result<Ended, String> {
        let end = Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                let errors = std::fs::read_to_string(&self.errors).unwrap_or_default();
                return Ok(Ended { code: status.code(), errors });
            }
            if Instant::now() > end {
                let place = where_it_is(self.child.id());
                return Err(format!("HANG: {} did not end within {} s\n{place}", self.name, limit.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            // Not for ever: a process that hangs in the kernel goes with its mount.
            let end = Instant::now() + Duration::from_secs(2);
            while self.is_running() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// What each thread of a process waits for in the kernel, for the report of a hang.
pub fn where_it_is(pid: u32) -> String {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lines = threads.map(|thread| {
        let path = thread.path();
        let calls = read(path.join("stack")).lines().take(6).collect::<Vec<_>>().join(" < ");
        format!("thread {} in {}: {calls}", read(path.join("comm")).trim(), read(path.join("wchan")).trim())
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Longest time in which a thread may be seen in uninterruptible sleep, look after look.
const UNINTERRUPTIBLE_MAX: Duration = Duration::from_secs(3);

/// Whether some thread of the process sleeps uninterruptibly for longer than [`UNINTERRUPTIBLE_MAX`].
pub fn hangs_in_kernel(pid: u32) -> bool {
    let sleeping = || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
        stats.into_iter().any(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D')))
    };
    let end = Instant::now() + UNINTERRUPTIBLE_MAX;
    while sleeping() {
        if Instant::now() > end {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
