//! The control socket `control.sock` (0600) in the state directory: one JSON request a line, one or more JSON answers a
//! line. This is the form of both and the asking side; `session` answers.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::StatusSnapshot;
use crate::upload::FileStatus;

/// Name of the socket in the state directory.
pub const SOCKET_NAME: &str = "control.sock";
/// Longest request, bytes.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;

/// What can be asked of a running session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// One [`Answer::Status`].
    Status,
    /// [`Answer::Progress`] twice a second, [`Answer::Drained`] when nothing closed is pending, progress again once the
    /// mount is gone, [`Answer::Ended`] last.
    Drain,
    /// Stop at once: detach the mount, keep everything in the journal.
    Stop,
    /// Publish the file of this key now; with `force` also over a conflict.
    Complete {
        /// Key of the object.
        key: String,
        /// Overwrite what is there.
        #[serde(default)]
        force: bool,
        /// Publish it under this key instead, which must be free.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        as_key: Option<String>,
    },
    /// Drop the unfinished file of this key; the object that was there before stays.
    Abort {
        /// Key of the object.
        key: String,
    },
}

/// What a session answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Answer {
    /// The present state.
    Status {
        /// All of it.
        status: Box<StatusSnapshot>,
    },
    /// On the way of a drain.
    Progress {
        /// All of it.
        status: Box<StatusSnapshot>,
    },
    /// Nothing closed is pending.
    Drained {
        /// Files that failed, are in conflict or interrupted.
        remaining: Vec<FileStatus>,
    },
    /// The session ends now.
    Ended {
        /// Files that are not in BOS.
        remaining: Vec<FileStatus>,
    },
    /// The request is done.
    Done {
        /// For people.
        message: String,
    },
    /// The request failed.
    Failed {
        /// For people.
        message: String,
    },
}

/// The socket of the state directory `dir` under a name that fits into a socket address (108 bytes), with the descriptor
/// that the name needs as long as it is used.
///
/// # Errors
/// The directory cannot be opened.
pub fn socket_address(dir: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let fd = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", fd.as_raw_fd()));
    Ok((fd, address))
}

/// A connection to a session.
pub struct ControlClient {
    reader: BufReader<UnixStream>,
}

impl ControlClient {
    /// Connects to the session of the state directory `dir`.
    ///
    /// # Errors
    /// Nobody answers there.
    pub fn connect(dir: &Path) -> io::Result<Self> {
        let (_fd, address) = socket_address(dir)?;
        let stream = UnixStream::connect(address)?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The session is gone.
    pub fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line)
    }

    /// The next answer; `None` when the session has closed the connection. `TimedOut` after `timeout`, if it is given; the
    /// connection must not be used any more then.
    ///
    /// # Errors
    /// The connection broke, or the answer makes no sense.
    pub fn next(&mut self, timeout: Option<Duration>) -> io::Result<Option<Answer>> {
        self.reader.get_ref().set_read_timeout(timeout)?;
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => serde_json::from_str(&line).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for one thing and waits for its answer.
    ///
    /// # Errors
    /// The session is gone, or does not answer within `timeout`.
    pub fn ask(dir: &Path, request: &Request, timeout: Option<Duration>) -> io::Result<Answer> {
        let mut client = Self::connect(dir)?;
        client.send(request)?;
        client.next(timeout)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// The present state of the session of the state directory `dir`.
    ///
    /// # Errors
    /// Nobody answers within 5 s.
    pub fn status(dir: &Path) -> io::Result<StatusSnapshot> {
        match Self::ask(dir, &Request::Status, Some(Duration::from_secs(5)))? {
            Answer::Status { status } => Ok(*status),
            other => Err(io::Error::other(format!("unexpected answer {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn requests_and_answers_are_one_line_each() {
        let request = Request::Complete { key: "a\nb".into(), force: true, as_key: None };
        let line = serde_json::to_string(&request).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        assert_eq!(serde_json::from_str::<Request>(r#"{"do":"drain"}"#).unwrap(), Request::Drain);
    }

    #[test]
    fn a_directory_with_a_name_longer_than_socket_addresses_works() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("d".repeat(200));
        std::fs::create_dir(&dir).unwrap();
        let (_fd, address) = socket_address(&dir).unwrap();
        let listener = UnixListener::bind(address).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            stream.write_all(b"{\"is\":\"done\",\"message\":\"ok\"}\n").unwrap();
            line
        });
        let answer = ControlClient::ask(&dir, &Request::Stop, None).unwrap();
        assert!(matches!(answer, Answer::Done { message } if message == "ok"));
        assert_eq!(server.join().unwrap(), "{\"do\":\"stop\"}\n");
        assert!(dir.join(SOCKET_NAME).exists());
    }

    #[test]
    fn a_silent_session_is_a_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let timeout = Some(Duration::from_millis(20));
        let error = ControlClient::ask(dir.path(), &Request::Status, timeout).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
