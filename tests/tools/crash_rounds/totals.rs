//! What rounds add up to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::calls::Op;
use super::faults::Fired;
use super::plan::FaultKind;

/// Figures of rounds, taken at the proxy, at the writer and at the bucket.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    pub calls: BTreeMap<&'static str, u64>,
    pub kills: u64,
    /// Kills during a call.
    pub kills_in_call: u64,
    /// By the call that they fell into.
    pub kills_by_call: BTreeMap<&'static str, u64>,
    /// By what was open at the proxy.
    pub kills_by_phase: BTreeMap<String, u64>,
    pub faults: Fired,
    pub remounts: u64,
    pub umounts: u64,
    pub bucket_looks: u64,
    /// Looks at a mount that was still taking a rename back.
    pub looks_again: u64,
    pub bytes_written: u64,
    /// Keys that were compared with one allowed state after `umount`, and with several.
    pub keys_exact: u64,
    pub keys_loose: u64,
    pub uploads_left: u64,
    pub sabotaged: bool,
}

impl Counted {
    pub fn call(&mut self, op: &Op) {
        *self.calls.entry(op.name()).or_default() += 1;
    }

    pub fn kill(&mut self, phase: &str, ops: &[&Op]) {
        self.kills += 1;
        self.kills_in_call += u64::from(!ops.is_empty());
        for op in ops {
            *self.kills_by_call.entry(op.name()).or_default() += 1;
        }
        *self.kills_by_phase.entry(phase.to_owned()).or_default() += 1;
    }

    pub fn add(&mut self, other: &Counted) {
        let sum = |into: &mut BTreeMap<&'static str, u64>, from: &BTreeMap<&'static str, u64>| {
            from.iter().for_each(|(name, count)| *into.entry(name).or_default() += count);
        };
        sum(&mut self.calls, &other.calls);
        sum(&mut self.kills_by_call, &other.kills_by_call);
        for (phase, count) in &other.kills_by_phase {
            *self.kills_by_phase.entry(phase.clone()).or_default() += count;
        }
        for (kind, (armed, hits)) in &other.faults {
            let into = self.faults.entry(*kind).or_default();
            *into = (into.0 + armed, into.1 + hits);
        }
        self.kills += other.kills;
        self.kills_in_call += other.kills_in_call;
        self.remounts += other.remounts;
        self.umounts += other.umounts;
        self.bucket_looks += other.bucket_looks;
        self.looks_again += other.looks_again;
        self.bytes_written += other.bytes_written;
        self.keys_exact += other.keys_exact;
        self.keys_loose += other.keys_loose;
        self.uploads_left += other.uploads_left;
    }

    /// Kinds of faults that never happened.
    pub fn missing(&self) -> Vec<FaultKind> {
        FaultKind::ALL.into_iter().filter(|kind| self.faults.get(kind).is_none_or(|(_, hits)| *hits == 0)).collect()
    }

    /// The figures as text.
    pub fn told(&self) -> String {
        let mut text = String::new();
        let list = |map: &BTreeMap<&'static str, u64>| {
            map.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let calls: u64 = self.calls.values().sum();
        let _ = writeln!(text, "calls               {calls}: {}", list(&self.calls));
        let _ = writeln!(
            text,
            "kills               {}, {} of them in a call: {}",
            self.kills,
            self.kills_in_call,
            list(&self.kills_by_call)
        );
        let mut phases: Vec<_> = self.kills_by_phase.iter().collect();
        phases.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let _ = writeln!(text, "  open at the proxy:");
        for (phase, count) in phases.iter().take(20) {
            let _ = writeln!(text, "    {count:>6} {phase}");
        }
        if phases.len() > 20 {
            let rest: u64 = phases[20..].iter().map(|(_, count)| **count).sum();
            let _ = writeln!(text, "    {rest:>6} in {} further combinations", phases.len() - 20);
        }
        let _ = writeln!(text, "faults that happened (of those set up):");
        for kind in FaultKind::ALL {
            let (armed, hits) = self.faults.get(&kind).copied().unwrap_or_default();
            let _ = writeln!(text, "    {hits:>6} of {armed:<6} {kind:?}");
        }
        let _ = writeln!(text, "remounts            {}, umounts {}", self.remounts, self.umounts);
        let _ = writeln!(
            text,
            "keys after umount   {} with one allowed state, {} with several; bucket looked at {} times before",
            self.keys_exact, self.keys_loose, self.bucket_looks
        );
        let _ = writeln!(text, "uploads left        {} (of kept files, or begun when killed)", self.uploads_left);
        let _ = writeln!(text, "looks repeated      {} (a rename was being taken back)", self.looks_again);
        let _ = write!(text, "bytes written       {}", self.bytes_written);
        text
    }
}
