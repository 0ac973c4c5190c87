//! Reads ranges of one object version for one open handle, through the shared cache, fetching ahead when the reads are
//! sequential.
//!
//! Every GET carries `If-Match`, so a handle never sees bytes of two contents. A GET fills the runs it was started for in
//! order, and readers take what they need as soon as it has arrived. It belongs to the reader that started it and ends with
//! it; another reader who waited for the same bytes fetches what is missing.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;

use super::block_cache::{BlockCache, Filler, Run, RunLost, Version};
use super::window::{AHEAD_MAX_BYTES, BLOCK_BYTES, ReadWindow, UNIT_BYTES, round_out};
use crate::bos::client::BosClient;
use crate::bos::error::{BosError, BosErrorKind};
use crate::fail_point::fail_point;
use crate::object::{ByteRange, ETag, ObjectKey};

/// A GET that is cut this often in a row, with less than a unit in between, fails.
const CUTS_MAX: u32 = 6;
/// Longest time in which less than a unit comes: whoever waits for a read is told within 30 s.
const QUIET_MAX: Duration = Duration::from_secs(28);
/// What one more wait for the bytes of a body may take of it: the stall timeout of calls that somebody waits for.
const STALL: Duration = Duration::from_secs(10);
/// Pause before a cut GET goes on; doubles with each cut in a row.
const CUT_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 2 } else { 100 });

/// What all readers of a mount share: the client, the cache and the right to download.
pub struct ReadPool {
    client: BosClient,
    cache: Arc<BlockCache>,
    /// One permit per GET.
    downloads: Semaphore,
    /// Taken first by GETs that nobody waits for yet, so that they never use all of `downloads`.
    downloads_ahead: Semaphore,
    /// Readers with an open window, among whom the memory is shared out.
    streams: AtomicU64,
}

impl ReadPool {
    /// `memory_bytes`: cached bytes and bytes on their way, together (at least 4 MiB are used). `downloads_max`: GETs at
    /// once, at least 1; a quarter of them, and at least one if there are two, is kept for readers that wait.
    pub fn new(client: BosClient, memory_bytes: u64, downloads_max: usize) -> Arc<ReadPool> {
        let downloads_max = downloads_max.clamp(1, Semaphore::MAX_PERMITS);
        let ahead_max = (downloads_max - downloads_max.div_ceil(4)).max(1);
        Arc::new(ReadPool {
            client,
            cache: BlockCache::new(memory_bytes),
            downloads: Semaphore::new(downloads_max),
            downloads_ahead: Semaphore::new(ahead_max),
            streams: AtomicU64::new(0),
        })
    }

    /// A reader for one open handle on the content `etag` of `key`, which has `size` bytes. Nothing is fetched yet.
    pub fn reader(self: &Arc<Self>, key: ObjectKey, etag: ETag, size: u64) -> ObjectReader {
        let state =
            ReaderState { window: ReadWindow::new(size), downloads: Vec::new(), is_stream: false, passed: None };
        ObjectReader { pool: self.clone(), version: Version { key, etag }, size, state: Mutex::new(state) }
    }

    /// Most bytes of memory that blocks may take; what else a mount remembers keeps to it, too.
    pub fn memory_bytes(&self) -> u64 {
        self.cache.bytes_max()
    }

    /// Bytes in the cache and on their way to it.
    pub fn cached_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// The largest window a reader may have now.
    fn ahead_share_bytes(&self) -> u64 {
        let streams = self.streams.load(Ordering::Relaxed).max(1);
        (self.cache.bytes_max() / 4 * 3 / streams).min(AHEAD_MAX_BYTES)
    }
}

/// A GET of this reader.
struct Download {
    task: AbortHandle,
    runs: Vec<Weak<Run>>,
    /// Fetches ahead: not needed any more once the window is given up.
    is_ahead: bool,
}

impl Download {
    fn is_awaited(&self) -> bool {
        self.runs.iter().filter_map(Weak::upgrade).any(|run| run.is_awaited())
    }
}

struct ReaderState {
    window: ReadWindow,
    downloads: Vec<Download>,
    /// Counted in `ReadPool::streams`.
    is_stream: bool,
    /// Up to where a long sequential read has given back what it read.
    passed: Option<u64>,
}

/// One open handle's reads of one content of one object. May be used by several tasks at once.
pub struct ObjectReader {
    pool: Arc<ReadPool>,
    version: Version,
    size: u64,
    state: Mutex<ReaderState>,
}

impl ObjectReader {
    /// The bytes from `offset` on: `len` of them, fewer only at the end of the object, none beyond it. A slice of cached
    /// memory where one run holds them all. Dropping the future leaves what is under way to later reads.
    ///
    /// # Errors
    /// What the client says after its retries; `PreconditionFailed` when the key has another content now (the bytes of
    /// this handle's content are gone for good).
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, BosError> {
        let wanted = self.clip(ByteRange::at(offset, len as u64));
        if wanted.is_empty() {
            return Ok(Bytes::new());
        }
        let sequential = self.fetch_ahead(wanted);
        // What is missing in spite of fetching ahead (memory was short, or another reader gave it up) is fetched by the
        // block, not by the unit, since the next read will want the rest.
        self.gather(wanted, if sequential { BLOCK_BYTES } else { UNIT_BYTES }).await
    }

    /// The bytes of `range`, as [`ObjectReader::read`], without being taken for a step of a sequential reader (gaps of a
    /// file that is being written).
    ///
    /// # Errors
    /// As [`ObjectReader::read`].
    pub async fn read_gap(&self, range: ByteRange) -> Result<Bytes, BosError> {
        let wanted = self.clip(range);
        if wanted.is_empty() {
            return Ok(Bytes::new());
        }
        self.gather(wanted, UNIT_BYTES).await
    }

    /// Size of the object, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Which content is read.
    pub fn etag(&self) -> &ETag {
        &self.version.etag
    }

    fn clip(&self, range: ByteRange) -> ByteRange {
        range.intersect(ByteRange::new(0, self.size))
    }

    /// Starts what the window says is due. Whether the read is part of a sequential one.
    fn fetch_ahead(&self, wanted: ByteRange) -> bool {
        let state = &mut *self.state.lock();
        let share = self.pool.ahead_share_bytes();
        let fetches = state.window.next(wanted.start, wanted.len(), share);
        if fetches.gave_up {
            state.downloads.retain(|download| {
                let keep = !download.is_ahead || download.is_awaited();
                if !keep {
                    download.task.abort();
                }
                keep
            });
            self.pool.cache.forsake(&self.version, ByteRange::new(0, self.size));
        }
        if state.window.is_open() != state.is_stream {
            state.is_stream = !state.is_stream;
            self.count_stream(state.is_stream);
        }
        let passed = state.window.passed();
        // The beginning of an object is kept: it is what other programs look at first.
        if let (Some(from), Some(to)) = (state.passed, passed)
            && from < to
        {
            self.pool.cache.spend(&self.version, ByteRange::new(from, to));
        }
        state.passed = passed;
        for range in fetches.ranges {
            // Up to the end of what is read now, memory is taken also from what others will read later.
            let urgent_end = round_out(wanted, UNIT_BYTES, self.size).end.clamp(range.start, range.end);
            let mut claim = self.pool.cache.claim(&self.version, ByteRange::new(range.start, urgent_end), true);
            let is_urgent = !claim.fillers.is_empty();
            if claim.end >= urgent_end {
                let rest = ByteRange::new(claim.end, range.end);
                let ahead = self.pool.cache.claim(&self.version, rest, false);
                claim.fillers.extend(ahead.fillers);
                claim.end = ahead.end;
            }
            self.start(state, claim.fillers, is_urgent, fetches.sequential);
            if claim.end < range.end {
                state.window.not_fetched_from(claim.end);
                break;
            }
        }
        fetches.sequential
    }

    /// Waits for the bytes of `wanted`, fetching what is missing, up to whole steps.
    async fn gather(&self, wanted: ByteRange, step: u64) -> Result<Bytes, BosError> {
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut at = wanted.start;
        'missing: while at < wanted.end {
            let room = self.pool.cache.room();
            let start = round_out(ByteRange::at(at, 1), UNIT_BYTES, self.size).start;
            let end = round_out(ByteRange::new(at, wanted.end), step, self.size).end;
            let claim = self.pool.cache.claim(&self.version, ByteRange::new(start, end), true);
            if !claim.fillers.is_empty() {
                self.start(&mut self.state.lock(), claim.fillers, true, false);
            }
            if claim.runs.is_empty() {
                // All memory is on its way to somebody; each run that arrives makes room.
                room.await;
                continue;
            }
            for run in claim.runs {
                if at >= wanted.end {
                    break;
                }
                match run.bytes(ByteRange::new(at, wanted.end)).await {
                    Ok(bytes) => {
                        at += bytes.len() as u64;
                        pieces.push(bytes);
                    }
                    Err(RunLost::Failed(error)) => return Err(error),
                    Err(RunLost::Abandoned) => {
                        self.state.lock().window.not_fetched_from(at);
                        continue 'missing;
                    }
                }
            }
        }
        if pieces.len() == 1 {
            return Ok(pieces.swap_remove(0));
        }
        let mut whole = BytesMut::with_capacity(wanted.len() as usize);
        pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        Ok(whole.freeze())
    }

    /// Starts one GET per contiguous stretch of `fillers`.
    fn start(&self, state: &mut ReaderState, fillers: Vec<Filler>, is_urgent: bool, is_ahead: bool) {
        let mut fillers = VecDeque::from(fillers);
        while let Some(first) = fillers.pop_front() {
            let mut end = first.range().end;
            let mut stretch = VecDeque::from([first]);
            while fillers.front().is_some_and(|next| next.range().start == end) {
                end = fillers[0].range().end;
                stretch.extend(fillers.pop_front());
            }
            let runs = stretch.iter().map(|filler| Arc::downgrade(filler.run())).collect();
            let task = tokio::spawn(download(self.pool.clone(), self.version.clone(), stretch, is_urgent));
            state.downloads.retain(|download| !download.task.is_finished());
            state.downloads.push(Download { task: task.abort_handle(), runs, is_ahead });
        }
    }

    fn count_stream(&self, opened: bool) {
        if opened {
            self.pool.streams.fetch_add(1, Ordering::Relaxed);
        } else {
            self.pool.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for ObjectReader {
    /// Ends all GETs of this reader.
    fn drop(&mut self) {
        let state = self.state.get_mut();
        state.downloads.drain(..).for_each(|download| download.task.abort());
        if std::mem::take(&mut state.is_stream) {
            self.count_stream(false);
            self.pool.cache.forsake(&self.version, ByteRange::new(0, self.size));
        }
    }
}

impl std::fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectReader").field("version", &self.version).field("size", &self.size).finish_non_exhaustive()
    }
}

/// Fills `fillers`, which touch one another, by one GET, gone on with wherever it is cut.
async fn download(pool: Arc<ReadPool>, version: Version, mut fillers: VecDeque<Filler>, is_urgent: bool) {
    let Some(_permits) = permits(&pool, is_urgent).await else { return };
    let filled = AssertUnwindSafe(fill(&pool.client, &version, &mut fillers)).catch_unwind().await;
    let filled = filled.unwrap_or_else(|_| {
        let message = format!(
            "{:?} could not be read because bosfs panicked; please report the panic that the log shows",
            version.key.as_str()
        );
        Err(BosError::new(BosErrorKind::Refused, message))
    });
    if let Err(error) = filled {
        fillers.into_iter().for_each(|filler| filler.fail(&error));
    }
}

/// Waits for the right to download; `None` only if the semaphores were closed, which they never are.
async fn permits(pool: &ReadPool, is_urgent: bool) -> Option<(Option<SemaphorePermit<'_>>, SemaphorePermit<'_>)> {
    let ahead = if is_urgent { None } else { Some(pool.downloads_ahead.acquire().await.ok()?) };
    Some((ahead, pool.downloads.acquire().await.ok()?))
}

async fn fill(client: &BosClient, version: &Version, fillers: &mut VecDeque<Filler>) -> Result<(), BosError> {
    fail_point!("read.fill");
    let Some((first, last)) = fillers.front().zip(fillers.back()) else { return Ok(()) };
    let mut left = ByteRange::new(first.range().start, last.range().end);
    let mut cuts = 0;
    let mut moved_at = Instant::now();
    loop {
        let asked = left;
        let opened = client.get_object(&version.key, Some(left), Some(&version.etag));
        let mut get = match tokio::time::timeout(QUIET_MAX.saturating_sub(moved_at.elapsed()), opened).await {
            Ok(opened) => opened?,
            Err(_) => {
                let message = format!("{:?}: no byte at {} came for {QUIET_MAX:.0?}", version.key.as_str(), left.start);
                return Err(BosError::new(BosErrorKind::Network, message));
            }
        };
        if get.meta.etag != version.etag {
            let message = format!(
                "{:?} was replaced while it was open: its ETag is {}, not {}; open it again",
                version.key.as_str(),
                get.meta.etag,
                version.etag
            );
            return Err(BosError::new(BosErrorKind::PreconditionFailed, message));
        }
        let cut = loop {
            match get.chunk().await {
                Ok(Some(mut bytes)) => {
                    left.start += bytes.len().min(left.len() as usize) as u64;
                    while !bytes.is_empty()
                        && let Some(filler) = fillers.front_mut()
                    {
                        if filler.push(&mut bytes) {
                            fillers.pop_front();
                        }
                    }
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        if fillers.is_empty() {
            return Ok(());
        }
        let error = cut.unwrap_or_else(|| {
            let message = format!("{:?} ended at byte {} of {:?}", version.key.as_str(), left.start, asked);
            BosError::new(BosErrorKind::BadAnswer, message)
        });
        if left.start - asked.start >= UNIT_BYTES {
            (cuts, moved_at) = (0, Instant::now());
        }
        cuts += 1;
        if !error.is_transient() || cuts > CUTS_MAX || moved_at.elapsed() + STALL > QUIET_MAX {
            return Err(error);
        }
        ::log::debug!("GET of {:?} goes on at byte {}: {error}", version.key.as_str(), left.start);
        tokio::time::sleep(CUT_PAUSE * (1 << (cuts - 1).min(6))).await;
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
