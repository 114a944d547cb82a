//! The difference of two maps as text for people: plans are shown, and tested, in this form.

use std::fmt;

use quarry_clustermap::{
    ClusterMap, DeviceEntry, DeviceId, DeviceState, Operations, PartitionConfig, PgState, PlacementGroup,
};

/// Prints what differs, one line for each node, device, partition and placement group; nothing if the maps are equal.
#[derive(Clone, Copy, Debug)]
pub struct MapDiff<'a> {
    old: Option<&'a ClusterMap>,
    new: &'a ClusterMap,
}

impl<'a> MapDiff<'a> {
    /// Compares `new` with `old`; with `None` everything is new.
    pub fn new(old: Option<&'a ClusterMap>, new: &'a ClusterMap) -> Self {
        Self { old, new }
    }
}

impl fmt::Display for MapDiff<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let new = self.new;
        match self.old {
            Some(old) if old == new => return Ok(()),
            Some(old) => writeln!(f, "{} -> {}", old.version, new.version)?,
            None => writeln!(f, "{} (first)", new.version)?,
        }
        if self.old.is_none_or(|old| old.hot_profile != new.hot_profile) {
            writeln!(f, "hot profile {}", new.hot_profile)?;
        }
        let tiering = |map: &ClusterMap| (map.tiering.cold_profile, map.tiering.policy.enabled);
        if let Some(old) = self.old.filter(|old| old.tiering != new.tiering) {
            let ((cold_before, was_on), (cold, is_on)) = (tiering(old), tiering(new));
            if let Some(cold) = cold.filter(|_| cold != cold_before) {
                writeln!(f, "cold profile {cold}")?;
            }
            let state = |on| if on { "on" } else { "off" };
            let policy = &new.tiering.policy;
            writeln!(
                f,
                "tier policy {} -> {}: from {} % down to {} %, idle {} s, {} reads an hour, cool-down {} s, {} bytes/s",
                state(was_on),
                state(is_on),
                policy.high_percent,
                policy.low_percent,
                policy.idle_s,
                policy.promote_reads_per_hour,
                policy.cool_down_s,
                policy.bytes_per_second,
            )?;
        }
        if self.old.is_none_or(|old| old.operations != new.operations) {
            write!(f, "{}", Asked(&new.operations))?;
        }
        for (id, node) in &new.nodes {
            match self.old.and_then(|old| old.nodes.get(id)) {
                Some(old) if old == node => {}
                Some(old) => writeln!(f, "  {id}: {} -> {}", old.incarnation, node.incarnation)?,
                None => writeln!(f, "+ {id}: {}", node.incarnation)?,
            }
        }
        for (id, device) in &new.devices {
            match self.old.and_then(|old| old.devices.get(id)) {
                Some(old) if old == device => {}
                Some(old) => writeln!(f, "  {id}: {} -> {}", Device(old), Device(device))?,
                None => writeln!(f, "+ {id}: {}", Device(device))?,
            }
        }
        let gone = self.old.into_iter().flat_map(|old| &old.devices);
        for (id, device) in gone.filter(|(id, _)| !new.devices.contains_key(id)) {
            writeln!(f, "- {id}: {}", Device(device))?;
        }
        for (index, config) in new.partitions.iter().enumerate() {
            match self.old.and_then(|old| old.partitions.get(index)) {
                Some(old) if old == config => {}
                Some(old) => writeln!(f, "  partition-{index}: {} -> {}", Partition(old), Partition(config))?,
                None => writeln!(f, "+ partition-{index}: {}", Partition(config))?,
            }
        }
        for (id, group) in &new.placement_groups {
            match self.old.and_then(|old| old.placement_groups.get(id)) {
                Some(old) if old == group => {}
                Some(old) => writeln!(f, "  {id}: {} -> {}", Group(old), Group(group))?,
                None => writeln!(f, "+ {id}: {}", Group(group))?,
            }
        }
        Ok(())
    }
}

struct Asked<'a>(&'a Operations);

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operations { draining_nodes, draining_devices, removed_nodes, paused, bytes_per_second } = self.0;
        let mut line = |what: &str, names: Vec<String>| match names.is_empty() {
            true => Ok(()),
            false => writeln!(f, "{what} {}", names.join(" ")),
        };
        line("drained", draining_nodes.iter().map(ToString::to_string).collect())?;
        line("drained", draining_devices.iter().map(ToString::to_string).collect())?;
        line("removed", removed_nodes.iter().map(ToString::to_string).collect())?;
        line("paused", paused.iter().map(ToString::to_string).collect())?;
        line("budget in bytes/s", bytes_per_second.iter().map(ToString::to_string).collect())
    }
}

struct Ids<'a>(&'a [DeviceId]);

impl fmt::Display for Ids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, id) in self.0.iter().enumerate() {
            write!(f, "{}{:x}", if position == 0 { "" } else { " " }, id.0)?;
        }
        Ok(())
    }
}

struct Device<'a>(&'a DeviceEntry);

impl fmt::Display for Device<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceEntry { node, tier, capacity_bytes, state, location, out_since_ms, replaced } = self.0;
        let state = if *state == DeviceState::In { "in" } else { "out" };
        write!(f, "{state} {node} {tier:?} {capacity_bytes} bytes at {location}")?;
        if let Some(since) = out_since_ms {
            write!(f, ", out since {since} ms")?;
        }
        if *replaced { f.write_str(", replaced") } else { Ok(()) }
    }
}

struct Partition<'a>(&'a PartitionConfig);

impl fmt::Display for Partition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PartitionConfig { epoch, primary, replicas, joining, lost, away } = self.0;
        write!(f, "{epoch} primary {:x} of [{}]", primary.0, Ids(replicas))?;
        if !joining.is_empty() {
            write!(f, " joining [{}]", Ids(joining))?;
        }
        if !away.is_empty() {
            write!(f, " away [{}]", Ids(&away.keys().copied().collect::<Vec<_>>()))?;
        }
        if lost.is_empty() { Ok(()) } else { f.write_str(", history lost") }
    }
}

struct Group<'a>(&'a PlacementGroup);

impl fmt::Display for Group<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlacementGroup { epoch, profile, members, state, rebuilding, tier: _ } = self.0;
        let state = match state {
            PgState::Open => "open",
            PgState::Sealed => "sealed",
            PgState::Moving => "moving",
        };
        write!(f, "{epoch} {state} {profile} [{}]", Ids(members))?;
        for (position, former) in rebuilding {
            write!(f, " rebuilding {position} (was {:x})", former.0)?;
        }
        Ok(())
    }
}
