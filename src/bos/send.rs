//! One call from its parts to its answer: signed anew for every try, watched for stalls, retried as the policy says.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use reqwest::Response;

use super::body::{Body, GiveUpOnDrop, Sending, SlicedBody};
use super::client::BosClientConfig;
use super::endpoint::Target;
use super::error::{BosError, BosErrorKind, Story};
use super::failure::{Failure, error_chain};
use super::header_text::{to_wire, trimmed};
use super::line::Line;
use super::retry::{Decision, FailedTry, Progress, Remedy, RetryPolicy};
use super::sign::{self, SignedHeaders, SignedParts};
use super::wire::{self, WireError};

/// Longest error body that is read.
const ERROR_BYTES_MAX: u64 = 64 << 10;

/// A change of our clock's difference to BOS's beyond this is worth a line in the log.
const CLOCK_DRIFT_S: u64 = 60;

/// A call of the API, before it is signed.
pub(crate) struct Call<'a> {
    /// Name in BOS's documentation.
    pub(crate) name: &'static str,
    pub(crate) method: Method,
    /// `None`: a call on the bucket.
    pub(crate) key: Option<&'a str>,
    /// Parameters as meant, not encoded.
    pub(crate) query: Vec<(String, String)>,
    /// Headers besides Host, Content-Length, the date and the token.
    pub(crate) headers: Vec<(HeaderName, String)>,
    /// `Some`, also of no bytes, where the method has a body (PUT, POST).
    pub(crate) body: Option<Body>,
    /// A repeat after a try without an understood answer does no harm.
    pub(crate) idempotent: bool,
    /// No trouble that passes by itself is waited out here: before a repeat the caller looks what is there.
    pub(crate) once: bool,
    pub(crate) policy: &'a RetryPolicy,
    /// BOS works before it answers.
    pub(crate) works_long: bool,
    /// Signed with this time; `None`: with the present one, valid for the usual time.
    pub(crate) signed: Option<SignedAt>,
}

/// When a request was signed, by BOS's clock, and how long it is worth something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignedAt {
    /// Seconds since 1970.
    pub(crate) at_s: i64,
    pub(crate) valid_for_s: i64,
}

/// A success, its body read.
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What every call of one client shares.
pub(crate) struct Sender {
    pub(crate) config: BosClientConfig,
    pub(crate) target: Target,
    http: reqwest::Client,
    /// Our clock is this many seconds behind BOS's.
    clock_ahead_s: AtomicI64,
    /// Tries sent by method: GET, HEAD, PUT, POST, DELETE.
    counts: [AtomicU64; 5],
    pub(crate) line: Line,
}

impl Sender {
    pub(crate) fn new(config: BosClientConfig) -> Result<Self, BosError> {
        let target = Target::new(&config.endpoint, &config.bucket, config.path_style)?;
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(config.user_agent.clone())
            .connect_timeout(config.connect_timeout)
            .pool_idle_timeout(config.pool_idle_timeout)
            .pool_max_idle_per_host(config.idle_connections_max)
            .tcp_nodelay(true)
            // A line that is cut is noticed within half a minute, however long BOS may take to answer.
            .tcp_keepalive(Duration::from_secs(15))
            .tcp_keepalive_interval(Duration::from_secs(5))
            .tcp_keepalive_retries(3u32)
            // Each call is watched here, by time in which this process runs. The kernel counts also while it is stopped, and
            // would cut a body that a busy server leaves standing for half a minute.
            .tcp_user_timeout(None);
        if target.loopback {
            builder = builder.no_proxy();
        }
        if target.scheme == "http" {
            // No certificates are needed, so a machine without any can still use a plain endpoint.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| {
            let hint = match target.scheme {
                "https" => "; are the CA certificates of this machine installed (package ca-certificates)?",
                _ => "",
            };
            let message = format!("cannot set up HTTP: {}{hint}", error_chain(&error.without_url()));
            BosError::new(BosErrorKind::Refused, message)
        })?;
        Ok(Self {
            config,
            target,
            http,
            clock_ahead_s: AtomicI64::new(0),
            counts: Default::default(),
            line: Line::default(),
        })
    }

    /// Tries sent so far: GET, HEAD, PUT, POST, DELETE.
    pub(crate) fn counts(&self) -> [u64; 5] {
        std::array::from_fn(|i| self.counts[i].load(Ordering::Relaxed))
    }

    /// Seconds since 1970 by BOS's clock, as far as it is known.
    pub(crate) fn bos_now_s(&self) -> i64 {
        unix_now_s().saturating_add(self.clock_ahead_s.load(Ordering::Relaxed))
    }

    pub(crate) fn story(&self, call: &Call<'_>) -> Story {
        Story {
            call: call.name,
            endpoint: self.target.endpoint.clone(),
            bucket: self.target.bucket.clone(),
            key: call.key.map(str::to_owned),
            ..Story::default()
        }
    }

    /// Sends until a try succeeds and `read` accepts its answer, or no further try is worth it.
    pub(crate) async fn gather<T>(
        &self,
        call: &Call<'_>,
        body_bytes_max: u64,
        read: impl Fn(Answer) -> Result<T, Failure> + Send + Sync,
    ) -> Result<T, BosError>
    where
        T: Send,
    {
        let mut tries = Tries::new(self, call);
        loop {
            let failure = match self.gather_once(call, body_bytes_max, tries.remaining()).await.and_then(&read) {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            tries.settle(failure).await?;
        }
    }

    /// One try.
    pub(crate) async fn gather_once(
        &self,
        call: &Call<'_>,
        body_bytes_max: u64,
        remaining: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let mut response = self.open_once(call, remaining).await?;
        let (status, headers) = (response.status().as_u16(), std::mem::take(response.headers_mut()));
        let body = if call.method == Method::HEAD {
            Bytes::new()
        } else {
            let within = body_time(call, remaining);
            read_body(&mut response, &headers, body_bytes_max, call.policy.stall_timeout, within).await?
        };
        // Copies (documented) and perhaps Complete answer 200 first and put an error into the body.
        if call.method != Method::GET && WireError::in_body(&body).is_some() {
            return Err(Failure::of_answer(call, status, &headers, &body, false));
        }
        // A success of these says nothing that could be checked, and something on the way may say "200" to anything.
        let says_nothing = call.method == Method::DELETE || call.name == "DeleteMultipleObjects";
        if says_nothing && wire::text(&headers, "x-bce-request-id").is_none() {
            return Err(Failure::odd(&headers, "an answer that is not BOS's (no x-bce-request-id)".to_owned()));
        }
        Ok(Answer { headers, body })
    }

    /// One try, up to the head of a success; error answers are read here.
    pub(crate) async fn open_once(&self, call: &Call<'_>, remaining: Option<Duration>) -> Result<Response, Failure> {
        let credentials = self.config.credentials.current();
        let (request, sending) = self.request(call, &credentials)?;
        self.count(&call.method);
        log::trace!("{} {}", call.name, call.key.unwrap_or_default());
        let answer_timeout = if call.works_long { call.policy.work_timeout } else { call.policy.answer_timeout };
        let answer_timeout = remaining.map_or(answer_timeout, |remaining| answer_timeout.min(remaining));
        let watched = watch(self.http.execute(request), &sending, answer_timeout, call.policy.stall_timeout);
        // Once an answer is there, the rest of a body is of no use to anyone: the guard ends with this call.
        let _guard = GiveUpOnDrop(sending.clone());
        let (began, at) = (Instant::now(), crate::object::Timestamp::now());
        let no_answer = |failure: Failure| {
            if failure.kind == BosErrorKind::Network {
                self.line.failed(began, at, &failure.message);
            }
            Err(failure)
        };
        let mut response = match watched.await {
            Some(Ok(response)) => response,
            Some(Err(error)) => return no_answer(Failure::of_transport(&error.without_url(), &sending)),
            None if sending.is_finished() => {
                let message = format!("no answer within {:.0?} after the request was sent", answer_timeout);
                return no_answer(Failure::stalled(true, message));
            }
            None => {
                let message = format!(
                    "no byte of the body moved for {:.0?}, after {} bytes",
                    call.policy.stall_timeout,
                    sending.sent()
                );
                return no_answer(Failure::stalled(true, message));
            }
        };
        self.line.answered();
        let status = response.status().as_u16();
        // 203: the call itself succeeded, a callback after it did not (BOS docs, error codes).
        if (200..300).contains(&status) {
            return Ok(response);
        }
        let headers = std::mem::take(response.headers_mut());
        let body = match call.method {
            Method::HEAD => Bytes::new(),
            _ => {
                let within = body_time(call, remaining);
                let stall = call.policy.stall_timeout;
                read_body(&mut response, &headers, ERROR_BYTES_MAX, stall, within).await.unwrap_or_default()
            }
        };
        let failure = Failure::of_answer(call, status, &headers, &body, credentials.session_token.is_some());
        Err(Failure { refused: Some(credentials), ..failure })
    }

    fn request(
        &self,
        call: &Call<'_>,
        credentials: &sign::Credentials,
    ) -> Result<(reqwest::Request, Arc<Sending>), Failure> {
        let invalid = |message: String| Failure::new(BosErrorKind::InvalidName, false, message);
        let path = self.target.path(call.key);
        let url = self.target.url(&path, &call.query).map_err(|error| invalid(error.to_string()))?;
        let usual = SignedAt { at_s: self.bos_now_s(), valid_for_s: sign::VALID_FOR_S };
        let SignedAt { at_s, valid_for_s } = call.signed.unwrap_or(usual);
        let len = call.body.as_ref().map(Body::len);

        let mut signed = vec![
            ("host".to_owned(), self.target.host.clone()),
            ("x-bce-date".to_owned(), sign::format_timestamp(at_s)),
        ];
        if let Some(token) = &credentials.session_token {
            signed.push(("x-bce-security-token".to_owned(), token.clone()));
        }
        if let Some(len) = len {
            signed.push(("content-length".to_owned(), len.to_string()));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &call.headers {
            if sign::is_default_header(name.as_str()) {
                signed.push((name.as_str().to_owned(), value.clone()));
            } else {
                headers.append(name, stored_value(value).map_err(invalid)?);
            }
        }
        // Empty values are never signed, and BOS stores none: leaving them out keeps both sides in step.
        signed.retain(|(_, value)| !trimmed(value).is_empty());
        let mut names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let parts = SignedParts { method: call.method.as_str(), path: &path, query: &call.query, headers: &signed };
        let authorization = sign::authorization(credentials, at_s, valid_for_s, parts, SignedHeaders::Listed(&names));
        for (name, value) in &signed {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| invalid(format!("{name:?} cannot be the name of a header")))?;
            let mut value = stored_value(value).map_err(invalid)?;
            value.set_sensitive(name == "x-bce-security-token");
            headers.append(name, value);
        }
        let mut authorization = HeaderValue::from_str(&authorization).map_err(|_| {
            Failure::new(BosErrorKind::Denied, false, "the access key ID has characters no header takes")
        })?;
        authorization.set_sensitive(true);
        headers.insert(http::header::AUTHORIZATION, authorization);

        let mut request = reqwest::Request::new(call.method.clone(), url);
        *request.headers_mut() = headers;
        let sending = match (&call.body, len) {
            (Some(body), Some(len)) if len > 0 => {
                let (sliced, sending) = SlicedBody::new(body.clone(), len);
                *request.body_mut() = Some(reqwest::Body::wrap(sliced));
                sending
            }
            _ => SlicedBody::new(Body::Bytes(Bytes::new()), 0).1,
        };
        Ok((request, sending))
    }

    fn count(&self, method: &Method) {
        let index = match method.as_str() {
            "GET" => 0,
            "HEAD" => 1,
            "PUT" => 2,
            "POST" => 3,
            _ => 4,
        };
        self.counts[index].fetch_add(1, Ordering::Relaxed);
    }
}

/// The tries of one call.
pub(crate) struct Tries<'a> {
    sender: &'a Sender,
    call: &'a Call<'a>,
    /// When the present try began.
    began: Instant,
    progress: Progress,
    /// Some try, not only the last, may have been acted upon.
    ambiguous: bool,
}

impl<'a> Tries<'a> {
    pub(crate) fn new(sender: &'a Sender, call: &'a Call<'a>) -> Self {
        let progress = Progress {
            tries: 0,
            elapsed: Duration::ZERO,
            reloaded: false,
            clock_corrected: false,
            idempotent: call.idempotent,
        };
        Self { sender, call, began: Instant::now(), progress, ambiguous: false }
    }

    /// Time left until the policy's deadline.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.call.policy.deadline.map(|deadline| deadline.saturating_sub(self.progress.elapsed))
    }

    /// Something else that belongs to the call took this long; the next try begins now.
    pub(crate) fn passed(&mut self, took: Duration) {
        let policy = self.call.policy;
        self.progress.elapsed += took.min(policy.answer_timeout + policy.stall_timeout);
        self.began = Instant::now();
    }

    /// How long the present try took. It watches its own time, so what is beyond that passed while this process was
    /// stopped, and does not count.
    fn present_try(&self) -> Duration {
        let policy = self.call.policy;
        let longest = policy.answer_timeout.max(policy.work_timeout) + policy.stall_timeout;
        let whole = if self.call.body.is_some() { Duration::MAX } else { longest };
        self.began.elapsed().min(whole)
    }

    /// After a failed try: mends and waits before the next one, or gives the error that ends the call.
    pub(crate) async fn settle(&mut self, failure: Failure) -> Result<(), BosError> {
        self.progress.tries += 1;
        self.progress.elapsed += self.present_try();
        self.ambiguous |= failure.ambiguous;
        let failed = FailedTry {
            kind: failure.kind,
            code: &failure.code,
            ambiguous: failure.ambiguous,
            clock_suspect: failure.clock_suspect,
            credentials_suspect: failure.credentials_suspect,
            retry_after: failure.retry_after,
        };
        let Decision::Retry { after, remedy } = self.call.policy.decide(failed, self.progress, rand::random()) else {
            return Err(self.error(failure));
        };
        match remedy {
            Remedy::None if self.call.once => return Err(self.error(failure)),
            Remedy::None => {}
            Remedy::ReloadCredentials => {
                self.progress.reloaded = true;
                let provider = self.sender.config.credentials.clone();
                let refused = failure.refused.clone();
                let reload = move || refused.is_some_and(|refused| provider.reload(&refused));
                let renewed = tokio::task::spawn_blocking(reload).await.unwrap_or(false);
                // A signature can also have been hurt on the way, so that one gets its second try in any case.
                if !renewed && *failure.code != *"SignatureDoesNotMatch" {
                    return Err(self.error(failure));
                }
            }
            Remedy::CorrectClock => {
                self.progress.clock_corrected = true;
                if let Some(ahead_s) = failure.clock_ahead_s {
                    let known_s = self.sender.clock_ahead_s.load(Ordering::Relaxed);
                    if known_s.abs_diff(ahead_s) > CLOCK_DRIFT_S {
                        log::warn!("the clock of this machine is {} s off BOS's; corrected for requests", -ahead_s);
                    }
                    self.sender.clock_ahead_s.store(ahead_s, Ordering::Relaxed);
                }
            }
        }
        log::debug!(
            "{} {}: try {} failed ({:?} {}: {}), next in {after:.1?}",
            self.call.name,
            self.call.key.unwrap_or_default(),
            self.progress.tries,
            failure.kind,
            failure.code,
            failure.message
        );
        tokio::time::sleep(after).await;
        self.progress.elapsed += after;
        self.began = Instant::now();
        Ok(())
    }

    fn error(&self, failure: Failure) -> BosError {
        let story = Story {
            status: failure.status,
            code: failure.code.into(),
            message: failure.message.into(),
            request_id: failure.request_id.map(String::from),
            tries: self.progress.tries,
            elapsed: self.progress.elapsed,
            timed_out: failure.timed_out,
            hierarchical: failure.hierarchical,
            keys_fixed: !self.sender.config.credentials.can_renew(),
            ..self.sender.story(self.call)
        };
        BosError::with_story(failure.kind, self.ambiguous, story)
    }
}

/// Awaits `answer`; `None` when the body stands still for `stall` or, once it is sent, no answer comes for `patience`.
async fn watch<F: Future>(answer: F, sending: &Sending, patience: Duration, stall: Duration) -> Option<F::Output> {
    let mut answer = std::pin::pin!(answer);
    let tick = tick_of(patience.min(stall));
    // Waiting is counted in ticks, not by the clock: time in which this process was stopped does not count.
    let (mut quiet, mut seen) = (Duration::ZERO, (0, false));
    loop {
        if let Ok(output) = tokio::time::timeout(tick, &mut answer).await {
            return Some(output);
        }
        let now = (sending.sent(), sending.is_finished());
        quiet = if now == seen { quiet + tick } else { Duration::ZERO };
        seen = now;
        if quiet >= if now.1 { patience } else { stall } {
            return None;
        }
    }
}

fn tick_of(limit: Duration) -> Duration {
    (limit / 8).clamp(Duration::from_millis(1), Duration::from_secs(1))
}

/// The next piece of an answer's body, waiting at most `stall`.
pub(crate) async fn next_piece(response: &mut Response, stall: Duration) -> Result<Option<Bytes>, Failure> {
    let idle = Sending::default();
    match watch(response.chunk(), &idle, stall, stall).await {
        Some(Ok(piece)) => Ok(piece),
        Some(Err(error)) => {
            let message = format!("the answer broke off: {}", error_chain(&error.without_url()));
            Err(Failure::new(BosErrorKind::Network, true, message))
        }
        None => Err(Failure::stalled(true, format!("no byte of the answer came for {stall:.0?}"))),
    }
}

/// How long the body of an answer may take to come, however it trickles. Not that of an object's bytes.
fn body_time(call: &Call<'_>, remaining: Option<Duration>) -> Duration {
    remaining.unwrap_or(call.policy.work_timeout)
}

/// A whole body of at most `bytes_max` bytes, as long as announced, within the time `within`.
async fn read_body(
    response: &mut Response,
    headers: &HeaderMap,
    bytes_max: u64,
    stall: Duration,
    within: Duration,
) -> Result<Bytes, Failure> {
    let announced = content_length(headers);
    let mut body = BytesMut::with_capacity(announced.unwrap_or_default().min(bytes_max) as usize);
    let mut left = within;
    loop {
        let asked_at = Instant::now();
        let patience = stall.min(left).max(Duration::from_millis(1));
        let Some(piece) = next_piece(response, patience).await? else { break };
        // Time in which this process was stopped counts as one wait at most.
        left = left.saturating_sub(asked_at.elapsed().min(patience));
        if left.is_zero() {
            return Err(Failure::stalled(true, format!("the answer was not over after {within:.0?}")));
        }
        if (body.len() + piece.len()) as u64 > bytes_max {
            return Err(Failure::odd(headers, format!("the answer has more than {bytes_max} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    if announced.is_some_and(|announced| announced != body.len() as u64) {
        return Err(Failure::odd(headers, format!("the answer ended after {} bytes", body.len())));
    }
    Ok(body.freeze())
}

/// `Content-Length` of an answer.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    wire::text(headers, "content-length")?.trim().parse().ok()
}

/// The value as it came over the wire, or as it was made here.
fn stored_value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_bytes(&to_wire(text)).map_err(|_| "a header has characters that cannot be sent".to_owned())
}

pub(crate) fn unix_now_s() -> i64 {
    crate::object::Timestamp::now().sec
}
