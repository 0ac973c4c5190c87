//! Calls on multipart uploads.

use std::sync::Arc;

use http::StatusCode;

use super::objects::body_length;
use crate::bos::sign::format_timestamp;
use crate::object::PART_NUMBER_MAX;
use crate::serve::Shared;
use crate::serve::answer::Answer;
use crate::serve::body::RequestBody;
use crate::serve::conditions::Conditions;
use crate::serve::error::ApiError;
use crate::serve::headers::{Digests, metadata, object_headers, set_crcs, text};
use crate::serve::request::Request;
use crate::serve::store::{CompleteRequest, NewPart};
use crate::serve::wire;

type Result<T> = std::result::Result<T, ApiError>;

/// Parts of a page, at most and by default.
const PAGE_MAX: u32 = 1000;

pub async fn initiate(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    let mut headers = object_headers(&request.headers)?;
    // Metadata of a composed object comes with Complete.
    headers.metadata.clear();
    let upload_id = shared.store.initiate(request.bucket.clone(), request.key.clone(), headers).await?;
    Answer::json(&wire::Initiated { bucket: request.bucket.clone(), key: request.key.clone(), upload_id })
}

/// Upload ID and part number.
fn part_of(request: &Request) -> Result<(String, u32)> {
    let upload_id = request.demanded("uploadId")?;
    match request.number("partNumber")? {
        Some(number) if (1..=PART_NUMBER_MAX).contains(&number) => Ok((upload_id, number)),
        _ => Err(ApiError::argument(format!("Part number must be an integer between 1 and {PART_NUMBER_MAX}."))),
    }
}

pub async fn put_part(shared: &Arc<Shared>, request: &Request, body: &mut RequestBody) -> Result<Answer> {
    let (upload_id, number) = part_of(request)?;
    let len = body_length(request)?;
    let digests = Digests::of(&request.headers)?;
    shared.store.snapshot()?.upload(&request.bucket, &request.key, &upload_id)?;
    let received = body.receive(&shared.store, len, digests.wants_sha256()).await?;
    digests.check(&received.checksum, received.sha256.as_deref())?;
    let part = NewPart {
        checksum: received.checksum,
        etag: shared.content_etag(&received.checksum),
        crc32c_shown: digests.shows_crc32c(),
        stored: received.stored,
    };
    let mut answer = Answer::empty(StatusCode::OK).with("etag", &format!("\"{}\"", part.etag));
    set_crcs(&mut answer.headers, &part.checksum.crcs, part.crc32c_shown, &shared.variants);
    shared.store.put_part(request.bucket.clone(), request.key.clone(), upload_id, number, part).await?;
    Ok(answer)
}

pub async fn copy_part(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    let (upload_id, number) = part_of(request)?;
    let range = match text(&request.headers, "x-bce-copy-source-range") {
        None => None,
        Some(value) => Some(copy_range(&value)?),
    };
    let conditions = Conditions::of_copy_source(&request.headers)?;
    let asked = Digests::of(&request.headers)?.shows_crc32c();
    let source = request.copy_source()?;
    let target = (request.bucket.clone(), request.key.clone(), upload_id, number);
    let part = shared
        .store
        .copy_part(target, source, range, conditions, asked, !shared.variants.no_part_of_appendable)
        .await?;
    Answer::json(&wire::Copied { e_tag: part.etag, last_modified: format_timestamp(part.modified) })
}

/// `bytes=a-b`: first and last byte.
fn copy_range(value: &str) -> Result<(u64, u64)> {
    let ends = value.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let ends = ends.and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
    ends.ok_or_else(|| ApiError::argument(format!("x-bce-copy-source-range {value:?} is not of the form bytes=a-b.")))
}

pub async fn complete(shared: &Arc<Shared>, request: &Request, body: &mut RequestBody) -> Result<Answer> {
    let upload_id = request.demanded("uploadId")?;
    let bytes = body.gather(wire::COMPLETE_BYTES_MAX).await?;
    let list: wire::Complete = wire::parse(&bytes)?;
    let complete = CompleteRequest {
        parts: list.parts.into_iter().map(|part| (part.part_number, part.e_tag.trim_matches('"').to_owned())).collect(),
        metadata: metadata(&request.headers)?,
        conditions: Conditions::of(&request.headers)?,
        digests: Digests::of(&request.headers)?,
        old_part_rule: shared.variants.parts_of_5_mib,
        opaque_etag: shared.variants.opaque_composed_etags,
    };
    let object = shared.store.complete(request.bucket.clone(), request.key.clone(), upload_id, complete).await?;
    let host = text(&request.headers, "host").unwrap_or_default();
    let mut answer = Answer::json(&wire::Completed {
        location: format!("http://{host}/{}/{}", request.bucket, request.key),
        bucket: request.bucket.clone(),
        key: request.key.clone(),
        e_tag: object.etag.clone(),
    })?;
    if let Some(crcs) = &object.crcs
        && !shared.variants.no_crc_on_composed_objects
    {
        set_crcs(&mut answer.headers, crcs, object.crc32c_shown, &shared.variants);
    }
    Ok(answer)
}

pub async fn abort(shared: &Arc<Shared>, request: &Request) -> Result<Answer> {
    let upload_id = request.demanded("uploadId")?;
    shared.store.abort(request.bucket.clone(), request.key.clone(), upload_id).await?;
    Ok(Answer::empty(StatusCode::NO_CONTENT))
}

pub fn list_parts(shared: &Shared, request: &Request) -> Result<Answer> {
    let upload_id = request.demanded("uploadId")?;
    let marker = request.number("partNumberMarker")?.unwrap_or(0);
    let max = request.number("maxParts")?.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let page = shared.store.snapshot()?.list_parts(&request.bucket, &request.key, &upload_id, marker, max as usize)?;
    Answer::json(&wire::PartPage {
        bucket: request.bucket.clone(),
        key: request.key.clone(),
        upload_id,
        initiated: format_timestamp(page.upload.initiated),
        owner: shared.owner(),
        storage_class: page.upload.headers.storage_class.unwrap_or_else(|| "STANDARD".to_owned()),
        part_number_marker: marker,
        next_part_number_marker: page.parts.last().map_or(marker, |(number, _)| *number),
        max_parts: max,
        is_truncated: page.truncated,
        parts: page
            .parts
            .into_iter()
            .map(|(part_number, part)| wire::Part {
                part_number,
                last_modified: format_timestamp(part.modified),
                e_tag: part.etag,
                size: part.size,
            })
            .collect(),
    })
}
