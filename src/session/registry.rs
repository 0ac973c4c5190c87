//! State directories outside the default place (`--state-dir`), so that `bosfs status` finds them too: a symbolic link
//! to each beside the default ones, as long as something in it is unfinished or a session runs.

use std::io;
use std::path::{Path, PathBuf};

use crate::journal::state_dir::{Identity, default_path, moves_in, uploads_in};
use crate::object::Md5;

/// Prefix of the links' names; no default directory begins so, since bucket names have no `_`.
const LINK_PREFIX: &str = "at_";

/// A link that is there while its session runs.
pub(super) struct Remembered {
    link: PathBuf,
    state_dir: PathBuf,
}

/// Links `state_dir`, unless it lies in the default place anyway; `None` then, or when that place cannot be written
/// (the link is a convenience).
pub(super) fn remember(state_dir: &Path, identity: &Identity) -> Option<Remembered> {
    let default = default_path(identity);
    remember_below(default.parent()?, state_dir)
}

fn remember_below(root: &Path, state_dir: &Path) -> Option<Remembered> {
    // The path in use is free of links; that of the root need not be.
    let resolved = std::fs::canonicalize(root).ok();
    if resolved.is_some_and(|root| state_dir.parent() == Some(&root)) {
        return None;
    }
    let made = || -> io::Result<PathBuf> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        remove_dangling(root);
        let hash = Md5::of(state_dir.as_os_str().as_encoded_bytes()).to_hex();
        let link = root.join(format!("{LINK_PREFIX}{}", &hash[..16]));
        match std::os::unix::fs::symlink(state_dir, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(link),
        }
    };
    match made() {
        Ok(link) => Some(Remembered { link, state_dir: state_dir.to_owned() }),
        Err(error) => {
            log::debug!("bosfs status will not find {} by itself: {error}", state_dir.display());
            None
        }
    }
}

fn remove_dangling(root: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(LINK_PREFIX));
        let path = entry.path();
        if ours && entry.file_type().is_ok_and(|kind| kind.is_symlink()) && !path.exists() {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Remembered {
    fn drop(&mut self) {
        let is_empty = |dirs: io::Result<Vec<PathBuf>>| dirs.is_ok_and(|dirs| dirs.is_empty());
        if is_empty(uploads_in(&self.state_dir)) && is_empty(moves_in(&self.state_dir)) {
            let _ = std::fs::remove_file(&self.link);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_while_something_is_unfinished() {
        let base = tempfile::tempdir().unwrap();
        let (root, state) = (base.path().join("root"), std::fs::canonicalize(base.path()).unwrap().join("state"));
        std::fs::create_dir_all(state.join("uploads/0123456789abcdef")).unwrap();
        let remembered = remember_below(&root, &state).unwrap();
        let link = remembered.link.clone();
        assert_eq!(std::fs::read_link(&link).unwrap(), state);
        drop(remembered);
        assert!(link.exists());
        std::fs::remove_dir(state.join("uploads/0123456789abcdef")).unwrap();
        drop(remember_below(&root, &state));
        assert!(!link.exists() && std::fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn links_to_what_is_gone_are_cleared_and_default_places_need_none() {
        let base = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(base.path()).unwrap();
        std::os::unix::fs::symlink("/nonexistent", root.join("at_dead")).unwrap();
        assert!(remember_below(&root, &root.join("default")).is_none());
        let other = tempfile::tempdir().unwrap();
        let _kept = remember_below(&root, other.path()).unwrap();
        assert!(std::fs::symlink_metadata(root.join("at_dead")).is_err());
    }
}
