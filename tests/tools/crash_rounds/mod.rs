//! Rounds of random calls, kills and faults, and the model of what must hold after each.

pub mod calls;
pub mod draw;
pub mod faults;
pub mod lane;
pub mod look;
pub mod plan;
pub mod published;
pub mod resolve;
pub mod round;
pub mod seen;
pub mod totals;
pub mod wide;
pub mod writer;
