//! Attributes and links as a hostile server gives them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use crate::support::Call;
use crate::support::hostile::{Raw, head};
use crate::{Attacked, LITTLE_MEMORY, timed};

/// A HEAD with these headers.
fn object(size: usize, headers: &[(&str, &str)]) -> Raw {
    let mut bytes = head("200 OK", &[("ETag", "\"e\"")]);
    for (name, value) in headers {
        bytes.extend(format!("{name}: ").bytes().chain(value.bytes()).chain(*b"\r\n"));
    }
    bytes.extend(format!("Content-Length: {size}\r\n\r\n").bytes());
    Raw::Bytes(bytes)
}

/// Asks for the attributes of every case side by side.
fn stat_all<const N: usize>(attacked: &Attacked, names: [&'static str; N]) -> [std::io::Result<std::fs::Metadata>; N] {
    let root = attacked.mount.dir().to_owned();
    names.map(|name| {
        let path = root.join(name);
        timed(move || std::fs::symlink_metadata(path))
    })
}

/// Modes and times in BOS that no file can have make no device, no pipe and no folder: the object is an ordinary file,
/// and the mount is `nosuid` and `nodev`.
#[test]
fn modes_owners_and_times_of_no_kind_of_file_make_none() {
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        if asked.call != Call::HeadObject {
            return None;
        }
        let mode = |mode: &str| object(5, &[("x-bce-meta-bosfs-mode", mode)]);
        let modified = |text: &str| object(5, &[("Last-Modified", text)]);
        Some(match asked.key.as_str() {
            "block" => mode("25008"),
            "character" => mode("8630"),
            "pipe" => mode("4516"),
            "socket" => mode("49645"),
            "folder" => mode("16877"),
            "setuid" => mode("36333"),
            "huge-mode" => mode("18446744073709551615"),
            "negative-mode" => mode("-1"),
            "huge-owner" => object(
                5,
                &[
                    ("x-bce-meta-bosfs-uid", "4294967296"),
                    ("x-bce-meta-bosfs-gid", "-1"),
                    ("x-bce-meta-bosfs-mode", "33188"),
                ],
            ),
            "late" => object(5, &[("x-bce-meta-bosfs-mtime", "9223372036854775807")]),
            "early" => object(
                5,
                &[("x-bce-meta-bosfs-mtime", "-9223372036854775807"), ("x-bce-meta-bosfs-mtime-nsec", "999999999")],
            ),
            "year-9999" => modified("Fri, 31 Dec 9999 23:59:59 GMT"),
            "garbage-date" => modified("yesterday, about noon"),
            "negative-date" => modified("Thu, 01 Jan 0000 00:00:00 GMT"),
            _ => return None,
        })
    });
    let names = [
        "block",
        "character",
        "pipe",
        "socket",
        "folder",
        "setuid",
        "huge-mode",
        "negative-mode",
        "huge-owner",
        "late",
        "early",
        "year-9999",
        "garbage-date",
        "negative-date",
    ];
    let found = stat_all(&attacked, names);
    for (name, meta) in names.iter().zip(&found) {
        let meta = meta.as_ref().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(meta.is_file() && meta.len() == 5 && meta.rdev() == 0, "{name}: {meta:?}");
    }
    let [.., setuid, _, _, owner, late, early, far, _, _] = &found;
    assert_eq!(setuid.as_ref().unwrap().mode() & 0o7777, 0o6755);
    let owner = owner.as_ref().unwrap();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    assert_eq!((owner.uid(), owner.gid()), (uid, gid), "an owner out of range is nobody's number");
    assert_eq!(late.as_ref().unwrap().mtime(), i64::MAX);
    assert!(early.as_ref().unwrap().mtime() <= 1 - i64::MAX);
    assert_eq!(far.as_ref().unwrap().mtime(), 253_402_300_799);
    // What a mode says of other users' rights does nothing here.
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = attacked.mount.dir().to_string_lossy().into_owned();
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(&dir)).expect("the mount");
    let options: Vec<&str> = line.split(' ').nth(5).unwrap().split(',').collect();
    assert!(options.contains(&"nosuid") && options.contains(&"nodev"), "{line}");
    attacked.assert_unharmed();
}

/// A link whose target in BOS is empty, too long (4096 bytes) or has a NUL is an error to read, never a part of it.
#[test]
fn link_targets_are_whole_or_an_error() {
    const LINK: (&str, &str) = ("x-bce-meta-bosfs-mode", "41471");
    let target = |name: &str| -> Option<Vec<u8>> {
        Some(match name {
            "plain" => b"../../../etc/passwd".to_vec(),
            "nul" => b"a\0b".to_vec(),
            "only-nul" => b"\0".to_vec(),
            "empty" => Vec::new(),
            "longest" => vec![b't'; 4095],
            "too-long" => vec![b't'; 4096],
            "huge" => vec![b't'; 1 << 20],
            _ => return None,
        })
    };
    let mut attacked = Attacked::with(&LITTLE_MEMORY, move |asked| {
        let target = target(&asked.key)?;
        match asked.call {
            Call::HeadObject => Some(object(target.len(), &[LINK])),
            Call::GetObject if target.len() <= 4096 => Some(Raw::answer("200 OK", &[("ETag", "\"e\""), LINK], target)),
            Call::GetObject => {
                let range = format!("bytes 0-4095/{}", target.len());
                Some(Raw::answer(
                    "206 Partial Content",
                    &[("ETag", "\"e\""), ("Content-Range", &range)],
                    &target[..4096],
                ))
            }
            _ => None,
        }
    });
    let read = |name: &str| {
        let path = attacked.mount.path(name);
        timed(move || std::fs::read_link(path))
    };
    assert_eq!(read("plain").unwrap().as_os_str(), "../../../etc/passwd");
    assert_eq!(read("longest").unwrap().as_os_str(), OsStr::from_bytes(&[b't'; 4095]));
    for name in ["nul", "only-nul", "empty", "too-long", "huge"] {
        let found = read(name);
        assert!(found.is_err(), "{name}: a part of the target is shown: {found:?}");
    }
    assert!(attacked.hostile.hits() >= 7);
    attacked.assert_unharmed();
}

#[test]
fn metadata_without_end_and_odd_xattrs_are_left_out() {
    let value = "v".repeat(3000);
    let mut attacked = Attacked::with(&LITTLE_MEMORY, move |asked| {
        if asked.call != Call::HeadObject {
            return None;
        }
        Some(match asked.key.as_str() {
            "xattrs" => object(
                5,
                &[("x-bce-meta-bosfs-xattr", "user.good:MQ==;user.%00nul:MQ==;user.%2fslash:MQ==;;:;user.bad:***;x")],
            ),
            "large" => object(5, &[("x-bce-meta-name", &value), ("x-bce-meta-bosfs-mode", "33188")]),
            _ => return None,
        })
    });
    assert!(stat_all(&attacked, ["xattrs", "large"]).iter().all(|meta| meta.as_ref().is_ok_and(|meta| meta.is_file())));
    let path = attacked.mount.path("xattrs");
    let listed = timed(move || {
        let mut names = vec![0; 4096];
        let len = rustix::fs::listxattr(path, &mut names[..])?;
        names.truncate(len);
        std::io::Result::Ok(names)
    });
    let listed: Vec<u8> = listed.unwrap();
    let names: Vec<&[u8]> = listed.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    assert_eq!(names, [&b"user./slash"[..], b"user.good"], "{listed:?}");
    attacked.assert_unharmed();
}
