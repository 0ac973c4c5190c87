//! A dirty file under another name, and files that are expected to get one.
//!
//! A new file of which BOS has no object changes its name here alone: the next publication goes to the new key. What was
//! sent under a key that the file will not have is ended and sent again from the spool; a temporary whose target was
//! guessed right has sent its parts there from the start.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dirty_file::DirtyFile;
use super::driver::Trouble;
use super::inner::{Inner, Removal};
use super::registry::Uploads;
use super::state::{Carried, Stage};
use super::{Published, WriteError};
use crate::bos::client::ObjectHeaders;
use crate::journal::Record;
use crate::moves::RenamedObject;
use crate::object::{BaseObject, ByteRange, Condition, ETag, ObjectKey, PartNumber};
use crate::posix_meta::{XATTRS, write_attrs};
use crate::transfer::settle::head;

/// How long a closed temporary waits for its rename.
pub(super) const PARKED: Duration = Duration::from_secs(10);

/// What a rename must do about a dirty file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameWay {
    /// BOS has nothing of it under its key: only the name changes.
    Here,
    /// An object of it exists, or is about to: wait for that, copy, delete. What is dirty goes along.
    Copy,
    /// Its object is to be replaced by a copy of another one: the bytes of that have to be here first
    /// ([`DirtyFile::take_clone`]).
    Fetch,
    /// Not before it is closed: parts of it are only in BOS, under the old key.
    Busy,
}

/// What became of a file whose name another one takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Displaced {
    /// Its publication is under way: wait for it, then ask again.
    Busy,
    /// It gives way.
    Gone,
}

/// What is on its way from a dirty file to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnTheWay {
    /// A publication whose outcome is not known yet.
    Publication,
    /// Nothing that cannot be taken back; BOS has this object of it, or none.
    Nothing(Option<ETag>),
}

/// See [`DirtyFile::hold_attrs`].
pub struct AttrsHeld(Arc<DirtyFile>);

impl Drop for AttrsHeld {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.attrs_held = inner.attrs_held.saturating_sub(1);
        drop(inner);
        self.0.start_driver();
    }
}

impl DirtyFile {
    /// How it can be renamed to `key` at this moment.
    pub fn rename_way(&self, key: &ObjectKey) -> RenameWay {
        self.lock().rename_way(key)
    }

    /// Gives a file that is to be renamed [`RenameWay::Here`] its new key; `condition` is what the next publication demands
    /// of it. Nothing is asked of BOS. `false`: it cannot be done here any more.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn rename(self: &Arc<Self>, key: &ObjectKey, condition: Condition) -> Result<bool, WriteError> {
        let mut inner = self.lock();
        if inner.rename_way(key) != RenameWay::Here || inner.removal != Removal::None {
            return Ok(false);
        }
        self.materialise(&mut inner)?;
        let old = inner.state.key.clone();
        self.append(&mut inner, &Record::Renamed { key: key.clone(), condition, base: None })?;
        inner.temporary = None;
        inner.misplaced = inner.state.upload.as_ref().is_some_and(|upload| upload.key != *key);
        self.shared.rekey(self, &old, key);
        drop(inner);
        self.notify();
        self.start_driver();
        Ok(true)
    }

    /// What the next publication demands of its key is another thing now: what had the name was published once more.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn expect(&self, condition: Condition) -> Result<(), WriteError> {
        let mut inner = self.lock();
        let unsent = matches!(inner.state.stage, Stage::Open | Stage::Closed(_)) && !inner.tidying;
        if inner.store.is_none() || !unsent || inner.removal != Removal::None {
            return Ok(());
        }
        let key = inner.state.key.clone();
        self.append(&mut inner, &Record::Renamed { key, condition, base: None })
    }

    /// Its object was copied to `key`, where it has `etag` and carries what this file has now as attributes; the old one is
    /// gone or going. What is dirty stays so, over the new object.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn moved(self: &Arc<Self>, key: &ObjectKey, etag: &ETag) -> Result<(), WriteError> {
        let mut inner = self.lock();
        let old = inner.state.key.clone();
        let Some(base) = inner.state.base.clone() else { return Ok(()) };
        if old == *key && base.key.is_none() && base.etag == *etag {
            return Ok(());
        }
        let base = BaseObject::own(etag.clone(), base.size);
        let record =
            Record::Renamed { key: key.clone(), condition: Condition::Matches(etag.clone()), base: Some(base) };
        if inner.store.is_some() {
            self.append(&mut inner, &record)?;
            let (attrs, xattrs) = (inner.state.attrs, inner.state.xattrs());
            if !inner.new_content && !inner.new_file {
                self.append(&mut inner, &Record::AttrsCopied { etag: etag.clone(), attrs, xattrs })?;
            }
        } else {
            inner.state.apply(&record);
            inner.state.carried = Some(Carried { attrs: inner.state.attrs, xattrs: inner.state.xattrs() });
        }
        if let Some(carried) = inner.state.carried.clone() {
            let size = inner.state.base.as_ref().map_or(0, |base| base.size);
            let mut headers = inner.state.headers.clone();
            write_attrs(&mut headers.metadata, &carried.attrs);
            let (etag, attrs) = (etag.clone(), carried.attrs);
            inner.last_published = Some(Published { etag, size, attrs, headers, stored_between: None });
            inner.proved_at = Some(Instant::now());
        }
        inner.misplaced = inner.state.upload.as_ref().is_some_and(|upload| upload.key != *key);
        self.shared.rekey(self, &old, key);
        if inner.writers == 0 && !inner.is_pending() {
            self.retire(&mut inner);
        }
        drop(inner);
        self.notify();
        self.start_driver();
        Ok(())
    }

    /// Publishes it under the free key `key` instead of its own, where somebody else's object is or something else keeps it
    /// from being published. What BOS holds under its present key is left.
    ///
    /// # Errors
    /// `EEXIST` when `key` is taken, `EBUSY` when the file is in use or bytes of it are only in BOS, under the old key; as
    /// [`DirtyFile::publish`]. Only in the last case the file has the new key.
    pub(super) async fn complete_as(self: &Arc<Self>, key: &ObjectKey) -> Result<(), WriteError> {
        let old = self.key();
        let refuse = |errno, why: String| {
            let what = format!("{old} cannot be published as {key}: {why}; nothing was changed and its bytes are kept");
            WriteError::failed(errno, what)
        };
        match head(&self.shared.client, key).await {
            Ok(None) => {}
            Err(error) => return Err(refuse(error.errno(), format!("{error}; try again"))),
            Ok(Some(head)) => {
                let why = format!("BOS has an object of {} bytes there; try again with another key", head.size);
                return Err(refuse(libc::EEXIST, why));
            }
        }
        {
            let mut inner = self.lock();
            if inner.writers > 0 || inner.removal != Removal::None {
                return Err(refuse(libc::EBUSY, "a program has it open; close it and try again".into()));
            }
            if inner.store.is_none() || inner.driving {
                return Err(refuse(libc::EBUSY, "it is on its way to BOS; wait for that, or try again".into()));
            }
            if inner.state.parts.values().any(|part| part.punched) {
                let why = "parts of it are only in its upload in BOS; decide with `bosfs uploads complete --force` or \
                           `bosfs uploads abort`";
                return Err(refuse(libc::EBUSY, why.into()));
            }
            if self.shared.has_file(key) {
                return Err(refuse(libc::EEXIST, "another file of that name is being written; try again later".into()));
            }
            if let Some(base) = inner.state.base.clone() {
                // Unchanged bytes are those of the object under the old key.
                let base = BaseObject { key: Some(inner.state.base_key().clone()), ..base };
                let end = inner.state.base_end();
                self.append(&mut inner, &Record::Cloned { base, end, grows: false })?;
            }
            let renamed = Record::Renamed { key: key.clone(), condition: Condition::Absent, base: None };
            self.append(&mut inner, &renamed)?;
            inner.temporary = None;
            inner.check_base = None;
            inner.misplaced = inner.state.upload.as_ref().is_some_and(|upload| upload.key != *key);
            inner.given_away = true;
            self.shared.rekey(self, &old, key);
            self.retry(&mut inner, false)?;
            inner.inherited = false;
        }
        self.notify();
        self.publish_and_wait().await
    }

    /// Waits for a publication that is on its way, so that its object can be copied. Begins none: what is written and not
    /// closed stays unpublished. `false`: ask again how it can be renamed.
    ///
    /// # Errors
    /// What keeps the file from being published.
    pub async fn settle_for_copy(self: &Arc<Self>) -> Result<bool, WriteError> {
        self.start_driver();
        let predecessor = {
            let inner = self.lock();
            let under_way = inner.state.stage != Stage::Open || inner.tidying;
            if !under_way && inner.state.base.as_ref().is_some_and(|base| base.key.is_none()) {
                return Ok(true);
            }
            inner.trouble()?;
            if under_way { None } else { inner.known_object() }
        };
        match predecessor {
            Some(etag) => self.drop_predecessor(&etag).await?,
            None => self.changed().await,
        }
        Ok(false)
    }

    /// A new file took its key over from an unlinked one, whose object is still there, and is about to leave it: the object
    /// goes now.
    async fn drop_predecessor(self: &Arc<Self>, etag: &ETag) -> Result<(), WriteError> {
        let key = self.key();
        let failed = |error: &dyn std::fmt::Display| {
            WriteError::failed(
                libc::EIO,
                format!("{key}: the object of an unlinked file of that name could not be removed: {error}; try again"),
            )
        };
        // Somebody else's object that took its place is left.
        let removed = self.shared.client.remove_object(&key, None, |head| head.etag == *etag).await;
        removed.map_err(|error| failed(&error))?;
        let mut inner = self.lock();
        let is_elsewhere = inner.state.base.is_none() || inner.state.reads_elsewhere();
        if inner.known_object().as_ref() == Some(etag) && is_elsewhere && inner.state.stage == Stage::Open {
            self.append(&mut inner, &Record::Renamed { key: key.clone(), condition: Condition::Absent, base: None })?;
        }
        Ok(())
    }

    /// Whether it was closed and nobody went on with it since: no program has it open for writing, or the release of its
    /// handle, which comes behind the close, is still to arrive.
    pub fn is_closed(&self) -> bool {
        let inner = self.lock();
        inner.writers == 0 || inner.state.parked
    }

    /// Whether nothing was changed since the last close.
    pub fn is_unchanged(&self) -> bool {
        let inner = self.lock();
        !inner.new_content && !inner.new_file
    }

    /// Whether a program has it open for writing.
    pub fn is_open(&self) -> bool {
        self.lock().writers > 0
    }

    /// Sends attributes that are gathered at once, and waits for that. Nobody writes to the file.
    ///
    /// # Errors
    /// What keeps the file from being published.
    pub async fn send_attrs(self: &Arc<Self>) -> Result<(), WriteError> {
        loop {
            {
                let mut inner = self.lock();
                inner.trouble()?;
                let pending = inner.attrs_pending() && !inner.new_content && !inner.new_file;
                if !pending || inner.writers > 0 || inner.removal != Removal::None {
                    return Ok(());
                }
                inner.attrs_due = Some(Instant::now());
            }
            self.start_driver();
            self.wake.notify_one();
            self.changed().await;
        }
    }

    /// Waits until no copy of the object onto itself is on its way, and lets none begin as long as the answer lives: the
    /// object is about to be moved, with [`DirtyFile::pending_headers`].
    pub async fn hold_attrs(self: &Arc<Self>) -> AttrsHeld {
        loop {
            {
                let mut inner = self.lock();
                if !inner.copying_attrs {
                    inner.attrs_held += 1;
                    return AttrsHeld(self.clone());
                }
            }
            self.changed().await;
        }
    }

    /// Headers that its object must get although nothing else is new: attributes that are still to be sent.
    pub fn pending_headers(&self) -> Option<ObjectHeaders> {
        let inner = self.lock();
        if inner.new_content || inner.new_file || !inner.state.attrs_differ() {
            return None;
        }
        let mut headers = inner.state.headers.clone();
        write_attrs(&mut headers.metadata, &inner.state.attrs);
        Some(headers)
    }

    /// As [`DirtyFile::publish_and_wait`], as far as a close in write-back mode waits: synced to the local disk.
    ///
    /// # Errors
    /// When the local disk fails.
    pub async fn publish_in_background(self: &Arc<Self>) -> Result<(), WriteError> {
        self.begin_publication(&mut self.lock(), true)?;
        self.start_driver();
        self.sync().await
    }

    /// The object of it that BOS has now.
    pub fn object(&self) -> Option<Published> {
        let inner = self.lock();
        let base = inner.state.base.clone().filter(|base| base.key.is_none())?;
        let carried = inner.state.carried.clone()?;
        let mut headers =
            inner.last_published.as_ref().map_or_else(|| inner.state.headers.clone(), |p| p.headers.clone());
        write_attrs(&mut headers.metadata, &carried.attrs);
        match carried.xattrs {
            Some(xattrs) => headers.metadata.insert(XATTRS.to_owned(), xattrs),
            None => headers.metadata.remove(XATTRS),
        };
        Some(Published { etag: base.etag, size: base.size, attrs: carried.attrs, headers, stored_between: None })
    }

    /// What a file that is about to take its name has to wait for, and to expect at its key.
    pub fn on_the_way(self: &Arc<Self>) -> OnTheWay {
        let inner = self.lock();
        let under_way = inner.tidying || !matches!(inner.state.stage, Stage::Open | Stage::Closed(_));
        if under_way && inner.state.conflict.is_none() && inner.state.failed.is_none() {
            drop(inner);
            self.start_driver();
            return OnTheWay::Publication;
        }
        OnTheWay::Nothing(inner.known_object())
    }

    /// Another file takes its name. Handles that are open (`keep`) go on with what is here; nothing of it is published any
    /// more, and the object at the key is left to the other file.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn displace(self: &Arc<Self>, keep: bool) -> Result<Displaced, WriteError> {
        let mut inner = self.lock();
        let under_way = inner.tidying || !matches!(inner.state.stage, Stage::Open | Stage::Closed(_));
        if under_way && inner.state.conflict.is_none() && inner.state.failed.is_none() {
            drop(inner);
            self.start_driver();
            return Ok(Displaced::Busy);
        }
        if inner.removal == Removal::None {
            if inner.store.is_some() {
                self.append(&mut inner, &Record::Discarded)?;
            } else {
                inner.state.discarded = true;
            }
            inner.removal = if keep { Removal::Orphaned } else { Removal::Wanted };
            self.shared.displaced(self);
        } else if inner.removal == Removal::Orphaned && !keep {
            inner.removal = Removal::Wanted;
        }
        self.shared.forget(self, &inner.state.key);
        drop(inner);
        self.notify();
        self.start_driver();
        Ok(Displaced::Gone)
    }

    /// Something new takes the name that this file lost: the object at the key is not removed with it.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub(super) fn leave_object(self: &Arc<Self>) -> Result<Displaced, WriteError> {
        let mut inner = self.lock();
        if inner.removal == Removal::Done {
            return Ok(Displaced::Gone);
        }
        // What is under way must have ended: a publication that came late, or a removal, would meet the new file's object.
        if inner.removal == Removal::Wanted || inner.driving {
            if !inner.driving {
                // What keeps it from being removed does not pass by itself.
                inner.trouble()?;
            }
            drop(inner);
            self.start_driver();
            return Ok(Displaced::Busy);
        }
        if inner.store.is_some() {
            self.append(&mut inner, &Record::Discarded)?;
        } else {
            inner.state.discarded = true;
        }
        Ok(Displaced::Gone)
    }

    /// Waits until something about the file changes, at most for a moment.
    pub async fn changed(&self) {
        let mut changed = self.subscribe();
        let _ = tokio::time::timeout(Duration::from_millis(50), changed.changed()).await;
    }

    /// Puts a closed temporary aside until it is renamed.
    pub(super) fn park(self: &Arc<Self>, inner: &mut Inner) -> Result<(), WriteError> {
        self.materialise(inner)?;
        if !inner.state.parked {
            self.append(inner, &Record::Parked)?;
        }
        inner.parked_until = (inner.writers == 0).then(|| Instant::now() + PARKED);
        Ok(())
    }

    /// Publishes a parked file under the name that it has: nobody renamed it in time, or the mount ends.
    pub(super) fn unpark(self: &Arc<Self>) -> Result<(), WriteError> {
        let mut inner = self.lock();
        if inner.state.parked && inner.writers == 0 && inner.removal == Removal::None {
            inner.temporary = None;
            self.begin_publication(&mut inner, true)?;
        }
        drop(inner);
        self.start_driver();
        Ok(())
    }

    /// Ends an upload under a key that the file does not have: its parts are sent again under the right one.
    pub(super) async fn end_upload(self: &Arc<Self>) -> Result<(), Trouble> {
        let upload = self.lock().state.upload.clone();
        if let Some(upload) = upload {
            self.abort(&upload).await?;
        }
        let mut inner = self.lock();
        self.append(&mut inner, &Record::UploadEnded)?;
        inner.misplaced = false;
        inner.reconcile = false;
        inner.resend();
        Ok(())
    }
}

impl Uploads {
    /// An object was renamed: what is dirty over it goes along, and what is dirty under the name that it took is given up.
    /// Journaled before the rename leaves its own journal, so that a crash in between ends on the same side.
    ///
    /// # Errors
    /// When a journal cannot be written.
    pub async fn follow_rename(&self, renamed: &RenamedObject) -> Result<(), WriteError> {
        let RenamedObject { from, from_etag, to, etag: to_etag, recovered } = renamed;
        let over = |file: &Arc<DirtyFile>, etag: &ETag| {
            file.lock().state.base.as_ref().is_some_and(|base| base.key.is_none() && base.etag == *etag)
        };
        let moving = self.find(from).filter(|file| over(file, from_etag));
        if let Some(there) = self.find(to) {
            // After a crash behind these lines it is the renamed file itself.
            let followed = moving.is_none() && over(&there, to_etag);
            while !followed && there.displace(!recovered)? == Displaced::Busy {
                if !recovered {
                    // Whoever renames waits for it.
                    log::warn!("{to}: it was replaced by a rename while it was being published");
                    break;
                }
                // After a start its publication goes on beside this. The condition that it was sent under no longer holds.
                if there.shared.stop.is_cancelled() {
                    return Err(there.stopped());
                }
                there.changed().await;
            }
            if !followed {
                there.make_lines_durable().await?;
            }
        }
        match moving {
            Some(file) => {
                file.moved(to, to_etag)?;
                // Behind this the journal of the rename goes, which would have told of it after power loss.
                file.make_lines_durable().await
            }
            None => Ok(()),
        }
    }
}

impl Inner {
    fn rename_way(&self, key: &ObjectKey) -> RenameWay {
        let state = &self.state;
        let known = self.known_object().is_some();
        // Else the object there is that of an unlinked file, which goes.
        let is_own = state.carried.is_some();
        let settled = state.stage == Stage::Open && !self.tidying;
        let sent_there = state.upload.as_ref().is_none_or(|upload| upload.key == *key);
        let punched = state.parts.values().any(|part| part.punched);
        if settled && punched && !sent_there {
            RenameWay::Busy
        } else if settled && known && is_own && state.reads_elsewhere() {
            RenameWay::Fetch
        } else if settled && !known {
            RenameWay::Here
        } else {
            RenameWay::Copy
        }
    }

    /// Whether the upload has to end before a part is sent.
    pub(super) fn is_misplaced(&self) -> bool {
        self.state.upload.as_ref().is_some_and(|upload| upload.key != *self.upload_key())
    }

    /// Nothing counts as sent any more: the full parts are ready once more.
    pub(super) fn resend(&mut self) {
        for number in self.plan.parts_in(ByteRange::new(0, self.size)) {
            self.ready_again(number);
        }
    }

    /// The part is ready once more, if it is full and the writer has moved on.
    pub(super) fn ready_again(&mut self, number: PartNumber) {
        let range = self.plan.range(number);
        let is_full = range.end < self.size && self.open_view().is_spooled(range);
        if is_full && self.state.stage == Stage::Open && !self.state.is_sent(number, range.len()) {
            self.ready.insert(number);
        }
    }
}
