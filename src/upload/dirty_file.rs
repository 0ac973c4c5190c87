//! One file with bytes that BOS does not have yet: what the kernel's calls do to spool, map and journal.
//!
//! All of a file's changing state (`inner.rs`) is behind one lock; it is held for local disk work only, never across a
//! request to BOS. `publish.rs` freezes and waits, `driver.rs` and its steps send.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::checkpoint::JOURNAL_BYTES_MIN;
use super::inner::{Inner, Removal, Store};
use super::shared::Shared;
use super::state::{FileState, Stage};
use super::unsynced::Changes;
use super::{Opening, Published, WriteError};
use crate::bos::client::ObjectHeaders;
use crate::journal::log::errno_of;
use crate::journal::record::FORMAT;
use crate::journal::{Journal, Record};
use crate::object::{FileAttrs, ObjectKey, Timestamp};
use crate::write::block_map::BLOCK_BYTES;
use crate::write::layers::{Layer, remove_files};
use crate::write::spool::Spool;

/// How long changes of a finished object's attributes are gathered before they are sent.
const ATTRS_GATHERED: Duration = Duration::from_millis(500);

/// One file with bytes that BOS does not have (or has not proved) yet. All methods that are not `async` return without
/// waiting for the network.
pub struct DirtyFile {
    /// Itself, for tasks that it starts.
    me: Weak<DirtyFile>,
    pub(super) shared: Arc<Shared>,
    inner: Mutex<Inner>,
    /// Counts changes that a waiter may wait for.
    changed: watch::Sender<u64>,
    /// Wakes the driver.
    pub(super) wake: Notify,
    /// Since when nothing new is to be synced.
    pub(super) changes: Changes,
}

impl DirtyFile {
    pub(super) fn begin(shared: Arc<Shared>, opening: Opening) -> Arc<Self> {
        let size = opening.base.as_ref().map_or(0, |base| base.size);
        let state = FileState::opened(&opened_record(&shared, String::new(), &opening))
            .unwrap_or_else(|_| unreachable!("an opened record of our own format"));
        let plan = shared.plan_for(size);
        let jobs_max = shared.jobs_max();
        let inner = Inner {
            size,
            new_file: opening.created,
            temporary: opening.temporary,
            ..Inner::new(state, None, plan, jobs_max)
        };
        Self::with_inner(shared, inner)
    }

    pub(super) fn recovered(shared: Arc<Shared>, state: FileState, store: Store) -> Arc<Self> {
        let size = store.layers.last().map_or_else(|| state.base.as_ref().map_or(0, |base| base.size), Layer::size);
        let len = state.base.as_ref().map_or(0, |base| base.size).max(size);
        let plan = state.upload.as_ref().map_or_else(|| shared.plan_for(len), |upload| upload.plan.clone());
        let spooled_bytes = store.spool_blocks() * BLOCK_BYTES;
        shared.budget.take(spooled_bytes);
        shared.stores.fetch_add(1, Ordering::Relaxed);
        let jobs_max = shared.jobs_max();
        let settled_publication = match state.stage.frozen() {
            Some(frozen) => frozen.publication - 1,
            None => state.publications,
        };
        let tidying = state.published.is_some();
        let reconcile = state.upload.is_some() || !matches!(state.stage, Stage::Open | Stage::Closed(_));
        // Whoever was told of an old conflict is gone.
        let failures = u64::from(state.conflict.is_some());
        let mut inner = Inner {
            size,
            reconcile,
            settled_publication,
            tidying,
            removal: if state.unlinked || state.discarded { Removal::Wanted } else { Removal::None },
            spooled_bytes,
            failures,
            unanswered: state.stage.frozen().filter(|_| state.stage.is_sent()).map(|frozen| frozen.publication),
            ..Inner::new(state, Some(store), plan, jobs_max)
        };
        inner.new_content = inner.has_open_changes();
        inner.inherited = inner.new_content;
        // Also behind a publication: somebody else may have replaced it since.
        let is_open = inner.state.stage == Stage::Open && inner.new_content;
        inner.check_base = (is_open || inner.state.restarted).then_some(0);
        Self::with_inner(shared, inner)
    }

    fn with_inner(shared: Arc<Shared>, inner: Inner) -> Arc<Self> {
        if inner.state.reads_elsewhere() {
            shared.has_clones.store(true, Ordering::SeqCst);
        }
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            shared,
            inner: Mutex::new(inner),
            changed: watch::Sender::new(0),
            wake: Notify::new(),
            changes: Changes::default(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Whether something is not in BOS, or somebody works on the file right now. Never waits.
    pub(super) fn is_pending_or_busy(&self) -> bool {
        self.inner.try_lock().is_none_or(|inner| inner.is_pending() || inner.store.is_some() || inner.writers > 0)
    }

    /// Tells everybody who waits for a change of this file.
    pub(super) fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Itself, to be kept by a task; `None` only while it is being made or dropped.
    pub(super) fn me(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Its key.
    pub fn key(&self) -> ObjectKey {
        self.lock().state.key.clone()
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.lock().size
    }

    /// Mode, owner, time.
    pub fn attrs(&self) -> FileAttrs {
        self.lock().state.attrs
    }

    /// Where its journal lies; `None` while nothing has changed.
    pub fn dir(&self) -> Option<PathBuf> {
        self.lock().store.as_ref().map(|store| store.dir.clone())
    }

    /// Time of the last change of bytes or attributes.
    pub fn ctime(&self) -> Timestamp {
        self.lock().ctime
    }

    /// Extended attributes, as they are stored with the object.
    pub fn xattrs(&self) -> Option<String> {
        self.lock().state.xattrs()
    }

    /// Headers that travel with its publications.
    pub fn headers(&self) -> ObjectHeaders {
        self.lock().state.headers.clone()
    }

    /// Changes mode, owner or time. They ride on the next publication; a finished object is given them by a copy onto
    /// itself, a moment later, so that several changes cost one copy.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn set_attrs(self: &Arc<Self>, attrs: FileAttrs) -> Result<(), WriteError> {
        let mut inner = self.lock();
        inner.ctime = Timestamp::now();
        if inner.state.attrs == attrs {
            return Ok(());
        }
        self.materialise(&mut inner)?;
        self.append(&mut inner, &Record::Attrs { attrs })?;
        if let Some(top) = inner.store.as_ref().and_then(|store| store.layers.last()) {
            note_mtime(&top.spool, &inner.state.key, attrs.mtime);
        }
        self.attrs_changed(inner);
        Ok(())
    }

    /// Changes the extended attributes; travels as [`DirtyFile::set_attrs`].
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn set_xattrs(self: &Arc<Self>, xattrs: Option<String>) -> Result<(), WriteError> {
        let mut inner = self.lock();
        inner.ctime = Timestamp::now();
        if inner.state.xattrs() == xattrs {
            return Ok(());
        }
        self.materialise(&mut inner)?;
        self.append(&mut inner, &Record::Xattrs { xattrs })?;
        self.attrs_changed(inner);
        Ok(())
    }

    fn attrs_changed(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        if inner.attrs_due.is_none() {
            inner.attrs_due = Some(Instant::now() + ATTRS_GATHERED);
        }
        if inner.writers == 0 && !inner.is_pending() && !inner.copying_attrs && inner.removal == Removal::None {
            // They are again what the object carries.
            self.retire(&mut inner);
        }
        drop(inner);
        self.notify();
        self.start_driver();
    }

    /// What the file is in BOS while nothing newer is here: the last publication, or the base that was never changed.
    /// `None` while something is unpublished.
    pub fn settled(&self) -> Option<Published> {
        let inner = self.lock();
        let given_up = inner.removal == Removal::Done && inner.state.discarded;
        if !given_up && (inner.is_pending() || inner.removal != Removal::None) {
            return None;
        }
        let base = inner.state.base.clone().filter(|base| base.key.is_none())?;
        Some(inner.last_published.clone().unwrap_or_else(|| Published {
            etag: base.etag,
            size: base.size,
            attrs: inner.state.attrs,
            headers: inner.state.headers.clone(),
            stored_between: None,
        }))
    }

    /// The last publication, whether or not newer bytes are dirty.
    pub fn published(&self) -> Option<Published> {
        self.lock().last_published.clone()
    }

    /// When BOS confirmed the last publication; `None`: this mount has published nothing of it under the name by which its
    /// inode is known.
    pub fn proved_at(&self) -> Option<Instant> {
        let inner = self.lock();
        inner.proved_at.filter(|_| !inner.given_away)
    }

    /// Writes a line and applies it: the only way the state changes.
    pub(super) fn append(&self, inner: &mut Inner, record: &Record) -> Result<(), WriteError> {
        let key = inner.state.key.clone();
        inner.store()?.journal.append(record).map_err(|e| disk_error(&key, &e))?;
        inner.state.apply(record);
        self.note_line(inner, record, &key);
        if let Some(store) = inner.store.as_mut() {
            store.follow(&inner.state);
            if store.journal.len_bytes() >= store.checkpoint_at {
                self.consider_checkpoint(inner);
            }
        }
        if inner.state.reads_elsewhere() {
            self.shared.has_clones.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Gives the file its place on the local disk, if it has none.
    pub(super) fn materialise(self: &Arc<Self>, inner: &mut Inner) -> Result<(), WriteError> {
        if inner.store.is_some() {
            return Ok(());
        }
        let key = inner.state.key.clone();
        let opening = Opening {
            key: key.clone(),
            base: inner.state.base.clone(),
            condition: inner.state.condition.clone(),
            headers: inner.state.headers.clone(),
            attrs: inner.state.attrs,
            created: inner.new_file,
            temporary: inner.temporary.clone(),
        };
        let build = || -> std::io::Result<(Record, Store)> {
            let (journal_id, dir) = self.shared.state_dir.create_upload()?;
            let opened = opened_record(&self.shared, journal_id, &opening);
            let fill = || -> std::io::Result<Store> {
                let layer = Layer::create(&dir, 1, inner.size)?;
                note_mtime(&layer.spool, &key, opening.attrs.mtime);
                // Last: a directory without a journal holds nothing that was accepted.
                let journal = Journal::create(&dir, &opened)?;
                let (layers, dropped) = (vec![layer], Vec::new());
                Ok(Store { dir: dir.clone(), journal, layers, dropped, checkpoint_at: JOURNAL_BYTES_MIN })
            };
            let store = fill().inspect_err(|_| {
                // Nothing was accepted in it. What cannot be removed now is removed by the next mount.
                if let Err(e) = self.shared.state_dir.remove_upload(&dir) {
                    log::warn!("{}: {e}", dir.display());
                }
            })?;
            Ok((opened, store))
        };
        let (opened, store) = build().map_err(|e| disk_error(&key, &e))?;
        let displaced = inner.state.discarded;
        inner.state = FileState::opened(&opened).unwrap_or_else(|_| unreachable!("an opened record of our own format"));
        // Waiters count over all journals that this file has had in this process.
        inner.state.publications = inner.settled_publication;
        inner.misplaced = false;
        inner.tidying = false;
        inner.plan = self.shared.plan_for(inner.state.base.as_ref().map_or(0, |base| base.size).max(inner.size));
        inner.store = Some(store);
        self.shared.stores.fetch_add(1, Ordering::Relaxed);
        inner.spooled_bytes = 0;
        inner.live.clear();
        inner.ready.clear();
        if opening.created {
            self.note_name(inner);
        }
        if inner.removal != Removal::None {
            // Written through a handle that outlives the name: never to be taken for a file of that name.
            return self.append(inner, if displaced { &Record::Discarded } else { &Record::Unlinked });
        }
        self.shared.register(self, &key);
        if let Some(upload) = self.shared.take_adoptable(&key) {
            log::info!("{key}: adopting the parts of upload {upload}");
            let plan = inner.plan.clone();
            self.append(inner, &Record::Initiated { upload_id: upload, plan, key: None })?;
            inner.reconcile = true;
        }
        Ok(())
    }

    /// Makes sure that there is a layer which takes what is written: none that belongs to something closed.
    pub(super) fn open_layer(self: &Arc<Self>, inner: &mut Inner) -> Result<(), WriteError> {
        self.materialise(inner)?;
        if inner.state.open_layer().is_some() {
            return Ok(());
        }
        let (key, id, base_end) = (inner.state.key.clone(), inner.state.layers_made + 1, inner.size);
        let mtime = inner.state.attrs.mtime;
        let dir = inner.store()?.dir.clone();
        let layer = Layer::create(&dir, id, base_end).map_err(|e| disk_error(&key, &e))?;
        note_mtime(&layer.spool, &key, mtime);
        inner.store()?.layers.push(layer);
        if !inner.store()?.dropped.is_empty() {
            self.shed(inner);
        }
        let begun = self.append(inner, &Record::Layer { layer: id, base_end });
        if begun.is_err() {
            inner.store()?.layers.pop();
            if let Err(e) = remove_files(&dir, id) {
                log::warn!("{key}: a layer that was not begun cannot be removed from {}: {e}", dir.display());
            }
        }
        begun
    }

    /// Takes the place on the local disk back: everything is in BOS, or gone. The names go at once; the blocks behind, since
    /// freeing them takes 0.1 s per GiB and the file's lock is held here.
    pub(super) fn retire(&self, inner: &mut Inner) {
        let freeing = self.shared.room.freeing();
        let freed = std::mem::take(&mut inner.spooled_bytes);
        if let Some(store) = inner.store.take() {
            self.shared.stores.fetch_sub(1, Ordering::Relaxed);
            self.shared.name_lines.lock().forget(&store.dir);
            if let Err(e) = self.shared.state_dir.remove_upload(&store.dir) {
                log::warn!("{}: {} could not be removed: {e}", inner.state.key, store.dir.display());
            }
            let budget = self.shared.budget.clone();
            self.shared.runtime.spawn_blocking(move || {
                // The last descriptor of the spool; a writer who waits for room is told when the room is there.
                drop(store);
                budget.release(freed);
                drop(freeing);
            });
        } else {
            self.shared.budget.release(freed);
        }
        inner.live.clear();
        inner.ready.clear();
        inner.reconcile = false;
        inner.sync_failed = None;
        inner.tidying = false;
        inner.attrs_due = None;
        inner.temporary = None;
        inner.parked_until = None;
    }
}

/// The spool gets the time of the file: what the next process finds there is taken for that of the last write.
fn note_mtime(spool: &Spool, key: &ObjectKey, mtime: Timestamp) {
    if let Err(e) = spool.set_modified(mtime) {
        log::debug!("{key}: the time of its spool cannot be set: {e}");
    }
}

fn opened_record(shared: &Shared, journal_id: String, opening: &Opening) -> Record {
    Record::Opened {
        format: FORMAT,
        journal_id,
        key: opening.key.clone(),
        base: opening.base.clone(),
        condition: opening.condition.clone(),
        headers: opening.headers.clone(),
        attrs: opening.attrs,
        boot_id: shared.boot_id.clone(),
        at: Timestamp::now().sec,
    }
}

/// The error of a program whose bytes the local disk did not take.
pub(super) fn disk_error(key: &ObjectKey, error: &std::io::Error) -> WriteError {
    let errno = errno_of(error);
    let hint = match errno {
        libc::ENOSPC | libc::EDQUOT => "free space on the disk of --state-dir, or mount with another --state-dir",
        _ => "see the system log about the disk of --state-dir",
    };
    WriteError::failed(
        errno,
        format!(
            "{key}: the state directory took nothing of this call ({error}); what was accepted before stays there; {hint}"
        ),
    )
}
