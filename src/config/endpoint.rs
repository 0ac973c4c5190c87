//! Endpoints: from a region code or a URL to scheme, host and URL style.

use std::fmt;
use std::net::IpAddr;

/// Regions with their codes, as the BOS documentation lists them ("Service domain names").
pub const REGIONS: [(&str, &str); 9] = [
    ("bj", "bj.bcebos.com"),
    ("bd", "bd.bcebos.com"),
    ("su", "su.bcebos.com"),
    ("gz", "gz.bcebos.com"),
    ("cd", "cd.bcebos.com"),
    ("yq", "yq.bcebos.com"),
    ("hkg", "hkg.bcebos.com"),
    ("fwh", "fwh.bcebos.com"),
    ("fsh", "fsh.bcebos.com"),
];

/// The endpoint when nothing names one: Beijing, the default of the SDKs.
pub const DEFAULT_ENDPOINT: &str = "https://bj.bcebos.com";

/// Where BOS answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://` or `http://`.
    pub tls: bool,
    /// Host name or IP address, IPv6 in brackets, in lowercase.
    pub host: String,
    /// Port, where it is not the scheme's own.
    pub port: Option<u16>,
}

impl Endpoint {
    /// Reads `https://bj.bcebos.com`, `bj.bcebos.com`, `http://127.0.0.1:8000`. Without a scheme: `https`, but `http` for
    /// IP addresses and `localhost`, where no certificate could fit.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?} is no endpoint: {why}; write for example https://bj.bcebos.com");
        let trimmed = text.trim();
        let (scheme, rest) = match trimmed.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, trimmed),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.is_empty() {
            return Err(wrong("it has no host"));
        }
        if authority.contains(['/', '?', '#', '@']) || authority.contains(char::is_whitespace) {
            return Err(wrong("only scheme, host and port are allowed"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port: u16 = port.parse().map_err(|_| wrong("the port is no number from 1 to 65535"))?;
                if port == 0 {
                    return Err(wrong("the port is 0"));
                }
                (host, Some(port))
            }
            _ => (authority, None),
        };
        let host = host.to_ascii_lowercase();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name_fits = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
        if !(name_fits || (host.starts_with('[') && bare.parse::<IpAddr>().is_ok())) {
            return Err(wrong("the host has characters that no host name has"));
        }
        let local = is_local(&host);
        let tls = match scheme.as_deref() {
            Some("https") => true,
            Some("http") => false,
            Some(_) => return Err(wrong("the scheme is neither https nor http")),
            None => !local,
        };
        let port = port.filter(|&p| p != if tls { 443 } else { 80 });
        Ok(Self { tls, host, port })
    }

    /// The endpoint of a region code.
    ///
    /// # Errors
    /// A sentence that lists the known codes.
    pub fn of_region(code: &str) -> Result<Self, String> {
        let code = code.trim().to_ascii_lowercase();
        match REGIONS.iter().find(|(known, _)| *known == code) {
            Some((_, host)) => Ok(Self { tls: true, host: (*host).to_owned(), port: None }),
            None => {
                let known: Vec<&str> = REGIONS.iter().map(|(code, _)| *code).collect();
                Err(format!(
                    "{code:?} is no region that bosfs knows ({}); name its host with --endpoint",
                    known.join(", ")
                ))
            }
        }
    }

    /// Whether the bucket goes into the path (`host/bucket/key`) instead of the host name: IP addresses and `localhost`.
    pub fn path_style(&self) -> bool {
        is_local(&self.host)
    }

    /// The region code, where the host is one of BOS's own.
    pub fn region(&self) -> Option<&'static str> {
        REGIONS.iter().find(|(_, host)| self.host == *host).map(|(code, _)| *code)
    }
}

fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok()
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.host)?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_with_and_without_scheme() {
        for (text, shown, path_style) in [
            ("bj.bcebos.com", "https://bj.bcebos.com", false),
            ("HTTPS://BJ.bcebos.com/", "https://bj.bcebos.com", false),
            ("http://gz.bcebos.com", "http://gz.bcebos.com", false),
            ("https://gz.bcebos.com:443", "https://gz.bcebos.com", false),
            ("127.0.0.1:8000", "http://127.0.0.1:8000", true),
            ("localhost", "http://localhost", true),
            ("http://[::1]:9000", "http://[::1]:9000", true),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(endpoint.path_style(), path_style, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            ["", "ftp://x", "http://", "http://a/b", "http://user@host", "a b", "host:0", "host:99999", "ho_st:x"]
        {
            assert!(Endpoint::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn regions_have_the_documented_hosts() {
        assert_eq!(Endpoint::of_region("SU").unwrap().to_string(), "https://su.bcebos.com");
        assert_eq!(Endpoint::parse("hkg.bcebos.com").unwrap().region(), Some("hkg"));
        assert!(Endpoint::of_region("mars").unwrap_err().contains("bj, bd"));
    }
}
