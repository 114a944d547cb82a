//! Partition logs: append, apply, truncate, reset, epochs.

use quarry_clustermap::{Epoch, PartitionId, Sequence};

use super::{LogEntry, Mutation, RecoveredLog, Store, StoreError};
use crate::device::Device;
use crate::format::record::Record;
use crate::journal::{Class, Subject};

impl<D: Device + 'static> Store<D> {
    /// Appends an entry under the epoch in force (the entry's own may be lower: a new primary sends what an older
    /// one proposed); durable when Ok. Sequences are dense. The entry takes its place at the first poll: many calls
    /// may be under way at once.
    ///
    /// # Errors
    /// [`StoreError::StaleEpoch`], [`StoreError::OutOfSequence`],
    /// [`StoreError::PartitionLost`], [`StoreError::RecordTooLarge`], [`StoreError::Overloaded`], or the store is not
    /// serving.
    ///
    /// # Panics
    /// If the entry's epoch is above the one in force.
    pub async fn append(&self, in_force: Epoch, entry: LogEntry) -> Result<(), StoreError> {
        let inner = &self.0;
        inner.check_serving()?;
        let LogEntry { partition, epoch, sequence, .. } = entry;
        assert!(epoch <= in_force, "an entry is never newer than the epoch in force");
        let ticket = {
            let mut core = inner.core.borrow_mut();
            core.fence_partition(partition, in_force)?;
            let log = core.log_mut(partition);
            if log.refuses {
                return Err(StoreError::PartitionLost { partition });
            }
            let expected = log.last.next();
            if sequence != expected {
                return Err(StoreError::OutOfSequence { partition, expected, given: sequence });
            }
            let record = Record::LogAppend { in_force, entry };
            let ticket = inner.journal(record, Subject::Partition(partition), Class::Ordinary, None)?;
            log.last = sequence;
            ticket
        };
        ticket.wait().await
    }

    /// Entries up to `through` are committed: their mutations, in order, become rows. In memory at once; durable
    /// with the next checkpoint, before which the log itself holds them. Repeating it does nothing, nor does applying
    /// to a lost partition.
    pub fn apply(&self, partition: PartitionId, through: Sequence, mutations: Vec<Mutation>) {
        self.0.core.borrow_mut().apply(partition, through, mutations);
        // Room for uncommitted entries may have come back, or the overlay may be full.
        self.0.work.notify(usize::MAX);
    }

    /// Rolls back entries after `after`; durable when Ok.
    ///
    /// # Errors
    /// [`StoreError::StaleEpoch`], [`StoreError::TruncatesApplied`], [`StoreError::PartitionLost`], or the store is not
    /// serving.
    pub async fn truncate(
        &self,
        partition: PartitionId,
        epoch: Epoch,
        after: Sequence,
    ) -> Result<(), StoreError> {
        let inner = &self.0;
        inner.check_serving()?;
        let ticket = {
            let mut core = inner.core.borrow_mut();
            core.fence_partition(partition, epoch)?;
            let log = core.log_mut(partition);
            if log.refuses {
                return Err(StoreError::PartitionLost { partition });
            }
            if after < log.applied {
                return Err(StoreError::TruncatesApplied { partition, after, applied: log.applied });
            }
            let record = Record::LogTruncate { partition, epoch, after };
            let ticket = inner.journal(record, Subject::Partition(partition), Class::Privileged, None)?;
            log.last = log.last.min(after);
            ticket
        };
        ticket.wait().await
    }

    /// Wipes a partition's rows and log, for a joiner that gets everything anew; durable when Ok. The log then
    /// stands at `base`, all of it applied. A lost partition is lost no more.
    ///
    /// # Errors
    /// [`StoreError::StaleEpoch`], or the store is not serving.
    pub async fn reset(
        &self,
        partition: PartitionId,
        epoch: Epoch,
        base: Sequence,
    ) -> Result<(), StoreError> {
        let inner = &self.0;
        inner.check_serving()?;
        let ticket = {
            let mut core = inner.core.borrow_mut();
            core.fence_partition(partition, epoch)?;
            let record = Record::LogReset { partition, epoch, base };
            let ticket = inner.journal(record, Subject::Partition(partition), Class::Privileged, None)?;
            let log = core.log_mut(partition);
            (log.last, log.refuses) = (base, false);
            ticket
        };
        ticket.wait().await
    }

    /// Lower epochs of the partition are refused from now on; durable when Ok.
    ///
    /// # Errors
    /// [`StoreError::StaleEpoch`], or the store is not serving.
    pub async fn raise_partition_epoch(
        &self,
        partition: PartitionId,
        epoch: Epoch,
    ) -> Result<(), StoreError> {
        let inner = &self.0;
        inner.check_serving()?;
        inner.core.borrow_mut().fence_partition(partition, epoch)?;
        let record = Record::PartitionEpoch { partition, epoch };
        inner.journal(record, Subject::Partition(partition), Class::Privileged, None)?.wait().await
    }

    /// What the device knows of a partition's log: durable entries only. Of a lost one it knows at most the epoch.
    #[must_use]
    pub fn recovered_log(&self, partition: PartitionId) -> RecoveredLog {
        self.0.core.borrow().logs.get(&partition).map(super::core::Log::recovered).unwrap_or_default()
    }

    /// Whether anything of a partition is here: applied rows, or entries that wait.
    #[must_use]
    pub fn has_rows(&self, partition: PartitionId) -> bool {
        let core = self.0.core.borrow();
        core.logs.get(&partition).is_some_and(|log| log.applied > Sequence(0) || !log.tail.is_empty())
    }

    /// Every partition that has a log here.
    #[must_use]
    pub fn partitions(&self) -> Vec<PartitionId> {
        self.0.core.borrow().logs.keys().copied().collect()
    }
}
