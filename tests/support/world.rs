//! One test's world: a temporary folder, the embedded server, the fault proxy before it, and mounts through the proxy.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::bucket::{Bucket, TestKeys};
use super::mounted::{MountSpec, Mounted, bosfs_binary};
use super::proxy::FaultProxy;

/// Bucket of every test.
pub const BUCKET: &str = "bkt";
/// Longest wait for the server to answer.
const SERVER_TIMEOUT: Duration = Duration::from_secs(20);

/// `bosfs serve` as a process: it can be killed and started again at the same port with the same data.
pub struct TestServer {
    dir: PathBuf,
    addr: SocketAddr,
    keys: TestKeys,
    child: Option<Child>,
}

impl TestServer {
    /// Starts one over `dir` at a free port, with bucket [`BUCKET`].
    pub fn start(dir: &Path) -> io::Result<Self> {
        // The port is free now and, as the kernel hands ports out in turn, still free when the server binds it.
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let keys = TestKeys { access_key: "testaccesskey".into(), secret_key: "testsecretkey0123456789".into() };
        let mut server = Self { dir: dir.to_owned(), addr, keys, child: None };
        server.start_again()?;
        Ok(server)
    }

    /// Starts the server again at the same address.
    pub fn start_again(&mut self) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut child = Command::new(bosfs_binary())
            .arg("serve")
            .arg(self.dir.join("data"))
            .args(["--listen", &self.addr.to_string(), "--bucket", BUCKET])
            .args(["--ak", &self.keys.access_key, "--sk", &self.keys.secret_key])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let end = Instant::now() + SERVER_TIMEOUT;
        loop {
            // The bucket, not the port, says that the server is ready and ours.
            if TcpStream::connect(self.addr).is_ok()
                && self.bucket().call("HEAD", "", &[], &[], b"", &mut |_| {}).is_ok_and(|reply| reply.status == 200)
            {
                self.child = Some(child);
                return Ok(());
            }
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                return Err(io::Error::other(format!("bosfs serve does not answer (ended: {ended:?})\n{log}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.join("serve.log")
    }
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
    pub fn keys(&self) -> &TestKeys {
        &self.keys
    }
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The bucket, asked directly and not through any proxy.
    pub fn bucket(&self) -> Bucket {
        Bucket::new(self.addr, BUCKET, &self.keys)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Everything a test of the mount needs.
pub struct World {
    // Dropped in this order; mounts must be gone before.
    pub bucket: Bucket,
    pub proxy: FaultProxy,
    pub server: TestServer,
    pub tmp: TempDir,
}

impl World {
    /// A new one below `BOSFS_TEST_DIR`, else the system's temporary folder.
    pub fn new() -> Self {
        Self::try_new().unwrap_or_else(|e| panic!("test world: {e}"))
    }

    pub fn try_new() -> io::Result<Self> {
        let tmp = match std::env::var_os("BOSFS_TEST_DIR") {
            Some(dir) => TempDir::with_prefix_in("bosfs-test-", dir)?,
            None => TempDir::with_prefix("bosfs-test-")?,
        };
        let server = TestServer::start(&tmp.path().join("server"))?;
        let proxy = FaultProxy::start(server.addr())?;
        let world = Self { bucket: server.bucket(), proxy, server, tmp };
        let keys = world.server.keys();
        std::fs::write(
            world.credentials(),
            format!(
                "[defaults]\nbce_access_key_id = {}\nbce_secret_access_key = {}\n",
                keys.access_key, keys.secret_key
            ),
        )?;
        Ok(world)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }
    pub fn credentials(&self) -> PathBuf {
        self.path("credentials")
    }
    pub fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    /// Endpoint, credentials and state directory of this world, with further options of `mount`.
    pub fn spec(&self, args: &[&str]) -> MountSpec {
        MountSpec {
            target: BUCKET.into(),
            dir: self.path("mnt"),
            endpoint: self.proxy.endpoint(),
            credentials: self.credentials(),
            state_dir: self.state_dir(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
            log: self.path("bosfs.log"),
        }
    }

    /// Mounts the bucket through the proxy.
    pub fn mount(&self, args: &[&str]) -> Mounted {
        self.spec(args).mount().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Writes a random file outside the mount.
    pub fn random_file(&self, name: &str, seed: u64, bytes: u64) -> PathBuf {
        let path = self.path(name);
        super::files::write_random(&path, seed, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// The directories of journals in the state directory.
    pub fn journals(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.state_dir().join("uploads"));
        entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// Asserts that the object has exactly the bytes of `file`, by a GET past proxy and mount.
    pub fn assert_object_is_file(&self, key: &str, file: &Path) {
        let expected = super::files::md5_of_file(file).unwrap();
        let (found, size) = self.bucket.get_md5(key).unwrap_or_else(|e| panic!("{e}\n{}", self.log_text()));
        assert_eq!(size, std::fs::metadata(file).unwrap().len(), "size of {key}");
        assert_eq!(found, expected, "MD5 of {key}");
    }

    /// Waits until the key has an object of this size.
    pub fn wait_object(&self, key: &str, size: u64, timeout: Duration) {
        let end = Instant::now() + timeout;
        loop {
            let seen = self.bucket.head(key).unwrap_or(None);
            if seen.as_ref().is_some_and(|seen| seen.size == size) {
                return;
            }
            let log = || format!("{}\n{}", self.proxy.counts().log_text(), self.log_text());
            assert!(Instant::now() < end, "{key} is {seen:?}, not {size} bytes\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The log of all mounts of this world.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.path("bosfs.log")).unwrap_or_default()
    }
}
