//! A move as its journal tells it, and what has to be done next: pure.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use super::record::{Listed, MoveRecord, PartsBy};
use crate::bos::client::{Known, ListedObject, ObjectHeaders, ObjectMeta};
use crate::object::{BaseObject, Condition, ETag, KEY_BYTES_MAX, ObjectKey, PartNumber, UploadId};
use crate::posix_meta::MARK;

/// Which move it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One object.
    Object {
        /// Present key.
        from: ObjectKey,
        /// What is there.
        source: BaseObject,
        /// New key.
        to: ObjectKey,
        /// What must be at the new key before the copy.
        condition: Condition,
        /// Headers of the copy.
        replace: Option<ObjectHeaders>,
    },
    /// All below a prefix.
    Directory {
        /// Present prefix.
        from: String,
        /// New prefix.
        to: String,
        /// Keys that stay out of it.
        leave_out: HashSet<String>,
    },
    /// Two objects change places.
    Exchange {
        /// One of them and what is there.
        a: (ObjectKey, BaseObject),
        /// The other one.
        b: (ObjectKey, BaseObject),
        /// Key of the copy of `a`.
        hidden: ObjectKey,
    },
    /// Objects whose names were removed.
    Deletions {
        /// Boot in which that was.
        boot_id: String,
    },
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Copies are made; the old names count.
    Copying,
    /// The copies are deleted again.
    RollingBack,
    /// The new names count; the old ones are deleted.
    AllCopied,
    /// Over.
    Done,
}

/// What was copied where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// ETag of what was copied.
    pub from_etag: ETag,
    /// `Last-Modified` of what was copied; `None`: not asked for.
    pub from_last_modified: Option<i64>,
    /// What is known of the copy.
    pub made: Known,
}

/// An object below a directory that is moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// ETag when it was listed.
    pub etag: ETag,
    /// Size in bytes.
    pub size: u64,
    /// `Last-Modified` when it was listed.
    pub last_modified: i64,
    /// ETag of its copy, and whether the copy is of this state of the object.
    pub copied: Option<(ETag, bool)>,
    /// Between which times BOS stored that copy; `None`: not known.
    pub copy_stored: Option<(i64, i64)>,
}

/// An upload that makes a copy by parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyUpload {
    /// BOS's ID.
    pub id: UploadId,
    /// What its parts are.
    pub by: PartsBy,
    /// Parts that are there.
    pub parts: BTreeMap<PartNumber, ETag>,
}

/// The marker that the new prefix of a directory had before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetMarker {
    /// ETag of it.
    pub etag: ETag,
    /// `Last-Modified` of it.
    pub last_modified: i64,
    /// Headers of the marker that takes its place if the old prefix has none.
    pub headers: Option<ObjectHeaders>,
}

/// A move, folded from its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveState {
    /// Which move.
    pub kind: Kind,
    /// How far.
    pub stage: Stage,
    /// Copies by key; not those of a directory's entries.
    pub copies: BTreeMap<ObjectKey, Copy>,
    /// Objects of a directory by what stands behind its prefix.
    pub entries: BTreeMap<String, Entry>,
    /// Whether the new prefix was given a marker that the old one did not have.
    pub marker_made: bool,
    /// The marker that the new prefix had before, and has until everything else is copied.
    pub target_marker: Option<TargetMarker>,
    /// Uploads under way, by key.
    pub uploads: BTreeMap<ObjectKey, CopyUpload>,
    /// Initiates that were not answered, by key: as many uploads may exist that nobody knows.
    pub initiating: BTreeMap<ObjectKey, u32>,
    /// Objects to be deleted, and what is known of them.
    pub deletes: BTreeMap<ObjectKey, Known>,
}

/// What recovery does with a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Only the journal is left.
    Drop,
    /// Go on to the new names.
    Forward,
    /// Go back to the old names.
    Back,
}

impl MoveState {
    /// Folds the lines of a journal.
    ///
    /// # Errors
    /// The first line does not begin a move.
    pub fn replay(records: &[MoveRecord]) -> Result<Self, String> {
        let Some((first, rest)) = records.split_first() else { return Err("the journal is empty".to_owned()) };
        let mut state = Self::begun(first).ok_or("the first line begins no move")?;
        rest.iter().for_each(|record| state.apply(record));
        Ok(state)
    }

    /// The state after its first line; `None`: that is no first line.
    pub fn begun(first: &MoveRecord) -> Option<Self> {
        let kind = match first.clone() {
            MoveRecord::Object { from, source, to, condition, replace, .. } => {
                Kind::Object { from, source, to, condition, replace }
            }
            MoveRecord::Directory { from, to, leave_out, .. } => {
                Kind::Directory { from, to, leave_out: leave_out.into_iter().map(String::from).collect() }
            }
            MoveRecord::Exchange { a, a_object, b, b_object, hidden, .. } => {
                Kind::Exchange { a: (a, a_object), b: (b, b_object), hidden }
            }
            MoveRecord::Deletions { boot_id, .. } => Kind::Deletions { boot_id },
            _ => return None,
        };
        Some(Self {
            kind,
            stage: Stage::Copying,
            copies: BTreeMap::new(),
            entries: BTreeMap::new(),
            marker_made: false,
            target_marker: None,
            uploads: BTreeMap::new(),
            initiating: BTreeMap::new(),
            deletes: BTreeMap::new(),
        })
    }

    /// Applies one more line.
    pub fn apply(&mut self, record: &MoveRecord) {
        match record {
            MoveRecord::Object { .. }
            | MoveRecord::Directory { .. }
            | MoveRecord::Exchange { .. }
            | MoveRecord::Deletions { .. } => {}
            MoveRecord::TargetMarker { etag, last_modified, headers } => {
                let (etag, headers) = (etag.clone(), headers.clone());
                self.target_marker = Some(TargetMarker { etag, last_modified: *last_modified, headers });
            }
            MoveRecord::Planned { entries } => entries.iter().for_each(|listed| self.plan(listed)),
            MoveRecord::Initiating { to } => *self.initiating.entry(to.clone()).or_default() += 1,
            MoveRecord::Initiated { to, upload_id, by } => {
                if let Some(unanswered) = self.initiating.get_mut(to) {
                    *unanswered -= 1;
                    if *unanswered == 0 {
                        self.initiating.remove(to);
                    }
                }
                let upload = CopyUpload { id: upload_id.clone(), by: *by, parts: BTreeMap::new() };
                self.uploads.insert(to.clone(), upload);
            }
            MoveRecord::PartCopied { to, part, etag } => {
                if let Some(upload) = self.uploads.get_mut(to) {
                    upload.parts.insert(*part, etag.clone());
                }
            }
            MoveRecord::UploadEnded { to } => {
                self.uploads.remove(to);
            }
            MoveRecord::Copied { to, from_etag, from_last_modified, etag, stored } => {
                self.uploads.remove(to);
                if let Kind::Directory { to: prefix, .. } = &self.kind {
                    let entry = to.as_str().strip_prefix(prefix.as_str()).and_then(|rest| self.entries.get_mut(rest));
                    if let Some(entry) = entry {
                        entry.copied = Some((etag.clone(), entry.etag == *from_etag));
                        entry.copy_stored = *stored;
                    }
                    return;
                }
                let made = Known { etag: etag.clone(), stored: *stored };
                let copy = Copy { from_etag: from_etag.clone(), from_last_modified: *from_last_modified, made };
                self.copies.insert(to.clone(), copy);
            }
            MoveRecord::Dropped { to } => {
                self.copies.remove(to);
                if let Kind::Directory { to: prefix, .. } = &self.kind
                    && let Some(rest) = to.as_str().strip_prefix(prefix.as_str())
                {
                    self.entries.remove(rest);
                }
            }
            MoveRecord::MarkerMade => self.marker_made = true,
            MoveRecord::AllCopied => self.stage = Stage::AllCopied,
            MoveRecord::RollingBack { .. } => self.stage = Stage::RollingBack,
            MoveRecord::Delete { key, etag, stored } => {
                self.deletes.insert(key.clone(), Known { etag: etag.clone(), stored: *stored });
            }
            MoveRecord::Done => self.stage = Stage::Done,
        }
    }

    fn plan(&mut self, listed: &Listed) {
        let before = self.entries.get(&listed.rest);
        let copied = before.and_then(|entry| entry.copied.clone()).map(|(etag, _)| (etag, false));
        let copy_stored = before.and_then(|entry| entry.copy_stored);
        let (etag, size, last_modified) = (listed.etag.clone(), listed.size, listed.last_modified);
        self.entries.insert(listed.rest.clone(), Entry { etag, size, last_modified, copied, copy_stored });
    }

    /// What a start does with the move.
    pub fn recovery(&self) -> Recovery {
        match (&self.kind, self.stage) {
            (_, Stage::Done) => Recovery::Drop,
            (Kind::Deletions { .. }, _) if self.deletes.is_empty() => Recovery::Drop,
            (Kind::Directory { .. }, Stage::Copying | Stage::RollingBack) | (_, Stage::RollingBack) => Recovery::Back,
            (_, Stage::Copying | Stage::AllCopied) => Recovery::Forward,
        }
    }

    /// Whether the mount must not show `key` while the move is finished or taken back by recovery. `key` has no `/` at
    /// its end, also for a directory.
    pub fn hides(&self, key: &str) -> bool {
        match &self.kind {
            Kind::Object { from, to, .. } => self.copies.contains_key(to) && from.as_str() == key,
            Kind::Exchange { hidden, .. } => hidden.as_str() == key,
            Kind::Deletions { .. } => {
                let marker = || ObjectKey::parse(&format!("{key}/")).ok();
                ObjectKey::parse(key).is_ok_and(|key| self.deletes.contains_key(&key))
                    || marker().is_some_and(|marker| self.deletes.contains_key(&marker))
            }
            Kind::Directory { from, to, .. } => {
                let (prefix, goes_itself) = match self.stage {
                    // A directory that was there before stays; only what is copied into it goes.
                    Stage::Copying | Stage::RollingBack => {
                        let made = self.target_marker.is_none() && (self.marker_made || !self.entries.is_empty());
                        (to, made)
                    }
                    Stage::AllCopied => (from, true),
                    Stage::Done => return false,
                };
                if prefix.strip_suffix('/') == Some(key) {
                    return goes_itself;
                }
                key.strip_prefix(prefix.as_str()).is_some_and(|rest| self.has_entry(rest))
            }
        }
    }

    /// Whether an object of the directory is at `rest`, or below it.
    fn has_entry(&self, rest: &str) -> bool {
        let below = format!("{rest}/");
        let next = self.entries.range::<str, _>((Bound::Included(below.as_str()), Bound::Unbounded)).next();
        self.entries.contains_key(rest) || next.is_some_and(|(entry, _)| entry.starts_with(&below))
    }

    /// Whether the move has to do with `key`, or with something below the prefix `key` (ending in `/`).
    pub fn touches(&self, key: &str) -> bool {
        let below = |prefix: &str| key.starts_with(prefix) || prefix.starts_with(key) && key.ends_with('/');
        let is = |other: &ObjectKey| other.as_str() == key || (key.ends_with('/') && other.as_str().starts_with(key));
        match &self.kind {
            Kind::Object { from, to, .. } => is(from) || is(to),
            Kind::Exchange { a, b, hidden } => is(&a.0) || is(&b.0) || is(hidden),
            Kind::Directory { from, to, .. } => {
                let dir = |prefix: &str| prefix.strip_suffix('/') == Some(key);
                below(from) || below(to) || dir(from) || dir(to)
            }
            Kind::Deletions { .. } if key.ends_with('/') => {
                let from = ObjectKey::parse(key).ok();
                let mut after = match &from {
                    Some(from) => self.deletes.range(from.clone()..),
                    None => self.deletes.range::<ObjectKey, _>(..),
                };
                after.next().is_some_and(|(first, _)| first.as_str().starts_with(key))
            }
            Kind::Deletions { .. } => {
                let is_deleted = |key: &str| ObjectKey::parse(key).is_ok_and(|key| self.deletes.contains_key(&key));
                is_deleted(key) || is_deleted(&format!("{key}/"))
            }
        }
    }
}

/// How a fresh listing of a directory differs from what was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// New or changed: to be copied (again).
    pub copy: Vec<Listed>,
    /// Copied, but not there any more.
    pub gone: Vec<String>,
    /// Keys that cannot be paths, and would not survive a move.
    pub impossible: Vec<String>,
    /// A key that would become too long.
    pub too_long: Option<String>,
}

/// Compares `listed`, all objects below the old prefix, with what is copied of them.
pub fn difference(
    entries: &BTreeMap<String, Entry>,
    from: &str,
    to: &str,
    leave_out: &HashSet<String>,
    listed: &[ListedObject],
) -> Difference {
    let mut difference = Difference::default();
    let mut seen = HashSet::new();
    for object in listed {
        let Some(rest) = object.key.strip_prefix(from) else { continue };
        if leave_out.contains(&object.key) {
            continue;
        }
        if ObjectKey::parse(&object.key).is_err() {
            difference.impossible.push(object.key.clone());
            continue;
        }
        if to.len() + rest.len() > KEY_BYTES_MAX {
            difference.too_long.get_or_insert_with(|| format!("{to}{rest}"));
        }
        seen.insert(rest);
        let known = entries.get(rest).is_some_and(|entry| {
            let same = entry.etag == object.etag && entry.size == object.size;
            let copied = entry.copied.as_ref().is_some_and(|(_, current)| *current);
            same && entry.last_modified == object.last_modified && copied
        });
        if !known {
            let (etag, size, last_modified) = (object.etag.clone(), object.size, object.last_modified);
            difference.copy.push(Listed { rest: rest.to_owned(), etag, size, last_modified });
        }
    }
    difference.gone = entries.keys().filter(|rest| !seen.contains(rest.as_str())).cloned().collect();
    difference
}

/// What HEAD of a copy's key means for a copy whose outcome is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyFound {
    /// The copy is there.
    Ours {
        /// Its ETag.
        etag: ETag,
    },
    /// What the condition asks for: the copy can be made (again).
    AsExpected,
    /// Somebody else's doing.
    Other {
        /// For people.
        what: String,
    },
}

/// Judges what HEAD found (`None`: nothing) at the key of a copy of `source`. `sent`: the copy was sent before, so that
/// it may be there; `checks`: HEAD of the source, where it was asked.
///
/// Where the condition still holds, the copy is rather made again than taken for ours: an object of the same content that
/// was there before has other metadata.
pub fn judge_copy(
    head: Option<&ObjectMeta>,
    source: &BaseObject,
    checks: Option<&ObjectMeta>,
    mark: &str,
    condition: &Condition,
    sent: bool,
) -> CopyFound {
    let ours = |head: &ObjectMeta| CopyFound::Ours { etag: head.etag.clone() };
    match (condition, head) {
        (_, Some(head)) if sent && head.size == source.size && has_mark(head, mark) => ours(head),
        (Condition::Any, _) | (Condition::Absent, None) => CopyFound::AsExpected,
        (Condition::Matches(etag), Some(head)) if head.etag == *etag => CopyFound::AsExpected,
        (_, Some(head)) if sent && is_copy(head, source, checks, mark) => ours(head),
        (_, None) => CopyFound::Other { what: "the object that it should replace is gone".into() },
        (_, Some(head)) => {
            CopyFound::Other { what: format!("an object of {} bytes with ETag {} is there", head.size, head.etag) }
        }
    }
}

fn has_mark(head: &ObjectMeta, mark: &str) -> bool {
    head.headers.metadata.get(MARK).is_some_and(|found| found == mark)
}

/// Whether `head` is a copy of `source`: by our mark, by the ETag (which a simple object keeps), or by a checksum of the
/// whole that both carry.
pub fn is_copy(head: &ObjectMeta, source: &BaseObject, checks: Option<&ObjectMeta>, mark: &str) -> bool {
    if head.size != source.size {
        return false;
    }
    if head.etag == source.etag || has_mark(head, mark) {
        return true;
    }
    checks.is_some_and(|checks| checks.etag == source.etag && same_sums(head, checks) == Some(true))
}

/// Whether the strongest checksum that both carry is the same; `None`: there is none.
pub fn same_sums(a: &ObjectMeta, b: &ObjectMeta) -> Option<bool> {
    let pairs = [
        (a.crc32c.map(u64::from), b.crc32c.map(u64::from)),
        (a.crc64, b.crc64),
        (a.crc32.map(u64::from), b.crc32.map(u64::from)),
    ];
    pairs.into_iter().find_map(|(a, b)| Some(a? == b?))
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
