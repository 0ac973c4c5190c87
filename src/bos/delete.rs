//! Deletions: the only place that can send one, and none leaves without a fresh look.
//!
//! BOS knows no condition for DeleteObject and DeleteMultipleObjects (BOS docs): a delete takes whatever is there when it
//! arrives. So BOS is asked what is there right before each of them, also before every repeat, and the caller judges what
//! it showed:
//!
//! ```text
//!   look (HEAD, or a page of a listing) -> is it what the caller knows? -no--> left, and given back to the caller
//!      ^                                         | yes
//!      |                                         v
//!      +--- no answer, 5xx, too late ----- one delete, at most LOOK_FRESH behind the look
//! ```
//!
//! A delete on its way is worth nothing after [`IN_FLIGHT_S`]: it is signed with BOS's own time of the look, and for so long.
//! One that a dead line kept back is refused when it arrives (`RequestExpired`). What is left is the time between a look and
//! its delete: normally one round trip, never more than these two bounds and the time that the look itself took.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use http::{Method, header};

use super::body::Body;
use super::client::{BosClient, ListPage, ListedObject, ObjectMeta, PAGE_KEYS_MAX, Result, query};
use super::error::{BosError, BosErrorKind};
use super::failure::Failure;
use super::retry::RetryPolicy;
use super::send::{Call, SignedAt, Tries};
use super::wire::{self, ANSWER_BYTES_MAX, WireDeleted};
use crate::object::{ETag, ObjectKey};

/// A delete leaves at most this long after the answer to its look came.
const LOOK_FRESH: Duration = Duration::from_secs(2);
/// For so many seconds, by BOS's clock, a delete is valid; those that its look took come on top.
const IN_FLIGHT_S: i64 = 30;
/// Least time that a look is given before the whole call ends.
const LOOK_TIME_MIN: Duration = Duration::from_secs(1);

/// What is known of an object that is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Which content.
    pub etag: ETag,
    /// Between which times BOS stored it, both included, seconds since 1970; `None`: not known.
    pub stored: Option<(i64, i64)>,
}

impl Known {
    /// An object with this ETag and `Last-Modified` (0: not known).
    pub fn at(etag: ETag, last_modified: i64) -> Self {
        Self { etag, stored: (last_modified != 0).then_some((last_modified, last_modified)) }
    }

    /// Whether what a look showed is that object. Where either time is not known the ETag decides.
    pub fn is(&self, etag: &ETag, last_modified: i64) -> bool {
        let fits = |(from, to): (i64, i64)| last_modified == 0 || (from..=to).contains(&last_modified);
        self.etag == *etag && self.stored.is_none_or(fits)
    }

    /// [`Known::is`] of what HEAD showed.
    pub fn is_head(&self, head: &ObjectMeta) -> bool {
        self.is(&head.etag, head.last_modified)
    }
}

/// When BOS was asked.
#[derive(Debug)]
struct Look {
    answered: Instant,
    /// By BOS's clock, seconds since 1970.
    at_s: i64,
    took: Duration,
}

impl Look {
    fn is_fresh(&self) -> bool {
        self.answered.elapsed() <= LOOK_FRESH
    }

    /// How a delete that relies on this look is signed.
    fn signed(&self) -> SignedAt {
        let took_s = i64::try_from(self.took.as_secs()).unwrap_or(i64::MAX).saturating_add(1);
        SignedAt { at_s: self.at_s, valid_for_s: IN_FLIGHT_S.saturating_add(took_s) }
    }
}

/// An object that BOS was just asked for. Given to [`BosClient::remove_object`] at once it spares the look there.
#[derive(Debug)]
pub struct SeenObject {
    /// What HEAD told.
    pub meta: ObjectMeta,
    key: ObjectKey,
    look: Look,
}

/// Where a page of a listing begins and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageAt {
    /// Prefix of all its keys.
    pub prefix: String,
    /// All its keys are behind this one.
    pub marker: Option<String>,
    /// Keys at most.
    pub keys_max: u32,
}

/// A page of a listing that BOS was just asked for. Given to [`BosClient::remove_page`] at once it spares the look there.
#[derive(Debug)]
pub struct SeenPage {
    /// What is listed.
    pub page: ListPage,
    /// Which page it is.
    pub at: PageAt,
    look: Look,
}

/// What became of an object that was to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone, by this call or before.
    Gone,
    /// Something else is there; it is left alone.
    Other(Box<ObjectMeta>),
}

/// What became of the objects of one page.
#[derive(Clone, Debug, Default)]
pub struct PageRemoved {
    /// The page as it was last seen: before the last delete, if any was sent.
    pub page: ListPage,
    /// Keys that BOS refused to delete, with code and message.
    pub failures: Vec<(String, String, String)>,
}

impl BosClient {
    /// Asks what is at `key`. `None`: nothing.
    pub async fn look(&self, key: &ObjectKey) -> Result<Option<SeenObject>> {
        self.look_by(&self.sender.config.retry, key).await
    }

    async fn look_by(&self, policy: &RetryPolicy, key: &ObjectKey) -> Result<Option<SeenObject>> {
        let asked = Instant::now();
        match self.head_dated(policy, key).await {
            Ok((meta, date)) => {
                let look = self.look_of(asked, date);
                Ok(Some(SeenObject { meta, key: key.clone(), look }))
            }
            Err(error) if error.kind == BosErrorKind::NoSuchKey => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for a page of a listing.
    pub async fn look_page(&self, at: &PageAt) -> Result<SeenPage> {
        self.look_page_by(&self.sender.config.retry, at).await
    }

    async fn look_page_by(&self, policy: &RetryPolicy, at: &PageAt) -> Result<SeenPage> {
        let asked = Instant::now();
        let (page, date) = self.list_dated(policy, &at.prefix, None, at.marker.as_deref(), at.keys_max).await?;
        Ok(SeenPage { page, at: at.clone(), look: self.look_of(asked, date) })
    }

    fn look_of(&self, asked: Instant, date: Option<i64>) -> Look {
        let (answered, took) = (Instant::now(), asked.elapsed());
        Look { answered, at_s: date.unwrap_or_else(|| self.sender.bos_now_s()), took }
    }

    /// Deletes the object at `key` if `is_known` says so of what BOS shows there, asked right before, and again before every
    /// repeat. `seen`: what was shown a moment ago.
    ///
    /// Ends within the time of a call that someone waits for. An error means that the object is there, or that it is not
    /// known whether it is; the caller may simply call again.
    pub async fn remove_object(
        &self,
        key: &ObjectKey,
        seen: Option<SeenObject>,
        is_known: impl Fn(&ObjectMeta) -> bool + Send + Sync,
    ) -> Result<Removed> {
        let call = |signed| Call { signed, ..self.call("DeleteObject", Method::DELETE, Some(key)) };
        let template = call(None);
        let mut tries = Tries::new(&self.sender, &template);
        let mut seen = seen.filter(|seen| seen.key == *key && seen.look.is_fresh());
        loop {
            let now = match seen.take() {
                Some(seen) => Some(seen),
                None => self.look_by(&self.look_policy(&tries), key).await?,
            };
            let Some(SeenObject { meta, look, .. }) = now else { return Ok(Removed::Gone) };
            if !is_known(&meta) {
                return Ok(Removed::Other(Box::new(meta)));
            }
            self.still_in_time(&mut tries, &look)?;
            if !look.is_fresh() {
                // This process stood still behind the look.
                continue;
            }
            let sent = self.sender.gather_once(&call(Some(look.signed())), ANSWER_BYTES_MAX, tries.remaining()).await;
            match sent {
                Ok(_) => return Ok(Removed::Gone),
                Err(failure) if failure.kind == BosErrorKind::NoSuchKey => return Ok(Removed::Gone),
                Err(failure) => tries.settle(failure).await?,
            }
        }
    }

    /// Deletes those objects of one page of a listing of which `is_known` says so, by one batch; asked right before, and again
    /// before every repeat. `seen`: the page as it was shown a moment ago.
    ///
    /// Ends within the time of a call that someone waits for; as [`BosClient::remove_object`].
    pub async fn remove_page(
        &self,
        at: &PageAt,
        seen: Option<SeenPage>,
        is_known: impl Fn(&ListedObject) -> bool + Send + Sync,
    ) -> Result<PageRemoved> {
        let call = |signed, body: Option<Body>| Call {
            signed,
            body,
            query: query([("delete", "")]),
            headers: vec![(header::CONTENT_TYPE, "application/json".to_owned())],
            ..self.call("DeleteMultipleObjects", Method::POST, None)
        };
        let template = call(None, None);
        let mut tries = Tries::new(&self.sender, &template);
        let mut seen = seen.filter(|seen| seen.at == *at && seen.look.is_fresh());
        loop {
            let SeenPage { page, look, .. } = match seen.take() {
                Some(seen) => seen,
                None => self.look_page_by(&self.look_policy(&tries), at).await?,
            };
            let doomed: Vec<&str> =
                page.objects.iter().filter(|object| is_known(object)).map(|object| object.key.as_str()).collect();
            if doomed.is_empty() {
                return Ok(PageRemoved { page, failures: Vec::new() });
            }
            if doomed.len() > PAGE_KEYS_MAX as usize {
                let message = format!(
                    "the listing has {} objects on a page where {} were asked for; none was deleted",
                    page.objects.len(),
                    at.keys_max
                );
                return Err(BosError::new(BosErrorKind::Refused, message));
            }
            self.still_in_time(&mut tries, &look)?;
            if !look.is_fresh() {
                continue;
            }
            let body = Body::Bytes(wire::delete_body(doomed.iter().copied()).into());
            let call = call(Some(look.signed()), Some(body));
            let sent = self.sender.gather_once(&call, ANSWER_BYTES_MAX, tries.remaining()).await;
            let answered = sent.and_then(|answer| {
                // No body at all: every key is gone.
                let deleted: Option<WireDeleted> =
                    wire::parse(&answer.body).map_err(|odd| Failure::odd(&answer.headers, odd))?;
                Ok(deleted.unwrap_or_default().into_failures())
            });
            match answered {
                Ok(failures) => {
                    let asked: HashSet<&str> = doomed.into_iter().collect();
                    let failures = failures.into_iter().filter(|(key, ..)| asked.contains(key.as_str())).collect();
                    return Ok(PageRemoved { page, failures });
                }
                Err(failure) => tries.settle(failure).await?,
            }
        }
    }

    /// Counts the time of a look, and ends the call when none is left for a delete.
    fn still_in_time(&self, tries: &mut Tries<'_>, look: &Look) -> Result<()> {
        tries.passed(look.took);
        if tries.remaining().is_none_or(|left| !left.is_zero()) {
            return Ok(());
        }
        let message = format!("BOS took {:.0?} to tell what is there; nothing was deleted: try again", look.took);
        Err(BosError::new(BosErrorKind::Network, message))
    }

    /// A look within the time that is left to the whole call.
    fn look_policy(&self, tries: &Tries<'_>) -> RetryPolicy {
        RetryPolicy {
            deadline: tries.remaining().map(|left| left.max(LOOK_TIME_MIN)),
            ..self.sender.config.retry.clone()
        }
    }
}
