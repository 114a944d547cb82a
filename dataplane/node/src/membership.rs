//! Where a node belongs, found out before its devices are opened: to itself (standalone), or to a cluster.
//!
//! A node of a cluster keeps two things in its data directory: `node.json`, who it is, and `tables/`, a copy of the newest
//! map, buckets and users. With both it starts also when etcd does not answer; without the first it waits for etcd, and for
//! the first leader, as long as it takes.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use quarry_clustermap::{ClusterId, ClusterMap, NodeId, PARTITIONS_STANDALONE};
use quarry_controller::{
    StoredMap,
    cluster::{LEASE_TTL_S, MemberOptions, NodeIdentity, Tables, join, join_offline, leases_fit},
};
use quarry_metastore::{Embedded, Etcd, EtcdOptions};
use quarry_partition::LeaseTimes;
use quarry_planner::{Policy, REBUILD_AFTER_MS};

use crate::config::{ClusterTable, Config};

/// The only node of a standalone cluster.
const STANDALONE_NODE: NodeId = NodeId(1);
/// How long a node that could start without etcd waits for it, and then for the leader.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// The node's place, and what is known there.
pub(crate) struct Membership {
    pub(crate) node: NodeId,
    /// What is known of this node's devices.
    pub(crate) map: Option<ClusterMap>,
    /// Known without a map.
    pub(crate) cluster: Option<ClusterId>,
    /// Of primaries; `None`: all replicas are in this process.
    pub(crate) leases: Option<LeaseTimes>,
    pub(crate) plane: Plane,
}

/// What runs on the side thread.
pub(crate) enum Plane {
    /// The whole control plane.
    Standalone(Embedded),
    /// A member's part of it.
    Member(Box<(EtcdOptions, MemberOptions)>),
}

impl Membership {
    /// Opens the metastore, or asks it who this node is.
    pub(crate) fn find(config: &Config) -> anyhow::Result<Self> {
        match &config.cluster {
            None => standalone(config),
            Some(cluster) => clustered(config, cluster),
        }
    }

    /// What a standalone node plans by.
    pub(crate) fn policy(config: &Config, cluster: ClusterId) -> Policy {
        Policy {
            cluster,
            hot_profile: config.profile,
            cold_profile: config.cold_profile,
            partition_count: PARTITIONS_STANDALONE,
            rebuild_after_ms: REBUILD_AFTER_MS,
            groups_per_device: 1,
        }
    }
}

fn standalone(config: &Config) -> anyhow::Result<Membership> {
    let metastore = Embedded::open(&config.data)?;
    let map = crate::read_map(&metastore)?;
    let plane = Plane::Standalone(metastore);
    Ok(Membership { node: STANDALONE_NODE, map, cluster: None, leases: None, plane })
}

fn clustered(config: &Config, cluster: &ClusterTable) -> anyhow::Result<Membership> {
    let options = cluster.etcd.load(&cluster.name)?;
    let tables = Tables::open(&config.data.join("tables"))?;
    let (path, name) = (config.data.join("node.json"), cluster.name()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (identity, map) = runtime.block_on(identify(&options, path, &name, &tables))?;
    let own = map.map(|map| own_devices(map, identity.node));
    let (node, id) = (identity.node, identity.founding.id);
    tracing::info!(event = "node_identified", %node, name, cluster = %id, incarnation = %identity.incarnation);
    let lease_ttl = Duration::from_secs(cluster.lease_ttl_s.unwrap_or(LEASE_TTL_S));
    let peer_lease_ms = identity.founding.peer_lease_ms;
    anyhow::ensure!(
        leases_fit(peer_lease_ms, lease_ttl),
        "cluster.lease-ttl-s must be at least twice the peer leases of this cluster, which last {peer_lease_ms} ms"
    );
    let leases = Some(LeaseTimes::new(peer_lease_ms));
    let member = MemberOptions {
        identity,
        address: config.peer_address(),
        lease_ttl,
        patience: PATIENCE,
        tables: Some(tables),
    };
    let plane = Plane::Member(Box::new((options, member)));
    Ok(Membership { node, map: own, cluster: Some(id), leases, plane })
}

/// Who this node is, and the newest map that can be had.
async fn identify(
    options: &EtcdOptions,
    path: PathBuf,
    name: &str,
    tables: &Tables,
) -> anyhow::Result<(NodeIdentity, Option<ClusterMap>)> {
    let started = Instant::now();
    let is_known = path.exists();
    loop {
        match Etcd::connect(options).await {
            Ok(etcd) => match join(&etcd, &path, name).await? {
                Some(identity) => {
                    let stored = StoredMap::read(&etcd, None).await?;
                    return Ok((identity, stored.map(|stored| (*stored.map).clone())));
                }
                None => tracing::warn!(event = "cluster_not_founded", "no controller has led yet"),
            },
            Err(error) => tracing::warn!(event = "metastore_unreachable", %error),
        }
        if is_known && started.elapsed() >= PATIENCE {
            let kept = tables.load().await?;
            if let (Some(identity), Some(kept)) = (join_offline(&path)?, kept) {
                tracing::warn!(event = "start_without_metastore", version = kept.map.version.0);
                return Ok((identity, Some((*kept.map).clone())));
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The map with the devices of one node only: where another node has its devices does not matter here.
fn own_devices(map: ClusterMap, node: NodeId) -> ClusterMap {
    let devices = map.devices.into_iter().filter(|(_, entry)| entry.node == node).collect();
    ClusterMap { devices, ..map }
}
