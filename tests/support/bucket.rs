//! A bucket seen past the mount and past bosfs's own client: a small blocking client with its own signing, so that what
//! tests compare does not come from the code under test.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bosfs::object::Md5;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Digest as _;
use parking_lot::Mutex;
use sha2::Sha256;

/// Longest wait for one read or write of a connection.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(60);

/// Access key and secret of a test server.
#[derive(Clone, Debug)]
pub struct TestKeys {
    pub access_key: String,
    pub secret_key: String,
}

/// An answer without its body.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lowercase.
    pub headers: Vec<(String, String)>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// ETag without quotes.
    pub fn etag(&self) -> String {
        self.header("etag").unwrap_or("").trim_matches('"').to_owned()
    }

    /// Content-Length.
    pub fn size(&self) -> u64 {
        self.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0)
    }
}

/// What a HEAD shows of an object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Seen {
    pub size: u64,
    pub etag: String,
}

/// An unfinished upload of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unfinished {
    pub key: String,
    pub upload_id: String,
}

/// A part of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldPart {
    pub number: u32,
    pub size: u64,
    pub etag: String,
}

/// One bucket of one server. Clones have connections of their own.
pub struct Bucket {
    addr: SocketAddr,
    name: String,
    keys: TestKeys,
    connection: Mutex<Option<BufReader<TcpStream>>>,
}

impl Clone for Bucket {
    fn clone(&self) -> Self {
        Self::new(self.addr, &self.name, &self.keys)
    }
}

impl Bucket {
    pub fn new(addr: SocketAddr, name: &str, keys: &TestKeys) -> Self {
        Self { addr, name: name.to_owned(), keys: keys.clone(), connection: Mutex::new(None) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// One request; the body of the answer goes to `sink`. A kept connection that the server closed meanwhile is replaced
    /// once.
    pub fn call(
        &self,
        method: &str,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Reply> {
        let mut kept = self.connection.lock().take();
        loop {
            let fresh = kept.is_none();
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => self.connect()?,
            };
            match self.call_on(&mut connection, method, key, query, headers, body, sink) {
                Ok(reply) => {
                    if reply.header("connection").is_none_or(|v| !v.eq_ignore_ascii_case("close")) {
                        *self.connection.lock() = Some(connection);
                    }
                    return Ok(reply);
                }
                Err(e) if fresh => return Err(e),
                Err(_) => {}
            }
        }
    }

    fn connect(&self) -> io::Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect(self.addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
        stream.set_write_timeout(Some(SOCKET_TIMEOUT))?;
        Ok(BufReader::with_capacity(256 << 10, stream))
    }

    #[allow(clippy::too_many_arguments)]
    fn call_on(
        &self,
        connection: &mut BufReader<TcpStream>,
        method: &str,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Reply> {
        let path = match key {
            "" => format!("/{}", self.name),
            key => format!("/{}/{}", self.name, encode(key, true)),
        };
        let mut pairs: Vec<String> =
            query.iter().map(|(n, v)| format!("{}={}", encode(n, false), encode(v, false))).collect();
        pairs.sort();
        let query = pairs.join("&");
        let date = now_text();
        let host = self.addr.to_string();
        let mut sent: Vec<(String, String)> =
            headers.iter().map(|(n, v)| (n.to_lowercase(), (*v).to_owned())).collect();
        sent.push(("host".into(), host));
        sent.push(("x-bce-date".into(), date.clone()));
        let authorization = self.sign(method, &path, &query, &sent, &date);
        let mut head = format!("{method} {path}{}{query} HTTP/1.1\r\n", if query.is_empty() { "" } else { "?" });
        for (name, value) in &sent {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("authorization: {authorization}\r\ncontent-length: {}\r\n\r\n", body.len()));
        let stream = connection.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let reply = read_reply_head(connection)?;
        if method != "HEAD" && reply.status != 204 && reply.status != 304 {
            read_body(connection, &reply, sink)?;
        }
        Ok(reply)
    }

    /// bce-auth-v1 over Host and all `x-bce-*` headers.
    fn sign(&self, method: &str, path: &str, query: &str, headers: &[(String, String)], date: &str) -> String {
        let signed: Vec<_> = headers.iter().filter(|(n, _)| n == "host" || n.starts_with("x-bce-")).collect();
        let mut lines: Vec<String> =
            signed.iter().map(|(n, v)| format!("{}:{}", encode(n, false), encode(v.trim(), false))).collect();
        lines.sort();
        let mut names: Vec<&str> = signed.iter().map(|(n, _)| n.as_str()).collect();
        names.sort_unstable();
        let prefix = format!("bce-auth-v1/{}/{date}/1800", self.keys.access_key);
        let signing_key = hmac_hex(self.keys.secret_key.as_bytes(), &prefix);
        let request = format!("{method}\n{path}\n{query}\n{}", lines.join("\n"));
        format!("{prefix}/{}/{}", names.join(";"), hmac_hex(signing_key.as_bytes(), &request))
    }

    /// The body of the answer, gathered; an error for any status but 2xx.
    pub fn ask(
        &self,
        method: &str,
        key: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<(Reply, Vec<u8>)> {
        let mut bytes = Vec::new();
        let reply = self.call(method, key, query, headers, body, &mut |piece| bytes.extend_from_slice(piece))?;
        match reply.status {
            200..300 => Ok((reply, bytes)),
            status => Err(io::Error::other(format!(
                "{method} {key:?} {query:?}: {status} {}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(500)])
            ))),
        }
    }

    fn ask_json(&self, method: &str, key: &str, query: &[(&str, &str)], body: &[u8]) -> io::Result<serde_json::Value> {
        let (_, bytes) = self.ask(method, key, query, &[], body)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// `PUT /bucket`; fine if it is there already.
    pub fn create(&self) -> io::Result<()> {
        let reply = self.call("PUT", "", &[], &[], b"", &mut |_| {})?;
        match reply.status {
            200 | 409 => Ok(()),
            status => Err(io::Error::other(format!("PutBucket: {status}"))),
        }
    }

    /// All headers of an object; `None`: 404.
    pub fn head_reply(&self, key: &str) -> io::Result<Option<Reply>> {
        let reply = self.call("HEAD", key, &[], &[], b"", &mut |_| {})?;
        match reply.status {
            200 => Ok(Some(reply)),
            404 => Ok(None),
            status => Err(io::Error::other(format!("HEAD {key:?}: {status}"))),
        }
    }

    /// Size and ETag of an object; `None`: there is none.
    pub fn head(&self, key: &str) -> io::Result<Option<Seen>> {
        Ok(self.head_reply(key)?.map(|reply| Seen { size: reply.size(), etag: reply.etag() }))
    }

    /// A whole small object.
    pub fn get(&self, key: &str) -> io::Result<Vec<u8>> {
        Ok(self.ask("GET", key, &[], &[], b"")?.1)
    }

    /// MD5 and size of an object's bytes, streamed.
    pub fn get_md5(&self, key: &str) -> io::Result<(Md5, u64)> {
        let (mut md5, mut size) = (md5::Md5::new(), 0);
        let reply = self.call("GET", key, &[], &[], b"", &mut |piece| {
            md5.update(piece);
            size += piece.len() as u64;
        })?;
        match reply.status {
            200 => Ok((Md5(md5.finalize().into()), size)),
            status => Err(io::Error::other(format!("GET {key:?}: {status}"))),
        }
    }

    /// Stores a small object; returns its ETag.
    pub fn put(&self, key: &str, body: &[u8]) -> io::Result<String> {
        Ok(self.ask("PUT", key, &[], &[("content-type", "application/octet-stream")], body)?.0.etag())
    }

    /// Deletes an object; fine if there is none.
    pub fn delete(&self, key: &str) -> io::Result<()> {
        match self.call("DELETE", key, &[], &[], b"", &mut |_| {})?.status {
            200..300 | 404 => Ok(()),
            status => Err(io::Error::other(format!("DELETE {key:?}: {status}"))),
        }
    }

    /// All keys under `prefix`.
    pub fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        let mut keys = Vec::new();
        let mut marker = String::new();
        loop {
            let page = self.ask_json("GET", "", &[("prefix", prefix), ("marker", &marker)], b"")?;
            let entries = page["contents"].as_array().cloned().unwrap_or_default();
            keys.extend(entries.iter().filter_map(|e| e["key"].as_str().map(str::to_owned)));
            if page["isTruncated"] != true {
                return Ok(keys);
            }
            marker = page["nextMarker"].as_str().unwrap_or_default().to_owned();
        }
    }

    pub fn initiate(&self, key: &str) -> io::Result<String> {
        let answer = self.ask_json("POST", key, &[("uploads", "")], b"")?;
        answer["uploadId"].as_str().map(str::to_owned).ok_or_else(|| io::Error::other("no uploadId"))
    }

    /// Uploads a part; returns its ETag.
    pub fn upload_part(&self, key: &str, upload_id: &str, part: u32, body: &[u8]) -> io::Result<String> {
        let part = part.to_string();
        Ok(self.ask("PUT", key, &[("partNumber", &part), ("uploadId", upload_id)], &[], body)?.0.etag())
    }

    /// Makes a part of a range (inclusive ends) of another object of this bucket; returns its ETag.
    pub fn copy_part(
        &self,
        key: &str,
        upload_id: &str,
        part: u32,
        source: &str,
        range: (u64, u64),
    ) -> io::Result<String> {
        let source = format!("/{}/{}", self.name, encode(source, true));
        let range = format!("bytes={}-{}", range.0, range.1);
        let part = part.to_string();
        let query = [("partNumber", part.as_str()), ("uploadId", upload_id)];
        let headers = [("x-bce-copy-source", source.as_str()), ("x-bce-copy-source-range", range.as_str())];
        let (_, bytes) = self.ask("PUT", key, &query, &headers, b"")?;
        let answer: serde_json::Value = serde_json::from_slice(&bytes)?;
        answer["eTag"].as_str().map(str::to_owned).ok_or_else(|| io::Error::other(format!("part copy: {answer}")))
    }

    pub fn complete(&self, key: &str, upload_id: &str, parts: &[(u32, String)]) -> io::Result<()> {
        let parts: Vec<_> = parts.iter().map(|(n, etag)| serde_json::json!({"partNumber": n, "eTag": etag})).collect();
        let body = serde_json::json!({ "parts": parts }).to_string();
        self.ask("POST", key, &[("uploadId", upload_id)], &[], body.as_bytes()).map(|_| ())
    }

    /// Aborts an upload; fine if there is none.
    pub fn abort(&self, key: &str, upload_id: &str) -> io::Result<()> {
        match self.call("DELETE", key, &[("uploadId", upload_id)], &[], b"", &mut |_| {})?.status {
            200..300 | 404 => Ok(()),
            status => Err(io::Error::other(format!("abort: {status}"))),
        }
    }

    /// All unfinished uploads of keys under `prefix`.
    pub fn uploads(&self, prefix: &str) -> io::Result<Vec<Unfinished>> {
        let mut found = Vec::new();
        let (mut key_marker, mut id_marker) = (String::new(), String::new());
        loop {
            let query =
                [("uploads", ""), ("prefix", prefix), ("keyMarker", &key_marker), ("uploadIdMarker", &id_marker)];
            let page = self.ask_json("GET", "", &query, b"")?;
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            for entry in page["uploads"].as_array().into_iter().flatten() {
                found.push(Unfinished { key: text(&entry["key"]), upload_id: text(&entry["uploadId"]) });
            }
            if page["isTruncated"] != true {
                return Ok(found);
            }
            (key_marker, id_marker) = (text(&page["nextKeyMarker"]), text(&page["nextUploadIdMarker"]));
        }
    }

    /// All parts of an upload.
    pub fn parts(&self, key: &str, upload_id: &str) -> io::Result<Vec<HeldPart>> {
        let mut found = Vec::new();
        let mut marker = "0".to_owned();
        loop {
            let page = self.ask_json("GET", key, &[("uploadId", upload_id), ("partNumberMarker", &marker)], b"")?;
            for entry in page["parts"].as_array().into_iter().flatten() {
                found.push(HeldPart {
                    number: entry["partNumber"].as_u64().unwrap_or(0) as u32,
                    size: entry["size"].as_u64().unwrap_or(0),
                    etag: entry["eTag"].as_str().unwrap_or_default().to_owned(),
                });
            }
            if page["isTruncated"] != true {
                return Ok(found);
            }
            marker = page["nextPartNumberMarker"].to_string();
        }
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.iter().map(|b| char::from(*b)).collect::<String>().trim_end().to_owned())
}

fn read_reply_head(reader: &mut impl BufRead) -> io::Result<Reply> {
    loop {
        let first = read_line(reader)?;
        let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status: u16 = status.ok_or_else(|| io::Error::other(format!("no status in {first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = read_line(reader)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if status >= 200 {
            return Ok(Reply { status, headers });
        }
    }
}

fn read_body(reader: &mut impl BufRead, reply: &Reply, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut buf = vec![0; 256 << 10];
    let mut pass = |reader: &mut dyn BufRead, len: u64| -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            match reader.read(&mut buf[..n])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => {
                    sink(&buf[..n]);
                    left -= n as u64;
                }
            }
        }
        Ok(())
    };
    if reply.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let line = read_line(reader)?;
            let len = u64::from_str_radix(line.split(';').next().unwrap_or("").trim(), 16).map_err(io::Error::other)?;
            if len == 0 {
                while !read_line(reader)?.is_empty() {}
                return Ok(());
            }
            pass(reader, len)?;
            read_line(reader)?;
        }
    }
    pass(reader, reply.size())
}

fn hmac_hex(key: &[u8], message: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length of key");
    mac.update(message.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

fn encode(text: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b'/' if keep_slash => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Now, as `x-bce-date` has it.
fn now_text() -> String {
    let t = time::OffsetDateTime::now_utc();
    let (month, day) = (u8::from(t.month()), t.day());
    format!("{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", t.year(), t.hour(), t.minute(), t.second())
}
