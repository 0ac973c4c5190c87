//! Keys that end in the middle of a file, keys that stay wrong, and a file of keys that is broken for a while.

use std::path::Path;

use bosfs::bos::sign::Credentials;

use crate::support::fault::Rule;
use crate::support::mounted::{cp, start_cp, wait_child};
use crate::support::{Call, HoldAt, When, World};
use crate::{KEY, SIZE, WAIT, assert_nothing_twice, wait_no_journal, wait_until};

fn with_token(world: &World, token: &str) -> Credentials {
    Credentials { session_token: Some(token.into()), ..world.server.credentials() }
}

fn other_keys() -> Credentials {
    Credentials::new("anotheraccesskey", "anothersecretkey01234567")
}

/// Writes the file that bosfs reads its keys from.
fn write_keys(world: &World, keys: &Credentials) {
    let token = keys.session_token.as_ref().map(|token| format!("bce_security_token = {token}\n"));
    let text = format!(
        "[defaults]\nbce_access_key_id = {}\nbce_secret_access_key = {}\n{}",
        keys.access_key_id,
        keys.secret_access_key,
        token.unwrap_or_default()
    );
    std::fs::write(world.credentials(), text).unwrap();
}

/// Holds the parts of [`KEY`] but the first.
fn hold_parts(world: &World) -> Rule {
    world.proxy.hold(When::call(Call::UploadPart).key(KEY).skip(1), HoldAt::BeforeForward)
}

/// Requests of `call` that were answered with `status`.
fn answered(world: &World, call: Call, status: u16) -> usize {
    world.proxy.counts().log.iter().filter(|l| l.asked.call == call && l.status == Some(status)).count()
}

/// The object is the file, whatever keys the server takes at present.
fn assert_whole(world: &mut World, original: &Credentials, source: &Path) {
    world.server.set_credentials(original.clone()).unwrap();
    world.assert_object_is_file(KEY, source);
    assert_nothing_twice(world);
}

/// A session token ends while parts are on their way; the file of keys is written again a moment later.
fn token_renewed(write_back: bool) {
    let mut world = World::new();
    let original = world.server.credentials();
    let (first, second) = (with_token(&world, "first"), with_token(&world, "second"));
    world.server.set_credentials(first.clone()).unwrap();
    write_keys(&world, &first);
    let source = world.random_file("source", 1, SIZE);
    let args: &[&str] = if write_back { &["--part-size", "5MiB", "--write-back"] } else { &["--part-size", "5MiB"] };
    let mount = world.mount(args);
    let held = hold_parts(&world);
    let mut child = start_cp(&source, mount.path(KEY));
    assert!(held.wait_hits(2, WAIT), "{}", mount.log_text());
    world.server.set_credentials(second.clone()).unwrap();
    held.release();
    wait_until("BOS refuses the token", || answered(&world, Call::UploadPart, 400) > 0);
    // Whoever asks meanwhile is told that the keys are refused, and never that there is nothing.
    let error = std::fs::metadata(mount.path("not there")).unwrap_err().raw_os_error();
    assert!(matches!(error, Some(libc::EACCES | libc::EIO)), "{error:?}");
    if !write_back {
        assert!(child.try_wait().unwrap().is_none(), "cp did not wait for new keys");
    }
    write_keys(&world, &second);
    let status = wait_child(&mut child, WAIT).expect("cp ends");
    assert!(status.success(), "{}", mount.log_text());
    mount.wait_settled(KEY, WAIT);
    assert_whole(&mut world, &original, &source);
}

/// A session token that ends during a `cp` is waited for: once the file of keys has a new one, `cp` ends well, and no
/// part is sent twice.
#[test]
fn a_session_token_renewed_in_the_middle_of_a_file_is_waited_for() {
    token_renewed(false);
}

#[test]
fn a_session_token_renewed_behind_a_write_back_close_is_waited_for() {
    token_renewed(true);
}

// New keys are in the file, and read, before the old ones are refused; requests signed with those are on their way.
#[test]
fn keys_replaced_while_parts_are_on_their_way_are_taken_at_the_first_refusal() {
    let mut world = World::new();
    let original = world.server.credentials();
    let source = world.random_file("source", 1, SIZE);
    let mount = world.mount(&["--part-size", "5MiB"]);
    let held = hold_parts(&world);
    let mut child = start_cp(&source, mount.path(KEY));
    assert!(held.wait_hits(2, WAIT), "{}", mount.log_text());
    write_keys(&world, &other_keys());
    wait_until("bosfs reads the new keys", || mount.log_text().contains("read new credentials"));
    world.server.set_credentials(other_keys()).unwrap();
    held.release();
    let status = wait_child(&mut child, WAIT).expect("cp ends");
    assert!(status.success(), "{}", mount.log_text());
    assert!(answered(&world, Call::UploadPart, 403) > 0, "{}", world.proxy.counts().log_text());
    assert_whole(&mut world, &original, &source);
}

/// Keys that stay wrong fail the `close` with "Permission denied", `bosfs status` says what to do, and a mount with
/// good ones publishes the file.
#[test]
fn keys_that_stay_wrong_fail_the_close_at_once_and_a_mount_with_good_ones_goes_on() {
    let mut world = World::new();
    let original = world.server.credentials();
    let source = world.random_file("source", 1, SIZE);
    let mut mount = world.mount(&["--part-size", "5MiB"]);
    let held = hold_parts(&world);
    let child = {
        let (source, target) = (source.clone(), mount.path(KEY));
        std::thread::spawn(move || cp(source, target, WAIT))
    };
    assert!(held.wait_hits(2, WAIT), "{}", mount.log_text());
    world.server.set_credentials(other_keys()).unwrap();
    held.release();
    let output = child.join().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("Permission denied"), "{output:?}\n{}", mount.log_text());
    assert!(answered(&world, Call::UploadPart, 403) > 0, "{}", world.proxy.counts().log_text());
    let entry = crate::wait_for_state(&mount, KEY, "failed");
    let error = entry["last_error"].as_str().unwrap_or_default();
    for part in [KEY, "access key", "kept in", "new mount"] {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
    for secret in [&original.secret_access_key, &other_keys().secret_access_key] {
        assert!(!mount.log_text().contains(secret.as_str()));
    }
    assert_eq!(world.journals().len(), 1);
    mount.kill();
    write_keys(&world, &other_keys());
    mount.remount().unwrap();
    mount.wait_settled(KEY, WAIT);
    assert_whole(&mut world, &original, &source);
    wait_no_journal(&world);
}

/// A file of keys that is empty, half, gone or unreadable for a while leaves the earlier keys in use, and the log says
/// so once each time.
#[test]
fn a_file_of_keys_that_is_broken_for_a_while_leaves_the_earlier_keys_in_use() {
    let world = World::new();
    let source = world.random_file("source", 1, 100_000);
    let mount = world.mount(&["--part-size", "5MiB"]);
    let good = std::fs::read(world.credentials()).unwrap();
    let complaints = || mount.log_text().matches("the earlier credentials stay in use").count();
    let ways: [(&str, &dyn Fn()); 4] = [
        ("empty", &|| std::fs::write(world.credentials(), b"").unwrap()),
        ("half", &|| std::fs::write(world.credentials(), &good[..good.len() / 2]).unwrap()),
        ("gone", &|| std::fs::remove_file(world.credentials()).unwrap()),
        ("unreadable", &|| {
            std::fs::create_dir(world.credentials()).unwrap();
        }),
    ];
    for (n, (name, damage)) in ways.iter().enumerate() {
        damage();
        wait_until(&format!("the {name} file is noticed"), || complaints() == n + 1);
        let target = mount.path(&format!("while {name}"));
        assert!(cp(&source, target, WAIT).status.success(), "{name}\n{}", mount.log_text());
        world.assert_object_is_file(&format!("while {name}"), &source);
    }
    // Looked at every second, told once.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(complaints(), ways.len(), "{}", mount.log_text());
    std::fs::remove_dir(world.credentials()).unwrap();
    std::fs::write(world.credentials(), &good).unwrap();
    assert!(cp(&source, mount.path("after"), WAIT).status.success(), "{}", mount.log_text());
}
