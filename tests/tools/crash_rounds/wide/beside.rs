//! Somebody else writes the object during an outage: theirs stays, and what was accepted here is kept.

use std::time::{Duration, Instant};

use super::model::{Closed, Mismatch, Stage};
use super::plan::WideStep;
use super::round::{Foreign, Outcome, Round, WITHIN, broken};
use crate::crash_rounds::calls::Op;
use crate::support::crash::contents::{content, sum_of};
use crate::support::files::random_bytes;
use crate::support::mounted::run as run_command;
use crate::support::{Line, Mounted};

impl Round<'_> {
    /// The line is dead, and somebody else writes the object or removes it.
    pub(super) fn somebody_else(&mut self, step: &WideStep) -> Outcome<()> {
        if self.flying.iter().flatten().any(|flying| !matches!(flying.op, Op::Close { .. })) {
            return Ok(());
        }
        self.place.proxy.set_line(Line::Dead);
        self.wait_quiet();
        self.check_object()?;
        let sum = content(&self.place.bucket, &self.key).map_err(broken)?;
        let Some(now) = self.file.find(&sum, self.file.floor) else {
            return Err(Mismatch::of("MIXED: the object is none of the closed states"));
        };
        let unpublished = now < self.file.last() || self.file.stage != Stage::Clean;
        let removes = step.pick[0].is_multiple_of(4) && sum.is_some();
        let bytes = random_bytes(step.pick[1], 1000 + (step.pick[2] % 90_000) as usize);
        let theirs = if removes { None } else { sum_of(&bytes) };
        self.file.states.push(Closed { sum: theirs, certain: true });
        let state = self.file.last();
        let is_journaled =
            std::fs::read_dir(self.state_dir().join("uploads")).is_ok_and(|mut left| left.next().is_some());
        let unclear = !unpublished && is_journaled;
        self.foreign = Some(Foreign { state, unpublished, unclear, all_here: sum.is_none() });
        let count = if unpublished { &mut self.counted.foreign.0 } else { &mut self.counted.foreign.1 };
        *count += 1;
        self.note(format!("somebody else {} it", if removes { "removes" } else { "writes" }));
        match removes {
            true => self.place.bucket.delete(&self.key).map_err(broken)?,
            false => drop(self.place.bucket.put(&self.key, &bytes).map_err(broken)?),
        }
        self.file.floor = state;
        self.watch.is_at_least(state);
        self.take_replies(Duration::from_millis(step.pick[2] % 500), None)?;
        self.place.proxy.set_line(Line::Alive);
        Ok(())
    }

    /// What somebody else wrote stays, and what was accepted here is kept and can be published beside it.
    pub(super) fn end_beside_foreign(&mut self) -> Outcome<()> {
        let Foreign { state, unpublished, unclear, all_here } =
            self.foreign.ok_or_else(|| Mismatch::of("nobody else"))?;
        self.close_all()?;
        if unpublished {
            let end = Instant::now() + WITHIN;
            let is_told = |mount: &Mounted, key: &str| mount.file_status(key).is_some_and(|e| e["state"] == "conflict");
            while !self.mount.as_ref().is_some_and(|mount| is_told(mount, &self.key)) {
                if Instant::now() > end {
                    let entry = self.mount.as_ref().and_then(|mount| mount.file_status(&self.key));
                    return Err(Mismatch::of(format!("somebody else's object, and no conflict is told: {entry:?}")));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            self.rescue(all_here)?;
        } else if unclear {
            let state =
                |round: &Self| Some(round.mount.as_ref()?.file_status(&round.key)?["state"].as_str()?.to_owned());
            let end = Instant::now() + WITHIN;
            let is_settled =
                |state: Option<String>| state.is_none_or(|s| matches!(s.as_str(), "conflict" | "done" | "idle"));
            while !is_settled(state(self)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
            match state(self).as_deref() {
                None | Some("done" | "idle") => {}
                Some("conflict") => self.rescue(all_here)?,
                Some(other) => return Err(Mismatch::of(format!("somebody else's object, and the file is {other}"))),
            }
        }
        self.umount_only()?;
        self.check_object()?;
        let sum = content(&self.place.bucket, &self.key).map_err(broken)?;
        match sum == self.file.states[state].sum {
            true => Ok(()),
            false => Err(Mismatch::of(format!("FOREIGN: somebody else's object became {sum:?}"))),
        }
    }

    /// `bosfs uploads complete --as`: the bytes are all there. With a base that is gone it may not be able to; then the bytes
    /// stay until somebody gives them up.
    pub(super) fn rescue(&mut self, all_here: bool) -> Outcome<()> {
        let Some(mount) = &self.mount else { return Err(Mismatch::of("no mount")) };
        let object = format!("{}/{}", self.place.spec.target, self.key);
        let beside = format!("{}rescued", self.place.prefix);
        let output = run_command(&mut mount.command(&["uploads", "complete", &object, "--as", &beside]), WITHIN);
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_kept =
                std::fs::read_dir(self.state_dir().join("uploads")).is_ok_and(|mut left| left.next().is_some());
            if all_here || !is_kept {
                return Err(Mismatch::of(format!("uploads complete --as: {} {text}", output.status)));
            }
            self.counted.not_rescued += 1;
            // It may have got the other key before it was found out.
            let beside = format!("{}/{beside}", self.place.spec.target);
            let given_up = [&object, &beside].into_iter().any(|object| {
                run_command(&mut mount.command(&["uploads", "abort", object, "--yes"]), WITHIN).status.success()
            });
            return match given_up {
                true => Ok(()),
                false => Err(Mismatch::of(format!("what could not be published cannot be given up either: {text}"))),
            };
        }
        let found = content(&self.place.bucket, &beside).map_err(broken)?;
        let live = sum_of(&self.file.live);
        match found == live || self.file.find(&found, 0).is_some_and(|n| n > 0) {
            true => Ok(()),
            false => Err(Mismatch {
                why: format!("LOST: rescued is {found:?}, the file was {live:?}"),
                bytes_lost: self.file.live.len() as u64,
            }),
        }
    }
}
