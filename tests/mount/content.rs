//! Bytes: what is written is read, before and after close, and is what the bucket holds.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::support::files::{random_bytes, splitmix64};
use crate::support::mounted::cp;
use crate::support::{Call, World};
use crate::{PART, SMALL_PARTS, WAIT, shell, timed};

/// What a program has written is seen at once by every process of the mount, with the new size, before the file is
/// closed.
#[test]
fn own_writes_are_read_before_close_by_every_process() {
    let world = World::new();
    let mount = world.mount(&SMALL_PARTS);
    let path = mount.path("f");
    let bytes = random_bytes(1, PART as usize + 5000);
    let expected = bytes.clone();
    timed(move || {
        let mut file = OpenOptions::new().create(true).read(true).write(true).truncate(true).open(&path).unwrap();
        file.write_all(&bytes).unwrap();
        let mut own = vec![0; bytes.len()];
        file.read_exact_at(&mut own, 0).unwrap();
        assert!(own == bytes, "the writer itself reads other bytes");
        let other = crate::support::mounted::run(std::process::Command::new("cat").arg(&path), WAIT);
        assert!(other.stdout == bytes, "another process reads {} bytes", other.stdout.len());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes.len() as u64);
    });
    assert!(world.bucket.get("f").unwrap() == expected);
}

/// Holes, and what was cut off and grown again, read as zeros before the close and in the object.
#[test]
fn holes_and_truncations_read_as_zeros() {
    let world = World::new();
    let mount = world.mount(&SMALL_PARTS);
    let path = mount.path("holes");
    let size = 2 * PART + 123;
    timed(move || {
        let file = OpenOptions::new().create(true).read(true).write(true).truncate(true).open(&path).unwrap();
        file.write_all_at(b"front", 0).unwrap();
        file.write_all_at(b"back", size - 4).unwrap();
        file.write_all_at(&[7; 10_000], 4000).unwrap();
        file.set_len(6000).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(b"end!", size - 4).unwrap();
        let mut middle = vec![1; 3000];
        file.read_exact_at(&mut middle, 5000).unwrap();
        assert_eq!(middle[..1000], [7; 1000]);
        assert_eq!(middle[1000..], [0; 2000]);
    });
    let mut expected = vec![0; size as usize];
    expected[..5].copy_from_slice(b"front");
    expected[4000..6000].fill(7);
    expected[size as usize - 4..].copy_from_slice(b"end!");
    assert!(world.bucket.get("holes").unwrap() == expected);
}

/// With `O_APPEND` bytes go to the end wherever the program stands in the file, also at the end of an object that was
/// there before.
#[test]
fn append_mode_appends_whatever_the_offset() {
    let world = World::new();
    world.bucket.put("log", b"one\n").unwrap();
    let mount = world.mount(&[]);
    let path = mount.path("log");
    timed(move || {
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"two\n").unwrap();
    });
    assert_eq!(world.bucket.get("log").unwrap(), b"one\ntwo\n");
    shell(&format!("echo three >> {}/log", mount.dir().display()));
    assert_eq!(world.bucket.get("log").unwrap(), b"one\ntwo\nthree\n");
    assert_eq!(shell(&format!("cat {}/log", mount.dir().display())), "one\ntwo\nthree\n");
}

/// Opening with `O_TRUNC` and `truncate` replace the object: by the new content, by nothing, or by zeros up to the new
/// size.
#[test]
fn truncating_opens_and_overwrites_replace_the_object() {
    let world = World::new();
    world.bucket.put("f", b"a long old content").unwrap();
    let mount = world.mount(&[]);
    shell(&format!("echo new > {}/f", mount.dir().display()));
    assert_eq!(world.bucket.get("f").unwrap(), b"new\n");
    shell(&format!(": > {}/f", mount.dir().display()));
    mount.wait_settled("f", WAIT);
    assert_eq!(world.bucket.get("f").unwrap(), b"");
    shell(&format!("truncate -s 10 {}/f", mount.dir().display()));
    mount.wait_settled("f", WAIT);
    assert_eq!(world.bucket.get("f").unwrap(), [0; 10]);
}

#[test]
fn an_empty_file_is_an_empty_object() {
    let world = World::new();
    let mount = world.mount(&[]);
    shell(&format!("touch {}/empty", mount.dir().display()));
    world.wait_object("empty", 0, WAIT);
    assert_eq!(shell(&format!("stat -c %s {}/empty", mount.dir().display())).trim(), "0");
}

#[test]
fn sizes_around_the_part_size_arrive_whole() {
    let world = World::new();
    let mount = world.mount(&SMALL_PARTS);
    for (i, size) in [1, 4095, 4096, 4097, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1].into_iter().enumerate() {
        let source = world.random_file("source", i as u64, size);
        let key = format!("size-{size}");
        world.proxy.take_counts();
        assert!(cp(&source, mount.path(&key), WAIT).status.success());
        world.assert_object_is_file(&key, &source);
        let counts = world.proxy.counts();
        assert_eq!(counts.requests(Call::PutObject), u64::from(size <= PART), "{size}\n{}", counts.log_text());
        // Read back through a new mount's eyes: nothing of the writer is left in the page cache.
        assert!(std::fs::read(&source).unwrap() == read_direct(&mount.path(&key)), "read back {size}");
    }
}

/// Reads a file past the page cache where the mount allows, else plainly.
fn read_direct(path: &Path) -> Vec<u8> {
    let path = path.to_owned();
    timed(move || {
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
        let mut file = direct.or_else(|_| File::open(&path)).unwrap();
        let mut bytes = Vec::new();
        let mut buf = vec![0; 1 << 20];
        loop {
            match file.read(&mut buf) {
                Ok(0) => return bytes,
                Ok(n) => bytes.extend_from_slice(&buf[..n]),
                Err(_) => {
                    file = File::open(&path).unwrap();
                    bytes.clear();
                }
            }
        }
    })
}

/// Objects that others made are read whole and at random places, and a read behind the end gives nothing.
#[test]
fn foreign_objects_are_read_whole_and_in_pieces() {
    let world = World::new();
    let bytes = random_bytes(9, 9 << 20);
    world.bucket.put("dir/foreign", &bytes).unwrap();
    let mount = world.mount(&[]);
    let path = mount.path("dir/foreign");
    timed(move || {
        let file = File::open(&path).unwrap();
        for i in 0..50u64 {
            let at = splitmix64(i) % (bytes.len() as u64 - 5000);
            let mut piece = vec![0; 5000];
            file.read_exact_at(&mut piece, at).unwrap();
            assert!(piece == bytes[at as usize..][..5000], "at {at}");
        }
        let mut beyond = [0; 10];
        assert_eq!(file.read_at(&mut beyond, bytes.len() as u64).unwrap(), 0);
        assert!(std::fs::read(&path).unwrap() == bytes);
    });
}

/// Random writes, cuts, syncs and reads give what they give on a local file, and after each close the object has
/// exactly these bytes.
#[test]
fn random_operations_leave_what_they_leave_on_a_local_file() {
    for seed in 0..3u64 {
        let world = World::new();
        if seed > 0 {
            world.bucket.put("f", &random_bytes(seed + 100, (PART + PART / 2) as usize)).unwrap();
        }
        let mut model = if seed > 0 { random_bytes(seed + 100, (PART + PART / 2) as usize) } else { Vec::new() };
        let mount = world.mount(&SMALL_PARTS);
        for round in 0..4u64 {
            let path = mount.path("f");
            let mut now = model.clone();
            model = timed(move || {
                let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).unwrap();
                for step in 0..40u64 {
                    operate(&file, &mut now, splitmix64(seed << 32 | round << 16 | step));
                }
                now
            });
            let found = world.bucket.get("f").unwrap();
            assert_eq!(found.len(), model.len(), "seed {seed}, round {round}");
            let differs = found.iter().zip(&model).position(|(a, b)| a != b);
            assert_eq!(differs, None, "seed {seed}, round {round}: first differing byte");
        }
    }
}

/// One random operation on the mounted file and on the model.
fn operate(file: &File, model: &mut Vec<u8>, random: u64) {
    let size_max = 3 * PART;
    let at = splitmix64(random ^ 1) % size_max;
    let len = match random >> 8 & 3 {
        0 => splitmix64(random ^ 2) % 100,
        1 => splitmix64(random ^ 2) % 10_000,
        2 => 4096 * (splitmix64(random ^ 2) % 20),
        _ => splitmix64(random ^ 2) % (PART / 2),
    } as usize;
    match random % 10 {
        0..6 => {
            let bytes = random_bytes(random, len);
            file.write_all_at(&bytes, at).unwrap();
            if len > 0 {
                if model.len() < at as usize + len {
                    model.resize(at as usize + len, 0);
                }
                model[at as usize..][..len].copy_from_slice(&bytes);
            }
        }
        6 => {
            let size = if random & 1 << 20 == 0 { at } else { at / 4096 * 4096 };
            file.set_len(size).unwrap();
            model.resize(size as usize, 0);
        }
        7 => file.sync_all().unwrap(),
        _ => {
            let mut piece = vec![0; len];
            let mut read = 0;
            while read < len {
                match file.read_at(&mut piece[read..], at + read as u64).unwrap() {
                    0 => break,
                    n => read += n,
                }
            }
            let expected = &model[model.len().min(at as usize)..model.len().min(at as usize + len)];
            assert_eq!(read, expected.len(), "length of a read at {at}");
            assert!(piece[..read] == *expected, "a read at {at} gives other bytes");
        }
    }
}

/// A file larger than `--spool-limit` goes through: 120 MiB at a limit of 40 MiB, with never more than 60 MiB in the
/// state directory.
#[test]
fn a_file_larger_than_the_spool_limit_goes_through() {
    let world = World::new();
    let size = 24 * PART;
    let source = world.random_file("source", 6, size);
    let mount = world.mount(&["--part-size", "5MiB", "--spool-limit", "40MiB"]);
    let state = world.state_dir();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let looker = std::thread::spawn(move || {
        let mut most = 0;
        while stopped.try_recv().is_err() {
            most = most.max(crate::support::files::allocated_bytes(&state));
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        most
    });
    let output = cp(&source, mount.path("huge.iso"), WAIT);
    stop.send(()).unwrap();
    let most = looker.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    world.assert_object_is_file("huge.iso", &source);
    assert!(most <= 60 << 20, "the state directory took {most} bytes");
}

/// A program that runs is not emptied by who opens it with `O_TRUNC`, however it is opened: each gets ETXTBSY, and the
/// program goes on.
#[test]
fn a_running_program_is_not_emptied() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::ExitStatusExt as _;

    let world = World::new();
    let mount = world.mount(&[]);
    let path = mount.path("sleep");
    let program = std::fs::read("/bin/sleep").unwrap();
    for round in 0..20 {
        std::fs::write(&path, &program).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut running = std::process::Command::new(&path).arg("1000").spawn().unwrap();
        for access in [rustix::fs::OFlags::RDONLY, rustix::fs::OFlags::WRONLY, rustix::fs::OFlags::RDWR] {
            let opened = rustix::fs::open(&path, access | rustix::fs::OFlags::TRUNC, rustix::fs::Mode::empty());
            assert_eq!(opened.map(drop), Err(rustix::io::Errno::TXTBSY), "round {round}, {access:?}");
        }
        assert!(std::fs::read(&path).unwrap() == program, "round {round}");
        running.kill().unwrap();
        assert_eq!(running.wait().unwrap().signal(), Some(9), "round {round}: it died by itself");
    }
    // Nobody executes it any more, once the kernel has released it.
    let end = std::time::Instant::now() + crate::WAIT;
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC;
    while rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).is_err() {
        assert!(std::time::Instant::now() < end, "it is taken for running for ever");
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
}
