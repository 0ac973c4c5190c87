//! Who serves a mount: the state directory of its session, found by asking whoever can know. "Nobody" is said only where it is
//! known; who may not look, or gets no answer, cannot tell.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::mount_point::answered;
use super::status;
use crate::journal::state_dir::{Holder, list_state_dirs_of_home, read_holder};
use crate::observe::StatusSnapshot;
use crate::observe::control::ControlClient;
use crate::observe::mount_table::MountEntry;

/// Most descriptors of one process that are looked at.
const DESCRIPTORS_MAX: usize = 65_536;

/// Who serves a mount.
#[derive(Debug, PartialEq, Eq)]
pub enum Serving {
    /// The session of this state directory.
    Session(PathBuf),
    /// Nobody: the kernel says that the connection to the process is gone.
    Nobody,
    /// It cannot be told, for this reason.
    Unknown(String),
}

/// What the mount itself says of who serves it.
#[derive(Debug)]
enum Said {
    /// This.
    Snapshot(Box<StatusSnapshot>),
    /// The connection to its process is gone.
    NotConnected,
    /// Nothing that helps.
    Nothing(String),
}

/// Who serves the mount `entry`.
pub fn serving(entry: &MountEntry) -> Serving {
    let dir = &entry.dir;
    let shows = |state_dir: &Path| {
        ControlClient::status(state_dir).is_ok_and(|s| s.mount_point.as_deref() == Some(dir.as_path()))
    };
    if let Some(state_dir) = held_for(dir, status::known_state_dirs(), read_holder, shows) {
        return Serving::Session(state_dir);
    }
    match said_by(entry) {
        // What a mount says, its owner says.
        Said::Snapshot(snapshot) if belongs_to_owner(&snapshot.state_dir, entry) => {
            Serving::Session(snapshot.state_dir)
        }
        Said::Snapshot(snapshot) => Serving::Unknown(format!(
            "it names the state folder {}, which is not its owner's",
            snapshot.state_dir.display()
        )),
        Said::NotConnected => Serving::Nobody,
        // A process that hangs, or is another user's, still holds its lease.
        Said::Nothing(why) => {
            let mut leased = leased_by_processes();
            leased.retain(|state_dir| belongs_to_owner(state_dir, entry));
            let held = held_for(dir, leased, read_holder, |_| false);
            held.map_or(Serving::Unknown(why), Serving::Session)
        }
    }
}

/// Whether a state directory is that of the user whose mount it is. Anybody can write into a file of his own where he is mounted.
fn belongs_to_owner(state_dir: &Path, entry: &MountEntry) -> bool {
    let owner = std::fs::metadata(state_dir).map(|meta| meta.uid());
    entry.user_id.is_none_or(|user| owner.is_ok_and(|owner| owner == user))
}

/// The one among `state_dirs` whose holder says that it is mounted at `dir`. `shows` asks a session itself, only where its
/// holder does not say: it may be one that does not answer, and is nobody's business here.
fn held_for(
    dir: &Path,
    state_dirs: Vec<PathBuf>,
    holder: impl Fn(&Path) -> Option<Holder>,
    shows: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let held: Vec<(PathBuf, Holder)> =
        state_dirs.into_iter().filter_map(|path| holder(&path).map(|holder| (path, holder))).collect();
    let named = held.iter().find(|(_, holder)| holder.mount_point.as_deref() == Some(dir));
    let found = named.or_else(|| held.iter().find(|(path, holder)| holder.mount_point.is_none() && shows(path)));
    found.map(|(path, _)| path.clone())
}

/// What the mount at `dir` says of itself in `.bosfs/status.json`; `None` when it does not answer.
pub fn snapshot_through(dir: &Path) -> Option<StatusSnapshot> {
    match read_through(dir) {
        Said::Snapshot(snapshot) => Some(*snapshot),
        Said::NotConnected | Said::Nothing(_) => None,
    }
}

fn read_through(dir: &Path) -> Said {
    let path = dir.join(".bosfs/status.json");
    match answered(move || std::fs::read(path)) {
        None => Said::Nothing("it does not answer".to_owned()),
        Some(Ok(text)) => snapshot_of(&text),
        Some(Err(error)) if error.raw_os_error() == Some(libc::ENOTCONN) => Said::NotConnected,
        Some(Err(error)) => Said::Nothing(error.to_string()),
    }
}

fn snapshot_of(text: &[u8]) -> Said {
    match serde_json::from_slice(text) {
        Ok(snapshot) => Said::Snapshot(Box::new(snapshot)),
        Err(error) => Said::Nothing(format!("its status is not understood: {error}")),
    }
}

/// The same for any mount. Of an ordinary user's the kernel tells nobody else anything, not even root; but root can ask in that
/// user's name.
fn said_by(entry: &MountEntry) -> Said {
    let said = read_through(&entry.dir);
    let euid = rustix::process::geteuid();
    match (said, entry.user_id, entry.group_id) {
        (Said::Nothing(_), Some(user), Some(group)) if euid.is_root() && user != 0 => read_as(user, group, &entry.dir),
        (Said::Nothing(_), Some(user), _) if !euid.is_root() && user != euid.as_raw() => {
            Said::Nothing(format!("it belongs to user {user}; only that user and root can tell"))
        }
        (said, ..) => said,
    }
}

fn read_as(user: u32, group: u32, dir: &Path) -> Said {
    let path = dir.join(".bosfs/status.json");
    let asked = answered(move || {
        let mut command = Command::new("cat");
        command.arg("--").arg(path).env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").current_dir("/");
        // In this order: without root's rights the group could not be changed any more.
        command.gid(group).uid(user).stdin(Stdio::null()).output()
    });
    match asked {
        None => Said::Nothing("it does not answer".to_owned()),
        Some(Err(error)) => Said::Nothing(format!("it cannot be asked in the name of user {user}: {error}")),
        Some(Ok(output)) if output.status.success() => snapshot_of(&output.stdout),
        Some(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            // As the C library words ENOTCONN in the plain locale.
            if text.ends_with("Transport endpoint is not connected") { Said::NotConnected } else { Said::Nothing(text) }
        }
    }
}

/// State directories whose leases processes have open, as far as this user may look.
fn leased_by_processes() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_process = process.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
        if !is_process {
            continue;
        }
        let descriptors = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let targets = descriptors.take(DESCRIPTORS_MAX).filter_map(|fd| std::fs::read_link(fd.path()).ok());
        found.extend(targets.filter(|target| target.ends_with("lease")).filter_map(|t| t.parent().map(Path::to_owned)));
    }
    found.sort();
    found.dedup();
    found
}

/// State directories in the default places of the user whose mount it was: this one's, or another one's below the home that
/// `/etc/passwd` names.
pub fn state_dirs_of(entry: &MountEntry) -> Vec<PathBuf> {
    let mut dirs = match entry.user_id.filter(|user| *user != rustix::process::geteuid().as_raw()) {
        None => status::known_state_dirs(),
        Some(user) => {
            let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            home_in(&passwd, user).map(|home| list_state_dirs_of_home(&home)).unwrap_or_default()
        }
    };
    dirs.retain(|dir| belongs_to_owner(dir, entry));
    dirs
}

/// The home of `user` by the text of `/etc/passwd` (passwd(5): name, password, user, group, comment, home, shell).
fn home_in(passwd: &str, user: u32) -> Option<PathBuf> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let id: u32 = fields.next()?.parse().ok()?;
        let home = fields.nth(2).map(PathBuf::from)?;
        (id == user && home.is_absolute()).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_other_mounts_are_not_asked() {
        let at = |dir: &str| Some(Holder::this_process(Some(dir.into()), None));
        let holder = |path: &Path| match path.to_str() {
            Some("other") => at("/other"),
            Some("ours") => at("/ours"),
            Some("unknown") => Some(Holder::this_process(None, None)),
            _ => None,
        };
        let dirs = || ["free", "other", "unknown", "ours"].map(PathBuf::from).to_vec();
        let held = |dir: &str, shows: &dyn Fn(&Path) -> bool| held_for(Path::new(dir), dirs(), holder, shows);
        assert_eq!(held("/ours", &|path| panic!("{path:?} is asked")), Some("ours".into()));
        let only_unknown = |path: &Path| path == Path::new("unknown") || panic!("{path:?} is asked");
        assert_eq!(held("/elsewhere", &only_unknown), Some("unknown".into()));
        assert_eq!(held("/elsewhere", &|_| false), None);
    }

    #[test]
    fn a_lease_that_a_process_has_open_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let dir = std::fs::canonicalize(dir.path()).unwrap().join("state");
        std::fs::create_dir(&dir).unwrap();
        let lease = std::fs::File::create(dir.join("lease")).unwrap();
        assert!(leased_by_processes().contains(&dir));
        drop(lease);
        assert!(!leased_by_processes().contains(&dir));
    }

    #[test]
    fn homes_are_read_from_the_list_of_users() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n\
                      odd:x:7:7::relative:/bin/sh\n";
        assert_eq!(home_in(passwd, 0), Some("/root".into()));
        assert_eq!(home_in(passwd, 65534), Some("/nonexistent".into()));
        assert_eq!((home_in(passwd, 7), home_in(passwd, 8)), (None, None));
    }

    #[test]
    fn a_mount_that_does_not_exist_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_through(dir.path()), Said::Nothing(_)), "a missing file is not a missing process");
    }
}
