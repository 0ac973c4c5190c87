//! The steps that run alone: asking what BOS holds, Initiate, PutObject, Complete, the proof, and what comes after it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::Published;
use super::decide::{Found, found};
use super::dirty_file::{DirtyFile, disk_error};
use super::driver::Trouble;
use super::inner::{Inner, Removal};
use super::part::{check_stored, hash};
use super::state::{Frozen, Held, Stage, ranges_of};
use crate::bos::BosErrorKind;
use crate::bos::client::{Body, ListedPart, ObjectHeaders, ObjectMeta, StoredOutcome, stored_between};
use crate::journal::Record;
use crate::journal::record::Proof;
use crate::object::{ByteRange, Condition, Crcs, ETag, ObjectKey, PartNumber, composed_etag};
use crate::posix_meta::{MARK, XATTRS, write_attrs};
use crate::write::block_map::BLOCK_BYTES;
use crate::write::extents::Source;
use crate::write::part_plan::Piece;

/// HEADs that may miss an object which BOS just completed, before somebody must have deleted it.
const MISSING_MAX: u32 = 6;
/// Publications of one state that may be disproved before the file fails.
const DISPROOFS_MAX: u32 = 3;

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
        if ask_object && self.settle_object(&key, &stage, &condition).await? {
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
                // A Complete that acted between the HEAD above and this list would look like a lost upload.
                if ask_object && self.settle_object(&key, &stage, &condition).await? {
                    return Ok(());
                }
                let mut inner = self.lock();
                log::warn!("{key}: BOS no longer has upload {}; its parts are sent again", upload.id);
                self.append(&mut inner, &Record::UploadEnded)?;
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

    /// HEAD and mark: whether the publication is settled (done, or in conflict).
    async fn settle_object(
        self: &Arc<Self>,
        key: &ObjectKey,
        stage: &Stage,
        condition: &Condition,
    ) -> Result<bool, Trouble> {
        let head = self.head(key).await?;
        let (mark, sent_under) = match stage {
            Stage::Putting { mark, condition, .. } | Stage::Completing { mark, condition, .. } => {
                (Some(mark.as_str()), condition)
            }
            _ => (None, condition),
        };
        let size = stage.frozen().map_or(0, |frozen| frozen.size);
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.state.key != *key {
            // A rename came in between: what was asked says nothing of the new name.
            return Err(Trouble::Again(format!("it became {} while BOS was asked", inner.state.key)));
        }
        match found(head.as_ref(), mark, size, sent_under) {
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

    /// Looks whether the key still holds what an interrupted file began with.
    pub(super) async fn check_base(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, stage, condition) = {
            let inner = self.lock();
            (inner.state.key.clone(), inner.state.stage.clone(), inner.state.condition.clone())
        };
        if self.is_published_already(&key).await? {
            let mut inner = self.lock();
            log::info!("{key}: what is left of its journal was published before the machine was restarted");
            self.discard(&mut inner)?;
        } else {
            self.settle_object(&key, &stage, &condition).await?;
        }
        self.lock().check_base = false;
        Ok(())
    }

    /// Whether the object is a publication of this very journal, whose last lines a power loss took, and nothing newer that
    /// was synced is here.
    async fn is_published_already(&self, key: &ObjectKey) -> Result<bool, Trouble> {
        let Some(head) = self.head(key).await? else { return Ok(false) };
        let (synced, spool, size) = {
            let mut inner = self.lock();
            let ours = head.headers.metadata.get(MARK).and_then(|mark| mark.split_once('.'));
            let ours = ours.is_some_and(|(journal, _)| journal == inner.state.journal_id) && inner.state.key == *key;
            if !ours || !inner.inherited || inner.state.published.is_some() {
                return Ok(false);
            }
            let size = inner.size;
            let whole = ByteRange::new(0, size);
            let store = inner.store()?;
            let synced = store.extents.is_sealable(whole, size).then(|| store.spool.clone());
            (inner.state.synced_size.is_some(), synced, size)
        };
        if !synced {
            return Ok(true);
        }
        let (Some(spool), true, Some(expected)) = (spool, head.size == size, head.crc32c) else { return Ok(false) };
        let found = tokio::task::spawn_blocking(move || hash(&spool, ByteRange::new(0, size))).await;
        let found = found.map_err(|e| Trouble::Again(e.to_string()))?.map_err(|e| disk_error(key, &e))?;
        Ok(found.crcs.crc32c == expected)
    }

    pub(super) async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, Trouble> {
        match self.shared.client.head_object(key).await {
            Ok(meta) => Ok(Some(meta)),
            Err(e) if e.kind == BosErrorKind::NoSuchKey => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Brings the journal in line with ListParts: what BOS does not hold is sent again, what it holds is not.
    fn compare_parts(&self, inner: &mut Inner, listed: &[ListedPart]) -> Result<(), Trouble> {
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

    pub(super) async fn initiate(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, headers) = {
            let mut inner = self.lock();
            self.append(&mut inner, &Record::Initiating)?;
            let mut headers = inner.state.headers.clone();
            headers.metadata.clear();
            headers.storage_class = headers.storage_class.or_else(|| self.shared.options.storage_class.clone());
            (inner.upload_key().clone(), headers)
        };
        let upload_id = self.shared.client.initiate(&key, &headers).await?;
        let mut inner = self.lock();
        let plan = inner.plan.clone();
        // It may have been renamed meanwhile; then the upload is misplaced and ends.
        let elsewhere = (key != inner.state.key).then_some(key);
        inner.misplaced |= elsewhere.as_ref().is_some_and(|key| key != inner.upload_key());
        self.append(&mut inner, &Record::Initiated { upload_id, plan, key: elsewhere })?;
        Ok(())
    }

    /// A file of at most one part: one request.
    pub(super) async fn put(self: &Arc<Self>) -> Result<(), Trouble> {
        let Some(frozen) = self.lock().state.stage.frozen().copied() else { return Ok(()) };
        self.shared.release_clones(&self.key()).await?;
        let _slot = self.shared.act_slot().await;
        let range = ByteRange::new(0, frozen.size);
        self.fill(range).await?;
        let Some(sum) = self.seal(PartNumber::FIRST, range).await? else {
            return Err(Trouble::Again("the file changed while it was read".into()));
        };
        let (key, headers, condition, body) = {
            let mut inner = self.lock();
            if inner.state.stage.frozen() != Some(&frozen) || inner.removal != Removal::None {
                return Ok(());
            }
            let mark = inner.state.mark(frozen.publication);
            let condition = inner.state.condition.clone();
            let headers = inner.publication_headers(&frozen, &mark, self.shared.options.storage_class.as_ref());
            let publication = frozen.publication;
            self.append(&mut inner, &Record::Putting { publication, mark, condition: condition.clone(), sum })?;
            let body = inner.store()?.spool.body(range);
            (inner.state.key.clone(), headers, condition, Body::Source(Arc::new(body)))
        };
        self.shared.rate.take(sum.len).await;
        let sent = Instant::now();
        let outcome = match self.shared.client.put_object(&key, body, &sum.md5, &headers, &condition).await {
            Ok(outcome) => outcome,
            Err(e) => {
                // A lone body that was refused as damaged was not stored; it is read and hashed anew.
                if e.kind == BosErrorKind::BadDigest {
                    self.lock().live.entry(PartNumber::FIRST).or_default().sealed = None;
                    return Err(Trouble::Again(e.to_string()));
                }
                return Err(e.into());
            }
        };
        {
            let mut inner = self.lock();
            inner.meter.add(sum.len);
            inner.stored_between = stored_between(outcome.date, sent);
            let (publication, etag, size) = (frozen.publication, outcome.etag.clone(), frozen.size);
            self.append(&mut inner, &Record::Completed { publication, etag, size })?;
        }
        match check_stored(&sum, &outcome) {
            Ok(()) => self.finish(frozen, Proof::Proved).await,
            Err(message) => self.disproved(frozen, message),
        }
    }

    pub(super) async fn complete(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, upload, contested) = {
            let inner = self.lock();
            let Some(upload) = inner.state.upload.clone() else { return Ok(()) };
            (inner.state.key.clone(), upload, inner.state.parts.values().any(|part| part.contested))
        };
        if contested {
            // An older body of some part may have arrived last.
            let listed = self.shared.client.list_parts(&upload.key, &upload.id).await?;
            let mut inner = self.lock();
            self.compare_parts(&mut inner, &listed)?;
            return Ok(());
        }
        self.shared.release_clones(&key).await?;
        let (frozen, listed, headers, condition) = {
            let mut inner = self.lock();
            let Some(frozen) = inner.state.stage.frozen().copied() else { return Ok(()) };
            if inner.removal != Removal::None {
                return Ok(());
            }
            // Taken now: later writes may change what the list would be, but not what is published.
            let Some(listed) = inner.listed(frozen.size) else {
                return Err(Trouble::Again("a part is missing".into()));
            };
            let mark = inner.state.mark(frozen.publication);
            let condition = inner.state.condition.clone();
            let headers = inner.publication_headers(&frozen, &mark, None);
            let record = Record::Completing {
                publication: frozen.publication,
                mark,
                condition: condition.clone(),
                size: frozen.size,
                part_count: listed.len() as u32,
            };
            self.append(&mut inner, &record)?;
            (frozen, listed, headers, condition)
        };
        let parts: Vec<(PartNumber, ETag)> = listed.iter().map(|(number, held)| (*number, held.etag.clone())).collect();
        let sent = Instant::now();
        let outcome = self.shared.client.complete(&key, &upload.id, &parts, &headers, &condition).await?;
        {
            let mut inner = self.lock();
            inner.stored_between = stored_between(outcome.date, sent);
            let (publication, etag, size) = (frozen.publication, outcome.etag.clone(), frozen.size);
            self.append(&mut inner, &Record::Completed { publication, etag, size })?;
        }
        // An answer without any CRC leaves the proof to the HEAD of the next step.
        match judge_composed(whole_crcs(&listed), &outcome, Some(&predicted_etag(&listed)), false) {
            Some(verdict) => self.conclude(frozen, verdict).await,
            None => Ok(()),
        }
    }

    /// HEAD and compare.
    pub(super) async fn prove(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, frozen, etag, put) = {
            let inner = self.lock();
            let Stage::Completed { frozen, etag, put } = &inner.state.stage else { return Ok(()) };
            (inner.state.key.clone(), *frozen, etag.clone(), *put)
        };
        let Some(head) = self.head(&key).await? else {
            let mut inner = self.lock();
            if inner.tries < MISSING_MAX {
                return Err(Trouble::Again(format!("the object with ETag {etag} is not to be seen yet")));
            }
            self.conflict(&mut inner, "no object, although this file was published");
            return Ok(());
        };
        let mark = self.lock().state.mark(frozen.publication);
        if head.etag != etag && head.headers.metadata.get(MARK) != Some(&mark) {
            log::warn!("{key}: published as ETag {etag}, and replaced by somebody else since");
            return self.finish(frozen, Proof::Composed).await;
        }
        let outcome = StoredOutcome {
            etag: head.etag.clone(),
            crc32c: head.crc32c,
            crc32: head.crc32,
            crc64: head.crc64,
            date: None,
        };
        if head.size != frozen.size {
            return self.disproved(frozen, format!("{} bytes where {} were written", head.size, frozen.size));
        }
        let verdict = match put {
            Some(sum) => check_stored(&sum, &outcome).map(|()| Proof::Proved),
            None => {
                let listed = self.lock().listed(frozen.size);
                let whole = listed.as_ref().and_then(|listed| whole_crcs(listed));
                let predicted = listed.map(|listed| predicted_etag(&listed));
                judge_composed(whole, &outcome, predicted.as_ref(), true).unwrap_or(Ok(Proof::Composed))
            }
        };
        self.conclude(frozen, verdict).await
    }

    async fn conclude(self: &Arc<Self>, frozen: Frozen, verdict: Result<Proof, String>) -> Result<(), Trouble> {
        match verdict {
            Ok(proof) => self.finish(frozen, proof).await,
            Err(message) => self.disproved(frozen, message),
        }
    }

    fn disproved(self: &Arc<Self>, frozen: Frozen, message: String) -> Result<(), Trouble> {
        let mut inner = self.lock();
        let key = inner.state.key.clone();
        log::error!("{key}: the object is not what was written ({message}); it is published again from the spool");
        self.append(&mut inner, &Record::Disproved { publication: frozen.publication, message: message.clone() })?;
        inner.live.clear();
        if inner.state.disproofs >= DISPROOFS_MAX {
            return Err(Trouble::Final {
                errno: libc::EIO,
                message: format!(
                    "{key}: the object came out wrong {DISPROOFS_MAX} times ({message}); the bytes are kept"
                ),
            });
        }
        Ok(())
    }

    /// The object is there and proved as well as BOS allows.
    pub(super) async fn finish(self: &Arc<Self>, frozen: Frozen, proof: Proof) -> Result<(), Trouble> {
        let (key, leftover) = {
            let inner = self.lock();
            let put = matches!(&inner.state.stage, Stage::Completed { put: Some(_), .. });
            (inner.state.key.clone(), inner.state.upload.clone().filter(|_| put))
        };
        if let Some(upload) = leftover {
            // The file shrank to one part after some were sent.
            self.abort(&upload).await?;
        }
        let (published, headers) = {
            let mut inner = self.lock();
            let Stage::Completed { etag, .. } = inner.state.stage.clone() else { return Ok(()) };
            let mark = inner.state.mark(frozen.publication);
            let headers = inner.publication_headers(&frozen, &mark, self.shared.options.storage_class.as_ref());
            let mut carried = headers.clone();
            if let Some(sent) = inner.state.carried.as_ref().map(|carried| carried.xattrs.clone()) {
                match sent {
                    Some(xattrs) => carried.metadata.insert(XATTRS.to_owned(), xattrs),
                    None => carried.metadata.remove(XATTRS),
                };
            }
            let stored_between = inner.stored_between.take();
            (Published { etag, size: frozen.size, attrs: frozen.attrs, headers: carried, stored_between }, headers)
        };
        // Before the line that ends it: after a kill from there on nothing else would tell what the object carries.
        self.shared.tell_published(&key, &published);
        let mut inner = self.lock();
        if !matches!(inner.state.stage, Stage::Completed { .. }) {
            return Ok(());
        }
        self.append(&mut inner, &Record::Proved { publication: frozen.publication, proof })?;
        log::info!("{key}: published, {} bytes, ETag {}, {proof:?}", frozen.size, published.etag);
        inner.last_published = Some(published);
        inner.proved_at = Some(Instant::now());
        inner.state.headers = headers;
        inner.settled_publication = frozen.publication;
        inner.reconcile = false;
        drop(inner);
        self.notify();
        Ok(())
    }

    /// After the proof: the journal goes if nothing newer is there; else the object becomes the base of what is.
    pub(super) async fn rebase(self: &Arc<Self>) -> Result<(), Trouble> {
        let journal = {
            let mut inner = self.lock();
            let several_parts =
                inner.state.published.as_ref().is_some_and(|p| p.object.size > inner.plan.first_bytes());
            // What was synced must not come back without its bytes after a power loss.
            if several_parts || inner.state.synced_size.is_some() {
                Some(inner.store()?.journal.sync_handle().map_err(super::WriteError::from)?)
            } else {
                None
            }
        };
        if let Some(journal) = journal {
            // "completed" on stable storage before the only local copy goes.
            let synced = tokio::task::spawn_blocking(move || journal.sync_data()).await;
            synced.map_err(|e| Trouble::Again(e.to_string()))?.map_err(super::WriteError::from)?;
        }
        let mut guard = self.lock();
        let inner = &mut *guard;
        let changed = inner.new_content || inner.new_file || inner.publish_again;
        let attrs_differ = inner.state.attrs_differ();
        if !changed && !attrs_differ && inner.writers == 0 {
            let done = finished(inner);
            inner.state.rebasing = false;
            inner.state.changed_since_freeze.clear();
            self.retire(inner);
            drop(guard);
            self.shared.finished(self, done);
            self.notify();
            return Ok(());
        }
        let key = inner.state.key.clone();
        let (base_end, plan) = (inner.state.base_end, inner.plan.clone());
        let kept = inner.state.changed_since_freeze.clone();
        let store = inner.store()?;
        let whole = ByteRange::new(0, store.spool.len());
        let before = store.extents.spool_blocks(whole);
        let punch = if kept.is_empty() {
            store.extents.rebase_all(base_end)
        } else {
            store.extents.rebase(base_end, |block| plan.part_at(block * BLOCK_BYTES).is_some_and(|n| kept.contains(&n)))
        };
        for range in punch.map_err(|e| disk_error(&key, &e))? {
            store.spool.punch(range).map_err(|e| disk_error(&key, &e))?;
        }
        let freed = before.saturating_sub(store.extents.spool_blocks(whole)) * BLOCK_BYTES;
        let certain = inner.state.synced_blocks.clone().unwrap_or_default();
        let blocks = Some(ranges_of(&inner.store()?.extents.spooled_of(&certain)));
        self.append(inner, &Record::Rebased { blocks })?;
        inner.spooled_bytes = inner.spooled_bytes.saturating_sub(freed);
        self.shared.budget.release(freed);
        inner.live.clear();
        inner.ready.clear();
        if inner.publish_again {
            inner.publish_again = false;
            inner.new_content |= !inner.new_file;
            self.begin_publication(inner, true)?;
        }
        drop(guard);
        self.notify();
        Ok(())
    }
}

pub(super) fn finished(inner: &Inner) -> super::shared::Finished {
    super::shared::Finished {
        key: inner.state.key.to_string(),
        journal_id: inner.state.journal_id.clone(),
        size: inner.size,
        parts_total: inner.plan.part_count(inner.size),
        parts_kept: inner.state.parts_kept(),
        parts_sent: inner.state.parts_sent,
        proof: inner.state.published.as_ref().map(|published| published.proof),
    }
}

impl Inner {
    /// Headers of a publication: those of the file, its attributes, its mark.
    pub(super) fn publication_headers(&self, frozen: &Frozen, mark: &str, class: Option<&String>) -> ObjectHeaders {
        let mut headers = self.state.headers.clone();
        write_attrs(&mut headers.metadata, &frozen.attrs);
        headers.metadata.insert(MARK.to_owned(), mark.to_owned());
        headers.storage_class = headers.storage_class.or_else(|| class.cloned());
        headers
    }

    /// Whether bytes of the base are still missing for what is to be published.
    fn needs_base(&self) -> bool {
        let size = self.state.stage.frozen().map_or(self.size, |frozen| frozen.size);
        let Some(store) = &self.store else { return false };
        let from_base = |range| store.extents.pieces(range, size).iter().any(|piece| piece.from == Source::Base);
        self.pieces(size).iter().any(|piece| match piece {
            Piece::Copy { part, range } => !self.state.is_copied(*part, *range),
            Piece::Upload(number) => {
                let range = self.plan.range_in(*number, size);
                !self.state.is_sent_for_publication(*number, range.len()) && from_base(range)
            }
        })
    }

    /// The trouble of a file of which BOS has lost bytes that were taken out of the full spool.
    pub(super) fn lost_in_bos(&self) -> Option<Trouble> {
        let store = self.store.as_ref()?;
        let held_by_bos = |range| {
            let mut parts = self.plan.parts_in(range);
            parts.all(|number| self.state.parts.get(&number).is_some_and(|part| part.held.is_some()))
        };
        let pieces = store.extents.pieces(ByteRange::new(0, self.size), self.size);
        let lost: Vec<String> = pieces
            .iter()
            .filter(|piece| piece.from == Source::Held && !held_by_bos(piece.range))
            .map(|piece| format!("{} to {}", piece.range.start, piece.range.end))
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

    /// What BOS holds of every piece of a publication of `size` bytes; `None` if something is missing.
    fn listed(&self, size: u64) -> Option<Vec<(PartNumber, Held)>> {
        let held = |number| self.state.parts.get(&number).and_then(|part| part.held.clone());
        self.pieces(size).iter().map(|piece| Some((piece.part(), held(piece.part())?))).collect()
    }
}

/// CRCs of the whole object, where every piece's are known.
fn whole_crcs(listed: &[(PartNumber, Held)]) -> Option<Crcs> {
    listed.iter().try_fold(Crcs::default(), |whole, (_, held)| {
        let sum = held.sum?;
        Some(whole.then(sum.crcs, sum.len))
    })
}

fn predicted_etag(listed: &[(PartNumber, Held)]) -> ETag {
    composed_etag(listed.iter().map(|(_, held)| &held.etag))
}

/// The verdict on a composed object, by the strongest checksum that BOS gives. `None`: nothing given, and HEAD was not
/// asked yet.
fn judge_composed(
    whole: Option<Crcs>,
    outcome: &StoredOutcome,
    predicted: Option<&ETag>,
    head_asked: bool,
) -> Option<Result<Proof, String>> {
    if let Some(whole) = whole {
        let checks = [
            ("CRC32C", outcome.crc32c.map(u64::from), u64::from(whole.crc32c)),
            ("CRC64", outcome.crc64, whole.crc64),
            ("CRC32", outcome.crc32.map(u64::from), u64::from(whole.crc32)),
        ];
        for (name, given, local) in checks {
            if let Some(given) = given {
                let differs = || format!("{name} of the object is {given}, of what was written {local}");
                return Some(if given == local { Ok(Proof::Proved) } else { Err(differs()) });
            }
        }
        if !head_asked {
            return None;
        }
    } else if !head_asked && predicted != Some(&outcome.etag) {
        return None;
    }
    if predicted != Some(&outcome.etag) {
        log::info!("BOS gives no checksum of the whole, and its ETag {} follows no known rule", outcome.etag);
    }
    Some(Ok(Proof::Composed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(etag: &str, crc32c: Option<u32>, crc64: Option<u64>, crc32: Option<u32>) -> StoredOutcome {
        StoredOutcome { etag: ETag::new(etag), crc32c, crc32, crc64, date: None }
    }

    const WHOLE: Crcs = Crcs { crc32c: 1, crc32: 2, crc64: 3 };

    #[test]
    fn the_strongest_checksum_that_bos_gives_decides() {
        let judge = |outcome: StoredOutcome| judge_composed(Some(WHOLE), &outcome, None, true).unwrap();
        assert_eq!(judge(answer("e", Some(1), None, None)), Ok(Proof::Proved));
        assert!(judge(answer("e", Some(9), Some(3), Some(2))).is_err());
        assert_eq!(judge(answer("e", None, Some(3), Some(9))), Ok(Proof::Proved));
        assert!(judge(answer("e", None, Some(9), None)).is_err());
        assert_eq!(judge(answer("e", None, None, Some(2))), Ok(Proof::Proved));
        assert!(judge(answer("e", None, None, Some(9))).is_err());
        assert_eq!(judge(answer("e", None, None, None)), Ok(Proof::Composed));
    }

    #[test]
    fn an_answer_without_checksums_is_not_the_last_word() {
        assert_eq!(judge_composed(Some(WHOLE), &answer("e", None, None, None), None, false), None);
    }

    #[test]
    fn copied_ranges_of_unknown_crc_are_proved_as_composed() {
        let etag = ETag::new("-x");
        let outcome = answer("-x", Some(5), None, None);
        assert_eq!(judge_composed(None, &outcome, Some(&etag), false), Some(Ok(Proof::Composed)));
        assert_eq!(judge_composed(None, &outcome, Some(&ETag::new("-y")), false), None, "size by HEAD first");
        assert_eq!(judge_composed(None, &outcome, Some(&ETag::new("-y")), true), Some(Ok(Proof::Composed)));
    }
}
