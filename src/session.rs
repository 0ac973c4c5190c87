//! One mount: builds the column from client to kernel, and owns the order of start and stop.
//!
//! Start: bucket looked at -> lease and state directory -> journals replayed -> kernel mount -> control socket -> ready.
//! Stop: mount gone (someone unmounted) -> drain -> end; or a signal -> stop at once -> detach -> end. The journal keeps
//! whatever is not in BOS either way.

mod bucket;
mod control;
mod mount;
mod registry;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bucket::AbortRule;
use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::bos::{BosClient, BosError};
use crate::config::CredentialsSource;
use crate::config::paths::BucketPath;
use crate::journal::StateDir;
use crate::journal::state_dir::{Holder, Identity, StateDirError};
use crate::moves::{Moves, RenameFollower, RenamedObject};
use crate::object::{ObjectKey, Timestamp};
use crate::observe::StatusSnapshot;
use crate::observe::control::SOCKET_NAME;
use crate::upload::{DirtyFile, FileStatus, UploadOptions, Uploads, WriteError};

/// Longest wait for tasks to stop after a signal.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for `bosfs umount` to hear that the session ended.
const FAREWELL_WITHIN: Duration = Duration::from_secs(2);

/// Everything that one mount is made from.
pub struct SessionOptions {
    /// What is mounted.
    pub bucket: BucketPath,
    /// Where; absolute, resolved, checked.
    pub mount_point: PathBuf,
    /// What the state directory belongs to.
    pub identity: Identity,
    /// The state directory.
    pub state_dir: PathBuf,
    /// Speaks to the bucket.
    pub client: BosClient,
    /// Looked at again every second.
    pub credentials: Arc<CredentialsSource>,
    /// Settings of uploads.
    pub uploads: UploadOptions,
    /// First pause before a file that failed is tried again.
    pub retry_failed: Duration,
    /// Settings of reads, attributes and the kernel mount.
    pub mount: MountSettings,
}

/// Settings of reads, attributes and the kernel mount.
#[derive(Clone, Debug)]
pub struct MountSettings {
    /// Refuse every change.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Owner of files that carry none.
    pub uid: u32,
    /// Group of files that carry none.
    pub gid: u32,
    /// Permissions taken from files that carry none.
    pub umask: u32,
    /// How long attributes are believed.
    pub metadata_ttl: Duration,
    /// Ask what small objects are before they are listed.
    pub exact_types: bool,
    /// Memory for reads, bytes.
    pub memory_bytes: u64,
    /// Ranges fetched at the same time.
    pub downloads_max: usize,
}

/// Why a mount could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The first look at the bucket failed.
    #[error("the bucket cannot be reached")]
    Bucket(#[source] Box<BosError>),
    /// The bucket has a namespace of real folders, which behaves differently.
    #[error(
        "the bucket {0} has a hierarchical namespace, which bosfs does not know how to mount yet; use a flat bucket"
    )]
    Hierarchical(String),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// A signal came before the mount was made.
    #[error("interrupted before the mount was made; nothing is mounted")]
    Interrupted,
    /// A step of the start failed.
    #[error("{doing}: {source}")]
    Step {
        /// Which.
        doing: &'static str,
        /// How.
        source: std::io::Error,
    },
}

fn step(doing: &'static str) -> impl FnOnce(std::io::Error) -> SessionError {
    move |source| SessionError::Step { doing, source }
}

/// What the control socket needs of a running session.
pub(crate) struct Running {
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) moves: Arc<Moves>,
    client: BosClient,
    fixed: StatusSnapshot,
    abort_rule: Mutex<AbortRule>,
    phase: Mutex<&'static str>,
    stop: watch::Sender<bool>,
    pub(crate) ended: watch::Sender<Option<Vec<FileStatus>>>,
    connections: AtomicUsize,
    /// Counts the names that the kernel knows, once there is a mount.
    known_names: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
}

/// Counts a connection of the control socket as long as it lives.
pub(crate) struct Connection(Arc<Running>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Running {
    /// The present state.
    pub(crate) fn snapshot(&self) -> StatusSnapshot {
        let mut snapshot = self.fixed.clone();
        snapshot.phase = (*self.phase.lock()).to_owned();
        match &*self.abort_rule.lock() {
            AbortRule::None => {}
            AbortRule::After(days) => snapshot.abort_rule_days = Some(*days),
            AbortRule::Unknown { why, .. } => snapshot.abort_rules_unknown = Some(why.clone()),
        }
        snapshot.spool.free_bytes = self.uploads.spool_free_bytes();
        snapshot.known_names = self.known_names.get().map_or(0, |count| count());
        if let Some(down) = self.client.line_down() {
            snapshot.line_down_since = Some(down.since);
            snapshot.line_error = Some(down.message);
        }
        let mut files = self.uploads.status();
        files.extend(self.moves.status());
        snapshot.with_files(files)
    }

    /// Reads the lifecycle rules again and again.
    async fn watch_rules(self: Arc<Self>) {
        let known = self.abort_rule.lock().clone();
        let read = || self.client.abort_rule_days(&self.fixed.prefix);
        let tell = |rule: AbortRule| {
            let mut known = self.abort_rule.lock();
            rule.tell(&self.fixed.bucket, Some(&known));
            self.uploads.set_abort_rules(rule.as_abort_rules());
            *known = rule;
        };
        bucket::watch_rules(&known, read, tell).await;
    }

    /// Waits until nothing closed is pending and no name is on its way. Returns what failed, is interrupted or was kept.
    pub(crate) async fn drain(&self) -> Vec<FileStatus> {
        // First the names: a file that gets one may have to be published under it.
        self.moves.drain().await;
        let mut remaining = self.uploads.drain().await;
        remaining.extend(self.moves.drain().await);
        remaining
    }

    pub(crate) fn connection(self: &Arc<Self>) -> Connection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connection(self.clone())
    }

    pub(crate) fn ask_to_stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Publishes a file now: what its writer closed, or what an interrupted writer left. `force`: also over a conflict.
/// `as_key`: under this key instead. Returns the key that it has then.
///
/// # Errors
/// As a close of the file would fail; `EEXIST` when `as_key` is taken.
pub async fn complete(
    uploads: &Uploads,
    file: &Arc<DirtyFile>,
    force: bool,
    as_key: Option<&str>,
) -> Result<ObjectKey, WriteError> {
    match as_key {
        Some(key) => {
            let key = ObjectKey::parse(key).map_err(|error| WriteError::failed(libc::EINVAL, error.to_string()))?;
            uploads.complete_as(file, &key).await?;
        }
        None => file.complete_now(force).await?,
    }
    Ok(file.key())
}

/// Drops what is unfinished of a file: its upload is aborted, its spool removed; an object that was there before stays.
///
/// # Errors
/// When the journal cannot be written, or BOS refuses.
pub async fn abort(file: &Arc<DirtyFile>) -> Result<(), WriteError> {
    file.give_up().await
}

/// Looks at the bucket, and at its lifecycle rules.
async fn look_at_bucket(options: &SessionOptions) -> Result<AbortRule, SessionError> {
    bucket::look_at(&options.client, &options.bucket).await?;
    Ok(AbortRule::of(options.client.abort_rule_days(&options.bucket.prefix).await))
}

/// The signals that end a mount: SIGTERM, and what a terminal sends (Ctrl-C, Ctrl-\\, hanging up).
struct EndSignals([Signal; 4]);

impl EndSignals {
    /// From now on they have no other effect.
    fn catch() -> std::io::Result<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];
        let [terminate, interrupt, hangup, quit] = kinds.map(signal);
        Ok(Self([terminate?, interrupt?, hangup?, quit?]))
    }

    /// Waits for one of them.
    async fn recv(&mut self) {
        let [terminate, interrupt, hangup, quit] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

/// Mounts, tells `ready` once the mount is made, and works until the mount is gone and everything is sent, or until
/// a signal that ends programs or a stop over the control socket. Must run in a tokio runtime with several threads.
///
/// # Errors
/// The mount could not be made; `ready` was not called then. An error of `ready` (nobody waits for the mount) takes the
/// mount away again.
pub async fn run(
    options: SessionOptions,
    ready: impl FnOnce(&StatusSnapshot) -> std::io::Result<()>,
) -> Result<(), SessionError> {
    raise_descriptor_limit();
    let mut end = EndSignals::catch().map_err(step("cannot catch signals"))?;
    let abort_rule = tokio::select! {
        looked = look_at_bucket(&options) => looked?,
        () = end.recv() => return Err(SessionError::Interrupted),
    };
    abort_rule.tell(&options.bucket.bucket, None);
    let state = Arc::new(StateDir::open(&options.state_dir, &options.identity)?);
    let _remembered = registry::remember(state.path(), &options.identity);
    for sentence in state.weakened() {
        log::warn!("{sentence}");
    }
    let uploads = Uploads::start_before_renames(options.uploads.clone(), options.client.clone(), state.clone())
        .map_err(step("cannot take up the journal"))?;
    uploads.set_abort_rules(abort_rule.as_abort_rules());
    let followers = uploads.clone();
    let follower: RenameFollower = Box::new(move |renamed: RenamedObject| {
        let followers = followers.clone();
        Box::pin(async move { followers.follow_rename(&renamed).await })
    });
    let moves = Moves::start(options.client.clone(), state.clone(), options.uploads.uploads_max, follower)
        .map_err(step("cannot take up the renames of the journal"))?;
    let left = moves.clone();
    uploads.renames_taken_up(Arc::new(move |key| {
        let left = left.clone();
        Box::pin(async move {
            // One that cannot be finished is told by itself.
            let _ = left.wait_clear(key.as_str()).await;
        })
    }));
    if options.uploads.adopt {
        let found = tokio::select! {
            found = uploads.find_adoptable(&options.bucket.prefix, || moves.status()) => found,
            () = end.recv() => {
                stop(&uploads, &moves).await;
                return Err(SessionError::Interrupted);
            }
        };
        match found {
            Ok(0) => log::info!("--adopt: the bucket has no unfinished uploads"),
            Ok(count) => log::info!("--adopt: {count} unfinished uploads of the bucket may be gone on with"),
            Err(error) => log::warn!("--adopt: the unfinished uploads cannot be listed, none is adopted: {error}"),
        }
    }
    let running = Arc::new(Running {
        uploads: uploads.clone(),
        moves: moves.clone(),
        client: options.client.clone(),
        fixed: fixed_status(&options, &state),
        abort_rule: Mutex::new(abort_rule),
        phase: Mutex::new("mounted"),
        stop: watch::Sender::new(false),
        ended: watch::Sender::new(None),
        connections: AtomicUsize::new(0),
        known_names: OnceLock::new(),
    });
    let listener = control::bind(state.path()).map_err(step("cannot make the control socket"))?;
    let serving = tokio::spawn(control::serve(listener, running.clone()));
    let holder = Holder::this_process(Some(options.mount_point.clone()), Some(state.path().join(SOCKET_NAME)));
    state.set_holder(&holder).map_err(step("cannot write the lease"))?;
    let refreshing = tokio::spawn(refresh(options.credentials.clone()));
    let watching = tokio::spawn(running.clone().watch_rules());
    // Ends with the uploads.
    tokio::spawn({
        let (uploads, pause) = (uploads.clone(), options.retry_failed);
        async move { uploads.retry_failures(pause).await }
    });

    let mounted = mount::attach(&options, &running).await.map_err(step("cannot mount"));
    let mut mounted = match mounted {
        Ok(mounted) => mounted,
        Err(error) => {
            watching.abort();
            stop(&uploads, &moves).await;
            let _ = std::fs::remove_file(state.path().join(SOCKET_NAME));
            return Err(error);
        }
    };
    log::info!("{} is mounted at {}", options.bucket, options.mount_point.display());
    let mut stopped = running.stop.subscribe();
    let told =
        ready(&running.snapshot()).inspect_err(|_| log::warn!("nobody waits for the mount any more; it is taken away"));

    let mut asked = told.is_err();
    if !asked {
        tokio::select! {
            () = mounted.gone() => log::info!("{} was unmounted", options.mount_point.display()),
            () = end.recv() => asked = true,
            _ = stopped.wait_for(|stop| *stop) => asked = true,
        }
    }
    if !asked {
        *running.phase.lock() = "draining";
        tokio::select! {
            remaining = drain(&mounted, &running) => {
                running.ended.send_replace(Some(remaining));
                farewell(&running).await;
            }
            () = end.recv() => asked = true,
            _ = stopped.wait_for(|stop| *stop) => asked = true,
        }
    }
    if asked {
        log::info!("stopping; the journal keeps everything that is not in BOS yet");
    }
    mounted.detach();
    stop(&uploads, &moves).await;
    mounted.finish();
    refreshing.abort();
    watching.abort();
    serving.abort();
    let _ = std::fs::remove_file(state.path().join(SOCKET_NAME));
    told.map_err(step("nobody waits for the mount"))
}

/// Waits until everything is in BOS; what is left cannot get there now.
async fn drain(mounted: &mount::Mounted, running: &Running) -> Vec<FileStatus> {
    mounted.release_left();
    mounted.settle().await;
    // What acts wait for whose callers have left: removals, publications, renames.
    running.drain().await;
    mounted.acts_ended().await;
    mounted.settle().await;
    running.drain().await
}

/// Files that are on their way keep three descriptors each; shells give programs 1024, and allow many more.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit != raised
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        log::info!("the limit of open descriptors stays at {:?}: {error}", limit.current);
    }
}

async fn stop(uploads: &Uploads, moves: &Moves) {
    let both = async { tokio::join!(uploads.stop(), moves.stop()) };
    if tokio::time::timeout(STOP_WITHIN, both).await.is_err() {
        log::warn!("uploads did not stop within {STOP_WITHIN:?}; the journal is complete all the same");
    }
}

/// Gives whoever waits for the end the time to hear of it.
async fn farewell(running: &Running) {
    let all_gone = async {
        while running.connections.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL_WITHIN, all_gone).await;
}

async fn refresh(credentials: Arc<CredentialsSource>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let credentials = credentials.clone();
        let _ = tokio::task::spawn_blocking(move || credentials.refresh()).await;
    }
}

fn fixed_status(options: &SessionOptions, state: &StateDir) -> StatusSnapshot {
    let mut status = StatusSnapshot {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        bucket: options.bucket.bucket.clone(),
        prefix: options.bucket.prefix.clone(),
        endpoint: options.client.endpoint().to_owned(),
        mount_point: Some(options.mount_point.clone()),
        state_dir: state.path().to_owned(),
        write_back: options.uploads.write_back,
        since: Timestamp::now().sec,
        ..StatusSnapshot::default()
    };
    status.spool.limit_bytes = options.uploads.spool_limit_bytes;
    status
}
