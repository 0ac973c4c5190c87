//! What a fault proxy can do to a request: each name is one way in which lines and servers fail.

use serde::{Deserialize, Serialize};

/// What is done to a request that a rule takes.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing (the rule only counts or holds).
    #[default]
    Pass,
    /// The connection is reset as soon as the head is read; the server learns nothing.
    Refuse,
    /// Forwarded whole; the server acts and answers; the client's connection is closed instead.
    LoseAnswer,
    /// Closed after the head, before any byte of the body is read; the server learns nothing.
    CutBeforeBody,
    /// So many bytes of the body are forwarded, then both connections are closed.
    CutInsideBody { after_bytes: u64 },
    /// The whole body is received, then the connection is closed; the server learns nothing.
    CutAfterBody,
    /// Head read, then silence until the rule is released, which closes the connection.
    Stall,
    /// The server acts and answers; the client hears nothing until the rule is released, which closes the connection.
    StallAfterAct,
    /// So many bytes of the answer's body arrive, then silence until the rule is released, which closes the connection.
    StallInAnswer { after_bytes: u64 },
    /// Forwarded after this time, and after up to `jitter_ms` more, drawn from the rule's seed.
    Delay {
        ms: u64,
        #[serde(default)]
        jitter_ms: u64,
    },
    /// The server acts at once; its answer comes after this time.
    SlowAnswer { ms: u64 },
    /// An answer of the proxy's own, after the body was received. `acted`: the server got the request, and its answer is
    /// replaced.
    Answer {
        status: u16,
        /// The body as it goes out.
        body: String,
        #[serde(default)]
        headers: Vec<(String, String)>,
        #[serde(default)]
        acted: bool,
    },
    /// Status 200 at once, then a blank every `pause_ms`, so many in all, then the JSON that counts: `error`, and the server
    /// learns nothing; or without one what the server really answers. So keep S3-like servers a connection alive.
    BlanksFirst {
        blanks: u32,
        pause_ms: u64,
        #[serde(default)]
        error: Option<String>,
    },
    /// Headers of the server's answer are removed, then set.
    EditAnswer {
        #[serde(default)]
        set: Vec<(String, String)>,
        /// Lowercase names; a trailing `*` stands for any ending.
        #[serde(default)]
        remove: Vec<String>,
    },
    /// Fields of the JSON object that the server answers are replaced, and the ETag header with `eTag`.
    EditJson { set: Vec<(String, String)> },
    /// Only so many bytes of the body of the server's answer arrive, and the head says that there are no more.
    ShortenBody { keep_bytes: usize },
    /// The byte of the answer's body at this offset has its lowest bit flipped.
    CorruptBody { at: u64 },
    /// So many bytes of the answer's body arrive, then the connection is closed.
    TruncateBody { after_bytes: u64 },
    /// Both bodies move at this speed.
    Throttle { bytes_per_s: u64 },
    /// The proxy aborts the request's upload at the server, then forwards. Needs [`super::proxy::FaultProxy::set_hands`].
    AbortUpload,
    /// The proxy uploads other bytes under this part number of the request's upload, then forwards. Needs hands, too.
    SpoilPart { part: u32 },
}

impl Action {
    /// A BOS error as JSON that comes instead of the act.
    pub fn error(status: u16, code: &str) -> Self {
        Self::error_text(status, code, "made by the fault proxy")
    }
    /// The same with a message of one's own.
    pub fn error_text(status: u16, code: &str, message: &str) -> Self {
        match Self::own(status, "application/json", error_json(code, message)) {
            Self::Answer { status, body, mut headers, acted } => {
                // Every answer of BOS has one.
                headers.push(("x-bce-request-id".into(), "fault-proxy".into()));
                Self::Answer { status, body, headers, acted }
            }
            other => other,
        }
    }
    /// The same, but the server acted before.
    pub fn error_after_act(status: u16, code: &str) -> Self {
        Self::error(status, code).after_act()
    }
    /// An answer of the proxy's own comes after the server acted.
    pub fn after_act(self) -> Self {
        match self {
            Self::Answer { status, body, headers, .. } => Self::Answer { status, body, headers, acted: true },
            other => other,
        }
    }
    /// Throttling as it was seen with status 403.
    pub fn rate_403() -> Self {
        Self::error_text(403, "AccessDenied", "The request rate is too high.")
    }
    /// A gateway's HTML page.
    pub fn html(status: u16) -> Self {
        Self::own(status, "text/html", "<html><body><h1>Bad Gateway</h1></body></html>".to_owned())
    }
    /// A body of no bytes that says to be JSON.
    pub fn empty(status: u16) -> Self {
        Self::own(status, "application/json", String::new())
    }
    /// JSON that ends in the middle.
    pub fn cut_json(status: u16) -> Self {
        let mut body = error_json("InternalError", "made by the fault proxy");
        body.truncate(body.len() / 2);
        Self::own(status, "application/json", body)
    }
    /// White space, then an error, with status 200; the server learns nothing.
    pub fn blanks_then_error(code: &str) -> Self {
        let error = Some(error_json(code, "made by the fault proxy"));
        Self::BlanksFirst { blanks: 3, pause_ms: 50, error }
    }
    /// White space, then what the server really answers.
    pub fn blanks_then_answer() -> Self {
        Self::BlanksFirst { blanks: 3, pause_ms: 50, error: None }
    }
    fn own(status: u16, content_type: &str, body: String) -> Self {
        Self::Answer { status, body, headers: vec![("content-type".into(), content_type.into())], acted: false }
    }
    /// The answer's ETag is another one, in the header.
    pub fn wrong_etag() -> Self {
        Self::EditAnswer { set: vec![("ETag".into(), format!("\"{}\"", "0".repeat(32)))], remove: vec!["etag".into()] }
    }
    /// The answer's ETag is another one, in the JSON body and in the header.
    pub fn wrong_etag_in_json() -> Self {
        Self::EditJson { set: vec![("eTag".into(), "0".repeat(32))] }
    }
    /// The answer carries none of the CRC headers.
    pub fn no_crc() -> Self {
        Self::EditAnswer { set: vec![], remove: vec!["x-bce-content-crc*".into()] }
    }
    /// The answer's CRCs are those of other bytes.
    pub fn wrong_crc() -> Self {
        let set = ["x-bce-content-crc32c", "x-bce-content-crc32", "x-bce-content-crc64ecma"];
        Self::EditAnswer {
            set: set.iter().map(|name| ((*name).into(), "12345".into())).collect(),
            remove: vec!["x-bce-content-crc*".into()],
        }
    }
}

fn error_json(code: &str, message: &str) -> String {
    serde_json::json!({"code": code, "message": message, "requestId": "fault-proxy"}).to_string()
}
