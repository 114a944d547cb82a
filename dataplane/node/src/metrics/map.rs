//! What the cluster map says, counted when it changes.

use std::collections::BTreeMap;

use quarry_clustermap::{ClusterMap, DeviceId, NodeId, Tier};
use quarry_meter::page::Page;

use super::families::{
    DEVICE_IN, MAP_DEVICES, MAP_GROUPS, MAP_HEADLESS, MAP_MISSING, MAP_NODES, MAP_OPEN, MAP_PARTITIONS,
    MAP_VERSION,
};

/// The map in numbers.
#[derive(Default)]
pub(super) struct MapNumbers {
    version: u64,
    nodes: u64,
    partitions: u64,
    headless: u64,
    open: u64,
    /// Devices that are in, and the others.
    devices: [u64; 2],
    /// Each with its node and whether it is in.
    device_states: Vec<(DeviceId, NodeId, bool)>,
    /// Of devices that are in.
    tiers: BTreeMap<String, Tier>,
    groups: BTreeMap<&'static str, u64>,
    missing: BTreeMap<usize, u64>,
}

impl MapNumbers {
    pub(super) fn of(map: &ClusterMap) -> Self {
        let mut numbers = Self {
            version: map.version.0,
            nodes: map.nodes.len() as u64,
            partitions: map.partitions.len() as u64,
            open: map.open_groups(Tier::Hot).count() as u64,
            // Series that are there before they count something can be watched for growth.
            groups: ["open", "sealed", "moving"].map(|state| (state, 0)).into(),
            missing: (0..=map.hot_profile.parity()).map(|missing| (missing, 0)).collect(),
            ..Self::default()
        };
        for (id, entry) in &map.devices {
            let is_in = map.is_in(*id);
            numbers.devices[usize::from(!is_in)] += 1;
            numbers.device_states.push((*id, entry.node, is_in));
            if is_in {
                numbers.tiers.insert(id.to_string(), entry.tier);
            }
        }
        let headless = map.partitions.iter().filter(|part| !map.is_in(part.primary) || !part.has_history());
        numbers.headless = headless.count() as u64;
        for group in map.placement_groups.values() {
            let state = match group.state {
                quarry_clustermap::PgState::Open => "open",
                quarry_clustermap::PgState::Sealed => "sealed",
                quarry_clustermap::PgState::Moving => "moving",
            };
            *numbers.groups.entry(state).or_default() += 1;
            *numbers.missing.entry(group.positions_not_whole(map)).or_default() += 1;
        }
        numbers
    }

    /// The tier of a device that is in.
    pub(super) fn tier(&self, device: &str) -> Option<Tier> {
        self.tiers.get(device).copied()
    }

    /// `node`: whose devices are shown; `None`: all.
    pub(super) fn collect(&self, node: Option<NodeId>, page: &mut Page) {
        if self.partitions == 0 {
            return;
        }
        page.count(&MAP_VERSION, &[], self.version);
        page.count(&MAP_NODES, &[], self.nodes);
        page.count(&MAP_PARTITIONS, &[], self.partitions);
        page.count(&MAP_HEADLESS, &[], self.headless);
        page.count(&MAP_OPEN, &[], self.open);
        for (state, count) in ["in", "out"].into_iter().zip(self.devices) {
            page.count(&MAP_DEVICES, &[("state", state)], count);
        }
        for (device, of, is_in) in &self.device_states {
            if node.is_none_or(|node| node == *of) {
                page.count(&DEVICE_IN, &[("device", &device.to_string())], u64::from(*is_in));
            }
        }
        for (state, count) in &self.groups {
            page.count(&MAP_GROUPS, &[("state", state)], *count);
        }
        for (missing, count) in &self.missing {
            page.count(&MAP_MISSING, &[("missing", &missing.to_string())], *count);
        }
    }
}
