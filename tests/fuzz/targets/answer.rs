//! Heads and error bodies. Input: a byte of choices, a status, what was asked for of which object, header lines up to an
//! empty one, and the body.

use bosfs::bos::client::given_range;
use bosfs::bos::header_text::to_wire;
use bosfs::bos::retry::{Decision, FailedTry, Progress, RetryPolicy};
use bosfs::bos::{BosError, BosErrorKind, wire};
use bosfs::object::ByteRange;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::time::Duration;

use super::feed::Feed;

/// errno of "no such file".
const ENOENT: i32 = 2;
/// Longest text of an error: names, code, request ID and the message, each cut.
const ERROR_CHARS_MAX: usize = 2000;

pub fn check(data: &[u8]) {
    let mut feed = Feed::new(data);
    let choices = feed.byte();
    let status = 100 + feed.u16() % 500;
    let start = feed.u64();
    let asked = (choices & 1 != 0).then(|| ByteRange::at(start, u64::from(feed.u16()) + 1));
    let headers = read_headers(&mut feed);
    error(choices & 2 != 0, choices & 4 != 0, status, &headers, feed.rest());
    object(&headers, status, asked);
}

/// `Name: value` lines up to an empty one, as far as they are headers.
pub fn read_headers(feed: &mut Feed<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    while !feed.is_empty() && headers.len() < 1000 {
        let line = feed.line();
        if line.is_empty() {
            break;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

fn error(is_head: bool, on_object: bool, status: u16, headers: &HeaderMap, body: &[u8]) {
    let error = BosError::of_answer(is_head, on_object, status, headers, body);
    let text = error.to_string();
    assert!(!text.contains(char::is_control), "control characters of an answer in a message: {text:?}");
    assert!(text.chars().count() <= ERROR_CHARS_MAX, "a message of {} characters", text.len());
    let errno = error.errno();
    assert!((1..=133).contains(&errno), "errno {errno}");
    // "Cannot ask" is never "does not exist": only BOS's own words deny a key.
    let words = ["NoSuchKey", "InvalidVersion", "SymlinkTargetNotExist"];
    let denied = (on_object && words.contains(&error.story().code.as_str()))
        || (is_head && on_object && status == 404 && headers.contains_key("x-bce-request-id"));
    assert!(errno != ENOENT || denied, "a file that is not there, by {text}");
    assert_eq!(errno == ENOENT, error.kind == BosErrorKind::NoSuchKey);
    retry(&error, headers);
}

/// Whatever an answer says, the next try comes within a bounded time and the tries end.
fn retry(error: &BosError, headers: &HeaderMap) {
    let asked = wire::text(headers, "retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    for policy in [RetryPolicy::interactive(), RetryPolicy::data()] {
        let failed = FailedTry {
            kind: error.kind,
            code: &error.story().code,
            ambiguous: error.is_ambiguous(),
            clock_suspect: false,
            credentials_suspect: false,
            retry_after: asked,
        };
        let mut progress =
            Progress { tries: 1, elapsed: Duration::ZERO, reloaded: false, clock_corrected: false, idempotent: true };
        while let Decision::Retry { after, .. } = policy.decide(failed, progress, 1.0) {
            assert!(after <= Duration::from_secs(60), "a wait of {after:?}");
            assert!(policy.deadline.is_none_or(|deadline| progress.elapsed + after < deadline));
            progress.tries += 1;
            progress.elapsed += after;
            assert!(progress.tries <= policy.tries_max, "the tries do not end");
        }
    }
}

fn object(headers: &HeaderMap, status: u16, asked: Option<ByteRange>) {
    if let Ok(meta) = wire::object_meta(headers, 5, 1_700_000_000) {
        assert!(!meta.etag.as_str().is_empty(), "no ETag, and a read would take whatever is there");
        let stored = &meta.headers;
        for (name, value) in &stored.metadata {
            assert!(!name.is_empty() && name.bytes().all(|byte| (b'!'..=b'~').contains(&byte)), "{name:?}");
            let mut came = headers.get_all(format!("x-bce-meta-{name}")).iter();
            assert!(came.any(|came| came.as_bytes() == &*to_wire(value)), "{name} would go back as other bytes");
        }
        for (name, value) in [("content-type", &stored.content_type), ("expires", &stored.expires)] {
            let came = headers.get(name).map(|value| value.as_bytes());
            assert!(value.as_ref().is_none_or(|value| Some(&*to_wire(value)) == came), "{name}: {value:?}");
        }
    }
    if let Ok(outcome) = wire::stored_outcome(headers, None) {
        assert!(!outcome.etag.as_str().is_empty());
    }
    let len = wire::text(headers, "content-length").and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let Ok(status) = StatusCode::from_u16(status) else { return };
    if let Ok((given, size)) = given_range(status, headers, len, asked) {
        assert!(given.start <= given.end && given.end <= size, "{given:?} of {size}");
        assert_eq!(given.len(), len, "the body has another length than its range");
        if let Some(asked) = asked {
            assert_eq!(given, asked.intersect(ByteRange::new(0, size)), "other bytes than {asked:?}");
        }
    }
}
