//! Crashes inside a checkpoint of a journal, and full disks there: a sample of all points (`scripts/crash-matrix` runs more).

use crate::support::crash::checkpoint::{Cut, Point, round};
use crate::support::crash::outcome::Outcome;
use crate::support::disk::power::Loss;

/// Rounds at points of a checkpoint; the fault must have happened in them, and a journal been put in place.
fn at_points(points: &[Point], cuts: &[Cut]) {
    let mut sum = Outcome::default();
    for (seed, (point, cut)) in points.iter().zip(cuts.iter().cycle()).enumerate() {
        let outcome = round(*point, *cut, seed as u64);
        println!("{point:?} {cut:?}: fired {}, {} checkpoints", outcome.fired, outcome.checkpoints);
        sum.add(outcome);
    }
    assert!(sum.is_good(), "{}", sum.messages.join("\n"));
    assert_eq!(sum.fired, sum.rounds, "a fault never happened: no checkpoint came");
}

/// The first points: the new journal is made, written, synced and renamed.
const FIRST: [Point; 6] = [
    Point::NewJournal(0),
    Point::NewJournal(1),
    Point::NewJournal(2),
    Point::NewJournal(3),
    Point::NewJournal(4),
    Point::NewJournal(5),
];

#[test]
fn a_kill_before_each_step_of_a_checkpoint_loses_nothing() {
    at_points(&FIRST, &[Cut::KillBefore]);
}

#[test]
fn a_kill_after_each_step_of_a_checkpoint_loses_nothing() {
    at_points(&FIRST, &[Cut::KillAfter]);
}

// The writer may be told of it, but the old journal stays good.
#[test]
fn a_full_or_failing_disk_in_a_checkpoint_loses_nothing() {
    at_points(&FIRST, &[Cut::Fail(rustix::io::Errno::NOSPC), Cut::Fail(rustix::io::Errno::IO)]);
}

#[test]
fn a_power_loss_in_a_checkpoint_loses_nothing_that_was_synced() {
    let losses = [Loss::Everything, Loss::Tail, Loss::Pages, Loss::Bytes, Loss::Sectors, Loss::Nothing];
    at_points(&FIRST, &losses.map(Cut::Power));
}

// Behind the rename, and anywhere.
#[test]
fn a_power_loss_at_the_end_of_a_checkpoint_loses_nothing_that_was_synced() {
    let points = [Point::DirSync(0), Point::DirSync(1), Point::DirSync(2), Point::Any(1500), Point::Any(2800)];
    let losses = [Loss::Everything, Loss::Tail, Loss::Bytes];
    at_points(&points, &losses.map(Cut::Power));
}

#[test]
fn a_kill_anywhere_among_thousands_of_small_writes_loses_nothing() {
    let points = [0, 1, 700, 1500, 2200, 2900].map(Point::Any);
    at_points(&points, &[Cut::KillBefore, Cut::KillAfter]);
}
