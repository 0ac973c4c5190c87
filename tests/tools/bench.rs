//! How fast a mount is, beside what the same machine does without it, in one run.
//!
//! Writing: `cp` of one file into the mount (timed to the end of `close`: the object is complete and proved), the same
//! parts sent by [`BosClient`] alone with the same checksums and as many at once, and `cp` to the local disk. Reading:
//! `cat` from a mount that has cached nothing, the same ranges fetched by the client alone, and `cat` from the local disk.
//! The server is `bosfs serve`, a process of its own on loopback; it shares the cores with all of this. The source is in
//! the page cache each time, all written pages are synced, and memory is touched, before a clock starts.
//!
//! `bench --dir DIR [--size 4GiB] [--rounds 3] [--only write|read] [--bosfs FILE] [--mount-arg ARG]...`
//!
//! `DIR` must exist on the disk to be measured; `DIR/pids` lists the processes that were started.

#[path = "../support/mod.rs"]
mod support;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bosfs::bos::client::Body;
use bosfs::bos::client::{BodySource, BosClient, BosClientConfig, ObjectHeaders};
use bosfs::bos::credentials::StaticCredentials;
use bosfs::bos::sign::Credentials;
use bosfs::config::units::parse_size;
use bosfs::object::{ByteRange, Condition, Crcs, Hasher, ObjectKey};
use bosfs::write::part_plan::PartPlan;
use crc_fast::{CrcAlgorithm, Digest};
use futures_util::StreamExt as _;
use rustix::process::{Pid, Signal};
use support::files::write_random;
use support::mounted::{bosfs_binary, wait_child};
use support::{BUCKET, MountSpec, Mounted};

/// As the mount has it when nothing else is said: `--part-size`, `--max-uploads`.
const PART_BYTES: u64 = 8 << 20;
const UPLOADS_MAX: usize = 8;
/// As the mount reads ahead of a long sequential reader: a window of 64 MiB in GETs of 8 MiB.
const GET_BYTES: u64 = 8 << 20;
const GETS_AT_ONCE: usize = 8;
/// Bytes hashed at once by the bare loop, as by the mount.
const HASH_BYTES: usize = 256 << 10;
/// Longest wait for the end of a process.
const WAIT: Duration = Duration::from_secs(120);
/// Clock ticks per second in `/proc/PID/stat`; the same on all Linux machines that users can see.
const TICKS_PER_S: f64 = 100.0;

type Result<T, E = String> = std::result::Result<T, E>;

struct Settings {
    dir: PathBuf,
    size: u64,
    rounds: usize,
    write: bool,
    read: bool,
    mount_args: Vec<String>,
}

impl Settings {
    fn read() -> Result<Self> {
        let mut settings =
            Self { dir: PathBuf::new(), size: 4 << 30, rounds: 3, write: true, read: true, mount_args: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--dir" => settings.dir = value.into(),
                "--size" => settings.size = parse_size(&value).map_err(|e| e.to_string())?,
                "--rounds" => settings.rounds = value.parse().map_err(|e| format!("--rounds {value}: {e}"))?,
                "--only" => match value.as_str() {
                    "write" => settings.read = false,
                    "read" => settings.write = false,
                    _ => return Err(format!("--only {value}: write or read")),
                },
                "--mount-arg" => settings.mount_args.push(value),
                _ => return Err(format!("unknown option {name}")),
            }
        }
        if settings.dir.as_os_str().is_empty() || !settings.dir.is_dir() {
            return Err("--dir must name a folder that exists".into());
        }
        if settings.size <= PART_BYTES || settings.rounds == 0 {
            return Err(format!("--size must be more than one part ({PART_BYTES} bytes), --rounds at least 1"));
        }
        Ok(settings)
    }
}

/// What one timed run took.
#[derive(Clone, Copy, Default)]
struct Run {
    seconds: f64,
    /// CPU seconds of the side that is measured: bosfs, or the bare loop.
    own_cpu: f64,
    /// CPU seconds of `cp` or `cat`, with the kernel's work for it.
    tool_cpu: f64,
    server_cpu: f64,
    /// Largest resident memory of bosfs in its life, bytes.
    peak_bytes: u64,
}

/// All runs of one kind.
struct Row {
    name: &'static str,
    runs: Vec<Run>,
}

fn main() -> ExitCode {
    match Settings::read().and_then(|settings| run(&settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(settings: &Settings) -> Result<()> {
    let bench = Bench::start(settings)?;
    let mut writes = [row("cp into the mount"), row("parts by the client"), row("cp to the local disk")];
    let mut reads = [row("cat from the mount"), row("ranges by the client"), row("cat from the local disk")];
    for round in 1..=settings.rounds {
        eprint!("round {round} of {}:", settings.rounds);
        if settings.write {
            writes[0].add(bench.write_mount()?);
            writes[1].add(bench.write_bare()?);
            writes[2].add(bench.write_disk()?);
        } else {
            bench.write_bare()?;
        }
        if settings.read {
            reads[0].add(bench.read_mount()?);
            reads[1].add(bench.read_bare()?);
            reads[2].add(bench.read_disk()?);
        }
        eprintln!();
    }
    let mut out = std::io::stdout().lock();
    let mut print = |rows: &[Row]| table(&mut out, settings.size, rows).map_err(|e| e.to_string());
    if settings.write {
        print(&writes)?;
    }
    if settings.read {
        print(&reads)?;
    }
    Ok(())
}

fn row(name: &'static str) -> Row {
    Row { name, runs: Vec::new() }
}

impl Row {
    fn add(&mut self, run: Run) {
        eprint!(" {:.2} s", run.seconds);
        self.runs.push(run);
    }

    fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        let mut values: Vec<f64> = self.runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
    }
}

fn table(out: &mut impl std::io::Write, size: u64, rows: &[Row]) -> std::io::Result<()> {
    let mib = size as f64 / f64::from(1 << 20);
    let speed = |row: &Row| mib / row.median(|run| run.seconds);
    writeln!(
        out,
        "\n{:<24} {:>8} {:>8} {:>9} {:>9} {:>10} {:>9}   MiB/s of each run",
        "medians", "MiB/s", "of bare", "CPU s", "tool CPU", "server CPU", "peak MiB"
    )?;
    for row in rows {
        let each: Vec<String> = row.runs.iter().map(|run| format!("{:.0}", mib / run.seconds)).collect();
        let peak = row.runs.iter().map(|run| run.peak_bytes).max().unwrap_or(0);
        writeln!(
            out,
            "{:<24} {:>8.0} {:>8.2} {:>9.2} {:>9.2} {:>10.2} {:>9}   {}",
            row.name,
            speed(row),
            speed(row) / speed(&rows[1]),
            row.median(|run| run.own_cpu),
            row.median(|run| run.tool_cpu),
            row.median(|run| run.server_cpu),
            if peak == 0 { "-".to_owned() } else { (peak >> 20).to_string() },
            each.join(" ")
        )?;
    }
    Ok(())
}

/// The server, the source and the client.
struct Bench<'a> {
    settings: &'a Settings,
    server: Child,
    spec: MountSpec,
    client: BosClient,
    runtime: tokio::runtime::Runtime,
    source: PathBuf,
    plan: PartPlan,
    /// Of the source.
    crc32c: u32,
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.server), Signal::TERM);
        if wait_child(&mut self.server, WAIT).is_none() {
            let _ = self.server.kill();
        }
    }
}

impl<'a> Bench<'a> {
    fn start(settings: &'a Settings) -> Result<Self> {
        let dir = &settings.dir;
        let store = dir.join("store");
        let mut server = Command::new(bosfs_binary())
            .arg("serve")
            .arg(&store)
            .args(["--listen", "127.0.0.1:0", "--bucket", BUCKET])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", bosfs_binary().display()))?;
        note_pid(dir, server.id())?;
        let mut line = String::new();
        if let Some(stdout) = server.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|e| format!("bosfs serve: {e}"))?;
        }
        let endpoint = line.trim().rsplit_once(' ').map(|(_, endpoint)| endpoint.to_owned()).unwrap_or_default();
        let keys = std::fs::read_to_string(store.join("credentials")).map_err(|e| format!("bosfs serve: {e}"))?;
        let value = |name: &str| {
            let line = keys.lines().find_map(|line| line.trim().strip_prefix(name))?;
            Some(line.trim_start_matches([' ', '=']).trim().to_owned())
        };
        let (Some(ak), Some(sk)) = (value("bce_access_key_id"), value("bce_secret_access_key")) else {
            return Err("bosfs serve wrote no keys that are understood".into());
        };
        let config =
            BosClientConfig::new(&endpoint, BUCKET, Arc::new(StaticCredentials::new(Credentials::new(ak, sk))));
        let client = BosClient::new(config).map_err(|e| e.to_string())?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| format!("runtime: {e}"))?;
        let spec = MountSpec {
            target: BUCKET.into(),
            dir: dir.join("mnt"),
            endpoint,
            credentials: store.join("credentials"),
            state_dir: dir.join("state"),
            args: settings.mount_args.clone(),
            env: Vec::new(),
            wrapper: Vec::new(),
            log: dir.join("bosfs.log"),
            binary: bosfs_binary(),
        };
        let source = dir.join("source");
        write_random(&source, 1, settings.size).map_err(|e| format!("{}: {e}", source.display()))?;
        let crc32c = crc32c_of_file(&source)?;
        let plan = PartPlan::growing(PART_BYTES);
        Ok(Self { settings, server, spec, client, runtime, source, plan, crc32c })
    }

    fn size(&self) -> u64 {
        self.settings.size
    }

    /// Nothing to be written back, the source cached, free memory at hand.
    fn settle(&self) -> Result<()> {
        rustix::fs::sync();
        read_through(&self.source)?;
        warm_memory(self.size() / 2 * 5);
        Ok(())
    }

    /// Runs `work` between two looks at clock and CPU counters; `own` is whose CPU counts.
    fn timed(&self, own: u32, work: impl FnOnce() -> Result<()>) -> Result<Run> {
        let me = std::process::id();
        let before = (cpu(own)?, cpu(self.server.id())?, children_cpu(me)?);
        let start = Instant::now();
        work()?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Run {
            seconds,
            own_cpu: cpu(own)? - before.0,
            server_cpu: cpu(self.server.id())? - before.1,
            tool_cpu: children_cpu(me)? - before.2,
            peak_bytes: 0,
        })
    }

    fn mount(&self) -> Result<(Mounted, u32)> {
        let mounted = self.spec.mount().map_err(|e| e.to_string())?;
        let pid = mounted.pid().ok_or("bosfs mount has ended")?;
        note_pid(&self.settings.dir, pid)?;
        Ok((mounted, pid))
    }

    fn write_mount(&self) -> Result<Run> {
        let (mut mounted, pid) = self.mount()?;
        self.settle()?;
        let target = mounted.path("copied");
        let mut run = self.timed(pid, || tool(Command::new("cp").arg(&self.source).arg(&target)))?;
        run.peak_bytes = peak_bytes(pid)?;
        self.check("copied")?;
        end(&mut mounted)?;
        self.remove("copied")?;
        Ok(run)
    }

    /// The object of the bare loop stays, for the readers.
    fn write_bare(&self) -> Result<Run> {
        self.settle()?;
        let run = self.timed(std::process::id(), || self.runtime.block_on(self.send_parts("bare")))?;
        self.check("bare")?;
        Ok(run)
    }

    fn write_disk(&self) -> Result<Run> {
        self.settle()?;
        let target = self.settings.dir.join("copy");
        let run = self.timed(std::process::id(), || tool(Command::new("cp").arg(&self.source).arg(&target)))?;
        std::fs::remove_file(&target).map_err(|e| e.to_string())?;
        Ok(Run { own_cpu: 0.0, ..run })
    }

    fn read_mount(&self) -> Result<Run> {
        let (mut mounted, pid) = self.mount()?;
        self.settle()?;
        let file = mounted.path("bare");
        let mut run = self.timed(pid, || tool(Command::new("cat").arg(&file)))?;
        run.peak_bytes = peak_bytes(pid)?;
        // What the kernel has cached of the file is what `cat` was given.
        let found = crc32c_of_file(&file)?;
        if found != self.crc32c {
            return Err(format!("the mount gave other bytes: CRC32C {found:08x}, not {:08x}", self.crc32c));
        }
        end(&mut mounted)?;
        Ok(run)
    }

    fn read_bare(&self) -> Result<Run> {
        self.settle()?;
        self.timed(std::process::id(), || self.runtime.block_on(self.fetch_ranges("bare")))
    }

    fn read_disk(&self) -> Result<Run> {
        self.settle()?;
        let run = self.timed(std::process::id(), || tool(Command::new("cat").arg(&self.source)))?;
        Ok(Run { own_cpu: 0.0, ..run })
    }

    /// Each part hashed, sent and compared; Complete; its CRC32C compared.
    async fn send_parts(&self, key: &str) -> Result<()> {
        let key = ObjectKey::parse(key).map_err(|e| e.to_string())?;
        let file = Arc::new(File::open(&self.source).map_err(|e| e.to_string())?);
        let headers = ObjectHeaders::default();
        let upload = self.client.initiate(&key, &headers).await.map_err(|e| e.to_string())?;
        let size = self.size();
        let sending = self.plan.parts_in(ByteRange::new(0, size)).map(|number| {
            let (client, key, upload, file) = (self.client.clone(), key.clone(), upload.clone(), file.clone());
            let range = self.plan.range_in(number, size);
            tokio::spawn(async move {
                let body = FileRange { file, range };
                let hashing = body.clone();
                let sum = tokio::task::spawn_blocking(move || hashing.hash()).await.map_err(|e| e.to_string())??;
                let body = Body::Source(Arc::new(body));
                let stored = client.upload_part(&key, &upload, number, body, &sum.md5).await;
                let stored = stored.map_err(|e| e.to_string())?;
                match stored.etag.is_md5(&sum.md5) {
                    true => Ok((number, stored.etag, sum)),
                    false => Err(format!("part {number} came back as {}", stored.etag)),
                }
            })
        });
        // `spawn` begins when the stream asks for it, so no more than these are on their way.
        let mut sending = futures_util::stream::iter(sending).buffered(UPLOADS_MAX);
        let mut parts = Vec::new();
        let mut crcs = Crcs::default();
        while let Some(sent) = sending.next().await {
            let (number, etag, sum) = sent.map_err(|e| e.to_string())??;
            crcs = crcs.then(sum.crcs, sum.len);
            parts.push((number, etag));
        }
        drop(sending);
        let stored = self.client.complete(&key, &upload, &parts, &headers, &Condition::Any).await;
        let stored = stored.map_err(|e| e.to_string())?;
        match stored.crc32c {
            Some(found) if found != crcs.crc32c => Err("the object has another CRC32C than its parts".into()),
            _ => Ok(()),
        }
    }

    async fn fetch_ranges(&self, key: &str) -> Result<()> {
        let key = ObjectKey::parse(key).map_err(|e| e.to_string())?;
        let etag = self.client.head_object(&key).await.map_err(|e| e.to_string())?.etag;
        let size = self.size();
        let fetching = (0..size.div_ceil(GET_BYTES)).map(|n| {
            let range = ByteRange::at(n * GET_BYTES, GET_BYTES).intersect(ByteRange::new(0, size));
            let (client, key, etag) = (self.client.clone(), key.clone(), etag.clone());
            tokio::spawn(async move { client.get_range(&key, range, Some(&etag)).await.map_err(|e| e.to_string()) })
        });
        let mut fetching = futures_util::stream::iter(fetching).buffered(GETS_AT_ONCE);
        let mut got = 0;
        while let Some(bytes) = fetching.next().await {
            got += bytes.map_err(|e| e.to_string())??.len() as u64;
        }
        if got == size { Ok(()) } else { Err(format!("{got} bytes came instead of {size}")) }
    }

    /// The object is the source: size, and the CRC32C that the server computed.
    fn check(&self, key: &str) -> Result<()> {
        let key = ObjectKey::parse(key).map_err(|e| e.to_string())?;
        let head = self.runtime.block_on(self.client.head_object(&key)).map_err(|e| e.to_string())?;
        if (head.size, head.crc32c) != (self.size(), Some(self.crc32c)) {
            return Err(format!(
                "{key} has {} bytes and CRC32C {:08x?}, the source {} and {:08x}",
                head.size,
                head.crc32c,
                self.size(),
                self.crc32c
            ));
        }
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<()> {
        let key = ObjectKey::parse(key).map_err(|e| e.to_string())?;
        let removed = self.runtime.block_on(self.client.remove_object(&key, None, |_| true));
        removed.map_err(|e| e.to_string()).map(drop)
    }
}

/// A range of the source as the body of a part.
#[derive(Clone)]
struct FileRange {
    file: Arc<File>,
    range: ByteRange,
}

impl FileRange {
    fn hash(&self) -> Result<bosfs::object::Checksum> {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; HASH_BYTES];
        let mut at = 0;
        while at < self.range.len() {
            let len = buffer.len().min((self.range.len() - at) as usize);
            self.read_at(at, &mut buffer[..len]).map_err(|e| e.to_string())?;
            hasher.update(&buffer[..len]);
            at += len as u64;
        }
        Ok(hasher.finish())
    }
}

impl BodySource for FileRange {
    fn len(&self) -> u64 {
        self.range.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(buf, self.range.start + offset)
    }
}

/// Runs `cp` or `cat` to its end; what it prints goes nowhere.
fn tool(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    match status.map_err(|e| format!("{command:?}: {e}"))? {
        status if status.success() => Ok(()),
        status => Err(format!("{command:?}: {status}")),
    }
}

fn end(mounted: &mut Mounted) -> Result<()> {
    let output = mounted.umount(WAIT);
    if output.status.success() { Ok(()) } else { Err(format!("bosfs umount: {output:?}\n{}", mounted.log_text())) }
}

fn note_pid(dir: &Path, pid: u32) -> Result<()> {
    let file = File::options().create(true).append(true).open(dir.join("pids"));
    file.and_then(|mut file| writeln!(file, "{pid}")).map_err(|e| format!("{}/pids: {e}", dir.display()))
}

/// CPU seconds that a process has used.
fn cpu(pid: u32) -> Result<f64> {
    stat_seconds(pid, 11)
}

/// CPU seconds of its children that have ended and were waited for.
fn children_cpu(pid: u32) -> Result<f64> {
    stat_seconds(pid, 13)
}

/// The sum of fields `n` and `n + 1` after the command name, which are ticks.
fn stat_seconds(pid: u32, n: usize) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| format!("process {pid}: {e}"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(n) + ticks(n + 1)) / TICKS_PER_S)
}

/// `VmHWM`, bytes.
fn peak_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| format!("process {pid}: {e}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.ok_or("no VmHWM in /proc/PID/status")? << 10)
}

fn read_through(path: &Path) -> Result<()> {
    crc32c_of_file(path).map(drop)
}

fn crc32c_of_file(path: &Path) -> Result<u32> {
    let told = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = File::open(path).map_err(told)?;
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(told)? {
            0 => return Ok(digest.finalize() as u32),
            n => digest.update(&buffer[..n]),
        }
    }
}

/// Touches `bytes` of free memory and gives it back: a virtual machine's host may have taken it away meanwhile, and
/// getting it back would be measured in place of the copy. Memory in use, the page cache included, is left alone.
fn warm_memory(bytes: u64) {
    const PIECE_BYTES: usize = 64 << 20;
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free_kib = meminfo.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let free_kib = free_kib.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    let pieces = bytes.min(free_kib / 10 * 9 * 1024) / PIECE_BYTES as u64;
    let touched: Vec<Vec<u8>> = (0..pieces).map(|_| vec![1; PIECE_BYTES]).collect();
    drop(std::hint::black_box(touched));
}
