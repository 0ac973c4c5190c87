//! One object copied to another key: by CopyObject, or by parts where it is larger than that call takes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::record::MoveRecord;
use super::running::{Move, Stopped, Trouble};
use super::state::{CopyFound, judge_copy, same_sums};
use crate::bos::client::{ObjectHeaders, ObjectMeta};
use crate::bos::{BosError, BosErrorKind};
use crate::object::{BaseObject, Condition, ETag, ObjectKey, PartNumber};
use crate::transfer::complete::{Completion, Outcome, complete};
use crate::transfer::initiate::initiate;
use crate::transfer::part::CopySource;
use crate::transfer::prove::{ByRule, Expected, MadeAs, Proving, Verdict, prove};
use crate::transfer::retry::{Act, After, after, persist};
use crate::transfer::{Held, PartAnswer, Patience, Piece, Plan, Unanswered, Upload, Way};
use crate::upload::WriteError;
use crate::write::part_plan::COPY_BYTES_MAX;

pub(super) use crate::transfer::plan::COPY_PART_BYTES as PART_BYTES;

/// How often a source that HEAD shows may be missed by the copy: a fresh object may not be visible to it yet.
const MISSED_MAX: u32 = 5;
/// Uploads of one copy that may break before it fails.
const UPLOADS_MAX: u32 = 5;

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
}

impl From<ETag> for Made {
    fn from(etag: ETag) -> Self {
        Self { etag, last_modified: None }
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

/// Waits for BOS as long as it takes; bosfs stops whatever is under way by dropping it.
struct Waiting<'a> {
    entry: &'a Move,
    /// Whom a line in the log is about.
    what: &'a ObjectKey,
    doing: &'static str,
    /// What that is done to.
    key: &'a ObjectKey,
}

impl Patience for Waiting<'_> {
    type Error = CopyTrouble;

    async fn pause(&mut self, error: &BosError) -> Result<bool, CopyTrouble> {
        self.entry.back_off(self.what.as_str(), error).await?;
        Ok(true)
    }

    fn refused(&self, error: BosError) -> CopyTrouble {
        self.entry.refused(self.doing, self.key, &error).into()
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
            sent = true;
            let copied = {
                let _slot = self.shared.slot().await?;
                client.copy_object(job.from, Some(&job.source.etag), job.to, job.replace).await
            };
            match copied {
                Ok(copied) => {
                    self.check_copy(job, &copied.etag).await?;
                    return Ok(Made { etag: copied.etag, last_modified: copied.last_modified });
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
                // What it may have done is settled before it is sent again.
                Err(e) if after(&e, Act::Repeatable) == After::Again => self.back_off(job.from.as_str(), &e).await?,
                Err(e) => return Err(self.refused("copying", job.from, &e).into()),
            }
        }
    }

    /// Asks what is at the target, where that matters: `Some`: the copy is there already.
    async fn settle_target(
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

    async fn copy_by_parts(&self, job: CopyJob<'_>) -> Result<ETag, CopyTrouble> {
        let source = match self.head(job.from).await? {
            Some(head) if head.etag == job.source.etag => Some(head),
            // After a crash the copy may be all that is left.
            _ if job.sent => None,
            Some(_) => return Err(CopyTrouble::SourceChanged),
            None => return Err(CopyTrouble::SourceGone),
        };
        let plan = Plan::even(job.source.size, self.shared.sizes.part_bytes, COPY_BYTES_MAX, Way::Copy);
        let plan = plan.map_err(|e| self.failed(job, libc::EFBIG, &format!("it cannot be copied by parts: {e}")))?;
        let mut sent = job.sent;
        for _ in 0..UPLOADS_MAX {
            if let Some(etag) = self.settle_target(job, sent, source.as_ref()).await? {
                self.end_upload(job.to).await?;
                return Ok(etag);
            }
            let Some(source) = &source else { return Err(CopyTrouble::SourceChanged) };
            let headers = job.replace.unwrap_or(&source.headers);
            let known = self.state.lock().uploads.get(job.to).cloned();
            let (id, done) = match known {
                Some(upload) => (upload.id, upload.parts),
                None => {
                    let mut waiting = self.waiting(job.to, job.from);
                    let begun = initiate(&self.shared.client, job.to, headers, &mut waiting, |_| Ok(()));
                    let id = self.unless_stopped(begun).await?;
                    self.append(&MoveRecord::Initiated { to: job.to.clone(), upload_id: id.clone() })?;
                    (id, BTreeMap::new())
                }
            };
            let upload = Upload { client: &self.shared.client, key: job.to, id: &id };
            let copied = match self.copy_parts(job, &upload, &plan, done).await {
                Ok(Some(parts)) => self.complete_copy(job, upload, &parts, source, headers).await,
                Ok(None) => Ok(None),
                Err(trouble) => Err(trouble),
            };
            match copied {
                Ok(Some(etag)) => return Ok(etag),
                // The upload broke: look at the target, then begin anew.
                Ok(None) => {
                    sent = true;
                    self.end_upload(job.to).await?;
                }
                Err(CopyTrouble::Stopped) => return Err(CopyTrouble::Stopped),
                Err(trouble) => {
                    self.end_upload(job.to).await?;
                    return Err(trouble);
                }
            }
        }
        let what = format!("{UPLOADS_MAX} uploads of the copy were destroyed or broken; the original counts");
        Err(self.failed(job, libc::EIO, &what))
    }

    /// Every piece of the plan with what BOS holds of it, those of `done` without a request. `None`: the upload is gone.
    async fn copy_parts(
        &self,
        job: CopyJob<'_>,
        upload: &Upload<'_>,
        plan: &Plan,
        done: BTreeMap<PartNumber, ETag>,
    ) -> Result<Option<Vec<(PartNumber, Held)>>, CopyTrouble> {
        let from = CopySource { key: job.from, etag: &job.source.etag };
        let missing: Vec<Piece> =
            plan.pieces().iter().filter(|piece| !done.contains_key(&piece.number)).copied().collect();
        let mut parts = done;
        let copies = missing.into_iter().map(|piece| async move {
            let _slot = self.shared.slot().await?;
            let mut waiting = self.waiting(job.from, job.from);
            let call = || upload.copy_part(piece.number, from, piece.range, Unanswered::None);
            let copied = self.unless_stopped(persist(&mut waiting, call)).await?;
            Ok::<_, CopyTrouble>((piece.number, copied.map_err(|e| waiting.refused(e))?))
        });
        let mut copies = stream::iter(copies).buffer_unordered(self.shared.copies_max);
        // All are awaited, also behind a failure: none must act after the upload was aborted.
        let mut trouble = None;
        let mut broken = false;
        while let Some(copied) = copies.next().await {
            let result = copied.and_then(|(part, answer)| match answer {
                PartAnswer::Held(Held { etag, .. }) | PartAnswer::Contested(Held { etag, .. }) => {
                    self.append(&MoveRecord::PartCopied { to: job.to.clone(), part, etag: etag.clone() })?;
                    parts.insert(part, etag);
                    Ok(())
                }
                PartAnswer::SourceChanged(_) => Err(CopyTrouble::SourceChanged),
                PartAnswer::SourceGone(_) => Err(CopyTrouble::SourceGone),
                PartAnswer::UploadGone(e) => {
                    broken = true;
                    Err(self.refused("copying", job.from, &e).into())
                }
                PartAnswer::Damaged(e) => Err(self.refused("copying", job.from, &e).into()),
                PartAnswer::Differs { what, .. } => Err(self.failed(job, libc::EIO, &what)),
            });
            if let Err(e) = result {
                trouble.get_or_insert(e);
            }
        }
        let held = |piece: &Piece| {
            let etag = parts.get(&piece.number)?.clone();
            Some((piece.number, Held { len: piece.range.len(), etag, sum: None }))
        };
        match trouble {
            Some(CopyTrouble::Stopped) => Err(CopyTrouble::Stopped),
            _ if broken => Ok(None),
            Some(trouble) => Err(trouble),
            None => Ok(plan.pieces().iter().map(held).collect()),
        }
    }

    /// Completes the copy and shows that it is one. `None`: the upload is gone or does not have its parts; the target tells
    /// what became of it.
    async fn complete_copy(
        &self,
        job: CopyJob<'_>,
        upload: Upload<'_>,
        held: &[(PartNumber, Held)],
        source: &ObjectMeta,
        headers: &ObjectHeaders,
    ) -> Result<Option<ETag>, CopyTrouble> {
        let expected = Expected::composed(job.source.size, held);
        let expected = expected.map_err(|e| self.failed(job, libc::EIO, &e.to_string()))?.knowing(source.into());
        let parts: Vec<(PartNumber, ETag)> = held.iter().map(|(part, held)| (*part, held.etag.clone())).collect();
        // The copy carries our mark, which settles whatever is not answered.
        let mark = self.mark();
        let completion =
            Completion { upload, parts: &parts, headers, mark: &mark, size: job.source.size, condition: job.condition };
        let mut waiting = self.waiting(job.to, job.from);
        let etag = match self.unless_stopped(complete(&completion, &mut waiting)).await? {
            Outcome::Made(made) => made.etag,
            Outcome::PartsMissing(_) | Outcome::UploadGone(_) | Outcome::Refused(_) => return Ok(None),
            Outcome::Unanswered(e) => return Err(waiting.refused(e)),
            Outcome::Differs { what, .. } => return Err(self.failed(job, libc::EIO, &what)),
        };
        let made = MadeAs { etag: &etag, mark: &mark, condition: job.condition };
        let proving = prove(&self.shared.client, job.to, &made, &expected, &mut waiting);
        match self.unless_stopped(proving).await? {
            Proving::Judged(Verdict::Proved(_) | Verdict::Composed { .. }, _) => Ok(Some(etag)),
            Proving::Judged(Verdict::ChecksumOdd { etag: ByRule::Fits, what }, _) => {
                log::warn!(
                    "{}: {what}; its ETag is composed of those of its parts, so BOS means something else by it",
                    job.to
                );
                Ok(Some(etag))
            }
            Proving::Judged(Verdict::ChecksumOdd { what, .. } | Verdict::Mismatch(what), _) => {
                let what = format!(
                    "BOS says it is done, but the copy is not the original: {what}; the original is kept and counts"
                );
                Err(self.failed(job, libc::EIO, &what))
            }
            Proving::NotYet { .. } => Err(CopyTrouble::TargetTaken("the copy is gone".to_owned())),
            Proving::Other(meta) => Err(CopyTrouble::TargetTaken(format!(
                "an object of {} bytes with ETag {} took the place of the copy",
                meta.size, meta.etag
            ))),
        }
    }

    fn waiting<'a>(&'a self, what: &'a ObjectKey, key: &'a ObjectKey) -> Waiting<'a> {
        Waiting { entry: self, what, doing: "copying", key }
    }

    /// `work`, unless bosfs stops: then its request is broken off.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, CopyTrouble>>) -> Result<T, CopyTrouble> {
        let done = tokio::select! {
            done = work => done,
            () = self.shared.stop.cancelled() => return Err(CopyTrouble::Stopped),
        };
        *self.trouble.lock() = Trouble::default();
        done
    }

    fn failed(&self, job: CopyJob<'_>, errno: i32, what: &str) -> CopyTrouble {
        WriteError::failed(errno, format!("copying {} to {}: {what}", job.from, job.to)).into()
    }

    /// Aborts the upload of a copy, if there is one, until BOS does not know it any more.
    pub(super) async fn end_upload(&self, to: &ObjectKey) -> Result<(), CopyTrouble> {
        let Some(upload) = self.state.lock().uploads.get(to).cloned() else { return Ok(()) };
        let upload = Upload { client: &self.shared.client, key: to, id: &upload.id };
        let mut waiting = Waiting { doing: "taking back the copy", ..self.waiting(to, to) };
        self.unless_stopped(upload.end(&mut waiting)).await?;
        Ok(self.append(&MoveRecord::UploadEnded { to: to.clone() })?)
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
