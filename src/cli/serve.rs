//! `bosfs serve`: the embedded BOS server in the foreground.

use super::args::ServeArgs;
use super::connect;
use super::exit::CliError;
use super::output;
use crate::bos::sign::Credentials;
use crate::config::paths;
use crate::observe::logging::{self, LogFile};
use crate::serve::{ServeOptions, Server, ServerHandle};

/// Runs the command until SIGTERM or Ctrl-C.
///
/// # Errors
/// The folder or the address cannot be used.
pub fn run(args: &ServeArgs) -> Result<(), CliError> {
    let log = match &args.log.log_file {
        None => None,
        Some(path) => {
            let log = LogFile::new();
            log.open(path).map_err(|e| CliError::caused(format!("cannot write the log {}", path.display()), &e))?;
            Some(log)
        }
    };
    logging::init(args.log.log_level.into(), log);
    let dir = match &args.dir {
        Some(dir) => paths::absolute(dir),
        None => paths::default_local_store().map_err(CliError::usage)?,
    };
    let mut options = ServeOptions::new(&dir);
    options.listen = args.listen;
    if let (Some(ak), Some(sk)) = (&args.ak, &args.sk) {
        options.credentials = Some(Credentials::new(ak.clone(), sk.clone()));
    }
    if !args.listen.ip().is_loopback() {
        output::note(format!("{} can be reached from other machines, without encryption", args.listen));
    }
    let given = options.credentials.is_some();
    let server = Server::start(options)
        .map_err(|e| CliError::caused(format!("cannot serve {} on {}", dir.display(), args.listen), &e))?;
    for bucket in &args.bucket {
        ensure_bucket(&server, bucket)?;
    }
    connect::runtime()?.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        // Caught before we say that we are there: whoever reads that line may send a signal at once.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        if let Err(error) = announce(args, &server.endpoint(), &dir, given) {
            // Whoever started us may have read the first line and closed the pipe; the server is for others, too.
            log::debug!("not announced: {error}");
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok::<(), CliError>(())
    })?;
    server.stop();
    Ok(())
}

/// Makes `bucket` unless it is there.
///
/// # Errors
/// The name cannot be one, or the disk refuses.
pub fn ensure_bucket(server: &ServerHandle, bucket: &str) -> Result<(), CliError> {
    match server.create_bucket(bucket) {
        Err(error) if error.code != "BucketAlreadyExists" => {
            Err(CliError::caused(format!("cannot make the bucket {bucket}"), &error))
        }
        _ => Ok(()),
    }
}

fn announce(args: &ServeArgs, endpoint: &str, dir: &std::path::Path, given: bool) -> Result<(), CliError> {
    let bucket = args.bucket.first().map_or("BUCKET", String::as_str);
    let credentials = if given { std::path::PathBuf::from("FILE") } else { dir.join("credentials") };
    output::line(format!("serving {} at {endpoint}", dir.display()))?;
    if !given {
        output::line(format!("credentials in {}", credentials.display()))?;
    }
    output::line(format!(
        "mount it with: bosfs mount {bucket} DIR --endpoint {endpoint} --credentials {}",
        credentials.display()
    ))
}
