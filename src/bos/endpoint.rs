//! Where a bucket is reached: endpoint text to scheme, host and URL style.

use reqwest::Url;

use super::error::{BosError, BosErrorKind};
use super::sign::{uri_encode, uri_encode_except_slash};

/// The endpoint as the user gave it, taken apart, with the bucket worked in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Value of the `Host` header: with the bucket unless in path style, with the port unless it is the default.
    pub host: String,
    /// Endpoint with scheme, without bucket, for people.
    pub endpoint: String,
    /// Bucket.
    pub bucket: String,
    /// The bucket stands in the path.
    pub path_style: bool,
    /// The host is this machine.
    pub loopback: bool,
}

impl Target {
    /// Reads `endpoint`: a host with optional scheme and port. Without a scheme https is meant, but http for IP addresses
    /// and `localhost`, which also get path style unless `path_style` says otherwise. A host that begins with the
    /// bucket's name already is used as it stands.
    ///
    /// # Errors
    /// An endpoint that is no host, or a name that no bucket has.
    pub fn new(endpoint: &str, bucket: &str, path_style: Option<bool>) -> Result<Self, BosError> {
        let invalid = |message: String| BosError::new(BosErrorKind::InvalidName, message);
        check_bucket(bucket).map_err(invalid)?;
        let bad = |why: &str| {
            // What stands before an `@` may be a password.
            let shown = endpoint.rsplit('@').next().unwrap_or_default();
            invalid(format!(
                "{shown:?} is no endpoint ({why}); give a host such as bj.bcebos.com or http://127.0.0.1:8080"
            ))
        };
        let given = endpoint.trim();
        // The scheme only settles how the rest is read; whether the host is an address is not known before.
        let (scheme, rest) = match given.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, given),
        };
        let probe = Url::parse(&format!("http://{rest}")).map_err(|error| bad(&error.to_string()))?;
        if !probe.username().is_empty() || probe.password().is_some() {
            return Err(invalid("an endpoint carries no user name or password".to_owned()));
        }
        if probe.path() != "/" || probe.query().is_some() || probe.fragment().is_some() {
            return Err(bad("it has a path"));
        }
        let name = probe.host_str().filter(|host| !host.is_empty()).ok_or_else(|| bad("it has no host"))?;
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().ok();
        let localhost = name == "localhost" || name.ends_with(".localhost");
        let scheme = match scheme.as_deref() {
            Some("https") => "https",
            Some("http") => "http",
            Some(_) => return Err(bad("the scheme is neither http nor https")),
            None if address.is_some() || localhost => "http",
            None => "https",
        };
        let url = Url::parse(&format!("{scheme}://{rest}")).map_err(|error| bad(&error.to_string()))?;
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let path_style = path_style.unwrap_or(address.is_some() || localhost);
        let has_bucket = name.strip_prefix(bucket).is_some_and(|rest| rest.starts_with('.'));
        let host = if path_style || has_bucket { format!("{name}{port}") } else { format!("{bucket}.{name}{port}") };
        Ok(Self {
            scheme,
            host,
            endpoint: format!("{scheme}://{name}{port}"),
            bucket: bucket.to_owned(),
            path_style,
            loopback: localhost || address.is_some_and(|address| address.is_loopback()),
        })
    }

    /// The absolute path of `key` (of the bucket itself without one), not encoded: what is signed.
    ///
    /// BOS takes one [`VERSION_PREFIXES`] segment off the front of every path, so that a key which begins with one would
    /// reach another object. Such a key travels behind a segment of its own, which is taken off in its place. In path style
    /// the bucket stands in front, and no bucket has such a name.
    pub fn path(&self, key: Option<&str>) -> String {
        match (self.path_style, key) {
            (true, key) => format!("/{}/{}", self.bucket, key.unwrap_or_default()),
            (false, Some(key)) if without_version(key) != key => format!("/{}/{key}", VERSION_PREFIXES[0]),
            (false, key) => format!("/{}", key.unwrap_or_default()),
        }
    }

    /// The URL of `path` (as [`path`](Self::path) gave it) with `query`.
    ///
    /// # Errors
    /// When a URL library would send another path or query than the one that is signed.
    pub fn url(&self, path: &str, query: &[(String, String)]) -> Result<Url, BosError> {
        let path = uri_encode_except_slash(path);
        let query: Vec<String> = query
            .iter()
            .map(|(name, value)| match value.as_str() {
                "" => uri_encode(name),
                value => format!("{}={}", uri_encode(name), uri_encode(value)),
            })
            .collect();
        let query = query.join("&");
        let mut text = format!("{}://{}{path}", self.scheme, self.host);
        if !query.is_empty() {
            text.push('?');
            text.push_str(&query);
        }
        match Url::parse(&text) {
            Ok(url) if url.path() == path && url.query().unwrap_or_default() == query => Ok(url),
            _ => Err(BosError::new(
                BosErrorKind::InvalidName,
                format!("{path:?} cannot be sent in a URL as it stands; nothing was sent"),
            )),
        }
    }
}

/// Segments that BOS takes off the front of a path: older programs and the Java SDK send `/v1/KEY` and mean `KEY`.
pub const VERSION_PREFIXES: [&str; 2] = ["v1", "json-api"];

/// What BOS makes of `path` (without its first `/`): one segment of [`VERSION_PREFIXES`] is taken off. Whether capitals
/// count as well is not known; a key that only might be cut is sent behind a prefix, too, which does no harm.
pub fn without_version(path: &str) -> &str {
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    if VERSION_PREFIXES.iter().any(|prefix| first.eq_ignore_ascii_case(prefix)) { rest } else { path }
}

/// BOS's rule for bucket names: 3 to 64 of `a-z 0-9 -`, beginning and ending with a letter or digit.
fn check_bucket(bucket: &str) -> Result<(), String> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = bucket.as_bytes();
    let ends = bytes.first().copied().is_some_and(plain) && bytes.last().copied().is_some_and(plain);
    if (3..=64).contains(&bytes.len()) && ends && bytes.iter().all(|&c| plain(c) || c == b'-') {
        return Ok(());
    }
    Err(format!(
        "{bucket:?} is no name of a bucket: 3 to 64 lowercase letters, digits and hyphens, a letter or digit at both ends"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(endpoint: &str, path_style: Option<bool>) -> (String, bool) {
        let target = Target::new(endpoint, "bkt", path_style).unwrap();
        (format!("{}://{}", target.scheme, target.host), target.path_style)
    }

    #[test]
    fn names_get_virtual_hosts_and_addresses_get_paths() {
        for (endpoint, style, expected) in [
            ("bj.bcebos.com", None, ("https://bkt.bj.bcebos.com", false)),
            ("http://bj.bcebos.com/", None, ("http://bkt.bj.bcebos.com", false)),
            ("https://BJ.bcebos.com:443", None, ("https://bkt.bj.bcebos.com", false)),
            ("bkt.bj.bcebos.com", None, ("https://bkt.bj.bcebos.com", false)),
            ("bktx.bj.bcebos.com", None, ("https://bkt.bktx.bj.bcebos.com", false)),
            ("bj.bcebos.com", Some(true), ("https://bj.bcebos.com", true)),
            ("127.0.0.1:8080", None, ("http://127.0.0.1:8080", true)),
            ("https://127.0.0.1", None, ("https://127.0.0.1", true)),
            ("localhost:9000", None, ("http://localhost:9000", true)),
            ("[::1]:80", None, ("http://[::1]", true)),
            ("localhost:9000", Some(false), ("http://bkt.localhost:9000", false)),
        ] {
            assert_eq!(host(endpoint, style), (expected.0.to_owned(), expected.1), "{endpoint}");
        }
    }

    #[test]
    fn what_is_no_endpoint_or_bucket_is_refused_with_a_hint() {
        for bad in ["", "ftp://x", "http://x/path", "x y", "http://user:pw@x", "x?y", "://"] {
            let error = Target::new(bad, "bkt", None).unwrap_err();
            assert_eq!(error.kind, BosErrorKind::InvalidName, "{bad}");
            assert!(!error.to_string().contains("pw"), "{error}");
        }
        for bad in ["", "ab", "-ab", "ab-", "Abc", "a_b", "a/b", "a.b", &"a".repeat(65)] {
            assert!(Target::new("bj.bcebos.com", bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_that_begin_with_what_bos_takes_off_travel_behind_one_more() {
        let named = Target::new("bj.bcebos.com", "bkt", None).unwrap();
        for (key, path) in [
            ("v1/a", "/v1/v1/a"),
            ("v1", "/v1/v1"),
            ("v1/", "/v1/v1/"),
            ("V1/a", "/v1/V1/a"),
            ("v1/v1/a", "/v1/v1/v1/a"),
            ("json-api/a", "/v1/json-api/a"),
            ("v1x/a", "/v1x/a"),
            ("a/v1/b", "/a/v1/b"),
        ] {
            assert_eq!(named.path(Some(key)), path);
            assert_eq!(without_version(path.strip_prefix('/').unwrap()), key, "what BOS makes of it");
        }
        assert_eq!(named.path(None), "/");
        let address = Target::new("127.0.0.1:80", "bkt", None).unwrap();
        assert_eq!(address.path(Some("v1/a")), "/bkt/v1/a", "the bucket stands in front");
    }

    #[test]
    fn odd_keys_reach_the_url_exactly_as_signed() {
        let target = Target::new("127.0.0.1:1", "bkt", None).unwrap();
        for key in
            ["目录 1/a+b%c d.bin", "a?b#c", "[x]|^\\", "\"'`{}", "%2e%2e", "..a", "a/...", "~", "a;b=c&d", "\u{7f}\n"]
        {
            let path = target.path(Some(key));
            let url = target.url(&path, &[("prefix".to_owned(), key.to_owned())]).unwrap();
            let decoded = percent_encoding::percent_decode_str(url.path()).decode_utf8().unwrap();
            assert_eq!(decoded, format!("/bkt/{key}"));
        }
        assert!(target.url("/bkt/a/../b", &[]).is_err());
        assert_eq!(target.url("/bkt/k", &[("uploads".to_owned(), String::new())]).unwrap().query(), Some("uploads"));
    }
}
