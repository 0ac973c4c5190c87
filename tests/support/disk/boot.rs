//! A restart of the machine, as far as bosfs can tell: another `/proc/sys/kernel/random/boot_id`.
//!
//! bosfs is started in a mount namespace of its own, in which a file is bound over that path. The folder of the mount point
//! is a shared mount in both namespaces, so the mount that bosfs makes there is seen outside as well.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use crate::support::mounted::{MountSpec, detach};

const SCRIPT: &str = concat!(
    include_str!("../alone.sh"),
    r#"leave_other_mounts "$1"; shift; "#,
    r#"mount --make-rprivate /proc && mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@""#
);

/// A folder whose mounts are seen in other namespaces too, and the boot that bosfs is told of.
pub struct Boot {
    shared: PathBuf,
    id_file: PathBuf,
    boots: u32,
}

impl Boot {
    /// Makes the folder `dir`.
    ///
    /// # Errors
    /// What mount(2) says.
    pub fn new(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        mount_bind(dir, dir)?;
        let boot = Self { shared: dir.to_owned(), id_file: dir.join("boot_id"), boots: 0 };
        mount_change(dir, MountPropagationFlags::PRIVATE)?;
        mount_change(dir, MountPropagationFlags::SHARED)?;
        Ok(boot)
    }

    /// The machine starts once more: `spec` mounts in a new boot from now on, within the shared folder.
    ///
    /// # Errors
    /// The file with the boot ID cannot be written.
    pub fn restart(&mut self, spec: &mut MountSpec) -> io::Result<()> {
        self.boots += 1;
        std::fs::write(&self.id_file, format!("00000000-0000-4000-8000-{:012x}\n", self.boots))?;
        let id_file = self.id_file.to_string_lossy().into_owned();
        let own = self.shared.parent().unwrap_or(&self.shared).to_string_lossy().into_owned();
        let words = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", SCRIPT, "sh", &own, &id_file];
        spec.wrapper = words.map(str::to_owned).to_vec();
        spec.dir = self.shared.join("mnt");
        Ok(())
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        detach(&self.shared.join("mnt"));
        detach(&self.shared);
    }
}
