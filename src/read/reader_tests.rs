use std::time::Instant;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::bos::client::BosClientConfig;
use crate::bos::credentials::StaticCredentials;
use crate::bos::sign::Credentials;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const ETAG: &str = "0123456789abcdef0123456789abcdef";

/// What the server does with a GET.
#[derive(Clone, Default)]
struct Act {
    /// Sends this many bytes of the body and hangs up.
    cut_after: Option<u64>,
    /// Waits for a permit after this many bytes of the body.
    hold_at: Option<(u64, Arc<Semaphore>)>,
    /// Refuses with this status and code.
    refuse: Option<(u16, &'static str)>,
    /// Answers with this ETag.
    etag: Option<&'static str>,
    /// Sends zeros, which costs the server nothing.
    zeros: bool,
}

type Script = dyn Fn(usize, ByteRange) -> Act + Send + Sync;

/// A loopback server with one object, whose byte at each offset is known.
struct Server {
    endpoint: String,
    size: u64,
    log: Arc<Mutex<Vec<ByteRange>>>,
    listening: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// The byte of the object at `offset`: never the same in neighbouring blocks or units.
fn byte_at(offset: u64) -> u8 {
    (offset ^ (offset >> 7) ^ (offset >> 17).wrapping_mul(31) ^ (offset >> 20).wrapping_mul(101)) as u8
}

fn expected(offset: u64, len: u64, size: u64) -> Vec<u8> {
    (offset..(offset + len).min(size).max(offset)).map(byte_at).collect()
}

impl Server {
    async fn start(size: u64, script: impl Fn(usize, ByteRange) -> Act + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let requests = log.clone();
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, size, requests.clone(), script.clone()));
            }
        });
        Server { endpoint, size, log, listening: listening.abort_handle() }
    }

    async fn plain(size: u64) -> Server {
        Server::start(size, |_, _| Act::default()).await
    }

    fn client(&self) -> BosClient {
        let credentials = StaticCredentials::new(Credentials::new("ak", "sk"));
        let mut config = BosClientConfig::new(&self.endpoint, "bucket", Arc::new(credentials));
        config.retry.tries_max = 1;
        BosClient::new(config).unwrap()
    }

    fn pool(&self, memory_bytes: u64) -> Arc<ReadPool> {
        ReadPool::new(self.client(), memory_bytes, 16)
    }

    fn reader(&self, pool: &Arc<ReadPool>) -> ObjectReader {
        pool.reader(ObjectKey::parse("dir/object").unwrap(), ETag::new(ETAG), self.size)
    }

    /// GETs so far.
    fn gets(&self) -> Vec<(u64, u64)> {
        self.log.lock().iter().map(|range| (range.start, range.end)).collect()
    }

    fn asked_bytes(&self) -> u64 {
        self.log.lock().iter().map(ByteRange::len).sum()
    }
}

/// Answers GETs on one connection. Checks what every GET of a reader must carry.
async fn serve(stream: TcpStream, size: u64, log: Arc<Mutex<Vec<ByteRange>>>, script: Arc<Script>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_ascii_lowercase());
        }
        assert_eq!(head[0], "get /bucket/dir/object http/1.1");
        let field = |name: &str| head.iter().find_map(|line| line.strip_prefix(name)).map(str::trim);
        assert_eq!(field("if-match:"), Some(format!("\"{ETAG}\"").as_str()));
        let (first, last) = field("range:").unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let range = ByteRange::new(first.parse().unwrap(), last.parse::<u64>().unwrap() + 1);
        assert!(range.end <= size, "nothing is asked beyond the end: {range:?}");
        let nth = {
            let mut log = log.lock();
            log.push(range);
            log.len() - 1
        };
        let act = script(nth, range);
        if let Some((status, code)) = act.refuse {
            let body = format!("{{\"code\":\"{code}\",\"message\":\"scripted\",\"requestId\":\"r\"}}");
            let answer = format!(
                "HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.ok()?;
            continue;
        }
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {}-{}/{size}\r\nETag: \"{}\"\r\n\
             Last-Modified: Fri, 02 Jan 2026 03:04:05 GMT\r\n\r\n",
            range.len(),
            range.start,
            range.end - 1,
            act.etag.unwrap_or(ETAG)
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        let end = act.cut_after.map_or(range.end, |len| range.start + len);
        let mut at = range.start;
        while at < end {
            let mut to = end.min(at + 64 * KIB);
            if let Some((hold, gate)) = &act.hold_at {
                let hold = range.start + hold;
                if at == hold {
                    gate.acquire().await.ok()?.forget();
                } else if at < hold {
                    to = to.min(hold);
                }
            }
            if act.zeros {
                stream.write_all(&[0; 64 << 10][..(to - at) as usize]).await.ok()?;
            } else {
                stream.write_all(&expected(at, to - at, size)).await.ok()?;
            }
            at = to;
        }
        if act.cut_after.is_some() {
            return None;
        }
    }
}

async fn check(reader: &ObjectReader, offset: u64, len: u64) {
    let bytes = reader.read(offset, len as usize).await.unwrap();
    let right = expected(offset, len, reader.size());
    assert!(bytes == right, "{} bytes from {offset}, {} expected", bytes.len(), right.len());
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_sequential_read_asks_for_every_byte_once_in_few_large_gets() {
    let server = Server::plain(40 * MIB + 12_345).await;
    let pool = server.pool(256 * MIB);
    let reader = server.reader(&pool);
    let mut at = 0;
    while at < server.size {
        check(&reader, at, 128 * KIB).await;
        at += 128 * KIB;
    }
    assert!(reader.read(server.size, 4096).await.unwrap().is_empty());
    assert!(reader.read(u64::MAX, 4096).await.unwrap().is_empty());
    let mut gets = server.gets();
    assert_eq!(server.asked_bytes(), server.size, "nothing twice: {gets:?}");
    gets.sort_unstable();
    assert!(gets.windows(2).all(|pair| pair[0].1 == pair[1].0));
    assert!((4..=40).contains(&gets.len()), "{} GETs", gets.len());
    // Now all of it is cached.
    let again = server.reader(&pool);
    check(&again, 0, server.size).await;
    assert_eq!(server.gets().len(), gets.len());
}

#[tokio::test]
async fn a_long_read_needs_little_more_memory_than_its_window() {
    let server = Server::start(200 * MIB, |_, _| Act { zeros: true, ..Act::default() }).await;
    let pool = server.pool(64 * MIB);
    let reader = server.reader(&pool);
    let mut at = 0;
    while at < server.size {
        at += reader.read(at, 128 * KIB as usize).await.unwrap().len() as u64;
    }
    assert_eq!(server.asked_bytes(), server.size, "nothing twice");
    assert!(pool.cached_bytes() <= 48 * MIB, "{} bytes are kept", pool.cached_bytes());
}

#[tokio::test]
async fn a_small_object_is_one_get_and_an_empty_one_none() {
    for size in [1, 4096, 128 * KIB + 1, MIB] {
        let server = Server::plain(size).await;
        let reader = server.reader(&server.pool(0));
        check(&reader, 0, 128 * KIB).await;
        check(&reader, 0, 10 * MIB).await;
        check(&reader, size - 1, 10).await;
        assert_eq!(server.gets(), [(0, size)], "{size}");
    }
    let server = Server::plain(0).await;
    let reader = server.reader(&server.pool(0));
    assert!(reader.read(0, 4096).await.unwrap().is_empty());
    assert!(reader.read_gap(ByteRange::new(0, 5)).await.unwrap().is_empty());
    assert!(reader.read(5, 0).await.unwrap().is_empty());
    assert_eq!(server.gets(), []);
}

#[tokio::test]
async fn random_reads_ask_for_their_units_and_nothing_else() {
    let server = Server::plain(64 * MIB).await;
    let pool = server.pool(256 * MIB);
    let reader = server.reader(&pool);
    check(&reader, 33 * MIB + 5, 4096).await;
    check(&reader, 50 * MIB - 1, 2).await;
    check(&reader, 10 * MIB + 200 * KIB, 300 * KIB).await;
    // Within what is there already.
    check(&reader, 33 * MIB + 9000, 4096).await;
    let expected = [
        (33 * MIB, 33 * MIB + 128 * KIB),
        (50 * MIB - 128 * KIB, 50 * MIB + 128 * KIB),
        (10 * MIB + 128 * KIB, 10 * MIB + 512 * KIB),
    ];
    assert_eq!(server.gets(), expected);
}

#[tokio::test]
async fn a_backward_reader_asks_for_every_byte_once() {
    let server = Server::plain(4 * MIB + 100).await;
    let pool = server.pool(64 * MIB);
    let reader = server.reader(&pool);
    let mut at = server.size;
    while at > 0 {
        let len = at.min(50_000);
        at -= len;
        check(&reader, at, len).await;
    }
    assert_eq!(server.asked_bytes(), server.size);
}

#[tokio::test]
async fn gaps_are_read_without_opening_a_window() {
    let server = Server::plain(16 * MIB).await;
    let reader = server.reader(&server.pool(64 * MIB));
    for n in 0..8 {
        let gap = ByteRange::at(n * 256 * KIB, 256 * KIB);
        assert!(reader.read_gap(gap).await.unwrap() == expected(gap.start, gap.len(), server.size));
    }
    assert_eq!(server.asked_bytes(), 2 * MIB);
    let across = ByteRange::new(5 * MIB - 7, 9 * MIB + 7);
    assert!(reader.read_gap(across).await.unwrap() == expected(across.start, across.len(), server.size));
}

#[tokio::test]
async fn bytes_are_given_as_they_arrive_not_when_the_get_is_done() {
    let gate = Arc::new(Semaphore::new(0));
    let hold = gate.clone();
    let server =
        Server::start(16 * MIB, move |_, _| Act { hold_at: Some((128 * KIB, hold.clone())), ..Act::default() }).await;
    let reader = server.reader(&server.pool(64 * MIB));
    tokio::time::timeout(Duration::from_secs(5), check(&reader, 0, 128 * KIB)).await.expect("the first 128 KiB");
    assert_eq!(server.gets(), [(0, MIB)]);
    let more = tokio::time::timeout(Duration::from_millis(50), reader.read(128 * KIB, 4096)).await;
    assert!(more.is_err(), "the rest is held back");
    gate.add_permits(100);
    check(&reader, 128 * KIB, 128 * KIB).await;
    assert_eq!(server.gets()[0], (0, MIB));
    assert!(server.gets()[1..].iter().all(|(start, _)| *start >= MIB), "a wait given up costs no second GET");
}

#[tokio::test]
async fn readers_of_the_same_bytes_share_a_get() {
    let gate = Arc::new(Semaphore::new(0));
    let hold = gate.clone();
    let server = Server::start(8 * MIB, move |_, _| Act { hold_at: Some((0, hold.clone())), ..Act::default() }).await;
    let pool = server.pool(64 * MIB);
    let readers: Vec<_> = (0..8).map(|_| Arc::new(server.reader(&pool))).collect();
    let reads: Vec<_> = readers
        .iter()
        .map(|reader| {
            let reader = reader.clone();
            tokio::spawn(async move { check(&reader, 5 * MIB + 1, 100_000).await })
        })
        .collect();
    until("a GET", || !server.gets().is_empty()).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    gate.add_permits(100);
    for read in reads {
        read.await.unwrap();
    }
    assert_eq!(server.gets(), [(5 * MIB, 5 * MIB + 128 * KIB)]);
}

#[tokio::test]
async fn a_cut_get_goes_on_at_the_byte_it_reached() {
    // Every GET is cut after 300 KiB, the third one at once, the fourth within its first unit.
    let server = Server::start(3 * MIB, |nth, range| {
        let len = match nth {
            2 => 0,
            3 => 1000,
            _ => 300 * KIB,
        };
        Act { cut_after: (len < range.len()).then_some(len), ..Act::default() }
    })
    .await;
    let reader = server.reader(&server.pool(64 * MIB));
    check(&reader, MIB + 5, MIB + 10).await;
    let gets = server.gets();
    assert_eq!(gets[0], (MIB, 2 * MIB + 128 * KIB));
    assert_eq!(gets[1], (MIB + 300 * KIB, 2 * MIB + 128 * KIB));
    assert_eq!(gets[2], (MIB + 600 * KIB, 2 * MIB + 128 * KIB));
    assert_eq!(gets[3], gets[2]);
    assert_eq!(gets[4].0, gets[3].0 + 1000);
}

#[tokio::test]
async fn a_get_that_is_cut_again_and_again_fails_and_the_next_read_tries_anew() {
    let server = Server::start(MIB, |nth, _| Act { cut_after: (nth < 7).then_some(10), ..Act::default() }).await;
    let reader = server.reader(&server.pool(64 * MIB));
    let error = reader.read(0, 4096).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(server.gets().len(), 1 + CUTS_MAX as usize);
    check(&reader, 0, 4096).await;
}

#[tokio::test]
async fn a_replaced_object_is_told_whether_or_not_the_server_looks_at_the_condition() {
    let refused = Server::start(MIB, |_, _| Act { refuse: Some((412, "PreconditionFailed")), ..Act::default() }).await;
    let ignored = Server::start(MIB, |_, _| Act { etag: Some("another"), ..Act::default() }).await;
    for server in [refused, ignored] {
        let pool = server.pool(64 * MIB);
        let reader = server.reader(&pool);
        let error = reader.read(0, 4096).await.unwrap_err();
        assert_eq!((error.kind, error.errno()), (BosErrorKind::PreconditionFailed, libc::ESTALE), "{error}");
        assert_eq!(pool.cached_bytes(), 0, "errors are not cached");
        reader.read(0, 4096).await.unwrap_err();
        assert_eq!(server.gets().len(), 2);
    }
}

#[tokio::test]
async fn a_closed_handle_stops_fetching_ahead_and_another_reader_goes_on_alone() {
    let gate = Arc::new(Semaphore::new(0));
    let hold = gate.clone();
    let server = Server::start(64 * MIB, move |nth, _| {
        // The first GETs belong to the reader that is closed; they never end by themselves.
        Act { hold_at: (nth < 3).then(|| (700 * KIB, hold.clone())), ..Act::default() }
    })
    .await;
    let pool = server.pool(64 * MIB);
    let first = server.reader(&pool);
    check(&first, 0, 100 * KIB).await;
    check(&first, 100 * KIB, 600 * KIB).await;
    until("fetching ahead", || server.gets().len() >= 2).await;
    let second = Arc::new(server.reader(&pool));
    let reading = tokio::spawn({
        let second = second.clone();
        async move { check(&second, 0, 2 * MIB).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!reading.is_finished());
    drop(first);
    tokio::time::timeout(Duration::from_secs(5), reading).await.expect("the second reader goes on").unwrap();
    drop(second);
    until("all tasks ended", || Arc::strong_count(&pool) == 1).await;
}

#[tokio::test]
async fn a_reader_that_jumps_away_stops_what_it_no_longer_wants() {
    let gate = Arc::new(Semaphore::new(0));
    let hold = gate.clone();
    let server = Server::start(1 << 30, move |_, range| Act {
        hold_at: (range.start >= 8 * MIB && range.start < 512 * MIB).then(|| (0, hold.clone())),
        ..Act::default()
    })
    .await;
    let pool = server.pool(64 * MIB);
    let reader = server.reader(&pool);
    for n in 0..48 {
        check(&reader, n * 128 * KIB, 128 * KIB).await;
    }
    let held = |state: &ReaderState| state.downloads.iter().filter(|d| d.is_ahead && !d.task.is_finished()).count();
    assert!(held(&reader.state.lock()) > 0, "something is on its way");
    for n in 0..4 {
        check(&reader, 600 * MIB + n * 37 * MIB, 4096).await;
    }
    until("fetching ahead stopped", || held(&reader.state.lock()) == 0).await;
    assert_eq!(pool.streams.load(Ordering::Relaxed), 0);
    check(&reader, 7 * MIB, 4096).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_memory_and_few_downloads_slow_readers_down_but_never_stop_them() {
    let server = Server::plain(24 * MIB).await;
    for downloads_max in [1, 2] {
        let pool = ReadPool::new(server.client(), 0, downloads_max);
        let reading: Vec<_> = (0..6)
            .map(|n| {
                let reader = server.reader(&pool);
                tokio::spawn(async move {
                    let mut at = n * 2 * MIB;
                    while at < reader.size() {
                        check(&reader, at, MIB).await;
                        assert!(reader.pool.cached_bytes() <= 4 * MIB);
                        at += MIB;
                    }
                })
            })
            .collect();
        for read in reading {
            tokio::time::timeout(Duration::from_secs(60), read).await.expect("no standstill").unwrap();
        }
        until("all tasks ended", || Arc::strong_count(&pool) == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_on_one_handle_read_what_is_there() {
    let server = Server::start(20 * MIB, |nth, range| {
        // Every fifth GET is cut somewhere.
        let cut = (nth as u64 * 77_777) % range.len();
        Act { cut_after: (nth % 5 == 4).then_some(cut), ..Act::default() }
    })
    .await;
    let pool = server.pool(8 * MIB);
    let reader = Arc::new(server.reader(&pool));
    let tasks: Vec<_> = (0..4_u64)
        .map(|task| {
            let reader = reader.clone();
            tokio::spawn(async move {
                let mut random = task + 1;
                for n in 0..60 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let offset = if n % 3 == 0 { (random >> 33) % (20 * MIB) } else { (n * 200_000) % (20 * MIB) };
                    let read = check(&reader, offset, (random >> 20) % (300 * KIB));
                    if n % 7 == 0 {
                        // Given up in the middle, as an interrupted read is.
                        let _ = tokio::time::timeout(Duration::from_micros(random % 500), read).await;
                    } else {
                        read.await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("no standstill").unwrap();
    }
}

/// Figures: `cargo test --release --lib read::reader -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time"]
async fn a_cold_sequential_read_keeps_up_with_a_bare_loop_of_gets() {
    let size = 2 << 30;
    let server = Server::start(size, |_, _| Act { zeros: true, ..Act::default() }).await;
    let (key, etag) = (ObjectKey::parse("dir/object").unwrap(), ETag::new(ETAG));
    // Processor time, the server's included: other work on the machine does not show in it.
    let cpu_ms = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
        (fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()) * 10
    };
    let mut ratios = Vec::new();
    for round in 0..4 {
        let client = server.client();
        let (started, cpu) = (Instant::now(), cpu_ms());
        let next = Arc::new(AtomicU64::new(0));
        let workers: Vec<_> = (0..8)
            .map(|_| {
                let (client, key, etag, next) = (client.clone(), key.clone(), etag.clone(), next.clone());
                tokio::spawn(async move {
                    loop {
                        let start = next.fetch_add(8 * MIB, Ordering::Relaxed);
                        if start >= size {
                            break;
                        }
                        let range = ByteRange::new(start, (start + 8 * MIB).min(size));
                        let mut get = client.get_object(&key, Some(range), Some(&etag)).await.unwrap();
                        // Gathered, as whoever uses the bytes has to.
                        let mut bytes = BytesMut::with_capacity(range.len() as usize);
                        while let Some(piece) = get.chunk().await.unwrap() {
                            bytes.extend_from_slice(&piece);
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
        let (bare, bare_cpu) = (started.elapsed(), cpu_ms() - cpu);
        for len in [128 * KIB, MIB] {
            let reader = server.reader(&server.pool(256 * MIB));
            let gets = server.gets().len();
            let (started, cpu) = (Instant::now(), cpu_ms());
            let mut at = 0;
            while at < size {
                at += reader.read(at, len as usize).await.unwrap().len() as u64;
            }
            let ratio = bare.as_secs_f64() / started.elapsed().as_secs_f64();
            println!(
                "round {round}, reads of {} KiB: bare {bare:?} ({bare_cpu} ms of processor), reader {:?} ({} ms) in {} \
                 GETs, ratio {ratio:.2}",
                len / KIB,
                started.elapsed(),
                cpu_ms() - cpu,
                server.gets().len() - gets
            );
            if round > 0 {
                ratios.push(ratio);
            }
        }
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[ratios.len() / 2] >= 0.8, "{ratios:?}");
}
