//! The inodes that the kernel knows: numbers, names, lookup counts.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use hashbrown::HashTable;
use parking_lot::Mutex;

use super::names_full::NamesFull;

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
    name: Box<str>,
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
    pub fn name(&self) -> String {
        self.place.lock().name.to_string()
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

    fn is_named(&self, parent: u64, name: &str) -> bool {
        let place = self.place.lock();
        *place.name == *name && place.parent.as_ref().is_some_and(|above| above.ino == parent)
    }
}

/// An inode in the table.
struct Slot<B> {
    inode: Option<Arc<Inode<B>>>,
    /// Lookups that the kernel has not taken back, and [`ASKED_FOR`].
    lookups: u64,
}

/// Set in `Slot::lookups` when the name was asked for since the clock hand last passed.
const ASKED_FOR: u64 = 1 << 63;

/// The slots of the table, and who has which number and which name: places in `slots`.
struct Tables<B> {
    slots: Vec<Slot<B>>,
    free: Vec<u32>,
    by_number: HashTable<u32>,
    by_name: HashTable<u32>,
    hasher: RandomState,
    /// Memory of the inodes, roughly, bytes.
    bytes: u64,
    /// Where the search for names to be forgotten goes on.
    hand: usize,
}

/// A name that the kernel may be asked to forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgettable {
    /// Number of the directory.
    pub parent: u64,
    /// The name in it.
    pub name: String,
}

/// Memory of an inode besides its name, its body and what the body points to, bytes: counts of its `Arc`, its slot, and two
/// tables that are about half full.
const TABLE_BYTES: usize = 16 + 16 + 2 * 10;
/// Slots looked at in one go for names to be forgotten: the table is locked that long.
const HAND_STEPS: usize = 4096;
/// A table of more free slots than this is made anew when three of four are free.
const FREE_SLOTS_MAX: usize = 4096;

/// All inodes with a lookup count above 0, and the root.
///
/// A number is derived from the parent's number and the name, so that it is the same after a remount (incremental tar,
/// `rsync -H`); while the kernel still knows an unlinked inode of that number, the next one of the name gets another.
///
/// An inode goes when the kernel forgets it. Beyond the limit of memory the kernel is asked to: `forgettable` finds names that
/// nobody uses and that nobody asked for lately.
pub struct InodeTable<B> {
    tables: Mutex<Tables<B>>,
    /// Told when the memory passes the limit.
    full: Arc<NamesFull>,
    bytes_max: u64,
    /// Memory that a body points to, roughly, bytes.
    heap_bytes: usize,
}

impl<B> InodeTable<B> {
    /// A table with only the root in it, for about `bytes_max` bytes of inodes; `heap_bytes`: what a usual body points to.
    pub fn new(root: B, bytes_max: u64, heap_bytes: usize) -> Self {
        let place = Place { parent: None, name: "".into(), linked: true };
        let root = Arc::new(Inode { ino: ROOT, kind: Kind::Dir, place: Mutex::new(place), body: root });
        let mut tables = Tables {
            slots: Vec::new(),
            free: Vec::new(),
            by_number: HashTable::new(),
            by_name: HashTable::new(),
            hasher: RandomState::new(),
            bytes: 0,
            hand: 0,
        };
        tables.add(root, 0);
        Self { tables: Mutex::new(tables), full: Arc::default(), bytes_max, heap_bytes }
    }

    /// The inode of this number.
    pub fn get(&self, ino: u64) -> Option<Arc<Inode<B>>> {
        let mut tables = self.tables.lock();
        let at = tables.numbered(ino)?;
        tables.use_slot(at)
    }

    /// The inode that `name` in `parent` has, if the kernel knows one.
    pub fn child(&self, parent: u64, name: &str) -> Option<Arc<Inode<B>>> {
        let mut tables = self.tables.lock();
        let at = tables.named(parent, name)?;
        tables.use_slot(at)
    }

    /// Number and kind of the inode that `name` in `parent` has, if the kernel knows one; the number that a new one would be
    /// given otherwise.
    pub fn number(&self, parent: u64, name: &str) -> (u64, Option<Kind>) {
        let tables = self.tables.lock();
        match tables.named(parent, name).and_then(|at| tables.slots[at].inode.as_ref()) {
            Some(inode) => (inode.ino, Some(inode.kind)),
            None => (tables.free_number(parent, name), None),
        }
    }

    /// As [`child`](Self::child), with its lookup count raised by one.
    pub fn look_up_child(&self, parent: u64, name: &str) -> Option<Arc<Inode<B>>> {
        let mut tables = self.tables.lock();
        let at = tables.named(parent, name)?;
        tables.slots[at].lookups += 1;
        tables.use_slot(at)
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
        if let Some(at) = tables.named(parent.ino, name)
            && let Some(known) = tables.use_slot(at)
        {
            if known.kind == kind {
                tables.slots[at].lookups += 1;
                return known;
            }
            tables.drop_name(&known);
            known.place.lock().linked = false;
        }
        let ino = match fixed {
            Some(ino) if tables.numbered(ino).is_none() => ino,
            _ => tables.free_number(parent.ino, name),
        };
        let place = Place { parent: Some(parent.clone()), name: name.into(), linked: true };
        let inode = Arc::new(Inode { ino, kind, place: Mutex::new(place), body: body() });
        let at = tables.add(inode.clone(), self.bytes_of(&inode));
        tables.give_name(at);
        if tables.bytes > self.bytes_max {
            self.full.tell();
        }
        inode
    }

    /// Takes `count` off the lookup count; the inode leaves the table at 0.
    pub fn forget(&self, ino: u64, count: u64) {
        if ino == ROOT {
            return;
        }
        let mut tables = self.tables.lock();
        let Some(at) = tables.numbered(ino) else { return };
        let slot = &mut tables.slots[at];
        let lookups = (slot.lookups & !ASKED_FOR).saturating_sub(count);
        slot.lookups = lookups | (slot.lookups & ASKED_FOR);
        if lookups > 0 {
            return;
        }
        let gone = tables.take(at, |inode| self.bytes_of(inode));
        tables.tighten();
        drop(tables);
        // The last reference to a chain of parents may go here; not under the lock.
        drop(gone);
    }

    /// The name is gone; the inode stays as long as the kernel knows it.
    pub fn unlink(&self, inode: &Arc<Inode<B>>) {
        let mut tables = self.tables.lock();
        tables.drop_name(inode);
        inode.place.lock().linked = false;
    }

    /// Gives the inode another name; an inode that had it loses it and is returned.
    pub fn rename(&self, inode: &Arc<Inode<B>>, new_parent: &Arc<Inode<B>>, new_name: &str) -> Option<Arc<Inode<B>>> {
        let mut tables = self.tables.lock();
        tables.drop_name(inode);
        let replaced = tables.named(new_parent.ino, new_name).and_then(|at| tables.slots[at].inode.clone());
        if let Some(replaced) = &replaced {
            tables.drop_name(replaced);
            replaced.place.lock().linked = false;
        }
        let change = new_name.len() as i64 - inode.place.lock().name.len() as i64;
        {
            let mut place = inode.place.lock();
            place.parent = Some(new_parent.clone());
            place.name = new_name.into();
            place.linked = true;
        }
        // An inode that the kernel has forgotten meanwhile is not entered again.
        if let Some(at) = tables.place_of(inode) {
            tables.bytes = tables.bytes.saturating_add_signed(change);
            tables.give_name(at);
        }
        replaced
    }

    /// Two inodes that have names change them.
    pub fn exchange(&self, a: &Arc<Inode<B>>, b: &Arc<Inode<B>>) {
        if Arc::ptr_eq(a, b) {
            return;
        }
        let mut tables = self.tables.lock();
        tables.drop_name(a);
        tables.drop_name(b);
        // All names change under the lock of the tables.
        std::mem::swap(&mut *a.place.lock(), &mut *b.place.lock());
        for inode in [a, b] {
            // One that the kernel has forgotten is not entered again.
            if let Some(at) = tables.place_of(inode) {
                tables.give_name(at);
            }
        }
    }

    /// All inodes, in no order.
    pub fn all(&self) -> Vec<Arc<Inode<B>>> {
        self.tables.lock().slots.iter().filter_map(|slot| slot.inode.clone()).collect()
    }

    /// Number of inodes in the table.
    pub fn len(&self) -> usize {
        self.tables.lock().by_number.len()
    }

    /// Never: the root stays.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Memory of the inodes, roughly, bytes.
    pub fn bytes(&self) -> u64 {
        self.tables.lock().bytes
    }

    /// What is told when the inodes take more memory than they may.
    pub fn full(&self) -> Arc<NamesFull> {
        self.full.clone()
    }

    /// How many bytes of inodes must go until there is room for an eighth more; 0 within that.
    pub fn surplus_bytes(&self) -> u64 {
        self.bytes().saturating_sub(self.bytes_max / 8 * 7)
    }

    /// Up to `count` names that nobody uses and that nobody asked for since they were last looked at here, as far as `may`
    /// agrees. An inode that anything in this process still holds (an open file, a call, a name below it) is in use. `None`:
    /// two rounds over all inodes found not one.
    pub fn forgettable(&self, count: usize, may: impl Fn(&Inode<B>) -> bool) -> Option<Vec<Forgettable>> {
        let mut found = Vec::new();
        let mut left = 2 * self.tables.lock().slots.len();
        while left > 0 && found.len() < count {
            let mut tables = self.tables.lock();
            for _ in 0..HAND_STEPS.min(left) {
                tables.hand = if tables.hand + 1 < tables.slots.len() { tables.hand + 1 } else { 0 };
                let hand = tables.hand;
                let slot = &mut tables.slots[hand];
                let Some(inode) = &slot.inode else { continue };
                let was_asked_for = slot.lookups & ASKED_FOR != 0;
                slot.lookups &= !ASKED_FOR;
                if was_asked_for || Arc::strong_count(inode) > 1 || !may(inode) {
                    continue;
                }
                let place = inode.place.lock();
                if let Some(parent) = place.parent.as_ref().filter(|_| place.linked) {
                    found.push(Forgettable { parent: parent.ino, name: place.name.to_string() });
                    // Not again in the second round, nor in the next one, should the kernel keep it.
                    slot.lookups |= ASKED_FOR;
                }
                if found.len() == count {
                    break;
                }
            }
            left = left.saturating_sub(HAND_STEPS);
        }
        (!found.is_empty()).then_some(found)
    }

    fn bytes_of(&self, inode: &Inode<B>) -> u64 {
        let name = inode.place.lock().name.len();
        (size_of::<Inode<B>>() + TABLE_BYTES + name + self.heap_bytes) as u64
    }
}

impl<B> Tables<B> {
    fn hash_name(&self, parent: u64, name: &str) -> u64 {
        self.hasher.hash_one((parent, name))
    }

    fn numbered(&self, ino: u64) -> Option<usize> {
        let is_it = |at: &u32| self.slots[*at as usize].inode.as_ref().is_some_and(|inode| inode.ino == ino);
        self.by_number.find(self.hasher.hash_one(ino), is_it).map(|at| *at as usize)
    }

    /// Where this very inode is: another one may have its number once the kernel has forgotten it.
    fn place_of(&self, inode: &Arc<Inode<B>>) -> Option<usize> {
        let at = self.numbered(inode.ino)?;
        self.slots[at].inode.as_ref().is_some_and(|known| Arc::ptr_eq(known, inode)).then_some(at)
    }

    fn named(&self, parent: u64, name: &str) -> Option<usize> {
        let is_it =
            |at: &u32| self.slots[*at as usize].inode.as_ref().is_some_and(|inode| inode.is_named(parent, name));
        self.by_name.find(self.hash_name(parent, name), is_it).map(|at| *at as usize)
    }

    fn use_slot(&mut self, at: usize) -> Option<Arc<Inode<B>>> {
        let slot = &mut self.slots[at];
        slot.lookups |= ASKED_FOR;
        slot.inode.clone()
    }

    /// A new inode, looked up once and without a name yet.
    fn add(&mut self, inode: Arc<Inode<B>>, bytes: u64) -> usize {
        let ino = inode.ino;
        let slot = Slot { inode: Some(inode), lookups: 1 | ASKED_FOR };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                // 2^32 inodes would take more memory than any machine has.
                (self.slots.len() - 1) as u32
            }
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        let hash_of = |at: &u32| hasher.hash_one(slots[*at as usize].inode.as_ref().map_or(0, |inode| inode.ino));
        self.by_number.insert_unique(hasher.hash_one(ino), at, hash_of);
        self.bytes += bytes;
        at as usize
    }

    /// Takes an inode out, with its name.
    fn take(&mut self, at: usize, bytes: impl Fn(&Inode<B>) -> u64) -> Option<Arc<Inode<B>>> {
        let inode = self.slots[at].inode.clone()?;
        self.drop_name(&inode);
        let hash = self.hasher.hash_one(inode.ino);
        if let Ok(entry) = self.by_number.find_entry(hash, |known| *known as usize == at) {
            entry.remove();
        }
        self.slots[at] = Slot { inode: None, lookups: 0 };
        self.free.push(at as u32);
        self.bytes = self.bytes.saturating_sub(bytes(&inode));
        Some(inode)
    }

    /// The inode is found by the name that it has now; one that was found by it so far is not any more.
    fn give_name(&mut self, at: usize) {
        let Some(inode) = self.slots[at].inode.clone() else { return };
        let place = inode.place.lock();
        let Some(parent) = place.parent.as_ref().map(|parent| parent.ino) else { return };
        let hash = self.hash_name(parent, &place.name);
        let name: Box<str> = place.name.clone();
        drop(place);
        if let Some(before) = self.named(parent, &name) {
            if before == at {
                return;
            }
            if let Ok(entry) = self.by_name.find_entry(hash, |known| *known as usize == before) {
                entry.remove();
            }
        }
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.by_name.insert_unique(hash, at as u32, |at| name_hash(slots, hasher, *at));
    }

    /// The inode is not found by its name any more, if it was.
    fn drop_name(&mut self, inode: &Arc<Inode<B>>) {
        let hash = {
            let place = inode.place.lock();
            let Some(parent) = &place.parent else { return };
            self.hash_name(parent.ino, &place.name)
        };
        let slots = &self.slots;
        let is_it = |at: &u32| slots[*at as usize].inode.as_ref().is_some_and(|known| Arc::ptr_eq(known, inode));
        if let Ok(entry) = self.by_name.find_entry(hash, is_it) {
            entry.remove();
        }
    }

    /// Gives memory of free slots back.
    fn tighten(&mut self) {
        if self.free.len() <= FREE_SLOTS_MAX || self.free.len() < self.slots.len() / 4 * 3 {
            return;
        }
        let is_named: std::collections::HashSet<u32> = self.by_name.iter().copied().collect();
        let old = std::mem::take(&mut self.slots);
        self.by_number = HashTable::with_capacity(old.len() - self.free.len());
        self.by_name = HashTable::with_capacity(is_named.len());
        self.free = Vec::new();
        self.hand = 0;
        let mut named = Vec::with_capacity(is_named.len());
        for (was_at, slot) in (0u32..).zip(old) {
            if slot.inode.is_some() {
                if is_named.contains(&was_at) {
                    named.push(self.slots.len() as u32);
                }
                self.slots.push(slot);
            }
        }
        let (slots, hasher) = (&self.slots, &self.hasher);
        let number_hash = |at: &u32| hasher.hash_one(slots[*at as usize].inode.as_ref().map_or(0, |inode| inode.ino));
        for at in 0..slots.len() as u32 {
            self.by_number.insert_unique(number_hash(&at), at, number_hash);
        }
        for at in named {
            self.by_name.insert_unique(name_hash(slots, hasher, at), at, |at| name_hash(slots, hasher, *at));
        }
    }

    fn free_number(&self, parent: u64, name: &str) -> u64 {
        let mut salt = 0;
        loop {
            let ino = derive_number(parent, name, salt);
            if ino > RESERVED_MAX && self.numbered(ino).is_none() {
                return ino;
            }
            salt += 1;
        }
    }
}

fn name_hash<B>(slots: &[Slot<B>], hasher: &RandomState, at: u32) -> u64 {
    let Some(inode) = &slots[at as usize].inode else { return 0 };
    let place = inode.place.lock();
    hasher.hash_one((place.parent.as_ref().map_or(0, |parent| parent.ino), &*place.name))
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
        let table = InodeTable::new(0, u64::MAX, 0);
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
        assert_eq!(table.number(ROOT, "a"), (a.ino, None), "the same number after a remount");
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

    /// Asks for all that may go and forgets it as the kernel would.
    fn forget_all(table: &InodeTable<u32>) -> usize {
        let mut count = 0;
        while let Some(names) = table.forgettable(1000, |_| true) {
            for name in names {
                let inode = table.child(name.parent, &name.name).unwrap();
                table.forget(inode.ino, u64::MAX >> 1);
                count += 1;
            }
        }
        count
    }

    #[test]
    fn names_that_nobody_uses_are_found_but_not_those_that_were_asked_for_since() {
        let (table, root) = table();
        let dir = table.enter(&root, "dir", Kind::Dir, || 0).ino;
        for i in 0..10_000 {
            let parent = if i % 2 == 0 { root.clone() } else { table.get(dir).unwrap() };
            table.enter(&parent, &format!("f{i}"), Kind::File, || i);
        }
        let used = table.child(ROOT, "f0").unwrap();
        let first = table.forgettable(100, |_| true).unwrap();
        assert_eq!(first.len(), 100, "all were asked for when they were made; the second round finds them");
        table.child(first[0].parent, &first[0].name).unwrap();
        let mut rest = Vec::new();
        for _ in 0..99 {
            rest.extend(table.forgettable(100, |_| true).unwrap_or_default());
        }
        assert!(!rest.contains(&Forgettable { parent: ROOT, name: "f0".to_owned() }), "a call holds it");
        assert!(!rest.contains(&Forgettable { parent: ROOT, name: "dir".to_owned() }), "names below it hold it");
        assert_eq!(table.forgettable(1, |_| false), None);
        drop(used);
        assert_eq!(forget_all(&table), 10_000 + 1, "the directory goes behind the names in it");
        assert_eq!((table.len(), table.child(ROOT, "f17").is_none()), (1, true));
    }

    #[test]
    fn what_is_forgotten_gives_its_memory_back() {
        let (table, root) = table();
        let names = |n: u32| (0..n).map(|i| format!("name-{i:06}"));
        for _ in 0..3 {
            for name in names(20_000) {
                table.enter(&root, &name, Kind::File, || 0);
            }
            let kept = table.child(ROOT, "name-019999").unwrap();
            for name in names(19_999) {
                let inode = table.child(ROOT, &name).unwrap();
                table.forget(inode.ino, 1);
            }
            assert_eq!(table.len(), 2);
            assert!(table.tables.lock().slots.len() <= FREE_SLOTS_MAX * 2, "{}", table.tables.lock().slots.len());
            assert!(Arc::ptr_eq(&table.child(ROOT, "name-019999").unwrap(), &kept));
            assert!(Arc::ptr_eq(&table.get(kept.ino).unwrap(), &kept));
            table.forget(kept.ino, 1);
        }
        assert_eq!(table.bytes(), 0);
    }

    #[test]
    fn the_limit_is_told() {
        let table = InodeTable::new(0, 10_000, 100);
        let root = table.get(ROOT).unwrap();
        assert_eq!(table.surplus_bytes(), 0);
        let mut count = 0;
        while table.bytes() <= 10_000 {
            count += 1;
            table.enter(&root, &format!("{count}"), Kind::File, || 0);
        }
        assert!((30..100).contains(&count), "{count} inodes of 100 bytes and more");
        assert!(table.surplus_bytes() > 10_000 / 8);
        assert!(table.full().wait(), "told by the last one");
    }
}
