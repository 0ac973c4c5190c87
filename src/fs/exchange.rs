//! `RENAME_EXCHANGE`: two files change places.
//!
//! Directories do not: that would be three renames of whole trees, each of which others may see half-way; EINVAL is what
//! renameat2(2) answers where a file system cannot do it, and programs then rename through a name of their own.

use std::sync::Arc;
use std::time::Instant;

use super::Fs;
use super::attr::{Content, Node};
use super::error::{FsError, FsResult};
use super::introspect;
use crate::namespace::Object;
use crate::namespace::inode::Kind;
use crate::object::{BaseObject, ETag, ObjectKey};
use crate::upload::RenameWay;

impl Fs {
    /// Makes the files (or symbolic links) of two names change places. What is unpublished of them is published first.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL` for directories; `EBUSY` while a program writes to one of them, or when one is the unfinished
    /// file of a killed writer; and what BOS says.
    pub async fn exchange(&self, parent: u64, name: &str, new_parent: u64, new_name: &str) -> FsResult<()> {
        self.check_writable()?;
        let dir = self.directory(parent)?;
        let new_dir = self.directory(new_parent)?;
        Self::check_changeable(&dir, name)?;
        Self::check_changeable(&new_dir, new_name)?;
        let a = self.existing(&dir, name).await?;
        let b = self.existing(&new_dir, new_name).await?;
        if Arc::ptr_eq(&a, &b) {
            return Ok(());
        }
        if a.kind == Kind::Dir || b.kind == Kind::Dir {
            return Err(FsError::plain(libc::EINVAL));
        }
        let keys = || Ok([self.child_key(&dir, name)?, self.child_key(&new_dir, new_name)?]);
        let (_pass, [a_key, b_key]) = self.act_on(keys).await?;
        // Always in the order of inode numbers, so that acts on the same files do not wait for each other.
        let mut turns = [&a, &b];
        turns.sort_by_key(|node| node.ino);
        let _first = turns[0].body.turn().await;
        let _second = turns[1].body.turn().await;
        let a_object = self.settled_object(&a, &a_key).await?;
        let b_object = self.settled_object(&b, &b_key).await?;
        self.uploads.release_clones(&a_key).await?;
        self.uploads.release_clones(&b_key).await?;
        let number = rand::random::<u64>();
        let hidden = ObjectKey::parse(&format!(
            "{}{}/exchange-{number:016x}",
            self.namespace.dir_prefix(""),
            introspect::DIR_NAME
        ))?;
        let of = |object: &Object| BaseObject::own(object.etag.clone(), object.size);
        let exchanged = self.moves.exchange((&a_key, &of(&a_object)), (&b_key, &of(&b_object)), &hidden).await;
        self.namespace.changed(a_key.as_str(), false);
        self.namespace.changed(b_key.as_str(), false);
        let (at_a, at_b) = exchanged?;
        self.inodes.exchange(&a, &b);
        for (node, object, etag) in [(&a, a_object, at_b), (&b, b_object, at_a)] {
            follow(node, object, etag);
        }
        self.entries_changed(&dir);
        self.entries_changed(&new_dir);
        Ok(())
    }

    /// The object of a file that nobody writes, with everything that is known of it here. The caller has its turn.
    async fn settled_object(&self, node: &Arc<Node>, key: &ObjectKey) -> FsResult<Object> {
        loop {
            let content = {
                let mut state = node.body.state.lock();
                state.settle(false);
                state.content.clone()
            };
            let file = match content {
                Content::Object(object) if node.body.state.lock().confirmed_within(self.ttl()) => return Ok(object),
                Content::Object(_) => {
                    self.confirm(node).await?;
                    match &node.body.state.lock().content {
                        Content::Object(object) => return Ok(object.clone()),
                        _ => continue,
                    }
                }
                Content::Dirty(file) => file,
                Content::Dir(_) | Content::Virtual(_) => return Err(FsError::plain(libc::EINVAL)),
            };
            let busy =
                |why: &str| FsError::told(libc::EBUSY, format!("exchanging {key:?}: {why}; nothing was changed"));
            if file.is_open() {
                return Err(busy("it is open for writing"));
            }
            if file.status(false).state == "interrupted" {
                return Err(busy("it is the unfinished file of a killed writer"));
            }
            match file.rename_way(key) {
                RenameWay::Fetch => file.take_clone().await?,
                RenameWay::Busy => return Err(busy("parts of it are only in BOS")),
                RenameWay::Here => file.publish_and_wait().await?,
                RenameWay::Copy => {
                    if file.settle_for_copy().await? {
                        file.send_attrs().await?;
                        if file.settled().is_none() {
                            file.publish_and_wait().await?;
                        }
                    }
                }
            }
        }
    }
}

fn follow(node: &Arc<Node>, object: Object, etag: ETag) {
    let mut state = node.body.state.lock();
    state.content = Content::Object(Object { etag, last_modified: 0, ..object });
    state.confirmed = Some(Instant::now());
    state.touch();
}
