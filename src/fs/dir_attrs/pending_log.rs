//! Attributes of directories that BOS was not told yet, kept across a crash: one line per act, appended.
//!
//! A line is `CCCCCCCC JSON`, with the CRC32C of the JSON in hex. Lines behind the first damaged one were never written
//! whole and are cut off. With nothing pending the file is empty.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, checksum};
use serde::{Deserialize, Serialize};

use crate::namespace::attributes::Modified;
use crate::object::FileAttrs;

/// Name of the file in the state directory.
const FILE_NAME: &str = "dir-attributes.log";
/// Beyond this size the file is written anew with what is still pending.
const BYTES_MAX: u64 = 4 << 20;

/// Attributes on their way to the marker of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What the marker shall carry.
    pub attrs: FileAttrs,
    /// When the marker that is to be replaced was stored; `None`: there was none, or it is not known.
    pub base: Option<Modified>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Set { prefix: String, wanted: Wanted },
    Done { prefix: String },
}

/// The open log.
pub struct PendingLog {
    path: PathBuf,
    /// `None` after a failure: what changes from then on does not outlive this process.
    file: Option<File>,
    bytes: u64,
}

impl PendingLog {
    /// Opens the log in the state directory `dir` and gives what was pending when it was last written.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(dir: &Path) -> io::Result<(Self, BTreeMap<String, Wanted>)> {
        let path = dir.join(FILE_NAME);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let pending = fold(&text);
        let mut log = Self { path, file: None, bytes: 0 };
        log.rewrite(&pending)?;
        Ok((log, pending))
    }

    /// The line that [`PendingLog::set`] appends.
    ///
    /// # Errors
    /// The values are none that JSON has.
    pub fn line_of(prefix: &str, wanted: Wanted) -> io::Result<Vec<u8>> {
        format_line(&Line::Set { prefix: prefix.to_owned(), wanted }).map(String::into_bytes)
    }

    /// `wanted` is to be the state of the directory with `prefix`. Survives a kill of this process from here on.
    ///
    /// # Errors
    /// What the disk says; nothing was accepted.
    pub fn set(&mut self, prefix: &str, wanted: Wanted) -> io::Result<()> {
        self.append(&Line::Set { prefix: prefix.to_owned(), wanted })
    }

    /// The directory with `prefix` has nothing pending any more; `pending` is what others have.
    pub fn done<'a>(&mut self, prefix: &str, pending: impl Iterator<Item = (&'a String, Wanted)>) {
        let mut pending = pending.peekable();
        let written = if pending.peek().is_none() {
            self.truncate()
        } else {
            self.append(&Line::Done { prefix: prefix.to_owned() }).and_then(|()| {
                if self.bytes <= BYTES_MAX {
                    return Ok(());
                }
                self.rewrite(&pending.map(|(prefix, wanted)| (prefix.clone(), wanted)).collect())
            })
        };
        if let Err(error) = written {
            // The next mount finds the marker as wanted and drops the line.
            log::warn!("{} cannot be written: {error}", self.path.display());
        }
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let text = format_line(line)?;
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("the log could not be written before"))?;
        if let Err(error) = file.write_all(text.as_bytes()) {
            // A torn line would hide all lines behind it.
            file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += text.len() as u64;
        Ok(())
    }

    fn truncate(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.set_len(0)?;
            self.bytes = 0;
        }
        Ok(())
    }

    /// Writes the file anew, aside and then in place.
    fn rewrite(&mut self, pending: &BTreeMap<String, Wanted>) -> io::Result<()> {
        let mut text = String::new();
        for (prefix, wanted) in pending {
            text += &format_line(&Line::Set { prefix: prefix.clone(), wanted: *wanted })?;
        }
        let aside = self.path.with_extension("new");
        std::fs::remove_file(&aside).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        let mut file = File::options().append(true).create(true).mode(0o600).open(&aside)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&aside, &self.path)?;
        self.file = Some(file);
        self.bytes = text.len() as u64;
        Ok(())
    }
}

fn format_line(line: &Line) -> io::Result<String> {
    let json = serde_json::to_string(line)?;
    Ok(format!("{:08x} {json}\n", crc32c(json.as_bytes())))
}

fn crc32c(bytes: &[u8]) -> u32 {
    // The low 32 bits of the library's 64-bit result.
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// What is pending after these lines: the bytes of the file.
pub fn fold(text: &[u8]) -> BTreeMap<String, Wanted> {
    let mut pending = BTreeMap::new();
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    for line in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let parsed = line.split_at_checked(9).and_then(|(head, json)| {
            let sum = u32::from_str_radix(std::str::from_utf8(head).ok()?.trim_end(), 16).ok()?;
            (sum == crc32c(json)).then(|| serde_json::from_slice(json).ok())?
        });
        match parsed {
            Some(Line::Set { prefix, wanted }) => pending.insert(prefix, wanted),
            Some(Line::Done { prefix }) => pending.remove(&prefix),
            None => {
                log::warn!("{FILE_NAME} has a damaged line; attributes of directories set after it may be lost");
                break;
            }
        };
    }
    pending
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Timestamp;

    fn wanted(mode: u32) -> Wanted {
        let attrs = FileAttrs { mode, uid: 1, gid: 2, mtime: Timestamp { sec: 3, nsec: 4 } };
        Wanted { attrs, base: Some(Modified::At(5)) }
    }

    #[test]
    fn what_is_not_done_is_pending_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, pending) = PendingLog::open(dir.path()).unwrap();
        assert!(pending.is_empty());
        log.set("a/", wanted(1)).unwrap();
        log.set("b/", wanted(2)).unwrap();
        log.set("a/", wanted(3)).unwrap();
        log.done("b/", [(&"a/".to_owned(), wanted(3))].into_iter());
        let (mut log, pending) = PendingLog::open(dir.path()).unwrap();
        assert_eq!(pending, BTreeMap::from([("a/".to_owned(), wanted(3))]));
        log.done("a/", std::iter::empty());
        assert_eq!(std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().len(), 0);
        log.set("c/", wanted(4)).unwrap();
        assert_eq!(PendingLog::open(dir.path()).unwrap().1.len(), 1);
    }

    #[test]
    fn a_torn_or_damaged_line_ends_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let (mut log, _) = PendingLog::open(dir.path()).unwrap();
        log.set("a/", wanted(1)).unwrap();
        let first = std::fs::read(&path).unwrap();
        log.set("b/", wanted(2)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            let expected = usize::from(cut >= first.len()) + usize::from(cut == whole.len());
            assert_eq!(fold(&whole[..cut]).len(), expected, "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x20;
            let found = fold(&damaged);
            assert!(
                found
                    .iter()
                    .all(|(prefix, w)| (prefix == "a/" && *w == wanted(1)) || (prefix == "b/" && *w == wanted(2)))
            );
        }
    }

    #[test]
    fn the_log_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = PendingLog::open(dir.path()).unwrap();
        let other = "other/".to_owned();
        log.set(&other, wanted(9)).unwrap();
        for i in 0..40_000 {
            log.set("a/", wanted(i)).unwrap();
            log.done("a/", [(&other, wanted(9))].into_iter());
        }
        assert!(std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().len() <= BYTES_MAX);
        assert_eq!(PendingLog::open(dir.path()).unwrap().1, BTreeMap::from([(other, wanted(9))]));
    }
}
