//! Lookups and listings that cost almost nothing, counted at the proxy.

use std::thread;

use crate::support::{Call, World};
use crate::{WAIT, shell};

/// Puts `count` objects past the mount, side by side.
fn put_all(world: &World, keys: &[String], body: &[u8]) {
    thread::scope(|scope| {
        for part in keys.chunks(keys.len().div_ceil(4).max(1)) {
            let bucket = &world.bucket;
            scope.spawn(move || part.iter().for_each(|key| bucket.put(key, body).map(drop).unwrap()));
        }
    });
}

#[test]
fn a_second_ls_of_an_unchanged_tree_after_a_remount_is_listings_only() {
    let world = World::new();
    let keys: Vec<String> = (0..3000).map(|i| format!("tree/dir-{:02}/file-{:03}", i % 30, i / 30)).collect();
    put_all(&world, &keys, b"content");
    let mut mount = world.mount(&[]);
    let first = shell(&format!("cd {} && ls -lnR --time-style=full-iso", mount.dir().display()));
    assert_eq!(first.lines().filter(|line| line.contains(" file-")).count(), 3000);
    assert!(mount.umount(WAIT).status.success());
    let mount = world.mount(&[]);
    world.proxy.take_counts();
    let second = shell(&format!("cd {} && ls -lnR --time-style=full-iso", mount.dir().display()));
    let counts = world.proxy.counts();
    let told = counts.log_text();
    println!("second ls -lR of 3000 files in 30 directories: {} LIST", counts.requests(Call::ListObjects));
    let differ = first.lines().zip(second.lines()).find(|(before, after)| before != after);
    assert_eq!(differ, None, "the attributes differ");
    assert_eq!(counts.requests(Call::HeadObject), 0, "{told}");
    assert_eq!(counts.requests_all(), counts.requests(Call::ListObjects), "{told}");
    assert!(counts.requests(Call::ListObjects) <= 2 * 32, "{told}");
}
