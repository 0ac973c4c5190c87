//! Answers a request in the worker when that needs no waiting, else from a task, where a signal or a time limit can end the
//! wait.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::task::noop_waker_ref;
use tokio::time::Instant;

use crate::fs::error::{FsError, FsResult};
use crate::fs::process;
use crate::fs::{About, Fs};

/// How often a waiting call looks for signals.
const SIGNAL_POLL: Duration = Duration::from_millis(100);
/// What counts of one such pause, however late it ends.
const POLL_MAX: Duration = Duration::from_secs(1);
/// How long a call that moves no data may take.
const PLAIN_CALL_MAX: Duration = Duration::from_secs(30);

/// How a call may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// At most [`PLAIN_CALL_MAX`]; then, or on a signal, it is given up.
    Asking,
    /// At most [`PLAIN_CALL_MAX`] for the program; the act goes on behind.
    Acting,
    /// Without limit; on a signal it is given up.
    Reading,
    /// Without limit of its own; on a signal the act goes on behind.
    Publishing,
    /// As long as `--timeout` allows; then, or on a signal, the act goes on behind.
    Moving(Option<Duration>),
}

impl Wait {
    fn limit(self) -> Option<Duration> {
        match self {
            Wait::Asking | Wait::Acting => Some(PLAIN_CALL_MAX),
            Wait::Reading | Wait::Publishing => None,
            Wait::Moving(limit) => limit,
        }
    }

    fn goes_on(self) -> bool {
        matches!(self, Wait::Acting | Wait::Publishing | Wait::Moving(_))
    }

    /// What the program is told after `limit`.
    fn over(self, limit: Duration) -> FsError {
        let seconds = limit.as_secs();
        match self {
            Wait::Moving(_) => FsError::told(
                libc::EIO,
                format!("not done after {seconds} s (--timeout); it goes on behind: see `bosfs status`"),
            ),
            _ => FsError::told(libc::ETIMEDOUT, format!("no answer from BOS within {seconds} s")),
        }
    }
}

type Work<T> = Pin<Box<dyn Future<Output = FsResult<T>> + Send>>;

/// Runs `work` for whoever asks and replies: at once from this thread if it needs no waiting. `undo` is given the
/// result of an act whose caller is not waiting any more.
pub(super) fn answer<T: Send + 'static>(
    fs: &Arc<Fs>,
    about: About,
    wait: Wait,
    work: impl Future<Output = FsResult<T>> + Send + 'static,
    undo: impl FnOnce(T) + Send + 'static,
    reply: impl FnOnce(FsResult<T>) + Send + 'static,
) {
    let broken = fs.clone();
    let mut work: Work<T> = Box::pin(AssertUnwindSafe(work).catch_unwind().map(move |result| match result {
        Ok(result) => result,
        // The panic hook has told where.
        Err(_) => Err(FsError::told(libc::EIO, broken.panicked(about))),
    }));
    let _runtime = fs.runtime().enter();
    if let Poll::Ready(result) = work.as_mut().poll(&mut Context::from_waker(noop_waker_ref())) {
        return reply(result);
    }
    // What the act leaves behind when its caller has left belongs to it.
    let under_way = wait.goes_on().then(|| fs.act_under_way());
    let in_kernel = fs.waiting_in(about.ino);
    fs.runtime().spawn(async move {
        let _under_way = under_way;
        let mut task = tokio::spawn(work);
        let given_up = tokio::select! {
            biased;
            joined = &mut task => {
                reply(joined.unwrap_or_else(|_| Err(FsError::told(libc::EIO, "bosfs is being stopped"))));
                drop(in_kernel);
                return;
            }
            error = reason_to_stop(about.tid, wait) => error,
        };
        reply(Err(given_up));
        drop(in_kernel);
        if !wait.goes_on() {
            task.abort();
        }
        // An act that ends after its caller has left must not leave handles or lookups that the kernel never heard of.
        match task.await {
            Ok(Ok(result)) => undo(result),
            Ok(Err(error)) if !error.message.is_empty() => log::warn!("after its caller had left: {error}"),
            Ok(Err(_)) | Err(_) => {}
        }
    });
}

/// Returns when the thread `tid` has a signal that should end its wait, or when it has waited long enough.
async fn reason_to_stop(tid: u32, wait: Wait) -> FsError {
    // Summed up, not read off the clock: time in which this process was stopped does not count.
    let mut waited = Duration::ZERO;
    loop {
        let from = Instant::now();
        tokio::time::sleep(SIGNAL_POLL).await;
        waited += from.elapsed().min(POLL_MAX);
        if process::stop_signal_pending(tid) {
            return FsError::plain(libc::EINTR);
        }
        if let Some(limit) = wait.limit()
            && waited >= limit
        {
            return wait.over(limit);
        }
    }
}
