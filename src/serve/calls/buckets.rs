//! Calls on buckets, listings, batch delete.

use std::sync::Arc;

use http::StatusCode;

use crate::bos::sign::format_timestamp;
use crate::serve::Shared;
use crate::serve::answer::Answer;
use crate::serve::body::RequestBody;
use crate::serve::error::ApiError;
use crate::serve::request::{Request, is_bucket_name};
use crate::serve::store::ListQuery;
use crate::serve::wire;

type Result<T> = std::result::Result<T, ApiError>;

/// Entries of a page, at most and by default.
const PAGE_MAX: u32 = 1000;
/// Longest marker, in bytes.
const MARKER_BYTES_MAX: usize = 1024;

pub fn list(shared: &Shared) -> Result<Answer> {
    let buckets = shared.store.snapshot()?.buckets()?.into_iter();
    Answer::json(&wire::Buckets {
        owner: shared.owner(),
        buckets: buckets
            .map(|(name, record)| wire::Bucket {
                name,
                location: shared.region.clone(),
                creation_date: format_timestamp(record.created),
            })
            .collect(),
    })
}

pub async fn put(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    if !is_bucket_name(&request.bucket) {
        return Err(ApiError::bad(
            "InvalidBucketName",
            "A bucket name has 3 to 63 characters of a-z, 0-9 and -, and neither begins nor ends with -.",
        ));
    }
    shared.store.create_bucket(request.bucket.clone()).await?;
    Ok(Answer::empty(StatusCode::OK).with("location", &format!("/{}", request.bucket)))
}

pub fn head(shared: &Shared, request: &Request) -> Result<Answer> {
    let record = shared.store.snapshot()?.bucket(&request.bucket)?;
    Ok(Answer::empty(StatusCode::OK)
        .with("x-bce-bucket-region", &shared.region)
        .with("x-bce-bucket-storageclass", "STANDARD")
        .with("x-bce-bucket-createtime", &format_timestamp(record.created)))
}

pub async fn delete(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    shared.store.delete_bucket(request.bucket.clone()).await?;
    Ok(Answer::empty(StatusCode::NO_CONTENT))
}

pub fn location(shared: &Shared, request: &Request) -> Result<Answer> {
    shared.store.snapshot()?.bucket(&request.bucket)?;
    Answer::json(&serde_json::json!({ "locationConstraint": shared.region }))
}

pub fn get_lifecycle(shared: &Shared, request: &Request) -> Result<Answer> {
    match shared.store.snapshot()?.bucket(&request.bucket)?.lifecycle {
        Some(document) => Answer::json(&document),
        None => Err(ApiError::missing("NoLifecycleConfiguration", "The bucket has no lifecycle configuration.")),
    }
}

pub async fn put_lifecycle(shared: &Arc<Shared>, request: &Request, body: &mut RequestBody) -> Result<Answer> {
    let bytes = body.gather(wire::LIFECYCLE_BYTES_MAX).await?;
    let document: serde_json::Value = wire::parse(&bytes)?;
    if !document.get("rule").is_some_and(serde_json::Value::is_array) {
        return Err(ApiError::bad("InappropriateJSON", "A lifecycle configuration is an object with a list `rule`."));
    }
    shared.store.set_lifecycle(request.bucket.clone(), Some(document)).await?;
    Ok(Answer::empty(StatusCode::OK))
}

pub async fn delete_lifecycle(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    shared.store.set_lifecycle(request.bucket.clone(), None).await?;
    Ok(Answer::empty(StatusCode::NO_CONTENT))
}

/// What both listings ask alike. Returns the query and the delimiter as text.
fn list_query(request: &Request, marker: &str, max: &str) -> Result<(ListQuery, Option<String>)> {
    let parameter = |name: &str| request.parameter(name).unwrap_or_default().to_owned();
    let delimiter = parameter("delimiter");
    let mut characters = delimiter.chars();
    let first = characters.next();
    if characters.next().is_some() {
        return Err(ApiError::argument("The delimiter has more than one character."));
    }
    let marker = parameter(marker);
    if marker.len() > MARKER_BYTES_MAX {
        return Err(ApiError::argument(format!("The marker has more than {MARKER_BYTES_MAX} bytes.")));
    }
    let max = request.number(max)?.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let query = ListQuery {
        prefix: parameter("prefix"),
        delimiter: first,
        marker,
        upload_id_marker: parameter("uploadIdMarker"),
        max: max as usize,
    };
    Ok((query, first.map(String::from)))
}

/// `commonPrefixes` is there only when a delimiter was given and there are some.
fn common_prefixes(prefixes: Vec<String>) -> Option<Vec<wire::CommonPrefix>> {
    let prefixes: Vec<_> = prefixes.into_iter().map(|prefix| wire::CommonPrefix { prefix }).collect();
    (!prefixes.is_empty()).then_some(prefixes)
}

pub fn list_objects(shared: &Shared, request: &Request) -> Result<Answer> {
    let (mut query, delimiter) = list_query(request, "marker", "maxKeys")?;
    query.upload_id_marker.clear();
    let page = shared.store.snapshot()?.list_objects(&request.bucket, &query)?;
    let owner = shared.owner();
    let contents = page.entries.into_iter().map(|(key, object)| wire::Content {
        key,
        last_modified: format_timestamp(object.modified),
        e_tag: object.etag,
        size: object.size,
        storage_class: object.headers.storage_class.unwrap_or_else(|| "STANDARD".to_owned()),
        owner: owner.clone(),
    });
    Answer::json(&wire::ObjectPage {
        name: request.bucket.clone(),
        contents: contents.collect(),
        prefix: query.prefix,
        delimiter,
        marker: query.marker,
        max_keys: query.max as u32,
        is_truncated: page.truncated,
        next_marker: page.truncated.then_some(page.next_marker),
        common_prefixes: common_prefixes(page.prefixes),
    })
}

pub fn list_uploads(shared: &Shared, request: &Request) -> Result<Answer> {
    let (query, delimiter) = list_query(request, "keyMarker", "maxUploads")?;
    let page = shared.store.snapshot()?.list_uploads(&request.bucket, &query)?;
    let owner = shared.owner();
    let uploads = page.entries.into_iter().map(|(key, upload_id, upload)| wire::Upload {
        key,
        upload_id,
        initiated: format_timestamp(upload.initiated),
        owner: owner.clone(),
        storage_class: upload.headers.storage_class.unwrap_or_else(|| "STANDARD".to_owned()),
    });
    Answer::json(&wire::UploadPage {
        bucket: request.bucket.clone(),
        uploads: uploads.collect(),
        prefix: query.prefix,
        delimiter,
        key_marker: query.marker,
        upload_id_marker: query.upload_id_marker,
        max_uploads: query.max as u32,
        is_truncated: page.truncated,
        next_key_marker: page.truncated.then_some(page.next_marker),
        next_upload_id_marker: page.truncated.then_some(page.next_upload_id),
        common_prefixes: common_prefixes(page.prefixes),
    })
}

pub async fn delete_objects(shared: &Arc<Shared>, request: &Request, body: &mut RequestBody) -> Result<Answer> {
    let bytes = body.gather(wire::DELETE_BYTES_MAX).await?;
    let delete: wire::Delete = wire::parse(&bytes)?;
    if delete.objects.len() > wire::DELETE_KEYS_MAX {
        return Err(ApiError::argument(format!("More than {} keys in one request.", wire::DELETE_KEYS_MAX)));
    }
    let keys = delete.objects.into_iter().map(|object| object.key).collect();
    let deleted = shared.store.delete_objects(request.bucket.clone(), keys).await?;
    let missing = deleted.into_iter().filter(|key| !key.existed && !shared.variants.delete_missing_204);
    let errors: Vec<_> = missing
        .map(|key| wire::DeleteError { key: key.key, code: "NoSuchKey", message: "The specified key does not exist." })
        .collect();
    if errors.is_empty() { Ok(Answer::empty(StatusCode::OK)) } else { Answer::json(&wire::DeleteErrors { errors }) }
}
