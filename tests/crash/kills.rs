//! SIGKILL at the changes of the state directory: a sample of all points (`scripts/crash-points` runs all of them).

use crate::support::crash::kill::{Scenario, run_points};

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
#[test]
fn a_copy_of_four_parts() {
    sample(Scenario::CopyParts, 1, 13);
}
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
