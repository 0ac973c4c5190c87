//! What another call does while one is between two of its steps, which is made to last.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::time::{Duration, Instant};

use crate::panics::armed;
use crate::support::mounted::within;
use crate::support::{Call, World};
use crate::{ARGS, KEY, PART, WAIT, wait_no_journal, wait_until};

/// How long the step lasts.
const STEP: Duration = Duration::from_secs(2);
/// When the other call is made.
const INSIDE: Duration = Duration::from_millis(700);

/// Makes `call`, which comes to the armed place, and `other` inside of it.
fn beside(call: impl FnOnce() -> std::io::Result<()> + Send + 'static, other: impl FnOnce()) {
    let calling = std::thread::spawn(move || {
        let began = Instant::now();
        (within(WAIT, "the call", call), began.elapsed())
    });
    std::thread::sleep(INSIDE);
    other();
    let (ended, took) = calling.join().unwrap();
    ended.unwrap();
    assert!(took >= STEP, "the call did not come to the place");
}

/// A file whose last handle is released while its unlink is under way is removed as any other, and `bosfs umount` leaves
/// nothing of it.
#[test]
fn a_file_that_is_released_in_the_middle_of_its_unlink_is_removed() {
    for content in ["object", "written"] {
        let world = World::new();
        let mut mount = armed(&world, &[], &format!("fs.remove=1*sleep({})->off", STEP.as_millis()));
        let path = mount.path("file");
        std::fs::write(&path, content).unwrap();
        let mut open = OpenOptions::new().read(true).write(content == "written").open(&path).unwrap();
        if content == "written" {
            open.write_all(b"more").unwrap();
        }
        beside(move || std::fs::remove_file(path), move || drop(open));
        assert!(world.bucket.head("file").unwrap().is_none(), "{content}: its object is still there");
        wait_no_journal(&world);
        let output = mount.umount(WAIT);
        assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    }
}

/// A rename over a file that is published by its writer's close in the middle of the rename takes its place all the same.
#[test]
fn a_file_that_is_published_in_the_middle_of_a_rename_over_it_is_replaced() {
    let world = World::new();
    let mount = armed(&world, &[], &format!("fs.rename=1*sleep({})->off", STEP.as_millis()));
    let (target, temporary) = (mount.path("file"), mount.path(".file.Ab3dEf"));
    std::fs::write(&target, "first").unwrap();
    let mut open = File::options().write(true).open(&target).unwrap();
    open.write_all(b"second").unwrap();
    let mut options = File::options();
    let mut new = options.read(true).write(true).create_new(true).mode(0o600).open(&temporary).unwrap();
    new.write_all(b"third and last").unwrap();
    drop(new);
    let to = target.clone();
    beside(move || std::fs::rename(temporary, to), move || drop(open));
    assert_eq!(world.bucket.get("file").unwrap(), b"third and last");
    assert_eq!(std::fs::read(&target).unwrap(), b"third and last");
    assert_eq!(world.proxy.counts().requests(Call::PutObject), 3, "the second version was published");
    wait_no_journal(&world);
}

/// Bytes of a part that are written again in the moment when BOS has just taken its former bytes are sent again: the object
/// has them.
#[test]
fn a_part_that_is_written_again_just_when_bos_took_it_is_sent_again() {
    let world = World::new();
    let mount = armed(&world, &ARGS, &format!("upload.answered=1*sleep({})->off", STEP.as_millis()));
    let mut content = vec![7; PART as usize + 1000];
    let file = File::create(mount.path(KEY)).unwrap();
    file.write_all_at(&content, 0).unwrap();
    wait_until("the first part is in the server", || world.proxy.counts().of(Call::UploadPart).accepted >= 1);
    content[100..200].fill(9);
    file.write_all_at(&content[100..200], 100).unwrap();
    drop(file);
    assert!(world.bucket.get(KEY).unwrap() == content, "the object lacks what was written last");
    assert_eq!(world.proxy.counts().requests(Call::UploadPart), 3);
    wait_no_journal(&world);
}
