//! The OOM killer, by a memory cgroup (version 1) around bosfs.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::mounted::cp;
use crate::support::{Call, HoldAt, Mounted, When, World};
use crate::{KEY, WAIT, assert_nothing_twice, bosfs_after, wait_until};

/// A memory cgroup of its own; gone when dropped.
struct Group {
    dir: PathBuf,
    /// The hierarchy, where it had to be mounted for this.
    mounted: Option<PathBuf>,
}

impl Group {
    fn new(world: &World) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let found = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields[2] == "cgroup" && fields[3].split(',').any(|option| option == "memory"))
                .then(|| fields[1].to_owned())
        });
        let (root, mounted) = match found {
            Some(root) => (PathBuf::from(root), None),
            None => {
                let root = world.path("cgroup");
                std::fs::create_dir(&root).unwrap();
                rustix::mount::mount("memory", &root, "cgroup", rustix::mount::MountFlags::empty(), Some(c"memory"))
                    .expect("a cgroup hierarchy of version 1 with the memory controller (needs root)");
                (root.clone(), Some(root))
            }
        };
        let dir = root.join(format!("bosfs-test-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        Self { dir, mounted }
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.dir.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
    }

    /// `false`: more than that is in use and cannot be given back.
    fn limit(&self, bytes: u64) -> bool {
        std::fs::write(self.dir.join("memory.limit_in_bytes"), bytes.to_string()).is_ok()
    }

    /// Processes that the kernel killed here for want of memory.
    fn oom_kills(&self) -> u64 {
        let text = self.read("memory.oom_control");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.expect("oom_kill in memory.oom_control").trim().parse().unwrap()
    }

    /// How often the limit was reached and pages had to be given back.
    fn times_full(&self) -> u64 {
        self.read("memory.failcnt").trim().parse().unwrap()
    }

    fn mount(&self, world: &World, args: &[&str]) -> Mounted {
        let mut spec = world.spec(args);
        let procs = self.dir.join("cgroup.procs");
        spec.binary = bosfs_after(world, "bosfs-in-group", &format!("echo $$ > '{}'", procs.display()));
        spec.mount().unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes that were just killed may still be leaving.
        for _ in 0..200 {
            if std::fs::remove_dir(&self.dir).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(root) = &self.mounted {
            let _ = rustix::mount::unmount(root, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// If the kernel kills bosfs for want of memory, the next mount shows the beginning of the file as it was written, and
/// finishing the copy sends no part twice.
#[test]
fn the_oom_killer_costs_nothing_that_was_accepted() {
    let world = World::new();
    let group = Group::new(&world);
    let size = 12 * crate::PART + 777;
    let source = world.random_file("source", 1, size);
    let mut mount = group.mount(&world, &["--part-size", "5MiB", "--max-uploads", "16"]);
    let mut writer = crate::writing(&world, &mount, &source, 2);
    // No more than it needs at rest, with nothing in memory that could be given back.
    let mut limit: u64 = group.read("memory.usage_in_bytes").trim().parse().unwrap();
    while group.limit(limit) {
        limit = limit.saturating_sub(256 << 10);
    }
    // Each part on its way needs a megabyte of its own.
    let _held = world.proxy.hold(When::call(Call::UploadPart), HoldAt::InsideBody { after_bytes: 1000 });
    let feeding = std::thread::spawn({
        let source = source.clone();
        // Ends with the mount.
        move || {
            let _ = writer.feed_from(&source, 2 * crate::PART + 5000, size);
            drop(writer);
        }
    });
    wait_until("the kernel kills it", || {
        if group.limit(limit) {
            limit = limit.saturating_sub(256 << 10);
        }
        group.oom_kills() > 0
    });
    wait_until("bosfs is gone", || mount.has_ended());
    mount.kill();
    let _ = crate::support::mounted::within(WAIT, "cp ends with the mount", move || feeding.join());
    world.proxy.clear_rules();
    world.wait_quiet();
    let taken = (1..=13).filter(|part| world.proxy.counts().part(KEY, *part).accepted > 0).count();
    assert!(taken >= 2);
    let mount = world.mount(&crate::ARGS);
    let shown = std::fs::read(mount.path(KEY)).unwrap();
    assert!(shown.len() as u64 >= 2 * crate::PART, "{} bytes", shown.len());
    let written = std::fs::read(&source).unwrap();
    let differs = shown.iter().zip(&written).position(|(shown, written)| shown != written);
    assert_eq!(differs, None, "of {} bytes shown, another one than was written", shown.len());
    let closed = mount.file_status(KEY).is_none_or(|entry| entry["state"] != "interrupted");
    if closed {
        mount.wait_settled(KEY, WAIT);
    } else {
        assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    }
    world.assert_object_is_file(KEY, &source);
    assert_nothing_twice(&world);
}

/// In a memory cgroup of 64 MiB, with `--memory-limit 32MiB`, a file of 256 MiB is copied in and read back without
/// bosfs being killed.
#[test]
fn the_spool_of_a_large_file_is_no_reason_to_be_killed() {
    let world = World::new();
    let group = Group::new(&world);
    let limit: u64 = 64 << 20;
    assert!(group.limit(limit));
    let source = world.random_file("source", 1, 4 * limit);
    let mut mount = group.mount(&world, &["--memory-limit", "32MiB"]);
    let output = cp(&source, mount.path(KEY), WAIT);
    assert!(output.status.success(), "{output:?} oom_kill {}\n{}", group.oom_kills(), mount.log_text());
    assert!(group.times_full() > 0, "the limit was never reached");
    assert_eq!(group.oom_kills(), 0);
    assert!(!mount.has_ended());
    world.assert_object_is_file(KEY, &source);
    let read = crate::support::files::md5_of_file(&mount.path(KEY)).unwrap();
    assert_eq!(read, crate::support::files::md5_of_file(&source).unwrap());
    assert_eq!(group.oom_kills(), 0);
}
