//! One round: a real mount, a program that makes the calls of the plan, and what is killed under it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::calls::{Ended, Op, Reply};
use super::faults::{BODIES, CHANGES, Faults};
use super::lane::{Lane, target_of};
use super::look::{self, Objects};
use super::plan::{End, Moment, Phase, Plan};
use super::seen::InFlight;
use super::totals::Counted;
use super::writer::Writer;
use crate::support::fault::Rule;
use crate::support::mounted::detach;
use crate::support::{Bucket, Call, FaultProxy, HoldAt, MountSpec, Mounted, When};

/// Longest time for one call, one command, one look. It only bounds a hang.
const WITHIN: Duration = Duration::from_secs(90);
/// Longest time for a renamed directory to be taken back, or to be all there.
const RECOVERED_WITHIN: Duration = Duration::from_secs(30);
/// An upload that was begun so shortly before a kill may not have reached the journal.
const BEGUN_MS: u64 = 2000;

/// What is expected wrongly on purpose, to see that it is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// A byte that the mount shows.
    Shown,
    /// A byte in the bucket.
    Published,
    /// A name that was never made.
    Name,
}

impl Sabotage {
    pub const ALL: [Sabotage; 3] = [Sabotage::Shown, Sabotage::Published, Sabotage::Name];
}

/// Where rounds take place: one server, one proxy.
pub struct Place {
    pub proxy: Arc<FaultProxy>,
    pub bucket: Bucket,
    /// Endpoint, credentials and bucket; target and folders are each round's own.
    pub spec: MountSpec,
    /// Folder of the round, empty.
    pub dir: PathBuf,
    /// Prefix of the round in the bucket, with `/` at the end.
    pub prefix: String,
    /// The folder of the round will be kept if it fails: bosfs tells more, and its state directory is put aside at every kill.
    pub keeps: bool,
}

/// A round that found something.
#[derive(Debug)]
pub struct Failure {
    pub why: String,
    pub bytes_lost: u64,
    /// The calls so far, and how each ended.
    pub calls: Vec<String>,
}

type Outcome<T> = Result<T, Wrong>;

/// What a step of a round found.
struct Wrong {
    why: String,
    bytes_lost: u64,
}

impl From<String> for Wrong {
    fn from(why: String) -> Self {
        Self { why, bytes_lost: 0 }
    }
}

impl From<std::io::Error> for Wrong {
    fn from(e: std::io::Error) -> Self {
        e.to_string().into()
    }
}

/// Runs a round.
///
/// # Errors
/// What did not hold.
pub fn run(place: &Place, plan: &Plan, sabotage: Option<Sabotage>, counted: &mut Counted) -> Result<(), Failure> {
    let mut spec = MountSpec {
        target: format!("{}/{}", place.spec.target, place.prefix.trim_end_matches('/')),
        dir: place.dir.join("mnt"),
        state_dir: place.dir.join("state"),
        log: place.dir.join("bosfs.log"),
        args: plan.options(),
        ..place.spec.clone()
    };
    if place.keeps {
        spec.args.extend(["--log-level".to_owned(), "debug".into()]);
    }
    let mut round = Round {
        place,
        plan,
        began: Instant::now(),
        spec,
        mount: None,
        writer: None,
        lanes: (0..plan.lanes).map(|n| Lane::new(&format!("w{n}"), !plan.write_back)).collect(),
        flying: vec![None; plan.lanes],
        calls: Vec::new(),
        sabotage,
        kills_ms: Vec::new(),
        counted,
    };
    let mut result = round.all();
    let log = round.log();
    if result.is_ok()
        && let Some(line) = log.lines().find(|line| line.contains("panicked at"))
    {
        result = Err(format!("bosfs panicked: {line}").into());
    }
    let calls = std::mem::take(&mut round.calls);
    if let Some(mut mount) = round.mount.take() {
        mount.kill();
    }
    detach(&round.spec.dir);
    drop(round);
    place.proxy.clear_rules();
    result.map_err(|wrong| {
        let tail = |text: &str, lines: usize| {
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        };
        let requests = place.proxy.counts().log_text();
        if place.keeps {
            let _ = std::fs::write(place.dir.join("requests"), &requests);
        }
        let why = format!("{}\nlog of bosfs:\n{}\nrequests:\n{}", wrong.why, tail(&log, 60), tail(&requests, 60));
        Failure { why, bytes_lost: wrong.bytes_lost, calls }
    })
}

/// Copies a folder with all that is in it, holes and times too.
///
/// # Errors
/// What `cp` says.
pub fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    let output = std::process::Command::new("cp").arg("-a").arg(from).arg(to).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

struct Round<'a> {
    place: &'a Place,
    plan: &'a Plan,
    began: Instant,
    spec: MountSpec,
    mount: Option<Mounted>,
    writer: Option<Writer>,
    lanes: Vec<Lane>,
    /// The call of each lane that has not returned.
    flying: Vec<Option<(Op, Instant)>>,
    calls: Vec<String>,
    sabotage: Option<Sabotage>,
    /// When something was killed, by the clock of the proxy's log.
    kills_ms: Vec<u64>,
    counted: &'a mut Counted,
}

impl Round<'_> {
    fn all(&mut self) -> Outcome<()> {
        self.mount_now()?;
        self.writer = Some(Writer::start(&self.spec.dir)?);
        for lane in 0..self.lanes.len() {
            let path = self.lanes[lane].root.clone();
            self.send(lane, Op::Mkdir { path })?;
            self.wait_lane(lane, None)?;
        }
        for phase in &self.plan.phases {
            let mut faults = Faults::new(&self.place.proxy, &self.place.bucket, &self.place.prefix);
            let ended = self.phase(phase, &mut faults);
            let mut fired = std::mem::take(&mut self.counted.faults);
            faults.end(&mut fired);
            self.counted.faults = fired;
            ended?;
        }
        self.close_all()?;
        self.umount()?;
        if self.plan.look_again {
            if self.lanes.iter().all(|lane| lane.kept().is_empty()) {
                // Everything comes out of the bucket.
                std::fs::remove_dir_all(&self.spec.state_dir)?;
                self.note("state directory removed".into());
            }
            self.mount_again(&[])?;
            self.umount()?;
        }
        Ok(())
    }

    fn note(&mut self, line: String) {
        self.calls.push(format!("{:6} ms {line}", self.began.elapsed().as_millis()));
    }

    /// What a kill left in the state directory.
    fn put_aside(&self) -> std::io::Result<()> {
        if self.place.keeps {
            let aside = self.place.dir.join(format!("state.kill{}", self.kills_ms.len()));
            copy_folder(&self.spec.state_dir, &aside)?;
        }
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.spec.log).unwrap_or_default()
    }

    fn phase(&mut self, phase: &Phase, faults: &mut Faults) -> Outcome<()> {
        let moment = phase.end.moment();
        let killer = match moment {
            Moment::Held { skip, at } => {
                let (calls, least) = match at {
                    HoldAt::InsideBody { .. } => (BODIES.to_vec(), 2),
                    _ => (CHANGES.to_vec(), 0),
                };
                let when = When { calls, body_bytes_min: least, ..When::any() }.skip(skip).once();
                Some(self.place.proxy.hold(when, at))
            }
            _ => None,
        };
        let mut now = false;
        for (n, step) in phase.steps.iter().enumerate() {
            for fault in phase.faults.iter().filter(|fault| fault.at_step == n) {
                self.note(format!("fault {:?}, {} pass, {} ms", fault.kind, fault.skip, fault.ms));
                faults.arm(fault);
            }
            now = self.wait_lane(step.lane, killer.as_ref())?;
            if now {
                break;
            }
            let op = self.lanes[step.lane].resolve(step);
            if let Some(op) = op {
                self.send(step.lane, op)?;
            }
            if let Moment::After { step, micros } = moment
                && step == n
            {
                self.settle_for(Duration::from_micros(micros))?;
                now = true;
                break;
            }
            if !self.plan.overlap {
                now = self.wait_lane(step.lane, killer.as_ref())?;
                if now {
                    break;
                }
            }
        }
        for lane in 0..self.lanes.len() {
            now = now || self.wait_lane(lane, killer.as_ref())?;
        }
        if let Some(killer) = &killer
            && killer.hits() == 0
        {
            // It did not come: nothing is to be held from here on.
            killer.turn_off();
            killer.release();
        }
        match phase.end {
            End::Kill(_) => self.kill(true),
            End::Stop(_) => self.kill(false),
            End::KillWriter(_) => self.kill_writer(killer.as_ref()),
            End::Umount => {
                self.close_all()?;
                self.umount()?;
                self.mount_again(&[])
            }
        }
    }

    fn send(&mut self, lane: usize, op: Op) -> Outcome<()> {
        self.note(format!("w{lane} {op}"));
        self.counted.call(&op);
        self.flying[lane] = Some((op.clone(), Instant::now()));
        let writer = self.writer.as_mut().ok_or_else(|| "no writer".to_owned())?;
        Ok(writer.send(lane, &op)?)
    }

    /// Waits until a lane has nothing in flight. `true`: the moment to kill came first.
    fn wait_lane(&mut self, lane: usize, killer: Option<&Rule>) -> Outcome<bool> {
        loop {
            if killer.is_some_and(|rule| rule.hits() > 0) {
                return Ok(true);
            }
            let Some((op, since)) = &self.flying[lane] else { return Ok(false) };
            if since.elapsed() > WITHIN {
                return Err(format!("w{lane} {op}: no end within {WITHIN:?}").into());
            }
            let wait = Duration::from_millis(if killer.is_some() { 1 } else { 20 });
            self.take_reply(wait)?;
        }
    }

    fn settle_for(&mut self, time: Duration) -> Outcome<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.take_reply(left)?;
        }
        Ok(())
    }

    /// Takes the end of some lane's call, if there is one.
    fn take_reply(&mut self, wait: Duration) -> Outcome<()> {
        let writer = self.writer.as_ref().ok_or_else(|| "no writer".to_owned())?;
        match writer.reply(wait)? {
            None => Ok(()),
            Some(reply) => match self.returned(&reply)? {
                None => Ok(()),
                Some(in_flight) => {
                    Err(format!("w{} {}: {:?}, and nothing was killed", reply.lane, in_flight.op, reply.ended).into())
                }
            },
        }
    }

    /// A call ended: done, or (returned) cut off.
    fn returned(&mut self, reply: &Reply) -> Outcome<Option<InFlight>> {
        let (op, _) = self.flying[reply.lane].take().ok_or_else(|| format!("w{}: an answer to nothing", reply.lane))?;
        let wanted = match &op {
            Op::Write { len, .. } => *len as u64,
            Op::CopyRange { len, .. } => *len,
            _ => 0,
        };
        self.note(format!("w{} {} -> {:?}", reply.lane, op.name(), reply.ended));
        match reply.ended {
            Ended::Done(taken) if taken == wanted => {
                self.counted.bytes_written += taken;
                self.lanes[reply.lane].apply(&op, taken);
                Ok(None)
            }
            Ended::Done(taken) => Ok(Some(InFlight { op, taken })),
            Ended::Failed(_) => Ok(Some(InFlight { op, taken: 0 })),
        }
    }

    /// Counts what the kill falls into.
    fn count_kill(&mut self) {
        let counts = self.place.proxy.counts();
        let held: Vec<String> =
            counts.calls.iter().filter(|(_, count)| count.open > 0).map(|(call, _)| call.to_string()).collect();
        let phase = if held.is_empty() { "nothing open".to_owned() } else { held.join("+") };
        let ops: Vec<&Op> = self.flying.iter().flatten().map(|(op, _)| op).collect();
        self.counted.kill(&phase, &ops);
        self.kills_ms.push(counts.log.back().map_or(0, |logged| logged.at_ms));
        let line = format!("killed with {phase}, in {:?}", ops.iter().map(|op| op.name()).collect::<Vec<_>>());
        self.note(line);
    }

    /// SIGKILL or SIGTERM of bosfs, and what must hold after it.
    fn kill(&mut self, kill: bool) -> Outcome<()> {
        self.count_kill();
        let mut mount = self.mount.take().ok_or_else(|| "no mount".to_owned())?;
        if kill {
            mount.kill();
        } else {
            let status = mount.end_by(Signal::TERM, WITHIN);
            let status = status.ok_or_else(|| format!("SIGTERM: bosfs did not end within {WITHIN:?}"))?;
            if !status.success() {
                return Err(format!("SIGTERM: bosfs ended with {status}").into());
            }
        }
        drop(mount);
        let mut cut = vec![None; self.lanes.len()];
        while let Some(lane) = self.flying.iter().position(Option::is_some) {
            let (op, since) = self.flying[lane].clone().ok_or_else(|| "in flight".to_owned())?;
            let writer = self.writer.as_ref().ok_or_else(|| "no writer".to_owned())?;
            let Some(reply) = writer.reply(WITHIN)? else {
                let text = format!("w{lane} {op}: hangs {:?} after bosfs ended", since.elapsed());
                return Err(text.into());
            };
            let lane = reply.lane;
            cut[lane] = self.returned(&reply)?;
        }
        self.place.proxy.clear_rules();
        for (lane, cut) in cut.iter().enumerate() {
            let opening = matches!(cut, Some(InFlight { op: Op::Create { .. } | Op::Open { .. }, .. }));
            if opening || self.lanes[lane].slots.iter().any(Option::is_some) {
                self.send(lane, Op::Forget)?;
                self.wait_lane(lane, None)?;
            }
        }
        self.wait_quiet();
        self.put_aside()?;
        self.check_bucket(&cut)?;
        self.mount_again(&cut)
    }

    fn kill_writer(&mut self, killer: Option<&Rule>) -> Outcome<()> {
        self.count_kill();
        let writer = self.writer.take().ok_or_else(|| "no writer".to_owned())?;
        let (replies, ended) = writer.kill(WITHIN);
        if let Some(killer) = killer {
            killer.drop_held();
        }
        let mut cut = vec![None; self.lanes.len()];
        for reply in replies {
            let lane = reply.lane;
            cut[lane] = self.returned(&reply)?;
        }
        if !ended {
            return Err(format!("the killed writer does not end within {WITHIN:?}: {:?}", self.flying).into());
        }
        for (lane, flying) in self.flying.iter_mut().enumerate() {
            if let Some((op, _)) = flying.take() {
                cut[lane] = Some(InFlight { op, taken: 0 });
            }
        }
        self.writer = Some(Writer::start(&self.spec.dir)?);
        self.note("writer killed and started again".into());
        let waits = |in_flight: &InFlight| matches!(in_flight.op, Op::Close { .. } | Op::Fsync { .. });
        if cut.iter().flatten().all(waits) {
            return self.check_mount(&cut);
        }
        // What a killed program had asked for is done behind it: seen once nothing of this process is under way.
        self.place.proxy.clear_rules();
        self.umount_only()?;
        self.check_bucket(&cut)?;
        self.mount_again(&cut)
    }

    /// Waits until the proxy has nothing of the dead process any more.
    fn wait_quiet(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.place.proxy.counts().calls.values().any(|count| count.open > 0) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        // The server may still be at work on what it was sent.
        std::thread::sleep(Duration::from_millis(20));
    }

    fn mount_now(&mut self) -> Outcome<()> {
        self.mount = Some(self.spec.mount()?);
        Ok(())
    }

    /// Mounts, and compares what is shown and what is published.
    fn mount_again(&mut self, cut: &[Option<InFlight>]) -> Outcome<()> {
        self.mount_now()?;
        self.counted.remounts += 1;
        self.note("mounted again".into());
        self.check_mount(cut)?;
        self.check_bucket(&[])
    }

    /// What the mount shows must be what the model allows; from here on it is that.
    fn check_mount(&mut self, cut: &[Option<InFlight>]) -> Outcome<()> {
        if let Some(sabotage) = self.sabotage {
            let done = match sabotage {
                Sabotage::Shown => self.lanes.iter_mut().any(Lane::flip_a_byte),
                Sabotage::Name => self.lanes.iter_mut().any(|lane| {
                    let path = format!("{}/never", lane.root);
                    lane.names.contains_key(&lane.root) && lane.names.insert(path, super::lane::Node::Dir).is_none()
                }),
                Sabotage::Published => false,
            };
            if done {
                self.sabotage = None;
                self.counted.sabotaged = true;
            }
        }
        let renames = cut.iter().flatten().any(|in_flight| matches!(in_flight.op, Op::Rename { .. }));
        let end = Instant::now() + if renames { RECOVERED_WITHIN } else { Duration::ZERO };
        // A rename that was cut off is finished or taken back behind the mount: until then names may change their side.
        let moves = self.spec.state_dir.join("moves");
        while renames && std::fs::read_dir(&moves).is_ok_and(|mut left| left.next().is_some()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        loop {
            let dir = self.spec.dir.clone();
            let looked = look::mount(&dir, WITHIN).map(|tree| {
                let mut wrong = Vec::new();
                let mut lost = 0;
                let mut next = Vec::new();
                for (n, lane) in self.lanes.iter().enumerate() {
                    match lane.after_kill(cut.get(n).and_then(Option::as_ref), &tree) {
                        Ok(lane) => next.push(lane),
                        Err(mismatch) => {
                            lost += mismatch.bytes_lost;
                            let open = cut.get(n).and_then(Option::as_ref).map(|x| format!(", in flight: {}", x.op));
                            let many = mismatch.reasons.join("\n    or ");
                            wrong.push(format!("shown in w{n}{}: {many}", open.unwrap_or_default()));
                        }
                    }
                }
                (next, wrong, lost)
            });
            match looked {
                Ok((next, wrong, _)) if wrong.is_empty() => {
                    self.lanes = next;
                    return Ok(());
                }
                _ if Instant::now() < end => {
                    self.counted.looks_again += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok((_, wrong, bytes_lost)) => return Err(Wrong { why: wrong.join("\n"), bytes_lost }),
                Err(why) => return Err(why.into()),
            }
        }
    }

    /// Only what was closed is in the bucket.
    fn check_bucket(&mut self, cut: &[Option<InFlight>]) -> Outcome<()> {
        let objects = Objects::read(&self.place.bucket, &self.place.prefix)?;
        self.no_strangers(&objects)?;
        for n in 0..self.lanes.len() {
            let seen = objects.of_lane(&self.lanes[n].root);
            let allowed = match cut.get(n) {
                Some(in_flight) => self.lanes[n].with(in_flight.as_ref()),
                None => self.lanes[n].clone(),
            };
            allowed.published.check(&seen).map_err(|why| format!("in the bucket: {why}"))?;
            self.lanes[n].published.saw(&seen);
        }
        self.counted.bucket_looks += 1;
        Ok(())
    }

    fn no_strangers(&self, objects: &Objects) -> Outcome<()> {
        let known = |key: &str| self.lanes.iter().any(|lane| key.starts_with(&format!("{}/", lane.root)));
        match objects.bytes.keys().find(|key| !known(key)) {
            Some(key) => Err(format!("an object that nobody made: {key:?}").into()),
            None => Ok(()),
        }
    }

    fn close_all(&mut self) -> Outcome<()> {
        for lane in 0..self.lanes.len() {
            for op in self.lanes[lane].closes() {
                self.send(lane, op)?;
                self.wait_lane(lane, None)?;
            }
        }
        Ok(())
    }

    /// `bosfs umount`, after which the bucket must be exactly what the model says.
    fn umount(&mut self) -> Outcome<()> {
        self.umount_only()?;
        self.check_unmounted()
    }

    fn umount_only(&mut self) -> Outcome<()> {
        let mut mount = self.mount.take().ok_or_else(|| "no mount".to_owned())?;
        let output = mount.umount(WITHIN);
        if !output.status.success() {
            self.mount = Some(mount);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("bosfs umount: {} {text}", output.status).into());
        }
        drop(mount);
        self.note("unmounted".into());
        self.counted.umounts += 1;
        Ok(())
    }

    fn check_unmounted(&mut self) -> Outcome<()> {
        let objects = Objects::read(&self.place.bucket, &self.place.prefix)?;
        self.no_strangers(&objects)?;
        if self.sabotage == Some(Sabotage::Published) && self.lanes.iter_mut().any(|l| l.published.flip_a_byte()) {
            self.sabotage = None;
            self.counted.sabotaged = true;
        }
        for lane in &mut self.lanes {
            let seen = objects.of_lane(&lane.root);
            let (exact, loose) = lane.settle(&seen, &objects.modes).map_err(|why| format!("after umount: {why}"))?;
            self.counted.keys_exact += exact;
            self.counted.keys_loose += loose;
            let kept: Vec<String> = lane.kept().into_iter().cloned().collect();
            for path in lane.names.keys().filter(|path| !kept.contains(path)) {
                let (Some(file), Some(mode)) = (lane.file(path), objects.modes.get(path)) else { continue };
                if file.mode != *mode {
                    let text = format!("after umount: object {path:?} has mode {mode:o}, expected {:o}", file.mode);
                    return Err(text.into());
                }
            }
        }
        self.check_uploads()
    }

    /// No unfinished upload is left but those of files that are kept, and such as nobody could have noted.
    fn check_uploads(&mut self) -> Outcome<()> {
        let counts = self.place.proxy.counts();
        let left = self.place.bucket.uploads(&self.place.prefix).map_err(|e| format!("listing uploads: {e}"))?;
        for upload in left {
            let key = upload.key[self.place.prefix.len()..].to_owned();
            let kept = self
                .lanes
                .iter()
                .flat_map(Lane::kept)
                .any(|path| *path == key || target_of(path).is_some_and(|target| target == key));
            let unheard = counts.log.iter().any(|logged| {
                let fits = logged.asked.call == Call::Initiate && logged.asked.key == upload.key;
                let late = |kill: &u64| logged.at_ms + BEGUN_MS >= *kill;
                fits && (logged.status != Some(200) || self.kills_ms.iter().any(late))
            });
            if !kept && !unheard {
                return Err(format!("an upload of {key:?} is left after umount").into());
            }
            self.counted.uploads_left += 1;
        }
        Ok(())
    }
}
