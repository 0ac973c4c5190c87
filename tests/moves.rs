//! Renames, exchanges and deletions against the embedded server, without a mount: requests are counted at the server. A
//! process that dies is one whose tasks are stopped, or a journal that was written up to some line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bosfs::bos::client::{Body, Known, ObjectHeaders, ObjectMeta};
use bosfs::bos::credentials::StaticCredentials;
use bosfs::bos::{BosClient, BosClientConfig, BosErrorKind};
use bosfs::journal::state_dir::Identity;
use bosfs::journal::{RecordLog, StateDir, boot_id};
use bosfs::moves::record::{Listed, MoveRecord, PartsBy};
use bosfs::moves::{CopySizes, Moves};
use bosfs::object::{BaseObject, Condition, ETag, Md5, ObjectKey};
use bosfs::serve::{ServeOptions, Server, ServerHandle};
use bosfs::upload::{FileStatus, WriteError};

const MIB: u64 = 1 << 20;
const SMALL: CopySizes = CopySizes { copy_bytes_max: MIB, part_bytes: MIB };

struct Bench {
    _dir: tempfile::TempDir,
    server: ServerHandle,
    client: BosClient,
    state: PathBuf,
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(ServeOptions::new(dir.path().join("bos"))).unwrap();
        server.create_bucket("bkt").unwrap();
        let credentials = Arc::new(StaticCredentials::new(server.credentials().clone()));
        let client = BosClient::new(BosClientConfig::new(server.endpoint(), "bkt", credentials)).unwrap();
        let state = dir.path().join("state");
        Self { _dir: dir, server, client, state }
    }

    fn state_dir(&self) -> Arc<StateDir> {
        let identity = Identity { endpoint: self.server.endpoint(), bucket: "bkt".into(), prefix: String::new() };
        Arc::new(StateDir::open(&self.state, &identity).unwrap())
    }

    fn start(&self) -> Arc<Moves> {
        Moves::start_with(self.client.clone(), self.state_dir(), 8, SMALL, None).unwrap()
    }

    /// A journal with these lines, as a killed process leaves it; then a start that has finished with it.
    async fn recover(&self, lines: &[MoveRecord]) -> Vec<FileStatus> {
        self.leave(lines);
        let moves = self.start();
        let told = within(moves.drain()).await;
        moves.stop().await;
        assert_eq!(self.journals(), 0, "{told:?}");
        told
    }

    fn leave(&self, lines: &[MoveRecord]) {
        let state = self.state_dir();
        let (_, dir) = state.create_move().unwrap();
        let mut log = RecordLog::create(&dir, &lines[0]).unwrap();
        lines[1..].iter().for_each(|line| log.append(line).unwrap());
    }

    fn journals(&self) -> usize {
        std::fs::read_dir(self.state.join("moves")).unwrap().count()
    }

    fn requests(&self, call: &str) -> u64 {
        self.server.counts().get(call).map_or(0, |count| count.requests)
    }

    fn requests_all(&self) -> u64 {
        self.server.counts().values().map(|count| count.requests).sum()
    }

    async fn put(&self, name: &str, bytes: &[u8]) -> BaseObject {
        let mut headers = ObjectHeaders { content_type: Some("text/x-test".into()), ..ObjectHeaders::default() };
        headers.metadata.insert("colour".into(), "green".into());
        let body = Body::Bytes(bytes.to_vec().into());
        let stored =
            self.client.put_object(&key(name), body, &Md5::of(bytes), &headers, &Condition::Any).await.unwrap();
        BaseObject::own(stored.etag, bytes.len() as u64)
    }

    async fn head(&self, name: &str) -> Option<ObjectMeta> {
        match self.client.head_object(&key(name)).await {
            Ok(meta) => Some(meta),
            Err(e) if e.kind == BosErrorKind::NoSuchKey => None,
            Err(e) => panic!("{e}"),
        }
    }

    async fn get(&self, name: &str) -> Option<Vec<u8>> {
        let mut got = match self.client.get_object(&key(name), None, None).await {
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

    /// Keys with ETags below a prefix; keys without it.
    async fn tree(&self, prefix: &str) -> BTreeMap<String, ETag> {
        let mut tree = BTreeMap::new();
        let mut marker: Option<String> = None;
        loop {
            let page = self.client.list_objects(prefix, None, marker.as_deref(), 1000).await.unwrap();
            tree.extend(page.objects.into_iter().map(|o| (o.key[prefix.len()..].to_owned(), o.etag)));
            match page.next_marker {
                Some(next) => marker = Some(next),
                None => return tree,
            }
        }
    }

    /// `count` small objects below `prefix`, nested, with markers for every other directory.
    async fn fill(&self, prefix: &str, count: usize) -> BTreeMap<String, ETag> {
        let names = (0..count).map(|i| match i % 10 {
            0 => format!("{prefix}{}/sub {i}/", i % 7),
            1 => format!("{prefix}文件 {i}+%"),
            _ => format!("{prefix}{}/deep/{}/f{i}", i % 7, i % 3),
        });
        let puts = names.map(|name| async move {
            let bytes = if name.ends_with('/') { Vec::new() } else { name.clone().into_bytes() };
            self.put(&name, &bytes).await
        });
        use futures_util::StreamExt as _;
        futures_util::stream::iter(puts).buffer_unordered(16).collect::<Vec<_>>().await;
        let tree = self.tree(prefix).await;
        assert_eq!(tree.len(), count);
        tree
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("no end within 30 s")
}

fn errno(result: Result<impl std::fmt::Debug, WriteError>) -> i32 {
    match result {
        Err(WriteError::Failed { errno, .. }) => errno,
        other => panic!("{other:?}"),
    }
}

fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 977) as u8).collect()
}

/// A rename of an object takes content, content type and metadata along, in at most four requests.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_gets_another_key_with_all_that_it_carries() {
    let bench = Bench::new();
    let moves = bench.start();
    let source = bench.put("a b/旧", b"content").await;
    let before = bench.requests_all();
    let etag = moves.rename_object(&key("a b/旧"), &key("new"), &source, &Condition::Absent, None).await.unwrap().etag;
    println!("rename of one object: {} requests", bench.requests_all() - before);
    assert!(bench.requests_all() - before <= 4, "HEAD of the target, copy, HEAD of the source, delete");
    assert!(bench.head("a b/旧").await.is_none());
    let head = bench.head("new").await.unwrap();
    assert_eq!((head.etag, head.size), (etag.clone(), 7));
    assert_eq!(head.headers.metadata["colour"], "green");
    assert_eq!(head.headers.content_type.as_deref(), Some("text/x-test"));

    let mut headers = ObjectHeaders { content_type: Some("image/png".into()), ..ObjectHeaders::default() };
    headers.metadata.insert("colour".into(), "red".into());
    let source = BaseObject::own(etag, 7);
    bench.put("target", b"to be replaced").await;
    moves.rename_object(&key("new"), &key("target"), &source, &Condition::Any, Some(&headers)).await.unwrap();
    let head = bench.head("target").await.unwrap();
    assert_eq!(head.headers.metadata["colour"], "red");
    assert_eq!(head.headers.content_type.as_deref(), Some("image/png"));
    assert!(head.headers.metadata.contains_key("bosfs-upload"), "its mark");
    assert!(bench.head("new").await.is_none());
    assert_eq!(bench.journals(), 0);
    assert!(moves.status().is_empty());
    moves.stop().await;
}

/// A rename that cannot be done leaves everything as it is: EEXIST where the target must not exist, ESTALE where either
/// side changed, ENOENT without a source.
#[tokio::test(flavor = "multi_thread")]
async fn a_rename_that_cannot_be_leaves_everything_as_it_is() {
    let bench = Bench::new();
    let moves = bench.start();
    let source = bench.put("a", b"content").await;
    let other = bench.put("b", b"other").await;
    let rename = |source: BaseObject, from: &'static str, condition: Condition| {
        let moves = moves.clone();
        async move { moves.rename_object(&key(from), &key("b"), &source, &condition, None).await }
    };
    assert_eq!(errno(rename(source.clone(), "a", Condition::Absent).await), libc::EEXIST);
    let condition = Condition::Matches(ETag::new("seen before"));
    assert_eq!(errno(rename(source.clone(), "a", condition).await), libc::ESTALE);
    let changed = BaseObject::own(ETag::new("0123"), 7);
    assert_eq!(errno(rename(changed, "a", Condition::Any).await), libc::ESTALE);
    assert_eq!(errno(rename(source, "absent", Condition::Any).await), libc::ENOENT);
    assert_eq!(bench.get("a").await.unwrap(), b"content");
    assert_eq!(bench.head("b").await.unwrap().etag, other.etag);
    assert_eq!(bench.journals(), 0);
    assert!(moves.status().is_empty(), "{:?}", moves.status());
    moves.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_object_is_renamed_by_parts() {
    let bench = Bench::new();
    let moves = bench.start();
    let bytes = pattern(5 * MIB + 12_345);
    let source = bench.put("large", &bytes).await;
    let etag = moves.rename_object(&key("large"), &key("moved"), &source, &Condition::Absent, None).await.unwrap().etag;
    assert_eq!(bench.requests("UploadPartCopy"), 6, "{:?}", bench.server.counts());
    assert_eq!(bench.requests("CopyObject"), 0);
    assert!(bench.get("moved").await.unwrap() == bytes);
    let head = bench.head("moved").await.unwrap();
    assert_eq!(head.etag, etag);
    assert_eq!(head.headers.metadata["colour"], "green");
    assert_eq!(head.headers.content_type.as_deref(), Some("text/x-test"));
    assert!(bench.head("large").await.is_none());

    let source = BaseObject::own(etag, bytes.len() as u64);
    bench.put("taken", b"x").await;
    let taken = moves.rename_object(&key("moved"), &key("taken"), &source, &Condition::Absent, None).await;
    assert_eq!(errno(taken), libc::EEXIST);
    assert!(bench.client.list_uploads("", None).await.unwrap().uploads.is_empty());
    assert_eq!(bench.journals(), 0);
    moves.stop().await;
}

fn object_line(from: &str, source: &BaseObject, to: &str, condition: Condition) -> MoveRecord {
    let (from, to) = (key(from), key(to));
    MoveRecord::Object { format: 1, from, source: source.clone(), to, condition, replace: None, at: 0 }
}

async fn copied_line(bench: &Bench, from: &str, to: &str, etag: &ETag) -> MoveRecord {
    let from = bench.head(from).await.unwrap();
    MoveRecord::Copied {
        to: key(to),
        from_etag: from.etag,
        from_last_modified: Some(from.last_modified),
        etag: etag.clone(),
        stored: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_rename_of_an_object_is_finished_from_every_line() {
    // Begun; the copy was not sent, or sent and answered to nobody.
    for copy_arrived in [false, true] {
        for condition in [Condition::Absent, Condition::Any] {
            let bench = Bench::new();
            let source = bench.put("a", b"content").await;
            if copy_arrived {
                bench.client.copy_object(&key("a"), None, &key("b"), None).await.unwrap();
            }
            let told = bench.recover(&[object_line("a", &source, "b", condition)]).await;
            assert!(told.is_empty(), "{told:?}");
            assert!(bench.head("a").await.is_none());
            assert_eq!(bench.get("b").await.unwrap(), b"content");
        }
    }
    // Copied; the source is there, or deleted already.
    for deleted in [false, true] {
        let bench = Bench::new();
        let source = bench.put("a", b"content").await;
        let etag = bench.client.copy_object(&key("a"), None, &key("b"), None).await.unwrap().etag;
        let lines = [object_line("a", &source, "b", Condition::Absent), copied_line(&bench, "a", "b", &etag).await];
        if deleted {
            bench.client.remove_object(&key("a"), None, |_| true).await.unwrap();
        }
        assert!(bench.recover(&lines).await.is_empty());
        assert!(bench.head("a").await.is_none());
        assert_eq!(bench.get("b").await.unwrap(), b"content");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_meanwhile_stays() {
    // At the new name, before the copy.
    let bench = Bench::new();
    let source = bench.put("a", b"content").await;
    bench.put("b", b"somebody else's").await;
    let told = bench.recover(&[object_line("a", &source, "b", Condition::Absent)]).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].state.as_str(), told[0].key.as_str()), ("conflict", "a"));
    assert_eq!(bench.get("a").await.unwrap(), b"content");
    assert_eq!(bench.get("b").await.unwrap(), b"somebody else's");

    // At the old name, behind the copy; also if it is the same content, written later.
    for again in [&b"new content"[..], b"content"] {
        let bench = Bench::new();
        let source = bench.put("a", b"content").await;
        let etag = bench.client.copy_object(&key("a"), None, &key("b"), None).await.unwrap().etag;
        let lines = [object_line("a", &source, "b", Condition::Absent), copied_line(&bench, "a", "b", &etag).await];
        // Times have a resolution of one second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        bench.put("a", again).await;
        let told = bench.recover(&lines).await;
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(bench.get("a").await.unwrap(), again);
        assert_eq!(bench.get("b").await.unwrap(), b"content");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_copy_by_parts_goes_on_with_its_upload() {
    let bench = Bench::new();
    let bytes = pattern(4 * MIB);
    let source = bench.put("large", &bytes).await;
    let upload = bench.client.initiate(&key("moved"), &ObjectHeaders::default()).await.unwrap();
    let mut lines = vec![
        object_line("large", &source, "moved", Condition::Absent),
        MoveRecord::Initiating { to: key("moved") },
        MoveRecord::Initiated {
            to: key("moved"),
            upload_id: upload.clone(),
            by: PartsBy { part_bytes: MIB, sent: false },
        },
    ];
    for part in 1..=2u64 {
        let number = bosfs::object::PartNumber::new(part as u32).unwrap();
        let range = bosfs::object::ByteRange::new((part - 1) * MIB, part * MIB);
        let (from, to) = (key("large"), key("moved"));
        let etag = bench.client.upload_part_copy(&to, &upload, number, &from, range, None).await.unwrap().etag;
        lines.push(MoveRecord::PartCopied { to, part: number, etag });
    }
    assert!(bench.recover(&lines).await.is_empty());
    assert_eq!(bench.requests("UploadPartCopy"), 4, "two before, two after");
    assert!(bench.get("moved").await.unwrap() == bytes);
    assert!(bench.head("large").await.is_none());
    assert!(bench.client.list_uploads("", None).await.unwrap().uploads.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_copy_that_is_sent_again_goes_on_with_its_upload_and_its_parts() {
    let bench = Bench::new();
    let bytes = pattern(20 * MIB);
    let source = bench.put("large", &bytes).await;
    let upload = bench.client.initiate(&key("moved"), &ObjectHeaders::default()).await.unwrap();
    let part = bosfs::object::PartNumber::FIRST;
    // Even ones: three of at most 8 MiB.
    let first = &bytes[..7 * MIB as usize];
    let body = Body::Bytes(first.to_vec().into());
    let etag = bench.client.upload_part(&key("moved"), &upload, part, body, &Md5::of(first)).await.unwrap().etag;
    let by = PartsBy { part_bytes: 8 * MIB, sent: true };
    let lines = [
        object_line("large", &source, "moved", Condition::Absent),
        MoveRecord::Initiating { to: key("moved") },
        MoveRecord::Initiated { to: key("moved"), upload_id: upload, by },
        MoveRecord::PartCopied { to: key("moved"), part, etag },
    ];
    assert!(bench.recover(&lines).await.is_empty());
    assert_eq!((bench.requests("UploadPart"), bench.requests("UploadPartCopy")), (3, 0), "one before, two after");
    assert!(bench.get("moved").await.unwrap() == bytes);
    assert!(bench.head("large").await.is_none());
    assert!(bench.client.list_uploads("", None).await.unwrap().uploads.is_empty());
}

/// The parts that Complete lists add up to the object, or nothing is sent.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_30_tb_is_renamed_whole_and_one_that_no_upload_can_hold_not_at_all() {
    const TB: u64 = 1_000_000_000_000;
    let bench = Bench::new();
    let moves = Moves::start_with(bench.client.clone(), bench.state_dir(), 8, CopySizes::default(), None).unwrap();
    for (name, size) in [("huge", 30 * TB + 7), ("too huge", 52 * TB)] {
        bench.server.put_sparse("bkt", name, size).unwrap();
    }
    let source = async |name: &str| {
        let head = bench.head(name).await.unwrap();
        BaseObject::own(head.etag, head.size)
    };
    let huge = source("huge").await;
    moves.rename_object(&key("huge"), &key("moved"), &huge, &Condition::Absent, None).await.unwrap();
    assert_eq!(bench.head("moved").await.unwrap().size, 30 * TB + 7);
    assert!(bench.head("huge").await.is_none());
    let initiated = bench.requests("InitiateMultipartUpload");
    let huge = source("too huge").await;
    let refused = moves.rename_object(&key("too huge"), &key("cut"), &huge, &Condition::Absent, None).await;
    assert_eq!(errno(refused), libc::EFBIG);
    assert_eq!(bench.requests("InitiateMultipartUpload"), initiated);
    assert!(bench.head("cut").await.is_none() && bench.head("too huge").await.is_some());
    moves.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_objects_is_renamed() {
    let bench = Bench::new();
    let moves = bench.start();
    let tree = bench.fill("old/", 1200).await;
    bench.put("older/x", b"x").await;
    bench.put("old", b"an object beside it").await;
    let before = bench.server.counts();
    let since = Instant::now();
    moves.rename_dir("old/", "new/place/", Vec::new(), None).await.unwrap();
    let took = since.elapsed();
    let counts: BTreeMap<_, _> = bench
        .server
        .counts()
        .into_iter()
        .map(|(call, count)| (call.to_string(), count.requests - before.get(&call).map_or(0, |c| c.requests)))
        .filter(|(_, requests)| *requests > 0)
        .collect();
    println!("rename of a directory of 1200 objects: {counts:?} in {took:?}");
    assert_eq!(bench.tree("new/place/").await, tree);
    assert!(bench.tree("old/").await.is_empty());
    assert!(bench.head("older/x").await.is_some() && bench.head("old").await.is_some());
    assert_eq!(counts["CopyObject"], 1200);
    assert_eq!(counts["DeleteMultipleObjects"], 2);
    assert_eq!(counts["ListObjects"], 6, "two before and two behind the copies, two to delete");
    assert_eq!(bench.journals(), 0);
    assert!(moves.status().is_empty());
    moves.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_move_is_left_alone() {
    let bench = Bench::new();
    let moves = bench.start();
    let tree = bench.fill("old/", 20).await;
    let before = bench.requests("CopyObject");
    let long = format!("{}/", "n".repeat(1020));
    assert_eq!(errno(moves.rename_dir("old/", &long, Vec::new(), None).await), libc::ENAMETOOLONG);
    assert_eq!(errno(moves.rename_dir("old/", "old/x/", Vec::new(), None).await), libc::EINVAL);
    assert_eq!(bench.requests("CopyObject"), before);
    assert_eq!(bench.tree("old/").await, tree);
    assert_eq!(bench.journals(), 0);
    moves.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_directory_keeps_its_marker_and_others_get_one() {
    let bench = Bench::new();
    let moves = bench.start();
    let mut headers = ObjectHeaders::default();
    headers.metadata.insert("bosfs-mode".into(), "16877".into());
    bench.put("marked/", b"").await;
    bench.put("implicit/f", b"f").await;
    moves.rename_dir("marked/", "a/", Vec::new(), Some(headers.clone())).await.unwrap();
    moves.rename_dir("implicit/", "b/", Vec::new(), Some(headers)).await.unwrap();
    assert_eq!(bench.head("a/").await.unwrap().headers.metadata["colour"], "green");
    assert_eq!(bench.head("b/").await.unwrap().headers.metadata["bosfs-mode"], "16877");
    assert_eq!(bench.tree("").await.keys().collect::<Vec<_>>(), ["a/", "b/", "b/f"]);
    moves.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_whose_process_dies_is_wholly_old_or_wholly_new() {
    let mut outcomes = BTreeMap::new();
    // Stopped once so many requests of a call have come in.
    let moments =
        [("CopyObject", 1), ("CopyObject", 60), ("CopyObject", 200), ("ListObjects", 2), ("DeleteMultipleObjects", 1)];
    for (call, count) in moments {
        let bench = Bench::new();
        let tree = bench.fill("old/", 200).await;
        bench.put("new sibling", b"x").await;
        let moves = bench.start();
        let before = bench.requests(call);
        let renaming = {
            let moves = moves.clone();
            tokio::spawn(async move { moves.rename_dir("old/", "new/", Vec::new(), None).await })
        };
        let end = Instant::now() + Duration::from_secs(20);
        while bench.requests(call) - before < count && !renaming.is_finished() {
            assert!(Instant::now() < end);
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        moves.stop().await;
        let result = renaming.await.unwrap();
        drop(moves);
        let moves = bench.start();
        let told = within(moves.drain()).await;
        assert!(told.is_empty(), "{told:?}");
        let (old, new) = (bench.tree("old/").await, bench.tree("new/").await);
        let outcome = if old.is_empty() { "new" } else { "old" };
        match outcome {
            "new" => assert_eq!(new, tree),
            _ => {
                assert_eq!(old, tree, "{call} {count}");
                assert!(new.is_empty(), "{call} {count}: {} copies stay", new.len());
                assert!(result.is_err());
            }
        }
        outcomes.insert((call, count), outcome);
        assert_eq!(bench.journals(), 0);
        moves.stop().await;
    }
    println!("{outcomes:?}");
    assert_eq!(outcomes[&("CopyObject", 60)], "old");
    assert_eq!(outcomes[&("DeleteMultipleObjects", 1)], "new");
}

async fn listed(bench: &Bench, prefix: &str, rest: &str) -> Listed {
    let head = bench.head(&format!("{prefix}{rest}")).await.unwrap();
    Listed { rest: rest.into(), etag: head.etag, size: head.size, last_modified: head.last_modified }
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_of_a_directory_touches_only_what_it_made() {
    for all_copied in [false, true] {
        let bench = Bench::new();
        let mut lines = vec![MoveRecord::Directory {
            format: 1,
            from: "old/".into(),
            to: "new/".into(),
            leave_out: Vec::new(),
            at: 0,
        }];
        let mut planned = Vec::new();
        let mut copied = Vec::new();
        for name in ["clean", "changed", "unanswered"] {
            bench.put(&format!("old/{name}"), name.as_bytes()).await;
            planned.push(listed(&bench, "old/", name).await);
            let (from, to) = (format!("old/{name}"), format!("new/{name}"));
            let etag = bench.client.copy_object(&key(&from), None, &key(&to), None).await.unwrap().etag;
            if name != "unanswered" || all_copied {
                copied.push(copied_line(&bench, &from, &to, &etag).await);
            }
        }
        lines.push(MoveRecord::Planned { entries: planned });
        lines.extend(copied);
        if all_copied {
            lines.push(MoveRecord::AllCopied);
            bench.put("old/changed", b"by somebody else").await;
            bench.put("old/foreign", b"by somebody else").await;
        } else {
            bench.put("new/changed", b"by somebody else").await;
            bench.put("new/foreign", b"by somebody else").await;
        }
        let told = bench.recover(&lines).await;
        let keys: Vec<_> = bench.tree("").await.into_keys().collect();
        if all_copied {
            assert_eq!(keys, ["new/changed", "new/clean", "new/unanswered", "old/changed", "old/foreign"]);
            assert_eq!(told.len(), 2, "{told:?}");
            assert_eq!(bench.get("new/changed").await.unwrap(), b"changed");
        } else {
            assert_eq!(keys, ["new/changed", "new/foreign", "old/changed", "old/clean", "old/unanswered"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_equal_object_that_others_wrote_over_a_copy_stays_when_the_copy_is_taken_back() {
    for written_again in [false, true] {
        let bench = Bench::new();
        bench.put("old/x", b"content").await;
        let planned = MoveRecord::Planned { entries: vec![listed(&bench, "old/", "x").await] };
        let etag = bench.client.copy_object(&key("old/x"), None, &key("new/x"), None).await.unwrap().etag;
        let at = bench.head("new/x").await.unwrap().last_modified;
        let copied = match copied_line(&bench, "old/x", "new/x", &etag).await {
            MoveRecord::Copied { to, from_etag, from_last_modified, etag, .. } => {
                MoveRecord::Copied { to, from_etag, from_last_modified, etag, stored: Some((at, at)) }
            }
            other => panic!("{other:?}"),
        };
        let (from, to, leave_out) = ("old/".into(), "new/".into(), Vec::new());
        let first = MoveRecord::Directory { format: 1, from, to, leave_out, at: 0 };
        if written_again {
            // Times have a resolution of one second.
            tokio::time::sleep(Duration::from_millis(1100)).await;
            bench.put("new/x", b"content").await;
        }
        bench.recover(&[first, planned, copied]).await;
        assert_eq!(bench.head("new/x").await.is_some(), written_again);
        assert!(bench.head("old/x").await.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_under_recovery_are_hidden_and_a_damaged_journal_stops_nothing() {
    let bench = Bench::new();
    let source = bench.put("a", b"content").await;
    let etag = bench.client.copy_object(&key("a"), None, &key("b"), None).await.unwrap().etag;
    bench.leave(&[object_line("a", &source, "b", Condition::Absent), copied_line(&bench, "a", "b", &etag).await]);
    bench.leave(&[object_line("x", &source, "y", Condition::Absent), MoveRecord::AllCopied]);
    let offline: Vec<_> = bosfs::moves::offline_status(&bench.state).into_iter().map(Result::unwrap).collect();
    assert_eq!(offline.iter().filter(|entry| entry.state == "renaming").count(), 2, "{offline:?}");
    // Not yet polled: what is hidden is known before the first task runs.
    let damaged = std::fs::read_dir(bench.state.join("moves")).unwrap().flatten().find_map(|dir| {
        let path = dir.path().join("journal");
        let mut bytes = std::fs::read(&path).unwrap();
        let is_x = bytes.windows(3).any(|w| w == b"\"x\"");
        bytes[30] ^= 1;
        is_x.then(|| std::fs::write(&path, bytes).unwrap())
    });
    assert!(damaged.is_some());
    let moves = bench.start();
    assert!(moves.hides("a") || bench.head("a").await.is_none());
    within(moves.wait_clear("a")).await.unwrap();
    let told = within(moves.drain()).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].state, "failed");
    assert!(bench.head("a").await.is_none() && bench.head("b").await.is_some());
    assert_eq!(bench.journals(), 1, "nothing of the damaged one is deleted");
    moves.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_objects_change_places() {
    let bench = Bench::new();
    let moves = bench.start();
    let (a, b) = (bench.put("a", b"was a").await, bench.put("b", b"was b, longer").await);
    moves.exchange((&key("a"), &a), (&key("b"), &b), &key(".bosfs/exchange")).await.unwrap();
    assert_eq!(bench.get("a").await.unwrap(), b"was b, longer");
    assert_eq!(bench.get("b").await.unwrap(), b"was a");
    assert_eq!(bench.tree("").await.len(), 2);
    let stale = moves.exchange((&key("a"), &a), (&key("b"), &b), &key(".bosfs/exchange")).await;
    assert_eq!(errno(stale), libc::ESTALE);
    assert_eq!(bench.get("a").await.unwrap(), b"was b, longer");
    assert_eq!((bench.tree("").await.len(), bench.journals()), (2, 0));
    moves.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_exchange_is_finished_from_every_line() {
    // So many steps were done; the last one was answered and journaled, or not.
    for steps in 0..=3 {
        for journaled in [true, false] {
            let bench = Bench::new();
            let (a, b) = (bench.put("a", b"was a").await, bench.put("b", b"was b").await);
            let mut lines = vec![MoveRecord::Exchange {
                format: 1,
                a: key("a"),
                a_object: a,
                b: key("b"),
                b_object: b,
                hidden: key("h"),
                at: 0,
            }];
            for (step, (from, to)) in [("a", "h"), ("b", "a"), ("h", "b")].into_iter().enumerate().take(steps) {
                let etag = bench.client.copy_object(&key(from), None, &key(to), None).await.unwrap().etag;
                if journaled || step + 1 < steps {
                    lines.push(copied_line(&bench, from, to, &etag).await);
                }
            }
            let told = bench.recover(&lines).await;
            assert!(told.is_empty(), "{steps} {journaled}: {told:?}");
            assert_eq!(bench.get("a").await.unwrap(), b"was b", "{steps} {journaled}");
            assert_eq!(bench.get("b").await.unwrap(), b"was a", "{steps} {journaled}");
            assert!(bench.head("h").await.is_none());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_go_together() {
    let bench = Bench::new();
    let moves = bench.start();
    let tree = bench.fill("d/", 2000).await;
    bench.put("d/stays", b"x").await;
    for (rest, etag) in &tree {
        let known = Known { etag: etag.clone(), stored: None };
        moves.delete_later(&key(&format!("d/{rest}")), &known).await.unwrap();
        assert!(moves.hides(format!("d/{rest}").trim_end_matches('/')));
    }
    assert!(!moves.hides("d/stays") && moves.is_clear("e/") && moves.is_clear("d/stays"));
    within(moves.wait_clear("d/")).await.unwrap();
    println!("2000 deletions: {} requests", bench.requests("DeleteMultipleObjects"));
    assert!(bench.requests("DeleteMultipleObjects") <= 4);
    assert_eq!(bench.tree("d/").await.into_keys().collect::<Vec<_>>(), ["stays"]);
    assert_eq!(bench.journals(), 0);
    assert!(within(moves.drain()).await.is_empty());
    moves.stop().await;
}

/// Deletions of these objects as a killed process leaves them.
fn deletion_lines<'a>(objects: impl IntoIterator<Item = (String, &'a ETag)>) -> Vec<MoveRecord> {
    let mut lines = vec![MoveRecord::Deletions { format: 1, boot_id: boot_id(), at: 0 }];
    lines.extend(objects.into_iter().map(|(name, etag)| MoveRecord::Delete {
        key: key(&name),
        etag: etag.clone(),
        stored: None,
    }));
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_keys_costs_a_page_and_a_batch_per_thousand() {
    let bench = Bench::new();
    let tree = bench.fill("d/", 2500).await;
    bench.put("c", b"before").await;
    bench.put("e", b"behind").await;
    let requests = || ["ListObjects", "DeleteMultipleObjects", "HeadObject", "DeleteObject"].map(|c| bench.requests(c));
    let before = requests();
    let told = bench.recover(&deletion_lines(tree.iter().map(|(rest, etag)| (format!("d/{rest}"), etag)))).await;
    let spent: Vec<u64> = requests().iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(spent, [3, 3, 0, 0], "pages, batches, HEADs, single deletes");
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(bench.tree("").await.into_keys().collect::<Vec<_>>(), ["c", "e"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_lie_far_apart_cost_at_most_two_requests_each() {
    let bench = Bench::new();
    let tree = bench.fill("d/", 1000).await;
    let far: Vec<(&String, &ETag)> = tree.iter().step_by(50).collect();
    let before = bench.requests_all();
    let told = bench.recover(&deletion_lines(far.iter().map(|(rest, etag)| (format!("d/{rest}"), *etag)))).await;
    let spent = bench.requests_all() - before;
    println!("{} keys of {}: {spent} requests", far.len(), tree.len());
    assert!(spent <= 2 * far.len() as u64, "{spent} requests for {} keys", far.len());
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(bench.tree("d/").await.len(), tree.len() - far.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_that_were_not_sent_are_made_up_for_if_the_object_is_the_same() {
    let bench = Bench::new();
    let (a, b) = (bench.put("a", b"a").await, bench.put("b", b"b").await);
    let gone = bench.put("gone", b"gone").await;
    let mut lines = vec![MoveRecord::Deletions { format: 1, boot_id: boot_id(), at: 0 }];
    for (name, object) in [("a", &a), ("b", &b), ("gone", &gone)] {
        lines.push(MoveRecord::Delete { key: key(name), etag: object.etag.clone(), stored: None });
    }
    bench.client.remove_object(&key("gone"), None, |_| true).await.unwrap();
    bench.put("b", b"written by somebody else since").await;
    let told = bench.recover(&lines).await;
    assert_eq!((told.len(), told[0].state.as_str(), told[0].key.as_str()), (1, "conflict", "b"), "{told:?}");
    assert_eq!(bench.tree("").await.into_keys().collect::<Vec<_>>(), ["b"]);

    // After a reboot an object whose time is not known may be a later one.
    let again = bench.put("a", b"a").await;
    let lines = [
        MoveRecord::Deletions { format: 1, boot_id: "another boot".into(), at: 0 },
        MoveRecord::Delete { key: key("a"), etag: again.etag, stored: None },
    ];
    let told = bench.recover(&lines).await;
    assert_eq!((told.len(), told[0].key.as_str()), (1, "a"), "{told:?}");
    assert!(bench.head("a").await.is_some());
}
