//! What happens to an object besides its publication: new attributes, and its end.

use std::sync::Arc;

use super::Published;
use super::complete::finished;
use super::dirty_file::DirtyFile;
use super::driver::Trouble;
use super::inner::Removal;
use super::state::Stage;
use crate::bos::BosErrorKind;
use crate::journal::Record;
use crate::object::{BaseObject, Condition};
use crate::posix_meta::{MARK, write_attrs};

/// Aborts of one upload at most; each may leave parts that were in flight.
const ABORTS_MAX: u32 = 10;

impl DirtyFile {
    /// Gives the published object the attributes that were set since, by a copy onto itself.
    pub(super) async fn copy_attrs(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, base, mut headers, attrs) = {
            let inner = self.lock();
            let Some(base) = inner.base().cloned() else { return Ok(()) };
            (inner.state.key.clone(), base, inner.state.headers.clone(), inner.state.attrs)
        };
        write_attrs(&mut headers.metadata, &attrs);
        let copied = self.shared.client.copy_object(&key, Some(&base.etag), &key, Some(&headers)).await;
        let etag = match copied {
            Ok(copy) => Some(copy.etag),
            Err(e) if matches!(e.kind, BosErrorKind::PreconditionFailed | BosErrorKind::NoSuchKey) => {
                log::warn!("{key}: changed by somebody else; the mode, owner or time set here is dropped");
                None
            }
            Err(e) => return Err(e.into()),
        };
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.new_content || inner.new_file || inner.state.stage != Stage::Open {
            return Ok(());
        }
        if let Some(etag) = etag {
            inner.state.condition = Condition::Matches(etag.clone());
            inner.last_published =
                Some(Published { etag: etag.clone(), size: base.size, attrs, headers: headers.clone() });
            if let Some(published) = &mut inner.state.published {
                published.attrs = attrs;
                published.object.etag = etag.clone();
            }
            inner.state.base = Some(BaseObject { etag, size: base.size });
            inner.state.headers = headers;
        }
        if inner.state.attrs == attrs && inner.writers == 0 {
            let done = finished(inner);
            self.retire(inner);
            drop(guard);
            self.shared.finished(self, done);
        }
        self.notify();
        Ok(())
    }

    /// Takes a removed file out of BOS: its upload, and its object if that is the base or ours.
    pub(super) async fn remove(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, upload, state) = {
            let inner = self.lock();
            (inner.state.key.clone(), inner.state.upload.clone(), inner.state.clone())
        };
        if let Some(upload) = upload {
            // Parts that were in flight may survive the first abort (BOS docs, AbortMultipartUpload).
            for _ in 0..ABORTS_MAX {
                if !self.shared.client.abort(&key, &upload.id).await? {
                    break;
                }
            }
            let mut inner = self.lock();
            self.append(&mut inner, &Record::UploadEnded)?;
        }
        let may_exist = state.base.is_some() || state.published.is_some() || state.publications > 0;
        if may_exist
            && !state.discarded
            && let Some(head) = self.head(&key).await?
        {
            let is_base = state.base.as_ref().is_some_and(|base| base.etag == head.etag);
            let mark = head.headers.metadata.get(MARK);
            let is_ours = mark.is_some_and(|mark| mark.starts_with(&format!("{}.", state.journal_id)));
            // A new file of the same name may have been published meanwhile; equal bytes do not make it ours.
            let newer = self.shared.is_replaced(self, &key);
            if (is_base || is_ours) && !newer {
                self.shared.client.delete_object(&key).await?;
            } else if !newer {
                log::warn!(
                    "{key}: removed here, but BOS holds an object of somebody else (ETag {}); it is left",
                    head.etag
                );
            }
        }
        let mut inner = self.lock();
        self.retire(&mut inner);
        inner.removal = Removal::Done;
        self.shared.forget(self, &key);
        drop(inner);
        self.notify();
        Ok(())
    }
}
