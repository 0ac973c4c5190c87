//! One object copied to another key: by CopyObject, or by parts where it is larger than that call takes.

use std::time::{Duration, Instant};

use super::running::{Move, Stopped};
use super::state::{CopyFound, judge_copy, same_sums};
use crate::bos::BosErrorKind;
use crate::bos::client::{ObjectHeaders, ObjectMeta, stored_between};
use crate::object::{BaseObject, Condition, ETag, ObjectKey};
use crate::transfer::retry::{Act, After, after};
use crate::upload::WriteError;

pub(super) use crate::transfer::plan::COPY_PART_BYTES as PART_BYTES;

/// How often a source that HEAD shows may be missed by the copy: a fresh object may not be visible to it yet.
const MISSED_MAX: u32 = 5;

/// What is to be copied where.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyJob<'a> {
    pub(super) from: &'a ObjectKey,
    pub(super) source: &'a BaseObject,
    pub(super) to: &'a ObjectKey,
    pub(super) condition: &'a Condition,
    pub(super) replace: Option<&'a ObjectHeaders>,
    /// The copy may have been sent before.
    pub(super) sent: bool,
}

/// A copy that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) etag: ETag,
    /// Where BOS told it.
    pub(super) last_modified: Option<i64>,
    /// Between which times BOS stored it, both included, where that is known.
    pub(super) stored: Option<(i64, i64)>,
}

impl From<ETag> for Made {
    fn from(etag: ETag) -> Self {
        Self { etag, last_modified: None, stored: None }
    }
}

/// Why a copy was not made.
#[derive(Debug)]
pub(super) enum CopyTrouble {
    /// There is no source any more.
    SourceGone,
    /// The source is not what it was.
    SourceChanged,
    /// The condition on the target does not hold; for people.
    TargetTaken(String),
    /// BOS refuses, or the local disk fails.
    Failed(WriteError),
    /// bosfs is stopping.
    Stopped,
}

impl From<Stopped> for CopyTrouble {
    fn from(_: Stopped) -> Self {
        CopyTrouble::Stopped
    }
}

impl From<WriteError> for CopyTrouble {
    fn from(error: WriteError) -> Self {
        CopyTrouble::Failed(error)
    }
}

impl Move {
    /// Makes the copy, by as many requests as its size takes. What passes by itself is waited out.
    pub(super) async fn copy(&self, job: CopyJob<'_>) -> Result<Made, CopyTrouble> {
        if job.source.size > self.shared.sizes.copy_bytes_max {
            return Ok(self.copy_by_parts(job).await?.into());
        }
        let client = &self.shared.client;
        let mut sent = job.sent;
        let mut missed = 0;
        loop {
            if let Some(etag) = self.settle_target(job, sent, None).await? {
                return Ok(etag.into());
            }
            let sent_before = std::mem::replace(&mut sent, true);
            let (copied, sent_at) = {
                let _slot = self.shared.slot().await?;
                let (if_match, sent_at) = (Some(&job.source.etag), Instant::now());
                let copied = match job.condition {
                    Condition::Any => client.copy_object(job.from, if_match, job.to, job.replace).await,
                    // What is there was looked at, and is before every repeat.
                    _ => client.copy_object_once(job.from, if_match, job.to, job.replace).await,
                };
                (copied, sent_at)
            };
            match copied {
                Ok(copied) => {
                    self.check_copy(job, &copied.etag).await?;
                    // `Date` and Last-Modified have whole seconds.
                    let stored = stored_between(copied.date, sent_at).map(|(from, to)| (from - 1, to + 1));
                    return Ok(Made { etag: copied.etag, last_modified: copied.last_modified, stored });
                }
                Err(e) if e.kind == BosErrorKind::PreconditionFailed => return Err(CopyTrouble::SourceChanged),
                Err(e) if e.kind == BosErrorKind::NoSuchKey => {
                    missed += 1;
                    match self.head(job.from).await? {
                        Some(head) if head.etag != job.source.etag => return Err(CopyTrouble::SourceChanged),
                        Some(_) if missed < MISSED_MAX => self.pause(Duration::from_secs(1)).await?,
                        Some(_) => return Err(self.refused("copying", job.from, &e).into()),
                        None => return Err(CopyTrouble::SourceGone),
                    }
                }
                Err(e) if e.is_copy_refused() => {
                    return self.copy_refused(CopyJob { sent: sent_before, ..job }, &e).await;
                }
                // What it may have done is settled before it is sent again.
                Err(e) if after(&e, Act::Repeatable) == After::Again => self.back_off(job.from.as_str(), &e).await?,
                Err(e) => return Err(self.refused("copying", job.from, &e).into()),
            }
        }
    }

    /// Asks what is at the target, where that matters: `Some`: the copy is there already.
    pub(super) async fn settle_target(
        &self,
        job: CopyJob<'_>,
        sent: bool,
        checks: Option<&ObjectMeta>,
    ) -> Result<Option<ETag>, CopyTrouble> {
        if !sent && *job.condition == Condition::Any {
            return Ok(None);
        }
        let head = self.head(job.to).await?;
        let asked;
        let checks = match checks {
            None if sent && head.as_ref().is_some_and(|head| head.size == job.source.size) => {
                asked = self.head(job.from).await?;
                asked.as_ref()
            }
            given => given,
        };
        match judge_copy(head.as_ref(), job.source, checks, &self.mark(), job.condition, sent) {
            CopyFound::Ours { etag } => Ok(Some(etag)),
            CopyFound::AsExpected => Ok(None),
            CopyFound::Other { what } => Err(CopyTrouble::TargetTaken(what)),
        }
    }

    /// A simple object keeps its ETag when it is copied; where it did not, the copy is looked at.
    async fn check_copy(&self, job: CopyJob<'_>, etag: &ETag) -> Result<(), CopyTrouble> {
        if *etag == job.source.etag {
            return Ok(());
        }
        let (copy, source) = (self.head(job.to).await?, self.head(job.from).await?);
        let Some(copy) = copy else {
            return Err(CopyTrouble::TargetTaken("the copy is gone".to_owned()));
        };
        let differs = source.filter(|s| s.etag == job.source.etag).is_some_and(|s| same_sums(&copy, &s) == Some(false));
        if copy.size == job.source.size && !differs {
            return Ok(());
        }
        let (from, to) = (job.from, job.to);
        Err(WriteError::failed(
            libc::EIO,
            format!(
                "copying {from} to {to}: BOS says it is done, but the copy has {} bytes of {} or another checksum; the \
                 original is kept and counts",
                copy.size, job.source.size
            ),
        )
        .into())
    }
}
