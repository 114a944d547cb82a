//! Which member of which set should be another device: sets are placement groups, or the replicas of partitions.
//!
//! Each device has a share of all memberships, by its capacity, as far as the spread over failure domains lets it. A
//! step, in this order: takes a member off a device that is to be emptied; spreads a set wider; takes one from a device
//! above its share to one below. The last begins only when some device is off by more than [`SLACK`] and by more than
//! one membership. Each such step brings both devices nearer to their shares, so no detour is made: there are at most as
//! many steps as devices below their share lack memberships.

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{ClusterMap, DeviceId, JobKind};

use crate::domain::Spread;

/// A device is off its share when it is by more than one part in so many.
const SLACK: u64 = 50;
/// Shares are counted in thousandths of a membership.
const WHOLE: u64 = 1000;
/// Devices on either side that one step looks at: those that are off by most.
const LOOKED_AT_MAX: usize = 32;

/// One set.
#[derive(Clone, Debug)]
pub(crate) struct Set<K> {
    pub(crate) key: K,
    pub(crate) members: Vec<DeviceId>,
    pub(crate) spread: Spread,
    /// Whether a step may change it.
    pub(crate) movable: bool,
}

/// A set's member becomes another device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Step<K> {
    pub(crate) key: K,
    pub(crate) position: usize,
    pub(crate) from: DeviceId,
    pub(crate) to: DeviceId,
    pub(crate) job: JobKind,
}

/// All sets of one kind, who is in them, and who should be.
pub(crate) struct Balance<'m, K> {
    map: &'m ClusterMap,
    /// Devices that may take a membership.
    devices: Vec<DeviceId>,
    sets: Vec<Set<K>>,
    /// Where each device is a member.
    of_device: BTreeMap<DeviceId, BTreeSet<usize>>,
    shares: BTreeMap<DeviceId, u64>,
}

impl<'m, K: Copy> Balance<'m, K> {
    /// `devices` are those that stay.
    pub(crate) fn new(map: &'m ClusterMap, devices: Vec<DeviceId>, sets: Vec<Set<K>>) -> Self {
        let mut of_device: BTreeMap<DeviceId, BTreeSet<usize>> = BTreeMap::new();
        for (index, set) in sets.iter().enumerate() {
            for device in &set.members {
                of_device.entry(*device).or_default().insert(index);
            }
        }
        let shares = shares(map, &devices, &sets);
        Self { map, devices, sets, of_device, shares }
    }

    fn held(&self, device: DeviceId) -> u64 {
        self.of_device.get(&device).map_or(0, |sets| sets.len() as u64 * WHOLE)
    }

    /// How far a device is above its share; negative: below.
    fn excess(&self, device: DeviceId) -> i64 {
        let share = self.shares.get(&device).copied().unwrap_or_default();
        i64::try_from(self.held(device)).unwrap_or(i64::MAX) - i64::try_from(share).unwrap_or(i64::MAX)
    }

    /// Whether a device is off its share by more than is left alone.
    fn is_off(&self, device: DeviceId) -> bool {
        self.excess(device).unsigned_abs() > WHOLE.max(self.shares[&device] / SLACK)
    }

    /// The next step of one of these jobs, if there is one.
    pub(crate) fn next(&self, jobs: &[JobKind]) -> Option<Step<K>> {
        let drain = jobs.contains(&JobKind::Drain).then(|| self.empty()).flatten();
        let rebalance =
            || jobs.contains(&JobKind::Rebalance).then(|| self.widen().or_else(|| self.even_out())).flatten();
        drain.or_else(rebalance)
    }

    /// Notes that a step is taken; its set moves no more.
    pub(crate) fn take(&mut self, step: &Step<K>)
    where
        K: PartialEq,
    {
        let index =
            self.sets.iter().position(|set| set.key == step.key).expect("the step is of one of the sets");
        let set = &mut self.sets[index];
        (set.members[step.position], set.movable) = (step.to, false);
        self.of_device.entry(step.from).or_default().remove(&index);
        self.of_device.entry(step.to).or_default().insert(index);
    }

    /// The same without an end to the set's moves: for sets that are empty.
    pub(crate) fn take_at_once(&mut self, step: &Step<K>)
    where
        K: PartialEq,
    {
        self.take(step);
        if let Some(set) = self.sets.iter_mut().find(|set| set.key == step.key) {
            set.movable = true;
        }
    }

    fn movable(&self) -> impl Iterator<Item = &Set<K>> {
        self.sets.iter().filter(|set| set.movable)
    }

    fn empty(&self) -> Option<Step<K>> {
        self.movable().find_map(|set| {
            let position = set.members.iter().position(|device| self.map.is_leaving(*device))?;
            let to = self.best_for(set, position, true).or_else(|| self.best_for(set, position, false))?;
            Some(Step { key: set.key, position, from: set.members[position], to, job: JobKind::Drain })
        })
    }

    fn widen(&self) -> Option<Step<K>> {
        self.movable().find_map(|set| {
            let crowded = |position: &usize| {
                let device = set.members[*position];
                self.shares.contains_key(&device)
                    && !set.spread.allows(self.map, &others(set, *position), device)
            };
            let positions = (0..set.members.len()).filter(crowded);
            let position = positions.max_by_key(|at| (self.excess(set.members[*at]), set.members[*at]))?;
            let to = self.best_for(set, position, true)?;
            Some(Step { key: set.key, position, from: set.members[position], to, job: JobKind::Rebalance })
        })
    }

    /// The device that lacks most of its share, of those that may take a position.
    fn best_for(&self, set: &Set<K>, position: usize, spread: bool) -> Option<DeviceId> {
        let others = others(set, position);
        let fits = |device: &DeviceId| {
            !set.members.contains(device) && (!spread || set.spread.allows(self.map, &others, *device))
        };
        self.devices.iter().copied().filter(fits).min_by_key(|device| (self.excess(*device), *device))
    }

    fn even_out(&self) -> Option<Step<K>> {
        let mut above: Vec<(i64, DeviceId)> =
            self.devices.iter().map(|device| (-self.excess(*device), *device)).collect();
        above.sort_unstable();
        let below: Vec<DeviceId> =
            above.iter().rev().map(|(_, device)| *device).take(LOOKED_AT_MAX).collect();
        for (_, from) in above.iter().take(LOOKED_AT_MAX) {
            for to in &below {
                let (excess, lack) = (self.excess(*from), -self.excess(*to));
                let worth = excess > 0 && lack > 0 && (excess + lack).unsigned_abs() > WHOLE;
                if worth
                    && (self.is_off(*from) || self.is_off(*to))
                    && let Some(step) = self.shift(*from, *to)
                {
                    return Some(step);
                }
            }
        }
        None
    }

    /// Some set goes from one device to another: where the other holds that position least often.
    fn shift(&self, from: DeviceId, to: DeviceId) -> Option<Step<K>> {
        let of_to = self.of_device.get(&to);
        let mut at: BTreeMap<usize, usize> = BTreeMap::new();
        for index in of_to.into_iter().flatten() {
            let position = self.sets[*index].members.iter().position(|device| *device == to);
            *at.entry(position.unwrap_or_default()).or_default() += 1;
        }
        let candidates = self.of_device.get(&from)?.iter().filter_map(|index| {
            let set = &self.sets[*index];
            let position = set.members.iter().position(|device| *device == from)?;
            let fits = set.movable && set.spread.allows(self.map, &others(set, position), to);
            fits.then(|| (at.get(&position).copied().unwrap_or_default(), *index, position))
        });
        let (_, index, position) = candidates.min()?;
        Some(Step { key: self.sets[index].key, position, from, to, job: JobKind::Rebalance })
    }
}

fn others<K>(set: &Set<K>, position: usize) -> Vec<DeviceId> {
    set.members.iter().enumerate().filter(|(at, _)| *at != position).map(|(_, device)| *device).collect()
}

/// What each device should hold: by capacity, but no rack, node or device more than the sets' spread lets it.
fn shares<K>(map: &ClusterMap, devices: &[DeviceId], sets: &[Set<K>]) -> BTreeMap<DeviceId, u64> {
    let sum = |of: &dyn Fn(&Set<K>) -> usize| sets.iter().map(|set| of(set) as u64 * WHOLE).sum::<u64>();
    let (of_node, of_rack) = (sum(&|set| set.spread.node), sum(&|set| set.spread.rack));
    let mut domains: BTreeMap<(u8, String), (Vec<DeviceId>, u64)> = BTreeMap::new();
    for device in devices {
        let node = map.devices[device].node;
        let rack = map.nodes[&node].rack.clone();
        let limits = [(format!("{device}"), sum(&|_| 1)), (format!("{node}"), of_node), (rack, of_rack)];
        for (level, (name, limit)) in (0..).zip(limits) {
            domains.entry((level, name)).or_insert((Vec::new(), limit)).0.push(*device);
        }
    }
    let capacity = |device: &DeviceId| u128::from(map.devices[device].capacity_bytes.max(1));
    let mut shares: BTreeMap<DeviceId, u64> = BTreeMap::new();
    let mut total = sum(&|set| set.members.len());
    let mut free: BTreeSet<DeviceId> = devices.iter().copied().collect();
    loop {
        let all: u128 = free.iter().map(capacity).sum();
        let share = |device: &DeviceId| {
            u64::try_from(u128::from(total) * capacity(device) / all.max(1)).expect("at most the total")
        };
        // The domain whose free devices would take more than it has room for, most specific first.
        let over = domains.values().find_map(|(members, limit)| {
            let fixed: u64 = members.iter().filter_map(|device| shares.get(device)).sum();
            let open: Vec<DeviceId> =
                members.iter().filter(|device| free.contains(device)).copied().collect();
            let room = limit.saturating_sub(fixed);
            (open.iter().map(share).sum::<u64>() > room).then_some((open, room))
        });
        let Some((open, room)) = over else {
            shares.extend(free.iter().map(|device| (*device, share(device))));
            return shares;
        };
        let all: u128 = open.iter().map(capacity).sum();
        for device in open {
            let part =
                u64::try_from(u128::from(room) * capacity(&device) / all.max(1)).expect("at most the room");
            shares.insert(device, part);
            free.remove(&device);
        }
        total = total.saturating_sub(room);
    }
}
