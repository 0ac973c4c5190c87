//! One part on its way: filled from the base where it must be, sealed, sent, checked.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::dirty_file::DirtyFile;
use super::driver::Trouble;
use crate::bos::client::{Body, BodySource as _};
use crate::fail_point::fail_point;
use crate::journal::Record;
use crate::object::{ByteRange, Checksum, Hasher, ObjectKey, PartNumber};
use crate::transfer::part::CopySource;
use crate::transfer::{Held, PartAnswer, Piece, Way};
use crate::write::block_map::BLOCK_BYTES;
use crate::write::extents::PartialLine;
use crate::write::layers::LayeredBody;

/// Bytes of the base fetched at once to fill a seam.
const FILL_BYTES_MAX: u64 = 4 << 20;
/// Bytes hashed per read of the spool.
const HASH_BYTES: usize = 256 << 10;
/// Bodies of one part that may come back wrong before the file fails: more would be the network's or the disk's fault.
const MISMATCHES_MAX: u32 = 5;

/// A part to be brought into BOS.
#[derive(Debug)]
pub(super) struct PartJob {
    pub(super) piece: Piece,
    /// Cancelled when the part's bytes change.
    pub(super) cancel: CancellationToken,
}

impl PartJob {
    pub(super) fn new(piece: Piece) -> Self {
        Self { piece, cancel: CancellationToken::new() }
    }
}

impl DirtyFile {
    pub(super) async fn run_job(self: Arc<Self>, job: PartJob) -> (PartNumber, Result<(), Trouble>) {
        let Piece { number, range, way } = job.piece;
        let work = async {
            let _slot = self.shared.slot().await;
            match way {
                Way::Send => self.upload_part(number, range, &job.cancel).await,
                Way::Copy => self.copy_part(number, range, &job.cancel).await,
                Way::Held => Ok(()),
            }
        };
        let result = tokio::select! {
            result = work => result,
            // The request is dropped and its connection closed: what arrived of it may still count, so the next body of
            // this number makes the part contested.
            () = job.cancel.cancelled() => Ok(()),
            () = self.shared.stop.cancelled() => Ok(()),
        };
        // What went wrong with bytes that have changed since says nothing: a cut spool ends before the old body does.
        let result = if job.cancel.is_cancelled() { Ok(()) } else { result };
        (number, result)
    }

    async fn copy_part(
        self: &Arc<Self>,
        number: PartNumber,
        range: ByteRange,
        cancel: &CancellationToken,
    ) -> Result<(), Trouble> {
        let (source, upload, base, unanswered) = {
            let inner = self.lock();
            let (Some(upload), Some(base)) = (inner.state.upload.clone(), inner.base()) else { return Ok(()) };
            (inner.state.base_key().clone(), upload, base.clone(), inner.state.unanswered(number))
        };
        let from = CopySource { key: &source, etag: &base.etag };
        let upload = upload.in_bos(&self.shared.client);
        let etag = match upload.copy_part(number, from, range, unanswered).await? {
            PartAnswer::CopyRefused(e) => {
                // The list of what is to be sent is another one from here on.
                log::info!("{source}: {e}; its bytes are read and sent again");
                self.lock().refused.parts = Some(base.etag);
                return Ok(());
            }
            answer => held_of(answer)?.map_err(Trouble::Again)?.etag,
        };
        let mut inner = self.lock();
        if cancel.is_cancelled() {
            return Ok(());
        }
        self.append(&mut inner, &Record::Copied { part: number, range, etag })?;
        Ok(())
    }

    async fn upload_part(
        self: &Arc<Self>,
        number: PartNumber,
        range: ByteRange,
        cancel: &CancellationToken,
    ) -> Result<(), Trouble> {
        fail_point!("upload.part");
        self.fill(range).await?;
        let Some(sum) = self.seal(number, range).await? else { return Ok(()) };
        let (upload, body, unanswered) = {
            let mut inner = self.lock();
            if cancel.is_cancelled() {
                return Ok(());
            }
            let held = inner.state.parts.get(&number).and_then(|part| part.held.clone());
            if let Some(held) = held.filter(|held| held.equals(&sum)) {
                self.append(&mut inner, &Record::Sent { part: number, sum, etag: held.etag, kept: true })?;
                drop(inner);
                self.notify();
                return Ok(());
            }
            let Some(upload) = inner.state.upload.clone() else { return Ok(()) };
            let Some(body) = inner.view().body(range) else { return Err(not_here(range)) };
            self.append(&mut inner, &Record::Sending { part: number, sum })?;
            (upload, body, inner.state.unanswered(number))
        };
        self.shared.rate.take(sum.len).await;
        let body = Body::Source(Arc::new(body));
        let upload = upload.in_bos(&self.shared.client);
        let checked = held_of(upload.send_part(number, body, &sum, unanswered).await?)?;
        fail_point!("upload.answered");
        let mut inner = self.lock();
        if cancel.is_cancelled() {
            // Written again between the answer and here: a line that calls it sent would hide that.
            return Ok(());
        }
        match checked {
            Ok(Held { etag, .. }) => {
                self.append(&mut inner, &Record::Sent { part: number, sum, etag, kept: false })?;
                inner.meter.add(sum.len);
                inner.live.entry(number).or_default().mismatches = 0;
            }
            Err(message) => {
                let live = inner.live.entry(number).or_default();
                live.mismatches += 1;
                live.sealed = None;
                let mismatches = live.mismatches;
                drop(inner);
                return Err(mismatch(upload.key, &format!("part {number}"), mismatches, message));
            }
        }
        drop(inner);
        self.notify();
        Ok(())
    }

    /// Fetches the bytes of `range` that are still only in the base, so that the spool has them all.
    pub(super) async fn fill(self: &Arc<Self>, range: ByteRange) -> Result<(), Trouble> {
        self.fill_from(None, range).await
    }

    /// [`DirtyFile::fill`] as long as the base is the object `source` (`None`: whichever it is). A file that is published
    /// and put away meanwhile needs nothing any more.
    pub(super) async fn fill_from(
        self: &Arc<Self>,
        source: Option<&ObjectKey>,
        range: ByteRange,
    ) -> Result<(), Trouble> {
        // Blocks are taken whole.
        let range = ByteRange::new(range.start / BLOCK_BYTES * BLOCK_BYTES, range.end.next_multiple_of(BLOCK_BYTES));
        loop {
            let (key, base, gap) = {
                let inner = self.lock();
                let key = inner.state.key.clone();
                let base = inner.base().cloned();
                if source.is_some() && base.as_ref().and_then(|base| base.key.as_ref()) != source {
                    return Ok(());
                }
                if inner.store.is_none() {
                    return Ok(());
                }
                let view = inner.view();
                if let Some(held) = view.held(range).first() {
                    if let Some(lost) = inner.lost_in_bos() {
                        return Err(lost);
                    }
                    return Err(Trouble::Final {
                        errno: libc::ENOSPC,
                        message: format!(
                            "{key}: bytes {held:?} were sent, taken out of the full spool and then partly rewritten; BOS \
                             cannot give them back. The other bytes are kept; write these again, whole parts at a time"
                        ),
                    });
                }
                let gap = view.base_gap(range, FILL_BYTES_MAX);
                match (gap, base) {
                    (Some(gap), Some(base)) => (key, base, ByteRange::at(gap.start, gap.len().min(FILL_BYTES_MAX))),
                    _ => return Ok(()),
                }
            };
            let from = base.key.as_ref().unwrap_or(&key);
            let bytes: Bytes = self.shared.client.get_range(from, gap, Some(&base.etag)).await?;
            let mut guard = self.lock();
            let inner = &mut *guard;
            if inner.base() != Some(&base) {
                if source.is_some() {
                    return Ok(());
                }
                // These are not its bytes any more: emptied and written anew, or published meanwhile.
                return Err(Trouble::Again(format!("{gap:?} of what it was made of is another object's now")));
            }
            let Some(bottom) = inner.store.as_mut().and_then(|store| store.layers.first_mut()) else { return Ok(()) };
            let layer = bottom.id;
            let before = bottom.spool_blocks();
            let spool = bottom.spool.clone();
            // The source of a copy is removed once its bytes are here. Those of the file's own object can be fetched again.
            let remembered = base.key.is_some();
            let lines = bottom.extents.fill(&spool, gap.start, &bytes, remembered);
            let lines = lines.map_err(crate::upload::WriteError::from)?;
            let more = bottom.spool_blocks().saturating_sub(before) * BLOCK_BYTES;
            inner.spooled_bytes += more;
            // Less than a part per file; a full spool must not stop the upload that empties it.
            self.shared.budget.take(more);
            for PartialLine { block, ranges, adds } in lines {
                self.append(inner, &Record::Partial { layer, block, ranges, adds })?;
            }
        }
    }

    /// The checksum of the part's present bytes; `None` when they changed while they were read.
    pub(super) async fn seal(&self, number: PartNumber, range: ByteRange) -> Result<Option<Checksum>, Trouble> {
        let (generation, body) = {
            let mut inner = self.lock();
            let live = inner.live.entry(number).or_default();
            if let Some((generation, sum)) = live.sealed
                && generation == live.generation
                && sum.len == range.len()
            {
                return Ok(Some(sum));
            }
            let generation = live.generation;
            let Some(body) = inner.view().body(range) else { return Err(not_here(range)) };
            (generation, body)
        };
        let hashing = move || {
            fail_point!("upload.hash");
            hash(&body)
        };
        let sum = tokio::task::spawn_blocking(hashing)
            .await
            .unwrap_or_else(|e| match e.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(e) => Err(std::io::Error::other(e)),
            })
            .map_err(|e| {
                // No fault of the disk: the file was cut while it was read, perhaps emptied and filled anew.
                let cut = e.kind() == std::io::ErrorKind::UnexpectedEof;
                if cut {
                    Trouble::Again(format!("{range:?} was cut while it was read"))
                } else {
                    self.unreadable(range, &e)
                }
            });
        let mut inner = self.lock();
        let live = inner.live.entry(number).or_default();
        if live.generation != generation {
            // Also when it was cut while it was read.
            return Ok(None);
        }
        let sum = sum?;
        live.sealed = Some((generation, sum));
        Ok(Some(sum))
    }
}

impl DirtyFile {
    /// The disk does not give bytes back that it took. Trying again does not help; the file fails, and others go on.
    fn unreadable(&self, range: ByteRange, error: &std::io::Error) -> Trouble {
        let inner = self.lock();
        let dir = inner.store.as_ref().map_or_else(String::new, |store| store.dir.display().to_string());
        Trouble::Final {
            errno: crate::journal::log::errno_of(error),
            message: format!(
                "{}: bytes {range:?} cannot be read back from the disk of --state-dir ({error}); nothing of this state was \
                 published, and what can be read is kept in {dir}: see the system log about that disk, then `bosfs uploads \
                 resume` or mount again, or write the file again",
                inner.state.key
            ),
        }
    }
}

/// Bytes were asked for before all of them were in the spool: what they were read for has changed.
pub(super) fn not_here(range: ByteRange) -> Trouble {
    Trouble::Again(format!("{range:?} is not wholly in the spool any more"))
}

/// Hashes bytes of the spools.
pub(super) fn hash(body: &LayeredBody) -> std::io::Result<Checksum> {
    let mut hasher = Hasher::new();
    let len = body.len();
    let mut buffer = vec![0; HASH_BYTES.min(len as usize)];
    let mut at = 0;
    while at < len {
        let count = buffer.len().min((len - at) as usize);
        body.read_at(at, &mut buffer[..count])?;
        hasher.update(&buffer[..count]);
        at += count as u64;
    }
    Ok(hasher.finish())
}

/// What BOS holds of a part now; `Ok(Err)`: its body came back wrong. That a number is contested is told by the state, from the
/// lines of what was sent.
fn held_of(answer: PartAnswer) -> Result<Result<Held, String>, Trouble> {
    match answer {
        PartAnswer::Held(held) | PartAnswer::Contested(held) => Ok(Ok(held)),
        PartAnswer::Differs { what, .. } => Ok(Err(what)),
        PartAnswer::Damaged(error) => Ok(Err(error.to_string())),
        PartAnswer::UploadGone(error)
        | PartAnswer::SourceChanged(error)
        | PartAnswer::SourceGone(error)
        | PartAnswer::CopyRefused(error) => Err(error.into()),
    }
}

/// What to do about a body that came back wrong for the `mismatches`th time in a row.
pub(super) fn mismatch(key: &crate::object::ObjectKey, what: &str, mismatches: u32, message: String) -> Trouble {
    if mismatches < MISMATCHES_MAX {
        return Trouble::Again(format!("{what}: {message}"));
    }
    Trouble::Final {
        errno: libc::EIO,
        message: format!(
            "{key}: {what} came back wrong {mismatches} times ({message}); the bytes are kept. If the bucket encrypts its \
             objects and gives no CRC, bosfs cannot prove what it sends"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_can_never_succeed_ends() {
        let key = crate::object::ObjectKey::parse("k").unwrap();
        assert!(matches!(mismatch(&key, "part 1", 1, "m".into()), Trouble::Again(_)));
        assert!(matches!(mismatch(&key, "part 1", MISMATCHES_MAX, "m".into()), Trouble::Final { .. }));
    }
}
