//! Refusals, as BOS words them.

use http::StatusCode;

/// An answer that is an error: status, BOS code and a sentence (bos-api.md 6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Code of the JSON body.
    pub code: &'static str,
    /// Message of the JSON body.
    pub message: String,
}

impl ApiError {
    /// An error of `code`, with the status that BOS gives it.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// 400 with `code`.
    pub fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 400 `InvalidArgument`.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::bad("InvalidArgument", message)
    }

    /// 403 with `code`.
    pub fn denied(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    /// 404 with `code`.
    pub fn missing(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 403 for the bytes of an object that is archived and not restored. BOS documents no code for it; this is what other
    /// stores say.
    pub fn archived() -> Self {
        Self::denied("InvalidObjectState", "The object is archived; restore it before its bytes are read or copied.")
    }

    /// 404 `NoSuchKey`.
    pub fn no_such_key() -> Self {
        Self::missing("NoSuchKey", "The specified key does not exist.")
    }

    /// 404 `NoSuchBucket`.
    pub fn no_such_bucket() -> Self {
        Self::missing("NoSuchBucket", "The specified bucket does not exist.")
    }

    /// 404 `NoSuchUpload`.
    pub fn no_such_upload() -> Self {
        Self::missing(
            "NoSuchUpload",
            "The specified multipart upload does not exist. The upload ID may be invalid, or the upload may have been \
             aborted or completed.",
        )
    }

    /// 412 `PreconditionFailed`; `which` names the header.
    pub fn precondition(which: &str) -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "PreconditionFailed",
            format!("At least one of the preconditions you specified did not hold: {which}."),
        )
    }

    /// 500; `cause` is for the log and the message, it must not hold a secret.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        log::error!("the embedded server failed: {cause}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", format!("The server failed: {cause}"))
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status.as_u16(), self.code, self.message)
    }
}

impl std::error::Error for ApiError {}
