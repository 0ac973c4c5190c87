//! The calls of a multipart upload.

use bytes::Bytes;
use http::{HeaderName, Method, header};

use super::body::Body;
use super::client::{BosClient, PAGE_KEYS_MAX, Result, json, query, stored_headers, strong_view};
use super::error::{BosError, BosErrorKind};
use super::failure::Failure;
use super::model::{CopyOutcome, ListedPart, ObjectHeaders, StoredOutcome};
use super::objects::{CONTENT_MD5, CRC32C_FLAG, complete_headers, copy_answer};
use super::wire::{self, ANSWER_BYTES_MAX, WireInitiated, WireListParts, WireStored};
use crate::object::{ByteRange, Condition, ETag, Md5, ObjectKey, PartNumber, UploadId};

const COPY_SOURCE_RANGE: HeaderName = HeaderName::from_static("x-bce-copy-source-range");

impl BosClient {
    /// InitiateMultipartUpload. Never repeated after an ambiguous failure ([`BosError::is_ambiguous`]). The metadata of
    /// `headers` is not sent: BOS takes it on Complete.
    pub async fn initiate(&self, key: &ObjectKey, headers: &ObjectHeaders) -> Result<UploadId> {
        self.initiate_with(key, headers, Vec::new()).await
    }

    async fn initiate_with(
        &self,
        key: &ObjectKey,
        headers: &ObjectHeaders,
        more: Vec<(HeaderName, String)>,
    ) -> Result<UploadId> {
        let mut call = self.call("InitiateMultipartUpload", Method::POST, Some(key));
        call.idempotent = false;
        call.query = query([("uploads", "")]);
        let without_metadata = ObjectHeaders { metadata: Default::default(), ..headers.clone() };
        call.headers = stored_headers(&without_metadata)?;
        call.headers.extend(more);
        call.body = Some(Body::Bytes(Bytes::new()));
        self.sender
            .gather(&call, ANSWER_BYTES_MAX, json(|wire: WireInitiated| wire::upload_id_of(&wire.upload_id)))
            .await
    }

    /// [`initiate`](Self::initiate) of an upload that takes its parts from the appendable object `source`, which BOS wants to
    /// be told of (BOS docs, InitiateMultipartUpload: to copy appendable objects above 5 GB).
    pub async fn initiate_copy(
        &self,
        key: &ObjectKey,
        headers: &ObjectHeaders,
        source: &ObjectKey,
    ) -> Result<UploadId> {
        self.initiate_with(key, headers, self.copy_source(source, None)).await
    }

    /// UploadPart, with Content-MD5 and the CRC32C flag.
    pub async fn upload_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        part: PartNumber,
        body: Body,
        md5: &Md5,
    ) -> Result<StoredOutcome> {
        let mut call = self.data_call("UploadPart", Method::PUT, key);
        call.query = part_query(upload, part);
        call.headers = vec![
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (CONTENT_MD5, md5.to_base64()),
            (CRC32C_FLAG, "true".to_owned()),
        ];
        call.body = Some(body);
        self.sender
            .gather(&call, ANSWER_BYTES_MAX, |answer| {
                wire::stored_outcome(&answer.headers, None).map_err(|odd| Failure::odd(&answer.headers, odd))
            })
            .await
    }

    /// UploadPartCopy of `range` of `src`.
    pub async fn upload_part_copy(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        part: PartNumber,
        src: &ObjectKey,
        range: ByteRange,
        if_match: Option<&ETag>,
    ) -> Result<CopyOutcome> {
        if range.is_empty() {
            return Err(BosError::new(
                BosErrorKind::InvalidRange,
                "a part cannot be copied from no bytes; nothing was sent",
            ));
        }
        let mut call = self.data_call("UploadPartCopy", Method::PUT, key);
        call.works_long = true;
        call.query = part_query(upload, part);
        call.headers = self.copy_source(src, if_match);
        call.headers.push((COPY_SOURCE_RANGE, format!("bytes={}-{}", range.start, range.end - 1)));
        call.headers.push((CRC32C_FLAG, "true".to_owned()));
        call.body = Some(Body::Bytes(Bytes::new()));
        match self.sender.gather(&call, ANSWER_BYTES_MAX, copy_answer).await {
            Err(error) => Err(self.explained(src, error).await),
            copied => copied,
        }
    }

    /// CompleteMultipartUpload with `headers.metadata`, the condition and the CRC32C flag. Never repeated after an
    /// ambiguous failure.
    pub async fn complete(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[(PartNumber, ETag)],
        headers: &ObjectHeaders,
        condition: &Condition,
    ) -> Result<StoredOutcome> {
        let mut call = self.data_call("CompleteMultipartUpload", Method::POST, key);
        call.idempotent = false;
        call.works_long = true;
        call.query = upload_query(upload);
        call.headers = complete_headers(headers, condition)?;
        call.headers.push((header::CONTENT_TYPE, "application/json".to_owned()));
        call.body = Some(Body::Bytes(wire::complete_body(parts).into()));
        self.sender
            .gather(&call, ANSWER_BYTES_MAX, |answer| {
                let odd = |message| Failure::odd(&answer.headers, message);
                let body: Option<WireStored> = wire::parse(&answer.body).map_err(odd)?;
                wire::stored_outcome(&answer.headers, body.map(|body| body.etag)).map_err(odd)
            })
            .await
    }

    /// AbortMultipartUpload. `false`: NoSuchUpload, also where an earlier, unanswered try aborted it.
    pub async fn abort(&self, key: &ObjectKey, upload: &UploadId) -> Result<bool> {
        let mut call = self.call("AbortMultipartUpload", Method::DELETE, Some(key));
        call.query = upload_query(upload);
        match self.sender.gather(&call, ANSWER_BYTES_MAX, |_| Ok(true)).await {
            Err(error) if error.kind == BosErrorKind::NoSuchUpload => Ok(false),
            other => other,
        }
    }

    /// ListParts, all pages: at most 10,000 parts, by number.
    pub async fn list_parts(&self, key: &ObjectKey, upload: &UploadId) -> Result<Vec<ListedPart>> {
        let mut parts = Vec::new();
        let mut marker: Option<PartNumber> = None;
        loop {
            let mut call = self.call("ListParts", Method::GET, Some(key));
            call.headers.push(strong_view());
            call.query = upload_query(upload);
            call.query.push(("maxParts".to_owned(), PAGE_KEYS_MAX.to_string()));
            if let Some(marker) = marker {
                call.query.push(("partNumberMarker".to_owned(), marker.to_string()));
            }
            // Numbers ascend over all pages, which `append_to` demands: so there are finitely many.
            let listed = parts.as_slice();
            let read = json(|wire: WireListParts| {
                let mut longer = listed.to_vec();
                let next = wire.append_to(&mut longer)?;
                Ok((longer, next))
            });
            (parts, marker) = self.sender.gather(&call, ANSWER_BYTES_MAX, read).await?;
            if marker.is_none() {
                return Ok(parts);
            }
        }
    }
}

fn upload_query(upload: &UploadId) -> Vec<(String, String)> {
    query([("uploadId", upload.as_str())])
}

fn part_query(upload: &UploadId, part: PartNumber) -> Vec<(String, String)> {
    query([("partNumber", part.to_string().as_str()), ("uploadId", upload.as_str())])
}
