//! What others may see of a running mount: the status, the control socket that gives it, and the log.

pub mod control;
pub mod expected_panic;
pub mod logging;
pub mod mount_table;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::upload::FileStatus;

/// State of one mount, or of a state directory without one, at one moment. The form of `bosfs status --json` and of
/// `.bosfs/status.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StatusSnapshot {
    /// Version of bosfs that wrote it.
    pub version: String,
    /// `mounted`, `draining` (the mount is gone, uploads go on) or `offline` (nobody works on it).
    pub phase: String,
    /// Process; 0 when offline.
    pub pid: u32,
    /// Bucket.
    pub bucket: String,
    /// Prefix that is mounted: empty, or ending in `/`.
    pub prefix: String,
    /// Endpoint.
    pub endpoint: String,
    /// Where it is mounted.
    pub mount_point: Option<PathBuf>,
    /// Where journal and spool lie.
    pub state_dir: PathBuf,
    /// Whether `close` answers before the object is complete.
    pub write_back: bool,
    /// When it was mounted, seconds since 1970; 0 when offline.
    pub since: i64,
    /// Sums over `files`.
    pub totals: Totals,
    /// The spool.
    pub spool: SpoolStatus,
    /// Files that are not finished.
    pub files: Vec<FileStatus>,
    /// The last files that were finished, state `done`, newest last.
    pub recent: Vec<FileStatus>,
    /// Names of the mount that the kernel knows, each of which takes some of `--memory-limit`; 0 when offline.
    #[serde(default)]
    pub known_names: usize,
    /// Since when BOS answers nothing at all, seconds since 1970; `None`: it answered the last request.
    #[serde(default)]
    pub line_down_since: Option<i64>,
    /// How the last request without an answer ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_error: Option<String>,
    /// A lifecycle rule of the bucket aborts unfinished uploads after so many days.
    #[serde(default)]
    pub abort_rule_days: Option<u32>,
    /// Why it is not known whether there is such a rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort_rules_unknown: Option<String>,
    /// State directories or journals that could not be read, with why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

/// Sums over the unfinished files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Number of unfinished files.
    pub files: u64,
    /// Their sizes, bytes.
    pub bytes: u64,
    /// Bytes of them that BOS holds.
    pub bytes_in_bos: u64,
    /// Bytes of them that are only in the spool.
    pub bytes_spooled: u64,
    /// Speed of sending, bytes per second.
    pub bytes_per_s: u64,
    /// Files in state `failed` or `conflict`.
    pub stuck: u64,
    /// Files in state `interrupted`.
    pub interrupted: u64,
}

/// Room in the spool, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// Bytes that only the spool has.
    pub used_bytes: u64,
    /// Bytes it may still take.
    pub free_bytes: u64,
    /// `--spool-limit`; `None`: free space less a reserve.
    pub limit_bytes: Option<u64>,
}

impl StatusSnapshot {
    /// Puts `all` in, finished ones apart, and sums up.
    #[must_use]
    pub fn with_files(mut self, all: Vec<FileStatus>) -> Self {
        let (recent, files): (Vec<_>, Vec<_>) = all.into_iter().partition(|file| file.state == "done");
        self.totals = Totals::of(&files);
        self.spool.used_bytes = self.totals.bytes_spooled;
        self.files = files;
        self.recent = recent;
        self
    }

    /// Bucket and prefix, as mount takes them.
    pub fn source(&self) -> String {
        match self.prefix.strip_suffix('/') {
            Some(prefix) => format!("{}/{prefix}", self.bucket),
            None => self.bucket.clone(),
        }
    }
}

impl Totals {
    /// Of `files`, none of which is `done`.
    pub fn of(files: &[FileStatus]) -> Self {
        let sum = |of: fn(&FileStatus) -> u64| files.iter().map(of).fold(0, u64::saturating_add);
        Self {
            files: files.len() as u64,
            bytes: sum(|f| f.size),
            bytes_in_bos: sum(|f| f.bytes_in_bos),
            bytes_spooled: sum(|f| f.bytes_spooled),
            bytes_per_s: sum(|f| f.bytes_per_s),
            stuck: files.iter().filter(|f| is_stuck(f)).count() as u64,
            interrupted: files.iter().filter(|f| f.state == "interrupted").count() as u64,
        }
    }
}

/// Whether a file will not get into BOS without a command or another mount.
pub fn is_stuck(file: &FileStatus) -> bool {
    matches!(file.state.as_str(), "failed" | "conflict")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn file(key: &str, state: &str, size: u64, in_bos: u64) -> FileStatus {
        serde_json::from_value(serde_json::json!({
            "key": key, "journal_id": "0000000000000000", "state": state, "upload_id": null, "size": size,
            "bytes_in_bos": in_bos, "bytes_spooled": size - in_bos, "parts_total": 1, "parts_in_bos": 0, "parts_kept": 0,
            "parts_sent": 0, "bytes_per_s": 3, "tries": 0, "last_error": null, "proof": null, "parts": null, "updated_at": 0
        }))
        .unwrap()
    }

    #[test]
    fn finished_files_are_listed_apart_and_not_summed() {
        let snapshot = StatusSnapshot::default().with_files(vec![
            file("a", "uploading", 10, 4),
            file("b", "done", 100, 100),
            file("c", "failed", 5, 0),
            file("d", "interrupted", 1, 1),
        ]);
        let expected = Totals {
            files: 3,
            bytes: 16,
            bytes_in_bos: 5,
            bytes_spooled: 11,
            bytes_per_s: 9,
            stuck: 1,
            interrupted: 1,
        };
        assert_eq!(snapshot.totals, expected);
        assert_eq!(snapshot.spool.used_bytes, 11);
        assert_eq!(snapshot.recent.len(), 1);
    }
}
