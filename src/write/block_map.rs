//! Where the bytes of each 4 KiB block are: 2 bits a block, in memory and in the file `map` beside the spool.

/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 4096;

/// Where a block's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// In the base object (or zeros where the base does not reach).
    Base = 0,
    /// Zeros.
    Zero = 1,
    /// In the spool.
    Spool = 2,
    /// Only in a part that BOS holds; punched out of the spool.
    Held = 3,
}
