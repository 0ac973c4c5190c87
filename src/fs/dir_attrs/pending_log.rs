//! Attributes of directories that BOS was not told yet, kept across a crash: one line per act, appended.
//!
//! A line is `CCCCCCCC JSON`, with the CRC32C of the JSON in hex. Lines behind the first damaged one were never written
//! whole and are cut off. With nothing pending the file is empty.
//!
//! A line survives a kill of this process when it is written, and power loss once [`PendingLog::unsynced`] was synced.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
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
    /// Number of the last line that sets something; those of a file that was written anew count as one.
    written: u64,
    /// Number of the last such line that is certain to be on the disk.
    synced: u64,
    /// First line of the present file: the name of the file is certain with it.
    renewed: u64,
    /// Lines that are certain are in the file, which is too long: it must not be replaced by one that is not.
    too_long: bool,
    /// How often it was emptied.
    emptied: u64,
}

/// What has to be synced, without a lock held: see [`PendingLog::unsynced`].
pub struct Unsynced {
    file: File,
    dir: Option<PathBuf>,
    written: u64,
}

impl Unsynced {
    /// Syncs it; the number for [`PendingLog::synced`].
    ///
    /// # Errors
    /// The sync failed.
    pub fn sync(&self) -> io::Result<u64> {
        self.file.sync_data()?;
        if let Some(dir) = &self.dir {
            File::open(dir)?.sync_all()?;
        }
        Ok(self.written)
    }
}

/// A shorter file that is to take the place of the log: see [`PendingLog::shorter`].
pub struct Shorter {
    aside: PathBuf,
    text: String,
    from_bytes: u64,
    synced: u64,
    emptied: u64,
}

impl Shorter {
    /// Writes and syncs it beside the log.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self) -> io::Result<File> {
        let file = write_aside(&self.aside, &self.text)?;
        file.sync_all()?;
        Ok(file)
    }
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
        let mut log =
            Self { path, file: None, bytes: 0, written: 0, synced: 0, renewed: 1, too_long: false, emptied: 0 };
        // Lines that are certain stay so.
        log.rewrite(&pending, true)?;
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
        self.append(&Line::Set { prefix: prefix.to_owned(), wanted })?;
        self.written += 1;
        Ok(())
    }

    /// What no sync has made certain yet; `None`: nothing.
    ///
    /// # Errors
    /// No descriptor is free, or the log could not be written before.
    pub fn unsynced(&self) -> io::Result<Option<Unsynced>> {
        if self.synced >= self.written {
            return Ok(None);
        }
        let file = self.file.as_ref().ok_or_else(not_written)?.try_clone()?;
        let dir = self.path.parent().filter(|_| self.synced < self.renewed).map(Path::to_owned);
        Ok(Some(Unsynced { file, dir, written: self.written }))
    }

    /// A sync gave this number.
    pub fn synced(&mut self, written: u64) {
        self.synced = self.synced.max(written);
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
                if self.synced >= self.renewed {
                    self.too_long = true;
                    return Ok(());
                }
                self.rewrite(&pending.map(|(prefix, wanted)| (prefix.clone(), wanted)).collect(), false)
            })
        };
        if let Err(error) = written {
            // The next mount finds the marker as wanted and drops the line.
            log::warn!("{} cannot be written: {error}", self.path.display());
        }
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let text = format_line(line)?;
        let file = self.file.as_mut().ok_or_else(not_written)?;
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
            self.too_long = false;
            self.emptied += 1;
        }
        Ok(())
    }

    /// Writes the file anew, aside and then in place; `sync`: what is pending is certain in it before.
    fn rewrite(&mut self, pending: &BTreeMap<String, Wanted>, sync: bool) -> io::Result<()> {
        let text = text_of(pending)?;
        let aside = self.aside();
        let file = write_aside(&aside, &text)?;
        if sync && !text.is_empty() {
            file.sync_all()?;
        }
        std::fs::rename(&aside, &self.path)?;
        self.renewed = self.written + 1;
        self.written += u64::from(!text.is_empty());
        self.file = Some(file);
        self.bytes = text.len() as u64;
        Ok(())
    }

    fn aside(&self) -> PathBuf {
        self.path.with_extension("new")
    }

    /// Whether [`PendingLog::shorter`] has something to do.
    pub fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// The log with only what is `pending`, to be written and synced without a lock held, where the present one is too long
    /// and has lines that are certain. Then [`PendingLog::shorten`].
    ///
    /// # Errors
    /// The values are none that JSON has.
    pub fn shorter(&self, pending: &BTreeMap<String, Wanted>) -> io::Result<Option<Shorter>> {
        if !self.too_long {
            return Ok(None);
        }
        let (aside, text) = (self.aside(), text_of(pending)?);
        Ok(Some(Shorter { aside, text, from_bytes: self.bytes, synced: self.synced, emptied: self.emptied }))
    }

    /// Puts a shorter file, with the lines that were written since, in place of the log. One that is outdated stays aside.
    ///
    /// # Errors
    /// What the disk says; the log is as it was then.
    pub fn shorten(&mut self, shorter: &Shorter, mut file: File) -> io::Result<()> {
        // What was made certain meanwhile must not become uncertain; and an emptied log is short enough.
        if self.synced != shorter.synced || self.emptied != shorter.emptied {
            return Ok(());
        }
        let mut later = Vec::new();
        let mut present = File::open(&self.path)?;
        present.seek(io::SeekFrom::Start(shorter.from_bytes))?;
        present.take(self.bytes - shorter.from_bytes).read_to_end(&mut later)?;
        file.write_all(&later)?;
        std::fs::rename(&shorter.aside, &self.path)?;
        self.file = Some(file);
        self.bytes = shorter.text.len() as u64 + later.len() as u64;
        // Should the name be that of the former file after power loss, all that is certain now is in that one, too.
        self.renewed = self.written + 1;
        self.written += 1;
        self.too_long = false;
        Ok(())
    }
}

fn not_written() -> io::Error {
    io::Error::other("the log could not be written before")
}

fn text_of(pending: &BTreeMap<String, Wanted>) -> io::Result<String> {
    let mut text = String::new();
    for (prefix, wanted) in pending {
        text += &format_line(&Line::Set { prefix: prefix.clone(), wanted: *wanted })?;
    }
    Ok(text)
}

fn write_aside(aside: &Path, text: &str) -> io::Result<File> {
    std::fs::remove_file(aside).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
    let mut file = File::options().append(true).create(true).mode(0o600).open(aside)?;
    file.write_all(text.as_bytes())?;
    Ok(file)
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

    /// Syncs what is to be synced; whether the name of the file was among it.
    fn sync(log: &mut PendingLog) -> Option<bool> {
        let unsynced = log.unsynced().unwrap()?;
        log.synced(unsynced.sync().unwrap());
        Some(unsynced.dir.is_some())
    }

    #[test]
    fn only_what_is_new_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = PendingLog::open(dir.path()).unwrap();
        assert_eq!(sync(&mut log), None, "an empty log");
        log.set("a/", wanted(1)).unwrap();
        assert_eq!(sync(&mut log), Some(true));
        assert_eq!(sync(&mut log), None);
        log.set("b/", wanted(2)).unwrap();
        let begun = log.unsynced().unwrap().unwrap();
        log.set("c/", wanted(3)).unwrap();
        log.synced(begun.sync().unwrap());
        assert_eq!(sync(&mut log), Some(false), "a line behind the beginning of the sync");
        log.done("a/", [(&"b/".to_owned(), wanted(2))].into_iter());
        assert_eq!(sync(&mut log), None, "nobody asks for the end of a line");
        let (mut log, _) = PendingLog::open(dir.path()).unwrap();
        assert_eq!(sync(&mut log), Some(true), "a log that was written anew");
    }

    #[test]
    fn a_log_with_certain_lines_is_shortened_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = PendingLog::open(dir.path()).unwrap();
        let other = "other/".to_owned();
        log.set(&other, wanted(9)).unwrap();
        assert_eq!(sync(&mut log), Some(true));
        let pending = BTreeMap::from([(other.clone(), wanted(9))]);
        while log.shorter(&pending).unwrap().is_none() {
            log.set("a/", wanted(1)).unwrap();
            log.done("a/", [(&other, wanted(9))].into_iter());
        }
        let shorter = log.shorter(&pending).unwrap().unwrap();
        let file = shorter.write().unwrap();
        log.set("b/", wanted(2)).unwrap();
        log.shorten(&shorter, file).unwrap();
        log.set("c/", wanted(3)).unwrap();
        assert!(std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().len() < 2000);
        assert_eq!(sync(&mut log), Some(true), "the shorter file's name");
        let expected: BTreeMap<String, Wanted> =
            [(other.clone(), 9), ("b/".into(), 2), ("c/".into(), 3)].map(|(dir, mode)| (dir, wanted(mode))).into();
        assert_eq!(PendingLog::open(dir.path()).unwrap().1, expected);
        // What was made certain while it was written aside stays in the log that is there.
        let (mut log, _) = PendingLog::open(dir.path()).unwrap();
        assert_eq!(sync(&mut log), Some(true));
        log.too_long = true;
        let shorter = log.shorter(&pending).unwrap().unwrap();
        let file = shorter.write().unwrap();
        log.set("d/", wanted(4)).unwrap();
        assert_eq!(sync(&mut log), Some(false));
        log.shorten(&shorter, file).unwrap();
        assert!(log.too_long, "tried again");
        assert_eq!(PendingLog::open(dir.path()).unwrap().1.len(), 4);
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
