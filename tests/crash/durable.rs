//! What POSIX makes durable of a file's bytes and attributes: fsync on whatever descriptor, `O_SYNC`, `O_DSYNC`. The power
//! fails right behind the call, and all that was not synced is lost.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, IoSlice};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};

use rustix::fs::FallocateFlags;
use rustix::io::ReadWriteFlags;

use crate::support::Call;
use crate::support::crash::WAIT;
use crate::support::crash::scene::Scene;
use crate::support::crash::steps::program;
use crate::support::disk::power::Loss;
use crate::support::fault::When;
use crate::support::files::random_bytes;
use crate::support::mounted::{wait_child, within};

/// Three pieces of whole pages: each write of one is one request of the kernel.
const PIECE: usize = 96 << 10;
const LEN: usize = 3 * PIECE;

/// Runs a program with one path of the mount.
fn on(words: &[&str], scene: &Scene, name: &str) {
    let path = scene.path(name).to_string_lossy().into_owned();
    let words: Vec<&str> = words.iter().copied().chain([path.as_str()]).collect();
    let told = program(&words);
    assert!(told.ok, "{words:?}: {told:?}\n{}", scene.place.log_tail());
}

/// After `sync FILE`, which opens the file for reading only, what other programs wrote into it survives power loss; where
/// nothing is new it costs no sync.
#[test]
fn sync_of_a_file_that_other_programs_write_survives_power_loss() {
    let base = random_bytes(7, LEN);
    let mut scene = Scene::prepared(&[], |place| drop(place.world.bucket.put("old", &base).expect("an object")));
    let content = random_bytes(1, LEN);
    let new = File::create(scene.path("new")).unwrap();
    new.write_all_at(&content, 0).unwrap();
    let old = File::options().write(true).open(scene.path("old")).unwrap();
    old.write_all_at(&content[..5000], 100_000).unwrap();
    let mut changed = base.clone();
    changed[100_000..105_000].copy_from_slice(&content[..5000]);
    for name in ["new", "old"] {
        let before = scene.syncs();
        on(&["sync"], &scene, name);
        let synced = scene.syncs();
        assert!(synced > before, "{name}: nothing was synced");
        on(&["sync"], &scene, name);
        assert_eq!(scene.syncs(), synced, "{name}: nothing was new");
    }
    assert_eq!(scene.place.world.bucket.head("new").unwrap(), None, "published by a sync");
    scene.power_loss(Loss::Everything);
    assert!(scene.shown("new") == content, "the new file is lost");
    assert!(scene.shown("old") == changed, "the change is lost");
    drop((new, old));
}

/// A program that syncs a file which it opened for reading does not publish what another one has only begun.
#[test]
fn a_sync_by_a_reader_publishes_nothing() {
    let scene =
        Scene::prepared(&[], |place| drop(place.world.bucket.put("old", b"what was there").expect("an object")));
    let emptied = File::options().write(true).truncate(true).open(scene.path("old")).unwrap();
    let new = File::create(scene.path("new")).unwrap();
    on(&["sync"], &scene, "old");
    on(&["sync"], &scene, "new");
    // A close of the other handle comes behind whatever the sync began.
    emptied.write_all_at(b"what comes", 0).unwrap();
    within(WAIT, "closing", move || drop(emptied));
    assert_eq!(scene.place.world.bucket.get("old").unwrap(), b"what comes");
    let puts = scene.place.world.proxy.counts().of(Call::PutObject).accepted;
    assert_eq!(puts, 1, "{}", scene.place.world.proxy.counts().log_text());
    drop(new);
}

/// Mode and extended attributes of a finished object that were set and then synced, by whatever descriptor, survive power loss
/// before BOS has them.
#[test]
fn attributes_that_were_synced_survive_power_loss() {
    let mut scene = Scene::prepared(&[], |place| drop(place.world.bucket.put("f", b"bytes").expect("an object")));
    scene.refuse(When::call(Call::CopyObject));
    let file = File::open(scene.path("f")).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o640)).unwrap();
    rustix::fs::fsetxattr(&file, "user.colour", b"blue", rustix::fs::XattrFlags::empty()).unwrap();
    file.sync_all().unwrap();
    scene.power_loss(Loss::Everything);
    let meta = std::fs::metadata(scene.path("f")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(scene.path("f"), "user.colour", &mut value).unwrap();
    assert_eq!(&value[..len], b"blue");
    scene.heal();
    drop(file);
}

/// Each `write` through a handle with `O_SYNC` or `O_DSYNC`, and each with `RWF_DSYNC`, survives power loss when it returns, and
/// is synced once, whether the handle reads as well or not.
#[test]
fn each_write_of_a_handle_with_o_sync_survives_power_loss() {
    let mut scene = Scene::new(&[]);
    let content = random_bytes(1, LEN);
    let mut files = Vec::new();
    for (flag, reads) in [(libc::O_SYNC, false), (libc::O_SYNC, true), (libc::O_DSYNC, false), (libc::O_DSYNC, true)] {
        let name = format!("f{}", files.len());
        let mut options = OpenOptions::new();
        let file = options.write(true).read(reads).create(true).custom_flags(flag).open(scene.path(&name)).unwrap();
        for (number, piece) in content.chunks(PIECE).enumerate() {
            let before = scene.syncs_of("/spool");
            file.write_all_at(piece, (number * PIECE) as u64).unwrap();
            assert_eq!(scene.syncs_of("/spool") - before, 1, "{name}, write {number}: syncs of the spool");
        }
        files.push((name, file));
    }
    let plain = File::create(scene.path("plain")).unwrap();
    let done = rustix::io::pwritev2(&plain, &[IoSlice::new(&content)], 0, ReadWriteFlags::DSYNC).unwrap();
    assert_eq!(done, LEN);
    files.push(("plain".to_owned(), plain));
    scene.power_loss(Loss::Everything);
    for (name, _) in &files {
        assert!(scene.shown(name) == content, "{name}: {} of {LEN} bytes are left", scene.shown(name).len());
    }
}

/// `dd oflag=dsync` and `dd oflag=sync` sync each of their blocks.
#[test]
fn dd_with_oflag_dsync_syncs_each_block() {
    let scene = Scene::new(&[]);
    let source = scene.place.world.random_file("source", 1, 40_960);
    for flag in ["dsync", "sync"] {
        let words = [format!("if={}", source.display()), format!("of={}", scene.path(flag).display())];
        let before = scene.syncs_of("/spool");
        let told = program(&["dd", &words[0], &words[1], "bs=4096", &format!("oflag={flag}")]);
        assert!(told.ok, "{told:?}");
        assert_eq!(scene.syncs_of("/spool") - before, 10, "{flag}: {told:?}");
        scene.place.world.assert_object_is_file(flag, &source);
    }
}

/// `ftruncate`, `fallocate` and `copy_file_range` through a handle with `O_DSYNC` survive power loss when they return.
#[test]
fn cuts_and_reservations_of_a_handle_with_o_dsync_survive_power_loss() {
    let content = random_bytes(1, LEN);
    let mut scene = Scene::prepared(&[], |place| drop(place.world.bucket.put("source", &content).expect("an object")));
    let open = |name: &str| {
        let file =
            OpenOptions::new().write(true).create(true).custom_flags(libc::O_DSYNC).open(scene.path(name)).unwrap();
        file.write_all_at(&content, 0).unwrap();
        file
    };
    let files = ["cut", "grown", "reserved", "punched"].map(open);
    files[0].set_len(100_000).unwrap();
    files[1].set_len(400_000).unwrap();
    rustix::fs::fallocate(&files[2], FallocateFlags::empty(), 0, 500_000).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&files[3], punch, 0, 8192).unwrap();
    let copied =
        OpenOptions::new().write(true).create(true).custom_flags(libc::O_DSYNC).open(scene.path("copied")).unwrap();
    let source = File::open(scene.path("source")).unwrap();
    assert_eq!(rustix::fs::copy_file_range(&source, None, &copied, None, LEN).unwrap(), LEN);
    scene.power_loss(Loss::Everything);
    assert!(scene.shown("copied") == content, "{} bytes", scene.shown("copied").len());
    let with_zeros = |len: usize| [content.clone(), vec![0; len - LEN]].concat();
    assert!(scene.shown("cut") == content[..100_000], "{} bytes", scene.shown("cut").len());
    assert!(scene.shown("grown") == with_zeros(400_000), "{} bytes", scene.shown("grown").len());
    assert!(scene.shown("reserved") == with_zeros(500_000), "{} bytes", scene.shown("reserved").len());
    assert!(scene.shown("punched") == [vec![0; 8192], content[8192..].to_vec()].concat());
    drop((files, copied));
}

/// `msync` makes what was written through a mapping survive power loss, and so do `fdatasync` and `fsync` of a handle that reads
/// and writes.
#[test]
fn msync_and_fdatasync_make_bytes_survive_power_loss() {
    const PROGRAM: &str = r#"
import mmap, os, sys
mapped, written, data, held = sys.argv[1:4] + [sys.stdin]
fd = os.open(mapped, os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8192)
area = mmap.mmap(fd, 8192)
area[0:8192] = b"m" * 8192
area.flush()
others = []
for name, sync in [(written, os.fsync), (data, os.fdatasync)]:
    other = os.open(name, os.O_RDWR | os.O_CREAT)
    os.write(other, b"w" * 5000)
    sync(other)
    others.append(other)
print("held", flush=True)
held.read()
"#;
    let mut scene = Scene::new(&[]);
    let mut command = Command::new("python3");
    command.args(["-c", PROGRAM]).args(["mapped", "written", "data"].map(|name| scene.path(name)));
    let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    scene.power_loss(Loss::Everything);
    assert!(scene.shown("mapped") == [b'm'; 8192]);
    assert!(scene.shown("written") == [b'w'; 5000] && scene.shown("data") == [b'w'; 5000]);
    drop(program.stdin.take());
    wait_child(&mut program, WAIT).expect("the program ends");
}

/// `sync` without a file and `syncfs` sync nothing here: the kernel tells bosfs nothing of them; `sync FILE` is what counts.
#[test]
fn sync_without_a_file_reaches_nobody() {
    let scene = Scene::new(&[]);
    let file = File::create(scene.path("f")).unwrap();
    file.write_all_at(b"bytes", 0).unwrap();
    let before = scene.syncs();
    on(&["sync", "--file-system"], &scene, "f");
    assert_eq!(scene.syncs(), before);
    on(&["sync"], &scene, "f");
    assert!(scene.syncs() > before);
    drop(file);
}

/// Without a call that asks for it nothing is synced: not by writes, nor by the closes of 20 small files, nor by the removal of
/// files that nobody synced; a write-back close syncs its file once, and a folder's `fsync` with nothing new costs nothing.
#[test]
fn only_what_asks_for_it_costs_syncs() {
    let scene = Scene::new(&[]);
    let before = scene.syncs();
    for n in 0..20 {
        std::fs::write(scene.path(&format!("f{n}")), random_bytes(n, 10_000)).unwrap();
    }
    assert_eq!(scene.syncs(), before, "small files in the default mode");
    // What they told of is in BOS; only that their journals are gone is not certain yet.
    let sync_dir = || File::open(scene.mount().dir()).unwrap().sync_all().unwrap();
    sync_dir();
    assert!(scene.syncs() - before <= 1, "{} syncs of a folder", scene.syncs() - before);
    let before = scene.syncs();
    sync_dir();
    std::fs::create_dir(scene.path("d")).unwrap();
    let interrupted = File::create(scene.path("d/unsynced")).unwrap();
    interrupted.write_all_at(b"bytes", 0).unwrap();
    std::fs::remove_file(scene.path("d/unsynced")).unwrap();
    within(WAIT, "closing", move || drop(interrupted));
    std::fs::remove_file(scene.path("f0")).unwrap();
    std::fs::remove_dir(scene.path("d")).unwrap();
    assert!(scene.place.wait_idle(WAIT));
    assert_eq!(scene.syncs(), before, "removals, and a folder without anything new");
    drop(scene);
    let scene = Scene::new(&["--write-back"]);
    let before = scene.syncs();
    for n in 0..20 {
        std::fs::write(scene.path(&format!("f{n}")), random_bytes(n, 10_000)).unwrap();
    }
    assert!(scene.place.wait_idle(WAIT));
    assert_eq!(scene.syncs_of("/spool"), 20);
    // Spool, map, journal, its folder, the folder of all, the line that says so, and the line that it is published.
    let spent = scene.syncs() - before;
    assert!(spent <= 20 * 7, "{spent} syncs of 20 files");
}
