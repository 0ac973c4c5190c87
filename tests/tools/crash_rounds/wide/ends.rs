//! How a phase ends: what is killed, what the power takes, and what must hold then.

use std::sync::Arc;

use rustix::process::Signal;

use super::model::{Change, Mismatch};
use super::plan::WideEnd;
use super::resolve::{Act, NAME};
use super::round::{Outcome, Round, WITHIN, broken, is_hit};
use crate::crash_rounds::calls::Op;
use crate::crash_rounds::writer::Writer;
use crate::support::crash::contents::content;
use crate::support::disk::fault::DiskRule;
use crate::support::disk::power::{Loss, build};
use crate::support::files::random_bytes;

impl Round<'_> {
    pub(super) fn end(&mut self, end: WideEnd, killer: Option<DiskRule>) -> Outcome<()> {
        let fell = is_hit(killer.as_ref());
        self.note(format!("end: {end:?}"));
        match end {
            // What was to be killed at the disk and was not is killed now.
            WideEnd::DiskKill { .. } | WideEnd::CheckpointKill { .. } if !fell => {
                self.counted.end(WideEnd::Kill { micros: 0 });
                self.kill(true)
            }
            WideEnd::Power { .. } if self.foreign.is_some() || self.disk.is_none() => self.kill(true),
            WideEnd::Power { loss, seed, .. } => {
                self.counted.end(end);
                self.lose_power(loss, seed)
            }
            WideEnd::Kill { .. } | WideEnd::DiskKill { .. } | WideEnd::CheckpointKill { .. } => {
                self.counted.end(end);
                self.kill(true)
            }
            WideEnd::Stop => {
                self.counted.end(end);
                self.kill(false)
            }
            WideEnd::KillWriter => {
                self.counted.end(end);
                self.kill_writer()
            }
            WideEnd::Umount if self.foreign.is_some() => Ok(()),
            WideEnd::Umount => {
                self.counted.end(end);
                self.troubles.end_all(true, self.counted);
                self.close_all()?;
                self.umount()?;
                self.mount_now()
            }
        }
    }

    pub(super) fn mount_now(&mut self) -> Outcome<()> {
        self.mount = Some(self.spec.mount().map_err(broken)?);
        Ok(())
    }

    /// bosfs ends, and so does every call; what was in flight is returned.
    pub(super) fn end_bosfs(&mut self, kill: bool) -> Outcome<Vec<Change>> {
        self.counted.cut_closes += u64::from(self.flying.iter().flatten().any(|f| f.state.is_some()));
        if let Some(disk) = &self.disk {
            // What is late would keep the process from ending.
            self.counted.checkpoints_of(disk);
            self.troubles.tick_all();
        }
        let mut mount = self.mount.take().ok_or_else(|| Mismatch::of("no mount"))?;
        if kill {
            mount.kill();
        } else {
            let status = mount.end_by(Signal::TERM, WITHIN);
            let status = status.ok_or_else(|| Mismatch::of(format!("HANG: SIGTERM: no end within {WITHIN:?}")))?;
            if !status.success() {
                return Err(Mismatch::of(format!("SIGTERM: bosfs ended with {status}")));
            }
        }
        drop(mount);
        while let Some(lane) = self.flying.iter().position(|call| call.as_ref().is_some_and(|call| !call.is_cut)) {
            let writer = self.writer.as_ref().ok_or_else(|| Mismatch::of("no writer"))?;
            let Some(reply) = writer.reply(WITHIN).map_err(broken)? else {
                return Err(Mismatch::of(format!("HANG: h{lane} does not end with bosfs")));
            };
            self.returned(&reply, true)?;
        }
        let flying = self.flying.iter_mut().filter_map(Option::take).flat_map(|cut| cut.changes).collect();
        self.troubles.end_all(false, self.counted);
        for lane in 0..self.open.len() {
            self.open[lane] = false;
            self.send(lane, Act { op: Op::Forget, changes: Vec::new() })?;
            self.wait_returned(lane, None)?;
        }
        self.wait_quiet();
        Ok(flying)
    }

    /// SIGKILL or SIGTERM of bosfs, and what must hold after it.
    pub(super) fn kill(&mut self, kill: bool) -> Outcome<()> {
        let flying = self.end_bosfs(kill)?;
        if let Some(disk) = &self.disk {
            if let Some(trouble) = disk.trouble() {
                return Err(Mismatch::of(trouble));
            }
            disk.heal();
        }
        self.check_object()?;
        self.counted.remounts += 1;
        self.mount_now()?;
        self.check_shown(&flying)
    }

    pub(super) fn kill_writer(&mut self) -> Outcome<()> {
        for lane in 0..self.flying.len() {
            if self.flying[lane].as_ref().is_some_and(|flying| !matches!(flying.op, Op::Close { .. })) {
                self.wait_returned(lane, None)?;
            }
        }
        self.counted.cut_closes += u64::from(self.flying.iter().flatten().any(|f| f.state.is_some()));
        let writer = self.writer.take().ok_or_else(|| Mismatch::of("no writer"))?;
        let (replies, ended) = writer.kill(WITHIN);
        for reply in replies {
            let lane = reply.lane;
            self.returned(&reply, true)?;
            self.flying[lane] = None;
        }
        if !ended {
            return Err(Mismatch::of(format!("HANG: the killed writer does not end within {WITHIN:?}")));
        }
        self.flying.iter_mut().for_each(|flying| *flying = None);
        self.open.iter_mut().for_each(|open| *open = false);
        self.troubles.end_all(true, self.counted);
        self.writer = Some(Writer::start(&self.spec.dir).map_err(broken)?);
        self.note("writer killed and started again".into());
        if self.foreign.is_some() {
            // The next mount finds out what became of its base.
            return self.kill(true);
        }
        // Its releases come behind it.
        self.umount_only()?;
        self.check_object()?;
        self.mount_now()?;
        self.check_shown(&[])
    }

    /// The power fails: the disk keeps what `loss` leaves, and bosfs is mounted in another boot.
    pub(super) fn lose_power(&mut self, loss: Loss, seed: u64) -> Outcome<()> {
        let disk = self.disk.take().ok_or_else(|| Mismatch::of("no disk"))?;
        disk.freeze();
        self.disk = Some(disk);
        let flying = self.end_bosfs(true)?;
        self.check_object()?;
        let image = self.place.dir.join("image");
        let disk = self.disk.take().ok_or_else(|| Mismatch::of("no disk"))?;
        build(&disk.changes(), loss, seed, &image).map_err(broken)?;
        drop(disk);
        let boot = self.boot.as_mut().ok_or_else(|| Mismatch::of("no boot"))?;
        boot.restart(&mut self.spec).map_err(broken)?;
        self.spec.state_dir = image.join("state");
        self.counted.remounts += 1;
        self.mount_now()?;
        self.file.power_lost();
        self.wait_settled()?;
        let shown = self.read_shown()?;
        self.file.after_power(shown.as_ref(), &flying)?;
        self.check_object()?;
        // The object is one of the states that may be there; which one, it tells itself.
        let sum = content(&self.place.bucket, &self.key).map_err(broken)?;
        self.file.settle(&sum)?;
        self.exists = shown.is_some();
        // Written anew, it is whole again whatever was lost.
        let bytes = Arc::new(random_bytes(seed, 70_000));
        let create = Op::Create { slot: 0, path: NAME.into(), exclusive: false, mode: 0o644 };
        let write = Op::Write { slot: 0, at: 0, seed, len: bytes.len() };
        for (op, changes) in [
            (create, vec![Change::Size(0)]),
            (write, vec![Change::Put { at: 0, bytes }]),
            (Op::Close { slot: 0 }, Vec::new()),
        ] {
            self.send(0, Act { op, changes })?;
            self.wait_returned(0, None)?;
        }
        self.file.begin_anew();
        Ok(())
    }
}
