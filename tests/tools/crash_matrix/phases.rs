//! The columns: moments in the life of a file at which a fault is put, each one request of bosfs that the proxy knows by its
//! call, key and part.

use crate::support::{Call, When};

/// Key of the file that the programs work on.
pub const KEY: &str = "dir/f.bin";
/// Other name of a rename.
pub const OTHER_KEY: &str = "dir/g.bin";
/// Prefixes of a directory rename.
pub const FROM_DIR: &str = "old dir";
pub const TO_DIR: &str = "new dir";

/// What runs in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Story {
    /// `bosfs mount`.
    Mount,
    /// `stat` of a name that the mount does not know yet.
    Lookup,
    /// `ls` of a directory.
    List,
    /// `cp` of a file of five parts.
    Copy,
    /// `cp` of a file of one part.
    CopySmall,
    /// `mv` of an object.
    Rename,
    /// `mv` of a directory.
    RenameDir,
    /// `chmod` of a finished object.
    Chmod,
    /// `rm`.
    Unlink,
    /// `cat` of a file that the mount knows by name.
    Read,
    /// `cat` of a file that was read before.
    Reopen,
    /// A mount by a new process after bosfs was killed with SIGKILL behind a write-back close.
    Recovery,
    /// `bosfs umount` with a closed file that is not in BOS yet.
    Umount,
    /// `bosfs uploads resume` after bosfs was killed.
    Resume,
    /// A program changes an object of several parts and closes it; another one has the file open, and changes other bytes
    /// when the request of the phase is under way.
    Share,
    /// The same, but the other one empties the file and writes a little.
    ShareEmpty,
}

impl Story {
    /// Ends within 30 s whatever happens to the line; the others wait until the line is back.
    pub fn is_interactive(self) -> bool {
        matches!(self, Story::Mount | Story::Lookup | Story::List | Story::Read | Story::Reopen)
    }

    /// A file is written by it or before it, and is in BOS at the end.
    pub fn writes(self) -> bool {
        matches!(self, Story::Copy | Story::CopySmall | Story::Recovery | Story::Umount | Story::Resume)
            || self.is_shared()
    }

    /// Two programs have the file open: columns of the full form and of `--wide` alone.
    pub fn is_shared(self) -> bool {
        matches!(self, Story::Share | Story::ShareEmpty)
    }
}

/// A column.
#[derive(Debug)]
pub struct Phase {
    pub name: &'static str,
    pub says: &'static str,
    pub story: Story,
    pub call: Call,
    pub part: Option<u32>,
}

impl Phase {
    /// The requests of this moment.
    pub fn when(&self) -> When {
        let when = When::call(self.call);
        let when = match self.call {
            Call::HeadBucket | Call::BatchDelete => when,
            Call::ListObjects if self.story == Story::RenameDir => when.target_contains("prefix=old%20dir%2F"),
            Call::ListObjects => when.target_contains("prefix=dir%2F"),
            Call::CopyObject if self.story == Story::RenameDir => when.key_contains(TO_DIR),
            Call::CopyObject if self.story == Story::Rename => when.key(OTHER_KEY),
            _ => when.key(KEY),
        };
        match self.part {
            Some(part) => when.part(part),
            None if self.name == "read-mid" => when.skip(1),
            None if self.name == "dir-copy" => when.skip(3),
            None => when,
        }
    }

    /// Bytes of the body of such a request.
    pub fn body_bytes(&self) -> u64 {
        match self.call {
            Call::UploadPart if self.part == Some(LAST_PART) => BIG_BYTES - u64::from(LAST_PART - 1) * PART_BYTES,
            Call::UploadPart => PART_BYTES,
            Call::PutObject => SMALL_BYTES,
            Call::Complete | Call::BatchDelete => 100,
            _ => 0,
        }
    }

    /// The server's answer has a body.
    pub fn answer_has_body(&self) -> bool {
        matches!(
            self.call,
            Call::ListObjects
                | Call::ListParts
                | Call::GetObject
                | Call::Initiate
                | Call::Complete
                | Call::CopyObject
                | Call::UploadPartCopy
        )
    }

    /// The request changes something.
    pub fn acts(&self) -> bool {
        !matches!(
            self.call,
            Call::HeadBucket | Call::HeadObject | Call::ListObjects | Call::ListParts | Call::GetObject
        )
    }
}

pub const PART_BYTES: u64 = 5 << 20;
/// Size of the large file: five parts, the last one short.
pub const BIG_BYTES: u64 = 4 * PART_BYTES + 345_679;
pub const LAST_PART: u32 = 5;
pub const SMALL_BYTES: u64 = 150_001;

const fn phase(name: &'static str, story: Story, call: Call, says: &'static str) -> Phase {
    Phase { name, says, story, call, part: None }
}

const fn part(name: &'static str, story: Story, part: u32, says: &'static str) -> Phase {
    Phase { name, says, story, call: Call::UploadPart, part: Some(part) }
}

/// All columns, in the order of a file's life.
pub const PHASES: &[Phase] = &[
    phase("mount", Story::Mount, Call::HeadBucket, "`bosfs mount` looks at the bucket"),
    phase("lookup", Story::Lookup, Call::HeadObject, "first look at a name (`stat`)"),
    phase("list", Story::List, Call::ListObjects, "listing of a directory (`ls`)"),
    phase("initiate", Story::Copy, Call::Initiate, "`cp` of five parts: InitiateMultipartUpload"),
    part("part-1", Story::Copy, 1, "`cp`: first part"),
    part("part-n", Story::Copy, 3, "`cp`: a part in the middle"),
    part("part-last", Story::Copy, LAST_PART, "`cp`: last part"),
    phase("before-complete", Story::Copy, Call::Complete, "`cp`: all parts are in BOS, Complete is not sent yet"),
    phase("complete", Story::Copy, Call::Complete, "`cp`: Complete sent; BOS has not acted"),
    phase("complete-acted", Story::Copy, Call::Complete, "`cp`: Complete sent; BOS has acted, nothing is answered"),
    phase("proof", Story::Copy, Call::HeadObject, "`cp`: HEAD that proves the composed object"),
    phase("put", Story::CopySmall, Call::PutObject, "`cp` of a file of one part: PutObject"),
    phase("rename-copy", Story::Rename, Call::CopyObject, "`mv` of an object: the copy"),
    phase("rename-delete", Story::Rename, Call::DeleteObject, "`mv` of an object: the old name goes"),
    phase("dir-list", Story::RenameDir, Call::ListObjects, "`mv` of a directory: what is in it"),
    phase("dir-copy", Story::RenameDir, Call::CopyObject, "`mv` of a directory: one of the copies"),
    phase("dir-delete", Story::RenameDir, Call::BatchDelete, "`mv` of a directory: the old names go"),
    phase("chmod", Story::Chmod, Call::CopyObject, "`chmod` of a finished object: the copy onto itself"),
    phase("unlink", Story::Unlink, Call::DeleteObject, "`rm`"),
    phase("read-open", Story::Read, Call::HeadObject, "`cat`: the open"),
    phase("read-first", Story::Read, Call::GetObject, "`cat`: first GET"),
    phase("read-mid", Story::Read, Call::GetObject, "`cat`: a GET in the middle of the file"),
    phase("reopen", Story::Reopen, Call::HeadObject, "`cat` again: is it still the same object?"),
    phase("recovery-parts", Story::Recovery, Call::ListParts, "the mount after a SIGKILL: ListParts"),
    phase("recovery-head", Story::Recovery, Call::HeadObject, "the same: HEAD for a Complete that was not answered"),
    part("recovery-part", Story::Recovery, LAST_PART, "the same: a missing part"),
    phase("recovery-complete", Story::Recovery, Call::Complete, "the same: Complete"),
    part("umount-part", Story::Umount, LAST_PART, "`bosfs umount` of a write-back mount waits: a part"),
    phase("umount-complete", Story::Umount, Call::Complete, "the same: Complete"),
    phase("resume-parts", Story::Resume, Call::ListParts, "`bosfs uploads resume`, nothing mounted: ListParts"),
    part("resume-part", Story::Resume, LAST_PART, "the same: a missing part"),
    phase("resume-complete", Story::Resume, Call::Complete, "the same: Complete"),
    phase(
        "share-initiate",
        Story::Share,
        Call::Initiate,
        "a change of an object is closed while another handle writes: Initiate",
    ),
    phase("share-copy", Story::Share, Call::UploadPartCopy, "the same: the copy of what did not change"),
    part("share-part", Story::Share, LAST_PART, "the same: the changed part"),
    phase("share-complete", Story::Share, Call::Complete, "the same: Complete"),
    phase(
        "empty-copy",
        Story::ShareEmpty,
        Call::UploadPartCopy,
        "the same while another handle empties the file: the copy",
    ),
    part("empty-part", Story::ShareEmpty, LAST_PART, "the same: the changed part"),
    phase("empty-complete", Story::ShareEmpty, Call::Complete, "the same: Complete"),
];
