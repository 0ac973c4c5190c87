//! The JSON documents of answers and of request bodies (bos-api.md 3.5, 4, 5).

use serde::{Deserialize, Serialize};

use super::error::ApiError;

/// Largest body of a batch delete, in bytes (BOS docs).
pub const DELETE_BYTES_MAX: usize = 2 << 20;
/// Most keys of a batch delete.
pub const DELETE_KEYS_MAX: usize = 1000;
/// Largest body of a Complete, in bytes (BOS docs).
pub const COMPLETE_BYTES_MAX: usize = 1 << 20;
/// Largest lifecycle document, in bytes. Not documented.
pub const LIFECYCLE_BYTES_MAX: usize = 1 << 20;

/// Reads a JSON body.
///
/// # Errors
/// `MalformedJSON` when it is none, `InappropriateJSON` when it is another document.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            ApiError::bad("InappropriateJSON", format!("The JSON you provided is not what is expected here: {error}"))
        }
        _ => ApiError::bad("MalformedJSON", format!("The JSON you provided was not well-formed: {error}")),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody<'a> {
    pub code: &'a str,
    pub message: &'a str,
    pub request_id: &'a str,
}

#[derive(Serialize, Clone)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    pub id: String,
    pub display_name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bucket {
    pub name: String,
    pub location: String,
    pub creation_date: String,
}

#[derive(Serialize)]
pub struct Buckets {
    pub owner: Owner,
    pub buckets: Vec<Bucket>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommonPrefix {
    pub prefix: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    pub key: String,
    pub last_modified: String,
    pub e_tag: String,
    pub size: u64,
    pub storage_class: String,
    pub owner: Owner,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectPage {
    pub name: String,
    pub prefix: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<String>,
    pub marker: String,
    pub max_keys: u32,
    pub is_truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_marker: Option<String>,
    pub contents: Vec<Content>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub common_prefixes: Option<Vec<CommonPrefix>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upload {
    pub key: String,
    pub upload_id: String,
    pub initiated: String,
    pub owner: Owner,
    pub storage_class: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadPage {
    pub bucket: String,
    pub prefix: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<String>,
    pub key_marker: String,
    pub upload_id_marker: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_key_marker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_upload_id_marker: Option<String>,
    pub max_uploads: u32,
    pub is_truncated: bool,
    pub uploads: Vec<Upload>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub common_prefixes: Option<Vec<CommonPrefix>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    pub part_number: u32,
    pub last_modified: String,
    pub e_tag: String,
    pub size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartPage {
    pub bucket: String,
    pub key: String,
    pub upload_id: String,
    pub initiated: String,
    pub owner: Owner,
    pub storage_class: String,
    pub part_number_marker: u32,
    pub next_part_number_marker: u32,
    pub max_parts: u32,
    pub is_truncated: bool,
    pub parts: Vec<Part>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Initiated {
    pub bucket: String,
    pub key: String,
    pub upload_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Completed {
    pub location: String,
    pub bucket: String,
    pub key: String,
    pub e_tag: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Copied {
    pub e_tag: String,
    pub last_modified: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompletePart {
    pub part_number: u32,
    pub e_tag: String,
}

#[derive(Deserialize)]
pub struct Complete {
    pub parts: Vec<CompletePart>,
}

#[derive(Deserialize)]
pub struct DeleteKey {
    pub key: String,
}

#[derive(Deserialize)]
pub struct Delete {
    pub objects: Vec<DeleteKey>,
}

#[derive(Serialize)]
pub struct DeleteError {
    pub key: String,
    pub code: &'static str,
    pub message: &'static str,
}

#[derive(Serialize)]
pub struct DeleteErrors {
    pub errors: Vec<DeleteError>,
}
