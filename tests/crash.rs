//! bosfs on a disk that fails: SIGKILL at every write and sync of its state directory, power loss, no room, read errors, a
//! disk that turns read-only or is emptied underneath.

mod support;

#[path = "crash/after_restart.rs"]
mod after_restart;
#[path = "crash/checkpoints.rs"]
mod checkpoints;
#[path = "crash/durable.rs"]
mod durable;
#[path = "crash/durable_names.rs"]
mod durable_names;
#[path = "crash/errors.rs"]
mod errors;
#[path = "crash/full.rs"]
mod full;
#[path = "crash/images.rs"]
mod images;
#[path = "crash/kills.rs"]
mod kills;
#[path = "crash/power.rs"]
mod power;
#[path = "crash/read_only.rs"]
mod read_only;
