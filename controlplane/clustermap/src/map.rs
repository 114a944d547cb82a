//! The cluster map: members, devices, placement groups, partitions and their states.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    ClusterId, DeviceId, Epoch, ErasureProfile, Incarnation, MapVersion, NodeId, Operations, PartitionId,
    PgId, Tiering,
};

/// A device class with its own profile and policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// NVMe: new blobs, all metadata.
    Hot,
    /// HDD: blobs that policy or lifecycle moved down.
    Cold,
}

impl Tier {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Hot, Self::Cold];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Cold => "cold",
        }
    }
}

/// Whether a device takes part.
///
/// ```text
///        error, lost, missing          replaced, and named by nothing
///   In ------------------------> Out ----------------------------------> (gone from the map)
///      <------------------------
///        found again and recovered
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// Serves reads and writes.
    In,
    /// Failed or missing: serves nothing until it returns or is replaced.
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
    /// Since when it is out, milliseconds since 1970; `None` while it is in (and in a map of before this was kept).
    #[serde(default)]
    pub out_since_ms: Option<u64>,
    /// It is out and another device took its place: it leaves the map as soon as nothing names it.
    #[serde(default)]
    pub replaced: bool,
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
    /// All of `replicas` if every one of them lost its history, else empty: then no device holds what was acknowledged,
    /// and none may serve, not even the primary.
    #[serde(default)]
    pub lost: BTreeSet<DeviceId>,
    /// Those that left the in-sync set although they may be back soon, and when, in milliseconds since 1970. No members:
    /// they are sent nothing. Their places are kept, so that they need only what was logged meanwhile.
    #[serde(default)]
    pub away: BTreeMap<DeviceId, u64>,
}

impl PartitionConfig {
    /// In-sync and joining members.
    pub fn members(&self) -> impl Iterator<Item = DeviceId> + '_ {
        self.replicas.iter().chain(&self.joining).copied()
    }

    /// Members, and who may be one again soon.
    pub fn places(&self) -> impl Iterator<Item = DeviceId> + '_ {
        self.members().chain(self.away.keys().copied())
    }

    /// Whether some in-sync replica, in or out, still has its history. If not, the partition serves nothing.
    pub fn has_history(&self) -> bool {
        self.lost.is_empty()
    }
}

/// Life of a placement group; only one that takes no blobs changes members, and it is then moving.
///
/// ```text
///        a member is out, or             a replacement is due:
///        not the profile to open         a position has a new member
///   Open -----------------------> Sealed ---------------------------> Moving -+ another replacement:
///    ^ <------------------------- ^  all in, profile to open            | ^---+ one more position, new epoch
///    |                            |                                     |
///    |                            +---- reported whole, not to open ----+
///    +--------------------------------- reported whole, to open --------+
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PgState {
    /// Takes new blobs.
    Open,
    /// Refuses new blobs; a member is out, or a move is being prepared.
    Sealed,
    /// Refuses new blobs; the shards of [`PlacementGroup::rebuilding`] are being created on their new members.
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
    /// Positions whose member may lack shards, each with the device that last held it whole: not empty exactly while
    /// moving. A new member stands in `members`; the old one is named here so that it can take its place again.
    #[serde(default)]
    pub rebuilding: BTreeMap<u8, DeviceId>,
}

impl PlacementGroup {
    /// Positions that may lack shards: neither their member, nor the former one of a position that moves, is in and
    /// whole.
    pub fn positions_not_whole(&self, map: &ClusterMap) -> usize {
        let whole = |position: &u8| match self.rebuilding.get(position) {
            Some(former) => map.is_in(*former),
            None => map.is_in(self.members[usize::from(*position)]),
        };
        self.members.len() - (0_u8..).take(self.members.len()).filter(whole).count()
    }

    /// The device to read a position's shards from: the former member for as long as it is in and another one is being
    /// filled in its place, else the member; `None` if neither is in.
    pub fn holder(&self, map: &ClusterMap, position: u8) -> Option<DeviceId> {
        let former = self.rebuilding.get(&position).filter(|former| map.is_in(**former));
        former
            .or_else(|| self.members.get(usize::from(position)).filter(|device| map.is_in(**device)))
            .copied()
    }

    /// Former members of positions that move, which are in and hold what the new ones are still to get.
    pub fn formers_in(&self, map: &ClusterMap) -> impl Iterator<Item = (u8, DeviceId)> {
        self.rebuilding
            .iter()
            .map(|(position, former)| (*position, *former))
            .filter(|(_, former)| map.is_in(*former))
    }
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
    /// What the operator has asked for.
    #[serde(default)]
    pub operations: Operations,
    /// How data is spread over tiers.
    #[serde(default)]
    pub tiering: Tiering,
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

    /// The profile wanted for new blobs of a tier.
    pub fn wanted_profile(&self, tier: Tier) -> ErasureProfile {
        match tier {
            Tier::Hot => self.hot_profile,
            Tier::Cold => self.tiering.cold_profile.unwrap_or(self.hot_profile),
        }
    }

    /// Whether a device is to be emptied: it, or its node, is drained.
    pub fn is_leaving(&self, device: DeviceId) -> bool {
        let of_node = |entry: &DeviceEntry| self.operations.draining_nodes.contains(&entry.node);
        self.operations.draining_devices.contains(&device) || self.devices.get(&device).is_some_and(of_node)
    }

    /// How often placement groups and partitions name a device, as a member or as the former one of a move.
    pub fn uses_of(&self, device: DeviceId) -> usize {
        let groups = self.placement_groups.values();
        let of_groups =
            groups.flat_map(|group| group.members.iter().chain(group.rebuilding.values()).copied());
        let of_partitions = self.partitions.iter().flat_map(PartitionConfig::members);
        of_groups.chain(of_partitions).filter(|used| *used == device).count()
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
        let distinct: BTreeSet<DeviceId> = config.places().collect();
        if distinct.len() != config.places().count() {
            return Err("a device is listed twice");
        }
        if !config.replicas.contains(&config.primary) {
            return Err("the primary is not in the in-sync set");
        }
        if distinct.iter().any(|device| !self.devices.contains_key(device)) {
            return Err("a member is not in the map");
        }
        if !config.lost.is_empty() && config.lost != config.replicas.iter().copied().collect() {
            return Err("only part of the in-sync set has lost its history");
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
        if (group.state == PgState::Moving) == group.rebuilding.is_empty() {
            return Err("a moving group, and no other, has positions to rebuild");
        }
        if group.rebuilding.keys().any(|position| usize::from(*position) >= group.members.len()) {
            return Err("a position to rebuild is not below k+m");
        }
        if group.rebuilding.values().any(|device| !self.devices.contains_key(device)) {
            return Err("the former member of a position is not in the map");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DeviceId = DeviceId(1);
    const B: DeviceId = DeviceId(2);

    fn map() -> ClusterMap {
        let node = NodeEntry { address: String::new(), rack: String::new(), incarnation: Incarnation(1) };
        let device = DeviceEntry {
            node: NodeId(1),
            tier: Tier::Hot,
            capacity_bytes: 1,
            state: DeviceState::In,
            out_since_ms: None,
            replaced: false,
            location: String::new(),
        };
        let partition = PartitionConfig {
            epoch: Epoch(1),
            primary: A,
            replicas: vec![A, B],
            joining: Vec::new(),
            lost: BTreeSet::new(),
            away: BTreeMap::new(),
        };
        let group = PlacementGroup {
            epoch: Epoch(1),
            tier: Tier::Hot,
            profile: ErasureProfile { data_shards: 1, parity_shards: 1 },
            members: vec![A, B],
            state: PgState::Open,
            rebuilding: BTreeMap::new(),
        };
        ClusterMap {
            cluster: ClusterId([7; 16]),
            version: MapVersion(1),
            hot_profile: group.profile,
            nodes: BTreeMap::from([(NodeId(1), node)]),
            devices: BTreeMap::from([(A, device.clone()), (B, device)]),
            partitions: vec![partition],
            placement_groups: BTreeMap::from([(PgId(0), group)]),
            operations: Operations::default(),
            tiering: Tiering::default(),
        }
    }

    fn problem(edit: impl FnOnce(&mut PartitionConfig, &mut PlacementGroup)) -> String {
        let mut map = map();
        let group = map.placement_groups.get_mut(&PgId(0)).unwrap();
        edit(&mut map.partitions[0], group);
        map.validate().map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_group_is_moving_exactly_while_positions_are_rebuilt() {
        let moving = "pg-0: a moving group, and no other, has positions to rebuild";
        assert_eq!(problem(|_, _| {}), "");
        assert_eq!(problem(|_, group| group.state = PgState::Moving), moving);
        assert_eq!(problem(|_, group| group.rebuilding.extend([(1, A)])), moving);
        let both = |position, former| {
            problem(|_, group| {
                group.state = PgState::Moving;
                group.rebuilding.insert(position, former);
            })
        };
        assert_eq!(both(1, B), "");
        assert_eq!(both(2, B), "pg-0: a position to rebuild is not below k+m");
        assert_eq!(both(1, DeviceId(3)), "pg-0: the former member of a position is not in the map");
    }

    #[test]
    fn a_lost_history_concerns_the_whole_in_sync_set() {
        assert_eq!(problem(|config, _| config.lost = [A, B].into()), "");
        let part = "partition-0: only part of the in-sync set has lost its history";
        assert_eq!(problem(|config, _| config.lost = [A].into()), part);
    }

    #[test]
    fn who_is_away_is_no_member() {
        assert_eq!(
            problem(|config, _| config.away.extend([(B, 1)])),
            "partition-0: a device is listed twice"
        );
        let left = |config: &mut PartitionConfig| {
            config.replicas = vec![A];
            config.away.insert(B, 1);
        };
        assert_eq!(problem(|config, _| left(config)), "");
        assert_eq!(
            problem(|config, _| config.away.extend([(DeviceId(3), 1)])),
            "partition-0: a member is not in the map"
        );
    }

    #[test]
    fn a_position_counts_once_as_not_whole() {
        let mut map = map();
        map.devices.get_mut(&B).unwrap().state = DeviceState::Out;
        let mut group = map.placement_groups[&PgId(0)].clone();
        assert_eq!(group.positions_not_whole(&map), 1);
        group.rebuilding.insert(1, B);
        assert_eq!(group.positions_not_whole(&map), 1);
        group.rebuilding.insert(0, B);
        assert_eq!(group.positions_not_whole(&map), 2);
        group.rebuilding.insert(0, A);
        assert_eq!(
            (group.positions_not_whole(&map), group.holder(&map, 0)),
            (1, Some(A)),
            "the former one is in"
        );
    }

    #[test]
    fn a_group_with_an_impossible_profile_is_refused() {
        let mut map = map();
        assert_eq!(map.validate(), Ok(()));
        let group = map.placement_groups.get_mut(&PgId(0)).unwrap();
        group.profile = ErasureProfile { data_shards: 0, parity_shards: 2 };
        let impossible = map.validate();
        assert!(matches!(impossible, Err(MapError::PlacementGroup { .. })), "{impossible:?}");
    }
}
