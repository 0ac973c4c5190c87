//! As much of HTTP/1.1 as a proxy needs that wants to cut connections at a chosen byte.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest head of a request or answer, bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Bodies move in pieces of at most this size, bytes.
pub const PIECE_BYTES: usize = 64 << 10;

/// A parsed head and its raw bytes.
#[derive(Clone, Debug)]
pub struct Head {
    /// `METHOD target` of a request, the status of an answer.
    pub start: Start,
    /// In order, names as they came.
    pub headers: Vec<(String, String)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Start {
    Request { method: String, target: String },
    Answer { status: u16, reason: String },
}

/// How the end of a body is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    Fixed(u64),
    Chunked,
    UntilClose,
}

impl Head {
    /// The first header of this name (any case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Removes all headers for which `unwanted` (given the lowercase name) holds.
    pub fn remove(&mut self, unwanted: impl Fn(&str) -> bool) {
        self.headers.retain(|(name, _)| !unwanted(&name.to_ascii_lowercase()));
    }

    /// Whether the sender closes the connection afterwards.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|v| v.to_ascii_lowercase().contains("close"))
    }

    /// How long the body of this head is. `answer_to`: the method that an answer answers.
    pub fn framing(&self, answer_to: Option<&str>) -> Framing {
        if let Start::Answer { status, .. } = self.start
            && (answer_to == Some("HEAD") || status == 204 || status == 304 || status < 200)
        {
            return Framing::Fixed(0);
        }
        if self.header("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().contains("chunked")) {
            return Framing::Chunked;
        }
        match (self.header("content-length").and_then(|v| v.trim().parse().ok()), &self.start) {
            (Some(len), _) => Framing::Fixed(len),
            (None, Start::Request { .. }) => Framing::Fixed(0),
            (None, Start::Answer { .. }) => Framing::UntilClose,
        }
    }

    /// The head as it goes over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = match &self.start {
            Start::Request { method, target } => format!("{method} {target} HTTP/1.1\r\n"),
            Start::Answer { status, reason } => format!("HTTP/1.1 {status} {reason}\r\n"),
        };
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        // Header values are kept byte for byte: Latin-1 in, Latin-1 out.
        text.chars().map(|c| c as u32 as u8).collect()
    }
}

/// Reads one head; what follows it stays in `buf`. `None`: the peer closed before its first byte.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin), buf: &mut BytesMut) -> io::Result<Option<Head>> {
    loop {
        if let Some(at) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
            let raw = buf.split_to(at + 4);
            return parse(&raw).map(Some);
        }
        if buf.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "head too long"));
        }
        buf.reserve(8 << 10);
        if stream.read_buf(buf).await? == 0 {
            return match buf.is_empty() {
                true => Ok(None),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }
}

fn parse(raw: &[u8]) -> io::Result<Head> {
    let bad = |e: httparse::Error| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let start = if raw.starts_with(b"HTTP/") {
        let mut answer = httparse::Response::new(&mut headers);
        answer.parse(raw).map_err(bad)?;
        Start::Answer { status: answer.code.unwrap_or(0), reason: answer.reason.unwrap_or("").to_owned() }
    } else {
        let mut request = httparse::Request::new(&mut headers);
        request.parse(raw).map_err(bad)?;
        Start::Request {
            method: request.method.unwrap_or("").to_owned(),
            target: request.path.unwrap_or("").to_owned(),
        }
    };
    let latin1 = |value: &[u8]| value.iter().map(|b| char::from(*b)).collect::<String>();
    let headers = headers
        .iter()
        .take_while(|h| **h != httparse::EMPTY_HEADER)
        .map(|h| (h.name.to_owned(), latin1(h.value)))
        .collect();
    Ok(Head { start, headers })
}

/// Reads a body piece by piece, raw (chunked framing included), and knows its end.
pub struct BodyReader {
    framing: Framing,
    left: u64,
    chunked: ChunkTracker,
    done: bool,
}

impl BodyReader {
    pub fn new(framing: Framing) -> Self {
        let left = if let Framing::Fixed(len) = framing { len } else { 0 };
        Self { framing, left, chunked: ChunkTracker::default(), done: framing == Framing::Fixed(0) }
    }

    /// The next piece, at most `max` bytes; `None` at the end.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer closed before the end.
    pub async fn next(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        buf: &mut BytesMut,
        max: usize,
    ) -> io::Result<Option<BytesMut>> {
        if self.done {
            return Ok(None);
        }
        if buf.is_empty() {
            buf.reserve(PIECE_BYTES);
            if stream.read_buf(buf).await? == 0 {
                self.done = true;
                return match self.framing {
                    Framing::UntilClose => Ok(None),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
        let max = max.max(1).min(buf.len());
        let len = match self.framing {
            Framing::Fixed(_) => {
                let len = max.min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= len as u64;
                self.done = self.left == 0;
                len
            }
            Framing::Chunked => {
                let (len, done) = self.chunked.advance(&buf[..max])?;
                self.done = done;
                len
            }
            Framing::UntilClose => max,
        };
        Ok(Some(buf.split_to(len)))
    }
}

/// Follows chunked framing without changing it.
#[derive(Default)]
struct ChunkTracker {
    line: Vec<u8>,
    data_left: u64,
    state: ChunkState,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    #[default]
    Size,
    Data,
    DataEnd,
    Trailer,
}

impl ChunkTracker {
    /// How many of `bytes` belong to the body, and whether it ends there.
    fn advance(&mut self, bytes: &[u8]) -> io::Result<(usize, bool)> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.state == ChunkState::Data {
                let n = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(rest.len());
                rest.advance(n);
                self.data_left -= n as u64;
                if self.data_left == 0 {
                    self.state = ChunkState::DataEnd;
                }
                continue;
            }
            let byte = rest[0];
            rest.advance(1);
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim().to_owned();
            self.state = match self.state {
                ChunkState::Size => {
                    let digits = line.split(';').next().unwrap_or("").trim();
                    self.data_left = u64::from_str_radix(digits, 16)
                        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "bad chunk size"))?;
                    if self.data_left == 0 { ChunkState::Trailer } else { ChunkState::Data }
                }
                ChunkState::Trailer if line.is_empty() => return Ok((bytes.len() - rest.len(), true)),
                ChunkState::Trailer => ChunkState::Trailer,
                ChunkState::DataEnd | ChunkState::Data => ChunkState::Size,
            };
        }
        Ok((bytes.len(), false))
    }
}
