//! One round of one cell: the fault in its phase, the end of the program, and what is in BOS afterwards.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::faults::{Blow, Fault, Kind, LINE_GONE, Lasts, PAUSE};
use crate::phases::{KEY, LAST_PART, Phase, Story};
use crate::programs::{Ended, Program, hangs_in_kernel, where_it_is};
use crate::sense::patience_s;
use crate::stage::{Sources, Stage, WAIT};
use crate::support::fault::{Rule, RuleSpec};
use crate::support::files::splitmix64;
use crate::support::{Action, Call, HoldAt, Line, Mounted, When};
use crate::verdict::{check_end, check_told, judge, wait_told};

/// Time that a program gets on top of the timeouts that a fault makes bosfs wait for.
const PROGRAM_LIMIT: Duration = Duration::from_secs(120);

/// What is made wrong on purpose, to see that the checks notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// One byte of what is expected.
    Expected,
    /// The object is cut short at the end.
    Object,
    /// The fault waits for a part that does not exist.
    NeverFires,
    /// Nothing may be sent again, and not even the last part once.
    Allowance,
    /// No size counts as that of a whole file.
    Watch,
    /// The program gets no time.
    Limit,
    /// One of the states that an object of two programs may have.
    States,
}

/// What a round showed.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub word: &'static str,
    pub hits: u64,
    pub written_bytes: u64,
    pub lost_bytes: u64,
    pub sent_twice_bytes: u64,
    pub half_published: u64,
    pub hangs: u64,
    /// What did not hold.
    pub problem: Option<String>,
}

/// Which round.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub fault: &'static Fault,
    pub phase: &'static Phase,
    pub seed: u64,
    /// The fault comes once; else it comes again, or lasts until the program has failed.
    pub is_brief: bool,
    pub sabotage: Option<Sabotage>,
}

/// The rules of the fault.
pub struct Armed {
    pub rules: Vec<Rule>,
    /// Hits that each firing counts.
    hits_each: u64,
}

impl Armed {
    pub fn hits(&self) -> u64 {
        self.rules.iter().map(Rule::hits).sum::<u64>() / self.hits_each
    }

    fn wait_hit(&self) -> Result<(), String> {
        let rule = self.rules.first().ok_or("no rule")?;
        match rule.wait_hit(WAIT) {
            true => Ok(()),
            false => Err("the request of the phase never came (0 hits)".into()),
        }
    }

    fn release(&self) {
        self.rules.iter().for_each(Rule::release);
    }
}

/// Runs the round; what did not hold is in [`Shown::problem`].
pub fn run(ask: Ask, sources: &Sources) -> Shown {
    let over_old = splitmix64(ask.seed) % 2 == 1;
    let mut shown = Shown::default();
    let result =
        Stage::new(ask.phase, sources, over_old, patience_s(ask.fault, ask.phase) > 0).and_then(|mut stage| {
            let result = go(&ask, &mut stage, &mut shown);
            stage.world.proxy.set_line(Line::Alive);
            result.map_err(|problem| {
                let log = stage.world.log_text();
                let pid = stage.mount.as_ref().and_then(Mounted::pid).filter(|_| problem.starts_with("HANG"));
                let place = pid.map_or(String::new(), |pid| format!("bosfs:\n{}\n", where_it_is(pid)));
                format!("{problem}\n{place}{}\n{}", tail(&stage.world.proxy.counts().log_text()), tail(&log))
            })
        });
    if let Err(problem) = result {
        shown.hangs += u64::from(problem.starts_with("HANG"));
        shown.problem = Some(problem);
    }
    shown
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

fn go(ask: &Ask, stage: &mut Stage<'_>, shown: &mut Shown) -> Result<(), String> {
    let Ask { fault, phase, .. } = *ask;
    // Behind a write-back close the request is there before `umount` is: it is held until then.
    let early = (phase.story == Story::Umount).then(|| {
        let armed = arm(ask, stage);
        (stage.prepare().and_then(|()| stage.copy_behind()).and_then(|()| armed.wait_hit()), armed)
    });
    let early = match early {
        Some((prepared, armed)) => prepared.map(|()| Some(armed))?,
        None => stage.prepare().map(|()| None)?,
    };
    // The same call is used before: what counts begins with the answer to Complete, which has no CRC, so that a HEAD must
    // prove the object.
    let late = (phase.name == "proof").then(|| {
        let when = When::call(Call::Complete).key(KEY).once();
        stage.world.proxy.add(RuleSpec { when, hold: Some(HoldAt::BeforeAnswer), action: Action::no_crc() })
    });
    let armed = early.or_else(|| late.is_none().then(|| arm(ask, stage)));
    let mut program = stage.start()?;
    let armed = match (armed, late) {
        (Some(armed), _) => armed,
        (None, complete) => {
            let complete = complete.ok_or("no rule")?;
            if !complete.wait_hit(WAIT) {
                return Err("Complete never came".into());
            }
            let armed = arm(ask, stage);
            complete.release();
            armed
        }
    };
    let mut blows_ms = Vec::new();
    if phase.story == Story::Umount {
        std::thread::sleep(Duration::from_millis(300));
        if !program.as_mut().is_some_and(Program::is_running) {
            return Err("umount did not wait for the file that is not in BOS".into());
        }
        if fault.kind == Kind::Request {
            armed.release();
        }
    }
    if phase.story.is_shared() {
        armed.wait_hit()?;
        stage.second_writes();
    }
    strike(ask, stage, &armed, program.as_ref(), &mut blows_ms)?;
    let ended = end_of(ask, stage, program)?;
    if phase.story.is_shared() && ended.is_success() {
        stage.check_first()?;
    }
    let died = matches!(fault.kind, Kind::Process(Blow::Kill | Blow::Terminate));
    wait_background_hit(ask, stage, &armed, &ended)?;
    if let Some(pid) = stage.mount.as_ref().and_then(Mounted::pid)
        && !died
        && hangs_in_kernel(pid)
    {
        return Err("HANG: a thread of bosfs does not come out of the kernel".into());
    }
    stage.check_output(ended.is_success())?;
    shown.word = judge(ask, &ended)?;
    let torn = stage.torn_bytes()?;
    if torn > 0 {
        shown.lost_bytes = torn;
        return Err(format!("LOST {torn} bytes: while the fault lasts the keys hold neither what was nor what is"));
    }
    if fault.lasts == Lasts::Refusal {
        check_told(ask, stage, &ended)?;
    }
    shown.hits = armed.hits();
    if shown.hits == 0 {
        return Err("the fault never happened (0 hits)".into());
    }
    if fault.lasts == Lasts::Refusal {
        // Refused as well, or not; the umount behind it must not find the file open.
        stage.second_ends();
    }
    heal(ask, stage, &ended, &mut blows_ms)?;
    stage.settle(!ended.is_success())?;
    check_end(ask, stage, shown, &armed, &blows_ms)
}

/// The requests of the phase, in the way this row treats them.
fn arm(ask: &Ask, stage: &Stage<'_>) -> Armed {
    let Ask { fault, phase, seed, is_brief, .. } = *ask;
    let proxy = &stage.world.proxy;
    let mut when = phase.when();
    if ask.sabotage == Some(Sabotage::NeverFires) {
        when.parts = vec![LAST_PART + 1];
    }
    when.seed = seed;
    let held_early = phase.story == Story::Umount;
    match fault.kind {
        Kind::Request => {
            when.times = times(ask);
            let hold = held_early.then_some(HoldAt::BeforeForward);
            let rule = proxy.add(RuleSpec { when, hold, action: fault.action(phase) });
            // A hold counts, and so does what comes after it.
            Armed { rules: vec![rule], hits_each: if held_early { 2 } else { 1 } }
        }
        _ => {
            let at = hold_at(phase, is_brief, seed);
            Armed { rules: vec![proxy.hold(when.once(), at)], hits_each: 1 }
        }
    }
}

/// How often the fault happens; `None`: until it is taken away.
fn times(ask: &Ask) -> Option<u64> {
    let Ask { fault, phase, is_brief, .. } = *ask;
    match fault {
        _ if fault.lasts == Lasts::Refusal || fault.is_harmless() => None,
        _ if phase.story.is_interactive() && !is_brief => None,
        _ if is_brief || fault.stalls() => Some(1),
        // What comes out wrong again and again ends the upload with an error, as it should.
        _ if matches!(fault.name, "wrong-crc" | "wrong-etag" | "bad-digest") => Some(1),
        // A new upload is begun then, of which there is nothing to be listed.
        _ if fault.name.starts_with("no-upload") && phase.call == Call::ListParts => Some(1),
        // Without a code it is believed once only that the date was to blame.
        _ if fault.name == "expired" && phase.call == Call::HeadObject => Some(1),
        _ => Some(3),
    }
}

/// Where a request is held for a blow to the line or to the process.
fn hold_at(phase: &Phase, is_brief: bool, seed: u64) -> HoldAt {
    match phase.name {
        "complete" | "before-complete" => HoldAt::BeforeForward,
        "complete-acted" => HoldAt::BeforeAnswer,
        _ if phase.call == Call::UploadPart && !is_brief => {
            HoldAt::InsideBody { after_bytes: 1 + splitmix64(seed ^ 9) % (phase.body_bytes() - 1) }
        }
        _ if is_brief => HoldAt::BeforeForward,
        _ => HoldAt::BeforeAnswer,
    }
}

fn strike(
    ask: &Ask,
    stage: &mut Stage<'_>,
    armed: &Armed,
    program: Option<&Program>,
    blows_ms: &mut Vec<u64>,
) -> Result<(), String> {
    if ask.fault.kind == Kind::Request {
        return Ok(());
    }
    armed.wait_hit()?;
    if ask.phase.name == "before-complete" {
        // Whatever is answered is noted.
        std::thread::sleep(Duration::from_millis(50));
    }
    let proxy = &stage.world.proxy;
    match ask.fault.kind {
        Kind::Request => {}
        Kind::Line(line) => {
            proxy.set_line(line);
            blows_ms.push(proxy.now_ms());
            armed.release();
            std::thread::sleep(LINE_GONE);
            proxy.set_line(Line::Alive);
        }
        Kind::UploadGone => {
            let uploads = stage.world.bucket.uploads(KEY).map_err(|e| e.to_string())?;
            let upload = uploads.first().ok_or("no upload is there to be aborted")?;
            stage.world.bucket.abort(KEY, &upload.upload_id).map_err(|e| e.to_string())?;
            armed.release();
        }
        Kind::Process(blow) => {
            blows_ms.push(proxy.now_ms());
            let by_command = ask.phase.story == Story::Resume;
            match (blow, by_command, &mut stage.mount) {
                (Blow::Kill, true, _) => program.iter().for_each(|program| program.signal(Signal::KILL)),
                (Blow::Terminate, true, _) => program.iter().for_each(|program| program.signal(Signal::TERM)),
                (Blow::Pause, true, _) => program.iter().for_each(|program| program.signal(Signal::STOP)),
                (Blow::Kill, false, Some(mount)) => mount.kill(),
                (Blow::Terminate, false, Some(mount)) => match mount.end_by(Signal::TERM, Duration::from_secs(60)) {
                    Some(status) if status.success() || ask.phase.story == Story::Mount => {}
                    Some(status) => return Err(format!("SIGTERM: bosfs ended with {status}")),
                    None => return Err("HANG: bosfs does not end by SIGTERM".into()),
                },
                (Blow::Pause, false, Some(mount)) => mount.stop(),
                (_, false, None) => return Err("there is no process to be hit".into()),
            }
            if blow == Blow::Pause {
                // Answers come meanwhile.
                armed.release();
                std::thread::sleep(PAUSE);
                match (&stage.mount, program) {
                    (Some(mount), _) if !by_command => mount.signal(Signal::CONT),
                    (_, program) => program.iter().for_each(|program| program.signal(Signal::CONT)),
                }
            } else {
                stage.world.proxy.clear_rules();
            }
        }
    }
    Ok(())
}

/// Waits for the end of the program; a mount ends well when it answers.
fn end_of(ask: &Ask, stage: &mut Stage<'_>, program: Option<Program>) -> Result<Ended, String> {
    let limit = match ask.sabotage {
        Some(Sabotage::Limit) => Duration::ZERO,
        _ => PROGRAM_LIMIT + Duration::from_secs(patience_s(ask.fault, ask.phase) * 2),
    };
    if let Some(program) = program {
        return program.wait(limit);
    }
    let Some(mount) = &mut stage.mount else { return Err("nothing was mounted".into()) };
    if mount.pid().is_none() {
        return Ok(Ended { code: None, errors: String::new() });
    }
    match mount.wait_ready(limit) {
        Ok(()) => Ok(Ended { code: Some(0), errors: String::new() }),
        Err(e) if mount.has_ended() => Ok(Ended { code: Some(1), errors: e.to_string() }),
        Err(e) => Err(format!("HANG: {e}")),
    }
}

/// Where the program does not wait for the request of the phase, it is waited for here.
fn wait_background_hit(ask: &Ask, stage: &Stage<'_>, armed: &Armed, ended: &Ended) -> Result<(), String> {
    if matches!(ask.fault.kind, Kind::Request)
        && matches!(ask.phase.story, Story::Recovery | Story::Chmod | Story::Unlink | Story::RenameDir | Story::Rename)
    {
        let rule = armed.rules.first().ok_or("no rule")?;
        let limit = WAIT + Duration::from_secs(patience_s(ask.fault, ask.phase));
        // Once it acted, there may be nothing left to be asked for.
        let firings = if ask.fault.acted { 1 } else { times(ask).unwrap_or(1) };
        if !rule.wait_hits(armed.hits_each * firings, limit) {
            let calls = stage.world.proxy.counts().calls;
            let hits = armed.hits();
            return Err(format!("the request of the phase did not come often enough ({hits} hits): {calls:?}"));
        }
        if ask.fault.lasts == Lasts::Refusal && ended.is_success() {
            wait_told(ask, stage)?;
        }
    }
    Ok(())
}

/// Takes the fault away; a process that died, or a file that failed, gets a new mount.
fn heal(ask: &Ask, stage: &mut Stage<'_>, ended: &Ended, blows_ms: &mut Vec<u64>) -> Result<(), String> {
    let Ask { fault, phase, .. } = *ask;
    let proxy = &stage.world.proxy;
    proxy.set_line(Line::Alive);
    proxy.clear_rules();
    let died = matches!(fault.kind, Kind::Process(Blow::Kill | Blow::Terminate));
    if phase.story == Story::Resume {
        stage.world.wait_quiet();
        return Ok(());
    }
    if died {
        stage.world.wait_quiet();
        stage.mount = None;
        return stage.mount_now();
    }
    if phase.story == Story::Umount || (phase.story == Story::Mount && !ended.is_success()) {
        // The process has ended, or ends now.
        if let Some(mount) = &mut stage.mount {
            let end = Instant::now() + WAIT;
            while !mount.has_ended() {
                if Instant::now() > end {
                    return Err("HANG: the process of the mount does not end".into());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        stage.mount = None;
        return stage.mount_now();
    }
    if fault.lasts == Lasts::Refusal && !phase.story.is_interactive() {
        // The next mount tries again.
        blows_ms.push(stage.world.proxy.now_ms());
        if let Some(mount) = &mut stage.mount {
            let output = mount.umount(WAIT);
            // What empties the file may get through where what was refused did not.
            let is_refused = phase.story.writes() && phase.story != Story::ShareEmpty && !ended.is_success();
            if is_refused && output.status.code() != Some(3) {
                return Err(format!("umount with a failed file: {output:?}"));
            }
        }
        stage.mount = None;
        stage.world.wait_quiet();
        return stage.mount_now();
    }
    Ok(())
}
