//! One test's world: a temporary folder, the embedded server, the fault proxy before it, and mounts through the proxy.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bosfs::bos::sign::Credentials;
use bosfs::serve::{ServeOptions, Server, ServerHandle, Variants};
use tempfile::TempDir;

use super::bucket::{Bucket, TestKeys};
use super::call::Call;
use super::mounted::{MountSpec, Mounted};
use super::proxy::FaultProxy;

/// Bucket of every test.
pub const BUCKET: &str = "bkt";

/// The embedded server; it can be stopped and started again at the same port with the same data.
pub struct TestServer {
    options: ServeOptions,
    handle: Option<ServerHandle>,
}

impl TestServer {
    /// Starts one over `dir` at a free port, with bucket [`BUCKET`].
    pub fn start(dir: &Path, variants: Variants) -> io::Result<Self> {
        let mut options = ServeOptions::new(dir);
        options.credentials = Some(Credentials::new("testaccesskey", "testsecretkey0123456789"));
        options.faithful_variants = variants;
        let handle = Server::start(options.clone())?;
        options.listen = handle.addr();
        handle.create_bucket(BUCKET).map_err(|e| io::Error::other(format!("{e:?}")))?;
        Ok(Self { options, handle: Some(handle) })
    }

    /// Cuts all connections; nothing answers at the address any more.
    pub fn stop(&mut self) {
        self.handle = None;
    }

    /// Starts the server again at the same address.
    pub fn start_again(&mut self) -> io::Result<()> {
        self.stop();
        self.handle = Some(Server::start(self.options.clone())?);
        Ok(())
    }

    /// The same data with other habits from now on.
    pub fn set_variants(&mut self, variants: Variants) -> io::Result<()> {
        self.options.faithful_variants = variants;
        self.start_again()
    }

    /// The same data under other keys from now on; the earlier ones are refused.
    pub fn set_credentials(&mut self, credentials: Credentials) -> io::Result<()> {
        self.options.credentials = Some(credentials);
        self.start_again()
    }

    pub fn credentials(&self) -> Credentials {
        self.options.credentials.clone().expect("given at the start")
    }

    pub fn addr(&self) -> SocketAddr {
        self.options.listen
    }

    /// The running server.
    pub fn handle(&self) -> &ServerHandle {
        self.handle.as_ref().expect("the server runs")
    }

    pub fn keys(&self) -> TestKeys {
        let credentials = self.options.credentials.clone().expect("given at the start");
        TestKeys { access_key: credentials.access_key_id, secret_key: credentials.secret_access_key }
    }

    /// The bucket, asked directly and not through any proxy.
    pub fn bucket(&self) -> Bucket {
        Bucket::new(self.addr(), BUCKET, &self.keys())
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

    /// With a server of other habits.
    pub fn with(variants: Variants) -> Self {
        Self::build(variants).unwrap_or_else(|e| panic!("test world: {e}"))
    }

    pub fn try_new() -> io::Result<Self> {
        Self::build(Variants::default())
    }

    fn build(variants: Variants) -> io::Result<Self> {
        let tmp = match std::env::var_os("BOSFS_TEST_DIR") {
            Some(dir) => TempDir::with_prefix_in("bosfs-test-", dir)?,
            None => TempDir::with_prefix("bosfs-test-")?,
        };
        let server = TestServer::start(&tmp.path().join("server"), variants)?;
        let proxy = FaultProxy::start(server.addr())?;
        proxy.set_hands(server.bucket());
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
            wrapper: Vec::new(),
            log: self.path("bosfs.log"),
            binary: super::mounted::bosfs_binary(),
        }
    }

    /// Mounts the bucket through the proxy.
    pub fn mount(&self, args: &[&str]) -> Mounted {
        self.spec(args).mount().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Waits until the proxy has seen `requests` of `call`.
    pub fn wait_for_requests(&self, call: Call, requests: u64) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.proxy.counts().requests(call) < requests {
            assert!(Instant::now() < end, "no {requests} requests of {call}: {}", self.proxy.counts().log_text());
            std::thread::sleep(Duration::from_millis(5));
        }
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

    /// Waits, after a kill, until nothing of the dead process is on its way any more. What the server got in the last moment
    /// it may take up to then: a ListParts before that would not show it.
    pub fn wait_quiet(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.proxy.counts().calls.values().any(|count| count.open > 0) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(50));
    }

    /// The log of all mounts of this world.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.path("bosfs.log")).unwrap_or_default()
    }
}
