//! `If-Match` and its relatives, for reads, writes and copy sources (RFC 9110; the live results of bos-api.md 3.1).

use http::HeaderMap;

use super::error::ApiError;
use super::headers::text;

/// The conditions of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    if_match: Option<String>,
    if_none_match: Option<String>,
    if_modified_since: Option<i64>,
    if_unmodified_since: Option<i64>,
}

/// What the conditions of a read say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Go,
    /// 304.
    NotModified,
    /// 412, by this header.
    Failed(&'static str),
}

/// An object, as far as conditions look at it.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    /// Without quotes.
    pub etag: &'a str,
    /// Seconds since 1970.
    pub modified: i64,
}

fn date(headers: &HeaderMap, name: &str) -> Result<Option<i64>, ApiError> {
    let time = text(headers, name).and_then(|value| httpdate::parse_http_date(value.trim()).ok());
    Ok(time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).map(|since| since.as_secs() as i64))
}

/// Whether a list of ETags (quoted or not, or `*`) has `etag`. An empty list has nothing.
fn lists(list: &str, etag: &str) -> bool {
    list.split(',').map(str::trim).any(|item| {
        let item = item.strip_prefix("W/").unwrap_or(item);
        item == "*" || (!item.is_empty() && item.trim_matches('"').eq_ignore_ascii_case(etag))
    })
}

impl Conditions {
    /// Those on the object that the request names.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        Ok(Self {
            if_match: text(headers, "if-match"),
            if_none_match: text(headers, "if-none-match"),
            if_modified_since: date(headers, "if-modified-since")?,
            if_unmodified_since: date(headers, "if-unmodified-since")?,
        })
    }

    /// Those on the source of a copy.
    pub fn of_copy_source(headers: &HeaderMap) -> Result<Self, ApiError> {
        Ok(Self {
            if_match: text(headers, "x-bce-copy-source-if-match"),
            if_none_match: text(headers, "x-bce-copy-source-if-none-match"),
            if_modified_since: date(headers, "x-bce-copy-source-if-modified-since")?,
            if_unmodified_since: date(headers, "x-bce-copy-source-if-unmodified-since")?,
        })
    }

    /// Whether a write may take the place of `present`.
    ///
    /// # Errors
    /// 412.
    pub fn check_write(&self, present: Option<Present<'_>>) -> Result<(), ApiError> {
        match (&self.if_match, present) {
            (Some(list), Some(object)) if lists(list, object.etag) => {}
            (Some(_), _) => return Err(ApiError::precondition("If-Match")),
            (None, Some(object)) if self.if_unmodified_since.is_some_and(|since| object.modified > since) => {
                return Err(ApiError::precondition("If-Unmodified-Since"));
            }
            (None, _) => {}
        }
        match (&self.if_none_match, present) {
            (Some(list), Some(object)) if lists(list, object.etag) => Err(ApiError::precondition("If-None-Match")),
            _ => Ok(()),
        }
    }

    /// Whether `object` may be read.
    pub fn check_read(&self, object: Present<'_>) -> Verdict {
        match &self.if_match {
            Some(list) if !lists(list, object.etag) => return Verdict::Failed("If-Match"),
            None if self.if_unmodified_since.is_some_and(|since| object.modified > since) => {
                return Verdict::Failed("If-Unmodified-Since");
            }
            _ => {}
        }
        match &self.if_none_match {
            Some(list) if lists(list, object.etag) => Verdict::NotModified,
            None if self.if_modified_since.is_some_and(|since| object.modified <= since) => Verdict::NotModified,
            _ => Verdict::Go,
        }
    }

    /// Whether `object` may be copied: as a read, but "not modified" is a failure too (live test).
    ///
    /// # Errors
    /// 412.
    pub fn check_source(&self, object: Present<'_>) -> Result<(), ApiError> {
        match self.check_read(object) {
            Verdict::Go => Ok(()),
            Verdict::NotModified => {
                Err(ApiError::precondition("x-bce-copy-source-if-none-match or -if-modified-since"))
            }
            Verdict::Failed(which) => Err(ApiError::precondition(which)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(list: &[(&'static str, &str)]) -> Conditions {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.insert(*name, value.parse().unwrap());
        }
        Conditions::of(&headers).unwrap()
    }

    const OBJECT: Present<'_> = Present { etag: "aa", modified: 1_000_000_000 };
    const BEFORE: &str = "Sun, 09 Sep 2001 01:46:39 GMT";
    const AT: &str = "Sun, 09 Sep 2001 01:46:40 GMT";

    #[test]
    fn writes() {
        let passes = |list: &[(&'static str, &str)], present| conditions(list).check_write(present).is_ok();
        assert!(passes(&[], None));
        assert!(passes(&[("if-match", "\"aa\"")], Some(OBJECT)));
        assert!(passes(&[("if-match", "AA")], Some(OBJECT)));
        assert!(passes(&[("if-match", "*")], Some(OBJECT)));
        assert!(passes(&[("if-match", "bb, \"aa\"")], Some(OBJECT)));
        assert!(!passes(&[("if-match", "")], Some(OBJECT)));
        assert!(!passes(&[("if-match", "*")], None));
        assert!(!passes(&[("if-match", "\"bb\"")], Some(OBJECT)));
        assert!(passes(&[("if-none-match", "*")], None));
        assert!(!passes(&[("if-none-match", "*")], Some(OBJECT)));
        assert!(!passes(&[("if-none-match", "\"aa\"")], Some(OBJECT)));
        assert!(passes(&[("if-none-match", "bb"), ("if-match", "aa")], Some(OBJECT)));
        assert!(!passes(&[("if-none-match", "aa"), ("if-match", "aa")], Some(OBJECT)));
        assert!(!passes(&[("if-unmodified-since", BEFORE)], Some(OBJECT)));
        assert!(passes(&[("if-unmodified-since", AT)], Some(OBJECT)));
        assert!(passes(&[("if-unmodified-since", BEFORE), ("if-match", "aa")], Some(OBJECT)));
    }

    #[test]
    fn reads() {
        let read = |list: &[(&'static str, &str)]| conditions(list).check_read(OBJECT);
        assert_eq!(read(&[]), Verdict::Go);
        assert_eq!(read(&[("if-match", "bb")]), Verdict::Failed("If-Match"));
        assert_eq!(read(&[("if-none-match", "aa")]), Verdict::NotModified);
        assert_eq!(read(&[("if-modified-since", AT)]), Verdict::NotModified);
        assert_eq!(read(&[("if-modified-since", BEFORE)]), Verdict::Go);
        assert_eq!(read(&[("if-modified-since", AT), ("if-none-match", "bb")]), Verdict::Go);
        assert_eq!(read(&[("if-unmodified-since", BEFORE)]), Verdict::Failed("If-Unmodified-Since"));
        assert!(conditions(&[("if-modified-since", AT)]).check_source(OBJECT).is_err());
    }
}
