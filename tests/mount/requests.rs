//! What programs cost, counted at the proxy.

use crate::support::files::{random_bytes, splitmix64};
use crate::support::mounted::cp;
use crate::support::{BUCKET, Call, KeyWatch, World};
use crate::{PART, SMALL_PARTS, WAIT, shell, unmount};

#[test]
fn a_file_of_n_parts_is_one_initiate_n_parts_one_complete_and_at_most_three_reads() {
    let world = World::new();
    let source = world.random_file("source", 1, 7 * PART + 1);
    let mount = world.mount(&SMALL_PARTS);
    world.proxy.take_counts();
    assert!(cp(&source, mount.path("huge.iso"), WAIT).status.success());
    let counts = world.proxy.counts();
    let told = counts.log_text();
    assert_eq!(counts.requests(Call::Initiate), 1, "{told}");
    assert_eq!(counts.requests(Call::UploadPart), 8, "{told}");
    assert_eq!(counts.requests(Call::Complete), 1, "{told}");
    assert!(counts.reads() <= 3, "{told}");
    assert!(counts.requests_all() <= 13, "{told}");
    assert_eq!(counts.bytes_sent(), 7 * PART + 1);
    world.assert_object_is_file("huge.iso", &source);
}

#[test]
fn a_file_of_4_kib_is_one_put_and_at_most_two_reads() {
    let world = World::new();
    let source = world.random_file("source", 2, 4096);
    let mount = world.mount(&[]);
    world.proxy.take_counts();
    assert!(cp(&source, mount.path("small"), WAIT).status.success());
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::PutObject), 1, "{}", counts.log_text());
    assert!(counts.reads() <= 2, "{}", counts.log_text());
    assert!(counts.requests_all() <= 3, "{}", counts.log_text());
    world.assert_object_is_file("small", &source);
}

#[test]
fn echo_from_a_shell_is_one_put() {
    let world = World::new();
    let mount = world.mount(&[]);
    world.proxy.take_counts();
    shell(&format!("echo hello > {}/f", mount.dir().display()));
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::PutObject), 1, "{}", counts.log_text());
    assert_eq!(world.bucket.get("f").unwrap(), b"hello\n");
}

#[test]
fn ls_of_10000_keys_costs_ten_lists() {
    let world = World::new();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let bucket = world.bucket.clone();
            std::thread::spawn(move || {
                for i in (thread..10_000).step_by(4) {
                    bucket.put(&format!("many/file-{i:05}"), b"").unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mount = world.mount(&[]);
    // The folder itself is looked up first.
    shell(&format!("test -d {}/many", mount.dir().display()));
    world.proxy.take_counts();
    let listed = shell(&format!("ls -f {}/many | grep -c file-", mount.dir().display()));
    assert_eq!(listed.trim(), "10000");
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::ListObjects), 10, "{}", counts.log_text());
    // Attributes need a HEAD each, once, side by side.
    let heads = counts.of(Call::HeadObject);
    assert!(heads.requests <= 10_000, "{} HEADs", heads.requests);
    if heads.requests > 1000 {
        assert!(heads.open_max > 1, "attributes are fetched one by one");
    }
}

/// A shell loop with 1000 children and one redirected output publishes at most three times, and never a part of the
/// output.
#[test]
fn a_shell_loop_is_at_most_three_publications_and_never_a_partial_log() {
    let world = World::new();
    let mount = world.mount(&[]);
    let watch = KeyWatch::start(&world.bucket, "log");
    world.proxy.take_counts();
    let local = world.path("log");
    let script = "for i in $(seq 1000); do echo line $i; /bin/true; done";
    shell(&format!("{script} > {}/log", mount.dir().display()));
    shell(&format!("{script} > {}", local.display()));
    mount.wait_settled("log", WAIT);
    let counts = world.proxy.counts();
    let publications = counts.requests(Call::PutObject) + counts.requests(Call::Complete);
    assert!((1..=3).contains(&publications), "{publications} publications\n{}", counts.log_text());
    world.assert_object_is_file("log", &local);
    let size = std::fs::metadata(&local).unwrap().len();
    // An empty file at its creation is whole: the shell truncated it.
    assert_eq!(watch.half_files(&[0, size]), [] as [u64; 0]);
}

#[test]
fn appending_1_mib_to_a_1_gib_object_sends_1_mib_and_at_most_one_part() {
    let world = World::new();
    world.server.handle().put_sparse(BUCKET, "big", 1 << 30).unwrap();
    append_and_check(&world, 1 << 30, 8 << 20, 40);
}

/// Appending 1 MiB to an object of 50 GB costs at most 16 requests, the last of which compares the size.
#[test]
fn appending_1_mib_to_a_50_gb_object_costs_at_most_16_requests() {
    let world = World::new();
    world.server.handle().put_sparse(BUCKET, "big", 50_000_000_000).unwrap();
    append_and_check(&world, 50_000_000_000, 64 << 20, 16);
}

/// Appends 1 MiB to the sparse object `big` and looks at the cost and at the bytes.
fn append_and_check(world: &World, size: u64, part_bytes_max: u64, requests_max: u64) {
    let more = world.random_file("more", 3, 1 << 20);
    let mount = world.mount(&[]);
    shell(&format!("test -f {}/big", mount.dir().display()));
    world.proxy.take_counts();
    shell(&format!("cat {} >> {}/big", more.display(), mount.dir().display()));
    let counts = world.proxy.counts();
    assert!(counts.bytes_sent() <= (1 << 20) + part_bytes_max, "{} bytes sent", counts.bytes_sent());
    assert!(counts.requests_all() <= requests_max, "{} requests\n{}", counts.requests_all(), counts.log_text());
    assert_eq!(world.bucket.head("big").unwrap().unwrap().size, size + (1 << 20));
    let range = format!("bytes={}-{}", size - 4096, size + (1 << 20) - 1);
    let (_, tail) = world.bucket.ask("GET", "big", &[], &[("range", &range)], b"").unwrap();
    assert_eq!(tail[..4096], [0; 4096]);
    assert!(tail[4096..] == random_bytes(3, 1 << 20), "the appended bytes are others");
}

#[test]
fn overwriting_4_kib_in_the_middle_of_1_gib_sends_at_most_one_part() {
    let world = World::new();
    world.server.handle().put_sparse(BUCKET, "big", 1 << 30).unwrap();
    let piece = world.random_file("piece", 4, 4096);
    let mount = world.mount(&[]);
    shell(&format!("test -f {}/big", mount.dir().display()));
    world.proxy.take_counts();
    let at = 512 << 20 | 12_345;
    shell(&format!(
        "dd if={} of={}/big bs=4096 count=1 conv=notrunc oflag=seek_bytes seek={at} status=none",
        piece.display(),
        mount.dir().display()
    ));
    let counts = world.proxy.counts();
    assert!(counts.bytes_sent() <= 8 << 20, "{} bytes sent", counts.bytes_sent());
    assert_eq!(world.bucket.head("big").unwrap().unwrap().size, 1 << 30);
    let range = format!("bytes={}-{}", at - 100, at + 4096 + 99);
    let (_, middle) = world.bucket.ask("GET", "big", &[], &[("range", &range)], b"").unwrap();
    assert_eq!(middle[..100], [0; 100]);
    assert!(middle[100..4196] == random_bytes(4, 4096), "the written bytes are others");
    assert_eq!(middle[4196..], [0; 100]);
}

#[test]
fn a_rewritten_part_is_sent_again_and_no_other() {
    let world = World::new();
    let source = world.random_file("source", 5, 4 * PART);
    let mount = world.mount(&SMALL_PARTS);
    let target = mount.path("f");
    let offset = 2 * PART + 77;
    let bytes = random_bytes(splitmix64(5), 10_000);
    let (from, patch) = (source.clone(), bytes.clone());
    crate::timed(move || {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = std::fs::File::create(target).unwrap();
        file.write_all(&std::fs::read(from).unwrap()).unwrap();
        file.sync_all().unwrap();
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(&patch).unwrap();
    });
    mount.wait_settled("f", WAIT);
    let mut expected = std::fs::read(&source).unwrap();
    expected[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    assert!(world.bucket.get("f").unwrap() == expected, "the object has other bytes");
    let counts = world.proxy.counts();
    for part in [1, 2, 4] {
        assert!(counts.part("f", part).accepted <= 1, "part {part}\n{}", counts.log_text());
    }
    assert!(counts.part("f", 3).accepted <= 2, "{}", counts.log_text());
}

#[test]
fn a_file_of_several_parts_is_not_asked_for_again_after_its_publication() {
    let world = World::new();
    let mount = world.mount(&["--part-size", "5MiB", "--metadata-ttl", "60s"]);
    let (temporary, name) = (mount.path(".f.AbCd12"), mount.path("f"));
    write_and_rename(&temporary, &name);
    world.wait_quiet();
    world.proxy.take_counts();
    assert_eq!(std::fs::metadata(&name).unwrap().len(), 2 * PART);
    assert_eq!(std::fs::read_dir(mount.dir()).unwrap().count(), 1);
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::HeadObject), 0, "{}", counts.log_text());
}

#[test]
fn a_listing_confirms_a_file_of_several_parts_that_this_mount_published() {
    let world = World::new();
    let mount = world.mount(&["--part-size", "5MiB", "--metadata-ttl", "4s"]);
    write_and_rename(&mount.path(".f.AbCd12"), &mount.path("f"));
    std::thread::sleep(std::time::Duration::from_millis(4500));
    world.proxy.take_counts();
    let listed = std::fs::read_dir(mount.dir()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    assert_eq!(listed.collect::<Vec<_>>(), [2 * PART]);
    // The kernel keeps no extended attributes: this asks the mount.
    let mut value = [0u8; 16];
    let none = rustix::fs::getxattr(mount.path("f"), "user.none", &mut value);
    assert_eq!(none, Err(rustix::io::Errno::NODATA));
    let counts = world.proxy.counts();
    assert!(counts.requests(Call::ListObjects) > 0);
    assert_eq!(counts.requests(Call::HeadObject), 0, "{}", counts.log_text());
}

/// Over a line that takes longer than `--metadata-ttl` for an answer, a look at a remembered file still costs listings only.
#[test]
fn listings_that_come_later_than_their_time_to_live_answer_the_looks_they_were_fetched_for() {
    let world = World::new();
    let mut mount = world.mount(&["--metadata-ttl", "100ms"]);
    std::fs::create_dir(mount.path("d")).unwrap();
    for name in ["a", "b"] {
        std::fs::write(mount.path("d").join(name), name).unwrap();
    }
    // The first listing that shows what was published settles what is remembered of it.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(std::fs::read_dir(mount.path("d")).unwrap().count(), 2);
    unmount(&mut mount);
    mount.remount().unwrap();
    world.proxy.take_counts();
    world.proxy.set_latency(std::time::Duration::from_millis(300));
    for name in ["a", "b"] {
        assert_eq!(std::fs::metadata(mount.path("d").join(name)).unwrap().len(), 1);
    }
    world.proxy.set_latency(std::time::Duration::ZERO);
    let counts = world.proxy.counts();
    assert!(counts.requests(Call::ListObjects) > 0, "{}", counts.log_text());
    assert_eq!(counts.requests_all(), counts.requests(Call::ListObjects), "{}", counts.log_text());
}

/// Files that are remembered and were looked up a while ago are confirmed by a page of their listing, all together, and not
/// one by one; also where their extended attributes are asked for.
#[test]
fn looks_at_open_files_that_are_remembered_cost_listings_only() {
    use std::os::fd::AsRawFd as _;

    let world = World::new();
    let mount = world.mount(&["--metadata-ttl", "2s"]);
    let names: Vec<_> = (0..20).map(|i| mount.path(&format!("f{i}"))).collect();
    for name in &names {
        std::fs::write(name, b"x").unwrap();
    }
    let flags = rustix::fs::OFlags::PATH;
    let open = |name| rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    let open: Vec<_> = names.iter().map(open).collect();
    let size = |file: &std::os::fd::OwnedFd| assert_eq!(rustix::fs::fstat(file).unwrap().st_size, 1);
    let xattrs = |file: &std::os::fd::OwnedFd| {
        // The name is not looked up on this way.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // First: the kernel asks for the attributes before it asks for the value of one.
        assert_eq!(rustix::fs::listxattr(path.as_str(), &mut [0; 8]).unwrap(), 0);
        let value = rustix::fs::getxattr(path.as_str(), "user.none", &mut [0; 8]);
        assert_eq!(value.unwrap_err(), rustix::io::Errno::NODATA);
    };
    for look in [&size as &dyn Fn(&_), &xattrs] {
        std::thread::sleep(std::time::Duration::from_millis(2500));
        world.proxy.take_counts();
        open.iter().for_each(look);
        let counts = world.proxy.counts();
        assert!(counts.requests(Call::ListObjects) > 0, "{}", counts.log_text());
        assert_eq!(counts.requests_all(), counts.requests(Call::ListObjects), "{}", counts.log_text());
    }
}

fn write_and_rename(temporary: &std::path::Path, name: &std::path::Path) {
    let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(temporary).unwrap();
    std::io::Write::write_all(&mut file, &random_bytes(3, 2 * PART as usize)).unwrap();
    drop(file);
    std::fs::rename(temporary, name).unwrap();
}
