//! Room on the local disk, and the wait for it: spool bytes, freed by punching out what BOS holds, and descriptors.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::WriteError;
use super::dirty_file::DirtyFile;
use super::inner::Removal;
use super::registry::Uploads;
use super::shared::Shared;
use super::spool_room::{SpoolFile, Waiting};
use super::state::Stage;
use crate::journal::Record;
use crate::object::{ByteRange, ObjectKey, PartNumber};
use crate::write::block_map::BLOCK_BYTES;

/// Spool bytes that are punched out at once when a writer needs room.
const ROOM_BYTES: u64 = 64 << 20;
/// Files with a place on the local disk at once, before the next one waits for others to be finished: each keeps three
/// descriptors open.
const STORES_MAX: usize = 1500;
/// However few descriptors there may be.
const STORES_MIN: usize = 4;
/// Descriptors of what is no file on its way: the kernel's, the logs, the idle connections.
const DESCRIPTORS_ELSE: u64 = 64;
/// Longest wait for one of them that is on its way to BOS.
const STORE_WITHIN: Duration = Duration::from_secs(25);
/// The same where all are open for writing: the very program that asks may be the one that has to close some, and the kernel
/// lets nobody else into the directory while it is asked for a new file.
const STORE_OPEN_WITHIN: Duration = Duration::from_secs(2);

/// See [`STORES_MAX`]; fewer where this process may have few descriptors. Half of them stay for the connections that bring
/// the files to BOS: without those, no file would ever be finished and give its own back. Asked each time, as the limit of a
/// running process can be changed.
fn stores_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = |limit: u64| usize::try_from(limit.saturating_sub(DESCRIPTORS_ELSE) / 6).unwrap_or(usize::MAX);
    limit.map_or(usize::MAX, share).clamp(STORES_MIN, STORES_MAX)
}

impl Uploads {
    /// Waits until one more file may be begun without running out of descriptors.
    ///
    /// # Errors
    /// `ENFILE` when none of those that are under way is finished within half a minute.
    pub async fn room_for_file(&self) -> Result<(), WriteError> {
        let from = tokio::time::Instant::now();
        loop {
            let stores_max = stores_max();
            if self.shared.stores.load(Ordering::Relaxed) < stores_max {
                return Ok(());
            }
            let (waited, written) = (from.elapsed(), self.shared.written_now());
            if waited >= STORE_OPEN_WITHIN && written >= stores_max {
                return Err(WriteError::failed(
                    libc::ENFILE,
                    format!(
                        "{written} files are open for writing, as many as this process may have at once; nothing was changed: \
                         close some, or mount with a higher limit of descriptors (ulimit -n)"
                    ),
                ));
            }
            if waited >= STORE_WITHIN {
                return Err(WriteError::failed(
                    libc::ENFILE,
                    format!(
                        "{stores_max} files are on their way to BOS and none was finished for {} s; nothing was changed: try \
                         again, and see `bosfs status`",
                        STORE_WITHIN.as_secs()
                    ),
                ));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Shared {
    /// Files that have a place on the local disk because somebody has them open for writing; not those being closed.
    fn written_now(&self) -> usize {
        let files: Vec<Arc<DirtyFile>> = self.files.lock().values().cloned().collect();
        let written = |file: &Arc<DirtyFile>| {
            let inner = file.lock();
            inner.store.is_some() && inner.writers > 0 && inner.state.stage == Stage::Open
        };
        files.iter().filter(|file| written(file)).count()
    }

    /// Punches parts that BOS holds out of spools, oldest files and lowest parts first; the first part of a file only
    /// when nothing else is left, the last one never. True if room was made.
    pub(super) fn make_room(&self) -> bool {
        if !self.room.may_punch() {
            return false;
        }
        let mut files: Vec<Arc<DirtyFile>> = self.files.lock().values().cloned().collect();
        files.sort_by_cached_key(|file| file.lock().state.opened_at);
        let mut freed = 0;
        for spare_first in [true, false] {
            for file in &files {
                freed += file.punch(spare_first, ROOM_BYTES - freed.min(ROOM_BYTES));
                if freed >= ROOM_BYTES {
                    return true;
                }
            }
            if freed > 0 {
                return true;
            }
        }
        false
    }

    /// Whether waiting for `needed` more bytes makes sense for a writer of the file at the address `own`.
    fn room_may_come<'a>(
        &'a self,
        key: &ObjectKey,
        own: usize,
        needed: u64,
        waiting: &mut Option<Waiting<'a>>,
    ) -> Result<(), WriteError> {
        let mut files: Vec<Arc<DirtyFile>> = self.files.lock().values().cloned().collect();
        // Those without a name keep theirs until BOS is rid of them.
        files.extend(self.removals.lock().values().cloned());
        files.extend(self.displaced.lock().iter().cloned());
        let files: Vec<SpoolFile> = files.iter().map(DirtyFile::as_spool_file).collect();
        if self.room.wait(&files, own, needed, waiting) {
            return Ok(());
        }
        Err(WriteError::failed(libc::ENOSPC, self.room.refusal(key.as_str())))
    }
}

impl DirtyFile {
    /// Names the file among those of the mount as long as it is in memory.
    fn address(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    fn as_spool_file(self: &Arc<Self>) -> SpoolFile {
        let inner = self.lock();
        let state = &inner.state;
        SpoolFile {
            address: self.address(),
            spooled_bytes: inner.spooled_bytes,
            is_on_its_way: state.stage != Stage::Open
                || inner.tidying
                || state.parked
                || inner.removal == Removal::Wanted,
            is_sending: inner.driving,
            has_writers: inner.writers > 0,
            is_stuck: state.failed.is_some() || state.conflict.is_some(),
        }
    }

    /// Awaited after [`WriteError::MustWait`]: returns when the write has a chance.
    ///
    /// # Errors
    /// `ENOSPC` when nothing can ever make room; `EIO` after `--timeout`.
    pub async fn wait_writable(self: &Arc<Self>, len: u64) -> Result<(), WriteError> {
        let wait = async {
            let mut changed = self.subscribe();
            let mut freed = self.shared.budget.freed();
            let mut waiting = None;
            loop {
                changed.borrow_and_update();
                if self.is_journal_ahead(&self.lock()) {
                    if changed.changed().await.is_err() {
                        return Err(self.stopped());
                    }
                    continue;
                }
                let (wanted, free) = (len + 2 * BLOCK_BYTES, self.shared.budget.free_bytes());
                if free >= wanted {
                    return Ok(());
                }
                if self.shared.make_room() {
                    continue;
                }
                // Of a file that failed, that is the reason why its bytes stay in the spool.
                self.lock().trouble()?;
                let hope = self.shared.room_may_come(&self.key(), self.address(), wanted - free, &mut waiting);
                // It may have come in this very moment.
                if self.shared.budget.free_bytes() >= wanted {
                    return Ok(());
                }
                hope?;
                tokio::select! {
                    result = changed.changed() => if result.is_err() { return Err(self.stopped()) },
                    () = freed.wait() => {}
                }
            }
        };
        self.bounded(wait).await
    }

    /// Punches sent parts out of the spool until `wanted` bytes are free. Returns the bytes freed.
    fn punch(&self, spare_first: bool, wanted: u64) -> u64 {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.store.is_none() || inner.removal != Removal::None || inner.tidying {
            return 0;
        }
        if inner.view().depth() != 1 {
            // What BOS holds of a part is in several spools.
            return 0;
        }
        // A wrong guess about a temporary is paid from the spool.
        if inner.temporary.is_some() || inner.is_misplaced() {
            return 0;
        }
        if matches!(inner.state.stage, Stage::Putting { .. } | Stage::Completed { .. }) {
            return 0;
        }
        let size = inner.state.stage.frozen().map_or(inner.size, |frozen| frozen.size);
        let last = PartNumber::new(inner.plan.part_count(size));
        let candidates: Vec<(PartNumber, ByteRange)> = inner
            .state
            .parts
            .iter()
            .filter(|(number, part)| {
                let first = spare_first && **number == PartNumber::FIRST;
                !first && Some(**number) != last && !part.contested && !part.punched && part.sending.is_none()
            })
            .map(|(number, _)| (*number, inner.part_range(*number, size)))
            .filter(|(number, range)| inner.state.is_sent(*number, range.len()))
            .collect();
        let (mut chosen, mut freed) = (Vec::new(), 0);
        for candidate in candidates {
            if freed >= wanted {
                break;
            }
            freed += candidate.1.len();
            chosen.push(candidate);
        }
        if chosen.is_empty() {
            return 0;
        }
        freed = 0;
        let punched = (|| {
            for (part, _) in &chosen {
                self.append(inner, &Record::Punched { part: *part })?;
            }
            let store = inner.store()?;
            // Without these lines, and those that say what BOS holds, a power loss would leave holes that nobody can explain.
            store.journal.sync()?;
            for (_, range) in &chosen {
                let Some(bottom) = store.layers.first_mut() else { continue };
                for hole in bottom.extents.hold(*range)? {
                    bottom.spool.punch(hole)?;
                    freed += hole.len().next_multiple_of(BLOCK_BYTES);
                }
            }
            Ok::<(), WriteError>(())
        })();
        if let Err(e) = punched {
            log::warn!("{}: parts that BOS holds cannot be taken out of the spool: {e}", inner.state.key);
        }
        inner.spooled_bytes = inner.spooled_bytes.saturating_sub(freed);
        self.shared.budget.release(freed);
        freed
    }
}
