//! The inodes that the kernel knows: numbers, names, lookup counts.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Number of the root.
pub const ROOT: u64 = 1;
/// Numbers up to this one are given to fixed files only.
pub const RESERVED_MAX: u64 = 1023;

/// What an entry is. An inode never changes its kind: a name whose kind changes gets another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
}

/// Where an inode hangs in the tree.
struct Place<B> {
    parent: Option<Arc<Inode<B>>>,
    name: Arc<str>,
    /// False once the name was removed or given to another inode.
    linked: bool,
}

/// One inode. `B` is what the caller keeps with it.
pub struct Inode<B> {
    /// Its number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    place: Mutex<Place<B>>,
    /// The caller's own.
    pub body: B,
}

impl<B> Inode<B> {
    /// Whether the inode still has its name.
    pub fn is_linked(&self) -> bool {
        self.place.lock().linked
    }

    /// Last segment of its path; empty for the root.
    pub fn name(&self) -> Arc<str> {
        self.place.lock().name.clone()
    }

    /// The directory it is in; `None` for the root.
    pub fn parent(&self) -> Option<Arc<Inode<B>>> {
        self.place.lock().parent.clone()
    }

    /// Path below the root without a leading `/`; empty for the root. For an unlinked inode, the last path it had.
    pub fn path(&self) -> String {
        let (mut above, mut path) = {
            let place = self.place.lock();
            (place.parent.clone(), place.name.to_string())
        };
        while let Some(inode) = above {
            let place = inode.place.lock();
            if place.parent.is_some() {
                path = format!("{}/{path}", place.name);
            }
            let next = place.parent.clone();
            drop(place);
            above = next;
        }
        path
    }
}

struct Entry<B> {
    inode: Arc<Inode<B>>,
    lookups: u64,
}

struct Tables<B> {
    inodes: HashMap<u64, Entry<B>>,
    children: HashMap<(u64, Arc<str>), u64>,
}

/// All inodes with a lookup count above 0, and the root.
///
/// A number is derived from the parent's number and the name, so that it is the same after a remount (incremental tar,
/// `rsync -H`); while the kernel still knows an unlinked inode of that number, the next one of the name gets another.
pub struct InodeTable<B> {
    tables: Mutex<Tables<B>>,
}

impl<B> InodeTable<B> {
    /// A table with only the root in it.
    pub fn new(root: B) -> Self {
        let place = Place { parent: None, name: "".into(), linked: true };
        let inode = Arc::new(Inode { ino: ROOT, kind: Kind::Dir, place: Mutex::new(place), body: root });
        let inodes = HashMap::from([(ROOT, Entry { inode, lookups: 1 })]);
        Self { tables: Mutex::new(Tables { inodes, children: HashMap::new() }) }
    }

    /// The inode of this number.
    pub fn get(&self, ino: u64) -> Option<Arc<Inode<B>>> {
        self.tables.lock().inodes.get(&ino).map(|entry| entry.inode.clone())
    }

    /// The inode that `name` in `parent` has, if the kernel knows one.
    pub fn child(&self, parent: u64, name: &str) -> Option<Arc<Inode<B>>> {
        let tables = self.tables.lock();
        let ino = *tables.children.get(&(parent, Arc::from(name)))?;
        tables.inodes.get(&ino).map(|entry| entry.inode.clone())
    }

    /// As [`child`](Self::child), with its lookup count raised by one.
    pub fn look_up_child(&self, parent: u64, name: &str) -> Option<Arc<Inode<B>>> {
        let mut tables = self.tables.lock();
        let ino = *tables.children.get(&(parent, Arc::from(name)))?;
        let entry = tables.inodes.get_mut(&ino)?;
        entry.lookups += 1;
        Some(entry.inode.clone())
    }

    /// The number that `name` in `parent` has or would be given now.
    pub fn number(&self, parent: u64, name: &str) -> u64 {
        let tables = self.tables.lock();
        match tables.children.get(&(parent, Arc::from(name))) {
            Some(ino) => *ino,
            None => free_number(&tables, parent, name),
        }
    }

    /// The inode of `name` in `parent`, made by `body` when there is none of this kind; its lookup count grows by one.
    pub fn enter(&self, parent: &Arc<Inode<B>>, name: &str, kind: Kind, body: impl FnOnce() -> B) -> Arc<Inode<B>> {
        self.enter_numbered(parent, name, kind, None, body)
    }

    /// As [`enter`](Self::enter), with a fixed number for a new inode.
    pub fn enter_numbered(
        &self,
        parent: &Arc<Inode<B>>,
        name: &str,
        kind: Kind,
        fixed: Option<u64>,
        body: impl FnOnce() -> B,
    ) -> Arc<Inode<B>> {
        let mut tables = self.tables.lock();
        let slot = (parent.ino, Arc::from(name));
        let child = tables.children.get(&slot).copied();
        if let Some(known) = child.and_then(|ino| tables.inodes.get_mut(&ino)) {
            if known.inode.kind == kind {
                known.lookups += 1;
                return known.inode.clone();
            }
            known.inode.place.lock().linked = false;
            tables.children.remove(&slot);
        }
        let ino = match fixed {
            Some(ino) if !tables.inodes.contains_key(&ino) => ino,
            _ => free_number(&tables, parent.ino, name),
        };
        let place = Place { parent: Some(parent.clone()), name: slot.1.clone(), linked: true };
        let inode = Arc::new(Inode { ino, kind, place: Mutex::new(place), body: body() });
        tables.children.insert(slot, ino);
        tables.inodes.insert(ino, Entry { inode: inode.clone(), lookups: 1 });
        inode
    }

    /// Takes `count` off the lookup count; the inode leaves the table at 0.
    pub fn forget(&self, ino: u64, count: u64) {
        if ino == ROOT {
            return;
        }
        let mut tables = self.tables.lock();
        let Some(entry) = tables.inodes.get_mut(&ino) else { return };
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups > 0 {
            return;
        }
        let gone = tables.inodes.remove(&ino);
        let slot = gone.as_ref().and_then(|entry| slot_of(&entry.inode));
        if let Some(slot) = slot
            && tables.children.get(&slot) == Some(&ino)
        {
            tables.children.remove(&slot);
        }
        drop(tables);
        // The last reference to a chain of parents may go here; not under the lock.
        drop(gone);
    }

    /// The name is gone; the inode stays as long as the kernel knows it.
    pub fn unlink(&self, inode: &Arc<Inode<B>>) {
        let mut tables = self.tables.lock();
        if let Some(slot) = slot_of(inode)
            && tables.children.get(&slot) == Some(&inode.ino)
        {
            tables.children.remove(&slot);
        }
        inode.place.lock().linked = false;
    }

    /// Gives the inode another name; an inode that had it loses it and is returned.
    pub fn rename(&self, inode: &Arc<Inode<B>>, new_parent: &Arc<Inode<B>>, new_name: &str) -> Option<Arc<Inode<B>>> {
        let mut tables = self.tables.lock();
        if let Some(slot) = slot_of(inode)
            && tables.children.get(&slot) == Some(&inode.ino)
        {
            tables.children.remove(&slot);
        }
        let slot = (new_parent.ino, Arc::from(new_name));
        // An inode that the kernel has forgotten meanwhile is not entered again.
        let replaced = match tables.inodes.contains_key(&inode.ino) {
            true => tables.children.insert(slot.clone(), inode.ino),
            false => tables.children.remove(&slot),
        };
        let replaced = replaced.filter(|ino| *ino != inode.ino).and_then(|ino| tables.inodes.get(&ino));
        let replaced = replaced.map(|entry| entry.inode.clone());
        if let Some(replaced) = &replaced {
            replaced.place.lock().linked = false;
        }
        let mut place = inode.place.lock();
        place.parent = Some(new_parent.clone());
        place.name = slot.1;
        place.linked = true;
        replaced
    }

    /// Two inodes that have names change them.
    pub fn exchange(&self, a: &Arc<Inode<B>>, b: &Arc<Inode<B>>) {
        if Arc::ptr_eq(a, b) {
            return;
        }
        let mut tables = self.tables.lock();
        for (inode, other) in [(a, b), (b, a)] {
            // One that the kernel has forgotten is not entered again.
            let known = tables.inodes.contains_key(&inode.ino);
            let Some(slot) = slot_of(other) else { continue };
            match known {
                true => tables.children.insert(slot, inode.ino),
                false => tables.children.remove(&slot),
            };
        }
        // All names change under the lock of the tables.
        std::mem::swap(&mut *a.place.lock(), &mut *b.place.lock());
    }

    /// All inodes, in no order.
    pub fn all(&self) -> Vec<Arc<Inode<B>>> {
        self.tables.lock().inodes.values().map(|entry| entry.inode.clone()).collect()
    }

    /// Number of inodes in the table.
    pub fn len(&self) -> usize {
        self.tables.lock().inodes.len()
    }

    /// Never: the root stays.
    pub fn is_empty(&self) -> bool {
        false
    }
}

fn slot_of<B>(inode: &Inode<B>) -> Option<(u64, Arc<str>)> {
    let place = inode.place.lock();
    place.parent.as_ref().map(|parent| (parent.ino, place.name.clone()))
}

fn free_number<B>(tables: &Tables<B>, parent: u64, name: &str) -> u64 {
    let mut salt = 0;
    loop {
        let ino = derive_number(parent, name, salt);
        if ino > RESERVED_MAX && !tables.inodes.contains_key(&ino) {
            return ino;
        }
        salt += 1;
    }
}

/// FNV-1a over parent, name and salt, with a final mix so that similar names do not give neighbouring numbers.
fn derive_number(parent: u64, name: &str, salt: u64) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parent.to_le_bytes().into_iter().chain(salt.to_le_bytes()).chain(name.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^= hash >> 32;
    // Positive as a signed number: some programs print it so.
    hash & (u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> (InodeTable<u32>, Arc<Inode<u32>>) {
        let table = InodeTable::new(0);
        let root = table.get(ROOT).unwrap();
        (table, root)
    }

    #[test]
    fn a_name_keeps_its_inode_until_it_is_forgotten_as_often_as_it_was_looked_up() {
        let (table, root) = table();
        let a = table.enter(&root, "a", Kind::File, || 1);
        assert_eq!(table.enter(&root, "a", Kind::File, || 2).body, 1);
        table.forget(a.ino, 1);
        assert!(table.get(a.ino).is_some());
        table.forget(a.ino, 1);
        assert!(table.get(a.ino).is_none() && table.child(ROOT, "a").is_none());
        assert_eq!(table.number(ROOT, "a"), a.ino, "the same number after a remount");
        table.forget(ROOT, 99);
        assert!(table.get(ROOT).is_some());
    }

    #[test]
    fn an_unlinked_inode_shares_its_number_with_nobody() {
        let (table, root) = table();
        let old = table.enter(&root, "a", Kind::File, || 1);
        table.unlink(&old);
        let new = table.enter(&root, "a", Kind::File, || 2);
        assert_ne!(old.ino, new.ino);
        assert!(!old.is_linked() && new.is_linked());
        table.forget(old.ino, 1);
        assert_eq!(table.child(ROOT, "a").unwrap().ino, new.ino);
    }

    #[test]
    fn exchanged_inodes_have_each_others_names() {
        let (table, root) = table();
        let dir = table.enter(&root, "dir", Kind::Dir, || 0);
        let a = table.enter(&root, "a", Kind::File, || 1);
        let b = table.enter(&dir, "b", Kind::Symlink, || 2);
        table.exchange(&a, &b);
        assert_eq!((a.path().as_str(), b.path().as_str()), ("dir/b", "a"));
        assert_eq!(table.child(ROOT, "a").unwrap().ino, b.ino);
        assert_eq!(table.child(dir.ino, "b").unwrap().ino, a.ino);
        table.exchange(&a, &a);
        assert_eq!(a.path(), "dir/b");
    }

    #[test]
    fn another_kind_is_another_inode() {
        let (table, root) = table();
        let file = table.enter(&root, "a", Kind::File, || 1);
        let dir = table.enter(&root, "a", Kind::Dir, || 2);
        assert_ne!(file.ino, dir.ino);
        assert!(!file.is_linked());
    }

    #[test]
    fn rename_moves_the_path_and_unlinks_what_was_there() {
        let (table, root) = table();
        let dir = table.enter(&root, "d", Kind::Dir, || 0);
        let a = table.enter(&root, "a", Kind::File, || 1);
        let b = table.enter(&dir, "b", Kind::File, || 2);
        assert_eq!(b.path(), "d/b");
        let replaced = table.rename(&a, &dir, "b").unwrap();
        assert_eq!(replaced.ino, b.ino);
        assert!(!b.is_linked());
        assert_eq!((a.path(), table.child(ROOT, "a").is_none()), ("d/b".to_owned(), true));
        assert_eq!(table.child(dir.ino, "b").unwrap().ino, a.ino);
        assert!(table.rename(&a, &dir, "b").is_none(), "onto itself");
        table.rename(&dir, &root, "e");
        assert_eq!(a.path(), "e/b");
    }

    #[test]
    fn renaming_a_forgotten_inode_leaves_no_name_behind() {
        let (table, root) = table();
        let a = table.enter(&root, "a", Kind::File, || 1);
        table.enter(&root, "b", Kind::File, || 2);
        table.forget(a.ino, 1);
        assert_eq!(table.rename(&a, &root, "b").unwrap().body, 2);
        assert!(table.child(ROOT, "b").is_none());
        assert_eq!(table.enter(&root, "b", Kind::File, || 3).body, 3);
    }
}
