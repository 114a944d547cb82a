//! Formats of a device: superblock, journal, rows, free map; `tree` has the index, `device` all of it together.

pub(crate) mod device;
pub(crate) mod tree;

use bytes::Bytes;
use quarry_clustermap::{
    BlobId, ClusterId, DeviceId, Epoch, Incarnation, NodeId, PartitionId, PgId, Sequence, ShardIndex,
    WriterCounter,
};
use quarry_storage::{
    device::BLOCK_BYTES,
    extent::{BlockIndex, Extent, FreeMap},
    format::{
        batch::{self, BatchHeader},
        frame,
        record::Record,
        rows::{self, LogRow, ShardRowV1},
        superblock::{Area, FREE_MAP_EXTENTS_MAX, FreeMapPlace, ReplayStart, Superblock},
    },
    store::{CHECKSUM_UNIT_BYTES, LogEntry, ShardExtent, ShardKey, ShardRow},
};

use crate::{Random, Target};

const SLOT: u64 = 1;

pub(crate) const SUPERBLOCK: Target = Target {
    name: "superblock",
    sample: |random| superblock(random).encode(SLOT),
    seal: |bytes, whole| {
        bytes.resize(BLOCK_BYTES, 0);
        bytes[..12].copy_from_slice(&whole[..12]);
        seal_block(bytes, 12);
    },
    decode: |bytes| {
        let Ok(superblock) = Superblock::decode(bytes, SLOT) else { return false };
        // What is read next: the ring from the replay start to its end, and the free map.
        let ring_end = superblock.replay.position + superblock.journal.blocks;
        let map: u64 = superblock.free_map.extents.iter().map(|extent| extent.end().0).sum();
        std::hint::black_box((ring_end, map, superblock.encode(SLOT)));
        true
    },
    factor: 4,
    constant: 16 << 10,
};

pub(crate) const BATCH: Target = Target {
    name: "journal-batch",
    sample: |random| {
        let records: Vec<u8> = random.list(6, record).iter().flat_map(Record::encode).collect();
        let mut bytes = vec![0; batch::HEADER_BYTES];
        bytes.extend_from_slice(&records);
        let header = BatchHeader {
            device: DeviceId(random.any()),
            sequence: random.counter(),
            previous_crc: 7,
            payload_bytes: u32::try_from(records.len()).expect("a few records"),
            records: 3,
        };
        batch::seal(&header, &mut bytes);
        bytes
    },
    seal: seal_batch,
    decode: |bytes| {
        if let Ok(header) = batch::read_header(bytes) {
            std::hint::black_box(header.blocks());
        }
        let Ok((_, _, mut rest)) = batch::open(bytes) else { return false };
        while let Ok((record, after)) = Record::decode(rest) {
            use_record(&record);
            rest = after;
        }
        rest.is_empty()
    },
    factor: 12,
    constant: 16 << 10,
};

pub(crate) const RECORD: Target = Target {
    name: "journal-record",
    sample: |random| record(random).encode(),
    seal: |bytes, whole| seal_frame(bytes, whole),
    decode: |bytes| match Record::decode(bytes) {
        Ok((record, _)) => use_record(&record),
        Err(_) => false,
    },
    factor: 12,
    constant: 4 << 10,
};

pub(crate) const ROW: Target = Target {
    name: "index-row",
    sample: |random| match random.below(4) {
        0 => rows::encode_pg_epoch(Epoch(random.counter())).into(),
        1 => {
            let (epoch, applied) = (Epoch(random.counter()), Sequence(random.counter()));
            rows::encode_log(LogRow { epoch, applied, lost: false }).into()
        }
        _ => {
            let row = shard_row(random);
            rows::encode_shard(&ShardRowV1::from_row(&row)[0]).into()
        }
    },
    seal: |bytes, whole| seal_frame(bytes, whole),
    decode: |bytes| {
        // The same bytes as keys, too: every length and prefix occurs.
        std::hint::black_box((
            rows::parse_shard_key(bytes),
            rows::partition_of_key(bytes),
            rows::parse_state_key(bytes),
        ));
        let shard = rows::decode_shard(bytes);
        let other = rows::decode_pg_epoch(bytes).is_ok() || rows::decode_log(bytes).is_ok();
        let accepted = shard.is_ok();
        if let Ok(piece) = shard {
            std::hint::black_box(
                ShardRowV1::into_row(key(&mut Random::new(1)), vec![piece.clone(), piece]).is_ok(),
            );
        }
        accepted || other
    },
    factor: 24,
    constant: 4 << 10,
};

pub(crate) const FREE_MAP: Target = Target {
    name: "free-map",
    sample: |random| {
        let mut map = FreeMap::new(BlockIndex(100)..BlockIndex(100 + 2000));
        for _ in 0..random.below(40) {
            let blocks = 1 + u32::try_from(random.below(60)).expect("small");
            let start = BlockIndex(100 + random.any() % 2000);
            // Where it overlaps nothing is taken.
            let _ = map.reserve_exact(Extent { start, blocks });
        }
        map.encode()
    },
    seal: |bytes, whole| {
        const FIXED_BYTES: usize = 32 + 4;
        let runs = bytes.len().saturating_sub(FIXED_BYTES).div_ceil(16);
        bytes.resize(FIXED_BYTES + runs * 16, 0);
        bytes[..8].copy_from_slice(&whole[..8]);
        bytes[24..32].copy_from_slice(&(runs as u64).to_le_bytes());
        let at = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes[at..].copy_from_slice(&crc.to_le_bytes());
    },
    decode: |bytes| {
        let Ok(mut map) = FreeMap::decode(bytes) else { return false };
        let (runs, free) = (map.runs().map(|(_, blocks)| blocks).sum::<u64>(), map.free_blocks());
        assert_eq!(runs, free);
        assert_eq!(map.encode(), bytes, "what was accepted is what would be written");
        if let Some(extent) = map.allocate_low(1) {
            map.free(extent);
        }
        true
    },
    factor: 40,
    constant: 8 << 10,
};

fn use_record(record: &Record) -> bool {
    assert_eq!(Record::decode(&record.encode()).expect("what was decoded can be encoded").0, *record);
    true
}

fn seal_block(bytes: &mut [u8], crc_at: usize) {
    bytes[crc_at..crc_at + 4].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Seals the frames inside as far as their lengths lead, then the batch.
fn seal_batch(bytes: &mut Vec<u8>, whole: &[u8]) {
    bytes.resize(bytes.len().max(batch::HEADER_BYTES), 0);
    bytes[..12].copy_from_slice(&whole[..12]);
    let mut rest = &mut bytes[batch::HEADER_BYTES..];
    while let Some((header, after)) = rest.split_first_chunk_mut::<{ frame::HEADER_BYTES }>() {
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize
        };
        let Some((body, after)) = after.split_at_mut_checked(word(4).saturating_add(word(8))) else { break };
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), body);
        header[12..].copy_from_slice(&crc.to_le_bytes());
        rest = after;
    }
    let payload = u32::try_from(bytes.len() - batch::HEADER_BYTES).expect("inputs are short");
    bytes[36..40].copy_from_slice(&payload.to_le_bytes());
    seal_block(bytes, 12);
}

/// Gives the bytes to archive and tail as the header says, as far as there are some.
fn seal_frame(bytes: &mut Vec<u8>, whole: &[u8]) {
    bytes.resize(bytes.len().max(frame::HEADER_BYTES), 0);
    bytes[..4].copy_from_slice(&whole[..4]);
    let body = bytes.len() - frame::HEADER_BYTES;
    let tail = u32::from_le_bytes([whole[8], whole[9], whole[10], whole[11]]) as usize;
    let (archive, tail) = (body.saturating_sub(tail), tail.min(body));
    bytes[4..8].copy_from_slice(&u32::try_from(archive).expect("inputs are short").to_le_bytes());
    bytes[8..12].copy_from_slice(&u32::try_from(tail).expect("inputs are short").to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[frame::HEADER_BYTES..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
}

fn extent(random: &mut Random, blocks_max: u64) -> Extent {
    let blocks = u32::try_from(1 + random.any() % blocks_max).expect("small");
    Extent { start: BlockIndex(random.any() % 4000), blocks }
}

fn superblock(random: &mut Random) -> Superblock {
    let extents = random.list(FREE_MAP_EXTENTS_MAX + 1, |random| {
        let Extent { start, blocks } = extent(random, 8);
        Extent { start: BlockIndex(start.0 + 1002), blocks }
    });
    let room: u64 = extents.iter().map(|extent| extent.len_bytes()).sum();
    Superblock {
        cluster: ClusterId(random.array()),
        device: DeviceId(random.any()),
        device_bytes: 1 << 30,
        journal: Area { start: BlockIndex(2), blocks: 1000 },
        data: Area { start: BlockIndex(1002), blocks: 200_000 },
        checkpoint: random.any() >> 16,
        replay: ReplayStart { position: random.any() >> 16, sequence: random.any() >> 16, previous_crc: 7 },
        root: random.maybe(Random::array),
        free_map: FreeMapPlace { extents, len_bytes: room - room / 3, crc: 5 },
    }
}

fn blob(random: &mut Random) -> BlobId {
    let (writer, incarnation) = (NodeId(3), Incarnation(4));
    BlobId { writer, incarnation, counter: WriterCounter(random.any() >> 20) }
}

fn key(random: &mut Random) -> ShardKey {
    ShardKey { pg: PgId(7), blob: blob(random), shard: ShardIndex(random.byte()) }
}

fn shard_row(random: &mut Random) -> ShardRow {
    let mut piece = || {
        let extent = extent(random, 64);
        let len_bytes = u32::try_from(extent.len_bytes() - random.any() % 4096).expect("short");
        let units = u64::from(len_bytes).div_ceil(CHECKSUM_UNIT_BYTES);
        ShardExtent { extent, len_bytes, checksums: (0..units).map(|_| 9).collect() }
    };
    let extents = vec![piece(), piece()];
    let ShardKey { pg, blob, shard } = key(random);
    ShardRow {
        pg,
        blob,
        shard,
        owner_partition: PartitionId(9),
        epoch: Epoch(random.counter()),
        writer: NodeId(3),
        len_bytes: extents.iter().map(|piece| u64::from(piece.len_bytes)).sum(),
        extents,
    }
}

fn record(random: &mut Random) -> Record {
    let (partition, epoch) = (PartitionId(9), Epoch(random.counter()));
    let extents = |random: &mut Random| random.list(4, |random| extent(random, 64));
    match random.below(8) {
        0 => Record::ShardCommit { row: shard_row(random), replaced: extents(random) },
        1 => Record::ShardFree { key: key(random), epoch, extents: extents(random) },
        2 => {
            let (sequence, committed) = (Sequence(random.counter()), Sequence(random.counter()));
            let entry = LogEntry { partition, epoch, sequence, committed, payload: random.bytes(200).into() };
            Record::LogAppend { in_force: epoch, entry }
        }
        3 => Record::LogTruncate { partition, epoch, after: Sequence(random.counter()) },
        4 => Record::LogReset { partition, epoch, base: Sequence(random.counter()) },
        5 => Record::PgEpoch { pg: PgId(7), epoch },
        6 => Record::PartitionEpoch { partition, epoch },
        _ => Record::LocalPut { name: random.text(20), value: Bytes::from(random.bytes(100)) },
    }
}
