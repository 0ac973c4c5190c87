//! What the embedded server reads of a request. Input: method, target, header lines up to an empty one, body.

use bosfs::bos::header_text::wire_len;
use bosfs::bos::sign::{Credentials, ReceivedAuthorization, format_timestamp, parse_timestamp};
use bosfs::serve::conditions::Conditions;
use bosfs::serve::headers::{self, Digests, METADATA_BYTES_MAX};
use bosfs::serve::request::{Call, Request, is_bucket_name};

use super::answer::read_headers;
use super::feed::Feed;

pub fn check(data: &[u8]) {
    let mut feed = Feed::new(data);
    let method = feed.text().into_owned();
    let target = feed.text().into_owned();
    let Ok(request) = http::Request::builder().method(method.as_str()).uri(target.as_str()).body(()) else { return };
    let (mut parts, ()) = request.into_parts();
    parts.headers = read_headers(&mut feed);
    of_headers(&parts.headers);
    let Ok(request) = Request::parse(parts, "localhost", |bucket| bucket == "known") else { return };
    on_object(&request);
    // The secret is not in the input: whatever passes was not signed with it.
    let credentials = Credentials::new("AK", "a secret that no input has");
    assert!(request.check_signature(&credentials).is_err(), "an unsigned request passes");
    assert!(request.content_length().is_err() || request.headers.contains_key("content-length"));
    if let Ok((bucket, key)) = request.copy_source() {
        assert!(!bucket.is_empty() && !bucket.contains('/') && !key.is_empty());
    }
    for name in ["maxKeys", "partNumber"] {
        assert!(
            request.number(name).is_err()
                || request.number(name).is_ok_and(|n| n.is_none())
                || request.parameter(name).is_some()
        );
    }
}

fn on_object(request: &Request) {
    assert!(!request.bucket.contains('/') || request.call == Call::Unknown || !is_bucket_name(&request.bucket));
    if request.check_key().is_ok() {
        let key = &request.key;
        assert!((1..=1024).contains(&key.len()));
        assert!(!key.split('/').any(|segment| segment == "." || segment == ".."), "{key:?} leaves its folder");
    }
    let of_a_key = matches!(
        request.call,
        Call::PutObject
            | Call::CopyObject
            | Call::GetObject
            | Call::HeadObject
            | Call::DeleteObject
            | Call::InitiateMultipartUpload
            | Call::UploadPart
            | Call::UploadPartCopy
            | Call::CompleteMultipartUpload
            | Call::AbortMultipartUpload
            | Call::ListParts
    );
    assert!(!of_a_key || !request.key.is_empty(), "{:?} without a key", request.call);
    assert!(of_a_key || request.call == Call::Unknown || request.key.is_empty(), "{:?} with a key", request.call);
    if request.call == Call::DeleteBucket {
        assert_eq!(request.method.as_str(), "DELETE");
    }
}

fn of_headers(headers: &http::HeaderMap) {
    if let Ok(metadata) = headers::metadata(headers) {
        let bytes: usize =
            metadata.iter().map(|(name, value)| "x-bce-meta-".len() + name.len() + wire_len(value)).sum();
        assert!(bytes <= METADATA_BYTES_MAX, "{bytes} bytes of metadata are stored");
    }
    let _ = (headers::object_headers(headers), Digests::of(headers), Conditions::of(headers));
    if let Some(range) = headers::text(headers, "range") {
        for size in [0, 1, 1000, u64::MAX] {
            if let Ok((start, end)) = headers::range(&range, size) {
                assert!(start <= end && end <= size, "{start}..{end} of {size}");
            }
        }
    }
    if let Some(value) = headers::text(headers, "authorization")
        && let Ok(received) = ReceivedAuthorization::parse(&value)
    {
        assert!(received.expires_at_s().is_none_or(|end| end >= received.signed_at_s));
        assert!(received.signed_headers.iter().all(|name| !name.is_empty() && !name.contains('/')));
    }
    if let Some(date) = headers::text(headers, "x-bce-date")
        && let Some(at) = parse_timestamp(&date)
    {
        assert_eq!(parse_timestamp(&format_timestamp(at)), Some(at));
    }
}
