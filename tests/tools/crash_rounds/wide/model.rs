//! The file that all handles share, and the states in which it was closed: pure.

use std::ops::Range;
use std::sync::Arc;

use crate::support::crash::contents::{Sum, find, sum_of};

/// Something that was done to the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put {
        at: u64,
        bytes: Arc<Vec<u8>>,
    },
    Zero {
        at: u64,
        len: u64,
    },
    /// The new size; grown by zeros.
    Size(u64),
}

impl Change {
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Put { at, bytes: new } => {
                let end = *at as usize + new.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*at as usize..end].copy_from_slice(new);
            }
            Change::Zero { at, len } => {
                let end = bytes.len().min((at + len) as usize);
                if let Some(hole) = bytes.get_mut(*at as usize..end) {
                    hole.fill(0);
                }
            }
            Change::Size(size) => bytes.resize(*size as usize, 0),
        }
    }

    /// The bytes that may be others after it, in a file that had `len` before.
    fn touched(&self, len: usize) -> Range<usize> {
        match self {
            // A gap before it becomes zeros.
            Change::Put { at, bytes } => (*at as usize).min(len)..*at as usize + bytes.len(),
            Change::Zero { at, len } => *at as usize..(at + len) as usize,
            Change::Size(size) => (*size as usize).min(len)..(*size as usize).max(len),
        }
    }
}

/// What of the file is not in its last closed state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    Clean,
    /// Written by somebody who may still close it.
    Dirty,
    /// Whoever wrote it is gone: shown, and not published before somebody goes on.
    Kept,
}

/// A state in which the file was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    pub sum: Sum,
    /// It is known that the close arrived.
    pub certain: bool,
}

/// What the mount shows: bytes, and ranges that cannot be read.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub bytes: Vec<u8>,
    pub unreadable: Vec<Range<usize>>,
}

/// A comparison that found something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub why: String,
    pub bytes_lost: u64,
}

impl Mismatch {
    pub fn of(why: impl Into<String>) -> Self {
        Self { why: why.into(), bytes_lost: 0 }
    }
}

#[derive(Clone, Debug)]
pub struct FileModel {
    pub live: Vec<u8>,
    pub stage: Stage,
    /// By their number; the first one is what was there before.
    pub states: Vec<Closed>,
    /// The last state that must be published in the end.
    pub promised: usize,
    /// The object is at least this state from here on.
    pub floor: usize,
    /// Bytes at some earlier moment, and what happened since: for a disk that lost some of it.
    since: Vec<u8>,
    changes: Vec<Change>,
    /// How many of the changes are on the disk for certain.
    synced: usize,
    /// Emptied, and nothing written since: an end of its writer may publish it so.
    emptied: bool,
}

impl FileModel {
    /// A file with the bytes of an object; `None`: there is no object yet, and no file.
    pub fn new(base: Option<Vec<u8>>) -> Self {
        let sum = base.as_deref().and_then(sum_of);
        let live = base.unwrap_or_default();
        let first = Closed { sum, certain: true };
        let since = live.clone();
        Self {
            live,
            stage: Stage::Clean,
            states: vec![first],
            promised: 0,
            floor: 0,
            since,
            changes: Vec::new(),
            synced: 0,
            emptied: false,
        }
    }

    /// A call returned that did this.
    pub fn apply(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.emptied = change == Change::Size(0);
        self.changes.push(change);
        self.stage = Stage::Dirty;
    }

    /// Number of the last state.
    pub fn last(&self) -> usize {
        self.states.len() - 1
    }

    /// Number of the last state that is known to be closed.
    pub fn certain(&self) -> usize {
        self.states.iter().rposition(|state| state.certain).unwrap_or(0)
    }

    /// A close begins: the state that it asks for, if it asks for one.
    pub fn close(&mut self) -> Option<usize> {
        if self.stage != Stage::Dirty {
            return None;
        }
        self.stage = Stage::Clean;
        self.states.push(Closed { sum: sum_of(&self.live), certain: false });
        Some(self.last())
    }

    /// The close of this state has arrived.
    pub fn arrived(&mut self, state: usize) {
        self.states[state].certain = true;
    }

    /// The close of this state returned well: it is the object, or a later one is (`waits`), or it is on the disk for certain.
    pub fn closed(&mut self, state: usize, waits: bool, changes: usize) {
        self.arrived(state);
        self.promised = self.promised.max(state);
        if waits {
            self.floor = self.floor.max(state);
        }
        self.synced = self.synced.max(changes);
    }

    /// Changes so far: what a sync that begins now covers.
    pub fn change_count(&self) -> usize {
        self.changes.len()
    }

    /// A sync returned that began after so many changes.
    pub fn fsynced(&mut self, changes: usize) {
        self.synced = self.synced.max(changes);
    }

    /// Everybody who wrote is gone.
    pub fn cut_off(&mut self) {
        if self.stage == Stage::Dirty {
            self.stage = Stage::Kept;
        }
        if std::mem::take(&mut self.emptied) {
            self.states.push(Closed { sum: sum_of(&[]), certain: false });
        }
    }

    /// The number of a state with this content that may be seen after the state `after`.
    pub fn find(&self, sum: &Sum, after: usize) -> Option<usize> {
        find(&self.sums(), sum, after)
    }

    /// What the object may be, by number.
    pub fn sums(&self) -> Vec<Sum> {
        self.states.iter().map(|state| state.sum).collect()
    }

    /// Nothing is pending: the object must be the last closed state, or a later one whose close was cut off.
    ///
    /// # Errors
    /// What does not hold.
    pub fn settle(&mut self, sum: &Sum) -> Result<(), Mismatch> {
        let must = self.certain().max(self.promised).max(self.floor);
        let Some(found) = self.find(sum, must) else {
            let earlier = (0..must).rev().find(|n| self.states[*n].sum == *sum);
            let what = earlier.map_or("no state that was closed".to_owned(), |n| format!("state {n}, which is older"));
            return Err(Mismatch::of(format!("nothing is pending, and the object is {what}: {sum:?}, not {must}")));
        };
        if found < self.last() {
            // The close was cut off before it arrived: what it would have published is kept.
            self.stage = Stage::Kept;
            self.states.truncate(found + 1);
        }
        self.floor = found;
        self.promised = found;
        Ok(())
    }

    /// After a kill: every byte of calls that returned is shown; of the one in flight, old or new.
    ///
    /// # Errors
    /// What does not hold.
    pub fn after_kill(&mut self, shown: Option<&Shown>, flying: &[Change]) -> Result<(), Mismatch> {
        let mut new = self.live.clone();
        flying.iter().for_each(|change| change.apply(&mut new));
        let Some(shown) = shown else {
            return Err(Mismatch { why: "the file is not there".into(), bytes_lost: self.live.len() as u64 });
        };
        let (least, most) = (self.live.len().min(new.len()), self.live.len().max(new.len()));
        // Emptied first, written then.
        let least = flying.iter().fold(least, |least, change| match change {
            Change::Size(size) => least.min(*size as usize),
            _ => least,
        });
        if !(least..=most).contains(&shown.bytes.len()) {
            let bytes_lost = least.saturating_sub(shown.bytes.len()) as u64;
            let why = format!("{} bytes are shown, expected {least} to {most}", shown.bytes.len());
            return Err(Mismatch { why, bytes_lost });
        }
        if let Some(range) = shown.unreadable.first() {
            return Err(Mismatch { why: format!("bytes {range:?} cannot be read"), bytes_lost: range.len() as u64 });
        }
        let at = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or(0);
        let wrong = |n: &usize| {
            let byte = shown.bytes[*n];
            byte != at(&new, *n) && byte != at(&self.live, *n)
        };
        let count = (0..shown.bytes.len()).filter(wrong).count();
        if count > 0 {
            let (first, last) = ((0..shown.bytes.len()).find(wrong), (0..shown.bytes.len()).rev().find(wrong));
            let why = format!("{count} bytes that are shown are neither old nor new, from {first:?} to {last:?}");
            return Err(Mismatch { why, bytes_lost: count as u64 });
        }
        self.emptied |= flying.contains(&Change::Size(0)) && shown.bytes.is_empty();
        self.cut_off();
        if !flying.is_empty() {
            self.stage = Stage::Kept;
            // What came of it is what is shown. None of it, nor of what was done before the kill, is synced by that: power loss may
            // still take it back.
            for change in flying {
                let range = change.touched(self.live.len());
                let range = range.start.min(shown.bytes.len())..range.end.min(shown.bytes.len());
                self.changes.push(change.clone());
                self.changes.push(Change::Size(shown.bytes.len() as u64));
                self.changes.push(Change::Put { at: range.start as u64, bytes: Arc::new(shown.bytes[range].to_vec()) });
            }
            self.live.clone_from(&shown.bytes);
        }
        Ok(())
    }

    /// After a power loss only what was promised is certain.
    pub fn power_lost(&mut self) {
        let promised = self.promised.max(self.floor);
        self.states[promised + 1..].iter_mut().for_each(|state| state.certain = false);
        self.emptied = true;
        self.cut_off();
    }

    /// After a power loss: what syncs and closes promised is shown; everything else has a value that it had at some time, or
    /// cannot be read.
    ///
    /// # Errors
    /// What does not hold.
    pub fn after_power(&self, shown: Option<&Shown>, flying: &[Change]) -> Result<(), Mismatch> {
        let none = Shown::default();
        let is_there = shown.is_some();
        let shown = shown.unwrap_or(&none);
        let mut bytes = self.since.clone();
        let mut explained: Vec<bool> =
            (0..shown.bytes.len()).map(|n| shown.bytes[n] == bytes.get(n).copied().unwrap_or(0)).collect();
        // Without an object under it, a file is shown up to its first byte that may be lost.
        let has_base = self.states[self.floor].sum.is_some();
        let mut promised_len = 0;
        let mut touched = vec![false; shown.bytes.len()];
        for (n, change) in self.changes.iter().chain(flying).enumerate() {
            if n == self.synced {
                promised_len = bytes.len();
            }
            let range = change.touched(bytes.len());
            change.apply(&mut bytes);
            if n >= self.synced {
                promised_len = promised_len.min(if has_base { bytes.len() } else { range.start });
            }
            let end = range.end.min(shown.bytes.len());
            for (n, explained) in explained.iter_mut().enumerate().take(end).skip(range.start) {
                *explained |= shown.bytes[n] == bytes.get(n).copied().unwrap_or(0);
            }
            if n >= self.synced {
                let end = range.end.min(touched.len());
                touched.get_mut(range.start..end).into_iter().flatten().for_each(|touched| *touched = true);
            }
        }
        if self.synced == self.changes.len() && flying.is_empty() {
            promised_len = bytes.len();
        }
        if shown.bytes.len() < promised_len {
            let bytes_lost = (promised_len - shown.bytes.len()) as u64;
            let there = if is_there { "" } else { ", the file is not there" };
            let why = format!("{} bytes are shown, {promised_len} were promised{there}", shown.bytes.len());
            return Err(Mismatch { why, bytes_lost });
        }
        let unreadable = |n: usize| shown.unreadable.iter().any(|range| range.contains(&n));
        let wrong: Vec<usize> = (0..shown.bytes.len()).filter(|n| !explained[*n] && !unreadable(*n)).collect();
        if let (Some(first), Some(last)) = (wrong.first(), wrong.last()) {
            let why = format!("{} bytes have a value they never had, from {first} to {last}", wrong.len());
            return Err(Mismatch::of(why));
        }
        let lost = |n: &usize| !touched[*n] && (shown.bytes[*n] != bytes[*n] || unreadable(*n));
        let end = shown.bytes.len().min(bytes.len());
        let count = (0..end).filter(lost).count();
        if count > 0 {
            let (first, last) = ((0..end).find(lost), (0..end).rev().find(lost));
            let why = format!("{count} bytes that are promised are lost, from {first:?} to {last:?}");
            return Err(Mismatch { why, bytes_lost: count as u64 });
        }
        Ok(())
    }

    /// Everything up to here is certain, whatever happens to the disk later.
    pub fn begin_anew(&mut self) {
        self.since.clone_from(&self.live);
        self.changes.clear();
        self.synced = 0;
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
