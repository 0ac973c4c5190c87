//! Too few descriptors: files beyond them are refused, those that were accepted go all the way, and nothing hangs.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit};

use crate::support::mounted::{cp, within};
use crate::support::{Mounted, World};
use crate::{ARGS, WAIT, bosfs_after};

/// Descriptors that bosfs may have.
const LIMIT: u64 = 128;
/// More files than it opens then; each one beyond is refused after a moment.
const FILES: usize = 14;
/// Written later, one after the other.
const LATER: usize = 60;

fn descriptors(mount: &Mounted) -> u64 {
    let pid = mount.pid().expect("it runs");
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64
}

/// Opens [`FILES`] files at once and writes to each; gives those that were taken, and the errors.
fn open_many(mount: &Mounted) -> (Vec<(String, File)>, Vec<i32>) {
    let threads: Vec<_> = (0..FILES)
        .map(|n| {
            let (name, path) = (format!("f{n:02}"), mount.path(&format!("f{n:02}")));
            std::thread::spawn(move || {
                let mut file = File::create(path)?;
                file.write_all(name.as_bytes())?;
                Ok::<_, std::io::Error>((name, file))
            })
        })
        .collect();
    let (mut taken, mut errors) = (Vec::new(), Vec::new());
    for thread in threads {
        match within(WAIT, "opening", move || thread.join().unwrap()) {
            Ok(open) => taken.push(open),
            Err(error) => errors.push(error.raw_os_error().unwrap_or(0)),
        }
    }
    (taken, errors)
}

/// More files than there are descriptors for, then all is as before.
fn check(world: &World, mount: &Mounted) {
    let (taken, errors) = open_many(mount);
    assert!(!errors.is_empty(), "all were opened\n{}", mount.log_text());
    assert!(!taken.is_empty(), "none was opened: {errors:?}\n{}", mount.log_text());
    for error in &errors {
        assert!(matches!(*error, libc::EMFILE | libc::ENFILE | libc::EIO), "{errors:?}\n{}", mount.log_text());
    }
    let names: Vec<String> = taken.iter().map(|(name, _)| name.clone()).collect();
    // Each needs a connection to get its object stored, and the others still have their files open.
    for (name, file) in taken {
        within(WAIT, "closing", move || file.sync_all().map(|()| drop(file)).unwrap());
        world.wait_object(&name, name.len() as u64, Duration::from_secs(60));
        assert_eq!(world.bucket.get(&name).unwrap(), name.as_bytes());
    }
    let source = world.random_file("source", 1, crate::SIZE);
    assert!(cp(&source, mount.path(crate::KEY), WAIT).status.success(), "{}", mount.log_text());
    world.assert_object_is_file(crate::KEY, &source);
    for n in 0..LATER {
        let name = format!("again{n}");
        let path = mount.path(&name);
        within(WAIT, "writing again", move || std::fs::write(path, b"again").unwrap());
        assert_eq!(world.bucket.get(&name).unwrap(), b"again");
    }
    // Of those that were refused, nothing is there, or an empty file that was created and not written.
    let listed = world.bucket.list("f").unwrap();
    for key in listed.iter().filter(|key| !names.contains(key)) {
        assert_eq!(world.bucket.get(key).unwrap(), b"", "{key}");
    }
}

/// When bosfs runs out of file descriptors while it runs, further files are refused with EMFILE, ENFILE or EIO, those
/// it took are published whole, and later ones are taken again.
#[test]
fn a_limit_that_is_lowered_while_bosfs_runs_refuses_files_and_loses_none() {
    let world = World::new();
    let mount = world.mount(&ARGS);
    assert!(descriptors(&mount) < LIMIT / 2);
    let pid = Pid::from_raw(mount.pid().unwrap() as i32).unwrap();
    let limit = Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) };
    rustix::process::prlimit(Some(pid), Resource::Nofile, limit).unwrap();
    check(&world, &mount);
}

#[test]
fn a_small_limit_from_the_start_refuses_files_and_loses_none() {
    let world = World::new();
    let mut spec = world.spec(&ARGS);
    spec.binary = bosfs_after(&world, "bosfs-few", &format!("ulimit -n {LIMIT}"));
    let mount = spec.mount().unwrap_or_else(|e| panic!("{e}"));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", mount.pid().unwrap())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(line.split_whitespace().any(|word| word == LIMIT.to_string()), "{line}");
    check(&world, &mount);
}
