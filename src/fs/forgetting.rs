//! Keeps the memory of names within bounds: beyond it the kernel is asked to forget those that nobody uses.
//!
//! The kernel keeps the inodes of a mount as long as its own memory lasts, and this process must know each of them as long as
//! the kernel does. Whoever speaks to the kernel asks here what may go.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Fs;
use crate::namespace::NamesFull;
use crate::namespace::inode::{Forgettable, Kind};

/// Requests that wait, by the inode that they are about: the kernel holds locks of it, which a notification about a name in
/// it would wait for.
#[derive(Default)]
pub(super) struct Waits(Mutex<HashMap<u64, u32>>);

/// One of them; until it is dropped.
pub struct WaitGuard {
    fs: Arc<Fs>,
    ino: u64,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let mut waits = self.fs.waits.0.lock();
        if let Some(count) = waits.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                waits.remove(&self.ino);
            }
        }
    }
}

impl Fs {
    /// A request about the inode `ino`, or a name in it, waits from now on until what this returns is dropped.
    pub fn waiting_in(self: &Arc<Self>, ino: u64) -> WaitGuard {
        *self.waits.0.lock().entry(ino).or_default() += 1;
        WaitGuard { fs: self.clone(), ino }
    }

    /// Whether a request about the inode `ino`, or a name in it, waits.
    pub fn is_waited_in(&self, ino: u64) -> bool {
        self.waits.0.lock().contains_key(&ino)
    }

    /// What tells that names take more memory than they may.
    pub fn names_full(&self) -> Arc<NamesFull> {
        self.inodes.full()
    }

    /// Whether names take more memory than they may, or nearly so: the kernel is asked to forget some.
    pub fn has_surplus_names(&self) -> bool {
        self.inodes.surplus_bytes() > 0
    }

    /// Names that the kernel knows.
    pub fn known_names(&self) -> usize {
        self.inodes.len()
    }

    /// Up to `count` names that the kernel may be asked to forget: not open, not being written, not asked for lately, and no
    /// directory of `in_use` (paths in the mount). `None`: there is none at present.
    pub fn forgettable(&self, count: usize, in_use: &HashSet<String>) -> Option<Vec<Forgettable>> {
        self.inodes.forgettable(count, |inode| {
            inode.body.is_idle() && (inode.kind != Kind::Dir || !in_use.contains(&inode.path()))
        })
    }
}
