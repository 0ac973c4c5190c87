//! Opening and releasing files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use bytes::Bytes;
use parking_lot::Mutex;

use super::attr::{Content, Node, published_object, without_privileges};
use super::error::{FsError, FsResult};
use super::handles::{OpenFile, Writer};
use super::process;
use super::verdict::{Flusher, WriterVerdict};
use super::{Caller, Fs};
use crate::namespace::inode::Kind;
use crate::object::{BaseObject, Condition};
use crate::upload::{DirtyFile, Opening, WriteError, WriterEnd};

/// How a file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Number of the handle.
    pub fh: u64,
    /// Reads and writes must not go through the kernel's page cache.
    pub direct_io: bool,
    /// Pages that the kernel has of this file are still right.
    pub keep_cache: bool,
    /// Closing a duplicate is of no interest.
    pub no_flush: bool,
}

/// How often an opening begins anew because the file was published in between.
const OPEN_TRIES_MAX: u32 = 8;
/// Flag of an open by execve(2); the kernel's own (`__FMODE_EXEC`, include/linux/fs.h).
const FMODE_EXEC: i32 = 0x20;

impl Fs {
    /// `open`, with the flags of open(2).
    ///
    /// # Errors
    /// `ENOENT` when the object is gone, `EROFS`, `ETXTBSY`, `EIO` and others when BOS could not be asked.
    pub async fn open(&self, ino: u64, flags: i32, caller: Caller) -> FsResult<Opened> {
        let node = self.node(ino)?;
        if node.kind == Kind::Dir {
            return Err(FsError::plain(libc::EISDIR));
        }
        let access = flags & libc::O_ACCMODE;
        let truncate = flags & libc::O_TRUNC != 0;
        let writes = access != libc::O_RDONLY || truncate;
        if let Some(entry) = Self::virtual_of(&node) {
            if writes {
                return Err(FsError::READ_ONLY);
            }
            let snapshot = self.virtual_content(&entry)?;
            return Ok(self.opened_snapshot(node, snapshot));
        }
        if node.is_linked() {
            self.uploads.check_readable(&self.key_of(&node)?)?;
        }
        if !writes {
            self.refresh(&node).await?;
            return Ok(self.opened_reader(node, flags & FMODE_EXEC != 0));
        }
        self.check_writable()?;
        // With write access the kernel has looked already; without, it has a file emptied before it does.
        if access == libc::O_RDONLY && node.body.state.lock().executors > 0 {
            return Err(FsError::plain(libc::ETXTBSY));
        }
        let file = self.begin_write(&node).await?;
        // The kernel sends O_CREAT and O_EXCL with `create` only.
        let opened = self.opened_writer(node.clone(), file.clone(), access | flags & libc::O_DSYNC, caller);
        if truncate {
            let cut = async {
                cut_waiting(&file, 0).await?;
                drop_privileges(&file)
            };
            if let Err(error) = cut.await {
                self.release(opened.fh);
                return Err(error);
            }
        }
        Ok(opened)
    }

    fn opened_snapshot(&self, node: Arc<Node>, snapshot: Bytes) -> Opened {
        let open = OpenFile {
            node,
            writer: None,
            snapshot: Some(snapshot),
            epoch: 0,
            executes: false,
            reader: Mutex::new(None),
        };
        open.node.body.state.lock().handles += 1;
        Opened { fh: self.files.insert(open), direct_io: true, keep_cache: false, no_flush: true }
    }

    fn opened_reader(&self, node: Arc<Node>, executes: bool) -> Opened {
        let (epoch, keep_cache) = {
            let mut state = node.body.state.lock();
            state.handles += 1;
            state.executors += u32::from(executes);
            let keep_cache = state.cached_epoch == Some(state.epoch);
            state.cached_epoch = Some(state.epoch);
            (state.epoch, keep_cache)
        };
        let open = OpenFile { node, writer: None, snapshot: None, epoch, executes, reader: Mutex::new(None) };
        Opened { fh: self.files.insert(open), direct_io: false, keep_cache, no_flush: true }
    }

    /// A handle for `file`, of which the caller of this has become a writer (see [`Fs::begin_write`]).
    /// `flags`: those of open(2).
    pub(super) fn opened_writer(&self, node: Arc<Node>, file: Arc<DirtyFile>, flags: i32, caller: Caller) -> Opened {
        let access = flags & libc::O_ACCMODE;
        let epoch = {
            let mut state = node.body.state.lock();
            state.handles += 1;
            state.epoch
        };
        let verdict = Mutex::new(WriterVerdict::new(process::thread_group(caller.tid)));
        let writer = Some(Writer {
            verdict,
            opener_tid: caller.tid,
            exclusive: flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0,
            failures_seen: AtomicU64::new(file.failures_told()),
            has_written: AtomicBool::new(false),
            // O_SYNC has the bit of O_DSYNC, too.
            synchronous: flags & libc::O_DSYNC != 0,
            file,
        });
        let open = OpenFile { node, writer, snapshot: None, epoch, executes: false, reader: Mutex::new(None) };
        // Small reads between writes (databases) need the page cache; streams are faster without it.
        let direct_io = access == libc::O_WRONLY;
        Opened { fh: self.files.insert(open), direct_io, keep_cache: false, no_flush: false }
    }

    /// The dirty file of an inode, with one writer more. Ended by [`Fs::end_write`].
    pub(super) async fn begin_write(&self, node: &Arc<Node>) -> FsResult<Arc<DirtyFile>> {
        let _pass = self.act_on(|| Ok([self.key_of(node)?])).await?;
        let _turn = node.body.turn().await;
        let mut asked = false;
        for _ in 0..OPEN_TRIES_MAX {
            let key = self.key_of(node)?;
            if node.is_linked() {
                self.uploads.check_readable(&key)?;
            }
            let known = {
                let mut state = node.body.state.lock();
                state.settle(false);
                match &state.content {
                    Content::Dirty(file) => Some(file.clone()),
                    _ => None,
                }
            };
            let linked = node.is_linked();
            let known = known.or_else(|| if linked { self.local(&key) } else { None });
            if let Some(file) = known {
                file.add_writer()?;
                let mut state = node.body.state.lock();
                // Between finding it and joining it, it may have been published and left the journal.
                let alive = !linked
                    || state.writers > 0
                    || self.uploads.find(&key).is_some_and(|present| Arc::ptr_eq(&present, &file));
                if alive {
                    state.content = Content::Dirty(file.clone());
                    state.writers += 1;
                    return Ok(file);
                }
                if let Some(published) = file.settled() {
                    state.content = Content::Object(published_object(published));
                    state.confirmed = None;
                }
                drop(state);
                file.remove_writer(WriterEnd::Closed);
                continue;
            }
            if !linked {
                return Err(FsError::STALE);
            }
            let fresh = node.body.state.lock().confirmed_within(self.ttl());
            if !fresh && !asked {
                self.confirm(node).await?;
                asked = true;
                continue;
            }
            self.uploads.room_for_file().await?;
            let Content::Object(object) = node.body.state.lock().content.clone() else { continue };
            let file = self.uploads.open(Opening {
                key,
                condition: Condition::Matches(object.etag.clone()),
                base: Some(BaseObject::own(object.etag, object.size)),
                headers: object.headers.unpack(),
                attrs: object.attrs,
                created: false,
                temporary: None,
            })?;
            file.add_writer()?;
            let mut state = node.body.state.lock();
            state.content = Content::Dirty(file.clone());
            state.writers += 1;
            return Ok(file);
        }
        let path = node.path();
        Err(FsError::told(
            libc::EBUSY,
            format!("opening {path:?} for writing: it is published over and over; try again"),
        ))
    }

    /// A writer ended (`verdict`: how it did; `None`: it did all that it was for). With the last one the end of the file is
    /// settled: see [`Endings`](super::verdict::Endings).
    pub(super) fn end_write(&self, node: &Arc<Node>, file: &Arc<DirtyFile>, verdict: Option<&WriterVerdict>) {
        let mut state = node.body.state.lock();
        state.writers = state.writers.saturating_sub(1);
        let writes = state.endings.writes();
        let (end, writes) = verdict.map_or((WriterEnd::Closed, writes), |verdict| verdict.end(writes));
        state.endings.on_end(end.clone(), writes);
        let end = if state.writers > 0 { end } else { state.endings.take() };
        // Under the same lock: of two that end at once, the last one here must be the last one there, too, as it alone knows
        // how all of them ended.
        file.remove_writer(end);
        state.settle(true);
    }

    /// As [`Fs::release`], of a handle that its opener never got, because it left while it waited. If it was killed, what
    /// the opening did (a truncation, a new file) is the work of a killed writer.
    pub fn abandon(&self, fh: u64) -> Option<Orphan> {
        if let Some(open) = self.files.get(fh)
            && let Some(writer) = &open.writer
        {
            let killed = match process::process_state(writer.opener_tid) {
                Some(state) => state.killed_by.map(|signal| (state.name, signal)),
                // It cannot have ended by itself: it was in this call.
                None => Some(("a program".to_owned(), libc::SIGKILL)),
            };
            let mut verdict = writer.verdict.lock();
            let process = verdict.opener();
            if killed.is_some() {
                verdict.on_flush(&Flusher { process, killed }, 0);
            }
        }
        self.release(fh)
    }

    /// `release`: the last duplicate of a handle is gone. Never waits.
    pub fn release(self: &Fs, fh: u64) -> Option<Orphan> {
        let open = self.files.remove(fh)?;
        if let Some(writer) = &open.writer {
            let verdict = writer.verdict.lock().clone();
            self.end_write(&open.node, &writer.file, Some(&verdict));
        }
        {
            let mut state = open.node.body.state.lock();
            state.handles = state.handles.saturating_sub(1);
            state.executors = state.executors.saturating_sub(u32::from(open.executes));
        }
        Self::orphan_of(&open.node)
    }

    /// Releases what the kernel did not come to: with the mount it drops the releases that wait in its queue. For when the
    /// mount is gone. What a forced unmount took from a writer in the middle of its work stays open: nobody closed it.
    /// Within the runtime.
    pub fn release_left(self: &Arc<Self>) {
        for fh in self.files.numbers() {
            let Some(open) = self.files.get(fh) else { continue };
            let ended = open.writer.as_ref().is_none_or(|writer| {
                !open.node.is_linked() || writer.verdict.lock().is_known() || !writer.file.has_unpublished()
            });
            if ended {
                self.bury_later(self.release(fh));
            }
        }
    }

    /// What is to be buried of an inode once it has neither name nor handles.
    pub(super) fn orphan_of(node: &Arc<Node>) -> Option<Orphan> {
        let state = node.body.state.lock();
        if state.handles > 0 || node.is_linked() {
            return None;
        }
        match &state.content {
            Content::Dirty(file) => {
                // At once, so that an unmount right behind the close waits for it; what fails is told by `bury`.
                let _ = file.begin_unlink();
                Some(Orphan { node: node.clone(), file: file.clone() })
            }
            _ => None,
        }
    }

    /// As [`Fs::bury`], in a task.
    pub fn bury_later(self: &Arc<Self>, orphan: Option<Orphan>) {
        if let Some(orphan) = orphan {
            let fs = self.clone();
            self.runtime.spawn(async move { fs.bury(orphan).await });
        }
    }

    /// Removes what an unlinked file left, after its last handle was released.
    pub async fn bury(&self, orphan: Orphan) {
        let key = orphan.file.key();
        if let Err(error) = orphan.file.unlink().await {
            log::error!("{key}: removing the unlinked file: {error}; the journal keeps the task");
        }
        let gone = !self.uploads.was_left(&orphan.file);
        let mut hidden = self.hidden.lock();
        if hidden.get(key.as_str()) == Some(&orphan.node.ino) {
            hidden.remove(key.as_str());
            self.namespace.changed(key.as_str(), gone);
        }
    }
}

/// A dirty file without a name and without handles.
pub struct Orphan {
    node: Arc<Node>,
    file: Arc<DirtyFile>,
}

/// Cuts or extends; waits for room and for frozen parts.
pub(super) async fn cut_waiting(file: &Arc<DirtyFile>, size: u64) -> FsResult<()> {
    loop {
        match file.truncate(size) {
            Ok(()) => return Ok(()),
            Err(WriteError::MustWait) => {
                let present = file.size();
                let (start, end) = (size.min(present), size.max(present));
                file.wait_writable(end - start).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes set-user-ID and set-group-ID away, as a change of content does.
pub(super) fn drop_privileges(file: &Arc<DirtyFile>) -> FsResult<()> {
    let mut attrs = file.attrs();
    let mode = without_privileges(attrs.mode);
    if mode != attrs.mode {
        attrs.mode = mode;
        file.set_attrs(attrs)?;
    }
    Ok(())
}
