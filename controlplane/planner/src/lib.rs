//! Pure planning: (policy, inventory, map, reports) to the next map. No I/O, clock or randomness: equal input gives
//! equal output, so a plan can be shown, compared and replayed.
//!
//! Invariants of every map made here (asserted, and checked as properties in the tests):
//! - it validates, and its version is the old one plus one; what changed carries that version as its epoch;
//! - a primary stands in the in-sync set; a device enters an in-sync set only as a whole joiner;
//! - a partition with no in-sync replica left in keeps its entry as it is: whichever of them returns holds every
//!   acknowledged record, and nobody else does;
//! - placement groups keep their members; opening and sealing is all that happens to one here.
//!
//! What fails is judged by the caller; here a device that is not present in the inventory is out.

mod diff;
mod domain;
mod groups;
mod partitions;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{
    ClusterId, ClusterMap, DeviceEntry, DeviceId, DeviceState, Epoch, ErasureProfile, MapError, MapVersion,
    NodeEntry, NodeId, PartitionId, Tier,
};

pub use diff::MapDiff;

/// Wanted state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// The cluster that the first map is made for; a later map of another cluster is refused.
    pub cluster: ClusterId,
    /// Profile wanted for new blobs of the hot tier; metadata has m+1 replicas.
    pub hot_profile: ErasureProfile,
    /// Number of partitions of the first map; later maps keep theirs.
    pub partition_count: u16,
}

/// A node as observed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeObservation {
    /// Address of its peer transport; empty for a standalone node.
    pub address: String,
    /// Failure domain above the node.
    pub rack: String,
}

/// A device as observed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceObservation {
    /// The node it is attached to.
    pub node: NodeId,
    /// Its device class.
    pub tier: Tier,
    /// Usable bytes.
    pub capacity_bytes: u64,
    /// Where the node finds it.
    pub location: String,
    /// Found and working. A device that is not present, or not listed at all, is out.
    pub present: bool,
}

/// Observed state of the whole cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inventory {
    /// Every known node.
    pub nodes: BTreeMap<NodeId, NodeObservation>,
    /// Every known device.
    pub devices: BTreeMap<DeviceId, DeviceObservation>,
}

impl Inventory {
    /// The inventory under which a map's nodes and devices stay as they are: start from it and add what was observed.
    pub fn of_map(map: &ClusterMap) -> Self {
        let node =
            |entry: &NodeEntry| NodeObservation { address: entry.address.clone(), rack: entry.rack.clone() };
        let device = |entry: &DeviceEntry| DeviceObservation {
            node: entry.node,
            tier: entry.tier,
            capacity_bytes: entry.capacity_bytes,
            location: entry.location.clone(),
            present: entry.state == DeviceState::In,
        };
        Self {
            nodes: map.nodes.iter().map(|(id, entry)| (*id, node(entry))).collect(),
            devices: map.devices.iter().map(|(id, entry)| (*id, device(entry))).collect(),
        }
    }
}

/// A primary's report that a joiner holds the partition's whole history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Joined {
    /// The partition.
    pub partition: PartitionId,
    /// Its epoch when the report was made; a report of another epoch is ignored.
    pub epoch: Epoch,
    /// The joiner.
    pub device: DeviceId,
}

/// All that a plan depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlanInput<'a> {
    /// Wanted state.
    pub policy: &'a Policy,
    /// Observed state.
    pub inventory: &'a Inventory,
    /// The committed map; `None` before the first one.
    pub map: Option<&'a ClusterMap>,
    /// Nodes that have started since that map: each gets its next incarnation, its partitions a new epoch.
    pub started: &'a BTreeSet<NodeId>,
    /// Joiners that became whole.
    pub joined: &'a [Joined],
    /// Wall clock, milliseconds since 1970; no rule has a delay so far, so none reads it.
    pub now_ms: u64,
}

/// Work that follows from a new map and takes time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Move {
    /// The partition's history is to be copied to a new joiner; ends with [`Joined`].
    Join {
        /// The partition.
        partition: PartitionId,
        /// The joiner.
        device: DeviceId,
    },
}

/// The next map, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What to commit; `None` when nothing is to be done.
    pub map: Option<ClusterMap>,
    /// Work that the map starts.
    pub moves: Vec<Move>,
    /// For people: what was decided, and what could not be.
    pub reasons: Vec<String>,
}

/// Why there is no plan.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// The policy asks for no partitions.
    #[error("the policy asks for no metadata partitions")]
    NoPartitions,
    /// Too few hot devices for the first map's metadata replicas.
    #[error("{present} hot devices are present, metadata under profile {profile} needs {needed}")]
    TooFewDevices {
        /// Hot devices present.
        present: usize,
        /// m+1.
        needed: usize,
        /// The wanted profile.
        profile: ErasureProfile,
    },
    /// A device's node is not in the inventory.
    #[error("{device} belongs to {node}, which is not in the inventory")]
    UnknownNode {
        /// The device.
        device: DeviceId,
        /// Its node.
        node: NodeId,
    },
    /// The map belongs to another cluster.
    #[error("the map belongs to cluster {found}, the policy to {expected}")]
    OtherCluster {
        /// In the map.
        found: ClusterId,
        /// In the policy.
        expected: ClusterId,
    },
    /// The map given is broken; nothing is planned on top of it.
    #[error("the committed map is broken: {0}")]
    BrokenMap(#[from] MapError),
}

/// Makes the next map.
///
/// # Errors
/// [`PlanError`]; nothing is planned then.
pub fn plan(input: &PlanInput<'_>) -> Result<Plan, PlanError> {
    check(input)?;
    let mut next = match input.map {
        Some(map) => {
            ClusterMap { version: map.version.next(), hot_profile: input.policy.hot_profile, ..map.clone() }
        }
        None => ClusterMap {
            cluster: input.policy.cluster,
            version: MapVersion(1),
            hot_profile: input.policy.hot_profile,
            nodes: BTreeMap::new(),
            devices: BTreeMap::new(),
            partitions: Vec::new(),
            placement_groups: BTreeMap::new(),
        },
    };
    let (mut moves, mut reasons) = (Vec::new(), Vec::new());
    observe(&mut next, input, &mut reasons);
    if input.map.is_some() {
        partitions::update(&mut next, input, &mut moves, &mut reasons);
    } else {
        partitions::create(&mut next, input.policy.partition_count)?;
    }
    groups::update(&mut next, &mut reasons);
    next.validate().expect("a plan from a valid map is valid");
    let changed = input.map.is_none_or(|map| ClusterMap { version: map.version, ..next.clone() } != *map);
    Ok(Plan { map: changed.then_some(next), moves, reasons })
}

fn check(input: &PlanInput<'_>) -> Result<(), PlanError> {
    if let Some(map) = input.map {
        map.validate()?;
        if map.cluster != input.policy.cluster {
            return Err(PlanError::OtherCluster { found: map.cluster, expected: input.policy.cluster });
        }
    } else if input.policy.partition_count == 0 {
        return Err(PlanError::NoPartitions);
    }
    for (device, seen) in &input.inventory.devices {
        if !input.inventory.nodes.contains_key(&seen.node) {
            return Err(PlanError::UnknownNode { device: *device, node: seen.node });
        }
    }
    Ok(())
}

/// Brings nodes and devices of the map up to the inventory. Neither is ever removed here.
fn observe(next: &mut ClusterMap, input: &PlanInput<'_>, reasons: &mut Vec<String>) {
    for (id, seen) in &input.inventory.nodes {
        let incarnation = next.nodes.get(id).map(|entry| entry.incarnation).unwrap_or_default();
        next.nodes
            .insert(*id, NodeEntry { address: seen.address.clone(), rack: seen.rack.clone(), incarnation });
    }
    for id in input.started {
        if let Some(entry) = next.nodes.get_mut(id) {
            entry.incarnation.0 += 1;
            reasons.push(format!("{id} started: {}", entry.incarnation));
        }
    }
    let absent: Vec<DeviceId> =
        next.devices.keys().filter(|id| !input.inventory.devices.contains_key(id)).copied().collect();
    for id in absent {
        set_state(next, id, DeviceState::Out, reasons);
    }
    for (id, seen) in &input.inventory.devices {
        let state = if seen.present { DeviceState::In } else { DeviceState::Out };
        let known = next.devices.get(id).map(|entry| entry.state);
        if known.is_none() && !seen.present {
            continue;
        }
        let entry = DeviceEntry {
            node: seen.node,
            tier: seen.tier,
            capacity_bytes: seen.capacity_bytes,
            state: known.unwrap_or(state),
            location: seen.location.clone(),
        };
        next.devices.insert(*id, entry);
        set_state(next, *id, state, reasons);
    }
}

fn set_state(next: &mut ClusterMap, id: DeviceId, state: DeviceState, reasons: &mut Vec<String>) {
    let entry = next.devices.get_mut(&id).expect("the caller found it in the map");
    if entry.state != state {
        entry.state = state;
        reasons.push(format!("{id} is {}", if state == DeviceState::In { "back in" } else { "out" }));
    }
}

/// Devices of a tier that are in, in id order.
fn devices_in(map: &ClusterMap, tier: Tier) -> Vec<DeviceId> {
    let is_in = |entry: &DeviceEntry| entry.tier == tier && entry.state == DeviceState::In;
    map.devices.iter().filter(|(_, entry)| is_in(entry)).map(|(id, _)| *id).collect()
}

/// The map's version as the epoch of what changes in it.
fn epoch_of(map: &ClusterMap) -> Epoch {
    Epoch(map.version.0)
}
