//! Pages of ListObjects and ListMultipartUploads. Input: a line `o` or `u`, the prefix, then one JSON page a line.

use std::collections::HashSet;
use std::time::Instant;

use bosfs::bos::client::{ListPage, UploadsMarker};
use bosfs::bos::wire::{self, WireListObjects, WireListUploads};
use bosfs::namespace::listing::{Listing, NextPage, check_name, just_before};

use super::feed::Feed;

pub fn check(data: &[u8]) {
    let mut feed = Feed::new(data);
    let kind = feed.line();
    let prefix = feed.text().into_owned();
    match kind {
        b"u" => uploads(feed, &prefix),
        _ => objects(feed, &prefix),
    }
}

fn objects(mut feed: Feed<'_>, prefix: &str) {
    let mut listing = Listing::new(prefix);
    let mut marker: Option<String> = None;
    while !feed.is_empty() {
        let line = feed.line();
        let Ok(Some(page)) = wire::parse::<WireListObjects>(line) else { continue };
        let Ok(page) = page.into_page(prefix, marker.as_deref()) else { return };
        check_page(&page, prefix, marker.as_deref(), line.len());
        add(&mut listing, page, prefix);
        match listing.next().clone() {
            NextPage::After(next) => marker = Some(next),
            NextPage::First => panic!("no page was added"),
            NextPage::End => break,
        }
    }
}

/// What may be relied on of a page that was accepted.
fn check_page(page: &ListPage, prefix: &str, marker: Option<&str>, json_len: usize) {
    for object in &page.objects {
        assert!(object.key.starts_with(prefix) && !object.key.is_empty(), "a key outside the prefix");
        assert!(i64::try_from(object.size).is_ok(), "a size beyond what files can have");
        // No value was made up out of nothing: memory stays in proportion to the answer.
        assert!(object.key.len() + object.etag.as_str().len() <= 3 * json_len, "more than was sent");
    }
    for name in &page.prefixes {
        assert!(name.starts_with(prefix), "a prefix outside the prefix");
    }
    assert!(page.objects.len() + page.prefixes.len() <= json_len, "more entries than bytes");
    if let Some(next) = &page.next_marker {
        // An empty one begins anew.
        assert!(next.as_str() > marker.unwrap_or_default(), "the listing does not advance");
    }
}

/// Adds a page; what becomes an entry can be a name, what does not is told, and earlier entries keep their places.
fn add(listing: &mut Listing, page: ListPage, prefix: &str) {
    let before: Vec<_> = listing.entries().map(|entry| entry.name.clone()).collect();
    let keys: Vec<(String, bool)> = page
        .objects
        .iter()
        .map(|object| (object.key.clone(), false))
        .chain(page.prefixes.iter().map(|prefix| (prefix.clone(), true)))
        .collect();
    let told: HashSet<String> =
        listing.add_page(page, Instant::now()).into_iter().map(|shadowed| shadowed.key).collect();
    let entries: Vec<_> = listing.entries().collect();
    assert!(entries.len() <= before.len() + keys.len());
    assert!(before.iter().zip(&entries).all(|(name, entry)| *name == entry.name), "an entry moved");
    let mut names = HashSet::new();
    for entry in &entries {
        let name = &*entry.name;
        assert!(!name.is_empty() && name != "." && name != "..", "{name:?} is no name");
        assert!(!name.contains('/') && !name.contains('\0') && name.len() <= 255, "{name:?} is no name");
        assert!(check_name(name).is_ok());
        assert!(names.insert(name), "{name:?} is listed twice");
        assert!(listing.contains(name));
        let before = just_before(prefix, name);
        assert!(before.starts_with(prefix) && before < format!("{prefix}{name}"));
        assert!(!before[prefix.len()..].contains('/'), "a window would begin inside a directory");
    }
    for (key, is_dir) in keys {
        if key == prefix && !is_dir {
            assert!(listing.marker().is_some());
            continue;
        }
        let rest = &key[prefix.len()..];
        let name = if is_dir { rest.strip_suffix('/').unwrap_or(rest) } else { rest };
        let is_told = told.contains(&key) || told.contains(key.trim_end_matches('/'));
        assert!(names.contains(name) || is_told, "{key:?} is neither shown nor told");
    }
}

fn uploads(mut feed: Feed<'_>, prefix: &str) {
    let mut marker: Option<UploadsMarker> = None;
    let mut asked = HashSet::new();
    while !feed.is_empty() {
        let line = feed.line();
        let Ok(Some(page)) = wire::parse::<WireListUploads>(line) else { continue };
        let Ok(page) = page.into_page(prefix, marker.as_ref()) else { return };
        assert!(page.uploads.len() <= line.len(), "more uploads than bytes");
        for upload in &page.uploads {
            assert!(upload.key.starts_with(prefix) && !upload.key.is_empty(), "a key outside the prefix");
        }
        let Some(next) = page.next else { return };
        assert!(!next.key.is_empty(), "an empty marker begins anew");
        assert!(marker.is_none_or(|marker| next.key >= marker.key), "the list of uploads goes back");
        assert!(asked.insert((next.key.clone(), next.upload_id.clone())), "a page is asked for twice");
        marker = Some(next);
    }
}
