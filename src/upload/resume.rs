//! Finishes an upload without any journal: from the source file and what BOS lists of the parts it holds.
//!
//! ```text
//!   find the upload -> list its parts -> infer their boundaries -> hash each range of the file
//!        part in BOS has that MD5: kept       else: sent
//!   file unchanged? -> Complete, with a mark of its own -> HEAD: prove the whole
//! ```

pub mod boundaries;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::bos::client::{Body, BosClient, ListedUpload, ObjectHeaders};
use crate::bos::error::{BosError, BosErrorKind};
use crate::journal::record::Proof;
use crate::object::{ByteRange, Checksum, Condition, ETag, ObjectKey, PartNumber, Timestamp, UploadId};
use crate::transfer::complete::{Completion, Outcome, complete};
use crate::transfer::prove::{ByRule, Expected, MadeAs, Proving, Verdict, prove};
use crate::transfer::retry::persist;
use crate::transfer::{Before, Held, Looks, PartAnswer, Patience, Plan, Unanswered, Upload, settle};
use crate::upload::verify::local_file::{FileRange, LocalFile, LocalFileError};
use crate::upload::verify::open;
use boundaries::{BoundaryError, infer_boundaries};

/// Pages of ListMultipartUploads read at most to find the uploads of one key.
const UPLOAD_PAGES_MAX: usize = 1000;
/// How often parts that BOS turns out not to have are sent again.
const ROUNDS_MAX: u32 = 3;
/// Waits between tries of a call that may yet succeed: first and longest.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How to finish an upload.
#[derive(Clone)]
pub struct ResumeOptions {
    /// Parts hashed and sent side by side.
    pub concurrency: usize,
    /// Their metadata goes on Complete. The rest (content type, storage class) was fixed by Initiate.
    pub headers: ObjectHeaders,
    /// What Complete demands of the key.
    pub condition: Condition,
    /// How long one call is tried again and again while the trouble can pass; `None`: without limit.
    pub patience: Option<Duration>,
    /// Called whenever a part is done.
    pub progress: Option<Arc<dyn Fn(ResumeProgress) + Send + Sync>>,
}

impl Default for ResumeOptions {
    fn default() -> Self {
        Self {
            concurrency: 8,
            headers: ObjectHeaders::default(),
            condition: Condition::Any,
            patience: None,
            progress: None,
        }
    }
}

/// How far a resume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeProgress {
    /// Bytes of the file.
    pub bytes_total: u64,
    /// Bytes that BOS held already.
    pub bytes_kept: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
}

/// A finished upload.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ResumeReport {
    /// The upload.
    pub upload_id: UploadId,
    /// Size of the object, bytes.
    pub size: u64,
    /// Parts that BOS held already.
    pub parts_kept: u32,
    /// Parts sent now.
    pub parts_sent: u32,
    /// Bytes that BOS held already.
    pub bytes_kept: u64,
    /// Bytes sent now.
    pub bytes_sent: u64,
    /// ETag of the object.
    pub etag: ETag,
    /// How it was proved: [`Proof::Composed`] where BOS gives no checksum of the whole.
    pub proof: Proof,
}

/// Why an upload was not finished. Parts that BOS holds stay there, unless said otherwise.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResumeError {
    /// BOS refused a call, or was not reached for longer than the patience.
    #[error("{0}; the parts that arrived are kept, run the command again to go on")]
    Bos(BosError),
    /// The source file.
    #[error("{0}")]
    Local(#[from] LocalFileError),
    /// There is no unfinished upload of this key.
    #[error("BOS has no unfinished upload of {0}; copy the file instead")]
    NoUpload(ObjectKey),
    /// Several, and none was named.
    #[error("BOS has {} unfinished uploads of {key}; name one with --upload-id:{}", .uploads.len(), listed(.uploads))]
    SeveralUploads {
        /// Of which key.
        key: ObjectKey,
        /// All of them.
        uploads: Vec<ListedUpload>,
    },
    /// The named upload is not there.
    #[error("upload {upload_id} of {key} is gone: it was completed, aborted, or never was")]
    UploadGone {
        /// Of which key.
        key: ObjectKey,
        /// The named one.
        upload_id: UploadId,
    },
    /// The parts do not fit the file.
    #[error("{} and upload {upload_id}: {error}; nothing was sent", .path.display())]
    Boundaries {
        /// The source file.
        path: PathBuf,
        /// The upload.
        upload_id: UploadId,
        /// Why.
        error: BoundaryError,
    },
    /// BOS stored a part with another checksum than was sent.
    #[error("BOS answered part {part} with ETag {etag}, which is not what was sent; nothing was completed")]
    PartDiffers {
        /// Which part.
        part: PartNumber,
        /// What BOS said.
        etag: ETag,
    },
    /// Completed, and not what the file is.
    #[error("{key} was completed, but {message}; upload the file anew")]
    Mismatch {
        /// Key of the object.
        key: ObjectKey,
        /// How it differs.
        message: String,
    },
}

impl From<BosError> for ResumeError {
    fn from(error: BosError) -> Self {
        Self::Bos(error)
    }
}

fn listed(uploads: &[ListedUpload]) -> String {
    let now_s = Timestamp::now().sec;
    let line = |upload: &ListedUpload| format!("\n  {}  begun {} ago", upload.upload_id, age(now_s - upload.initiated));
    uploads.iter().map(line).collect()
}

fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

/// All unfinished uploads of exactly `key`, the oldest first.
///
/// # Errors
/// BOS cannot be asked.
pub async fn find_uploads(client: &BosClient, key: &ObjectKey) -> Result<Vec<ListedUpload>, BosError> {
    let mut found = Vec::new();
    let mut next = None;
    for _ in 0..UPLOAD_PAGES_MAX {
        let page = client.list_uploads(key.as_str(), next.as_ref()).await?;
        found.extend(page.uploads.into_iter().filter(|upload| upload.key == key.as_str()));
        match page.next {
            // Sorted by key, and every other key with this prefix comes later.
            Some(marker) if marker.key == key.as_str() => next = Some(marker),
            _ => break,
        }
    }
    found.sort_by_key(|upload| upload.initiated);
    Ok(found)
}

/// Finishes the upload of `key` from the file it was made from.
///
/// Without `upload_id`, the only unfinished upload of the key is taken. Parts that BOS holds and that equal their range of
/// the file are kept; all others are sent. The result is proved as [`ResumeReport::proof`] says.
///
/// # Errors
/// [`ResumeError`]; the upload is still there unless the error says otherwise.
pub async fn resume_from_file(
    client: &BosClient,
    key: &ObjectKey,
    upload_id: Option<UploadId>,
    file: &Path,
    options: &ResumeOptions,
) -> Result<ResumeReport, ResumeError> {
    let file = open(file).await?;
    let upload_id = match upload_id {
        Some(upload_id) => upload_id,
        None => {
            let mut uploads = persist(&mut Waits::new(options, None), || find_uploads(client, key)).await??;
            match (uploads.pop(), uploads.is_empty()) {
                (None, _) => return Err(ResumeError::NoUpload(key.clone())),
                (Some(only), true) => only.upload_id,
                (Some(last), false) => {
                    uploads.push(last);
                    return Err(ResumeError::SeveralUploads { key: key.clone(), uploads });
                }
            }
        }
    };
    let mark = format!("{:016x}.1", rand::random::<u64>());
    let mut resume =
        Resume { client, key, upload_id, file, options, mark, sums: BTreeMap::new(), sent: BTreeMap::new() };
    resume.run().await
}

/// One resume on its way.
struct Resume<'a> {
    client: &'a BosClient,
    key: &'a ObjectKey,
    upload_id: UploadId,
    file: Arc<LocalFile>,
    options: &'a ResumeOptions,
    /// Tells our Complete from anyone else's.
    mark: String,
    /// What each part of the file is, once hashed.
    sums: BTreeMap<PartNumber, Checksum>,
    /// Bytes of the parts sent, once or again.
    sent: BTreeMap<PartNumber, u64>,
}

impl Resume<'_> {
    async fn run(&mut self) -> Result<ResumeReport, ResumeError> {
        let mut round = 1;
        loop {
            let parts = self.fill().await?;
            let expected = Expected::composed(self.file.size(), &parts).map_err(|error| self.uneven(error.into()))?;
            self.file.check_unchanged()?;
            match self.complete(&parts).await? {
                Outcome::Made(made) => return self.prove(parts.len(), made.etag, &expected).await,
                // A part that was listed a moment ago is not there: list again, and send what is missing.
                Outcome::PartsMissing(error) if round < ROUNDS_MAX => {
                    log::warn!("{}: {error}; its parts are compared again", self.key);
                    round += 1;
                }
                Outcome::PartsMissing(error)
                | Outcome::UploadGone(error)
                | Outcome::Refused(error)
                | Outcome::Unanswered(error) => return Err(self.explain(error)),
                Outcome::Differs { what, .. } => return Err(self.mismatch(what)),
            }
        }
    }

    fn upload(&self) -> Upload<'_> {
        Upload { client: self.client, key: self.key, id: &self.upload_id }
    }

    fn waits(&self) -> Waits<'_> {
        Waits::new(self.options, Some(self))
    }

    /// Makes BOS hold every part of the file. Returns what it holds, by number.
    async fn fill(&mut self) -> Result<Vec<(PartNumber, Held)>, ResumeError> {
        let upload = self.upload();
        let listed = persist(&mut self.waits(), || settle::parts(&upload)).await??.ok_or_else(|| self.gone())?;
        let layout = infer_boundaries(&listed, self.file.size()).map_err(|error| self.uneven(error))?;
        let plan = Plan::of_parts(layout.parts(), self.file.size()).map_err(|error| self.uneven(error.into()))?;
        let held: BTreeMap<PartNumber, Held> = listed.iter().map(|part| (part.number, Held::from(part))).collect();
        let (kept, sent) = (AtomicU64::new(0), AtomicU64::new(self.sent.values().sum()));
        let this: &Self = self;
        let (kept, sent) = (&kept, &sent);
        let mut done: Vec<(PartNumber, Checksum, Held, bool)> = stream::iter(plan.pieces())
            .map(|piece| {
                let held = held.get(&piece.number);
                async move {
                    let (sum, held, was_sent) = this.settle_part(piece.number, piece.range, held).await?;
                    let counter = if was_sent { sent } else { kept };
                    counter.fetch_add(sum.len, Ordering::Relaxed);
                    if let Some(progress) = &this.options.progress {
                        progress(ResumeProgress {
                            bytes_total: this.file.size(),
                            bytes_kept: kept.load(Ordering::Relaxed),
                            bytes_sent: sent.load(Ordering::Relaxed),
                        });
                    }
                    Ok::<_, ResumeError>((piece.number, sum, held, was_sent))
                }
            })
            .buffer_unordered(self.options.concurrency.max(1))
            .try_collect()
            .await?;
        done.sort_by_key(|&(part, ..)| part);
        self.sums = done.iter().map(|&(part, sum, ..)| (part, sum)).collect();
        self.sent.extend(done.iter().filter(|(.., was_sent)| *was_sent).map(|&(part, sum, ..)| (part, sum.len)));
        Ok(done.into_iter().map(|(part, _, held, _)| (part, held)).collect())
    }

    /// Keeps or sends one part. Returns what it is, what BOS holds, and whether it was sent.
    async fn settle_part(
        &self,
        part: PartNumber,
        range: ByteRange,
        held: Option<&Held>,
    ) -> Result<(Checksum, Held, bool), ResumeError> {
        let sum = match self.sums.get(&part) {
            Some(sum) => *sum,
            None => self.file.checksum(range).await?,
        };
        if let Some(held) = held.filter(|held| held.equals(&sum)) {
            return Ok((sum, Held { sum: Some(sum), ..held.clone() }, false));
        }
        let body = Body::Source(Arc::new(FileRange { file: self.file.clone(), range }));
        let upload = self.upload();
        // No other body of this number is on its way: whoever began the upload is not there any more.
        let send = || upload.send_part(part, body.clone(), &sum, Unanswered::None);
        match persist(&mut self.waits(), send).await?.map_err(|error| self.explain(error))? {
            PartAnswer::Held(held) | PartAnswer::Contested(held) => Ok((sum, held, true)),
            PartAnswer::Differs { etag, .. } => Err(ResumeError::PartDiffers { part, etag }),
            PartAnswer::Damaged(error)
            | PartAnswer::UploadGone(error)
            | PartAnswer::SourceChanged(error)
            | PartAnswer::SourceGone(error)
            | PartAnswer::CopyRefused(error) => Err(self.explain(error)),
        }
    }

    /// Completes, and finds out what became of it where the answer does not tell.
    async fn complete(&self, parts: &[(PartNumber, Held)]) -> Result<Outcome, ResumeError> {
        let parts: Vec<(PartNumber, ETag)> = parts.iter().map(|(part, held)| (*part, held.etag.clone())).collect();
        let completion = Completion {
            upload: self.upload(),
            parts: &parts,
            headers: &self.options.headers,
            mark: &self.mark,
            size: self.file.size(),
            condition: &self.options.condition,
        };
        complete(&completion, &mut self.waits()).await
    }

    async fn prove(&self, parts_total: usize, etag: ETag, expected: &Expected) -> Result<ResumeReport, ResumeError> {
        let made = MadeAs { etag: &etag, mark: &self.mark, before: &Before::of(&self.options.condition) };
        let looks = Looks::before_doubt();
        let proof = match prove(self.client, self.key, &made, expected, looks, &mut self.waits()).await? {
            Proving::Judged(verdict, _) => self.judge(verdict)?,
            Proving::NotYet { what, .. } => {
                return Err(self.mismatch(format!("{what}: it may have been removed at once")));
            }
            Proving::Other(meta) => {
                let message = format!("somebody replaced it at once (ETag {} instead of {etag})", meta.etag);
                return Err(self.mismatch(message));
            }
        };
        let bytes_sent = self.sent.values().sum();
        let parts_sent = self.sent.len() as u32;
        Ok(ResumeReport {
            upload_id: self.upload_id.clone(),
            size: self.file.size(),
            parts_kept: parts_total as u32 - parts_sent,
            parts_sent,
            bytes_kept: self.file.size() - bytes_sent,
            bytes_sent,
            etag,
            proof,
        })
    }

    /// The proof that the object is what was sent.
    fn judge(&self, verdict: Verdict) -> Result<Proof, ResumeError> {
        match verdict {
            Verdict::Proved(_) => Ok(Proof::Proved),
            Verdict::Composed { .. } => Ok(Proof::Composed),
            Verdict::ChecksumOdd { etag: ByRule::Fits, what } => {
                log::warn!(
                    "{}: {what}; each part was checked and the ETag is composed of theirs, so BOS means something else by it",
                    self.key
                );
                Ok(Proof::Composed)
            }
            Verdict::ChecksumOdd { what, .. } | Verdict::Mismatch(what) => Err(self.mismatch(what)),
        }
    }

    fn mismatch(&self, message: String) -> ResumeError {
        ResumeError::Mismatch { key: self.key.clone(), message }
    }

    fn gone(&self) -> ResumeError {
        ResumeError::UploadGone { key: self.key.clone(), upload_id: self.upload_id.clone() }
    }

    fn uneven(&self, error: BoundaryError) -> ResumeError {
        let (path, upload_id) = (self.file.path().to_owned(), self.upload_id.clone());
        ResumeError::Boundaries { path, upload_id, error }
    }

    fn explain(&self, error: BosError) -> ResumeError {
        // Content-MD5 no longer fits, or the file ends early: most likely it changed under our hands.
        if matches!(error.kind, BosErrorKind::BadDigest | BosErrorKind::LocalRead)
            && let Err(changed) = self.file.check_unchanged()
        {
            return changed.into();
        }
        if error.kind == BosErrorKind::NoSuchUpload { self.gone() } else { error.into() }
    }
}

/// Waits between tries, growing, within a patience that begins with the first failure.
struct Waits<'a> {
    next: Duration,
    waited: Duration,
    patience: Option<Duration>,
    /// Whose upload it is; `None`: not known yet.
    resume: Option<&'a Resume<'a>>,
}

impl<'a> Waits<'a> {
    fn new(options: &ResumeOptions, resume: Option<&'a Resume<'a>>) -> Self {
        Self { next: WAIT_MIN, waited: Duration::ZERO, patience: options.patience, resume }
    }
}

impl Patience for Waits<'_> {
    type Error = ResumeError;

    async fn pause(&mut self, error: &BosError) -> Result<bool, ResumeError> {
        if self.patience.is_some_and(|patience| self.waited + self.next > patience) {
            return Ok(false);
        }
        log::warn!("{error}; trying again in {:.0?}", self.next);
        tokio::time::sleep(self.next).await;
        self.waited += self.next;
        self.next = (self.next * 2).min(WAIT_MAX);
        Ok(true)
    }

    fn refused(&self, error: BosError) -> ResumeError {
        match self.resume {
            Some(resume) => resume.explain(error),
            None => error.into(),
        }
    }
}

#[cfg(test)]
#[path = "resume_tests.rs"]
mod tests;
