//! A server that lies about uploads: nothing wrong is published for it, and the bytes are kept until it tells the truth.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bosfs::bos::{BosClient, BosClientConfig, BosErrorKind, Credentials, StaticCredentials};
use bosfs::object::{ObjectKey, UploadId};
use serde_json::json;

use crate::support::files::md5_of_file;
use crate::support::hostile::{Hostile, Raw};
use crate::support::mounted::{SlowWriter, cp, run};
use crate::support::{BUCKET, Call, Mounted, World};
use crate::{WAIT, spec_at};

const SIZE: u64 = 12 << 20;
const ARGS: [&str; 6] = ["--part-size", "5MiB", "--memory-limit", "32MiB", "--timeout", "3s"];

fn world() -> (World, Hostile, std::path::PathBuf) {
    let world = World::new();
    let hostile = Hostile::start(world.server.addr(), |_| None).unwrap();
    let source = world.random_file("source", 7, SIZE);
    (world, hostile, source)
}

/// The server tells the truth again: after a remount and another copy the object is what the file is, by its bytes.
fn ends_well(world: &World, hostile: &Hostile, mount: &mut Mounted, source: &Path) {
    hostile.behave();
    assert!(!mount.log_text().contains("panicked"), "{}", mount.log_text());
    mount.remount().unwrap();
    let output = cp(source, mount.path("big"), WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    assert_eq!(world.bucket.get_md5("big").unwrap(), (md5_of_file(source).unwrap(), SIZE));
}

/// Lists of parts that no honest server gives.
fn impossible_lists() -> Vec<serde_json::Value> {
    let part = |number: i64, size: i64, etag: &str| json!({"partNumber": number, "size": size, "eTag": etag});
    let md5 = "5f363e0e58a95f06cbe9bbc662c5dfb6";
    vec![
        json!([part(0, 5 << 20, md5)]),
        json!([part(10_001, 5 << 20, md5)]),
        json!([part(1, 5 << 20, md5), part(1, 5 << 20, md5)]),
        json!([part(2, 5 << 20, md5), part(1, 5 << 20, md5)]),
        json!([part(-1, 5 << 20, md5)]),
        json!([part(1, -1, md5)]),
        json!([part(1, 5 << 20, &"e".repeat(1 << 20))]),
        json!([part(1, 5 << 20, "a\"\r\nb")]),
    ]
}

#[test]
fn lists_of_impossible_parts_are_refused() {
    let (world, hostile, _source) = world();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let keys = world.server.keys();
    let credentials = StaticCredentials::new(Credentials::new(keys.access_key, keys.secret_key));
    let mut config = BosClientConfig::new(hostile.endpoint(), BUCKET, Arc::new(credentials));
    config.retry.tries_max = 2;
    let client = BosClient::new(config).unwrap();
    let key = ObjectKey::parse("big").unwrap();
    for (i, parts) in impossible_lists().into_iter().enumerate() {
        let page = json!({"bucket": "bkt", "key": "big", "isTruncated": false, "parts": parts});
        let shown: String = page.to_string().chars().take(200).collect();
        hostile.answer_by(move |asked| (asked.call == Call::ListParts).then(|| Raw::json(&page)));
        let error = runtime.block_on(client.list_parts(&key, &UploadId::new("u"))).expect_err(&shown);
        assert_eq!(error.kind, BosErrorKind::BadAnswer, "{shown}: {error}");
        assert!(error.to_string().len() < 2000, "{shown}: an error of {} bytes", error.to_string().len());
        assert!(hostile.hits() >= 2 * (i as u64 + 1));
    }
}

#[test]
fn an_interrupted_copy_survives_lies_about_its_parts() {
    let (world, hostile, source) = world();
    let mut mount = spec_at(&world, &hostile, &ARGS).mount().unwrap();
    let mut writer = SlowWriter::start(&mount.path("big"));
    writer.feed(&source, 11 << 20).unwrap();
    let parts = || {
        let uploads = world.bucket.uploads("big").unwrap();
        uploads.first().map_or(0, |upload| world.bucket.parts("big", &upload.upload_id).unwrap().len())
    };
    let end = Instant::now() + WAIT;
    while parts() < 2 {
        assert!(Instant::now() < end, "no two parts arrived: {}", mount.log_text());
        std::thread::sleep(Duration::from_millis(20));
    }
    mount.kill();
    drop(writer);
    // Sizes whose sum no number holds, and numbers that no part has.
    let parts: Vec<_> = (1..=3).map(|n| json!({"partNumber": n, "size": i64::MAX, "eTag": "e"})).collect();
    let lists = [json!(parts), impossible_lists()[2].clone(), impossible_lists()[0].clone()];
    for parts in lists {
        let before = hostile.hits();
        let shown = parts.to_string();
        let page = json!({"bucket": "bkt", "key": "big", "isTruncated": false, "parts": parts});
        hostile.answer_by(move |asked| (asked.call == Call::ListParts).then(|| Raw::json(&page)));
        let output = run(&mut mount.command(&["uploads", "list", BUCKET]), WAIT);
        assert!(output.status.success(), "{shown}: {output:?}");
        assert!(hostile.hits() > before, "{shown}: the parts were not asked for");
        assert!(world.bucket.head("big").unwrap().is_none(), "{shown}: published");
    }
    // A mount that recovers meanwhile answers all the same, and publishes nothing.
    mount.remount().unwrap();
    let path = mount.path("big");
    assert!(crate::timed(move || std::fs::metadata(path)).unwrap().len() >= 10 << 20);
    assert!(world.bucket.head("big").unwrap().is_none());
    ends_well(&world, &hostile, &mut mount, &source);
}

#[test]
fn upload_ids_and_etags_of_no_form_publish_nothing_wrong() {
    let (world, hostile, source) = world();
    let mut mount = spec_at(&world, &hostile, &ARGS).mount().unwrap();
    let long = "i".repeat(1 << 20);
    let ids = ["", "../../../tmp/x\n", "a\r\nHost: elsewhere", long.as_str()];
    for id in ids {
        let shown: String = id.chars().take(20).collect();
        let before = hostile.hits();
        let answer = json!({"bucket": "bkt", "key": "big", "uploadId": id});
        hostile.answer_by(move |asked| (asked.call == Call::Initiate).then(|| Raw::json(&answer)));
        let output = cp(&source, mount.path("big"), WAIT);
        assert!(!output.status.success(), "{shown:?} was taken for an upload");
        assert!(hostile.hits() > before, "{shown:?}: nothing was initiated");
        assert!(world.bucket.head("big").unwrap().is_none(), "{shown:?}: published");
    }
    for etag in ["", "\"\"", "no-md5", "\"a\", \"b\"", "*"] {
        let before = hostile.hits();
        hostile.answer_by(move |asked| {
            (asked.call == Call::UploadPart).then(|| Raw::answer("200 OK", &[("ETag", etag)], ""))
        });
        let output = cp(&source, mount.path("big"), WAIT);
        assert!(!output.status.success(), "{etag:?} was taken for a part");
        assert!(hostile.hits() > before, "{etag:?}: no part was sent");
        assert!(world.bucket.head("big").unwrap().is_none(), "{etag:?}: published");
    }
    ends_well(&world, &hostile, &mut mount, &source);
}

/// A server that only claims a completion is not believed: `cp` fails, the key stays empty, and the copy ends well once
/// the server behaves.
#[test]
fn a_completion_that_is_only_claimed_is_no_publication() {
    let (world, hostile, source) = world();
    let mut mount = spec_at(&world, &hostile, &ARGS).mount().unwrap();
    let bodies = [
        json!({"eTag": ""}),
        json!({"eTag": "\"\""}),
        json!({"eTag": "a\"\r\nb"}),
        json!({"eTag": "-5f363e0e58a95f06cbe9bbc662c5dfb6", "bucket": "other", "key": "other"}),
        json!({"code": "", "message": "fine"}),
        json!([]),
    ];
    for (i, body) in bodies.into_iter().enumerate() {
        // Each has a file of its own: the others go on behind.
        let key = format!("claimed-{i}");
        let before = hostile.hits();
        let shown = body.to_string();
        let claimed = key.clone();
        hostile
            .answer_by(move |asked| (asked.call == Call::Complete && asked.key == claimed).then(|| Raw::json(&body)));
        let output = cp(&source, mount.path(&key), WAIT);
        assert!(!output.status.success(), "{shown}: cp believes it");
        assert!(hostile.hits() > before, "{shown}: nothing was completed");
        assert!(world.bucket.head(&key).unwrap().is_none(), "{shown}: published");
    }
    ends_well(&world, &hostile, &mut mount, &source);
    // What was claimed is published rightly, or kept and told: never lost.
    let output = mount.umount(WAIT);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    for i in 0..6 {
        let key = format!("claimed-{i}");
        match world.bucket.head(&key).unwrap() {
            Some(_) => assert_eq!(world.bucket.get_md5(&key).unwrap().0, md5_of_file(&source).unwrap(), "{key}"),
            None => {
                assert!(told.contains(&key), "{key} is neither in BOS nor told: {output:?}");
                assert!(!world.journals().is_empty(), "{key} is not kept");
            }
        }
    }
}
