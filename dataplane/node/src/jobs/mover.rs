//! Fills the new members of groups that move: from the device that had the position before if that is in, else from the
//! others. Of several groups, those go first that can least afford another loss.
//!
//! Order:
//! 1. every member, and former member of a position that moves, that is in is fenced at the group's epoch: what older writers had acknowledged is listed from then
//!    on, what they had not is refused;
//! 2. the members' shard lists are merged, never manifests: also a blob whose commit is under way gets its shard;
//! 3. each position to rebuild of each blob is repaired; when all are, the control plane is told, and the group opens.
//!
//! Nothing is kept between runs: a restart begins again, and skips what is whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use quarry_clustermap::{
    BlobId, ClusterMap, DeviceId, JobKind, PartitionId, PgId, PgState, PlacementGroup, ShardIndex,
};
use quarry_object::{
    cluster::Cluster,
    peer::{LIST_SHARDS_MAX, PeerFault, PeerRequest, PeerResponse, ShardEntry, ShardName},
    repair::{Budget, RepairError, Suspect},
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
        budget.set(map.operations.bytes_per_second.map(|bytes| bytes / cores as u64));
        let held = |group: &PlacementGroup| map.operations.paused.contains(&job_of(&map, group));
        let mut moving: Vec<(&PgId, &PlacementGroup)> = map
            .placement_groups
            .iter()
            .filter(|(pg, group)| group.state == PgState::Moving && mine(pg, group) && !held(group))
            .collect();
        moving.sort_by_key(|(pg, group)| (spare(&map, group), **pg));
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

/// The job that a group's move belongs to.
pub(crate) fn job_of(map: &ClusterMap, group: &PlacementGroup) -> JobKind {
    let formers = || group.rebuilding.values();
    if formers().any(|former| !map.is_in(*former)) {
        JobKind::Repair
    } else if formers().any(|former| map.is_leaving(*former)) {
        JobKind::Drain
    } else {
        JobKind::Rebalance
    }
}

/// How many more losses a group's blobs survive.
fn spare(map: &ClusterMap, group: &PlacementGroup) -> usize {
    group.profile.parity().saturating_sub(group.positions_not_whole(map))
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
        let members = self.group.members.iter().copied().filter(|device| self.map.is_in(*device));
        let formers = self.group.formers_in(self.map).map(|(_, former)| former);
        let members: BTreeSet<DeviceId> = members.chain(formers).collect();
        for device in &members {
            let fence = PeerRequest::FenceGroup { pg: self.pg, epoch: self.group.epoch };
            self.ask(*device, fence).await?;
        }
        let mut lists = Vec::new();
        for device in &members {
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
