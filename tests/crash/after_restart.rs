//! What a restart of the machine may have taken besides bytes: lengths, lines, and what an earlier process knew.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use rustix::fs::FallocateFlags;

use crate::support::Call;
use crate::support::action::Action;
use crate::support::crash::scene::Scene;
use crate::support::crash::{WAIT, wait_until};
use crate::support::disk::fault::{DiskFault, DiskWhen, Kind};
use crate::support::disk::power::Loss;
use crate::support::fault::When;
use crate::support::files::random_bytes;

const MIB: usize = 1 << 20;
/// Three parts.
const LARGE: usize = 12 * MIB;

/// Bytes that were written before bosfs was killed, and synced by a program that went on after the next mount, survive power
/// loss.
#[test]
fn a_sync_counts_for_what_was_written_before_bosfs_was_killed() {
    let base = random_bytes(7, 300_000);
    let mut scene = Scene::prepared(&[], |place| drop(place.world.bucket.put("old", &base).expect("an object")));
    let news = random_bytes(1, 90_000);
    let file = File::options().write(true).open(scene.path("old")).unwrap();
    file.write_all_at(&news, 4096).unwrap();
    scene.kill();
    drop(file);
    let file = File::options().write(true).open(scene.path("old")).unwrap();
    file.sync_all().unwrap();
    scene.power_loss(Loss::Everything);
    let mut changed = base.clone();
    changed[4096..4096 + news.len()].copy_from_slice(&news);
    assert!(scene.shown("old") == changed, "the change is lost");
    drop(file);
}

/// An object that was being changed keeps its length and its bytes when the power fails before anything was synced but the
/// folder.
#[test]
fn a_change_that_power_loss_took_leaves_the_whole_object() {
    let base = random_bytes(7, LARGE);
    let mut scene = Scene::prepared(&[], |place| drop(place.world.bucket.put("old", &base).expect("an object")));
    let file = File::options().write(true).open(scene.path("old")).unwrap();
    file.write_all_at(&random_bytes(1, 5000), 6_000_000).unwrap();
    File::open(scene.mount().dir()).unwrap().sync_all().unwrap();
    scene.power_loss(Loss::Everything);
    let shown = scene.shown("old");
    assert_eq!(shown.len(), base.len());
    assert!(shown == base, "what was not synced is shown in part");
    drop(file);
}

/// The power fails right when BOS has completed an upload: the next mount knows it, and sends nothing again.
#[test]
fn a_completed_upload_is_known_after_power_loss() {
    let base = random_bytes(7, LARGE);
    let mut scene = Scene::prepared(&["--write-back", "--part-size", "5MiB"], |place| {
        drop(place.world.bucket.put("old", &base).expect("an object"));
    });
    let unanswered = scene.place.world.proxy.fault(When::call(Call::Complete), Action::StallAfterAct);
    let file = File::options().write(true).open(scene.path("old")).unwrap();
    let news = random_bytes(1, 5000);
    file.write_all_at(&news, 100).unwrap();
    drop(file);
    assert!(unanswered.wait_hit(WAIT), "no Complete");
    let sent = scene.place.world.proxy.counts();
    scene.power_loss_then(Loss::Everything, |_| unanswered.release());
    scene.heal();
    scene.wait_idle();
    let mut changed = base;
    changed[100..5100].copy_from_slice(&news);
    assert!(scene.place.world.bucket.get("old").unwrap() == changed);
    let now = scene.place.world.proxy.counts();
    for call in [Call::UploadPart, Call::UploadPartCopy, Call::Initiate, Call::Complete] {
        assert_eq!(now.requests(call), sent.requests(call), "{call:?}\n{}", now.log_text());
    }
}

/// What a write-back close vouched for is in the spool, also where a part has bytes of the object around it: an upload that
/// somebody destroys after the power loss costs nothing.
#[test]
fn what_a_close_vouched_for_outlives_power_loss_and_the_end_of_its_upload() {
    let base = random_bytes(7, LARGE);
    let mut scene = Scene::prepared(&["--write-back", "--part-size", "5MiB"], |place| {
        drop(place.world.bucket.put("old", &base).expect("an object"));
    });
    scene.refuse(When::call(Call::UploadPartCopy));
    let other = File::options().write(true).open(scene.path("old")).unwrap();
    let file = File::options().write(true).open(scene.path("old")).unwrap();
    let news = random_bytes(1, 5000);
    file.write_all_at(&news, 100).unwrap();
    drop(file);
    let part = When::call(Call::UploadPart);
    let counted = scene.place.world.proxy.fault(part, Action::Pass);
    let is_sent = || counted.hits() > 0 || scene.place.world.proxy.counts().of(Call::UploadPart).accepted > 0;
    assert!(wait_until(WAIT, is_sent), "no part was sent");
    scene.place.world.wait_quiet();
    // Its line is on stable storage, too.
    other.sync_all().unwrap();
    scene.power_loss_then(Loss::Everything, |place| {
        for upload in place.world.bucket.uploads("").unwrap() {
            place.world.bucket.abort(&upload.key, &upload.upload_id).unwrap();
        }
    });
    scene.heal();
    scene.wait_idle();
    let mut changed = base;
    changed[100..5100].copy_from_slice(&news);
    assert!(scene.place.world.bucket.get("old").unwrap() == changed);
    drop(other);
}

/// With write-back, what a close returned for is published after power loss, also if a later close, which no sync vouches for yet,
/// has taken its place behind a publication that does not get through.
#[test]
fn a_later_close_does_not_take_away_what_an_earlier_one_promised() {
    let mut scene = Scene::new(&["--write-back"]);
    scene.refuse(When::call(Call::PutObject));
    let append = |bytes: &[u8]| {
        let mut file = File::options().append(true).create(true).open(scene.path("f")).unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        file
    };
    for line in ["first\n", "second\n", "third\n"] {
        drop(append(line.as_bytes()));
    }
    let late = DiskWhen::kinds(&[Kind::SyncFile]).path_contains("/spool");
    let late = scene.place.disk.fault(late, DiskFault::ActLate);
    let last = append(b"fourth\n");
    let closing = std::thread::spawn(move || drop(last));
    assert!(late.wait_hit(WAIT), "no sync began");
    // The line of the last close is on stable storage, its bytes are not.
    File::open(scene.mount().dir()).unwrap().sync_all().unwrap();
    // What is late would keep the process from ending.
    scene.place.disk.freeze();
    late.release();
    scene.power_loss(Loss::Everything);
    closing.join().unwrap();
    scene.heal();
    let published = || scene.place.world.bucket.get("f").is_ok_and(|there| there == b"first\nsecond\nthird\n");
    assert!(wait_until(WAIT, published), "{}\n{}", scene.mount().status(), scene.place.log_tail());
}

/// A hole that `fsync` returned for stays one where power loss takes a later write beside it: what the object had there does
/// not show again.
#[test]
fn a_synced_hole_does_not_show_the_object_again_where_a_later_write_is_lost() {
    for loss in [Loss::Nothing, Loss::Bytes, Loss::Everything] {
        let base = random_bytes(7, 300_000);
        let mut scene = Scene::prepared(&[], |place| drop(place.world.bucket.put("old", &base).expect("an object")));
        let file = File::options().write(true).open(scene.path("old")).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 200_000).unwrap();
        file.sync_all().unwrap();
        file.write_all_at(&random_bytes(1, 300), 100_000).unwrap();
        scene.power_loss(loss);
        let shown = scene.shown("old");
        assert_eq!(shown.len(), base.len(), "{loss:?}");
        let is_hole = |range: std::ops::Range<usize>| shown[range].iter().all(|byte| *byte == 0);
        assert!(is_hole(4096..100_000) && is_hole(100_300..204_096), "{loss:?}: bytes of the object show again");
        drop(file);
    }
}

/// Bytes that `fsync` returned for survive power loss, also where a close puts them together with those of an earlier close,
/// both behind a publication that does not get through.
#[test]
fn synced_bytes_survive_a_close_that_joins_them_to_those_of_an_earlier_one() {
    let mut scene = Scene::prepared(&[], |place| {
        drop(place.world.bucket.put("old", &random_bytes(7, 300_000)).expect("an object"));
    });
    let journal = |scene: &Scene| {
        let journals = scene.place.journals();
        journals.iter().filter_map(|dir| std::fs::read_to_string(dir.join("journal")).ok()).collect::<String>()
    };
    let close = |scene: &Scene, file: File, closes: usize| {
        let closing = std::thread::spawn(move || drop(file));
        let told = || journal(scene).matches("\"t\":\"closed\"").count() == closes;
        assert!(wait_until(WAIT, told), "{}", journal(scene));
        closing
    };
    let open = |scene: &Scene| File::options().write(true).open(scene.path("old")).unwrap();
    let (first, second, third) = (open(&scene), open(&scene), open(&scene));
    let stuck = scene.refuse(When::call(Call::PutObject));
    first.write_all_at(&random_bytes(1, 5000), 0).unwrap();
    let mut closing = vec![close(&scene, first, 1)];
    assert!(stuck.wait_hit(WAIT), "no PutObject");
    second.set_len(0).unwrap();
    second.write_all_at(&random_bytes(2, 4096), 0).unwrap();
    closing.push(close(&scene, second, 2));
    let synced = random_bytes(3, 11_000);
    third.write_all_at(&synced, 2500).unwrap();
    third.sync_all().unwrap();
    third.write_all_at(&random_bytes(4, 5000), 13_500).unwrap();
    closing.push(close(&scene, third, 3));
    // Time to put away what is not needed any more.
    std::thread::sleep(std::time::Duration::from_millis(300));
    scene.power_loss(Loss::Everything);
    let shown = scene.shown("old");
    assert!(shown.get(2500..13_500) == Some(&synced), "{} bytes are shown\n{}", shown.len(), scene.place.log_tail());
    closing.into_iter().for_each(|closing| closing.join().unwrap());
}
