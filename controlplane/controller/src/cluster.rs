//! The controller of a cluster: several nodes and controllers on one metastore.
//!
//! | key | written by | value |
//! |---|---|---|
//! | `cluster` | the first leader, once | [`Founding`]: id, profile, number of partitions |
//! | `leader` | a controller, under its lease | [`Holder`]; its revision fences what the leader commits |
//! | `controller/NAME` | every controller, under its lease | [`Holder`] |
//! | `node/NNNNN` | a node, once | [`NodeName`]: whose number this is |
//! | `alive/NNNNN` | a node, under its lease | [`Alive`]: this run of it |
//! | `report/NNNNN/INCARNATION-SEQUENCE` | a node | reports that the leader has not handled yet |
//! | `reported/NNNNN` | a node | key of its newest report, written with it: one that arrives again, late, is refused |
//!
//! Who changes what: only the leader commits maps. What a node has to say about the map it leaves as a report; the leader
//! plans all reports that are there, and removes them in the transaction that commits the map, so none is lost and none
//! counts twice, whoever crashes. Activations and buckets are compare-and-swaps of the node itself: they need no leader.
//! Nodes see new maps by watching the head. Nobody calls anybody: a controller has no address that nodes must know.
//!
//! With no leader, or no metastore, reports wait, and nodes serve on with the map they have.

mod changes;
mod config;
mod election;
mod join;
mod leader;
mod lease;
mod liveness;
mod member;
mod numbers;
mod tables;
mod view;

use quarry_clustermap::{ClusterId, ErasureProfile, Incarnation, NodeId};
use serde::{Deserialize, Serialize};

pub use config::{ClusterOptionsError, EtcdConfig};
pub use join::{JoinError, NodeIdentity, join, join_offline};
pub use leader::{ClusterController, LeaderOptions};
pub use member::{Member, MemberEnd, MemberOptions};
pub use numbers::LeaderNumbers;
pub use tables::{MoveError, Tables, migrate, restore};
pub use view::{ClusterView, NodeView, PartitionView, StatusView};

pub(crate) const FOUNDING_KEY: &str = "cluster";
pub(crate) const LEADER_KEY: &str = "leader";
pub(crate) const CONTROLLER_PREFIX: &str = "controller/";
pub(crate) const NODE_PREFIX: &str = "node/";
pub(crate) const ALIVE_PREFIX: &str = "alive/";
pub(crate) const REPORT_PREFIX: &str = "report/";

/// How long a lease in the metastore lasts when it is not kept alive, unless configured.
pub const LEASE_TTL_S: u64 = 10;
/// [`Founding::peer_lease_ms`], unless configured.
pub const PEER_LEASE_MS: u64 = 2_000;
/// What it may be: long enough for a busy machine, short enough for a client to wait.
pub const PEER_LEASE_MS_RANGE: std::ops::RangeInclusive<u64> = 500..=10_000;

/// Whether peer leases of `peer_lease_ms` suit leases in the metastore of `lease_ttl`: they must have run out when a
/// node's lease has, or its partitions would wait for them.
pub fn leases_fit(peer_lease_ms: u64, lease_ttl: std::time::Duration) -> bool {
    PEER_LEASE_MS_RANGE.contains(&peer_lease_ms) && u128::from(peer_lease_ms) * 2 <= lease_ttl.as_millis()
}

/// Parts of a lease's time after which it is kept alive again.
pub(crate) const LEASE_PARTS: u32 = 4;

pub(crate) fn node_key(node: NodeId) -> String {
    format!("{NODE_PREFIX}{:05}", node.0)
}

pub(crate) fn alive_key(node: NodeId) -> String {
    format!("{ALIVE_PREFIX}{:05}", node.0)
}

pub(crate) fn reported_key(node: NodeId) -> String {
    format!("reported/{:05}", node.0)
}

pub(crate) fn report_prefix(node: NodeId) -> String {
    format!("{REPORT_PREFIX}{:05}/", node.0)
}

/// What never changes about a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Founding {
    /// In every superblock.
    pub id: ClusterId,
    /// Metadata partitions.
    pub partitions: u16,
    /// Profile of new blobs of the hot tier.
    pub hot_profile: ErasureProfile,
    /// How long a replica of a partition keeps its word to a primary, in milliseconds. One value for all nodes and for
    /// ever: a primary trusts its peers to count as it does.
    pub peer_lease_ms: u64,
}

/// A controller.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// Its name.
    pub name: String,
    /// This run of it.
    pub run: u64,
}

/// Whose number a node id is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeName {
    /// Unique in the cluster.
    pub name: String,
}

/// A running node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Alive {
    /// Its name.
    pub name: String,
    /// Address of its peer transport.
    pub address: String,
    /// This run of it: a newer one takes over from an older one, never the other way round.
    pub incarnation: Incarnation,
}

#[cfg(test)]
mod tests;
