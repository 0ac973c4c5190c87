//! Retry as a value: what failed goes in, whether and when to try again comes out. No clock, no network.

use std::time::Duration;

use super::error::{BosErrorKind, is_credential_code};

/// Longest wait that an answer's `Retry-After` can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How often, how fast and how long a call is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, 1 for no repeat.
    pub tries_max: u32,
    /// Upper bound of the wait after the first try; doubles with each try. The wait itself is drawn evenly from 0 to
    /// the bound, so that many clients do not come back in step; without any answer from half of it to all of it, so that
    /// the tries are not over before a line that is gone for a second is back.
    pub backoff_base: Duration,
    /// Where the doubling ends.
    pub backoff_cap: Duration,
    /// Longest wait for the head of an answer, once the whole request is sent.
    pub answer_timeout: Duration,
    /// The same for calls in which BOS moves bytes itself before it answers: copies and Complete.
    pub work_timeout: Duration,
    /// Longest time in which not one slice of a body moves, either way.
    pub stall_timeout: Duration,
    /// No try starts, and no answer is awaited, later than this after the first try; `None`: no limit. A body that
    /// moves is not cut off.
    pub deadline: Option<Duration>,
}

impl RetryPolicy {
    /// For calls that someone waits for at a prompt (look-ups, listings, reads): they end within 30 s.
    pub fn interactive() -> Self {
        Self {
            tries_max: 5,
            backoff_base: Duration::from_millis(200),
            backoff_cap: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(10),
            work_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            deadline: Some(Duration::from_secs(25)),
        }
    }

    /// For calls that carry or move data. Long outages are waited out by the caller, who can tell about them.
    pub fn data() -> Self {
        Self {
            tries_max: 4,
            backoff_base: Duration::from_millis(300),
            backoff_cap: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(120),
            work_timeout: Duration::from_secs(600),
            stall_timeout: Duration::from_secs(60),
            deadline: None,
        }
    }
}

/// What is known of a failed try, as far as the decision needs it.
#[derive(Clone, Copy, Debug)]
pub struct FailedTry<'a> {
    /// Its kind.
    pub kind: BosErrorKind,
    /// `code` of the answer, empty where there was none.
    pub code: &'a str,
    /// BOS may have acted.
    pub ambiguous: bool,
    /// The clock looks wrong: a bare 400 or 403 came with a `Date` far from ours (HEAD carries no code).
    pub clock_suspect: bool,
    /// HEAD was answered with a bare 403, or with a bare 400 to a session token: its way to refuse credentials.
    pub credentials_suspect: bool,
    /// What the answer asked for.
    pub retry_after: Option<Duration>,
}

/// Where in its tries a call stands.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Tries made, 1 after the first.
    pub tries: u32,
    /// Time since the first one began.
    pub elapsed: Duration,
    /// Credentials were reloaded already.
    pub reloaded: bool,
    /// The clock was corrected already.
    pub clock_corrected: bool,
    /// A repeat after an ambiguous try does no harm.
    pub idempotent: bool,
}

/// What to do before the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing.
    None,
    /// Read the credentials again.
    ReloadCredentials,
    /// Take the difference to the answer's `Date`.
    CorrectClock,
}

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// After this time and this remedy.
    Retry {
        /// Wait.
        after: Duration,
        /// What to mend first.
        remedy: Remedy,
    },
    /// No.
    Fail,
}

impl RetryPolicy {
    /// Whether `failed` is followed by another try. `random` (0 to 1) is the jitter.
    pub fn decide(&self, failed: FailedTry<'_>, progress: Progress, random: f64) -> Decision {
        if progress.tries >= self.tries_max || (failed.ambiguous && !progress.idempotent) {
            return Decision::Fail;
        }
        let bound = self
            .backoff_base
            .saturating_mul(1u32.checked_shl(progress.tries.saturating_sub(1)).unwrap_or(u32::MAX))
            .min(self.backoff_cap);
        let jittered = bound.mul_f64(random.clamp(0.0, 1.0));
        let (after, remedy) = if is_clock_code(failed.code) || failed.clock_suspect {
            if progress.clock_corrected && !is_clock_code(failed.code) {
                return Decision::Fail;
            }
            // Also without a difference to correct: a fresh date may be all it needs (a request that waited too long).
            (if progress.clock_corrected { jittered } else { Duration::ZERO }, Remedy::CorrectClock)
        } else if is_credential_code(failed.code) || failed.credentials_suspect {
            if progress.reloaded {
                return Decision::Fail;
            }
            (Duration::ZERO, Remedy::ReloadCredentials)
        } else {
            match failed.kind {
                BosErrorKind::Throttled => (jittered.saturating_add(bound / 2), Remedy::None),
                BosErrorKind::Network => (bound / 2 + jittered / 2, Remedy::None),
                BosErrorKind::Server | BosErrorKind::BadAnswer => (jittered, Remedy::None),
                // The bytes may have been hurt on the way once; twice, they are not what was hashed.
                BosErrorKind::BadDigest if progress.tries == 1 => (jittered, Remedy::None),
                _ => return Decision::Fail,
            }
        };
        let after = after.max(failed.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX));
        match self.deadline {
            Some(deadline) if progress.elapsed.saturating_add(after) >= deadline => Decision::Fail,
            _ => Decision::Retry { after, remedy },
        }
    }
}

fn is_clock_code(code: &str) -> bool {
    matches!(code, "RequestExpired" | "RequestTimeTooSkewed")
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        tries_max: 4,
        backoff_base: Duration::from_millis(100),
        backoff_cap: Duration::from_millis(250),
        answer_timeout: Duration::from_secs(1),
        work_timeout: Duration::from_secs(1),
        stall_timeout: Duration::from_secs(1),
        deadline: Some(Duration::from_secs(10)),
    };

    fn failed(kind: BosErrorKind) -> FailedTry<'static> {
        FailedTry {
            kind,
            code: "",
            ambiguous: false,
            clock_suspect: false,
            credentials_suspect: false,
            retry_after: None,
        }
    }

    fn after_try(tries: u32) -> Progress {
        Progress { tries, elapsed: Duration::ZERO, reloaded: false, clock_corrected: false, idempotent: true }
    }

    fn wait(failed: FailedTry<'_>, progress: Progress, random: f64) -> Option<u128> {
        match POLICY.decide(failed, progress, random) {
            Decision::Retry { after, .. } => Some(after.as_millis()),
            Decision::Fail => None,
        }
    }

    #[test]
    fn waits_double_up_to_the_cap_and_end_with_the_tries() {
        let network = failed(BosErrorKind::Network);
        assert_eq!(wait(network, after_try(1), 1.0), Some(100));
        assert_eq!(wait(network, after_try(2), 1.0), Some(200));
        assert_eq!(wait(network, after_try(3), 1.0), Some(250));
        assert_eq!(wait(network, after_try(4), 1.0), None);
        assert_eq!(wait(network, after_try(2), 0.0), Some(100), "half at least");
        assert_eq!(wait(failed(BosErrorKind::Server), after_try(2), 0.0), Some(0));
        let endless = RetryPolicy { tries_max: u32::MAX, ..POLICY };
        assert!(matches!(endless.decide(network, after_try(1000), 1.0), Decision::Retry { .. }));
    }

    #[test]
    fn the_tries_of_a_call_that_someone_waits_for_outlast_a_line_that_is_gone_for_a_second() {
        let policy = RetryPolicy::interactive();
        let network = failed(BosErrorKind::Network);
        let waits = (1..policy.tries_max).map(|tries| match policy.decide(network, after_try(tries), 0.0) {
            Decision::Retry { after, .. } => after,
            Decision::Fail => Duration::ZERO,
        });
        assert!(waits.sum::<Duration>() >= Duration::from_millis(1500));
    }

    #[test]
    fn an_ambiguous_try_is_repeated_only_where_that_does_no_harm() {
        let lost = FailedTry { ambiguous: true, ..failed(BosErrorKind::Network) };
        assert!(wait(lost, after_try(1), 0.5).is_some());
        assert_eq!(wait(lost, Progress { idempotent: false, ..after_try(1) }, 0.5), None);
        let refused = failed(BosErrorKind::Network);
        assert!(wait(refused, Progress { idempotent: false, ..after_try(1) }, 0.5).is_some());
    }

    #[test]
    fn refusals_are_final() {
        for kind in [
            BosErrorKind::NoSuchKey,
            BosErrorKind::NoSuchUpload,
            BosErrorKind::Denied,
            BosErrorKind::PreconditionFailed,
            BosErrorKind::LocalRead,
            BosErrorKind::Refused,
        ] {
            assert_eq!(wait(failed(kind), after_try(1), 0.5), None, "{kind:?}");
        }
        assert!(wait(failed(BosErrorKind::BadDigest), after_try(1), 0.5).is_some());
        assert_eq!(wait(failed(BosErrorKind::BadDigest), after_try(2), 0.5), None);
    }

    #[test]
    fn credentials_are_reloaded_once() {
        let denied = FailedTry { code: "SignatureDoesNotMatch", ..failed(BosErrorKind::Denied) };
        let expected = Decision::Retry { after: Duration::ZERO, remedy: Remedy::ReloadCredentials };
        assert_eq!(POLICY.decide(denied, after_try(1), 0.5), expected);
        assert_eq!(wait(denied, Progress { reloaded: true, ..after_try(2) }, 0.5), None);
        let bare = FailedTry { credentials_suspect: true, ..failed(BosErrorKind::Denied) };
        assert_eq!(POLICY.decide(bare, after_try(1), 0.5), expected);
    }

    #[test]
    fn an_expired_date_is_corrected_at_once_even_where_repeats_could_harm() {
        let expired = FailedTry { code: "RequestExpired", ..failed(BosErrorKind::Server) };
        let progress = Progress { idempotent: false, ..after_try(1) };
        let expected = Decision::Retry { after: Duration::ZERO, remedy: Remedy::CorrectClock };
        assert_eq!(POLICY.decide(expired, progress, 0.5), expected);
        let bare = FailedTry { clock_suspect: true, ..failed(BosErrorKind::Denied) };
        assert_eq!(POLICY.decide(bare, after_try(1), 0.5), expected);
        assert_eq!(wait(bare, Progress { clock_corrected: true, ..after_try(2) }, 0.5), None);
    }

    #[test]
    fn retry_after_is_honoured_within_the_deadline() {
        let asked = |s| FailedTry { retry_after: Some(Duration::from_secs(s)), ..failed(BosErrorKind::Throttled) };
        assert_eq!(wait(asked(5), after_try(1), 0.0), Some(5000));
        assert_eq!(wait(asked(11), after_try(1), 0.0), None);
        let late = Progress { elapsed: Duration::from_secs(6), ..after_try(1) };
        assert_eq!(wait(asked(5), late, 0.0), None);
        let unbounded = RetryPolicy { deadline: None, ..POLICY };
        let decision = unbounded.decide(asked(u64::MAX), after_try(1), 0.0);
        assert_eq!(decision, Decision::Retry { after: RETRY_AFTER_MAX, remedy: Remedy::None });
    }
}
