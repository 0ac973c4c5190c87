//! Where a client's credentials come from.

use std::fmt;
use std::sync::Arc;

use super::sign::Credentials;

/// Gives the credentials of each try. `Debug` must show no secret.
pub trait CredentialsProvider: fmt::Debug + Send + Sync + 'static {
    /// The credentials as known now. Called for every try: no I/O.
    fn current(&self) -> Arc<Credentials>;

    /// Reads the credentials again, because BOS refused `refused`. Called on a blocking thread. `false`: the present ones are
    /// these (or cannot be had anew), so that trying again is of no use.
    fn reload(&self, refused: &Credentials) -> bool;

    /// Whether other ones can come later: a file that someone may still write. `false`: they were given once, and what BOS
    /// refuses of them stays refused.
    fn can_renew(&self) -> bool;
}

/// Credentials that never change.
#[derive(Debug)]
pub struct StaticCredentials(Arc<Credentials>);

impl StaticCredentials {
    /// Always these.
    pub fn new(credentials: Credentials) -> Self {
        Self(Arc::new(credentials))
    }
}

impl CredentialsProvider for StaticCredentials {
    fn current(&self) -> Arc<Credentials> {
        self.0.clone()
    }

    fn reload(&self, _refused: &Credentials) -> bool {
        false
    }

    fn can_renew(&self) -> bool {
        false
    }
}
