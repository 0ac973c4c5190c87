//! Deletions that are sent together: journaled one by one, told to BOS by up to 1000.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::copy::CopyTrouble;
use super::directory::{DELETE_KEYS_MAX, ended};
use super::object::Ended;
use super::record::{FORMAT, MoveRecord};
use super::running::Move;
use super::state::{Kind, SourceFound, judge_source};
use super::{Moves, Shared};
use crate::fail_point::fail_point;
use crate::journal::boot_id;
use crate::object::{ETag, ObjectKey, Timestamp};
use crate::upload::WriteError;

/// A batch is sent when nothing was added to it for this long,
const IDLE: Duration = Duration::from_millis(200);
/// or when its first key has waited for this long.
const WAIT_MAX: Duration = Duration::from_millis(1500);
/// Keys that wait at most, over all batches; whoever adds more waits.
const PENDING_MAX: usize = 10_000;

/// The batch that takes more keys.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) open: Option<Batch>,
}

pub(super) struct Batch {
    entry: Arc<Move>,
    count: usize,
    added: Arc<Notify>,
    send: Arc<Notify>,
}

impl Moves {
    /// Has an object deleted a moment later, together with others; from now on [`Moves::hides`] says so. `last_modified`:
    /// seconds since 1970, 0 if it is not known. Waits only while very many are pending.
    ///
    /// A deletion that BOS refuses is told of in [`Moves::status`]; the object shows again.
    ///
    /// # Errors
    /// When the journal cannot be written; nothing is deleted then.
    pub async fn delete_later(&self, key: &ObjectKey, etag: &ETag, last_modified: i64) -> Result<(), WriteError> {
        loop {
            let mut changed = self.shared.changed.subscribe();
            if self.pending_deletions() < PENDING_MAX {
                break;
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = self.shared.stop.cancelled() => {
                    return Err(WriteError::failed(libc::EIO, format!("{key}: bosfs is stopping; it is not removed")));
                }
            }
        }
        self.shared.add_deletion(key, etag, last_modified)
    }

    /// Keys below `prefix` that are about to be deleted, markers included.
    pub fn deletions_below(&self, prefix: &str) -> Vec<String> {
        let live = self.shared.live.lock();
        let mut below = Vec::new();
        for entry in live.values() {
            let state = entry.state.lock();
            let keys = state.deletes.keys().map(ObjectKey::as_str);
            below.extend(keys.filter(|key| key.starts_with(prefix)).map(str::to_owned));
        }
        below
    }

    fn pending_deletions(&self) -> usize {
        self.shared.live.lock().values().map(|entry| entry.state.lock().deletes.len()).sum()
    }
}

impl Shared {
    fn add_deletion(self: &Arc<Self>, key: &ObjectKey, etag: &ETag, last_modified: i64) -> Result<(), WriteError> {
        let mut queue = self.queue.lock();
        if queue.open.is_none() {
            let first = MoveRecord::Deletions { format: FORMAT, boot_id: boot_id(), at: Timestamp::now().sec };
            let entry = Move::begin(self, &first)?;
            let batch = Batch { entry: entry.clone(), count: 0, added: Arc::default(), send: Arc::default() };
            let (shared, added, send) = (self.clone(), batch.added.clone(), batch.send.clone());
            self.tasks.spawn_on(async move { shared.send_batch(entry, added, send).await }, &self.runtime);
            queue.open = Some(batch);
        }
        let Some(batch) = &mut queue.open else { unreachable!("made above") };
        let line = MoveRecord::Delete { key: key.clone(), etag: etag.clone(), last_modified };
        batch.entry.append(&line)?;
        batch.count += 1;
        batch.added.notify_one();
        if batch.count >= DELETE_KEYS_MAX {
            batch.send.notify_one();
            queue.open = None;
        }
        Ok(())
    }

    /// Sends what waits, without the usual moment.
    pub(super) fn send_deletions_now(&self) {
        if let Some(batch) = self.queue.lock().open.take() {
            batch.send.notify_one();
        }
    }

    async fn send_batch(self: Arc<Self>, entry: Arc<Move>, added: Arc<Notify>, send: Arc<Notify>) {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            tokio::select! {
                biased;
                () = send.notified() => break,
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep_until(deadline.min(Instant::now() + IDLE)) => break,
                () = added.notified() => if Instant::now() >= deadline { break },
            }
        }
        {
            let mut queue = self.queue.lock();
            if queue.open.as_ref().is_some_and(|batch| Arc::ptr_eq(&batch.entry, &entry)) {
                queue.open = None;
            }
        }
        let keys: Vec<ObjectKey> = entry.state.lock().deletes.keys().cloned().collect();
        let result = entry.guarded(entry.delete_batch_told(&keys)).await;
        let _ = entry.conclude(result);
    }
}

impl Move {
    /// Deletes the keys; what BOS refuses is told, and shows again.
    async fn delete_batch_told(&self, keys: &[ObjectKey]) -> Result<(), Ended> {
        fail_point!("moves.delete");
        match self.delete_keys(keys).await {
            Ok(refused) => {
                if let Some(listener) = self.shared.deleted.get() {
                    for key in keys {
                        listener(key.as_str(), refused.iter().all(|(refused, _)| refused != key.as_str()));
                    }
                }
                for (key, why) in refused {
                    let message = format!(
                        "{key} was removed here, but BOS refuses to delete it: {why}; it is there again, \
                         nothing of it was lost: put that right and remove it again"
                    );
                    self.shared.tell_as("failed", &key, &self.id, message);
                }
                Ok(())
            }
            Err(CopyTrouble::Failed(error)) => {
                let message = format!("{error}; {} removed names are there again: remove them again", keys.len());
                Err(Ended::Stuck(WriteError::failed(libc::EIO, message)))
            }
            Err(trouble) => Err(ended(trouble)),
        }
    }

    /// Deletes what an earlier process was to delete, if it still is that.
    pub(super) async fn delete_recovered(&self) -> Result<(), Ended> {
        let (deletes, same_boot) = {
            let state = self.state.lock();
            let Kind::Deletions { boot_id: begun } = &state.kind else { unreachable!("only called for this kind") };
            (state.deletes.clone(), *begun == boot_id())
        };
        let looked = deletes.into_iter().map(|(key, (etag, last_modified))| async move {
            let head = self.head(&key).await?;
            // After a power loss the journal may be older than what is in BOS: an equal object that was written again is
            // told by its time only.
            let at = (last_modified != 0).then_some(last_modified);
            let known = at.is_some() || same_boot;
            let same = known && judge_source(head.as_ref(), &etag, at) == SourceFound::Same;
            Ok::<_, CopyTrouble>((key, same))
        });
        let looked: Vec<_> = stream::iter(looked).buffer_unordered(self.shared.copies_max).collect().await;
        let mut keys = Vec::new();
        for found in looked {
            let (key, same) = found.map_err(ended)?;
            if same {
                keys.push(key);
            }
        }
        for keys in keys.chunks(DELETE_KEYS_MAX) {
            self.delete_batch_told(keys).await?;
        }
        Ok(())
    }
}
