//! A file that loses its name, or what was written since its last publication: journaled here, taken out of BOS behind.

use std::sync::Arc;

use super::WriteError;
use super::dirty_file::DirtyFile;
use super::inner::{Inner, Removal};
use crate::journal::Record;

impl DirtyFile {
    /// Throws away what was written since the last publication.
    pub(super) fn discard(self: &Arc<Self>, inner: &mut Inner) -> Result<(), WriteError> {
        inner.new_content = false;
        inner.new_file = false;
        if inner.store.is_some() {
            self.append(inner, &Record::Discarded)?;
            inner.removal = Removal::Wanted;
        }
        Ok(())
    }

    /// Throws away what was written since the last close; what was closed is published.
    pub(super) fn discard_open(self: &Arc<Self>, inner: &mut Inner) -> Result<(), WriteError> {
        while let Some(layer) = inner.state.open_layer().map(|layer| layer.id) {
            self.append(inner, &Record::Dropped { layer })?;
        }
        let base = inner.state.base.as_ref().map_or(0, |base| base.size);
        inner.size = inner.state.last_closed().map_or(base, |closed| closed.size);
        inner.new_content = false;
        inner.new_file = false;
        inner.inherited = false;
        Ok(())
    }

    /// The file lost its name while handles are open: nothing of it is published any more.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn orphan(self: &Arc<Self>) -> Result<(), WriteError> {
        let mut inner = self.lock();
        if inner.removal == Removal::None {
            if inner.store.is_none() && inner.base().is_some() {
                // Its object must go also if bosfs is killed before the last handle is released.
                self.materialise(&mut inner)?;
            }
            if inner.store.is_some() {
                self.append(&mut inner, &Record::Unlinked)?;
            }
            inner.removal = Removal::Orphaned;
            self.shared.forget(self, &inner.state.key);
            self.shared.removing(&inner.state.key, self);
        }
        drop(inner);
        self.notify();
        Ok(())
    }

    /// Removes the file: journals it, aborts the upload, deletes the object if it is the base or ours. Returns when BOS
    /// has neither.
    ///
    /// # Errors
    /// When the journal cannot be written, or BOS refuses for good.
    pub async fn unlink(self: &Arc<Self>) -> Result<(), WriteError> {
        match self.begin_unlink()? {
            true => self.wait_removed().await,
            false => Ok(()),
        }
    }

    /// The first half of [`DirtyFile::unlink`], which does not wait for BOS: from here on whoever waits for this mount's work
    /// waits for the removal, too. `false`: there is nothing to wait for.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn begin_unlink(self: &Arc<Self>) -> Result<bool, WriteError> {
        let mut inner = self.lock();
        if inner.removal == Removal::Done {
            // A journal that nothing would ever take away must not be begun again.
            return Ok(false);
        }
        // A file whose name another one took leaves the object to that one.
        if inner.state.discarded && inner.store.is_none() {
            inner.removal = Removal::Done;
            self.shared.removed(self, &inner.state.key);
            return Ok(false);
        }
        if !inner.state.discarded {
            self.materialise(&mut inner)?;
            if !inner.state.unlinked {
                self.append(&mut inner, &Record::Unlinked)?;
            }
        }
        inner.removal = Removal::Wanted;
        inner.retry_at = None;
        Ok(true)
    }

    /// Gives up what was written since the last publication (`uploads abort`): aborts the upload and drops the local
    /// bytes. The object at the key, if there is one, stays.
    ///
    /// # Errors
    /// When the journal cannot be written, or BOS refuses for good.
    pub async fn give_up(self: &Arc<Self>) -> Result<(), WriteError> {
        {
            let mut inner = self.lock();
            if inner.removal == Removal::None {
                self.discard(&mut inner)?;
            }
            if inner.removal == Removal::None {
                return Ok(());
            }
            inner.retry_at = None;
        }
        self.wait_removed().await
    }

    pub(super) async fn wait_removed(self: &Arc<Self>) -> Result<(), WriteError> {
        self.start_driver();
        self.wake.notify_one();
        let removed = async {
            let mut changed = self.subscribe();
            loop {
                changed.borrow_and_update();
                {
                    let inner = self.lock();
                    if inner.removal == Removal::Done {
                        return Ok(());
                    }
                    inner.trouble()?;
                }
                if changed.changed().await.is_err() {
                    return Err(self.stopped());
                }
            }
        };
        self.bounded(removed).await
    }
}
