//! Reading objects: as a stream, or one range gathered.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::Response;

use super::client::{BosClient, Result};
use super::error::{BosError, BosErrorKind, Story};
use super::failure::Failure;
use super::model::ObjectMeta;
use super::send::{Call, Tries, content_length, next_piece, unix_now_s};
use super::wire;
use crate::object::{ByteRange, ETag, ObjectKey};

/// An answered GetObject: headers, then the body as it comes. Counts bytes: a body shorter or longer than announced is
/// an error.
pub struct GetObject {
    /// Headers. `meta.size` is the size of the whole object (from Content-Range when partial).
    pub meta: ObjectMeta,
    /// Which bytes of the object the body is.
    pub range: ByteRange,
    body: Received,
    story: Story,
}

/// A body on its way, with the bytes that must still come.
struct Received {
    response: Response,
    remaining: u64,
    stall: std::time::Duration,
}

impl Received {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let piece = next_piece(&mut self.response, self.stall).await?;
        let len = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        match self.remaining.checked_sub(len) {
            None => Err(Failure::new(BosErrorKind::BadAnswer, false, "the answer has more bytes than it announced")),
            Some(remaining) if piece.is_none() && remaining > 0 => {
                let message = format!("the answer ended {remaining} bytes early");
                Err(Failure::new(BosErrorKind::Network, false, message))
            }
            Some(remaining) => {
                self.remaining = remaining;
                Ok(piece)
            }
        }
    }
}

impl GetObject {
    /// The next piece of the body; `None` after the last.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        self.body.next().await.map_err(|failure| {
            let story = Story { message: failure.message.into(), tries: 1, ..self.story.clone() };
            BosError::with_story(failure.kind, false, story)
        })
    }
}

impl BosClient {
    /// `GET /key`, whole or `range` (which must not be empty). A range that reaches beyond the object gives what there
    /// is (see [`GetObject::range`]); one that begins beyond it is [`BosErrorKind::InvalidRange`].
    ///
    /// Only the way to the head of the answer is retried; a body that breaks off is the caller's to go on with.
    pub async fn get_object(
        &self,
        key: &ObjectKey,
        range: Option<ByteRange>,
        if_match: Option<&ETag>,
    ) -> Result<GetObject> {
        let call = self.get_call(key, range, if_match)?;
        let mut tries = Tries::new(&self.sender, &call);
        loop {
            let failure = match self.open(&call, range, tries.remaining()).await {
                Ok((meta, range, body)) => {
                    return Ok(GetObject { meta, range, body, story: self.sender.story(&call) });
                }
                Err(failure) => failure,
            };
            if let Err(error) = tries.settle(failure).await {
                return Err(self.explained(key, error).await);
            }
        }
    }

    /// `GET /key` of `range`, gathered; retried as a whole. Exactly `range.len()` bytes.
    pub async fn get_range(&self, key: &ObjectKey, range: ByteRange, if_match: Option<&ETag>) -> Result<Bytes> {
        let call = self.get_call(key, Some(range), if_match)?;
        let mut tries = Tries::new(&self.sender, &call);
        loop {
            let failure = match self.gather_range(&call, range, tries.remaining()).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failure,
            };
            if let Err(error) = tries.settle(failure).await {
                return Err(self.explained(key, error).await);
            }
        }
    }

    fn get_call<'a>(
        &'a self,
        key: &'a ObjectKey,
        range: Option<ByteRange>,
        if_match: Option<&ETag>,
    ) -> Result<Call<'a>> {
        let mut call = self.call("GetObject", Method::GET, Some(key));
        if let Some(range) = range {
            if range.is_empty() {
                return Err(BosError::new(
                    BosErrorKind::InvalidRange,
                    format!("no bytes of {key:?} were asked for; nothing was sent"),
                ));
            }
            call.headers.push((header::RANGE, format!("bytes={}-{}", range.start, range.end - 1)));
        }
        call.headers.extend(if_match.map(|etag| (header::IF_MATCH, etag.quoted())));
        Ok(call)
    }

    async fn gather_range(
        &self,
        call: &Call<'_>,
        range: ByteRange,
        remaining: Option<std::time::Duration>,
    ) -> Result<Bytes, Failure> {
        let (meta, given, mut body) = self.open(call, Some(range), remaining).await?;
        if given != range {
            let message = format!("bytes {range:?} were asked for, but the object has only {}", meta.size);
            return Err(Failure::new(BosErrorKind::InvalidRange, false, message));
        }
        let mut bytes = BytesMut::with_capacity(range.len() as usize);
        while let Some(piece) = body.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }

    /// One try, up to the first byte of the body.
    async fn open(
        &self,
        call: &Call<'_>,
        range: Option<ByteRange>,
        remaining: Option<std::time::Duration>,
    ) -> Result<(ObjectMeta, ByteRange, Received), Failure> {
        let mut response = self.sender.open_once(call, remaining).await?;
        let headers = std::mem::take(response.headers_mut());
        let odd = |message: String| Failure::odd(&headers, message);
        let len = content_length(&headers).ok_or_else(|| odd("the answer does not say how long it is".to_owned()))?;
        let (given, size) = given_range(response.status(), &headers, len, range).map_err(odd)?;
        let meta = wire::object_meta(&headers, size, unix_now_s()).map_err(odd)?;
        let body = Received { response, remaining: len, stall: call.policy.stall_timeout };
        Ok((meta, given, body))
    }
}

/// Which bytes of an object of which size an answer of `len` bytes carries, if they are what was asked for.
///
/// # Errors
/// They are not, or the answer does not say.
pub fn given_range(
    status: StatusCode,
    headers: &HeaderMap,
    len: u64,
    asked: Option<ByteRange>,
) -> Result<(ByteRange, u64), wire::Odd> {
    if status != StatusCode::PARTIAL_CONTENT {
        // A whole object may also be the answer to a range that covers it.
        return match asked {
            Some(asked) if asked.start > 0 || asked.end < len => {
                Err(format!("bytes {asked:?} were asked for, but the whole object came"))
            }
            _ => Ok((ByteRange::new(0, len), len)),
        };
    }
    let text = wire::text(headers, "content-range").ok_or("a partial answer does not say which part it is")?;
    let (given, size) =
        parse_content_range(&text).ok_or_else(|| format!("the range {text:?} of the answer makes no sense"))?;
    let expected = asked.map(|asked| asked.intersect(ByteRange::new(0, size)));
    if Some(given) != expected || given.len() != len {
        return Err(format!("bytes {asked:?} were asked for, but {text:?} came in {len} bytes"));
    }
    Ok((given, size))
}

/// `bytes a-b/total`.
fn parse_content_range(text: &str) -> Option<(ByteRange, u64)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then(|| (ByteRange::new(first, last + 1), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_or_refused() {
        assert_eq!(parse_content_range("bytes 0-0/1"), Some((ByteRange::new(0, 1), 1)));
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((ByteRange::new(5, 10), 10)));
        for bad in [
            "",
            "bytes */5",
            "bytes 5-4/10",
            "bytes 5-10/10",
            "bytes -1-4/9",
            "bytes 0-18446744073709551615/1",
            "0-1/2",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_body_counts_only_as_what_was_asked_for() {
        let partial = |content_range: &str, len, asked| {
            let headers = HeaderMap::from_iter([(header::CONTENT_RANGE, content_range.parse().unwrap())]);
            given_range(StatusCode::PARTIAL_CONTENT, &headers, len, asked)
        };
        let asked = Some(ByteRange::new(5, 20));
        assert_eq!(partial("bytes 5-19/30", 15, asked), Ok((ByteRange::new(5, 20), 30)));
        assert_eq!(partial("bytes 5-9/10", 5, asked), Ok((ByteRange::new(5, 10), 10)), "cut at the end of the object");
        assert!(partial("bytes 0-14/30", 15, asked).is_err());
        assert!(partial("bytes 5-9/30", 5, asked).is_err());
        assert!(partial("bytes 5-19/30", 14, asked).is_err());
        assert!(partial("bytes 5-19/30", 15, None).is_err());
        let whole = |len, asked| given_range(StatusCode::OK, &HeaderMap::new(), len, asked);
        assert!(whole(30, asked).is_err());
        assert_eq!(whole(10, Some(ByteRange::new(0, 20))), Ok((ByteRange::new(0, 10), 10)));
        assert_eq!(whole(0, None), Ok((ByteRange::new(0, 0), 0)));
    }
}
