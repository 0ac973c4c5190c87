//! One connection of the fault proxy: request by request, with the fault that a rule asks for.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::call::Asked;
use super::fault::{Action, HoldAt, Rule};
use super::http::{BodyReader, Framing, Head, PIECE_BYTES, Start, read_head};
use super::proxy::Shared;

/// How a connection to a client ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// After a whole answer, or by the client.
    Closed,
    /// By a fault: with a reset.
    Reset,
}

/// Whether the connection lives on after a request.
enum Next {
    Go,
    End(End),
}

struct Upstream {
    stream: TcpStream,
    buf: BytesMut,
}

/// Serves a client until it leaves or a fault ends the connection.
pub(super) async fn serve_client(
    shared: &Shared,
    reader: &mut OwnedReadHalf,
    writer: &mut Option<OwnedWriteHalf>,
) -> End {
    let Some(writer) = writer.as_mut() else { return End::Closed };
    let connected = shared.started.elapsed();
    let mut connection = Connection { shared, connected, reader, writer, buf: BytesMut::new(), upstream: None };
    loop {
        match connection.serve_one().await {
            Ok(Next::Go) => {}
            Ok(Next::End(end)) => return end,
            // The client went away, or the server did in the middle of an answer.
            Err(_) => return End::Reset,
        }
    }
}

struct Connection<'a> {
    shared: &'a Shared,
    /// Since the proxy started.
    connected: Duration,
    reader: &'a mut OwnedReadHalf,
    writer: &'a mut OwnedWriteHalf,
    buf: BytesMut,
    upstream: Option<Upstream>,
}

/// One request under way; counted and put into the log however it ends, also when the line dies.
struct Exchange<'a> {
    shared: &'a Shared,
    connected: Duration,
    began: Duration,
    asked: Asked,
    rule: Option<Rule>,
    action: Action,
    hold: Option<HoldAt>,
    body: BodyReader,
    status: Option<u16>,
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        let from_to = [self.connected, self.began, self.shared.started.elapsed()];
        let mut counts = self.shared.counts.lock();
        counts.close(&self.asked);
        counts.end(from_to, &self.asked, self.status, self.rule.as_ref().map(Rule::id));
    }
}

impl Exchange<'_> {
    fn hit(&self) {
        if let Some(rule) = &self.rule {
            rule.count_hit();
        }
    }

    /// Holds here if the rule says so. `false`: the connection must be closed.
    async fn hold_at(&self, here: HoldAt) -> bool {
        match &self.rule {
            Some(rule) if self.hold == Some(here) => {
                rule.count_hit();
                rule.pass_gate().await
            }
            _ => true,
        }
    }
}

impl Connection<'_> {
    async fn serve_one(&mut self) -> io::Result<Next> {
        let Some(mut head) = read_head(self.reader, &mut self.buf).await? else {
            return Ok(Next::End(End::Closed));
        };
        self.shared.line_moves().await;
        let Start::Request { method, target } = head.start.clone() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let asked = Asked::read(&method, &target, |name| head.header(name));
        self.shared.counts.lock().begin(&asked);
        let rule = self.shared.rules.lock().iter().find(|rule| rule.takes(&asked)).cloned();
        let mut exchange = Exchange {
            shared: self.shared,
            connected: self.connected,
            began: self.shared.started.elapsed(),
            action: rule.as_ref().map(|rule| rule.spec().action.clone()).unwrap_or_default(),
            hold: rule.as_ref().and_then(|rule| rule.spec().hold),
            body: BodyReader::new(head.framing(None)),
            asked,
            rule,
            status: None,
        };
        if head.header("expect").is_some() {
            self.writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            head.remove(|name| name == "expect");
        }
        let closes = head.closes();
        match self.run(&head, &mut exchange).await? {
            Next::Go if closes => Ok(Next::End(End::Closed)),
            next => Ok(next),
        }
    }

    async fn run(&mut self, head: &Head, x: &mut Exchange<'_>) -> io::Result<Next> {
        tokio::time::sleep(self.shared.latency()).await;
        if !x.hold_at(HoldAt::BeforeForward).await {
            return Ok(Next::End(End::Reset));
        }
        if let Some(old) = super::stale::answer(self.shared, &x.asked).await? {
            self.writer.write_all(&old.to_bytes()).await?;
            let Start::Answer { status, .. } = old.start else { return Err(io::ErrorKind::InvalidData.into()) };
            x.status = Some(status);
            return Ok(Next::Go);
        }
        match x.action.clone() {
            Action::Refuse | Action::CutBeforeBody => {
                x.hit();
                return Ok(Next::End(End::Reset));
            }
            Action::Stall => return self.silence(x).await,
            Action::CutAfterBody => {
                self.drain_request(x).await?;
                x.hit();
                return Ok(Next::End(End::Reset));
            }
            Action::Answer { status, body, headers, acted: false } => {
                self.drain_request(x).await?;
                return self.answer(x, status, &headers, &body).await;
            }
            Action::Delay { ms, jitter_ms } => {
                let drawn = x.rule.as_ref().map_or(0.0, Rule::draw);
                x.hit();
                tokio::time::sleep(Duration::from_millis(ms + (jitter_ms as f64 * drawn) as u64)).await;
            }
            Action::BlanksFirst { blanks, pause_ms, error } => {
                return self.blanks_first(head, x, blanks, Duration::from_millis(pause_ms), error).await;
            }
            Action::AbortUpload | Action::SpoilPart { .. } => self.act_on_server(x).await?,
            Action::Pass if x.hold.is_none() => x.hit(),
            Action::Throttle { .. } => x.hit(),
            _ => {}
        }
        self.forward(head, x).await
    }

    /// Does by the proxy's own requests what the rule says to the upload of this request.
    async fn act_on_server(&mut self, x: &mut Exchange<'_>) -> io::Result<()> {
        let bucket = self.shared.hands.lock().clone().ok_or_else(|| io::Error::other("the proxy has no hands"))?;
        let (key, upload) = (x.asked.key.clone(), x.asked.upload_id.clone().unwrap_or_default());
        let action = x.action.clone();
        let done = tokio::task::spawn_blocking(move || match action {
            Action::SpoilPart { part } => bucket.upload_part(&key, &upload, part, b"other bytes").map(|_| ()),
            _ => bucket.abort(&key, &upload),
        });
        done.await.map_err(io::Error::other)??;
        x.hit();
        Ok(())
    }

    /// Status 200 and white space before it is known what came of the request, then that.
    async fn blanks_first(
        &mut self,
        head: &Head,
        x: &mut Exchange<'_>,
        blanks: u32,
        pause: Duration,
        error: Option<String>,
    ) -> io::Result<Next> {
        let body = match error {
            Some(body) => {
                self.drain_request(x).await?;
                body.into_bytes()
            }
            None => {
                let Ok(mut upstream) = self.connect().await else { return Ok(Next::End(End::Reset)) };
                upstream.stream.write_all(&head.to_bytes()).await?;
                while let Some(piece) = self.next_piece(x, PIECE_BYTES).await? {
                    upstream.stream.write_all(&piece).await?;
                }
                let Some(answer) = read_head(&mut upstream.stream, &mut upstream.buf).await? else {
                    return Ok(Next::End(End::Reset));
                };
                if matches!(answer.start, Start::Answer { status: 200..300, .. }) {
                    self.shared.counts.lock().accepted(&x.asked);
                }
                gather(&mut upstream, answer.framing(Some(&x.asked.method))).await?
            }
        };
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        self.writer.write_all(head).await?;
        x.status = Some(200);
        for _ in 0..blanks {
            self.writer.write_all(b"1\r\n \r\n").await?;
            tokio::time::sleep(pause).await;
        }
        x.hit();
        let mut last = format!("{:x}\r\n", body.len()).into_bytes();
        if body.is_empty() {
            last.clear();
        } else {
            last.extend_from_slice(&body);
            last.extend_from_slice(b"\r\n");
        }
        last.extend_from_slice(b"0\r\n\r\n");
        self.writer.write_all(&last).await?;
        Ok(Next::Go)
    }

    /// Sends the request on, with what the rule does to its body, then turns to the answer.
    async fn forward(&mut self, head: &Head, x: &mut Exchange<'_>) -> io::Result<Next> {
        let Ok(mut upstream) = self.connect().await else {
            // As a dead server looks to a client that reached the machine.
            return Ok(Next::End(End::Reset));
        };
        upstream.stream.write_all(&head.to_bytes()).await?;
        // How much of the body passes before something happens.
        let (stop_at, held) = match (&x.action, x.hold) {
            (_, Some(HoldAt::InsideBody { after_bytes })) => (Some(after_bytes), true),
            (Action::CutInsideBody { after_bytes }, _) => (Some(*after_bytes), false),
            _ => (None, false),
        };
        let mut stop_left = stop_at;
        // A server may answer and close before it has the whole body; the client's bytes are then read and dropped.
        let mut takes_more = true;
        loop {
            if stop_left == Some(0) {
                stop_left = None;
                if !held {
                    upstream.stream.flush().await?;
                    x.hit();
                    return Ok(Next::End(End::Reset));
                }
                if !x.hold_at(HoldAt::InsideBody { after_bytes: stop_at.unwrap_or(0) }).await {
                    return Ok(Next::End(End::Reset));
                }
            }
            let max = stop_left.map_or(PIECE_BYTES, |left| usize::try_from(left).unwrap_or(usize::MAX));
            let Some(piece) = self.next_piece(x, max).await? else { break };
            if let Some(left) = &mut stop_left {
                *left -= piece.len() as u64;
            }
            takes_more = takes_more && upstream.stream.write_all(&piece).await.is_ok();
        }
        let answer = loop {
            match read_head(&mut upstream.stream, &mut upstream.buf).await? {
                Some(Head { start: Start::Answer { status: 100..200, .. }, .. }) => {}
                Some(answer) => break answer,
                None => return Ok(Next::End(End::Reset)),
            }
        };
        self.pass_answer(answer, upstream, x).await
    }

    /// Hands the server's answer on, with what the rule does to it.
    async fn pass_answer(
        &mut self,
        mut answer: Head,
        mut upstream: Upstream,
        x: &mut Exchange<'_>,
    ) -> io::Result<Next> {
        let Start::Answer { status, .. } = answer.start else { return Err(io::ErrorKind::InvalidData.into()) };
        let framing = answer.framing(Some(&x.asked.method));
        let mut body = BodyReader::new(framing);
        if (200..300).contains(&status) {
            self.shared.counts.lock().accepted(&x.asked);
        }
        if !x.hold_at(HoldAt::BeforeAnswer).await {
            return Ok(Next::End(End::Reset));
        }
        match x.action.clone() {
            Action::LoseAnswer => {
                while body.next(&mut upstream.stream, &mut upstream.buf, PIECE_BYTES).await?.is_some() {}
                x.hit();
                return Ok(Next::End(End::Reset));
            }
            Action::StallAfterAct => {
                while body.next(&mut upstream.stream, &mut upstream.buf, PIECE_BYTES).await?.is_some() {}
                return self.silence(x).await;
            }
            Action::SlowAnswer { ms } => {
                x.hit();
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            Action::EditJson { .. } | Action::ShortenBody { .. } => {
                let whole = gather(&mut upstream, framing).await?;
                self.keep(upstream, &answer, framing);
                return self.other_body(x, answer, whole).await;
            }
            Action::Answer { status, body: text, headers, acted: true } => {
                while body.next(&mut upstream.stream, &mut upstream.buf, PIECE_BYTES).await?.is_some() {}
                self.keep(upstream, &answer, framing);
                return self.answer(x, status, &headers, &text).await;
            }
            Action::EditAnswer { set, remove } => {
                x.hit();
                answer.remove(|name| {
                    remove.iter().any(|r| match r.strip_suffix('*') {
                        Some(start) => name.starts_with(start),
                        None => name == r,
                    }) || set.iter().any(|(n, _)| n.eq_ignore_ascii_case(name))
                });
                answer.headers.extend(set);
            }
            _ => {}
        }
        self.shared.line_moves().await;
        self.writer.write_all(&answer.to_bytes()).await?;
        x.status = Some(status);
        let (corrupt_at, cut_at) = match x.action {
            Action::CorruptBody { at } => (Some(at), None),
            Action::TruncateBody { after_bytes } | Action::StallInAnswer { after_bytes } => (None, Some(after_bytes)),
            _ => (None, None),
        };
        let mut passed = 0u64;
        loop {
            if cut_at == Some(passed) && matches!(x.action, Action::StallInAnswer { .. }) {
                return self.silence(x).await;
            }
            if cut_at == Some(passed) {
                x.hit();
                // Not with a reset, which could take back bytes that have been sent.
                return Ok(Next::End(End::Closed));
            }
            let max = cut_at.map_or(PIECE_BYTES, |cut| usize::try_from(cut - passed).unwrap_or(usize::MAX));
            let Some(mut piece) = body.next(&mut upstream.stream, &mut upstream.buf, max.min(PIECE_BYTES)).await?
            else {
                break;
            };
            if let Some(at) = corrupt_at.and_then(|at| at.checked_sub(passed)).filter(|at| *at < piece.len() as u64) {
                piece[at as usize] ^= 1;
                x.hit();
            }
            self.slow_down(x, piece.len()).await;
            self.shared.counts.lock().sent_back(&x.asked, piece.len() as u64);
            self.writer.write_all(&piece).await?;
            passed += piece.len() as u64;
        }
        let closes = answer.closes() || framing == Framing::UntilClose;
        self.keep(upstream, &answer, framing);
        Ok(if closes { Next::End(End::Closed) } else { Next::Go })
    }

    /// The client hears nothing more until the rule is released, or until it leaves.
    async fn silence(&mut self, x: &Exchange<'_>) -> io::Result<Next> {
        x.hit();
        let Some(rule) = &x.rule else { return Ok(Next::End(End::Reset)) };
        tokio::select! {
            _ = rule.pass_gate() => {}
            () = gone(self.reader) => {}
        }
        Ok(Next::End(End::Reset))
    }

    /// Hands on an answer whose body is not the server's.
    async fn other_body(&mut self, x: &mut Exchange<'_>, mut answer: Head, whole: Vec<u8>) -> io::Result<Next> {
        let body = match &x.action {
            Action::ShortenBody { keep_bytes } => whole[..whole.len().min(*keep_bytes)].to_vec(),
            Action::EditJson { set } => {
                let mut json: serde_json::Value = serde_json::from_slice(&whole).map_err(io::Error::other)?;
                for (name, value) in set {
                    json[name] = value.as_str().into();
                    if name == "eTag" && answer.header("etag").is_some() {
                        answer.remove(|name| name == "etag");
                        answer.headers.push(("ETag".into(), format!("\"{value}\"")));
                    }
                }
                json.to_string().into_bytes()
            }
            _ => whole,
        };
        answer.remove(|name| matches!(name, "content-length" | "transfer-encoding"));
        answer.headers.push(("Content-Length".into(), body.len().to_string()));
        x.hit();
        let Start::Answer { status, .. } = answer.start else { return Err(io::ErrorKind::InvalidData.into()) };
        x.status = Some(status);
        self.writer.write_all(&answer.to_bytes()).await?;
        self.shared.counts.lock().sent_back(&x.asked, body.len() as u64);
        self.writer.write_all(&body).await?;
        Ok(if answer.closes() { Next::End(End::Closed) } else { Next::Go })
    }

    /// The next piece of the request's body, counted.
    async fn next_piece(&mut self, x: &mut Exchange<'_>, max: usize) -> io::Result<Option<BytesMut>> {
        self.shared.line_moves().await;
        let piece = x.body.next(self.reader, &mut self.buf, max.min(PIECE_BYTES)).await?;
        if let Some(piece) = &piece {
            self.shared.counts.lock().received(&x.asked, piece.len() as u64);
            self.slow_down(x, piece.len()).await;
        }
        Ok(piece)
    }

    async fn drain_request(&mut self, x: &mut Exchange<'_>) -> io::Result<()> {
        while self.next_piece(x, PIECE_BYTES).await?.is_some() {}
        Ok(())
    }

    async fn slow_down(&self, x: &Exchange<'_>, bytes: usize) {
        self.shared.pace(bytes).await;
        if let Action::Throttle { bytes_per_s } = x.action {
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / bytes_per_s.max(1) as f64)).await;
        }
    }

    /// Sends an answer of the proxy's own.
    async fn answer(
        &mut self,
        x: &mut Exchange<'_>,
        status: u16,
        headers: &[(String, String)],
        body: &str,
    ) -> io::Result<Next> {
        let mut head = Head { start: Start::Answer { status, reason: "Fault".into() }, headers: headers.to_vec() };
        head.headers.push(("content-length".into(), body.len().to_string()));
        let mut bytes = head.to_bytes();
        if x.asked.method != "HEAD" {
            bytes.extend_from_slice(body.as_bytes());
        }
        x.hit();
        self.writer.write_all(&bytes).await?;
        x.status = Some(status);
        Ok(Next::Go)
    }

    /// The kept connection to the server if it still stands, or a new one.
    async fn connect(&mut self) -> io::Result<Upstream> {
        if let Some(upstream) = self.upstream.take() {
            let mut probe = [0; 1];
            // Readable while idle means: the server closed it (or said something nobody asked for).
            if matches!(upstream.stream.try_read(&mut probe), Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
                return Ok(upstream);
            }
        }
        let addr = *self.shared.upstream.lock();
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Upstream { stream, buf: BytesMut::new() })
    }

    fn keep(&mut self, upstream: Upstream, answer: &Head, framing: Framing) {
        if !answer.closes() && framing != Framing::UntilClose && upstream.buf.is_empty() {
            self.upstream = Some(upstream);
        }
    }
}

/// Ends when the client has left. One that leaves with more on the way than fits into the buffers is not noticed.
async fn gone(reader: &OwnedReadHalf) {
    while matches!(reader.ready(Interest::READABLE).await, Ok(ready) if !ready.is_read_closed()) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The body of an answer without its framing.
async fn gather(upstream: &mut Upstream, framing: Framing) -> io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    let mut body = BodyReader::new(framing);
    while let Some(piece) = body.next(&mut upstream.stream, &mut upstream.buf, PIECE_BYTES).await? {
        raw.extend_from_slice(&piece);
    }
    if framing != Framing::Chunked {
        return Ok(raw);
    }
    let mut whole = Vec::new();
    let mut rest = raw.as_slice();
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let line = String::from_utf8_lossy(&rest[..at]);
        let len = usize::from_str_radix(line.split(';').next().unwrap_or("").trim(), 16).map_err(io::Error::other)?;
        rest = &rest[at + 2..];
        if len == 0 || rest.len() < len + 2 {
            break;
        }
        whole.extend_from_slice(&rest[..len]);
        rest = &rest[len + 2..];
    }
    Ok(whole)
}
