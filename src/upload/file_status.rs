//! What is told of a file: its entry in `status`, and the failure that whoever waits for it gets.

use std::sync::atomic::{AtomicU64, Ordering};

use super::dirty_file::DirtyFile;
use super::inner::{Inner, Removal};
use super::state::Stage;
use super::{FileStatus, OwnUpload, WriteError};
use crate::object::{ByteRange, Condition, Timestamp};

impl DirtyFile {
    /// What a handle that is opened now counts as known: everything that some program was told of. What nobody was told of
    /// yet, it is told of itself.
    pub fn failures_told(&self) -> u64 {
        self.lock().failures_told
    }

    /// The failure of the last publication, if `seen` (see [`DirtyFile::failures_told`]) does not cover it; it does then.
    ///
    /// # Errors
    /// Those of the publication.
    pub fn untold_failure(&self, seen: &AtomicU64) -> Result<(), WriteError> {
        let mut inner = self.lock();
        let trouble = inner.trouble();
        if trouble.is_err() && seen.swap(inner.failures, Ordering::Relaxed) < inner.failures {
            inner.failures_told = inner.failures;
            return trouble;
        }
        Ok(())
    }

    /// Whether it has content, or is a file, that BOS does not know of.
    pub fn has_unpublished(&self) -> bool {
        let inner = self.lock();
        inner.new_content || inner.new_file
    }

    /// Whether it met somebody else's object where there was to be none.
    pub fn lost_a_new_name(&self) -> bool {
        let inner = self.lock();
        inner.state.conflict.is_some() && inner.state.condition == Condition::Absent
    }

    /// Whether it failed for good, or is in conflict.
    pub fn is_stuck(&self) -> bool {
        self.lock().trouble().is_err()
    }

    /// Seconds until it is tried again, while it has failed.
    fn retry_in_s(&self, inner: &Inner) -> Option<u64> {
        inner.state.failed.as_ref()?;
        self.shared.again.due_in(&inner.state.journal_id).map(|left| left.as_secs())
    }

    /// Its entry in `status`, with the list of parts if `parts`.
    pub fn status(&self, parts: bool) -> FileStatus {
        let inner = self.lock();
        let state = &inner.state;
        let size = state.stage.frozen().map_or(inner.size, |frozen| frozen.size);
        let plan = &inner.plan;
        let numbers = || ByteRange::new(0, size);
        let mut bytes_in_bos = 0;
        let mut parts_in_bos = 0;
        let mut listed = Vec::new();
        for number in plan.parts_in(numbers()) {
            let len = plan.range_in(number, size).len();
            let known = state.parts.get(&number);
            let word = if state.is_sent(number, len) {
                bytes_in_bos += len;
                parts_in_bos += 1;
                "sent"
            } else if known.is_some_and(|part| part.copied.is_some() && !part.dirty) {
                "copied"
            } else if inner.live.get(&number).is_some_and(|live| live.job.is_some()) {
                "sending"
            } else if inner.view().is_untouched(plan.range_in(number, size)) {
                "base"
            } else {
                "dirty"
            };
            if parts {
                listed.push((number.get(), word.to_owned()));
            }
        }
        let known = state.upload.iter().map(|upload| OwnUpload::known(&upload.key, &upload.id));
        let possible = (state.initiating > 0).then(|| OwnUpload::possible(inner.upload_key()));
        FileStatus {
            uploads: known.chain(possible).collect(),
            is_move: false,
            key: state.key.to_string(),
            journal_id: state.journal_id.clone(),
            state: inner.state_word().to_owned(),
            upload_id: state.upload.as_ref().map(|upload| upload.id.to_string()),
            size,
            bytes_in_bos,
            bytes_spooled: inner.spooled_bytes,
            parts_total: plan.part_count(size),
            parts_in_bos,
            parts_kept: state.parts_kept(),
            parts_sent: state.parts_sent,
            bytes_per_s: inner.meter.bytes_per_s(),
            tries: inner.tries,
            retry_in_s: self.retry_in_s(&inner),
            last_error: state
                .conflict
                .clone()
                .or_else(|| state.failed.as_ref().map(|(message, _)| message.clone()))
                .or_else(|| inner.last_error.clone()),
            proof: state.published.as_ref().map(|published| published.proof),
            parts: parts.then_some(listed),
            updated_at: Timestamp::now().sec,
        }
    }
}

impl Inner {
    /// Refuses whatever would change a file of which memory holds half a change.
    pub(super) fn check_whole(&self) -> Result<(), WriteError> {
        if self.broken { self.trouble() } else { Ok(()) }
    }

    /// The error that whoever waits for this file is told.
    pub(super) fn trouble(&self) -> Result<(), WriteError> {
        if let Some(message) = &self.state.conflict {
            return Err(WriteError::failed(libc::ESTALE, message.clone()));
        }
        if let Some((message, errno)) = &self.state.failed {
            return Err(WriteError::failed(*errno, message.clone()));
        }
        Ok(())
    }

    fn state_word(&self) -> &'static str {
        let state = &self.state;
        if state.conflict.is_some() {
            return "conflict";
        }
        if state.failed.is_some() {
            return "failed";
        }
        if self.removal != Removal::None {
            return "removing";
        }
        match &state.stage {
            Stage::Closed(_) => "uploading",
            Stage::Putting { .. } | Stage::Completing { .. } => "completing",
            Stage::Completed { .. } => "proving",
            Stage::Open if state.interrupted.is_some() => "interrupted",
            Stage::Open if state.parked => "parked",
            Stage::Open if self.writers > 0 => "writing",
            Stage::Open if self.new_content || self.new_file => "interrupted",
            Stage::Open => "idle",
        }
    }
}
