//! Files with known content, and their digests.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bosfs::object::Md5;
use md5::Digest as _;

/// One step of splitmix64: a well mixed number for each seed.
pub fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `buf` with the bytes that a random file of `seed` has from `offset` on: incompressible, no two blocks equal.
pub fn fill_random(seed: u64, offset: u64, buf: &mut [u8]) {
    let mut at = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let word = splitmix64(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ (at / 8)).to_le_bytes();
        let word = &word[(at % 8) as usize..];
        let n = word.len().min(rest.len());
        rest[..n].copy_from_slice(&word[..n]);
        rest = &mut rest[n..];
        at += n as u64;
    }
}

/// `len` bytes of the random file of `seed`.
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill_random(seed, 0, &mut bytes);
    bytes
}

/// Writes the random file of `seed` with `len` bytes.
pub fn write_random(path: &Path, seed: u64, len: u64) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let n = usize::try_from(len - at).unwrap_or(usize::MAX).min(buf.len());
        fill_random(seed, at, &mut buf[..n]);
        file.write_all(&buf[..n])?;
        at += n as u64;
    }
    file.flush()
}

/// MD5 of a file's content.
pub fn md5_of_file(path: &Path) -> io::Result<Md5> {
    md5_of_reader(File::open(path)?)
}

/// MD5 of what a reader gives to its end.
pub fn md5_of_reader(mut reader: impl Read) -> io::Result<Md5> {
    let mut md5 = md5::Md5::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buf)? {
            0 => return Ok(Md5(md5.finalize().into())),
            n => md5.update(&buf[..n]),
        }
    }
}

/// Bytes of all regular files under `dir`, as they are allocated on disk.
pub fn allocated_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => allocated_bytes(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// All files under `dir`, recursively, sorted.
pub fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}
