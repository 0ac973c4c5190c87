//! The rows: what happens to the request of a phase, to the line, or to the process.

use std::time::Duration;

use crate::phases::Phase;
use crate::support::{Action, Call, Line};

/// What kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Something is done to the request of the phase.
    Request,
    /// The whole line changes when the request of the phase is there, and comes back later.
    Line(Line),
    /// The process of bosfs is treated when the request of the phase is there.
    Process(Blow),
    /// The upload vanishes at the server when the request of the phase is there.
    UploadGone,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blow {
    Kill,
    Terminate,
    Pause,
}

/// How a fault ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lasts {
    /// By itself: a data call waits until it is over.
    Passes,
    /// Not before somebody does something: the call fails at once, the bytes are kept.
    Refusal,
}

/// A row.
#[derive(Debug)]
pub struct Fault {
    pub name: &'static str,
    pub says: &'static str,
    pub kind: Kind,
    pub lasts: Lasts,
    /// The server acts on the request all the same.
    pub acted: bool,
}

/// How long the whole line is gone.
pub const LINE_GONE: Duration = Duration::from_millis(1200);
/// How long the process is stopped.
pub const PAUSE: Duration = Duration::from_millis(1500);

impl Fault {
    /// What the proxy does to a request of `phase`.
    pub fn action(&self, phase: &Phase) -> Action {
        let body_bytes = phase.body_bytes();
        match self.name {
            "latency" => Action::Delay { ms: 150, jitter_ms: 300 },
            "slow-line" => Action::Throttle { bytes_per_s: 4_000_000 },
            "reset-before-body" => Action::Refuse,
            "reset-in-body" => Action::CutInsideBody { after_bytes: body_bytes / 2 },
            "reset-after-body" => Action::CutAfterBody,
            "answer-lost" => Action::LoseAnswer,
            "stall" => Action::Stall,
            "stall-acted" => Action::StallAfterAct,
            "stall-in-answer" => Action::StallInAnswer { after_bytes: 20 },
            "500" => Action::error(500, "InternalError"),
            "502" => Action::html(502),
            "503" => Action::error(503, "ServiceUnavailable"),
            "504" => Action::html(504),
            "429" => Action::error(429, "RequestRateLimitExceeded"),
            "403-rate" => Action::rate_403(),
            "500-acted" => Action::error_after_act(500, "InternalError"),
            "503-acted" => Action::error_after_act(503, "ServiceUnavailable"),
            "expired" => Action::error(400, "RequestExpired"),
            "bad-digest" => Action::error(400, "BadDigest"),
            "wrong-etag" if matches!(phase.call, Call::Complete | Call::CopyObject) => Action::wrong_etag_in_json(),
            "wrong-etag" => Action::wrong_etag(),
            "wrong-crc" => Action::wrong_crc(),
            "no-crc" => Action::no_crc(),
            "body-cut" => Action::TruncateBody { after_bytes: 20 },
            "200-error" => Action::error(200, "InternalError"),
            "200-error-acted" => Action::error_after_act(200, "InternalError"),
            "200-blanks-error" => Action::blanks_then_error("InternalError"),
            "200-blanks-ok" => Action::blanks_then_answer(),
            "200-html" => Action::html(200),
            "200-html-acted" => Action::html(200).after_act(),
            "200-empty" => Action::empty(200),
            "200-cut-json" => Action::ShortenBody { keep_bytes: 12 },
            "5xx-empty" => Action::empty(500),
            "5xx-cut-json" => Action::cut_json(500),
            "no-upload" => Action::AbortUpload,
            "no-upload-lie" => Action::error(404, "NoSuchUpload"),
            "invalid-part" => Action::SpoilPart { part: 2 },
            "invalid-part-lie" => Action::error(400, "InvalidPart"),
            "slow-answer" => Action::SlowAnswer { ms: 2500 },
            "403-denied" => Action::error(403, "AccessDenied"),
            "no-bucket" => Action::error(404, "NoSuchBucket"),
            "quota" => Action::error(403, "CapacityExceeded"),
            _ => Action::Pass,
        }
    }

    /// Nothing is wrong with it: it is only slow or says less, and every request may be treated so.
    pub fn is_harmless(&self) -> bool {
        matches!(self.name, "latency" | "slow-line" | "no-crc" | "200-blanks-ok" | "slow-answer")
    }

    /// Waits for a timeout of bosfs.
    pub fn stalls(&self) -> bool {
        self.name.starts_with("stall")
    }

    /// What is in BOS afterwards is not what was written, as far as bosfs can know: it may send everything again.
    pub fn spoils(&self) -> bool {
        matches!(self.name, "no-upload" | "invalid-part" | "wrong-crc" | "upload-gone")
    }
}

const fn request(name: &'static str, says: &'static str) -> Fault {
    Fault { name, says, kind: Kind::Request, lasts: Lasts::Passes, acted: false }
}

const fn acted(name: &'static str, says: &'static str) -> Fault {
    Fault { name, says, kind: Kind::Request, lasts: Lasts::Passes, acted: true }
}

const fn refusal(name: &'static str, says: &'static str) -> Fault {
    Fault { name, says, kind: Kind::Request, lasts: Lasts::Refusal, acted: false }
}

const fn whole(name: &'static str, kind: Kind, says: &'static str) -> Fault {
    Fault { name, says, kind, lasts: Lasts::Passes, acted: false }
}

/// All rows.
pub const FAULTS: &[Fault] = &[
    request("latency", "150 to 450 ms before each request of the phase is forwarded"),
    request("slow-line", "4 MB/s"),
    whole(
        "refused",
        Kind::Line(Line::Refused),
        "nothing listens for 1.2 s: connections are refused, those that stood are reset",
    ),
    whole("line-dead", Kind::Line(Line::Dead), "every connection is reset for 1.2 s"),
    whole("line-silent", Kind::Line(Line::Silent), "no byte moves for 1.2 s"),
    request("reset-before-body", "connection reset behind the request's head"),
    request("reset-in-body", "connection reset in the middle of the request's body"),
    request("reset-after-body", "connection reset behind the request's body; the server learned nothing"),
    acted("answer-lost", "the server acted, the connection is reset instead of an answer"),
    request("stall", "the request is never answered, the server learned nothing; ends by bosfs's own timeout"),
    acted("stall-acted", "the server acted, and no answer ever comes; ends by bosfs's own timeout"),
    acted("stall-in-answer", "the answer stands still in its body; ends by bosfs's own timeout"),
    request("500", "500 InternalError as JSON"),
    request("502", "502 with a gateway's HTML page"),
    request("503", "503 ServiceUnavailable as JSON"),
    request("504", "504 with a gateway's HTML page"),
    request("429", "429 RequestRateLimitExceeded"),
    request("403-rate", "403 AccessDenied whose text speaks of the request rate"),
    acted("500-acted", "the server acted, the answer is a 500"),
    acted("503-acted", "the server acted, the answer is a 503"),
    request("expired", "400 RequestExpired"),
    request("bad-digest", "400 BadDigest"),
    acted("wrong-etag", "the answer's ETag is another one"),
    acted("wrong-crc", "the answer's CRCs are those of other bytes"),
    acted("no-crc", "the answers carry no CRC"),
    acted("body-cut", "the answer's body ends early, with the connection"),
    request("200-error", "200 with an error as JSON; the server learned nothing"),
    acted("200-error-acted", "the same, but the server acted"),
    request("200-blanks-error", "200, some white space, then an error as JSON; the server learned nothing"),
    acted("200-blanks-ok", "200, some white space, then the real answer"),
    request("200-html", "200 with an HTML page; the server learned nothing"),
    acted("200-html-acted", "the same, but the server acted"),
    request("200-empty", "200 with no body and no ETag; the server learned nothing"),
    acted("200-cut-json", "200 with the first 12 bytes of the real answer as the whole body"),
    request("5xx-empty", "500 with no body"),
    request("5xx-cut-json", "500 with JSON that ends in the middle"),
    request("no-upload", "the upload is really aborted at the server, right before the request"),
    request("no-upload-lie", "404 NoSuchUpload, although the upload is there"),
    request("invalid-part", "part 2 is really replaced at the server, right before the request"),
    request("invalid-part-lie", "400 InvalidPart, although all parts are there"),
    acted("slow-answer", "the server acts at once, the answer comes 2.5 s later"),
    refusal("403-denied", "403 AccessDenied, until somebody changes the rights"),
    refusal("no-bucket", "404 NoSuchBucket, until somebody makes the bucket"),
    refusal("quota", "403 CapacityExceeded, until somebody raises the quota"),
    whole("upload-gone", Kind::UploadGone, "the upload is aborted by somebody else while the phase is held"),
    whole("sigkill", Kind::Process(Blow::Kill), "bosfs is killed with SIGKILL"),
    whole("sigterm", Kind::Process(Blow::Terminate), "bosfs gets SIGTERM"),
    whole("sigstop", Kind::Process(Blow::Pause), "bosfs is stopped for 1.5 s (SIGSTOP, SIGCONT)"),
];
