//! The operations, and the comparison.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::fs::{FallocateFlags, RenameFlags, SeekFrom};

use crate::model::{FileId, Model, is_zero};
use crate::support::files::random_bytes;
use crate::support::{Mounted, World};
use crate::{PART, WAIT};

/// Largest file.
const SIZE_MAX: u64 = 24 << 20;
/// Names in use; the ones in capitals stay small.
const NAMES: [&str; 6] = ["big", "large one", "\u{5927}文件", "SMALL", "S2", "S3"];
/// Largest file with a name in capitals.
const SMALL_MAX: u64 = 200_000;
/// Handles open at the same time.
const HANDLES_MAX: usize = 6;
/// Operations between two remounts.
const REMOUNT_EVERY: u64 = 500;
/// Operations between two kills.
const KILL_EVERY: u64 = 300;
/// Longest time without any progress.
const STALL_MAX: Duration = Duration::from_secs(120);

/// Maps a range of a file shared, writes a pattern, synchronises.
const MAPPER: &str = r#"
import mmap, os, sys
for line in sys.stdin:
    path, offset, length, byte = line.rstrip("\n").split("\t")
    offset, length = int(offset), int(length)
    fd = os.open(path, os.O_RDWR)
    first = offset // mmap.PAGESIZE * mmap.PAGESIZE
    with mmap.mmap(fd, offset + length - first, offset=first) as pages:
        pages[offset - first:offset - first + length] = bytes([int(byte)]) * length
        pages.flush()
    os.close(fd)
    print("ok", flush=True)
"#;

struct Mapper {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Mapper {
    fn start() -> Self {
        let mut command = Command::new("python3");
        let mut child =
            command.args(["-c", MAPPER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, commands, answers }
    }

    fn write(&mut self, path: &str, offset: u64, len: u64, byte: u8) {
        writeln!(self.commands, "{path}\t{offset}\t{len}\t{byte}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line, "ok\n", "write by mmap to {path}");
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Handle {
    file: File,
    id: FileId,
    /// The name it was opened by.
    name: &'static str,
    writes: bool,
    small: bool,
}

/// What this mount can do; the operations that it cannot are left out and named.
#[derive(Clone, Copy, Debug)]
struct Able {
    punch: bool,
    rename_open: bool,
    exchange: bool,
}

struct Run {
    able: Able,
    rng: StdRng,
    world: World,
    mount: Option<Mounted>,
    model: Model,
    handles: Vec<Handle>,
    mapper: Mapper,
    log: Arc<parking_lot::Mutex<VecDeque<String>>>,
    progress: Arc<AtomicU64>,
    /// Operations that a failure shows.
    log_lines: usize,
    op: u64,
    write_back: bool,
    counts: std::collections::BTreeMap<&'static str, u64>,
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Runs `ops` operations in a thread of its own, and fails if they make no progress.
fn run(seed: u64, ops: u64) {
    let seed = setting("BOSFS_MODEL_SEED", seed);
    let ops = setting("BOSFS_MODEL_OPS", ops);
    println!("seed {seed}, {ops} operations");
    let log = Arc::new(parking_lot::Mutex::new(VecDeque::new()));
    let progress = Arc::new(AtomicU64::new(0));
    let (log_of_run, progress_of_run) = (log.clone(), progress.clone());
    let worker = std::thread::spawn(move || {
        let mut run = Run::new(seed, log_of_run, progress_of_run);
        while run.op < ops {
            run.step();
        }
        run.check_bucket();
        println!("{:?}", run.counts);
    });
    let mut seen = (0, Instant::now());
    while !worker.is_finished() {
        std::thread::sleep(Duration::from_millis(50));
        let now = progress.load(Ordering::Relaxed);
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        if seen.1.elapsed() > STALL_MAX {
            break;
        }
    }
    let stalled = !worker.is_finished();
    if stalled || worker.join().is_err() {
        for line in &*log.lock() {
            eprintln!("{line}");
        }
        panic!(
            "seed {seed}: operation {}{}",
            progress.load(Ordering::Relaxed),
            if stalled { " hangs" } else { " fails" }
        );
    }
}

#[test]
fn random_operations_and_remounts_keep_every_byte() {
    run(1, 1500);
}

#[test]
fn random_operations_answered_before_the_upload_keep_every_byte() {
    run(2, 1500);
}

impl Run {
    fn new(seed: u64, log: Arc<parking_lot::Mutex<VecDeque<String>>>, progress: Arc<AtomicU64>) -> Self {
        let mut run = Self {
            able: Able { punch: true, rename_open: true, exchange: true },
            rng: StdRng::seed_from_u64(seed),
            world: World::new(),
            mount: None,
            model: Model::default(),
            handles: Vec::new(),
            mapper: Mapper::start(),
            log,
            progress,
            log_lines: setting("BOSFS_MODEL_LOG", 200) as usize,
            op: 0,
            write_back: seed.is_multiple_of(2),
            counts: Default::default(),
        };
        run.mount();
        run.probe();
        run
    }

    fn probe(&mut self) {
        let (a, b) = (self.path("probe"), self.path("probe 2"));
        let file = File::create(&a).unwrap();
        file.write_all_at(b"probe", 0).unwrap();
        std::fs::write(&b, b"b").unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.able.punch = rustix::fs::fallocate(&file, punch, 0, 1).is_ok();
        self.able.rename_open = std::fs::rename(&a, &b).is_ok();
        let (cwd, c) = (rustix::fs::CWD, self.path("probe 3"));
        std::fs::write(&c, b"c").unwrap();
        drop(file);
        self.able.exchange = rustix::fs::renameat_with(cwd, &b, cwd, &c, RenameFlags::EXCHANGE).is_ok();
        for path in [a, b, c] {
            let _ = std::fs::remove_file(path);
        }
        println!("{:?}", self.able);
    }

    fn mount(&mut self) {
        let args: &[&str] = match self.write_back {
            true => &["--part-size", "5MiB", "--write-back"],
            false => &["--part-size", "5MiB"],
        };
        self.mount = Some(self.world.mount(args));
    }

    fn dir(&self) -> PathBuf {
        self.mount.as_ref().expect("mounted").dir().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    fn note(&mut self, kind: &'static str, what: String) {
        *self.counts.entry(kind).or_default() += 1;
        let mut log = self.log.lock();
        log.push_back(format!("{:>6} {kind} {what}", self.op));
        if log.len() > self.log_lines {
            log.pop_front();
        }
    }

    fn step(&mut self) {
        self.op += 1;
        self.progress.store(self.op, Ordering::Relaxed);
        if self.op.is_multiple_of(REMOUNT_EVERY) {
            return self.remount();
        }
        if self.op.is_multiple_of(KILL_EVERY) {
            return self.kill();
        }
        match self.rng.random_range(0..100) {
            0..26 => self.write(),
            26..30 => self.append(),
            30..48 => self.read(),
            48..53 => self.truncate(),
            53..55 => self.truncate_by_path(),
            55..66 => self.fallocate(),
            66..71 => self.copy(),
            71..79 => self.open(),
            79..87 => self.close(),
            87..89 => self.sync(),
            89..91 => self.map(),
            91..93 => self.rename(),
            93..94 => self.exchange(),
            94..95 => self.unlink(),
            95..97 => self.seek(),
            _ => self.look(),
        }
    }

    /// A random handle that writes (or any), with the room that its file has.
    fn pick(&mut self, writes: bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.handles.len()).filter(|&i| self.handles[i].writes || !writes).collect();
        if fit.is_empty() {
            self.open();
            return None;
        }
        Some(fit[self.rng.random_range(0..fit.len())])
    }

    fn limit(small: bool) -> u64 {
        if small { SMALL_MAX } else { SIZE_MAX }
    }

    /// An offset below `limit`, often close to the end or to the edge of a block or part.
    fn offset(&mut self, size: u64, limit: u64) -> u64 {
        let near = |rng: &mut StdRng, edge: u64| (edge + rng.random_range(0..5)).saturating_sub(2);
        let offset = match self.rng.random_range(0..10) {
            0..4 => self.rng.random_range(0..=size),
            4 => near(&mut self.rng, size),
            5 => near(&mut self.rng, size / 4096 * 4096),
            6 => {
                let part = self.rng.random_range(0..=size / PART);
                near(&mut self.rng, part * PART)
            }
            7 => self.rng.random_range(0..limit),
            _ => self.rng.random_range(0..=size) / 4096 * 4096,
        };
        offset.min(limit - 1)
    }

    /// A length of at most `room` bytes.
    fn length(&mut self, room: u64) -> u64 {
        let len = match self.rng.random_range(0..20) {
            0 => 1,
            1..4 => 4096,
            4 => self.rng.random_range(1..3_000_000),
            5..8 => self.rng.random_range(1..400_000),
            _ => self.rng.random_range(1..70_000),
        };
        len.min(room)
    }

    fn write(&mut self) {
        let Some(i) = self.pick(true) else { return };
        let (id, limit) = (self.handles[i].id, Self::limit(self.handles[i].small));
        let offset = self.offset(self.model.content(id).len(), limit);
        let len = self.length(limit - offset);
        self.write_at(i, offset, len);
    }

    fn append(&mut self) {
        let Some(i) = self.pick(true) else { return };
        let (id, limit) = (self.handles[i].id, Self::limit(self.handles[i].small));
        let offset = self.model.content(id).len();
        if offset >= limit {
            return self.truncate();
        }
        let len = self.length(limit - offset);
        self.write_at(i, offset, len);
    }

    fn write_at(&mut self, i: usize, offset: u64, len: u64) {
        let id = self.handles[i].id;
        self.note("write", format!("file {id}: {len:#x} bytes at {offset:#x}"));
        let bytes = random_bytes(self.op, len as usize);
        self.handles[i].file.write_all_at(&bytes, offset).unwrap();
        self.model.content_mut(id).write(offset, &bytes);
    }

    fn read(&mut self) {
        let Some(i) = self.pick(false) else { return };
        let id = self.handles[i].id;
        let offset = self.offset(self.model.content(id).len(), SIZE_MAX);
        let len = self.length(SIZE_MAX);
        self.note("read", format!("file {id}: {len:#x} bytes at {offset:#x}"));
        self.read_at(i, offset, len);
    }

    fn read_at(&self, i: usize, offset: u64, len: u64) {
        let mut found = vec![0; len as usize];
        let mut at = 0;
        while at < found.len() {
            match self.handles[i].file.read_at(&mut found[at..], offset + at as u64).unwrap() {
                0 => break,
                n => at += n,
            }
        }
        let expected = self.model.content(self.handles[i].id).read(offset, len as usize);
        if expected != &found[..at] {
            let first = expected.iter().zip(&found).position(|(a, b)| a != b);
            panic!(
                "file {}: read of {len:#x} at {offset:#x} gives {at:#x} bytes of {:#x}, first difference {first:x?}",
                self.handles[i].id,
                expected.len()
            );
        }
    }

    fn truncate(&mut self) {
        let Some(i) = self.pick(true) else { return };
        let (id, limit) = (self.handles[i].id, Self::limit(self.handles[i].small));
        let size = if self.rng.random_range(0..8) == 0 { 0 } else { self.offset(self.model.content(id).len(), limit) };
        self.note("ftruncate", format!("file {id}: {size:#x}"));
        self.handles[i].file.set_len(size).unwrap();
        self.model.content_mut(id).truncate(size);
    }

    fn truncate_by_path(&mut self) {
        let Some(name) = self.existing() else { return };
        let id = self.model.id(&name).unwrap();
        let size = self.offset(self.model.content(id).len(), Self::limit(is_small(&name)));
        self.note("truncate", format!("{name:?} (file {id}): {size:#x}"));
        let path = self.path(&name);
        let done = Command::new("truncate").arg(format!("--size={size}")).arg(path).status().unwrap();
        assert!(done.success(), "truncate");
        self.model.content_mut(id).truncate(size);
    }

    fn fallocate(&mut self) {
        let Some(i) = self.pick(true) else { return };
        let (id, limit) = (self.handles[i].id, Self::limit(self.handles[i].small));
        let offset = self.offset(self.model.content(id).len(), limit);
        let len = match self.rng.random_range(0..4) {
            0 => PART.min(limit - offset),
            _ => self.length(limit - offset),
        };
        let keep = FallocateFlags::KEEP_SIZE;
        let kind = self.rng.random_range(0..12);
        if kind >= 3 && !self.able.punch {
            return;
        }
        let (mode, zeroes, keeps) = match kind {
            0..2 => (FallocateFlags::empty(), false, false),
            2 => (keep, false, true),
            3..8 => (FallocateFlags::PUNCH_HOLE | keep, true, true),
            8..11 => (FallocateFlags::ZERO_RANGE, true, false),
            _ => (FallocateFlags::ZERO_RANGE | keep, true, true),
        };
        self.note("fallocate", format!("file {id}: {mode:?} {len:#x} bytes at {offset:#x}"));
        rustix::fs::fallocate(&self.handles[i].file, mode, offset, len).unwrap();
        let content = self.model.content_mut(id);
        if !keeps {
            content.grow(offset + len);
        }
        if zeroes {
            content.zero(offset, len);
        }
    }

    fn copy(&mut self) {
        let (Some(from), Some(to)) = (self.pick(false), self.pick(true)) else { return };
        let (id, target) = (self.handles[from].id, self.handles[to].id);
        let limit = Self::limit(self.handles[to].small);
        let size = self.model.content(id).len();
        if size == 0 {
            return;
        }
        let mut source = self.offset(size, limit).min(size - 1);
        let mut goal = self.offset(self.model.content(target).len(), limit);
        let mut len = match self.rng.random_range(0..3) {
            0 => PART + 12_345,
            _ => self.length(SIZE_MAX),
        };
        if id != target && self.rng.random_range(0..4) == 0 {
            (source, goal, len) = (0, 0, size);
        }
        len = len.min(size - source).min(limit - goal);
        if id == target && source.abs_diff(goal) < len {
            return; // EINVAL: the ranges overlap
        }
        self.note("copy_file_range", format!("file {id} at {source:#x} to file {target} at {goal:#x}: {len:#x} bytes"));
        let (mut in_at, mut out_at, mut left) = (source, goal, len);
        while left > 0 {
            let (file, other) = (&self.handles[from].file, &self.handles[to].file);
            let n =
                rustix::fs::copy_file_range(file, Some(&mut in_at), other, Some(&mut out_at), left as usize).unwrap();
            assert!(n > 0, "copy_file_range gave up {left:#x} bytes before its end");
            left -= n as u64;
        }
        let bytes = self.model.content(id).read(source, len as usize).to_vec();
        self.model.content_mut(target).write(goal, &bytes);
    }

    fn open(&mut self) {
        if self.handles.len() >= HANDLES_MAX {
            return self.close();
        }
        let name = NAMES[self.rng.random_range(0..NAMES.len())];
        if self.model.id(name).is_none() {
            // What a removed file still has in its object may go with that when a new one takes the name (ESTALE): a
            // documented limit, not looked at here.
            let model = &self.model;
            self.handles.retain(|handle| handle.name != name || model.is_linked(handle.id));
        }
        let id = self.model.create(name);
        let (mut options, mut flags) = (OpenOptions::new(), 0);
        let kind = self.rng.random_range(0..16);
        options.read(true).write(true).create(true);
        match kind {
            0..3 => flags |= libc::O_DIRECT,
            3 => flags |= libc::O_TRUNC,
            4 => flags |= libc::O_APPEND,
            _ => {}
        }
        options.custom_flags(flags);
        self.note("open", format!("{name:?} (file {id}), flags {flags:#o}"));
        let mut file = options.open(self.path(name)).unwrap();
        if flags & libc::O_TRUNC != 0 {
            self.model.content_mut(id).truncate(0);
        }
        if flags & libc::O_APPEND != 0 {
            let room = Self::limit(is_small(name)).saturating_sub(self.model.content(id).len());
            let len = self.length(room);
            let bytes = random_bytes(self.op, len as usize);
            file.write_all(&bytes).unwrap();
            let end = self.model.content(id).len();
            self.model.content_mut(id).write(end, &bytes);
            return;
        }
        // One in eight only reads.
        let writes = kind < 14;
        if !writes {
            file = File::open(self.path(name)).unwrap();
        }
        self.handles.push(Handle { file, id, name, writes, small: is_small(name) });
    }

    fn close(&mut self) {
        if self.handles.is_empty() {
            return self.open();
        }
        let i = self.rng.random_range(0..self.handles.len());
        let handle = self.handles.swap_remove(i);
        self.note("close", format!("file {}", handle.id));
    }

    fn sync(&mut self) {
        let Some(i) = self.pick(true) else { return };
        let id = self.handles[i].id;
        self.note("fsync", format!("file {id}"));
        if self.op.is_multiple_of(2) {
            self.handles[i].file.sync_all().unwrap();
        } else {
            self.handles[i].file.sync_data().unwrap();
        }
    }

    fn map(&mut self) {
        let Some(name) = self.existing() else { return };
        let id = self.model.id(&name).unwrap();
        let size = self.model.content(id).len();
        if size == 0 {
            return;
        }
        let offset = self.offset(size, size);
        let len = self.length(size - offset);
        let byte = self.rng.random_range(0..=255u8);
        self.note("mmap", format!("{name:?} (file {id}): {len:#x} bytes of {byte:#x} at {offset:#x}"));
        let path = self.path(&name).to_str().unwrap().to_owned();
        self.mapper.write(&path, offset, len, byte);
        self.model.content_mut(id).write(offset, &vec![byte; len as usize]);
    }

    fn existing(&mut self) -> Option<String> {
        let names = self.model.names();
        if names.is_empty() {
            self.open();
            return None;
        }
        Some(names[self.rng.random_range(0..names.len())].clone())
    }

    fn rename(&mut self) {
        let Some(from) = self.existing() else { return };
        let fit: Vec<&str> = NAMES.into_iter().filter(|to| *to != from && is_small(to) == is_small(&from)).collect();
        let to = fit[self.rng.random_range(0..fit.len())];
        // Readers of what is replaced may get ESTALE: a documented limit, not looked at here.
        self.close_all_of(to);
        if !self.able.rename_open {
            self.close_all_of(&from);
        }
        self.note("rename", format!("{from:?} to {to:?}"));
        std::fs::rename(self.path(&from), self.path(to)).unwrap();
        self.model.rename(&from, to);
    }

    fn exchange(&mut self) {
        let (Some(a), Some(b)) = (self.existing(), self.existing()) else { return };
        if !self.able.exchange || a == b || is_small(&a) != is_small(&b) {
            return;
        }
        // Files that are being written are not exchanged (EBUSY), and a release comes some time after its close.
        self.close_all_of(&a);
        self.close_all_of(&b);
        self.note("exchange", format!("{a:?} with {b:?}"));
        let (cwd, end) = (rustix::fs::CWD, Instant::now() + WAIT);
        while let Err(e) = rustix::fs::renameat_with(cwd, self.path(&a), cwd, self.path(&b), RenameFlags::EXCHANGE) {
            assert!(e == rustix::io::Errno::BUSY && Instant::now() < end, "exchange: {e}");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.model.exchange(&a, &b);
    }

    fn unlink(&mut self) {
        let Some(name) = self.existing() else { return };
        self.note("unlink", format!("{name:?} (file {})", self.model.id(&name).unwrap()));
        std::fs::remove_file(self.path(&name)).unwrap();
        self.model.unlink(&name);
    }

    fn close_all_of(&mut self, name: &str) {
        let Some(id) = self.model.id(name) else { return };
        self.handles.retain(|handle| handle.id != id);
    }

    /// `SEEK_DATA` and `SEEK_HOLE`: what they call a hole must be zeros.
    fn seek(&mut self) {
        let Some(i) = self.pick(false) else { return };
        let content = self.model.content(self.handles[i].id);
        let size = content.len();
        if size == 0 {
            return;
        }
        let id = self.handles[i].id;
        let offset = self.offset(size, size);
        self.note("seek", format!("file {id} from {offset:#x}"));
        let content = self.model.content(id);
        let file = &self.handles[i].file;
        let hole = rustix::fs::seek(file, SeekFrom::Hole(offset)).unwrap();
        assert!((offset..=size).contains(&hole), "hole at {hole:#x} of {size:#x}");
        let data = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => size,
            Err(e) => panic!("SEEK_DATA: {e}"),
        };
        assert!((offset..=size).contains(&data), "data at {data:#x} of {size:#x}");
        assert!(is_zero(content.read(offset, (data - offset) as usize)), "{offset:#x}..{data:#x} is called a hole");
    }

    /// Size and presence of every name.
    fn look(&mut self) {
        self.note("look", String::new());
        let mut found: Vec<(String, u64)> = std::fs::read_dir(self.dir())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())
            })
            .collect();
        found.sort();
        let expected: Vec<(String, u64)> =
            self.model.names().into_iter().map(|name| (name.clone(), self.model.by_name(&name).len())).collect();
        assert_eq!(found, expected);
        for handle in &self.handles {
            assert_eq!(
                handle.file.metadata().unwrap().len(),
                self.model.content(handle.id).len(),
                "file {}",
                handle.id
            );
        }
    }

    /// Every name and every byte, as the mount shows them.
    fn check_mount(&mut self, when: &str) {
        self.look();
        for name in self.model.names() {
            let found = std::fs::read(self.path(&name)).unwrap_or_else(|e| panic!("{name} {when}: {e}"));
            if let Some(difference) = self.model.by_name(&name).difference(&found) {
                panic!("{name} {when}: {difference}");
            }
        }
    }

    fn remount(&mut self) {
        self.check_bucket();
        let fresh = self.rng.random_range(0..2) == 0;
        if fresh {
            // Everything comes out of the bucket.
            std::fs::remove_dir_all(self.world.state_dir()).unwrap();
        }
        self.mount();
        self.note("remount", format!("fresh state folder: {fresh}"));
        self.check_mount("after a remount");
    }

    /// Closes, unmounts, and compares with what BOS has.
    fn check_bucket(&mut self) {
        self.handles.clear();
        let mut mount = self.mount.take().expect("mounted");
        let output = mount.umount(WAIT);
        assert!(output.status.success(), "umount: {output:?}\n{}", self.world.log_text());
        drop(mount);
        self.note("umount", String::new());
        assert_eq!(self.world.bucket.list("").unwrap(), self.model.names(), "keys in the bucket");
        for name in self.model.names() {
            let found = self.world.bucket.get(&name).unwrap();
            if let Some(difference) = self.model.by_name(&name).difference(&found) {
                panic!("object {name}: {difference}\n{}", self.world.log_text());
            }
        }
        assert_eq!(self.world.bucket.uploads("").unwrap(), [], "unfinished uploads");
    }

    /// SIGKILL in the middle: what write() accepted must be there.
    fn kill(&mut self) {
        let mount = self.mount.as_mut().expect("mounted");
        mount.kill();
        self.handles.clear();
        self.mount = None;
        self.note("kill", String::new());
        self.world.wait_quiet();
        self.mount();
        self.check_mount("after a kill");
        // Unfinished files are not published before somebody goes on with them.
        for name in self.model.names() {
            let file = OpenOptions::new().write(true).open(self.path(&name)).unwrap();
            file.write_all_at(b"!", 0).unwrap();
            let id = self.model.id(&name).unwrap();
            self.model.content_mut(id).write(0, b"!");
        }
    }
}

fn is_small(name: &str) -> bool {
    name.chars().all(|letter| letter.is_ascii_uppercase() || letter.is_ascii_digit())
}
