//! Serves ranges of one object version, reading ahead when the reads are sequential.

pub mod block_cache;
pub mod reader;
pub mod window;
