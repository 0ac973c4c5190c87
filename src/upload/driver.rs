//! The task that does for one file what its state asks for, one remote step after the other, parts side by side.
//!
//! There is at most one driver per file, so publications, deletes and attribute copies of one key are a queue by
//! construction. [`DirtyFile::next`] only looks at the state; the steps it names are in `reconcile.rs`, `part.rs`,
//! `complete.rs` and `proof.rs`. What they send, and what they make of an answer, is that of [`crate::transfer`]; theirs are the
//! journal's lines, the slots, the rate, and what a conflict or a failure means to the file.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rand::RngExt as _;
use tokio::task::JoinSet;

use super::WriteError;
use super::dirty_file::DirtyFile;
use super::inner::{Inner, Removal};
use super::part::PartJob;
use super::state::Stage;
use crate::bos::{BosError, BosErrorKind};
use crate::fail_point::fail_point;
use crate::journal::Record;
use crate::object::{ByteRange, PartNumber};
use crate::transfer::retry::{Act, After, after, backoff};
use crate::transfer::{Origin, Piece, Plan, PlanError, Way};

/// First pause after trouble that may pass.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// Longest pause: a line that is back is noticed within it.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// What the driver does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Start this beside the running jobs.
    Job(PartJob),
    /// Do this alone.
    Step(Step),
    /// Wait for a job or for news.
    Wait,
    /// Wait for news, but no longer.
    Until(Instant),
    /// Nothing to do; the next change starts a new driver.
    Exit,
}

/// A remote step that runs alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Look at the object of an interrupted file.
    CheckBase,
    /// Ask BOS what it holds (after a start, an unanswered or a refused request).
    Reconcile,
    /// InitiateMultipartUpload.
    Initiate,
    /// PutObject of the whole file.
    Put,
    /// CompleteMultipartUpload.
    Complete,
    /// Show that the object is what was written.
    Prove,
    /// Give the published object the attributes that were set since.
    CopyAttrs,
    /// Abort the upload and delete the object of a removed file.
    Remove,
    /// Put away what a proved publication left on the disk.
    Tidy,
    /// End an upload under a key that the file does not have.
    EndUpload,
    /// CopyObject: the whole file is another object's bytes.
    Clone,
    /// Publish a temporary that nobody renamed.
    Unpark,
}

/// How a step or job failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// BOS said something.
    Bos(BosError),
    /// The local disk or the journal failed.
    Local(WriteError),
    /// It cannot succeed; the message is complete.
    Final {
        /// errno for programs.
        errno: i32,
        /// What happened, what became of the bytes, what to do.
        message: String,
    },
    /// Worth another try after a pause, for the reason given.
    Again(String),
}

impl From<BosError> for Trouble {
    fn from(error: BosError) -> Self {
        Trouble::Bos(error)
    }
}

impl From<WriteError> for Trouble {
    fn from(error: WriteError) -> Self {
        Trouble::Local(error)
    }
}

type JobEnd = (PartNumber, Result<(), Trouble>);

impl DirtyFile {
    /// Makes sure that a driver runs if there is something to do.
    pub(super) fn start_driver(self: &Arc<Self>) {
        {
            let mut inner = self.lock();
            if inner.driving || inner.broken || self.shared.stop.is_cancelled() || matches!(inner.next(0), Next::Exit) {
                drop(inner);
                self.wake.notify_one();
                return;
            }
            inner.driving = true;
        }
        let file = self.clone();
        let driving = async move {
            // The jobs end with the steps that started them.
            if AssertUnwindSafe(file.clone().drive()).catch_unwind().await.is_err() {
                file.broke("it was being sent");
            }
        };
        self.shared.tasks.spawn_on(driving, &self.shared.runtime);
    }

    async fn drive(self: Arc<Self>) {
        let mut jobs: JoinSet<JobEnd> = JoinSet::new();
        loop {
            let next = {
                let mut inner = self.lock();
                let next = inner.next(jobs.len());
                match &next {
                    Next::Exit => inner.driving = false,
                    Next::Job(job) => {
                        inner.live.entry(job.piece.number).or_default().job = Some(job.cancel.clone());
                        inner.ready.remove(&job.piece.number);
                    }
                    _ => {}
                }
                next
            };
            let until = match next {
                Next::Exit => return,
                Next::Job(job) => {
                    jobs.spawn(self.clone().run_job(job));
                    continue;
                }
                Next::Step(step) => {
                    let result = tokio::select! {
                        result = self.run_step(step) => result,
                        () = self.shared.stop.cancelled() => return jobs.shutdown().await,
                    };
                    self.settle(&format!("{step:?}"), result);
                    continue;
                }
                Next::Wait => Instant::now() + Duration::from_secs(3600),
                Next::Until(at) => at,
            };
            tokio::select! {
                Some(end) = jobs.join_next() => match end {
                    Ok((number, result)) => self.job_ended(number, result),
                    // Else it was cancelled.
                    Err(e) => if let Ok(panic) = e.try_into_panic() { std::panic::resume_unwind(panic) },
                },
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(until.into()) => {}
                () = self.shared.stop.cancelled() => return jobs.shutdown().await,
            }
        }
    }

    async fn run_step(self: &Arc<Self>, step: Step) -> Result<(), Trouble> {
        fail_point!("upload.step");
        if step == Step::CopyAttrs {
            fail_point!("upload.attrs");
        }
        match step {
            Step::CheckBase => self.check_base().await,
            Step::Reconcile => self.reconcile().await,
            Step::Initiate => self.initiate().await,
            Step::Put => self.put().await,
            Step::Complete => self.complete().await,
            Step::Prove => self.prove().await,
            Step::CopyAttrs => self.send_attrs_now().await,
            Step::Remove => self.remove().await,
            Step::Tidy => self.tidy().await,
            Step::EndUpload => self.end_upload().await,
            Step::Clone => self.clone_object().await,
            Step::Unpark => Ok(self.unpark()?),
        }
    }

    fn job_ended(self: &Arc<Self>, number: PartNumber, result: Result<(), Trouble>) {
        {
            let mut inner = self.lock();
            let rewritten = inner.live.get_mut(&number).is_some_and(|live| {
                live.job = None;
                live.rewritten
            });
            if result.is_err() && !rewritten {
                // Tried again while the writer goes on, who may be waiting for the room that this part takes.
                inner.ready_again(number);
            }
        }
        self.settle("part", result);
    }

    /// Notes how a step or job ended.
    fn settle(self: &Arc<Self>, what: &str, result: Result<(), Trouble>) {
        let mut inner = self.lock();
        let key = inner.state.key.clone();
        match result {
            Ok(()) => {
                inner.tries = 0;
                inner.last_error = None;
                self.mended(&mut inner, what);
            }
            Err(Trouble::Again(message)) => inner.back_off(&key.to_string(), what, message),
            // A journal that could not be written stays shut until the next mount reads it back.
            Err(Trouble::Local(WriteError::Failed { errno, message })) => {
                self.fail(&mut inner, errno, message);
                self.shared.again.failed(&inner.state.journal_id);
            }
            Err(Trouble::Local(e @ WriteError::MustWait)) => inner.back_off(&key.to_string(), what, e.to_string()),
            Err(Trouble::Bos(e)) => match after(&e, Act::Deciding) {
                // A missing key is the base's or a copy's source: HEAD tells, as after a refused condition.
                After::Amiss => {
                    inner.reconcile = true;
                    inner.suspect_base |= matches!(e.kind, BosErrorKind::PreconditionFailed | BosErrorKind::NoSuchKey);
                    inner.back_off(&key.to_string(), what, e.to_string());
                }
                After::Settle => {
                    if inner.state.stage.is_sent() {
                        inner.unanswered = inner.state.stage.frozen().map(|frozen| frozen.publication);
                    }
                    inner.reconcile |= !matches!(inner.state.stage, Stage::Open | Stage::Closed(_));
                    inner.back_off(&key.to_string(), what, e.to_string());
                }
                After::Again => inner.back_off(&key.to_string(), what, e.to_string()),
                After::Final => {
                    let message = format!(
                        "{e}; the bytes of {key} are kept in {}; put right what BOS complains of: a mount tries it again by itself, \
                         and `bosfs uploads resume` or a new mount at once",
                        inner.store.as_ref().map_or_else(String::new, |s| s.dir.display().to_string())
                    );
                    self.fail(&mut inner, e.errno(), message);
                    self.shared.again.failed(&inner.state.journal_id);
                }
            },
            Err(Trouble::Final { errno, message }) => self.fail(&mut inner, errno, message),
        }
        drop(inner);
        self.notify();
    }

    fn fail(&self, inner: &mut Inner, errno: i32, message: String) {
        log::error!("{message}");
        // Told already: a further try that fails is no news to programs.
        let known = inner.state.failed.is_some();
        inner.retrying = false;
        let record = Record::Failed { message: message.clone(), errno };
        if self.append(inner, &record).is_err() {
            inner.state.apply(&record);
        }
        // Of what is still being written its close tells, which tries again. A write that were refused now would end the
        // program in the middle, and leave half of the file to be published.
        if !known && (inner.writers == 0 || inner.state.stage != Stage::Open) {
            inner.failures += 1;
        }
        inner.last_error = Some(message);
    }

    /// Something panicked while `what` of this file: what memory knows of it may be half a change. Nothing more is done
    /// with it, and whoever waits is told; the next mount begins with what the journal says.
    pub fn broke(&self, what: &str) {
        let mut inner = self.lock();
        let key = inner.state.key.clone();
        let place = inner.store.as_ref().map_or_else(String::new, |store| format!(" in {}", store.dir.display()));
        let message = format!(
            "{key}: bosfs panicked while {what}; what was accepted of it is kept{place}, and nothing more is done with it in \
             this mount: unmount and mount again to go on, and please report the panic that the log shows"
        );
        log::error!("{message}");
        if let Some(store) = &mut inner.store {
            store.journal.shut("bosfs panicked while it worked on the file");
        }
        inner.state.apply(&Record::Failed { message: message.clone(), errno: libc::EIO });
        inner.broken = true;
        inner.driving = false;
        inner.live.clear();
        inner.last_error = Some(message);
        drop(inner);
        self.notify();
    }

    /// Marks that somebody else's object is at the key.
    pub(super) fn conflict(&self, inner: &mut Inner, found: &str) {
        let key = &inner.state.key;
        let message = format!(
            "{key}: BOS holds {found}, which is neither what this file began with nor what was written here; nothing was \
             overwritten and the bytes are kept: `bosfs uploads complete BUCKET/{key} --force` overwrites, `--as OTHER/KEY` instead publishes them \
             there, `bosfs uploads abort BUCKET/{key}` gives the local bytes up"
        );
        log::error!("{message}");
        let record = Record::Conflict { message };
        if self.append(inner, &record).is_err() {
            inner.state.apply(&record);
        }
        inner.failures += 1;
    }
}

impl Inner {
    fn back_off(&mut self, key: &str, what: &str, message: String) {
        let now = Instant::now();
        if self.retry_at.is_none_or(|at| at <= now) {
            self.tries += 1;
            let pause = backoff(self.tries, BACKOFF_FIRST, BACKOFF_MAX, rand::rng().random_range(0.5..1.0));
            log::warn!("{key}: {what}: {message}; try {} in {} ms", self.tries + 1, pause.as_millis());
            self.retry_at = Some(now + pause);
        }
        self.last_error = Some(message);
    }

    /// Whether it failed and is not being tried once more.
    fn has_failed(&self) -> bool {
        self.state.failed.is_some() && !self.retrying
    }

    /// What to do now; `jobs` parts are on their way.
    pub(super) fn next(&mut self, jobs: usize) -> Next {
        let alone = |step| if jobs == 0 { Next::Step(step) } else { Next::Wait };
        let idle = if jobs == 0 { Next::Exit } else { Next::Wait };
        if let Some(at) = self.retry_at {
            if at > Instant::now() {
                return Next::Until(at);
            }
            self.retry_at = None;
        }
        match self.removal {
            _ if self.broken => return idle,
            // As for what is published: what BOS refused is asked again later, not at once.
            Removal::Wanted if self.has_failed() => return idle,
            Removal::Wanted => {
                if jobs > 0 {
                    self.cancel_jobs();
                }
                return alone(Step::Remove);
            }
            Removal::Orphaned | Removal::Done => return idle,
            Removal::None => {}
        }
        if self.store.is_none() || self.broken || self.has_failed() || self.state.conflict.is_some() {
            return idle;
        }
        if self.tidying {
            return alone(Step::Tidy);
        }
        if self.check_base.is_some() {
            return alone(Step::CheckBase);
        }
        let wanted = self.state.stage != Stage::Open || self.send_all || !self.ready.is_empty();
        if self.is_misplaced()
            && (wanted || self.misplaced)
            && matches!(self.state.stage, Stage::Open | Stage::Closed(_))
        {
            self.cancel_jobs();
            return alone(Step::EndUpload);
        }
        if self.reconcile && wanted {
            return alone(Step::Reconcile);
        }
        match self.state.stage.clone() {
            Stage::Completed { .. } => alone(Step::Prove),
            Stage::Putting { .. } => alone(Step::Put),
            Stage::Closed(frozen) | Stage::Completing { frozen, .. } if self.is_clone(frozen.size) => {
                alone(Step::Clone)
            }
            Stage::Closed(frozen) | Stage::Completing { frozen, .. } => {
                if frozen.size <= self.plan.first_bytes() {
                    return alone(Step::Put);
                }
                match self.next_part(frozen.size, jobs) {
                    Some(next) => next,
                    None => alone(Step::Complete),
                }
            }
            Stage::Open => self.next_early(jobs).unwrap_or({
                if jobs > 0 {
                    Next::Wait
                } else if let Some(until) = self.parked_until.filter(|_| self.state.parked) {
                    if until > Instant::now() { Next::Until(until) } else { Next::Step(Step::Unpark) }
                } else if self.writers == 0
                    && self.attrs_pending()
                    && self.attrs_held == 0
                    && !self.new_content
                    && !self.new_file
                {
                    match self.attrs_due {
                        Some(due) if due > Instant::now() => Next::Until(due),
                        _ => Next::Step(Step::CopyAttrs),
                    }
                } else {
                    Next::Exit
                }
            }),
        }
    }

    /// The pieces of a publication of the frozen (or present) size, those that BOS has already among them.
    ///
    /// # Errors
    /// The parts do not reach it.
    pub(super) fn plan_of(&self, size: u64) -> Result<Plan, PlanError> {
        let copyable = self.copyable_base().is_some() && self.store.is_some();
        let view = self.view();
        Plan::cut(&self.plan, size, |number, range| {
            // What BOS has already is cheaper than a copy that spans it.
            if self.state.is_sent(number, range.len()) {
                Origin::Held { end: range.end }
            } else if copyable && view.is_untouched(range) {
                Origin::Source
            } else {
                Origin::Local
            }
        })
    }

    /// Whether BOS has this piece.
    pub(super) fn is_there(&self, piece: &Piece) -> bool {
        match piece.way {
            Way::Held => true,
            Way::Copy => self.state.is_copied(piece.number, piece.range),
            Way::Send => false,
        }
    }

    /// The next part of a frozen file; `None` when BOS has them all.
    fn next_part(&mut self, size: u64, jobs: usize) -> Option<Next> {
        if jobs >= self.jobs_max {
            // Not worth a look at thousands of pieces.
            return Some(Next::Wait);
        }
        let initiate = if jobs == 0 { Next::Step(Step::Initiate) } else { Next::Wait };
        let Ok(plan) = self.plan_of(size) else {
            // Each step that would begin or complete such an upload refuses to.
            return self.state.upload.is_none().then_some(initiate);
        };
        let mut busy = jobs > 0;
        for piece in plan.pieces().iter().filter(|piece| !self.is_there(piece)) {
            if self.state.upload.is_none() {
                return Some(initiate);
            }
            if self.live.get(&piece.number).is_some_and(|live| live.job.is_some()) {
                busy = true;
                continue;
            }
            return Some(Next::Job(PartJob::new(*piece)));
        }
        busy.then_some(Next::Wait)
    }

    /// A part that can be sent while the writer goes on; `None` when there is none.
    fn next_early(&mut self, jobs: usize) -> Option<Next> {
        if self.send_all {
            return self.next_of_all(jobs);
        }
        // A job for the old bytes of a part must have ended before the new ones go.
        let number = *self.ready.iter().find(|n| self.live.get(n).is_none_or(|live| live.job.is_none()))?;
        if self.state.upload.is_none() {
            return Some(if jobs == 0 { Next::Step(Step::Initiate) } else { Next::Wait });
        }
        if jobs >= self.jobs_max {
            return Some(Next::Wait);
        }
        let piece = Piece { number, range: self.plan.range(number), way: Way::Send };
        Some(Next::Job(PartJob::new(piece)))
    }

    /// `--fsync bos`: every part of the present size, sent without a freeze.
    fn next_of_all(&mut self, jobs: usize) -> Option<Next> {
        let size = self.size;
        if size > 0
            && let Some(next) = self.next_part(size, jobs)
        {
            return Some(next);
        }
        self.send_all = false;
        None
    }

    fn cancel_jobs(&mut self) {
        for live in self.live.values() {
            if let Some(job) = &live.job {
                job.cancel();
            }
        }
    }

    /// The range that job or list means by `number` in a file of `size` bytes.
    pub(super) fn part_range(&self, number: PartNumber, size: u64) -> ByteRange {
        self.plan.range_in(number, size)
    }
}
