//! The one thread that writes the index: gathers what requests want to write into one transaction.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use redb::{Database, StorageBackend};
use tokio::sync::oneshot;

use super::files::DataFiles;
use super::tables::{Tx, TxEnd};
use super::{Result, stopped};
use crate::serve::error::ApiError;

/// At most so many requests wait; the connection limit keeps it far below.
const QUEUE_MAX: usize = 4096;
/// At most so many requests share a transaction.
const BATCH_MAX: usize = 256;

/// The index file. Writes go to the file at once, so that they outlive this process; whether a transaction also waits
/// for the medium is the operator's choice.
#[derive(Debug)]
pub struct Backend {
    file: File,
    sync: bool,
}

impl Backend {
    /// Over `file`.
    pub fn new(file: File, sync: bool) -> Self {
        Self { file, sync }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.sync { self.file.sync_data() } else { Ok(()) }
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
    fn close(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// What one request wants to write.
trait Job: Send {
    /// Does it on the open transaction.
    fn act(&mut self, tx: &mut Tx<'_>);
    /// Tells the request. `failure`: nothing of the transaction was kept.
    fn answer(self: Box<Self>, failure: Option<&ApiError>);
}

struct Pending<T, F> {
    act: Option<F>,
    result: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T: Send, F: FnOnce(&mut Tx<'_>) -> Result<T> + Send> Job for Pending<T, F> {
    fn act(&mut self, tx: &mut Tx<'_>) {
        if let Some(act) = self.act.take() {
            self.result = Some(act(tx));
        }
    }
    fn answer(self: Box<Self>, failure: Option<&ApiError>) {
        let result = match failure {
            Some(error) => Err(error.clone()),
            None => self.result.unwrap_or_else(|| Err(stopped())),
        };
        // Nobody listens when the client has gone; what was written stays written, as with any server.
        let _ = self.reply.send(result);
    }
}

/// Owns the writing thread; dropping it ends the thread after what was submitted.
pub struct Writer {
    jobs: Option<SyncSender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(database: Arc<Database>, files: Arc<DataFiles>) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        let thread =
            std::thread::Builder::new().name("bos-index".into()).spawn(move || work(&database, &files, &queue))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues `act`; the receiver gets its result once it is written.
    pub fn submit<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> oneshot::Receiver<Result<T>> {
        let (reply, receiver) = oneshot::channel();
        let job: Box<dyn Job> = Box::new(Pending { act: Some(act), result: None, reply });
        if let Some(jobs) = &self.jobs
            && let Err(refused) = jobs.try_send(job)
        {
            let busy = ApiError::new(
                http::StatusCode::SERVICE_UNAVAILABLE,
                "SlowDown",
                "The index has more writes waiting than it takes; try again later.",
            );
            match refused {
                std::sync::mpsc::TrySendError::Full(job) => job.answer(Some(&busy)),
                std::sync::mpsc::TrySendError::Disconnected(job) => job.answer(Some(&stopped())),
            }
        }
        receiver
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the index thread of the embedded server ended by a panic");
        }
    }
}

fn work(database: &Database, files: &DataFiles, queue: &Receiver<Box<dyn Job>>) {
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(job) = queue.try_recv()
        {
            batch.push(job);
        }
        match transact(database, files, &mut batch) {
            Ok(()) => batch.into_iter().for_each(|job| job.answer(None)),
            Err(error) => batch.into_iter().for_each(|job| job.answer(Some(&error))),
        }
    }
}

/// One transaction. Files are kept after it, and removed only after it.
fn transact(database: &Database, files: &DataFiles, batch: &mut [Box<dyn Job>]) -> Result<()> {
    let transaction = database.begin_write().map_err(ApiError::internal)?;
    let end: TxEnd = {
        let mut tx = Tx::open(&transaction, files)?;
        batch.iter_mut().for_each(|job| job.act(&mut tx));
        tx.finish()?
    };
    transaction.commit().map_err(ApiError::internal)?;
    end.kept.into_iter().for_each(super::NewFile::keep);
    if !end.dead.is_empty() {
        files.remove(&end.dead);
    }
    Ok(())
}
