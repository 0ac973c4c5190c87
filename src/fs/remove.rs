//! Removing files and directories.

use std::collections::HashSet;
use std::sync::Arc;

use super::Fs;
use super::attr::{Content, Node};
use super::error::{FsError, FsResult};
use crate::namespace::inode::Kind;
use crate::object::ObjectKey;

impl Fs {
    /// `unlink`. The name is gone when this returns; a file that is still open goes with its last handle.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, and what BOS says; the name stays then.
    pub async fn unlink(&self, parent: u64, name: &str) -> FsResult<()> {
        self.check_writable()?;
        let dir = self.directory(parent)?;
        Self::check_changeable(&dir, name)?;
        let node = self.existing(&dir, name).await?;
        if node.kind == Kind::Dir {
            return Err(FsError::plain(libc::EISDIR));
        }
        let _turn = node.body.turn.lock().await;
        let key = self.child_key(&dir, name)?;
        self.remove_object(&node, &key).await?;
        self.entries_changed(&dir);
        self.namespace.keep_dir(&self.prefix_of(&dir));
        Ok(())
    }

    /// The inode of a name that should exist: the one that the kernel knows, or by asking.
    pub(super) async fn existing(&self, dir: &Arc<Node>, name: &str) -> FsResult<Arc<Node>> {
        if let Some(node) = self.inodes.child(dir.ino, name) {
            node.body.state.lock().settle(false);
            return Ok(node);
        }
        let found = self.find(dir, name).await?.ok_or(FsError::ABSENT)?;
        Ok(found.node.clone())
    }

    /// Takes the name of a file away, and its object as soon as no handle needs it. The caller has its turn.
    pub(super) async fn remove_object(&self, node: &Arc<Node>, key: &ObjectKey) -> FsResult<()> {
        let (content, open) = {
            let mut state = node.body.state.lock();
            state.settle(false);
            (state.content.clone(), state.handles > 0)
        };
        match content {
            Content::Dirty(file) if open => {
                self.hidden.lock().insert(key.as_str().to_owned(), node.ino);
                if let Err(error) = file.orphan() {
                    self.hidden.lock().remove(key.as_str());
                    return Err(error.into());
                }
            }
            Content::Dirty(file) => file.unlink().await?,
            Content::Object(_) => {
                self.uploads.release_clones(key).await?;
                let deleted = self.client.delete_object(key).await;
                deleted.map_err(|error| FsError::from_bos("removing", key.as_str(), &error))?;
            }
            Content::Dir(_) | Content::Virtual(_) => return Err(FsError::plain(libc::EPERM)),
        }
        self.inodes.unlink(node);
        self.namespace.changed(key.as_str(), true);
        Ok(())
    }

    /// `rmdir`.
    ///
    /// # Errors
    /// `ENOTEMPTY`, `ENOENT`, `ENOTDIR`, and what BOS says.
    pub async fn rmdir(&self, parent: u64, name: &str) -> FsResult<()> {
        self.check_writable()?;
        let dir = self.directory(parent)?;
        Self::check_changeable(&dir, name)?;
        let node = self.existing(&dir, name).await?;
        if node.kind != Kind::Dir {
            return Err(FsError::plain(libc::ENOTDIR));
        }
        let _turn = node.body.turn.lock().await;
        let prefix = self.prefix_of(&node);
        self.check_empty(&prefix).await?;
        self.remove_marker(&prefix).await?;
        self.inodes.unlink(&node);
        self.entries_changed(&dir);
        self.namespace.keep_dir(&self.prefix_of(&dir));
        Ok(())
    }

    /// Whether nothing visible is below `prefix`.
    pub(super) async fn check_empty(&self, prefix: &str) -> FsResult<()> {
        if self.dirty_below(prefix) {
            return Err(FsError::plain(libc::ENOTEMPTY));
        }
        let hidden: HashSet<String> =
            self.hidden.lock().keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        match self.namespace.is_empty(prefix, &hidden).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(FsError::plain(libc::ENOTEMPTY)),
            Err(error) => Err(FsError::from_bos("looking into", prefix, &error)),
        }
    }

    /// Removes a directory's marker, where it has one.
    pub(super) async fn remove_marker(&self, prefix: &str) -> FsResult<()> {
        let marker = ObjectKey::parse(prefix)?;
        // None of ours may arrive behind the removal.
        self.dir_attrs.forget_tree(prefix).await;
        let deleted = self.client.delete_object(&marker).await;
        deleted.map_err(|error| FsError::from_bos("removing", prefix, &error))?;
        self.namespace.dir_removed(prefix);
        Ok(())
    }
}
