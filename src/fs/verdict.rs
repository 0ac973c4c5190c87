//! Did the writer close its file, or was it killed? The rule, without `/proc`.

use crate::upload::WriterEnd;

/// Who sent a flush, and in what state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flusher {
    /// Its process; `None`: not visible.
    pub process: Option<u32>,
    /// Set when it was killed: command name and signal.
    pub killed: Option<(String, i32)>,
}

/// What a flush is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushDuty {
    /// Publish what is new and wait as the mode says.
    Publish,
    /// The bytes are in the spool and the journal; that is all this flush asks for.
    JournalOnly,
}

/// Follows the flushes and writes of one handle.
///
/// A descriptor is flushed once per close of each duplicate, also in children and in dying processes; only the last
/// flushes tell how the writing ended.
#[derive(Clone, Debug)]
pub struct WriterVerdict {
    opener: Option<u32>,
    /// Writes to the file (see [`Endings`]) at the last flush by a living process, unless this handle wrote since.
    flushed_alive: Option<u64>,
    /// The opener closed it, and nothing was written through this handle since.
    closed: bool,
    killer: Option<WriterEnd>,
}

impl WriterVerdict {
    /// A handle opened by the process `opener` (`None`: not visible from here).
    pub fn new(opener: Option<u32>) -> Self {
        Self { opener, flushed_alive: None, closed: false, killer: None }
    }

    /// The process that opened the handle.
    pub fn opener(&self) -> Option<u32> {
        self.opener
    }

    /// Bytes were written: flushes before this one tell nothing of the end.
    pub fn on_write(&mut self) {
        self.flushed_alive = None;
        self.closed = false;
        self.killer = None;
    }

    /// Whether its end is known before its release: the opener closed it or a killed process left it, and nothing was
    /// written since.
    pub fn is_known(&self) -> bool {
        self.closed || self.killer.is_some()
    }

    /// A flush arrived, after `writes` writes to the file.
    pub fn on_flush(&mut self, by: &Flusher, writes: u64) -> FlushDuty {
        match &by.killed {
            Some((process, signal)) => {
                let pid = by.process.unwrap_or(0);
                self.killer = Some(WriterEnd::Killed { process: process.clone(), pid, signal: *signal });
                FlushDuty::JournalOnly
            }
            None => {
                self.flushed_alive = Some(writes);
                // Shells and children close inherited descriptors by the thousand; only the opener's close publishes.
                // A caller that cannot be seen counts as the opener.
                let opener = by.process.is_none() || self.opener.is_none() || by.process == self.opener;
                self.closed |= opener;
                if opener { FlushDuty::Publish } else { FlushDuty::JournalOnly }
            }
        }
    }

    /// How the handle ended, at its release after `writes` writes to the file: killed only if every flush since its last
    /// write came from killed processes. With it the number of writes that a proper close speaks for.
    pub fn end(&self, writes: u64) -> (WriterEnd, u64) {
        match (&self.killer, self.flushed_alive) {
            (Some(killed), None) => (killed.clone(), writes),
            (_, closed_at) => (WriterEnd::Closed, closed_at.unwrap_or(writes)),
        }
    }
}

/// How the writers of one file ended, since there was none.
///
/// A release comes behind its close, so a handle that was closed properly may be released after another one wrote: its
/// close says nothing of what was written since.
#[derive(Clone, Debug, Default)]
pub struct Endings {
    writes: u64,
    /// Writes that the last proper close speaks for.
    closed_at: Option<u64>,
    killed: Option<WriterEnd>,
}

impl Endings {
    /// Bytes were written through some handle.
    pub fn on_write(&mut self) {
        self.writes += 1;
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// A writer ended; a proper close speaks for the first `writes` writes.
    pub fn on_end(&mut self, end: WriterEnd, writes: u64) {
        match end {
            WriterEnd::Closed => self.closed_at = self.closed_at.max(Some(writes)),
            killed @ WriterEnd::Killed { .. } => self.killed = Some(killed),
        }
    }

    /// How the file's writing ended, now that no writer is left: killed only if no proper close came after the last write.
    pub fn take(&mut self) -> WriterEnd {
        let closed = self.closed_at.take() == Some(self.writes);
        self.killed.take().filter(|_| !closed).unwrap_or(WriterEnd::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(process: u32) -> Flusher {
        Flusher { process: Some(process), killed: None }
    }

    fn killed(process: u32) -> Flusher {
        Flusher { process: Some(process), killed: Some(("cp".into(), 9)) }
    }

    #[test]
    fn only_the_openers_close_publishes() {
        let mut verdict = WriterVerdict::new(Some(10));
        assert_eq!(verdict.on_flush(&alive(11), 0), FlushDuty::JournalOnly);
        assert_eq!(verdict.on_flush(&alive(10), 0), FlushDuty::Publish);
        assert_eq!(verdict.on_flush(&killed(10), 0), FlushDuty::JournalOnly);
        assert_eq!(verdict.on_flush(&Flusher { process: None, killed: None }, 0), FlushDuty::Publish);
        assert_eq!(WriterVerdict::new(None).on_flush(&alive(11), 0), FlushDuty::Publish);
    }

    #[test]
    fn a_killed_writer_interrupts() {
        let mut verdict = WriterVerdict::new(Some(10));
        verdict.on_flush(&alive(10), 0); // the shell's dup2 before the first write
        verdict.on_write();
        verdict.on_flush(&killed(10), 0);
        assert_eq!(verdict.end(0).0, WriterEnd::Killed { process: "cp".into(), pid: 10, signal: 9 });
    }

    #[test]
    fn a_living_process_that_shares_the_file_saves_it() {
        for order in [[alive(11), killed(10)], [killed(10), alive(11)]] {
            let mut verdict = WriterVerdict::new(Some(10));
            verdict.on_write();
            for flusher in &order {
                verdict.on_flush(flusher, 0);
            }
            assert_eq!(verdict.end(0).0, WriterEnd::Closed);
        }
    }

    #[test]
    fn a_writer_that_goes_on_after_a_killed_one_is_judged_by_its_own_end() {
        let mut verdict = WriterVerdict::new(Some(10));
        verdict.on_write();
        verdict.on_flush(&killed(11), 0);
        verdict.on_write();
        verdict.on_flush(&alive(10), 0);
        assert_eq!(verdict.end(0).0, WriterEnd::Closed);
    }

    #[test]
    fn bytes_without_any_later_flush_are_a_closed_file() {
        let mut verdict = WriterVerdict::new(Some(10));
        assert_eq!(verdict.end(0).0, WriterEnd::Closed);
        verdict.on_flush(&alive(10), 0);
        verdict.on_write(); // a shared mapping written after close
        assert_eq!(verdict.end(0).0, WriterEnd::Closed);
    }

    #[test]
    fn the_end_is_known_by_the_openers_close_or_a_kill_after_the_last_write() {
        let mut verdict = WriterVerdict::new(Some(10));
        assert!(!verdict.is_known(), "just opened");
        verdict.on_write();
        verdict.on_flush(&alive(11), 1);
        assert!(!verdict.is_known(), "a child closed what it inherited");
        verdict.on_flush(&alive(10), 1);
        assert!(verdict.is_known());
        verdict.on_write();
        assert!(!verdict.is_known(), "written after the close of a duplicate, or by a mapping");
        verdict.on_flush(&killed(10), 2);
        assert!(verdict.is_known());
    }

    #[test]
    fn a_close_says_nothing_of_what_others_wrote_after_it() {
        let killer = WriterEnd::Killed { process: "cp".into(), pid: 10, signal: 9 };
        let mut endings = Endings::default();
        let mut first = WriterVerdict::new(Some(10));
        endings.on_write();
        first.on_write();
        first.on_flush(&alive(10), endings.writes());
        endings.on_write();
        // Released late, before and after the other one.
        let (end, writes) = first.end(endings.writes());
        let mut other_order = endings.clone();
        endings.on_end(end.clone(), writes);
        endings.on_end(killer.clone(), 2);
        assert_eq!(endings.take(), killer);
        other_order.on_end(killer.clone(), 2);
        other_order.on_end(end, writes);
        assert_eq!(other_order.take(), killer);
        // A close after the last write speaks for all of it.
        endings.on_end(killer.clone(), 2);
        endings.on_end(WriterEnd::Closed, 2);
        assert_eq!(endings.take(), WriterEnd::Closed);
        endings.on_end(killer.clone(), 2);
        assert_eq!(endings.take(), killer, "earlier writers are forgotten");
    }
}
