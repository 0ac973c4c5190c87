//! Every call of the client against the embedded server, which checks signatures, conditions and sizes.

use std::sync::Arc;

use bytes::Bytes;

use super::client::{Body, BosClient, BosClientConfig, ObjectHeaders, PageAt, Removed, RequestCounts};
use super::credentials::StaticCredentials;
use super::error::BosErrorKind;
use super::header_text::from_wire;
use super::sign::Credentials;
use crate::object::{ByteRange, Checksum, Condition, ETag, Md5, ObjectKey, PartNumber};
use crate::serve::{ServeOptions, Server, ServerHandle};

struct Bench {
    _dir: tempfile::TempDir,
    server: ServerHandle,
    client: BosClient,
}

fn client(server: &ServerHandle, bucket: &str, credentials: Credentials) -> BosClient {
    let credentials = Arc::new(StaticCredentials::new(credentials));
    BosClient::new(BosClientConfig::new(server.endpoint(), bucket, credentials)).unwrap()
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(ServeOptions::new(dir.path())).unwrap();
    let client = client(&server, "bkt", server.credentials().clone());
    assert_eq!(client.head_bucket().await.unwrap_err().kind, BosErrorKind::NoSuchBucket);
    assert!(client.create_bucket().await.unwrap());
    assert!(!client.create_bucket().await.unwrap());
    Bench { _dir: dir, server, client }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

impl Bench {
    async fn put(&self, name: &str, bytes: &[u8], condition: &Condition) -> Result<ETag, BosErrorKind> {
        let headers = ObjectHeaders {
            content_type: Some("text/x-odd".to_owned()),
            cache_control: Some("no-store".to_owned()),
            metadata: [("a".to_owned(), "1".to_owned()), ("a-b".to_owned(), "2 3".to_owned())].into(),
            ..ObjectHeaders::default()
        };
        let body = Body::Bytes(Bytes::copy_from_slice(bytes));
        let stored = self.client.put_object(&key(name), body, &Md5::of(bytes), &headers, condition).await;
        let stored = stored.map_err(|error| error.kind)?;
        let sum = Checksum::of(bytes);
        assert!(stored.etag.is_md5(&sum.md5));
        assert_eq!(stored.crc32c, Some(sum.crcs.crc32c), "asked for by the flag");
        Ok(stored.etag)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_put_read_copied_and_deleted() {
    let bench = bench().await;
    let client = &bench.client;
    for name in ["a", "目录 1/a+b%c d.bin", "x?y#z/[q]|^\\", "\"'`{}<>~!@$&()=;:,*", "dir/", "%2e"] {
        let etag = bench.put(name, b"0123456789", &Condition::Absent).await.unwrap();
        let meta = client.head_object(&key(name)).await.unwrap();
        assert_eq!((meta.size, &meta.etag), (10, &etag), "{name}");
        assert_eq!(meta.headers.content_type.as_deref(), Some("text/x-odd"));
        assert_eq!(meta.headers.metadata.len(), 2);
        assert!(meta.last_modified > 1_700_000_000);
        let bytes = client.get_range(&key(name), ByteRange::new(3, 7), Some(&etag)).await.unwrap();
        assert_eq!(bytes, "3456");
    }
    let again = bench.put("a", b"x", &Condition::Absent).await;
    assert_eq!(again.unwrap_err(), BosErrorKind::PreconditionFailed);
    let other = Some(ETag::new("other"));
    let error = client.get_range(&key("a"), ByteRange::new(0, 1), other.as_ref()).await.unwrap_err();
    assert_eq!(error.kind, BosErrorKind::PreconditionFailed);
    let error = client.get_range(&key("a"), ByteRange::new(50, 51), None).await.unwrap_err();
    assert_eq!(error.kind, BosErrorKind::InvalidRange);
    let object = client.get_object(&key("a"), Some(ByteRange::new(8, 100)), None).await.unwrap();
    assert_eq!((object.range, object.meta.size), (ByteRange::new(8, 10), 10));
    let error = client.get_object(&key("none"), None, None).await.err().unwrap();
    assert_eq!(error.kind, BosErrorKind::NoSuchKey);

    let meta = client.head_object(&key("a")).await.unwrap();
    let copied = client.copy_object(&key("a"), Some(&meta.etag), &key("b c"), None).await.unwrap();
    assert_eq!(copied.etag, meta.etag);
    assert!(copied.last_modified.is_some() && copied.date.is_some(), "{copied:?}");
    assert_eq!(client.head_object(&key("b c")).await.unwrap().headers, meta.headers);
    let replaced = ObjectHeaders { content_type: Some("x/y".to_owned()), ..ObjectHeaders::default() };
    client.copy_object(&key("a"), Some(&meta.etag), &key("a"), Some(&replaced)).await.unwrap();
    let after = client.head_object(&key("a")).await.unwrap().headers;
    assert_eq!((after.content_type.as_deref(), after.metadata.len()), (Some("x/y"), 0));

    let other = client.remove_object(&key("a"), None, |head| head.size == 11).await.unwrap();
    assert!(matches!(other, Removed::Other(head) if head.etag == meta.etag), "left alone");
    assert!(client.head_object(&key("a")).await.is_ok());
    assert_eq!(client.remove_object(&key("a"), None, |_| true).await.unwrap(), Removed::Gone);
    assert_eq!(client.remove_object(&key("a"), None, |_| panic!("nothing is there")).await.unwrap(), Removed::Gone);
    let at = PageAt { prefix: String::new(), marker: None, keys_max: 1000 };
    let removed = client.remove_page(&at, None, |object| object.key != "stays").await.unwrap();
    assert!(removed.failures.is_empty() && removed.page.objects.len() > 1, "{removed:?}");
    assert_eq!(client.head_object(&key("b c")).await.unwrap_err().kind, BosErrorKind::NoSuchKey);
    assert_eq!(client.head_object(&key("dir/")).await.unwrap_err().kind, BosErrorKind::NoSuchKey);
    let RequestCounts { head, put, .. } = client.requests_sent();
    assert!(head > 0 && put > 0);
}

/// What other programs stored is stored again with the same bytes: UTF-8 as it is, and what is not even that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_other_programs_go_back_byte_for_byte_and_their_signatures_hold() {
    let bench = bench().await;
    let gbk = from_wire(b"attachment; filename=\xc4\xbf\xc2\xbc.txt");
    let metadata = [("raw", "目录 100%"), ("encoded", "%E7%9B%AE"), ("blank", "\u{3000}x\u{3000}")];
    let headers = ObjectHeaders {
        content_type: Some("text/plain; name=é".to_owned()),
        content_disposition: Some(gbk.clone()),
        metadata: metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..ObjectHeaders::default()
    };
    let mut headers = headers;
    headers.metadata.insert("gbk".to_owned(), from_wire(b"\xc4\xbf"));
    let body = Body::Bytes(Bytes::from_static(b"x"));
    let client = &bench.client;
    client.put_object(&key("k"), body, &Md5::of(b"x"), &headers, &Condition::Any).await.unwrap();
    let seen = client.head_object(&key("k")).await.unwrap().headers;
    assert_eq!(seen.content_disposition, Some(gbk));
    assert_eq!(seen.metadata, headers.metadata);
    assert_eq!(seen.content_type, headers.content_type);
    client.copy_object(&key("k"), None, &key("k"), Some(&seen)).await.unwrap();
    assert_eq!(client.head_object(&key("k")).await.unwrap().headers, seen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_page_with_and_without_a_delimiter() {
    let bench = bench().await;
    let names = ["dir0/dir1/k", "dir0/k0", "dir0/k1", "dir1/k", "dir3/k", "k", "目/录"];
    for name in names {
        bench.put(name, b"", &Condition::Any).await.unwrap();
    }
    for (delimiter, expected) in [(None, names.to_vec()), (Some('/'), vec!["dir0/", "dir1/", "dir3/", "k", "目/"])] {
        for page_keys in [1, 2, 1000] {
            let (mut found, mut marker) = (Vec::new(), None);
            loop {
                let page = bench.client.list_objects("", delimiter, marker.as_deref(), page_keys).await.unwrap();
                found.extend(page.objects.into_iter().map(|object| object.key));
                found.extend(page.prefixes);
                marker = page.next_marker;
                if marker.is_none() {
                    break;
                }
            }
            found.sort();
            assert_eq!(found, expected, "{delimiter:?} {page_keys}");
        }
    }
    let page = bench.client.list_objects("dir0/", Some('/'), None, 1000).await.unwrap();
    assert_eq!((page.objects.len(), page.prefixes), (2, vec!["dir0/dir1/".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_sent_and_copied_parts_is_listed_completed_and_aborted() {
    let bench = bench().await;
    let client = &bench.client;
    let source = vec![7u8; 300_000];
    let etag = bench.put("src", &source, &Condition::Any).await.unwrap();
    let target = key("目录/big 1+.bin");
    let headers = ObjectHeaders {
        content_type: Some("video/mp4".to_owned()),
        metadata: [("m".to_owned(), "v".to_owned())].into(),
        ..ObjectHeaders::default()
    };
    let upload = client.initiate(&target, &headers).await.unwrap();
    let (one, two) = (PartNumber::FIRST, PartNumber::new(5).unwrap());
    let range = ByteRange::new(1000, 201_000);
    let copied = client.upload_part_copy(&target, &upload, one, &key("src"), range, Some(&etag)).await.unwrap().etag;
    let tail = Bytes::from_static(b"tail");
    let wrong = client.upload_part(&target, &upload, two, Body::Bytes(tail.clone()), &Md5::of(b"else")).await;
    assert_eq!(wrong.unwrap_err().kind, BosErrorKind::BadDigest);
    let sent = client.upload_part(&target, &upload, two, Body::Bytes(tail.clone()), &Md5::of(&tail)).await.unwrap();
    let parts = client.list_parts(&target, &upload).await.unwrap();
    assert_eq!(parts.iter().map(|part| (part.number.get(), part.size)).collect::<Vec<_>>(), [(1, 200_000), (5, 4)]);
    let page = client.list_uploads("目录/", None).await.unwrap();
    assert_eq!((page.uploads.len(), page.uploads[0].upload_id.clone(), page.next), (1, upload.clone(), None));

    let missing = [(one, copied.clone()), (PartNumber::new(2).unwrap(), copied.clone())];
    let error = client.complete(&target, &upload, &missing, &headers, &Condition::Any).await.unwrap_err();
    assert_eq!((error.kind, error.is_ambiguous()), (BosErrorKind::InvalidPart, false));
    let listed = [(one, copied), (two, sent.etag)];
    let stored = client.complete(&target, &upload, &listed, &headers, &Condition::Absent).await.unwrap();
    let meta = client.head_object(&target).await.unwrap();
    assert_eq!(
        (meta.size, &meta.etag, meta.headers.content_type.as_deref()),
        (200_004, &stored.etag, Some("video/mp4"))
    );
    assert_eq!(meta.headers.metadata["m"], "v");
    let again = client.complete(&target, &upload, &listed, &headers, &Condition::Any).await.unwrap_err();
    assert_eq!(again.kind, BosErrorKind::NoSuchUpload);
    assert!(!client.abort(&target, &upload).await.unwrap());
    let second = client.initiate(&target, &headers).await.unwrap();
    assert!(client.abort(&target, &second).await.unwrap());
    assert_eq!(client.list_parts(&target, &second).await.unwrap_err().kind, BosErrorKind::NoSuchUpload);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bucket_tells_where_it_is_and_who_may_not_in() {
    let bench = bench().await;
    assert!(!bench.client.head_bucket().await.unwrap().hierarchical);
    assert_eq!(bench.client.location().await.unwrap(), "bj");
    assert_eq!(bench.client.abort_rule_days("a/").await.unwrap(), None);
    let nowhere = client(&bench.server, "nowhere", bench.server.credentials().clone());
    let error = nowhere.list_objects("", None, None, 1).await.unwrap_err();
    assert_eq!(error.kind, BosErrorKind::NoSuchBucket);
    assert!(error.to_string().contains("bucket nowhere is not at http://127.0.0.1"), "{error}");
    let wrong = Credentials { secret_access_key: "wrong".to_owned(), ..bench.server.credentials().clone() };
    let error = client(&bench.server, "bkt", wrong).list_objects("", None, None, 1).await.unwrap_err();
    assert_eq!((error.kind, error.errno(), error.tries()), (BosErrorKind::Denied, libc::EACCES, 2));
    assert!(error.to_string().contains("--credentials"), "{error}");

    bench.put("目 1+.bin", b"linked", &Condition::Any).await.unwrap();
    let link = bench.client.presign_get(&key("目 1+.bin"), 60);
    assert_eq!(reqwest::get(link).await.unwrap().text().await.unwrap(), "linked");
}
