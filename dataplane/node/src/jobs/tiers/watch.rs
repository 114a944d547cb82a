//! What a core sees of reads, as the primary of its partitions: which versions are read how often, and which of them
//! lie on the cold tier. Only while the policy is on.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use quarry_clustermap::{BucketId, ClusterMap, PartitionId, Tier};
use quarry_object::tier::tier_of_blob;
use quarry_partition::command::{Manifest, Segment, VersionId};

use super::access::{Access, AccessTable, VersionHash};

/// Versions on cold that were read, until the next look at them.
const COLD_MAX: usize = 4096;

/// Names a version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct VersionName {
    pub(crate) partition: PartitionId,
    pub(crate) bucket: BucketId,
    pub(crate) key: String,
    pub(crate) version_ms: u64,
}

impl VersionName {
    pub(crate) fn hash(&self) -> VersionHash {
        VersionHash::of(self.bucket, &self.key, self.version_ms)
    }
}

/// See the module.
pub(crate) struct Watch {
    is_on: Cell<bool>,
    table: RefCell<AccessTable>,
    cold: RefCell<BTreeMap<VersionName, VersionId>>,
    /// Since when reads of a partition come here, Unix milliseconds.
    since_ms: RefCell<BTreeMap<PartitionId, u64>>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            is_on: Cell::new(false),
            table: RefCell::new(AccessTable::new()),
            cold: RefCell::default(),
            since_ms: RefCell::default(),
        }
    }

    /// Starts and stops watching; what was seen is forgotten at the end.
    pub(crate) fn set_on(&self, is_on: bool) {
        if self.is_on.replace(is_on) && !is_on {
            self.table.borrow_mut().clear();
            self.cold.borrow_mut().clear();
            self.since_ms.borrow_mut().clear();
        }
    }

    /// Which partitions are served here now.
    pub(crate) fn set_partitions(&self, partitions: &[PartitionId], now_ms: u64) {
        let mut since_ms = self.since_ms.borrow_mut();
        since_ms.retain(|partition, _| partitions.contains(partition));
        for partition in partitions {
            since_ms.entry(*partition).or_insert(now_ms);
        }
    }

    /// A client reads a version. Costs a look into the table; nothing is written.
    pub(crate) fn read(
        &self,
        (partition, bucket, key): (PartitionId, BucketId, &str),
        manifest: &Manifest,
        map: &ClusterMap,
        now_ms: u64,
    ) {
        if !self.is_on.get() {
            return;
        }
        let Some(Segment::Blob(blob)) = manifest.segments.first() else { return };
        let version_ms = manifest.last_modified_ms;
        self.table.borrow_mut().touch(VersionHash::of(bucket, key, version_ms), now_ms);
        let mut cold = self.cold.borrow_mut();
        if tier_of_blob(map, blob) == Some(Tier::Cold) && cold.len() < COLD_MAX {
            let name = VersionName { partition, bucket, key: key.to_owned(), version_ms };
            cold.insert(name, manifest.version_id());
        }
    }

    /// What is known of a version.
    pub(crate) fn access(&self, name: &VersionName, now_ms: u64) -> Option<Access> {
        self.table.borrow().of(name.hash(), now_ms)
    }

    /// Since when a partition is watched.
    pub(crate) fn since_ms(&self, partition: PartitionId) -> Option<u64> {
        self.since_ms.borrow().get(&partition).copied()
    }

    /// Versions on cold that are read so often (decayed, an hour) or more; the others are forgotten.
    pub(crate) fn cold_read(&self, reads_per_hour: f64, now_ms: u64) -> Vec<(VersionName, VersionId)> {
        let mut cold = self.cold.borrow_mut();
        let table = self.table.borrow();
        let often = |name: &VersionName| {
            table.of(name.hash(), now_ms).is_some_and(|access| access.reads_per_hour >= reads_per_hour)
        };
        // One that is read too seldom comes back with its next read.
        cold.retain(|name, _| often(name));
        cold.iter().map(|(name, id)| (name.clone(), *id)).collect()
    }

    /// A version does not lie on cold any more, or is gone.
    pub(crate) fn forget_cold(&self, name: &VersionName) {
        self.cold.borrow_mut().remove(name);
    }

    /// Versions watched, and the memory that takes.
    pub(crate) fn size(&self) -> (u64, u64) {
        self.table.borrow().size()
    }
}
