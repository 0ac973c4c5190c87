//! A copy by parts: copied by BOS, or read and sent again where BOS does not copy (appendable objects).
//!
//! ```text
//!   Initiating -> Initiated -> a line per part -> Complete, with our mark -> HEAD: the size, and the sums where there are any
//!        \ unanswered: again, and `uploads list` calls what may be left "possibly ours"
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;

use super::copy::{CopyJob, CopyTrouble, Made};
use super::record::{MoveRecord, PartsBy};
use super::running::{Move, Stopped, Trouble};
use super::state::CopyUpload;
use crate::bos::client::{Body, ObjectHeaders, ObjectMeta};
use crate::bos::{BosError, BosErrorKind};
use crate::object::{ByteRange, Checksum, ETag, ObjectKey, PART_NUMBER_MAX, PartNumber};
use crate::transfer::complete::{Completion, Outcome, complete, put};
use crate::transfer::initiate::begin;
use crate::transfer::part::CopySource;
use crate::transfer::prove::{ByRule, Expected, MadeAs, Proving, Verdict, prove};
use crate::transfer::retry::{Act, After, after, persist};
use crate::transfer::{Before, Held, Looks, PartAnswer, Patience, Piece, Plan, PlanError, Unanswered, Upload, Way};
use crate::upload::WriteError;
use crate::write::part_plan::{COPY_BYTES_MAX, PART_UNIT_BYTES};

/// Uploads of one copy that may break before it fails.
const UPLOADS_MAX: u32 = 5;
/// Largest object that is read and stored again in one piece, bytes.
const WHOLE_BYTES_MAX: u64 = 8 << 20;
/// Least and most bytes of a part that is read and sent again: it is held in memory meanwhile.
const SENT_BYTES_MIN: u64 = 8 << 20;
const SENT_BYTES_MAX: u64 = 64 << 20;
/// Parts that are read and sent again at once, for one copy.
const SENT_AT_ONCE: usize = 2;
/// Bodies of one part that may arrive damaged before the copy fails.
const DAMAGED_MAX: u32 = 5;

/// How the parts of an upload came out.
enum Parts {
    /// All are there.
    Whole(Vec<(PartNumber, Held)>),
    /// The upload is gone.
    Gone,
    /// BOS does not copy this object.
    CopyRefused,
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
    /// The copy of an object that CopyObject does not take: an appendable one.
    pub(super) async fn copy_refused(&self, job: CopyJob<'_>, error: &BosError) -> Result<Made, CopyTrouble> {
        log::info!("{}: {error}; it is put together anew under {}, as an ordinary object", job.from, job.to);
        match job.source.size {
            0..=WHOLE_BYTES_MAX => Ok(self.store_again(job).await?.into()),
            _ => Ok(self.copy_by_parts(job).await?.into()),
        }
    }

    /// Reads a small object and stores it under the other key.
    async fn store_again(&self, job: CopyJob<'_>) -> Result<ETag, CopyTrouble> {
        let (client, mark) = (&self.shared.client, self.mark());
        let headers = match job.replace {
            Some(headers) => headers.clone(),
            None => match self.head(job.from).await? {
                Some(head) if head.etag == job.source.etag => head.headers,
                Some(_) => return Err(CopyTrouble::SourceChanged),
                None => return Err(CopyTrouble::SourceGone),
            },
        };
        let mut sent = job.sent;
        for _ in 0..UPLOADS_MAX {
            if let Some(etag) = self.settle_target(job, sent, None).await? {
                return Ok(etag);
            }
            let _slot = self.shared.slot().await?;
            let bytes = match self.read(job, ByteRange::new(0, job.source.size)).await? {
                Ok(bytes) => bytes,
                Err(e) => return Err(self.part_trouble(job, &e)),
            };
            let sum = hash(&bytes).await?;
            sent = true;
            match put(client, job.to, Body::Bytes(bytes), &sum, &headers, &mark, job.condition).await {
                Ok(Outcome::Made(made)) => return Ok(made.etag),
                Ok(Outcome::Differs { what, .. }) => log::warn!("{}: {what}; it is stored again", job.to),
                // The target is looked at first.
                Ok(Outcome::Refused(_)) => {}
                Ok(Outcome::Unanswered(e) | Outcome::PartsMissing(e) | Outcome::UploadGone(e)) => {
                    self.back_off(job.to.as_str(), &e).await?;
                }
                Err(e) if after(&e, Act::Deciding) == After::Again => self.back_off(job.to.as_str(), &e).await?,
                Err(e) => return Err(self.refused("copying", job.from, &e).into()),
            }
        }
        Err(self.gave_up(job))
    }

    pub(super) async fn copy_by_parts(&self, job: CopyJob<'_>) -> Result<ETag, CopyTrouble> {
        let source = match self.head(job.from).await? {
            Some(head) if head.etag == job.source.etag => Some(head),
            // After a crash the copy may be all that is left.
            _ if job.sent => None,
            Some(_) => return Err(CopyTrouble::SourceChanged),
            None => return Err(CopyTrouble::SourceGone),
        };
        let mut sent = job.sent;
        let mut by = PartsBy { part_bytes: self.shared.sizes.part_bytes, sent: false };
        for _ in 0..UPLOADS_MAX {
            if let Some(etag) = self.settle_target(job, sent, source.as_ref()).await? {
                self.end_upload(job.to).await?;
                return Ok(etag);
            }
            let Some(source) = &source else { return Err(CopyTrouble::SourceChanged) };
            let headers = job.replace.unwrap_or(&source.headers);
            let known = self.state.lock().uploads.get(job.to).cloned();
            // Looked at before anything is sent.
            let by_now = known.as_ref().map_or(by, |upload| upload.by);
            let plan = plan_of(job.source.size, by_now).map_err(|_| too_large(job, by_now))?;
            let known = match known {
                Some(upload) => upload,
                None => self.begin_upload(job, headers, by, source.appendable).await?,
            };
            let upload = Upload { client: &self.shared.client, key: job.to, id: &known.id };
            let copied = match self.make_parts(job, &upload, &plan, &known).await {
                Ok(Parts::Whole(parts)) => self.complete_copy(job, upload, &parts, source, headers).await,
                Ok(Parts::Gone) => Ok(None),
                Ok(Parts::CopyRefused) => {
                    log::info!("{}: BOS does not copy parts of it either; it is read and sent again", job.from);
                    self.end_upload(job.to).await?;
                    by = sent_again(job.source.size);
                    continue;
                }
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
        Err(self.gave_up(job))
    }

    /// Initiate, with a line before each try: what an unanswered one may have begun is never ours for certain.
    async fn begin_upload(
        &self,
        job: CopyJob<'_>,
        headers: &ObjectHeaders,
        by: PartsBy,
        appendable: bool,
    ) -> Result<CopyUpload, CopyTrouble> {
        let client = &self.shared.client;
        let initiate = async || match appendable && !by.sent {
            true => client.initiate_copy(job.to, headers, job.from).await,
            false => client.initiate(job.to, headers).await,
        };
        let mut waiting = self.waiting(job.to, job.from);
        let line = |_| Ok(self.append(&MoveRecord::Initiating { to: job.to.clone() })?);
        let id = self.unless_stopped(begin(&mut waiting, line, initiate)).await?;
        self.append(&MoveRecord::Initiated { to: job.to.clone(), upload_id: id.clone(), by })?;
        Ok(CopyUpload { id, by, parts: BTreeMap::new() })
    }

    /// Every piece of the plan with what BOS holds of it, those that are there already without a request.
    async fn make_parts(
        &self,
        job: CopyJob<'_>,
        upload: &Upload<'_>,
        plan: &Plan,
        known: &CopyUpload,
    ) -> Result<Parts, CopyTrouble> {
        let is_missing = |piece: &&Piece| !known.parts.contains_key(&piece.number);
        let missing: Vec<Piece> = plan.pieces().iter().filter(is_missing).copied().collect();
        let mut parts = known.parts.clone();
        let made = missing.into_iter().map(|piece| async move {
            let _slot = self.shared.slot().await?;
            Ok::<_, CopyTrouble>((piece.number, self.make_part(job, upload, piece).await?))
        });
        let at_once = if known.by.sent { SENT_AT_ONCE } else { self.shared.copies_max };
        let mut made = stream::iter(made).buffer_unordered(at_once);
        // All are awaited, also behind a failure: none must act after the upload was aborted.
        let (mut trouble, mut gone, mut refused) = (None, false, false);
        while let Some(part) = made.next().await {
            let result = part.and_then(|(part, made)| match made {
                Ok(PartAnswer::Held(Held { etag, .. }) | PartAnswer::Contested(Held { etag, .. })) => {
                    self.append(&MoveRecord::PartCopied { to: job.to.clone(), part, etag: etag.clone() })?;
                    parts.insert(part, etag);
                    Ok(())
                }
                Ok(PartAnswer::SourceChanged(_)) => Err(CopyTrouble::SourceChanged),
                Ok(PartAnswer::SourceGone(_)) => Err(CopyTrouble::SourceGone),
                Ok(PartAnswer::UploadGone(e)) => {
                    gone = true;
                    Err(self.part_trouble(job, &e))
                }
                Ok(PartAnswer::Differs { what, .. }) => Err(self.failed(job, libc::EIO, &what)),
                Ok(PartAnswer::Damaged(e)) => Err(self.part_trouble(job, &e)),
                Ok(PartAnswer::CopyRefused(e)) => {
                    refused = true;
                    Err(self.part_trouble(job, &e))
                }
                Err(e) => Err(self.part_trouble(job, &e)),
            });
            if let Err(e) = result {
                trouble.get_or_insert(e);
            }
        }
        match trouble {
            Some(CopyTrouble::Stopped) => return Err(CopyTrouble::Stopped),
            _ if gone => return Ok(Parts::Gone),
            _ if refused => return Ok(Parts::CopyRefused),
            Some(trouble) => return Err(trouble),
            None => {}
        }
        // Exactly the pieces of the plan: nothing that an earlier try left besides counts.
        let held = |piece: &Piece| {
            let etag = parts.get(&piece.number)?.clone();
            Some((piece.number, Held { len: piece.range.len(), etag, sum: None }))
        };
        let whole = plan.pieces().iter().map(held).collect::<Option<Vec<_>>>();
        Ok(whole.map_or(Parts::Gone, Parts::Whole))
    }

    async fn make_part(
        &self,
        job: CopyJob<'_>,
        upload: &Upload<'_>,
        piece: Piece,
    ) -> Result<Result<PartAnswer, BosError>, CopyTrouble> {
        if piece.way == Way::Copy {
            let from = CopySource { key: job.from, etag: &job.source.etag };
            let mut waiting = self.waiting(job.from, job.from);
            let call = || upload.copy_part(piece.number, from, piece.range, Unanswered::None);
            return self.unless_stopped(persist(&mut waiting, call)).await;
        }
        let bytes = match self.read(job, piece.range).await? {
            Ok(bytes) => bytes,
            Err(e) => return Ok(Err(e)),
        };
        let sum = hash(&bytes).await?;
        let mut waiting = self.waiting(job.to, job.from);
        let mut damaged = 0;
        loop {
            // Always the same bytes: whichever of them arrives last is right.
            let call = || upload.send_part(piece.number, Body::Bytes(bytes.clone()), &sum, Unanswered::None);
            let sent = self.unless_stopped(persist(&mut waiting, call)).await?;
            match sent {
                Ok(PartAnswer::Damaged(_) | PartAnswer::Differs { .. }) if damaged + 1 < DAMAGED_MAX => damaged += 1,
                answer => return Ok(answer),
            }
        }
    }

    /// Bytes of the source, as long as it is what is to be copied.
    async fn read(&self, job: CopyJob<'_>, range: ByteRange) -> Result<Result<Bytes, BosError>, Stopped> {
        if range.is_empty() {
            return Ok(Ok(Bytes::new()));
        }
        let if_match = Some(&job.source.etag);
        self.patiently(job.from, || self.shared.client.get_range(job.from, range, if_match)).await
    }

    fn part_trouble(&self, job: CopyJob<'_>, error: &BosError) -> CopyTrouble {
        match error.kind {
            BosErrorKind::PreconditionFailed => CopyTrouble::SourceChanged,
            BosErrorKind::NoSuchKey => CopyTrouble::SourceGone,
            _ => self.refused("copying", job.from, error).into(),
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
        let made = MadeAs { etag: &etag, mark: &mark, before: &Before::of(job.condition) };
        let looks = Looks::before_doubt();
        let proving = prove(&self.shared.client, job.to, &made, &expected, looks, &mut waiting);
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

    fn gave_up(&self, job: CopyJob<'_>) -> CopyTrouble {
        let (from, to) = (job.from, job.to);
        WriteError::failed(
            libc::EIO,
            format!(
                "copying {from} to {to}: {UPLOADS_MAX} tries of the copy were destroyed or broken; the original counts"
            ),
        )
        .into()
    }
}

/// How an object is cut; refused if no list of such parts reaches its end.
fn plan_of(size: u64, by: PartsBy) -> Result<Plan, PlanError> {
    match by.sent {
        true => Plan::even(size, by.part_bytes, SENT_BYTES_MAX, Way::Send),
        false => Plan::even(size, by.part_bytes, COPY_BYTES_MAX, Way::Copy),
    }
}

/// How an object that BOS does not copy is sent again.
fn sent_again(size: u64) -> PartsBy {
    let part_bytes = size.div_ceil(PART_NUMBER_MAX.into()).next_multiple_of(PART_UNIT_BYTES).max(SENT_BYTES_MIN);
    PartsBy { part_bytes, sent: true }
}

/// The refusal of a copy that cannot be made whole; nothing was sent.
fn too_large(job: CopyJob<'_>, by: PartsBy) -> CopyTrouble {
    let (from, to, size) = (job.from, job.to, job.source.size);
    let why = match by.sent {
        true => "BOS does not copy it, and it is too large to be read and sent again by a rename",
        false => "that is more than the parts of one upload can hold",
    };
    let advice = "nothing was sent and the original counts; copy it with a tool of its owner's";
    WriteError::failed(libc::EFBIG, format!("copying {from} to {to}: it has {size} bytes; {why}; {advice}")).into()
}

/// Hashes on a thread of its own.
async fn hash(bytes: &Bytes) -> Result<Checksum, CopyTrouble> {
    let bytes = bytes.clone();
    let hashed = tokio::task::spawn_blocking(move || Checksum::of(&bytes)).await;
    hashed.map_err(|e| WriteError::failed(libc::EIO, format!("hashing broke off: {e}")).into())
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;
