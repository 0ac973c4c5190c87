//! Who may free room in a full spool, and whether waiting for it makes sense: pure, but for the list of those who wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// What is known of lifecycle rules of the bucket that abort unfinished uploads, and with them the parts that BOS holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortRules {
    /// There is none.
    None,
    /// There is one.
    Some,
    /// Nobody knows. `may_pass`: it is asked again soon, and the trouble is one that passes.
    Unknown {
        /// See there.
        may_pass: bool,
    },
}

/// Room in the spool, as far as more than one file has to do with it.
#[derive(Debug)]
pub(super) struct SpoolRoom {
    /// `--punch`, where the disk of the state directory can do it.
    wanted: bool,
    rules: Mutex<AbortRules>,
    /// Spools whose bytes no file counts any more and that are still being freed.
    freeing: Arc<AtomicUsize>,
    /// Files in which somebody waits for room, by their address, and how many do.
    waiting: Mutex<HashMap<usize, u32>>,
}

impl SpoolRoom {
    /// `wanted`: parts that BOS holds may be taken out of the spool, unless a rule of the bucket speaks against it.
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, rules: Mutex::new(AbortRules::None), freeing: Arc::default(), waiting: Mutex::default() }
    }

    /// The rules of the bucket were read, or could not be.
    pub(super) fn set_rules(&self, rules: AbortRules) {
        *self.rules.lock() = rules;
    }

    /// Whether parts may be taken out of the spool now. What is not known to be safe is not done.
    pub(super) fn may_punch(&self) -> bool {
        self.wanted && *self.rules.lock() == AbortRules::None
    }

    /// Whether that may become so by itself.
    fn may_punch_later(&self) -> bool {
        self.wanted && *self.rules.lock() == (AbortRules::Unknown { may_pass: true })
    }

    /// What keeps parts in the spool, and what to do about it; `None`: nothing does.
    fn why_kept(&self) -> Option<(&'static str, &'static str)> {
        if !self.wanted {
            return Some((
                "nothing may be taken out of it (--punch no, or the disk cannot do it)",
                "without --punch no",
            ));
        }
        match *self.rules.lock() {
            AbortRules::None => None,
            AbortRules::Some => Some((
                "nothing may be taken out of it, since a lifecycle rule of the bucket aborts unfinished uploads",
                "after that rule was changed",
            )),
            AbortRules::Unknown { .. } => Some((
                "nothing may be taken out of it, since the lifecycle rules of the bucket cannot be read and one may abort \
                 unfinished uploads",
                "with a key that may read them (GetBucketLifecycle)",
            )),
        }
    }

    /// A spool is being freed as long as the value lives. To be made before its file stops to count its bytes.
    pub(super) fn freeing(&self) -> Freeing {
        self.freeing.fetch_add(1, Ordering::SeqCst);
        Freeing(self.freeing.clone())
    }

    /// Whether waiting makes sense for a writer of the file at the address `own` who lacks `needed` bytes. If it does, the
    /// others know from then on, by `waiting`, that this one waits; if not, they do not wait for it either.
    pub(super) fn wait<'a>(
        &'a self,
        files: &[SpoolFile],
        own: usize,
        needed: u64,
        waiting: &mut Option<Waiting<'a>>,
    ) -> bool {
        let will_be_more = self.may_punch_later() || self.freeing.load(Ordering::SeqCst) > 0;
        let punches = self.may_punch();
        // One step: of two who would wait for each other, exactly one must hear of it.
        let mut all = self.waiting.lock();
        let may_come = may_come(files, own, needed, (punches, will_be_more), |address| all.contains_key(&address));
        match (may_come, &mut *waiting) {
            (true, None) => {
                *all.entry(own).or_default() += 1;
                *waiting = Some(Waiting { room: self, address: own, counts: true });
            }
            (false, Some(mine)) => mine.leave(&mut all),
            _ => {}
        }
        may_come
    }

    /// Why a write into the full spool is refused, and what to do.
    pub(super) fn refusal(&self, key: &str) -> String {
        let kept = "nothing of this write was accepted, what was accepted before is kept";
        match self.why_kept() {
            None => format!(
                "{key}: the spool is full and no upload is under way that would make room; {kept}; free disk space or mount \
                 with a larger --spool-limit"
            ),
            Some((why, otherwise)) => format!(
                "{key}: the spool is full; {why}, and no other file is on its way to BOS whose publication would make room, so \
                 that a file has to fit into the spool whole; {kept}; free disk space, or mount with a --spool-limit larger \
                 than the file, or {otherwise}"
            ),
        }
    }
}

/// See [`SpoolRoom::freeing`].
pub(super) struct Freeing(Arc<AtomicUsize>);

impl Drop for Freeing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// See [`SpoolRoom::wait`].
pub(super) struct Waiting<'a> {
    room: &'a SpoolRoom,
    address: usize,
    counts: bool,
}

impl Waiting<'_> {
    fn leave(&mut self, all: &mut HashMap<usize, u32>) {
        if !std::mem::take(&mut self.counts) {
            return;
        }
        if let Some(count) = all.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.address);
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let room = self.room;
        self.leave(&mut room.waiting.lock());
    }
}

/// The rule of [`SpoolRoom::wait`]: something on its way will free room, or somebody else's close will. `room`: whether parts
/// may be punched out now, and whether there will be more room by itself; `waits`: whether somebody waits in the file at an address.
fn may_come(files: &[SpoolFile], own: usize, needed: u64, room: (bool, bool), waits: impl Fn(usize) -> bool) -> bool {
    let (punches, will_be_more) = room;
    let frees = |file: &SpoolFile| !file.is_stuck && (file.is_on_its_way || (punches && file.is_sending));
    if will_be_more || files.iter().any(frees) {
        return true;
    }
    // Files that somebody writes free theirs when they are closed; but not one whose writer waits, too.
    let open =
        files.iter().filter(|file| file.has_writers && !file.is_stuck && file.address != own && !waits(file.address));
    open.map(|file| file.spooled_bytes).fold(0, u64::saturating_add) >= needed.max(1)
}

/// A file, as far as somebody who waits for room looks at it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpoolFile {
    /// Which.
    pub(super) address: usize,
    /// Bytes that it has in the spool.
    pub(super) spooled_bytes: u64,
    /// It is closed, cut loose or removed, and what it has in the spool goes once BOS has done its part.
    pub(super) is_on_its_way: bool,
    /// Something of it is on its way to BOS, perhaps only parts of a file that is being written.
    pub(super) is_sending: bool,
    /// Somebody has it open for writing.
    pub(super) has_writers: bool,
    /// It failed, or is in conflict: nothing of it goes by itself.
    pub(super) is_stuck: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: SpoolFile = SpoolFile {
        address: 1,
        spooled_bytes: 40,
        is_on_its_way: false,
        is_sending: false,
        has_writers: true,
        is_stuck: false,
    };
    const OTHER: SpoolFile = SpoolFile { address: 2, ..OWN };

    fn room(wanted: bool, rules: AbortRules) -> SpoolRoom {
        let room = SpoolRoom::new(wanted);
        room.set_rules(rules);
        room
    }

    fn may_wait(room: &SpoolRoom, files: &[SpoolFile], own: usize, needed: u64) -> bool {
        room.wait(files, own, needed, &mut None)
    }

    #[test]
    fn nothing_is_punched_unless_it_is_known_that_no_rule_aborts_uploads() {
        assert!(room(true, AbortRules::None).may_punch());
        for rules in [AbortRules::Some, AbortRules::Unknown { may_pass: false }, AbortRules::Unknown { may_pass: true }]
        {
            assert!(!room(true, rules).may_punch(), "{rules:?}");
        }
        assert!(!room(false, AbortRules::None).may_punch());
        let room = room(true, AbortRules::Unknown { may_pass: false });
        room.set_rules(AbortRules::None);
        assert!(room.may_punch(), "read again and found harmless");
    }

    #[test]
    fn a_single_file_that_does_not_fit_is_not_waited_for() {
        for (wanted, rules) in [(false, AbortRules::None), (true, AbortRules::Some)] {
            let room = room(wanted, rules);
            assert!(!may_wait(&room, &[OWN], 1, 1));
            let sending = SpoolFile { is_sending: true, ..OWN };
            assert!(!may_wait(&room, &[sending], 1, 1), "its parts stay in the spool though they are sent");
            let refusal = room.refusal("k");
            for word in ["k: the spool is full", "larger than the file", "nothing of this write was accepted"] {
                assert!(refusal.contains(word), "{word:?} in {refusal:?}");
            }
        }
        let sending = SpoolFile { is_sending: true, ..OWN };
        assert!(may_wait(&room(true, AbortRules::None), &[sending], 1, 1), "a part that is sent makes room");
    }

    #[test]
    fn a_closed_file_on_its_way_is_waited_for_and_a_failed_one_is_not() {
        let room = room(false, AbortRules::None);
        let closed = SpoolFile { is_on_its_way: true, has_writers: false, ..OTHER };
        assert!(may_wait(&room, &[OWN, closed], 1, 1));
        assert!(!may_wait(&room, &[OWN, SpoolFile { is_stuck: true, ..closed }], 1, 1));
    }

    #[test]
    fn of_writers_who_wait_for_each_other_the_last_one_is_refused_and_the_others_go_on() {
        let room = room(false, AbortRules::None);
        assert!(may_wait(&room, &[OWN, OTHER], 1, 40), "the other one is still writing");
        assert!(!may_wait(&room, &[OWN, OTHER], 1, 41), "its close would not make enough room");
        let mut first = None;
        assert!(room.wait(&[OWN, OTHER], 1, 40, &mut first));
        let mut second = None;
        assert!(!room.wait(&[OWN, OTHER], 2, 40, &mut second), "nobody is left who could close");
        assert!(room.wait(&[OWN, OTHER], 1, 40, &mut first), "the refused one ends");
        let mut again = None;
        assert!(room.wait(&[OWN, OTHER], 1, 40, &mut again), "a second writer of the same file");
        drop(first);
        assert!(!may_wait(&room, &[OWN, OTHER], 2, 40));
        drop(again);
        assert!(may_wait(&room, &[OWN, OTHER], 2, 40));
    }

    #[test]
    fn of_two_who_waited_for_a_third_one_that_failed_one_is_let_go_and_the_other_waits_for_it() {
        let room = room(false, AbortRules::None);
        let third = SpoolFile { address: 3, is_on_its_way: true, has_writers: false, ..OWN };
        let (mut first, mut second) = (None, None);
        assert!(room.wait(&[OWN, OTHER, third], 1, 1, &mut first));
        assert!(room.wait(&[OWN, OTHER, third], 2, 1, &mut second));
        let failed = SpoolFile { is_stuck: true, ..third };
        assert!(!room.wait(&[OWN, OTHER, failed], 1, 1, &mut first));
        assert!(room.wait(&[OWN, OTHER, failed], 2, 1, &mut second));
    }

    #[test]
    fn a_spool_that_is_just_being_freed_is_waited_for() {
        let room = room(false, AbortRules::None);
        let freeing = room.freeing();
        assert!(may_wait(&room, &[OWN], 1, 1));
        drop(freeing);
        assert!(!may_wait(&room, &[OWN], 1, 1));
    }

    #[test]
    fn rules_that_may_be_known_soon_are_waited_for() {
        assert!(may_wait(&room(true, AbortRules::Unknown { may_pass: true }), &[OWN], 1, 1));
        assert!(!may_wait(&room(true, AbortRules::Unknown { may_pass: false }), &[OWN], 1, 1));
        assert!(!may_wait(&room(false, AbortRules::Unknown { may_pass: true }), &[OWN], 1, 1), "--punch no");
    }
}
