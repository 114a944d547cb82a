//! Frees the shards that a device holds of groups that it is no member of any more: its position was moved, or another
//! device took it while this one was away.
//!
//! Only groups that have settled are looked at: then the member that has the position now holds every blob that counts.
//! A shard that it does not hold is freed too, unless the owner says that the blob is live: then the copy here stays
//! until that one is made anew. Frees carry the epoch of the map that was looked at: once the device is a member again,
//! and fenced at a newer one, it refuses them. Shards of another position in a group that the device is a member of are
//! left to the scrub.

use std::{rc::Rc, time::Duration};

use quarry_clustermap::{BlobId, ClusterMap, DeviceId, MapVersion, PgState, PlacementGroup, ShardIndex};
use quarry_object::{
    cluster::Cluster,
    metadata::Metadata,
    peer::{PeerRequest, PeerResponse, ShardName},
    repair::Suspect,
    transport::Address,
};
use quarry_partition::command::{BlobStatus, Command, Reply};
use quarry_storage::store::{ShardKey, ShardRow};

use crate::{
    cluster::NodeCluster,
    host::{CoreHost, DeviceHost},
    platform::Platform,
};

/// Between looks; each new map is looked at until nothing is left to do.
const EVERY: Duration = Duration::from_secs(2);
/// Shards looked at in one step.
const BATCH: usize = 256;

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(host: Rc<CoreHost<P>>, cluster: Rc<NodeCluster<P>>) {
    let mut done: Option<MapVersion> = None;
    loop {
        cluster.sleep(EVERY).await;
        let map = cluster.map();
        if done == Some(map.version) {
            continue;
        }
        let mut all = true;
        for (id, device) in host.devices() {
            let look = Look { cluster: &cluster, map: &map, id, device };
            all &= look.run().await;
        }
        if all {
            done = Some(map.version);
        }
    }
}

struct Look<'l, P: Platform> {
    cluster: &'l Rc<NodeCluster<P>>,
    map: &'l ClusterMap,
    id: DeviceId,
    device: &'l Rc<DeviceHost<P>>,
}

impl<P: Platform> Look<'_, P> {
    /// `false`: something is left for the next look.
    async fn run(&self) -> bool {
        let (mut after, mut all) = (None, true);
        loop {
            // A failed device is not looked at again.
            let Ok(rows) = self.device.store.shards(after, BATCH).await else { return true };
            let Some(first) = rows.first() else { return all };
            let pg = first.pg;
            match self.map.placement_groups.get(&pg).filter(|group| self.is_stray(group)) {
                Some(group) => {
                    for row in rows.iter().take_while(|row| row.pg == pg) {
                        all &= self.decide(group, row).await;
                        after = Some(row.key());
                    }
                }
                None => {
                    let blob = BlobId::from_bytes([0xff; BlobId::ENCODED_BYTES]);
                    after = Some(ShardKey { pg, blob, shard: ShardIndex(u8::MAX) });
                }
            }
        }
    }

    fn is_stray(&self, group: &PlacementGroup) -> bool {
        group.state != PgState::Moving && !group.members.contains(&self.id)
    }

    async fn decide(&self, group: &PlacementGroup, row: &ShardRow) -> bool {
        let Some(right) = group.holder(self.map, row.shard.0) else { return false };
        let name = ShardName { pg: row.pg, blob: row.blob, shard: row.shard };
        let asked = PeerRequest::ShardLengths { names: vec![name] };
        match self.cluster.ask(Address::Device(right), asked).await {
            Ok(PeerResponse::Lengths { lengths }) if matches!(lengths[..], [Some(_)]) => {}
            Ok(PeerResponse::Lengths { .. }) => {
                let status = Command::BlobStatus { blob: row.blob };
                match self.cluster.execute(row.owner_partition, status).await {
                    Ok(Reply::Blob(BlobStatus::Live)) => {
                        self.cluster.repairs().push(Suspect { name, owner: Some(row.owner_partition) });
                        return false;
                    }
                    Ok(Reply::Blob(_)) => {}
                    Ok(_) | Err(_) => return false,
                }
            }
            Ok(_) | Err(_) => return false,
        }
        match self.device.store.free_shard(row.pg, group.epoch, row.blob, row.shard).await {
            Ok(_) => {
                tracing::debug!(event = "stray_freed", device = %self.id, blob = %row.blob, shard = %row.shard);
                self.cluster.metrics().strays_freed.inc();
                true
            }
            // A newer map has it as a member again, or the device failed: the next map is looked at.
            Err(error) => {
                tracing::debug!(event = "stray_not_freed", device = %self.id, blob = %row.blob, %error);
                true
            }
        }
    }
}
