//! Bytes of objects in memory, bounded, shared by all readers.
//!
//! What is cached are *runs*: whole units within one aligned block, fetched together, so that a sequential reader finds
//! whole blocks and a random one does not pay for them. A run is entered before its bytes arrive, which is when its memory
//! is counted, so everybody who wants it waits for the same GET, and can take bytes as they come in:
//!
//! ```text
//!  (absent) --claim--> filling --last byte: Filler::push--> done --make_room--> (evicted)
//!                         |------Filler::fail-------------> failed     taken out of the cache: the next one who wants it
//!                         '------Filler dropped-----------> abandoned  fetches it again
//! ```
//!
//! What a long sequential read leaves behind is *spent*: little of it is kept, so that copying a large file neither drives
//! out everything else nor needs more memory than its window. Buffers are used again: fresh memory is slow to touch.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::window::{BLOCK_BYTES, UNIT_BYTES};
use crate::bos::error::BosError;
use crate::object::{ByteRange, ETag, ObjectKey};

/// The smallest cache, bytes: every reader gets on with one run at a time.
pub const CACHE_BYTES_MIN: u64 = 4 * BLOCK_BYTES;

/// Part of the memory that spent runs may keep: for other readers of the same bytes, some way behind.
const SPENT_SHARE: u64 = 4;
/// Buffers kept for the next runs: one per this many bytes of memory, at most [`SPARE_BUFFERS_MAX`].
const BYTES_PER_SPARE: u64 = 16 << 20;
const SPARE_BUFFERS_MAX: u64 = 16;

/// One content of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Key of the object.
    pub key: ObjectKey,
    /// Which content.
    pub etag: ETag,
}

/// Why a run has no bytes.
#[derive(Debug)]
pub enum RunLost {
    /// The GET failed.
    Failed(BosError),
    /// Whoever fetched it stopped; it may be fetched again.
    Abandoned,
}

enum Fill {
    Filling(BytesMut),
    Done(Bytes),
    Failed(BosError),
    Abandoned,
}

struct RunState {
    fill: Fill,
    /// Waiters are woken when this many bytes are there (the least any of them needs).
    wake_at: usize,
}

/// Some units of one block, there or on their way.
pub struct Run {
    range: ByteRange,
    state: Mutex<RunState>,
    changed: Notify,
    waiters: AtomicU32,
}

/// Counts a waiter for as long as it waits.
struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Run {
    fn new(range: ByteRange) -> Self {
        let state = RunState { fill: Fill::Filling(BytesMut::new()), wake_at: usize::MAX };
        Self { range, state: Mutex::new(state), changed: Notify::new(), waiters: AtomicU32::new(0) }
    }

    /// Which bytes of the object.
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// Whether somebody waits for bytes of it.
    pub fn is_awaited(&self) -> bool {
        self.waiters.load(Ordering::Relaxed) > 0
    }

    /// The bytes that `wanted` has in common with this run, as soon as they are there. A slice of the cached bytes, copied
    /// only while the run is still filling. Giving up the wait harms nobody.
    ///
    /// # Errors
    /// See [`RunLost`].
    pub async fn bytes(&self, wanted: ByteRange) -> Result<Bytes, RunLost> {
        let wanted = wanted.intersect(self.range);
        let from = (wanted.start - self.range.start) as usize;
        let to = from + wanted.len() as usize;
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiters);
        loop {
            // Made before the look at the state, so that no change after it is missed.
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock();
                match &state.fill {
                    Fill::Done(bytes) => return Ok(bytes.slice(from..to)),
                    Fill::Filling(bytes) if bytes.len() >= to => return Ok(Bytes::copy_from_slice(&bytes[from..to])),
                    Fill::Filling(_) => state.wake_at = state.wake_at.min(to),
                    Fill::Failed(error) => return Err(RunLost::Failed(error.clone())),
                    Fill::Abandoned => return Err(RunLost::Abandoned),
                }
            }
            changed.await;
        }
    }
}

/// The duty to fill one run; dropped before the last byte, it gives the run up.
pub struct Filler {
    run: Arc<Run>,
    version: Version,
    cache: Arc<BlockCache>,
    settled: bool,
}

impl Filler {
    /// Which bytes of the object.
    pub fn range(&self) -> ByteRange {
        self.run.range
    }

    /// The run to be filled.
    pub fn run(&self) -> &Arc<Run> {
        &self.run
    }

    /// Takes the next bytes off the front of `arrived`; true once the run is full.
    pub fn push(&mut self, arrived: &mut Bytes) -> bool {
        let len = self.run.range.len() as usize;
        let mut state = self.run.state.lock();
        let Fill::Filling(bytes) = &mut state.fill else { return true };
        if bytes.capacity() == 0 {
            *bytes = self.cache.buffer(len);
        }
        let taken = arrived.split_to(arrived.len().min(len - bytes.len()));
        bytes.extend_from_slice(&taken);
        let there = bytes.len();
        let full = there == len;
        if full {
            state.fill = Fill::Done(std::mem::take(bytes).freeze());
        }
        if full || there >= state.wake_at {
            state.wake_at = usize::MAX;
            self.run.changed.notify_waiters();
        }
        drop(state);
        if full && !self.settled {
            self.settled = true;
            self.cache.filled(&self.version, self.run.range.start);
        }
        full
    }

    /// Gives the run up; everybody who waits for it gets the error.
    pub fn fail(mut self, error: &BosError) {
        self.settle(Fill::Failed(error.clone()));
    }

    fn settle(&mut self, fill: Fill) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        // Out of the cache first: who is woken must not find it again.
        self.cache.remove(&self.version, &self.run);
        self.run.state.lock().fill = fill;
        self.run.changed.notify_waiters();
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.settle(Fill::Abandoned);
    }
}

/// What [`BlockCache::claim`] found and entered.
#[derive(Default)]
pub struct Claim {
    /// The runs that cover the range from its start on, in order, without a gap.
    pub runs: Vec<Arc<Run>>,
    /// Those among them that were not there: to be filled by the caller, in order, not always touching.
    pub fillers: Vec<Filler>,
    /// Where memory ended; the end of the range if there was enough.
    pub end: u64,
}

/// Who still wants a run, the most dispensable first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// A long sequential read has passed it.
    Spent,
    /// Somebody read it.
    Read,
    /// Fetched ahead and still to be read.
    Unread,
}

/// Order of eviction: by use, then by age.
type Rank = (Use, u64);

struct Slot {
    run: Arc<Run>,
    wanted: Use,
    /// Its place in the order of eviction; `None` while it is filling.
    rank: Option<Rank>,
}

#[derive(Default)]
struct Slots {
    /// Runs by start; a version without runs has no entry.
    versions: HashMap<Version, BTreeMap<u64, Slot>>,
    order: BTreeMap<Rank, (Version, u64)>,
    /// Bytes of all runs, full length also while filling.
    bytes: u64,
    /// Those of them that are spent.
    spent_bytes: u64,
    clock: u64,
}

impl Slots {
    /// Gives a run that is there another use, and its new place in the order of eviction.
    fn set_use(&mut self, version: &Version, start: u64, wanted: Use) {
        let Some(slot) = self.versions.get_mut(version).and_then(|runs| runs.get_mut(&start)) else { return };
        let was = std::mem::replace(&mut slot.wanted, wanted);
        let len = slot.run.range.len();
        if slot.rank.is_none() {
            return;
        }
        if was == Use::Spent {
            self.spent_bytes -= len;
        }
        if wanted == Use::Spent {
            self.spent_bytes += len;
        }
        self.place(version, start);
    }

    fn place(&mut self, version: &Version, start: u64) {
        self.clock += 1;
        let Some(slot) = self.versions.get_mut(version).and_then(|runs| runs.get_mut(&start)) else { return };
        if let Some(old) = slot.rank {
            self.order.remove(&old);
        }
        let rank = (slot.wanted, self.clock);
        slot.rank = Some(rank);
        self.order.insert(rank, (version.clone(), start));
    }

    fn take_out(&mut self, version: &Version, start: u64) -> Option<Arc<Run>> {
        let runs = self.versions.get_mut(version)?;
        let slot = runs.remove(&start)?;
        if runs.is_empty() {
            self.versions.remove(version);
        }
        if let Some(rank) = slot.rank {
            self.order.remove(&rank);
        }
        self.bytes -= slot.run.range.len();
        if slot.wanted == Use::Spent {
            self.spent_bytes -= slot.run.range.len();
        }
        Some(slot.run)
    }

    /// The run that holds the byte at `offset`.
    fn at(&self, version: &Version, offset: u64) -> Option<&Slot> {
        let (_, slot) = self.versions.get(version)?.range(..=offset).next_back()?;
        (slot.run.range.end > offset).then_some(slot)
    }

    /// Starts of the runs that lie wholly in `range`, are there and have this use.
    fn starts(&self, version: &Version, range: ByteRange, wanted: Use) -> Vec<u64> {
        let runs = self.versions.get(version).into_iter().flat_map(|runs| runs.range(range.start..range.end));
        runs.filter(|(_, slot)| slot.wanted == wanted && slot.rank.is_some() && slot.run.range.end <= range.end)
            .map(|(start, _)| *start)
            .collect()
    }

    /// Where the first run after `offset` starts.
    fn next_start(&self, version: &Version, offset: u64) -> u64 {
        let next = self.versions.get(version).and_then(|runs| runs.range(offset..).next());
        next.map_or(u64::MAX, |(start, _)| *start)
    }
}

/// All cached runs. The lock is held for look-ups only, never while bytes are copied or freed.
pub struct BlockCache {
    slots: Mutex<Slots>,
    bytes_max: u64,
    /// Something that could not be evicted before can be now.
    room: Notify,
    /// Buffers of evicted blocks.
    spare: Mutex<Vec<BytesMut>>,
}

impl BlockCache {
    /// Takes at most `bytes_max` bytes (but at least [`CACHE_BYTES_MIN`]).
    pub fn new(bytes_max: u64) -> Arc<Self> {
        let bytes_max = bytes_max.max(CACHE_BYTES_MIN);
        Arc::new(Self { slots: Mutex::default(), bytes_max, room: Notify::new(), spare: Mutex::default() })
    }

    /// Most bytes it holds.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Bytes of all runs, those on their way included.
    pub fn bytes(&self) -> u64 {
        self.slots.lock().bytes
    }

    /// Finds the runs of `range` (whole units, cut only at the end of the object) and enters those that are missing, as
    /// far as there is memory. `urgent`: somebody waits for it, so even bytes that others will read make room; it counts
    /// as read.
    pub fn claim(self: &Arc<Self>, version: &Version, range: ByteRange, urgent: bool) -> Claim {
        let mut claim = Claim { end: range.start, ..Claim::default() };
        let mut evicted = Vec::new();
        let mut slots = self.slots.lock();
        while claim.end < range.end {
            let at = claim.end;
            if let Some(slot) = slots.at(version, at) {
                let run = slot.run.clone();
                if urgent {
                    slots.set_use(version, run.range.start, Use::Read);
                }
                claim.end = run.range.end;
                claim.runs.push(run);
                continue;
            }
            debug_assert_eq!(at % UNIT_BYTES, 0);
            let block_end = (at / BLOCK_BYTES + 1) * BLOCK_BYTES;
            let new = ByteRange::new(at, range.end.min(block_end).min(slots.next_start(version, at)));
            if !self.make_room(&mut slots, new.len(), urgent, &mut evicted) {
                break;
            }
            let run = Arc::new(Run::new(new));
            slots.bytes += new.len();
            let wanted = if urgent { Use::Read } else { Use::Unread };
            let slot = Slot { run: run.clone(), wanted, rank: None };
            slots.versions.entry(version.clone()).or_default().insert(at, slot);
            claim.end = new.end;
            claim.runs.push(run.clone());
            claim.fillers.push(Filler { run, version: version.clone(), cache: self.clone(), settled: false });
        }
        drop(slots);
        self.take_buffers(evicted);
        claim
    }

    /// Waits until `claim` may find more memory than before. To be made before the claim that it follows.
    pub fn room(&self) -> tokio::sync::futures::Notified<'_> {
        self.room.notified()
    }

    /// Nobody will read these bytes soon: what of them was fetched ahead and not read is evicted like what was read.
    pub fn forsake(&self, version: &Version, range: ByteRange) {
        let mut slots = self.slots.lock();
        let starts = slots.starts(version, range, Use::Unread);
        let forsaken = !starts.is_empty();
        starts.into_iter().for_each(|start| slots.set_use(version, start, Use::Read));
        drop(slots);
        if forsaken {
            self.room.notify_waiters();
        }
    }

    /// A long sequential read has passed these bytes: of all that is spent, only the latest is kept.
    pub fn spend(&self, version: &Version, range: ByteRange) {
        let mut evicted = Vec::new();
        let mut slots = self.slots.lock();
        for passed in [Use::Unread, Use::Read] {
            for start in slots.starts(version, range, passed) {
                slots.set_use(version, start, Use::Spent);
            }
        }
        while slots.spent_bytes > self.bytes_max / SPENT_SHARE {
            let Some((&(Use::Spent, _), (version, start))) = slots.order.first_key_value() else { break };
            let (version, start) = (version.clone(), *start);
            evicted.extend(slots.take_out(&version, start));
        }
        drop(slots);
        self.take_buffers(evicted);
    }

    /// An empty buffer for `len` bytes.
    fn buffer(&self, len: usize) -> BytesMut {
        let spare = if len as u64 == BLOCK_BYTES { self.spare.lock().pop() } else { None };
        spare.unwrap_or_else(|| BytesMut::with_capacity(len))
    }

    /// Keeps the buffers of evicted blocks that nobody reads any more, as far as some are wanted.
    fn take_buffers(&self, evicted: Vec<Arc<Run>>) {
        let spare_max = (self.bytes_max / BYTES_PER_SPARE).min(SPARE_BUFFERS_MAX) as usize;
        for run in evicted {
            let Some(Fill::Done(bytes)) = Arc::into_inner(run).map(|run| run.state.into_inner().fill) else { continue };
            if bytes.len() as u64 != BLOCK_BYTES {
                continue;
            }
            if let Ok(mut buffer) = bytes.try_into_mut() {
                buffer.clear();
                let mut spare = self.spare.lock();
                if spare.len() < spare_max {
                    spare.push(buffer);
                }
            }
        }
    }

    fn make_room(&self, slots: &mut Slots, len: u64, urgent: bool, evicted: &mut Vec<Arc<Run>>) -> bool {
        while slots.bytes + len > self.bytes_max {
            let Some((&(wanted, _), (version, start))) = slots.order.first_key_value() else { return false };
            if wanted == Use::Unread && !urgent {
                return false;
            }
            let (version, start) = (version.clone(), *start);
            evicted.extend(slots.take_out(&version, start));
        }
        true
    }

    fn filled(&self, version: &Version, start: u64) {
        self.slots.lock().place(version, start);
        self.room.notify_waiters();
    }

    fn remove(&self, version: &Version, run: &Arc<Run>) {
        let start = run.range.start;
        let mut slots = self.slots.lock();
        let is_this = |slot: &Slot| Arc::ptr_eq(&slot.run, run);
        if slots.versions.get(version).and_then(|runs| runs.get(&start)).is_some_and(is_this) {
            slots.take_out(version, start);
        }
        drop(slots);
        self.room.notify_waiters();
    }
}

#[cfg(test)]
#[path = "block_cache_tests.rs"]
mod tests;
