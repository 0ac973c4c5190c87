//! Log setup: to stderr, or to a file that stays bounded.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

/// Size at which a log file is put aside as `NAME.1`, bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Bytes kept in memory while there is no file yet.
const EARLY_BYTES_MAX: usize = 64 << 10;

/// Where a log file goes; handed to [`init`] before its place exists, opened later.
#[derive(Clone, Default)]
pub struct LogFile {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    early: VecDeque<u8>,
}

impl LogFile {
    /// Not opened yet: what is logged is kept in memory, the newest 64 KiB.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to `path` (0600 when it is made) from now on, what was kept first.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.path = path.to_owned();
        inner.reopen()?;
        let early: Vec<u8> = inner.early.drain(..).collect();
        inner.put(&early)
    }
}

impl Inner {
    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        self.written = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        if self.written.saturating_add(line.len() as u64) > FILE_BYTES_MAX && self.written > 0 {
            let mut aside = self.path.clone().into_os_string();
            aside.push(".1");
            std::fs::rename(&self.path, aside)?;
            self.reopen()?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(line)?;
            self.written += line.len() as u64;
        }
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut inner = self.inner.lock();
        if inner.file.is_some() {
            inner.put(line)?;
        } else {
            let tail = &line[line.len().saturating_sub(EARLY_BYTES_MAX)..];
            let surplus = (inner.early.len() + tail.len()).saturating_sub(EARLY_BYTES_MAX);
            inner.early.drain(..surplus);
            inner.early.extend(tail);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets the logger of this process up; the second call does nothing. Foreign crates log from warnings on, unless the
/// level is `trace`. Panics of any thread are logged too.
pub fn init(level: log::LevelFilter, file: Option<LogFile>) {
    let mut builder = env_logger::Builder::new();
    let foreign = if level == log::LevelFilter::Trace { level } else { level.min(log::LevelFilter::Warn) };
    builder.filter_level(foreign).filter_module("bosfs", level);
    builder.format(|out, record| {
        // Keys and answers come from elsewhere: what they carry must stay in its line.
        let message = record.args().to_string();
        writeln!(
            out,
            "[{} {:<5} {}] {}",
            out.timestamp_millis(),
            record.level(),
            record.target(),
            in_one_line(&message)
        )
    });
    let to_file = file.is_some();
    if let Some(file) = file {
        builder.target(env_logger::Target::Pipe(Box::new(file)));
    }
    if builder.try_init().is_ok() && to_file {
        std::panic::set_hook(Box::new(|panic| log::error!("a thread panicked: {panic}")));
    }
}

/// `message` with control characters escaped: nobody's key begins a line of its own, or writes to a terminal.
fn in_one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for c in message.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_in_its_line() {
        let key = "a\n[2026-01-01T00:00:00.000Z ERROR bosfs] all is lost\u{1b}[2J";
        assert_eq!(in_one_line(key), "a\\n[2026-01-01T00:00:00.000Z ERROR bosfs] all is lost\\u{1b}[2J");
        assert_eq!(in_one_line("目录 \u{202e}"), "目录 \u{202e}");
    }

    #[test]
    fn lines_before_the_file_exists_are_kept_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::new();
        log.write_all(&vec![b'x'; EARLY_BYTES_MAX]).unwrap();
        log.write_all(b"newest\n").unwrap();
        log.open(&path).unwrap();
        log.write_all(b"later\n").unwrap();
        let text = std::fs::read(&path).unwrap();
        assert_eq!(text.len(), EARLY_BYTES_MAX + 6);
        assert!(text.ends_with(b"newest\nlater\n"));
    }

    #[test]
    fn a_full_file_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::new();
        log.open(&path).unwrap();
        log.inner.lock().written = FILE_BYTES_MAX - 1;
        log.write_all(b"first of the new file\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first of the new file\n");
        assert!(dir.path().join("log.1").exists());
    }
}
