//! Deletions that are sent together: journaled one by one, told to BOS by up to 1000.
//!
//! What is deleted is what the program saw when it removed the name. Whoever wrote the name anew before the batch leaves,
//! be it a second or an outage later, keeps the object.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::copy::CopyTrouble;
use super::directory::{DELETE_KEYS_MAX, ended};
use super::object::Ended;
use super::record::{FORMAT, MoveRecord};
use super::running::Move;
use super::state::Kind;
use super::{Moves, Shared};
use crate::bos::client::Known;
use crate::fail_point::fail_point;
use crate::journal::boot_id;
use crate::object::{ObjectKey, Timestamp};
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
    /// Has an object deleted a moment later, together with others, if it still is `known` then; from now on
    /// [`Moves::hides`] says so. Waits only while very many are pending.
    ///
    /// What is another object by then is left alone. That, and a deletion that BOS refuses, is told of in
    /// [`Moves::status`]; the object shows again.
    ///
    /// # Errors
    /// When the journal cannot be written; nothing is deleted then.
    pub async fn delete_later(&self, key: &ObjectKey, known: &Known) -> Result<(), WriteError> {
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
        self.shared.add_deletion(key, known)
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
    fn add_deletion(self: &Arc<Self>, key: &ObjectKey, known: &Known) -> Result<(), WriteError> {
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
        let line = MoveRecord::Delete { key: key.clone(), etag: known.etag.clone(), stored: known.stored };
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
        let wanted = entry.state.lock().deletes.clone();
        let result = entry.guarded(entry.delete_batch_told(wanted)).await;
        let _ = entry.conclude(result);
    }
}

impl Move {
    /// Deletes the objects that still are what they were; what is left, and what BOS refuses, is told, and shows again.
    async fn delete_batch_told(&self, wanted: BTreeMap<ObjectKey, Known>) -> Result<(), Ended> {
        fail_point!("moves.delete");
        let keys: Vec<ObjectKey> = wanted.keys().cloned().collect();
        match self.delete_known(wanted, None).await {
            Ok(kept) => {
                if let Some(listener) = self.shared.deleted.get() {
                    keys.iter().for_each(|key| listener(key.as_str(), !kept.has(key)));
                }
                kept.others.iter().for_each(|key| self.tell_written_anew(key));
                for (key, why) in kept.refused {
                    let message = format!(
                        "{key} was removed here, but BOS refuses to delete it: {why}; it is there again, \
                         nothing of it was lost: put that right and remove it again"
                    );
                    self.shared.tell_as("failed", key.as_str(), &self.id, message);
                }
                Ok(())
            }
            Err(CopyTrouble::Failed(error)) => {
                let message = format!("{error}; up to {} removed names are there again: remove them again", keys.len());
                Err(Ended::Stuck(WriteError::failed(libc::EIO, message)))
            }
            Err(trouble) => Err(ended(trouble)),
        }
    }

    fn tell_written_anew(&self, key: &ObjectKey) {
        let message = format!(
            "{key} was removed here, but by the time its deletion could leave somebody else had written it anew; that object \
             is left and shows here: remove it again if it is to go, too"
        );
        self.shared.tell(key.as_str(), &self.id, message);
    }

    /// Deletes what an earlier process was to delete, if it still is that.
    pub(super) async fn delete_recovered(&self) -> Result<(), Ended> {
        let (mut deletes, same_boot) = {
            let state = self.state.lock();
            let Kind::Deletions { boot_id: begun } = &state.kind else { unreachable!("only called for this kind") };
            (state.deletes.clone(), *begun == boot_id())
        };
        // After a power loss the journal may be older than what is in BOS: an equal object that was written again is told by
        // its time only.
        let unsure: Vec<ObjectKey> = match same_boot {
            true => Vec::new(),
            false => deletes.iter().filter(|(_, known)| known.stored.is_none()).map(|(key, _)| key.clone()).collect(),
        };
        for key in unsure {
            deletes.remove(&key);
            if self.head(&key).await.map_err(ended)?.is_some() {
                let message = format!(
                    "{key} was removed here before this machine was restarted, but whether the object that is there now was \
                     meant cannot be told any more; it is left: remove it again if it is to go"
                );
                self.shared.tell(key.as_str(), &self.id, message);
            }
        }
        self.delete_batch_told(deletes).await
    }
}
