//! Remembers, across crashes, what was accepted, sealed, sent and completed. Knows nothing of BOS or mounts.

pub mod log;
pub mod record;
pub mod state_dir;

pub use log::{Journal, Replay};
pub use record::Record;
pub use state_dir::{Lease, StateDir};
