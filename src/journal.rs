//! Remembers, across crashes, what was accepted, sealed, sent and completed. Knows nothing of BOS or mounts.

pub mod log;
pub mod record;
pub mod state_dir;

mod lease;
mod probe;

pub use log::{Journal, Line, RecordLog, RecordReplay, Replay, errno_of, line_of};
pub use record::Record;
pub use state_dir::{Holder, Identity, Lease, StateDir, StateDirError, boot_id};
