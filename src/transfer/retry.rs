//! What a failed request lets its caller do, decided in one place, and how long a caller waits.

use std::time::Duration;

use crate::bos::client::ObjectMeta;
use crate::bos::{BosError, BosErrorKind};

/// What a request was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing that a second one would spoil: HEAD, lists, parts, Abort.
    Repeatable,
    /// It makes the object at a key: PutObject, CopyObject, Complete. A second one may be refused because of the success of
    /// the first, or act on what somebody else wrote in between.
    Deciding,
}

/// What can be done after a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The same request again, after a pause.
    Again,
    /// BOS has to be asked first what it holds: the request may have acted.
    Settle,
    /// BOS has to be asked first what it holds: what the request relied on (an upload, a part, an object) is not there, or
    /// not what it was.
    Amiss,
    /// Nothing that helps by itself.
    Final,
}

/// What `error` lets the caller of `act` do.
pub fn after(error: &BosError, act: Act) -> After {
    match error.kind {
        // A missing key is a copy's source, or what a condition names.
        BosErrorKind::NoSuchUpload
        | BosErrorKind::InvalidPart
        | BosErrorKind::PreconditionFailed
        | BosErrorKind::NoSuchKey => After::Amiss,
        _ if act == Act::Deciding && error.is_ambiguous() => After::Settle,
        _ if error.is_transient() || error.is_ambiguous() => After::Again,
        _ => After::Final,
    }
}

/// How a caller waits for BOS, and what it makes of a refusal.
pub trait Patience: Send {
    /// How its work ends without success.
    type Error: Send;

    /// Waits before the next try of what ended in `error`. `Ok(false)`: there is none, the error stands.
    ///
    /// # Errors
    /// The caller is to end at once, whatever BOS says.
    fn pause(&mut self, error: &BosError) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// What a request that failed for good means to the caller.
    fn refused(&self, error: BosError) -> Self::Error;

    /// Told that what HEAD shows may be stale (`None`: no object), and that it is asked again after `pause`.
    fn looks_again(&mut self, shown: Option<&ObjectMeta>, pause: Duration) {
        let _ = (shown, pause);
    }
}

/// Repeats a request that a repeat does not spoil, until BOS has answered: yes, or a no that stays.
///
/// # Errors
/// Those of the patience; BOS's no is the inner one.
pub async fn persist<T, F, P>(patience: &mut P, mut call: impl FnMut() -> F) -> Result<Result<T, BosError>, P::Error>
where
    F: Future<Output = Result<T, BosError>>,
    P: Patience,
{
    loop {
        match call().await {
            Err(error) if after(&error, Act::Repeatable) == After::Again => {
                if !patience.pause(&error).await? {
                    return Ok(Err(error));
                }
            }
            answered => return Ok(answered),
        }
    }
}

/// Pause before try `tries + 1`: `first`, doubled with every try up to `longest`, times `jitter` (0.5 to 1).
pub fn backoff(tries: u32, first: Duration, longest: Duration, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(1 << tries.saturating_sub(1).min(16));
    doubled.min(longest).mul_f64(jitter)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bos::error::Story;

    fn error(kind: BosErrorKind, ambiguous: bool) -> BosError {
        BosError::with_story(kind, ambiguous, Story::default())
    }

    #[test]
    fn only_an_answer_that_leaves_nothing_open_is_repeated_or_final() {
        use BosErrorKind::*;
        for (kind, ambiguous, repeatable, deciding) in [
            (Network, true, After::Again, After::Settle),
            (Network, false, After::Again, After::Again),
            (Server, true, After::Again, After::Settle),
            (Throttled, false, After::Again, After::Again),
            (BadAnswer, true, After::Again, After::Settle),
            (NoSuchUpload, false, After::Amiss, After::Amiss),
            (InvalidPart, false, After::Amiss, After::Amiss),
            (PreconditionFailed, false, After::Amiss, After::Amiss),
            (NoSuchKey, false, After::Amiss, After::Amiss),
            (Denied, false, After::Final, After::Final),
            (Quota, false, After::Final, After::Final),
            (LocalRead, false, After::Final, After::Final),
            // A first try may have acted before the last one was refused.
            (Denied, true, After::Again, After::Settle),
        ] {
            let error = error(kind, ambiguous);
            assert_eq!(after(&error, Act::Repeatable), repeatable, "{kind:?} {ambiguous}");
            assert_eq!(after(&error, Act::Deciding), deciding, "{kind:?} {ambiguous}");
        }
    }

    /// Waits not at all, so many times.
    pub(crate) struct Tries(pub(crate) u32);

    impl Patience for Tries {
        type Error = BosError;
        async fn pause(&mut self, _: &BosError) -> Result<bool, BosError> {
            self.0 = self.0.saturating_sub(1);
            Ok(self.0 > 0)
        }
        fn refused(&self, error: BosError) -> BosError {
            error
        }
    }

    #[tokio::test]
    async fn a_call_is_repeated_while_its_trouble_can_pass_and_the_patience_lasts() {
        let tried = |kind, patience| async move {
            let tries = std::cell::Cell::new(0);
            let call = || async {
                tries.set(tries.get() + 1);
                if tries.get() < 3 { Err(error(kind, false)) } else { Ok(tries.get()) }
            };
            let result = persist(&mut Tries(patience), call).await.unwrap();
            (tries.get(), result.map_err(|error| error.kind))
        };
        assert_eq!(tried(BosErrorKind::Throttled, 10).await, (3, Ok(3)));
        assert_eq!(tried(BosErrorKind::Throttled, 2).await, (2, Err(BosErrorKind::Throttled)));
        assert_eq!(tried(BosErrorKind::Denied, 10).await, (1, Err(BosErrorKind::Denied)));
        assert_eq!(tried(BosErrorKind::NoSuchUpload, 10).await, (1, Err(BosErrorKind::NoSuchUpload)));
    }

    #[test]
    fn pauses_double_up_to_their_bound() {
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(30));
        let pause = |tries, jitter| backoff(tries, first, longest, jitter);
        assert_eq!([pause(0, 1.0), pause(1, 1.0), pause(2, 1.0), pause(3, 0.5)], [first, first, first * 2, first * 2]);
        assert_eq!([pause(100, 1.0), pause(u32::MAX, 1.0)], [longest, longest]);
    }
}
