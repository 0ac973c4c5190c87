//! The mount table of this process (`/proc/self/mountinfo`), as far as bosfs asks.

use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// File system type of our mounts.
pub const FS_TYPE: &str = "fuse.bosfs";

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Its device, `MAJOR:MINOR`.
    pub device: String,
    /// Where it is mounted.
    pub dir: PathBuf,
    /// `fuse.bosfs`, `ext4`, ...
    pub fs_type: String,
    /// What is mounted: of ours, `BUCKET[/PREFIX]`.
    pub source: String,
    /// `user_id=` among the options: who mounted it.
    pub user_id: Option<u32>,
    /// `group_id=` among the options: with which group.
    pub group_id: Option<u32>,
}

impl MountEntry {
    /// Whether it is a mount of bosfs.
    pub fn is_bosfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// All mounts, in the order in which they were made.
///
/// # Errors
/// `/proc` cannot be read.
pub fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The topmost mount at exactly `dir` (absolute, without symbolic links).
///
/// # Errors
/// `/proc` cannot be read.
pub fn at(dir: &Path) -> io::Result<Option<MountEntry>> {
    Ok(read()?.into_iter().rev().find(|entry| entry.dir == dir))
}

fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// Fields: ID, parent, major:minor, root, mount point, options, optional fields, `-`, type, source, super options
/// (Linux Documentation/filesystems/proc.rst, 3.5).
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let device = text(fields.nth(2)?);
    let dir = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.nth(1)?)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = text(rest.next()?);
    let source = text(rest.next()?);
    let options = rest.next().map(text).unwrap_or_default();
    let id = |name: &str| options.split(',').find_map(|option| option.strip_prefix(name)?.parse().ok());
    let (user_id, group_id) = (id("user_id="), id("group_id="));
    Some(MountEntry { device, dir, fs_type, source, user_id, group_id })
}

/// `\040` and the like to the bytes they stand for.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u32, |value, d| (b'0'..=b'7').contains(d).then(|| value * 8 + u32::from(d - b'0')))
        });
        match octal.and_then(|value| u8::try_from(value).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

/// `dir` made absolute with symbolic links resolved in its parents, also when `dir` itself is a dead mount that cannot be
/// asked for anything.
///
/// # Errors
/// The parent does not exist.
pub fn resolve(dir: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(dir) {
        Ok(path) => Ok(path),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) || error.raw_os_error() == Some(libc::EACCES) => {
            let path = std::path::absolute(dir)?;
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => Ok(std::fs::canonicalize(parent)?.join(name)),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_escapes_and_optional_fields() {
        let table = b"22 1 0:21 / /proc rw,nosuid - proc proc rw\n\
            95 29 0:51 / /mnt/my\\040bucket rw,nosuid,nodev,relatime shared:52 master:1 - fuse.bosfs bkt/pre\\040fix rw,user_id=1000,group_id=1000\n\
            garbage\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 2);
        let expected = MountEntry {
            device: "0:51".into(),
            dir: "/mnt/my bucket".into(),
            fs_type: "fuse.bosfs".into(),
            source: "bkt/pre fix".into(),
            user_id: Some(1000),
            group_id: Some(1000),
        };
        assert_eq!(entries[1], expected);
        assert!(entries[1].is_bosfs() && !entries[0].is_bosfs());
    }

    #[test]
    fn the_table_of_this_machine_can_be_read() {
        assert!(read().unwrap().iter().any(|entry| entry.dir == Path::new("/")));
    }

    #[test]
    fn odd_escapes_are_left_alone() {
        assert_eq!(unescape(br"a\0"), br"a\0");
        assert_eq!(unescape(br"a\134b"), br"a\b");
        assert_eq!(unescape(br"\999"), br"\999");
        assert_eq!(unescape(br"\777"), br"\777");
    }
}
