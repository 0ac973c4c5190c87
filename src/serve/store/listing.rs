//! Listings of objects and of unfinished uploads: prefix, delimiter, marker, pages.
//!
//! Live behaviour (vendor tests, bos-api.md 4.1): a page counts keys and common prefixes alike; after a common prefix
//! the next marker is a key inside it; a marker inside a common prefix hides that whole prefix.

use std::ops::Bound;

use super::records::{ObjectRecord, UploadRecord};
use super::tables::{OBJECTS, Snapshot, UPLOADS};
use super::{ApiError, Result};

/// What a listing asks for.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Of the keys.
    pub prefix: String,
    /// One character, or none.
    pub delimiter: Option<char>,
    /// Exclusive start.
    pub marker: String,
    /// Of uploads: exclusive start within the uploads of `marker`; empty: all of them are passed over.
    pub upload_id_marker: String,
    /// Most entries, keys and common prefixes together.
    pub max: usize,
}

/// A page.
#[derive(Debug)]
pub struct Listed<T> {
    /// Entries in order.
    pub entries: Vec<T>,
    /// Common prefixes in order.
    pub prefixes: Vec<String>,
    /// Whether more follow.
    pub truncated: bool,
    /// Key of the last entry, or a key inside the last common prefix.
    pub next_marker: String,
    /// Upload ID that goes with it.
    pub next_upload_id: String,
}

/// A page of objects.
pub type Listing = Listed<(String, ObjectRecord)>;
/// A page of uploads: key, upload ID, record.
pub type UploadListing = Listed<(String, String, UploadRecord)>;

/// The first text after all that begin with `prefix`. `None`: there is none.
fn after_all(prefix: &str) -> Option<String> {
    let last = prefix.chars().next_back()?;
    let rest = &prefix[..prefix.len() - last.len_utf8()];
    match last {
        // No text with this beginning comes after it.
        char::MAX => after_all(rest),
        '\u{D7FF}' => Some(format!("{rest}\u{E000}")),
        _ => char::from_u32(u32::from(last) + 1).map(|next| format!("{rest}{next}")),
    }
}

/// What to do with a key.
enum Step {
    Take,
    Prefix(String),
    Jump(String),
}

impl ListQuery {
    /// The common prefix that `key` (which has the prefix) falls under.
    fn common<'a>(&self, key: &'a str) -> Option<&'a str> {
        let delimiter = self.delimiter?;
        let at = key[self.prefix.len()..].find(delimiter)?;
        Some(&key[..self.prefix.len() + at + delimiter.len_utf8()])
    }

    fn step(&self, key: &str) -> Step {
        match self.common(key) {
            None => Step::Take,
            Some(common) if self.marker.starts_with(common) => Step::Jump(common.to_owned()),
            Some(common) => Step::Prefix(common.to_owned()),
        }
    }
}

/// A row that a listing walks over.
struct Row<T> {
    bucket_matches: bool,
    key: String,
    upload_id: String,
    value: T,
}

/// Where the walk begins: key and upload ID, and whether that very row is left out.
struct Start {
    key: String,
    upload_id: String,
    inclusive: bool,
}

/// Walks rows in order. `walk(start)` gives the rows from there on; `decode` reads the value of a row that is listed.
fn list<R, I, T>(
    query: &ListQuery,
    walk: impl Fn(&Start) -> Result<I>,
    mut decode: impl FnMut(Row<R>) -> Result<T>,
) -> Result<Listed<T>>
where
    I: Iterator<Item = Result<Row<R>>>,
{
    let mut page = Listed {
        entries: Vec::new(),
        prefixes: Vec::new(),
        truncated: false,
        next_marker: String::new(),
        next_upload_id: String::new(),
    };
    if query.max == 0 {
        return Ok(page);
    }
    let mut start = if query.marker < query.prefix {
        Start { key: query.prefix.clone(), upload_id: String::new(), inclusive: true }
    } else if query.marker.is_empty() {
        Start { key: String::new(), upload_id: String::new(), inclusive: true }
    } else if query.upload_id_marker.is_empty() {
        // The next text after the marker is the marker and a NUL.
        Start { key: format!("{}\0", query.marker), upload_id: String::new(), inclusive: true }
    } else {
        Start { key: query.marker.clone(), upload_id: query.upload_id_marker.clone(), inclusive: false }
    };
    'seek: loop {
        for row in walk(&start)? {
            let row = row?;
            if !row.bucket_matches || !row.key.starts_with(&query.prefix) {
                return Ok(page);
            }
            let step = query.step(&row.key);
            let passed = match step {
                Step::Jump(common) => common,
                _ if page.entries.len() + page.prefixes.len() == query.max => {
                    page.truncated = true;
                    return Ok(page);
                }
                Step::Take => {
                    page.next_marker.clone_from(&row.key);
                    page.next_upload_id.clone_from(&row.upload_id);
                    page.entries.push(decode(row)?);
                    continue;
                }
                Step::Prefix(common) => {
                    page.next_marker = row.key;
                    page.next_upload_id = row.upload_id;
                    page.prefixes.push(common.clone());
                    common
                }
            };
            let Some(key) = after_all(&passed) else { return Ok(page) };
            start = Start { key, upload_id: String::new(), inclusive: true };
            continue 'seek;
        }
        return Ok(page);
    }
}

impl Snapshot {
    /// ListObjects.
    pub fn list_objects(&self, bucket: &str, query: &ListQuery) -> Result<Listing> {
        self.bucket(bucket)?;
        let table = self.table(OBJECTS)?;
        let walk = |start: &Start| {
            let rows = table.range((bucket, start.key.as_str())..).map_err(ApiError::internal)?;
            Ok(rows.map(|row| {
                let (key, value) = row.map_err(ApiError::internal)?;
                let (of, name) = key.value();
                let (bucket_matches, key) = (of == bucket, name.to_owned());
                Ok(Row { bucket_matches, key, upload_id: String::new(), value })
            }))
        };
        list(query, walk, |row| {
            let record = serde_json::from_slice(row.value.value()).map_err(ApiError::internal)?;
            Ok((row.key, record))
        })
    }

    /// ListMultipartUploads.
    pub fn list_uploads(&self, bucket: &str, query: &ListQuery) -> Result<UploadListing> {
        self.bucket(bucket)?;
        let table = self.table(UPLOADS)?;
        let walk = |start: &Start| {
            let from = (bucket, start.key.as_str(), start.upload_id.as_str());
            let from = if start.inclusive { Bound::Included(from) } else { Bound::Excluded(from) };
            let rows = table.range((from, Bound::Unbounded)).map_err(ApiError::internal)?;
            Ok(rows.map(|row| {
                let (key, value) = row.map_err(ApiError::internal)?;
                let (of, name, upload_id) = key.value();
                let (bucket_matches, key, upload_id) = (of == bucket, name.to_owned(), upload_id.to_owned());
                Ok(Row { bucket_matches, key, upload_id, value })
            }))
        };
        list(query, walk, |row| {
            let record = serde_json::from_slice(row.value.value()).map_err(ApiError::internal)?;
            Ok((row.key, row.upload_id, record))
        })
    }
}
