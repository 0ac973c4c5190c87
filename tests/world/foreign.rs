//! Uploads of other tools, which must never be touched (P8), and acts of other tools on a key.

use crate::support::World;
use crate::support::bucket::HeldPart;
use crate::support::files::random_bytes;

/// Unfinished uploads of somebody else for keys that bosfs works on.
pub struct ForeignUploads {
    uploads: Vec<(String, String, Vec<HeldPart>)>,
}

impl ForeignUploads {
    /// One with a part, for each of `keys`.
    pub fn begin(world: &World, keys: &[&str]) -> Self {
        let begin = |key: &&str| {
            let id = world.bucket.initiate(key).expect("initiate");
            world.bucket.upload_part(key, &id, 1, &random_bytes(7, 1000)).expect("a part");
            let parts = world.bucket.parts(key, &id).expect("parts");
            assert_eq!(parts.len(), 1);
            ((*key).to_owned(), id, parts)
        };
        Self { uploads: keys.iter().map(begin).collect() }
    }

    /// All are as they were.
    pub fn assert_untouched(&self, world: &World) {
        for (key, id, parts) in &self.uploads {
            let found = world.bucket.parts(key, id);
            assert_eq!(found.as_ref().ok(), Some(parts), "the foreign upload of {key}: {found:?}");
        }
    }

    pub fn ids(&self) -> Vec<&str> {
        self.uploads.iter().map(|(_, id, _)| id.as_str()).collect()
    }
}

/// What somebody else does to a key while a local write of it is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// An object where none was.
    Created,
    /// Other bytes.
    Changed,
    Deleted,
    /// Deleted, and the same bytes put again.
    PutAgain,
    /// Deleted, and `KEY/child` put.
    BecamePrefix,
    /// `KEY/child` put beside whatever is there.
    ChildAppeared,
}

/// Bytes of the base of every overwrite.
pub const BASE: &[u8] = b"the base, as it was when the file was opened";
/// What somebody else writes.
pub const OTHER: &[u8] = b"somebody else's";

impl Act {
    pub fn perform(self, world: &World, key: &str) {
        let bucket = &world.bucket;
        let child = format!("{key}/child");
        match self {
            Act::Created | Act::Changed => drop(bucket.put(key, OTHER).expect("put")),
            Act::Deleted => bucket.delete(key).expect("delete"),
            Act::PutAgain => {
                bucket.delete(key).expect("delete");
                bucket.put(key, BASE).expect("put");
            }
            Act::BecamePrefix => {
                bucket.delete(key).expect("delete");
                bucket.put(&child, OTHER).expect("put");
            }
            Act::ChildAppeared => drop(bucket.put(&child, OTHER).expect("put")),
        }
    }

    /// Whether our publication meets something else than it began with.
    pub fn is_conflict(self) -> bool {
        !matches!(self, Act::PutAgain | Act::ChildAppeared)
    }

    /// What is theirs is as they left it.
    pub fn assert_theirs_is_left(self, world: &World, key: &str) {
        let child = format!("{key}/child");
        match self {
            Act::Created | Act::Changed => assert_eq!(world.bucket.get(key).expect("their object"), OTHER, "{key}"),
            Act::Deleted | Act::BecamePrefix => {
                assert_eq!(world.bucket.head(key).expect("HEAD"), None, "{key} is there again");
            }
            Act::PutAgain | Act::ChildAppeared => {}
        }
        if matches!(self, Act::BecamePrefix | Act::ChildAppeared) {
            assert_eq!(world.bucket.get(&child).expect("their child"), OTHER);
        }
    }
}
