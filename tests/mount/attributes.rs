//! Attributes of finished objects, and what they cost.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, SystemTime};

use crate::support::call::Call;
use crate::support::world::World;
use crate::{SMALL_PARTS, mount_afresh, shell, unmount};

fn set(path: &std::path::Path, name: &str, value: &[u8]) -> std::io::Result<()> {
    Ok(rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty())?)
}

fn get(path: &std::path::Path, name: &str) -> std::io::Result<Vec<u8>> {
    let mut value = vec![0; 256];
    let len = rustix::fs::getxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// Mode, owner, time and extended attributes of a finished object are shown at once, cost one copy within BOS together,
/// and are there for other machines.
#[test]
fn several_changes_of_a_finished_object_cost_one_copy_and_survive_everything() {
    let world = World::new();
    world.bucket.put("d/f", b"bytes").unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    let path = mount.path("d/f");
    let before = std::fs::metadata(&path).unwrap();
    world.proxy.take_counts();
    let at = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
    set(&path, "user.colour", b"blue").unwrap();
    let check = |path: &std::path::Path| {
        let meta = std::fs::metadata(path).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 12, 34));
        assert_eq!(meta.modified().unwrap(), at);
        assert_eq!(get(path, "user.colour").unwrap(), b"blue");
        assert_eq!(std::fs::read(path).unwrap(), b"bytes");
        meta
    };
    let after = check(&path);
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()), "ctime moves");
    unmount(&mut mount);
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::CopyObject), 1, "{}", counts.log_text());
    assert_eq!(counts.requests(Call::PutObject), 0, "{}", counts.log_text());
    let mount = mount_afresh(&world);
    check(&mount.path("d/f"));
}

/// `Content-Disposition`, metadata and the other headers that another program stored with an object go back byte for byte
/// when the mount changes its mode, appends to it or renames it, also where they are raw UTF-8.
#[test]
fn headers_of_other_programs_are_carried_byte_for_byte() {
    let world = World::new();
    let disposition = "attachment; filename=\"目录 é%20.txt\"";
    let stored = [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-disposition", disposition),
        ("cache-control", "no-cache, x=é"),
        ("x-bce-meta-title", "目录 100%"),
        ("x-bce-meta-encoded", "%E7%9B%AE"),
    ];
    let body = crate::support::files::random_bytes(9, 3 * crate::PART as usize);
    world.bucket.ask("PUT", "small", &[], &stored, b"bytes").unwrap();
    world.bucket.ask("PUT", "large", &[], &stored, &body).unwrap();
    // The helper reads the bytes of headers one by one.
    let bytes = |text: &str| text.bytes().map(char::from).collect::<String>();
    let check = |key: &str, when: &str| {
        let reply = world.bucket.head_reply(key).unwrap().unwrap();
        for (name, value) in stored {
            assert_eq!(reply.header(name), Some(bytes(value).as_str()), "{name} of {key} after {when}");
        }
    };
    check("small", "the PUT");
    let mut mount = world.mount(&SMALL_PARTS);
    let dir = mount.dir().display().to_string();
    shell(&format!("chmod 600 {dir}/small {dir}/large"));
    unmount(&mut mount);
    check("small", "chmod");
    check("large", "chmod");
    let mut mount = world.mount(&SMALL_PARTS);
    shell(&format!("echo more >> {dir}/small && echo more >> {dir}/large"));
    unmount(&mut mount);
    check("small", "an append");
    check("large", "an append");
    let mut mount = world.mount(&SMALL_PARTS);
    shell(&format!("chmod 640 {dir}/small && mv {dir}/small {dir}/moved && cp {dir}/moved {dir}/copied"));
    unmount(&mut mount);
    check("moved", "a rename with a new mode");
}

/// Setting an attribute to the value that it has costs nothing.
#[test]
fn values_that_are_there_already_cost_nothing() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    let dir = mount.dir().display().to_string();
    shell(&format!("echo x > {dir}/f && chmod 600 {dir}/f && touch -d 2020-01-01 {dir}/f && chown 1:2 {dir}/f"));
    unmount(&mut mount);
    let mut mount = world.mount(&SMALL_PARTS);
    world.proxy.take_counts();
    shell(&format!("chmod 600 {dir}/f && touch -d 2020-01-01 {dir}/f && chown 1:2 {dir}/f"));
    unmount(&mut mount);
    let counts = world.proxy.counts();
    assert_eq!(counts.requests(Call::CopyObject) + counts.requests(Call::PutObject), 0, "{}", counts.log_text());
}

/// Attributes of an object that were set right before a kill are shown and sent by the next mount.
#[test]
fn attributes_that_were_set_survive_a_kill_before_they_are_sent() {
    let world = World::new();
    world.bucket.put("f", b"x").unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    std::fs::set_permissions(mount.path("f"), std::fs::Permissions::from_mode(0o751)).unwrap();
    mount.kill();
    assert_eq!(
        world.proxy.counts().requests(Call::CopyObject),
        0,
        "killed within the moment in which changes are gathered"
    );
    let mut mount = world.mount(&SMALL_PARTS);
    assert_eq!(std::fs::metadata(mount.path("f")).unwrap().mode() & 0o7777, 0o751);
    unmount(&mut mount);
    let mount = mount_afresh(&world);
    assert_eq!(std::fs::metadata(mount.path("f")).unwrap().mode() & 0o7777, 0o751);
}

/// Attributes that are set and set back cost nothing, and leave nothing in the state directory.
#[test]
fn attributes_that_are_set_back_leave_nothing_behind() {
    let world = World::new();
    world.bucket.put("f", b"bytes").unwrap();
    let mount = world.mount(&[]);
    let path = mount.path("f");
    let before = std::fs::metadata(&path).unwrap();
    set(&path, "user.colour", b"blue").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o751)).unwrap();
    assert_eq!(world.journals().len(), 1);
    rustix::fs::removexattr(&path, "user.colour").unwrap();
    std::fs::set_permissions(&path, before.permissions()).unwrap();
    assert!(world.journals().is_empty(), "{:?}", world.journals());
    assert_eq!(std::fs::metadata(&path).unwrap().mode(), before.mode());
    assert_eq!(world.proxy.counts().requests(Call::CopyObject), 0);
}

/// A mode that is set right behind a close is shown at once, also while the kernel still releases the handle.
#[test]
fn a_mode_set_right_behind_a_close_is_shown_at_once() {
    let world = World::new();
    let mount = world.mount(&["--metadata-ttl", "60s"]);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    let wrong: Vec<_> = std::thread::scope(|scope| {
        let work = |n| {
            let mount = &mount;
            scope.spawn(move || {
                let paths = (0..250).map(|i| mount.path(&format!("{n}-{i}")));
                let wrong = paths.filter(|path| {
                    std::fs::write(path, b"bytes").unwrap();
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o751)).unwrap();
                    mode(path) != 0o751
                });
                wrong.collect::<Vec<_>>()
            })
        };
        let working: Vec<_> = (0..4).map(work).collect();
        working.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(wrong, [] as [std::path::PathBuf; 0]);
}

#[test]
fn attributes_set_on_an_object_that_somebody_replaced_are_dropped() {
    let world = World::new();
    world.bucket.put("f", b"old").unwrap();
    let mut mount = world.mount(&SMALL_PARTS);
    std::fs::set_permissions(mount.path("f"), std::fs::Permissions::from_mode(0o700)).unwrap();
    world.bucket.put("f", b"newer").unwrap();
    unmount(&mut mount);
    assert_eq!(world.bucket.get("f").unwrap(), b"newer");
    let mount = mount_afresh(&world);
    assert_eq!(std::fs::metadata(mount.path("f")).unwrap().mode() & 0o7777, 0o644);
}

/// Extended attributes of a file that is being written cost no copy; more than the metadata may hold gives ENOSPC, and
/// `security.` attributes EOPNOTSUPP.
#[test]
fn extended_attributes_ride_on_the_file_that_is_written() {
    let world = World::new();
    let mut mount = world.mount(&SMALL_PARTS);
    let path = mount.path("f");
    let file = std::fs::File::create(&path).unwrap();
    set(&path, "user.a", b"1").unwrap();
    set(&path, "user.b", b"2").unwrap();
    rustix::fs::removexattr(&path, "user.a").unwrap();
    std::io::Write::write_all(&mut &file, b"content").unwrap();
    drop(file);
    assert_eq!(world.proxy.counts().requests(Call::CopyObject), 0);
    assert_eq!(set(&path, "user.big", &[7; 1600]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(set(&path, "security.x", b"1").unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    unmount(&mut mount);
    let mount = mount_afresh(&world);
    let path = mount.path("f");
    assert_eq!(get(&path, "user.b").unwrap(), b"2");
    assert_eq!(get(&path, "user.a").unwrap_err().raw_os_error(), Some(libc::ENODATA));
    let mut names = [0; 100];
    let len = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
    assert_eq!(&names[..len], b"user.b\0");
}
