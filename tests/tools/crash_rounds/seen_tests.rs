use std::sync::Arc;

use super::super::plan::Plan;
use super::super::published::Body;
use super::*;

fn run(lane: &mut Lane, ops: &[Op]) {
    for op in ops {
        let taken = match op {
            Op::Write { len, .. } => *len as u64,
            Op::CopyRange { len, .. } => *len,
            _ => 0,
        };
        lane.apply(op, taken);
    }
}

fn create(path: &str) -> Op {
    Op::Create { slot: 0, path: path.into(), exclusive: false, mode: 0o644 }
}

fn write(at: u64, seed: u64, len: usize) -> Op {
    Op::Write { slot: 0, at, seed, len }
}

const CLOSE: Op = Op::Close { slot: 0 };

/// A lane with a closed file `w/a` of 100 bytes.
fn with_file(waits: bool) -> Lane {
    let mut lane = Lane::new("w", waits);
    run(&mut lane, &[Op::Mkdir { path: "w".into() }, create("w/a"), write(0, 1, 100), CLOSE]);
    lane
}

/// What a mount shows that does everything right.
fn tree_of(lane: &Lane) -> Tree {
    let entry = |node: &Node| match node {
        Node::Dir => Entry::Dir,
        Node::File(id) => Entry::File { bytes: lane.files[id].bytes.to_vec(), mode: lane.files[id].mode },
    };
    lane.names.iter().map(|(path, node)| (path.clone(), entry(node))).collect()
}

fn bytes_of<'t>(tree: &'t mut Tree, path: &str) -> &'t mut Vec<u8> {
    match tree.get_mut(path) {
        Some(Entry::File { bytes, .. }) => bytes,
        other => panic!("{path}: {other:?}"),
    }
}

fn body(bytes: &[u8]) -> Body {
    Some(Arc::new(bytes.to_vec()))
}

fn flying(op: Op) -> InFlight {
    InFlight { op, taken: 0 }
}

#[test]
fn every_byte_of_a_write_that_returned_must_be_there() {
    let mut lane = with_file(true);
    run(&mut lane, &[Op::Open { slot: 0, path: "w/a".into() }, write(50, 2, 100)]);
    let right = tree_of(&lane);
    let after = lane.after_kill(None, &right).unwrap();
    assert_eq!(after.kept(), ["w/a"], "shown, and not published");
    for at in [0, 49, 50, 149] {
        let mut wrong = right.clone();
        bytes_of(&mut wrong, "w/a")[at] ^= 1;
        let mismatch = lane.after_kill(None, &wrong).unwrap_err();
        assert_eq!(mismatch.bytes_lost, 1, "byte {at}");
    }
    let mut short = right.clone();
    bytes_of(&mut short, "w/a").truncate(120);
    assert_eq!(lane.after_kill(None, &short).unwrap_err().bytes_lost, 30);
    let mut gone = right.clone();
    gone.remove("w/a");
    assert!(lane.after_kill(None, &gone).is_err());
    let mut more = right;
    more.insert("w/b".into(), Entry::Dir);
    assert!(lane.after_kill(None, &more).is_err());
}

#[test]
fn a_write_in_flight_may_be_there_in_order_up_to_any_byte() {
    let mut lane = with_file(true);
    run(&mut lane, &[Op::Open { slot: 0, path: "w/a".into() }]);
    let new = random_bytes(3, 60);
    for at in [0usize, 30, 90, 100, 130] {
        let op = flying(write(at as u64, 3, 60));
        for taken in [0usize, 1, 20, 59, 60] {
            let mut tree = tree_of(&lane);
            if taken > 0 {
                super::super::lane::overwrite(bytes_of(&mut tree, "w/a"), at, &new[..taken]);
            }
            let after = lane.after_kill(Some(&op), &tree).unwrap_or_else(|e| panic!("{at} {taken}: {e:?}"));
            assert_eq!(tree_of(&after), tree);
            if taken > 10 {
                // A hole in the middle of what was taken is no beginning.
                bytes_of(&mut tree, "w/a")[at + 5] ^= 1;
                assert!(lane.after_kill(Some(&op), &tree).is_err(), "{at} {taken}");
            }
        }
        let known = InFlight { op: op.op.clone(), taken: 20 };
        assert!(lane.after_kill(Some(&known), &tree_of(&lane)).is_err(), "20 bytes were taken");
    }
}

#[test]
fn each_byte_under_a_write_in_flight_is_old_or_new() {
    let mut lane = with_file(true);
    run(&mut lane, &[Op::Open { slot: 0, path: "w/a".into() }]);
    let (old, new) = (tree_of(&lane), random_bytes(3, 60));
    let op = flying(write(30, 3, 60));
    let mut tree = old.clone();
    super::super::lane::overwrite(bytes_of(&mut tree, "w/a"), 30, &new);
    let before = bytes_of(&mut old.clone(), "w/a").clone();
    bytes_of(&mut tree, "w/a")[30..40].copy_from_slice(&before[30..40]);
    let after = lane.after_kill(Some(&op), &tree).unwrap();
    assert_eq!(tree_of(&after), tree);
    for at in [29, 35, 45, 90] {
        let mut wrong = tree.clone();
        bytes_of(&mut wrong, "w/a")[at] ^= 1;
        assert!(lane.after_kill(Some(&op), &wrong).is_err(), "byte {at} is neither");
    }
}

#[test]
fn names_are_on_one_side_of_a_rename_in_flight() {
    let mut lane = with_file(true);
    run(&mut lane, &[create("w/b"), write(0, 9, 10), CLOSE]);
    let op = flying(Op::Rename { from: "w/a".into(), to: "w/b".into() });
    let old = tree_of(&lane);
    let mut after = lane.clone();
    run(&mut after, std::slice::from_ref(&op.op));
    let new = tree_of(&after);
    assert_eq!(new.len(), 2);
    assert!(lane.after_kill(Some(&op), &old).is_ok() && lane.after_kill(Some(&op), &new).is_ok());
    assert!(lane.after_kill(None, &new).is_err(), "nobody renamed");
    let mut neither = new.clone();
    neither.remove("w/b");
    assert!(lane.after_kill(Some(&op), &neither).is_err());
    let mut both = old;
    both.insert("w/b".into(), new["w/b"].clone());
    assert!(lane.after_kill(Some(&op), &both).is_err(), "on both sides");
    // Both objects may be seen, and in the end one.
    let renamed = lane.after_kill(Some(&op), &new).unwrap();
    let bytes = renamed.file("w/b").unwrap().bytes.to_vec();
    assert!(renamed.published.get("w/a").allows(Some(&bytes)) && renamed.published.get("w/b").allows(Some(&bytes)));
    assert_eq!(renamed.published.get("w/a").settled, [None]);
    assert_eq!(renamed.published.get("w/b").settled, [body(&bytes)]);
}

#[test]
fn nothing_that_was_removed_comes_back() {
    let lane = with_file(false);
    let shown = tree_of(&lane);
    let mut removed = lane.clone();
    run(&mut removed, &[Op::Unlink { path: "w/a".into() }]);
    assert!(removed.after_kill(None, &shown).is_err());
    assert!(lane.after_kill(Some(&flying(Op::Unlink { path: "w/a".into() })), &shown).is_ok());
    assert_eq!(removed.published.get("w/a").settled, [None]);
}

#[test]
fn what_was_not_closed_is_not_published() {
    for waits in [false, true] {
        let mut lane = with_file(waits);
        let first = lane.file("w/a").unwrap().bytes.clone();
        run(&mut lane, &[Op::Open { slot: 0, path: "w/a".into() }, write(0, 5, 200)]);
        let second = lane.file("w/a").unwrap().bytes.clone();
        let states = lane.published.get("w/a");
        assert!(states.allows(Some(&first)) && !states.allows(Some(&second)));
        assert_eq!(states.allows(None), !waits, "close waits for the object or not");
        // Killed in the close: either, and it is settled by what is there in the end.
        let killed = lane.after_kill(Some(&flying(CLOSE)), &tree_of(&lane)).unwrap();
        assert_eq!(killed.published.get("w/a").settled.len(), if waits { 2 } else { 3 });
        let mut seen =
            std::collections::BTreeMap::from([("w/".to_owned(), Vec::new()), ("w/a".to_owned(), first.to_vec())]);
        let modes = std::collections::BTreeMap::from([("w/a".to_owned(), 0o644)]);
        let mut kept = killed.clone();
        kept.settle(&seen, &modes).unwrap();
        assert_eq!(kept.kept(), ["w/a"]);
        seen.insert("w/a".into(), second.to_vec());
        let mut closed = killed.clone();
        closed.settle(&seen, &modes).unwrap();
        assert!(closed.kept().is_empty());
        seen.insert("w/a".into(), second[..150].to_vec());
        assert!(killed.clone().settle(&seen, &modes).is_err(), "half a file");
        // Killed after it.
        run(&mut lane, &[CLOSE]);
        let killed = lane.after_kill(None, &tree_of(&lane)).unwrap();
        assert_eq!(killed.published.get("w/a").settled, [Some(second)]);
    }
}

#[test]
fn what_was_cut_off_is_not_taken_for_an_object_with_the_same_bytes() {
    let mut lane = with_file(true);
    let copy = Op::Create { slot: 0, path: "w/.a.XXXXXX".into(), exclusive: true, mode: 0o600 };
    run(&mut lane, &[copy, write(0, 1, 100)]);
    let mut lane = lane.after_kill(None, &tree_of(&lane)).unwrap();
    run(&mut lane, &[Op::Rename { from: "w/.a.XXXXXX".into(), to: "w/a".into() }]);
    let bytes = lane.file("w/a").unwrap().bytes.to_vec();
    let seen = std::collections::BTreeMap::from([("w/".to_owned(), Vec::new()), ("w/a".to_owned(), bytes)]);
    let settled = |mode: u32| {
        let mut lane = lane.clone();
        lane.settle(&seen, &std::collections::BTreeMap::from([("w/a".to_owned(), mode)])).unwrap();
        lane
    };
    assert_eq!(settled(0o644).kept(), ["w/a"], "the object is the one that was there before");
    assert!(settled(0o600).kept().is_empty());
}

#[test]
fn a_flipped_byte_of_the_expected_state_is_noticed() {
    let lane = with_file(true);
    let tree = tree_of(&lane);
    assert!(lane.after_kill(None, &tree).is_ok());
    let mut flipped = lane;
    assert!(flipped.flip_a_byte());
    assert!(flipped.after_kill(None, &tree).is_err());
}

#[test]
fn the_model_walks_through_every_plan_and_agrees_with_itself() {
    let mut calls = std::collections::BTreeMap::new();
    for seed in 0..120 {
        let plan = Plan::new(seed);
        let mut lanes: Vec<Lane> = (0..plan.lanes).map(|n| Lane::new(&format!("w{n}"), !plan.write_back)).collect();
        for phase in &plan.phases {
            for step in &phase.steps {
                let lane = &mut lanes[step.lane];
                let Some(op) = lane.resolve(step) else { continue };
                *calls.entry(op.name()).or_insert(0) += 1;
                run(lane, &[op]);
            }
            for lane in &mut lanes {
                *lane = lane.after_kill(None, &tree_of(lane)).unwrap_or_else(|e| panic!("seed {seed}: {e:?}"));
                for id in lane.names.values().filter_map(|n| if let Node::File(id) = n { Some(id) } else { None }) {
                    assert!(lane.files.contains_key(id));
                }
                assert!(lane.slots.iter().all(Option::is_none));
            }
        }
    }
    assert!(calls.len() >= 12 && calls["write"] > 500, "{calls:?}");
}
