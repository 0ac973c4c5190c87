//! One directory as its listing pages show it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

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
    /// False where the entry must not be shown any more; it keeps its place so that offsets hold.
    pub shown: bool,
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

/// The entries of one directory, as far as they were fetched. Entries are only ever added at the end, so an index is a
/// stable cookie.
#[derive(Clone, Debug)]
pub struct Listing {
    prefix: String,
    /// Exclusive start, a key; `None`: all from the beginning.
    after: Option<String>,
    /// The directory's own marker, where it was listed.
    marker: Option<ListedObject>,
    /// Whether keys came in the order that the markers of pages imply (bytes of UTF-8).
    ordered: bool,
    entries: Vec<ListedEntry>,
    index: HashMap<Arc<str>, usize>,
    /// First entry of each page, and when that page was asked for.
    pages: Vec<(usize, Instant)>,
    next: NextPage,
    /// Entry whose attributes a program that goes through the listing asks for next.
    expected: usize,
    /// How many attributes were fetched together the last time.
    run: usize,
    /// Memory of the entries, roughly, bytes.
    bytes: u64,
}

/// Attributes fetched together at most.
const RUN_MAX: usize = 32;
/// Memory of an entry besides its name and ETag, bytes: its place in the list and in the index.
const ENTRY_BYTES: usize = 200;
/// Entries that a program may skip and still be taken for one that goes through the listing.
const SKIP_MAX: usize = 4;

impl Listing {
    /// A listing of the keys under `prefix` (empty, or ending in `/`), nothing fetched yet.
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            after: None,
            marker: None,
            ordered: true,
            entries: Vec::new(),
            index: HashMap::new(),
            pages: Vec::new(),
            next: NextPage::First,
            expected: 0,
            run: 0,
            bytes: 0,
        }
    }

    /// A complete listing without entries: a directory made at `at`.
    pub fn empty(prefix: &str, at: Instant) -> Self {
        Self { pages: vec![(0, at)], next: NextPage::End, ..Self::new(prefix) }
    }

    /// A listing of what comes after the key `after`, nothing fetched yet.
    pub fn starting_after(prefix: &str, after: &str) -> Self {
        Self { after: Some(after.to_owned()), next: NextPage::After(after.to_owned()), ..Self::new(prefix) }
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
        self.marker.is_some() || !self.entries.is_empty()
    }

    /// The common prefix of its keys.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A copy with what BOS listed only, as fetched; `None` where something else is in it.
    pub fn pristine(&self) -> Option<Self> {
        let own = self.entries.iter().any(|entry| !entry.shown || matches!(entry.listed, Listed::Local { .. }));
        (!own).then(|| Self { expected: 0, run: 0, ..self.clone() })
    }

    /// Whether an entry of this name was listed.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// What was fetched so far, in order.
    pub fn entries(&self) -> &[ListedEntry] {
        &self.entries
    }

    /// Memory of the entries, roughly, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the next page begins.
    pub fn next(&self) -> &NextPage {
        &self.next
    }

    /// When the first page was asked for.
    pub fn asked_at(&self) -> Option<Instant> {
        self.pages.first().map(|(_, at)| *at)
    }

    /// What the listing says of `name`, and since when: `Some(None)` is a sure no, `None` is no answer.
    pub fn find(&self, name: &str) -> Option<(Option<&Listed>, Instant)> {
        match self.index.get(name) {
            Some(&at) => {
                let page = self.pages.partition_point(|(first, _)| *first <= at).checked_sub(1)?;
                let listed = &self.entries[at].listed;
                // An object may yet turn out to be hidden by a directory of the same name.
                let sure = !matches!(listed, Listed::Object { .. }) || self.covers(name);
                sure.then_some((Some(listed), self.pages[page].1))
            }
            None if self.covers(name) => Some((None, self.asked_at()?)),
            None => None,
        }
    }

    /// Whether all that can be under `name` was listed: the key itself, and keys that make a directory of it.
    fn covers(&self, name: &str) -> bool {
        let from_there = self.after.as_ref().is_none_or(|after| {
            let rest = after.strip_prefix(&self.prefix);
            rest.map_or_else(|| *after < self.prefix, |rest| rest < name)
        });
        from_there
            && match &self.next {
                NextPage::First => false,
                NextPage::End => self.ordered || self.after.is_none(),
                NextPage::After(last) => {
                    let Some(last) = last.strip_prefix(&self.prefix) else { return false };
                    let below = last.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
                    // Compared as the key with a `/` behind it: `a-b` comes before `a/`.
                    let passed = last.as_bytes().iter().cmp(name.as_bytes().iter().chain(b"/")).is_gt();
                    self.ordered && passed && !below
                }
            }
    }

    /// The attributes of `name` must be fetched: which entries to fetch with it, `name` first. Programs that go through a
    /// listing (`ls -l`, rsync) ask one by one; from the second on, more and more are fetched side by side.
    pub fn attribute_run(&mut self, name: &str) -> &[ListedEntry] {
        let Some(&at) = self.index.get(name) else { return &[] };
        let in_turn = self.run > 0 && (self.expected..=self.expected + SKIP_MAX).contains(&at);
        self.run = if in_turn { (self.run * 2).min(RUN_MAX) } else { 1 };
        self.expected = at + self.run;
        &self.entries[at..self.expected.min(self.entries.len())]
    }

    /// Adds the page that was asked for at `at`. Returns the keys that are no entries.
    pub fn add_page(&mut self, page: ListPage, at: Instant) -> Vec<Shadowed> {
        let mut shadowed = Vec::new();
        self.pages.push((self.entries.len(), at));
        self.ordered &= page.objects.is_sorted_by(|a, b| a.key < b.key) && page.prefixes.is_sorted();
        let mut found: Vec<(String, Listed)> = Vec::with_capacity(page.objects.len() + page.prefixes.len());
        for object in page.objects {
            // The marker of the directory itself is no entry.
            if object.key == self.prefix {
                self.marker = Some(object);
            } else {
                let listed =
                    Listed::Object { size: object.size, etag: object.etag, last_modified: object.last_modified };
                found.push((object.key, listed));
            }
        }
        found.extend(page.prefixes.into_iter().map(|prefix| (prefix, Listed::Dir)));
        // BOS gives objects and prefixes apart; the order of keys is theirs together.
        found.sort_by(|a, b| a.0.cmp(&b.0));
        for (key, listed) in found {
            let name = key.strip_prefix(&self.prefix).map(|rest| match listed {
                Listed::Dir => rest.strip_suffix('/').unwrap_or(rest),
                _ => rest,
            });
            match name.ok_or("not under the listed prefix").and_then(|name| check_name(name).map(|()| name)) {
                Ok(name) => {
                    if let Some(reason) = self.add(name, listed) {
                        shadowed.push(Shadowed { key: key.trim_end_matches('/').to_owned(), reason });
                    }
                }
                Err(reason) => shadowed.push(Shadowed { key, reason }),
            }
        }
        self.next = page.next_marker.map_or(NextPage::End, NextPage::After);
        shadowed
    }

    /// Adds an entry that only this mount knows, unless the name is there already.
    pub fn add_local(&mut self, name: &str, dir: bool) {
        if !self.index.contains_key(name) {
            self.push(name, Listed::Local { dir });
        }
    }

    /// Takes an entry out of sight.
    pub fn hide(&mut self, name: &str) {
        if let Some(&at) = self.index.get(name) {
            self.entries[at].shown = false;
        }
    }

    fn add(&mut self, name: &str, listed: Listed) -> Option<&'static str> {
        const REASON: &str = "a directory of the same name hides this object";
        let Some(&at) = self.index.get(name) else {
            self.push(name, listed);
            return None;
        };
        let clash = (self.entries[at].listed == Listed::Dir) != (listed == Listed::Dir);
        if listed == Listed::Dir {
            self.entries[at].listed = Listed::Dir;
        }
        clash.then_some(REASON)
    }

    fn push(&mut self, name: &str, listed: Listed) {
        let name: Arc<str> = name.into();
        let etag = if let Listed::Object { etag, .. } = &listed { etag.as_str().len() } else { 0 };
        self.bytes += (ENTRY_BYTES + name.len() + etag) as u64;
        self.index.insert(name.clone(), self.entries.len());
        self.entries.push(ListedEntry { name, listed, shown: true });
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
        listing.entries().iter().filter(|e| e.shown).map(|e| &*e.name).collect()
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
        assert_eq!(listing.entries().len(), 1);
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
        assert_eq!(listing.bytes(), 3 * ENTRY_BYTES as u64 + 202 + 2);
    }

    #[test]
    fn the_marker_is_known_apart() {
        let mut listing = Listing::new("d/");
        listing.add_page(page(&["d/"], &[], None), Instant::now());
        assert!(listing.proves_existence() && listing.entries().is_empty());
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
    fn hidden_and_local_entries_keep_the_places_of_the_others() {
        let mut listing = Listing::new("");
        listing.add_page(page(&["a", "b"], &[], None), Instant::now());
        listing.hide("a");
        listing.add_local("b", false);
        listing.add_local("c", true);
        assert_eq!(names(&listing), ["b", "c"]);
        assert_eq!(listing.entries().len(), 3);
    }
}
