//! The fault proxy itself, before a server that says what it received: each fault really happens, is counted, and is
//! seen by both sides as meant.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use support::fault::RuleSpec;
use support::{Action, Call, FaultProxy, HoldAt, Line, When};

const WAIT: Duration = Duration::from_secs(10);

/// A request as the server below saw it.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    head: String,
    body: Vec<u8>,
    whole: bool,
}

/// A server that answers every request with 200, an ETag, CRC headers and the body `0123456789`.
struct Upstream {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = kept.clone();
                std::thread::spawn(move || while answer(&stream, &seen) {});
            }
        });
        Self { addr, seen }
    }

    /// Waits until `count` requests were seen, whole or cut.
    fn wait_seen(&self, count: usize) -> Vec<Seen> {
        let end = Instant::now() + WAIT;
        loop {
            let seen = self.seen.lock().clone();
            if seen.len() >= count {
                return seen;
            }
            assert!(Instant::now() < end, "saw only {seen:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn answer(mut stream: &TcpStream, seen: &Mutex<Vec<Seen>>) -> bool {
    let Some((head, mut body)) = read_head(stream) else { return false };
    let len = content_length(&head);
    let mut buf = [0; 4096];
    while body.len() < len {
        match stream.read(&mut buf) {
            Ok(n) if n > 0 => body.extend_from_slice(&buf[..n]),
            _ => break,
        }
    }
    let whole = body.len() == len;
    let get = head.starts_with("GET");
    let chunked = head.contains("chunked-please");
    seen.lock().push(Seen { head, body, whole });
    let shared = "ETag: \"aa\"\r\nx-bce-content-crc32: 1\r\nx-bce-content-crc32c: 2\r\n";
    let text = match (get, chunked) {
        (true, true) => {
            format!(
                "HTTP/1.1 200 OK\r\n{shared}Transfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"
            )
        }
        (true, false) => format!("HTTP/1.1 200 OK\r\n{shared}Content-Length: 10\r\n\r\n0123456789"),
        _ => format!("HTTP/1.1 200 OK\r\n{shared}Content-Length: 0\r\n\r\n"),
    };
    whole && stream.write_all(text.as_bytes()).is_ok()
}

fn read_head(mut stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buf = [0; 4096];
    loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let body = bytes.split_off(at + 4);
            return Some((String::from_utf8(bytes).unwrap(), body));
        }
        match stream.read(&mut buf) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buf[..n]),
            _ => return None,
        }
    }
}

fn content_length(head: &str) -> usize {
    head.to_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length:").map(|v| v.trim().parse().unwrap()))
        .unwrap_or(0)
}

/// A client on one connection; and whether it asked last by HEAD.
struct Client(TcpStream, bool);

impl Client {
    fn new(proxy: &FaultProxy) -> Self {
        let stream = TcpStream::connect(proxy.addr()).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        Self(stream, false)
    }

    fn send(&mut self, method: &str, target: &str, body: &[u8]) {
        let head =
            format!("{method} {target} HTTP/1.1\r\nHost: signed.example\r\nContent-Length: {}\r\n\r\n", body.len());
        self.1 = method == "HEAD";
        // A cut in the middle of the body makes this fail; what counts is what the tests see afterwards.
        let _ = self.0.write_all(head.as_bytes()).and_then(|()| self.0.write_all(body));
    }

    /// Head and body of the answer; `None`: the connection ended before the head did.
    fn answer(&mut self) -> Option<(String, Vec<u8>)> {
        let (head, mut body) = read_head(&self.0)?;
        let mut buf = [0; 4096];
        let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        let head_only = self.1;
        let missing = |body: &Vec<u8>| match chunked {
            true => !body.ends_with(b"0\r\n\r\n"),
            false => !head_only && body.len() < content_length(&head),
        };
        while missing(&body) {
            match self.0.read(&mut buf) {
                Ok(n) if n > 0 => body.extend_from_slice(&buf[..n]),
                _ => break,
            }
        }
        Some((head, body))
    }

    fn ask(&mut self, method: &str, target: &str, body: &[u8]) -> Option<(String, Vec<u8>)> {
        self.send(method, target, body);
        self.answer()
    }
}

fn start() -> (Upstream, FaultProxy) {
    let upstream = Upstream::start();
    let proxy = FaultProxy::start(upstream.addr).unwrap();
    (upstream, proxy)
}

const PART: &str = "/bkt/dir/big%20file?partNumber=3&uploadId=u1";

#[test]
fn requests_pass_unchanged_and_are_counted_by_call_and_part() {
    let (upstream, proxy) = start();
    let mut client = Client::new(&proxy);
    for _ in 0..2 {
        let (head, body) = client.ask("PUT", PART, &[7; 200_000]).unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && body.is_empty());
    }
    let (_, body) = client.ask("GET", "/bkt/dir/x", b"").unwrap();
    assert_eq!(body, b"0123456789");
    let seen = upstream.wait_seen(3);
    assert_eq!(seen[0].body, vec![7; 200_000]);
    assert!(seen[0].head.starts_with(&format!("PUT {PART} HTTP/1.1\r\nHost: signed.example\r\n")), "{}", seen[0].head);
    let counts = proxy.counts();
    assert_eq!((counts.connections, counts.requests_all()), (1, 3));
    let part = counts.part("dir/big file", 3);
    assert_eq!((part.tries, part.accepted, part.body_bytes), (2, 2, 400_000));
    assert_eq!(counts.parts_accepted_twice("dir/big file"), [3]);
    assert_eq!(counts.bytes_sent(), 400_000);
    assert_eq!(counts.of(Call::GetObject).answer_bytes, 10);
}

#[test]
fn every_call_is_told_apart() {
    use support::call::Asked;
    let with = |method: &str, target: &str, header: &'static str| {
        Asked::read(method, target, |name| (name == header).then_some("x")).call
    };
    let call = |method: &str, target: &str| with(method, target, "none");
    for (method, target, expected) in [
        ("GET", "/", Call::ListBuckets),
        ("PUT", "/b", Call::PutBucket),
        ("HEAD", "/b/", Call::HeadBucket),
        ("HEAD", "/b", Call::HeadBucket),
        ("DELETE", "/b/", Call::DeleteBucket),
        ("GET", "/b/?location", Call::BucketSetting),
        ("GET", "/b/?lifecycle=", Call::BucketSetting),
        ("GET", "/b/?prefix=a&maxKeys=1", Call::ListObjects),
        ("GET", "/b/?uploads=&prefix=a", Call::ListUploads),
        ("POST", "/b/?delete", Call::BatchDelete),
        ("HEAD", "/b/k", Call::HeadObject),
        ("GET", "/b/k", Call::GetObject),
        ("PUT", "/b/k", Call::PutObject),
        ("DELETE", "/b/k", Call::DeleteObject),
        ("POST", "/b/k?uploads", Call::Initiate),
        ("PUT", "/b/k?uploadId=u&partNumber=1", Call::UploadPart),
        ("GET", "/b/k?uploadId=u", Call::ListParts),
        ("POST", "/b/k?uploadId=u", Call::Complete),
        ("DELETE", "/b/k?uploadId=u", Call::Abort),
    ] {
        assert_eq!(call(method, target), expected, "{method} {target}");
    }
    assert_eq!(with("PUT", "/b/k", "x-bce-copy-source"), Call::CopyObject);
    assert_eq!(with("PUT", "/b/k?partNumber=1&uploadId=u", "x-bce-copy-source"), Call::UploadPartCopy);
    assert_eq!(with("POST", "/b/k", "x-bce-rename-key"), Call::RenameObject);
    let asked = Asked::read("PUT", "/b/%E7%9B%AE%2Bb%25/x?partNumber=12&uploadId=a%2Fb", |_| None);
    assert_eq!((asked.key.as_str(), asked.part, asked.upload_id.as_deref()), ("目+b%/x", Some(12), Some("a/b")));
}

#[test]
fn chunked_answers_and_heads_keep_the_connection() {
    let (_upstream, proxy) = start();
    let mut client = Client::new(&proxy);
    let (_, body) = client.ask("GET", "/b/chunked-please", b"").unwrap();
    assert_eq!(body, b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n");
    assert!(client.ask("HEAD", "/b/k", b"").is_some());
    assert_eq!(client.ask("GET", "/b/k", b"").unwrap().1, b"0123456789");
    assert_eq!(proxy.counts().connections, 1);
}

#[test]
fn a_lost_answer_comes_after_the_act() {
    let (upstream, proxy) = start();
    let rule = proxy.fault(When::call(Call::UploadPart).part(3).once(), Action::LoseAnswer);
    assert!(Client::new(&proxy).ask("PUT", PART, b"hello").is_none());
    assert_eq!(upstream.wait_seen(1)[0].body, b"hello");
    assert_eq!(rule.hits(), 1);
    assert_eq!(proxy.counts().part("dir/big file", 3).accepted, 1);
    // once() is used up
    assert!(Client::new(&proxy).ask("PUT", PART, b"hello").is_some());
    assert_eq!(rule.hits(), 1);
}

#[test]
fn cuts_fall_before_inside_and_after_the_body() {
    let body = vec![1; 300_000];
    for (action, server_gets, received) in [
        (Action::Refuse, None, 0),
        (Action::CutBeforeBody, None, 0),
        (Action::CutInsideBody { after_bytes: 100_001 }, Some(100_001), 100_001),
        (Action::CutInsideBody { after_bytes: 0 }, Some(0), 0),
        (Action::CutAfterBody, None, 300_000),
    ] {
        let (upstream, proxy) = start();
        let rule = proxy.fault(When::call(Call::UploadPart), action.clone());
        assert!(Client::new(&proxy).ask("PUT", PART, &body).is_none(), "{action:?}");
        assert!(rule.wait_hit(WAIT));
        if let Some(bytes) = server_gets {
            let seen = upstream.wait_seen(1);
            assert_eq!((seen[0].body.len(), seen[0].whole), (bytes, false), "{action:?}");
        } else {
            assert!(upstream.seen.lock().is_empty(), "{action:?}");
        }
        assert_eq!(proxy.counts().bytes_sent(), received, "{action:?}");
        assert_eq!(proxy.counts().of(Call::UploadPart).accepted, 0);
    }
}

#[test]
fn a_held_request_goes_on_when_it_is_released() {
    for (at, seen_while_held) in
        [(HoldAt::BeforeForward, 0), (HoldAt::InsideBody { after_bytes: 2 }, 0), (HoldAt::BeforeAnswer, 1)]
    {
        let (upstream, proxy) = start();
        let rule = proxy.hold(When::call(Call::Complete), at);
        let mut client = Client::new(&proxy);
        client.send("POST", "/b/k?uploadId=u", b"{}{}");
        assert!(rule.wait_hit(WAIT), "{at:?}");
        client.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(client.0.read(&mut [0; 1]).is_err(), "{at:?} answered while held");
        assert_eq!(upstream.seen.lock().len(), seen_while_held, "{at:?}");
        client.0.set_read_timeout(Some(WAIT)).unwrap();
        rule.release();
        assert!(client.answer().unwrap().0.starts_with("HTTP/1.1 200"), "{at:?}");
        assert_eq!(upstream.wait_seen(1)[0].body, b"{}{}");
        // Released: later ones pass.
        assert!(client.ask("POST", "/b/k?uploadId=u", b"{}").is_some());
        assert_eq!(rule.hits(), 2);
    }
}

#[test]
fn a_held_request_that_is_dropped_never_reaches_the_server() {
    let (upstream, proxy) = start();
    let rule = proxy.hold(When::call(Call::Complete), HoldAt::BeforeForward);
    let mut client = Client::new(&proxy);
    client.send("POST", "/b/k?uploadId=u", b"{}");
    assert!(rule.wait_hit(WAIT));
    rule.drop_held();
    assert!(client.answer().is_none());
    assert!(upstream.seen.lock().is_empty());
}

#[test]
fn a_stall_ends_only_by_release() {
    let (upstream, proxy) = start();
    let rule = proxy.fault(When::any(), Action::Stall);
    let mut client = Client::new(&proxy);
    client.send("GET", "/b/k", b"");
    assert!(rule.wait_hit(WAIT));
    client.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(client.0.read(&mut [0; 1]).is_err());
    rule.release();
    client.0.set_read_timeout(Some(WAIT)).unwrap();
    assert!(client.answer().is_none());
    assert!(upstream.seen.lock().is_empty());
}

#[test]
fn own_answers_come_before_or_after_the_act() {
    let (upstream, proxy) = start();
    let mut client = Client::new(&proxy);
    let busy = proxy.fault(When::call(Call::PutObject).once(), Action::error(503, "ServiceUnavailable"));
    let (head, body) = client.ask("PUT", "/b/k", &[9; 100_000]).unwrap();
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(error["code"], "ServiceUnavailable");
    assert!(upstream.seen.lock().is_empty());
    let acted = proxy.fault(When::call(Call::PutObject).once(), Action::error_after_act(200, "InternalError"));
    let (head, body) = client.ask("PUT", "/b/k", b"x").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && body.starts_with(b"{"));
    assert_eq!(upstream.wait_seen(1)[0].body, b"x");
    let html = proxy.fault(When::call(Call::GetObject).once(), Action::html(502));
    assert!(client.ask("GET", "/b/k", b"").unwrap().1.starts_with(b"<html>"));
    let head_only = proxy.fault(When::call(Call::HeadObject).once(), Action::error(500, "InternalError"));
    assert!(client.ask("HEAD", "/b/k", b"").is_some());
    for rule in [busy, acted, html, head_only] {
        assert_eq!(rule.hits(), 1, "{:?}", rule.spec());
    }
    assert_eq!(proxy.counts().connections, 1, "own answers keep the connection");
}

#[test]
fn answers_are_edited_corrupted_and_cut() {
    let (_upstream, proxy) = start();
    let ask = |action: Action| {
        let rule = proxy.fault(When::call(Call::GetObject).once(), action);
        let answer = Client::new(&proxy).ask("GET", "/b/k", b"").unwrap();
        assert_eq!(rule.hits(), 1, "{:?}", rule.spec());
        answer
    };
    let (head, _) = ask(Action::wrong_etag());
    assert!(!head.contains("\"aa\"") && head.contains(&"0".repeat(32)), "{head}");
    let (head, _) = ask(Action::no_crc());
    assert!(head.contains("\"aa\"") && !head.contains("crc32"), "{head}");
    let (head, _) = ask(Action::wrong_crc());
    assert!(head.contains("x-bce-content-crc32c: 12345") && !head.contains("crc32c: 2\r"), "{head}");
    assert_eq!(ask(Action::CorruptBody { at: 4 }).1, b"0123556789");
    assert_eq!(ask(Action::TruncateBody { after_bytes: 4 }).1, b"0123");
    assert_eq!(ask(Action::TruncateBody { after_bytes: 0 }).1, b"");
}

#[test]
fn delay_throttle_latency_and_bandwidth_take_their_time() {
    let (_upstream, proxy) = start();
    let took = |body: &[u8]| {
        let start = Instant::now();
        assert!(Client::new(&proxy).ask("PUT", "/b/k", body).is_some());
        start.elapsed()
    };
    let rule = proxy.fault(When::any().once(), Action::Delay { ms: 150, jitter_ms: 0 });
    assert!(took(b"") >= Duration::from_millis(150) && rule.hits() == 1);
    let rule = proxy.fault(When::any().once(), Action::Throttle { bytes_per_s: 1_000_000 });
    assert!(took(&[0; 200_000]) >= Duration::from_millis(180) && rule.hits() == 1);
    proxy.set_latency(Duration::from_millis(100));
    assert!(took(b"") >= Duration::from_millis(100));
    proxy.set_latency(Duration::ZERO);
    proxy.set_bandwidth(Some(1_000_000));
    assert!(took(&[0; 300_000]) >= Duration::from_millis(200));
    proxy.set_bandwidth(None);
    assert!(took(&[0; 300_000]) < Duration::from_millis(150));
}

#[test]
fn a_dead_line_cuts_what_is_under_way_and_comes_back() {
    let (_upstream, proxy) = start();
    let hold = proxy.hold(When::any().once(), HoldAt::BeforeForward);
    let mut client = Client::new(&proxy);
    client.send("GET", "/b/k", b"");
    assert!(hold.wait_hit(WAIT));
    proxy.set_line(Line::Dead);
    assert!(client.answer().is_none());
    let mut later = Client::new(&proxy);
    assert!(later.ask("GET", "/b/k", b"").is_none());
    proxy.set_line(Line::Silent);
    let mut silent = Client::new(&proxy);
    silent.send("GET", "/b/k", b"");
    silent.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(silent.0.read(&mut [0; 1]).is_err());
    proxy.set_line(Line::Alive);
    silent.0.set_read_timeout(Some(WAIT)).unwrap();
    assert!(silent.answer().is_some());
    assert!(Client::new(&proxy).ask("GET", "/b/k", b"").is_some());
}

#[test]
fn a_server_that_comes_back_elsewhere_is_found() {
    let (_first, proxy) = start();
    let mut client = Client::new(&proxy);
    assert!(client.ask("GET", "/b/k", b"").is_some());
    let second = Upstream::start();
    proxy.set_upstream(second.addr);
    assert!(Client::new(&proxy).ask("GET", "/b/k", b"").is_some());
    second.wait_seen(1);
}

#[test]
fn rules_fit_by_key_skip_times_and_seeded_chance() {
    let (_upstream, proxy) = start();
    let mut client = Client::new(&proxy);
    let rule = proxy.fault(When::any().key("a b").skip(1).times(2), Action::error(500, "InternalError"));
    let mut status = |target: &str| client.ask("PUT", target, b"").unwrap().0[9..12].to_owned();
    let row: Vec<_> = ["/b/a%20b", "/b/a%20b", "/b/a%20b2", "/b/a%20b", "/b/a%20b"].iter().map(|t| status(t)).collect();
    assert_eq!(row, ["200", "500", "200", "500", "200"]);
    assert_eq!(rule.hits(), 2);
    let chance = proxy.fault(When::any().key_contains("dice").probability(0.3, 7), Action::error(500, "InternalError"));
    let first: Vec<_> = (0..100).map(|_| status("/b/x/dice")).collect();
    assert!((15..45).contains(&chance.hits()), "{}", chance.hits());
    chance.turn_off();
    let again = proxy.fault(When::any().key_contains("dice").probability(0.3, 7), Action::error(500, "InternalError"));
    let second: Vec<_> = (0..100).map(|_| status("/b/x/dice")).collect();
    assert_eq!(first, second, "the same seed, another row");
    assert_eq!(again.hits(), chance.hits());
}

#[test]
fn rules_are_read_from_json() {
    let text = r#"{"when": {"calls": ["upload_part"], "parts": [2], "times": 1},
        "hold": {"inside_body": {"after_bytes": 5}}, "action": {"answer": {"status": 503, "body": "{}"}}}"#;
    let spec: RuleSpec = serde_json::from_str(text).unwrap();
    assert_eq!(spec.when.calls, [Call::UploadPart]);
    assert_eq!(spec.hold, Some(HoldAt::InsideBody { after_bytes: 5 }));
    assert!(matches!(spec.action, Action::Answer { status: 503, acted: false, .. }));
    assert!(serde_json::from_str::<RuleSpec>(r#"{"when": {"call": "x"}}"#).is_err(), "a mistyped name is an error");
}

#[test]
fn signed_requests_of_an_independent_client_pass_to_the_embedded_server() {
    use support::Bucket;
    let world = support::World::new();
    let (direct, through) = (&world.bucket, Bucket::new(world.proxy.addr(), support::BUCKET, &world.server.keys()));
    assert!(through.head("a b").unwrap().is_none());
    let etag = through.put("目录 1/a+b%c d.bin", b"123456789").unwrap();
    assert_eq!(direct.head("目录 1/a+b%c d.bin").unwrap().unwrap(), support::Seen { size: 9, etag });
    let upload = through.initiate("big").unwrap();
    let first = support::files::random_bytes(1, 5 << 20);
    let parts = [
        (1, through.upload_part("big", &upload, 1, &first).unwrap()),
        (2, through.upload_part("big", &upload, 2, b"end").unwrap()),
    ];
    assert_eq!(direct.uploads("").unwrap().len(), 1);
    let held = direct.parts("big", &upload).unwrap();
    assert_eq!(held.iter().map(|p| (p.number, p.size)).collect::<Vec<_>>(), [(1, 5 << 20), (2, 3)]);
    through.complete("big", &upload, &parts).unwrap();
    let whole = [first.as_slice(), b"end"].concat();
    assert_eq!(direct.get_md5("big").unwrap(), (bosfs::object::Md5::of(&whole), whole.len() as u64));
    assert_eq!(through.get("big").unwrap(), whole);
    assert_eq!(direct.list("").unwrap(), ["big", "目录 1/a+b%c d.bin"]);
    let copy = through.initiate("copy").unwrap();
    let etag = through.copy_part("copy", &copy, 1, "big", (0, 9)).unwrap();
    through.complete("copy", &copy, &[(1, etag)]).unwrap();
    assert_eq!(direct.get("copy").unwrap(), whole[..10]);
    through.delete("copy").unwrap();
    through.delete("copy").unwrap();
    assert!(direct.head("copy").unwrap().is_none());
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::UploadPart), 2);
    assert_eq!(counts.bytes_sent(), 9 + (5 << 20) + 3);
    let wrong = support::TestKeys { secret_key: "no".into(), ..world.server.keys() };
    assert!(Bucket::new(world.proxy.addr(), support::BUCKET, &wrong).get("big").is_err());
}

#[test]
fn a_server_that_was_stopped_comes_back_with_its_data() {
    let mut world = support::World::new();
    world.bucket.put("k", b"x").unwrap();
    let upload = world.bucket.initiate("big").unwrap();
    world.bucket.upload_part("big", &upload, 1, b"y").unwrap();
    world.server.stop();
    assert!(world.bucket.head("k").is_err());
    world.server.start_again().unwrap();
    assert_eq!(world.bucket.get("k").unwrap(), b"x");
    assert_eq!(world.bucket.parts("big", &upload).unwrap().len(), 1);
}

#[test]
fn a_refused_line_has_nothing_that_listens_and_keeps_its_port() {
    let (_upstream, proxy) = start();
    let mut client = Client::new(&proxy);
    assert!(client.ask("GET", "/b/k", b"").is_some());
    for _ in 0..3 {
        proxy.set_line(Line::Refused);
        let refused = TcpStream::connect(proxy.addr()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(client.ask("GET", "/b/k", b"").is_none(), "a connection that stood is reset");
        let before = proxy.counts().connections;
        proxy.set_line(Line::Alive);
        client = Client::new(&proxy);
        assert!(client.ask("GET", "/b/k", b"").is_some());
        assert_eq!(proxy.counts().connections, before + 1);
    }
}

#[test]
fn a_stall_after_the_act_and_one_inside_the_answer_end_only_by_release() {
    for (action, heard) in [(Action::StallAfterAct, ""), (Action::StallInAnswer { after_bytes: 4 }, "0123")] {
        let (upstream, proxy) = start();
        let rule = proxy.fault(When::any(), action.clone());
        let mut client = Client::new(&proxy);
        client.send("GET", "/b/k", b"");
        assert!(rule.wait_hit(WAIT), "{action:?}");
        assert_eq!(upstream.wait_seen(1).len(), 1);
        client.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut got = Vec::new();
        assert!(client.0.read_to_end(&mut got).is_err(), "{action:?} ends by itself");
        let got = String::from_utf8(got).unwrap();
        assert_eq!(got.split_once("\r\n\r\n").map_or("", |(_, body)| body), heard, "{action:?}");
        rule.release();
        client.0.set_read_timeout(Some(WAIT)).unwrap();
        assert!(matches!(client.0.read(&mut [0; 9]), Ok(0) | Err(_)));
    }
}

#[test]
fn a_stalled_client_that_leaves_is_not_counted_as_under_way() {
    let (_upstream, proxy) = start();
    let rule = proxy.fault(When::any(), Action::Stall);
    let mut client = Client::new(&proxy);
    client.send("GET", "/b/k", b"");
    assert!(rule.wait_hit(WAIT));
    assert_eq!(proxy.counts().of(Call::GetObject).open, 1);
    drop(client);
    let end = Instant::now() + WAIT;
    while proxy.counts().of(Call::GetObject).open > 0 {
        assert!(Instant::now() < end, "still counted");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_slow_answer_comes_after_the_act_and_jitter_is_drawn_from_the_seed() {
    let (upstream, proxy) = start();
    let rule = proxy.fault(When::any().once(), Action::SlowAnswer { ms: 200 });
    let start = Instant::now();
    let mut client = Client::new(&proxy);
    client.send("PUT", "/b/k", b"x");
    upstream.wait_seen(1);
    assert!(client.answer().is_some() && start.elapsed() >= Duration::from_millis(200) && rule.hits() == 1);
    let times = |seed| {
        let when = When { seed, ..When::any() };
        let rule = proxy.fault(when, Action::Delay { ms: 1, jitter_ms: 300 });
        let row: Vec<u128> = (0..3)
            .map(|_| {
                let start = Instant::now();
                assert!(Client::new(&proxy).ask("GET", "/b/k", b"").is_some());
                start.elapsed().as_millis()
            })
            .collect();
        assert_eq!(rule.hits(), 3);
        rule.turn_off();
        row
    };
    let (first, again) = (times(5), times(5));
    assert!(first.iter().any(|ms| first[0].abs_diff(*ms) > 20), "no jitter: {first:?}");
    assert!(first.iter().zip(&again).all(|(a, b)| a.abs_diff(*b) < 100), "the same seed: {first:?} {again:?}");
}

#[test]
fn blanks_come_before_an_error_without_act_or_before_the_real_answer() {
    let (upstream, proxy) = start();
    let mut client = Client::new(&proxy);
    let rule = proxy.fault(When::any().once(), Action::blanks_then_error("InternalError"));
    let (head, body) = client.ask("POST", "/b/k?uploadId=u", b"{}").unwrap();
    let body = String::from_utf8(body).unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && rule.hits() == 1, "{head}");
    assert!(body.starts_with("1\r\n \r\n1\r\n \r\n1\r\n \r\n") && body.contains("InternalError"), "{body}");
    assert!(upstream.seen.lock().is_empty());
    let rule = proxy.fault(When::any().once(), Action::blanks_then_answer());
    let (head, body) = client.ask("GET", "/b/chunked-please", b"").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && rule.hits() == 1, "{head}");
    assert_eq!(body, b"1\r\n \r\n1\r\n \r\n1\r\n \r\na\r\n0123456789\r\n0\r\n\r\n");
    assert_eq!(upstream.wait_seen(1).len(), 1);
}

#[test]
fn answers_that_are_no_json_come_with_any_status_before_and_after_the_act() {
    let (upstream, proxy) = start();
    let mut client = Client::new(&proxy);
    for (action, status, len) in [
        (Action::html(200), 200, 46),
        (Action::empty(200), 200, 0),
        (Action::cut_json(200), 200, 43),
        (Action::empty(502), 502, 0),
        (Action::cut_json(500), 500, 43),
    ] {
        for acted in [false, true] {
            let before = upstream.seen.lock().len();
            let action = if acted { action.clone().after_act() } else { action.clone() };
            let rule = proxy.fault(When::any().once(), action.clone());
            let (head, body) = client.ask("PUT", "/b/k", b"x").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{action:?}: {head}");
            assert_eq!((body.len(), rule.hits()), (len, 1), "{action:?}: {}", String::from_utf8_lossy(&body));
            assert!(serde_json::from_slice::<serde_json::Value>(&body).is_err(), "{action:?}");
            assert_eq!(upstream.seen.lock().len(), before + usize::from(acted), "{action:?}");
        }
    }
}

#[test]
fn the_servers_own_body_is_shortened_whole_to_http() {
    let (_upstream, proxy) = start();
    for target in ["/b/k", "/b/chunked-please"] {
        let rule = proxy.fault(When::any().once(), Action::ShortenBody { keep_bytes: 4 });
        let (head, body) = Client::new(&proxy).ask("GET", target, b"").unwrap();
        assert!(head.to_lowercase().contains("content-length: 4") && !head.contains("chunked"), "{head}");
        assert_eq!((body.as_slice(), rule.hits()), (b"0123".as_slice(), 1));
    }
}

#[test]
fn rules_fit_by_a_piece_of_the_target() {
    let (_upstream, proxy) = start();
    let rule = proxy.fault(When::any().target_contains("prefix=a%2F"), Action::error(500, "InternalError"));
    let mut client = Client::new(&proxy);
    assert!(client.ask("GET", "/b/?prefix=b%2F", b"").unwrap().0.starts_with("HTTP/1.1 200"));
    assert!(client.ask("GET", "/b/?prefix=a%2F", b"").unwrap().0.starts_with("HTTP/1.1 500"));
    assert_eq!(rule.hits(), 1);
}

#[test]
fn the_proxy_really_aborts_uploads_and_spoils_parts_at_the_server() {
    let world = support::World::new();
    let through = support::Bucket::new(world.proxy.addr(), support::BUCKET, &world.server.keys());
    let complete = || When::call(Call::Complete).once();
    let upload = through.initiate("k").unwrap();
    let etag = through.upload_part("k", &upload, 1, b"mine").unwrap();
    let abort = world.proxy.fault(complete(), Action::AbortUpload);
    let refused = through.complete("k", &upload, &[(1, etag)]).unwrap_err().to_string();
    assert!(refused.contains("NoSuchUpload") && abort.hits() == 1, "{refused}");
    assert!(world.bucket.uploads("").unwrap().is_empty() && world.bucket.head("k").unwrap().is_none());

    let upload = through.initiate("k").unwrap();
    let etag = through.upload_part("k", &upload, 1, b"mine").unwrap();
    let lie = world.proxy.fault(complete(), Action::error(404, "NoSuchUpload"));
    assert!(through.complete("k", &upload, &[(1, etag.clone())]).is_err() && lie.hits() == 1);
    assert_eq!(world.bucket.uploads("").unwrap().len(), 1, "only a lie");
    let spoil = world.proxy.fault(complete(), Action::SpoilPart { part: 1 });
    let refused = through.complete("k", &upload, &[(1, etag)]).unwrap_err().to_string();
    assert!(refused.contains("InvalidPart") && spoil.hits() == 1, "{refused}");
    assert_eq!(world.bucket.parts("k", &upload).unwrap()[0].size, 11);

    let etag = through.upload_part("k", &upload, 1, b"mine").unwrap();
    let other = world.proxy.fault(complete(), Action::wrong_etag_in_json());
    through.complete("k", &upload, &[(1, etag)]).unwrap();
    assert_eq!(other.hits(), 1);
    assert_eq!(world.bucket.get("k").unwrap(), b"mine");
}
