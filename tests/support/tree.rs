//! What a folder holds, as far as programs can see it, and how two folders differ.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bosfs::object::Md5;

use super::files::md5_of_file;

/// Which times of two trees must be equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Times {
    /// None: the tool leaves the time of its writing.
    Free,
    /// Those of files and symlinks.
    Files,
    /// Those of directories too: the tool sets them.
    All,
}

/// One name of a tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// File type bits of `st_mode`.
    pub kind: u32,
    /// Permission bits; 0 for symlinks, which have none of their own.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a file; 0 for the rest.
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Target of a symlink.
    pub link: Option<PathBuf>,
    /// Of the content of a file.
    pub md5: Option<Md5>,
    /// `user.*`.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
}

impl Entry {
    pub fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }
    pub fn is_file(&self) -> bool {
        self.kind == libc::S_IFREG
    }
}

/// Everything below a folder by its relative path; the folder itself is left out.
pub type Tree = BTreeMap<PathBuf, Entry>;

/// Reads a tree. A name that its folder lists and that cannot be asked for is an error.
pub fn read_tree(dir: &Path) -> io::Result<Tree> {
    read(dir, true)
}

/// The same, but no file is opened: without content.
pub fn read_attributes(dir: &Path) -> io::Result<Tree> {
    read(dir, false)
}

fn read(dir: &Path, content: bool) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        for entry in std::fs::read_dir(dir.join(&relative)).map_err(|e| told(&relative, "list", &e))? {
            let name = relative.join(entry?.file_name());
            let seen = read_entry(&dir.join(&name), content).map_err(|e| told(&name, "read", &e))?;
            if seen.is_dir() {
                open.push(name.clone());
            }
            if tree.insert(name.clone(), seen).is_some() {
                return Err(io::Error::other(format!("{name:?} is listed twice")));
            }
        }
    }
    Ok(tree)
}

fn told(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {path:?}: {error}"))
}

fn read_entry(path: &Path, content: bool) -> io::Result<Entry> {
    let meta = std::fs::symlink_metadata(path)?;
    let kind = meta.mode() & libc::S_IFMT;
    let is_file = kind == libc::S_IFREG;
    let is_link = kind == libc::S_IFLNK;
    Ok(Entry {
        kind,
        mode: if is_link { 0 } else { meta.mode() & 0o7777 },
        uid: meta.uid(),
        gid: meta.gid(),
        size: if is_file { meta.len() } else { 0 },
        mtime: (meta.mtime(), meta.mtime_nsec()),
        link: if is_link { Some(std::fs::read_link(path)?) } else { None },
        md5: if is_file && content { Some(md5_of_file(path)?) } else { None },
        xattrs: if is_link { BTreeMap::new() } else { read_xattrs(path)? },
    })
}

fn read_xattrs(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut names = vec![0u8; 64 << 10];
    let len = match rustix::fs::llistxattr(path, &mut names) {
        Ok(len) => len,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        let mut value = vec![0u8; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(len);
        found.insert(OsString::from_vec(name.to_owned()), value);
    }
    Ok(found)
}

/// Every difference between two trees, a line each.
pub fn differences(expected: &Tree, found: &Tree, times: Times) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, entry) in expected {
        match found.get(name) {
            None => lines.push(format!("{name:?} is missing")),
            Some(other) => compare(name, entry, other, times, &mut lines),
        }
    }
    lines.extend(found.keys().filter(|name| !expected.contains_key(*name)).map(|name| format!("{name:?} is too many")));
    lines
}

fn compare(name: &Path, expected: &Entry, found: &Entry, times: Times, lines: &mut Vec<String>) {
    let mut differ = |what: &str, expected: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
        lines.push(format!("{name:?}: {what} {found:?}, expected {expected:?}"));
    };
    if expected.kind != found.kind {
        return differ("type", &expected.kind, &found.kind);
    }
    if expected.mode != found.mode {
        differ("mode", &format!("{:o}", expected.mode), &format!("{:o}", found.mode));
    }
    if (expected.uid, expected.gid) != (found.uid, found.gid) {
        differ("owner", &(expected.uid, expected.gid), &(found.uid, found.gid));
    }
    if expected.size != found.size {
        differ("size", &expected.size, &found.size);
    }
    if expected.md5 != found.md5 {
        differ("content", &expected.md5, &found.md5);
    }
    if expected.link != found.link {
        differ("target", &expected.link, &found.link);
    }
    if expected.xattrs != found.xattrs {
        differ("xattrs", &expected.xattrs, &found.xattrs);
    }
    let timed = times == Times::All || (times == Times::Files && !expected.is_dir());
    if timed && expected.mtime != found.mtime {
        differ("mtime", &expected.mtime, &found.mtime);
    }
}

/// A tree without the names below `ignored`.
pub fn without(tree: &Tree, ignored: &[&str]) -> Tree {
    let below = |name: &Path| ignored.iter().any(|prefix| name.as_os_str().as_bytes().starts_with(prefix.as_bytes()));
    tree.iter().filter(|(name, _)| !below(name)).map(|(name, entry)| (name.clone(), entry.clone())).collect()
}
