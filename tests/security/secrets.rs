//! No secret gets into logs, files, process lists, status or errors. The search is shown to find what is there.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use bosfs::bos::sign::format_timestamp;
use hmac::{Hmac, KeyInit as _, Mac as _};

use crate::support::fault::{Action, When};
use crate::support::mounted::{bosfs_binary, detach, is_mounted, run, sh, wait_child};
use crate::support::{BUCKET, Call, World};
use crate::{WAIT, timed};

/// A session token that is in no other text.
const TOKEN: &str = "sessiontoken-6f1d2c3b4a5968778695a4b3c2d1e0ff";
/// A name that every place tells: it shows that the search finds what is there.
const PLANTED: &str = "planted-name-that-is-no-secret";

/// What must be nowhere, each with what it is.
struct Needles(BTreeMap<String, &'static str>);

impl Needles {
    /// The secret and the token, in every form that could slip into a text.
    fn new(secret: &str) -> Self {
        let mut needles = BTreeMap::new();
        for (text, what) in [(secret, "the secret key"), (TOKEN, "the session token")] {
            needles.insert(text.to_owned(), what);
            needles.insert(hex::encode(text), what);
            needles.insert(base64::engine::general_purpose::STANDARD.encode(text), what);
            needles.insert(text.chars().rev().collect(), what);
            needles.insert(text[..text.len() / 2 + 1].to_owned(), what);
        }
        needles.insert("bce-auth-v1/".to_owned(), "a signed authorization");
        Self(needles)
    }

    /// The keys that requests between two moments were signed with.
    fn add_signing_keys(&mut self, secret: &str, access_key: &str, from_s: i64, to_s: i64) {
        for second in from_s - 1..=to_s + 1 {
            let prefix = format!("bce-auth-v1/{access_key}/{}/1800", format_timestamp(second));
            let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
            mac.update(prefix.as_bytes());
            self.0.insert(hex::encode(mac.finalize().into_bytes()), "a signing key");
        }
    }

    /// Asserts that none of them is in `bytes`.
    fn assert_none(&self, place: &str, bytes: &[u8]) {
        for (needle, what) in &self.0 {
            assert!(!contains(bytes, needle.as_bytes()), "{what} is in {place}");
        }
    }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    // By first byte, as most places are large.
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// The bytes of all files below a directory.
fn files_below(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_below(&path));
        } else if kind.is_file() {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found
}

fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// A world whose credentials have a token, too.
fn world_with_token() -> (World, String) {
    let world = World::new();
    let keys = world.server.keys();
    std::fs::write(
        world.credentials(),
        format!(
            "bce_access_key_id = {}\nbce_secret_access_key = {}\nbce_security_token = {TOKEN}\n",
            keys.access_key, keys.secret_key
        ),
    )
    .unwrap();
    (world, keys.secret_key)
}

/// Secret keys, session tokens and signatures are in no log, journal, status, error or process list, also at
/// `--log-level trace`.
#[test]
fn secrets_are_in_no_log_file_status_or_error() {
    let began = now_s();
    let (world, secret) = world_with_token();
    let mount = world.mount(&["--log-level", "trace", "--part-size", "5MiB", "--timeout", "3s"]);
    // Everyday work, refused signatures of every kind, and a file that is left open.
    let refused = [Call::PutObject, Call::UploadPart, Call::HeadObject, Call::ListObjects]
        .map(|call| world.proxy.fault(When::call(call).times(2), Action::error(403, "SignatureDoesNotMatch")));
    let source = world.random_file("source", 3, 11 << 20);
    let line = format!(
        "cp {0} {1}/{PLANTED}; echo x > {1}/{PLANTED}-small; ls -l {1}; mkdir {1}/d; mv {1}/{PLANTED}-small {1}/d/; true",
        source.display(),
        mount.dir().display()
    );
    let told = sh(&line, WAIT);
    assert!(refused.iter().any(|rule| rule.hits() > 0), "no signature was refused");
    let path = mount.path(&format!("{PLANTED}-open"));
    let open = timed(move || {
        use std::io::Write as _;
        let mut open = std::fs::File::create(path)?;
        open.write_all(b"bytes")?;
        std::io::Result::Ok(open)
    })
    .unwrap();

    let mut places: Vec<(String, Vec<u8>)> = files_below(&world.state_dir());
    places.push(("the log".into(), world.log_text().into_bytes()));
    places.push(("what programs were told".into(), [told.stdout, told.stderr].concat()));
    for name in ["cmdline", "environ"] {
        let bytes = std::fs::read(format!("/proc/{}/{name}", mount.pid().unwrap())).unwrap();
        places.push((format!("/proc/PID/{name}"), bytes));
    }
    places.push(("status --json".into(), mount.status().to_string().into_bytes()));
    for name in ["status.json", "shadowed.json", &format!("uploads/{PLANTED}-open.json")] {
        let path = mount.path(&format!(".bosfs/{name}"));
        places.push((format!(".bosfs/{name}"), timed(move || std::fs::read(path)).unwrap()));
    }
    for args in
        [&["uploads", "list", BUCKET][..], &["verify", "bkt/absent"], &["uploads", "abort", "bkt/absent", "--yes"]]
    {
        let output = run(&mut mount.command(args), WAIT);
        places.push((format!("{args:?}"), [output.stdout, output.stderr].concat()));
    }
    // The same with a wrong secret, whose refusal is an error that people read.
    let wrong = world.path("wrong-credentials");
    let other = "wrongsecret-00112233445566778899aabbccddeeff";
    std::fs::write(&wrong, format!("ak = testaccesskey\nsk = {other}\nsts = {TOKEN}\n")).unwrap();
    let mut list = Command::new(bosfs_binary());
    list.args(["uploads", "list", BUCKET, "--endpoint", &world.proxy.endpoint(), "--credentials"]).arg(&wrong);
    let output = run(&mut list, WAIT);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let error = [output.stdout, output.stderr].concat();
    Needles::new(other).assert_none("the error of a refused signature", &error);

    let mut needles = Needles::new(&secret);
    let keys = world.server.keys();
    needles.add_signing_keys(&secret, &keys.access_key, began, now_s());
    for (place, bytes) in &places {
        needles.assert_none(place, bytes);
    }
    // The search finds what is there: the planted name in the log, the journal, the status and `.bosfs`.
    let found: Vec<&str> = places
        .iter()
        .filter(|(_, bytes)| contains(bytes, PLANTED.as_bytes()))
        .map(|(place, _)| place.as_str())
        .collect();
    for place in ["the log", "/journal", "status --json", ".bosfs/status.json", "what programs were told"] {
        assert!(found.iter().any(|found| found.ends_with(place)), "the search does not find {place}: {found:?}");
    }
    let text = std::fs::read(world.credentials()).unwrap();
    for needle in [secret.as_str(), TOKEN] {
        assert!(contains(&text, needle.as_bytes()), "the search would not find {needle}");
    }
    drop(open);
}

/// Arguments of all processes; those of this test's own shell lines have no secret.
fn all_command_lines() -> Vec<(String, Vec<u8>)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    pids.filter_map(|entry| {
        let bytes = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), bytes))
    })
    .collect()
}

/// Mounts with secrets in an `-o` list; when the mount first answers, no process has them in its arguments.
fn scrubbed_before_the_mount_answers(foreground: bool) {
    let world = World::new();
    let keys = world.server.keys();
    let dir = world.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    // A mount that takes its time: the secret must not wait with it.
    world.proxy.set_latency(Duration::from_millis(300));
    let list = format!("ak={},sk={},sts_token={TOKEN}", keys.access_key, keys.secret_key);
    let mut command = Command::new(bosfs_binary());
    command.args(["mount", BUCKET]).arg(&dir).args(["-o", &list, "--endpoint", &world.proxy.endpoint()]);
    command.arg("--state-dir").arg(world.state_dir());
    if foreground {
        command.arg("--foreground");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let seen = |lines: &[(String, Vec<u8>)]| {
        let has = |needle: &str| lines.iter().any(|(_, bytes)| contains(bytes, needle.as_bytes()));
        has(&keys.secret_key) || has(TOKEN)
    };
    let end = Instant::now() + WAIT;
    while !is_mounted(&dir) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    let lines = all_command_lines();
    let own = lines.iter().filter(|(_, bytes)| contains(bytes, dir.to_string_lossy().as_bytes())).count();
    let shown = seen(&lines);
    // In the background the command returns now, else when the mount ends.
    let returned = foreground || wait_child(&mut child, WAIT).is_some_and(|status| status.success());
    let environ = lines
        .iter()
        .filter(|(_, bytes)| contains(bytes, dir.to_string_lossy().as_bytes()))
        .map(|(pid, _)| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default());
    let environ: Vec<u8> = environ.flatten().collect();
    world.proxy.set_latency(Duration::ZERO);
    let output = run(Command::new(bosfs_binary()).arg("umount").arg(&dir), WAIT);
    let ended = wait_child(&mut child, WAIT);
    detach(&dir);
    assert!(ended.is_some(), "the command does not end");
    assert!(own > 0, "the search does not find the mount's own process");
    assert!(!shown, "a secret is in the process list when the mount is there");
    assert!(output.status.success(), "{output:?}");
    assert!(returned, "the command failed");
    assert!(!contains(&environ, keys.secret_key.as_bytes()) && !contains(&environ, TOKEN.as_bytes()));
}

#[test]
fn a_secret_in_the_options_is_gone_before_the_mount_answers_in_the_foreground() {
    scrubbed_before_the_mount_answers(true);
}

/// A secret given by `-o sk=` is gone from the process list before the mount answers.
#[test]
fn a_secret_in_the_options_is_gone_before_the_mount_answers_in_the_background() {
    scrubbed_before_the_mount_answers(false);
}

/// A daemon does not inherit the secrets of its environment.
#[test]
fn a_daemon_does_not_inherit_secrets_of_the_environment() {
    let world = World::new();
    let keys = world.server.keys();
    let dir = world.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    let mut command = Command::new(bosfs_binary());
    command.args(["mount", BUCKET]).arg(&dir).args(["--endpoint", &world.proxy.endpoint()]);
    command.arg("--state-dir").arg(world.state_dir());
    command.env("BCE_ACCESS_KEY_ID", &keys.access_key).env("BCE_SECRET_ACCESS_KEY", &keys.secret_key);
    command.env("BCE_SESSION_TOKEN", TOKEN).env("PLANTED", PLANTED);
    let output = run(&mut command, WAIT);
    assert!(output.status.success(), "{output:?}");
    let holder = std::fs::read_to_string(world.state_dir().join("lease")).unwrap();
    let holder: serde_json::Value = serde_json::from_str(holder.lines().next().unwrap()).unwrap();
    let read = |name: &str| std::fs::read(format!("/proc/{}/{name}", holder["pid"])).unwrap();
    let (environ, arguments) = (read("environ"), read("cmdline"));
    let output = run(Command::new(bosfs_binary()).arg("umount").arg(&dir), WAIT);
    detach(&dir);
    assert!(output.status.success(), "{output:?}");
    assert!(contains(&environ, PLANTED.as_bytes()), "the search does not find what is there");
    let mut needles = Needles::new(&keys.secret_key);
    needles.0.remove("bce-auth-v1/");
    needles.assert_none("the daemon's environment", &environ);
    needles.assert_none("the daemon's arguments", &arguments);
    for (place, bytes) in files_below(&world.state_dir()) {
        Needles::new(&keys.secret_key).assert_none(&place, &bytes);
    }
}

#[test]
fn secrets_do_not_show_in_debug_texts() {
    let secret = "secretsecret-0011223344556677";
    let mut credentials = bosfs::bos::Credentials::new("AK", secret);
    credentials.session_token = Some(TOKEN.to_owned());
    let shown = format!("{credentials:?}");
    assert!(shown.contains("AK"), "{shown}");
    Needles::new(secret).assert_none("the Debug text of credentials", shown.as_bytes());
    let shown = format!("{:?} {}", bosfs::config::Secret::new(secret), bosfs::config::Secret::new(secret));
    Needles::new(secret).assert_none("the text of a secret", shown.as_bytes());
}
