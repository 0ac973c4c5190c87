//! Freezing a state for publication, and everything that waits: close, fsync, full spools, unlink.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::complete::finished;
use super::dirty_file::{DirtyFile, disk_error};
use super::inner::{COPY_BYTES_MAX, Inner, Removal};
use super::state::{Stage, ranges_of};
use super::{FileStatus, InterruptedPolicy, WriteError, WriterEnd};
use crate::journal::Record;
use crate::journal::record::Publication;
use crate::object::{ByteRange, Condition, Timestamp};

/// How often a wait under `--timeout` looks how much of it has passed.
const LIMIT_TICK: Duration = Duration::from_millis(500);
/// Ranges of blocks that one line of a journal names at most.
const LINE_RANGES_MAX: usize = 8192;

/// What a flush has to wait for.
enum Ticket {
    None,
    /// Nothing now: the rename will.
    Parked,
    Wait(Publication),
}

impl DirtyFile {
    /// A handle for writing was opened.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn add_writer(self: &Arc<Self>) -> Result<(), WriteError> {
        let mut inner = self.lock();
        let parked = inner.state.parked;
        if parked {
            // Whoever opens it again does not do what it was parked for; what was closed is published, whatever becomes of
            // the new writer.
            inner.temporary = None;
            inner.parked_until = None;
            self.begin_publication(&mut inner, true)?;
        }
        if inner.state.interrupted.is_some() || inner.state.parked {
            self.append(&mut inner, &Record::Reopened)?;
        }
        inner.writers += 1;
        drop(inner);
        if parked {
            self.start_driver();
        }
        Ok(())
    }

    /// The last duplicate of a handle for writing is gone. With the last writer the end is settled: what is new is
    /// published in the background, or kept as interrupted if the writer was killed.
    pub fn remove_writer(self: &Arc<Self>, end: WriterEnd) {
        let mut inner = self.lock();
        inner.writers = inner.writers.saturating_sub(1);
        if inner.writers > 0 || inner.removal != Removal::None || inner.broken {
            return;
        }
        let result = match end {
            WriterEnd::Killed { process, pid, signal } if inner.new_content || inner.new_file => {
                self.interrupt(&mut inner, process, pid, signal)
            }
            _ if inner.may_park() => self.park(&mut inner),
            _ => self.begin_publication(&mut inner, true).map(|_| ()),
        };
        if let Err(e) = result {
            // Nobody waits for a release: the log and `status` tell.
            log::error!("{e}");
            inner.last_error = Some(e.to_string());
        }
        let mut done = None;
        if !inner.is_pending() {
            // Published while the handle was still open: the release is what ends it.
            let published = inner.store.is_some() && inner.state.published.is_some();
            done = published.then(|| finished(&inner));
            self.retire(&mut inner);
        }
        drop(inner);
        if let Some(done) = done {
            self.shared.finished(self, done);
        }
        self.notify();
        self.start_driver();
    }

    fn interrupt(
        self: &Arc<Self>,
        inner: &mut Inner,
        process: String,
        pid: u32,
        signal: i32,
    ) -> Result<(), WriteError> {
        let key = inner.state.key.clone();
        match self.shared.options.interrupted {
            InterruptedPolicy::Complete => {
                log::warn!(
                    "{key}: {process} ({pid}) was killed by signal {signal}; published all the same (--interrupted complete)"
                );
                return self.begin_publication(inner, true).map(|_| ());
            }
            InterruptedPolicy::Discard => {
                log::warn!(
                    "{key}: {process} ({pid}) was killed by signal {signal}; its bytes are thrown away (--interrupted discard)"
                );
                return self.discard(inner);
            }
            InterruptedPolicy::Keep => {}
        }
        self.materialise(inner)?;
        self.append(inner, &Record::Interrupted { process: process.clone(), pid, signal })?;
        inner.inherited = true;
        log::warn!(
            "{key}: {process} ({pid}) was killed by signal {signal} before it closed the file; it is kept, not published. \
             Run the same command again to go on, or `bosfs uploads complete BUCKET/{key}` to publish it as it is"
        );
        Ok(())
    }

    /// Throws away what was written since the last publication.
    pub(super) fn discard(self: &Arc<Self>, inner: &mut Inner) -> Result<(), WriteError> {
        inner.new_content = false;
        inner.new_file = false;
        if inner.store.is_some() {
            self.append(inner, &Record::Discarded)?;
            inner.removal = Removal::Wanted;
        }
        Ok(())
    }

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
        let large = inner.base().is_some_and(|base| base.size > COPY_BYTES_MAX);
        let attrs_only = release && large && inner.attrs_pending() && !inner.new_content && !inner.new_file;
        let new = inner.new_content || (release && inner.new_file) || attrs_only;
        let rebasing = inner.state.rebasing.then_some(inner.settled_publication);
        let present = inner.state.stage.frozen().map(|frozen| frozen.publication).or(rebasing);
        if !new {
            let again = inner.publish_again.then_some(1);
            return Ok(present.map(|number| number + again.unwrap_or(0)));
        }
        if inner.state.failed.is_some() {
            // What failed is not on its way: the newer state takes its place.
            self.retry(inner, false)?;
            if let Stage::Closed(frozen) = inner.state.stage {
                self.append(inner, &Record::Superseded { publication: frozen.publication })?;
            }
        }
        let present = if inner.state.stage == Stage::Open && !inner.state.rebasing { None } else { present };
        if let Some(present) = present {
            if !inner.state.closed_again {
                self.append(inner, &Record::ClosedAgain)?;
            }
            inner.publish_again = true;
            return Ok(Some(present + 1));
        }
        self.materialise(inner)?;
        let publication = inner.state.publications + 1;
        let (size, attrs) = (inner.size, inner.state.attrs);
        self.append(inner, &Record::Closed { publication, size, attrs })?;
        inner.new_content = false;
        inner.new_file = false;
        inner.publish_again = false;
        inner.retry_at = None;
        inner.parked_until = None;
        // What was ready early is now part of the frozen list.
        inner.ready.clear();
        Ok(Some(publication))
    }

    /// Takes back a publication whose file is being emptied before anything irrevocable was sent.
    pub(super) fn supersede(&self, inner: &mut Inner) -> Result<(), WriteError> {
        if let Stage::Closed(frozen) = inner.state.stage {
            self.append(inner, &Record::Superseded { publication: frozen.publication })?;
            inner.settled_publication = frozen.publication;
            inner.publish_again = false;
        }
        Ok(())
    }

    /// The frozen state was in BOS only, and BOS lost it: the present one is published in its place, as soon as it is
    /// closed. Who waits for the lost one waits for this one.
    pub(super) fn refreeze(self: &Arc<Self>) -> Result<(), super::driver::Trouble> {
        let mut inner = self.lock();
        if let Stage::Closed(frozen) | Stage::Completing { frozen, .. } = inner.state.stage {
            let closed = inner.publish_again;
            self.append(&mut inner, &Record::Superseded { publication: frozen.publication })?;
            inner.new_content = true;
            inner.publish_again = false;
            let key = &inner.state.key;
            if closed {
                log::warn!("{key}: what was closed is lost in BOS and was changed since; the newer state is sent");
                self.begin_publication(&mut inner, true)?;
            } else {
                log::warn!(
                    "{key}: somebody ended its upload in BOS, and with it what was closed and then changed here; the newer \
                     state is kept and sent when its writer closes it"
                );
                inner.inherited |= inner.writers == 0;
            }
        }
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
            Ticket::Parked if write_back => return self.sync().await,
            Ticket::Parked => return Ok(()),
            Ticket::Wait(publication) => publication,
        };
        self.start_driver();
        self.wake.notify_one();
        if write_back {
            return self.sync().await;
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
    async fn bounded(&self, wait: impl Future<Output = Result<(), WriteError>>) -> Result<(), WriteError> {
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

    /// Spool and journal to stable storage; with `--fsync bos` also every byte into BOS.
    ///
    /// # Errors
    /// When the local disk fails, or (with `--fsync bos`) as [`DirtyFile::publish`].
    pub async fn fsync(self: &Arc<Self>) -> Result<(), WriteError> {
        {
            let mut inner = self.lock();
            inner.check_whole()?;
            // A lock file or a marker that is created, synced and kept open must be there for others.
            if inner.new_file && !inner.new_content && inner.size == 0 {
                self.begin_publication(&mut inner, true)?;
            }
        }
        self.start_driver();
        self.sync().await?;
        if !self.shared.options.fsync_bos {
            return Ok(());
        }
        self.lock().send_all = true;
        self.start_driver();
        self.wake.notify_one();
        let all_sent = async {
            let mut changed = self.subscribe();
            loop {
                changed.borrow_and_update();
                {
                    let inner = self.lock();
                    inner.trouble()?;
                    if !inner.send_all {
                        return Ok(());
                    }
                }
                if changed.changed().await.is_err() {
                    return Err(self.stopped());
                }
            }
        };
        self.bounded(all_sent).await
    }

    /// Spool, map and journal to stable storage, in this order, without holding the file's lock meanwhile.
    pub(super) async fn sync(self: &Arc<Self>) -> Result<(), WriteError> {
        let (key, size, handles) = {
            let mut inner = self.lock();
            let key = inner.state.key.clone();
            let size = inner.size;
            if inner.store.is_none() {
                return Ok(());
            }
            if let Some((errno, message)) = &inner.sync_failed {
                return Err(WriteError::failed(*errno, message.clone()));
            }
            let store = inner.store()?;
            // The directory is opened here, as it may be published and put away before the sync begins.
            let dir = || std::fs::File::open(&store.dir);
            let journal = || store.journal.sync_handle();
            let handles = (|| Ok((store.spool.sync_handle()?, store.extents.sync_handle()?, journal()?, dir()?)))();
            let handles = handles.map_err(|e: std::io::Error| disk_error(&key, &e))?;
            (key, size, (handles, store.journal.path().to_owned(), store.extents.begin_sync()))
        };
        let ((spool, map, journal, dir), place, blocks) = handles;
        let shared = self.shared.clone();
        let synced = tokio::task::spawn_blocking(move || {
            spool.sync_data()?;
            map.sync_data()?;
            // Before the line that says so: then a damaged line before that one is never the work of a power loss.
            journal.sync_data()?;
            dir.sync_all()?;
            shared.state_dir.sync_uploads()
        });
        if let Err(e) = flatten(synced.await) {
            // The system tells of a lost page once: a later sync would claim what is not so.
            let mut inner = self.lock();
            if inner.store.as_ref().is_none_or(|store| store.journal.path() != place) {
                return Ok(());
            }
            let message = format!(
                "{key}: the disk of --state-dir could not be synced ({e}), so bytes written before may not survive power \
                 loss; they can be read and published: close the file, or write it again"
            );
            log::error!("{message}");
            let errno = crate::journal::log::errno_of(&e);
            inner.sync_failed = Some((errno, message.clone()));
            inner.last_error = Some(message.clone());
            return Err(WriteError::failed(errno, message));
        }
        let journal = {
            let mut inner = self.lock();
            if inner.store.as_ref().is_none_or(|store| store.journal.path() != place) {
                // Published and put away meanwhile.
                return Ok(());
            }
            let ranges = ranges_of(&blocks);
            let (last, before) = match ranges.len().checked_sub(1).map(|last| last / LINE_RANGES_MAX * LINE_RANGES_MAX)
            {
                Some(at) => (ranges[at..].to_vec(), &ranges[..at]),
                None => (Vec::new(), &ranges[..]),
            };
            for blocks in before.chunks(LINE_RANGES_MAX) {
                self.append(&mut inner, &Record::Spooled { blocks: blocks.to_vec() })?;
            }
            self.append(&mut inner, &Record::Synced { size, blocks: Some(last) })?;
            let store = inner.store()?;
            store.extents.end_sync(&blocks);
            store.journal.sync_handle().map_err(|e| disk_error(&key, &e))?
        };
        flatten(tokio::task::spawn_blocking(move || journal.sync_data()).await).map_err(|e| {
            // After a failed sync nobody knows what is on the disk: the journal refuses from here on.
            if let Some(store) = &mut self.lock().store {
                store.journal.sync_failed(&e);
            }
            disk_error(&key, &e)
        })
    }

    /// Awaited after [`WriteError::MustWait`]: returns when the write has a chance.
    ///
    /// # Errors
    /// `ENOSPC` when nothing can ever make room; `EIO` after `--timeout`.
    pub async fn wait_writable(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), WriteError> {
        let range = ByteRange::at(offset, len);
        let wait = async {
            let mut changed = self.subscribe();
            let mut freed = self.shared.budget.freed();
            loop {
                changed.borrow_and_update();
                let frozen = {
                    let inner = self.lock();
                    let frozen = self.is_held(&inner, range);
                    if frozen {
                        inner.trouble()?;
                    }
                    frozen
                };
                if !frozen {
                    if self.shared.budget.free_bytes() >= len + 2 * crate::write::block_map::BLOCK_BYTES {
                        return Ok(());
                    }
                    if self.shared.make_room() {
                        continue;
                    }
                    // Of a file that failed, that is the reason why its bytes stay in the spool.
                    self.lock().trouble()?;
                    self.shared.room_may_come(&self.key())?;
                }
                tokio::select! {
                    result = changed.changed() => if result.is_err() { return Err(self.stopped()) },
                    () = freed.wait() => {}
                }
            }
        };
        self.bounded(wait).await
    }

    /// The file lost its name while handles are open: nothing of it is published any more.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn orphan(self: &Arc<Self>) -> Result<(), WriteError> {
        let mut inner = self.lock();
        if inner.removal == Removal::None {
            if inner.store.is_none() && inner.base().is_some() {
                // Its object must go also if bosfs is killed before the last handle is released.
                self.materialise(&mut inner)?;
            }
            if inner.store.is_some() {
                self.append(&mut inner, &Record::Unlinked)?;
            }
            inner.removal = Removal::Orphaned;
            self.shared.forget(self, &inner.state.key);
            self.shared.removing(&inner.state.key, self);
        }
        drop(inner);
        self.notify();
        Ok(())
    }

    /// Removes the file: journals it, aborts the upload, deletes the object if it is the base or ours. Returns when BOS
    /// has neither.
    ///
    /// # Errors
    /// When the journal cannot be written, or BOS refuses for good.
    pub async fn unlink(self: &Arc<Self>) -> Result<(), WriteError> {
        match self.begin_unlink()? {
            true => self.wait_removed().await,
            false => Ok(()),
        }
    }

    /// The first half of [`DirtyFile::unlink`], which does not wait for BOS: from here on whoever waits for this mount's work
    /// waits for the removal, too. `false`: there is nothing to wait for.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn begin_unlink(self: &Arc<Self>) -> Result<bool, WriteError> {
        let mut inner = self.lock();
        if inner.removal == Removal::Done {
            // A journal that nothing would ever take away must not be begun again.
            return Ok(false);
        }
        // A file whose name another one took leaves the object to that one.
        if inner.state.discarded && inner.store.is_none() {
            inner.removal = Removal::Done;
            self.shared.removed(self, &inner.state.key);
            return Ok(false);
        }
        if !inner.state.discarded {
            self.materialise(&mut inner)?;
            if !inner.state.unlinked {
                self.append(&mut inner, &Record::Unlinked)?;
            }
        }
        inner.removal = Removal::Wanted;
        inner.retry_at = None;
        Ok(true)
    }

    /// Gives up what was written since the last publication (`uploads abort`): aborts the upload and drops the local
    /// bytes. The object at the key, if there is one, stays.
    ///
    /// # Errors
    /// When the journal cannot be written, or BOS refuses for good.
    pub async fn give_up(self: &Arc<Self>) -> Result<(), WriteError> {
        {
            let mut inner = self.lock();
            if inner.removal == Removal::None {
                self.discard(&mut inner)?;
            }
            if inner.removal == Removal::None {
                return Ok(());
            }
            inner.retry_at = None;
        }
        self.wait_removed().await
    }

    pub(super) async fn wait_removed(self: &Arc<Self>) -> Result<(), WriteError> {
        self.start_driver();
        self.wake.notify_one();
        let removed = async {
            let mut changed = self.subscribe();
            loop {
                changed.borrow_and_update();
                {
                    let inner = self.lock();
                    if inner.removal == Removal::Done {
                        return Ok(());
                    }
                    inner.trouble()?;
                }
                if changed.changed().await.is_err() {
                    return Err(self.stopped());
                }
            }
        };
        self.bounded(removed).await
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
            inner.new_content |= inner.state.stage == Stage::Open && !inner.state.rebasing;
        }
        inner.retry_at = None;
        inner.tries = 0;
        Ok(())
    }

    /// What a handle that is opened now counts as known: everything that some program was told of. What nobody was told of
    /// yet, it is told of itself.
    pub fn failures_told(&self) -> u64 {
        self.lock().failures_told
    }

    /// The failure of the last publication, if `seen` (see [`DirtyFile::failures_told`]) does not cover it; it does then.
    ///
    /// # Errors
    /// Those of the publication.
    pub fn untold_failure(&self, seen: &AtomicU64) -> Result<(), WriteError> {
        let mut inner = self.lock();
        let trouble = inner.trouble();
        if trouble.is_err() && seen.swap(inner.failures, Ordering::Relaxed) < inner.failures {
            inner.failures_told = inner.failures;
            return trouble;
        }
        Ok(())
    }

    /// Whether it met somebody else's object where there was to be none.
    pub fn lost_a_new_name(&self) -> bool {
        let inner = self.lock();
        inner.state.conflict.is_some() && inner.state.condition == Condition::Absent
    }

    /// Whether it failed for good, or is in conflict.
    pub fn is_stuck(&self) -> bool {
        self.lock().trouble().is_err()
    }

    /// Its entry in `status`, with the list of parts if `parts`.
    pub fn status(&self, parts: bool) -> FileStatus {
        let inner = self.lock();
        let state = &inner.state;
        let size = state.stage.frozen().map_or(inner.size, |frozen| frozen.size);
        let plan = &inner.plan;
        let numbers = || ByteRange::new(0, size);
        let mut bytes_in_bos = 0;
        let mut parts_in_bos = 0;
        let mut listed = Vec::new();
        for number in plan.parts_in(numbers()) {
            let len = plan.range_in(number, size).len();
            let known = state.parts.get(&number);
            let word = if state.is_sent(number, len) {
                bytes_in_bos += len;
                parts_in_bos += 1;
                "sent"
            } else if known.is_some_and(|part| part.copied.is_some() && !part.dirty) {
                "copied"
            } else if inner.live.get(&number).is_some_and(|live| live.job.is_some()) {
                "sending"
            } else if inner.store.as_ref().is_none_or(|s| s.extents.is_untouched(plan.range_in(number, size), size)) {
                "base"
            } else {
                "dirty"
            };
            if parts {
                listed.push((number.get(), word.to_owned()));
            }
        }
        FileStatus {
            key: state.key.to_string(),
            journal_id: state.journal_id.clone(),
            state: inner.state_word().to_owned(),
            upload_id: state.upload.as_ref().map(|upload| upload.id.to_string()),
            size,
            bytes_in_bos,
            bytes_spooled: inner.spooled_bytes,
            parts_total: plan.part_count(size),
            parts_in_bos,
            parts_kept: state.parts_kept(),
            parts_sent: state.parts_sent,
            bytes_per_s: inner.meter.bytes_per_s(),
            tries: inner.tries,
            last_error: state
                .conflict
                .clone()
                .or_else(|| state.failed.as_ref().map(|(message, _)| message.clone()))
                .or_else(|| inner.last_error.clone()),
            proof: state.published.as_ref().map(|published| published.proof),
            parts: parts.then_some(listed),
            updated_at: Timestamp::now().sec,
        }
    }
}

impl Inner {
    /// Refuses whatever would change a file of which memory holds half a change.
    pub(super) fn check_whole(&self) -> Result<(), WriteError> {
        if self.broken { self.trouble() } else { Ok(()) }
    }

    /// The error that whoever waits for this file is told.
    pub(super) fn trouble(&self) -> Result<(), WriteError> {
        if let Some(message) = &self.state.conflict {
            return Err(WriteError::failed(libc::ESTALE, message.clone()));
        }
        if let Some((message, errno)) = &self.state.failed {
            return Err(WriteError::failed(*errno, message.clone()));
        }
        Ok(())
    }

    fn state_word(&self) -> &'static str {
        let state = &self.state;
        if state.conflict.is_some() {
            return "conflict";
        }
        if state.failed.is_some() {
            return "failed";
        }
        if self.removal != Removal::None {
            return "removing";
        }
        match &state.stage {
            Stage::Closed(_) => "uploading",
            Stage::Putting { .. } | Stage::Completing { .. } => "completing",
            Stage::Completed { .. } => "proving",
            Stage::Open if state.interrupted.is_some() => "interrupted",
            Stage::Open if state.parked => "parked",
            Stage::Open if self.writers > 0 => "writing",
            Stage::Open if self.new_content || self.new_file => "interrupted",
            Stage::Open => "idle",
        }
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

fn flatten<T>(joined: Result<std::io::Result<T>, tokio::task::JoinError>) -> std::io::Result<T> {
    joined.unwrap_or_else(|e| Err(std::io::Error::other(e)))
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
