//! Answers that are no HTTP, lead elsewhere, or carry other bytes than were asked for.

use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use crate::support::Call;
use crate::support::hostile::{Bystander, Raw, head};
use crate::support::mounted::{cp, run};
use crate::{Attacked, LITTLE_MEMORY, errno, list, timed};

const ETAG: &str = "\"e\"";

/// A HEAD of an object of `size` bytes.
fn object(size: u64) -> Raw {
    let mut bytes = head("200 OK", &[("ETag", ETAG), ("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")]);
    bytes.extend(format!("Content-Length: {size}\r\n\r\n").bytes());
    Raw::Bytes(bytes)
}

/// Redirects are not followed: no credentials go to another server.
#[test]
fn redirects_are_not_followed() {
    let bystander = Bystander::start().unwrap();
    let location = format!("http://{}/bkt/x", bystander.addr());
    let attacked = Attacked::with(&LITTLE_MEMORY, move |asked| {
        if asked.target.contains("-new") && asked.call != Call::PutObject {
            return None;
        }
        let status = asked.key.split('-').nth(1).and_then(|code| code.parse::<u16>().ok()).or_else(|| {
            let prefix = asked.target.split("prefix=to-").nth(1)?;
            prefix.get(..3)?.parse().ok()
        })?;
        let headers = [("Location", location.as_str()), ("Refresh", location.as_str())];
        Some(Raw::answer(&format!("{status} Elsewhere"), &headers, ""))
    });
    let source = attacked.world.random_file("source", 1, 100);
    for status in [301, 302, 303, 307, 308] {
        let (path, listed) =
            (attacked.mount.path(&format!("to-{status}")), attacked.mount.path(&format!("to-{status}")));
        let found = errno(timed(move || std::fs::read(path)));
        assert!([libc::EIO, libc::EACCES].contains(&found), "{status}: errno {found}");
        assert!(list(&listed).is_err(), "{status}");
        let copied = cp(&source, attacked.mount.path(&format!("to-{status}-new")), crate::WAIT);
        assert!(!copied.status.success(), "{status}: a write was taken: {copied:?}");
    }
    assert!(attacked.hostile.hits() >= 15);
    assert_eq!(bystander.connections(), 0, "a redirect was followed, with credentials");
    attacked.hostile.behave();
}

#[test]
fn answers_that_are_no_http_are_errors_of_one_call() {
    const NONSENSE: [(&str, &[u8]); 16] = [
        ("nothing", b""),
        ("noise", b"\x00\x01\x02\x03\xff\xfe\r\n\r\n"),
        ("old", b"HTTP/0.9 200\r\n\r\n"),
        ("no-status", b"HTTP/1.1 \r\n\r\n"),
        ("status-999999", b"HTTP/1.1 999999 X\r\n\r\n"),
        ("status-000", b"HTTP/1.1 000 X\r\ncontent-length: 0\r\n\r\n"),
        ("nul-in-header", b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\n{}"),
        ("negative-length", b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n{}"),
        ("huge-length", b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n{}"),
        ("lying-length", b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n{}"),
        ("two-lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 7\r\n\r\n{}     "),
        ("bad-chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
        ("huge-chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        ("minus-chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n"),
        ("gzip", b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00"),
        ("switching", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n{}"),
    ];
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        let (_, bytes) = NONSENSE.iter().find(|(name, _)| asked.target.contains(&format!("prefix={name}%2F")))?;
        Some(Raw::Bytes(bytes.to_vec()))
    });
    let root = attacked.mount.dir().to_owned();
    let tries = NONSENSE.map(|(name, _)| {
        let dir = root.join(name);
        (name, std::thread::spawn(move || list(&dir)))
    });
    for (name, listed) in tries {
        let found = errno(listed.join().unwrap());
        assert!([libc::EIO, libc::ETIMEDOUT].contains(&found), "{name}: errno {found}");
    }
    assert!(attacked.hostile.hits() >= NONSENSE.len() as u64);
    attacked.assert_unharmed();
}

#[test]
fn http_1_0_and_bodies_until_the_end_of_the_connection_are_taken() {
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        let body = r#"{"isTruncated":false,"contents":[{"key":"old/x","size":1,"eTag":"e"}]}"#;
        let first = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\n";
        (asked.target.contains("prefix=old%2F")).then(|| Raw::Bytes([first, body].concat().into_bytes()))
    });
    assert_eq!(list(&attacked.mount.path("old")).unwrap(), [b"x"]);
    attacked.assert_unharmed();
}

/// Answers with another range, length or ETag than was asked for are errors: no program gets other bytes than it asked
/// for.
#[test]
fn other_bytes_than_were_asked_for_are_never_given_to_a_program() {
    const SIZE: u64 = 3 << 20;
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        let key = asked.key.as_str();
        if !key.starts_with("get-") {
            return None;
        }
        if asked.call == Call::HeadObject {
            return Some(object(SIZE));
        }
        if asked.call != Call::GetObject {
            return None;
        }
        let body = vec![b'x'; SIZE as usize];
        let partial = |range: &str, len: usize| {
            Raw::answer("206 Partial Content", &[("ETag", ETAG), ("Content-Range", range)], &body[..len])
        };
        let with_length = |announced: u64, len: usize| {
            let mut bytes =
                head("206 Partial Content", &[("ETag", ETAG), ("Content-Range", "bytes 0-3145727/3145728")]);
            bytes.extend(format!("Content-Length: {announced}\r\n\r\n").bytes());
            bytes.extend(&body[..len]);
            Raw::Bytes(bytes)
        };
        Some(match key {
            "get-wrong-range" => partial("bytes 5-1048580/3145728", 1 << 20),
            "get-no-range" => Raw::answer("206 Partial Content", &[("ETag", ETAG)], &body[..1 << 20]),
            "get-whole" => Raw::answer("200 OK", &[("ETag", ETAG)], [&body[..], b"and more"].concat()),
            "get-empty" => Raw::answer("200 OK", &[("ETag", ETAG)], ""),
            "get-204" => Raw::Bytes(head("204 No Content\r\n", &[("ETag", ETAG)])),
            "get-short" => with_length(SIZE, 1000),
            "get-long" => with_length(10, SIZE as usize),
            "get-other" => Raw::answer("200 OK", &[("ETag", "\"other\"")], &body),
            "get-without-etag" => Raw::answer("200 OK", &[], &body),
            "get-huge-range" => partial("bytes 0-18446744073709551614/18446744073709551615", 1 << 20),
            _ => return None,
        })
    });
    let root = attacked.mount.dir().to_owned();
    let names = [
        "get-wrong-range",
        "get-no-range",
        "get-whole",
        "get-empty",
        "get-204",
        "get-short",
        "get-long",
        "get-other",
        "get-without-etag",
        "get-huge-range",
    ];
    let tries = names.map(|name| {
        let path = root.join(name);
        let read = move || {
            // The middle: no answer of these carries what is asked for there.
            let file = std::fs::File::open(path)?;
            let mut bytes = vec![0; 4096];
            file.read_exact_at(&mut bytes, SIZE / 2).map(|()| bytes)
        };
        (name, std::thread::spawn(move || timed(read)))
    });
    for (name, read) in tries {
        let read = read.join().unwrap();
        assert!(read.is_err(), "{name}: a program was given bytes that were not asked for");
    }
    attacked.assert_unharmed();
}

#[test]
fn what_is_stored_compressed_is_read_as_it_is_stored() {
    // gzip of 64 MiB of zeros would be a few KiB; what it is to be taken for is the reader's affair.
    const STORED: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03not really";
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        let headers = [("ETag", ETAG), ("Content-Encoding", "gzip")];
        match (asked.call, asked.key.as_str()) {
            (Call::HeadObject, "packed") => {
                let mut bytes = head("200 OK", &headers);
                bytes.extend(format!("Content-Length: {}\r\n\r\n", STORED.len()).bytes());
                Some(Raw::Bytes(bytes))
            }
            (Call::GetObject, "packed") => Some(Raw::answer("200 OK", &headers, STORED)),
            _ => None,
        }
    });
    let path = attacked.mount.path("packed");
    assert_eq!(timed(move || std::fs::read(path)).unwrap(), STORED);
    attacked.assert_unharmed();
}

#[test]
fn impossible_sizes_are_errors_and_possible_ones_are_shown() {
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        let size = asked.key.strip_prefix("size-").filter(|_| asked.call == Call::HeadObject)?;
        Some(object(size.parse().ok()?))
    });
    for size in [u64::MAX - 2, 1 << 63] {
        let path = attacked.mount.path(&format!("size-{size}"));
        assert_eq!(errno(timed(move || std::fs::metadata(path))), libc::EIO, "{size}");
    }
    let path = attacked.mount.path(&format!("size-{}", i64::MAX));
    let read = timed(move || {
        let mut file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        let mut bytes = [0; 16];
        // At the very end, where offset and length overflow.
        let _ = file.read_at(&mut bytes, i64::MAX as u64 - 8);
        let _ = file.read(&mut bytes);
        std::io::Result::Ok(size)
    });
    assert_eq!(read.unwrap(), i64::MAX as u64);
    attacked.assert_unharmed();
}

#[test]
fn an_answer_that_trickles_in_ends_within_the_time_of_a_call() {
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        let first = [head("200 OK", &[]), b"\r\n".to_vec()].concat();
        let trickles = asked.call == Call::ListUploads || asked.target.contains("prefix=slow%2F");
        trickles.then(|| Raw::Drip(first, b" ".to_vec(), Duration::from_secs(2)))
    });
    let dir = attacked.mount.path("slow");
    let listed = std::thread::spawn(move || (list(&dir), Instant::now()));
    let began = Instant::now();
    let mut command = attacked.mount.command(&["uploads", "list", crate::support::BUCKET]);
    // Within the deadline of a call and what may be under way then: a hang would be for ever.
    let output = run(&mut command, crate::WAIT);
    assert!(!output.status.success(), "{output:?}");
    let (listed, ended) = listed.join().unwrap();
    assert!(listed.is_err());
    assert!(ended - began < crate::WAIT && attacked.hostile.hits() >= 2);
    attacked.assert_unharmed();
}

/// What a server says in an error stays short and in its line: it can forge no line of the log and send no control
/// character.
#[test]
fn what_an_error_answer_says_stays_short_and_in_its_line() {
    let message = "line\n[2026-01-01T00:00:00.000Z ERROR bosfs] forged\u{1b}]0;owned\u{7}".repeat(100);
    let body =
        serde_json::json!({"code": "Odd\nCode".repeat(500), "message": message, "requestId": "r\r\n".repeat(500)});
    let mut attacked = Attacked::with(&["--log-level", "trace"], move |asked| {
        let denied = asked.target.contains("odd") || asked.target.contains("uploads");
        denied.then(|| Raw::answer("400 Bad Request", &[], body.to_string()))
    });
    let path = attacked.mount.path("odd");
    assert!(timed(move || std::fs::write(path, b"x")).is_err());
    let output = run(&mut attacked.mount.command(&["uploads", "list", crate::support::BUCKET]), crate::WAIT);
    assert!(!output.status.success());
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    for text in [shown, attacked.mount.log_text()] {
        assert!(text.contains("Odd Code"), "the answer is not told: {text}");
        assert!(!text.contains(['\u{1b}', '\u{7}', '\r']), "control characters: {text:?}");
        assert!(text.lines().all(|line| !line.starts_with("[2026-01-01")), "a forged line: {text}");
        assert!(text.lines().all(|line| line.len() < 4000), "a line without end");
    }
    attacked.assert_unharmed();
}
