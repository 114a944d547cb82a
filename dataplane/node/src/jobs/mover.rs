//! Fills the new members of groups that move: a device was replaced, and its shards are made anew from the others.
//!
//! Order:
//! 1. every member that is in is fenced at the group's epoch: what older writers had acknowledged is listed from then
//!    on, what they had not is refused;
//! 2. the members' shard lists are merged, never manifests: also a blob whose commit is under way gets its shard;
//! 3. each position to rebuild of each blob is repaired; when all are, the control plane is told, and the group opens.
//!
//! Nothing is kept between runs: a restart begins again, and skips what is whole.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use quarry_clustermap::{
    BlobId, ClusterMap, DeviceId, PartitionId, PgId, PgState, PlacementGroup, ShardIndex,
};
use quarry_object::{
    cluster::Cluster,
    peer::{LIST_SHARDS_MAX, PeerFault, PeerRequest, PeerResponse, ShardEntry, ShardName},
    repair::{Budget, RepairError, Suspect},
    stripe::shard_index,
    transport::Address,
};

use super::repair::repair;
use crate::{cluster::NodeCluster, platform::Platform};

/// Between looks for groups that move, and between attempts.
const EVERY: Duration = Duration::from_secs(1);

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(cluster: Rc<NodeCluster<P>>, budget: Rc<Budget>) {
    let (core, cores) = cluster.core();
    loop {
        let map = cluster.map();
        // One core of the node that has the first position to rebuild.
        let mine = |pg: &PgId, group: &PlacementGroup| {
            let position = group.rebuilding.keys().next().map(|position| usize::from(*position));
            let device = position.and_then(|position| group.members.get(position));
            pg.0 as usize % cores == core && device.is_some_and(|device| cluster.has(*device))
        };
        let moving = map
            .placement_groups
            .iter()
            .filter(|(pg, group)| group.state == PgState::Moving && mine(pg, group));
        for (pg, group) in moving {
            let group_move = Move { cluster: &cluster, budget: &budget, map: &map, pg: *pg, group };
            match group_move.run().await {
                Ok(()) => {
                    tracing::info!(event = "group_moved", %pg, epoch = %group.epoch);
                    if let Err(error) = cluster.control().controller().group_moved(*pg, group.epoch).await {
                        tracing::warn!(event = "group_move_not_reported", %pg, %error);
                    }
                }
                Err(reason) => tracing::debug!(event = "group_still_moving", %pg, %reason),
            }
        }
        cluster.sleep(EVERY).await;
    }
}

/// Why a group is not whole yet; it is tried again.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    #[error("{device} does not answer: {fault}")]
    Member { device: DeviceId, fault: PeerFault },
    #[error("{failed} shards could not be repaired, among them {}: {error}", name.blob)]
    Shards { failed: u64, name: ShardName, error: RepairError },
    #[error("the map has changed")]
    Changed,
}

struct Move<'m, P: Platform> {
    cluster: &'m Rc<NodeCluster<P>>,
    budget: &'m Budget,
    map: &'m ClusterMap,
    pg: PgId,
    group: &'m PlacementGroup,
}

impl<P: Platform> Move<'_, P> {
    async fn run(&self) -> Result<(), NotYet> {
        let members = self.group.members.iter().enumerate();
        let members: Vec<(ShardIndex, DeviceId)> = members
            .filter(|(_, device)| self.map.is_in(**device))
            .map(|(index, device)| (shard_index(index), *device))
            .collect();
        for (_, device) in &members {
            let fence = PeerRequest::FenceGroup { pg: self.pg, epoch: self.group.epoch };
            self.ask(*device, fence).await?;
        }
        let mut lists = Vec::new();
        for (_, device) in &members {
            lists.push(Listing { device: *device, page: Vec::new(), after: None, ended: false });
        }
        let mut failed: Option<(u64, ShardName, RepairError)> = None;
        while let Some((blob, owner)) = self.next_blob(&mut lists).await? {
            if self.cluster.map().placement_groups.get(&self.pg) != Some(self.group) {
                return Err(NotYet::Changed);
            }
            for position in self.group.rebuilding.keys() {
                let name = ShardName { pg: self.pg, blob, shard: ShardIndex(*position) };
                if let Err(error) = self.fill(name, owner).await {
                    let count = failed.map_or(1, |(count, ..)| count + 1);
                    failed = Some((count, name, error));
                }
            }
        }
        failed.map_or(Ok(()), |(failed, name, error)| Err(NotYet::Shards { failed, name, error }))
    }

    /// What is lost for good keeps no group from being whole: it is reported, and the scrub reports it again.
    async fn fill(&self, name: ShardName, owner: PartitionId) -> Result<(), RepairError> {
        match repair(self.cluster, self.budget, Suspect { name, owner: Some(owner) }).await {
            Ok(_) | Err(RepairError::Lost { .. } | RepairError::Contradiction) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn ask(&self, device: DeviceId, request: PeerRequest) -> Result<PeerResponse, NotYet> {
        let answer = self.cluster.ask(Address::Device(device), request).await;
        answer.map_err(|fault| NotYet::Member { device, fault })
    }

    /// The next blob that any member lists.
    async fn next_blob(&self, lists: &mut [Listing]) -> Result<Option<(BlobId, PartitionId)>, NotYet> {
        let mut heads: BTreeMap<BlobId, PartitionId> = BTreeMap::new();
        for list in &mut *lists {
            if list.page.is_empty() && !list.ended {
                let list_shards =
                    PeerRequest::ListShards { pg: self.pg, after: list.after, limit: LIST_SHARDS_MAX };
                let PeerResponse::Shards { mut shards } = self.ask(list.device, list_shards).await? else {
                    let fault = PeerFault::Damaged { detail: "an unexpected answer".into() };
                    return Err(NotYet::Member { device: list.device, fault });
                };
                list.after = shards.last().map(|last| (last.blob, last.shard)).or(list.after);
                list.ended = shards.is_empty();
                shards.reverse();
                list.page = shards;
            }
            if let Some(head) = list.page.last() {
                heads.insert(head.blob, head.owner);
            }
        }
        let Some((blob, owner)) = heads.pop_first() else { return Ok(None) };
        for list in lists {
            while list.page.last().is_some_and(|head| head.blob == blob) {
                list.page.pop();
            }
        }
        Ok(Some((blob, owner)))
    }
}

/// The shards of one member, page by page.
struct Listing {
    device: DeviceId,
    /// What is left of the page, last first.
    page: Vec<ShardEntry>,
    after: Option<(BlobId, ShardIndex)>,
    ended: bool,
}
