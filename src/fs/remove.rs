//! Removing files and directories.
//!
//! What is taken is what this mount showed: an object that somebody else put there since is left, and the program or `status`
//! is told. BOS is asked right before each deletion.
//!
//! The first files that a program removes are deleted in BOS before it is answered, so that missing permissions show. Those
//! that follow at once are journaled, hidden, and deleted in batches: `rm -rf` of a tree costs a request per 1000 names.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Fs;
use super::attr::{Content, Node};
use super::error::{FsError, FsResult};
use crate::bos::client::{Known, Removed};
use crate::fail_point::fail_point;
use crate::namespace::inode::Kind;
use crate::namespace::{Emptiness, Object};
use crate::object::{BaseObject, Condition, ObjectKey};
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
        let mut gone = true;
        match content {
            Content::Dirty(file) if open => {
                self.hide(node, key, || Ok(file.orphan()?))?;
                // It may have been published, and its inode let go of it, since it was looked at.
                node.body.state.lock().content = Content::Dirty(file);
            }
            Content::Dirty(file) => {
                file.unlink().await?;
                gone = !self.uploads.was_left(&file);
            }
            Content::Object(object) if open => self.hide(node, key, || self.orphan_object(node, key, object))?,
            Content::Object(object) => self.delete(node, key, &object).await?,
            Content::Dir(_) | Content::Virtual(_) => return Err(FsError::plain(libc::EPERM)),
        }
        self.inodes.unlink(node);
        self.namespace.changed(key.as_str(), gone);
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
        let stored = self.known_of(key, &object).stored;
        let file = self.uploads.open(Opening {
            key: key.clone(),
            condition: Condition::Matches(object.etag.clone()),
            base: Some(BaseObject { stored, ..BaseObject::own(object.etag, object.size) }),
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
    async fn delete(&self, node: &Arc<Node>, key: &ObjectKey, object: &Object) -> FsResult<()> {
        self.uploads.release_clones(key).await?;
        let known = self.known_of(key, object);
        let deleted = self.delete_known(key, &known).await;
        if deleted.as_ref().is_err_and(|error| error.errno == libc::EBUSY) {
            // From now on it shows what is there, and the next try acts on that.
            self.namespace.changed(key.as_str(), false);
            node.body.state.lock().confirmed = None;
            let _ = self.confirm(node).await;
        }
        deleted
    }

    /// By what the object is told from others that come after it.
    fn known_of(&self, key: &ObjectKey, object: &Object) -> Known {
        let stored = match object.last_modified {
            0 => self.namespace.stored_between(key.as_str(), &object.etag),
            at => Some((at, at)),
        };
        Known { etag: object.etag.clone(), stored }
    }

    /// Deletes what is `known` at `key`: now, or in a burst of removals with the others.
    async fn delete_known(&self, key: &ObjectKey, known: &Known) -> FsResult<()> {
        let now = Instant::now();
        let deleted = if self.burst.lock().is_on(now) {
            self.moves.delete_later(key, known).await.map_err(FsError::from)
        } else {
            self.delete_now(key, known).await
        };
        match &deleted {
            Ok(()) => self.burst.lock().removed(now),
            Err(_) => self.burst.lock().failed(),
        }
        deleted
    }

    async fn delete_now(&self, key: &ObjectKey, known: &Known) -> FsResult<()> {
        match self.client.remove_object(key, None, |head| known.is_head(head)).await {
            Ok(Removed::Gone) => Ok(()),
            // Not ESTALE: the kernel would look the name up anew and remove what is there, which nobody has seen yet.
            Ok(Removed::Other(head)) => Err(FsError::told(
                libc::EBUSY,
                format!(
                    "removing {key}: somebody else has written it since it was last looked at here ({} bytes by now); it is \
                     left: look at it, and remove it again if it is to go",
                    head.size
                ),
            )),
            Err(error) => Err(FsError::from_bos("removing", key.as_str(), &error)),
        }
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
        let asked_at = Instant::now();
        let marker = self.look_empty(&prefix).await?;
        self.remove_marker(&prefix, marker, asked_at).await?;
        self.inodes.unlink(&node);
        self.entries_changed(&dir);
        dir.body.state.lock().subdir_changed(-1);
        self.namespace.keep_dir(&self.prefix_of(&dir));
        Ok(())
    }

    /// Whether nothing visible is below `prefix`. What is about to be deleted is gone.
    pub(super) async fn check_empty(&self, prefix: &str) -> FsResult<()> {
        self.look_empty(prefix).await.map(drop)
    }

    /// [`Fs::check_empty`], and the marker that the listing shows.
    async fn look_empty(&self, prefix: &str) -> FsResult<Option<Known>> {
        if self.dirty_below(prefix) {
            return Err(FsError::plain(libc::ENOTEMPTY));
        }
        let mut gone: HashSet<String> =
            self.hidden.lock().keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        gone.extend(self.moves.deletions_below(prefix));
        match self.namespace.is_empty(prefix, &gone).await {
            Ok(Emptiness::Empty { marker }) => Ok(marker.map(|marker| Known::at(marker.etag, marker.last_modified))),
            Ok(Emptiness::Full) => Err(FsError::plain(libc::ENOTEMPTY)),
            Err(error) => Err(FsError::from_bos("looking into", prefix, &error)),
        }
    }

    /// Removes a directory's marker, where it has one: that which a listing asked for at `asked_at` showed, or which this mount
    /// stored since.
    async fn remove_marker(&self, prefix: &str, listed: Option<Known>, asked_at: Instant) -> FsResult<()> {
        let marker = ObjectKey::parse(prefix)?;
        // None of ours may arrive behind the removal.
        self.dir_attrs.forget_tree(prefix).await;
        let own = self.namespace.stored_lately(prefix, asked_at);
        let own = own.map(|(etag, stored)| Known { etag, stored });
        let now = Instant::now();
        if let Some(known) = newer(own, listed) {
            // Behind what is below it: the directory would be there again as long as that is.
            let later = self.burst.lock().is_on(now) || !self.moves.deletions_below(prefix).is_empty();
            match later {
                true => self.moves.delete_later(&marker, &known).await?,
                false => self.delete_now(&marker, &known).await?,
            }
        }
        self.burst.lock().removed(now);
        self.namespace.dir_removed(prefix);
        Ok(())
    }

    /// `fsyncdir`: names that were made in the directory, renamed or removed are on stable storage of this machine, as far as
    /// BOS does not have them; and so are its mode, owner and times. What was removed is gone in BOS, too.
    ///
    /// # Errors
    /// When the local disk fails, or when an earlier process left something below it that cannot be finished.
    pub async fn fsyncdir(&self, ino: u64) -> FsResult<()> {
        let dir = self.directory(ino)?;
        if Self::virtual_of(&dir).is_some() {
            return Ok(());
        }
        let prefix = self.prefix_of(&dir);
        self.uploads.sync_names(&prefix).await?;
        self.dir_attrs.sync().await?;
        Ok(self.moves.wait_clear(&prefix).await?)
    }
}

/// The later of what this mount stored and what a listing showed; a listing may lag behind.
fn newer(own: Option<Known>, listed: Option<Known>) -> Option<Known> {
    let listed_later = match (&own, &listed) {
        (Some(Known { stored: Some((_, own)), .. }), Some(Known { stored: Some((listed, _)), .. })) => listed > own,
        (own, _) => own.is_none(),
    };
    if listed_later { listed } else { own }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ETag;

    #[test]
    fn the_marker_that_goes_is_the_later_one_of_ours_and_the_listed() {
        let known = |stored| Some(Known { etag: ETag::new("e"), stored });
        let (own, listed) = (known(Some((10, 14))), known(Some((15, 15))));
        assert_eq!(newer(own.clone(), listed.clone()), listed, "somebody else wrote it behind ours");
        assert_eq!(newer(own.clone(), known(Some((9, 9)))), own, "the listing lags");
        assert_eq!(newer(own.clone(), known(Some((12, 12)))), own);
        assert_eq!(newer(own.clone(), None), own);
        assert_eq!(newer(None, listed.clone()), listed);
        assert_eq!(newer(known(None), listed), known(None), "a time that is not known says nothing");
        assert_eq!(newer(None, None), None);
    }

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
