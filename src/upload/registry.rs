//! All dirty files of one mount, and what they share.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dirty_file::DirtyFile;
use super::inner::Removal;
use super::recover::recover;
use super::state::Stage;
use super::{FileStatus, Opening, Published, UploadOptions, WriteError};
use crate::bos::BosClient;
use crate::journal::record::Proof;
use crate::journal::{Journal, Record, StateDir};
use crate::object::{ByteRange, ObjectKey, PartNumber, Timestamp, UploadId};
use crate::write::block_map::BLOCK_BYTES;
use crate::write::budget::SpoolBudget;
use crate::write::part_plan::PartPlan;

/// Finished files that `status` still shows.
const FINISHED_MAX: usize = 100;
/// Files in memory before those are forgotten that are wholly in BOS and not open.
const REMEMBERED_MAX: usize = 1024;
/// Spool bytes that are punched out at once when a writer needs room.
const ROOM_BYTES: u64 = 64 << 20;
/// Smallest spool limit, in parts of the first size.
const SPOOL_PARTS_MIN: u64 = 4;
/// Pages of unfinished uploads that `--adopt` reads at most, 1000 uploads each.
const ADOPT_PAGES_MAX: usize = 100;

/// Files with a place on the local disk at once, before the next one waits for others to be finished: each keeps three
/// descriptors open.
const STORES_MAX: usize = 1500;
/// However few descriptors there may be.
const STORES_MIN: usize = 4;
/// Descriptors of what is no file on its way: the kernel's, the logs, the idle connections.
const DESCRIPTORS_ELSE: u64 = 64;
/// Small publications, copies and deletes at once, beside as many as there may be parts.
const ACTS_MAX: usize = 16;
/// Longest wait for one of them that is on its way to BOS.
const STORE_WITHIN: Duration = Duration::from_secs(25);
/// The same where all are open for writing: the very program that asks may be the one that has to close some, and the kernel
/// lets nobody else into the directory while it is asked for a new file.
const STORE_OPEN_WITHIN: Duration = Duration::from_secs(2);

/// Journals that are read side by side when a mount starts.
const RECOVERY_THREADS_MAX: usize = 8;

/// What became of a journal directory: see [`recover`].
type Recovered = Result<Option<Arc<DirtyFile>>, Box<FileStatus>>;

/// Hears of every object that this mount stores.
pub type Listener = Box<dyn Fn(&ObjectKey, &Published) + Send + Sync>;

/// Waits until no rename that an earlier process left has to do with this key.
pub type RenamesLeft = Arc<dyn Fn(ObjectKey) -> BoxFuture<'static, ()> + Send + Sync>;

/// What the files of one mount share.
pub(super) struct Shared {
    pub(super) options: UploadOptions,
    pub(super) client: BosClient,
    pub(super) state_dir: Arc<StateDir>,
    pub(super) budget: Arc<SpoolBudget>,
    pub(super) rate: RateLimit,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) runtime: Handle,
    pub(super) boot_id: String,
    slots: Semaphore,
    /// For what is one request and no part: not behind the parts of large files.
    act_slots: Semaphore,
    /// Taken last: with a file's lock held, never the other way round.
    files: Mutex<BTreeMap<ObjectKey, Arc<DirtyFile>>>,
    /// Number of `files` above which those that nobody needs are looked for.
    forget_above: AtomicUsize,
    /// Files without a name whose object has still to go, by the key of that object.
    removals: Mutex<HashMap<ObjectKey, Arc<DirtyFile>>>,
    /// Files whose name another one took, as long as their uploads have to end.
    displaced: Mutex<Vec<Arc<DirtyFile>>>,
    listener: OnceLock<Listener>,
    /// `None`: not taken up yet.
    renames_left: watch::Sender<Option<RenamesLeft>>,
    /// What was stored before there was a listener: recovery begins before anything else of the mount is made. `None` since
    /// there is one.
    untold: Mutex<Option<Vec<(ObjectKey, Published)>>>,
    finished: Mutex<VecDeque<FileStatus>>,
    damaged: Mutex<Vec<FileStatus>>,
    adoptable: Mutex<HashMap<ObjectKey, UploadId>>,
    punch: AtomicBool,
    /// Files that have their place on the local disk open.
    pub(super) stores: AtomicUsize,
}

/// A file that is wholly in BOS, for the list of the last ones.
pub(super) struct Finished {
    pub(super) key: String,
    pub(super) journal_id: String,
    pub(super) size: u64,
    pub(super) parts_total: u32,
    pub(super) parts_kept: u64,
    pub(super) parts_sent: u64,
    pub(super) proof: Option<Proof>,
}

/// See [`STORES_MAX`]; fewer where this process may have few descriptors. Half of them stay for the connections that bring
/// the files to BOS: without those, no file would ever be finished and give its own back. Asked each time, as the limit of a
/// running process can be changed.
fn stores_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = |limit: u64| usize::try_from(limit.saturating_sub(DESCRIPTORS_ELSE) / 6).unwrap_or(usize::MAX);
    limit.map_or(usize::MAX, share).clamp(STORES_MIN, STORES_MAX)
}

/// All dirty files of one mount.
pub struct Uploads {
    shared: Arc<Shared>,
}

impl Uploads {
    /// `--timeout`.
    pub fn timeout(&self) -> Option<Duration> {
        self.shared.options.timeout
    }

    /// Replays the journals of `state_dir` and begins with what they ask for, in the background. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// When the state directory cannot be read. A single damaged journal is no error: its file is listed as failed.
    pub fn start(options: UploadOptions, client: BosClient, state_dir: Arc<StateDir>) -> io::Result<Arc<Self>> {
        Self::start_in_boot(options, client, state_dir, crate::journal::state_dir::boot_id())
    }

    /// As [`Uploads::start`] for a mount whose state directory may know renames that were not finished: as long as they are
    /// not taken up ([`Uploads::renames_taken_up`]), and finished, objects that they have to do with are not copied onto
    /// themselves.
    ///
    /// # Errors
    /// See [`Uploads::start`].
    pub fn start_before_renames(
        options: UploadOptions,
        client: BosClient,
        state_dir: Arc<StateDir>,
    ) -> io::Result<Arc<Self>> {
        Self::start_with(options, client, state_dir, crate::journal::state_dir::boot_id(), None)
    }

    /// As [`Uploads::start`] in the boot that `boot_id` names: journals of another one are only trusted as far as they
    /// were synced.
    ///
    /// # Errors
    /// See [`Uploads::start`].
    pub fn start_in_boot(
        options: UploadOptions,
        client: BosClient,
        state_dir: Arc<StateDir>,
        boot_id: String,
    ) -> io::Result<Arc<Self>> {
        let none_left: RenamesLeft = Arc::new(|_| Box::pin(std::future::ready(())));
        Self::start_with(options, client, state_dir, boot_id, Some(none_left))
    }

    fn start_with(
        options: UploadOptions,
        client: BosClient,
        state_dir: Arc<StateDir>,
        boot_id: String,
        renames_left: Option<RenamesLeft>,
    ) -> io::Result<Arc<Self>> {
        // Fewer than a few parts could never be sealed and sent.
        let limit_min = SPOOL_PARTS_MIN * PartPlan::growing(options.part_bytes).first_bytes();
        let limit = options.spool_limit_bytes.map(|limit| limit.max(limit_min));
        let budget = Arc::new(SpoolBudget::new(state_dir.path(), limit)?);
        let punch = options.punch && state_dir.punches();
        let shared = Arc::new(Shared {
            client,
            budget,
            rate: RateLimit::new(options.rate_bytes_per_s),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            boot_id,
            slots: Semaphore::new(options.uploads_max.max(1)),
            act_slots: Semaphore::new(options.uploads_max.max(1) + ACTS_MAX),
            files: Mutex::default(),
            removals: Mutex::default(),
            displaced: Mutex::default(),
            renames_left: watch::Sender::new(renames_left),
            forget_above: AtomicUsize::new(REMEMBERED_MAX),
            listener: OnceLock::new(),
            untold: Mutex::new(Some(Vec::new())),
            finished: Mutex::default(),
            damaged: Mutex::default(),
            adoptable: Mutex::default(),
            punch: AtomicBool::new(punch),
            stores: AtomicUsize::new(0),
            options,
            state_dir: state_dir.clone(),
        });
        let uploads = Arc::new(Self { shared: shared.clone() });
        for recovered in recover_all(&shared, &state_dir.uploads()?) {
            match recovered {
                Ok(None) => {}
                Ok(Some(file)) => uploads.take_over(file),
                Err(damaged) => {
                    log::error!("{}", damaged.last_error.as_deref().unwrap_or("damaged journal"));
                    shared.damaged.lock().push(*damaged);
                }
            }
        }
        Ok(uploads)
    }

    /// Keys of files that an earlier process removed and whose objects may still be there.
    pub fn removals(&self) -> Vec<ObjectKey> {
        self.shared.removals.lock().keys().cloned().collect()
    }

    /// Waits until nothing that lost this name is being taken out of BOS.
    ///
    /// # Errors
    /// What keeps it from being removed.
    pub async fn wait_removal(&self, key: &ObjectKey) -> Result<(), WriteError> {
        let Some(file) = self.shared.removal_of(key) else { return Ok(()) };
        file.wait_removed().await
    }

    /// Something new takes the name of a removed file: the object there is left to it, whenever the removed one's last
    /// handle goes. Nothing of the removed one is on its way any more when this returns.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn take_name(&self, key: &ObjectKey) -> Result<(), WriteError> {
        while let Some(file) = self.shared.removal_of(key) {
            match file.leave_object()? {
                super::Displaced::Busy => file.changed().await,
                super::Displaced::Gone => self.shared.removed(&file, key),
            }
        }
        Ok(())
    }

    fn take_over(&self, file: Arc<DirtyFile>) {
        let key = file.key();
        let (unlinked, leaves_object) = {
            let inner = file.lock();
            (inner.removal != Removal::None, inner.state.discarded)
        };
        if unlinked && !leaves_object {
            self.shared.removing(&key, &file);
        }
        if !unlinked {
            let earlier = self.shared.files.lock().insert(key.clone(), file.clone());
            let earlier = earlier.and_then(|earlier| self.supersede(&key, earlier, &file));
            if let Some(earlier) = earlier {
                let mut status = earlier.status(false);
                status.state = "failed".into();
                status.last_error =
                    Some(format!("{key}: a second journal of the same key, {}, is left untouched", status.journal_id));
                self.shared.damaged.lock().push(status);
            }
        }
        file.start_driver();
    }

    /// Of two journals of one key, where one file was being renamed over the other: the other gives way. Returns the one
    /// that has no place.
    fn supersede(&self, key: &ObjectKey, earlier: Arc<DirtyFile>, later: &Arc<DirtyFile>) -> Option<Arc<DirtyFile>> {
        let renamed = (earlier.lock().state.renamed, later.lock().state.renamed);
        let (kept, given_up) = match renamed {
            (true, false) => (earlier, later.clone()),
            (false, true) => (later.clone(), earlier),
            _ => return Some(earlier),
        };
        log::info!("{key}: a file was renamed over another one; what was not in BOS of that one goes");
        let displaced = given_up.displace(false);
        self.shared.files.lock().insert(key.clone(), kept.clone());
        match displaced {
            Ok(super::Displaced::Gone) => None,
            Ok(super::Displaced::Busy) | Err(_) => Some(given_up),
        }
    }

    /// Reads the unfinished uploads under `prefix` once, so that files created later can adopt their parts (`--adopt`).
    ///
    /// # Errors
    /// When BOS cannot be asked.
    pub async fn find_adoptable(&self, prefix: &str) -> Result<usize, crate::bos::BosError> {
        let mut next = None;
        for _ in 0..ADOPT_PAGES_MAX {
            let page = self.shared.client.list_uploads(prefix, next.as_ref()).await?;
            let mut adoptable = self.shared.adoptable.lock();
            for upload in page.uploads {
                if let Ok(key) = ObjectKey::parse(&upload.key) {
                    adoptable.insert(key, upload.upload_id);
                }
            }
            drop(adoptable);
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        Ok(self.shared.adoptable.lock().len())
    }

    /// The renames that an earlier process left were taken up: see [`Uploads::start_before_renames`].
    pub fn renames_taken_up(&self, left: RenamesLeft) {
        self.shared.renames_left.send_replace(Some(left));
    }

    /// Calls `listener` for every object that was stored since the start; the first listener stays.
    pub fn on_published(&self, listener: Listener) {
        // What is stored meanwhile waits, so that a key's publications are told in their order.
        let mut untold = self.shared.untold.lock();
        for (key, published) in untold.take().into_iter().flatten() {
            listener(&key, &published);
        }
        let _ = self.shared.listener.set(listener);
    }

    /// Nothing is punched out of the spool from now on: a lifecycle rule of the bucket may destroy the parts in BOS.
    pub fn forbid_punching(&self) {
        self.shared.punch.store(false, Ordering::Relaxed);
    }

    /// The dirty file of this key, if there is one with something that is not in BOS.
    pub fn find(&self, key: &ObjectKey) -> Option<Arc<DirtyFile>> {
        let file = self.shared.files.lock().get(key).cloned()?;
        let known = {
            let inner = file.lock();
            inner.store.is_some() || inner.writers > 0 || inner.is_pending()
        };
        known.then_some(file)
    }

    /// All dirty files (after a mount: those of the journal, to be laid over the namespace).
    pub fn files(&self) -> Vec<Arc<DirtyFile>> {
        self.shared.files.lock().values().cloned().collect()
    }

    /// Those of them whose keys begin with `prefix`; costs nothing for the others.
    pub fn files_below(&self, prefix: &str) -> Vec<Arc<DirtyFile>> {
        let files = self.shared.files.lock();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let below = files.range::<str, _>(from).take_while(|(key, _)| key.as_str().starts_with(prefix));
        below.map(|(_, file)| file.clone()).collect()
    }

    /// Begins a dirty file. If the key already has one (interrupted, pending), that one is returned. Nothing touches the
    /// disk until the first change.
    ///
    /// # Errors
    /// When the file is created and the state directory cannot take it.
    pub fn open(&self, opening: Opening) -> Result<Arc<DirtyFile>, WriteError> {
        let file = {
            // Lock order: a file's lock comes before this one, so none is taken here.
            let mut files = self.shared.files.lock();
            // Clean files that nobody holds any more are only remembered for their numbers.
            if files.len() > self.shared.forget_above.load(Ordering::Relaxed) {
                files.retain(|_, file| Arc::strong_count(file) > 1 || file.is_pending_or_busy());
                // However many stay, looking for them costs each opening no more than a few of them.
                self.shared.forget_above.store(REMEMBERED_MAX.max(2 * files.len()), Ordering::Relaxed);
            }
            let begin = || Arc::new(DirtyFile::begin(self.shared.clone(), opening.clone()));
            files.entry(opening.key.clone()).or_insert_with(begin).clone()
        };
        {
            let mut inner = file.lock();
            if inner.store.is_none() && inner.writers == 0 && !inner.is_pending() {
                inner.refresh(&opening);
            }
        }
        if opening.created {
            file.materialise(&mut file.lock())?;
        }
        Ok(file)
    }

    /// Waits until one more file may be begun without running out of descriptors.
    ///
    /// # Errors
    /// `ENFILE` when none of those that are under way is finished within half a minute.
    pub async fn room_for_file(&self) -> Result<(), WriteError> {
        let from = tokio::time::Instant::now();
        loop {
            let stores_max = stores_max();
            if self.shared.stores.load(Ordering::Relaxed) < stores_max {
                return Ok(());
            }
            let (waited, written) = (from.elapsed(), self.shared.written_now());
            if waited >= STORE_OPEN_WITHIN && written >= stores_max {
                return Err(WriteError::failed(
                    libc::ENFILE,
                    format!(
                        "{written} files are open for writing, as many as this process may have at once; nothing was changed: \
                         close some, or mount with a higher limit of descriptors (ulimit -n)"
                    ),
                ));
            }
            if waited >= STORE_WITHIN {
                return Err(WriteError::failed(
                    libc::ENFILE,
                    format!(
                        "{stores_max} files are on their way to BOS and none was finished for {} s; nothing was changed: try \
                         again, and see `bosfs status`",
                        STORE_WITHIN.as_secs()
                    ),
                ));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Keys that files which began as copies still read from.
    pub fn clone_sources(&self) -> Vec<ObjectKey> {
        self.files().iter().filter_map(|file| file.lock().state.base.as_ref()?.key.clone()).collect()
    }

    /// Publishes `file` under the free key `key` instead of its own (`uploads complete --as`).
    ///
    /// # Errors
    /// `EEXIST`, `EBUSY`, and as [`DirtyFile::publish`]; the message says what became of the file.
    pub async fn complete_as(&self, file: &Arc<DirtyFile>, key: &ObjectKey) -> Result<(), WriteError> {
        file.complete_as(key).await
    }

    /// Fetches what files that began as copies of `key` still read from there, before it is removed or replaced.
    ///
    /// # Errors
    /// When BOS or the local disk does not give the bytes.
    pub async fn release_clones(&self, key: &ObjectKey) -> Result<(), WriteError> {
        self.shared.release_clones(key).await.map_err(|trouble| match trouble {
            super::driver::Trouble::Local(error) => error,
            super::driver::Trouble::Final { errno, message } => WriteError::failed(errno, message),
            super::driver::Trouble::Bos(error) => {
                WriteError::failed(libc::EIO, format!("{key}: a copy of it could not be fetched first: {error}"))
            }
            super::driver::Trouble::Again(message) => {
                WriteError::failed(libc::EIO, format!("{key}: a copy of it could not be fetched first: {message}"))
            }
        })
    }

    /// Bytes that the spool may still take, for `statfs`.
    pub fn spool_free_bytes(&self) -> u64 {
        self.shared.budget.free_bytes()
    }

    /// Bytes that the spools take.
    pub fn spool_used_bytes(&self) -> u64 {
        self.shared.budget.used()
    }

    /// One entry per journaled file; then the damaged journals; then the last finished files, state `done`.
    pub fn status(&self) -> Vec<FileStatus> {
        let mut all: Vec<FileStatus> = self
            .files()
            .into_iter()
            .filter(|file| file.lock().store.is_some())
            .map(|file| file.status(false))
            .collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all.extend(self.shared.damaged.lock().iter().cloned());
        all.extend(self.shared.finished.lock().iter().cloned());
        all
    }

    /// Tries again what failed, at once.
    pub fn retry_failed(&self) {
        for file in self.files() {
            let mut inner = file.lock();
            let stuck = inner.state.failed.is_some() || inner.retry_at.is_some();
            if inner.state.conflict.is_none()
                && stuck
                && let Err(e) = file.retry(&mut inner, false)
            {
                log::error!("{e}");
            }
            drop(inner);
            file.start_driver();
        }
    }

    /// Waits until nothing closed is pending. Returns the files that failed, are in conflict or interrupted.
    pub async fn drain(&self) -> Vec<FileStatus> {
        for file in self.files() {
            if let Err(e) = file.unpark() {
                log::error!("{e}");
            }
        }
        loop {
            let mut files = self.files();
            // Those that have no name any more, and objects that have to go.
            files.extend(self.shared.removals.lock().values().cloned());
            files.extend(self.shared.displaced.lock().iter().cloned());
            let pending = files.into_iter().find(|file| {
                let inner = file.lock();
                let stuck = inner.state.failed.is_some() || inner.state.conflict.is_some();
                let under_way = inner.state.stage != Stage::Open
                    || inner.state.rebasing
                    || inner.publish_again
                    || inner.removal == Removal::Wanted
                    || (inner.writers == 0 && inner.attrs_pending() && !inner.new_content && !inner.new_file);
                !stuck && under_way
            });
            let Some(pending) = pending else { break };
            let mut changed = pending.subscribe();
            tokio::select! {
                _ = changed.changed() => {}
                // The change may have come before the subscription.
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
                () = self.shared.stop.cancelled() => break,
            }
        }
        self.status().into_iter().filter(|status| !matches!(status.state.as_str(), "done" | "idle")).collect()
    }

    /// Stops all tasks at once; the journal keeps everything.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        // Files and what they share hold each other; the lease on the state directory must end with the last handle.
        self.shared.files.lock().clear();
        self.shared.displaced.lock().clear();
        self.shared.renames_left.send_replace(None);
    }
}

impl Shared {
    /// Files that have a place on the local disk because somebody has them open for writing; not those being closed.
    fn written_now(&self) -> usize {
        let files: Vec<Arc<DirtyFile>> = self.files.lock().values().cloned().collect();
        let written = |file: &Arc<DirtyFile>| {
            let inner = file.lock();
            inner.store.is_some() && inner.writers > 0 && inner.state.stage == Stage::Open
        };
        files.iter().filter(|file| written(file)).count()
    }

    /// Part plan of the next upload of a file.
    pub(super) fn plan_for(&self, _base_bytes: Option<u64>) -> PartPlan {
        PartPlan::growing(self.options.part_bytes)
    }

    /// Parts of one file on their way at once: some more than requests, so that hashing runs ahead of sending.
    pub(super) fn jobs_max(&self) -> usize {
        self.options.uploads_max + 2
    }

    /// One of the requests that may carry parts at once.
    pub(super) async fn slot(&self) -> Option<SemaphorePermit<'_>> {
        self.slots.acquire().await.ok()
    }

    /// One of the requests that do something to a whole object at once.
    pub(super) async fn act_slot(&self) -> Option<SemaphorePermit<'_>> {
        self.act_slots.acquire().await.ok()
    }

    /// Waits until nobody but this file changes the object at `key`: renames that an earlier process left delete what they
    /// copied only as long as it is the same.
    pub(super) async fn wait_renames_left(&self, key: ObjectKey) {
        let mut left = self.renames_left.subscribe();
        let wait = left.wait_for(Option::is_some).await.ok().and_then(|left| left.clone());
        if let Some(wait) = wait {
            wait(key).await;
        }
    }

    pub(super) fn register(&self, file: &Arc<DirtyFile>, key: &ObjectKey) {
        self.files.lock().entry(key.clone()).or_insert_with(|| file.clone());
    }

    /// The name no longer means this file.
    pub(super) fn forget(&self, file: &DirtyFile, key: &ObjectKey) {
        let mut files = self.files.lock();
        if files.get(key).is_some_and(|found| std::ptr::eq(found.as_ref(), file)) {
            files.remove(key);
        }
    }

    /// An object of this mount is stored; not to be called with a file's lock held.
    pub(super) fn tell_published(&self, key: &ObjectKey, published: &Published) {
        if let Some(untold) = self.untold.lock().as_mut() {
            untold.push((key.clone(), published.clone()));
            return;
        }
        if let Some(listener) = self.listener.get() {
            listener(key, published);
        }
    }

    /// The file lost its name, and its object has to go at some time.
    pub(super) fn removing(&self, key: &ObjectKey, file: &Arc<DirtyFile>) {
        self.removals.lock().insert(key.clone(), file.clone());
    }

    /// Another file took its name; what it has in BOS besides its object has to go.
    pub(super) fn displaced(&self, file: &Arc<DirtyFile>) {
        let mut displaced = self.displaced.lock();
        if !displaced.iter().any(|known| Arc::ptr_eq(known, file)) {
            displaced.push(file.clone());
        }
    }

    fn removal_of(&self, key: &ObjectKey) -> Option<Arc<DirtyFile>> {
        self.removals.lock().get(key).cloned()
    }

    /// Its object is gone, or left to another file.
    pub(super) fn removed(&self, file: &DirtyFile, key: &ObjectKey) {
        self.displaced.lock().retain(|known| !std::ptr::eq(known.as_ref(), file));
        let mut removals = self.removals.lock();
        if removals.get(key).is_some_and(|found| std::ptr::eq(found.as_ref(), file)) {
            removals.remove(key);
        }
    }

    /// The file has another key; whatever had that key has given way.
    pub(super) fn rekey(&self, file: &Arc<DirtyFile>, old: &ObjectKey, new: &ObjectKey) {
        let mut files = self.files.lock();
        if files.get(old).is_some_and(|found| Arc::ptr_eq(found, file)) {
            files.remove(old);
        }
        files.insert(new.clone(), file.clone());
    }

    /// Fetches what files that began as copies of `key` still read from there: it is about to change.
    pub(super) async fn release_clones(&self, key: &ObjectKey) -> Result<(), super::driver::Trouble> {
        let files: Vec<Arc<DirtyFile>> = self.files.lock().values().cloned().collect();
        for file in files {
            let size = {
                let inner = file.lock();
                if inner.base().and_then(|base| base.key.as_ref()) != Some(key) {
                    continue;
                }
                inner.size
            };
            file.fill_from(Some(key), ByteRange::new(0, size)).await?;
            // Also if the power fails after that object is gone.
            file.sync().await?;
        }
        Ok(())
    }

    /// Whether the name means another file by now.
    pub(super) fn is_replaced(&self, file: &DirtyFile, key: &ObjectKey) -> bool {
        self.files.lock().get(key).is_some_and(|found| !std::ptr::eq(found.as_ref(), file))
    }

    /// Whether a file of this key is in memory and not wholly in BOS. Not to be called for a file whose lock is held.
    pub(super) fn has_file(&self, key: &ObjectKey) -> bool {
        let found = self.files.lock().get(key).cloned();
        found.is_some_and(|file| file.is_pending_or_busy())
    }

    pub(super) fn take_adoptable(&self, key: &ObjectKey) -> Option<UploadId> {
        self.adoptable.lock().remove(key)
    }

    pub(super) fn finished(&self, file: &DirtyFile, done: Finished) {
        let bytes_per_s = file.lock().meter.bytes_per_s();
        let mut finished = self.finished.lock();
        if finished.len() >= FINISHED_MAX {
            finished.pop_front();
        }
        finished.push_back(FileStatus {
            key: done.key,
            journal_id: done.journal_id,
            state: "done".into(),
            size: done.size,
            bytes_in_bos: done.size,
            parts_total: done.parts_total,
            parts_in_bos: done.parts_total,
            parts_kept: done.parts_kept,
            parts_sent: done.parts_sent,
            proof: done.proof,
            bytes_per_s,
            updated_at: Timestamp::now().sec,
            ..FileStatus::default()
        });
    }

    /// Punches parts that BOS holds out of spools, oldest files and lowest parts first; the first part of a file only
    /// when nothing else is left, the last one never. True if room was made.
    pub(super) fn make_room(&self) -> bool {
        if !self.punch.load(Ordering::Relaxed) {
            return false;
        }
        let mut files: Vec<Arc<DirtyFile>> = self.files.lock().values().cloned().collect();
        files.sort_by_cached_key(|file| file.lock().state.opened_at);
        let mut freed = 0;
        for spare_first in [true, false] {
            for file in &files {
                freed += file.punch(spare_first, ROOM_BYTES - freed.min(ROOM_BYTES));
                if freed >= ROOM_BYTES {
                    return true;
                }
            }
            if freed > 0 {
                return true;
            }
        }
        false
    }

    /// Whether waiting for room makes sense: some upload is under way that will free some.
    pub(super) fn room_may_come(&self, key: &ObjectKey) -> Result<(), WriteError> {
        let files: Vec<Arc<DirtyFile>> = self.files.lock().values().cloned().collect();
        let frozen = files.iter().any(|file| file.lock().driving);
        if frozen {
            return Ok(());
        }
        Err(WriteError::failed(
            libc::ENOSPC,
            format!(
                "{key}: the spool is full and no upload is under way that would make room; nothing of this write was \
                 accepted, what was accepted before is kept; free disk space or mount with a larger --spool-limit"
            ),
        ))
    }
}

impl DirtyFile {
    /// Punches sent parts out of the spool until `wanted` bytes are free. Returns the bytes freed.
    fn punch(&self, spare_first: bool, wanted: u64) -> u64 {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.store.is_none() || inner.removal != Removal::None || inner.state.rebasing {
            return 0;
        }
        // A wrong guess about a temporary is paid from the spool.
        if inner.temporary.is_some() || inner.is_misplaced() {
            return 0;
        }
        if matches!(inner.state.stage, Stage::Putting { .. } | Stage::Completed { .. }) {
            return 0;
        }
        let size = inner.state.stage.frozen().map_or(inner.size, |frozen| frozen.size);
        let last = PartNumber::new(inner.plan.part_count(size));
        let candidates: Vec<(PartNumber, ByteRange)> = inner
            .state
            .parts
            .iter()
            .filter(|(number, part)| {
                let first = spare_first && **number == PartNumber::FIRST;
                !first && Some(**number) != last && !part.contested && !part.punched && part.sending.is_none()
            })
            .map(|(number, _)| (*number, inner.part_range(*number, size)))
            .filter(|(number, range)| inner.state.is_sent(*number, range.len()))
            .collect();
        let (mut chosen, mut freed) = (Vec::new(), 0);
        for candidate in candidates {
            if freed >= wanted {
                break;
            }
            freed += candidate.1.len();
            chosen.push(candidate);
        }
        if chosen.is_empty() {
            return 0;
        }
        freed = 0;
        let punched = (|| {
            for (part, _) in &chosen {
                self.append(inner, &Record::Punched { part: *part })?;
            }
            let store = inner.store()?;
            // Without these lines, and those that say what BOS holds, a power loss would leave holes that nobody can explain.
            store.journal.sync()?;
            for (_, range) in &chosen {
                for hole in store.extents.hold(*range)? {
                    store.spool.punch(hole)?;
                    freed += hole.len().next_multiple_of(BLOCK_BYTES);
                }
            }
            Ok::<(), WriteError>(())
        })();
        if let Err(e) = punched {
            log::warn!("{}: parts that BOS holds cannot be taken out of the spool: {e}", inner.state.key);
        }
        inner.spooled_bytes = inner.spooled_bytes.saturating_sub(freed);
        self.shared.budget.release(freed);
        freed
    }
}

/// What each of `dirs` describes, in their order. Journals are read side by side: the mount answers only after the last.
fn recover_all(shared: &Arc<Shared>, dirs: &[PathBuf]) -> Vec<Recovered> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(RECOVERY_THREADS_MAX);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(dirs.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(dirs.len()) {
            scope.spawn(|| {
                // A policy may start tasks for the file.
                let _runtime = shared.runtime.enter();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(dir) = dirs.get(index) else { break };
                    let recovered = catch_unwind(AssertUnwindSafe(|| recover(shared, dir)));
                    let recovered = recovered.unwrap_or_else(|_| Err(Box::new(unrecovered(dir))));
                    done.lock().push((index, recovered));
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, recovered)| recovered).collect()
}

/// The status entry of a journal whose recovery panicked.
fn unrecovered(dir: &Path) -> FileStatus {
    let first = catch_unwind(|| match Journal::read(dir).ok()?.records.into_iter().next() {
        Some(Record::Opened { key, .. }) => Some(key.to_string()),
        _ => None,
    });
    FileStatus {
        key: first.ok().flatten().unwrap_or_default(),
        journal_id: dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        state: "failed".into(),
        last_error: Some(format!(
            "{}: taking it up again made bosfs panic; nothing of it was deleted: please report the panic that the log shows; the \
             next mount tries again",
            dir.display()
        )),
        updated_at: Timestamp::now().sec,
        ..FileStatus::default()
    }
}

/// `--upload-rate`: bodies start no faster than the rate allows on average.
pub(super) struct RateLimit {
    bytes_per_s: Option<u64>,
    /// When the bodies that were let through so far will have gone out at the rate.
    free_at: Mutex<tokio::time::Instant>,
}

impl RateLimit {
    fn new(bytes_per_s: Option<u64>) -> Self {
        Self { bytes_per_s: bytes_per_s.filter(|rate| *rate > 0), free_at: Mutex::new(tokio::time::Instant::now()) }
    }

    /// Waits until a body of `bytes` may start.
    pub(super) async fn take(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_s else { return };
        let start = {
            let mut free_at = self.free_at.lock();
            let start = (*free_at).max(tokio::time::Instant::now());
            *free_at = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bodies_start_at_the_rate() {
        let limit = RateLimit::new(Some(1_000_000));
        let start = tokio::time::Instant::now();
        for _ in 0..5 {
            limit.take(2_000_000).await;
        }
        assert_eq!(start.elapsed().as_secs(), 8, "the fifth starts when four have gone out");
        let free = RateLimit::new(None);
        free.take(u64::MAX).await;
    }
}
