//! The index: root record, pages and out-of-line values, as a reader meets them on a device.
//!
//! An input is the root record and all blocks of the data area. Sealing makes every checksum right again that a parent
//! holds of a page or value, from the leaves up, so that damage is met by the parser, not by the checksum.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use futures::executor::block_on;
use quarry_storage::{
    device::{BLOCK_BYTES, Device, SimDevice},
    extent::{BlockIndex, FreeMap},
    index::{PAGE_BYTES, TREE_ROOT_BYTES, Tree, TreeRoot, Visit, WalkDepth},
};

use crate::{Random, Target};

/// Blocks of the device; the tree takes the high ones.
const BLOCKS: u64 = 48;
const CACHE_BYTES: usize = 1 << 20;

pub(crate) const TREE: Target =
    Target { name: "index-tree", sample, seal, decode, factor: 16, constant: 4 << 20 };

fn sample(random: &mut Random) -> Vec<u8> {
    let device = Rc::new(SimDevice::new(BLOCKS * BLOCK_BYTES as u64, 1));
    let space = RefCell::new(FreeMap::new(BlockIndex(0)..BlockIndex(BLOCKS)));
    let tree = Tree::open(Rc::clone(&device), None, CACHE_BYTES);
    // Sometimes one leaf, mostly an inner page above a few.
    let rows = if random.one_in(4) { 6 } else { 60 };
    let mut batch = BTreeMap::new();
    for _ in 0..rows {
        let key = [b"rows/".to_vec(), random.bytes(300)].concat();
        let value_bytes = if random.one_in(30) { 6000 } else { 900 };
        batch.insert(Bytes::from(key), Some(Bytes::from(random.bytes(value_bytes))));
    }
    let root = block_on(tree.apply(&batch, &space)).expect("the device holds it").root;
    let mut bytes = root.expect("there are rows").encode().to_vec();
    bytes.extend(device.peek(0, usize::try_from(BLOCKS).expect("few") * BLOCK_BYTES));
    bytes
}

/// Pages and values of the tree before the damage, those of a lower level first: block, length and checksum.
fn parts(whole: &[u8]) -> Vec<(u64, usize, u32)> {
    let (device, tree) = open(whole).expect("the tree is whole");
    let mut parts = Vec::new();
    block_on(tree.walk(WalkDepth::Pages, |visit| match visit {
        Visit::Page { extent, level, .. } => {
            let page = device.peek(extent.start.offset_bytes(), PAGE_BYTES);
            parts.push((level + 1, extent.start.0, PAGE_BYTES, crc32c::crc32c(&page)));
        }
        Visit::Value { extent, len_bytes, .. } => {
            let value = device.peek(extent.start.offset_bytes(), len_bytes as usize);
            let crc = crc32c::crc32c_append(crc32c::crc32c(&extent.start.0.to_le_bytes()), &value);
            parts.push((0, extent.start.0, len_bytes as usize, crc));
        }
        Visit::Damaged { error, .. } => panic!("the tree is whole: {error}"),
    }));
    parts.sort_unstable();
    parts.into_iter().map(|(_, block, bytes, crc)| (block, bytes, crc)).collect()
}

fn seal(bytes: &mut Vec<u8>, whole: &[u8]) {
    bytes.resize(whole.len(), 0);
    for (block, len, old) in parts(whole) {
        let start = TREE_ROOT_BYTES + usize::try_from(block).expect("few") * BLOCK_BYTES;
        let seed = if len == PAGE_BYTES { 0 } else { crc32c::crc32c(&block.to_le_bytes()) };
        let new = crc32c::crc32c_append(seed, &bytes[start..start + len]);
        if new == old {
            continue;
        }
        // Wherever the address stands with the old checksum behind it: 8 bytes on for a page, 16 for a value.
        let behind = if len == PAGE_BYTES { 8 } else { 16 };
        for at in 0..bytes.len() - 20 {
            let crc = at + behind..at + behind + 4;
            if bytes[at..at + 8] == block.to_le_bytes() && bytes[crc.clone()] == old.to_le_bytes() {
                bytes[crc].copy_from_slice(&new.to_le_bytes());
            }
        }
    }
}

fn open(bytes: &[u8]) -> Option<(Rc<SimDevice>, Tree<SimDevice>)> {
    let (root, blocks) = bytes.split_first_chunk::<TREE_ROOT_BYTES>()?;
    let root = TreeRoot::decode(*root)?;
    let device = Rc::new(SimDevice::new(BLOCKS * BLOCK_BYTES as u64, 1));
    let places = (0..device.size_bytes()).step_by(BLOCK_BYTES);
    for (block, at) in blocks.chunks_exact(BLOCK_BYTES).zip(places) {
        if block.iter().any(|&byte| byte != 0) {
            device.poke(at, block);
        }
    }
    let tree = Tree::open(Rc::clone(&device), Some(root), CACHE_BYTES);
    Some((device, tree))
}

/// Walks, reads, scans, and writes a batch: all that a damaged page meets in a store.
fn decode(bytes: &[u8]) -> bool {
    let Some((_, tree)) = open(bytes) else { return false };
    let mut whole = true;
    block_on(async {
        tree.walk(WalkDepth::Values, |visit| whole &= !matches!(visit, Visit::Damaged { .. })).await;
        let mut cursor = tree.cursor(b"");
        let mut keys = Vec::new();
        while let Ok(true) = cursor.next().await {
            keys.push(Bytes::copy_from_slice(cursor.key()));
            // Its error was counted by the walk.
            let _ = cursor.load_value().await;
        }
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "a cursor goes forward");
        for key in keys.iter().step_by(7) {
            let _ = tree.get(key).await;
        }
        let space = RefCell::new(FreeMap::new(BlockIndex(0)..BlockIndex(8)));
        let batch = BTreeMap::from([(Bytes::from_static(b"rows/b"), Some(Bytes::from_static(b"v")))]);
        // The device is nearly full: most often an error, and never a panic.
        let _ = tree.apply(&batch, &space).await;
    });
    whole
}
