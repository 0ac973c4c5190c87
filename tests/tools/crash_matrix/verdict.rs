//! How a round must end: what the program is told, who else is told, and what must be in BOS.

use std::time::{Duration, Instant};

use crate::faults::{Blow, Kind, Lasts};
use crate::phases::{BIG_BYTES, KEY, LAST_PART, PART_BYTES, Phase, SMALL_BYTES, Story};
use crate::programs::Ended;
use crate::round::{Armed, Ask, Sabotage, Shown};
use crate::sense::may_fail_while_lasting;
use crate::stage::{Stage, WAIT, files_of};
use crate::support::Call;
use crate::support::fault::Rule;

/// What may have been answered but not yet noted when the process died, milliseconds.
const JUST_BEFORE_MS: u64 = 150;

/// Whether the program ended as it should, and the word for the page.
pub fn judge(ask: &Ask, ended: &Ended) -> Result<&'static str, String> {
    let Ask { fault, phase, is_brief, .. } = *ask;
    if matches!(fault.kind, Kind::Process(Blow::Kill | Blow::Terminate)) {
        return Ok("resumed");
    }
    if ended.is_success() {
        return match fault.lasts {
            Lasts::Passes => Ok("goes on"),
            Lasts::Refusal if is_told_behind(phase) => Ok("told, kept"),
            Lasts::Refusal => Err(format!("{} is refused and yet the program says success", phase.name)),
        };
    }
    let lasting = fault.kind == Kind::Request && !is_brief;
    let told = ended.told();
    let allowed: &[&str] = match (fault.lasts, fault.name) {
        (Lasts::Refusal, "403-denied") => &["EACCES"],
        (Lasts::Refusal, "quota") => &["ENOSPC", "EDQUOT"],
        (Lasts::Refusal, _) => &["ENODEV", "EIO"],
        (Lasts::Passes, _) if may_fail_while_lasting(phase) && (lasting || fault.stalls()) => &["EIO", "ETIMEDOUT"],
        (Lasts::Passes, _) => return Err(format!("the program fails although the trouble passes: {told}")),
    };
    // Commands of bosfs say it in words and by their exit code.
    if matches!(phase.story, Story::Mount | Story::Umount | Story::Resume) {
        return Ok(if fault.lasts == Lasts::Refusal { "refused, kept" } else { "refused" });
    }
    match ended.errno() {
        Some(errno) if allowed.contains(&errno) => Ok(match (fault.lasts, errno) {
            (Lasts::Refusal, "EACCES") => "EACCES, kept",
            (Lasts::Refusal, "ENOSPC") => "ENOSPC, kept",
            (Lasts::Refusal, "EDQUOT") => "EDQUOT, kept",
            (Lasts::Refusal, "ENODEV") => "ENODEV, kept",
            (Lasts::Refusal, _) => "EIO, kept",
            (_, "ETIMEDOUT") => "ETIMEDOUT",
            _ => "EIO",
        }),
        _ => Err(format!("the program fails, but not with one of {allowed:?}: {told}")),
    }
}

/// What a refusal does is told by `status` and `umount`, not by the program.
fn is_told_behind(phase: &Phase) -> bool {
    matches!(phase.story, Story::Recovery | Story::Chmod)
        || matches!(phase.name, "rename-delete" | "dir-delete" | "unlink")
}

pub fn wait_told(ask: &Ask, stage: &Stage<'_>) -> Result<(), String> {
    if !is_told_behind(ask.phase) {
        return Ok(());
    }
    let Some(mount) = &stage.mount else { return Ok(()) };
    let end = Instant::now() + WAIT;
    while !has_error(&mount.status()) {
        if Instant::now() > end {
            return Err(format!("nobody is told of the refusal: {}", mount.status()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn has_error(status: &serde_json::Value) -> bool {
    files_of(status).iter().any(|file| file["last_error"].as_str().is_some_and(|e| !e.is_empty()))
}

/// A refused publication stays in the journal, and `status` says why.
pub fn check_told(ask: &Ask, stage: &Stage<'_>, ended: &Ended) -> Result<(), String> {
    if !ask.phase.story.writes() || ended.is_success() || matches!(ask.phase.story, Story::Umount | Story::Resume) {
        return Ok(());
    }
    // Emptied since by the second program, it is another file than the one that was refused.
    if ask.phase.story == Story::ShareEmpty {
        return Ok(());
    }
    let Some(mount) = &stage.mount else { return Ok(()) };
    let entry = mount.file_status(KEY).ok_or("status does not name the refused file")?;
    if entry["state"] != "failed" || entry["last_error"].as_str().is_none_or(str::is_empty) {
        return Err(format!("a refused file is {entry}"));
    }
    match stage.world.journals().is_empty() {
        true => Err("LOST: the journal of a refused file is gone".into()),
        false => Ok(()),
    }
}

/// What must hold at the end of each round.
pub fn check_end(
    ask: &Ask,
    stage: &mut Stage<'_>,
    shown: &mut Shown,
    armed: &Armed,
    blows_ms: &[u64],
) -> Result<(), String> {
    stage.unmount()?;
    if ask.sabotage == Some(Sabotage::Object) {
        stage.world.bucket.put(KEY, &stage.content().bytes[1..]).map_err(|e| e.to_string())?;
    }
    stage.expects_wrong = ask.sabotage == Some(Sabotage::Expected);
    shown.written_bytes = stage.written_bytes();
    shown.lost_bytes = stage.lost_bytes()?;
    if shown.lost_bytes > 0 {
        return Err(format!("LOST {} bytes at the end", shown.lost_bytes));
    }
    let half: Vec<u64> = stage
        .watches
        .iter()
        .flat_map(|(watch, whole)| watch.half_files(if ask.sabotage == Some(Sabotage::Watch) { &[] } else { whole }))
        .collect();
    shown.half_published = half.len() as u64;
    if !half.is_empty() {
        return Err(format!("HALF files were published: sizes {half:?}"));
    }
    if let Err(problem) = stage.check_contents(ask.sabotage == Some(Sabotage::States)) {
        shown.half_published += 1;
        return Err(problem);
    }
    if stage.watches.iter().all(|(watch, _)| watch.looks() == 0) {
        return Err("nobody looked at the keys".into());
    }
    shown.sent_twice_bytes = sent_twice(ask, stage, armed, blows_ms);
    if shown.sent_twice_bytes > 0 {
        return Err(format!("SENT TWICE {} bytes beyond broken tries", shown.sent_twice_bytes));
    }
    let left = stage.world.journals();
    match left.is_empty() {
        true => Ok(()),
        false => Err(format!("journals are left although all is in BOS: {left:?}")),
    }
}

/// Bytes of bodies of parts and small objects beyond the file itself and its broken tries, by the counts of the proxy.
fn sent_twice(ask: &Ask, stage: &Stage<'_>, armed: &Armed, blows_ms: &[u64]) -> u64 {
    if ask.phase.story.is_shared() {
        // Parts are sent for either program, and how often depends on who is run again; the other columns count them.
        return 0;
    }
    let counts = stage.world.proxy.counts();
    let of_file = if ask.phase.story.writes() { stage.written_bytes() } else { 0 };
    let len = |part: Option<u32>| match part {
        None => SMALL_BYTES,
        Some(LAST_PART) => BIG_BYTES - u64::from(LAST_PART - 1) * PART_BYTES,
        Some(_) => PART_BYTES,
    };
    let ids: Vec<u64> = armed.rules.iter().map(Rule::id).collect();
    let broken = counts.log.iter().filter(|line| {
        let carries = matches!(line.asked.call, Call::UploadPart | Call::PutObject) && line.asked.key == KEY;
        let refused = !line.status.is_some_and(|status| (200..300).contains(&status));
        let treated = !ask.fault.is_harmless() && line.rule.is_some_and(|rule| ids.contains(&rule));
        let under_way = line.from_ms.saturating_sub(JUST_BEFORE_MS)..=line.at_ms + JUST_BEFORE_MS;
        let at_blow = blows_ms.iter().any(|at| under_way.contains(at));
        carries && (refused || treated || at_blow)
    });
    let allowed = of_file + broken.map(|line| len(line.asked.part)).sum::<u64>();
    // BOS does not hold them any more, or not as written: they must be sent anew.
    let anew = if ask.fault.spoils() || (ask.fault.name == "no-upload-lie" && ask.phase.call == Call::ListParts) {
        of_file * armed.hits().max(1)
    } else {
        0
    };
    let allowed = if ask.sabotage == Some(Sabotage::Allowance) { allowed.saturating_sub(1) } else { allowed + anew };
    let sent: u64 = counts.parts.iter().filter(|((key, _), _)| key == KEY).map(|(_, count)| count.body_bytes).sum();
    // Markers of directories have no bytes.
    let sent = sent + counts.of(Call::PutObject).body_bytes;
    sent.saturating_sub(allowed)
}
