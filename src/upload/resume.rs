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

use crate::bos::client::{Body, BosClient, ListedPart, ListedUpload, ObjectHeaders, ObjectMeta, StoredOutcome};
use crate::bos::error::{BosError, BosErrorKind};
use crate::journal::record::Proof;
use crate::object::{
    ByteRange, Checksum, Condition, Crcs, ETag, ObjectKey, PartNumber, Timestamp, UploadId, composed_etag,
};
use crate::posix_meta::MARK;
use crate::upload::verify::local_file::{FileRange, LocalFile, LocalFileError};
use crate::upload::verify::{Verdict, judge_crcs, open};
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
            let mut uploads = persist(options, || find_uploads(client, key)).await?;
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
            let etags = self.fill().await?;
            self.file.check_unchanged()?;
            match self.complete(&etags).await {
                Ok(etag) => return self.prove(&etags, etag).await,
                // A part that was listed a moment ago is not there: list again, and send what is missing.
                Err(ResumeError::Bos(error)) if error.kind == BosErrorKind::InvalidPart && round < ROUNDS_MAX => {
                    log::warn!("{}: {error}; its parts are compared again", self.key);
                    round += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes BOS hold every part of the file. Returns the ETags, by number.
    async fn fill(&mut self) -> Result<Vec<(PartNumber, ETag)>, ResumeError> {
        let listed = persist(self.options, || self.client.list_parts(self.key, &self.upload_id)).await;
        let listed = listed.map_err(|error| self.explain(error))?;
        let layout = infer_boundaries(&listed, self.file.size()).map_err(|error| ResumeError::Boundaries {
            path: self.file.path().to_owned(),
            upload_id: self.upload_id.clone(),
            error,
        })?;
        let held: BTreeMap<PartNumber, ListedPart> = listed.into_iter().map(|part| (part.number, part)).collect();
        let parts: Vec<(PartNumber, ByteRange)> = layout.parts().collect();
        let (kept, sent) = (AtomicU64::new(0), AtomicU64::new(self.sent.values().sum()));
        let this: &Self = self;
        let (kept, sent) = (&kept, &sent);
        let mut done: Vec<(PartNumber, Checksum, ETag, bool)> = stream::iter(parts)
            .map(|(part, range)| {
                let held = held.get(&part);
                async move {
                    let (sum, etag, was_sent) = this.settle_part(part, range, held).await?;
                    let counter = if was_sent { sent } else { kept };
                    counter.fetch_add(sum.len, Ordering::Relaxed);
                    if let Some(progress) = &this.options.progress {
                        progress(ResumeProgress {
                            bytes_total: this.file.size(),
                            bytes_kept: kept.load(Ordering::Relaxed),
                            bytes_sent: sent.load(Ordering::Relaxed),
                        });
                    }
                    Ok::<_, ResumeError>((part, sum, etag, was_sent))
                }
            })
            .buffer_unordered(self.options.concurrency.max(1))
            .try_collect()
            .await?;
        done.sort_by_key(|&(part, ..)| part);
        self.sums = done.iter().map(|&(part, sum, ..)| (part, sum)).collect();
        self.sent.extend(done.iter().filter(|(.., was_sent)| *was_sent).map(|&(part, sum, ..)| (part, sum.len)));
        Ok(done.into_iter().map(|(part, _, etag, _)| (part, etag)).collect())
    }

    /// Keeps or sends one part. Returns what it is, its ETag, and whether it was sent.
    async fn settle_part(
        &self,
        part: PartNumber,
        range: ByteRange,
        held: Option<&ListedPart>,
    ) -> Result<(Checksum, ETag, bool), ResumeError> {
        let sum = match self.sums.get(&part) {
            Some(sum) => *sum,
            None => self.file.checksum(range).await?,
        };
        if let Some(held) = held.filter(|held| held.size == sum.len && held.etag.is_md5(&sum.md5)) {
            return Ok((sum, held.etag.clone(), false));
        }
        let body = Body::Source(Arc::new(FileRange { file: self.file.clone(), range }));
        let stored =
            persist(self.options, || self.client.upload_part(self.key, &self.upload_id, part, body.clone(), &sum.md5));
        let stored = match stored.await {
            Ok(stored) => stored,
            Err(error) => {
                // Content-MD5 no longer fits, or the file ends early: most likely it changed under our hands.
                if matches!(error.kind, BosErrorKind::BadDigest | BosErrorKind::LocalRead) {
                    self.file.check_unchanged()?;
                }
                return Err(self.explain(error));
            }
        };
        if !is_stored_as(&stored, &sum) {
            return Err(ResumeError::PartDiffers { part, etag: stored.etag });
        }
        Ok((sum, stored.etag, true))
    }

    /// Completes, and finds out what became of it where the answer does not tell.
    async fn complete(&self, etags: &[(PartNumber, ETag)]) -> Result<ETag, ResumeError> {
        let mut headers = self.options.headers.clone();
        headers.metadata.insert(MARK.to_owned(), self.mark.clone());
        let mut waits = Waits::new(self.options.patience);
        loop {
            let completed =
                self.client.complete(self.key, &self.upload_id, etags, &headers, &self.options.condition).await;
            let error = match completed {
                Ok(stored) => return Ok(stored.etag),
                Err(error) => error,
            };
            let settled_by_mark = error.is_ambiguous()
                || matches!(error.kind, BosErrorKind::NoSuchUpload | BosErrorKind::PreconditionFailed);
            if settled_by_mark && let Some(etag) = self.find_own_object().await? {
                return Ok(etag);
            }
            if !error.is_transient() || !waits.next(&error).await {
                return Err(self.explain(error));
            }
        }
    }

    /// The ETag of the object, if it is the one that our Complete made.
    async fn find_own_object(&self) -> Result<Option<ETag>, ResumeError> {
        match persist(self.options, || self.client.head_object(self.key)).await {
            Ok(meta) => {
                let ours = meta.headers.metadata.get(MARK) == Some(&self.mark) && meta.size == self.file.size();
                Ok(ours.then_some(meta.etag))
            }
            Err(error) if error.kind == BosErrorKind::NoSuchKey => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn prove(&self, etags: &[(PartNumber, ETag)], etag: ETag) -> Result<ResumeReport, ResumeError> {
        let meta = persist(self.options, || self.client.head_object(self.key)).await?;
        let crcs = self.sums.values().fold(Crcs::default(), |whole, sum| whole.then(sum.crcs, sum.len));
        let parts: Vec<ETag> = etags.iter().map(|(_, etag)| etag.clone()).collect();
        let proof = judge(&meta, &etag, self.file.size(), &crcs, &parts)
            .map_err(|message| ResumeError::Mismatch { key: self.key.clone(), message })?;
        let bytes_sent = self.sent.values().sum();
        let parts_sent = self.sent.len() as u32;
        Ok(ResumeReport {
            upload_id: self.upload_id.clone(),
            size: self.file.size(),
            parts_kept: parts.len() as u32 - parts_sent,
            parts_sent,
            bytes_kept: self.file.size() - bytes_sent,
            bytes_sent,
            etag,
            proof,
        })
    }

    fn explain(&self, error: BosError) -> ResumeError {
        match error.kind {
            BosErrorKind::NoSuchUpload => {
                ResumeError::UploadGone { key: self.key.clone(), upload_id: self.upload_id.clone() }
            }
            _ => error.into(),
        }
    }
}

/// Whether BOS took a part as it was: by MD5, or by a CRC where ETags are no MD5 (encrypted buckets). Content-MD5 was
/// checked by BOS in any case.
fn is_stored_as(stored: &StoredOutcome, sum: &Checksum) -> bool {
    if stored.etag.is_md5(&sum.md5) {
        return true;
    }
    let crcs = [
        stored.crc32c.map(|crc| crc == sum.crcs.crc32c),
        stored.crc64.map(|crc| crc == sum.crcs.crc64),
        stored.crc32.map(|crc| crc == sum.crcs.crc32),
    ];
    crcs.into_iter().flatten().next().unwrap_or(false)
}

/// The proof that the object is what was sent.
fn judge(meta: &ObjectMeta, etag: &ETag, size: u64, crcs: &Crcs, parts: &[ETag]) -> Result<Proof, String> {
    if meta.size != size {
        return Err(format!("it has {} bytes in BOS, {size} here", meta.size));
    }
    if meta.etag != *etag {
        return Err(format!("somebody replaced it at once (ETag {} instead of {etag})", meta.etag));
    }
    match judge_crcs(meta, crcs) {
        Some((Verdict::Proof(proof), _)) => return Ok(proof),
        Some((Verdict::Mismatch(message), _)) => return Err(message),
        Some((Verdict::Unknown(_), _)) | None => {}
    }
    // The rule is a hint, never a disproof: each part was checked when it was sent or kept.
    if composed_etag(parts.iter()) != *etag {
        log::info!("BOS gives no checksum of the whole, and its ETag {etag} follows no known rule");
    }
    Ok(Proof::Composed)
}

/// Waits between tries, growing, within a patience that begins with the first failure.
struct Waits {
    next: Duration,
    waited: Duration,
    patience: Option<Duration>,
}

impl Waits {
    fn new(patience: Option<Duration>) -> Self {
        Self { next: WAIT_MIN, waited: Duration::ZERO, patience }
    }

    /// `false`: the patience is at its end.
    async fn next(&mut self, error: &BosError) -> bool {
        if self.patience.is_some_and(|patience| self.waited + self.next > patience) {
            return false;
        }
        log::warn!("{error}; trying again in {:.0?}", self.next);
        tokio::time::sleep(self.next).await;
        self.waited += self.next;
        self.next = (self.next * 2).min(WAIT_MAX);
        true
    }
}

/// Repeats a call that does no harm when it is repeated, while its trouble can pass.
async fn persist<T, F>(options: &ResumeOptions, mut call: impl FnMut() -> F) -> Result<T, BosError>
where
    F: Future<Output = Result<T, BosError>>,
{
    let mut waits = Waits::new(options.patience);
    loop {
        match call().await {
            Err(error) if error.is_transient() => {
                if !waits.next(&error).await {
                    return Err(error);
                }
            }
            done => return done,
        }
    }
}

#[cfg(test)]
#[path = "resume_tests.rs"]
mod tests;
