//! What the fuzz targets check, one module each: `check` takes any bytes, and panics where a property does not hold.
//!
//! Shared by cargo-fuzz (fuzz_targets/) and by tests/fuzz_corpus.rs.
#![allow(dead_code)]

pub mod answer;
pub mod feed;
pub mod journal;
pub mod listing;
pub mod moves;
pub mod parts;
pub mod pending;
pub mod posix_meta;
pub mod request;
pub mod settings;

/// Takes any bytes.
pub type Check = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Check); 9] = [
    ("answer", answer::check),
    ("journal", journal::check),
    ("listing", listing::check),
    ("moves", moves::check),
    ("parts", parts::check),
    ("pending", pending::check),
    ("posix_meta", posix_meta::check),
    ("request", request::check),
    ("settings", settings::check),
];
