//! From the files of a journal directory back to a dirty file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::dirty_file::DirtyFile;
use super::inner::Store;
use super::part::hash;
use super::shared::Shared;
use super::state::{FileState, Stage};
use super::{FileStatus, InterruptedPolicy, WriteError};
use crate::fail_point::fail_point;
use crate::journal::log::JOURNAL_NAME;
use crate::journal::{Journal, Record};
use crate::object::{ByteRange, Timestamp};
use crate::write::block_map::BLOCK_BYTES;
use crate::write::extents::Extents;
use crate::write::spool::Spool;

/// Journals that are read side by side when a mount starts.
const RECOVERY_THREADS_MAX: usize = 8;

/// What became of a journal directory: see [`recover`].
type Recovered = Result<Option<Arc<DirtyFile>>, Box<FileStatus>>;

/// What each of `dirs` describes, in their order. Journals are read side by side: the mount answers only after the last.
pub(super) fn recover_all(shared: &Arc<Shared>, dirs: &[PathBuf]) -> Vec<Recovered> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(RECOVERY_THREADS_MAX);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(dirs.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(dirs.len()) {
            scope.spawn(|| {
                // A policy may start tasks for the file.
                let _runtime = shared.runtime.enter();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(dir) = dirs.get(index) else { break };
                    let recovered = catch_unwind(AssertUnwindSafe(|| recover(shared, dir)));
                    let recovered = recovered.unwrap_or_else(|_| Err(Box::new(unrecovered(dir))));
                    done.lock().push((index, recovered));
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, recovered)| recovered).collect()
}

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
    let (mut journal, replay) =
        Journal::open(dir).map_err(|e| damaged("", format!("the journal cannot be read: {e}")))?;
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
    if let Some(damage) = &replay.damage {
        let restarted = FileState::replay(&replay.records).is_ok_and(|state| state.boot_id != shared.boot_id);
        let synced_behind = replay.behind.iter().any(|record| matches!(record, Record::Synced { .. }));
        if !restarted || synced_behind || replay.damaged_at.is_none() {
            return Err(damaged(&key, format!("the journal is damaged: {damage}")));
        }
        log::warn!("{}: {damage}; nothing from there on was synced before the machine was restarted", dir.display());
        journal.cut_damage(&replay).map_err(|e| damaged(&key, e.to_string()))?;
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

/// The status entry of a journal whose recovery panicked.
fn unrecovered(dir: &Path) -> FileStatus {
    let first = catch_unwind(|| match Journal::read(dir).ok()?.records.into_iter().next() {
        Some(Record::Opened { key, .. }) => Some(key.to_string()),
        _ => None,
    });
    FileStatus {
        key: first.ok().flatten().unwrap_or_default(),
        journal_id: dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        state: "failed".into(),
        last_error: Some(format!(
            "{}: taking it up again made bosfs panic; nothing of it was deleted: please report the panic that the log shows; the \
             next mount tries again",
            dir.display()
        )),
        updated_at: Timestamp::now().sec,
        ..FileStatus::default()
    }
}

/// Finishes what a kill or a power loss left half-done on the local disk.
fn restore(shared: &Shared, state: &mut FileState, store: &mut Store) -> Result<(), WriteError> {
    fail_point!("upload.recover");
    // The spool's own time is that of the last write, or as set since; what is done here does not count.
    let modified = store.spool.modified().ok().filter(|_| {
        let published = state.published.as_ref();
        state.stage == Stage::Open && published.is_none_or(|published| published.attrs != state.attrs)
    });
    if let Some(modified) = modified {
        state.attrs.mtime = state.attrs.mtime.max(modified);
    }
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
    Ok(())
}

/// The machine was restarted: only synced bytes and parts that BOS holds are what they were. Everything else is again what
/// it was before it was written, and what was to be published of it is not.
fn distrust(state: &mut FileState, store: &mut Store) -> Result<(), WriteError> {
    let key = state.key.clone();
    let size = store.spool.len();
    if let Stage::Putting { sum, .. } = &state.stage
        && sum.len == size
        && hash(&store.spool, ByteRange::new(0, size)).is_ok_and(|found| found == *sum)
    {
        return Ok(());
    }
    let (in_bos, intact) = check_sent(state, store, size)?;
    let is_certain = |block: u64| {
        let range = ByteRange::at(block * BLOCK_BYTES, BLOCK_BYTES).intersect(ByteRange::new(0, size));
        state.synced_blocks.as_ref().is_none_or(|synced| synced.contains(block))
            || intact.iter().any(|part| part.start <= range.start && range.end <= part.end)
    };
    let is_held = |block: u64| {
        let upload = state.upload.as_ref();
        let part = upload.and_then(|upload| upload.plan.part_at(block * BLOCK_BYTES));
        part.and_then(|part| state.parts.get(&part)).is_some_and(|part| part.punched)
    };
    let lost = store.extents.revert(is_certain, is_held)?;
    // As far as synced bytes, the base and what BOS holds reach without a gap, the file is known.
    let mut known_end = state.synced_size.unwrap_or(0).max(store.extents.base_end()).min(size);
    for part in in_bos {
        if part.start <= known_end {
            known_end = known_end.max(part.end);
        }
    }
    let frozen = match &state.stage {
        // BOS has all of it, or tells whether it has.
        Stage::Completing { .. } | Stage::Completed { .. } => return Ok(()),
        Stage::Open if state.rebasing => return Ok(()),
        Stage::Open => None,
        Stage::Closed(frozen) | Stage::Putting { frozen, .. } => Some(*frozen),
    };
    if let Some(frozen) = frozen {
        let synced = state.synced_since_closed && matches!(state.stage, Stage::Closed(_)) && size >= frozen.size;
        if synced {
            known_end = known_end.max(frozen.size);
        } else if lost || known_end < frozen.size {
            log::warn!("{key}: the machine was restarted before all of it was synced; it is not published");
            append(state, store, &Record::Superseded { publication: frozen.publication })?;
        }
    }
    if state.parked && (lost || state.synced_size != Some(size)) {
        // No line says how long it was when it was closed.
        log::warn!("{key}: the machine was restarted before all of it was synced; it is not published");
        append(state, store, &Record::Reopened)?;
    }
    if known_end < size {
        log::warn!("{key}: the machine was restarted; of its {size} bytes the first {known_end} are known to be whole");
        append(state, store, &Record::Resizing { size: known_end })?;
        store.spool.set_len(known_end)?;
        store.extents.truncate(size, known_end)?;
        append(state, store, &Record::Resized)?;
    }
    Ok(())
}

/// The ranges of parts that BOS holds, and those of them that the spool has as well. The others are BOS's alone from here on.
fn check_sent(
    state: &mut FileState,
    store: &mut Store,
    size: u64,
) -> Result<(Vec<ByteRange>, Vec<ByteRange>), WriteError> {
    let (mut in_bos, mut intact) = (Vec::new(), Vec::new());
    let Some(upload) = state.upload.clone() else { return Ok((in_bos, intact)) };
    for number in upload.plan.parts_in(ByteRange::new(0, size)) {
        let range = upload.plan.range_in(number, size);
        if !state.is_sent(number, range.len()) {
            continue;
        }
        in_bos.push(range);
        let part = &state.parts[&number];
        let sum = part.held.as_ref().and_then(|held| held.sum);
        if sum.is_some_and(|sum| hash(&store.spool, range).is_ok_and(|found| found == sum)) {
            intact.push(range);
            continue;
        }
        if !part.punched {
            append(state, store, &Record::Punched { part: number })?;
        }
        for hole in store.extents.hold(range)? {
            store.spool.punch(hole)?;
        }
    }
    Ok((in_bos, intact))
}

fn append(state: &mut FileState, store: &mut Store, record: &Record) -> Result<(), WriteError> {
    store.journal.append(record)?;
    state.apply(record);
    Ok(())
}
