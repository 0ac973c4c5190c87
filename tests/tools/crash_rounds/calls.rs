//! What a program asks of the mount, one system call each, as it travels to the writer process and back.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Open files of one lane.
pub const SLOTS: usize = 2;

/// One call. Paths are relative to the mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Op {
    /// `open` with `O_RDWR | O_CREAT`, and `O_EXCL` or `O_TRUNC`.
    Create {
        slot: usize,
        path: String,
        exclusive: bool,
        mode: u32,
    },
    /// `open` with `O_RDWR`.
    Open {
        slot: usize,
        path: String,
    },
    /// One `pwrite` of the random bytes of `seed`.
    Write {
        slot: usize,
        at: u64,
        seed: u64,
        len: usize,
    },
    /// `ftruncate`.
    Cut {
        slot: usize,
        size: u64,
    },
    /// `truncate` by name.
    CutPath {
        path: String,
        size: u64,
    },
    Fsync {
        slot: usize,
    },
    Close {
        slot: usize,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    Mkdir {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    /// One `copy_file_range` from the start of `from` to an offset of an open file.
    CopyRange {
        from: String,
        slot: usize,
        at: u64,
        len: u64,
    },
    /// `fallocate` with `FALLOC_FL_PUNCH_HOLE`.
    Punch {
        slot: usize,
        at: u64,
        len: u64,
    },
    /// `fallocate` that extends.
    Grow {
        slot: usize,
        at: u64,
        len: u64,
    },
    /// `count` writes of one byte each, `step` bytes apart, of the random bytes of `seed`.
    Burst {
        slot: usize,
        at: u64,
        step: u64,
        count: usize,
        seed: u64,
    },
    /// Closes whatever a lane has open: after the mount died.
    Forget,
}

impl Op {
    /// Word for statistics.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Create { .. } => "create",
            Op::Open { .. } => "open",
            Op::Write { .. } => "write",
            Op::Cut { .. } => "ftruncate",
            Op::CutPath { .. } => "truncate",
            Op::Fsync { .. } => "fsync",
            Op::Close { .. } => "close",
            Op::Rename { .. } => "rename",
            Op::Unlink { .. } => "unlink",
            Op::Mkdir { .. } => "mkdir",
            Op::Rmdir { .. } => "rmdir",
            Op::Chmod { .. } => "chmod",
            Op::CopyRange { .. } => "copy_file_range",
            Op::Punch { .. } => "punch",
            Op::Grow { .. } => "fallocate",
            Op::Burst { .. } => "burst",
            Op::Forget => "forget",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A call on its way to a lane.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    pub lane: usize,
    pub op: Op,
}

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ended {
    /// It returned; bytes taken, for calls that take bytes.
    Done(u64),
    /// It failed with this errno.
    Failed(i32),
}

/// The end of a lane's call.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reply {
    pub lane: usize,
    pub ended: Ended,
}
