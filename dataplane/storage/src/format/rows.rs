//! Rows of the index: first byte of the key is the table; integers in keys are big-endian.
//!
//! | table | key after it | value |
//! |---|---|---|
//! | 01 | pg u32, blob 16, shard u8, n u32 | frame of [`ShardRowV1`]: extent `n` of a shard |
//! | 02 | pg u32 | frame of [`PgEpochRowV1`] |
//! | 03 | partition u16 | frame of [`LogRowV1`], or of [`LogRowV2`] while the partition is lost |
//! | 04 | first partition u16 | frame of [`LostRangeV1`] |
//! | 10 | partition u16, key chosen by the partition | chosen by the partition |
//! | 20 | name | device-local value; the store's own: [`SHARDS_INCOMPLETE`], [`INDEX_DAMAGED`], [`QUARANTINE`], and those
//! | | | of `store/copy.rs` |
//!
//! Frame kinds are the table numbers plus 0x100, so that a row is never taken for a record.

use bytes::Bytes;
use quarry_clustermap::{BlobId, Epoch, NodeId, PartitionId, PgId, Sequence, ShardIndex};
use rkyv::{Archive, Deserialize, Serialize};

use super::{FormatError, frame, record::ExtentV1};
use crate::device::BLOCK_BYTES;
use crate::extent::Extent;
use crate::store::{CHECKSUM_UNIT_BYTES, SHARD_EXTENT_BYTES_MAX, ShardExtent, ShardKey, ShardRow};

/// Table of shard extents.
pub const TABLE_SHARDS: u8 = 0x01;
/// Table of placement group epochs.
pub const TABLE_PG_EPOCHS: u8 = 0x02;
/// Table of log states.
pub const TABLE_LOGS: u8 = 0x03;
/// Table of ranges of partitions whose log rows were lost.
pub const TABLE_LOST: u8 = 0x04;
/// Table of partition rows.
pub const TABLE_PARTITIONS: u8 = 0x10;
/// Table of device-local rows.
pub const TABLE_LOCAL: u8 = 0x20;

/// Name of the device-local row that says whether shards may be missing since the device was mended: one byte, 1 if
/// so, 0 (or no row) if not.
pub const SHARDS_INCOMPLETE: &str = "quarry.shards-incomplete";
/// Name of the local row that says, with any value but `[0]`, that the index was found damaged: the next start surveys it.
pub const INDEX_DAMAGED: &str = "quarry.index-damaged";
/// Name of the local row that holds a frame of [`QuarantineV1`].
pub const QUARANTINE: &str = "quarry.quarantine";

const VERSION: u16 = 1;
/// Version of the row of a lost partition's log.
const VERSION_LOST: u16 = 2;
const SHARD_KEY_BYTES: usize = 1 + 4 + BlobId::ENCODED_BYTES + 1 + 4;

/// Value of table 01: one extent of a shard. What concerns the whole shard is repeated in each.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct ShardRowV1 {
    /// Partition that owns the manifest.
    pub owner_partition: PartitionId,
    /// Epoch of the placement group at the write.
    pub epoch: Epoch,
    /// Node that wrote this copy.
    pub writer: NodeId,
    /// Bytes of the whole shard.
    pub shard_len_bytes: u64,
    /// Extents of the whole shard: a missing row is noticed.
    pub shard_extents: u32,
    /// This extent.
    pub extent: ExtentV1,
    /// Bytes used of it.
    pub len_bytes: u32,
    /// crc32c per checksum unit.
    pub checksums: Vec<u32>,
}

impl ShardRowV1 {
    /// One per extent.
    #[must_use]
    pub fn from_row(row: &ShardRow) -> Vec<Self> {
        let shard_extents = u32::try_from(row.extents.len()).expect("a validated row has few extents");
        let one = |piece: &ShardExtent| Self {
            owner_partition: row.owner_partition,
            epoch: row.epoch,
            writer: row.writer,
            shard_len_bytes: row.len_bytes,
            shard_extents,
            extent: piece.extent.into(),
            len_bytes: piece.len_bytes,
            checksums: piece.checksums.clone(),
        };
        row.extents.iter().map(one).collect()
    }

    /// Inverse of [`ShardRowV1::from_row`].
    ///
    /// # Errors
    /// [`FormatError::Field`] if the pieces do not belong together.
    pub fn into_row(key: ShardKey, pieces: Vec<Self>) -> Result<ShardRow, FormatError> {
        let bad = |field| FormatError::Field { what: "shard row", field };
        let first = pieces.first().ok_or(bad("shard_extents"))?;
        if pieces.len() != first.shard_extents as usize {
            return Err(bad("shard_extents"));
        }
        let mut row = ShardRow {
            pg: key.pg,
            blob: key.blob,
            shard: key.shard,
            owner_partition: first.owner_partition,
            epoch: first.epoch,
            writer: first.writer,
            len_bytes: first.shard_len_bytes,
            extents: Vec::with_capacity(pieces.len()),
        };
        for piece in pieces {
            let Self { extent, len_bytes, checksums, .. } = piece;
            row.extents.push(ShardExtent { extent: extent.into(), len_bytes, checksums });
        }
        validate_shard(&row).map_err(bad)?;
        Ok(row)
    }
}

/// Checks that lengths, extents and checksums of a row agree; the error names what does not.
///
/// # Errors
/// The name of the field.
pub fn validate_shard(row: &ShardRow) -> Result<(), &'static str> {
    let mut sum = 0;
    if row.extents.is_empty() {
        return Err("extents");
    }
    for piece in &row.extents {
        let extent_bytes = u64::from(piece.extent.blocks) * BLOCK_BYTES as u64;
        let len_bytes = u64::from(piece.len_bytes);
        if extent_bytes > SHARD_EXTENT_BYTES_MAX || len_bytes == 0 || len_bytes > extent_bytes {
            return Err("extent length");
        }
        if piece.checksums.len() as u64 != len_bytes.div_ceil(CHECKSUM_UNIT_BYTES) {
            return Err("checksums");
        }
        sum += len_bytes;
    }
    if sum == row.len_bytes { Ok(()) } else { Err("len_bytes") }
}

/// Value of table 02.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct PgEpochRowV1 {
    /// Highest seen.
    pub epoch: Epoch,
}

/// Value of table 03.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct LogRowV1 {
    /// Highest epoch seen.
    pub epoch: Epoch,
    /// Entries up to here are in the rows of table 10.
    pub applied: Sequence,
}

/// Value of table 03 for a partition that mending could not keep: it has no rows and no log until it is reset. A
/// version of its own, so that no program takes the partition for an empty one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct LogRowV2 {
    /// Highest epoch seen, as far as it is known.
    pub epoch: Epoch,
}

/// Value of table 03, whatever its version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRow {
    /// Highest epoch seen.
    pub epoch: Epoch,
    /// Entries up to here are in the rows of table 10.
    pub applied: Sequence,
    /// Nothing is here because it was lost; `applied` is 0 then.
    pub lost: bool,
}

/// Value of table 04: partitions from the one in the key on whose log rows were lost. Those of them that have no row
/// in table 03 count as lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct LostRangeV1 {
    /// Last of them.
    pub last: PartitionId,
}

/// Value of the local row [`QUARANTINE`]: blocks that are not handed out again.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct QuarantineV1 {
    /// In order, disjoint, in the data area.
    pub runs: Vec<ExtentV1>,
}

fn encode_row<T>(table: u8, version: u16, value: &T) -> Bytes
where
    T: for<'a> Serialize<
        rkyv::api::high::HighSerializer<
            rkyv::util::AlignedVec,
            rkyv::ser::allocator::ArenaHandle<'a>,
            rkyv::rancor::Error,
        >,
    >,
{
    let mut out = Vec::new();
    frame::encode(0x100 | u16::from(table), version, value, &[], &mut out);
    out.into()
}

fn decode_row<T>(table: u8, version: u16, what: &'static str, bytes: &[u8]) -> Result<T, FormatError>
where
    T: Archive,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, rkyv::rancor::Error>>
        + Deserialize<T, rkyv::api::high::HighDeserializer<rkyv::rancor::Error>>,
{
    let (frame, rest) = frame::split(bytes)?;
    if frame.kind != 0x100 | u16::from(table) {
        return Err(FormatError::Magic { what });
    }
    if frame.version != version {
        return Err(FormatError::Version { what, version: frame.version.into() });
    }
    if !rest.is_empty() || !frame.tail.is_empty() {
        return Err(FormatError::Length { what });
    }
    frame::read(&frame, what)
}

/// Value of one shard extent.
#[must_use]
pub fn encode_shard(row: &ShardRowV1) -> Bytes {
    encode_row(TABLE_SHARDS, VERSION, row)
}

/// Inverse of [`encode_shard`].
///
/// # Errors
/// [`FormatError`].
pub fn decode_shard(bytes: &[u8]) -> Result<ShardRowV1, FormatError> {
    decode_row(TABLE_SHARDS, VERSION, "shard row", bytes)
}

/// Value of a placement group's epoch.
#[must_use]
pub fn encode_pg_epoch(epoch: Epoch) -> Bytes {
    encode_row(TABLE_PG_EPOCHS, VERSION, &PgEpochRowV1 { epoch })
}

/// Inverse of [`encode_pg_epoch`].
///
/// # Errors
/// [`FormatError`].
pub fn decode_pg_epoch(bytes: &[u8]) -> Result<Epoch, FormatError> {
    let what = "pg epoch row";
    let PgEpochRowV1 { epoch } = decode_row(TABLE_PG_EPOCHS, VERSION, what, bytes)?;
    // Epochs count up by one: none is ever the last number.
    if epoch.0 < u64::MAX { Ok(epoch) } else { Err(FormatError::Field { what, field: "epoch" }) }
}

/// Value of a log's state.
#[must_use]
pub fn encode_log(row: LogRow) -> Bytes {
    let LogRow { epoch, applied, lost } = row;
    match lost {
        false => encode_row(TABLE_LOGS, VERSION, &LogRowV1 { epoch, applied }),
        true => encode_row(TABLE_LOGS, VERSION_LOST, &LogRowV2 { epoch }),
    }
}

/// Inverse of [`encode_log`].
///
/// # Errors
/// [`FormatError`].
pub fn decode_log(bytes: &[u8]) -> Result<LogRow, FormatError> {
    let what = "log row";
    let row = match decode_row::<LogRowV2>(TABLE_LOGS, VERSION_LOST, what, bytes) {
        Ok(LogRowV2 { epoch }) => LogRow { epoch, applied: Sequence::default(), lost: true },
        Err(FormatError::Version { .. }) => {
            let LogRowV1 { epoch, applied } = decode_row(TABLE_LOGS, VERSION, what, bytes)?;
            LogRow { epoch, applied, lost: false }
        }
        Err(error) => return Err(error),
    };
    if row.epoch.0.max(row.applied.0) == u64::MAX {
        return Err(FormatError::Field { what, field: "epoch or sequence" });
    }
    Ok(row)
}

/// Value of a range of partitions whose log rows were lost.
#[must_use]
pub fn encode_lost_range(last: PartitionId) -> Bytes {
    encode_row(TABLE_LOST, VERSION, &LostRangeV1 { last })
}

/// Inverse of [`encode_lost_range`].
///
/// # Errors
/// [`FormatError`].
pub fn decode_lost_range(bytes: &[u8]) -> Result<PartitionId, FormatError> {
    decode_row::<LostRangeV1>(TABLE_LOST, VERSION, "range of lost partitions", bytes).map(|row| row.last)
}

/// Value of the quarantine.
#[must_use]
pub fn encode_quarantine(runs: &[Extent]) -> Bytes {
    let runs = runs.iter().map(|&extent| extent.into()).collect();
    encode_row(TABLE_LOCAL, VERSION, &QuarantineV1 { runs })
}

/// Inverse of [`encode_quarantine`].
///
/// # Errors
/// [`FormatError`].
pub fn decode_quarantine(bytes: &[u8]) -> Result<Vec<Extent>, FormatError> {
    let QuarantineV1 { runs } = decode_row(TABLE_LOCAL, VERSION, "quarantine", bytes)?;
    Ok(runs.into_iter().map(Extent::from).collect())
}

/// Key of extent `n` of a shard.
#[must_use]
pub fn shard_key(key: ShardKey, n: u32) -> Bytes {
    let mut bytes = Vec::with_capacity(SHARD_KEY_BYTES);
    bytes.push(TABLE_SHARDS);
    bytes.extend_from_slice(&key.pg.0.to_be_bytes());
    bytes.extend_from_slice(&key.blob.to_bytes());
    bytes.push(key.shard.0);
    bytes.extend_from_slice(&n.to_be_bytes());
    bytes.into()
}

/// Inverse of [`shard_key`].
#[must_use]
pub fn parse_shard_key(key: &[u8]) -> Option<(ShardKey, u32)> {
    let key: &[u8; SHARD_KEY_BYTES] = key.try_into().ok()?;
    let [TABLE_SHARDS, pg @ .., _, _, _, _] = key else { return None };
    let pg_id = u32::from_be_bytes(pg[..4].try_into().ok()?);
    let blob = BlobId::from_bytes(pg[4..20].try_into().ok()?);
    let n = u32::from_be_bytes(key[SHARD_KEY_BYTES - 4..].try_into().ok()?);
    Some((ShardKey { pg: PgId(pg_id), blob, shard: ShardIndex(pg[20]) }, n))
}

/// Key of a placement group's epoch.
#[must_use]
pub fn pg_epoch_key(pg: PgId) -> Bytes {
    [&[TABLE_PG_EPOCHS], &pg.0.to_be_bytes()[..]].concat().into()
}

/// Key of a log's state.
#[must_use]
pub fn log_key(partition: PartitionId) -> Bytes {
    [&[TABLE_LOGS], &partition.0.to_be_bytes()[..]].concat().into()
}

/// Key of a range of partitions whose log rows were lost.
#[must_use]
pub fn lost_range_key(first: PartitionId) -> Bytes {
    [&[TABLE_LOST], &first.0.to_be_bytes()[..]].concat().into()
}

/// Key of a partition's row.
#[must_use]
pub fn partition_key(partition: PartitionId, key: &[u8]) -> Bytes {
    [&[TABLE_PARTITIONS], &partition.0.to_be_bytes()[..], key].concat().into()
}

/// Length of the prefix that [`partition_key`] adds.
pub const PARTITION_PREFIX_BYTES: usize = 3;

/// The partition whose row a key is, if it is one.
#[must_use]
pub fn partition_of_key(key: &[u8]) -> Option<PartitionId> {
    match key {
        [TABLE_PARTITIONS, high, low, ..] => Some(PartitionId(u16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}

/// First key after every row of a partition.
#[must_use]
pub fn partition_end(partition: PartitionId) -> Bytes {
    match partition.0.checked_add(1) {
        Some(next) => partition_key(PartitionId(next), &[]),
        None => Bytes::from_static(&[TABLE_PARTITIONS + 1]),
    }
}

/// Key of a device-local row.
#[must_use]
pub fn local_key(name: &str) -> Bytes {
    [&[TABLE_LOCAL], name.as_bytes()].concat().into()
}

/// Key of one of the tables of epochs and logs, parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateKey {
    /// Table 02.
    Pg(PgId),
    /// Table 03.
    Log(PartitionId),
    /// Table 04: the first of a range.
    Lost(PartitionId),
}

/// Inverse of [`pg_epoch_key`], [`log_key`] and [`lost_range_key`].
#[must_use]
pub fn parse_state_key(key: &[u8]) -> Option<StateKey> {
    match *key {
        [TABLE_PG_EPOCHS, a, b, c, d] => Some(StateKey::Pg(PgId(u32::from_be_bytes([a, b, c, d])))),
        [TABLE_LOGS, a, b] => Some(StateKey::Log(PartitionId(u16::from_be_bytes([a, b])))),
        [TABLE_LOST, a, b] => Some(StateKey::Lost(PartitionId(u16::from_be_bytes([a, b])))),
        _ => None,
    }
}
