//! A copy by parts against a server that answers from a script: what is asked, and what each answer leads to.

use std::sync::Arc;

use super::super::copy::Made;
use super::*;
use crate::bos::scripted::{Scripted, Step};
use crate::journal::StateDir;
use crate::journal::state_dir::Identity;
use crate::moves::record::FORMAT;
use crate::moves::{CopySizes, Moves};
use crate::object::{BaseObject, Condition, composed_etag};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 2 * MIB;
const SIZES: CopySizes = CopySizes { copy_bytes_max: 0, part_bytes: MIB };

struct Bench {
    _dir: tempfile::TempDir,
    server: Scripted,
    moves: Arc<Moves>,
    entry: Arc<Move>,
    from: ObjectKey,
    to: ObjectKey,
    source: BaseObject,
    condition: Condition,
}

impl Bench {
    async fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Scripted::start([]).await;
        let identity = Identity { endpoint: server.endpoint().into(), bucket: "bkt".into(), prefix: String::new() };
        let state = Arc::new(StateDir::open(&dir.path().join("state"), &identity).unwrap());
        // One at a time, so that the script is in order.
        let moves = Moves::start_with(server.client(), state, 1, SIZES, None).unwrap();
        let (from, to) = (ObjectKey::parse("from").unwrap(), ObjectKey::parse("to").unwrap());
        let (source, condition) = (BaseObject::own(ETag::new("source"), size), Condition::Any);
        let first = MoveRecord::Object {
            format: FORMAT,
            from: from.clone(),
            source: source.clone(),
            to: to.clone(),
            condition: condition.clone(),
            replace: None,
            at: 0,
        };
        let entry = Move::begin(&moves.shared, &first).unwrap();
        Self { _dir: dir, server, moves, entry, from, to, source, condition }
    }

    async fn copy(&self) -> Result<Made, CopyTrouble> {
        let Self { from, source, to, condition, .. } = self;
        self.entry.copy(CopyJob { from, source, to, condition, replace: None, sent: false }).await
    }

    /// HEAD of the source, Initiate, and the parts.
    fn begin(&self) {
        self.server.then([self.source_there(), initiated("u")]);
        self.server.then(parts());
    }

    fn source_there(&self) -> Step {
        head("source", SIZE, 5, "")
    }

    /// The requests so far: method, key and what tells calls apart.
    fn asked(&self) -> Vec<String> {
        let short = |line: &str| line.replace("/bkt/", "").replace("uploadId=u", "id").replace("partNumber=", "part=");
        self.server.seen().iter().map(|seen| short(seen.line())).collect()
    }
}

fn head(etag: &str, size: u64, crc32c: u32, mark: &str) -> Step {
    let (size, crc) = (size.to_string(), crc32c.to_string());
    let headers =
        [("ETag", etag), ("Content-Length", &size), ("x-bce-content-crc32c", &crc), ("x-bce-meta-bosfs-upload", mark)];
    Step::answer(200, &headers, "")
}

fn absent() -> Step {
    Step::answer(404, &[("Content-Length", "0")], "")
}

fn initiated(id: &str) -> Step {
    Step::answer(200, &[], &format!(r#"{{"uploadId":"{id}"}}"#))
}

fn parts() -> [Step; 2] {
    ["p1", "p2"].map(|etag| Step::answer(200, &[], &format!(r#"{{"eTag":"{etag}"}}"#)))
}

fn completed(etag: &str) -> Step {
    Step::answer(200, &[], &format!(r#"{{"eTag":"{etag}"}}"#))
}

fn by_rule() -> ETag {
    composed_etag(["p1", "p2"].map(ETag::new).iter())
}

fn message(result: Result<Made, CopyTrouble>) -> String {
    match result {
        Err(CopyTrouble::Failed(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_copy_by_parts_is_compared_with_its_source_once() {
    let bench = Bench::new(SIZE).await;
    bench.begin();
    bench.server.then([completed("-x"), head("-x", SIZE, 5, "")]);
    assert_eq!(bench.copy().await.unwrap(), ETag::new("-x").into());
    let expected = ["HEAD from", "POST to?uploads", "PUT to?part=1&id", "PUT to?part=2&id", "POST to?id", "HEAD to"];
    assert_eq!(bench.asked(), expected);
    let seen = bench.server.seen();
    assert_eq!(seen[3].header("x-bce-copy-source-range"), Some("bytes=1048576-2097151"));
    assert_eq!(seen[3].header("x-bce-copy-source-if-match"), Some("\"source\""));
    assert_eq!(seen[4].header("x-bce-meta-bosfs-upload"), Some(bench.entry.mark().as_str()));
}

#[tokio::test]
async fn an_unanswered_complete_of_a_copy_is_settled_by_its_mark() {
    let bench = Bench::new(SIZE).await;
    bench.begin();
    let mark = bench.entry.mark();
    bench.server.then([Step::Lose, head("-x", SIZE, 5, &mark), head("-x", SIZE, 5, &mark)]);
    assert_eq!(bench.copy().await.unwrap(), ETag::new("-x").into());
    assert_eq!(bench.asked().iter().filter(|asked| *asked == "POST to?id").count(), 1, "{:?}", bench.asked());
    assert_eq!(bench.server.steps_left(), 0);
}

#[tokio::test]
async fn a_copy_whose_upload_was_ended_from_outside_is_begun_anew() {
    let bench = Bench::new(SIZE).await;
    bench.begin();
    let gone = || Step::error(404, "NoSuchUpload", "gone");
    // Neither Complete nor Abort know the upload, and there is no object: all parts again.
    bench.server.then([gone(), absent(), gone(), absent(), initiated("u2")]);
    bench.server.then(parts());
    bench.server.then([completed("-x"), head("-x", SIZE, 5, "")]);
    assert_eq!(bench.copy().await.unwrap(), ETag::new("-x").into());
    assert_eq!(bench.server.steps_left(), 0);
}

#[tokio::test]
async fn a_checksum_of_another_meaning_fails_no_rename_where_the_etag_is_that_of_the_parts() {
    let (bench, etag) = (Bench::new(SIZE).await, by_rule());
    bench.begin();
    bench.server.then([completed(etag.as_str()), head(etag.as_str(), SIZE, 7, "")]);
    assert_eq!(bench.copy().await.unwrap(), etag.into());

    let bench = Bench::new(SIZE).await;
    bench.begin();
    bench.server.then([completed("-x"), head("-x", SIZE, 7, "")]);
    bench.server.then([Step::error(404, "NoSuchUpload", "gone")]);
    let told = message(bench.copy().await);
    assert!(told.contains("CRC32C") && told.contains("the original is kept"), "{told}");
}

#[tokio::test]
async fn a_copy_of_another_size_is_none_whatever_its_etag() {
    let (bench, etag) = (Bench::new(SIZE).await, by_rule());
    bench.begin();
    bench.server.then([completed(etag.as_str()), head(etag.as_str(), SIZE - 1, 5, "")]);
    bench.server.then([Step::error(404, "NoSuchUpload", "gone")]);
    let told = message(bench.copy().await);
    assert!(told.contains("2097151 bytes where 2097152"), "{told}");
}

#[tokio::test]
async fn an_object_larger_than_any_upload_is_refused_before_anything_is_sent() {
    let size = 60_000_000_000_000;
    let bench = Bench::new(size).await;
    bench.server.then([head("source", size, 5, "")]);
    let Err(CopyTrouble::Failed(WriteError::Failed { errno, message })) = bench.copy().await else { panic!() };
    assert_eq!(errno, libc::EFBIG);
    assert!(message.contains("nothing was sent"), "{message}");
    assert_eq!(bench.asked(), ["HEAD from"]);
}

#[tokio::test]
async fn a_stop_breaks_off_a_copy_that_hangs() {
    let bench = Bench::new(SIZE).await;
    bench.server.then([bench.source_there(), initiated("u"), Step::Freeze]);
    let stop = async {
        while bench.server.seen().len() < 3 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        bench.moves.shared.stop.cancel();
    };
    let (copied, ()) = tokio::join!(bench.copy(), stop);
    assert!(matches!(copied, Err(CopyTrouble::Stopped)), "{copied:?}");
    let upload = bench.entry.state.lock().uploads.get(&bench.to).cloned();
    assert_eq!(upload.unwrap().id.as_str(), "u", "the next mount goes on with it");
}

#[test]
fn an_object_that_is_sent_again_has_parts_that_fit_into_memory_or_is_refused() {
    for size in [WHOLE_BYTES_MAX + 1, 100 << 20, 80_000 << 20, 600 << 30] {
        let plan = plan_of(size, sent_again(size)).unwrap();
        assert!(plan.pieces().iter().all(|piece| piece.way == Way::Send && piece.range.len() <= SENT_BYTES_MAX));
    }
    assert!(plan_of(700 << 30, sent_again(700 << 30)).is_err());
}
