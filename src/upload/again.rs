//! Files that failed are tried again by themselves, with growing pauses: a bill is paid, a policy mended, a disk healed. The
//! times are pure; [`Uploads::retry_failures`] keeps them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::dirty_file::DirtyFile;
use super::inner::{Inner, Removal};
use super::registry::Uploads;
use super::state::Stage;
use crate::journal::Record;

/// Shortest pause that can be asked for.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause between two tries.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30 * 60);

/// A file that failed.
struct Turn {
    /// How often in a row.
    failures: u32,
    /// When it is tried again; `None`: it is being tried.
    due: Option<Instant>,
}

/// When which file is tried again, by name of its journal.
#[derive(Default)]
struct Schedule {
    /// Pause after the first failure; doubles up to [`RETRY_PAUSE_MAX`]. `None`: nothing is tried again.
    pause_first: Option<Duration>,
    turns: HashMap<String, Turn>,
}

impl Schedule {
    fn failed(&mut self, journal_id: &str, now: Instant) {
        let Some(first) = self.pause_first else { return };
        let turn = self.turns.entry(journal_id.to_owned()).or_insert(Turn { failures: 0, due: None });
        if turn.due.is_some_and(|due| due > now) {
            // Several parts of it were on their way.
            return;
        }
        turn.failures = turn.failures.saturating_add(1);
        turn.due = Some(now + pause(first, turn.failures));
    }

    /// The files whose time has come; from here on they are being tried.
    fn take_due(&mut self, now: Instant) -> Vec<String> {
        let due = self.turns.iter_mut().filter(|(_, turn)| turn.due.is_some_and(|due| due <= now));
        due.map(|(id, turn)| {
            turn.due = None;
            id.clone()
        })
        .collect()
    }

    fn next_due(&self) -> Option<Instant> {
        self.turns.values().filter_map(|turn| turn.due).min()
    }
}

/// The pause after so many failures in a row.
fn pause(first: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(RETRY_PAUSE_MAX.max(first))
}

/// What the files of a mount share for it.
#[derive(Default)]
pub(super) struct Again {
    schedule: Mutex<Schedule>,
    news: Notify,
}

impl Again {
    /// The file of this journal failed, for a reason that somebody can put right.
    pub(super) fn failed(&self, journal_id: &str) {
        self.schedule.lock().failed(journal_id, Instant::now());
        self.news.notify_one();
    }

    fn forget(&self, journal_id: &str) {
        self.schedule.lock().turns.remove(journal_id);
    }

    /// Time until the file of this journal is tried again.
    pub(super) fn due_in(&self, journal_id: &str) -> Option<Duration> {
        let due = self.schedule.lock().turns.get(journal_id)?.due?;
        Some(due.saturating_duration_since(Instant::now()))
    }
}

impl Uploads {
    /// Tries files again that failed, until the uploads are stopped: `pause_first` after the first failure, twice as long
    /// after each further one, [`RETRY_PAUSE_MAX`] at most.
    pub async fn retry_failures(&self, pause_first: Duration) {
        let again = &self.shared.again;
        again.schedule.lock().pause_first = Some(pause_first.max(PAUSE_MIN));
        loop {
            let due = again.schedule.lock().take_due(Instant::now());
            if !due.is_empty() {
                self.retry(&due);
            }
            let next = again.schedule.lock().next_due();
            let wait = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = again.news.notified() => {}
                () = self.shared.stop.cancelled() => return,
            }
        }
    }

    fn retry(&self, due: &[String]) {
        let mut files = self.files();
        files.extend(self.shared.removals.lock().values().cloned());
        files.extend(self.shared.displaced.lock().iter().cloned());
        for id in due {
            let file = files.iter().find(|file| file.lock().state.journal_id == *id);
            if !file.is_some_and(DirtyFile::try_again) {
                self.shared.again.forget(id);
            }
        }
    }
}

impl DirtyFile {
    /// Makes one more try of what failed. Programs are told of the failure at once as before, until the try has gone well.
    /// `false`: it has not failed any more, or there is nothing to try.
    fn try_again(self: &Arc<Self>) -> bool {
        let key = {
            let mut inner = self.lock();
            if inner.state.failed.is_none() || inner.state.conflict.is_some() || inner.broken {
                return false;
            }
            inner.retrying = true;
            inner.retry_at = None;
            inner.tries = 0;
            inner.state.key.clone()
        };
        log::info!("{key}: it failed before and is tried again");
        self.start_driver();
        let mut inner = self.lock();
        inner.retrying &= inner.driving;
        inner.retrying
    }

    /// A step went well. If it was the one that failed before, that is over.
    pub(super) fn mended(&self, inner: &mut Inner, what: &str) {
        let is_act = matches!(what, "part" | "Put" | "Complete" | "Prove" | "CopyAttrs" | "Clone" | "Remove");
        let is_over =
            matches!(inner.state.stage, Stage::Open | Stage::Completed { .. }) || inner.removal == Removal::Done;
        if !inner.retrying || !is_act || !is_over {
            return;
        }
        inner.retrying = false;
        if inner.state.failed.is_some() {
            log::info!("{}: what failed before has gone well now", inner.state.key);
            if self.append(inner, &Record::Reopened).is_err() {
                inner.state.apply(&Record::Reopened);
            }
        }
        self.shared.again.forget(&inner.state.journal_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn pauses_double_up_to_half_an_hour() {
        let pauses: Vec<u64> = (1..8).map(|failures| pause(MINUTE, failures).as_secs() / 60).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pause(MINUTE, u32::MAX), RETRY_PAUSE_MAX);
        assert_eq!(pause(RETRY_PAUSE_MAX * 2, 3), RETRY_PAUSE_MAX * 2, "one that was asked for");
    }

    #[test]
    fn each_failure_is_tried_again_once_and_later_each_time() {
        let start = Instant::now();
        let at = |minutes: u32| start + MINUTE * minutes;
        let mut schedule = Schedule { pause_first: Some(MINUTE), ..Schedule::default() };
        schedule.failed("a", start);
        schedule.failed("a", start + MINUTE / 2);
        assert_eq!(schedule.next_due(), Some(at(1)), "two parts of one try");
        assert_eq!(schedule.take_due(start), [""; 0]);
        assert_eq!(schedule.take_due(at(1)), ["a"]);
        assert_eq!((schedule.take_due(at(9)), schedule.next_due()), (vec![], None), "it is being tried");
        schedule.failed("a", at(10));
        assert_eq!(schedule.next_due(), Some(at(12)));
        schedule.failed("b", at(10));
        assert_eq!(schedule.next_due(), Some(at(11)), "each file for itself");
        schedule.turns.remove("a");
        schedule.failed("a", at(20));
        assert_eq!(schedule.turns["a"].due, Some(at(21)), "what went well meanwhile begins anew");
    }

    #[test]
    fn without_a_pause_nothing_is_tried_again() {
        let mut schedule = Schedule::default();
        schedule.failed("a", Instant::now());
        assert_eq!(schedule.next_due(), None);
    }
}
