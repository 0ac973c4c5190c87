//! Default places on disk, and the form `BUCKET[/PREFIX]`.

use std::path::{Path, PathBuf};

/// A bucket and the prefix of it that is mounted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BucketPath {
    /// Bucket name.
    pub bucket: String,
    /// Empty, or a prefix that ends in `/`.
    pub prefix: String,
}

impl BucketPath {
    /// Reads `BUCKET`, `BUCKET/`, `BUCKET/PRE/FIX`, also with a leading `bos:/` or `bos://`.
    ///
    /// # Errors
    /// A sentence that says which rule the name breaks (BOS docs, "Bucket naming": 3 to 63 of `a-z 0-9 -`).
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("bos:").map_or(text, |rest| rest.trim_start_matches('/'));
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        check_bucket_name(bucket)?;
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() {
            crate::object::ObjectKey::parse(prefix).map_err(|e| format!("the prefix cannot be mounted: {e}"))?;
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { bucket: bucket.to_owned(), prefix })
    }

    /// Reads `BUCKET/KEY` into the bucket and the key.
    ///
    /// # Errors
    /// A sentence that says what is missing or wrong.
    pub fn parse_key(text: &str) -> Result<(String, crate::object::ObjectKey), String> {
        let rest = text.strip_prefix("bos:").map_or(text, |rest| rest.trim_start_matches('/'));
        let (bucket, key) = rest.split_once('/').ok_or_else(|| format!("{text:?} names no key; write BUCKET/KEY"))?;
        check_bucket_name(bucket)?;
        let key = crate::object::ObjectKey::parse(key).map_err(|e| format!("{text:?}: {e}"))?;
        Ok((bucket.to_owned(), key))
    }
}

impl std::fmt::Display for BucketPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.prefix.strip_suffix('/') {
            Some(prefix) => write!(f, "{}/{prefix}", self.bucket),
            None => f.write_str(&self.bucket),
        }
    }
}

fn check_bucket_name(name: &str) -> Result<(), String> {
    let fits = (3..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits {
        Ok(())
    } else {
        Err(format!("{name:?} is no bucket name; BOS allows 3 to 63 of a-z, 0-9 and -, not beginning or ending with -"))
    }
}

/// Where `mount --local` keeps its objects by default: `bosfs-local` beside the other data of this user.
///
/// # Errors
/// Neither `XDG_DATA_HOME` nor `HOME` is set to an absolute path.
pub fn default_local_store() -> Result<PathBuf, String> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/bosfs-local"));
    }
    absolute_var("XDG_DATA_HOME")
        .or_else(|| absolute_var("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("bosfs-local"))
        .ok_or_else(|| "neither XDG_DATA_HOME nor HOME is set; name a folder with --local=DIR".to_owned())
}

/// Credential files that are looked at when nothing names one: bosfs's own, then bcecmd's.
pub fn default_credential_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let Some(config) = absolute_var("XDG_CONFIG_HOME").or_else(|| absolute_var("HOME").map(|h| h.join(".config"))) {
        files.push(config.join("bosfs/credentials"));
    }
    files.push(PathBuf::from("/etc/bosfs/credentials"));
    if let Some(home) = absolute_var("HOME") {
        files.push(home.join(".go-bcecli/credentials"));
    }
    files
}

fn absolute_var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// `path` made absolute against the present directory, without following links or asking whether it exists.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_paths_are_split_and_shown() {
        for (text, bucket, prefix, shown) in [
            ("my-bucket", "my-bucket", "", "my-bucket"),
            ("my-bucket/", "my-bucket", "", "my-bucket"),
            ("bos://my-bucket/a/b/", "my-bucket", "a/b/", "my-bucket/a/b"),
            ("bos:/my-bucket/a", "my-bucket", "a/", "my-bucket/a"),
        ] {
            let path = BucketPath::parse(text).unwrap();
            assert_eq!((path.bucket.as_str(), path.prefix.as_str()), (bucket, prefix));
            assert_eq!(path.to_string(), shown);
        }
        for bad in ["", "ab", "My-Bucket", "-ab", "ab-", "a_b", "abc/../x", "abc/x//y", &"a".repeat(64)] {
            assert!(BucketPath::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_need_a_bucket_before_them() {
        let (bucket, key) = BucketPath::parse_key("bkt/a b/c").unwrap();
        assert_eq!((bucket.as_str(), key.as_str()), ("bkt", "a b/c"));
        assert!(BucketPath::parse_key("bkt").is_err());
        assert!(BucketPath::parse_key("bkt/").is_err());
    }
}
