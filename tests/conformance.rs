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
