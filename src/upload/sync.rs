//! `fsync`: spool, map and journal to stable storage, and with `--fsync bos` every byte into BOS.

use std::sync::Arc;

use super::WriteError;
use super::dirty_file::{DirtyFile, disk_error};
use super::state::ranges_of;
use crate::journal::Record;

/// Ranges of blocks that one line of a journal names at most.
const LINE_RANGES_MAX: usize = 8192;

impl DirtyFile {
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
        self.sync_changes().await?;
        self.send_all_if_asked().await
    }

    /// With `--fsync bos`: every byte into BOS.
    pub(super) async fn send_all_if_asked(self: &Arc<Self>) -> Result<(), WriteError> {
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
        let (key, size, names, handles) = {
            let mut inner = self.lock();
            let key = inner.state.key.clone();
            let size = inner.size;
            let names = self.shared.name_lines.lock().last();
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
            (key, size, names, (handles, store.journal.path().to_owned(), store.extents.begin_sync()))
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
            self.shared.name_lines.lock().synced(&store.dir, names);
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
}

pub(super) fn flatten<T>(joined: Result<std::io::Result<T>, tokio::task::JoinError>) -> std::io::Result<T> {
    joined.unwrap_or_else(|e| Err(std::io::Error::other(e)))
}
