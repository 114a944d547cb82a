//! Pure planning: (policy, inventory, map, reports) to the next map. No I/O, clock or randomness: equal input gives
//! equal output, so a plan can be shown, compared and replayed.
//!
//! Invariants of every map made here (asserted, and checked as properties in the tests):
//! - it validates, and its version is the old one plus one; what changed carries that version as its epoch;
//! - a primary stands in the in-sync set; a device enters an in-sync set only as a whole joiner;
//! - a partition with no in-sync replica left in keeps its entry as it is: whichever of them returns holds every
//!   acknowledged record, and nobody else does;
//! - a placement group's member changes only while the group is (from then on) moving, with that position listed as to
//!   be rebuilt; only a report of its newest epoch ends that. A group made by the same plan is empty, and has no such list;
//! - a partition has one member more than wanted only while that one joins;
//! - a device leaves the map only when it is out, was replaced, and nothing names it.
//!
//! What fails is judged by the caller; here a device that is not present in the inventory is out.

mod accused;
mod away;
mod balance;
mod diff;
mod domain;
mod forecast;
mod groups;
mod operations;
mod partitions;
mod rebalance;
mod replace;
mod reports;
#[cfg(test)]
mod tests;
mod tiering;
pub mod whatif;

use std::collections::BTreeMap;

use quarry_clustermap::{
    ClusterId, ClusterMap, DeviceEntry, DeviceId, DeviceState, Epoch, ErasureProfile, Incarnation, MapError,
    MapVersion, NodeEntry, NodeId, PartitionId, PgId, Tier,
};

pub use accused::{ACCUSED_MS, ALONE_MS, Accusation, SHUNNED_MS};
pub use away::{PLACE_KEPT_MS, SETTLE_MS};
pub use diff::MapDiff;
pub use forecast::{Forecast, forecast, settle};
pub use operations::{Intent, IntentError};
pub use reports::{GroupMoved, Joined, Lagging, Reports};
pub use tiering::{Candidate, Fill, TierMove, plan_tiers};

/// How long a device is out before others take its places, unless a new device is named for that: long enough for a
/// restart of its host, short against the time between two failures.
pub const REBUILD_AFTER_MS: u64 = 10 * 60 * 1000;
/// Positions that a device should have in a cluster: then one is 2 % of what it holds.
const POSITIONS_PER_DEVICE: usize = 50;

/// How many placement groups a cluster should have for each device, so that devices can be evened out finely.
pub fn groups_per_device(profile: ErasureProfile) -> usize {
    POSITIONS_PER_DEVICE.div_ceil(profile.total())
}

/// Wanted state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// The cluster that the first map is made for; a later map of another cluster is refused.
    pub cluster: ClusterId,
    /// Profile wanted for new blobs of the hot tier; metadata has m+1 replicas.
    pub hot_profile: ErasureProfile,
    /// Profile wanted for new blobs of the cold tier; `None`: what the map says.
    pub cold_profile: Option<ErasureProfile>,
    /// Number of partitions of the first map; later maps keep theirs.
    pub partition_count: u16,
    /// How long a device is out before others take its places; see [`REBUILD_AFTER_MS`].
    pub rebuild_after_ms: u64,
    /// Placement groups of the wanted profile for each device, at least; see [`groups_per_device`].
    pub groups_per_device: usize,
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
    /// A device that is out, in whose place this one was put: it takes its position in every placement group at once.
    pub replaces: Option<DeviceId>,
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
            replaces: None,
        };
        Self {
            nodes: map.nodes.iter().map(|(id, entry)| (*id, node(entry))).collect(),
            devices: map.devices.iter().map(|(id, entry)| (*id, device(entry))).collect(),
        }
    }
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
    /// What happened since that map.
    pub reports: &'a Reports,
    /// Wall clock, milliseconds since 1970: says since when a device is out.
    pub now_ms: u64,
}

impl PlanInput<'_> {
    fn is_present(&self, device: DeviceId) -> bool {
        self.inventory.devices.get(&device).is_some_and(|seen| seen.present)
    }

    /// Whether a device's node started or the device was opened again, so that nobody knows what it still has in flight.
    fn is_opened_again(&self, device: DeviceId) -> bool {
        let node = self.inventory.devices.get(&device).map(|seen| seen.node);
        self.reports.returned.contains(&device)
            || node.is_some_and(|node| self.reports.started.contains(&node))
    }
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
    /// A position's shards are to be created on its new member; ends with [`GroupMoved`].
    Rebuild {
        /// The placement group.
        pg: PgId,
        /// The position, which is the index of the shards.
        position: u8,
        /// Its new member.
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
            operations: quarry_clustermap::Operations::default(),
            tiering: quarry_clustermap::Tiering::default(),
            placement_groups: BTreeMap::new(),
        },
    };
    let (mut moves, mut reasons) = (Vec::new(), Vec::new());
    next.tiering.cold_profile = input.policy.cold_profile.or(next.tiering.cold_profile);
    observe(&mut next, input, &mut reasons);
    for intent in &input.reports.intents {
        intent.apply(&mut next, input.now_ms);
        reasons.push(format!("asked for: {intent:?}"));
    }
    if input.map.is_some() {
        partitions::update(&mut next, input, &mut moves, &mut reasons);
    } else {
        partitions::create(&mut next, input.policy.partition_count)?;
    }
    groups::update(&mut next, input, &mut moves, &mut reasons);
    if input.map.is_some() {
        rebalance::partitions(&mut next, input, &mut moves, &mut reasons);
        for tier in Tier::ALL {
            rebalance::groups(&mut next, tier, input, &mut moves, &mut reasons);
        }
    }
    replace::retire(&mut next, &mut reasons);
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
    for id in &input.reports.started {
        if let Some(entry) = next.nodes.get_mut(id) {
            entry.incarnation = match input.reports.incarnations.get(id) {
                Some(chosen) => entry.incarnation.max(*chosen),
                None => Incarnation(entry.incarnation.0 + 1),
            };
            reasons.push(format!("{id} started: {}", entry.incarnation));
        }
    }
    settle_tiers(next, input, reasons);
    for (id, seen) in &input.inventory.devices {
        match next.devices.get_mut(id) {
            Some(entry) => {
                entry.node = seen.node;
                (entry.capacity_bytes, entry.location) = (seen.capacity_bytes, seen.location.clone());
            }
            None if seen.present => {
                let entry = DeviceEntry {
                    node: seen.node,
                    tier: seen.tier,
                    capacity_bytes: seen.capacity_bytes,
                    state: DeviceState::In,
                    out_since_ms: None,
                    replaced: false,
                    location: seen.location.clone(),
                };
                next.devices.insert(*id, entry);
            }
            None => {}
        }
    }
    for (id, entry) in &mut next.devices {
        set_present(entry, input.is_present(*id), input.now_ms, |what| {
            reasons.push(format!("{id} is {what}"))
        });
    }
}

/// A device goes to another tier only while nothing is on it.
fn settle_tiers(next: &mut ClusterMap, input: &PlanInput<'_>, reasons: &mut Vec<String>) {
    for (id, seen) in &input.inventory.devices {
        let Some(tier) = next.devices.get(id).map(|entry| entry.tier) else { continue };
        if tier == seen.tier {
            continue;
        }
        if next.uses_of(*id) > 0 {
            let (tier, wanted) = (tier.name(), seen.tier.name());
            reasons
                .push(format!("{id} stays {tier}, it is in use: drain and remove it to have it as {wanted}"));
        } else if let Some(entry) = next.devices.get_mut(id) {
            entry.tier = seen.tier;
        }
    }
}

fn set_present(entry: &mut DeviceEntry, present: bool, now_ms: u64, mut tell: impl FnMut(&str)) {
    if present {
        if entry.state == DeviceState::Out {
            tell("back in");
        }
        (entry.state, entry.out_since_ms, entry.replaced) = (DeviceState::In, None, false);
    } else {
        if entry.state == DeviceState::In {
            tell("out");
        }
        entry.state = DeviceState::Out;
        // A map of before this was kept says nothing: the time counts from now.
        entry.out_since_ms.get_or_insert(now_ms);
    }
}

/// Devices of a tier that are in, in id order.
fn devices_in(map: &ClusterMap, tier: Tier) -> Vec<DeviceId> {
    let is_in = |entry: &DeviceEntry| entry.tier == tier && entry.state == DeviceState::In;
    map.devices.iter().filter(|(_, entry)| is_in(entry)).map(|(id, _)| *id).collect()
}

/// Devices of a tier that may take something new, in id order: those that are in and not to be emptied; all that are in
/// if there are too few others for any data.
fn devices_staying(map: &ClusterMap, tier: Tier) -> Vec<DeviceId> {
    let all = devices_in(map, tier);
    let staying: Vec<DeviceId> = all.iter().copied().filter(|device| !map.is_leaving(*device)).collect();
    if staying.len() > map.wanted_profile(tier).parity() { staying } else { all }
}

/// The map's version as the epoch of what changes in it.
fn epoch_of(map: &ClusterMap) -> Epoch {
    Epoch(map.version.0)
}
