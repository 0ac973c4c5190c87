//! Directories get other names: all below them goes along, at the price of one copy per object.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::support::{Call, HoldAt, When, World};
use crate::{WAIT, shell, timed};

/// Puts `count` small objects below `prefix`, past the mount: nested, some directories with markers.
fn fill(world: &World, prefix: &str, count: usize) {
    for i in 0..count {
        match i % 20 {
            0 => world.bucket.put(&format!("{prefix}{}/marked {i}/", i % 7), b"").unwrap(),
            _ => {
                let key = format!("{prefix}{}/deep/{}/文件 {i}", i % 7, i % 3);
                world.bucket.put(&key, key.as_bytes()).unwrap()
            }
        };
    }
}

/// Keys below `prefix`, without it, with size and ETag.
fn tree(world: &World, prefix: &str) -> BTreeMap<String, (u64, String)> {
    let seen = |key: &String| world.bucket.head(key).unwrap().map(|seen| (seen.size, seen.etag));
    let keys = world.bucket.list(prefix).unwrap();
    keys.iter().map(|key| (key[prefix.len()..].to_owned(), seen(key).unwrap())).collect()
}

#[test]
fn a_directory_of_a_thousand_objects_gets_another_name() {
    let world = World::new();
    fill(&world, "old/", 1000);
    let before = tree(&world, "old/");
    let mount = world.mount(&[]);
    let (old, new) = (mount.path("old"), mount.path("new"));
    let listed = shell(&format!("cd '{}' && find . | sort", old.display()));
    world.proxy.take_counts();
    let since = Instant::now();
    fs::rename(&old, &new).unwrap();
    let took = since.elapsed();
    let counts = world.proxy.counts();
    println!(
        "mv of a directory of 1000 objects: {} copies, {} batch deletes, {} single deletes, {} lists, {} HEADs, {took:?}",
        counts.requests(Call::CopyObject),
        counts.requests(Call::BatchDelete),
        counts.requests(Call::DeleteObject),
        counts.requests(Call::ListObjects),
        counts.requests(Call::HeadObject),
    );
    // The directory itself had no marker; it has one now.
    assert_eq!(counts.requests(Call::CopyObject), 1000);
    assert_eq!((counts.requests(Call::BatchDelete), counts.requests(Call::DeleteObject)), (1, 0));
    assert!(counts.requests(Call::ListObjects) <= 8, "{}", counts.log_text());
    assert!(!old.exists());
    assert_eq!(shell(&format!("cd '{}' && find . | sort", new.display())), listed);
    let mut after = tree(&world, "new/");
    assert!(after.remove("").is_some(), "the marker of the directory itself");
    assert_eq!(after, before);
    assert!(world.bucket.list("old/").unwrap().is_empty());
}

#[test]
fn attributes_links_and_empty_directories_go_along() {
    let world = World::new();
    let mount = world.mount(&[]);
    let old = mount.path("old");
    fs::create_dir_all(old.join("empty")).unwrap();
    fs::create_dir(old.join("sub")).unwrap();
    fs::write(old.join("sub/tool"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(old.join("sub/tool"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o710)).unwrap();
    symlink("tool", old.join("sub/link")).unwrap();
    let ino = fs::metadata(old.join("sub/tool")).unwrap().ino();
    fs::rename(&old, mount.path("new")).unwrap();
    let mut mount = mount;
    for remounted in [false, true] {
        let new = mount.path("new");
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o7777, 0o710, "remounted: {remounted}");
        assert_eq!(fs::metadata(new.join("sub/tool")).unwrap().mode() & 0o7777, 0o751);
        assert_eq!(fs::read_link(new.join("sub/link")).unwrap(), Path::new("tool"));
        assert_eq!(fs::read(new.join("sub/link")).unwrap(), b"#!/bin/sh\n");
        assert!(fs::read_dir(new.join("empty")).unwrap().next().is_none());
        assert!(!mount.path("old").exists());
        if !remounted {
            assert_eq!(fs::metadata(new.join("sub/tool")).unwrap().ino(), ino, "the inode follows");
            mount.remount().unwrap();
        }
    }
}

fn errno(result: std::io::Result<()>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// A rename of a folder over a full one gives ENOTEMPTY, over a file ENOTDIR, into itself EINVAL, of a file over a
/// folder EISDIR, with `RENAME_NOREPLACE` over anything EEXIST.
#[test]
fn what_is_in_the_way_is_told_as_elsewhere() {
    let world = World::new();
    let mount = world.mount(&[]);
    let path = |name: &str| mount.path(name);
    for dir in ["d/e", "full/x", "empty"] {
        fs::create_dir_all(path(dir)).unwrap();
    }
    fs::write(path("d/e/f"), b"content").unwrap();
    fs::write(path("file"), b"file").unwrap();
    assert_eq!(errno(fs::rename(path("d"), path("full"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(path("d"), path("file"))), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(path("d"), path("d/e/f2"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(path("d/e"), path("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(path("file"), path("empty"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(path("absent"), path("new"))), libc::ENOENT);
    let no_replace = renameat_with(CWD, path("d"), CWD, path("empty"), RenameFlags::NOREPLACE);
    assert_eq!(no_replace.unwrap_err().raw_os_error(), libc::EEXIST);
    assert_eq!(fs::read(path("d/e/f")).unwrap(), b"content");

    fs::rename(path("d"), path("empty")).unwrap();
    assert_eq!(fs::read(path("empty/e/f")).unwrap(), b"content");
    renameat_with(CWD, path("empty"), CWD, path("d"), RenameFlags::NOREPLACE).unwrap();
    assert_eq!(fs::read(path("d/e/f")).unwrap(), b"content");
    assert!(!path("empty").exists());
    // And back and forth: nothing of the earlier names is believed.
    for _ in 0..3 {
        fs::rename(path("d"), path("D")).unwrap();
        assert!(!path("d/e/f").exists());
        fs::rename(path("D"), path("d")).unwrap();
        assert_eq!(fs::read(path("d/e/f")).unwrap(), b"content");
    }
}

#[test]
fn open_files_go_along() {
    let world = World::new();
    let mount = world.mount(&[]);
    fs::create_dir_all(mount.path("old/sub")).unwrap();
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    for name in ["read", "gone"] {
        fs::write(mount.path("old/sub").join(name), &bytes).unwrap();
    }
    let mut reader = File::open(mount.path("old/sub/read")).unwrap();
    let mut orphan = File::open(mount.path("old/sub/gone")).unwrap();
    fs::remove_file(mount.path("old/sub/gone")).unwrap();
    let mut head = [0; 100];
    reader.read_exact(&mut head).unwrap();
    fs::rename(mount.path("old"), mount.path("new")).unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest == bytes[100..]);
    let mut all = Vec::new();
    orphan.read_to_end(&mut all).unwrap();
    assert!(all == bytes, "an unlinked file is read as before");
    assert!(!mount.path("new/sub/gone").exists());
    drop(orphan);
    fs::write(mount.path("new/sub/written"), b"later").unwrap();
    assert_eq!(world.bucket.get("new/sub/written").unwrap(), b"later");
    let end = Instant::now() + WAIT;
    while world.bucket.list("").unwrap() != ["new/", "new/sub/", "new/sub/read", "new/sub/written"] {
        assert!(Instant::now() < end, "{:?}", world.bucket.list("").unwrap());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A rename of a folder takes files that are being written along, open handles included.
#[test]
fn files_that_are_being_written_go_along() {
    let world = World::new();
    let mount = world.mount(&[]);
    fs::create_dir(mount.path("old")).unwrap();
    fs::write(mount.path("old/done"), b"done").unwrap();
    fs::write(mount.path("old/log"), b"first line\n").unwrap();
    let mut new = File::create(mount.path("old/open")).unwrap();
    new.write_all(b"first half, ").unwrap();
    let mut log = File::options().append(true).open(mount.path("old/log")).unwrap();
    log.write_all(b"second line\n").unwrap();
    let idle = File::options().write(true).open(mount.path("old/done")).unwrap();
    fs::rename(mount.path("old"), mount.path("new")).unwrap();
    new.write_all(b"second half").unwrap();
    log.write_all(b"third line\n").unwrap();
    drop((new, log, idle));
    let files: [(&str, &[u8]); 3] =
        [("open", b"first half, second half"), ("log", b"first line\nsecond line\nthird line\n"), ("done", b"done")];
    for (name, content) in files {
        assert_eq!(fs::read(mount.path("new").join(name)).unwrap(), content, "{name}");
        assert_eq!(world.bucket.get(&format!("new/{name}")).unwrap(), content, "{name}");
    }
    assert!(!mount.path("old").exists());
    assert_eq!(world.bucket.list("").unwrap(), ["new/", "new/done", "new/log", "new/open"]);
}

#[test]
fn gathered_attributes_and_emptied_directories_go_along() {
    let world = World::new();
    world.bucket.put("old/implicit/f", b"f").unwrap();
    let mut mount = world.mount(&[]);
    fs::create_dir(mount.path("old/sub")).unwrap();
    fs::write(mount.path("old/sub/f"), b"content").unwrap();
    fs::remove_file(mount.path("old/implicit/f")).unwrap();
    fs::set_permissions(mount.path("old/sub/f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(mount.path("old/sub"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(mount.path("old"), mount.path("new")).unwrap();
    assert!(mount.path("new/implicit").is_dir());
    fs::create_dir(mount.path("old")).unwrap();
    assert_eq!(fs::read_dir(mount.path("old")).unwrap().count(), 0, "nothing of the earlier one");
    fs::remove_dir(mount.path("old")).unwrap();
    assert!(mount.umount(WAIT).status.success());
    let mount = world.mount(&[]);
    assert_eq!(fs::metadata(mount.path("new/sub/f")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(mount.path("new/sub")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(world.bucket.list("").unwrap(), ["new/", "new/sub/", "new/sub/f"]);
}

#[test]
fn unpublished_files_are_published_before_they_are_copied() {
    let world = World::new();
    let mount = world.mount(&["--write-back"]);
    fs::create_dir(mount.path("old")).unwrap();
    let hold = world.proxy.hold(When::call(Call::PutObject).key("old/f"), HoldAt::BeforeForward);
    fs::write(mount.path("old/f"), b"content").unwrap();
    assert!(hold.wait_hit(WAIT));
    let (old, new) = (mount.path("old"), mount.path("new"));
    let renaming = std::thread::spawn(move || fs::rename(old, new));
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!renaming.is_finished());
    hold.release();
    timed(move || renaming.join().unwrap()).unwrap();
    assert_eq!(fs::read(mount.path("new/f")).unwrap(), b"content");
    assert_eq!(world.bucket.list("").unwrap(), ["new/", "new/f"]);
}

#[test]
fn acts_below_wait_and_other_trees_do_not() {
    let world = World::new();
    // In directories of their own: the kernel lets one rename at a time into a directory.
    for tree in ["p/a", "q/b"] {
        fill(&world, &format!("{tree}/"), 30);
    }
    let mount = world.mount(&[]);
    let listed = |name: &str| fs::read_dir(mount.path(name)).unwrap().count();
    assert_eq!((listed("p/a"), listed("q/b")), (7, 7));
    let hold = world.proxy.hold(When::call(Call::CopyObject).key_contains("p/A/").once(), HoldAt::BeforeForward);
    let (from, to) = (mount.path("p/a"), mount.path("p/A"));
    let renaming = std::thread::spawn(move || fs::rename(from, to));
    assert!(hold.wait_hit(WAIT));
    // Another tree, while this one is stuck.
    fs::write(mount.path("q/b/new"), b"at once").unwrap();
    fs::rename(mount.path("q/b"), mount.path("q/B")).unwrap();
    assert_eq!(fs::read(mount.path("q/B/new")).unwrap(), b"at once");
    let inside = mount.path("p/a/1/late");
    let creating = std::thread::spawn(move || fs::write(inside, b"late"));
    std::thread::sleep(std::time::Duration::from_millis(300));
    hold.release();
    timed(move || renaming.join().unwrap()).unwrap();
    let created = timed(move || creating.join().unwrap());
    println!("create below a directory under rename: {created:?}");
    let found = fs::read(mount.path("p/A/1/late"));
    assert_eq!(found.is_ok(), created.is_ok());
    assert!(!mount.path("p/a").exists());
    assert!(world.bucket.list("p/a/").unwrap().is_empty());
    let late = usize::from(created.is_ok());
    assert_eq!(world.bucket.list("p/A/").unwrap().len(), 31 + late);
}

#[test]
fn a_refused_copy_leaves_the_old_names() {
    let world = World::new();
    fill(&world, "old/", 40);
    let before = tree(&world, "old/");
    let mount = world.mount(&[]);
    let denied = crate::support::Action::error(403, "AccessDenied");
    world.proxy.fault(When::call(Call::CopyObject).skip(20), denied);
    let refused = fs::rename(mount.path("old"), mount.path("new")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    world.proxy.clear_rules();
    assert_eq!(tree(&world, "old/"), before);
    assert!(world.bucket.list("new/").unwrap().is_empty());
    assert!(!mount.path("new").exists());
    fs::rename(mount.path("old"), mount.path("new")).unwrap();
    assert_eq!(shell(&format!("find '{}' -type f | wc -l", mount.path("new").display())).trim(), "38");
}

/// A rename of a folder over an empty one that BOS refuses leaves the empty one as it was.
#[test]
fn a_refused_directory_rename_leaves_the_empty_one_in_its_way() {
    let world = World::new();
    world.bucket.put("implicit/f", b"f").unwrap();
    let foreign = b"a marker with content, as other tools write them";
    world.bucket.put("foreign/", foreign).unwrap();
    world.bucket.put("unmarked/f", b"f").unwrap();
    let mut mount = world.mount(&["--metadata-ttl", "0"]);
    let path = |name: &str| mount.path(name);
    fs::remove_file(path("implicit/f")).unwrap();
    fs::create_dir(path("marked")).unwrap();
    fs::create_dir(path("old")).unwrap();
    fs::write(path("old/f"), b"f").unwrap();
    world.proxy.fault(When::call(Call::CopyObject), crate::support::Action::error(403, "AccessDenied"));
    for (count, old) in (1..).zip(["old", "unmarked"]) {
        // Just set, and not in BOS yet.
        fs::set_permissions(path("marked"), fs::Permissions::from_mode(0o711)).unwrap();
        let seconds = std::time::Duration::from_secs(1_100_000_000 + count);
        File::open(path("marked")).unwrap().set_modified(std::time::UNIX_EPOCH + seconds).unwrap();
        for name in ["marked", "foreign", "implicit"] {
            let seen = || {
                let meta = fs::metadata(path(name)).unwrap_or_else(|e| panic!("{old} to {name}: {e}"));
                (meta.ino(), meta.mode(), meta.mtime())
            };
            let before = seen();
            world.proxy.take_counts();
            assert_eq!(errno(fs::rename(path(old), path(name))), libc::EACCES, "{old} to {name}");
            assert!(world.proxy.counts().requests(Call::CopyObject) > 0);
            assert_eq!(seen(), before, "{old} to {name}");
            assert_eq!(fs::read_dir(path(name)).unwrap().count(), 0, "{old} to {name}");
            assert_eq!(fs::read(path(old).join("f")).unwrap(), b"f");
        }
        assert_eq!(world.bucket.list("").unwrap(), ["foreign/", "marked/", "old/", "old/f", "unmarked/f"]);
        assert_eq!(world.bucket.get("foreign/").unwrap(), foreign);
    }
    world.proxy.clear_rules();
    mount.remount().unwrap();
    let meta = fs::metadata(mount.path("marked")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o711, 1_100_000_002));
}

/// A folder that is renamed over an empty one keeps its own mode and time.
#[test]
fn a_directory_renamed_over_an_empty_one_keeps_its_attributes() {
    let world = World::new();
    let mut mount = world.mount(&["--metadata-ttl", "0"]);
    for name in ["old", "new"] {
        fs::create_dir(mount.path(name)).unwrap();
    }
    fs::set_permissions(mount.path("new"), fs::Permissions::from_mode(0o711)).unwrap();
    // In BOS, and known to the mount, within the same second.
    mount.remount().unwrap();
    assert_eq!(fs::metadata(mount.path("new")).unwrap().mode() & 0o7777, 0o711);
    fs::set_permissions(mount.path("old"), fs::Permissions::from_mode(0o750)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    File::open(mount.path("old")).unwrap().set_modified(time).unwrap();
    fs::rename(mount.path("old"), mount.path("new")).unwrap();
    for remounted in [false, true] {
        let meta = fs::metadata(mount.path("new")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o750, 1_000_000_000), "remounted: {remounted}");
        assert!(!mount.path("old").exists());
        assert_eq!(world.bucket.list("").unwrap(), ["new/"]);
        if !remounted {
            mount.remount().unwrap();
        }
    }
}

#[test]
fn large_objects_below_go_by_parts_and_open_handles_follow_their_new_etags() {
    let world = World::new();
    let mount = world.mount(&["--part-size", "5MiB"]);
    fs::create_dir(mount.path("old")).unwrap();
    let source = world.random_file("source", 3, 12 << 20);
    fs::copy(&source, mount.path("old/large")).unwrap();
    assert!(world.bucket.head("old/large").unwrap().unwrap().etag.starts_with('-'), "composed of parts");
    let mut reader = File::open(mount.path("old/large")).unwrap();
    let mut head = vec![0; 4096];
    reader.read_exact(&mut head).unwrap();
    fs::rename(mount.path("old"), mount.path("new")).unwrap();
    reader.seek(std::io::SeekFrom::Start(9 << 20)).unwrap();
    let mut tail = Vec::new();
    reader.read_to_end(&mut tail).unwrap();
    assert!(tail == fs::read(&source).unwrap()[9 << 20..]);
    world.assert_object_is_file("new/large", &source);
}

/// Two files change places by `RENAME_EXCHANGE`, with their modes and links; a folder cannot (EINVAL), and a name that
/// is absent gives ENOENT.
#[test]
fn two_files_change_places() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("a"), b"was a").unwrap();
    fs::set_permissions(mount.path("a"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("target", mount.path("d/b")).unwrap();
    let mut open = File::open(mount.path("a")).unwrap();
    let exchange = |mount: &crate::support::Mounted, a: &str, b: &str| {
        renameat_with(CWD, mount.path(a), CWD, mount.path(b), RenameFlags::EXCHANGE)
    };
    exchange(&mount, "a", "d/b").unwrap();
    for remounted in [false, true] {
        assert_eq!(fs::read_link(mount.path("a")).unwrap(), Path::new("target"), "remounted: {remounted}");
        assert_eq!(fs::read(mount.path("d/b")).unwrap(), b"was a");
        assert_eq!(fs::metadata(mount.path("d/b")).unwrap().mode() & 0o7777, 0o600);
        if !remounted {
            let mut bytes = Vec::new();
            open.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, b"was a");
            mount.remount().unwrap();
        }
    }
    assert_eq!(world.bucket.list("").unwrap(), ["a", "d/", "d/b"]);
    assert_eq!(exchange(&mount, "a", "absent").unwrap_err().raw_os_error(), libc::ENOENT);
    assert_eq!(exchange(&mount, "a", "d").unwrap_err().raw_os_error(), libc::EINVAL);
    assert_eq!(fs::read_link(mount.path("a")).unwrap(), Path::new("target"));
}
