//! `bosfs status`: what every mount of this user, and every journal without one, has still to send.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::StatusArgs;
use super::exit::CliError;
use super::interrupt::on_interrupt;
use super::output::{self, Table};
use super::serving::snapshot_through;
use crate::journal::Journal;
use crate::journal::state_dir::{list_state_dirs, read_holder, read_identity, uploads_in};
use crate::object::Timestamp;
use crate::observe::control::ControlClient;
use crate::observe::mount_table::MountEntry;
use crate::observe::{StatusSnapshot, mount_table};
use crate::upload::FileStatus;
use crate::upload::state::FileState;

/// All that `bosfs status --json` prints.
#[derive(Debug, Default, serde::Serialize)]
struct Report {
    /// Running mounts.
    mounts: Vec<StatusSnapshot>,
    /// State directories with unfinished files that nobody works on.
    offline: Vec<StatusSnapshot>,
    /// Mounts that do not answer.
    silent: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// The folder given is neither a mount nor a state directory.
pub fn run(args: &StatusArgs) -> Result<(), CliError> {
    if args.watch {
        // That is how one ends it.
        on_interrupt(|| Ok(()));
    }
    loop {
        let report = match &args.dir {
            Some(dir) => report_of(dir)?,
            None => report_of_all(),
        };
        if args.json {
            output::json(&report, args.watch)?;
        } else {
            if args.watch {
                // Home, and erase what follows: no flicker.
                output::line("\x1b[H\x1b[J")?;
            }
            output::line(render(&report))?;
        }
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// State directories that bosfs knows of: those below the default place.
pub fn known_state_dirs() -> Vec<PathBuf> {
    list_state_dirs()
}

fn report_of(dir: &Path) -> Result<Report, CliError> {
    if read_identity(dir).is_some() {
        let mut report = Report::default();
        add_state_dir(&mut report, dir, true);
        return Ok(report);
    }
    let shown = dir.display();
    let resolved = mount_table::resolve(dir).map_err(|e| CliError::caused(format!("cannot find {shown}"), &e))?;
    // Any folder within the mount will do.
    let entries = mount_table::read()?;
    let entry = entries.iter().rev().filter(|e| resolved.starts_with(&e.dir)).max_by_key(|e| e.dir.as_os_str().len());
    let Some(entry) = entry.filter(|entry| entry.is_bosfs()) else {
        return Err(CliError::failed(format!("{shown} is neither a bosfs mount nor a state folder")));
    };
    let through = snapshot_through(&entry.dir);
    let Some(seen) = through else {
        return Err(CliError::failed(format!(
            "the mount of {} at {} does not answer",
            entry.source,
            entry.dir.display()
        ))
        .hint(format!(
            "if its process is gone, mount it again: bosfs mount {} {}",
            entry.source,
            entry.dir.display()
        )));
    };
    // The socket is fresher than a file that the kernel may have cached.
    let snapshot = ControlClient::status(&seen.state_dir).unwrap_or(seen);
    Ok(Report { mounts: vec![snapshot], ..Report::default() })
}

fn report_of_all() -> Report {
    let mut report = Report::default();
    for dir in known_state_dirs() {
        add_state_dir(&mut report, &dir, false);
    }
    let uid = rustix::process::geteuid().as_raw();
    let mut entries = mount_table::read().unwrap_or_default();
    entries.retain(|entry| {
        let seen = report.mounts.iter().any(|m| m.mount_point.as_deref() == Some(entry.dir.as_path()));
        entry.is_bosfs() && !seen && (uid == 0 || entry.user_id == Some(uid))
    });
    // Side by side: each that does not answer is waited for, and there may be several.
    let asked = std::thread::scope(|scope| {
        let ask = |entry: &MountEntry| {
            let snapshot = snapshot_through(&entry.dir)?;
            Some(ControlClient::status(&snapshot.state_dir).unwrap_or(snapshot))
        };
        let asking: Vec<_> = entries.iter().map(|entry| scope.spawn(move || ask(entry))).collect();
        asking.into_iter().map(|thread| thread.join().ok().flatten()).collect::<Vec<_>>()
    });
    for (entry, snapshot) in entries.iter().zip(asked) {
        match snapshot {
            Some(snapshot) => report.mounts.push(snapshot),
            None => report.silent.push(format!("{} at {}", entry.source, entry.dir.display())),
        }
    }
    report
}

fn add_state_dir(report: &mut Report, dir: &Path, even_if_empty: bool) {
    if read_holder(dir).is_some() {
        match ControlClient::status(dir) {
            Ok(snapshot) => report.mounts.push(snapshot),
            // Just starting or ending, or held by `bosfs uploads`.
            Err(_) => report.offline.extend(journal_snapshot(dir)),
        }
    } else if let Some(snapshot) = journal_snapshot(dir)
        && (even_if_empty || !snapshot.files.is_empty() || !snapshot.unreadable.is_empty())
    {
        report.offline.push(snapshot);
    }
}

/// What the journals of the state directory `dir` say, read without changing anything, whoever holds it. `None`: it is no
/// state directory.
pub fn journal_snapshot(dir: &Path) -> Option<StatusSnapshot> {
    let identity = read_identity(dir)?;
    let mut snapshot = StatusSnapshot {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        phase: "offline".to_owned(),
        bucket: identity.bucket,
        prefix: identity.prefix,
        endpoint: identity.endpoint,
        state_dir: dir.to_owned(),
        ..StatusSnapshot::default()
    };
    let mut files = Vec::new();
    let uploads = uploads_in(dir).unwrap_or_else(|error| {
        // Not to be read is not to be empty.
        snapshot.unreadable.push(format!("{}: {error}", dir.display()));
        Vec::new()
    });
    for upload in uploads {
        match offline_file(&upload) {
            Ok(Some(file)) => files.push(file),
            Ok(None) => {}
            Err(why) => snapshot.unreadable.push(format!("{}: {why}", upload.display())),
        }
    }
    for moved in crate::moves::offline_status(dir) {
        match moved {
            Ok(moved) => files.push(moved),
            Err(why) => snapshot.unreadable.push(why),
        }
    }
    Some(snapshot.with_files(files))
}

/// The file of one journal; `None` for one that is finished and only waits to be cleared away.
fn offline_file(dir: &Path) -> Result<Option<FileStatus>, String> {
    let replay = Journal::read(dir).map_err(|e| e.to_string())?;
    if replay.records.is_empty() {
        return match replay.damage {
            Some(damage) => Err(damage),
            None => Ok(None),
        };
    }
    let state = FileState::replay(&replay.records).map_err(|e| e.to_string())?;
    let mut file = super::offline::status_of(&state, dir);
    if let Some(damage) = replay.damage {
        file.state = "failed".to_owned();
        file.last_error = Some(damage);
    }
    Ok(Some(file))
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for snapshot in &report.mounts {
        let place = snapshot.mount_point.as_ref().map(|dir| dir.display().to_string()).unwrap_or_default();
        let place = output::printable(&place);
        let what = if snapshot.phase == "draining" { "was at" } else { "at" };
        text.push_str(&format!(
            "{} {what} {place} (process {}, {})\n",
            snapshot.source(),
            snapshot.pid,
            snapshot.endpoint
        ));
        add_files(&mut text, snapshot);
    }
    for snapshot in &report.offline {
        text.push_str(&format!(
            "{} not mounted ({}, journal in {})\n",
            snapshot.source(),
            snapshot.endpoint,
            snapshot.state_dir.display()
        ));
        add_files(&mut text, snapshot);
    }
    for silent in &report.silent {
        text.push_str(&format!("{} does not answer\n", output::printable(silent)));
    }
    if text.is_empty() {
        text.push_str("no mounts, and nothing waits to be sent\n");
    }
    text.truncate(text.trim_end().len());
    text
}

fn add_files(text: &mut String, snapshot: &StatusSnapshot) {
    if let Some(since) = snapshot.line_down_since {
        let down = Duration::from_secs(u64::try_from(Timestamp::now().sec - since).unwrap_or(0));
        let why = snapshot.line_error.as_deref().unwrap_or("no answer");
        text.push_str(&format!(
            "  BOS has not answered for {} ({}); what is below waits, and goes on by itself when it does\n",
            output::duration(down),
            output::printable(why)
        ));
    }
    if let Some(days) = snapshot.abort_rule_days {
        text.push_str(&format!(
            "  a lifecycle rule of the bucket aborts unfinished uploads after {days} days; the spool is kept whole\n"
        ));
    }
    if let Some(why) = &snapshot.abort_rules_unknown {
        text.push_str(&format!(
            "  the lifecycle rules of the bucket cannot be read, and one may abort unfinished uploads; the spool is kept whole \
             ({})\n",
            output::printable(why)
        ));
    }
    let mut table = Table::new(&[
        "  FILE",
        "STATE",
        ">IN BOS",
        ">SPOOLED",
        ">TOTAL",
        ">KEPT",
        ">SENT",
        ">SPEED",
        ">ETA",
        ">TRIES",
        "UPLOAD ID",
    ]);
    for file in &snapshot.files {
        let left = file.size.saturating_sub(file.bytes_in_bos);
        table.row(vec![
            format!("  {}", file.key),
            file.state.clone(),
            output::bytes(file.bytes_in_bos),
            output::bytes(file.bytes_spooled),
            output::bytes(file.size),
            file.parts_kept.to_string(),
            file.parts_sent.to_string(),
            format!("{}/s", output::bytes(file.bytes_per_s)),
            output::eta(left, file.bytes_per_s),
            file.tries.to_string(),
            file.upload_id.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    if table.is_empty() {
        text.push_str("  nothing waits to be sent\n");
    } else {
        text.push_str(&table.render());
        text.push('\n');
    }
    for file in &snapshot.files {
        if let Some(error) = &file.last_error {
            text.push_str(&format!("  {}: {}\n", output::printable(&file.key), output::printable(error)));
        }
        if let Some(left) = file.retry_in_s {
            let (key, left) = (output::printable(&file.key), output::duration(Duration::from_secs(left)));
            text.push_str(&format!("  {key}: tried again by itself in {left}\n"));
        }
        if file.state == "interrupted" {
            let key = output::printable(&format!("{}/{}", snapshot.bucket, file.key));
            text.push_str(&format!(
                "  {key}: its writer was killed; publish what is there with: bosfs uploads complete {key}\n"
            ));
        }
    }
    for why in &snapshot.unreadable {
        text.push_str(&format!("  unreadable: {}\n", output::printable(why)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::file;

    #[test]
    fn the_table_names_files_errors_and_the_next_command() {
        let mut failed = file("b", "failed", 5, 0);
        failed.last_error = Some("no such bucket".to_owned());
        let snapshot = StatusSnapshot {
            bucket: "bkt".into(),
            mount_point: Some("/mnt".into()),
            pid: 7,
            phase: "mounted".into(),
            ..StatusSnapshot::default()
        };
        let snapshot = snapshot.with_files(vec![file("a", "interrupted", 10, 4), failed]);
        let text = render(&Report { mounts: vec![snapshot], ..Report::default() });
        for part in ["bkt at /mnt (process 7", "b: no such bucket", "bosfs uploads complete bkt/a", "4 B"] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert_eq!(render(&Report::default()), "no mounts, and nothing waits to be sent");
    }
}
