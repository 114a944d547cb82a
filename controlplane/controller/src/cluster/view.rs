//! What people ask about a cluster (`quarryctl status|node|map|partition`), read from the metastore alone: it answers also when no node and no controller does.

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{
    ClusterMap, DeviceId, DeviceState, Epoch, Incarnation, NodeId, PartitionId, PgState,
};
use quarry_metastore::Metastore;
use serde::Serialize;

use super::{
    ALIVE_PREFIX, Alive, CONTROLLER_PREFIX, FOUNDING_KEY, Founding, Holder, LEADER_KEY, NODE_PREFIX,
    NodeName, REPORT_PREFIX,
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
}

impl ClusterView {
    /// Reads it.
    ///
    /// # Errors
    /// [`ControllerError::Damaged`]; metastore errors.
    pub async fn read(metastore: &impl Metastore) -> Result<Self, ControllerError> {
        let founding = metastore.get(FOUNDING_KEY).await?.as_ref().map(parse).transpose()?;
        let leader: Option<Holder> = metastore.get(LEADER_KEY).await?.as_ref().map(parse).transpose()?;
        let controllers = metastore.range(CONTROLLER_PREFIX).await?.entries;
        let controllers = controllers
            .iter()
            .map(|entry| Ok(parse::<Holder>(entry)?.name))
            .collect::<Result<_, ControllerError>>()?;
        let mut alive = BTreeMap::new();
        for entry in metastore.range(ALIVE_PREFIX).await?.entries {
            alive.insert(number(&entry.key, ALIVE_PREFIX), parse::<Alive>(&entry)?);
        }
        let map = StoredMap::read(metastore, None).await?.map(|stored| (*stored.map).clone());
        let mut nodes = Vec::new();
        for entry in metastore.range(NODE_PREFIX).await?.entries {
            let node = NodeId(number(&entry.key, NODE_PREFIX));
            let name = parse::<NodeName>(&entry)?.name;
            nodes.push(NodeView::of(node, name, alive.get(&node.0), map.as_ref()));
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
            }
        };
        map.partitions.iter().enumerate().map(view).collect()
    }

    /// The nodes as a table.
    pub fn nodes_table(&self) -> String {
        let heads = ["NODE", "NAME", "STATE", "DEVICES", "PRIMARIES", "RUN", "RACK", "ADDRESS"];
        let row = |node: &NodeView| {
            let state = if node.alive { "alive" } else { "NOT ALIVE" };
            let devices = match node.devices_out {
                0 => format!("{} in", node.devices_in),
                out => format!("{} in, {out} OUT", node.devices_in),
            };
            let (primaries, run) = (node.primaries.to_string(), node.incarnation.0.to_string());
            let (number, name) = (node.node.0.to_string(), node.name.clone());
            [number, name, state.to_owned(), devices, primaries, run, node.rack.clone(), node.address.clone()]
        };
        table(heads, self.nodes.iter().map(row))
    }

    /// Partitions as a table.
    pub fn partitions_table(partitions: &[PartitionView]) -> String {
        let devices = |list: &[DeviceId]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let row = |view: &PartitionView| {
            [
                view.partition.0.to_string(),
                view.state.to_owned(),
                view.epoch.0.to_string(),
                view.primary.to_string(),
                devices(&view.replicas),
                devices(&view.joining),
            ]
        };
        let heads = ["PARTITION", "STATE", "EPOCH", "PRIMARY", "IN SYNC", "JOINING"];
        table(heads, partitions.iter().map(row))
    }

    /// The state of everything in a few lines: what is wrong stands in them.
    pub fn status(&self) -> String {
        let Some(founding) = &self.founding else {
            return "no cluster: no controller has led yet\n".to_owned();
        };
        let mut lines = vec![format!("cluster      {}", founding.id)];
        let leader = self.leader.as_deref().unwrap_or("NONE: the map does not change");
        lines.push(format!("leader       {leader} ({} controllers)", self.controllers.len()));
        let dead: Vec<&str> =
            self.nodes.iter().filter(|node| !node.alive).map(|node| node.name.as_str()).collect();
        let dead = if dead.is_empty() { String::new() } else { format!(", not alive: {}", dead.join(" ")) };
        lines.push(format!("nodes        {}{dead}", self.nodes.len()));
        let Some(map) = &self.map else {
            lines.push("map          none yet: too few nodes have registered".to_owned());
            return lines.join("\n") + "\n";
        };
        let out = map.devices.values().filter(|entry| entry.state == DeviceState::Out).count();
        lines.push(format!("devices      {} in, {out} out", map.devices.len() - out));
        let mut states: BTreeMap<&str, usize> = BTreeMap::new();
        let partitions = self.partitions();
        partitions.iter().for_each(|partition| *states.entry(partition.state).or_default() += 1);
        let joining = partitions.iter().filter(|partition| !partition.joining.is_empty()).count();
        let states: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        lines.push(format!("partitions   {}, {joining} with a joiner", states.join(", ")));
        let in_state = |state| map.placement_groups.values().filter(|group| group.state == state).count();
        let (open, sealed, moving) =
            (in_state(PgState::Open), in_state(PgState::Sealed), in_state(PgState::Moving));
        lines.push(format!("groups       {open} open, {sealed} sealed, {moving} moving"));
        lines.push(format!("map version  {}", map.version.0));
        if self.reports_waiting > 0 {
            lines.push(format!("waiting      {} reports for the leader", self.reports_waiting));
        }
        lines.join("\n") + "\n"
    }
}

impl NodeView {
    fn of(node: NodeId, name: String, alive: Option<&Alive>, map: Option<&ClusterMap>) -> Self {
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
            alive: alive.is_some(),
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

/// Columns as wide as their widest cell.
fn table<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let all: Vec<[String; N]> = std::iter::once(heads.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    all.iter().map(line).collect()
}

fn number(key: &str, prefix: &str) -> u32 {
    key[prefix.len()..].parse().unwrap_or(u32::MAX)
}
