//! The BOS REST API: one method per call; signs, sends, retries, explains failures. Knows nothing of mounts.

pub mod client;
pub mod error;
pub mod retry;
pub mod sign;
pub mod wire;

pub use client::{BosClient, BosClientConfig};
pub use error::{BosError, BosErrorKind};
