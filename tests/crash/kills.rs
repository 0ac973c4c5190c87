//! SIGKILL at the changes of the state directory: a sample of all points (`scripts/crash-points` runs all of them).

use crate::support::crash::kill::{Scenario, run_points};
use crate::support::crash::steps::copy;
use crate::support::crash::{KEY, Place, SIZE};
use crate::support::disk::fault::{DiskFault, DiskWhen, Kind};
use crate::support::files::random_bytes;

/// Which points of a scenario are run: from `first` on, every `step`-th, before and after the change by turns.
fn sample(scenario: Scenario, first: u64, step: u64) {
    let points = (0..).map(|k| (first + k * step, k % 2 == 1)).take(60);
    let sum = run_points(scenario, points, |n, outcome| println!("change {n}: fired {}", outcome.fired));
    println!("{}: every {step}th point from {first}: {} of {} rounds killed", scenario.name(), sum.fired, sum.rounds);
    assert!(sum.is_good(), "{}", sum.messages.join("\n"));
    assert!(sum.fired >= 2, "killed only {} times", sum.fired);
}

#[test]
fn a_first_mount() {
    sample(Scenario::FirstMount, 0, 5);
}
/// Killed at changes of its state directory all through a `cp` of four parts, bosfs shows every accepted byte at the
/// next mount, no half object is ever seen, and the same `cp` run again ends well.
#[test]
fn a_copy_of_four_parts() {
    sample(Scenario::CopyParts, 1, 13);
}
/// Killed at changes of its state directory during and after a `--write-back` copy, bosfs publishes the file at the
/// next mount without anybody's help if `close` had returned 0.
#[test]
fn a_write_back_copy_of_four_parts() {
    sample(Scenario::CopyPartsWriteBack, 4, 13);
}
#[test]
fn a_copy_of_a_small_file() {
    sample(Scenario::CopySmall, 0, 5);
}
#[test]
fn an_overwrite_of_one_part() {
    sample(Scenario::OverwritePart, 2, 7);
}
#[test]
fn a_rename_of_an_object() {
    sample(Scenario::RenameObject, 1, 4);
}
#[test]
fn a_rename_of_a_temporary() {
    sample(Scenario::RenameTemporary, 3, 15);
}
#[test]
fn an_unlink_of_a_half_sent_file() {
    sample(Scenario::UnlinkHalf, 2, 11);
}
#[test]
fn a_rename_of_a_directory() {
    sample(Scenario::RenameDirectory, 0, 5);
}
#[test]
fn a_chmod() {
    sample(Scenario::Attributes, 1, 4);
}
#[test]
fn a_recovery() {
    sample(Scenario::Recovery, 2, 7);
}

/// A `write` of whole blocks (4 KiB) that was cut off by a kill of bosfs does not make the file longer, so `curl -C -`
/// and `rsync --append-verify` find no bytes that nobody wrote.
#[test]
fn a_write_that_was_cut_off_does_not_make_the_file_longer() {
    let place = Place::new().unwrap();
    let source = place.world.random_file("source", 1, SIZE);
    let mut mount = place.mount(&[]);
    // The bytes of the third write are in the spool; the map does not count them yet.
    let third = DiskWhen::kinds(&[Kind::Write]).path_ends("/map").skip(2).once();
    let rule = place.disk.fault(third, DiskFault::KillBefore);
    let told = copy(&source, &mount.path(KEY));
    assert_eq!((rule.hits(), told.ok, told.bytes), (1, false, 2 << 20), "{told:?}");
    mount.kill();
    place.disk.heal();
    let mount = place.mount(&[]);
    let shown = std::fs::read(mount.path(KEY)).unwrap();
    assert_eq!(shown.len(), 2 << 20);
    assert!(shown == random_bytes(1, 2 << 20));
}
