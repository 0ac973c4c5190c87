//! One function per call: from a checked request to an answer.

mod buckets;
mod multipart;
mod objects;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use http::{Response, StatusCode};
use hyper::body::Incoming;

use super::Shared;
use super::answer::{Answer, request_id};
use super::body::{ReplyBody, RequestBody};
use super::error::ApiError;
use super::request::{Call, Request};

/// Serves one request.
pub async fn serve(shared: Arc<Shared>, request: http::Request<Incoming>) -> Response<ReplyBody> {
    let id = request_id();
    let (parts, incoming) = request.into_parts();
    let has_body = parts.method != http::Method::HEAD;
    let expects = parts.headers.contains_key("expect");
    let received = Arc::new(AtomicU64::new(0));
    let mut body = RequestBody::new(incoming, received.clone());
    let is_bucket = |name: &str| shared.store.snapshot().and_then(|snapshot| snapshot.bucket(name)).is_ok();
    let request = Request::parse(parts, &shared.base_host, is_bucket);
    let call = request.as_ref().map_or(Call::Unknown, |request| request.call);
    // The count outlives a client that goes away in the middle: it is made when this is dropped.
    let _count = shared.counts.count(call, received);
    let outcome = match request {
        Ok(request) => act(&shared, &request, &mut body).await,
        Err(error) => Err(error),
    };
    let answer = match outcome {
        Ok(answer) => answer,
        Err(error) => {
            // A client that waits for 100 Continue sends nothing now; others are heard out so that they see the answer.
            if !expects {
                body.drain().await;
            }
            log::debug!("{call:?} refused: {error}");
            Answer::error(&error, &id, has_body && error.status != StatusCode::NOT_MODIFIED)
        }
    };
    answer.finish(&id)
}

async fn act(shared: &Arc<Shared>, request: &Request, body: &mut RequestBody) -> Result<Answer, ApiError> {
    request.check_signature(&shared.credentials)?;
    match request.call {
        Call::ListBuckets => buckets::list(shared),
        Call::PutBucket => buckets::put(shared, request).await,
        Call::HeadBucket => buckets::head(shared, request),
        Call::DeleteBucket => buckets::delete(shared, request).await,
        Call::GetBucketLocation => buckets::location(shared, request),
        Call::GetBucketLifecycle => buckets::get_lifecycle(shared, request),
        Call::PutBucketLifecycle => buckets::put_lifecycle(shared, request, body).await,
        Call::DeleteBucketLifecycle => buckets::delete_lifecycle(shared, request).await,
        Call::ListObjects => buckets::list_objects(shared, request),
        Call::ListMultipartUploads => buckets::list_uploads(shared, request),
        Call::DeleteMultipleObjects => buckets::delete_objects(shared, request, body).await,
        Call::Unknown => Err(ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "NotImplemented",
            "A header or parameter you provided implies functionality that this server does not have.",
        )),
        call => {
            request.check_key()?;
            match call {
                Call::PutObject => objects::put(shared, request, body).await,
                Call::AppendObject => objects::append(shared, request, body).await,
                Call::CopyObject => objects::copy(shared, request).await,
                Call::GetObject => objects::get(shared, request),
                Call::HeadObject => objects::head(shared, request),
                Call::RestoreObject => objects::restore(shared, request).await,
                Call::DeleteObject => objects::delete(shared, request).await,
                Call::InitiateMultipartUpload => multipart::initiate(shared, request).await,
                Call::UploadPart => multipart::put_part(shared, request, body).await,
                Call::UploadPartCopy => multipart::copy_part(shared, request).await,
                Call::CompleteMultipartUpload => multipart::complete(shared, request, body).await,
                Call::AbortMultipartUpload => multipart::abort(shared, request).await,
                _ => multipart::list_parts(shared, request),
            }
        }
    }
}
