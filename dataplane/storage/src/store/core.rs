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
use crate::format::record::Record;
use crate::format::rows::{self, LogRowV1, ShardRowV1};

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
    /// Bytes of all tails.
    pub(super) tail_bytes: usize,
}

fn entry_bytes(entry: &LogEntry) -> usize {
    entry.payload.len() + ENTRY_OVERHEAD_BYTES
}

impl Core {
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
                let log = self.logs.entry(partition).or_default();
                let gone = log.tail.split_off(&after.next());
                self.tail_bytes -= gone.values().map(entry_bytes).sum::<usize>();
                if let Mode::Replay(_) = mode {
                    log.last = log.last.min(after);
                }
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
        let log = self.logs.entry(partition).or_default();
        log.last = log.last.max(entry.sequence);
        if entry.sequence <= log.applied {
            return Ok(());
        }
        self.tail_bytes += entry_bytes(&entry);
        let replaced = log.tail.insert(entry.sequence, entry);
        self.tail_bytes -= replaced.as_ref().map_or(0, entry_bytes);
        if let Mode::Replay(decode) = mode {
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
            let log = self.logs.entry(partition).or_default();
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
        let log = self.logs.entry(partition).or_default();
        if through <= log.applied {
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
        let log = self.logs.entry(partition).or_default();
        let gone = std::mem::take(&mut log.tail);
        self.tail_bytes -= gone.values().map(entry_bytes).sum::<usize>();
        log.applied = base;
        if let Mode::Replay(_) = mode {
            log.last = base;
        }
        log.fence.seen = log.fence.seen.max(epoch);
        log.fence.recorded = log.fence.recorded.max(epoch);
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
        let log = self.logs.entry(partition).or_default();
        log.fence.seen = log.fence.seen.max(epoch);
        if epoch > log.fence.recorded {
            log.fence.recorded = epoch;
            self.record_log(partition);
        }
    }

    /// Puts the row that says what the rows of a partition contain.
    fn record_log(&mut self, partition: PartitionId) {
        let log = self.logs.entry(partition).or_default();
        let row = LogRowV1 { epoch: log.fence.recorded, applied: log.applied };
        self.active.put(rows::log_key(partition), Some(rows::encode_log(row)));
    }

    /// What memory says about a key; `None` means: ask the index.
    pub(super) fn overlay_get(&self, key: &[u8]) -> Option<Option<bytes::Bytes>> {
        self.active.get(key).or_else(|| self.frozen.as_ref()?.get(key))
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
        let log = self.logs.entry(partition).or_default();
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
    }
    Ok(())
}

fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).expect("shards have few extents")
}
