//! Calls on single objects.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use crate::bos::sign::format_timestamp;
use crate::object::Timestamp;
use crate::serve::Shared;
use crate::serve::answer::Answer;
use crate::serve::body::{ReplyBody, RequestBody};
use crate::serve::conditions::{Conditions, Present, Verdict};
use crate::serve::error::ApiError;
use crate::serve::headers::{Digests, describe, object_headers, range, set, set_crcs, storage_class, text};
use crate::serve::request::Request;
use crate::serve::store::{Append, CopyWishes, NewObject, ObjectRecord, SIMPLE_BYTES_MAX};
use crate::serve::wire;

type Result<T> = std::result::Result<T, ApiError>;

/// The length of a body that becomes an object or part.
pub fn body_length(request: &Request) -> Result<u64> {
    let len = request.content_length()?;
    if len > SIMPLE_BYTES_MAX {
        return Err(ApiError::bad("EntityTooLarge", "Your proposed upload exceeds 5 GB; upload it in parts."));
    }
    Ok(len)
}

pub async fn put(shared: &Arc<Shared>, request: &Request, body: &mut RequestBody) -> Result<Answer> {
    let len = body_length(request)?;
    let digests = Digests::of(&request.headers)?;
    let headers = object_headers(&request.headers)?;
    let conditions = Conditions::of(&request.headers)?;
    // Refused before the body is sent, where that can be known.
    shared.store.check_put(&request.bucket, &request.key, &conditions)?;
    let received = body.receive(&shared.store, len, digests.wants_sha256()).await?;
    let sha256 = digests.check(&received.checksum, received.sha256.as_deref())?;
    let opaque = shared.variants.opaque_part_etags;
    let object = NewObject {
        checksum: received.checksum,
        etag: shared.content_etag(&received.checksum),
        md5_shown: !opaque,
        crc32c_shown: digests.shows_crc32c(),
        sha256,
        headers,
        stored: received.stored,
    };
    let record = shared.store.put_object(request.bucket.clone(), request.key.clone(), object, conditions).await?;
    let mut answer = Answer::empty(StatusCode::OK).with("etag", &format!("\"{}\"", record.etag));
    if let Some(crcs) = &record.crcs {
        set_crcs(&mut answer.headers, crcs, record.crc32c_shown, &shared.variants);
    }
    if let Some(md5) = record.md5 {
        set(&mut answer.headers, "content-md5", &md5.to_base64());
    }
    if let Some(class) = &record.headers.storage_class {
        set(&mut answer.headers, "x-bce-storage-class", class);
    }
    Ok(answer)
}

/// AppendObject: with an offset behind an appendable object, without one in place of whatever is there.
pub async fn append(shared: &Arc<Shared>, request: &Request, body: &mut RequestBody) -> Result<Answer> {
    let len = body_length(request)?;
    let digests = Digests::of(&request.headers)?;
    let offset = match request.parameter("offset").filter(|value| !value.is_empty()) {
        None => None,
        Some(value) => {
            Some(value.parse().map_err(|_| ApiError::argument(format!("offset={value:?} is no such number.")))?)
        }
    };
    let headers = object_headers(&request.headers)?;
    let received = body.receive(&shared.store, len, digests.wants_sha256()).await?;
    digests.check(&received.checksum, received.sha256.as_deref())?;
    let append = Append { checksum: received.checksum, stored: received.stored, offset, headers };
    let record = shared.store.append_object(request.bucket.clone(), request.key.clone(), append).await?;
    let mut answer = Answer::empty(StatusCode::OK).with("etag", &format!("\"{}\"", record.etag));
    if let Some(crcs) = &record.crcs {
        set_crcs(&mut answer.headers, crcs, record.crc32c_shown, &shared.variants);
    }
    Ok(answer.with("x-bce-next-append-offset", &record.size.to_string()))
}

/// What the conditions of a read say. `Some`: the answer is 304.
fn check_read(request: &Request, object: &ObjectRecord, variants: &crate::serve::Variants) -> Result<Option<Answer>> {
    let present = Present { etag: &object.etag, modified: object.modified };
    match Conditions::of(&request.headers)?.check_read(present) {
        Verdict::Go => Ok(None),
        Verdict::Failed(which) => Err(ApiError::precondition(which)),
        Verdict::NotModified => {
            let mut answer = Answer::empty(StatusCode::NOT_MODIFIED);
            let described = describe(object, variants);
            for name in ["etag", "last-modified", "expires", "cache-control"] {
                if let Some(value) = described.get(name) {
                    answer.headers.insert(name, value.clone());
                }
            }
            Ok(Some(answer))
        }
    }
}

pub fn head(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    let object = shared.store.snapshot()?.object(&request.bucket, &request.key)?;
    if let Some(answer) = check_read(request, &object, &shared.variants)? {
        return Ok(answer);
    }
    let mut answer = Answer::empty(StatusCode::OK);
    answer.headers = describe(&object, &shared.variants);
    // The body is empty, the length is the object's.
    set(&mut answer.headers, "content-length", &object.size.to_string());
    Ok(answer)
}

pub fn get(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    let pin = shared.store.files().pin();
    let snapshot = shared.store.snapshot()?;
    let object = snapshot.object(&request.bucket, &request.key)?;
    if let Some(answer) = check_read(request, &object, &shared.variants)? {
        return Ok(answer);
    }
    if object.is_archived(Timestamp::now().sec) {
        return Err(ApiError::archived());
    }
    let asked = text(&request.headers, "range");
    let (start, end) = match &asked {
        Some(value) => range(value, object.size)?,
        None => (0, object.size),
    };
    let mut headers = describe(&object, &shared.variants);
    override_headers(&mut headers, request);
    set(&mut headers, "content-length", &(end - start).to_string());
    let mut status = StatusCode::OK;
    if asked.is_some() {
        status = StatusCode::PARTIAL_CONTENT;
        set(&mut headers, "content-range", &format!("bytes {start}-{}/{}", end - 1, object.size));
    }
    let body = if start == end {
        ReplyBody::empty()
    } else {
        let extents = snapshot.extents(&object.place, start, end)?;
        ReplyBody::of_extents(extents, snapshot, pin, shared.store.clone())
    };
    Ok(Answer { status, headers, body })
}

/// The parameters of GET that replace headers of the answer.
fn override_headers(headers: &mut HeaderMap, request: &Request) {
    for (parameter, name) in [
        ("responseContentType", "content-type"),
        ("responseContentDisposition", "content-disposition"),
        ("responseContentLanguage", "content-language"),
        ("responseExpires", "expires"),
        ("responseCacheControl", "cache-control"),
        ("responseContentEncoding", "content-encoding"),
    ] {
        if let Some(value) = request.parameter(parameter).filter(|value| !value.is_empty()) {
            set(headers, name, value);
        }
    }
}

pub async fn delete(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    let existed = shared.store.delete_object(request.bucket.clone(), request.key.clone()).await?;
    if existed || shared.variants.delete_missing_204 {
        Ok(Answer::empty(StatusCode::NO_CONTENT))
    } else {
        Err(ApiError::no_such_key())
    }
}

/// `POST ?restore`: days of `x-bce-restore-days`, 7 without (BOS docs, RestoreObject: 1 to 30). The server has no freezer to
/// fetch anything from, so the bytes can be read at once.
pub async fn restore(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    let days = match text(&request.headers, "x-bce-restore-days") {
        None => 7,
        Some(days) => days
            .trim()
            .parse()
            .ok()
            .filter(|days| (1..=30).contains(days))
            .ok_or_else(|| ApiError::argument(format!("x-bce-restore-days {days:?} is no number from 1 to 30.")))?,
    };
    shared.store.restore_object(request.bucket.clone(), request.key.clone(), days).await?;
    Ok(Answer::empty(StatusCode::OK))
}

pub async fn copy(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    let directive = text(&request.headers, "x-bce-metadata-directive").unwrap_or_default();
    let replace = match directive.as_str() {
        "" | "copy" => None,
        "replace" => Some(object_headers(&request.headers)?),
        other => {
            return Err(ApiError::argument(format!("x-bce-metadata-directive {other:?} is neither copy nor replace.")));
        }
    };
    let digests = Digests::of(&request.headers)?;
    let target = (request.bucket.clone(), request.key.clone());
    let source_conditions = Conditions::of_copy_source(&request.headers)?;
    let wishes = CopyWishes {
        replace,
        storage_class: storage_class(&request.headers)?,
        crc32c_asked: digests.shows_crc32c(),
        appendable_onto_itself: !shared.variants.no_copy_of_appendable_onto_itself,
    };
    let object = shared.store.copy_object(request.copy_source()?, source_conditions, target, wishes).await?;
    let answer =
        Answer::json(&wire::Copied { e_tag: object.etag.clone(), last_modified: format_timestamp(object.modified) })?;
    Ok(answer.with("etag", &format!("\"{}\"", object.etag)))
}
