//! The client against a scripted server: what goes over the wire, what is repeated, what is reported.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::client::{Body, BodySource, ObjectHeaders};
use super::credentials::StaticCredentials;
use super::error::{BosError, BosErrorKind};

use super::scripted::{Renewable, Scripted, Step};
use super::sign::{Credentials, ReceivedAuthorization, SignedParts};
use crate::object::{ByteRange, Condition, ETag, Md5, ObjectKey, PartNumber, UploadId};

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn stored() -> Step {
    Step::answer(200, &[("ETag", "\"2e9ec317e197819358fbc43afca7d837\""), ("x-bce-content-crc32c", "7")], "")
}

fn body(text: &'static str) -> (Body, Md5) {
    (Body::Bytes(Bytes::from_static(text.as_bytes())), Md5::of(text.as_bytes()))
}

async fn put(server: &Scripted, condition: Condition) -> Result<ETag, BosError> {
    let (body, md5) = body("01234567");
    let headers = ObjectHeaders::default();
    server.client().put_object(&key("k"), body, &md5, &headers, &condition).await.map(|stored| stored.etag)
}

async fn complete(server: &Scripted) -> Result<ETag, BosError> {
    let parts = [(PartNumber::FIRST, ETag::new("e"))];
    let headers = ObjectHeaders { metadata: [("a".to_owned(), "b".to_owned())].into(), ..Default::default() };
    let client = server.client();
    let stored = client.complete(&key("k"), &UploadId::new("u"), &parts, &headers, &Condition::Absent).await?;
    Ok(stored.etag)
}

#[tokio::test]
async fn a_500_is_repeated_and_signed_anew() {
    let server = Scripted::start([Step::error(500, "InternalError", "m"), stored()]).await;
    put(&server, Condition::Any).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    for request in &seen {
        assert_eq!(request.line(), "PUT /bkt/k");
        assert_eq!(request.body, b"01234567");
        assert_eq!(request.header("content-length"), Some("8"));
        assert_eq!(request.header("content-md5"), Some("Lp7DF+GXgZNY+8Q6/KfYNw=="));
        assert_eq!(request.header("x-bce-content-crc32c-flag"), Some("true"));
        assert_eq!(request.header("host"), Some(server.endpoint()));
        assert_eq!((request.header("accept-encoding"), request.header("expect")), (None, None));
        assert_eq!(request.header("if-match").or(request.header("if-none-match")), None);
        assert_signed(request, "secret0secret0");
    }
}

/// The request carries a signature by `secret` over exactly the headers that came.
fn assert_signed(request: &super::scripted::Seen, secret: &str) {
    let headers: Vec<(String, String)> = request
        .head
        .lines()
        .skip(1)
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let (method, target) = request.line().split_once(' ').unwrap();
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect();
    let received = ReceivedAuthorization::parse(request.header("authorization").unwrap()).unwrap();
    let path = decode(path);
    let parts = SignedParts { method, path: &path, query: &query, headers: &headers };
    assert!(received.is_signed_by(secret, parts), "{}", request.head);
    for name in ["host", "x-bce-date"] {
        assert!(received.signed_headers.iter().any(|signed| signed == name), "{name} is not signed");
    }
}

#[tokio::test]
async fn conditions_are_sent_quoted_and_their_puts_never_repeated_unanswered() {
    let server = Scripted::start([Step::Lose, stored()]).await;
    let error = put(&server, Condition::Absent).await.unwrap_err();
    assert_eq!((error.kind, error.is_ambiguous(), error.tries()), (BosErrorKind::Network, true, 1));
    assert_eq!(server.seen()[0].header("if-none-match"), Some("*"));

    let server = Scripted::start([Step::error(500, "InternalError", "m"), stored()]).await;
    let error = put(&server, Condition::Matches(ETag::new("x"))).await.unwrap_err();
    assert_eq!((error.kind, error.is_ambiguous()), (BosErrorKind::Server, true));
    assert_eq!(server.seen()[0].header("if-match"), Some("\"x\""));

    let server = Scripted::start([Step::error(429, "RequestRateLimitExceeded", "m"), stored()]).await;
    put(&server, Condition::Absent).await.unwrap();

    let server = Scripted::start([Step::error(412, "PreconditionFailed", "m")]).await;
    let error = put(&server, Condition::Absent).await.unwrap_err();
    assert_eq!((error.kind, error.is_ambiguous()), (BosErrorKind::PreconditionFailed, false));
}

#[tokio::test]
async fn a_lost_answer_of_an_idempotent_call_is_repeated_and_remembered() {
    let server = Scripted::start([Step::Lose, stored()]).await;
    put(&server, Condition::Any).await.unwrap();
    let server = Scripted::start([Step::Lose, Step::error(403, "AccessDenied", "no")]).await;
    let error = put(&server, Condition::Any).await.unwrap_err();
    assert_eq!((error.kind, error.is_ambiguous(), error.tries()), (BosErrorKind::Denied, true, 2));
}

#[tokio::test]
async fn lists_of_objects_and_parts_ask_for_the_strong_view_and_sign_it() {
    let server = Scripted::start([
        Step::answer(200, &[], r#"{"contents":[]}"#),
        Step::answer(200, &[], r#"{"parts":[],"isTruncated":false}"#),
    ])
    .await;
    let client = server.client();
    client.list_objects("", Some('/'), None, 1000).await.unwrap();
    client.list_parts(&key("k"), &UploadId::new("u")).await.unwrap();
    for request in server.seen() {
        assert_eq!(request.header("x-bce-consistency-view"), Some("strong"), "{}", request.head);
        let received = ReceivedAuthorization::parse(request.header("authorization").unwrap()).unwrap();
        assert!(received.signed_headers.iter().any(|name| name == "x-bce-consistency-view"), "{}", request.head);
        assert_signed(&request, "secret0secret0");
    }
}

#[tokio::test]
async fn what_is_refused_of_an_archived_object_is_named_for_what_it_is() {
    let frozen = || Step::answer(200, &[("ETag", "\"e\""), ("x-bce-storage-class", "ARCHIVE")], "");
    let refused = || Step::error(403, "AccessDenied", "no");
    let read = |server: Scripted| async move {
        server.client().get_range(&key("k"), ByteRange::new(0, 4), None).await.unwrap_err()
    };
    let error = read(Scripted::start([refused(), frozen()]).await).await;
    assert_eq!((error.kind, error.errno(), error.is_transient()), (BosErrorKind::Archived, libc::EPERM, false));
    assert!(error.to_string().contains("restore it first") && !error.to_string().contains("permission"), "{error}");
    let restored = Step::answer(
        200,
        &[("ETag", "\"e\""), ("x-bce-storage-class", "ARCHIVE"), ("x-bce-restore", "ongoing-request=\"false\"")],
        "",
    );
    let error = read(Scripted::start([refused(), restored]).await).await;
    assert_eq!(error.kind, BosErrorKind::Denied, "what is refused of a restored one has another reason");
    let standard = Step::answer(200, &[("ETag", "\"e\""), ("x-bce-storage-class", "STANDARD")], "");
    let error = read(Scripted::start([refused(), standard]).await).await;
    assert_eq!(error.kind, BosErrorKind::Denied);
    // Nothing more is asked with keys that are not accepted.
    let server = Scripted::start([Step::error(403, "InvalidAccessKeyId", "no"), frozen()]).await;
    let client = server.client();
    assert_eq!(client.get_range(&key("k"), ByteRange::new(0, 4), None).await.unwrap_err().kind, BosErrorKind::Denied);
    assert_eq!(server.seen().len(), 1);
    let server = Scripted::start([Step::error(400, "Odd", "no"), frozen()]).await;
    let error = server.client().copy_object(&key("k"), None, &key("k"), None).await.unwrap_err();
    assert_eq!(error.kind, BosErrorKind::Archived);
    let error = read(Scripted::start([Step::error(403, "InvalidObjectState", "no")]).await).await;
    assert_eq!(error.kind, BosErrorKind::Archived);
}

#[tokio::test]
async fn a_session_token_that_cannot_be_had_anew_is_not_waited_for() {
    let refused = || Step::error(400, "InvalidSessionToken", "expired");
    let server = Scripted::start([refused(), refused()]).await;
    let error = put(&server, Condition::Any).await.unwrap_err();
    assert!(error.is_transient(), "another one may come: {error}");
    let server = Scripted::start([refused(), refused()]).await;
    let fixed = Credentials { session_token: Some("t".to_owned()), ..Credentials::new("AK0", "secret0secret0") };
    let client = server.client_with(|config| config.credentials = Arc::new(StaticCredentials::new(fixed)));
    let error = client.head_object(&key("k")).await.unwrap_err();
    assert!(!error.is_transient() && error.errno() == libc::EACCES, "{error}");
    assert!(error.to_string().contains("given once") && error.to_string().contains("mount again"), "{error}");
}

#[tokio::test]
async fn only_a_404_about_the_rules_says_that_there_are_none() {
    for (status, code, known) in [
        (404, "NoSuchLifecycleConfiguration", true),
        (404, "NoLifecycleConfiguration", true),
        (404, "NoSuchKey", false),
        (404, "NoSuchBucket", false),
        (404, "", false),
        (403, "AccessDenied", false),
        (501, "NotImplemented", false),
    ] {
        let server = Scripted::start((0..3).map(|_| Step::error(status, code, "m"))).await;
        assert_eq!(server.client().abort_rule_days("").await.is_ok(), known, "{status} {code}");
    }
    for body in ["", "<html>", "[]", r#"{"rule":7}"#] {
        let server = Scripted::start((0..3).map(|_| Step::answer(200, &[], body))).await;
        assert!(server.client().abort_rule_days("").await.is_err(), "{body:?}");
    }
}

#[tokio::test]
async fn the_kind_of_a_bucket_is_told_also_by_a_refusal() {
    let refusal = Step::answer(403, &[("x-bce-bucket-type", "namespace"), ("x-bce-request-id", "1")], "");
    let server = Scripted::start([refusal.clone(), refusal]).await;
    let error = server.client().head_bucket().await.unwrap_err();
    assert_eq!(error.kind, BosErrorKind::Denied);
    assert!(error.story().hierarchical);
}

#[tokio::test]
async fn throttling_by_403_text_is_waited_out() {
    let server = Scripted::start([Step::error(403, "AccessDenied", "Request rate is too high"), stored()]).await;
    put(&server, Condition::Absent).await.unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn complete_is_not_repeated_when_its_answer_is_lost_odd_or_an_error_in_a_200() {
    for (step, kind, ambiguous) in [
        (Step::Lose, BosErrorKind::Network, true),
        (Step::Freeze, BosErrorKind::Network, true),
        (Step::answer(200, &[], "<html>"), BosErrorKind::BadAnswer, true),
        (Step::answer(200, &[("Content-Length", "99")], "{}"), BosErrorKind::Network, true),
        (Step::error(200, "InternalError", "late trouble"), BosErrorKind::Server, true),
        (Step::error(200, "InvalidPart", "late refusal"), BosErrorKind::InvalidPart, false),
        (Step::error(404, "NoSuchUpload", "gone"), BosErrorKind::NoSuchUpload, false),
        (Step::answer(502, &[], "<html>bad gateway</html>"), BosErrorKind::Server, true),
    ] {
        let server = Scripted::start([step.clone(), stored()]).await;
        let error = complete(&server).await.unwrap_err();
        assert_eq!((error.kind, error.is_ambiguous()), (kind, ambiguous), "{step:?}: {error}");
        assert_eq!(server.steps_left(), 1, "{step:?}");
    }
}

#[tokio::test]
async fn complete_sends_metadata_and_condition_and_reads_a_padded_answer() {
    let answer = Step::answer(200, &[("x-bce-content-crc32c", "5")], "  \n{\"eTag\":\"-184a\",\"bucket\":\"bkt\"}");
    let server = Scripted::start([answer]).await;
    assert_eq!(complete(&server).await.unwrap().as_str(), "-184a");
    let request = &server.seen()[0];
    assert_eq!(request.line(), "POST /bkt/k?uploadId=u");
    assert_eq!(request.body, br#"{"parts":[{"eTag":"e","partNumber":1}]}"#);
    assert_eq!(request.header("x-bce-meta-a"), Some("b"));
    assert_eq!(request.header("if-none-match"), Some("*"));
    assert_signed(request, "secret0secret0");
}

#[tokio::test]
async fn a_copy_with_an_error_in_its_200_is_tried_again() {
    let good = Step::answer(200, &[], r#"{"eTag":"d41d","lastModified":"2026-01-02T03:04:05Z"}"#);
    let server = Scripted::start([Step::error(200, "InternalError", "m"), good]).await;
    let copy = server.client().copy_object(&key("目 a"), Some(&ETag::new("x")), &key("b"), None).await.unwrap();
    assert_eq!((copy.etag.as_str(), copy.last_modified), ("d41d", Some(1_767_323_045)));
    let request = &server.seen()[1];
    assert_eq!(request.header("x-bce-copy-source"), Some("/bkt/%E7%9B%AE%20a"));
    assert_eq!(request.header("x-bce-copy-source-if-match"), Some("\"x\""));
    assert_eq!(request.header("x-bce-metadata-directive"), Some("copy"));
    assert_eq!(request.header("content-length"), Some("0"));
}

#[tokio::test]
async fn initiate_says_content_length_0_and_keeps_metadata_for_complete() {
    let server = Scripted::start([Step::answer(200, &[], r#"{"uploadId":"u1"}"#), Step::Lose]).await;
    let headers = ObjectHeaders {
        content_type: Some("image/png".to_owned()),
        storage_class: Some("COLD".to_owned()),
        metadata: [("a".to_owned(), "b".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(server.client().initiate(&key("k"), &headers).await.unwrap().as_str(), "u1");
    let request = &server.seen()[0];
    assert_eq!(request.line(), "POST /bkt/k?uploads");
    assert_eq!(request.header("content-length"), Some("0"));
    assert_eq!(request.header("content-type"), Some("image/png"));
    assert_eq!(request.header("x-bce-storage-class"), Some("COLD"));
    assert_eq!(request.header("x-bce-meta-a"), None);
    assert_signed(request, "secret0secret0");
    assert!(server.client().initiate(&key("k"), &headers).await.unwrap_err().is_ambiguous());
}

#[tokio::test]
async fn odd_keys_go_over_the_wire_exactly_as_signed() {
    let keys =
        ["目录 1/a+b%c d.bin", "a?b#c/[x]|^\\", "\"'`{}<>~!@$&()=;:,*", "%2e%2E", " ", "dir/", "a%20b", "..x/...y"];
    let head = || Step::answer(200, &[("ETag", "\"e\""), ("Content-Length", "0")], "");
    let server = Scripted::start(keys.map(|_| head())).await;
    for text in keys {
        server.client().head_object(&key(text)).await.unwrap();
        let seen = server.seen();
        let request = seen.last().unwrap();
        let path = request.line().strip_prefix("HEAD /bkt/").unwrap();
        assert_eq!(path, super::sign::uri_encode_except_slash(text));
        assert_signed(request, "secret0secret0");
    }
}

#[tokio::test]
async fn metadata_is_sent_as_it_came_and_bad_names_are_not_sent_at_all() {
    let server = Scripted::start([stored()]).await;
    let (bytes, md5) = body("x");
    let mut headers =
        ObjectHeaders { metadata: [("n".to_owned(), "目 100%".to_owned())].into(), ..Default::default() };
    let client = server.client();
    client.put_object(&key("k"), bytes.clone(), &md5, &headers, &Condition::Any).await.unwrap();
    assert_eq!(server.seen()[0].header("x-bce-meta-n"), Some("目 100%"));
    headers.metadata.insert("no name".to_owned(), String::new());
    let error = client.put_object(&key("k"), bytes, &md5, &headers, &Condition::Any).await.unwrap_err();
    assert_eq!((error.kind, server.seen().len()), (BosErrorKind::InvalidName, 1));
}

#[tokio::test]
async fn head_tells_missing_from_unreachable() {
    let bare = |status| Step::Raw(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
    let server = Scripted::start([Step::answer(404, &[], "")]).await;
    let error = server.client().head_object(&key("k")).await.unwrap_err();
    assert_eq!((error.kind, error.errno()), (BosErrorKind::NoSuchKey, libc::ENOENT));
    // A 404 that BOS did not send says nothing of the key.
    let server = Scripted::start([bare(404), bare(404), bare(404)]).await;
    let error = server.client().head_object(&key("k")).await.unwrap_err();
    assert_eq!((error.kind, error.errno()), (BosErrorKind::BadAnswer, libc::EIO));
    let server = Scripted::start([bare(502), Step::answer(404, &[], "")]).await;
    assert_eq!(server.client().head_bucket().await.unwrap_err().kind, BosErrorKind::NoSuchBucket);
}

#[tokio::test]
async fn reads_are_whole_or_an_error() {
    let range = ByteRange::new(2, 6);
    let part = |range: &str, body: &str| {
        Step::answer(206, &[("ETag", "\"e\""), ("Content-Range", range), ("Content-Length", "4")], body)
    };
    // Cut in its body, then the wrong range, then right: retried as a whole.
    let steps = [part("bytes 2-5/10", "ab"), part("bytes 0-3/10", "abcd"), part("bytes 2-5/10", "cdef")];
    let server = Scripted::start(steps).await;
    let bytes = server.client().get_range(&key("k"), range, Some(&ETag::new("e"))).await.unwrap();
    assert_eq!(bytes, "cdef");
    let request = &server.seen()[2];
    assert_eq!(request.header("range"), Some("bytes=2-5"));
    assert_eq!(request.header("if-match"), Some("\"e\""));
    assert_eq!(request.header("content-length"), None);
    // The object ends inside the range.
    let short = Step::answer(206, &[("ETag", "\"e\""), ("Content-Range", "bytes 2-3/4")], "cd");
    let server = Scripted::start([short]).await;
    let error = server.client().get_range(&key("k"), range, None).await.unwrap_err();
    assert_eq!(error.kind, BosErrorKind::InvalidRange);
    let none = server.client().get_range(&key("k"), ByteRange::new(3, 3), None).await.unwrap_err();
    assert_eq!((none.kind, server.seen().len()), (BosErrorKind::InvalidRange, 1));
}

#[tokio::test]
async fn a_streamed_body_reports_its_early_end() {
    let server = Scripted::start([Step::answer(200, &[("ETag", "\"e\""), ("Content-Length", "9")], "abc")]).await;
    let mut object = server.client().get_object(&key("k"), None, None).await.unwrap();
    assert_eq!((object.meta.size, object.range), (9, ByteRange::new(0, 9)));
    let error = loop {
        match object.chunk().await {
            Ok(piece) => assert!(piece.is_some(), "the body ended without an error"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, BosErrorKind::Network);
}

#[tokio::test]
async fn a_listing_that_does_not_advance_is_an_error_at_once() {
    let page = || Step::answer(200, &[], r#"{"isTruncated":true,"nextMarker":"a","contents":[{"key":"a"}]}"#);
    let server = Scripted::start([page(), page(), page(), page()]).await;
    let client = server.client();
    let first = client.list_objects("", Some('/'), None, 5000).await.unwrap();
    assert_eq!(first.next_marker.as_deref(), Some("a"));
    let error = client.list_objects("", Some('/'), first.next_marker.as_deref(), 1000).await.unwrap_err();
    assert_eq!(error.kind, BosErrorKind::BadAnswer);
    assert_eq!(server.seen()[0].line(), "GET /bkt/?maxKeys=1000&delimiter=%2F");
}

#[tokio::test]
async fn parts_are_listed_over_pages_and_aborts_forgive() {
    let pages = [
        r#"{"isTruncated":true,"nextPartNumberMarker":1,"parts":[{"partNumber":1,"size":5,"eTag":"a"}]}"#,
        r#"{"isTruncated":false,"parts":[{"partNumber":2,"size":1,"eTag":"b"}]}"#,
    ];
    let mut steps = pages.map(|page| Step::answer(200, &[], page)).to_vec();
    steps.push(Step::error(404, "NoSuchUpload", "m"));
    steps.push(Step::error(404, "NoSuchLifecycleConfiguration", "m"));
    let server = Scripted::start(steps).await;
    let (client, upload) = (server.client(), UploadId::new("u/1"));
    assert_eq!(client.list_parts(&key("k"), &upload).await.unwrap().len(), 2);
    assert_eq!(server.seen()[1].line(), "GET /bkt/k?uploadId=u%2F1&maxParts=1000&partNumberMarker=1");
    assert!(!client.abort(&key("k"), &upload).await.unwrap());
    assert_eq!(client.abort_rule_days("").await.unwrap(), None);
    assert_eq!(client.requests_sent().get, 3);
}

#[tokio::test]
async fn refused_credentials_are_read_again_once() {
    let steps = [Step::error(403, "InvalidAccessKeyId", "m"), stored(), Step::error(403, "InvalidAccessKeyId", "m")];
    let server = Scripted::start(steps).await;
    let old = Mutex::new(Arc::new(Credentials::new("AK0", "secret0secret0")));
    let new = Credentials { session_token: Some("tok+en".to_owned()), ..Credentials::new("AK1", "secret1secret1") };
    let provider = Arc::new(Renewable { current: old, next: Some(new) });
    let client = server.client_with(|config| config.credentials = provider);
    let (bytes, md5) = body("x");
    client.put_object(&key("k"), bytes, &md5, &ObjectHeaders::default(), &Condition::Absent).await.unwrap();
    let seen = server.seen();
    assert_signed(&seen[0], "secret0secret0");
    assert_signed(&seen[1], "secret1secret1");
    assert_eq!(seen[1].header("x-bce-security-token"), Some("tok+en"));
    // Without anything new to read it is final at once.
    let error = server.client().head_bucket().await.unwrap_err();
    assert_eq!((error.kind, error.tries()), (BosErrorKind::Denied, 1));
}

#[tokio::test]
async fn head_refuses_credentials_without_a_code() {
    let head = || Step::answer(200, &[("ETag", "\"e\""), ("Content-Length", "0")], "");
    for (status, token) in [(403, None), (400, Some("old".to_owned()))] {
        let old = Credentials { session_token: token, ..Credentials::new("AK0", "secret0secret0") };
        let with = |next| Arc::new(Renewable { current: Mutex::new(Arc::new(old.clone())), next });
        let server = Scripted::start([Step::answer(status, &[], ""), head(), Step::answer(status, &[], "")]).await;
        let renewed = with(Some(Credentials::new("AK1", "secret1secret1")));
        server.client_with(|config| config.credentials = renewed).head_object(&key("k")).await.unwrap();
        assert_signed(&server.seen()[1], "secret1secret1");
        let fixed = with(None);
        let error = server.client_with(|config| config.credentials = fixed).head_object(&key("k")).await.unwrap_err();
        assert_eq!((error.kind, error.errno(), error.tries()), (BosErrorKind::Denied, libc::EACCES, 1));
        assert_eq!(error.is_transient(), status == 400, "an expired token can be renewed");
    }
}

#[tokio::test]
async fn a_wrong_clock_is_corrected_by_the_answer() {
    let date = ("Date", "Fri, 02 Jan 2032 03:04:05 GMT");
    let expired = Step::answer(400, &[date], r#"{"code":"RequestExpired","message":"m"}"#);
    let server = Scripted::start([expired, stored()]).await;
    put(&server, Condition::Absent).await.unwrap();
    assert!(server.seen()[1].header("x-bce-date").unwrap().starts_with("2032-01-02T03:04"));
    // HEAD says it without a code.
    let head = Step::answer(200, &[("ETag", "\"e\""), ("Content-Length", "0")], "");
    let server = Scripted::start([Step::answer(403, &[date], ""), head]).await;
    server.client().head_object(&key("k")).await.unwrap();
    assert!(server.seen()[1].header("x-bce-date").unwrap().starts_with("2032-01-02T03:04"));
}

#[tokio::test]
async fn no_secret_is_in_any_error_or_debug_text() {
    let echo = r#"signature mismatch: bce-auth-v1 was x"#;
    let server = Scripted::start([Step::error(403, "SignatureDoesNotMatch", echo), Step::Lose, Step::Lose]).await;
    let client = server.client();
    let error = client.head_bucket().await.unwrap_err();
    let link = client.presign_get(&key("k"), 60);
    assert!(link.contains("authorization="));
    for text in [error.to_string(), format!("{error:?}"), format!("{client:?}"), format!("{:?}", error.story())] {
        assert!(!text.contains("secret0") && !text.contains("authorization"), "{text}");
    }
}

#[tokio::test]
async fn nothing_listening_is_clear_and_not_ambiguous() {
    let server = Scripted::start([]).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = listener.local_addr().unwrap().to_string();
    drop(listener);
    let client = server.client_with(|config| config.endpoint = free.clone());
    let parts = [(PartNumber::FIRST, ETag::new("e"))];
    let headers = ObjectHeaders::default();
    let error = client.complete(&key("k"), &UploadId::new("u"), &parts, &headers, &Condition::Any).await.unwrap_err();
    assert_eq!((error.kind, error.is_ambiguous(), error.tries()), (BosErrorKind::Network, false, 3));
    let text = error.to_string();
    assert!(text.contains("refused") && text.contains("--endpoint") && text.contains(&free), "{text}");
}

struct Zeros {
    len: u64,
    readable: u64,
}

impl BodySource for Zeros {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset + buf.len() as u64 > self.readable {
            return Err(io::Error::other("spool gone"));
        }
        buf.fill(0);
        Ok(())
    }
}

async fn upload(server: &Scripted, source: Zeros) -> Result<(), BosError> {
    let md5 = Md5::of(b"");
    let body = Body::Source(Arc::new(source));
    server.client().upload_part(&key("k"), &UploadId::new("u"), PartNumber::FIRST, body, &md5).await.map(drop)
}

#[tokio::test]
async fn sources_are_streamed_with_their_exact_length() {
    let server = Scripted::start([Step::error(500, "InternalError", "m"), stored()]).await;
    let len = 3 << 20;
    upload(&server, Zeros { len, readable: len }).await.unwrap();
    for request in server.seen() {
        assert_eq!(request.line(), "PUT /bkt/k?partNumber=1&uploadId=u");
        assert_eq!(request.header("content-length"), Some("3145728"));
        assert_eq!(request.header("transfer-encoding"), None);
        assert_eq!(request.body.len() as u64, len);
    }
}

#[tokio::test]
async fn a_source_that_cannot_be_read_is_a_local_error() {
    let server = Scripted::start([stored()]).await;
    let error = upload(&server, Zeros { len: 3 << 20, readable: 1 << 20 }).await.unwrap_err();
    assert_eq!((error.kind, error.is_ambiguous(), error.tries()), (BosErrorKind::LocalRead, false, 1));
    assert!(error.to_string().contains("spool gone"), "{error}");
}

#[tokio::test]
async fn a_stalled_body_ends_its_try_and_the_call() {
    let server = Scripted::start([Step::Freeze, Step::Freeze, Step::Freeze]).await;
    let began = Instant::now();
    let error = upload(&server, Zeros { len: 64 << 20, readable: 64 << 20 }).await.unwrap_err();
    assert_eq!((error.kind, error.is_ambiguous(), error.tries()), (BosErrorKind::Network, true, 3));
    assert_eq!(error.errno(), libc::ETIMEDOUT);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_dropped_call_stops_sending() {
    let server = Scripted::start([Step::answer(200, &[], "")]).await;
    let source = Zeros { len: 1 << 40, readable: 1 << 40 };
    assert!(tokio::time::timeout(Duration::from_millis(100), upload(&server, source)).await.is_err());
    // The server sees the connection end and gives up reading the terabyte.
    let ended = async {
        while server.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the body is still being sent");
    assert!((server.seen()[0].body.len() as u64) < 1 << 40);
}

#[tokio::test]
async fn the_deadline_bounds_all_tries_together() {
    let server = Scripted::start([Step::Freeze, Step::Freeze, Step::Freeze]).await;
    let client = server.client_with(|config| config.retry.deadline = Some(Duration::from_millis(500)));
    let began = Instant::now();
    let error = client.head_object(&key("k")).await.unwrap_err();
    assert_eq!(error.kind, BosErrorKind::Network);
    assert!(began.elapsed() < Duration::from_millis(1200), "{:?}", began.elapsed());
}
