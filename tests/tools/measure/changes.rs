//! Bytes and requests of small changes to large objects.

use std::path::Path;

use bosfs::object::Md5;
use md5::Digest as _;

use crate::report::{Limit, Report};
use crate::support::files::{fill_random, random_bytes};
use crate::support::{BUCKET, World};
use crate::{Sizes, shell, text};

/// The default part; objects up to 7.8 GiB have no larger ones.
const PART_BYTES: u64 = 8 << 20;
const APPENDED_BYTES: u64 = 1 << 20;
const WRITTEN_BYTES: u64 = 4096;
const SYNTHETIC_BYTES: u64 = 50_000_000_000;
/// Bytes that are compared on both sides of a change.
const SEAM_BYTES: u64 = 64 << 10;

pub fn run(sizes: &Sizes, report: &mut Report) {
    let size = sizes.object_bytes;
    report.scene(&format!("changes of an object of {} MiB", size >> 20), |world, report| real(world, report, size));
    report.scene("append of 1 MiB to a sparse object of 50 GB", synthetic);
}

fn real(world: &World, report: &mut Report, size: u64) -> Result<(), String> {
    put_random(world, "big", 1, size).map_err(text)?;
    let piece = world.random_file("piece", 2, WRITTEN_BYTES);
    let more = world.random_file("more", 3, APPENDED_BYTES);
    let mount = world.spec(&[]).mount().map_err(text)?;

    let at = size / 2 + 12_345;
    world.proxy.take_counts();
    write_at(&piece, &mount.path("big"), at)?;
    let counts = world.proxy.take_counts();
    report.check("overwrite 4 KiB in the middle: bytes sent", counts.bytes_sent(), Limit::AtMost(PART_BYTES));
    report.note("overwrite: requests in all", counts.requests_all());
    let found = range(world, "big", at - SEAM_BYTES, at + WRITTEN_BYTES + SEAM_BYTES)?;
    let mut expected = vec![0; found.len()];
    fill_random(1, at - SEAM_BYTES, &mut expected);
    expected[SEAM_BYTES as usize..][..WRITTEN_BYTES as usize].copy_from_slice(&random_bytes(2, WRITTEN_BYTES as usize));
    report.check_that("overwrite: bytes around the seams", found == expected);

    world.proxy.take_counts();
    append(&more, &mount.path("big"))?;
    let counts = world.proxy.take_counts();
    report.check("append 1 MiB: bytes sent", counts.bytes_sent(), Limit::AtMost(APPENDED_BYTES + PART_BYTES));
    report.note("append: requests in all", counts.requests_all());
    let found = range(world, "big", size - SEAM_BYTES, size + APPENDED_BYTES)?;
    let mut expected = vec![0; SEAM_BYTES as usize];
    fill_random(1, size - SEAM_BYTES, &mut expected);
    expected.extend(random_bytes(3, APPENDED_BYTES as usize));
    report.check_that("append: bytes around the seam", found == expected);

    let (md5, bytes) = world.bucket.get_md5("big").map_err(text)?;
    report.check("size after both", bytes, Limit::Exactly(size + APPENDED_BYTES));
    report.check_that("MD5 of the whole after both, by a GET past the mount", md5 == expected_md5(size, at));
    Ok(())
}

fn synthetic(world: &World, report: &mut Report) -> Result<(), String> {
    world.server.handle().put_sparse(BUCKET, "huge", SYNTHETIC_BYTES).map_err(|e| format!("{e:?}"))?;
    let more = world.random_file("more", 3, APPENDED_BYTES);
    let mount = world.spec(&[]).mount().map_err(text)?;
    // The name is looked up first; `>>` follows within the time that attributes are believed (--metadata-ttl).
    world.proxy.take_counts();
    shell(&format!("test -f {}", mount.path("huge").display()))?;
    report.note("requests of the first look at the name", world.proxy.take_counts().requests_all());
    append(&more, &mount.path("huge"))?;
    let counts = world.proxy.counts();
    report.check("requests in all (open, write, close)", counts.requests_all(), Limit::AtMost(15));
    for (call, count) in &counts.calls {
        report.note(&format!("  {call}"), count.requests);
    }
    report.note("bytes sent", counts.bytes_sent());
    let size = world.bucket.head("huge").map_err(text)?.map_or(0, |seen| seen.size);
    report.check("size afterwards", size, Limit::Exactly(SYNTHETIC_BYTES + APPENDED_BYTES));
    let found = range(world, "huge", SYNTHETIC_BYTES - SEAM_BYTES, SYNTHETIC_BYTES + APPENDED_BYTES)?;
    let (before, behind) = found.split_at(SEAM_BYTES as usize);
    let right = before.iter().all(|byte| *byte == 0) && behind == random_bytes(3, APPENDED_BYTES as usize);
    report.check_that("bytes around the seam", right);
    Ok(())
}

fn append(more: &Path, target: &Path) -> Result<(), String> {
    shell(&format!("cat {} >> {}", more.display(), target.display())).map(drop)
}

fn write_at(piece: &Path, target: &Path, at: u64) -> Result<(), String> {
    shell(&format!(
        "dd if={} of={} bs=4096 count=1 conv=notrunc oflag=seek_bytes seek={at} status=none",
        piece.display(),
        target.display()
    ))
    .map(drop)
}

/// Bytes `start..end` of an object, past the mount.
fn range(world: &World, key: &str, start: u64, end: u64) -> Result<Vec<u8>, String> {
    let header = format!("bytes={start}-{}", end - 1);
    Ok(world.bucket.ask("GET", key, &[], &[("range", &header)], b"").map_err(text)?.1)
}

/// MD5 of the random file of seed 1 with both changes.
fn expected_md5(size: u64, at: u64) -> Md5 {
    let mut md5 = md5::Md5::new();
    let mut buf = vec![0; 1 << 20];
    let piece = random_bytes(2, WRITTEN_BYTES as usize);
    for start in (0..size).step_by(buf.len()) {
        fill_random(1, start, &mut buf);
        if (start..start + buf.len() as u64).contains(&at) {
            buf[(at - start) as usize..][..piece.len()].copy_from_slice(&piece);
        }
        md5.update(&buf);
    }
    md5.update(random_bytes(3, APPENDED_BYTES as usize));
    Md5(md5.finalize().into())
}

/// Makes an object of random bytes by a multipart upload past the mount.
fn put_random(world: &World, key: &str, seed: u64, size: u64) -> std::io::Result<()> {
    const PIECE_BYTES: usize = 32 << 20;
    let upload_id = world.bucket.initiate(key)?;
    let mut parts = Vec::new();
    let mut body = vec![0; PIECE_BYTES];
    for (number, start) in (1..).zip((0..size).step_by(PIECE_BYTES)) {
        fill_random(seed, start, &mut body);
        parts.push((number, world.bucket.upload_part(key, &upload_id, number, &body)?));
    }
    world.bucket.complete(key, &upload_id, &parts)
}
