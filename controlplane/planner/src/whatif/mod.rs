//! What a cluster would be worth: usable bytes, time to rebuild, chance to lose data, cost; for the map as it is, or as
//! the planner would make it with other devices or another profile.
//!
//! | file | says |
//! |---|---|
//! | this one | which map, capacity, time of a rebuild, cost |
//! | `loss.rs` | mean time to data loss: simulated on the groups of the map, and in closed form for one group |
//! | `envelope.rs` | users to requests, bandwidth and storage |
//!
//! Counted as failures are devices that are lost for good, independently of each other. Nodes and racks that come back
//! lose nothing, and devices that die together (a batch, a power surge) are not foreseen: read the result as an upper
//! bound of what the hardware does, and as a comparison between layouts.

mod envelope;
mod loss;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{ClusterMap, DeviceId, DeviceState, ErasureProfile, NodeId, Tier};

pub use envelope::{Demand, Envelope, envelope};
pub use loss::{Loss, Trials, YEAR_S, mttdl_of_group_s};

use crate::{
    DeviceObservation, Forecast, Inventory, NodeObservation, PlanError, PlanInput, Policy, Reports, plan,
    settle,
};

/// What is assumed of the machines.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Hardware {
    /// Share of all devices that die in a year.
    pub afr: f64,
    /// Bytes per second that repair may read and write on one device.
    pub rebuild_bytes_per_s: f64,
    /// Bytes per second that repair may take of one node's network, each way.
    pub nic_bytes_per_s: f64,
    /// Seconds from a device's death to the beginning of its repair.
    pub wait_s: f64,
    /// How full devices are, 0 to 1: what has to be rebuilt.
    pub fill: f64,
    /// Price of a terabyte (10^12 bytes) of devices.
    pub cost_per_tb: f64,
}

/// What is added to a map.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Additions {
    /// New nodes, each in a rack of its own if every node of the map is.
    pub nodes: usize,
    /// Devices of each new node; `None`: as many as the map's nodes have on average.
    pub devices_per_node: Option<usize>,
    /// New devices, in turn on the nodes that have fewest.
    pub devices: usize,
    /// Bytes of each new device; `None`: the mean of the map's.
    pub device_bytes: Option<u64>,
    /// Another profile: the map is laid out anew.
    pub profile: Option<ErasureProfile>,
}

/// The answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Worth {
    /// Devices that are in, of the hot tier.
    pub devices: usize,
    /// Their nodes.
    pub nodes: usize,
    /// Profile of most of the open groups.
    pub profile: ErasureProfile,
    /// Bytes of all devices.
    pub raw_bytes: u64,
    /// Bytes of objects that fit when all devices are full.
    pub usable_bytes: u64,
    /// Bytes of objects when the first device is full, if all open groups fill evenly.
    pub first_full_bytes: u64,
    /// Hours until a lost device is made anew, of the slowest; with the wait.
    pub rebuild_hours: f64,
    /// Whether the network, and not the devices, sets that time.
    pub nic_bound: bool,
    /// Cost of all devices.
    pub cost: f64,
    /// Cost for each terabyte of objects.
    pub cost_per_usable_tb: f64,
    /// Chance of loss.
    pub loss: Loss,
}

/// The map that the planner would end with. Standalone: one node and no address.
///
/// # Errors
/// [`PlanError`].
pub fn with_additions(
    map: &ClusterMap,
    policy: &Policy,
    additions: &Additions,
    now_ms: u64,
) -> Result<(ClusterMap, Forecast), PlanError> {
    let mut inventory = Inventory::of_map(map);
    add(map, additions, &mut inventory);
    let Some(profile) = additions.profile else {
        return settle(policy, map, &[], Some(&inventory), now_ms);
    };
    let policy = Policy { hot_profile: profile, ..policy.clone() };
    let reports = Reports::default();
    let input = PlanInput { policy: &policy, inventory: &inventory, map: None, reports: &reports, now_ms };
    let new = plan(&input)?.map.expect("a first map is never without a change");
    Ok((new, Forecast::default()))
}

fn add(map: &ClusterMap, additions: &Additions, inventory: &mut Inventory) {
    let hot = || map.devices.values().filter(|entry| entry.tier == Tier::Hot);
    let count = hot().count().max(1);
    let mean = hot().map(|entry| entry.capacity_bytes).sum::<u64>() / count as u64;
    let capacity_bytes = additions.device_bytes.unwrap_or(mean);
    let racks: BTreeSet<&str> = map.nodes.values().map(|node| node.rack.as_str()).collect();
    let apart = racks.len() == map.nodes.len();
    let mut next_device = map.devices.keys().next_back().map_or(0, |device| device.0);
    let mut next_node = map.nodes.keys().next_back().map_or(0, |node| node.0);
    let mut put = |inventory: &mut Inventory, node: NodeId| {
        // Ids of real devices are random: one may be the greatest there is.
        loop {
            next_device = next_device.wrapping_add(1);
            if !inventory.devices.contains_key(&DeviceId(next_device)) {
                break;
            }
        }
        let (location, present) = ("what-if".to_owned(), true);
        let seen =
            DeviceObservation { node, tier: Tier::Hot, capacity_bytes, location, present, replaces: None };
        inventory.devices.insert(DeviceId(next_device), seen);
    };
    let each = additions.devices_per_node.unwrap_or_else(|| (count / map.nodes.len().max(1)).max(1));
    for index in 0..additions.nodes {
        next_node += 1;
        let rack = match apart {
            true => format!("what-if-{next_node}"),
            false => racks.iter().nth(index % racks.len().max(1)).copied().unwrap_or_default().to_owned(),
        };
        let address = format!("what-if-{next_node}");
        inventory.nodes.insert(NodeId(next_node), NodeObservation { address, rack });
        (0..each).for_each(|_| put(inventory, NodeId(next_node)));
    }
    for _ in 0..additions.devices {
        let on = |node: &NodeId| inventory.devices.values().filter(|seen| seen.node == *node).count();
        let Some(node) = inventory.nodes.keys().copied().min_by_key(|node| (on(node), *node)) else { return };
        put(inventory, node);
    }
}

/// The groups that hold data, as indices of devices: what loss is simulated on.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Layout {
    /// Mean seconds from each device's loss until it is made anew.
    pub(crate) repair_s: Vec<f64>,
    /// Members, and how many of them may be gone.
    pub(crate) groups: Vec<(Vec<usize>, usize)>,
    /// Groups of each device.
    pub(crate) of_device: Vec<Vec<usize>>,
}

impl Layout {
    pub(crate) fn new(repair_s: Vec<f64>, groups: Vec<(Vec<usize>, usize)>) -> Self {
        let mut of_device = vec![Vec::new(); repair_s.len()];
        for (index, (members, _)) in groups.iter().enumerate() {
            members.iter().for_each(|member| of_device[*member].push(index));
        }
        Self { repair_s, groups, of_device }
    }
}

/// Judges the hot tier of a map.
///
/// `None`: no device is in, or no group holds data.
#[expect(clippy::cast_possible_truncation, reason = "an estimate, and whole bytes are enough")]
pub fn worth(map: &ClusterMap, hardware: &Hardware, trials: Trials) -> Option<Worth> {
    let is_hot = |device: &DeviceId| {
        map.devices.get(device).is_some_and(|e| e.tier == Tier::Hot && e.state == DeviceState::In)
    };
    let devices: Vec<DeviceId> = map.devices.keys().copied().filter(is_hot).collect();
    let index: BTreeMap<DeviceId, usize> = devices.iter().enumerate().map(|(at, id)| (*id, at)).collect();
    let capacity = |device: &DeviceId| map.devices[device].capacity_bytes as f64;
    let mut groups = Vec::new();
    let (mut positions, mut data) = (vec![0_u64; devices.len()], 0_u64);
    let mut profiles: BTreeMap<(u8, u8), usize> = BTreeMap::new();
    for (_, group) in map.open_groups(Tier::Hot) {
        let members: Vec<usize> = group.members.iter().map(|device| index[device]).collect();
        members.iter().for_each(|at| positions[*at] += 1);
        data += group.profile.data() as u64;
        *profiles.entry((group.profile.data_shards, group.profile.parity_shards)).or_default() += 1;
        groups.push((members, group.profile.parity()));
    }
    let (&(data_shards, parity_shards), _) = profiles.iter().max_by_key(|(_, count)| **count)?;
    let profile = ErasureProfile { data_shards, parity_shards };
    let nodes: BTreeSet<NodeId> = devices.iter().map(|device| map.devices[device].node).collect();
    let mut layout = Layout::new(vec![hardware.wait_s; devices.len()], groups);
    let mut nic_bound = false;
    for (at, device) in devices.iter().enumerate() {
        let partners = partners(&layout, at, &devices, map);
        let (seconds, by_nic) = rebuild_s(capacity(device) * hardware.fill, profile, partners, hardware);
        layout.repair_s[at] = hardware.wait_s + seconds;
        nic_bound |= by_nic;
    }
    let raw: f64 = devices.iter().map(capacity).sum();
    let usable = raw * profile.data() as f64 / profile.total() as f64;
    let filled = devices.iter().zip(&positions).filter(|(_, count)| **count > 0);
    let bytes_of_position =
        filled.map(|(device, count)| capacity(device) / *count as f64).fold(f64::MAX, f64::min);
    let cost = raw / 1e12 * hardware.cost_per_tb;
    Some(Worth {
        devices: devices.len(),
        nodes: nodes.len(),
        profile,
        raw_bytes: raw as u64,
        usable_bytes: usable as u64,
        first_full_bytes: (bytes_of_position * data as f64).min(usable) as u64,
        rebuild_hours: layout.repair_s.iter().copied().fold(0.0, f64::max) / 3600.0,
        nic_bound,
        cost,
        cost_per_usable_tb: if usable > 0.0 { cost / (usable / 1e12) } else { 0.0 },
        loss: loss::estimate(&layout, hardware.afr / YEAR_S, trials),
    })
}

/// Devices, and nodes of them, that share a group with a device.
fn partners(layout: &Layout, of: usize, devices: &[DeviceId], map: &ClusterMap) -> (usize, usize) {
    let groups = layout.of_device[of].iter().flat_map(|group| &layout.groups[*group].0);
    let others: BTreeSet<usize> = groups.copied().filter(|other| *other != of).collect();
    let nodes: BTreeSet<NodeId> = others.iter().map(|at| map.devices[&devices[*at]].node).collect();
    (others.len(), nodes.len())
}

/// Seconds to make `bytes` anew: k bytes are read and one is written for each, spread evenly over the devices that share
/// groups with the lost one; all that is read goes over the network unless there is one node. And whether the network bounds it.
fn rebuild_s(
    bytes: f64,
    profile: ErasureProfile,
    (devices, nodes): (usize, usize),
    hardware: &Hardware,
) -> (f64, bool) {
    let k = profile.data() as f64;
    let by_device = bytes * (k + 1.0) / (hardware.rebuild_bytes_per_s * devices.max(1) as f64);
    let by_nic = if nodes > 1 { bytes * k / (hardware.nic_bytes_per_s * nodes as f64) } else { 0.0 };
    (by_device.max(by_nic), by_nic > by_device)
}
