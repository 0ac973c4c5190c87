//! Power loss: what fsync and a write-back close promised is there, everything else is old, new or an error, and nothing in
//! the bucket is wrong. A sample of all points and losses (`scripts/crash-points` runs more).

use crate::support::crash::outcome::Outcome;
use crate::support::crash::power::{Story, loss_of};

/// Every `step`-th change from `first` on, a loss of another kind each time.
fn sample(story: Story, first: u64, step: u64) {
    let mut sum = Outcome::default();
    for k in 0..40 {
        let outcome = story.round(first + k * step, loss_of(k + first), k);
        let is_behind = outcome.fired == 0;
        sum.add(outcome);
        if is_behind {
            break;
        }
    }
    println!("{}: every {step}th point from {first}: cut off in {} of {} rounds", story.name(), sum.fired, sum.rounds);
    assert!(sum.is_good(), "{}", sum.messages.join("\n"));
    assert!(sum.fired >= 2, "cut off only {} times", sum.fired);
}

/// After power loss a file whose write-back `close` returned 0 is published whole, or was already.
#[test]
fn at_a_close_with_write_back() {
    sample(Story::CloseWriteBack, 3, 11);
}
#[test]
fn at_a_close_of_a_small_file_with_write_back() {
    sample(Story::CloseSmallWriteBack, 1, 4);
}
#[test]
fn at_a_close() {
    sample(Story::Close, 5, 17);
}
#[test]
fn at_a_close_of_a_small_file() {
    sample(Story::CloseSmall, 2, 4);
}
#[test]
fn at_a_close_after_an_fsync() {
    sample(Story::FsyncSmall, 4, 5);
}
/// After power loss the bytes of a new file that `fsync` returned for are shown, and what was not synced is old, new
/// or an error, never something else.
#[test]
fn at_an_fsync_of_a_new_file() {
    sample(Story::FsyncNew, 10, 8);
}
/// After power loss a change in an object that `fsync` returned for is shown, and a change that was not synced leaves
/// the object's own bytes or an error.
#[test]
fn at_an_fsync_in_an_object() {
    sample(Story::FsyncOver, 1, 4);
}
#[test]
fn at_a_rename_of_an_object() {
    sample(Story::RenameObject, 0, 5);
}
#[test]
fn at_a_rename_of_a_directory() {
    sample(Story::RenameDirectory, 3, 7);
}
