//! Credentials files of bosfs, bosfs2 and bcecmd, bcecmd's `config`, `-o` lists, and the values of options.
//! Input: `c` and a file, or `o` and lists, one a line.

use std::ffi::OsString;
use std::path::Path;

use bosfs::config::credentials::{GivenKeys, keys_in};
use bosfs::config::paths::BucketPath;
use bosfs::config::{Endpoint, bcecmd, option_list, units};
use bosfs::object::ObjectKey;

use super::feed::Feed;

/// Secrets shorter than this may turn up in a message by chance.
const TELLING_BYTES: usize = 8;

pub fn check(data: &[u8]) {
    let mut feed = Feed::new(data);
    match feed.byte() {
        b'o' => lists(feed),
        _ => files(&String::from_utf8_lossy(feed.rest())),
    }
}

fn files(text: &str) {
    let values: Vec<&str> = text
        .split('\n')
        .filter_map(|line| Some(line.split_once('=')?.1.trim().trim_matches('"')))
        .filter(|value| value.len() >= TELLING_BYTES)
        .collect();
    match keys_in(Path::new("/f"), text) {
        Ok((keys, interval)) => {
            let id = &keys.access_key_id;
            assert!(!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
            assert!((1..=3600).contains(&interval.as_secs()));
            let secret = keys.secret_access_key.expose();
            assert!(!secret.is_empty() && text.contains(secret), "a secret that is not in the file");
            let shown = format!("{keys:?} {}", keys.secret_access_key);
            assert!(secret.len() < TELLING_BYTES || id.contains(secret) || !shown.contains(secret));
        }
        Err(error) => {
            // Words of the message itself may stand in the file, too.
            let words = messages();
            let shown = without_digits(&format!("{error} {error:?}"));
            for value in values.iter().map(|value| without_digits(value)).filter(|value| value.len() >= TELLING_BYTES) {
                assert!(words.contains(&value) || !shown.contains(&value), "{value:?} is told: {shown}");
            }
        }
    }
    if let Some(Ok(endpoint)) = bcecmd::parse(text) {
        let again = Endpoint::parse(&endpoint.to_string()).expect("it is an endpoint");
        assert_eq!(again, endpoint, "an endpoint changes when it is written");
    }
}

/// All that an error of a credentials file may say by itself.
fn messages() -> String {
    let wrong = ["", "ak=x", "sk=y", "[x", "x", "ak=\u{1}\nsk=y", "reload_interval_s=z"];
    let texts =
        wrong.map(|text| keys_in(Path::new("/f"), text).map_or_else(|e| format!("{e} {e:?}"), |_| String::new()));
    without_digits(&texts.join(" "))
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn lists(mut feed: Feed<'_>) {
    let mut arguments = Vec::new();
    while !feed.is_empty() && arguments.len() < 64 {
        let list = feed.text().into_owned();
        values(&list);
        arguments.push(OsString::from("-o"));
        arguments.push(OsString::from(list));
    }
    let given: usize = arguments.iter().map(|argument| argument.len()).sum();
    let masked = arguments.iter().map(|list| masked(list.to_str().unwrap_or_default()).into()).collect();
    match option_list::expand(arguments) {
        Ok((expanded, keys)) => {
            for argument in &expanded {
                let text = argument.to_str().expect("the lists are UTF-8");
                assert!(text.starts_with("--"), "{text:?} is no long option");
                let name = text.split('=').next().unwrap_or_default();
                assert!(name.len() > 2 && name[2..].bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'));
            }
            // Nothing is made up: each argument is as long as its item, but for the option's own name and unit.
            let made: usize = expanded.iter().map(|argument| argument.len()).sum();
            assert!(made <= given + 20 * expanded.len(), "{made} bytes out of {given}");
            assert!(!format!("{keys:?}").contains("Secret("), "the secret would be shown");
            let again = option_list::expand(expanded.clone()).expect("no list is left");
            assert_eq!(again, (expanded, GivenKeys::default()), "it is not done at once");
        }
        Err(error) => {
            let masked = option_list::expand(masked).expect_err("it was wrong before");
            assert_eq!(error, masked, "the error tells of a value");
        }
    }
}

/// A list with every value made one of the same length that tells nothing.
fn masked(list: &str) -> String {
    let (mut in_value, mut escaped) = (false, false);
    let mask = |c: char| {
        let ends_item = c == ',' && !escaped;
        let shown = if in_value && c != ',' && c != '\\' { 'x' } else { c };
        in_value = !ends_item && (in_value || c == '=');
        escaped = c == '\\';
        shown
    };
    list.chars().map(mask).collect()
}

/// What one option's value may be, by each of the readers.
fn values(text: &str) {
    if let Ok(endpoint) = Endpoint::parse(text) {
        let shown = endpoint.to_string();
        assert_eq!(Endpoint::parse(&shown).as_ref(), Ok(&endpoint), "{shown}");
        assert!(!shown.contains(['@', '?', '#', ' ']) && !endpoint.host.is_empty());
    }
    if let Ok(bytes) = units::parse_size(text) {
        assert_eq!(units::parse_size(&bytes.to_string()), Ok(bytes));
    }
    if let Ok(bytes) = units::parse_part_size(text) {
        assert!(bytes.is_multiple_of(1 << 20) && (5 << 20..=5 << 30).contains(&bytes));
    }
    assert_ne!(units::parse_rate(text), Ok(0));
    let _ = units::parse_duration(text);
    assert!(units::parse_umask(text).is_ok_and(|mask| mask <= 0o777) || units::parse_umask(text).is_err());
    if let Ok(place) = BucketPath::parse(text) {
        assert!((3..=63).contains(&place.bucket.len()) && !place.bucket.contains('/'));
        assert!(place.prefix.is_empty() || place.prefix.ends_with('/'));
        assert!(!place.prefix.split('/').any(|segment| segment == ".."), "a prefix that leaves the bucket");
        assert_eq!(BucketPath::parse(&place.to_string()), Ok(place));
    }
    if let Ok(key) = ObjectKey::parse(text) {
        assert!(!key.as_str().starts_with('/') && !key.as_str().contains("//") && !key.as_str().contains('\0'));
        assert!(!key.name().is_empty() && !key.name().contains('/') && key.name() != "..");
    }
}
