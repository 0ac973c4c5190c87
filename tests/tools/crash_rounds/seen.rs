//! What may be seen after a kill: the state before the call that had not returned, or after it, or, of a write, a beginning
//! of its bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::calls::Op;
use super::lane::{FileState, Lane, Node, Stage};
use super::published::told;
use crate::support::files::random_bytes;

/// An entry of the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Dir,
    File { bytes: Vec<u8>, mode: u32 },
}

/// All that the mount shows, by path.
pub type Tree = BTreeMap<String, Entry>;

/// A call that had not returned when something was killed.
#[derive(Clone, Debug)]
pub struct InFlight {
    pub op: Op,
    /// Bytes that it is known to have taken all the same.
    pub taken: u64,
}

/// Why no allowed state was seen.
#[derive(Clone, Debug, Default)]
pub struct Mismatch {
    /// What each allowed state has against it.
    pub reasons: Vec<String>,
    /// Bytes that are missing or other, of the state that comes closest.
    pub bytes_lost: u64,
}

impl Lane {
    /// Takes over what the mount shows after the writer or the mount was cut off.
    ///
    /// # Errors
    /// If it is none of the allowed states.
    pub fn after_kill(&self, in_flight: Option<&InFlight>, tree: &Tree) -> Result<Lane, Mismatch> {
        let mut before = self.clone();
        before.cut_off();
        let mut courses = Vec::new();
        if let Some(in_flight) = in_flight {
            let mut after = self.clone();
            after.apply(&in_flight.op, after.progress(in_flight, tree));
            after.take_old_bytes(self, in_flight, tree);
            after.cut_off();
            courses.push(after);
            if let Some(gap) = self.gap_of(in_flight, tree) {
                courses.push(gap);
            }
        }
        // A write of which bytes are known to be taken is not undone.
        if in_flight.is_none_or(|in_flight| in_flight.taken == 0) {
            courses.push(before.clone());
        }
        let mut mismatch = Mismatch { bytes_lost: u64::MAX, ..Mismatch::default() };
        let mut fitting: Vec<Lane> = Vec::new();
        for course in &courses {
            match course.fit(tree) {
                Ok(lane) => fitting.push(lane),
                Err((reason, bytes)) => {
                    mismatch.bytes_lost = mismatch.bytes_lost.min(bytes);
                    mismatch.reasons.push(reason);
                }
            }
        }
        let Some(mut lane) = fitting.first().cloned() else { return Err(mismatch) };
        for other in &fitting[1..] {
            lane.either(other);
        }
        for course in &courses {
            lane.published.merge(&course.published, false);
        }
        if in_flight.is_some_and(|x| matches!(x.op, Op::CutPath { .. } | Op::Close { .. } | Op::Fsync { .. })) {
            // Whether it counts as closed is not to be seen.
            lane.either(&before);
        }
        Ok(lane)
    }

    /// States in flight that the bucket may show, too.
    pub fn with(&self, in_flight: Option<&InFlight>) -> Lane {
        let mut all = self.clone();
        if let Some(in_flight) = in_flight {
            let mut after = self.clone();
            let len = match &in_flight.op {
                Op::Write { len, .. } => *len as u64,
                Op::CopyRange { len, .. } => *len,
                _ => 0,
            };
            after.apply(&in_flight.op, len);
            all.published.merge(&after.published, true);
        }
        all.cut_off();
        all
    }

    /// How many bytes a write or copy took that had not returned.
    fn progress(&self, in_flight: &InFlight, tree: &Tree) -> u64 {
        let (slot, at, bytes) = match &in_flight.op {
            Op::Write { slot, at, seed, len } => (*slot, *at, random_bytes(*seed, *len)),
            Op::CopyRange { from, slot, at, len } => {
                let source = self.file(from).map(|file| file.bytes.clone()).unwrap_or_default();
                (*slot, *at, source[..(*len as usize).min(source.len())].to_vec())
            }
            _ => return 0,
        };
        let least = in_flight.taken;
        let Some(path) = self.slots[slot].and_then(|id| self.path_of(id)) else { return least };
        let (Some(old), Some(Entry::File { bytes: found, .. })) = (self.file(&path), tree.get(&path)) else {
            return least;
        };
        taken_of(&old.bytes, at as usize, &bytes, found).max(least)
    }

    /// Of what a write in flight changed, single bytes may be those `before`: the ones of an object that the spool did not
    /// have yet. Not those that the call returned for.
    fn take_old_bytes(&mut self, before: &Lane, in_flight: &InFlight, tree: &Tree) {
        let Op::Write { slot, at, .. } = in_flight.op else { return };
        let returned = at as usize..(at + in_flight.taken) as usize;
        let Some(path) = self.slots[slot].and_then(|id| self.path_of(id)) else { return };
        let (Some(old), Some(Entry::File { bytes: found, .. })) = (before.file(&path), tree.get(&path)) else { return };
        let old = old.bytes.clone();
        let Some((_, file)) = self.open_file(slot) else { return };
        let bytes = Arc::make_mut(&mut file.bytes).iter_mut().zip(old.iter()).zip(found);
        for (index, ((new, old), found)) in bytes.enumerate() {
            if found == old && !returned.contains(&index) {
                *new = *old;
            }
        }
    }

    /// Of a write beyond the end, a beginning may be zeros alone.
    fn gap_of(&self, in_flight: &InFlight, tree: &Tree) -> Option<Lane> {
        let (Op::Write { slot, at, .. } | Op::CopyRange { slot, at, .. }) = &in_flight.op else { return None };
        let path = self.path_of(self.slots[*slot]?)?;
        let Some(Entry::File { bytes: found, .. }) = tree.get(&path) else { return None };
        let (old, found) = (self.file(&path)?.bytes.len() as u64, found.len() as u64);
        if in_flight.taken > 0 || found <= old || found > *at {
            return None;
        }
        let mut lane = self.clone();
        lane.apply(&Op::Cut { slot: *slot, size: found }, 0);
        lane.cut_off();
        Some(lane)
    }

    /// Compares with what the mount shows; of what may be one or the other, takes over which it is.
    fn fit(&self, tree: &Tree) -> Result<Lane, (String, u64)> {
        let mut lane = self.clone();
        let mut reasons = Vec::new();
        let mut lost = 0;
        let below = format!("{}/", self.root);
        for path in tree.keys().filter(|path| **path == self.root || path.starts_with(&below)) {
            if !self.names.contains_key(path) {
                reasons.push(format!("{path:?} is there and must not be"));
            }
        }
        for (path, node) in &self.names {
            match (node, tree.get(path)) {
                (Node::Dir, Some(Entry::Dir)) => {}
                (Node::File(id), Some(Entry::File { bytes, mode })) => {
                    let file = &self.files[id];
                    if *mode != file.mode {
                        reasons.push(format!("{path:?} has mode {mode:o}, expected {:o}", file.mode));
                    }
                    match fit_file(file, bytes) {
                        Some(fitted) => {
                            lane.files.insert(*id, fitted);
                        }
                        None => {
                            lost += differing(&file.bytes, bytes);
                            reasons.push(format!("{path:?} is {}", difference(file, bytes)));
                        }
                    }
                }
                (node, found) => {
                    if let Node::File(id) = node {
                        lost += self.files[id].bytes.len() as u64;
                    }
                    let found = match found {
                        None => "is missing",
                        Some(Entry::Dir) => "is a directory",
                        Some(Entry::File { .. }) => "is a file",
                    };
                    reasons.push(format!("{path:?} {found}"));
                }
            }
        }
        match reasons.is_empty() {
            true => Ok(lane),
            false => Err((reasons.join("; "), lost)),
        }
    }

    /// Two courses that look the same: whichever it was, the bucket settles it.
    fn either(&mut self, other: &Lane) {
        self.published.merge(&other.published, true);
        for (path, node) in &self.names {
            let Node::File(id) = node else { continue };
            let Some(file) = self.files.get_mut(id) else { continue };
            if other.file(path).is_none_or(|there| there.stage != file.stage) {
                file.stage = Stage::Kept;
            }
        }
    }
}

/// A file that may be what it is or, emptied by `open` alone, what it was before.
fn fit_file(file: &FileState, found: &[u8]) -> Option<FileState> {
    let mut fitted = file.clone();
    let Stage::Fresh { before } = &file.stage else { return (*file.bytes == found).then_some(fitted) };
    fitted.stage = Stage::Kept;
    if *file.bytes == found {
        return Some(fitted);
    }
    let before = before.clone().filter(|before| **before == found)?;
    fitted.bytes = before;
    Some(fitted)
}

/// How many bytes of a write are in `found`, where `old` was before: up to the last one that changed.
fn taken_of(old: &[u8], at: usize, bytes: &[u8], found: &[u8]) -> u64 {
    if found.len() > old.len() {
        return (found.len().saturating_sub(at)).min(bytes.len()) as u64;
    }
    let there = found.get(at..).unwrap_or_default().iter().zip(old.get(at..).unwrap_or_default());
    there.take(bytes.len()).rposition(|(found, old)| found != old).map_or(0, |last| last as u64 + 1)
}

fn differing(expected: &[u8], found: &[u8]) -> u64 {
    let other = expected.iter().zip(found).filter(|(a, b)| a != b).count();
    (other + expected.len().saturating_sub(found.len())) as u64
}

fn difference(file: &FileState, found: &[u8]) -> String {
    let at = file.bytes.iter().zip(found).position(|(a, b)| a != b);
    let at = at.map(|at| {
        let last = (at..file.bytes.len().min(found.len())).rev().find(|&i| file.bytes[i] != found[i]).unwrap_or(at);
        let zeros = found[at..=last].iter().all(|byte| *byte == 0);
        format!(", bytes {at}..={last} differ{}", if zeros { " and are zeros" } else { "" })
    });
    let before = match &file.stage {
        Stage::Fresh { before: Some(before) } => format!(" or {}", told(Some(before))),
        _ => String::new(),
    };
    format!("{}, expected {}{before}{}", told(Some(found)), told(Some(&file.bytes)), at.unwrap_or_default())
}

#[cfg(test)]
#[path = "seen_tests.rs"]
mod tests;
