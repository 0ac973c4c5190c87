//! What answers of BOS taught, kept within bounds.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

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

    /// Whether `key` was absent less than the time to live before `now`.
    pub fn contains(&self, key: &str, now: Instant) -> bool {
        self.names.get(key).is_some_and(|at| now.saturating_duration_since(*at) < self.ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn absence_ends_with_its_time() {
        let start = Instant::now();
        let mut absent = AbsentNames::new(4, Duration::from_secs(1));
        absent.insert("k", start);
        assert!(absent.contains("k", start + Duration::from_millis(999)));
        assert!(!absent.contains("k", start + Duration::from_secs(1)));
        absent.remove("k");
        assert!(!absent.contains("k", start));
    }
}
