//! What the store knows in memory, and the one way records change it: live after their flush, or in replay.
//!
//! Invariant: the state is that of all batches up to the last flushed one, nothing of later ones; only epochs
//! seen and the last submitted sequence run ahead (refusing early is safe, and nobody was told yet).

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use quarry_clustermap::{Epoch, PartitionId, PgId, Sequence};

use super::overlay::Layer;
use super::space::Space;
use super::{DecodeEntry, LogEntry, Mutation, RecoveredLog, ShardKey, ShardRow, StoreError};
use crate::extent::Extent;
use crate::format::FormatError;
use crate::format::record::Record;
use crate::format::rows::{self, LogRow, ShardRowV1};

/// The highest epoch seen of one partition or placement group.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Fence {
    /// Durable or on its way: what is refused goes by it.
    pub(super) seen: Epoch,
    /// As the row has it.
    pub(super) recorded: Epoch,
}

/// A partition's log on this device.
#[derive(Default, Debug)]
pub(super) struct Log {
    /// Highest epoch seen.
    pub(super) fence: Fence,
    /// Rows hold the entries up to here.
    pub(super) applied: Sequence,
    /// Last entry, durable or on its way.
    pub(super) last: Sequence,
    /// Durable entries after `applied`.
    pub(super) tail: BTreeMap<Sequence, LogEntry>,
    /// Mending could not keep rows and log: the partition is empty here until it is reset.
    pub(super) lost: bool,
    /// As `lost`, but false as soon as the reset is on its way.
    pub(super) refuses: bool,
}

impl Log {
    pub(super) fn recovered(&self) -> RecoveredLog {
        let tail = self.tail.values().cloned().collect();
        RecoveredLog { epoch: self.fence.seen, applied: self.applied, tail }
    }
}

/// Who applies a record.
pub(super) enum Mode<'a> {
    /// After its flush.
    Live,
    /// Replay: extents are claimed, committed entries are applied.
    Replay(&'a DecodeEntry),
    /// Replay while the device is mended: as above, but nobody knows yet which extents are free.
    Mend(&'a DecodeEntry),
}

impl<'a> Mode<'a> {
    fn replays(&self) -> Option<&'a DecodeEntry> {
        match *self {
            Self::Live => None,
            Self::Replay(decode) | Self::Mend(decode) => Some(decode),
        }
    }
}

/// Memory that a tail entry costs beside its payload; at least what its record costs in the ring.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// State of one device.
#[derive(Default)]
pub(super) struct Core {
    pub(super) active: Layer,
    pub(super) frozen: Option<Rc<Layer>>,
    pub(super) pg_fences: HashMap<PgId, Fence>,
    pub(super) logs: BTreeMap<PartitionId, Log>,
    /// A partition without a row of its log is lost if it lies in one of these: first -> last.
    pub(super) lost_ranges: BTreeMap<PartitionId, PartitionId>,
    /// Bytes of all tails.
    pub(super) tail_bytes: usize,
}

fn entry_bytes(entry: &LogEntry) -> usize {
    entry.payload.len() + ENTRY_OVERHEAD_BYTES
}

impl Core {
    /// Takes a row of the tables of epochs, logs and losses as of the checkpoint.
    pub(super) fn load_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), FormatError> {
        let malformed = FormatError::Field { what: "index row", field: "key" };
        match rows::parse_state_key(key).ok_or(malformed)? {
            rows::StateKey::Pg(pg) => {
                let epoch = rows::decode_pg_epoch(value)?;
                self.pg_fences.insert(pg, Fence { seen: epoch, recorded: epoch });
            }
            rows::StateKey::Log(partition) => {
                let LogRow { epoch, applied, lost } = rows::decode_log(value)?;
                let fence = Fence { seen: epoch, recorded: epoch };
                let log = Log { fence, applied, last: applied, lost, refuses: lost, ..Log::default() };
                self.logs.insert(partition, log);
            }
            rows::StateKey::Lost(first) => {
                self.lost_ranges.insert(first, rows::decode_lost_range(value)?);
            }
        }
        Ok(())
    }

    /// Whether a partition without a row of its log counts as lost.
    pub(super) fn lost_unless_known(&self, partition: PartitionId) -> bool {
        self.lost_ranges.range(..=partition).any(|(_, &last)| partition <= last)
    }

    /// The log of a partition, which begins now if there is none.
    pub(super) fn log_mut(&mut self, partition: PartitionId) -> &mut Log {
        let lost = self.lost_unless_known(partition);
        self.logs.entry(partition).or_insert_with(|| Log { lost, refuses: lost, ..Log::default() })
    }

    /// Drops what a partition has here but for its epoch; durable with the next checkpoint.
    pub(super) fn lose(&mut self, partition: PartitionId) {
        let log = self.log_mut(partition);
        let gone = std::mem::take(&mut log.tail);
        (log.lost, log.refuses) = (true, true);
        (log.applied, log.last) = (Sequence::default(), Sequence::default());
        self.tail_bytes -= gone.values().map(entry_bytes).sum::<usize>();
        self.active.wipe(partition);
        self.record_log(partition);
    }

    pub(super) fn apply_record(
        &mut self,
        record: Record,
        space: &Space,
        mode: &Mode<'_>,
    ) -> Result<(), StoreError> {
        match record {
            Record::ShardCommit { row, replaced } => self.commit_shard(&row, replaced, space, mode)?,
            Record::ShardFree { key, epoch, extents } => {
                self.saw_pg_epoch(key.pg, epoch);
                for n in 0..count(&extents) {
                    self.active.put(rows::shard_key(key, n), None);
                }
                free_extents(key, extents, space, mode)?;
            }
            Record::LogAppend { in_force, entry } => self.append(in_force, entry, mode)?,
            Record::LogTruncate { partition, epoch, after } => {
                self.saw_partition_epoch(partition, epoch);
                let log = self.log_mut(partition);
                let gone = log.tail.split_off(&after.next());
                if mode.replays().is_some() {
                    log.last = log.last.min(after);
                }
                self.tail_bytes -= gone.values().map(entry_bytes).sum::<usize>();
            }
            Record::LogReset { partition, epoch, base } => self.reset(partition, epoch, base, mode),
            Record::PgEpoch { pg, epoch } => self.saw_pg_epoch(pg, epoch),
            Record::PartitionEpoch { partition, epoch } => self.saw_partition_epoch(partition, epoch),
            Record::LocalPut { name, value } => self.active.put(rows::local_key(&name), Some(value)),
        }
        Ok(())
    }

    fn commit_shard(
        &mut self,
        row: &ShardRow,
        replaced: Vec<Extent>,
        space: &Space,
        mode: &Mode<'_>,
    ) -> Result<(), StoreError> {
        let extents = row.extents.iter().map(|piece| piece.extent);
        match mode {
            Mode::Live => space.commit(extents),
            Mode::Replay(_) => space.claim(extents)?,
            Mode::Mend(_) => {}
        }
        let key = row.key();
        for (n, piece) in (0..).zip(ShardRowV1::from_row(row)) {
            self.active.put(rows::shard_key(key, n), Some(rows::encode_shard(&piece)));
        }
        for n in count(&row.extents)..count(&replaced) {
            self.active.put(rows::shard_key(key, n), None);
        }
        free_extents(key, replaced, space, mode)?;
        self.saw_pg_epoch(row.pg, row.epoch);
        Ok(())
    }

    fn append(&mut self, in_force: Epoch, entry: LogEntry, mode: &Mode<'_>) -> Result<(), StoreError> {
        let (partition, committed) = (entry.partition, entry.committed);
        self.saw_partition_epoch(partition, in_force);
        let log = self.log_mut(partition);
        if log.lost {
            return Ok(());
        }
        log.last = log.last.max(entry.sequence);
        if entry.sequence <= log.applied {
            return Ok(());
        }
        let bytes = entry_bytes(&entry);
        let replaced = log.tail.insert(entry.sequence, entry);
        self.tail_bytes += bytes;
        self.tail_bytes -= replaced.as_ref().map_or(0, entry_bytes);
        if let Some(decode) = mode.replays() {
            self.apply_committed(partition, committed, decode)?;
        }
        Ok(())
    }

    /// Replay: entries that are known to be committed become rows.
    fn apply_committed(
        &mut self,
        partition: PartitionId,
        committed: Sequence,
        decode: &DecodeEntry,
    ) -> Result<(), StoreError> {
        loop {
            let log = self.log_mut(partition);
            let next = log.applied.next();
            let Some(entry) = log.tail.get(&next).filter(|_| next <= committed) else { return Ok(()) };
            let mutations = decode(&entry.payload);
            let mutations =
                mutations.map_err(|reason| StoreError::BadEntry { partition, sequence: next, reason })?;
            self.apply(partition, next, mutations);
        }
    }

    /// Entries up to `through` become rows; repeating it does nothing.
    pub(super) fn apply(&mut self, partition: PartitionId, through: Sequence, mutations: Vec<Mutation>) {
        let log = self.log_mut(partition);
        if log.lost || through <= log.applied {
            return;
        }
        log.applied = through;
        log.last = log.last.max(through);
        let left = log.tail.split_off(&through.next());
        let gone = std::mem::replace(&mut log.tail, left);
        self.tail_bytes -= gone.values().map(entry_bytes).sum::<usize>();
        self.record_log(partition);
        for Mutation { key, value } in mutations {
            self.active.put(rows::partition_key(partition, &key), value);
        }
    }

    fn reset(&mut self, partition: PartitionId, epoch: Epoch, base: Sequence, mode: &Mode<'_>) {
        let log = self.log_mut(partition);
        let gone = std::mem::take(&mut log.tail);
        log.applied = base;
        log.lost = false;
        if mode.replays().is_some() {
            log.refuses = false;
            log.last = base;
        }
        log.fence.seen = log.fence.seen.max(epoch);
        log.fence.recorded = log.fence.recorded.max(epoch);
        self.tail_bytes -= gone.values().map(entry_bytes).sum::<usize>();
        self.active.wipe(partition);
        self.record_log(partition);
    }

    fn saw_pg_epoch(&mut self, pg: PgId, epoch: Epoch) {
        let fence = self.pg_fences.entry(pg).or_default();
        fence.seen = fence.seen.max(epoch);
        if epoch > fence.recorded {
            fence.recorded = epoch;
            self.active.put(rows::pg_epoch_key(pg), Some(rows::encode_pg_epoch(epoch)));
        }
    }

    fn saw_partition_epoch(&mut self, partition: PartitionId, epoch: Epoch) {
        let log = self.log_mut(partition);
        log.fence.seen = log.fence.seen.max(epoch);
        if epoch > log.fence.recorded {
            log.fence.recorded = epoch;
            self.record_log(partition);
        }
    }

    /// Puts the row that says what the rows of a partition contain.
    fn record_log(&mut self, partition: PartitionId) {
        let log = self.log_mut(partition);
        let row = LogRow { epoch: log.fence.recorded, applied: log.applied, lost: log.lost };
        self.active.put(rows::log_key(partition), Some(rows::encode_log(row)));
    }

    /// What memory says about a key; `None` means: ask the index.
    pub(super) fn overlay_get(&self, key: &[u8]) -> Option<Option<bytes::Bytes>> {
        self.active.get(key).or_else(|| self.frozen.as_ref()?.get(key))
    }

    /// The next row that memory knows in `from..to`; no value: it is deleted.
    pub(super) fn overlay_next(
        &self,
        from: &[u8],
        to: &[u8],
    ) -> Option<(bytes::Bytes, Option<bytes::Bytes>)> {
        super::overlay::first(&self.active, self.frozen.as_deref(), from, to)
    }

    /// Whether memory hides everything that the index has of a key's partition.
    pub(super) fn overlay_wipes(&self, key: &[u8]) -> bool {
        self.active.hides(key) || self.frozen.as_ref().is_some_and(|frozen| frozen.hides(key))
    }

    pub(super) fn pg_epoch(&self, pg: PgId) -> Epoch {
        self.pg_fences.get(&pg).map_or(Epoch(0), |fence| fence.seen)
    }

    /// Refuses an older epoch of a placement group, remembers a newer one.
    pub(super) fn fence_pg(&mut self, pg: PgId, epoch: Epoch) -> Result<(), StoreError> {
        let seen = self.pg_epoch(pg);
        if epoch < seen {
            return Err(StoreError::StalePgEpoch { pg, seen });
        }
        self.pg_fences.entry(pg).or_default().seen = epoch;
        Ok(())
    }

    /// Refuses an older epoch of a partition, remembers a newer one.
    pub(super) fn fence_partition(&mut self, partition: PartitionId, epoch: Epoch) -> Result<(), StoreError> {
        let log = self.log_mut(partition);
        let seen = log.fence.seen;
        if epoch < seen {
            return Err(StoreError::StaleEpoch { partition, seen });
        }
        log.fence.seen = epoch;
        Ok(())
    }

    /// Every entry that a checkpoint has to append anew, as a record.
    pub(super) fn tails(&self) -> Vec<(PartitionId, Record)> {
        let mut tails = Vec::new();
        for (&partition, log) in &self.logs {
            let in_force = log.fence.recorded;
            let record = |entry: &LogEntry| Record::LogAppend { in_force, entry: entry.clone() };
            tails.extend(log.tail.values().map(|entry| (partition, record(entry))));
        }
        tails
    }
}

/// Live, the caller has found the extents in the row; in replay they are what the record says.
fn free_extents(
    key: ShardKey,
    extents: Vec<Extent>,
    space: &Space,
    mode: &Mode<'_>,
) -> Result<(), StoreError> {
    match mode {
        Mode::Live => space.free_shard(key, extents),
        Mode::Replay(_) => space.unclaim(&extents)?,
        // Nobody knows yet what is free.
        Mode::Mend(_) => {}
    }
    Ok(())
}

fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).expect("shards have few extents")
}
