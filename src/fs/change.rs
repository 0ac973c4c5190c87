//! `setattr`: mode, owner, times and size.

use std::sync::Arc;
use std::time::Instant;

use super::Fs;
use super::attr::{Attr, AttrChange, Content, Node};
use super::error::{FsError, FsResult};
use super::open::{cut_waiting, drop_privileges};
use crate::namespace::Object;
use crate::namespace::inode::Kind;
use crate::object::{FileAttrs, ObjectKey};
use crate::posix_meta;
use crate::upload::WriterEnd;

/// Largest object that CopyObject takes (BOS docs, CopyObject: 5 GB).
pub(super) const COPY_BYTES_MAX: u64 = 5_000_000_000;

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
        if let Some(writer) = open.as_ref().and_then(|open| open.writer.as_ref()) {
            cut_waiting(&writer.file, size).await?;
            writer.verdict.lock().on_write();
            drop_privileges(&writer.file)?;
            return self.set_attrs(node, change).await;
        }
        // No handle: a writer for just this act.
        let file = self.begin_write(node).await?;
        let cut = async {
            if file.size() != size {
                cut_waiting(&file, size).await?;
                drop_privileges(&file)?;
            }
            self.set_attrs(node, change).await?;
            let alone = node.body.state.lock().writers == 1;
            if alone && !self.options.write_back && node.is_linked() {
                file.publish_and_wait().await?;
            }
            Ok(())
        };
        let result = cut.await;
        self.end_write(node, &file, WriterEnd::Closed);
        result
    }

    async fn set_attrs(&self, node: &Arc<Node>, change: AttrChange) -> FsResult<()> {
        let content = node.body.state.lock().content.clone();
        match content {
            Content::Dirty(file) => {
                let present = file.attrs();
                let attrs = change.apply(present);
                if attrs != present {
                    file.set_attrs(attrs)?;
                }
                Ok(())
            }
            Content::Object(_) => self.copy_attrs(node, change).await,
            Content::Dir(_) => self.set_dir_attrs(node, &change),
            Content::Virtual(_) => Err(FsError::plain(libc::EPERM)),
        }
    }

    /// Gives a finished object other attributes: one copy onto itself.
    async fn copy_attrs(&self, node: &Arc<Node>, change: AttrChange) -> FsResult<()> {
        let turn = node.body.turn.lock().await;
        let content = node.body.state.lock().content.clone();
        let object = match content {
            Content::Object(object) => object,
            // Somebody opened it for writing in between: the attributes ride on that publication.
            Content::Dirty(file) => {
                let attrs = change.apply(file.attrs());
                return Ok(file.set_attrs(attrs)?);
            }
            Content::Dir(_) | Content::Virtual(_) => return Err(FsError::STALE),
        };
        let attrs = change.apply(object.attrs);
        if attrs == object.attrs {
            return Ok(());
        }
        if !node.is_linked() {
            // Nothing is left in BOS to carry them; handles see them until they close.
            node.body.state.lock().content = Content::Object(Object { attrs, ..object });
            return Ok(());
        }
        let key = self.key_of(node)?;
        check_room(&key, &object, &attrs)?;
        if object.size > COPY_BYTES_MAX {
            drop(turn);
            return self.copy_attrs_in_parts(node, attrs).await;
        }
        let mut headers = object.headers.clone();
        posix_meta::write_attrs(&mut headers.metadata, &attrs);
        let copied = self.client.copy_object(&key, Some(&object.etag), &key, Some(&headers)).await;
        let etag = copied.map_err(|error| FsError::from_bos("changing the attributes of", key.as_str(), &error))?.etag;
        self.namespace.changed(key.as_str(), false);
        let mut state = node.body.state.lock();
        state.content = Content::Object(Object { etag, last_modified: 0, attrs, headers, ..object });
        state.confirmed = Some(Instant::now());
        Ok(())
    }

    /// An object too large for one copy is composed anew of copied parts, as any publication without new bytes.
    async fn copy_attrs_in_parts(&self, node: &Arc<Node>, attrs: FileAttrs) -> FsResult<()> {
        let file = self.begin_write(node).await?;
        let result = file.set_attrs(attrs);
        self.end_write(node, &file, WriterEnd::Closed);
        Ok(result?)
    }
}

/// Whether the metadata still fits with these attributes.
fn check_room(key: &ObjectKey, object: &Object, attrs: &FileAttrs) -> FsResult<()> {
    let mut metadata = object.headers.metadata.clone();
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
