//! A long time without a network, in write-back mode: programs go on with what is local, wait where they must, are told
//! where nothing can be known, and everything is sent when the line is back.
//!
//! A minute; `BOSFS_OFFLINE_MINUTES` makes it longer (`scripts/offline`).

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::actor::{Actor, Given, close, fsync, on, open, rename, write};
use crate::processes::Sampler;
use crate::support::counts::Logged;
use crate::support::files::{allocated_bytes, md5_of_reader};
use crate::support::mounted::{bosfs_binary, is_mounted, run, wait_child};
use crate::support::{Action, Call, HoldAt, KeyWatch, Line, Mounted, When, World};
use crate::{PART, WAIT, assert_tells_all, status_text, wait_no_journal, wait_until};

const MIB: u64 = 1 << 20;
/// Room that the writers have while nothing can be sent.
const SPOOL: u64 = 40 * MIB;
/// What a call that asks may take (30 s), and what a busy machine adds.
const ASKED: Duration = Duration::from_secs(60);
/// What a call may take that needs nobody.
const LOCAL: Duration = Duration::from_secs(20);

/// What is called, with what, and whether the answer is as it must be.
type Probe = (&'static str, Value, fn(&Given) -> bool);

/// Calls of one [`probe`].
const PROBES: usize = 14;

/// How the line is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    /// Connections are reset.
    Dead,
    /// Connections stand, and nothing moves.
    Silent,
    /// Nobody listens at the address.
    Refused,
}

impl Outage {
    fn begin(self, world: &World) {
        match self {
            Outage::Dead => world.proxy.set_line(Line::Dead),
            Outage::Silent => world.proxy.set_line(Line::Silent),
            Outage::Refused => {
                world.proxy.set_line(Line::Refused);
                let addr = world.proxy.addr();
                wait_until("connections are refused", || std::net::TcpStream::connect(addr).is_err());
            }
        }
    }

    fn end(self, world: &World) {
        world.proxy.set_line(Line::Alive);
    }
}

fn outage_length() -> Duration {
    let minutes = std::env::var("BOSFS_OFFLINE_MINUTES").ok().and_then(|text| text.parse::<f64>().ok());
    Duration::from_secs_f64(60.0 * minutes.unwrap_or(1.0))
}

/// An answer that a program may get where BOS cannot be asked.
fn is_honest(given: &Given) -> bool {
    matches!(given.as_ref().map_err(String::as_str), Err("EIO" | "ETIMEDOUT" | "EINTR"))
}

/// Lets a program of its own do one thing; it ends within the limit of calls that ask, or else at once on Ctrl-C.
fn tried(sampler: &Sampler, order: Value) -> (Given, Duration) {
    let mut actor = Actor::start();
    sampler.add(actor.pid());
    let began = Instant::now();
    let what = order.to_string();
    actor.begin(order);
    let given = actor.answer_within(ASKED).unwrap_or_else(|| {
        sampler.interrupting();
        actor.interrupt();
        actor.answer_within(LOCAL).unwrap_or_else(|| panic!("{what}: neither ends nor can be interrupted"))
    });
    let took = began.elapsed();
    actor.end(LOCAL);
    (given, took)
}

/// What can be asked at any time of the outage, all of it side by side. Returns how long the slowest took.
fn probe(sampler: &Sampler, mount: &Mounted) -> Duration {
    let path = |name: &str| mount.path(name);
    let asks: [Probe; PROBES] = [
        ("ls of a known folder", on("list", &path("known")), |given| {
            *given == Ok(json!(["a", "b"])) || is_honest(given)
        }),
        ("stat of a known file", on("stat", &path("known/a")), |given| *given == Ok(json!(1)) || is_honest(given)),
        ("ls of an unknown folder", on("list", &path("unknown")), is_honest),
        ("stat of an unknown file", on("stat", &path("unknown/x")), is_honest),
        ("stat of a name that is nowhere", on("stat", &path("nowhere")), is_honest),
        ("open of a new file", open("n", &path("new"), "WRONLY|CREAT"), is_honest),
        ("open of an unread file", open("o", &path("known/b"), "RDONLY"), |given| given.is_ok() || is_honest(given)),
        ("rename of a file in BOS", rename(&path("known/a"), &path("known/c")), is_honest),
        ("unlink of an unknown file", on("unlink", &path("unknown/x")), is_honest),
        ("mkdir", on("mkdir", &path("made")), is_honest),
        ("chmod of a file in BOS", json!({"do": "chmod", "path": path("known/b"), "mode": 0o600}), |given| {
            given.is_ok() || is_honest(given)
        }),
        ("chmod of a local file", json!({"do": "chmod", "path": path("small"), "mode": 0o640}), |given| {
            *given == Ok(Value::Null)
        }),
        ("stat of a local file", on("stat", &path("small")), |given| given.is_ok()),
        ("df", on("statvfs", &path("")), |given| given.is_ok()),
    ];
    std::thread::scope(|scope| {
        let asked = asks.map(|(what, order, fits)| {
            scope.spawn(move || {
                let (given, took) = tried(sampler, order);
                assert!(fits(&given), "{what} gives {given:?} after {took:?}\n{}", mount.log_text());
                if what == "df" || what.contains("local") {
                    assert!(took < LOCAL, "{what} took {took:?}");
                }
                took
            })
        });
        asked.into_iter().map(|ask| ask.join().expect("a probe")).max().unwrap_or_default()
    })
}

/// The MD5 of a range, read through the mount by a program of its own.
fn read_local(actor: &mut Actor, mount: &Mounted, name: &str, offset: u64, len: u64) -> Value {
    actor.must(open("r", &mount.path(name), "RDONLY"));
    actor.begin(json!({"do": "read", "as": "r", "offset": offset, "len": len}));
    let read = actor.answer_within(LOCAL).unwrap_or_else(|| panic!("reading {name} waits for the network")).unwrap();
    actor.must(close("r"));
    assert_eq!(read["bytes"], len);
    read["md5"].clone()
}

fn md5(bytes: &[u8]) -> Value {
    hex::encode(md5_of_reader(bytes).unwrap().0).into()
}

fn ride_out(outage: Outage) {
    let world = World::new();
    for key in ["known/a", "known/b", "unknown/x"] {
        world.bucket.put(key, b"x").unwrap();
    }
    let source = world.random_file("source", 1, 64 * MIB);
    let whole = std::fs::read(&source).unwrap();
    let limit = format!("{}MiB", SPOOL / MIB);
    let mut mount = world.mount(&["--part-size", "5MiB", "--write-back", "--spool-limit", &limit]);
    let sampler = Sampler::start(mount.pid().expect("it runs"));
    let (mut writer, mut reader) = (Actor::start(), Actor::start());
    sampler.add(writer.pid());
    sampler.add(reader.pid());
    // While the line is there: a folder is looked at, three files are begun, one of them is closed and on its way.
    reader.must(on("list", &mount.path("known")));
    reader.must(on("stat", &mount.path("known/a")));
    writer.open("big", &mount.path("big"), "WRONLY|CREAT");
    writer.open("small", &mount.path("small"), "WRONLY|CREAT");
    writer.must(write("small", &source, 0, 100_000));
    let held = world.proxy.hold(When::call(Call::Complete).key("closed"), HoldAt::BeforeForward);
    writer.open("closed", &mount.path("closed"), "WRONLY|CREAT");
    writer.must(write("closed", &source, 0, PART + MIB));
    assert_eq!(writer.close("closed"), Ok(Value::Null));
    assert!(held.wait_hit(WAIT));
    // Of the large file one part is in BOS and one is on its way when the line goes; the third is not full yet.
    let second = When::call(Call::UploadPart).key("big").part(2);
    let cut = world.proxy.hold(second, HoldAt::InsideBody { after_bytes: MIB });
    writer.must(write("big", &source, 0, 12 * MIB));
    assert!(cut.wait_hit(WAIT));
    wait_until("a part of the large file is in BOS", || {
        mount.file_status("big").is_some_and(|entry| entry["parts_in_bos"].as_u64() >= Some(1))
    });
    let watch = KeyWatch::start(&world.bucket, "closed");
    outage.begin(&world);
    held.drop_held();
    cut.drop_held();
    world.proxy.clear_rules();
    let began = Instant::now();

    // A closed file that is not in BOS yet is written on and closed again: two publications of one key wait now.
    writer.open("closed", &mount.path("closed"), "WRONLY");
    writer.begin(write("closed", &source, PART + MIB, 1000));
    let appended = writer.answer_within(LOCAL);
    assert_eq!(appended, Some(Ok(json!(1000))), "writing to a closed file that waits\n{}", mount.log_text());
    assert_eq!(writer.close("closed"), Ok(Value::Null));
    // fsync is local, writes go on until the spool is full, then they wait.
    writer.begin(fsync("small"));
    assert_eq!(writer.answer_within(LOCAL), Some(Ok(Value::Null)), "fsync waits for the network");
    writer.begin(write("big", &source, 12 * MIB, 52 * MIB));
    let spooled = || world.journals().iter().map(|dir| allocated_bytes(dir)).sum::<u64>();
    wait_until("the spool is full", || spooled() >= SPOOL - 3 * MIB);
    assert_eq!(writer.answer_within(Duration::from_secs(3)), None, "a writer went on beyond the spool's limit");
    let spooled_bytes = spooled();
    assert!(spooled_bytes <= SPOOL + MIB, "{spooled_bytes} bytes in the spool, which may have {SPOOL}");

    let (mut probes, mut slowest) = (0, Duration::ZERO);
    loop {
        slowest = slowest.max(probe(&sampler, &mount));
        probes += 1;
        assert_eq!(read_local(&mut reader, &mount, "big", 11 * MIB, MIB), md5(&whole[11 << 20..12 << 20]));
        assert_eq!(read_local(&mut reader, &mount, "small", 0, 100_000), md5(&whole[..100_000]));
        if began.elapsed() >= outage_length() {
            break;
        }
        std::thread::sleep(Duration::from_secs(20).min(outage_length().saturating_sub(began.elapsed())));
    }
    let status = mount.status();
    let since = status["mounts"][0]["line_down_since"].as_i64().expect("status knows since when");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let outage_s = began.elapsed().as_secs() as i64;
    assert!((0..=outage_s + 2).contains(&(now - since)), "{} s, but the outage has {outage_s} s", now - since);
    let text = status_text(&mount);
    assert!(text.contains("has not answered for"), "{text}");
    for key in ["big", "small", "closed"] {
        assert!(text.contains(key), "{key} is not said to wait: {text}");
    }
    assert_eq!(status["mounts"][0]["totals"]["stuck"], 0, "a dead line is no failure: {text}");
    interrupted_umount(&mount);

    // The writer is still waiting, and Ctrl-C ends that at once.
    assert_eq!(writer.answer_within(Duration::ZERO), None);
    let asked = Instant::now();
    sampler.interrupting();
    writer.interrupt();
    assert_eq!(writer.answer_within(LOCAL), Some(Err("EINTR".into())), "Ctrl-C of a waiting writer");
    let interrupted_within = asked.elapsed();
    let accepted = 12 * MIB + writer.written;

    let (back, back_ms) = (Instant::now(), world.proxy.now_ms());
    outage.end(&world);
    assert_eq!(writer.close("big"), Ok(Value::Null));
    assert_eq!(writer.close("small"), Ok(Value::Null));
    for key in ["closed", "big", "small"] {
        mount.wait_settled(key, WAIT);
    }
    let drained_within = back.elapsed();
    assert!(world.bucket.get("big").unwrap() == whole[..accepted as usize], "big is not what was accepted");
    assert!(world.bucket.get("small").unwrap() == whole[..100_000]);
    assert!(world.bucket.get("closed").unwrap() == whole[..(PART + MIB) as usize + 1000]);
    // Each key in the order of its closes: never back to an earlier state, never a half one.
    let sizes: Vec<u64> = watch.states().iter().flatten().map(|seen| seen.size).collect();
    assert!(sizes.is_sorted() && sizes.last() == Some(&(PART + MIB + 1000)), "{sizes:?}");
    assert_eq!(watch.half_files(&[PART + MIB, PART + MIB + 1000]), [] as [u64; 0]);
    let after = world.proxy.counts();
    // Of the log, since a copy within BOS is no part that was sent.
    let is_part = |l: &&Logged, key: &str, number| {
        l.asked.call == Call::UploadPart && l.asked.key == key && l.asked.part == Some(number) && l.status == Some(200)
    };
    let sent = |key: &str, number| after.log.iter().filter(|l| is_part(l, key, number)).count();
    // What was on its way when a silent line moved again may arrive although bosfs had given it up.
    let was_given_up = |l: &&Logged| outage == Outage::Silent && (l.connected_ms..l.from_ms).contains(&back_ms);
    let late = |key: &str, number| after.log.iter().filter(|l| is_part(l, key, number)).filter(was_given_up).count();
    // The last part of `closed` differs between its two publications.
    let parts = (1..=13).map(|number| ("big", number)).chain([("closed", 1)]);
    let again: Vec<(&str, u32)> = parts.filter(|(key, number)| sent(key, *number) > 1).collect();
    assert!(sent("big", 1) == 1 && sent("closed", 1) == 1, "not counted\n{}", after.log_text());
    let twice: Vec<_> = again.iter().filter(|(key, number)| sent(key, *number) > 1 + late(key, *number)).collect();
    assert!(twice.is_empty(), "{twice:?} went twice\n{}\n{}", after.log_text(), mount.log_text());
    wait_no_journal(&world);
    let stuck = sampler.longest_wait();
    assert!(stuck < Duration::from_secs(5), "a process was in state D for {stuck:?}: {}", sampler.stack());
    assert!(sampler.samples() > 100);
    let output = mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}");
    println!(
        "{outage:?}: {:.1} min without a line, {probes} rounds of {PROBES} calls, the slowest answered after {slowest:.1?}; {:.1} \
         MiB accepted of a spool of {} MiB; Ctrl-C of the waiting writer after {interrupted_within:.2?}; all in BOS \
         {drained_within:.1?} after the line came back, {} whole parts sent again; longest time in state D: {stuck:.1?} in {} \
         samples, until the first of {} waits was interrupted",
        (back - began).as_secs_f64() / 60.0,
        accepted as f64 / MIB as f64,
        SPOOL / MIB,
        again.len(),
        sampler.samples(),
        sampler.interrupted(),
    );
}

/// umount waits for what is pending; Ctrl-C ends that with code 4, and the mount stays.
fn interrupted_umount(mount: &Mounted) {
    let mut command = std::process::Command::new(bosfs_binary());
    command.arg("umount").arg(mount.dir()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(child.try_wait().unwrap().is_none(), "umount did not wait");
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let status = wait_child(&mut child, LOCAL).expect("umount ends at Ctrl-C");
    assert_eq!(status.code(), Some(4));
    assert!(is_mounted(mount.dir()), "an interrupted umount detached the mount");
}

/// While connections are reset, what cannot be asked gives EIO or ETIMEDOUT (EINTR on Ctrl-C), or what is known of it:
/// never ENOENT, and never an empty folder.
#[test]
fn a_dead_line_is_ridden_out() {
    ride_out(Outage::Dead);
}

/// While the line is silent, `fsync` and reads of local bytes go on, writers wait once the spool is full, Ctrl-C ends
/// their wait with EINTR, and afterwards exactly what was accepted is in BOS.
#[test]
fn a_silent_line_is_ridden_out() {
    ride_out(Outage::Silent);
}

/// While connections are refused, `bosfs status` says for how long BOS has not answered and which files wait, none of
/// them counts as failed, and Ctrl-C of a waiting `bosfs umount` exits 4 and leaves the mount.
#[test]
fn a_refused_line_is_ridden_out() {
    ride_out(Outage::Refused);
}

/// Every Ctrl-C of a program that waits for a silent line ends its wait, not only the first one on a mount; SIGKILL ends
/// the program.
#[test]
fn every_ctrl_c_ends_its_wait_and_not_only_the_first_one() {
    let world = World::new();
    world.bucket.put("a", b"x").unwrap();
    let mount = world.mount(&[]);
    world.proxy.set_line(Line::Silent);
    // Several at once, and one after the other; more than one round, as the kernel asks bosfs once.
    for round in 0..3 {
        let mut actors: Vec<Actor> = (0..3).map(|_| Actor::start()).collect();
        for (n, actor) in actors.iter_mut().enumerate() {
            // Other names: of one name the kernel lets only the first asker through, and the others wait for that one.
            actor.begin(on("stat", &mount.path(&format!("{round}{n}"))));
        }
        assert_eq!(actors[0].answer_within(Duration::from_millis(500)), None, "it did not wait");
        for actor in &mut actors[1..] {
            actor.interrupt();
        }
        for actor in &mut actors[1..] {
            assert_eq!(actor.answer_within(LOCAL), Some(Err("EINTR".into())), "round {round}\n{}", mount.log_text());
        }
        let mut killed = actors.remove(0);
        assert_eq!(killed.answer_within(Duration::ZERO), None, "it does not wait any more");
        assert!(killed.kill_within(LOCAL), "round {round}: SIGKILL does not end it\n{}", mount.log_text());
    }
    world.proxy.set_line(Line::Alive);
    assert!(std::fs::read(mount.path("a")).is_ok_and(|bytes| bytes == b"x"));
}

/// Without a line a writer whose spool is full waits until the line is back, also when it is the only one.
#[test]
fn the_only_writer_of_a_mount_waits_for_the_line_when_its_spool_is_full() {
    for write_back in [false, true] {
        let world = World::new();
        let source = world.random_file("source", 3, 30 * MIB);
        let mut args = vec!["--part-size", "5MiB", "--spool-limit", "20MiB"];
        args.extend(write_back.then_some("--write-back"));
        let mount = world.mount(&args);
        let refused = world.proxy.fault(When::call(Call::UploadPart), Action::Refuse);
        let mut writer = Actor::start();
        writer.open("f", &mount.path("f"), "WRONLY|CREAT");
        writer.begin(write("f", &source, 0, 30 * MIB));
        // A call has four tries; what comes after is tried anew.
        assert!(refused.wait_hits(20, WAIT), "{} tries\n{}", refused.hits(), mount.log_text());
        assert_eq!(writer.answer_within(Duration::ZERO), None, "a full spool is no error\n{}", mount.log_text());
        refused.turn_off();
        assert_eq!(writer.answer("the write"), Ok(json!(30 * MIB)), "{}", mount.log_text());
        assert_eq!(writer.close("f"), Ok(Value::Null), "{}", mount.log_text());
        mount.wait_settled("f", WAIT);
        world.assert_object_is_file("f", &source);
    }
}

/// Without a line `bosfs mount` exits 6 and says how many files wait in the journal; `bosfs status` of the state
/// directory names them, and a mount with a line publishes them.
#[test]
fn a_mount_without_a_line_says_so_and_the_journal_shows_what_waits() {
    for outage in [Outage::Dead, Outage::Refused] {
        let world = World::new();
        let source = world.random_file("source", 2, PART + 5);
        let mut mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
        let hold = world.proxy.hold(When::call(Call::Complete), HoldAt::BeforeForward);
        let mut writer = Actor::start();
        writer.open("f", &mount.path("f"), "WRONLY|CREAT");
        writer.write_all("f", &source);
        assert_eq!(writer.close("f"), Ok(Value::Null));
        assert!(hold.wait_hit(WAIT));
        mount.kill();
        outage.begin(&world);
        world.proxy.clear_rules();
        let output = run(mount.spec().command().arg("--foreground"), ASKED);
        assert_eq!(output.status.code(), Some(6), "{output:?}");
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(complaint.contains(&world.spec(&[]).endpoint), "{complaint}");
        assert_tells_all(&complaint, "bkt");
        assert!(complaint.contains("1 file"), "nothing is said of what waits: {complaint}");
        assert!(!is_mounted(mount.dir()), "a mount that failed stays");
        let shown = run(std::process::Command::new(bosfs_binary()).arg("status").arg(world.state_dir()), WAIT);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("not mounted") && shown.contains("  f "), "{shown}");
        outage.end(&world);
        mount.remount().unwrap();
        world.wait_object("f", PART + 5, WAIT);
        world.assert_object_is_file("f", &source);
        wait_no_journal(&world);
    }
}
