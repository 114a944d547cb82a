//! What a request would lead to, if nothing else happened: its plans one after the other, with every move done.

use quarry_clustermap::{ClusterMap, DeviceId, PartitionId, PgState};

use crate::{
    GroupMoved, Intent, Inventory, Joined, MapDiff, Move, PlanError, PlanInput, Policy, Reports, plan,
};

/// Plans that are looked at; a cluster of a thousand devices needs some hundreds.
const PLANS_MAX: usize = 5_000;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Forecast {
    /// The first map, as [`MapDiff`] shows it; empty if nothing changes.
    pub first: String,
    /// Plans until nothing is left to do.
    pub plans: usize,
    /// Positions of placement groups that get another device.
    pub positions: usize,
    /// Of how many.
    pub positions_all: usize,
    /// Partitions that get another replica.
    pub replicas: usize,
    /// What the last plan could not do, or waits for.
    pub remains: Vec<String>,
    /// Places that devices to be emptied still have at the end.
    pub stuck: usize,
}

/// Plans `intents` on top of a map to the end. Devices are taken to stay as they are.
///
/// # Errors
/// [`PlanError`].
pub fn forecast(
    policy: &Policy,
    map: &ClusterMap,
    intents: &[Intent],
    now_ms: u64,
) -> Result<Forecast, PlanError> {
    settle(policy, map, intents, None, now_ms).map(|(_, told)| told)
}

/// The same, with the map at the end; `seen` is what is observed at first, else what the map has.
///
/// # Errors
/// [`PlanError`].
pub fn settle(
    policy: &Policy,
    map: &ClusterMap,
    intents: &[Intent],
    seen: Option<&Inventory>,
    now_ms: u64,
) -> Result<(ClusterMap, Forecast), PlanError> {
    let mut told = Forecast {
        positions_all: map.placement_groups.values().map(|group| group.members.len()).sum(),
        ..Forecast::default()
    };
    let mut current = map.clone();
    let mut reports = Reports { intents: intents.to_vec(), ..Reports::default() };
    while told.plans < PLANS_MAX {
        let inventory = match seen {
            Some(seen) if told.plans == 0 => seen.clone(),
            _ => Inventory::of_map(&current),
        };
        let input =
            PlanInput { policy, inventory: &inventory, map: Some(&current), reports: &reports, now_ms };
        let plan = plan(&input)?;
        told.remains = plan.reasons;
        let Some(next) = plan.map else { break };
        if told.plans == 0 {
            told.first = MapDiff::new(Some(&current), &next).to_string();
        }
        told.plans += 1;
        for step in plan.moves {
            match step {
                Move::Rebuild { .. } => told.positions += 1,
                Move::Join { .. } => told.replicas += 1,
            }
        }
        reports = all_done(&next);
        current = next;
    }
    let leaving: Vec<DeviceId> =
        current.devices.keys().copied().filter(|device| current.is_leaving(*device)).collect();
    told.stuck = leaving.into_iter().map(|device| current.uses_of(device)).sum();
    Ok((current, told))
}

/// Reports that everything under way has ended.
fn all_done(map: &ClusterMap) -> Reports {
    let moving = map.placement_groups.iter().filter(|(_, group)| group.state == PgState::Moving);
    let moved = moving.map(|(pg, group)| GroupMoved { pg: *pg, epoch: group.epoch }).collect();
    let mut joined = Vec::new();
    for (index, config) in (0_u16..).zip(&map.partitions) {
        let partition = PartitionId(index);
        joined.extend(config.joining.iter().map(|device| Joined {
            partition,
            epoch: config.epoch,
            device: *device,
        }));
    }
    Reports { moved, joined, ..Reports::default() }
}
