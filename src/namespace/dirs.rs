//! Directories: their markers and attributes, their times, and the listings that handles read.

use std::collections::HashSet;
use std::time::Instant;

use bytes::Bytes;

use super::attributes::{DirTimes, Fact, Modified};
use super::listing::{Listing, NextPage};
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
        let remembered = self.memory.lock().attributes.fact(prefix).is_some();
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
            let mut memory = self.memory.lock();
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
        let mut memory = self.memory.lock();
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
                self.marker_attrs(&headers, marker.last_modified)
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
        self.memory.lock().with_times(prefix, attrs)
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
        let mut memory = self.memory.lock();
        if memory.changes.overtook(prefix, asked_at) {
            return marker.map(|(_, _, marker)| marker);
        }
        // Somebody else wrote the marker anew: its times are the newer ones.
        let replaced = match (memory.attributes.fact(prefix), &marker) {
            (Some(Fact::Object { modified, headers, .. }), Some((_, _, marker))) => {
                let Modified::At(at) = marker.modified else { return None };
                !modified.fits(at) || **headers != marker.headers
            }
            (Some(Fact::NoMarker), Some(_)) => true,
            _ => false,
        };
        if replaced {
            memory.attributes.set_times(prefix, None);
        }
        match &marker {
            None => memory.learn_no_marker(prefix, self.mounted_at),
            Some((size, etag, marker)) => memory.attributes.learn(
                prefix,
                Fact::Object {
                    size: *size,
                    etag: etag.clone(),
                    modified: marker.modified,
                    headers: Box::new(marker.headers.clone()),
                },
            ),
        }
        let attrs = marker.as_ref().map_or_else(|| self.plain_dir(), |(_, _, marker)| marker.attrs);
        memory.markers.insert(prefix.to_owned(), (attrs, asked_at));
        marker.map(|(_, _, marker)| marker)
    }

    /// What is remembered of the marker, without asking whether it is still so.
    pub fn remembered_marker(&self, prefix: &str) -> Option<Marker> {
        let mut memory = self.memory.lock();
        let (modified, headers) = match memory.attributes.fact(prefix)? {
            Fact::Object { modified, headers, .. } => (*modified, ObjectHeaders::clone(headers)),
            Fact::NoMarker => return None,
        };
        drop(memory);
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
        let fact = Fact::Object { size: 0, etag: ETag::new(""), modified, headers: Box::new(headers) };
        self.memory.lock().attributes.learn("", fact);
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
        let object = Object { size: 0, etag: stored.etag, last_modified: 0, attrs: *attrs, headers };
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
        memory.pages.insert(shared(Listing::empty(prefix, now)), Origin::Directory, now);
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
        if key.ends_with('/') {
            memory.attributes.forget_dir(key);
            memory.pages.forget_tree(key);
        } else {
            memory.attributes.forget_replaced(key);
        }
        memory.note_change(key, now, false);
    }

    /// The directory at `prefix` stays visible although its last child may have gone.
    pub fn keep_dir(&self, prefix: &str) {
        if prefix != self.prefix {
            self.memory.lock().kept_dirs.insert(prefix.to_owned());
        }
    }

    /// The directory at `prefix` is at `new_prefix` now, and with it those below it that are kept.
    pub fn kept_dirs_renamed(&self, prefix: &str, new_prefix: &str) {
        let mut memory = self.memory.lock();
        let below: Vec<String> = memory.kept_dirs.iter().filter(|dir| dir.starts_with(prefix)).cloned().collect();
        for dir in below {
            memory.kept_dirs.remove(&dir);
            memory.kept_dirs.insert(format!("{new_prefix}{}", &dir[prefix.len()..]));
        }
    }

    /// Names of the directories directly under `prefix` that are kept.
    pub fn kept_under(&self, prefix: &str) -> Vec<String> {
        let memory = self.memory.lock();
        let names = memory.kept_dirs.iter().filter_map(|dir| dir.strip_prefix(prefix)?.split('/').next());
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// Times of a directory that its marker does not carry.
    pub fn dir_times(&self, prefix: &str) -> Option<DirTimes> {
        self.memory.lock().attributes.times(prefix)
    }

    /// An entry of the directory with `prefix` came, went or was renamed, or its attributes were set (`mtime` then as set).
    pub fn set_dir_times(&self, prefix: &str, times: DirTimes) {
        self.memory.lock().attributes.set_times(prefix, Some(times));
    }

    /// The attributes of the directory with `prefix`, which BOS or memory said are `attrs`, after what this mount changed
    /// meanwhile.
    pub fn latest_dir(&self, prefix: &str, attrs: FileAttrs) -> FileAttrs {
        let mut memory = self.memory.lock();
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
        let listing = page.and_then(|(listing, _)| listing.lock().pristine()).unwrap_or_else(|| Listing::new(prefix));
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
        Ok(())
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
        self.attributes.learn(prefix, Fact::NoMarker);
        if self.attributes.times(prefix).is_none() {
            self.attributes.set_times(prefix, Some(DirTimes { mtime: seen_at, ctime: seen_at }));
        }
    }

    fn with_times(&mut self, prefix: &str, attrs: FileAttrs) -> FileAttrs {
        let times = self.attributes.times(prefix);
        FileAttrs { mtime: times.map_or(attrs.mtime, |times| times.mtime), ..attrs }
    }
}
