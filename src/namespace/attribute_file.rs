//! The attribute memory on disk: small rows by name in `attributes.redb`.
//!
//! It is a cache. Rows are written by one thread, in batches, without waiting for the medium; after a power loss redb finds
//! by its checksums what is not whole, and a file that is damaged or of another format is thrown away. Every row carries
//! the day of its last use; beyond [`ROWS_MAX`] the rows unused for longest go.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, StorageBackend};
use redb::{Table, TableDefinition};

use crate::observe::expected_panic::panics_as_none;

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "attributes.redb";

const ROWS: TableDefinition<&str, &[u8]> = TableDefinition::new("rows");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Format of the rows; a file with another one is thrown away.
const FORMAT: u64 = 1;
/// Most rows that are kept: about 300 bytes each.
const ROWS_MAX: u64 = 1_000_000;
/// Rows that may wait for the writer; further ones are not remembered.
const PENDING_MAX: usize = 100_000;
/// A row is read again so often because a batch was written meanwhile; then it is not remembered.
const READS_MAX: u32 = 3;
/// Longest wait for a row that must be on disk at once.
const COMMIT_WITHIN: Duration = Duration::from_secs(5);
/// So many waiting rows are written at once.
const BATCH_ROWS: usize = 2_000;
/// Longest time that rows wait.
const BATCH_WITHIN: Duration = Duration::from_millis(500);
/// Memory of redb's page cache, bytes.
const CACHE_BYTES: usize = 8 << 20;
/// Bytes of the day of last use in front of every row.
const DAY_BYTES: usize = 4;

/// Writes that outlive this process, not power loss, until `syncs` is set for the end.
#[derive(Debug)]
struct Backend {
    file: File,
    syncs: Arc<AtomicBool>,
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        // The header that says "closed in order" must not reach the medium before what it stands for.
        if self.syncs.load(Ordering::Relaxed) { self.file.sync_data() } else { Ok(()) }
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
    fn close(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Rows by name; `None`: the row goes.
type Rows = HashMap<String, Option<Vec<u8>>>;

/// A row as it was read.
pub struct Row {
    row: Option<Vec<u8>>,
    /// Batches that were on disk then.
    commits: u64,
}

struct Pending {
    rows: Rows,
    /// Batches that came to the disk, or never will.
    commits: u64,
    stop: bool,
    /// Somebody waits for the rows.
    hurry: bool,
    /// The disk refused: nothing is written any more, reads go on.
    broken: bool,
}

/// What the row `name` will be on disk, if it waits to be written; `Some(None)`: gone.
fn waiting<'a>(pending: &'a (Pending, Arc<Rows>), name: &str) -> Option<Option<&'a Vec<u8>>> {
    pending.0.rows.get(name).or_else(|| pending.1.get(name)).map(Option::as_ref)
}

struct Shared {
    database: Database,
    /// What the writer has not committed yet, and what it commits at present.
    pending: Mutex<(Pending, Arc<Rows>)>,
    wake: Condvar,
    /// A batch is on disk, or never will be.
    committed: Condvar,
    rows_max: u64,
}

/// The open file. Dropping it writes what waits and closes it.
pub struct AttributeFile {
    shared: Option<Arc<Shared>>,
    writer: Option<JoinHandle<()>>,
    syncs: Arc<AtomicBool>,
}

impl AttributeFile {
    /// Opens, or makes, the file in the state directory `dir`. `None`, with a log line, when that is not possible: the
    /// mount then remembers in memory only.
    pub fn open(dir: &Path) -> Option<Self> {
        let path = dir.join(FILE_NAME);
        match Self::open_at(&path, ROWS_MAX) {
            Ok(file) => Some(file),
            Err(error) => {
                log::warn!("{} cannot be used ({error}); attributes are remembered in memory only", path.display());
                None
            }
        }
    }

    fn open_at(path: &Path, rows_max: u64) -> io::Result<Self> {
        match Self::try_open(path, rows_max) {
            Err(error) if path.exists() => {
                log::warn!("{} is damaged or of another bosfs ({error}); it is made anew", path.display());
                std::fs::remove_file(path)?;
                Self::try_open(path, rows_max)
            }
            opened => opened,
        }
    }

    fn try_open(path: &Path, rows_max: u64) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let syncs = Arc::new(AtomicBool::new(false));
        let backend = Backend { file, syncs: syncs.clone() };
        let opened = panics_as_none(move || {
            let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
            let transaction = database.begin_write()?;
            let format = {
                transaction.open_table(ROWS)?;
                let mut meta = transaction.open_table(META)?;
                let found = meta.get("format")?.map(|row| row.value());
                if found.is_none() {
                    meta.insert("format", FORMAT)?;
                }
                found.unwrap_or(FORMAT)
            };
            transaction.commit()?;
            Ok::<_, redb::Error>((database, format))
        });
        let (database, format) = match opened {
            Some(opened) => opened.map_err(io::Error::other)?,
            None => return Err(io::Error::other("its pages contradict each other")),
        };
        if format != FORMAT {
            return Err(io::Error::other(format!("format {format}, not {FORMAT}")));
        }
        let pending = Pending { rows: HashMap::new(), commits: 0, stop: false, hurry: false, broken: false };
        let pending = Mutex::new((pending, Arc::default()));
        let shared = Arc::new(Shared { database, pending, wake: Condvar::new(), committed: Condvar::new(), rows_max });
        let writer = {
            let shared = shared.clone();
            std::thread::Builder::new().name("bosfs-attrs".to_owned()).spawn(move || shared.write())?
        };
        Ok(Self { shared: Some(shared), writer: Some(writer), syncs })
    }

    fn shared(&self) -> &Shared {
        // Only `drop` takes it.
        self.shared.as_deref().expect("taken by drop only")
    }

    /// The row `name`, as it is now. What cannot be read is not there. Waits for the disk.
    pub fn read(&self, name: &str) -> Row {
        let shared = self.shared();
        for _ in 0..READS_MAX {
            let commits = {
                let pending = shared.pending.lock();
                if let Some(row) = waiting(&pending, name) {
                    return Row { row: row.cloned(), commits: pending.0.commits };
                }
                pending.0.commits
            };
            let row = shared.read(name).unwrap_or_else(|error| {
                log::debug!("the attribute memory cannot be read: {error}");
                None
            });
            // Else it may be of before or after a batch that was written meanwhile.
            if shared.pending.lock().0.commits == commits {
                return Row { row, commits };
            }
        }
        Row { row: None, commits: u64::MAX }
    }

    /// The content of a row that was [`read`](Self::read) before (`Some(None)`: there is none); counts as its use. `None`: it
    /// was changed since. Never waits for the disk.
    pub fn use_row<'a>(&self, name: &str, read: &'a Row) -> Option<Option<&'a [u8]>> {
        let mut pending = self.shared().pending.lock();
        let is_present = match waiting(&pending, name) {
            Some(present) => present == read.row.as_ref(),
            None => pending.0.commits == read.commits,
        };
        if !is_present {
            return None;
        }
        let row = read.row.as_deref().and_then(|row| Some((row, row.get(DAY_BYTES..)?)));
        if let Some((row, content)) = row
            && day_of(row) != today()
        {
            self.insert(&mut pending, name, Some(content));
        }
        Some(row.map(|(_, content)| content))
    }

    /// [`read`](Self::read) and [`use_row`](Self::use_row) in one.
    #[cfg(test)]
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.use_row(name, &self.read(name))?.map(<[u8]>::to_vec)
    }

    /// Sets the row `name`, or removes it. Never waits for the disk.
    pub fn set(&self, name: &str, content: Option<&[u8]>) {
        self.insert(&mut self.shared().pending.lock(), name, content);
    }

    /// The row `name` was [`set`](Self::set) a moment ago. Where the disk has, or is about to get, an older one that `misleads`,
    /// the new one survives a kill of this process when this returns: waits for the disk then, but never long, as it is a
    /// cache.
    pub fn wait_over(&self, name: &str, misleads: impl Fn(&[u8]) -> bool) {
        let shared = self.shared();
        let misleads = |row: &[u8]| row.get(DAY_BYTES..).is_some_and(&misleads);
        let being_written = {
            let pending = shared.pending.lock();
            pending.1.get(name).and_then(Option::as_ref).is_some_and(|row| misleads(row))
        };
        // What cannot be read does not mislead the next process either.
        let is_on_disk = || shared.read(name).is_ok_and(|row| row.is_some_and(|row| misleads(&row)));
        if being_written || is_on_disk() {
            self.wait_written(name);
        }
    }

    fn insert(&self, pending: &mut (Pending, Arc<Rows>), name: &str, content: Option<&[u8]>) {
        let row = content.map(|content| {
            let mut row = Vec::with_capacity(DAY_BYTES + content.len());
            row.extend_from_slice(&today().to_le_bytes());
            row.extend_from_slice(content);
            row
        });
        if pending.0.broken || (pending.0.rows.len() >= PENDING_MAX && !pending.0.rows.contains_key(name)) {
            return;
        }
        pending.0.rows.insert(name.to_owned(), row);
        if pending.0.rows.len() == BATCH_ROWS {
            self.shared().wake.notify_one();
        }
    }

    fn wait_written(&self, name: &str) {
        let shared = self.shared();
        let deadline = std::time::Instant::now() + COMMIT_WITHIN;
        let mut pending = shared.pending.lock();
        while !pending.0.broken && (pending.0.rows.contains_key(name) || pending.1.contains_key(name)) {
            pending.0.hurry = true;
            shared.wake.notify_one();
            if shared.committed.wait_until(&mut pending, deadline).timed_out() {
                log::warn!("the attribute memory was not written within {} s", COMMIT_WITHIN.as_secs());
                return;
            }
        }
    }
}

impl Drop for AttributeFile {
    fn drop(&mut self) {
        self.syncs.store(true, Ordering::Relaxed);
        if let Some(shared) = self.shared.take() {
            shared.pending.lock().0.stop = true;
            shared.wake.notify_one();
        }
        if let Some(writer) = self.writer.take() {
            // The last reference to the database goes with the writer.
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, redb::Error> {
        let table = self.database.begin_read()?.open_table(ROWS)?;
        Ok(table.get(name)?.map(|row| row.value().to_vec()))
    }

    /// The writer's thread.
    fn write(&self) {
        loop {
            let stop = {
                let mut pending = self.pending.lock();
                if !pending.0.stop && !pending.0.hurry && pending.0.rows.len() < BATCH_ROWS {
                    self.wake.wait_for(&mut pending, BATCH_WITHIN);
                }
                pending.0.hurry = false;
                pending.1 = Arc::new(std::mem::take(&mut pending.0.rows));
                pending.0.stop
            };
            let batch = self.pending.lock().1.clone();
            if !batch.is_empty()
                && let Err(error) = self.commit(&batch)
            {
                log::warn!("the attribute memory cannot be written ({error}); new attributes are kept in memory only");
                self.pending.lock().0.broken = true;
            }
            {
                let mut pending = self.pending.lock();
                pending.1 = Arc::default();
                pending.0.commits += u64::from(!batch.is_empty());
            }
            self.committed.notify_all();
            if stop {
                return;
            }
        }
    }

    fn commit(&self, batch: &Rows) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(ROWS)?;
            for (name, row) in batch {
                match row {
                    Some(row) => table.insert(name.as_str(), row.as_slice())?,
                    None => table.remove(name.as_str())?,
                };
            }
            if table.len()? > self.rows_max {
                age(&mut table, self.rows_max)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Removes the rows unused for longest until a tenth is free.
fn age(table: &mut Table<&'static str, &'static [u8]>, rows_max: u64) -> Result<(), redb::Error> {
    let mut days: HashMap<u32, u64> = HashMap::new();
    for entry in table.iter()? {
        *days.entry(day_of(entry?.1.value())).or_default() += 1;
    }
    let mut by_day: Vec<(u32, u64)> = days.into_iter().collect();
    by_day.sort_unstable();
    let surplus = table.len()?.saturating_sub(rows_max - rows_max / 10);
    let mut older = 0;
    // All rows of the days before `cut` go, and of that day as many as are still too many.
    let mut cut = (0, 0);
    for (day, count) in by_day {
        if older + count >= surplus {
            cut = (day, surplus - older);
            break;
        }
        older += count;
    }
    let (day, mut left) = cut;
    table.retain(|_, row| {
        let its = day_of(row);
        if its == day && left > 0 {
            left -= 1;
            return false;
        }
        its >= day
    })?;
    log::info!("the attribute memory was full: {surplus} entries unused for longest were removed");
    Ok(())
}

fn day_of(row: &[u8]) -> u32 {
    row.first_chunk::<DAY_BYTES>().map_or(0, |day| u32::from_le_bytes(*day))
}

/// Days since 1970.
fn today() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs() / 86_400).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn open(dir: &Path, rows_max: u64) -> AttributeFile {
        AttributeFile::open_at(&dir.join(FILE_NAME), rows_max).unwrap()
    }

    #[test]
    fn rows_are_seen_at_once_and_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path(), 100);
        file.set("a", Some(b"1"));
        file.set("b", Some(b"2"));
        assert_eq!(file.get("a").as_deref(), Some(&b"1"[..]));
        std::thread::sleep(BATCH_WITHIN * 2);
        file.set("b", None);
        assert_eq!((file.get("a").as_deref(), file.get("b")), (Some(&b"1"[..]), None));
        drop(file);
        let mode = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let file = open(dir.path(), 100);
        assert_eq!((file.get("a").as_deref(), file.get("b")), (Some(&b"1"[..]), None));
    }

    #[test]
    fn a_row_that_takes_the_place_of_a_misleading_one_is_on_disk_without_a_close() {
        let dir = tempfile::tempdir().unwrap();
        let on_disk = || {
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(dir.path().join(FILE_NAME), copy.path().join(FILE_NAME)).unwrap();
            open(copy.path(), 100).get("a")
        };
        let file = open(dir.path(), 100);
        file.set("a", Some(b"1"));
        drop(file);
        let file = open(dir.path(), 100);
        // What came in between and is not on disk yet changes nothing about it.
        for between in [Some(&b"2"[..]), None] {
            file.set("a", between);
            file.set("a", Some(b"3"));
            file.wait_over("a", |row| row == b"1" || row == b"4");
            assert_eq!(on_disk().as_deref(), Some(&b"3"[..]));
            file.set("a", Some(b"4"));
            file.wait_over("a", |row| row == b"3");
            assert_eq!(on_disk().as_deref(), Some(&b"4"[..]));
        }
    }

    #[test]
    fn a_damaged_file_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let file = open(dir.path(), 100);
        file.set("a", Some(b"1"));
        drop(file);
        let whole = std::fs::read(&path).unwrap();
        let mut torn = whole.clone();
        torn.truncate(whole.len() / 2);
        let foreign = b"not a database at all".repeat(1000);
        let mut header = whole;
        header[..200].fill(0xa5);
        for damaged in [torn, foreign, header, vec![0; 17]] {
            std::fs::write(&path, damaged).unwrap();
            let file = open(dir.path(), 100);
            assert_eq!(file.get("a"), None);
            file.set("a", Some(b"3"));
            drop(file);
            assert_eq!(open(dir.path(), 100).get("a").as_deref(), Some(&b"3"[..]));
        }
    }

    #[test]
    fn another_format_is_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path(), 100);
        file.set("a", Some(b"1"));
        let transaction = file.shared().database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
        transaction.commit().unwrap();
        drop(file);
        assert_eq!(open(dir.path(), 100).get("a"), None);
    }

    #[test]
    fn the_oldest_rows_go_first_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path(), 100);
        let old = |day: u32| [&day.to_le_bytes()[..], b"x"].concat();
        let rows = (0..100).map(|i| (format!("old{i:03}"), Some(old(i / 10)))).collect();
        file.shared().commit(&rows).unwrap();
        let more = (0..5).map(|i| (format!("new{i}"), Some(old(50)))).collect();
        file.shared().commit(&more).unwrap();
        let table = file.shared().database.begin_read().unwrap().open_table(ROWS).unwrap();
        assert_eq!(table.len().unwrap(), 90);
        for gone in 0..10 {
            assert!(table.get(format!("old{gone:03}").as_str()).unwrap().is_none());
        }
        let of_the_second_day = (10..20).filter(|i| table.get(format!("old{i:03}").as_str()).unwrap().is_some());
        assert_eq!(of_the_second_day.count(), 5);
        assert!(table.get("old020").unwrap().is_some() && table.get("new4").unwrap().is_some());
    }
}
