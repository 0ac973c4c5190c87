//! Beginning an upload.

use super::retry::{Act, After, Patience, after};
use crate::bos::client::ObjectHeaders;
use crate::bos::{BosClient, BosError};
use crate::object::{ObjectKey, UploadId};

/// InitiateMultipartUpload. The metadata of `headers` stays behind: BOS takes it on Complete. See [`begin`].
///
/// # Errors
/// Those of `before` and of the patience; BOS's refusal as the patience makes it one.
pub async fn initiate<P: Patience>(
    client: &BosClient,
    key: &ObjectKey,
    headers: &ObjectHeaders,
    patience: &mut P,
    before: impl FnMut(u32) -> Result<(), P::Error>,
) -> Result<UploadId, P::Error> {
    begin(patience, before, || client.initiate(key, headers)).await
}

/// Begins an upload by `request`, some form of Initiate.
///
/// `before` is called right before every request, the first and each repeat, with how many were sent: an Initiate whose answer
/// is lost leaves an upload that no answer names, so the caller writes down beforehand that there may be one under this key.
/// Such an upload is never taken over here, since nothing tells it from one that somebody else began; it holds no part, and
/// whoever cleans up finds it by the caller's line.
///
/// # Errors
/// Those of `before` and of the patience; BOS's refusal as the patience makes it one.
pub async fn begin<P, F>(
    patience: &mut P,
    mut before: impl FnMut(u32) -> Result<(), P::Error>,
    mut request: impl FnMut() -> F,
) -> Result<UploadId, P::Error>
where
    P: Patience,
    F: Future<Output = Result<UploadId, BosError>>,
{
    let mut sent = 0;
    loop {
        before(sent)?;
        sent += 1;
        let error = match request().await {
            Ok(id) => return Ok(id),
            Err(error) => error,
        };
        // A second upload spoils nothing, as it has its line.
        let again = after(&error, Act::Repeatable) == After::Again;
        if !again || !patience.pause(&error).await? {
            return Err(patience.refused(error));
        }
    }
}
