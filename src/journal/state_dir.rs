//! Layout of the state directory and the lease on it.

/// Exclusive right to a state directory.
pub struct Lease {}

/// An open, leased state directory.
pub struct StateDir {}

impl StateDir {
    /// Directories of all journaled files.
    pub fn uploads(&self) -> std::io::Result<Vec<std::path::PathBuf>> {
        todo!()
    }
    /// Makes a new directory for one file; its name is the journal ID (16 random hex digits).
    pub fn create_upload(&self) -> std::io::Result<(String, std::path::PathBuf)> {
        todo!()
    }
    /// Removes one file's directory (renamed out of `uploads/` first, so that a crash never leaves half of one).
    pub fn remove_upload(&self, _dir: &std::path::Path) -> std::io::Result<()> {
        todo!()
    }
    /// Syncs the directory `uploads/` itself, so that created and removed names are on stable storage.
    pub fn sync_uploads(&self) -> std::io::Result<()> {
        todo!()
    }
    /// The directory itself.
    pub fn path(&self) -> &std::path::Path {
        todo!()
    }
}

/// Identity of this boot (`/proc/sys/kernel/random/boot_id`).
pub fn boot_id() -> String {
    todo!()
}
