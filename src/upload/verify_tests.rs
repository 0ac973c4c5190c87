//! Verification against the embedded server, as it answers by default and with fewer checksums.

use bytes::Bytes;

use super::*;
use crate::bos::client::{Body, BosClientConfig, ObjectHeaders};
use crate::bos::credentials::StaticCredentials;
use crate::object::{Condition, PartNumber};
use crate::serve::{ServeOptions, Server, ServerHandle, Variants};

pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: ServerHandle,
    pub(crate) client: BosClient,
}

impl Bench {
    pub(crate) fn new(variants: Variants) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = ServeOptions { faithful_variants: variants, ..ServeOptions::new(dir.path().join("bos")) };
        let server = Server::start(options).unwrap();
        server.create_bucket("bkt").unwrap();
        let credentials = Arc::new(StaticCredentials::new(server.credentials().clone()));
        let client = BosClient::new(BosClientConfig::new(server.endpoint(), "bkt", credentials)).unwrap();
        Self { dir, server, client }
    }

    pub(crate) fn file(&self, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.dir.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    async fn put(&self, bytes: &[u8]) {
        let body = Body::Bytes(Bytes::copy_from_slice(bytes));
        let headers = ObjectHeaders::default();
        self.client.put_object(&key(), body, &Md5::of(bytes), &headers, &Condition::Any).await.unwrap();
    }

    async fn compose(&self, bytes: &[u8], part_bytes: usize) {
        let headers = ObjectHeaders::default();
        let upload = self.client.initiate(&key(), &headers).await.unwrap();
        let mut parts = Vec::new();
        for (i, piece) in bytes.chunks(part_bytes).enumerate() {
            let number = PartNumber::new(i as u32 + 1).unwrap();
            let body = Body::Bytes(Bytes::copy_from_slice(piece));
            let stored = self.client.upload_part(&key(), &upload, number, body, &Md5::of(piece)).await.unwrap();
            parts.push((number, stored.etag));
        }
        self.client.complete(&key(), &upload, &parts, &headers, &Condition::Any).await.unwrap();
    }

    async fn verify(&self, path: &Path, download: bool) -> (Verdict, String) {
        let options = VerifyOptions { download, ..VerifyOptions::default() };
        let report = verify(&self.client, &key(), Some(path), None, &options).await.unwrap();
        (report.verdict, report.compared)
    }
}

pub(crate) fn key() -> ObjectKey {
    ObjectKey::parse("目录 1/a+b%c d.bin").unwrap()
}

pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

const PROVED: Verdict = Verdict::Proof(Proof::Proved);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checksum_from_bos_proves_or_disproves_without_a_download() {
    let bench = Bench::new(Variants::default());
    let mut bytes = noise(3_000_000);
    bench.put(&bytes).await;
    let path = bench.file(&bytes);
    assert_eq!(bench.verify(&path, false).await, (PROVED, "CRC32C".to_owned()));
    bytes[1_234_567] ^= 1;
    let path = bench.file(&bytes);
    assert!(matches!(bench.verify(&path, false).await, (Verdict::Mismatch(_), compared) if compared == "CRC32C"));
    let path = bench.file(&bytes[1..]);
    assert!(matches!(bench.verify(&path, false).await, (Verdict::Mismatch(_), compared) if compared == "size"));
    assert!(!bench.server.counts().contains_key("GetObject"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_md5_or_the_etag_rule_stands_in_for_missing_checksums() {
    let bench = Bench::new(Variants { no_crc_headers: true, ..Variants::default() });
    let bytes = noise(11 << 20);
    let path = bench.file(&bytes);
    bench.put(&bytes).await;
    assert_eq!(bench.verify(&path, false).await, (PROVED, "MD5".to_owned()));
    for mib in [8, 5, 10] {
        bench.compose(&bytes, mib << 20).await;
        let (verdict, compared) = bench.verify(&path, false).await;
        assert_eq!(verdict, Verdict::Proof(Proof::Composed));
        assert!(compared.ends_with(&format!("parts of {} bytes", mib << 20)), "{compared}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_checksum_only_a_download_tells() {
    let variants = Variants { no_crc_headers: true, opaque_composed_etags: true, ..Variants::default() };
    let bench = Bench::new(variants);
    let mut bytes = noise(6 << 20);
    bench.compose(&bytes, 5 << 20).await;
    let path = bench.file(&bytes);
    assert!(matches!(bench.verify(&path, false).await.0, Verdict::Unknown(advice) if advice.contains("--download")));
    assert_eq!(bench.verify(&path, true).await, (PROVED, "every byte".to_owned()));
    let crcs = Checksum::of(&bytes).crcs;
    let options = VerifyOptions { download: true, ..VerifyOptions::default() };
    let size = bytes.len() as u64;
    let report = verify(&bench.client, &key(), None, Some((crcs, size)), &options).await.unwrap();
    assert_eq!(report.verdict, PROVED);
    bytes[5_500_000] ^= 8;
    let path = bench.file(&bytes);
    let mismatch = Verdict::Mismatch("byte 5500000 differs (counted from 0)".to_owned());
    assert_eq!(bench.verify(&path, true).await.0, mismatch);
    let crcs = Checksum::of(&bytes).crcs;
    let report = verify(&bench.client, &key(), None, Some((crcs, size)), &options).await.unwrap();
    assert!(matches!(report.verdict, Verdict::Mismatch(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journals_record_is_compared_without_any_file() {
    let bench = Bench::new(Variants::default());
    let bytes = noise(1000);
    bench.put(&bytes).await;
    let record = Some((Checksum::of(&bytes).crcs, 1000));
    let options = VerifyOptions::default();
    assert_eq!(verify(&bench.client, &key(), None, record, &options).await.unwrap().verdict, PROVED);
    assert!(matches!(
        verify(&bench.client, &key(), None, None, &options).await,
        Err(VerifyError::NothingToCompareWith(_))
    ));
    let missing = ObjectKey::parse("missing").unwrap();
    let error = verify(&bench.client, &missing, None, record, &options).await.unwrap_err();
    assert!(matches!(error, VerifyError::Bos(error) if error.kind == BosErrorKind::NoSuchKey));
}

#[test]
fn cuts_cover_the_file_and_come_once() {
    for size in [1, 5 << 20, (5 << 20) + 1, 1 << 30, 100 << 30] {
        let cuts = likely_cuts(size);
        for cut in &cuts {
            assert!(cut.len() > 1);
            assert_eq!(cut.iter().map(ByteRange::len).sum::<u64>(), size);
        }
        assert!(cuts.iter().enumerate().all(|(i, cut)| !cuts[..i].contains(cut)));
    }
    assert!(likely_cuts(0).is_empty());
}
