//! What the object at the key means for a publication whose outcome is not known: see [`crate::transfer::settle`].

pub use crate::transfer::settle::{Found, found};
