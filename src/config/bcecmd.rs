//! The `config` file that bcecmd keeps beside its `credentials`: which endpoint its user speaks to.

use std::path::Path;

use super::Endpoint;

/// Longest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The endpoint that the file `config` beside bcecmd's `credentials` names; `None` without such a file, or when it names
/// none. `Domain` goes before `Region`; `Https = no` is bcecmd's default and kept.
pub fn endpoint_beside(credentials: &Path) -> Option<Result<Endpoint, String>> {
    if credentials.file_name()? != "credentials" {
        return None;
    }
    let path = credentials.with_file_name("config");
    let meta = std::fs::metadata(&path).ok()?;
    if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
        return None;
    }
    let text = std::fs::read_to_string(&path).ok()?;
    parse(&text).map(|found| found.map_err(|error| format!("{}: {error}", path.display())))
}

/// The endpoint that the text of bcecmd's `config` names; `None` when it names none.
///
/// # Errors
/// What it names is no endpoint.
pub fn parse(text: &str) -> Option<Result<Endpoint, String>> {
    let (mut domain, mut region, mut https) = (None, None, None);
    let mut in_defaults = false;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(section) = line.strip_prefix('[') {
            in_defaults = section.trim_end_matches(']').trim().eq_ignore_ascii_case("defaults");
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| in_defaults) else { continue };
        let value = value.trim().trim_matches('"');
        if value.is_empty() {
            continue;
        }
        match name.trim().to_ascii_lowercase().as_str() {
            "domain" => domain = Some(value.to_owned()),
            "region" => region = Some(value.to_owned()),
            "https" | "usehttpsprotocol" => https = Some(value.eq_ignore_ascii_case("yes")),
            _ => {}
        }
    }
    let found = match (domain, region) {
        (Some(domain), _) => Endpoint::parse(&domain),
        (None, Some(region)) => Endpoint::of_region(&region),
        (None, None) => return None,
    };
    Some(found.map(|mut endpoint| {
        if https == Some(false) && endpoint.port.is_none() {
            endpoint.tls = false;
        }
        endpoint
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_region_and_https_are_read_from_the_defaults() {
        let parsed = |text: &str| parse(text).map(|found| found.unwrap().to_string());
        let full = "[Defaults]\nDomain = su.bcebos.com\nRegion = bj\nHttps = no\n[Domains \"bj\"]\nEndpoint = x\n";
        assert_eq!(parsed(full).as_deref(), Some("http://su.bcebos.com"));
        assert_eq!(parsed("[Defaults]\nRegion = gz\n").as_deref(), Some("https://gz.bcebos.com"));
        assert_eq!(parsed("[Defaults]\nHttps = yes\n"), None);
        assert_eq!(parsed("[Other]\nRegion = gz\n"), None);
        assert!(parse("[Defaults]\nRegion = nowhere\n").unwrap().is_err());
    }

    #[test]
    fn only_a_file_called_credentials_has_a_config_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config"), "[Defaults]\nRegion = gz\n").unwrap();
        assert!(endpoint_beside(&dir.path().join("credentials")).is_some());
        assert!(endpoint_beside(&dir.path().join("keys")).is_none());
    }
}
