//! A move under way: its journal, its state, and how it waits for BOS.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::sync::{SemaphorePermit, watch};

use super::Shared;
use super::record::MoveRecord;
use super::state::{Kind, MoveState, Stage};
use crate::bos::client::ObjectMeta;
use crate::bos::{BosError, BosErrorKind};
use crate::journal::{RecordLog, errno_of};
use crate::object::{ObjectKey, Timestamp};
use crate::transfer::retry::{Act, After, after, backoff};
use crate::upload::{FileStatus, OwnUpload, WriteError};

/// First pause before a request is tried again.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// bosfs is stopping; the journal keeps the move.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped;

/// What is told of the present step.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble {
    pub(super) tries: u32,
    pub(super) last_error: Option<String>,
    /// It will not pass by itself: tried again by the next mount.
    pub(super) failed: bool,
}

/// A move that is journaled.
pub(super) struct Move {
    pub(super) shared: Arc<Shared>,
    pub(super) id: String,
    pub(super) dir: PathBuf,
    log: Mutex<RecordLog<MoveRecord>>,
    /// Locked after `log`, never before.
    pub(super) state: Mutex<MoveState>,
    pub(super) trouble: Mutex<Trouble>,
    /// Begun by an earlier process: nobody holds its names, so they are hidden.
    pub(super) recovered: bool,
    /// Counts what whoever waits for this move should look at.
    pub(super) changed: watch::Sender<u64>,
}

impl Move {
    /// Begins a move with its first line.
    pub(super) fn begin(shared: &Arc<Shared>, first: &MoveRecord) -> Result<Arc<Self>, WriteError> {
        let Some(state) = MoveState::begun(first) else {
            return Err(WriteError::failed(libc::EINVAL, "a move must begin with its first line"));
        };
        let (id, dir) = shared.state_dir.create_move().map_err(|e| disk_error(&e))?;
        let log = RecordLog::create(&dir, first).map_err(|e| {
            // Nothing is in it: the next start would drop it too.
            let _ = shared.state_dir.remove_move(&dir);
            disk_error(&e)
        })?;
        Ok(Self::over(shared, id, dir, log, state, false))
    }

    pub(super) fn over(
        shared: &Arc<Shared>,
        id: String,
        dir: PathBuf,
        log: RecordLog<MoveRecord>,
        state: MoveState,
        recovered: bool,
    ) -> Arc<Self> {
        let entry = Arc::new(Self {
            shared: shared.clone(),
            id: id.clone(),
            dir,
            log: Mutex::new(log),
            state: Mutex::new(state),
            trouble: Mutex::default(),
            recovered,
            changed: watch::Sender::new(0),
        });
        shared.live.lock().insert(id, entry.clone());
        entry
    }

    /// Writes a line and applies it: the only way the state changes.
    pub(super) fn append(&self, record: &MoveRecord) -> Result<(), WriteError> {
        let mut log = self.log.lock();
        log.append(record).map_err(|e| disk_error(&e))?;
        self.state.lock().apply(record);
        drop(log);
        self.notify();
        Ok(())
    }

    /// Takes no further line, for the reason given.
    pub(super) fn shut(&self, why: &str) {
        self.log.lock().shut(why);
    }

    /// All lines so far to stable storage, and the names that lead to them.
    pub(super) async fn sync(&self) -> Result<(), WriteError> {
        let handle = self.log.lock().sync_handle().map_err(|e| disk_error(&e))?;
        let (shared, dir) = (self.shared.clone(), self.dir.clone());
        let synced = tokio::task::spawn_blocking(move || {
            handle.sync_data()?;
            shared.state_dir.sync_move(&dir)
        });
        let synced = synced.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        synced.map_err(|e| disk_error(&self.log.lock().sync_failed(&e)))
    }

    /// Ends the move: its journal goes.
    pub(super) fn finish(&self) {
        for key in self.state.lock().initiating.keys() {
            log::warn!(
                "{key}: BOS did not answer when an upload was begun for a copy; if it began one all the same, nobody goes on \
                 with it: `bosfs uploads list` shows it, `bosfs uploads abort BUCKET/{key} --upload-id ID` drops it"
            );
        }
        if let Err(e) = self.append(&MoveRecord::Done) {
            log::warn!("{}: {e}", self.dir.display());
        }
        if let Err(e) = self.shared.state_dir.remove_move(&self.dir) {
            log::warn!("{}: {e}; the next mount removes it", self.dir.display());
        }
        self.leave();
    }

    /// Takes the move out of the list of those under way.
    pub(super) fn leave(&self) {
        self.shared.live.lock().remove(&self.id);
        self.notify();
        self.shared.notify();
    }

    pub(super) fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Mark of the copies of this move.
    pub(super) fn mark(&self) -> String {
        format!("{}.1", self.id)
    }

    /// Repeats `call` until BOS has answered: yes, or a no that stays.
    pub(super) async fn patiently<T, F>(
        &self,
        key: &ObjectKey,
        call: impl Fn() -> F,
    ) -> Result<Result<T, BosError>, Stopped>
    where
        F: Future<Output = Result<T, BosError>>,
    {
        self.patiently_for(key.as_str(), call).await
    }

    /// The same for a call that names no key.
    pub(super) async fn patiently_for<T, F>(
        &self,
        what: &str,
        call: impl Fn() -> F,
    ) -> Result<Result<T, BosError>, Stopped>
    where
        F: Future<Output = Result<T, BosError>>,
    {
        loop {
            let answered = tokio::select! {
                answered = call() => answered,
                () = self.shared.stop.cancelled() => return Err(Stopped),
            };
            match answered {
                Err(e) if after(&e, Act::Repeatable) == After::Again => self.back_off(what, &e).await?,
                answered => {
                    *self.trouble.lock() = Trouble::default();
                    return Ok(answered);
                }
            }
        }
    }

    /// HEAD; `None`: there is none.
    pub(super) async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectMeta>, super::copy::CopyTrouble> {
        match self.patiently(key, || self.shared.client.head_object(key)).await? {
            Ok(meta) => Ok(Some(meta)),
            Err(e) if e.kind == BosErrorKind::NoSuchKey => Ok(None),
            Err(e) => Err(self.refused("looking at", key, &e).into()),
        }
    }

    /// Waits before the next try of what `error` ended.
    pub(super) async fn back_off(&self, what: &str, error: &BosError) -> Result<(), Stopped> {
        let tries = {
            let mut trouble = self.trouble.lock();
            trouble.tries += 1;
            trouble.last_error = Some(error.to_string());
            trouble.tries
        };
        let pause = backoff(tries, BACKOFF_FIRST, BACKOFF_MAX, rand::rng().random_range(0.5..1.0));
        log::warn!("{what}: {error}; try {} in {} ms", tries + 1, pause.as_millis());
        self.pause(pause).await
    }

    pub(super) async fn pause(&self, pause: Duration) -> Result<(), Stopped> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.shared.stop.cancelled() => Err(Stopped),
        }
    }

    /// The error of a request that BOS refuses for good.
    pub(super) fn refused(&self, doing: &str, key: &ObjectKey, error: &BosError) -> WriteError {
        let message = format!("{doing} {key}: {error}; nothing was changed by that: put it right and try again");
        WriteError::failed(error.errno(), message)
    }

    /// The error of a listing that BOS refuses for good.
    pub(super) fn not_listed(&self, prefix: &str, error: &BosError) -> WriteError {
        WriteError::failed(error.errno(), format!("listing {prefix}: {error}; nothing was changed by that"))
    }

    /// The move stays in its journal, to be tried again by the next mount.
    pub(super) fn fail(&self, message: &str) {
        let message = format!("{message}; the journal keeps the task and the next mount tries again");
        log::error!("{message}");
        *self.trouble.lock() = Trouble { tries: 0, last_error: Some(message), failed: true };
        self.notify();
        self.shared.notify();
    }

    /// Its entry in `status`.
    pub(super) fn status(&self) -> FileStatus {
        let status = describe(&self.state.lock(), &self.id);
        let trouble = self.trouble.lock().clone();
        let state = if trouble.failed { "failed".to_owned() } else { status.state };
        FileStatus { state, tries: trouble.tries, last_error: trouble.last_error, ..status }
    }
}

/// The entry in `status` of a move in this state.
pub(super) fn describe(state: &MoveState, id: &str) -> FileStatus {
    let (key, size, bytes_in_bos, parts_total, parts_in_bos) = match &state.kind {
        Kind::Object { from, source, to, .. } => {
            let copied = state.copies.contains_key(to) || state.stage != Stage::Copying;
            (from.to_string(), source.size, if copied { source.size } else { 0 }, 1, usize::from(copied))
        }
        Kind::Exchange { a, b, .. } => (a.0.to_string(), a.1.size.saturating_add(b.1.size), 0, 3, state.copies.len()),
        Kind::Deletions { .. } => {
            let key = state.deletes.keys().next().map(ObjectKey::to_string).unwrap_or_default();
            (key, 0, 0, state.deletes.len(), 0)
        }
        Kind::Directory { from, .. } => {
            let copied = || state.entries.values().filter(|entry| entry.copied.as_ref().is_some_and(|(_, now)| *now));
            let size = state.entries.values().fold(0, |sum: u64, entry| sum.saturating_add(entry.size));
            let held = copied().fold(0, |sum: u64, entry| sum.saturating_add(entry.size));
            (from.clone(), size, held, state.entries.len(), copied().count())
        }
    };
    let known = state.uploads.iter().map(|(key, upload)| OwnUpload::known(key, &upload.id));
    let uploads = known.chain(state.initiating.keys().map(OwnUpload::possible)).collect();
    let word = if matches!(state.kind, Kind::Deletions { .. }) { "removing" } else { "renaming" };
    FileStatus {
        key,
        journal_id: id.to_owned(),
        state: word.to_owned(),
        size,
        bytes_in_bos,
        parts_total: u32::try_from(parts_total).unwrap_or(u32::MAX),
        parts_in_bos: u32::try_from(parts_in_bos).unwrap_or(u32::MAX),
        uploads,
        is_move: true,
        updated_at: Timestamp::now().sec,
        ..FileStatus::default()
    }
}

impl Shared {
    /// One of the copies that may be on their way at once.
    pub(super) async fn slot(&self) -> Result<SemaphorePermit<'_>, Stopped> {
        tokio::select! {
            slot = self.slots.acquire() => slot.map_err(|_| Stopped),
            () = self.stop.cancelled() => Err(Stopped),
        }
    }
}

/// A failed local disk.
pub(super) fn disk_error(error: &std::io::Error) -> WriteError {
    WriteError::failed(errno_of(error), format!("the journal of a rename: {error}"))
}
