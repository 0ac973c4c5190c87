//! Looks at processes all the time: whether one is stuck in the kernel (state D), where no signal reaches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Seen {
    /// Each with its start: in an hour a number may be given to another process, which may use another mount.
    processes: Vec<(u32, String)>,
    samples: u64,
    longest: Duration,
    stack: String,
    /// Processes whose wait was interrupted.
    interrupted: u64,
}

/// Place of `starttime` in `/proc/PID/stat`, counted from the state (proc(5)).
const STARTED_FIELD: usize = 19;

/// A thread that looks at some processes and all their threads.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    pub fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let processes = started(pid).map(|start| (pid, start)).into_iter().collect();
        let seen = Arc::new(Mutex::new(Seen { processes, ..Seen::default() }));
        let (stopped, kept) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut since = std::collections::HashMap::new();
            while !stopped.load(Ordering::SeqCst) {
                let processes = kept.lock().processes.clone();
                let (living, ended): (Vec<_>, Vec<_>) =
                    processes.into_iter().partition(|(pid, start)| started(*pid).as_ref() == Some(start));
                for (pid, start) in &living {
                    look(*pid, start, &mut since, &kept);
                }
                kept.lock().processes.retain(|process| !ended.contains(process));
                std::thread::sleep(PAUSE);
            }
        });
        Self { stop, seen, thread: Some(thread) }
    }

    /// Looks at this process, too.
    pub fn add(&self, pid: u32) {
        if let Some(start) = started(pid) {
            self.seen.lock().processes.push((pid, start));
        }
    }

    /// The longest time that a thread was in state D without a break, waiting for a FUSE file system.
    pub fn longest_wait(&self) -> Duration {
        self.seen.lock().longest
    }

    /// The wait of a process is about to be ended by a signal. From the first one on the kernel shows every wait for this
    /// mount as D: fuser answers INTERRUPT with ENOSYS, and bosfs looks for signals itself. Such waits are not counted;
    /// whoever interrupts one sees that it ends.
    pub fn interrupting(&self) {
        self.seen.lock().interrupted += 1;
    }

    /// How many waits were ended so.
    pub fn interrupted(&self) -> u64 {
        self.seen.lock().interrupted
    }

    /// Where in the kernel it was then.
    pub fn stack(&self) -> String {
        self.seen.lock().stack.clone()
    }

    /// Threads looked at.
    pub fn samples(&self) -> u64 {
        self.seen.lock().samples
    }

    /// Processes that are looked at.
    fn watched(&self) -> usize {
        self.seen.lock().processes.len()
    }
}

#[test]
fn a_process_that_ended_is_looked_at_no_more() {
    let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let sampler = Sampler::start(std::process::id());
    sampler.add(child.id());
    assert_eq!(sampler.watched(), 2);
    child.kill().unwrap();
    child.wait().unwrap();
    crate::wait_until("it is forgotten", || sampler.watched() == 1);
    std::thread::sleep(3 * PAUSE);
    assert_eq!(sampler.watched(), 1, "this process goes on");
}

/// When a process was started, in ticks since the boot; `None`: there is none of this number.
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_ascii_whitespace().nth(STARTED_FIELD).map(str::to_owned)
}

fn look(pid: u32, start: &str, since: &mut std::collections::HashMap<String, Instant>, seen: &Mutex<Seen>) {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
    for thread in threads.flatten().map(|entry| entry.path()) {
        let Ok(stat) = std::fs::read_to_string(thread.join("stat")) else { continue };
        seen.lock().samples += 1;
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let name = format!("{} of {start}", thread.display());
        let is_stuck = rest.starts_with('D');
        // A wait for the disk is none for the mount; where the stack cannot be read, every wait counts.
        let stack =
            if is_stuck { std::fs::read_to_string(thread.join("stack")).unwrap_or_default() } else { String::new() };
        if !is_stuck || !(stack.is_empty() || stack.contains("fuse")) {
            since.remove(&name);
            continue;
        }
        let began = *since.entry(name).or_insert_with(Instant::now);
        let mut seen = seen.lock();
        if seen.interrupted == 0 && began.elapsed() >= seen.longest {
            seen.longest = began.elapsed();
            seen.stack = format!("{stat}{stack}");
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
