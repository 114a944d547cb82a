//! Frees shards of blobs that no manifest names: what a crash left between the flush of shards and the commit.
//!
//! Runs once after each start, over the shards of earlier incarnations of this node on this core's devices. The
//! primary of the owner partition decides: it answers `live`, or first logs that blobs of those incarnations can never
//! be committed any more, and only then may the shard go. Age proves nothing.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use quarry_clustermap::{Incarnation, NodeId, PartitionId};
use quarry_object::{cluster::Cluster, metadata::Metadata};
use quarry_partition::command::{BlobStatus, Command, Reply};
use quarry_storage::store::ShardRow;

use crate::{
    cluster::NodeCluster,
    host::{CoreHost, DeviceHost},
    platform::Platform,
};

/// Shards looked at in one step.
const BATCH: usize = 256;
/// Pause before a partition that did not answer is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// Pause between steps, so that clients come first.
const BREATH: Duration = Duration::from_millis(1);

/// Runs to its end: all shards of incarnations before `current` have been decided.
pub(crate) async fn run<P: Platform>(
    host: Rc<CoreHost<P>>,
    cluster: Rc<NodeCluster<P>>,
    node: NodeId,
    current: Incarnation,
) {
    let Some(last_run) = current.0.checked_sub(1).map(Incarnation) else { return };
    let mut collector = Collector { cluster, node, last_run, revoked: BTreeSet::new(), freed: 0 };
    for (id, device) in host.devices() {
        tracing::debug!(event = "collector_started", device = %id);
        collector.device(device).await;
    }
    tracing::info!(event = "collector_done", freed = collector.freed);
}

struct Collector<P: Platform> {
    cluster: Rc<NodeCluster<P>>,
    node: NodeId,
    last_run: Incarnation,
    /// Partitions that have logged the revocation in this run.
    revoked: BTreeSet<PartitionId>,
    freed: u64,
}

impl<P: Platform> Collector<P> {
    async fn device(&mut self, device: &Rc<DeviceHost<P>>) {
        let mut after = None;
        loop {
            let rows = match device.store.shards(after, BATCH).await {
                Ok(rows) => rows,
                Err(error) => return tracing::error!(event = "collector_stopped", %error),
            };
            let Some(last) = rows.last() else { return };
            after = Some(last.key());
            for row in &rows {
                if row.blob.writer == self.node && row.blob.incarnation <= self.last_run {
                    self.decide(device, row).await;
                }
            }
            self.cluster.sleep(BREATH).await;
        }
    }

    async fn decide(&mut self, device: &Rc<DeviceHost<P>>, row: &ShardRow) {
        loop {
            match self.status(row).await {
                Some(BlobStatus::Live | BlobStatus::Unknown) => return,
                // Freed: on the free list, whose job it is; freeing twice does no harm.
                Some(BlobStatus::Freed | BlobStatus::Revoked) => {
                    // The group may have been sealed since: the device refuses older epochs than it has seen.
                    let epoch = row.epoch.max(device.store.pg_epoch(row.pg));
                    match device.store.free_shard(row.pg, epoch, row.blob, row.shard).await {
                        Ok(existed) => {
                            self.freed += u64::from(existed);
                            self.cluster.metrics().blobs_collected.inc_by(u64::from(existed));
                        }
                        Err(error) => tracing::warn!(event = "collect_failed", blob = %row.blob, %error),
                    }
                    return;
                }
                None => self.cluster.sleep(RETRY).await,
            }
        }
    }

    /// What the owner says; `None`: it could not be asked.
    async fn status(&mut self, row: &ShardRow) -> Option<BlobStatus> {
        let partition = row.owner_partition;
        let status = self.ask(partition, row).await?;
        if status != BlobStatus::Unknown || self.revoked.contains(&partition) {
            return Some(status);
        }
        let revoke = Command::RevokeWriter { writer: self.node, incarnation: self.last_run };
        self.cluster.execute(partition, revoke).await.ok()?;
        self.revoked.insert(partition);
        self.ask(partition, row).await
    }

    async fn ask(&self, partition: PartitionId, row: &ShardRow) -> Option<BlobStatus> {
        match self.cluster.execute(partition, Command::BlobStatus { blob: row.blob }).await {
            Ok(Reply::Blob(status)) => Some(status),
            Ok(_) | Err(_) => None,
        }
    }
}
