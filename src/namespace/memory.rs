//! What answers of BOS taught, kept within bounds.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How the memory of a mount (`--memory-limit`) is shared out. Half of it is for blocks that are read; the rest is for what is
/// known of names: kept by these shares, in bytes and in entries of a usual size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Inodes that the kernel knows, bytes.
    pub inodes_bytes: u64,
    /// Pages of listings: of open directories, and those that lookups are answered from, bytes.
    pub listings_bytes: u64,
    /// Objects whose attributes are remembered in memory.
    pub objects: usize,
    /// Directories whose times, and as many whose markers, are remembered in memory.
    pub dirs: usize,
    /// Changes of this mount that are remembered.
    pub changes: usize,
    /// Directories whose last change, and as many whose listings, are remembered.
    pub changed_dirs: usize,
    /// Names whose absence is remembered.
    pub absent: usize,
    /// Directories that are kept although nothing is left under them.
    pub kept_dirs: usize,
}

impl Shares {
    /// Of a mount that may take `memory_bytes`.
    pub fn of(memory_bytes: u64) -> Self {
        // Bytes of one entry: two strings of about 30 bytes, its values, its share of a table that is half full.
        let count = |share: u64, entry_bytes: u64, least: u64| {
            usize::try_from((memory_bytes / share / entry_bytes).max(least)).unwrap_or(usize::MAX)
        };
        Self {
            inodes_bytes: (memory_bytes / 4).max(1 << 20),
            listings_bytes: (memory_bytes / 8).max(1 << 20),
            objects: count(25, 350, 2000),
            dirs: count(125, 200, 1000),
            changes: count(32, 150, 2000),
            changed_dirs: count(125, 200, 1000),
            absent: count(100, 140, 1000),
            kept_dirs: count(100, 250, 1000),
        }
    }
}

/// A map of at most `capacity` entries that drops the longest unused ones, in two generations: cheap, and never wrong
/// by more than half of its capacity.
pub struct BoundedMap<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Hash + Eq + Clone, V> BoundedMap<K, V> {
    /// An empty map for `capacity` (at least 2) entries.
    pub fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (capacity / 2).max(1) }
    }

    /// The value of `key`.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// Sets the value of `key`.
    pub fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Forgets `key`.
    pub fn remove<Q>(&mut self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.young.remove(key);
        self.old.remove(key);
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A change that this mount made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// When.
    pub at: Instant,
    /// Whether the key is gone by it.
    pub gone: bool,
}

/// When this mount last changed a key: listings asked for before are wrong about it.
///
/// Bounded as [`BoundedMap`] is; nothing that was asked for before a forgotten change is trusted any more.
pub struct Changes {
    young: HashMap<String, Change>,
    old: HashMap<String, Change>,
    half: usize,
    /// When the young generation began, and when the old one did.
    began: [Option<Instant>; 2],
    /// Changes of whole trees, by prefix; newest last.
    trees: Vec<(String, Instant)>,
    /// Nothing from before this is trusted.
    floor: Option<Instant>,
}

/// Changes of whole trees that are remembered.
const TREES_MAX: usize = 64;

impl Changes {
    /// Remembers `capacity` (at least 2) changes.
    pub fn new(capacity: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            half: (capacity / 2).max(1),
            began: [None; 2],
            trees: Vec::new(),
            floor: None,
        }
    }

    /// `key` was changed at `at`, not earlier than any other change.
    pub fn insert(&mut self, key: &str, at: Instant, gone: bool) {
        if self.young.len() >= self.half {
            let began = self.began[0];
            // All of the old generation was before the young one began.
            self.floor = if self.old.is_empty() { self.floor } else { began };
            self.old = std::mem::take(&mut self.young);
            self.began = [Some(at), began];
        }
        self.began[0].get_or_insert(at);
        self.young.insert(key.to_owned(), Change { at, gone });
    }

    /// Everything under `prefix` was changed at `at`.
    pub fn insert_tree(&mut self, prefix: &str, at: Instant) {
        self.trees.retain(|(known, _)| known != prefix);
        if self.trees.len() == TREES_MAX {
            let (_, forgotten) = self.trees.remove(0);
            self.floor = self.floor.max(Some(forgotten));
        }
        self.trees.push((prefix.to_owned(), at));
    }

    /// The last change of `key` itself.
    pub fn of(&self, key: &str) -> Option<Change> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    /// Whether what was asked for at `asked_at` may be wrong about `key`.
    pub fn overtook(&self, key: &str, asked_at: Instant) -> bool {
        self.of(key).is_some_and(|change| change.at >= asked_at)
            || self.floor.is_some_and(|floor| floor >= asked_at)
            || self.trees.iter().any(|(prefix, at)| *at >= asked_at && key.starts_with(prefix.as_str()))
    }
}

/// Names known to be absent, each for a limited time.
pub struct AbsentNames {
    names: BoundedMap<String, Instant>,
    ttl: Duration,
}

impl AbsentNames {
    /// Remembers each of at most `capacity` names for `ttl`.
    pub fn new(capacity: usize, ttl: Duration) -> Self {
        Self { names: BoundedMap::new(capacity), ttl }
    }

    /// `key` was absent at `at`.
    pub fn insert(&mut self, key: &str, at: Instant) {
        self.names.insert(key.to_owned(), at);
    }

    /// `key` may exist from now on.
    pub fn remove(&mut self, key: &str) {
        self.names.remove(key);
    }

    /// When `key` was last found absent, if that is less than the time to live before `now`.
    pub fn since(&self, key: &str, now: Instant) -> Option<Instant> {
        self.names.get(key).copied().filter(|at| now.saturating_duration_since(*at) < self.ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_limit_and_stay_within_its_half() {
        for limit in [32 << 20, 256 << 20, 4u64 << 30] {
            let shares = Shares::of(limit);
            let entries = shares.objects * 350
                + shares.dirs * 2 * 200
                + shares.changes * 150
                + shares.changed_dirs * 2 * 200
                + shares.absent * 140
                + shares.kept_dirs * 250;
            let all = shares.inodes_bytes + shares.listings_bytes + entries as u64;
            assert!(all <= limit / 2 + (1 << 20), "{all} of {limit}");
        }
        let usual = Shares::of(256 << 20);
        assert!(usual.changes > 50_000 && usual.objects > 30_000, "{usual:?}");
    }

    #[test]
    fn the_map_stays_within_its_capacity_and_keeps_the_newest_half() {
        let mut map = BoundedMap::new(10);
        for i in 0..1000 {
            map.insert(i, i);
            assert!(map.len() <= 10);
            for newer in (i - 4).max(0)..=i {
                assert_eq!(map.get(&newer), Some(&newer));
            }
        }
        map.remove(&999);
        assert_eq!(map.get(&999), None);
    }

    #[test]
    fn a_value_set_again_is_the_new_one() {
        let mut map = BoundedMap::new(2);
        map.insert("a", 1);
        map.insert("b", 1);
        map.insert("a", 2);
        assert_eq!(map.get("a"), Some(&2));
        map.insert("c", 1);
        map.remove("a");
        assert_eq!(map.get("a"), None);
    }

    #[test]
    fn a_change_makes_older_answers_worthless_and_newer_ones_not() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut changes = Changes::new(100);
        changes.insert("k", at(10), true);
        assert!(changes.overtook("k", at(5)) && changes.overtook("k", at(10)));
        assert!(!changes.overtook("k", at(11)) && !changes.overtook("l", at(5)));
        assert_eq!(changes.of("k"), Some(Change { at: at(10), gone: true }));
        changes.insert_tree("d/", at(20));
        assert!(changes.overtook("d/x/y", at(20)) && !changes.overtook("d", at(5)));
        assert!(!changes.overtook("d/x/y", at(21)));
    }

    #[test]
    fn nothing_from_before_a_forgotten_change_is_trusted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut changes = Changes::new(8);
        for i in 0..1000u64 {
            changes.insert(&format!("k{i}"), at(i), false);
            for j in 0..=i {
                assert!(changes.overtook(&format!("k{j}"), at(j)), "change {j} is lost after {i}");
            }
            assert!(!changes.overtook("other", at(i)), "too much is distrusted");
        }
        for i in 0..TREES_MAX as u64 + 10 {
            changes.insert_tree(&format!("t{i}/"), at(2000 + i));
        }
        assert!(changes.overtook("t3/a", at(2003)) && !changes.overtook("other", at(2100)));
    }

    #[test]
    fn absence_ends_with_its_time() {
        let start = Instant::now();
        let mut absent = AbsentNames::new(4, Duration::from_secs(1));
        absent.insert("k", start);
        assert_eq!(absent.since("k", start + Duration::from_millis(999)), Some(start));
        assert_eq!(absent.since("k", start + Duration::from_secs(1)), None);
        absent.remove("k");
        assert_eq!(absent.since("k", start), None);
    }
}
