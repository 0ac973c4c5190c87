//! Access keys: where they are looked up, the file formats of bosfs, bosfs2 and bcecmd, and re-reading them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::paths;
use crate::bos::credentials::CredentialsProvider;
use crate::bos::sign::Credentials;

/// Longest credential file that is read, bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// How often a credential file is looked at for changes, unless it says `reload_interval_s`.
const RECHECK_DEFAULT: Duration = Duration::from_secs(1);

/// A text that is never shown: `Debug` and `Display` print stars.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the signer and the pipe to our own child process.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One set of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Access key ID (AK).
    pub access_key_id: String,
    /// Secret access key (SK).
    pub secret_access_key: Secret,
    /// Session token of temporary keys (STS).
    pub session_token: Option<Secret>,
}

impl Keys {
    fn for_signing(&self) -> Arc<Credentials> {
        Arc::new(Credentials {
            access_key_id: self.access_key_id.clone(),
            secret_access_key: self.secret_access_key.expose().to_owned(),
            session_token: self.session_token.as_ref().map(|token| token.expose().to_owned()),
        })
    }
}

/// Why there are no keys. Never carries a secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Nothing names any.
    #[error("no credentials: neither -o ak=,sk= nor --credentials nor BCE_ACCESS_KEY_ID is given, and none of {} exists",
        .looked_at.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    None {
        /// The default files that were looked for.
        looked_at: Vec<PathBuf>,
    },
    /// One of the two keys is missing.
    #[error("{place} gives {given} but not {missing}")]
    Half {
        /// Options, environment, or the file.
        place: String,
        /// What is there.
        given: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot read the credentials file {}: {source}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no credentials file.
    #[error("the credentials file {} {why}", .path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong; names lines, never their values.
        why: String,
    },
    /// A key has characters that no key has (they would end up in a header).
    #[error("{place} gives an access key ID with characters other than printable ASCII")]
    BadKey {
        /// Options, environment, or the file.
        place: String,
    },
}

/// What a credentials or bcecmd `config` file said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parsed {
    access_key_id: Option<String>,
    secret_access_key: Option<Secret>,
    session_token: Option<Secret>,
    reload_interval: Option<Duration>,
}

/// Reads `key = value` lines, with or without a `[section]` before them. The keys of bosfs and bosfs2
/// (`bce_access_key_id`, ...) and of bcecmd (`Ak`, `Sk`, `Sts`) are understood in one file; names ignore case. With
/// sections, only those called `defaults` or `default` count.
fn parse(path: &Path, text: &str) -> Result<Parsed, CredentialsError> {
    let malformed = |why: String| CredentialsError::Malformed { path: path.to_owned(), why };
    let mut parsed = Parsed::default();
    let mut in_defaults = true;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim().trim_start_matches('\u{feff}');
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            let name = section.strip_suffix(']').ok_or_else(|| malformed(format!("has no ] in line {}", index + 1)))?;
            in_defaults = matches!(name.trim().to_ascii_lowercase().as_str(), "defaults" | "default");
            continue;
        }
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| malformed(format!("has neither `name = value` nor [section] in line {}", index + 1)))?;
        if !in_defaults {
            continue;
        }
        let value = value.trim().trim_matches('"');
        if value.is_empty() {
            continue;
        }
        match name.trim().to_ascii_lowercase().as_str() {
            "bce_access_key_id" | "ak" => parsed.access_key_id = Some(value.to_owned()),
            "bce_secret_access_key" | "sk" => parsed.secret_access_key = Some(Secret::new(value)),
            "bce_security_token" | "bce_session_token" | "sts" | "sts_token" => {
                parsed.session_token = Some(Secret::new(value));
            }
            "reload_interval_s" => {
                let seconds: u64 = value.parse().map_err(|_| {
                    malformed(format!("has a reload_interval_s that is no number in line {}", index + 1))
                })?;
                parsed.reload_interval = Some(Duration::from_secs(seconds.clamp(1, 3600)));
            }
            _ => {}
        }
    }
    Ok(parsed)
}

/// Puts the halves together; both keys or an error that says which is missing.
fn join(
    place: &str,
    access_key_id: Option<String>,
    secret_access_key: Option<Secret>,
    session_token: Option<Secret>,
) -> Result<Keys, CredentialsError> {
    let half = |given, missing| CredentialsError::Half { place: place.to_owned(), given, missing };
    let (access_key_id, secret_access_key) = match (access_key_id, secret_access_key) {
        (Some(ak), Some(sk)) => (ak, sk),
        (Some(_), None) => return Err(half("an access key ID", "the secret access key")),
        (None, Some(_)) => return Err(half("a secret access key", "the access key ID")),
        (None, None) => return Err(half("neither key", "an access key ID and a secret access key")),
    };
    if access_key_id.is_empty() || !access_key_id.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
        return Err(CredentialsError::BadKey { place: place.to_owned() });
    }
    Ok(Keys { access_key_id, secret_access_key, session_token })
}

fn read_file(path: &Path) -> Result<(Keys, FileVersion, Duration), CredentialsError> {
    let unreadable = |source| CredentialsError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(CredentialsError::Malformed { path: path.to_owned(), why: "is no regular file".to_owned() });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(CredentialsError::Malformed {
            path: path.to_owned(),
            why: format!("has more than {FILE_BYTES_MAX} bytes"),
        });
    }
    let (keys, interval) = keys_in(path, &text)?;
    Ok((keys, FileVersion::of(&meta), interval))
}

/// The keys in the text of the credentials file `path`, and how often the file is looked at for changes.
///
/// # Errors
/// No keys, or a line that is none; the error never carries a value.
pub fn keys_in(path: &Path, text: &str) -> Result<(Keys, Duration), CredentialsError> {
    let parsed = parse(path, text)?;
    if parsed.access_key_id.is_none() && parsed.secret_access_key.is_none() {
        return Err(CredentialsError::Malformed {
            path: path.to_owned(),
            why:
                "has no key in it; bosfs looks for bce_access_key_id and bce_secret_access_key, or Ak and Sk as bcecmd \
                  writes them, without a section or under [defaults]"
                    .to_owned(),
        });
    }
    let interval = parsed.reload_interval.unwrap_or(RECHECK_DEFAULT);
    let place = format!("the credentials file {}", path.display());
    let keys = join(&place, parsed.access_key_id, parsed.secret_access_key, parsed.session_token)?;
    Ok((keys, interval))
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
}

impl FileVersion {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino(), size: meta.size(), mtime: (meta.mtime(), meta.mtime_nsec()) }
    }
}

/// Keys that are at hand, read again when their file changes. `Debug` shows where they come from, never a secret.
pub struct CredentialsSource {
    place: Place,
    present: Mutex<Present>,
}

enum Place {
    Given(&'static str),
    File(PathBuf),
}

struct Present {
    keys: Keys,
    /// The same in the signer's form.
    signing: Arc<Credentials>,
    /// Of the file that `keys` are from.
    version: Option<FileVersion>,
    /// Of the file at the last look.
    seen: Option<FileVersion>,
    interval: Duration,
    looked_at: Instant,
    /// What was wrong with the file when it was last read; told once.
    complaint: Option<String>,
}

impl Present {
    fn new(keys: Keys, version: Option<FileVersion>, interval: Duration) -> Self {
        let (signing, looked_at) = (keys.for_signing(), Instant::now());
        Self { signing, keys, version, seen: version, interval, looked_at, complaint: None }
    }
}

impl CredentialsSource {
    /// Keys that never change.
    pub fn fixed(keys: Keys) -> Self {
        Self::given("the options", keys)
    }

    fn given(place: &'static str, keys: Keys) -> Self {
        Self { place: Place::Given(place), present: Mutex::new(Present::new(keys, None, Duration::MAX)) }
    }

    /// The keys in `path`. Warns in the log when others can read the file.
    ///
    /// # Errors
    /// The file is missing, unreadable or has no keys.
    pub fn file(path: &Path) -> Result<Self, CredentialsError> {
        let path = paths::absolute(path);
        let (keys, version, interval) = read_file(&path)?;
        if let Ok(meta) = std::fs::metadata(&path)
            && meta.mode() & 0o044 != 0
        {
            log::warn!(
                "the credentials file {} can be read by others (mode {:03o}); run: chmod 600 {}",
                path.display(),
                meta.mode() & 0o777,
                path.display()
            );
        }
        let present = Mutex::new(Present::new(keys, Some(version), interval));
        Ok(Self { place: Place::File(path), present })
    }

    /// Looks keys up: `options` (from `-o ak=,sk=,sts_token=`), then the file of `--credentials`, then the environment
    /// (`BCE_ACCESS_KEY_ID`, `BCE_SECRET_ACCESS_KEY`, `BCE_SESSION_TOKEN` or `BCE_SECURITY_TOKEN`), then the default files.
    ///
    /// # Errors
    /// The first place that names keys and has none that can be used; or no place names any.
    pub fn find(options: &GivenKeys, file: Option<&Path>) -> Result<Self, CredentialsError> {
        if !options.is_empty() {
            let keys = join(
                "the -o list",
                options.access_key_id.clone(),
                options.secret_access_key.clone(),
                options.session_token.clone(),
            )?;
            return Ok(Self::given("the -o list", keys));
        }
        if let Some(path) = file {
            return Self::file(path);
        }
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (ak, sk) = (var("BCE_ACCESS_KEY_ID"), var("BCE_SECRET_ACCESS_KEY"));
        if ak.is_some() || sk.is_some() {
            let token = var("BCE_SESSION_TOKEN").or_else(|| var("BCE_SECURITY_TOKEN"));
            let keys = join("the environment", ak, sk.map(Secret::new), token.map(Secret::new))?;
            return Ok(Self::given("the environment", keys));
        }
        let looked_at = paths::default_credential_files();
        match looked_at.iter().find(|path| path.exists()) {
            Some(path) => Self::file(path),
            None => Err(CredentialsError::None { looked_at }),
        }
    }

    /// The file the keys come from, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Given(_) => None,
            Place::File(path) => Some(path),
        }
    }

    /// The present keys.
    pub fn keys(&self) -> Keys {
        self.present.lock().keys.clone()
    }

    /// Looks at the file if its interval has passed, and reads it if it has changed. A file that is missing or broken at
    /// that moment leaves the old keys in place, with a warning in the log. A session calls this every second.
    pub fn refresh(&self) {
        let Place::File(path) = &self.place else { return };
        {
            let mut present = self.present.lock();
            if present.looked_at.elapsed() < present.interval {
                return;
            }
            present.looked_at = Instant::now();
        }
        // The file may lie on a slow disk: no lock while it is read.
        let version = std::fs::metadata(path).map(|meta| FileVersion::of(&meta)).ok();
        let rested = {
            let mut present = self.present.lock();
            // Whoever writes it may be in the middle: it is read once it has rested from one look to the next.
            let rested = present.seen == version;
            present.seen = version;
            rested && version != present.version
        };
        if rested {
            self.read_again(path);
        }
    }

    /// Reads the file again now, because BOS refused `refused`. Whether other keys are there now, also if they were read in
    /// the moment since the refused request was signed.
    pub fn reload_now(&self, refused: &Credentials) -> bool {
        let Place::File(path) = &self.place else { return false };
        self.read_again(path);
        *self.present.lock().signing != *refused
    }

    fn read_again(&self, path: &Path) {
        let read = read_file(path);
        let mut present = self.present.lock();
        present.looked_at = Instant::now();
        match read {
            Ok((keys, version, interval)) => {
                if keys != present.keys {
                    log::info!("read new credentials from {} (access key ID {})", path.display(), keys.access_key_id);
                    present.signing = keys.for_signing();
                    present.keys = keys;
                }
                present.version = Some(version);
                present.seen = Some(version);
                present.interval = interval;
                present.complaint = None;
            }
            Err(error) => {
                let complaint = error.to_string();
                if present.complaint.as_ref() != Some(&complaint) {
                    log::warn!("{complaint}; the earlier credentials stay in use");
                    present.complaint = Some(complaint);
                }
            }
        }
    }
}

impl CredentialsProvider for CredentialsSource {
    fn current(&self) -> Arc<Credentials> {
        self.present.lock().signing.clone()
    }

    fn reload(&self, refused: &Credentials) -> bool {
        self.reload_now(refused)
    }

    fn can_renew(&self) -> bool {
        matches!(self.place, Place::File(_))
    }
}

impl fmt::Debug for CredentialsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Given(place) => write!(f, "credentials from {place}"),
            Place::File(path) => write!(f, "credentials from {}", path.display()),
        }
    }
}

/// Keys taken from an `-o` list, possibly none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GivenKeys {
    /// `ak`.
    pub access_key_id: Option<String>,
    /// `sk`.
    pub secret_access_key: Option<Secret>,
    /// `sts_token`.
    pub session_token: Option<Secret>,
}

impl GivenKeys {
    /// Whether no key was given at all.
    pub fn is_empty(&self) -> bool {
        self.access_key_id.is_none() && self.secret_access_key.is_none() && self.session_token.is_none()
    }
}

impl From<Keys> for GivenKeys {
    fn from(keys: Keys) -> Self {
        Self {
            access_key_id: Some(keys.access_key_id),
            secret_access_key: Some(keys.secret_access_key),
            session_token: keys.session_token,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(ak: &str, sk: &str, sts: Option<&str>) -> Keys {
        Keys { access_key_id: ak.to_owned(), secret_access_key: Secret::new(sk), session_token: sts.map(Secret::new) }
    }

    fn file_with(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn the_three_file_formats_are_read() {
        for text in [
            "[defaults]\nbce_access_key_id = AK\nbce_secret_access_key = SK=+/\nbce_security_token = T\nreload_interval_s = 60\n",
            "bce_access_key_id=AK\nbce_secret_access_key=SK=+/\nbce_security_token=T\nreload_interval_s=1\n",
            "; credentials\n[Defaults]\nAk = AK\nSk = SK=+/\nSts = T\n\n[Other]\nAk = no\n",
        ] {
            let (_dir, path) = file_with(text);
            assert_eq!(CredentialsSource::file(&path).unwrap().keys(), keys("AK", "SK=+/", Some("T")), "{text}");
        }
    }

    #[test]
    fn broken_files_are_named_and_never_quoted() {
        for (text, part) in [
            ("", "no key in it"),
            ("[x]\nbce_access_key_id = AK\nbce_secret_access_key = topsecret\n", "no key in it"),
            ("bce_access_key_id = AK\n", "not the secret access key"),
            ("bce_secret_access_key = topsecret\n", "not the access key ID"),
            ("topsecret\n", "line 1"),
            ("[defaults\nak = topsecret", "line 1"),
            ("ak = A K\nsk = topsecret", "printable"),
        ] {
            let (_dir, path) = file_with(text);
            let message = CredentialsSource::file(&path).unwrap_err().to_string();
            assert!(message.contains(part), "{text:?}: {message}");
            assert!(message.contains(path.to_str().unwrap()), "{message}");
            assert!(!message.contains("topsecret"), "{message}");
        }
        let missing = CredentialsSource::file(Path::new("/nonexistent/keys")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/keys") && missing.contains("No such file"), "{missing}");
    }

    #[test]
    fn a_replaced_file_is_read_again_and_a_broken_one_keeps_the_old_keys() {
        let (_dir, path) = file_with("ak = A\nsk = 1\n");
        let source = CredentialsSource::file(&path).unwrap();
        let refused = source.current();
        std::fs::write(&path, "ak = A\nsk = 2\nsts = T\n").unwrap();
        assert!(source.reload_now(&refused));
        assert_eq!(source.keys(), keys("A", "2", Some("T")));
        assert!(source.reload_now(&refused), "others are there than those that were refused");
        assert!(!source.reload_now(&source.current()), "nothing new");
        std::fs::write(&path, "ak = A\n").unwrap();
        assert!(!source.reload_now(&source.current()));
        assert_eq!(source.keys(), keys("A", "2", Some("T")));
    }

    #[test]
    fn a_change_is_seen_without_being_asked_once_the_interval_has_passed() {
        let (_dir, path) = file_with("ak = A\nsk = 1\n");
        let source = CredentialsSource::file(&path).unwrap();
        std::fs::write(&path, "ak = A\nsk = 22\n").unwrap();
        source.refresh();
        assert_eq!(source.keys(), keys("A", "1", None), "looked at a moment ago");
        source.present.lock().interval = Duration::ZERO;
        source.refresh();
        assert_eq!(source.keys(), keys("A", "1", None), "it may still be being written");
        source.refresh();
        assert_eq!(source.keys(), keys("A", "22", None));
        assert_eq!(source.current().secret_access_key, "22");
    }

    #[test]
    fn keys_that_were_read_since_a_request_was_signed_are_worth_another_try() {
        let (_dir, path) = file_with("ak = A\nsk = 1\n");
        let source = CredentialsSource::file(&path).unwrap();
        let refused = source.current();
        std::fs::write(&path, "ak = A\nsk = 22\n").unwrap();
        source.present.lock().interval = Duration::ZERO;
        source.refresh();
        source.refresh();
        assert!(source.reload_now(&refused), "the file has nothing new, but the refused keys are old");
    }

    #[test]
    fn secrets_cannot_be_printed() {
        let keys = keys("AK", "topsecret", Some("toptoken"));
        let source = CredentialsSource::fixed(keys.clone());
        for shown in [format!("{keys:?}"), format!("{source:?}"), keys.secret_access_key.to_string()] {
            assert!(!shown.contains("top"), "{shown}");
        }
    }

    #[test]
    fn half_of_the_keys_in_the_option_list_is_an_error() {
        let given = GivenKeys { access_key_id: Some("AK".to_owned()), ..GivenKeys::default() };
        let error = CredentialsSource::find(&given, None).unwrap_err();
        assert!(matches!(error, CredentialsError::Half { .. }), "{error}");
    }
}
