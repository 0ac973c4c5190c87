//! Resuming against the embedded server, and a lost answer of Complete against a scripted one.

use bytes::Bytes;

use super::*;
use crate::bos::scripted::{Scripted, Step};
use crate::object::Md5;
use crate::serve::Variants;
use crate::upload::verify::tests::{Bench, key, noise};

const MIB: usize = 1 << 20;

async fn begin(bench: &Bench, bytes: &[u8], part_bytes: usize, numbers: &[u32]) -> UploadId {
    let upload = bench.client.initiate(&key(), &ObjectHeaders::default()).await.unwrap();
    for (i, piece) in bytes.chunks(part_bytes).enumerate() {
        let number = i as u32 + 1;
        if numbers.contains(&number) {
            let part = PartNumber::new(number).unwrap();
            let body = Body::Bytes(Bytes::copy_from_slice(piece));
            bench.client.upload_part(&key(), &upload, part, body, &Md5::of(piece)).await.unwrap();
        }
    }
    upload
}

fn options() -> ResumeOptions {
    ResumeOptions { patience: Some(Duration::ZERO), condition: Condition::Absent, ..ResumeOptions::default() }
}

async fn download(client: &BosClient, size: usize) -> Bytes {
    client.get_range(&key(), ByteRange::new(0, size as u64), None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_parts_that_bos_lacks_are_sent() {
    let bench = Bench::new(Variants::default());
    let bytes = noise(28 * MIB + 99);
    let path = bench.file(&bytes);
    let upload = begin(&bench, &bytes, 5 * MIB, &[1, 2, 4]).await;
    bench.server.reset_counts();
    let seen = Arc::new(parking_lot::Mutex::new(None));
    let last = seen.clone();
    let mut options = options();
    options.progress = Some(Arc::new(move |progress| *last.lock() = Some(progress)));
    options.headers.metadata.insert("bosfs-mode".to_owned(), "33188".to_owned());
    let report = resume_from_file(&bench.client, &key(), None, &path, &options).await.unwrap();
    assert_eq!((report.parts_kept, report.parts_sent), (3, 3));
    assert_eq!(report.bytes_kept + report.bytes_sent, bytes.len() as u64);
    assert_eq!((report.upload_id, report.proof), (upload, Proof::Proved));
    assert_eq!(bench.server.counts()["UploadPart"].requests, 3);
    let progress = seen.lock().unwrap();
    assert_eq!((progress.bytes_kept, progress.bytes_sent), (report.bytes_kept, report.bytes_sent));
    assert_eq!(download(&bench.client, bytes.len()).await, bytes);
    let meta = bench.client.head_object(&key()).await.unwrap();
    assert_eq!(meta.headers.metadata["bosfs-mode"], "33188");
    assert!(find_uploads(&bench.client, &key()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_other_bytes_is_sent_again() {
    let bench = Bench::new(Variants { no_crc_headers: true, ..Variants::default() });
    let mut bytes = noise(12 * MIB);
    begin(&bench, &bytes, 5 * MIB, &[1, 2, 3]).await;
    bytes[7 * MIB] ^= 1;
    let path = bench.file(&bytes);
    let report = resume_from_file(&bench.client, &key(), None, &path, &options()).await.unwrap();
    assert_eq!((report.parts_kept, report.parts_sent, report.proof), (2, 1, Proof::Composed));
    assert_eq!(download(&bench.client, bytes.len()).await, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_bucket_costs_every_part_but_works() {
    let bench = Bench::new(Variants { opaque_part_etags: true, ..Variants::default() });
    let bytes = noise(6 * MIB);
    begin(&bench, &bytes, 5 * MIB, &[1]).await;
    let report = resume_from_file(&bench.client, &key(), None, &bench.file(&bytes), &options()).await.unwrap();
    assert_eq!((report.parts_kept, report.parts_sent, report.proof), (0, 2, Proof::Proved));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn which_upload_must_be_clear() {
    let bench = Bench::new(Variants::default());
    let bytes = noise(6 * MIB);
    let path = bench.file(&bytes);
    let resume = |id| {
        let (client, path) = (bench.client.clone(), path.clone());
        async move { resume_from_file(&client, &key(), id, &path, &options()).await }
    };
    assert!(matches!(resume(None).await, Err(ResumeError::NoUpload(_))));
    let one = begin(&bench, &bytes, 5 * MIB, &[1]).await;
    let two = begin(&bench, &bytes, 5 * MIB, &[]).await;
    let text = resume(None).await.unwrap_err().to_string();
    for id in [&one, &two] {
        assert!(text.contains(id.as_str()) && text.contains("--upload-id"), "{text}");
    }
    assert_eq!(resume(Some(one.clone())).await.unwrap().parts_kept, 1);
    assert!(matches!(resume(Some(one)).await, Err(ResumeError::UploadGone { .. })));
    // The other one may not replace what is there now.
    let error = resume(Some(two)).await.unwrap_err();
    assert!(matches!(&error, ResumeError::Bos(error) if error.kind == BosErrorKind::PreconditionFailed), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_or_empty_file_sends_nothing() {
    let bench = Bench::new(Variants::default());
    begin(&bench, &noise(12 * MIB), 5 * MIB, &[1, 2]).await;
    for bytes in [noise(3 * MIB), Vec::new()] {
        bench.server.reset_counts();
        let error = resume_from_file(&bench.client, &key(), None, &bench.file(&bytes), &options()).await.unwrap_err();
        assert!(matches!(error, ResumeError::Boundaries { .. }), "{error}");
        assert!(!bench.server.counts().contains_key("UploadPart"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_meanwhile_is_not_completed() {
    let bench = Bench::new(Variants::default());
    let bytes = noise(12 * MIB);
    let path = bench.file(&bytes);
    begin(&bench, &bytes, 5 * MIB, &[1]).await;
    let mut options = options();
    let touched = path.clone();
    options.progress = Some(Arc::new(move |_| {
        let file = std::fs::OpenOptions::new().write(true).open(&touched).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"changed", 3).unwrap();
    }));
    let error = resume_from_file(&bench.client, &key(), None, &path, &options).await.unwrap_err();
    assert!(matches!(error, ResumeError::Local(LocalFileError::Changed(_))), "{error}");
    assert_eq!(bench.client.head_object(&key()).await.unwrap_err().kind, BosErrorKind::NoSuchKey);
}

#[tokio::test]
async fn an_unanswered_complete_is_settled_by_the_mark_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, b"01234567").unwrap();
    let parts = r#"{"parts":[{"partNumber":1,"size":8,"eTag":"2e9ec317e197819358fbc43afca7d837"}]}"#;
    let script = || [Step::answer(200, &[], parts), Step::Lose];
    let head = |mark: &str| {
        Step::answer(200, &[("ETag", "\"e\""), ("Content-Length", "8"), ("x-bce-meta-bosfs-upload", mark)], "")
    };

    // Somebody else's object: not ours, and the patience is at its end.
    let server = Scripted::start(script().into_iter().chain([head("other.1")])).await;
    let resume = resume_from_file(&server.client(), &key(), Some(UploadId::new("u")), &path, &options()).await;
    assert!(matches!(resume, Err(ResumeError::Bos(error)) if error.is_ambiguous()));

    // The scripted server cannot know the mark beforehand, so the resume is given one.
    let server = Scripted::start(script().into_iter().chain([head("mine.1"), head("mine.1")])).await;
    let client = server.client();
    let options = options();
    let mut resume = Resume {
        client: &client,
        key: &key(),
        upload_id: UploadId::new("u"),
        file: LocalFile::open(&path).unwrap(),
        options: &options,
        mark: "mine.1".to_owned(),
        sums: BTreeMap::new(),
        sent: BTreeMap::new(),
    };
    let report = resume.run().await.unwrap();
    assert_eq!((report.parts_kept, report.etag.as_str()), (1, "e"));
    assert_eq!(server.seen()[1].header("x-bce-meta-bosfs-upload"), Some("mine.1"));
}

#[tokio::test]
async fn a_checksum_of_another_meaning_is_no_mismatch_where_the_etag_is_that_of_the_parts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, b"01234567").unwrap();
    let etag = "2e9ec317e197819358fbc43afca7d837";
    let resume = |etag_of_the_whole: &'static str| {
        let head = [("ETag", etag_of_the_whole), ("Content-Length", "8"), ("x-bce-content-crc32c", "7")];
        let steps = [
            Step::answer(200, &[], &format!(r#"{{"parts":[{{"partNumber":1,"size":8,"eTag":"{etag}"}}]}}"#)),
            Step::answer(200, &[], &format!(r#"{{"eTag":"{etag_of_the_whole}"}}"#)),
            Step::answer(200, &head, ""),
        ];
        let path = path.clone();
        async move {
            let server = Scripted::start(steps).await;
            resume_from_file(&server.client(), &key(), Some(UploadId::new("u")), &path, &options()).await
        }
    };
    assert_eq!(resume(etag).await.unwrap().proof, Proof::Composed);
    let error = resume("opaque").await.unwrap_err();
    assert!(matches!(&error, ResumeError::Mismatch { message, .. } if message.contains("CRC32C")), "{error}");
}

#[tokio::test]
async fn a_head_that_lags_behind_complete_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, b"01234567").unwrap();
    let etag = "2e9ec317e197819358fbc43afca7d837";
    let head = |etag: &str| Step::answer(200, &[("ETag", etag), ("Content-Length", "8")], "");
    let steps = [
        Step::answer(200, &[], &format!(r#"{{"parts":[{{"partNumber":1,"size":8,"eTag":"{etag}"}}]}}"#)),
        Step::answer(200, &[], &format!(r#"{{"eTag":"{etag}"}}"#)),
        Step::answer(404, &[("Content-Length", "0")], ""),
        head("what was there before"),
        head(etag),
    ];
    let server = Scripted::start(steps).await;
    let resumed = resume_from_file(&server.client(), &key(), Some(UploadId::new("u")), &path, &options()).await;
    assert_eq!(resumed.unwrap().etag.as_str(), etag);
}

#[test]
fn ages_are_said_in_a_fitting_unit() {
    let said = [age(-5), age(119), age(120), age(7200), age(200_000)];
    assert_eq!(said, ["0 s", "119 s", "2 min", "2 h", "2 days"]);
}
