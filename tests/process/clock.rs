//! A clock that jumps while bosfs runs, and between two mounts: libfaketime around the binary, the server keeps true time.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::mounted::cp;
use crate::support::{Call, HoldAt, MountSpec, Mounted, When, World};
use crate::{ARGS, KEY, SIZE, WAIT, assert_nothing_twice, wait_until};

const HOUR: i64 = 3600;
const JUMPS: [i64; 4] = [HOUR, -HOUR, 24 * HOUR, -24 * HOUR];

fn libfaketime() -> PathBuf {
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    let places = [format!("/usr/lib/{triplet}/faketime"), "/usr/lib64/faketime".into(), "/usr/lib/faketime".into()];
    let libraries = places.iter().map(|place| Path::new(place).join("libfaketimeMT.so.1"));
    libraries.into_iter().find(|path| path.exists()).expect("libfaketime (Debian: apt install faketime)")
}

/// Mounts whose clock is what `set_clock` says.
fn spec(world: &World, args: &[&str]) -> MountSpec {
    let mut spec = world.spec(args);
    let clock = world.path("clock").display().to_string();
    for (name, value) in [
        ("LD_PRELOAD", libfaketime().display().to_string().as_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock.as_str()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ] {
        spec.env.push((name.into(), value.into()));
    }
    spec
}

/// The clock of the mounts is so many seconds ahead.
fn set_clock(world: &World, ahead_s: i64) {
    // Put in place whole: it is read at every look at the clock.
    let aside = world.path("clock.new");
    std::fs::write(&aside, format!("{ahead_s:+}\n")).unwrap();
    std::fs::rename(aside, world.path("clock")).unwrap();
}

fn mount(world: &World, args: &[&str]) -> Mounted {
    spec(world, args).mount().unwrap_or_else(|e| panic!("{e}"))
}

fn now_s() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Requests that were refused because of their date (400 RequestExpired, 403 RequestTimeTooSkewed).
fn refused_dates(world: &World) -> usize {
    world.proxy.counts().log.iter().filter(|l| matches!(l.status, Some(400 | 403))).count()
}

fn mtime_s(path: &Path) -> i64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).unwrap().mtime()
}

fn set_mtime(path: &Path, s: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(s)).unwrap();
}

/// A clock that jumps by an hour or a day, forward or back, while files are on their way costs no part, no time that
/// was set, and no view of what others write.
#[test]
fn a_clock_that_jumps_while_files_are_on_their_way_harms_none() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    set_clock(&world, 0);
    let mount = mount(&world, &ARGS);
    std::fs::write(mount.path("old"), b"old").unwrap();
    set_mtime(&mount.path("old"), 1_234_567_890);
    for (n, jump) in JUMPS.into_iter().enumerate() {
        let key = format!("file{n}");
        let refused = refused_dates(&world);
        let held = world.proxy.hold(When::call(Call::UploadPart).key(&key).skip(1), HoldAt::BeforeForward);
        let (from, to) = (source.clone(), mount.path(&key));
        let copying = std::thread::spawn(move || cp(from, to, WAIT));
        assert!(held.wait_hits(2, WAIT), "{}", mount.log_text());
        // A temporary as rsync makes them is closed before the jump and renamed behind it.
        let temporary = mount.path(&format!(".kept{n}.AbC12{n}"));
        std::fs::write(&temporary, b"by rename").unwrap();
        set_clock(&world, jump);
        // It takes effect: what is created now has this time in BOS, unless told otherwise.
        std::fs::write(mount.path(&format!("new{n}")), b"new").unwrap();
        let shown: i64 = crate::meta(&world, &format!("new{n}"), "bosfs-mtime").expect("mtime").parse().unwrap();
        assert!((shown - now_s() - jump).abs() < 600, "the clock is not {jump} s ahead: {shown}");
        assert!(refused_dates(&world) > refused, "no date was refused\n{}", world.proxy.counts().log_text());
        std::fs::rename(&temporary, mount.path(&format!("kept{n}"))).unwrap();
        assert_eq!(world.bucket.get(&format!("kept{n}")).unwrap(), b"by rename");
        held.release();
        let output = copying.join().unwrap();
        assert!(output.status.success(), "{jump}: {output:?}\n{}", mount.log_text());
        world.assert_object_is_file(&key, &source);
        let counts = world.proxy.counts();
        assert_eq!(counts.parts_accepted_twice(&key), [] as [u32; 0], "{}", counts.log_text());
        // An explicit time stays, an old one too.
        set_mtime(&mount.path(&format!("new{n}")), 987_654_321);
        wait_until("the time is in BOS", || {
            crate::meta(&world, &format!("new{n}"), "bosfs-mtime").as_deref() == Some("987654321")
        });
        assert_eq!(mtime_s(&mount.path(&format!("new{n}"))), 987_654_321);
        assert_eq!(mtime_s(&mount.path("old")), 1_234_567_890);
        // What somebody else writes is seen after the time to live, however the clock stands.
        let other = format!("other{n}");
        world.bucket.put(&other, b"one").unwrap();
        wait_until("a foreign object is seen", || std::fs::read(mount.path(&other)).is_ok_and(|read| read == b"one"));
        world.bucket.put(&other, b"another").unwrap();
        wait_until("a foreign change is seen", || {
            std::fs::read(mount.path(&other)).is_ok_and(|read| read == b"another")
        });
    }
    assert!(!mount.log_text().contains("panicked"), "{}", mount.log_text());
}

/// A clock that jumped between two mounts costs neither the interrupted file, nor its parts, nor the remembered
/// attributes.
#[test]
fn a_clock_that_jumped_between_two_mounts_harms_nothing() {
    let world = World::new();
    let source = world.random_file("source", 1, SIZE);
    for n in 0..20 {
        world.bucket.put(&format!("tree/f{n:02}"), b"content").unwrap();
    }
    set_clock(&world, 0);
    let mut mount = mount(&world, &ARGS);
    let look = |mount: &Mounted| {
        let line = format!("ls -l '{}' | wc -l", mount.path("tree").display());
        let output = crate::support::mounted::sh(&line, WAIT);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "21", "{output:?}");
    };
    look(&mount);
    // What was seen is on disk after an unmount; after a kill perhaps not.
    let unmounted = mount.umount(WAIT);
    assert!(unmounted.status.success(), "{unmounted:?}");
    mount = self::mount(&world, &ARGS);
    let writer = crate::writing(&world, &mount, &source, 2);
    mount.kill();
    drop(writer);
    world.wait_quiet();
    for jump in JUMPS {
        set_clock(&world, jump);
        let refused = refused_dates(&world);
        world.proxy.take_counts();
        let mut mount = self::mount(&world, &ARGS);
        crate::wait_for_state(&mount, KEY, "interrupted");
        let counts = world.proxy.counts();
        let refused_now = refused_dates(&world);
        assert!(refused_now > 0, "{jump}: no date was refused ({refused} before)\n{}", counts.log_text());
        look(&mount);
        let heads = world
            .proxy
            .counts()
            .log
            .iter()
            .filter(|l| l.asked.call == Call::HeadObject && l.asked.key.starts_with("tree/f"))
            .count();
        assert_eq!(heads, 0, "{jump}: attributes are asked for again\n{}", world.proxy.counts().log_text());
        mount.kill();
        world.wait_quiet();
    }
    world.proxy.take_counts();
    let mount = self::mount(&world, &ARGS);
    assert!(cp(&source, mount.path(KEY), WAIT).status.success(), "{}", mount.log_text());
    world.assert_object_is_file(KEY, &source);
    let counts = world.proxy.counts();
    for part in 1..=2 {
        assert_eq!(counts.part(KEY, part).tries, 0, "part {part} again\n{}", counts.log_text());
    }
    assert_nothing_twice(&world);
}
