use bytes::Bytes;
use quarry_clustermap::{
    BlobId, ClusterId, DeviceId, Epoch, Incarnation, NodeId, PartitionId, PgId, Sequence, ShardIndex,
    WriterCounter,
};

use super::batch::{self, BatchHeader};
use super::record::Record;
use super::superblock::{self, Area, FreeMapPlace, ReplayStart, Superblock};
use super::{FormatError, rows};
use crate::device::BLOCK_BYTES;
use crate::extent::{BlockIndex, Extent};
use crate::store::{LogEntry, ShardExtent, ShardKey, ShardRow};

fn extent(start: u64, blocks: u32) -> Extent {
    Extent { start: BlockIndex(start), blocks }
}

fn key() -> ShardKey {
    let blob = BlobId { writer: NodeId(3), incarnation: Incarnation(4), counter: WriterCounter(5) };
    ShardKey { pg: PgId(7), blob, shard: ShardIndex(2) }
}

fn row() -> ShardRow {
    let ShardKey { pg, blob, shard } = key();
    let piece = |start, len_bytes: u32| ShardExtent {
        extent: extent(start, len_bytes.div_ceil(4096)),
        len_bytes,
        checksums: (0..len_bytes.div_ceil(32 * 1024)).collect(),
    };
    ShardRow {
        pg,
        blob,
        shard,
        owner_partition: PartitionId(9),
        epoch: Epoch(11),
        writer: NodeId(3),
        len_bytes: 65536 + 100,
        extents: vec![piece(100, 65536), piece(300, 100)],
    }
}

fn superblock() -> Superblock {
    Superblock {
        cluster: ClusterId(*b"0123456789abcdef"),
        device: DeviceId(0x1122_3344_5566_7788),
        device_bytes: 1 << 30,
        journal: Area { start: BlockIndex(2), blocks: 1000 },
        data: Area { start: BlockIndex(1002), blocks: 200_000 },
        checkpoint: 5,
        replay: ReplayStart { position: 12345, sequence: 99, previous_crc: 0xdead_beef },
        root: Some([0x5a; 64]),
        free_map: FreeMapPlace { extents: vec![extent(2000, 3), extent(4000, 1)], len_bytes: 9000, crc: 77 },
    }
}

fn records() -> Vec<Record> {
    let payload = Bytes::from_static(b"payload");
    let entry = LogEntry {
        partition: PartitionId(9),
        epoch: Epoch(2),
        sequence: Sequence(8),
        committed: Sequence(6),
        payload,
    };
    vec![
        Record::ShardCommit { row: row(), replaced: vec![extent(50, 1)] },
        Record::ShardFree { key: key(), epoch: Epoch(11), extents: vec![extent(100, 16), extent(300, 1)] },
        Record::LogAppend { in_force: Epoch(3), entry },
        Record::LogTruncate { partition: PartitionId(9), epoch: Epoch(3), after: Sequence(7) },
        Record::LogReset { partition: PartitionId(9), epoch: Epoch(3), base: Sequence(40) },
        Record::PgEpoch { pg: PgId(7), epoch: Epoch(12) },
        Record::PartitionEpoch { partition: PartitionId(9), epoch: Epoch(4) },
        Record::LocalPut { name: "map".into(), value: Bytes::from_static(b"v") },
    ]
}

fn sealed_batch() -> Vec<u8> {
    let payload: Vec<u8> = records().iter().flat_map(Record::encode).collect();
    let header = BatchHeader {
        device: DeviceId(1),
        sequence: 2,
        previous_crc: 3,
        payload_bytes: u32::try_from(payload.len()).unwrap(),
        records: 8,
    };
    let mut bytes = vec![0; batch::HEADER_BYTES];
    bytes.extend_from_slice(&payload);
    batch::seal(&header, &mut bytes);
    bytes
}

/// Deterministic noise for the decoder tests.
fn noise(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn golden_images() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut found = String::new();
    for record in records() {
        found +=
            &format!("{}: {}\n", Record::KIND_NAMES[usize::from(record.kind()) - 1], hex(&record.encode()));
    }
    let pieces = rows::ShardRowV1::from_row(&row());
    found += &format!("shard row: {}\n", hex(&rows::encode_shard(&pieces[0])));
    found += &format!("pg epoch row: {}\n", hex(&rows::encode_pg_epoch(Epoch(12))));
    let log_row = rows::LogRow { epoch: Epoch(4), applied: Sequence(7), lost: false };
    found += &format!("log row: {}\n", hex(&rows::encode_log(log_row)));
    found += &format!("shard key: {}\n", hex(&rows::shard_key(key(), 1)));
    found += &format!("batch header: {}\n", hex(&sealed_batch()[..batch::HEADER_BYTES]));
    found += &format!("superblock: {}\n", hex(&superblock().encode(1)[..232]));
    let lost_row = rows::LogRow { epoch: Epoch(4), applied: Sequence(0), lost: true };
    assert_eq!(rows::decode_log(&rows::encode_log(lost_row)), Ok(lost_row));
    assert_eq!(rows::decode_log(&rows::encode_log(log_row)), Ok(log_row));
    found += &format!("lost log row: {}\n", hex(&rows::encode_log(lost_row)));
    let range = rows::encode_lost_range(PartitionId(300));
    assert_eq!(rows::decode_lost_range(&range), Ok(PartitionId(300)));
    found += &format!("lost range: {} = {}\n", hex(&rows::lost_range_key(PartitionId(9))), hex(&range));
    assert_eq!(found, include_str!("golden.txt"), "an on-disk format changed: that needs a new version");
}

#[test]
fn superblock_round_trip_and_refusals() {
    let image = superblock().encode(1);
    assert_eq!(Superblock::decode(&image, 1), Ok(superblock()));
    assert!(matches!(Superblock::decode(&image, 0), Err(FormatError::Field { field: "slot", .. })));
    assert!(matches!(Superblock::decode(&image[..100], 1), Err(FormatError::Length { .. })));
    let mut other = image.clone();
    other[8] = 9;
    assert_eq!(
        Superblock::decode(&other, 1),
        Err(FormatError::Version { what: "superblock", version: 9 }),
        "the version is told before the checksum is looked at"
    );
    for at in 0..BLOCK_BYTES {
        let mut damaged = image.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(Superblock::decode(&damaged, 1).is_err(), "byte {at}");
    }
    // Found by the fuzzer, behind right checksums: numbers that overflow when they are counted on.
    let replay = |position, sequence| Superblock {
        replay: ReplayStart { position, sequence, previous_crc: 0 },
        ..superblock()
    };
    let last_checkpoint = Superblock { checkpoint: u64::MAX, ..superblock() };
    for bad in [replay(u64::MAX - 500, 1), replay(1, u64::MAX - 500), last_checkpoint] {
        assert!(matches!(Superblock::decode(&bad.encode(1), 1), Err(FormatError::Field { .. })));
    }
    let (partition, epoch) = (PartitionId(9), Epoch(3));
    let log_row = |epoch, applied| rows::encode_log(rows::LogRow { epoch, applied, lost: false });
    for bad in [
        Record::LogTruncate { partition, epoch, after: Sequence(u64::MAX) },
        Record::LogReset { partition, epoch: Epoch(u64::MAX), base: Sequence(1) },
        Record::PgEpoch { pg: PgId(7), epoch: Epoch(u64::MAX) },
    ] {
        assert!(matches!(Record::decode(&bad.encode()), Err(FormatError::Field { .. })), "{bad:?}");
    }
    for bad in [log_row(Epoch(u64::MAX), Sequence(1)), log_row(epoch, Sequence(u64::MAX))] {
        assert!(matches!(rows::decode_log(&bad), Err(FormatError::Field { .. })));
    }
    assert!(rows::decode_pg_epoch(&rows::encode_pg_epoch(Epoch(u64::MAX))).is_err());
    let mut last = sealed_batch();
    last[24..32].fill(0xff);
    assert!(matches!(batch::read_header(&last), Err(FormatError::Field { field: "sequence", .. })));
    assert_eq!(superblock::slot_offset(3, 1 << 20), (1 << 20) - 4096);
    assert_eq!(superblock::slots_of(7), [1, 3]);
}

#[test]
fn records_round_trip() {
    for record in records() {
        let bytes = record.encode();
        let (decoded, rest) = Record::decode(&bytes).unwrap();
        assert_eq!((decoded, rest.len()), (record, 0));
    }
    let bytes = sealed_batch();
    let (header, _, mut payload) = batch::open(&bytes).unwrap();
    for record in records() {
        let (decoded, rest) = Record::decode(payload).unwrap();
        assert_eq!(decoded, record);
        payload = rest;
    }
    assert_eq!((payload.len(), header.records, header.blocks()), (0, 8, 1));
}

#[test]
fn shard_keys_sort_and_parse() {
    let bytes = rows::shard_key(key(), 260);
    assert_eq!(rows::parse_shard_key(&bytes), Some((key(), 260)));
    assert!(rows::shard_key(key(), 2) < bytes);
    assert_eq!(rows::parse_shard_key(&bytes[1..]), None);
    assert_eq!(rows::partition_of_key(&rows::partition_key(PartitionId(300), b"x")), Some(PartitionId(300)));
    assert!(
        rows::partition_key(PartitionId(u16::MAX), &[0xff; 9]) < rows::partition_end(PartitionId(u16::MAX))
    );
}

#[test]
fn damaged_input_is_an_error_and_never_a_panic() {
    let batch_image = sealed_batch();
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..20_000 {
        let mut bytes = batch_image.clone();
        for _ in 0..=noise(&mut state) % 3 {
            let at = usize::try_from(noise(&mut state)).unwrap() % bytes.len();
            bytes[at] ^= 1 << (noise(&mut state) % 8);
        }
        bytes.truncate(usize::try_from(noise(&mut state)).unwrap() % (bytes.len() + 1) + 1);
        if bytes != batch_image[..bytes.len()] || bytes.len() < batch_image.len() {
            assert!(batch::open(&bytes).is_err());
        }
        let mut rest = bytes.get(batch::HEADER_BYTES..).unwrap_or_default();
        while let Ok((_, after)) = Record::decode(rest) {
            rest = after;
        }
        let _ = rows::decode_shard(&bytes);
        // An archive whose frame checksum is right but whose content is noise must be refused by validation alone.
        for kind in 1..=8 {
            let frame =
                super::frame::Frame { kind, version: 1, archive: &bytes[..bytes.len().min(90)], tail: &[] };
            let _ = super::frame::read::<super::record::ShardCommitV1>(&frame, "fuzz");
            let _ = super::frame::read::<super::record::ShardFreeV1>(&frame, "fuzz");
        }
    }
}
