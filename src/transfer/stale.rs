//! Answers of BOS that may be stale, and how long it is asked again before they count.
//!
//! BOS is eventually consistent: right after a change a HEAD may still show what was there before. So what it shows is first
//! set against what can have been there before, and asked for again where it may be that.

use std::time::Duration;

use super::complete::Attempt;
use super::retry::{Patience, persist};
use super::settle::{Found, found, head};
use crate::bos::BosClient;
use crate::bos::client::ObjectMeta;
use crate::object::{Condition, ETag, ObjectKey};
use crate::posix_meta::MARK;

/// How often BOS is asked again, and with which pauses; each is twice as long as the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looks {
    left: u32,
    pause: Duration,
}

impl Looks {
    /// Of who says that an object which was just made is not there, or is somebody else's: 15.5 s in all.
    pub fn before_doubt() -> Self {
        Self { left: 5, pause: Duration::from_millis(500) }
    }

    /// Of who would declare a conflict: 12.6 s in all.
    pub fn before_conflict() -> Self {
        Self { left: 6, pause: Duration::from_millis(200) }
    }

    /// Of who would give up bytes that are nowhere else: 25.4 s in all.
    pub fn before_dropping() -> Self {
        Self { left: 7, pause: Duration::from_millis(200) }
    }

    /// So many, for tests.
    #[cfg(test)]
    pub(super) fn quick(left: u32) -> Self {
        Self { left, pause: Duration::from_micros(1) }
    }

    /// The pause before the next look; `None`: the last answer counts.
    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let pause = self.pause;
        self.pause = self.pause.saturating_mul(2);
        Some(pause)
    }
}

/// How an object that is not the expected one stands to it in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was there before: the answer is stale, or somebody put it back.
    Earlier,
    /// It cannot have been there before: somebody else's doing.
    Later,
    /// Either.
    Unclear,
}

/// What is known of the time before an object was made.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// The journal of who made it, whose name all objects carry that he ever made there.
    pub journal_id: Option<String>,
    /// When the name was looked at, seconds since 1970: nothing that was seen then is newer.
    pub since: Option<i64>,
    /// ETag of the object that was there.
    pub base: Option<ETag>,
}

impl Before {
    /// What a condition tells of it.
    pub fn of(condition: &Condition) -> Self {
        let base = match condition {
            Condition::Matches(etag) => Some(etag.clone()),
            Condition::Any | Condition::Absent => None,
        };
        Self { base, ..Self::default() }
    }

    /// Where `head` stands, which is neither the object that was made nor what that asked for. No object at all may be one
    /// that cannot be seen yet, or one that was deleted.
    pub fn standing(&self, head: Option<&ObjectMeta>) -> Standing {
        let Some(head) = head else { return Standing::Unclear };
        let journal = head.headers.metadata.get(MARK).and_then(|mark| mark.split_once('.')).map(|(journal, _)| journal);
        let is_own = journal.is_some() && journal == self.journal_id.as_deref();
        if is_own || self.base.as_ref() == Some(&head.etag) {
            return Standing::Earlier;
        }
        match self.since.map(|since| head.last_modified.cmp(&since)) {
            Some(std::cmp::Ordering::Less) => Standing::Earlier,
            // BOS's times are whole seconds.
            Some(std::cmp::Ordering::Equal) | None => Standing::Unclear,
            Some(std::cmp::Ordering::Greater) => Standing::Later,
        }
    }
}

/// What speaks for or against an answer of HEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// BOS itself has refused the publication for what is there, or it does not matter what is there.
    None,
    /// It may be stale.
    Stale,
    /// It may be stale, and BOS knows the upload no more: the publication has been made, or its parts are lost and would all
    /// be sent again.
    Gone,
}

impl Doubt {
    /// Whether `head`, which for `attempt` is `found`, counts without another look.
    fn counts(self, found: &Found, head: Option<&ObjectMeta>, attempt: &Attempt<'_>, before: &Before) -> bool {
        match (self, found) {
            (Self::None, _) | (_, Found::Ours { .. }) => true,
            (_, Found::AsExpected) => self == Self::Stale || attempt.mark.is_none(),
            (_, Found::Other { .. }) => before.standing(head) == Standing::Later,
        }
    }
}

/// HEAD, again and again with growing pauses as long as what it shows may be stale: until it `counts`, or the looks are over.
///
/// # Errors
/// Those of the patience; BOS's refusal as the patience makes it one.
pub async fn head_until<P: Patience>(
    client: &BosClient,
    key: &ObjectKey,
    mut looks: Looks,
    counts: impl Fn(Option<&ObjectMeta>) -> bool,
    patience: &mut P,
) -> Result<Option<ObjectMeta>, P::Error> {
    loop {
        let asked = persist(patience, || head(client, key)).await?;
        let head = asked.map_err(|error| patience.refused(error))?;
        if counts(head.as_ref()) {
            return Ok(head);
        }
        let Some(pause) = looks.next() else { return Ok(head) };
        patience.looks_again(head.as_ref(), pause);
        tokio::time::sleep(pause).await;
    }
}

/// What somebody wants to make of a key.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Where.
    pub key: &'a ObjectKey,
    /// The publication.
    pub attempt: Attempt<'a>,
    /// What is known of the time before it.
    pub before: &'a Before,
    /// How often what may be stale is looked at again.
    pub looks: Looks,
}

/// What is at the key, seen from the publication, once that counts.
///
/// # Errors
/// Those of the patience; BOS's refusal as the patience makes it one.
pub async fn look_until<P: Patience>(
    client: &BosClient,
    asked: &Asked<'_>,
    doubt: Doubt,
    patience: &mut P,
) -> Result<Found, P::Error> {
    let Asked { key, attempt, before, looks } = asked;
    let seen = |head: Option<&ObjectMeta>| found(head, attempt.mark, attempt.size, attempt.condition);
    let counts = |head: Option<&ObjectMeta>| doubt.counts(&seen(head), head, attempt, before);
    let head = head_until(client, key, *looks, counts, patience).await?;
    Ok(seen(head.as_ref()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bos::client::ObjectHeaders;

    pub(crate) fn meta(etag: &str, size: u64, last_modified: i64, mark: Option<&str>) -> ObjectMeta {
        let mut headers = ObjectHeaders::default();
        headers.metadata.extend(mark.map(|mark| (MARK.to_owned(), mark.to_owned())));
        let etag = ETag::new(etag);
        ObjectMeta { size, etag, last_modified, crc32c: None, crc32: None, crc64: None, appendable: false, headers }
    }

    fn head(etag: &str, last_modified: i64, mark: Option<&str>) -> ObjectMeta {
        meta(etag, 10, last_modified, mark)
    }

    fn before(base: Option<&str>) -> Before {
        Before { journal_id: Some("j".into()), since: Some(100), base: base.map(ETag::new) }
    }

    #[test]
    fn pauses_between_looks_grow_and_end() {
        let all = |mut looks: Looks| std::iter::from_fn(move || looks.next()).collect::<Vec<_>>();
        for (looks, ms) in
            [(Looks::before_doubt(), 15_500), (Looks::before_conflict(), 12_600), (Looks::before_dropping(), 25_400)]
        {
            let pauses = all(looks);
            assert!(pauses.windows(2).all(|pair| pair[1] == pair[0] * 2), "{pauses:?}");
            assert_eq!(pauses.iter().sum::<Duration>(), Duration::from_millis(ms));
        }
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
    fn a_condition_tells_only_of_the_object_that_it_names() {
        let before = Before::of(&Condition::Matches(ETag::new("base")));
        assert_eq!(before.standing(Some(&head("base", 500, None))), Standing::Earlier);
        assert_eq!(before.standing(Some(&head("x", 500, Some("j.1")))), Standing::Unclear);
        for condition in [Condition::Any, Condition::Absent] {
            assert_eq!(Before::of(&condition).standing(Some(&head("base", 1, None))), Standing::Unclear);
        }
    }

    #[test]
    fn a_conflict_is_declared_at_once_only_where_the_answer_cannot_be_stale() {
        let (matches, absent) = (Condition::Matches(ETag::new("base")), Condition::Absent);
        let counts = |mark, condition, base, doubt: Doubt, head: Option<ObjectMeta>| {
            let attempt = Attempt { mark, size: 10, condition };
            let head = head.as_ref();
            doubt.counts(&found(head, mark, 10, condition), head, &attempt, &before(base))
        };
        let sent = |head, doubt| counts(Some("j.2"), &matches, Some("base"), doubt, head);
        assert!(sent(Some(head("x", 500, Some("j.2"))), Doubt::Stale), "ours");
        assert!(sent(Some(head("x", 500, None)), Doubt::Stale), "somebody else's");
        assert!(!sent(Some(head("x", 99, None)), Doubt::Stale), "an older one still");
        assert!(sent(Some(head("x", 99, None)), Doubt::None), "BOS has refused it for that");
        assert!(!sent(Some(head("x", 500, Some("j.1"))), Doubt::Stale), "our former publication still");
        assert!(!sent(None, Doubt::Stale), "the base can be gone, or not be seen");
        assert!(sent(Some(head("base", 50, None)), Doubt::Stale), "it can be sent");
        assert!(!sent(Some(head("base", 50, None)), Doubt::Gone), "but not for good where the upload is gone");
        assert!(counts(None, &absent, None, Doubt::Gone, None), "nothing was sent");
        let put = |head| counts(Some("j.2"), &absent, None, Doubt::Stale, head);
        assert!(put(None) && !put(Some(head("x", 99, None))));
    }
}
