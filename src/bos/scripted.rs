//! A loopback server for tests that answers from a script, one step per request.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::client::{BosClient, BosClientConfig};
use super::credentials::CredentialsProvider;
use super::retry::RetryPolicy;
use super::sign::Credentials;

/// What the server does with one request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Sends these bytes and closes the connection.
    Raw(String),
    /// Reads the request and closes the connection without a byte.
    Lose,
    /// Reads the head of the request, then nothing more, and keeps the connection.
    Freeze,
}

impl Step {
    /// An answer with a body and further header lines.
    pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let mut text = format!("HTTP/1.1 {status} Scripted\r\nx-bce-request-id: r-1\r\nConnection: close\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        Step::Raw(format!("{text}\r\n{body}"))
    }

    /// An error answer.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::answer(status, &[], &format!(r#"{{"code":"{code}","message":"{message}","requestId":"r-1"}}"#))
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Request line and header lines.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Method and target.
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap().trim_end_matches(" HTTP/1.1")
    }
}

/// Hands out `old`, and `new` after a reload.
pub(crate) struct Renewable {
    pub(crate) current: Mutex<Arc<Credentials>>,
    pub(crate) next: Option<Credentials>,
}

impl std::fmt::Debug for Renewable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.current.lock().fmt(f)
    }
}

impl CredentialsProvider for Renewable {
    fn current(&self) -> Arc<Credentials> {
        self.current.lock().clone()
    }
    fn reload(&self, _refused: &Credentials) -> bool {
        if let Some(next) = &self.next {
            *self.current.lock() = Arc::new(next.clone());
        }
        self.next.is_some()
    }
    fn can_renew(&self) -> bool {
        true
    }
}

/// The server; stops with its runtime.
pub(crate) struct Scripted {
    seen: Arc<Mutex<Vec<Seen>>>,
    steps: Arc<Mutex<VecDeque<Step>>>,
    address: String,
}

impl Scripted {
    /// Serves `steps`; a request beyond them is answered 418, which no client repeats.
    pub(crate) async fn start(steps: impl IntoIterator<Item = Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let steps = Arc::new(Mutex::new(steps.into_iter().collect::<VecDeque<_>>()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let server = Self { seen: seen.clone(), steps: steps.clone(), address };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, steps.clone(), seen.clone()));
            }
        });
        server
    }

    /// Serves these, too, behind all that is left.
    pub(crate) fn then(&self, steps: impl IntoIterator<Item = Step>) {
        self.steps.lock().extend(steps);
    }

    /// Its address, as an endpoint.
    pub(crate) fn endpoint(&self) -> &str {
        &self.address
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// Steps not yet asked for.
    pub(crate) fn steps_left(&self) -> usize {
        self.steps.lock().len()
    }

    /// A client of bucket `bkt` that retries fast.
    pub(crate) fn client(&self) -> BosClient {
        self.client_with(|_| {})
    }

    /// The same, changed.
    pub(crate) fn client_with(&self, change: impl FnOnce(&mut BosClientConfig)) -> BosClient {
        let ms = std::time::Duration::from_millis;
        let current = Mutex::new(Arc::new(Credentials::new("AK0", "secret0secret0")));
        let provider = Arc::new(Renewable { current, next: None });
        let mut config = BosClientConfig::new(self.address.clone(), "bkt", provider);
        let policy = RetryPolicy {
            tries_max: 3,
            backoff_base: ms(5),
            backoff_cap: ms(10),
            answer_timeout: ms(400),
            work_timeout: ms(400),
            stall_timeout: ms(400),
            deadline: None,
        };
        config.retry = policy.clone();
        config.data_retry = policy;
        change(&mut config);
        BosClient::new(config).unwrap()
    }
}

async fn serve(mut stream: TcpStream, steps: Arc<Mutex<VecDeque<Step>>>, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut request = Seen { head, body: bytes.split_off(head_end + 4) };
    let step = steps.lock().pop_front().unwrap_or_else(|| Step::error(418, "Teapot", "the script is over"));
    if matches!(step, Step::Freeze) {
        seen.lock().push(request);
        return std::future::pending().await;
    }
    let len: usize = request.header("content-length").map_or(0, |text| text.parse().unwrap());
    while request.body.len() < len && stream.read_buf(&mut request.body).await.unwrap_or(0) > 0 {}
    seen.lock().push(request);
    if let Step::Raw(text) = step {
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}
