//! Places in partitions that are kept for members that may be back soon.
//!
//! A node that was cut off or stopped for a minute holds nearly everything: when it is a member again, it is sent only what
//! was logged meanwhile. One that was restarted is copied whole, but once: without its place another device would be,
//! and later this one again, to even them out. So its place in a partition stays empty for a while. That costs a flushed
//! copy of what is written in that time, as one failure does: no place is kept below [`COPIES_MIN`], nor for long.
//!
//! ```text
//!               leaves, and may be back
//!   in sync  ----------------------------->  away  --> joining      in again, and not accused
//!                                             |
//!                                             +------> forgotten    too long; or its node is there without it; or it is
//!                                                                   replaced, to be emptied, or slow
//! ```

use quarry_clustermap::{ClusterMap, DeviceEntry, DeviceId, DeviceState, PartitionConfig, PartitionId, Tier};

use crate::accused::{ALONE_MS, Suspects};
use crate::{Move, PlanInput, partitions::is_avoided};

/// How long a place is kept, in milliseconds: for a restart, not for a repair. Metadata is small to copy and dear to lose.
pub const PLACE_KEPT_MS: u64 = 2 * 60 * 1000;
/// How long a node that was started is left alone before it joins, in milliseconds: its peers first have to find it again, and
/// a joiner that does not answer would be taken for one that is cut off.
pub const SETTLE_MS: u64 = 3_000;
/// Copies of the metadata below which every place gets another device at once.
const COPIES_MIN: usize = 2;

/// How many places of a partition are kept at the moment.
pub(crate) fn kept(config: &PartitionConfig, wanted: usize) -> usize {
    config.away.len().min(wanted.saturating_sub(COPIES_MIN))
}

/// Whether nobody knows of a reason why a device should stay away: its node is in and it is not, its owner put a new one in
/// its place, or it is to be emptied.
fn may_return(next: &ClusterMap, input: &PlanInput<'_>, device: DeviceId) -> bool {
    let Some(entry) = next.devices.get(&device) else { return false };
    let beside = |(id, other): (&DeviceId, &DeviceEntry)| other.node == entry.node && next.is_in(*id);
    let failed = !next.is_in(device) && next.devices.iter().any(beside);
    let named = input.inventory.devices.values().any(|seen| seen.present && seen.replaces == Some(device));
    entry.tier == Tier::Hot && !failed && !named && !next.is_leaving(device)
}

/// Forgets those that will not be back, or not soon.
pub(crate) fn forget(
    config: &mut PartitionConfig,
    (next, input, suspects): (&ClusterMap, &PlanInput<'_>, &Suspects),
) {
    config.away.retain(|device, since| {
        let Some(entry) = next.devices.get(device) else { return false };
        if input.is_opened_again(*device) {
            *since = input.now_ms;
        }
        // From when the device is out its groups count too: they and the partitions give it up together.
        let passed_ms = input.now_ms.saturating_sub(entry.out_since_ms.unwrap_or(*since).min(*since));
        // A device that is silent while its node answers is slow or broken: it would leave again.
        let slow = passed_ms >= ALONE_MS && next.is_in(*device) && suspects.accused_alone(next, *device);
        let keeps_ms = input.policy.rebuild_after_ms.min(PLACE_KEPT_MS);
        passed_ms < keeps_ms && !slow && may_return(next, input, *device)
    });
}

/// Keeps the places of those that were in sync and are no longer.
pub(crate) fn keep(
    config: &mut PartitionConfig,
    (were_in_sync, wanted): (&[DeviceId], usize),
    next: &ClusterMap,
    input: &PlanInput<'_>,
) {
    if wanted <= COPIES_MIN {
        return;
    }
    let left = were_in_sync.iter().filter(|device| !config.replicas.contains(device));
    let left: Vec<DeviceId> = left
        .filter(|device| !next.devices[device].replaced && may_return(next, input, **device))
        .copied()
        .collect();
    config.away.extend(left.into_iter().map(|device| (device, input.now_ms)));
}

/// Forgets those whose place was taken.
pub(crate) fn trim(config: &mut PartitionConfig, wanted: usize) {
    let open = wanted.saturating_sub(config.members().count());
    while config.away.len() > open {
        config.away.pop_first();
    }
}

/// Lets those in that are back, as far as there is room.
pub(crate) fn welcome(
    config: &mut PartitionConfig,
    (partition, wanted): (PartitionId, usize),
    (next, input, suspects): (&ClusterMap, &PlanInput<'_>, &Suspects),
    moves: &mut Vec<Move>,
) {
    let is_back = |(device, since): &(&DeviceId, &u64)| {
        next.devices[*device].state == DeviceState::In
            && input.now_ms.saturating_sub(**since) >= SETTLE_MS
            && !suspects.shuns(**device)
            && !is_avoided(input, partition, **device)
    };
    let back: Vec<DeviceId> = config.away.iter().filter(is_back).map(|(device, _)| *device).collect();
    for device in back {
        config.away.remove(&device);
        if config.replicas.len() + config.joining.len() < wanted {
            config.joining.push(device);
            moves.push(Move::Join { partition, device });
        }
    }
}
