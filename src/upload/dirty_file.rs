//! One file with bytes that BOS does not have yet: what the kernel's calls do to spool, map and journal.
//!
//! All of a file's changing state is behind one lock, [`Inner`]; it is held for local disk work only, never across a
//! request to BOS. `publish.rs` freezes and waits, `driver.rs` and its steps send.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::registry::Shared;
use super::state::{FileState, Stage};
use super::{DirtyRead, Opening, Published, WriteError};
use crate::journal::log::errno_of;
use crate::journal::record::Publication;
use crate::journal::{Journal, Record};
use crate::object::{BaseObject, ByteRange, Checksum, FileAttrs, ObjectKey, PartNumber, Timestamp};
use crate::write::block_map::BLOCK_BYTES;
use crate::write::extents::{Extents, Source};
use crate::write::part_plan::PartPlan;
use crate::write::spool::Spool;

/// One file with bytes that BOS does not have (or has not proved) yet. All methods that are not `async` return without
/// waiting for the network.
pub struct DirtyFile {
    pub(super) shared: Arc<Shared>,
    inner: Mutex<Inner>,
    /// Counts changes that a waiter may wait for.
    changed: watch::Sender<u64>,
    /// Wakes the driver.
    pub(super) wake: Notify,
}

/// The file's place on the local disk. There is none before the first change and after the last publication.
pub(super) struct Store {
    pub(super) dir: PathBuf,
    pub(super) journal: Journal,
    pub(super) spool: Arc<Spool>,
    pub(super) extents: Extents,
}

/// What is known of a part in this process only.
#[derive(Default)]
pub(super) struct LivePart {
    /// Counts changes of the part's bytes.
    pub(super) generation: u64,
    /// A job works on it; cancelled when its bytes change.
    pub(super) job: Option<CancellationToken>,
    /// Its bytes of this generation.
    pub(super) sealed: Option<(u64, Checksum)>,
    /// It was changed after it had been sent: sent again only at the next publication, not eagerly.
    pub(super) rewritten: bool,
    /// Bodies that BOS refused or that came back wrong, in a row.
    pub(super) mismatches: u32,
}

/// Whether a removed file still has to be taken out of BOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// It is there.
    None,
    /// Its name is gone; handles are open.
    Orphaned,
    /// To be removed now.
    Wanted,
    /// Gone.
    Done,
}

pub(super) struct Inner {
    pub(super) state: FileState,
    pub(super) store: Option<Store>,
    pub(super) size: u64,
    /// Part plan in force: the upload's, or the one of the next upload.
    pub(super) plan: PartPlan,
    pub(super) live: BTreeMap<PartNumber, LivePart>,
    pub(super) writers: u32,
    /// Written, or cut to a size above 0, since the last freeze: a flush publishes it.
    pub(super) new_content: bool,
    /// What is new comes from a writer that is dead; nobody has gone on with it yet. It is published by a command, or
    /// once a writer has changed something and closes.
    pub(super) inherited: bool,
    /// The object at the key of an interrupted file has to be looked at.
    pub(super) check_base: bool,
    /// Created or cut to 0 since the last freeze: a release publishes it.
    pub(super) new_file: bool,
    /// Publish again once the present publication ended.
    pub(super) publish_again: bool,
    /// Parts that are full and whose writer has moved on.
    pub(super) ready: BTreeSet<PartNumber>,
    last_part: Option<PartNumber>,
    /// Every byte is wanted in BOS now (`--fsync bos`).
    pub(super) send_all: bool,
    /// What BOS holds must be asked before anything is sent.
    pub(super) reconcile: bool,
    pub(super) driving: bool,
    pub(super) retry_at: Option<Instant>,
    pub(super) tries: u32,
    pub(super) last_error: Option<String>,
    /// Number of the last publication that is over: proved, or taken back.
    pub(super) settled_publication: Publication,
    /// Publications of earlier journals of this object in memory: numbers go on, so that waiters never mix them up.
    pub(super) removal: Removal,
    /// Bytes of the spool that are counted in the budget.
    pub(super) spooled_bytes: u64,
    pub(super) last_published: Option<Published>,
    pub(super) meter: super::meter::Meter,
    /// The base was refused by a condition: HEAD must tell what is there.
    pub(super) suspect_base: bool,
    /// Parts of this file on their way at once.
    pub(super) jobs_max: usize,
}

impl DirtyFile {
    pub(super) fn begin(shared: Arc<Shared>, opening: Opening) -> Self {
        let size = opening.base.as_ref().map_or(0, |base| base.size);
        let state = FileState::opened(&opened_record(&shared, String::new(), &opening))
            .unwrap_or_else(|_| unreachable!("an opened record of our own format"));
        let plan = shared.plan_for(None);
        let jobs_max = shared.jobs_max();
        Self::with_inner(
            shared,
            Inner {
                state,
                store: None,
                size,
                plan,
                live: BTreeMap::new(),
                writers: 0,
                new_content: false,
                inherited: false,
                check_base: false,
                new_file: opening.created,
                publish_again: false,
                ready: BTreeSet::new(),
                last_part: None,
                send_all: false,
                reconcile: false,
                driving: false,
                retry_at: None,
                tries: 0,
                last_error: None,
                settled_publication: 0,
                removal: Removal::None,
                spooled_bytes: 0,
                last_published: None,
                meter: Default::default(),
                suspect_base: false,
                jobs_max,
            },
        )
    }

    pub(super) fn recovered(shared: Arc<Shared>, state: FileState, store: Store) -> Self {
        let size = store.spool.len();
        let plan = state.upload.as_ref().map_or_else(|| shared.plan_for(None), |upload| upload.plan.clone());
        let spooled_bytes = store.extents.spool_blocks(ByteRange::new(0, size)) * BLOCK_BYTES;
        shared.budget.take(spooled_bytes);
        let jobs_max = shared.jobs_max();
        let settled_publication = match state.stage.frozen() {
            Some(frozen) => frozen.publication - 1,
            None => state.publications,
        };
        let whole = ByteRange::new(0, size);
        let untouched =
            state.base.as_ref().is_some_and(|base| base.size == size) && store.extents.is_untouched(whole, size);
        let new_content = match state.stage.frozen() {
            Some(frozen) => size != frozen.size || !state.changed_since_freeze.is_empty(),
            None if state.rebasing => {
                state.base.as_ref().is_none_or(|base| base.size != size) || !state.changed_since_freeze.is_empty()
            }
            None => !untouched,
        };
        let inherited = new_content;
        let check_base = state.stage == Stage::Open && !state.rebasing && new_content;
        let reconcile = state.upload.is_some() || !matches!(state.stage, Stage::Open | Stage::Closed(_));
        Self::with_inner(
            shared,
            Inner {
                size,
                plan,
                live: BTreeMap::new(),
                writers: 0,
                new_content,
                inherited,
                check_base,
                new_file: false,
                publish_again: false,
                ready: BTreeSet::new(),
                last_part: None,
                send_all: false,
                reconcile,
                driving: false,
                retry_at: None,
                tries: 0,
                last_error: None,
                settled_publication,
                removal: if state.unlinked || state.discarded { Removal::Wanted } else { Removal::None },
                spooled_bytes,
                last_published: None,
                meter: Default::default(),
                suspect_base: false,
                jobs_max,
                state,
                store: Some(store),
            },
        )
    }

    fn with_inner(shared: Arc<Shared>, inner: Inner) -> Self {
        Self { shared, inner: Mutex::new(inner), changed: watch::Sender::new(0), wake: Notify::new() }
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

    /// Changes mode, owner or time. They ride on the next publication; behind one that is already on its way, the object
    /// is given them afterwards by a copy onto itself.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn set_attrs(self: &Arc<Self>, attrs: FileAttrs) -> Result<(), WriteError> {
        let mut inner = self.lock();
        if inner.state.attrs == attrs {
            return Ok(());
        }
        self.materialise(&mut inner)?;
        self.append(&mut inner, &Record::Attrs { attrs })?;
        drop(inner);
        self.notify();
        self.start_driver();
        Ok(())
    }

    /// Puts bytes into the spool; they survive a kill of bosfs when this returns. Sets mtime.
    ///
    /// # Errors
    /// [`WriteError::MustWait`] when the spool is full or the bytes belong to a frozen part that is not sent yet: await
    /// [`DirtyFile::wait_writable`], then call again. `EFBIG` beyond the largest object, `ENOSPC` on a full disk: nothing
    /// of these bytes was accepted, all earlier ones stay.
    pub fn write(self: &Arc<Self>, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let range = ByteRange::at(offset, bytes.len() as u64);
        if range.is_empty() {
            return Ok(());
        }
        if range.end > inner.plan.size_max() {
            return Err(WriteError::failed(
                libc::EFBIG,
                format!("{}: {} bytes are more than an upload can hold", inner.state.key, range.end),
            ));
        }
        if inner.is_frozen(range) {
            return Err(WriteError::MustWait);
        }
        self.materialise(inner)?;
        let size = inner.size;
        let plan = inner.store()?.extents.plan_write(offset, range.len(), size);
        if plan.held_partial {
            return Err(WriteError::failed(
                libc::ENOSPC,
                format!(
                    "{}: bytes {range:?} lie in a part that only BOS holds (the spool was full); nothing of this write was \
                     accepted: rewrite the whole part, or finish the upload with `bosfs uploads complete` first",
                    inner.state.key
                ),
            ));
        }
        let more_bytes = plan.new_spool_blocks * BLOCK_BYTES;
        if self.shared.budget.try_reserve(more_bytes).is_err() {
            return Err(WriteError::MustWait);
        }
        inner.spooled_bytes += more_bytes;
        let result = self.write_reserved(inner, range, bytes, &plan);
        if result.is_err() {
            inner.spooled_bytes -= more_bytes;
            self.shared.budget.release(more_bytes);
            // What a failed write left in blocks that do not count must read as zeros again.
            let store = inner.store()?;
            if let Err(e) = store.extents.scrub(&store.spool, range) {
                log::error!("{}: {e}", inner.state.key);
            }
        }
        result?;
        let woken = inner.advance_writer(range);
        drop(guard);
        if woken {
            self.start_driver();
        }
        Ok(())
    }

    fn write_reserved(
        &self,
        inner: &mut Inner,
        range: ByteRange,
        bytes: &[u8],
        plan: &crate::write::extents::WritePlan,
    ) -> Result<(), WriteError> {
        self.dirty_parts(inner, range)?;
        let key = inner.state.key.clone();
        let store = inner.store()?;
        for edge in &plan.zero_edges {
            store.spool.zero(*edge).map_err(|e| disk_error(&key, &e))?;
        }
        store.spool.write_at(range.start, bytes).map_err(|e| disk_error(&key, &e))?;
        for (block, ranges) in &plan.partial_changes {
            self.append(inner, &Record::Partial { block: *block, ranges: ranges.clone() })?;
        }
        inner.store()?.extents.apply_write(plan).map_err(|e| disk_error(&key, &e))?;
        inner.size = inner.size.max(range.end);
        inner.state.attrs.mtime = Timestamp::now();
        inner.new_content = true;
        inner.inherited = false;
        Ok(())
    }

    /// Journals that the parts of `range` are about to change, where that matters, and stops jobs that send them.
    fn dirty_parts(&self, inner: &mut Inner, range: ByteRange) -> Result<(), WriteError> {
        let frozen = inner.state.keeps_changes();
        for number in inner.plan.parts_in(range) {
            let known = inner.state.parts.get(&number);
            let was_sent = known.is_some_and(|part| part.held.is_some() && !part.dirty);
            let journaled = frozen && inner.state.changed_since_freeze.contains(&number);
            if was_sent || (frozen && !journaled) {
                self.append(inner, &Record::Dirtied { part: number })?;
            }
            let live = inner.live.entry(number).or_default();
            live.generation += 1;
            live.sealed = None;
            live.rewritten |= was_sent || live.job.is_some();
            if let Some(job) = &live.job {
                job.cancel();
            }
            inner.ready.remove(&number);
        }
        Ok(())
    }

    /// Cuts or extends. Sets mtime.
    ///
    /// # Errors
    /// As [`DirtyFile::write`].
    pub fn truncate(self: &Arc<Self>, size: u64) -> Result<(), WriteError> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if size > inner.plan.size_max() {
            let message = format!("{}: {size} bytes are more than an upload can hold", inner.state.key);
            return Err(WriteError::failed(libc::EFBIG, message));
        }
        let old = inner.size;
        if size == 0 && matches!(inner.state.stage, Stage::Closed(_)) {
            self.supersede(inner)?;
        }
        let touched = ByteRange::new(old.min(size), old.max(size));
        if !touched.is_empty() && inner.is_frozen(touched) {
            return Err(WriteError::MustWait);
        }
        self.materialise(inner)?;
        if let Some(cut) = inner.plan.part_at(size)
            && size < old
        {
            let kept = ByteRange::new(inner.plan.range(cut).start, size);
            if inner.store()?.extents.held_blocks(kept) > 0 {
                return Err(WriteError::failed(
                    libc::ENOSPC,
                    format!(
                        "{}: {size} lies in a part that only BOS holds (the spool was full); the file keeps its size: cut it \
                         to 0, or finish the upload with `bosfs uploads complete` first",
                        inner.state.key
                    ),
                ));
            }
        }
        if size != old || size == 0 {
            let boundary = ByteRange::at(touched.start, touched.len().max(1));
            if inner.state.keeps_changes() {
                self.dirty_parts(inner, boundary)?;
            } else {
                inner.forget_live(boundary);
            }
            self.append(inner, &Record::Resizing { size })?;
            self.resize_store(inner, size)?;
            self.append(inner, &Record::Resized)?;
        }
        inner.state.attrs.mtime = Timestamp::now();
        inner.inherited = false;
        if size == 0 {
            inner.new_content = false;
            inner.new_file = true;
            inner.live.clear();
            inner.ready.clear();
        } else if size != old {
            inner.new_content = true;
        }
        drop(guard);
        self.notify();
        Ok(())
    }

    /// Gives spool and map the size that the journal says already.
    pub(super) fn resize_store(&self, inner: &mut Inner, size: u64) -> Result<(), WriteError> {
        let key = inner.state.key.clone();
        let old = inner.size;
        let store = inner.store()?;
        let before = store.extents.spool_blocks(ByteRange::new(0, old.max(size)));
        store.spool.set_len(size).map_err(|e| disk_error(&key, &e))?;
        store.extents.truncate(old, size).map_err(|e| disk_error(&key, &e))?;
        let after = store.extents.spool_blocks(ByteRange::new(0, size));
        let freed = before.saturating_sub(after) * BLOCK_BYTES;
        inner.size = size;
        inner.spooled_bytes = inner.spooled_bytes.saturating_sub(freed);
        self.shared.budget.release(freed);
        Ok(())
    }

    /// Reads what is written, with gaps for the base.
    ///
    /// # Errors
    /// `EIO` when the spool cannot be read or a range is held by BOS only.
    pub fn read(&self, offset: u64, len: usize) -> Result<DirtyRead, WriteError> {
        let inner = self.lock();
        let range = ByteRange::at(offset, len as u64).intersect(ByteRange::new(0, inner.size));
        let mut read =
            DirtyRead { bytes: vec![0; range.len() as usize], gaps: Vec::new(), base: inner.state.base.clone() };
        let Some(store) = &inner.store else {
            let base_end = inner.state.base.as_ref().map_or(0, |base| base.size);
            let gap = range.intersect(ByteRange::new(0, base_end));
            read.gaps.extend((!gap.is_empty()).then_some(gap));
            return Ok(read);
        };
        for piece in store.extents.pieces(range, inner.size) {
            let start = (piece.range.start - range.start) as usize;
            let bytes = &mut read.bytes[start..start + piece.range.len() as usize];
            match piece.from {
                Source::Zero => {}
                Source::Base => read.gaps.push(piece.range),
                Source::Spool => {
                    store.spool.read_at(piece.range.start, bytes).map_err(|e| disk_error(&inner.state.key, &e))?
                }
                Source::Held => {
                    return Err(WriteError::failed(
                        libc::EIO,
                        format!(
                            "{}: bytes {:?} are only in an unfinished upload, which cannot be read back; they are readable \
                             once the file is published",
                            inner.state.key, piece.range
                        ),
                    ));
                }
            }
        }
        Ok(read)
    }

    /// What the file is in BOS while nothing newer is here: the last publication, or the base that was never changed.
    /// `None` while something is unpublished.
    pub fn settled(&self) -> Option<Published> {
        let inner = self.lock();
        let given_up = inner.removal == Removal::Done && inner.state.discarded;
        if !given_up && (inner.is_pending() || inner.removal != Removal::None) {
            return None;
        }
        let base = inner.state.base.clone()?;
        Some(inner.last_published.clone().unwrap_or_else(|| Published {
            etag: base.etag,
            size: base.size,
            attrs: inner.state.attrs,
            headers: inner.state.headers.clone(),
        }))
    }

    /// The last publication, whether or not newer bytes are dirty.
    pub fn published(&self) -> Option<Published> {
        self.lock().last_published.clone()
    }

    /// Writes a line and applies it: the only way the state changes.
    pub(super) fn append(&self, inner: &mut Inner, record: &Record) -> Result<(), WriteError> {
        let key = inner.state.key.clone();
        inner.store()?.journal.append(record).map_err(|e| disk_error(&key, &e))?;
        inner.state.apply(record);
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
        };
        let build = || -> std::io::Result<(Record, Store)> {
            let (journal_id, dir) = self.shared.state_dir.create_upload()?;
            let opened = opened_record(&self.shared, journal_id, &opening);
            let spool = Arc::new(Spool::create(&dir, inner.size)?);
            let extents = Extents::create(&dir, inner.size)?;
            // Last: a directory without a journal holds nothing that was accepted.
            let journal = Journal::create(&dir, &opened)?;
            Ok((opened, Store { dir, journal, spool, extents }))
        };
        let (opened, store) = build().map_err(|e| disk_error(&key, &e))?;
        inner.state = FileState::opened(&opened).unwrap_or_else(|_| unreachable!("an opened record of our own format"));
        // Waiters count over all journals that this file has had in this process.
        inner.state.publications = inner.settled_publication;
        inner.plan = self.shared.plan_for(inner.state.base.as_ref().map(|base| base.size));
        inner.store = Some(store);
        inner.spooled_bytes = 0;
        inner.live.clear();
        inner.ready.clear();
        self.shared.register(self, &key);
        if let Some(upload) = self.shared.take_adoptable(&key) {
            log::info!("{key}: adopting the parts of upload {upload}");
            let plan = inner.plan.clone();
            self.append(inner, &Record::Initiated { upload_id: upload, plan })?;
            inner.reconcile = true;
        }
        Ok(())
    }

    /// Takes the place on the local disk back: everything is in BOS, or gone.
    pub(super) fn retire(&self, inner: &mut Inner) {
        if let Some(store) = inner.store.take()
            && let Err(e) = self.shared.state_dir.remove_upload(&store.dir)
        {
            log::warn!("{}: {} could not be removed: {e}", inner.state.key, store.dir.display());
        }
        self.shared.budget.release(std::mem::take(&mut inner.spooled_bytes));
        inner.live.clear();
        inner.ready.clear();
        inner.reconcile = false;
    }
}

impl Inner {
    pub(super) fn store(&mut self) -> Result<&mut Store, WriteError> {
        let key = &self.state.key;
        self.store.as_mut().ok_or_else(|| WriteError::failed(libc::EIO, format!("{key}: the journal is closed")))
    }

    /// Whether something here is not (or not provably) in BOS.
    pub(super) fn is_pending(&self) -> bool {
        self.new_content
            || self.new_file
            || self.publish_again
            || self.state.rebasing
            || self.state.stage != Stage::Open
            || self.state.interrupted.is_some()
            || self.state.failed.is_some()
            || self.state.conflict.is_some()
            || self.attrs_pending()
    }

    /// Whether the published object has other attributes than the file.
    pub(super) fn attrs_pending(&self) -> bool {
        self.store.is_some()
            && self.state.stage == Stage::Open
            && self.state.published.as_ref().is_none_or(|published| published.attrs != self.state.attrs)
    }

    /// Whether bytes of `range` belong to the frozen state and are not in BOS yet.
    pub(super) fn is_frozen(&self, range: ByteRange) -> bool {
        let frozen = match &self.state.stage {
            // From Complete on, BOS has every part of the frozen state.
            Stage::Open | Stage::Completing { .. } | Stage::Completed { .. } => return false,
            // Its one body is read while it is sent; bytes behind it in the same part would change the part's seal.
            Stage::Putting { .. } => return range.start < self.plan.first_bytes(),
            Stage::Closed(frozen) => frozen,
        };
        if frozen.size <= self.plan.first_bytes() {
            return range.start < self.plan.first_bytes();
        }
        let whole = ByteRange::new(0, frozen.size);
        self.plan.parts_in(range.intersect(whole)).any(|number| {
            let len = self.plan.range_in(number, frozen.size).len();
            // A part that was copied from the base under a lower number is not told apart here: its writer waits for the
            // publication.
            !self.state.is_sent(number, len)
        })
    }

    /// Notes which parts the writer has filled and left. True if one is ready to be sent.
    fn advance_writer(&mut self, written: ByteRange) -> bool {
        let here = self.plan.part_at(written.end - 1);
        let left: Vec<PartNumber> = self.last_part.into_iter().chain(self.plan.parts_in(written)).collect();
        self.last_part = here;
        let mut woken = false;
        for number in left {
            let range = self.plan.range(number);
            let rewritten = self.live.get(&number).is_some_and(|live| live.rewritten);
            // The last part waits for the close: a file of one part goes by PutObject.
            if Some(number) == here || rewritten || range.end >= self.size || self.ready.contains(&number) {
                continue;
            }
            let sent = self.state.is_sent(number, range.len());
            if !sent && self.store.as_ref().is_some_and(|store| store.extents.is_spooled(range)) {
                woken |= self.ready.insert(number);
            }
        }
        // While a publication is frozen, later bytes belong to the next upload.
        woken && self.state.stage == Stage::Open
    }

    fn forget_live(&mut self, range: ByteRange) {
        for number in self.plan.parts_in(range) {
            self.ready.remove(&number);
            if let Some(live) = self.live.get_mut(&number) {
                live.generation += 1;
                live.sealed = None;
                if let Some(job) = &live.job {
                    job.cancel();
                }
            }
        }
    }

    /// The base and the key's condition after somebody looked at the key again; only where nothing is journaled.
    pub(super) fn refresh(&mut self, opening: &Opening) {
        self.size = opening.base.as_ref().map_or(0, |base| base.size);
        self.state.base.clone_from(&opening.base);
        self.state.condition = opening.condition.clone();
        self.state.headers = opening.headers.clone();
        self.state.attrs = opening.attrs;
        self.state.base_end = self.size;
        self.state.published = None;
        self.last_published = None;
        self.new_file = opening.created;
    }

    /// The object of the present base, for messages.
    pub(super) fn base(&self) -> Option<&BaseObject> {
        self.state.base.as_ref()
    }
}

fn opened_record(shared: &Shared, journal_id: String, opening: &Opening) -> Record {
    Record::Opened {
        format: 1,
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
