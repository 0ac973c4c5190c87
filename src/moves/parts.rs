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

use super::copy::{CopyJob, CopyTrouble, Made, PART_UNIT_BYTES, part_ranges};
use super::record::{MoveRecord, PartsBy};
use super::running::{Move, Stopped};
use super::state::CopyUpload;
use crate::bos::client::{Body, CopyOutcome, ObjectHeaders};
use crate::bos::{BosError, BosErrorKind};
use crate::object::{ByteRange, Checksum, ETag, ObjectKey, PART_NUMBER_MAX, PartNumber, UploadId};
use crate::posix_meta::MARK;
use crate::upload::WriteError;

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
    Whole(Vec<(PartNumber, ETag)>),
    /// The upload is gone.
    Gone,
    /// BOS does not copy this object.
    CopyRefused,
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
        let client = &self.shared.client;
        let mut headers = match job.replace {
            Some(headers) => headers.clone(),
            None => match self.head(job.from).await? {
                Some(head) if head.etag == job.source.etag => head.headers,
                Some(_) => return Err(CopyTrouble::SourceChanged),
                None => return Err(CopyTrouble::SourceGone),
            },
        };
        headers.metadata.insert(MARK.to_owned(), self.mark());
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
            let put = client.put_object(job.to, Body::Bytes(bytes), &sum.md5, &headers, job.condition).await;
            match put {
                Ok(outcome) if outcome.is_of(&sum) => return Ok(outcome.etag),
                Ok(outcome) => log::warn!("{}: stored as ETag {}, which is not what was sent", job.to, outcome.etag),
                Err(e) if e.kind == BosErrorKind::PreconditionFailed => {}
                Err(e) if e.is_transient() || e.is_ambiguous() || e.kind == BosErrorKind::BadDigest => {
                    self.back_off(job.to.as_str(), &e).await?;
                }
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
            let mut headers = job.replace.unwrap_or(&source.headers).clone();
            headers.metadata.insert(MARK.to_owned(), self.mark());
            let known = self.state.lock().uploads.get(job.to).cloned();
            let by_now = known.as_ref().map_or(by, |upload| upload.by);
            // Looked at before anything is sent.
            let ranges =
                part_ranges(job.source.size, by_now.part_bytes, if by_now.sent { SENT_BYTES_MAX } else { u64::MAX });
            let Some(ranges) = ranges else { return Err(too_large(job, by_now)) };
            let upload = match known {
                Some(upload) => upload,
                None => self.begin_upload(job, &headers, by, source.appendable).await?,
            };
            let copied = match self.make_parts(job, &upload, ranges).await {
                Ok(Parts::Whole(parts)) => self.complete_copy(job, &upload.id, &parts, &headers).await,
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
                Ok(Some(etag)) => {
                    self.check_composed(job, &etag).await?;
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
        loop {
            self.append(&MoveRecord::Initiating { to: job.to.clone() })?;
            let answered = tokio::select! {
                answered = initiate() => answered,
                () = self.shared.stop.cancelled() => return Err(CopyTrouble::Stopped),
            };
            match answered {
                Ok(id) => {
                    *self.trouble.lock() = super::running::Trouble::default();
                    self.append(&MoveRecord::Initiated { to: job.to.clone(), upload_id: id.clone(), by })?;
                    return Ok(CopyUpload { id, by, parts: BTreeMap::new() });
                }
                Err(e) if e.is_transient() || e.is_ambiguous() => self.back_off(job.to.as_str(), &e).await?,
                Err(e) => return Err(self.refused("copying", job.from, &e).into()),
            }
        }
    }

    /// All parts with their ETags, those that are there already without a request.
    async fn make_parts(
        &self,
        job: CopyJob<'_>,
        upload: &CopyUpload,
        ranges: Vec<ByteRange>,
    ) -> Result<Parts, CopyTrouble> {
        let numbered: Vec<_> = (1..).filter_map(PartNumber::new).zip(ranges).collect();
        let missing: Vec<_> =
            numbered.iter().filter(|(number, _)| !upload.parts.contains_key(number)).copied().collect();
        let mut parts = upload.parts.clone();
        let made = missing.into_iter().map(|(number, range)| async move {
            let _slot = self.shared.slot().await?;
            Ok::<_, CopyTrouble>((number, self.make_part(job, upload, number, range).await?))
        });
        let at_once = if upload.by.sent { SENT_AT_ONCE } else { self.shared.copies_max };
        let mut made = stream::iter(made).buffer_unordered(at_once);
        // All are awaited, also behind a failure: none must act after the upload was aborted.
        let (mut trouble, mut gone, mut refused) = (None, false, false);
        while let Some(part) = made.next().await {
            let result = part.and_then(|(part, made)| match made {
                Ok(etag) => {
                    self.append(&MoveRecord::PartCopied { to: job.to.clone(), part, etag: etag.clone() })?;
                    parts.insert(part, etag);
                    Ok(())
                }
                Err(e) => {
                    gone |= e.kind == BosErrorKind::NoSuchUpload;
                    refused |= e.is_copy_refused() && !upload.by.sent;
                    Err(self.part_trouble(job, &e))
                }
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
        // Exactly the ranges, which add up to the object: nothing that an earlier try left besides counts.
        let listed = numbered.iter().map(|(number, _)| Some((*number, parts.get(number)?.clone())));
        Ok(listed.collect::<Option<Vec<_>>>().map_or(Parts::Gone, Parts::Whole))
    }

    async fn make_part(
        &self,
        job: CopyJob<'_>,
        upload: &CopyUpload,
        number: PartNumber,
        range: ByteRange,
    ) -> Result<Result<ETag, BosError>, CopyTrouble> {
        let client = &self.shared.client;
        if !upload.by.sent {
            let if_match = Some(&job.source.etag);
            let call = || client.upload_part_copy(job.to, &upload.id, number, job.from, range, if_match);
            return Ok(self.patiently(job.from, call).await?.map(|CopyOutcome { etag, .. }| etag));
        }
        let bytes = match self.read(job, range).await? {
            Ok(bytes) => bytes,
            Err(e) => return Ok(Err(e)),
        };
        let sum = hash(&bytes).await?;
        let mut damaged = 0;
        loop {
            let call = || client.upload_part(job.to, &upload.id, number, Body::Bytes(bytes.clone()), &sum.md5);
            match self.patiently(job.to, call).await? {
                Ok(outcome) if outcome.is_of(&sum) => return Ok(Ok(outcome.etag)),
                Err(e) if e.kind != BosErrorKind::BadDigest || damaged + 1 == DAMAGED_MAX => return Ok(Err(e)),
                Ok(outcome) if damaged + 1 == DAMAGED_MAX => {
                    let message =
                        format!("part {number} came back as ETag {}, which is not what was sent", outcome.etag);
                    return Ok(Err(BosError::new(BosErrorKind::BadDigest, message)));
                }
                _ => damaged += 1,
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

    /// `None`: the upload is gone or does not have its parts; the target tells what became of it.
    async fn complete_copy(
        &self,
        job: CopyJob<'_>,
        upload: &UploadId,
        parts: &[(PartNumber, ETag)],
        headers: &ObjectHeaders,
    ) -> Result<Option<ETag>, CopyTrouble> {
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
mod tests {
    use super::*;

    #[test]
    fn an_object_that_is_sent_again_has_parts_that_fit_into_memory_or_is_refused() {
        for size in [WHOLE_BYTES_MAX + 1, 100 << 20, 80_000 << 20, 600 << 30] {
            let by = sent_again(size);
            let ranges = part_ranges(size, by.part_bytes, SENT_BYTES_MAX).unwrap();
            assert_eq!(ranges.iter().map(ByteRange::len).sum::<u64>(), size);
            assert!(
                ranges.len() <= PART_NUMBER_MAX as usize && ranges.iter().all(|range| range.len() <= SENT_BYTES_MAX)
            );
        }
        assert_eq!(part_ranges(700 << 30, sent_again(700 << 30).part_bytes, SENT_BYTES_MAX), None);
    }
}
