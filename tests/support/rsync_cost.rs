//! What `rsync -a` of a tree may cost, against what a proxy counted.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::call::Call;
use super::counts::Counts;

/// Requests per file and symlink of a first run, lookups included.
pub const REQUESTS_PER_FILE_MAX: f64 = 1.3;
/// Markers of directories: made, and written once more with the time that rsync sets at the end.
const PUTS_PER_DIR_MAX: u64 = 2;

/// What a source tree consists of.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Files of at most one part.
    pub small: u64,
    /// Files of more than one part.
    pub large: u64,
    /// Parts of these.
    pub parts: u64,
    pub symlinks: u64,
    pub dirs: u64,
    pub bytes: u64,
}

impl Survey {
    /// Counts what is below `dir`, with parts of `part_size` bytes.
    pub fn of(dir: &Path, part_size: u64) -> io::Result<Self> {
        let mut survey = Self::default();
        let mut open = vec![dir.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir)? {
                let path = entry?.path();
                let meta = std::fs::symlink_metadata(&path)?;
                if meta.is_dir() {
                    survey.dirs += 1;
                    open.push(path);
                } else if meta.is_symlink() {
                    survey.symlinks += 1;
                } else {
                    survey.bytes += meta.size();
                    if meta.size() > part_size {
                        survey.large += 1;
                        survey.parts += meta.size().div_ceil(part_size);
                    } else {
                        survey.small += 1;
                    }
                }
            }
        }
        Ok(survey)
    }

    pub fn files(&self) -> u64 {
        self.small + self.large + self.symlinks
    }

    /// Misses of a first run into an empty folder: one PUT for each small file, parts + 2 for each large one, no copy of
    /// a file and no delete, lookups by listing.
    pub fn first_run_misses(&self, counts: &Counts) -> Vec<String> {
        let mut misses = Vec::new();
        let mut exactly = |call: Call, wanted: u64| {
            let found = counts.requests(call);
            if found != wanted {
                misses.push(format!("{found} {call}, expected {wanted}"));
            }
        };
        exactly(Call::Initiate, self.large);
        exactly(Call::UploadPart, self.parts);
        exactly(Call::Complete, self.large);
        for call in [
            Call::UploadPartCopy,
            Call::DeleteObject,
            Call::BatchDelete,
            Call::Abort,
            Call::RenameObject,
            Call::ListParts,
            Call::GetObject,
            Call::Other,
        ] {
            exactly(call, 0);
        }
        // A symlink is there once it is made; rsync sets its owner and time afterwards.
        let copies = counts.requests(Call::CopyObject);
        if copies > self.symlinks {
            misses.push(format!("{copies} CopyObject, at most {} for symlinks", self.symlinks));
        }
        let puts = counts.requests(Call::PutObject);
        let least = self.small + self.symlinks;
        // One for the folder that receives the tree.
        let most = least + PUTS_PER_DIR_MAX * (self.dirs + 1);
        if !(least..=most).contains(&puts) {
            misses.push(format!(
                "{puts} PutObject, expected {least} for files and symlinks and at most {most} with markers"
            ));
        }
        let per_file = self.per_file(counts);
        if per_file > REQUESTS_PER_FILE_MAX {
            misses.push(format!("{per_file:.3} requests per file, at most {REQUESTS_PER_FILE_MAX}"));
        }
        if counts.bytes_sent() > self.bytes + 256 * self.symlinks {
            misses.push(format!("{} bytes sent for {}", counts.bytes_sent(), self.bytes));
        }
        misses
    }

    /// Requests of all kinds for each file or symlink.
    pub fn per_file(&self, counts: &Counts) -> f64 {
        counts.requests_all() as f64 / self.files() as f64
    }

    /// Misses of a run over an unchanged tree: nothing but pages of listings.
    pub fn unchanged_run_misses(&self, counts: &Counts, itemized: &str) -> Vec<String> {
        let mut misses = Vec::new();
        if !itemized.trim().is_empty() {
            misses.push(format!("not unchanged: {}", itemized.lines().take(5).collect::<Vec<_>>().join(" | ")));
        }
        for (call, count) in &counts.calls {
            if *call != Call::ListObjects && count.requests > 0 {
                let asked = counts.log.iter().filter(|logged| logged.asked.call == *call);
                let keys: Vec<&str> = asked.map(|logged| logged.asked.key.as_str()).take(5).collect();
                misses.push(format!("{} {call}, expected only ListObjects: {keys:?}", count.requests));
            }
        }
        // A page for each directory and one for each thousand names, twice for good measure.
        let pages = 2 * (self.dirs + 1 + self.files() / 1000) + 10;
        if counts.requests(Call::ListObjects) > pages {
            misses.push(format!("{} ListObjects, at most {pages}", counts.requests(Call::ListObjects)));
        }
        misses
    }
}

/// The calls of a run in one line.
pub fn calls_text(counts: &Counts) -> String {
    let calls = counts.calls.iter().filter(|(_, count)| count.requests > 0);
    calls.map(|(call, count)| format!("{call} {}", count.requests)).collect::<Vec<_>>().join(", ")
}
