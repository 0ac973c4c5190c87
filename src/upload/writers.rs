//! Writers come and go: what a file that is opened again, closed or left by a killed program becomes.

use std::sync::Arc;

use super::complete::finished;
use super::dirty_file::DirtyFile;
use super::inner::{Inner, Removal};
use super::{InterruptedPolicy, WriteError, WriterEnd};
use crate::journal::Record;

impl DirtyFile {
    /// A handle for writing was opened.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn add_writer(self: &Arc<Self>) -> Result<(), WriteError> {
        let mut inner = self.lock();
        let parked = inner.state.parked;
        if parked {
            // Whoever opens it again does not do what it was parked for; what was closed is published, whatever becomes of
            // the new writer.
            inner.temporary = None;
            inner.parked_until = None;
            self.begin_publication(&mut inner, true)?;
        }
        if inner.state.interrupted.is_some() || inner.state.parked {
            self.append(&mut inner, &Record::Reopened)?;
        }
        inner.writers += 1;
        drop(inner);
        if parked {
            self.start_driver();
        }
        Ok(())
    }

    /// The last duplicate of a handle for writing is gone. With the last writer the end is settled: what is new is
    /// published in the background, or kept as interrupted if the writer was killed.
    pub fn remove_writer(self: &Arc<Self>, end: WriterEnd) {
        let mut inner = self.lock();
        inner.writers = inner.writers.saturating_sub(1);
        if inner.writers > 0 || inner.removal != Removal::None || inner.broken {
            return;
        }
        let result = match end {
            WriterEnd::Killed { process, pid, signal } if inner.new_content || inner.new_file => {
                self.interrupt(&mut inner, process, pid, signal)
            }
            _ if inner.may_park() => self.park(&mut inner),
            _ => self.begin_publication(&mut inner, true).map(|_| ()),
        };
        if let Err(e) = result {
            // Nobody waits for a release: the log and `status` tell.
            log::error!("{e}");
            inner.last_error = Some(e.to_string());
        }
        let mut done = None;
        if !inner.is_pending() && inner.state.upload.is_some() {
            if let Err(e) = self.discard(&mut inner) {
                log::error!("{e}");
            }
        } else if !inner.is_pending() {
            // Published while the handle was still open: the release is what ends it.
            let published = inner.store.is_some() && inner.state.published.is_some();
            done = published.then(|| finished(&inner));
            self.retire(&mut inner);
        }
        drop(inner);
        if let Some(done) = done {
            self.shared.finished(self, done);
        }
        self.notify();
        self.start_driver();
    }

    fn interrupt(
        self: &Arc<Self>,
        inner: &mut Inner,
        process: String,
        pid: u32,
        signal: i32,
    ) -> Result<(), WriteError> {
        let key = inner.state.key.clone();
        match self.shared.options.interrupted {
            InterruptedPolicy::Complete => {
                log::warn!(
                    "{key}: {process} ({pid}) was killed by signal {signal}; published all the same (--interrupted complete)"
                );
                return self.begin_publication(inner, true).map(|_| ());
            }
            InterruptedPolicy::Discard => {
                log::warn!(
                    "{key}: {process} ({pid}) was killed by signal {signal}; its bytes are thrown away (--interrupted discard)"
                );
                return self.discard(inner);
            }
            InterruptedPolicy::Keep => {}
        }
        self.materialise(inner)?;
        self.append(inner, &Record::Interrupted { process: process.clone(), pid, signal })?;
        inner.inherited = true;
        log::warn!(
            "{key}: {process} ({pid}) was killed by signal {signal} before it closed the file; it is kept, not published. \
             Run the same command again to go on, or `bosfs uploads complete BUCKET/{key}` to publish it as it is"
        );
        Ok(())
    }
}
