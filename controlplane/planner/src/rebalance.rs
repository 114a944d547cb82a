//! Moves that are planned, not forced: off devices that are drained, and between devices until all hold their share.
//!
//! Few moves are under way at a time. A placement group gives up one position: it is moving until the new member is
//! filled, and its former member is read meanwhile, so it never has less redundancy than before. A partition gets one
//! replica more; when that is whole, the one that is to go leaves. While something is being repaired, may come back
//! any moment, or is cut off from the others, nothing is evened out.

use std::collections::BTreeSet;

use quarry_clustermap::{
    ClusterMap, DeviceId, DeviceState, JobKind, PartitionConfig, PartitionId, PgId, PgState, Tier,
};

use crate::{
    Move, PlanInput,
    accused::Suspects,
    balance::{Balance, Set},
    devices_staying,
    domain::Spreads,
    epoch_of, replace,
};

/// Of all groups, one in so many may be moving.
const GROUPS_PER_MOVE: usize = 8;
/// Groups that move at a time, whatever their number.
const GROUP_MOVES_MAX: usize = 64;
/// Partitions that get another replica at a time.
const PARTITION_MOVES_MAX: usize = 32;

/// Which jobs may begin something.
fn jobs(next: &ClusterMap, input: &PlanInput<'_>) -> Vec<JobKind> {
    let paused = |job: &JobKind| next.operations.paused.contains(job);
    let mut jobs = vec![JobKind::Drain];
    if !repairs(next, input) && !Suspects::new(next, &input.reports.accused).shun_any() {
        jobs.push(JobKind::Rebalance);
    }
    jobs.retain(|job| !paused(job));
    jobs
}

/// Whether a device may come back any moment, or what was on one is being made anew.
fn repairs(next: &ClusterMap, input: &PlanInput<'_>) -> bool {
    let may_return = next.devices.values().any(|entry| {
        let since = entry.out_since_ms.unwrap_or_default();
        entry.state == DeviceState::Out
            && !entry.replaced
            && input.now_ms.saturating_sub(since) < input.policy.rebuild_after_ms
    });
    let formers = next.placement_groups.values().flat_map(|group| group.rebuilding.values());
    let kept = next.partitions.iter().any(|config| !config.away.is_empty());
    may_return || kept || formers.into_iter().any(|former| !next.is_in(*former))
}

/// All groups of a tier, for balancing: `movable` says which may change.
fn group_sets(
    map: &ClusterMap,
    tier: Tier,
    devices: &[DeviceId],
    movable: impl Fn(PgId) -> bool,
) -> Vec<Set<PgId>> {
    let groups = map.placement_groups.iter().filter(|(_, group)| group.tier == tier);
    let spreads = Spreads::new(map, devices);
    let sets = groups.map(|(pg, group)| {
        let spread = spreads.of(group.profile.total(), group.profile.parity());
        Set { key: *pg, members: group.members.clone(), spread, movable: movable(*pg) }
    });
    sets.collect()
}

/// New groups are empty: they take their share at once. Each device keeps a place in one that takes new blobs, however much
/// it has in others.
pub(crate) fn place_new(next: &mut ClusterMap, tier: Tier, new: &BTreeSet<PgId>) {
    let map = next.clone();
    let devices = devices_staying(&map, tier);
    let sets = group_sets(&map, tier, &devices, |pg| new.contains(&pg));
    let mut balance = Balance::new(&map, devices, sets);
    // Each step brings devices nearer to their shares; the bound is never met.
    for _ in 0..new.len() * 32 {
        let Some(step) = balance.next(&[JobKind::Rebalance]) else { return };
        let open = next.open_groups(tier).filter(|(_, group)| group.members.contains(&step.from));
        if open.take(2).count() < 2 {
            return;
        }
        balance.take_at_once(&step);
        let group = next.placement_groups.get_mut(&step.key).expect("a new group");
        group.members[step.position] = step.to;
    }
}

/// Starts moves of positions in a tier.
pub(crate) fn groups(
    next: &mut ClusterMap,
    tier: Tier,
    input: &PlanInput<'_>,
    moves: &mut Vec<Move>,
    reasons: &mut Vec<String>,
) {
    let map = next.clone();
    let devices = devices_staying(&map, tier);
    let planned =
        map.placement_groups.values().filter(|group| group.formers_in(&map).next().is_some()).count();
    let mut open = map.open_groups(tier).count();
    let limit = (map.placement_groups.len() / GROUPS_PER_MOVE).clamp(1, GROUP_MOVES_MAX);
    let mut room = limit.saturating_sub(planned);
    let movable = |pg: PgId| {
        let group = &map.placement_groups[&pg];
        group.state != PgState::Moving && group.members.iter().all(|device| map.is_in(*device))
    };
    let jobs = jobs(&map, input);
    let mut balance = Balance::new(&map, devices.clone(), group_sets(&map, tier, &devices, movable));
    let mut started = 0_usize;
    while room > 0 {
        let Some(step) = balance.next(&jobs) else { break };
        let was_open = map.placement_groups[&step.key].state == PgState::Open;
        // Some group stays open for new blobs.
        if was_open && open <= 1 {
            break;
        }
        open -= usize::from(was_open);
        balance.take(&step);
        let position = u8::try_from(step.position).expect("a group has at most 32 members");
        replace::give(next, step.key, position, step.to, moves);
        (room, started) = (room - 1, started + 1);
    }
    if started > 0 {
        reasons.push(format!("{started} placement groups move a position"));
    }
}

/// All partitions, for balancing.
fn partition_balance(
    map: &ClusterMap,
    movable: impl Fn(&PartitionConfig) -> bool,
) -> Balance<'_, PartitionId> {
    let devices = devices_staying(map, Tier::Hot);
    let wanted = map.hot_profile.metadata_replicas();
    let spread = Spreads::new(map, &devices).of(wanted, map.hot_profile.parity());
    let set = |(index, config): (usize, &PartitionConfig)| Set {
        key: PartitionId(u16::try_from(index).expect("a valid map has at most 65,536 partitions")),
        members: members_to_be(map, config, wanted),
        spread,
        movable: movable(config),
    };
    let sets = map.partitions.iter().enumerate().map(set).collect();
    Balance::new(map, devices, sets)
}

/// The members when a move that is under way is done: as `partitions` trims them.
fn members_to_be(map: &ClusterMap, config: &PartitionConfig, wanted: usize) -> Vec<DeviceId> {
    let moves = config.replicas.len() == wanted && !config.joining.is_empty();
    let others = config.replicas.iter().filter(|device| moves && **device != config.primary);
    let goes = others.max_by_key(|device| map.is_leaving(**device)).copied();
    config.members().filter(|device| Some(*device) != goes).collect()
}

/// Starts moves of replicas: a joiner more than wanted, in whose favour another leaves later.
pub(crate) fn partitions(
    next: &mut ClusterMap,
    input: &PlanInput<'_>,
    moves: &mut Vec<Move>,
    reasons: &mut Vec<String>,
) {
    let map = next.clone();
    let wanted = map.hot_profile.metadata_replicas();
    let movable = |config: &PartitionConfig| {
        config.has_history()
            && config.joining.is_empty()
            && config.replicas.len() == wanted
            && config.replicas.iter().all(|device| map.is_in(*device))
    };
    let joining = map.partitions.iter().filter(|config| !config.joining.is_empty()).count();
    let mut room = PARTITION_MOVES_MAX.saturating_sub(joining);
    let jobs = jobs(&map, input);
    let suspects = Suspects::new(&map, &input.reports.accused);
    let mut balance = partition_balance(&map, movable);
    let mut started = 0_usize;
    while room > 0 {
        let Some(step) = balance.next(&jobs) else { break };
        balance.take(&step);
        room -= 1;
        if suspects.shuns(step.to) || input.reports.avoid.contains(&(step.key, step.to)) {
            continue;
        }
        let epoch = epoch_of(next);
        let config = &mut next.partitions[usize::from(step.key.0)];
        config.joining.push(step.to);
        config.epoch = epoch;
        // Least preferred from now on: it leaves when the joiner is whole.
        config.replicas.retain(|device| *device != step.from);
        config.replicas.push(step.from);
        // The one that will leave hands over while it is still there.
        if config.primary == step.from
            && let Some(other) =
                config.replicas.iter().find(|device| **device != step.from && !map.is_leaving(**device))
        {
            config.primary = *other;
        }
        moves.push(Move::Join { partition: step.key, device: step.to });
        started += 1;
    }
    if started > 0 {
        reasons.push(format!("{started} partitions move a replica"));
    }
}
