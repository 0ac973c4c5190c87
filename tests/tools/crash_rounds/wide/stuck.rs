//! What does not get through for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::plan::{Stuck, StuckFor};
use super::totals::WideCounted;
use crate::support::disk::FaultDisk;
use crate::support::disk::fault::{DiskFault, DiskRule, DiskWhen, Kind};
use crate::support::fault::Rule;
use crate::support::{Action, Call, FaultProxy, Line, When};

/// Bytes per second of a slow line: a part takes about a second.
const SLOW_BYTES_PER_S: u64 = 6_000_000;
/// Syncs that are late, at a time.
const LATE_SYNCS: usize = 3;

/// Something that is stuck.
struct Active {
    what: Stuck,
    rules: Vec<Rule>,
    disk_rules: Vec<DiskRule>,
    to: usize,
    not_before: Instant,
    /// Connections and requests when it began.
    before: u64,
}

impl Active {
    fn hits(&self, proxy: &FaultProxy) -> u64 {
        match self.what {
            // What tries to get through counts: told by what came since.
            Stuck::Line | Stuck::Slow => attempts(proxy).saturating_sub(self.before),
            _ => self.rules.iter().map(Rule::hits).chain(self.disk_rules.iter().map(DiskRule::hits)).sum(),
        }
    }
}

fn attempts(proxy: &FaultProxy) -> u64 {
    let counts = proxy.counts();
    counts.connections + counts.requests_all()
}

/// All that is stuck at present. Dropped, it ends everything.
pub struct Troubles {
    proxy: Arc<FaultProxy>,
    active: Vec<Active>,
}

impl Troubles {
    pub fn new(proxy: &Arc<FaultProxy>) -> Self {
        Self { proxy: proxy.clone(), active: Vec::new() }
    }

    /// Begins one.
    pub fn begin(&mut self, stuck: &StuckFor, key: &str, disk: Option<&FaultDisk>) {
        let refused = || Action::error(503, "ServiceUnavailable");
        let on = |call: Call, action: Action| vec![self.proxy.fault(When::call(call).key(key), action)];
        let before = attempts(&self.proxy);
        let (mut rules, mut disk_rules) = (Vec::new(), Vec::new());
        match stuck.what {
            Stuck::Complete => rules = on(Call::Complete, refused()),
            // Once: what follows is settled by asking.
            Stuck::CompleteUnanswered => {
                rules = vec![self.proxy.fault(When::call(Call::Complete).key(key).once(), Action::LoseAnswer)];
            }
            Stuck::Part => rules = on(Call::UploadPart, refused()),
            Stuck::Copy => rules = on(Call::UploadPartCopy, refused()),
            Stuck::Put => rules = on(Call::PutObject, refused()),
            Stuck::Line => self.proxy.set_line(Line::Dead),
            Stuck::Slow => self.proxy.set_bandwidth(Some(SLOW_BYTES_PER_S)),
            Stuck::Syncs => {
                let Some(disk) = disk else { return };
                let kinds = [Kind::SyncFile, Kind::SyncDir];
                for skip in 0..LATE_SYNCS as u64 {
                    let when = DiskWhen::kinds(&kinds).path_contains("/uploads").skip(skip).once();
                    let fault = if skip % 2 == 0 { DiskFault::ActLate } else { DiskFault::AnswerLate };
                    disk_rules.push(disk.fault(when, fault));
                }
            }
        }
        let not_before = Instant::now() + Duration::from_millis(stuck.ms);
        self.active.push(Active { what: stuck.what, rules, disk_rules, to: stuck.to, not_before, before });
    }

    /// Whether this lasts.
    pub fn has(&self, what: Stuck) -> bool {
        self.active.iter().any(|active| active.what == what)
    }

    /// What has really been met so far and lasts.
    pub fn met(&self) -> Vec<Stuck> {
        let met = |active: &&Active| active.hits(&self.proxy) > 0;
        self.active.iter().filter(met).map(|active| active.what).collect()
    }

    /// Late syncs end by themselves, so that nothing waits for them without end.
    pub fn tick(&mut self) {
        for active in self.active.iter().filter(|active| Instant::now() >= active.not_before) {
            active.disk_rules.iter().for_each(DiskRule::release);
        }
    }

    /// All late syncs end now: bosfs is about to, and cannot while it waits for them.
    pub fn tick_all(&self) {
        self.active.iter().flat_map(|active| &active.disk_rules).for_each(DiskRule::release);
    }

    /// Ends what lasts until before this step.
    pub fn step(&mut self, step: usize, counted: &mut WideCounted) {
        let (over, stays) = std::mem::take(&mut self.active).into_iter().partition(|active| active.to <= step);
        self.active = stays;
        self.end(over, true, counted);
    }

    /// Ends everything; `waits`: not before its time.
    pub fn end_all(&mut self, waits: bool, counted: &mut WideCounted) {
        let over = std::mem::take(&mut self.active);
        self.end(over, waits, counted);
    }

    fn end(&mut self, over: Vec<Active>, waits: bool, counted: &mut WideCounted) {
        for active in over {
            if waits {
                std::thread::sleep(active.not_before.saturating_duration_since(Instant::now()));
            }
            counted.stuck(active.what, active.hits(&self.proxy));
            for rule in &active.rules {
                rule.turn_off();
                rule.drop_held();
            }
            active.disk_rules.iter().for_each(DiskRule::release);
            match active.what {
                Stuck::Line if !self.active.iter().any(|other| other.what == Stuck::Line) => {
                    self.proxy.set_line(Line::Alive);
                }
                Stuck::Slow => self.proxy.set_bandwidth(None),
                _ => {}
            }
        }
    }
}

impl Drop for Troubles {
    fn drop(&mut self) {
        self.end_all(false, &mut WideCounted::default());
        self.proxy.set_line(Line::Alive);
        self.proxy.set_bandwidth(None);
    }
}
