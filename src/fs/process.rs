//! What `/proc` tells of the processes that call.

use std::fs;

/// Bit of `flags` in `/proc/<pid>/stat`: the process is exiting.
const PF_EXITING: u64 = 0x4;
/// Signals that end a wait although the program has a handler for them: the ones by which people and `timeout` stop
/// programs. Other caught signals (SIGCHLD, SIGURG of the Go runtime, profiling timers, ...) must not break a `close`.
const STOPPING: u64 = bit(libc::SIGHUP)
    | bit(libc::SIGINT)
    | bit(libc::SIGQUIT)
    | bit(libc::SIGTERM)
    | bit(libc::SIGALRM)
    | bit(libc::SIGUSR1)
    | bit(libc::SIGUSR2);
/// Signals whose default action does not end the process.
const HARMLESS: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Process (thread group) of a thread. `None`: gone, or not visible from here.
pub fn thread_group(tid: u32) -> Option<u32> {
    if tid == 0 {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status_field(&status, "Tgid:")?.parse().ok()
}

/// How a process is at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessState {
    /// Command name.
    pub name: String,
    /// Whether it is on its way out.
    pub exiting: bool,
    /// The signal that killed it.
    pub killed_by: Option<i32>,
}

/// State of the process or thread `pid`. `None`: not readable, which counts as a living process.
///
/// `stat` waits while the process is in execve(2), and execve waits for us: closing its close-on-exec descriptors sends a
/// flush. So `status`, which never waits, is asked first: a process that still has memory is not exiting (the kernel takes
/// the memory away before it closes the files), and one that has none is not in execve.
pub fn process_state(pid: u32) -> Option<ProcessState> {
    if pid == 0 {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    if status_field(&status, "VmSize:").is_some() {
        let name = status_field(&status, "Name:").unwrap_or_default().to_owned();
        return Some(ProcessState { name, exiting: false, killed_by: None });
    }
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Whether a signal waits that should end the call in which the thread `tid` hangs.
pub fn stop_signal_pending(tid: u32) -> bool {
    tid != 0 && fs::read_to_string(format!("/proc/{tid}/status")).is_ok_and(|status| stopping_signals(&status) != 0)
}

fn parse_stat(stat: &str) -> Option<ProcessState> {
    // The name stands in parentheses and may contain any character, parentheses too.
    let open = stat.find('(')?;
    let close = stat.rfind(')')?;
    let fields: Vec<&str> = stat.get(close + 1..)?.split_ascii_whitespace().collect();
    let flags: u64 = fields.get(6)?.parse().ok()?;
    let exit_code: i32 = fields.last()?.parse().ok()?;
    let signal = exit_code & 0x7f;
    Some(ProcessState {
        name: stat.get(open + 1..close)?.to_owned(),
        exiting: flags & PF_EXITING != 0,
        killed_by: (signal != 0).then_some(signal),
    })
}

fn stopping_signals(status: &str) -> u64 {
    let mask = |name| status_field(status, name).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    let pending = (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !mask("SigIgn:");
    let caught = mask("SigCgt:");
    pending & ((caught & STOPPING) | (!caught & !HARMLESS))
}

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(name: &str, flags: u64, exit_code: i32) -> String {
        format!("42 ({name}) R 1 42 42 0 -1 {flags} 1 2 3 4 5 {exit_code}\n")
    }

    #[test]
    fn a_kill_is_told_by_the_exit_code_alone() {
        let killed = parse_stat(&stat("cp", 0x404, 9)).unwrap();
        assert_eq!(killed, ProcessState { name: "cp".into(), exiting: true, killed_by: Some(9) });
        // A thread of a process that exits with status 1: flag 0x400, wait status 256.
        assert_eq!(parse_stat(&stat("cp", 0x404, 256)).unwrap().killed_by, None);
        // With a core dump bit 7 is set too.
        assert_eq!(parse_stat(&stat("cp", 0x404, 0x8b)).unwrap().killed_by, Some(11));
        assert!(!parse_stat(&stat("cp", 0x400, 0)).unwrap().exiting);
    }

    #[test]
    fn names_may_hold_parentheses_and_spaces() {
        assert_eq!(parse_stat(&stat("a) R (b", 4, 15)).unwrap().name, "a) R (b");
        assert_eq!(parse_stat(""), None);
        assert_eq!(parse_stat("1 (x) R 2"), None);
    }

    #[test]
    fn signals_count_unless_blocked_ignored_or_harmless() {
        let status = |pnd: u64, shd: u64, blk: u64, ign: u64, cgt: u64| {
            format!(
                "SigPnd:\t{pnd:016x}\nShdPnd:\t{shd:016x}\nSigBlk:\t{blk:016x}\nSigIgn:\t{ign:016x}\nSigCgt:\t{cgt:016x}\n"
            )
        };
        let int = bit(libc::SIGINT);
        assert_ne!(stopping_signals(&status(0, int, 0, 0, 0)), 0);
        assert_ne!(stopping_signals(&status(int, 0, 0, 0, int)), 0, "caught Ctrl-C stops a wait too");
        assert_eq!(stopping_signals(&status(int, 0, int, 0, 0)), 0, "blocked");
        assert_eq!(stopping_signals(&status(int, 0, 0, int, 0)), 0, "ignored");
        let urg = bit(libc::SIGURG);
        assert_eq!(stopping_signals(&status(urg, 0, 0, 0, urg)), 0, "the Go runtime sends these all the time");
        assert_eq!(stopping_signals(&status(bit(libc::SIGCHLD), 0, 0, 0, 0)), 0);
        assert_ne!(stopping_signals(&status(bit(libc::SIGKILL), 0, 0, 0, 0)), 0);
        assert_eq!(stopping_signals(""), 0);
    }

    #[test]
    fn this_process_is_readable() {
        let me = std::process::id();
        assert_eq!(thread_group(me), Some(me));
        let state = process_state(me).unwrap();
        assert!(!state.exiting && state.killed_by.is_none());
        assert_eq!(thread_group(0), None);
    }
}
