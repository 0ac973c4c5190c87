//! Drives the embedded server with the official Python SDK: proof that it is a BOS and not made to bosfs's measure.
//!
//! `scripts/test` makes the Python environment; `BOSFS_TEST_PYTHON` names another interpreter.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bosfs::serve::{ServeOptions, Server, ServerHandle, Variants};

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

// Not a test by itself: serves the folder that the environment names, for the kill test below.
#[test]
fn child_server() {
    let Some(dir) = std::env::var_os("BOSFS_TEST_SERVE_DIR") else { return };
    let server = start(Path::new(&dir));
    std::fs::write(Path::new(&dir).join("endpoint"), server.endpoint()).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(60));
}

/// A process that serves a folder; killed when dropped.
struct ChildServer(Child);

impl ChildServer {
    /// Serves `dir`. Returns its endpoint too.
    fn start(dir: &Path) -> (Self, String) {
        let _ = std::fs::remove_file(dir.join("endpoint"));
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_server"])
            .env("BOSFS_TEST_SERVE_DIR", dir)
            .stdout(Stdio::null())
            .spawn()
            .map(ChildServer)
            .unwrap();
        for _ in 0..600 {
            if let Ok(endpoint) = std::fs::read_to_string(dir.join("endpoint"))
                && !endpoint.is_empty()
            {
                return (child, endpoint);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the child server did not start");
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        // SIGKILL; an error means that it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let bos = dir.path().join("bos");
    start(&bos).create_bucket("kill").unwrap();
    let credentials = start(&bos).credentials().clone();
    for round in 0..3u64 {
        let (child, endpoint) = ChildServer::start(&bos);
        // Writes objects and parts as fast as it can, and a line for each answer that it got.
        let mut writer = Command::new(python())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/acknowledged.py"))
            .args(["write", &round.to_string()])
            .current_dir(dir.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("BOS_ENDPOINT", endpoint)
            .env("BCE_ACCESS_KEY_ID", &credentials.access_key_id)
            .env("BCE_SECRET_ACCESS_KEY", &credentials.secret_access_key)
            .spawn()
            .unwrap();
        let acknowledged = dir.path().join("acknowledged");
        let lines = || std::fs::read_to_string(&acknowledged).map_or(0, |text| text.lines().count());
        let before = lines();
        for _ in 0..600 {
            if lines() > before + 100 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        std::thread::sleep(std::time::Duration::from_millis(round * 37));
        drop(child);
        assert!(writer.wait().unwrap().success());
        assert!(lines() > before + 100, "round {round}: the writer did not get going");
    }
    let server = start(&bos);
    let printed = run(&server, "acknowledged.py", &["check"], dir.path());
    assert!(printed.contains("all there"), "{printed}");
}

#[test]
fn variants_change_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = ServeOptions::new(dir.path().join("bos"));
    options.faithful_variants = Variants {
        no_crc_headers: true,
        no_crc_on_composed_objects: true,
        opaque_composed_etags: true,
        opaque_part_etags: true,
        parts_of_5_mib: true,
        delete_missing_204: true,
        no_copy_of_appendable_onto_itself: true,
        no_part_of_appendable: true,
    };
    let server = Server::start(options).unwrap();
    let printed = run(&server, "variants.py", &[], dir.path());
    assert!(printed.contains("all passed"), "{printed}");
}

#[tokio::test]
async fn a_server_can_be_used_and_dropped_inside_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    server.create_bucket("bkt").unwrap();
    server.put_sparse("bkt", "huge", 50 << 30).unwrap();
    assert!(server.counts().is_empty());
    let refused = server.put_sparse("none", "huge", 1).unwrap_err();
    assert_eq!(refused.code, "NoSuchBucket");
    drop(server);

    let (ready, mut told) = tokio::sync::mpsc::channel(1);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(bosfs::serve::run(
        ServeOptions::new(dir.path()),
        move |server| ready.try_send(server.addr()).unwrap(),
        async { drop(stopped.await) },
    ));
    let addr = told.recv().await.unwrap();
    assert!(tokio::net::TcpStream::connect(addr).await.is_ok());
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}
