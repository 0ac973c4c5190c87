//! A process that uses the mount step by step: see `actor.py`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::WAIT;

/// What a call gave: its value, or the name of its errno.
pub type Given = Result<Value, String>;

/// A running `actor.py`. It is killed with this value.
pub struct Actor {
    child: Child,
    /// `None`: it was told that nothing more comes.
    orders: Option<ChildStdin>,
    answers: mpsc::Receiver<Value>,
    /// Bytes that the last `write` had handed over when it ended.
    pub written: u64,
}

impl Actor {
    pub fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/world/actor.py");
        let mut command = Command::new("python3");
        command.arg("-u").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 starts");
        let orders = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (tell, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = tell.send(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        let mut actor = Self { child, orders, answers, written: 0 };
        assert!(actor.answer("the start").is_ok());
        actor
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Begins a call; [`Actor::answer`] gives what it gave.
    pub fn begin(&mut self, order: Value) {
        let orders = self.orders.as_mut().expect("it takes orders");
        writeln!(orders, "{order}").expect("the actor lives");
    }

    /// What the call gave; `None`: not within `limit`.
    pub fn answer_within(&mut self, limit: Duration) -> Option<Given> {
        let answer = self.answers.recv_timeout(limit).ok()?;
        self.written = answer["bytes"].as_u64().unwrap_or(0);
        Some(match answer["errno"].as_str() {
            Some(errno) => Err(errno.to_owned()),
            None => Ok(answer["value"].clone()),
        })
    }

    /// What the call gave; a call that does not end fails the test.
    pub fn answer(&mut self, what: &str) -> Given {
        self.answer_within(WAIT).unwrap_or_else(|| panic!("{what}: no end within {WAIT:?}"))
    }

    pub fn ask(&mut self, order: Value) -> Given {
        let what = order.to_string();
        self.begin(order);
        self.answer(&what)
    }

    /// A call that must succeed.
    pub fn must(&mut self, order: Value) -> Value {
        let what = order.to_string();
        self.ask(order).unwrap_or_else(|errno| panic!("{what}: {errno}"))
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub fn interrupt(&self) {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::INT).expect("the actor lives");
    }

    /// Sends SIGKILL. Whether it ended within `limit`.
    pub fn kill_within(&mut self, limit: Duration) -> bool {
        self.child.kill().expect("the actor lives");
        crate::support::mounted::wait_child(&mut self.child, limit).is_some()
    }

    /// Lets it end by itself, with whatever it has open. One that is killed instead makes the kernel interrupt its closes.
    pub fn end(mut self, limit: Duration) {
        drop(self.orders.take());
        assert!(crate::support::mounted::wait_child(&mut self.child, limit).is_some(), "the actor does not end");
    }

    pub fn open(&mut self, name: &str, path: &Path, flags: &str) {
        self.must(open(name, path, flags));
    }

    /// Writes all of the local file `source`.
    pub fn write_all(&mut self, name: &str, source: &Path) {
        self.must(write(name, source, 0, std::fs::metadata(source).expect("a source").len()));
    }

    pub fn close(&mut self, name: &str) -> Given {
        self.ask(close(name))
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn open(name: &str, path: &Path, flags: &str) -> Value {
    json!({"do": "open", "as": name, "path": path, "flags": flags})
}

/// Writes `len` bytes of the local file `source`, from `offset` on, to the same place.
pub fn write(name: &str, source: &Path, offset: u64, len: u64) -> Value {
    json!({"do": "write", "as": name, "source": source, "offset": offset, "len": len})
}

pub fn close(name: &str) -> Value {
    json!({"do": "close", "as": name})
}

pub fn fsync(name: &str) -> Value {
    json!({"do": "fsync", "as": name})
}

/// A call that only names a path: `stat`, `list`, `mkdir`, `rmdir`, `unlink`, `statvfs`.
pub fn on(call: &str, path: &Path) -> Value {
    json!({"do": call, "path": path})
}

pub fn rename(from: &Path, to: &Path) -> Value {
    json!({"do": "rename", "path": from, "to": to})
}
