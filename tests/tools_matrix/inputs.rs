//! The inputs of the tools.

use super::bench::Bench;
use crate::support::files::write_random;
use crate::support::odd_tree;

/// Bytes of the large input `$IN/big`: four parts of 5 MiB, the last one short.
pub const BIG_BYTES: u64 = (17 << 20) + 4321;

/// Makes `$IN/big`.
pub fn big(bench: &Bench) {
    write_random(&bench.input().join("big"), 1, BIG_BYTES).unwrap();
}

/// Makes `$IN/tree`, with odd names, times, modes, owners, symlinks and xattrs.
pub fn tree(bench: &Bench) {
    odd_tree::make(&bench.input().join("tree"));
}
