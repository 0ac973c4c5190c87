//! Which call a step of the plan is, given what is there: pure.

use super::calls::Op;
use super::lane::{Lane, Node, marker, target_of};
use super::plan::{PART, Step, What};

const FILES: [&str; 5] = ["a", "b", "c d", "\u{4e2d}\u{6587} %+", "Z.txt"];
const DIRS: [&str; 3] = ["d", "\u{76ee}\u{5f55} %", "e"];
/// Largest file.
const SIZE_MAX: u64 = 3 * PART;

impl Lane {
    /// The call that `step` stands for; `None`: nothing fits.
    pub fn resolve(&self, step: &Step) -> Option<Op> {
        if !self.names.contains_key(&self.root) {
            return Some(Op::Mkdir { path: self.root.clone() });
        }
        let [first, second, third] = step.pick;
        let slot = step.slot;
        let open = self.slots[slot];
        let size = open.map_or(0, |id| self.files[&id].bytes.len() as u64);
        match step.what {
            What::Create | What::CreateTemporary | What::CreatePart | What::Open if open.is_some() => {
                Some(Op::Close { slot })
            }
            What::Create => {
                let path = self.place(first, second);
                self.is_free_file(&path).then_some(Op::Create { slot, path, exclusive: false, mode: 0o644 })
            }
            What::CreateTemporary => {
                let (dir, name) =
                    self.place(first, second).rsplit_once('/').map(|(d, n)| (d.to_owned(), n.to_owned()))?;
                let random: String = (0..6).map(|n| char::from(b'A' + (third >> (n * 5)) as u8 % 26)).collect();
                let path = format!("{dir}/.{name}.{random}");
                (!self.names.contains_key(&path)).then_some(Op::Create { slot, path, exclusive: true, mode: 0o600 })
            }
            What::CreatePart => {
                let path = format!("{}.part", self.place(first, second));
                self.is_free_file(&path).then_some(Op::Create { slot, path, exclusive: false, mode: 0o644 })
            }
            What::Open => Some(Op::Open { slot, path: self.pick_file(first, true)? }),
            What::Write { large } | What::Append { large } => {
                open?;
                let at = match step.what {
                    What::Append { .. } => size,
                    _ if second % 4 == 0 => (size / PART * PART).saturating_sub(second % 3),
                    _ => first % (size + 5000),
                };
                let small = [1, 100, 512, 4096, 5000, 33_333, 120_000];
                let len = match large {
                    true => [PART, PART + 1, PART + 300_000, 2 * PART - 77][(third % 4) as usize],
                    false => small[(third % 7) as usize],
                };
                let len = len.min(SIZE_MAX.saturating_sub(at));
                (len > 0).then_some(Op::Write { slot, at, seed: third, len: len as usize })
            }
            What::Cut => {
                open?;
                Some(Op::Cut { slot, size: self.new_size(size, first, second) })
            }
            What::CutPath => {
                let path = self.pick_file(first, true)?;
                let size = self.file(&path)?.bytes.len() as u64;
                Some(Op::CutPath { size: self.new_size(size, second, third), path })
            }
            What::Fsync => open.map(|_| Op::Fsync { slot }),
            What::Close => open.map(|_| Op::Close { slot }),
            What::Rename => {
                let from = self.pick_file(first, false)?;
                let to = self.place(second, third);
                (to != from && self.names.get(&to) != Some(&Node::Dir)).then_some(Op::Rename { from, to })
            }
            What::RenameTemporary => {
                let temporaries: Vec<&String> = self.names.keys().filter(|path| target_of(path).is_some()).collect();
                let from = pick(&temporaries, first)?.to_string();
                let to = target_of(&from)?;
                let open = matches!(self.names.get(&from), Some(Node::File(id)) if self.is_open(*id));
                (!open && self.names.get(&to) != Some(&Node::Dir)).then_some(Op::Rename { from, to })
            }
            What::RenameDir => {
                let dirs: Vec<String> = self.dirs().into_iter().filter(|dir| *dir != self.root).collect();
                let from = pick(&dirs, first)?.clone();
                let to = format!("{}/{}", self.root, DIRS[(second % 3) as usize]);
                let there = self.names.get(&to);
                let fits = to != from && (there.is_none() || there == Some(&Node::Dir) && self.is_empty(&to));
                fits.then_some(Op::Rename { from, to })
            }
            What::Unlink => Some(Op::Unlink { path: self.pick_file(first, false)? }),
            What::Mkdir => {
                let path = format!("{}/{}", self.root, DIRS[(first % 3) as usize]);
                (!self.names.contains_key(&path)).then_some(Op::Mkdir { path })
            }
            What::Rmdir => {
                let dirs: Vec<String> =
                    self.dirs().into_iter().filter(|dir| *dir != self.root && self.is_empty(dir)).collect();
                Some(Op::Rmdir { path: pick(&dirs, first)?.clone() })
            }
            What::Chmod => {
                let mode = [0o600, 0o640, 0o755, 0o444][(second % 4) as usize];
                Some(Op::Chmod { path: self.pick_file(first, false)?, mode })
            }
            What::CopyRange => {
                let id = open?;
                let from = self.pick_file(first, true)?;
                let len = self.file(&from)?.bytes.len() as u64;
                let at = if second % 2 == 0 { 0 } else { third % (size + 1) };
                let fits = len > 0 && at + len <= SIZE_MAX && self.names.get(&from) != Some(&Node::File(id));
                fits.then_some(Op::CopyRange { from, slot, at, len })
            }
        }
    }

    /// Closes of everything that is open.
    pub fn closes(&self) -> Vec<Op> {
        (0..self.slots.len()).filter(|slot| self.slots[*slot].is_some()).map(|slot| Op::Close { slot }).collect()
    }

    fn dirs(&self) -> Vec<String> {
        self.names.iter().filter(|(_, node)| **node == Node::Dir).map(|(path, _)| path.clone()).collect()
    }

    fn is_empty(&self, dir: &str) -> bool {
        !self.names.keys().any(|path| path.starts_with(&marker(dir)))
    }

    /// A name for a file, mostly in the lane's own directory.
    fn place(&self, name: u64, dir: u64) -> String {
        let dirs = self.dirs();
        let dir = if dir.is_multiple_of(3) { &dirs[(dir / 3) as usize % dirs.len()] } else { &self.root };
        format!("{dir}/{}", FILES[name as usize % FILES.len()])
    }

    /// No directory, and not open.
    fn is_free_file(&self, path: &str) -> bool {
        match self.names.get(path) {
            Some(Node::Dir) => false,
            Some(Node::File(id)) => !self.is_open(*id),
            None => true,
        }
    }

    fn pick_file(&self, choice: u64, closed: bool) -> Option<String> {
        let fits = |node: &Node| matches!(node, Node::File(id) if !(closed && self.is_open(*id)));
        let files: Vec<&String> = self.names.iter().filter(|(_, node)| fits(node)).map(|(path, _)| path).collect();
        pick(&files, choice).map(|path| path.to_string())
    }

    fn new_size(&self, size: u64, choice: u64, kind: u64) -> u64 {
        let new = match kind % 5 {
            0 => 0,
            1 => size / PART * PART,
            2 => size,
            _ => choice % (2 * size + 2),
        };
        new.min(SIZE_MAX)
    }
}

fn pick<T>(all: &[T], choice: u64) -> Option<&T> {
    if all.is_empty() { None } else { all.get(choice as usize % all.len()) }
}
