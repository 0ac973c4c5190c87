//! Request bodies: read in slices while they are sent, counted, and given up the moment nobody waits for them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

/// Bytes read from a [`BodySource`] at once. Two slices a body are in memory: one on its way out, one read ahead.
const SOURCE_SLICE_BYTES: u64 = 512 << 10;
/// Bytes of an in-memory body that are handed out at once. Small, so that a slow line still shows progress.
const MEMORY_SLICE_BYTES: usize = 64 << 10;

/// A request body that can be read again for every try, in slices, so that memory does not grow with its size.
pub trait BodySource: Send + Sync + 'static {
    /// Exact number of bytes.
    fn len(&self) -> u64;
    /// Whether it has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buf` from `offset` on; called from a blocking thread.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// The body of a PutObject or UploadPart.
#[derive(Clone)]
pub enum Body {
    /// Held in memory.
    Bytes(Bytes),
    /// Read in slices while it is sent.
    Source(Arc<dyn BodySource>),
}

impl Body {
    /// Number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Source(source) => source.len(),
        }
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How far a body got: shared by the body, which the connection owns, and the call that watches over it.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    /// Bytes handed to the connection.
    sent: AtomicU64,
    /// The last byte was handed over.
    finished: AtomicBool,
    /// The call was given up: the connection must be broken off, not fed.
    given_up: AtomicBool,
    /// Why the source could not be read.
    read_error: Mutex<Option<String>>,
}

impl Sending {
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Relaxed)
    }

    pub(crate) fn take_read_error(&self) -> Option<String> {
        self.read_error.lock().take()
    }
}

/// Gives up its body when dropped: the cancelled call's bytes stop, also where the connection lives on for a moment.
pub(crate) struct GiveUpOnDrop(pub(crate) Arc<Sending>);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.0.given_up.store(true, Ordering::Relaxed);
    }
}

/// One try's body, of a length fixed beforehand (`Content-Length` is signed).
pub(crate) struct SlicedBody {
    body: Body,
    len: u64,
    offset: u64,
    ahead: Option<JoinHandle<io::Result<Bytes>>>,
    sending: Arc<Sending>,
}

impl SlicedBody {
    /// `len` bytes of `body`; a body of another length fails.
    pub(crate) fn new(body: Body, len: u64) -> (Self, Arc<Sending>) {
        let sending = Arc::new(Sending::default());
        sending.finished.store(len == 0, Ordering::Relaxed);
        (Self { body, len, offset: 0, ahead: None, sending: sending.clone() }, sending)
    }

    fn read_ahead(&mut self, source: &Arc<dyn BodySource>, offset: u64) {
        let len = (self.len - offset).min(SOURCE_SLICE_BYTES) as usize;
        if len == 0 {
            return;
        }
        let source = source.clone();
        self.ahead = Some(tokio::task::spawn_blocking(move || {
            let mut slice = vec![0; len];
            source.read_at(offset, &mut slice)?;
            Ok(Bytes::from(slice))
        }));
    }

    fn poll_slice(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        match self.body.clone() {
            Body::Bytes(bytes) => {
                let start = self.offset as usize;
                let end = bytes.len().min(start + MEMORY_SLICE_BYTES);
                Poll::Ready(Ok(bytes.slice(start..end)))
            }
            Body::Source(source) => {
                if self.ahead.is_none() {
                    if source.len() != self.len {
                        let now = source.len();
                        return Poll::Ready(Err(io::Error::other(format!(
                            "it changed its size from {} to {now} bytes while it was sent",
                            self.len
                        ))));
                    }
                    self.read_ahead(&source, self.offset);
                }
                let Some(ahead) = &mut self.ahead else { return Poll::Ready(Ok(Bytes::new())) };
                let slice = ready!(Pin::new(ahead).poll(cx)).map_err(io::Error::other)??;
                self.ahead = None;
                self.read_ahead(&source, self.offset + slice.len() as u64);
                Poll::Ready(Ok(slice))
            }
        }
    }
}

impl http_body::Body for SlicedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.sending.given_up.load(Ordering::Relaxed) {
            return Poll::Ready(Some(Err(io::Error::other("the call was cancelled"))));
        }
        if this.offset == this.len {
            return Poll::Ready(None);
        }
        let slice = match ready!(this.poll_slice(cx)) {
            Ok(slice) if slice.is_empty() => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            other => other,
        };
        match slice {
            Ok(slice) => {
                this.offset += slice.len() as u64;
                this.sending.sent.store(this.offset, Ordering::Relaxed);
                this.sending.finished.store(this.offset == this.len, Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(slice))))
            }
            Err(error) => {
                *this.sending.read_error.lock() = Some(error.to_string());
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.offset == self.len
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len - self.offset)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    struct Numbers {
        len: AtomicU64,
        fails_at: u64,
    }

    impl BodySource for Numbers {
        fn len(&self) -> u64 {
            self.len.load(Ordering::Relaxed)
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            if offset + buf.len() as u64 > self.fails_at {
                return Err(io::Error::other("disk trouble"));
            }
            for (i, byte) in buf.iter_mut().enumerate() {
                *byte = ((offset + i as u64) % 251) as u8;
            }
            Ok(())
        }
    }

    fn numbers(len: u64, fails_at: u64) -> Arc<Numbers> {
        Arc::new(Numbers { len: len.into(), fails_at })
    }

    #[tokio::test]
    async fn a_source_arrives_whole_at_every_edge_of_its_slices() {
        for len in [0, 1, SOURCE_SLICE_BYTES - 1, SOURCE_SLICE_BYTES, SOURCE_SLICE_BYTES + 1, 3 * SOURCE_SLICE_BYTES] {
            let (body, sending) = SlicedBody::new(Body::Source(numbers(len, u64::MAX)), len);
            assert_eq!(http_body::Body::size_hint(&body).exact(), Some(len));
            let bytes = body.collect().await.unwrap().to_bytes();
            assert_eq!(bytes.len() as u64, len);
            assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8));
            assert!(sending.is_finished() && sending.sent() == len);
        }
    }

    #[tokio::test]
    async fn memory_bodies_are_sliced_and_not_copied() {
        let bytes = Bytes::from(vec![7; 3 * MEMORY_SLICE_BYTES + 1]);
        let (mut body, _) = SlicedBody::new(Body::Bytes(bytes.clone()), bytes.len() as u64);
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((first.len(), first.as_ptr()), (MEMORY_SLICE_BYTES, bytes.as_ptr()));
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 2 * MEMORY_SLICE_BYTES + 1);
    }

    #[tokio::test]
    async fn a_source_that_fails_or_shrinks_is_an_error_that_is_kept() {
        let len = 2 * SOURCE_SLICE_BYTES;
        let (body, sending) = SlicedBody::new(Body::Source(numbers(len, SOURCE_SLICE_BYTES)), len);
        assert!(body.collect().await.is_err());
        assert_eq!(sending.take_read_error().as_deref(), Some("disk trouble"));
        assert!(!sending.is_finished());

        let (body, sending) = SlicedBody::new(Body::Source(numbers(len - 1, u64::MAX)), len);
        assert!(body.collect().await.is_err());
        assert!(sending.take_read_error().unwrap().contains("changed its size"));
    }

    #[tokio::test]
    async fn a_given_up_body_hands_out_nothing_more() {
        let (mut body, sending) = SlicedBody::new(Body::Bytes(Bytes::from(vec![0; MEMORY_SLICE_BYTES * 2])), 131_072);
        assert!(body.frame().await.unwrap().is_ok());
        drop(GiveUpOnDrop(sending));
        assert!(body.frame().await.unwrap().is_err());
    }
}
