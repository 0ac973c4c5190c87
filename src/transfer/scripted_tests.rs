//! Each function against a server that answers from a script: what is asked, in which order, and what an answer becomes.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;

use super::complete::{Completion, Outcome, complete, complete_once, put};
use super::initiate::initiate;
use super::part::CopySource;
use super::prove::{By, ByRule, Expected, MadeAs, Proving, Verdict, prove};
use super::retry::tests::Tries;
use super::settle::{Found, Settled, settle};
use super::stale::look_until;
use super::*;
use crate::bos::client::{Body, ObjectHeaders, ObjectMeta};
use crate::bos::scripted::{Scripted, Step};
use crate::bos::{BosError, BosErrorKind};
use crate::object::{ByteRange, Condition, PartNumber};

const BYTES: &[u8] = b"01234567";
const MD5: &str = "2e9ec317e197819358fbc43afca7d837";

fn key() -> ObjectKey {
    ObjectKey::parse("k").unwrap()
}

fn id() -> UploadId {
    UploadId::new("u")
}

fn body() -> Body {
    Body::Bytes(Bytes::from_static(BYTES))
}

fn head(etag: &str, size: &str, mark: &str) -> Step {
    Step::answer(200, &[("ETag", etag), ("Content-Length", size), ("x-bce-meta-bosfs-upload", mark)], "")
}

fn no_object() -> Step {
    Step::answer(404, &[("Content-Length", "0")], "")
}

fn made(etag: &str) -> Step {
    Step::answer(200, &[("Date", "Thu, 01 Jan 1970 00:16:40 GMT")], &format!(r#"{{"eTag":"{etag}"}}"#))
}

fn no_upload() -> Step {
    Step::error(404, "NoSuchUpload", "gone")
}

/// The calls that came, by method and what tells them apart.
fn calls(server: &Scripted) -> Vec<String> {
    server.seen().iter().map(|seen| seen.line().replace("/bkt/k", "").replace("uploadId=u", "id")).collect()
}

fn expected() -> Expected {
    let held = Held { len: 8, etag: ETag::new(MD5), sum: Some(Checksum::of(BYTES)) };
    Expected::composed(8, &[(PartNumber::FIRST, held)]).unwrap()
}

fn completion<'a>(upload: Upload<'a>, headers: &'a ObjectHeaders, condition: &'a Condition) -> Completion<'a> {
    static PARTS: LazyLock<[(PartNumber, ETag); 1]> = LazyLock::new(|| [(PartNumber::FIRST, ETag::new(MD5))]);
    Completion { upload, parts: &*PARTS, headers, mark: "j.1", size: 8, condition }
}

async fn complete_with(steps: Vec<Step>, tries: u32) -> (Scripted, Result<Outcome, BosError>) {
    let server = Scripted::start(steps).await;
    let (client, key, id) = (server.client(), key(), id());
    let upload = Upload { client: &client, key: &key, id: &id };
    let headers = ObjectHeaders::default();
    let outcome = complete(&completion(upload, &headers, &Condition::Absent), &mut Tries(tries)).await;
    (server, outcome)
}

#[tokio::test]
async fn every_initiate_has_its_line_before_it() {
    let server = Scripted::start([Step::Lose, Step::answer(200, &[], r#"{"uploadId":"u"}"#)]).await;
    let (client, key, headers) = (server.client(), key(), ObjectHeaders::default());
    let (mut patience, mut lines) = (Tries(9), Vec::new());
    let line = |sent| {
        lines.push((sent, server.seen().len()));
        Ok(())
    };
    assert_eq!(initiate(&client, &key, &headers, &mut patience, line).await.unwrap(), id());
    assert_eq!(lines, [(0, 0), (1, 1)], "a line before the first request and before its repeat");
}

#[tokio::test]
async fn a_line_that_cannot_be_written_sends_nothing() {
    let server = Scripted::start([]).await;
    let (client, key, headers) = (server.client(), key(), ObjectHeaders::default());
    let full = |_| Err(BosError::new(BosErrorKind::LocalRead, "disk full"));
    let error = initiate(&client, &key, &headers, &mut Tries(1), full).await.unwrap_err();
    assert_eq!(error.kind, BosErrorKind::LocalRead);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn what_bos_says_of_a_part() {
    let stored = |etag: &str, crc32c: &str| Step::answer(200, &[("ETag", etag), ("x-bce-content-crc32c", crc32c)], "");
    let server = Scripted::start([
        stored(MD5, "1"),
        stored("opaque", "2887918368"),
        stored("opaque", "1"),
        // The client itself sends a damaged body twice.
        Step::error(400, "BadDigest", "damaged"),
        Step::error(400, "BadDigest", "damaged"),
        no_upload(),
        stored(MD5, "1"),
        Step::error(403, "AccessDenied", "no"),
    ])
    .await;
    let (client, key, id) = (server.client(), key(), id());
    let upload = Upload { client: &client, key: &key, id: &id };
    let sum = Checksum::of(BYTES);
    let send = |unanswered| upload.send_part(PartNumber::FIRST, body(), &sum, unanswered);
    let none = Unanswered::None;
    assert!(matches!(send(none).await.unwrap(), PartAnswer::Held(held) if held.sum == Some(sum) && held.len == 8));
    assert!(matches!(send(none).await.unwrap(), PartAnswer::Held(held) if held.etag == ETag::new("opaque")));
    assert!(matches!(send(none).await.unwrap(), PartAnswer::Differs { .. }));
    assert!(matches!(send(none).await.unwrap(), PartAnswer::Damaged(_)));
    assert!(matches!(send(none).await.unwrap(), PartAnswer::UploadGone(_)));
    let earlier = Unanswered::of(&sum, Some(&Checksum::of(b"other")));
    assert_eq!(Unanswered::of(&sum, Some(&sum)), Unanswered::None, "the same bytes, whichever body arrives last");
    assert!(matches!(send(earlier).await.unwrap(), PartAnswer::Contested(_)));
    assert_eq!(send(none).await.unwrap_err().kind, BosErrorKind::Denied);
}

#[tokio::test]
async fn what_bos_says_of_a_copied_range() {
    let server = Scripted::start([
        Step::answer(200, &[], r#"{"eTag":"e"}"#),
        Step::error(412, "PreconditionFailed", "changed"),
        Step::error(404, "NoSuchKey", "gone"),
        no_upload(),
        Step::answer(200, &[], r#"{"eTag":"e"}"#),
    ])
    .await;
    let (client, key, id, etag) = (server.client(), key(), id(), ETag::new("base"));
    let upload = Upload { client: &client, key: &key, id: &id };
    let source = CopySource { key: &key, etag: &etag };
    let copy = |unanswered| upload.copy_part(PartNumber::FIRST, source, ByteRange::new(0, 8), unanswered);
    let held = Held { len: 8, etag: ETag::new("e"), sum: None };
    assert!(matches!(copy(Unanswered::None).await.unwrap(), PartAnswer::Held(copied) if copied == held));
    assert!(matches!(copy(Unanswered::None).await.unwrap(), PartAnswer::SourceChanged(_)));
    assert!(matches!(copy(Unanswered::None).await.unwrap(), PartAnswer::SourceGone(_)));
    assert!(matches!(copy(Unanswered::None).await.unwrap(), PartAnswer::UploadGone(_)));
    assert!(matches!(copy(Unanswered::Other).await.unwrap(), PartAnswer::Contested(_)));
    assert_eq!(server.seen()[0].header("x-bce-copy-source-range"), Some("bytes=0-7"));
    assert_eq!(server.seen()[0].header("x-bce-copy-source-if-match"), Some("\"base\""));
}

#[tokio::test]
async fn a_complete_carries_condition_and_mark_and_says_when_it_was_stored() {
    let (server, outcome) = complete_with(vec![made("e")], 1).await;
    let Outcome::Made(made) = outcome.unwrap() else { panic!() };
    assert_eq!((made.etag.as_str(), made.answer.is_some()), ("e", true));
    assert!(made.stored_between.is_some_and(|(from, to)| from <= 1000 && 1000 <= to));
    assert_eq!(server.seen()[0].header("if-none-match"), Some("*"));
    assert_eq!(server.seen()[0].header("x-bce-meta-bosfs-upload"), Some("j.1"));
}

#[tokio::test]
async fn an_unanswered_complete_is_settled_by_head_and_mark_before_it_is_repeated() {
    let (server, outcome) = complete_with(vec![Step::Lose, head("e", "8", "j.1")], 9).await;
    assert!(matches!(outcome.unwrap(), Outcome::Made(made) if made.etag == ETag::new("e") && made.answer.is_none()));
    assert_eq!(calls(&server).len(), 2);

    // Not there yet: it is sent again, and the first one acts meanwhile.
    let steps = vec![Step::Lose, no_object(), no_upload(), head("e", "8", "j.1")];
    let (server, outcome) = complete_with(steps, 9).await;
    assert!(matches!(outcome.unwrap(), Outcome::Made(_)), "{:?}", calls(&server));
    assert_eq!(server.steps_left(), 0);

    // The same, seen by the condition.
    let steps = vec![Step::Lose, no_object(), Step::error(412, "PreconditionFailed", ""), head("e", "8", "j.1")];
    assert!(matches!(complete_with(steps, 9).await.1.unwrap(), Outcome::Made(_)));

    // The patience is at its end.
    let (_, outcome) = complete_with(vec![Step::Lose, no_object()], 1).await;
    assert!(outcome.unwrap_err().is_ambiguous());
}

#[tokio::test]
async fn a_complete_that_cannot_be_says_what_to_do_next() {
    let (server, outcome) = complete_with(vec![Step::error(400, "InvalidPart", "part 1")], 9).await;
    assert!(matches!(outcome.unwrap(), Outcome::PartsMissing(_)));
    assert_eq!(calls(&server).len(), 1);
    let (_, outcome) = complete_with(vec![no_upload(), head("theirs", "8", "other.1")], 9).await;
    assert!(matches!(outcome.unwrap(), Outcome::UploadGone(_)));
    let steps = vec![Step::error(412, "PreconditionFailed", ""), head("e", "9", "j.1")];
    assert!(matches!(complete_with(steps, 9).await.1.unwrap(), Outcome::Refused(_)), "another size is not ours");
    let (_, outcome) = complete_with(vec![Step::error(403, "AccessDenied", "no")], 9).await;
    assert_eq!(outcome.unwrap_err().kind, BosErrorKind::Denied);
}

#[tokio::test]
async fn a_complete_sent_once_leaves_what_is_open_to_its_caller() {
    let server = Scripted::start([Step::Lose, Step::error(429, "RequestRateLimitExceeded", "")]).await;
    let client = server.client_with(|config| config.data_retry.tries_max = 1);
    let (key, id) = (key(), id());
    let headers = ObjectHeaders::default();
    let upload = Upload { client: &client, key: &key, id: &id };
    let completion = completion(upload, &headers, &Condition::Any);
    assert!(matches!(complete_once(&completion).await.unwrap(), Outcome::Unanswered(_)));
    assert_eq!(complete_once(&completion).await.unwrap_err().kind, BosErrorKind::Throttled);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_whole_object_is_put_checked_and_marked() {
    let stored = |etag: &str| Step::answer(200, &[("ETag", etag)], "");
    let steps = [
        stored(MD5),
        stored("other"),
        // The client itself sends a damaged body twice.
        Step::error(400, "BadDigest", "damaged"),
        Step::error(400, "BadDigest", "damaged"),
        Step::error(412, "PreconditionFailed", ""),
        Step::Lose,
    ];
    let server = Scripted::start(steps).await;
    let (client, key, sum) = (server.client(), key(), Checksum::of(BYTES));
    let (headers, absent) = (ObjectHeaders::default(), Condition::Absent);
    let send = || put(&client, &key, body(), &sum, &headers, "j.1", &absent);
    assert!(matches!(send().await.unwrap(), Outcome::Made(made) if made.etag == ETag::new(MD5)));
    assert!(matches!(send().await.unwrap(), Outcome::Differs { etag: Some(_), .. }));
    assert!(matches!(send().await.unwrap(), Outcome::Differs { etag: None, .. }));
    assert!(matches!(send().await.unwrap(), Outcome::Refused(_)));
    assert!(matches!(send().await.unwrap(), Outcome::Unanswered(_)));
    assert_eq!(server.seen()[0].header("x-bce-meta-bosfs-upload"), Some("j.1"));
}

#[tokio::test]
async fn an_upload_that_bos_does_not_know_may_have_become_the_object() {
    let listed = || Step::answer(200, &[], &format!(r#"{{"parts":[{{"partNumber":1,"size":8,"eTag":"{MD5}"}}]}}"#));
    let settled = |steps: Vec<Step>, sent: bool| async move {
        let server = Scripted::start(steps).await;
        let (client, key, id) = (server.client(), key(), id());
        let upload = Upload { client: &client, key: &key, id: &id };
        let attempt = Attempt { mark: Some("j.1"), size: 8, condition: &Condition::Absent };
        let asked = Asked { key: &key, attempt, before: &Before::default(), looks: Looks::quick(6) };
        let settled = settle(&upload, sent.then_some(&asked), &mut Tries(1)).await.unwrap();
        assert_eq!(server.steps_left(), 0);
        settled
    };
    assert!(matches!(settled(vec![listed()], true).await, Settled::Open(parts) if parts.len() == 1));
    assert_eq!(settled(vec![no_upload()], false).await, Settled::Gone(None));
    // It acted before ListParts.
    let ours = Settled::Gone(Some(Found::Ours { etag: ETag::new("e") }));
    assert_eq!(settled(vec![no_upload(), head("e", "8", "j.1")], true).await, ours);
    // HEAD lags behind, and shows it at the third look.
    let steps = vec![no_upload(), no_object(), no_object(), head("e", "8", "j.1")];
    assert_eq!(settled(steps, true).await, ours);
    let mut steps = vec![no_upload()];
    steps.extend((0..7).map(|_| no_object()));
    assert_eq!(settled(steps, true).await, Settled::Gone(Some(Found::AsExpected)), "believed in the end");
}

/// Counts how often it is told that an answer may be stale.
struct Told(u32);

impl Patience for Told {
    type Error = BosError;
    async fn pause(&mut self, _: &BosError) -> Result<bool, BosError> {
        Ok(false)
    }
    fn refused(&self, error: BosError) -> BosError {
        error
    }
    fn looks_again(&mut self, _: Option<&ObjectMeta>, _: Duration) {
        self.0 += 1;
    }
}

#[tokio::test]
async fn what_may_be_stale_is_looked_at_again_and_told() {
    let condition = Condition::Matches(ETag::new("base"));
    let looked = |steps: Vec<Step>, doubt| {
        let condition = &condition;
        async move {
            let server = Scripted::start(steps).await;
            let (client, key) = (server.client(), key());
            let attempt = Attempt { mark: Some("j.1"), size: 8, condition };
            let asked = Asked { key: &key, attempt, before: &Before::of(condition), looks: Looks::quick(6) };
            let mut told = Told(0);
            let found = look_until(&client, &asked, doubt, &mut told).await;
            assert_eq!(server.steps_left(), 0);
            (found, told.0)
        }
    };
    let other = || head("old", "3", "x.1");
    let (found, told) = looked(vec![other(), head("base", "3", "x.1")], Doubt::Stale).await;
    assert_eq!((found.unwrap(), told), (Found::AsExpected, 1));
    let (found, told) = looked(vec![other()], Doubt::None).await;
    assert!(matches!(found.unwrap(), Found::Other { .. }) && told == 0, "BOS itself said so");
    let (found, told) = looked((0..7).map(|_| other()).collect(), Doubt::Stale).await;
    assert!(matches!(found.unwrap(), Found::Other { .. }) && told == 6);
    let (found, _) = looked(vec![other(), Step::error(403, "AccessDenied", "no")], Doubt::Stale).await;
    assert_eq!(found.unwrap_err().kind, BosErrorKind::Denied);
}

#[tokio::test]
async fn an_upload_is_ended_until_bos_knows_it_no_more() {
    let gone = || Step::answer(204, &[], "");
    let server = Scripted::start([gone(), Step::error(503, "SlowDown", ""), gone(), no_upload()]).await;
    let (client, key, id) = (server.client(), key(), id());
    let upload = Upload { client: &client, key: &key, id: &id };
    assert!(upload.end(&mut Tries(9)).await.unwrap());
    assert_eq!(server.steps_left(), 0);
    let server = Scripted::start((0..20).map(|_| gone())).await;
    let client = server.client();
    assert!(!Upload { client: &client, ..upload }.end(&mut Tries(9)).await.unwrap());
    assert_eq!(server.seen().len(), 10, "bounded");
}

#[tokio::test]
async fn the_proof_looks_at_the_object_that_was_made() {
    let with_crc =
        |crc: &str| Step::answer(200, &[("ETag", MD5), ("Content-Length", "8"), ("x-bce-content-crc32c", crc)], "");
    let steps = [with_crc("2887918368"), with_crc("1"), head(MD5, "7", "j.1"), head("theirs", "8", "x.1")];
    let steps = steps.into_iter().chain((0..6).map(|_| no_object()));
    let server = Scripted::start(steps).await;
    let (client, key, etag) = (server.client(), key(), ETag::new(MD5));
    let before = Before { since: Some(-1), ..Before::default() };
    let made = MadeAs { etag: &etag, mark: "j.1", before: &before };
    let expected = expected();
    let look = async || prove(&client, &key, &made, &expected, Looks::quick(5), &mut Tries(1)).await;
    assert!(matches!(look().await.unwrap(), Proving::Judged(Verdict::Proved(By::Crc32c), _)));
    assert!(matches!(look().await.unwrap(), Proving::Judged(Verdict::ChecksumOdd { etag: ByRule::Fits, .. }, _)));
    assert!(matches!(look().await.unwrap(), Proving::Judged(Verdict::Mismatch(_), _)));
    assert!(matches!(look().await.unwrap(), Proving::Other(_)));
    assert!(matches!(look().await.unwrap(), Proving::NotYet { .. }));
    assert_eq!(server.steps_left(), 0);
}

#[tokio::test]
async fn a_head_that_lags_behind_is_asked_again_before_it_is_believed() {
    let old = || head("old", "3", "x.1");
    let server = Scripted::start([old(), no_object(), head(MD5, "8", "j.1")]).await;
    let (client, key, etag) = (server.client(), key(), ETag::new(MD5));
    let before = Before::of(&Condition::Any);
    let made = MadeAs { etag: &etag, mark: "j.1", before: &before };
    let proving = prove(&client, &key, &made, &expected(), Looks::quick(5), &mut Tries(1)).await.unwrap();
    assert!(matches!(proving, Proving::Judged(Verdict::Composed { etag: ByRule::Fits }, _)), "{proving:?}");
    assert_eq!(server.seen().len(), 3);
}
