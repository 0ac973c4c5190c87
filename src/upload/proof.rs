//! The proof that an object is what was written: HEAD and compare, and what follows from the verdict.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::dirty_file::DirtyFile;
use super::driver::Trouble;
use super::inner::Inner;
use super::part::check_stored;
use super::patience::{Patience, Standing};
use super::state::{Frozen, Held, Stage};
use crate::bos::client::{ObjectMeta, StoredOutcome};
use crate::journal::Record;
use crate::journal::record::Proof;
use crate::object::{Crcs, ETag, ObjectKey, PartNumber, composed_etag};
use crate::posix_meta::MARK;

/// HEADs in a row that may give a wrong size before it counts.
const WRONG_SIZE_MAX: u32 = 2;
/// Publications of one state that may be disproved before the file fails.
const DISPROOFS_MAX: u32 = 3;

impl DirtyFile {
    /// HEAD and compare.
    pub(super) async fn prove(self: &Arc<Self>) -> Result<(), Trouble> {
        let (key, frozen, etag, put) = {
            let inner = self.lock();
            let Stage::Completed { frozen, etag, put } = &inner.state.stage else { return Ok(()) };
            (inner.state.key.clone(), frozen.clone(), etag.clone(), *put)
        };
        let (mark, before) = {
            let inner = self.lock();
            (inner.state.mark(frozen.publication), inner.before())
        };
        let is_ours = |head: &ObjectMeta| head.etag == etag || head.headers.metadata.get(MARK) == Some(&mark);
        let counts = |head: Option<&ObjectMeta>| head.is_some_and(is_ours) || before.standing(head) == Standing::Later;
        let head = self.head_patiently(&key, Patience::before_dropping(), counts).await?;
        let Some(head) = head else {
            self.conflict(&mut self.lock(), "no object, although this file was published");
            return Ok(());
        };
        if !is_ours(&head) {
            if before.standing(Some(&head)) == Standing::Earlier {
                // Not replaced since: as if it had never been published. The spool may have the only copy of its bytes.
                let found = format!("an object with ETag {} from before this file was published as {etag}", head.etag);
                self.conflict(&mut self.lock(), &found);
                return Ok(());
            }
            log::warn!("{key}: published as ETag {etag}, and replaced by somebody else since");
            return self.finish(frozen, Proof::Composed).await;
        }
        let outcome = StoredOutcome {
            etag: head.etag.clone(),
            crc32c: head.crc32c,
            crc32: head.crc32,
            crc64: head.crc64,
            date: None,
        };
        if head.size != frozen.size {
            if self.lock().tries < WRONG_SIZE_MAX {
                // One odd answer must not cost a publication whose base is gone by now.
                return Err(Trouble::Again(wrong_size(head.size, frozen.size)));
            }
            let message = wrong_size(head.size, frozen.size);
            return self.disproved(frozen, message);
        }
        let verdict = match put {
            Some(sum) => check_stored(&sum, &outcome).map(|()| Proof::Proved),
            None => {
                let listed = self.lock().listed(frozen.size);
                let whole = listed.as_ref().and_then(|listed| whole(listed));
                let predicted = listed.map(|listed| predicted_etag(&listed));
                let verdict = judge_composed(whole, frozen.size, &outcome, predicted.as_ref(), Some(head.size));
                let verdict = verdict.unwrap_or(Ok(Proof::Composed));
                let misfit = whole.and_then(|(whole, _)| crc_verdict(&whole, &outcome)).and_then(Result::err);
                match (verdict, misfit) {
                    // By neither rule what was written, and not for the first time: what this bucket says of its composed
                    // objects tells nothing, and sending them again would not change that.
                    (Err(message), _) if !follows_a_rule(&outcome.etag) && self.lock().state.disproofs > 0 => {
                        self.tell_odd_crcs(&key, &message);
                        Ok(Proof::Composed)
                    }
                    (Ok(proof), Some(misfit)) => {
                        self.tell_odd_crcs(&key, &misfit);
                        Ok(proof)
                    }
                    (verdict, _) => verdict,
                }
            }
        };
        self.conclude(frozen, verdict).await
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
        self.pieces(size).iter().map(|piece| Some((piece.part(), held(piece.part())?))).collect()
    }
}

/// CRCs and length of all that is listed, where every piece's are known.
pub(super) fn whole(listed: &[(PartNumber, Held)]) -> Option<(Crcs, u64)> {
    listed.iter().try_fold((Crcs::default(), 0), |(whole, len), (_, held)| {
        let sum = held.sum?;
        Some((whole.then(sum.crcs, sum.len), len + sum.len))
    })
}

fn wrong_size(found: u64, written: u64) -> String {
    format!("{found} bytes where {written} were written")
}

pub(super) fn predicted_etag(listed: &[(PartNumber, Held)]) -> ETag {
    composed_etag(listed.iter().map(|(_, held)| &held.etag))
}

/// The verdict of the strongest checksum that BOS gives of the whole; `None` where it gives none.
fn crc_verdict(whole: &Crcs, outcome: &StoredOutcome) -> Option<Result<(), String>> {
    let checks = [
        ("CRC32C", outcome.crc32c.map(u64::from), u64::from(whole.crc32c)),
        ("CRC64", outcome.crc64, whole.crc64),
        ("CRC32", outcome.crc32.map(u64::from), u64::from(whole.crc32)),
    ];
    let (name, given, local) = checks.into_iter().find_map(|(name, given, local)| Some((name, given?, local)))?;
    let differs = || format!("{name} of the object is {given}, of what was written {local}");
    Some(if given == local { Ok(()) } else { Err(differs()) })
}

/// Whether an ETag of a composed object has the form that is known to follow from the ETags of its parts (bos-api.md 5.6).
fn follows_a_rule(etag: &ETag) -> bool {
    etag.as_str().strip_prefix('-').is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The verdict on a composed object that is to have `size` bytes, by the strongest checksum that BOS gives; where that does not
/// fit, by the ETag over the parts, each of which was compared when it was sent. `whole`: CRCs and length of what was sent,
/// where both are known; `head_size`: the size by HEAD, once that was asked. `None`: HEAD must be asked.
///
/// The size is compared in any case: by a checksum over bytes that are as many, else by HEAD. An ETag that fits tells only
/// that the object is what was listed.
pub(super) fn judge_composed(
    whole: Option<(Crcs, u64)>,
    size: u64,
    outcome: &StoredOutcome,
    predicted: Option<&ETag>,
    head_size: Option<u64>,
) -> Option<Result<Proof, String>> {
    let sizes = [head_size, whole.map(|(_, len)| len)];
    if let Some(found) = sizes.into_iter().flatten().find(|found| *found != size) {
        return Some(Err(wrong_size(found, size)));
    }
    if let Some((whole, _)) = whole {
        match crc_verdict(&whole, outcome) {
            Some(Ok(())) => return Some(Ok(Proof::Proved)),
            // Perhaps HEAD says otherwise.
            Some(Err(_)) if head_size.is_none() => return None,
            Some(Err(_)) if predicted == Some(&outcome.etag) => return Some(Ok(Proof::Composed)),
            Some(Err(differs)) => return Some(Err(differs)),
            None => {}
        }
    }
    head_size?;
    if predicted != Some(&outcome.etag) {
        log::info!("BOS gives no checksum of the whole, and its ETag {} follows no known rule", outcome.etag);
    }
    Some(Ok(Proof::Composed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(etag: &str, crc32c: Option<u32>, crc64: Option<u64>, crc32: Option<u32>) -> StoredOutcome {
        StoredOutcome { etag: ETag::new(etag), crc32c, crc32, crc64, date: None }
    }

    const WHOLE: Crcs = Crcs { crc32c: 1, crc32: 2, crc64: 3 };
    const SIZE: u64 = 30_000_000_000_000;

    #[test]
    fn the_strongest_checksum_that_bos_gives_decides() {
        let judge =
            |outcome: StoredOutcome| judge_composed(Some((WHOLE, SIZE)), SIZE, &outcome, None, Some(SIZE)).unwrap();
        assert_eq!(judge(answer("e", Some(1), None, None)), Ok(Proof::Proved));
        assert!(judge(answer("e", Some(9), Some(3), Some(2))).is_err());
        assert_eq!(judge(answer("e", None, Some(3), Some(9))), Ok(Proof::Proved));
        assert!(judge(answer("e", None, Some(9), None)).is_err());
        assert_eq!(judge(answer("e", None, None, Some(2))), Ok(Proof::Proved));
        assert!(judge(answer("e", None, None, Some(9))).is_err());
        assert_eq!(judge(answer("e", None, None, None)), Ok(Proof::Composed));
    }

    #[test]
    fn a_checksum_of_the_whole_that_does_not_fit_counts_less_than_an_etag_over_all_parts_that_does() {
        let (etag, other) = (ETag::new("-x"), ETag::new("-y"));
        let outcome = answer("-x", Some(9), None, None);
        assert_eq!(
            judge_composed(Some((WHOLE, SIZE)), SIZE, &outcome, Some(&etag), Some(SIZE)),
            Some(Ok(Proof::Composed))
        );
        assert!(
            judge_composed(Some((WHOLE, SIZE)), SIZE, &outcome, Some(&other), Some(SIZE)).unwrap().is_err(),
            "other bytes"
        );
        assert!(
            judge_composed(Some((WHOLE, SIZE)), SIZE, &outcome, None, Some(SIZE)).unwrap().is_err(),
            "nothing else to go by"
        );
        assert_eq!(judge_composed(Some((WHOLE, SIZE)), SIZE, &outcome, Some(&etag), None), None, "size by HEAD first");
        assert!(follows_a_rule(&ETag::new(&format!("-{}", "0a".repeat(16)))));
        for opaque in ["0a".repeat(16), "-x".to_owned(), format!("{}-4", "0a".repeat(16))] {
            assert!(!follows_a_rule(&ETag::new(&opaque)), "{opaque}");
        }
    }

    #[test]
    fn an_answer_without_checksums_is_not_the_last_word() {
        assert_eq!(judge_composed(Some((WHOLE, SIZE)), SIZE, &answer("e", None, None, None), None, None), None);
    }

    #[test]
    fn an_etag_that_fits_does_not_stand_for_the_size() {
        let etag = ETag::new("-x");
        let outcome = answer("-x", None, None, None);
        let judge = |head_size| judge_composed(None, SIZE, &outcome, Some(&etag), head_size);
        assert_eq!(judge(None), None, "size by HEAD first");
        assert_eq!(judge(Some(SIZE)), Some(Ok(Proof::Composed)));
        assert!(judge(Some(24_300_000_000_000)).unwrap().is_err(), "cut");
    }

    #[test]
    fn a_checksum_over_fewer_bytes_proves_nothing() {
        let outcome = answer("-x", Some(1), None, None);
        assert!(judge_composed(Some((WHOLE, SIZE - 1)), SIZE, &outcome, None, None).unwrap().is_err());
        assert_eq!(judge_composed(Some((WHOLE, SIZE)), SIZE, &outcome, None, None), Some(Ok(Proof::Proved)));
    }

    #[test]
    fn copied_ranges_of_unknown_crc_are_proved_as_composed() {
        let etag = ETag::new("-x");
        let outcome = answer("-x", Some(5), None, None);
        assert_eq!(judge_composed(None, SIZE, &outcome, Some(&etag), Some(SIZE)), Some(Ok(Proof::Composed)));
        assert_eq!(judge_composed(None, SIZE, &outcome, Some(&ETag::new("-y")), Some(SIZE)), Some(Ok(Proof::Composed)));
    }
}
