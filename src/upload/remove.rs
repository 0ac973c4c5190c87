//! What happens to an object besides its publication: new attributes, and its end.

use std::sync::Arc;
use std::time::Instant;

use super::Published;
use super::complete::{finished, publication_headers};
use super::dirty_file::DirtyFile;
use super::driver::Trouble;
use super::inner::{COPY_BYTES_MAX, Inner, Removal};
use super::state::{Stage, Upload};
use crate::bos::BosErrorKind;
use crate::bos::client::{Known, ObjectMeta, Removed, stored_between};
use crate::journal::Record;
use crate::journal::record::Proof;
use crate::object::{Condition, Md5};
use crate::posix_meta::{MARK, write_attrs};
use crate::transfer::stale::head_until;
use crate::transfer::{Looks, Standing};

impl DirtyFile {
    /// [`DirtyFile::copy_attrs`], unless somebody moves the object at this moment.
    pub(super) async fn send_attrs_now(self: &Arc<Self>) -> Result<(), Trouble> {
        self.shared.wait_renames_left(self.key()).await;
        {
            let mut inner = self.lock();
            // They may have gone along with the rename.
            if inner.attrs_held > 0 || !inner.attrs_pending() {
                return Ok(());
            }
            inner.copying_attrs = true;
        }
        let result = self.copy_attrs().await;
        self.lock().copying_attrs = false;
        self.notify();
        result
    }

    /// Gives the finished object the attributes that were set since, by a copy onto itself.
    pub(super) async fn copy_attrs(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, base, mut headers, attrs, xattrs) = {
            let mut inner = self.lock();
            inner.attrs_due = None;
            if inner.base().is_some_and(|base| base.size > COPY_BYTES_MAX) || inner.is_copy_refused() {
                // Composed anew of copied parts, as any publication without new bytes.
                self.begin_publication(&mut inner, true)?;
                return Ok(());
            }
            let Some(base) = inner.base().cloned() else { return Ok(()) };
            let state = &inner.state;
            (state.key.clone(), base, state.headers.clone(), state.attrs, state.xattrs())
        };
        write_attrs(&mut headers.metadata, &attrs);
        self.shared.release_clones(&key).await?;
        let _slot = self.shared.act_slot().await;
        let (sent, mut times) = (Instant::now(), None);
        let copied = self.shared.client.copy_object(&key, Some(&base.etag), &key, Some(&headers)).await;
        let etag = match copied {
            Ok(copied) => {
                times = stored_between(copied.date, sent);
                Some(copied.etag)
            }
            Err(e) if e.is_copy_refused() => {
                log::info!("{key}: {e}; it is put together anew, as an ordinary object");
                let mut inner = self.lock();
                inner.refused.whole = Some(base.etag);
                self.begin_publication(&mut inner, true)?;
                return Ok(());
            }
            Err(e) if matches!(e.kind, BosErrorKind::PreconditionFailed | BosErrorKind::NoSuchKey) => {
                // A first try whose answer was lost may have given the object another ETag; and BOS may not see the object yet
                // where it copies from, nor HEAD what became of it.
                let is_ours = |head: &ObjectMeta| head.size == base.size && head.headers.metadata == headers.metadata;
                let before = self.lock().before();
                let counts = |head: Option<&ObjectMeta>| {
                    head.is_some_and(|head| is_ours(head) || head.etag == base.etag)
                        || before.standing(head) == Standing::Later
                };
                let (client, looks) = (&self.shared.client, Looks::before_conflict());
                match head_until(client, &key, looks, counts, &mut self.asking(&key)).await? {
                    Some(head) if is_ours(&head) => Some(head.etag),
                    Some(head) if head.etag == base.etag => {
                        return Err(Trouble::Again(format!("{e}, although HEAD shows the object as it was left here")));
                    }
                    _ => {
                        log::warn!("{key}: changed by somebody else; the mode, owner or time set here is dropped");
                        None
                    }
                }
            }
            Err(e) => return Err(e.into()),
        };
        let confirmed_at = etag.is_some().then(Instant::now);
        let carried = etag.unwrap_or_else(|| base.etag.clone());
        let published = Published { etag: carried.clone(), size: base.size, attrs, headers, stored_between: times };
        let has_moved = |inner: &Inner| {
            inner.state.base.as_ref() != Some(&base) || inner.state.key != key || inner.state.stage != Stage::Open
        };
        if has_moved(&self.lock()) {
            return Ok(());
        }
        // Remembered before the line that ends it: from there on nothing else tells of the new attributes, neither to a
        // lookup, as the file is not dirty any more, nor after a kill.
        self.shared.tell_published(&key, &published);
        let mut guard = self.lock();
        let inner = &mut *guard;
        if has_moved(inner) {
            return Ok(());
        }
        self.append(inner, &Record::AttrsCopied { etag: carried, attrs, xattrs })?;
        inner.last_published = Some(published);
        inner.proved_at = confirmed_at;
        if inner.writers == 0 && !inner.is_pending() && inner.store.is_some() {
            let done = inner.state.published.is_some().then(|| finished(inner));
            self.retire(inner);
            drop(guard);
            if let Some(done) = done {
                self.shared.finished(self, done);
            }
        } else {
            drop(guard);
        }
        self.notify();
        Ok(())
    }

    /// A file that is wholly another object's bytes: one CopyObject.
    pub(super) async fn clone_object(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, source, base, condition) = {
            let inner = self.lock();
            let Some(base) = inner.base().cloned() else { return Ok(()) };
            (inner.state.key.clone(), inner.state.base_key().clone(), base, inner.state.condition.clone())
        };
        self.shared.release_clones(&key).await?;
        let _slot = self.shared.act_slot().await;
        // CopyObject knows no condition on its target: it is looked at right before.
        if self.settle_condition(&key, &condition).await? {
            return Ok(());
        }
        let overwrites = condition == Condition::Any;
        let (frozen, headers) = {
            let mut inner = self.lock();
            let Some(frozen) = inner.state.stage.frozen().cloned() else { return Ok(()) };
            // While BOS was asked it may have been emptied, written anew and closed: that is no copy, or one of another object.
            let is_copy = inner.is_clone(frozen.size) && inner.base() == Some(&base) && inner.state.key == key;
            if inner.removal != Removal::None || !is_copy {
                return Ok(());
            }
            let mark = inner.state.mark(frozen.publication);
            let headers = publication_headers(&frozen, &mark, self.shared.options.storage_class.as_ref());
            let record = Record::Completing {
                publication: frozen.publication,
                mark,
                condition,
                size: frozen.size,
                part_count: 0,
            };
            self.append(&mut inner, &record)?;
            (frozen, headers)
        };
        let sent = Instant::now();
        let client = &self.shared.client;
        let copied = match overwrites {
            true => client.copy_object(&source, Some(&base.etag), &key, Some(&headers)).await,
            // What is there was looked at above, and is before every repeat.
            false => client.copy_object_once(&source, Some(&base.etag), &key, Some(&headers)).await,
        };
        let etag = match copied {
            Ok(copied) => {
                self.lock().stored_between = stored_between(copied.date, sent);
                copied.etag
            }
            Err(e) if e.is_copy_refused() => {
                // From here on it is a file like others, of which every byte is the other object's.
                log::info!("{source}: {e}; {key} is put together from parts of it");
                self.lock().refused.whole = Some(base.etag);
                return Ok(());
            }
            Err(e) if matches!(e.kind, BosErrorKind::PreconditionFailed | BosErrorKind::NoSuchKey) => {
                if !self.lock().is_clone(frozen.size) {
                    // This mount changed the source, after it had fetched the bytes: they are sent instead.
                    return Ok(());
                }
                return Err(Trouble::Final {
                    errno: libc::EIO,
                    message: format!(
                        "{key}: it was copied from {source} within the mount, and somebody else changed that object before \
                         the copy was made; nothing was stored: copy it again"
                    ),
                });
            }
            Err(e) => return Err(e.into()),
        };
        let (publication, size) = (frozen.publication, frozen.size);
        self.append(&mut self.lock(), &Record::Completed { publication, etag: etag.clone(), size })?;
        // The copy of an object put in one piece has the same MD5, and with it the same size; any other is looked at by the
        // next step.
        if etag == base.etag && Md5::from_hex(etag.as_str()).is_some() {
            self.finish(frozen, Proof::Composed).await
        } else {
            Ok(())
        }
    }

    /// Ends an upload in BOS.
    pub(super) async fn abort(&self, upload: &Upload) -> Result<(), Trouble> {
        let in_bos = upload.in_bos(&self.shared.client);
        if !in_bos.end(&mut self.asking(&upload.key)).await? {
            log::warn!("{}: BOS still has upload {}, although it was aborted again and again", upload.key, upload.id);
        }
        Ok(())
    }

    /// The removal is done. Should its journal be back after power loss, whose line of the removal is certain, it must not take
    /// away an equal object that somebody has written since.
    async fn leave_later_objects(&self) -> Result<(), Trouble> {
        {
            let mut inner = self.lock();
            let Some(store) = &mut inner.store else { return Ok(()) };
            // Not for this process, in which the removal is over.
            store.journal.append(&Record::Discarded).map_err(super::WriteError::from)?;
        }
        Ok(self.make_lines_durable().await?)
    }

    /// Takes a removed file out of BOS: its upload, and its object if that is the base or ours.
    pub(super) async fn remove(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, upload, state, known) = {
            let inner = self.lock();
            (inner.state.key.clone(), inner.state.upload.clone(), inner.state.clone(), inner.known_object())
        };
        // Before BOS is changed: without the line power loss would bring the file back.
        self.make_lines_durable().await?;
        if let Some(upload) = upload {
            self.abort(&upload).await?;
            let mut inner = self.lock();
            self.append(&mut inner, &Record::UploadEnded)?;
        }
        self.shared.release_clones(&key).await?;
        let _slot = self.shared.act_slot().await;
        let is_known = known.is_some();
        let may_exist = is_known || state.published.is_some() || state.publications > 0;
        if may_exist && !state.discarded {
            // What this mount never published is told by its time, too, where that was known when it lost its name.
            let base = state.base.as_ref().filter(|base| base.key.is_none() && known.as_ref() == Some(&base.etag));
            let stored = base.filter(|_| state.publications == 0).and_then(|base| base.stored);
            let known = known.map(|etag| Known { etag, stored });
            let own_marks = format!("{}.", state.journal_id);
            let removed = self.shared.client.remove_object(&key, None, |head| {
                let is_base = known.as_ref().is_some_and(|known| known.is_head(head));
                let is_ours = head.headers.metadata.get(MARK).is_some_and(|mark| mark.starts_with(&own_marks));
                // A new file of the same name may have been published meanwhile; equal bytes do not make it ours.
                (is_base || is_ours) && !self.shared.is_replaced(self, &key)
            });
            if let Removed::Other(head) = removed.await?
                && !self.shared.is_replaced(self, &key)
            {
                let message = format!(
                    "{key} was removed here, but BOS holds an object of somebody else there by now ({} bytes, ETag {}); it \
                     is left: remove it again if it is to go, too",
                    head.size, head.etag
                );
                // What never came into BOS left this name to the other one before: a conflict, told at its time.
                if state.published.is_some() || state.publications == 0 {
                    self.shared.tell_left(&key, &state.journal_id, message);
                } else {
                    log::warn!("{message}");
                }
            }
        }
        if is_known && !state.discarded {
            self.leave_later_objects().await?;
        }
        let mut inner = self.lock();
        self.retire(&mut inner);
        inner.removal = Removal::Done;
        self.shared.forget(self, &key);
        self.shared.removed(self, &key);
        drop(inner);
        self.notify();
        Ok(())
    }
}
