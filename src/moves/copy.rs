//! One object copied to another key: by CopyObject, or by parts where it is larger than that call takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream;

use super::record::MoveRecord;
use super::running::{Move, Stopped};
use super::state::{CopyFound, judge_copy, same_sums};
use crate::bos::client::{CopyOutcome, ObjectHeaders, ObjectMeta, stored_between};
use crate::bos::{BosError, BosErrorKind};
use crate::object::{BaseObject, ByteRange, Condition, ETag, ObjectKey, PART_NUMBER_MAX, PartNumber, UploadId};
use crate::posix_meta::MARK;
use crate::upload::WriteError;

/// Preferred size of a copied part, bytes.
pub(super) const PART_BYTES: u64 = 1 << 30;
/// Largest copied part, bytes (BOS docs, UploadPartCopy: 5 GB), as a multiple of [`PART_UNIT_BYTES`].
const PART_BYTES_MAX: u64 = 5_000_000_000 / PART_UNIT_BYTES * PART_UNIT_BYTES;
/// Sizes of parts but the last are multiples of this.
const PART_UNIT_BYTES: u64 = 1 << 20;
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

/// How the ranges of an object of `size` bytes become parts: even ones of about `part_bytes`, as many as BOS takes.
/// `size` is above 0.
pub(super) fn part_ranges(size: u64, part_bytes: u64) -> Vec<ByteRange> {
    let count = size.div_ceil(part_bytes.max(1)).clamp(1, u64::from(PART_NUMBER_MAX));
    let even = size.div_ceil(count).next_multiple_of(PART_UNIT_BYTES).min(PART_BYTES_MAX);
    let count = size.div_ceil(even);
    (0..count).map(|i| ByteRange::new(i * even, ((i + 1) * even).min(size))).collect()
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
                Err(e) if e.is_transient() || e.is_ambiguous() => self.back_off(job.from.as_str(), &e).await?,
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
        let mut sent = job.sent;
        for _ in 0..UPLOADS_MAX {
            if let Some(etag) = self.settle_target(job, sent, source.as_ref()).await? {
                self.end_upload(job.to).await?;
                return Ok(etag);
            }
            let Some(source) = &source else { return Err(CopyTrouble::SourceChanged) };
            let mut headers = job.replace.unwrap_or(&source.headers).clone();
            headers.metadata.insert(MARK.to_owned(), self.mark());
            let known = self.state.lock().uploads.get(job.to).cloned();
            let (upload, done) = match known {
                Some(upload) => (upload.id, upload.parts),
                None => {
                    let id = self.patiently(job.to, || self.shared.client.initiate(job.to, &headers)).await?;
                    let id = id.map_err(|e| self.refused("copying", job.from, &e))?;
                    self.append(&MoveRecord::Initiated { to: job.to.clone(), upload_id: id.clone() })?;
                    (id, BTreeMap::new())
                }
            };
            let copied = match self.copy_parts(job, &upload, done).await {
                Ok(parts) => self.complete_copy(job, &upload, &parts, &headers).await,
                Err(trouble) => Err(trouble),
            };
            match copied {
                Ok(Some(etag)) => {
                    self.check_copy(job, &etag).await?;
                    return Ok(etag);
                }
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
        let (from, to) = (job.from, job.to);
        Err(WriteError::failed(
            libc::EIO,
            format!("copying {from} to {to}: {UPLOADS_MAX} uploads of the copy were destroyed or broken; the original counts"),
        )
        .into())
    }

    /// All parts with their ETags, those of `done` without a request. An empty list: the upload is gone.
    async fn copy_parts(
        &self,
        job: CopyJob<'_>,
        upload: &UploadId,
        done: BTreeMap<PartNumber, ETag>,
    ) -> Result<Vec<(PartNumber, ETag)>, CopyTrouble> {
        let ranges = part_ranges(job.source.size, self.shared.sizes.part_bytes);
        let numbered = (1..).filter_map(PartNumber::new).zip(ranges);
        let missing: Vec<_> = numbered.filter(|(number, _)| !done.contains_key(number)).collect();
        let mut parts = done;
        let copies = missing.into_iter().map(|(number, range)| async move {
            let _slot = self.shared.slot().await?;
            let call =
                || self.shared.client.upload_part_copy(job.to, upload, number, job.from, range, Some(&job.source.etag));
            Ok::<_, CopyTrouble>((number, self.patiently(job.from, call).await?))
        });
        let mut copies = stream::iter(copies).buffer_unordered(self.shared.copies_max);
        // All are awaited, also behind a failure: none must act after the upload was aborted.
        let mut trouble = None;
        let mut broken = false;
        while let Some(copied) = copies.next().await {
            let result = copied.and_then(|(part, copied)| match copied {
                Ok(CopyOutcome { etag, .. }) => {
                    self.append(&MoveRecord::PartCopied { to: job.to.clone(), part, etag: etag.clone() })?;
                    parts.insert(part, etag);
                    Ok(())
                }
                Err(e) => Err(self.part_trouble(job, &e, &mut broken)),
            });
            if let Err(e) = result {
                trouble.get_or_insert(e);
            }
        }
        match trouble {
            Some(CopyTrouble::Stopped) => Err(CopyTrouble::Stopped),
            _ if broken => Ok(Vec::new()),
            Some(trouble) => Err(trouble),
            None => Ok(parts.into_iter().collect()),
        }
    }

    fn part_trouble(&self, job: CopyJob<'_>, error: &BosError, broken: &mut bool) -> CopyTrouble {
        match error.kind {
            BosErrorKind::PreconditionFailed => CopyTrouble::SourceChanged,
            BosErrorKind::NoSuchKey => CopyTrouble::SourceGone,
            kind => {
                *broken |= kind == BosErrorKind::NoSuchUpload;
                self.refused("copying", job.from, error).into()
            }
        }
    }

    /// `None`: the upload is gone or does not have its parts; the target tells what became of it.
    async fn complete_copy(
        &self,
        job: CopyJob<'_>,
        upload: &UploadId,
        parts: &[(PartNumber, ETag)],
        headers: &ObjectHeaders,
    ) -> Result<Option<ETag>, CopyTrouble> {
        if parts.is_empty() {
            return Ok(None);
        }
        loop {
            // The copy carries our mark, which settles whatever was not answered.
            match self.shared.client.complete(job.to, upload, parts, headers, job.condition).await {
                Ok(outcome) => return Ok(Some(outcome.etag)),
                Err(e) if matches!(e.kind, BosErrorKind::NoSuchUpload | BosErrorKind::InvalidPart) => return Ok(None),
                Err(e) if e.kind == BosErrorKind::PreconditionFailed => return Ok(None),
                Err(e) if e.is_transient() || e.is_ambiguous() => {
                    self.back_off(job.to.as_str(), &e).await?;
                    let head = self.head(job.to).await?;
                    let mark = self.mark();
                    if let Some(head) = head.filter(|h| h.headers.metadata.get(MARK) == Some(&mark)) {
                        return Ok(Some(head.etag));
                    }
                }
                Err(e) => return Err(self.refused("copying", job.from, &e).into()),
            }
        }
    }

    /// Aborts the upload of a copy, if there is one, until BOS does not know it any more.
    pub(super) async fn end_upload(&self, to: &ObjectKey) -> Result<(), CopyTrouble> {
        /// Each abort may leave parts that were in flight.
        const ABORTS_MAX: u32 = 10;
        let Some(upload) = self.state.lock().uploads.get(to).cloned() else { return Ok(()) };
        for _ in 0..ABORTS_MAX {
            let aborted = self.patiently(to, || self.shared.client.abort(to, &upload.id)).await?;
            if !aborted.map_err(|e| self.refused("taking back the copy", to, &e))? {
                break;
            }
        }
        Ok(self.append(&MoveRecord::UploadEnded { to: to.clone() })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upload::COPY_BYTES_MAX;

    #[test]
    fn parts_are_even_multiples_of_a_mebibyte_within_the_limits() {
        const GIB: u64 = 1 << 30;
        for size in [1, PART_UNIT_BYTES, COPY_BYTES_MAX, COPY_BYTES_MAX + 1, 60 * GIB + 7, 48_800_000_000_000] {
            let parts = part_ranges(size, PART_BYTES);
            assert!(parts.len() <= PART_NUMBER_MAX as usize, "{size}: {} parts", parts.len());
            assert_eq!(parts[0].start, 0);
            assert_eq!(parts.last().unwrap().end, size);
            for pair in parts.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
                assert_eq!(pair[0].len() % PART_UNIT_BYTES, 0);
                assert_eq!(pair[0].len(), parts[0].len(), "even");
            }
            assert!(parts.iter().all(|part| !part.is_empty() && part.len() <= 5_000_000_000), "{size}");
        }
        assert_eq!(part_ranges(5 * GIB, GIB).len(), 5);
    }
}
