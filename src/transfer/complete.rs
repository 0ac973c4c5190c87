//! Making the object: PutObject of a whole one, Complete of parts, and the end of an upload.

use std::time::Instant;

use super::prove::{Given, judge_body};
use super::retry::{Act, After, Patience, after, persist};
use super::settle::{Found, look};
use super::{Upload, retry};
use crate::bos::client::{Body, ObjectHeaders, StoredOutcome, stored_between};
use crate::bos::{BosClient, BosError, BosErrorKind};
use crate::object::{Checksum, Condition, ETag, ObjectKey, PartNumber};
use crate::posix_meta::MARK;

/// Aborts of one upload at most: each may leave parts that were in flight (BOS docs, AbortMultipartUpload).
const ABORTS_MAX: u32 = 10;

/// What tells one publication of a key from everything else that may be there.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The mark that the object carries; `None`: it was not sent yet.
    pub mark: Option<&'a str>,
    /// Size of the object, bytes.
    pub size: u64,
    /// What must be at the key.
    pub condition: &'a Condition,
}

/// An object that a publication made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// ETag of the object.
    pub etag: ETag,
    /// BOS's answer; `None`: it was lost, and HEAD and mark told of the object.
    pub answer: Option<StoredOutcome>,
    /// BOS stored it between these times of its own clock (seconds since 1970), where it said so.
    pub stored_between: Option<(i64, i64)>,
}

/// What a request that makes an object led to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The object is there, and ours.
    Made(Made),
    /// The body arrived damaged, or BOS stored something else than was sent; the object, if any, is not what it should be.
    Differs {
        /// ETag of what was stored, if anything was.
        etag: Option<ETag>,
        /// For people.
        what: String,
    },
    /// BOS does not hold a part as named: it has to be listed what it holds, and sent what is missing.
    PartsMissing(BosError),
    /// BOS does not know the upload. Unless HEAD and mark show our object, everything has to be sent anew.
    UploadGone(BosError),
    /// The condition does not hold. Unless HEAD and mark show our object, somebody else's is there.
    Refused(BosError),
    /// It may have acted. HEAD and mark tell.
    Unanswered(BosError),
}

impl Outcome {
    fn of_error(error: BosError) -> Result<Self, BosError> {
        match error.kind {
            BosErrorKind::InvalidPart => Ok(Self::PartsMissing(error)),
            BosErrorKind::NoSuchUpload => Ok(Self::UploadGone(error)),
            BosErrorKind::PreconditionFailed => Ok(Self::Refused(error)),
            _ if after(&error, Act::Deciding) == After::Settle => Ok(Self::Unanswered(error)),
            _ => Err(error),
        }
    }
}

/// What a Complete names.
#[derive(Clone, Copy)]
pub struct Completion<'a> {
    /// The upload.
    pub upload: Upload<'a>,
    /// Its parts, by number: all of a [`Plan`](super::Plan).
    pub parts: &'a [(PartNumber, ETag)],
    /// Their metadata goes along; everything else was fixed by Initiate.
    pub headers: &'a ObjectHeaders,
    /// Carried along, so that the object can be told from any other.
    pub mark: &'a str,
    /// Size of the object, bytes.
    pub size: u64,
    /// What must be at the key.
    pub condition: &'a Condition,
}

impl Completion<'_> {
    fn attempt(&self) -> Attempt<'_> {
        Attempt { mark: Some(self.mark), size: self.size, condition: self.condition }
    }
}

fn marked(headers: &ObjectHeaders, mark: &str) -> ObjectHeaders {
    let mut headers = headers.clone();
    headers.metadata.insert(MARK.to_owned(), mark.to_owned());
    headers
}

/// CompleteMultipartUpload, sent once. The caller wrote down before that it is sent, with mark and condition.
///
/// # Errors
/// BOS has not acted, and the request may be sent again (see [`retry::after`]) or not at all.
pub async fn complete_once(completion: &Completion<'_>) -> Result<Outcome, BosError> {
    let Completion { upload, parts, headers, mark, condition, .. } = completion;
    let sent = Instant::now();
    match upload.client.complete(upload.key, upload.id, parts, &marked(headers, mark), condition).await {
        Ok(answer) => Ok(Outcome::Made(Made {
            etag: answer.etag.clone(),
            stored_between: stored_between(answer.date, sent),
            answer: Some(answer),
        })),
        Err(error) => Outcome::of_error(error),
    }
}

/// CompleteMultipartUpload, repeated as long as it has not acted and the patience lasts. An answer that leaves it open, or
/// that an earlier success would explain, is settled by HEAD and mark before anything is sent again: never
/// [`Outcome::Unanswered`].
///
/// # Errors
/// Those of the patience; BOS's refusal as the patience makes it one.
pub async fn complete<P: Patience>(completion: &Completion<'_>, patience: &mut P) -> Result<Outcome, P::Error> {
    let (upload, attempt) = (&completion.upload, completion.attempt());
    loop {
        let error = match complete_once(completion).await {
            Ok(outcome @ (Outcome::Made(_) | Outcome::Differs { .. } | Outcome::PartsMissing(_))) => {
                return Ok(outcome);
            }
            Ok(outcome) => {
                let looked = persist(patience, || look(upload.client, upload.key, &attempt)).await?;
                if let Found::Ours { etag } = looked.map_err(|error| patience.refused(error))? {
                    return Ok(Outcome::Made(Made { etag, answer: None, stored_between: None }));
                }
                match outcome {
                    Outcome::Unanswered(error) => error,
                    told => return Ok(told),
                }
            }
            Err(error) if after(&error, Act::Deciding) == After::Again => error,
            Err(error) => return Err(patience.refused(error)),
        };
        if !patience.pause(&error).await? {
            return Err(patience.refused(error));
        }
    }
}

/// PutObject of a whole object whose bytes have `sum`, sent once. The caller wrote down before that it is sent.
///
/// # Errors
/// As [`complete_once`].
pub async fn put(
    client: &BosClient,
    key: &ObjectKey,
    body: Body,
    sum: &Checksum,
    headers: &ObjectHeaders,
    mark: &str,
    condition: &Condition,
) -> Result<Outcome, BosError> {
    let sent = Instant::now();
    let answer = match client.put_object(key, body, &sum.md5, &marked(headers, mark), condition).await {
        Ok(answer) => answer,
        // A lone body that was refused as damaged was not stored.
        Err(error) if error.kind == BosErrorKind::BadDigest => {
            return Ok(Outcome::Differs { etag: None, what: error.to_string() });
        }
        Err(error) => return Outcome::of_error(error),
    };
    Ok(match judge_body(sum, &Given::from(&answer)) {
        Ok(_) => Outcome::Made(Made {
            etag: answer.etag.clone(),
            stored_between: stored_between(answer.date, sent),
            answer: Some(answer),
        }),
        Err(what) => Outcome::Differs { etag: Some(answer.etag), what },
    })
}

impl Upload<'_> {
    /// AbortMultipartUpload, until BOS knows the upload no more: parts that were in flight may survive the first one. `false`:
    /// BOS still knew it after the last.
    ///
    /// # Errors
    /// Those of the patience; BOS's refusal as the patience makes it one.
    pub async fn end<P: Patience>(&self, patience: &mut P) -> Result<bool, P::Error> {
        for _ in 0..ABORTS_MAX {
            let aborted = retry::persist(patience, || self.client.abort(self.key, self.id)).await?;
            if !aborted.map_err(|error| patience.refused(error))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
