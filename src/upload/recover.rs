//! From the files of a journal directory back to a dirty file.

use std::path::Path;
use std::sync::Arc;

use super::dirty_file::DirtyFile;
use super::inner::Store;
use super::part::hash;
use super::registry::Shared;
use super::state::{FileState, Stage};
use super::{FileStatus, InterruptedPolicy, WriteError};
use crate::fail_point::fail_point;
use crate::journal::log::JOURNAL_NAME;
use crate::journal::{Journal, Record};
use crate::object::{ByteRange, Timestamp};
use crate::write::extents::Extents;
use crate::write::spool::Spool;

/// The dirty file that `dir` describes; `None` if it holds nothing that was ever accepted.
///
/// # Errors
/// The status entry of a file whose journal, map or spool cannot be used. Nothing of it is deleted.
pub(super) fn recover(shared: &Arc<Shared>, dir: &Path) -> Result<Option<Arc<DirtyFile>>, Box<FileStatus>> {
    let damaged = |key: &str, what: String| {
        Box::new(FileStatus {
            key: key.to_owned(),
            journal_id: dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            state: "failed".into(),
            last_error: Some(format!(
                "{}: {what}; nothing of it was deleted: look into it, then move it away",
                dir.display()
            )),
            updated_at: Timestamp::now().sec,
            ..FileStatus::default()
        })
    };
    if !dir.join(JOURNAL_NAME).exists() {
        // Killed while the file was being begun: the first line is written last.
        if let Err(e) = shared.state_dir.remove_upload(dir) {
            log::warn!("{}: {e}", dir.display());
        }
        return Ok(None);
    }
    let (journal, replay) = Journal::open(dir).map_err(|e| damaged("", format!("the journal cannot be read: {e}")))?;
    if replay.torn_bytes > 0 {
        log::warn!("{}: {} bytes of a torn last line were cut off", dir.display(), replay.torn_bytes);
    }
    if replay.records.is_empty() && replay.damage.is_none() {
        // Killed within the first line.
        if let Err(e) = shared.state_dir.remove_upload(dir) {
            log::warn!("{}: {e}", dir.display());
        }
        return Ok(None);
    }
    let key = match replay.records.first() {
        Some(Record::Opened { key, .. }) => key.to_string(),
        _ => String::new(),
    };
    if let Some(damage) = replay.damage {
        return Err(damaged(&key, format!("the journal is damaged: {damage}")));
    }
    let mut state = FileState::replay(&replay.records).map_err(|e| damaged(&key, e.to_string()))?;
    let key = state.key.to_string();
    // `failed` is tried again by every mount; `conflict` waits for a command.
    state.failed = None;
    state.count_from_here();
    let spool = Spool::open(dir).map_err(|e| damaged(&key, format!("the spool cannot be opened: {e}")))?;
    let extents =
        Extents::open(dir, state.base_end).map_err(|e| damaged(&key, format!("the map cannot be opened: {e}")))?;
    let mut store = Store { dir: dir.to_owned(), journal, spool: Arc::new(spool), extents };
    restore(shared, &mut state, &mut store).map_err(|e| damaged(&key, format!("it cannot be taken up again: {e}")))?;

    let file = Arc::new(DirtyFile::recovered(shared.clone(), state, store));
    let mut inner = file.lock();
    if inner.state.stage == Stage::Open && !inner.state.unlinked && !inner.state.rebasing {
        if !inner.is_pending() {
            file.retire(&mut inner);
            return Ok(None);
        }
        if inner.state.parked || inner.state.closed_again {
            // Its writer closed it; the rename or the publication that it waited for did not come.
            inner.inherited = false;
            inner.new_content = true;
            file.begin_publication(&mut inner, true).map_err(|e| damaged(&key, e.to_string()))?;
            drop(inner);
            return Ok(Some(file));
        }
        if inner.new_content {
            log::warn!(
                "{key}: its writer never closed it; it is kept, not published. Run the same command again to go on, or \
                 `bosfs uploads complete BUCKET/{key}` to publish it as it is"
            );
            let settled = match shared.options.interrupted {
                InterruptedPolicy::Keep => Ok(()),
                InterruptedPolicy::Complete => {
                    inner.inherited = false;
                    file.begin_publication(&mut inner, true).map(|_| ())
                }
                InterruptedPolicy::Discard => file.discard(&mut inner),
            };
            settled.map_err(|e| damaged(&key, e.to_string()))?;
        }
    }
    drop(inner);
    Ok(Some(file))
}

/// Finishes what a kill or a power loss left half-done on the local disk.
fn restore(shared: &Shared, state: &mut FileState, store: &mut Store) -> Result<(), WriteError> {
    fail_point!("upload.recover");
    for (block, ranges) in state.partials.clone() {
        store.extents.set_partial(block, ranges);
    }
    if let Some(size) = state.resizing {
        store.spool.set_len(size)?;
        store.extents.truncate(u64::MAX, size)?;
        append(state, store, &Record::Resized)?;
    }
    // A write that was cut off before the map was set was never accepted: the file ends where it did before.
    let accepted_end = state.size_journaled.max(store.extents.end());
    if store.spool.len() > accepted_end {
        store.spool.set_len(accepted_end)?;
    }
    if state.boot_id != shared.boot_id {
        distrust(state, store)?;
        append(state, store, &Record::Booted { boot_id: shared.boot_id.clone() })?;
    }
    let whole = ByteRange::new(0, store.spool.len());
    store.extents.scrub(&store.spool, whole)?;
    // The spool's own time is that of the last write.
    if state.stage == Stage::Open
        && let Ok(modified) =
            std::fs::metadata(store.dir.join(crate::write::spool::SPOOL_FILE)).and_then(|m| m.modified())
        && state.published.as_ref().is_none_or(|published| published.attrs != state.attrs)
    {
        state.attrs.mtime = state.attrs.mtime.max(modified.into());
    }
    Ok(())
}

/// The machine was restarted: only synced bytes and parts that BOS holds are what they were.
fn distrust(state: &mut FileState, store: &mut Store) -> Result<(), WriteError> {
    let key = state.key.clone();
    let size = store.spool.len();
    let synced = state.synced_size.unwrap_or(0);
    if let Stage::Closed(frozen) = state.stage
        && state.synced_since_closed
        && size >= frozen.size
    {
        return Ok(());
    }
    // Parts that BOS holds, in the order of the file: as far as they reach without a gap, the file is known.
    let mut trusted_end = synced.min(size);
    if let Some(upload) = state.upload.clone() {
        for number in upload.plan.parts_in(ByteRange::new(0, size)) {
            let range = upload.plan.range_in(number, size);
            if !state.is_sent(number, range.len()) {
                continue;
            }
            let sum = state.parts[&number].held.as_ref().and_then(|held| held.sum);
            let intact = sum.is_some_and(|sum| hash(&store.spool, range).is_ok_and(|found| found == sum));
            if !intact && !state.parts[&number].punched {
                append(state, store, &Record::Punched { part: number })?;
                for hole in store.extents.hold(range)? {
                    store.spool.punch(hole)?;
                }
            }
            if range.start <= trusted_end {
                trusted_end = trusted_end.max(range.end);
            }
        }
    }
    if matches!(state.stage, Stage::Completed { .. }) || (state.stage == Stage::Open && state.rebasing) {
        return Ok(());
    }
    if trusted_end >= size && size >= state.stage.frozen().map_or(0, |frozen| frozen.size) {
        return Ok(());
    }
    if state.base.is_none() && matches!(state.stage, Stage::Open | Stage::Closed(_)) {
        log::warn!(
            "{key}: the machine was restarted; only its first {trusted_end} of {size} bytes are known to be whole"
        );
        if let Stage::Closed(frozen) = state.stage {
            append(state, store, &Record::Superseded { publication: frozen.publication })?;
        }
        append(state, store, &Record::Resizing { size: trusted_end })?;
        store.spool.set_len(trusted_end)?;
        store.extents.truncate(size, trusted_end)?;
        return append(state, store, &Record::Resized);
    }
    let message = format!(
        "{key}: the machine was restarted before its last bytes were synced, so they may be missing; nothing was published. \
         `bosfs uploads complete BUCKET/{key} --force` publishes what is there, `bosfs uploads abort BUCKET/{key}` gives it up"
    );
    log::error!("{message}");
    append(state, store, &Record::Conflict { message })
}

fn append(state: &mut FileState, store: &mut Store, record: &Record) -> Result<(), WriteError> {
    store.journal.append(record)?;
    state.apply(record);
    Ok(())
}
