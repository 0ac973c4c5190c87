//! Names: what BOS has under one, at the price of as few requests as can be.

use std::time::Instant;

use super::attributes::Fact;
use super::listing::{Listed, Listing, Shadowed, just_before};
use super::pages::{Origin, Pace};
use super::{Found, LISTING_LAG, Namespace, Object, PAGE_KEYS, Resolved, shared};
use crate::bos::error::{BosError, BosErrorKind};
use crate::object::ObjectKey;

/// How often a name is asked for that this mount changes all the time.
const ASKED_MAX: u32 = 3;

/// What memory has to say of a name.
enum Recalled {
    /// This mount stored it a moment ago.
    Own(Object, Instant),
    /// A fresh listing shows it.
    Listed(Listed, Instant),
    /// It surely is not there.
    Absent(Instant),
}

impl Namespace {
    /// What BOS has under `name` in the directory with `prefix`: from memory, or by at most two requests (a third one for
    /// the attributes of a directory whose marker is not known). Lookups that follow each other in one directory are
    /// answered from a page of its listing: in steady state one request in the time to live, however many they are.
    /// `known_dir`: the name was a directory before, so that a look into it comes first, as where memory says so.
    ///
    /// # Errors
    /// BOS could not be asked.
    pub async fn resolve(&self, prefix: &str, name: &str, known_dir: bool) -> Result<Resolved, BosError> {
        let now = Instant::now();
        let Ok(key) = ObjectKey::parse(&format!("{prefix}{name}")) else {
            return Ok(Resolved { found: Found::Absent, as_of: now });
        };
        if let Some(resolved) = self.resolve_known(prefix, name, &key, now).await? {
            return Ok(resolved);
        }
        let dir = format!("{key}/");
        let (was_dir, was_object) = {
            let memory = self.recalled(&[&dir, key.as_str()]);
            (memory.attributes.fact(&dir).is_some(), memory.attributes.fact(key.as_str()).is_some())
        };
        if (known_dir || was_dir) && !self.ttl.is_zero() {
            let (page, as_of) = self.first_page(&dir).await?;
            let listed = page.lock().proves_existence();
            if listed || self.memory.lock().kept_dirs.contains(&dir) {
                return Ok(Resolved { found: Found::Dir { attrs: self.dir_attrs(&dir).await? }, as_of });
            }
        }
        let pace = self.memory.lock().pages.pace(prefix, now);
        // Of a remembered object a listing tells enough.
        if pace == Pace::Window || (was_object && !self.ttl.is_zero()) {
            self.fetch_window(prefix, name, &key, now).await?;
            if let Some(resolved) = self.resolve_known(prefix, name, &key, now).await? {
                return Ok(resolved);
            }
        }
        Ok(Resolved { found: self.ask(&key).await?, as_of: now })
    }

    /// From memory, with at most the attributes asked for. What was fresh at `now`, when the lookup began, is believed: also
    /// the page that it fetched itself, however long that took.
    async fn resolve_known(
        &self,
        prefix: &str,
        name: &str,
        key: &ObjectKey,
        now: Instant,
    ) -> Result<Option<Resolved>, BosError> {
        let resolved = |found, as_of| Ok(Some(Resolved { found, as_of }));
        match self.recall(prefix, name, key, now) {
            None | Some(Recalled::Listed(Listed::Local { .. }, _)) => Ok(None),
            Some(Recalled::Own(object, as_of)) => resolved(Found::Object(object), as_of),
            Some(Recalled::Absent(as_of)) => resolved(Found::Absent, as_of),
            Some(Recalled::Listed(Listed::Dir, as_of)) => {
                resolved(Found::Dir { attrs: self.dir_attrs(&format!("{key}/")).await? }, as_of)
            }
            Some(Recalled::Listed(Listed::Object { size, etag, last_modified }, as_of)) => {
                if let Some(object) = self.known_object(key, size, &etag, last_modified) {
                    return resolved(Found::Object(object), as_of);
                }
                let asked_at = Instant::now();
                match self.head_run(prefix, name, key, now).await? {
                    Some(object) => resolved(Found::Object(object), asked_at),
                    // Removed since it was listed.
                    None => resolved(self.ask(key).await?, asked_at),
                }
            }
        }
    }

    /// What memory said at `now`; a sure no of a listing is put among the absent names.
    fn recall(&self, prefix: &str, name: &str, key: &ObjectKey, now: Instant) -> Option<Recalled> {
        let mut memory = self.memory.lock();
        let memory = &mut *memory;
        if let Some(just_now) = now.checked_sub(self.ttl)
            && let Some((Fact::Object { size, etag, headers, .. }, stored)) =
                memory.attributes.own(key.as_str(), just_now)
            && memory.changes.of(key.as_str()).is_none_or(|change| change.at <= stored && !change.gone)
        {
            let object = self.object(*size, etag.clone(), 0, headers.clone());
            return Some(Recalled::Own(object, stored));
        }
        let changes = &memory.changes;
        let found = memory.pages.find(prefix, name, now, |asked_at| !changes.overtook(key.as_str(), asked_at));
        match found {
            Some((Some(listed), as_of)) => return Some(Recalled::Listed(listed, as_of)),
            Some((None, as_of)) => {
                let dir = format!("{key}/");
                let lately = now.checked_sub(LISTING_LAG).unwrap_or(now);
                let own = |key: &str| memory.attributes.own(key, lately).is_some();
                // The listing may lag behind what this mount stored.
                if !memory.kept_dirs.contains(&dir) && !own(key.as_str()) && !own(&dir) {
                    memory.absent.insert(key.as_str(), as_of);
                    return Some(Recalled::Absent(as_of));
                }
            }
            None => {}
        }
        memory.absent.since(key.as_str(), now).map(Recalled::Absent)
    }

    /// Fetches a page with `name` in it, unless somebody else just did.
    async fn fetch_window(&self, prefix: &str, name: &str, key: &ObjectKey, now: Instant) -> Result<(), BosError> {
        let _turn = self.turn(prefix).lock().await;
        if self.recall(prefix, name, key, now).is_some() {
            return Ok(());
        }
        let large = self.memory.lock().pages.is_large(prefix);
        self.fetch_listing(prefix, large.then(|| just_before(prefix, name)), Origin::Lookup).await?;
        // The first look at a directory of more than one page.
        let covered = self.recall(prefix, name, key, now).is_some();
        if !large && !covered && self.memory.lock().pages.is_large(prefix) {
            self.fetch_listing(prefix, Some(just_before(prefix, name)), Origin::Lookup).await?;
        }
        Ok(())
    }

    /// One page of the directory, from the start or after the key `after`; remembered.
    pub(super) async fn fetch_listing(
        &self,
        prefix: &str,
        after: Option<String>,
        origin: Origin,
    ) -> Result<(super::SharedListing, Instant), BosError> {
        let asked_at = Instant::now();
        let page = self.client.list_objects(prefix, Some('/'), after.as_deref(), PAGE_KEYS).await?;
        let mut listing = match &after {
            None => Listing::new(prefix),
            Some(after) => Listing::starting_after(prefix, after),
        }
        .counted(&self.listings);
        for shadowed in listing.add_page(page, asked_at) {
            self.tell_shadowed(shadowed);
        }
        let listing = shared(listing);
        self.memory.lock().pages.insert(listing.clone(), origin, Instant::now());
        Ok((listing, asked_at))
    }

    /// HEAD of `key`, and side by side of the objects listed behind it that will be asked for next.
    async fn head_run(
        &self,
        prefix: &str,
        name: &str,
        key: &ObjectKey,
        now: Instant,
    ) -> Result<Option<Object>, BosError> {
        let listing = self.memory.lock().pages.with_entry(prefix, name, now);
        // Cloned, because what is known is behind the lock of the memory, which comes before that of a listing.
        let run = listing.map_or_else(Vec::new, |listing| listing.lock().attribute_run(name));
        let ahead = run.iter().skip(1).filter_map(|entry| match &entry.listed {
            Listed::Object { size, etag, last_modified } => {
                let key = ObjectKey::parse(&format!("{prefix}{}", entry.name)).ok()?;
                let known = self.known_object(&key, *size, etag, *last_modified).is_some();
                (!known).then_some(key)
            }
            Listed::Dir | Listed::Local { .. } => None,
        });
        let ahead: Vec<ObjectKey> = ahead.collect();
        let ahead = futures_util::future::join_all(ahead.iter().map(|key| self.head(key)));
        // What fails ahead of its time is asked for again when it is needed.
        let (object, _) = tokio::join!(self.head(key), ahead);
        object
    }

    /// HEAD of the key, and a look whether it is a directory; again where this mount changed the key meanwhile.
    async fn ask(&self, key: &ObjectKey) -> Result<Found, BosError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let asked_at = Instant::now();
            let found = self.ask_once(key, asked_at).await?;
            let overtaken = self.memory.lock().changes.overtook(key.as_str(), asked_at);
            if found != Found::Absent || !overtaken || tries == ASKED_MAX {
                return Ok(found);
            }
        }
    }

    async fn ask_once(&self, key: &ObjectKey, asked_at: Instant) -> Result<Found, BosError> {
        let prefix = format!("{key}/");
        let (head, list) =
            tokio::join!(self.client.head_object(key), self.client.list_objects(&prefix, Some('/'), None, 1));
        let list = list?;
        let is_dir = !list.objects.is_empty() || !list.prefixes.is_empty();
        let head = match head {
            Ok(meta) => Some(meta),
            Err(error) if error.kind == BosErrorKind::NoSuchKey => None,
            Err(_) if is_dir => None,
            Err(error) => return Err(error),
        };
        if is_dir {
            if head.is_some() {
                self.tell_shadowed(Shadowed {
                    key: key.to_string(),
                    reason: "a directory of the same name hides this object",
                });
            }
            let marker = list.objects.first().filter(|object| object.key == prefix);
            let attrs = match self.listed_dir(&prefix, marker, asked_at) {
                Some(attrs) => attrs,
                None => self.dir_attrs(&prefix).await?,
            };
            return Ok(Found::Dir { attrs });
        }
        if let Some(meta) = head {
            return Ok(Found::Object(self.learn(key, meta, asked_at)));
        }
        let kept = self.memory.lock().kept_dirs.contains(&prefix);
        if kept {
            return Ok(Found::Dir { attrs: self.dir_attrs(&prefix).await? });
        }
        let mut memory = self.memory.lock();
        if !memory.changes.overtook(key.as_str(), asked_at) {
            memory.absent.insert(key.as_str(), asked_at);
        }
        Ok(Found::Absent)
    }
}
