//! What the integration tests and the tools share: a fault proxy, a server, the real `bosfs` binary on a real mount, and
//! ways to look at the bucket past the mount.
//!
//! Included with `mod support;` (tests) or `#[path]` (tools); each uses only a part of it.
#![allow(dead_code, unused_imports)]

pub mod action;
pub mod bucket;
pub mod call;
pub mod counts;
pub mod crash;
pub mod disk;
mod exchange;
pub mod fault;
pub mod files;
pub mod hostile;
pub mod http;
pub mod kill_rounds;
pub mod mapped;
pub mod mounted;
pub mod odd_tree;
pub mod proxy;
pub mod rsync_cost;
pub mod stale;
pub mod tree;
pub mod watch;
pub mod world;

pub use bucket::{Bucket, Seen, TestKeys};
pub use call::Call;
pub use fault::{Action, HoldAt, When};
pub use mapped::MappedFile;
pub use mounted::{MountSpec, Mounted};
pub use proxy::{FaultProxy, Line};
pub use watch::KeyWatch;
pub use world::{BUCKET, TestServer, World};
