//! The listings that lookups are answered from, by directory, and when it pays to fetch another page.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::listing::{Listed, Listing, ListingBudget, NextPage};
use super::memory::Changes;

/// A listing shared by the handle that reads it and by lookups.
pub type SharedListing = Arc<Mutex<Listing>>;

/// Listings of one directory: those of open handles, and windows at the places where programs work.
const LISTINGS_PER_DIR: usize = 8;
/// How long a listing answers lookups while the program that reads it has it open: `ls -l` and rsync look up name after
/// name of it, which must not cost requests each once the time to live is over. An open of a file asks anew.
const OPEN_LISTING_TTL: Duration = Duration::from_secs(30);
/// A directory is busy while lookups that need a request follow each other within this time.
const BUSY_WITHIN: Duration = Duration::from_secs(5);
/// Windows in a row that answered nothing but what they were fetched for: lookups jump about, and each asks for itself.
const IDLE_WINDOWS_MAX: u32 = 3;

/// Which request a lookup should make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// About this one name.
    Single,
    /// A page that begins just before the name: others will follow.
    Window,
}

/// What a listing was fetched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A directory handle reads it.
    Handle,
    /// The directory itself was looked at, or made.
    Directory,
    /// A lookup in it.
    Lookup,
}

struct Page {
    listing: SharedListing,
    origin: Origin,
    /// Lookups answered.
    hits: u32,
}

impl Page {
    /// How long it is believed.
    fn ttl(&self, ttl: Duration) -> Duration {
        let is_open = self.origin == Origin::Handle && Arc::strong_count(&self.listing) > 1;
        if is_open && !ttl.is_zero() { ttl.max(OPEN_LISTING_TTL) } else { ttl }
    }

    fn is_fresh(&self, ttl: Duration, now: Instant) -> bool {
        let asked_at = self.listing.lock().asked_at();
        asked_at.is_none_or(|at| now.saturating_duration_since(at) < self.ttl(ttl))
    }
}

#[derive(Default)]
struct Dir {
    /// Newest last.
    pages: Vec<Page>,
    /// Last lookup that needed a request.
    asked: Option<Instant>,
    /// Windows in a row that were of no use.
    idle: u32,
    /// Whether one page does not hold all of it.
    large: bool,
}

/// Remembered listings by prefix.
pub struct Pages {
    ttl: Duration,
    dirs: HashMap<String, Dir>,
    /// When this mount last changed an entry of a directory, by prefix: also of one whose first page is on its way.
    changed: Changes,
    budget: Arc<ListingBudget>,
    /// Most directories.
    dirs_max: usize,
    /// Number of directories at which the next sweep is due.
    sweep_at: usize,
}

impl Pages {
    /// None yet; a listing is believed for `ttl`. Memory of listings keeps to `budget`; at most `dirs_max` (at least 2)
    /// directories, and the last change of as many, are remembered. A page asked for before a forgotten change is not shared.
    pub fn new(ttl: Duration, budget: Arc<ListingBudget>, dirs_max: usize) -> Self {
        let changed = Changes::new(dirs_max);
        Self { ttl, dirs: HashMap::new(), changed, budget, dirs_max, sweep_at: dirs_max / 2 }
    }

    /// What fresh listings say of `name` in the directory with `prefix`, and since when: `Some(None)` is a sure no.
    /// `trusted`: whether what was asked for at that time may be believed.
    pub fn find(
        &mut self,
        prefix: &str,
        name: &str,
        now: Instant,
        trusted: impl Fn(Instant) -> bool,
    ) -> Option<(Option<Listed>, Instant)> {
        let dir = self.dirs.get_mut(prefix)?;
        dir.pages.iter_mut().rev().find_map(|page| {
            let ttl = page.ttl(self.ttl);
            let listing = page.listing.lock();
            let (found, asked_at) = listing.find(name)?;
            if now.saturating_duration_since(asked_at) >= ttl || !trusted(asked_at) {
                return None;
            }
            let found = found.cloned();
            drop(listing);
            page.hits = page.hits.saturating_add(1);
            Some((found, asked_at))
        })
    }

    /// The newest listing from the beginning of a directory whose first page was asked for less than the time to live ago
    /// and is `trusted`.
    pub fn first_page(
        &mut self,
        prefix: &str,
        now: Instant,
        trusted: impl Fn(Instant) -> bool,
    ) -> Option<(SharedListing, Instant)> {
        let dir = self.dirs.get(prefix)?;
        dir.pages.iter().rev().find_map(|page| {
            let listing = page.listing.lock();
            let asked_at = listing.asked_at().filter(|_| listing.from_start())?;
            let fresh = now.saturating_duration_since(asked_at) < self.ttl;
            (fresh && trusted(asked_at)).then(|| (page.listing.clone(), asked_at))
        })
    }

    /// The fresh listing in which `name` was last found.
    pub fn with_entry(&self, prefix: &str, name: &str, now: Instant) -> Option<SharedListing> {
        let dir = self.dirs.get(prefix)?;
        let page = dir.pages.iter().rev().find(|page| {
            let found = page.listing.lock().contains(name);
            found && page.is_fresh(self.ttl, now)
        })?;
        Some(page.listing.clone())
    }

    /// A lookup in the directory needs a request: which one?
    pub fn pace(&mut self, prefix: &str, now: Instant) -> Pace {
        if self.ttl.is_zero() {
            return Pace::Single;
        }
        self.make_room(now);
        let dir = self.dirs.entry(prefix.to_owned()).or_default();
        let busy = dir.asked.is_some_and(|at| now.saturating_duration_since(at) < BUSY_WITHIN);
        let known = dir.pages.iter().any(|page| {
            let asked_at = page.listing.lock().asked_at();
            asked_at.is_some_and(|at| now.saturating_duration_since(at) < BUSY_WITHIN)
        });
        if !busy {
            dir.idle = 0;
        }
        dir.asked = Some(now);
        let useful = dir.idle < IDLE_WINDOWS_MAX;
        if (busy || known) && useful { Pace::Window } else { Pace::Single }
    }

    /// Remembers a listing; what is stale goes.
    pub fn insert(&mut self, listing: SharedListing, origin: Origin, now: Instant) {
        let (prefix, from_start, next) = {
            let listing = listing.lock();
            (listing.prefix().to_owned(), listing.from_start(), listing.next().clone())
        };
        self.make_room(now);
        let ttl = self.ttl;
        let dir = self.dirs.entry(prefix).or_default();
        if from_start && next != NextPage::First {
            dir.large = next != NextPage::End;
        }
        if origin == Origin::Lookup && dir.large {
            let last = dir.pages.iter().rev().find(|page| page.origin == Origin::Lookup);
            let wasted = last.is_some_and(|page| page.hits <= 1);
            dir.idle = if wasted { dir.idle + 1 } else { 0 };
        }
        dir.pages.retain(|page| page.is_fresh(ttl, now));
        if dir.pages.len() >= LISTINGS_PER_DIR {
            dir.pages.remove(0);
        }
        dir.pages.push(Page { listing, origin, hits: 0 });
    }

    /// A page of a handle's listing of the directory showed that there are more.
    pub fn is_larger(&mut self, prefix: &str) {
        if let Some(dir) = self.dirs.get_mut(prefix) {
            dir.large = true;
        }
    }

    /// Whether one page does not hold all of the directory, as far as known.
    pub fn is_large(&self, prefix: &str) -> bool {
        self.dirs.get(prefix).is_some_and(|dir| dir.large)
    }

    /// This mount changed an entry of the directory at `at`.
    pub fn changed(&mut self, prefix: &str, at: Instant) {
        self.changed.insert(prefix, at, false);
    }

    /// Whether this mount changed no entry of the directory since `asked_at`.
    pub fn unchanged_since(&self, prefix: &str, asked_at: Instant) -> bool {
        !self.changed.overtook(prefix, asked_at)
    }

    /// What was listed under `prefix`, and below it, is worth nothing any more.
    pub fn forget_tree(&mut self, prefix: &str) {
        self.dirs.retain(|known, _| !known.starts_with(prefix));
    }

    /// Lets stale listings go when there are many, then fresh ones: what is needed again is asked for again. Those that handles
    /// read are let go page by page by their readers.
    pub fn make_room(&mut self, now: Instant) {
        let is_full = self.budget.surplus() > 0;
        if !is_full && self.dirs.len() < self.sweep_at {
            return;
        }
        let ttl = self.ttl;
        self.dirs.retain(|_, dir| {
            dir.pages.retain(|page| page.is_fresh(ttl, now));
            let busy = dir.asked.is_some_and(|at| now.saturating_duration_since(at) < BUSY_WITHIN);
            busy || !dir.pages.is_empty()
        });
        let (budget, dirs_max) = (self.budget.clone(), self.dirs_max);
        if is_full {
            let goal = budget.bytes_max() / 2;
            self.dirs.values_mut().for_each(|dir| {
                dir.pages.retain(|page| budget.bytes() <= goal || Arc::strong_count(&page.listing) > 1);
            });
        }
        if self.dirs.len() >= dirs_max {
            let mut surplus = self.dirs.len() - dirs_max / 2;
            self.dirs.retain(|_, _| {
                let goes = surplus > 0;
                surplus -= usize::from(goes);
                !goes
            });
        }
        self.sweep_at = (self.dirs.len() * 2).clamp(dirs_max / 2, dirs_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bos::client::{ListPage, ListedObject};
    use crate::object::ETag;

    const TTL: Duration = Duration::from_secs(1);

    fn pages_of(ttl: Duration) -> Pages {
        Pages::new(ttl, ListingBudget::new(u64::MAX), 20_000)
    }

    fn listed(prefix: &str, keys: &[&str], after: Option<&str>, at: Instant) -> SharedListing {
        let mut listing = after.map_or_else(|| Listing::new(prefix), |after| Listing::starting_after(prefix, after));
        let objects = keys.iter().map(|key| ListedObject {
            key: format!("{prefix}{key}"),
            size: 1,
            etag: ETag::new("e"),
            last_modified: 1,
            storage_class: None,
        });
        listing.add_page(ListPage { objects: objects.collect(), ..ListPage::default() }, at);
        Arc::new(Mutex::new(listing))
    }

    #[test]
    fn the_second_lookup_within_a_moment_fetches_a_page() {
        let start = Instant::now();
        let mut pages = pages_of(TTL);
        assert_eq!(pages.pace("d/", start), Pace::Single);
        assert_eq!(pages.pace("e/", start), Pace::Single);
        assert_eq!(pages.pace("d/", start + Duration::from_secs(2)), Pace::Window);
        assert_eq!(pages.pace("d/", start + Duration::from_secs(8)), Pace::Single, "a long time later");
        pages.insert(listed("n/", &[], None, start), Origin::Lookup, start);
        assert_eq!(pages.pace("n/", start + Duration::from_secs(2)), Pace::Window, "made a moment ago");
        assert_eq!(pages_of(Duration::ZERO).pace("d/", start), Pace::Single);
    }

    #[test]
    fn listings_are_believed_for_their_time_and_as_far_as_trusted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pages = pages_of(TTL);
        pages.insert(listed("d/", &["a"], None, start), Origin::Lookup, start);
        assert!(matches!(pages.find("d/", "a", at(999), |_| true), Some((Some(_), _))));
        assert_eq!(pages.find("d/", "b", at(999), |_| true), Some((None, start)));
        assert_eq!(pages.find("d/", "b", at(999), |_| false), None);
        assert_eq!(pages.find("d/", "b", at(1000), |_| true), None);
        assert_eq!(pages.find("c/", "b", at(1), |_| true), None);
        let open = listed("o/", &["a"], None, start);
        pages.insert(open.clone(), Origin::Handle, start);
        assert!(pages.find("o/", "b", at(20_000), |_| true).is_some(), "its handle is open");
        drop(open);
        assert!(pages.find("o/", "b", at(20_000), |_| true).is_none());
    }

    #[test]
    fn lookups_that_jump_about_ask_one_by_one_again() {
        let start = Instant::now();
        let mut pages = pages_of(TTL);
        let mut first = Listing::new("d/");
        first.add_page(ListPage { next_marker: Some("d/a".to_owned()), ..ListPage::default() }, start);
        pages.insert(Arc::new(Mutex::new(first)), Origin::Handle, start);
        assert!(pages.is_large("d/"));
        for _ in 0..10 {
            assert_eq!(pages.pace("d/", start), Pace::Window);
            pages.insert(listed("d/", &["x"], Some("d/w"), start), Origin::Lookup, start);
            pages.find("d/", "x", start, |_| true);
            pages.find("d/", "x1", start, |_| true);
        }
        let mut waste = 0;
        while pages.pace("d/", start) == Pace::Window {
            pages.insert(listed("d/", &["x"], Some("d/w"), start), Origin::Lookup, start);
            waste += 1;
            assert!(waste < 10);
        }
        assert_eq!(pages.pace("d/", start + Duration::from_secs(6)), Pace::Single);
        assert_eq!(pages.pace("d/", start + Duration::from_secs(7)), Pace::Window, "tried again after a pause");
    }

    #[test]
    fn a_change_counts_for_pages_that_were_on_their_way_then() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pages = pages_of(TTL);
        pages.changed("d/", at(5));
        pages.insert(listed("d/", &["a"], None, start), Origin::Directory, at(6));
        assert!(!pages.unchanged_since("d/", start), "asked for before the change, and here after it");
        assert!(pages.unchanged_since("d/", at(6)) && pages.unchanged_since("e/", start));
        for i in 0..100_000 {
            pages.changed(&format!("{i}/"), at(7));
        }
        assert!(!pages.unchanged_since("d/", start), "a forgotten change");
    }

    #[test]
    fn memory_is_bounded_and_the_newest_listing_stays() {
        let start = Instant::now();
        let budget = ListingBudget::new(1 << 20);
        let mut pages = Pages::new(TTL, budget.clone(), 10_000);
        let names: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
        let mut keys: Vec<&str> = names.iter().map(String::as_str).collect();
        keys.sort_unstable();
        let counted = |prefix: &str| {
            let listing = listed(prefix, &keys, None, start).lock().clone();
            Arc::new(Mutex::new(listing.counted(&budget)))
        };
        let open = counted("open/");
        pages.insert(open.clone(), Origin::Handle, start);
        for i in 0..1000 {
            pages.insert(counted(&format!("{i}/")), Origin::Lookup, start);
            assert!(budget.bytes() <= (1 << 20) + open.lock().bytes(), "{} bytes", budget.bytes());
        }
        assert!(pages.find("999/", "5", start, |_| true).is_some(), "the newest stays");
        assert!(pages.find("open/", "5", start, |_| true).is_some(), "its reader has it anyway");
    }

    #[test]
    fn directories_are_bounded_also_where_their_time_to_live_is_long() {
        let start = Instant::now();
        let mut pages = Pages::new(Duration::from_secs(3600), ListingBudget::new(u64::MAX), 1000);
        for i in 0..100_000u64 {
            pages.pace(&format!("p{i}/"), start);
            pages.insert(listed(&format!("l{i}/"), &[], None, start), Origin::Directory, start);
            assert!(pages.dirs.len() <= 1000, "{} directories", pages.dirs.len());
        }
    }
}
