//! B empties the file while A's publication does not get through: A's close ends all the same, and what B closes is the
//! object then.

use std::os::unix::fs::FileExt as _;

use crate::hand::Hand;
use crate::scene::{KEY, Mode, Scene, Stuck, Then, open_truncating};
use crate::support::files::random_bytes;
use crate::support::mounted::cp;
use crate::{MIB, WAIT};

/// How B empties it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    OpenTrunc,
    Ftruncate,
}

fn b_empties(mut scene: Scene, by: By, then: Then) {
    let new = random_bytes(3, 1 << 10);
    let b = match by {
        By::OpenTrunc => open_truncating(&scene.mount.path(KEY)),
        By::Ftruncate => {
            let b = scene.open();
            b.local("ftruncate to 0", |file| file.set_len(0));
            b
        }
    };
    b.write(0, &new);
    scene.assert_shown(&new);
    scene.go_on(then);
    scene.a_is_published();
    let (base, closed) = (scene.base.clone(), scene.closed.clone());
    match then {
        Then::Recovers => {
            b.close(WAIT, "B's close");
            match scene.mode {
                Mode::Default => scene.assert_object(&new, "when B's close has returned"),
                Mode::WriteBack => scene.wait_object(&new, "what B closed"),
            }
        }
        Then::KilledAndMounted => {
            scene.assert_interrupted(&new);
            scene.assert_object(&closed, "while B's file is kept");
            // Whoever goes on with it and closes it publishes it.
            let again = open_truncating(&scene.mount.path(KEY));
            again.write(0, &new);
            again.close(WAIT, "the close of a second writer");
            scene.wait_object(&new, "what a second writer closed");
        }
    }
    scene.unmount(&new);
    scene.states.assert_in_order(&[("the base", &base), ("A's", &closed), ("B's", &new)]);
}

macro_rules! tests {
    ($($(#[$attribute:meta])* $name:ident: $mode:ident, $stuck:ident, $by:ident, $then:ident;)*) => {$(
        $(#[$attribute])*
        #[test]
        fn $name() {
            b_empties(Scene::of_parts(Mode::$mode, Stuck::$stuck), By::$by, Then::$then);
        }
    )*};
}

tests! {
    b_empties_the_file_by_open: Default, Complete, OpenTrunc, Recovers;
    b_empties_the_file_by_open_and_bosfs_is_killed: Default, Complete, OpenTrunc, KilledAndMounted;
    b_empties_the_file_by_open_behind_a_write_back_close: WriteBack, Complete, OpenTrunc, Recovers;
    b_empties_the_file_by_open_behind_a_write_back_close_and_bosfs_is_killed:
        WriteBack, Complete, OpenTrunc, KilledAndMounted;
    b_empties_the_file_by_ftruncate: Default, Complete, Ftruncate, Recovers;
    b_empties_the_file_by_ftruncate_and_bosfs_is_killed: Default, Complete, Ftruncate, KilledAndMounted;
    b_empties_the_file_by_ftruncate_behind_a_write_back_close: WriteBack, Complete, Ftruncate, Recovers;
    b_empties_the_file_by_ftruncate_behind_a_write_back_close_and_bosfs_is_killed:
        WriteBack, Complete, Ftruncate, KilledAndMounted;
    b_empties_the_file_while_the_copies_are_refused: Default, Copy, OpenTrunc, Recovers;
    b_empties_the_file_while_the_changed_part_is_refused: Default, Part, OpenTrunc, Recovers;
}

/// One program alone: it changes 4 KiB and closes with `--write-back`, the line breaks at Complete, and `cp` puts 5 KB over
/// the file. The object becomes the 5 KB.
fn cp_over_what_is_under_way(stuck: Stuck) {
    let mut scene = Scene::of_parts(Mode::WriteBack, stuck);
    let source = scene.world.random_file("source", 7, 5000);
    let copied = cp(&source, scene.mount.path(KEY), WAIT);
    assert!(copied.status.success(), "{copied:?}\n{}", scene.told());
    scene.go_on(Then::Recovers);
    let new = std::fs::read(source).unwrap();
    scene.wait_object(&new, "what cp wrote");
    let (base, closed) = (scene.base.clone(), scene.closed.clone());
    scene.unmount(&new);
    scene.states.assert_in_order(&[("the base", &base), ("closed first", &closed), ("copied over it", &new)]);
}

/// A file that is emptied and written anew while an earlier state is on its way becomes what was written anew.
#[test]
fn cp_over_a_file_whose_complete_breaks() {
    cp_over_what_is_under_way(Stuck::CompleteBreaks);
}

#[test]
fn cp_over_a_file_whose_complete_is_refused() {
    cp_over_what_is_under_way(Stuck::Complete);
}

#[test]
fn cp_over_a_file_whose_copies_are_refused() {
    cp_over_what_is_under_way(Stuck::Copy);
}

// The same, and bosfs is killed before the line is back.
#[test]
fn cp_over_a_file_whose_complete_breaks_and_bosfs_is_killed() {
    let mut scene = Scene::of_parts(Mode::WriteBack, Stuck::CompleteBreaks);
    let source = scene.world.random_file("source", 7, 5000);
    assert!(cp(&source, scene.mount.path(KEY), WAIT).status.success(), "{}", scene.told());
    scene.go_on(Then::KilledAndMounted);
    let new = std::fs::read(source).unwrap();
    scene.wait_object(&new, "what cp wrote");
    scene.unmount(&new);
}

// B empties the file, writes more than was there before, and stays open: parts of both are on their way.
#[test]
fn b_empties_the_file_and_writes_more_than_was_there() {
    let mut scene = Scene::of_parts(Mode::Default, Stuck::Complete);
    let b: Hand = open_truncating(&scene.mount.path(KEY));
    let new = random_bytes(9, 50 << 20);
    for at in (0..new.len() as u64).step_by(MIB as usize) {
        b.write(at, &new[at as usize..(at + MIB) as usize]);
    }
    scene.go_on(Then::Recovers);
    scene.a_is_published();
    b.close(WAIT, "B's close");
    scene.assert_object(&new, "when B's close has returned");
    scene.unmount(&new);
}

// `truncate -s 0` by path, as log rotation does, while A's publication does not get through.
#[test]
fn the_file_is_emptied_by_path() {
    let mut scene = Scene::of_parts(Mode::Default, Stuck::Complete);
    let b = scene.open();
    let path = scene.mount.path(KEY);
    let emptying = crate::hand::Pending::of(move || std::fs::OpenOptions::new().write(true).open(path)?.set_len(0));
    std::thread::sleep(std::time::Duration::from_millis(500));
    scene.go_on(Then::Recovers);
    // The empty file may be published right behind A's.
    assert!(scene.a_returns());
    emptying.within(WAIT, "truncate by path").unwrap();
    scene.put(&b, &mut Vec::new(), 0, 4, 700);
    let new = random_bytes(4, 700);
    b.local("read", move |file| {
        let mut shown = vec![0; 700];
        file.read_exact_at(&mut shown, 0)?;
        assert!(shown == random_bytes(4, 700));
        Ok(())
    });
    b.close(WAIT, "B's close");
    scene.assert_object(&new, "when B's close has returned");
    scene.unmount(&new);
}
