//! The model: what the names of one lane lead to after the calls that returned, and what of it is published.
//!
//! A lane makes one call after the other, and no other lane uses its names.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::calls::{Op, SLOTS};
use super::published::Published;
use crate::support::files::random_bytes;

/// How far a file is from what was closed last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// As it was closed: published, or about to be.
    Clean,
    /// Created, or emptied by `open`, and nothing written since; what was there before.
    Fresh { before: Option<Arc<Vec<u8>>> },
    /// Cut to nothing, and nothing written since: published by the release.
    Cut,
    /// Written.
    Written,
    /// Its writer was cut off: shown, and not published before somebody goes on.
    Kept,
}

#[derive(Clone, Debug)]
pub struct FileState {
    pub bytes: Arc<Vec<u8>>,
    pub mode: u32,
    pub stage: Stage,
    /// Created under a name that lets bosfs wait for a rename.
    pub temporary: bool,
    /// Published by the release of its handle, which the kernel sends behind the close: not known to have arrived.
    pub release_due: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    Dir,
    File(u32),
}

#[derive(Clone, Debug)]
pub struct Lane {
    pub root: String,
    /// `close` waits for the object.
    pub waits: bool,
    pub names: BTreeMap<String, Node>,
    pub files: BTreeMap<u32, FileState>,
    pub slots: [Option<u32>; SLOTS],
    pub published: Published,
    id_next: u32,
}

/// Key of a directory's marker.
pub fn marker(path: &str) -> String {
    format!("{path}/")
}

/// The name that a temporary is for.
pub fn target_of(path: &str) -> Option<String> {
    let (dir, name) = path.rsplit_once('/')?;
    let stem = match name.strip_suffix(".part") {
        Some(stem) => stem,
        None => name.strip_prefix('.')?.rsplit_once('.')?.0,
    };
    Some(format!("{dir}/{stem}"))
}

impl Lane {
    pub fn new(root: &str, waits: bool) -> Self {
        Self {
            root: root.to_owned(),
            waits,
            names: BTreeMap::new(),
            files: BTreeMap::new(),
            slots: [None; SLOTS],
            published: Published::default(),
            id_next: 1,
        }
    }

    pub fn file(&self, path: &str) -> Option<&FileState> {
        match self.names.get(path)? {
            Node::File(id) => self.files.get(id),
            Node::Dir => None,
        }
    }

    /// The name of a file; `None`: it has none any more.
    pub fn path_of(&self, id: u32) -> Option<String> {
        self.names.iter().find(|(_, node)| **node == Node::File(id)).map(|(path, _)| path.clone())
    }

    pub fn is_open(&self, id: u32) -> bool {
        self.slots.contains(&Some(id))
    }

    fn add(&mut self, path: &str, file: FileState) -> u32 {
        let id = self.id_next;
        self.id_next += 1;
        self.files.insert(id, file);
        self.names.insert(path.to_owned(), Node::File(id));
        id
    }

    /// Takes a name away; the file lives on while it is open.
    fn drop_name(&mut self, path: &str) {
        if let Some(Node::File(id)) = self.names.remove(path)
            && !self.is_open(id)
        {
            self.files.remove(&id);
        }
    }

    pub fn open_file(&mut self, slot: usize) -> Option<(u32, &mut FileState)> {
        let id = self.slots[slot]?;
        self.files.get_mut(&id).map(|file| (id, file))
    }

    /// What a call does that returned; `taken`: bytes that a write or copy took.
    pub fn apply(&mut self, op: &Op, taken: u64) {
        match op {
            Op::Create { slot, path, mode, exclusive } => self.create(*slot, path, *mode, *exclusive),
            Op::Open { slot, path } => {
                if let Some(Node::File(id)) = self.names.get(path) {
                    self.slots[*slot] = Some(*id);
                }
            }
            Op::Write { slot, at, seed, len } => self.put(*slot, *at, &random_bytes(*seed, *len)[..taken as usize]),
            Op::CopyRange { from, slot, at, .. } => {
                let source = self.file(from).map(|file| file.bytes.clone()).unwrap_or_default();
                self.put(*slot, *at, &source[..taken as usize]);
            }
            Op::Cut { slot, size } => {
                if let Some((_, file)) = self.open_file(*slot) {
                    // Cut to nothing it is like created: whatever was written before does not count any more.
                    if *size == 0 {
                        file.stage = Stage::Cut;
                    } else if file.bytes.len() as u64 != *size || file.stage == Stage::Kept {
                        file.stage = Stage::Written;
                    }
                    Arc::make_mut(&mut file.bytes).resize(*size as usize, 0);
                }
            }
            Op::CutPath { path, size } => self.cut_path(path, *size),
            Op::Fsync { slot } => self.fsync(*slot),
            Op::Close { slot } => self.close(*slot),
            Op::Rename { from, to } => self.rename(from, to),
            Op::Unlink { path } => {
                self.drop_name(path);
                self.published.key(path).publish(None, false);
            }
            Op::Mkdir { path } => {
                self.names.insert(path.clone(), Node::Dir);
                self.published.key(&marker(path)).publish(Some(Arc::default()), true);
            }
            Op::Rmdir { path } => {
                self.names.remove(path);
                self.published.key(&marker(path)).publish(None, false);
            }
            Op::Chmod { path, mode } => {
                if let Some(Node::File(id)) = self.names.get(path)
                    && let Some(file) = self.files.get_mut(id)
                {
                    file.mode = *mode;
                }
            }
            // Only the rounds of several handles make these, with a model of their own.
            Op::Punch { .. } | Op::Grow { .. } | Op::Burst { .. } | Op::Forget => {}
        }
    }

    fn create(&mut self, slot: usize, path: &str, mode: u32, exclusive: bool) {
        if let Some(Node::File(id)) = self.names.get(path) {
            let id = *id;
            self.slots[slot] = Some(id);
            if let Some(file) = self.files.get_mut(&id) {
                let before = std::mem::take(&mut file.bytes);
                file.stage = Stage::Fresh { before: Some(before) };
            }
            return;
        }
        let temporary = exclusive || path.ends_with(".part");
        let stage = Stage::Fresh { before: None };
        let id = self.add(path, FileState { bytes: Arc::default(), mode, stage, temporary, release_due: false });
        self.slots[slot] = Some(id);
    }

    fn put(&mut self, slot: usize, at: u64, bytes: &[u8]) {
        if let Some((_, file)) = self.open_file(slot)
            && !bytes.is_empty()
        {
            overwrite(Arc::make_mut(&mut file.bytes), at as usize, bytes);
            file.stage = Stage::Written;
            file.release_due = false;
        }
    }

    fn cut_path(&mut self, path: &str, size: u64) {
        let waits = self.waits;
        let Some(Node::File(id)) = self.names.get(path) else { return };
        let Some(file) = self.files.get_mut(id) else { return };
        let changes = file.bytes.len() as u64 != size;
        if changes {
            Arc::make_mut(&mut file.bytes).resize(size as usize, 0);
        }
        let (body, key) = (Some(file.bytes.clone()), self.published.key(path));
        if changes {
            key.publish(body, waits && !file.temporary);
            file.stage = Stage::Clean;
        }
    }

    fn fsync(&mut self, slot: usize) {
        let Some(id) = self.slots[slot] else { return };
        let Some(path) = self.path_of(id) else { return };
        let Some(file) = self.files.get_mut(&id) else { return };
        match file.stage {
            // Whole as it is.
            Stage::Fresh { .. } | Stage::Cut => {
                file.stage = Stage::Clean;
                self.published.key(&path).publish(Some(file.bytes.clone()), false);
            }
            _ => {}
        }
    }

    fn close(&mut self, slot: usize) {
        let Some(id) = self.slots[slot].take() else { return };
        let Some(path) = self.path_of(id) else {
            if !self.is_open(id) {
                self.files.remove(&id);
            }
            return;
        };
        let waits = self.waits;
        let Some(file) = self.files.get_mut(&id) else { return };
        let (body, key) = (Some(file.bytes.clone()), self.published.key(&path));
        match file.stage {
            Stage::Clean => {}
            // Whoever changes nothing does not go on with it.
            Stage::Kept => return,
            Stage::Fresh { .. } | Stage::Cut => {
                file.release_due = true;
                key.publish(body, false);
            }
            Stage::Written => key.publish(body, waits && !file.temporary),
        }
        file.stage = Stage::Clean;
    }

    fn rename(&mut self, from: &str, to: &str) {
        match self.names.get(from) {
            Some(Node::File(_)) => {
                self.drop_name(to);
                self.move_name(from, to);
                self.move_file_key(from, to, self.waits);
            }
            Some(Node::Dir) => {
                let below: Vec<String> =
                    self.names.keys().filter(|path| path.starts_with(&marker(from))).cloned().collect();
                self.names.remove(from);
                self.names.insert(to.to_owned(), Node::Dir);
                self.published.key(&marker(from)).publish(None, false);
                self.published.key(&marker(to)).publish(Some(Arc::default()), false);
                for old in below {
                    let new = format!("{to}{}", &old[from.len()..]);
                    self.move_name(&old, &new);
                    // It is not the rename that a temporary waits for.
                    let waits = self.waits && self.file(&new).is_none_or(|file| !file.temporary);
                    self.move_file_key(&old, &new, waits);
                }
            }
            None => {}
        }
    }

    fn move_name(&mut self, from: &str, to: &str) {
        if let Some(node) = self.names.remove(from) {
            self.names.insert(to.to_owned(), node);
        }
    }

    /// The object of a file that was `from` and is `to` now; `waits`: for what was closed, the rename did.
    fn move_file_key(&mut self, from: &str, to: &str, waits: bool) {
        let file = self.file(to).cloned();
        let moved = self.published.get(from);
        self.published.key(from).publish(None, false);
        let key = self.published.key(to);
        match file {
            Some(file) if file.stage == Stage::Clean => key.publish(Some(file.bytes), waits),
            // What was closed last goes along; the rest is not published by that. Of a file that was never closed it is not
            // said what becomes of the object that had the name.
            _ => {
                // A publication of that object that nobody waited for may have given way.
                let mut before = key.clone();
                before.any_of_the_past();
                key.passing.extend(moved.passing);
                let mut settled: Vec<_> = moved.settled.iter().filter(|body| body.is_some()).cloned().collect();
                if moved.settled.contains(&None) {
                    settled.push(None);
                    settled.append(&mut before.settled);
                }
                key.settled = settled;
            }
        }
    }

    /// Whoever wrote is gone: bosfs was killed, or the program was.
    pub fn cut_off(&mut self) {
        let named: Vec<(String, u32)> = self
            .names
            .iter()
            .filter_map(|(p, n)| if let Node::File(id) = n { Some((p.clone(), *id)) } else { None })
            .collect();
        for (path, id) in named {
            let Some(file) = self.files.get_mut(&id) else { continue };
            if std::mem::take(&mut file.release_due) {
                self.published.key(&path).any_of_the_past();
                file.stage = Stage::Kept;
            }
        }
        for id in std::mem::take(&mut self.slots).into_iter().flatten() {
            let Some(path) = self.path_of(id) else {
                self.files.remove(&id);
                continue;
            };
            let Some(file) = self.files.get_mut(&id) else { continue };
            let key = self.published.key(&path);
            match &file.stage {
                Stage::Clean => continue,
                // Whole as it is; `before` stays as the other thing that may be seen.
                Stage::Fresh { .. } => key.maybe(Some(file.bytes.clone())),
                Stage::Cut => key.maybe(Some(file.bytes.clone())),
                Stage::Written | Stage::Kept => {}
            }
            // What was closed before and was still on its way may have been overtaken by what was written since.
            key.any_of_the_past();
            if !matches!(file.stage, Stage::Fresh { .. }) {
                file.stage = Stage::Kept;
            }
        }
    }

    /// Nothing is pending: takes over which files are as published. A file whose writer was cut off may have the bytes of
    /// the object and not be it (another file of the same bytes, renamed to that name): then its mode, too, is its own.
    pub fn settle(
        &mut self,
        seen: &BTreeMap<String, Vec<u8>>,
        modes: &BTreeMap<String, u32>,
    ) -> Result<(u64, u64), String> {
        let counted = self.published.settle(seen)?;
        for (path, node) in &self.names {
            let Node::File(id) = node else { continue };
            let Some(file) = self.files.get_mut(id) else { continue };
            let same = seen.get(path).is_some_and(|bytes| *bytes == *file.bytes);
            let certain = file.stage == Stage::Clean || modes.get(path) == Some(&file.mode);
            file.stage = if same && certain { Stage::Clean } else { Stage::Kept };
            file.release_due = false;
        }
        Ok(counted)
    }

    /// Files that are shown otherwise than they are published.
    pub fn kept(&self) -> Vec<&String> {
        let kept = |node: &Node| matches!(node, Node::File(id) if self.files[id].stage != Stage::Clean);
        self.names.iter().filter(|(_, node)| kept(node)).map(|(path, _)| path).collect()
    }

    /// Expects one byte of some file to be other than it is.
    pub fn flip_a_byte(&mut self) -> bool {
        let named: Vec<u32> =
            self.names.values().filter_map(|n| if let Node::File(id) = n { Some(*id) } else { None }).collect();
        for id in named {
            if let Some(file) = self.files.get_mut(&id)
                && !file.bytes.is_empty()
                && !matches!(file.stage, Stage::Fresh { .. })
            {
                let last = file.bytes.len() - 1;
                Arc::make_mut(&mut file.bytes)[last] ^= 1;
                return true;
            }
        }
        false
    }
}

/// A write: zeros up to its offset where the file was shorter.
pub fn overwrite(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}
