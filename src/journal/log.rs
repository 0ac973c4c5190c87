//! The append-only file of [`Record`](super::Record)s.

use std::io;
use std::path::Path;

use super::Record;

/// An open journal. The first failed write latches: later calls refuse.
pub struct Journal {}

/// What was read back.
#[derive(Debug, Default)]
pub struct Replay {
    /// All valid records, in order.
    pub records: Vec<Record>,
    /// Bytes of a torn tail that were cut off.
    pub torn_bytes: u64,
    /// A damaged line before valid ones: the journal must not be trusted beyond it (says where and what).
    pub damage: Option<String>,
}

impl Journal {
    /// Creates `dir/journal` (0600) with its first record.
    pub fn create(_dir: &Path, _first: &Record) -> io::Result<Journal> {
        todo!()
    }
    /// Reads `dir/journal`; a torn tail is cut off (only when `damage` is `None`).
    pub fn open(_dir: &Path) -> io::Result<(Journal, Replay)> {
        todo!()
    }
    /// Reads without changing or opening for append (for `uploads list`, `status`).
    pub fn read(_dir: &Path) -> io::Result<Replay> {
        todo!()
    }
    /// Writes one record; it survives a kill of this process when this returns.
    pub fn append(&mut self, _record: &Record) -> io::Result<()> {
        todo!()
    }
    /// A second descriptor to sync without holding a lock around the journal.
    pub fn sync_handle(&self) -> io::Result<std::fs::File> {
        todo!()
    }
}
