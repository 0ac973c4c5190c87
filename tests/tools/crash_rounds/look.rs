//! Looks at the mount and at the bucket.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::seen::{Entry, Tree};
use crate::support::Bucket;

/// Everything that the mount at `dir` shows.
///
/// # Errors
/// What cannot be read, also when it takes longer than `within`: the thread that hangs ends with the mount.
pub fn mount(dir: &Path, within: Duration) -> Result<Tree, String> {
    let (tell, told) = channel();
    let root = dir.to_owned();
    std::thread::spawn(move || {
        let mut tree = Tree::new();
        let read = read_dir(&root, "", &mut tree).map(|()| tree);
        let _ = tell.send(read);
    });
    told.recv_timeout(within).map_err(|_| format!("reading the mount: no end within {within:?}"))?
}

fn read_dir(root: &Path, below: &str, tree: &mut Tree) -> Result<(), String> {
    let dir = root.join(below);
    let failed = |what: &Path, e: std::io::Error| format!("reading {}: {e}", what.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(|e| failed(&dir, e))? {
        let name = entry.map_err(|e| failed(&dir, e))?.file_name();
        names.push(name.into_string().map_err(|name| format!("a name that is no text: {name:?}"))?);
    }
    for name in names {
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let full = root.join(&path);
        let meta = std::fs::symlink_metadata(&full).map_err(|e| failed(&full, e))?;
        if meta.is_dir() {
            tree.insert(path.clone(), Entry::Dir);
            read_dir(root, &path, tree)?;
        } else {
            let bytes = std::fs::read(&full).map_err(|e| failed(&full, e))?;
            if bytes.len() as u64 != meta.len() {
                return Err(format!("{path:?} has {} bytes, stat says {}", bytes.len(), meta.len()));
            }
            tree.insert(path, Entry::File { bytes, mode: meta.permissions().mode() & 0o7777 });
        }
    }
    Ok(())
}

/// What the bucket holds under a prefix, past proxy and mount; keys without the prefix.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub bytes: BTreeMap<String, Vec<u8>>,
    /// Modes that objects carry.
    pub modes: BTreeMap<String, u32>,
}

impl Objects {
    /// # Errors
    /// When the server cannot be asked.
    pub fn read(bucket: &Bucket, prefix: &str) -> Result<Self, String> {
        let mut objects = Self::default();
        for key in bucket.list(prefix).map_err(|e| format!("listing the bucket: {e}"))? {
            let mut bytes = Vec::new();
            let reply = bucket.call("GET", &key, &[], &[], b"", &mut |piece| bytes.extend_from_slice(piece));
            let reply = reply.map_err(|e| format!("GET {key:?}: {e}"))?;
            let name = key[prefix.len()..].to_owned();
            match reply.status {
                200 => {
                    let mode = reply.header("x-bce-meta-bosfs-mode").and_then(|mode| mode.parse::<u32>().ok());
                    objects.modes.extend(mode.map(|mode| (name.clone(), mode & 0o7777)));
                    objects.bytes.insert(name, bytes);
                }
                // It was removed between the listing and the look.
                404 => {}
                status => return Err(format!("GET {key:?}: {status}")),
            }
        }
        Ok(objects)
    }

    /// Those of one lane.
    pub fn of_lane(&self, root: &str) -> BTreeMap<String, Vec<u8>> {
        let below = format!("{root}/");
        self.bytes.iter().filter(|(key, _)| key.starts_with(&below)).map(|(key, b)| (key.clone(), b.clone())).collect()
    }
}
