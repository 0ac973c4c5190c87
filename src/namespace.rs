//! Maps paths to keys and keeps what lookups and listings taught about them.
//!
//! ```text
//!   resolve    names: memory, then one page for many lookups, or HEAD and LIST for one
//!   dirs       directories: markers, times, pages that handles read
//!      v
//!   pages      listings that lookups are answered from       attributes   what objects carry (memory, then disk)
//!   listing    one of them                                   memory       absent names, changes of this mount
//!                                                            kept         directories that do not vanish
//! ```

mod attribute_file;
pub mod attributes;
mod dirs;
pub mod headers;
pub mod inode;
mod kept;
pub mod listing;
pub mod memory;
mod names_full;
mod pages;
mod resolve;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::bos::client::{BosClient, ListedObject, ObjectMeta};
use crate::bos::error::{BosError, BosErrorKind};
use crate::object::{ETag, FileAttrs, KeyError, ObjectKey, Timestamp};
use crate::posix_meta::{self, AttrDefaults};
use attributes::{Attributes, Fact, Missing, Modified};
use headers::PackedHeaders;
use kept::KeptDirs;
use listing::{ListingBudget, Shadowed};
use memory::{AbsentNames, BoundedMap, Changes, Shares};
use pages::Pages;

pub use names_full::NamesFull;
pub use pages::SharedListing;

/// Entries per page of a listing (BOS gives no more).
const PAGE_KEYS: u32 = 1000;
/// BOS promises nothing about how soon a listing shows what was stored. For so long a listing that does not show an own
/// object is checked by HEAD.
const LISTING_LAG: Duration = Duration::from_secs(60);
/// Keys that are told as shadowed: so many, and so many bytes of them.
const SHADOWED_MAX: usize = 10_000;
/// See [`SHADOWED_MAX`].
const SHADOWED_BYTES_MAX: usize = 1 << 20;
/// Turns for requests from whose answer others can be answered, by hash of the directory.
const TURNS: usize = 256;

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
    pub headers: PackedHeaders,
}

/// What is under a prefix.
#[derive(Clone, Debug)]
pub enum Emptiness {
    /// Something that counts.
    Full,
    /// Nothing but perhaps the marker, as it was listed.
    Empty {
        /// `None`: there is none.
        marker: Option<ListedObject>,
    },
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

struct Memory {
    attributes: Attributes,
    absent: AbsentNames,
    changes: Changes,
    pages: Pages,
    /// Attributes of directories by prefix, and when they were confirmed.
    markers: BoundedMap<String, (FileAttrs, Instant)>,
    /// Attributes of directories (by prefix) that are on their way to BOS.
    pending_dirs: HashMap<String, FileAttrs>,
    /// Directories (as prefixes) that stay although nothing may be under them any more.
    kept_dirs: KeptDirs,
    shadowed: BTreeMap<String, &'static str>,
    shadowed_bytes: usize,
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
    /// Locked before any listing, never after. Never held while the disk or BOS is waited for.
    memory: Mutex<Memory>,
    /// Memory of all listings.
    listings: Arc<ListingBudget>,
    /// Held while a page is fetched, so that lookups of one directory at the same time cost one request together.
    turns: Vec<tokio::sync::Mutex<()>>,
}

impl Namespace {
    /// Over `prefix` (with or without the final `/`); answers are believed for `ttl`. What objects carry is remembered in
    /// the directory `state_dir` across mounts. Memory keeps to `shares`.
    pub fn new(
        client: BosClient,
        prefix: &str,
        ttl: Duration,
        defaults: AttrDefaults,
        state_dir: Option<&Path>,
        shares: &Shares,
    ) -> Self {
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let listings = ListingBudget::new(shares.listings_bytes);
        Self {
            client,
            ttl,
            defaults,
            mounted_at: Timestamp::now(),
            memory: Mutex::new(Memory {
                attributes: Attributes::new(state_dir, shares.objects, shares.dirs),
                absent: AbsentNames::new(shares.absent, ttl),
                changes: Changes::new(shares.changes),
                pages: Pages::new(ttl, listings.clone(), shares.changed_dirs),
                markers: BoundedMap::new(shares.dirs),
                pending_dirs: HashMap::new(),
                kept_dirs: KeptDirs::new(&prefix, shares.kept_dirs),
                shadowed: BTreeMap::new(),
                shadowed_bytes: 0,
            }),
            listings,
            prefix,
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::new(())).collect(),
        }
    }

    /// Writes what was learned to disk and closes the file, as far as nobody else does it.
    pub fn close_memory(&self) {
        let file = self.memory.lock().attributes.take_file();
        // Not under the lock: the disk may be slow.
        drop(file);
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

    /// The object under `key`, by HEAD. `None`: there is none.
    ///
    /// # Errors
    /// BOS could not be asked.
    pub async fn head(&self, key: &ObjectKey) -> Result<Option<Object>, BosError> {
        let asked_at = Instant::now();
        match self.client.head_object(key).await {
            Ok(meta) => Ok(Some(self.learn(key, meta, asked_at))),
            Err(error) if error.kind == BosErrorKind::NoSuchKey => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a listed object was last seen with, if it is still the same one.
    pub fn known_object(&self, key: &ObjectKey, size: u64, etag: &ETag, last_modified: i64) -> Option<Object> {
        let mut memory = self.recalled(&[key.as_str()]);
        let headers = memory.attributes.headers(key.as_str(), size, etag, last_modified)?.clone();
        drop(memory);
        Some(self.object(size, etag.clone(), last_modified, headers))
    }

    /// Between which times BOS stored the object with this ETag under `key`, both included, as far as that is remembered.
    pub fn stored_between(&self, key: &str, etag: &ETag) -> Option<(i64, i64)> {
        match self.recalled(&[key]).attributes.fact(key)? {
            Fact::Object { etag: known, modified, .. } if known == etag => modified.window(),
            _ => None,
        }
    }

    /// ETag and times, as far as they are known, of the object that this mount itself stored under `key`: not earlier than a
    /// listing asked for at `asked_at` may be late.
    pub fn stored_lately(&self, key: &str, asked_at: Instant) -> Option<(ETag, Option<(i64, i64)>)> {
        let lately = asked_at.checked_sub(LISTING_LAG).unwrap_or(asked_at);
        let memory = self.memory.lock();
        match memory.attributes.own(key, lately)? {
            (Fact::Object { etag, modified, .. }, _) => Some((etag.clone(), modified.window())),
            (Fact::NoMarker, _) => None,
        }
    }

    /// The memory, once it has what the disk remembers of `keys` (of directories: prefixes). The disk is read before the
    /// memory is locked.
    fn recalled(&self, keys: &[&str]) -> MutexGuard<'_, Memory> {
        let memory = self.memory.lock();
        let missing: Vec<Missing> = keys.iter().flat_map(|key| memory.attributes.missing(key)).collect();
        if missing.is_empty() {
            return memory;
        }
        drop(memory);
        let found: Vec<_> = missing.into_iter().map(Missing::read).collect();
        let mut memory = self.memory.lock();
        found.iter().for_each(|found| memory.attributes.recall(found));
        memory
    }

    /// Whether a listing that shows the object under `key` may tell all of it.
    pub fn remembers(&self, key: &ObjectKey) -> bool {
        !self.ttl.is_zero() && self.recalled(&[key.as_str()]).attributes.fact(key.as_str()).is_some()
    }

    fn object(&self, size: u64, etag: ETag, last_modified: i64, headers: PackedHeaders) -> Object {
        let plain = self.defaults.file(Timestamp { sec: last_modified, nsec: 0 });
        let attrs = posix_meta::read_attrs(&headers.metadata(), plain);
        Object { size, etag, last_modified, attrs, headers }
    }

    /// What HEAD said, asked for at `asked_at`; remembered unless this mount changed the key since.
    fn learn(&self, key: &ObjectKey, meta: ObjectMeta, asked_at: Instant) -> Object {
        let mut object = self.object(meta.size, meta.etag, meta.last_modified, meta.headers.into());
        let mut memory = self.memory.lock();
        object.headers = memory.attributes.shared(object.headers);
        if memory.changes.overtook(key.as_str(), asked_at) {
            return object;
        }
        let fact = Fact::Object {
            size: object.size,
            etag: object.etag.clone(),
            modified: Modified::At(object.last_modified),
            headers: object.headers.clone(),
        };
        memory.absent.remove(key.as_str());
        let overwrite = memory.attributes.learn(key.as_str(), fact);
        drop(memory);
        overwrite.settle();
        object
    }

    /// This mount stored `object` under `key`: a publication, a copy, a new marker. `stored_between`: see
    /// [`stored_between`](crate::bos::client::stored_between); not needed where `object.last_modified` is known (copies). The next listing that shows the
    /// object is then believed without asking for its attributes, also after a remount.
    pub fn learn_published(&self, key: &ObjectKey, object: &Object, stored_between: Option<(i64, i64)>) {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        memory.note_change(key.as_str(), now, false);
        let overwrite = memory.attributes.stored(key.as_str(), object, stored_between);
        drop(memory);
        overwrite.settle();
    }

    /// Target of the symbolic link with this content, where it is remembered.
    pub fn link_target(&self, key: &ObjectKey, etag: &ETag) -> Option<Vec<u8>> {
        let row = self.memory.lock().attributes.link(key.as_str())?;
        row.read().link_target(etag)
    }

    /// The symbolic link with this content has this target.
    pub fn learn_link(&self, key: &ObjectKey, etag: &ETag, target: &[u8]) {
        self.memory.lock().attributes.learn_link(key.as_str(), etag, target);
    }

    /// This mount changed `key` (`absent`: removed it): what older listings say of it counts no more.
    pub fn changed(&self, key: &str, absent: bool) {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        memory.attributes.forget(key);
        memory.note_change(key, now, absent);
    }

    /// An object took the name `key`, by a rename: what older listings say of the key counts no more. What was learned of
    /// the object under its new name stays.
    pub fn renamed_to(&self, key: &str) {
        self.memory.lock().note_change(key, Instant::now(), false);
    }

    /// This mount changed everything under `prefix` (which ends in `/`): nothing older is believed of it. Publications
    /// under it may be told by [`learn_published`](Self::learn_published) before or after.
    pub fn tree_changed(&self, prefix: &str) {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        memory.changes.insert_tree(prefix, now);
        memory.pages.forget_tree(prefix);
        memory.note_change(prefix.trim_end_matches('/'), now, false);
    }

    /// Whether this mount changed `key` after `asked_at` so that it is gone.
    pub fn removed_since(&self, key: &str, asked_at: Instant) -> bool {
        let memory = self.memory.lock();
        memory.changes.of(key).is_some_and(|change| change.gone && change.at >= asked_at)
    }

    fn tell_shadowed(&self, shadowed: Shadowed) {
        let mut memory = self.memory.lock();
        let room = memory.shadowed.len() < SHADOWED_MAX && memory.shadowed_bytes < SHADOWED_BYTES_MAX;
        if room && !memory.shadowed.contains_key(&shadowed.key) {
            log::warn!("{:?} is not shown in the mount: {}", shadowed.key, shadowed.reason);
            memory.shadowed_bytes += shadowed.key.len();
            memory.shadowed.insert(shadowed.key, shadowed.reason);
        }
    }

    /// Keys that the mount cannot show, with the reason.
    pub fn shadowed(&self) -> Vec<(String, &'static str)> {
        self.memory.lock().shadowed.iter().map(|(key, reason)| (key.clone(), *reason)).collect()
    }
}

impl Memory {
    fn note_change(&mut self, key: &str, now: Instant, gone: bool) {
        self.changes.insert(key, now, gone);
        let name_at = key.trim_end_matches('/').rfind('/').map_or(0, |at| at + 1);
        self.pages.changed(&key[..name_at], now);
        if gone {
            self.absent.insert(key, now);
        } else {
            self.absent.remove(key);
        }
    }
}

/// Which of `count` turns belongs to `prefix`.
fn turn_of(prefix: &str, count: usize) -> usize {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    prefix.hash(&mut hasher);
    (hasher.finish() % count as u64) as usize
}

/// A listing that this mount may share between a handle and lookups.
fn shared(listing: listing::Listing) -> SharedListing {
    Arc::new(Mutex::new(listing))
}
