//! The hidden directory `.bosfs`: the journal and the state of the mount, readable with `cat`.
//!
//! It is found by name and never listed. Each open takes a snapshot, which all its reads see.

use std::sync::Arc;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sha2::{Digest as _, Sha256};

use super::Fs;
use super::error::{FsError, FsResult};
use crate::namespace::inode::Kind;
use crate::object::{FileAttrs, NAME_BYTES_MAX, Timestamp};
use crate::posix_meta::{S_IFDIR, S_IFREG};
use crate::upload::DirtyFile;

/// Name of the directory, in the root of the mount.
pub const DIR_NAME: &str = ".bosfs";
const STATUS: &str = "status.json";
const SHADOWED: &str = "shadowed.json";
const UPLOADS: &str = "uploads";

/// Everything but what no shell, URL or file system minds.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// An entry that this mount makes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Virtual {
    /// `.bosfs`.
    Dir,
    /// `.bosfs/status.json`: what `bosfs status --json` prints.
    Status,
    /// `.bosfs/shadowed.json`: keys that the mount cannot show, with the reason.
    Shadowed,
    /// `.bosfs/uploads`.
    Uploads,
    /// `.bosfs/uploads/<name>`: one journaled file with its parts.
    Upload {
        /// Name in the directory.
        name: String,
    },
}

impl Virtual {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Virtual::Dir | Virtual::Uploads => Kind::Dir,
            Virtual::Status | Virtual::Shadowed | Virtual::Upload { .. } => Kind::File,
        }
    }

    /// Its inode number, where it is fixed.
    pub fn ino(&self) -> Option<u64> {
        match self {
            Virtual::Dir => Some(2),
            Virtual::Status => Some(3),
            Virtual::Shadowed => Some(4),
            Virtual::Uploads => Some(5),
            Virtual::Upload { .. } => None,
        }
    }

    /// Attributes: readable by the user who runs the mount, writable by nobody. The content has no size of its own, as
    /// it is made when it is read.
    pub fn attrs(&self) -> FileAttrs {
        let mode = match self.kind() {
            Kind::Dir => S_IFDIR | 0o500,
            Kind::File | Kind::Symlink => S_IFREG | 0o400,
        };
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        FileAttrs { mode, uid, gid, mtime: Timestamp::now() }
    }
}

/// Name of a key's file in `.bosfs/uploads`: percent-encoded, and beyond 255 bytes its hash.
pub fn upload_name(key: &str) -> String {
    let encoded = percent_encode(key.as_bytes(), ESCAPED).to_string();
    let name = format!("{encoded}.json");
    if name.len() <= NAME_BYTES_MAX { name } else { format!("{}.json", hex::encode(Sha256::digest(key.as_bytes()))) }
}

impl Fs {
    /// The entry `name` of a made-up directory.
    pub(super) fn virtual_child(&self, dir: &Virtual, name: &str) -> FsResult<Virtual> {
        match (dir, name) {
            (Virtual::Dir, STATUS) => Ok(Virtual::Status),
            (Virtual::Dir, SHADOWED) => Ok(Virtual::Shadowed),
            (Virtual::Dir, UPLOADS) => Ok(Virtual::Uploads),
            (Virtual::Uploads, _) if self.virtual_upload(name).is_some() => {
                Ok(Virtual::Upload { name: name.to_owned() })
            }
            _ => Err(FsError::ABSENT),
        }
    }

    /// The names in a made-up directory.
    pub(super) fn virtual_names(&self, dir: &Virtual) -> Vec<(String, Kind)> {
        match dir {
            Virtual::Dir => {
                vec![(STATUS.into(), Kind::File), (SHADOWED.into(), Kind::File), (UPLOADS.into(), Kind::Dir)]
            }
            Virtual::Uploads => {
                let files = self.unfinished();
                files.iter().map(|file| (upload_name(file.key().as_str()), Kind::File)).collect()
            }
            Virtual::Status | Virtual::Shadowed | Virtual::Upload { .. } => Vec::new(),
        }
    }

    /// The content of a made-up file at this moment.
    pub(super) fn virtual_content(&self, file: &Virtual) -> FsResult<Bytes> {
        match file {
            Virtual::Status => Ok(Bytes::from((self.status_json)())),
            Virtual::Shadowed => {
                let entries: Vec<_> = self.namespace.shadowed();
                let entries: Vec<_> = entries
                    .into_iter()
                    .map(|(key, reason)| serde_json::json!({ "key": key, "reason": reason }))
                    .collect();
                Ok(pretty(&entries))
            }
            Virtual::Upload { name } => self.virtual_upload(name).ok_or(FsError::ABSENT),
            Virtual::Dir | Virtual::Uploads => Err(FsError::plain(libc::EISDIR)),
        }
    }

    /// Dirty files that are so not in name only.
    fn unfinished(&self) -> Vec<Arc<DirtyFile>> {
        let mut files = self.uploads.files();
        files.retain(|file| file.settled().is_none());
        files
    }

    fn virtual_upload(&self, name: &str) -> Option<Bytes> {
        let files = self.unfinished();
        let file = files.iter().find(|file| upload_name(file.key().as_str()) == name)?;
        Some(pretty(&file.status(true)))
    }
}

fn pretty(value: &impl serde::Serialize) -> Bytes {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_uploads_are_names_whatever_the_key() {
        assert_eq!(upload_name("a/b c.iso"), "a%2Fb%20c.iso.json");
        let fits = "k".repeat(250);
        assert_eq!(upload_name(&fits), format!("{fits}.json"));
        let long = "k".repeat(251);
        assert_eq!(upload_name(&long).len(), 69);
        assert_ne!(upload_name(&long), upload_name(&"k".repeat(252)));
    }
}
