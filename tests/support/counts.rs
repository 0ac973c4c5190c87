//! What went through a proxy, counted there and never inside bosfs.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;

use super::call::{Asked, Call};

/// Entries that the log of a proxy keeps.
const LOG_ENTRIES_MAX: usize = 20_000;

/// Figures of one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct CallCount {
    /// Heads received.
    pub requests: u64,
    /// Answers with 2xx from the server, whether or not they reached the client.
    pub accepted: u64,
    /// Bytes of bodies really received from the client, also of broken tries.
    pub body_bytes: u64,
    /// Bytes of bodies sent back to the client.
    pub answer_bytes: u64,
    /// Under way at present: head received, not yet answered or cut.
    pub open: u64,
    /// Most that were ever under way at once.
    pub open_max: u64,
}

/// Figures of one part number of one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct PartCount {
    /// Heads received.
    pub tries: u64,
    /// Taken by the server.
    pub accepted: u64,
    /// Bytes really received from the client.
    pub body_bytes: u64,
}

/// One request of the log.
#[derive(Clone, Debug, Serialize)]
pub struct Logged {
    /// Milliseconds since the proxy started: its connection was taken.
    pub connected_ms: u64,
    /// Milliseconds since the proxy started: the head was read.
    pub from_ms: u64,
    /// The same: it ended.
    pub at_ms: u64,
    pub asked: Asked,
    /// Status that the client was sent; `None`: none.
    pub status: Option<u16>,
    /// Rule that took it.
    pub rule: Option<u64>,
}

/// All figures since the start, or since the last reset.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    pub connections: u64,
    pub calls: BTreeMap<Call, CallCount>,
    #[serde(skip)]
    pub parts: BTreeMap<(String, u32), PartCount>,
    #[serde(skip)]
    pub log: VecDeque<Logged>,
}

impl Counts {
    pub fn of(&self, call: Call) -> CallCount {
        self.calls.get(&call).copied().unwrap_or_default()
    }

    /// Requests of one call.
    pub fn requests(&self, call: Call) -> u64 {
        self.of(call).requests
    }

    /// Requests of all calls.
    pub fn requests_all(&self) -> u64 {
        self.calls.values().map(|count| count.requests).sum()
    }

    /// Requests that only ask: HEAD, lists, ListParts, settings (not GET of an object).
    pub fn reads(&self) -> u64 {
        use Call::*;
        [HeadBucket, HeadObject, ListObjects, ListUploads, ListParts, BucketSetting, ListBuckets]
            .iter()
            .map(|call| self.requests(*call))
            .sum()
    }

    /// Bytes of file content that the client sent: bodies of PutObject and UploadPart, also of broken tries.
    pub fn bytes_sent(&self) -> u64 {
        self.of(Call::PutObject).body_bytes + self.of(Call::UploadPart).body_bytes
    }

    /// Figures of one part.
    pub fn part(&self, key: &str, part: u32) -> PartCount {
        self.parts.get(&(key.to_owned(), part)).copied().unwrap_or_default()
    }

    /// Part numbers of `key` that the server took more than once.
    pub fn parts_accepted_twice(&self, key: &str) -> Vec<u32> {
        self.parts.iter().filter(|((k, _), count)| k == key && count.accepted > 1).map(|((_, part), _)| *part).collect()
    }

    /// The log as text, a line per request, newest last.
    pub fn log_text(&self) -> String {
        let line = |l: &Logged| {
            let part = l.asked.part.map(|p| format!(" part {p}")).unwrap_or_default();
            let status = l.status.map_or("no answer".to_owned(), |s| s.to_string());
            let rule = l.rule.map(|r| format!(" rule {r}")).unwrap_or_default();
            format!("{:>8} ms {}{part} {:?} -> {status}{rule}\n", l.at_ms, l.asked.call, l.asked.key)
        };
        self.log.iter().map(line).collect()
    }

    pub(super) fn begin(&mut self, asked: &Asked) {
        let count = self.calls.entry(asked.call).or_default();
        count.requests += 1;
        count.open += 1;
        count.open_max = count.open_max.max(count.open);
        if let Some(part) = asked.part {
            self.parts.entry((asked.key.clone(), part)).or_default().tries += 1;
        }
    }

    pub(super) fn received(&mut self, asked: &Asked, bytes: u64) {
        self.calls.entry(asked.call).or_default().body_bytes += bytes;
        if let Some(part) = asked.part {
            self.parts.entry((asked.key.clone(), part)).or_default().body_bytes += bytes;
        }
    }

    pub(super) fn accepted(&mut self, asked: &Asked) {
        self.calls.entry(asked.call).or_default().accepted += 1;
        if let Some(part) = asked.part {
            self.parts.entry((asked.key.clone(), part)).or_default().accepted += 1;
        }
    }

    pub(super) fn sent_back(&mut self, asked: &Asked, bytes: u64) {
        self.calls.entry(asked.call).or_default().answer_bytes += bytes;
    }

    pub(super) fn close(&mut self, asked: &Asked) {
        let open = &mut self.calls.entry(asked.call).or_default().open;
        *open = open.saturating_sub(1);
    }

    pub(super) fn end(&mut self, from_to: [Duration; 3], asked: &Asked, status: Option<u16>, rule: Option<u64>) {
        if self.log.len() == LOG_ENTRIES_MAX {
            self.log.pop_front();
        }
        let [connected_ms, from_ms, at_ms] = from_to.map(|since_start| since_start.as_millis() as u64);
        self.log.push_back(Logged { connected_ms, from_ms, at_ms, asked: asked.clone(), status, rule });
    }
}
