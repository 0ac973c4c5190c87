//! The append-only file of records: [`Record`]s of a file's upload, or lines of another kind ([`Line`]).
//!
//! # Bytes on disk
//!
//! ```text
//! offset  bytes
//!      0      8  length of the JSON text, lowercase hex
//!      8      1  space
//!      9      8  CRC32C (Castagnoli) of the JSON text, lowercase hex
//!     17      1  space
//!     18      n  the record as one JSON object, 2 <= n <= 1 MiB, no raw newline
//!   18+n      1  newline
//! ```
//!
//! A line is valid when all of that holds; upper-case digits are not accepted, so that every changed bit shows.
//!
//! # What a reader finds
//!
//! - Valid lines to the end: fine.
//! - Valid lines, then bytes that hold no valid line any more: a *torn tail*. A kill or power loss met the last
//!   append(s), none of which had been answered as synced. [`Journal::open`] cuts it off before anything is appended.
//! - A line that is not valid with a valid one behind it: *damage*. Something else than an append changed the file. It is
//!   left as it is, and nothing is appended. After a restart of the machine it may also be lines that were never synced, of
//!   which the disk has some: whoever knows that no synced line lies behind may [`RecordLog::cut_damage`].
//! - A valid line that this version cannot read: treated like damage; a newer bosfs wrote it.
//!
//! # Failing appends
//!
//! An append is one `write(2)` on a descriptor with `O_APPEND`. When the disk is full, what arrived is cut back, and the append
//! never was: with room again the next one succeeds. When the write fails otherwise or cannot be cut back, the journal
//! latches: it refuses every later append, so that the file always holds whole lines. A failed sync latches too, since the
//! kernel reports a lost page only once. [`Journal::open`] on the same directory begins anew.
//!
//! # Checkpoints
//!
//! A journal that has grown is replaced by a shorter one that folds to the same state. [`RecordLog::begin_checkpoint`]
//! writes it as `journal.new` beside the old one; from there on every line goes to both, and a [`JournalSync`] syncs both.
//! The caller syncs the new one ([`RecordLog::sync_handle`]) without holding anything, and
//! [`RecordLog::finish_checkpoint`] renames it over the old one. A crash before the rename leaves the old journal, which is
//! whole, and a `journal.new` that [`RecordLog::open`] removes.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crc_fast::{CrcAlgorithm, checksum};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Record;

/// Name of the file within an upload's directory.
pub const JOURNAL_NAME: &str = "journal";
/// Name of a checkpoint that is not in force yet.
pub const CHECKPOINT_NAME: &str = "journal.new";
/// Longest JSON text of a line, bytes. The longest real one, `Partial` of a finely scattered block, has about 64 KiB.
pub const LINE_JSON_BYTES_MAX: usize = 1 << 20;
/// Longest journal that is read, bytes: about 5 million lines, 250 times what the largest upload needs.
pub const JOURNAL_BYTES_MAX: u64 = 1 << 30;

/// Bytes of a journal that are looked through for a hint.
const HINT_BYTES: u64 = 64 << 10;
/// Bytes before the JSON text.
const HEAD_BYTES: usize = 18;
/// How many bytes the search for a valid line behind a bad one may checksum, beyond the length of the file itself.
const SEARCH_BYTES_MAX: usize = 64 << 20;

/// Most gaps between valid lines, behind a damaged one, that are looked over.
const GAPS_MAX: u32 = 256;

/// A kind of record that a journal is made of.
pub trait Line: Serialize + DeserializeOwned {
    /// Highest version of the format that this bosfs reads.
    const FORMAT: u32;

    /// Version that the record names, where its kind does (first lines).
    fn format(&self) -> Option<u32>;

    /// Checks what the types leave open, so that whoever folds records may rely on it.
    ///
    /// # Errors
    /// What is wrong, to stand behind the number of the line.
    fn check(&self) -> Result<(), String>;
}

/// What the journal needs of its file; tests put full disks and failing syncs in its place.
pub(crate) trait JournalFile: Send + Sync {
    /// One `write(2)` at the end of the file: the number of bytes that arrived.
    fn write(&mut self, line: &[u8]) -> io::Result<usize>;
    /// `fdatasync(2)`.
    fn sync(&self) -> io::Result<()>;
    /// Present length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts the file to `len` bytes.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Another descriptor of the same file.
    fn sync_handle(&self) -> io::Result<File>;
}

impl JournalFile for File {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        loop {
            match (&*self).write(line) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
    fn sync_handle(&self) -> io::Result<File> {
        self.try_clone()
    }
}

/// A journal that could not be read, written or synced. Travels inside [`io::Error`]; [`errno_of`] finds its errno again.
#[derive(Debug)]
struct JournalFailure {
    path: PathBuf,
    errno: Option<i32>,
    message: String,
}

impl fmt::Display for JournalFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "journal {}: {}", self.path.display(), self.message)
    }
}

impl std::error::Error for JournalFailure {}

fn failure(path: &Path, kind: io::ErrorKind, errno: Option<i32>, message: String) -> io::Error {
    io::Error::new(kind, JournalFailure { path: path.to_owned(), errno, message })
}

/// Puts the name of the journal and what was being done before `error`, and keeps its errno.
fn explain(path: &Path, doing: &str, error: &io::Error) -> io::Error {
    failure(path, error.kind(), error.raw_os_error(), format!("{doing}: {error}"))
}

/// The errno behind an error of this module or of the system; `EIO` where there is none.
pub fn errno_of(error: &io::Error) -> i32 {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<JournalFailure>()).and_then(|f| f.errno);
    error.raw_os_error().or(inner).unwrap_or(libc::EIO)
}

/// The journal of one file's upload.
pub type Journal = RecordLog<Record>;
/// What was read back of it.
pub type Replay = RecordReplay<Record>;

/// Second descriptors of a journal, and of the checkpoint that is about to replace it: synced without holding the journal.
#[derive(Debug)]
pub struct JournalSync(Vec<File>);

impl JournalSync {
    /// `fdatasync(2)` of all.
    ///
    /// # Errors
    /// Those of the disk; to be told by [`Journal::sync_failed`].
    pub fn sync_data(&self) -> io::Result<()> {
        self.0.iter().try_for_each(File::sync_data)
    }
}

/// A checkpoint that is being made beside its journal.
struct Next {
    file: File,
    len: u64,
    /// Its length without the lines that came since it was begun.
    begun_with: u64,
}

/// An open journal. The first failed write or sync latches: later calls refuse.
pub struct RecordLog<R> {
    records: PhantomData<fn(R)>,
    file: Box<dyn JournalFile>,
    path: PathBuf,
    /// Length up to the last whole line, bytes.
    len: u64,
    /// The line being made, kept to spare an allocation per append.
    line: Vec<u8>,
    /// Why nothing more may be appended, with the errno to report.
    latched: Option<(String, Option<i32>)>,
    /// Lines of it may be on stable storage: somebody asked for a sync, or an earlier process may have.
    may_be_synced: AtomicBool,
    /// What is going to take its place.
    next: Option<Next>,
}

impl<R> fmt::Debug for RecordLog<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("path", &self.path)
            .field("len", &self.len)
            .field("latched", &self.latched)
            .finish_non_exhaustive()
    }
}

/// What was read back.
#[derive(Debug)]
pub struct RecordReplay<R> {
    /// All valid records, in order. Empty with `torn_bytes`: the journal was just being created and records nothing.
    pub records: Vec<R>,
    /// Bytes of a torn tail that were cut off ([`Journal::open`]) or passed over ([`Journal::read`]).
    pub torn_bytes: u64,
    /// A damaged line before valid ones: the journal must not be trusted beyond it (says where and what).
    pub damage: Option<String>,
    /// Where the valid lines before the damage end, if it is a line whose checksum does not hold.
    pub damaged_at: Option<u64>,
    /// Valid records behind the damage. They must not be folded: what lay between is lost.
    pub behind: Vec<R>,
}

impl<R> Default for RecordReplay<R> {
    fn default() -> Self {
        Self { records: Vec::new(), torn_bytes: 0, damage: None, damaged_at: None, behind: Vec::new() }
    }
}

impl<R: Line> RecordReplay<R> {
    /// What the bytes of a journal's file say; a torn tail is passed over.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        replay(bytes)
    }
}

/// The line that [`RecordLog::append`] writes for `record`.
///
/// # Errors
/// It has more than [`LINE_JSON_BYTES_MAX`] bytes of JSON.
pub fn line_of<R: Line>(record: &R) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    encode(record, &mut line)?;
    Ok(line)
}

impl<R: Line> RecordLog<R> {
    /// Creates `dir/journal` (0600) with its first record. Not synced: see `StateDir::sync_upload`.
    ///
    /// # Errors
    /// The file exists or cannot be made or written; then none is left behind.
    pub fn create(dir: &Path, first: &R) -> io::Result<Self> {
        let path = dir.join(JOURNAL_NAME);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| explain(&path, "cannot be created", &e))?;
        let mut journal = Self::over(Box::new(file), path, 0);
        if let Err(error) = journal.append(first) {
            // Best effort: an empty journal is recognised as one that records nothing.
            let _ = std::fs::remove_file(&journal.path);
            return Err(error);
        }
        Ok(journal)
    }

    /// Reads `dir/journal`; a torn tail is cut off (only when `damage` is `None`). With damage, the journal returned
    /// refuses every append.
    ///
    /// # Errors
    /// The file is missing, no regular file, unreadable, longer than [`JOURNAL_BYTES_MAX`], or cannot be cut.
    pub fn open(dir: &Path) -> io::Result<(Self, RecordReplay<R>)> {
        let path = dir.join(JOURNAL_NAME);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .map_err(|e| explain(&path, "cannot be opened", &e))?;
        let bytes = read_whole(&file, &path)?;
        match std::fs::remove_file(dir.join(CHECKPOINT_NAME)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(explain(&path, "a checkpoint that was not finished cannot be removed", &e));
            }
            _ => {}
        }
        let replay = replay(&bytes);
        let mut journal = Self::over(Box::new(file), path, bytes.len() as u64 - replay.torn_bytes);
        journal.may_be_synced = AtomicBool::new(true);
        if let Some(damage) = &replay.damage {
            journal.latched = Some((format!("it is damaged ({damage})"), None));
        } else if replay.torn_bytes > 0 {
            journal
                .file
                .truncate(journal.len)
                .map_err(|e| explain(&journal.path, "torn tail cannot be cut off", &e))?;
        }
        Ok((journal, replay))
    }

    /// Makes the damaged line and all behind it a torn tail, and cuts it off: for a journal whose last lines were not synced
    /// when the power failed.
    ///
    /// # Errors
    /// The file cannot be cut; the journal stays shut.
    pub fn cut_damage(&mut self, replay: &RecordReplay<R>) -> io::Result<()> {
        let Some(len) = replay.damaged_at else { return self.check_latch() };
        self.file.truncate(len).map_err(|e| explain(&self.path, "damaged lines cannot be cut off", &e))?;
        self.len = len;
        self.latched = None;
        Ok(())
    }

    /// Reads without changing or opening for append (for `uploads list`, `status`).
    ///
    /// # Errors
    /// As [`Journal::open`], but for cutting.
    pub fn read(dir: &Path) -> io::Result<RecordReplay<R>> {
        let path = dir.join(JOURNAL_NAME);
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .map_err(|e| explain(&path, "cannot be opened", &e))?;
        Ok(replay(&read_whole(&file, &path)?))
    }

    /// The value of `field` in the first line of `dir/journal`, whether or not that line is whole: who a journal that cannot be
    /// read speaks of. Only a hint: nothing vouches for it.
    pub fn hint(dir: &Path, field: &str) -> Option<String> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(dir.join(JOURNAL_NAME)).ok()?;
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(HINT_BYTES).read_to_end(&mut bytes).ok()?;
        let first = bytes.split(|byte| *byte == b'\n').next()?;
        let name = format!("\"{field}\":");
        let at = first.windows(name.len()).position(|window| window == name.as_bytes())? + name.len();
        serde_json::Deserializer::from_slice(&first[at..]).into_iter::<String>().next()?.ok()
    }

    /// Writes one record; it survives a kill of this process when this returns.
    ///
    /// # Errors
    /// The disk is full: nothing was appended. The write failed otherwise, or what arrived could not be cut back: the journal
    /// is latched. It was latched or damaged before, or the record has more than [`LINE_JSON_BYTES_MAX`] bytes (which
    /// changes nothing).
    pub fn append(&mut self, record: &R) -> io::Result<()> {
        self.check_latch()?;
        encode(record, &mut self.line).map_err(|e| explain(&self.path, "a record cannot be encoded", &e))?;
        let (message, errno) = match self.file.write(&self.line) {
            Ok(n) if n == self.line.len() => {
                self.len += n as u64;
                self.append_to_next();
                return Ok(());
            }
            Ok(n) => (format!("only {n} of {} bytes of a line could be written", self.line.len()), Some(libc::ENOSPC)),
            Err(e) => (format!("a line could not be written: {e}"), e.raw_os_error()),
        };
        let cut = self.file.truncate(self.len).and_then(|()| self.file.len());
        let left = match cut {
            Ok(len) if len == self.len => "the lines before it are whole",
            _ => "what arrived of it could not be cut back and is dropped when the journal is opened again",
        };
        let full = matches!(errno, Some(libc::ENOSPC | libc::EDQUOT));
        if full && matches!(cut, Ok(len) if len == self.len) {
            let kind = io::ErrorKind::StorageFull;
            return Err(failure(
                &self.path,
                kind,
                errno,
                format!("{message}; {left}; free some space, then try again"),
            ));
        }
        Err(self.latch(format!("{message}; {left}"), errno))
    }

    /// The line that was just appended, to the checkpoint that is being made. One that misses a line is given up.
    fn append_to_next(&mut self) {
        let Some(next) = &mut self.next else { return };
        match next.file.write_all(&self.line) {
            Ok(()) => next.len += self.line.len() as u64,
            Err(e) => {
                log::warn!("{}: no checkpoint is made of it now: {e}", self.path.display());
                self.abandon_checkpoint();
            }
        }
    }

    /// Begins to replace the journal by `lines`, which fold to the same state: see the module. One that is under way
    /// already is begun anew.
    ///
    /// # Errors
    /// The new file cannot be made; the journal is as it was.
    pub fn begin_checkpoint(&mut self, lines: &[R]) -> io::Result<()> {
        self.check_latch()?;
        self.abandon_checkpoint();
        let path = self.path.with_file_name(CHECKPOINT_NAME);
        let make = || -> io::Result<Next> {
            let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path)?;
            let (mut bytes, mut line) = (Vec::new(), Vec::new());
            for record in lines {
                encode(record, &mut line)?;
                bytes.extend_from_slice(&line);
            }
            (&file).write_all(&bytes)?;
            let len = bytes.len() as u64;
            Ok(Next { file, len, begun_with: len })
        };
        match make() {
            Ok(next) => {
                self.next = Some(next);
                Ok(())
            }
            Err(e) => {
                let _ = std::fs::remove_file(&path);
                Err(explain(&self.path, "no checkpoint of it can be written", &e))
            }
        }
    }

    /// Puts the checkpoint, which was synced since it was begun, in the journal's place. `false`: it was given up meanwhile.
    /// The directory is to be synced by the caller: until then a power loss may bring the old journal back, which is whole
    /// up to what was synced.
    ///
    /// # Errors
    /// The rename failed; the journal is as it was, and without a checkpoint.
    pub fn finish_checkpoint(&mut self) -> io::Result<bool> {
        if let Err(e) = self.check_latch() {
            self.abandon_checkpoint();
            return Err(e);
        }
        let Some(next) = self.next.take() else { return Ok(false) };
        let from = self.path.with_file_name(CHECKPOINT_NAME);
        if let Err(e) = std::fs::rename(&from, &self.path) {
            let _ = std::fs::remove_file(&from);
            return Err(explain(&self.path, "its checkpoint cannot be put in its place", &e));
        }
        self.file = Box::new(next.file);
        self.len = next.len;
        Ok(true)
    }

    /// Gives up a checkpoint that is being made, if there is one.
    pub fn abandon_checkpoint(&mut self) {
        if self.next.take().is_some()
            && let Err(e) = std::fs::remove_file(self.path.with_file_name(CHECKPOINT_NAME))
        {
            log::warn!("{}: a checkpoint that is given up cannot be removed: {e}", self.path.display());
        }
    }

    /// Bytes of lines that came since the checkpoint was begun that is being made; 0: none is.
    pub fn lines_beside_checkpoint(&self) -> u64 {
        self.next.as_ref().map_or(0, |next| next.len - next.begun_with)
    }

    /// Whether a checkpoint is being made.
    pub fn has_checkpoint(&self) -> bool {
        self.next.is_some()
    }

    /// Syncs all lines to stable storage.
    ///
    /// # Errors
    /// The sync failed (the journal is latched: some lines may be lost at power loss), or it was latched before.
    pub fn sync(&mut self) -> io::Result<()> {
        self.check_latch()?;
        self.file.sync().map_err(|e| self.sync_failed(&e))?;
        match self.next.as_ref().map(|next| next.file.sync_data()) {
            Some(Err(e)) => Err(self.sync_failed(&e)),
            _ => Ok(()),
        }
    }

    /// A second descriptor to sync without holding a lock around the journal. A failed sync must be told by
    /// [`Journal::sync_failed`].
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn sync_handle(&self) -> io::Result<JournalSync> {
        self.may_be_synced.store(true, Ordering::Relaxed);
        let next = self.next.as_ref().map(|next| next.file.try_clone());
        let both = std::iter::once(self.file.sync_handle()).chain(next).collect::<io::Result<Vec<File>>>();
        both.map(JournalSync).map_err(|e| explain(&self.path, "no second descriptor", &e))
    }

    /// Latches after a sync of a [`Journal::sync_handle`] failed, and returns the error to pass on.
    pub fn sync_failed(&mut self, error: &io::Error) -> io::Error {
        self.latch(format!("could not be synced to disk: {error}"), error.raw_os_error())
    }

    /// Refuses every later line, for the reason given.
    pub fn shut(&mut self, why: &str) {
        self.latch(why.to_owned(), Some(libc::EIO));
    }

    /// Whether lines of it may be on stable storage, so that a power loss may leave it without the later ones.
    pub fn may_be_synced(&self) -> bool {
        self.may_be_synced.load(Ordering::Relaxed)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of all whole lines, bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    fn over(file: Box<dyn JournalFile>, path: PathBuf, len: u64) -> Self {
        Self {
            records: PhantomData,
            file,
            path,
            len,
            line: Vec::new(),
            latched: None,
            may_be_synced: AtomicBool::new(false),
            next: None,
        }
    }

    fn latch(&mut self, message: String, errno: Option<i32>) -> io::Error {
        let error = failure(&self.path, io::ErrorKind::Other, errno, message.clone());
        self.latched.get_or_insert((message, errno));
        error
    }

    fn check_latch(&self) -> io::Result<()> {
        let Some((cause, errno)) = &self.latched else { return Ok(()) };
        let message = format!("takes no more lines: {cause}; mount again once the cause is gone, the bytes are kept");
        Err(failure(&self.path, io::ErrorKind::Other, *errno, message))
    }
}

fn read_whole(file: &File, path: &Path) -> io::Result<Vec<u8>> {
    let meta = file.metadata().map_err(|e| explain(path, "cannot be read", &e))?;
    if !meta.is_file() {
        return Err(failure(path, io::ErrorKind::InvalidInput, None, "is no regular file".into()));
    }
    let too_long = || {
        let message = format!("has more than {JOURNAL_BYTES_MAX} bytes, no upload needs that many; not read");
        failure(path, io::ErrorKind::InvalidData, None, message)
    };
    // The mount does not wait for the disk to read what is refused all the same.
    if meta.len() > JOURNAL_BYTES_MAX {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(JOURNAL_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| explain(path, "cannot be read", &e))?;
    if bytes.len() as u64 > JOURNAL_BYTES_MAX { Err(too_long()) } else { Ok(bytes) }
}

/// Makes `line` the whole line of `record`.
fn encode<R: Serialize>(record: &R, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    line.extend_from_slice(&[0; HEAD_BYTES]);
    serde_json::to_writer(&mut *line, record)?;
    let json = &line[HEAD_BYTES..];
    if json.len() > LINE_JSON_BYTES_MAX {
        let message = format!("it has {} bytes, a line takes {LINE_JSON_BYTES_MAX}", json.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let head = format!("{:08x} {:08x} ", json.len(), crc32c(json));
    line[..HEAD_BYTES].copy_from_slice(head.as_bytes());
    line.push(b'\n');
    Ok(())
}

fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Eight lowercase hex digits.
fn hex_field(bytes: &[u8]) -> Option<u32> {
    bytes.iter().try_fold(0u32, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u32::from(digit))
    })
}

/// Length of the JSON text that a line at the start of `bytes` has by its head, if all of it is there.
fn framed_len(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < HEAD_BYTES || bytes[8] != b' ' || bytes[17] != b' ' {
        return None;
    }
    let len = hex_field(&bytes[..8])? as usize;
    ((2..=LINE_JSON_BYTES_MAX).contains(&len) && bytes.get(HEAD_BYTES + len) == Some(&b'\n')).then_some(len)
}

/// The JSON text of the valid line at the start of `bytes`.
fn valid_line(bytes: &[u8]) -> Option<&[u8]> {
    let json = &bytes[HEAD_BYTES..HEAD_BYTES + framed_len(bytes)?];
    (hex_field(&bytes[9..17])? == crc32c(json)).then_some(json)
}

/// Offset of a valid line anywhere in `bytes` (not only behind a newline: that may be the damaged byte). Bytes that look
/// like more lines than the search may checksum count as one, since calling them a torn tail would delete them.
fn find_valid_line(bytes: &[u8], budget: &mut usize) -> Option<usize> {
    for at in 0..bytes.len().saturating_sub(HEAD_BYTES + 2) {
        // The cheap test first: this runs over every byte of a torn tail.
        if bytes[at + 8] != b' ' || bytes[at + 17] != b' ' {
            continue;
        }
        let Some(len) = framed_len(&bytes[at..]) else { continue };
        if len > *budget {
            *budget = 0;
            return Some(at);
        }
        if valid_line(&bytes[at..]).is_some() {
            return Some(at);
        }
        *budget -= len;
    }
    None
}

/// Folds the bytes of a journal into its records.
fn replay<R: Line>(bytes: &[u8]) -> RecordReplay<R> {
    let mut replay = RecordReplay::default();
    let mut at = 0;
    while at < bytes.len() {
        let line_number = replay.records.len() + 1;
        let Some(json) = valid_line(&bytes[at..]) else {
            let mut budget = bytes.len() + SEARCH_BYTES_MAX;
            match find_valid_line(&bytes[at + 1..], &mut budget) {
                Some(next) => {
                    let next = at + 1 + next;
                    replay.damage = Some(format!(
                        "line {line_number} at byte {at} is damaged, a valid line follows at byte {next}"
                    ));
                    if let Some(behind) = lines_behind(&bytes[next..], &mut budget) {
                        replay.damaged_at = Some(at as u64);
                        replay.behind = behind;
                    }
                }
                None => replay.torn_bytes = (bytes.len() - at) as u64,
            }
            break;
        };
        match decode(json) {
            Ok(record) => replay.records.push(record),
            Err(why) => {
                replay.damage = Some(format!("line {line_number} at byte {at} {why}"));
                break;
            }
        }
        at += HEAD_BYTES + json.len() + 1;
    }
    replay
}

/// The records of all valid lines of `bytes`, whatever lies between them. `None`: there are more gaps than an append leaves
/// behind, or lines that this version cannot read, or more to checksum than `budget`.
fn lines_behind<R: Line>(bytes: &[u8], budget: &mut usize) -> Option<Vec<R>> {
    let (mut at, mut found, mut gaps) = (0, Vec::new(), 0);
    while at < bytes.len() {
        match valid_line(&bytes[at..]) {
            Some(json) => {
                found.push(decode(json).ok()?);
                at += HEAD_BYTES + json.len() + 1;
            }
            None if gaps == GAPS_MAX || *budget == 0 => return None,
            None => match find_valid_line(&bytes[at + 1..], budget) {
                Some(next) => (at, gaps) = (at + 1 + next, gaps + 1),
                None => break,
            },
        }
    }
    Some(found)
}

/// The record in a JSON text whose checksum holds.
fn decode<R: Line>(json: &[u8]) -> Result<R, String> {
    #[derive(serde::Deserialize)]
    struct Tag<'a> {
        #[serde(borrow)]
        t: Option<std::borrow::Cow<'a, str>>,
    }
    let record: R = serde_json::from_slice(json).map_err(|error| {
        let tag = serde_json::from_slice::<Tag>(json).ok().and_then(|tag| tag.t).unwrap_or_default();
        format!("(type {tag:?}) was written by another version of bosfs, use that or a newer one ({error})")
    })?;
    if let Some(format) = record.format().filter(|format| *format > R::FORMAT) {
        return Err(format!("has format {format}, this bosfs knows up to {}: use a newer one", R::FORMAT));
    }
    record.check()?;
    Ok(record)
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
