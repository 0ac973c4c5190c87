//! bosfs is killed while real programs work on the mount: a short form of `scripts/kill-tools`.

use crate::support::kill_rounds::Tool;

/// Rounds of seeds; at least one kill must have fallen into the operation.
fn rounds(tool: Tool, seeds: std::ops::Range<u64>) {
    let mut hits = 0;
    for seed in seeds {
        let round = tool.round(seed).unwrap_or_else(|e| panic!("{e}"));
        println!("{} seed {seed}: {round:?}", tool.name());
        hits += u64::from(round.hit);
    }
    assert!(hits > 0, "no kill fell into {}", tool.name());
}

/// rsync that is cut off by a kill of bosfs leaves each name old or new, and rsync run again ends with equal trees.
#[test]
fn rsync_killed_and_run_again_ends_with_equal_trees() {
    rounds(Tool::Rsync, 0..3);
}

#[test]
fn mv_of_1000_objects_killed_loses_no_name_and_ends_on_one_side() {
    rounds(Tool::Mv, 0..4);
}

/// When bosfs is killed under several programs that write, truncate, rename and remove, the next mount shows whatever a
/// call returned for, and every object is a state in which its file was closed.
#[test]
fn writers_killed_lose_nothing_that_returned_and_publish_only_what_was_closed() {
    rounds(Tool::Writers, 0..4);
}
