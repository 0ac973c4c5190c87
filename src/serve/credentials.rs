//! The access key of a served folder: generated once, kept in its file `credentials`.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::bos::sign::Credentials;

/// Reads `dir/credentials`, or generates a key and writes it there (0600) in BOSFS2's form, so that
/// `bosfs mount --credentials` takes the file.
pub fn load_or_generate(dir: &Path) -> io::Result<Credentials> {
    let path = dir.join("credentials");
    match std::fs::read_to_string(&path) {
        Ok(text) => read(&text).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} has no bce_access_key_id and bce_secret_access_key; correct it, or remove it to have new ones made",
                    path.display()
                ),
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let credentials = Credentials::new(random_hex(), random_hex());
            write(dir, &credentials)?;
            Ok(credentials)
        }
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()))),
    }
}

/// 32 hex digits, as BOS's keys have.
fn random_hex() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

fn write(dir: &Path, credentials: &Credentials) -> io::Result<()> {
    let partial = dir.join("credentials.new");
    let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    writeln!(
        file,
        "[defaults]\nbce_access_key_id = {}\nbce_secret_access_key = {}",
        credentials.access_key_id, credentials.secret_access_key
    )?;
    file.sync_all()?;
    std::fs::rename(&partial, dir.join("credentials"))
}

fn read(text: &str) -> Option<Credentials> {
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name && !value.trim().is_empty()).then(|| value.trim().to_owned())
        })
    };
    let mut credentials = Credentials::new(value("bce_access_key_id")?, value("bce_secret_access_key")?);
    credentials.session_token = value("bce_security_token");
    Some(credentials)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn generated_credentials_are_private_and_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_generate(dir.path()).unwrap();
        assert_eq!((first.access_key_id.len(), first.secret_access_key.len()), (32, 32));
        assert_ne!(first.access_key_id, first.secret_access_key);
        assert_eq!(load_or_generate(dir.path()).unwrap(), first);
        let mode = std::fs::metadata(dir.path().join("credentials")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.path().join("credentials"), "[defaults]\nbce_access_key_id = a\n").unwrap();
        assert!(load_or_generate(dir.path()).unwrap_err().to_string().contains("bce_secret_access_key"));
    }
}
