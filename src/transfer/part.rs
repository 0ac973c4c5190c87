//! One part on its way: sent or copied, and its answer checked.

use super::prove::{Given, judge_body};
use super::{Held, Upload};
use crate::bos::client::Body;
use crate::bos::{BosError, BosErrorKind};
use crate::object::{ByteRange, Checksum, ETag, ObjectKey, PartNumber};

/// What was sent under a part number and never answered: it may still arrive, behind everything sent later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Unanswered {
    /// Nothing, or nothing but the very bytes that are sent now.
    #[default]
    None,
    /// A body that differs.
    Other,
}

impl Unanswered {
    /// Of a body with `sum`, after one with the sum `earlier` was not answered.
    pub fn of(sum: &Checksum, earlier: Option<&Checksum>) -> Self {
        if earlier.is_some_and(|earlier| earlier != sum) { Self::Other } else { Self::None }
    }
}

/// What BOS says of one part.
#[derive(Clone, Debug)]
pub enum PartAnswer {
    /// BOS holds it, checked.
    Held(Held),
    /// BOS took it, checked; but an earlier, unanswered body of the same number may come to lie over it. ListParts has to
    /// show which one it is before the number is named to Complete ([`compare`](super::settle::compare)).
    Contested(Held),
    /// BOS stored something else than was sent.
    Differs {
        /// ETag of what it stored.
        etag: ETag,
        /// For people.
        what: String,
    },
    /// BOS refused the body as damaged on its way: nothing was stored.
    Damaged(BosError),
    /// BOS does not know the upload: completed, aborted, or ended from outside.
    UploadGone(BosError),
    /// The object that a range was to be copied from is not what it was.
    SourceChanged(BosError),
    /// It is not there, or not visible yet.
    SourceGone(BosError),
    /// BOS does not copy this object at all: it has to be read and sent.
    CopyRefused(BosError),
}

impl PartAnswer {
    fn held(held: Held, unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::None => Self::Held(held),
            Unanswered::Other => Self::Contested(held),
        }
    }
}

/// Where a range is copied from.
#[derive(Clone, Copy, Debug)]
pub struct CopySource<'a> {
    /// Key of the object.
    pub key: &'a ObjectKey,
    /// Which content it must have.
    pub etag: &'a ETag,
}

impl Upload<'_> {
    /// UploadPart of `body`, whose bytes have `sum`. The caller wrote down before that it is sent, and took its slot and its
    /// share of the rate.
    ///
    /// # Errors
    /// What BOS says of anything but the part, the upload and their bytes: see [`after`](super::retry::after).
    pub async fn send_part(
        &self,
        number: PartNumber,
        body: Body,
        sum: &Checksum,
        unanswered: Unanswered,
    ) -> Result<PartAnswer, BosError> {
        let stored = match self.client.upload_part(self.key, self.id, number, body, &sum.md5).await {
            Ok(stored) => stored,
            Err(error) if error.kind == BosErrorKind::BadDigest => return Ok(PartAnswer::Damaged(error)),
            Err(error) if error.kind == BosErrorKind::NoSuchUpload => return Ok(PartAnswer::UploadGone(error)),
            Err(error) => return Err(error),
        };
        Ok(match judge_body(sum, &Given::from(&stored)) {
            Ok(_) => PartAnswer::held(Held { len: sum.len, etag: stored.etag, sum: Some(*sum) }, unanswered),
            Err(what) => PartAnswer::Differs { etag: stored.etag, what },
        })
    }

    /// UploadPartCopy of `range` of `source`.
    ///
    /// # Errors
    /// As [`Upload::send_part`].
    pub async fn copy_part(
        &self,
        number: PartNumber,
        source: CopySource<'_>,
        range: ByteRange,
        unanswered: Unanswered,
    ) -> Result<PartAnswer, BosError> {
        let copied =
            self.client.upload_part_copy(self.key, self.id, number, source.key, range, Some(source.etag)).await;
        match copied {
            Ok(copied) => Ok(PartAnswer::held(Held { len: range.len(), etag: copied.etag, sum: None }, unanswered)),
            Err(error) if error.is_copy_refused() => Ok(PartAnswer::CopyRefused(error)),
            Err(error) => match error.kind {
                BosErrorKind::NoSuchUpload => Ok(PartAnswer::UploadGone(error)),
                BosErrorKind::PreconditionFailed => Ok(PartAnswer::SourceChanged(error)),
                BosErrorKind::NoSuchKey => Ok(PartAnswer::SourceGone(error)),
                _ => Err(error),
            },
        }
    }
}
