//! How the objects of a move go: only what is known, as a look right before shows it; see
//! [`remove_object`](crate::bos::BosClient::remove_object).

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use parking_lot::Mutex;

use super::copy::CopyTrouble;
use super::directory::DELETE_KEYS_MAX;
use super::running::{Move, Stopped};
use crate::bos::BosError;
use crate::bos::client::{Known, ListedObject, ObjectMeta, PageAt, Removed, SeenObject, SeenPage};
use crate::object::{KEY_BYTES_MAX, ObjectKey};

/// Codes of single keys that pass by themselves.
const PASSING: [&str; 4] = ["InternalError", "ServiceUnavailable", "SlowDown", "RequestRateLimitExceeded"];
/// Batches in which BOS may answer so for one key before that is final.
const TRIES_MAX: u32 = 5;
/// Before such a key is tried again.
const PASSING_PAUSE: Duration = Duration::from_secs(1);
/// Entries of the smallest page that is asked for.
const PAGE_KEYS_MIN: usize = 16;

/// What was not deleted of several objects.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Something else is there: left alone.
    pub(super) others: Vec<ObjectKey>,
    /// BOS refuses, and why.
    pub(super) refused: Vec<(ObjectKey, String)>,
}

impl Kept {
    pub(super) fn has(&self, key: &ObjectKey) -> bool {
        self.others.contains(key) || self.refused.iter().any(|(refused, _)| refused == key)
    }
}

impl Move {
    /// Asks what is at `key`, for a deletion that follows at once.
    pub(super) async fn look(&self, key: &ObjectKey) -> Result<Option<SeenObject>, CopyTrouble> {
        let seen = self.patiently(key, || self.shared.client.look(key)).await?;
        seen.map_err(|e| self.refused("looking at", key, &e).into())
    }

    /// Asks for a page of a listing, for deletions that follow at once.
    pub(super) async fn look_page(&self, at: &PageAt) -> Result<SeenPage, CopyTrouble> {
        let seen = self.patiently_for(&at.prefix, || self.shared.client.look_page(at)).await?;
        seen.map_err(|e| self.not_listed(&at.prefix, &e).into())
    }

    /// Deletes one object if `is_known` says so of what is there, however long it takes until BOS can be asked.
    pub(super) async fn delete_one(
        &self,
        key: &ObjectKey,
        seen: Option<SeenObject>,
        is_known: impl Fn(&ObjectMeta) -> bool + Send + Sync,
    ) -> Result<Result<Removed, BosError>, Stopped> {
        let (seen, is_known) = (Mutex::new(seen), &is_known);
        self.patiently(key, || {
            let seen = seen.lock().take();
            self.shared.client.remove_object(key, seen, is_known)
        })
        .await
    }

    /// Deletes those of `wanted` that still are what is known of them, a run of keys at a time: one page of a listing, one
    /// batch. `seen`: a page with all of them, as it was shown a moment ago.
    pub(super) async fn delete_known(
        &self,
        wanted: BTreeMap<ObjectKey, Known>,
        seen: Option<SeenPage>,
    ) -> Result<Kept, CopyTrouble> {
        let mut run = Run { left: wanted, sent: Mutex::default(), passing: BTreeMap::new(), kept: Kept::default() };
        let given = seen.as_ref().map(|seen| seen.at.clone());
        let seen = Mutex::new(seen);
        while let Some(at) = given.clone().filter(|_| seen.lock().is_some()).or_else(|| page_for(&run.left)) {
            let judge = |object: &ListedObject| run.judge(object);
            let removed = self.patiently_for(&at.prefix, || {
                let seen = seen.lock().take();
                self.shared.client.remove_page(&at, seen, judge)
            });
            let removed = match removed.await? {
                Ok(removed) => removed,
                Err(e) => return Err(self.not_removed(&run, &e)),
            };
            let covered = covered(&run.left, &at, &removed.page.objects, removed.page.next_marker.as_deref());
            let is_sparse = covered.len() <= 1;
            let mut alone = run.settle(&covered, &removed.page.objects, removed.failures);
            if is_sparse {
                // What lies so far apart costs as much one by one, and goes side by side.
                let taken = run.left.keys().filter(|key| !run.passing.contains_key(*key));
                alone.extend(taken.take(self.shared.copies_max).cloned().collect::<Vec<_>>());
            }
            self.delete_alone(&mut run, alone).await?;
            if !run.passing.is_empty() {
                self.pause(PASSING_PAUSE).await?;
            }
        }
        Ok(run.kept)
    }

    /// One by one: what a listing does not show although nobody is known to have deleted it, as it may lag behind; and what
    /// lies far apart.
    async fn delete_alone(&self, run: &mut Run, keys: Vec<ObjectKey>) -> Result<(), CopyTrouble> {
        let known: Vec<_> = keys.into_iter().filter_map(|key| run.left.remove_entry(&key)).collect();
        let removals = known.into_iter().map(|(key, known)| async move {
            let removed = self.delete_one(&key, None, |head| known.is_head(head)).await;
            (key, removed)
        });
        let mut removals = stream::iter(removals).buffer_unordered(self.shared.copies_max);
        let mut stopped = None;
        while let Some((key, removed)) = removals.next().await {
            match removed {
                Ok(Ok(Removed::Gone)) => {}
                Ok(Ok(Removed::Other(_))) => run.kept.others.push(key),
                Ok(Err(e)) => run.kept.refused.push((key, e.to_string())),
                Err(Stopped) => stopped = Some(Stopped),
            }
        }
        stopped.map_or(Ok(()), |stopped| Err(stopped.into()))
    }

    fn not_removed(&self, run: &Run, error: &BosError) -> CopyTrouble {
        for key in &run.kept.others {
            let message = format!(
                "{key}: somebody else had written it anew by the time its deletion could leave; that object is left"
            );
            self.shared.tell(key.as_str(), &self.id, message);
        }
        let Some(first) = run.left.keys().next() else { return CopyTrouble::Stopped };
        self.refused("removing objects, the first is", first, error).into()
    }
}

/// Objects that are being deleted, run by run.
struct Run {
    /// Not settled yet.
    left: BTreeMap<ObjectKey, Known>,
    /// Keys that were shown as known, so that a delete was sent for them.
    sent: Mutex<HashSet<String>>,
    /// Those for which BOS answered that it could not for the moment, and how often.
    passing: BTreeMap<ObjectKey, u32>,
    kept: Kept,
}

impl Run {
    fn judge(&self, object: &ListedObject) -> bool {
        let is_known =
            self.left.get(object.key.as_str()).is_some_and(|known| known.is(&object.etag, object.last_modified));
        if is_known {
            self.sent.lock().insert(object.key.clone());
        }
        is_known
    }

    /// Settles what the page covers. Returns what it does not show although nobody is known to have deleted it.
    fn settle(
        &mut self,
        covered: &[ObjectKey],
        listed: &[ListedObject],
        failures: Vec<(String, String, String)>,
    ) -> Vec<ObjectKey> {
        let listed: BTreeMap<&str, &ListedObject> = listed.iter().map(|o| (o.key.as_str(), o)).collect();
        let failures: BTreeMap<String, (String, String)> =
            failures.into_iter().map(|(key, code, message)| (key, (code, message))).collect();
        let mut unseen = Vec::new();
        for key in covered {
            let Some(known) = self.left.get(key) else { continue };
            let found = listed.get(key.as_str());
            match found {
                None if !self.sent.lock().contains(key.as_str()) => {
                    unseen.push(key.clone());
                    continue;
                }
                Some(object) if !known.is(&object.etag, object.last_modified) => self.kept.others.push(key.clone()),
                _ => {
                    let failure = failures.get(key.as_str());
                    let passes = failure.is_some_and(|(code, _)| PASSING.contains(&code.as_str()));
                    let tries = self.passing.get(key).copied().unwrap_or(0) + 1;
                    if passes && tries < TRIES_MAX {
                        self.passing.insert(key.clone(), tries);
                        continue;
                    }
                    if let Some((code, message)) = failure {
                        self.kept.refused.push((key.clone(), format!("{code} {message}")));
                    }
                }
            }
            self.passing.remove(key);
            self.left.remove(key);
        }
        unseen
    }
}

/// The page that shows the first of `left`, and as many behind it as may be. `None`: there is none.
fn page_for(left: &BTreeMap<ObjectKey, Known>) -> Option<PageAt> {
    let (first, last) = (left.keys().next()?.as_str(), left.keys().next_back()?.as_str());
    let common = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
    let prefix = first.get(..common).and_then(|common| common.rfind('/')).map_or("", |slash| &first[..=slash]);
    let keys_max = left.len().saturating_mul(2).clamp(PAGE_KEYS_MIN, DELETE_KEYS_MAX);
    let keys_max = u32::try_from(keys_max).unwrap_or(u32::MAX);
    Some(PageAt { prefix: prefix.to_owned(), marker: just_before(first, prefix), keys_max })
}

/// A marker behind which `key` comes, and before it as little else as may be. `None`: the start of the prefix.
fn just_before(key: &str, prefix: &str) -> Option<String> {
    let (at, last) = key.char_indices().next_back()?;
    let before = match last {
        // Nothing but what begins with the same name as its predecessor, and goes on behind `~`, lies between.
        '!'..='~' if key.len() < KEY_BYTES_MAX => format!("{}{}~", &key[..at], char::from(last as u8 - 1)),
        _ => key[..at].to_owned(),
    };
    (before.as_str() > prefix).then_some(before)
}

/// The keys of `left` of which a page tells whether they are there.
fn covered(
    left: &BTreeMap<ObjectKey, Known>,
    at: &PageAt,
    listed: &[ListedObject],
    next_marker: Option<&str>,
) -> Vec<ObjectKey> {
    let begins = |key: &str| key.starts_with(&at.prefix) && at.marker.as_deref().is_none_or(|marker| key > marker);
    let end = next_marker.map(|next| listed.last().map_or(next, |last| last.key.as_str()));
    let keys = left.keys().filter(|key| begins(key.as_str()) && end.is_none_or(|end| key.as_str() <= end));
    keys.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ETag;

    fn wanted(keys: &[&str]) -> BTreeMap<ObjectKey, Known> {
        let known = Known { etag: ETag::new("e"), stored: None };
        keys.iter().map(|key| (ObjectKey::parse(key).unwrap(), known.clone())).collect()
    }

    fn listed(key: &str, etag: &str) -> ListedObject {
        ListedObject { key: key.into(), size: 1, etag: ETag::new(etag), last_modified: 7, storage_class: None }
    }

    fn names(keys: &[ObjectKey]) -> Vec<&str> {
        keys.iter().map(ObjectKey::as_str).collect()
    }

    #[test]
    fn a_page_begins_right_before_the_first_key_and_stays_in_the_folder_of_all() {
        let at = |prefix: &str, marker: Option<&str>, keys_max| {
            Some(PageAt { prefix: prefix.into(), marker: marker.map(str::to_owned), keys_max })
        };
        assert_eq!(page_for(&wanted(&[])), None);
        assert_eq!(page_for(&wanted(&["d/f2", "d/f9"])), at("d/", Some("d/f1~"), 16));
        assert_eq!(page_for(&wanted(&["d/", "d/a", "d/e/f"])), at("d/", None, 16), "the marker of the folder itself");
        assert_eq!(page_for(&wanted(&["d/x", "e/y"])), at("", Some("d/w~"), 16));
        assert_eq!(page_for(&wanted(&["目录/文", "目录/文件"])), at("目录/", None, 16), "no neighbour is made up");
        assert_eq!(page_for(&wanted(&["dx/f", "dy/f"])), at("", Some("dx/e~"), 16));
        let many: Vec<String> = (0..900).map(|i| format!("d/{i:03}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(page_for(&wanted(&many)), at("d/", Some("d/00/~"), 1000));
    }

    #[test]
    fn a_marker_lies_before_its_key_and_is_never_longer_than_a_key_may_be() {
        let long = "x".repeat(KEY_BYTES_MAX);
        for key in ["a", "d/0", "d/ ", "d/文", "d/!", "d/~", "d/a/", long.as_str()] {
            if let Some(marker) = just_before(key, "") {
                assert!(marker.as_str() < key && marker.len() <= KEY_BYTES_MAX, "{marker:?} {key:?}");
            }
        }
        assert_eq!(just_before("d/", "d/"), None);
    }

    #[test]
    fn a_page_tells_of_the_keys_between_its_marker_and_its_last_key() {
        let left = wanted(&["a", "d/1", "d/3", "d/5", "d/7", "e"]);
        let at = PageAt { prefix: "d/".into(), marker: Some("d/2".into()), keys_max: 2 };
        let page = [listed("d/3", "e"), listed("d/6", "e")];
        assert_eq!(names(&covered(&left, &at, &page, Some("d/6"))), ["d/3", "d/5"]);
        assert_eq!(names(&covered(&left, &at, &page, None)), ["d/3", "d/5", "d/7"]);
        assert_eq!(names(&covered(&left, &at, &[], Some("d/4"))), ["d/3"], "a page without a key");
        let whole = PageAt { prefix: String::new(), marker: None, keys_max: 2 };
        assert_eq!(covered(&left, &whole, &[], None).len(), 6);
    }

    #[test]
    fn what_a_page_shows_settles_its_keys() {
        let left = wanted(&["gone", "lagging", "other", "passing", "refused", "same"]);
        let mut run = Run { left, sent: Mutex::default(), passing: BTreeMap::new(), kept: Kept::default() };
        let covered: Vec<ObjectKey> = run.left.keys().cloned().collect();
        // Shown by an earlier look, and deleted; the answer was lost.
        assert!(run.judge(&listed("gone", "e")));
        assert!(!run.judge(&listed("other", "f")) && !run.judge(&listed("not asked for", "e")));
        let shown = [listed("other", "f"), listed("passing", "e"), listed("refused", "e"), listed("same", "e")];
        assert_eq!(shown.iter().filter(|object| run.judge(object)).count(), 3);
        let failure = |key: &str, code: &str| (key.to_owned(), code.to_owned(), "m".to_owned());
        let failures = || vec![failure("passing", "InternalError"), failure("refused", "AccessDenied")];
        assert_eq!(names(&run.settle(&covered, &shown, failures())), ["lagging"], "HEAD is asked for that one");
        assert_eq!(run.left.keys().map(ObjectKey::as_str).collect::<Vec<_>>(), ["lagging", "passing"]);
        assert_eq!(names(&run.kept.others), ["other"]);
        assert_eq!(run.kept.refused[0].1, "AccessDenied m");
        for _ in 1..TRIES_MAX {
            run.settle(&covered, &shown, failures());
        }
        assert_eq!(run.kept.refused[1].1, "InternalError m", "not for ever");
        assert!(!run.left.contains_key("passing") && run.passing.is_empty());
        assert!(run.kept.has(&covered[2]) && run.kept.has(&covered[3]) && !run.kept.has(&covered[5]));
    }
}
