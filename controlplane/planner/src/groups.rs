//! Which placement groups are open.
//!
//! ```text
//!           a member is out, or the profile is not the one to open now
//!   Open ---------------------------------------------------------------> Sealed
//!        <---------------------------------------------------------------  |  ^
//!           every member is in, and the profile is the one to open now     |  |
//!                                        a position has another member     |  | reported whole
//!                                        (see `replace`)                   v  | at this epoch
//!                                                                          Moving --+
//!                                                                            ^------+ another one: new epoch
//! ```
//!
//! One plan may take several of these steps; the group then changes once, at one epoch. Nothing but the report takes a
//! group out of `Moving`: not a device that returns, not a start of a node.
//!
//! Each tier has groups of its own devices, in the profile wanted for it. With n devices in there are at least n groups that are open or about to be again, and each device is in one of them;
//! in a cluster there are several times as many, so that devices can be evened out in small steps. They are laid out as
//! shifts of patterns over the devices: every device stands as often at every position, so it holds data and parity; then,
//! empty as they are, they are fitted to the devices' capacities. No node has more than m members of a group as long as
//! there are enough nodes for k'+m at some k' up to k; the largest such k' is used. Groups are
//! kept for ever (a manifest may name them) and opened again rather than made anew, so that a device that comes and goes
//! does not grow the map.

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{ClusterMap, DeviceId, ErasureProfile, PgId, PgState, PlacementGroup, Tier};

use crate::{
    Move, PlanInput, devices_in, devices_staying,
    domain::{Spreads, interleave},
    epoch_of, rebalance, replace,
};

/// Replaces members that are due; seals, opens and adds groups of each tier.
pub(crate) fn update(
    next: &mut ClusterMap,
    input: &PlanInput<'_>,
    moves: &mut Vec<Move>,
    reasons: &mut Vec<String>,
) {
    replace::update(next, input, moves, reasons);
    for tier in Tier::ALL {
        open_and_seal(next, tier, input.policy.groups_per_device, reasons);
    }
}

fn open_and_seal(next: &mut ClusterMap, tier: Tier, per_device: usize, reasons: &mut Vec<String>) {
    if tier != Tier::Hot && next.devices.values().all(|entry| entry.tier != tier) {
        return;
    }
    let devices = devices_staying(next, tier);
    let (name, count) = (tier.name(), devices.len());
    let profile = profile_to_open(next, tier, &devices);
    match profile {
        None => reasons.push(format!("no placement group is open: {count} {name} devices are in")),
        Some(profile) if profile != next.wanted_profile(tier) => {
            reasons.push(format!(
                "{count} {name} devices are in: new blobs have the fallback profile {profile}"
            ));
        }
        Some(_) => {}
    }
    seal_and_reopen(next, tier, profile);
    let Some(profile) = profile else { return };
    let missing = missing(next, (tier, profile), &devices, per_device);
    let mut present: BTreeSet<Vec<DeviceId>> =
        next.open_groups(tier).map(|(_, group)| group.members.clone()).collect();
    let mut new = BTreeSet::new();
    let patterns = layout(next, &devices, profile, missing.div_ceil(devices.len()));
    for members in patterns.into_iter().filter(|members| present.insert(members.clone())).take(missing) {
        let id = PgId(next.placement_groups.keys().next_back().map_or(0, |last| last.0 + 1));
        let (epoch, state, rebuilding) = (epoch_of(next), PgState::Open, BTreeMap::new());
        next.placement_groups.insert(id, PlacementGroup { epoch, tier, profile, members, state, rebuilding });
        new.insert(id);
    }
    rebalance::place_new(next, tier, &new);
}

/// How many groups are to be added.
fn missing(
    map: &ClusterMap,
    (tier, profile): (Tier, ErasureProfile),
    devices: &[DeviceId],
    per_device: usize,
) -> usize {
    // Those that move between devices that are in are open again soon.
    let soon = |group: &&PlacementGroup| {
        group.state != PgState::Sealed
            && group.profile == profile
            && group.members.iter().chain(group.rebuilding.values()).all(|device| map.is_in(*device))
    };
    let of_tier = || map.placement_groups.values().filter(|group| group.tier == tier);
    let used: BTreeSet<DeviceId> =
        of_tier().filter(soon).flat_map(|group| group.members.iter().copied()).collect();
    let usable = of_tier().filter(soon).count();
    let all = of_tier().filter(|group| group.profile == profile).count();
    let wanted = if profile == map.wanted_profile(tier) { devices.len() * per_device } else { devices.len() };
    // One that no group has is a device that has just come: with the groups it brings, it gets its place in some.
    let unused = if devices.iter().all(|device| used.contains(device)) { 0 } else { devices.len() };
    // All may be moving at once when devices come and go: new blobs need a group now.
    let is_open = |group: &PlacementGroup| group.state == PgState::Open && group.profile == profile;
    let none_open = if of_tier().any(is_open) { 0 } else { devices.len() };
    unused.max(none_open).max(devices.len().saturating_sub(usable)).max(wanted.saturating_sub(all))
}

/// The wanted profile, or the widest with the same m of which one node never has more than m shards; where no two data
/// shards fit so, the widest that the devices can hold; none below two data shards (or the wanted k, if that is one).
fn profile_to_open(map: &ClusterMap, tier: Tier, devices: &[DeviceId]) -> Option<ErasureProfile> {
    let wanted = map.wanted_profile(tier);
    let most = devices.len().checked_sub(wanted.parity())?.min(wanted.data());
    let least = wanted.data().min(2);
    let spreads = Spreads::new(map, devices);
    let survives = |data: &usize| spreads.of(data + wanted.parity(), wanted.parity()).node <= wanted.parity();
    let data = (least..=most).rev().find(survives).or((most >= least).then_some(most))?;
    let data_shards = u8::try_from(data).expect("at most the wanted k, which is a u8");
    Some(ErasureProfile { data_shards, ..wanted })
}

fn seal_and_reopen(next: &mut ClusterMap, tier: Tier, profile: Option<ErasureProfile>) {
    let epoch = epoch_of(next);
    let devices: BTreeSet<DeviceId> = devices_in(next, tier).into_iter().collect();
    for group in next.placement_groups.values_mut().filter(|group| group.tier == tier) {
        let fit =
            Some(group.profile) == profile && group.members.iter().all(|device| devices.contains(device));
        let state = match group.state {
            PgState::Open if !fit => PgState::Sealed,
            PgState::Sealed if fit => PgState::Open,
            // Until a report says that it is whole.
            state @ (PgState::Open | PgState::Sealed | PgState::Moving) => state,
        };
        if state != group.state {
            group.state = state;
            group.epoch = epoch;
        }
    }
}

/// As many groups as devices for each pattern: shift `i` of it. Members are spread as widely as the devices are.
fn layout(
    map: &ClusterMap,
    devices: &[DeviceId],
    profile: ErasureProfile,
    patterns: usize,
) -> Vec<Vec<DeviceId>> {
    let width = profile.total();
    let spread = Spreads::new(map, devices).of(width, profile.parity());
    let order = interleave(map, devices);
    let mut uses = vec![0_usize; order.len()];
    let group = |(offsets, shift): (Vec<usize>, usize)| {
        let mut members = Vec::with_capacity(width);
        for offset in &offsets {
            let mut candidates = (0..order.len()).map(|step| order[(shift + offset + step) % order.len()]);
            let member = candidates.find(|device| spread.allows(map, &members, *device));
            members.push(member.expect("the spread leaves room for all"));
        }
        members
    };
    let patterns = (0..patterns).map(|_| offsets(&mut uses, width));
    patterns
        .flat_map(|offsets| (0..order.len()).map(move |shift| (offsets.clone(), shift)))
        .map(group)
        .collect()
}

/// `width` offsets below the number of `uses`, whose differences are as even as a greedy choice makes them over all
/// patterns: two devices share few groups, so what one lost is read back from all others.
fn offsets(uses: &mut [usize], width: usize) -> Vec<usize> {
    let n = uses.len();
    assert!(width <= n, "the profile was chosen for the devices");
    let mut chosen = vec![0_usize];
    while chosen.len() < width {
        let differences = |candidate: usize| -> Vec<usize> {
            let both = |other: &usize| [(candidate + n - other) % n, (other + n - candidate) % n];
            chosen.iter().flat_map(both).collect()
        };
        // By how much the sum of the squares of all uses grows.
        let mut cost = |candidate: usize| -> usize {
            let differences = differences(candidate);
            let grow = |difference: &usize| {
                uses[*difference] += 1;
                2 * uses[*difference] - 1
            };
            let cost = differences.iter().map(grow).sum();
            differences.iter().for_each(|difference| uses[*difference] -= 1);
            cost
        };
        let candidates = (1..n).filter(|offset| !chosen.contains(offset));
        let best = candidates.min_by_key(|offset| (cost(*offset), *offset)).expect("width is at most n");
        differences(best).into_iter().for_each(|difference| uses[difference] += 1);
        chosen.push(best);
    }
    chosen.sort_unstable();
    chosen
}
