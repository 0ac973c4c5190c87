//! Converts mode, owner and mtime to the `x-bce-meta-*` headers of an object and back.
//!
//! The names are those of BOSFS 1.0 (`bosfs-mode`, `bosfs-uid`, `bosfs-gid`, `bosfs-mtime`, decimal, the mode with its
//! type bits), so that either program reads what the other wrote. `bosfs-mtime-nsec` is an addition of ours.

use std::collections::BTreeMap;

use crate::bos::header_text::wire_len;
use crate::object::{FileAttrs, Timestamp};

/// Metadata name of the mark `<journal id>.<publication number>` that every publication of ours carries.
pub const MARK: &str = "bosfs-upload";
/// Metadata name of all extended attributes: `name:base64;name:base64;...`.
pub const XATTRS: &str = "bosfs-xattr";
/// Metadata name (value `1`) of an object that was published before its writer closed it.
pub const UNFINISHED: &str = "bosfs-unfinished";
/// Bytes of metadata that BOS stores with one object at most: names and values together.
pub const METADATA_BYTES_MAX: usize = 2048;
/// `Content-Type` of directory markers.
pub const DIRECTORY_TYPE: &str = "application/x-directory";

/// Mask of the type bits of a mode.
pub const S_IFMT: u32 = 0o170_000;
/// Type bits of a regular file.
pub const S_IFREG: u32 = 0o100_000;
/// Type bits of a directory.
pub const S_IFDIR: u32 = 0o040_000;
/// Type bits of a symbolic link.
pub const S_IFLNK: u32 = 0o120_000;

/// Name prefix of user metadata on the wire; BOS counts it in its limit.
const WIRE_PREFIX: &str = "x-bce-meta-";

const MODE: [&str; 2] = ["bosfs-mode", "mode"];
const UID: [&str; 2] = ["bosfs-uid", "uid"];
const GID: [&str; 2] = ["bosfs-gid", "gid"];
const MTIME: [&str; 2] = ["bosfs-mtime", "mtime"];
const MTIME_NSEC: &str = "bosfs-mtime-nsec";

/// What objects without attributes of their own are shown with (options `--uid`, `--gid`, `--umask`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttrDefaults {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits taken away from 0666 (files) and 0777 (directories).
    pub umask: u32,
}

impl AttrDefaults {
    /// A regular file last changed at `mtime`.
    pub fn file(&self, mtime: Timestamp) -> FileAttrs {
        FileAttrs { mode: S_IFREG | (0o666 & !self.umask), uid: self.uid, gid: self.gid, mtime }
    }

    /// A directory last changed at `mtime`.
    pub fn directory(&self, mtime: Timestamp) -> FileAttrs {
        FileAttrs { mode: S_IFDIR | (0o777 & !self.umask), uid: self.uid, gid: self.gid, mtime }
    }
}

/// The attributes in `metadata`; what is absent or unreadable is taken from `absent`. Type bits other than those of a
/// regular file and a symbolic link never come from metadata: what is a directory is decided by the key.
pub fn read_attrs(metadata: &BTreeMap<String, String>, absent: FileAttrs) -> FileAttrs {
    let number = |names: [&str; 2]| names.iter().find_map(|name| metadata.get(*name)).and_then(|v| parse_number(v));
    let narrow = |names| number(names).and_then(|n| u32::try_from(n).ok());
    let mode = match narrow(MODE) {
        None => absent.mode,
        Some(mode) => {
            let kept = absent.mode & S_IFMT;
            let kind = match mode & S_IFMT {
                S_IFLNK if kept == S_IFREG => S_IFLNK,
                _ => kept,
            };
            kind | (mode & 0o7777)
        }
    };
    let mtime = match number(MTIME) {
        None => absent.mtime,
        Some(sec) => {
            let nsec = metadata.get(MTIME_NSEC).and_then(|v| parse_number(v));
            Timestamp {
                sec,
                nsec: nsec.and_then(|n| u32::try_from(n).ok()).filter(|n| *n < 1_000_000_000).unwrap_or(0),
            }
        }
    };
    FileAttrs { mode, uid: narrow(UID).unwrap_or(absent.uid), gid: narrow(GID).unwrap_or(absent.gid), mtime }
}

/// Puts `attrs` into `metadata`, replaces what was there of them, and leaves everything else alone.
pub fn write_attrs(metadata: &mut BTreeMap<String, String>, attrs: &FileAttrs) {
    for [_, old] in [MODE, UID, GID, MTIME] {
        metadata.remove(old);
    }
    metadata.insert(MODE[0].to_owned(), attrs.mode.to_string());
    metadata.insert(UID[0].to_owned(), attrs.uid.to_string());
    metadata.insert(GID[0].to_owned(), attrs.gid.to_string());
    metadata.insert(MTIME[0].to_owned(), attrs.mtime.sec.to_string());
    if attrs.mtime.nsec == 0 {
        metadata.remove(MTIME_NSEC);
    } else {
        metadata.insert(MTIME_NSEC.to_owned(), attrs.mtime.nsec.to_string());
    }
}

/// Bytes that `metadata` takes of [`METADATA_BYTES_MAX`]: names as they travel, and values.
pub fn metadata_bytes(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(name, value)| WIRE_PREFIX.len() + name.len() + wire_len(value)).sum()
}

/// Whether BOS stores `metadata`, also with a mark that is still to be added.
pub fn fits_metadata_limit(metadata: &BTreeMap<String, String>) -> bool {
    let mark = if metadata.contains_key(MARK) { 0 } else { WIRE_PREFIX.len() + MARK.len() + 27 };
    metadata_bytes(metadata) + mark <= METADATA_BYTES_MAX
}

/// Reads a number as `strtol` with base 0 does: `0x` is hex, a leading 0 octal, else decimal; spaces in front and any
/// rest behind are ignored. `None` without a digit or beyond 64 bits.
fn parse_number(text: &str) -> Option<i64> {
    let text = text.trim_start();
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (radix, digits) = match hex {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_hexdigit()) => (16, rest),
        _ if digits.starts_with('0') => (8, digits),
        _ => (10, digits),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let value = i64::from_str_radix(&digits[..end], radix).ok()?;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: AttrDefaults = AttrDefaults { uid: 7, gid: 8, umask: 0o022 };

    fn metadata(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn what_is_written_is_read_back() {
        for nsec in [0, 1, 999_999_999] {
            for sec in [-5, 0, 1_700_000_000] {
                let attrs = FileAttrs { mode: S_IFREG | 0o4755, uid: 0, gid: 65_534, mtime: Timestamp { sec, nsec } };
                let mut m = metadata(&[("mode", "420"), ("foreign", "x"), ("bosfs-mtime-nsec", "3")]);
                write_attrs(&mut m, &attrs);
                assert_eq!(read_attrs(&m, DEFAULTS.file(Timestamp::default())), attrs);
                assert_eq!(m["foreign"], "x");
                assert!(!m.contains_key("mode"));
            }
        }
    }

    #[test]
    fn old_names_and_every_base_are_read() {
        let m = metadata(&[("mode", "0100640"), ("uid", "0x10"), ("gid", " 12junk"), ("mtime", "-3")]);
        let attrs = read_attrs(&m, DEFAULTS.file(Timestamp::default()));
        assert_eq!((attrs.mode, attrs.uid, attrs.gid, attrs.mtime.sec), (0o100_640, 16, 12, -3));
        let both = metadata(&[("mode", "0"), ("bosfs-mode", "33188")]);
        assert_eq!(read_attrs(&both, DEFAULTS.file(Timestamp::default())).mode, 0o100_644);
    }

    #[test]
    fn unreadable_values_are_absent_ones() {
        let mtime = Timestamp { sec: 9, nsec: 1 };
        for bad in ["", "x", "-1", "99999999999999999999"] {
            let m = metadata(&[("bosfs-uid", bad), ("bosfs-mode", bad)]);
            assert_eq!(read_attrs(&m, DEFAULTS.file(mtime)), DEFAULTS.file(mtime), "{bad:?}");
        }
        let m = metadata(&[("bosfs-mtime", "5"), ("bosfs-mtime-nsec", "1000000000")]);
        assert_eq!(read_attrs(&m, DEFAULTS.file(mtime)).mtime, Timestamp { sec: 5, nsec: 0 });
    }

    #[test]
    fn the_type_comes_from_the_key_except_for_links() {
        let at = Timestamp::default();
        let link = metadata(&[("bosfs-mode", "41471")]);
        assert_eq!(read_attrs(&link, DEFAULTS.file(at)).mode, S_IFLNK | 0o777);
        assert_eq!(read_attrs(&link, DEFAULTS.directory(at)).mode, S_IFDIR | 0o777);
        let directory = metadata(&[("bosfs-mode", "16877")]);
        assert_eq!(read_attrs(&directory, DEFAULTS.file(at)).mode, S_IFREG | 0o755);
    }

    #[test]
    fn the_limit_counts_names_values_and_the_mark_to_come() {
        let room = METADATA_BYTES_MAX - (WIRE_PREFIX.len() + MARK.len() + 27) - (WIRE_PREFIX.len() + 1);
        assert!(fits_metadata_limit(&metadata(&[("a", &"v".repeat(room))])));
        assert!(!fits_metadata_limit(&metadata(&[("a", &"v".repeat(room + 1))])));
    }

    #[test]
    fn defaults_obey_the_umask() {
        let at = Timestamp::default();
        assert_eq!(DEFAULTS.file(at).mode, 0o100_644);
        assert_eq!(DEFAULTS.directory(at).mode, 0o040_755);
    }
}
