//! Listing directories.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream;
use parking_lot::Mutex;

use super::Fs;
use super::attr::{Attr, Node, kind_of};
use super::error::{FsError, FsResult};
use super::handles::{DirSnapshot, OpenDir};
use super::lookup::Looked;
use crate::namespace::inode::{Kind, ROOT};
use crate::namespace::listing::{Listed, ListedEntry, Listing, Place, Step, check_name};
use crate::namespace::{Object, SharedListing};
use crate::object::ObjectKey;

/// Entries per answer; a reply of 32 KiB (what glibc asks for) holds about 1000 short names, or 200 with attributes.
const ENTRIES_MAX: usize = 1024;
/// Entries with attributes per answer.
const ENTRIES_PLUS_MAX: usize = 160;
/// Sizes of objects that can be symbolic links: a target has at most 4095 bytes.
const LINK_BYTES: std::ops::RangeInclusive<u64> = 1..=4095;
/// `.` and `..`, which come before what is listed.
const DOTS: u64 = 2;
/// HEADs at once for the attributes of one answer.
const HEADS_MAX: usize = 32;

/// An entry as `readdir` gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Its name.
    pub name: Arc<str>,
    /// What it is, as far as is known without asking for its attributes.
    pub kind: Kind,
    /// Where the listing goes on behind it.
    pub next_offset: u64,
}

/// An entry as `readdirplus` gives it.
#[derive(Clone, Debug)]
pub struct DirEntryPlus {
    /// Its attributes.
    pub attr: Attr,
    /// Its name.
    pub name: Arc<str>,
    /// Where the listing goes on behind it.
    pub next_offset: u64,
    /// Whether the inode's lookup count grew: to be taken back with [`Fs::forget`] if the entry did not fit.
    pub counted: bool,
}

impl Fs {
    /// `opendir`: number of the handle. Nothing is asked yet.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`.
    pub fn opendir(&self, ino: u64) -> FsResult<u64> {
        let node = self.directory(ino)?;
        let listing = Mutex::new(self.new_snapshot(&node));
        Ok(self.dirs.insert(OpenDir { node, listing }))
    }

    /// `releasedir`.
    pub fn releasedir(&self, fh: u64) {
        self.dirs.remove(fh);
    }

    fn new_snapshot(&self, node: &Arc<Node>) -> DirSnapshot {
        let local_at = Instant::now();
        let mut local = Vec::new();
        let listing = match Self::virtual_of(node) {
            Some(entry) => {
                let mut listing = Listing::empty("", Instant::now());
                for (name, kind) in self.virtual_names(&entry) {
                    listing.add_local(&name, kind == Kind::Dir);
                }
                Arc::new(Mutex::new(listing))
            }
            None => {
                let prefix = self.prefix_of(node);
                local = self.local_names(&prefix);
                local.extend(self.namespace.kept_under(&prefix).into_iter().map(|name| (name, true)));
                self.namespace.new_listing(&prefix)
            }
        };
        let local = {
            // A page that is known already may have some of them.
            let listing = listing.lock();
            let seen = |(name, is_dir): (String, bool)| {
                let seen = listing.contains(&name);
                (name, (is_dir, seen))
            };
            local.into_iter().map(seen).collect()
        };
        DirSnapshot { listing, merged: Self::virtual_of(node).is_some(), used: false, local, local_at }
    }

    /// `readdir` from `offset` on (0: the start). An empty answer is the end.
    ///
    /// # Errors
    /// When BOS could not be asked: never a listing that only looks complete.
    pub async fn readdir(&self, fh: u64, offset: u64) -> FsResult<Vec<DirEntry>> {
        let dir = self.dirs.get(fh).ok_or(FsError::BAD_HANDLE)?;
        let mut entries = dots(&dir.node, offset);
        let rest = self.entries(&dir, offset, ENTRIES_MAX).await?;
        if self.options.exact_types {
            self.learn_types(&dir.node, &rest).await?;
        }
        entries.extend(rest.into_iter().map(|(place, entry)| {
            let (ino, kind) = self.inodes.number(dir.node.ino, &entry.name);
            let kind = kind.unwrap_or_else(|| self.listed_kind(&dir.node, &entry));
            DirEntry { ino, name: entry.name, kind, next_offset: offset_after(place) }
        }));
        Ok(entries)
    }

    /// `readdirplus` from `offset` on (0: the start): entries with attributes, which are asked for in parallel where they
    /// are not remembered. The lookup count of each `counted` entry grows by one.
    ///
    /// # Errors
    /// See [`Fs::readdir`].
    pub async fn readdirplus(&self, fh: u64, offset: u64) -> FsResult<Vec<DirEntryPlus>> {
        let dir = self.dirs.get(fh).ok_or(FsError::BAD_HANDLE)?;
        let mut from = offset;
        let mut entries: Vec<DirEntryPlus> = Vec::new();
        for dot in dots(&dir.node, offset) {
            let node = self.inodes.get(dot.ino).unwrap_or_else(|| dir.node.clone());
            let attr = self.attr_of(&node);
            entries.push(DirEntryPlus { attr, name: dot.name, next_offset: dot.next_offset, counted: false });
        }
        loop {
            let listed = self.entries(&dir, from, ENTRIES_PLUS_MAX).await?;
            let Some((last, _)) = listed.last() else { return Ok(entries) };
            from = offset_after(*last);
            let as_of = dir.listing.lock().listing.lock().asked_at().unwrap_or_else(Instant::now);
            let found = stream::iter(listed.into_iter().map(|(place, entry)| {
                let parent = &dir.node;
                async move { (place, entry.name.clone(), self.look_up_listed(parent, &entry, as_of).await) }
            }));
            let found: Vec<_> = found.buffered(HEADS_MAX).collect().await;
            let mut failed = None;
            for (place, name, looked) in found {
                match looked {
                    // Removed since it was listed.
                    Ok(None) => {}
                    Ok(Some(looked)) if failed.is_none() => {
                        let attr = self.attr_of(&looked.keep());
                        entries.push(DirEntryPlus { attr, name, next_offset: offset_after(place), counted: true });
                    }
                    // Not reached by this answer; its lookup is taken back.
                    Ok(Some(_)) => {}
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            match failed {
                Some(error) if entries.is_empty() => return Err(error),
                // The next call begins with the entry that failed.
                Some(_) => return Ok(entries),
                // Nothing of this batch exists any more: an empty answer would mean the end.
                None if entries.is_empty() => {}
                None => return Ok(entries),
            }
        }
    }

    async fn look_up_listed(
        &self,
        dir: &Arc<Node>,
        entry: &ListedEntry,
        as_of: Instant,
    ) -> FsResult<Option<Looked<'_>>> {
        if let Listed::Object { size, etag, last_modified } = &entry.listed
            && let Ok(key) = self.child_key(dir, &entry.name)
            && self.inodes.child(dir.ino, &entry.name).is_none()
            && self.local(&key).is_none()
        {
            if let Some(object) = self.namespace.known_object(&key, *size, etag, *last_modified) {
                return Ok(Some(self.enter_object(dir, &entry.name, object, as_of)));
            }
            let asked_at = Instant::now();
            let found = self.namespace.head(&key).await;
            let found = found.map_err(|error| FsError::from_bos("looking up", key.as_str(), &error))?;
            if let Some(object) = found
                && self.local(&key).is_none()
            {
                return Ok(Some(self.enter_object(dir, &entry.name, object, asked_at)));
            }
        }
        self.find(dir, &entry.name).await
    }

    /// Up to `max` entries from `offset` on with their places, after as many pages as that takes.
    async fn entries(&self, dir: &OpenDir, offset: u64, max: usize) -> FsResult<Vec<(Place, ListedEntry)>> {
        if offset == 0 {
            self.rewind(dir);
        }
        let mut place = Place::numbered(offset.saturating_sub(DOTS));
        loop {
            let snapshot = dir.listing.lock().listing.clone();
            // Copied, because what else is to be known of them is behind locks that come before that of a listing.
            let (step, prefix, asked_at) = {
                let listing = snapshot.lock();
                (listing.read(place, max), listing.prefix().to_owned(), listing.asked_at())
            };
            match step {
                Step::Entries(mut found) => {
                    place = found.last().map_or(place, |(last, _)| last.next());
                    found.retain(|(_, entry)| self.shown(dir, &prefix, asked_at, entry));
                    if !found.is_empty() {
                        self.tidy_listings(&snapshot, place);
                        return Ok(found);
                    }
                    // All of these are gone; there may be more behind them.
                }
                Step::End => {
                    if !self.merge_local(dir, &snapshot) {
                        self.count_subdirs(dir, &snapshot);
                        return Ok(Vec::new());
                    }
                }
                Step::Again(number) => {
                    let fetched = self.namespace.fetch_again(&snapshot, number).await;
                    fetched.map_err(|error| FsError::from_bos("listing", &prefix, &error))?;
                }
                Step::More => {
                    self.tidy_listings(&snapshot, place);
                    self.check_length(&snapshot)?;
                    let fetched = self.namespace.fetch_page(&snapshot).await;
                    fetched.map_err(|error| FsError::from_bos("listing", &prefix, &error))?;
                    self.see_page(dir, &snapshot);
                }
            }
        }
    }

    /// Where listings take more memory than they may, lets pages go: of `reading`, which is read at `place`, and of directories
    /// that are open besides.
    fn tidy_listings(&self, reading: &SharedListing, place: Place) {
        let budget = self.namespace.listings();
        if budget.surplus() == 0 {
            return;
        }
        // For a while there is room then.
        let goal = budget.bytes_max() / 4 * 3;
        let let_go = |listing: &mut Listing, page: usize, sketches: bool| {
            let surplus = budget.bytes().saturating_sub(goal);
            listing.drop_pages(page, listing.bytes().saturating_sub(surplus), sketches);
        };
        let_go(&mut reading.lock(), place.page(), false);
        for number in self.dirs.numbers() {
            if budget.bytes() <= goal {
                return;
            }
            let Some(other) = self.dirs.get(number) else { continue };
            let listing = other.listing.lock().listing.clone();
            if !Arc::ptr_eq(&listing, reading) {
                let_go(&mut listing.lock(), usize::MAX, true);
            }
        }
        let_go(&mut reading.lock(), place.page(), true);
    }

    /// A listing without end must not take all memory, although of a page that was let go little more is kept than where it
    /// begins. No `EOVERFLOW`: `ls` takes that for trouble with one entry and goes on asking.
    fn check_length(&self, listing: &SharedListing) -> FsResult<()> {
        let listing = listing.lock();
        if listing.gone_bytes() <= self.namespace.listings().bytes_max() / 4 {
            return Ok(());
        }
        let message = format!(
            "listing {:?}: it has {} pages of names so far, and memory may not hold more than where each of them begins; \
             nothing is lost, list the folders in it, or mount with a larger --memory-limit",
            listing.prefix(),
            listing.pages()
        );
        Err(FsError::told(libc::ENOMEM, message))
    }

    /// A page came: local names that are on it need not be added at the end. The first one tells whether the directory would be
    /// there without being kept.
    fn see_page(&self, dir: &OpenDir, snapshot: &SharedListing) {
        let (first, prefix) = {
            let mut state = dir.listing.lock();
            let listing = snapshot.lock();
            if Arc::ptr_eq(&state.listing, snapshot) && !state.local.is_empty() {
                for entry in listing.last_page() {
                    if let Some((_, seen)) = state.local.get_mut(&*entry.name) {
                        *seen = true;
                    }
                }
            }
            (listing.pages() == 1, listing.prefix().to_owned())
        };
        if first && self.namespace.is_kept(&prefix) && self.waits_for_nothing_below(&prefix) {
            self.namespace.kept_dir_listed(snapshot);
        }
    }

    /// Whether everything that BOS has below `prefix` is to stay there.
    fn waits_for_nothing_below(&self, prefix: &str) -> bool {
        let hides = self.hidden.lock().keys().any(|key| key.starts_with(prefix));
        !hides && self.moves.is_clear(prefix) && self.uploads.files_below(prefix).is_empty()
    }

    fn rewind(&self, dir: &OpenDir) {
        let fresh = {
            let mut snapshot = dir.listing.lock();
            if !std::mem::replace(&mut snapshot.used, true) {
                return;
            }
            drop(snapshot);
            self.new_snapshot(&dir.node)
        };
        let mut snapshot = dir.listing.lock();
        *snapshot = DirSnapshot { used: true, ..fresh };
    }

    /// Of these entries of a listing that began at `asked_at`, the ones that are still to be seen.
    fn shown(&self, dir: &OpenDir, prefix: &str, asked_at: Option<Instant>, entry: &ListedEntry) -> bool {
        if dir.node.ino == ROOT && &*entry.name == super::introspect::DIR_NAME {
            return false;
        }
        let key = format!("{prefix}{}", entry.name);
        let hidden = self.is_hidden(&key);
        let removed = asked_at.is_some_and(|at| self.namespace.removed_since(&key, at));
        !hidden && (!removed || self.inodes.child(dir.node.ino, &entry.name).is_some())
    }

    /// Adds what only this mount knows, once all pages are there. `false`: was done before.
    fn merge_local(&self, dir: &OpenDir, snapshot: &SharedListing) -> bool {
        let (mut before, local_at) = {
            let mut state = dir.listing.lock();
            if !Arc::ptr_eq(&state.listing, snapshot) || std::mem::replace(&mut state.merged, true) {
                return false;
            }
            (std::mem::take(&mut state.local), state.local_at)
        };
        let prefix = snapshot.lock().prefix().to_owned();
        let mut local = self.local_names(&prefix);
        local.extend(self.namespace.kept_under(&prefix).into_iter().map(|name| (name, true)));
        local.retain(|(name, _)| !before.contains_key(name));
        // Published while the pages came: neither on a page nor local any more, and yet there all the time.
        before.retain(|name, (_, seen)| !*seen && !self.namespace.removed_since(&format!("{prefix}{name}"), local_at));
        local.extend(before.into_iter().map(|(name, (is_dir, _))| (name, is_dir)));
        local.sort();
        let mut listing = snapshot.lock();
        for (name, is_dir) in local {
            listing.add_local(&name, is_dir);
        }
        true
    }

    /// All of a directory was listed: its link count is known, if all of it is still here.
    fn count_subdirs(&self, dir: &OpenDir, snapshot: &SharedListing) {
        if Self::virtual_of(&dir.node).is_some() {
            return;
        }
        let (dirs, prefix, asked_at) = {
            let listing = snapshot.lock();
            if listing.has_gaps() {
                return;
            }
            let is_dir = |entry: &&ListedEntry| matches!(entry.listed, Listed::Dir | Listed::Local { dir: true });
            let dirs: Vec<ListedEntry> = listing.entries().filter(is_dir).cloned().collect();
            (dirs, listing.prefix().to_owned(), listing.asked_at())
        };
        let Some(asked_at) = asked_at else { return };
        let count = dirs.iter().filter(|entry| self.shown(dir, &prefix, Some(asked_at), entry)).count();
        dir.node.body.state.lock().subdirs_listed(count, asked_at);
    }

    /// Names directly under `prefix` of files that are not in BOS as they are here; `true`: directories above such files.
    fn local_names(&self, prefix: &str) -> Vec<(String, bool)> {
        let mut local = Vec::new();
        for file in self.uploads.files_below(prefix) {
            let key: ObjectKey = file.key();
            let Some(rest) = key.as_str().strip_prefix(prefix) else { continue };
            let (name, is_dir) = match rest.split_once('/') {
                Some((name, _)) => (name, true),
                None => (rest, false),
            };
            if check_name(name).is_ok() && file.settled().is_none() {
                local.push((name.to_owned(), is_dir));
            }
        }
        local
    }

    /// Asks for the attributes of those listed objects that may be symbolic links.
    async fn learn_types(&self, dir: &Arc<Node>, entries: &[(Place, ListedEntry)]) -> FsResult<()> {
        let unknown = entries.iter().filter_map(|(_, entry)| match &entry.listed {
            Listed::Object { size, etag, last_modified } if LINK_BYTES.contains(size) => {
                let key = self.child_key(dir, &entry.name).ok()?;
                let known = self.inodes.child(dir.ino, &entry.name).is_some()
                    || self.namespace.known_object(&key, *size, etag, *last_modified).is_some();
                (!known).then_some(key)
            }
            _ => None,
        });
        let unknown: Vec<ObjectKey> = unknown.collect();
        let heads = unknown.into_iter().map(|key| async move {
            let found = self.namespace.head(&key).await;
            found.map(drop).map_err(|error| FsError::from_bos("looking up", key.as_str(), &error))
        });
        let heads: Vec<FsResult<()>> = stream::iter(heads).buffer_unordered(HEADS_MAX).collect().await;
        heads.into_iter().collect()
    }

    fn listed_kind(&self, dir: &Arc<Node>, entry: &ListedEntry) -> Kind {
        match &entry.listed {
            Listed::Dir | Listed::Local { dir: true } => Kind::Dir,
            Listed::Local { dir: false } => Kind::File,
            Listed::Object { size, etag, last_modified } => {
                let key = self.child_key(dir, &entry.name).ok();
                let known = key.and_then(|key| self.namespace.known_object(&key, *size, etag, *last_modified));
                known.map_or(Kind::File, |object: Object| kind_of(object.attrs.mode))
            }
        }
    }
}

/// Offset of what comes behind the listed entry at this place; `.` and `..` come first.
fn offset_after(place: Place) -> u64 {
    place.next().number() + DOTS
}

fn dots(dir: &Arc<Node>, offset: u64) -> Vec<DirEntry> {
    let above = dir.parent().map_or(dir.ino, |parent| parent.ino);
    let dots = [(dir.ino, "."), (above, "..")];
    let rest = dots.into_iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX));
    rest.map(|(index, (ino, name))| DirEntry { ino, name: name.into(), kind: Kind::Dir, next_offset: index as u64 + 1 })
        .collect()
}
