//! `fsync`: spool, map and journal to stable storage, and with `--fsync bos` every byte into BOS.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::WriteError;
use super::dirty_file::{DirtyFile, disk_error};
use super::state::{LayerState, ranges_of};
use crate::journal::Record;
use crate::journal::log::JournalSync;
use crate::journal::record::{LayerId, SyncedLayer};
use crate::object::ObjectKey;
use crate::write::block_set::BlockSet;
use crate::write::layers::{Layer, sync_handles};

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
        let Some(begun) = self.begin_sync()? else { return Ok(()) };
        let Begun { key, size, closes, sync, names, place, handles, journal, dir, blocks, merge } = begun;
        let shared = self.shared.clone();
        let synced = tokio::task::spawn_blocking(move || {
            handles.iter().try_for_each(File::sync_data)?;
            // Before the line that says so: then a damaged line before that one is never the work of a power loss.
            journal.sync_data()?;
            dir.sync_all()?;
            shared.state_dir.sync_uploads()
        });
        let synced = flatten(synced.await);
        if let Err(e) = synced {
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
        let of = |(layer, size, set): &(LayerId, u64, BlockSet)| SyncedLayer {
            layer: *layer,
            size: *size,
            blocks: ranges_of(set),
        };
        let mut lines: Vec<SyncedLayer> = blocks.iter().map(of).collect();
        if lines.iter().map(|layer| layer.blocks.len()).sum::<usize>() > LINE_RANGES_MAX {
            self.sync_long_lines(&place, &mut lines).await?;
        }
        let journal = {
            let mut inner = self.lock();
            if inner.store.as_ref().is_none_or(|store| store.journal.path() != place) {
                // Published and put away meanwhile.
                return Ok(());
            }
            // A layer that went meanwhile is vouched for by what took its place.
            let layers = lines.into_iter().filter(|layer| inner.state.layer(layer.layer).is_some()).collect();
            self.append(&mut inner, &Record::Synced { size, closes, sync, layers })?;
            if let Some(merge) = merge {
                self.end_merge(&mut inner, merge)?;
            }
            let store = inner.store()?;
            for layer in &mut store.layers {
                if let Some((_, _, set)) = blocks.iter().find(|(id, _, _)| *id == layer.id) {
                    layer.extents.end_sync(set);
                }
            }
            self.shared.name_lines.lock().synced(&store.dir, names);
            store.journal.sync_handle().map_err(|e| disk_error(&key, &e))?
        };
        flatten(tokio::task::spawn_blocking(move || journal.sync_data()).await).map_err(|e| {
            // After a failed sync nobody knows what is on the disk: the journal refuses from here on.
            let mut inner = self.lock();
            if let Some(store) = &mut inner.store {
                store.journal.sync_failed(&e);
            }
            disk_error(&key, &e)
        })
    }
}

impl DirtyFile {
    /// Writes blocks that are too many for one line to the journal, and to stable storage, before the line that counts.
    async fn sync_long_lines(&self, place: &Path, lines: &mut [SyncedLayer]) -> Result<(), WriteError> {
        let (key, journal) = {
            let mut inner = self.lock();
            if inner.store.as_ref().is_none_or(|store| store.journal.path() != place) {
                return Ok(());
            }
            for line in lines {
                let (layer, size) = (line.layer, line.size);
                for blocks in std::mem::take(&mut line.blocks).chunks(LINE_RANGES_MAX) {
                    self.append(&mut inner, &Record::Spooled { layer, size, blocks: blocks.to_vec() })?;
                }
            }
            let key = inner.state.key.clone();
            let handle = inner.store()?.journal.sync_handle().map_err(|e| disk_error(&key, &e))?;
            (key, handle)
        };
        flatten(tokio::task::spawn_blocking(move || journal.sync_data()).await).map_err(|e| disk_error(&key, &e))
    }
}

/// What a sync is about to do, taken while the file was locked.
struct Begun {
    key: ObjectKey,
    size: u64,
    /// Closes that came before it.
    closes: u32,
    /// Its number in the journal.
    sync: u32,
    /// The last line about names that came before it.
    names: u64,
    /// Journal that it belongs to.
    place: PathBuf,
    /// Spools and maps.
    handles: Vec<File>,
    journal: JournalSync,
    dir: File,
    /// Layer, its size, and the blocks that came into its spool since the last sync.
    blocks: Vec<(LayerId, u64, BlockSet)>,
    /// Layers that this sync puts together.
    merge: Option<(LayerId, Record)>,
}

impl DirtyFile {
    /// `None`: there is nothing of it on this disk.
    fn begin_sync(self: &Arc<Self>) -> Result<Option<Begun>, WriteError> {
        let mut inner = self.lock();
        let key = inner.state.key.clone();
        let (size, closes) = (inner.size, inner.state.closes);
        let names = self.shared.name_lines.lock().last();
        if inner.store.is_none() {
            return Ok(None);
        }
        if let Some((errno, message)) = &inner.sync_failed {
            return Err(WriteError::failed(*errno, message.clone()));
        }
        let merge = self.begin_merge(&mut inner);
        // What lines say of partly written blocks from here on may be on stable storage before the bytes are.
        let mut sync = 0;
        if inner.state.layers.iter().any(LayerState::knows_partials) {
            sync = inner.state.syncs_begun + 1;
            self.append(&mut inner, &Record::Syncing { sync })?;
        }
        let store = inner.store()?;
        let open = || -> std::io::Result<(Vec<File>, JournalSync, File)> {
            // The directory is opened here, as it may be published and put away before the sync begins.
            Ok((sync_handles(&store.layers)?, store.journal.sync_handle()?, File::open(&store.dir)?))
        };
        let (handles, journal, dir) = open().map_err(|e| disk_error(&key, &e))?;
        let place = store.journal.path().to_owned();
        let begin = |layer: &mut Layer| (layer.id, layer.size(), layer.extents.begin_sync());
        let blocks = store.layers.iter_mut().map(begin).collect();
        Ok(Some(Begun { key, size, closes, sync, names, place, handles, journal, dir, blocks, merge }))
    }
}

pub(super) fn flatten<T>(joined: Result<std::io::Result<T>, tokio::task::JoinError>) -> std::io::Result<T> {
    joined.unwrap_or_else(|e| Err(std::io::Error::other(e)))
}
