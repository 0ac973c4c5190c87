//! Maps paths to keys and keeps what lookups and listings taught about them.

pub mod inode;
pub mod listing;
pub mod memory;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::bos::client::{Body, BosClient, ObjectHeaders, ObjectMeta};
use crate::bos::error::{BosError, BosErrorKind};
use crate::object::{Condition, ETag, FileAttrs, KeyError, Md5, ObjectKey, Timestamp};
use crate::posix_meta::{self, AttrDefaults};
use listing::{Listed, Listing, NextPage, Shadowed};
use memory::{AbsentNames, BoundedMap};

/// Entries per page of a listing (BOS gives no more).
const PAGE_KEYS: u32 = 1000;
/// Objects whose attributes are remembered.
const OBJECTS_REMEMBERED: usize = 100_000;
/// Names whose absence, or last change by this mount, is remembered.
const NAMES_REMEMBERED: usize = 50_000;
/// Listings that lookups may be answered from.
const LISTINGS_REMEMBERED: usize = 32;
/// How long a listing answers lookups while the program that reads it has it open: `ls -l` and rsync look up name after
/// name of it, which must not cost two requests each once the time to live is over. An open of a file asks anew.
const OPEN_LISTING_TTL: Duration = Duration::from_secs(30);
/// Keys that are told as shadowed.
const SHADOWED_MAX: usize = 10_000;

/// One object as the mount sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Size in bytes.
    pub size: u64,
    /// Which content.
    pub etag: ETag,
    /// BOS's own time of it, seconds since 1970; 0: not known (just published).
    pub last_modified: i64,
    /// Mode, owner, time.
    pub attrs: FileAttrs,
    /// All headers it carries.
    pub headers: ObjectHeaders,
}

/// What BOS has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What it is.
    pub found: Found,
    /// When BOS said so.
    pub as_of: Instant,
}

/// See [`Resolved`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An object: a file, or a symbolic link by its mode.
    Object(Object),
    /// A directory.
    Dir {
        /// Its mode, owner, time.
        attrs: FileAttrs,
    },
    /// Nothing. Never said when BOS could not be asked.
    Absent,
}

/// A listing shared by the handle that reads it and by lookups.
pub type SharedListing = Arc<Mutex<Listing>>;

struct Memory {
    /// By key; valid for the recorded ETag and last-modified only.
    objects: BoundedMap<String, Object>,
    absent: AbsentNames,
    /// When this mount last changed a key: listings asked for before are wrong about it.
    changed: BoundedMap<String, Instant>,
    /// Newest last.
    listings: Vec<SharedListing>,
    /// Directories (as prefixes) that stay although nothing may be under them any more.
    kept_dirs: HashSet<String>,
    shadowed: BTreeMap<String, &'static str>,
}

/// The tree over a prefix of a bucket, as BOS has it.
pub struct Namespace {
    client: BosClient,
    /// Empty, or ends in `/`.
    prefix: String,
    ttl: Duration,
    defaults: AttrDefaults,
    /// Time shown for directories without a marker.
    mounted_at: Timestamp,
    /// Locked before any listing, never after.
    memory: Mutex<Memory>,
}

impl Namespace {
    /// Over `prefix` (with or without the final `/`); answers are believed for `ttl`.
    pub fn new(client: BosClient, prefix: &str, ttl: Duration, defaults: AttrDefaults) -> Self {
        let prefix = prefix.trim_matches('/');
        Self {
            client,
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            ttl,
            defaults,
            mounted_at: Timestamp::now(),
            memory: Mutex::new(Memory {
                objects: BoundedMap::new(OBJECTS_REMEMBERED),
                absent: AbsentNames::new(NAMES_REMEMBERED, ttl),
                changed: BoundedMap::new(NAMES_REMEMBERED),
                listings: Vec::new(),
                kept_dirs: HashSet::new(),
                shadowed: BTreeMap::new(),
            }),
        }
    }

    /// How long answers are believed.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Prefix of the keys in the directory of this path (relative to the mount, no leading `/`, empty for its root).
    pub fn dir_prefix(&self, path: &str) -> String {
        if path.is_empty() { self.prefix.clone() } else { format!("{}{path}/", self.prefix) }
    }

    /// Key of the file at this path.
    ///
    /// # Errors
    /// The path is no key that BOS takes.
    pub fn key(&self, path: &str) -> Result<ObjectKey, KeyError> {
        ObjectKey::parse(&format!("{}{path}", self.prefix))
    }

    /// The path of a key below the mounted prefix.
    pub fn path_of<'a>(&self, key: &'a ObjectKey) -> Option<&'a str> {
        key.as_str().strip_prefix(&self.prefix)
    }

    /// What directories without a marker are shown with.
    pub fn plain_dir(&self) -> FileAttrs {
        self.defaults.directory(self.mounted_at)
    }

    /// What BOS has under `name` in the directory with `prefix`: from memory, or by at most two requests (a third one
    /// for the attributes of a directory whose marker is not known).
    ///
    /// # Errors
    /// BOS could not be asked.
    pub async fn resolve(&self, prefix: &str, name: &str) -> Result<Resolved, BosError> {
        let now = Instant::now();
        let resolved = |found, as_of| Ok(Resolved { found, as_of });
        let Ok(key) = ObjectKey::parse(&format!("{prefix}{name}")) else { return resolved(Found::Absent, now) };
        match self.remembered(prefix, name, &key) {
            None | Some((Listed::Local { .. }, _)) => {}
            Some((Listed::Dir, as_of)) => {
                return resolved(Found::Dir { attrs: self.marker_attrs(&key).await? }, as_of);
            }
            Some((Listed::Object { size, etag, last_modified }, as_of)) => {
                if let Some(object) = self.known_object(&key, size, &etag, last_modified) {
                    return resolved(Found::Object(object), as_of);
                }
                if let Some(object) = self.head_run(prefix, name, &key).await? {
                    return resolved(Found::Object(object), now);
                }
            }
        }
        if self.memory.lock().absent.contains(key.as_str(), now) {
            return resolved(Found::Absent, now);
        }
        resolved(self.ask(&key).await?, now)
    }

    /// HEAD of `key`, and side by side of the objects listed behind it that will be asked for next.
    async fn head_run(&self, prefix: &str, name: &str, key: &ObjectKey) -> Result<Option<Object>, BosError> {
        // Cloned, because what is known is behind the lock of the memory, which comes before that of a listing.
        let run = match self.listing_of(prefix) {
            None => Vec::new(),
            Some(listing) => listing.lock().attribute_run(name).to_vec(),
        };
        let ahead = run.iter().skip(1).filter_map(|entry| match &entry.listed {
            Listed::Object { size, etag, last_modified } => {
                let key = ObjectKey::parse(&format!("{prefix}{}", entry.name)).ok()?;
                let known = self.known_object(&key, *size, etag, *last_modified).is_some();
                (!known).then_some(key)
            }
            Listed::Dir | Listed::Local { .. } => None,
        });
        let ahead: Vec<ObjectKey> = ahead.collect();
        let ahead = futures_util::future::join_all(ahead.iter().map(|key| self.head(key)));
        // What fails ahead of its time is asked for again when it is needed.
        let (object, _) = tokio::join!(self.head(key), ahead);
        object
    }

    fn listing_of(&self, prefix: &str) -> Option<SharedListing> {
        let memory = self.memory.lock();
        memory.listings.iter().rev().find(|listing| listing.lock().prefix() == prefix).cloned()
    }

    async fn ask(&self, key: &ObjectKey) -> Result<Found, BosError> {
        let asked_at = Instant::now();
        let prefix = format!("{key}/");
        let (head, list) =
            tokio::join!(self.client.head_object(key), self.client.list_objects(&prefix, Some('/'), None, 1));
        let list = list?;
        let is_dir = !list.objects.is_empty() || !list.prefixes.is_empty();
        let head = match head {
            Ok(meta) => Some(meta),
            Err(error) if error.kind == BosErrorKind::NoSuchKey => None,
            Err(_) if is_dir => None,
            Err(error) => return Err(error),
        };
        if is_dir {
            if head.is_some() {
                self.tell_shadowed(Shadowed {
                    key: key.to_string(),
                    reason: "a directory of the same name hides this object",
                });
            }
            let has_marker = list.objects.first().is_some_and(|object| object.key == prefix);
            let attrs = if has_marker { self.marker_attrs(key).await? } else { self.plain_dir() };
            return Ok(Found::Dir { attrs });
        }
        if let Some(meta) = head {
            return Ok(Found::Object(self.learn(key, meta)));
        }
        let mut memory = self.memory.lock();
        if memory.kept_dirs.contains(&prefix) {
            return Ok(Found::Dir { attrs: self.plain_dir() });
        }
        memory.absent.insert(key.as_str(), asked_at);
        Ok(Found::Absent)
    }

    /// The object under `key`, by HEAD. `None`: there is none.
    ///
    /// # Errors
    /// BOS could not be asked.
    pub async fn head(&self, key: &ObjectKey) -> Result<Option<Object>, BosError> {
        match self.client.head_object(key).await {
            Ok(meta) => Ok(Some(self.learn(key, meta))),
            Err(error) if error.kind == BosErrorKind::NoSuchKey => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a listed object was last seen with, if it is still the same one.
    pub fn known_object(&self, key: &ObjectKey, size: u64, etag: &ETag, last_modified: i64) -> Option<Object> {
        let memory = self.memory.lock();
        let known = memory.objects.get(key.as_str())?;
        let same = known.size == size && known.etag == *etag && known.last_modified == last_modified;
        same.then(|| known.clone())
    }

    fn learn(&self, key: &ObjectKey, meta: ObjectMeta) -> Object {
        let plain = self.defaults.file(Timestamp { sec: meta.last_modified, nsec: 0 });
        let object = Object {
            size: meta.size,
            etag: meta.etag,
            last_modified: meta.last_modified,
            attrs: posix_meta::read_attrs(&meta.headers.metadata, plain),
            headers: meta.headers,
        };
        let mut memory = self.memory.lock();
        memory.absent.remove(key.as_str());
        memory.objects.insert(key.as_str().to_owned(), object.clone());
        object
    }

    async fn marker_attrs(&self, key: &ObjectKey) -> Result<FileAttrs, BosError> {
        let Ok(marker) = ObjectKey::parse(&format!("{key}/")) else { return Ok(self.plain_dir()) };
        match self.client.head_object(&marker).await {
            Ok(meta) => {
                let plain = self.defaults.directory(Timestamp { sec: meta.last_modified, nsec: 0 });
                Ok(posix_meta::read_attrs(&meta.headers.metadata, plain))
            }
            Err(error) if error.kind == BosErrorKind::NoSuchKey => Ok(self.plain_dir()),
            Err(error) => Err(error),
        }
    }

    /// What a fresh listing says, and since when. `None`: nothing; a sure no is put among the absent names.
    fn remembered(&self, prefix: &str, name: &str, key: &ObjectKey) -> Option<(Listed, Instant)> {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        let memory = &mut *memory;
        let shared = memory.listings.iter().rev().find(|listing| listing.lock().prefix() == prefix)?;
        let ttl = self.listing_ttl(shared);
        let listing = shared.lock();
        let (found, asked_at) = listing.find(name)?;
        let stale = now.saturating_duration_since(asked_at) >= ttl;
        let overtaken = memory.changed.get(key.as_str()).is_some_and(|changed| *changed >= asked_at);
        if stale || overtaken {
            return None;
        }
        let dir = format!("{key}/");
        if found.is_none() && !memory.kept_dirs.contains(&dir) {
            memory.absent.insert(key.as_str(), asked_at);
        }
        found.map(|listed| (listed.clone(), asked_at))
    }

    /// Longer while a directory handle shares the listing.
    fn listing_ttl(&self, listing: &SharedListing) -> Duration {
        let is_open = Arc::strong_count(listing) > 1;
        if is_open && !self.ttl.is_zero() { self.ttl.max(OPEN_LISTING_TTL) } else { self.ttl }
    }

    /// A new listing of the directory with `prefix`, to be filled by [`fetch_page`](Self::fetch_page).
    pub fn new_listing(&self, prefix: &str) -> SharedListing {
        self.remember_listing(Listing::new(prefix))
    }

    fn remember_listing(&self, listing: Listing) -> SharedListing {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        memory.listings.retain(|shared| {
            let ttl = self.listing_ttl(shared);
            let known = shared.lock();
            let fresh = known.asked_at().is_none_or(|at| now.saturating_duration_since(at) < ttl);
            fresh && known.prefix() != listing.prefix()
        });
        if memory.listings.len() >= LISTINGS_REMEMBERED {
            memory.listings.remove(0);
        }
        let shared = Arc::new(Mutex::new(listing));
        memory.listings.push(shared.clone());
        shared
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
        let shadowed = {
            let mut listing = listing.lock();
            // Somebody else fetched the same page meanwhile.
            if *listing.next() != next {
                return Ok(());
            }
            listing.add_page(page, asked_at)
        };
        for shadowed in shadowed {
            self.tell_shadowed(shadowed);
        }
        Ok(())
    }

    /// Whether nothing is under `prefix` but its marker and keys that `ignored` names.
    ///
    /// # Errors
    /// BOS could not be asked.
    pub async fn is_empty(&self, prefix: &str, ignored: &HashSet<String>) -> Result<bool, BosError> {
        let max_keys = u32::try_from(ignored.len()).unwrap_or(PAGE_KEYS).saturating_add(2).min(PAGE_KEYS);
        let mut marker: Option<String> = None;
        loop {
            let page = self.client.list_objects(prefix, None, marker.as_deref(), max_keys).await?;
            if page.objects.iter().any(|object| object.key != prefix && !ignored.contains(&object.key)) {
                return Ok(false);
            }
            match page.next_marker {
                Some(next) => marker = Some(next),
                None => return Ok(true),
            }
        }
    }

    /// Writes the marker of the directory with `prefix`.
    ///
    /// # Errors
    /// BOS did not take it.
    pub async fn put_marker(&self, prefix: &str, attrs: &FileAttrs) -> Result<(), BosError> {
        let Ok(key) = ObjectKey::parse(prefix) else { return Ok(()) };
        let mut headers =
            ObjectHeaders { content_type: Some(posix_meta::DIRECTORY_TYPE.to_owned()), ..Default::default() };
        posix_meta::write_attrs(&mut headers.metadata, attrs);
        let body = Body::Bytes(Bytes::new());
        self.client.put_object(&key, body, &Md5::of(b""), &headers, &Condition::Any).await?;
        Ok(())
    }

    /// A directory was made at `prefix` a moment ago: nothing is in it.
    pub fn dir_made(&self, prefix: &str) {
        self.changed(prefix.trim_end_matches('/'), false);
        self.remember_listing(Listing::empty(prefix, Instant::now()));
    }

    /// The directory at `prefix` was removed.
    pub fn dir_removed(&self, prefix: &str) {
        self.memory.lock().kept_dirs.remove(prefix);
        self.changed(prefix.trim_end_matches('/'), true);
    }

    /// The directory at `prefix` stays visible although its last child may have gone.
    pub fn keep_dir(&self, prefix: &str) {
        if prefix != self.prefix {
            self.memory.lock().kept_dirs.insert(prefix.to_owned());
        }
    }

    /// Names of the directories directly under `prefix` that are kept.
    pub fn kept_under(&self, prefix: &str) -> Vec<String> {
        let memory = self.memory.lock();
        let names = memory.kept_dirs.iter().filter_map(|dir| dir.strip_prefix(prefix)?.split('/').next());
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// This mount changed `key` (`absent`: removed it): what older listings say of it counts no more.
    pub fn changed(&self, key: &str, absent: bool) {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        memory.changed.insert(key.to_owned(), now);
        memory.objects.remove(key);
        if absent {
            memory.absent.insert(key, now);
        } else {
            memory.absent.remove(key);
        }
    }

    /// Whether this mount changed `key` after `asked_at` so that it is gone.
    pub fn removed_since(&self, key: &str, asked_at: Instant) -> bool {
        let memory = self.memory.lock();
        let changed = memory.changed.get(key).is_some_and(|at| *at >= asked_at);
        changed && memory.absent.contains(key, Instant::now())
    }

    fn tell_shadowed(&self, shadowed: Shadowed) {
        let mut memory = self.memory.lock();
        if memory.shadowed.len() < SHADOWED_MAX && !memory.shadowed.contains_key(&shadowed.key) {
            log::warn!("{:?} is not shown in the mount: {}", shadowed.key, shadowed.reason);
            memory.shadowed.insert(shadowed.key, shadowed.reason);
        }
    }

    /// Keys that the mount cannot show, with the reason.
    pub fn shadowed(&self) -> Vec<(String, &'static str)> {
        self.memory.lock().shadowed.iter().map(|(key, reason)| (key.clone(), *reason)).collect()
    }
}
