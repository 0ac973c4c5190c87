//! Stable storage beyond the plain sync of one file (`sync.rs`): who may ask for it, the names in a directory, and lines that
//! no remote step may overtake.
//!
//! What each call makes durable is listed in SEMANTICS.md. Behind all of it:
//!
//! - A sync of a file of which nothing was changed since the last one costs nothing ([`Changes`](super::unsynced::Changes)).
//! - A sync of a directory syncs the journals with lines about names in it ([`NameLines`](super::unsynced::NameLines)), not
//!   the bytes of the files.
//! - A line that takes a file away (`Unlinked`, `Discarded`, `Renamed`) is synced before BOS is changed by it, if power loss
//!   could bring the file back without that line ([`DirtyFile::make_lines_durable`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::WriteError;
use super::dirty_file::{DirtyFile, disk_error};
use super::inner::Inner;
use super::registry::Uploads;
use super::state::{FileState, Stage};
use super::sync::flatten;
use crate::journal::Record;
use crate::journal::log::{CHECKPOINT_NAME, JOURNAL_NAME};
use crate::object::ObjectKey;

/// Journals of a directory that are synced together: each takes two descriptors.
const JOURNALS_AT_ONCE: usize = 64;

impl FileState {
    /// Whether a restart of the machine may find the file as it is now, or as it was before its last lines: its bytes were
    /// synced, BOS holds parts of it, or its publication is on its way.
    pub(super) fn outlives_power_loss(&self) -> bool {
        self.was_synced() || self.upload.is_some() || !matches!(self.stage, Stage::Open | Stage::Closed(_))
    }
}

impl DirtyFile {
    /// [`DirtyFile::sync`], unless one that began after the last change has succeeded.
    pub(super) async fn sync_changes(self: &Arc<Self>) -> Result<(), WriteError> {
        let (place, count) = {
            let inner = self.lock();
            let Some(store) = &inner.store else { return Ok(()) };
            // What could not be synced once is told each time.
            if inner.sync_failed.is_none() && self.changes.is_certain(&store.dir) {
                return Ok(());
            }
            (store.dir.clone(), self.changes.count())
        };
        self.sync().await?;
        self.changes.synced(place, count);
        Ok(())
    }

    /// For a call through a handle with `O_SYNC` or `O_DSYNC`: what was changed is on stable storage of this machine when it
    /// returns.
    ///
    /// # Errors
    /// When the local disk fails.
    pub async fn make_durable(self: &Arc<Self>) -> Result<(), WriteError> {
        self.lock().check_whole()?;
        self.sync_changes().await
    }

    /// As [`DirtyFile::fsync`] of somebody who has the file open for reading only: nothing is published by it, since what a
    /// writer has only begun is not the reader's.
    ///
    /// # Errors
    /// As [`DirtyFile::fsync`].
    pub async fn fsync_by_reader(self: &Arc<Self>) -> Result<(), WriteError> {
        self.make_durable().await?;
        self.send_all_if_asked().await
    }

    /// Whether power loss would leave it, or its name.
    pub fn outlives_power_loss(&self) -> bool {
        let inner = self.lock();
        let Some(store) = &inner.store else { return false };
        inner.state.outlives_power_loss() || self.shared.name_lines.lock().is_certain(&store.dir)
    }

    /// The lines of its journal so far to stable storage, if power loss could bring the file back without them: its bytes, its
    /// name or parts of it in BOS are certain.
    ///
    /// # Errors
    /// When the local disk fails; the journal takes no more lines then.
    pub async fn make_lines_durable(&self) -> Result<(), WriteError> {
        let (key, handle, place, last, is_named) = {
            let mut inner = self.lock();
            let Some(place) = inner.store.as_ref().map(|store| store.dir.clone()) else { return Ok(()) };
            let (last, certain) = {
                let names = self.shared.name_lines.lock();
                (names.last(), names.is_certain(&place))
            };
            if !inner.state.outlives_power_loss() && !certain {
                return Ok(());
            }
            let key = inner.state.key.clone();
            let is_named = certain || inner.state.was_synced();
            let Some(store) = &mut inner.store else { return Ok(()) };
            let handle = store.journal.sync_handle().map_err(|e| disk_error(&key, &e))?;
            (key, handle, place, last, is_named)
        };
        let synced = flatten(tokio::task::spawn_blocking(move || handle.sync_data()).await);
        synced.map_err(|e| {
            if let Some(store) = &mut self.lock().store {
                store.journal.sync_failed(&e);
            }
            disk_error(&key, &e)
        })?;
        if is_named {
            self.shared.name_lines.lock().synced(&place, last);
        }
        Ok(())
    }

    /// Notes what a line changes that a sync has to make certain; `key` is that before the line.
    pub(super) fn note_line(&self, inner: &Inner, record: &Record, key: &ObjectKey) {
        if matches!(record, Record::Syncing { .. } | Record::Synced { .. } | Record::Spooled { .. }) {
            return;
        }
        match changes_bytes(record) {
            true => self.changes.add(),
            false => self.changes.add_line(),
        }
        let Some(store) = &inner.store else { return };
        match record {
            Record::Unlinked | Record::Discarded => self.shared.name_lines.lock().note(dir_of(key), &store.dir),
            Record::Renamed { key: new, .. } if new != key => {
                let mut names = self.shared.name_lines.lock();
                names.note(dir_of(key), &store.dir);
                names.note(dir_of(new), &store.dir);
            }
            _ => {}
        }
    }

    /// The first line of a new file's journal was written.
    pub(super) fn note_name(&self, inner: &Inner) {
        if let Some(store) = &inner.store {
            self.shared.name_lines.lock().note(dir_of(&inner.state.key), &store.dir);
        }
    }

    /// The journal is of an earlier process.
    pub(super) fn note_found(&self, inner: &Inner) {
        if let Some(store) = &inner.store {
            self.shared.name_lines.lock().found(dir_of(&inner.state.key), &store.dir);
        }
    }
}

impl Uploads {
    /// Names that came into the directory `prefix` or left it, as far as only journals tell of them, to stable storage.
    ///
    /// # Errors
    /// When the local disk fails.
    pub async fn sync_names(&self, prefix: &str) -> Result<(), WriteError> {
        let (places, last) = {
            let names = self.shared.name_lines.lock();
            (names.within(prefix), names.last())
        };
        self.sync_journals(prefix, &places, last).await
    }

    /// The journals of [`Uploads::sync_names`], of the directory and all below it.
    ///
    /// # Errors
    /// When the local disk fails.
    pub async fn sync_names_below(&self, prefix: &str) -> Result<(), WriteError> {
        let (places, last): (BTreeSet<PathBuf>, u64) = {
            let names = self.shared.name_lines.lock();
            (names.below(prefix), names.last())
        };
        if places.is_empty() {
            return Ok(());
        }
        self.sync_journals(prefix, &places.into_iter().collect::<Vec<_>>(), last).await
    }

    async fn sync_journals(&self, prefix: &str, places: &[PathBuf], last: u64) -> Result<(), WriteError> {
        let failed = |e: io::Error| {
            let what = format!(
                "{prefix:?}: the disk of --state-dir could not be synced ({e}), so names that were made, renamed or removed \
                 there may not survive power loss; they count for now: close the files, or sync the folder again"
            );
            log::error!("{what}");
            WriteError::failed(crate::journal::log::errno_of(&e), what)
        };
        for some in places.chunks(JOURNALS_AT_ONCE) {
            let some_of_them = some.to_vec();
            let synced = tokio::task::spawn_blocking(move || some_of_them.iter().try_for_each(|dir| sync_journal(dir)));
            flatten(synced.await).map_err(failed)?;
        }
        let state_dir = self.shared.state_dir.clone();
        // Journals that are gone by now also count: what they told of is in BOS, or not there any more.
        let synced = tokio::task::spawn_blocking(move || state_dir.sync_uploads_if_changed());
        flatten(synced.await).map_err(failed)?;
        let mut names = self.shared.name_lines.lock();
        places.iter().for_each(|place| names.synced(place, last));
        Ok(())
    }
}

/// Whether the line comes with bytes of the file in another place, or other ones.
fn changes_bytes(record: &Record) -> bool {
    matches!(
        record,
        Record::Partial { .. }
            | Record::Resizing { .. }
            | Record::Resized { .. }
            | Record::Zeroed { .. }
            | Record::Cloned { .. }
            | Record::Layer { .. }
            | Record::Merged { .. }
            | Record::Dropped { .. }
            | Record::Punched { .. }
    )
}

/// The lines of the journal in `dir`, and the names in `dir`; it may be gone.
fn sync_journal(dir: &Path) -> io::Result<()> {
    let synced = File::open(dir.join(JOURNAL_NAME)).and_then(|journal| {
        // A checkpoint that is about to take its place has to have the same lines.
        match File::open(dir.join(CHECKPOINT_NAME)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Err(_) => {}
            Ok(next) => next.sync_data()?,
        }
        journal.sync_data()?;
        File::open(dir)?.sync_all()
    });
    match synced {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The prefix of the directory in which `key` is a name.
fn dir_of(key: &ObjectKey) -> &str {
    let key = key.as_str();
    key.rfind('/').map_or("", |end| &key[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bos::client::ObjectHeaders;
    use crate::journal::record::SyncedLayer;
    use crate::object::{Checksum, Condition, FileAttrs, Timestamp, UploadId};
    use crate::write::part_plan::PartPlan;

    #[test]
    fn a_file_outlives_power_loss_once_bytes_or_parts_of_it_are_certain_or_its_publication_is_on_its_way() {
        let attrs = FileAttrs { mode: 0o100_644, uid: 1, gid: 2, mtime: Timestamp::default() };
        let opened = Record::Opened {
            format: crate::journal::record::FORMAT,
            journal_id: "00000000000000aa".into(),
            key: ObjectKey::parse("d/f").unwrap(),
            base: None,
            condition: Condition::Absent,
            headers: ObjectHeaders::default(),
            attrs,
            boot_id: "boot".into(),
            at: 0,
        };
        let outlives = |lines: &[Record]| {
            let lines: Vec<Record> = std::iter::once(&opened).chain(lines).cloned().collect();
            FileState::replay(&lines).unwrap().outlives_power_loss()
        };
        let closed = Record::Closed { publication: 1, size: 1, attrs, layer: 1, durable: false, synced: false };
        let putting = Record::Putting {
            publication: 1,
            mark: "00000000000000aa.1".into(),
            condition: Condition::Absent,
            sum: Checksum::of(b"x"),
        };
        let plan = PartPlan::growing(8 << 20);
        let initiated = Record::Initiated { upload_id: UploadId::new("u"), plan, key: None };
        assert!(!outlives(&[]) && !outlives(std::slice::from_ref(&closed)), "written, closed");
        let spooled = Record::Spooled { layer: 1, size: 1, blocks: Vec::new() };
        assert!(!outlives(std::slice::from_ref(&spooled)), "not before the line that ends the sync");
        let layers = vec![SyncedLayer { layer: 1, size: 1, blocks: Vec::new() }];
        assert!(outlives(&[spooled, Record::Synced { size: 1, closes: 0, sync: 0, layers }]));
        assert!(outlives(std::slice::from_ref(&initiated)));
        assert!(!outlives(&[initiated, Record::UploadEnded]));
        assert!(outlives(&[closed, putting]));
    }

    #[test]
    fn the_directory_of_a_key_ends_in_a_slash() {
        let of = |key: &str| dir_of(&ObjectKey::parse(key).unwrap()).to_owned();
        assert_eq!((of("f").as_str(), of("a/f").as_str(), of("a/b/f").as_str()), ("", "a/", "a/b/"));
    }
}
