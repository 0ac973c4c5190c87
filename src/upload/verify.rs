//! Proves an object in BOS against a local file, or against checksums that a journal remembers, without downloading it
//! where BOS gives a checksum.

pub mod local_file;

use std::path::Path;
use std::sync::Arc;

use crate::bos::client::{BosClient, ObjectMeta};
use crate::bos::error::{BosError, BosErrorKind};
use crate::journal::record::Proof;
use crate::object::{ByteRange, Checksum, Crcs, ETag, Hasher, Md5, ObjectKey};
use crate::transfer::prove::{self, Pair, Sums};
use crate::write::part_plan::{PART_BYTES_DEFAULT, PART_BYTES_MIN, PartPlan};
use local_file::{LocalFile, LocalFileError};

/// Bytes hashed by one thread at a time, where only CRCs are wanted: they can be combined.
const HASH_RANGE_BYTES: u64 = 64 << 20;
/// Uniform part sizes that tools are known to use, MiB: bosfs and BOSFS2, Go and bos-hdfs, bcecmd, JS and Python.
const KNOWN_PART_MIB: [u64; 10] = [8, 16, 12, 10, 5, 32, 64, 100, 20, 4];
/// Most parts that an ETag is recomputed for.
const PARTS_MAX: u64 = 10_000;
/// How often a download goes on after its body broke off without a single byte.
const DOWNLOAD_TRIES_MAX: u32 = 5;

/// Told (bytes done, bytes in all) while a file is hashed or an object downloaded.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// How to verify.
#[derive(Clone, Default)]
pub struct VerifyOptions {
    /// Where BOS gives no checksum that can be used: read the object and compare its bytes.
    pub download: bool,
    /// Ranges hashed side by side; 0: as many as there are processors.
    pub concurrency: usize,
    /// For a progress bar.
    pub progress: Option<Progress>,
}

/// The outcome of a comparison.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The object is what was compared with; how sure that is.
    Proof(Proof),
    /// It is not; how it differs.
    Mismatch(String),
    /// BOS gives nothing to compare with; what would help.
    Unknown(String),
}

/// What was found out about one object.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct VerifyReport {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its ETag.
    pub etag: String,
    /// The outcome.
    pub verdict: Verdict,
    /// What was compared: `CRC32C`, `CRC64`, `CRC32`, `MD5`, `ETag of 12 parts of 8388608 bytes`, `every byte`, `size`.
    pub compared: String,
}

/// Why nothing could be found out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VerifyError {
    /// BOS.
    #[error("{0}")]
    Bos(#[from] BosError),
    /// The local file.
    #[error("{0}")]
    Local(#[from] LocalFileError),
    /// Neither a file nor a record.
    #[error("there is nothing to compare {0} with: no journal here knows it; give the file with --against")]
    NothingToCompareWith(ObjectKey),
}

/// Compares what BOS says of an object of the right size with the CRCs of the whole, by the strongest one that BOS gives.
/// `None`: it gives none.
pub fn judge_crcs(meta: &ObjectMeta, crcs: &Crcs) -> Option<(Verdict, &'static str)> {
    let pair = Sums::strongest(&meta.into(), &(*crcs).into())?;
    let Pair { by, given, expected } = pair;
    if pair.fits() {
        return Some((Verdict::Proof(Proof::Proved), by.name()));
    }
    Some((Verdict::Mismatch(format!("its {} in BOS is {given}, here {expected}", by.name())), by.name()))
}

/// Proves the object `key` against the file `against`, or else against `record`: CRCs and size of the whole.
///
/// # Errors
/// BOS does not answer or has no such object, the file cannot be read or changes meanwhile, or neither is given.
/// That the object differs is no error but a [`Verdict`].
pub async fn verify(
    client: &BosClient,
    key: &ObjectKey,
    against: Option<&Path>,
    record: Option<(Crcs, u64)>,
    options: &VerifyOptions,
) -> Result<VerifyReport, VerifyError> {
    let meta = client.head_object(key).await?;
    let (verdict, compared) = match (against, record) {
        (Some(path), _) => {
            let file = open(path).await?;
            let outcome = against_file(client, key, &meta, &file, options).await?;
            file.check_unchanged()?;
            outcome
        }
        (None, Some((crcs, size))) => against_record(client, key, &meta, &crcs, size, options).await?,
        (None, None) => return Err(VerifyError::NothingToCompareWith(key.clone())),
    };
    Ok(VerifyReport { key: key.to_string(), size: meta.size, etag: meta.etag.to_string(), verdict, compared })
}

/// Opens a local file on a blocking thread.
pub(super) async fn open(path: &Path) -> Result<Arc<LocalFile>, LocalFileError> {
    let owned = path.to_owned();
    tokio::task::spawn_blocking(move || LocalFile::open(&owned))
        .await
        .unwrap_or_else(|error| Err(LocalFileError::Unreadable { path: path.to_owned(), message: error.to_string() }))
}

type Outcome = (Verdict, String);

async fn against_file(
    client: &BosClient,
    key: &ObjectKey,
    meta: &ObjectMeta,
    file: &Arc<LocalFile>,
    options: &VerifyOptions,
) -> Result<Outcome, VerifyError> {
    let size = file.size();
    if meta.size != size {
        return Ok(wrong_size(meta, size));
    }
    if meta.crc32c.is_some() || meta.crc64.is_some() || meta.crc32.is_some() {
        let crcs = crcs_of(file, options).await?;
        if let Some((verdict, name)) = judge_crcs(meta, &crcs) {
            return Ok((verdict, name.to_owned()));
        }
    }
    if Md5::from_hex(meta.etag.as_str()).is_some() {
        let sums = hash(file, vec![ByteRange::new(0, size)], options).await?;
        if sums.iter().any(|sum| meta.etag.is_md5(&sum.md5)) {
            return Ok((Verdict::Proof(Proof::Proved), "MD5".to_owned()));
        }
        // Not a mismatch yet: the ETag of an encrypted object looks like an MD5, too.
    } else if let Some(compared) = composed_of(file, &meta.etag, options).await? {
        return Ok((Verdict::Proof(Proof::Composed), compared));
    }
    if options.download {
        return download(client, key, meta, Some(file), None, options).await;
    }
    Ok(unknown())
}

async fn against_record(
    client: &BosClient,
    key: &ObjectKey,
    meta: &ObjectMeta,
    crcs: &Crcs,
    size: u64,
    options: &VerifyOptions,
) -> Result<Outcome, VerifyError> {
    if meta.size != size {
        return Ok(wrong_size(meta, size));
    }
    match judge_crcs(meta, crcs) {
        Some((verdict, name)) => Ok((verdict, name.to_owned())),
        None if options.download => download(client, key, meta, None, Some(crcs), options).await,
        None => Ok(unknown()),
    }
}

fn wrong_size(meta: &ObjectMeta, size: u64) -> Outcome {
    (Verdict::Mismatch(format!("it has {} bytes in BOS, {size} here", meta.size)), "size".to_owned())
}

fn unknown() -> Outcome {
    let advice = "the sizes agree, but BOS gives no checksum of this object; --download compares every byte";
    (Verdict::Unknown(advice.to_owned()), "size".to_owned())
}

fn at_once(options: &VerifyOptions) -> usize {
    match options.concurrency {
        0 => std::thread::available_parallelism().map_or(2, usize::from),
        n => n,
    }
}

async fn hash(
    file: &Arc<LocalFile>,
    ranges: Vec<ByteRange>,
    options: &VerifyOptions,
) -> Result<Vec<Checksum>, LocalFileError> {
    let done = std::sync::atomic::AtomicU64::new(0);
    let size = file.size();
    let report = |len: u64| {
        let sum = done.fetch_add(len, std::sync::atomic::Ordering::Relaxed) + len;
        if let Some(progress) = &options.progress {
            progress(sum.min(size), size);
        }
    };
    file.checksums(ranges, at_once(options), &report).await
}

/// CRCs of the whole file, its ranges hashed side by side.
async fn crcs_of(file: &Arc<LocalFile>, options: &VerifyOptions) -> Result<Crcs, LocalFileError> {
    let size = file.size();
    let starts = (0..size.div_ceil(HASH_RANGE_BYTES)).map(|index| index * HASH_RANGE_BYTES);
    let ranges = starts.map(|start| ByteRange::new(start, size.min(start + HASH_RANGE_BYTES))).collect();
    let sums = hash(file, ranges, options).await?;
    Ok(prove::crcs_of(&sums))
}

/// How the file was cut, if some known way gives `etag`.
async fn composed_of(
    file: &Arc<LocalFile>,
    etag: &ETag,
    options: &VerifyOptions,
) -> Result<Option<String>, LocalFileError> {
    for ranges in likely_cuts(file.size()) {
        let first = ranges.first().map_or(0, ByteRange::len);
        let sums = hash(file, ranges, options).await?;
        if prove::etag_of(&sums) == *etag {
            return Ok(Some(format!("ETag of {} parts of {first} bytes", sums.len())));
        }
    }
    Ok(None)
}

/// The ways in which tools cut a file of `size` bytes into two parts or more, each once.
fn likely_cuts(size: u64) -> Vec<Vec<ByteRange>> {
    let of_plan = |plan: PartPlan| -> Vec<ByteRange> {
        (1..=plan.part_count(size))
            .filter_map(crate::object::PartNumber::new)
            .map(|part| plan.range_in(part, size))
            .collect()
    };
    let uniform = |bytes: u64| -> Vec<ByteRange> {
        if size.div_ceil(bytes) > PARTS_MAX {
            return Vec::new();
        }
        (0..size.div_ceil(bytes)).map(|i| ByteRange::new(i * bytes, size.min((i + 1) * bytes))).collect()
    };
    let plans = [
        PartPlan::growing(PART_BYTES_DEFAULT),
        PartPlan::for_length_from(size, PART_BYTES_DEFAULT),
        PartPlan::growing(PART_BYTES_MIN),
    ];
    let mut cuts: Vec<Vec<ByteRange>> = Vec::new();
    for cut in plans.into_iter().map(of_plan).chain(KNOWN_PART_MIB.map(|mib| uniform(mib << 20))) {
        let whole = cut.last().is_some_and(|last| last.end == size);
        if whole && cut.len() > 1 && !cuts.contains(&cut) {
            cuts.push(cut);
        }
    }
    cuts
}

/// Reads the object and compares it with the file's bytes, or its CRCs with those given.
async fn download(
    client: &BosClient,
    key: &ObjectKey,
    meta: &ObjectMeta,
    file: Option<&Arc<LocalFile>>,
    crcs: Option<&Crcs>,
    options: &VerifyOptions,
) -> Result<Outcome, VerifyError> {
    let compared = "every byte".to_owned();
    let mut hasher = Hasher::new();
    let (mut offset, mut idle_tries) = (0, 0);
    while offset < meta.size {
        let range = (offset > 0).then(|| ByteRange::new(offset, meta.size));
        // Of one and the same object throughout: a change underneath is an error of its own.
        let mut object = client.get_object(key, range, Some(&meta.etag)).await?;
        let began_at = offset;
        loop {
            let piece = match object.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                // Goes on where it broke off, as long as bytes come at all.
                Err(error) if error.kind == BosErrorKind::Network => {
                    idle_tries = if offset > began_at { 0 } else { idle_tries + 1 };
                    if idle_tries >= DOWNLOAD_TRIES_MAX {
                        return Err(error.into());
                    }
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let at = ByteRange::at(offset, piece.len() as u64);
            if let Some(file) = file {
                if let Some(first) = first_difference(file, at, &piece).await? {
                    let message = format!("byte {first} differs (counted from 0)");
                    return Ok((Verdict::Mismatch(message), compared));
                }
            } else {
                hasher.update(&piece);
            }
            offset = at.end;
            if let Some(progress) = &options.progress {
                progress(offset, meta.size);
            }
        }
    }
    let differs = crcs.is_some_and(|crcs| *crcs != hasher.finish().crcs);
    let verdict = match differs {
        true => Verdict::Mismatch("its checksums are not those of the journal".to_owned()),
        false => Verdict::Proof(Proof::Proved),
    };
    Ok((verdict, compared))
}

async fn first_difference(
    file: &Arc<LocalFile>,
    range: ByteRange,
    piece: &bytes::Bytes,
) -> Result<Option<u64>, LocalFileError> {
    let (file, piece) = (file.clone(), piece.clone());
    let path = file.path().to_owned();
    let compared = tokio::task::spawn_blocking(move || {
        let (mut at, mut found) = (0, None);
        file.read(range, |local| {
            let remote = &piece[at..at + local.len()];
            if found.is_none() && remote != local {
                let inner = remote.iter().zip(local).position(|(a, b)| a != b).unwrap_or(0);
                found = Some(range.start + (at + inner) as u64);
            }
            at += local.len();
        })?;
        Ok(found)
    });
    compared.await.unwrap_or_else(|error| Err(LocalFileError::Unreadable { path, message: error.to_string() }))
}

#[cfg(test)]
#[path = "verify_tests.rs"]
pub(crate) mod tests;
