//! What a fault proxy is told to do to which request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use super::action::Action;
use super::call::{Asked, Call};

/// Which requests a rule takes. Every given field must fit; an empty one fits all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct When {
    pub calls: Vec<Call>,
    /// The whole key.
    pub key: Option<String>,
    pub key_contains: Option<String>,
    pub parts: Vec<u32>,
    /// A piece of path and query, as they go over the wire.
    pub target_contains: Option<String>,
    /// Body of at least so many bytes.
    pub body_bytes_min: u64,
    /// Lets the first `skip` fitting requests pass.
    pub skip: u64,
    /// Takes at most so many.
    pub times: Option<u64>,
    /// Takes a fitting request with this probability (0 to 1), drawn from `seed` and its place in the row.
    pub probability: Option<f64>,
    pub seed: u64,
}

impl When {
    /// Any request.
    pub fn any() -> Self {
        Self::default()
    }
    pub fn call(call: Call) -> Self {
        Self { calls: vec![call], ..Self::default() }
    }
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }
    pub fn key_contains(mut self, text: &str) -> Self {
        self.key_contains = Some(text.to_owned());
        self
    }
    pub fn target_contains(mut self, text: &str) -> Self {
        self.target_contains = Some(text.to_owned());
        self
    }
    pub fn part(mut self, part: u32) -> Self {
        self.parts.push(part);
        self
    }
    pub fn skip(mut self, requests: u64) -> Self {
        self.skip = requests;
        self
    }
    pub fn times(mut self, requests: u64) -> Self {
        self.times = Some(requests);
        self
    }
    pub fn once(self) -> Self {
        self.times(1)
    }
    pub fn probability(mut self, probability: f64, seed: u64) -> Self {
        self.probability = Some(probability);
        self.seed = seed;
        self
    }

    fn fits(&self, asked: &Asked) -> bool {
        (self.calls.is_empty() || self.calls.contains(&asked.call))
            && self.key.as_ref().is_none_or(|key| *key == asked.key)
            && self.key_contains.as_ref().is_none_or(|text| asked.key.contains(text))
            && self.target_contains.as_ref().is_none_or(|text| asked.target.contains(text))
            && (self.parts.is_empty() || asked.part.is_some_and(|part| self.parts.contains(&part)))
            && asked.body_bytes >= self.body_bytes_min
    }
}

/// Where a request is held until the rule is released.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldAt {
    /// Head read, nothing forwarded.
    BeforeForward,
    /// So many bytes of the body forwarded.
    InsideBody { after_bytes: u64 },
    /// The server has acted; the client has no byte of the answer.
    BeforeAnswer,
}

/// A rule, as a test or a script writes it. With both, the hold comes where it says, the action where that acts, and each
/// counts as a hit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuleSpec {
    pub when: When,
    pub hold: Option<HoldAt>,
    pub action: Action,
}

/// What becomes of held requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// They wait.
    Closed,
    /// They go on as if nothing had been.
    Open,
    /// Their connections are closed.
    Dropped,
}

/// A rule at work. Clones are the same rule.
#[derive(Clone)]
pub struct Rule(Arc<RuleState>);

struct RuleState {
    id: u64,
    spec: RuleSpec,
    fitting: AtomicU64,
    taken: AtomicU64,
    hits: Mutex<u64>,
    hit: Condvar,
    gate: watch::Sender<Gate>,
    off: std::sync::atomic::AtomicBool,
}

impl Rule {
    pub(super) fn new(id: u64, spec: RuleSpec) -> Self {
        Self(Arc::new(RuleState {
            id,
            spec,
            fitting: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            hits: Mutex::new(0),
            hit: Condvar::new(),
            gate: watch::Sender::new(Gate::Closed),
            off: false.into(),
        }))
    }

    pub fn id(&self) -> u64 {
        self.0.id
    }
    pub fn spec(&self) -> &RuleSpec {
        &self.0.spec
    }

    /// Whether the rule takes this request; counted. Called under the proxy's lock on its rules, so one at a time.
    pub(super) fn takes(&self, asked: &Asked) -> bool {
        let when = &self.0.spec.when;
        if self.0.off.load(Ordering::SeqCst) || !when.fits(asked) {
            return false;
        }
        let place = self.0.fitting.fetch_add(1, Ordering::SeqCst);
        if place < when.skip || when.times.is_some_and(|times| self.0.taken.load(Ordering::SeqCst) >= times) {
            return false;
        }
        if when.probability.is_some_and(|p| unit_interval(when.seed, place) >= p) {
            return false;
        }
        self.0.taken.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// A number in 0..1 for this taking of the rule, the same for the same seed.
    pub(super) fn draw(&self) -> f64 {
        unit_interval(self.0.spec.when.seed ^ 0x6a17, self.0.taken.load(Ordering::SeqCst))
    }

    /// The fault has taken effect, or the request is held now.
    pub(super) fn count_hit(&self) {
        *self.0.hits.lock() += 1;
        self.0.hit.notify_all();
    }

    /// Waits for the gate. `false`: the connection must be closed.
    pub(super) async fn pass_gate(&self) -> bool {
        let mut gate = self.0.gate.subscribe();
        match gate.wait_for(|gate| *gate != Gate::Closed).await {
            Ok(gate) => *gate == Gate::Open,
            Err(_) => false,
        }
    }

    /// How often the fault has really happened.
    pub fn hits(&self) -> u64 {
        *self.0.hits.lock()
    }

    /// Waits until the fault has happened `hits` times in all. `false`: not within `timeout`.
    #[must_use]
    pub fn wait_hits(&self, hits: u64, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut now = self.0.hits.lock();
        while *now < hits {
            if self.0.hit.wait_until(&mut now, deadline).timed_out() {
                return *now >= hits;
            }
        }
        true
    }

    /// Waits for the first hit. `false`: not within `timeout`.
    #[must_use]
    pub fn wait_hit(&self, timeout: Duration) -> bool {
        self.wait_hits(1, timeout)
    }

    /// Lets held requests go on, and later ones pass without a stop.
    pub fn release(&self) {
        self.0.gate.send_replace(Gate::Open);
    }

    /// Closes the connections of held requests; the server learns nothing more of them.
    pub fn drop_held(&self) {
        self.0.gate.send_replace(Gate::Dropped);
    }

    /// Takes no further request. Held ones stay held.
    pub fn turn_off(&self) {
        self.0.off.store(true, Ordering::SeqCst);
    }
}

/// A number in 0..1, the same for the same `seed` and `place` (splitmix64).
fn unit_interval(seed: u64, place: u64) -> f64 {
    (super::files::splitmix64(seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 11) as f64 / (1u64 << 53) as f64
}
