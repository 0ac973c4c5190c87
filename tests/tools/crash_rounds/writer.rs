//! The program whose calls are watched: a process of its own, so that it can be killed, and so that whoever checks never
//! waits in the kernel for a mount. A thread for each lane makes one call after the other.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::fs::FallocateFlags;

use super::calls::{Ended, Op, Reply, Request, SLOTS};
use crate::support::files::random_bytes;
use crate::support::mounted::wait_child;

/// First argument that makes this program the writer.
pub const WRITER: &str = "writer";

/// The writer process: requests from its standard input, answers to its standard output.
pub fn main(dir: &Path) -> io::Result<()> {
    let mut lanes = Vec::new();
    for line in io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        while lanes.len() <= request.lane {
            lanes.push(start_lane(lanes.len(), dir.to_owned()));
        }
        lanes[request.lane].send(request.op).map_err(io::Error::other)?;
    }
    Ok(())
}

fn start_lane(lane: usize, dir: PathBuf) -> std::sync::mpsc::Sender<Op> {
    let (tell, told) = channel::<Op>();
    // Whoever drives it finds the thread by its name.
    let thread = std::thread::Builder::new().name(lane_name(lane));
    let spawned = thread.spawn(move || {
        let mut slots: [Option<File>; SLOTS] = Default::default();
        for op in told {
            let ended = match run(&dir, &mut slots, &op) {
                Ok(taken) => Ended::Done(taken),
                Err(e) => Ended::Failed(e.raw_os_error().unwrap_or(0)),
            };
            let mut line = serde_json::to_vec(&Reply { lane, ended }).expect("plain");
            line.push(b'\n');
            if io::stdout().lock().write_all(&line).is_err() {
                return;
            }
        }
    });
    spawned.expect("a thread");
    tell
}

fn lane_name(lane: usize) -> String {
    format!("lane{lane}")
}

fn slot_of(slots: &[Option<File>; SLOTS], slot: usize) -> io::Result<&File> {
    slots[slot].as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn run(dir: &Path, slots: &mut [Option<File>; SLOTS], op: &Op) -> io::Result<u64> {
    let at = |path: &str| dir.join(path);
    match op {
        Op::Create { slot, path, exclusive, mode } => {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).mode(*mode);
            let file = if *exclusive { options.create_new(true) } else { options.truncate(true) }.open(at(path))?;
            slots[*slot] = Some(file);
        }
        Op::Open { slot, path } => {
            slots[*slot] = Some(OpenOptions::new().read(true).write(true).open(at(path))?);
        }
        Op::Write { slot, at, seed, len } => {
            return slot_of(slots, *slot)?.write_at(&random_bytes(*seed, *len), *at).map(|n| n as u64);
        }
        Op::Cut { slot, size } => slot_of(slots, *slot)?.set_len(*size)?,
        Op::CutPath { path, size } => {
            nix::unistd::truncate(&at(path), i64::try_from(*size).map_err(io::Error::other)?)?
        }
        Op::Fsync { slot } => slot_of(slots, *slot)?.sync_all()?,
        Op::Close { slot } => {
            // Dropping it would hide how the close ended.
            nix::unistd::close(slots[*slot].take().ok_or(io::ErrorKind::NotFound)?)?;
        }
        Op::Rename { from, to } => std::fs::rename(at(from), at(to))?,
        Op::Unlink { path } => std::fs::remove_file(at(path))?,
        Op::Mkdir { path } => std::fs::create_dir(at(path))?,
        Op::Rmdir { path } => std::fs::remove_dir(at(path))?,
        Op::Chmod { path, mode } => std::fs::set_permissions(at(path), std::fs::Permissions::from_mode(*mode))?,
        Op::CopyRange { from, slot, at: to, len } => {
            let source = File::open(at(from))?;
            let len = usize::try_from(*len).map_err(io::Error::other)?;
            let (mut read_at, mut write_at) = (0, *to);
            let target = slot_of(slots, *slot)?;
            let taken = rustix::fs::copy_file_range(&source, Some(&mut read_at), target, Some(&mut write_at), len)?;
            return Ok(taken as u64);
        }
        Op::Punch { slot, at, len } => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(slot_of(slots, *slot)?, flags, *at, *len)?;
        }
        Op::Grow { slot, at, len } => {
            rustix::fs::fallocate(slot_of(slots, *slot)?, FallocateFlags::empty(), *at, *len)?;
        }
        Op::Burst { slot, at, step, count, seed } => {
            let file = slot_of(slots, *slot)?;
            for (n, byte) in (0..).zip(random_bytes(*seed, *count)) {
                file.write_all_at(&[byte], at + n * step)?;
            }
            return Ok(*count as u64);
        }
        Op::Forget => *slots = Default::default(),
    }
    Ok(0)
}

/// The writer process as whoever drives it sees it.
pub struct Writer {
    child: Child,
    requests: ChildStdin,
    replies: Receiver<Reply>,
}

impl Writer {
    /// Starts this program once more, as a writer on `dir`.
    pub fn start(dir: &Path) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(WRITER).arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let requests = child.stdin.take().ok_or_else(|| io::Error::other("no pipe"))?;
        let answers = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        let (tell, replies) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(answers).lines().map_while(Result::ok) {
                let Ok(reply) = serde_json::from_str(&line) else { return };
                if tell.send(reply).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, requests, replies })
    }

    /// Hands a lane its next call.
    pub fn send(&mut self, lane: usize, op: &Op) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Request { lane, op: op.clone() })?;
        line.push(b'\n');
        self.requests.write_all(&line)
    }

    /// The end of some lane's call, if there is one within `wait`.
    pub fn reply(&self, wait: Duration) -> io::Result<Option<Reply>> {
        match self.replies.recv_timeout(wait) {
            Ok(reply) => Ok(Some(reply)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the writer process ended by itself")),
        }
    }

    /// Whether the call of a lane is in the kernel and waits for a FUSE file system. `None`: the kernel does not tell.
    pub fn waits_for_mount(&self, lane: usize) -> Option<bool> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let name = lane_name(lane);
        let is_lane = |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name);
        let task = std::fs::read_dir(tasks).ok()?.flatten().map(|entry| entry.path()).find(is_lane)?;
        let stack = std::fs::read_to_string(task.join("stack")).ok()?;
        (!stack.is_empty()).then(|| stack.contains("fuse"))
    }

    /// SIGKILL. The calls whose answers had left it are in the list. `false`: it does not end.
    pub fn kill(mut self, within: Duration) -> (Vec<Reply>, bool) {
        let _ = self.child.kill();
        let ended = wait_child(&mut self.child, within).is_some();
        // The pipe's end follows that of the process.
        let mut replies = Vec::new();
        while let Ok(reply) = self.replies.recv_timeout(if ended { within } else { Duration::ZERO }) {
            replies.push(reply);
        }
        (replies, ended)
    }
}

impl Drop for Writer {
    /// A writer that hangs in the kernel ends with its mount.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = wait_child(&mut self.child, Duration::from_secs(10));
    }
}
