//! The answering side of the control socket.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

use super::Running;
use crate::object::ObjectKey;
use crate::observe::control::{Answer, REQUEST_BYTES_MAX, Request, SOCKET_NAME, socket_address};
use crate::upload::FileStatus;

/// Connections served at once; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 32;
/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Makes the socket in the state directory. The lease is held, so what lies there under this name is a dead process's.
///
/// # Errors
/// The socket cannot be made.
pub fn bind(state_dir: &Path) -> io::Result<UnixListener> {
    let path = state_dir.join(SOCKET_NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_fd, address) = socket_address(state_dir)?;
    let listener = std::os::unix::net::UnixListener::bind(address)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Answers until the task is dropped.
pub async fn serve(listener: UnixListener, running: Arc<Running>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let running = running.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, running).await {
                        log::debug!("control socket: {error}");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would only burn time.
                log::warn!("control socket: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, running: Arc<Running>) -> io::Result<()> {
    let _open = running.connection();
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = String::new();
        let read = (&mut reader).take(REQUEST_BYTES_MAX as u64).read_line(&mut line).await?;
        if read == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str::<Request>(&line) {
            Ok(Request::Drain) => {
                drain(&running, &mut reader, &mut writer).await?;
                return Ok(());
            }
            Ok(request) => act(&running, request).await,
            Err(error) => Answer::Failed { message: format!("the request is not understood: {error}") },
        };
        send(&mut writer, &answer).await?;
        if !line.ends_with('\n') {
            return Ok(());
        }
    }
}

async fn send(writer: &mut (impl tokio::io::AsyncWrite + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    // A reader that stopped reading must not hold a slot for ever.
    tokio::time::timeout(Duration::from_secs(10), writer.write_all(&line)).await?
}

async fn act(running: &Running, request: Request) -> Answer {
    let with_key = |key: &str| {
        let key = ObjectKey::parse(key).map_err(|error| error.to_string())?;
        let file = running.uploads.find(&key).ok_or_else(|| format!("no unfinished file has the key {key}"))?;
        Ok::<_, String>((key, file))
    };
    let result: Result<String, String> = match request {
        Request::Status | Request::Drain => return Answer::Status { status: Box::new(running.snapshot()) },
        Request::Stop => {
            running.ask_to_stop();
            Ok("stopping; the journal keeps everything that is not in BOS yet".to_owned())
        }
        Request::Complete { key, force, as_key } => match with_key(&key) {
            Ok((_, file)) => match super::complete(&running.uploads, &file, force, as_key.as_deref()).await {
                Ok(key) => Ok(format!("{key} is complete and proved in BOS")),
                Err(error) => Err(error.to_string()),
            },
            Err(message) => Err(message),
        },
        Request::Abort { key } => match with_key(&key) {
            Ok((key, file)) => match super::abort(&file).await {
                Ok(()) => Ok(format!("the unfinished upload of {key} is gone")),
                Err(error) => Err(error.to_string()),
            },
            Err(message) => Err(message),
        },
    };
    match result {
        Ok(message) => Answer::Done { message },
        Err(message) => Answer::Failed { message },
    }
}

/// Progress until nothing closed is pending, then until the session ends. Ends early when the reader goes.
async fn drain(
    running: &Running,
    reader: &mut (impl tokio::io::AsyncBufRead + Unpin),
    writer: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut ended: watch::Receiver<Option<Vec<FileStatus>>> = running.ended.subscribe();
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let drained = running.drain();
    tokio::pin!(drained);
    let mut is_drained = false;
    // First of all who answers: the reader names bucket and process even when nothing is pending.
    send(writer, &Answer::Progress { status: Box::new(running.snapshot()) }).await?;
    let mut byte = [0u8];
    loop {
        // Settled before it is sent: what `wait_for` gives must not live across an await.
        let next = tokio::select! {
            biased;
            result = ended.wait_for(Option::is_some) => {
                Next::Ended(result.ok().and_then(|remaining| remaining.clone()).unwrap_or_default())
            }
            remaining = &mut drained, if !is_drained => Next::Drained(remaining),
            _ = ticks.tick() => Next::Tick,
            read = reader.read(&mut byte) => match read? {
                0 => return Ok(()),
                _ => continue,
            },
        };
        let answer = match next {
            Next::Ended(remaining) => return send(writer, &Answer::Ended { remaining }).await,
            Next::Drained(remaining) => {
                is_drained = true;
                Answer::Drained { remaining }
            }
            Next::Tick => Answer::Progress { status: Box::new(running.snapshot()) },
        };
        send(writer, &answer).await?;
    }
}

/// What a drain has to tell next.
enum Next {
    Ended(Vec<FileStatus>),
    Drained(Vec<FileStatus>),
    Tick,
}
