//! Two programs on one file: what each does, and what must hold of the object between them.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::phases::{KEY, PART_BYTES, Story};
use crate::stage::{Stage, WAIT};
use crate::support::crash::steps::{Writer, copy, patch};
use crate::support::mounted::within;

/// What the first of two programs changes: within the last part. A multiple of [`A_BYTES`].
pub const A_AT: u64 = 4 * PART_BYTES / A_BYTES as u64 * A_BYTES as u64 + 30 * A_BYTES as u64;
pub const A_BYTES: usize = 3000;
/// What the second one changes: far before that.
pub const B_AT: u64 = (1 << 20) + 100;
pub const B_BYTES: usize = 5000;
/// Longest wait for the write of the second one, which should wait for nothing.
pub const B_WITHIN: Duration = Duration::from_secs(2);

impl Stage<'_> {
    /// The second of two programs opens the file and changes it, while the request of the phase is under way; it stays. It
    /// should wait for nothing, but that is not what is checked here.
    pub fn second_writes(&mut self) {
        let path = self.path(KEY);
        let writer = match self.story() {
            Story::Share => {
                let change = format!("{B_AT}:{B_BYTES}");
                Some(Writer::start(&self.content().path, &path, false, &[&change, "hold"]))
            }
            Story::ShareEmpty => {
                let all = format!("0:{B_BYTES}");
                Some(Writer::start(&self.content().path, &path, true, &[&all, "hold"]))
            }
            _ => None,
        };
        if let Some(mut writer) = writer {
            let _ = writer.said_within("held", B_WITHIN);
            self.second = Some(writer);
        }
    }

    /// The second one closes the file; what it was told is kept.
    pub fn second_ends(&mut self) {
        if let Some(second) = self.second.take() {
            self.second_told = Some(second.end());
        }
    }

    /// The first program has been told that its close is done, and the second one has not closed: the object is the first one's.
    pub fn check_first(&self) -> Result<(), String> {
        let found = self.world.bucket.get(KEY).map_err(|e| e.to_string())?;
        match found == self.sources.shared[1].bytes {
            true => Ok(()),
            false => Err(format!(
                "MIXED: the first close returned, and the object ({} bytes) is not what it closed",
                found.len()
            )),
        }
    }

    /// The object was never anything but one of the three states, in order.
    pub fn check_contents(&mut self, sabotaged: bool) -> Result<(), String> {
        let Some((watch, states)) = &mut self.contents else { return Ok(()) };
        if sabotaged && let Some((_, crc)) = &mut states[1] {
            *crc ^= 1;
        }
        watch.look();
        watch.check(states).map(|_| ())
    }

    /// The first of two programs.
    pub fn first_command(&self) -> Command {
        let mut command = Command::new("dd");
        command.arg(format!("if={}", self.sources.shared[1].path.display()));
        command.arg(format!("of={}", self.path(KEY).display()));
        let at = A_AT / A_BYTES as u64;
        command.args([&format!("bs={A_BYTES}"), &format!("skip={at}"), &format!("seek={at}")]);
        command.args(["count=1", "conv=notrunc", "status=none"]);
        command
    }

    /// The programs are run again where something of them was cut off; what was accepted of the second one is shown before.
    pub fn settle_shared(&mut self) -> Result<(), String> {
        self.second_ends();
        let told = self.second_told.take().unwrap_or_default();
        self.wait_quiet_file()?;
        if told.bytes > 0 {
            let path = self.path(KEY);
            let shown = within(WAIT, "reading", move || std::fs::read(path));
            let shown = shown.map_err(|e| format!("reading the file in the mount: {e}"))?;
            let at = if self.story() == Story::Share { B_AT as usize } else { 0 };
            let expected = &self.content().bytes[at..at + told.bytes as usize];
            if shown.get(at..at + told.bytes as usize) != Some(expected) {
                return Err(format!("LOST {} bytes that were accepted of the second program", told.bytes));
            }
        }
        if told.ok && self.is_published()? && self.lost_bytes()? == 0 {
            return Ok(());
        }
        if self.story() == Story::Share {
            let ended = self.run(&mut self.first_command())?;
            if !ended.is_success() {
                return Err(format!("run again: {}", ended.told()));
            }
        }
        let again = match self.story() {
            Story::Share => patch(&self.content().path, &self.path(KEY), B_AT, B_BYTES as u64),
            // It empties the file: what the first one changes is not in it, and changes nothing else.
            _ => copy(&self.content().path, &self.path(KEY)),
        };
        match again.ok {
            true => self.wait_quiet_file(),
            false => Err(format!("run again: {again:?}")),
        }
    }

    /// Until nothing more becomes of the file by itself.
    fn wait_quiet_file(&self) -> Result<(), String> {
        let Some(mount) = &self.mount else { return Err("nothing is mounted".into()) };
        let end = Instant::now() + WAIT;
        loop {
            let entry = mount.file_status(KEY);
            match entry.as_ref().map_or("none", |entry| entry["state"].as_str().unwrap_or("?")) {
                "none" | "idle" | "done" | "interrupted" => return Ok(()),
                "failed" | "conflict" => return Err(format!("without a fault: {entry:?}")),
                _ if Instant::now() > end => return Err(format!("HANG: no end of {entry:?}")),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}
