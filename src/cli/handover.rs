//! Starting ourselves again: as a daemon, or once more in the foreground without a secret in the arguments. What the
//! child needs goes through its stdin, never through arguments or environment; what it has to say comes back on stdout.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::args::MountArgs;
use super::exit::CliError;
use crate::config::credentials::GivenKeys;
use crate::config::{Keys, Secret};

/// First argument of a child that finds its orders on stdin.
pub const CHILD_FLAG: &str = "--daemon-child";
/// Longest order, bytes: it must fit into a pipe that nobody reads yet.
const ORDER_BYTES_MAX: u64 = 60 << 10;
/// Variables that carry secrets or that were settled before; the child does not inherit them.
const SETTLED_VARIABLES: [&str; 5] =
    ["BCE_ACCESS_KEY_ID", "BCE_SECRET_ACCESS_KEY", "BCE_SESSION_TOKEN", "BCE_SECURITY_TOKEN", "BOS_ENDPOINT"];

/// How a child mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// In the foreground.
    Foreground,
    /// It starts a daemon and waits for it, as its caller would have, whose arguments had a secret in them.
    Launcher,
    /// It leaves the session of the terminal and reports on stdout.
    Daemon,
}

/// What a child is to do.
#[derive(Serialize, Deserialize)]
pub struct Order {
    /// The mount, with absolute paths.
    pub mount: MountArgs,
    /// How.
    pub role: Role,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    session_token: Option<String>,
}

impl Order {
    /// To mount as `mount` says, with `keys` where they are not in a file.
    pub fn new(mount: MountArgs, role: Role, keys: Option<Keys>) -> Self {
        let (access_key_id, secret_access_key, session_token) = match keys {
            None => (None, None, None),
            Some(keys) => (
                Some(keys.access_key_id),
                Some(keys.secret_access_key.expose().to_owned()),
                keys.session_token.map(|token| token.expose().to_owned()),
            ),
        };
        Self { mount, role, access_key_id, secret_access_key, session_token }
    }

    /// The same for another role.
    #[must_use]
    pub fn in_role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    /// The keys in it.
    pub fn keys(&self) -> GivenKeys {
        GivenKeys {
            access_key_id: self.access_key_id.clone(),
            secret_access_key: self.secret_access_key.clone().map(Secret::new),
            session_token: self.session_token.clone().map(Secret::new),
        }
    }

    /// Reads the order that the parent wrote to stdin.
    ///
    /// # Errors
    /// There is none.
    pub fn from_stdin() -> Result<Self, CliError> {
        let mut text = String::new();
        io::stdin().take(ORDER_BYTES_MAX + 1).read_to_string(&mut text)?;
        serde_json::from_str(&text).map_err(|_| {
            // serde's message could quote a secret.
            CliError::usage(format!("{CHILD_FLAG} is for bosfs itself: it found no order on stdin"))
        })
    }

    fn to_json(&self) -> Result<Vec<u8>, CliError> {
        let json = serde_json::to_vec(self).map_err(|e| CliError::caused("cannot hand the options over", &e))?;
        if json.len() as u64 > ORDER_BYTES_MAX {
            return Err(CliError::usage("the options have more than 60 KiB"));
        }
        Ok(json)
    }
}

/// The child's command; bucket and folder are shown in `ps`, nothing else.
fn child(order: &Order) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("bosfs").arg(CHILD_FLAG).arg("mount").arg(order.mount.bucket.to_string()).arg(&order.mount.dir);
    for name in SETTLED_VARIABLES {
        command.env_remove(name);
    }
    command
}

/// What a daemon tells the process that started it.
#[derive(Serialize, Deserialize)]
enum Report {
    Ready,
    Failed(CliError),
}

/// Starts a daemon and waits for its report.
///
/// # Errors
/// The daemon's own error, or how it ended without one.
pub fn start_daemon(order: &Order) -> Result<(), CliError> {
    let json = order.to_json()?;
    let cannot = |e: &io::Error| CliError::caused("cannot start the background process", e);
    let mut command = child(order);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = command.spawn().map_err(|e| cannot(&e))?;
    if let Some(mut stdin) = process.stdin.take() {
        stdin.write_all(&json).map_err(|e| cannot(&e))?;
    }
    let mut line = String::new();
    if let Some(stdout) = process.stdout.take() {
        BufReader::new(stdout.take(ORDER_BYTES_MAX)).read_line(&mut line).map_err(|e| cannot(&e))?;
    }
    match serde_json::from_str(&line) {
        Ok(Report::Ready) => Ok(()),
        Ok(Report::Failed(error)) => {
            let _ = process.wait();
            Err(error)
        }
        Err(_) => {
            let ended = process.wait().map(|status| status.to_string()).unwrap_or_default();
            Err(CliError::failed(format!("the background process ended without a word ({ended})"))
                .hint("mount again with --foreground to see what it says"))
        }
    }
}

/// Becomes a new process of the same program whose arguments carry no secret.
///
/// # Errors
/// Returns only when that is not possible.
pub fn replace_self(order: &Order) -> CliError {
    let prepare = || -> Result<io::PipeReader, CliError> {
        let json = order.to_json()?;
        let (reader, mut writer) = io::pipe()?;
        writer.write_all(&json)?;
        Ok(reader)
    };
    match prepare() {
        Ok(reader) => {
            let error = child(order).stdin(reader).exec();
            CliError::caused("cannot start again without the secret in the arguments", &error)
        }
        Err(error) => error,
    }
}

/// The daemon's side: leaves the terminal's session and the present directory.
///
/// # Errors
/// What the system said.
pub fn become_daemon() -> io::Result<()> {
    rustix::process::setsid()?;
    std::env::set_current_dir("/")
}

/// Tells the parent how the start went, and lets go of stdin and stdout.
///
/// # Errors
/// The parent is gone: nobody wants the mount any more.
pub fn report(result: Result<(), CliError>) -> io::Result<()> {
    let report = match result {
        Ok(()) => Report::Ready,
        Err(error) => Report::Failed(error),
    };
    let mut line = serde_json::to_vec(&report)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()?;
    drop(out);
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}
