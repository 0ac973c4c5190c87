//! `bosfs uploads resume --from FILE`: finishes an upload from its source file and what BOS lists of it, without a journal.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use super::args::UploadsResumeArgs;
use super::exit::{CliError, Exit};
use super::{connect, output};
use crate::bos::client::ObjectHeaders;
use crate::bos::{BosClient, BosErrorKind};
use crate::object::{Condition, FileAttrs, ObjectKey, Timestamp, UploadId};
use crate::posix_meta;
use crate::upload::resume::{ResumeError, ResumeOptions, ResumeProgress, resume_from_file};

/// Keeps the parts that BOS holds and that equal their range of `source`, sends the rest, and completes the object.
///
/// # Errors
/// The file, the upload or BOS do not allow it; parts that BOS holds stay there.
pub fn from_file(
    client: &BosClient,
    key: &ObjectKey,
    source: &Path,
    upload_id: Option<UploadId>,
    args: &UploadsResumeArgs,
) -> Result<(), CliError> {
    let meta = std::fs::metadata(source)
        .map_err(|e| CliError::caused(format!("cannot look at the source file {}", source.display()), &e))?;
    if !meta.is_file() {
        return Err(CliError::failed(format!("{} is no regular file", source.display())));
    }
    let mut headers = ObjectHeaders::default();
    let mtime = Timestamp { sec: meta.mtime(), nsec: u32::try_from(meta.mtime_nsec()).unwrap_or(0) };
    let attrs = FileAttrs { mode: meta.mode(), uid: meta.uid(), gid: meta.gid(), mtime };
    posix_meta::write_attrs(&mut headers.metadata, &attrs);

    let bar = output::byte_bar(meta.len().max(1));
    bar.set_message("resuming");
    let shown = bar.clone();
    let progress = move |done: ResumeProgress| {
        shown.set_length(done.bytes_total.max(1));
        shown.set_position(done.bytes_kept + done.bytes_sent);
    };
    let result = connect::runtime()?.block_on(async {
        // Whoever replaces the object while we send must not be overwritten.
        let condition = match client.head_object(key).await {
            Ok(object) => Condition::Matches(object.etag),
            Err(error) if error.kind == BosErrorKind::NoSuchKey => Condition::Absent,
            Err(error) => return Err(connect::explain(client, error).await),
        };
        let options = ResumeOptions {
            concurrency: args.max_uploads.into(),
            headers,
            condition,
            progress: Some(Arc::new(progress)),
            ..ResumeOptions::default()
        };
        tokio::select! {
            result = resume_from_file(client, key, upload_id, source, &options) => result.map_err(explain),
            _ = tokio::signal::ctrl_c() => {
                Err(CliError::new(Exit::Interrupted, "interrupted; the parts that arrived are kept, run the command again to go on"))
            }
        }
    });
    bar.finish_and_clear();
    let report = result?;
    output::line(format!(
        "{key}: {} parts kept ({}), {} sent ({}); complete, {} bytes, ETag {}, {}",
        report.parts_kept,
        output::bytes(report.bytes_kept),
        report.parts_sent,
        output::bytes(report.bytes_sent),
        report.size,
        report.etag,
        super::verify::word(report.proof)
    ))
}

fn explain(error: ResumeError) -> CliError {
    match error {
        ResumeError::Bos(error) => CliError::bos("the upload is not finished; the parts that arrived are kept", &error),
        other => CliError::failed(other.to_string()),
    }
}
