//! Renaming: a copy under the new name, then the removal of the old one.

use std::sync::Arc;
use std::time::Instant;

use super::Fs;
use super::attr::{Content, Node, published_object};
use super::change::COPY_BYTES_MAX;
use super::error::{FsError, FsResult};
use crate::namespace::Object;
use crate::namespace::inode::Kind;
use crate::object::ObjectKey;

/// Flags of renameat2(2) that bosfs knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameOptions {
    /// `RENAME_NOREPLACE`: fail if the new name exists.
    pub no_replace: bool,
}

impl Fs {
    /// `rename`. A file that is still being uploaded is published first, under its old name.
    ///
    /// # Errors
    /// `EEXIST` with `no_replace`; `EISDIR`, `ENOTDIR`, `ENOTEMPTY`; `EXDEV` for a directory that is not empty and for
    /// objects above 5 GB (mv then copies itself); `EBUSY` while a program still writes to either file, or when the old one
    /// is the unfinished file of a killed writer; and what BOS says.
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
            (Kind::Dir, Some(kind)) if kind != Kind::Dir => return Err(FsError::plain(libc::ENOTDIR)),
            (Kind::Dir, _) => {
                self.rename_empty_dir(&source, &key, &new_key, target.as_ref()).await?;
            }
            (_, Some(Kind::Dir)) => return Err(FsError::plain(libc::EISDIR)),
            (_, _) => self.rename_file(&source, &key, &new_key, target.as_ref()).await?,
        }
        self.inodes.rename(&source, &new_dir, new_name);
        self.entries_changed(&dir);
        self.entries_changed(&new_dir);
        self.namespace.keep_dir(&self.prefix_of(&dir));
        Ok(())
    }

    async fn rename_file(
        &self,
        source: &Arc<Node>,
        key: &ObjectKey,
        new_key: &ObjectKey,
        target: Option<&Arc<Node>>,
    ) -> FsResult<()> {
        // Always in the order of inode numbers, so that two renames in opposite directions do not wait for each other.
        let mut turns: Vec<&Arc<Node>> = std::iter::once(source).chain(target).collect();
        turns.sort_by_key(|node| node.ino);
        let mut held = Vec::with_capacity(turns.len());
        for node in turns {
            held.push(node.body.turn.lock().await);
        }
        let busy = |key: &ObjectKey, why: &str| {
            FsError::told(libc::EBUSY, format!("renaming {key:?}: {why}; nothing was changed"))
        };
        if source.body.state.lock().writers > 0 {
            return Err(busy(key, "a program is still writing to it; rename it after it is closed"));
        }
        if target.is_some_and(|target| target.body.state.lock().writers > 0) {
            return Err(busy(key, "a program is still writing to the file that it would replace"));
        }
        let object = self.finished(source, key).await?;
        if object.size > COPY_BYTES_MAX {
            // One copy call ends at 5 GB. Programs that rename fall back to copying the bytes on this answer.
            return Err(FsError::plain(libc::EXDEV));
        }
        if let Some(target) = target {
            let pending = match &target.body.state.lock().content {
                Content::Dirty(file) => Some(file.clone()),
                _ => None,
            };
            if let Some(file) = pending {
                // What was on its way to this name must neither come after the copy nor be resumed.
                file.unlink().await?;
            }
        }
        let copied = self.client.copy_object(key, Some(&object.etag), new_key, None).await;
        let etag = copied.map_err(|error| FsError::from_bos("renaming", key.as_str(), &error))?.etag;
        self.hidden.lock().remove(new_key.as_str());
        self.namespace.changed(new_key.as_str(), false);
        let deleted = self.client.delete_object(key).await;
        deleted.map_err(|error| {
            FsError::told(
                libc::EIO,
                format!(
                    "renaming {key:?} to {new_key:?}: the copy is made but the old name could not be removed: {error}"
                ),
            )
        })?;
        self.namespace.changed(key.as_str(), true);
        let mut state = source.body.state.lock();
        state.content = Content::Object(Object { etag, last_modified: 0, ..object });
        state.confirmed = Some(Instant::now());
        Ok(())
    }

    /// The object of a file that nobody writes, published first if it is still on its way.
    async fn finished(&self, node: &Arc<Node>, key: &ObjectKey) -> FsResult<Object> {
        let content = {
            let mut state = node.body.state.lock();
            state.settle(false);
            state.content.clone()
        };
        match content {
            Content::Dirty(file) => {
                if file.status(false).state == "interrupted" {
                    return Err(FsError::told(
                        libc::EBUSY,
                        format!(
                            "renaming {key:?}: its writer was killed and it is not published; write it again, or decide with \
                             `bosfs uploads complete` or `bosfs uploads abort`"
                        ),
                    ));
                }
                file.publish_and_wait().await?;
                let published = file.settled().or_else(|| file.published());
                let published = published.ok_or_else(|| {
                    FsError::told(libc::EIO, format!("renaming {key:?}: it could not be published; its bytes are kept"))
                })?;
                Ok(published_object(published))
            }
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

    async fn rename_empty_dir(
        &self,
        source: &Arc<Node>,
        key: &ObjectKey,
        new_key: &ObjectKey,
        target: Option<&Arc<Node>>,
    ) -> FsResult<()> {
        let (prefix, new_prefix) = (format!("{key}/"), format!("{new_key}/"));
        if new_prefix.starts_with(&prefix) {
            return Err(FsError::plain(libc::EINVAL));
        }
        if target.is_some() {
            self.check_empty(&new_prefix).await?;
        }
        match self.check_empty(&prefix).await {
            Ok(()) => {}
            Err(error) if error.errno == libc::ENOTEMPTY => return Err(FsError::plain(libc::EXDEV)),
            Err(error) => return Err(error),
        }
        let attrs = match &source.body.state.lock().content {
            Content::Dir(attrs) => *attrs,
            _ => return Err(FsError::STALE),
        };
        let put = self.namespace.put_marker(&new_prefix, &attrs).await;
        put.map_err(|error| FsError::from_bos("renaming", &prefix, &error))?;
        self.namespace.dir_made(&new_prefix);
        self.remove_marker(&prefix).await
    }
}
