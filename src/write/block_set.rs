//! A set of blocks of one file: one bit each, in pages, so that neither long runs nor scattered blocks cost much memory.

use std::collections::BTreeMap;
use std::ops::Range;

/// Blocks of one page: 64 MiB of the file, 2 KiB of memory.
const PAGE_BLOCKS: u64 = 16_384;
const WORDS: usize = (PAGE_BLOCKS / 64) as usize;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet {
    /// None of them is empty.
    pages: BTreeMap<u64, Box<[u64; WORDS]>>,
}

impl BlockSet {
    /// Whether there is no block in it.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Whether `block` is in it.
    pub fn contains(&self, block: u64) -> bool {
        let at = block % PAGE_BLOCKS;
        self.pages.get(&(block / PAGE_BLOCKS)).is_some_and(|page| page[(at / 64) as usize] >> (at % 64) & 1 == 1)
    }

    /// Puts all `blocks` into it.
    pub fn insert(&mut self, blocks: Range<u64>) {
        for (key, words) in pieces(blocks) {
            let page = self.pages.entry(key).or_insert_with(|| Box::new([0; WORDS]));
            words.for_each(|(word, mask)| page[word] |= mask);
        }
    }

    /// Takes all `blocks` out of it.
    pub fn remove(&mut self, blocks: Range<u64>) {
        let keys: Vec<u64> = if blocks.is_empty() {
            Vec::new()
        } else {
            self.pages.range(blocks.start / PAGE_BLOCKS..=(blocks.end - 1) / PAGE_BLOCKS).map(|(&key, _)| key).collect()
        };
        for key in keys {
            let first = key * PAGE_BLOCKS;
            let within = blocks.start.max(first)..blocks.end.min(first + PAGE_BLOCKS);
            let Some(page) = self.pages.get_mut(&key) else { continue };
            for (_, words) in pieces(within) {
                words.for_each(|(word, mask)| page[word] &= !mask);
            }
            if page.iter().all(|word| *word == 0) {
                self.pages.remove(&key);
            }
        }
    }

    /// Puts all of `other` into it.
    pub fn extend(&mut self, other: &BlockSet) {
        for (&key, more) in &other.pages {
            let page = self.pages.entry(key).or_insert_with(|| Box::new([0; WORDS]));
            page.iter_mut().zip(more.iter()).for_each(|(word, more)| *word |= more);
        }
    }

    /// Takes all of `other` out of it.
    pub fn subtract(&mut self, other: &BlockSet) {
        other.runs().for_each(|run| self.remove(run));
    }

    /// Its blocks in order, as runs that do not touch.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let words = self.pages.iter().flat_map(|(key, page)| {
            page.iter()
                .enumerate()
                .filter(|(_, word)| **word != 0)
                .map(move |(i, word)| (key * PAGE_BLOCKS + i as u64 * 64, *word))
        });
        let mut runs = words.flat_map(|(first, word)| word_runs(first, word)).peekable();
        std::iter::from_fn(move || {
            let mut run = runs.next()?;
            while let Some(next) = runs.next_if(|next| next.start == run.end) {
                run.end = next.end;
            }
            Some(run)
        })
    }
}

/// The runs of set bits in one word whose first bit is block `first`.
fn word_runs(first: u64, mut word: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let skip = u64::from(word.trailing_zeros());
        word >>= skip;
        let len = u64::from(word.trailing_ones());
        let start = first + at + skip;
        word = if len == 64 { 0 } else { word >> len };
        at += skip + len;
        Some(start..start + len)
    })
}

/// `blocks` page by page: the page, and the words of it with the bits concerned.
fn pieces(blocks: Range<u64>) -> impl Iterator<Item = (u64, impl Iterator<Item = (usize, u64)>)> {
    let keys = if blocks.is_empty() { 0..0 } else { blocks.start / PAGE_BLOCKS..(blocks.end - 1) / PAGE_BLOCKS + 1 };
    keys.map(move |key| {
        let first = key * PAGE_BLOCKS;
        let (start, end) = (blocks.start.max(first) - first, blocks.end.min(first + PAGE_BLOCKS) - first);
        let words = start / 64..end.div_ceil(64);
        let masks = words.map(move |word| {
            let up_to = |n: u64| if n >= 64 { u64::MAX } else { (1 << n) - 1 };
            let from = start.saturating_sub(word * 64);
            (word as usize, up_to(end - word * 64) & !up_to(from))
        });
        (key, masks)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_join_over_words_and_pages() {
        let mut set = BlockSet::default();
        set.insert(60..70);
        set.insert(70..PAGE_BLOCKS + 3);
        set.insert(1..2);
        set.insert(9..9);
        assert_eq!(set.runs().collect::<Vec<_>>(), [1..2, 60..PAGE_BLOCKS + 3]);
        assert!(set.contains(PAGE_BLOCKS + 2) && !set.contains(PAGE_BLOCKS + 3) && !set.contains(59));
        set.remove(0..u64::MAX);
        assert!(set.is_empty());
    }

    proptest! {
        #[test]
        fn it_is_what_a_set_of_numbers_is(acts in proptest::collection::vec((any::<bool>(), 0..40_000u64, 0..300u64), 0..30)) {
            let (mut set, mut model) = (BlockSet::default(), std::collections::BTreeSet::new());
            for (add, start, len) in acts {
                if add {
                    set.insert(start..start + len);
                    model.extend(start..start + len);
                } else {
                    set.remove(start..start + len);
                    model.retain(|block| !(start..start + len).contains(block));
                }
            }
            prop_assert_eq!(set.runs().flatten().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
            let mut twice = set.clone();
            twice.extend(&set);
            prop_assert_eq!(&twice, &set);
            twice.subtract(&set);
            prop_assert!(twice.is_empty());
        }
    }
}
