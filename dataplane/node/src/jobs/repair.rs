//! Makes shards anew: those on the node's repair queue, and those that degraded blobs lack.
//!
//! A degraded blob was committed short, with its missing shards in the manifest; its partition keeps it on an ordered
//! set until the repair is durable, so this work survives restarts. Each core repairs for the partitions whose primaries
//! it has, and takes from the queue of the node whenever it has nothing else to do.

use std::{rc::Rc, time::Duration};

use quarry_clustermap::{BlobId, PartitionId, ShardIndex};
use quarry_object::{
    cluster::Cluster,
    metadata::Metadata,
    peer::ShardName,
    repair::{Budget, Owners, Ownership, RepairError, Repaired, Suspect, repair_shard},
};
use quarry_partition::{
    BlobRef,
    command::{BlobStatus, Command, Reply},
};

use crate::{
    cluster::NodeCluster,
    host::{CoreHost, PartitionHost},
    metrics::ShortBlobs,
    platform::Platform,
};

/// Pause when nothing is to be done.
const IDLE: Duration = Duration::from_millis(250);
/// Every so many idle rounds the degraded sets are looked at.
const DEGRADED_ROUNDS: u32 = 20;
/// Degraded blobs looked at in one step.
const BATCH: u32 = 64;

/// Asks the primaries of owner partitions.
pub(crate) struct Primaries<'c, P: Platform>(pub(crate) &'c NodeCluster<P>);

impl<P: Platform> Owners for Primaries<'_, P> {
    async fn ownership(&self, owner: PartitionId, blob: BlobId) -> Option<Ownership> {
        match self.0.execute(owner, Command::BlobStatus { blob }).await {
            Ok(Reply::Blob(BlobStatus::Live)) => Some(Ownership::Live),
            // If its commit never comes, the collector frees this shard with the others.
            Ok(Reply::Blob(BlobStatus::Unknown)) => Some(Ownership::Pending),
            Ok(Reply::Blob(BlobStatus::Freed | BlobStatus::Revoked)) => Some(Ownership::Gone),
            Ok(_) | Err(_) => None,
        }
    }
}

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(host: Rc<CoreHost<P>>, cluster: Rc<NodeCluster<P>>, budget: Rc<Budget>) {
    let mut round = 0_u32;
    loop {
        if round.is_multiple_of(DEGRADED_ROUNDS) {
            let mut short = ShortBlobs::default();
            for partition in host.primaries() {
                degraded(&partition, &cluster, &budget, &mut short).await;
            }
            cluster.metrics().set_short_blobs(cluster.core().0, short);
        }
        while let Some(suspect) = cluster.repairs().take(cluster.monotonic()) {
            queued(&cluster, &budget, suspect).await;
        }
        round = round.wrapping_add(1);
        cluster.sleep(IDLE).await;
    }
}

/// Repairs one shard and says what came of it.
pub(crate) async fn repair<P: Platform>(
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    suspect: Suspect,
) -> Result<Repaired, RepairError> {
    let result = repair_shard(cluster, &Primaries(cluster), budget, suspect).await;
    let metrics = cluster.metrics();
    match result {
        Ok(Repaired::Rebuilt { bytes }) => {
            metrics.shards_rebuilt.inc();
            metrics.rebuilt_bytes.inc_by(bytes);
        }
        Ok(Repaired::Healthy | Repaired::Gone)
        | Err(RepairError::Unavailable | RepairError::DeviceOut | RepairError::Full) => {}
        Err(error @ (RepairError::Lost { .. } | RepairError::Contradiction)) => {
            metrics.shards_lost.inc();
            let ShardName { pg, blob, shard } = suspect.name;
            tracing::error!(event = "shard_not_repairable", %pg, %blob, %shard, %error);
        }
    }
    result
}

async fn queued<P: Platform>(cluster: &Rc<NodeCluster<P>>, budget: &Budget, suspect: Suspect) {
    let name = suspect.name;
    match repair(cluster, budget, suspect).await {
        // A device that comes back is scrubbed.
        Ok(_) | Err(RepairError::DeviceOut) => cluster.repairs().done(name),
        Err(RepairError::Lost { .. } | RepairError::Contradiction) => cluster.repairs().lost(name),
        Err(error @ (RepairError::Unavailable | RepairError::Full)) => {
            let ShardName { pg, blob, shard } = name;
            let again = cluster.repairs().failed(suspect, cluster.monotonic());
            tracing::debug!(event = "repair_failed", %pg, %blob, %shard, %error, again);
        }
    }
}

/// Works the degraded set of a partition off as far as the devices are there.
async fn degraded<P: Platform>(
    partition: &Rc<PartitionHost<P>>,
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    short: &mut ShortBlobs,
) {
    let mut after = None;
    loop {
        let next = Command::DegradedNext { after, limit: BATCH };
        let Ok(Reply::Blobs { blobs, truncated }) = partition.execute(&next).await else { return };
        after = blobs.last().map(|blob| blob.blob);
        for blob in &blobs {
            short.add(complete(partition, cluster, budget, blob).await);
        }
        if !truncated {
            return;
        }
    }
}

/// Makes the shards that a blob lacks, and takes those that are durable off its manifest; returns those that it still
/// lacks, a bit for each.
async fn complete<P: Platform>(
    partition: &Rc<PartitionHost<P>>,
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    blob: &BlobRef,
) -> u32 {
    let mut missing = blob.missing_shards;
    for index in (0..u8::try_from(blob.profile.total()).expect("a profile has few shards")).map(ShardIndex) {
        let bit = 1 << index.0;
        if missing & bit == 0 {
            continue;
        }
        let name = ShardName { pg: blob.pg, blob: blob.blob, shard: index };
        let suspect = Suspect { name, owner: Some(partition.partition()) };
        match repair(cluster, budget, suspect).await {
            Ok(Repaired::Rebuilt { .. } | Repaired::Healthy) => missing &= !bit,
            Ok(Repaired::Gone) => return 0,
            Err(_) => {}
        }
    }
    if missing != blob.missing_shards {
        let repaired = Command::Repaired { blob: blob.blob, missing_shards: missing };
        if let Err(error) = partition.execute(&repaired).await {
            tracing::debug!(event = "repair_not_recorded", blob = %blob.blob, %error);
        }
    }
    missing
}
