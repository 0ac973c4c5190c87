//! Kills bosfs with SIGKILL at named moments of an upload, and at random ones, and looks what becomes of the file.
//!
//! Each named moment is held open by the fault proxy (or seen in the journal) and counted: a moment that was never hit
//! fails the run. After each kill the bucket is mounted again; `cp` is run again only where it had been cut off. Then: the
//! object's MD5, by a GET past mount and proxy, is that of the source; no part was taken twice; the bytes sent are at most
//! the file's size and the parts in flight at each kill; a HEAD poller never saw anything but the whole file.
//!
//! `kill-test [--rounds 5] [--random 30] [--size 2GiB] [--part-size 8MiB] [--seed 1] [--phase NAME]...`

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bosfs::config::units::parse_size;
use bosfs::object::Md5;
use rustix::process::Signal;
use support::fault::{Rule, RuleSpec};
use support::files::{md5_of_file, splitmix64, write_random};
use support::mounted::{SlowWriter, cp, start_cp, wait_child};
use support::{Action, Call, HoldAt, KeyWatch, Mounted, When, World};

const KEY: &str = "huge.iso";
/// Longest wait for a moment, or for a recovery to end.
const WAIT: Duration = Duration::from_secs(300);
/// Tries to stop bosfs between two steps that no request separates.
const CATCH_TRIES: u32 = 8;
/// How long it runs at a time then.
const STEP: Duration = Duration::from_micros(200);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    WhileWriting,
    LastPartsInFlight,
    BeforeComplete,
    CompleteUnanswered,
    ProofUnanswered,
    BeforeSpoolRemoved,
    DuringRecovery,
    Random,
}

impl Phase {
    const NAMED: [Phase; 7] = [
        Phase::WhileWriting,
        Phase::LastPartsInFlight,
        Phase::BeforeComplete,
        Phase::CompleteUnanswered,
        Phase::ProofUnanswered,
        Phase::BeforeSpoolRemoved,
        Phase::DuringRecovery,
    ];

    fn name(self) -> &'static str {
        match self {
            Phase::WhileWriting => "while-writing",
            Phase::LastPartsInFlight => "last-parts-in-flight",
            Phase::BeforeComplete => "between-last-part-and-complete",
            Phase::CompleteUnanswered => "complete-acted-unanswered",
            Phase::ProofUnanswered => "proof-unanswered",
            Phase::BeforeSpoolRemoved => "before-spool-removed",
            Phase::DuringRecovery => "during-recovery",
            Phase::Random => "random-moment",
        }
    }

    /// Whether the writer has closed the file at that moment, so that the mount alone must finish it.
    fn is_closed(self) -> bool {
        !matches!(self, Phase::WhileWriting | Phase::Random)
    }
}

struct Settings {
    rounds: u32,
    random: u32,
    size: u64,
    part_size: u64,
    seed: u64,
    phases: Vec<Phase>,
}

impl Settings {
    fn read() -> Result<Self, String> {
        let mut settings =
            Self { rounds: 5, random: 30, size: 2 << 30, part_size: 8 << 20, seed: 1, phases: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number = || value.parse::<u64>().map_err(|e| format!("{name} {value}: {e}"));
            match name.as_str() {
                "--rounds" => settings.rounds = number()? as u32,
                "--random" => settings.random = number()? as u32,
                "--seed" => settings.seed = number()?,
                "--size" => settings.size = parse_size(&value).map_err(|e| e.to_string())?,
                "--part-size" => settings.part_size = parse_size(&value).map_err(|e| e.to_string())?,
                "--phase" => {
                    let found = Phase::NAMED.into_iter().chain([Phase::Random]).find(|p| p.name() == value);
                    settings.phases.push(found.ok_or_else(|| format!("no phase {value}"))?);
                }
                _ => return Err(format!("unknown option {name}")),
            }
        }
        if settings.size < 4 * settings.part_size {
            return Err("--size must be at least four parts".into());
        }
        if settings.phases.is_empty() {
            settings.phases = Phase::NAMED.into_iter().chain([Phase::Random]).collect();
        }
        Ok(settings)
    }

    fn part_count(&self) -> u32 {
        self.size.div_ceil(self.part_size) as u32
    }
}

/// What a round showed.
#[derive(Default)]
struct Round {
    hits: u64,
    kept: u64,
    sent_bytes: u64,
    allowed_bytes: u64,
    copied_again: bool,
    looks: u64,
}

/// The file that is copied.
struct Source {
    path: PathBuf,
    md5: Md5,
}

fn main() -> ExitCode {
    match Settings::read().and_then(|settings| run(&settings)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("kill-test: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(settings: &Settings) -> Result<bool, String> {
    let folder = tempfile::TempDir::with_prefix("bosfs-kill-").map_err(|e| e.to_string())?;
    let path = folder.path().join("source");
    println!(
        "kill test: {} MiB in {} parts, {} rounds each, {} random moments, seed {}",
        settings.size >> 20,
        settings.part_count(),
        settings.rounds,
        settings.random,
        settings.seed
    );
    write_random(&path, settings.seed, settings.size).map_err(|e| e.to_string())?;
    let source = Source { md5: md5_of_file(&path).map_err(|e| e.to_string())?, path };
    let undisturbed = time_undisturbed(settings, &source)?;
    println!("undisturbed cp: {:.1} s", undisturbed.as_secs_f64());
    let mut table = Vec::new();
    let mut good = true;
    for &phase in &settings.phases {
        let rounds = if phase == Phase::Random { settings.random } else { settings.rounds };
        let mut failures = 0;
        let mut done = Vec::new();
        for n in 0..rounds {
            let start = Instant::now();
            match round(settings, &source, phase, n) {
                Ok(round) => {
                    println!(
                        "  {} {}/{rounds}: ok in {:.1} s, {} hit(s), {} parts kept, sent {} of at most {} bytes{}",
                        phase.name(),
                        n + 1,
                        start.elapsed().as_secs_f64(),
                        round.hits,
                        round.kept,
                        round.sent_bytes,
                        round.allowed_bytes,
                        if round.copied_again { ", cp run again" } else { "" }
                    );
                    done.push(round);
                }
                Err(message) => {
                    failures += 1;
                    println!("  {} {}/{rounds}: FAILED: {message}", phase.name(), n + 1);
                }
            }
        }
        let hits: u64 = done.iter().map(|round| round.hits).sum();
        if rounds > 0 && (hits == 0 || failures > 0) {
            good = false;
        }
        table.push((phase, rounds, failures, hits, done));
    }
    println!(
        "\n{:<32} {:>6} {:>6} {:>6} {:>10} {:>12} {:>8}",
        "moment", "rounds", "failed", "hits", "kept parts", "sent/size", "looks"
    );
    for (phase, rounds, failures, hits, done) in &table {
        let kept: u64 = done.iter().map(|round| round.kept).sum();
        let looks: u64 = done.iter().map(|round| round.looks).sum();
        let most = done.iter().map(|round| round.sent_bytes).max().unwrap_or(0) as f64 / settings.size as f64;
        let name = phase.name();
        println!("{name:<32} {rounds:>6} {failures:>6} {hits:>6} {kept:>10} {most:>12.4} {looks:>8}");
    }
    println!("{}", if good { "kill test passed" } else { "kill test FAILED" });
    Ok(good)
}

fn mount_args(settings: &Settings, write_back: bool) -> Vec<String> {
    let mut args = vec!["--part-size".to_owned(), settings.part_size.to_string()];
    if write_back {
        args.push("--write-back".to_owned());
    }
    args
}

fn mount(world: &World, settings: &Settings, write_back: bool) -> Result<Mounted, String> {
    let args = mount_args(settings, write_back);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    world.spec(&args).mount().map_err(|e| e.to_string())
}

/// One copy without a kill: its time, and that the tool itself works.
fn time_undisturbed(settings: &Settings, source: &Source) -> Result<Duration, String> {
    let world = World::try_new().map_err(|e| e.to_string())?;
    let mount = mount(&world, settings, false)?;
    let start = Instant::now();
    let output = cp(&source.path, mount.path(KEY), WAIT);
    if !output.status.success() {
        return Err(format!("an undisturbed cp fails: {output:?}\n{}", world.log_text()));
    }
    let took = start.elapsed();
    check_object(&world, settings, source)?;
    Ok(took)
}

fn check_object(world: &World, settings: &Settings, source: &Source) -> Result<(), String> {
    let (md5, size) = world.bucket.get_md5(KEY).map_err(|e| e.to_string())?;
    if (md5, size) != (source.md5, settings.size) {
        return Err(format!(
            "the object has {size} bytes and MD5 {md5:?}, the source {} and {:?}",
            settings.size, source.md5
        ));
    }
    Ok(())
}

fn round(settings: &Settings, source: &Source, phase: Phase, n: u32) -> Result<Round, String> {
    let world = World::try_new().map_err(|e| e.to_string())?;
    // Where the writer has closed, half of the rounds let `close` answer first.
    let write_back = phase.is_closed() && n % 2 == 1;
    let mut mount = mount(&world, settings, write_back)?;
    let watch = KeyWatch::start(&world.bucket, KEY);
    let random = splitmix64(settings.seed ^ (u64::from(n) << 8) ^ phase as u64);
    let mut kills = Kills { world: &world, settings, allowed_bytes: settings.size };
    let result = strike(settings, source, phase, n, random, &mut mount, &mut kills);
    let hits = result.map_err(|e| format!("{e}\n{}", tail(&world.log_text())))?;
    world.proxy.clear_rules();
    world.wait_quiet();
    if mount.has_ended() || mount.pid().is_none() {
        mount.remount().map_err(|e| e.to_string())?;
    }
    let mut round = Round { hits, ..Round::default() };
    finish(&world, &mount, source, phase, &mut round)
        .and_then(|()| check_object(&world, settings, source))
        .map_err(|e| format!("{e}\n{}\n{}", tail(&world.proxy.counts().log_text()), tail(&world.log_text())))?;
    let counts = world.proxy.counts();
    round.sent_bytes = counts.bytes_sent();
    round.allowed_bytes = kills.allowed_bytes;
    round.looks = watch.looks();
    let twice = counts.parts_accepted_twice(KEY);
    if !twice.is_empty() {
        return Err(format!("parts taken twice by the server: {twice:?}\n{}", tail(&counts.log_text())));
    }
    if round.sent_bytes > round.allowed_bytes {
        return Err(format!(
            "{} bytes sent, {} allowed\n{}",
            round.sent_bytes,
            round.allowed_bytes,
            tail(&counts.log_text())
        ));
    }
    let half = watch.half_files(&[settings.size]);
    if !half.is_empty() {
        return Err(format!("half files were published: sizes {half:?}"));
    }
    let end = Instant::now() + Duration::from_secs(10);
    while !world.journals().is_empty() {
        if Instant::now() > end {
            return Err(format!("the journal stays although the object is proved: {:?}", world.journals()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(round)
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Kills, and notes what may have been under way.
struct Kills<'a> {
    world: &'a World,
    settings: &'a Settings,
    allowed_bytes: u64,
}

impl Kills<'_> {
    fn kill(&mut self, mount: &mut Mounted) {
        // Stopped first, so that the parts in flight are exactly those that the proxy shows.
        mount.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(20));
        let open = self.world.proxy.counts().of(Call::UploadPart).open;
        self.allowed_bytes += open * self.settings.part_size;
        mount.kill();
    }

    /// Kills at this very moment; any upload slot may have been busy.
    fn kill_at_once(&mut self, mount: &mut Mounted) {
        let open = self.world.proxy.counts().of(Call::UploadPart).open_max;
        mount.kill();
        self.allowed_bytes += open * self.settings.part_size;
    }
}

fn wait_hits(rule: &Rule, hits: u64, what: &str) -> Result<u64, String> {
    match rule.wait_hits(hits, WAIT) {
        true => Ok(rule.hits()),
        false => Err(format!("{what} never came (0 hits)")),
    }
}

/// Brings bosfs to the moment and kills it there. Returns the hits.
fn strike(
    settings: &Settings,
    source: &Source,
    phase: Phase,
    n: u32,
    random: u64,
    mount: &mut Mounted,
    kills: &mut Kills<'_>,
) -> Result<u64, String> {
    let proxy = &kills.world.proxy;
    let parts = settings.part_count();
    let target = mount.path(KEY);
    let last_parts = || When::call(Call::UploadPart).key(KEY).part(parts - 1).part(parts);
    match phase {
        Phase::WhileWriting => {
            let sent = 1 + random % u64::from((parts / 2).max(1));
            let when = When::call(Call::UploadPart).key(KEY).skip(sent);
            let rule = proxy.hold(when, HoldAt::InsideBody { after_bytes: 1 << 20 });
            let mut writer = SlowWriter::start(&target);
            writer.feed(&source.path, settings.size * 3 / 4).map_err(|e| format!("cp does not take its input: {e}"))?;
            let hits = wait_hits(&rule, 1, "a part in flight while the writer is not done")?;
            kills.kill(mount);
            drop(writer);
            Ok(hits)
        }
        Phase::LastPartsInFlight => {
            let rule = proxy.hold(last_parts(), HoldAt::InsideBody { after_bytes: 64 << 10 });
            copy_until(&source.path, &target, || {
                let hits = wait_hits(&rule, 2, "the last two parts")?;
                kills.kill(mount);
                Ok(hits)
            })
        }
        Phase::BeforeComplete => {
            let rule = proxy.hold(When::call(Call::Complete).key(KEY), HoldAt::BeforeForward);
            copy_until(&source.path, &target, || {
                let hits = wait_hits(&rule, 1, "Complete")?;
                kills.kill(mount);
                Ok(hits)
            })
        }
        Phase::CompleteUnanswered => {
            let rule = proxy.hold(When::call(Call::Complete).key(KEY), HoldAt::BeforeAnswer);
            copy_until(&source.path, &target, || {
                let hits = wait_hits(&rule, 1, "Complete")?;
                kills.kill(mount);
                Ok(hits)
            })
        }
        Phase::ProofUnanswered => {
            // Without CRCs in Complete's answer the proof needs a HEAD.
            let complete = proxy.add(RuleSpec {
                when: When::call(Call::Complete).key(KEY),
                hold: Some(HoldAt::BeforeAnswer),
                action: Action::no_crc(),
            });
            copy_until(&source.path, &target, || {
                wait_hits(&complete, 1, "Complete")?;
                let proof = proxy.hold(When::call(Call::HeadObject).key(KEY), HoldAt::BeforeAnswer);
                complete.release();
                let hits = wait_hits(&proof, 1, "the HEAD that proves the object")?;
                kills.kill(mount);
                Ok(hits)
            })
        }
        Phase::BeforeSpoolRemoved => catch_before_removal(settings, source, mount, kills),
        Phase::DuringRecovery => {
            let rule = proxy.hold(last_parts(), HoldAt::InsideBody { after_bytes: 64 << 10 });
            copy_until(&source.path, &target, || {
                wait_hits(&rule, 2, "the last two parts")?;
                kills.kill(mount);
                Ok(0)
            })?;
            proxy.clear_rules();
            kills.world.wait_quiet();
            let (call, at) = [
                (Call::ListParts, HoldAt::BeforeAnswer),
                (Call::UploadPart, HoldAt::InsideBody { after_bytes: 64 << 10 }),
                (Call::Complete, HoldAt::BeforeForward),
                (Call::Complete, HoldAt::BeforeAnswer),
            ][n as usize % 4];
            let rule = proxy.hold(When::call(call).key(KEY), at);
            mount.remount().map_err(|e| e.to_string())?;
            let hits = wait_hits(&rule, 1, &format!("{call} of the recovery"))?;
            kills.kill(mount);
            Ok(hits)
        }
        Phase::Random => {
            let share = (random >> 11) as f64 / (1u64 << 53) as f64;
            copy_until(&source.path, &target, || {
                // By bytes sent, for the machine may be slower or faster than it was, and some time on top.
                let end = Instant::now() + WAIT;
                while (proxy.counts().bytes_sent() as f64) < settings.size as f64 * share && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::thread::sleep(Duration::from_millis(splitmix64(random) % 100));
                kills.kill_at_once(mount);
                // A moment after the end is none.
                Ok(u64::from(!kills.world.journals().is_empty()))
            })
        }
    }
}

/// Starts `cp`, does `job` (which kills bosfs), and waits for the end of `cp`.
fn copy_until(source: &Path, target: &Path, job: impl FnOnce() -> Result<u64, String>) -> Result<u64, String> {
    let mut child = start_cp(source, target);
    let hits = job();
    match wait_child(&mut child, Duration::from_secs(30)) {
        Some(_) => hits,
        None => {
            let _ = child.kill();
            let _ = child.wait();
            hits.and(Err("cp hangs after the kill".into()))
        }
    }
}

/// Lets bosfs run in small steps from the answer of Complete on, and kills it when the journal says `proved` and the spool
/// is still there: no request separates the two.
fn catch_before_removal(
    settings: &Settings,
    source: &Source,
    mount: &mut Mounted,
    kills: &mut Kills<'_>,
) -> Result<u64, String> {
    let world = kills.world;
    for _ in 0..CATCH_TRIES {
        let complete = world.proxy.hold(When::call(Call::Complete).key(KEY), HoldAt::BeforeAnswer);
        let caught = copy_until(&source.path, &mount.path(KEY), || {
            wait_hits(&complete, 1, "Complete")?;
            let folder = world.journals().first().ok_or("no journal before Complete is answered")?.clone();
            let (journal, spool) = (folder.join("journal"), folder.join("spool"));
            mount.stop();
            complete.release();
            let end = Instant::now() + WAIT;
            while Instant::now() < end {
                let Ok(text) = std::fs::read(&journal) else { break };
                if text.windows(11).any(|w| w == b"\"t\":\"proved") && spool.exists() {
                    kills.kill(mount);
                    return Ok(1);
                }
                mount.signal(Signal::CONT);
                std::thread::sleep(STEP);
                mount.stop();
            }
            mount.signal(Signal::CONT);
            Ok(0)
        })?;
        if caught > 0 {
            return Ok(caught);
        }
        // Too late this time: once more with a new object.
        world.proxy.clear_rules();
        mount.wait_settled(KEY, WAIT);
        std::fs::remove_file(mount.path(KEY)).map_err(|e| e.to_string())?;
        world.proxy.take_counts();
        kills.allowed_bytes = settings.size;
    }
    Err(format!("bosfs could not be stopped between `proved` and the removal in {CATCH_TRIES} tries (0 hits)"))
}

/// After the last kill and remount: waits for the recovery, runs `cp` again where the writer had been cut off.
fn finish(world: &World, mount: &Mounted, source: &Source, phase: Phase, round: &mut Round) -> Result<(), String> {
    let end = Instant::now() + WAIT;
    loop {
        let entry = mount.file_status(KEY);
        let state = entry.as_ref().map_or("none", |e| e["state"].as_str().unwrap_or("?")).to_owned();
        let number = |name: &str| entry.as_ref().map_or(0, |e| e[name].as_u64().unwrap_or(0));
        round.kept = round.kept.max(number("parts_kept"));
        match state.as_str() {
            "none" | "idle" | "done" | "interrupted" => {
                let whole = world.bucket.head(KEY).map_err(|e| e.to_string())?.is_some();
                if whole && state != "interrupted" {
                    return Ok(());
                }
                if phase.is_closed() {
                    return Err(format!("closed before the kill, and yet {state}: {entry:?}"));
                }
                break;
            }
            "failed" | "conflict" => return Err(format!("{entry:?}")),
            _ if Instant::now() > end => return Err(format!("recovery does not end: {entry:?}")),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    round.copied_again = true;
    let output = cp(&source.path, mount.path(KEY), WAIT);
    if !output.status.success() {
        return Err(format!("the second cp fails: {}", String::from_utf8_lossy(&output.stderr)));
    }
    round.kept = mount.file_status(KEY).map_or(0, |e| e["parts_kept"].as_u64().unwrap_or(0));
    Ok(())
}
