//! Unfinished uploads of this machine: told from those of others, and found under the key that they have.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Output;

use crate::support::call::Call;
use crate::support::files::random_bytes;
use crate::support::mounted::run;
use crate::support::world::{BUCKET, World};
use crate::support::{Action, HoldAt, Mounted, When};
use crate::{PART, SMALL_PARTS, WAIT, unmount};

/// The temporary that rsync writes for `wanted`.
const TEMPORARY: &str = ".wanted.AbCd12";

fn bosfs(mount: &Mounted, args: &[&str]) -> Output {
    run(&mut mount.command(args), WAIT)
}

fn succeeds(mount: &Mounted, args: &[&str], told: &str) {
    let output = bosfs(mount, args);
    let text = format!("{args:?}: {output:?}\n{}", mount.log_text());
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(told), "{text}");
}

fn fails(mount: &Mounted, args: &[&str], told: &str) {
    let output = bosfs(mount, args);
    let text = format!("{args:?}: {output:?}");
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains(told), "{text}");
}

/// Key and owner of every unfinished upload, by ID.
fn listed(mount: &Mounted) -> Vec<(String, String, String)> {
    let output = bosfs(mount, &["uploads", "list", BUCKET, "--json"]);
    assert!(output.status.success(), "{output:?}");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap().to_owned();
    let rows = list["uploads"].as_array().unwrap().iter();
    rows.map(|row| (text(row, "key"), text(row, "whose"), text(row, "upload_id"))).collect()
}

/// The upload of a rename that is under way is listed as ours, and one that an unanswered Initiate left as possibly ours;
/// neither is dropped by a command that names the key.
#[test]
fn the_uploads_of_a_rename_under_way_are_ours() {
    let world = World::new();
    world.server.handle().put_sparse(BUCKET, "big", 6_000_000_000).unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    world.proxy.fault(When::call(Call::Initiate).once(), Action::LoseAnswer);
    let held = world.proxy.hold(When::call(Call::UploadPartCopy).once(), HoldAt::BeforeForward);
    let (from, to) = (mount.path("big"), mount.path("moved"));
    let renaming = std::thread::spawn(move || std::fs::rename(from, to));
    assert!(held.wait_hit(WAIT), "no part is copied\n{}", mount.log_text());
    let rows = listed(&mount);
    let mut whose: Vec<_> = rows.iter().map(|(key, whose, _)| (key.as_str(), whose.as_str())).collect();
    whose.sort_unstable();
    assert_eq!(whose, [("moved", "ours"), ("moved", "possibly ours")]);
    let id = |whose: &str| rows.iter().find(|row| row.1 == whose).unwrap().2.clone();
    fails(&mount, &["uploads", "abort", "bkt/moved", "--yes"], "the renaming of big makes");
    fails(&mount, &["uploads", "abort", "bkt/moved", "--yes", "--upload-id", &id("ours")], "the renaming of big makes");
    held.release();
    renaming.join().unwrap().unwrap();
    assert_eq!(world.bucket.head("moved").unwrap().unwrap().size, 6_000_000_000);
    assert!(world.bucket.head("big").unwrap().is_none());
    // What is left of it nobody goes on with.
    let stray = id("possibly ours");
    assert_eq!(listed(&mount).into_iter().map(|row| row.2).collect::<Vec<_>>(), std::slice::from_ref(&stray));
    assert!(mount.log_text().contains("--upload-id ID"), "{}", mount.log_text());
    succeeds(&mount, &["uploads", "abort", "bkt/moved", "--yes", "--upload-id", &stray], "is gone");
    unmount(&mut mount);
    assert!(world.bucket.uploads("").unwrap().is_empty());
}

/// A mount that was killed while an rsync temporary was half sent: its parts lie under the name that it was to get.
fn killed_temporary(world: &World) -> Mounted {
    let mut mount = world.mount(&SMALL_PARTS);
    let path = mount.path(TEMPORARY);
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(&random_bytes(1, 3 * PART as usize + 5)).unwrap();
    world.wait_for_requests(Call::UploadPart, 2);
    mount.kill();
    drop(file);
    world.wait_quiet();
    assert_eq!(world.bucket.uploads("").unwrap()[0].key, "wanted");
    mount
}

/// `bosfs uploads abort` of a killed rsync's temporary drops its upload, which lies under the name that it was to get,
/// whether the file, that name or the upload is named, with and without a mount.
#[test]
fn the_upload_of_a_killed_temporary_is_dropped_under_the_key_that_it_has() {
    for remounted in [false, true] {
        for named in [TEMPORARY, "wanted", "upload"] {
            let world = World::new();
            let mut mount = killed_temporary(&world);
            let rows = listed(&mount);
            assert_eq!((rows[0].0.as_str(), rows[0].1.as_str(), rows.len()), ("wanted", "ours", 1));
            fails(&mount, &["uploads", "complete", "bkt/wanted"], "belongs to the file bkt/.wanted.AbCd12");
            if remounted {
                mount.remount().unwrap();
            }
            let object = format!("bkt/{}", if named == "upload" { "wanted" } else { named });
            let mut command = vec!["uploads", "abort", object.as_str(), "--yes"];
            if named == "upload" {
                command.extend(["--upload-id", rows[0].2.as_str()]);
            }
            succeeds(&mount, &command, "is gone");
            assert!(world.bucket.uploads("").unwrap().is_empty(), "{named}: its parts are still there");
            assert!(world.journals().is_empty(), "{named}");
            assert!(world.bucket.list("").unwrap().is_empty());
        }
    }
}

/// `bosfs uploads complete TEMPORARY --as NAME` publishes what a killed rsync had written under the name that it was to get.
#[test]
fn a_killed_temporary_is_published_under_the_name_that_it_was_to_get() {
    let world = World::new();
    let mut mount = killed_temporary(&world);
    mount.remount().unwrap();
    succeeds(&mount, &["uploads", "complete", "bkt/.wanted.AbCd12", "--as", "wanted"], "complete and proved");
    unmount(&mut mount);
    assert!(world.bucket.get("wanted").unwrap() == random_bytes(1, 3 * PART as usize + 5));
    assert_eq!(world.bucket.list("").unwrap(), ["wanted"]);
    assert!(world.bucket.uploads("").unwrap().is_empty());
}

/// `bosfs uploads resume --from FILE` does not complete an upload that a journal of this machine goes on with, also if it
/// is named by its ID.
#[test]
fn an_upload_that_a_journal_works_on_is_not_resumed_from_a_file() {
    let world = World::new();
    let mount = killed_temporary(&world);
    let id = listed(&mount)[0].2.clone();
    let source = world.random_file("source", 1, 3 * PART + 5);
    let from = source.to_str().unwrap();
    fails(&mount, &["uploads", "resume", "bkt/wanted", "--from", from], "works on bkt/.wanted.AbCd12");
    let named = ["uploads", "resume", "bkt/wanted", "--from", from, "--upload-id", &id];
    fails(&mount, &named, "works on bkt/.wanted.AbCd12");
    assert!(world.bucket.list("").unwrap().is_empty());
    assert_eq!(world.bucket.uploads("").unwrap().len(), 1);
}

/// `--adopt` does not take an upload that a journal of this machine goes on with, under whatever name that is.
#[test]
fn an_upload_that_a_journal_works_on_is_not_adopted() {
    let world = World::new();
    drop(killed_temporary(&world));
    let source = world.random_file("source", 1, 3 * PART + 5);
    let mut mount = world.mount(&[SMALL_PARTS[0], SMALL_PARTS[1], "--adopt"]);
    world.proxy.take_counts();
    crate::shell(&format!("cp {} {}", source.display(), mount.path("wanted").display()));
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::Initiate), 1, "the temporary's upload was taken\n{}", counts.log_text());
    world.assert_object_is_file("wanted", &source);
    assert_eq!(world.bucket.uploads("").unwrap().len(), 1, "the temporary's is still there");
    succeeds(&mount, &["uploads", "abort", "bkt/.wanted.AbCd12", "--yes"], "is gone");
    unmount(&mut mount);
    world.assert_object_is_file("wanted", &source);
    assert!(world.bucket.uploads("").unwrap().is_empty() && world.journals().is_empty());
}
