//! A server before a real one that answers chosen requests with any bytes at all: what no HTTP library would send.
//!
//! Everything else is handed on to the real server, a connection for each request.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::call::Asked;

/// Longest wait for one read or write of a connection.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(60);
/// Where an endless answer ends after all, bytes: far beyond what any client should take.
const ENDLESS_BYTES_MAX: u64 = 4 << 30;

/// What is sent in place of an answer.
#[derive(Clone, Debug)]
pub enum Raw {
    /// These bytes, then the end of the connection.
    Bytes(Vec<u8>),
    /// The first bytes, then the second again and again until the client has enough.
    Endless(Vec<u8>, Vec<u8>),
    /// The first bytes, then the second one by one with a pause before each, again and again.
    Drip(Vec<u8>, Vec<u8>, Duration),
}

impl Raw {
    /// A whole answer with its right length.
    pub fn answer(status: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let mut bytes = head(status, headers);
        bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
        bytes.extend(body);
        Raw::Bytes(bytes)
    }

    /// A JSON document with status 200.
    pub fn json(body: &serde_json::Value) -> Self {
        Self::answer("200 OK", &[("Content-Type", "application/json")], body.to_string())
    }
}

/// A head without its empty line.
pub fn head(status: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nx-bce-request-id: hostile\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.into_bytes()
}

/// Says what a request gets; `None`: the real answer.
type Script = dyn Fn(&Asked) -> Option<Raw> + Send + Sync;

struct Shared {
    upstream: SocketAddr,
    script: Mutex<Arc<Script>>,
    hits: AtomicU64,
    bytes: AtomicU64,
    stopping: AtomicBool,
}

/// The server; ends with this value.
pub struct Hostile {
    shared: Arc<Shared>,
    addr: SocketAddr,
}

impl Hostile {
    /// Before `upstream`, answering as `script` says.
    pub fn start(
        upstream: SocketAddr,
        script: impl Fn(&Asked) -> Option<Raw> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            script: Mutex::new(Arc::new(script)),
            hits: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        });
        let server = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if server.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                let server = server.clone();
                // A client that leaves in the middle of an answer is what most tests want.
                std::thread::spawn(move || drop(server.serve(client)));
            }
        });
        Ok(Self { shared, addr })
    }

    /// `http://127.0.0.1:PORT`, for `--endpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Requests that were not handed on.
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::SeqCst)
    }

    /// Bytes that clients took of such answers.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// Answers as `script` says from now on.
    pub fn answer_by(&self, script: impl Fn(&Asked) -> Option<Raw> + Send + Sync + 'static) {
        *self.shared.script.lock() = Arc::new(script);
    }

    /// Hands everything on from now on.
    pub fn behave(&self) {
        self.answer_by(|_| None);
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the listener, which then ends.
        let _ = TcpStream::connect(self.addr);
    }
}

impl Shared {
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        client.set_read_timeout(Some(SOCKET_TIMEOUT))?;
        client.set_write_timeout(Some(SOCKET_TIMEOUT))?;
        client.set_nodelay(true)?;
        let mut reader = BufReader::new(client.try_clone()?);
        let lines = read_head(&mut reader)?;
        let Some((first, headers)) = lines.split_first() else { return Ok(()) };
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let header = |name: &str| {
            headers.iter().find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let asked = Asked::read(method, target, header);
        let script = self.script.lock().clone();
        match script(&asked) {
            None => self.hand_on(first, headers, asked.body_bytes, &mut reader, client),
            Some(raw) => {
                self.hits.fetch_add(1, Ordering::SeqCst);
                // Read, so that the end of the connection does not reset what was sent.
                io::copy(&mut reader.take(asked.body_bytes), &mut io::sink())?;
                self.send(&raw, &client)?;
                client.shutdown(Shutdown::Write)?;
                io::copy(&mut client.take(1 << 20), &mut io::sink()).map(drop)
            }
        }
    }

    fn send(&self, raw: &Raw, client: &TcpStream) -> io::Result<()> {
        let put = |bytes: &[u8]| {
            (&*client).write_all(bytes)?;
            self.bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            io::Result::Ok(())
        };
        match raw {
            Raw::Bytes(bytes) => put(bytes),
            Raw::Endless(first, again) => {
                put(first)?;
                let piece = again.repeat((64 << 10) / again.len().max(1) + 1);
                let mut sent = 0;
                while sent < ENDLESS_BYTES_MAX && !self.stopping.load(Ordering::SeqCst) {
                    put(&piece)?;
                    sent += piece.len() as u64;
                }
                Ok(())
            }
            Raw::Drip(first, again, pause) => {
                put(first)?;
                for byte in again.iter().cycle() {
                    std::thread::sleep(*pause);
                    if self.stopping.load(Ordering::SeqCst) {
                        break;
                    }
                    put(&[*byte])?;
                }
                Ok(())
            }
        }
    }

    fn hand_on(
        &self,
        first: &str,
        headers: &[String],
        body_bytes: u64,
        reader: &mut BufReader<TcpStream>,
        mut client: TcpStream,
    ) -> io::Result<()> {
        let mut server = TcpStream::connect(self.upstream)?;
        server.set_read_timeout(Some(SOCKET_TIMEOUT))?;
        let mut text = format!("{first}\r\nconnection: close\r\n");
        headers.iter().for_each(|line| text.push_str(&format!("{line}\r\n")));
        text.push_str("\r\n");
        server.write_all(text.as_bytes())?;
        io::copy(&mut reader.take(body_bytes), &mut server)?;
        io::copy(&mut server, &mut client)?;
        client.shutdown(Shutdown::Write)
    }
}

/// Lines of a request's head, without their ends; none when the client left.
fn read_head(reader: &mut impl io::BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(Vec::new());
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line);
    }
}

/// A listener that only counts who connects.
pub struct Bystander {
    addr: SocketAddr,
    connections: Arc<AtomicU64>,
}

impl Bystander {
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        let connections = Arc::new(AtomicU64::new(0));
        let counted = connections.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                drop(client);
            }
        });
        Ok(Self { addr, connections })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}
