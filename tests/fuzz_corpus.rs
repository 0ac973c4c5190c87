//! The fuzz targets of tests/fuzz without a fuzzer: each over its committed corpus, and over mutations of it with a fixed
//! seed. `scripts/fuzz` runs the same targets for as long as one likes.

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use targets::TARGETS;

/// Mutations of each target's corpus.
const MUTATIONS: usize = 2000;
/// Longest mutated input, bytes.
const INPUT_BYTES_MAX: usize = 4 << 10;

fn corpus_dir(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

/// Committed inputs by file name, in order.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = corpus_dir(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
        })
        .collect();
    inputs.sort();
    inputs
}

/// Runs a target; says with which input it fails.
fn run(name: &str, target: targets::Check, what: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        let path = std::env::temp_dir().join(format!("bosfs-fuzz-{name}"));
        std::fs::write(&path, input).unwrap();
        panic!("{name} fails with {what}; the input is kept in {}", path.display());
    }
}

#[test]
fn every_target_holds_over_its_corpus() {
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        assert!(inputs.len() >= 3, "{name} has only {} inputs", inputs.len());
        for (file, input) in inputs {
            run(name, target, &file, &input);
        }
        run(name, target, "no input", &[]);
    }
}

/// A small generator (SplitMix64), so that a failure comes again.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Texts that parsers trip over.
const SPICE: [&str; 24] = [
    "-1",
    "0",
    "10001",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "4294967296",
    "1e309",
    "..",
    "/",
    "//",
    "\0",
    "\n",
    "\r\n",
    "\u{fffd}",
    "\"",
    "\\u0000",
    "\\ud800",
    "[[[[[[[[",
    "{",
    "null",
    "true",
    ",",
    "=",
];

/// `input` changed at one to four places, sometimes with a piece of `other`.
fn mutated(input: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len() + 1);
        let end = at + numbers.below((bytes.len() - at).min(40) + 1);
        match numbers.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            1 if at < bytes.len() => bytes[at] = numbers.next() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            5 => {
                let from = numbers.below(other.len() + 1);
                let to = from + numbers.below(other.len() - from + 1);
                drop(bytes.splice(at..end, other[from..to].to_vec()));
            }
            _ => drop(bytes.splice(at..end, SPICE[numbers.below(SPICE.len())].bytes())),
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn mutations_hold(name: &str) {
    let target = TARGETS.iter().find(|(known, _)| *known == name).expect("a target").1;
    let inputs = corpus(name);
    let mut numbers = Numbers(name.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte)));
    for i in 0..MUTATIONS {
        let (file, input) = &inputs[i % inputs.len()];
        let other = &inputs[numbers.below(inputs.len())].1;
        run(name, target, &format!("mutation {i} of {file}"), &mutated(input, other, &mut numbers));
    }
}

macro_rules! mutations {
    ($($name:ident),*) => {
        mod mutations {
            $(
                #[test]
                fn $name() {
                    super::mutations_hold(stringify!($name));
                }
            )*

            #[test]
            fn of_every_target_are_run() {
                let named = [$(stringify!($name)),*];
                assert!(super::TARGETS.iter().map(|(name, _)| *name).eq(named), "a target is missing in {named:?}");
            }
        }
    };
}

mutations!(answer, journal, listing, moves, parts, pending, posix_meta, request, settings);

/// The records of every kind that a journal's lines have, by their tags: what serde says it expects.
fn tags<R: serde::de::DeserializeOwned>() -> Vec<String> {
    let Err(error) = serde_json::from_str::<R>(r#"{"t":"no such record"}"#) else { panic!("a record of no kind") };
    error.to_string().split('`').skip(3).step_by(2).map(str::to_owned).collect()
}

fn corpus_has_every_record<R: bosfs::journal::Line>(target: &str, records_min: usize) {
    let mut missing = tags::<R>();
    assert!(missing.len() >= records_min, "{missing:?}");
    for (_, input) in corpus(target) {
        for record in bosfs::journal::RecordReplay::<R>::of_bytes(&targets::journal::file_of(&input)).records {
            let tag = serde_json::to_value(record).unwrap()["t"].as_str().unwrap().to_owned();
            missing.retain(|known| *known != tag);
        }
    }
    assert!(missing.is_empty(), "no input of {target} has {missing:?}: write one");
}

#[test]
fn the_corpus_has_every_record_of_the_journals() {
    corpus_has_every_record::<bosfs::journal::Record>("journal", 30);
    corpus_has_every_record::<bosfs::moves::record::MoveRecord>("moves", 12);
}
