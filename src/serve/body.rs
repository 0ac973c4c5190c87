//! Bodies: received into a file while they are hashed, sent from the extents of an object.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use sha2::Digest as _;
use tokio::sync::mpsc;

use super::error::ApiError;
use super::store::{Extent, ReadPin, SMALL_BIT, SMALL_BYTES_MAX, Snapshot, Store, Stored, ZEROS};
use crate::object::{Checksum, Hasher};

/// A client that sends nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A client that takes nothing of an answer for so long is given up; long, because a paused reader of a mount is one.
const STALL_MAX: Duration = Duration::from_secs(300);
/// Received pieces that wait for the disk, and pieces read ahead for a client.
const PIECES_AHEAD: usize = 16;
const READ_AHEAD: usize = 4;
/// Bytes read at once for a client.
const READ_BYTES: u64 = 256 << 10;
/// A refused body of at most this many bytes is read to its end, so that the client sees the answer and not a reset.
const DRAIN_BYTES_MAX: u64 = 64 << 20;

/// The body of a request, counted.
pub struct RequestBody {
    incoming: Incoming,
    received: Arc<AtomicU64>,
}

/// A received body.
pub struct Received {
    /// Of its bytes.
    pub checksum: Checksum,
    /// In hex, if asked for.
    pub sha256: Option<String>,
    /// Its bytes.
    pub stored: Stored,
}

impl RequestBody {
    /// Counts into `received`.
    pub fn new(incoming: Incoming, received: Arc<AtomicU64>) -> Self {
        Self { incoming, received }
    }

    /// The next piece; `None` at the end.
    async fn piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let frame = tokio::time::timeout(SILENCE_MAX, self.incoming.frame()).await.map_err(|_| {
                ApiError::bad("RequestTimeout", "The body did not arrive: nothing was received for too long.")
            })?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(ApiError::bad("ReadBodyError", format!("The body broke off: {error}"))),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// All of a body of at most `max` bytes.
    pub async fn gather(&mut self, max: usize) -> Result<Vec<u8>, ApiError> {
        let mut all = Vec::new();
        while let Some(piece) = self.piece().await? {
            if all.len() + piece.len() > max {
                return Err(ApiError::bad(
                    "MaxMessageLengthExceeded",
                    format!("Your request was too big: the body may have at most {max} bytes."),
                ));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// Reads what is left of a refused request, if it is not too much.
    pub async fn drain(&mut self) {
        if self.incoming.size_hint().upper().is_none_or(|left| left > DRAIN_BYTES_MAX) {
            return;
        }
        while let Ok(Some(_)) = self.piece().await {}
    }

    /// Receives `len` bytes into the store, hashing them. Nothing is left behind when they do not all come.
    pub async fn receive(&mut self, store: &Arc<Store>, len: u64, sha256: bool) -> Result<Received, ApiError> {
        if len <= SMALL_BYTES_MAX {
            let bytes = self.gather(SMALL_BYTES_MAX as usize).await?;
            if bytes.len() as u64 != len {
                return Err(incomplete(bytes.len() as u64, len));
            }
            let sum = sha256.then(|| hex::encode(sha2::Sha256::digest(&bytes)));
            let checksum = Checksum::of(&bytes);
            let stored = if bytes.is_empty() { Stored::Nothing } else { Stored::Small(bytes) };
            return Ok(Received { checksum, sha256: sum, stored });
        }
        let (pieces, queue) = mpsc::channel(PIECES_AHEAD);
        let store = store.clone();
        let writing = tokio::task::spawn_blocking(move || write_pieces(&store, queue, len, sha256));
        while let Some(piece) = self.piece().await? {
            if pieces.send(piece).await.is_err() {
                // Writing failed; its result says how.
                break;
            }
        }
        drop(pieces);
        writing.await.map_err(ApiError::internal)?
    }
}

fn incomplete(got: u64, len: u64) -> ApiError {
    ApiError::bad("ReadBodyError", format!("The body has {got} bytes instead of the announced {len}."))
}

/// Writes and hashes pieces until the queue ends.
fn write_pieces(store: &Store, mut queue: mpsc::Receiver<Bytes>, len: u64, sha256: bool) -> Result<Received, ApiError> {
    let mut new = store.files().create().map_err(no_room)?;
    let mut hasher = Hasher::new();
    let mut sha = sha256.then(sha2::Sha256::new);
    let mut got = 0;
    while let Some(piece) = queue.blocking_recv() {
        got += piece.len() as u64;
        new.file.write_all(&piece).map_err(no_room)?;
        hasher.update(&piece);
        if let Some(sha) = &mut sha {
            sha.update(&piece);
        }
    }
    if got != len {
        return Err(incomplete(got, len));
    }
    if store.syncs() {
        new.sync().map_err(no_room)?;
    }
    let sha256 = sha.map(|sha| hex::encode(sha.finalize()));
    Ok(Received { checksum: hasher.finish(), sha256, stored: Stored::File(new, len) })
}

fn no_room(error: io::Error) -> ApiError {
    if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
        return ApiError::denied("CapacityExceeded", format!("The server's disk is full: {error}"));
    }
    ApiError::internal(error)
}

/// The body of an answer.
pub enum ReplyBody {
    /// Held in memory; taken when sent.
    Full(Bytes),
    /// Read while it is sent.
    Pieces {
        /// Where they come from.
        queue: mpsc::Receiver<io::Result<Bytes>>,
        /// Bytes still to come.
        left: u64,
    },
}

impl ReplyBody {
    /// No byte.
    pub fn empty() -> Self {
        Self::Full(Bytes::new())
    }

    /// The bytes of `extents`, read by a thread that stays a little ahead of the client. `pin` was taken before `snapshot`.
    pub fn of_extents(extents: Vec<Extent>, snapshot: Snapshot, pin: ReadPin, store: Arc<Store>) -> Self {
        let left = extents.iter().map(|extent| extent.len).sum();
        let (pieces, queue) = mpsc::channel(READ_AHEAD);
        tokio::task::spawn_blocking(move || {
            let outcome = read_extents(&extents, &snapshot, &store, &pieces);
            if let Err(error) = outcome {
                log::warn!("an answer broke off, its connection is cut: {error}");
                // Full or closed: the queue ends early either way, which cuts the connection too.
                let _ = pieces.try_send(Err(error));
            }
            drop(pin);
        });
        Self::Pieces { queue, left }
    }
}

/// Sends the bytes until the client has gone.
fn read_extents(
    extents: &[Extent],
    snapshot: &Snapshot,
    store: &Store,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let mut open: Option<(u64, File)> = None;
    let zeros = Bytes::from(vec![0; READ_BYTES as usize]);
    for extent in extents {
        let small = if extent.file & SMALL_BIT != 0 { Some(snapshot.small(extent.file)?) } else { None };
        let mut done = 0;
        while done < extent.len {
            let len = READ_BYTES.min(extent.len - done);
            let at = extent.at + done;
            let piece = if extent.file == ZEROS {
                zeros.slice(..len as usize)
            } else if let Some(small) = &small {
                if at + len > small.len() as u64 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                small.slice(at as usize..(at + len) as usize)
            } else {
                let (_, file) = match &open {
                    Some(present) if present.0 == extent.file => present,
                    _ => open.insert((extent.file, store.files().open_file(extent.file)?)),
                };
                let mut bytes = vec![0; len as usize];
                file.read_exact_at(&mut bytes, at)?;
                bytes.into()
            };
            match runtime.block_on(tokio::time::timeout(STALL_MAX, pieces.send(Ok(piece)))) {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no more bytes")),
            }
            done += len;
        }
    }
    Ok(())
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Pieces { left: 0, .. } => Poll::Ready(None),
            Self::Pieces { queue, left } => queue.poll_recv(cx).map(|piece| match piece {
                Some(Ok(piece)) => {
                    *left = left.saturating_sub(piece.len() as u64);
                    Some(Ok(Frame::data(piece)))
                }
                Some(Err(error)) => Some(Err(error)),
                None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Pieces { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Pieces { left, .. } => SizeHint::with_exact(*left),
        }
    }
}
