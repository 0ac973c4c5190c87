//! One directory as its listing pages show it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hashbrown::HashTable;

use crate::bos::client::{ListPage, ListedObject};
use crate::object::{ETag, NAME_BYTES_MAX};

/// What a listing says of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// A common prefix: a directory.
    Dir,
    /// An object: a file or a symbolic link, which a listing does not tell apart.
    Object {
        /// Size in bytes.
        size: u64,
        /// Which content.
        etag: ETag,
        /// Seconds since 1970.
        last_modified: i64,
    },
    /// Known to this mount only (being written, or a directory whose last child went).
    Local {
        /// Whether it is a directory.
        dir: bool,
    },
}

/// One name of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEntry {
    /// The name.
    pub name: Arc<str>,
    /// What it is.
    pub listed: Listed,
}

/// Why a listed key is no entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadowed {
    /// The key (or common prefix) as listed.
    pub key: String,
    /// For people.
    pub reason: &'static str,
}

/// Where the next page of a listing begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextPage {
    /// At the start.
    First,
    /// After this marker, as BOS gave it.
    After(String),
    /// Nowhere: the listing is complete.
    End,
}

/// What comes in a listing from some place on.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// These entries, each with its place.
    Entries(Vec<(Place, ListedEntry)>),
    /// The entries of a page that was let go: it must be fetched again.
    Again(usize),
    /// Pages that were not fetched yet.
    More,
    /// Nothing.
    End,
}

/// The place of an entry: page and index in it. Stays what it is, whatever comes and goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

impl Place {
    const INDEX_BITS: u32 = 32;

    fn new(page: usize, index: usize) -> Self {
        Self((page as u64) << Self::INDEX_BITS | index as u64)
    }

    /// The place with this number, as [`number`](Self::number) gives it.
    pub fn numbered(number: u64) -> Self {
        Self(number)
    }

    /// A number that grows from entry to entry.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The place right behind.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Which page it is on.
    pub fn page(self) -> usize {
        usize::try_from(self.0 >> Self::INDEX_BITS).unwrap_or(usize::MAX)
    }

    fn index(self) -> usize {
        (self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize
    }
}

/// The entries of one directory, as far as they were fetched: page by page, so that pages that were read can be let go
/// ([`drop_pages`](Self::drop_pages)) and fetched again by their markers. Pages are only ever added at the end, and an entry
/// keeps its place.
#[derive(Clone, Debug)]
pub struct Listing {
    prefix: String,
    /// Exclusive start, a key; `None`: all from the beginning.
    after: Option<String>,
    /// The directory's own marker, where it was listed.
    marker: Option<ListedObject>,
    /// Whether keys came in the order that the markers of pages imply (bytes of UTF-8).
    ordered: bool,
    pages: Vec<Page>,
    next: NextPage,
    /// Names listed last that later keys may name again: those that the last key begins with. `a` stays here as long as keys
    /// come that may have `a/` behind them.
    recurring: Vec<Arc<str>>,
    /// Objects on pages that were let go which turned out to be hidden by directories.
    hidden: HashSet<Arc<str>>,
    /// Last key of the last page.
    last_key: String,
    /// Place of the entry whose attributes a program that goes through the listing asks for next.
    expected: Place,
    /// How many attributes were fetched together the last time.
    run: usize,
    /// Memory of the pages, roughly.
    bytes: u64,
    /// That of pages which are here.
    here_bytes: u64,
    charge: Charge,
}

/// One answer of BOS, or (the last one) entries that only this mount knows.
#[derive(Clone, Debug)]
struct Page {
    /// Its keys come after this one.
    start: Option<Box<str>>,
    asked_at: Instant,
    /// Fetched again, so that names that came since are not on it.
    again: bool,
    /// Not of BOS, cannot be fetched.
    local: bool,
    kept: Kept,
}

#[derive(Clone, Debug)]
enum Kept {
    Here(Arc<Entries>),
    /// Let go; hashes of the names in their order, by which the places are found again.
    Gone(Option<Arc<[u32]>>),
}

/// Entries of a page in the order of their keys, and by name.
#[derive(Clone, Debug, Default)]
struct Entries {
    /// `None`: gone since the page was first fetched.
    list: Vec<Option<ListedEntry>>,
    index: HashTable<u32>,
    bytes: u64,
}

impl Entries {
    fn with_capacity(count: usize) -> Self {
        Self { list: Vec::with_capacity(count), index: HashTable::with_capacity(count), bytes: 0 }
    }

    fn at(&self, name: &str) -> Option<usize> {
        let is_it = |at: &u32| self.list[*at as usize].as_ref().is_some_and(|entry| *entry.name == *name);
        self.index.find(name_hash(name), is_it).map(|at| *at as usize)
    }

    fn push(&mut self, entry: Option<ListedEntry>) {
        if let Some(entry) = &entry {
            self.bytes += entry_bytes(entry);
            let list = &self.list;
            let hash_of = |at: &u32| list[*at as usize].as_ref().map_or(0, |entry| name_hash(&entry.name));
            self.index.insert_unique(name_hash(&entry.name), list.len() as u32, hash_of);
        }
        self.list.push(entry);
    }
}

/// Attributes fetched together at most.
const RUN_MAX: usize = 32;
/// Entries that a program may skip and still be taken for one that goes through the listing.
const SKIP_MAX: usize = 4;
/// Hidden objects that are remembered of pages that were let go.
const HIDDEN_MAX: usize = 1000;
/// Memory of an entry besides its name and its ETag, bytes: its place in the list and in the index, and two counted strings.
const ENTRY_BYTES: usize = size_of::<ListedEntry>() + 8 + 2 * 24;
/// Memory of a page besides its entries, bytes.
const PAGE_BYTES: usize = size_of::<Page>() + 64;

fn entry_bytes(entry: &ListedEntry) -> u64 {
    let etag = if let Listed::Object { etag, .. } = &entry.listed { etag.as_str().len() } else { 0 };
    (ENTRY_BYTES + entry.name.len() + etag) as u64
}

/// FNV-1a with a final mix. Names of one directory only: equal hashes cost time, never a wrong answer of `find`.
fn name_hash(name: &str) -> u64 {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// What is kept of a name whose page was let go.
fn sketch_of(name: &str) -> u32 {
    (name_hash(name) >> 32) as u32
}

impl Listing {
    /// A listing of the keys under `prefix` (empty, or ending in `/`), nothing fetched yet.
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            after: None,
            marker: None,
            ordered: true,
            pages: Vec::new(),
            next: NextPage::First,
            recurring: Vec::new(),
            hidden: HashSet::new(),
            last_key: String::new(),
            expected: Place::default(),
            run: 0,
            bytes: 0,
            here_bytes: 0,
            charge: Charge::default(),
        }
    }

    /// A complete listing without entries: a directory made at `at`.
    pub fn empty(prefix: &str, at: Instant) -> Self {
        let kept = Kept::Here(Arc::default());
        let page = Page { start: None, asked_at: at, again: false, local: false, kept };
        let mut listing = Self { next: NextPage::End, ..Self::new(prefix) };
        listing.push(page);
        listing
    }

    /// A listing of what comes after the key `after`, nothing fetched yet.
    pub fn starting_after(prefix: &str, after: &str) -> Self {
        Self { after: Some(after.to_owned()), next: NextPage::After(after.to_owned()), ..Self::new(prefix) }
    }

    /// The same listing; its memory counts in `budget` from now on.
    #[must_use]
    pub fn counted(mut self, budget: &Arc<ListingBudget>) -> Self {
        self.charge = Charge { budget: Some(budget.clone()), bytes: 0 };
        self.charge.set(self.bytes);
        self
    }

    /// Whether it begins with the first key.
    pub fn from_start(&self) -> bool {
        self.after.is_none()
    }

    /// The marker of the directory itself. Known once the first page is there.
    pub fn marker(&self) -> Option<&ListedObject> {
        self.marker.as_ref()
    }

    /// Whether some key is under the prefix, as far as fetched.
    pub fn proves_existence(&self) -> bool {
        let has_entries = |page: &Page| match &page.kept {
            Kept::Here(entries) => !entries.list.is_empty(),
            Kept::Gone(sketch) => sketch.as_ref().is_none_or(|sketch| !sketch.is_empty()),
        };
        self.marker.is_some() || self.pages.iter().any(has_entries)
    }

    /// The common prefix of its keys.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A copy with what BOS listed only, as fetched; `None` where something else is in it, or something was let go.
    pub fn pristine(&self) -> Option<Self> {
        let whole = |page: &Page| matches!(page.kept, Kept::Here(_)) && !page.local && !page.again;
        self.pages.iter().all(whole).then(|| Self { expected: Place::default(), run: 0, ..self.clone() })
    }

    /// Whether an entry of this name was listed and is still here.
    pub fn contains(&self, name: &str) -> bool {
        self.place_of(name).is_some()
    }

    /// The entries that are here, in order.
    pub fn entries(&self) -> impl Iterator<Item = &ListedEntry> {
        self.pages.iter().filter_map(|page| page.entries()).flat_map(|entries| entries.list.iter().flatten())
    }

    /// Memory of the listing, roughly, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the next page begins.
    pub fn next(&self) -> &NextPage {
        &self.next
    }

    /// When the first page was asked for.
    pub fn asked_at(&self) -> Option<Instant> {
        self.pages.first().map(|page| page.asked_at)
    }

    /// Number of pages, also of those that were let go.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Entries of the page that was added last.
    pub fn last_page(&self) -> impl Iterator<Item = &ListedEntry> {
        let entries = self.pages.last().and_then(Page::entries);
        entries.into_iter().flat_map(|entries| entries.list.iter().flatten())
    }

    /// Memory of what is kept of pages that were let go, bytes.
    pub fn gone_bytes(&self) -> u64 {
        self.bytes - self.here_bytes
    }

    /// Whether pages were let go.
    pub fn has_gaps(&self) -> bool {
        self.pages.iter().any(|page| page.entries().is_none())
    }

    /// What the listing says of `name`, and since when: `Some(None)` is a sure no, `None` is no answer.
    pub fn find(&self, name: &str) -> Option<(Option<&Listed>, Instant)> {
        match self.place_of(name).and_then(|place| self.get(place)) {
            Some((page, entry)) => {
                // An object may yet turn out to be hidden by a directory of the same name.
                let sure = !matches!(entry.listed, Listed::Object { .. }) || self.covers(name);
                sure.then_some((Some(&entry.listed), page.asked_at))
            }
            None if self.covers(name) => Some((None, self.asked_at()?)),
            None => None,
        }
    }

    /// Whether all that can be under `name` was listed, and is here: the key itself, and keys that make a directory of it.
    fn covers(&self, name: &str) -> bool {
        let from_there = self.after.as_ref().is_none_or(|after| {
            let rest = after.strip_prefix(&self.prefix);
            rest.map_or_else(|| *after < self.prefix, |rest| rest < name)
        });
        let reached = match &self.next {
            NextPage::First => false,
            NextPage::End => self.ordered || self.after.is_none(),
            NextPage::After(last) => {
                let Some(last) = last.strip_prefix(&self.prefix) else { return false };
                let below = last.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
                // Compared as the key with a `/` behind it: `a-b` comes before `a/`.
                let passed = last.as_bytes().iter().cmp(name.as_bytes().iter().chain(b"/")).is_gt();
                self.ordered && passed && !below
            }
        };
        let here = |page: &Page| !page.again && page.entries().is_some();
        from_there && reached && self.pages[self.page_numbers(name)].iter().all(here)
    }

    /// Pages of BOS; behind them there may be one of local entries.
    fn remote(&self) -> usize {
        self.pages.len() - usize::from(self.pages.last().is_some_and(|page| page.local))
    }

    /// The pages of BOS on which `name` can be.
    fn page_numbers(&self, name: &str) -> Range<usize> {
        let remote = self.remote();
        if !self.ordered {
            return 0..remote;
        }
        // The last page that begins before the key.
        let page_of = |key: &str| {
            let before = |page: &Page| page.start.as_deref().is_none_or(|start| start < key);
            self.pages[..remote].partition_point(before).saturating_sub(1)
        };
        let key = format!("{}{name}", self.prefix);
        page_of(&key)..(page_of(&format!("{key}/")) + 1).min(remote)
    }

    fn place_of(&self, name: &str) -> Option<Place> {
        let find = |page: usize| Some(Place::new(page, self.pages[page].entries()?.at(name)?));
        self.page_numbers(name).chain(self.remote()..self.pages.len()).find_map(find)
    }

    fn get(&self, place: Place) -> Option<(&Page, &ListedEntry)> {
        let page = self.pages.get(place.page())?;
        Some((page, page.entries()?.list.get(place.index())?.as_ref()?))
    }

    /// Up to `max` entries from `place` on, as far as they are here.
    pub fn read(&self, place: Place, max: usize) -> Step {
        let mut found = Vec::new();
        let (mut number, mut index) = (place.page(), place.index());
        while let Some(page) = self.pages.get(number) {
            let Some(entries) = page.entries() else {
                return if found.is_empty() { Step::Again(number) } else { Step::Entries(found) };
            };
            for (at, entry) in entries.list.iter().enumerate().skip(index) {
                if let Some(entry) = entry {
                    found.push((Place::new(number, at), entry.clone()));
                    if found.len() == max {
                        return Step::Entries(found);
                    }
                }
            }
            (number, index) = (number + 1, 0);
        }
        match &self.next {
            _ if !found.is_empty() => Step::Entries(found),
            NextPage::End => Step::End,
            NextPage::First | NextPage::After(_) => Step::More,
        }
    }

    /// Up to `max` entries from the one called `name` on, on its page.
    fn behind(&self, name: &str, max: usize) -> Vec<ListedEntry> {
        let Some(place) = self.place_of(name) else { return Vec::new() };
        let Some(entries) = self.pages[place.page()].entries() else { return Vec::new() };
        entries.list[place.index()..].iter().flatten().take(max).cloned().collect()
    }

    /// The attributes of `name` must be fetched: which entries to fetch with it, `name` first. Programs that go through a
    /// listing (`ls -l`, rsync) ask one by one; from the second on, more and more are fetched side by side.
    pub fn attribute_run(&mut self, name: &str) -> Vec<ListedEntry> {
        let Some(place) = self.place_of(name) else { return Vec::new() };
        let expected = self.expected.number();
        // The first entry of a page comes behind the last one of the page before.
        let turned = place.index() <= SKIP_MAX && place.page() == self.expected.page() + 1;
        let in_turn = self.run > 0 && ((expected..=expected + SKIP_MAX as u64).contains(&place.number()) || turned);
        self.run = if in_turn { (self.run * 2).min(RUN_MAX) } else { 1 };
        self.expected = Place::numbered(place.number() + self.run as u64);
        self.behind(name, self.run)
    }

    /// Adds the page that was asked for at `at`. Returns the keys that are no entries.
    pub fn add_page(&mut self, page: ListPage, at: Instant) -> Vec<Shadowed> {
        let start = match &self.next {
            NextPage::After(marker) => Some(marker.as_str().into()),
            NextPage::First | NextPage::End => None,
        };
        self.ordered &= page.objects.is_sorted_by(|a, b| a.key < b.key) && page.prefixes.is_sorted();
        let next = page.next_marker.clone();
        let (found, marker) = sorted(page, &self.prefix);
        self.marker = marker.or(self.marker.take());
        if let (Some((first, _)), Some((last, _))) = (found.first(), found.last()) {
            // A common prefix may come again on the next page.
            self.ordered &= *first >= self.last_key;
            self.last_key.clone_from(last);
        }
        let mut shadowed = Vec::new();
        let mut entries = Entries::with_capacity(found.len());
        for (key, listed) in found {
            match name_of(&key, &listed, &self.prefix) {
                Ok(name) => {
                    if let Some(reason) = self.add(&mut entries, name, listed) {
                        shadowed.push(Shadowed { key: key.trim_end_matches('/').to_owned(), reason });
                    }
                }
                Err(reason) => shadowed.push(Shadowed { key, reason }),
            }
        }
        let kept = Kept::Here(Arc::new(entries));
        self.push(Page { start, asked_at: at, again: false, local: false, kept });
        self.next = next.map_or(NextPage::End, NextPage::After);
        shadowed
    }

    fn add(&mut self, entries: &mut Entries, name: &str, listed: Listed) -> Option<&'static str> {
        const REASON: &str = "a directory of the same name hides this object";
        while self.recurring.last().is_some_and(|before| !name.starts_with(&**before)) {
            self.recurring.pop();
        }
        let is_dir = listed == Listed::Dir;
        let known = match self.ordered {
            true => self.recurring.last().is_some_and(|before| **before == *name),
            false => entries.at(name).is_some() || self.place_of(name).is_some(),
        };
        if !known {
            let name: Arc<str> = name.into();
            self.recurring.push(name.clone());
            entries.push(Some(ListedEntry { name, listed }));
            return None;
        }
        let place = self.place_of(name);
        let earlier = match entries.at(name) {
            Some(at) => entries.list[at].as_mut(),
            None => place.and_then(|place| match &mut self.pages.get_mut(place.page())?.kept {
                Kept::Here(entries) => Arc::make_mut(entries).list[place.index()].as_mut(),
                Kept::Gone(_) => None,
            }),
        };
        let Some(earlier) = earlier else {
            if is_dir && self.hidden.len() < HIDDEN_MAX {
                self.hidden.insert(name.into());
            }
            // Whether it was listed as a directory or as an object is not known any more; a page has at most one of each.
            return None;
        };
        let clash = (earlier.listed == Listed::Dir) != is_dir;
        if is_dir {
            earlier.listed = Listed::Dir;
        }
        clash.then_some(REASON)
    }

    /// Adds an entry that only this mount knows, unless the name is there already. `false`: it is, or it may have been on a
    /// page that was let go.
    pub fn add_local(&mut self, name: &str, dir: bool) -> bool {
        if self.contains(name) || self.may_have_had(name) {
            return false;
        }
        if !self.pages.last().is_some_and(|page| page.local) {
            let asked_at = self.pages.last().map_or_else(Instant::now, |page| page.asked_at);
            let kept = Kept::Here(Arc::default());
            self.push(Page { start: None, asked_at, again: false, local: true, kept });
        }
        if let Some(Page { kept: Kept::Here(entries), .. }) = self.pages.last_mut() {
            let before = entries.bytes;
            Arc::make_mut(entries).push(Some(ListedEntry { name: name.into(), listed: Listed::Local { dir } }));
            let added = entries.bytes - before;
            (self.bytes, self.here_bytes) = (self.bytes + added, self.here_bytes + added);
        }
        self.charge.set(self.bytes);
        true
    }

    fn may_have_had(&self, name: &str) -> bool {
        self.pages[self.page_numbers(name)].iter().any(|page| match &page.kept {
            Kept::Here(_) => false,
            Kept::Gone(Some(sketch)) => sketch.contains(&sketch_of(name)),
            Kept::Gone(None) => true,
        })
    }

    /// Lets pages go until the memory of the listing is at most `bytes`, or nothing more can go: first those furthest before
    /// `reading` and the page before it, which programs still ask for, then those behind. `sketches`: whether what is kept to
    /// find places again may go, too; a place on such a page is found by its number among the names that are there then.
    pub fn drop_pages(&mut self, reading: usize, bytes: u64, sketches: bool) {
        let behind = (reading.saturating_add(1)..self.pages.len()).rev();
        for number in (0..reading.saturating_sub(1).min(self.pages.len())).chain(behind) {
            let page = &self.pages[number];
            if self.bytes <= bytes {
                break;
            }
            // Of an empty page nothing is gained.
            if let Kept::Here(entries) = &page.kept
                && !page.local
                && !entries.list.is_empty()
            {
                let hash = |entry: &Option<ListedEntry>| entry.as_ref().map_or(0, |entry| sketch_of(&entry.name));
                let sketch = entries.list.iter().map(hash).collect();
                self.replace(number, Page { kept: Kept::Gone(Some(sketch)), ..page.clone() });
            }
        }
        for number in 0..if sketches { self.pages.len() } else { 0 } {
            let page = &self.pages[number];
            if self.bytes <= bytes {
                break;
            }
            if matches!(page.kept, Kept::Gone(Some(_))) {
                self.replace(number, Page { kept: Kept::Gone(None), ..page.clone() });
            }
        }
    }

    fn push(&mut self, page: Page) {
        self.bytes += page.bytes();
        self.here_bytes += page.here_bytes();
        self.pages.push(page);
        self.charge.set(self.bytes);
    }

    fn replace(&mut self, number: usize, page: Page) {
        let before = &self.pages[number];
        self.bytes = (self.bytes + page.bytes()).saturating_sub(before.bytes());
        self.here_bytes = (self.here_bytes + page.here_bytes()).saturating_sub(before.here_bytes());
        self.pages[number] = page;
        self.charge.set(self.bytes);
    }

    /// What to ask BOS for to have page `number` again: the marker before it. `None`: it is here, or not of BOS.
    pub fn start_of(&self, number: usize) -> Option<Option<&str>> {
        let page = self.pages.get(number).filter(|page| !page.local && page.entries().is_none())?;
        Some(page.start.as_deref())
    }

    /// Page `number`, asked for again at `at`, up to where the next one begins; `false`: the answers so far do not reach that
    /// far. Entries have the places that they had; what came since is left out.
    pub fn restore_page(&mut self, number: usize, answers: &[ListPage], at: Instant) -> bool {
        let end = match self.pages.get(number + 1) {
            Some(next) if !next.local => next.start.as_deref(),
            _ => match &self.next {
                NextPage::After(marker) => Some(marker.as_str()),
                NextPage::First | NextPage::End => None,
            },
        };
        let reached = match (answers.last().and_then(|page| page.next_marker.as_deref()), end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(next), Some(end)) => next >= end,
        };
        if !reached {
            return false;
        }
        let mut found = Vec::new();
        for page in answers {
            found.extend(sorted(page.clone(), &self.prefix).0);
        }
        found.retain(|(key, _)| end.is_none_or(|end| key.as_str() <= end));
        let mut names: Vec<ListedEntry> = Vec::with_capacity(found.len());
        for (key, listed) in found {
            let Ok(name) = name_of(&key, &listed, &self.prefix) else { continue };
            let listed = if self.hidden.contains(name) { Listed::Dir } else { listed };
            match names.iter_mut().rev().take_while(|before| name.starts_with(&*before.name)).find(|b| *b.name == *name)
            {
                Some(before) if listed == Listed::Dir => before.listed = Listed::Dir,
                Some(_) => {}
                None => names.push(ListedEntry { name: name.into(), listed }),
            }
        }
        let Some(page) = self.pages.get(number) else { return true };
        let Kept::Gone(sketch) = &page.kept else { return true };
        let mut entries = Entries::with_capacity(names.len());
        match sketch {
            None => names.into_iter().for_each(|entry| entries.push(Some(entry))),
            Some(sketch) => at_their_places(sketch, names).into_iter().for_each(|entry| entries.push(entry)),
        }
        let restored = Page { asked_at: at, again: true, kept: Kept::Here(Arc::new(entries)), ..page.clone() };
        self.replace(number, restored);
        true
    }
}

/// The names of a page that was fetched again, at the places that their hashes have in `sketch`. Both are in the order of keys.
fn at_their_places(sketch: &[u32], names: Vec<ListedEntry>) -> Vec<Option<ListedEntry>> {
    let mut places: Vec<Option<ListedEntry>> = vec![None; sketch.len()];
    let mut by_hash: HashMap<u32, VecDeque<usize>> = HashMap::new();
    for (at, hash) in sketch.iter().enumerate() {
        by_hash.entry(*hash).or_default().push_back(at);
    }
    for entry in names {
        if let Some(at) = by_hash.get_mut(&sketch_of(&entry.name)).and_then(VecDeque::pop_front) {
            places[at] = Some(entry);
        }
    }
    places
}

/// Keys and common prefixes of a page in one order, which BOS gives apart; and the marker of the directory itself, which is no
/// entry.
fn sorted(page: ListPage, prefix: &str) -> (Vec<(String, Listed)>, Option<ListedObject>) {
    let mut marker = None;
    let mut found: Vec<(String, Listed)> = Vec::with_capacity(page.objects.len() + page.prefixes.len());
    for object in page.objects {
        if object.key == prefix {
            marker = Some(object);
        } else {
            let listed = Listed::Object { size: object.size, etag: object.etag, last_modified: object.last_modified };
            found.push((object.key, listed));
        }
    }
    found.extend(page.prefixes.into_iter().map(|prefix| (prefix, Listed::Dir)));
    found.sort_by(|a, b| a.0.cmp(&b.0));
    (found, marker)
}

fn name_of<'a>(key: &'a str, listed: &Listed, prefix: &str) -> Result<&'a str, &'static str> {
    let rest = key.strip_prefix(prefix).ok_or("not under the listed prefix")?;
    let name = if *listed == Listed::Dir { rest.strip_suffix('/').unwrap_or(rest) } else { rest };
    check_name(name).map(|()| name)
}

impl Page {
    fn bytes(&self) -> u64 {
        let kept = match &self.kept {
            Kept::Here(entries) => entries.bytes,
            Kept::Gone(sketch) => sketch.as_ref().map_or(0, |sketch| 4 * sketch.len() as u64),
        };
        kept + (PAGE_BYTES + self.start.as_ref().map_or(0, |start| start.len())) as u64
    }

    fn here_bytes(&self) -> u64 {
        if self.entries().is_some() { self.bytes() } else { 0 }
    }

    fn entries(&self) -> Option<&Entries> {
        match &self.kept {
            Kept::Here(entries) => Some(entries),
            Kept::Gone(_) => None,
        }
    }
}

/// Memory of all listings of a mount.
#[derive(Debug)]
pub struct ListingBudget {
    bytes: AtomicU64,
    bytes_max: u64,
}

impl ListingBudget {
    /// Nothing is used of `bytes_max` yet.
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicU64::new(0), bytes_max })
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that may be in use.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// How many bytes too many are in use.
    pub fn surplus(&self) -> u64 {
        self.bytes().saturating_sub(self.bytes_max)
    }
}

/// What one listing takes of a budget; given back when it is dropped.
#[derive(Debug, Default)]
struct Charge {
    budget: Option<Arc<ListingBudget>>,
    bytes: u64,
}

impl Charge {
    fn set(&mut self, bytes: u64) {
        if let Some(budget) = &self.budget {
            budget.bytes.fetch_add(bytes, Ordering::Relaxed);
            budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
            self.bytes = bytes;
        }
    }
}

impl Clone for Charge {
    fn clone(&self) -> Self {
        let mut clone = Self { budget: self.budget.clone(), bytes: 0 };
        clone.set(self.bytes);
        clone
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// A key just before `name` in the directory with `prefix`: a listing that starts after it begins with `name`, or with
/// names that differ from it in the last character only. It is inside no common prefix, which would be left out then.
pub fn just_before(prefix: &str, name: &str) -> String {
    let mut rest = name.to_owned();
    let before = match rest.pop() {
        None | Some('\0'..=' ') => None,
        // `/` would begin another level.
        Some('0') => Some('.'),
        Some('\u{e000}') => Some('\u{d7ff}'),
        Some(last) => char::from_u32(u32::from(last) - 1),
    };
    rest.extend(before);
    if before.is_some() {
        // After all that begins so, as far as plain names go.
        rest.push('~');
    }
    format!("{prefix}{rest}")
}

/// Whether a key segment can be the name of an entry.
///
/// # Errors
/// Why not.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("a key with an empty segment cannot be a path"),
        "." | ".." => Err("a key with a `.` or `..` segment cannot be a path"),
        _ if name.len() > NAME_BYTES_MAX => Err("a name of a path has at most 255 bytes"),
        _ if name.contains(['\0', '/']) => Err("a name cannot contain NUL or `/`"),
        // A lossy decoder's sign for bytes that were not UTF-8: the true key is unknown.
        _ if name.contains('\u{fffd}') => Err("the key is not clean UTF-8"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bos::client::ListedObject;

    fn page(keys: &[&str], prefixes: &[&str], next: Option<&str>) -> ListPage {
        ListPage {
            objects: keys
                .iter()
                .map(|key| ListedObject {
                    key: (*key).to_owned(),
                    size: 3,
                    etag: ETag::new("e"),
                    last_modified: 1,
                    storage_class: None,
                })
                .collect(),
            prefixes: prefixes.iter().map(|p| (*p).to_owned()).collect(),
            next_marker: next.map(str::to_owned),
        }
    }

    fn names(listing: &Listing) -> Vec<&str> {
        listing.entries().map(|e| &*e.name).collect()
    }

    #[test]
    fn entries_come_in_the_order_of_keys_without_the_marker() {
        let mut listing = Listing::new("d/");
        let shadowed = listing.add_page(page(&["d/", "d/b", "d/z"], &["d/a/", "d/c/"], None), Instant::now());
        assert!(shadowed.is_empty());
        assert_eq!(names(&listing), ["a", "b", "c", "z"]);
        assert_eq!(listing.next(), &NextPage::End);
    }

    #[test]
    fn a_directory_wins_also_when_it_comes_on_a_later_page() {
        let mut listing = Listing::new("");
        assert!(listing.add_page(page(&["a", "a-b"], &[], Some("a-b")), Instant::now()).is_empty());
        let shadowed = listing.add_page(page(&[], &["a/"], None), Instant::now());
        assert_eq!(shadowed.len(), 1);
        assert_eq!(shadowed[0].key, "a");
        assert_eq!(names(&listing), ["a", "a-b"]);
        assert_eq!(listing.find("a").unwrap().0, Some(&Listed::Dir));
    }

    #[test]
    fn keys_that_are_no_names_are_told_and_left_out() {
        let mut listing = Listing::new("p/");
        let long = format!("p/{}", "n".repeat(256));
        let fits = format!("p/{}", "n".repeat(255));
        let keys = [long.as_str(), fits.as_str(), "p/..", "p/a\0b", "p/\u{fffd}"];
        let shadowed = listing.add_page(page(&keys, &["p//", "p/./"], None), Instant::now());
        assert_eq!(shadowed.len(), 6);
        assert_eq!(listing.entries().count(), 1);
    }

    #[test]
    fn only_a_complete_listing_denies() {
        let start = Instant::now();
        let mut listing = Listing::new("");
        assert_eq!(listing.find("x"), None);
        listing.add_page(page(&["a"], &[], Some("a")), start);
        assert_eq!(listing.find("x"), None);
        let later = start + std::time::Duration::from_secs(1);
        listing.add_page(page(&["b"], &[], None), later);
        assert_eq!(listing.find("a").unwrap().1, start);
        assert_eq!(listing.find("b").unwrap().1, later);
        assert_eq!(listing.find("x"), Some((None, start)));
    }

    #[test]
    fn a_window_answers_for_what_lies_fully_within_it() {
        let now = Instant::now();
        let mut window = Listing::starting_after("d/", "d/b");
        assert_eq!(window.find("c"), None, "nothing fetched");
        window.add_page(page(&["d/c", "d/c-", "d/e"], &["d/dir/"], Some("d/e")), now);
        assert_eq!(window.find("a"), None);
        assert_eq!(window.find("b"), None, "the start is exclusive");
        assert_eq!(window.find("b0"), Some((None, now)));
        assert!(matches!(window.find("c"), Some((Some(Listed::Object { .. }), _))));
        assert_eq!(window.find("dir"), Some((Some(&Listed::Dir), now)));
        assert_eq!(window.find("e"), None, "`e/` may come on the next page");
        assert_eq!(window.find("e0"), None);
        assert_eq!(window.find("d"), Some((None, now)), "`d/` lies before `e`");
        let mut end = Listing::starting_after("d/", "d/b");
        end.add_page(page(&["d/c"], &[], None), now);
        assert_eq!(end.find("zzz"), Some((None, now)));
        assert_eq!(end.find("a"), None);
    }

    #[test]
    fn a_name_is_denied_only_if_what_would_make_it_a_directory_was_passed() {
        let now = Instant::now();
        // Order of keys: "a" < "a-b" < "a/x" < "a0".
        let mut listing = Listing::new("");
        listing.add_page(page(&["a-a"], &[], Some("a-a")), now);
        assert_eq!(listing.find("a"), None, "`a/` lies behind `a-a`");
        let mut listing = Listing::new("");
        listing.add_page(page(&["a-a", "a0"], &[], Some("a0")), now);
        assert_eq!(listing.find("a"), Some((None, now)));
        // A marker of the next page inside the last common prefix.
        let mut listing = Listing::new("");
        listing.add_page(page(&[], &["a/"], Some("a/k")), now);
        assert_eq!(listing.find("a"), Some((Some(&Listed::Dir), now)));
    }

    #[test]
    fn a_listing_out_of_order_denies_nothing_until_it_is_complete() {
        let now = Instant::now();
        let mut listing = Listing::new("");
        listing.add_page(page(&["b", "a", "x"], &[], Some("x")), now);
        assert_eq!(listing.find("c"), None);
        listing.add_page(page(&[], &[], None), now);
        assert_eq!(listing.find("c"), Some((None, now)));
    }

    #[test]
    fn windows_begin_just_before_the_name() {
        for name in ["file-0010", "abc", "a", "0", " ", "\u{1}", "目录", "\u{e000}", "a b", "x/", "~", "!"] {
            let before = just_before("d/", name);
            assert!(before.starts_with("d/") && before.as_str() < format!("d/{name}").as_str(), "{name:?}: {before:?}");
            assert!(!before[2..].contains('/'), "{before:?} lies inside a common prefix");
        }
        assert_eq!(just_before("d/", "file-0010"), "d/file-001.~");
        assert_eq!(just_before("", "abc"), "abb~");
    }

    #[test]
    fn memory_is_counted_with_names_and_etags() {
        let mut listing = Listing::new("");
        listing.add_page(page(&["a", &"b".repeat(200)], &["c/"], None), Instant::now());
        assert_eq!(listing.bytes(), (PAGE_BYTES + 3 * ENTRY_BYTES + 202 + 2) as u64);
    }

    #[test]
    fn the_marker_is_known_apart() {
        let mut listing = Listing::new("d/");
        listing.add_page(page(&["d/"], &[], None), Instant::now());
        assert!(listing.proves_existence() && listing.entries().count() == 0);
        assert_eq!(listing.marker().unwrap().key, "d/");
        assert!(!Listing::empty("d/", Instant::now()).proves_existence());
    }

    #[test]
    fn attributes_are_fetched_together_for_those_who_go_through_the_listing() {
        let names: Vec<String> = (0..100).map(|i| format!("f{i:03}")).collect();
        let keys: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut listing = Listing::new("");
        listing.add_page(page(&keys, &[], None), Instant::now());
        let mut runs = Vec::new();
        let mut at = 0;
        while at < 100 {
            let run = listing.attribute_run(&names[at]);
            assert_eq!(&*run[0].name, names[at]);
            runs.push(run.len());
            at += run.len();
        }
        assert_eq!(runs, [1, 2, 4, 8, 16, 32, 32, 5]);
        assert_eq!(listing.attribute_run("f050").len(), 1, "a jump");
        assert_eq!(listing.attribute_run("f010").len(), 1);
        assert_eq!(listing.attribute_run("f013").len(), 2, "two were skipped");
        assert!(listing.attribute_run("absent").is_empty());
    }

    #[test]
    fn local_entries_come_behind_all_pages_and_only_once() {
        let mut listing = Listing::new("");
        listing.add_page(page(&["a", "b"], &[], None), Instant::now());
        assert!(!listing.add_local("b", false) && listing.add_local("c", true) && !listing.add_local("c", true));
        assert_eq!(names(&listing), ["a", "b", "c"]);
        assert_eq!(listing.find("c").unwrap().0, Some(&Listed::Local { dir: true }));
        assert_eq!(listing.find("d").unwrap().0, None);
        assert!(listing.pristine().is_none());
    }

    /// A listing of `pages` pages of ten files each, `f000` and so on.
    fn paged(pages: usize) -> Listing {
        let mut listing = Listing::new("d/");
        for number in 0..pages {
            listing.add_page(tens(number, (number + 1 < pages).then_some(number)), Instant::now());
        }
        listing
    }

    fn tens(number: usize, next: Option<usize>) -> ListPage {
        let keys: Vec<String> = (0..10).map(|i| format!("d/f{:03}", number * 10 + i)).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        page(&keys, &[], next.map(|_| keys[9]))
    }

    fn read_all(listing: &Listing, from: Place) -> (Vec<String>, Step) {
        let (mut place, mut all) = (from, Vec::new());
        loop {
            match listing.read(place, 7) {
                Step::Entries(entries) => {
                    place = entries.last().unwrap().0.next();
                    all.extend(entries.into_iter().map(|(_, entry)| entry.name.to_string()));
                }
                step => return (all, step),
            }
        }
    }

    #[test]
    fn pages_that_were_read_are_let_go_and_found_again_by_their_markers() {
        let mut listing = paged(20);
        let (all, end) = read_all(&listing, Place::default());
        assert_eq!((all.len(), end), (200, Step::End));
        let before = listing.bytes();
        listing.drop_pages(19, 0, false);
        assert!(listing.bytes() < before / 4, "{} of {before} bytes", listing.bytes());
        assert_eq!(listing.entries().count(), 20, "the page that is read and the one before it");
        assert_eq!(listing.read(Place::default(), 7), Step::Again(0));
        assert_eq!(listing.find("f005"), None, "no answer, neither yes nor no");
        assert_eq!(listing.find("f0055"), None);
        assert!(listing.find("f195").unwrap().0.is_some() && listing.pristine().is_none());
        assert_eq!(listing.start_of(7), Some(Some("d/f069")));
        assert_eq!(listing.start_of(19), None, "it is here");
        // Two went, one came, and the answer reaches into the next page.
        let mut again = tens(7, None);
        again.objects.retain(|object| !["d/f070", "d/f075"].contains(&object.key.as_str()));
        again.objects.extend(tens(8, None).objects);
        again.objects.insert(0, page(&["d/f0695"], &[], None).objects.remove(0));
        assert!(listing.restore_page(7, &[again], Instant::now()));
        let (some, step) = read_all(&listing, Place::new(7, 0));
        assert_eq!(some, ["f071", "f072", "f073", "f074", "f076", "f077", "f078", "f079"]);
        assert_eq!(step, Step::Again(8));
        assert_eq!(read_all(&listing, Place::new(7, 4)).0[..2], ["f074", "f076"], "places are what they were");
        assert_eq!(listing.find("f0695"), None, "what came since is not denied");
    }

    #[test]
    fn an_answer_that_does_not_reach_the_next_page_is_gone_on_with() {
        let mut listing = paged(3);
        listing.drop_pages(9, 0, false);
        let mut first = tens(1, None);
        let rest = first.objects.split_off(4);
        first.next_marker = Some("d/f013".to_owned());
        assert!(!listing.restore_page(1, &[first.clone()], Instant::now()));
        let second = ListPage { objects: rest, ..ListPage::default() };
        assert!(listing.restore_page(1, &[first, second], Instant::now()));
        assert_eq!(read_all(&listing, Place::new(1, 0)).0.len(), 10);
    }

    #[test]
    fn without_hashes_a_place_is_its_number_among_the_names_that_are_there() {
        let mut listing = paged(3);
        listing.drop_pages(9, 0, true);
        assert!(listing.bytes() < 1000, "{} bytes for 30 names", listing.bytes());
        assert!(listing.restore_page(1, &[tens(1, None)], Instant::now()));
        assert_eq!(read_all(&listing, Place::new(1, 8)).0, ["f018", "f019"]);
    }

    #[test]
    fn a_local_name_is_not_given_twice_because_its_page_was_let_go() {
        let mut listing = paged(3);
        listing.drop_pages(9, 0, false);
        assert!(!listing.add_local("f005", false) && listing.add_local("f0055", false));
        listing.drop_pages(9, 0, true);
        assert!(!listing.add_local("f0056", false), "it may have been there; a name that came since may be left out");
        assert_eq!(names(&listing), ["f0055"], "local entries stay");
    }

    #[test]
    fn a_directory_hides_an_object_also_when_its_page_was_let_go() {
        let mut listing = Listing::new("");
        listing.add_page(page(&["a", "a-b"], &[], Some("a-b")), Instant::now());
        listing.drop_pages(9, 0, false);
        listing.add_page(page(&["b"], &["a/"], None), Instant::now());
        assert_eq!(names(&listing), ["b"], "`a` was given already");
        assert!(listing.restore_page(0, &[page(&["a", "a-b"], &[], Some("a-b"))], Instant::now()));
        assert_eq!(listing.entries().next().unwrap().listed, Listed::Dir);
    }

    #[test]
    fn memory_of_listings_is_counted_together_and_given_back() {
        let budget = ListingBudget::new(10_000);
        let mut listing = paged(20).counted(&budget);
        assert_eq!((budget.bytes(), budget.surplus()), (listing.bytes(), listing.bytes() - 10_000));
        let copy = listing.pristine().unwrap();
        assert_eq!(budget.bytes(), 2 * listing.bytes());
        drop(copy);
        listing.drop_pages(19, 0, true);
        assert_eq!(budget.bytes(), listing.bytes());
        drop(listing);
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn an_entry_takes_less_than_two_hundred_bytes() {
        let budget = ListingBudget::new(0);
        let mut listing = Listing::new("d/").counted(&budget);
        let keys: Vec<String> = (0..1000).map(|i| format!("d/file-{i:06}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut page = page(&keys, &[], None);
        page.objects.iter_mut().for_each(|object| object.etag = ETag::new(&"e".repeat(32)));
        listing.add_page(page, Instant::now());
        assert!((120_000..200_000).contains(&budget.bytes()), "{}", budget.bytes());
        listing.drop_pages(9, 0, false);
        assert!(budget.bytes() < 4500, "{}", budget.bytes());
    }
}
