//! `bosfs uploads resume --from FILE`.

use std::path::Path;

use super::args::UploadsResumeArgs;
use super::exit::CliError;
use crate::bos::BosClient;
use crate::object::{ObjectKey, UploadId};

/// Finishes an upload from its source file.
///
/// # Errors
/// Always, until the engine can.
pub fn from_file(
    _client: &BosClient,
    _key: &ObjectKey,
    _source: &Path,
    _upload_id: Option<UploadId>,
    _args: &UploadsResumeArgs,
) -> Result<(), CliError> {
    Err(CliError::failed("--from is not there yet"))
}
