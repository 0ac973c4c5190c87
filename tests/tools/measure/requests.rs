//! Requests of `cp` and `ls`.

use std::time::Instant;

use crate::report::{Limit, Report};
use crate::support::mounted::cp;
use crate::support::{Call, World};
use crate::{Sizes, WAIT, shell, succeeded, text};

/// The default part.
const PART_BYTES: u64 = 8 << 20;
/// Keys of one page of a listing.
const PAGE_KEYS: u64 = 1000;

pub fn run(sizes: &Sizes, report: &mut Report) {
    let parts = sizes.parts + 1;
    report.scene(&format!("cp of a file of {parts} parts"), |world, report| many_parts(world, report, sizes.parts));
    report.scene("cp of a file of 4 KiB", small_file);
    report.scene(&format!("ls of {} keys", sizes.keys), |world, report| listing(world, report, sizes.keys));
}

fn many_parts(world: &World, report: &mut Report, whole_parts: u64) -> Result<(), String> {
    let size = whole_parts * PART_BYTES + 12_345;
    let source = world.random_file("source", 1, size);
    let mount = world.spec(&[]).mount().map_err(text)?;
    world.proxy.take_counts();
    succeeded("cp", cp(&source, mount.path("huge.iso"), WAIT))?;
    let counts = world.proxy.counts();
    let parts = whole_parts + 1;
    report.check("initiates", counts.requests(Call::Initiate), Limit::Exactly(1));
    report.check("parts", counts.requests(Call::UploadPart), Limit::Exactly(parts));
    report.check("completes", counts.requests(Call::Complete), Limit::Exactly(1));
    report.check("reads (HEAD, list)", counts.reads(), Limit::AtMost(3));
    report.check("requests in all", counts.requests_all(), Limit::AtMost(parts + 5));
    report.check("bytes sent", counts.bytes_sent(), Limit::Exactly(size));
    world.assert_object_is_file("huge.iso", &source);
    report.check_that("the object is the file (MD5 of a GET past the mount)", true);
    Ok(())
}

fn small_file(world: &World, report: &mut Report) -> Result<(), String> {
    let source = world.random_file("source", 2, 4096);
    let mount = world.spec(&[]).mount().map_err(text)?;
    world.proxy.take_counts();
    succeeded("cp", cp(&source, mount.path("small"), WAIT))?;
    let counts = world.proxy.counts();
    report.check("puts", counts.requests(Call::PutObject), Limit::Exactly(1));
    report.check("reads (HEAD, list)", counts.reads(), Limit::AtMost(2));
    report.check("requests in all", counts.requests_all(), Limit::AtMost(3));
    world.assert_object_is_file("small", &source);
    report.check_that("the object is the file (MD5 of a GET past the mount)", true);
    Ok(())
}

fn listing(world: &World, report: &mut Report, keys: u64) -> Result<(), String> {
    const THREADS: u64 = 4;
    std::thread::scope(|scope| {
        let put = |first: u64| {
            let bucket = world.bucket.clone();
            move || {
                (first..keys)
                    .step_by(THREADS as usize)
                    .try_for_each(|i| bucket.put(&format!("many/file-{i:06}"), b"x").map(drop))
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(put(first))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
    .map_err(text)?;
    let mount = world.spec(&[]).mount().map_err(text)?;
    let dir = mount.path("many");
    let pages = keys.div_ceil(PAGE_KEYS);
    for command in ["ls", "ls -l", "ls -l"] {
        // The directory itself is looked up first.
        shell(&format!("test -d {}", dir.display()))?;
        world.proxy.take_counts();
        let start = Instant::now();
        let listed = shell(&format!("{command} {} | grep -c file-", dir.display()))?;
        let took = start.elapsed();
        let counts = world.proxy.counts();
        let heads = counts.of(Call::HeadObject);
        report.check(&format!("{command}: names"), listed.trim().parse().unwrap_or(0), Limit::Exactly(keys));
        let lists = counts.requests(Call::ListObjects);
        match command {
            "ls" => report.check("ls: lists", lists, Limit::Exactly(pages)),
            // It names every file by its path: the directory itself is looked up again once a second (--metadata-ttl).
            _ => report.check(&format!("{command}: lists"), lists, Limit::AtMost(pages + took.as_secs() + 1)),
        }
        report.check(&format!("{command}: HEADs for attributes"), heads.requests, Limit::AtMost(keys));
        let others = counts.requests_all() - lists - heads.requests;
        report.check(&format!("{command}: other requests"), others, Limit::Exactly(0));
        report.note(&format!("{command}: HEADs side by side, at most"), heads.open_max);
        report.note(&format!("{command}: ms"), took.as_millis());
    }
    Ok(())
}
