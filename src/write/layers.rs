//! The bytes of one dirty file as layers: each is a spool and a map of what was written since the state below it was frozen
//! for a publication.
//!
//! ```text
//!   the open state ──►  layer 3   spool.3 map.3   takes what is written now
//!   publication 2  ──►  layer 2   spool.2 map.2   closed; follows publication 1
//!   publication 1  ──►  layer 1   spool   map     on its way to BOS
//!                       the base object in BOS
//! ```
//!
//! What a layer's map calls the base's ([`Source::Base`]) is what the layer below shows at the same offset, down to the base
//! object. So nothing that is written after a freeze can reach the frozen state, and no writer waits for it. When a
//! publication has become an object, its layers go, and the layers above lie over that object as they are.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block_map::{BLOCK_BYTES, MAP_FILE};
use super::extents::{Extents, Source};
use super::spool::{SPOOL_FILE, Spool, SpoolBody};
use crate::bos::client::BodySource;
use crate::journal::record::LayerId;
use crate::object::ByteRange;

/// Bytes of the base that are fetched although they are not needed, rather than asking twice.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Bytes copied at once from one layer to another.
const MERGE_BYTES: usize = 256 << 10;

/// Name of a layer's spool within the directory of its file.
pub fn spool_name(layer: LayerId) -> String {
    if layer <= 1 { SPOOL_FILE.to_owned() } else { format!("{SPOOL_FILE}.{layer}") }
}

/// Name of a layer's map.
pub fn map_name(layer: LayerId) -> String {
    if layer <= 1 { MAP_FILE.to_owned() } else { format!("{MAP_FILE}.{layer}") }
}

/// The layer that a file of this name in the directory of a dirty file belongs to.
pub fn layer_of_name(name: &str) -> Option<LayerId> {
    let (kind, id) = name.split_once('.').unwrap_or((name, "1"));
    let is_canonical = |id: &LayerId| name == spool_name(*id) || name == map_name(*id);
    (kind == SPOOL_FILE || kind == MAP_FILE).then(|| id.parse().ok()).flatten().filter(is_canonical)
}

/// What was written since one freeze.
pub struct Layer {
    /// Which.
    pub id: LayerId,
    /// The bytes. Its length is the size of the file as this layer shows it.
    pub spool: Arc<Spool>,
    /// Which of them count.
    pub extents: Extents,
}

impl Layer {
    /// A new layer over `base_end` bytes, in `dir`. Its files take the place of leftovers of that name.
    ///
    /// # Errors
    /// Those of the disk; nothing is left behind then.
    pub fn create(dir: &Path, id: LayerId, base_end: u64) -> io::Result<Self> {
        remove_files(dir, id)?;
        let make = || -> io::Result<Self> {
            let spool = Arc::new(Spool::create_at(&dir.join(spool_name(id)), base_end)?);
            let extents = Extents::create_at(&dir.join(map_name(id)), base_end)?;
            Ok(Self { id, spool, extents })
        };
        make().inspect_err(|_| {
            if let Err(e) = remove_files(dir, id) {
                log::warn!("{}: the files of layer {id}: {e}", dir.display());
            }
        })
    }

    /// The layer that an earlier process left in `dir`.
    ///
    /// # Errors
    /// Those of the disk; `NotFound` where a file of it is missing.
    pub fn open(dir: &Path, id: LayerId, base_end: u64) -> io::Result<Self> {
        let spool = Arc::new(Spool::open_at(&dir.join(spool_name(id)))?);
        let extents = Extents::open_at(&dir.join(map_name(id)), base_end)?;
        Ok(Self { id, spool, extents })
    }

    /// Size of the file as this layer shows it, bytes.
    pub fn size(&self) -> u64 {
        self.spool.len()
    }

    /// Blocks in its spool.
    pub fn spool_blocks(&self) -> u64 {
        self.extents.spool_blocks(ByteRange::new(0, u64::MAX))
    }
}

/// Removes the files of layer `id`; none is fine.
///
/// # Errors
/// Those of the disk.
pub fn remove_files(dir: &Path, id: LayerId) -> io::Result<()> {
    for name in [spool_name(id), map_name(id)] {
        match std::fs::remove_file(dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Where a run of bytes is, over all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the spool of the layer with this index, counted from the bottom.
    Spool(usize),
    /// Nowhere: zeros.
    Zero,
    /// In the base object.
    Base,
    /// Only in a part that BOS holds.
    Held,
}

/// A run of bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPiece {
    /// Which bytes.
    pub range: ByteRange,
    /// Where they are.
    pub from: Place,
}

/// The state that some layers show: the lowest ones, up to the one that was on top at its freeze. Or all of them.
#[derive(Clone, Copy)]
pub struct View<'a> {
    layers: &'a [Layer],
    size: u64,
}

impl<'a> View<'a> {
    /// Of `layers`, bottom first, in a file of `size` bytes: that of the topmost one.
    pub fn new(layers: &'a [Layer], size: u64) -> Self {
        Self { layers, size }
    }

    /// Number of layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Where each byte of `range` is: in order, without gaps, up to the size; neighbours differ.
    pub fn pieces(&self, range: ByteRange) -> Vec<LayerPiece> {
        let mut pieces = Vec::new();
        let range = range.intersect(ByteRange::new(0, self.size));
        resolve(self.layers, range, self.size, &mut pieces);
        pieces
    }

    /// Whether every byte of `range` is the base object's at the same offset. Looks at whole blocks.
    pub fn is_untouched(&self, range: ByteRange) -> bool {
        let range = range.intersect(ByteRange::new(0, self.size));
        self.layers.iter().rev().all(|layer| layer.extents.is_untouched(range, range.end))
    }

    /// Whether `range` is whole in the spool of the lowest layer, and there is no other.
    pub fn is_spooled(&self, range: ByteRange) -> bool {
        matches!(self.layers, [only] if only.extents.is_spooled(range))
    }

    /// Whether the spools alone have the right bytes of `range`.
    pub fn is_sealable(&self, range: ByteRange) -> bool {
        self.pieces(range).iter().all(|piece| matches!(piece.from, Place::Spool(_) | Place::Zero))
    }

    /// A range of the base object that has to be in the lowest spool before `range` can be sealed: from the first byte that is
    /// missing on, whole blocks or what is missing of one. What is missing further on belongs to it, as long as no more than
    /// [`GAP_BYTES_MAX`] that are there lie between, and it has at most `len_max` bytes or so.
    pub fn base_gap(&self, range: ByteRange, len_max: u64) -> Option<ByteRange> {
        let bottom = self.layers.first()?;
        let mut missing =
            self.pieces(range).into_iter().filter(|piece| piece.from == Place::Base).map(|piece| piece.range);
        let mut wanted = missing.next()?;
        for next in missing {
            if next.start - wanted.end > GAP_BYTES_MAX || next.end - wanted.start > len_max {
                break;
            }
            wanted.end = next.end;
        }
        let blocks = ByteRange::new(wanted.start / BLOCK_BYTES * BLOCK_BYTES, wanted.end.next_multiple_of(BLOCK_BYTES));
        let gaps = bottom.extents.base_pieces(blocks, bottom.size());
        let mut gaps = gaps.into_iter().filter(|gap| gap.end > wanted.start);
        let first = gaps.next()?;
        Some(gaps.next_back().map_or(first, |last| ByteRange::new(first.start, last.end)))
    }

    /// Bytes of `range` that are only in parts that BOS holds.
    pub fn held(&self, range: ByteRange) -> Vec<ByteRange> {
        self.pieces(range).into_iter().filter(|piece| piece.from == Place::Held).map(|piece| piece.range).collect()
    }

    /// The bytes of `range`, of which the base object is asked for nothing, as the body of a request. `None`: some of them
    /// are not in the spools. They are read when the body is sent.
    pub fn body(&self, range: ByteRange) -> Option<LayeredBody> {
        if let [only] = self.layers {
            // By the invariants of the map the spool alone has them, also those that are zeros.
            let whole = only.extents.is_sealable(range, self.size) && range.end <= self.size;
            return whole.then(|| LayeredBody::of(range, vec![(range, Some(only.spool.body(range)))]));
        }
        let segment = |piece: LayerPiece| match piece.from {
            Place::Spool(index) => Some((piece.range, Some(self.layers[index].spool.body(piece.range)))),
            Place::Zero => Some((piece.range, None)),
            Place::Base | Place::Held => None,
        };
        let segments: Option<Vec<Segment>> = self.pieces(range).into_iter().map(segment).collect();
        let segments = segments?;
        let end = segments.last().map_or(range.start, |(last, _)| last.end);
        (end == range.end).then(|| LayeredBody::of(range, segments))
    }
}

fn resolve(layers: &[Layer], range: ByteRange, size: u64, pieces: &mut Vec<LayerPiece>) {
    let mut push = |range: ByteRange, from: Place| match pieces.last_mut() {
        _ if range.is_empty() => {}
        Some(LayerPiece { range: last, from: before }) if *before == from => last.end = range.end,
        _ => pieces.push(LayerPiece { range, from }),
    };
    let Some((top, below)) = layers.split_last() else { return push(range, Place::Base) };
    for piece in top.extents.pieces(range, size) {
        match piece.from {
            Source::Spool => push(piece.range, Place::Spool(below.len())),
            Source::Zero => push(piece.range, Place::Zero),
            Source::Held => push(piece.range, Place::Held),
            Source::Base => match below.last() {
                None => push(piece.range, Place::Base),
                Some(next) => {
                    let shown = piece.range.intersect(ByteRange::new(0, next.size()));
                    let mut inner = Vec::new();
                    resolve(below, shown, next.size(), &mut inner);
                    inner.into_iter().for_each(|piece| push(piece.range, piece.from));
                    push(ByteRange::new(shown.end.max(piece.range.start), piece.range.end), Place::Zero);
                }
            },
        }
    }
}

type Segment = (ByteRange, Option<SpoolBody>);

/// A range of a frozen state as the body of a PutObject or UploadPart.
#[derive(Clone, Debug)]
pub struct LayeredBody {
    range: ByteRange,
    /// In order, without gaps; `None`: zeros.
    segments: Vec<Segment>,
}

impl LayeredBody {
    fn of(range: ByteRange, segments: Vec<Segment>) -> Self {
        Self { range, segments }
    }
}

impl BodySource for LayeredBody {
    fn len(&self) -> u64 {
        self.range.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let asked = ByteRange::at(self.range.start.saturating_add(offset), buf.len() as u64);
        if asked.end > self.range.end {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read beyond the end of the body"));
        }
        let first = self.segments.partition_point(|(range, _)| range.end <= asked.start);
        for (range, spool) in self.segments[first..].iter().take_while(|(range, _)| range.start < asked.end) {
            let here = range.intersect(asked);
            let part = &mut buf[(here.start - asked.start) as usize..(here.end - asked.start) as usize];
            match spool {
                Some(spool) => spool.read_at(here.start - range.start, part)?,
                None => part.fill(0),
            }
        }
        Ok(())
    }
}

/// One step of putting a layer's content into the one below it. Each is to be journaled as if a program had made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// The lower layer gets this size.
    Resize(u64),
    /// These bytes are copied.
    Copy(ByteRange),
    /// These whole blocks (up to the end of the file) are zeros.
    Zero(ByteRange),
}

/// The steps that put all of `upper` into `lower`, in order. What both show together is the same after each of them. `None`:
/// it cannot be done, as bytes of a block that only BOS holds are missing here.
pub fn merge_steps(lower: &Layer, upper: &Layer) -> Option<Vec<MergeStep>> {
    let (old, size) = (lower.size(), upper.size());
    let kept = upper.extents.base_end().min(old);
    let mut steps = Vec::new();
    if kept < old {
        let cut = ByteRange::new(kept / BLOCK_BYTES * BLOCK_BYTES, kept);
        if lower.extents.held_blocks(cut) > 0 {
            return None;
        }
        steps.push(MergeStep::Resize(kept));
    }
    if size != kept {
        steps.push(MergeStep::Resize(size));
    }
    for piece in upper.extents.pieces(ByteRange::new(0, size), size) {
        match piece.from {
            Source::Base => {}
            Source::Held => return None,
            Source::Spool => {
                let mut at = piece.range.start;
                while at < piece.range.end {
                    let end = piece.range.end.min((at / BLOCK_BYTES * BLOCK_BYTES).saturating_add(MERGE_BYTES as u64));
                    let range = ByteRange::new(at, end);
                    if lower.extents.plan_write(at, range.len(), size).held_partial {
                        return None;
                    }
                    steps.push(MergeStep::Copy(range));
                    at = end;
                }
            }
            Source::Zero => {
                // Behind the end of what is below, the cut and the new size have made zeros of it.
                let blocks = ByteRange::new(piece.range.start, piece.range.end.min(kept.next_multiple_of(BLOCK_BYTES)));
                if blocks.start.is_multiple_of(BLOCK_BYTES) && blocks.start < kept && !blocks.is_empty() {
                    steps.push(MergeStep::Zero(blocks));
                }
            }
        }
    }
    Some(steps)
}

/// The place of a layer's spool, for messages and for who reads it without the mount.
pub fn spool_path(dir: &Path, id: LayerId) -> PathBuf {
    dir.join(spool_name(id))
}

/// Second descriptors of all spools and maps, to be synced without holding anything.
///
/// # Errors
/// Those of `dup`.
pub fn sync_handles(layers: &[Layer]) -> io::Result<Vec<File>> {
    let mut handles = Vec::with_capacity(2 * layers.len());
    for layer in layers {
        handles.push(layer.spool.sync_handle()?);
        handles.push(layer.extents.sync_handle()?);
    }
    Ok(handles)
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
