//! Extended attributes: kept in the object's metadata as BOSFS 1.0 keeps them, `name:base64;name:base64`.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::Fs;
use super::attr::{Content, Node};
use super::change::check_room;
use super::error::{FsError, FsResult};
use crate::posix_meta::XATTRS;

/// Characters of a name that the list of attributes needs for itself.
const ESCAPED: &AsciiSet = &CONTROLS.add(b':').add(b';').add(b'%');

/// Longest name of an extended attribute (Linux `XATTR_NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// All extended attributes of a file, by name.
pub type Xattrs = BTreeMap<String, Vec<u8>>;

/// Reads the list as it is stored; what is not readable is left out.
pub fn decode(stored: &str) -> Xattrs {
    let pairs = stored.split(';').filter_map(|pair| {
        let (name, value) = pair.split_once(':')?;
        let name = percent_decode_str(name).decode_utf8().ok()?;
        Some((name.into_owned(), STANDARD.decode(value).ok()?))
    });
    pairs.filter(|(name, _)| (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains('\0')).collect()
}

/// The list as it is stored; `None` when there is nothing to store.
pub fn encode(xattrs: &Xattrs) -> Option<String> {
    let pair = |(name, value): (&String, &Vec<u8>)| {
        format!("{}:{}", utf8_percent_encode(name, ESCAPED), STANDARD.encode(value))
    };
    let pairs: Vec<String> = xattrs.iter().map(pair).collect();
    (!pairs.is_empty()).then(|| pairs.join(";"))
}

/// Whether attributes of this name are kept. ACLs and security labels are not: programs then fall back to the mode.
fn is_kept(name: &str) -> bool {
    ["user.", "trusted."].iter().any(|space| name.len() > space.len() && name.starts_with(space))
}

impl Fs {
    /// `getxattr`: the value.
    ///
    /// # Errors
    /// `ENODATA` where there is none; what BOS says.
    pub async fn getxattr(&self, ino: u64, name: &str) -> FsResult<Vec<u8>> {
        let missing = FsError::plain(libc::ENODATA);
        if !is_kept(name) {
            return Err(missing);
        }
        let node = self.node(ino)?;
        self.refresh_attrs(&node).await?;
        xattrs_of(&node).remove(name).ok_or(missing)
    }

    /// `listxattr`: the names, each with a NUL behind it.
    ///
    /// # Errors
    /// What BOS says.
    pub async fn listxattr(&self, ino: u64) -> FsResult<Vec<u8>> {
        let node = self.node(ino)?;
        self.refresh_attrs(&node).await?;
        Ok(xattrs_of(&node).into_keys().flat_map(|name| [name.into_bytes(), vec![0]].concat()).collect())
    }

    /// `setxattr`, with the flags of setxattr(2).
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other names than `user.*` and `trusted.*`, and on directories; `EEXIST`, `ENODATA` by the flags;
    /// `ENOSPC` when the object's metadata would have more than BOS takes.
    pub async fn setxattr(&self, ino: u64, name: &str, value: &[u8], flags: i32) -> FsResult<()> {
        self.check_writable()?;
        if !is_kept(name) {
            return Err(FsError::plain(libc::EOPNOTSUPP));
        }
        self.change_xattrs(ino, |xattrs| {
            let present = xattrs.contains_key(name);
            match (flags, present) {
                (libc::XATTR_CREATE, true) => Err(FsError::plain(libc::EEXIST)),
                (libc::XATTR_REPLACE, false) => Err(FsError::plain(libc::ENODATA)),
                _ => {
                    xattrs.insert(name.to_owned(), value.to_vec());
                    Ok(())
                }
            }
        })
        .await
    }

    /// `removexattr`.
    ///
    /// # Errors
    /// `ENODATA` where there is none; as [`Fs::setxattr`].
    pub async fn removexattr(&self, ino: u64, name: &str) -> FsResult<()> {
        self.check_writable()?;
        let missing = FsError::plain(libc::ENODATA);
        if !is_kept(name) {
            return Err(missing);
        }
        self.change_xattrs(ino, |xattrs| xattrs.remove(name).map(|_| ()).ok_or(missing)).await
    }

    async fn change_xattrs(&self, ino: u64, act: impl FnOnce(&mut Xattrs) -> FsResult<()>) -> FsResult<()> {
        let node = self.node(ino)?;
        if Self::virtual_of(&node).is_some() {
            return Err(FsError::plain(libc::EPERM));
        }
        self.refresh(&node).await?;
        let content = node.body.state.lock().content.clone();
        let (headers, attrs) = match &content {
            Content::Object(object) => (object.headers.unpack(), object.attrs),
            Content::Dirty(file) => (file.headers(), file.attrs()),
            Content::Dir(_) | Content::Virtual(_) => return Err(FsError::plain(libc::EOPNOTSUPP)),
        };
        let mut xattrs = xattrs_of(&node);
        act(&mut xattrs)?;
        let stored = encode(&xattrs);
        let mut wanted = headers;
        match &stored {
            Some(stored) => wanted.metadata.insert(XATTRS.to_owned(), stored.clone()),
            None => wanted.metadata.remove(XATTRS),
        };
        let key = self.key_of(&node)?;
        check_room(&key, &wanted, &attrs)?;
        if matches!(content, Content::Object(_)) {
            self.check_copyable(&key, &wanted).await?;
        }
        node.body.state.lock().touch();
        match content {
            Content::Dirty(file) => {
                file.set_xattrs(stored)?;
                node.body.state.lock().keep(&file);
                Ok(())
            }
            Content::Object(_) => self.change_dirty(&node, |file| file.set_xattrs(stored)).await,
            Content::Dir(_) | Content::Virtual(_) => Err(FsError::plain(libc::EOPNOTSUPP)),
        }
    }
}

fn xattrs_of(node: &Arc<Node>) -> Xattrs {
    let stored = match &node.body.state.lock().content {
        Content::Object(object) => object.headers.metadata().remove(XATTRS),
        Content::Dirty(file) => file.xattrs(),
        Content::Dir(_) | Content::Virtual(_) => None,
    };
    stored.map(|stored| decode(&stored)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_back() {
        let xattrs: Xattrs = [("user.a", &b""[..]), ("user.\u{4e2d}:;%", &[0, 255, b';']), ("trusted.x", b"v")]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_vec()))
            .collect();
        let stored = encode(&xattrs).unwrap();
        assert_eq!(decode(&stored), xattrs);
        assert_eq!(encode(&Xattrs::new()), None);
    }

    #[test]
    fn the_form_of_bosfs_1_is_read_and_nonsense_left_out() {
        let xattrs = decode("user.one:MQ==;junk;user.two:Mg==;bad:***;:MQ==;user.%00nul:MQ==");
        assert_eq!(xattrs.len(), 2);
        assert_eq!((xattrs["user.one"].as_slice(), xattrs["user.two"].as_slice()), (&b"1"[..], &b"2"[..]));
    }

    #[test]
    fn only_what_an_object_can_keep_is_taken() {
        assert!(is_kept("user.x") && is_kept("trusted.x"));
        for name in ["user.", "security.capability", "system.posix_acl_access", "x"] {
            assert!(!is_kept(name), "{name}");
        }
    }
}
