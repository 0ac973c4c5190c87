//! The data files: made under a number of their own, kept once the index names them, removed when nobody reads them.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::records::SMALL_BIT;

/// Numbers of one start of the server: `generation << GENERATION_SHIFT` and up.
const GENERATION_SHIFT: u32 = 40;

/// Makes, opens and removes data files. A number is never used twice.
pub struct DataFiles {
    dir: PathBuf,
    next: AtomicU64,
    readers: Mutex<Readers>,
}

/// Who reads since when, and which files died since when. A file goes when no reader is older than its death.
#[derive(Default)]
struct Readers {
    clock: u64,
    active: BTreeMap<u64, usize>,
    dead: VecDeque<(u64, u64)>,
}

/// Keeps every file that was named by the index when this was made.
pub struct ReadPin {
    files: Arc<DataFiles>,
    since: u64,
}

/// A data file that nothing names yet: removed when dropped, unless kept.
pub struct NewFile {
    /// Its number.
    pub number: u64,
    /// Open for writing.
    pub file: File,
    path: PathBuf,
    kept: bool,
}

impl DataFiles {
    /// Files below `dir`; `generation` is one that no earlier start used.
    pub fn open(dir: &Path, generation: u64) -> io::Result<Arc<Self>> {
        for low in 0..=255u8 {
            DirBuilder::new().recursive(true).mode(0o700).create(dir.join(format!("{low:02x}")))?;
        }
        let next = AtomicU64::new(generation << GENERATION_SHIFT);
        Ok(Arc::new(Self { dir: dir.to_owned(), next, readers: Mutex::default() }))
    }

    /// A number that no file and no row had before.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{:02x}/{number:016x}", number & 0xff))
    }

    /// A new, empty file.
    pub fn create(&self) -> io::Result<NewFile> {
        let number = self.number();
        let path = self.path(number);
        let file = File::options().write(true).read(true).create_new(true).mode(0o600).open(&path)?;
        Ok(NewFile { number, file, path, kept: false })
    }

    /// Opens a file for reading.
    pub fn open_file(&self, number: u64) -> io::Result<File> {
        File::open(self.path(number))
    }

    /// Keeps all present files until the pin is dropped. To be taken before the index is read.
    pub fn pin(self: &Arc<Self>) -> ReadPin {
        let mut readers = self.readers.lock();
        let since = readers.clock;
        *readers.active.entry(since).or_default() += 1;
        ReadPin { files: self.clone(), since }
    }

    /// Removes files that the index no longer names, as soon as no reader may need them.
    pub fn remove(&self, numbers: &[u64]) {
        let mut readers = self.readers.lock();
        readers.clock += 1;
        let died = readers.clock;
        readers.dead.extend(numbers.iter().map(|number| (died, *number)));
        self.reap(&mut readers);
    }

    fn reap(&self, readers: &mut Readers) {
        let oldest = readers.active.keys().next().copied().unwrap_or(u64::MAX);
        while let Some((died, number)) = readers.dead.front().copied() {
            if died > oldest {
                break;
            }
            readers.dead.pop_front();
            self.unlink(number);
        }
    }

    fn unlink(&self, number: u64) {
        let path = self.path(number);
        if let Err(error) = std::fs::remove_file(&path) {
            log::warn!("cannot remove {}, the next start tries again: {error}", path.display());
        }
    }

    /// Removes the files of earlier starts that `is_named` does not know. Returns how many.
    pub fn sweep(&self, generation: u64, mut is_named: impl FnMut(u64) -> bool) -> io::Result<usize> {
        let mut swept = 0;
        for low in 0..=255u8 {
            for entry in std::fs::read_dir(self.dir.join(format!("{low:02x}")))? {
                let entry = entry?;
                let Some(number) = entry.file_name().to_str().and_then(|name| u64::from_str_radix(name, 16).ok())
                else {
                    continue;
                };
                if number >> GENERATION_SHIFT < generation && number & SMALL_BIT == 0 && !is_named(number) {
                    std::fs::remove_file(entry.path())?;
                    swept += 1;
                }
            }
        }
        Ok(swept)
    }
}

impl Drop for ReadPin {
    fn drop(&mut self) {
        let mut readers = self.files.readers.lock();
        if let Some(count) = readers.active.get_mut(&self.since) {
            *count -= 1;
            if *count == 0 {
                readers.active.remove(&self.since);
            }
        }
        self.files.reap(&mut readers);
    }
}

impl NewFile {
    /// Waits until the medium has the bytes and the name.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    /// The index names it now.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove the unfinished {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> usize {
        (0..=255u8).map(|low| std::fs::read_dir(dir.join(format!("{low:02x}"))).unwrap().count()).sum()
    }

    #[test]
    fn a_removed_file_stays_while_an_older_reader_lives() {
        let dir = tempfile::tempdir().unwrap();
        let files = DataFiles::open(dir.path(), 1).unwrap();
        let new = files.create().unwrap();
        let number = new.number;
        new.keep();
        let older = files.pin();
        files.remove(&[number]);
        let younger = files.pin();
        assert!(files.open_file(number).is_ok());
        drop(older);
        assert!(files.open_file(number).is_err());
        drop(younger);
        assert_eq!(names(dir.path()), 0);
    }

    #[test]
    fn an_unfinished_file_goes_and_a_sweep_takes_unnamed_ones_of_earlier_starts() {
        let dir = tempfile::tempdir().unwrap();
        let files = DataFiles::open(dir.path(), 1).unwrap();
        drop(files.create().unwrap());
        assert_eq!(names(dir.path()), 0);
        let (a, b) = (files.create().unwrap(), files.create().unwrap());
        let named = a.number;
        a.keep();
        b.keep();
        let files = DataFiles::open(dir.path(), 2).unwrap();
        files.create().unwrap().keep();
        assert_eq!(files.sweep(2, |number| number == named).unwrap(), 1);
        assert_eq!(names(dir.path()), 2);
        assert!(files.open_file(named).is_ok());
    }
}
