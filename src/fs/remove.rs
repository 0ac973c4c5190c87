//! Removing files and directories.
//!
//! The first files that a program removes are deleted in BOS before it is answered, so that missing permissions show. Those
//! that follow at once are journaled, hidden, and deleted in batches: `rm -rf` of a tree costs a request per 1000 names.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Fs;
use super::attr::{Content, Node};
use super::error::{FsError, FsResult};
use crate::fail_point::fail_point;
use crate::namespace::Object;
use crate::namespace::inode::Kind;
use crate::object::{BaseObject, Condition, ETag, Md5, ObjectKey};
use crate::upload::Opening;

/// Removals within [`BURST_WITHIN`] after which the next ones are sent in batches.
const BURST_REMOVALS: usize = 8;
/// See [`BURST_REMOVALS`].
const BURST_WITHIN: Duration = Duration::from_secs(1);

/// Whether files are being removed one after the other: without a clock of its own.
#[derive(Debug, Default)]
pub(super) struct Burst {
    /// The last successful removals, oldest first.
    recent: VecDeque<Instant>,
}

impl Burst {
    /// A file was removed.
    fn removed(&mut self, now: Instant) {
        if self.recent.len() == BURST_REMOVALS {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
    }

    /// A removal failed: the next ones are to show why.
    fn failed(&mut self) {
        self.recent.clear();
    }

    fn is_on(&self, now: Instant) -> bool {
        let first = self.recent.front().filter(|_| self.recent.len() == BURST_REMOVALS);
        first.is_some_and(|first| now.saturating_duration_since(*first) < BURST_WITHIN)
    }
}

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
        let (_pass, key) = self.act_on_child(&dir, name).await?;
        let _turn = node.body.turn().await;
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
        fail_point!("fs.remove");
        match content {
            Content::Dirty(file) if open => {
                self.hide(node, key, || Ok(file.orphan()?))?;
                // It may have been published, and its inode let go of it, since it was looked at.
                node.body.state.lock().content = Content::Dirty(file);
            }
            Content::Dirty(file) => file.unlink().await?,
            Content::Object(object) if open => self.hide(node, key, || self.orphan_object(node, key, object))?,
            Content::Object(object) => self.delete(key, &object).await?,
            Content::Dir(_) | Content::Virtual(_) => return Err(FsError::plain(libc::EPERM)),
        }
        self.inodes.unlink(node);
        self.namespace.changed(key.as_str(), true);
        // The last handle may have been released in between, while the name was still there: nobody else removes it then.
        if open && let Some(orphan) = Self::orphan_of(node) {
            self.bury(orphan).await;
        }
        Ok(())
    }

    /// Hides the name of an open file while `orphan` journals its removal.
    fn hide(&self, node: &Arc<Node>, key: &ObjectKey, orphan: impl FnOnce() -> FsResult<()>) -> FsResult<()> {
        self.hidden.lock().insert(key.as_str().to_owned(), node.ino);
        orphan().inspect_err(|_| {
            self.hidden.lock().remove(key.as_str());
        })
    }

    /// An object that is open loses its name: what is journaled of it is that it goes with its last handle, through which it
    /// is read until then.
    fn orphan_object(&self, node: &Arc<Node>, key: &ObjectKey, object: Object) -> FsResult<()> {
        let file = self.uploads.open(Opening {
            key: key.clone(),
            condition: Condition::Matches(object.etag.clone()),
            base: Some(BaseObject::own(object.etag, object.size)),
            headers: object.headers.unpack(),
            attrs: object.attrs,
            created: false,
            temporary: None,
        })?;
        file.orphan()?;
        node.body.state.lock().content = Content::Dirty(file);
        Ok(())
    }

    /// Deletes an object that nobody has open: now, or in a burst of removals with the others.
    async fn delete(&self, key: &ObjectKey, object: &Object) -> FsResult<()> {
        self.uploads.release_clones(key).await?;
        let now = Instant::now();
        let later = self.burst.lock().is_on(now);
        let deleted = match later {
            true => Ok(self.moves.delete_later(key, &object.etag, object.last_modified).await?),
            false => match self.client.delete_object(key).await {
                Ok(_) => Ok(()),
                Err(error) => Err(FsError::from_bos("removing", key.as_str(), &error)),
            },
        };
        match &deleted {
            Ok(()) => self.burst.lock().removed(now),
            Err(_) => self.burst.lock().failed(),
        }
        deleted
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
        let _pass = self.act_on_child(&dir, name).await?;
        let _turn = node.body.turn().await;
        let prefix = self.prefix_of(&node);
        self.check_empty(&prefix).await?;
        self.remove_marker(&prefix).await?;
        self.inodes.unlink(&node);
        self.entries_changed(&dir);
        dir.body.state.lock().subdir_changed(-1);
        self.namespace.keep_dir(&self.prefix_of(&dir));
        Ok(())
    }

    /// Whether nothing visible is below `prefix`. What is about to be deleted is gone.
    pub(super) async fn check_empty(&self, prefix: &str) -> FsResult<()> {
        if self.dirty_below(prefix) {
            return Err(FsError::plain(libc::ENOTEMPTY));
        }
        let mut gone: HashSet<String> =
            self.hidden.lock().keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        gone.extend(self.moves.deletions_below(prefix));
        match self.namespace.is_empty(prefix, &gone).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(FsError::plain(libc::ENOTEMPTY)),
            Err(error) => Err(FsError::from_bos("looking into", prefix, &error)),
        }
    }

    /// Removes a directory's marker, where it has one.
    async fn remove_marker(&self, prefix: &str) -> FsResult<()> {
        let marker = ObjectKey::parse(prefix)?;
        // None of ours may arrive behind the removal.
        self.dir_attrs.forget_tree(prefix).await;
        let now = Instant::now();
        // Behind what is below it: the directory would be there again as long as that is.
        let later = self.burst.lock().is_on(now) || !self.moves.deletions_below(prefix).is_empty();
        if later {
            self.moves.delete_later(&marker, &ETag::new(&Md5::of(b"").to_hex()), 0).await?;
        } else {
            let deleted = self.client.delete_object(&marker).await;
            deleted.map_err(|error| FsError::from_bos("removing", prefix, &error))?;
        }
        self.burst.lock().removed(now);
        self.namespace.dir_removed(prefix);
        Ok(())
    }

    /// `fsyncdir`: what was removed from the directory is gone in BOS, too.
    ///
    /// # Errors
    /// When an earlier process left something below it that cannot be finished.
    pub async fn fsyncdir(&self, ino: u64) -> FsResult<()> {
        let dir = self.directory(ino)?;
        if Self::virtual_of(&dir).is_some() {
            return Ok(());
        }
        let prefix = self.prefix_of(&dir);
        Ok(self.moves.wait_clear(&prefix).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_eight_removals_within_a_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut burst = Burst::default();
        for i in 0..7 {
            burst.removed(at(i * 10));
            assert!(!burst.is_on(at(i * 10)));
        }
        burst.removed(at(70));
        assert!(burst.is_on(at(70)) && burst.is_on(at(999)));
        assert!(!burst.is_on(at(1000)), "the first of the eight was a second ago");
        burst.removed(at(900));
        assert!(burst.is_on(at(1005)));
        burst.failed();
        assert!(!burst.is_on(at(1006)));
    }
}
