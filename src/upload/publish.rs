//! Freezing a state for publication, and the waits for what becomes of it.

use std::sync::Arc;
use std::time::Duration;

use super::WriteError;
use super::dirty_file::DirtyFile;
use super::inner::{COPY_BYTES_MAX, Inner, Removal};
use super::state::Stage;
use crate::journal::Record;
use crate::journal::record::Publication;
use crate::object::{ByteRange, PartNumber};
use crate::write::layers::View;

/// How often a wait under `--timeout` looks how much of it has passed.
const LIMIT_TICK: Duration = Duration::from_millis(500);

/// What a flush has to wait for.
enum Ticket {
    None,
    /// Nothing now: the rename will.
    Parked,
    Wait(Publication),
}

impl DirtyFile {
    /// Freezes what is new. `release`: a file that was only created or emptied counts, too. Returns the publication to
    /// wait for; `None` when there is nothing to wait for.
    pub(super) fn begin_publication(
        self: &Arc<Self>,
        inner: &mut Inner,
        release: bool,
    ) -> Result<Option<Publication>, WriteError> {
        if inner.removal != Removal::None {
            return Ok(None);
        }
        if inner.inherited {
            // A close by somebody who changed nothing says nothing of a file whose writer was killed.
            return Ok(None);
        }
        // A smaller object is copied onto itself by the driver: nothing to freeze.
        let large = inner.base().is_some_and(|base| base.size > COPY_BYTES_MAX) || inner.is_copy_refused();
        let attrs_only = release && large && inner.attrs_pending() && !inner.new_content && !inner.new_file;
        let new = inner.new_content || (release && inner.new_file) || attrs_only;
        if !new {
            let present = inner.state.last_closed().map(|closed| closed.publication);
            return Ok(present.or_else(|| inner.tidying.then_some(inner.settled_publication)));
        }
        if inner.state.failed.is_some() {
            // What failed is not on its way: the newer state takes its place.
            self.withdraw(inner)?;
        }
        self.materialise(inner)?;
        let publication = match inner.state.stage.frozen() {
            Some(frozen) => frozen.publication + 1,
            None => inner.state.publications + 1,
        };
        let (size, attrs) = (inner.size, inner.state.attrs);
        let layer = inner.state.layers.last().map_or(0, |layer| layer.id);
        // Then power loss takes nothing of it.
        let synced = inner.store.as_ref().is_some_and(|store| self.changes.are_bytes_certain(&store.dir));
        let durable = self.shared.options.write_back;
        self.append(inner, &Record::Closed { publication, size, attrs, layer, durable, synced })?;
        inner.new_content = false;
        inner.new_file = false;
        inner.retry_at = None;
        inner.parked_until = None;
        // What was ready early is now part of the frozen list.
        inner.ready.clear();
        self.merge_closed(inner);
        Ok(Some(publication))
    }

    /// Forgets the failure of the last try. A publication that was not sent is taken back, and with it what waits behind it:
    /// what is closed next has all of their bytes, and takes their place.
    pub(super) fn withdraw(self: &Arc<Self>, inner: &mut Inner) -> Result<(), WriteError> {
        self.retry(inner, false)?;
        let Stage::Closed(frozen) = inner.state.stage.clone() else { return Ok(()) };
        let depth = inner.state.depth_of(&frozen);
        self.append(inner, &Record::Superseded { publication: frozen.publication, lost: false })?;
        inner.new_content = true;
        // What was sent of it is that of its own layers.
        let above = |inner: &Inner, range: ByteRange| {
            let layers = inner.store.as_ref().map_or(&[][..], |store| &store.layers[depth..]);
            !View::new(layers, inner.size).is_untouched(range) || range.end > inner.size
        };
        let sent: Vec<(PartNumber, ByteRange)> = inner
            .state
            .parts
            .iter()
            .filter(|(_, part)| part.held.is_some() && !part.dirty)
            .map(|(number, part)| (*number, part.copied.unwrap_or_else(|| inner.plan.range_in(*number, frozen.size))))
            .collect();
        let changed: Vec<PartNumber> =
            sent.into_iter().filter(|(_, range)| above(inner, *range)).map(|(part, _)| part).collect();
        for part in changed {
            self.append(inner, &Record::Dirtied { part })?;
        }
        inner.live.values_mut().for_each(|live| {
            live.generation += 1;
            live.sealed = None;
        });
        self.merge_closed(inner);
        Ok(())
    }

    /// `flush` by the process that opened the file: publishes the state at this moment if something new was written, and
    /// waits as the mode says (default: object complete and proved; write-back: synced to the local disk).
    ///
    /// # Errors
    /// What kept the file from being published. Its bytes stay in the journal.
    pub async fn publish(self: &Arc<Self>) -> Result<(), WriteError> {
        self.publish_as(false, self.shared.options.write_back).await
    }

    /// Publishes what there is, whatever the mode, and waits for the proof (before a rename; `uploads complete`).
    /// Nothing new: returns at once.
    ///
    /// # Errors
    /// See [`DirtyFile::publish`].
    pub async fn publish_and_wait(self: &Arc<Self>) -> Result<(), WriteError> {
        self.publish_as(true, false).await
    }

    async fn publish_as(self: &Arc<Self>, release: bool, write_back: bool) -> Result<(), WriteError> {
        let ticket = {
            let mut inner = self.lock();
            inner.check_whole()?;
            if !release && inner.may_park() && inner.new_content {
                self.park(&mut inner)?;
                Ticket::Parked
            } else if let Some(publication) = self.begin_publication(&mut inner, release)? {
                Ticket::Wait(publication)
            } else {
                // A second close of a file whose publication failed must not look like success.
                inner.trouble()?;
                Ticket::None
            }
        };
        let ticket = match ticket {
            Ticket::None => return Ok(()),
            Ticket::Parked if write_back => return self.sync_changes().await,
            Ticket::Parked => return Ok(()),
            Ticket::Wait(publication) => publication,
        };
        self.start_driver();
        self.wake.notify_one();
        if write_back {
            return self.sync_changes().await;
        }
        self.bounded(self.wait_published(ticket)).await
    }

    async fn wait_published(&self, publication: Publication) -> Result<(), WriteError> {
        let mut changed = self.subscribe();
        loop {
            changed.borrow_and_update();
            {
                let inner = self.lock();
                if inner.settled_publication >= publication || inner.removal != Removal::None {
                    return Ok(());
                }
                inner.trouble()?;
            }
            if changed.changed().await.is_err() {
                return Err(self.stopped());
            }
        }
    }

    /// Applies `--timeout`.
    pub(super) async fn bounded(&self, wait: impl Future<Output = Result<(), WriteError>>) -> Result<(), WriteError> {
        let Some(limit) = self.shared.options.timeout else { return wait.await };
        match within_running_time(limit, wait).await {
            Some(result) => result,
            None => Err(WriteError::failed(
                libc::EIO,
                format!(
                    "{}: not in BOS after {} s (--timeout); the bytes are kept and the upload goes on behind: see `bosfs status`",
                    self.key(),
                    limit.as_secs()
                ),
            )),
        }
    }

    pub(super) fn stopped(&self) -> WriteError {
        WriteError::failed(
            libc::EIO,
            format!("{}: bosfs is stopping; the journal keeps the bytes, mount again to go on", self.key()),
        )
    }

    /// Publishes an interrupted or failed file now (`uploads complete`); `force` also over a conflict.
    ///
    /// # Errors
    /// See [`DirtyFile::publish`].
    pub async fn complete_now(self: &Arc<Self>, force: bool) -> Result<(), WriteError> {
        {
            let mut inner = self.lock();
            if inner.state.conflict.is_some() && !force {
                inner.trouble()?;
            }
            self.retry(&mut inner, force)?;
            inner.inherited = false;
        }
        self.publish_and_wait().await
    }

    /// Forgets the trouble of the last try, so that the next one is made.
    pub(super) fn retry(self: &Arc<Self>, inner: &mut Inner, force: bool) -> Result<(), WriteError> {
        if force && inner.state.conflict.is_some() {
            let key = inner.state.key.clone();
            self.append(inner, &Record::Renamed { key, condition: crate::object::Condition::Any, base: None })?;
        }
        if inner.state.interrupted.is_some() || inner.state.failed.is_some() {
            self.append(inner, &Record::Reopened)?;
            inner.new_content |= inner.state.stage == Stage::Open && inner.has_open_changes();
        }
        inner.retry_at = None;
        inner.tries = 0;
        Ok(())
    }
}

/// What `work` gives within `limit`; `None`: it takes longer. Time in which this process was stopped does not count, as far as
/// it is more than a moment.
async fn within_running_time<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let mut waited = Duration::ZERO;
    while waited < limit {
        let from = tokio::time::Instant::now();
        if let Ok(done) = tokio::time::timeout(LIMIT_TICK.min(limit - waited), &mut work).await {
            return Some(done);
        }
        waited += from.elapsed().min(LIMIT_TICK * 2);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_while_stopped_does_not_count_against_a_limit() {
        let limit = Duration::from_secs(10);
        let stopped = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            // All timers find that an hour has passed.
            tokio::time::advance(Duration::from_secs(3600)).await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        };
        assert_eq!(within_running_time(limit, stopped).await, Some(()));
        let slow = tokio::time::sleep(Duration::from_secs(11));
        assert_eq!(within_running_time(limit, slow).await, None);
    }
}
