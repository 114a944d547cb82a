//! What people ask about a cluster (`quarryctl status|node|map|partition`), read from the metastore alone: it answers also
//! when no controller does. A standalone node is a cluster of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use quarry_clustermap::{
    ClusterMap, DeviceId, DeviceState, Epoch, Incarnation, MapVersion, NodeId, PartitionId, PgState,
    PlacementGroup,
};
use quarry_metastore::Metastore;
use serde::Serialize;

use super::{
    ALIVE_PREFIX, CONTROLLER_PREFIX, FOUNDING_KEY, Founding, Holder, LEADER_KEY, NODE_PREFIX, NodeName,
    REPORT_PREFIX,
};
use crate::{
    ControllerError, StoredMap,
    state::{ACTIVATED_PREFIX, parse},
};

/// Everything at about one moment.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterView {
    /// `None`: no controller has led yet.
    pub founding: Option<Founding>,
    /// The leader's name.
    pub leader: Option<String>,
    /// Names of all controllers.
    pub controllers: Vec<String>,
    /// Report keys that wait for the leader.
    pub reports_waiting: usize,
    /// By number.
    pub nodes: Vec<NodeView>,
    /// The map.
    pub map: Option<ClusterMap>,
    /// The newest activated epochs.
    pub activated: BTreeMap<PartitionId, Epoch>,
}

/// A node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Whether it holds its lease.
    pub alive: bool,
    /// Whether it was removed: it joins no more until it is added.
    pub removed: bool,
    /// Address of its peer transport.
    pub address: String,
    /// Its rack.
    pub rack: String,
    /// Of the map.
    pub incarnation: Incarnation,
    /// Devices that are in.
    pub devices_in: usize,
    /// Devices that are out.
    pub devices_out: usize,
    /// Partitions that it leads.
    pub primaries: usize,
}

/// The state of everything.
#[derive(Clone, Debug, Serialize)]
pub struct StatusView {
    /// Which cluster.
    pub cluster: String,
    /// Wanted for new blobs.
    pub profile: String,
    /// Of the map.
    pub map_version: MapVersion,
    /// `None`: the map does not change now. A standalone node has none, it leads itself.
    pub leader: Option<String>,
    /// How many controllers hold their lease.
    pub controllers: usize,
    /// Reports that wait for the leader.
    pub reports_waiting: usize,
    /// How many nodes there are.
    pub nodes: usize,
    /// Names of those that do not hold their lease.
    pub nodes_not_alive: Vec<String>,
    /// Devices that are in.
    pub devices_in: usize,
    /// Devices that are out.
    pub devices_out: usize,
    /// How many partitions are in which state ([`PartitionView::state`]).
    pub partitions: BTreeMap<&'static str, usize>,
    /// Partitions with a replica that is being filled.
    pub partitions_with_joiner: usize,
    /// `full`, or `reduced` while a placement group or a partition could bear fewer losses than its profile promises.
    pub redundancy: &'static str,
    /// Partitions with fewer in-sync replicas than wanted.
    pub partitions_short: usize,
    /// Placement groups with a position that cannot be read.
    pub groups_short: usize,
    /// Placement groups that take blobs.
    pub groups_open: usize,
    /// Placement groups that take none.
    pub groups_sealed: usize,
    /// Placement groups with members that are being filled.
    pub groups_moving: usize,
}

/// A partition.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionView {
    /// Its number.
    pub partition: PartitionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// `serving`, `starting` (its epoch is not activated), `waiting` (no in-sync replica is in) or `lost` (its history).
    pub state: &'static str,
    /// Device that leads it.
    pub primary: DeviceId,
    /// In sync.
    pub replicas: Vec<DeviceId>,
    /// Being filled.
    pub joining: Vec<DeviceId>,
    /// Left the in-sync set, and may be back: their places are kept.
    pub away: Vec<DeviceId>,
}

impl ClusterView {
    /// Reads it.
    ///
    /// # Errors
    /// [`ControllerError::Damaged`]; metastore errors.
    pub async fn read(metastore: &impl Metastore) -> Result<Self, ControllerError> {
        Self::read_after(metastore, None).await
    }

    /// The same, when a map is known that may be the newest.
    pub(crate) async fn read_after(
        metastore: &impl Metastore,
        known: Option<&Arc<StoredMap>>,
    ) -> Result<Self, ControllerError> {
        let founding: Option<Founding> =
            metastore.get(FOUNDING_KEY).await?.as_ref().map(parse).transpose()?;
        let leader: Option<Holder> = metastore.get(LEADER_KEY).await?.as_ref().map(parse).transpose()?;
        let controllers = metastore.range(CONTROLLER_PREFIX).await?.entries;
        let controllers = controllers
            .iter()
            .map(|entry| Ok(parse::<Holder>(entry)?.name))
            .collect::<Result<_, ControllerError>>()?;
        let alive: BTreeSet<u32> =
            metastore.keys(ALIVE_PREFIX).await?.iter().map(|key| number(key, ALIVE_PREFIX)).collect();

        let map = StoredMap::read(metastore, known).await?.map(|stored| (*stored.map).clone());
        let mut nodes = Vec::new();
        for entry in metastore.range(NODE_PREFIX).await?.entries {
            let node = NodeId(number(&entry.key, NODE_PREFIX));
            let name = parse::<NodeName>(&entry)?.name;
            nodes.push(NodeView::of(node, name, alive.contains(&node.0), map.as_ref()));
        }
        if let (None, Some(map)) = (&founding, &map) {
            // A standalone node: it answers, so it is alive.
            let only = map.nodes.keys().map(|node| NodeView::of(*node, "standalone".into(), true, Some(map)));
            nodes.extend(only);
        }
        let mut activated = BTreeMap::new();
        for entry in metastore.range(ACTIVATED_PREFIX).await?.entries {
            let id = u16::try_from(number(&entry.key, ACTIVATED_PREFIX)).unwrap_or(u16::MAX);
            activated.insert(PartitionId(id), parse(&entry)?);
        }
        let reports_waiting = metastore.keys(REPORT_PREFIX).await?.len();
        let leader = leader.map(|leader| leader.name);
        Ok(Self { founding, leader, controllers, reports_waiting, nodes, map, activated })
    }

    /// The partitions, by number.
    pub fn partitions(&self) -> Vec<PartitionView> {
        let Some(map) = &self.map else { return Vec::new() };
        let view = |(index, config): (usize, &quarry_clustermap::PartitionConfig)| {
            let partition = PartitionId(u16::try_from(index).expect("validated: partition ids are 16 bits"));
            let state = if !config.has_history() {
                "lost"
            } else if !config.replicas.iter().any(|device| map.is_in(*device)) {
                "waiting"
            } else if self.activated.get(&partition) == Some(&config.epoch) {
                "serving"
            } else {
                "starting"
            };
            PartitionView {
                partition,
                epoch: config.epoch,
                state,
                primary: config.primary,
                replicas: config.replicas.clone(),
                joining: config.joining.clone(),
                away: config.away.keys().copied().collect(),
            }
        };
        map.partitions.iter().enumerate().map(view).collect()
    }

    /// The state of everything in a few numbers; `None`: there is no map yet.
    pub fn status(&self) -> Option<StatusView> {
        let map = self.map.as_ref()?;
        let mut partitions = BTreeMap::new();
        let views = self.partitions();
        views.iter().for_each(|view| *partitions.entry(view.state).or_default() += 1);
        let in_state = |state| map.placement_groups.values().filter(|group| group.state == state).count();
        let devices_out = map.devices.values().filter(|entry| entry.state == DeviceState::Out).count();
        let wanted = map.hot_profile.metadata_replicas();
        let partitions_short = map.partitions.iter().filter(|config| config.replicas.len() < wanted).count();
        let short = |group: &&PlacementGroup| group.positions_not_whole(map) > 0;
        let groups_short = map.placement_groups.values().filter(short).count();
        let members = || self.nodes.iter().filter(|node| !node.removed);
        let silent = members().filter(|node| !node.alive).map(|node| node.name.clone());
        Some(StatusView {
            cluster: map.cluster.to_string(),
            profile: map.hot_profile.to_string(),
            map_version: map.version,
            leader: self.leader.clone(),
            controllers: self.controllers.len(),
            reports_waiting: self.reports_waiting,
            nodes: members().count(),
            nodes_not_alive: silent.collect(),
            devices_in: map.devices.len() - devices_out,
            devices_out,
            partitions,
            partitions_with_joiner: views.iter().filter(|view| !view.joining.is_empty()).count(),
            redundancy: if partitions_short + groups_short == 0 { "full" } else { "reduced" },
            partitions_short,
            groups_short,
            groups_open: in_state(PgState::Open),
            groups_sealed: in_state(PgState::Sealed),
            groups_moving: in_state(PgState::Moving),
        })
    }
}

impl NodeView {
    fn of(node: NodeId, name: String, alive: bool, map: Option<&ClusterMap>) -> Self {
        let entry = map.and_then(|map| map.nodes.get(&node));
        let mine = |map: &ClusterMap, state| {
            map.devices.values().filter(|entry| entry.node == node && entry.state == state).count()
        };
        let own: BTreeSet<DeviceId> = map.map_or_else(BTreeSet::new, |map| {
            map.devices.iter().filter(|(_, entry)| entry.node == node).map(|(id, _)| *id).collect()
        });
        Self {
            node,
            name,
            alive,
            removed: map.is_some_and(|map| map.operations.removed_nodes.contains(&node)),
            address: entry.map(|entry| entry.address.clone()).unwrap_or_default(),
            rack: entry.map(|entry| entry.rack.clone()).unwrap_or_default(),
            incarnation: entry.map(|entry| entry.incarnation).unwrap_or_default(),
            devices_in: map.map_or(0, |map| mine(map, DeviceState::In)),
            devices_out: map.map_or(0, |map| mine(map, DeviceState::Out)),
            primaries: map.map_or(0, |map| {
                map.partitions.iter().filter(|config| own.contains(&config.primary)).count()
            }),
        }
    }
}

fn number(key: &str, prefix: &str) -> u32 {
    key[prefix.len()..].parse().unwrap_or(u32::MAX)
}
