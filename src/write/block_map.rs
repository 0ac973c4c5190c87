//! Where the bytes of each 4 KiB block are: 2 bits a block, in memory and in the file `map` beside the spool.
//!
//! Every change is written to the file with `pwrite` before the call returns, so the map survives a kill of bosfs as the
//! spool does; it is synced together with the spool. `pwrite` is used rather than a shared mapping because a full disk is
//! then an error of this call and not a SIGBUS of the process.
//!
//! The file holds block `n` in bits `2 * (n % 4)` and up of byte `n / 4`; what lies beyond its end is
//! [`BlockState::Base`]. In memory, pages of one state take no more than a map entry and pages of `Base` take nothing, so
//! neither a huge hole nor a huge spooled stretch costs memory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 4096;

/// Name of the map's file in an upload's directory.
pub const MAP_FILE: &str = "map";

/// Blocks of one 64-bit word.
const WORD_BLOCKS: u64 = 32;
/// Words of one page.
const PAGE_WORDS: usize = 512;
/// Blocks of one page: 64 MiB of the file.
const PAGE_BLOCKS: u64 = WORD_BLOCKS * PAGE_WORDS as u64;
/// The lower bit of every block.
const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// Where a block's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// In the base object (or zeros where the base does not reach).
    Base = 0,
    /// Zeros.
    Zero = 1,
    /// In the spool.
    Spool = 2,
    /// Only in a part that BOS holds; punched out of the spool.
    Held = 3,
}

impl BlockState {
    fn of_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => BlockState::Base,
            1 => BlockState::Zero,
            2 => BlockState::Spool,
            _ => BlockState::Held,
        }
    }

    /// A word with all blocks in this state.
    fn word(self) -> u64 {
        LOW_BITS * self as u64
    }
}

/// The lower bit of each block of `word` that is not in `state`.
fn other_blocks(word: u64, state: BlockState) -> u64 {
    let difference = word ^ state.word();
    (difference | difference >> 1) & LOW_BITS
}

/// All bits of the blocks `blocks` of a word (indices within the word).
fn mask(blocks: Range<u64>) -> u64 {
    let up_to = |n: u64| if n >= WORD_BLOCKS { u64::MAX } else { (1 << (2 * n)) - 1 };
    up_to(blocks.end) & !up_to(blocks.start)
}

/// A page that is not all `Base`.
enum Page {
    All(BlockState),
    Words(Box<[u64; PAGE_WORDS]>),
}

impl Page {
    fn words(page: Option<&Page>) -> [u64; PAGE_WORDS] {
        match page {
            None => [0; PAGE_WORDS],
            Some(Page::All(state)) => [state.word(); PAGE_WORDS],
            Some(Page::Words(words)) => **words,
        }
    }

    /// `None`: all `Base`.
    fn of_words(words: &[u64; PAGE_WORDS]) -> Option<Page> {
        let state = BlockState::of_bits(words[0]);
        if words.iter().any(|&word| word != state.word()) {
            Some(Page::Words(Box::new(*words)))
        } else if state == BlockState::Base {
            None
        } else {
            Some(Page::All(state))
        }
    }
}

/// The block map of one dirty file.
pub struct BlockMap {
    file: File,
    pages: BTreeMap<u64, Page>,
}

impl BlockMap {
    /// A new map, all [`BlockState::Base`], as file [`MAP_FILE`] in `dir`.
    ///
    /// # Errors
    /// Those of the disk; `AlreadyExists` where there is one.
    pub fn create(dir: &Path) -> io::Result<Self> {
        Self::create_at(&dir.join(MAP_FILE))
    }

    /// As [`BlockMap::create`], as file `path`.
    ///
    /// # Errors
    /// See [`BlockMap::create`].
    pub fn create_at(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { file, pages: BTreeMap::new() })
    }

    /// The map that an earlier process left in `dir`.
    ///
    /// # Errors
    /// Those of the disk; `NotFound` where there is none.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::open_at(&dir.join(MAP_FILE))
    }

    /// As [`BlockMap::open`], of file `path`.
    ///
    /// # Errors
    /// See [`BlockMap::open`].
    pub fn open_at(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut pages = BTreeMap::new();
        let mut bytes = [0; PAGE_WORDS * 8];
        for key in 0.. {
            let mut filled = 0;
            while filled < bytes.len() {
                match file.read(&mut bytes[filled..]) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            bytes[filled..].fill(0);
            let mut words = [0; PAGE_WORDS];
            for (word, eight) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*eight);
            }
            if let Some(page) = Page::of_words(&words) {
                pages.insert(key, page);
            }
            if filled < bytes.len() {
                break;
            }
        }
        Ok(Self { file, pages })
    }

    /// The state of one block.
    pub fn state(&self, block: u64) -> BlockState {
        match self.pages.get(&(block / PAGE_BLOCKS)) {
            None => BlockState::Base,
            Some(Page::All(state)) => *state,
            Some(Page::Words(words)) => {
                let word = words[(block % PAGE_BLOCKS / WORD_BLOCKS) as usize];
                BlockState::of_bits(word >> (2 * (block % WORD_BLOCKS)))
            }
        }
    }

    /// Gives all `blocks` this state, on disk and then in memory; one `pwrite` for each 64 MiB of the file in which
    /// something changes. Returns the number of blocks that had another state.
    ///
    /// # Errors
    /// Those of the disk. Memory and disk then agree up to the page that could not be written; the call may be repeated.
    pub fn set(&mut self, blocks: Range<u64>, state: BlockState) -> io::Result<u64> {
        let mut changed = 0;
        let mut at = blocks.start;
        while at < blocks.end {
            let key = at / PAGE_BLOCKS;
            let first = key * PAGE_BLOCKS;
            let end = blocks.end.min(first + PAGE_BLOCKS);
            changed += self.set_in_page(key, at - first..end - first, state)?;
            at = end;
        }
        Ok(changed)
    }

    fn set_in_page(&mut self, key: u64, blocks: Range<u64>, state: BlockState) -> io::Result<u64> {
        let page = self.pages.get(&key);
        match page {
            None if state == BlockState::Base => return Ok(0),
            Some(Page::All(present)) if *present == state => return Ok(0),
            _ => {}
        }
        let mut words = Page::words(page);
        let mut changed = 0;
        let mut dirty: Option<Range<usize>> = None;
        let (skipped, end) = ((blocks.start / WORD_BLOCKS) as usize, blocks.end.div_ceil(WORD_BLOCKS) as usize);
        for (i, word) in words.iter_mut().enumerate().take(end).skip(skipped) {
            let first = i as u64 * WORD_BLOCKS;
            let mask = mask(blocks.start.saturating_sub(first)..blocks.end - first);
            let others = other_blocks(*word, state) & mask;
            if others != 0 {
                changed += u64::from(others.count_ones());
                *word = *word & !mask | state.word() & mask;
                dirty = Some(dirty.map_or(i, |d| d.start)..i + 1);
            }
        }
        if let Some(dirty) = dirty {
            let offset = (key * PAGE_WORDS as u64 + dirty.start as u64) * 8;
            let bytes: Vec<u8> = words[dirty].iter().flat_map(|word| word.to_le_bytes()).collect();
            self.file.write_all_at(&bytes, offset)?;
            match Page::of_words(&words) {
                Some(page) => self.pages.insert(key, page),
                None => self.pages.remove(&key),
            };
        }
        Ok(changed)
    }

    /// Makes every block from `block` on [`BlockState::Base`], by cutting the file.
    ///
    /// # Errors
    /// Those of the disk; nothing beyond the first four blocks is changed then.
    pub fn cut(&mut self, block: u64) -> io::Result<()> {
        let end = block.next_multiple_of(4);
        self.set(block..end, BlockState::Base)?;
        if self.file.metadata()?.len() > end / 4 {
            self.file.set_len(end / 4)?;
        }
        let (key, kept) = (end / PAGE_BLOCKS, end % PAGE_BLOCKS);
        self.pages.split_off(&(key + u64::from(kept > 0)));
        if kept > 0 && self.pages.contains_key(&key) {
            let mut words = Page::words(self.pages.get(&key));
            for (i, word) in words.iter_mut().enumerate() {
                *word &= mask(0..kept.saturating_sub(i as u64 * WORD_BLOCKS));
            }
            match Page::of_words(&words) {
                Some(page) => self.pages.insert(key, page),
                None => self.pages.remove(&key),
            };
        }
        Ok(())
    }

    /// Makes the whole map [`BlockState::Base`] and its file empty.
    ///
    /// # Errors
    /// Those of the disk; nothing is changed then.
    pub fn reset(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.pages.clear();
        Ok(())
    }

    /// The runs of equal state within `blocks`, in order, without gaps; neighbours differ.
    pub fn runs(&self, blocks: Range<u64>) -> Runs<'_> {
        Runs { map: self, at: blocks.start, end: blocks.end }
    }

    /// Number of `blocks` in this state.
    pub fn count(&self, blocks: Range<u64>, state: BlockState) -> u64 {
        let mut other = 0;
        let mut in_pages = 0;
        for (&key, page) in self.pages_in(&blocks) {
            let first = key * PAGE_BLOCKS;
            let here = blocks.start.max(first) - first..blocks.end.min(first + PAGE_BLOCKS) - first;
            in_pages += here.end - here.start;
            match page {
                Page::All(all) if *all == state => {}
                Page::All(_) => other += here.end - here.start,
                Page::Words(words) => {
                    for i in here.start / WORD_BLOCKS..here.end.div_ceil(WORD_BLOCKS) {
                        let first = i * WORD_BLOCKS;
                        let mask = mask(here.start.saturating_sub(first)..here.end - first);
                        other += u64::from((other_blocks(words[i as usize], state) & mask).count_ones());
                    }
                }
            }
        }
        let absent = blocks.end.saturating_sub(blocks.start) - in_pages;
        in_pages - other + if state == BlockState::Base { absent } else { 0 }
    }

    /// Whether all `blocks` have this state (also if there are none).
    pub fn all(&self, blocks: Range<u64>, state: BlockState) -> bool {
        blocks.is_empty() || self.run_end(blocks.start, blocks.end, state) == blocks.end
    }

    /// One past the last block that may be other than [`BlockState::Base`] (rounded up to a page).
    pub fn end(&self) -> u64 {
        self.pages.last_key_value().map_or(0, |(&key, _)| (key + 1) * PAGE_BLOCKS)
    }

    /// One past the last block that is other than [`BlockState::Base`]; 0 if there is none.
    pub fn last_end(&self) -> u64 {
        let Some((&key, page)) = self.pages.last_key_value() else { return 0 };
        let last = |word: &u64| 32 - u64::from(word.leading_zeros() / 2);
        key * PAGE_BLOCKS
            + match page {
                Page::All(_) => PAGE_BLOCKS,
                Page::Words(words) => {
                    let used = words.iter().rposition(|word| *word != 0);
                    used.map_or(0, |i| i as u64 * WORD_BLOCKS + last(&words[i]))
                }
            }
    }

    /// A second descriptor of the file, to be synced without holding the map.
    ///
    /// # Errors
    /// Those of `dup`.
    pub fn sync_handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    fn pages_in(&self, blocks: &Range<u64>) -> impl Iterator<Item = (&u64, &Page)> {
        let keys =
            if blocks.is_empty() { 0..0 } else { blocks.start / PAGE_BLOCKS..(blocks.end - 1) / PAGE_BLOCKS + 1 };
        self.pages.range(keys)
    }

    /// The first block from `at` up to `end` that is not in `state`; `end` if there is none.
    fn run_end(&self, mut at: u64, end: u64, state: BlockState) -> u64 {
        while at < end {
            let key = at / PAGE_BLOCKS;
            let page_end = (key + 1) * PAGE_BLOCKS;
            match self.pages.get(&key) {
                None if state == BlockState::Base => {
                    // Holes of any size in one step.
                    at = self.pages.range(key..).next().map_or(end, |(&next, _)| next * PAGE_BLOCKS);
                }
                None => break,
                Some(Page::All(all)) if *all == state => at = page_end,
                Some(Page::All(_)) => break,
                Some(Page::Words(words)) => {
                    let word = words[(at % PAGE_BLOCKS / WORD_BLOCKS) as usize];
                    let others = other_blocks(word, state) >> (2 * (at % WORD_BLOCKS));
                    if others != 0 {
                        at += u64::from(others.trailing_zeros() / 2);
                        break;
                    }
                    at = (at / WORD_BLOCKS + 1) * WORD_BLOCKS;
                }
            }
        }
        at.min(end)
    }
}

/// See [`BlockMap::runs`].
pub struct Runs<'a> {
    map: &'a BlockMap,
    at: u64,
    end: u64,
}

impl Iterator for Runs<'_> {
    type Item = (Range<u64>, BlockState);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let state = self.map.state(self.at);
        let start = self.at;
        self.at = self.map.run_end(start, self.end, state);
        Some((start..self.at, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BlockState::{Base, Held, Spool, Zero};
    use proptest::prelude::*;

    fn file_len(dir: &Path) -> u64 {
        std::fs::metadata(dir.join(MAP_FILE)).unwrap().len()
    }

    #[test]
    fn a_sequential_mebibyte_changes_64_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut map = BlockMap::create(dir.path()).unwrap();
        assert_eq!(map.set(256..512, Spool).unwrap(), 256);
        assert_eq!(file_len(dir.path()), 128);
        assert_eq!(map.set(256..512, Spool).unwrap(), 0);
        assert_eq!(map.set(0..0, Spool).unwrap(), 0);
        let bytes = std::fs::read(dir.path().join(MAP_FILE)).unwrap();
        assert!(bytes[..64].iter().all(|&b| b == 0) && bytes[64..].iter().all(|&b| b == 0b1010_1010));
        assert!(BlockMap::create(dir.path()).is_err());
    }

    #[test]
    fn a_nearly_endless_file_costs_next_to_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut map = BlockMap::create(dir.path()).unwrap();
        let far = (20u64 << 40) / BLOCK_BYTES;
        map.set(far..far + 1, Spool).unwrap();
        assert_eq!((map.pages.len(), map.last_end()), (1, far + 1));
        let runs: Vec<_> = map.runs(0..far + 9).collect();
        assert_eq!(runs, [(0..far, Base), (far..far + 1, Spool), (far + 1..far + 9, Base)]);
        assert!(map.all(0..far, Base) && !map.all(0..far + 1, Base));
        assert_eq!(map.count(0..far + 9, Base), far + 8);
        // A page of one state takes no words.
        map.set(0..10 * PAGE_BLOCKS, Spool).unwrap();
        assert!(map.pages.values().take(10).all(|page| matches!(page, Page::All(Spool))));
        map.cut(1).unwrap();
        assert_eq!(map.runs(0..far + 9).collect::<Vec<_>>(), [(0..1, Spool), (1..far + 9, Base)]);
        assert_eq!(file_len(dir.path()), 1);
        map.reset().unwrap();
        assert_eq!((file_len(dir.path()), map.end(), map.last_end()), (0, 0, 0));
    }

    #[test]
    fn a_map_that_cannot_be_written_is_an_error_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let mut map = BlockMap::create(dir.path()).unwrap();
        map.set(3..9, Held).unwrap();
        map.file = File::open(dir.path().join(MAP_FILE)).unwrap();
        assert!(map.set(0..4, Spool).is_err());
        assert!(map.reset().is_err());
        assert!(map.cut(4).is_err());
        assert_eq!(map.runs(0..12).collect::<Vec<_>>(), [(0..3, Base), (3..9, Held), (9..12, Base)]);
    }

    /// Start, length, state; or a cut at the start.
    fn change() -> impl Strategy<Value = (u64, u64, Option<BlockState>)> {
        let near = prop_oneof![0u64..200, PAGE_BLOCKS - 100..PAGE_BLOCKS + 100, 0..3 * PAGE_BLOCKS];
        let len = prop_oneof![0u64..5, 0u64..100, 0..2 * PAGE_BLOCKS, Just(PAGE_BLOCKS)];
        let state = prop_oneof![
            1 => Just(None),
            9 => prop::sample::select(vec![Base, Zero, Spool, Held]).prop_map(Some)
        ];
        (near, len, state)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_map_is_an_array_of_states_and_survives_reopening(changes in prop::collection::vec(change(), 1..12)) {
            let dir = tempfile::tempdir().unwrap();
            let mut map = BlockMap::create(dir.path()).unwrap();
            let mut model = vec![Base; 6 * PAGE_BLOCKS as usize];
            for (start, len, state) in changes {
                let range = start as usize..(start + len) as usize;
                match state {
                    Some(state) => {
                        let differing = model[range.clone()].iter().filter(|&&s| s != state).count() as u64;
                        prop_assert_eq!(map.set(start..start + len, state).unwrap(), differing);
                        model[range.clone()].fill(state);
                    }
                    None => {
                        map.cut(start).unwrap();
                        model[start as usize..].fill(Base);
                    }
                }
                let reopened = BlockMap::open(dir.path()).unwrap();
                for map in [&map, &reopened] {
                    for whole in [0..model.len() as u64, start..start + len, start / 2..start + 1] {
                        let part = &model[whole.start as usize..whole.end as usize];
                        let mut at = whole.start;
                        let mut last = None;
                        for (run, state) in map.runs(whole.clone()) {
                            prop_assert!(run.start == at && !run.is_empty() && last != Some(state));
                            prop_assert!(model[run.start as usize..run.end as usize].iter().all(|&s| s == state));
                            (at, last) = (run.end, Some(state));
                        }
                        prop_assert_eq!(at, whole.end);
                        for state in [Base, Zero, Spool, Held] {
                            let count = part.iter().filter(|&&s| s == state).count() as u64;
                            prop_assert_eq!(map.count(whole.clone(), state), count);
                            prop_assert_eq!(map.all(whole.clone(), state), count == whole.end - whole.start);
                        }
                    }
                    let last = model.iter().rposition(|&s| s != Base).map_or(0, |i| i as u64 + 1);
                    prop_assert_eq!(map.end(), last.next_multiple_of(PAGE_BLOCKS));
                    prop_assert_eq!(map.state(start), model[start as usize]);
                }
            }
        }
    }
}
