//! From `--endpoint`, `--region`, `--credentials` and the environment to a client of one bucket.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::BosArgs;
use super::exit::{CliError, Exit};
use crate::bos::{BosClient, BosClientConfig, BosError, BosErrorKind};
use crate::config::credentials::GivenKeys;
use crate::config::endpoint::DEFAULT_ENDPOINT;
use crate::config::{CredentialsSource, Endpoint, bcecmd};
use crate::journal::state_dir::{Identity, default_path};

/// Where and as whom to speak.
#[derive(Clone, Debug)]
pub struct Access {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The keys.
    pub credentials: Arc<CredentialsSource>,
}

impl Access {
    /// Settles endpoint and keys. `given`: from an `-o` list.
    ///
    /// # Errors
    /// Usage errors of the endpoint; no or broken credentials.
    pub fn new(args: &BosArgs, given: &GivenKeys) -> Result<Self, CliError> {
        let credentials = Arc::new(CredentialsSource::find(given, args.credentials.as_deref())?);
        let endpoint = endpoint(args, credentials.path())?;
        Ok(Self { endpoint, credentials })
    }

    /// A client of `bucket`.
    ///
    /// # Errors
    /// The client cannot be made (no certificates for https).
    pub fn client(&self, bucket: &str) -> Result<BosClient, CliError> {
        let config = BosClientConfig::new(self.endpoint.to_string(), bucket, self.credentials.clone());
        BosClient::new(config).map_err(|e| CliError::bos(format!("cannot speak to {}", self.endpoint), &e))
    }
}

/// The endpoint: `--endpoint`, `--region`, `$BOS_ENDPOINT`, bcecmd's `config` beside its credentials, or Beijing.
///
/// # Errors
/// A usage error that names the place and what is wrong there.
pub fn endpoint(args: &BosArgs, credentials_file: Option<&Path>) -> Result<Endpoint, CliError> {
    if let Some(text) = &args.endpoint {
        return Endpoint::parse(text).map_err(|e| CliError::usage(format!("--endpoint: {e}")));
    }
    if let Some(code) = &args.region {
        return Endpoint::of_region(code).map_err(|e| CliError::usage(format!("--region: {e}")));
    }
    if let Some(text) = std::env::var("BOS_ENDPOINT").ok().filter(|text| !text.is_empty()) {
        return Endpoint::parse(&text).map_err(|e| CliError::usage(format!("BOS_ENDPOINT: {e}")));
    }
    if let Some(found) = credentials_file.and_then(bcecmd::endpoint_beside) {
        return found.map_err(CliError::usage);
    }
    Endpoint::parse(DEFAULT_ENDPOINT).map_err(CliError::usage)
}

/// What the state directory of `bucket` and `prefix` belongs to.
pub fn identity(endpoint: &str, bucket: &str, prefix: &str) -> Identity {
    Identity { endpoint: endpoint.to_owned(), bucket: bucket.to_owned(), prefix: prefix.to_owned() }
}

/// `--state-dir`, or the default place for `identity`.
pub fn state_dir(args: &BosArgs, identity: &Identity) -> PathBuf {
    match &args.state_dir {
        Some(dir) => crate::config::paths::absolute(dir),
        None => default_path(identity),
    }
}

/// What a failed first look at the bucket means; asks BOS where the bucket is when it is not here.
pub async fn explain(client: &BosClient, error: BosError) -> CliError {
    let bucket = client.bucket();
    let endpoint = client.endpoint();
    let message = match error.kind {
        BosErrorKind::Network => format!("{endpoint} does not answer"),
        BosErrorKind::Denied => format!("BOS does not let this key into the bucket {bucket} at {endpoint}"),
        BosErrorKind::NoSuchBucket | BosErrorKind::NoSuchKey => format!("there is no bucket {bucket} at {endpoint}"),
        _ => format!("cannot look at the bucket {bucket} at {endpoint}"),
    };
    let explained = CliError::bos(message, &error);
    if matches!(error.kind, BosErrorKind::NoSuchBucket | BosErrorKind::NoSuchKey)
        && let Ok(region) = client.location().await
    {
        let right =
            Endpoint::of_region(&region).map_or_else(|_| format!("https://{region}.bcebos.com"), |e| e.to_string());
        if !endpoint.eq_ignore_ascii_case(&right) {
            return explained.hint(format!("the bucket is in the region {region}; use --endpoint {right}"));
        }
    }
    if error.kind == BosErrorKind::NoSuchKey { explained.code(Exit::Failed) } else { explained }
}

/// A tokio runtime for a command.
///
/// # Errors
/// Threads cannot be started.
pub fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("bosfs")
        .build()
        .map_err(|e| CliError::caused("cannot start threads", &e))
}
