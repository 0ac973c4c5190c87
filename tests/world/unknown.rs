//! "Cannot tell" is not "no": a bucket that may not be looked at, objects whose bytes are not at hand, keys that ran out.

use std::time::Duration;

use bosfs::bos::sign::Credentials;

use crate::support::mounted::{cp, run, sh};
use crate::support::{Action, Call, HoldAt, Mounted, When, World};
use crate::{WAIT, wait_for_state};

/// A key that may not look at the bucket itself (HeadBucket: 403), but at what is below the mounted prefix, mounts it, and
/// the log says once what cannot be told.
#[test]
fn a_prefix_of_a_bucket_that_may_not_be_looked_at_is_mounted() {
    let world = World::new();
    world.bucket.put("a/f", b"x").unwrap();
    let refused = world.proxy.fault(When::call(Call::HeadBucket), Action::error(403, "AccessDenied"));
    let mut spec = world.spec(&[]);
    spec.target = "bkt/a".into();
    let mount = spec.mount().unwrap();
    assert!(refused.hits() > 0);
    assert_eq!(std::fs::read(mount.path("f")).unwrap(), b"x");
    std::fs::write(mount.path("g"), b"y").unwrap();
    assert_eq!(world.bucket.get("a/g").unwrap(), b"y");
    assert_eq!(mount.log_text().matches("HeadBucket").count(), 1, "{}", mount.log_text());
}

/// A bucket of which nothing can be listed either, or that refuses the keys, is not mounted: exit code 5.
#[test]
fn a_bucket_that_refuses_all_is_not_mounted() {
    for code in ["AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId"] {
        let world = World::new();
        world.proxy.fault(When::call(Call::HeadBucket), Action::error(403, "AccessDenied"));
        world.proxy.fault(When::call(Call::ListObjects), Action::error(403, code));
        let spec = world.spec(&[]);
        std::fs::create_dir_all(&spec.dir).unwrap();
        let output = run(spec.command().arg("--foreground"), WAIT);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(5), "{code}: {output:?}");
        assert!(text.contains(code), "{text}");
    }
}

fn archived(world: &World, key: &str, bytes: &[u8]) {
    world.bucket.ask("PUT", key, &[], &[("x-bce-storage-class", "ARCHIVE")], bytes).unwrap();
}

fn errno_of(result: std::io::Result<impl std::fmt::Debug>) -> i32 {
    result.expect_err("it must fail").raw_os_error().unwrap_or_default()
}

/// An archived object is listed with its size, but reading it gives EIO and changing its mode, times or extended attributes
/// EPERM, and the log says that it must be restored; once it is, all of that works.
#[test]
fn archived_objects_give_eio_and_eperm_until_they_are_restored() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    archived(&world, "old", b"cold bytes");
    let mount = world.mount(&[]);
    let path = mount.path("old");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 10);
    assert_eq!(errno_of(std::fs::read(&path)), libc::EIO);
    let chmod = || std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600));
    assert_eq!(errno_of(chmod()), libc::EPERM);
    let set = format!("python3 -c 'import os; os.setxattr(\"{}\", \"user.a\", b\"1\")'", path.display());
    let output = sh(&set, WAIT);
    assert!(String::from_utf8_lossy(&output.stderr).contains("Operation not permitted"), "{output:?}");
    let log = mount.log_text();
    assert!(log.contains("archived") && log.contains("restore it first"), "{log}");
    assert!(!log.contains("give it the permission"), "{log}");
    assert_eq!(mount.status()["mounts"][0]["totals"]["stuck"], 0, "{}", mount.status());
    // Its name can be had for something else, and it can be removed: that needs none of its bytes.
    world.bucket.ask("POST", "old", &[("restore", "")], &[("x-bce-restore-days", "1")], b"").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"cold bytes");
    chmod().unwrap();
    std::fs::remove_file(&path).unwrap();
}

/// A rename of an archived object gives EPERM, and the object stays under its name.
#[test]
fn a_rename_of_an_archived_object_is_refused_and_leaves_it() {
    let world = World::new();
    archived(&world, "old", b"cold bytes");
    let mount = world.mount(&[]);
    assert_eq!(errno_of(std::fs::rename(mount.path("old"), mount.path("new"))), libc::EPERM);
    assert_eq!(world.bucket.list("").unwrap(), ["old"]);
    assert!(mount.log_text().contains("archived"), "{}", mount.log_text());
}

/// Mounts with the server's keys and a session token from the environment, which cannot be read again.
fn with_token_of_the_environment(world: &mut World) -> Mounted {
    let keys = Credentials { session_token: Some("first".into()), ..world.server.credentials() };
    world.server.set_credentials(keys.clone()).unwrap();
    let mut spec = world.spec(&["--part-size", "5MiB"]);
    // A command that leaves `--credentials` away, so that the environment counts.
    let line = "args=(); while [ $# -gt 0 ]; do if [ \"$1\" = --credentials ]; then shift; else args+=(\"$1\"); fi; shift; done; \
                exec \"${args[@]}\"";
    spec.wrapper = ["bash", "-c", line, "bash"].map(String::from).to_vec();
    spec.env = vec![
        ("BCE_ACCESS_KEY_ID".into(), keys.access_key_id),
        ("BCE_SECRET_ACCESS_KEY".into(), keys.secret_access_key),
        ("BCE_SESSION_TOKEN".into(), "first".into()),
    ];
    spec.mount().unwrap()
}

/// A session token that was given by an option or the environment and ends during a `cp` is not waited for: `cp` gives
/// EACCES, and `bosfs status` says that the mount needs new keys; the bytes are kept, and the next mount publishes them.
#[test]
fn a_token_that_cannot_be_renewed_ends_as_an_error_that_says_so() {
    let mut world = World::new();
    let original = world.server.credentials();
    let mut mount = with_token_of_the_environment(&mut world);
    let source = world.random_file("source", 1, 3 * crate::PART);
    let held = world.proxy.hold(When::call(Call::UploadPart).skip(1), HoldAt::BeforeForward);
    let (from, to) = (source.clone(), mount.path("f"));
    let copy = std::thread::spawn(move || cp(from, to, WAIT));
    assert!(held.wait_hit(WAIT));
    world.server.set_credentials(Credentials { session_token: Some("second".into()), ..original.clone() }).unwrap();
    held.release();
    let output = copy.join().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"), "{output:?}\n{}", mount.log_text());
    let entry = wait_for_state(&mount, "f", "failed");
    let error = entry["last_error"].as_str().unwrap_or_default();
    assert!(error.contains("session token") && error.contains("mount again with new keys"), "{error}");
    mount.kill();
    world.server.set_credentials(original).unwrap();
    let mount = world.mount(&["--part-size", "5MiB"]);
    world.wait_object("f", 3 * crate::PART, WAIT);
    mount.wait_settled("f", Duration::from_secs(30));
    world.assert_object_is_file("f", &source);
}
