//! Objects of other programs that BOS treats otherwise than those of bosfs: appendable ones, as fsspec's `bosfs` writes them.

use bosfs::serve::Variants;

use crate::support::call::Call;
use crate::support::files::random_bytes;
use crate::support::world::World;
use crate::{SMALL_PARTS, shell, unmount};

/// What BOS may refuse to do with an appendable object besides copying it to another key.
fn variants() -> [Variants; 3] {
    let no_part = Variants { no_part_of_appendable: true, ..Variants::default() };
    let nothing = Variants { no_copy_of_appendable_onto_itself: true, ..no_part.clone() };
    [Variants::default(), no_part, nothing]
}

/// Bytes of an object of several parts.
const LARGE: usize = 12 << 20 | 5;

/// Stores an object as a program does that appends: in two steps.
fn append(world: &World, key: &str, bytes: &[u8]) {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let headers = [("content-type", "text/x-log"), ("x-bce-meta-colour", "green")];
    world.bucket.ask("POST", key, &[("append", "")], &headers, first).unwrap();
    let offset = first.len().to_string();
    world.bucket.ask("POST", key, &[("append", ""), ("offset", &offset)], &[], second).unwrap();
    assert_eq!(kind(world, key), "Appendable");
}

fn kind(world: &World, key: &str) -> String {
    header(world, key, "x-bce-object-type")
}

fn header(world: &World, key: &str, name: &str) -> String {
    let reply = world.bucket.head_reply(key).unwrap().unwrap_or_else(|| panic!("no {key}"));
    reply.header(name).unwrap_or_default().to_owned()
}

/// Asserts that `key` has these bytes, and what an appendable object of [`append`] carries.
fn check(world: &World, key: &str, bytes: &[u8]) {
    assert!(world.bucket.get(key).unwrap() == bytes, "the bytes of {key} are others\n{}", world.log_text());
    assert_eq!(header(world, key, "content-type"), "text/x-log", "{key}");
    assert_eq!(header(world, key, "x-bce-meta-colour"), "green", "{key}");
}

/// Appendable objects are renamed, alone and with their folder: BOS refuses to copy them, so they are put together from
/// copied parts, or read and sent again, and are ordinary objects then.
#[test]
fn appendable_objects_are_renamed() {
    for (round, variants) in variants().into_iter().enumerate() {
        let world = World::with(variants);
        let large = random_bytes(1, LARGE);
        let files: [(&str, &[u8]); 3] = [("small", b"a line of a log"), ("empty", b""), ("large", &large)];
        for (name, bytes) in files {
            append(&world, name, bytes);
            append(&world, &format!("d/{name}"), bytes);
        }
        let mut mount = world.mount(&SMALL_PARTS);
        let dir = mount.dir().display().to_string();
        world.proxy.take_counts();
        for (name, _) in files {
            shell(&format!("mv {dir}/{name} {dir}/moved-{name}"));
        }
        let counts = world.proxy.counts();
        let sent = u64::from(round > 0) * LARGE as u64;
        let told = counts.log_text();
        assert!(counts.bytes_sent() <= sent + 1000, "round {round}: {} bytes sent\n{told}", counts.bytes_sent());
        shell(&format!("mv {dir}/d {dir}/e"));
        unmount(&mut mount);
        for (name, bytes) in files {
            for key in [format!("moved-{name}"), format!("e/{name}")] {
                check(&world, &key, bytes);
                assert_eq!(kind(&world, &key), "Normal");
            }
        }
        let mut keys = world.bucket.list("").unwrap();
        keys.retain(|key| !key.ends_with('/'));
        assert_eq!(keys, ["e/empty", "e/large", "e/small", "moved-empty", "moved-large", "moved-small"]);
        assert!(world.bucket.uploads("").unwrap().is_empty());
    }
}

/// A new mode, owner or time of an appendable object is given by a copy onto itself, where BOS takes that; else the object
/// is put together anew. `bosfs umount` waits for it.
#[test]
fn appendable_objects_get_new_attributes() {
    for (round, variants) in variants().into_iter().enumerate() {
        let stays = !variants.no_copy_of_appendable_onto_itself;
        let world = World::with(variants);
        let large = random_bytes(2, LARGE);
        let files: [(&str, &[u8]); 3] = [("small", b"a line of a log"), ("empty", b""), ("large", &large)];
        files.iter().for_each(|(name, bytes)| append(&world, name, bytes));
        let mut mount = world.mount(&SMALL_PARTS);
        let dir = mount.dir().display().to_string();
        shell(&format!("chmod 600 {dir}/small {dir}/empty {dir}/large"));
        unmount(&mut mount);
        for (name, bytes) in files {
            check(&world, name, bytes);
            assert_eq!(header(&world, name, "x-bce-meta-bosfs-mode"), "33152", "round {round}: {name}");
            assert_eq!(kind(&world, name), if stays { "Appendable" } else { "Normal" }, "round {round}: {name}");
        }
        assert!(world.journals().is_empty());
    }
}

/// What is written to an appendable object, and copies of it within the mount, are published like those of others, whether
/// BOS copies parts of it or not.
#[test]
fn appendable_objects_are_written_to_and_copied_within_the_mount() {
    for (round, variants) in variants().into_iter().enumerate() {
        let world = World::with(variants);
        let large = random_bytes(3, LARGE);
        for name in ["small", "copied"] {
            append(&world, name, b"a line of a log");
        }
        for name in ["large", "middle", "huge"] {
            append(&world, name, &large);
        }
        let mut mount = world.mount(&SMALL_PARTS);
        let dir = mount.dir().display().to_string();
        shell(&format!("printf more >> {dir}/small && printf more >> {dir}/large"));
        shell(&format!("printf more | dd of={dir}/middle bs=4 seek=1500000 conv=notrunc status=none"));
        shell(&format!("cp {dir}/huge {dir}/huge-copy && cp {dir}/copied {dir}/small-copy"));
        unmount(&mut mount);
        let mut middle = large.clone();
        middle[6_000_000..6_000_004].copy_from_slice(b"more");
        check(&world, "small", b"a line of a logmore");
        check(&world, "large", &[&large[..], b"more"].concat());
        check(&world, "middle", &middle);
        assert!(world.bucket.get("huge-copy").unwrap() == large, "round {round}");
        assert_eq!(world.bucket.get("small-copy").unwrap(), b"a line of a log");
        check(&world, "huge", &large);
        assert!(world.journals().is_empty() && world.bucket.uploads("").unwrap().is_empty());
        if round == 0 {
            let counts = world.proxy.counts();
            assert!(counts.requests(Call::UploadPartCopy) > 0, "{}", counts.log_text());
            assert!(counts.bytes_sent() < 3 * LARGE as u64, "{} bytes sent", counts.bytes_sent());
        }
    }
}
