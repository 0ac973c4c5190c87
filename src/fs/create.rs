//! Making files, directories and links.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::attr::{Body, Content, Node, Subdirs};
use super::error::{FsError, FsResult};
use super::open::Opened;
use super::temporary::{self, Guess};
use super::{Caller, Entry, Fs};
use crate::bos::client::{Body as BosBody, ObjectHeaders, stored_between};
use crate::bos::error::BosErrorKind;
use crate::namespace::Object;
use crate::namespace::inode::Kind;
use crate::object::{FileAttrs, Md5, ObjectKey, Timestamp};
use crate::posix_meta::{self, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::upload::{Opening, Temporary};

/// Longest target of a symbolic link, in bytes (Linux `PATH_MAX` less its NUL).
const TARGET_BYTES_MAX: usize = 4095;

impl Fs {
    /// `create`: makes and opens a file, or opens the one that is there. `mode` with the umask applied.
    ///
    /// # Errors
    /// `EEXIST` with `O_EXCL`, `EINVAL` and `ENAMETOOLONG` for names that BOS refuses, and as [`Fs::open`].
    pub async fn create(
        &self,
        parent: u64,
        name: &str,
        mode: u32,
        flags: i32,
        caller: Caller,
    ) -> FsResult<(Entry, Opened)> {
        self.check_writable()?;
        let dir = self.directory(parent)?;
        Self::check_changeable(&dir, name)?;
        self.child_key(&dir, name)?;
        if let Some(found) = self.find(&dir, name).await? {
            if flags & libc::O_EXCL != 0 {
                return Err(FsError::plain(libc::EEXIST));
            }
            let opened = self.open(found.node.ino, flags, caller).await?;
            return Ok((Entry { attr: self.attr_of(&found.keep()) }, opened));
        }
        let (node, file) = self.make_file(&dir, name, mode, flags, caller).await?;
        let opened = self.opened_writer(node.clone(), file, flags | libc::O_CREAT, caller);
        Ok((Entry { attr: self.attr_of(&node) }, opened))
    }

    /// `mknod` of a regular file.
    ///
    /// # Errors
    /// As [`Fs::create`]; `EPERM` for devices, pipes and sockets, which no object can be.
    pub async fn mknod(&self, parent: u64, name: &str, mode: u32, caller: Caller) -> FsResult<Entry> {
        if !matches!(mode & S_IFMT, 0 | S_IFREG) {
            return Err(FsError::plain(libc::EPERM));
        }
        let (entry, opened) = self.create(parent, name, mode, libc::O_WRONLY | libc::O_EXCL, caller).await?;
        self.release(opened.fh);
        Ok(entry)
    }

    /// A new dirty file, with its first writer.
    async fn make_file(
        &self,
        dir: &Arc<Node>,
        name: &str,
        mode: u32,
        flags: i32,
        caller: Caller,
    ) -> FsResult<(Arc<Node>, Arc<crate::upload::DirtyFile>)> {
        let (_pass, key) = self.act_on_child(dir, name).await?;
        // A file of that name was unlinked but is still open: its object may still be there.
        let was_hidden = self.hidden.lock().contains_key(key.as_str());
        let condition = self.expected_without_name(&key).await?;
        let attrs = Self::new_attrs(dir, S_IFREG | (mode & 0o7777), caller);
        self.uploads.room_for_file().await?;
        let file = self.uploads.open(Opening {
            key: key.clone(),
            base: None,
            condition,
            headers: new_headers(name),
            attrs,
            created: true,
            temporary: self.temporary(dir, name, flags, mode),
        })?;
        file.add_writer()?;
        if was_hidden {
            self.hidden.lock().remove(key.as_str());
        }
        self.namespace.changed(key.as_str(), false);
        self.entries_changed(dir);
        let node = self.enter_dirty(dir, name, file.clone()).keep();
        let mut state = node.body.state.lock();
        state.content = Content::Dirty(file.clone());
        state.writers += 1;
        drop(state);
        Ok((node, file))
    }

    /// What is expected of a new file.
    fn temporary(&self, dir: &Node, name: &str, flags: i32, mode: u32) -> Option<Temporary> {
        match temporary::guess(name, flags, mode)? {
            Guess::SomeName => Some(Temporary::Small),
            Guess::Target(target) => match self.child_key(dir, target) {
                Ok(key) => Some(Temporary::Of(key)),
                Err(_) => Some(Temporary::Small),
            },
        }
    }

    /// `mkdir`: writes a directory marker. `mode` with the umask applied.
    ///
    /// # Errors
    /// `EEXIST`, names as [`Fs::create`], and what BOS says.
    pub async fn mkdir(&self, parent: u64, name: &str, mode: u32, caller: Caller) -> FsResult<Entry> {
        self.check_writable()?;
        let dir = self.directory(parent)?;
        Self::check_changeable(&dir, name)?;
        let key = self.child_key(&dir, name)?;
        ObjectKey::parse(&format!("{key}/"))?;
        if self.find(&dir, name).await?.is_some() {
            return Err(FsError::plain(libc::EEXIST));
        }
        let (_pass, key) = self.act_on_child(&dir, name).await?;
        let prefix = format!("{key}/");
        let inherited = Self::attrs_of_dir(&dir).mode & 0o2000;
        let attrs = Self::new_attrs(&dir, S_IFDIR | inherited | (mode & 0o7777), caller);
        let put = self.namespace.put_marker(&prefix, &attrs).await;
        put.map_err(|error| FsError::from_bos("making the directory", &prefix, &error))?;
        self.namespace.dir_made(&prefix);
        self.entries_changed(&dir);
        let node = self.inodes.enter(&dir, name, Kind::Dir, || Body::new(Content::Dir(attrs)));
        let mut state = node.body.state.lock();
        state.content = Content::Dir(attrs);
        state.confirmed = Some(Instant::now());
        state.subdirs = Some(Subdirs::none());
        drop(state);
        dir.body.state.lock().subdir_changed(1);
        Ok(Entry { attr: self.attr_of(&node) })
    }

    /// `symlink`: a small object with the target as its content.
    ///
    /// # Errors
    /// `EEXIST`, names as [`Fs::create`], and what BOS says.
    pub async fn symlink(&self, parent: u64, name: &str, target: &str, caller: Caller) -> FsResult<Entry> {
        self.check_writable()?;
        let dir = self.directory(parent)?;
        Self::check_changeable(&dir, name)?;
        self.child_key(&dir, name)?;
        if target.len() > TARGET_BYTES_MAX {
            return Err(FsError::plain(libc::ENAMETOOLONG));
        }
        if self.find(&dir, name).await?.is_some() {
            return Err(FsError::plain(libc::EEXIST));
        }
        let (_pass, key) = self.act_on_child(&dir, name).await?;
        let attrs = Self::new_attrs(&dir, S_IFLNK | 0o777, caller);
        let mut headers =
            ObjectHeaders { content_type: Some("application/octet-stream".to_owned()), ..ObjectHeaders::default() };
        posix_meta::write_attrs(&mut headers.metadata, &attrs);
        let body = Bytes::copy_from_slice(target.as_bytes());
        let md5 = Md5::of(&body);
        let condition = self.expected_without_name(&key).await?;
        let sent = Instant::now();
        let put = self.client.put_object(&key, BosBody::Bytes(body), &md5, &headers, &condition).await;
        let (etag, date) = match put {
            Ok(stored) => (stored.etag, stored.date),
            Err(error) => match self.settle_link(&key, &md5, &error).await {
                Some(result) => (result?, None),
                None => return Err(FsError::from_bos("making the link", key.as_str(), &error)),
            },
        };
        self.hidden.lock().remove(key.as_str());
        let object = Object { size: target.len() as u64, etag, last_modified: 0, attrs, headers: headers.into() };
        self.namespace.learn_published(&key, &object, stored_between(date, sent));
        self.namespace.learn_link(&key, &object.etag, target.as_bytes());
        self.entries_changed(&dir);
        let looked = self.enter_object(&dir, name, object, Instant::now());
        Ok(Entry { attr: self.attr_of(&looked.keep()) })
    }

    /// A link whose PUT was unanswered, or met an object, may be there by that very PUT: its content tells.
    async fn settle_link(
        &self,
        key: &ObjectKey,
        md5: &Md5,
        error: &crate::bos::error::BosError,
    ) -> Option<FsResult<crate::object::ETag>> {
        if error.kind != BosErrorKind::PreconditionFailed && !error.is_ambiguous() {
            return None;
        }
        match self.namespace.head(key).await {
            Ok(Some(object)) if object.etag.is_md5(md5) && object.attrs.mode & S_IFMT == S_IFLNK => {
                Some(Ok(object.etag))
            }
            Ok(Some(_)) => Some(Err(FsError::plain(libc::EEXIST))),
            Ok(None) | Err(_) => None,
        }
    }

    fn attrs_of_dir(dir: &Node) -> FileAttrs {
        match &dir.body.state.lock().content {
            Content::Dir(attrs) => *attrs,
            Content::Object(_) | Content::Dirty(_) | Content::Virtual(_) => {
                FileAttrs { mode: S_IFDIR, uid: 0, gid: 0, mtime: Timestamp::default() }
            }
        }
    }

    /// Attributes of something new in `dir`; a set-group-ID directory gives its group.
    fn new_attrs(dir: &Node, mode: u32, caller: Caller) -> FileAttrs {
        let above = Self::attrs_of_dir(dir);
        let gid = if above.mode & 0o2000 != 0 { above.gid } else { caller.gid };
        FileAttrs { mode, uid: caller.uid, gid, mtime: Timestamp::now() }
    }
}

/// Headers of a new object: the type that its extension tells.
fn new_headers(name: &str) -> ObjectHeaders {
    let content_type = mime_guess::from_path(name).first_raw().unwrap_or("application/octet-stream");
    ObjectHeaders { content_type: Some(content_type.to_owned()), ..ObjectHeaders::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_object_has_the_type_of_its_extension() {
        let kind = |name| new_headers(name).content_type.unwrap();
        assert_eq!(kind("a.html"), "text/html");
        assert_eq!(kind("a.unknown-extension"), "application/octet-stream");
        assert_eq!(kind("noextension"), "application/octet-stream");
    }
}
