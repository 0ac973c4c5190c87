//! Names to inodes: local truth first, then what is remembered, then BOS.

use std::sync::Arc;
use std::time::Instant;

use super::attr::{Attr, Body, Content, Node, kind_of};
use super::error::{FsError, FsResult};
use super::introspect::{self, Virtual};
use super::{Entry, Fs};
use crate::namespace::inode::{Kind, ROOT};
use crate::namespace::{Found, Object};
use crate::object::{NAME_BYTES_MAX, ObjectKey};
use crate::upload::DirtyFile;

/// An inode whose lookup count was raised by one; lowered again when this is dropped, unless the kernel was told of it.
pub(super) struct Looked<'a> {
    fs: &'a Fs,
    pub(super) node: Arc<Node>,
    kept: bool,
}

impl Looked<'_> {
    /// The kernel will be told of the inode and forgets it itself.
    pub(super) fn keep(mut self) -> Arc<Node> {
        self.kept = true;
        self.node.clone()
    }
}

impl Drop for Looked<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.fs.inodes.forget(self.node.ino, 1);
        }
    }
}

impl Fs {
    /// `lookup`: the entry `name` of a directory; its lookup count grows by one. `None`: there is none, surely.
    ///
    /// # Errors
    /// `EIO` and others when BOS could not be asked; never `ENOENT` for that reason.
    pub async fn lookup(&self, parent: u64, name: &str) -> FsResult<Option<Entry>> {
        let dir = self.directory(parent)?;
        match self.find(&dir, name).await? {
            None => Ok(None),
            Some(looked) => Ok(Some(Entry { attr: self.attr_of(&looked.keep()) })),
        }
    }

    /// `forget`: the kernel drops `count` lookups of an inode.
    pub fn forget(&self, ino: u64, count: u64) {
        self.inodes.forget(ino, count);
    }

    /// `getattr`. Asks BOS only for what is neither open nor recently confirmed.
    ///
    /// # Errors
    /// See [`Fs::lookup`]; `ENOENT` when the object is gone.
    pub async fn getattr(&self, ino: u64) -> FsResult<Attr> {
        let node = self.node(ino)?;
        self.refresh_attrs(&node).await?;
        Ok(self.attr_of(&node))
    }

    pub(super) fn node(&self, ino: u64) -> FsResult<Arc<Node>> {
        self.inodes.get(ino).ok_or(FsError::STALE)
    }

    pub(super) fn directory(&self, ino: u64) -> FsResult<Arc<Node>> {
        let node = self.node(ino)?;
        if node.kind == Kind::Dir { Ok(node) } else { Err(FsError::plain(libc::ENOTDIR)) }
    }

    pub(super) fn attr_of(&self, node: &Arc<Node>) -> Attr {
        let mut state = node.body.state.lock();
        state.settle(false);
        state.attr(node)
    }

    /// Prefix of the keys in a directory.
    pub(super) fn prefix_of(&self, dir: &Node) -> String {
        if dir.ino == ROOT { self.namespace.dir_prefix("") } else { self.namespace.dir_prefix(&dir.path()) }
    }

    /// Key of a file.
    pub(super) fn key_of(&self, node: &Node) -> FsResult<ObjectKey> {
        Ok(self.namespace.key(&node.path())?)
    }

    /// Key that `name` in `dir` has.
    pub(super) fn child_key(&self, dir: &Node, name: &str) -> FsResult<ObjectKey> {
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::plain(libc::ENAMETOOLONG));
        }
        Ok(ObjectKey::parse(&format!("{}{name}", self.prefix_of(dir)))?)
    }

    pub(super) fn virtual_of(dir: &Node) -> Option<Virtual> {
        match &dir.body.state.lock().content {
            Content::Virtual(entry) => Some(entry.clone()),
            _ => None,
        }
    }

    /// Refuses changes in made-up directories and of the name of the one in the root.
    pub(super) fn check_changeable(dir: &Node, name: &str) -> FsResult<()> {
        if Self::virtual_of(dir).is_some() || (dir.ino == ROOT && name == introspect::DIR_NAME) {
            return Err(FsError::plain(libc::EPERM));
        }
        Ok(())
    }

    /// The dirty file of `key`, unless it is one only in name: published, proved and not being written.
    pub(super) fn local(&self, key: &ObjectKey) -> Option<Arc<DirtyFile>> {
        self.uploads.find(key).filter(|file| file.settled().is_none())
    }

    /// The inode of `name` in `dir`, after at most two requests.
    pub(super) async fn find<'a>(&'a self, dir: &Arc<Node>, name: &str) -> FsResult<Option<Looked<'a>>> {
        if let Some(found) = self.find_locally(dir, name)? {
            return Ok(found);
        }
        let key = self.child_key(dir, name)?;
        let prefix = self.prefix_of(dir);
        let known_dir = self.inodes.child(dir.ino, name).is_some_and(|node| node.kind == Kind::Dir);
        let found = self.namespace.resolve(&prefix, name, known_dir).await;
        let resolved = found.map_err(|error| FsError::from_bos("looking up", key.as_str(), &error))?;
        // The world may have changed while BOS was asked.
        if let Some(file) = self.local(&key) {
            return Ok(Some(self.enter_dirty(dir, name, file)));
        }
        Ok(match resolved.found {
            Found::Object(object) => Some(self.enter_object(dir, name, object, resolved.as_of)),
            Found::Dir { attrs } => {
                let new = || Body::confirmed_at(Content::Dir(attrs), resolved.as_of);
                let node = self.inodes.enter(dir, name, Kind::Dir, new);
                let mut state = node.body.state.lock();
                // What this mount changed since stays.
                if state.confirmed.is_none_or(|confirmed| confirmed <= resolved.as_of) {
                    let prefix = format!("{key}/");
                    state.content = Content::Dir(self.namespace.latest_dir(&prefix, attrs));
                    state.recall_change(self.namespace.dir_times(&prefix).map(|times| times.ctime));
                    state.confirmed = Some(resolved.as_of);
                }
                drop(state);
                Some(self.looked(node))
            }
            Found::Absent if self.dirty_below(&format!("{key}/")) => {
                let plain = self.namespace.plain_dir();
                let node = self.inodes.enter(dir, name, Kind::Dir, || Body::new(Content::Dir(plain)));
                node.body.state.lock().confirmed = Some(Instant::now());
                Some(self.looked(node))
            }
            Found::Absent => {
                let known = self.inodes.child(dir.ino, name);
                let (busy, newer) = known.as_ref().map_or((false, false), |known| {
                    let state = known.body.state.lock();
                    (state.writers > 0, state.confirmed.is_some_and(|confirmed| confirmed > resolved.as_of))
                });
                if newer {
                    // Made by this mount while BOS was asked.
                    return Ok(self.inodes.look_up_child(dir.ino, name).map(|node| self.looked(node)));
                }
                if let Some(gone) = known.filter(|_| !busy) {
                    self.inodes.unlink(&gone);
                }
                None
            }
        })
    }

    /// What is known of `name` without asking BOS: `Some(None)` is a sure no, `None` is no answer.
    fn find_locally<'a>(&'a self, dir: &Arc<Node>, name: &str) -> FsResult<Option<Option<Looked<'a>>>> {
        let made_up = match Self::virtual_of(dir) {
            Some(parent) => match self.virtual_child(&parent, name) {
                Ok(entry) => Some(entry),
                Err(_) => return Ok(Some(None)),
            },
            None if dir.ino == ROOT && name == introspect::DIR_NAME => Some(Virtual::Dir),
            None => None,
        };
        if let Some(entry) = made_up {
            let (kind, ino) = (entry.kind(), entry.ino());
            let node = self.inodes.enter_numbered(dir, name, kind, ino, || Body::new(Content::Virtual(entry.clone())));
            return Ok(Some(Some(self.looked(node))));
        }
        let key = match self.child_key(dir, name) {
            Ok(key) => key,
            Err(error) if error.errno == libc::ENAMETOOLONG => return Err(error),
            // No object can have such a name.
            Err(_) => return Ok(Some(None)),
        };
        if let Some(known) = self.inodes.look_up_child(dir.ino, name) {
            let looked = self.looked(known);
            let mut state = looked.node.body.state.lock();
            state.settle(false);
            let ownerless =
                matches!(state.content, Content::Dirty(_)) && state.writers == 0 && self.uploads.find(&key).is_none();
            let fresh = !ownerless && state.is_fresh(self.ttl());
            drop(state);
            if fresh {
                return Ok(Some(Some(looked)));
            }
        }
        if let Some(file) = self.local(&key) {
            return Ok(Some(Some(self.enter_dirty(dir, name, file))));
        }
        if self.is_hidden(key.as_str()) {
            return Ok(Some(None));
        }
        Ok(None)
    }

    pub(super) fn looked(&self, node: Arc<Node>) -> Looked<'_> {
        Looked { fs: self, node, kept: false }
    }

    /// The inode of a dirty file.
    pub(super) fn enter_dirty(&self, dir: &Arc<Node>, name: &str, file: Arc<DirtyFile>) -> Looked<'_> {
        let kind = kind_of(file.attrs().mode);
        let node = self.inodes.enter(dir, name, kind, || Body::new(Content::Dirty(file.clone())));
        node.body.state.lock().take_over(file);
        self.looked(node)
    }

    /// The inode of an object, with what BOS said of it at `as_of`.
    pub(super) fn enter_object(&self, dir: &Arc<Node>, name: &str, object: Object, as_of: Instant) -> Looked<'_> {
        let kind = kind_of(object.attrs.mode);
        let node = self.inodes.enter(dir, name, kind, || Body::confirmed_at(Content::Object(object.clone()), as_of));
        let mut state = node.body.state.lock();
        state.settle(false);
        if matches!(state.content, Content::Dirty(_)) && state.writers == 0 {
            // Its journal is gone: it was decided about from outside.
            state.content = Content::Object(object);
            state.confirmed = Some(as_of);
            state.epoch += 1;
        } else {
            state.adopt(object, as_of);
        }
        drop(state);
        self.looked(node)
    }

    /// Whether a dirty file lies below `prefix`.
    pub(super) fn dirty_below(&self, prefix: &str) -> bool {
        self.uploads.files_below(prefix).iter().any(|file| file.settled().is_none())
    }

    /// Asks BOS again for what is not fresh; for a file by HEAD, as an open must see what others closed.
    pub(super) async fn refresh(&self, node: &Arc<Node>) -> FsResult<()> {
        self.refresh_from(node, false).await
    }

    /// [`Fs::refresh`] for who only looks: of a remembered object a page of the listing, as lookups believe it, tells enough,
    /// and of its neighbours, which are asked for next.
    pub(super) async fn refresh_attrs(&self, node: &Arc<Node>) -> FsResult<()> {
        self.refresh_from(node, true).await
    }

    async fn refresh_from(&self, node: &Arc<Node>, listing: bool) -> FsResult<()> {
        let is_dir = {
            let mut state = node.body.state.lock();
            state.settle(false);
            if node.ino == ROOT || !node.is_linked() || state.is_fresh(self.ttl()) {
                return Ok(());
            }
            matches!(state.content, Content::Dir(_))
        };
        if is_dir {
            return self.refresh_by_name(node).await;
        }
        // A recovered rename may have given the name a dirty file. Who asks BOS over and over would never see it.
        if let Some(file) = self.key_of(node).ok().and_then(|key| self.local(&key))
            && kind_of(file.attrs().mode) == node.kind
        {
            node.body.state.lock().take_over(file);
            return Ok(());
        }
        let remembered = listing && self.key_of(node).is_ok_and(|key| self.namespace.remembers(&key));
        if remembered { self.refresh_by_name(node).await } else { self.confirm(node).await }
    }

    async fn refresh_by_name(&self, node: &Arc<Node>) -> FsResult<()> {
        let Some(parent) = node.parent() else { return Ok(()) };
        match self.find(&parent, &node.name()).await? {
            Some(found) if found.node.ino == node.ino => Ok(()),
            _ => Err(FsError::ABSENT),
        }
    }

    /// Asks BOS for a clean file, fresh or not, and takes over what it says.
    pub(super) async fn confirm(&self, node: &Arc<Node>) -> FsResult<()> {
        let key = self.key_of(node)?;
        let asked_at = Instant::now();
        let found = self.namespace.head(&key).await;
        let found = found.map_err(|error| FsError::from_bos("looking up", key.as_str(), &error))?;
        match found {
            Some(object) if kind_of(object.attrs.mode) == node.kind => {
                node.body.state.lock().adopt(object, asked_at);
                Ok(())
            }
            _ => {
                let state = node.body.state.lock();
                if matches!(state.content, Content::Dirty(_)) {
                    return Ok(());
                }
                drop(state);
                self.inodes.unlink(node);
                Err(FsError::ABSENT)
            }
        }
    }
}
