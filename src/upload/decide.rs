//! What the object at the key means for a publication whose outcome is not known: pure.

use crate::bos::client::ObjectMeta;
use crate::object::{Condition, ETag};
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bos::client::ObjectHeaders;

    fn head(etag: &str, size: u64, mark: Option<&str>) -> ObjectMeta {
        let mut headers = ObjectHeaders::default();
        if let Some(mark) = mark {
            headers.metadata.insert(MARK.into(), mark.into());
        }
        let etag = ETag::new(etag);
        ObjectMeta { size, etag, last_modified: 0, crc32c: None, crc32: None, crc64: None, appendable: false, headers }
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
}
