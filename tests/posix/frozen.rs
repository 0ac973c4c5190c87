//! Changes to a file whose publication is under way.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::support::{Call, HoldAt, When, World, fault::Rule, files::random_bytes, mounted::within};
use crate::{PART, WAIT};

/// A write-back mount and a file of four parts that was flushed but is still open; BOS has every part but the first, whose
/// request is held.
struct Frozen {
    world: World,
    mount: crate::support::Mounted,
    file: File,
    bytes: Vec<u8>,
    held: Rule,
}

impl Frozen {
    fn new() -> Self {
        let world = World::new();
        let mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
        let held = world.proxy.hold(When::call(Call::UploadPart).part(1).once(), HoldAt::BeforeForward);
        let bytes = random_bytes(3, 3 * PART as usize + 1000);
        let file = File::create(mount.path("f")).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        // A close of a duplicate is a flush.
        drop(file.try_clone().unwrap());
        assert!(held.wait_hit(WAIT), "{}", mount.log_text());
        mount.wait_state("f", WAIT, |entry| entry.is_some_and(|e| e["parts_in_bos"] == 3));
        Self { world, mount, file, bytes, held }
    }

    /// Lets the held part go, closes, and waits until the object has `bytes`.
    fn ends_as(self, bytes: &[u8]) {
        self.held.release();
        drop(self.file);
        self.world.wait_object("f", bytes.len() as u64, WAIT);
        self.mount.wait_settled("f", WAIT);
        assert!(self.world.bucket.get("f").unwrap() == bytes);
        assert!(std::fs::read(self.mount.path("f")).unwrap() == bytes);
    }
}

/// Cutting a file while it is being published ends in the shorter object, also when parts behind the cut were sent
/// already.
#[test]
fn a_cut_of_parts_that_were_sent_does_not_stop_the_publication_under_way() {
    let frozen = Frozen::new();
    let size = PART + 77;
    let file = frozen.file.try_clone().unwrap();
    within(WAIT, "ftruncate", move || file.set_len(size)).unwrap();
    let expected = frozen.bytes[..size as usize].to_vec();
    frozen.ends_as(&expected);
}

/// A publication has the bytes of the moment when the file was closed; what is written while it is under way goes into
/// the next one.
#[test]
fn a_flush_publishes_what_was_there_when_it_came() {
    let frozen = Frozen::new();
    let mut later = frozen.bytes.clone();
    later[2 * PART as usize..2 * PART as usize + 5].copy_from_slice(b"later");
    let file = frozen.file.try_clone().unwrap();
    within(WAIT, "write", move || file.write_all_at(b"later", 2 * PART)).unwrap();
    frozen.held.release();
    frozen.world.wait_object("f", frozen.bytes.len() as u64, WAIT);
    assert!(frozen.world.bucket.get("f").unwrap() == frozen.bytes, "not the state at the flush");
    drop(frozen.file.try_clone().unwrap());
    let deadline = std::time::Instant::now() + WAIT;
    while frozen.world.bucket.get("f").unwrap() != later {
        assert!(std::time::Instant::now() < deadline, "{}", frozen.mount.log_text());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    frozen.ends_as(&later);
}

#[test]
fn a_part_that_bos_lost_after_it_was_changed_is_published_in_its_newer_state() {
    let frozen = Frozen::new();
    let size = PART + 77;
    let file = frozen.file.try_clone().unwrap();
    within(WAIT, "ftruncate", move || file.set_len(size)).unwrap();
    // BOS forgets the upload; what was frozen is nowhere any more.
    for upload in frozen.world.bucket.uploads("").unwrap() {
        frozen.world.bucket.abort(&upload.key, &upload.upload_id).unwrap();
    }
    let expected = frozen.bytes[..size as usize].to_vec();
    frozen.ends_as(&expected);
}
