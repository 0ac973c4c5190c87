//! `setattr`: mode, owner, times and size.

use std::sync::Arc;

use super::Fs;
use super::attr::{Attr, AttrChange, Content, Node};
use super::error::{FsError, FsResult};
use super::open::{cut_waiting, drop_privileges};
use crate::bos::client::{ObjectHeaders, is_archive_class};
use crate::namespace::Object;
use crate::namespace::inode::Kind;
use crate::object::{FileAttrs, ObjectKey};
use crate::posix_meta;
use crate::upload::{DirtyFile, WriteError};

impl Fs {
    /// `setattr`. What equals the present value costs nothing.
    ///
    /// # Errors
    /// `EROFS`, `EISDIR` for the size of a directory, `ESTALE` when somebody else replaced the object meanwhile, and what
    /// BOS or the local disk says.
    pub async fn setattr(&self, ino: u64, change: AttrChange, fh: Option<u64>) -> FsResult<Attr> {
        self.check_writable()?;
        let node = self.node(ino)?;
        if Self::virtual_of(&node).is_some() {
            return Err(FsError::plain(libc::EPERM));
        }
        if let Some(size) = change.size {
            if node.kind != Kind::File {
                return Err(FsError::plain(if node.kind == Kind::Dir { libc::EISDIR } else { libc::EINVAL }));
            }
            self.resize(&node, size, change, fh).await?;
        } else {
            self.refresh(&node).await?;
            self.set_attrs(&node, change).await?;
        }
        Ok(self.attr_of(&node))
    }

    async fn resize(&self, node: &Arc<Node>, size: u64, change: AttrChange, fh: Option<u64>) -> FsResult<()> {
        let open = fh.and_then(|fh| self.files.get(fh));
        if let Some(open) = &open
            && let Some(writer) = &open.writer
        {
            cut_waiting(&writer.file, size).await?;
            open.wrote();
            drop_privileges(&writer.file)?;
            self.set_attrs(node, change).await?;
            return writer.make_durable_if_asked().await;
        }
        // No handle: a writer for just this act.
        let file = self.begin_write(node).await?;
        // Also where another handle is open, or its release, which comes behind the close, is still to arrive.
        let unchanged_at = file.is_unchanged().then(|| node.body.state.lock().endings.writes());
        let cut = async {
            if file.size() != size {
                cut_waiting(&file, size).await?;
                drop_privileges(&file)?;
            }
            self.set_attrs(node, change).await?;
            let complete = {
                let state = node.body.state.lock();
                state.writers == 1 || unchanged_at == Some(state.endings.writes())
            };
            if complete && !self.options.write_back && node.is_linked() {
                file.publish_and_wait().await?;
            }
            Ok(())
        };
        let result = cut.await;
        self.end_write(node, &file, None);
        result
    }

    async fn set_attrs(&self, node: &Arc<Node>, change: AttrChange) -> FsResult<()> {
        let content = {
            let mut state = node.body.state.lock();
            state.touch();
            state.atime = change.atime.or(state.atime);
            state.content.clone()
        };
        match content {
            Content::Dirty(file) => {
                let attrs = change.apply(file.attrs());
                check_room(&file.key(), &file.headers(), &attrs)?;
                file.set_attrs(attrs)?;
                node.body.state.lock().keep(&file);
                Ok(())
            }
            Content::Object(object) if change.apply(object.attrs) == object.attrs => Ok(()),
            Content::Object(object) if !node.is_linked() => {
                // Nothing is left in BOS to carry them; handles see them until they close.
                let attrs = change.apply(object.attrs);
                node.body.state.lock().content = Content::Object(Object { attrs, ..object });
                Ok(())
            }
            Content::Object(object) => {
                let (key, headers) = (self.key_of(node)?, object.headers.unpack());
                check_room(&key, &headers, &change.apply(object.attrs))?;
                self.check_copyable(&key, &headers).await?;
                self.change_dirty(node, |file| {
                    let attrs = change.apply(file.attrs());
                    file.set_attrs(attrs)
                })
                .await
            }
            Content::Dir(_) => {
                self.dir_attrs.room().await;
                self.set_dir_attrs(node, &change)
            }
            Content::Virtual(_) => Err(FsError::plain(libc::EPERM)),
        }
    }

    /// Refuses new attributes for an object that is archived: they would cost a copy of it onto itself, which fails behind,
    /// where the program that set them does not hear of it.
    ///
    /// # Errors
    /// `EPERM` for an archived object that nobody restored; what BOS says.
    pub(super) async fn check_copyable(&self, key: &ObjectKey, headers: &ObjectHeaders) -> FsResult<()> {
        if !headers.storage_class.as_deref().is_some_and(is_archive_class) {
            return Ok(());
        }
        let doing = "changing the attributes of";
        match self.client.is_archived(key).await {
            Ok(false) => Ok(()),
            Ok(true) => Err(FsError::told(
                libc::EPERM,
                format!(
                    "{doing} {key:?}: the object is archived (storage class ARCHIVE), and BOS copies it for that; nothing was \
                     changed: restore it first, in the console or by RestoreObject, then try again"
                ),
            )),
            Err(error) => Err(FsError::from_bos(doing, key.as_str(), &error)),
        }
    }

    /// Changes something of a finished object that travels with its metadata: a writer for just this act, which writes
    /// nothing. The driver of the file sends it a moment later.
    pub(super) async fn change_dirty(
        &self,
        node: &Arc<Node>,
        act: impl FnOnce(&Arc<DirtyFile>) -> Result<(), WriteError>,
    ) -> FsResult<()> {
        self.uploads.room_for_file().await?;
        let file = self.begin_write(node).await?;
        let result = act(&file);
        self.end_write(node, &file, None);
        Ok(result?)
    }
}

/// Whether the metadata still fits with these attributes.
pub(super) fn check_room(key: &ObjectKey, headers: &ObjectHeaders, attrs: &FileAttrs) -> FsResult<()> {
    let mut metadata = headers.metadata.clone();
    posix_meta::write_attrs(&mut metadata, attrs);
    if posix_meta::fits_metadata_limit(&metadata) {
        return Ok(());
    }
    Err(FsError::told(
        libc::ENOSPC,
        format!(
            "changing the attributes of {key:?}: its metadata would have {} of at most {} bytes; nothing was changed",
            posix_meta::metadata_bytes(&metadata),
            posix_meta::METADATA_BYTES_MAX
        ),
    ))
}
