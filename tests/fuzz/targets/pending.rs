//! The log of directories' attributes that BOS was not told yet. Input as that of `journal`, with the framing of that log.

use std::collections::BTreeMap;

use bosfs::fs::dir_attrs::pending_log::{PendingLog, Wanted, fold};
use crc_fast::{CrcAlgorithm, checksum};

use super::feed::Feed;

pub fn check(data: &[u8]) {
    let file = file_of(data);
    let pending = fold(&file);
    assert!(pending.len() <= file.len() / 20, "more entries than lines fit");
    assert_eq!(fold(&written_again(&pending)), pending, "an entry changes on its way to the disk and back");
    // A torn tail takes nothing away: line by line, each prefix of the file gives what its whole lines say.
    let ends: Vec<usize> = file.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    for (i, end) in ends.iter().enumerate().take(16) {
        let whole = fold(&file[..*end]);
        let next = ends.get(i + 1).copied().unwrap_or(file.len());
        let torn = &file[..(end + (next - end) / 2)];
        if !torn.ends_with(b"\n") {
            assert_eq!(fold(torn), whole, "half a line changes what the lines before it say");
        }
    }
}

fn file_of(data: &[u8]) -> Vec<u8> {
    let Some((kind, rest)) = data.split_first() else { return Vec::new() };
    if *kind != b'f' {
        return rest.to_vec();
    }
    let mut feed = Feed::new(rest);
    let mut file = Vec::new();
    while !feed.is_empty() {
        match feed.line() {
            [b'!', raw @ ..] => file.extend_from_slice(raw),
            json => {
                let sum = checksum(CrcAlgorithm::Crc32Iscsi, json) as u32;
                file.extend([format!("{sum:08x} ").as_bytes(), json, b"\n"].concat());
            }
        }
    }
    file
}

/// What the log itself writes for these entries.
fn written_again(pending: &BTreeMap<String, Wanted>) -> Vec<u8> {
    let mut file = Vec::new();
    for (prefix, wanted) in pending {
        file.extend(PendingLog::line_of(prefix, *wanted).expect("it can be written"));
    }
    file
}
