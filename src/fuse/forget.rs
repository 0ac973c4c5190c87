//! Asks the kernel to forget names when those that it knows take more memory than they may.
//!
//! A notification about a name waits for the kernel's lock of its directory, which is held as long as a request about a name
//! there waits. So: a thread of its own, which holds no lock of ours; and no directory in which a request waits. The kernel
//! drops the name, and where nobody uses its inode, it says so by FORGET.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};

use crate::fs::{Fs, NamesFull};
use crate::observe::mount_table;

/// Names asked for in one go.
const BATCH: usize = 512;
/// Longest wait for the FORGETs that follow them.
const FORGETS_WITHIN: Duration = Duration::from_millis(100);
/// Pause when everything that is known is in use.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts the thread, for the mount on `dir` (without symbolic links). It ends with [`NamesFull::end`].
pub(super) fn start(fs: &Arc<Fs>, notifier: Notifier, dir: PathBuf) -> io::Result<Arc<NamesFull>> {
    let full = fs.names_full();
    // Whoever waits for the end of the mount waits for the last reference to the file system, too.
    let (fs, told) = (Arc::downgrade(fs), full.clone());
    thread::Builder::new().name("fuse-forget".to_owned()).spawn(move || {
        while told.wait() {
            if !ask_for_surplus(&fs, &notifier, &dir) && !told.pause(PAUSE) {
                return;
            }
        }
    })?;
    Ok(full)
}

/// Asks the kernel to forget names until there is room. `false`: what is left is in use.
fn ask_for_surplus(fs: &Weak<Fs>, notifier: &Notifier, dir: &Path) -> bool {
    let in_use = dirs_in_use(dir);
    loop {
        let Some(fs) = fs.upgrade() else { return false };
        if !fs.has_surplus_names() {
            return true;
        }
        let Some(names) = fs.forgettable(BATCH, &in_use) else { return false };
        let before = fs.known_names();
        let mut asked = 0;
        for name in names.iter().filter(|name| !fs.is_waited_in(name.parent)) {
            // What fails: the kernel has forgotten the name, or is about to forget all of them.
            if notifier.inval_entry(INodeNo(name.parent), OsStr::new(&name.name)).is_ok() {
                asked += 1;
            }
        }
        if asked == 0 {
            return false;
        }
        let end = Instant::now() + FORGETS_WITHIN;
        while fs.known_names() + asked > before && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Paths in the mount on `dir` that programs have as their working or root directory, or that something is mounted on, with
/// those above: the kernel would unhook such a directory, too, and its path be unknown for a while. What cannot be seen (the
/// processes of others) is found again by its next lookup.
fn dirs_in_use(dir: &Path) -> HashSet<String> {
    let mut in_use = HashSet::new();
    let mut add = |path: &Path| {
        let inside = path.strip_prefix(dir).ok().and_then(Path::to_str);
        in_use.extend(
            inside.into_iter().flat_map(|path| Path::new(path).ancestors()).filter_map(Path::to_str).map(str::to_owned),
        );
    };
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        for link in ["cwd", "root"] {
            // Read from memory of the kernel: the mount is not asked.
            if let Ok(path) = std::fs::read_link(process.path().join(link)) {
                add(&path);
            }
        }
    }
    mount_table::read().unwrap_or_default().iter().filter(|entry| entry.dir != dir).for_each(|entry| add(&entry.dir));
    in_use
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_directories_and_those_above_them_are_in_use() {
        let top = tempfile::tempdir().unwrap();
        let dir = std::fs::canonicalize(top.path()).unwrap();
        std::fs::create_dir_all(dir.join("a/b/c")).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(dir.join("a/b/c")).spawn().unwrap();
        let in_use = dirs_in_use(&dir);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(["a", "a/b", "a/b/c"].iter().all(|path| in_use.contains(*path)), "{in_use:?}");
        assert!(!dirs_in_use(&dir).contains("a/b/c"));
    }
}
