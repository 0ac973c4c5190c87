//! A mount whose power fails when the test says so: what is left of its state directory then is what was synced by that moment,
//! or more, and bosfs is mounted on that in another boot. BOS stays what it was.

use std::path::PathBuf;

use super::{Place, WAIT, journals_in, wait_until};
use crate::support::disk::boot::Boot;
use crate::support::disk::fault::Kind;
use crate::support::disk::power::{Loss, build};
use crate::support::fault::{Action, Rule, When};
use crate::support::mounted::{MountSpec, Mounted, within};

/// See the module.
pub struct Scene {
    // Dropped in this order.
    mount: Mounted,
    spec: MountSpec,
    boot: Boot,
    losses: u64,
    pub place: Place,
}

impl Scene {
    /// Mounts with these options.
    pub fn new(args: &[&str]) -> Self {
        Self::prepared(args, |_| {})
    }

    /// The same, with `prepare` done to the bucket before.
    pub fn prepared(args: &[&str], prepare: impl FnOnce(&Place)) -> Self {
        let place = Place::new().expect("a place");
        prepare(&place);
        place.disk.keep_bytes();
        let mut spec = place.spec(args);
        let mut boot = Boot::new(&place.world.path("shared")).expect("a shared folder");
        boot.restart(&mut spec).expect("boot");
        let mount = spec.mount().unwrap_or_else(|e| panic!("{e}"));
        Self { mount, spec, boot, losses: 0, place }
    }

    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.path(name)
    }

    pub fn mount(&self) -> &Mounted {
        &self.mount
    }

    /// Syncs of files and directories so far, but for the file of remembered attributes, which promises nothing.
    pub fn syncs(&self) -> usize {
        self.syncs_of("")
    }

    /// Those of paths that end so.
    pub fn syncs_of(&self, path_ends: &str) -> usize {
        let changes = self.place.disk.changes();
        let is_sync = |kind| matches!(kind, Kind::SyncFile | Kind::SyncDir);
        let counts = |path: &str| path.ends_with(path_ends) && !path.ends_with("attributes.redb");
        changes.iter().filter(|change| is_sync(change.kind) && counts(&change.path)).count()
    }

    /// BOS answers 503 to what fits, until [`Scene::heal`].
    pub fn refuse(&self, when: When) -> Rule {
        self.place.world.proxy.fault(when, Action::error(503, "ServiceUnavailable"))
    }

    /// BOS is well again.
    pub fn heal(&self) {
        self.place.world.proxy.clear_rules();
    }

    /// The power fails now; mounted again when this returns.
    pub fn power_loss(&mut self, loss: Loss) {
        self.power_loss_then(loss, |_| {});
    }

    /// The same; `meanwhile` is done before the machine is up again.
    pub fn power_loss_then(&mut self, loss: Loss, meanwhile: impl FnOnce(&Place)) {
        self.losses += 1;
        self.place.disk.freeze();
        self.mount.kill();
        meanwhile(&self.place);
        self.place.world.wait_quiet();
        let image = self.place.world.path(&format!("image{}", self.losses));
        build(&self.place.disk.changes(), loss, self.losses, &image).expect("an image");
        self.boot.restart(&mut self.spec).expect("boot");
        self.spec.state_dir = image.join("state");
        self.mount = self.spec.mount().unwrap_or_else(|e| panic!("{e}"));
    }

    /// bosfs is killed and mounted again, in the same boot.
    pub fn kill(&mut self) {
        self.mount.kill();
        self.place.world.wait_quiet();
        self.mount = self.spec.mount().unwrap_or_else(|e| panic!("{e}"));
    }

    /// Waits until nothing is journaled any more.
    pub fn wait_idle(&self) {
        let idle = wait_until(WAIT, || journals_in(&self.spec.state_dir).is_empty());
        assert!(
            idle,
            "left: {:?}\n{}\n{}",
            journals_in(&self.spec.state_dir),
            self.mount.status(),
            self.place.log_tail()
        );
    }

    /// What the mount shows of a file.
    pub fn shown(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        within(WAIT, "reading", move || std::fs::read(&path))
            .unwrap_or_else(|e| panic!("{name}: {e}\n{}", self.place.log_tail()))
    }

    /// Whether the mount shows the name.
    pub fn exists(&self, name: &str) -> bool {
        let path = self.path(name);
        within(WAIT, "looking", move || path.symlink_metadata().is_ok())
    }
}
