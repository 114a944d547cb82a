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
//! With n devices in there are at least n open groups, and each device is in one of them. They are laid out as shifts of
//! one pattern over the devices: every device stands once at every position, so it holds data and parity. Groups are
//! kept for ever (a manifest may name them) and opened again rather than made anew, so that a device that comes and goes
//! does not grow the map.

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{ClusterMap, DeviceId, ErasureProfile, PgId, PgState, PlacementGroup, Tier};

use crate::{
    Move, PlanInput, devices_in,
    domain::{Level, interleave},
    epoch_of, replace,
};

/// Replaces members that are due; seals, opens and adds groups of the hot tier.
pub(crate) fn update(
    next: &mut ClusterMap,
    input: &PlanInput<'_>,
    moves: &mut Vec<Move>,
    reasons: &mut Vec<String>,
) {
    replace::update(next, input, moves, reasons);
    open_and_seal(next, reasons);
}

fn open_and_seal(next: &mut ClusterMap, reasons: &mut Vec<String>) {
    let devices = devices_in(next, Tier::Hot);
    let profile = profile_to_open(next.hot_profile, devices.len());
    match profile {
        None => reasons.push(format!("no placement group is open: {} hot devices are in", devices.len())),
        Some(profile) if profile != next.hot_profile => {
            reasons.push(format!(
                "{} hot devices are in: new blobs have the fallback profile {profile}",
                devices.len()
            ));
        }
        Some(_) => {}
    }
    seal_and_reopen(next, profile);
    let Some(profile) = profile else { return };
    let members: BTreeSet<DeviceId> =
        next.open_groups(Tier::Hot).flat_map(|(_, group)| group.members.iter().copied()).collect();
    let every_device_used = devices.iter().all(|device| members.contains(device));
    if every_device_used && next.open_groups(Tier::Hot).count() >= devices.len() {
        return;
    }
    let present: BTreeSet<Vec<DeviceId>> =
        next.open_groups(Tier::Hot).map(|(_, group)| group.members.clone()).collect();
    for members in layout(next, &devices, profile.total()) {
        if !present.contains(&members) {
            let id = PgId(next.placement_groups.keys().next_back().map_or(0, |last| last.0 + 1));
            let epoch = epoch_of(next);
            let group = PlacementGroup {
                epoch,
                tier: Tier::Hot,
                profile,
                members,
                state: PgState::Open,
                rebuilding: BTreeMap::new(),
            };
            next.placement_groups.insert(id, group);
        }
    }
}

/// The wanted profile, or the widest with the same m that the devices can hold; none below two data shards (or the
/// wanted k, if that is one).
fn profile_to_open(wanted: ErasureProfile, devices: usize) -> Option<ErasureProfile> {
    let data = devices.checked_sub(wanted.parity())?.min(wanted.data());
    let data = u8::try_from(data).expect("at most the wanted k, which is a u8");
    (data >= wanted.data_shards.min(2)).then_some(ErasureProfile { data_shards: data, ..wanted })
}

fn seal_and_reopen(next: &mut ClusterMap, profile: Option<ErasureProfile>) {
    let epoch = epoch_of(next);
    let devices: BTreeSet<DeviceId> = devices_in(next, Tier::Hot).into_iter().collect();
    for group in next.placement_groups.values_mut().filter(|group| group.tier == Tier::Hot) {
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

/// One group per device: shift `i` of a pattern of `width` offsets. Members share no failure domain at the broadest
/// level that has enough of them.
fn layout(map: &ClusterMap, devices: &[DeviceId], width: usize) -> Vec<Vec<DeviceId>> {
    let level = Level::choose(map, devices, width);
    let order = interleave(map, devices, level);
    let offsets = offsets(order.len(), width);
    let group = |shift: usize| {
        let mut domains = BTreeSet::new();
        let mut members = Vec::with_capacity(width);
        for offset in &offsets {
            let mut candidates = (0..order.len()).map(|step| order[(shift + offset + step) % order.len()]);
            let member = candidates.find(|device| domains.insert(level.domain(map, *device)));
            members.push(member.expect("the level has enough domains"));
        }
        members
    };
    (0..order.len()).map(group).collect()
}

/// `width` offsets below `n` whose differences are as even as a greedy choice makes them: two devices share few groups,
/// so what one lost is read back from all others.
fn offsets(n: usize, width: usize) -> Vec<usize> {
    assert!(width <= n, "the profile was chosen for the devices");
    let mut chosen = vec![0_usize];
    let mut uses = vec![0_usize; n];
    while chosen.len() < width {
        let cost = |candidate: usize| -> usize {
            let mut uses = uses.clone();
            for other in &chosen {
                uses[(candidate + n - other) % n] += 1;
                uses[(other + n - candidate) % n] += 1;
            }
            uses.iter().map(|count| count * count).sum()
        };
        let candidates = (1..n).filter(|offset| !chosen.contains(offset));
        let best = candidates.min_by_key(|offset| (cost(*offset), *offset)).expect("width is at most n");
        for other in &chosen {
            uses[(best + n - other) % n] += 1;
            uses[(other + n - best) % n] += 1;
        }
        chosen.push(best);
    }
    chosen.sort_unstable();
    chosen
}
