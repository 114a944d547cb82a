//! Who takes the positions of a device that is out.
//!
//! A placement group has m positions to spare, so each replacement keeps three rules: only a position whose member is
//! out gets another one; from then on it is listed in `rebuilding`, with the device that last held it whole; and only a
//! report of the group's newest epoch empties that list. Every step here is a new epoch of the group: work for an
//! earlier choice, and its report, no longer count.
//!
//! A position changes hands when
//! - its last whole holder is in again before the move is done, or is in when the one that was to follow it is out: it
//!   needs the least work;
//! - a new device names the one that is out: its owner knows that it will not return, so this happens at once and in
//!   every group, even in one that lost more than parity covers;
//! - its member is out for longer than the policy allows: the least loaded device of the tier takes it, in a failure
//!   domain of its own if there is one, as long as the group can be rebuilt.
//!
//! The device that was replaced stays in the map while anything names it: until its groups are whole without it.

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{
    ClusterMap, DeviceId, DeviceState, Epoch, JobKind, PgId, PgState, PlacementGroup, Tier,
};

use crate::{
    Move, PlanInput, devices_staying,
    domain::{Spread, Spreads},
    epoch_of,
};

/// Ends moves, and gives positions new members.
pub(crate) fn update(
    next: &mut ClusterMap,
    input: &PlanInput<'_>,
    moves: &mut Vec<Move>,
    reasons: &mut Vec<String>,
) {
    // Before the reports of this very plan: they may be older than what makes the move start over.
    renew(next, input);
    finish(next, input, reasons);
    reinstate(next, input, moves);
    replace_named(next, input, moves, reasons);
    if !next.operations.paused.contains(&JobKind::Repair) {
        replace_due(next, input, moves, reasons);
    }
}

/// Removes devices that were replaced and that nothing names any more.
pub(crate) fn retire(next: &mut ClusterMap, reasons: &mut Vec<String>) {
    let of_groups = next.placement_groups.values();
    let named: BTreeSet<DeviceId> = of_groups
        .flat_map(|group| group.members.iter().chain(group.rebuilding.values()).copied())
        .chain(next.partitions.iter().flat_map(|config| config.places()))
        .collect();
    next.devices.retain(|device, entry| {
        let stays = entry.state == DeviceState::In || !entry.replaced || named.contains(device);
        if !stays {
            reasons.push(format!("{device} was replaced and leaves the map"));
        }
        stays
    });
}

/// Ends the moves that are reported done: such a group is sealed until it is opened. If a new member has gone out since,
/// and the one before it is in, that one is worth more than the report.
fn finish(next: &mut ClusterMap, input: &PlanInput<'_>, reasons: &mut Vec<String>) {
    let epoch = epoch_of(next);
    let all_in: BTreeSet<DeviceId> =
        next.devices.keys().copied().filter(|device| next.is_in(*device)).collect();
    let falls_back = |group: &PlacementGroup| {
        group.rebuilding.iter().any(|(position, former)| {
            all_in.contains(former) && !all_in.contains(&group.members[usize::from(*position)])
        })
    };
    for report in &input.reports.moved {
        match next.placement_groups.get_mut(&report.pg) {
            Some(group)
                if group.state == PgState::Moving && group.epoch == report.epoch && !falls_back(group) =>
            {
                group.rebuilding.clear();
                (group.state, group.epoch) = (PgState::Sealed, epoch);
                reasons.push(format!("{} is whole", report.pg));
            }
            _ => reasons.push(format!("{} is not moving at {}: report ignored", report.pg, report.epoch)),
        }
    }
}

/// The last whole holder of a position is in again, or the one that was to follow it is out: it takes the position back.
fn reinstate(next: &mut ClusterMap, input: &PlanInput<'_>, moves: &mut Vec<Move>) {
    for pg in moving(next) {
        for (position, device) in next.placement_groups[&pg].rebuilding.clone() {
            let group = &next.placement_groups[&pg];
            let same_tier = next.devices[&device].tier == group.tier;
            let is_back = input.map.is_some_and(|map| !map.is_in(device)) && !next.is_leaving(device);
            let alone = !next.is_in(group.members[usize::from(position)]);
            if next.is_in(device) && (is_back || alone) && same_tier && !group.members.contains(&device) {
                give(next, pg, position, device, moves);
            }
        }
    }
}

/// A device that was opened again, also if it is out by now, may not hold what the repair of this epoch has put there:
/// the move starts over.
fn renew(next: &mut ClusterMap, input: &PlanInput<'_>) {
    let epoch = epoch_of(next);
    let is_back = |device| next.is_in(device) && input.map.is_some_and(|map| !map.is_in(device));
    let doubtful = |device: &DeviceId| {
        input.is_opened_again(*device) || input.reports.lost.contains_key(device) || is_back(*device)
    };
    let doubtful: BTreeSet<DeviceId> = next.devices.keys().copied().filter(doubtful).collect();
    for pg in moving(next) {
        let group = next.placement_groups.get_mut(&pg).expect("just listed");
        if group.rebuilding.keys().any(|position| doubtful.contains(&group.members[usize::from(*position)])) {
            group.epoch = epoch;
        }
    }
}

fn replace_named(
    next: &mut ClusterMap,
    input: &PlanInput<'_>,
    moves: &mut Vec<Move>,
    reasons: &mut Vec<String>,
) {
    let named = input.inventory.devices.iter().filter_map(|(id, seen)| Some((*id, seen.replaces?)));
    for (device, old) in named.filter(|(device, _)| input.is_present(*device)) {
        let tier = next.devices[&device].tier;
        match next.devices.get_mut(&old) {
            Some(entry) if entry.state == DeviceState::Out && entry.tier == tier => entry.replaced = true,
            _ => {
                reasons.push(format!(
                    "{device} cannot replace {old}: that is not a device of its tier that is out"
                ));
                continue;
            }
        }
        let positions = positions_of(next, old);
        let mut taken = 0_usize;
        for (pg, position) in positions {
            if !next.placement_groups[&pg].members.contains(&device) {
                give(next, pg, position, device, moves);
                taken += 1;
            }
        }
        reasons.push(format!("{device} replaces {old} in {taken} placement groups"));
    }
}

fn replace_due(
    next: &mut ClusterMap,
    input: &PlanInput<'_>,
    moves: &mut Vec<Move>,
    reasons: &mut Vec<String>,
) {
    let due = |since: Option<u64>| {
        since.is_some_and(|since| input.now_ms.saturating_sub(since) >= input.policy.rebuild_after_ms)
    };
    let out = next.devices.iter().filter(|(_, entry)| entry.state == DeviceState::Out);
    let due: Vec<DeviceId> = out.filter(|(_, entry)| due(entry.out_since_ms)).map(|(id, _)| *id).collect();
    let mut load = Load::of(next);
    for old in due {
        let (mut taken, mut nobody, mut too_many) = (0_usize, 0_usize, 0_usize);
        for (pg, position) in positions_of(next, old) {
            let group = &next.placement_groups[&pg];
            if group.positions_not_whole(next) > group.profile.parity() {
                too_many += 1;
            } else if let Some(device) = load.candidate(next, group, position) {
                load.replace(next, old, device);
                give(next, pg, position, device, moves);
                taken += 1;
            } else {
                nobody += 1;
            }
        }
        let tell = |count, what| {
            (count > 0).then(|| format!("{old} is out for long: {count} placement groups {what}"))
        };
        reasons.extend(tell(taken, "have another device in its place"));
        reasons.extend(tell(nobody, "wait for a device: every one that is in is a member"));
        reasons.extend(tell(too_many, "lost more than parity covers: they wait for a device to return"));
    }
}

fn moving(map: &ClusterMap) -> Vec<PgId> {
    let moving = map.placement_groups.iter().filter(|(_, group)| group.state == PgState::Moving);
    moving.map(|(id, _)| *id).collect()
}

/// Where a device is a member.
fn positions_of(map: &ClusterMap, device: DeviceId) -> Vec<(PgId, u8)> {
    let position = |group: &PlacementGroup| group.members.iter().position(|member| *member == device);
    let at = |position| u8::try_from(position).expect("a group has at most 32 members");
    map.placement_groups.iter().filter_map(|(id, group)| Some((*id, at(position(group)?)))).collect()
}

/// A position gets a new member, and is to be rebuilt.
pub(crate) fn give(next: &mut ClusterMap, pg: PgId, position: u8, device: DeviceId, moves: &mut Vec<Move>) {
    let epoch: Epoch = epoch_of(next);
    let group = next.placement_groups.get_mut(&pg).expect("the caller found it in the map");
    let old = std::mem::replace(&mut group.members[usize::from(position)], device);
    // A member that was itself still being filled never was the whole one.
    group.rebuilding.entry(position).or_insert(old);
    (group.state, group.epoch) = (PgState::Moving, epoch);
    if let Some(entry) = next.devices.get_mut(&old) {
        entry.replaced |= entry.state == DeviceState::Out;
    }
    moves.push(Move::Rebuild { pg, position, device });
}

/// Positions per device, and who of those that stay has least for its capacity.
struct Load {
    positions: BTreeMap<DeviceId, u64>,
    tiers: BTreeMap<Tier, Free>,
}

/// Devices of a tier that may take a position.
struct Free {
    spreads: Spreads,
    /// Least loaded first.
    by_load: BTreeSet<(u128, DeviceId)>,
}

impl Load {
    fn of(map: &ClusterMap) -> Self {
        let mut load = Self { positions: BTreeMap::new(), tiers: BTreeMap::new() };
        for device in map.placement_groups.values().flat_map(|group| &group.members) {
            *load.positions.entry(*device).or_default() += 1;
        }
        for tier in Tier::ALL {
            let devices = devices_staying(map, tier);
            let spreads = Spreads::new(map, &devices);
            let by_load = devices.iter().map(|device| (load.relative(map, *device), *device)).collect();
            load.tiers.insert(tier, Free { spreads, by_load });
        }
        load
    }

    fn replace(&mut self, map: &ClusterMap, old: DeviceId, new: DeviceId) {
        for (device, more) in [(new, true), (old, false)] {
            let before = self.relative(map, device);
            let count = self.positions.entry(device).or_default();
            *count = if more { *count + 1 } else { *count - 1 };
            let after = self.relative(map, device);
            for free in self.tiers.values_mut() {
                if free.by_load.remove(&(before, device)) {
                    free.by_load.insert((after, device));
                }
            }
        }
    }

    /// Positions per byte of capacity, scaled to an integer.
    fn relative(&self, map: &ClusterMap, device: DeviceId) -> u128 {
        let positions = self.positions.get(&device).copied().unwrap_or_default();
        (u128::from(positions) << 64) / u128::from(map.devices[&device].capacity_bytes.max(1))
    }

    /// The least loaded device that may take a position: as far from the other members as the devices allow.
    fn candidate(&self, map: &ClusterMap, group: &PlacementGroup, position: u8) -> Option<DeviceId> {
        let free = &self.tiers[&group.tier];
        let others = group.members.iter().enumerate().filter(|(at, _)| *at != usize::from(position));
        let others: Vec<DeviceId> =
            others.map(|(_, device)| *device).filter(|device| map.devices.contains_key(device)).collect();
        let former: BTreeSet<DeviceId> = group.rebuilding.values().copied().collect();
        let total = group.profile.total();
        let widest = free.spreads.of(total, group.profile.parity());
        let pick = |spread: Spread| {
            let mut devices = free.by_load.iter().map(|(_, device)| *device);
            devices.find(|device| {
                !group.members.contains(device)
                    && !former.contains(device)
                    && spread.allows(map, &others, *device)
            })
        };
        [widest, Spread { rack: total, ..widest }, Spread { rack: total, node: total }]
            .into_iter()
            .find_map(pick)
    }
}
