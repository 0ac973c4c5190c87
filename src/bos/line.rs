//! Whether BOS answers at all, as the last requests tell.

use std::time::Instant;

use parking_lot::Mutex;

use crate::object::Timestamp;

/// No request was answered for some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineDown {
    /// When the first of the requests began that got no answer, seconds since 1970.
    pub since: i64,
    /// How the last one ended.
    pub message: String,
}

#[derive(Default)]
struct State {
    down: Option<LineDown>,
    answered: Option<Instant>,
}

/// What the requests of one client say of the line.
#[derive(Default)]
pub(crate) struct Line(Mutex<State>);

impl Line {
    /// An answer came, whatever it says.
    pub(crate) fn answered(&self) {
        *self.0.lock() = State { down: None, answered: Some(Instant::now()) };
    }

    /// A try that began `at` (`began` by the monotonic clock) got no answer.
    pub(crate) fn failed(&self, began: Instant, at: Timestamp, message: &str) {
        let mut state = self.0.lock();
        // Another request was answered since: this one's connection broke, not the line.
        if state.answered.is_some_and(|answered| answered > began) {
            return;
        }
        let since = state.down.as_ref().map_or(at.sec, |down| down.since);
        state.down = Some(LineDown { since, message: message.to_owned() });
    }

    /// Since when nothing was answered; `None`: the last request was, or none was sent yet.
    pub(crate) fn down(&self) -> Option<LineDown> {
        self.0.lock().down.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_down_from_the_first_of_the_unanswered_tries_to_the_next_answer() {
        let line = Line::default();
        assert_eq!(line.down(), None);
        let at = |sec| Timestamp { sec, ..Timestamp::default() };
        line.failed(Instant::now(), at(5), "refused");
        line.failed(Instant::now(), at(9), "reset");
        assert_eq!(line.down(), Some(LineDown { since: 5, message: "reset".into() }));
        let earlier = Instant::now();
        line.answered();
        assert_eq!(line.down(), None);
        line.failed(earlier, at(4), "broke off");
        assert_eq!(line.down(), None, "an answer came after that try had begun");
        line.failed(Instant::now(), at(20), "refused");
        assert_eq!(line.down().unwrap().since, 20);
    }
}
