//! Deletions against a server that answers from a script: what leaves, behind which look.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::client::{Known, PageAt, Removed};
use super::error::BosErrorKind;
use super::scripted::{Renewable, Scripted, Step};
use super::sign::Credentials;
use crate::object::{ETag, ObjectKey};

const DATE: &str = "Fri, 02 Jan 2026 03:04:05 GMT";

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

/// HEAD shows an object.
fn shows(etag: &str) -> Step {
    let etag = format!("\"{etag}\"");
    Step::answer(200, &[("ETag", &etag), ("Content-Length", "3"), ("Last-Modified", DATE), ("Date", DATE)], "")
}

fn done() -> Step {
    Step::answer(204, &[], "")
}

fn nothing() -> Step {
    Step::error(404, "NoSuchKey", "m")
}

fn busy() -> Step {
    Step::error(503, "ServiceUnavailable", "m")
}

/// A page with these keys and ETags.
fn page(objects: &[(&str, &str)]) -> Step {
    let contents: Vec<String> = objects
        .iter()
        .map(|(key, etag)| {
            format!(r#"{{"key":"{key}","eTag":"{etag}","size":3,"lastModified":"2026-01-02T03:04:05Z"}}"#)
        })
        .collect();
    let body = format!(r#"{{"isTruncated":false,"contents":[{}]}}"#, contents.join(","));
    Step::answer(200, &[("Date", DATE)], &body)
}

fn at() -> PageAt {
    PageAt { prefix: "d/".into(), marker: None, keys_max: 1000 }
}

/// Methods and targets, in their order.
fn lines(server: &Scripted) -> Vec<String> {
    server.seen().iter().map(|seen| seen.line().split('?').next().unwrap().to_owned()).collect()
}

async fn remove(server: &Scripted) -> Result<Removed, BosErrorKind> {
    let known = Known { etag: ETag::new("old"), stored: None };
    server.client().remove_object(&key("k"), None, |head| known.is_head(head)).await.map_err(|error| error.kind)
}

#[tokio::test]
async fn a_delete_is_repeated_only_behind_another_look() {
    for trouble in [Step::Lose, Step::Freeze, busy(), Step::error(500, "InternalError", "m")] {
        let server = Scripted::start([shows("old"), trouble, shows("old"), done()]).await;
        assert_eq!(remove(&server).await, Ok(Removed::Gone));
        assert_eq!(lines(&server), ["HEAD /bkt/k", "DELETE /bkt/k", "HEAD /bkt/k", "DELETE /bkt/k"]);
    }
}

#[tokio::test]
async fn what_somebody_else_put_there_before_the_repeat_is_left() {
    let server = Scripted::start([shows("old"), busy(), shows("new")]).await;
    let removed = remove(&server).await.unwrap();
    assert!(matches!(removed, Removed::Other(head) if head.etag.as_str() == "new"));
    assert_eq!(lines(&server), ["HEAD /bkt/k", "DELETE /bkt/k", "HEAD /bkt/k"]);
}

#[tokio::test]
async fn a_delete_whose_answer_was_lost_is_done_if_nothing_is_there() {
    let server = Scripted::start([shows("old"), Step::Lose, nothing()]).await;
    assert_eq!(remove(&server).await, Ok(Removed::Gone));
    let server = Scripted::start([shows("old"), nothing()]).await;
    assert_eq!(remove(&server).await, Ok(Removed::Gone));
    let server = Scripted::start([nothing()]).await;
    assert_eq!(remove(&server).await, Ok(Removed::Gone));
    assert_eq!(lines(&server), ["HEAD /bkt/k"]);
}

#[tokio::test]
async fn nothing_is_deleted_while_nobody_can_say_what_is_there() {
    let server = Scripted::start([busy(), busy(), busy(), done()]).await;
    assert_eq!(remove(&server).await, Err(BosErrorKind::Throttled));
    assert_eq!(lines(&server), ["HEAD /bkt/k"; 3]);
}

#[tokio::test]
async fn a_look_is_used_at_once_or_not_at_all() {
    let server = Scripted::start([shows("old"), done()]).await;
    let client = server.client();
    let seen = client.look(&key("k")).await.unwrap();
    assert_eq!(client.remove_object(&key("k"), seen, |_| true).await.unwrap(), Removed::Gone);
    assert_eq!(lines(&server), ["HEAD /bkt/k", "DELETE /bkt/k"]);

    let server = Scripted::start([shows("old"), shows("new"), page(&[("d/a", "old")]), page(&[("d/a", "new")])]).await;
    let client = server.client();
    let seen = client.look(&key("k")).await.unwrap();
    // Longer than a look is believed.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let removed = client.remove_object(&key("k"), seen, |head| head.etag.as_str() == "old").await.unwrap();
    assert!(matches!(removed, Removed::Other(_)), "{removed:?}");
    let seen = client.look_page(&at()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    client.remove_page(&at(), Some(seen), |object| object.etag.as_str() == "old").await.unwrap();
    assert_eq!(lines(&server), ["HEAD /bkt/k", "HEAD /bkt/k", "GET /bkt/", "GET /bkt/"], "no delete");
}

#[tokio::test]
async fn a_look_at_one_key_deletes_no_other() {
    let server = Scripted::start([shows("old"), shows("other")]).await;
    let client = server.client();
    let seen = client.look(&key("k")).await.unwrap();
    let removed = client.remove_object(&key("l"), seen, |head| head.etag.as_str() == "old").await.unwrap();
    assert!(matches!(removed, Removed::Other(_)), "{removed:?}");
    assert_eq!(lines(&server), ["HEAD /bkt/k", "HEAD /bkt/l"]);
}

#[tokio::test]
async fn a_delete_is_signed_with_the_time_of_its_look_and_not_valid_for_long() {
    let server = Scripted::start([shows("old"), done(), page(&[("d/a", "old")]), Step::answer(200, &[], "")]).await;
    assert_eq!(remove(&server).await, Ok(Removed::Gone));
    server.client().remove_page(&at(), None, |_| true).await.unwrap();
    let seen = server.seen();
    for sent in [&seen[1], &seen[3]] {
        // The look took under a second.
        let signed = sent.header("authorization").unwrap();
        assert!(signed.starts_with("bce-auth-v1/AK0/2026-01-02T03:04:05Z/31/"), "{signed}");
        assert_eq!(sent.header("x-bce-date"), Some("2026-01-02T03:04:05Z"));
    }
    let look = seen[0].header("authorization").unwrap();
    assert!(look.contains("/1800/") && !look.contains("2026-01-02T03:04:05Z"), "{look}");
}

#[tokio::test]
async fn a_batch_is_repeated_only_behind_another_page() {
    let known = |object: &super::client::ListedObject| object.etag.as_str() == "old";
    for trouble in [Step::Lose, busy(), Step::error(500, "InternalError", "m")] {
        let before = page(&[("d/a", "old"), ("d/b", "foreign"), ("d/c", "old")]);
        let behind = page(&[("d/a", "new"), ("d/b", "foreign"), ("d/c", "old")]);
        let refused = r#"{"errors":[{"key":"d/c","code":"AccessDenied","message":"m"}]}"#;
        let server = Scripted::start([before, trouble, behind, Step::answer(200, &[], refused)]).await;
        let removed = server.client().remove_page(&at(), None, known).await.unwrap();
        assert_eq!(removed.failures, [("d/c".to_owned(), "AccessDenied".to_owned(), "m".to_owned())]);
        let bodies: Vec<String> =
            server.seen().iter().map(|seen| String::from_utf8(seen.body.clone()).unwrap()).collect();
        assert_eq!(bodies[1], r#"{"objects":[{"key":"d/a"},{"key":"d/c"}]}"#);
        assert_eq!(bodies[3], r#"{"objects":[{"key":"d/c"}]}"#, "the new object at d/a is left");
        assert_eq!(lines(&server), ["GET /bkt/", "POST /bkt/", "GET /bkt/", "POST /bkt/"]);
    }
    let server = Scripted::start([page(&[("d/a", "new")])]).await;
    server.client().remove_page(&at(), None, known).await.unwrap();
    assert_eq!(lines(&server), ["GET /bkt/"], "an empty batch is not sent");
}

#[tokio::test]
async fn credentials_that_a_delete_shows_to_be_old_are_read_again_and_the_look_is_made_again() {
    let refused = Step::error(403, "InvalidAccessKeyId", "m");
    let server = Scripted::start([shows("old"), refused, shows("old"), done()]).await;
    let current = Mutex::new(Arc::new(Credentials::new("AK0", "secret0secret0")));
    let next = Some(Credentials::new("AK1", "secret1secret1"));
    let client = server.client_with(|config| config.credentials = Arc::new(Renewable { current, next }));
    assert_eq!(client.remove_object(&key("k"), None, |_| true).await.unwrap(), Removed::Gone);
    assert_eq!(lines(&server), ["HEAD /bkt/k", "DELETE /bkt/k", "HEAD /bkt/k", "DELETE /bkt/k"]);
    assert!(server.seen()[3].header("authorization").unwrap().starts_with("bce-auth-v1/AK1/"));
}

#[test]
fn an_object_is_known_by_its_etag_and_its_time_where_that_is_known() {
    let etag = ETag::new("e");
    let known = |stored| Known { etag: etag.clone(), stored };
    assert!(known(None).is(&etag, 5) && !known(None).is(&ETag::new("f"), 5));
    assert!(known(Some((4, 6))).is(&etag, 4) && known(Some((4, 6))).is(&etag, 6));
    assert!(!known(Some((4, 6))).is(&etag, 3) && !known(Some((4, 6))).is(&etag, 7), "written again since");
    assert!(known(Some((4, 6))).is(&etag, 0), "BOS did not say");
    assert_eq!(Known::at(etag.clone(), 7), known(Some((7, 7))));
    assert_eq!(Known::at(etag.clone(), 0), known(None));
}
