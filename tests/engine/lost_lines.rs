//! Journals whose last lines a power loss took, although BOS had been changed as they say, and maps that it took although spool
//! and journal are there: copies of the state directory, taken while the program works, are mounted in another boot.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bosfs::journal::StateDir;
use bosfs::journal::state_dir::Identity;
use bosfs::object::ObjectKey;
use bosfs::upload::{UploadOptions, Uploads, WriterEnd};

use crate::{Bench, PART, bytes, gone, new_file, options, over, until, write};

impl Bench {
    fn start_in_boot(&self, options: UploadOptions, boot: &str) -> Arc<Uploads> {
        let identity = Identity { endpoint: self.server.endpoint(), bucket: "bkt".into(), prefix: String::new() };
        let state = StateDir::open(&self.state, &identity).unwrap();
        Uploads::start_in_boot(options, self.client.clone(), Arc::new(state), boot.into()).unwrap()
    }

    /// The journals as they are now, to be put back later.
    fn keep_journals(&self) -> tempfile::TempDir {
        let kept = tempfile::tempdir().unwrap();
        copy_all(&self.state.join("uploads"), kept.path());
        kept
    }

    fn put_journals_back(&self, kept: &Path) {
        fs::remove_dir_all(self.state.join("uploads")).unwrap();
        copy_all(kept, &self.state.join("uploads"));
    }
}

/// What the power loss left of every map in `journals`.
fn empty_maps(journals: &Path) {
    let mut emptied = 0;
    for entry in fs::read_dir(journals).unwrap().map(Result::unwrap) {
        for file in fs::read_dir(entry.path()).unwrap().map(Result::unwrap) {
            if file.file_name().to_string_lossy().starts_with("map") {
                fs::File::options().write(true).open(file.path()).unwrap().set_len(0).unwrap();
                emptied += 1;
            }
        }
    }
    assert!(emptied > 0, "no map in {}", journals.display());
}

/// Whether some journal has a line of this kind.
fn has_line(state: &Path, kind: &str) -> bool {
    let journals = fs::read_dir(state.join("uploads")).unwrap().map(|entry| entry.unwrap().path().join("journal"));
    let line = format!("{{\"t\":\"{kind}\"");
    journals.filter_map(|journal| fs::read_to_string(journal).ok()).any(|text| text.contains(&line))
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_all(&entry.path(), &target),
            // A layer that is not needed any more may go at this moment.
            false => match fs::copy(entry.path(), target) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            },
        }
    }
}

// A small file is published, changed and published again while a handle stays open; the power loss leaves the journal as it
// was after the first time.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_no_line_tells_of_is_known_by_its_mark() {
    let bench = Bench::new();
    let uploads = bench.start_in_boot(options(), "one");
    let file = uploads.open(new_file("k")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, b"first").await;
    file.publish().await.unwrap();
    let kept = bench.keep_journals();
    write(&file, 5, b" and second").await;
    file.publish().await.unwrap();
    uploads.stop().await;
    drop((file, uploads));
    bench.put_journals_back(kept.path());

    bench.server.reset_counts();
    let uploads = bench.start_in_boot(options(), "two");
    assert!(uploads.drain().await.is_empty());
    until("the journal is gone", || gone(&bench.state)).await;
    assert_eq!(bench.get("k").await.unwrap(), b"first and second");
    assert!(uploads.find(&ObjectKey::parse("k").unwrap()).is_none());
    assert_eq!((bench.requests("PutObject"), bench.requests("CopyObject")), (0, 0));
    uploads.stop().await;
}

// The same where the journal was taken between the first write of the second time and its close.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_being_written_then_is_no_conflict() {
    let bench = Bench::new();
    let uploads = bench.start_in_boot(options(), "one");
    let file = uploads.open(new_file("k")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, b"first").await;
    file.publish().await.unwrap();
    write(&file, 5, b" and").await;
    let kept = bench.keep_journals();
    write(&file, 9, b" second").await;
    file.publish().await.unwrap();
    uploads.stop().await;
    drop((file, uploads));
    bench.put_journals_back(kept.path());

    let uploads = bench.start_in_boot(options(), "two");
    assert!(uploads.drain().await.is_empty());
    until("the journal is gone", || gone(&bench.state)).await;
    assert_eq!(bench.get("k").await.unwrap(), b"first and second");
    uploads.stop().await;
}

// A write-back file that is certain to be whole here, and was published: the line that was to say so is lost. Nothing is sent
// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_certain_state_that_was_published_is_not_sent_again() {
    let bench = Bench::new();
    let write_back = UploadOptions { write_back: true, ..options() };
    let uploads = bench.start_in_boot(UploadOptions { rate_bytes_per_s: Some(PART / 4), ..write_back.clone() }, "one");
    let file = uploads.open(new_file("k")).unwrap();
    file.add_writer().unwrap();
    let content = bytes(2 << 20, 1);
    write(&file, 0, &content).await;
    file.publish().await.unwrap();
    let kept = bench.keep_journals();
    file.remove_writer(WriterEnd::Closed);
    assert!(uploads.drain().await.is_empty());
    uploads.stop().await;
    drop((file, uploads));
    assert_eq!(bench.requests("PutObject"), 1);
    bench.put_journals_back(kept.path());

    let uploads = bench.start_in_boot(write_back, "two");
    assert!(uploads.drain().await.is_empty());
    until("the journal is gone", || gone(&bench.state)).await;
    assert_eq!(bench.get("k").await.unwrap(), content);
    assert_eq!(bench.requests("PutObject"), 1);
    uploads.stop().await;
}

// Somebody else's object is none of it: what is left is a conflict, as ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_somebody_else_is_still_a_conflict() {
    let bench = Bench::new();
    let uploads = bench.start_in_boot(options(), "one");
    let file = uploads.open(new_file("k")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, b"first").await;
    file.publish().await.unwrap();
    file.remove_writer(WriterEnd::Closed);
    until("the journal is gone", || gone(&bench.state)).await;
    drop(file);
    let file = uploads.open(over("k", bench.base("k").await)).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, b"F").await;
    file.fsync().await.unwrap();
    let kept = bench.keep_journals();
    uploads.stop().await;
    drop((file, uploads));
    bench.put_journals_back(kept.path());
    let key = ObjectKey::parse("k").unwrap();
    bench.client.remove_object(&key, None, |_| true).await.unwrap();
    let uploads = bench.start_in_boot(options(), "two");
    let file = uploads.find(&key).unwrap();
    until("conflict", || file.status(false).state == "conflict").await;
    uploads.stop().await;
}

// A small file, closed: its PutObject was announced and did not leave. Spool and journal outlived the power loss, the map did not.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_which_the_map_is_lost_is_not_published_as_zeros() {
    let bench = Bench::new();
    let uploads = bench.start_in_boot(UploadOptions { rate_bytes_per_s: Some(1 << 10), ..options() }, "one");
    let first = uploads.open(new_file("first")).unwrap();
    write(&first, 0, &bytes(2 << 20, 1)).await;
    // It takes the line for half an hour.
    first.publish().await.unwrap();
    let file = uploads.open(new_file("k")).unwrap();
    file.add_writer().unwrap();
    write(&file, 0, &bytes(2 << 20, 1)).await;
    let closing = tokio::spawn({
        let file = file.clone();
        async move { file.publish().await }
    });
    until("the PutObject is announced", || has_line(&bench.state, "putting")).await;
    let kept = bench.keep_journals();
    uploads.stop().await;
    closing.abort();
    drop((first, file, uploads));
    empty_maps(kept.path());
    bench.put_journals_back(kept.path());

    let uploads = bench.start_in_boot(options(), "two");
    uploads.drain().await;
    assert!(bench.get("k").await.is_none());
    assert_eq!(bench.requests("PutObject"), 1, "the first file's");
    let file = uploads.find(&ObjectKey::parse("k").unwrap()).unwrap();
    assert_eq!(file.status(false).state, "interrupted");
    uploads.stop().await;
}

// A part that BOS holds passes for its own bytes only as long as the map counts them: else they would be sent again as zeros
// once the upload is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_which_the_map_is_lost_is_bos_s_alone() {
    let bench = Bench::new();
    let uploads = bench.start_in_boot(options(), "one");
    let file = uploads.open(new_file("k")).unwrap();
    file.add_writer().unwrap();
    let mut content = bytes(2 * PART + 10, 1);
    write(&file, 0, &content).await;
    until("both parts are sent", || file.status(false).parts_in_bos == 2).await;
    let kept = bench.keep_journals();
    uploads.stop().await;
    drop((file, uploads));
    empty_maps(kept.path());
    // Nobody knows what came behind the parts.
    content.truncate(2 * PART as usize);

    for upload_is_gone in [false, true] {
        bench.put_journals_back(kept.path());
        if upload_is_gone {
            let key = ObjectKey::parse("k").unwrap();
            bench.client.remove_object(&key, None, |_| true).await.unwrap();
        }
        let uploads = bench.start_in_boot(options(), "two");
        let file = uploads.find(&ObjectKey::parse("k").unwrap()).unwrap();
        let completed = file.complete_now(false).await;
        match upload_is_gone {
            false => assert!(completed.is_ok() && bench.get("k").await.as_ref() == Some(&content)),
            // It was completed before.
            true => assert!(completed.is_err() && bench.get("k").await.is_none()),
        }
        uploads.stop().await;
    }
}
