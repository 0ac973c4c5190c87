//! The changing state of a dirty file: everything behind its lock, and what can be told from it alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::state::{FileState, Stage};
use super::{Opening, Published, Temporary, WriteError};
use crate::journal::Journal;
use crate::journal::record::Publication;
use crate::object::{BaseObject, ByteRange, Checksum, ObjectKey, PartNumber, Timestamp};
use crate::write::layers::{Layer, View};
use crate::write::part_plan::PartPlan;

/// Largest object that CopyObject takes (BOS docs, CopyObject: 5 GB).
pub const COPY_BYTES_MAX: u64 = 5_000_000_000;

/// The file's place on the local disk. There is none before the first change and after the last publication.
pub(super) struct Store {
    pub(super) dir: PathBuf,
    pub(super) journal: Journal,
    /// Those of [`FileState::layers`], in the same order.
    pub(super) layers: Vec<Layer>,
    /// Layers that no state needs any more: their files go once the line that says so is on stable storage.
    pub(super) dropped: Vec<Layer>,
    /// Length of the journal at which it is looked at again whether a checkpoint should take its place.
    pub(super) checkpoint_at: u64,
}

impl Store {
    /// Puts layers aside that `state` knows no more.
    pub(super) fn follow(&mut self, state: &FileState) {
        if self.layers.len() != state.layers.len() {
            let (kept, gone) = std::mem::take(&mut self.layers).into_iter().partition(|l| state.layer(l.id).is_some());
            self.layers = kept;
            self.dropped.extend::<Vec<Layer>>(gone);
        }
    }

    /// Blocks in all spools.
    pub(super) fn spool_blocks(&self) -> u64 {
        self.layers.iter().chain(&self.dropped).map(Layer::spool_blocks).sum()
    }
}

/// What is known of a part in this process only.
#[derive(Default)]
pub(super) struct LivePart {
    /// Counts changes of the part's bytes.
    pub(super) generation: u64,
    /// A job works on it; cancelled when its bytes change.
    pub(super) job: Option<CancellationToken>,
    /// Its bytes of this generation.
    pub(super) sealed: Option<(u64, Checksum)>,
    /// It was changed after it had been sent: sent again only at the next publication, not eagerly.
    pub(super) rewritten: bool,
    /// Bodies that BOS refused or that came back wrong, in a row.
    pub(super) mismatches: u32,
}

/// Whether a removed file still has to be taken out of BOS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// It is there.
    None,
    /// Its name is gone; handles are open.
    Orphaned,
    /// To be removed now.
    Wanted,
    /// Gone.
    Done,
}

pub(super) struct Inner {
    pub(super) state: FileState,
    pub(super) store: Option<Store>,
    pub(super) size: u64,
    /// Part plan in force: the upload's, or the one of the next upload.
    pub(super) plan: PartPlan,
    pub(super) live: BTreeMap<PartNumber, LivePart>,
    pub(super) writers: u32,
    /// Written, or cut to a size above 0, since the last freeze: a flush publishes it.
    pub(super) new_content: bool,
    /// What is new comes from a writer that is dead; nobody has gone on with it yet. It is published by a command, or
    /// once a writer has changed something and closes.
    pub(super) inherited: bool,
    /// The object at the key has to be looked at before anything else: of an interrupted file, and after a restart of the
    /// machine. The number of changes when the file was found.
    pub(super) check_base: Option<u64>,
    /// Created or cut to 0 since the last freeze: a release publishes it.
    pub(super) new_file: bool,
    /// A publication is proved; what is left of it here is to be put away.
    pub(super) tidying: bool,
    /// Parts that are full and whose writer has moved on.
    pub(super) ready: BTreeSet<PartNumber>,
    pub(super) last_part: Option<PartNumber>,
    /// Every byte is wanted in BOS now (`--fsync bos`).
    pub(super) send_all: bool,
    /// What BOS holds must be asked before anything is sent.
    pub(super) reconcile: bool,
    pub(super) driving: bool,
    /// Something panicked in the middle of it: see [`DirtyFile::broke`](super::DirtyFile::broke).
    pub(super) broken: bool,
    pub(super) retry_at: Option<Instant>,
    pub(super) tries: u32,
    /// It failed, and is tried once more all the same.
    pub(super) retrying: bool,
    /// A publication that may have been made, although no answer said so.
    pub(super) unanswered: Option<Publication>,
    pub(super) last_error: Option<String>,
    /// Number of the last publication that is over: proved, or taken back.
    pub(super) settled_publication: Publication,
    /// Publications of earlier journals of this object in memory: numbers go on, so that waiters never mix them up.
    pub(super) removal: Removal,
    /// Bytes of the spool that are counted in the budget.
    pub(super) spooled_bytes: u64,
    pub(super) last_published: Option<Published>,
    /// When BOS confirmed it.
    pub(super) proved_at: Option<Instant>,
    /// It was published under another name than the one by which inodes know it (`--as`).
    pub(super) given_away: bool,
    /// Times of BOS between which the present publication was stored.
    pub(super) stored_between: Option<(i64, i64)>,
    pub(super) meter: super::meter::Meter,
    /// The base was refused by a condition: HEAD must tell what is there.
    pub(super) suspect_base: bool,
    /// Which copies of the base BOS refuses.
    pub(super) refused: super::limits::CopiesRefused,
    /// Parts of this file on their way at once.
    pub(super) jobs_max: usize,
    /// Set for a file that is expected to get another name soon.
    pub(super) temporary: Option<Temporary>,
    /// When a parked file is published under the name that it has.
    pub(super) parked_until: Option<Instant>,
    /// When attributes that were set on a finished object are sent.
    pub(super) attrs_due: Option<Instant>,
    /// Whoever moves the object takes the attributes along: no copy onto itself meanwhile.
    pub(super) attrs_held: u32,
    /// A copy onto itself is on its way.
    pub(super) copying_attrs: bool,
    /// A sync of the spool failed: what was written by then is not certain until BOS has it. Errno and message.
    pub(super) sync_failed: Option<(i32, String)>,
    /// The upload is under a key that the file will not have: it has to end before another one begins.
    pub(super) misplaced: bool,
    /// Time of the last change of bytes or attributes, as `stat` shows it.
    pub(super) ctime: Timestamp,
    /// How often its publication has failed for good, or met a conflict.
    pub(super) failures: u64,
    /// Of these, as many as some program was told of.
    pub(super) failures_told: u64,
}

impl Inner {
    /// Of a file of which nothing is on its way yet.
    pub(super) fn new(state: FileState, store: Option<Store>, plan: PartPlan, jobs_max: usize) -> Self {
        Self {
            size: 0,
            plan,
            live: BTreeMap::new(),
            writers: 0,
            new_content: false,
            inherited: false,
            check_base: None,
            new_file: false,
            tidying: false,
            ready: BTreeSet::new(),
            last_part: None,
            send_all: false,
            reconcile: false,
            driving: false,
            broken: false,
            retry_at: None,
            tries: 0,
            retrying: false,
            unanswered: None,
            last_error: None,
            settled_publication: 0,
            removal: Removal::None,
            spooled_bytes: 0,
            last_published: None,
            proved_at: None,
            given_away: false,
            stored_between: None,
            meter: Default::default(),
            suspect_base: false,
            refused: Default::default(),
            jobs_max,
            temporary: None,
            parked_until: None,
            attrs_due: None,
            attrs_held: 0,
            copying_attrs: false,
            sync_failed: None,
            misplaced: false,
            ctime: state.attrs.mtime,
            failures: 0,
            failures_told: 0,
            state,
            store,
        }
    }

    /// Whether the file differs from the last state of it that was closed; where none was, from its base.
    pub(super) fn has_open_changes(&self) -> bool {
        let whole = ByteRange::new(0, self.size);
        let Some(closed) = self.state.last_closed() else {
            let is_base = self.base().is_some_and(|base| base.size == self.size && base.key.is_none());
            return !(is_base && self.open_view().is_untouched(whole));
        };
        if self.state.open_layer().is_none() {
            return false;
        }
        let top = self.store.as_ref().and_then(|store| store.layers.last());
        closed.size != self.size || top.is_some_and(|top| !top.extents.is_untouched(whole, self.size))
    }

    /// How far it is, for the log.
    pub(super) fn whereabouts(&self) -> String {
        let stage = match &self.state.stage {
            Stage::Open => "open",
            Stage::Closed(_) => "closed",
            Stage::Putting { .. } => "putting",
            Stage::Completing { .. } => "completing",
            Stage::Completed { .. } => "completed",
        };
        let flags = [
            (self.driving, "driven"),
            (self.tidying, "tidying"),
            (self.store.is_some(), "journaled"),
            (self.new_content || self.new_file, "changed"),
            (self.state.attrs_differ(), "attributes differ"),
            (self.removal != Removal::None, "being removed"),
        ];
        let flags: Vec<&str> = flags.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
        format!("{stage}, {} writers, {}", self.writers, flags.join(", "))
    }

    pub(super) fn store(&mut self) -> Result<&mut Store, WriteError> {
        let key = &self.state.key;
        self.store.as_mut().ok_or_else(|| WriteError::failed(libc::EIO, format!("{key}: the journal is closed")))
    }

    /// Whether something here is not (or not provably) in BOS.
    pub(super) fn is_pending(&self) -> bool {
        self.new_content
            || self.new_file
            || self.tidying
            || self.state.stage != Stage::Open
            || self.state.interrupted.is_some()
            || self.state.failed.is_some()
            || self.state.conflict.is_some()
            || self.attrs_pending()
    }

    /// Whether the published object has other attributes than the file.
    pub(super) fn attrs_pending(&self) -> bool {
        self.store.is_some() && self.state.stage == Stage::Open && self.state.attrs_differ()
    }

    /// Key that parts go to: of the name that a temporary is going to get, as long as that is expected.
    pub(super) fn upload_key(&self) -> &ObjectKey {
        match &self.temporary {
            Some(Temporary::Of(target)) if self.state.stage == Stage::Open => target,
            _ => &self.state.key,
        }
    }

    /// What the publication under way freezes; where there is none, what the file is now.
    pub(super) fn view(&self) -> View<'_> {
        match self.state.stage.frozen() {
            Some(frozen) => self.view_of(self.state.depth_of(frozen), frozen.size),
            None => self.open_view(),
        }
    }

    /// What the file is now.
    pub(super) fn open_view(&self) -> View<'_> {
        self.view_of(usize::MAX, self.size)
    }

    fn view_of(&self, depth: usize, size: u64) -> View<'_> {
        let layers = self.store.as_ref().map_or(&[][..], |store| &store.layers);
        View::new(&layers[..depth.min(layers.len())], size)
    }

    /// Whether the whole frozen state is another object's bytes, so that one copy makes it.
    pub(super) fn is_clone(&self, size: u64) -> bool {
        let Some(base) = self.base().filter(|base| base.key.is_some()) else { return false };
        size > 0
            && base.size == size
            && size <= COPY_BYTES_MAX
            && !self.is_copy_refused()
            && self.store.is_some()
            && self.view().is_untouched(ByteRange::new(0, size))
    }

    /// The layer that takes what is written, and the rest of the store; [`DirtyFile::open_layer`] has seen to it that there is
    /// one.
    ///
    /// [`DirtyFile::open_layer`]: super::DirtyFile::open_layer
    pub(super) fn top(&mut self) -> Result<&mut Layer, WriteError> {
        let key = &self.state.key;
        let store = self.store.as_mut().and_then(|store| store.layers.last_mut());
        store.ok_or_else(|| WriteError::failed(libc::EIO, format!("{key}: the journal is closed")))
    }

    /// Whether what is written goes into the very state that parts are sent of: no publication is on its way.
    pub(super) fn sends_open_state(&self) -> bool {
        self.state.stage == Stage::Open && !self.tidying
    }

    /// Notes which parts the writer has filled and left. True if one is ready to be sent.
    pub(super) fn advance_writer(&mut self, written: ByteRange) -> bool {
        if !self.sends_open_state() {
            // Later bytes belong to the next upload.
            return false;
        }
        let here = self.plan.part_at(written.end - 1);
        let left: Vec<PartNumber> = self.last_part.into_iter().chain(self.plan.parts_in(written)).collect();
        self.last_part = here;
        let mut woken = false;
        for number in left {
            let range = self.plan.range(number);
            let rewritten = self.live.get(&number).is_some_and(|live| live.rewritten);
            // The last part waits for the close: a file of one part goes by PutObject.
            if Some(number) == here || rewritten || range.end >= self.size || self.ready.contains(&number) {
                continue;
            }
            let sent = self.state.is_sent(number, range.len());
            if !sent && self.open_view().is_spooled(range) {
                woken |= self.ready.insert(number);
            }
        }
        woken
    }

    /// Its bytes changed now.
    pub(super) fn touched(&mut self) {
        let now = Timestamp::now();
        self.state.attrs.mtime = now;
        self.ctime = now;
    }

    /// Whether a close waits for a rename instead of publishing.
    pub(super) fn may_park(&self) -> bool {
        let expected = match &self.temporary {
            None => false,
            Some(Temporary::Of(_)) => true,
            Some(Temporary::Small) => self.size <= self.plan.first_bytes(),
        };
        expected
            && self.state.stage == Stage::Open
            && self.state.published.is_none()
            && !self.tidying
            && self.removal == Removal::None
            && (self.new_content || self.new_file)
            && self.state.failed.is_none()
            && self.state.conflict.is_none()
    }

    pub(super) fn forget_live(&mut self, range: ByteRange) {
        for number in self.plan.parts_in(range) {
            self.ready.remove(&number);
            if let Some(live) = self.live.get_mut(&number) {
                live.generation += 1;
                live.sealed = None;
                if let Some(job) = &live.job {
                    job.cancel();
                }
            }
        }
    }

    /// The base and the key's condition after somebody looked at the key again; only where nothing is journaled.
    pub(super) fn refresh(&mut self, opening: &Opening) {
        self.size = opening.base.as_ref().map_or(0, |base| base.size);
        self.state.base.clone_from(&opening.base);
        self.state.condition = opening.condition.clone();
        self.state.headers = opening.headers.clone();
        self.state.attrs = opening.attrs;
        self.state.layers = vec![super::state::LayerState::new(1, self.size)];
        self.state.published = None;
        self.last_published = None;
        self.proved_at = None;
        self.state.carried = self
            .state
            .base
            .as_ref()
            .map(|_| super::state::Carried { attrs: opening.attrs, xattrs: self.state.xattrs() });
        self.new_file = opening.created;
        self.temporary.clone_from(&opening.temporary);
    }

    /// The object of the present base, for messages.
    pub(super) fn base(&self) -> Option<&BaseObject> {
        self.state.base.as_ref()
    }
}
