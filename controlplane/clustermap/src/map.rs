//! The cluster map: members, devices, placement groups, partitions and their states.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{ClusterId, DeviceId, Epoch, ErasureProfile, Incarnation, MapVersion, NodeId, PartitionId, PgId};

/// A device class with its own profile and policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// NVMe: new blobs, all metadata.
    Hot,
    /// HDD: blobs that policy or lifecycle moved down.
    Cold,
}

/// Whether a device takes part.
///
/// ```text
///        error, lost, missing            replaced or removed
///   In ------------------------> Out ------------------------> (gone from the map)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// Serves reads and writes.
    In,
    /// Failed or missing: serves nothing until it is replaced.
    Out,
}

/// One data-plane process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Address of its peer transport; empty for a standalone node.
    pub address: String,
    /// Failure domain above the node.
    pub rack: String,
    /// How often it has started; blob ids carry it.
    pub incarnation: Incarnation,
}

/// One device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceEntry {
    /// The node it is attached to.
    pub node: NodeId,
    /// Its device class.
    pub tier: Tier,
    /// Usable bytes.
    pub capacity_bytes: u64,
    /// Whether it takes part.
    pub state: DeviceState,
    /// Where the node finds it (a path); for people and for start-up, never for identity.
    pub location: String,
}

/// Members of one metadata partition. `replicas` are disjoint from `joining`; `primary` is one of `replicas`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartitionConfig {
    /// Map version at which this entry last changed.
    pub epoch: Epoch,
    /// The replica that serialises operations.
    pub primary: DeviceId,
    /// The in-sync set, in order of preference for the next primary.
    pub replicas: Vec<DeviceId>,
    /// Replicas that append every record but whose history is not whole yet: they count as a flushed copy, and
    /// cannot become primary.
    pub joining: Vec<DeviceId>,
}

impl PartitionConfig {
    /// In-sync and joining members.
    pub fn members(&self) -> impl Iterator<Item = DeviceId> + '_ {
        self.replicas.iter().chain(&self.joining).copied()
    }
}

/// Life of a placement group; only a sealed one changes members.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PgState {
    /// Takes new blobs.
    Open,
    /// Refuses new blobs; a member is out, or a move is being prepared.
    Sealed,
    /// Shards are being re-created on, or copied to, the new members.
    Moving,
}

/// An ordered erasure set. Member `i` holds shard `i` of every blob written here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlacementGroup {
    /// Map version at which this entry last changed.
    pub epoch: Epoch,
    /// Device class of all members.
    pub tier: Tier,
    /// k+m; `members.len()` equals its total.
    pub profile: ErasureProfile,
    /// Ordered members, distinct devices.
    pub members: Vec<DeviceId>,
    /// See [`PgState`].
    pub state: PgState,
}

/// The whole map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// Grows by one with every change.
    pub version: MapVersion,
    /// Profile wanted for new blobs of the hot tier; PGs may carry a fallback with smaller k.
    pub hot_profile: ErasureProfile,
    /// Data-plane processes.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// Devices, in or out.
    pub devices: BTreeMap<DeviceId, DeviceEntry>,
    /// Indexed by partition id; the length never changes after creation.
    pub partitions: Vec<PartitionConfig>,
    /// Placement groups; a PG is kept as long as any manifest may name it.
    pub placement_groups: BTreeMap<PgId, PlacementGroup>,
}

/// What [`ClusterMap::validate`] found.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// A partition's members break a rule.
    #[error("{partition}: {problem}")]
    Partition {
        /// Which partition.
        partition: PartitionId,
        /// Which rule.
        problem: &'static str,
    },
    /// A placement group's members break a rule.
    #[error("{pg}: {problem}")]
    PlacementGroup {
        /// Which placement group.
        pg: PgId,
        /// Which rule.
        problem: &'static str,
    },
    /// A device names a node that is not in the map.
    #[error("{device} belongs to {node}, which is not in the map")]
    UnknownNode {
        /// The device.
        device: DeviceId,
        /// Its node.
        node: NodeId,
    },
}

impl ClusterMap {
    /// The entry of a partition.
    ///
    /// # Panics
    /// If the id is not below the number of partitions: ids come from `partition_of` with this map's count.
    pub fn partition(&self, id: PartitionId) -> &PartitionConfig {
        &self.partitions[usize::from(id.0)]
    }

    /// Number of partitions.
    pub fn partition_count(&self) -> u16 {
        u16::try_from(self.partitions.len()).expect("validated: partition ids are 16 bits")
    }

    /// Whether a device is in the map and takes part.
    pub fn is_in(&self, device: DeviceId) -> bool {
        self.devices.get(&device).is_some_and(|entry| entry.state == DeviceState::In)
    }

    /// Open placement groups of a tier whose members are all in, with their profiles.
    pub fn open_groups(&self, tier: Tier) -> impl Iterator<Item = (PgId, &PlacementGroup)> {
        self.placement_groups.iter().map(|(id, pg)| (*id, pg)).filter(move |(_, pg)| {
            pg.tier == tier
                && pg.state == PgState::Open
                && pg.members.iter().all(|device| self.is_in(*device))
        })
    }

    /// Checks every rule that the map alone can show. Run it on each map that is about to be committed or used.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn validate(&self) -> Result<(), MapError> {
        for (device, entry) in &self.devices {
            if !self.nodes.contains_key(&entry.node) {
                return Err(MapError::UnknownNode { device: *device, node: entry.node });
            }
        }
        for (index, config) in self.partitions.iter().enumerate() {
            let partition = PartitionId(u16::try_from(index).map_err(|_| MapError::Partition {
                partition: PartitionId(u16::MAX),
                problem: "more partitions than ids",
            })?);
            self.check_partition(config).map_err(|problem| MapError::Partition { partition, problem })?;
        }
        for (pg, group) in &self.placement_groups {
            self.check_group(group).map_err(|problem| MapError::PlacementGroup { pg: *pg, problem })?;
        }
        Ok(())
    }

    fn check_partition(&self, config: &PartitionConfig) -> Result<(), &'static str> {
        let distinct: BTreeSet<DeviceId> = config.members().collect();
        if distinct.len() != config.replicas.len() + config.joining.len() {
            return Err("a device is listed twice");
        }
        if !config.replicas.contains(&config.primary) {
            return Err("the primary is not in the in-sync set");
        }
        if distinct.iter().any(|device| !self.devices.contains_key(device)) {
            return Err("a member is not in the map");
        }
        if config.epoch.0 > self.version.0 {
            return Err("the epoch is newer than the map");
        }
        Ok(())
    }

    fn check_group(&self, group: &PlacementGroup) -> Result<(), &'static str> {
        let ErasureProfile { data_shards, parity_shards } = group.profile;
        if ErasureProfile::new(data_shards, parity_shards).is_err() {
            return Err("the erasure profile is out of range");
        }
        if group.members.len() != group.profile.total() {
            return Err("the number of members is not k+m");
        }
        if group.members.iter().collect::<BTreeSet<_>>().len() != group.members.len() {
            return Err("a device is listed twice");
        }
        if group.epoch.0 > self.version.0 {
            return Err("the epoch is newer than the map");
        }
        if group.state == PgState::Open
            && group.members.iter().any(|m| self.devices.get(m).is_none_or(|entry| entry.tier != group.tier))
        {
            return Err("an open group has a member of another tier, or one that is not in the map");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_with_an_impossible_profile_is_refused() {
        let valid = ErasureProfile { data_shards: 2, parity_shards: 1 };
        let node = NodeEntry { address: String::new(), rack: String::new(), incarnation: Incarnation(1) };
        let device = DeviceEntry {
            node: NodeId(1),
            tier: Tier::Hot,
            capacity_bytes: 1,
            state: DeviceState::In,
            location: String::new(),
        };
        let map = |profile| ClusterMap {
            cluster: ClusterId([7; 16]),
            version: MapVersion(1),
            hot_profile: valid,
            nodes: BTreeMap::from([(NodeId(1), node.clone())]),
            devices: (1..=3).map(|id| (DeviceId(id), device.clone())).collect(),
            partitions: Vec::new(),
            placement_groups: BTreeMap::from([(
                PgId(1),
                PlacementGroup {
                    epoch: Epoch(1),
                    tier: Tier::Hot,
                    profile,
                    members: (1..=3).map(DeviceId).collect(),
                    state: PgState::Open,
                },
            )]),
        };
        assert_eq!(map(valid).validate(), Ok(()));
        let impossible = map(ErasureProfile { data_shards: 0, parity_shards: 3 }).validate();
        assert!(matches!(impossible, Err(MapError::PlacementGroup { .. })), "{impossible:?}");
    }
}
