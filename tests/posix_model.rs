//! Random operations on a real mount beside a model in memory: names, sizes and every byte, compared at each read, after
//! every remount and every kill, and in the bucket past the mount.
//!
//! Short by default. Longer, or a failure again: `scripts/posix model --ops 50000 --seeds "1 2 3"`, or
//! `BOSFS_MODEL_SEED=7 BOSFS_MODEL_OPS=20000 cargo test --test posix_model random -- --nocapture`.

mod support;

#[path = "posix/frozen.rs"]
mod frozen;
#[path = "posix/model.rs"]
mod model;
#[path = "posix/names.rs"]
mod names;
#[path = "posix/random.rs"]
mod random;

use std::time::Duration;

/// Longest wait for anything that must happen.
const WAIT: Duration = Duration::from_secs(60);
/// The smallest part, so that few bytes make many parts.
const PART: u64 = 5 << 20;
