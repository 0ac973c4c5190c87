//! A restart of the machine may have taken lines from the end of a journal: those that were not synced. A publication that they
//! told of is in BOS all the same, and its object says so by its mark.
//!
//! Before a Complete the lines so far are synced ([`DirtyFile::sync_announcement`]): they tell what its parts are, and with that
//! the proof. A PutObject of a small file costs no sync; its mark is enough.

use std::sync::Arc;

use super::dirty_file::DirtyFile;
use super::driver::Trouble;
use super::inner::{Inner, Removal};
use super::state::{FileState, Frozen, Stage};
use crate::bos::client::ObjectMeta;
use crate::journal::Record;
use crate::journal::record::Publication;
use crate::posix_meta::{MARK, read_attrs};
use crate::transfer::settle::head;

/// What an object under the key says of publications that the journal does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unknown {
    /// Nothing: it is none of this journal, or one that the journal tells of.
    Nothing,
    /// It is the state that the journal knows as closed.
    Closed(Publication),
    /// It is a later state than any that the journal knows: all that is here is in it, or was there before.
    Later,
}

impl Unknown {
    fn of(state: &FileState, head: &ObjectMeta) -> Self {
        let mark = head.headers.metadata.get(MARK).and_then(|mark| mark.split_once('.'));
        let Some((journal, number)) = mark else { return Unknown::Nothing };
        let Ok(number) = number.parse::<Publication>() else { return Unknown::Nothing };
        let known = state.published.as_ref().map_or(0, |published| published.publication);
        if journal != state.journal_id || number <= known {
            return Unknown::Nothing;
        }
        let is_same = |frozen: &Frozen| {
            let carried = read_attrs(&head.headers.metadata, frozen.attrs);
            head.size == frozen.size && carried.mtime == frozen.attrs.mtime
        };
        match (&state.stage, state.last_closed()) {
            // Its own line asks for it.
            (Stage::Putting { frozen, .. } | Stage::Completing { frozen, .. } | Stage::Completed { frozen, .. }, _)
                if frozen.publication == number =>
            {
                Unknown::Nothing
            }
            (Stage::Closed(frozen), _) if frozen.publication == number && is_same(frozen) => Unknown::Closed(number),
            // The state that waits behind it was closed later, and nobody knows whether it is in the object.
            (_, Some(last)) if last.publication > number => Unknown::Nothing,
            _ => Unknown::Later,
        }
    }
}

impl DirtyFile {
    /// Looks whether the key still holds what a file of an earlier process began with, or a publication of it whose lines a
    /// restart of the machine took.
    pub(super) async fn check_base(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, count) = (self.key(), self.changes.count());
        if self.lock().state.restarted
            && let Some(head) = head(&self.shared.client, &key).await?
        {
            let mut inner = self.lock();
            let is_as_found = inner.check_base == Some(count) && self.changes.count() == count;
            if inner.state.key == key && is_as_found && inner.removal == Removal::None {
                match Unknown::of(&inner.state, &head) {
                    Unknown::Nothing => {}
                    Unknown::Closed(publication) => {
                        let (etag, size) = (head.etag, head.size);
                        self.append(&mut inner, &Record::Completed { publication, etag, size })?;
                    }
                    Unknown::Later => {
                        log::info!("{key}: what is left of its journal was published before the machine was restarted");
                        inner.check_base = None;
                        return Ok(self.discard(&mut inner)?);
                    }
                }
            }
        }
        let (key, stage, condition) = {
            let inner = self.lock();
            (inner.state.key.clone(), inner.state.stage.clone(), inner.state.condition.clone())
        };
        if stage == Stage::Open && self.lock().new_content {
            self.settle_object(&key, &stage, &condition).await?;
        }
        self.lock().check_base = None;
        Ok(())
    }

    /// The upload of what was sent before a restart of the machine is gone, and no object came of it. Unless a sync vouches for
    /// the bytes here, they are no more what was closed: they are kept, not published. Whether that is so.
    pub(super) fn give_up_uncertain(self: &Arc<Self>, inner: &mut Inner) -> Result<bool, Trouble> {
        let uncertain = &inner.state.uncertain_closes;
        let Some(frozen) = inner.state.stage.frozen().filter(|frozen| uncertain.contains(&frozen.close)).cloned()
        else {
            return Ok(false);
        };
        let key = &inner.state.key;
        log::warn!(
            "{key}: BOS no longer has its upload, and the machine was restarted before all of it was synced; it is kept, not \
             published: copy it again, or `bosfs uploads complete BUCKET/{key}` publishes it as it is"
        );
        self.append(inner, &Record::Superseded { publication: frozen.publication, lost: true })?;
        inner.new_content = inner.has_open_changes();
        inner.inherited = inner.new_content;
        inner.reconcile = false;
        inner.suspect_base = false;
        inner.resend();
        Ok(true)
    }

    /// Between the line that announces a Complete and the request: all lines so far go to stable storage. `false`: meanwhile the
    /// file was renamed, removed or told something else to publish.
    pub(super) async fn sync_announcement(&self, frozen: &Frozen) -> Result<bool, Trouble> {
        let key = self.key();
        self.make_lines_durable().await?;
        let inner = self.lock();
        let is_same =
            inner.state.stage.is_sent() && inner.state.stage.frozen().is_some_and(|now| now.close == frozen.close);
        Ok(is_same && inner.state.key == key && inner.removal == Removal::None)
    }
}
