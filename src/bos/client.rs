//! A client of one bucket: its configuration, the calls on the bucket itself, and listings.
//!
//! Which calls are repeated after a try that was not answered: all but Initiate, Complete, PutObject with a condition,
//! and a copy of an object onto itself with a condition. Those could act twice, or be refused by their own first
//! success; their error says [`BosError::is_ambiguous`] and the caller finds out what became of them. A delete is repeated only
//! behind another look (see [`delete`](super::delete)), and so does whoever copies onto a key of which he demands something.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method, header};

pub use super::body::{Body, BodySource};
pub use super::delete::{Known, PageAt, PageRemoved, Removed, SeenObject, SeenPage};
pub use super::get::{GetObject, given_range};
pub use super::model::{
    BucketInfo, CopyOutcome, ListPage, ListedObject, ListedPart, ListedUpload, ObjectHeaders, ObjectMeta,
    StoredOutcome, UploadsMarker, UploadsPage, stored_between,
};
pub use super::objects::is_archive_class;

use super::credentials::CredentialsProvider;
use super::error::{BosError, BosErrorKind};
use super::failure::Failure;
use super::line::LineDown;
use super::retry::RetryPolicy;
use super::send::{Answer, Call, Sender};
use super::sign::presigned_url;
use super::wire::{self, ANSWER_BYTES_MAX, WireListObjects, WireListUploads, WireLocation};
use crate::object::ObjectKey;

pub(crate) type Result<T, E = BosError> = std::result::Result<T, E>;

/// Most keys of a page, and most keys of a batch delete (BOS docs).
pub const PAGE_KEYS_MAX: u32 = 1000;
/// Pages without an entry that a listing may have, all in all, before it is taken for an endless one.
pub const EMPTY_PAGES_MAX: usize = 100;

/// Where and as whom a client speaks, and how patient it is.
#[derive(Clone, Debug)]
pub struct BosClientConfig {
    /// Host, with optional scheme and port. Without a scheme: https, but http for IP addresses and `localhost`.
    pub endpoint: String,
    /// Bucket.
    pub bucket: String,
    /// Asked for every try.
    pub credentials: Arc<dyn CredentialsProvider>,
    /// Bucket in the path instead of the host name; `None`: only for IP addresses and `localhost`.
    pub path_style: Option<bool>,
    /// For calls that someone waits for: look-ups, listings, reads, deletes, Initiate.
    pub retry: RetryPolicy,
    /// For calls that carry or move data: PutObject, UploadPart, copies, Complete.
    pub data_retry: RetryPolicy,
    /// Longest time to resolve, connect and agree on TLS.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. Short: a request on one that the server just closed gets no answer.
    pub pool_idle_timeout: Duration,
    /// Unused connections kept at most.
    pub idle_connections_max: usize,
    /// `User-Agent`.
    pub user_agent: String,
}

impl BosClientConfig {
    /// With defaults for everything else.
    pub fn new(
        endpoint: impl Into<String>,
        bucket: impl Into<String>,
        credentials: Arc<dyn CredentialsProvider>,
    ) -> Self {
        Self {
            endpoint: endpoint.into(),
            bucket: bucket.into(),
            credentials,
            path_style: None,
            retry: RetryPolicy::interactive(),
            data_retry: RetryPolicy::data(),
            connect_timeout: Duration::from_secs(8),
            pool_idle_timeout: Duration::from_secs(20),
            idle_connections_max: 64,
            user_agent: concat!("bosfs/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Tries sent by one client, by method. For logs; a repeat counts again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RequestCounts {
    /// Reads and listings.
    pub get: u64,
    /// HEAD.
    pub head: u64,
    /// PutObject, UploadPart and copies.
    pub put: u64,
    /// Initiate, Complete and batch deletes.
    pub post: u64,
    /// Deletes and aborts.
    pub delete: u64,
}

/// A client of one bucket. Cheap to clone. Dropping the future of a method stops its request.
#[derive(Clone)]
pub struct BosClient {
    pub(super) sender: Arc<Sender>,
}

impl fmt::Debug for BosClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BosClient").field("config", &self.sender.config).finish_non_exhaustive()
    }
}

impl BosClient {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// An endpoint or bucket name that cannot be, or a machine without certificates for https.
    pub fn new(config: BosClientConfig) -> Result<Self> {
        Ok(Self { sender: Arc::new(Sender::new(config)?) })
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.sender.target.bucket
    }

    /// The endpoint with its scheme, without the bucket.
    pub fn endpoint(&self) -> &str {
        &self.sender.target.endpoint
    }

    /// Tries sent so far.
    pub fn requests_sent(&self) -> RequestCounts {
        let [get, head, put, post, delete] = self.sender.counts();
        RequestCounts { get, head, put, post, delete }
    }

    /// Since when BOS answers nothing at all; `None`: the last request was answered, or none was sent yet.
    pub fn line_down(&self) -> Option<LineDown> {
        self.sender.line.down()
    }

    /// `HEAD /`.
    pub async fn head_bucket(&self) -> Result<BucketInfo> {
        let call = self.call("HeadBucket", Method::HEAD, None);
        self.sender
            .gather(&call, 0, |answer| {
                Ok(BucketInfo {
                    region: wire::text(&answer.headers, "x-bce-bucket-region"),
                    hierarchical: wire::is_hierarchical(&answer.headers),
                })
            })
            .await
    }

    /// `GET /?location`: the region's code. Another region's endpoint may be asked too, so this finds the right endpoint,
    /// `CODE.bcebos.com`, of a bucket that is "not there".
    pub async fn location(&self) -> Result<String> {
        let mut call = self.call("GetBucketLocation", Method::GET, None);
        call.query = query([("location", "")]);
        self.sender.gather(&call, ANSWER_BYTES_MAX, json(|wire: WireLocation| Ok(wire.location_constraint))).await
    }

    /// `PUT /`: creates the bucket. `false`: there is one of that name already, perhaps someone else's.
    pub async fn create_bucket(&self) -> Result<bool> {
        let mut call = self.call("PutBucket", Method::PUT, None);
        call.body = Some(Body::Bytes(bytes::Bytes::new()));
        match self.sender.gather(&call, ANSWER_BYTES_MAX, |_| Ok(true)).await {
            Err(error) if error.story().code == "BucketAlreadyExists" => Ok(false),
            other => other,
        }
    }

    /// ListObjects, one page of at most `max_keys` (1..=1000).
    ///
    /// With a delimiter, go on with nothing but `next_marker`: it may be a key inside the last common prefix.
    pub async fn list_objects(
        &self,
        prefix: &str,
        delimiter: Option<char>,
        marker: Option<&str>,
        max_keys: u32,
    ) -> Result<ListPage> {
        Ok(self.list_dated(&self.sender.config.retry, prefix, delimiter, marker, max_keys).await?.0)
    }

    /// [`BosClient::list_objects`], and BOS's time of the answer, seconds since 1970, where it told it.
    pub(super) async fn list_dated(
        &self,
        policy: &RetryPolicy,
        prefix: &str,
        delimiter: Option<char>,
        marker: Option<&str>,
        max_keys: u32,
    ) -> Result<(ListPage, Option<i64>)> {
        let mut call = Call { policy, ..self.call("ListObjects", Method::GET, None) };
        call.headers.push(strong_view());
        call.query = query([("maxKeys", max_keys.clamp(1, PAGE_KEYS_MAX).to_string().as_str())]);
        if !prefix.is_empty() {
            call.query.push(("prefix".to_owned(), prefix.to_owned()));
        }
        if let Some(delimiter) = delimiter {
            call.query.push(("delimiter".to_owned(), delimiter.to_string()));
        }
        let marker = marker.filter(|marker| !marker.is_empty());
        if let Some(marker) = marker {
            call.query.push(("marker".to_owned(), marker.to_owned()));
        }
        let read = json(|wire: WireListObjects| wire.into_page(prefix, marker));
        let dated = |answer: Answer| {
            let date = wire::answer_date(&answer.headers);
            Ok((read(answer)?, date))
        };
        self.sender.gather(&call, ANSWER_BYTES_MAX, dated).await
    }

    /// ListMultipartUploads, one page.
    pub async fn list_uploads(&self, prefix: &str, marker: Option<&UploadsMarker>) -> Result<UploadsPage> {
        let mut call = self.call("ListMultipartUploads", Method::GET, None);
        call.query = query([("uploads", ""), ("maxUploads", PAGE_KEYS_MAX.to_string().as_str())]);
        if !prefix.is_empty() {
            call.query.push(("prefix".to_owned(), prefix.to_owned()));
        }
        if let Some(marker) = marker {
            call.query.push(("keyMarker".to_owned(), marker.key.clone()));
            if let Some(upload_id) = &marker.upload_id {
                call.query.push(("uploadIdMarker".to_owned(), upload_id.clone()));
            }
        }
        self.sender.gather(&call, ANSWER_BYTES_MAX, json(|wire: WireListUploads| wire.into_page(prefix, marker))).await
    }

    /// Days after which a lifecycle rule of the bucket aborts unfinished uploads under `prefix`; `None`: no such rule.
    /// 0: one exists whose time is fixed or not understood. An error: it is not known whether there is one.
    pub async fn abort_rule_days(&self, prefix: &str) -> Result<Option<u32>> {
        let mut call = self.call("GetBucketLifecycle", Method::GET, None);
        call.query = query([("lifecycle", "")]);
        let read = json(|wire: wire::WireLifecycle| Ok(wire.abort_days(self.bucket(), prefix)));
        match self.sender.gather(&call, ANSWER_BYTES_MAX, read).await {
            // Without rules BOS answers 404 with a code of its own, such as NoSuchLifecycleConfiguration. Any other 404 is about
            // something else, and says nothing of the rules.
            Err(error) if error.story().status == Some(404) && error.story().code.contains("Lifecycle") => Ok(None),
            other => other,
        }
    }

    /// A link with which anyone can GET `key` for `valid_for_s` seconds. It is a secret: do not log it.
    pub fn presign_get(&self, key: &ObjectKey, valid_for_s: u32) -> String {
        let target = &self.sender.target;
        let credentials = self.sender.config.credentials.current();
        let path = target.path(Some(key.as_str()));
        let now_s = self.sender.bos_now_s();
        presigned_url(&credentials, now_s, valid_for_s.into(), target.scheme, &target.host, "GET", &path)
    }

    /// A call of the interactive kind, without parameters, headers or body; idempotent.
    pub(super) fn call<'a>(&'a self, name: &'static str, method: Method, key: Option<&'a ObjectKey>) -> Call<'a> {
        Call {
            name,
            method,
            key: key.map(ObjectKey::as_str),
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
            idempotent: true,
            policy: &self.sender.config.retry,
            works_long: false,
            once: false,
            signed: None,
        }
    }

    /// A call of the data kind.
    pub(super) fn data_call<'a>(&'a self, name: &'static str, method: Method, key: &'a ObjectKey) -> Call<'a> {
        Call { policy: &self.sender.config.data_retry, ..self.call(name, method, Some(key)) }
    }
}

/// Asks for a list of what is there now, where BOS would else be content with what was there a moment ago. Known of
/// ListObjects and ListParts (Baidu's own connector sends it with every one); ListMultipartUploads is not known to take it.
pub(super) fn strong_view() -> (HeaderName, String) {
    (HeaderName::from_static("x-bce-consistency-view"), "strong".to_owned())
}

pub(super) fn query<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Reads an answer's JSON with `convert`; an empty or odd one is a [`BosErrorKind::BadAnswer`].
pub(super) fn json<W, T>(
    convert: impl Fn(W) -> Result<T, wire::Odd> + Send + Sync,
) -> impl Fn(Answer) -> Result<T, Failure> + Send + Sync
where
    W: for<'de> serde::Deserialize<'de>,
{
    move |answer| {
        let odd = |message| Failure::odd(&answer.headers, message);
        let wire: Option<W> = wire::parse(&answer.body).map_err(odd)?;
        convert(wire.ok_or_else(|| odd("the answer is empty".to_owned()))?).map_err(odd)
    }
}

/// The headers that store `headers` with an object.
///
/// # Errors
/// A metadata name that no header can have.
pub(super) fn stored_headers(headers: &ObjectHeaders) -> Result<Vec<(HeaderName, String)>> {
    let mut list = Vec::new();
    let plain = [
        (header::CONTENT_TYPE, &headers.content_type),
        (header::CACHE_CONTROL, &headers.cache_control),
        (header::CONTENT_ENCODING, &headers.content_encoding),
        (header::CONTENT_DISPOSITION, &headers.content_disposition),
        (header::EXPIRES, &headers.expires),
        (HeaderName::from_static("x-bce-storage-class"), &headers.storage_class),
    ];
    for (name, value) in plain {
        if let Some(value) = value {
            list.push((name, value.clone()));
        }
    }
    list.append(&mut metadata_headers(headers)?);
    Ok(list)
}

/// The `x-bce-meta-*` headers of `headers`.
///
/// # Errors
/// A name that no header can have.
pub(super) fn metadata_headers(headers: &ObjectHeaders) -> Result<Vec<(HeaderName, String)>> {
    let entry = |(name, value): (&String, &String)| {
        let header = HeaderName::try_from(format!("x-bce-meta-{name}")).map_err(|_| {
            BosError::new(
                BosErrorKind::InvalidName,
                format!("{name:?} cannot be the name of metadata: letters, digits and hyphens only; nothing was sent"),
            )
        })?;
        Ok((header, value.clone()))
    };
    headers.metadata.iter().map(entry).collect()
}
