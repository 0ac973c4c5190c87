//! The BOS REST API: one method per call; signs, sends, retries, explains failures. Knows nothing of mounts.
//!
//! ```text
//!   client      configuration, calls on the bucket, listings      (the public face; re-exports `model` and `body`)
//!   objects     calls on one object            multipart     the calls of an upload         get    a body on its way
//!   delete      deletions, none without a look
//!      v
//!    send       signs every try, watches for stalls, retries as `retry` decides, tells the story as an `error`
//!      v
//!   endpoint, credentials, sign, wire          where, as whom, and in which form
//! ```

mod body;
mod delete;
mod failure;
mod get;
mod line;
mod model;
mod multipart;
mod objects;
mod send;
mod wire_headers;

pub mod client;
pub mod credentials;
pub(crate) mod endpoint;
pub mod error;
pub mod header_text;
pub mod retry;
pub mod sign;
pub mod wire;

pub use client::{BosClient, BosClientConfig};
pub use credentials::{CredentialsProvider, StaticCredentials};
pub use error::{BosError, BosErrorKind};
pub use line::LineDown;
pub use retry::RetryPolicy;
pub use sign::Credentials;

#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod delete_tests;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod served_tests;
