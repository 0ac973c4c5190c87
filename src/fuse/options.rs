//! What is asked of the kernel, and why.

use std::path::Path;
use std::thread;

use fuser::{Config, InitFlags, KernelConfig, MountOption, SessionACL};

use super::MountOptions;
use crate::fs::attr::IO_BYTES;
use crate::observe::mount_table;

/// Requests that the kernel may keep in flight in the background (reads ahead, mostly).
const BACKGROUND_MAX: u16 = 64;
/// The kernel's read-ahead, KiB: one request of the largest size. More brings nothing.
const READAHEAD_KIB: u32 = 1024;

/// What is wanted of the kernel:
/// - `PARALLEL_DIROPS`: lookups of one directory side by side; behind a network anything else is one file per round trip.
/// - `ATOMIC_O_TRUNC`: truncation arrives with the open, not as a change of size without a handle.
/// - `HANDLE_KILLPRIV_V2`: no request for `security.capability` before each write.
/// - `DO_READDIRPLUS`, `READDIRPLUS_AUTO`: attributes with the listing, where the program wants them.
/// - `CACHE_SYMLINKS`, `ASYNC_DIO`; `DIRECT_IO_ALLOW_MMAP`: shared mappings of files opened for writing.
///
/// Not `WRITEBACK_CACHE`: the kernel would own size and mtime, read before partial writes, and accept bytes that nothing
/// keeps. Not `POSIX_LOCKS`, `FLOCK_LOCKS`: the kernel does locks rightly by itself. Not `AUTO_INVAL_DATA`: pages are kept
/// or dropped by our own knowledge of versions.
const WANTED: InitFlags = InitFlags::FUSE_PARALLEL_DIROPS
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);

/// Settles sizes and features with the kernel.
pub(super) fn negotiate(config: &mut KernelConfig) {
    let offered = config.capabilities();
    let missing = WANTED - offered;
    if !missing.is_empty() {
        log::info!("this kernel lacks {missing:?}; bosfs works without");
    }
    // Each of these answers with the nearest value that the kernel takes; the defaults then stand.
    let _ = config.add_capabilities(WANTED & offered);
    let _ = config.set_max_write(IO_BYTES);
    let _ = config.set_max_background(BACKGROUND_MAX);
}

/// Mount options and threads.
pub(super) fn config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(listed_name(&options.fsname, rustix::process::geteuid().is_root())),
        // As root the crate turns `Subtype` into a device name only.
        MountOption::CUSTOM("subtype=bosfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoAtime,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    // A single stream needs three or more: the worker that answered sleeps on another core.
    let cores = thread::available_parallelism().map_or(2, usize::from);
    config.n_threads = Some((2 * cores).max(4));
    config.clone_fd = true;
    config
}

/// The source of the mount. Root's goes to mount(2) as it is; everybody else's into the option list of fusermount3, where a
/// comma in a prefix would begin an option.
fn listed_name(name: &str, is_root: bool) -> String {
    if is_root { name.to_owned() } else { name.replace('\\', "\\\\").replace(',', "\\,") }
}

/// Widens the kernel's read-ahead for the mount on `dir` (absolute, without symbolic links); only root may.
///
/// The mount itself is not asked for its device: killed in the middle of that, the process would wait for its own answer and
/// keep the kernel's end of the mount open for ever.
pub(super) fn tune_readahead(dir: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(Some(entry)) = mount_table::at(dir) else {
        log::debug!("{} is not in the mount table; reads go in smaller pieces", dir.display());
        return;
    };
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", entry.device);
    if let Err(error) = std::fs::write(&path, READAHEAD_KIB.to_string()) {
        log::debug!("{path}: {error}; reads go in smaller pieces");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_prefix_begins_no_option() {
        assert_eq!(listed_name("bkt/a,allow_other\\", false), "bkt/a\\,allow_other\\\\");
        assert_eq!(listed_name("bkt/a,b", true), "bkt/a,b");
    }
}
