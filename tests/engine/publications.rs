//! Requests that publications are made of, and what they leave in BOS and on the local disk.

use std::sync::Arc;

use bosfs::bos::client::ObjectHeaders;
use bosfs::journal::record::Proof;
use bosfs::object::{Condition, FileAttrs, ObjectKey};
use bosfs::serve::Variants;
use bosfs::upload::{Opening, Temporary, UploadOptions, WriteError, WriterEnd};

use crate::{ATTRS, Bench, MIB, PART, bytes, gone, new_file, options, over, until, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_one_part_is_one_put_and_leaves_no_journal() {
    let bench = Bench::new();
    let uploads = bench.start(options());
    for (key, len) in [("empty", 0), ("small", 4096), ("one part", PART)] {
        bench.server.reset_counts();
        let file = uploads.open(new_file(key)).unwrap();
        file.add_writer().unwrap();
        let content = bytes(len, 1);
        write(&file, 0, &content).await;
        file.publish().await.unwrap();
        file.remove_writer(WriterEnd::Closed);
        until("journal gone", || gone(&bench.state)).await;
        let counts = bench.server.counts();
        assert_eq!(counts.keys().collect::<Vec<_>>(), ["PutObject"], "{key}");
        assert_eq!((counts["PutObject"].requests, counts["PutObject"].body_bytes), (1, len));
        assert_eq!(bench.get(key).await.unwrap(), content);
        let meta = bench.client.head_object(&file.key()).await.unwrap();
        assert_eq!(meta.headers.metadata["bosfs-mode"], "33184");
        assert_eq!(meta.headers.content_type.as_deref(), Some("text/plain"));
        assert_eq!(file.settled().unwrap().etag, meta.etag);
        let listed = || uploads.status().iter().any(|status| status.key == key && status.state == "done");
        until("listed as done", listed).await;
    }
    uploads.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_below_a_prefix_are_those_and_no_neighbours() {
    let bench = Bench::new();
    let uploads = bench.start(options());
    for key in ["a", "a!", "a/x", "a/y/z", "a0", "b/x", "a/中"] {
        uploads.open(new_file(key)).unwrap();
    }
    let below = |prefix: &str| -> Vec<String> {
        uploads.files_below(prefix).iter().map(|file| file.key().as_str().to_owned()).collect()
    };
    assert_eq!(below("a/"), ["a/x", "a/y/z", "a/中"]);
    assert_eq!(below("a/y/"), ["a/y/z"]);
    assert_eq!(below("c/"), [] as [&str; 0]);
    assert_eq!(below("").len(), 7);
    uploads.stop().await;
}

/// Parts are sent while the program still writes; the key shows nothing before the close, and then an object that is
/// proved.
#[tokio::test(flavor = "multi_thread")]
async fn parts_go_while_the_writer_writes_and_the_whole_is_proved() {
    let bench = Bench::new();
    let uploads = bench.start(options());
    let file = uploads.open(new_file("big")).unwrap();
    file.add_writer().unwrap();
    let content = bytes(5 * PART + 1000, 2);
    write(&file, 0, &content[..4 * PART as usize + 1]).await;
    until("four parts sent before the close", || bench.requests("UploadPart") == 4).await;
    assert!(bench.get("big").await.is_none(), "nothing is published before the close");
    write(&file, 4 * PART + 1, &content[4 * PART as usize + 1..]).await;
    file.publish().await.unwrap();
    let status = file.status(true);
    assert_eq!(status.proof, Some(Proof::Proved));
    file.remove_writer(WriterEnd::Closed);
    until("journal gone", || gone(&bench.state)).await;
    assert_eq!(bench.get("big").await.unwrap(), content);
    let counts = bench.server.counts();
    assert_eq!(counts["InitiateMultipartUpload"].requests, 1);
    assert_eq!((counts["UploadPart"].requests, counts["UploadPart"].body_bytes), (6, content.len() as u64));
    assert_eq!(counts["CompleteMultipartUpload"].requests, 1);
    assert!(!counts.contains_key("ListParts") && !counts.contains_key("PutObject"));
    uploads.stop().await;
}

/// Whoever remembers what objects carry is told of a publication, and of a copy with new attributes, while the file still
/// counts as changed here and before the journal calls it done: no look at it and no kill falls in between.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_object_carries_is_told_before_its_file_counts_as_settled() {
    let bench = Bench::new();
    let uploads = bench.start(options());
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (teller, state, file_of) = (told.clone(), bench.state.join("uploads"), Arc::downgrade(&uploads));
    uploads.on_published(Box::new(move |key, published| {
        let file = file_of.upgrade().and_then(|uploads| uploads.find(key));
        let is_settled = file.is_none_or(|file| file.settled().is_some());
        let journal = std::fs::read_dir(&state).unwrap().flatten().find_map(|dir| {
            let text = std::fs::read_to_string(dir.path().join("journal")).ok()?;
            text.contains(&format!("\"key\":\"{key}\"")).then_some(text)
        });
        let journal = journal.expect("its journal is still there");
        let lines = |kind: &str| journal.matches(&format!("\"t\":\"{kind}\"")).count();
        let done = (lines("proved"), lines("attrs_copied"));
        teller.lock().unwrap().push((published.attrs.mode, is_settled, done));
    }));
    let file = uploads.open(new_file("f")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, b"written").await;
    file.publish().await.unwrap();
    file.set_attrs(FileAttrs { mode: 0o100_444, ..ATTRS }).unwrap();
    file.remove_writer(WriterEnd::Closed);
    assert!(uploads.drain().await.is_empty());
    assert_eq!(bench.requests("CopyObject"), 1);
    assert_eq!(*told.lock().unwrap(), [(0o100_640, false, (0, 0)), (0o100_444, false, (1, 0))]);
    uploads.stop().await;
}

/// A small temporary that was closed is published as it was closed when another program opens it, also if that one is
/// killed before it wrote anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_file_that_is_opened_again_is_published_as_it_was_closed() {
    let bench = Bench::new();
    let uploads = bench.start(options());
    let file = uploads.open(Opening { temporary: Some(Temporary::Small), ..new_file("notes.part") }).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, b"closed").await;
    file.publish().await.unwrap();
    file.remove_writer(WriterEnd::Closed);
    assert_eq!(file.status(false).state, "parked");
    file.add_writer().unwrap();
    file.remove_writer(WriterEnd::Killed { process: "cp".into(), pid: 1, signal: 9 });
    assert!(uploads.drain().await.is_empty());
    assert_eq!(bench.get("notes.part").await.unwrap(), b"closed");
    uploads.stop().await;
}

/// An append to a large object, or a change in it, sends only the parts concerned: the others are copied within BOS.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_copies_the_old_parts_within_bos() {
    let bench = Bench::new();
    let uploads = bench.start(options());
    let mut content = bytes(8 * PART + 100, 5);
    let file = uploads.open(new_file("log")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, &content).await;
    file.publish().await.unwrap();
    file.remove_writer(WriterEnd::Closed);
    until("journal gone", || gone(&bench.state)).await;
    let base = bench.base("log").await;
    bench.server.reset_counts();

    let file = uploads.open(over("log", base)).unwrap();
    file.add_writer().unwrap();
    let more = bytes(MIB, 6);
    write(&file, content.len() as u64, &more).await;
    content.extend_from_slice(&more);
    let read = file.read(8 * PART + 50, 100).unwrap();
    assert_eq!(read.gaps, [bosfs::object::ByteRange::new(8 * PART + 50, 8 * PART + 100)]);
    assert_eq!(read.bytes[50..], more[..50]);
    file.publish().await.unwrap();
    file.remove_writer(WriterEnd::Closed);
    let counts = bench.server.counts();
    assert_eq!(counts["UploadPartCopy"].requests, 1, "neighbouring untouched parts are one copy");
    assert_eq!((counts["UploadPart"].requests, counts["UploadPart"].body_bytes), (1, MIB + 100));
    assert_eq!(bench.get("log").await.unwrap(), content);

    until("journal gone", || gone(&bench.state)).await;
    let base = bench.base("log").await;
    bench.server.reset_counts();
    let file = uploads.open(over("log", base)).unwrap();
    file.add_writer().unwrap();
    let patch = bytes(4096, 7);
    write(&file, 3 * PART + 1001, &patch).await;
    content[3 * PART as usize + 1001..][..4096].copy_from_slice(&patch);
    file.publish().await.unwrap();
    file.remove_writer(WriterEnd::Closed);
    let counts = bench.server.counts();
    assert_eq!(counts["UploadPart"].body_bytes, PART, "one part");
    assert_eq!(counts["UploadPartCopy"].requests, 2);
    assert_eq!(bench.get("log").await.unwrap(), content);
    uploads.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_object_is_never_overwritten() {
    let bench = Bench::new();
    let uploads = bench.start(options());
    let file = uploads.open(new_file("k")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, b"ours").await;
    let other = bosfs::object::Md5::of(b"theirs");
    let body = bosfs::bos::client::Body::Bytes(bytes::Bytes::from_static(b"theirs"));
    let key = ObjectKey::parse("k").unwrap();
    bench.client.put_object(&key, body, &other, &ObjectHeaders::default(), &Condition::Any).await.unwrap();
    let error = file.publish().await.unwrap_err();
    assert!(matches!(&error, WriteError::Failed { errno: libc::ESTALE, .. }), "{error}");
    assert!(error.to_string().contains("--force"), "{error}");
    file.remove_writer(WriterEnd::Closed);
    assert_eq!(bench.get("k").await.unwrap(), b"theirs");
    assert_eq!(bench.journals(), 1);
    uploads.stop().await;
    drop((file, uploads));

    let uploads = bench.start(options());
    let left = uploads.drain().await;
    assert_eq!(left[0].state, "conflict");
    let file = uploads.find(&key).unwrap();
    assert!(file.complete_now(false).await.is_err());
    file.complete_now(true).await.unwrap();
    assert_eq!(bench.get("k").await.unwrap(), b"ours");
    uploads.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_file_leaves_neither_upload_nor_object() {
    let bench = Bench::new();
    let uploads = bench.start(options());
    let file = uploads.open(new_file("k")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, &bytes(3 * PART, 8)).await;
    until("upload began", || bench.requests("UploadPart") >= 1).await;
    file.unlink().await.unwrap();
    file.remove_writer(WriterEnd::Closed);
    assert!(bench.client.list_uploads("", None).await.unwrap().uploads.is_empty());
    assert!(bench.get("k").await.is_none());
    assert!(uploads.find(&file.key()).is_none());
    assert_eq!(bench.journals(), 0);
    uploads.stop().await;
}

/// An object that BOS gives a checksum for is `proved`, one without is `composed`; where BOS gives neither checksums
/// nor MD5s of parts, the publication fails after a few tries, the bytes are kept and nothing is published.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_give_no_checksums_or_opaque_etags_are_served_too() {
    type Case = (&'static str, fn(&mut Variants), Option<Proof>);
    let variants: [Case; 5] = [
        ("no CRC of the composed object in answers", |v| v.no_crc_on_composed_objects = true, Some(Proof::Composed)),
        ("no CRC at all", |v| v.no_crc_headers = true, Some(Proof::Composed)),
        ("composed ETag follows no rule", |v| v.opaque_composed_etags = true, Some(Proof::Proved)),
        ("encrypted: part ETags are no MD5", |v| v.opaque_part_etags = true, Some(Proof::Proved)),
        (
            "encrypted, and no CRC",
            |v| {
                v.opaque_part_etags = true;
                v.no_crc_headers = true;
            },
            None,
        ),
    ];
    for (name, set, proof) in variants {
        let bench = Bench::with(|options| set(&mut options.faithful_variants));
        let uploads = bench.start(options());
        let file = uploads.open(new_file("k")).unwrap();
        file.add_writer().unwrap();
        let content = bytes(2 * PART + 5, 11);
        write(&file, 0, &content).await;
        let result = file.publish().await;
        match proof {
            Some(_) => {
                result.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(file.status(false).proof, proof, "{name}");
                assert_eq!(bench.get("k").await.unwrap(), content, "{name}");
            }
            None => {
                let error = result.unwrap_err().to_string();
                assert!(error.contains("encrypts") && error.contains("kept"), "{name}: {error}");
                assert!(bench.get("k").await.is_none(), "{name}");
                assert!(bench.requests("UploadPart") <= 20, "{name}: a check that can never succeed ends");
            }
        }
        uploads.stop().await;
    }
}

/// When the spool is full, parts that BOS holds are dropped from it; reading such a part before the close gives EIO,
/// and the object is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_smaller_than_the_file_is_enough() {
    let bench = Bench::new();
    let uploads = bench.start(UploadOptions { spool_limit_bytes: Some(4 * PART), ..options() });
    let content = bytes(12 * PART + 9, 9);
    let file = uploads.open(new_file("big")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, &content).await;
    assert!(uploads.spool_used_bytes() <= 4 * PART);
    let error = file.read(PART, 10).unwrap_err();
    assert!(matches!(error, WriteError::Failed { errno: libc::EIO, .. }), "{error}");
    file.publish().await.unwrap();
    file.remove_writer(WriterEnd::Closed);
    assert_eq!(bench.get("big").await.unwrap(), content);
    until("spool empty", || uploads.spool_used_bytes() == 0).await;
    uploads.stop().await;
}
