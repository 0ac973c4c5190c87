//! The embedded BOS server: the REST API over a local folder (BOS docs; bos-api.md sections 1 to 6).
//!
//! ```text
//! connection -> request.rs (which call? signed?) -> calls.rs, calls/ -> store.rs (index, data files)
//!                                   body.rs: bodies to and from data files     headers.rs, conditions.rs, wire.rs: forms
//! ```
//!
//! It knows nothing of mounts and has no faults to inject: those come from a proxy in the tests' support.

mod answer;
mod body;
mod calls;
pub mod conditions;
mod counts;
mod credentials;
mod error;
pub mod headers;
pub mod request;
pub mod store;
mod wire;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

pub use counts::{CallCount, Counts};
pub use error::ApiError;
use store::Store;

use crate::bos::sign::Credentials;
use crate::object::{Checksum, Md5};

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// Buffer of a connection: bounds its headers, and is what a body is read into.
const CONNECTION_BYTES_MAX: usize = 512 << 10;
/// Time for the headers of a request, and for a connection without one.
const HEADERS_WITHIN: Duration = Duration::from_secs(120);
/// Time for requests under way when the server stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Behaviour that BOS may or may not have (bos-api.md section 11). The default is what the vendors' live tests say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variants {
    /// No answer has a CRC header.
    pub no_crc_headers: bool,
    /// HEAD, GET and Complete of composed objects have no CRC header; parts and simple objects do.
    pub no_crc_on_composed_objects: bool,
    /// Composed objects have an ETag that follows no rule.
    pub opaque_composed_etags: bool,
    /// ETags of parts and simple objects are no MD5, as in encrypted buckets.
    pub opaque_part_etags: bool,
    /// Every part but the last has at least 5 MiB and whole MiBs (the older rule), else `EntityTooSmall`.
    pub parts_of_5_mib: bool,
    /// Deleting a missing key answers 204, and batch deletes do not report it.
    pub delete_missing_204: bool,
    /// An appendable object is not copied onto itself either (to another key it never is).
    pub no_copy_of_appendable_onto_itself: bool,
    /// No part of an upload is copied from an appendable object.
    pub no_part_of_appendable: bool,
}

/// How to serve a folder.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The folder; made if needed.
    pub dir: PathBuf,
    /// Where to listen; port 0: any free one.
    pub listen: SocketAddr,
    /// The access key that clients must use; `None`: the one kept in the folder, generated at the first start.
    pub credentials: Option<Credentials>,
    /// Region that buckets are said to be in.
    pub region: String,
    /// The server's own host name: `BUCKET.` before it names a bucket.
    pub base_host: String,
    /// Whether every write reaches the medium before it is answered. Without, a power failure may cost the folder its
    /// last half minute or its index; a kill of the process costs nothing.
    pub sync: bool,
    /// For tests of clients.
    pub faithful_variants: Variants,
}

impl ServeOptions {
    /// Loopback, any port, credentials of the folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            credentials: None,
            region: "bj".to_owned(),
            base_host: "localhost".to_owned(),
            sync: false,
            faithful_variants: Variants::default(),
        }
    }
}

/// What every request needs.
pub(crate) struct Shared {
    store: Arc<Store>,
    credentials: Credentials,
    region: String,
    base_host: String,
    variants: Variants,
    counts: Counts,
}

impl Shared {
    fn owner(&self) -> wire::Owner {
        let id = Md5::of(self.credentials.access_key_id.as_bytes()).to_hex();
        wire::Owner { id, display_name: "bosfs".to_owned() }
    }

    /// The ETag of a received body.
    fn content_etag(&self, checksum: &Checksum) -> String {
        if self.variants.opaque_part_etags {
            return Md5::of(format!("encrypted {}", checksum.md5.to_hex()).as_bytes()).to_hex();
        }
        checksum.md5.to_hex()
    }
}

/// Starts servers.
pub struct Server;

impl Server {
    /// Opens the folder, listens, and serves on threads of its own until the handle is stopped or dropped.
    ///
    /// # Errors
    /// The folder is served by another process, cannot be written, or the address is taken.
    pub fn start(options: ServeOptions) -> io::Result<ServerHandle> {
        let store = Store::open(&options.dir, options.sync)?;
        let credentials = match options.credentials {
            Some(credentials) => credentials,
            None => credentials::load_or_generate(&options.dir)?,
        };
        let listener = std::net::TcpListener::bind(options.listen)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {}: {error}", options.listen)))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            store,
            credentials: credentials.clone(),
            region: options.region,
            base_host: options.base_host.to_ascii_lowercase(),
            variants: options.faithful_variants,
            counts: Counts::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("bos-serve")
            // Each connection may hold one: a stalled reader must not keep others from writing.
            .max_blocking_threads(CONNECTIONS_MAX + 64)
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = shared.clone();
        let thread = std::thread::Builder::new().name("bos-serve".into()).spawn(move || {
            runtime.block_on(accept(listener, serving, stopped));
            runtime.shutdown_timeout(STOP_WITHIN);
        })?;
        Ok(ServerHandle { addr, credentials, shared: Some(shared), stop: Some(stop), thread: Some(thread) })
    }
}

/// A running server. Dropping it stops it.
pub struct ServerHandle {
    addr: SocketAddr,
    credentials: Credentials,
    shared: Option<Arc<Shared>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ServerHandle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// As a client's endpoint: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The access key that clients must use.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Requests and body bytes so far, by call name (`PutObject`, `UploadPart`, `HeadObject`, `ListObjects`, ...).
    pub fn counts(&self) -> BTreeMap<String, CallCount> {
        self.shared.as_ref().map(|shared| shared.counts.get()).unwrap_or_default()
    }

    /// Counts from zero again.
    pub fn reset_counts(&self) {
        if let Some(shared) = &self.shared {
            shared.counts.reset();
        }
    }

    /// Makes a bucket without a request.
    ///
    /// # Errors
    /// As PutBucket.
    pub fn create_bucket(&self, bucket: &str) -> Result<(), ApiError> {
        if !request::is_bucket_name(bucket) {
            return Err(ApiError::bad("InvalidBucketName", format!("{bucket:?} cannot name a bucket")));
        }
        self.store()?.create_bucket_blocking(bucket)
    }

    /// Makes an object of `size` zeros that takes no room on the disk.
    ///
    /// # Errors
    /// `NoSuchBucket`, or what the disk says.
    pub fn put_sparse(&self, bucket: &str, key: &str, size: u64) -> Result<(), ApiError> {
        self.store()?.put_sparse(bucket, key, size)
    }

    fn store(&self) -> Result<&Store, ApiError> {
        self.shared.as_ref().map(|shared| &*shared.store).ok_or_else(|| ApiError::internal("the server has stopped"))
    }

    /// Stops serving: connections are cut, what was acknowledged stays. Returns once the folder is free.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the accepting thread has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the embedded server's thread ended by a panic");
        }
        self.shared = None;
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Serves until `shutdown`. `ready` is told the address and the credentials as soon as requests are taken.
///
/// # Errors
/// As [`Server::start`].
pub async fn run(
    options: ServeOptions,
    ready: impl FnOnce(&ServerHandle),
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let handle = tokio::task::spawn_blocking(move || Server::start(options)).await.map_err(io::Error::other)??;
    ready(&handle);
    shutdown.await;
    tokio::task::spawn_blocking(move || handle.stop()).await.map_err(io::Error::other)
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return log::error!("cannot accept connections: {error}"),
    };
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            _ = &mut stopped => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    serve_connection(stream, shared).await;
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: a moment later some connection has ended.
                log::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("cannot set TCP_NODELAY: {error}");
    }
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(calls::serve(shared, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(CONNECTION_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        log::debug!("a connection ended: {error}");
    }
}
