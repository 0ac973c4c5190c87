//! What HEAD and publications taught of objects: in memory, and behind it on disk.
//!
//! A listing tells key, size, ETag and Last-Modified; if an object is remembered with exactly these, its attributes need
//! not be asked for. The answer to a publication of this mount does not tell Last-Modified: it lies between the server's
//! times of sending and answer, and the first listing that shows it settles it.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Object;
use super::attribute_file::AttributeFile;
use super::memory::BoundedMap;
use crate::bos::client::ObjectHeaders;
use crate::object::{ETag, Timestamp};

/// Objects that are remembered in memory.
const OBJECTS_REMEMBERED: usize = 100_000;
/// Directories whose times are remembered in memory.
const TIMES_REMEMBERED: usize = 20_000;
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
        headers: Box<ObjectHeaders>,
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
pub struct Attributes {
    known: BoundedMap<String, Known>,
    times: BoundedMap<String, Option<DirTimes>>,
    file: Option<AttributeFile>,
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

impl Attributes {
    /// With the file in the state directory `dir`, or in memory only.
    pub fn new(dir: Option<&Path>) -> Self {
        Self {
            known: BoundedMap::new(OBJECTS_REMEMBERED),
            times: BoundedMap::new(TIMES_REMEMBERED),
            file: dir.and_then(AttributeFile::open),
        }
    }

    /// What is remembered of `key`.
    pub fn fact(&mut self, key: &str) -> Option<&Fact> {
        if self.known.get(key).is_none() {
            let row = self.file.as_ref()?.get(&object_row(key))?;
            let fact = serde_json::from_slice(&row).ok()?;
            self.known.insert(key.to_owned(), Known { fact, stored: None });
        }
        self.known.get(key).map(|known| &known.fact)
    }

    /// The headers of the object that a listing shows so, if it is remembered.
    pub fn headers(&mut self, key: &str, size: u64, etag: &ETag, last_modified: i64) -> Option<&ObjectHeaders> {
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
            self.insert(key, known);
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
    pub fn learn(&mut self, key: &str, fact: Fact) {
        if let Some(known) = self.known.get(key)
            && known.fact == fact
        {
            return;
        }
        self.insert(key, Known { fact, stored: None });
    }

    /// This mount stored `object` under `key`. Without times it cannot be told from others in a later listing and is
    /// remembered in memory only.
    pub fn stored(&mut self, key: &str, object: &Object, between: Option<(i64, i64)>) {
        let modified = match (object.last_modified, between) {
            (0, Some((from, to))) => Modified::Between(from, to),
            // Fits no time.
            (0, None) => Modified::Between(i64::MAX, i64::MIN),
            (at, _) => Modified::At(at),
        };
        let fact = Fact::Object {
            size: object.size,
            etag: object.etag.clone(),
            modified,
            headers: Box::new(object.headers.clone()),
        };
        self.insert(key, Known { fact, stored: Some(Instant::now()) });
    }

    /// Nothing is known of `key` any more.
    pub fn forget(&mut self, key: &str) {
        self.known.remove(key);
        if let Some(file) = &self.file {
            file.set(&object_row(key), None);
        }
    }

    /// [`forget`](Self::forget), also after a kill: another object has the key, which may look alike.
    pub fn forget_replaced(&mut self, key: &str) {
        self.known.remove(key);
        if let Some(file) = &self.file {
            file.set_over(&object_row(key), None, |_| true);
        }
    }

    /// Nothing is known of the directory with `prefix` any more, also after a kill: another one has its place, whose marker
    /// may look alike.
    pub fn forget_dir(&mut self, prefix: &str) {
        self.forget_replaced(prefix);
        self.times.insert(prefix.to_owned(), None);
        if let Some(file) = &self.file {
            file.set_over(&times_row(prefix), None, |_| true);
        }
    }

    fn insert(&mut self, key: &str, known: Known) {
        if let Some(file) = &self.file {
            let row = serde_json::to_vec(&known.fact).ok();
            // Listings have whole seconds: an object may look like one that had the name before, with other attributes, also
            // where others came between. After a kill the older row would be believed, so the newer one is put on disk at
            // once.
            let looks_alike = |older: &[u8]| match (serde_json::from_slice(older), &known.fact) {
                (
                    Ok(Fact::Object { size, etag, headers, .. }),
                    Fact::Object { size: new_size, etag: new_etag, headers: new_headers, .. },
                ) => (size, &etag) == (*new_size, new_etag) && headers != *new_headers,
                _ => false,
            };
            file.set_over(&object_row(key), row.as_deref(), looks_alike);
        }
        self.known.insert(key.to_owned(), known);
    }

    /// Times of the directory with `prefix` that differ from those of its marker.
    pub fn times(&mut self, prefix: &str) -> Option<DirTimes> {
        if let Some(known) = self.times.get(prefix) {
            return *known;
        }
        let row = self.file.as_ref().and_then(|file| file.get(&times_row(prefix)));
        let times = row.and_then(|row| serde_json::from_slice(&row).ok());
        self.times.insert(prefix.to_owned(), times);
        times
    }

    /// Sets or forgets them.
    pub fn set_times(&mut self, prefix: &str, times: Option<DirTimes>) {
        if let Some(file) = &self.file {
            let row = times.and_then(|times| serde_json::to_vec(&times).ok());
            file.set(&times_row(prefix), row.as_deref());
        }
        self.times.insert(prefix.to_owned(), times);
    }

    /// Target of the symbolic link that `key` was with this content.
    pub fn link_target(&self, key: &str, etag: &ETag) -> Option<Vec<u8>> {
        let row = self.file.as_ref()?.get(&link_row(key))?;
        let at = row.iter().position(|byte| *byte == 0)?;
        (row[..at] == *etag.as_str().as_bytes()).then(|| row[at + 1..].to_vec())
    }

    /// Remembers it.
    pub fn learn_link(&self, key: &str, etag: &ETag, target: &[u8]) {
        if let Some(file) = &self.file {
            file.set(&link_row(key), Some(&[etag.as_str().as_bytes(), b"\0", target].concat()));
        }
    }

    /// Writes what waits and closes the file. What is learned later stays in memory.
    pub fn take_file(&mut self) -> Option<AttributeFile> {
        self.file.take()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::object::FileAttrs;

    fn object(etag: &str, last_modified: i64) -> Object {
        Object {
            size: 3,
            etag: ETag::new(etag),
            last_modified,
            attrs: FileAttrs { mode: 0o100_644, uid: 0, gid: 0, mtime: Timestamp::default() },
            headers: ObjectHeaders { content_type: Some(etag.to_owned()), ..ObjectHeaders::default() },
        }
    }

    #[test]
    fn an_own_object_is_known_by_the_time_between_sending_and_answer() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Attributes::new(Some(dir.path()));
        memory.stored("k", &object("e", 0), Some((100, 102)));
        for foreign in [(3, "e", 98), (3, "e", 104), (4, "e", 101), (3, "f", 101)] {
            assert_eq!(memory.headers("k", foreign.0, &ETag::new(foreign.1), foreign.2), None, "{foreign:?}");
        }
        assert!(memory.headers("k", 3, &ETag::new("e"), 99).is_some());
        assert!(memory.headers("k", 3, &ETag::new("e"), 100).is_none(), "settled by the first listing");
        drop(memory);
        let mut memory = Attributes::new(Some(dir.path()));
        assert_eq!(memory.headers("k", 3, &ETag::new("e"), 99).unwrap().content_type.as_deref(), Some("e"));
        assert!(memory.own("k", Instant::now() - Duration::from_secs(5)).is_none(), "only of this mount's life");
    }

    #[test]
    fn an_object_that_looks_like_an_earlier_one_of_its_name_is_on_disk_at_once_whatever_came_between() {
        let dir = tempfile::tempdir().unwrap();
        let with_mode = |etag: &str, mode: &str| {
            let mut object = object(etag, 0);
            object.headers.metadata.insert("bosfs-mode".to_owned(), mode.to_owned());
            object
        };
        let mut memory = Attributes::new(Some(dir.path()));
        for key in ["rewritten", "removed"] {
            memory.stored(key, &with_mode("e", "444"), Some((100, 100)));
        }
        drop(memory);
        let mut memory = Attributes::new(Some(dir.path()));
        memory.stored("rewritten", &with_mode("f", "600"), Some((100, 100)));
        memory.forget("removed");
        for key in ["rewritten", "removed"] {
            memory.stored(key, &with_mode("e", "640"), Some((100, 101)));
        }
        // As a kill leaves it.
        let copy = tempfile::tempdir().unwrap();
        let name = super::super::attribute_file::FILE_NAME;
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        let mut after_kill = Attributes::new(Some(copy.path()));
        for key in ["rewritten", "removed"] {
            let headers = after_kill.headers(key, 3, &ETag::new("e"), 100);
            // Not being remembered is no lie: BOS is asked then.
            assert_ne!(headers.map(|headers| headers.metadata["bosfs-mode"].as_str()), Some("444"), "{key}");
        }
    }

    #[test]
    fn without_any_time_nothing_is_taken_for_our_own() {
        let mut memory = Attributes::new(None);
        let before = Instant::now();
        memory.stored("k", &object("e", 0), None);
        for at in [0, 1, i64::MAX, i64::MIN] {
            assert_eq!(memory.headers("k", 3, &ETag::new("e"), at), None);
        }
        assert!(memory.own("k", before).is_some());
        assert!(memory.own("k", Instant::now() + Duration::from_secs(1)).is_none());
    }

    #[test]
    fn exact_times_and_heads_survive_reopening_and_forgetting_does_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Attributes::new(Some(dir.path()));
        memory.stored("copy", &object("e", 77), None);
        memory.learn("d/", Fact::NoMarker);
        memory.learn("gone", Fact::NoMarker);
        memory.forget("gone");
        let times = DirTimes { mtime: Timestamp { sec: 1, nsec: 2 }, ctime: Timestamp { sec: 3, nsec: 4 } };
        memory.set_times("d/", Some(times));
        memory.learn_link("link", &ETag::new("e"), b"../target");
        drop(memory);
        let mut memory = Attributes::new(Some(dir.path()));
        assert!(memory.headers("copy", 3, &ETag::new("e"), 77).is_some());
        assert_eq!(memory.fact("d/"), Some(&Fact::NoMarker));
        assert_eq!(memory.fact("gone"), None);
        assert_eq!(memory.times("d/"), Some(times));
        assert_eq!(memory.times("e/"), None);
        assert_eq!(memory.link_target("link", &ETag::new("e")).as_deref(), Some(&b"../target"[..]));
        assert_eq!(memory.link_target("link", &ETag::new("f")), None);
    }
}
