//! Metadata headers of an object. Input: `Name: value` lines.

use std::time::SystemTime;

use bosfs::bos::wire;
use bosfs::fs::xattr;
use bosfs::object::Timestamp;
use bosfs::posix_meta::{
    AttrDefaults, METADATA_BYTES_MAX, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, XATTRS, fits_metadata_limit, metadata_bytes,
    read_attrs, write_attrs,
};

use super::answer::read_headers;
use super::feed::Feed;

const DEFAULTS: AttrDefaults = AttrDefaults { uid: 7, gid: 8, umask: 0o022 };

pub fn check(data: &[u8]) {
    let mut headers = read_headers(&mut Feed::new(data));
    headers.insert("etag", http::HeaderValue::from_static("\"e\""));
    let meta = wire::object_meta(&headers, 5, 1_700_000_000).expect("it has an ETag");
    let metadata = meta.headers.metadata;
    let at = Timestamp { sec: 5, nsec: 6 };

    let file = read_attrs(&metadata, DEFAULTS.file(at));
    assert!(matches!(file.mode & S_IFMT, S_IFREG | S_IFLNK), "a file of type {:o}", file.mode);
    let directory = read_attrs(&metadata, DEFAULTS.directory(at));
    assert_eq!(directory.mode & S_IFMT, S_IFDIR, "the type of a directory comes from its key");
    for attrs in [file, directory] {
        assert_eq!(attrs.mode & !(S_IFMT | 0o7777), 0, "bits that no mode has: {:o}", attrs.mode);
        assert!(attrs.mtime.nsec < 1_000_000_000);
        // The kernel is told a SystemTime; it must be the same time.
        let time: SystemTime = attrs.mtime.into();
        assert_eq!(Timestamp::from(time), attrs.mtime);
        let mut written = metadata.clone();
        write_attrs(&mut written, &attrs);
        assert_eq!(read_attrs(&written, attrs), attrs, "attributes change on their way to BOS and back");
        assert!(!fits_metadata_limit(&written) || metadata_bytes(&written) <= METADATA_BYTES_MAX);
    }
    let Some(stored) = metadata.get(XATTRS) else { return };
    let xattrs = xattr::decode(stored);
    assert!(xattrs.keys().all(|name| (1..=255).contains(&name.len()) && !name.contains('\0')));
    let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(bytes <= stored.len(), "more was read than is there");
    let again = xattr::encode(&xattrs).map(|text| xattr::decode(&text)).unwrap_or_default();
    assert_eq!(again, xattrs, "extended attributes change on their way to BOS and back");
}
