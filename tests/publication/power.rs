//! Power loss while syncs overlap: a sync vouches for what was there when it began, and for nothing that came later.
//!
//! bosfs syncs spool, map and journal of a file in this order, then its directory, then the directory of all uploads. Here
//! the first sync is slow at the last of these, so that nothing which other handles do meanwhile waits for it in the kernel:
//! FUSE, which the disk of this test is made of, lets nobody into a directory that is being synced.

use std::path::PathBuf;

use crate::hand::{Hand, Pending};
use crate::support::Call;
use crate::support::action::Action;
use crate::support::crash::Place;
use crate::support::disk::boot::Boot;
use crate::support::disk::fault::{DiskFault, DiskRule, DiskWhen, Kind};
use crate::support::disk::power::{Loss, build};
use crate::support::fault::When;
use crate::support::files::random_bytes;
use crate::support::mounted::MountSpec;
use crate::support::{Line, Mounted};
use crate::{LOCAL, MIB, WAIT};

const KEY: &str = "f";

/// Something that is late; in time when it is dropped, as a process that waits for it cannot be killed.
struct Late(DiskRule);

impl Drop for Late {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// A slow disk: the first sync of an upload takes as long as the test wants, and the second one of a spool until the power
/// fails.
struct Slow {
    first: Late,
    second: Late,
    mount: Mounted,
    place: Place,
    boot: Boot,
    spec: MountSpec,
}

impl Slow {
    fn new(base: Option<&[u8]>) -> Self {
        let place = Place::new().unwrap();
        place.disk.keep_bytes();
        if let Some(base) = base {
            place.world.bucket.put(KEY, base).unwrap();
        }
        let mut spec = place.spec(&["--write-back"]);
        let mut boot = Boot::new(&place.world.path("shared")).unwrap();
        boot.restart(&mut spec).unwrap();
        let mount = spec.mount().unwrap();
        let upload = DiskWhen::kinds(&[Kind::SyncDir]).path_ends("/uploads");
        let first = Late(place.disk.fault(upload.once(), DiskFault::AnswerLate));
        let spool = DiskWhen::kinds(&[Kind::SyncFile]).path_contains("/spool");
        let second = Late(place.disk.fault(spool.skip(1), DiskFault::ActLate));
        Self { first, second, mount, place, boot, spec }
    }

    /// The first sync is under way, past the spool.
    fn wait_first(&self) {
        assert!(self.first.0.wait_hit(WAIT), "no sync comes to the directory\n{}", self.place.log_tail());
    }

    /// Begins the close of B, and waits until it is where it can get no further: in a sync of its own, or in that of A.
    fn close_b(&self, b: Hand) -> Pending<std::io::Result<()>> {
        let closing = b.begin_close();
        let _ = self.second.0.wait_hit(std::time::Duration::from_secs(1));
        closing
    }

    fn path(&self) -> PathBuf {
        self.mount.path(KEY)
    }

    /// Nothing gets through to BOS until the power is back.
    fn cut_line(&self) {
        self.place.world.proxy.set_line(Line::Dead);
    }

    /// The power fails: bosfs is killed, the disk keeps what `loss` leaves, and bosfs is mounted in another boot.
    fn lose_power(mut self, loss: Loss, seed: u64) -> (Mounted, Place, Boot) {
        self.place.disk.freeze();
        self.first.0.release();
        self.second.0.release();
        self.mount.kill();
        self.place.world.wait_quiet();
        let image = self.place.world.path("image");
        build(&self.place.disk.changes(), loss, seed, &image).unwrap();
        self.boot.restart(&mut self.spec).unwrap();
        self.spec.state_dir = image.join("state");
        self.place.world.proxy.clear_rules();
        self.place.world.proxy.set_line(Line::Alive);
        let mount = self.spec.mount().unwrap_or_else(|e| panic!("{e}"));
        drop(self.mount);
        (mount, self.place, self.boot)
    }
}

/// Until nothing more becomes of the file by itself. What B closed may be kept as interrupted: the disk lost a part of it.
fn wait_settled(mount: &Mounted) {
    let settled = ["idle", "done", "interrupted"];
    mount.wait_state(KEY, WAIT, |entry| entry.is_none_or(|e| settled.iter().any(|state| e["state"] == *state)));
}

/// A writes 1 MiB and closes; while that close syncs, B, open since before, writes 9 MiB behind it and closes. The first sync
/// ends, and the power fails before the second one: the object becomes the 1 MiB or all 10, in no case zeros.
fn a_later_close_is_not_vouched_for(line: Line, loss: Loss, seed: u64) {
    let slow = Slow::new(None);
    let content = random_bytes(1, 10 << 20);
    let (a, opened) = Hand::begin_open(&slow.path(), std::fs::OpenOptions::new().read(true).write(true).create(true));
    opened.within(WAIT, "create").unwrap();
    let b = Hand::open(&slow.path());
    a.write(0, &content[..MIB as usize]);
    slow.place.world.proxy.set_line(line);
    let closing_a = a.begin_close();
    slow.wait_first();
    for at in (MIB..10 * MIB).step_by(MIB as usize) {
        b.write(at, &content[at as usize..(at + MIB) as usize]);
    }
    let closing_b = slow.close_b(b);
    slow.cut_line();
    slow.first.0.release();
    closing_a.within(LOCAL, "A's close").unwrap();
    assert!(closing_b.is_under_way(), "B's close returned before its bytes were synced");
    let (mut mount, place, _boot) = slow.lose_power(loss, seed);
    let told = || place.log_tail();
    wait_settled(&mount);
    match place.world.bucket.get(KEY) {
        Ok(found) => {
            let known = found == content[..MIB as usize] || found == content;
            let zeros = found.iter().rev().take_while(|byte| **byte == 0).count();
            assert!(
                known,
                "{loss:?} {seed}: {} bytes are published, {zeros} zeros at their end\n{}",
                found.len(),
                told()
            );
        }
        Err(error) => panic!("A's close returned, and nothing is published: {error}\n{}", told()),
    }
    let output = mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}\n{}", told());
}

const LOSSES: [Loss; 4] = [Loss::Everything, Loss::Tail, Loss::Bytes, Loss::Sectors];

/// After power loss a sync vouches for what was closed before it began: a later close is published whole or not at all.
#[test]
fn a_sync_does_not_vouch_for_a_close_that_came_later() {
    for (seed, loss) in LOSSES.into_iter().enumerate() {
        a_later_close_is_not_vouched_for(Line::Alive, loss, seed as u64);
    }
}

// The same while nothing of A's publication gets through.
#[test]
fn a_sync_without_a_line_does_not_vouch_for_a_close_that_came_later() {
    for (seed, loss) in LOSSES.into_iter().enumerate() {
        a_later_close_is_not_vouched_for(Line::Dead, loss, seed as u64);
    }
}

/// The same within an object of several parts: what B changed behind A's sync is either wholly there or not at all.
fn a_later_change_is_not_vouched_for(line: Line) {
    let base = random_bytes(7, 20 << 20);
    for (seed, loss) in [Loss::Everything, Loss::Bytes].into_iter().enumerate() {
        let slow = Slow::new(Some(&base));
        let (a, b) = (Hand::open(&slow.path()), Hand::open(&slow.path()));
        let (mut first, patch) = (base.clone(), random_bytes(8, 5000));
        // Nothing is completed from the base: the kernel lets nobody write into a spool beside a sync of it that is late, and
        // A's close would wait for that.
        slow.place.world.proxy.fault(When::call(Call::GetObject), Action::error(503, "ServiceUnavailable"));
        a.write(MIB + 1, &patch);
        first[MIB as usize + 1..][..5000].copy_from_slice(&patch);
        slow.place.world.proxy.set_line(line);
        let closing_a = a.begin_close();
        slow.wait_first();
        let mut both = first.clone();
        // In the block that A changed, and far behind it.
        for at in [MIB + 6000, 15 * MIB + 77] {
            b.write(at, &patch);
            both[at as usize..][..5000].copy_from_slice(&patch);
        }
        slow.cut_line();
        let closing_b = slow.close_b(b);
        slow.first.0.release();
        closing_a.within(LOCAL, "A's close").unwrap();
        assert!(closing_b.is_under_way(), "B's close returned before its bytes were synced");
        let (mut mount, place, _boot) = slow.lose_power(loss, seed as u64);
        wait_settled(&mount);
        let found = place.world.bucket.get(KEY).unwrap();
        assert!(found != base, "{loss:?}: A's close returned, and it is not published\n{}", place.log_tail());
        assert!(found == first || found == both, "{loss:?}: a mixture is published\n{}", place.log_tail());
        let output = mount.umount(WAIT);
        assert!(output.status.success(), "{output:?}\n{}", place.log_tail());
    }
}

#[test]
fn a_sync_does_not_vouch_for_changes_of_an_object_that_came_later() {
    a_later_change_is_not_vouched_for(Line::Alive);
}

#[test]
fn a_sync_without_a_line_does_not_vouch_for_changes_of_an_object_that_came_later() {
    a_later_change_is_not_vouched_for(Line::Dead);
}
