//! The headers of an object as the mount keeps them for every name it knows: in one piece, shared by all who hold them.
//!
//! `ObjectHeaders` spread over a map and a dozen strings take about 800 bytes; the same headers here take about 80.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bos::client::ObjectHeaders;
use crate::posix_meta::MARK;

/// Headers of an object, packed: for each a tag, the length of its value and the value; for metadata of other names the name
/// in the same way in front of the value.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "ObjectHeaders", into = "ObjectHeaders")]
pub struct PackedHeaders(Arc<[u8]>);

/// Tags of headers other than metadata, by their place in [`PackedHeaders::fields`].
const FIELDS: usize = 6;
/// Tag of metadata whose name stands in front of its value.
const NAMED: u8 = 8;
/// Tag of the first of [`NAMES`].
const NAMES_AT: u8 = 16;
/// Metadata names that every object of ours carries.
const NAMES: [&str; 6] = ["bosfs-gid", "bosfs-mode", "bosfs-mtime", "bosfs-mtime-nsec", "bosfs-uid", MARK];
/// Tag of the first of [`TYPES`], which has no value behind it.
const TYPES_AT: u8 = 64;
/// `Content-Type`s that most objects have.
const TYPES: [&str; 8] = [
    "application/octet-stream",
    "text/plain",
    "text/html",
    "application/json",
    "image/jpeg",
    "image/png",
    "text/x-rust",
    "application/x-directory",
];
/// A length below this has one byte, others five.
const LONG: u8 = 255;

impl PackedHeaders {
    /// The headers as they travel.
    pub fn unpack(&self) -> ObjectHeaders {
        let mut headers = ObjectHeaders::default();
        let mut rest = Unpacked(&self.0);
        while let Some(tag) = rest.byte() {
            let known_name = NAMES.get(usize::from(tag.wrapping_sub(NAMES_AT)));
            let known_type = TYPES.get(usize::from(tag.wrapping_sub(TYPES_AT)));
            if let Some(name) = known_name {
                headers.metadata.insert((*name).to_owned(), rest.text());
            } else if let Some(content_type) = known_type {
                headers.content_type = Some((*content_type).to_owned());
            } else if tag == NAMED {
                let name = rest.text();
                headers.metadata.insert(name, rest.text());
            } else {
                let value = Some(rest.text());
                match tag {
                    0 => headers.content_type = value,
                    1 => headers.cache_control = value,
                    2 => headers.content_encoding = value,
                    3 => headers.content_disposition = value,
                    4 => headers.expires = value,
                    _ => headers.storage_class = value,
                }
            }
        }
        headers
    }

    /// The metadata alone.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.unpack().metadata
    }

    /// Memory besides the value itself, bytes.
    pub fn heap_bytes(&self) -> usize {
        2 * size_of::<usize>() + self.0.len()
    }

    /// Whether both are the same piece of memory.
    #[cfg(test)]
    pub fn is_same_piece(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn fields(headers: &ObjectHeaders) -> [&Option<String>; FIELDS] {
        [
            &headers.content_type,
            &headers.cache_control,
            &headers.content_encoding,
            &headers.content_disposition,
            &headers.expires,
            &headers.storage_class,
        ]
    }
}

impl From<&ObjectHeaders> for PackedHeaders {
    fn from(headers: &ObjectHeaders) -> Self {
        let mut packed = Vec::new();
        for (tag, value) in (0..).zip(Self::fields(headers)) {
            let Some(value) = value else { continue };
            match TYPES.iter().position(|known| tag == 0 && known == value) {
                Some(at) => packed.push(TYPES_AT + at as u8),
                None => {
                    packed.push(tag);
                    push(&mut packed, value);
                }
            }
        }
        for (name, value) in &headers.metadata {
            match NAMES.iter().position(|known| known == name) {
                Some(at) => packed.push(NAMES_AT + at as u8),
                None => {
                    packed.push(NAMED);
                    push(&mut packed, name);
                }
            }
            push(&mut packed, value);
        }
        Self(packed.into())
    }
}

impl From<ObjectHeaders> for PackedHeaders {
    fn from(headers: ObjectHeaders) -> Self {
        Self::from(&headers)
    }
}

impl From<PackedHeaders> for ObjectHeaders {
    fn from(packed: PackedHeaders) -> Self {
        packed.unpack()
    }
}

impl Default for PackedHeaders {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl std::fmt::Debug for PackedHeaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.unpack().fmt(f)
    }
}

fn push(packed: &mut Vec<u8>, value: &str) {
    match u8::try_from(value.len()) {
        Ok(len) if len < LONG => packed.push(len),
        _ => {
            packed.push(LONG);
            // A header fits into an answer, which has far fewer bytes than this.
            packed.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
    }
    packed.extend_from_slice(value.as_bytes());
}

/// What is left to be unpacked.
struct Unpacked<'a>(&'a [u8]);

impl Unpacked<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn text(&mut self) -> String {
        let len = match self.byte() {
            Some(LONG) => {
                let (len, rest) = self.0.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
                self.0 = rest;
                u32::from_le_bytes(*len) as usize
            }
            len => usize::from(len.unwrap_or(0)),
        };
        let (text, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_a_file() -> ObjectHeaders {
        let metadata = [
            ("bosfs-gid", "1000"),
            ("bosfs-mode", "33188"),
            ("bosfs-mtime", "1764532427"),
            ("bosfs-mtime-nsec", "123456789"),
            ("bosfs-uid", "1000"),
            (MARK, "0123456789abcdef.1"),
        ];
        ObjectHeaders {
            content_type: Some("application/octet-stream".to_owned()),
            metadata: metadata.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..ObjectHeaders::default()
        }
    }

    #[test]
    fn headers_come_back_as_they_were() {
        let mut all = of_a_file();
        all.content_type = Some("text/x-unheard-of".to_owned());
        all.cache_control = Some(String::new());
        all.content_encoding = Some("gzip".to_owned());
        all.content_disposition = Some("\u{4e2d}".repeat(100));
        all.expires = Some("never".to_owned());
        all.storage_class = Some("COLD".to_owned());
        all.metadata.insert("foreign".to_owned(), "v".repeat(2000));
        all.metadata.insert("long".repeat(80), "w".repeat(254));
        all.metadata.insert("longer".to_owned(), "x".repeat(255));
        for headers in [all, of_a_file(), ObjectHeaders::default()] {
            let packed = PackedHeaders::from(&headers);
            assert_eq!(packed.unpack(), headers);
            let json = serde_json::to_string(&packed).unwrap();
            assert_eq!(json, serde_json::to_string(&headers).unwrap(), "rows on disk stay what they were");
            assert_eq!(serde_json::from_str::<PackedHeaders>(&json).unwrap(), packed);
        }
    }

    #[test]
    fn the_headers_of_a_file_take_eighty_bytes() {
        let packed = PackedHeaders::from(&of_a_file());
        assert_eq!(size_of::<PackedHeaders>(), 16);
        assert!(packed.heap_bytes() <= 84, "{} bytes", packed.heap_bytes());
    }
}
