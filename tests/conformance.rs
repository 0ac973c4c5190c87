//! Drives the embedded server with the official Python SDK: proof that it is a BOS and not made to bosfs's measure.
//!
//! `scripts/test` makes the Python environment; `BOSFS_TEST_PYTHON` names another interpreter.

use std::path::{Path, PathBuf};
use std::process::Command;

use bosfs::serve::{ServeOptions, Server, ServerHandle};

/// The interpreter that has `bce-python-sdk`.
fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var_os("BOSFS_TEST_PYTHON").map_or_else(|| root.join("target/sdk-venv/bin/python3"), PathBuf::from);
    let has_sdk = Command::new(&python).args(["-c", "import baidubce"]).output().is_ok_and(|out| out.status.success());
    assert!(
        has_sdk,
        "{} cannot import baidubce. Run scripts/test, or: python3 -m venv target/sdk-venv && \
         target/sdk-venv/bin/pip install bce-python-sdk",
        python.display()
    );
    python
}

/// Runs `tests/sdk/SCRIPT ARGS` against `server` and returns what it printed.
fn run(server: &ServerHandle, script: &str, args: &[&str], dir: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Command::new(python())
        .arg(root.join("tests/sdk").join(script))
        .args(args)
        .current_dir(dir)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("BOS_ENDPOINT", server.endpoint())
        .env("BCE_ACCESS_KEY_ID", &server.credentials().access_key_id)
        .env("BCE_SECRET_ACCESS_KEY", &server.credentials().secret_access_key)
        .output()
        .expect("Python starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{script} {args:?}: {}\n{stdout}\n{stderr}", out.status);
    stdout.into_owned()
}

fn start(dir: &Path) -> ServerHandle {
    Server::start(ServeOptions::new(dir)).expect("the server starts")
}

#[test]
fn the_sdk_finds_a_bos() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir.path().join("bos"));
    let printed = run(&server, "suite.py", &[], dir.path());
    assert!(printed.contains("all passed"), "{printed}");
    let counts = server.counts();
    for call in ["PutObject", "GetObject", "HeadObject", "ListObjects", "UploadPart", "UploadPartCopy", "CopyObject"] {
        assert!(counts[call].requests > 0, "{call}");
    }
}

/// Bytes that differ from place to place.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

const STORY_PART_BYTES: usize = 256 << 10;

#[test]
fn an_upload_goes_on_in_another_program_and_after_a_restart_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let (bos, file) = (dir.path().join("bos"), dir.path().join("huge.iso"));
    // 40 parts and a bit.
    std::fs::write(&file, noise(40 * STORY_PART_BYTES + 1234)).unwrap();
    let file = file.to_str().unwrap();
    let server = start(&bos);
    server.create_bucket("story").unwrap();
    run(&server, "story.py", &["start", file, "saved"], dir.path());
    run(&server, "story.py", &["start", file, "lost"], dir.path());
    std::fs::remove_file(dir.path().join("lost.json")).unwrap();
    let credentials = server.credentials().clone();
    server.stop();

    let server = start(&bos);
    assert_eq!(*server.credentials(), credentials, "the same key after a restart");
    run(&server, "story.py", &["finish", file, "saved"], dir.path());
    run(&server, "story.py", &["find", file, "lost"], dir.path());
    // 41 parts each, of which 28 were sent before the restart.
    assert_eq!(server.counts()["UploadPart"].requests, 2 * 13);
    assert_eq!(server.counts()["UploadPart"].body_bytes, 2 * (12 * STORY_PART_BYTES as u64 + 1234));
    assert_eq!(server.counts()["CompleteMultipartUpload"].requests, 2);
}

#[test]
fn a_folder_is_served_by_one_server_only() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path());
    let refusal = Server::start(ServeOptions::new(dir.path())).err().expect("the folder is taken").to_string();
    assert!(refusal.contains("already served by process"), "{refusal}");
    first.stop();
    start(dir.path()).stop();
}
