//! B changes bytes that belong to A's publication and stays open: the object is what A closed, then what B closes. If bosfs
//! is killed before, the next mount publishes what A closed, and keeps B's file as interrupted.

#![expect(clippy::ptr_arg, reason = "some changes make the file longer or shorter; all have one form")]

use std::os::unix::fs::FileExt as _;

use rustix::fs::{FallocateFlags, copy_file_range, fallocate};

use crate::hand::Hand;
use crate::scene::{A_AT, KEY, Mode, PARTS_BYTES, Scene, Stuck, Then};
use crate::support::files::random_bytes;
use crate::support::mounted::{run, within};
use crate::{KIB, LOCAL, MIB, WAIT};

/// In a range that BOS copies from the base.
const COPIED_AT: u64 = MIB;

/// What B does to the file and to what is expected of it.
type Change = fn(&Scene, &Hand, &mut Vec<u8>);

/// B changes the file while A's publication is stuck. Whatever B does must not wait for the network.
fn b_changes(mut scene: Scene, then: Then, change: Change) {
    let b = scene.open();
    let mut both = scene.closed.clone();
    change(&scene, &b, &mut both);
    scene.assert_shown(&both);
    scene.go_on(then);
    scene.a_is_published();
    let (base, closed) = (scene.base.clone(), scene.closed.clone());
    match then {
        Then::Recovers => {
            scene.assert_shown(&both);
            b.close(WAIT, "B's close");
            match scene.mode {
                Mode::Default => scene.assert_object(&both, "when B's close has returned"),
                Mode::WriteBack => scene.wait_object(&both, "what B closed"),
            }
        }
        Then::KilledAndMounted => {
            scene.assert_interrupted(&both);
            scene.assert_object(&closed, "while B's file is kept");
            let complete = run(&mut scene.mount.command(&["uploads", "complete", &format!("bkt/{KEY}")]), WAIT);
            assert!(complete.status.success(), "{complete:?}\n{}", scene.told());
            scene.wait_object(&both, "what B wrote, on command");
        }
    }
    scene.unmount(&both);
    scene.states.assert_in_order(&[("the base", &base), ("A's", &closed), ("B's", &both)]);
}

fn write_copied_range(scene: &Scene, b: &Hand, model: &mut Vec<u8>) {
    scene.put(b, model, COPIED_AT, 3, 4 << 10);
}

/// Beside A's bytes, in the part that A changed and in the same block of the disk.
fn write_part_of_a(scene: &Scene, b: &Hand, model: &mut Vec<u8>) {
    scene.put(b, model, A_AT + 10, 3, 100);
    scene.put(b, model, A_AT + 200 * KIB, 4, 5000);
}

fn write_over_all(scene: &Scene, b: &Hand, model: &mut Vec<u8>) {
    for at in (0..PARTS_BYTES as u64).step_by(4 << 20) {
        scene.put(b, model, at, 5 + at, 4 << 20);
    }
}

fn grow_by_ftruncate(_: &Scene, b: &Hand, model: &mut Vec<u8>) {
    let size = model.len() as u64 + 9 * MIB + 5;
    b.local("ftruncate", move |file| file.set_len(size));
    model.resize(size as usize, 0);
}

fn grow_by_fallocate(_: &Scene, b: &Hand, model: &mut Vec<u8>) {
    let end = model.len() as u64;
    b.local("fallocate", move |file| Ok(fallocate(file, FallocateFlags::empty(), end - 10, 3 * MIB)?));
    model.resize((end - 10 + 3 * MIB) as usize, 0);
}

fn append(scene: &Scene, b: &Hand, model: &mut Vec<u8>) {
    let end = model.len() as u64;
    scene.put(b, model, end, 6, 300_000);
}

fn shrink_into_copied_range(_: &Scene, b: &Hand, model: &mut Vec<u8>) {
    b.local("ftruncate", |file| file.set_len(10 * MIB + 1));
    model.truncate(10 * MIB as usize + 1);
}

fn shrink_and_grow(scene: &Scene, b: &Hand, model: &mut Vec<u8>) {
    let size = model.len() as u64;
    shrink_into_copied_range(scene, b, model);
    b.local("ftruncate", move |file| file.set_len(size));
    model.resize(size as usize, 0);
}

fn punch_hole(_: &Scene, b: &Hand, model: &mut Vec<u8>) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    b.local("fallocate", move |file| Ok(fallocate(file, flags, COPIED_AT + 7, 200 * KIB)?));
    model[COPIED_AT as usize + 7..][..200 << 10].fill(0);
}

fn zero_range(_: &Scene, b: &Hand, model: &mut Vec<u8>) {
    b.local("fallocate", |file| Ok(fallocate(file, FallocateFlags::ZERO_RANGE, A_AT - 9 * MIB, 10 * MIB)?));
    model[(A_AT - 9 * MIB) as usize..][..10 << 20].fill(0);
}

/// From another object of the mount that was there before, as `cp` in the mount does.
fn copy_range_within_the_mount(scene: &Scene, b: &Hand, model: &mut Vec<u8>) {
    let bytes = random_bytes(8, 3 << 20);
    scene.world.bucket.put("other", &bytes).unwrap();
    let path = scene.mount.path("other");
    let other = within(LOCAL, "opening another object", move || std::fs::File::open(path).unwrap());
    // Its bytes may have to come from BOS, which answers.
    let copied = b.begin(move |file| {
        let mut at = COPIED_AT + 11;
        let mut from = 0;
        while from < 3 * MIB {
            from += match copy_file_range(&other, Some(&mut from.clone()), file, Some(&mut at), 3 << 20) {
                Ok(taken) => taken as u64,
                // Programs go on with read and write then.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::XDEV) => {
                    let mut piece = vec![0; (3 * MIB - from) as usize];
                    other.read_exact_at(&mut piece, from)?;
                    file.write_all_at(&piece, at)?;
                    piece.len() as u64
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(())
    });
    copied.within(WAIT, "copy_file_range").unwrap();
    model[COPIED_AT as usize + 11..][..3 << 20].copy_from_slice(&bytes);
}

macro_rules! tests {
    ($($(#[$attribute:meta])* $name:ident: $mode:ident, $stuck:ident, $then:ident, $change:ident;)*) => {$(
        $(#[$attribute])*
        #[test]
        fn $name() {
            b_changes(Scene::of_parts(Mode::$mode, Stuck::$stuck), Then::$then, $change);
        }
    )*};
}

tests! {
    b_writes_a_copied_range: Default, Complete, Recovers, write_copied_range;
    b_writes_a_copied_range_and_bosfs_is_killed: Default, Complete, KilledAndMounted, write_copied_range;
    b_writes_a_copied_range_behind_a_write_back_close: WriteBack, Complete, Recovers, write_copied_range;
    b_writes_a_copied_range_behind_a_write_back_close_and_bosfs_is_killed:
        WriteBack, Complete, KilledAndMounted, write_copied_range;
    b_writes_a_range_while_its_copy_is_refused: Default, Copy, Recovers, write_copied_range;
    b_writes_a_range_while_its_copy_is_refused_and_bosfs_is_killed:
        WriteBack, Copy, KilledAndMounted, write_copied_range;
    b_writes_the_part_that_a_changed_while_it_is_refused: Default, Part, Recovers, write_part_of_a;
    b_writes_the_part_that_a_changed_while_it_is_refused_and_bosfs_is_killed:
        WriteBack, Part, KilledAndMounted, write_part_of_a;
    b_writes_the_part_that_a_changed_once_it_is_sent: WriteBack, Complete, Recovers, write_part_of_a;
    b_writes_the_part_that_a_changed_once_it_is_sent_and_bosfs_is_killed:
        Default, Complete, KilledAndMounted, write_part_of_a;
    b_writes_over_the_whole_file: WriteBack, CompleteBreaks, Recovers, write_over_all;
    b_writes_over_the_whole_file_and_bosfs_is_killed: Default, Copy, KilledAndMounted, write_over_all;
    b_grows_the_file_by_ftruncate: Default, Complete, Recovers, grow_by_ftruncate;
    b_grows_the_file_by_ftruncate_and_bosfs_is_killed: WriteBack, Complete, KilledAndMounted, grow_by_ftruncate;
    b_grows_the_file_by_fallocate: WriteBack, Complete, Recovers, grow_by_fallocate;
    b_grows_the_file_by_fallocate_and_bosfs_is_killed: Default, Part, KilledAndMounted, grow_by_fallocate;
    b_appends: Default, Complete, Recovers, append;
    b_appends_and_bosfs_is_killed: Default, Complete, KilledAndMounted, append;
    b_appends_while_the_last_part_is_refused: WriteBack, Part, Recovers, append;
    b_shrinks_the_file_into_a_copied_range: Default, Complete, Recovers, shrink_into_copied_range;
    b_shrinks_the_file_into_a_copied_range_and_bosfs_is_killed:
        WriteBack, Complete, KilledAndMounted, shrink_into_copied_range;
    b_shrinks_the_file_while_the_last_part_is_refused: WriteBack, Part, Recovers, shrink_into_copied_range;
    b_shrinks_the_file_and_grows_it_again: WriteBack, Copy, Recovers, shrink_and_grow;
    b_shrinks_the_file_and_grows_it_again_and_bosfs_is_killed: Default, Complete, KilledAndMounted, shrink_and_grow;
    b_punches_a_hole_into_a_copied_range: Default, Complete, Recovers, punch_hole;
    b_punches_a_hole_into_a_copied_range_and_bosfs_is_killed: WriteBack, Copy, KilledAndMounted, punch_hole;
    b_zeroes_a_copied_range_and_more: WriteBack, Complete, Recovers, zero_range;
    b_copies_another_object_over_a_copied_range: Default, Complete, Recovers, copy_range_within_the_mount;
    b_copies_another_object_over_a_copied_range_and_bosfs_is_killed:
        WriteBack, Complete, KilledAndMounted, copy_range_within_the_mount;
}

fn write_one_part(scene: &Scene, b: &Hand, model: &mut Vec<u8>) {
    scene.put(b, model, 100 * KIB, 3, 300);
    scene.put(b, model, 700 * KIB + 1, 4, 9000);
}

/// What a program writes into a file while an earlier close of it is on its way to BOS waits for nothing and does not
/// reach the object.
#[test]
fn b_writes_a_file_of_one_part_while_its_put_is_refused() {
    b_changes(Scene::of_one_part(Mode::Default), Then::Recovers, write_one_part);
}

/// After a kill of bosfs in that moment the object is what was closed, and what was written since is kept as
/// interrupted.
#[test]
fn b_writes_a_file_of_one_part_while_its_put_is_refused_and_bosfs_is_killed() {
    b_changes(Scene::of_one_part(Mode::WriteBack), Then::KilledAndMounted, write_one_part);
}
