//! A disk that fails when it is told to: a FUSE pass-through file system, served by threads of this process, that the real
//! bosfs binary is given for its state directory.
//!
//! Nothing is cached by the kernel (direct I/O, no lifetimes of names), so each write, sync, rename and the like of bosfs
//! arrives as one request. All that change something are carried out one after the other, numbered, and kept in a
//! [`Record`]; a [`Rule`](fault::Rule) can kill bosfs right before or right after the n-th one, or answer an error in its
//! place. [`power`] makes of the record what a real disk could hold after power loss.
//!
//! The folder behind it (`backing`) is on a real file system; syncs are recorded and not passed on, since it is bosfs that
//! dies here and not this machine.

pub mod boot;
pub mod fault;
mod nodes;
mod passthrough;
pub mod power;
pub mod record;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal};

use fault::{DiskFault, DiskRule, DiskWhen, Kind};
use record::{Change, Record};

/// Threads that serve one disk: bosfs asks from several at once.
const THREADS: usize = 4;

/// What all requests to a disk pass, one at a time.
pub(super) struct Gate {
    rules: Vec<DiskRule>,
    record: Record,
    /// bosfs was killed: nothing more is carried out, whatever its threads still ask in their last moment.
    frozen: bool,
    /// Why a rule that should have killed could not.
    trouble: Option<String>,
}

/// What a request is told to do.
pub(super) enum Verdict {
    /// Carry it out.
    Go,
    /// Carry out so many bytes of the write and answer that many.
    Short(u64),
    /// Carry it out, then kill.
    GoAndKill(DiskRule),
    /// Carry it out, and answer once the rule is released.
    AnswerLate(DiskRule),
    /// Carry it out once the rule is released, unless the disk stands still then.
    ActLate(DiskRule),
}

impl Gate {
    /// What the rules say to this request. `Err`: the answer, with nothing carried out.
    pub(super) fn ask(
        &mut self,
        tid: u32,
        kind: Kind,
        path: &str,
        range: (u64, u64),
    ) -> Result<Verdict, rustix::io::Errno> {
        if self.frozen {
            return Err(rustix::io::Errno::IO);
        }
        let Some(rule) = self.rules.iter().find(|rule| rule.takes(kind, path, range)).cloned() else {
            return Ok(Verdict::Go);
        };
        match rule.fault() {
            DiskFault::Pass => {
                rule.count_hit(path);
                Ok(Verdict::Go)
            }
            DiskFault::Fail(errno) => {
                rule.count_hit(path);
                Err(errno)
            }
            DiskFault::Short { bytes } => {
                rule.count_hit(path);
                Ok(Verdict::Short(bytes))
            }
            DiskFault::KillAfter => Ok(Verdict::GoAndKill(rule)),
            DiskFault::AnswerLate => Ok(Verdict::AnswerLate(rule)),
            DiskFault::ActLate => Ok(Verdict::ActLate(rule)),
            DiskFault::KillBefore => {
                self.kill(tid, &rule, path);
                Err(rustix::io::Errno::IO)
            }
        }
    }

    /// SIGKILL to the process that asks; from here on the disk stands still.
    pub(super) fn kill(&mut self, tid: u32, rule: &DiskRule, path: &str) {
        match kill_bosfs(tid) {
            Ok(()) => {
                self.frozen = true;
                rule.count_hit(path);
            }
            Err(why) => self.trouble = Some(format!("{path}: thread {tid} was to be killed: {why}")),
        }
    }
}

/// Kills the process that thread `tid` belongs to, if it is bosfs.
fn kill_bosfs(tid: u32) -> Result<(), String> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).map_err(|e| e.to_string())?;
    let tgid = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<i32>().ok());
    let tgid = tgid.ok_or("no thread group")?;
    let comm = std::fs::read_to_string(format!("/proc/{tgid}/comm")).map_err(|e| e.to_string())?;
    if comm.trim() != "bosfs" {
        return Err(format!("it is {}", comm.trim()));
    }
    let pid = Pid::from_raw(tgid).ok_or("no process")?;
    rustix::process::kill_process(pid, Signal::KILL).map_err(|e| e.to_string())
}

/// A mounted disk; dropping it takes the mount away. bosfs must be gone before.
pub struct FaultDisk {
    gate: Arc<Mutex<Gate>>,
    dir: PathBuf,
    backing: PathBuf,
    session: Option<BackgroundSession>,
}

impl FaultDisk {
    /// Mounts one on `dir` (made if missing) over the empty folder `backing` (made too).
    ///
    /// # Errors
    /// What the system says.
    pub fn start(dir: &Path, backing: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        std::fs::create_dir_all(backing)?;
        let backing = backing.canonicalize()?;
        let gate = Gate { rules: Vec::new(), record: Record::default(), frozen: false, trouble: None };
        let gate = Arc::new(Mutex::new(gate));
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("faultdisk".into()),
            // bosfs refuses to keep its state in a mount that may be its own.
            MountOption::CUSTOM("subtype=faultdisk".into()),
            MountOption::DefaultPermissions,
            MountOption::NoAtime,
        ];
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let session = Session::new(nodes::Passthrough::new(&backing, gate.clone())?, dir, &config)?;
        Ok(Self { gate, dir: dir.to_owned(), backing, session: Some(session.spawn()?) })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder behind it, to look at or to damage past the disk.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// Adds a rule. The first rule, in order of adding, that takes a request acts on it.
    pub fn fault(&self, when: DiskWhen, fault: DiskFault) -> DiskRule {
        let rule = DiskRule::new(when, fault);
        self.gate.lock().rules.push(rule.clone());
        rule
    }

    /// The disk is well again, also after a kill.
    pub fn heal(&self) {
        let mut gate = self.gate.lock();
        gate.rules.drain(..).for_each(|rule| rule.release());
        gate.frozen = false;
    }

    /// Nothing is carried out any more, as after a kill.
    pub fn freeze(&self) {
        self.gate.lock().frozen = true;
    }

    /// Why a rule could not kill, if one could not.
    pub fn trouble(&self) -> Option<String> {
        self.gate.lock().trouble.clone()
    }

    /// Keeps the bytes of writes from now on, for [`power`].
    pub fn keep_bytes(&self) {
        self.gate.lock().record.keep_bytes = true;
    }

    /// All changes so far, in order.
    pub fn changes(&self) -> Vec<Change> {
        self.gate.lock().record.changes.clone()
    }

    /// Number of changes so far.
    pub fn change_count(&self) -> u64 {
        self.gate.lock().record.changes.len() as u64
    }

    /// Waits until a rule has acted. `false`: not within `timeout`.
    #[must_use]
    pub fn wait_hit(&self, rule: &DiskRule, timeout: Duration) -> bool {
        rule.wait_hit(timeout)
    }
}

impl Drop for FaultDisk {
    fn drop(&mut self) {
        // What is still late would keep the session.
        self.freeze();
        self.gate.lock().rules.drain(..).for_each(|rule| rule.release());
        super::mounted::detach(&self.dir);
        drop(self.session.take());
    }
}
