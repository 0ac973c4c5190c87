//! A try that failed, as far as it can be known: from an answer, or from the lack of one.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};

use super::body::Sending;
use super::error::{BosError, BosErrorKind, Story};
use super::send::{Call, unix_now_s};
use super::sign::Credentials;
use super::wire::{self, WireError};

/// A difference between our clock and an answer's `Date` beyond this makes the clock suspect.
const CLOCK_SUSPECT_S: i64 = 300;
/// Characters of an answer's or error's text that end up in a message.
const MESSAGE_CHARS_MAX: usize = 500;
/// Characters of an error's code, and of a request ID, that are kept. BOS's own have at most 40.
const WORD_CHARS_MAX: usize = 80;

/// A try that failed.
pub(crate) struct Failure {
    pub(crate) kind: BosErrorKind,
    pub(crate) ambiguous: bool,
    pub(crate) status: Option<u16>,
    pub(crate) code: Box<str>,
    pub(crate) message: Box<str>,
    pub(crate) request_id: Option<Box<str>>,
    pub(crate) hierarchical: bool,
    pub(crate) timed_out: bool,
    pub(crate) retry_after: Option<Duration>,
    /// BOS's clock less ours, by the answer's `Date`.
    pub(crate) clock_ahead_s: Option<i64>,
    pub(crate) clock_suspect: bool,
    pub(crate) credentials_suspect: bool,
    /// What the answered request was signed with.
    pub(crate) refused: Option<Arc<Credentials>>,
}

impl Failure {
    pub(crate) fn new(kind: BosErrorKind, ambiguous: bool, message: impl Into<String>) -> Self {
        Self {
            kind,
            ambiguous,
            status: None,
            code: Box::default(),
            message: shortened(&message.into(), MESSAGE_CHARS_MAX).into(),
            request_id: None,
            hierarchical: false,
            timed_out: false,
            retry_after: None,
            clock_ahead_s: None,
            clock_suspect: false,
            credentials_suspect: false,
            refused: None,
        }
    }

    pub(crate) fn stalled(ambiguous: bool, message: String) -> Self {
        Self { timed_out: true, ..Self::new(BosErrorKind::Network, ambiguous, message) }
    }

    /// An answer of status 2xx that is not what it should be. BOS may well have acted.
    pub(crate) fn odd(headers: &HeaderMap, message: String) -> Self {
        Self {
            request_id: request_id(headers).map(String::into_boxed_str),
            ..Self::new(BosErrorKind::BadAnswer, true, message)
        }
    }

    /// Of an answer with an error status, or of a success status with an error in its body.
    pub(crate) fn of_answer(call: &Call<'_>, status: u16, headers: &HeaderMap, body: &[u8], with_token: bool) -> Self {
        Self::read(call.method == Method::HEAD, call.key.is_some(), status, headers, body, with_token)
    }

    fn read(is_head: bool, on_object: bool, status: u16, headers: &HeaderMap, body: &[u8], with_token: bool) -> Self {
        let request_id = request_id(headers);
        let error = WireError::in_body(body);
        let (mut code, mut message) = match &error {
            Some(error) => (shortened(&error.code, WORD_CHARS_MAX), shortened(&error.message, MESSAGE_CHARS_MAX)),
            None => (String::new(), shortened(String::from_utf8_lossy(body).trim(), MESSAGE_CHARS_MAX)),
        };
        let mut kind = BosErrorKind::of_answer(status, &code, &message, is_head, on_object);
        if is_head && status == 404 && request_id.is_none() {
            // Every answer of BOS has a request ID. A 404 without one is some proxy's, and says nothing of the key.
            kind = BosErrorKind::BadAnswer;
            message = "an answer that is not BOS's (no x-bce-request-id)".to_owned();
        }
        let now_s = unix_now_s();
        let clock_ahead_s =
            wire::text(headers, "date").and_then(|date| wire::http_date(&date)).map(|date| date.saturating_sub(now_s));
        let bare = code.is_empty() && is_head;
        let clock_suspect =
            bare && matches!(status, 400 | 403) && clock_ahead_s.is_some_and(|ahead| ahead.abs() > CLOCK_SUSPECT_S);
        // An expired session token makes HEAD answer 400 without a code (GET says InvalidSessionToken).
        let expired_token = bare && status == 400 && with_token && !clock_suspect;
        if expired_token {
            kind = BosErrorKind::Denied;
            code = "InvalidSessionToken".to_owned();
            message = "a 400 without a code, as HEAD gives for an expired session token".to_owned();
        }
        // Without a code a 400 may mean a date that expired on the way (in a machine that slept): signed anew once.
        let clock_suspect = clock_suspect || (bare && status == 400 && !expired_token);
        let ambiguous = match kind {
            BosErrorKind::Server | BosErrorKind::Throttled => !(400..500).contains(&status),
            BosErrorKind::BadAnswer => true,
            _ => false,
        };
        Self {
            kind,
            ambiguous,
            status: Some(status),
            request_id: request_id
                .or(error.and_then(|error| error.request_id).map(|id| shortened(&id, WORD_CHARS_MAX)))
                .map(String::into_boxed_str),
            hierarchical: wire::is_hierarchical(headers),
            timed_out: false,
            retry_after: retry_after(headers, now_s),
            clock_ahead_s,
            clock_suspect,
            credentials_suspect: bare && (status == 403 || expired_token),
            refused: None,
            code: code.into(),
            message: message.into(),
        }
    }

    /// Of a request that got no answer.
    pub(crate) fn of_transport(error: &reqwest::Error, sending: &Sending) -> Self {
        if let Some(message) = sending.take_read_error() {
            // The request ends short of its Content-Length, so BOS cannot have taken it.
            let message = format!("the local bytes could not be read: {message}");
            return Failure::new(BosErrorKind::LocalRead, false, message);
        }
        if error.is_builder() {
            return Failure::new(BosErrorKind::InvalidName, false, error_chain(error));
        }
        let mut failure = Failure::new(BosErrorKind::Network, !error.is_connect(), error_chain(error));
        failure.timed_out = error.is_timeout();
        failure
    }
}

impl BosError {
    /// What an answer with an error means, as every call tells it. `is_head`: it answers HEAD; `on_object`: the call names
    /// a key.
    pub fn of_answer(is_head: bool, on_object: bool, status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let Failure { kind, ambiguous, status, code, message, request_id, .. } =
            Failure::read(is_head, on_object, status, headers, body, false);
        let request_id = request_id.map(String::from);
        Self::with_story(
            kind,
            ambiguous,
            Story { status, code: code.into(), message: message.into(), request_id, tries: 1, ..Story::default() },
        )
    }
}

/// An error and its causes, each said once.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    shortened(&text, MESSAGE_CHARS_MAX)
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    wire::text(headers, "x-bce-request-id").map(|id| shortened(&id, WORD_CHARS_MAX))
}

/// What of a foreign text may stand in a message, a log or a terminal: no control characters, at most `chars_max`.
fn shortened(text: &str, chars_max: usize) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars_max + 1).collect();
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn retry_after(headers: &HeaderMap, now_s: i64) -> Option<Duration> {
    let text = wire::text(headers, "retry-after")?;
    let seconds = match text.trim().parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => u64::try_from(wire::http_date(&text)?.saturating_sub(now_s)).unwrap_or(0),
    };
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_an_answer_are_cut_and_have_no_control_characters() {
        let body = serde_json::json!({
            "code": "Odd\nCode".repeat(100),
            "message": "\u{1b}[2Jforged\r\n".repeat(1000),
            "requestId": "r\n".repeat(1000),
        });
        let error = BosError::of_answer(false, true, 400, &HeaderMap::new(), body.to_string().as_bytes());
        let shown = error.to_string();
        assert!(shown.contains("Odd Code") && !shown.contains(char::is_control), "{shown:?}");
        assert!(shown.chars().count() < MESSAGE_CHARS_MAX + 3 * WORD_CHARS_MAX, "{} characters", shown.len());
        let odd = Failure::odd(&HeaderMap::new(), "key\n".repeat(1 << 20));
        assert!(odd.message.len() <= MESSAGE_CHARS_MAX + 3 && !odd.message.contains('\n'));
    }
}
