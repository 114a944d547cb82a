//! `--verify-data`: reads the bytes of shards and verifies every checksum unit.

use quarry_object::checksum;
use quarry_storage::{
    device::{BLOCK_BYTES, Device, IoBuf},
    store::{CHECKSUM_UNIT_BYTES, ShardRow},
};

use super::{
    blobs,
    report::{Class, Findings},
};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// Verifies one shard; returns the bytes read. `place` names the device.
pub(super) async fn verify<D: Device>(
    device: &D,
    place: &str,
    row: &ShardRow,
    findings: &mut Findings,
) -> u64 {
    let unit_bytes = usize::try_from(CHECKSUM_UNIT_BYTES).expect("a small constant");
    let checksums: Vec<u32> = row.extents.iter().flat_map(|piece| piece.checksums.iter().copied()).collect();
    // A unit may begin in one extent and end in the next one.
    let mut pending: Vec<u8> = Vec::with_capacity(READ_BYTES + unit_bytes);
    let (mut offset, mut read) = (0, 0);
    let mut judge = |offset: &mut u64, bytes: &[u8]| {
        for unit in bytes.chunks(unit_bytes) {
            if !checksum::verify(row.blob, row.shard, *offset, unit, &checksums) {
                let what = || format!("{} on {place}: bytes from {offset}", blobs::name(row));
                findings.add(Class::CorruptUnit, what);
            }
            *offset += unit.len() as u64;
        }
    };
    for piece in &row.extents {
        let (mut at, mut left) = (piece.extent.start.offset_bytes(), piece.len_bytes as usize);
        while left > 0 {
            let len = left.min(READ_BYTES);
            let (result, buf) = device.read(at, IoBuf::zeroed(len.next_multiple_of(BLOCK_BYTES))).await;
            match result {
                Ok(()) => pending.extend_from_slice(&buf[..len]),
                // Zeros in its place: the units it belongs to do not verify.
                Err(_) => pending.resize(pending.len() + len, 0),
            }
            (at, left, read) = (at + len as u64, left - len, read + len as u64);
            let whole = pending.len() / unit_bytes * unit_bytes;
            judge(&mut offset, &pending[..whole]);
            pending.drain(..whole);
        }
    }
    judge(&mut offset, &pending);
    read
}
