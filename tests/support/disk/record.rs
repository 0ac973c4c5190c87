//! What happened to a disk, in order.

use super::fault::Kind;

/// A file or directory of the disk, never used again for another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The disk's top folder.
    pub const ROOT: NodeId = NodeId(0);
}

/// What a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeKind {
    File,
    Dir,
    /// A socket.
    Other,
}

/// A change that was carried out.
#[derive(Clone, Debug)]
pub enum Act {
    /// `bytes` is empty unless the disk keeps them.
    Write {
        node: NodeId,
        offset: u64,
        len: u64,
        bytes: std::sync::Arc<[u8]>,
    },
    SetLen {
        node: NodeId,
        len: u64,
    },
    Punch {
        node: NodeId,
        offset: u64,
        len: u64,
    },
    Create {
        parent: NodeId,
        name: String,
        node: NodeId,
        kind: NodeKind,
    },
    Remove {
        parent: NodeId,
        name: String,
        node: NodeId,
    },
    Rename {
        from: (NodeId, String),
        to: (NodeId, String),
        node: NodeId,
    },
    SyncFile {
        node: NodeId,
    },
    SyncDir {
        node: NodeId,
    },
    /// Nothing that an image needs.
    Mode,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    pub kind: Kind,
    /// Below the disk.
    pub path: String,
    pub act: Act,
}

/// All changes of a disk.
#[derive(Debug, Default)]
pub struct Record {
    pub(super) changes: Vec<Change>,
    pub(super) keep_bytes: bool,
}

impl Change {
    /// One line for people: what happened to which file.
    pub fn line(&self) -> String {
        let detail = match &self.act {
            Act::Write { offset, len, .. } | Act::Punch { offset, len, .. } => format!(" {len} at {offset}"),
            Act::SetLen { len, .. } => format!(" {len}"),
            Act::Rename { to, .. } => format!(" to {}", to.1),
            _ => String::new(),
        };
        format!("{:?} {}{detail}", self.kind, self.path)
    }
}
