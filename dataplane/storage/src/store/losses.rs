//! What mending could not keep, until somebody has made it good.
//!
//! | loss | mark | ends with |
//! |---|---|---|
//! | a partition's rows or log | version 2 of its row in table 03 | its reset |
//! | partitions nobody can name: rows of table 03 are gone | a row of table 04: who lies in it and has no row in table 03 | each with its reset |
//! | shards | a device-local row | [`Store::shards_checked`] |
//!
//! A lost partition is empty here and refuses entries, but knows its epoch if that could be read; a reset that was
//! acknowledged ends the loss also if the mark is older than it.

use std::collections::BTreeSet;

use bytes::Bytes;
use quarry_clustermap::PartitionId;

use super::Store;
use super::StoreError;
use crate::device::Device;
use crate::format::record::Record;
use crate::format::rows;
use crate::journal::{Class, Subject};

/// What is not on a device though it should be.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Losses {
    /// Partitions whose rows here are lost, now or before an earlier start, and that were not reset since. After the
    /// loss of log rows it holds every partition that may have been here, also some that never were.
    pub lost_partitions: BTreeSet<PartitionId>,
    /// Shards may be missing, or be former states of what peers know; nobody has compared since.
    pub shards_incomplete: bool,
    /// This start had to mend.
    pub mended: bool,
}

impl<D: Device + 'static> Store<D> {
    /// What was lost and not made good yet.
    #[must_use]
    pub fn losses(&self) -> Losses {
        let core = self.0.core.borrow();
        let lost = core.logs.iter().filter(|(_, log)| log.lost).map(|(&partition, _)| partition);
        let mut lost_partitions: BTreeSet<PartitionId> = lost.collect();
        for (first, last) in &core.lost_ranges {
            let unknown = (first.0..=last.0).map(PartitionId).filter(|n| !core.logs.contains_key(n));
            lost_partitions.extend(unknown);
        }
        let shards_incomplete = self.0.shards_incomplete.get();
        Losses { lost_partitions, shards_incomplete, mended: self.0.mended }
    }

    /// Whether a partition is lost: as [`Losses::lost_partitions`], without the set.
    #[must_use]
    pub fn is_lost(&self, partition: PartitionId) -> bool {
        let core = self.0.core.borrow();
        core.logs.get(&partition).map_or_else(|| core.lost_unless_known(partition), |log| log.lost)
    }

    /// A page or value of the index was found damaged: the next start with [`super::Mend::WhenDamaged`] surveys all of it
    /// and mends. Durable when Ok.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`], or the store is not serving.
    pub async fn mark_index_damaged(&self) -> Result<(), StoreError> {
        let inner = &self.0;
        inner.check_serving()?;
        let name = rows::INDEX_DAMAGED.to_owned();
        let record = Record::LocalPut { name, value: Bytes::from_static(&[1]) };
        inner.journal(record, Subject::Local, Class::Privileged, None)?.wait().await
    }

    /// The device's shards were compared with what peers know: they are complete again. Durable when Ok.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`], or the store is not serving.
    pub async fn shards_checked(&self) -> Result<(), StoreError> {
        let inner = &self.0;
        inner.check_serving()?;
        if !inner.shards_incomplete.get() {
            return Ok(());
        }
        let name = rows::SHARDS_INCOMPLETE.to_owned();
        let record = Record::LocalPut { name, value: Bytes::from_static(&[0]) };
        inner.journal(record, Subject::Local, Class::Privileged, None)?.wait().await?;
        inner.shards_incomplete.set(false);
        Ok(())
    }
}
