//! What a restart of the machine leaves: only synced bytes and parts that BOS holds are trusted.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bosfs::bos::client::ObjectHeaders;
use bosfs::bos::credentials::StaticCredentials;
use bosfs::bos::{BosClient, BosClientConfig};
use bosfs::journal::StateDir;
use bosfs::journal::state_dir::Identity;
use bosfs::object::{Condition, FileAttrs, ObjectKey, Timestamp};
use bosfs::serve::{ServeOptions, Server};
use bosfs::upload::{InterruptedPolicy, Opening, UploadOptions, Uploads, WriterEnd};

const PART: u64 = 5 << 20;

fn options(write_back: bool, rate: Option<u64>) -> UploadOptions {
    UploadOptions {
        part_bytes: PART,
        uploads_max: 2,
        write_back,
        fsync_bos: false,
        interrupted: InterruptedPolicy::Keep,
        timeout: Some(Duration::from_secs(30)),
        overwrite_on_conflict: false,
        adopt: false,
        punch: true,
        spool_limit_bytes: None,
        rate_bytes_per_s: rate,
        storage_class: None,
    }
}

fn opening(key: &str) -> Opening {
    Opening {
        key: ObjectKey::parse(key).unwrap(),
        base: None,
        condition: Condition::Absent,
        headers: ObjectHeaders::default(),
        attrs: FileAttrs { mode: 0o100_600, uid: 0, gid: 0, mtime: Timestamp::default() },
        created: true,
        temporary: None,
    }
}

/// After a reboot a file that was neither closed nor synced is as long as the parts that BOS holds; what the disk lost
/// of them reads as an error and never as zeros, and writing the file again keeps these parts.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_only_synced_and_sent_bytes_are_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(ServeOptions::new(dir.path().join("bos"))).unwrap();
    server.create_bucket("bkt").unwrap();
    let credentials = Arc::new(StaticCredentials::new(server.credentials().clone()));
    let client = BosClient::new(BosClientConfig::new(server.endpoint(), "bkt", credentials)).unwrap();
    let state = dir.path().join("state");
    let start = |options: UploadOptions, boot: &str| {
        let identity = Identity { endpoint: server.endpoint(), bucket: "bkt".into(), prefix: String::new() };
        let state = Arc::new(StateDir::open(&state, &identity).unwrap());
        Uploads::start_in_boot(options, client.clone(), state, boot.into()).unwrap()
    };
    let content: Vec<u8> = (0..4 * PART as u32 + 10_000).map(|i| (i ^ (i >> 11)) as u8).collect();

    // A synced, closed file; an interrupted one of which BOS holds two parts; one with nothing but unsynced bytes.
    let uploads = start(options(true, Some(PART)), "first boot");
    let synced = uploads.open(opening("synced")).unwrap();
    synced.add_writer().unwrap();
    synced.write(0, &content).unwrap();
    synced.publish().await.unwrap();
    synced.remove_writer(WriterEnd::Closed);
    uploads.stop().await;
    drop((synced, uploads));
    let uploads = start(options(false, None), "first boot");
    assert!(uploads.drain().await.is_empty());
    let half = uploads.open(opening("half")).unwrap();
    half.add_writer().unwrap();
    half.write(0, &content[..2 * PART as usize + 5000]).unwrap();
    while half.status(false).parts_in_bos < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lost = uploads.open(opening("lost")).unwrap();
    lost.add_writer().unwrap();
    lost.write(0, &content[..5000]).unwrap();
    let half_dir = half.dir().unwrap();
    uploads.stop().await;
    drop((half, lost, uploads));
    // What never reached the disk is zeros after the power came back.
    let spool = std::fs::File::options().write(true).open(half_dir.join("spool")).unwrap();
    spool.write_all_at(&vec![0; PART as usize], PART).unwrap();

    let uploads = start(options(false, None), "second boot");
    let find = |key: &str| uploads.find(&ObjectKey::parse(key).unwrap());
    let half = find("half").unwrap();
    assert_eq!(half.size(), 2 * PART, "the bytes behind the sent parts may be missing");
    assert_eq!(half.read(PART - 10, 10).unwrap().bytes, content[PART as usize - 10..PART as usize]);
    assert!(half.read(PART, 10).is_err(), "a part that BOS holds and the disk lost is not read as zeros");
    assert_eq!(find("lost").map(|lost| lost.size()), Some(0));

    half.add_writer().unwrap();
    half.truncate(0).unwrap();
    half.write(0, &content).unwrap();
    half.publish().await.unwrap();
    assert_eq!(half.status(false).parts_kept, 2);
    let meta = client.head_object(&half.key()).await.unwrap();
    let of_synced = client.head_object(&ObjectKey::parse("synced").unwrap()).await.unwrap();
    assert_eq!((meta.size, meta.crc32c), (content.len() as u64, of_synced.crc32c));
    uploads.stop().await;
}
