//! Answers that are not BOS's, or that say too little: none of them is believed.

use std::time::{Duration, Instant};

use crate::support::mounted::{cp, run};
use crate::support::{Action, Call, HoldAt, Line, When, World};
use crate::{PART, SMALL_PARTS, WAIT, shell, unmount};

// Something on the way says "200" to a DELETE that BOS never got.
#[test]
fn a_deletion_that_bos_did_not_answer_is_sent_again() {
    for action in [Action::html(200), Action::empty(200)] {
        let world = World::new();
        world.bucket.put("f", b"x").unwrap();
        world.bucket.put("g", b"y").unwrap();
        let mut mount = world.mount(&SMALL_PARTS);
        let rule = world.proxy.fault(When::call(Call::DeleteObject).times(2), action.clone());
        shell(&format!("cd {} && rm f && mv g h", mount.dir().display()));
        unmount(&mut mount);
        assert_eq!(rule.hits(), 2, "{action:?}");
        assert_eq!(world.bucket.list("").unwrap(), ["h"], "{action:?}");
    }
}

#[test]
fn a_batch_of_deletions_that_bos_did_not_answer_is_sent_again() {
    let world = World::new();
    (0..4).for_each(|n| drop(world.bucket.put(&format!("d/f{n}"), b"x").unwrap()));
    let mut mount = world.mount(&SMALL_PARTS);
    let rule = world.proxy.fault(When::call(Call::BatchDelete).once(), Action::empty(200));
    shell(&format!("cd {} && mv d e", mount.dir().display()));
    unmount(&mut mount);
    assert_eq!(rule.hits(), 1);
    assert_eq!(world.bucket.list("d/").unwrap(), [] as [String; 0]);
    assert_eq!(world.bucket.list("e/").unwrap().iter().filter(|key| !key.ends_with('/')).count(), 4);
}

/// A request whose date expired on the way is signed anew.
// An answer to HEAD has no body that could name the code.
#[test]
fn a_head_whose_date_expired_on_the_way_is_signed_anew() {
    let world = World::new();
    world.bucket.put("old", b"x").unwrap();
    let mount = world.mount(&SMALL_PARTS);
    let expired = || world.proxy.fault(When::call(Call::HeadObject).once(), Action::error(400, "RequestExpired"));
    let lookup = expired();
    assert_eq!(shell(&format!("stat -c %s {}/old", mount.dir().display())), "1\n");
    assert_eq!(lookup.hits(), 1);
    // The proof of a composed object whose Complete told no checksum.
    let source = world.random_file("source", 21, 2 * PART);
    let complete = crate::support::fault::RuleSpec {
        when: When::call(Call::Complete).once(),
        hold: Some(HoldAt::BeforeAnswer),
        action: Action::no_crc(),
    };
    let complete = world.proxy.add(complete);
    let (path, target) = (source.clone(), mount.path("f"));
    let copy = std::thread::spawn(move || cp(path, target, WAIT));
    assert!(complete.wait_hit(WAIT));
    let proof = expired();
    complete.release();
    let output = copy.join().unwrap();
    assert!(output.status.success(), "{output:?}\n{}", world.log_text());
    assert_eq!(proof.hits(), 1);
    world.assert_object_is_file("f", &source);
}

#[test]
fn rm_outlasts_a_line_that_refuses_for_a_second() {
    let world = World::new();
    world.bucket.put("f", b"x").unwrap();
    let mount = world.mount(&SMALL_PARTS);
    let held = world.proxy.hold(When::call(Call::DeleteObject).once(), HoldAt::BeforeForward);
    let path = mount.path("f");
    let removed = std::thread::spawn(move || std::fs::remove_file(path));
    assert!(held.wait_hit(WAIT));
    world.proxy.set_line(Line::Refused);
    std::thread::sleep(Duration::from_secs(1));
    world.proxy.set_line(Line::Alive);
    removed.join().unwrap().unwrap();
    assert!(world.bucket.head("f").unwrap().is_none());
}

/// A read whose answers all stand still ends in an error, and works again when they move.
#[test]
fn a_read_whose_answers_all_stand_still_ends() {
    let world = World::new();
    world.bucket.put("f", &crate::support::files::random_bytes(22, 1 << 20)).unwrap();
    let mount = world.mount(&SMALL_PARTS);
    let rule = world.proxy.fault(When::call(Call::GetObject), Action::StallInAnswer { after_bytes: 20 });
    let start = Instant::now();
    let output = run(std::process::Command::new("cat").arg(mount.path("f")), WAIT);
    assert!(!output.status.success() && rule.hits() >= 2, "{} hits, {:?}", rule.hits(), start.elapsed());
    world.proxy.clear_rules();
    assert_eq!(shell(&format!("cat {}/f | wc -c", mount.dir().display())).trim(), "1048576");
}
