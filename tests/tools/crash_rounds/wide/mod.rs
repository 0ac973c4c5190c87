//! Rounds of several handles on one file: they write, cut, punch, sync and close while publications of it are under way, are
//! refused, or are cut off; the power fails; somebody else writes the object during an outage.
//!
//! The rule that is checked: at every moment the object is one of the states in which the file was closed, in their order,
//! whole; what was accepted and is not published is in the mount after a kill; nothing of another writer is overwritten.

mod beside;
mod ends;
mod looks;
pub mod model;
pub mod plan;
pub mod resolve;
pub mod round;
pub mod stuck;
pub mod totals;
