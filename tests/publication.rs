//! What is published is the file as it was when it was closed, whatever other handles do to it meanwhile: other programs
//! write, cut, punch, rename and close while a publication cannot get through, on real mounts.
//!
//! A is the program that closes its file while BOS does not take it; B holds the same file open and changes it then.

mod support;

#[path = "publication/attributes.rs"]
mod attributes;
#[path = "publication/changes.rs"]
mod changes;
#[path = "publication/emptied.rs"]
mod emptied;
#[path = "publication/growing_log.rs"]
mod growing_log;
#[path = "publication/hand.rs"]
mod hand;
#[path = "publication/journal.rs"]
mod journal;
#[path = "publication/mapped.rs"]
mod mapped;
#[path = "publication/order.rs"]
mod order;
#[path = "publication/power.rs"]
mod power;
#[path = "publication/scene.rs"]
mod scene;
#[path = "publication/states.rs"]
mod states;

use std::time::Duration;

/// Longest wait for what must happen once BOS takes everything again.
const WAIT: Duration = Duration::from_secs(60);
/// Longest wait for what needs the local disk alone.
const LOCAL: Duration = Duration::from_secs(20);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
