//! Directories: their markers and attributes, their times, and the listings that handles read.

use std::collections::HashSet;
use std::time::Instant;

use bytes::Bytes;

use super::attributes::{DirTimes, Fact, Modified, Overwrite};
use super::listing::{Listing, ListingBudget, NextPage};
use super::pages::Origin;
use super::{Emptiness, LISTING_LAG, Memory, Namespace, Object, PAGE_KEYS, SharedListing, shared, turn_of};
use crate::bos::client::stored_between;
use crate::bos::client::{Body, EMPTY_PAGES_MAX, ListedObject, ObjectHeaders, ObjectMeta};
use crate::bos::error::{BosError, BosErrorKind};
use crate::object::{Condition, ETag, FileAttrs, Md5, ObjectKey, Timestamp};
use crate::posix_meta;

/// What BOS has of a directory's marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// When BOS stored it, seconds since 1970, as far as known.
    pub modified: Modified,
    /// What it carries.
    pub headers: ObjectHeaders,
    /// The attributes in them.
    pub attrs: FileAttrs,
}

/// Requests to fetch one page again.
const AGAIN_PAGES_MAX: usize = 32;

impl Namespace {
    pub(super) fn turn(&self, prefix: &str) -> &tokio::sync::Mutex<()> {
        &self.turns[turn_of(prefix, self.turns.len())]
    }

    /// The attributes of the directory with `prefix`, which is there. Where its marker is remembered, the first page of its
    /// listing, which whoever walks the tree needs anyway, tells whether it is still the same one.
    pub(super) async fn dir_attrs(&self, prefix: &str) -> Result<FileAttrs, BosError> {
        if let Some(attrs) = self.known_dir(prefix) {
            return Ok(attrs);
        }
        let remembered = self.recalled(&[prefix]).attributes.fact(prefix).is_some();
        if remembered && !self.ttl.is_zero() {
            // However long that took: the page answers the question that it was fetched for.
            let (page, asked_at) = self.first_page(prefix).await?;
            let marker = page.lock().marker().cloned();
            if let Some(attrs) = self.listed_dir(prefix, marker.as_ref(), asked_at) {
                return Ok(attrs);
            }
        }
        self.head_marker(prefix).await?;
        let attrs = self.memory.lock().markers.get(prefix).map(|(attrs, _)| *attrs);
        Ok(self.with_times(prefix, attrs.unwrap_or_else(|| self.plain_dir())))
    }

    /// What is known of the directory without asking.
    fn known_dir(&self, prefix: &str) -> Option<FileAttrs> {
        let now = Instant::now();
        let page = {
            let mut memory = self.recalled(&[prefix]);
            let memory = &mut *memory;
            let known = memory.pending_dirs.get(prefix).copied().or_else(|| {
                let (attrs, at) = memory.markers.get(prefix)?;
                let fresh = now.saturating_duration_since(*at) < self.ttl && !memory.changes.overtook(prefix, *at);
                fresh.then_some(*attrs)
            });
            if let Some(attrs) = known {
                return Some(memory.with_times(prefix, attrs));
            }
            let changes = &memory.changes;
            memory.pages.first_page(prefix, now, |asked_at| !changes.overtook(prefix, asked_at))?
        };
        let (listing, asked_at) = page;
        let marker = listing.lock().marker().cloned();
        self.listed_dir(prefix, marker.as_ref(), asked_at)
    }

    /// The attributes of a directory whose listing, asked for at `asked_at`, begins with this marker, or with none.
    pub(super) fn listed_dir(
        &self,
        prefix: &str,
        marker: Option<&ListedObject>,
        asked_at: Instant,
    ) -> Option<FileAttrs> {
        let mut memory = self.recalled(&[prefix]);
        if let Some(attrs) = memory.pending_dirs.get(prefix).copied() {
            return Some(memory.with_times(prefix, attrs));
        }
        if memory.changes.overtook(prefix, asked_at) {
            return None;
        }
        let attrs = match marker {
            Some(marker) => {
                let headers =
                    memory.attributes.headers(prefix, marker.size, &marker.etag, marker.last_modified)?.clone();
                self.marker_attrs(&headers.unpack(), marker.last_modified)
            }
            None => {
                let lately = asked_at.checked_sub(LISTING_LAG).unwrap_or(asked_at);
                if memory.attributes.own(prefix, lately).is_some() {
                    return None;
                }
                memory.learn_no_marker(prefix, self.mounted_at);
                self.plain_dir()
            }
        };
        memory.markers.insert(prefix.to_owned(), (attrs, asked_at));
        Some(memory.with_times(prefix, attrs))
    }

    fn marker_attrs(&self, headers: &ObjectHeaders, last_modified: i64) -> FileAttrs {
        let plain = self.defaults.directory(Timestamp { sec: last_modified, nsec: 0 });
        posix_meta::read_attrs(&headers.metadata, plain)
    }

    fn with_times(&self, prefix: &str, attrs: FileAttrs) -> FileAttrs {
        self.recalled(&[prefix]).with_times(prefix, attrs)
    }

    /// The marker of the directory with `prefix`, by HEAD; remembered. `None`: it has none.
    ///
    /// # Errors
    /// BOS could not be asked.
    pub async fn head_marker(&self, prefix: &str) -> Result<Option<Marker>, BosError> {
        let Ok(key) = ObjectKey::parse(prefix) else { return Ok(None) };
        let asked_at = Instant::now();
        let meta = match self.client.head_object(&key).await {
            Ok(meta) => Some(meta),
            Err(error) if error.kind == BosErrorKind::NoSuchKey => None,
            Err(error) => return Err(error),
        };
        Ok(self.learn_marker(prefix, meta, asked_at))
    }

    fn learn_marker(&self, prefix: &str, meta: Option<ObjectMeta>, asked_at: Instant) -> Option<Marker> {
        let marker = meta.map(|meta| {
            let attrs = self.marker_attrs(&meta.headers, meta.last_modified);
            (meta.size, meta.etag, Marker { modified: Modified::At(meta.last_modified), headers: meta.headers, attrs })
        });
        let mut memory = self.recalled(&[prefix]);
        if memory.changes.overtook(prefix, asked_at) {
            return marker.map(|(_, _, marker)| marker);
        }
        // Somebody else wrote the marker anew: its times are the newer ones.
        let replaced = match (memory.attributes.fact(prefix), &marker) {
            (Some(Fact::Object { modified, headers, .. }), Some((_, _, marker))) => {
                let Modified::At(at) = marker.modified else { return None };
                !modified.fits(at) || headers.unpack() != marker.headers
            }
            (Some(Fact::NoMarker), Some(_)) => true,
            _ => false,
        };
        if replaced {
            memory.attributes.set_times(prefix, None);
        }
        let overwrite = match &marker {
            None => {
                memory.learn_no_marker(prefix, self.mounted_at);
                None
            }
            Some((size, etag, marker)) => Some(memory.attributes.learn(
                prefix,
                Fact::Object {
                    size: *size,
                    etag: etag.clone(),
                    modified: marker.modified,
                    headers: (&marker.headers).into(),
                },
            )),
        };
        let attrs = marker.as_ref().map_or_else(|| self.plain_dir(), |(_, _, marker)| marker.attrs);
        memory.markers.insert(prefix.to_owned(), (attrs, asked_at));
        drop(memory);
        if let Some(overwrite) = overwrite {
            overwrite.settle();
        }
        marker.map(|(_, _, marker)| marker)
    }

    /// What is remembered of the marker, without asking whether it is still so.
    pub fn remembered_marker(&self, prefix: &str) -> Option<Marker> {
        let memory = self.recalled(&[prefix]);
        let (modified, headers) = match memory.attributes.fact(prefix)? {
            Fact::Object { modified, headers, .. } => (*modified, headers.clone()),
            Fact::NoMarker => return None,
        };
        drop(memory);
        let headers = headers.unpack();
        let last_modified = match modified {
            Modified::At(at) | Modified::Between(_, at) => at,
        };
        let attrs = self.marker_attrs(&headers, last_modified);
        Some(Marker { modified, headers, attrs })
    }

    /// The attributes of the mounted prefix itself.
    ///
    /// # Errors
    /// BOS could not be asked.
    pub async fn root_attrs(&self) -> Result<FileAttrs, BosError> {
        if !self.prefix.is_empty() {
            return self.dir_attrs(&self.prefix).await;
        }
        let attrs = self.remembered_marker("").map_or_else(|| self.plain_dir(), |marker| marker.attrs);
        Ok(self.with_times("", attrs))
    }

    /// Attributes of the root of a whole bucket, which can have no marker: remembered by this state directory only.
    pub fn set_root_attrs(&self, attrs: &FileAttrs) {
        let mut headers = ObjectHeaders::default();
        posix_meta::write_attrs(&mut headers.metadata, attrs);
        let modified = Modified::At(attrs.mtime.sec);
        let fact = Fact::Object { size: 0, etag: ETag::new(""), modified, headers: headers.into() };
        let overwrite = self.memory.lock().attributes.learn("", fact);
        overwrite.settle();
    }

    /// Writes the marker of the directory with `prefix`, with everything else that it carried as far as remembered.
    ///
    /// # Errors
    /// BOS did not take it.
    pub async fn put_marker(&self, prefix: &str, attrs: &FileAttrs) -> Result<(), BosError> {
        let Ok(key) = ObjectKey::parse(prefix) else { return Ok(()) };
        let mut headers = self.remembered_marker(prefix).map(|marker| marker.headers).unwrap_or_default();
        headers.content_type.get_or_insert_with(|| posix_meta::DIRECTORY_TYPE.to_owned());
        posix_meta::write_attrs(&mut headers.metadata, attrs);
        let sent = Instant::now();
        let body = Body::Bytes(Bytes::new());
        let stored = self.client.put_object(&key, body, &Md5::of(b""), &headers, &Condition::Any).await?;
        let object = Object { size: 0, etag: stored.etag, last_modified: 0, attrs: *attrs, headers: headers.into() };
        self.learn_published(&key, &object, stored_between(stored.date, sent));
        self.memory.lock().markers.insert(prefix.to_owned(), (*attrs, Instant::now()));
        Ok(())
    }

    /// A directory was made at `prefix` a moment ago: nothing is in it.
    pub fn dir_made(&self, prefix: &str) {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        memory.note_change(prefix.trim_end_matches('/'), now, false);
        memory.attributes.set_times(prefix, None);
        memory.pages.insert(shared(Listing::empty(prefix, now).counted(&self.listings)), Origin::Directory, now);
    }

    /// The directory at `prefix` was removed, or is another one now.
    pub fn dir_removed(&self, prefix: &str) {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        memory.kept_dirs.remove(prefix);
        memory.pending_dirs.remove(prefix);
        memory.attributes.forget(prefix);
        memory.attributes.set_times(prefix, None);
        memory.pages.forget_tree(prefix);
        memory.note_change(prefix, now, true);
        memory.note_change(prefix.trim_end_matches('/'), now, true);
    }

    /// Another object took the place of the one under `key`, or another directory of the one with this prefix: what was
    /// known counts no more, also after a kill. A listing may show the new one as the old one, with its second.
    pub fn replaced(&self, key: &str) {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        let overwrites = if key.ends_with('/') {
            memory.pages.forget_tree(key);
            memory.attributes.forget_dir(key).into()
        } else {
            vec![memory.attributes.forget_replaced(key)]
        };
        memory.note_change(key, now, false);
        drop(memory);
        overwrites.into_iter().for_each(Overwrite::settle);
    }

    /// The directory at `prefix` stays visible although its last child may have gone.
    pub fn keep_dir(&self, prefix: &str) {
        self.memory.lock().kept_dirs.insert(prefix);
    }

    /// The directory at `prefix` is at `new_prefix` now, and with it those below it that are kept.
    pub fn kept_dirs_renamed(&self, prefix: &str, new_prefix: &str) {
        self.memory.lock().kept_dirs.rename(prefix, new_prefix);
    }

    /// Names of the directories directly under `prefix` that are kept.
    pub fn kept_under(&self, prefix: &str) -> Vec<String> {
        self.memory.lock().kept_dirs.under(prefix)
    }

    /// Whether the directory with `prefix` is kept.
    pub fn is_kept(&self, prefix: &str) -> bool {
        self.memory.lock().kept_dirs.contains(prefix)
    }

    /// `listing` is a page of a kept directory below which nothing waits to be deleted. Where it shows that something else is
    /// there, the directory need not be kept: until the next removal in it, which comes here first.
    pub fn kept_dir_listed(&self, listing: &SharedListing) {
        let mut memory = self.memory.lock();
        let listing = listing.lock();
        let since = listing.asked_at().and_then(|at| at.checked_sub(LISTING_LAG));
        // A listing may still show what went a moment ago.
        if listing.from_start()
            && listing.proves_existence()
            && since.is_some_and(|since| memory.pages.unchanged_since(listing.prefix(), since))
        {
            memory.kept_dirs.shown(listing.prefix());
        }
    }

    /// Times of a directory that its marker does not carry.
    pub fn dir_times(&self, prefix: &str) -> Option<DirTimes> {
        self.recalled(&[prefix]).attributes.times(prefix)
    }

    /// An entry of the directory with `prefix` came, went or was renamed, or its attributes were set (`mtime` then as set).
    pub fn set_dir_times(&self, prefix: &str, times: DirTimes) {
        self.memory.lock().attributes.set_times(prefix, Some(times));
    }

    /// The attributes of the directory with `prefix`, which BOS or memory said are `attrs`, after what this mount changed
    /// meanwhile.
    pub fn latest_dir(&self, prefix: &str, attrs: FileAttrs) -> FileAttrs {
        let memory = self.recalled(&[prefix]);
        let attrs = memory.pending_dirs.get(prefix).copied().unwrap_or(attrs);
        memory.with_times(prefix, attrs)
    }

    /// Attributes of the directory that are on their way to BOS (`None`: no longer) and go before what BOS says.
    pub fn set_pending_dir(&self, prefix: &str, attrs: Option<FileAttrs>) {
        let mut memory = self.memory.lock();
        match attrs {
            Some(attrs) => memory.pending_dirs.insert(prefix.to_owned(), attrs),
            None => memory.pending_dirs.remove(prefix),
        };
    }

    /// The first page of the directory with `prefix`, asked for within the time to live, and when.
    ///
    /// # Errors
    /// BOS could not be asked.
    pub(super) async fn first_page(&self, prefix: &str) -> Result<(SharedListing, Instant), BosError> {
        let _turn = self.turn(prefix).lock().await;
        let known = {
            let mut memory = self.memory.lock();
            let memory = &mut *memory;
            let changes = &memory.changes;
            memory.pages.first_page(prefix, Instant::now(), |asked_at| !changes.overtook(prefix, asked_at))
        };
        match known {
            Some(page) => Ok(page),
            None => self.fetch_listing(prefix, None, Origin::Directory).await,
        }
    }

    /// A listing of the directory with `prefix` for a handle: its first page, if it was asked for a moment ago and nothing
    /// changed since; the rest is to be filled by [`fetch_page`](Self::fetch_page).
    pub fn new_listing(&self, prefix: &str) -> SharedListing {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        let memory = &mut *memory;
        let (pages, changes) = (&mut memory.pages, &memory.changes);
        let page = pages.first_page(prefix, now, |asked_at| !changes.overtook(prefix, asked_at));
        let page = page.filter(|(_, asked_at)| pages.unchanged_since(prefix, *asked_at));
        // A listing of its own: the handle adds to it what only this mount knows.
        let listing = page.and_then(|(listing, _)| listing.lock().pristine());
        let listing = listing.unwrap_or_else(|| Listing::new(prefix).counted(&self.listings));
        let listing = shared(listing);
        pages.insert(listing.clone(), Origin::Handle, now);
        listing
    }

    /// Fetches the next page of `listing`; nothing happens when it is complete.
    ///
    /// # Errors
    /// BOS could not be asked.
    pub async fn fetch_page(&self, listing: &SharedListing) -> Result<(), BosError> {
        let (prefix, next) = {
            let listing = listing.lock();
            (listing.prefix().to_owned(), listing.next().clone())
        };
        let marker = match &next {
            NextPage::First => None,
            NextPage::After(marker) => Some(marker.as_str()),
            NextPage::End => return Ok(()),
        };
        let asked_at = Instant::now();
        let page = self.client.list_objects(&prefix, Some('/'), marker, PAGE_KEYS).await?;
        let truncated = page.next_marker.is_some();
        let shadowed = {
            let mut listing = listing.lock();
            // Somebody else fetched the same page meanwhile.
            if *listing.next() != next {
                return Ok(());
            }
            listing.add_page(page, asked_at)
        };
        if truncated {
            self.memory.lock().pages.is_larger(&prefix);
        }
        for shadowed in shadowed {
            self.tell_shadowed(shadowed);
        }
        if self.listings.surplus() > 0 {
            self.memory.lock().pages.make_room(Instant::now());
        }
        Ok(())
    }

    /// Fetches a page again that `listing` has let go, with as many requests as that takes: names may have come since.
    ///
    /// # Errors
    /// BOS could not be asked, or names come faster than they are listed.
    pub async fn fetch_again(&self, listing: &SharedListing, number: usize) -> Result<(), BosError> {
        let (prefix, start) = {
            let listing = listing.lock();
            let Some(start) = listing.start_of(number) else { return Ok(()) };
            (listing.prefix().to_owned(), start.map(str::to_owned))
        };
        let (asked_at, mut marker, mut answers) = (Instant::now(), start, Vec::new());
        for _ in 0..AGAIN_PAGES_MAX {
            let page = self.client.list_objects(&prefix, Some('/'), marker.as_deref(), PAGE_KEYS).await?;
            marker.clone_from(&page.next_marker);
            answers.push(page);
            if listing.lock().restore_page(number, &answers, asked_at) {
                return Ok(());
            }
        }
        let message = format!("{prefix:?} has many more names than when it was listed: list it from its beginning");
        Err(BosError::new(BosErrorKind::BadAnswer, message))
    }

    /// Memory of all listings.
    pub fn listings(&self) -> &ListingBudget {
        &self.listings
    }

    /// Whether nothing is under `prefix` but its marker and keys that `ignored` names.
    ///
    /// # Errors
    /// BOS could not be asked.
    pub async fn is_empty(&self, prefix: &str, ignored: &HashSet<String>) -> Result<Emptiness, BosError> {
        let max_keys = u32::try_from(ignored.len()).unwrap_or(PAGE_KEYS).saturating_add(2).min(PAGE_KEYS);
        let mut next: Option<String> = None;
        let mut marker = None;
        // Each page but some has a key, and each of these is ignored: more pages are no honest answer.
        for _ in 0..ignored.len() + EMPTY_PAGES_MAX {
            let page = self.client.list_objects(prefix, None, next.as_deref(), max_keys).await?;
            if page.objects.iter().any(|object| object.key != prefix && !ignored.contains(&object.key)) {
                return Ok(Emptiness::Full);
            }
            marker = marker.or_else(|| page.objects.into_iter().find(|object| object.key == prefix));
            match page.next_marker {
                Some(after) => next = Some(after),
                None => return Ok(Emptiness::Empty { marker }),
            }
        }
        let message = format!("the listing of {prefix:?} goes on and on without a new key");
        Err(BosError::new(BosErrorKind::BadAnswer, message))
    }
}

impl Memory {
    /// Nothing in BOS tells times of such a directory: those it is first seen with stay, also after a remount.
    fn learn_no_marker(&mut self, prefix: &str, seen_at: Timestamp) {
        self.attributes.learn_no_marker(prefix);
        if self.attributes.has_no_times(prefix) {
            self.attributes.set_times(prefix, Some(DirTimes { mtime: seen_at, ctime: seen_at }));
        }
    }

    fn with_times(&self, prefix: &str, attrs: FileAttrs) -> FileAttrs {
        let times = self.attributes.times(prefix);
        FileAttrs { mtime: times.map_or(attrs.mtime, |times| times.mtime), ..attrs }
    }
}
