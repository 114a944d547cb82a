//! Who is cut off from the others, and who leaves for it.
//!
//! A primary that gets no answer accuses the member, and an in-sync member that hears nothing accuses the primary
//! ([`crate::Lagging`]). Where a link is broken both ends accuse each other, and a node that is cut off from everybody
//! accuses everybody: one word proves nothing. The rules:
//!
//! - a device is **cut off** if more than half of the nodes that deal with it accuse it, at least two. It leads nothing any
//!   more, and joins nothing for a while. If half of all devices would be, none is: then all are slow, or the network is
//!   in two halves;
//! - of a primary and an in-sync member that accuse each other, the one leaves that more nodes of the partition's in-sync
//!   members accuse, or else more nodes at all; in doubt the member does;
//! - a node that accuses more than half of those it deals with, at least two, is believed only where another accuses too;
//! - the last in-sync backup leaves only if another node accuses it too, or the word has stood for [`ALONE_MS`].
//!
//! Whoever leads instead is in sync, and has itself accused the old primary lately: a dead node accuses nobody. The old
//! primary leaves at once, as one whose devices are out does; peer leases and epochs keep it from answering.
//!
//! A node counts as a whole where each of its devices is accused by somebody; else each device for itself, so that one
//! slow device does not take its node along.

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{ClusterMap, DeviceId, NodeId, PartitionConfig, PartitionId, Tier};

use crate::{Lagging, PlanInput, devices_in};

/// How long a word counts, in milliseconds: three times the interval at which it is repeated.
pub const ACCUSED_MS: u64 = 10_000;
/// How long a device that was cut off joins nothing, in milliseconds.
pub const SHUNNED_MS: u64 = 60_000;
/// How long one node's word must have stood before the last in-sync backup leaves for it, in milliseconds.
pub const ALONE_MS: u64 = 5_000;

/// A node has said that a device does not answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Accusation {
    /// The node that said it.
    pub by: NodeId,
    /// The device.
    pub of: DeviceId,
    /// How long ago it was said first without a pause since, in milliseconds.
    pub first_ms: u64,
    /// How long ago it was said last, in milliseconds.
    pub last_ms: u64,
}

/// What follows from all accusations.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    by: BTreeMap<DeviceId, BTreeSet<NodeId>>,
    standing: BTreeSet<(NodeId, DeviceId)>,
    cut: BTreeSet<DeviceId>,
    shunned: BTreeSet<DeviceId>,
    /// Nodes that accuse most of those they deal with.
    alone: BTreeSet<NodeId>,
}

impl Suspects {
    pub(crate) fn new(map: &ClusterMap, accusations: &[Accusation]) -> Self {
        if accusations.is_empty() {
            return Self::default();
        }
        let within =
            |most_ms| accusations.iter().filter(move |word| word.last_ms <= most_ms).copied().collect();
        let (recent, all): (Vec<Accusation>, Vec<Accusation>) = (within(ACCUSED_MS), within(SHUNNED_MS));
        let by = accusers(map, &recent);
        let mut accused: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for word in &recent {
            accused.entry(word.by).or_default().extend(node_of(map, word.of));
        }
        let dealings = Dealings::new(map);
        let alone = |(node, accused): (NodeId, BTreeSet<NodeId>)| {
            most(accused.len(), dealings.of(node, &accused)).then_some(node)
        };
        let standing = recent.iter().filter(|word| word.first_ms >= ALONE_MS);
        Self {
            cut: cut_off(map, &dealings, &by),
            shunned: cut_off(map, &dealings, &accusers(map, &all)),
            standing: standing.map(|word| (word.by, word.of)).collect(),
            alone: accused.into_iter().filter_map(alone).collect(),
            by,
        }
    }

    /// Whether a device is to join nothing.
    pub(crate) fn shuns(&self, device: DeviceId) -> bool {
        self.shunned.contains(&device)
    }

    /// Whether there is such a device.
    pub(crate) fn shun_any(&self) -> bool {
        !self.shunned.is_empty()
    }

    /// Whether a device is accused, and another of its node is not.
    pub(crate) fn accused_alone(&self, map: &ClusterMap, device: DeviceId) -> bool {
        let node = node_of(map, device);
        let of_node = map.devices.iter().filter(|(id, entry)| Some(entry.node) == node && map.is_in(**id));
        self.by.contains_key(&device) && of_node.into_iter().any(|(id, _)| !self.by.contains_key(id))
    }

    fn by(&self, device: DeviceId) -> impl Iterator<Item = NodeId> + '_ {
        self.by.get(&device).into_iter().flatten().copied()
    }

    fn accuses(&self, map: &ClusterMap, by: DeviceId, of: DeviceId) -> bool {
        node_of(map, by).is_some_and(|node| self.by(of).any(|accuser| accuser == node))
    }

    /// How much there is against a member of a partition, to be compared.
    fn weight(&self, map: &ClusterMap, config: &PartitionConfig, device: DeviceId) -> (usize, usize) {
        let others = config.replicas.iter().filter(|other| **other != device);
        (others.filter(|other| self.accuses(map, **other, device)).count(), self.by(device).count())
    }

    /// Who is to lead in the primary's place, if it is cut off or a member that it accuses is to be believed rather.
    fn heir(&self, map: &ClusterMap, config: &PartitionConfig, reports: &[Lagging]) -> Option<DeviceId> {
        let (cut, weight) = (self.cut.contains(&config.primary), self.weight(map, config, config.primary));
        let may_lead = |device: &&DeviceId| {
            **device != config.primary
                && !self.cut.contains(device)
                && self.accuses(map, **device, config.primary)
        };
        let rather = |device: &&DeviceId| {
            let accused = reports.iter().any(|report| report.device == **device);
            cut || accused && self.weight(map, config, **device) < weight
        };
        let heirs = config.replicas.iter().filter(may_lead).filter(rather);
        heirs.min_by_key(|device| self.weight(map, config, **device)).copied()
    }

    /// Whether a primary's word is enough to evict a member.
    fn believed(&self, map: &ClusterMap, config: &PartitionConfig, device: DeviceId) -> bool {
        let Some(primary) = node_of(map, config.primary) else { return true };
        let confirmed = self.by(device).any(|accuser| accuser != primary);
        let last = config.replicas.len() == 2 && config.replicas.contains(&device);
        confirmed || !self.alone.contains(&primary) && (!last || self.standing.contains(&(primary, device)))
    }
}

/// Which nodes deal with which: each primary's with those of the other members.
struct Dealings(BTreeMap<NodeId, BTreeSet<NodeId>>);

impl Dealings {
    fn new(map: &ClusterMap) -> Self {
        let mut with: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for config in &map.partitions {
            let Some(leader) = node_of(map, config.primary) else { continue };
            for member in config.members().filter_map(|device| node_of(map, device)) {
                if member != leader {
                    with.entry(member).or_default().insert(leader);
                    with.entry(leader).or_default().insert(member);
                }
            }
        }
        Self(with)
    }

    /// How many nodes a node deals with, or did until these left its partitions.
    fn of(&self, node: NodeId, and: &BTreeSet<NodeId>) -> usize {
        self.0.get(&node).into_iter().flatten().chain(and).collect::<BTreeSet<_>>().len()
    }
}

fn node_of(map: &ClusterMap, device: DeviceId) -> Option<NodeId> {
    map.devices.get(&device).map(|entry| entry.node)
}

fn most(some: usize, of: usize) -> bool {
    some >= 2 && some * 2 > of
}

/// Who accuses each device, its node counted as a whole where all its devices are accused.
fn accusers(map: &ClusterMap, words: &[Accusation]) -> BTreeMap<DeviceId, BTreeSet<NodeId>> {
    let mut by: BTreeMap<DeviceId, BTreeSet<NodeId>> = BTreeMap::new();
    for word in words.iter().filter(|word| node_of(map, word.of) != Some(word.by)) {
        by.entry(word.of).or_default().insert(word.by);
    }
    for node in map.nodes.keys() {
        let of_node = map.devices.iter().filter(|(id, entry)| entry.node == *node && map.is_in(**id));
        let devices: Vec<DeviceId> = of_node.map(|(id, _)| *id).collect();
        if devices.iter().all(|device| by.contains_key(device)) {
            let all: BTreeSet<NodeId> = devices.iter().flat_map(|device| by[device].clone()).collect();
            devices.iter().for_each(|device| drop(by.insert(*device, all.clone())));
        }
    }
    by
}

fn cut_off(
    map: &ClusterMap,
    dealings: &Dealings,
    by: &BTreeMap<DeviceId, BTreeSet<NodeId>>,
) -> BTreeSet<DeviceId> {
    let is_cut = |(device, accusers): (&DeviceId, &BTreeSet<NodeId>)| {
        let all = dealings.of(node_of(map, *device)?, accusers);
        (map.is_in(*device) && most(accusers.len(), all)).then_some(*device)
    };
    let cut: BTreeSet<DeviceId> = by.iter().filter_map(is_cut).collect();
    if cut.len() * 2 < devices_in(map, Tier::Hot).len() { cut } else { BTreeSet::new() }
}

/// Members that do not answer leave, or the primary that says so does.
pub(crate) fn evict(
    config: &mut PartitionConfig,
    partition: PartitionId,
    (next, input, suspects): (&ClusterMap, &PlanInput<'_>, &Suspects),
    reasons: &mut Vec<String>,
) {
    // Compared with the epoch of before this plan: only what it says was reported.
    let reported = |report: &&Lagging| (report.partition, report.epoch) == (partition, config.epoch);
    let reports: Vec<Lagging> = input.reports.lagging.iter().filter(reported).copied().collect();
    if let Some(heir) = suspects.heir(next, config, &reports) {
        let gone = std::mem::replace(&mut config.primary, heir);
        config.replicas.retain(|device| *device != gone);
        reasons.push(format!("{partition}: {gone} is cut off from the others, {heir} leads"));
        return;
    }
    let in_use = devices_in(next, Tier::Hot).len();
    for report in &reports {
        let alone = config.replicas == [report.device];
        // Two copies are the least that may acknowledge: slow is better than stopped.
        let copies = config.members().count();
        let enough = copies > 2 || in_use > copies;
        if report.device == config.primary || alone || !enough {
            continue;
        }
        if !suspects.believed(next, config, report.device) {
            reasons.push(format!("{partition}: {} stays, on one node's word against it", report.device));
            continue;
        }
        config.replicas.retain(|device| *device != report.device);
        config.joining.retain(|device| *device != report.device);
        reasons.push(format!("{partition}: {} lags and leaves", report.device));
    }
}
