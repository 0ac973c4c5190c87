//! CRCs of contents put together, fast enough for the ten thousand parts of a Complete while other writers wait.
//!
//! Appending zero bytes to a content is a linear map on its CRC. The maps for 1, 2, 4, ... bytes are computed once, each
//! by applying the one before twice; any length is a product of them. The CRC library raises its map anew at every call.

use std::sync::LazyLock;

use super::Crcs;

/// Maps for lengths up to 2^46 bytes, more than the largest object (48.8 TB) has.
const POWERS: usize = 46;

/// Where each bit of a CRC goes.
type Map = [u64; 64];

/// Of CRC32C, CRC32 and CRC64.
struct Powers([Box<[Map; POWERS]>; 3]);

static MAPS: LazyLock<Powers> = LazyLock::new(|| {
    let moved: [Crcs; 64] = std::array::from_fn(|bit| {
        let one = 1u32.checked_shl(bit as u32).unwrap_or(0);
        Crcs { crc32c: one, crc32: one, crc64: 1 << bit }.then_by_library(Crcs::default(), 1)
    });
    let first: [Map; 3] =
        [moved.map(|crcs| crcs.crc32c.into()), moved.map(|crcs| crcs.crc32.into()), moved.map(|crcs| crcs.crc64)];
    Powers(first.map(|map| {
        let mut powers = Box::new([map; POWERS]);
        for power in 1..POWERS {
            let last = powers[power - 1];
            powers[power] = last.map(|column| apply(&last, column));
        }
        powers
    }))
});

fn apply(map: &Map, mut crc: u64) -> u64 {
    let mut moved = 0;
    while crc != 0 {
        moved ^= map[crc.trailing_zeros() as usize];
        crc &= crc - 1;
    }
    moved
}

/// `crc` after `len` more zero bytes.
fn append_zeros(powers: &[Map; POWERS], mut crc: u64, len: u64) -> u64 {
    for (power, map) in powers.iter().enumerate() {
        if len >> power & 1 == 1 {
            crc = apply(map, crc);
        }
    }
    crc
}

/// CRCs of the bytes of `all` followed by `len` bytes that have `next`. `len` is below 2^46.
pub(super) fn join(all: Crcs, next: Crcs, len: u64) -> Crcs {
    let Powers([crc32c, crc32, crc64]) = &*MAPS;
    Crcs {
        crc32c: append_zeros(crc32c, all.crc32c.into(), len) as u32 ^ next.crc32c,
        crc32: append_zeros(crc32, all.crc32.into(), len) as u32 ^ next.crc32,
        crc64: append_zeros(crc64, all.crc64, len) ^ next.crc64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Checksum;

    #[test]
    fn joins_as_the_library_does() {
        let (a, b) = (Checksum::of(b"one content").crcs, Checksum::of(b"another").crcs);
        for len in [0, 1, 2, 3, 7, 100_000, 5 << 20, (5 << 30) + 1, (1 << 46) - 1] {
            assert_eq!(join(a, b, len), a.then_by_library(b, len), "{len}");
            assert_eq!(join(Crcs::default(), b, len), b, "{len}");
        }
        assert_eq!(join(a, b, 7), Checksum::of(b"one contentanother").crcs);
    }
}
