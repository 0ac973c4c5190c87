//! Tries out what the spool and the journal need of the file system that a state directory lies on.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::FallocateFlags;

/// Bytes written by the probe; the first half is punched out again. A multiple of any block size in use.
const PROBE_BYTES: usize = 256 << 10;

/// What the file system cannot give, without being unfit.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// One sentence per weakened promise.
    pub weakened: Vec<String>,
    /// Whether ranges can be punched out of a file.
    pub punches: bool,
}

/// The file systems that bosfs cares about, by `statfs` type (linux/magic.h and fs/*/super.c of Linux).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FsKind {
    Fuse,
    Memory,
    Network(&'static str),
    Other,
}

fn kind_of(magic: u32) -> FsKind {
    match magic {
        0x6573_5546 => FsKind::Fuse,
        0x0102_1994 | 0x8584_58f6 => FsKind::Memory,
        0x6969 => FsKind::Network("NFS"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => FsKind::Network("SMB"),
        0x0102_1997 => FsKind::Network("9p"),
        0x00c3_6400 => FsKind::Network("Ceph"),
        0x0bd0_0bd0 => FsKind::Network("Lustre"),
        0x5346_414f | 0x6b41_4653 => FsKind::Network("AFS"),
        _ => FsKind::Other,
    }
}

/// Whether `path` lies in a FUSE mount that is, or may be, one of bosfs: its bytes would depend on the very daemon whose
/// journal they hold. Other FUSE file systems count as weakened only.
pub(super) fn inside_bosfs(path: &Path) -> io::Result<bool> {
    if kind_of(rustix::fs::statfs(path)?.f_type as u32) != FsKind::Fuse {
        return Ok(false);
    }
    let dev = std::fs::metadata(path)?.dev();
    let device = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    Ok(fs_type_of(&table, &device).is_none_or(|fs_type| matches!(fs_type, "fuse" | "fuse.bosfs")))
}

/// File system type of the device `major:minor` in the text of a mountinfo file (proc(5)).
fn fs_type_of<'a>(mountinfo: &'a str, device: &str) -> Option<&'a str> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        (mount.split(' ').nth(2)? == device).then(|| source.split(' ').next())?
    })
}

/// Writes, punches, reads back and syncs a file in `dir`, and removes it.
///
/// # Errors
/// A step that nothing works without failed; the error says which.
pub(super) fn probe(dir: &Path) -> io::Result<Findings> {
    let mut findings = Findings::default();
    match kind_of(rustix::fs::statfs(dir)?.f_type as u32) {
        FsKind::Memory => findings.weakened.push(
            "it lies in memory (tmpfs): what fsync accepted survives a kill of bosfs, but neither a reboot nor power loss"
                .into(),
        ),
        FsKind::Network(name) => findings.weakened.push(format!(
            "it lies on a network file system ({name}): power-loss safety and the lock are as good as that server's"
        )),
        FsKind::Fuse => findings
            .weakened
            .push("it lies on a FUSE file system: a kill of that daemon may lose accepted bytes".into()),
        FsKind::Other => {}
    }
    let path = dir.join(format!("probe.{}", std::process::id()));
    let outcome = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|file| probe_file(&file, &mut findings));
    let removed = std::fs::remove_file(&path);
    outcome?;
    removed?;
    Ok(findings)
}

fn step(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn probe_file(file: &File, findings: &mut Findings) -> io::Result<()> {
    let written = vec![0xa5; PROBE_BYTES];
    file.write_all_at(&written, 0).map_err(|e| step("writing", e))?;
    let half = PROBE_BYTES / 2;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let mut expected = written;
    match rustix::fs::fallocate(file, flags, 0, half as u64) {
        Ok(()) => {
            findings.punches = true;
            expected[..half].fill(0);
        }
        Err(_) => findings
            .weakened
            .push("no ranges can be punched out of files there: a writer waits when the spool is full".into()),
    }
    file.sync_data().map_err(|e| step("fdatasync", e))?;
    let mut read = vec![1; PROBE_BYTES];
    file.read_exact_at(&mut read, 0).map_err(|e| step("reading back", e))?;
    if read != expected {
        return Err(io::Error::other("reading back gave other bytes than were written"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_by_device() {
        let table = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                     40 35 0:47 / /mnt/bos rw,nosuid shared:3 master:2 - fuse.bosfs bosfs rw,user_id=0\n";
        assert_eq!(fs_type_of(table, "98:0"), Some("ext3"));
        assert_eq!(fs_type_of(table, "0:47"), Some("fuse.bosfs"));
        assert_eq!(fs_type_of(table, "0:4"), None);
        assert_eq!(fs_type_of("garbage - \n\n - x", "0:4"), None);
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        probe(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(!inside_bosfs(dir.path()).unwrap());
    }

    #[test]
    fn memory_file_systems_weaken_a_promise() {
        if kind_of(rustix::fs::statfs("/dev/shm").unwrap().f_type as u32) == FsKind::Memory {
            let dir = tempfile::tempdir_in("/dev/shm").unwrap();
            assert!(probe(dir.path()).unwrap().weakened[0].contains("power loss"));
        }
    }
}
