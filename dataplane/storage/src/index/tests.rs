//! The index against a model, damage, failed batches, and its format.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use futures::executor::block_on;

use super::{Applied, IndexError, Tree, TreeRoot, Visit, WalkDepth};
use crate::device::{BLOCK_BYTES, Device as _, SimDevice};
use crate::extent::{BlockIndex, Extent, FreeMap};

mod damage;
mod failure;
mod format;
mod model;
mod speed;

type Batch = BTreeMap<Bytes, Option<Bytes>>;

const CACHE_BYTES: usize = 1 << 20;

/// A tree with its device and free map, checkpointed after every batch.
struct Bed {
    device: SimDevice,
    tree: Tree<SimDevice>,
    space: RefCell<FreeMap>,
    area_blocks: u64,
}

impl Bed {
    fn new(blocks: u64) -> Self {
        let device = SimDevice::new(blocks * BLOCK_BYTES as u64, 7);
        let tree = Tree::open(Rc::new(device.clone()), None, CACHE_BYTES);
        let space = RefCell::new(FreeMap::new(BlockIndex(1)..BlockIndex(blocks)));
        Bed { device, tree, space, area_blocks: blocks - 1 }
    }

    fn try_apply(&self, batch: &Batch) -> Result<Applied, IndexError> {
        block_on(self.tree.apply(batch, &self.space))
    }

    fn apply(&self, batch: &Batch) -> Applied {
        let applied = self.try_apply(batch).unwrap();
        block_on(self.device.flush()).unwrap();
        assert!(!self.tree.install(applied.root).in_use());
        for extent in &applied.freed {
            self.space.borrow_mut().free(*extent);
        }
        applied
    }

    /// Forgets the cache.
    fn reopen(&mut self) {
        let root = self.tree.root().map(|root| TreeRoot::decode(root.encode()).unwrap());
        self.tree = Tree::open(Rc::new(self.device.clone()), root, CACHE_BYTES);
        self.device.clear_events();
    }

    /// What the tree refers to, and that nothing of it is free and nothing else is taken.
    fn check_space(&self) -> Vec<Extent> {
        let mut extents = Vec::new();
        block_on(self.tree.walk(WalkDepth::Values, |visit| match visit {
            Visit::Page { extent, .. } | Visit::Value { extent, .. } => extents.push(extent),
            Visit::Damaged { error, .. } => panic!("{error}"),
        }));
        let used: u64 = extents.iter().map(|extent| u64::from(extent.blocks)).sum();
        let mut rebuilt = FreeMap::new(self.space.borrow().area());
        for extent in &extents {
            rebuilt.reserve_exact(*extent).unwrap();
        }
        assert_eq!(rebuilt.free_blocks() + used, self.area_blocks);
        assert_eq!(rebuilt, *self.space.borrow());
        extents
    }

    fn rows(&self) -> Vec<(Bytes, Bytes)> {
        block_on(self.tree.scan(b"", &[0xff; 2049], usize::MAX)).unwrap()
    }
}

/// Bytes that differ from row to row and at every position.
fn filler(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

/// Rows `from..to` with a common head and values of `len` bytes.
fn puts(range: std::ops::Range<u64>, len: usize) -> Batch {
    range.map(|n| (row_key(n), Some(filler(len, n)))).collect()
}

fn row_key(n: u64) -> Bytes {
    format!("bucket/prefix/{n:012}").into()
}
