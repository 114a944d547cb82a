//! Frees the shards of blobs that a delete or overwrite put on a partition's free list.
//!
//! An entry leaves the list only when every member of its placement group has confirmed, or is no longer in the map;
//! a member that is out is asked again when it is back. So space of what was deleted comes back, and a crash at any
//! point only repeats a free that is idempotent.

use std::{rc::Rc, time::Duration};

use futures::future::join_all;
use quarry_clustermap::ClusterMap;
use quarry_object::cluster::Cluster;
use quarry_partition::{
    BlobRef,
    command::{Command, Reply},
};

use crate::{
    cluster::NodeCluster,
    host::{CoreHost, PartitionHost},
    platform::Platform,
};

/// Pause between rounds in which nothing was to be done.
const IDLE: Duration = Duration::from_millis(250);
/// Every so many idle rounds all partitions are looked at, also those that report nothing new.
const FULL_ROUND: u32 = 120;
/// Blobs freed together.
const BATCH: u32 = 64;
/// Freed answers and uploads forgotten in one step.
const EXPIRE_BATCH: u32 = 500;

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(host: Rc<CoreHost<P>>, cluster: Rc<NodeCluster<P>>) {
    let mut round = 0_u32;
    loop {
        let full = round.is_multiple_of(FULL_ROUND);
        for partition in host.primaries() {
            if partition.take_freed_something() || full {
                if !drain(&partition, &cluster).await {
                    partition.set_freed_something();
                }
                if full {
                    expire(&partition).await;
                }
            }
        }
        round = round.wrapping_add(1);
        cluster.sleep(IDLE).await;
    }
}

/// Works a partition's free list off; `false`: something could not be freed now.
async fn drain<P: Platform>(partition: &Rc<PartitionHost<P>>, cluster: &Rc<NodeCluster<P>>) -> bool {
    let mut after = None;
    let mut complete = true;
    loop {
        let Ok(Reply::Blobs { blobs, truncated }) =
            partition.execute(&Command::FreeListNext { after, limit: BATCH }).await
        else {
            return false;
        };
        after = blobs.last().map(|blob| blob.blob);
        let freed: Vec<_> = join_all(blobs.iter().map(|blob| free(cluster, blob))).await;
        let done: Vec<_> =
            blobs.iter().zip(&freed).filter(|(_, freed)| **freed).map(|(blob, _)| blob.blob).collect();
        complete &= done.len() == blobs.len();
        if !done.is_empty() {
            let count = done.len() as u64;
            if partition.execute(&Command::Freed { blobs: done }).await.is_err() {
                return false;
            }
            cluster.metrics().blobs_freed.inc_by(count);
        }
        if !truncated {
            return complete;
        }
    }
}

/// Frees all shards of a blob; `true` when every member that still counts has confirmed.
async fn free<P: Platform>(cluster: &Rc<NodeCluster<P>>, blob: &BlobRef) -> bool {
    if cluster.reads().contains(blob.blob) {
        return false;
    }
    let map: Rc<ClusterMap> = cluster.map();
    // A group that is gone from the map has no members any more, and so no shards.
    let Some(group) = map.placement_groups.get(&blob.pg) else { return true };
    let members = group.members.iter().zip(0_u8..);
    let asked = members.filter(|(device, _)| map.devices.contains_key(device)).map(|(device, index)| {
        let shard = quarry_clustermap::ShardIndex(index);
        cluster.free_shard(*device, blob.pg, group.epoch, blob.blob, shard)
    });
    join_all(asked).await.into_iter().all(|result| result.is_ok())
}

async fn expire<P: Platform>(partition: &Rc<PartitionHost<P>>) {
    while let Ok(Reply::More(true)) = partition.execute(&Command::Expire { limit: EXPIRE_BATCH }).await {}
}
