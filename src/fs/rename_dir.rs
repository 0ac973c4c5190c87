//! Renaming a directory: every object below it gets another key.
//!
//! BOS knows no directories in a flat bucket, so this copies each object and deletes the old ones behind the last copy
//! (see [`crate::moves`]). Nobody else acts in either tree meanwhile; what is open for reading goes on under the new keys.

use std::sync::Arc;
use std::time::Instant;

use super::Fs;
use super::attr::{Content, Node};
use super::error::{FsError, FsResult};
use crate::bos::client::ObjectHeaders;
use crate::moves::Recopied;
use crate::namespace::Object;
use crate::namespace::inode::Kind;
use crate::object::{BaseObject, Condition, ObjectKey};
use crate::posix_meta::{self, DIRECTORY_TYPE};
use crate::upload::{DirtyFile, RenameWay};

/// A file with something that BOS does not have, on its way to another key.
struct Moving {
    file: Arc<DirtyFile>,
    old: ObjectKey,
    new: ObjectKey,
}

fn busy(key: &ObjectKey) -> FsError {
    FsError::told(
        libc::EBUSY,
        format!(
            "renaming a directory: {key:?} in it is being written, and parts of it are only in BOS, under the old name; \
             rename it after that is closed"
        ),
    )
}

impl Fs {
    /// Moves everything below the directory `source` (key `key`) to below `new_key`, which
    /// is absent or an empty directory, and gives the inode the name `new_name` in `new_dir`.
    ///
    /// # Errors
    /// `EINVAL` into itself, `ENOTEMPTY`, `ENAMETOOLONG`; `EBUSY` while a program writes to a large file below it of which
    /// parts are only in BOS; `EXDEV` for more objects than are moved at once (mv then copies itself); and what BOS says.
    /// Everything is as before then.
    pub(super) async fn rename_dir(
        &self,
        source: &Arc<Node>,
        key: &ObjectKey,
        (new_dir, new_name, new_key): (&Arc<Node>, &str, &ObjectKey),
    ) -> FsResult<()> {
        let (prefix, new_prefix) = (format!("{key}/"), format!("{new_key}/"));
        if new_prefix.starts_with(&prefix) {
            return Err(FsError::plain(libc::EINVAL));
        }
        if prefix.starts_with(&new_prefix) {
            // The target is above the source, so it is not empty.
            return Err(FsError::plain(libc::ENOTEMPTY));
        }
        ObjectKey::parse(&new_prefix)?;
        let _alone = self.trees.rename(&[&prefix, &new_prefix]).await;
        if self.prefix_of(source) != prefix || self.child_key(new_dir, new_name)? != *new_key {
            // A directory above was renamed meanwhile; the kernel asks again.
            return Err(FsError::STALE);
        }
        self.moves.wait_clear(&prefix).await?;
        self.moves.wait_clear(&new_prefix).await?;
        self.check_empty(&new_prefix).await?;
        // A marker that arrives later would bring the old name back.
        self.dir_attrs.settle_tree(&prefix).await;
        // The directory there keeps its attributes should the rename fail.
        self.dir_attrs.settle_tree(&new_prefix).await;
        self.dir_attrs.forget_tree(&new_prefix).await;
        for copied in self.uploads.clone_sources().iter().filter(|key| key.as_str().starts_with(&prefix)) {
            self.uploads.release_clones(copied).await?;
        }
        let (along, apart) = self.settle_below(&prefix, &new_prefix).await?;
        let attrs = match &source.body.state.lock().content {
            Content::Dir(attrs) => *attrs,
            _ => return Err(FsError::STALE),
        };
        let mut marker = ObjectHeaders { content_type: Some(DIRECTORY_TYPE.to_owned()), ..ObjectHeaders::default() };
        posix_meta::write_attrs(&mut marker.metadata, &attrs);
        let mut leave_out = self.hidden_below(&prefix)?;
        leave_out.extend(apart.iter().map(|file| file.old.clone()));
        let copied = self.moves.copy_dir(&prefix, &new_prefix, leave_out, Some(marker)).await;
        // Pages that came while the copies were there are no news, also when those were taken back.
        let copied = copied.inspect_err(|_| self.namespace.tree_changed(&new_prefix))?;
        for file in along {
            let Some(object) = file.file.object() else { continue };
            let rest = &file.old.as_str()[prefix.len()..];
            let at = copied.recopied.binary_search_by(|copy| copy.rest.as_str().cmp(rest));
            file.file.moved(&file.new, at.map_or(&object.etag, |at| &copied.recopied[at].etag))?;
        }
        let mut failed = Ok(());
        for file in apart {
            if let Err(error) = self.move_alone(&file).await {
                failed = Err(error);
            }
        }
        // Before the old names go: after power loss nothing else tells where what is only here belongs.
        if let Err(error) = self.uploads.sync_names_below(&new_prefix).await {
            failed = Err(error.into());
        }
        // From here on names lead to the copies, and only then the objects under the old keys go.
        self.follow(&prefix, &copied.recopied);
        let old_dir = source.parent();
        let replaced = self.inodes.rename(source, new_dir, new_name);
        if let Some(old_dir) = old_dir {
            old_dir.body.state.lock().subdir_changed(-1);
        }
        if replaced.is_none() {
            new_dir.body.state.lock().subdir_changed(1);
        }
        self.namespace.tree_changed(&prefix);
        self.namespace.tree_changed(&new_prefix);
        self.namespace.dir_removed(&prefix);
        self.namespace.kept_dirs_renamed(&prefix, &new_prefix);
        let removed = copied.remove_sources().await;
        // Pages that came while the old names were still there are no news.
        self.namespace.tree_changed(&prefix);
        self.namespace.dir_removed(&prefix);
        removed?;
        failed
    }

    /// Keys below `prefix` whose names are gone while handles are open: their objects go with the last handle.
    fn hidden_below(&self, prefix: &str) -> FsResult<Vec<ObjectKey>> {
        let hidden = self.hidden.lock();
        hidden.keys().filter(|key| key.starts_with(prefix)).map(|key| Ok(ObjectKey::parse(key)?)).collect()
    }

    /// Files below `prefix` that are known here beyond their objects. First those whose objects are what they are, published
    /// if they were on their way: they are copied with everything else. Then those that are only here, or that a program is
    /// writing: they are moved one by one.
    async fn settle_below(&self, prefix: &str, new_prefix: &str) -> FsResult<(Vec<Moving>, Vec<Moving>)> {
        let (mut along, mut apart) = (Vec::new(), Vec::new());
        for file in self.uploads.files_below(prefix) {
            let old = file.key();
            let Some(rest) = old.as_str().strip_prefix(prefix) else { continue };
            if self.uploads.find(&old).is_none_or(|known| !Arc::ptr_eq(&known, &file)) {
                continue;
            }
            let new = ObjectKey::parse(&format!("{new_prefix}{rest}"))?;
            let moving = Moving { file: file.clone(), old, new };
            let with_the_tree = loop {
                match file.rename_way(&moving.new) {
                    RenameWay::Here => break false,
                    _ if file.is_open() => break false,
                    RenameWay::Fetch => file.take_clone().await?,
                    RenameWay::Busy => return Err(busy(&moving.old)),
                    RenameWay::Copy => {
                        if file.settle_for_copy().await? {
                            file.send_attrs().await?;
                            break true;
                        }
                    }
                }
            };
            if file.is_open() && file.rename_way(&moving.new) == RenameWay::Busy {
                return Err(busy(&moving.old));
            }
            if with_the_tree { along.push(moving) } else { apart.push(moving) }
        }
        Ok((along, apart))
    }

    /// Gives one file its new key, as a rename of it alone would.
    async fn move_alone(&self, moving: &Moving) -> FsResult<()> {
        let Moving { file, old, new } = moving;
        loop {
            match file.rename_way(new) {
                RenameWay::Here => {
                    if file.rename(new, Condition::Absent)? {
                        break;
                    }
                }
                RenameWay::Fetch => file.take_clone().await?,
                RenameWay::Busy => return Err(busy(old)),
                RenameWay::Copy => {
                    if !file.settle_for_copy().await? {
                        continue;
                    }
                    let Some(object) = file.object() else { continue };
                    let (source, replace) = (BaseObject::own(object.etag, object.size), file.pending_headers());
                    let renamed =
                        self.moves.rename_object(old, new, &source, &Condition::Any, replace.as_ref()).await?;
                    file.moved(new, &renamed.etag)?;
                    break;
                }
            }
        }
        self.namespace.changed(old.as_str(), true);
        self.namespace.changed(new.as_str(), false);
        Ok(())
    }

    /// Inodes below the directory: their objects are copies by now, stored at another time, some with other ETags. Open
    /// handles go on with those.
    fn follow(&self, prefix: &str, recopied: &[Recopied]) {
        for node in self.inodes.all() {
            if node.kind == Kind::Dir || !node.is_linked() {
                continue;
            }
            let Ok(key) = self.key_of(&node) else { continue };
            let Some(rest) = key.as_str().strip_prefix(prefix) else { continue };
            let copy = recopied.binary_search_by(|copy| copy.rest.as_str().cmp(rest)).map(|at| &recopied[at]);
            let mut state = node.body.state.lock();
            state.settle(false);
            let Content::Object(object) = &state.content else { continue };
            match copy {
                Ok(copy) if object.etag == copy.from_etag => {
                    state.content =
                        Content::Object(Object { etag: copy.etag.clone(), last_modified: 0, ..object.clone() });
                    state.confirmed = Some(Instant::now());
                }
                Ok(_) => {}
                Err(_) => state.content = Content::Object(Object { last_modified: 0, ..object.clone() }),
            }
        }
    }
}
