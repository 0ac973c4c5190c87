//! Attributes that change while A's publication does not get through: they neither hold it up nor are they lost.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::scene::{Mode, Scene, Stuck, Then};
use crate::support::mounted::within;
use crate::{LOCAL, WAIT};

const MODE: u32 = 0o100_640;
const MODE_HEADER: &str = "x-bce-meta-bosfs-mode";
const XATTR_HEADER: &str = "x-bce-meta-bosfs-xattr";

fn chmod(path: &Path) {
    let path = path.to_owned();
    let permissions = std::fs::Permissions::from_mode(0o640);
    within(LOCAL, "chmod", move || std::fs::set_permissions(path, permissions)).unwrap();
}

fn set_xattr(path: &Path) {
    let path = path.to_owned();
    let set = || move || rustix::fs::setxattr(path, "user.kind", b"log", rustix::fs::XattrFlags::empty());
    within(LOCAL, "setxattr", set()).unwrap();
}

fn mode_shown(path: &Path) -> u32 {
    let path = path.to_owned();
    within(WAIT, "stat", move || std::fs::metadata(path).unwrap().permissions().mode())
}

/// B sets mode and an extended attribute; with `writes`, it also has the file open and changes it.
fn b_sets_attributes(mode: Mode, stuck: Stuck, then: Then, writes: bool) {
    let mut scene = Scene::of_parts(mode, stuck);
    let path = scene.mount.path(crate::scene::KEY);
    let b = writes.then(|| scene.open());
    let mut both = scene.closed.clone();
    if let Some(b) = &b {
        scene.put(b, &mut both, 1000, 3, 5000);
    }
    chmod(&path);
    set_xattr(&path);
    assert_eq!(mode_shown(&path), MODE);
    scene.go_on(then);
    scene.a_is_published();
    assert_eq!(mode_shown(&path), MODE, "{}", scene.told());
    scene.assert_shown(&both);
    let expected = match (b, then) {
        (Some(b), Then::Recovers) => {
            b.close(WAIT, "B's close");
            both
        }
        _ => scene.closed.clone(),
    };
    scene.wait_object(&expected, "what was closed last");
    if !(writes && then == Then::KilledAndMounted) {
        scene.wait_header(MODE_HEADER, &MODE.to_string());
        scene.wait_header(XATTR_HEADER, "user.kind:bG9n");
    }
    scene.unmount(&expected);
}

#[test]
fn chmod_and_setxattr_while_complete_is_refused() {
    b_sets_attributes(Mode::Default, Stuck::Complete, Then::Recovers, false);
}

#[test]
fn chmod_and_setxattr_while_complete_is_refused_and_bosfs_is_killed() {
    b_sets_attributes(Mode::WriteBack, Stuck::Complete, Then::KilledAndMounted, false);
}

#[test]
fn chmod_and_setxattr_of_a_file_that_b_changes_while_complete_is_refused() {
    b_sets_attributes(Mode::WriteBack, Stuck::Complete, Then::Recovers, true);
}

#[test]
fn chmod_and_setxattr_of_a_file_that_b_changes_while_complete_is_refused_and_bosfs_is_killed() {
    b_sets_attributes(Mode::Default, Stuck::Complete, Then::KilledAndMounted, true);
}

#[test]
fn chmod_and_setxattr_while_the_copies_are_refused() {
    b_sets_attributes(Mode::Default, Stuck::Copy, Then::Recovers, false);
}
