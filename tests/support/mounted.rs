//! The real `bosfs` binary on a real mount point.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

/// Longest wait for a mount to answer.
pub const MOUNT_TIMEOUT: Duration = Duration::from_secs(30);

/// The binary under test: `BOSFS_BIN`, else the one cargo built beside this program.
pub fn bosfs_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("BOSFS_BIN") {
        return path.into();
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_bosfs") {
        return path.into();
    }
    // target/PROFILE/examples/TOOL
    let tool = std::env::current_exe().expect("own path");
    tool.ancestors().nth(2).expect("target folder").join("bosfs")
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// `BUCKET[/PREFIX]`.
    pub target: String,
    pub dir: PathBuf,
    pub endpoint: String,
    pub credentials: PathBuf,
    pub state_dir: PathBuf,
    /// Further options.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Words of a command before the binary's path, which is to run it in its own place.
    pub wrapper: Vec<String>,
    /// Where the process writes what it has to say.
    pub log: PathBuf,
    /// What is run: bosfs itself, or something that ends in running it.
    pub binary: PathBuf,
}

impl MountSpec {
    /// The command that mounts in the foreground.
    pub fn command(&self) -> Command {
        let mut words = self.wrapper.iter().map(OsStr::new).chain([self.binary.as_os_str()]);
        let mut command = Command::new(words.next().expect("the binary at least"));
        command
            .args(words)
            .arg("mount")
            .arg(&self.target)
            .arg(&self.dir)
            .args(["--endpoint", &self.endpoint])
            .arg("--credentials")
            .arg(&self.credentials)
            .arg("--state-dir")
            .arg(&self.state_dir)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Mounts, and waits until the mount answers.
    ///
    /// # Errors
    /// With the log, when the process ends before or nothing answers in time.
    pub fn mount(&self) -> io::Result<Mounted> {
        let mut mounted = self.start()?;
        mounted.wait_ready(MOUNT_TIMEOUT)?;
        Ok(mounted)
    }

    /// Starts the process, which may not even have looked at the bucket yet when this returns.
    ///
    /// # Errors
    /// Folder or log cannot be made.
    pub fn start(&self) -> io::Result<Mounted> {
        // A dead mount of an earlier process may stand there: bosfs must cope with it.
        if !is_mounted(&self.dir) {
            std::fs::create_dir_all(&self.dir)?;
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child =
            self.command().arg("--foreground").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Mounted { spec: self.clone(), child: Some(child) })
    }
}

/// Longest time between fork and exec of a program that another thread starts.
const FORKED_WITHIN: Duration = Duration::from_secs(2);

/// A mount that is there as long as this value.
pub struct Mounted {
    spec: MountSpec,
    child: Option<Child>,
}

impl Mounted {
    pub fn dir(&self) -> &Path {
        &self.spec.dir
    }
    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.spec.dir.join(name)
    }
    pub fn spec(&self) -> &MountSpec {
        &self.spec
    }
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits until the mount answers.
    ///
    /// # Errors
    /// With the log, when the process ends before or nothing answers in time.
    pub fn wait_ready(&mut self, timeout: Duration) -> io::Result<()> {
        let end = Instant::now() + timeout;
        while !(is_mounted(&self.spec.dir) && answers(&self.spec.dir)) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > end {
                let why = ended.map_or("does not answer".to_owned(), |status| format!("ended: {status}"));
                return Err(io::Error::other(format!("bosfs mount {why}\n{}", self.log_text())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What bosfs has logged so far, all processes of this state directory.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.spec.log).unwrap_or_default()
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// SIGKILL, then the dead mount is taken away. After the end of the process nothing happens: what is mounted there then
    /// is another one's.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let ended = wait_child(&mut child, MOUNT_TIMEOUT).is_some();
            if !ended {
                // One of its threads waits for the mount that it serves itself.
                let _ = rustix::mount::unmount(&self.spec.dir, UnmountFlags::FORCE);
                let _ = child.wait();
            }
            detach(&self.spec.dir);
            assert!(ended || std::thread::panicking(), "SIGKILL does not end bosfs\n{}", self.log_text());
        }
    }

    /// Sends a signal and waits for the end of the process; `None`: it did not end in time.
    pub fn end_by(&mut self, signal: Signal, timeout: Duration) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        let _ = rustix::process::kill_process(Pid::from_child(child), signal);
        let status = wait_child(child, timeout);
        if status.is_some() {
            self.child = None;
            detach(&self.spec.dir);
        }
        status
    }

    /// SIGSTOP or SIGCONT and the like.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let _ = rustix::process::kill_process(Pid::from_child(child), signal);
        }
    }

    /// Stops the process (SIGSTOP) and waits until none of its threads runs.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let Some(pid) = self.pid() else { return };
        let runs = |stat: &str| {
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            !matches!(state, Some('T' | 't' | 'Z' | 'X') | None)
        };
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
            let mut stats = threads.flatten().filter_map(|t| std::fs::read_to_string(t.path().join("stat")).ok());
            if !stats.any(|stat| runs(&stat)) {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Kills the process and mounts again with the same state directory.
    pub fn remount(&mut self) -> io::Result<()> {
        self.kill();
        let mut again = self.spec.mount()?;
        self.child = again.child.take();
        std::mem::forget(again);
        Ok(())
    }

    /// `bosfs umount DIR`, then waits for the process.
    ///
    /// A program that another thread starts has copies of this process's descriptors until it is executed, and keeps the
    /// mount busy for as long; that much is waited for. A user of the mount that stays is named by bosfs, and a failure at once.
    pub fn umount(&mut self, timeout: Duration) -> Output {
        let end = Instant::now() + FORKED_WITHIN;
        let mut output = run(Command::new(bosfs_binary()).arg("umount").arg(&self.spec.dir), timeout);
        while String::from_utf8_lossy(&output.stderr).contains("in use by some process") && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            output = run(Command::new(bosfs_binary()).arg("umount").arg(&self.spec.dir), timeout);
        }
        if output.status.success()
            && let Some(child) = &mut self.child
            && wait_child(child, timeout).is_some()
        {
            self.child = None;
        }
        output
    }

    /// `bosfs status DIR --json`.
    pub fn status(&self) -> serde_json::Value {
        let output =
            run(Command::new(bosfs_binary()).arg("status").arg(&self.spec.dir).arg("--json"), Duration::from_secs(30));
        assert!(output.status.success(), "bosfs status: {output:?}\n{}", self.log_text());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("status is no JSON: {e}: {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// The entry of `key` in `status`.
    pub fn file_status(&self, key: &str) -> Option<serde_json::Value> {
        find_file(&self.status(), key)
    }

    /// Waits until `status` has nothing to do for `key`: no entry, or state `idle` or `done`.
    pub fn wait_settled(&self, key: &str, timeout: Duration) {
        self.wait_state(key, timeout, |entry| entry.is_none_or(|e| e["state"] == "idle" || e["state"] == "done"));
    }

    /// Waits until the entry of `key` is as wanted.
    pub fn wait_state(&self, key: &str, timeout: Duration, wanted: impl Fn(Option<&serde_json::Value>) -> bool) {
        let end = Instant::now() + timeout;
        loop {
            let entry = self.file_status(key);
            if wanted(entry.as_ref()) {
                return;
            }
            assert!(Instant::now() < end, "{key} stays {entry:?}\n{}", self.log_text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Another command of bosfs with this mount's endpoint, credentials and state directory.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bosfs_binary());
        command
            .args(args)
            .args(["--endpoint", &self.spec.endpoint])
            .arg("--credentials")
            .arg(&self.spec.credentials)
            .arg("--state-dir")
            .arg(&self.spec.state_dir);
        command
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log_text();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("--- end of the log of bosfs ---");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// The entry of `key` in a status document, wherever its list of files stands.
fn find_file(status: &serde_json::Value, key: &str) -> Option<serde_json::Value> {
    match status {
        serde_json::Value::Array(items) => items.iter().find_map(|item| find_file(item, key)),
        serde_json::Value::Object(fields) if fields.get("key").is_some_and(|k| k == key) => Some(status.clone()),
        serde_json::Value::Object(fields) => fields.values().find_map(|value| find_file(value, key)),
        _ => None,
    }
}

/// Whether something is mounted at `dir`, from mountinfo: never waits for the file system.
pub fn is_mounted(dir: &Path) -> bool {
    let dir = dir.to_string_lossy().replace(' ', "\\040");
    std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(dir.as_str()))
}

/// Whether a directory can be listed, asked from a thread that may hang.
fn answers(dir: &Path) -> bool {
    let (tell, told) = mpsc::channel();
    let dir = dir.to_owned();
    std::thread::spawn(move || {
        let _ = tell.send(std::fs::read_dir(dir).is_ok());
    });
    told.recv_timeout(MOUNT_TIMEOUT).unwrap_or(false)
}

/// Takes away whatever is mounted at `dir`, also in layers.
pub fn detach(dir: &Path) {
    for _ in 0..4 {
        if !is_mounted(dir) || rustix::mount::unmount(dir, UnmountFlags::DETACH).is_err() {
            return;
        }
    }
}

/// Waits for a child; `None`: not within `timeout`.
pub fn wait_child(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    }
}

/// Runs a command to its end; killed, and an error, beyond `timeout`.
pub fn run(command: &mut Command, timeout: Duration) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let pid = Pid::from_child(&child);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    match told.recv_timeout(timeout) {
        Ok(output) => output.unwrap_or_else(|e| panic!("{command:?}: {e}")),
        Err(_) => {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            panic!("{command:?} did not end within {timeout:?}");
        }
    }
}

/// Starts `cp SOURCE TARGET`.
pub fn start_cp(source: impl AsRef<OsStr>, target: impl AsRef<OsStr>) -> Child {
    let mut command = Command::new("cp");
    command.arg(source).arg(target).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("cp starts")
}

/// `cp SOURCE TARGET`, to its end.
pub fn cp(source: impl AsRef<OsStr>, target: impl AsRef<OsStr>, timeout: Duration) -> Output {
    run(Command::new("cp").arg(source).arg(target), timeout)
}

/// A shell line, to its end.
pub fn sh(line: &str, timeout: Duration) -> Output {
    run(Command::new("bash").args(["-c", line]), timeout)
}

/// Runs `job` in a thread and gives up after `timeout`: a test of a mount must not hang with it.
pub fn within<T: Send + 'static>(timeout: Duration, what: &str, job: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(job()));
    told.recv_timeout(timeout).unwrap_or_else(|_| panic!("{what}: no end within {timeout:?}"))
}

/// `cp` from a pipe, so that it is in the middle of the file as long as we want.
pub struct SlowWriter {
    child: Child,
}

impl SlowWriter {
    pub fn start(target: &Path) -> Self {
        let mut command = Command::new("cp");
        command.arg("/dev/stdin").arg(target).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().expect("cp starts") }
    }

    /// Hands over the first `bytes` of `source`; when it returns, all but the last pipe full has been written.
    pub fn feed(&mut self, source: &Path, bytes: u64) -> io::Result<()> {
        self.feed_from(source, 0, bytes)
    }

    /// The same for `bytes` from `offset` on.
    pub fn feed_from(&mut self, source: &Path, offset: u64, bytes: u64) -> io::Result<()> {
        use std::io::{Read, Seek, Write};
        let pipe = self.child.stdin.as_mut().ok_or_else(|| io::Error::other("no pipe"))?;
        let mut source = File::open(source)?;
        source.seek(io::SeekFrom::Start(offset))?;
        let mut source = source.take(bytes);
        let mut buf = vec![0; 1 << 20];
        loop {
            match source.read(&mut buf)? {
                0 => return pipe.flush(),
                n => pipe.write_all(&buf[..n])?,
            }
        }
    }

    /// Sends a signal and waits for the end.
    pub fn end_by(mut self, signal: Signal) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
        let _ = wait_child(&mut self.child, Duration::from_secs(10));
    }
}

impl Drop for SlowWriter {
    /// Ends its input; on a dead mount `cp` then ends by itself.
    fn drop(&mut self) {
        self.child.stdin = None;
        if wait_child(&mut self.child, Duration::from_secs(10)).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
