//! `wget -c` and `curl -C -` from a loopback server that breaks off.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::bench::Bench;
use crate::inputs::{self, BIG_BYTES};
use crate::support::tree::Times;

/// Bytes after which an answer below `/cut/` breaks off.
const CUT_BYTES: u64 = (9 << 20) + 777;

/// A server of one file that knows ranges. `/whole/NAME` gives all that is asked, `/cut/NAME` breaks off.
struct RangeServer {
    port: u16,
    stop: Arc<AtomicBool>,
    /// First bytes that were asked for, in order.
    starts: Arc<Mutex<Vec<u64>>>,
}

impl RangeServer {
    fn start(file: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let starts: Arc<Mutex<Vec<u64>>> = Arc::default();
        let (stopped, seen) = (stop.clone(), starts.clone());
        std::thread::spawn(move || {
            let content = std::fs::read(file).unwrap();
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // The client may go away in the middle.
                let _ = answer(client, &content, &seen);
            }
        });
        Self { port, stop, starts }
    }

    fn take_starts(&self) -> Vec<u64> {
        std::mem::take(&mut self.starts.lock())
    }
}

impl Drop for RangeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn answer(client: TcpStream, content: &[u8], starts: &Mutex<Vec<u64>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut start = 0;
    let mut ranged = false;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.trim().trim_end_matches('-').parse().unwrap_or(0);
            ranged = true;
        }
        if line.is_empty() {
            break;
        }
    }
    if !request.starts_with("HEAD") {
        starts.lock().push(start);
    }
    let total = content.len() as u64;
    let mut out = client;
    let last_modified = "Last-Modified: Sun, 13 Sep 2020 12:26:40 GMT\r\nConnection: close\r\nAccept-Ranges: bytes";
    if start >= total {
        return write!(
            out,
            "HTTP/1.1 416 No\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\n{last_modified}\r\n\r\n"
        );
    }
    let status = if ranged { "206 Partial Content" } else { "200 OK" };
    let left = total - start;
    write!(out, "HTTP/1.1 {status}\r\nContent-Length: {left}\r\n{last_modified}\r\n")?;
    if ranged {
        write!(out, "Content-Range: bytes {start}-{}/{total}\r\n", total - 1)?;
    }
    write!(out, "\r\n")?;
    if request.starts_with("HEAD") {
        return Ok(());
    }
    let end = if request.contains("/cut/") { total.min(start + CUT_BYTES) } else { total };
    out.write_all(&content[start as usize..end as usize])
}

fn goes_on(first: &str, next: &str, cut_exit: u32) {
    let bench = Bench::new(Times::Files);
    inputs::big(&bench);
    let server = RangeServer::start(bench.input().join("big"));
    let bench = bench.env("URL", &format!("http://127.0.0.1:{}", server.port)).env("no_proxy", "127.0.0.1");
    // The time of a file that broke off is that of its last write: only the size is looked at then.
    let first = format!("code=0; {first} || code=$?; echo $code; stat -c %s big; touch -d @1600000000 big");
    let printed = bench.run(&first);
    assert_eq!(printed, format!("{cut_exit}\n{CUT_BYTES}\n"));
    server.take_starts();
    bench.run(&format!("{next}; cmp big $IN/big; stat -c '%s %Y' big"));
    assert_eq!(
        server.take_starts(),
        [CUT_BYTES, CUT_BYTES],
        "the first byte asked for, on the local folder and the mount"
    );
    assert_eq!(std::fs::metadata(bench.mount().path("w/big")).unwrap().len(), BIG_BYTES);
    bench.finish("cmp big $IN/big");
}

#[test]
fn wget_c() {
    goes_on("wget -q -t 1 -O big $URL/cut/big", "wget -q -c $URL/whole/big", 4);
}

#[test]
fn curl_continue_at() {
    goes_on("curl -s -o big $URL/cut/big", "curl -s -S -R -C - -o big $URL/whole/big", 18);
}
