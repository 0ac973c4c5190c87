//! The upload engine against the embedded server, without a mount: requests are counted at the server.

#[path = "engine/interrupted.rs"]
mod interrupted;
#[path = "engine/lost_lines.rs"]
mod lost_lines;
#[path = "engine/publications.rs"]
mod publications;
#[path = "engine/random.rs"]
mod random;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bosfs::bos::client::ObjectHeaders;
use bosfs::bos::credentials::StaticCredentials;
use bosfs::bos::{BosClient, BosClientConfig, BosErrorKind};
use bosfs::journal::StateDir;
use bosfs::journal::state_dir::Identity;
use bosfs::object::{BaseObject, Condition, FileAttrs, ObjectKey, Timestamp};
use bosfs::serve::{ServeOptions, Server, ServerHandle};
use bosfs::upload::{DirtyFile, InterruptedPolicy, Opening, UploadOptions, Uploads, WriteError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

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
            file.wait_writable(piece.len() as u64).await.unwrap();
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
    for _ in 0..6000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within 30 s: {what}");
}

fn gone(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("uploads")).unwrap().count() == 0
}
