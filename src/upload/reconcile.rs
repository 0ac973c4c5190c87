//! Asking what BOS holds: the object at the key, the parts of the upload, the bytes of the base.

use std::sync::Arc;
use std::time::Duration;

use super::dirty_file::DirtyFile;
use super::driver::Trouble;
use super::inner::Inner;
use super::state::{Part, Stage};
use crate::bos::BosError;
use crate::bos::client::{ListedPart, ObjectMeta};
use crate::journal::Record;
use crate::object::{ByteRange, Condition, ObjectKey};
use crate::transfer::settle::{Found, Known, Settled, compare, head, settle};
use crate::transfer::stale::look_until;
use crate::transfer::{Asked, Attempt, Before, Doubt, Looks, Patience, Piece, Way};
use crate::write::layers::Place;

impl DirtyFile {
    /// Asks BOS what it holds, after a start or an answer that leaves it open.
    pub(super) async fn reconcile(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, stage, condition, ask_object) = {
            let inner = self.lock();
            let state = &inner.state;
            let ask_object = state.stage.is_sent() || inner.suspect_base;
            (state.key.clone(), state.stage.clone(), state.condition.clone(), ask_object)
        };
        if ask_object && self.settle_object(&key, &stage, &condition).await? {
            return Ok(());
        }
        if self.lock().suspect_base {
            self.check_needed_base(&key).await?;
        }
        let (upload, before) = {
            let inner = self.lock();
            (inner.state.upload.clone(), inner.before())
        };
        let Some(upload) = upload else {
            self.reconciled();
            return Ok(());
        };
        let asked = asked(&key, &stage, &condition, &before);
        let in_bos = upload.in_bos(&self.shared.client);
        match settle(&in_bos, ask_object.then_some(&asked), &mut self.asking(&key)).await? {
            Settled::Open(listed) => {
                let mut inner = self.lock();
                self.compare_parts(&mut inner, &listed)?;
            }
            Settled::Gone(found) => {
                if let Some(found) = found
                    && self.take_found(&key, &stage, found)?
                {
                    return Ok(());
                }
                let mut inner = self.lock();
                self.append(&mut inner, &Record::UploadEnded)?;
                if self.give_up_uncertain(&mut inner)? {
                    return Ok(());
                }
                log::warn!("{key}: BOS no longer has upload {}; its parts are sent again", upload.id);
                if let Some(lost) = inner.lost_in_bos() {
                    inner.reconcile = false;
                    inner.suspect_base = false;
                    return Err(lost);
                }
                inner.resend();
            }
        }
        self.reconciled();
        Ok(())
    }

    /// A request for bytes of the base was refused although the key is as this file wants it: fails for good when those
    /// bytes are gone, since nothing could ever be made of them.
    async fn check_needed_base(self: &Arc<Self>, key: &ObjectKey) -> Result<(), Trouble> {
        let (base, source) = {
            let inner = self.lock();
            let Some(base) = inner.base().filter(|_| inner.needs_base()) else { return Ok(()) };
            (base.clone(), inner.state.base_key().clone())
        };
        let there = head(&self.shared.client, &source).await?;
        if there.is_some_and(|head| head.etag == base.etag) {
            return Ok(());
        }
        let mut inner = self.lock();
        inner.reconcile = false;
        inner.suspect_base = false;
        Err(Trouble::Final {
            errno: libc::ESTALE,
            message: format!(
                "{key}: the bytes that were not written here were those of the object {source} with ETag {}, which is gone: the \
                 file cannot be made whole. Nothing was published and what was written is kept; write the file whole \
                 again, or give it up with `bosfs uploads abort BUCKET/{key}`",
                base.etag
            ),
        })
    }

    fn reconciled(&self) {
        let mut inner = self.lock();
        inner.reconcile = false;
        inner.suspect_base = false;
    }

    /// HEAD and mark: whether the publication is settled (done, or in conflict).
    pub(super) async fn settle_object(
        self: &Arc<Self>,
        key: &ObjectKey,
        stage: &Stage,
        condition: &Condition,
    ) -> Result<bool, Trouble> {
        let (before, is_refused) = {
            let inner = self.lock();
            (inner.before(), inner.is_refused())
        };
        // What is overwritten anyway need not be certain.
        let is_certain = is_refused || self.shared.options.overwrite_on_conflict;
        let doubt = if is_certain { Doubt::None } else { Doubt::Stale };
        let asked = asked(key, stage, condition, &before);
        let found = look_until(&self.shared.client, &asked, doubt, &mut self.asking(key)).await?;
        self.take_found(key, stage, found)
    }

    /// Acts on what is at the key: whether the publication is settled.
    fn take_found(self: &Arc<Self>, key: &ObjectKey, stage: &Stage, found: Found) -> Result<bool, Trouble> {
        let size = stage.frozen().map_or(0, |frozen| frozen.size);
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.state.key != *key {
            // A rename came in between: what was asked says nothing of the new name.
            return Err(Trouble::Again(format!("it became {} while BOS was asked", inner.state.key)));
        }
        match found {
            Found::Ours { etag } => {
                let publication = stage.frozen().map_or(0, |frozen| frozen.publication);
                self.append(inner, &Record::Completed { publication, etag, size })?;
                inner.reconcile = false;
                Ok(true)
            }
            Found::AsExpected => Ok(false),
            Found::Other { what } if self.shared.options.overwrite_on_conflict => {
                log::warn!("{key}: BOS holds {what}; it is overwritten (--on-conflict overwrite)");
                let key = key.clone();
                self.append(inner, &Record::Renamed { key, condition: Condition::Any, base: None })?;
                Ok(false)
            }
            Found::Other { what } => {
                self.conflict(inner, &what);
                Ok(true)
            }
        }
    }

    /// Whether the key holds something else than `condition` asks for; the file is in conflict then.
    pub(super) async fn settle_condition(
        self: &Arc<Self>,
        key: &ObjectKey,
        condition: &Condition,
    ) -> Result<bool, Trouble> {
        if *condition == Condition::Any {
            return Ok(false);
        }
        let stage = self.lock().state.stage.clone();
        self.settle_object(key, &stage, condition).await
    }

    /// The way in which a step of this file, which is to be found under `key`, waits for BOS.
    pub(super) fn asking<'a>(&'a self, key: &'a ObjectKey) -> Asking<'a> {
        Asking { file: self, key }
    }

    /// Brings the journal in line with ListParts: what BOS does not hold is sent again, what it holds is not.
    pub(super) fn compare_parts(&self, inner: &mut Inner, listed: &[ListedPart]) -> Result<(), Trouble> {
        let parts = &inner.state.parts;
        let compared = compare(parts.iter().map(|(number, part)| (*number, known(part))), listed);
        for part in compared.lost {
            log::warn!("{}: part {part} is not in BOS as it was sent; it is sent again", inner.state.key);
            self.append(inner, &Record::PartLost { part })?;
        }
        inner.state.parts.values_mut().for_each(|part| part.contested = false);
        for (part, held) in compared.answered {
            let Some(sum) = held.sum else { continue };
            self.append(inner, &Record::Sent { part, sum, etag: held.etag, kept: true })?;
        }
        for (number, held) in compared.unknown {
            // Not known to be the file's present bytes: compared when the part is sealed again.
            let part = inner.state.parts.entry(number).or_default();
            part.held = Some(held);
            part.dirty = true;
        }
        Ok(())
    }
}

/// What a publication in `stage`, which is or would be sent under `condition`, asks of its key.
fn asked<'a>(key: &'a ObjectKey, stage: &'a Stage, condition: &'a Condition, before: &'a Before) -> Asked<'a> {
    let (mark, condition) = match stage {
        Stage::Putting { mark, condition, .. } | Stage::Completing { mark, condition, .. } => {
            (Some(mark.as_str()), condition)
        }
        _ => (None, condition),
    };
    let size = stage.frozen().map_or(0, |frozen| frozen.size);
    Asked { key, attempt: Attempt { mark, size, condition }, before, looks: Looks::before_conflict() }
}

/// What is known of a part before BOS is asked. An unanswered body counts only where nothing was answered since and its bytes
/// are still those of the file.
fn known(part: &Part) -> Known<'_> {
    let unanswered = part.sending.as_ref().filter(|_| part.held.is_none() && !part.dirty);
    Known { held: part.held.as_ref(), unanswered }
}

/// How a step waits for BOS: not at all, since the driver does the whole step again behind a pause. Meanwhile others are told
/// why it takes so long.
pub(super) struct Asking<'a> {
    file: &'a DirtyFile,
    key: &'a ObjectKey,
}

impl Patience for Asking<'_> {
    type Error = Trouble;

    async fn pause(&mut self, _: &BosError) -> Result<bool, Trouble> {
        Ok(false)
    }

    fn refused(&self, error: BosError) -> Trouble {
        error.into()
    }

    fn looks_again(&mut self, shown: Option<&ObjectMeta>, pause: Duration) {
        let seen = shown.map_or_else(|| "no object".to_owned(), |head| format!("the ETag {}", head.etag));
        let message = format!("BOS shows {seen}, which may be what was there before; it is asked again");
        log::info!("{}: {message} in {} ms", self.key, pause.as_millis());
        self.file.lock().last_error = Some(message);
        self.file.notify();
    }
}

impl Inner {
    /// What is known of the time before the present publication.
    pub(super) fn before(&self) -> Before {
        Before {
            journal_id: Some(self.state.journal_id.clone()),
            since: Some(self.state.opened_at),
            base: self.state.base.as_ref().filter(|base| base.key.is_none()).map(|base| base.etag.clone()),
        }
    }

    /// Whether BOS itself refused the present publication for what is at its key, so that a HEAD which shows something else is
    /// not stale. A refusal says nothing where an earlier try may have been the one that changed the key.
    fn is_refused(&self) -> bool {
        let publication = self.state.stage.frozen().map(|frozen| frozen.publication);
        let own_base = self.base().is_none_or(|base| base.key.is_none());
        self.suspect_base && own_base && publication.is_some() && self.unanswered != publication
    }

    /// Whether bytes of the base are still missing for what is to be published.
    fn needs_base(&self) -> bool {
        let size = self.state.stage.frozen().map_or(self.size, |frozen| frozen.size);
        let view = self.view();
        let from_base = |range| view.pieces(range).iter().any(|piece| piece.from == Place::Base);
        let is_missing = |piece: &Piece| match piece.way {
            Way::Send => from_base(piece.range),
            Way::Copy | Way::Held => !self.is_there(piece),
        };
        self.plan_of(size).is_ok_and(|plan| plan.pieces().iter().any(is_missing))
    }

    /// The trouble of a file of which BOS has lost bytes that were taken out of the full spool.
    pub(super) fn lost_in_bos(&self) -> Option<Trouble> {
        let held_by_bos = |range| {
            let mut parts = self.plan.parts_in(range);
            parts.all(|number| self.state.parts.get(&number).is_some_and(|part| part.held.is_some()))
        };
        let size = self.state.stage.frozen().map_or(self.size, |frozen| frozen.size);
        let held = self.view().held(ByteRange::new(0, size));
        let lost: Vec<String> = held
            .iter()
            .filter(|range| !held_by_bos(**range))
            .map(|range| format!("{} to {}", range.start, range.end))
            .collect();
        if lost.is_empty() {
            return None;
        }
        let key = &self.state.key;
        Some(Trouble::Final {
            errno: libc::EIO,
            message: format!(
                "{key}: its upload was destroyed in BOS, and with it the only copy of bytes that had been taken out of the full \
                 spool: {} are lost. Nothing was published and all other bytes are kept; copy the file again, or give it \
                 up with `bosfs uploads abort BUCKET/{key}`",
                lost.join(", ")
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Checksum, ETag};
    use crate::transfer::Held;

    #[test]
    fn an_unanswered_body_counts_only_where_its_bytes_are_still_wanted() {
        let (sum, other) = (Checksum::of(b"01234567"), Checksum::of(b"76543210"));
        let held = Held { len: 8, etag: ETag::new("e"), sum: Some(other) };
        let part =
            |held: Option<&Held>, dirty| Part { held: held.cloned(), dirty, sending: Some(sum), ..Part::default() };
        assert_eq!(known(&part(None, false)).unanswered, Some(&sum));
        assert_eq!(known(&part(None, true)).unanswered, None, "written again since");
        assert_eq!(known(&part(Some(&held), false)).unanswered, None, "another body was answered since");
        assert_eq!(known(&part(Some(&held), false)).held, Some(&held));
    }
}
