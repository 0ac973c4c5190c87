//! Faults of the line at work: rules of the proxy, and someone who does what a rule alone cannot (ends a stall, aborts an
//! upload, brings a line back).

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::plan::{Fault, FaultKind};
use crate::support::fault::Rule;
use crate::support::{Action, Bucket, Call, FaultProxy, HoldAt, Line, When};

/// Calls that change something in the bucket.
pub const CHANGES: [Call; 9] = [
    Call::PutObject,
    Call::CopyObject,
    Call::DeleteObject,
    Call::BatchDelete,
    Call::Initiate,
    Call::UploadPart,
    Call::UploadPartCopy,
    Call::Complete,
    Call::Abort,
];
/// Those of them with a body.
pub const BODIES: [Call; 4] = [Call::PutObject, Call::UploadPart, Call::Complete, Call::BatchDelete];
const READS: [Call; 2] = [Call::ListObjects, Call::GetObject];

/// How often faults were set up, and how often they really happened.
pub type Fired = BTreeMap<FaultKind, (u64, u64)>;

/// What has to be looked after.
enum Care {
    /// Held requests are dropped so long after the first was held.
    Drop(Rule, Duration),
    /// A second client aborts the uploads that are there when a request is held.
    Abort(Rule),
    /// The line comes back at this time.
    Back(Instant),
}

/// The faults of one phase.
pub struct Faults<'p> {
    proxy: &'p FaultProxy,
    rules: Vec<(FaultKind, Rule)>,
    lines: Vec<(FaultKind, u64)>,
    tell: Option<Sender<Care>>,
    attendant: Option<JoinHandle<()>>,
    /// Uploads that the second client aborted.
    aborted: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl<'p> Faults<'p> {
    pub fn new(proxy: &'p std::sync::Arc<FaultProxy>, bucket: &Bucket, prefix: &str) -> Self {
        let (tell, told) = channel();
        let aborted = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
        let attendant = std::thread::spawn({
            let (proxy, bucket, prefix, aborted) = (proxy.clone(), bucket.clone(), prefix.to_owned(), aborted.clone());
            move || attend(&told, &proxy, &bucket, &prefix, &aborted)
        });
        Self { proxy, rules: Vec::new(), lines: Vec::new(), tell: Some(tell), attendant: Some(attendant), aborted }
    }

    fn care(&self, care: Care) {
        if let Some(tell) = &self.tell {
            // The attendant lives as long as this.
            let _ = tell.send(care);
        }
    }

    /// Sets up a fault from now on.
    pub fn arm(&mut self, fault: &Fault) {
        let changes = || When { calls: CHANGES.to_vec(), ..When::any() }.skip(fault.skip).once();
        let bodies = || When { calls: BODIES.to_vec(), body_bytes_min: 2, ..When::any() }.skip(fault.skip).once();
        let proxy = self.proxy;
        let rule = match fault.kind {
            FaultKind::LostAnswer => proxy.fault(changes(), Action::LoseAnswer),
            FaultKind::Refused => proxy.fault(changes(), Action::Refuse),
            FaultKind::ResetBeforeBody => proxy.fault(bodies(), Action::CutBeforeBody),
            FaultKind::ResetInsideBody => {
                proxy.fault(bodies(), Action::CutInsideBody { after_bytes: 1 + fault.ms / 100 })
            }
            FaultKind::ResetAfterBody => proxy.fault(bodies(), Action::CutAfterBody),
            FaultKind::ShortAnswer => {
                let reads = When { calls: READS.to_vec(), ..When::any() }.skip(fault.skip).once();
                proxy.fault(reads, Action::TruncateBody { after_bytes: 1 })
            }
            FaultKind::Status500 => proxy.fault(changes(), Action::error(500, "InternalError")),
            FaultKind::Status500Acted => proxy.fault(changes(), Action::error_after_act(500, "InternalError")),
            FaultKind::Status502Page => proxy.fault(When::any().skip(fault.skip).once(), Action::html(502)),
            FaultKind::Status503 => proxy.fault(When::any().skip(fault.skip).once(), Action::error(503, "SlowDown")),
            FaultKind::Status429 => proxy.fault(changes(), Action::error(429, "TooManyRequests")),
            FaultKind::RateRefused => proxy.fault(changes(), Action::rate_403()),
            FaultKind::StallThenGo => proxy.fault(changes(), Action::Delay { ms: fault.ms, jitter_ms: 0 }),
            FaultKind::StallThenReset => {
                let rule = proxy.fault(changes(), Action::Stall);
                self.care(Care::Drop(rule.clone(), Duration::from_millis(fault.ms)));
                rule
            }
            FaultKind::AbortBeforePart => {
                let rule = proxy.hold(When::call(Call::UploadPart).skip(fault.skip).once(), HoldAt::BeforeForward);
                self.care(Care::Abort(rule.clone()));
                rule
            }
            FaultKind::AbortBeforeComplete => {
                let rule = proxy.hold(When::call(Call::Complete).skip(fault.skip).once(), HoldAt::BeforeForward);
                self.care(Care::Abort(rule.clone()));
                rule
            }
            FaultKind::DeadLine | FaultKind::SilentLine => {
                let counts = proxy.counts();
                let open: u64 = counts.calls.values().map(|count| count.open).sum();
                // What tries to get through counts as a hit: told apart by the requests and connections from here on.
                self.lines.push((fault.kind, counts.connections + counts.requests_all() - open));
                proxy.set_line(if fault.kind == FaultKind::DeadLine { Line::Dead } else { Line::Silent });
                self.care(Care::Back(Instant::now() + Duration::from_millis(fault.ms)));
                return;
            }
        };
        self.rules.push((fault.kind, rule));
    }

    /// Ends all faults, and tells what fired.
    pub fn end(mut self, fired: &mut Fired) {
        self.tell = None;
        if let Some(attendant) = self.attendant.take() {
            let _ = attendant.join();
        }
        for (kind, rule) in &self.rules {
            let count = fired.entry(*kind).or_default();
            count.0 += 1;
            // An abort needs an upload that was there.
            count.1 += if kind.needs_parts() {
                rule.hits().min(self.aborted.load(std::sync::atomic::Ordering::SeqCst))
            } else {
                rule.hits()
            };
            rule.turn_off();
            rule.drop_held();
        }
        let counts = self.proxy.counts();
        for (kind, before) in &self.lines {
            let count = fired.entry(*kind).or_default();
            count.0 += 1;
            count.1 += u64::from(counts.connections + counts.requests_all() > *before);
        }
    }
}

fn attend(
    told: &Receiver<Care>,
    proxy: &FaultProxy,
    bucket: &Bucket,
    prefix: &str,
    aborted: &std::sync::atomic::AtomicU64,
) {
    let mut cares: Vec<Care> = Vec::new();
    let mut held_since: BTreeMap<u64, Instant> = BTreeMap::new();
    let mut over = false;
    while !over || cares.iter().any(|care| matches!(care, Care::Back(_))) {
        let wait = if cares.is_empty() { Duration::from_secs(3600) } else { Duration::from_millis(1) };
        match told.recv_timeout(wait) {
            Ok(care) => cares.push(care),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                over = true;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        cares.retain(|care| match care {
            Care::Drop(rule, after) => {
                if rule.hits() == 0 {
                    return true;
                }
                let since = held_since.entry(rule.id()).or_insert_with(Instant::now);
                let waits = since.elapsed() < *after;
                if !waits {
                    rule.drop_held();
                }
                waits
            }
            Care::Abort(rule) => {
                if rule.hits() == 0 {
                    return true;
                }
                for upload in bucket.uploads(prefix).unwrap_or_default() {
                    if bucket.abort(&upload.key, &upload.upload_id).is_ok() {
                        aborted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    }
                }
                rule.release();
                false
            }
            Care::Back(at) => {
                let waits = Instant::now() < *at;
                if !waits {
                    proxy.set_line(Line::Alive);
                }
                waits
            }
        });
    }
}
