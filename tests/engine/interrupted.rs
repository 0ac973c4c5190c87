//! Files whose writer was killed or whose upload a restart cut off: what is kept, what is published, what is given up.

use bosfs::journal::Record;
use bosfs::object::{FileAttrs, ObjectKey};
use bosfs::upload::{InterruptedPolicy, UploadOptions, WriterEnd};

use crate::{ATTRS, Bench, PART, bytes, gone, new_file, options, over, truncate, until, write};

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_copy_run_again_sends_only_what_bos_lacks() {
    let bench = Bench::new();
    let content = bytes(6 * PART + 77, 3);
    let uploads = bench.start(options());
    let file = uploads.open(new_file("iso")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, &content[..3 * PART as usize + 12_345]).await;
    until("three parts sent", || file.status(false).parts_in_bos == 3).await;
    uploads.stop().await;
    drop((file, uploads));

    let uploads = bench.start(options());
    let found = uploads.files();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].status(false).state, "interrupted");
    assert_eq!(found[0].size(), 3 * PART + 12_345);
    let read = found[0].read(PART - 5, 100).unwrap();
    assert_eq!(read.bytes, content[PART as usize - 5..PART as usize + 95]);
    assert!(bench.get("iso").await.is_none());

    bench.server.reset_counts();
    let file = uploads.open(new_file("iso")).unwrap();
    file.add_writer().unwrap();
    truncate(&file, 0).await;
    write(&file, 0, &content).await;
    file.publish().await.unwrap();
    let status = file.status(false);
    file.remove_writer(WriterEnd::Closed);
    assert_eq!((status.parts_kept, status.parts_sent), (3, 4), "three of seven are kept from before, four go now");
    assert_eq!(bench.requests("UploadPart"), 4);
    assert_eq!(bench.requests("InitiateMultipartUpload"), 0);
    assert_eq!(bench.requests("ListParts"), 1);
    assert_eq!(bench.sent_bytes() - bench.server.counts()["CompleteMultipartUpload"].body_bytes, 3 * PART + 77);
    assert_eq!(bench.get("iso").await.unwrap(), content);
    uploads.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_file_is_finished_by_the_next_start_alone() {
    let bench = Bench::new();
    let content = bytes(4 * PART + 1, 4);
    let slow = UploadOptions { write_back: true, rate_bytes_per_s: Some(2 * PART), ..options() };
    let uploads = bench.start(slow);
    let file = uploads.open(new_file("d/wb")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, &content).await;
    file.publish().await.unwrap();
    let lines = bosfs::journal::Journal::read(&file.dir().unwrap()).unwrap().records;
    let closed = lines.iter().position(|line| matches!(line, Record::Closed { .. })).unwrap();
    let synced = |line: &Record| matches!(line, Record::Synced { size, .. } if *size == content.len() as u64);
    assert!(lines[closed..].iter().any(synced), "a write-back close answers only after the sync");
    file.remove_writer(WriterEnd::Closed);
    until("a part sent", || bench.requests("UploadPart") >= 1).await;
    uploads.stop().await;
    assert!(bench.get("d/wb").await.is_none());
    drop((file, uploads));

    let uploads = bench.start(UploadOptions { write_back: true, ..options() });
    assert_eq!(
        uploads.find(&ObjectKey::parse("d/wb").unwrap()).unwrap().attrs(),
        FileAttrs { mtime: uploads.files()[0].attrs().mtime, ..ATTRS }
    );
    assert!(uploads.drain().await.is_empty());
    // Whoever comes later to hear of publications is told of it.
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let teller = told.clone();
    uploads.on_published(Box::new(move |key, published| {
        teller.lock().unwrap().push((key.to_string(), published.size));
    }));
    assert_eq!(*told.lock().unwrap(), [("d/wb".to_owned(), content.len() as u64)]);
    assert_eq!(bench.get("d/wb").await.unwrap(), content);
    assert_eq!(bench.requests("InitiateMultipartUpload"), 1);
    until("journal gone", || gone(&bench.state)).await;
    uploads.stop().await;
}

/// An object `k` of 6 bytes, and a journal of an interrupted writer that changed two of them.
async fn interrupted_overwrite(bench: &Bench) {
    let uploads = bench.start(options());
    let file = uploads.open(new_file("k")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, b"before").await;
    file.publish().await.unwrap();
    file.remove_writer(WriterEnd::Closed);
    until("journal gone", || gone(&bench.state)).await;
    let file = uploads.open(over("k", bench.base("k").await)).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, b"af").await;
    uploads.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_what_was_written_leaves_the_object_that_was_there() {
    let bench = Bench::new();
    interrupted_overwrite(&bench).await;
    let uploads = bench.start(options());
    let file = uploads.find(&ObjectKey::parse("k").unwrap()).unwrap();
    file.give_up().await.unwrap();
    assert_eq!(bench.get("k").await.unwrap(), b"before");
    assert_eq!(file.settled().unwrap().size, 6);
    assert!(uploads.find(&file.key()).is_none() && gone(&bench.state));
    uploads.stop().await;
    drop((file, uploads));

    let bench = Bench::new();
    interrupted_overwrite(&bench).await;
    let uploads = bench.start(UploadOptions { interrupted: InterruptedPolicy::Discard, ..options() });
    assert!(uploads.drain().await.is_empty());
    assert_eq!(bench.get("k").await.unwrap(), b"before", "--interrupted discard");
    assert!(gone(&bench.state));
    uploads.stop().await;
    drop(uploads);

    let bench = Bench::new();
    interrupted_overwrite(&bench).await;
    let uploads = bench.start(UploadOptions { interrupted: InterruptedPolicy::Complete, ..options() });
    assert!(uploads.drain().await.is_empty());
    assert_eq!(bench.get("k").await.unwrap(), b"affore", "--interrupted complete");
    uploads.stop().await;
}

/// An interrupted file is not published by opening and closing it, only by a program that writes to it.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_file_is_published_only_after_somebody_went_on_with_it() {
    let bench = Bench::new();
    interrupted_overwrite(&bench).await;
    let uploads = bench.start(options());
    let file = uploads.find(&ObjectKey::parse("k").unwrap()).unwrap();
    file.add_writer().unwrap();
    file.publish().await.unwrap();
    file.remove_writer(WriterEnd::Closed);
    assert_eq!(uploads.drain().await[0].state, "interrupted", "a close without a write publishes nothing");
    assert_eq!(bench.get("k").await.unwrap(), b"before");
    file.add_writer().unwrap();
    write(&file, 2, b"ter!").await;
    file.publish().await.unwrap();
    file.remove_writer(WriterEnd::Closed);
    assert_eq!(bench.get("k").await.unwrap(), b"after!");
    uploads.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_file_whose_base_changed_is_a_conflict() {
    let bench = Bench::new();
    interrupted_overwrite(&bench).await;
    let key = ObjectKey::parse("k").unwrap();
    bench.client.remove_object(&key, None, |_| true).await.unwrap();
    let uploads = bench.start(options());
    let file = uploads.find(&key).unwrap();
    until("conflict", || file.status(false).state == "conflict").await;
    assert_eq!(file.size(), 6);
    file.give_up().await.unwrap();
    assert!(bench.get("k").await.is_none() && gone(&bench.state));
    uploads.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writers_file_is_kept_and_not_published() {
    let bench = Bench::new();
    let uploads = bench.start(options());
    let file = uploads.open(new_file("k")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, b"half").await;
    file.remove_writer(WriterEnd::Killed { process: "cp".into(), pid: 1, signal: 9 });
    let left = uploads.drain().await;
    assert_eq!((left.len(), left[0].state.as_str()), (1, "interrupted"));
    assert!(bench.get("k").await.is_none());
    file.complete_now(false).await.unwrap();
    assert_eq!(bench.get("k").await.unwrap(), b"half");
    uploads.stop().await;
}
