//! A set of blocks of one file. Neither long runs nor scattered blocks nor every other block cost much memory: a run of any
//! length costs what one block costs, and many short runs side by side cost a bit a block.

use std::collections::BTreeMap;
use std::ops::Range;

/// Blocks of one page: 64 MiB of the file, 2 KiB of memory as bits.
const PAGE_BLOCKS: u64 = 16_384;
const WORDS: usize = (PAGE_BLOCKS / 64) as usize;
/// Most runs that begin in a page before it is kept as bits: so many take as much memory as the bits.
const PAGE_RUNS_MAX: usize = 64;
/// Runs in a page of bits at which it is kept as runs again.
const DENSE_RUNS_MIN: u32 = PAGE_RUNS_MAX as u32 / 2;

type Words = Box<[u64; WORDS]>;

/// See the module.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(from = "Vec<Range<u64>>", into = "Vec<Range<u64>>")]
pub struct BlockSet {
    /// Runs, from start to end, that do not touch each other; none reaches into a dense page.
    runs: BTreeMap<u64, u64>,
    /// Pages of many short runs: a bit a block.
    dense: BTreeMap<u64, Words>,
}

impl BlockSet {
    /// Whether there is no block in it.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.dense.is_empty()
    }

    /// Whether `block` is in it.
    pub fn contains(&self, block: u64) -> bool {
        if let Some(words) = self.dense.get(&(block / PAGE_BLOCKS)) {
            let at = block % PAGE_BLOCKS;
            return words[(at / 64) as usize] >> (at % 64) & 1 == 1;
        }
        self.runs.range(..=block).next_back().is_some_and(|(_, end)| *end > block)
    }

    /// Puts all `blocks` into it.
    pub fn insert(&mut self, blocks: Range<u64>) {
        let mut from = blocks.start;
        for key in self.dense_pages(&blocks) {
            let within = common(&blocks, &page(key));
            if within == page(key) {
                // It becomes a piece of the run.
                self.dense.remove(&key);
                continue;
            }
            if let Some(words) = self.dense.get_mut(&key) {
                masks(key, &within).for_each(|(word, mask)| words[word] |= mask);
            }
            self.add_run(from..within.start);
            from = within.end;
            self.make_sparse_if_few(key);
        }
        self.add_run(from..blocks.end);
    }

    /// Takes all `blocks` out of it.
    pub fn remove(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        self.take_runs(&blocks, |_| ());
        self.make_dense_if_many(blocks.end / PAGE_BLOCKS);
        for key in self.dense_pages(&blocks) {
            let Some(words) = self.dense.get_mut(&key) else { continue };
            masks(key, &common(&blocks, &page(key))).for_each(|(word, mask)| words[word] &= !mask);
            self.make_sparse_if_few(key);
        }
    }

    /// Puts all of `other` into it.
    pub fn extend(&mut self, other: &BlockSet) {
        other.runs.iter().for_each(|(&start, &end)| self.insert(start..end));
        for (&key, more) in &other.dense {
            self.make_dense(key).iter_mut().zip(more.iter()).for_each(|(word, more)| *word |= more);
            self.make_sparse_if_few(key);
        }
    }

    /// Takes all of `other` out of it.
    pub fn subtract(&mut self, other: &BlockSet) {
        other.runs().for_each(|run| self.remove(run));
    }

    /// Its blocks in order, as runs that do not touch.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut sparse = self.runs.iter().map(|(&start, &end)| start..end).peekable();
        let mut dense = self.dense.iter().flat_map(|(&key, words)| dense_runs(key, words)).peekable();
        let both = std::iter::from_fn(move || match (sparse.peek(), dense.peek()) {
            (Some(run), Some(other)) if other.start < run.start => dense.next(),
            (Some(_), _) => sparse.next(),
            (None, _) => dense.next(),
        });
        let mut both = both.peekable();
        std::iter::from_fn(move || {
            let mut run = both.next()?;
            while let Some(next) = both.next_if(|next| next.start == run.end) {
                run.end = next.end;
            }
            Some(run)
        })
    }

    /// The dense pages that have a block of `blocks`.
    fn dense_pages(&self, blocks: &Range<u64>) -> Vec<u64> {
        if blocks.is_empty() {
            return Vec::new();
        }
        let keys = blocks.start / PAGE_BLOCKS..=(blocks.end - 1) / PAGE_BLOCKS;
        self.dense.range(keys).map(|(&key, _)| key).collect()
    }

    /// Adds a run that has no block of a dense page.
    fn add_run(&mut self, mut run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        let last = |runs: &BTreeMap<u64, u64>, run: &Range<u64>| {
            let (&start, &end) = runs.range(..=run.end).next_back()?;
            (end >= run.start).then_some((start, end))
        };
        // Those that it touches or has blocks of become one with it.
        while let Some((start, end)) = last(&self.runs, &run) {
            self.runs.remove(&start);
            run = run.start.min(start)..run.end.max(end);
        }
        self.runs.insert(run.start, run.end);
        self.make_dense_if_many(run.start / PAGE_BLOCKS);
    }

    /// Takes `blocks` out of the runs, and tells which of them were there.
    fn take_runs(&mut self, blocks: &Range<u64>, mut taken: impl FnMut(Range<u64>)) {
        while let Some((&start, &end)) =
            self.runs.range(..blocks.end).next_back().filter(|(_, end)| **end > blocks.start)
        {
            self.runs.remove(&start);
            if start < blocks.start {
                self.runs.insert(start, blocks.start);
            }
            if end > blocks.end {
                self.runs.insert(blocks.end, end);
            }
            taken(common(&(start..end), blocks));
        }
    }

    /// To be called for the page in which a run has a new start.
    fn make_dense_if_many(&mut self, key: u64) {
        if self.runs.range(page(key)).count() > PAGE_RUNS_MAX {
            self.make_dense(key);
        }
    }

    /// Keeps a page as bits, if it is not; these are to be thinned when they were changed.
    fn make_dense(&mut self, key: u64) -> &mut Words {
        let mut words = self.dense.remove(&key).unwrap_or_else(|| Box::new([0; WORDS]));
        self.take_runs(&page(key), |run| masks(key, &run).for_each(|(word, mask)| words[word] |= mask));
        self.dense.entry(key).or_insert(words)
    }

    /// To be called for a dense page that was changed: none, all or large pieces of it may be there now.
    fn make_sparse_if_few(&mut self, key: u64) {
        if self.dense.get(&key).is_some_and(|words| run_count(words) <= DENSE_RUNS_MIN)
            && let Some(words) = self.dense.remove(&key)
        {
            dense_runs(key, &words).for_each(|run| self.add_run(run));
        }
    }
}

impl From<Vec<Range<u64>>> for BlockSet {
    fn from(runs: Vec<Range<u64>>) -> Self {
        let mut set = Self::default();
        runs.into_iter().filter(|run| !run.is_empty()).for_each(|run| set.insert(run));
        set
    }
}

impl From<BlockSet> for Vec<Range<u64>> {
    fn from(set: BlockSet) -> Self {
        set.runs().collect()
    }
}

/// Sets of the same blocks are equal, however they came about.
impl PartialEq for BlockSet {
    fn eq(&self, other: &Self) -> bool {
        self.runs().eq(other.runs())
    }
}

impl Eq for BlockSet {}

/// The blocks of a page.
fn page(key: u64) -> Range<u64> {
    let first = key * PAGE_BLOCKS;
    first..first.saturating_add(PAGE_BLOCKS)
}

/// The blocks that both have, of which there must be some.
fn common(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// The words of page `key` that have bits of `within`, a range of its blocks, and these bits.
fn masks(key: u64, within: &Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
    let first = page(key).start;
    let (start, end) = (within.start - first, within.end - first);
    (start / 64..end.div_ceil(64)).map(move |word| {
        let up_to = |n: u64| if n >= 64 { u64::MAX } else { (1 << n) - 1 };
        (word as usize, up_to(end - word * 64) & !up_to(start.saturating_sub(word * 64)))
    })
}

/// The runs of set bits in the words of page `key`, cut where words end.
fn dense_runs(key: u64, words: &[u64; WORDS]) -> impl Iterator<Item = Range<u64>> + '_ {
    let firsts = (page(key).start..).step_by(64);
    firsts.zip(words).flat_map(|(first, word)| word_runs(first, *word))
}

/// Number of runs of set bits, over the ends of words.
fn run_count(words: &[u64; WORDS]) -> u32 {
    let mut before = 0;
    let starts = words.iter().map(|word| {
        let starts = word & !(word << 1 | before);
        before = word >> 63;
        starts.count_ones()
    });
    starts.sum()
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

    /// Pages that are kept as bits, and runs beside them.
    fn kept(set: &BlockSet) -> (usize, usize) {
        (set.dense.len(), set.runs.len())
    }

    #[test]
    fn a_run_of_any_length_takes_as_much_memory_as_one_block() {
        let mut set = BlockSet::default();
        set.insert(7..84_294_967_296);
        set.insert(0..3);
        assert_eq!(kept(&set), (0, 2));
        assert!(set.contains(84_294_967_295) && !set.contains(84_294_967_296));
        set.insert(3..u64::MAX);
        assert!(set.runs().eq(std::iter::once(0..u64::MAX)));
        set.remove(5 * PAGE_BLOCKS + 9..6 * PAGE_BLOCKS);
        assert_eq!(set.runs().collect::<Vec<_>>(), [0..5 * PAGE_BLOCKS + 9, 6 * PAGE_BLOCKS..u64::MAX]);
        let mut other = BlockSet::default();
        other.insert(5 * PAGE_BLOCKS..7 * PAGE_BLOCKS);
        set.extend(&other);
        set.subtract(&other);
        assert_eq!(kept(&set), (0, 2));
    }

    #[test]
    fn scattered_blocks_of_a_huge_file_take_no_page_each() {
        let mut set = BlockSet::default();
        let blocks: Vec<u64> = (0..10_000).map(|i| i * 74_331 * PAGE_BLOCKS / 97).collect();
        blocks.iter().for_each(|&block| set.insert(block..block + 1));
        assert_eq!(kept(&set), (0, blocks.len()));
        assert_eq!(set.runs().map(|run| run.start).collect::<Vec<_>>(), blocks);
    }

    #[test]
    fn every_other_block_takes_a_bit_a_block_and_filling_the_gaps_makes_one_run() {
        let mut set = BlockSet::default();
        let end = 4 * PAGE_BLOCKS;
        (0..end).step_by(2).for_each(|block| set.insert(block..block + 1));
        assert_eq!(kept(&set), (4, 0));
        let mut copy = BlockSet::default();
        copy.insert(PAGE_BLOCKS..2 * PAGE_BLOCKS);
        copy.extend(&set);
        assert_eq!(kept(&copy), (3, 1), "a page that is full needs no bits");
        (1..end).step_by(2).for_each(|block| set.insert(block..block + 1));
        assert_eq!(kept(&set), (0, 1));
        assert!(set.runs().eq(std::iter::once(0..end)));
        (0..end).step_by(2).for_each(|block| set.remove(block..block + 1));
        assert_eq!(kept(&set), (4, 0));
        set.remove(1..end - 1);
        assert_eq!(kept(&set), (0, 1), "a page of one block needs no bits");
    }

    /// Acts near the borders of pages, over many pages, and so many in one page that it becomes dense.
    fn acts() -> impl Strategy<Value = Vec<(bool, u64, u64)>> {
        let near = (0..5u64, 0..400u64).prop_map(|(page, at)| (page * PAGE_BLOCKS + at).saturating_sub(200));
        let act = prop_oneof![
            (any::<bool>(), 0..40_000u64, 0..300u64),
            (any::<bool>(), near, prop_oneof![Just(PAGE_BLOCKS), 0..300u64, 0..4 * PAGE_BLOCKS]),
        ];
        // A comb: single blocks, `gap` apart.
        let comb = (any::<bool>(), 0..3 * PAGE_BLOCKS, 2..100u64, 1..200u64)
            .prop_map(|(add, start, gap, count)| (0..count).map(|i| (add, start + i * gap, 1)).collect::<Vec<_>>());
        let some = prop_oneof![4 => act.prop_map(|act| vec![act]), 1 => comb];
        proptest::collection::vec(some, 0..20).prop_map(|acts| acts.concat())
    }

    /// What must hold between the two forms.
    fn check_forms(set: &BlockSet) {
        let runs: Vec<_> = set.runs.iter().map(|(&start, &end)| start..end).collect();
        assert!(runs.iter().all(|run| !run.is_empty()) && runs.windows(2).all(|two| two[0].end < two[1].start));
        for (&key, words) in &set.dense {
            let beside = |run: &Range<u64>| run.end <= page(key).start || run.start >= page(key).end;
            assert!(runs.iter().all(beside), "a run within a dense page");
            assert!(run_count(words) > DENSE_RUNS_MIN, "bits for few runs");
        }
        for key in runs.iter().map(|run| run.start / PAGE_BLOCKS) {
            // A page beside one that became dense may have one more.
            assert!(set.runs.range(page(key)).count() <= PAGE_RUNS_MAX + 1, "many runs without bits");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn it_is_what_a_set_of_numbers_is(acts in acts(), more in acts()) {
            let fold = |acts: Vec<(bool, u64, u64)>| {
                let (mut set, mut model) = (BlockSet::default(), vec![false; 9 * PAGE_BLOCKS as usize]);
                for (i, (add, start, len)) in acts.into_iter().enumerate() {
                    if add {
                        set.insert(start..start + len);
                    } else {
                        set.remove(start..start + len);
                    }
                    model[start as usize..(start + len) as usize].fill(add);
                    if i % 16 == 0 {
                        check_forms(&set);
                    }
                }
                check_forms(&set);
                (set, model)
            };
            let runs_of = |model: &[bool]| {
                let runs = model.chunk_by(|a, b| a == b).scan(0, |at, run| {
                    let start = *at;
                    *at += run.len() as u64;
                    Some((run[0], start..*at))
                });
                runs.filter(|(held, _)| *held).map(|(_, run)| run).collect::<Vec<_>>()
            };
            let ((set, model), (other, other_model)) = (fold(acts), fold(more));
            prop_assert_eq!(set.runs().collect::<Vec<_>>(), runs_of(&model));
            for block in (0..model.len()).step_by(61) {
                prop_assert_eq!(set.contains(block as u64), model[block]);
            }
            let (mut both, mut rest) = (set.clone(), set.clone());
            both.extend(&other);
            rest.subtract(&other);
            check_forms(&both);
            check_forms(&rest);
            let with = |f: fn(bool, bool) -> bool| {
                model.iter().zip(&other_model).map(|(a, b)| f(*a, *b)).collect::<Vec<_>>()
            };
            prop_assert_eq!(both.runs().collect::<Vec<_>>(), runs_of(&with(|a, b| a || b)));
            prop_assert_eq!(rest.runs().collect::<Vec<_>>(), runs_of(&with(|a, b| a && !b)));
            let mut again = BlockSet::default();
            set.runs().for_each(|run| again.insert(run));
            prop_assert_eq!(&again, &set);
            again.subtract(&set);
            prop_assert!(again.is_empty());
        }
    }
}
