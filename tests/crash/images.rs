//! The model of power loss shows what a disk may hold, all of it, and nothing else.

use crate::support::disk::fault::Kind;
use crate::support::disk::power::{Loss, build};
use crate::support::disk::record::{Act, Change, NodeId, NodeKind};

fn change(act: Act) -> Change {
    Change { kind: Kind::Write, path: String::new(), act }
}

fn write(node: u64, offset: u64, byte: u8, len: usize) -> Change {
    let bytes: std::sync::Arc<[u8]> = vec![byte; len].into();
    change(Act::Write { node: NodeId(node), offset, len: len as u64, bytes })
}

fn create(node: u64, name: &str) -> Change {
    let (node, name) = (NodeId(node), name.to_owned());
    change(Act::Create { parent: NodeId::ROOT, name, node, kind: NodeKind::File })
}

/// Contents of the file `name` over many seeds.
fn images(changes: &[Change], name: &str) -> std::collections::BTreeSet<Option<Vec<u8>>> {
    let mut found = std::collections::BTreeSet::new();
    for loss in Loss::ALL {
        for seed in 0..60 {
            let dir = tempfile::tempdir().unwrap();
            build(changes, loss, seed, dir.path()).unwrap();
            found.insert(std::fs::read(dir.path().join(name)).ok());
        }
    }
    found
}

#[test]
fn synced_bytes_stay_and_each_later_sector_is_old_or_new() {
    let sync = |node| change(Act::SyncFile { node: NodeId(node) });
    let changes = [
        create(7, "f"),
        change(Act::SyncDir { node: NodeId::ROOT }),
        write(7, 0, b'a', 1024),
        sync(7),
        write(7, 256, b'b', 512),
    ];
    let found = images(&changes, "f");
    let with = |first: u8, second: u8| {
        let mut bytes = vec![b'a'; 1024];
        bytes[256..512].fill(first);
        bytes[512..768].fill(second);
        Some(bytes)
    };
    for (first, second) in [(b'a', b'a'), (b'a', b'b'), (b'b', b'a'), (b'b', b'b')] {
        assert!(found.contains(&with(first, second)), "never {} {}", first as char, second as char);
    }
    assert_eq!(found.len(), 4);
}

#[test]
fn a_name_is_certain_after_the_sync_of_its_directory_only() {
    let file_synced = [create(7, "f"), write(7, 0, b'a', 10), change(Act::SyncFile { node: NodeId(7) })];
    let found = images(&file_synced, "f");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [None, Some(vec![b'a'; 10])]);
    let dir_synced = [create(7, "f"), write(7, 0, b'a', 10), change(Act::SyncDir { node: NodeId::ROOT })];
    let found = images(&dir_synced, "f");
    assert!(!found.contains(&None));
    assert!(
        found.contains(&Some(Vec::new()))
            && found.contains(&Some(vec![b'a'; 10]))
            && found.contains(&Some(vec![0; 10]))
    );
}

#[test]
fn what_was_cut_does_not_come_back() {
    let changes = [
        create(7, "f"),
        change(Act::SyncDir { node: NodeId::ROOT }),
        write(7, 0, b'a', 2048),
        change(Act::SyncFile { node: NodeId(7) }),
        change(Act::SetLen { node: NodeId(7), len: 0 }),
        write(7, 0, b'b', 512),
    ];
    for bytes in images(&changes, "f").into_iter().flatten() {
        assert!(bytes.len() == 2048 || bytes.iter().all(|b| *b != b'a'), "{} bytes", bytes.len());
    }
}

#[test]
fn entries_of_a_directory_are_kept_in_order_and_renames_in_both_or_neither() {
    let dir = |node, name: &str| {
        let (node, name) = (NodeId(node), name.to_owned());
        change(Act::Create { parent: NodeId::ROOT, name, node, kind: NodeKind::Dir })
    };
    let inside = |parent, node, name: &str| {
        let (parent, node, name) = (NodeId(parent), NodeId(node), name.to_owned());
        change(Act::Create { parent, name, node, kind: NodeKind::File })
    };
    let changes = [
        dir(1, "from"),
        dir(2, "to"),
        inside(1, 7, "f"),
        change(Act::SyncDir { node: NodeId::ROOT }),
        change(Act::SyncDir { node: NodeId(1) }),
        change(Act::Rename { from: (NodeId(1), "f".into()), to: (NodeId(2), "g".into()), node: NodeId(7) }),
        inside(2, 8, "later"),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for loss in Loss::ALL {
        for seed in 0..60 {
            let target = tempfile::tempdir().unwrap();
            build(&changes, loss, seed, target.path()).unwrap();
            let there = |name: &str| target.path().join(name).exists();
            assert!(there("from/f") != there("to/g"), "{loss:?} {seed}: in both or in neither");
            assert!(!there("to/later") || there("to/g"), "{loss:?} {seed}: out of order");
            seen.insert((there("from/f"), there("to/later")));
        }
    }
    assert_eq!(seen.len(), 3);
}
