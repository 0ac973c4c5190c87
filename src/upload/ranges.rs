//! Holes, zeros and copies within the mount: changes of a range that carry no bytes.

use std::sync::Arc;

use super::WriteError;
use super::dirty_file::{DirtyFile, disk_error};
use super::driver::Trouble;
use super::inner::{Inner, Removal};
use super::state::Stage;
use crate::journal::Record;
use crate::object::{BaseObject, ByteRange, Condition, ETag, ObjectKey};
use crate::transfer::settle::head;
use crate::write::block_map::BLOCK_BYTES;
use crate::write::layers::Place;

/// Zeros written at once at the edges of a zeroed range; an edge is less than a block.
const ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

impl DirtyFile {
    /// Makes a range zeros, as far as it lies within the file (`FALLOC_FL_PUNCH_HOLE`, `FALLOC_FL_ZERO_RANGE`); whole blocks
    /// take no room in the spool afterwards. The size stays.
    ///
    /// # Errors
    /// As [`DirtyFile::write`].
    pub fn zero(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), WriteError> {
        let size = self.size();
        let range = ByteRange::at(offset, len).intersect(ByteRange::new(0, size));
        if range.is_empty() {
            return Ok(());
        }
        let first = range.start.next_multiple_of(BLOCK_BYTES);
        let last = if range.end == size { range.end } else { range.end / BLOCK_BYTES * BLOCK_BYTES };
        if first >= last {
            return self.write_zeros(range);
        }
        self.write_zeros(ByteRange::new(range.start, first))?;
        self.write_zeros(ByteRange::new(last, range.end))?;
        let mut guard = self.lock();
        let inner = &mut *guard;
        // What was cut meanwhile is zeros already.
        let blocks = ByteRange::new(first, last).intersect(ByteRange::new(0, inner.size));
        if blocks.is_empty() {
            return Ok(());
        }
        self.open_layer(inner)?;
        self.reopen_parked(inner)?;
        self.dirty_parts(inner, blocks)?;
        let layer = inner.top()?.id;
        self.append(inner, &Record::Zeroed { layer, range: blocks })?;
        let key = inner.state.key.clone();
        let top = inner.top()?;
        let before = top.extents.spool_blocks(blocks);
        top.extents.zero(blocks).map_err(|e| disk_error(&key, &e))?;
        top.extents.scrub(&top.spool, blocks).map_err(|e| disk_error(&key, &e))?;
        let freed = before * BLOCK_BYTES;
        inner.spooled_bytes = inner.spooled_bytes.saturating_sub(freed);
        self.shared.budget.release(freed);
        inner.touched();
        inner.new_content = true;
        inner.inherited = false;
        Ok(())
    }

    fn write_zeros(self: &Arc<Self>, range: ByteRange) -> Result<(), WriteError> {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(ZEROS.len() as u64);
            self.write(at, &ZEROS[..len as usize])?;
            at += len;
        }
        Ok(())
    }

    /// Takes `len` bytes of another object over, at the same offset as they have there, as the end of this file: nothing is
    /// fetched, BOS copies them when the file is published. `false`: this file is not fit for that (it has other bytes).
    ///
    /// # Errors
    /// As [`DirtyFile::write`].
    pub fn clone_from_object(self: &Arc<Self>, source: &BaseObject, offset: u64, len: u64) -> Result<bool, WriteError> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let end = offset.saturating_add(len);
        let base_end = inner.state.base_end();
        let same = inner.base().is_none_or(|base| base == source || (base.key.is_none() && base_end == 0));
        let fits = offset == inner.size && end <= source.size;
        let plain = inner.sends_open_state() && inner.state.layers.len() <= 1 && inner.removal == Removal::None;
        if !(same && fits && plain) || inner.state.upload.is_some() || source.key.as_ref() == Some(&inner.state.key) {
            return Ok(false);
        }
        let continues = inner.base() == Some(source);
        let whole = ByteRange::new(0, inner.size);
        if inner.size > 0 && (!continues || base_end != inner.size) {
            return Ok(false);
        }
        inner.reach(&self.shared, end.max(source.size))?;
        self.open_layer(inner)?;
        inner.reach(&self.shared, end.max(source.size))?;
        if !inner.top()?.extents.is_untouched(whole, whole.end) {
            return Ok(false);
        }
        self.reopen_parked(inner)?;
        // In one line, so that a kill leaves nothing of it or all, and no zeros where the bytes should be.
        self.append(inner, &Record::Cloned { base: source.clone(), end, grows: true })?;
        let layer = inner.top()?.id;
        inner.top()?.extents.set_base_end(end);
        let size = inner.size;
        if let Err(error) = self.resize_store(inner, end) {
            // Nothing of it counts.
            inner.top()?.extents.set_base_end(size);
            self.append(inner, &Record::Resizing { layer, size })?;
            self.append(inner, &Record::Resized { layer })?;
            return Err(error);
        }
        self.append(inner, &Record::Resized { layer })?;
        inner.touched();
        inner.new_content = true;
        inner.inherited = false;
        Ok(true)
    }

    /// Fetches what [`DirtyFile::clone_from_object`] took over, so that it lies over the file's own object as what a program
    /// writes does. Nothing of a file that has no object, or that is no such copy; nor where it was written or closed meanwhile:
    /// ask again how it can be renamed.
    ///
    /// # Errors
    /// `ESTALE` when somebody else replaced the file's object; when BOS or the local disk does not give the bytes.
    pub async fn take_clone(self: &Arc<Self>) -> Result<(), WriteError> {
        let (key, source, size) = {
            let inner = self.lock();
            let source = inner.base().and_then(|base| base.key.clone());
            let (Some(source), Some(_)) = (source, inner.known_object()) else { return Ok(()) };
            (inner.state.key.clone(), source, inner.size)
        };
        let fetched = async {
            self.fill_from(Some(&source), ByteRange::new(0, size)).await?;
            // The line that lets go of the other object speaks of bytes that are here.
            self.sync().await?;
            Ok::<_, Trouble>(head(&self.shared.client, &key).await?)
        };
        let own = fetched.await.map_err(|trouble| trouble.of_copy(&key))?;
        let mut inner = self.lock();
        let known = inner.known_object();
        let is_same = inner.state.key == key && inner.base().and_then(|base| base.key.as_ref()) == Some(&source);
        let is_here = !inner.open_view().pieces(ByteRange::new(0, inner.size)).iter().any(|p| p.from == Place::Base);
        if !is_same || !is_here || inner.state.stage != Stage::Open {
            return Ok(());
        }
        let Some(own) = own.filter(|own| Some(&own.etag) == known.as_ref()) else {
            let what = format!("{key}: somebody else changed its object; nothing was changed here: look again");
            return Err(WriteError::failed(libc::ESTALE, what));
        };
        let base = BaseObject::own(own.etag, own.size);
        self.append(&mut inner, &Record::Cloned { base, end: 0, grows: false })?;
        if let Some(bottom) = inner.store()?.layers.first_mut() {
            bottom.extents.set_base_end(0);
        }
        Ok(())
    }

    /// The next data (`hole` false) or hole (`hole` true) from `offset` on; the end of the file is a hole. `None`: there is
    /// none, or `offset` is not within the file.
    pub fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        let inner = self.lock();
        let size = inner.size;
        if offset >= size {
            return None;
        }
        if inner.store.is_none() {
            return Some(if hole { size } else { offset });
        }
        let pieces = inner.open_view().pieces(ByteRange::new(offset, size));
        let found = pieces.iter().find(|piece| (piece.from == Place::Zero) == hole).map(|piece| piece.range.start);
        if hole { found.or(Some(size)) } else { found }
    }
}

impl Trouble {
    /// What keeps the bytes of a copy within the mount from being fetched, of which `key` is one end.
    pub(super) fn of_copy(self, key: &ObjectKey) -> WriteError {
        let failed = |why: &dyn std::fmt::Display| {
            WriteError::failed(libc::EIO, format!("{key}: the bytes of a copy could not be fetched first: {why}"))
        };
        match self {
            Trouble::Local(error) => error,
            Trouble::Final { errno, message } => WriteError::failed(errno, message),
            Trouble::Bos(error) => failed(&error),
            Trouble::Again(message) => failed(&message),
        }
    }
}

impl Inner {
    /// The object that BOS has under the file's key, as far as this file knows.
    pub(super) fn known_object(&self) -> Option<ETag> {
        match &self.state.condition {
            Condition::Matches(etag) => Some(etag.clone()),
            Condition::Absent => None,
            Condition::Any => self.state.base.as_ref().filter(|base| base.key.is_none()).map(|base| base.etag.clone()),
        }
    }
}
