//! What a round found.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// The figures of one round, or of many added up. All but the first four, and `checkpoints`, must be 0.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub rounds: u64,
    /// Rounds in which the fault really happened.
    pub fired: u64,
    /// Bytes whose write returned.
    pub bytes_written: u64,
    /// Requests that were cut off in the middle, bytes received in vain: allowed.
    pub bytes_in_flight: u64,
    /// Accepted bytes that were not there afterwards.
    pub bytes_lost: u64,
    /// Bytes that BOS held and was sent again.
    pub bytes_twice: u64,
    /// Objects that were half, or not what was written.
    pub half_published: u64,
    pub hangs: u64,
    /// Journals that were written anew and put in place: only counted.
    pub checkpoints: u64,
    /// Everything else that does not hold.
    pub others: u64,
    /// What did not hold, in words.
    pub messages: Vec<String>,
}

impl Outcome {
    pub fn lost(&mut self, bytes: u64, message: String) {
        self.bytes_lost += bytes;
        self.messages.push(message);
    }
    pub fn half(&mut self, message: String) {
        self.half_published += 1;
        self.messages.push(message);
    }
    pub fn hang(&mut self, message: String) {
        self.hangs += 1;
        self.messages.push(message);
    }
    pub fn other(&mut self, message: String) {
        self.others += 1;
        self.messages.push(message);
    }

    /// Nothing that must hold was missed.
    pub fn is_good(&self) -> bool {
        self.messages.is_empty()
    }

    /// Adds the figures of another one.
    pub fn add(&mut self, other: Outcome) {
        self.rounds += other.rounds;
        self.fired += other.fired;
        self.bytes_written += other.bytes_written;
        self.bytes_in_flight += other.bytes_in_flight;
        self.bytes_lost += other.bytes_lost;
        self.bytes_twice += other.bytes_twice;
        self.half_published += other.half_published;
        self.hangs += other.hangs;
        self.checkpoints += other.checkpoints;
        self.others += other.others;
        self.messages.extend(other.messages);
    }

    /// Runs a round; a panic in it (a wait that ran out, a mount that does not answer) is counted, too.
    pub fn of(round: impl FnOnce(&mut Outcome)) -> Outcome {
        let mut outcome = Outcome { rounds: 1, ..Outcome::default() };
        let mut inner = Outcome::default();
        match catch_unwind(AssertUnwindSafe(|| round(&mut inner))) {
            Ok(()) => {}
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let text = text.unwrap_or_else(|| "a panic".into());
                if text.contains("did not end within") || text.contains("no end within") {
                    inner.hang(text);
                } else {
                    inner.other(text);
                }
            }
        }
        outcome.add(inner);
        outcome
    }
}
