//! `bosfs umount`: wait until every closed file is in BOS, detach, wait until the process has ended.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::args::UmountArgs;
use super::exit::{CliError, Exit};
use super::mount_point::{self, answered};
use super::serving::{Serving, serving, state_dirs_of};
use super::{interrupt, output, status};
use crate::journal::state_dir::{read_holder, read_identity};
use crate::observe::control::{Answer, ControlClient, Request};
use crate::observe::mount_table::MountEntry;
use crate::observe::{StatusSnapshot, mount_table};
use crate::upload::FileStatus;

/// Longest silence of a session that is asked for progress four times a second.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Runs the command.
///
/// # Errors
/// The folder is no bosfs mount, is busy, `--timeout` has passed, or files remain that are not in BOS.
pub fn run(args: &UmountArgs) -> Result<(), CliError> {
    let shown = args.dir.display();
    let dir = mount_table::resolve(&args.dir).map_err(|e| CliError::caused(format!("cannot find {shown}"), &e))?;
    let Some(entry) = mount_table::at(&dir)? else {
        return Err(CliError::failed(format!("nothing is mounted at {shown}")));
    };
    if !entry.is_bosfs() {
        return Err(CliError::failed(format!("{shown} is no bosfs mount but {}", entry.fs_type))
            .hint(format!("use the system's own: umount {shown}")));
    }
    let state_dir = match serving(&entry) {
        Serving::Session(state_dir) => state_dir,
        Serving::Nobody => return umount_dead(&entry),
        Serving::Unknown(why) => {
            return Err(CliError::failed(format!(
                "cannot tell which process serves the mount of {} at {shown}, and so not whether everything is in BOS ({why}); \
                 it stays mounted",
                entry.source
            ))
            .hint(format!(
                "unmount it as the user who mounted it, or as root; if its process is surely gone: umount -l {shown}, then mount \
                 it again as that user"
            )));
        }
    };
    let mut client = ControlClient::connect(&state_dir)
        .map_err(|e| CliError::caused(format!("the process of the mount at {shown} does not answer"), &e))?;
    client.send(&Request::Drain)?;
    follow(args, &dir, &mut client)
}

/// Detaches a mount whose process is gone. What its journal still has to send is told; that there is nothing, only where the
/// journal says so.
fn umount_dead(entry: &MountEntry) -> Result<(), CliError> {
    let (dir, source) = (entry.dir.display(), &entry.source);
    mount_point::detach(&entry.dir, true)
        .map_err(|e| CliError::caused(format!("the mount at {dir} is dead and cannot be detached"), &e))?;
    let message = format!("the mount of {source} at {dir} had no process any more; it is detached");
    match left_of(entry) {
        Left::Nothing => {
            output::note(message);
            Ok(())
        }
        Left::Files(count) => Err(CliError::new(
            Exit::FilesRemain,
            format!("{message}; its journal has {} to send", files(count)),
        )
        .hint(format!("mount it again and the uploads go on: bosfs mount {source} {dir}"))),
        Left::Unknown(why) => Err(CliError::new(
            Exit::FilesRemain,
            format!("{message}; whether everything is in BOS cannot be told: {why}"),
        )
        .hint(format!(
            "mount it again as the user who had mounted it, with the same --state-dir, and what is left goes on: bosfs mount \
             {source} {dir}"
        ))),
    }
}

/// What a dead mount left to be sent.
enum Left {
    Nothing,
    Files(usize),
    Unknown(String),
}

fn left_of(entry: &MountEntry) -> Left {
    let dirs = state_dirs_of(entry).into_iter().filter(|dir| read_identity(dir).is_some());
    let mut snapshots = Vec::new();
    for dir in dirs {
        // Somebody may have mounted the same anew, somewhere else.
        let snapshot = match read_holder(&dir) {
            Some(holder) => ControlClient::status(&dir).map_err(|_| format!("{} is in use by {holder}", dir.display())),
            None => status::journal_snapshot(&dir).ok_or_else(|| format!("{} cannot be read", dir.display())),
        };
        match snapshot {
            Ok(snapshot) if snapshot.source() != entry.source => {}
            Ok(snapshot) => snapshots.push(snapshot),
            Err(why) if status::journal_snapshot(&dir).is_none_or(|known| known.source() == entry.source) => {
                return Left::Unknown(why);
            }
            Err(_) => {}
        }
    }
    if let Some(why) = snapshots.iter().flat_map(|snapshot| &snapshot.unreadable).next() {
        return Left::Unknown(why.clone());
    }
    match snapshots.iter().map(|snapshot| snapshot.files.len()).sum() {
        _ if snapshots.is_empty() => Left::Unknown("no state folder of it is known here".to_owned()),
        0 => Left::Nothing,
        count => Left::Files(count),
    }
}

fn files(count: usize) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

/// Shows progress until the session has ended; detaches the mount when nothing closed is pending.
fn follow(args: &UmountArgs, dir: &Path, client: &mut ControlClient) -> Result<(), CliError> {
    let started = Instant::now();
    let bar = output::byte_bar(0);
    let is_detached = Arc::new(AtomicBool::new(false));
    interrupt::on_interrupt({
        let (bar, is_detached, shown) = (bar.clone(), is_detached.clone(), args.dir.display().to_string());
        move || {
            bar.finish_and_clear();
            let what = if is_detached.load(Ordering::Relaxed) {
                "is detached, but its process still works"
            } else {
                "stays mounted"
            };
            Err(CliError::new(Exit::Interrupted, format!("interrupted: {shown} {what}"))
                .hint("the uploads go on; look at them with: bosfs status"))
        }
    });
    let mut pid = 0;
    let mut bucket = "BUCKET".to_owned();
    let mut detached = false;
    let mut sent_before = 0u64;
    let mut still: Option<StatusSnapshot> = None;
    let remaining = loop {
        let left = args.timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
        if left == Some(Duration::ZERO) {
            bar.finish_and_clear();
            return Err(timed_out(args, detached, still.as_ref()));
        }
        let wait = left.map_or(SILENCE_MAX, |left| left.min(SILENCE_MAX));
        match client.next(Some(wait)) {
            Ok(Some(Answer::Progress { status })) => {
                pid = status.pid;
                bucket.clone_from(&status.bucket);
                let total = status.totals.bytes;
                let done = status.totals.bytes_in_bos;
                sent_before = sent_before.max(total);
                bar.set_length(sent_before.max(1));
                bar.set_position(done + sent_before.saturating_sub(total));
                bar.set_message(format!("{} to go", files(status.files.len())));
                still = Some(*status);
            }
            Ok(Some(Answer::Drained { remaining })) if !detached => {
                if let Err(error) = mount_point::detach(dir, args.lazy) {
                    bar.finish_and_clear();
                    return Err(cannot_detach(dir, &error, &remaining));
                }
                detached = true;
                is_detached.store(true, Ordering::Relaxed);
                bar.set_message("ending");
            }
            Ok(Some(Answer::Ended { remaining })) => break remaining,
            Ok(Some(Answer::Failed { message })) => return Err(CliError::failed(message)),
            Ok(Some(_)) => {}
            // One that ends properly says so last.
            Ok(None) => {
                bar.finish_and_clear();
                return Err(CliError::new(Exit::Interrupted, "the process of the mount was ended before it was done")
                    .hint("its journal keeps everything; mount again and the uploads go on"));
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut && left.is_some() => {}
            Err(error) => {
                bar.finish_and_clear();
                return Err(CliError::caused("the process of the mount does not answer any more", &error));
            }
        }
    };
    bar.finish_and_clear();
    wait_for_end(pid, Duration::from_secs(30));
    if !detached && mount_table::at(dir)?.is_some_and(|entry| entry.is_bosfs()) {
        mount_point::detach(dir, true)?;
    }
    result_of(&bucket, &remaining)
}

/// What `umount` says of the files that are left. Interrupted ones are named, not counted as a failure.
fn result_of(bucket: &str, remaining: &[FileStatus]) -> Result<(), CliError> {
    for file in remaining.iter().filter(|file| file.state == "interrupted") {
        let key = output::printable(&file.key);
        output::note(format!(
            "the writer of {key} was interrupted; it is kept, not published; publish it with: bosfs uploads complete \
             {bucket}/{key}"
        ));
    }
    let left: Vec<&FileStatus> =
        remaining.iter().filter(|f| !matches!(f.state.as_str(), "interrupted" | "idle" | "done")).collect();
    if left.is_empty() {
        return Ok(());
    }
    let mut message = format!("unmounted, but {} not in BOS; the journal keeps them:", files(left.len()));
    for file in left.iter().take(20) {
        let why = file.last_error.as_deref().unwrap_or("not sent yet");
        message.push_str(&format!("\n  {} ({}): {}", output::printable(&file.key), file.state, output::printable(why)));
    }
    if left.len() > 20 {
        message.push_str(&format!("\n  and {} more; see bosfs status", left.len() - 20));
    }
    Err(CliError::new(Exit::FilesRemain, message).hint(
        "the next mount tries failed files again; a conflict waits for: bosfs uploads complete --force or --as, or abort",
    ))
}

fn timed_out(args: &UmountArgs, detached: bool, still: Option<&StatusSnapshot>) -> CliError {
    let count = still.map_or(0, |status| status.files.len());
    let what = if detached { "detached, but its process still works" } else { "still mounted" };
    CliError::new(
        Exit::Interrupted,
        format!("--timeout has passed: {} is {what}, {} to go", args.dir.display(), files(count)),
    )
    .hint("the uploads go on; look at them with: bosfs status")
}

fn cannot_detach(dir: &Path, error: &io::Error, remaining: &[FileStatus]) -> CliError {
    let base = CliError::caused(format!("{} cannot be detached; it stays mounted", dir.display()), error);
    if error.kind() != io::ErrorKind::ResourceBusy {
        return base;
    }
    // Aside: /proc of a process that is just starting a program can block.
    let users = answered({
        let dir = dir.to_owned();
        move || mount_point::users_of(&dir, 8)
    })
    .unwrap_or_default();
    let who = if users.is_empty() { "some process".to_owned() } else { users.join(", ") };
    let hint = format!("in use by {who}; end them, or detach all the same with: bosfs umount --lazy {}", dir.display());
    match remaining.iter().find(|file| file.state == "writing") {
        Some(file) => base.hint(format!("{} is being written; {hint}", output::printable(&file.key))),
        None => base.hint(hint),
    }
}

/// Waits until process `pid` has ended, `longest` at most.
fn wait_for_end(pid: u32, longest: Duration) {
    let started = Instant::now();
    while pid != 0 && is_running(pid) && started.elapsed() < longest {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether process `pid` exists and is no zombie: one whose parent is slow to take notice has ended all the same.
fn is_running(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name before the last `)` may hold anything (proc(5)).
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::file;

    #[test]
    fn zombies_have_ended() {
        assert!(is_running(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        wait_for_end(child.id(), Duration::from_secs(10));
        assert!(!is_running(child.id()), "ended, but not yet waited for");
        child.wait().unwrap();
        assert!(!is_running(child.id()));
    }

    #[test]
    fn interrupted_files_are_no_failure_but_failed_ones_are_listed() {
        assert_eq!(result_of("bkt", &[file("a", "interrupted", 5, 2)]), Ok(()));
        let error = result_of("bkt", &[file("a", "interrupted", 5, 2), file("b", "conflict", 5, 5)]).unwrap_err();
        assert_eq!(error.exit_code(), Exit::FilesRemain as u8);
        assert!(error.to_string().contains("b (conflict)") && !error.to_string().contains("a ("), "{error}");
    }
}
