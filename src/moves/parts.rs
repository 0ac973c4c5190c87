//! A copy by parts, where the object is larger than one call takes.
//!
//! ```text
//!   Initiated -> a line per part -> Complete, with our mark -> HEAD: the size, and the sums where there are any
//! ```

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::copy::{CopyJob, CopyTrouble};
use super::record::MoveRecord;
use super::running::{Move, Trouble};
use crate::bos::BosError;
use crate::bos::client::{ObjectHeaders, ObjectMeta};
use crate::object::{ETag, ObjectKey, PartNumber};
use crate::transfer::complete::{Completion, Outcome, complete};
use crate::transfer::initiate::initiate;
use crate::transfer::part::CopySource;
use crate::transfer::prove::{ByRule, Expected, MadeAs, Proving, Verdict, prove};
use crate::transfer::retry::persist;
use crate::transfer::{Held, PartAnswer, Patience, Piece, Plan, Unanswered, Upload, Way};
use crate::upload::WriteError;
use crate::write::part_plan::COPY_BYTES_MAX;

/// Uploads of one copy that may break before it fails.
const UPLOADS_MAX: u32 = 5;

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
    pub(super) async fn copy_by_parts(&self, job: CopyJob<'_>) -> Result<ETag, CopyTrouble> {
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
#[path = "parts_tests.rs"]
mod tests;
