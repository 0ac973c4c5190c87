//! What the files of one mount share: who has which name, the slots of requests, and who hears of publications.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::again::Again;
use super::dirty_file::DirtyFile;
use super::rate_limit::RateLimit;
use super::spool_room::SpoolRoom;
use super::unsynced::NameLines;
use super::{FileStatus, Published, UploadOptions};
use crate::bos::BosClient;
use crate::journal::StateDir;
use crate::journal::record::Proof;
use crate::object::{ByteRange, ObjectKey, Timestamp, UploadId};
use crate::write::budget::SpoolBudget;
use crate::write::part_plan::PartPlan;

/// Finished files that `status` still shows.
const FINISHED_MAX: usize = 100;

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
    pub(super) slots: Semaphore,
    /// For what is one request and no part: not behind the parts of large files.
    pub(super) act_slots: Semaphore,
    /// Taken last: with a file's lock held, never the other way round.
    pub(super) files: Mutex<BTreeMap<ObjectKey, Arc<DirtyFile>>>,
    /// Number of `files` above which those that nobody needs are looked for.
    pub(super) forget_above: AtomicUsize,
    /// Files without a name whose object has still to go, by the key of that object.
    pub(super) removals: Mutex<HashMap<ObjectKey, Arc<DirtyFile>>>,
    /// Lines about names that are not synced yet. Taken last of all.
    pub(super) name_lines: Mutex<NameLines>,
    /// Files whose name another one took, as long as their uploads have to end.
    pub(super) displaced: Mutex<Vec<Arc<DirtyFile>>>,
    pub(super) listener: OnceLock<Listener>,
    /// `None`: not taken up yet.
    pub(super) renames_left: watch::Sender<Option<RenamesLeft>>,
    /// What was stored before there was a listener: recovery begins before anything else of the mount is made. `None` since
    /// there is one.
    pub(super) untold: Mutex<Option<Vec<(ObjectKey, Published)>>>,
    /// Files that are wholly in BOS, and what removals left.
    pub(super) finished: Mutex<VecDeque<FileStatus>>,
    pub(super) damaged: Mutex<Vec<FileStatus>>,
    pub(super) adoptable: Mutex<HashMap<ObjectKey, UploadId>>,
    pub(super) room: SpoolRoom,
    pub(super) again: Again,
    /// Somebody was told that checksums of composed objects do not fit here.
    pub(super) odd_crcs_told: AtomicBool,
    /// Files that have their place on the local disk open.
    pub(super) stores: AtomicUsize,
    /// Whether any file ever began as a copy of another object; as long as none did, no publication looks for them.
    pub(super) has_clones: AtomicBool,
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

impl Shared {
    /// Part plan of the next upload of a file that has `len` bytes, or has a base of so many.
    pub(super) fn plan_for(&self, len: u64) -> PartPlan {
        PartPlan::reaching(len, self.options.part_bytes)
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

    pub(super) fn removal_of(&self, key: &ObjectKey) -> Option<Arc<DirtyFile>> {
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
        if !self.has_clones.load(Ordering::SeqCst) {
            return Ok(());
        }
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
        self.list_finished(FileStatus {
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

    /// Tells of somebody else's object that a removal left where it is.
    pub(super) fn tell_left(&self, key: &ObjectKey, journal_id: &str, message: String) {
        log::warn!("{message}");
        self.list_finished(FileStatus {
            key: key.as_str().to_owned(),
            journal_id: journal_id.to_owned(),
            state: "conflict".into(),
            last_error: Some(message),
            updated_at: Timestamp::now().sec,
            ..FileStatus::default()
        });
    }

    fn list_finished(&self, status: FileStatus) {
        let mut finished = self.finished.lock();
        if finished.len() >= FINISHED_MAX {
            finished.pop_front();
        }
        finished.push_back(status);
    }
}
