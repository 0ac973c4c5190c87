//! Answers in the making: status, headers, body.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use serde::Serialize;

use super::body::ReplyBody;
use super::error::ApiError;
use super::headers::set;
use super::wire::ErrorBody;

/// What a call answers.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers, without those that every answer has.
    pub headers: HeaderMap,
    /// Body.
    pub body: ReplyBody,
}

impl Answer {
    /// `status` without a body.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: ReplyBody::empty() }
    }

    /// 200 with a JSON document.
    pub fn json(document: &impl Serialize) -> Result<Self, ApiError> {
        let bytes = serde_json::to_vec(document).map_err(ApiError::internal)?;
        let mut answer = Self::empty(StatusCode::OK);
        set(&mut answer.headers, "content-type", "application/json; charset=utf-8");
        answer.body = ReplyBody::Full(Bytes::from(bytes));
        Ok(answer)
    }

    /// With a header more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        set(&mut self.headers, name, value);
        self
    }

    /// An error; the answer to a HEAD, and a 304, has no body.
    pub fn error(error: &ApiError, request_id: &str, has_body: bool) -> Self {
        let body = ErrorBody { code: error.code, message: &error.message, request_id };
        let answer = match Self::json(&body) {
            Ok(answer) if has_body => answer,
            _ => Self::empty(error.status),
        };
        Self { status: error.status, ..answer }
    }

    /// With the headers that every answer has.
    pub fn finish(self, request_id: &str) -> Response<ReplyBody> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        let headers = response.headers_mut();
        set(headers, "server", "BceBos");
        set(headers, "x-bce-request-id", request_id);
        set(headers, "x-bce-debug-id", &debug_id(request_id));
        response
    }
}

/// BOS sends some base64 text here; ours repeats the request ID.
fn debug_id(request_id: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(request_id)
}

/// A random UUID (version 4).
pub fn request_id() -> String {
    let bits = rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    #[test]
    fn request_ids_are_uuids() {
        let id = super::request_id();
        let shape: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(shape, [8, 4, 4, 4, 12]);
        assert_eq!(id.as_bytes()[14], b'4');
        assert!(matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
        assert_ne!(id, super::request_id());
    }
}
