//! Lines that break and servers that stumble: nothing is lost, nothing is sent twice without need, errors reach someone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::mounted::{Mounted, cp, run, start_cp, wait_child};
use crate::support::{Action, Call, HoldAt, KeyWatch, Line, When, World};
use crate::{PART, SMALL_PARTS, WAIT, shell, timed};

/// One mount, on which files are copied under faults, each under a key of its own.
struct Copies {
    mount: Mounted,
    source: PathBuf,
    size: u64,
    count: u32,
    // Outlives the mount.
    world: World,
}

impl Copies {
    /// Of files of `size` bytes.
    fn new(size: u64) -> Self {
        let world = World::new();
        let source = world.random_file("source", size, size);
        Self { mount: world.mount(&SMALL_PARTS), source, size, count: 0, world }
    }

    /// Copies the file while the first try of a request for which `when` holds goes as `action` says, and looks at the result.
    fn copy_under(&mut self, when: When, action: Action) {
        let Self { world, mount, source, .. } = self;
        self.count += 1;
        let key = format!("f{}", self.count);
        let rule = world.proxy.fault(when.key(&key).once(), action.clone());
        let watch = KeyWatch::start(&world.bucket, &key);
        let output = cp(&*source, mount.path(&key), WAIT);
        let log = world.proxy.counts().log_text();
        assert!(output.status.success(), "{action:?}: {output:?}\n{log}\n{}", world.log_text());
        world.assert_object_is_file(&key, source);
        assert_eq!(watch.half_files(&[self.size]), [] as [u64; 0], "{action:?}");
        assert!(rule.hits() > 0, "{:?} never happened\n{log}", rule.spec());
        world.proxy.clear_rules();
    }
}

/// A part whose try is refused, cut off, answered by an error, a gateway's page or with another checksum is sent again:
/// `cp` ends well, and no half object is ever seen.
#[test]
fn parts_survive_every_kind_of_broken_try() {
    let mut copies = Copies::new(3 * PART + 100);
    for action in [
        Action::Refuse,
        Action::LoseAnswer,
        Action::CutBeforeBody,
        Action::CutInsideBody { after_bytes: 3_000_000 },
        Action::CutAfterBody,
        Action::error(500, "InternalError"),
        Action::error(503, "ServiceUnavailable"),
        Action::error(429, "RequestRateLimitExceeded"),
        Action::rate_403(),
        Action::html(502),
        Action::html(504),
        Action::error(400, "RequestExpired"),
        Action::error(400, "BadDigest"),
        Action::error_after_act(500, "InternalError"),
        Action::error(200, "InternalError"),
        Action::wrong_etag(),
        Action::wrong_crc(),
    ] {
        copies.copy_under(When::call(Call::UploadPart).part(2), action);
    }
}

/// An initiate or complete whose answer is lost or an error is settled or sent again: `cp` ends well, and no half
/// object is ever seen.
#[test]
fn initiate_and_complete_survive_lost_answers_and_errors() {
    let mut copies = Copies::new(3 * PART + 100);
    for call in [Call::Initiate, Call::Complete] {
        for action in [
            Action::Refuse,
            Action::LoseAnswer,
            Action::CutAfterBody,
            Action::error(500, "InternalError"),
            Action::error_after_act(500, "InternalError"),
            Action::error(503, "SlowDown"),
            Action::html(502),
        ] {
            copies.copy_under(When::call(call), action);
        }
    }
}

#[test]
fn a_small_file_survives_lost_answers_and_errors() {
    let mut copies = Copies::new(4096);
    for action in [
        Action::Refuse,
        Action::LoseAnswer,
        Action::CutInsideBody { after_bytes: 1000 },
        Action::CutAfterBody,
        Action::error(500, "InternalError"),
        Action::error_after_act(503, "ServiceUnavailable"),
        Action::wrong_etag(),
        Action::wrong_crc(),
    ] {
        copies.copy_under(When::call(Call::PutObject), action);
    }
}

#[test]
fn complete_that_misses_a_part_sends_it_again() {
    Copies::new(3 * PART + 100).copy_under(When::call(Call::Complete), Action::error(400, "InvalidPart"));
}

#[test]
fn complete_with_another_checksum_is_repaired() {
    Copies::new(3 * PART + 100).copy_under(When::call(Call::Complete), Action::wrong_crc());
}

#[test]
fn an_upload_that_vanishes_under_way_begins_again() {
    let world = World::new();
    let source = world.random_file("source", 3, 4 * PART);
    let mount = world.mount(&SMALL_PARTS);
    let hold = world.proxy.hold(When::call(Call::Complete).once(), HoldAt::BeforeForward);
    let mut child = start_cp(&source, mount.path("f"));
    assert!(hold.wait_hit(WAIT));
    let upload = &world.bucket.uploads("f").unwrap()[0];
    world.bucket.abort("f", &upload.upload_id).unwrap();
    hold.release();
    assert!(wait_child(&mut child, WAIT).unwrap().success(), "{}", world.log_text());
    world.assert_object_is_file("f", &source);
}

#[test]
fn a_server_without_checksums_is_proved_otherwise() {
    use bosfs::serve::Variants;
    for variants in [
        Variants { no_crc_headers: true, ..Variants::default() },
        Variants { no_crc_on_composed_objects: true, ..Variants::default() },
        Variants { opaque_composed_etags: true, ..Variants::default() },
        Variants { opaque_part_etags: true, opaque_composed_etags: true, ..Variants::default() },
    ] {
        let world = World::with(variants.clone());
        let source = world.random_file("source", 4, 3 * PART + 1);
        let mount = world.mount(&SMALL_PARTS);
        let output = cp(&source, mount.path("f"), WAIT);
        assert!(output.status.success(), "{variants:?}: {output:?}\n{}", world.log_text());
        world.assert_object_is_file("f", &source);
        assert_eq!(world.proxy.counts().parts_accepted_twice("f"), [] as [u32; 0], "{variants:?}");
        shell(&format!("echo small > {}/small", mount.dir().display()));
        assert_eq!(world.bucket.get("small").unwrap(), b"small\n");
    }
}

/// If the line dies during a `cp`, `cp` waits without an error and ends well when the line is back.
#[test]
fn a_line_that_dies_and_comes_back_ends_in_the_whole_file() {
    let world = World::new();
    let source = world.random_file("source", 5, 6 * PART);
    let mount = world.mount(&SMALL_PARTS);
    let third = world.proxy.fault(When::call(Call::UploadPart).skip(2).once(), Action::Pass);
    let mut child = start_cp(&source, mount.path("f"));
    assert!(third.wait_hit(WAIT));
    world.proxy.set_line(Line::Dead);
    std::thread::sleep(Duration::from_secs(2));
    assert!(child.try_wait().unwrap().is_none(), "cp ended although nothing is in BOS");
    world.proxy.set_line(Line::Alive);
    assert!(wait_child(&mut child, WAIT).unwrap().success());
    world.assert_object_is_file("f", &source);
}

/// A server that restarts during an upload is waited for, and no part arrives twice.
#[test]
fn a_server_that_restarts_during_an_upload_is_waited_for() {
    let mut world = World::new();
    let source = world.random_file("source", 6, 6 * PART);
    let mount = world.mount(&SMALL_PARTS);
    let hold = world.proxy.hold(When::call(Call::UploadPart).part(4), HoldAt::InsideBody { after_bytes: 1000 });
    let mut child = start_cp(&source, mount.path("f"));
    assert!(hold.wait_hit(WAIT));
    world.server.stop();
    hold.release();
    std::thread::sleep(Duration::from_millis(500));
    world.server.start_again().unwrap();
    assert!(wait_child(&mut child, WAIT).unwrap().success());
    world.assert_object_is_file("f", &source);
    assert_eq!(world.proxy.counts().parts_accepted_twice("f"), [] as [u32; 0]);
}

/// While connections are reset or BOS answers 500 or 503, no lookup and no read says that a file does not exist.
#[test]
fn cannot_ask_is_never_does_not_exist() {
    let world = World::new();
    world.bucket.put("dir/f", b"x").unwrap();
    world.bucket.put("g", b"y").unwrap();
    let mount = world.mount(&["--metadata-ttl", "0s"]);
    shell(&format!("ls {}", mount.dir().display()));
    for fault in [Action::Refuse, Action::error(500, "InternalError"), Action::error(503, "SlowDown")] {
        let rule = world.proxy.fault(When::any(), fault.clone());
        let start = Instant::now();
        for line in ["cat MNT/dir/f", "stat MNT/unknown", "ls MNT/dir", "ls MNT/other"] {
            let line = line.replace("MNT", &mount.dir().display().to_string());
            let output = run(std::process::Command::new("bash").args(["-c", &line]), Duration::from_secs(60));
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(!complaint.contains("No such file"), "{fault:?}: {line}: {complaint}");
            if !line.contains("ls MNT/dir") {
                assert!(!output.status.success() || line.contains("dir"), "{fault:?}: {line} succeeds: {output:?}");
            }
        }
        assert!(rule.hits() > 0);
        assert!(start.elapsed() < Duration::from_secs(4 * 31), "{fault:?} took {:?}", start.elapsed());
        world.proxy.clear_rules();
    }
    assert_eq!(shell(&format!("cat {}/dir/f", mount.dir().display())), "x");
}

/// An upload that stands still delays neither `ls` nor `df`, nor reading and writing of other files.
#[test]
fn a_slow_upload_delays_neither_ls_nor_df() {
    let world = World::new();
    world.bucket.put("dir/f", b"x").unwrap();
    let source = world.random_file("source", 7, 12 * PART);
    let mount = world.mount(&SMALL_PARTS);
    let hold = world.proxy.hold(When::call(Call::UploadPart), HoldAt::InsideBody { after_bytes: 10 });
    let mut child = start_cp(&source, mount.path("big"));
    assert!(hold.wait_hits(2, WAIT));
    let dir = mount.dir().display();
    for line in [format!("ls {dir}/dir"), format!("df {dir}"), format!("cat {dir}/dir/f"), format!("echo x > {dir}/g")]
    {
        // Ends at all while the parts are held: waits for none of them.
        shell(&line);
    }
    hold.release();
    assert!(wait_child(&mut child, WAIT).unwrap().success());
    world.assert_object_is_file("big", &source);
}

/// A download that was cut off is fetched again and never handed to a program short.
#[test]
fn corrupted_and_cut_downloads_are_never_handed_to_programs() {
    let world = World::new();
    let bytes = crate::support::files::random_bytes(8, 3 << 20);
    world.bucket.put("f", &bytes).unwrap();
    let mount = world.mount(&[]);
    let cut = world.proxy.fault(When::call(Call::GetObject).times(2), Action::TruncateBody { after_bytes: 70_000 });
    let path = mount.path("f");
    let read = crate::timed(move || std::fs::read(path));
    assert!(cut.hits() > 0);
    assert!(read.unwrap() == bytes);
}

#[test]
fn a_refused_publication_fails_the_close_and_keeps_the_bytes() {
    let world = World::new();
    let source = world.random_file("source", 9, 3 * PART);
    let mut mount = world.mount(&SMALL_PARTS);
    let denied = world.proxy.fault(When::call(Call::Complete), Action::error(403, "AccessDenied"));
    let output = cp(&source, mount.path("f"), WAIT);
    assert!(!output.status.success(), "cp says success");
    assert!(denied.hits() > 0);
    let entry = mount.file_status("f").expect("status names it");
    assert_eq!(entry["state"], "failed", "{entry}");
    assert!(entry["last_error"].as_str().is_some_and(|e| !e.is_empty()), "{entry}");
    let output = mount.umount(WAIT);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    world.proxy.clear_rules();
    mount.remount().unwrap();
    world.wait_object("f", 3 * PART, WAIT);
    world.assert_object_is_file("f", &source);
    assert_eq!(world.proxy.counts().parts_accepted_twice("f"), [] as [u32; 0]);
}

/// When BOS refuses a file while it is written, the writer is let go on and its `close` fails: what is kept is the
/// whole file, and the next mount publishes nothing less.
#[test]
fn a_refusal_while_a_file_is_written_is_told_by_its_close_and_the_file_is_kept_whole() {
    for call in [Call::Initiate, Call::UploadPart] {
        let world = World::new();
        let source = world.random_file("source", 12, 5 * PART);
        let mut mount = world.mount(&SMALL_PARTS);
        let watch = KeyWatch::start(&world.bucket, "f");
        let denied = world.proxy.fault(When::call(call), Action::error(403, "AccessDenied"));
        let output = cp(&source, mount.path("f"), WAIT);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            complaint.contains("failed to close") && complaint.contains("Permission denied"),
            "{call}: {complaint}"
        );
        assert!(denied.hits() > 0, "{call}");
        assert_eq!(mount.umount(WAIT).status.code(), Some(3), "{call}");
        world.proxy.clear_rules();
        mount.remount().unwrap();
        mount.wait_settled("f", WAIT);
        world.assert_object_is_file("f", &source);
        assert_eq!(watch.half_files(&[5 * PART]), [] as [u64; 0], "{call}");
    }
}

#[test]
fn the_loser_of_a_race_keeps_its_bytes_and_overwrites_nothing() {
    let world = World::new();
    let mount = world.mount(&SMALL_PARTS);
    let source = world.random_file("source", 10, 3 * PART);
    let hold = world.proxy.hold(When::call(Call::Complete), HoldAt::BeforeForward);
    let mut child = start_cp(&source, mount.path("f"));
    assert!(hold.wait_hit(WAIT));
    world.bucket.put("f", b"someone else's").unwrap();
    hold.release();
    assert!(!wait_child(&mut child, WAIT).unwrap().success(), "the loser is told nothing");
    assert_eq!(world.bucket.get("f").unwrap(), b"someone else's");
    let entry = mount.file_status("f").expect("status names it");
    assert_eq!(entry["state"], "conflict", "{entry}");
}

/// `--timeout` turns the wait of a `close` into an error; the upload goes on behind and is published.
#[test]
fn timeout_turns_a_wait_into_an_error_and_the_upload_goes_on() {
    let world = World::new();
    let source = world.random_file("source", 11, 3 * PART);
    let mount = world.mount(&["--part-size", "5MiB", "--timeout", "1s"]);
    let hold = world.proxy.hold(When::call(Call::UploadPart).part(2), HoldAt::BeforeForward);
    let output = cp(&source, mount.path("f"), WAIT);
    assert!(!output.status.success());
    assert!(hold.hits() > 0);
    hold.release();
    world.wait_object("f", 3 * PART, WAIT);
    world.assert_object_is_file("f", &source);
}

/// `--timeout` turns the wait of a rename into EIO, and the rename is finished behind.
#[test]
fn timeout_turns_the_wait_of_a_rename_into_an_error_and_the_rename_goes_on() {
    let world = World::new();
    world.bucket.put("old", b"bytes").unwrap();
    let mount = world.mount(&["--timeout", "1s"]);
    let hold = world.proxy.hold(When::call(Call::CopyObject), HoldAt::BeforeForward);
    let (old, new) = (mount.path("old"), mount.path("new"));
    let renamed = timed(move || std::fs::rename(old, new));
    assert_eq!(renamed.unwrap_err().raw_os_error(), Some(libc::EIO), "{}", mount.log_text());
    assert!(hold.hits() > 0);
    assert!(mount.log_text().contains("--timeout"), "{}", mount.log_text());
    hold.release();
    world.wait_object("new", 5, WAIT);
    let end = std::time::Instant::now() + WAIT;
    while world.bucket.head("old").unwrap().is_some() {
        assert!(std::time::Instant::now() < end, "the old name stays\n{}", mount.log_text());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
