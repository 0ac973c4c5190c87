//! All dirty files of one mount: taken up from the journals, found by key, waited for at the end.

use std::collections::HashSet;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::again::Again;
use super::dirty_file::DirtyFile;
use super::inner::Removal;
use super::rate_limit::RateLimit;
use super::recover::recover_all;
use super::shared::{Listener, RenamesLeft, Shared};
use super::spool_room::{AbortRules, SpoolRoom};
use super::state::Stage;
use super::{FileStatus, Opening, UploadOptions, WriteError};
use crate::bos::BosClient;
use crate::journal::StateDir;
use crate::object::ObjectKey;
use crate::write::budget::SpoolBudget;
use crate::write::part_plan::PartPlan;

/// Files in memory before those are forgotten that are wholly in BOS and not open.
const REMEMBERED_MAX: usize = 1024;
/// Smallest spool limit, in parts of the first size.
const SPOOL_PARTS_MIN: u64 = 4;
/// Pages of unfinished uploads that `--adopt` reads at most, 1000 uploads each.
const ADOPT_PAGES_MAX: usize = 100;
/// How often the log tells what an unmount waits for.
const WAIT_TOLD_AFTER: Duration = Duration::from_secs(10);
/// Small publications, copies and deletes at once, beside as many as there may be parts.
const ACTS_MAX: usize = 16;

/// All dirty files of one mount.
pub struct Uploads {
    pub(super) shared: Arc<Shared>,
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
            name_lines: Mutex::default(),
            displaced: Mutex::default(),
            renames_left: watch::Sender::new(renames_left),
            forget_above: AtomicUsize::new(REMEMBERED_MAX),
            listener: OnceLock::new(),
            untold: Mutex::new(Some(Vec::new())),
            finished: Mutex::default(),
            damaged: Mutex::default(),
            adoptable: Mutex::default(),
            room: SpoolRoom::new(punch),
            again: Again::default(),
            odd_crcs_told: AtomicBool::new(false),
            stores: AtomicUsize::new(0),
            has_clones: AtomicBool::new(false),
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
                super::Displaced::Gone => {
                    // Else the line of the removal alone might be left by power loss, and meet the object of the new file.
                    file.make_lines_durable().await?;
                    self.shared.removed(&file, key);
                }
            }
        }
        Ok(())
    }

    fn take_over(&self, file: Arc<DirtyFile>) {
        let key = file.key();
        let (unlinked, leaves_object) = {
            let inner = file.lock();
            // An earlier process may have written it and synced nothing.
            file.note_found(&inner);
            (inner.removal != Removal::None, inner.state.discarded)
        };
        if unlinked && leaves_object {
            // Its upload has to end, and whoever waits for this mount's work waits for that.
            self.shared.displaced(&file);
        } else if unlinked {
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
    /// `moves` tells the renames under way: what they or a file here goes on with is not for anybody else, under whatever key
    /// it is (a temporary's parts go to the name that it will get).
    ///
    /// # Errors
    /// When BOS cannot be asked.
    pub async fn find_adoptable(
        &self,
        prefix: &str,
        moves: impl Fn() -> Vec<FileStatus>,
    ) -> Result<usize, crate::bos::BosError> {
        let mut next = None;
        for _ in 0..ADOPT_PAGES_MAX {
            let page = self.shared.client.list_uploads(prefix, next.as_ref()).await?;
            let journaled = self.status().into_iter().chain(moves()).flat_map(|status| status.uploads);
            let own: HashSet<String> = journaled.filter_map(|upload| upload.upload_id).collect();
            let mut adoptable = self.shared.adoptable.lock();
            for upload in page.uploads.into_iter().filter(|upload| !own.contains(upload.upload_id.as_str())) {
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

    /// What is known from now on of lifecycle rules of the bucket that abort uploads: where there is one, or nobody knows,
    /// nothing is punched out of the spool, since BOS may not keep it.
    pub fn set_abort_rules(&self, rules: AbortRules) {
        self.shared.room.set_rules(rules);
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

    /// Why this key's file cannot be shown: its journal was found and cannot be read, so that the object is older than what
    /// was accepted of it.
    ///
    /// # Errors
    /// `EIO`, with the place of the journal and what to do.
    pub fn check_readable(&self, key: &ObjectKey) -> Result<(), WriteError> {
        if self.shared.has_file(key) {
            return Ok(());
        }
        let damaged = self.shared.damaged.lock();
        let Some(found) = damaged.iter().find(|status| status.key == key.as_str()) else { return Ok(()) };
        let why = found.last_error.as_deref().unwrap_or("its journal cannot be read");
        Err(WriteError::failed(
            libc::EIO,
            format!(
                "{key}: what was written of it cannot be taken up, and the object in BOS is older, so it is not shown: {why}"
            ),
        ))
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
            let begin = || DirtyFile::begin(self.shared.clone(), opening.clone());
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
        self.shared.release_clones(key).await.map_err(|trouble| trouble.of_copy(key))
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

    /// Whether the removal of this file left somebody else's object under its name, a short while ago.
    pub fn was_left(&self, file: &DirtyFile) -> bool {
        let journal_id = file.lock().state.journal_id.clone();
        self.shared.finished.lock().iter().any(|told| told.state == "conflict" && told.journal_id == journal_id)
    }

    /// Waits until nothing closed is pending. Returns the files that failed, are in conflict or interrupted.
    pub async fn drain(&self) -> Vec<FileStatus> {
        for file in self.files() {
            if let Err(e) = file.unpark() {
                log::error!("{e}");
            }
        }
        let mut told_at = Instant::now();
        loop {
            let mut files = self.files();
            // Those that have no name any more, and objects that have to go.
            files.extend(self.shared.removals.lock().values().cloned());
            files.extend(self.shared.displaced.lock().iter().cloned());
            let pending = files.into_iter().find(|file| {
                let inner = file.lock();
                let stuck = inner.state.failed.is_some() || inner.state.conflict.is_some();
                let under_way = inner.state.stage != Stage::Open
                    || inner.tidying
                    || inner.removal == Removal::Wanted
                    || (inner.writers == 0 && inner.attrs_pending() && !inner.new_content && !inner.new_file);
                !stuck && under_way
            });
            let Some(pending) = pending else { break };
            if told_at.elapsed() > WAIT_TOLD_AFTER {
                told_at = Instant::now();
                log::info!("{} is waited for: {}", pending.key(), pending.lock().whereabouts());
            }
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
