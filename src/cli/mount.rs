//! `bosfs mount`: checks, the embedded server, and the mount in this process or in a daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::{ConflictArg, FsyncArg, InterruptedArg, MountArgs, YesNo};
use super::connect::{self, Access};
use super::exit::{CliError, Exit};
use super::handover::{self, Order, Role};
use super::interrupt::{on_interrupt, says};
use super::{mount_point, output};
use crate::bos::BosClient;
use crate::config::credentials::GivenKeys;
use crate::config::{CredentialsSource, Endpoint, Keys, Secret, paths};
use crate::journal::state_dir::read_holder;
use crate::observe::logging::{self, LogFile};
use crate::serve::{ServeOptions, Server, ServerHandle};
use crate::session::{self, MountSettings, SessionError, SessionOptions};
use crate::upload::{InterruptedPolicy, UploadOptions};

/// Name of a daemon's log in the state directory.
const LOG_NAME: &str = "bosfs.log";

/// Runs the command. `given`: keys from an `-o` list.
///
/// # Errors
/// Whatever keeps the mount from answering.
pub fn run(mut args: MountArgs, given: GivenKeys) -> Result<(), CliError> {
    if !args.foreground {
        // A daemon sets its own log up; this process has only warnings to show.
        logging::init(log::LevelFilter::Warn, None);
    }
    args.dir = mount_point::check(&args.dir, args.nonempty)?;
    for path in [&mut args.bos.credentials, &mut args.bos.state_dir, &mut args.log.log_file].into_iter().flatten() {
        *path = paths::absolute(path);
    }
    let keys = if args.local.is_some() {
        args.local = Some(Some(local_store(&args)?));
        if !given.is_empty() || args.bos.credentials.is_some() {
            return Err(CliError::usage("--local makes its own credentials; leave ak, sk and --credentials away"));
        }
        None
    } else {
        let access = Access::new(&args.bos, &given)?;
        // Settled here: the child sees neither our environment nor our present directory.
        args.bos.endpoint = Some(access.endpoint.to_string());
        args.bos.region = None;
        args.bos.credentials = access.credentials.path().map(Path::to_owned);
        args.bos.credentials.is_none().then(|| access.credentials.keys())
    };
    let role = if args.foreground { Role::Foreground } else { Role::Launcher };
    if given.secret_access_key.is_some() || given.session_token.is_some() {
        // Also where only a daemon is waited for: that may take long, and the arguments are there for all to see.
        return Err(handover::replace_self(&Order::new(args, role, keys)));
    }
    match role {
        Role::Foreground => mount_here(&args, keys.map(GivenKeys::from).unwrap_or_default(), None),
        Role::Launcher | Role::Daemon => launch(&Order::new(args, Role::Daemon, keys)),
    }
}

/// Starts a daemon and waits until its mount answers.
fn launch(order: &Order) -> Result<(), CliError> {
    on_interrupt(says("interrupted before the mount was made; nothing is mounted"));
    handover::start_daemon(order)?;
    let dir = &order.mount.dir;
    if !mount_point::is_served(dir) {
        return Err(CliError::failed(format!("the mount at {} was made but does not answer", dir.display()))
            .hint("see bosfs status and the log in the state folder"));
    }
    Ok(())
}

/// The side of the child that [`handover`] started.
///
/// # Errors
/// As [`run`]; told to the parent already, where there is one.
pub fn run_child() -> Result<(), CliError> {
    let order = Order::from_stdin()?;
    let keys = order.keys();
    match order.role {
        Role::Foreground => return mount_here(&order.mount, keys, None),
        Role::Launcher => {
            logging::init(log::LevelFilter::Warn, None);
            return launch(&order.in_role(Role::Daemon));
        }
        Role::Daemon => {}
    }
    if let Err(error) = handover::become_daemon() {
        let error = CliError::caused("cannot leave the terminal", &error);
        let _ = handover::report(Err(error.clone()));
        return Err(error);
    }
    let log = LogFile::new();
    let result = mount_here(&order.mount, keys, Some(log));
    if let Err(error) = &result {
        log::error!("{error}");
        // After the mount was ready, stdout is /dev/null and this is lost, as it should be.
        let _ = handover::report(Err(error.clone()));
    }
    result
}

fn local_store(args: &MountArgs) -> Result<PathBuf, CliError> {
    match args.local.clone().flatten() {
        Some(dir) => Ok(paths::absolute(&dir)),
        None => paths::default_local_store().map_err(CliError::usage),
    }
}

/// Starts the embedded server and makes the bucket.
fn start_local(args: &MountArgs) -> Result<(ServerHandle, Access), CliError> {
    let dir = local_store(args)?;
    let server = Server::start(ServeOptions::new(&dir))
        .map_err(|e| CliError::caused(format!("cannot serve the folder {}", dir.display()), &e))?;
    let bucket = &args.bucket.bucket;
    super::serve::ensure_bucket(&server, bucket)?;
    let own = server.credentials();
    let keys = Keys {
        access_key_id: own.access_key_id.clone(),
        secret_access_key: Secret::new(own.secret_access_key.clone()),
        session_token: own.session_token.clone().map(Secret::new),
    };
    let endpoint = Endpoint::parse(&server.endpoint()).map_err(CliError::failed)?;
    Ok((server, Access { endpoint, credentials: Arc::new(CredentialsSource::fixed(keys)) }))
}

/// Mounts in this process and works until it is unmounted or stopped. `daemon_log`: this is a daemon, whose parent waits
/// for a report.
fn mount_here(args: &MountArgs, given: GivenKeys, daemon_log: Option<LogFile>) -> Result<(), CliError> {
    let is_daemon = daemon_log.is_some();
    let log = match (&args.log.log_file, daemon_log) {
        (Some(path), log) => {
            let log = log.unwrap_or_default();
            log.open(path).map_err(|e| CliError::caused(format!("cannot write the log {}", path.display()), &e))?;
            Some(log)
        }
        (None, log) => log,
    };
    logging::init(args.log.log_level.into(), log.clone());

    let (server, access) = match args.local {
        Some(_) => start_local(args).map(|(server, access)| (Some(server), access))?,
        None => (None, Access::new(&args.bos, &given)?),
    };
    // The port of an embedded server changes; its folder says what the journal belongs to.
    let place = match &args.local {
        Some(_) => format!("local:{}", local_store(args)?.display()),
        None => access.endpoint.to_string(),
    };
    let client = access.client(&args.bucket.bucket)?;
    let identity = connect::identity(&place, &args.bucket.bucket, &args.bucket.prefix);
    let state_dir = connect::state_dir(&args.bos, &identity);
    if let Some(holder) = read_holder(&state_dir) {
        return Err(CliError::failed(format!("the state folder {} is in use by {holder}", state_dir.display())));
    }
    let options = SessionOptions {
        bucket: args.bucket.clone(),
        mount_point: args.dir.clone(),
        identity,
        state_dir: state_dir.clone(),
        client: client.clone(),
        credentials: access.credentials.clone(),
        uploads: upload_options(args),
        retry_failed: args.retry_failed,
        mount: mount_settings(args),
    };
    let own_log = log.filter(|_| args.log.log_file.is_none());
    let ready = move |status: &crate::observe::StatusSnapshot| {
        if let Some(log) = own_log {
            log.open(&status.state_dir.join(LOG_NAME))?;
        }
        if is_daemon {
            handover::report(Ok(()))
        } else {
            let place = status.mount_point.as_deref().unwrap_or(Path::new("")).display();
            output::note(format!(
                "{} is mounted at {place}; end it with Ctrl-C or: bosfs umount {place}",
                status.source()
            ));
            Ok(())
        }
    };
    let runtime = connect::runtime()?;
    let result = runtime.block_on(async {
        match session::run(options, ready).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let unreached = matches!(error, SessionError::Bucket(_));
                let explained = explain(&client, error).await;
                Err(if unreached { with_journal(explained, &state_dir) } else { explained })
            }
        }
    });
    // Everything that matters has stopped; a thread that hangs on a dead disk or line must not keep the process.
    runtime.shutdown_background();
    if let Some(server) = server {
        server.stop();
    }
    result
}

/// Says what of the journal waits for this mount.
fn with_journal(error: CliError, state_dir: &Path) -> CliError {
    let waiting = super::status::journal_snapshot(state_dir).map_or(0, |snapshot| snapshot.files.len());
    match waiting {
        0 => error,
        count => error.hint(format!(
            "the journal keeps {} that wait to be sent (bosfs status {}); mount again once BOS can be reached",
            if count == 1 { "1 file".to_owned() } else { format!("{count} files") },
            state_dir.display()
        )),
    }
}

async fn explain(client: &BosClient, error: SessionError) -> CliError {
    match error {
        SessionError::Bucket(error) => connect::explain(client, *error).await,
        SessionError::State(error) => CliError::failed(error.to_string()),
        SessionError::Interrupted => CliError::new(Exit::Interrupted, error.to_string()),
        SessionError::Hierarchical(_) => CliError::failed(error.to_string()),
        SessionError::Step { doing, source } => {
            let denied = source.kind() == std::io::ErrorKind::PermissionDenied;
            let explained = CliError::caused(doing, &source);
            if denied {
                explained.code(Exit::Credentials).hint(
                    "mounting needs root, or /dev/fuse and the program fusermount3 (Debian: apt install fuse3); --allow-other \
                     also needs user_allow_other in /etc/fuse.conf",
                )
            } else {
                explained
            }
        }
    }
}

fn upload_options(args: &MountArgs) -> UploadOptions {
    UploadOptions {
        part_bytes: args.part_size,
        uploads_max: args.max_uploads.into(),
        write_back: args.write_back,
        fsync_bos: args.fsync == FsyncArg::Bos,
        interrupted: match args.interrupted {
            InterruptedArg::Keep => InterruptedPolicy::Keep,
            InterruptedArg::Complete => InterruptedPolicy::Complete,
            InterruptedArg::Discard => InterruptedPolicy::Discard,
        },
        timeout: args.timeout,
        overwrite_on_conflict: args.on_conflict == ConflictArg::Overwrite,
        adopt: args.adopt,
        punch: args.punch == YesNo::Yes,
        spool_limit_bytes: args.spool_limit,
        rate_bytes_per_s: args.upload_rate,
        storage_class: args.storage_class.clone(),
    }
}

fn mount_settings(args: &MountArgs) -> MountSettings {
    MountSettings {
        read_only: args.read_only,
        allow_other: args.allow_other,
        uid: args.uid.unwrap_or_else(|| rustix::process::getuid().as_raw()),
        gid: args.gid.unwrap_or_else(|| rustix::process::getgid().as_raw()),
        umask: args.umask,
        metadata_ttl: args.metadata_ttl,
        exact_types: args.exact_types,
        memory_bytes: args.memory_limit,
        downloads_max: args.max_downloads.into(),
    }
}
