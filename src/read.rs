//! Serves ranges of one object version, reading ahead when the reads are sequential.
//!
//! [`window`] decides what to fetch, [`reader`] fetches it, [`block_cache`] keeps it.

pub mod block_cache;
pub mod reader;
pub mod window;

pub use reader::{ObjectReader, ReadPool};
