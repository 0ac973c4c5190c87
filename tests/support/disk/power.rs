//! What a disk may hold after the power failed, made of the record of what was asked of it.
//!
//! # Rules
//!
//! Modelled on ext4, and stricter where that is simpler; whatever a real disk can show here, some seed shows.
//!
//! - *Bytes of a file.* What was written before the last sync of that file is there. Of later writes each 512-byte sector (or
//!   each 4 KiB page, by [`Loss`]) holds what it held at some moment since that sync, each chosen for itself: a write may be
//!   there, be missing, or be torn within.
//! - *Length and holes.* They are metadata, kept in order: the changes of length and the punched holes of a file since its
//!   last sync are kept up to some moment, and no byte from before a kept cut or punch comes back. A length may be there
//!   without the bytes: those are zeros then.
//! - *Names.* A sync of a directory makes its entries certain, and no others; a sync of a file does not make its own name
//!   certain (ext4 would). Later entries (create, mkdir, rename, remove) are kept up to some moment, in the order in which they
//!   were made on the whole disk, as by ext4's one journal; a rename is in both directories or in neither.
//! - *What was never synced* may be there all the same, as a whole: [`Loss::Nothing`].
//!
//! A failed sync makes nothing certain. Times, modes and sockets are not part of an image.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::record::{Act, Change, NodeId, NodeKind};
use crate::support::files::splitmix64;

/// How much of what is not certain is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// All of it.
    Everything,
    /// None.
    Nothing,
    /// All after some moment of each file, the write of that moment torn.
    Tail,
    /// Sectors of 512 bytes, each by chance.
    Sectors,
    /// Pages of 4 KiB, each by chance.
    Pages,
    /// All bytes, but not lengths and names.
    Bytes,
}

impl Loss {
    pub const ALL: [Loss; 6] = [Loss::Everything, Loss::Nothing, Loss::Tail, Loss::Sectors, Loss::Pages, Loss::Bytes];
}

/// A pseudo-random row of numbers.
struct Chance(u64);

impl Chance {
    /// A number from 0 to `max`, both possible.
    fn up_to(&mut self, max: usize) -> usize {
        self.0 = splitmix64(self.0);
        ((self.0 >> 11) % (max as u64 + 1)) as usize
    }
}

/// A file: what is certain, and what came since.
#[derive(Default)]
struct FileImage {
    certain: Vec<u8>,
    since: Vec<Act>,
}

/// An entry that came or went.
enum Naming {
    Add { dir: NodeId, name: String, node: NodeId },
    Remove { dir: NodeId, name: String },
    Move { from: (NodeId, String), to: (NodeId, String), node: NodeId },
}

impl Naming {
    fn dirs(&self) -> Vec<NodeId> {
        match self {
            Naming::Add { dir, .. } | Naming::Remove { dir, .. } => vec![*dir],
            Naming::Move { from, to, .. } if from.0 == to.0 => vec![from.0],
            Naming::Move { from, to, .. } => vec![from.0, to.0],
        }
    }
}

/// Builds in the empty folder `target` what the disk may hold, by `seed`, after the first `changes`.
///
/// # Errors
/// What the real disk says.
pub fn build(changes: &[Change], loss: Loss, seed: u64, target: &Path) -> io::Result<()> {
    let mut chance = Chance(seed);
    let mut files: BTreeMap<NodeId, FileImage> = BTreeMap::new();
    let mut kinds: BTreeMap<NodeId, NodeKind> = BTreeMap::from([(NodeId::ROOT, NodeKind::Dir)]);
    let mut names: Vec<Naming> = Vec::new();
    let mut certain: Vec<bool> = Vec::new();
    for change in changes {
        match &change.act {
            act @ (Act::Write { node, .. } | Act::SetLen { node, .. } | Act::Punch { node, .. }) => {
                files.entry(*node).or_default().since.push(act.clone());
            }
            Act::SyncFile { node } => {
                let file = files.entry(*node).or_default();
                for act in std::mem::take(&mut file.since) {
                    apply(&mut file.certain, &act);
                }
            }
            Act::Create { parent, name, node, kind } => {
                kinds.insert(*node, *kind);
                names.push(Naming::Add { dir: *parent, name: name.clone(), node: *node });
                certain.push(false);
            }
            Act::Remove { parent, name, .. } => {
                names.push(Naming::Remove { dir: *parent, name: name.clone() });
                certain.push(false);
            }
            Act::Rename { from, to, node } => {
                names.push(Naming::Move { from: from.clone(), to: to.clone(), node: *node });
                certain.push(false);
            }
            Act::SyncDir { node } => make_certain(&names, &mut certain, *node),
            Act::Mode => {}
        }
    }
    let kept = kept_names(&names, &certain, loss, &mut chance);
    let mut tree: BTreeMap<NodeId, BTreeMap<String, NodeId>> = BTreeMap::new();
    for naming in names.iter().zip(kept).filter_map(|(naming, kept)| kept.then_some(naming)) {
        match naming {
            Naming::Add { dir, name, node } => {
                tree.entry(*dir).or_default().insert(name.clone(), *node);
            }
            Naming::Remove { dir, name } => {
                tree.entry(*dir).or_default().remove(name);
            }
            Naming::Move { from, to, node } => {
                tree.entry(from.0).or_default().remove(&from.1);
                tree.entry(to.0).or_default().insert(to.1.clone(), *node);
            }
        }
    }
    put_dir(NodeId::ROOT, target, &tree, &kinds, &mut |node| {
        files.remove(&node).map(|file| content(file, loss, &mut chance)).unwrap_or_default()
    })
}

/// A sync of `dir`: its entries so far are certain, and with a rename the other directory's up to it.
fn make_certain(names: &[Naming], certain: &mut [bool], dir: NodeId) {
    let mut open = vec![(dir, names.len())];
    while let Some((dir, end)) = open.pop() {
        for index in 0..end {
            if certain[index] || !names[index].dirs().contains(&dir) {
                continue;
            }
            certain[index] = true;
            open.extend(names[index].dirs().into_iter().filter(|other| *other != dir).map(|other| (other, index)));
        }
    }
}

/// Which entries are on the disk: the certain ones, and all up to some moment.
fn kept_names(names: &[Naming], certain: &[bool], loss: Loss, chance: &mut Chance) -> Vec<bool> {
    let mut kept = certain.to_vec();
    if matches!(loss, Loss::Nothing | Loss::Bytes) {
        return vec![true; names.len()];
    }
    if loss == Loss::Everything {
        return kept;
    }
    let moment = chance.up_to(names.len());
    kept[..moment].fill(true);
    kept
}

fn put_dir(
    dir: NodeId,
    path: &Path,
    tree: &BTreeMap<NodeId, BTreeMap<String, NodeId>>,
    kinds: &BTreeMap<NodeId, NodeKind>,
    content: &mut impl FnMut(NodeId) -> Vec<u8>,
) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for (name, node) in tree.get(&dir).into_iter().flatten() {
        let path = path.join(name);
        match kinds.get(node) {
            Some(NodeKind::Dir) => put_dir(*node, &path, tree, kinds, content)?,
            Some(NodeKind::File) => {
                use std::io::Write as _;
                let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                file.write_all(&content(*node))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn apply(bytes: &mut Vec<u8>, act: &Act) {
    match act {
        Act::Write { offset, bytes: written, .. } => {
            let end = *offset as usize + written.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset as usize..end].copy_from_slice(written);
        }
        Act::SetLen { len, .. } => bytes.resize(*len as usize, 0),
        Act::Punch { offset, len, .. } => {
            let end = bytes.len().min((offset + len) as usize);
            if let Some(hole) = bytes.get_mut(*offset as usize..end) {
                hole.fill(0);
            }
        }
        _ => {}
    }
}

/// The bytes of one file after the loss.
fn content(file: FileImage, loss: Loss, chance: &mut Chance) -> Vec<u8> {
    let FileImage { certain, since } = file;
    match loss {
        Loss::Everything => certain,
        Loss::Nothing => all(certain, &since),
        Loss::Tail => {
            let kept = chance.up_to(since.len());
            let mut bytes = all(certain, &since[..kept]);
            if let Some(Act::Write { node, offset, bytes: written, .. }) = since.get(kept) {
                // Torn at the border of a sector of the disk.
                let first = 512 - *offset as usize % 512;
                let sectors = written.len().saturating_sub(first) / 512;
                let taken = (first + 512 * chance.up_to(sectors)).min(written.len());
                let (node, offset, len) = (*node, *offset, taken as u64);
                apply(&mut bytes, &Act::Write { node, offset, len, bytes: written[..taken].into() });
            }
            bytes
        }
        Loss::Sectors => mixed(certain, &since, 512, chance),
        Loss::Pages => mixed(certain, &since, 4096, chance),
        Loss::Bytes => {
            let len = all(certain.clone(), &since).len();
            let mut bytes = certain;
            for act in since.iter().filter(|act| !matches!(act, Act::Write { .. })) {
                apply(&mut bytes, act);
            }
            bytes.resize(len, 0);
            bytes
        }
    }
}

fn all(mut bytes: Vec<u8>, acts: &[Act]) -> Vec<u8> {
    acts.iter().for_each(|act| apply(&mut bytes, act));
    bytes
}

/// Each sector of `sector` bytes from a moment of its own; lengths and holes up to one moment for the whole file.
fn mixed(certain: Vec<u8>, since: &[Act], sector: usize, chance: &mut Chance) -> Vec<u8> {
    let moment = chance.up_to(since.len());
    let len = all(certain.clone(), &since[..moment]).len();
    let count = len.div_ceil(sector);
    // Before the last kept cut or punch of a sector nothing of it comes back.
    let mut earliest = vec![0; count];
    for (index, act) in since[..moment].iter().enumerate() {
        let cut = match act {
            Act::SetLen { len, .. } => *len as usize..usize::MAX,
            Act::Punch { offset, len, .. } => *offset as usize..(*offset + *len) as usize,
            _ => continue,
        };
        for (number, first) in earliest.iter_mut().enumerate() {
            if number * sector < cut.end && cut.start < (number + 1) * sector {
                *first = index + 1;
            }
        }
    }
    let mut chosen: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, first) in earliest.iter().enumerate() {
        chosen.entry(first + chance.up_to(since.len() - first)).or_default().push(number);
    }
    let mut image = vec![0; len];
    let mut present = certain;
    for index in 0..=since.len() {
        for number in chosen.remove(&index).unwrap_or_default() {
            let start = number * sector;
            let end = (start + sector).min(len).min(present.len());
            if start < end {
                image[start..end].copy_from_slice(&present[start..end]);
            }
        }
        match since.get(index) {
            // Cuts and holes after the moment did not happen.
            Some(Act::SetLen { .. } | Act::Punch { .. }) if index >= moment => {}
            Some(act) => apply(&mut present, act),
            None => {}
        }
    }
    image
}
