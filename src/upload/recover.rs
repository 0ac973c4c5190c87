//! From the files of a journal directory back to a dirty file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::checkpoint::JOURNAL_BYTES_MIN;
use super::dirty_file::DirtyFile;
use super::inner::{Inner, Store};
use super::shared::Shared;
use super::state::{FileState, LayerState, Stage};
use super::{FileStatus, InterruptedPolicy, WriteError};
use crate::fail_point::fail_point;
use crate::journal::log::JOURNAL_NAME;
use crate::journal::{Journal, Record};
use crate::object::{ByteRange, Timestamp};
use crate::write::layers::{Layer, layer_of_name};

mod distrust;

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
    let hint = || Journal::hint(dir, "key").unwrap_or_default();
    let (mut journal, replay) =
        Journal::open(dir).map_err(|e| damaged(&hint(), format!("the journal cannot be read: {e}")))?;
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
    let key = replay.records.first().and_then(Record::first_key).map_or_else(hint, ToString::to_string);
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
    let restarted = state.boot_id != shared.boot_id;
    let layers = open_layers(dir, &state, restarted)
        .map_err(|e| damaged(&key, format!("its spool or map cannot be opened: {e}")))?;
    remove_leftovers(dir, &state);
    let checkpoint_at = JOURNAL_BYTES_MIN;
    let mut store = Store { dir: dir.to_owned(), journal, layers, dropped: Vec::new(), checkpoint_at };
    restore(shared, &mut state, &mut store).map_err(|e| damaged(&key, format!("it cannot be taken up again: {e}")))?;

    let file = DirtyFile::recovered(shared.clone(), state, store);
    let mut inner = file.lock();
    if inner.state.unlinked || inner.state.discarded {
        drop(inner);
        return Ok(Some(file));
    }
    if !inner.is_pending() {
        if inner.state.upload.is_none() {
            file.retire(&mut inner);
            return Ok(None);
        }
        // It is again what BOS has, but parts of something else were sent: they go.
        file.discard(&mut inner).map_err(|e| damaged(&key, e.to_string()))?;
        drop(inner);
        return Ok(Some(file));
    }
    let settled = if inner.state.parked {
        // Its writer closed it; the rename that it waited for did not come.
        inner.inherited = false;
        inner.new_content = true;
        file.begin_publication(&mut inner, true).map(|_| ())
    } else if inner.new_content {
        interrupted(&file, &mut inner)
    } else {
        Ok(())
    };
    settled.map_err(|e| damaged(&key, e.to_string()))?;
    inner.check_base = inner.check_base.map(|_| file.changes.count());
    drop(inner);
    Ok(Some(file))
}

/// What is newer than the last close: its writer is dead.
fn interrupted(file: &Arc<DirtyFile>, inner: &mut Inner) -> Result<(), WriteError> {
    let key = inner.state.key.clone();
    let closed = inner.state.stage != Stage::Open || inner.tidying;
    let what = if closed { "what was written after its last close" } else { "it" };
    log::warn!(
        "{key}: its writer never closed it; {what} is kept, not published. Run the same command again to go on, or \
         `bosfs uploads complete BUCKET/{key}` to publish it as it is"
    );
    match file.shared.options.interrupted {
        InterruptedPolicy::Keep => Ok(()),
        InterruptedPolicy::Complete => {
            inner.inherited = false;
            file.begin_publication(inner, true).map(|_| ())
        }
        InterruptedPolicy::Discard if closed => file.discard_open(inner),
        InterruptedPolicy::Discard => file.discard(inner),
    }
}

/// The layers that the journal names. After a restart of the machine files of some may be gone, whose names were never synced:
/// these are empty then, and what is not vouched for is taken back as for any other lost bytes.
fn open_layers(dir: &Path, state: &FileState, restarted: bool) -> std::io::Result<Vec<Layer>> {
    let open = |known: &LayerState| match Layer::open(dir, known.id, known.base_end) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && restarted && known.synced_size.is_none() => {
            log::warn!(
                "{}: the machine was restarted before what was written last was synced; that is lost",
                state.key
            );
            Layer::create(dir, known.id, known.base_end)
        }
        opened => opened,
    };
    state.layers.iter().map(open).collect()
}

/// Files of layers that the journal does not name: they were about to be made or to go when bosfs was killed.
fn remove_leftovers(dir: &Path, state: &FileState) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let layer = entry.file_name().to_str().and_then(layer_of_name);
        if layer.is_some_and(|layer| state.layer(layer).is_none())
            && let Err(e) = std::fs::remove_file(entry.path())
        {
            log::warn!("{}: {e}", entry.path().display());
        }
    }
}

/// The status entry of a journal whose recovery panicked.
fn unrecovered(dir: &Path) -> FileStatus {
    let first = catch_unwind(|| Some(Journal::read(dir).ok()?.records.first()?.first_key()?.to_string()));
    FileStatus {
        key: first.ok().flatten().or_else(|| Journal::hint(dir, "key")).unwrap_or_default(),
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
    // The top spool's own time is that of the last write, or as set since; what is done here does not count.
    let modified = store.layers.last().and_then(|top| top.spool.modified().ok()).filter(|_| {
        let published = state.published.as_ref();
        state.stage == Stage::Open && published.is_none_or(|published| published.attrs != state.attrs)
    });
    if let Some(modified) = modified {
        state.attrs.mtime = state.attrs.mtime.max(modified);
    }
    let restarted = state.boot_id != shared.boot_id;
    let sent_end = if restarted { distrust::sent_end(state) } else { 0 };
    for index in 0..state.layers.len() {
        if restarted {
            distrust::distrust_partials(state, store, index)?;
        }
        let known = state.layers[index].clone();
        let layer = &mut store.layers[index];
        for (block, ranges) in known.partials {
            layer.extents.set_partial(block, ranges);
        }
        if let Some(size) = known.resizing {
            layer.spool.set_len(size)?;
            layer.extents.truncate(u64::MAX, size)?;
            append(state, store, &Record::Resized { layer: known.id })?;
        }
        let layer = &mut store.layers[index];
        // A write that was cut off before the map was set was never accepted: the file ends where it did before.
        let sent_end = if index == 0 { sent_end } else { 0 };
        let accepted_end = known.size_journaled.max(layer.extents.end()).max(sent_end);
        if layer.size() > accepted_end {
            layer.spool.set_len(accepted_end)?;
        }
        // From here on a spool and its map say the same. Before, bytes that a lost map does not count would pass for what the
        // file shows.
        layer.extents.scrub(&layer.spool, ByteRange::new(0, layer.size()))?;
    }
    if restarted {
        distrust::distrust(state, store)?;
        append(state, store, &Record::Booted { boot_id: shared.boot_id.clone() })?;
        for layer in &store.layers {
            layer.extents.scrub(&layer.spool, ByteRange::new(0, layer.size()))?;
        }
    }
    for (known, layer) in state.layers.iter().zip(&mut store.layers) {
        layer.extents.distrust_unsynced(|block| known.synced_blocks.contains(block));
    }
    Ok(())
}

fn append(state: &mut FileState, store: &mut Store, record: &Record) -> Result<(), WriteError> {
    store.journal.append(record)?;
    state.apply(record);
    store.follow(state);
    Ok(())
}
