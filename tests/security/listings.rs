//! Listings that lie, loop, or never end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::Call;
use crate::support::call::Asked;
use crate::support::hostile::{Raw, head};
use crate::{Attacked, LITTLE_MEMORY, errno, list, timed};

fn object(key: &str) -> Value {
    json!({"key": key, "size": 3, "eTag": "e", "lastModified": "2026-01-02T03:04:05Z", "storageClass": "STANDARD"})
}

/// The head of an object of three bytes.
fn file() -> Raw {
    let mut bytes = head("200 OK", &[("ETag", "\"e\""), ("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")]);
    bytes.extend(b"Content-Length: 3\r\n\r\n");
    Raw::Bytes(bytes)
}

/// Whether this is the listing of the directory `prefix` itself, not a look whether it exists.
fn lists(asked: &Asked, prefix: &str) -> bool {
    asked.call == Call::ListObjects && parameter(asked, "prefix") == prefix
}

fn parameter(asked: &Asked, name: &str) -> String {
    let query = asked.target.split_once('?').map_or("", |(_, query)| query);
    let pair = query.split('&').find_map(|pair| pair.split_once('=').filter(|(found, _)| *found == name));
    let decode = |value: &str| percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned();
    pair.map(|(_, value)| decode(value)).unwrap_or_default()
}

/// Keys that are no names (such as `../../etc/passwd`, `a//b`, one with a NUL, one of 5000 bytes) are not shown and
/// lead nowhere outside the mount; `.bosfs/shadowed.json` lists them.
#[test]
fn keys_that_would_leave_the_mount_are_no_names_and_are_told() {
    let long = "k".repeat(5000);
    let segment = "s".repeat(256);
    let keys = [
        "../../etc/passwd",
        "/etc/shadow",
        "a//b",
        "./x",
        "..",
        ".",
        "nul\0byte",
        "\u{fffd}",
        &long,
        &segment,
        "line\nbreak",
        "bell\u{7}",
        "good",
    ];
    let contents: Vec<Value> = keys.iter().map(|key| object(key)).collect();
    let prefixes = json!([{"prefix": "../"}, {"prefix": "/"}, {"prefix": "//"}, {"prefix": "folder/"}]);
    let page = json!({"isTruncated": false, "contents": contents, "commonPrefixes": prefixes});
    let mut attacked = Attacked::with(&LITTLE_MEMORY, move |asked| lists(asked, "").then(|| Raw::json(&page)));
    let found: BTreeSet<Vec<u8>> = list(attacked.mount.dir()).unwrap().into_iter().collect();
    let shown: [&[u8]; 4] = [b"bell\x07", b"folder", b"good", b"line\nbreak"];
    assert!(found.iter().map(Vec::as_slice).eq(shown), "{found:?}");
    assert!(attacked.hostile.hits() > 0);
    let path = attacked.mount.path(".bosfs/shadowed.json");
    let told = timed(move || std::fs::read_to_string(path)).unwrap();
    for key in ["../../etc/passwd", "/etc/shadow", "a//b", "nul\\u0000byte", &long] {
        assert!(told.contains(key), "{key:?} is not told");
    }
    // A key cannot begin a line of the log.
    assert!(attacked.mount.log_text().lines().all(|line| !line.starts_with("break")));
    attacked.assert_unharmed();
}

#[test]
fn bytes_that_are_no_utf_8_make_no_empty_folder() {
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        let body = b"{\"contents\":[{\"key\":\"a\xff\xfeb\",\"size\":1}]}";
        lists(asked, "").then(|| Raw::answer("200 OK", &[], body))
    });
    assert_eq!(errno(list(attacked.mount.dir())), libc::EIO);
    attacked.assert_unharmed();
}

#[test]
fn listings_that_do_not_advance_are_errors() {
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        if asked.call != Call::ListObjects {
            return None;
        }
        let page = |key: &str, next: &str| json!({"isTruncated": true, "nextMarker": next, "contents": [object(key)], "commonPrefixes": []});
        let marker = parameter(asked, "marker");
        match parameter(asked, "prefix").as_str() {
            "repeats/" => Some(Raw::json(&page("repeats/k", "repeats/k"))),
            "decreases/" if marker.is_empty() => Some(Raw::json(&page("decreases/z", "decreases/z"))),
            "decreases/" => Some(Raw::json(&page("decreases/a", "decreases/a"))),
            "silent/" => Some(Raw::json(&json!({"isTruncated": true}))),
            "outside/" => Some(Raw::json(&json!({"contents": [object("elsewhere/x")]}))),
            "negative/" => Some(Raw::json(&json!({"contents": [{"key": "negative/x", "size": -1, "eTag": "e"}]}))),
            "huge/" => {
                let text = r#"{"contents":[{"key":"huge/x","size":18446744073709551616,"eTag":"e"}]}"#;
                Some(Raw::answer("200 OK", &[], text))
            }
            "deep/" => Some(Raw::answer("200 OK", &[], format!("{{\"contents\":{}", "[".repeat(1 << 20)))),
            "newline/" => {
                Some(Raw::json(&json!({"contents": [{"key": "newline/x", "size": 1, "eTag": "e\"\r\nHost: x"}]})))
            }
            _ => None,
        }
    });
    let root = attacked.mount.dir().to_owned();
    let tries: Vec<_> = ["repeats", "decreases", "silent", "outside", "negative", "huge", "deep", "newline"]
        .map(|name| {
            let dir = root.join(name);
            (name, std::thread::spawn(move || list(&dir)))
        })
        .into_iter()
        .collect();
    for (name, listed) in tries {
        let listed = listed.join().unwrap();
        assert!(listed.is_err(), "{name}: {listed:?}");
    }
    assert!(attacked.hostile.hits() >= 8);
    attacked.assert_unharmed();
}

/// A listing without end gives ENOMEM before it takes the memory, and the log names `--memory-limit`.
#[test]
fn an_endless_listing_ends_with_an_error_before_it_takes_the_memory() {
    let pages = Arc::new(AtomicU64::new(0));
    let counted = pages.clone();
    let mut attacked = Attacked::with(&LITTLE_MEMORY, move |asked| {
        if asked.call == Call::HeadObject && asked.key.starts_with("endless/") {
            return Some(file());
        }
        lists(asked, "endless/").then(|| {
            let page = counted.fetch_add(1, Ordering::SeqCst);
            // Of a page that was read, only where the next one begins is kept for long.
            let key = |i: u64| format!("endless/{:0240}", page * 10 + i);
            let contents: Vec<Value> = (0..10)
                .map(|i| json!({"key": key(i), "size": 3, "eTag": "e".repeat(250), "lastModified": "2026-01-02T03:04:05Z"}))
                .collect();
            let next = format!("{}{}", key(9), "!".repeat(700));
            Raw::json(&json!({"isTruncated": true, "nextMarker": next, "contents": contents}))
        })
    });
    let dir = attacked.mount.path("endless");
    assert_eq!(errno(list(&dir)), libc::ENOMEM);
    let pages = pages.load(Ordering::SeqCst);
    assert!((100..5000).contains(&pages), "{pages} pages");
    assert!(attacked.mount.log_text().contains("--memory-limit"), "nobody is told why");
    attacked.assert_unharmed();
}

#[test]
fn a_page_of_a_million_empty_entries_is_refused() {
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        let entries = r#"{"key":"many/"},"#.repeat(900_000);
        let body = format!("{{\"contents\":[{}]}}", entries.trim_end_matches(','));
        lists(asked, "many/").then(|| Raw::answer("200 OK", &[], body))
    });
    assert_eq!(errno(list(&attacked.mount.path("many"))), libc::EIO);
    attacked.assert_unharmed();
}

#[test]
fn removing_a_folder_whose_listing_has_no_end_and_no_key_ends() {
    let pages = Arc::new(AtomicU64::new(0));
    let counted = pages.clone();
    let mut attacked = Attacked::with(&LITTLE_MEMORY, move |asked| {
        (lists(asked, "void/") && !parameter(asked, "maxKeys").eq("1")).then(|| {
            let page = counted.fetch_add(1, Ordering::SeqCst);
            Raw::json(&json!({"isTruncated": true, "nextMarker": format!("void/{page:020}"), "contents": []}))
        })
    });
    let dir = attacked.mount.path("void");
    attacked.world.bucket.put("void/", b"").unwrap();
    let began = Instant::now();
    let removed = timed(move || std::fs::remove_dir(dir));
    assert!(removed.is_err(), "a folder that could not be looked into was removed");
    assert!(attacked.world.bucket.head("void/").unwrap().is_some());
    assert!(pages.load(Ordering::SeqCst) > 1, "no page was asked for");
    // The act does not go on behind for ever: the requests cease.
    let end = began + crate::WAIT;
    loop {
        let before = pages.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(500));
        if pages.load(Ordering::SeqCst) == before {
            break;
        }
        assert!(Instant::now() < end, "bosfs asks on and on: {before} pages");
    }
    assert!(pages.load(Ordering::SeqCst) < 1000, "{} pages", pages.load(Ordering::SeqCst));
    attacked.assert_unharmed();
}

#[test]
fn an_endless_list_of_uploads_ends_the_command() {
    let pages = Arc::new(AtomicU64::new(0));
    let counted = pages.clone();
    let attacked = Attacked::with(&LITTLE_MEMORY, move |asked| {
        (asked.call == Call::ListUploads).then(|| {
            let page = counted.fetch_add(1, Ordering::SeqCst);
            Raw::json(&json!({"isTruncated": true, "nextKeyMarker": format!("k{page:020}"), "uploads": []}))
        })
    });
    let mut command = attacked.mount.command(&["uploads", "list", crate::support::BUCKET]);
    let output = crate::support::mounted::run(&mut command, crate::WAIT);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not end"), "{output:?}");
    assert!((50..1000).contains(&pages.load(Ordering::SeqCst)));
}

/// Answers without end are cut off with EIO or ETIMEDOUT, in bounded memory.
#[test]
fn endless_answers_are_cut_off() {
    let mut attacked = Attacked::with(&LITTLE_MEMORY, |asked| {
        if asked.call != Call::ListObjects {
            return None;
        }
        let entry = br#"{"key":"x","size":1,"eTag":"e","lastModified":"2026-01-02T03:04:05Z"},"#.to_vec();
        match parameter(asked, "prefix").as_str() {
            "json/" => {
                let first = [head("200 OK", &[]), b"\r\n{\"contents\":[".to_vec()].concat();
                Some(Raw::Endless(first, entry))
            }
            "spaces/" => Some(Raw::Endless([head("200 OK", &[]), b"\r\n".to_vec()].concat(), b" ".to_vec())),
            "error/" => Some(Raw::Endless(
                [head("500 Internal Server Error", &[]), b"\r\n{\"code\":\"".to_vec()].concat(),
                b"Long".to_vec(),
            )),
            "headers/" => Some(Raw::Endless(head("200 OK", &[]), b"x-more: and more\r\n".to_vec())),
            "header/" => Some(Raw::Endless([head("200 OK", &[]), b"x-long: ".to_vec()].concat(), b"long".to_vec())),
            "status/" => Some(Raw::Endless(b"HTTP/1.1 200 ".to_vec(), b"OK ".to_vec())),
            "continue/" => Some(Raw::Bytes(b"HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000))),
            "chunks/" => {
                let first = [head("200 OK", &[("Transfer-Encoding", "chunked")]), b"\r\n".to_vec()].concat();
                Some(Raw::Endless(first, [&b"400\r\n"[..], &[b' '; 1024], b"\r\n"].concat()))
            }
            _ => None,
        }
    });
    let root = attacked.mount.dir().to_owned();
    let tries: Vec<_> = ["json", "spaces", "error", "headers", "header", "status", "continue", "chunks"]
        .map(|name| {
            let dir = root.join(name);
            (name, std::thread::spawn(move || errno(list(&dir))))
        })
        .into_iter()
        .collect();
    for (name, errno) in tries {
        let errno = errno.join().unwrap();
        assert!([libc::EIO, libc::ETIMEDOUT].contains(&errno), "{name}: errno {errno}");
    }
    // Every try of each, at most the largest answer that is read and what the sockets hold.
    let taken = attacked.hostile.bytes();
    assert!(attacked.hostile.hits() >= 8 && taken < 8 * 6 * (24 << 20), "{taken} bytes were taken");
    attacked.assert_unharmed();
}
