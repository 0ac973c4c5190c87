//! Mode, owner and times of directories: gathered for a moment, then one PUT of the marker.
//!
//! ```text
//!   set_dir_attrs() --> pending (in the log, shown at once) --GATHER later--> PUT of the marker --> done
//!                            ^------------ set again meanwhile ------------------'
//! ```
//!
//! Times that change because entries come and go are kept by the [`Namespace`] only: in memory and in its file.

pub mod pending_log;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::Fs;
use super::attr::{AttrChange, Content, Node};
use super::error::{FsError, FsResult};
use crate::bos::error::{BosError, BosErrorKind};
use crate::fail_point::fail_point;
use crate::namespace::attributes::{DirTimes, Modified};
use crate::namespace::inode::ROOT;
use crate::namespace::{Emptiness, Namespace};
use crate::object::{FileAttrs, Timestamp};
use pending_log::{PendingLog, Wanted};

/// How long changes of one directory are gathered after the last one.
const GATHER: Duration = Duration::from_millis(500);
/// How long at most after the first one.
const GATHER_MAX: Duration = Duration::from_secs(2);
/// Markers written at once.
const PUTS_MAX: usize = 16;
/// Directories whose attributes are on their way at most; whoever sets more waits.
const PENDING_MAX: usize = 50_000;
/// Pause before a marker is tried again, after the client gave up.
const RETRY: Duration = Duration::from_secs(5);
/// The same after an answer that will not change soon (no permission, ...).
const RETRY_FAILED: Duration = Duration::from_secs(300);
/// Longest wait for the attributes of the mounted prefix itself, which must not keep the mount from answering.
const ROOT_WITHIN: Duration = Duration::from_secs(3);

struct Pending {
    wanted: Wanted,
    first: Instant,
    due: Instant,
    /// Its PUT is on its way.
    sending: bool,
    /// Set again, or dropped, while its PUT was on its way.
    outdated: bool,
    /// BOS refused it; nobody waits for it any more.
    failed: bool,
    /// Of an earlier mount: the marker may have changed since.
    unchecked: bool,
}

impl Pending {
    fn new(wanted: Wanted, now: Instant) -> Self {
        Self { wanted, first: now, due: now, sending: false, outdated: false, failed: false, unchecked: false }
    }
}

struct Queue {
    pending: HashMap<String, Pending>,
    /// `None`: without a state directory nothing outlives this process.
    log: Option<PendingLog>,
    running: bool,
}

struct Shared {
    namespace: Arc<Namespace>,
    runtime: tokio::runtime::Handle,
    queue: Mutex<Queue>,
    /// Wakes the task that sends.
    kick: Notify,
    /// Counts ends of PUTs.
    ended: watch::Sender<u64>,
}

/// Attributes of directories on their way to BOS.
#[derive(Clone)]
pub(super) struct DirAttrs(Arc<Shared>);

impl DirAttrs {
    /// With what an earlier mount left in the state directory.
    pub(super) fn new(namespace: Arc<Namespace>, state_dir: Option<&Path>, runtime: tokio::runtime::Handle) -> Self {
        let mut pending = HashMap::new();
        let log = state_dir.and_then(|dir| match PendingLog::open(dir) {
            Ok((log, left)) => {
                let now = Instant::now();
                for (prefix, wanted) in left {
                    namespace.set_pending_dir(&prefix, Some(wanted.attrs));
                    pending.insert(prefix, Pending { unchecked: true, ..Pending::new(wanted, now) });
                }
                Some(log)
            }
            Err(error) => {
                log::error!(
                    "attributes of directories cannot be kept in {} ({error}); those set in the last moment before a \
                     crash are lost",
                    dir.display()
                );
                None
            }
        });
        if !pending.is_empty() {
            log::info!("attributes of {} directories of an earlier mount are still to be sent", pending.len());
        }
        let queue = Mutex::new(Queue { pending, log, running: false });
        let shared = Shared { namespace, runtime, queue, kick: Notify::new(), ended: watch::Sender::new(0) };
        let this = Self(Arc::new(shared));
        this.run();
        this
    }

    /// Waits while very many directories have attributes on their way.
    pub(super) async fn room(&self) {
        let mut ended = self.0.ended.subscribe();
        while self.0.queue.lock().pending.len() >= PENDING_MAX {
            if ended.changed().await.is_err() {
                return;
            }
        }
    }

    /// The marker of the directory with `prefix` shall carry `attrs`.
    fn set(&self, prefix: &str, attrs: FileAttrs) -> std::io::Result<()> {
        let now = Instant::now();
        let remembered = self.0.namespace.remembered_marker(prefix);
        {
            let mut queue = self.0.queue.lock();
            let queue = &mut *queue;
            if !queue.pending.contains_key(prefix) && remembered.as_ref().is_some_and(|marker| marker.attrs == attrs) {
                return Ok(());
            }
            let base = match queue.pending.get(prefix) {
                Some(pending) => pending.wanted.base,
                None => remembered.map(|marker| marker.modified),
            };
            let wanted = Wanted { attrs, base };
            if let Some(log) = &mut queue.log {
                log.set(prefix, wanted)?;
            }
            let pending = queue.pending.entry(prefix.to_owned()).or_insert(Pending::new(wanted, now));
            pending.outdated |= pending.sending && pending.wanted.attrs != attrs;
            pending.wanted = wanted;
            pending.failed = false;
            pending.due = (now + GATHER).min(pending.first + GATHER_MAX);
            self.0.namespace.set_pending_dir(prefix, Some(attrs));
        }
        self.run();
        Ok(())
    }

    /// What was set is on stable storage of this machine when this returns.
    ///
    /// # Errors
    /// When the local disk fails.
    pub(super) async fn sync(&self) -> FsResult<()> {
        let failed = |error: std::io::Error| {
            let errno = crate::journal::log::errno_of(&error);
            let what = "modes, owners and times of folders may not survive power loss before BOS has them";
            FsError::told(errno, format!("the disk of --state-dir could not be synced ({error}): {what}; sync again"))
        };
        let unsynced = {
            let queue = self.0.queue.lock();
            match &queue.log {
                Some(log) => log.unsynced(),
                None if queue.pending.is_empty() => Ok(None),
                None => Err(std::io::Error::other("there is no log of them")),
            }
        };
        let Some(unsynced) = unsynced.map_err(failed)? else { return Ok(()) };
        let synced = tokio::task::spawn_blocking(move || unsynced.sync()).await;
        let synced = synced.unwrap_or_else(|e| Err(std::io::Error::other(e))).map_err(failed)?;
        if let Some(log) = &mut self.0.queue.lock().log {
            log.synced(synced);
        }
        Ok(())
    }

    /// Writes the log anew where it became too long and has lines that are certain, which takes a sync.
    async fn shorten_log(&self) {
        let shorter = {
            let queue = self.0.queue.lock();
            let pending = || queue.pending.iter().map(|(prefix, pending)| (prefix.clone(), pending.wanted)).collect();
            queue.log.as_ref().filter(|log| log.is_too_long()).map(|log| log.shorter(&pending()))
        };
        let Some(shorter) = shorter else { return };
        let written = tokio::task::spawn_blocking(move || {
            let Some(shorter) = shorter? else { return Ok(None) };
            shorter.write().map(|file| Some((shorter, file)))
        });
        let written = written.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let shortened = written.and_then(|written| match (written, &mut self.0.queue.lock().log) {
            (Some((shorter, file)), Some(log)) => log.shorten(&shorter, file),
            _ => Ok(()),
        });
        if let Err(error) = shortened {
            log::warn!("the log of directories' attributes cannot be written anew, and grows: {error}");
        }
    }

    /// Starts the task that sends, unless it runs or there is nothing to do.
    fn run(&self) {
        {
            let mut queue = self.0.queue.lock();
            if queue.pending.is_empty() || std::mem::replace(&mut queue.running, true) {
                self.0.kick.notify_one();
                return;
            }
        }
        let this = self.clone();
        self.0.runtime.spawn(async move {
            if AssertUnwindSafe(this.send_all()).catch_unwind().await.is_err() {
                this.broke();
            }
        });
    }

    /// The task that sends panicked: nobody waits for it any more; the log keeps what is pending for the next mount.
    fn broke(&self) {
        {
            let mut queue = self.0.queue.lock();
            queue.running = false;
            for (prefix, pending) in &mut queue.pending {
                log::error!("{prefix}: its mode, owner or time is not in BOS yet and is sent by the next mount");
                (pending.sending, pending.failed) = (false, true);
                pending.due = Instant::now() + RETRY_FAILED;
            }
        }
        self.0.ended.send_modify(|count| *count += 1);
    }

    async fn send_all(&self) {
        loop {
            self.shorten_log().await;
            let (due, next) = {
                let mut queue = self.0.queue.lock();
                if queue.pending.is_empty() {
                    queue.running = false;
                    return;
                }
                let now = Instant::now();
                let mut due = Vec::new();
                let mut next: Option<Instant> = None;
                for (prefix, pending) in &mut queue.pending {
                    if pending.due <= now && !pending.sending && due.len() < PUTS_MAX * 4 {
                        pending.sending = true;
                        pending.outdated = false;
                        due.push((prefix.clone(), pending.wanted, pending.unchecked));
                    } else {
                        next = Some(next.map_or(pending.due, |next| next.min(pending.due)));
                    }
                }
                (due, next)
            };
            if due.is_empty() {
                let until = next.unwrap_or_else(|| Instant::now() + GATHER);
                tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = self.0.kick.notified() => {}
                }
                continue;
            }
            let sends = due.into_iter().map(|(prefix, wanted, unchecked)| async move {
                let sent = AssertUnwindSafe(self.send(&prefix, wanted, unchecked)).catch_unwind().await;
                let sent = sent.unwrap_or_else(|_| {
                    let message = "bosfs panicked while it was sent; please report the panic that the log shows";
                    Err(BosError::new(BosErrorKind::Refused, message))
                });
                self.sent(&prefix, sent);
            });
            stream::iter(sends).buffer_unordered(PUTS_MAX).collect::<Vec<()>>().await;
        }
    }

    /// Brings one directory's attributes to BOS. `unchecked`: only if nobody changed the marker meanwhile.
    async fn send(&self, prefix: &str, wanted: Wanted, unchecked: bool) -> Result<(), BosError> {
        fail_point!("fs.dir_attrs");
        let namespace = &self.0.namespace;
        if unchecked {
            let marker = namespace.head_marker(prefix).await?;
            let same = match (&marker, wanted.base) {
                (Some(marker), _) if marker.attrs == wanted.attrs => return Ok(()),
                (Some(marker), Some(base)) => matches!(marker.modified, Modified::At(at) if base.fits(at)),
                (None, None) => matches!(namespace.is_empty(prefix, &Default::default()).await?, Emptiness::Full),
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !same {
                log::warn!(
                    "{prefix}: the directory was changed or removed since; the mode, owner or time set in an earlier \
                     mount is dropped"
                );
                return Ok(());
            }
        }
        namespace.put_marker(prefix, &wanted.attrs).await
    }

    fn sent(&self, prefix: &str, sent: Result<(), BosError>) {
        let mut queue = self.0.queue.lock();
        let queue = &mut *queue;
        if let Some(pending) = queue.pending.get_mut(prefix) {
            pending.sending = false;
            match sent {
                Ok(()) if pending.outdated => {
                    pending.unchecked = false;
                    pending.first = pending.due;
                }
                Ok(()) => {
                    queue.pending.remove(prefix);
                    self.0.namespace.set_pending_dir(prefix, None);
                    if let Some(log) = &mut queue.log {
                        log.done(prefix, queue.pending.iter().map(|(prefix, pending)| (prefix, pending.wanted)));
                    }
                }
                Err(error) => {
                    let when =
                        if error.is_transient() { "in a moment" } else { "with the next change and the next mount" };
                    log::warn!(
                        "{prefix}: its mode, owner or time is not in BOS yet and is tried again {when}: {error}"
                    );
                    pending.failed = !error.is_transient();
                    pending.due = Instant::now() + if pending.failed { RETRY_FAILED } else { RETRY };
                }
            }
        }
        self.0.ended.send_modify(|count| *count += 1);
    }

    /// The directories at `prefix` and below are going: what is pending of them is dropped. Returns when none of their
    /// markers is on its way any more, so that none comes back behind its removal.
    pub(super) async fn forget_tree(&self, prefix: &str) {
        let mut ended = self.0.ended.subscribe();
        loop {
            ended.mark_unchanged();
            let busy = {
                let mut queue = self.0.queue.lock();
                let queue = &mut *queue;
                let within: Vec<String> = queue.pending.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
                let mut busy = false;
                for key in within {
                    if queue.pending.get(&key).is_some_and(|pending| pending.sending) {
                        busy = true;
                        continue;
                    }
                    queue.pending.remove(&key);
                    self.0.namespace.set_pending_dir(&key, None);
                    if let Some(log) = &mut queue.log {
                        log.done(&key, queue.pending.iter().map(|(prefix, pending)| (prefix, pending.wanted)));
                    }
                }
                busy
            };
            if !busy || ended.changed().await.is_err() {
                return;
            }
        }
    }

    /// Sends what is pending of the directories at `prefix` and below, and waits for it; not for what BOS refused.
    pub(super) async fn settle_tree(&self, prefix: &str) {
        let mut ended = self.0.ended.subscribe();
        loop {
            ended.mark_unchanged();
            let busy = {
                let mut queue = self.0.queue.lock();
                let now = Instant::now();
                let mut busy = false;
                let within = queue.pending.iter_mut().filter(|(key, _)| key.starts_with(prefix));
                for (_, pending) in within.filter(|(_, pending)| !pending.failed) {
                    busy = true;
                    // Not what just failed: its pause stays.
                    pending.due = if pending.due <= now + GATHER { now } else { pending.due };
                }
                busy
            };
            if !busy {
                return;
            }
            self.0.kick.notify_one();
            if ended.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Fs {
    /// Mode, owner and times of a directory: shown at once, in the log of the state directory when this returns, in BOS a
    /// moment later. What BOS has already costs nothing.
    ///
    /// # Errors
    /// The log cannot be written; nothing was changed.
    pub(super) fn set_dir_attrs(&self, node: &Arc<Node>, change: &AttrChange) -> FsResult<()> {
        let Content::Dir(present) = node.body.state.lock().content else { return Err(FsError::STALE) };
        let attrs = change.apply(present);
        let prefix = self.prefix_of(node);
        let set = match prefix.is_empty() {
            true => {
                self.namespace.set_root_attrs(&attrs);
                Ok(())
            }
            false => self.dir_attrs.set(&prefix, attrs),
        };
        set.map_err(|error| {
            FsError::told(
                libc::EIO,
                format!("changing the attributes of {prefix:?}: the state directory cannot be written: {error}"),
            )
        })?;
        let now = Timestamp::now();
        self.namespace.set_dir_times(&prefix, DirTimes { mtime: attrs.mtime, ctime: now });
        let mut state = node.body.state.lock();
        state.changed = Some(now);
        state.content = Content::Dir(attrs);
        state.confirmed = Some(Instant::now());
        Ok(())
    }

    /// An entry of `dir` came, went or was renamed: its times are now. Costs no request.
    pub(super) fn entries_changed(&self, dir: &Arc<Node>) {
        let now = Timestamp::now();
        self.namespace.set_dir_times(&self.prefix_of(dir), DirTimes { mtime: now, ctime: now });
        let mut state = dir.body.state.lock();
        if let Content::Dir(attrs) = &mut state.content {
            attrs.mtime = now;
        }
        state.changed = Some(now);
    }

    /// Waits until BOS has the attributes of all directories.
    pub async fn settle_dir_attrs(&self) {
        self.dir_attrs.settle_tree("").await;
    }

    /// Looks at the attributes of the root, once, before the mount is made. A `stat` of the mount point must never wait for
    /// BOS: it may come from this very process.
    pub async fn load_root(&self) {
        let asked = tokio::time::timeout(ROOT_WITHIN, self.namespace.root_attrs()).await;
        let Ok(Ok(attrs)) = asked else { return };
        let Some(root) = self.inodes.get(ROOT) else { return };
        let mut state = root.body.state.lock();
        state.content = Content::Dir(attrs);
        state.changed = self.namespace.dir_times(&self.namespace.dir_prefix("")).map(|times| times.ctime);
    }
}
