//! One open file of the mount, used from a thread of its own: a call that hangs is seen by whoever waits for it, and hangs
//! nobody else.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use crate::LOCAL;

type Job = Box<dyn FnOnce(&mut Option<File>) + Send>;

/// What a call will have given.
pub struct Pending<T>(Receiver<T>);

impl<T> Pending<T> {
    /// Of a job that runs in a thread of its own.
    pub fn of(job: impl FnOnce() -> T + Send + 'static) -> Self
    where
        T: Send + 'static,
    {
        let (tell, told) = channel();
        std::thread::spawn(move || drop(tell.send(job())));
        Self(told)
    }

    /// Waits for the end of the call.
    ///
    /// # Panics
    /// It does not end in time.
    #[track_caller]
    pub fn within(self, limit: Duration, what: &str) -> T {
        self.0.recv_timeout(limit).unwrap_or_else(|_| panic!("{what}: no end within {limit:?}"))
    }

    /// Whether the call is still under way.
    pub fn is_under_way(&self) -> bool {
        matches!(self.0.try_recv(), Err(TryRecvError::Empty))
    }
}

/// See the module. Dropped, it closes the file and nobody waits for that.
pub struct Hand {
    jobs: Sender<Job>,
}

impl Hand {
    /// Begins to open `path`.
    pub fn begin_open(path: &Path, options: &OpenOptions) -> (Self, Pending<io::Result<()>>) {
        let (jobs, taken) = channel::<Job>();
        let (tell, told) = channel();
        let (path, options) = (path.to_owned(), options.clone());
        std::thread::spawn(move || {
            let (mut file, opened) = match options.open(path) {
                Ok(file) => (Some(file), Ok(())),
                Err(error) => (None, Err(error)),
            };
            let _ = tell.send(opened);
            taken.into_iter().for_each(|job| job(&mut file));
        });
        (Self { jobs }, Pending(told))
    }

    /// For reading and writing; the file is there.
    #[track_caller]
    pub fn open(path: &Path) -> Self {
        let (hand, opened) = Self::begin_open(path, OpenOptions::new().read(true).write(true));
        opened.within(LOCAL, "open for writing").expect("open for writing");
        hand
    }

    /// Begins a call.
    pub fn begin<T: Send + 'static>(
        &self,
        call: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Pending<io::Result<T>> {
        let (tell, told) = channel();
        let job: Job = Box::new(move |file| {
            let given = match file {
                Some(file) => call(file),
                None => Err(io::ErrorKind::NotFound.into()),
            };
            let _ = tell.send(given);
        });
        self.jobs.send(job).expect("the thread of the file lives");
        Pending(told)
    }

    /// A call that needs nothing but the local disk, and so ends without a network.
    #[track_caller]
    pub fn local<T: Send + 'static>(
        &self,
        what: &str,
        call: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> T {
        self.begin(call).within(LOCAL, what).unwrap_or_else(|e| panic!("{what}: {e}"))
    }

    /// Writes `bytes` at `at`, which needs no network.
    #[track_caller]
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.local("write", move |file| file.write_all_at(&bytes, at));
    }

    /// Begins to close it.
    pub fn begin_close(self) -> Pending<io::Result<()>> {
        let (tell, told) = channel();
        let job: Job = Box::new(move |file| {
            let closed = file.take().map_or(Ok(()), |file| nix::unistd::close(file).map_err(io::Error::from));
            let _ = tell.send(closed);
        });
        self.jobs.send(job).expect("the thread of the file lives");
        Pending(told)
    }

    /// Closes it.
    #[track_caller]
    pub fn close(self, limit: Duration, what: &str) {
        self.begin_close().within(limit, what).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}
