//! `bosfs verify`: proves objects in BOS against a local file or the journal.

use std::path::Path;
use std::sync::Arc;

use super::args::VerifyArgs;
use super::connect::{self, Access};
use super::exit::CliError;
use super::interrupt::{on_interrupt, says};
use super::output;
use super::uploads::find_journaled;
use crate::bos::BosErrorKind;
use crate::config::credentials::GivenKeys;
use crate::config::paths::BucketPath;
use crate::journal::Journal;
use crate::journal::record::Proof;
use crate::object::{Crcs, ObjectKey, PartNumber};
use crate::upload::state::{FileState, Stage};
use crate::upload::verify::{Verdict, VerifyError, VerifyOptions, VerifyReport, verify};

/// Runs the command; every object is looked at, also after a mismatch.
///
/// # Errors
/// An object differs, is not there, or nothing can be said of it.
pub fn run(args: &VerifyArgs) -> Result<(), CliError> {
    if args.against.is_some() && args.objects.len() > 1 {
        return Err(CliError::usage("--against compares one object with one file; name one object"));
    }
    let objects = args.objects.iter().map(|object| BucketPath::parse_key(object)).collect::<Result<Vec<_>, _>>();
    let objects = objects.map_err(CliError::usage)?;
    let access = Access::new(&args.bos, &GivenKeys::default())?;
    on_interrupt(says("interrupted; nothing was changed"));
    let runtime = connect::runtime()?;
    let mut worst = None;
    for (bucket, key) in objects {
        let outcome = access.client(&bucket).and_then(|client| {
            let record = match &args.against {
                Some(_) => None,
                None => record_of(args, &bucket, &key)?,
            };
            let bar = output::byte_bar(0);
            bar.set_message(output::printable(key.as_str()));
            let shown = bar.clone();
            let progress = move |done: u64, total: u64| {
                shown.set_length(total.max(1));
                shown.set_position(done);
            };
            let options = VerifyOptions { download: args.download, concurrency: 0, progress: Some(Arc::new(progress)) };
            let result = runtime.block_on(verify(&client, &key, args.against.as_deref(), record, &options));
            bar.finish_and_clear();
            result.map_err(|error| explain(&bucket, &key, error))
        });
        match outcome {
            Ok(report) => {
                show(args, &bucket, &report)?;
                if !matches!(report.verdict, Verdict::Proof(_)) {
                    worst = Some(CliError::failed(format!("{bucket}/{key} is not proved")));
                }
            }
            Err(error) if args.objects.len() == 1 => return Err(error),
            Err(error) => {
                error.print();
                worst = Some(CliError::failed("not every object could be looked at"));
            }
        }
    }
    worst.map_or(Ok(()), Err)
}

fn explain(bucket: &str, key: &ObjectKey, error: VerifyError) -> CliError {
    match error {
        VerifyError::Bos(error) if error.kind == BosErrorKind::NoSuchKey => {
            CliError::failed(format!("there is no object {bucket}/{key}"))
        }
        VerifyError::Bos(error) => CliError::bos(format!("cannot look at {bucket}/{key}"), &error),
        other => CliError::failed(other.to_string()),
    }
}

fn show(args: &VerifyArgs, bucket: &str, report: &VerifyReport) -> Result<(), CliError> {
    if args.json {
        return output::json(report, true);
    }
    let outcome = match &report.verdict {
        Verdict::Proof(proof) => word(*proof).to_owned(),
        Verdict::Mismatch(how) => format!("DIFFERS: {how}"),
        Verdict::Unknown(what) => format!("unknown: {what}"),
    };
    let object = output::printable(&format!("{bucket}/{}", report.key));
    output::line(format!("{object}: {outcome} (by {}, {} bytes, ETag {})", report.compared, report.size, report.etag))
}

/// A proof in one word.
pub fn word(proof: Proof) -> &'static str {
    match proof {
        Proof::Proved => "proved",
        Proof::Composed => "composed",
    }
}

/// CRCs and size of the whole object as a journal on this machine has them.
fn record_of(args: &VerifyArgs, bucket: &str, key: &ObjectKey) -> Result<Option<(Crcs, u64)>, CliError> {
    let Some(found) = find_journaled(&args.bos, bucket, key)? else { return Ok(None) };
    Ok(journal_crcs(&found.state_dir.join("uploads").join(&found.file.journal_id)))
}

fn journal_crcs(dir: &Path) -> Option<(Crcs, u64)> {
    let replay = Journal::read(dir).ok()?;
    let state = FileState::replay(&replay.records).ok()?;
    crcs_of(&state)
}

/// Of what is frozen for publication, where every part is known to BOS with its checksum.
fn crcs_of(state: &FileState) -> Option<(Crcs, u64)> {
    match &state.stage {
        Stage::Putting { sum, .. } | Stage::Completed { put: Some(sum), .. } => return Some((sum.crcs, sum.len)),
        _ => {}
    }
    let size = state.stage.frozen()?.size;
    let plan = &state.upload.as_ref()?.plan;
    let mut crcs = Crcs::default();
    for number in (1..=plan.part_count(size)).filter_map(PartNumber::new) {
        let sum = state.parts.get(&number).filter(|part| !part.dirty)?.held.as_ref()?.sum?;
        crcs = crcs.then(sum.crcs, sum.len);
    }
    Some((crcs, size))
}
