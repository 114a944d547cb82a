//! Failure domains: how widely the members of one set (a placement group, the replicas of a partition) are spread.
//!
//! Racks hold nodes, nodes hold devices. A set has at most so many members on one rack and on one node as it must have
//! to find room at all. Of the two, racks come first as long as the loss of a whole rack is survived by that; else nodes.

use std::{cell::RefCell, collections::BTreeMap};

use quarry_clustermap::{ClusterMap, DeviceId, NodeId};

/// The most members that a set may have on one rack, and on one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spread {
    pub(crate) rack: usize,
    pub(crate) node: usize,
}

/// How widely sets can be spread over some devices. Devices are counted once and each answer is kept: a plan asks for
/// every set, and a cluster has as many sets as devices, or more.
#[derive(Debug)]
pub(crate) struct Spreads {
    /// Devices of each node of each rack.
    racks: Vec<Vec<usize>>,
    known: RefCell<BTreeMap<(usize, usize), Spread>>,
}

impl Spreads {
    pub(crate) fn new(map: &ClusterMap, devices: &[DeviceId]) -> Self {
        let mut racks: BTreeMap<&str, BTreeMap<NodeId, usize>> = BTreeMap::new();
        for device in devices {
            let node = map.devices[device].node;
            *racks.entry(&map.nodes[&node].rack).or_default().entry(node).or_default() += 1;
        }
        let racks = racks.into_values().map(|nodes| nodes.into_values().collect()).collect();
        Self { racks, known: RefCell::default() }
    }

    /// The widest spread of `width` members, of which `spare` may be lost at once.
    pub(crate) fn of(&self, width: usize, spare: usize) -> Spread {
        *self.known.borrow_mut().entry((width, spare)).or_insert_with(|| self.widest(width, spare))
    }

    fn widest(&self, width: usize, spare: usize) -> Spread {
        let room = |rack: usize, node: usize| -> usize {
            let of_rack = |nodes: &Vec<usize>| nodes.iter().map(|count| (*count).min(node)).sum();
            self.racks.iter().map(|nodes| rack.min(of_rack(nodes))).sum()
        };
        let least = |fits: &dyn Fn(usize) -> bool| (1..width).find(|limit| fits(*limit)).unwrap_or(width);
        let rack = least(&|rack| room(rack, width) >= width);
        if rack <= spare {
            return Spread { rack, node: least(&|node| room(rack, node) >= width) };
        }
        let node = least(&|node| room(width, node) >= width);
        Spread { rack: least(&|rack| room(rack, node) >= width), node }
    }
}

impl Spread {
    /// Whether a set that has `taken` may have `device` too. Greedy use never gets stuck: as long as a set is not full,
    /// some device is allowed.
    pub(crate) fn allows(self, map: &ClusterMap, taken: &[DeviceId], device: DeviceId) -> bool {
        let node = map.devices[&device].node;
        let rack = &map.nodes[&node].rack;
        let (mut on_rack, mut on_node) = (0, 0);
        for other in taken.iter().filter_map(|device| map.devices.get(device)) {
            on_node += usize::from(other.node == node);
            on_rack += usize::from(map.nodes[&other.node].rack == *rack);
        }
        on_rack < self.rack && on_node < self.node && !taken.contains(&device)
    }
}

/// Devices ordered so that neighbours lie in different domains as far as possible: first one of each node, the nodes of
/// one rack apart, then the second of each, and so on.
pub(crate) fn interleave(map: &ClusterMap, devices: &[DeviceId]) -> Vec<DeviceId> {
    let mut nodes: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut racks: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    let mut keyed = Vec::with_capacity(devices.len());
    for device in devices {
        let node = map.devices[device].node;
        let rank = nodes.entry(node).or_default();
        let rack = racks.entry(&map.nodes[&node].rack).or_default();
        if !rack.contains(&node) {
            rack.push(node);
        }
        keyed.push((*rank, node, *device));
        *rank += 1;
    }
    racks.values_mut().for_each(|nodes| nodes.sort_unstable());
    keyed.sort_by_key(|(rank, node, device)| {
        let rack = map.nodes[node].rack.as_str();
        let of_rack = racks[rack].iter().position(|other| other == node);
        (*rank, of_rack, rack, *node, *device)
    });
    keyed.into_iter().map(|(_, _, device)| device).collect()
}
