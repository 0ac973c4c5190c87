//! The kernel side of a session: file system, mount, and the moment it goes.

use std::io;
use std::sync::Arc;

use super::{Running, SessionOptions};

/// A mount that is served.
pub(super) struct Mounted {}

impl Mounted {
    /// Waits until the mount is gone.
    pub(super) async fn gone(&mut self) {}

    /// Takes the mount away at once, also when it is in use.
    pub(super) fn detach(&mut self) {}
}

/// Builds the file system and mounts it.
///
/// # Errors
/// The kernel, or fusermount3, refuses.
pub(super) fn attach(_options: &SessionOptions, _running: &Arc<Running>) -> io::Result<Mounted> {
    Err(io::ErrorKind::Unsupported.into())
}
