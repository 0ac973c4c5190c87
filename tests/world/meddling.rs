//! The official SDK acts on our own uploads: aborts one, completes one, overwrites the object before it is proved.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::actor::{Actor, close, write};
use crate::foreign::{ForeignUploads, OTHER};
use crate::support::mounted::run;
use crate::support::{Action, Call, HoldAt, Mounted, When, World};
use crate::{
    PART, WAIT, assert_tells_all, bosfs_ok, status_text, told_error, wait_for_state, wait_no_journal, wait_until,
};

const KEY: &str = "f";

/// Runs `tests/sdk/meddle.py` against the server, past the proxy.
fn meddle(world: &World, act: &str, upload_id: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("BOSFS_TEST_PYTHON")
        .map_or_else(|| root.join("target/sdk-venv/bin/python3"), std::path::PathBuf::from);
    let keys = world.server.keys();
    let mut command = Command::new(&python);
    command
        .arg(root.join("tests/sdk/meddle.py"))
        .args([act, "bkt", KEY, upload_id])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("BOS_ENDPOINT", format!("http://{}", world.server.addr()))
        .env("BCE_ACCESS_KEY_ID", keys.access_key)
        .env("BCE_SECRET_ACCESS_KEY", keys.secret_key);
    let output = run(&mut command, WAIT);
    assert!(output.status.success(), "{} (scripts/test makes it) {act}: {output:?}", python.display());
}

/// The upload of [`KEY`] that is not among `foreign`.
fn our_upload(world: &World, foreign: &ForeignUploads) -> String {
    let uploads = world.bucket.uploads(KEY).unwrap();
    let ours: Vec<_> = uploads.iter().filter(|u| !foreign.ids().contains(&u.upload_id.as_str())).collect();
    assert_eq!(ours.len(), 1, "{uploads:?}");
    ours[0].upload_id.clone()
}

/// An upload that another tool aborts in the middle is sent anew from the spool, and `close` succeeds.
#[test]
fn an_upload_that_the_sdk_aborts_in_the_middle_goes_on_anew_from_the_spool() {
    for write_back in [false, true] {
        let world = World::new();
        let foreign = ForeignUploads::begin(&world, &[KEY]);
        let source = world.random_file("source", 1, 4 * PART + 5);
        let mut args = vec!["--part-size", "5MiB"];
        args.extend(write_back.then_some("--write-back"));
        let mount = world.mount(&args);
        let hold = world.proxy.hold(When::call(Call::UploadPart).part(4), HoldAt::BeforeForward);
        let mut actor = Actor::start();
        actor.open("f", &mount.path(KEY), "WRONLY|CREAT");
        actor.write_all("f", &source);
        actor.begin(close("f"));
        assert!(hold.wait_hit(WAIT));
        meddle(&world, "abort", &our_upload(&world, &foreign));
        hold.release();
        assert_eq!(actor.answer("close"), Ok(Value::Null), "{}", mount.log_text());
        mount.wait_settled(KEY, WAIT);
        world.assert_object_is_file(KEY, &source);
        wait_no_journal(&world);
        assert!(mount.log_text().contains("no longer has upload"), "nobody is told: {}", mount.log_text());
        foreign.assert_untouched(&world);
        assert_eq!(world.bucket.uploads(KEY).unwrap().len(), 1, "an upload of ours stays");
    }
}

/// A mount whose spool is full and of whose open file several parts are only in BOS.
fn punched(world: &World, parts: u64) -> (Mounted, Actor) {
    let source = world.random_file("source", 2, parts * PART + 5);
    let mount = world.mount(&["--part-size", "5MiB", "--spool-limit", "20MiB", "--max-uploads", "2"]);
    let mut actor = Actor::start();
    actor.open("f", &mount.path(KEY), "WRONLY|CREAT");
    actor.must(write("f", &source, 0, parts * PART));
    wait_until("the last full part is sent", || {
        mount.file_status(KEY).is_some_and(|entry| entry["parts_in_bos"].as_u64() >= Some(parts - 1))
    });
    let entry = mount.file_status(KEY).unwrap();
    assert!(entry["bytes_spooled"].as_u64().unwrap() < (parts - 2) * PART, "nothing was punched: {entry}");
    (mount, actor)
}

/// If parts that only BOS had are destroyed by an abort from outside, `close` gives EIO, `bosfs status` lists the lost
/// range, which reads as EIO and not as zeros, nothing is published, and copying the file again repairs it.
#[test]
fn bytes_that_only_an_aborted_upload_had_are_listed_as_lost_and_nothing_is_published() {
    let world = World::new();
    let foreign = ForeignUploads::begin(&world, &[KEY]);
    let (mut mount, mut actor) = punched(&world, 9);
    meddle(&world, "abort", &our_upload(&world, &foreign));
    let source = world.path("source");
    assert_eq!(actor.close("f"), Err("EIO".into()), "{}", mount.log_text());
    let entry = wait_for_state(&mount, KEY, "failed");
    let error = told_error(&entry);
    // Which bytes: a run from somewhere to somewhere.
    let (start, end) = lost_range(&error);
    assert!(start < end && end <= 8 * PART, "{error}");
    assert!(status_text(&mount).contains(&error), "status for people");
    assert_eq!(world.bucket.head(KEY).unwrap(), None, "something was published");
    foreign.assert_untouched(&world);
    // What is in the spool can be read, what is lost is an error and not zeros.
    actor.open("r", &mount.path(KEY), "RDONLY");
    let read = |at: u64| serde_json::json!({"do": "read", "as": "r", "offset": at, "len": 4096});
    assert_eq!(actor.must(read(end))["md5"], md5_of(&source, end, 4096));
    assert_eq!(actor.ask(read(start)), Err("EIO".into()));
    actor.must(close("r"));
    let output = mount.umount(WAIT);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_tells_all(&String::from_utf8_lossy(&output.stderr), KEY);
    // Another mount says the same.
    mount.remount().unwrap();
    let entry = wait_for_state(&mount, KEY, "failed");
    assert_eq!(lost_range(&told_error(&entry)), (start, end));
    assert_eq!(world.bucket.head(KEY).unwrap(), None, "something was published");
    // Written again, it is whole.
    let output = crate::support::mounted::cp(&source, mount.path(KEY), WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
    wait_no_journal(&world);
    foreign.assert_untouched(&world);
}

#[test]
fn a_writer_hears_of_lost_bytes_before_it_closes() {
    let world = World::new();
    let foreign = ForeignUploads::begin(&world, &[KEY]);
    let (mount, mut actor) = punched(&world, 9);
    meddle(&world, "abort", &our_upload(&world, &foreign));
    // The next part that is full finds out.
    let source = world.random_file("more", 3, 14 * PART);
    let given = actor.ask(write("f", &source, 9 * PART, 5 * PART));
    if given.is_ok() {
        // All of it fitted into the spool before the upload was missed.
        wait_for_state(&mount, KEY, "failed");
        assert_eq!(actor.ask(write("f", &source, 13 * PART, 10)), Err("EIO".into()));
    } else {
        assert_eq!(given, Err("EIO".into()), "{}", mount.log_text());
    }
    told_error(&wait_for_state(&mount, KEY, "failed"));
    assert_eq!(world.bucket.head(KEY).unwrap(), None);
    drop(actor);
    bosfs_ok(&mount, &["uploads", "abort", "bkt/f", "--yes"]);
    wait_no_journal(&world);
    foreign.assert_untouched(&world);
}

/// An upload that another tool completes halfway is their object: `close` gives ESTALE, and the bytes wait as a
/// conflict.
#[test]
fn an_upload_that_the_sdk_completes_halfway_is_their_object_and_our_conflict() {
    let world = World::new();
    let foreign = ForeignUploads::begin(&world, &[KEY]);
    let source = world.random_file("source", 4, 4 * PART + 5);
    let mount = world.mount(&["--part-size", "5MiB"]);
    let hold = world.proxy.hold(When::call(Call::UploadPart).part(3).part(4).part(5), HoldAt::BeforeForward);
    let mut actor = Actor::start();
    actor.open("f", &mount.path(KEY), "WRONLY|CREAT");
    actor.write_all("f", &source);
    actor.begin(close("f"));
    assert!(hold.wait_hits(3, WAIT));
    let id = our_upload(&world, &foreign);
    wait_until("two parts are there", || world.bucket.parts(KEY, &id).unwrap().len() == 2);
    meddle(&world, "complete", &id);
    let theirs = world.bucket.head(KEY).unwrap().expect("completed by the SDK");
    assert_eq!(theirs.size, 2 * PART);
    hold.release();
    assert_eq!(actor.answer("close"), Err("ESTALE".into()), "{}", mount.log_text());
    told_error(&wait_for_state(&mount, KEY, "conflict"));
    assert_eq!(world.bucket.head(KEY).unwrap(), Some(theirs), "their object was replaced");
    bosfs_ok(&mount, &["uploads", "complete", "bkt/f", "--force"]);
    world.assert_object_is_file(KEY, &source);
    foreign.assert_untouched(&world);
    wait_no_journal(&world);
}

#[test]
fn an_upload_that_the_sdk_completes_when_all_parts_are_there_loses_nothing() {
    let world = World::new();
    let foreign = ForeignUploads::begin(&world, &[KEY]);
    let source = world.random_file("source", 5, 2 * PART + 5);
    let mount = world.mount(&["--part-size", "5MiB"]);
    let hold = world.proxy.hold(When::call(Call::Complete), HoldAt::BeforeForward);
    let mut actor = Actor::start();
    actor.open("f", &mount.path(KEY), "WRONLY|CREAT");
    actor.write_all("f", &source);
    actor.begin(close("f"));
    assert!(hold.wait_hit(WAIT));
    meddle(&world, "complete", &our_upload(&world, &foreign));
    hold.release();
    // It lacks our mark and our attributes, so nobody can say that it is ours.
    assert_eq!(actor.answer("close"), Err("ESTALE".into()), "{}", mount.log_text());
    wait_for_state(&mount, KEY, "conflict");
    world.assert_object_is_file(KEY, &source);
    bosfs_ok(&mount, &["uploads", "abort", "bkt/f", "--yes"]);
    wait_no_journal(&world);
    world.assert_object_is_file(KEY, &source);
    foreign.assert_untouched(&world);
}

/// An object that somebody replaces right after its publication stays theirs, and `close` succeeds.
#[test]
fn an_object_that_the_sdk_overwrites_before_the_proof_stays_theirs() {
    for several in [false, true] {
        let world = World::new();
        let source = world.random_file("source", 6, if several { 2 * PART + 5 } else { 5000 });
        let mut mount = world.mount(&["--part-size", "5MiB"]);
        // Answers without a checksum and with an ETag of no known rule leave the proof to a HEAD.
        let call = if several { Call::Complete } else { Call::PutObject };
        let stored = world.proxy.add(crate::support::fault::RuleSpec {
            when: When::call(call).key(KEY),
            hold: Some(HoldAt::BeforeAnswer),
            action: Action::no_crc(),
        });
        let mut actor = Actor::start();
        actor.open("f", &mount.path(KEY), "WRONLY|CREAT");
        actor.write_all("f", &source);
        actor.begin(close("f"));
        assert!(stored.wait_hit(WAIT));
        world.assert_object_is_file(KEY, &source);
        let proof = world.proxy.hold(When::call(Call::HeadObject).key(KEY), HoldAt::BeforeForward);
        stored.release();
        if several {
            assert!(proof.wait_hit(WAIT), "proved without a HEAD\n{}", world.proxy.counts().log_text());
        }
        meddle(&world, "overwrite", "-");
        proof.release();
        // It was published, and then replaced: that is no failure of ours.
        assert_eq!(actor.answer("close"), Ok(Value::Null), "{}", mount.log_text());
        mount.wait_settled(KEY, WAIT);
        assert_eq!(world.bucket.get(KEY).unwrap(), OTHER, "their object was replaced");
        wait_no_journal(&world);
        if several {
            assert!(mount.log_text().contains("replaced by somebody else"), "nobody is told: {}", mount.log_text());
        }
        assert!(mount.umount(WAIT).status.success());
    }
}

/// The first range that a message calls lost.
fn lost_range(message: &str) -> (u64, u64) {
    let range = message.split_once("full spool: ").and_then(|(_, rest)| rest.split([',', 'a']).next());
    let range = range.and_then(|range| range.trim().split_once(" to "));
    let range = range.and_then(|(start, end)| Some((start.parse().ok()?, end.parse().ok()?)));
    range.unwrap_or_else(|| panic!("no range is named: {message}"))
}

fn md5_of(file: &Path, offset: u64, len: usize) -> String {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; len];
    std::fs::File::open(file).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    let md5 = crate::support::files::md5_of_reader(&bytes[..]).unwrap();
    hex::encode(md5.0)
}
