//! What an unmount from outside takes with it: the kernel drops the releases that wait in its queue, and a forced one also
//! what a program is in the middle of.

use std::fs::File;
use std::io::Write as _;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use crate::WAIT;
use crate::support::{MappedFile, World};

/// A file that was closed is published, and removed if it has no name any more, also when the kernel drops its release with
/// the mount.
#[test]
fn a_release_that_an_unmount_drops_is_made_up_for() {
    // A temporary waits for its rename after the release, and without one goes under its own name.
    let cases = [("file", false), (".f.AbCd12", false), ("unlinked", true)];
    for (name, unlink) in cases {
        for args in [&[][..], &["--write-back"]] {
            let world = World::new();
            let mut mount = world.mount(args);
            let file = MappedFile::closed(&mount.path(name), "content");
            if unlink {
                std::fs::remove_file(mount.path(name)).unwrap();
            }
            mount.stop();
            // The release is queued, and nobody reads it.
            file.release(WAIT);
            unmount(mount.dir(), UnmountFlags::empty()).expect("nothing is open");
            let status = mount.end_by(Signal::CONT, WAIT).expect("bosfs ends");
            assert!(status.success(), "{name} {args:?}: {status}\n{}", mount.log_text());
            assert!(world.journals().is_empty(), "{name} {args:?}: {:?}\n{}", world.journals(), mount.log_text());
            if unlink {
                assert!(world.bucket.head(name).unwrap().is_none(), "{args:?}: its object is still there");
            } else {
                assert_eq!(world.bucket.get(name).unwrap(), b"content", "{name} {args:?}");
            }
        }
    }
}

/// `umount -f` publishes nothing that is still being written: it is kept, as that of a killed writer.
#[test]
fn a_forced_unmount_publishes_nothing_that_is_still_being_written() {
    let world = World::new();
    let mut mount = world.mount(&["--write-back"]);
    let mut file = File::create(mount.path("file")).unwrap();
    file.write_all(b"half").unwrap();
    // The mount is busy and stays; its connection is cut all the same.
    let _ = unmount(mount.dir(), UnmountFlags::FORCE);
    assert!(file.write_all(b"more").is_err(), "the connection is there");
    mount.end_by(Signal::CONT, WAIT).expect("bosfs ends");
    drop(file);
    assert_eq!(world.journals().len(), 1, "{}", mount.log_text());
    assert!(world.bucket.head("file").unwrap().is_none(), "published\n{}", mount.log_text());
    let again = world.mount(&[]);
    assert_eq!(std::fs::read(again.path("file")).unwrap(), b"half");
    assert_eq!(again.file_status("file").expect("it is kept")["state"], "interrupted");
}
