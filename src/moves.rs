//! Gives objects other keys and takes them away, so that a kill at any moment loses no name: renames of one object and of
//! whole prefixes, exchanges, and deletions that are sent in batches. Knows no mount.
//!
//! Each move has a journal of its own (see [`record`]). How a directory goes from prefix to prefix:
//!
//! ```text
//!   begun -> planned -> copied ... -> (listed again: nothing new) -> all copied -> old names deleted -> done
//!      \________________________/                                   \____________________________/
//!       crash: the copies are deleted again                          crash: goes on
//! ```
//!
//! A single object goes the same way without a plan; a crash before its copy is complete makes the copy again. An old name
//! is deleted only while BOS shows there what was copied (ETag and `Last-Modified`), asked right before: see `removal`.

mod copy;
mod deletions;
mod directory;
mod object;
mod parts;
pub mod record;
mod removal;
mod running;
pub mod state;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bos::BosClient;
use crate::bos::client::ObjectHeaders;
use crate::journal::log::JOURNAL_NAME;
use crate::journal::state_dir::moves_in;
use crate::journal::{RecordLog, StateDir};
use crate::object::{BaseObject, Condition, ETag, ObjectKey, Timestamp};
use crate::upload::{FileStatus, WriteError};
use deletions::Queue;
use object::Ended;
use record::{FORMAT, MoveRecord};
use running::Move;
use state::{Kind, MoveState, Recovery};

/// Things told of finished moves that `status` still shows.
const TOLD_MAX: usize = 1000;

/// Where copies by parts begin, and how large parts are. Other values than the default are for tests.
#[derive(Clone, Copy, Debug)]
pub struct CopySizes {
    /// Largest object that is copied by one call, bytes.
    pub copy_bytes_max: u64,
    /// Preferred size of a copied part, bytes.
    pub part_bytes: u64,
}

impl Default for CopySizes {
    fn default() -> Self {
        Self { copy_bytes_max: crate::upload::COPY_BYTES_MAX, part_bytes: copy::PART_BYTES }
    }
}

/// An object under its new key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// ETag that it has there.
    pub etag: ETag,
    /// When BOS stored the copy, seconds since 1970, where that was told.
    pub last_modified: Option<i64>,
}

/// An object below a renamed directory that has another ETag than before (BOS keeps that of simple objects only).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recopied {
    /// Key behind the prefix.
    pub rest: String,
    /// ETag before.
    pub from_etag: ETag,
    /// ETag now.
    pub etag: ETag,
}

/// A directory whose objects are all copied: the new names count. Dropped, it removes the old ones behind.
pub struct CopiedDir {
    entry: Option<Arc<Move>>,
    /// The objects that have other ETags now, by `rest`.
    pub recopied: Vec<Recopied>,
}

impl CopiedDir {
    /// Deletes the old names, but for what others wrote there meanwhile, which is told of in [`Moves::status`].
    ///
    /// # Errors
    /// When BOS refuses: those names are there twice, as the message says, and the next mount tries again.
    pub async fn remove_sources(mut self) -> Result<(), WriteError> {
        let Some(entry) = self.entry.take() else { return Ok(()) };
        let shared = entry.shared.clone();
        shared.spawn(async move { entry.conclude(entry.guarded(entry.remove_sources()).await) }).await
    }
}

impl Drop for CopiedDir {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        let shared = entry.shared.clone();
        let removing = async move {
            // Nobody waits for it: the log and `status` tell.
            let _ = entry.conclude(entry.guarded(entry.remove_sources()).await);
        };
        shared.tasks.spawn_on(removing, &shared.runtime);
    }
}

/// What the moves of one mount share.
struct Shared {
    client: BosClient,
    state_dir: Arc<StateDir>,
    sizes: CopySizes,
    copies_max: usize,
    slots: Semaphore,
    stop: CancellationToken,
    tasks: TaskTracker,
    runtime: Handle,
    live: Mutex<BTreeMap<String, Arc<Move>>>,
    told: Mutex<VecDeque<FileStatus>>,
    changed: watch::Sender<u64>,
    queue: Mutex<Queue>,
    /// Hears of every key of a batch: whether it is gone.
    deleted: OnceLock<DeletedListener>,
    replaced: Mutex<Replaced>,
    followers: Option<RenameFollower>,
}

/// Hears of keys that were deleted later than they were removed here, and whether BOS did it.
pub type DeletedListener = Box<dyn Fn(&str, bool) + Send + Sync>;

/// Hears of keys whose object a rename or an exchange has replaced; of a directory's marker by its prefix.
pub type ReplacedListener = Box<dyn Fn(&str) + Send + Sync>;

/// Whoever hears of replaced objects, and those that recovery replaced before anybody did.
#[derive(Default)]
struct Replaced {
    listener: Option<Arc<ReplacedListener>>,
    untold: Vec<String>,
}

/// An object that was renamed: everything is done but for what is dirty here under either name.
#[derive(Clone, Debug)]
pub struct RenamedObject {
    /// Where it was.
    pub from: ObjectKey,
    /// Its ETag there.
    pub from_etag: ETag,
    /// Where it is.
    pub to: ObjectKey,
    /// Its ETag here.
    pub etag: ETag,
    /// The rename was begun by an earlier process: nobody has either name open.
    pub recovered: bool,
}

/// Journals what a rename means for files that are dirty under either name, before the journal of the rename goes. May be
/// called again for the same rename after a crash.
pub type RenameFollower = Box<dyn Fn(RenamedObject) -> BoxFuture<'static, Result<(), WriteError>> + Send + Sync>;

/// All moves of one mount.
pub struct Moves {
    shared: Arc<Shared>,
}

impl Moves {
    /// Takes up the moves that `state_dir` knows, and finishes them in the background. At most `copies_max` copies are on
    /// their way at once. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the state directory cannot be read. A single damaged journal is no error: it is listed as failed.
    pub fn start(
        client: BosClient,
        state_dir: Arc<StateDir>,
        copies_max: usize,
        follower: RenameFollower,
    ) -> io::Result<Arc<Self>> {
        Self::start_with(client, state_dir, copies_max, CopySizes::default(), Some(follower))
    }

    /// As [`Moves::start`] with other sizes, and with or without somebody who has dirty files.
    ///
    /// # Errors
    /// See [`Moves::start`].
    pub fn start_with(
        client: BosClient,
        state_dir: Arc<StateDir>,
        copies_max: usize,
        sizes: CopySizes,
        followers: Option<RenameFollower>,
    ) -> io::Result<Arc<Self>> {
        let copies_max = copies_max.max(1);
        let shared = Arc::new(Shared {
            client,
            sizes,
            copies_max,
            slots: Semaphore::new(copies_max),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            live: Mutex::default(),
            told: Mutex::default(),
            changed: watch::Sender::new(0),
            queue: Mutex::default(),
            deleted: OnceLock::new(),
            replaced: Mutex::default(),
            followers,
            state_dir: state_dir.clone(),
        });
        for dir in state_dir.moves()? {
            let recovered = catch_unwind(AssertUnwindSafe(|| recover(&shared, &dir)));
            match recovered.unwrap_or_else(|_| Err("taking it up again made bosfs panic; please report that".into())) {
                Ok(None) => {}
                Ok(Some(entry)) => {
                    let task = shared.clone();
                    shared.tasks.spawn_on(async move { task.finish_recovered(&entry).await }, &shared.runtime);
                }
                Err(message) => {
                    let id = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                    let message = format!(
                        "{}: {message}; nothing of it was deleted: look into it, then move it away",
                        dir.display()
                    );
                    shared.tell_as("failed", "", &id, message);
                }
            }
        }
        Ok(Arc::new(Self { shared }))
    }

    /// Calls `listener` for every key that [`Moves::delete_later`] had deleted, before the key ceases to be hidden; the first
    /// listener stays.
    pub fn on_deleted(&self, listener: DeletedListener) {
        let _ = self.shared.deleted.set(listener);
    }

    /// Calls `listener` for every key whose object a move has, or may have, replaced, before the old name ceases to be
    /// shown; also for those that recovery replaced before this call.
    pub fn on_replaced(&self, listener: ReplacedListener) {
        let listener = Arc::new(listener);
        loop {
            let mut replaced = self.shared.replaced.lock();
            if replaced.untold.is_empty() {
                replaced.listener = Some(listener);
                return;
            }
            let untold = std::mem::take(&mut replaced.untold);
            // It may wait for the disk.
            drop(replaced);
            untold.iter().for_each(|key| listener(key));
        }
    }

    /// Gives the object `source` at `from` the key `to`. `replace`: other headers than
    /// those it has. The condition is looked at right before the copy, as BOS knows none for copies (BOS docs,
    /// CopyObject); with [`Condition::Any`] whatever is there is replaced, unseen.
    ///
    /// Goes on when the caller leaves. Should somebody else have written `from` meanwhile, that object stays there and is
    /// told of in [`Moves::status`]; the rename counts.
    ///
    /// # Errors
    /// `ENOENT`, `ESTALE`: `from` is not `source`; `EEXIST`, `ESTALE`: the condition does not hold; else what BOS or the
    /// local disk says. Nothing was removed then; only if the copy is made and the old name cannot be removed, both are
    /// there, as the message says.
    pub async fn rename_object(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        source: &BaseObject,
        condition: &Condition,
        replace: Option<&ObjectHeaders>,
    ) -> Result<Renamed, WriteError> {
        let first = MoveRecord::Object {
            format: FORMAT,
            from: from.clone(),
            source: source.clone(),
            to: to.clone(),
            condition: condition.clone(),
            replace: replace.cloned(),
            at: Timestamp::now().sec,
        };
        self.shared.run(first, |entry| async move { entry.drive_object(false).await }).await
    }

    /// Makes two objects change places; returns the ETags that `a` and `b` have then. `hidden` is a key that nobody else
    /// uses, for the copy that is made on the way.
    ///
    /// # Errors
    /// As [`Moves::rename_object`].
    pub async fn exchange(
        &self,
        a: (&ObjectKey, &BaseObject),
        b: (&ObjectKey, &BaseObject),
        hidden: &ObjectKey,
    ) -> Result<(ETag, ETag), WriteError> {
        let first = MoveRecord::Exchange {
            format: FORMAT,
            a: a.0.clone(),
            a_object: a.1.clone(),
            b: b.0.clone(),
            b_object: b.1.clone(),
            hidden: hidden.clone(),
            at: Timestamp::now().sec,
        };
        self.shared.run(first, |entry| async move { entry.drive_exchange(false).await }).await
    }

    /// Moves all objects below `from` to below `to` (prefixes ending in `/`, neither within the other, nothing below
    /// `to` but its marker), but for the keys in `leave_out`. `marker`: headers of the marker that `to` is given if `from`
    /// has none. One that `to` has stays as it is until everything else is copied.
    ///
    /// When this returns, everything is copied and the new names count; the old ones go with
    /// [`CopiedDir::remove_sources`].
    ///
    /// # Errors
    /// `ENAMETOOLONG` if a key would become too long, `EINVAL` for keys that cannot be paths, `EXDEV` for more than
    /// 500,000 objects, `EBUSY` when others never stop changing it, and what BOS or the local disk says. The old names
    /// count then, and the copies are taken back.
    pub async fn copy_dir(
        &self,
        from: &str,
        to: &str,
        leave_out: Vec<ObjectKey>,
        marker: Option<ObjectHeaders>,
    ) -> Result<CopiedDir, WriteError> {
        let (from, to, at) = (from.to_owned(), to.to_owned(), Timestamp::now().sec);
        let first = MoveRecord::Directory { format: FORMAT, from, to, leave_out, at };
        crate::journal::Line::check(&first).map_err(|message| WriteError::failed(libc::EINVAL, message))?;
        let entry = self.shared.begin(&first)?;
        let copying = entry.clone();
        let copied = self.shared.spawn(async move {
            match copying.guarded(copying.copy_directory(marker.as_ref())).await {
                Ok(()) => Ok(CopiedDir { recopied: copying.recopied(), entry: Some(copying) }),
                Err(ended) => copying.conclude(Err(ended)),
            }
        });
        copied.await
    }

    /// [`Moves::copy_dir`], then [`CopiedDir::remove_sources`].
    ///
    /// # Errors
    /// Those of both.
    pub async fn rename_dir(
        &self,
        from: &str,
        to: &str,
        leave_out: Vec<ObjectKey>,
        marker: Option<ObjectHeaders>,
    ) -> Result<(), WriteError> {
        self.copy_dir(from, to, leave_out, marker).await?.remove_sources().await
    }

    /// Whether the mount must not show this key (of a file, or of a directory without its `/`): it is about to go.
    pub fn hides(&self, key: &str) -> bool {
        let live = self.shared.live.lock();
        live.values().any(|entry| {
            let state = entry.state.lock();
            (entry.recovered || matches!(state.kind, Kind::Deletions { .. } | Kind::Exchange { .. }))
                && state.hides(key)
        })
    }

    /// Waits until no move of an earlier process and no deletion has to do with `key`, or, if it ends in `/`, with
    /// anything below it. Deletions are sent at once.
    ///
    /// # Errors
    /// When a move that concerns the key cannot be finished, or bosfs is stopping.
    pub async fn wait_clear(&self, key: &str) -> Result<(), WriteError> {
        loop {
            // Subscribed first: what ends meanwhile is not missed.
            let mut changed = self.shared.changed.subscribe();
            let concerned = self.concerned(key);
            let Some(entry) = concerned else { return Ok(()) };
            if entry.trouble.lock().failed {
                let why = entry.trouble.lock().last_error.clone().unwrap_or_default();
                return Err(WriteError::failed(
                    libc::EIO,
                    format!("{key}: an earlier rename or removal of it failed: {why}"),
                ));
            }
            self.shared.send_deletions_now();
            tokio::select! {
                _ = changed.changed() => {}
                () = self.shared.stop.cancelled() => {
                    return Err(WriteError::failed(libc::EIO, format!("{key}: bosfs is stopping")));
                }
            }
        }
    }

    /// Whether [`Moves::wait_clear`] would wait.
    pub fn is_clear(&self, key: &str) -> bool {
        self.concerned(key).is_none()
    }

    fn concerned(&self, key: &str) -> Option<Arc<Move>> {
        let live = self.shared.live.lock();
        let found = live.values().find(|entry| {
            let state = entry.state.lock();
            (entry.recovered || matches!(state.kind, Kind::Deletions { .. })) && state.touches(key)
        });
        found.cloned()
    }

    /// One entry per move under way; then what was told of finished ones.
    pub fn status(&self) -> Vec<FileStatus> {
        let mut all: Vec<FileStatus> = self.shared.live.lock().values().map(|entry| entry.status()).collect();
        all.extend(self.shared.told.lock().iter().cloned());
        all
    }

    /// Waits until no move is under way. Returns what failed, and what was kept because others wrote it.
    pub async fn drain(&self) -> Vec<FileStatus> {
        self.shared.send_deletions_now();
        loop {
            let mut changed = self.shared.changed.subscribe();
            let under_way = self.shared.live.lock().values().any(|entry| !entry.trouble.lock().failed);
            if !under_way {
                break;
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = self.shared.stop.cancelled() => break,
            }
        }
        self.status()
    }

    /// Stops all tasks at once; the journals keep everything.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        // Moves and what they share hold each other; the lease on the state directory must end with the last handle.
        self.shared.live.lock().clear();
        self.shared.queue.lock().open = None;
    }
}

/// The moves that wait in the state directory at `path` while no process works on it; why, where a journal cannot be used.
pub fn offline_status(path: &Path) -> Vec<Result<FileStatus, String>> {
    let status = |dir: &PathBuf| -> Result<Option<FileStatus>, String> {
        let told = |why: String| format!("{}: {why}", dir.display());
        if !dir.join(JOURNAL_NAME).exists() {
            return Ok(None);
        }
        let replay = RecordLog::<MoveRecord>::read(dir).map_err(|e| e.to_string())?;
        if let Some(damage) = replay.damage {
            return Err(told(damage));
        }
        if replay.records.is_empty() {
            return Ok(None);
        }
        let state = MoveState::replay(&replay.records).map_err(told)?;
        let id = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok((state.recovery() != Recovery::Drop).then(|| running::describe(&state, &id)))
    };
    match moves_in(path) {
        Ok(dirs) => dirs.iter().filter_map(|dir| status(dir).transpose()).collect(),
        // Not to be read is not to be empty.
        Err(e) => vec![Err(format!("{}: {e}", path.display()))],
    }
}

/// The move that `dir` describes; `None` if it is over or never began.
///
/// # Errors
/// Why its journal cannot be used.
fn recover(shared: &Arc<Shared>, dir: &Path) -> Result<Option<Arc<Move>>, String> {
    let drop_it = || {
        if let Err(e) = shared.state_dir.remove_move(dir) {
            log::warn!("{}: {e}", dir.display());
        }
    };
    if !dir.join(JOURNAL_NAME).exists() {
        drop_it();
        return Ok(None);
    }
    let (log, replay) = RecordLog::<MoveRecord>::open(dir).map_err(|e| format!("the journal cannot be read: {e}"))?;
    if let Some(damage) = replay.damage {
        return Err(format!("the journal is damaged: {damage}"));
    }
    if replay.records.is_empty() {
        // Killed within the first line.
        drop_it();
        return Ok(None);
    }
    let state = MoveState::replay(&replay.records)?;
    if state.recovery() == Recovery::Drop {
        drop_it();
        return Ok(None);
    }
    let id = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Some(Move::over(shared, id, dir.to_owned(), log, state, true)))
}

impl Shared {
    fn begin(self: &Arc<Self>, first: &MoveRecord) -> Result<Arc<Move>, WriteError> {
        if self.stop.is_cancelled() {
            return Err(WriteError::failed(libc::EIO, "bosfs is stopping; nothing was renamed"));
        }
        Move::begin(self, first)
    }

    /// Runs `work` in a task of its own, so that it goes on when the caller leaves.
    async fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, WriteError>> + Send + 'static,
    ) -> Result<T, WriteError> {
        self.tasks.spawn_on(work, &self.runtime).await.unwrap_or_else(|e| {
            Err(WriteError::failed(libc::EIO, format!("a rename broke off: {e}; the next mount goes on with it")))
        })
    }

    /// Begins a move and drives it to its end.
    async fn run<T, F>(self: &Arc<Self>, first: MoveRecord, drive: impl FnOnce(Arc<Move>) -> F) -> Result<T, WriteError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Ended>> + Send + 'static,
    {
        let entry = self.begin(&first)?;
        let driven = drive(entry.clone());
        self.spawn(async move { entry.conclude(entry.guarded(driven).await) }).await
    }

    async fn finish_recovered(self: Arc<Self>, entry: &Arc<Move>) {
        let kind = entry.state.lock().kind.clone();
        let driven = async {
            match kind {
                Kind::Object { .. } => entry.drive_object(true).await.map(|_| ()),
                Kind::Exchange { .. } => entry.drive_exchange(true).await.map(|_| ()),
                Kind::Directory { .. } => entry.recover_directory().await,
                Kind::Deletions { .. } => entry.delete_recovered().await,
            }
        };
        // Whoever began it is gone: the log and `status` are told.
        let _ = entry.conclude(entry.guarded(driven).await);
    }

    /// Tells of something that was left as it is.
    fn tell(&self, key: &str, id: &str, message: String) {
        self.tell_as("conflict", key, id, message);
    }

    fn tell_as(&self, state: &str, key: &str, id: &str, message: String) {
        log::warn!("{message}");
        let mut told = self.told.lock();
        if told.len() >= TOLD_MAX {
            told.pop_front();
        }
        told.push_back(FileStatus {
            key: key.to_owned(),
            journal_id: id.to_owned(),
            state: state.to_owned(),
            last_error: Some(message),
            updated_at: Timestamp::now().sec,
            ..FileStatus::default()
        });
    }

    /// Tells whoever remembers what the object at `key` was.
    fn tell_replaced(&self, key: &str, recovered: bool) {
        let listener = {
            let mut replaced = self.replaced.lock();
            if replaced.listener.is_none() && recovered {
                replaced.untold.push(key.to_owned());
            }
            replaced.listener.clone()
        };
        // Not under the lock: it may wait for the disk.
        if let Some(listener) = listener {
            listener(key);
        }
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Move {
    /// What `driven` ends with. Should it panic, the move stays in its journal and is taken up by the next mount.
    async fn guarded<T>(&self, driven: impl Future<Output = Result<T, Ended>>) -> Result<T, Ended> {
        AssertUnwindSafe(driven).catch_unwind().await.unwrap_or_else(|_| {
            self.shut("bosfs panicked while it worked on the move");
            let key = self.status().key;
            let message = format!(
                "{key}: bosfs panicked while it was renamed or removed; no name is lost: unmount and mount again to go on, and \
                 please report the panic that the log shows"
            );
            Err(Ended::Kept(WriteError::failed(libc::EIO, message)))
        })
    }

    /// Ends the move as its result says.
    fn conclude<T>(&self, result: Result<T, Ended>) -> Result<T, WriteError> {
        match result {
            Ok(value) => {
                self.finish();
                Ok(value)
            }
            Err(ended) => {
                match &ended {
                    Ended::Undone(_) => self.finish(),
                    Ended::Stuck(error) => {
                        let key = self.status().key;
                        self.shared.tell(&key, &self.id, error.to_string());
                        self.finish();
                    }
                    Ended::Kept(error) => self.fail(&error.to_string()),
                    Ended::Stopped => {}
                }
                Err(ended.into_error())
            }
        }
    }
}
