//! What a key of the bucket may hold: not one state but a row of them, because a publication that nobody waits for may be
//! there or not yet.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of an object; `None`: no object.
pub type Body = Option<Arc<Vec<u8>>>;

/// A body for people.
pub fn told(body: Option<&[u8]>) -> String {
    match body {
        None => "absent".into(),
        Some(bytes) => {
            let sum = bytes
                .iter()
                .fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
            format!("{} bytes #{:08x}", bytes.len(), sum as u32)
        }
    }
}

/// The states of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStates {
    /// What may be seen now, oldest first: the last state that is certain, and what was published since.
    pub passing: Vec<Body>,
    /// What may be there once nothing is pending: one state, or several where a kill left open which.
    pub settled: Vec<Body>,
}

impl Default for KeyStates {
    fn default() -> Self {
        Self { passing: vec![None], settled: vec![None] }
    }
}

fn same(body: &Body, seen: Option<&[u8]>) -> bool {
    body.as_deref().map(Vec::as_slice) == seen
}

impl KeyStates {
    /// Something is published (`None`: removed). `acknowledged`: it is there when the call returns.
    pub fn publish(&mut self, body: Body, acknowledged: bool) {
        if acknowledged {
            self.passing.clear();
        }
        self.passing.push(body.clone());
        self.settled = vec![body];
    }

    /// Something may be published, or not.
    pub fn maybe(&mut self, body: Body) {
        self.passing.push(body.clone());
        if !self.settled.contains(&body) {
            self.settled.push(body);
        }
    }

    /// Any state that could be seen up to now may also be the last.
    pub fn any_of_the_past(&mut self) {
        for body in &self.passing {
            if !self.settled.contains(body) {
                self.settled.push(body.clone());
            }
        }
    }

    pub fn allows(&self, seen: Option<&[u8]>) -> bool {
        self.passing.iter().chain(&self.settled).any(|body| same(body, seen))
    }

    /// What was seen cannot be undone: older states are over. `seen` must be allowed.
    pub fn saw(&mut self, seen: Option<&[u8]>) {
        if let Some(at) = self.passing.iter().position(|body| same(body, seen)) {
            self.passing.drain(..at);
        }
    }

    /// The states of two courses of things together.
    pub fn merge(&mut self, other: &KeyStates, settled_too: bool) {
        for body in &other.passing {
            if !self.passing.contains(body) {
                self.passing.push(body.clone());
            }
        }
        for body in other.settled.iter().filter(|_| settled_too) {
            if !self.settled.contains(body) {
                self.settled.push(body.clone());
            }
        }
    }

    /// For people.
    pub fn told(&self, quiet: bool) -> String {
        let mut all: Vec<String> = self.settled.iter().map(|body| told(body.as_deref().map(Vec::as_slice))).collect();
        if !quiet {
            all.extend(self.passing.iter().map(|body| told(body.as_deref().map(Vec::as_slice))));
        }
        all.dedup();
        all.join(" or ")
    }
}

/// The keys of a lane.
#[derive(Clone, Debug, Default)]
pub struct Published(BTreeMap<String, KeyStates>);

impl Published {
    pub fn key(&mut self, key: &str) -> &mut KeyStates {
        self.0.entry(key.to_owned()).or_default()
    }

    pub fn get(&self, key: &str) -> KeyStates {
        self.0.get(key).cloned().unwrap_or_default()
    }

    pub fn merge(&mut self, other: &Published, settled_too: bool) {
        for key in self.0.keys().chain(other.0.keys()).cloned().collect::<Vec<_>>() {
            let there = other.get(&key);
            self.key(&key).merge(&there, settled_too);
        }
    }

    /// Compares with what the bucket holds.
    ///
    /// # Errors
    /// The first key that holds what it may not.
    pub fn check(&self, seen: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
        for key in self.0.keys().chain(seen.keys()) {
            let (states, bytes) = (self.get(key), seen.get(key).map(Vec::as_slice));
            if !states.allows(bytes) {
                return Err(format!("object {key:?} is {}, allowed: {}", told(bytes), states.told(false)));
            }
        }
        Ok(())
    }

    /// Takes what was seen into account.
    pub fn saw(&mut self, seen: &BTreeMap<String, Vec<u8>>) {
        for (key, states) in &mut self.0 {
            states.saw(seen.get(key).map(Vec::as_slice));
        }
    }

    /// Nothing is pending: each key must be in a settled state, and is in that one from now on. Returns how many keys had one
    /// allowed state, and how many several.
    ///
    /// # Errors
    /// The first key that holds what it may not.
    pub fn settle(&mut self, seen: &BTreeMap<String, Vec<u8>>) -> Result<(u64, u64), String> {
        let (mut exact, mut loose) = (0, 0);
        for key in seen.keys() {
            self.key(key);
        }
        for (key, states) in &mut self.0 {
            let bytes = seen.get(key).map(Vec::as_slice);
            let body = states.settled.iter().find(|body| same(body, bytes)).cloned();
            let body = body.ok_or_else(|| {
                format!("nothing is pending, and object {key:?} is {}, expected: {}", told(bytes), states.told(true))
            })?;
            *if states.settled.len() == 1 { &mut exact } else { &mut loose } += 1;
            *states = KeyStates { passing: vec![body.clone()], settled: vec![body] };
        }
        Ok((exact, loose))
    }

    /// Expects one byte to be other than it is, of an object that can only be one thing.
    pub fn flip_a_byte(&mut self) -> bool {
        let certain = self.0.values_mut().filter(|states| states.settled.len() == 1);
        let mut bodies = certain.flat_map(|states| states.settled.iter_mut().flatten()).filter(|body| !body.is_empty());
        let Some(body) = bodies.next() else { return false };
        Arc::make_mut(body)[0] ^= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Body {
        Some(Arc::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn what_nobody_waits_for_may_be_there_or_not_until_nothing_is_pending() {
        let mut states = KeyStates::default();
        states.publish(body("a"), false);
        assert!(states.allows(None) && states.allows(Some(b"a")) && !states.allows(Some(b"b")));
        states.publish(body("b"), false);
        states.saw(Some(b"a"));
        assert!(!states.allows(None), "it does not go back");
        assert_eq!(states.settled, [body("b")]);
        states.publish(body("c"), true);
        assert!(states.allows(Some(b"c")) && !states.allows(Some(b"b")) && !states.allows(Some(b"a")));
        states.publish(None, false);
        assert!(states.allows(None) && states.allows(Some(b"c")));
    }

    #[test]
    fn what_a_kill_leaves_open_is_settled_by_what_is_seen() {
        let mut published = Published::default();
        published.key("k").publish(body("old"), true);
        published.key("k").maybe(body("new"));
        let seen = |text: &str| BTreeMap::from([("k".to_owned(), text.as_bytes().to_vec())]);
        assert!(published.check(&seen("half")).is_err());
        assert!(published.check(&BTreeMap::new()).is_err());
        assert!(published.check(&seen("old")).is_ok());
        assert_eq!(published.settle(&seen("new")), Ok((0, 1)));
        assert!(published.check(&seen("old")).is_err(), "it was new already");
        assert_eq!(published.settle(&seen("new")), Ok((1, 0)));
    }

    #[test]
    fn a_key_nobody_spoke_of_and_a_flipped_byte_are_noticed() {
        let mut published = Published::default();
        published.key("k").publish(body("text"), true);
        let seen = |key: &str| BTreeMap::from([(key.to_owned(), b"text".to_vec())]);
        let mut both = seen("k");
        both.extend(seen("other"));
        assert!(published.check(&both).unwrap_err().contains("other"));
        assert!(published.clone().settle(&both).is_err());
        assert!(published.clone().settle(&seen("k")).is_ok());
        assert!(published.flip_a_byte());
        assert!(published.settle(&seen("k")).is_err());
    }
}
