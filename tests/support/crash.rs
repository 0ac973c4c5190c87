//! Rounds in which the disk under bosfs's state directory does something at its n-th change: SIGKILL, power loss, no room.
//! Shared by `tests/crash.rs` and the tool `crash-points`.
//!
//! A round brings a fresh world to the point, lets the fault happen there, heals the disk, and checks what must hold. What
//! does not hold is counted in its [`Outcome`]; a round whose point lies behind the end of the operation says so.

pub mod checkpoint;
pub mod contents;
pub mod kill;
pub mod outcome;
pub mod power;
pub mod scene;
pub mod steps;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::disk::FaultDisk;
use super::mounted::{MountSpec, Mounted};
use super::world::World;

/// Longest wait for anything.
pub const WAIT: Duration = Duration::from_secs(90);
pub const PART: u64 = 5 << 20;
/// Four parts, the last one short.
pub const SIZE: u64 = 3 * PART + 1000;
pub const KEY: &str = "huge.iso";

/// A world whose state directory lies on a disk that can fail.
pub struct Place {
    // Dropped in this order: bosfs is gone before.
    pub disk: FaultDisk,
    pub world: World,
}

impl Place {
    /// A new one.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        let world = World::try_new()?;
        let disk = FaultDisk::start(&world.path("disk"), &world.path("backing"))?;
        Ok(Self { disk, world })
    }

    /// How to mount with the state directory on the disk.
    pub fn spec(&self, args: &[&str]) -> MountSpec {
        let mut spec = self.world.spec(args);
        spec.args.extend(["--part-size".to_owned(), "5MiB".to_owned()]);
        spec.state_dir = self.disk.dir().join("state");
        spec
    }

    /// Mounts the bucket.
    pub fn mount(&self, args: &[&str]) -> Mounted {
        self.spec(args).mount().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Directories of journals and moves, seen past the disk.
    pub fn journals(&self) -> Vec<PathBuf> {
        journals_in(&self.disk.backing().join("state"))
    }

    /// Waits until no journal and no move is left. `false`: not in time.
    pub fn wait_idle(&self, limit: Duration) -> bool {
        wait_until(limit, || self.journals().is_empty())
    }

    /// The end of bosfs's log.
    pub fn log_tail(&self) -> String {
        let log = self.world.log_text();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// Directories of journals and moves in the state directory `state`.
pub fn journals_in(state: &std::path::Path) -> Vec<PathBuf> {
    let of = |name| std::fs::read_dir(state.join(name)).into_iter().flatten().flatten().map(|entry| entry.path());
    of("uploads").chain(of("moves")).collect()
}

/// Waits until `done`. `false`: not in time.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
