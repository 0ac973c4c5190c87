//! What rounds of several handles add up to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::plan::{Doing, Stuck, WideEnd};
use crate::support::disk::FaultDisk;
use crate::support::disk::fault::Kind;

/// Figures of rounds.
#[derive(Clone, Debug, Default)]
pub struct WideCounted {
    pub rounds: u64,
    pub calls: u64,
    pub bytes_written: u64,
    /// Contents that the object had, all compared.
    pub contents: u64,
    pub looks: u64,
    pub remounts: u64,
    /// Ends that were reached, by name; those at the disk only where they fell.
    pub ends: BTreeMap<&'static str, u64>,
    /// What was stuck, and the requests that met it.
    pub stuck: BTreeMap<Stuck, (u64, u64)>,
    /// What was done while a publication was under way, and while it was stuck.
    pub during: BTreeMap<(Doing, Option<Stuck>), u64>,
    /// Closes that began while another one was waiting.
    pub closes_at_once: u64,
    /// Foreign writers: seen with something unpublished here, and without.
    pub foreign: (u64, u64),
    /// Conflicts whose base was gone, so that the file could not be published beside it.
    pub not_rescued: u64,
    /// Kills and power losses while a close was waiting.
    pub cut_closes: u64,
    /// Waits of a call for what was stuck, after which it was let go.
    pub waited: u64,
    /// Checkpoints of journals on the fault disk: begun, and put in place.
    pub checkpoints: (u64, u64),
    pub sabotaged: bool,
}

impl WideCounted {
    pub fn stuck(&mut self, what: Stuck, hits: u64) {
        let count = self.stuck.entry(what).or_default();
        *count = (count.0 + 1, count.1 + hits);
    }

    /// A call is made while a publication is under way, and while these are stuck.
    pub fn during(&mut self, what: Doing, met: &[Stuck]) {
        *self.during.entry((what, None)).or_default() += 1;
        for stuck in met {
            *self.during.entry((what, Some(*stuck))).or_default() += 1;
        }
    }

    pub fn end(&mut self, end: WideEnd) {
        *self.ends.entry(end.name()).or_default() += 1;
    }

    /// Counts the checkpoints that went over a disk.
    pub fn checkpoints_of(&mut self, disk: &FaultDisk) {
        let is_new = |path: &str| path.ends_with("/journal.new");
        for change in disk.changes().iter().filter(|change| is_new(&change.path)) {
            self.checkpoints.0 += u64::from(change.kind == Kind::Create);
            self.checkpoints.1 += u64::from(change.kind == Kind::Rename);
        }
    }

    pub fn add(&mut self, other: &WideCounted) {
        self.rounds += other.rounds;
        self.calls += other.calls;
        self.bytes_written += other.bytes_written;
        self.contents += other.contents;
        self.looks += other.looks;
        self.remounts += other.remounts;
        self.closes_at_once += other.closes_at_once;
        self.cut_closes += other.cut_closes;
        self.waited += other.waited;
        self.not_rescued += other.not_rescued;
        self.foreign = (self.foreign.0 + other.foreign.0, self.foreign.1 + other.foreign.1);
        self.checkpoints = (self.checkpoints.0 + other.checkpoints.0, self.checkpoints.1 + other.checkpoints.1);
        for (name, count) in &other.ends {
            *self.ends.entry(name).or_default() += count;
        }
        for (what, (begun, hits)) in &other.stuck {
            let into = self.stuck.entry(*what).or_default();
            *into = (into.0 + begun, into.1 + hits);
        }
        for (key, count) in &other.during {
            *self.during.entry(*key).or_default() += count;
        }
    }

    /// Situations that never came.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for what in Stuck::ALL {
            if self.stuck.get(&what).is_none_or(|(_, hits)| *hits == 0) {
                missing.push(format!("{what:?} was met by nothing"));
            }
        }
        let ends = ["kill", "stop", "kill writer", "umount", "kill at a change of the disk", "power loss"];
        let ends = ends.into_iter().filter(|end| self.ends.get(end).is_none_or(|count| *count == 0));
        missing.extend(ends.map(|end| format!("end {end:?}")));
        let during = Doing::ALL.into_iter().filter(|what| what.changes());
        let during = during.filter(|what| self.during.get(&(*what, None)).is_none_or(|count| *count == 0));
        missing.extend(during.map(|what| format!("{what:?} during a publication")));
        let others = [
            ("closes at once", self.closes_at_once),
            ("foreign writers over unpublished bytes", self.foreign.0),
            ("cuts in a close", self.cut_closes),
        ];
        missing.extend(others.iter().filter(|(_, count)| *count == 0).map(|(name, _)| (*name).to_owned()));
        // A bosfs that writes no checkpoints at all has none to be cut.
        if self.checkpoints.0 > 0 {
            if self.checkpoints.1 == 0 {
                missing.push("a checkpoint that was put in place".into());
            }
            if !self.ends.contains_key("kill in a checkpoint") {
                missing.push("end \"kill in a checkpoint\"".into());
            }
        }
        missing
    }

    /// The figures as text.
    pub fn told(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "several handles     {} rounds, {} calls, {} bytes written, {} contents of objects compared ({} looks), {} remounts",
            self.rounds, self.calls, self.bytes_written, self.contents, self.looks, self.remounts
        );
        let ends: Vec<String> = self.ends.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let _ = writeln!(text, "  ends              {}", ends.join(", "));
        let stuck: Vec<String> =
            self.stuck.iter().map(|(what, (begun, hits))| format!("{what:?} {begun} ({hits} hits)")).collect();
        let _ = writeln!(text, "  stuck             {}", stuck.join(", "));
        let _ = writeln!(text, "  during a publication, of these while it was stuck:");
        for what in Doing::ALL {
            let Some(count) = self.during.get(&(what, None)) else { continue };
            let met = Stuck::ALL
                .into_iter()
                .filter_map(|stuck| self.during.get(&(what, Some(stuck))).map(|count| format!("{stuck:?} {count}")));
            let _ = writeln!(text, "    {count:>6} {what:?}: {}", met.collect::<Vec<_>>().join(", "));
        }
        let _ = write!(
            text,
            "  closes at once {}, cuts in a close {}, foreign writers {} over unpublished bytes ({} of them could \
             not be published beside it) and {} else, calls let go {}, \
             checkpoints {} begun and {} in place",
            self.closes_at_once,
            self.cut_closes,
            self.foreign.0,
            self.not_rescued,
            self.foreign.1,
            self.waited,
            self.checkpoints.0,
            self.checkpoints.1
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_situation_that_never_came_is_told() {
        let mut counted = WideCounted::default();
        let all = counted.missing().len();
        assert!(all > 20, "{:?}", counted.missing());
        for what in Stuck::ALL {
            counted.stuck(what, 1);
        }
        assert_eq!(counted.missing().len(), all - Stuck::ALL.len());
        counted.stuck.insert(Stuck::Line, (5, 0));
        assert_eq!(counted.missing().len(), all - Stuck::ALL.len() + 1, "set up, and met by nothing");
        counted.during(Doing::Punch, &[Stuck::Complete]);
        assert!(!counted.missing().iter().any(|missing| missing.starts_with("Punch")));
        counted.checkpoints = (3, 0);
        assert!(counted.missing().iter().any(|missing| missing.contains("put in place")));
        let mut sum = WideCounted::default();
        sum.add(&counted);
        sum.add(&counted);
        assert_eq!((sum.checkpoints, sum.stuck[&Stuck::Part]), ((6, 0), (2, 2)));
    }
}
