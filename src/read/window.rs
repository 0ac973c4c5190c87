//! Decides, per handle, which ranges to fetch: a pure struct, fed with the reads as they come.
//!
//! A handle begins *random*, unless its first read is at offset 0. Two reads that follow one another open a *window*: from
//! then on bytes are fetched ahead of the reader, in several GETs at once, and the window doubles whenever half of it was
//! read. Reads elsewhere are *strays*: they fetch what they ask for and leave the window alone, until
//! [`STRAYS_MAX`] of them in a row, or two that follow one another, show that the reader has gone.

use crate::object::ByteRange;

/// What a random read is rounded to, bytes; also the smallest thing that is cached.
pub const UNIT_BYTES: u64 = 128 << 10;
/// Alignment of fetches ahead and size of the largest cached run, bytes: the largest READ of the kernel, so that most
/// reads are a slice of one run.
pub const BLOCK_BYTES: u64 = 1 << 20;
/// First size of a window, bytes.
pub const AHEAD_START_BYTES: u64 = BLOCK_BYTES;
/// Largest size of a window, bytes: 0.5 s of a 1 Gbit/s line.
pub const AHEAD_MAX_BYTES: u64 = 64 << 20;
/// A window is fetched in this many GETs, as far as their size stays within a block and [`GET_MAX_BYTES`].
const GETS_PER_WINDOW: u64 = 8;
/// Largest GET ahead of the reader, bytes. Each costs a request; a larger one delays what is behind it.
const GET_MAX_BYTES: u64 = 8 << 20;
/// How far below the position a read still belongs to the window: the kernel's own readahead goes through several workers
/// and arrives out of order, and readers look back a little.
const LOOK_BACK_BYTES: u64 = 2 * BLOCK_BYTES;
/// A sequential read of this many bytes is a long one: it leaves nothing behind that it will want again.
const LONG_READ_BYTES: u64 = 16 << 20;
/// Strays in a row after which the window is given up.
pub const STRAYS_MAX: u32 = 4;

/// What to do for one read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetches {
    /// Ranges to fetch, one GET each, the most urgent first; some of it may be cached already. For a random read the
    /// read itself rounded to units; for a sequential one what is due ahead, which includes the read if it was not
    /// fetched ahead before.
    pub ranges: Vec<ByteRange>,
    /// The read belongs to the window.
    pub sequential: bool,
    /// The window was given up: what is still on its way for it is not wanted any more.
    pub gave_up: bool,
}

/// The window of one handle on an object of fixed size.
#[derive(Clone, Debug)]
pub struct ReadWindow {
    size: u64,
    /// Where the present sequential read began.
    run_start: u64,
    /// End of the furthest sequential read.
    position: u64,
    /// Everything from the position to here was asked for.
    front: u64,
    /// Size of the window; 0: there is none.
    ahead: u64,
    /// The window doubles when the position gets here.
    grow_at: u64,
    /// Where the last stray (or the first read) ended.
    stray_end: Option<u64>,
    strays: u32,
    begun: bool,
}

impl ReadWindow {
    /// For an object of `size` bytes, not read yet.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            run_start: 0,
            position: 0,
            front: 0,
            ahead: 0,
            grow_at: 0,
            stray_end: None,
            strays: 0,
            begun: false,
        }
    }

    /// The handle reads `len` bytes from `offset` on. `ahead_max`: the largest window at present, bytes.
    pub fn next(&mut self, offset: u64, len: u64, ahead_max: u64) -> Fetches {
        let read = ByteRange::at(offset, len).intersect(ByteRange::new(0, self.size));
        if read.is_empty() {
            return Fetches::default();
        }
        let first = !std::mem::replace(&mut self.begun, true);
        if self.ahead > 0 && self.is_near(read) {
            self.position = self.position.max(read.end);
            (self.strays, self.stray_end) = (0, None);
            let ranges = self.top_up(read, ahead_max);
            return Fetches { ranges, sequential: true, gave_up: false };
        }
        let follows = self.stray_end.is_some_and(|end| follows(end, read));
        if follows || (first && offset == 0) {
            let gave_up = self.ahead > 0;
            self.run_start = read.start;
            self.position = read.end;
            self.front = round_down(read.start, UNIT_BYTES);
            self.ahead = AHEAD_START_BYTES;
            self.grow_at = read.end + AHEAD_START_BYTES / 2;
            (self.strays, self.stray_end) = (0, None);
            let ranges = self.top_up(read, ahead_max);
            return Fetches { ranges, sequential: true, gave_up };
        }
        self.stray_end = Some(read.end);
        self.strays += 1;
        let gave_up = self.ahead > 0 && self.strays >= STRAYS_MAX;
        if gave_up {
            self.ahead = 0;
        }
        Fetches { ranges: vec![round_out(read, UNIT_BYTES, self.size)], sequential: false, gave_up }
    }

    /// Nothing from `offset` on was fetched, or it was lost: it will be asked for again when it is due.
    pub fn not_fetched_from(&mut self, offset: u64) {
        self.front = self.front.min(round_down(offset, UNIT_BYTES));
    }

    /// How far a long sequential read is done with the object; `None` for other reads.
    pub fn passed(&self) -> Option<u64> {
        let is_long = self.ahead > 0 && self.position - self.run_start >= LONG_READ_BYTES;
        is_long.then(|| round_down(self.position - LOOK_BACK_BYTES, BLOCK_BYTES))
    }

    /// Whether bytes are fetched ahead.
    pub fn is_open(&self) -> bool {
        self.ahead > 0
    }

    fn is_near(&self, read: ByteRange) -> bool {
        let behind = read.start <= self.position && read.start.saturating_add(LOOK_BACK_BYTES) >= self.position;
        behind || follows(self.position, read)
    }

    /// The ranges due so that the window lies ahead of the position, after growing it if half of it was read.
    fn top_up(&mut self, read: ByteRange, ahead_max: u64) -> Vec<ByteRange> {
        let ahead_max = ahead_max.clamp(UNIT_BYTES, AHEAD_MAX_BYTES);
        if self.position >= self.grow_at {
            self.ahead *= 2;
            self.grow_at = self.position + self.ahead / 2;
        }
        self.ahead = self.ahead.min(ahead_max);
        // A reader that skipped a little does not want what it skipped.
        if self.front < read.start {
            self.front = round_down(read.start, UNIT_BYTES);
        }
        let get = (self.ahead / GETS_PER_WINDOW).clamp(BLOCK_BYTES, GET_MAX_BYTES).min(self.ahead);
        let mut ranges = Vec::new();
        while self.front < self.size && (self.front < read.end || self.front + get <= self.position + self.ahead) {
            let step = if get >= BLOCK_BYTES { BLOCK_BYTES } else { UNIT_BYTES };
            let end = round_down(self.front + get, step).max(self.front + UNIT_BYTES).min(self.size);
            ranges.push(ByteRange::new(self.front, end));
            self.front = end;
        }
        ranges
    }
}

/// Whether `read` goes on at `end`, or skips no more than the kernel's readahead does when its requests change places.
fn follows(end: u64, read: ByteRange) -> bool {
    read.start >= end && read.start - end <= read.len().max(UNIT_BYTES)
}

fn round_down(offset: u64, step: u64) -> u64 {
    offset - offset % step
}

/// The smallest range of whole steps around `range`, cut at `size`.
pub fn round_out(range: ByteRange, step: u64, size: u64) -> ByteRange {
    let end = range.end.checked_next_multiple_of(step).unwrap_or(u64::MAX);
    ByteRange::new(round_down(range.start, step), end.min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn ranges(fetches: &Fetches) -> Vec<(u64, u64)> {
        fetches.ranges.iter().map(|r| (r.start, r.end)).collect()
    }

    /// Reads all of an object in order; returns the ranges of each read.
    fn read_through(size: u64, len: u64, ahead_max: u64) -> Vec<(u64, Fetches)> {
        let mut window = ReadWindow::new(size);
        (0..size.div_ceil(len)).map(|n| (n * len, window.next(n * len, len, ahead_max))).collect()
    }

    #[test]
    fn a_sequential_reader_gets_every_byte_once_and_always_has_some_ahead() {
        for (size, len) in [
            (1, 4096),
            (UNIT_BYTES, UNIT_BYTES),
            (3 * MIB + 5, 7000),
            (300 * MIB, UNIT_BYTES),
            (300 * MIB + 1, MIB),
            (90 * MIB, 5 * MIB),
        ] {
            for ahead_max in [UNIT_BYTES, MIB, 5 * MIB, AHEAD_MAX_BYTES, u64::MAX] {
                let mut front = 0;
                for (at, fetches) in read_through(size, len, ahead_max) {
                    assert!(fetches.sequential && !fetches.gave_up);
                    for range in fetches.ranges {
                        assert_eq!(range.start, front, "in order, no gap, nothing twice");
                        assert!(range.len() <= GET_MAX_BYTES && !range.is_empty());
                        front = range.end;
                    }
                    let end = (at + len).min(size);
                    assert!(front >= end, "what is read is fetched");
                    assert!(front - end <= ahead_max.clamp(UNIT_BYTES, AHEAD_MAX_BYTES) + UNIT_BYTES.max(len));
                    if ahead_max >= 4 * MIB && end > 2 * MIB && len <= MIB {
                        assert!(front == size || front - end >= MIB, "one GET ahead at {at}: {front} {end}");
                    }
                }
                assert_eq!(front, size);
            }
        }
    }

    #[test]
    fn the_window_doubles_up_to_its_share_and_keeps_several_gets_ahead() {
        let reads = read_through(400 * MIB, UNIT_BYTES, 64 * MIB);
        let mut front = 0;
        let mut widest = 0;
        for (at, fetches) in &reads {
            front = fetches.ranges.last().map_or(front, |r| r.end);
            widest = widest.max(front - at);
            if *at == 0 {
                assert_eq!(ranges(fetches), [(0, MIB)], "the first read waits for little");
            }
            if (64 * MIB..300 * MIB).contains(at) {
                assert!(front - at >= 48 * MIB, "{front} at {at}");
            }
        }
        assert!(widest <= 65 * MIB);
        let gets: usize = reads.iter().map(|(_, fetches)| fetches.ranges.len()).sum();
        assert!((50..=80).contains(&gets), "{gets} GETs for 400 MiB");
    }

    #[test]
    fn random_reads_fetch_what_they_ask_rounded_to_units() {
        let mut window = ReadWindow::new(1 << 30);
        let mut at = 12_345_678_901_u64;
        for _ in 0..1000 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = (at >> 20) % ((1 << 30) - 4096);
            let fetches = window.next(offset, 4096, AHEAD_MAX_BYTES);
            let expected = round_out(ByteRange::at(offset, 4096), UNIT_BYTES, 1 << 30);
            assert_eq!(fetches, Fetches { ranges: vec![expected], sequential: false, gave_up: false });
        }
    }

    #[test]
    fn backward_and_strided_readers_never_open_a_window() {
        let size = 1 << 30;
        let mut window = ReadWindow::new(size);
        for n in 1..500 {
            assert!(!window.next(size - n * UNIT_BYTES, UNIT_BYTES, AHEAD_MAX_BYTES).sequential);
        }
        let mut window = ReadWindow::new(size);
        let fetched: u64 =
            (0..500).flat_map(|n| window.next(n * MIB, 4096, AHEAD_MAX_BYTES).ranges).map(|range| range.len()).sum();
        assert!(!window.is_open());
        assert!(fetched <= 501 * UNIT_BYTES + MIB, "{fetched}");
    }

    #[test]
    fn a_stray_read_leaves_the_window_alone_and_a_moved_reader_takes_it_along() {
        let mut window = ReadWindow::new(1 << 30);
        for n in 0..64 {
            window.next(n * UNIT_BYTES, UNIT_BYTES, AHEAD_MAX_BYTES);
        }
        let before = window.clone();
        let stray = window.next(900 * MIB + 5, 10, AHEAD_MAX_BYTES);
        assert_eq!((ranges(&stray), stray.sequential), (vec![(900 * MIB, 900 * MIB + UNIT_BYTES)], false));
        let back = window.next(64 * UNIT_BYTES, UNIT_BYTES, AHEAD_MAX_BYTES);
        assert!(back.sequential && !back.gave_up);
        assert!(window.front >= before.front);

        let away = window.next(500 * MIB, UNIT_BYTES, AHEAD_MAX_BYTES);
        assert!(!away.sequential && !away.gave_up);
        let there = window.next(500 * MIB + UNIT_BYTES, UNIT_BYTES, AHEAD_MAX_BYTES);
        assert!(there.sequential && there.gave_up);
        assert_eq!(ranges(&there)[0].0, 500 * MIB + UNIT_BYTES);

        for n in 1..=STRAYS_MAX {
            let gone = window.next(u64::from(n) * 37 * MIB, 4096, AHEAD_MAX_BYTES);
            assert_eq!((gone.sequential, gone.gave_up), (false, n == STRAYS_MAX), "{n}");
        }
        assert!(!window.next(999 * MIB, 4096, AHEAD_MAX_BYTES).gave_up, "only once");
    }

    #[test]
    fn requests_of_the_kernels_readahead_may_change_places() {
        for len in [UNIT_BYTES, MIB] {
            let mut window = ReadWindow::new(1 << 30);
            let mut order: Vec<u64> = (0..200).collect();
            order.chunks_mut(2).skip(1).for_each(|pair| pair.reverse());
            let mut front = 0;
            for n in order {
                let fetches = window.next(n * len, len, AHEAD_MAX_BYTES);
                assert!(fetches.sequential, "read {n}");
                for range in fetches.ranges {
                    assert_eq!(range.start, front);
                    front = range.end;
                }
            }
        }
    }

    #[test]
    fn only_a_long_sequential_read_passes_anything() {
        let mut window = ReadWindow::new(1 << 30);
        for n in 0..400 {
            window.next(n * UNIT_BYTES, UNIT_BYTES, AHEAD_MAX_BYTES);
            let position = (n + 1) * UNIT_BYTES;
            let passed = (position >= 16 * MIB).then(|| (position - 2 * MIB) / MIB * MIB);
            assert_eq!(window.passed(), passed, "at {position}");
        }
        for n in 1..=STRAYS_MAX {
            window.next(u64::from(n) * 67 * MIB + 100 * MIB, 1, AHEAD_MAX_BYTES);
        }
        assert_eq!(window.passed(), None);
    }

    #[test]
    fn what_was_not_fetched_is_asked_for_again() {
        let mut window = ReadWindow::new(100 * MIB);
        let first = window.next(0, MIB, AHEAD_MAX_BYTES);
        window.not_fetched_from(first.ranges[0].end);
        window.next(MIB, MIB, AHEAD_MAX_BYTES);
        window.not_fetched_from(2 * MIB + 7);
        let again = window.next(2 * MIB, MIB, AHEAD_MAX_BYTES);
        assert_eq!(again.ranges[0].start, 2 * MIB);
    }

    #[test]
    fn nothing_is_asked_beyond_the_end_or_for_nothing() {
        for size in [0, 1, UNIT_BYTES, 10 * MIB] {
            let mut window = ReadWindow::new(size);
            assert_eq!(window.next(size, 4096, AHEAD_MAX_BYTES), Fetches::default());
            assert_eq!(window.next(u64::MAX, u64::MAX, AHEAD_MAX_BYTES), Fetches::default());
            assert_eq!(window.next(0, 0, AHEAD_MAX_BYTES), Fetches::default());
        }
        let mut window = ReadWindow::new(300 * KIB);
        assert_eq!(ranges(&window.next(0, u64::MAX, AHEAD_MAX_BYTES)), [(0, 300 * KIB)]);
        let mut window = ReadWindow::new(300 * KIB);
        assert_eq!(ranges(&window.next(299 * KIB, 4096, AHEAD_MAX_BYTES)), [(256 * KIB, 300 * KIB)]);
    }
}
