//! Somebody else acts on a key while a local write of it is under way: who wins, and what the loser keeps.

use serde_json::Value;

use crate::actor::{Actor, Given, close};
use crate::foreign::{Act, BASE, ForeignUploads, OTHER};
use crate::support::{Call, HoldAt, Mounted, When, World};
use crate::{PART, WAIT, bosfs_ok, status_text, told_error, wait_for_state};

/// One write that somebody else's act meets.
struct Case {
    key: String,
    act: Act,
    flags: &'static str,
    /// Several parts, or one.
    several: bool,
}

impl Case {
    fn overwrites(&self) -> bool {
        !self.flags.contains("CREAT")
    }

    /// What close says in default mode.
    fn expected(&self) -> Given {
        match (self.act.is_conflict(), self.flags.contains("EXCL")) {
            (false, _) => Ok(Value::Null),
            (true, true) => Err("EEXIST".into()),
            (true, false) => Err("ESTALE".into()),
        }
    }
}

/// A bucket with what the cases begin with.
fn world_of(cases: &[Case]) -> World {
    let world = World::new();
    for case in cases.iter().filter(|case| case.overwrites()) {
        world.bucket.put(&case.key, BASE).unwrap();
    }
    world
}

fn cases() -> Vec<Case> {
    let new =
        [(Act::Created, "WRONLY|CREAT"), (Act::Created, "WRONLY|CREAT|EXCL"), (Act::ChildAppeared, "WRONLY|CREAT")];
    let over = [Act::Changed, Act::Deleted, Act::PutAgain, Act::BecamePrefix].map(|act| (act, "WRONLY|TRUNC"));
    let mut cases = Vec::new();
    for several in [false, true] {
        for (act, flags) in new.into_iter().chain(over) {
            let key =
                format!("{act:?}-{}-{}", flags.rsplit('|').next().unwrap_or(""), if several { "parts" } else { "one" });
            cases.push(Case { key, act, flags, several });
        }
    }
    cases
}

/// Brings every case about: the publication is held, the act performed, the publication let go. Returns what each close gave.
fn meet(world: &World, mount: &Mounted, cases: &[Case]) -> Vec<Given> {
    let one = world.random_file("one", 1, 300_000);
    let parts = world.random_file("parts", 2, 2 * PART + 777);
    let mut actor = Actor::start();
    let mut closes = Vec::new();
    for case in cases {
        let call = if case.several { Call::Complete } else { Call::PutObject };
        let hold = world.proxy.hold(When::call(call).key(&case.key), HoldAt::BeforeForward);
        actor.open("f", &mount.path(&case.key), case.flags);
        actor.write_all("f", if case.several { &parts } else { &one });
        actor.begin(close("f"));
        assert!(hold.wait_hit(WAIT), "{}: nothing is published\n{}", case.key, mount.log_text());
        case.act.perform(world, &case.key);
        hold.release();
        closes.push(actor.answer(&case.key));
    }
    closes
}

/// What is in the bucket, in `status` and in the mount after all cases.
fn look(world: &World, mount: &Mounted, cases: &[Case]) {
    for case in cases {
        let source = world.path(if case.several { "parts" } else { "one" });
        case.act.assert_theirs_is_left(world, &case.key);
        if !case.act.is_conflict() {
            mount.wait_settled(&case.key, WAIT);
            world.assert_object_is_file(&case.key, &source);
            continue;
        }
        let entry = wait_for_state(mount, &case.key, "conflict");
        let error = told_error(&entry);
        for word in ["--force", "--as", "abort"] {
            assert!(error.contains(word), "{word} is not named: {error}");
        }
        let (path, source) = (mount.path(&case.key), source.clone());
        if case.act == Act::BecamePrefix {
            // The name means the folder now; the bytes are in the journal all the same.
            continue;
        }
        crate::support::mounted::within(WAIT, "reading a conflict", move || {
            assert!(std::fs::read(&path).unwrap() == std::fs::read(source).unwrap(), "{path:?} lost its bytes");
        });
    }
    let lost = cases.iter().filter(|case| case.act.is_conflict()).count();
    assert_eq!(world.journals().len(), lost, "a journal for each loser, and no other");
    let text = status_text(mount);
    for case in cases.iter().filter(|case| case.act.is_conflict()) {
        assert!(text.contains(&format!("{}: ", case.key)), "{text}");
    }
}

/// If somebody else creates, changes or deletes the key before the publication, `close` gives ESTALE (EEXIST after
/// `O_EXCL`), what they did stays, and the bytes wait as a conflict that `bosfs status` and `bosfs umount` (exit 3)
/// name.
#[test]
fn the_loser_of_every_race_is_told_by_close_and_keeps_its_bytes() {
    let cases = cases();
    let world = world_of(&cases);
    let keys: Vec<&str> = cases.iter().map(|case| case.key.as_str()).collect();
    let foreign = ForeignUploads::begin(&world, &keys);
    let mut mount = world.mount(&["--part-size", "5MiB"]);
    let closes = meet(&world, &mount, &cases);
    for (case, given) in cases.iter().zip(&closes) {
        assert_eq!(*given, case.expected(), "close of {}\n{}", case.key, mount.log_text());
    }
    look(&world, &mount, &cases);
    foreign.assert_untouched(&world);
    let output = mount.umount(WAIT);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    for case in cases.iter().filter(|case| case.act.is_conflict()) {
        assert!(complaint.contains(&case.key), "{} is not named: {complaint}", case.key);
    }
    // Nothing of it is decided by a mount.
    mount.remount().unwrap();
    look(&world, &mount, &cases);
    foreign.assert_untouched(&world);
}

/// With `--write-back` the loser of a race is told by `bosfs status`, and its bytes are kept all the same.
#[test]
fn the_loser_of_every_race_is_told_by_status_in_write_back_mode() {
    let cases = cases();
    let world = world_of(&cases);
    let keys: Vec<&str> = cases.iter().map(|case| case.key.as_str()).collect();
    let foreign = ForeignUploads::begin(&world, &keys);
    let mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let closes = meet(&world, &mount, &cases);
    assert!(closes.iter().all(Result::is_ok), "close is answered before anything is known: {closes:?}");
    look(&world, &mount, &cases);
    foreign.assert_untouched(&world);
}

/// With `--on-conflict overwrite` the file is published over what others wrote, and where they deleted.
#[test]
fn on_conflict_overwrite_publishes_over_others_and_over_nothing() {
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.act != Act::BecamePrefix).collect();
    let world = world_of(&cases);
    let mount = world.mount(&["--part-size", "5MiB", "--on-conflict", "overwrite"]);
    let closes = meet(&world, &mount, &cases);
    for (case, given) in cases.iter().zip(&closes) {
        assert!(given.is_ok(), "close of {}: {given:?}\n{}", case.key, mount.log_text());
        world.assert_object_is_file(&case.key, &world.path(if case.several { "parts" } else { "one" }));
    }
}

#[test]
fn a_folder_that_somebody_else_removes_is_no_loss_for_a_file_written_into_it() {
    for write_back in [false, true] {
        let world = World::new();
        let source = world.random_file("source", 3, 2 * PART + 5);
        let args: &[&str] =
            if write_back { &["--part-size", "5MiB", "--write-back"] } else { &["--part-size", "5MiB"] };
        let mount = world.mount(args);
        let mut actor = Actor::start();
        actor.must(crate::actor::on("mkdir", &mount.path("dir")));
        world.bucket.put("dir/old", BASE).unwrap();
        let hold = world.proxy.hold(When::call(Call::Complete), HoldAt::BeforeForward);
        actor.open("new", &mount.path("dir/new"), "WRONLY|CREAT|EXCL");
        actor.write_all("new", &source);
        actor.begin(close("new"));
        assert!(hold.wait_hit(WAIT));
        for key in ["dir/old", "dir/"] {
            world.bucket.delete(key).unwrap();
        }
        hold.release();
        assert_eq!(actor.answer("close"), Ok(Value::Null), "{}", mount.log_text());
        mount.wait_settled("dir/new", WAIT);
        world.assert_object_is_file("dir/new", &source);
        // What they removed stays removed, and the folder can be used on.
        assert_eq!(world.bucket.list("dir/").unwrap(), ["dir/new"]);
        actor.open("more", &mount.path("dir/more"), "WRONLY|CREAT");
        assert_eq!(actor.close("more"), Ok(Value::Null));
        mount.wait_settled("dir/more", WAIT);
        world.wait_object("dir/more", 0, WAIT);
    }
}

/// With `--metadata-ttl 0s`, what others changed before the open is seen by it, and is no conflict.
#[test]
fn a_foreign_change_before_the_first_write_is_seen_and_no_conflict() {
    let world = World::new();
    world.bucket.put("f", BASE).unwrap();
    let mount = world.mount(&["--metadata-ttl", "0s"]);
    let source = world.random_file("source", 4, 1000);
    let mut actor = Actor::start();
    actor.must(crate::actor::on("stat", &mount.path("f")));
    world.bucket.put("f", OTHER).unwrap();
    actor.open("f", &mount.path("f"), "WRONLY|TRUNC");
    actor.write_all("f", &source);
    assert_eq!(actor.close("f"), Ok(Value::Null), "{}", mount.log_text());
    world.assert_object_is_file("f", &source);
}

#[test]
fn after_a_decision_the_key_goes_on_as_any_other() {
    let cases: Vec<Case> =
        cases().into_iter().filter(|case| case.act == Act::Changed || case.act == Act::Created).collect();
    let world = world_of(&cases);
    let mount = world.mount(&["--part-size", "5MiB"]);
    meet(&world, &mount, &cases);
    let mut actor = Actor::start();
    let again = world.random_file("again", 5, 4000);
    for case in &cases {
        bosfs_ok(&mount, &["uploads", "abort", &format!("bkt/{}", case.key), "--yes"]);
        case.act.assert_theirs_is_left(&world, &case.key);
        actor.open("f", &mount.path(&case.key), "RDONLY");
        let read = actor.must(serde_json::json!({"do": "read", "as": "f", "offset": 0, "len": 1 << 20}));
        assert_eq!(read["bytes"], OTHER.len(), "{}: what is there now is shown", case.key);
        actor.must(close("f"));
        actor.open("f", &mount.path(&case.key), "WRONLY|TRUNC");
        actor.write_all("f", &again);
        assert_eq!(actor.close("f"), Ok(Value::Null), "{}", mount.log_text());
        world.assert_object_is_file(&case.key, &again);
    }
    assert!(world.bucket.uploads("").unwrap().is_empty(), "uploads of ours stay");
}
