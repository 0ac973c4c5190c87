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
    flushed_alive: bool,
    killer: Option<WriterEnd>,
}

impl WriterVerdict {
    /// A handle opened by the process `opener` (`None`: not visible from here).
    pub fn new(opener: Option<u32>) -> Self {
        Self { opener, flushed_alive: false, killer: None }
    }

    /// The process that opened the handle.
    pub fn opener(&self) -> Option<u32> {
        self.opener
    }

    /// Bytes were written: flushes before this one tell nothing of the end.
    pub fn on_write(&mut self) {
        self.flushed_alive = false;
        self.killer = None;
    }

    /// A flush arrived.
    pub fn on_flush(&mut self, by: &Flusher) -> FlushDuty {
        match &by.killed {
            Some((process, signal)) => {
                let pid = by.process.unwrap_or(0);
                self.killer = Some(WriterEnd::Killed { process: process.clone(), pid, signal: *signal });
                FlushDuty::JournalOnly
            }
            None => {
                self.flushed_alive = true;
                // Shells and children close inherited descriptors by the thousand; only the opener's close publishes.
                // A caller that cannot be seen counts as the opener.
                let opener = by.process.is_none() || self.opener.is_none() || by.process == self.opener;
                if opener { FlushDuty::Publish } else { FlushDuty::JournalOnly }
            }
        }
    }

    /// How the handle ended, at its release: killed only if every flush since the last write came from killed processes.
    pub fn end(&self) -> WriterEnd {
        match &self.killer {
            Some(killed) if !self.flushed_alive => killed.clone(),
            _ => WriterEnd::Closed,
        }
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
        assert_eq!(verdict.on_flush(&alive(11)), FlushDuty::JournalOnly);
        assert_eq!(verdict.on_flush(&alive(10)), FlushDuty::Publish);
        assert_eq!(verdict.on_flush(&killed(10)), FlushDuty::JournalOnly);
        assert_eq!(verdict.on_flush(&Flusher { process: None, killed: None }), FlushDuty::Publish);
        assert_eq!(WriterVerdict::new(None).on_flush(&alive(11)), FlushDuty::Publish);
    }

    #[test]
    fn a_killed_writer_interrupts() {
        let mut verdict = WriterVerdict::new(Some(10));
        verdict.on_flush(&alive(10)); // the shell's dup2 before the first write
        verdict.on_write();
        verdict.on_flush(&killed(10));
        assert_eq!(verdict.end(), WriterEnd::Killed { process: "cp".into(), pid: 10, signal: 9 });
    }

    #[test]
    fn a_living_process_that_shares_the_file_saves_it() {
        for order in [[alive(11), killed(10)], [killed(10), alive(11)]] {
            let mut verdict = WriterVerdict::new(Some(10));
            verdict.on_write();
            for flusher in &order {
                verdict.on_flush(flusher);
            }
            assert_eq!(verdict.end(), WriterEnd::Closed);
        }
    }

    #[test]
    fn a_writer_that_goes_on_after_a_killed_one_is_judged_by_its_own_end() {
        let mut verdict = WriterVerdict::new(Some(10));
        verdict.on_write();
        verdict.on_flush(&killed(11));
        verdict.on_write();
        verdict.on_flush(&alive(10));
        assert_eq!(verdict.end(), WriterEnd::Closed);
    }

    #[test]
    fn bytes_without_any_later_flush_are_a_closed_file() {
        let mut verdict = WriterVerdict::new(Some(10));
        assert_eq!(verdict.end(), WriterEnd::Closed);
        verdict.on_flush(&alive(10));
        verdict.on_write(); // a shared mapping written after close
        assert_eq!(verdict.end(), WriterEnd::Closed);
    }
}
