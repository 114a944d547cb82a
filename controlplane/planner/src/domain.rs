//! Failure domains: the broadest level at which enough distinct ones exist.
//!
//! m+1 replicas (or k+m shards) are kept apart by rack if there are that many racks, else by node, else by device.
//! The level is chosen per use and per plan, from the devices that are in.

use std::collections::BTreeSet;

use quarry_clustermap::{ClusterMap, DeviceId, NodeId};

/// What keeps two members of one set apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    Rack,
    Node,
    Device,
}

/// One failure domain at some level.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Domain {
    Rack(String),
    Node(NodeId),
    Device(DeviceId),
}

impl Level {
    /// The broadest level with at least `needed` domains among `devices`; devices themselves if none has.
    pub(crate) fn choose(map: &ClusterMap, devices: &[DeviceId], needed: usize) -> Self {
        let enough = |level: &Self| {
            devices.iter().map(|device| level.domain(map, *device)).collect::<BTreeSet<_>>().len() >= needed
        };
        [Self::Rack, Self::Node].into_iter().find(enough).unwrap_or(Self::Device)
    }

    /// The domain of a device in the map.
    pub(crate) fn domain(self, map: &ClusterMap, device: DeviceId) -> Domain {
        let node = map.devices[&device].node;
        match self {
            Self::Rack => Domain::Rack(map.nodes[&node].rack.clone()),
            Self::Node => Domain::Node(node),
            Self::Device => Domain::Device(device),
        }
    }
}

/// Devices ordered so that neighbours lie in different domains as far as possible: first one of each domain, then the
/// second of each, and so on.
pub(crate) fn interleave(map: &ClusterMap, devices: &[DeviceId], level: Level) -> Vec<DeviceId> {
    let mut keyed: Vec<(usize, Domain, DeviceId)> = Vec::with_capacity(devices.len());
    for device in devices {
        let domain = level.domain(map, *device);
        let rank = keyed.iter().filter(|(_, other, _)| *other == domain).count();
        keyed.push((rank, domain, *device));
    }
    keyed.sort();
    keyed.into_iter().map(|(_, _, device)| device).collect()
}
