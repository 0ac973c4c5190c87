//! The commands for people.

pub mod args;
pub mod connect;
pub mod exit;
pub mod handover;
pub mod interrupt;
pub mod mount;
pub mod mount_point;
pub mod offline;
pub mod output;
pub mod resume;
pub mod serve;
pub mod serving;
pub mod status;
pub mod umount;
pub mod uploads;
pub mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Arguments, Command};
use exit::{CliError, Exit};

use crate::config::credentials::GivenKeys;
use crate::config::option_list;

/// Runs the command that the process arguments name.
pub fn run() -> ExitCode {
    let result = run_arguments(std::env::args_os().collect());
    match result {
        Ok(()) => ExitCode::from(Exit::Ok),
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_code())
        }
    }
}

fn run_arguments(arguments: Vec<OsString>) -> Result<(), CliError> {
    if arguments.get(1).is_some_and(|first| first == handover::CHILD_FLAG) {
        return mount::run_child();
    }
    let Some(arguments) = as_mount_command(arguments)? else { return Ok(()) };
    let is_mount = arguments.get(1).is_some_and(|first| first == "mount");
    let (arguments, given) = if is_mount {
        option_list::expand(arguments).map_err(CliError::usage)?
    } else {
        (arguments, GivenKeys::default())
    };
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => return shown_by_clap(&error),
    };
    match parsed.command {
        Command::Mount(args) => mount::run(*args, given),
        Command::Umount(args) => umount::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Uploads(command) => uploads::run(&command),
        Command::Verify(args) => verify::run(&args),
        Command::Serve(args) => serve::run(&args),
    }
}

/// Help, version and usage errors are worded and printed by clap.
fn shown_by_clap(error: &clap::Error) -> Result<(), CliError> {
    match error.print() {
        Err(failed) if failed.kind() != std::io::ErrorKind::BrokenPipe => return Err(failed.into()),
        _ => {}
    }
    if error.use_stderr() { Err(CliError::new(Exit::Usage, "")) } else { Ok(()) }
}

/// Called as `mount.bosfs` or `mount.fuse.bosfs`, by mount(8): `SPEC DIR [-sfnvrw] [-N NAMESPACE] [-o LIST] [-t TYPE]` without
/// a subcommand. `None`: nothing is to be done (`-f`, mount(8)'s dry run).
fn as_mount_command(arguments: Vec<OsString>) -> Result<Option<Vec<OsString>>, CliError> {
    let name = arguments.first().map(std::path::PathBuf::from).unwrap_or_default();
    let name = name.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !matches!(name, "mount.bosfs" | "mount.fuse.bosfs" | "mount.fuse3.bosfs") {
        return Ok(Some(arguments));
    }
    let mut ours: Vec<OsString> = vec!["bosfs".into(), "mount".into()];
    let mut rest = arguments.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("-f") => return Ok(None),
            Some("-s" | "-n" | "-v" | "-w") => {}
            Some("-r") => ours.push("--read-only".into()),
            Some("-t") => drop(rest.next()),
            Some("-N") => return Err(CliError::usage("-N: bosfs cannot mount in another namespace")),
            _ => ours.push(argument),
        }
    }
    Ok(Some(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount_command(arguments: &[&str]) -> Option<Vec<String>> {
        let result = as_mount_command(arguments.iter().map(OsString::from).collect()).unwrap();
        result.map(|arguments| arguments.into_iter().map(|a| a.into_string().unwrap()).collect())
    }

    #[test]
    fn mount_8_calls_us_without_a_subcommand() {
        let ours =
            mount_command(&["/sbin/mount.bosfs", "bkt/p", "/mnt", "-n", "-o", "rw,ak=A", "-t", "fuse.bosfs", "-r"]);
        assert_eq!(ours.unwrap(), ["bosfs", "mount", "bkt/p", "/mnt", "-o", "rw,ak=A", "--read-only"]);
        assert_eq!(mount_command(&["mount.fuse.bosfs", "bkt", "/mnt", "-f"]), None);
        assert_eq!(mount_command(&["bosfs", "status", "-f"]).unwrap(), ["bosfs", "status", "-f"]);
    }
}
