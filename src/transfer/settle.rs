//! What BOS holds, where an answer left that open: the parts of an upload, the object at its key.

use std::collections::BTreeMap;

use super::complete::Attempt;
use super::retry::{Patience, persist};
use super::stale::{Asked, Doubt, look_until};
use super::{Held, Upload};
use crate::bos::client::{ListedPart, ObjectMeta};
use crate::bos::{BosClient, BosError, BosErrorKind};
use crate::object::{Checksum, Condition, ETag, ObjectKey, PartNumber};
use crate::posix_meta::MARK;

/// What HEAD found, seen from one publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// This publication: it carries its mark and has its size.
    Ours {
        /// ETag of the object.
        etag: ETag,
    },
    /// What the publication's condition asks for: it can be sent (again).
    AsExpected,
    /// Somebody else's doing.
    Other {
        /// For people.
        what: String,
    },
}

/// Compares what HEAD found (`None`: no object) with a publication of `size` bytes under `mark`, sent or to be sent under
/// `condition`. Without a mark nothing was sent yet.
pub fn found(head: Option<&ObjectMeta>, mark: Option<&str>, size: u64, condition: &Condition) -> Found {
    if let (Some(head), Some(mark)) = (head, mark)
        && head.size == size
        && head.headers.metadata.get(MARK).is_some_and(|m| m == mark)
    {
        return Found::Ours { etag: head.etag.clone() };
    }
    match (condition, head) {
        (Condition::Any, _) | (Condition::Absent, None) => Found::AsExpected,
        (Condition::Matches(etag), Some(head)) if head.etag == *etag => Found::AsExpected,
        (Condition::Matches(_), None) => Found::Other { what: "no object there any more".into() },
        (_, Some(head)) => {
            Found::Other { what: format!("an object of {} bytes with ETag {} there", head.size, head.etag) }
        }
    }
}

/// What is known of one part number before BOS is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// What BOS said that it holds.
    pub held: Option<&'a Held>,
    /// A body that was sent and not answered, if its bytes are still those that are wanted.
    pub unanswered: Option<&'a Checksum>,
}

/// How the parts that BOS lists differ from those known. A number may be in `lost` and in `answered` or `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// As known.
    pub there: Vec<PartNumber>,
    /// Not there, or not as BOS said: to be sent again.
    pub lost: Vec<PartNumber>,
    /// An unanswered body that arrived: need not be sent again.
    pub answered: Vec<(PartNumber, Held)>,
    /// Bytes that nobody here can name yet: kept if the part turns out to have them ([`Held::equals`]).
    pub unknown: Vec<(PartNumber, Held)>,
}

/// Compares the parts known with all that ListParts gave. Whatever was contested is settled by that.
pub fn compare<'a>(known: impl IntoIterator<Item = (PartNumber, Known<'a>)>, listed: &[ListedPart]) -> Compared {
    let mut compared = Compared::default();
    let known: BTreeMap<PartNumber, Known<'a>> = known.into_iter().collect();
    let by_number: BTreeMap<PartNumber, &ListedPart> = listed.iter().map(|part| (part.number, part)).collect();
    for (number, part) in &known {
        let Some(held) = part.held else { continue };
        let same = |there: &&ListedPart| held.len == there.size && held.etag == there.etag;
        match by_number.get(number).is_some_and(same) {
            true => compared.there.push(*number),
            false => compared.lost.push(*number),
        }
    }
    for (number, there) in by_number {
        if compared.there.binary_search(&number).is_ok() {
            continue;
        }
        let found = Held::from(there);
        match known.get(&number).and_then(|part| part.unanswered) {
            Some(sum) if found.equals(sum) => compared.answered.push((number, Held { sum: Some(*sum), ..found })),
            _ => compared.unknown.push((number, found)),
        }
    }
    compared
}

/// HEAD: what is at `key`, seen from `attempt`.
///
/// # Errors
/// BOS cannot be asked.
pub async fn look(client: &BosClient, key: &ObjectKey, attempt: &Attempt<'_>) -> Result<Found, BosError> {
    Ok(found(head(client, key).await?.as_ref(), attempt.mark, attempt.size, attempt.condition))
}

/// HEAD; `None`: no object there.
///
/// # Errors
/// BOS cannot be asked.
pub async fn head(client: &BosClient, key: &ObjectKey) -> Result<Option<ObjectMeta>, BosError> {
    match client.head_object(key).await {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind == BosErrorKind::NoSuchKey => Ok(None),
        Err(error) => Err(error),
    }
}

/// ListParts, all of them; `None`: BOS does not know the upload.
///
/// # Errors
/// BOS cannot be asked.
pub async fn parts(upload: &Upload<'_>) -> Result<Option<Vec<ListedPart>>, BosError> {
    match upload.client.list_parts(upload.key, upload.id).await {
        Ok(listed) => Ok(Some(listed)),
        Err(error) if error.kind == BosErrorKind::NoSuchUpload => Ok(None),
        Err(error) => Err(error),
    }
}

/// What became of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is open, and holds these parts.
    Open(Vec<ListedPart>),
    /// BOS does not know it. What is at the key: a publication of ours that was made of it, or else everything has to be sent
    /// under a new one. `None`: nothing was ever to be made of it.
    Gone(Option<Found>),
}

/// Asks what became of `upload`. `asked`: the publication, where that may have been sent already; the caller has looked at
/// the key before (see [`look_until`]).
///
/// BOS forgets an upload that was completed, so an unknown one means nothing by itself: the key is looked at again behind the
/// list, since a Complete may act in between, or HEAD not show yet what it made.
///
/// # Errors
/// Those of the patience; BOS's refusal as the patience makes it one.
pub async fn settle<P: Patience>(
    upload: &Upload<'_>,
    asked: Option<&Asked<'_>>,
    patience: &mut P,
) -> Result<Settled, P::Error> {
    let listed = persist(patience, || parts(upload)).await?;
    if let Some(listed) = listed.map_err(|error| patience.refused(error))? {
        return Ok(Settled::Open(listed));
    }
    let Some(asked) = asked else { return Ok(Settled::Gone(None)) };
    Ok(Settled::Gone(Some(look_until(upload.client, asked, Doubt::Gone, patience).await?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::stale::tests::meta;

    fn head(etag: &str, size: u64, mark: Option<&str>) -> ObjectMeta {
        meta(etag, size, 0, mark)
    }

    fn is_other(found: Found) -> bool {
        matches!(found, Found::Other { .. })
    }

    #[test]
    fn an_object_with_our_mark_and_size_is_this_publication() {
        let ours = head("e", 10, Some("j.1"));
        for condition in [Condition::Absent, Condition::Any, Condition::Matches(ETag::new("old"))] {
            assert_eq!(found(Some(&ours), Some("j.1"), 10, &condition), Found::Ours { etag: ETag::new("e") });
        }
    }

    #[test]
    fn the_mark_of_an_earlier_publication_or_another_size_proves_nothing() {
        let ours = head("e", 10, Some("j.1"));
        assert!(is_other(found(Some(&ours), Some("j.2"), 10, &Condition::Absent)));
        assert!(is_other(found(Some(&ours), Some("j.1"), 11, &Condition::Absent)));
        assert!(is_other(found(Some(&ours), None, 10, &Condition::Absent)));
    }

    #[test]
    fn what_the_condition_asks_for_lets_the_publication_go_on() {
        let base = head("base", 3, None);
        assert_eq!(found(None, Some("j.1"), 10, &Condition::Absent), Found::AsExpected);
        assert_eq!(found(Some(&base), Some("j.1"), 10, &Condition::Matches(ETag::new("base"))), Found::AsExpected);
        assert_eq!(found(Some(&base), Some("j.1"), 10, &Condition::Any), Found::AsExpected);
    }

    #[test]
    fn anything_else_is_somebody_elses() {
        let other = head("other", 3, None);
        assert!(is_other(found(Some(&other), Some("j.1"), 10, &Condition::Absent)));
        assert!(is_other(found(Some(&other), Some("j.1"), 10, &Condition::Matches(ETag::new("base")))));
        assert!(is_other(found(None, Some("j.1"), 10, &Condition::Matches(ETag::new("base")))));
    }

    #[test]
    fn parts_are_there_lost_answered_or_unknown() {
        let number = |n| PartNumber::new(n).unwrap();
        let (sum, older) = (Checksum::of(b"01234567"), Checksum::of(b"76543210"));
        let held = |sum: &Checksum| Held { len: sum.len, etag: ETag::new(&sum.md5.to_hex()), sum: Some(*sum) };
        let list = |n, sum: &Checksum| ListedPart { number: number(n), size: sum.len, etag: held(sum).etag };
        let (new, old) = (held(&sum), held(&older));
        let known = [
            (number(1), Known { held: Some(&new), unanswered: None }),
            (number(2), Known { held: Some(&new), unanswered: None }),
            // A body of this number arrived behind the one that was answered.
            (number(3), Known { held: Some(&new), unanswered: None }),
            (number(4), Known { held: None, unanswered: Some(&sum) }),
            (number(5), Known { held: None, unanswered: Some(&sum) }),
            (number(6), Known { held: None, unanswered: Some(&sum) }),
            (number(7), Known { held: Some(&old), unanswered: Some(&sum) }),
        ];
        let listed = [list(1, &sum), list(3, &older), list(4, &sum), list(6, &older), list(7, &sum), list(9, &older)];
        let compared = compare(known, &listed);
        assert_eq!(compared.there, [number(1)]);
        assert_eq!(compared.lost, [number(2), number(3), number(7)]);
        assert_eq!(compared.answered, [(number(4), new.clone()), (number(7), new)]);
        let unknown = Held { sum: None, ..old };
        assert_eq!(compared.unknown, [3, 6, 9].map(|n| (number(n), unknown.clone())));
    }
}
