//! What HEAD and publications taught of objects: in memory, and behind it on disk.
//!
//! A listing tells key, size, ETag and Last-Modified; if an object is remembered with exactly these, its attributes need
//! not be asked for. The answer to a publication of this mount does not tell Last-Modified: it lies between the server's
//! times of sending and answer, and the first listing that shows it settles it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Object;
use super::attribute_file::{AttributeFile, Row};
use super::headers::PackedHeaders;
use super::memory::BoundedMap;
use crate::object::{ETag, Timestamp};

/// Tolerance at both ends of the time between sending and answer, seconds: `Date` and Last-Modified have whole seconds
/// and may come from two machines.
const SLACK_S: i64 = 1;

/// When BOS stored an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Modified {
    /// Exactly then (Last-Modified).
    At(i64),
    /// Some time between these two, both included.
    Between(i64, i64),
}

impl Modified {
    /// Whether `last_modified` can be it.
    pub fn fits(self, last_modified: i64) -> bool {
        self.window().is_some_and(|(from, to)| (from..=to).contains(&last_modified))
    }

    /// The values of Last-Modified that can be it, both ends included. `None`: the time is not known.
    pub fn window(self) -> Option<(i64, i64)> {
        match self {
            Modified::At(at) => Some((at, at)),
            Modified::Between(from, to) if from > to => None,
            Modified::Between(from, to) => Some((from.saturating_sub(SLACK_S), to.saturating_add(SLACK_S))),
        }
    }
}

/// What is remembered of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// An object.
    Object {
        /// Size in bytes.
        size: u64,
        /// Which content.
        etag: ETag,
        /// When BOS stored it.
        modified: Modified,
        /// Everything it carries.
        headers: PackedHeaders,
    },
    /// A directory without a marker (keys that end in `/` only).
    NoMarker,
}

/// Times of a directory, which BOS is not told with every change in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirTimes {
    /// Last change of the entries, or as set since.
    pub mtime: Timestamp,
    /// Last change of entries or attributes.
    pub ctime: Timestamp,
}

#[derive(Clone)]
struct Known {
    fact: Fact,
    /// When this mount itself stored it; `None`: BOS told of it.
    stored: Option<Instant>,
}

/// The memory of attributes. Not thread-safe; the file behind it is.
///
/// Whoever shares it behind a lock must not wait for the disk there. So questions are answered from memory alone: what the
/// file has of a key is brought into memory before, by [`Attributes::missing`], [`Missing::read`] without the lock, and
/// [`Attributes::recall`]. And what has to be on disk before others hear of it is waited for by [`Overwrite::settle`] behind
/// the lock.
pub struct Attributes {
    known: BoundedMap<String, Known>,
    times: BoundedMap<String, Option<DirTimes>>,
    /// Headers that many objects have, once.
    alike: BoundedMap<PackedHeaders, PackedHeaders>,
    file: Option<Arc<AttributeFile>>,
}

/// A row that memory lacks and the file may have.
pub struct Missing {
    file: Arc<AttributeFile>,
    row: String,
}

/// What the file has of a row that memory lacks.
pub struct Found {
    file: Arc<AttributeFile>,
    row: String,
    read: Row,
}

impl Missing {
    /// Reads it. Waits for the disk.
    pub fn read(self) -> Found {
        let read = self.file.read(&self.row);
        Found { file: self.file, row: self.row, read }
    }
}

impl Found {
    /// Its content (`Some(None)`: there is no such row), unless it was changed since it was read.
    fn content(&self) -> Option<Option<&[u8]>> {
        self.file.use_row(&self.row, &self.read)
    }
}

/// What the disk has under a name whose new row could be taken for the old one.
enum Misleads {
    /// Any row.
    Any,
    /// One of an object that looks like this one in a listing, and has other headers. Listings have whole seconds: an object
    /// may look like one that had the name before, also where others came between. After a kill the older row would be
    /// believed, so the newer one is put on disk at once.
    LooksLike(Fact),
}

/// A row was set in place of another one.
#[must_use = "the older row may still be on disk"]
pub struct Overwrite(Option<(Arc<AttributeFile>, String, Misleads)>);

impl Overwrite {
    /// Where the disk has, or is about to get, an older row that misleads, waits until the new one survives a kill of this
    /// process; never long, as it is a cache. Not to be called under a lock.
    pub fn settle(self) {
        let Some((file, row, misleads)) = self.0 else { return };
        file.wait_over(&row, |older| match &misleads {
            Misleads::Any => true,
            Misleads::LooksLike(new) => looks_alike(older, new),
        });
    }
}

fn looks_alike(older: &[u8], new: &Fact) -> bool {
    match (serde_json::from_slice(older), new) {
        (
            Ok(Fact::Object { size, etag, headers, .. }),
            Fact::Object { size: new_size, etag: new_etag, headers: new_headers, .. },
        ) => (size, &etag) == (*new_size, new_etag) && headers != *new_headers,
        _ => false,
    }
}

fn object_row(key: &str) -> String {
    format!("o{key}")
}

fn times_row(prefix: &str) -> String {
    format!("t{prefix}")
}

fn link_row(key: &str) -> String {
    format!("l{key}")
}

/// Headers that are kept once for all objects that have them.
const HEADERS_ALIKE: usize = 64;

impl Attributes {
    /// With the file in the state directory `dir`, or in memory only: `objects` of them, and the times of `dirs` directories.
    pub fn new(dir: Option<&Path>, objects: usize, dirs: usize) -> Self {
        Self {
            known: BoundedMap::new(objects),
            times: BoundedMap::new(dirs),
            alike: BoundedMap::new(HEADERS_ALIKE),
            file: dir.and_then(AttributeFile::open).map(Arc::new),
        }
    }

    /// What would have to be read so that [`fact`](Self::fact) and, of a directory, [`times`](Self::times) can tell all that is
    /// remembered of `key`.
    pub fn missing(&self, key: &str) -> Vec<Missing> {
        let Some(file) = &self.file else { return Vec::new() };
        let fact = self.known.get(key).is_none().then(|| object_row(key));
        let is_dir = key.is_empty() || key.ends_with('/');
        let times = (is_dir && self.times.get(key).is_none()).then(|| times_row(key));
        fact.into_iter().chain(times).map(|row| Missing { file: file.clone(), row }).collect()
    }

    /// Takes over what was read, unless something newer is known.
    pub fn recall(&mut self, found: &Found) {
        let (kind, key) = found.row.split_at(1);
        if kind == "t" {
            if self.times.get(key).is_none()
                && let Some(content) = found.content()
            {
                let times = content.and_then(|content| serde_json::from_slice(content).ok());
                self.times.insert(key.to_owned(), times);
            }
        } else if self.known.get(key).is_none()
            && let Some(fact) = found.content().flatten().and_then(|content| serde_json::from_slice(content).ok())
        {
            self.keep(key, Known { fact, stored: None });
        }
    }

    /// What is remembered of `key`.
    pub fn fact(&self, key: &str) -> Option<&Fact> {
        self.known.get(key).map(|known| &known.fact)
    }

    /// The headers of the object that a listing shows so, if it is remembered.
    pub fn headers(&mut self, key: &str, size: u64, etag: &ETag, last_modified: i64) -> Option<&PackedHeaders> {
        let learned = match self.fact(key)? {
            Fact::Object { size: s, etag: e, modified, .. } if (*s, e) == (size, etag) => {
                modified.fits(last_modified).then_some(*modified != Modified::At(last_modified))?
            }
            _ => return None,
        };
        if learned {
            // Our own publication, found in a listing: from now on by its exact time.
            let mut known = self.known.get(key)?.clone();
            if let Fact::Object { modified, .. } = &mut known.fact {
                *modified = Modified::At(last_modified);
            }
            self.write(&object_row(key), serde_json::to_vec(&known.fact).ok().as_deref());
            self.keep(key, known);
        }
        match &self.known.get(key)?.fact {
            Fact::Object { headers, .. } => Some(headers),
            Fact::NoMarker => None,
        }
    }

    /// The object that this mount itself stored under `key` not earlier than `since`, and when.
    pub fn own(&self, key: &str, since: Instant) -> Option<(&Fact, Instant)> {
        let known = self.known.get(key)?;
        let stored = known.stored.filter(|at| *at >= since)?;
        Some((&known.fact, stored))
    }

    /// BOS told of `key`.
    pub fn learn(&mut self, key: &str, fact: Fact) -> Overwrite {
        if let Some(known) = self.known.get(key)
            && known.fact == fact
        {
            return Overwrite(None);
        }
        self.insert(key, Known { fact, stored: None })
    }

    /// BOS told that the directory with `prefix` has no marker. A row on disk that says otherwise fits no listing.
    pub fn learn_no_marker(&mut self, prefix: &str) {
        let fact = Fact::NoMarker;
        if self.fact(prefix) != Some(&fact) {
            self.write(&object_row(prefix), serde_json::to_vec(&fact).ok().as_deref());
            self.keep(prefix, Known { fact, stored: None });
        }
    }

    /// This mount stored `object` under `key`. Without times it cannot be told from others in a later listing and is
    /// remembered in memory only.
    pub fn stored(&mut self, key: &str, object: &Object, between: Option<(i64, i64)>) -> Overwrite {
        let modified = match (object.last_modified, between) {
            (0, Some((from, to))) => Modified::Between(from, to),
            // Fits no time.
            (0, None) => Modified::Between(i64::MAX, i64::MIN),
            (at, _) => Modified::At(at),
        };
        let fact =
            Fact::Object { size: object.size, etag: object.etag.clone(), modified, headers: object.headers.clone() };
        self.insert(key, Known { fact, stored: Some(Instant::now()) })
    }

    /// Nothing is known of `key` any more.
    pub fn forget(&mut self, key: &str) {
        self.known.remove(key);
        self.write(&object_row(key), None);
    }

    /// [`forget`](Self::forget), also after a kill: another object has the key, which may look alike.
    pub fn forget_replaced(&mut self, key: &str) -> Overwrite {
        self.forget(key);
        self.over(object_row(key), Misleads::Any)
    }

    /// Nothing is known of the directory with `prefix` any more, also after a kill: another one has its place, whose marker
    /// may look alike.
    pub fn forget_dir(&mut self, prefix: &str) -> [Overwrite; 2] {
        self.set_times(prefix, None);
        [self.forget_replaced(prefix), self.over(times_row(prefix), Misleads::Any)]
    }

    fn insert(&mut self, key: &str, known: Known) -> Overwrite {
        let fact = known.fact.clone();
        self.write(&object_row(key), serde_json::to_vec(&fact).ok().as_deref());
        self.keep(key, known);
        match fact {
            Fact::Object { .. } => self.over(object_row(key), Misleads::LooksLike(fact)),
            Fact::NoMarker => Overwrite(None),
        }
    }

    fn keep(&mut self, key: &str, mut known: Known) {
        if let Fact::Object { headers, .. } = &mut known.fact {
            *headers = self.shared(headers.clone());
        }
        self.known.insert(key.to_owned(), known);
    }

    /// The same headers; the one piece of memory where many objects have them.
    pub fn shared(&mut self, headers: PackedHeaders) -> PackedHeaders {
        if let Some(known) = self.alike.get(&headers) {
            return known.clone();
        }
        self.alike.insert(headers.clone(), headers.clone());
        headers
    }

    /// Times of the directory with `prefix` that differ from those of its marker.
    pub fn times(&self, prefix: &str) -> Option<DirTimes> {
        self.times.get(prefix).copied().flatten()
    }

    /// Whether it is known that no times of the directory are remembered.
    pub fn has_no_times(&self, prefix: &str) -> bool {
        match self.times.get(prefix) {
            Some(times) => times.is_none(),
            None => self.file.is_none(),
        }
    }

    /// Sets or forgets them.
    pub fn set_times(&mut self, prefix: &str, times: Option<DirTimes>) {
        let row = times.and_then(|times| serde_json::to_vec(&times).ok());
        self.write(&times_row(prefix), row.as_deref());
        self.times.insert(prefix.to_owned(), times);
    }

    /// The row with the target of the symbolic link that `key` is.
    pub fn link(&self, key: &str) -> Option<Missing> {
        Some(Missing { file: self.file.clone()?, row: link_row(key) })
    }

    /// Remembers the target of a symbolic link of this content.
    pub fn learn_link(&self, key: &str, etag: &ETag, target: &[u8]) {
        self.write(&link_row(key), Some(&[etag.as_str().as_bytes(), b"\0", target].concat()));
    }

    /// Takes the file away. What is learned later stays in memory. Dropped by the last who reads from it, it writes what waits.
    pub fn take_file(&mut self) -> Option<Arc<AttributeFile>> {
        self.file.take()
    }

    fn write(&self, row: &str, content: Option<&[u8]>) {
        if let Some(file) = &self.file {
            file.set(row, content);
        }
    }

    fn over(&self, row: String, misleads: Misleads) -> Overwrite {
        Overwrite(self.file.clone().map(|file| (file, row, misleads)))
    }
}

impl Found {
    /// Target of the symbolic link of this content, where this is the row of it.
    pub fn link_target(&self, etag: &ETag) -> Option<Vec<u8>> {
        let row = self.content()??;
        let at = row.iter().position(|byte| *byte == 0)?;
        (row[..at] == *etag.as_str().as_bytes()).then(|| row[at + 1..].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bos::client::ObjectHeaders;
    use crate::object::FileAttrs;

    /// As [`Namespace`](super::super::Namespace) uses it, without a lock.
    struct Remembered(Attributes);

    fn open(dir: Option<&Path>) -> Remembered {
        Remembered(Attributes::new(dir, 100, 100))
    }

    impl Remembered {
        fn recalled(&mut self, key: &str) -> &mut Attributes {
            for missing in self.0.missing(key) {
                self.0.recall(&missing.read());
            }
            &mut self.0
        }
        fn headers(&mut self, key: &str, size: u64, etag: &ETag, last_modified: i64) -> Option<ObjectHeaders> {
            self.recalled(key).headers(key, size, etag, last_modified).map(PackedHeaders::unpack)
        }
        fn stored(&mut self, key: &str, object: &Object, between: Option<(i64, i64)>) {
            self.0.stored(key, object, between).settle();
        }
        fn learn(&mut self, key: &str, fact: Fact) {
            self.0.learn(key, fact).settle();
        }
        fn fact(&mut self, key: &str) -> Option<&Fact> {
            self.recalled(key).fact(key)
        }
        fn times(&mut self, prefix: &str) -> Option<DirTimes> {
            self.recalled(prefix).times(prefix)
        }
        fn link_target(&self, key: &str, etag: &ETag) -> Option<Vec<u8>> {
            self.0.link(key)?.read().link_target(etag)
        }
    }

    fn object(etag: &str, last_modified: i64) -> Object {
        Object {
            size: 3,
            etag: ETag::new(etag),
            last_modified,
            attrs: FileAttrs { mode: 0o100_644, uid: 0, gid: 0, mtime: Timestamp::default() },
            headers: ObjectHeaders { content_type: Some(etag.to_owned()), ..ObjectHeaders::default() }.into(),
        }
    }

    #[test]
    fn an_own_object_is_known_by_the_time_between_sending_and_answer() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = open(Some(dir.path()));
        memory.stored("k", &object("e", 0), Some((100, 102)));
        for foreign in [(3, "e", 98), (3, "e", 104), (4, "e", 101), (3, "f", 101)] {
            assert_eq!(memory.headers("k", foreign.0, &ETag::new(foreign.1), foreign.2), None, "{foreign:?}");
        }
        assert!(memory.headers("k", 3, &ETag::new("e"), 99).is_some());
        assert!(memory.headers("k", 3, &ETag::new("e"), 100).is_none(), "settled by the first listing");
        drop(memory);
        let mut memory = open(Some(dir.path()));
        assert_eq!(memory.headers("k", 3, &ETag::new("e"), 99).unwrap().content_type.as_deref(), Some("e"));
        assert!(memory.0.own("k", Instant::now() - Duration::from_secs(5)).is_none(), "only of this mount's life");
    }

    #[test]
    fn an_object_that_looks_like_an_earlier_one_of_its_name_is_on_disk_at_once_whatever_came_between() {
        let dir = tempfile::tempdir().unwrap();
        let with_mode = |etag: &str, mode: &str| {
            let mut object = object(etag, 0);
            let mut headers = object.headers.unpack();
            headers.metadata.insert("bosfs-mode".to_owned(), mode.to_owned());
            object.headers = headers.into();
            object
        };
        let mut memory = open(Some(dir.path()));
        for key in ["rewritten", "removed"] {
            memory.stored(key, &with_mode("e", "444"), Some((100, 100)));
        }
        drop(memory);
        let mut memory = open(Some(dir.path()));
        memory.stored("rewritten", &with_mode("f", "600"), Some((100, 100)));
        memory.0.forget("removed");
        for key in ["rewritten", "removed"] {
            memory.stored(key, &with_mode("e", "640"), Some((100, 101)));
        }
        // As a kill leaves it.
        let copy = tempfile::tempdir().unwrap();
        let name = super::super::attribute_file::FILE_NAME;
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        let mut after_kill = open(Some(copy.path()));
        for key in ["rewritten", "removed"] {
            let headers = after_kill.headers(key, 3, &ETag::new("e"), 100);
            // Not being remembered is no lie: BOS is asked then.
            let mode = headers.as_ref().map(|headers| headers.metadata["bosfs-mode"].as_str());
            assert_ne!(mode, Some("444"), "{key}");
        }
    }

    #[test]
    fn without_any_time_nothing_is_taken_for_our_own() {
        let mut memory = open(None);
        let before = Instant::now();
        memory.stored("k", &object("e", 0), None);
        for at in [0, 1, i64::MAX, i64::MIN] {
            assert_eq!(memory.headers("k", 3, &ETag::new("e"), at), None);
        }
        assert!(memory.0.own("k", before).is_some());
        assert!(memory.0.own("k", Instant::now() + Duration::from_secs(1)).is_none());
    }

    #[test]
    fn exact_times_and_heads_survive_reopening_and_forgetting_does_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = open(Some(dir.path()));
        memory.stored("copy", &object("e", 77), None);
        memory.learn("d/", Fact::NoMarker);
        memory.learn("gone", Fact::NoMarker);
        memory.0.forget("gone");
        let times = DirTimes { mtime: Timestamp { sec: 1, nsec: 2 }, ctime: Timestamp { sec: 3, nsec: 4 } };
        memory.0.set_times("d/", Some(times));
        memory.0.learn_link("link", &ETag::new("e"), b"../target");
        drop(memory);
        let mut memory = open(Some(dir.path()));
        assert!(memory.headers("copy", 3, &ETag::new("e"), 77).is_some());
        assert_eq!(memory.fact("d/"), Some(&Fact::NoMarker));
        assert_eq!(memory.fact("gone"), None);
        assert_eq!(memory.times("d/"), Some(times));
        assert_eq!(memory.times("e/"), None);
        assert_eq!(memory.link_target("link", &ETag::new("e")).as_deref(), Some(&b"../target"[..]));
        assert_eq!(memory.link_target("link", &ETag::new("f")), None);
    }

    #[test]
    fn a_row_that_was_changed_while_it_was_read_is_not_taken_for_the_present_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = open(Some(dir.path()));
        for key in ["removed", "replaced", "same"] {
            memory.stored(key, &object("old", 77), None);
        }
        drop(memory);
        let mut memory = open(Some(dir.path()));
        let reads: Vec<Found> =
            ["removed", "replaced", "same"].iter().flat_map(|key| memory.0.missing(key)).map(Missing::read).collect();
        // In between, without waiting for the disk.
        memory.0.forget("removed");
        drop(memory.0.stored("replaced", &object("new", 78), None));
        memory.0.known.remove("replaced");
        for read in &reads {
            memory.0.recall(read);
        }
        assert_eq!(memory.0.fact("removed"), None);
        assert_eq!(memory.0.fact("replaced"), None, "not known rather than wrong");
        assert!(memory.0.fact("same").is_some());
        assert!(memory.headers("replaced", 3, &ETag::new("new"), 78).is_some());
    }

    #[test]
    fn headers_that_many_objects_have_are_kept_once() {
        let mut memory = Attributes::new(None, 100, 100);
        drop(memory.stored("a", &object("e", 1), None));
        drop(memory.stored("b", &object("e", 1), None));
        let heads = ["a", "b"].map(|key| match memory.fact(key) {
            Some(Fact::Object { headers, .. }) => headers.clone(),
            _ => panic!("{key} is not known"),
        });
        assert!(heads[0].is_same_piece(&heads[1]));
    }
}
