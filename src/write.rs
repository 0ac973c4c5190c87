//! Puts a handle's bytes in the spool: sparse file, block map, part plan, disk budget.

pub mod block_map;
pub mod block_set;
pub mod budget;
pub mod extents;
pub mod layers;
pub mod part_plan;
pub mod spool;
