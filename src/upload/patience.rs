//! Answers of BOS that may be stale, and how long it is asked again before they count: pure.
//!
//! BOS is eventually consistent: right after a change a HEAD may still show what was there before. So what it shows is first
//! set against what can have been there before, and asked for again where it may be that.

use std::time::Duration;

use super::decide::{Found, found};
use super::state::Stage;
use crate::bos::client::ObjectMeta;
use crate::object::{Condition, ETag};
use crate::posix_meta::MARK;

/// First pause; doubles with each further ask.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// Asks beyond the first before a file is called a conflict: 12.6 s in all.
const BEFORE_CONFLICT: u32 = 6;
/// Asks beyond the first before a spool goes without a proof: 25.4 s in all.
const BEFORE_DROPPING: u32 = 7;

/// How often BOS is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    asks_left: u32,
    pause: Duration,
}

impl Patience {
    /// Of who would declare a conflict.
    pub(super) fn before_conflict() -> Self {
        Self { asks_left: BEFORE_CONFLICT, pause: PAUSE_FIRST }
    }

    /// Of who would give up bytes that are nowhere else.
    pub(super) fn before_dropping() -> Self {
        Self { asks_left: BEFORE_DROPPING, pause: PAUSE_FIRST }
    }

    /// The pause before the next ask; `None`: the last answer counts.
    pub(super) fn next(&mut self) -> Option<Duration> {
        self.asks_left = self.asks_left.checked_sub(1)?;
        let pause = self.pause;
        self.pause = self.pause.saturating_mul(2);
        Some(pause)
    }
}

/// How an object that is not the expected one stands to it in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It was there before: the answer is stale, or somebody put it back.
    Earlier,
    /// It cannot have been there before: somebody else's doing.
    Later,
    /// Either.
    Unclear,
}

/// What a file knows of the time before its publication.
#[derive(Clone, Debug)]
pub(super) struct Before {
    /// Its journal, whose name every object carries that it ever published.
    pub(super) journal_id: String,
    /// When that was begun, seconds since 1970. The name was looked at before, so that nothing that was seen then is newer.
    pub(super) since: i64,
    /// The object under its name that it began with.
    pub(super) base: Option<ETag>,
}

impl Before {
    /// Where `head` stands, which is neither the publication nor what that asks for. No object at all may be one that cannot
    /// be seen yet, or one that was deleted.
    pub(super) fn standing(&self, head: Option<&ObjectMeta>) -> Standing {
        let Some(head) = head else { return Standing::Unclear };
        let journal = head.headers.metadata.get(MARK).and_then(|mark| mark.split_once('.')).map(|(journal, _)| journal);
        if journal == Some(self.journal_id.as_str()) || self.base.as_ref() == Some(&head.etag) {
            return Standing::Earlier;
        }
        match head.last_modified.cmp(&self.since) {
            std::cmp::Ordering::Less => Standing::Earlier,
            // BOS's times are whole seconds.
            std::cmp::Ordering::Equal => Standing::Unclear,
            std::cmp::Ordering::Greater => Standing::Later,
        }
    }
}

/// What a file asks of its key.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    mark: Option<String>,
    size: u64,
    condition: Condition,
    before: Before,
}

impl Expected {
    /// By a publication in `stage`, which is or would be sent under `condition`.
    pub(super) fn of(stage: &Stage, condition: &Condition, before: Before) -> Self {
        let (mark, sent_under) = match stage {
            Stage::Putting { mark, condition, .. } | Stage::Completing { mark, condition, .. } => {
                (Some(mark.clone()), condition)
            }
            _ => (None, condition),
        };
        let size = stage.frozen().map_or(0, |frozen| frozen.size);
        Self { mark, size, condition: sent_under.clone(), before }
    }

    /// What `head` means.
    pub(super) fn found(&self, head: Option<&ObjectMeta>) -> Found {
        found(head, self.mark.as_deref(), self.size, &self.condition)
    }

    /// Whether `head` counts without asking again. `gone`: BOS knows the upload no more, so that the publication has been made,
    /// or its parts are lost and would all be sent again.
    pub(super) fn counts(&self, head: Option<&ObjectMeta>, gone: bool) -> bool {
        match self.found(head) {
            Found::Ours { .. } => true,
            Found::AsExpected => !gone || self.mark.is_none(),
            Found::Other { .. } => self.before.standing(head) == Standing::Later,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bos::client::ObjectHeaders;
    use crate::object::{Checksum, FileAttrs, Timestamp};
    use crate::upload::state::Frozen;

    fn head(etag: &str, last_modified: i64, mark: Option<&str>) -> ObjectMeta {
        let mut headers = ObjectHeaders::default();
        headers.metadata.extend(mark.map(|mark| (MARK.to_owned(), mark.to_owned())));
        ObjectMeta {
            size: 10,
            etag: ETag::new(etag),
            last_modified,
            crc32c: None,
            crc32: None,
            crc64: None,
            headers,
            appendable: false,
        }
    }

    fn before(base: Option<&str>) -> Before {
        Before { journal_id: "j".into(), since: 100, base: base.map(ETag::new) }
    }

    #[test]
    fn patience_grows_and_ends() {
        let all = |mut patience: Patience| std::iter::from_fn(move || patience.next()).collect::<Vec<_>>();
        let pauses = all(Patience::before_conflict());
        assert!(pauses.windows(2).all(|pair| pair[1] == pair[0] * 2), "{pauses:?}");
        assert_eq!(pauses.iter().sum::<Duration>(), Duration::from_millis(12_600));
        assert_eq!(all(Patience::before_dropping()).iter().sum::<Duration>(), Duration::from_millis(25_400));
    }

    #[test]
    fn what_was_there_before_is_told_from_what_came_later() {
        let before = before(Some("base"));
        assert_eq!(before.standing(None), Standing::Unclear, "not to be seen yet, or deleted");
        assert_eq!(before.standing(Some(&head("base", 500, None))), Standing::Earlier);
        assert_eq!(before.standing(Some(&head("x", 99, None))), Standing::Earlier);
        assert_eq!(before.standing(Some(&head("x", 100, None))), Standing::Unclear);
        assert_eq!(before.standing(Some(&head("x", 101, None))), Standing::Later);
        assert_eq!(before.standing(Some(&head("x", 101, Some("other.1")))), Standing::Later);
        assert_eq!(
            before.standing(Some(&head("x", 101, Some("j.1")))),
            Standing::Earlier,
            "our own former publication"
        );
    }

    #[test]
    fn a_conflict_is_declared_at_once_only_where_the_answer_cannot_be_stale() {
        let frozen = Frozen {
            publication: 2,
            size: 10,
            attrs: FileAttrs { mode: 0o100_644, uid: 0, gid: 0, mtime: Timestamp::default() },
            headers: ObjectHeaders::default(),
            layer: 1,
            close: 2,
            durable: false,
        };
        let condition = Condition::Matches(ETag::new("base"));
        let sent = Stage::Completing { frozen: frozen.clone(), mark: "j.2".into(), condition: condition.clone() };
        let expected = Expected::of(&sent, &Condition::Any, before(Some("base")));
        assert!(expected.counts(Some(&head("x", 500, Some("j.2"))), false), "ours");
        assert!(expected.counts(Some(&head("x", 500, None)), false), "somebody else's");
        assert!(!expected.counts(Some(&head("x", 99, None)), false), "an older one still");
        assert!(!expected.counts(Some(&head("x", 500, Some("j.1"))), false), "our former publication still");
        assert!(!expected.counts(None, false), "the base can be gone, or not be seen");
        assert!(expected.counts(Some(&head("base", 50, None)), false), "it can be sent");
        assert!(!expected.counts(Some(&head("base", 50, None)), true), "but not for good where the upload is gone");
        let closed = Expected::of(&Stage::Closed(frozen.clone()), &Condition::Absent, before(None));
        assert!(closed.counts(None, true), "nothing was sent");
        let put = Stage::Putting { frozen, mark: "j.2".into(), condition: Condition::Absent, sum: Checksum::of(b"x") };
        let put = Expected::of(&put, &Condition::Any, before(None));
        assert!(put.counts(None, false) && !put.counts(Some(&head("x", 99, None)), false));
    }
}
