//! Looks at the mount and at the object, and the end of a mount.

use std::time::{Duration, Instant};

use super::model::{Change, Mismatch, Shown, Stage};
use super::resolve::{Act, NAME};
use super::round::{Outcome, Round, WITHIN, WideSabotage, broken};
use crate::crash_rounds::calls::Op;
use crate::support::crash::contents::content;

impl Round<'_> {
    /// Until nothing more becomes of the file by itself.
    pub(super) fn wait_settled(&mut self) -> Outcome<()> {
        let end = Instant::now() + WITHIN;
        loop {
            let Some(mount) = &self.mount else { return Err(Mismatch::of("no mount")) };
            let entry = mount.file_status(&self.key);
            let state = entry.as_ref().and_then(|entry| entry["state"].as_str()).unwrap_or("none").to_owned();
            match state.as_str() {
                "none" | "idle" | "done" | "interrupted" => return Ok(()),
                "conflict" | "failed" if self.foreign.is_some() => return Ok(()),
                "failed" | "conflict" => return Err(Mismatch::of(format!("without a reason: {entry:?}"))),
                _ if Instant::now() > end => return Err(Mismatch::of(format!("HANG: stays {entry:?}"))),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Waits until the proxy has nothing of a dead process any more.
    pub(super) fn wait_quiet(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.place.proxy.counts().calls.values().any(|count| count.open > 0) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        // The server may still be at work on what it was sent.
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Every content that the object had was a closed state, in order.
    pub(super) fn check_object(&mut self) -> Outcome<()> {
        self.watch.look();
        self.counted.contents += self.watch.check(&self.file.sums()).map_err(broken)?;
        Ok(())
    }

    /// What the mount shows; `None`: no such file.
    pub(super) fn read_shown(&self) -> Outcome<Option<Shown>> {
        use std::os::unix::fs::FileExt as _;
        let path = self.spec.dir.join(NAME);
        // Beside somebody else's object most of the file may be like that, and each try takes its time.
        let coarse = self.foreign.is_some();
        let read = move || -> std::io::Result<Option<Shown>> {
            let file = match std::fs::File::open(path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            let len = file.metadata()?.len() as usize;
            let mut shown = Shown { bytes: vec![0; len], unreadable: Vec::new() };
            for at in (0..len).step_by(128 << 10) {
                let end = len.min(at + (128 << 10));
                if file.read_exact_at(&mut shown.bytes[at..end], at as u64).is_ok() {
                    continue;
                }
                if coarse {
                    shown.unreadable.push(at..end);
                    continue;
                }
                for at in (at..end).step_by(4096) {
                    let end = end.min(at + 4096);
                    if file.read_exact_at(&mut shown.bytes[at..end], at as u64).is_err() {
                        shown.unreadable.push(at..end);
                    }
                }
            }
            Ok(Some(shown))
        };
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(read()));
        let read = told.recv_timeout(WITHIN).map_err(|_| broken(format!("HANG: reading: no end within {WITHIN:?}")))?;
        read.map_err(|e| broken(format!("reading in the mount: {e}")))
    }

    pub(super) fn check_shown(&mut self, flying: &[Change]) -> Outcome<()> {
        let mut shown = self.read_shown()?;
        if let Some(foreign) = &self.foreign {
            if !foreign.unpublished {
                return Ok(());
            }
            // What was never written here came from the object that is gone.
            if !foreign.all_here
                && let Some(shown) = &mut shown
            {
                for range in std::mem::take(&mut shown.unreadable) {
                    let end = range.end.min(self.file.live.len());
                    if let Some(bytes) = self.file.live.get(range.start..end) {
                        shown.bytes[range.start..end].copy_from_slice(bytes);
                    }
                }
            }
        }
        if shown.is_none() && !self.exists {
            return Ok(());
        }
        if shown.is_none() && flying.first() == Some(&Change::Size(0)) && self.file.states.len() == 1 {
            // Its creation was cut off.
            return Ok(());
        }
        self.exists |= shown.is_some();
        // A byte under a call in flight may be one or the other.
        if self.sabotage == Some(WideSabotage::Shown) && flying.is_empty() && !self.file.live.is_empty() {
            self.file.live[0] ^= 1;
            self.sabotage = None;
            self.counted.sabotaged = true;
        }
        self.file.after_kill(shown.as_ref(), flying)
    }

    pub(super) fn close_all(&mut self) -> Outcome<()> {
        self.troubles.end_all(true, self.counted);
        for lane in 0..self.open.len() {
            self.wait_returned(lane, None)?;
            if self.open[lane] {
                self.send(lane, Act { op: Op::Close { slot: 0 }, changes: Vec::new() })?;
                self.wait_returned(lane, None)?;
            }
        }
        Ok(())
    }

    pub(super) fn umount_only(&mut self) -> Outcome<()> {
        let mut mount = self.mount.take().ok_or_else(|| Mismatch::of("no mount"))?;
        let output = mount.umount(WITHIN);
        if !output.status.success() {
            self.mount = Some(mount);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Mismatch::of(format!("bosfs umount: {} {text}", output.status)));
        }
        self.note("unmounted".into());
        Ok(())
    }

    /// `bosfs umount`, after which the object must be what was closed last.
    pub(super) fn umount(&mut self) -> Outcome<()> {
        self.umount_only()?;
        self.check_object()?;
        if self.sabotage == Some(WideSabotage::Published)
            && let Some((_, crc)) = self.file.states.last_mut().and_then(|state| state.sum.as_mut())
        {
            *crc ^= 1;
            self.sabotage = None;
            self.counted.sabotaged = true;
        }
        let sum = content(&self.place.bucket, &self.key).map_err(broken)?;
        self.file.settle(&sum)?;
        self.no_uploads_left()
    }

    /// Nothing is left of uploads, unless the file is kept.
    pub(super) fn no_uploads_left(&self) -> Outcome<()> {
        let left = self.place.bucket.uploads(&self.key).map_err(broken)?;
        let kills = self.counted.remounts > 0;
        if left.is_empty() || self.file.stage != Stage::Clean || kills {
            return Ok(());
        }
        Err(Mismatch::of(format!("{} uploads are left after umount", left.len())))
    }
}
