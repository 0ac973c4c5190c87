//! What a directory of files must look like: names, the files they stand for, and handles that outlive their names.

use std::collections::{BTreeMap, HashMap};

/// Names one file, whatever it is called.
pub type FileId = u64;

/// Zeros of any length are seldom written at once.
const ZEROS: [u8; 4096] = [0; 4096];

/// The content of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content(Vec<u8>);

impl Content {
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What a read of `len` bytes at `offset` gives.
    pub fn read(&self, offset: u64, len: usize) -> &[u8] {
        let start = usize::try_from(offset).unwrap().min(self.0.len());
        &self.0[start..start.saturating_add(len).min(self.0.len())]
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if bytes.is_empty() {
            return;
        }
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[start..end].copy_from_slice(bytes);
    }

    pub fn truncate(&mut self, size: u64) {
        self.0.resize(size as usize, 0);
    }

    /// Zeros over the part of the range that is within the file.
    pub fn zero(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.len()) as usize;
        let start = (offset as usize).min(end);
        self.0[start..end].fill(0);
    }

    pub fn grow(&mut self, size: u64) {
        self.truncate(self.len().max(size));
    }

    /// Where the first byte that differs is, and what is expected and found there.
    pub fn difference(&self, found: &[u8]) -> Option<String> {
        if self.0 == found {
            return None;
        }
        let at = self.0.iter().zip(found).position(|(a, b)| a != b);
        Some(match at {
            Some(at) => {
                let end = (at..self.0.len().min(found.len())).rev().find(|&i| self.0[i] != found[i]).unwrap_or(at);
                let zeros = found[at..=end].iter().all(|&byte| byte == 0);
                format!(
                    "bytes {at:#x}..={end:#x} of {:#x} differ first and last: {:#04x} expected, {:#04x} found{}",
                    self.0.len(),
                    self.0[at],
                    found[at],
                    if zeros { "; all of them are zeros" } else { "" }
                )
            }
            None => format!("{:#x} bytes expected, {:#x} found", self.0.len(), found.len()),
        })
    }
}

/// A directory of files.
#[derive(Clone, Debug, Default)]
pub struct Model {
    names: BTreeMap<String, FileId>,
    files: HashMap<FileId, Content>,
    id_next: FileId,
}

impl Model {
    pub fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    pub fn id(&self, name: &str) -> Option<FileId> {
        self.names.get(name).copied()
    }

    pub fn content(&self, id: FileId) -> &Content {
        &self.files[&id]
    }

    pub fn content_mut(&mut self, id: FileId) -> &mut Content {
        self.files.get_mut(&id).expect("known file")
    }

    pub fn by_name(&self, name: &str) -> &Content {
        self.content(self.names[name])
    }

    /// The file of this name, made empty if there is none.
    pub fn create(&mut self, name: &str) -> FileId {
        if let Some(id) = self.id(name) {
            return id;
        }
        self.id_next += 1;
        self.names.insert(name.to_owned(), self.id_next);
        self.files.insert(self.id_next, Content::default());
        self.id_next
    }

    pub fn unlink(&mut self, name: &str) {
        self.names.remove(name);
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        let id = self.names.remove(from).expect("known name");
        self.names.insert(to.to_owned(), id);
    }

    pub fn exchange(&mut self, a: &str, b: &str) {
        let (id_a, id_b) = (self.names[a], self.names[b]);
        self.names.insert(a.to_owned(), id_b);
        self.names.insert(b.to_owned(), id_a);
    }

    /// Whether the file has a name.
    pub fn is_linked(&self, id: FileId) -> bool {
        self.names.values().any(|&named| named == id)
    }
}

/// Whether all of `bytes` are zeros.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|piece| *piece == ZEROS[..piece.len()])
}

#[test]
fn the_model_does_what_posix_says() {
    let mut content = Content::default();
    content.write(5, b"abc");
    assert_eq!(content.bytes(), b"\0\0\0\0\0abc");
    content.zero(6, 100);
    assert_eq!(content.bytes(), b"\0\0\0\0\0a\0\0");
    content.truncate(6);
    content.grow(3);
    content.grow(7);
    assert_eq!(content.bytes(), b"\0\0\0\0\0a\0");
    assert_eq!(content.read(5, 10), b"a\0");
    assert_eq!(content.read(50, 10), b"");
    assert!(content.difference(b"\0\0\0\0\0a\0").is_none());
    assert!(content.difference(b"\0\0\0\0\0b\0").unwrap().contains("0x5..=0x5"));
    assert!(content.difference(b"\0").unwrap().contains("0x1 found"));
    let mut model = Model::default();
    let a = model.create("a");
    let b = model.create("b");
    model.rename("a", "b");
    assert_eq!((model.id("a"), model.id("b"), model.is_linked(b)), (None, Some(a), false));
}
