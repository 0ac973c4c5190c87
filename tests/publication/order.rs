//! Several handles, and a name that changes: each close publishes the file as it was at that close, one after the other.

use std::time::Duration;

use crate::hand::Pending;
use crate::scene::{KEY, Mode, Scene, Stuck, Then};
use crate::states::States;
use crate::{MIB, WAIT};

/// B closes as well while A's publication is stuck: the object is A's, then B's, whole each time.
fn b_closes_too(mode: Mode, stuck: Stuck, then: Then) {
    let mut scene = Scene::of_parts(mode, stuck);
    let b = scene.open();
    let mut both = scene.closed.clone();
    scene.put(&b, &mut both, MIB, 3, 4 << 10);
    let end = both.len() as u64;
    scene.put(&b, &mut both, end, 4, 9 << 20);
    let closing = b.begin_close();
    let closing = match mode {
        Mode::Default => {
            std::thread::sleep(Duration::from_millis(500));
            assert!(closing.is_under_way(), "B's close returned before the object is there");
            Some(closing)
        }
        Mode::WriteBack => {
            closing.within(WAIT, "B's close with --write-back").unwrap();
            None
        }
    };
    scene.assert_shown(&both);
    scene.go_on(then);
    if then == Then::Recovers {
        scene.a_returns();
        if let Some(closing) = closing {
            closing.within(WAIT, "B's close").unwrap();
            scene.assert_object(&both, "when B's close has returned");
        }
    }
    scene.wait_object(&both, "what B closed");
    let (base, closed) = (scene.base.clone(), scene.closed.clone());
    scene.unmount(&both);
    scene.states.assert_in_order(&[("the base", &base), ("A's", &closed), ("B's", &both)]);
}

/// A close that comes while an earlier one is on its way follows it: the object is each closed state in turn, whole.
#[test]
fn b_closes_too_while_complete_is_refused() {
    b_closes_too(Mode::Default, Stuck::Complete, Then::Recovers);
}

#[test]
fn b_closes_too_while_complete_is_refused_and_bosfs_is_killed() {
    b_closes_too(Mode::WriteBack, Stuck::Complete, Then::KilledAndMounted);
}

#[test]
fn b_closes_too_while_the_copies_are_refused() {
    b_closes_too(Mode::WriteBack, Stuck::Copy, Then::Recovers);
}

#[test]
fn b_closes_too_while_the_changed_part_is_refused() {
    b_closes_too(Mode::Default, Stuck::Part, Then::Recovers);
}

/// A closes, B closes, C writes and stays open; then C writes more and closes, and D after it.
fn three_handles(mode: Mode, stuck: Stuck, then: Then) {
    let mut scene = Scene::of_parts(mode, stuck);
    let (b, c) = (scene.open(), scene.open());
    let mut second = scene.closed.clone();
    scene.put(&b, &mut second, MIB, 3, 4 << 10);
    // Closed with what C has written by then.
    scene.put(&c, &mut second, 9 * MIB, 4, 100_000);
    let closing = b.begin_close();
    let closing = match mode {
        Mode::WriteBack => {
            closing.within(WAIT, "B's close with --write-back").unwrap();
            None
        }
        Mode::Default => {
            // Its flush has long arrived then; C's bytes are published neither with A's nor with B's.
            std::thread::sleep(Duration::from_secs(1));
            Some(closing)
        }
    };
    let mut third = second.clone();
    scene.put(&c, &mut third, MIB + 100, 5, 8 << 10);
    let end = third.len() as u64;
    scene.put(&c, &mut third, end, 6, 1 << 20);
    scene.assert_shown(&third);
    scene.go_on(then);
    if then == Then::Recovers {
        scene.a_returns();
        if let Some(closing) = closing {
            closing.within(WAIT, "B's close").unwrap();
        }
    }
    scene.wait_object(&second, "what B closed");
    let (base, first) = (scene.base.clone(), scene.closed.clone());
    let expected = if then == Then::Recovers {
        c.close(WAIT, "C's close");
        &third
    } else {
        scene.assert_interrupted(&third);
        &second
    };
    scene.wait_object(expected, "what was closed last");
    scene.unmount(expected);
    scene.states.assert_in_order(&[("the base", &base), ("A's", &first), ("B's", &second), ("C's", &third)]);
}

#[test]
fn three_handles_while_complete_is_refused() {
    three_handles(Mode::Default, Stuck::Complete, Then::Recovers);
}

#[test]
fn three_handles_behind_write_back_closes_while_complete_is_refused() {
    three_handles(Mode::WriteBack, Stuck::Complete, Then::Recovers);
}

#[test]
fn three_handles_while_complete_is_refused_and_bosfs_is_killed() {
    three_handles(Mode::WriteBack, Stuck::Complete, Then::KilledAndMounted);
}

#[test]
fn three_handles_while_the_changed_part_is_refused() {
    three_handles(Mode::WriteBack, Stuck::Part, Then::Recovers);
}

/// B has the file open with a change when it is renamed in the middle of A's publication: the new name has what A closed,
/// then what B closes.
fn renamed_meanwhile(mode: Mode, stuck: Stuck) {
    let mut scene = Scene::of_parts(mode, stuck);
    let renamed = States::watch(&scene.world.bucket, "g");
    let b = scene.open();
    let mut both = scene.closed.clone();
    scene.put(&b, &mut both, MIB, 3, 4 << 10);
    let (from, to) = (scene.mount.path(KEY), scene.mount.path("g"));
    let renaming = Pending::of(move || std::fs::rename(from, to));
    std::thread::sleep(Duration::from_millis(500));
    scene.go_on(Then::Recovers);
    scene.a_returns();
    renaming.within(WAIT, "rename").unwrap();
    b.close(WAIT, "B's close");
    scene.world.wait_object("g", both.len() as u64, WAIT);
    let output = scene.mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}\n{}", scene.told());
    assert!(scene.world.bucket.get("g").unwrap() == both, "{}", scene.told());
    assert!(scene.world.bucket.head(KEY).unwrap().is_none(), "the old name stays\n{}", scene.told());
    // Renamed before A's was there, it is the base that goes along.
    renamed.assert_in_order_or_absent(&[("the base", &scene.base), ("A's", &scene.closed), ("B's", &both)]);
}

#[test]
fn the_file_is_renamed_while_complete_is_refused() {
    renamed_meanwhile(Mode::Default, Stuck::Complete);
}

#[test]
fn the_file_is_renamed_behind_a_write_back_close_while_complete_is_refused() {
    renamed_meanwhile(Mode::WriteBack, Stuck::Complete);
}

#[test]
fn the_file_is_renamed_while_the_copies_are_refused() {
    renamed_meanwhile(Mode::WriteBack, Stuck::Copy);
}

// The file is removed while A's publication is stuck and B holds it open: nothing of it is left.
#[test]
fn the_file_is_removed_while_complete_is_refused() {
    let mut scene = Scene::of_parts(Mode::WriteBack, Stuck::Complete);
    let b = scene.open();
    scene.put(&b, &mut scene.closed.clone(), MIB, 3, 4 << 10);
    let path = scene.mount.path(KEY);
    crate::support::mounted::within(WAIT, "unlink", move || std::fs::remove_file(path)).unwrap();
    scene.go_on(Then::Recovers);
    b.close(WAIT, "B's close");
    let output = scene.mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}\n{}", scene.told());
    assert!(scene.world.bucket.head(KEY).unwrap().is_none(), "{}", scene.told());
    assert!(scene.world.bucket.uploads("").unwrap().is_empty(), "an upload is left\n{}", scene.told());
}
