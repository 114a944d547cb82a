//! A whole small device: inspection and recovery of whatever superblocks, ring and free map say together.
//!
//! An input is the two superblocks and the journal. Sealing makes superblocks and the chain of batches right again.

use std::rc::Rc;

use futures::executor::{LocalPool, block_on};
use futures::task::LocalSpawnExt;
use quarry_clustermap::{ClusterId, DeviceId};
use quarry_storage::{
    device::{BLOCK_BYTES, SimDevice},
    format::batch,
    index::WalkDepth,
    inspect,
    store::{FormatParams, Store, StoreOptions},
};

use super::{record, seal_batch, seal_block};
use crate::{Random, Target};

const BLOCKS: u64 = 512;
const JOURNAL_BLOCKS: usize = 16;
/// Two superblocks and the ring.
const INPUT_BYTES: usize = (2 + JOURNAL_BLOCKS) * BLOCK_BYTES;
const ID: DeviceId = DeviceId(0xabcd);

pub(crate) const DEVICE: Target =
    Target { name: "device", sample, seal, decode, factor: 64, constant: 16 << 20 };

fn device() -> SimDevice {
    let device = SimDevice::new(BLOCKS * BLOCK_BYTES as u64, 1);
    let journal_bytes = (JOURNAL_BLOCKS * BLOCK_BYTES) as u64;
    let params = FormatParams { cluster: ClusterId([7; 16]), device: ID, journal_bytes };
    block_on(Store::format(Rc::new(device.clone()), params)).expect("a new device can be formatted");
    device
}

fn sample(random: &mut Random) -> Vec<u8> {
    let mut bytes = device().peek(0, INPUT_BYTES);
    let mut at = 2 * BLOCK_BYTES;
    for _ in 0..random.below(5) {
        let mut sealed = vec![0; batch::HEADER_BYTES];
        let count = u32::try_from(random.below(4)).expect("few");
        (0..count).for_each(|_| sealed.extend(record(random).encode()));
        if at + sealed.len() > INPUT_BYTES {
            break;
        }
        sealed[40..44].copy_from_slice(&count.to_le_bytes());
        bytes[at..at + sealed.len()].copy_from_slice(&sealed);
        let payload = u32::try_from(sealed.len() - batch::HEADER_BYTES).expect("short");
        bytes[at + 36..at + 40].copy_from_slice(&payload.to_le_bytes());
        bytes[at..at + 8].copy_from_slice(&batch::MAGIC);
        bytes[at + 8] = 1;
        at += sealed.len().next_multiple_of(BLOCK_BYTES);
    }
    let whole = bytes.clone();
    seal(&mut bytes, &whole);
    bytes
}

/// Seals both superblocks, and chains every batch to the one before.
fn seal(bytes: &mut Vec<u8>, _: &[u8]) {
    bytes.resize(INPUT_BYTES, 0);
    for slot in 0..2 {
        seal_block(&mut bytes[slot * BLOCK_BYTES..(slot + 1) * BLOCK_BYTES], 12);
    }
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let replay_at = 96;
    let newest = if bytes[BLOCK_BYTES + 80] > bytes[80] { BLOCK_BYTES } else { 0 };
    let mut sequence = u64::from(word(bytes, newest + replay_at + 8));
    let mut previous = word(bytes, newest + replay_at + 16);
    let mut at = 2 * BLOCK_BYTES;
    while at < INPUT_BYTES && bytes[at..at + 8] == batch::MAGIC {
        let payload = word(bytes, at + 36) as usize;
        let end = (at + batch::HEADER_BYTES + payload).min(INPUT_BYTES);
        let mut sealed = bytes[at..end].to_vec();
        sealed[16..24].copy_from_slice(&ID.0.to_le_bytes());
        sealed[24..32].copy_from_slice(&sequence.to_le_bytes());
        sealed[32..36].copy_from_slice(&previous.to_le_bytes());
        let header = sealed.clone();
        seal_batch(&mut sealed, &header);
        bytes[at..end].copy_from_slice(&sealed);
        (sequence, previous) = (sequence.wrapping_add(1), word(&sealed, 12));
        at = end.next_multiple_of(BLOCK_BYTES);
    }
}

fn decode(bytes: &[u8]) -> bool {
    let device = device();
    let len = bytes.len().min(INPUT_BYTES) / BLOCK_BYTES * BLOCK_BYTES;
    device.poke(0, &bytes[..len]);
    let report = block_on(inspect::inspect(&Rc::new(device.clone()), WalkDepth::Values));
    let mut pool = LocalPool::new();
    let spawner = pool.spawner();
    let spawn = Rc::new(move |task| spawner.spawn_local(task).expect("the pool lives"));
    let mut options = StoreOptions::new(spawn, Rc::new(|_: &[u8]| Ok(Vec::new())));
    options.cache_bytes = 1 << 20;
    // Records with random content contradict each other: what counts is that opening says so, or opens.
    let opened = pool.run_until(Store::open(Rc::new(device), options));
    if let Ok(store) = &opened {
        let _ = pool.run_until(store.shutdown());
    }
    report.superblock.is_ok()
}
