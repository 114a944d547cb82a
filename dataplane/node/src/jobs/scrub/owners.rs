//! Every blob that a partition names: are all its shards where its group has them?

use std::{collections::BTreeMap, rc::Rc};

use quarry_clustermap::{DeviceId, PartitionId};
use quarry_object::{
    cluster::Cluster,
    peer::{LIST_SHARDS_MAX, PeerRequest, PeerResponse, ShardName},
    repair::{Budget, Suspect},
    stripe::{Layout, shard_index},
    transport::Address,
};
use quarry_partition::{
    BlobRef,
    command::{Segment, decode_row},
};

use crate::{cluster::NodeCluster, host::PartitionHost, platform::Platform};

/// Rows taken from the index at once: at most a few MiB, since an inline body has at most 128 KiB.
const BATCH: usize = 64;

/// What one device is asked.
type Asked = Vec<(ShardName, u64)>;

/// Looks up every shard of every blob of the partition; what is missing goes to the repair queue.
pub(super) async fn scrub<P: Platform>(
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    partition: &Rc<PartitionHost<P>>,
) {
    let mut from = Vec::new();
    let mut asked: BTreeMap<DeviceId, Asked> = BTreeMap::new();
    loop {
        let rows = match partition.committed_rows(&from, BATCH).await {
            Ok(rows) => rows,
            Err(error) => {
                return tracing::error!(event = "scrub_stopped", partition = %partition.partition(), %error);
            }
        };
        let Some((last, _)) = rows.last() else { break };
        from = [last, &[0][..]].concat();
        budget
            .spend(&**cluster, rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
            .await;
        for (key, value) in &rows {
            // What cannot be decoded is for fsck to tell; readers refuse it.
            let Ok(row) = decode_row(key, value) else { continue };
            for segment in row.segments() {
                if let Segment::Blob(blob) = segment {
                    expect(cluster, blob, &mut asked);
                }
            }
        }
        let full: Vec<DeviceId> = asked
            .iter()
            .filter(|(_, names)| names.len() >= LIST_SHARDS_MAX as usize / 2)
            .map(|(device, _)| *device)
            .collect();
        for device in full {
            let names = asked.remove(&device).unwrap_or_default();
            ask(cluster, partition.partition(), device, names).await;
        }
    }
    for (device, names) in asked {
        ask(cluster, partition.partition(), device, names).await;
    }
}

/// Adds the shards that a blob must have to what their devices are asked.
fn expect<P: Platform>(cluster: &NodeCluster<P>, blob: &BlobRef, asked: &mut BTreeMap<DeviceId, Asked>) {
    let map = cluster.map();
    let Some(group) = map.placement_groups.get(&blob.pg) else { return };
    let len = Layout::new(blob.profile, blob.size_bytes).shard_len_bytes();
    for (index, device) in group.members.iter().enumerate() {
        let shard = shard_index(index);
        // What moves is made whole by the move.
        let moving = group.rebuilding.contains_key(&shard.0);
        if blob.missing_shards & (1 << shard.0) == 0 && map.is_in(*device) && !moving {
            let name = ShardName { pg: blob.pg, blob: blob.blob, shard };
            asked.entry(*device).or_default().push((name, len));
        }
    }
}

async fn ask<P: Platform>(cluster: &Rc<NodeCluster<P>>, owner: PartitionId, device: DeviceId, shards: Asked) {
    for shards in shards.chunks(LIST_SHARDS_MAX as usize) {
        let names = shards.iter().map(|(name, _)| *name).collect();
        let answer = cluster.ask(Address::Device(device), PeerRequest::ShardLengths { names }).await;
        let Ok(PeerResponse::Lengths { lengths }) = answer else { continue };
        for ((name, len), found) in shards.iter().zip(lengths) {
            if found != Some(*len) {
                let ShardName { pg, blob, shard } = *name;
                tracing::warn!(event = "scrub_found_missing", %device, %pg, %blob, %shard, found, expected = len);
                cluster.metrics().scrub_damage.inc();
                cluster.repairs().push(Suspect { name: *name, owner: Some(owner) });
            }
        }
    }
}
