//! A proxy on loopback between bosfs and a BOS endpoint that does to chosen requests what bad lines and busy servers do,
//! and counts what really went over the wire.
//!
//! Requests are forwarded byte for byte with their `Host`, so signatures stay valid. Bodies are streamed. The proxy has
//! threads of its own, so a test may block on a system call of the mount meanwhile.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::bucket::Bucket;
use super::counts::{CallCount, Counts};
use super::exchange;
use super::fault::{Action, HoldAt, Rule, RuleSpec, When};
use super::stale::StaleHeads;

/// Longest wait for the listener to come or go.
const LISTENER_WITHIN: Duration = Duration::from_secs(10);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// State of the whole line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Alive,
    /// All connections are reset, new ones too.
    Dead,
    /// Connections stand, but no byte moves.
    Silent,
    /// Nothing listens: the kernel refuses new connections; those that stood are reset.
    Refused,
}

/// What all connections of a proxy share.
pub(super) struct Shared {
    pub(super) upstream: Mutex<SocketAddr>,
    pub(super) started: Instant,
    pub(super) counts: Mutex<Counts>,
    pub(super) rules: Mutex<Vec<Rule>>,
    rule_id_next: AtomicU64,
    line: watch::Sender<Line>,
    latency_ms: AtomicU64,
    bytes_per_s: AtomicU64,
    /// Whether the kernel takes connections for us.
    listening: AtomicBool,
    /// What acts on the server past all faults, for faults that need it.
    pub(super) hands: Mutex<Option<Arc<Bucket>>>,
    /// Set while HEADs are stale.
    pub(super) stale: Mutex<Option<StaleHeads>>,
    /// When the line is free for the next piece, under the bandwidth limit.
    line_free_at: Mutex<Instant>,
    stopping: AtomicBool,
}

impl Shared {
    /// Waits while the line is silent.
    pub(super) async fn line_moves(&self) {
        let mut line = self.line.subscribe();
        let _ = line.wait_for(|line| *line != Line::Silent).await;
    }

    async fn line_dies(&self) {
        let mut line = self.line.subscribe();
        let _ = line.wait_for(|line| matches!(line, Line::Dead | Line::Refused)).await;
    }

    pub(super) fn latency(&self) -> Duration {
        Duration::from_millis(self.latency_ms.load(Ordering::Relaxed))
    }

    /// Waits until `bytes` fit into the bandwidth of the whole line.
    pub(super) async fn pace(&self, bytes: usize) {
        let rate = self.bytes_per_s.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let wait = {
            let mut free_at = self.line_free_at.lock();
            let start = (*free_at).max(Instant::now());
            *free_at = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
            start.saturating_duration_since(Instant::now())
        };
        tokio::time::sleep(wait).await;
    }
}

/// A running proxy; dropping it ends all its connections.
pub struct FaultProxy {
    shared: Arc<Shared>,
    addr: SocketAddr,
    runtime: Option<Runtime>,
}

impl FaultProxy {
    /// A proxy on a free port of loopback before `upstream`.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), upstream)
    }

    /// The same at a given address.
    pub fn start_at(listen: SocketAddr, upstream: SocketAddr) -> io::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("proxy").enable_all().build()?;
        let listener = runtime.block_on(bind(listen))?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            started: Instant::now(),
            counts: Mutex::default(),
            rules: Mutex::default(),
            rule_id_next: AtomicU64::new(1),
            line: watch::Sender::new(Line::Alive),
            latency_ms: AtomicU64::new(0),
            bytes_per_s: AtomicU64::new(0),
            listening: true.into(),
            hands: Mutex::default(),
            stale: Mutex::default(),
            line_free_at: Mutex::new(Instant::now()),
            stopping: false.into(),
        });
        runtime.spawn(accept(listener, shared.clone()));
        Ok(Self { shared, addr, runtime: Some(runtime) })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:PORT`, for `--endpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Later connections go to another server (one that was started again on another port).
    pub fn set_upstream(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock() = upstream;
    }

    /// Adds a rule. The first rule, in order of adding, that takes a request acts on it.
    pub fn add(&self, spec: RuleSpec) -> Rule {
        let rule = Rule::new(self.shared.rule_id_next.fetch_add(1, Ordering::Relaxed), spec);
        self.shared.rules.lock().push(rule.clone());
        rule
    }

    /// Does `action` to what `when` takes.
    pub fn fault(&self, when: When, action: Action) -> Rule {
        self.add(RuleSpec { when, hold: None, action })
    }

    /// Holds what `when` takes until the rule is released.
    pub fn hold(&self, when: When, at: HoldAt) -> Rule {
        self.add(RuleSpec { when, hold: Some(at), action: Action::Pass })
    }

    pub fn rules(&self) -> Vec<Rule> {
        self.shared.rules.lock().clone()
    }

    /// Removes all rules; what they hold is dropped.
    pub fn clear_rules(&self) {
        for rule in self.shared.rules.lock().drain(..) {
            rule.drop_held();
        }
    }

    /// Milliseconds since the start, as the log of requests has them.
    pub fn now_ms(&self) -> u64 {
        self.shared.started.elapsed().as_millis() as u64
    }

    pub fn counts(&self) -> Counts {
        self.shared.counts.lock().clone()
    }

    /// The figures so far; counting begins anew, except of what is under way.
    pub fn take_counts(&self) -> Counts {
        let mut counts = self.shared.counts.lock();
        let taken = std::mem::take(&mut *counts);
        for (call, count) in taken.calls.iter().filter(|(_, count)| count.open > 0) {
            counts.calls.insert(*call, CallCount { open: count.open, open_max: count.open, ..CallCount::default() });
        }
        taken
    }

    /// Changes the line; when this returns, the listener is there or gone as it should be.
    ///
    /// # Panics
    /// When the listener does not follow.
    pub fn set_line(&self, line: Line) {
        self.shared.line.send_replace(line);
        let end = Instant::now() + LISTENER_WITHIN;
        while self.shared.listening.load(Ordering::SeqCst) == (line == Line::Refused) {
            assert!(Instant::now() < end, "the listener of the fault proxy does not follow {line:?}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Lets faults act on the server by `bucket`, past the proxy.
    pub fn set_hands(&self, bucket: Bucket) {
        *self.shared.hands.lock() = Some(Arc::new(bucket));
    }

    /// From now on the first `asks` HEADs after each change of an object still show what was there before; 0: none.
    pub fn set_stale_heads(&self, asks: u32) {
        *self.shared.stale.lock() = (asks > 0).then(|| StaleHeads::of(asks));
    }

    /// HEADs that were answered so since then.
    pub fn stale_heads_served(&self) -> u64 {
        self.shared.stale.lock().as_ref().map_or(0, StaleHeads::served)
    }

    /// Every request is forwarded so much later.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.latency_ms.store(latency.as_millis() as u64, Ordering::Relaxed);
    }

    /// Bytes of bodies per second, all connections and both directions together; `None`: no limit.
    pub fn set_bandwidth(&self, bytes_per_s: Option<u64>) {
        self.shared.bytes_per_s.store(bytes_per_s.unwrap_or(0), Ordering::Relaxed);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Binds to a port by its number, also where any will do: only then it stays ours while nothing listens on it (see `refuse`).
async fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    const TRIES: u32 = 20;
    if listen.port() != 0 {
        return TcpListener::bind(listen).await;
    }
    for _ in 1..TRIES {
        let free = TcpListener::bind(listen).await?.local_addr()?;
        // Somebody else may take it in between.
        if let Ok(listener) = TcpListener::bind(free).await {
            return Ok(listener);
        }
    }
    TcpListener::bind(listen).await
}

async fn accept(mut listener: TcpListener, shared: Arc<Shared>) {
    let mut line = shared.line.subscribe();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = line.wait_for(|line| *line == Line::Refused) => None,
            accepted = listener.accept() => Some(accepted),
        };
        match accepted {
            None => match refuse(listener, &shared).await {
                Ok(again) => listener = again,
                Err(e) => return eprintln!("fault proxy: listen again: {e}"),
            },
            Some(Ok((client, _))) => {
                shared.counts.lock().connections += 1;
                tokio::spawn(serve(client, shared.clone()));
            }
            Some(Err(e)) => {
                eprintln!("fault proxy: accept: {e}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Stops listening, so that the kernel refuses, until the line is another; the port stays ours all the time.
async fn refuse(listener: TcpListener, shared: &Shared) -> io::Result<TcpListener> {
    // shutdown(2) takes a listening socket back to the state after bind(2).
    let bound = std::net::TcpStream::from(std::os::fd::OwnedFd::from(listener.into_std()?));
    bound.shutdown(std::net::Shutdown::Read)?;
    shared.listening.store(false, Ordering::SeqCst);
    let _ = shared.line.subscribe().wait_for(|line| *line != Line::Refused).await;
    let listener = TcpSocket::from_std_stream(bound).listen(BACKLOG)?;
    shared.listening.store(true, Ordering::SeqCst);
    Ok(listener)
}

async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let _ = client.set_nodelay(true);
    let (mut reader, writer) = client.into_split();
    let mut writer = Some(writer);
    let ended = tokio::select! {
        ended = exchange::serve_client(&shared, &mut reader, &mut writer) => ended,
        () = shared.line_dies() => exchange::End::Reset,
    };
    let Some(writer) = writer else { return };
    let Ok(mut client) = reader.reunite(writer) else { return };
    if ended == exchange::End::Reset {
        let _ = client.set_zero_linger();
    } else {
        linger(&mut client).await;
    }
}

/// Ends a connection so that an answer just written arrives: unread bytes at `close` would reset it.
async fn linger(client: &mut TcpStream) {
    use tokio::io::AsyncWriteExt;
    let _ = client.shutdown().await;
    let mut scrap = vec![0; 16 << 10];
    let deadline = Instant::now() + Duration::from_millis(500);
    while let Ok(Ok(n)) = tokio::time::timeout_at(deadline.into(), client.read(&mut scrap)).await {
        if n == 0 {
            return;
        }
    }
}
