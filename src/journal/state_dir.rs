//! Layout of the state directory and the lease on it.
//!
//! ```text
//! STATE/                      0700, one per endpoint + bucket + prefix
//!   lease                     flock'ed while a process uses the directory; its first line: the holder, as JSON
//!   identity.json             which endpoint, bucket and prefix this is the state of; never changed
//!   uploads/<journal id>/     one per file that is not yet proved in BOS (16 lowercase hex digits)
//!     journal  map  spool     (and map.N, spool.N of later layers; journal.new while a checkpoint is made)
//!   moves/<journal id>/       one per rename, exchange or batch of deletions that is not yet done
//!     journal
//!   trash/                    directories on their way out; emptied at every start
//! ```
//!
//! Files are 0600. A name made here is on stable storage only after [`StateDir::sync_upload`] or
//! [`StateDir::sync_uploads`]; the identity always is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

pub use super::lease::{Holder, Lease, read_holder};
use super::{lease, probe};

const IDENTITY_NAME: &str = "identity.json";
const UPLOADS_NAME: &str = "uploads";
const MOVES_NAME: &str = "moves";
const TRASH_NAME: &str = "trash";
/// Version of this layout.
const LAYOUT: u32 = 1;
/// Longest readable part of a default directory name, bytes.
const READABLE_BYTES_MAX: usize = 64;

/// What a state directory belongs to. Journals of one place must never be replayed against another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Endpoint as configured, normalised by the caller (scheme, host and port).
    pub endpoint: String,
    /// Bucket.
    pub bucket: String,
    /// Prefix within the bucket, empty for all of it.
    pub prefix: String,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} at {}", self.bucket, self.prefix, self.endpoint)
    }
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    #[serde(flatten)]
    identity: Identity,
}

/// Why a state directory cannot be used. Nothing in it was changed, but for its mode and leftovers in `trash/`.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// The path leads to something else.
    #[error("the state directory {} is not a directory; give another one with --state-dir", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It holds foreign files.
    #[error("{} is not empty and no state directory of bosfs ({found:?} is in it); give an own one with --state-dir, \
             for example {}", path.display(), path.join("bosfs-state").display())]
    Foreign {
        /// The path.
        path: PathBuf,
        /// One of the foreign names.
        found: String,
    },
    /// Others may read it and that cannot be changed.
    #[error("the state directory {} belongs to user {owner}, who could read and change what bosfs keeps there; give an \
             own one with --state-dir", path.display())]
    NotPrivate {
        /// The path.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A symbolic link of somebody else.
    #[error("the state directory {} is a symbolic link of user {owner}, and leads where that user likes; remove it, or \
             give another directory with --state-dir", path.display())]
    ForeignLink {
        /// The path.
        path: PathBuf,
        /// Owner of the link.
        owner: u32,
    },
    /// It would depend on the daemon whose journal it holds.
    #[error("the state directory {} lies inside a bosfs mount; it must be on a local disk, give another one with \
             --state-dir", path.display())]
    InsideMount {
        /// The path.
        path: PathBuf,
    },
    /// Another process uses it.
    #[error("the state directory {} is in use by {holder}", path.display())]
    Held {
        /// The path.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
    /// It is the state of another place.
    #[error("the state directory {} belongs to {found}, not to {wanted}; give another one with --state-dir", path.display())]
    OtherIdentity {
        /// The path.
        path: PathBuf,
        /// Whose it is.
        found: Box<Identity>,
        /// Whose was asked for.
        wanted: Box<Identity>,
    },
    /// A newer bosfs made it.
    #[error("the state directory {} has layout {format}, this bosfs knows up to {LAYOUT}; use a newer bosfs", path.display())]
    Newer {
        /// The path.
        path: PathBuf,
        /// Its layout version.
        format: u32,
    },
    /// `identity.json` cannot be understood.
    #[error("{} is damaged ({message}); if the directory surely belongs to this bucket, remove that file and mount again: \
             journals and spooled bytes are kept", path.display())]
    DamagedIdentity {
        /// Of the file.
        path: PathBuf,
        /// How.
        message: String,
    },
    /// No space.
    #[error("the disk of the state directory {} is full, so no write could be made safe; free some space there or give \
             another one with --state-dir (what waits in it is kept)", path.display())]
    Full {
        /// The path.
        path: PathBuf,
    },
    /// Mounted read-only, or no permission to write.
    #[error("the state directory {} cannot be written ({error}); give a writable one with --state-dir", path.display())]
    NotWritable {
        /// The path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Anything else that the file system cannot do.
    #[error("the state directory {} cannot be used: {doing}: {error}; give another one with --state-dir", path.display())]
    Unfit {
        /// The path.
        path: PathBuf,
        /// The failed step.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl StateDirError {
    fn of(path: &Path, doing: &'static str, error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        let path = path.to_owned();
        match error.kind() {
            Kind::NotADirectory | Kind::AlreadyExists => Self::NotADirectory { path },
            Kind::StorageFull | Kind::QuotaExceeded => Self::Full { path },
            Kind::ReadOnlyFilesystem | Kind::PermissionDenied => Self::NotWritable { path, error },
            _ => Self::Unfit { path, doing, error },
        }
    }
}

/// An open, leased state directory.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lease: Lease,
    weakened: Vec<String>,
    punches: bool,
    /// Names that were made in `uploads/` or taken out of it by this process, and how many of them are certain.
    uploads_named: AtomicU64,
    uploads_synced: AtomicU64,
}

impl StateDir {
    /// Opens `path`, making it (0700) where it is missing, takes the lease, checks the identity, tries out what is needed
    /// of the file system (writing, hole punching, fdatasync, lock) and empties the trash.
    ///
    /// # Errors
    /// See [`StateDirError`]: each says the path and what to do.
    pub fn open(path: &Path, identity: &Identity) -> Result<StateDir, StateDirError> {
        let err = |doing| move |error| StateDirError::of(path, doing, error);
        check_link(path)?;
        make_dirs_synced(path).map_err(err("creating it"))?;
        let path = &fs::canonicalize(path).map_err(err("resolving it"))?;
        let err = |doing| move |error| StateDirError::of(path, doing, error);
        if probe::inside_bosfs(path).map_err(err("asking for its file system"))? {
            return Err(StateDirError::InsideMount { path: path.clone() });
        }
        if let Some(found) = foreign_entry(path).map_err(err("listing it"))? {
            return Err(StateDirError::Foreign { path: path.clone(), found });
        }
        make_private(path)?;
        let lease = match lease::acquire(path).map_err(err("locking its file lease"))? {
            Ok(lease) => lease,
            Err(holder) => return Err(StateDirError::Held { path: path.clone(), holder }),
        };
        let findings = probe::probe(path).map_err(err("trying it out"))?;
        check_identity(path, identity)?;
        for name in [UPLOADS_NAME, MOVES_NAME, TRASH_NAME] {
            match DirBuilder::new().mode(0o700).create(path.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(err("making its directories")(e)),
                _ => {}
            }
        }
        // What is synced in them later must be found again.
        File::open(path).and_then(|dir| dir.sync_all()).map_err(err("syncing it"))?;
        let state = StateDir {
            path: path.clone(),
            lease,
            weakened: findings.weakened,
            punches: findings.punches,
            // What an earlier process left is not certain.
            uploads_named: AtomicU64::new(1),
            uploads_synced: AtomicU64::new(0),
        };
        state.empty_trash();
        Ok(state)
    }

    /// Directories of all journaled files, by name.
    ///
    /// # Errors
    /// `uploads/` cannot be listed.
    pub fn uploads(&self) -> io::Result<Vec<PathBuf>> {
        uploads_in(&self.path)
    }

    /// Makes a new directory for one file; its name is the journal ID (16 random hex digits). One `mkdir`, not synced.
    ///
    /// # Errors
    /// The directory cannot be made; nothing is left behind.
    pub fn create_upload(&self) -> io::Result<(String, PathBuf)> {
        let created = self.create_in(UPLOADS_NAME);
        self.uploads_named.fetch_add(1, Ordering::SeqCst);
        created
    }

    /// Directories of all journaled moves, by name.
    ///
    /// # Errors
    /// `moves/` cannot be listed.
    pub fn moves(&self) -> io::Result<Vec<PathBuf>> {
        journals_in(&self.path.join(MOVES_NAME))
    }

    /// As [`create_upload`](Self::create_upload), for a move.
    ///
    /// # Errors
    /// The directory cannot be made; nothing is left behind.
    pub fn create_move(&self) -> io::Result<(String, PathBuf)> {
        self.create_in(MOVES_NAME)
    }

    fn create_in(&self, place: &str) -> io::Result<(String, PathBuf)> {
        loop {
            let id = format!("{:016x}", rand::random::<u64>());
            let dir = self.path.join(place).join(&id);
            match DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => return Ok((id, dir)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Removes one file's directory (renamed out of `uploads/` first, so that a crash never leaves half of one). Not
    /// synced: after power loss it may be back, whole. Already gone is fine.
    ///
    /// # Errors
    /// `dir` is no directory in `uploads/`, or it cannot be renamed. What cannot be deleted afterwards stays in the trash
    /// and is tried again at the next start.
    pub fn remove_upload(&self, dir: &Path) -> io::Result<()> {
        let removed = self.remove_from(UPLOADS_NAME, dir);
        self.uploads_named.fetch_add(1, Ordering::SeqCst);
        removed
    }

    /// As [`remove_upload`](Self::remove_upload), for a move.
    ///
    /// # Errors
    /// `dir` is no directory in `moves/`, or it cannot be renamed.
    pub fn remove_move(&self, dir: &Path) -> io::Result<()> {
        self.remove_from(MOVES_NAME, dir)
    }

    fn remove_from(&self, place: &str, dir: &Path) -> io::Result<()> {
        let name = dir.file_name().filter(|_| dir.parent() == Some(&self.path.join(place)));
        let Some(name) = name.and_then(|n| n.to_str()) else {
            let message = format!("{} is no directory in {place}/", dir.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let grave = self.path.join(TRASH_NAME).join(format!("{name}.{:08x}", rand::random::<u32>()));
        match fs::rename(dir, &grave) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && !dir.exists() => return Ok(()),
            Err(e) => return Err(e),
        }
        if let Err(e) = fs::remove_dir_all(&grave) {
            ::log::warn!("{} could not be deleted, the next start tries again: {e}", grave.display());
        }
        Ok(())
    }

    /// Syncs the directory `uploads/` itself, so that created and removed names are on stable storage.
    ///
    /// # Errors
    /// The sync failed.
    pub fn sync_uploads(&self) -> io::Result<()> {
        let named = self.uploads_named.load(Ordering::SeqCst);
        File::open(self.path.join(UPLOADS_NAME))?.sync_all()?;
        self.uploads_synced.fetch_max(named, Ordering::SeqCst);
        Ok(())
    }

    /// As [`sync_uploads`](Self::sync_uploads), unless no name came or went since the last one.
    ///
    /// # Errors
    /// The sync failed.
    pub fn sync_uploads_if_changed(&self) -> io::Result<()> {
        let named = self.uploads_named.load(Ordering::SeqCst);
        if self.uploads_synced.load(Ordering::SeqCst) >= named { Ok(()) } else { self.sync_uploads() }
    }

    /// Syncs the names of a move: its journal and its own.
    ///
    /// # Errors
    /// A sync failed.
    pub fn sync_move(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()?;
        File::open(self.path.join(MOVES_NAME))?.sync_all()
    }

    /// Syncs the names of an upload: those within its directory (`journal`, `map`, `spool`) and its own. Needed once, by
    /// the first fsync of a file; the bytes of the files are synced by their owners.
    ///
    /// # Errors
    /// A sync failed.
    pub fn sync_upload(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()?;
        self.sync_uploads()
    }

    /// The directory itself, absolute and free of symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lease; it ends with this value, or with the process, however that ends.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Tells others who holds the lease, what it mounts where, and where it answers. To be called again after a fork.
    ///
    /// # Errors
    /// The file `lease` cannot be written.
    pub fn set_holder(&self, holder: &Holder) -> io::Result<()> {
        self.lease.set_holder(holder)
    }

    /// One sentence per promise that this place weakens (tmpfs, network file systems, no hole punching); for the log.
    pub fn weakened(&self) -> &[String] {
        &self.weakened
    }

    /// Whether ranges can be punched out of spool files here.
    pub fn punches(&self) -> bool {
        self.punches
    }

    fn empty_trash(&self) {
        let trash = self.path.join(TRASH_NAME);
        for entry in fs::read_dir(&trash).into_iter().flatten().flatten() {
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            let path = entry.path();
            if let Err(e) = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) } {
                ::log::warn!("leftover {} could not be deleted: {e}", path.display());
            }
        }
    }
}

/// Directories of all journaled files of the state directory `path`, by name, without a lease (for `status`).
///
/// # Errors
/// `uploads/` cannot be listed.
pub fn uploads_in(path: &Path) -> io::Result<Vec<PathBuf>> {
    journals_in(&path.join(UPLOADS_NAME))
}

/// Directories of all journaled moves of the state directory `path`, by name, without a lease. Empty where an older bosfs
/// made the directory.
///
/// # Errors
/// `moves/` cannot be listed.
pub fn moves_in(path: &Path) -> io::Result<Vec<PathBuf>> {
    match journals_in(&path.join(MOVES_NAME)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

fn journals_in(place: &Path) -> io::Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name().to_str().is_some_and(is_journal_id) {
            dirs.push(entry.path());
        }
    }
    dirs.sort();
    Ok(dirs)
}

/// Whether `name` has the form of a journal ID: 16 lowercase hex digits.
pub fn is_journal_id(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Where the state of `identity` lies unless `--state-dir` says otherwise: under `$XDG_STATE_HOME/bosfs` where that is
/// set, else `/var/lib/bosfs` for root and `~/.local/state/bosfs` for others. The name is readable and ends in a hash.
pub fn default_path(identity: &Identity) -> PathBuf {
    default_root().join(default_name(identity))
}

/// State directories under the default root, by name (for `status` without a directory).
pub fn list_state_dirs() -> Vec<PathBuf> {
    list_state_dirs_in(&default_root())
}

/// State directories in the default place of a user with this home.
pub fn list_state_dirs_of_home(home: &Path) -> Vec<PathBuf> {
    list_state_dirs_in(&home.join(".local/state/bosfs"))
}

fn list_state_dirs_in(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
    let mut dirs: Vec<_> = entries.filter(|p| p.join(IDENTITY_NAME).is_file()).collect();
    dirs.sort();
    dirs
}

fn default_root() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    if let Some(state) = absolute("XDG_STATE_HOME") {
        return state.join("bosfs");
    }
    match absolute("HOME") {
        Some(home) if !rustix::process::geteuid().is_root() => home.join(".local/state/bosfs"),
        _ => PathBuf::from("/var/lib/bosfs"),
    }
}

fn default_name(identity: &Identity) -> String {
    let plain = if identity.prefix.is_empty() {
        identity.bucket.clone()
    } else {
        format!("{}_{}", identity.bucket, identity.prefix.trim_end_matches('/'))
    };
    let readable: String = plain
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' })
        .take(READABLE_BYTES_MAX)
        .collect();
    let mut hash = sha2::Sha256::new();
    for field in [&identity.endpoint, &identity.bucket, &identity.prefix] {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    format!("{readable}-{}", hex::encode(&hash.finalize()[..5]))
}

/// What `identity.json` of the state directory `path` says; `None` without a readable one.
pub fn read_identity(path: &Path) -> Option<Identity> {
    let bytes = fs::read(path.join(IDENTITY_NAME)).ok()?;
    serde_json::from_slice::<IdentityFile>(&bytes).ok().map(|file| file.identity)
}

fn check_identity(path: &Path, wanted: &Identity) -> Result<(), StateDirError> {
    let file = path.join(IDENTITY_NAME);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let made = IdentityFile { format: LAYOUT, identity: wanted.clone() };
            let json = serde_json::to_vec_pretty(&made).map_err(io::Error::from);
            return json
                .and_then(|json| write_file_synced(path, IDENTITY_NAME, &json))
                .map_err(|e| StateDirError::of(path, "writing identity.json", e));
        }
        Err(e) => return Err(StateDirError::of(path, "reading identity.json", e)),
    };
    let damaged = |message: String| StateDirError::DamagedIdentity { path: file.clone(), message };
    let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    match json.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format > u64::from(LAYOUT) => {
            let format = u32::try_from(format).unwrap_or(u32::MAX);
            return Err(StateDirError::Newer { path: path.to_owned(), format });
        }
        _ => {}
    }
    let found = serde_json::from_value::<IdentityFile>(json).map_err(|e| damaged(e.to_string()))?.identity;
    if found != *wanted {
        let (found, wanted) = (Box::new(found), Box::new(wanted.clone()));
        return Err(StateDirError::OtherIdentity { path: path.to_owned(), found, wanted });
    }
    Ok(())
}

/// Puts a file of this name and content into `dir` so that, from when it returns, it survives power loss, and a crash
/// before leaves the old one or none: written aside, synced, renamed, directory synced.
fn write_file_synced(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let aside = dir.join(format!("{name}.new"));
    let written =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside).and_then(|mut f| {
            f.write_all(bytes)?;
            f.sync_all()
        });
    written.and_then(|()| fs::rename(&aside, dir.join(name))).inspect_err(|_| {
        let _ = fs::remove_file(&aside);
    })?;
    File::open(dir)?.sync_all()
}

/// Makes the directory `path` (0700) and those above it that are missing; their names are on stable storage then.
fn make_dirs_synced(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for dir in missing {
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A directory above that may not be read cannot be synced either; most file systems need no more.
        if let Ok(parent) = File::open(parent) {
            parent.sync_all()?;
        }
    }
    Ok(())
}

/// A name in `path` that bosfs did not put there; `None` if all are its own, or `identity.json` is there.
fn foreign_entry(path: &Path) -> io::Result<Option<String>> {
    if path.join(IDENTITY_NAME).exists() {
        return Ok(None);
    }
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let own = matches!(name.as_str(), lease::LEASE_NAME | UPLOADS_NAME | MOVES_NAME | TRASH_NAME | "lost+found")
            || name.starts_with("probe.")
            || name.starts_with(IDENTITY_NAME);
        if !own {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Refuses a symbolic link that somebody else has put in the place of the directory: it leads where that user likes.
fn check_link(path: &Path) -> Result<(), StateDirError> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if meta.is_symlink() && !is_trusted(meta.uid()) {
        return Err(StateDirError::ForeignLink { path: path.to_owned(), owner: meta.uid() });
    }
    Ok(())
}

/// Whether `owner` is this user, or root, who can do anything anyway.
fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == rustix::process::geteuid().as_raw()
}

/// Takes all rights of group and others away from our own directory. One of another user is refused: its owner could read
/// what is written, and change what is believed.
fn make_private(path: &Path) -> Result<(), StateDirError> {
    let meta = fs::metadata(path).map_err(|e| StateDirError::of(path, "asking for its mode", e))?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(StateDirError::NotPrivate { path: path.to_owned(), owner: meta.uid() });
    }
    if meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(|_| StateDirError::NotPrivate { path: path.to_owned(), owner: meta.uid() })
}

/// Identity of this boot (`/proc/sys/kernel/random/boot_id`). Where it cannot be read, one made up for this process, so
/// that recovery trusts no more than after a reboot.
pub fn boot_id() -> String {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID
        .get_or_init(|| match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
            Ok(id) if !id.trim().is_empty() => id.trim().to_owned(),
            _ => format!("unknown-{:016x}", rand::random::<u64>()),
        })
        .clone()
}

#[cfg(test)]
#[path = "state_dir_tests.rs"]
mod tests;
