//! Guesses from how a file is created that it will be renamed as soon as it is written: pure.
//!
//! A wrong guess costs time (a closed file is published some seconds later) and, for a target that turns out wrong, the
//! parts that were sent to it; never bytes.

/// What is guessed of a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess<'a> {
    /// It becomes the file of this name in the same directory.
    Target(&'a str),
    /// It gets some other name; waiting for that pays for small files.
    SomeName,
}

/// Ends of names that programs write to and then rename: browsers, wget and ftp clients, editors, git's locks.
const SUFFIXES: [&str; 7] = [".part", ".tmp", ".temp", ".partial", ".filepart", ".crdownload", ".lock"];
/// Random characters that mkstemp(3) puts at the end.
const RANDOM_LEN: usize = 6;

/// The guess for a file created as `name` with the open flags and permission bits given.
pub fn guess(name: &str, flags: i32, mode: u32) -> Option<Guess<'_>> {
    let exclusive = flags & libc::O_EXCL != 0;
    // What mkstemp(3) creates with, and rsync for an executable: nobody else may look in yet.
    let by_mkstemp = exclusive && flags & libc::O_ACCMODE == libc::O_RDWR && mode & 0o077 == 0;
    if by_mkstemp && without_random(name).is_some() {
        // rsync: `.NAME.XXXXXX`.
        return Some(target_of(name).map_or(Guess::SomeName, Guess::Target));
    }
    let known = SUFFIXES.iter().any(|suffix| name.len() > suffix.len() && name.ends_with(suffix));
    // gedit and everything else that saves with GLib; sed -i; git's objects and packs.
    let editor = exclusive
        && ["sed", ".goutputstream-", "tmp_"].iter().any(|prefix| name.starts_with(prefix))
        && without_random(name).is_some();
    (known || editor).then_some(Guess::SomeName)
}

/// The name that a temporary of rsync's is going to get, told from its name alone: `.NAME.XXXXXX`.
pub fn target_of(name: &str) -> Option<&str> {
    let target = without_random(name)?.strip_prefix('.')?.strip_suffix('.')?;
    (!target.is_empty()).then_some(target)
}

/// `name` without its last six characters, if these can be mkstemp's.
fn without_random(name: &str) -> Option<&str> {
    let cut = name.len().checked_sub(RANDOM_LEN)?;
    let (stem, random) = (name.get(..cut)?, name.get(cut..)?);
    (!stem.is_empty() && random.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MKSTEMP: i32 = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;

    #[test]
    fn rsyncs_temporaries_name_their_target() {
        assert_eq!(guess(".huge.iso.a1B2c3", MKSTEMP, 0o100_600), Some(Guess::Target("huge.iso")));
        assert_eq!(
            guess(".\u{4e2d}\u{6587} %+.txt.AAAAAA", MKSTEMP, 0o600),
            Some(Guess::Target("\u{4e2d}\u{6587} %+.txt"))
        );
        assert_eq!(guess(".x.abcdef", MKSTEMP, 0o600), Some(Guess::Target("x")), "also without a digit");
        assert_eq!(guess(".cargo.bxrV4b", MKSTEMP, 0o700), Some(Guess::Target("cargo")), "an executable");
    }

    #[test]
    fn what_only_looks_like_one_is_an_ordinary_file() {
        assert_eq!(guess(".config.backup", libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o644), None);
        assert_eq!(guess(".config.backup", libc::O_RDWR | libc::O_CREAT, 0o600), None);
        assert_eq!(guess(".x.abcde-", MKSTEMP, 0o600), None);
        assert_eq!(guess("report.txt", MKSTEMP, 0o600), None, "a dot is not random");
        assert_eq!(guess("a\u{4e2d}", MKSTEMP, 0o600), None, "cut within a character");
    }

    #[test]
    fn other_temporaries_get_some_name() {
        for name in ["movie.mp4.part", "index.lock", "a.tmp", "b.filepart"] {
            assert_eq!(guess(name, libc::O_WRONLY | libc::O_CREAT, 0o644), Some(Guess::SomeName), "{name}");
        }
        for name in ["sedAb12Cd", ".goutputstream-XY12ab", "tmp_obj_a1b2c3", "..abcdef", "NAME.abc123"] {
            assert_eq!(guess(name, MKSTEMP, 0o600), Some(Guess::SomeName), "{name}");
        }
        assert_eq!(guess(".part", libc::O_WRONLY, 0o644), None, "no name in front");
    }
}
