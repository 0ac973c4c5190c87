//! What no sync has made certain yet, so that a call that asks for it syncs just that, and one with nothing new costs nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Whether a file was changed since a sync of it that succeeded.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Grows with every change that a sync vouches for. Read and raised with the file's lock held.
    count: AtomicU64,
    /// [`Changes::count`] right behind the last change of the bytes.
    bytes: AtomicU64,
    /// Place of the journal that was synced, and how many changes there had been by then.
    certain: Mutex<Option<(PathBuf, u64)>>,
}

impl Changes {
    /// Something was changed, bytes of the file maybe.
    pub(super) fn add(&self) {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.store(before + 1, Ordering::Relaxed);
    }

    /// A line was written that changes no byte of the file.
    pub(super) fn add_line(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether a sync has made the present state certain.
    pub(super) fn is_certain(&self, place: &Path) -> bool {
        self.certain.lock().as_ref().is_some_and(|(synced, count)| synced == place && *count == self.count())
    }

    /// Whether a sync has made all bytes certain; lines may have come since.
    pub(super) fn are_bytes_certain(&self, place: &Path) -> bool {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.certain.lock().as_ref().is_some_and(|(synced, count)| synced == place && *count >= bytes)
    }

    /// A sync that began after `count` changes succeeded.
    pub(super) fn synced(&self, place: PathBuf, count: u64) {
        let mut certain = self.certain.lock();
        // Another one that began later may have ended before.
        if certain.as_ref().is_none_or(|(synced, before)| *synced != place || *before < count) {
            *certain = Some((place, count));
        }
    }
}

/// Journals in which a line says that a name came or went, by the directory that has or had it. No more of them than there
/// are journals, each with as many directories as it was moved through since it was synced.
#[derive(Debug, Default)]
pub(super) struct NameLines {
    /// Number of the last line that was noted.
    last: u64,
    /// By directory (its prefix, ending in `/`; empty: the top) and place of the journal: number of the last such line.
    lines: BTreeMap<(String, PathBuf), u64>,
    dirs: HashMap<PathBuf, BTreeSet<String>>,
    /// Journals of which such a line was synced: power loss would not take them away.
    certain: HashSet<PathBuf>,
}

impl NameLines {
    /// The journal at `place` was written a line about a name in `dir`.
    pub(super) fn note(&mut self, dir: &str, place: &Path) {
        self.last += 1;
        self.lines.insert((dir.to_owned(), place.to_owned()), self.last);
        self.dirs.entry(place.to_owned()).or_default().insert(dir.to_owned());
    }

    /// Number of the last line; what is synced from now on has it.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The journals with lines about names in `dir`.
    pub(super) fn within(&self, dir: &str) -> Vec<PathBuf> {
        let from = (dir.to_owned(), PathBuf::new());
        self.lines.range(from..).take_while(|((found, _), _)| found == dir).map(|((_, at), _)| at.clone()).collect()
    }

    /// The journals with lines about names anywhere below `prefix`.
    pub(super) fn below(&self, prefix: &str) -> BTreeSet<PathBuf> {
        let from = (prefix.to_owned(), PathBuf::new());
        let below = self.lines.range((Bound::Included(from), Bound::Unbounded));
        below.take_while(|((found, _), _)| found.starts_with(prefix)).map(|((_, at), _)| at.clone()).collect()
    }

    /// Whether power loss would leave the journal at `place`, for the name that it tells of.
    pub(super) fn is_certain(&self, place: &Path) -> bool {
        self.certain.contains(place)
    }

    /// The journal at `place` is of an earlier process, which may have synced it.
    pub(super) fn found(&mut self, dir: &str, place: &Path) {
        self.note(dir, place);
        self.certain.insert(place.to_owned());
    }

    /// The lines of the journal at `place` up to number `last` are certain.
    pub(super) fn synced(&mut self, place: &Path, last: u64) {
        let Some(dirs) = self.dirs.get_mut(place) else { return };
        self.certain.insert(place.to_owned());
        let lines = &mut self.lines;
        dirs.retain(|dir| {
            let key = (dir.clone(), place.to_owned());
            let is_later = lines.get(&key).is_some_and(|line| *line > last);
            if !is_later {
                lines.remove(&key);
            }
            is_later
        });
        if dirs.is_empty() {
            self.dirs.remove(place);
        }
    }

    /// The journal is gone.
    pub(super) fn forget(&mut self, place: &Path) {
        self.synced(place, u64::MAX);
        self.certain.remove(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_behind_the_beginning_of_a_sync_is_not_certain() {
        let changes = Changes::default();
        let place = Path::new("uploads/1");
        assert!(!changes.is_certain(place), "never synced");
        changes.add();
        let begun = changes.count();
        changes.add();
        changes.synced(place.to_owned(), begun);
        assert!(!changes.is_certain(place));
        changes.synced(place.to_owned(), changes.count());
        assert!(changes.is_certain(place));
        // The end of the sync that began first.
        changes.synced(place.to_owned(), begun);
        assert!(changes.is_certain(place));
        assert!(!changes.is_certain(Path::new("uploads/2")), "of another journal nothing is known");
        changes.synced(Path::new("uploads/2").to_owned(), begun);
        assert!(!changes.is_certain(Path::new("uploads/2")));
    }

    #[test]
    fn lines_are_found_by_their_directory_until_they_are_synced() {
        let mut names = NameLines::default();
        let (one, two) = (Path::new("uploads/1"), Path::new("uploads/2"));
        names.note("a/", one);
        names.note("a/", two);
        let begun = names.last();
        names.note("a/b/", one);
        names.note("b/", two);
        names.note("", two);
        assert_eq!(names.within("a/"), [one, two]);
        assert_eq!(names.within(""), [two]);
        assert_eq!(names.within("a"), [] as [&Path; 0]);
        assert_eq!(names.below("a/"), BTreeSet::from([one.to_owned(), two.to_owned()]));
        assert_eq!(names.below("a/b/"), BTreeSet::from([one.to_owned()]));
        assert!(!names.is_certain(one));
        names.synced(one, begun);
        assert!(names.is_certain(one) && !names.is_certain(two));
        assert_eq!((names.within("a/"), names.within("a/b/")), (vec![two.to_owned()], vec![one.to_owned()]));
        names.synced(two, names.last());
        assert_eq!(names.below(""), BTreeSet::from([one.to_owned()]));
        names.note("a/", one);
        names.forget(one);
        assert!(!names.is_certain(one) && names.lines.is_empty() && names.dirs.is_empty());
        names.forget(two);
        assert!(names.certain.is_empty());
        names.found("a/", one);
        assert!(names.is_certain(one) && names.within("a/") == [one]);
    }
}
