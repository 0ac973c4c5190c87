//! Answers of the calls of an upload. Input: JSON documents, one a line: pages of ListParts, and each also as the answer of
//! Initiate, Complete, copies, batch deletes, lifecycle and location.

use bosfs::bos::client::ListedPart;
use bosfs::bos::wire::{
    self, WireDeleted, WireError, WireInitiated, WireLifecycle, WireListParts, WireLocation, WireStored,
};
use bosfs::object::{ETag, PART_NUMBER_MAX};
use http::HeaderMap;

use super::feed::Feed;

pub fn check(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut parts = Vec::new();
    let mut pages = 0;
    let mut ended = false;
    while !feed.is_empty() {
        let line = feed.line();
        single_answers(line);
        let Ok(Some(page)) = wire::parse::<WireListParts>(line) else { continue };
        if ended {
            continue;
        }
        let before = parts.len();
        match page.append_to(&mut parts) {
            Err(_) => ended = true,
            Ok(next) => {
                pages += 1;
                assert!(pages <= PART_NUMBER_MAX + 1, "more pages than parts");
                check_parts(&parts);
                assert!(next.is_none() || parts.len() > before, "a page without a part goes on");
                if let Some(next) = next {
                    assert_eq!(Some(next), parts.last().map(|part| part.number), "the marker is not the last part");
                } else {
                    ended = true;
                }
            }
        }
    }
}

fn check_parts(parts: &[ListedPart]) {
    assert!(parts.len() <= PART_NUMBER_MAX as usize);
    assert!(parts.is_sorted_by(|a, b| a.number < b.number), "part numbers do not ascend");
    for part in parts {
        assert!((1..=PART_NUMBER_MAX).contains(&part.number.get()));
        assert!(i64::try_from(part.size).is_ok());
        assert_eq!(ETag::new(&part.etag.quoted()), part.etag, "an ETag changes on its way through quotes");
    }
}

fn single_answers(line: &[u8]) {
    if let Ok(Some(stored)) = wire::parse::<WireStored>(line)
        && let Ok(outcome) = wire::copy_outcome(&HeaderMap::new(), stored)
    {
        assert!(!outcome.etag.as_str().is_empty());
        assert!(outcome.last_modified.is_none_or(|at| (-62_167_219_200..=253_402_300_799).contains(&at)));
    }
    if let Ok(Some(WireStored { etag, .. })) = wire::parse::<WireStored>(line)
        && let Ok(outcome) = wire::stored_outcome(&HeaderMap::new(), Some(etag))
    {
        assert!(!outcome.etag.as_str().is_empty());
    }
    if let Some(error) = WireError::in_body(line) {
        assert!(!error.code.is_empty());
    }
    if let Ok(Some(deleted)) = wire::parse::<WireDeleted>(line) {
        let failures = deleted.into_failures();
        assert!(failures.len() <= line.len());
        assert!(failures.iter().all(|(_, code, _)| code != "NoSuchKey"), "what is not there was deleted");
    }
    if let Ok(Some(rules)) = wire::parse::<WireLifecycle>(line) {
        // A rule for every key is one for any prefix, too.
        let (all, below) = (rules.abort_days("bkt", ""), rules.abort_days("bkt", "some/prefix/"));
        assert!(below.is_none_or(|days| all.is_some_and(|all| all <= days)), "{below:?} below, {all:?} in all");
    }
    let _ = wire::parse::<WireInitiated>(line);
    let _ = wire::parse::<WireLocation>(line);
}
