//! The proof that an object is what was written: HEAD and compare, and what follows from the verdict.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::dirty_file::DirtyFile;
use super::driver::Trouble;
use super::inner::Inner;
use super::state::{Frozen, Held, Stage};
use crate::journal::Record;
use crate::journal::record::Proof;
use crate::object::{ObjectKey, PartNumber};
use crate::transfer::Looks;
use crate::transfer::prove::{ByRule, Expected, MadeAs, Proving, Verdict, prove};

/// HEADs in a row that may give a wrong size before it counts.
const WRONG_SIZE_MAX: u32 = 2;
/// Publications of one state that may be disproved before the file fails.
const DISPROOFS_MAX: u32 = 3;

impl DirtyFile {
    /// HEAD and compare.
    pub(super) async fn prove(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, frozen, etag, mark, before, expected) = {
            let inner = self.lock();
            let Stage::Completed { frozen, etag, put } = &inner.state.stage else { return Ok(()) };
            let mark = inner.state.mark(frozen.publication);
            // Where the parts known do not make up the object, it was made of others: BOS was asked for them meanwhile.
            let composed = || Expected::composed(frozen.size, &inner.listed(frozen.size)?).ok();
            let expected = match put {
                Some(sum) => Expected::Whole(*sum),
                None => composed().unwrap_or_else(|| Expected::unlisted(frozen.size)),
            };
            (inner.state.key.clone(), frozen.clone(), etag.clone(), mark, inner.before(), expected)
        };
        let made = MadeAs { etag: &etag, mark: &mark, before: &before };
        // The spool may have the only copy of its bytes.
        let (client, looks) = (&self.shared.client, Looks::before_dropping());
        let (verdict, head) = match prove(client, &key, &made, &expected, looks, &mut self.asking(&key)).await? {
            Proving::Judged(verdict, head) => (verdict, head),
            Proving::NotYet { head: None, .. } => {
                self.conflict(&mut self.lock(), "no object, although this file was published");
                return Ok(());
            }
            Proving::NotYet { head: Some(head), .. } => {
                // Not replaced since: as if it had never been published.
                let found = format!("an object with ETag {} from before this file was published as {etag}", head.etag);
                self.conflict(&mut self.lock(), &found);
                return Ok(());
            }
            Proving::Other(_) => {
                log::warn!("{key}: published as ETag {etag}, and replaced by somebody else since");
                return self.finish(frozen, Proof::Composed).await;
            }
        };
        match self.proof_of(&key, verdict) {
            // One odd answer must not cost a publication whose base is gone by now.
            Err(message) if head.size != frozen.size && self.lock().tries < WRONG_SIZE_MAX => {
                Err(Trouble::Again(message))
            }
            verdict => self.conclude(frozen, verdict).await,
        }
    }

    /// What a verdict is worth for a publication; an error disproves it.
    pub(super) fn proof_of(&self, key: &ObjectKey, verdict: Verdict) -> Result<Proof, String> {
        match verdict {
            Verdict::Proved(_) => Ok(Proof::Proved),
            Verdict::Composed { .. } => Ok(Proof::Composed),
            // By neither rule what was written, and not for the first time: what this bucket says of its composed objects
            // tells nothing, and sending them again would not change that.
            Verdict::ChecksumOdd { etag: ByRule::NoRule, what } if self.lock().state.disproofs == 0 => Err(what),
            Verdict::ChecksumOdd { etag: ByRule::Fits | ByRule::NoRule, what } => {
                self.tell_odd_crcs(key, &what);
                Ok(Proof::Composed)
            }
            Verdict::ChecksumOdd { etag: ByRule::Differs, what } | Verdict::Mismatch(what) => Err(what),
        }
    }

    /// Tells once for the mount that checksums of composed objects do not fit, although every part's did.
    fn tell_odd_crcs(&self, key: &ObjectKey, misfit: &str) {
        if !self.shared.odd_crcs_told.swap(true, Ordering::Relaxed) {
            log::warn!(
                "{key}: {misfit}, although each of its parts was stored as it was sent: the checksums that BOS gives of composed \
                 objects of the bucket {} are not believed, and its ETags over the parts count instead; such objects are \
                 `composed`, not `proved` (this is told once)",
                self.shared.client.bucket()
            );
        }
    }

    pub(super) async fn conclude(
        self: &Arc<Self>,
        frozen: Frozen,
        verdict: Result<Proof, String>,
    ) -> Result<(), Trouble> {
        match verdict {
            Ok(proof) => self.finish(frozen, proof).await,
            Err(message) => self.disproved(frozen, message),
        }
    }

    pub(super) fn disproved(self: &Arc<Self>, frozen: Frozen, message: String) -> Result<(), Trouble> {
        let mut inner = self.lock();
        let key = inner.state.key.clone();
        log::error!("{key}: the object is not what was written ({message}); it is published again from the spool");
        self.append(&mut inner, &Record::Disproved { publication: frozen.publication, message: message.clone() })?;
        inner.live.clear();
        if inner.state.disproofs >= DISPROOFS_MAX {
            return Err(Trouble::Final {
                errno: libc::EIO,
                message: format!(
                    "{key}: the object came out wrong {DISPROOFS_MAX} times ({message}); the bytes are kept"
                ),
            });
        }
        Ok(())
    }
}

impl Inner {
    /// What BOS holds of every piece of a publication of `size` bytes; `None` if something is missing.
    pub(super) fn listed(&self, size: u64) -> Option<Vec<(PartNumber, Held)>> {
        let held = |number| self.state.parts.get(&number).and_then(|part| part.held.clone());
        let plan = self.plan_of(size).ok()?;
        plan.pieces().iter().map(|piece| Some((piece.number, held(piece.number)?))).collect()
    }
}
