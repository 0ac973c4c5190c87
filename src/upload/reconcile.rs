//! Asking what BOS holds: the object at the key, the parts of the upload, the bytes of the base.

use std::collections::HashMap;
use std::sync::Arc;

use super::decide::Found;
use super::dirty_file::DirtyFile;
use super::driver::Trouble;
use super::inner::Inner;
use super::patience::{Before, Expected, Patience};
use super::state::{Held, Stage};
use crate::bos::BosErrorKind;
use crate::bos::client::{ListedPart, ObjectMeta};
use crate::journal::Record;
use crate::object::{ByteRange, Condition, ObjectKey, PartNumber};
use crate::write::layers::Place;
use crate::write::part_plan::Piece;

impl DirtyFile {
    /// Asks BOS what it holds, after a start or an answer that leaves it open.
    pub(super) async fn reconcile(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, stage, condition, ask_object) = {
            let inner = self.lock();
            let sent = matches!(inner.state.stage, Stage::Putting { .. } | Stage::Completing { .. });
            (
                inner.state.key.clone(),
                inner.state.stage.clone(),
                inner.state.condition.clone(),
                sent || inner.suspect_base,
            )
        };
        if ask_object && self.settle_object(&key, &stage, &condition, false).await? {
            return Ok(());
        }
        if self.lock().suspect_base {
            self.check_needed_base(&key).await?;
        }
        let upload = self.lock().state.upload.clone();
        let Some(upload) = upload else {
            self.reconciled();
            return Ok(());
        };
        match self.shared.client.list_parts(&upload.key, &upload.id).await {
            Ok(listed) => {
                let mut inner = self.lock();
                self.compare_parts(&mut inner, &listed)?;
            }
            Err(e) if e.kind == BosErrorKind::NoSuchUpload => {
                // A Complete that acted between the HEAD above and this list would look like a lost upload, and so does one
                // whose object HEAD does not show yet.
                if ask_object && self.settle_object(&key, &stage, &condition, true).await? {
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
            Err(e) => return Err(e.into()),
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
        let there = self.head(&source).await?;
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

    /// HEAD and mark: whether the publication is settled (done, or in conflict). `gone`: BOS knows its upload no more.
    pub(super) async fn settle_object(
        self: &Arc<Self>,
        key: &ObjectKey,
        stage: &Stage,
        condition: &Condition,
        gone: bool,
    ) -> Result<bool, Trouble> {
        let (expected, refused) = {
            let inner = self.lock();
            (Expected::of(stage, condition, inner.before()), inner.is_refused())
        };
        // What is overwritten anyway need not be certain.
        let is_certain = !gone && (refused || self.shared.options.overwrite_on_conflict);
        let patience = Patience::before_conflict();
        let counts = |head: Option<&ObjectMeta>| is_certain || expected.counts(head, gone);
        let head = self.head_patiently(key, patience, counts).await?;
        let size = stage.frozen().map_or(0, |frozen| frozen.size);
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.state.key != *key {
            // A rename came in between: what was asked says nothing of the new name.
            return Err(Trouble::Again(format!("it became {} while BOS was asked", inner.state.key)));
        }
        match expected.found(head.as_ref()) {
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
        self.settle_object(key, &stage, condition, false).await
    }

    /// HEAD, again and again with growing pauses as long as what it shows may be stale: until it `counts`, or `patience` ends.
    pub(super) async fn head_patiently(
        &self,
        key: &ObjectKey,
        mut patience: Patience,
        counts: impl Fn(Option<&ObjectMeta>) -> bool,
    ) -> Result<Option<ObjectMeta>, Trouble> {
        loop {
            let head = self.head(key).await?;
            if counts(head.as_ref()) {
                return Ok(head);
            }
            let Some(pause) = patience.next() else { return Ok(head) };
            let seen = head.map_or_else(|| "no object".to_owned(), |head| format!("the ETag {}", head.etag));
            let message = format!("BOS shows {seen}, which may be what was there before; it is asked again");
            log::info!("{key}: {message} in {} ms", pause.as_millis());
            self.lock().last_error = Some(message);
            self.notify();
            tokio::time::sleep(pause).await;
        }
    }

    pub(super) async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, Trouble> {
        match self.shared.client.head_object(key).await {
            Ok(meta) => Ok(Some(meta)),
            Err(e) if e.kind == BosErrorKind::NoSuchKey => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Brings the journal in line with ListParts: what BOS does not hold is sent again, what it holds is not.
    pub(super) fn compare_parts(&self, inner: &mut Inner, listed: &[ListedPart]) -> Result<(), Trouble> {
        let known: Vec<(PartNumber, super::state::Part)> =
            inner.state.parts.iter().map(|(number, part)| (*number, part.clone())).collect();
        let by_number: HashMap<PartNumber, &ListedPart> = listed.iter().map(|part| (part.number, part)).collect();
        for (number, part) in known {
            let there = by_number.get(&number);
            let equal = match (&part.held, there) {
                (Some(held), Some(there)) => held.len == there.size && held.etag == there.etag,
                (Some(_), None) => false,
                (None, _) => true,
            };
            if !equal {
                log::warn!("{}: part {number} is not in BOS as it was sent; it is sent again", inner.state.key);
                self.append(inner, &Record::PartLost { part: number })?;
            }
            if let Some(part) = inner.state.parts.get_mut(&number) {
                part.contested = false;
            }
        }
        for there in listed {
            let part = inner.state.parts.entry(there.number).or_default();
            if part.held.is_some() {
                continue;
            }
            let answered = part.sending.filter(|sum| sum.len == there.size && there.etag.is_md5(&sum.md5));
            if let (Some(sum), false) = (answered, part.dirty) {
                let (part, etag) = (there.number, there.etag.clone());
                self.append(inner, &Record::Sent { part, sum, etag, kept: true })?;
            } else {
                // Not known to be the file's present bytes: compared when the part is sealed again.
                part.held = Some(Held { len: there.size, etag: there.etag.clone(), sum: None });
                part.dirty = true;
            }
        }
        Ok(())
    }
}

impl Inner {
    /// What is known of the time before the present publication.
    pub(super) fn before(&self) -> Before {
        Before {
            journal_id: self.state.journal_id.clone(),
            since: self.state.opened_at,
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
        self.pieces(size).iter().any(|piece| match piece {
            Piece::Copy { part, range } => !self.state.is_copied(*part, *range),
            Piece::Upload(number) => {
                let range = self.plan.range_in(*number, size);
                !self.state.is_sent(*number, range.len()) && from_base(range)
            }
        })
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
