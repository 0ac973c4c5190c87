//! Checks of a mount point before mounting, and detaching from it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::exit::CliError;
use super::output;
use crate::observe::mount_table;

/// Longest wait for a stat of a mount point; a mount that takes longer is taken for hung.
const STAT_WAIT: Duration = Duration::from_secs(10);

/// Makes sure that something can be mounted at `dir`, and gives it absolute and free of symbolic links. A dead bosfs
/// mount there ("Transport endpoint is not connected") is detached first.
///
/// # Errors
/// The folder is missing, none, not empty (unless `nonempty`), already a bosfs mount, or does not answer.
pub fn check(dir: &Path, nonempty: bool) -> Result<PathBuf, CliError> {
    let shown = dir.display();
    for attempt in 0.. {
        match answered({
            let dir = dir.to_owned();
            move || std::fs::metadata(dir)
        }) {
            None => {
                return Err(CliError::failed(format!("the mount point {shown} does not answer within 10 s"))
                    .hint(format!("something hangs there; detach it with: umount -l {shown}")));
            }
            Some(Ok(meta)) if meta.is_dir() => break,
            Some(Ok(_)) => return Err(CliError::failed(format!("the mount point {shown} is not a folder"))),
            Some(Err(error)) if error.raw_os_error() == Some(libc::ENOTCONN) && attempt < 8 => detach_dead(dir)?,
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CliError::failed(format!("the mount point {shown} does not exist"))
                    .hint(format!("make it first: mkdir -p {shown}")));
            }
            Some(Err(error)) => {
                return Err(CliError::caused(format!("cannot look at the mount point {shown}"), &error));
            }
        }
    }
    let dir = std::fs::canonicalize(dir).map_err(|e| CliError::caused(format!("cannot resolve {shown}"), &e))?;
    if let Some(entry) = mount_table::at(&dir)?.filter(|entry| entry.is_bosfs()) {
        return Err(CliError::failed(format!("{} is already a bosfs mount, of {}", dir.display(), entry.source))
            .hint(format!("end it with: bosfs umount {}", dir.display())));
    }
    if !nonempty {
        let first = std::fs::read_dir(&dir).and_then(|mut entries| entries.next().transpose());
        match first {
            Ok(None) => {}
            Ok(Some(entry)) => {
                return Err(CliError::failed(format!(
                    "the mount point {} is not empty ({:?} is in it)",
                    dir.display(),
                    entry.file_name()
                ))
                .hint("take an empty folder, or hide what is in it for now with --nonempty"));
            }
            Err(error) => {
                return Err(CliError::caused(format!("cannot look into the mount point {}", dir.display()), &error));
            }
        }
    }
    Ok(dir)
}

/// Whether the mount at `dir` answers a stat, and is ours.
pub fn is_served(dir: &Path) -> bool {
    let ours = mount_table::at(dir).ok().flatten().is_some_and(|entry| entry.is_bosfs());
    let path = dir.to_owned();
    ours && answered(move || std::fs::metadata(path)).is_some_and(|result| result.is_ok())
}

/// Runs `ask` aside, so that a hung file system does not hang us; `None` after [`STAT_WAIT`].
pub fn answered<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(ask()));
    receiver.recv_timeout(STAT_WAIT).ok()
}

fn detach_dead(dir: &Path) -> Result<(), CliError> {
    let resolved =
        mount_table::resolve(dir).map_err(|e| CliError::caused(format!("cannot resolve {}", dir.display()), &e))?;
    let entry = mount_table::at(&resolved)?;
    let what = entry.map_or_else(|| "a dead mount".to_owned(), |entry| format!("the dead mount of {}", entry.source));
    output::note(format!("{what} at {} is detached first", resolved.display()));
    detach(&resolved, true).map_err(|error| {
        CliError::caused(format!("{what} at {} cannot be detached", resolved.display()), &error)
            .hint(format!("detach it as root: umount -l {}", resolved.display()))
    })
}

/// Unmounts `dir` (absolute, resolved): as root by the system call, else by fusermount3. `lazy` detaches although it is
/// in use.
///
/// # Errors
/// `ResourceBusy` when it is in use; else what the system or fusermount3 said.
pub fn detach(dir: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
    match rustix::mount::unmount(dir, flags) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut last = io::Error::from(io::ErrorKind::PermissionDenied);
    for program in ["fusermount3", "fusermount"] {
        let mut command = Command::new(program);
        command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(dir).stdin(Stdio::null()).stdout(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                let busy = said.contains("busy");
                return Err(io::Error::new(
                    if busy { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other },
                    said,
                ));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Processes that have something open below `dir`, as far as this user may see: name and process ID, at most `max`.
pub fn users_of(dir: &Path, max: usize) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let path = process.path();
        let open_files = std::fs::read_dir(path.join("fd")).into_iter().flatten().flatten().map(|fd| fd.path());
        let mut links = open_files.chain([path.join("cwd"), path.join("root"), path.join("exe")]);
        if links.any(|link| std::fs::read_link(link).is_ok_and(|target| target.starts_with(dir))) {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            found.push(format!("{} ({pid})", output::printable(name.trim())));
            if found.len() >= max {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_cannot_be_mounted_at_are_explained() {
        let base = tempfile::tempdir().unwrap();
        let missing = check(&base.path().join("missing"), false).unwrap_err().to_string();
        assert!(missing.contains("does not exist") && missing.contains("mkdir"), "{missing}");
        let file = base.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        assert!(check(&file, false).unwrap_err().to_string().contains("not a folder"));
        assert!(check(&file.join("below"), false).is_err());
        let full = check(base.path(), false).unwrap_err().to_string();
        assert!(full.contains("not empty") && full.contains("--nonempty"), "{full}");
        assert_eq!(check(base.path(), true).unwrap(), std::fs::canonicalize(base.path()).unwrap());
    }

    #[test]
    fn whoever_has_a_file_open_is_named() {
        let base = tempfile::tempdir().unwrap();
        let dir = std::fs::canonicalize(base.path()).unwrap();
        assert!(users_of(&dir, 8).is_empty());
        let _file = std::fs::File::create(dir.join("open")).unwrap();
        let users = users_of(&dir, 8);
        assert!(users.iter().any(|user| user.ends_with(&format!("({})", std::process::id()))), "{users:?}");
    }
}
