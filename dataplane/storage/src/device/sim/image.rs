//! A sparse, copy-on-write byte image, and the seeded random numbers of the simulation.

use std::{collections::BTreeMap, rc::Rc};

use super::super::BLOCK_BYTES;

/// Blocks per chunk: a clone of an image copies one pointer per chunk (1 MiB), the first write after it one chunk table.
const CHUNK_BLOCKS: usize = 256;

type Block = [u8; BLOCK_BYTES];

/// Bytes by offset; what was never written reads as zeros. Clones share blocks until one side writes.
#[derive(Clone, Default)]
pub(super) struct Image {
    chunks: BTreeMap<u64, Rc<Chunk>>,
}

#[derive(Clone)]
struct Chunk {
    blocks: Vec<Option<Rc<Block>>>,
}

impl Image {
    /// Fills `out` from `offset`, at any alignment.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        for (block, within, range) in pieces(offset, out.len()) {
            let length = range.len();
            match self.block(block) {
                Some(bytes) => out[range].copy_from_slice(&bytes[within..within + length]),
                None => out[range].fill(0),
            }
        }
    }

    /// Replaces the bytes from `offset`, at any alignment.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (block, within, range) in pieces(offset, bytes.len()) {
            let length = range.len();
            self.block_mut(block)[within..within + length].copy_from_slice(&bytes[range]);
        }
    }

    fn block(&self, block: u64) -> Option<&Block> {
        let (chunk, index) = position(block);
        self.chunks.get(&chunk)?.blocks[index].as_deref()
    }

    fn block_mut(&mut self, block: u64) -> &mut Block {
        let (chunk, index) = position(block);
        let chunk =
            self.chunks.entry(chunk).or_insert_with(|| Rc::new(Chunk { blocks: vec![None; CHUNK_BLOCKS] }));
        let slot = &mut Rc::make_mut(chunk).blocks[index];
        Rc::make_mut(slot.get_or_insert_with(|| Rc::new([0; BLOCK_BYTES])))
    }
}

fn position(block: u64) -> (u64, usize) {
    let chunk_blocks = CHUNK_BLOCKS as u64;
    let index = usize::try_from(block % chunk_blocks).expect("a chunk index is small");
    (block / chunk_blocks, index)
}

/// Cuts a range at block boundaries: block number, first byte within the block, range within the buffer.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let block_bytes = BLOCK_BYTES as u64;
        let within = usize::try_from(at % block_bytes).expect("an offset in a block is small");
        let end = length.min(done + BLOCK_BYTES - within);
        let range = done..end;
        done = end;
        Some((at / block_bytes, within, range))
    })
}

/// Random numbers that depend on the seed alone (SplitMix64).
#[derive(Default)]
pub(super) struct Rng {
    state: u64,
}

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..bound`; the bias of the remainder does not matter for bounds this small.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).expect("an index fits");
            items.swap(last, other);
        }
    }
}
