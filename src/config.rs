//! Where settings come from: credentials, endpoints, sizes, durations and the `-o` list of mount(8). Plain values; knows
//! nothing of mounts.

pub mod bcecmd;
pub mod credentials;
pub mod endpoint;
pub mod option_list;
pub mod paths;
pub mod units;

pub use credentials::{CredentialsError, CredentialsSource, Keys, Secret};
pub use endpoint::Endpoint;
