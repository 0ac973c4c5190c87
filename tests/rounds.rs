//! The model and the plans of `crash-rounds` on their own: their unit tests run here.
#![allow(dead_code)]

#[path = "tools/crash_rounds/mod.rs"]
mod crash_rounds;
mod support;
