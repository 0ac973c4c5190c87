//! The store without HTTP: listings, restarts, parts, references.

use std::path::Path;

use super::*;
use crate::bos::client::ObjectHeaders;
use crate::object::Checksum;
use crate::serve::conditions::Conditions;
use crate::serve::headers::Digests;

/// Of the vendor's live test.
const LIVE_KEYS: [&str; 10] = [
    "dir0/dir1/key0",
    "dir0/key0",
    "dir0/key1",
    "dir1/dir2/key1",
    "dir1/dir2/key2",
    "dir1/key0",
    "dir3/key0",
    "dir3/key1",
    "dir4/key0",
    "key",
];

fn open(dir: &Path) -> Arc<Store> {
    Store::open(dir, false).unwrap()
}

/// A store with the bucket `bkt`.
fn fresh(dir: &Path) -> Arc<Store> {
    let store = open(dir);
    store.create_bucket_blocking("bkt").unwrap();
    store
}

/// The bytes as the server would have received them.
fn stored(store: &Store, bytes: &[u8]) -> Stored {
    if bytes.is_empty() {
        return Stored::Nothing;
    }
    if bytes.len() as u64 <= SMALL_BYTES_MAX {
        return Stored::Small(bytes.to_vec());
    }
    let mut new = store.files().create().unwrap();
    new.file.write_all(bytes).unwrap();
    Stored::File(new, bytes.len() as u64)
}

async fn put(store: &Store, key: &str, bytes: &[u8]) -> ObjectRecord {
    let checksum = Checksum::of(bytes);
    let object = NewObject {
        checksum,
        etag: checksum.md5.to_hex(),
        md5_shown: true,
        crc32c_shown: false,
        sha256: None,
        headers: ObjectHeaders::default(),
        stored: stored(store, bytes),
    };
    store.put_object("bkt".into(), key.into(), object, Conditions::default()).await.unwrap()
}

async fn put_part(store: &Store, key: &str, upload: &str, number: u32, bytes: &[u8]) -> (u32, String) {
    let checksum = Checksum::of(bytes);
    let etag = checksum.md5.to_hex();
    let part = NewPart { checksum, etag: etag.clone(), crc32c_shown: true, stored: stored(store, bytes) };
    store.put_part("bkt".into(), key.into(), upload.into(), number, part).await.unwrap();
    (number, etag)
}

async fn complete(store: &Store, key: &str, upload: &str, parts: &[(u32, String)]) -> Result<ObjectRecord> {
    let mut headers = http::HeaderMap::new();
    headers.insert("x-bce-content-crc32c-flag", http::HeaderValue::from_static("true"));
    let request = CompleteRequest {
        parts: parts.to_vec(),
        metadata: Default::default(),
        conditions: Conditions::default(),
        digests: Digests::of(&headers).unwrap(),
        old_part_rule: false,
        opaque_etag: false,
    };
    store.complete("bkt".into(), key.into(), upload.into(), request).await
}

/// The bytes of an object, read as GET reads them.
fn read(store: &Store, key: &str) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    let snapshot = store.snapshot().unwrap();
    let object = snapshot.object("bkt", key).unwrap();
    let mut all = Vec::new();
    for extent in snapshot.extents(&object.place, 0, object.size).unwrap() {
        let mut bytes = vec![0; extent.len as usize];
        if extent.file & SMALL_BIT != 0 {
            let at = extent.at as usize;
            bytes.copy_from_slice(&snapshot.small(extent.file).unwrap()[at..at + extent.len as usize]);
        } else if extent.file != ZEROS {
            store.files().open_file(extent.file).unwrap().read_exact_at(&mut bytes, extent.at).unwrap();
        }
        all.extend(bytes);
    }
    assert_eq!(all.len() as u64, object.size);
    all
}

fn data_files(dir: &Path) -> usize {
    let low = std::fs::read_dir(dir.join("data")).unwrap();
    low.map(|low| std::fs::read_dir(low.unwrap().path()).unwrap().count()).sum()
}

/// Rows of `refs`: what the index thinks is there.
fn references(store: &Store) -> usize {
    use redb::ReadableTableMetadata as _;
    store.snapshot().unwrap().table(tables::REFS).unwrap().len().unwrap() as usize
}

#[tokio::test]
async fn listings_answer_what_the_live_test_saw() {
    let dir = tempfile::tempdir().unwrap();
    let store = fresh(dir.path());
    for key in LIVE_KEYS {
        put(&store, key, b"x").await;
    }
    // A bucket that follows in the index must not leak into this one's listings.
    store.create_bucket_blocking("bku").unwrap();
    let list = |prefix: &str, delimiter: Option<char>, marker: &str, max: usize| {
        let query = ListQuery { prefix: prefix.into(), delimiter, marker: marker.into(), max, ..Default::default() };
        let page = store.snapshot().unwrap().list_objects("bkt", &query).unwrap();
        let keys: Vec<String> = page.entries.into_iter().map(|(key, _)| key).collect();
        (keys.join(" "), page.prefixes.join(" "), page.truncated, page.next_marker)
    };
    let is = |keys: &str, prefixes: &str, truncated, next: &str| (keys.into(), prefixes.into(), truncated, next.into());
    assert_eq!(list("dir0/", Some('/'), "", 2), is("dir0/key0", "dir0/dir1/", true, "dir0/key0"));
    assert_eq!(list("", Some('/'), "dir0/key0", 3), is("", "dir1/ dir3/ dir4/", true, "dir4/key0"));
    assert_eq!(list("", Some('/'), "dir4/key0", 3), is("key", "", false, "key"));
    assert_eq!(list("", None, "", 2), is("dir0/dir1/key0 dir0/key0", "", true, "dir0/key0"));
    assert_eq!(list("", None, "dir4/key0", 1), is("key", "", false, "key"));
    assert_eq!(list("dir3/", None, "dir3/key0", 5), is("dir3/key1", "", false, "dir3/key1"));
    assert_eq!(list("dir3/", None, "a", 1), is("dir3/key0", "", true, "dir3/key0"));
    assert_eq!(list("dir3/", None, "dir4", 5), is("", "", false, ""));
    assert_eq!(list("", Some('/'), "", 0), is("", "", false, ""));
    // Another delimiter than the slash, also the last character there is.
    let by_zero = "dir0 dir1/key0 dir3/key0 dir4/key0";
    let rest = "dir1/dir2/key1 dir1/dir2/key2 dir3/key1 key";
    assert_eq!(list("", Some('0'), "", 9), is(rest, by_zero, false, "key"));
}

#[tokio::test]
async fn a_delimiter_without_a_next_character_ends_the_listing_rightly() {
    let dir = tempfile::tempdir().unwrap();
    let store = fresh(dir.path());
    for key in ["a\u{10FFFF}1", "a\u{10FFFF}2", "b", "c\u{D7FF}x", "c\u{E000}"] {
        put(&store, key, b"").await;
    }
    for (delimiter, keys, prefixes) in [('\u{10FFFF}', 3, 1), ('\u{D7FF}', 4, 1)] {
        let query = ListQuery { delimiter: Some(delimiter), max: 10, ..Default::default() };
        let page = store.snapshot().unwrap().list_objects("bkt", &query).unwrap();
        assert_eq!((page.entries.len(), page.prefixes.len(), page.truncated), (keys, prefixes, false), "{delimiter:?}");
    }
}

#[tokio::test]
async fn an_unfinished_upload_survives_a_restart_and_nothing_unnamed_does() {
    let dir = tempfile::tempdir().unwrap();
    let (first, last) = (vec![1; 200_000], vec![2; 10]);
    let store = fresh(dir.path());
    let upload = store.initiate("bkt".into(), "k".into(), ObjectHeaders::default()).await.unwrap();
    let mut parts = vec![put_part(&store, "k", &upload, 3, &first).await];
    // A body that was received but never acknowledged, as a kill leaves it.
    store.files().create().unwrap().keep();
    drop(store);
    assert_eq!(data_files(dir.path()), 2);

    let store = open(dir.path());
    assert_eq!(data_files(dir.path()), 1);
    let page = store.snapshot().unwrap().list_parts("bkt", "k", &upload, 0, 1000).unwrap();
    assert_eq!((page.parts.len(), page.parts[0].0, page.parts[0].1.size), (1, 3, 200_000));
    parts.push(put_part(&store, "k", &upload, 9999, &last).await);
    let object = complete(&store, "k", &upload, &parts).await.unwrap();
    let whole = [first, last].concat();
    assert_eq!(read(&store, "k"), whole);
    assert_eq!((object.crcs, object.crc32c_shown), (Some(Checksum::of(&whole).crcs), true));
    assert_eq!(complete(&store, "k", &upload, &parts).await.unwrap_err().code, "NoSuchUpload");
}

#[tokio::test]
async fn complete_refuses_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = fresh(dir.path());
    let upload = store.initiate("bkt".into(), "k".into(), ObjectHeaders::default()).await.unwrap();
    let small = put_part(&store, "k", &upload, 1, &vec![1; 102_399]).await;
    let big = put_part(&store, "k", &upload, 2, &vec![2; 102_400]).await;
    let tail = put_part(&store, "k", &upload, 5, b"").await;
    let refused = async |parts: &[&(u32, String)]| {
        let parts: Vec<_> = parts.iter().map(|part| (*part).clone()).collect();
        complete(&store, "k", &upload, &parts).await.unwrap_err().code
    };
    assert_eq!(refused(&[&small, &big]).await, "EntityTooSmall");
    assert_eq!(refused(&[&tail, &big]).await, "InvalidPartOrder");
    assert_eq!(refused(&[&big, &(3, big.1.clone())]).await, "InvalidPart");
    assert_eq!(refused(&[&(2, small.1.clone())]).await, "InvalidPart");
    assert_eq!(refused(&[]).await, "MalformedJSON");
    // Gaps are fine, an empty last part too, and so is a short one alone.
    let object = complete(&store, "k", &upload, &[big, tail]).await.unwrap();
    assert_eq!(object.size, 102_400);
    // The part that was not listed is gone with the upload.
    assert_eq!(data_files(dir.path()), 1);
}

#[tokio::test]
async fn bytes_go_with_their_last_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = fresh(dir.path());
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    put(&store, "a", &bytes).await;
    let copy = async |from: &str, to: &str| {
        let pair = |key: &str| ("bkt".to_owned(), key.to_owned());
        store.copy_object(pair(from), Conditions::default(), pair(to), CopyWishes::default()).await.unwrap()
    };
    copy("a", "b").await;
    let upload = store.initiate("bkt".into(), "c".into(), ObjectHeaders::default()).await.unwrap();
    let mut parts = Vec::new();
    for number in 1..=7u32 {
        let first = u64::from(number) * 1000;
        let target = ("bkt".to_owned(), "c".to_owned(), upload.clone(), number);
        let range = Some((first, first + 149_999));
        let source = ("bkt".to_owned(), "b".to_owned());
        let part = store.copy_part(target, source, range, Conditions::default(), true, true).await.unwrap();
        assert_eq!((part.size, part.crcs), (150_000, None));
        parts.push((number, part.etag));
    }
    let object = complete(&store, "c", &upload, &parts).await.unwrap();
    assert!(matches!(object.place, Place::Row(_)), "seven extents are a row");
    assert_eq!((object.crcs, object.crc32c_shown), (None, false));
    copy("c", "d").await;
    assert_eq!(data_files(dir.path()), 1, "no byte was copied");
    let expected: Vec<u8> = (1..=7).flat_map(|n| bytes[n * 1000..n * 1000 + 150_000].to_vec()).collect();
    for key in ["a", "b", "c"] {
        assert!(store.delete_object("bkt".into(), key.into()).await.unwrap());
        assert!(!store.delete_object("bkt".into(), key.into()).await.unwrap());
    }
    assert_eq!(read(&store, "d"), expected);
    // A reader that began before keeps its bytes to the end.
    let pin = store.files().pin();
    put(&store, "d", b"small now").await;
    assert_eq!(data_files(dir.path()), 1);
    drop(pin);
    assert_eq!(data_files(dir.path()), 0);
    assert_eq!(read(&store, "d"), b"small now");
    store.delete_object("bkt".into(), "d".into()).await.unwrap();
    assert_eq!(references(&store), 0);
}

#[tokio::test]
async fn a_part_sent_again_and_an_abort_let_the_old_bytes_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = fresh(dir.path());
    let upload = store.initiate("bkt".into(), "k".into(), ObjectHeaders::default()).await.unwrap();
    put_part(&store, "k", &upload, 1, &vec![1; 200_000]).await;
    put_part(&store, "k", &upload, 1, &vec![2; 200_000]).await;
    put_part(&store, "k", &upload, 2, b"small").await;
    assert_eq!((data_files(dir.path()), references(&store)), (1, 2));
    assert_eq!(store.delete_bucket("bkt".into()).await.unwrap_err().code, "BucketNotEmpty");
    store.abort("bkt".into(), "k".into(), upload.clone()).await.unwrap();
    assert_eq!((data_files(dir.path()), references(&store)), (0, 0));
    assert_eq!(store.abort("bkt".into(), "k".into(), upload).await.unwrap_err().code, "NoSuchUpload");
    store.delete_bucket("bkt".into()).await.unwrap();
}

#[tokio::test]
async fn a_sparse_object_takes_no_room_and_can_be_a_source() {
    let dir = tempfile::tempdir().unwrap();
    let store = fresh(dir.path());
    store.put_sparse("bkt", "huge", 50 << 30).unwrap();
    let object = store.snapshot().unwrap().object("bkt", "huge").unwrap();
    assert_eq!((object.size, object.etag.starts_with('-'), object.crcs), (50 << 30, true, None));
    let upload = store.initiate("bkt".into(), "k".into(), ObjectHeaders::default()).await.unwrap();
    let copy = async |number: u32, range| {
        let target = ("bkt".to_owned(), "k".to_owned(), upload.clone(), number);
        store.copy_part(target, ("bkt".into(), "huge".into()), range, Conditions::default(), false, true).await
    };
    assert_eq!(copy(1, None).await.unwrap_err().code, "EntityTooLarge");
    assert_eq!(copy(1, Some((0, 5 << 30))).await.unwrap_err().code, "EntityTooLarge");
    assert_eq!(copy(1, Some((0, 50 << 30))).await.unwrap_err().code, "InvalidArgument");
    let part = copy(1, Some((0, (5 << 30) - 1))).await.unwrap();
    let tail = put_part(&store, "k", &upload, 2, b"tail").await;
    assert_eq!(complete(&store, "k", &upload, &[(1, part.etag), tail]).await.unwrap().size, (5 << 30) + 4);
    let big = store
        .copy_object(
            ("bkt".into(), "k".into()),
            Conditions::default(),
            ("bkt".into(), "l".into()),
            CopyWishes::default(),
        )
        .await;
    assert_eq!(big.unwrap_err().code, "EntityTooLarge");
    assert_eq!(data_files(dir.path()), 0);
}

#[tokio::test]
async fn ten_thousand_parts_complete_in_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = fresh(dir.path());
    let upload = store.initiate("bkt".into(), "k".into(), ObjectHeaders::default()).await.unwrap();
    let etag = "0".repeat(32);
    let checksum = Checksum { len: 8 << 20, ..Checksum::of(b"not really") };
    let id = upload.clone();
    let tag = etag.clone();
    store
        .write(move |tx| {
            for number in 1..=10_000 {
                let place = tx.adopt(Stored::Zeros(checksum.len))?;
                let crcs = Some(checksum.crcs);
                let etag = tag.clone();
                let part = PartRecord { size: checksum.len, etag, crcs, crc32c_shown: true, modified: 0, place };
                tx.put_part(&id, number, &part)?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let parts: Vec<_> = (1..=10_000).map(|number| (number, etag.clone())).collect();
    let begun = std::time::Instant::now();
    let object = complete(&store, "k", &upload, &parts).await.unwrap();
    let took = begun.elapsed();
    assert_eq!(object.size, 10_000 * (8 << 20));
    // Other writers wait meanwhile. Far below a client's patience even in a debug build on a busy machine.
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    println!("10,000 parts: {took:?}");
}
