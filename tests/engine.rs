//! The upload engine against the embedded server, without a mount: requests are counted at the server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bosfs::bos::client::ObjectHeaders;
use bosfs::bos::credentials::StaticCredentials;
use bosfs::bos::{BosClient, BosClientConfig, BosErrorKind};
use bosfs::journal::record::Proof;
use bosfs::journal::state_dir::Identity;
use bosfs::journal::{Record, StateDir};
use bosfs::object::{BaseObject, Condition, FileAttrs, ObjectKey, Timestamp};
use bosfs::serve::{ServeOptions, Server, ServerHandle, Variants};
use bosfs::upload::{DirtyFile, InterruptedPolicy, Opening, Temporary, UploadOptions, Uploads, WriteError, WriterEnd};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

const MIB: u64 = 1 << 20;
const PART: u64 = 5 * MIB;
const ATTRS: FileAttrs =
    FileAttrs { mode: 0o100_640, uid: 7, gid: 8, mtime: Timestamp { sec: 1_700_000_000, nsec: 5 } };

struct Bench {
    _dir: tempfile::TempDir,
    server: ServerHandle,
    client: BosClient,
    state: std::path::PathBuf,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut ServeOptions)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = ServeOptions::new(dir.path().join("bos"));
        change(&mut options);
        let server = Server::start(options).unwrap();
        server.create_bucket("bkt").unwrap();
        let credentials = Arc::new(StaticCredentials::new(server.credentials().clone()));
        let client = BosClient::new(BosClientConfig::new(server.endpoint(), "bkt", credentials)).unwrap();
        let state = dir.path().join("state");
        Self { _dir: dir, server, client, state }
    }

    fn start(&self, options: UploadOptions) -> Arc<Uploads> {
        let identity = Identity { endpoint: self.server.endpoint(), bucket: "bkt".into(), prefix: String::new() };
        let state = StateDir::open(&self.state, &identity).unwrap();
        Uploads::start(options, self.client.clone(), Arc::new(state)).unwrap()
    }

    fn requests(&self, call: &str) -> u64 {
        self.server.counts().get(call).map_or(0, |count| count.requests)
    }

    fn sent_bytes(&self) -> u64 {
        self.server.counts().values().map(|count| count.body_bytes).sum()
    }

    async fn get(&self, key: &str) -> Option<Vec<u8>> {
        let mut got = match self.client.get_object(&ObjectKey::parse(key).unwrap(), None, None).await {
            Ok(got) => got,
            Err(e) if e.kind == BosErrorKind::NoSuchKey => return None,
            Err(e) => panic!("{e}"),
        };
        let mut bytes = Vec::new();
        while let Some(piece) = got.chunk().await.unwrap() {
            bytes.extend_from_slice(&piece);
        }
        Some(bytes)
    }

    async fn base(&self, key: &str) -> BaseObject {
        let meta = self.client.head_object(&ObjectKey::parse(key).unwrap()).await.unwrap();
        BaseObject::own(meta.etag, meta.size)
    }

    fn journals(&self) -> usize {
        std::fs::read_dir(self.state.join("uploads")).unwrap().count()
    }
}

fn options() -> UploadOptions {
    UploadOptions {
        part_bytes: PART,
        uploads_max: 3,
        write_back: false,
        fsync_bos: false,
        interrupted: InterruptedPolicy::Keep,
        timeout: Some(Duration::from_secs(30)),
        overwrite_on_conflict: false,
        adopt: false,
        punch: true,
        spool_limit_bytes: None,
        rate_bytes_per_s: None,
        storage_class: None,
    }
}

fn new_file(key: &str) -> Opening {
    Opening {
        key: ObjectKey::parse(key).unwrap(),
        base: None,
        condition: Condition::Absent,
        headers: ObjectHeaders { content_type: Some("text/plain".into()), ..ObjectHeaders::default() },
        attrs: ATTRS,
        created: true,
        temporary: None,
    }
}

fn over(key: &str, base: BaseObject) -> Opening {
    let condition = Condition::Matches(base.etag.clone());
    Opening { base: Some(base), condition, created: false, ..new_file(key) }
}

fn bytes(len: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

async fn write(file: &Arc<DirtyFile>, offset: u64, bytes: &[u8]) {
    for (i, piece) in bytes.chunks(300_000).enumerate() {
        let at = offset + i as u64 * 300_000;
        while let Err(e) = file.write(at, piece) {
            assert!(matches!(e, WriteError::MustWait), "{e}");
            file.wait_writable(at, piece.len() as u64).await.unwrap();
        }
    }
}

async fn truncate(file: &Arc<DirtyFile>, size: u64) {
    while let Err(e) = file.truncate(size) {
        assert!(matches!(e, WriteError::MustWait), "{e}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within 10 s: {what}");
}

fn gone(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("uploads")).unwrap().count() == 0
}

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
    bench.client.delete_object(&key).await.unwrap();
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

// Random writes, cuts, publications and restarts against a plain file; the object must be what the file was at the
// last publication, and the file what it was all along.
#[tokio::test(flavor = "multi_thread")]
async fn random_changes_publications_and_restarts_keep_every_byte() {
    let seed: u64 = std::env::var("BOSFS_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let rounds: u32 = std::env::var("BOSFS_TEST_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(120);
    println!("seed {seed}, {rounds} rounds");
    let mut rng = StdRng::seed_from_u64(seed);
    let bench = Bench::with(|options| options.faithful_variants.opaque_composed_etags = seed % 2 == 1);
    let mut uploads = bench.start(options());
    let mut model: Vec<u8> = Vec::new();
    let mut published: Option<Vec<u8>> = None;
    let mut file = uploads.open(new_file("f")).unwrap();
    file.add_writer().unwrap();
    let mut counts = [0u32; 6];
    for round in 0..rounds {
        let size = model.len() as u64;
        let action = rng.random_range(0..100);
        if std::env::var_os("BOSFS_TEST_TRACE").is_some() {
            println!("round {round}, action {action}, size {size}: {:?}", file.status(false));
        }
        match action {
            0..50 => {
                let offset = rng.random_range(0..=size.min(4 * PART) + if action < 5 { PART } else { 0 });
                let len = if action < 40 { rng.random_range(1..20_000) } else { rng.random_range(1..2 * PART) };
                let content = bytes(len, u64::from(round) + seed * 1000);
                write(&file, offset, &content).await;
                model.resize(model.len().max((offset + len) as usize), 0);
                model[offset as usize..(offset + len) as usize].copy_from_slice(&content);
                counts[0] += 1;
            }
            50..60 => {
                let new = rng.random_range(0..=size + 10_000);
                truncate(&file, new).await;
                model.resize(new as usize, 0);
                counts[1] += 1;
            }
            60..62 => {
                truncate(&file, 0).await;
                model.clear();
                counts[1] += 1;
            }
            62..75 => {
                file.publish_and_wait().await.unwrap_or_else(|e| panic!("round {round}: {e}"));
                assert_eq!(bench.get("f").await.as_ref(), Some(&model), "round {round}, published object");
                published = Some(model.clone());
                counts[2] += 1;
            }
            75..85 => {
                // Close, let the background publish, go on with what is there.
                file.remove_writer(WriterEnd::Closed);
                let left = uploads.drain().await;
                assert!(left.is_empty(), "round {round}: {left:?}");
                assert_eq!(bench.get("f").await.as_ref(), Some(&model), "round {round}, released object");
                published = Some(model.clone());
                let base = bench.base("f").await;
                file = uploads.open(over("f", base)).unwrap();
                file.add_writer().unwrap();
                counts[3] += 1;
            }
            85..90 => {
                file.fsync().await.unwrap();
                counts[4] += 1;
            }
            _ => {
                uploads.stop().await;
                drop((file, uploads));
                uploads = bench.start(options());
                let left = uploads.drain().await;
                assert!(left.iter().all(|f| f.state == "interrupted"), "round {round}: {left:?}");
                let opening = match uploads.find(&ObjectKey::parse("f").unwrap()) {
                    Some(_) => new_file("f"),
                    None if bench.get("f").await.is_some() => over("f", bench.base("f").await),
                    None => new_file("f"),
                };
                file = uploads.open(opening).unwrap();
                file.add_writer().unwrap();
                // Until somebody goes on with it, an interrupted file is not published.
                write(&file, 0, &[round as u8]).await;
                model.resize(model.len().max(1), 0);
                model[0] = round as u8;
                counts[5] += 1;
            }
        }
        assert_eq!(file.size(), model.len() as u64, "round {round}, action {action}");
        let at = rng.random_range(0..=model.len() as u64);
        let read = file.read(at, 100_000).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let mut got = read.bytes;
        for gap in read.gaps {
            let base = read.base.as_ref().unwrap();
            let from = bench.client.get_range(&file.key(), gap, Some(&base.etag)).await.unwrap();
            got[(gap.start - at) as usize..(gap.end - at) as usize].copy_from_slice(&from);
        }
        let end = (at as usize + 100_000).min(model.len());
        assert!(got == model[at as usize..end], "round {round}, action {action}: read at {at}");
        if action >= 85 {
            let object = bench.get("f").await;
            assert!(
                object.is_none() || object == published || object.as_ref() == Some(&model),
                "round {round}: half a file"
            );
        }
    }
    println!("writes, cuts, publications, releases, syncs, restarts: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0));
    uploads.stop().await;
}
