//! The bucket as a mount sees it from outside: the first look at it, and the lifecycle rules that abort uploads.

use std::time::Duration;

use super::SessionError;
use crate::bos::{BosClient, BosError, BosErrorKind};
use crate::config::paths::BucketPath;
use crate::upload::AbortRules;

/// Between two looks at the rules: the shortest of them counts in days.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// The next look after trouble that passes; doubles up to [`LOOK_EVERY`].
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Looks at the bucket before anything of the mount is made.
///
/// # Errors
/// There is no such bucket, its folders are real ones, the keys are not accepted, or nothing below the prefix can be listed.
pub(super) async fn look_at(client: &BosClient, bucket: &BucketPath) -> Result<(), SessionError> {
    let failed = |error| SessionError::Bucket(Box::new(error));
    let hierarchical = || SessionError::Hierarchical(bucket.bucket.clone());
    match client.head_bucket().await {
        Ok(info) if info.hierarchical => return Err(hierarchical()),
        Ok(_) => return Ok(()),
        Err(error) if !is_no_answer(&error) => return Err(failed(error)),
        Err(error) if error.story().hierarchical => return Err(hierarchical()),
        Err(_) => {}
    }
    // A policy for a prefix says nothing of the bucket. A list has a body, so that its refusal tells bad keys from no permission.
    client.list_objects(&bucket.prefix, Some('/'), None, 1).await.map_err(failed)?;
    log::warn!(
        "this key may not look at the bucket {} itself (HeadBucket: 403), so whether that has real folders cannot be told; what \
         is below {:?} can be listed, and the mount goes on",
        bucket.bucket,
        bucket.prefix
    );
    Ok(())
}

/// Whether HeadBucket was refused in a way that says nothing of what lies in the bucket. Its answer has no body: bad keys look
/// the same.
fn is_no_answer(error: &BosError) -> bool {
    error.kind == BosErrorKind::Denied && !error.refuses_credentials()
}

/// What is known of a lifecycle rule that aborts unfinished uploads below the prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AbortRule {
    /// There is none.
    None,
    /// There is one, and so many days pass before it acts.
    After(u32),
    /// The rules cannot be read.
    Unknown {
        /// Why.
        why: String,
        /// The trouble is one that passes.
        may_pass: bool,
    },
}

impl AbortRule {
    pub(super) fn of(read: Result<Option<u32>, BosError>) -> Self {
        match read {
            Ok(None) => Self::None,
            Ok(Some(days)) => Self::After(days),
            Err(error) => Self::Unknown { why: error.to_string(), may_pass: error.is_transient() },
        }
    }

    /// The same for whoever would take parts out of the spool.
    pub(super) fn as_abort_rules(&self) -> AbortRules {
        match self {
            Self::None => AbortRules::None,
            Self::After(_) => AbortRules::Some,
            Self::Unknown { may_pass, .. } => AbortRules::Unknown { may_pass: *may_pass },
        }
    }

    /// When the rules are read again after the `failures`th look in a row that told nothing.
    fn next_look(&self, failures: u32) -> Duration {
        match self {
            Self::Unknown { may_pass: true, .. } => {
                LOOK_AGAIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LOOK_EVERY)
            }
            _ => LOOK_EVERY,
        }
    }

    /// Tells people, where it is not what was known before.
    pub(super) fn tell(&self, bucket: &str, before: Option<&Self>) {
        if before == Some(self) {
            return;
        }
        match self {
            Self::None if before.is_some() => {
                log::info!(
                    "no lifecycle rule of the bucket {bucket} aborts unfinished uploads: a full spool is freed again"
                );
            }
            Self::None => {}
            Self::After(days) => log::warn!(
                "a lifecycle rule of the bucket {bucket} aborts unfinished uploads after {days} days: what is not complete by \
                 then is sent again from the spool, which is therefore kept whole (no --punch)"
            ),
            Self::Unknown { why, .. } => log::warn!(
                "the lifecycle rules of the bucket {bucket} cannot be read ({why}): one of them may abort unfinished uploads, so \
                 the spool is kept whole (no --punch) until they can; they are asked for again each hour"
            ),
        }
    }
}

/// Reads the rules again and again, and hands each finding to `tell`. `known`: what the first look told.
pub(super) async fn watch_rules<F>(known: &AbortRule, read: impl Fn() -> F, tell: impl Fn(AbortRule))
where
    F: Future<Output = Result<Option<u32>, BosError>>,
{
    let failed = |rule: &AbortRule| matches!(rule, AbortRule::Unknown { .. });
    let mut failures = u32::from(failed(known));
    let mut pause = known.next_look(failures);
    loop {
        tokio::time::sleep(pause).await;
        let rule = AbortRule::of(read().await);
        failures = if failed(&rule) { failures.saturating_add(1) } else { 0 };
        pause = rule.next_look(failures);
        tell(rule);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::bos::error::Story;

    fn refused(status: u16, kind: BosErrorKind) -> BosError {
        BosError::with_story(kind, false, Story { status: Some(status), ..Story::default() })
    }

    #[test]
    fn rules_that_cannot_be_read_are_unknown_and_not_absent() {
        assert_eq!(AbortRule::of(Ok(None)).as_abort_rules(), AbortRules::None);
        assert_eq!(AbortRule::of(Ok(Some(7))).as_abort_rules(), AbortRules::Some);
        for (kind, may_pass) in [
            (BosErrorKind::Denied, false),
            (BosErrorKind::Server, true),
            (BosErrorKind::Network, true),
            (BosErrorKind::BadAnswer, true),
            (BosErrorKind::Refused, false),
        ] {
            let rule = AbortRule::of(Err(refused(400, kind)));
            assert_eq!(rule.as_abort_rules(), AbortRules::Unknown { may_pass }, "{kind:?}");
        }
    }

    #[test]
    fn a_refusal_of_the_bucket_says_nothing_and_bad_keys_say_much() {
        assert!(is_no_answer(&refused(403, BosErrorKind::Denied)));
        let code = |code: &str| {
            let story = Story { status: Some(403), code: code.to_owned(), ..Story::default() };
            BosError::with_story(BosErrorKind::Denied, false, story)
        };
        assert!(is_no_answer(&code("AccessDenied")));
        assert!(!is_no_answer(&code("InvalidAccessKeyId")) && !is_no_answer(&code("SignatureDoesNotMatch")));
        assert!(!is_no_answer(&refused(404, BosErrorKind::NoSuchBucket)));
    }

    #[tokio::test(start_paused = true)]
    async fn rules_are_read_again_each_hour_and_sooner_after_trouble_that_passes() {
        let trouble = || Err(refused(500, BosErrorKind::Server));
        let denied = || Err(refused(403, BosErrorKind::Denied));
        let answers = [trouble(), trouble(), Ok(Some(3)), Ok(None), denied(), denied(), Ok(None)];
        let answers = Arc::new(Mutex::new(answers.into_iter()));
        let told = Arc::new(Mutex::new(Vec::new()));
        let start = tokio::time::Instant::now();
        let (next, seen) = (answers.clone(), told.clone());
        let read = move || {
            let answer = next.lock().next();
            async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            }
        };
        let tell = move |rule: AbortRule| seen.lock().push((start.elapsed().as_secs(), rule.as_abort_rules()));
        let known = AbortRule::of(trouble());
        let watching = watch_rules(&known, read, tell);
        assert!(tokio::time::timeout(Duration::from_secs(100_000), watching).await.is_err());
        let unknown = |may_pass| AbortRules::Unknown { may_pass };
        let expected = [
            (60, unknown(true)),
            (180, unknown(true)),
            (420, AbortRules::Some),
            (4020, AbortRules::None),
            (7620, unknown(false)),
            (11_220, unknown(false)),
            (14_820, AbortRules::None),
        ];
        assert_eq!(*told.lock(), expected);
        let rule = AbortRule::of(trouble());
        assert_eq!((rule.next_look(7), rule.next_look(u32::MAX)), (LOOK_EVERY, LOOK_EVERY));
    }
}
