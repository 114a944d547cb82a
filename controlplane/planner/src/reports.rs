//! What members of the cluster tell the planner, beside what is observed of nodes and devices.
//!
//! A report that ends work carries the epoch it was done at; one of another epoch is ignored.

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{DeviceId, Epoch, Incarnation, NodeId, PartitionId, PgId};
use serde::{Deserialize, Serialize};

use crate::Intent;

/// Everything reported since the committed map.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reports {
    /// Nodes that have started: each gets its next incarnation, its partitions a new epoch.
    pub started: BTreeSet<NodeId>,
    /// The incarnation that a started node has chosen, if it did; one that is not newer than the map's changes nothing.
    pub incarnations: BTreeMap<NodeId, Incarnation>,
    /// Nodes that are about to stop: their primaries move to other in-sync replicas.
    pub leaving: BTreeSet<NodeId>,
    /// Members that keep their primary waiting.
    pub lagging: Vec<Lagging>,
    /// Devices that are not to join a partition in this plan: they lagged there within the last minute.
    pub avoid: BTreeSet<(PartitionId, DeviceId)>,
    /// Devices that were opened again without a start of their node: their partitions get a new epoch.
    pub returned: BTreeSet<DeviceId>,
    /// Replicas that lost their history: each leaves the in-sync set, and joins anew if another has the history.
    pub lost: BTreeMap<DeviceId, BTreeSet<PartitionId>>,
    /// Joiners that became whole.
    pub joined: Vec<Joined>,
    /// Placement groups whose new members are whole.
    pub moved: Vec<GroupMoved>,
    /// What operators ask for; checked.
    pub intents: Vec<Intent>,
}

/// A primary's report that a joiner holds the partition's whole history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch when the report was made; a report of another epoch is ignored.
    pub epoch: Epoch,
    /// The joiner.
    pub device: DeviceId,
}

/// A primary's report that a member does not acknowledge in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Lagging {
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch when the report was made; a report of another epoch is ignored.
    pub epoch: Epoch,
    /// The member.
    pub device: DeviceId,
}

/// A repair's report that every position listed as to be rebuilt at that epoch is whole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct GroupMoved {
    /// The placement group.
    pub pg: PgId,
    /// Its epoch at which the members were fenced and the shards created; a report of another epoch is ignored.
    pub epoch: Epoch,
}
