//! Writers that close in unusual ways, and what of them is published.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::report::{Limit, Report};
use crate::support::mounted::{run as run_command, wait_child};
use crate::support::{Call, KeyWatch, World};
use crate::{Sizes, WAIT, shell, succeeded, text};

/// Two threads write 6 MiB; the program ends by itself, at once, or waits to be killed. It never closes the file.
const THREADED: &str = r#"
import os, sys, threading, time
path, mode = sys.argv[1], sys.argv[2]
fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
def work(start):
    for i in range(start, 6 << 20, 2 << 16):
        os.pwrite(fd, bytes([i >> 16 & 255]) * (1 << 16), i)
threads = [threading.Thread(target=work, args=(s,)) for s in (0, 1 << 16)]
for t in threads: t.start()
for t in threads: t.join()
if mode == "at-once":
    # A thread is still there.
    threading.Thread(target=time.sleep, args=(100,)).start()
    os._exit(0)
if mode == "wait":
    print("written", flush=True)
    time.sleep(100)
"#;
const THREADED_BYTES: u64 = 6 << 20;

pub fn run(_: &Sizes, report: &mut Report) {
    report.scene("for i in $(seq 1000); do date; done > log", shell_loop);
    report.scene("a threaded program that never closes its file", threaded);
}

fn shell_loop(world: &World, report: &mut Report) -> Result<(), String> {
    let mount = world.spec(&[]).mount().map_err(text)?;
    let watch = KeyWatch::start(&world.bucket, "log");
    world.proxy.take_counts();
    shell(&format!("for i in $(seq 1000); do date; done > {}/log", mount.dir().display()))?;
    mount.wait_settled("log", WAIT);
    let whole = world.bucket.get("log").map_err(text)?;
    // One more look of the watch at the end.
    let looks = watch.looks();
    let end = Instant::now() + Duration::from_secs(5);
    while watch.looks() < looks + 2 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let counts = world.proxy.counts();
    let publications = counts.requests(Call::PutObject) + counts.requests(Call::Complete);
    report.check("publications", publications, Limit::Between(1, 3));
    report.note("requests in all", counts.requests_all());
    let lines = whole.split_inclusive(|byte| *byte == b'\n').filter(|line| line.len() > 10).count() as u64;
    report.check("lines of the object at the end", lines, Limit::Exactly(1000));
    // An empty file at its creation is whole: the shell has truncated it.
    let partial = watch.half_files(&[0, whole.len() as u64]);
    report.check("partial logs seen by HEAD", partial.len() as u64, Limit::Exactly(0));
    report.note("HEADs of the watch", watch.looks());
    let last = watch.states().last().cloned().flatten();
    report.check_that("the last HEAD shows the whole", last.is_some_and(|seen| seen.size == whole.len() as u64));
    Ok(())
}

fn threaded(world: &World, report: &mut Report) -> Result<(), String> {
    let mount = world.spec(&["--part-size", "5MiB"]).mount().map_err(text)?;
    let expected: Vec<u8> = (0..THREADED_BYTES >> 16).flat_map(|i| vec![i as u8; 1 << 16]).collect();
    for (mode, what) in [("exit", "exits 0"), ("at-once", "calls _exit(0) beside a living thread")] {
        let mut command = Command::new("python3");
        succeeded("python3", run_command(command.args(["-c", THREADED]).arg(mount.path(mode)).arg(mode), WAIT))?;
        world.wait_object(mode, THREADED_BYTES, WAIT);
        report.check_that(&format!("{what}: published whole"), world.bucket.get(mode).map_err(text)? == expected);
    }
    let mut command = Command::new("python3");
    let mut child = command
        .args(["-c", THREADED])
        .arg(mount.path("killed"))
        .arg("wait")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(text)?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no pipe")?).read_line(&mut line).map_err(text)?;
    kill_process(Pid::from_child(&child), Signal::TERM).map_err(text)?;
    wait_child(&mut child, WAIT).ok_or("python3 survives SIGTERM")?;
    mount.wait_state("killed", WAIT, |entry| entry.is_some_and(|e| e["state"] == "interrupted"));
    report.check_that("killed by SIGTERM: listed as interrupted", line == "written\n");
    // A publication behind our back would come now.
    std::thread::sleep(Duration::from_millis(500));
    report.check_that("killed by SIGTERM: not published", world.bucket.head("killed").map_err(text)?.is_none());
    Ok(())
}
