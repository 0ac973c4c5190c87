//! All objects below a prefix get another one: everything is copied first, then the old names go.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;

use super::Recopied;
use super::copy::{CopyJob, CopyTrouble};
use super::object::Ended;
use super::record::{Listed, MoveRecord};
use super::running::Move;
use super::state::{Entry, Kind, Stage, TargetMarker, difference, is_copy};
use crate::bos::client::{
    Body, EMPTY_PAGES_MAX, Known, ListPage, ListedObject, ObjectHeaders, PageAt, Removed, SeenPage,
};
use crate::object::{BaseObject, Condition, Md5, ObjectKey};
use crate::upload::WriteError;

/// Objects of one directory that are moved at once; more are left to programs that copy file by file.
const OBJECTS_MAX: usize = 500_000;
/// Listings after which a directory that others keep changing is given up.
const ROUNDS_MAX: u32 = 50;
/// Bytes of keys in one line of the journal.
const LINE_KEYS_BYTES: usize = 256 << 10;
/// Keys of one batch delete (BOS docs, DeleteMultipleObjects).
pub(super) const DELETE_KEYS_MAX: usize = 1000;
/// Entries of one page of a listing.
const PAGE_KEYS: u32 = 1000;
/// A copy that was under way when bosfs was killed may still appear this much later.
const LATE_COPY: Duration = Duration::from_secs(2);

impl Move {
    fn prefixes(&self) -> (String, String, HashSet<String>) {
        match &self.state.lock().kind {
            Kind::Directory { from, to, leave_out } => (from.clone(), to.clone(), leave_out.clone()),
            _ => unreachable!("only called for directories"),
        }
    }

    /// Copies everything, up to the line that makes the new names count. On any failure the copies are taken back.
    pub(super) async fn copy_directory(&self, marker: Option<&ObjectHeaders>) -> Result<(), Ended> {
        let error = match self.copy_all(marker).await {
            Ok(()) => {
                // Before anybody looks at the new names. What fails is tried again, and told, when the old ones are removed.
                return match self.replace_marker().await {
                    Err(CopyTrouble::Stopped) => Err(Ended::Stopped),
                    Ok(()) | Err(_) => Ok(()),
                };
            }
            Err(CopyTrouble::Stopped) => return Err(Ended::Stopped),
            Err(CopyTrouble::Failed(error)) => error,
            // Sources that changed are copied again by the next round, targets have no condition.
            Err(other) => WriteError::failed(libc::EIO, format!("renaming a directory: {other:?}")),
        };
        self.append(&MoveRecord::RollingBack { message: error.to_string() }).map_err(Ended::Kept)?;
        self.take_back(false).await?;
        Err(Ended::Undone(error))
    }

    async fn copy_all(&self, marker: Option<&ObjectHeaders>) -> Result<(), CopyTrouble> {
        let (from, to, leave_out) = self.prefixes();
        let replaces_marker = self.note_target_marker(&parse(&to)?, marker).await?;
        let mut marker_listed = false;
        for round in 0.. {
            let mut listed = self.list_all(&from).await?;
            marker_listed |= listed.iter().any(|object| object.key == from);
            listed.retain(|object| !replaces_marker || object.key != from);
            let difference = difference(&self.state.lock().entries, &from, &to, &leave_out, &listed);
            if let Some(key) = &difference.too_long {
                let message = format!(
                    "renaming {from} to {to}: the key {key:.200} would have more bytes than BOS takes; nothing was changed"
                );
                return Err(WriteError::failed(libc::ENAMETOOLONG, message).into());
            }
            if let Some(key) = difference.impossible.first() {
                let count = difference.impossible.len();
                let message = format!(
                    "renaming {from} to {to}: {count} keys in it cannot be paths, such as {key:?}, and would be left behind; \
                     nothing was changed: rename them with another tool first"
                );
                return Err(WriteError::failed(libc::EINVAL, message).into());
            }
            if difference.copy.is_empty() && difference.gone.is_empty() {
                break;
            }
            if round == ROUNDS_MAX {
                let message =
                    format!("renaming {from} to {to}: others keep changing it; nothing was changed: try again later");
                return Err(WriteError::failed(libc::EBUSY, message).into());
            }
            self.plan(&difference.copy)?;
            self.copy_entries(&from, &to, &difference.copy).await?;
            self.drop_gone(&to, &difference.gone).await?;
        }
        if let Some(headers) = marker.filter(|_| !marker_listed && !replaces_marker) {
            self.append(&MoveRecord::MarkerMade)?;
            self.put_marker(&parse(&to)?, headers).await?;
        }
        self.sync().await?;
        self.append(&MoveRecord::AllCopied)?;
        // Not answered before this is on the disk: behind it the old names go.
        self.sync().await?;
        Ok(())
    }

    /// Journals the marker that the new prefix has already; `false`: it has none. `headers`: of one that takes its place.
    async fn note_target_marker(&self, to: &ObjectKey, headers: Option<&ObjectHeaders>) -> Result<bool, CopyTrouble> {
        let Some(found) = self.head(to).await? else { return Ok(false) };
        let (etag, last_modified, headers) = (found.etag, found.last_modified, headers.cloned());
        self.append(&MoveRecord::TargetMarker { etag, last_modified, headers })?;
        Ok(true)
    }

    async fn put_marker(&self, key: &ObjectKey, headers: &ObjectHeaders) -> Result<(), CopyTrouble> {
        let put = || {
            let body = Body::Bytes(Bytes::new());
            self.shared.client.put_object(key, body, &EMPTY_MD5, headers, &Condition::Any)
        };
        self.patiently(key, put).await?.map_err(|e| self.refused("making the directory", key, &e))?;
        Ok(())
    }

    /// Behind the line that all is copied: the marker that the new prefix had before gives way to that of the directory.
    /// One that was written meanwhile stays: by an earlier process that did just this, or by somebody who comes later.
    async fn replace_marker(&self) -> Result<(), CopyTrouble> {
        let (from, to, _) = self.prefixes();
        let (before, is_done) = {
            let state = self.state.lock();
            let is_done = state.marker_made || state.entries.get("").is_some_and(|entry| entry.copied.is_some());
            (state.target_marker.clone(), is_done)
        };
        let Some(before) = before.filter(|_| !is_done || self.recovered) else { return Ok(()) };
        let replaced = if is_done { Ok(()) } else { self.replace_marker_of(&from, &to, before).await };
        // Also when the outcome is not known, and when an earlier process may have been killed before it did.
        self.shared.tell_replaced(&to, self.recovered);
        replaced
    }

    async fn replace_marker_of(&self, from: &str, to: &str, before: TargetMarker) -> Result<(), CopyTrouble> {
        let (old, new) = (parse(from)?, parse(to)?);
        let (source, found) = (self.head(&old).await?, self.head(&new).await?);
        let later = found.filter(|found| found.etag != before.etag || found.last_modified != before.last_modified);
        let Some(source) = source else {
            if let (None, Some(headers)) = (later, &before.headers) {
                self.put_marker(&new, headers).await?;
            }
            return Ok(self.append(&MoveRecord::MarkerMade)?);
        };
        let (etag, size, last_modified) = (source.etag, source.size, source.last_modified);
        let entry = Listed { rest: String::new(), etag, size, last_modified };
        self.plan(std::slice::from_ref(&entry))?;
        match later {
            None => self.copy_entry(from, to, entry, &AtomicBool::new(false)).await,
            Some(later) => {
                let (from_etag, from_last_modified) = (entry.etag, Some(entry.last_modified));
                Ok(self.append(&MoveRecord::Copied {
                    to: new,
                    from_etag,
                    from_last_modified,
                    etag: later.etag,
                    stored: None,
                })?)
            }
        }
    }

    fn plan(&self, entries: &[Listed]) -> Result<(), WriteError> {
        let mut line = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            bytes += entry.rest.len() + 128;
            line.push(entry.clone());
            if bytes >= LINE_KEYS_BYTES {
                self.append(&MoveRecord::Planned { entries: std::mem::take(&mut line) })?;
                bytes = 0;
            }
        }
        if line.is_empty() { Ok(()) } else { self.append(&MoveRecord::Planned { entries: line }) }
    }

    /// Copies what was planned, side by side. An entry that changed or vanished meanwhile is left to the next listing.
    async fn copy_entries(&self, from: &str, to: &str, entries: &[Listed]) -> Result<(), CopyTrouble> {
        let failed = &AtomicBool::new(false);
        let copies = entries.iter().cloned().map(|entry| self.copy_entry(from, to, entry, failed));
        // All that were begun are awaited, also behind a failure: none must act after it was taken back.
        let mut copies = stream::iter(copies).buffer_unordered(self.shared.copies_max);
        let mut trouble = None;
        while let Some(copied) = copies.next().await {
            if let Err(e) = copied {
                failed.store(true, Ordering::Relaxed);
                trouble.get_or_insert(e);
            }
        }
        trouble.map_or(Ok(()), Err)
    }

    async fn copy_entry(&self, from: &str, to: &str, entry: Listed, failed: &AtomicBool) -> Result<(), CopyTrouble> {
        if failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let source = BaseObject::own(entry.etag.clone(), entry.size);
        let (old, new) = (parse(&format!("{from}{}", entry.rest))?, parse(&format!("{to}{}", entry.rest))?);
        let condition = &Condition::Any;
        let job = CopyJob { from: &old, source: &source, to: &new, condition, replace: None, sent: false };
        match self.copy(job).await {
            Ok(made) => Ok(self.append(&MoveRecord::Copied {
                to: new,
                from_etag: source.etag,
                from_last_modified: Some(entry.last_modified),
                etag: made.etag,
                stored: made.stored,
            })?),
            Err(CopyTrouble::SourceGone | CopyTrouble::SourceChanged) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    /// Copies of objects that vanished since: they go, too.
    async fn drop_gone(&self, to: &str, gone: &[String]) -> Result<(), CopyTrouble> {
        for rest in gone {
            let key = parse(&format!("{to}{rest}"))?;
            self.end_upload(&key).await?;
            let made = self.state.lock().entries.get(rest).and_then(made_of);
            if let Some(made) = made {
                self.drop_copy(&key, &made).await?;
            }
            self.append(&MoveRecord::Dropped { to: key })?;
        }
        Ok(())
    }

    async fn drop_copy(&self, key: &ObjectKey, made: &Known) -> Result<(), CopyTrouble> {
        let removed = self.delete_one(key, None, |head| made.is_head(head)).await?;
        if let Removed::Other(_) = removed.map_err(|e| self.refused("removing the copy", key, &e))? {
            let message = format!(
                "{key} was written by somebody else while a directory was renamed to this place; it is left, although what \
                 was to get this name is gone"
            );
            self.shared.tell(key.as_str(), &self.id, message);
        }
        Ok(())
    }

    /// The objects that have other ETags now, by key.
    pub(super) fn recopied(&self) -> Vec<Recopied> {
        let state = self.state.lock();
        let changed = state.entries.iter().filter_map(|(rest, entry)| {
            let (etag, _) = entry.copied.as_ref().filter(|(etag, _)| *etag != entry.etag)?;
            Some(Recopied { rest: rest.clone(), from_etag: entry.etag.clone(), etag: etag.clone() })
        });
        changed.collect()
    }

    /// Deletes the old names, page by page of a fresh listing: only what still is what was copied.
    pub(super) async fn remove_sources(&self) -> Result<(), Ended> {
        self.replace_marker().await.map_err(ended)?;
        let (from, to, leave_out) = self.prefixes();
        let mut kept: u64 = 0;
        let mut at = first_page(&from);
        loop {
            let seen = self.look_page(&at).await.map_err(ended)?;
            let next = seen.page.next_marker.clone();
            let mut wanted = BTreeMap::new();
            for object in &seen.page.objects {
                let Some(rest) = object.key.strip_prefix(from.as_str()) else { continue };
                if leave_out.contains(&object.key) {
                    continue;
                }
                let same = self.state.lock().entries.get(rest).is_some_and(|entry| {
                    let copied = entry.copied.as_ref().is_some_and(|(_, current)| *current);
                    copied && entry.etag == object.etag && entry.last_modified == object.last_modified
                });
                match ObjectKey::parse(&object.key) {
                    Ok(key) if same => {
                        wanted.insert(key, Known::at(object.etag.clone(), object.last_modified));
                    }
                    _ => {
                        kept += 1;
                        self.tell_source_kept(&object.key, &from, &to);
                    }
                }
            }
            for key in self.delete_listed(wanted, seen).await? {
                kept += 1;
                self.tell_source_kept(key.as_str(), &from, &to);
            }
            match next {
                Some(next) => at.marker = Some(next),
                None => break,
            }
        }
        if kept > 0 {
            log::warn!(
                "{from} was renamed to {to}; {kept} objects that others wrote meanwhile stay under the old name"
            );
        }
        Ok(())
    }

    fn tell_source_kept(&self, key: &str, from: &str, to: &str) {
        let message = format!(
            "{key} was written by somebody else while {from} was renamed to {to}; it is kept under its old name"
        );
        self.shared.tell(key, &self.id, message);
    }

    /// Deletes what the page `seen` shows of `wanted`, as long as it is that. Returns what others wrote in between.
    async fn delete_listed(&self, wanted: BTreeMap<ObjectKey, Known>, seen: SeenPage) -> Result<Vec<ObjectKey>, Ended> {
        let kept = self.delete_known(wanted, Some(seen)).await.map_err(ended)?;
        match kept.refused.first() {
            None => Ok(kept.others),
            Some((key, why)) => Err(Ended::Kept(WriteError::failed(
                libc::EIO,
                format!(
                    "removing {} objects, such as {key}: {why}; they are there under both names",
                    kept.refused.len()
                ),
            ))),
        }
    }

    /// Deletes the copies that were made, if they are still that. `late`: a copy of an earlier process may still be on
    /// its way.
    pub(super) async fn take_back(&self, late: bool) -> Result<(), Ended> {
        let uploads: Vec<ObjectKey> = self.state.lock().uploads.keys().cloned().collect();
        for key in uploads {
            self.end_upload(&key).await.map_err(ended)?;
        }
        self.take_back_once().await?;
        let unanswered = || self.state.lock().entries.values().any(|entry| !matches!(entry.copied, Some((_, true))));
        if late && unanswered() {
            self.pause(LATE_COPY).await.map_err(|_| Ended::Stopped)?;
            self.take_back_once().await?;
        }
        Ok(())
    }

    async fn take_back_once(&self) -> Result<(), Ended> {
        let (from, to, _) = self.prefixes();
        let mut at = first_page(&to);
        loop {
            let seen = self.look_page(&at).await.map_err(ended)?;
            let next = seen.page.next_marker.clone();
            let mut wanted = BTreeMap::new();
            for object in &seen.page.objects {
                let Some(rest) = object.key.strip_prefix(to.as_str()) else { continue };
                let Ok(key) = ObjectKey::parse(&object.key) else { continue };
                if self.is_our_copy(&from, rest, object).await.map_err(ended)? {
                    wanted.insert(key, Known::at(object.etag.clone(), object.last_modified));
                }
            }
            for key in self.delete_listed(wanted, seen).await? {
                log::warn!(
                    "{key}: written by somebody else while a rename of {from} to {to} was taken back; it is left"
                );
            }
            match next {
                Some(next) => at.marker = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Whether what a listing shows at a new key was made by this move.
    async fn is_our_copy(&self, from: &str, rest: &str, object: &ListedObject) -> Result<bool, CopyTrouble> {
        let (entry, marker_made) = {
            let state = self.state.lock();
            (state.entries.get(rest).cloned(), state.marker_made)
        };
        let Some(entry) = entry else {
            return Ok(marker_made && rest.is_empty() && object.size == 0);
        };
        if made_of(&entry).is_some_and(|made| made.is(&object.etag, object.last_modified)) {
            return Ok(true);
        }
        if matches!(entry.copied, Some((_, true))) {
            let key = &object.key;
            log::warn!("{key}: written by somebody else while a directory was renamed to this place; it is left");
            return Ok(false);
        }
        // Sent, but not answered.
        let source = BaseObject::own(entry.etag, entry.size);
        if object.etag == source.etag {
            return Ok(object.size == source.size);
        }
        let (head, checks) =
            (self.head(&parse(&object.key)?).await?, self.head(&parse(&format!("{from}{rest}"))?).await?);
        Ok(head.is_some_and(|head| is_copy(&head, &source, checks.as_ref(), &self.mark())))
    }

    async fn list_all(&self, prefix: &str) -> Result<Vec<ListedObject>, CopyTrouble> {
        let mut all = Vec::new();
        let mut marker: Option<String> = None;
        let mut empty_pages = 0;
        loop {
            let page = self.list_page(prefix, marker.as_deref()).await?;
            empty_pages += usize::from(page.objects.is_empty());
            if empty_pages > EMPTY_PAGES_MAX {
                let message = format!("the listing of {prefix} goes on and on without a key; nothing was changed");
                return Err(WriteError::failed(libc::EIO, message).into());
            }
            all.extend(page.objects);
            if all.len() > OBJECTS_MAX {
                // mv then moves file by file.
                let message = format!("{prefix} has more than {OBJECTS_MAX} objects; nothing was changed");
                return Err(WriteError::failed(libc::EXDEV, message).into());
            }
            match page.next_marker {
                Some(next) => marker = Some(next),
                None => return Ok(all),
            }
        }
    }

    async fn list_page(&self, prefix: &str, marker: Option<&str>) -> Result<ListPage, CopyTrouble> {
        let call = || self.shared.client.list_objects(prefix, None, marker, PAGE_KEYS);
        let page = self.patiently_for(prefix, call).await?;
        page.map_err(|e| self.not_listed(prefix, &e).into())
    }

    /// What a start does with a directory: forward behind the line that all is copied, else back.
    pub(super) async fn recover_directory(&self) -> Result<(), Ended> {
        let (from, to, _) = self.prefixes();
        let stage = self.state.lock().stage;
        if stage == Stage::AllCopied {
            return self.remove_sources().await;
        }
        if stage == Stage::Copying {
            log::warn!("{from}: bosfs ended while it was renamed to {to}; the old name counts, the copies are removed");
            let message = "bosfs ended before everything was copied".to_owned();
            self.append(&MoveRecord::RollingBack { message }).map_err(Ended::Kept)?;
        }
        self.take_back(true).await
    }
}

/// MD5 of no bytes.
const EMPTY_MD5: Md5 =
    Md5([0xd4, 0x1d, 0x8c, 0xd9, 0x8f, 0x00, 0xb2, 0x04, 0xe9, 0x80, 0x09, 0x98, 0xec, 0xf8, 0x42, 0x7e]);

/// What is known of the copy of an entry.
fn made_of(entry: &Entry) -> Option<Known> {
    let (etag, _) = entry.copied.as_ref()?;
    Some(Known { etag: etag.clone(), stored: entry.copy_stored })
}

fn first_page(prefix: &str) -> PageAt {
    PageAt { prefix: prefix.to_owned(), marker: None, keys_max: PAGE_KEYS }
}

fn parse(key: &str) -> Result<ObjectKey, CopyTrouble> {
    ObjectKey::parse(key).map_err(|e| WriteError::failed(libc::EINVAL, format!("{key}: {e}")).into())
}

pub(super) fn ended(trouble: CopyTrouble) -> Ended {
    match trouble {
        CopyTrouble::Stopped => Ended::Stopped,
        CopyTrouble::Failed(error) => Ended::Kept(error),
        CopyTrouble::SourceGone | CopyTrouble::SourceChanged | CopyTrouble::TargetTaken(_) => {
            Ended::Kept(WriteError::failed(libc::ESTALE, "an object changed while a directory was renamed"))
        }
    }
}
