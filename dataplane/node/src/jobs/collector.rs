//! Frees shards of blobs that no manifest names: what a crash left between the flush of shards and the commit.
//!
//! Runs after each start of this node, and of any other, over the shards that earlier incarnations of the writers left
//! on this core's devices. The primary of the owner partition decides: it answers `live`, or first logs that blobs of
//! those incarnations can never be committed any more, and only then may the shard go. Age proves nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

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
/// Between looks for nodes that have started.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs to its end: all shards of incarnations before those of now have been decided. `current` is that of this node.
pub(crate) async fn run<P: Platform>(
    host: Rc<CoreHost<P>>,
    cluster: Rc<NodeCluster<P>>,
    node: NodeId,
    current: Incarnation,
) {
    let mut newest = incarnations(&cluster);
    newest.insert(node, current);
    pass(host, cluster, newest).await;
}

/// Runs for ever: after the first pass, one after each start of another node, whose run before may have left shards
/// here.
pub(crate) async fn follow<P: Platform>(
    host: Rc<CoreHost<P>>,
    cluster: Rc<NodeCluster<P>>,
    node: NodeId,
    current: Incarnation,
) {
    loop {
        let before = incarnations(&cluster);
        run(Rc::clone(&host), Rc::clone(&cluster), node, current).await;
        while incarnations(&cluster) == before {
            cluster.sleep(LOOK_EVERY).await;
        }
    }
}

/// The newest run of every node.
fn incarnations<P: Platform>(cluster: &NodeCluster<P>) -> BTreeMap<NodeId, Incarnation> {
    cluster.map().nodes.iter().map(|(node, entry)| (*node, entry.incarnation)).collect()
}

async fn pass<P: Platform>(
    host: Rc<CoreHost<P>>,
    cluster: Rc<NodeCluster<P>>,
    newest: BTreeMap<NodeId, Incarnation>,
) {
    let mut collector = Collector { cluster, newest, revoked: BTreeSet::new(), freed: 0 };
    for (id, device) in host.devices() {
        tracing::debug!(event = "collector_started", device = %id);
        collector.device(device).await;
    }
    tracing::info!(event = "collector_done", freed = collector.freed);
}

struct Collector<P: Platform> {
    cluster: Rc<NodeCluster<P>>,
    newest: BTreeMap<NodeId, Incarnation>,
    /// Partitions that have logged the revocation of a writer in this run.
    revoked: BTreeSet<(PartitionId, NodeId)>,
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
                if self.newest.get(&row.blob.writer).is_some_and(|newest| row.blob.incarnation < *newest) {
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
        let (partition, writer) = (row.owner_partition, row.blob.writer);
        let status = self.ask(partition, row).await?;
        if status != BlobStatus::Unknown || self.revoked.contains(&(partition, writer)) {
            return Some(status);
        }
        // Blobs of runs before the newest one are looked at only, so there is one before it.
        let incarnation = Incarnation(self.newest[&writer].0 - 1);
        self.cluster.execute(partition, Command::RevokeWriter { writer, incarnation }).await.ok()?;
        self.revoked.insert((partition, writer));
        self.ask(partition, row).await
    }

    async fn ask(&self, partition: PartitionId, row: &ShardRow) -> Option<BlobStatus> {
        match self.cluster.execute(partition, Command::BlobStatus { blob: row.blob }).await {
            Ok(Reply::Blob(status)) => Some(status),
            Ok(_) | Err(_) => None,
        }
    }
}
