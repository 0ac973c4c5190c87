//! `rsync -aX` of a real tree into a mount: what it costs, call by call, and that nothing is lost on the way.
//!
//! The tree of the Rust toolchain (or `--source DIR`) is copied into an empty bucket, then copied again; objects are
//! fetched past the mount; the tree is compared once more after a remount that knows only what is in BOS. The same with a
//! file of 1 GiB, and with a small tree of odd names and symlinks. Ends with a non-zero code on any miss.
//!
//! `rsync-toolchain [--source DIR] [--large 1GiB]`

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use bosfs::config::units::parse_size;
use support::bucket::Bucket;
use support::counts::Counts;
use support::files::{md5_of_file, write_random};
use support::mounted::run;
use support::rsync_cost::{Survey, calls_text};
use support::tree::{Times, Tree, differences, read_attributes, read_tree};
use support::{Call, Mounted, World};

/// Longest time of one command.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// The default part size.
const PART_BYTES: u64 = 8 << 20;
/// Differences that are told.
const TOLD_MAX: usize = 20;
const FETCH_THREADS: usize = 4;
/// Without a request for so long, nothing is on its way any more.
const IDLE: Duration = Duration::from_secs(4);
/// `rsync -a`, and extended attributes, which the odd tree has.
const RSYNC: [&str; 2] = ["-aX", "--itemize-changes"];

/// Everything that was not as it must be.
#[derive(Default)]
struct Misses(Vec<String>);

impl Misses {
    fn add(&mut self, where_: &str, misses: Vec<String>) {
        for miss in misses.iter().take(TOLD_MAX) {
            println!("  MISS {where_}: {miss}");
        }
        if misses.len() > TOLD_MAX {
            println!("  MISS {where_}: and {} more", misses.len() - TOLD_MAX);
        }
        self.0.extend(misses);
    }
}

fn main() -> ExitCode {
    match Settings::read().and_then(|settings| measure(&settings)) {
        Ok(misses) if misses.0.is_empty() => {
            println!("rsync-toolchain passed");
            ExitCode::SUCCESS
        }
        Ok(misses) => {
            println!("rsync-toolchain FAILED: {} misses", misses.0.len());
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("rsync-toolchain: {message}");
            ExitCode::from(2)
        }
    }
}

struct Settings {
    source: PathBuf,
    large_bytes: u64,
}

impl Settings {
    fn read() -> Result<Self, String> {
        let (mut source, mut large_bytes) = (None, 1 << 30);
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--source" => source = Some(PathBuf::from(value)),
                "--large" => large_bytes = parse_size(&value).map_err(|e| e.to_string())?,
                _ => return Err(format!("unknown option {name}")),
            }
        }
        let source = match source {
            Some(source) => source,
            None => {
                let output = run(Command::new("rustc").args(["--print", "sysroot"]), TIMEOUT);
                PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
            }
        };
        Ok(Self { source, large_bytes })
    }
}

fn measure(settings: &Settings) -> Result<Misses, String> {
    let text = |e: std::io::Error| e.to_string();
    let world = World::try_new().map_err(text)?;
    let odd = world.path("odd");
    support::odd_tree::make(&odd);
    let large = world.path("large");
    std::fs::create_dir(&large).map_err(text)?;
    write_random(&large.join("big"), 7, settings.large_bytes).map_err(text)?;

    let mut misses = Misses::default();
    let mut mount = world.spec(&[]).mount().map_err(text)?;
    let trees = [("toolchain", settings.source.as_path()), ("odd", &odd), ("large", &large)];
    for (name, source) in trees {
        let survey = Survey::of(source, PART_BYTES).map_err(text)?;
        println!(
            "{name}: {} files of one part, {} larger ones of {} parts, {} symlinks, {} directories, {} MiB",
            survey.small,
            survey.large,
            survey.parts,
            survey.symlinks,
            survey.dirs,
            survey.bytes >> 20
        );
        let (_, itemized) = rsync(&world, &mount, name, source, "first run", &mut misses);
        // What was gathered (attributes of symlinks, markers of directories) belongs to this run.
        wait_idle(&world)?;
        let counts = world.proxy.counts();
        println!("    with what came behind: {}", calls_text(&counts));
        println!("    {:.3} requests per file; {} names", survey.per_file(&counts), itemized.lines().count());
        // In a tree of a few files the directory's own requests weigh more than the files'.
        if survey.files() >= 100 {
            misses.add(name, survey.first_run_misses(&counts));
        } else {
            misses.add(name, few_files_misses(&survey, &counts));
        }
        let (counts, itemized) = rsync(&world, &mount, name, source, "second run", &mut misses);
        misses.add(name, survey.unchanged_run_misses(&counts, &itemized));
    }
    umount(&mut mount, &mut misses);
    let mut mount = world.spec(&[]).mount().map_err(text)?;
    for (name, source) in trees {
        let survey = Survey::of(source, PART_BYTES).map_err(text)?;
        let (counts, itemized) = rsync(&world, &mount, name, source, "run of a new process", &mut misses);
        misses.add(name, survey.unchanged_run_misses(&counts, &itemized));
    }
    umount(&mut mount, &mut misses);
    for (name, source) in trees {
        let start = Instant::now();
        let fetched = fetch_all(&world.bucket, name, source)?;
        println!("{name}: {} objects fetched past the mount in {:.0} s", fetched.0, start.elapsed().as_secs_f64());
        misses.add(&format!("{name}, objects"), fetched.1);
    }
    println!("remount with an empty state directory");
    std::fs::remove_dir_all(world.state_dir()).map_err(text)?;
    let mut mount = world.spec(&[]).mount().map_err(text)?;
    for (name, source) in trees {
        compare(&world, &mount, name, source, &mut misses)?;
    }
    umount(&mut mount, &mut misses);
    let uploads = world.bucket.uploads("").map_err(text)?;
    misses.add("bucket", uploads.iter().map(|upload| format!("unfinished upload {upload:?}")).collect());
    Ok(misses)
}

/// Waits until bosfs has asked for nothing for longer than it gathers anything.
fn wait_idle(world: &World) -> Result<(), String> {
    let (end, mut before, mut since) = (Instant::now() + TIMEOUT, 0, Instant::now());
    while since.elapsed() < IDLE {
        let now = world.proxy.counts().requests_all();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        if Instant::now() > end {
            return Err("the mount never comes to rest".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A file of more than one part costs its parts and two requests; what else is asked are listings.
fn few_files_misses(survey: &Survey, counts: &Counts) -> Vec<String> {
    let mut misses = Vec::new();
    let sent = counts.requests(Call::Initiate) + counts.requests(Call::UploadPart) + counts.requests(Call::Complete);
    if sent != survey.parts + 2 * survey.large {
        misses.push(format!("{sent} requests for {} parts of {} files", survey.parts, survey.large));
    }
    for (call, most) in [
        // A symlink is there once it is made; rsync sets its owner and time afterwards.
        (Call::CopyObject, survey.symlinks),
        // Of the folder that receives the tree.
        (Call::HeadObject, 1),
        (Call::UploadPartCopy, 0),
        (Call::DeleteObject, 0),
        (Call::BatchDelete, 0),
        (Call::GetObject, 0),
    ] {
        if counts.requests(call) > most {
            misses.push(format!("{} {call}, at most {most}", counts.requests(call)));
        }
    }
    misses
}

/// `rsync -aX SOURCE/ MOUNT/NAME/`: what it cost and what it itemized.
fn rsync(
    world: &World,
    mount: &Mounted,
    name: &str,
    source: &Path,
    what: &str,
    misses: &mut Misses,
) -> (Counts, String) {
    world.proxy.take_counts();
    let start = Instant::now();
    let mut command = Command::new("rsync");
    command.args(RSYNC).arg(slashed(source)).arg(slashed(&mount.path(name)));
    let output = run(&mut command, TIMEOUT);
    let took = start.elapsed().as_secs_f64();
    let counts = world.proxy.counts();
    println!("  {what}: {took:.1} s, {} requests: {}", counts.requests_all(), calls_text(&counts));
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        misses.add(
            name,
            vec![format!("{what}: {}: {}", output.status, said.lines().take(5).collect::<Vec<_>>().join(" | "))],
        );
    }
    (counts, String::from_utf8_lossy(&output.stdout).into_owned())
}

fn slashed(path: &Path) -> String {
    format!("{}/", path.display())
}

fn umount(mount: &mut Mounted, misses: &mut Misses) {
    let start = Instant::now();
    let output = mount.umount(TIMEOUT);
    println!("umount: {:.1} s", start.elapsed().as_secs_f64());
    if !output.status.success() {
        misses.add("umount", vec![String::from_utf8_lossy(&output.stderr).into_owned()]);
    }
}

/// GETs every object of a tree; the number of files, and what differs.
fn fetch_all(bucket: &Bucket, name: &str, source: &Path) -> Result<(usize, Vec<String>), String> {
    let tree = read_attributes(source).map_err(|e| e.to_string())?;
    let files: Vec<_> = tree.iter().filter(|(_, entry)| entry.is_file()).map(|(path, _)| path.clone()).collect();
    let threads: Vec<_> = (0..FETCH_THREADS)
        .map(|thread| {
            let mine: Vec<_> = files.iter().skip(thread).step_by(FETCH_THREADS).cloned().collect();
            let (bucket, name, source) = (bucket.clone(), name.to_owned(), source.to_owned());
            std::thread::spawn(move || mine.iter().filter_map(|path| fetch(&bucket, &name, &source, path)).collect())
        })
        .collect();
    let mut wrong: Vec<String> = Vec::new();
    for thread in threads {
        let found: Vec<String> = thread.join().map_err(|_| "a fetching thread ended badly".to_owned())?;
        wrong.extend(found);
    }
    Ok((files.len(), wrong))
}

fn fetch(bucket: &Bucket, name: &str, source: &Path, path: &Path) -> Option<String> {
    let Some(text) = path.to_str() else { return Some(format!("{path:?} is not UTF-8")) };
    let expected = match md5_of_file(&source.join(path)) {
        Ok(md5) => md5,
        Err(e) => return Some(format!("{path:?}: {e}")),
    };
    match bucket.get_md5(&format!("{name}/{text}")) {
        Ok((md5, _)) if md5 == expected => None,
        Ok((md5, size)) => Some(format!("object {path:?}: {size} bytes, MD5 {md5:?}, expected {expected:?}")),
        Err(e) => Some(format!("object {path:?}: {e}")),
    }
}

/// Both by rsync and by a comparison of our own.
fn compare(world: &World, mount: &Mounted, name: &str, source: &Path, misses: &mut Misses) -> Result<(), String> {
    let (start, target) = (Instant::now(), mount.path(name));
    world.proxy.take_counts();
    let mut command = Command::new("rsync");
    let output = run(command.args(RSYNC).args(["-nc", "--delete"]).arg(slashed(source)).arg(slashed(&target)), TIMEOUT);
    let itemized = String::from_utf8_lossy(&output.stdout).into_owned();
    misses.add(&format!("{name}, rsync -aXnc"), itemized.lines().map(str::to_owned).collect());
    if !output.status.success() {
        misses.add(&format!("{name}, rsync -aXnc"), vec![output.status.to_string()]);
    }
    // rsync has compared the content of the toolchain; reading it twice takes minutes.
    let read: fn(&Path) -> std::io::Result<Tree> = if name == "toolchain" { read_attributes } else { read_tree };
    let expected = read(source).map_err(|e| e.to_string())?;
    let found = read(&target).map_err(|e| format!("{e}\n{}", world.log_text()))?;
    misses.add(&format!("{name}, by stat"), differences(&expected, &found, Times::All));
    println!(
        "  {name}: {} names compared in {:.0} s; {}",
        found.len(),
        start.elapsed().as_secs_f64(),
        calls_text(&world.proxy.counts())
    );
    Ok(())
}
