//! `bosfs uploads`: list, resume, complete and abort unfinished uploads.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};

use super::args::{BosArgs, UploadsAbortArgs, UploadsCommand, UploadsCompleteArgs, UploadsListArgs, UploadsResumeArgs};
use super::connect::{self, Access};
use super::exit::{CliError, Exit};
use super::interrupt::{on_interrupt, says};
use super::output::{self, Table};
use super::status;
use crate::bos::BosClient;
use crate::bos::client::{EMPTY_PAGES_MAX, ListedUpload};
use crate::config::credentials::GivenKeys;
use crate::config::paths::BucketPath;
use crate::journal::StateDir;
use crate::journal::state_dir::{Identity, read_holder, read_identity};
use crate::object::{ObjectKey, Timestamp, UploadId};
use crate::observe::control::{Answer, ControlClient, Request};
use crate::upload::{FileStatus, InterruptedPolicy, OwnUpload, UploadOptions, Uploads};
use crate::write::part_plan::PART_BYTES_DEFAULT;

/// Unfinished uploads that are listed at most.
const LISTED_UPLOADS_MAX: usize = 1_000_000;
/// ListParts calls in flight at once.
const LIST_PARTS_PARALLEL: usize = 8;

/// Parts in flight at once where no option says it.
const UPLOADS_MAX: u16 = 8;
/// Longest wait for a process that holds a state directory to answer or to be gone.
const HOLDER_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for spool and journal of a proved object to be cleared away; the next start does what is left.
const CLEARED_WITHIN: Duration = Duration::from_secs(10);
/// Aborts of one upload before BOS is believed to know it no more.
const ABORT_TRIES: usize = 5;

/// Runs the command.
///
/// # Errors
/// As each command says.
pub fn run(command: &UploadsCommand) -> Result<(), CliError> {
    match command {
        UploadsCommand::List(args) => list(args),
        UploadsCommand::Resume(args) => resume(args),
        UploadsCommand::Complete(args) => complete(args),
        UploadsCommand::Abort(args) => abort(args),
    }
}

/// One unfinished upload, as `uploads list` shows it.
#[derive(serde::Serialize)]
struct Row {
    key: String,
    upload_id: String,
    /// Seconds since 1970.
    initiated: i64,
    /// Parts that BOS holds; `None`: it could not be asked.
    parts: Option<u64>,
    bytes: Option<u64>,
    /// `ours`, `possibly ours` or `foreign`.
    whose: &'static str,
}

fn list(args: &UploadsListArgs) -> Result<(), CliError> {
    let access = Access::new(&args.bos, &GivenKeys::default())?;
    let client = access.client(&args.bucket.bucket)?;
    on_interrupt(says("interrupted"));
    let journaled = journaled_in(&args.bos, &access.endpoint.to_string(), &args.bucket.bucket);
    let rows = connect::runtime()?.block_on(list_rows(&client, &args.bucket.prefix, &journaled))?;
    if args.json {
        return output::json(&serde_json::json!({ "bucket": args.bucket.bucket, "uploads": rows }), false);
    }
    if rows.is_empty() {
        return output::line(format!("no unfinished uploads in {}", args.bucket));
    }
    let now = Timestamp::now().sec;
    let mut table = Table::new(&["KEY", ">AGE", ">PARTS", ">BYTES", "WHOSE", "UPLOAD ID"]);
    for row in rows {
        let number = |n: Option<u64>, show: fn(u64) -> String| n.map_or_else(|| "?".to_owned(), show);
        table.row(vec![
            row.key,
            output::duration(Duration::from_secs(u64::try_from(now - row.initiated).unwrap_or(0))),
            number(row.parts, |n| n.to_string()),
            number(row.bytes, output::bytes),
            row.whose.to_owned(),
            row.upload_id,
        ]);
    }
    output::line(table.render())
}

async fn list_rows(client: &BosClient, prefix: &str, journaled: &[FileStatus]) -> Result<Vec<Row>, CliError> {
    let mut uploads: Vec<ListedUpload> = Vec::new();
    let mut next = None;
    let mut empty_pages = 0;
    loop {
        let page = match client.list_uploads(prefix, next.as_ref()).await {
            Ok(page) => page,
            Err(error) => return Err(connect::explain(client, error).await),
        };
        empty_pages += usize::from(page.uploads.is_empty());
        uploads.extend(page.uploads);
        if uploads.len() > LISTED_UPLOADS_MAX || empty_pages > EMPTY_PAGES_MAX {
            let message = format!("the list of unfinished uploads does not end ({} so far)", uploads.len());
            return Err(CliError::failed(message).hint("name a prefix: bosfs uploads list BUCKET/PREFIX"));
        }
        match page.next {
            Some(marker) => next = Some(marker),
            None => break,
        }
    }
    let own = || journaled.iter().flat_map(|file| &file.uploads);
    let ours: HashSet<&str> = own().filter_map(|upload| upload.upload_id.as_deref()).collect();
    let possible: HashSet<&str> =
        own().filter(|upload| upload.upload_id.is_none()).map(|upload| upload.key.as_str()).collect();
    let rows = stream::iter(uploads).map(|upload| {
        let whose = match ours.contains(upload.upload_id.as_str()) {
            true => "ours",
            false if possible.contains(upload.key.as_str()) => "possibly ours",
            false => "foreign",
        };
        async move {
            let held = match ObjectKey::parse(&upload.key) {
                Ok(key) => client.list_parts(&key, &upload.upload_id).await.ok(),
                Err(_) => None,
            };
            Row {
                parts: held.as_ref().map(|parts| parts.len() as u64),
                bytes: held.map(|parts| parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.size))),
                key: upload.key,
                upload_id: upload.upload_id.to_string(),
                initiated: upload.initiated,
                whose,
            }
        }
    });
    Ok(rows.buffered(LIST_PARTS_PARALLEL).collect().await)
}

/// State directories that may hold journals of `bucket`: `--state-dir`, or all known ones of it.
fn state_dirs(bos: &BosArgs, endpoint: &str, bucket: &str) -> Vec<(PathBuf, Identity)> {
    let candidates = match &bos.state_dir {
        Some(dir) => vec![crate::config::paths::absolute(dir)],
        None => status::known_state_dirs(),
    };
    let named = bos.state_dir.is_some();
    candidates
        .into_iter()
        .filter_map(|dir| read_identity(&dir).map(|identity| (dir, identity)))
        .filter(|(_, identity)| identity.bucket == bucket && (named || identity.endpoint == endpoint))
        .collect()
}

fn journaled_in(bos: &BosArgs, endpoint: &str, bucket: &str) -> Vec<FileStatus> {
    let dirs = state_dirs(bos, endpoint, bucket);
    dirs.iter().filter_map(|(dir, _)| status::journal_snapshot(dir)).flat_map(|snapshot| snapshot.files).collect()
}

/// A journaled file: where its journal lies, whose that is, and what it says.
pub(super) struct Journaled {
    pub(super) state_dir: PathBuf,
    identity: Identity,
    pub(super) file: FileStatus,
}

impl Journaled {
    /// Whether it is a rename or a removal, which goes on by itself.
    fn is_move(&self) -> bool {
        self.file.is_move
    }

    /// The upload with the ID `id`, if this journal opened it.
    fn upload(&self, id: &str) -> Option<&OwnUpload> {
        self.file.uploads.iter().find(|upload| upload.upload_id.as_deref() == Some(id))
    }
}

pub(super) fn find_journaled(bos: &BosArgs, bucket: &str, key: &ObjectKey) -> Result<Option<Journaled>, CliError> {
    let all = all_journaled(bos, bucket)?;
    Ok(all.into_iter().find(|found| !found.is_move() && found.file.key == key.as_str()))
}

/// The journals of `bucket` on this machine.
fn all_journaled(bos: &BosArgs, bucket: &str) -> Result<Vec<Journaled>, CliError> {
    let endpoint = connect::endpoint(bos, bos.credentials.as_deref())?.to_string();
    let mut all = Vec::new();
    for (state_dir, identity) in state_dirs(bos, &endpoint, bucket) {
        let files = status::journal_snapshot(&state_dir).map(|snapshot| snapshot.files).unwrap_or_default();
        let of = |file| Journaled { state_dir: state_dir.clone(), identity: identity.clone(), file };
        all.extend(files.into_iter().map(of));
    }
    Ok(all)
}

/// The journal that a command about the uploads of `key` is about: that of the file of this name, else one that sends its
/// parts there (a temporary's go to the name that it will get). `id`: only the one that opened this upload.
fn find_owner(bos: &BosArgs, bucket: &str, key: &ObjectKey, id: Option<&str>) -> Result<Option<Journaled>, CliError> {
    let mut all = all_journaled(bos, bucket)?;
    if let Some(id) = id {
        return Ok(all.into_iter().find(|found| found.upload(id).is_some()));
    }
    let place = all.iter().position(|found| !found.is_move() && found.file.key == key.as_str());
    let place = place.or_else(|| {
        let sends_there = |upload: &OwnUpload| upload.upload_id.is_some() && upload.key == key.as_str();
        all.iter().position(|found| found.file.uploads.iter().any(sends_there))
    });
    Ok(place.map(|place| all.swap_remove(place)))
}

/// Refuses to touch what a rename does: it is finished or taken back by whoever has its journal.
fn refuse_move(found: &Journaled, object: &str) -> Result<(), CliError> {
    if !found.is_move() {
        return Ok(());
    }
    let (what, key) = (&found.file.state, &found.file.key);
    Err(CliError::failed(format!(
        "the upload of {object} is a copy that the {what} of {key} makes; nothing was dropped"
    ))
    .hint("it goes on in its mount, or in the next one; bosfs status shows how far it is"))
}

/// Refuses to publish a temporary under the name that it was to get: that takes its own name.
fn refuse_other_name(found: &Journaled, bucket: &str, key: &ObjectKey) -> Result<(), CliError> {
    if found.file.key == key.as_str() {
        return Ok(());
    }
    let own = &found.file.key;
    Err(CliError::failed(format!(
        "the unfinished upload of {bucket}/{key} belongs to the file {bucket}/{own}, nothing was done"
    ))
    .hint(format!("publish it under the name that it was to get: bosfs uploads complete {bucket}/{own} --as {key}")))
}

fn no_journal(object: &str) -> CliError {
    CliError::failed(format!("no journal on this machine knows an unfinished upload of {object}"))
        .hint("bosfs uploads list shows what BOS holds; with the source file at hand: bosfs uploads resume --from FILE")
}

fn parse_object(object: &str) -> Result<(String, ObjectKey), CliError> {
    BucketPath::parse_key(object).map_err(CliError::usage)
}

fn resume(args: &UploadsResumeArgs) -> Result<(), CliError> {
    let (bucket, key) = parse_object(&args.object)?;
    if let Some(source) = &args.from {
        return resume_from(args, &bucket, &key, source);
    }
    let found = find_owner(&args.bos, &bucket, &key, None)?.ok_or_else(|| no_journal(&args.object))?;
    refuse_move(&found, &args.object)?;
    refuse_other_name(&found, &bucket, &key)?;
    if found.file.state == "interrupted" {
        return Err(CliError::failed(format!("{} is unfinished: its writer was killed before it closed the file", args.object))
            .hint(format!(
                "write it again through a mount and what BOS holds is kept, or publish it as it is: bosfs uploads complete {}",
                args.object
            )));
    }
    let request = Request::Complete { key: key.to_string(), force: false, as_key: None };
    decide(&args.bos, found, &key, &request, args.max_uploads)
}

fn resume_from(args: &UploadsResumeArgs, bucket: &str, key: &ObjectKey, source: &Path) -> Result<(), CliError> {
    // Also of an upload that is named: a second program must not complete what a journal goes on with.
    if let Some(found) = find_owner(&args.bos, bucket, key, args.upload_id.as_deref())?
        && !found.file.uploads.is_empty()
    {
        refuse_move(&found, &args.object)?;
        let own = format!("{bucket}/{}", found.file.key);
        return Err(CliError::failed(format!("the journal in {} works on {own}", found.state_dir.display()))
            .hint(format!("let it go on without --from, or drop it first: bosfs uploads abort {own}")));
    }
    let access = Access::new(&args.bos, &GivenKeys::default())?;
    let client = access.client(bucket)?;
    let upload_id = args.upload_id.as_deref().map(UploadId::new);
    super::resume::from_file(&client, key, source, upload_id, args)
}

fn complete(args: &UploadsCompleteArgs) -> Result<(), CliError> {
    let (bucket, key) = parse_object(&args.object)?;
    let found = find_owner(&args.bos, &bucket, &key, None)?.ok_or_else(|| no_journal(&args.object))?;
    refuse_move(&found, &args.object)?;
    refuse_other_name(&found, &bucket, &key)?;
    if let Some(as_key) = &args.as_key {
        let parsed = ObjectKey::parse(as_key).map_err(|error| CliError::usage(format!("--as: {error}")))?;
        if !parsed.as_str().starts_with(&found.identity.prefix) {
            let prefix = &found.identity.prefix;
            return Err(CliError::usage(format!("--as: the journal belongs to keys that begin with {prefix}")));
        }
    }
    let request = Request::Complete { key: key.to_string(), force: args.force, as_key: args.as_key.clone() };
    decide(&args.bos, found, &key, &request, UPLOADS_MAX)
}

fn abort(args: &UploadsAbortArgs) -> Result<(), CliError> {
    let (bucket, key) = parse_object(&args.object)?;
    match find_owner(&args.bos, &bucket, &key, args.upload_id.as_deref())? {
        Some(found) => {
            refuse_move(&found, &args.object)?;
            let own = ObjectKey::parse(&found.file.key).map_err(|e| CliError::failed(e.to_string()))?;
            let question = format!(
                "Drop the unfinished upload of {bucket}/{own} ({} written, state {})? Bytes that are only in it are lost.",
                output::bytes(found.file.size),
                found.file.state
            );
            ask(args, &question)?;
            let request = Request::Abort { key: own.to_string() };
            decide(&args.bos, found, &own, &request, UPLOADS_MAX)
        }
        None => abort_foreign(args, &bucket, &key),
    }
}

fn ask(args: &UploadsAbortArgs, question: &str) -> Result<(), CliError> {
    if args.yes || output::confirmed(question)? {
        return Ok(());
    }
    Err(CliError::new(Exit::Interrupted, "nothing was dropped").hint("answer y, or give --yes"))
}

fn abort_foreign(args: &UploadsAbortArgs, bucket: &str, key: &ObjectKey) -> Result<(), CliError> {
    let Some(id) = &args.upload_id else {
        return Err(CliError::failed(format!(
            "no journal on this machine knows an unfinished upload of {}",
            args.object
        ))
        .hint("to drop somebody else's, name it with --upload-id; bosfs uploads list shows the IDs"));
    };
    ask(
        args,
        &format!("Drop the upload {id} of {}, which no journal here knows? Somebody may be sending it.", args.object),
    )?;
    let access = Access::new(&args.bos, &GivenKeys::default())?;
    let client = access.client(bucket)?;
    match connect::runtime()?.block_on(client.abort(key, &UploadId::new(id))) {
        Ok(true) => output::line(format!("the upload {id} of {} is gone", args.object)),
        Ok(false) => Err(CliError::failed(format!("BOS knows no upload {id} of {}", args.object))),
        Err(error) => Err(CliError::bos(format!("cannot drop the upload {id} of {}", args.object), &error)),
    }
}

/// Has `request` done by the session that holds the journal, or here when none does.
fn decide(
    bos: &BosArgs,
    found: Journaled,
    key: &ObjectKey,
    request: &Request,
    uploads_max: u16,
) -> Result<(), CliError> {
    if let Some(done) = ask_holder(&found.state_dir, request) {
        return done;
    }
    let mut bos = bos.clone();
    if bos.endpoint.is_none() && bos.region.is_none() {
        // The journal knows where it belongs.
        bos.endpoint = Some(found.identity.endpoint.clone());
    }
    if let Some(port) = found.identity.endpoint.strip_prefix("local:") {
        return Err(CliError::failed(format!("the embedded server over {port} does not run; its mount does"))
            .hint(format!("mount it again first: bosfs mount --local={port} {} DIR", found.identity.bucket)));
    }
    let access = Access::new(&bos, &GivenKeys::default())?;
    let client = access.client(&found.identity.bucket)?;
    crate::observe::logging::init(log::LevelFilter::Warn, None);
    let state = StateDir::open(&found.state_dir, &found.identity)
        .map_err(|e| CliError::caused(format!("cannot open the state folder {}", found.state_dir.display()), &e))?;
    let runtime = connect::runtime()?;
    if matches!(request, Request::Abort { .. }) {
        return runtime.block_on(abort_here(&client, &state, &found.file));
    }
    runtime.block_on(decide_here(client, Arc::new(state), key, request, uploads_max))
}

/// Has the session that holds `state_dir` do it; `None` when none holds it (any more).
fn ask_holder(state_dir: &Path, request: &Request) -> Option<Result<(), CliError>> {
    on_interrupt(says("interrupted; the process of the mount goes on with it"));
    let started = Instant::now();
    loop {
        let holder = read_holder(state_dir)?;
        match ControlClient::ask(state_dir, request, None) {
            Ok(Answer::Done { message }) => return Some(output::line(message)),
            Ok(Answer::Failed { message }) => return Some(Err(CliError::failed(message))),
            Ok(other) => return Some(Err(CliError::failed(format!("unexpected answer {other:?}")))),
            Err(error) if started.elapsed() > HOLDER_WITHIN => {
                return Some(Err(CliError::caused(
                    format!("the state folder is in use by {holder}; it does not answer"),
                    &error,
                )));
            }
            // Just starting, or just ending: one of the two shows soon.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Drops a journaled file that no process works on: the upload first, then journal and spool. A crash in between leaves
/// the journal, and the command can be repeated.
async fn abort_here(client: &BosClient, state: &StateDir, file: &FileStatus) -> Result<(), CliError> {
    let key = ObjectKey::parse(&file.key).map_err(|e| CliError::failed(e.to_string()))?;
    for upload in &file.uploads {
        let Some(id) = &upload.upload_id else { continue };
        // Under the key that it was begun with, which need not be the file's.
        let upload_key = ObjectKey::parse(&upload.key).map_err(|e| CliError::failed(e.to_string()))?;
        // Repeated until BOS knows it no more: a part that was on its way may have arrived after the first time.
        for _ in 0..ABORT_TRIES {
            match client.abort(&upload_key, &UploadId::new(id)).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    return Err(CliError::bos(
                        format!("cannot drop the upload {id} of {upload_key}; nothing is lost yet"),
                        &error,
                    ));
                }
            }
        }
    }
    let dir =
        state.uploads()?.into_iter().find(|dir| dir.file_name().is_some_and(|name| name == file.journal_id.as_str()));
    if let Some(dir) = dir {
        state.remove_upload(&dir)?;
        state.sync_uploads()?;
    }
    output::line(format!("the unfinished upload of {key} is gone"))
}

async fn decide_here(
    client: BosClient,
    state: Arc<StateDir>,
    key: &ObjectKey,
    request: &Request,
    uploads_max: u16,
) -> Result<(), CliError> {
    let options = UploadOptions {
        part_bytes: PART_BYTES_DEFAULT,
        uploads_max: uploads_max.into(),
        write_back: false,
        fsync_bos: false,
        interrupted: InterruptedPolicy::Keep,
        timeout: None,
        overwrite_on_conflict: false,
        adopt: false,
        punch: false,
        spool_limit_bytes: None,
        rate_bytes_per_s: None,
        storage_class: None,
    };
    let uploads =
        Uploads::start(options, client, state).map_err(|e| CliError::caused("cannot take up the journal", &e))?;
    let Some(file) = uploads.find(key) else {
        // Recovery found that the object was complete already.
        uploads.stop().await;
        return output::line(format!("{key} needs nothing more"));
    };
    let bar = output::byte_bar(file.status(false).size.max(1));
    let work = async {
        match request {
            Request::Abort { .. } => {
                crate::session::abort(&file).await.map(|()| format!("the unfinished upload of {key} is gone"))
            }
            Request::Complete { force, as_key, .. } => {
                crate::session::complete(&uploads, &file, *force, as_key.as_deref())
                    .await
                    .map(|key| format!("{key} is complete and proved in BOS"))
            }
            _ => Ok(String::new()),
        }
    };
    tokio::pin!(work);
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    let result = loop {
        tokio::select! {
            result = &mut work => break result.map_err(|e| CliError::failed(e.to_string())),
            _ = ticks.tick() => {
                let status = file.status(false);
                bar.set_length(status.size.max(1));
                bar.set_position(status.bytes_in_bos);
                bar.set_message(status.state);
            }
            _ = tokio::signal::ctrl_c() => break Err(CliError::new(Exit::Interrupted, "interrupted; the journal keeps everything")),
        }
    };
    if result.is_ok() {
        // Proved; spool and journal go next.
        let started = Instant::now();
        while uploads.find(&file.key()).is_some() && started.elapsed() < CLEARED_WITHIN {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    bar.finish_and_clear();
    uploads.stop().await;
    output::line(result?)
}
