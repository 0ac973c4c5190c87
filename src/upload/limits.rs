//! What a file cannot be sent by: a part plan that ends before it does, and copies that BOS does not make.
//!
//! A plan is fixed once an upload was begun; until then a length that becomes known (a base, `ftruncate`, a write far
//! behind the end) gets a plan that reaches it. A size that no plan reaches is refused before anything is sent.

use super::WriteError;
use super::driver::Trouble;
use super::inner::Inner;
use super::shared::Shared;
use super::state::Stage;
use crate::object::{BaseObject, ETag};
use crate::write::part_plan::FILE_BYTES_MAX;

/// The base objects of which BOS refuses copies, by ETag: appendable ones (bos-api.md 12). Known once BOS has refused, and
/// asked anew after a start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CopiesRefused {
    /// CopyObject of it.
    pub(super) whole: Option<ETag>,
    /// UploadPartCopy of it.
    pub(super) parts: Option<ETag>,
}

impl Inner {
    /// Whether CopyObject does not take the base: it is put together anew, as one that is too large for that call.
    pub(super) fn is_copy_refused(&self) -> bool {
        let base = self.base().map(|base| &base.etag);
        base.is_some() && (base == self.refused.whole.as_ref() || base == self.refused.parts.as_ref())
    }

    /// The base, as far as parts can be copied from it.
    pub(super) fn copyable_base(&self) -> Option<&BaseObject> {
        self.base().filter(|base| self.refused.parts.as_ref() != Some(&base.etag))
    }

    /// Gives a file that is about to have `size` bytes a plan that reaches them, where the plan is not fixed yet.
    ///
    /// # Errors
    /// `EFBIG`; nothing is changed.
    pub(super) fn reach(&mut self, shared: &Shared, size: u64) -> Result<(), WriteError> {
        if size <= self.plan.size_max() {
            return Ok(());
        }
        let key = &self.state.key;
        let plan = shared.plan_for(self.base().map_or(0, |base| base.size).max(size));
        if size > plan.size_max() {
            let message = format!(
                "{key}: {size} bytes are more than one object can have in BOS ({} at most); nothing of this call was \
                 accepted, what was accepted before stays",
                plan.size_max()
            );
            return Err(WriteError::failed(libc::EFBIG, message));
        }
        let is_free = self.state.upload.is_none()
            && self.state.parts.is_empty()
            && self.state.stage == Stage::Open
            && !self.tidying
            && self.live.values().all(|live| live.job.is_none());
        if !is_free {
            let message = format!(
                "{key}: parts of it are on their way already, in an upload that holds {} bytes at most, and it would have {size}; \
                 nothing of this call was accepted, what was accepted before stays: close it first, or announce its length \
                 (truncate, fallocate) before its first bytes are written",
                self.plan.size_max()
            );
            return Err(WriteError::failed(libc::EFBIG, message));
        }
        self.plan = plan;
        self.live.clear();
        self.ready.clear();
        self.last_part = None;
        Ok(())
    }

    /// Refuses to send a state of `size` bytes of which the plan leaves bytes out.
    pub(super) fn check_reach(&self, size: u64) -> Result<(), Trouble> {
        let reached = self.plan.size_max();
        if size <= reached {
            return Ok(());
        }
        let key = &self.state.key;
        let why = if size > FILE_BYTES_MAX { "one object in BOS can have" } else { "the parts of its upload hold" };
        Err(Trouble::Final {
            errno: libc::EFBIG,
            message: format!(
                "{key}: it has {size} bytes, and {why} {reached} at most; nothing was published, the object in BOS is what \
                 it was, and what was changed here is kept: make the file smaller, or give the change up with `bosfs uploads \
                 abort BUCKET/{key}`"
            ),
        })
    }
}
