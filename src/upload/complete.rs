//! The steps that run alone: Initiate, PutObject, Complete, and what comes after the proof.

use std::sync::Arc;
use std::time::Instant;

use super::Published;
use super::dirty_file::DirtyFile;
use super::driver::Trouble;
use super::inner::{Inner, Removal};
use super::part::not_here;
use super::state::{Frozen, Stage};
use crate::bos::client::{Body, ObjectHeaders};
use crate::journal::Record;
use crate::journal::record::Proof;
use crate::object::{ByteRange, ETag, ObjectKey, PartNumber};
use crate::posix_meta::{MARK, write_attrs};
use crate::transfer::complete::{Completion, Outcome, complete_once, put};
use crate::transfer::initiate::initiate;
use crate::transfer::prove::{Expected, Given, judge};
use crate::transfer::{self, PlanError, settle};

impl DirtyFile {
    pub(super) async fn initiate(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, headers) = {
            let inner = self.lock();
            inner.check_reach(inner.state.stage.frozen().map_or(inner.size, |frozen| frozen.size))?;
            let mut headers = inner.state.headers.clone();
            headers.storage_class = headers.storage_class.or_else(|| self.shared.options.storage_class.clone());
            (inner.upload_key().clone(), headers)
        };
        let line = |_| {
            let mut inner = self.lock();
            if *inner.upload_key() != key {
                return Err(Trouble::Again(format!("it became {} before its upload was begun", inner.state.key)));
            }
            Ok(self.append(&mut inner, &Record::Initiating)?)
        };
        let upload_id = initiate(&self.shared.client, &key, &headers, &mut self.asking(&key), line).await?;
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
        let Some(mut frozen) = self.lock().state.stage.frozen().cloned() else { return Ok(()) };
        self.shared.release_clones(&self.key()).await?;
        let _slot = self.shared.act_slot().await;
        let range = ByteRange::new(0, frozen.size);
        self.fill(range).await?;
        let Some(sum) = self.seal(PartNumber::FIRST, range).await? else {
            return Err(Trouble::Again("the file changed while it was read".into()));
        };
        let (key, headers, mark, condition, body) = {
            let mut inner = self.lock();
            // Attributes may have been set meanwhile; its bytes cannot change.
            let Some(now) = inner.state.stage.frozen().filter(|now| now.close == frozen.close).cloned() else {
                return Ok(());
            };
            if inner.removal != Removal::None {
                return Ok(());
            }
            let Some(body) = inner.view().body(range) else { return Err(not_here(range)) };
            frozen = now;
            let mark = inner.state.mark(frozen.publication);
            let condition = inner.state.condition.clone();
            let headers = publication_headers(&frozen, &mark, self.shared.options.storage_class.as_ref());
            let publication = frozen.publication;
            let (mark_sent, condition_sent) = (mark.clone(), condition.clone());
            let record = Record::Putting { publication, mark: mark_sent, condition: condition_sent, sum };
            self.append(&mut inner, &record)?;
            (inner.state.key.clone(), headers, mark, condition, Body::Source(Arc::new(body)))
        };
        self.shared.rate.take(sum.len).await;
        let outcome = put(&self.shared.client, &key, body, &sum, &headers, &mark, &condition).await?;
        let (etag, stored_between, verdict) = match outcome {
            Outcome::Made(made) => (made.etag, made.stored_between, Ok(Proof::Proved)),
            Outcome::Differs { etag: Some(etag), what } => (etag, None, Err(what)),
            Outcome::Differs { etag: None, what } => {
                // Not stored; it is read and hashed anew.
                self.lock().live.entry(PartNumber::FIRST).or_default().sealed = None;
                return Err(Trouble::Again(what));
            }
            Outcome::PartsMissing(e) | Outcome::UploadGone(e) | Outcome::Refused(e) | Outcome::Unanswered(e) => {
                return Err(e.into());
            }
        };
        {
            let mut inner = self.lock();
            inner.meter.add(sum.len);
            inner.stored_between = stored_between;
            let (publication, size) = (frozen.publication, frozen.size);
            self.append(&mut inner, &Record::Completed { publication, etag, size })?;
        }
        self.conclude(frozen, verdict).await
    }

    pub(super) async fn complete(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, upload, contested) = {
            let inner = self.lock();
            let Some(upload) = inner.state.upload.clone() else { return Ok(()) };
            (inner.state.key.clone(), upload, inner.state.parts.values().any(|part| part.contested))
        };
        let in_bos = upload.in_bos(&self.shared.client);
        if contested {
            // An older body of some part may have arrived last.
            let listed = settle::parts(&in_bos).await?;
            let mut inner = self.lock();
            let Some(listed) = listed else {
                inner.reconcile = true;
                return Err(Trouble::Again(format!("BOS no longer has upload {}", upload.id)));
            };
            self.compare_parts(&mut inner, &listed)?;
            return Ok(());
        }
        self.shared.release_clones(&key).await?;
        let (frozen, listed, expected, headers, mark, condition) = {
            let mut inner = self.lock();
            let Some(frozen) = inner.state.stage.frozen().cloned() else { return Ok(()) };
            if inner.removal != Removal::None {
                return Ok(());
            }
            inner.check_reach(frozen.size)?;
            let Some(listed) = inner.listed(frozen.size) else {
                return Err(Trouble::Again("a part is missing".into()));
            };
            let expected = Expected::composed(frozen.size, &listed).map_err(|e| uneven(&key, &e))?;
            let mark = inner.state.mark(frozen.publication);
            let condition = inner.state.condition.clone();
            let headers = publication_headers(&frozen, &mark, None);
            let record = Record::Completing {
                publication: frozen.publication,
                mark: mark.clone(),
                condition: condition.clone(),
                size: frozen.size,
                part_count: listed.len() as u32,
            };
            self.append(&mut inner, &record)?;
            (frozen, listed, expected, headers, mark, condition)
        };
        if !self.sync_announcement(&frozen).await? {
            return Ok(());
        }
        let parts: Vec<(PartNumber, ETag)> = listed.iter().map(|(number, held)| (*number, held.etag.clone())).collect();
        // Under the name that the file has: were it renamed just now, its upload is not there, and BOS refuses.
        let in_bos = transfer::Upload { key: &key, ..in_bos };
        let (size, headers, mark, condition) = (frozen.size, &headers, &*mark, &condition);
        let completion = Completion { upload: in_bos, parts: &parts, headers, mark, size, condition };
        let made = match complete_once(&completion).await? {
            Outcome::Made(made) => made,
            Outcome::Differs { what, .. } => return Err(Trouble::Again(what)),
            Outcome::PartsMissing(e) | Outcome::UploadGone(e) | Outcome::Refused(e) | Outcome::Unanswered(e) => {
                return Err(e.into());
            }
        };
        {
            let mut inner = self.lock();
            inner.stored_between = made.stored_between;
            let (publication, etag) = (frozen.publication, made.etag);
            self.append(&mut inner, &Record::Completed { publication, etag, size })?;
        }
        // An answer without any CRC leaves the proof to the HEAD of the next step.
        match made.answer.and_then(|answer| judge(&expected, &Given::from(&answer))) {
            Some(verdict) => {
                let verdict = self.proof_of(&key, verdict);
                self.conclude(frozen, verdict).await
            }
            None => Ok(()),
        }
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
            let class = self.shared.options.storage_class.as_ref();
            let headers = publication_headers(&frozen, &mark, class);
            let stored_between = inner.stored_between.take();
            // What the file has now may be newer.
            let mut now = inner.state.headers.clone();
            now.metadata.insert(MARK.to_owned(), mark);
            now.storage_class = now.storage_class.or_else(|| class.cloned());
            (Published { etag, size: frozen.size, attrs: frozen.attrs, headers, stored_between }, now)
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
        inner.tidying = true;
        inner.live.clear();
        inner.ready.clear();
        inner.settled_publication = frozen.publication;
        inner.reconcile = false;
        drop(inner);
        self.notify();
        Ok(())
    }

    /// After the proof: the journal goes if nothing newer is there. Else the layers above lie over the new object as they are,
    /// and only those of the publication go.
    pub(super) async fn tidy(self: &Arc<Self>) -> Result<(), Trouble> {
        let (journal, dir, ids) = {
            let mut inner = self.lock();
            let newer = inner.new_content || inner.new_file || inner.state.stage != Stage::Open;
            let store = inner.store()?;
            // A journal of which lines are certain must not come back without the last ones after a power loss: it would ask
            // for a publication that was made, or replaced, long ago.
            let certain = store.journal.may_be_synced() || self.shared.name_lines.lock().is_certain(&store.dir);
            let syncs = newer || certain;
            let handle = syncs.then(|| store.journal.sync_handle()).transpose().map_err(super::WriteError::from)?;
            (handle, store.dir.clone(), store.dropped.iter().map(|layer| layer.id).collect::<Vec<_>>())
        };
        let synced = journal.is_some();
        if let Some(journal) = journal {
            // "completed" on stable storage before the only local copy goes.
            let synced = tokio::task::spawn_blocking(move || journal.sync_data()).await;
            synced.map_err(|e| Trouble::Again(e.to_string()))?.map_err(super::WriteError::from)?;
        }
        if let Some(done) = self.retire_if_done() {
            self.shared.finished(self, done);
            self.notify();
            return Ok(());
        }
        if !synced {
            // A small file whose handle is still open: its layer goes with the release, or under the next one. That costs no
            // sync.
            self.notify();
            return Ok(());
        }
        let file = self.clone();
        let put_away = tokio::task::spawn_blocking(move || file.remove_layers(&dir, &ids)).await;
        self.notify();
        put_away.map_err(|e| Trouble::Again(e.to_string()))?.map_err(super::WriteError::from)?;
        Ok(())
    }

    /// Puts the whole place on the disk away, if nothing newer than the proved publication is there.
    fn retire_if_done(&self) -> Option<super::shared::Finished> {
        let mut inner = self.lock();
        let changed = inner.new_content || inner.new_file || inner.state.stage != Stage::Open;
        if !changed && !inner.state.attrs_differ() && inner.writers == 0 {
            let done = finished(&inner);
            self.retire(&mut inner);
            return Some(done);
        }
        inner.tidying = false;
        // Full parts that were written meanwhile.
        inner.resend();
        None
    }
}

/// The refusal of a list of parts that are not what is to be published; nothing was sent.
fn uneven(key: &ObjectKey, error: &PlanError) -> Trouble {
    Trouble::Final {
        errno: libc::EIO,
        message: format!(
            "{key}: {error}; nothing was published and its bytes are kept: `bosfs uploads resume` or a new mount tries it again"
        ),
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

/// Headers of a publication: those of the file at its close, its attributes, its mark.
pub(super) fn publication_headers(frozen: &Frozen, mark: &str, class: Option<&String>) -> ObjectHeaders {
    let mut headers = frozen.headers.clone();
    write_attrs(&mut headers.metadata, &frozen.attrs);
    headers.metadata.insert(MARK.to_owned(), mark.to_owned());
    headers.storage_class = headers.storage_class.or_else(|| class.cloned());
    headers
}
