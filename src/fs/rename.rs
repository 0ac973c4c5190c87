//! Renaming: a copy under the new name, then the removal of the old one.

use std::sync::Arc;
use std::time::Instant;

use super::Fs;
use super::attr::{Content, Node, published_object};
use super::error::{FsError, FsResult};
use crate::fail_point::fail_point;
use crate::namespace::Object;
use crate::namespace::inode::Kind;
use crate::object::{BaseObject, Condition, ObjectKey};
use crate::posix_meta;
use crate::upload::{DirtyFile, Displaced, OnTheWay, RenameWay};

/// Flags of renameat2(2) that bosfs knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameOptions {
    /// `RENAME_NOREPLACE`: fail if the new name exists.
    pub no_replace: bool,
}

/// The two names of a file that is renamed.
struct FileNames<'a> {
    dir: &'a Arc<Node>,
    key: &'a ObjectKey,
    new_dir: &'a Arc<Node>,
    new_name: &'a str,
    new_key: &'a ObjectKey,
}

impl Fs {
    /// `rename`. A file of which BOS has no object just gets the new name; of any other the object is copied and the old one
    /// deleted, and what is dirty goes along.
    ///
    /// # Errors
    /// `EEXIST` with `no_replace`; `EISDIR`, `ENOTDIR`; for directories as [`Fs::rename_dir`]; `EBUSY` for a file that is
    /// being written and of which parts are only in BOS, under the old name; `ESTALE` when somebody else changed either name
    /// meanwhile; and what BOS says.
    pub async fn rename(
        &self,
        parent: u64,
        name: &str,
        new_parent: u64,
        new_name: &str,
        options: RenameOptions,
    ) -> FsResult<()> {
        self.check_writable()?;
        let dir = self.directory(parent)?;
        let new_dir = self.directory(new_parent)?;
        Self::check_changeable(&dir, name)?;
        Self::check_changeable(&new_dir, new_name)?;
        let key = self.child_key(&dir, name)?;
        let new_key = self.child_key(&new_dir, new_name)?;
        let source = self.existing(&dir, name).await?;
        let target = self.find(&new_dir, new_name).await?;
        if target.is_some() && options.no_replace {
            return Err(FsError::plain(libc::EEXIST));
        }
        if key == new_key {
            return Ok(());
        }
        let target = target.as_ref().map(|found| found.node.clone());
        match (source.kind, target.as_ref().map(|target| target.kind)) {
            (Kind::Dir, Some(kind)) if kind != Kind::Dir => Err(FsError::plain(libc::ENOTDIR)),
            (Kind::Dir, _) => {
                self.rename_dir(&source, &key, (&new_dir, new_name, &new_key)).await?;
                source.body.state.lock().touch();
                self.entries_changed(&dir);
                self.entries_changed(&new_dir);
                self.namespace.keep_dir(&self.prefix_of(&dir));
                Ok(())
            }
            (_, Some(Kind::Dir)) => Err(FsError::plain(libc::EISDIR)),
            (_, _) => {
                let keys = || Ok([self.child_key(&dir, name)?, self.child_key(&new_dir, new_name)?]);
                let (_pass, [key, new_key]) = self.act_on(keys).await?;
                let names = FileNames { dir: &dir, key: &key, new_dir: &new_dir, new_name, new_key: &new_key };
                self.rename_file(&source, &names, target.as_ref()).await
            }
        }
    }

    async fn rename_file(&self, source: &Arc<Node>, names: &FileNames<'_>, target: Option<&Arc<Node>>) -> FsResult<()> {
        // Always in the order of inode numbers, so that two renames in opposite directions do not wait for each other.
        let mut turns: Vec<&Arc<Node>> = std::iter::once(source).chain(target).collect();
        turns.sort_by_key(|node| node.ino);
        let mut held = Vec::with_capacity(turns.len());
        for node in turns {
            held.push(node.body.turn().await);
        }
        let FileNames { key, new_key, .. } = *names;
        // Attributes of what is replaced must not come behind what replaces it: its ETag may be the same.
        let _held = match Self::dirty_of(target) {
            Some(file) => Some(file.hold_attrs().await),
            None => None,
        };
        loop {
            let dirty = {
                let mut state = source.body.state.lock();
                state.settle(false);
                match &state.content {
                    Content::Dirty(file) => Some(file.clone()),
                    _ => None,
                }
            };
            let Some(file) = dirty else { break };
            match file.rename_way(new_key) {
                RenameWay::Here => {
                    if self.rename_here(source, &file, names, target).await? {
                        return Ok(());
                    }
                }
                RenameWay::Copy => {
                    if file.settle_for_copy().await? {
                        break;
                    }
                }
                RenameWay::Fetch => file.take_clone().await?,
                RenameWay::Busy => {
                    return Err(FsError::told(
                        libc::EBUSY,
                        format!(
                            "renaming {key:?} to {new_key:?}: it is being written, and parts of it are only in BOS, under \
                             the old name; nothing was changed: rename it after it is closed"
                        ),
                    ));
                }
            }
        }
        self.rename_object(source, names, target).await
    }

    /// Renames a file of which BOS has no object. `false`: it has one by now.
    async fn rename_here(
        &self,
        source: &Arc<Node>,
        file: &Arc<DirtyFile>,
        names: &FileNames<'_>,
        target: Option<&Arc<Node>>,
    ) -> FsResult<bool> {
        let new_key = names.new_key;
        self.uploads.release_clones(new_key).await?;
        let condition = match target {
            Some(target) => self.expected_at(target, new_key).await?,
            None => self.expected_without_name(new_key).await?,
        };
        fail_point!("fs.rename");
        let displaced = Self::dirty_of(target);
        let closed = file.is_closed();
        // What power loss would leave of the replaced one goes only once it would leave what takes its place.
        let lasts = displaced.as_ref().is_some_and(|displaced| displaced.outlives_power_loss());
        if lasts {
            file.make_durable().await?;
        }
        // The journal of the file says the new name before that of the replaced one says that it gives way.
        if !file.rename(new_key, condition.clone())? {
            return Ok(false);
        }
        if let Some(target) = target {
            if let Some(displaced) = displaced {
                if lasts {
                    file.make_lines_durable().await?;
                }
                give_way(target, &displaced).await?;
            }
            // It may have been published in the last moment, also wholly between the first look and here.
            let present = self.expected_at(target, new_key).await?;
            if present != condition {
                file.expect(present)?;
            }
        }
        self.renamed(source, names, target);
        let closed = closed || source.body.state.lock().writers == 0;
        if closed && self.options.write_back {
            file.publish_in_background().await?;
        } else if closed {
            file.publish_and_wait().await?;
            // The inode of a tree of many files is not asked for again: the file is let go now.
            source.body.state.lock().settle(true);
        }
        Ok(true)
    }

    /// What a publication at the key of `target` must demand: what this mount knows to be there. Waits for what is on its
    /// way there.
    async fn expected_at(&self, target: &Arc<Node>, key: &ObjectKey) -> FsResult<Condition> {
        loop {
            let content = {
                let mut state = target.body.state.lock();
                state.settle(false);
                state.content.clone()
            };
            match content {
                Content::Object(object) => return Ok(Condition::Matches(object.etag)),
                Content::Dirty(file) => match file.on_the_way() {
                    OnTheWay::Publication => file.changed().await,
                    OnTheWay::Nothing(Some(etag)) => return Ok(Condition::Matches(etag)),
                    OnTheWay::Nothing(None) => return Ok(Condition::Absent),
                },
                Content::Dir(_) | Content::Virtual(_) => {
                    return Err(FsError::told(libc::EPERM, format!("{key:?} cannot be replaced")));
                }
            }
        }
    }

    /// As [`Fs::expected_at`] where no name is to be seen: an unlinked file of that name may still have its object, which
    /// is left to the file that is to take the name.
    pub(super) async fn expected_without_name(&self, key: &ObjectKey) -> FsResult<Condition> {
        if !self.hidden.lock().contains_key(key.as_str()) {
            return Ok(Condition::Absent);
        }
        self.uploads.take_name(key).await?;
        let left = self.namespace.head(key).await;
        let left = left.map_err(|error| FsError::from_bos("looking up", key.as_str(), &error))?;
        Ok(left.map_or(Condition::Absent, |object| Condition::Matches(object.etag)))
    }

    /// Renames an object: a journaled copy, then a delete. Attributes that are still to be sent travel with the copy.
    async fn rename_object(
        &self,
        source: &Arc<Node>,
        names: &FileNames<'_>,
        target: Option<&Arc<Node>>,
    ) -> FsResult<()> {
        let FileNames { key, new_key, .. } = *names;
        let _held = match Self::dirty_of(Some(source)) {
            Some(file) => Some(file.hold_attrs().await),
            None => None,
        };
        let object = self.finished(source).await?;
        // Its attributes may have been sent in the moment before.
        let dirty = Self::dirty_of(Some(source));
        self.uploads.release_clones(key).await?;
        self.uploads.release_clones(new_key).await?;
        // What is on its way to this name must neither come after the copy nor be resumed.
        let condition = match target {
            Some(target) => self.expected_at(target, new_key).await?,
            None => self.expected_without_name(new_key).await?,
        };
        let replace = dirty.as_ref().and_then(|file| file.pending_headers());
        let base = BaseObject::own(object.etag.clone(), object.size);
        let moved = self.moves.rename_object(key, new_key, &base, &condition, replace.as_ref()).await;
        let moved = moved.map_err(|error| self.overtaken(error.into(), source, names, target))?;
        let mut renamed = Object {
            etag: moved.etag.clone(),
            last_modified: moved.last_modified.unwrap_or(0),
            headers: replace.map_or_else(|| object.headers.clone(), Into::into),
            ..object
        };
        renamed.attrs = posix_meta::read_attrs(&renamed.headers.metadata(), object.attrs);
        self.namespace.changed(new_key.as_str(), false);
        if let (Some(target), Some(displaced)) = (target, Self::dirty_of(target)) {
            give_way(target, &displaced).await?;
        }
        match dirty {
            Some(file) => file.moved(new_key, &moved.etag)?,
            None => {
                let mut state = source.body.state.lock();
                if matches!(state.content, Content::Object(_)) {
                    state.content = Content::Object(renamed.clone());
                    state.confirmed = Some(Instant::now());
                }
            }
        }
        self.renamed(source, names, target);
        self.namespace.learn_published(new_key, &renamed, None);
        Ok(())
    }

    /// Somebody else changed one of the names: nothing that is remembered of them is believed, and the kernel, which tries
    /// once more on this answer, is told what is there.
    fn overtaken(
        &self,
        error: FsError,
        source: &Arc<Node>,
        names: &FileNames<'_>,
        target: Option<&Arc<Node>>,
    ) -> FsError {
        if !matches!(error.errno, libc::ESTALE | libc::EEXIST) {
            return error;
        }
        for key in [names.key, names.new_key] {
            self.namespace.changed(key.as_str(), false);
        }
        for node in std::iter::once(source).chain(target) {
            node.body.state.lock().confirmed = None;
        }
        FsError { errno: libc::ESTALE, ..error }
    }

    fn dirty_of(node: Option<&Arc<Node>>) -> Option<Arc<DirtyFile>> {
        match &node?.body.state.lock().content {
            Content::Dirty(file) => Some(file.clone()),
            _ => None,
        }
    }

    /// The names here follow.
    fn renamed(&self, source: &Arc<Node>, names: &FileNames<'_>, target: Option<&Arc<Node>>) {
        self.hidden.lock().remove(names.new_key.as_str());
        self.namespace.renamed_to(names.new_key.as_str());
        self.namespace.changed(names.key.as_str(), true);
        self.inodes.rename(source, names.new_dir, names.new_name);
        self.entries_changed(names.dir);
        self.entries_changed(names.new_dir);
        self.namespace.keep_dir(&self.prefix_of(names.dir));
        source.body.state.lock().touch();
        if let Some(target) = target {
            target.body.state.lock().touch();
        }
    }

    /// The object of a file, as it is in BOS.
    async fn finished(&self, node: &Arc<Node>) -> FsResult<Object> {
        let content = {
            let mut state = node.body.state.lock();
            state.settle(false);
            state.content.clone()
        };
        match content {
            Content::Dirty(file) => file.object().map(published_object).ok_or(FsError::STALE),
            Content::Object(object) => {
                if node.body.state.lock().confirmed_within(self.ttl()) {
                    return Ok(object);
                }
                self.confirm(node).await?;
                match &node.body.state.lock().content {
                    Content::Object(object) => Ok(object.clone()),
                    _ => Err(FsError::STALE),
                }
            }
            Content::Dir(_) | Content::Virtual(_) => Err(FsError::plain(libc::EPERM)),
        }
    }
}

/// The dirty file of `target` loses its name to another one, after a publication of it that is on its way.
async fn give_way(target: &Arc<Node>, displaced: &Arc<DirtyFile>) -> FsResult<()> {
    loop {
        let keep = target.body.state.lock().handles > 0;
        match displaced.displace(keep)? {
            Displaced::Busy => displaced.changed().await,
            // Without the line power loss would bring it back beside what took its name.
            Displaced::Gone => return Ok(displaced.make_lines_durable().await?),
        }
    }
}
