//! Keeps single acts on names out of a directory while it is renamed. Other trees are not held up.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Who is where.
#[derive(Default)]
struct Inside {
    /// Prefixes (ending in `/`) of trees under rename, by number.
    moving: HashMap<u64, Vec<String>>,
    /// Keys of single acts under way, by number.
    acts: HashMap<u64, Vec<String>>,
    next: u64,
}

/// The gate before all trees of a mount.
pub(super) struct TreeGate {
    inside: Mutex<Inside>,
    changed: watch::Sender<u64>,
}

/// Being inside; ends when dropped.
pub(super) struct Pass<'a> {
    gate: &'a TreeGate,
    number: u64,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut inside = self.gate.inside.lock();
        inside.moving.remove(&self.number);
        inside.acts.remove(&self.number);
        drop(inside);
        self.gate.changed.send_modify(|count| *count += 1);
    }
}

/// Whether the name `key` lies in the tree of `prefix`, or is its directory.
fn is_in(prefix: &str, key: &str) -> bool {
    key.starts_with(prefix) || prefix.strip_suffix('/') == Some(key)
}

fn overlap(a: &str, b: &str) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

impl TreeGate {
    pub(super) fn new() -> Self {
        Self { inside: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// Waits until none of the names is in a tree under rename, and keeps such renames out until the pass is dropped. An
    /// act on several names must ask for all of them at once.
    pub(super) async fn act(&self, keys: &[&str]) -> Pass<'_> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            {
                let mut inside = self.inside.lock();
                let barred = inside.moving.values().flatten().any(|tree| keys.iter().any(|key| is_in(tree, key)));
                if !barred {
                    let number = inside.next;
                    inside.next += 1;
                    inside.acts.insert(number, keys.iter().map(|key| (*key).to_owned()).collect());
                    return Pass { gate: self, number };
                }
            }
            // The sender lives in `self`.
            let _ = changed.changed().await;
        }
    }

    /// Waits until no other rename overlaps these trees, bars them, and waits for the acts that are inside.
    pub(super) async fn rename(&self, prefixes: &[&str]) -> Pass<'_> {
        let mut changed = self.changed.subscribe();
        let pass = loop {
            changed.borrow_and_update();
            {
                let mut inside = self.inside.lock();
                let barred = inside.moving.values().flatten().any(|tree| prefixes.iter().any(|p| overlap(tree, p)));
                if !barred {
                    let number = inside.next;
                    inside.next += 1;
                    inside.moving.insert(number, prefixes.iter().map(|prefix| (*prefix).to_owned()).collect());
                    break Pass { gate: self, number };
                }
            }
            let _ = changed.changed().await;
        };
        loop {
            changed.borrow_and_update();
            let is_ours = |key: &String| prefixes.iter().any(|prefix| is_in(prefix, key));
            let busy = self.inside.lock().acts.values().flatten().any(is_ours);
            if !busy {
                return pass;
            }
            let _ = changed.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        future.now_or_never()
    }

    #[tokio::test]
    async fn acts_and_renames_of_one_tree_keep_each_other_out() {
        let gate = TreeGate::new();
        let act = now(gate.act(&["a/b/c"])).unwrap();
        assert!(now(gate.rename(&["a/", "x/"])).is_none(), "somebody is inside");
        assert!(now(gate.act(&["a/b/d"])).is_some(), "a rename that gave up bars nobody");
        drop(act);
        let rename = now(gate.rename(&["a/", "x/"])).unwrap();
        for key in ["a", "a/b/c", "x", "x/y"] {
            assert!(now(gate.act(&[key])).is_none(), "{key}");
            assert!(now(gate.act(&["elsewhere", key])).is_none(), "{key}");
        }
        for key in ["ab", "a.txt", "y/a/b", "xy/"] {
            assert!(now(gate.act(&[key])).is_some(), "{key}");
        }
        drop(rename);
        assert!(now(gate.act(&["a/b/c"])).is_some());
    }

    #[tokio::test]
    async fn only_overlapping_renames_wait_for_each_other() {
        let gate = TreeGate::new();
        let first = now(gate.rename(&["a/b/", "c/"])).unwrap();
        for prefixes in [["a/", "z/"], ["a/b/d/", "z/"], ["z/", "c/"]] {
            assert!(now(gate.rename(&prefixes)).is_none(), "{prefixes:?}");
        }
        assert!(now(gate.rename(&["a/c/", "d/"])).is_some());
        drop(first);
        assert!(now(gate.rename(&["a/", "z/"])).is_some());
    }

    #[tokio::test]
    async fn an_act_that_begins_while_a_rename_waits_does_not_starve_it() {
        let gate = TreeGate::new();
        let act = gate.act(&["a/1"]).await;
        let mut rename = Box::pin(gate.rename(&["a/", "b/"]));
        assert!(now(&mut rename).is_none());
        let mut late = Box::pin(gate.act(&["a/2"]));
        assert!(now(&mut late).is_none());
        drop(act);
        let rename = now(&mut rename).expect("nobody is inside any more");
        assert!(now(&mut late).is_none());
        drop(rename);
        assert!(now(&mut late).is_some());
    }
}
