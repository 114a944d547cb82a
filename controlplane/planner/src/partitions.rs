//! Members of metadata partitions: the first layout, eviction, promotion, joiners.
//!
//! ```text
//!                 joiner added              Joined (same epoch)
//!   not a member --------------> joining ------------------------> in sync
//!        ^                          |                                 |
//!        +------- device out -------+------------ device out ---------+
//!                                   |  (kept if it was the last one in sync)
//!                                   |                                 |
//!                                   +<--------- history lost ---------+
//!                                      (kept, and marked, if no other has the history)
//! ```
//!
//! A partition that moves a replica has one joiner more than it should have members; when that one is in sync, the member
//! that is to go leaves. A replica that comes into sync becomes primary if it leads less than its share.
//!
//! A member that lags leaves too, or the primary that says so ([`accused`]); for a while it is not chosen again.
//! Whoever leaves and may be back soon keeps its place ([`away`]).
//! The primary of a node that is about to stop is another in-sync replica, if there is one elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{ClusterMap, DeviceEntry, DeviceId, PartitionConfig, PartitionId, Tier};

use crate::accused::{self, Suspects};
use crate::away;
use crate::{
    Joined, Move, PlanError, PlanInput, devices_staying,
    domain::{Spread, Spreads},
    epoch_of,
};

/// Gives the first map its partitions.
pub(crate) fn create(next: &mut ClusterMap, partition_count: u16) -> Result<(), PlanError> {
    let needed = next.hot_profile.metadata_replicas();
    let mut placer = Placer::new(next);
    if placer.devices.len() < needed {
        let (present, profile) = (placer.devices.len(), next.hot_profile);
        return Err(PlanError::TooFewDevices { present, needed, profile });
    }
    for _ in 0..partition_count {
        let replicas = placer.first_members(next, needed);
        next.partitions.push(PartitionConfig {
            epoch: epoch_of(next),
            primary: replicas[0],
            replicas,
            joining: Vec::new(),
            lost: BTreeSet::new(),
            away: BTreeMap::new(),
        });
    }
    Ok(())
}

/// Brings every partition up to the devices of `next` and to what was reported.
pub(crate) fn update(
    next: &mut ClusterMap,
    input: &PlanInput<'_>,
    moves: &mut Vec<Move>,
    reasons: &mut Vec<String>,
) {
    let wanted = next.hot_profile.metadata_replicas();
    let mut placer = Placer::new(next);
    let suspects = Suspects::new(next, &input.reports.accused);
    let joined: BTreeSet<Joined> = input.reports.joined.iter().copied().collect();
    let mut short = 0_usize;
    let mut lost: BTreeMap<DeviceId, usize> = BTreeMap::new();
    for index in 0..next.partitions.len() {
        let partition = PartitionId(u16::try_from(index).expect("a valid map has at most 65,536 partitions"));
        let old = next.partitions[index].clone();
        let mut config = old.clone();
        accept_joiners(&mut config, partition, &joined, reasons);
        placer.share_primary(next, &old, &mut config);
        // After the joiners: a replica that became whole and lost its history since is not whole.
        let concerned = demote_lost(&mut config, partition, input);
        let mut touched = !concerned.is_empty();
        concerned.into_iter().for_each(|device| *lost.entry(device).or_default() += 1);
        let waits = !config.has_history() || !config.replicas.iter().any(|device| next.is_in(*device));
        if waits {
            reasons.push(unavailable(&config, partition));
            if config != old || touched {
                placer.replace(&old, &config);
                config.epoch = epoch_of(next);
                next.partitions[index] = config;
            }
            continue;
        }
        let were_in_sync = config.replicas.clone();
        evict(&mut config, next);
        accused::evict(&mut config, partition, (next, input, &suspects), reasons);
        away::keep(&mut config, (&were_in_sync, wanted), next, input);
        away::forget(&mut config, (next, input, &suspects));
        hand_over(&mut config, next, input);
        trim(&mut config, &old, (wanted, placer.spread(wanted)), next);
        away::welcome(&mut config, (partition, wanted), (next, input, &suspects), moves);
        placer.replace(&old, &config);
        while config.replicas.len() + config.joining.len() + away::kept(&config, wanted) < wanted {
            let avoid = |device| suspects.shuns(device) || is_avoided(input, partition, device);
            let Some(device) = placer.joiner(next, &config, wanted, avoid) else {
                short += 1;
                break;
            };
            config.joining.push(device);
            moves.push(Move::Join { partition, device });
        }
        away::trim(&mut config, wanted);
        touched |= config.members().any(|device| input.is_opened_again(device));
        if config != old || touched {
            config.epoch = epoch_of(next);
            next.partitions[index] = config;
        }
    }
    for (device, count) in lost {
        reasons.push(format!("{device} lost the history of {count} partitions"));
    }
    if short > 0 {
        reasons.push(format!(
            "{short} partitions have fewer than {wanted} members: no device is left to join them"
        ));
    }
}

fn accept_joiners(
    config: &mut PartitionConfig,
    partition: PartitionId,
    joined: &BTreeSet<Joined>,
    reasons: &mut Vec<String>,
) {
    let of_partition = joined.iter().filter(|report| report.partition == partition);
    for report in of_partition {
        let position = config.joining.iter().position(|device| *device == report.device);
        match position {
            Some(position) if report.epoch == config.epoch && config.has_history() => {
                config.replicas.push(config.joining.remove(position));
            }
            _ => reasons.push(format!(
                "{partition}: {} is not joining at {}: report ignored",
                report.device, report.epoch
            )),
        }
    }
}

/// Members whose history is lost leave the in-sync set and join anew; if that would leave nobody, all are marked instead
/// and stay. Returns the members concerned: what they were sent at this epoch no longer counts.
fn demote_lost(config: &mut PartitionConfig, partition: PartitionId, input: &PlanInput<'_>) -> Vec<DeviceId> {
    let reports = &input.reports.lost;
    let reported = |device: &DeviceId| reports.get(device).is_some_and(|lost| lost.contains(&partition));
    let concerned: Vec<DeviceId> = config.members().filter(reported).collect();
    if concerned.is_empty() {
        return concerned;
    }
    let (lost, whole): (Vec<DeviceId>, Vec<DeviceId>) =
        config.replicas.iter().partition(|device| concerned.contains(device) || config.lost.contains(device));
    if whole.is_empty() {
        config.lost = lost.into_iter().collect();
        return concerned;
    }
    config.replicas = whole;
    config.joining.extend(lost);
    if !config.replicas.contains(&config.primary) {
        config.primary = config.replicas[0];
    }
    concerned
}

fn unavailable(config: &PartitionConfig, partition: PartitionId) -> String {
    if config.has_history() {
        let list: Vec<String> = config.replicas.iter().map(ToString::to_string).collect();
        return format!(
            "{partition} is unavailable: none of its in-sync replicas is in; it waits for one of {}",
            list.join(", ")
        );
    }
    format!("{partition} is unavailable: every in-sync replica lost its history, and no other has it")
}

fn evict(config: &mut PartitionConfig, next: &ClusterMap) {
    config.replicas.retain(|device| next.is_in(*device));
    config.joining.retain(|device| next.is_in(*device));
    if !config.replicas.contains(&config.primary) {
        config.primary = config.replicas[0];
    }
}

/// Whether a device is not to join a partition in this plan.
pub(crate) fn is_avoided(input: &PlanInput<'_>, partition: PartitionId, device: DeviceId) -> bool {
    let lags = input.reports.lagging.iter().any(|lag| (lag.partition, lag.device) == (partition, device));
    lags || input.reports.avoid.contains(&(partition, device))
}

fn hand_over(config: &mut PartitionConfig, next: &ClusterMap, input: &PlanInput<'_>) {
    let stops = |entry: &DeviceEntry| input.reports.leaving.contains(&entry.node);
    let leaving = |device: &DeviceId| next.is_leaving(*device) || next.devices.get(device).is_some_and(stops);
    if leaving(&config.primary)
        && let Some(other) = config.replicas.iter().find(|device| !leaving(device))
    {
        config.primary = *other;
    }
}

/// Never more than the wanted number of members, but for one that joins to take another's place. Of the in-sync replicas
/// of before, the one leaves that is to be emptied, stands too close to others, or is last in the order of preference; not
/// the primary if another is there.
fn trim(
    config: &mut PartitionConfig,
    old: &PartitionConfig,
    (wanted, spread): (usize, Spread),
    next: &ClusterMap,
) {
    while config.replicas.len() > wanted {
        let crowded = |device: DeviceId| {
            let others: Vec<DeviceId> =
                config.replicas.iter().copied().filter(|other| *other != device).collect();
            !spread.allows(next, &others, device)
        };
        let others = config.replicas.iter().enumerate().filter(|(_, device)| **device != config.primary);
        let last = others.max_by_key(|(position, device)| {
            (next.is_leaving(**device), crowded(**device), old.replicas.contains(device), *position)
        });
        let (position, _) = last.expect("more than one replica: one of them is not the primary");
        config.replicas.remove(position);
    }
    let room = if config.replicas.len() == wanted { 1 } else { wanted - config.replicas.len() };
    config.joining.truncate(room);
    if config.replicas.len() == wanted {
        config.joining.retain(|device| !next.is_leaving(*device));
    }
}

/// Counts who holds what, and picks the least loaded device each time.
struct Placer {
    /// Those that may take something new.
    devices: Vec<DeviceId>,
    spreads: Spreads,
    members: BTreeMap<DeviceId, usize>,
    primaries: BTreeMap<DeviceId, usize>,
    /// How often the second follows the first as its primary: spreads the load of a lost primary.
    follows: BTreeMap<(DeviceId, DeviceId), usize>,
}

impl Placer {
    fn new(map: &ClusterMap) -> Self {
        let devices = devices_staying(map, Tier::Hot);
        let mut placer = Self {
            spreads: Spreads::new(map, &devices),
            devices,
            members: BTreeMap::new(),
            primaries: BTreeMap::new(),
            follows: BTreeMap::new(),
        };
        for config in &map.partitions {
            config.places().for_each(|device| *placer.members.entry(device).or_default() += 1);
            *placer.primaries.entry(config.primary).or_default() += 1;
        }
        placer
    }

    /// A replica that has just become whole leads the partition if it leads too few for its capacity.
    fn share_primary(&mut self, map: &ClusterMap, old: &PartitionConfig, config: &mut PartitionConfig) {
        let count = |device: DeviceId| self.primaries.get(&device).copied().unwrap_or_default() as u128;
        let capacity = |device: DeviceId| u128::from(map.devices[&device].capacity_bytes.max(1));
        for device in config.replicas.clone().into_iter().filter(|device| !old.replicas.contains(device)) {
            let now = config.primary;
            if map.is_in(device) && (count(device) + 1) * capacity(now) < count(now) * capacity(device) {
                config.primary = device;
            }
        }
        if config.primary != old.primary {
            self.primaries.entry(old.primary).and_modify(|count| *count -= 1);
            *self.primaries.entry(config.primary).or_default() += 1;
        }
    }

    /// How widely the members of a partition are spread.
    fn spread(&self, wanted: usize) -> Spread {
        self.spreads.of(wanted, wanted - 1)
    }

    fn load(&self, device: DeviceId) -> usize {
        self.members.get(&device).copied().unwrap_or_default()
    }

    fn first_members(&mut self, map: &ClusterMap, wanted: usize) -> Vec<DeviceId> {
        let level = self.spread(wanted);
        let count = |device: &DeviceId| self.primaries.get(device).copied().unwrap_or_default();
        let primary = *self
            .devices
            .iter()
            .min_by_key(|device| (count(device), self.load(**device), **device))
            .expect("the caller counted the devices");
        *self.primaries.entry(primary).or_default() += 1;
        let mut chosen = vec![primary];
        while chosen.len() < wanted {
            let follows =
                |device: DeviceId| self.follows.get(&(primary, device)).copied().unwrap_or_default();
            let candidate = self
                .candidates(map, &chosen, level)
                .min_by_key(|device| (self.load(*device), follows(*device), *device))
                .expect("the level has enough domains");
            *self.follows.entry((primary, candidate)).or_default() += 1;
            chosen.push(candidate);
        }
        for device in &chosen {
            *self.members.entry(*device).or_default() += 1;
        }
        chosen
    }

    /// Devices that share no failure domain with `taken`.
    fn candidates<'a>(
        &'a self,
        map: &'a ClusterMap,
        taken: &'a [DeviceId],
        level: Spread,
    ) -> impl Iterator<Item = DeviceId> + 'a {
        self.devices.iter().copied().filter(move |device| level.allows(map, taken, *device))
    }

    /// The members of a partition are no longer those of `old` but those of `new`.
    fn replace(&mut self, old: &PartitionConfig, new: &PartitionConfig) {
        for device in old.places() {
            *self.members.entry(device).or_default() -= 1;
        }
        for device in new.places() {
            *self.members.entry(device).or_default() += 1;
        }
    }

    /// A new member for `config`: in another failure domain if there is one, else at least another device.
    fn joiner(
        &mut self,
        map: &ClusterMap,
        config: &PartitionConfig,
        wanted: usize,
        avoid: impl Fn(DeviceId) -> bool,
    ) -> Option<DeviceId> {
        let taken: Vec<DeviceId> = config.places().collect();
        let pick = |level| {
            let free = self.candidates(map, &taken, level).filter(|device| !avoid(*device));
            free.min_by_key(|device| (self.load(*device), *device))
        };
        let widest = self.spread(wanted);
        let device = pick(widest).or_else(|| pick(Spread { rack: usize::MAX, node: usize::MAX }))?;
        *self.members.entry(device).or_default() += 1;
        Some(device)
    }
}
