//! Directories that stay visible although nothing may be under them in BOS any more.

use std::collections::{BTreeMap, HashMap};

/// Such directories, by the directory they are in. Whatever is above one of them is one, too.
pub struct KeptDirs {
    /// The mounted prefix, which is always there.
    root: String,
    /// By prefix of the parent: names, and when each was last kept.
    by_parent: HashMap<String, HashMap<Box<str>, u64>>,
    /// Prefixes, longest kept first.
    order: BTreeMap<u64, String>,
    turn: u64,
    count_max: usize,
}

/// Parent and name of the directory with this prefix.
fn split(prefix: &str) -> Option<(&str, &str)> {
    let path = prefix.strip_suffix('/')?;
    Some(path.split_at(path.rfind('/').map_or(0, |at| at + 1)))
}

impl KeptDirs {
    /// None yet, below the mounted prefix `root`; at most `count_max`, beyond which those kept longest ago are forgotten.
    pub fn new(root: &str, count_max: usize) -> Self {
        let (by_parent, order) = (HashMap::new(), BTreeMap::new());
        Self { root: root.to_owned(), by_parent, order, turn: 0, count_max: count_max.max(1) }
    }

    /// The directory with `prefix` is kept, and those above it.
    pub fn insert(&mut self, prefix: &str) {
        let mut present = prefix;
        while present.len() > self.root.len()
            && present.starts_with(&self.root)
            && let Some((parent, name)) = split(present)
        {
            self.turn += 1;
            let names = self.by_parent.entry(parent.to_owned()).or_default();
            if let Some(before) = names.insert(name.into(), self.turn) {
                self.order.remove(&before);
            }
            self.order.insert(self.turn, present.to_owned());
            present = parent;
        }
        while self.order.len() > self.count_max
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
    }

    /// Whether the directory with `prefix` is kept.
    pub fn contains(&self, prefix: &str) -> bool {
        split(prefix)
            .is_some_and(|(parent, name)| self.by_parent.get(parent).is_some_and(|names| names.contains_key(name)))
    }

    /// The directory with `prefix` is gone, and what is below it.
    pub fn remove(&mut self, prefix: &str) {
        self.take(prefix);
    }

    /// BOS itself shows the directory with `prefix`; it needs to be kept only if one below it is.
    pub fn shown(&mut self, prefix: &str) {
        if !self.by_parent.contains_key(prefix) {
            self.remove(prefix);
        }
    }

    /// The directory at `prefix` is at `new_prefix` now, with those below it.
    pub fn rename(&mut self, prefix: &str, new_prefix: &str) {
        for dir in self.take(prefix) {
            self.insert(&format!("{new_prefix}{}", &dir[prefix.len()..]));
        }
    }

    /// Names of the kept directories directly under `prefix`.
    pub fn under(&self, prefix: &str) -> Vec<String> {
        let names = self.by_parent.get(prefix).into_iter().flat_map(HashMap::keys);
        names.map(|name| name.to_string()).collect()
    }

    /// Takes out the directory with `prefix` and those below it.
    fn take(&mut self, prefix: &str) -> Vec<String> {
        let mut taken = Vec::new();
        if let Some((parent, name)) = split(prefix)
            && let Some(names) = self.by_parent.get_mut(parent)
            && let Some(turn) = names.remove(name)
        {
            if names.is_empty() {
                self.by_parent.remove(parent);
            }
            self.order.remove(&turn);
            taken.push(prefix.to_owned());
        }
        let mut left = vec![prefix.to_owned()];
        while let Some(above) = left.pop() {
            for (name, turn) in self.by_parent.remove(&above).into_iter().flatten() {
                self.order.remove(&turn);
                let dir = format!("{above}{name}/");
                taken.push(dir.clone());
                left.push(dir);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_a_kept_directory_is_kept_and_what_is_below_a_removed_one_is_not() {
        let mut kept = KeptDirs::new("m/", 100);
        kept.insert("m/a/b/c/");
        kept.insert("m/a/d/");
        assert!(kept.contains("m/a/b/") && kept.contains("m/a/") && !kept.contains("m/"));
        let mut under = kept.under("m/a/");
        under.sort();
        assert_eq!(under, ["b", "d"]);
        kept.shown("m/a/b/");
        assert!(kept.contains("m/a/b/"), "one below it is kept");
        kept.shown("m/a/d/");
        assert!(!kept.contains("m/a/d/"));
        kept.rename("m/a/", "m/z/");
        assert!(kept.contains("m/z/b/c/") && !kept.contains("m/a/b/c/"));
        kept.remove("m/z/b/");
        assert!(!kept.contains("m/z/b/c/") && kept.contains("m/z/"));
        kept.remove("m/z/");
        assert!(kept.order.is_empty() && kept.by_parent.is_empty(), "nothing is left of them");
    }

    #[test]
    fn those_kept_longest_ago_go_first_and_the_count_is_bounded() {
        let mut kept = KeptDirs::new("", 1000);
        for i in 0..10_000 {
            kept.insert(&format!("d{i}/"));
            kept.insert("often/");
        }
        assert_eq!(kept.order.len(), 1000);
        assert!(kept.contains("often/") && kept.contains("d9999/") && !kept.contains("d1/"));
        assert_eq!(kept.under("").len(), 1000);
    }
}
