//! Bad input and bad moments through the real binary: each gives a clear sentence, the documented exit code, and touches
//! nothing.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const SECRET: &str = "topsecret0123456789";

/// A command of the binary under test that inherits no settings from whoever runs the tests.
fn bosfs(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bosfs"));
    for name in [
        "BCE_ACCESS_KEY_ID",
        "BCE_SECRET_ACCESS_KEY",
        "BCE_SESSION_TOKEN",
        "BCE_SECURITY_TOKEN",
        "BOS_ENDPOINT",
        "XDG_CONFIG_HOME",
    ] {
        command.env_remove(name);
    }
    command.env("HOME", home).env("XDG_STATE_HOME", home.join("state")).env("XDG_DATA_HOME", home.join("data"));
    command.stdin(Stdio::null());
    command
}

/// Runs it and checks the exit code and that stderr has all of `parts` and no secret.
fn fails(command: &mut Command, code: i32, parts: &[&str]) -> String {
    let output = command.output().expect("bosfs can be started");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    }
    assert!(!stderr.contains(SECRET), "a secret was printed: {stderr}");
    stderr
}

fn stdout_of(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn keys_file(home: &Path) -> PathBuf {
    let path = home.join("keys");
    fs::write(&path, format!("[defaults]\nbce_access_key_id = AK\nbce_secret_access_key = {SECRET}\n")).unwrap();
    path
}

fn empty_dir(home: &Path) -> PathBuf {
    let dir = home.join("mnt");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A port that nobody listens on.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// `bosfs serve` on a free port, ended with the test.
struct Served {
    child: Child,
    endpoint: String,
    credentials: PathBuf,
}

impl Served {
    fn start(home: &Path) -> Self {
        let dir = home.join("served");
        let mut child = bosfs(home)
            .args(["serve", "--listen", "127.0.0.1:0", "--bucket", "my-bucket"])
            .arg(&dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let endpoint = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(endpoint.starts_with("http://127.0.0.1:"), "{line}");
        Self { child, endpoint, credentials: dir.join("credentials") }
    }

    fn access(&self, command: &mut Command) {
        command.args(["--endpoint", &self.endpoint]).arg("--credentials").arg(&self.credentials);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let home = tempfile::tempdir().unwrap();
    let help = stdout_of(&bosfs(home.path()).arg("--help").output().unwrap());
    for word in ["mount", "umount", "status", "uploads", "verify", "serve", "Exit codes:", "BOS could not be reached"] {
        assert!(help.contains(word), "{word}");
    }
    let help = stdout_of(&bosfs(home.path()).args(["mount", "--help"]).output().unwrap());
    for option in ["--write-back", "--fsync", "--interrupted", "--part-size", "--spool-limit", "--local", "-o"] {
        assert!(help.contains(option), "{option}");
    }
}

/// A wrong command line exits 2, does nothing, and repeats no secret.
#[test]
fn wrong_command_lines_are_code_2_and_do_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = empty_dir(home.path());
    let run = |args: &[&str], part: &str| {
        fails(bosfs(home.path()).args(args), 2, &[part]);
    };
    let dir = dir.to_str().unwrap();
    run(&[], "Usage");
    run(&["frobnicate"], "frobnicate");
    run(&["mount", "my-bucket"], "DIR");
    run(&["mount", "No_Bucket", dir], "no bucket name");
    run(&["mount", "my-bucket/../x", dir], "segment");
    run(&["mount", "my-bucket", dir, "--part-size", "1MiB"], "5MiB");
    run(&["mount", "my-bucket", dir, "--timeout", "soon"], "no duration");
    run(&["mount", "my-bucket", dir, "--upload-rate", "0"], "rate of 0");
    run(&["mount", "my-bucket", dir, "--fsync", "never"], "journal");
    run(&["mount", "my-bucket", dir, "-o", "frobnicate"], "frobnicate");
    run(&["mount", "my-bucket", dir, "-o", &format!("allow_other={SECRET}")], "takes no value");
    run(&["mount", "my-bucket", dir, "--local", "--endpoint", "x"], "cannot be used with");
    run(&["mount", "my-bucket", dir, "--local", "-o", &format!("ak=A,sk={SECRET}")], "--local makes its own");
    run(&["uploads", "resume", "my-bucket"], "names no key");
    run(&["uploads", "complete", "my-bucket/../x"], "segment");
    let keys = keys_file(home.path());
    let keys = keys.to_str().unwrap();
    run(&["mount", "my-bucket", dir, "--credentials", keys, "--endpoint", "ftp://x"], "neither https nor http");
    run(&["mount", "my-bucket", dir, "--credentials", keys, "--region", "mars"], "mars");
    assert!(!home.path().join("state").exists(), "a refused command left a state directory");
}

/// Missing or broken credentials exit 5 and say which of them is missing, and where.
#[test]
fn credentials_that_are_missing_or_broken_are_code_5() {
    let home = tempfile::tempdir().unwrap();
    let dir = empty_dir(home.path());
    let mount = || {
        let mut command = bosfs(home.path());
        command.args(["mount", "my-bucket"]).arg(&dir);
        command
    };
    fails(&mut mount(), 5, &["no credentials", "BCE_ACCESS_KEY_ID", "--local"]);
    fails(mount().args(["--credentials", "/nonexistent/keys"]), 5, &["/nonexistent/keys", "No such file"]);
    let empty = home.path().join("empty");
    fs::write(&empty, format!("# {SECRET}\n")).unwrap();
    fails(mount().arg("--credentials").arg(&empty), 5, &["no key in it", "empty"]);
    fails(mount().env("BCE_ACCESS_KEY_ID", "AK"), 5, &["the environment", "secret access key"]);
    fails(mount().args(["-o", &format!("sk={SECRET}")]), 5, &["-o list", "access key ID"]);
}

/// A mount point that is missing, a file, or not empty exits 1, and what is in it stays.
#[test]
fn mount_points_that_do_not_fit_are_named() {
    let home = tempfile::tempdir().unwrap();
    let dir = empty_dir(home.path());
    let keys = keys_file(home.path());
    let mount = |at: &Path| {
        let mut command = bosfs(home.path());
        command.args(["mount", "my-bucket"]).arg(at).arg("--credentials").arg(&keys);
        command
    };
    fails(&mut mount(&home.path().join("missing")), 1, &["does not exist", "mkdir -p"]);
    fails(&mut mount(&keys), 1, &["is not a folder"]);
    fs::write(dir.join("precious"), b"x").unwrap();
    fails(&mut mount(&dir), 1, &["is not empty", "precious", "--nonempty"]);
    assert_eq!(fs::read(dir.join("precious")).unwrap(), b"x");
}

/// An endpoint that refuses connections exits 6, in the foreground and from the daemon.
#[test]
fn an_endpoint_that_refuses_is_code_6_also_from_the_daemon() {
    let home = tempfile::tempdir().unwrap();
    let dir = empty_dir(home.path());
    let keys = keys_file(home.path());
    let endpoint = format!("http://127.0.0.1:{}", closed_port());
    for foreground in [true, false] {
        let mut command = bosfs(home.path());
        command.args(["mount", "my-bucket"]).arg(&dir).arg("--credentials").arg(&keys).args(["--endpoint", &endpoint]);
        if foreground {
            command.arg("--foreground");
        }
        fails(&mut command, 6, &["does not answer", &endpoint, "refused"]);
    }
    fails(
        bosfs(home.path())
            .args(["uploads", "list", "my-bucket", "--endpoint", &endpoint])
            .arg("--credentials")
            .arg(&keys),
        6,
        &["does not answer"],
    );
}

#[test]
fn a_secret_in_the_option_list_reaches_the_server_but_no_message() {
    let home = tempfile::tempdir().unwrap();
    let served = Served::start(home.path());
    let dir = empty_dir(home.path());
    let list = format!("ak=AK,sk={SECRET},endpoint={}", served.endpoint);
    for foreground in [true, false] {
        let mut command = bosfs(home.path());
        command.args(["mount", "my-bucket"]).arg(&dir).args(["-o", &list]);
        if foreground {
            command.arg("--foreground");
        }
        fails(&mut command, 5, &["does not let this key into the bucket my-bucket"]);
    }
}

#[test]
fn a_bucket_that_is_not_there_is_named() {
    let home = tempfile::tempdir().unwrap();
    let served = Served::start(home.path());
    let dir = empty_dir(home.path());
    let mut mount = bosfs(home.path());
    mount.args(["mount", "no-bucket"]).arg(&dir);
    served.access(&mut mount);
    fails(&mut mount, 1, &["there is no bucket no-bucket", &served.endpoint]);
    let mut list = bosfs(home.path());
    list.args(["uploads", "list", "no-bucket"]);
    served.access(&mut list);
    fails(&mut list, 1, &["no-bucket"]);
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let home = tempfile::tempdir().unwrap();
    let served = Served::start(home.path());
    let dir = empty_dir(home.path());
    let mount = |state: &Path| {
        let mut command = bosfs(home.path());
        command.args(["mount", "my-bucket"]).arg(&dir).arg("--state-dir").arg(state);
        served.access(&mut command);
        command
    };
    let file = home.path().join("file");
    fs::write(&file, b"x").unwrap();
    fails(&mut mount(&file), 1, &["is not a directory", "--state-dir"]);
    let foreign = home.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), b"x").unwrap();
    fails(&mut mount(&foreign), 1, &["thesis.tex", "--state-dir"]);
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1, "nothing was put into a foreign folder");
}

#[test]
fn unmounting_what_is_no_bosfs_mount_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let dir = empty_dir(home.path());
    fails(bosfs(home.path()).arg("umount").arg(&dir), 1, &["nothing is mounted"]);
    fails(bosfs(home.path()).args(["umount", "/proc"]), 1, &["no bosfs mount but proc"]);
    fails(bosfs(home.path()).arg("umount").arg(home.path().join("missing")), 1, &["cannot find"]);
    fails(bosfs(home.path()).arg("status").arg(&dir), 1, &["neither a bosfs mount nor a state folder"]);
}

#[test]
fn status_without_mounts_says_so_in_both_forms() {
    let home = tempfile::tempdir().unwrap();
    let json = stdout_of(&bosfs(home.path()).args(["status", "--json"]).output().unwrap());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["mounts"].is_array() && json["offline"].as_array().unwrap().is_empty(), "{json}");
}

/// For a key that no journal knows, `bosfs uploads abort` wants the upload ID, `resume` wants `--from FILE`, and
/// `complete` is refused (exit 1 each); `abort` without `--yes` and without an answer exits 4.
#[test]
fn uploads_of_others_are_dropped_only_by_name_and_with_consent() {
    let home = tempfile::tempdir().unwrap();
    let served = Served::start(home.path());
    let run = |args: &[&str]| {
        let mut command = bosfs(home.path());
        command.arg("uploads").args(args);
        served.access(&mut command);
        command
    };
    let listed = stdout_of(&run(&["list", "my-bucket"]).output().unwrap());
    assert_eq!(listed, "no unfinished uploads in my-bucket\n");
    fails(&mut run(&["abort", "my-bucket/a"]), 1, &["no journal", "--upload-id"]);
    fails(&mut run(&["abort", "my-bucket/a", "--upload-id", "x"]), 4, &["nothing was dropped", "--yes"]);
    fails(&mut run(&["abort", "my-bucket/a", "--upload-id", "x", "--yes"]), 1, &["BOS knows no upload x"]);
    fails(&mut run(&["resume", "my-bucket/a"]), 1, &["no journal", "--from FILE"]);
    fails(&mut run(&["complete", "my-bucket/a"]), 1, &["no journal"]);
}

#[test]
fn a_second_server_over_the_same_folder_or_port_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let served = Served::start(home.path());
    let port = served.endpoint.rsplit(':').next().unwrap();
    fails(
        bosfs(home.path()).args(["serve", "--listen", "127.0.0.1:0"]).arg(home.path().join("served")),
        1,
        &["cannot serve", "served"],
    );
    let address = format!("127.0.0.1:{port}");
    fails(
        bosfs(home.path()).args(["serve", "--listen", &address]).arg(home.path().join("other")),
        1,
        &["cannot serve", &address],
    );
}

#[test]
fn a_reader_that_went_away_is_success() {
    let home = tempfile::tempdir().unwrap();
    let mut child =
        bosfs(home.path()).args(["status", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_hidden_child_mode_quotes_nothing_it_was_given() {
    let home = tempfile::tempdir().unwrap();
    let mut child = bosfs(home.path())
        .arg("--daemon-child")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{{\"secret_access_key\": \"{SECRET}\", ").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains(SECRET), "{output:?}");
}

/// mount(8) can call bosfs as `mount.fuse.bosfs BUCKET DIR -o ...`, with options such as `_netdev`.
#[test]
fn mount_8_can_call_it_by_its_name() {
    let home = tempfile::tempdir().unwrap();
    let dir = empty_dir(home.path());
    let helper = home.path().join("mount.fuse.bosfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_bosfs"), &helper).unwrap();
    let run = |args: &[&str]| {
        let mut command = bosfs(home.path());
        let mut called = Command::new(&helper);
        called.args(["my-bucket"]).arg(&dir).args(args).stdin(Stdio::null()).env_clear();
        for (name, value) in command.arg("x").get_envs() {
            if let Some(value) = value {
                called.env(name, value);
            }
        }
        called
    };
    fails(&mut run(&["-n", "-o", "rw,_netdev"]), 5, &["no credentials"]);
    assert!(run(&["-f", "-o", "rw"]).output().unwrap().status.success(), "a dry run");
}
