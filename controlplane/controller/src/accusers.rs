//! Who has accused which device of not answering: what the planner is told of it, beyond the report of the moment.
//!
//! A member that was evicted is not reported again, and a cut is seen only when several nodes have reported. Kept in memory
//! alone: a new leader hears it anew from those that still wait.

use std::collections::BTreeMap;

use quarry_clustermap::{ClusterMap, DeviceId, NodeId};
use quarry_planner::{ACCUSED_MS, Accusation, SHUNNED_MS};

use crate::Report;

/// Times of the first word and of the last one.
#[derive(Clone, Copy, Debug)]
struct Said {
    first_ms: u64,
    last_ms: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Accusers {
    said: BTreeMap<(NodeId, DeviceId), Said>,
}

impl Accusers {
    /// Takes what reports say; a node that starts is as new.
    pub(crate) fn note(&mut self, map: &ClusterMap, reports: &[Report], now_ms: u64) {
        for report in reports {
            match report {
                Report::Lagging(lagging) => {
                    if let Some(by) = map.devices.get(&lagging.by) {
                        self.accuse((by.node, lagging.device), now_ms);
                    }
                }
                Report::Start { registration, .. } | Report::Register(registration) => {
                    self.forget(map, registration.node);
                }
                _ => {}
            }
        }
        // A wall clock that is put back keeps a word for longer, one that is put forward ends it: it is said again.
        self.said.retain(|_, said| now_ms.saturating_sub(said.last_ms) <= SHUNNED_MS);
    }

    fn accuse(&mut self, key: (NodeId, DeviceId), now_ms: u64) {
        let said = self.said.entry(key).or_insert(Said { first_ms: now_ms, last_ms: now_ms });
        if now_ms.saturating_sub(said.last_ms) > ACCUSED_MS {
            said.first_ms = now_ms;
        }
        said.last_ms = now_ms;
    }

    fn forget(&mut self, map: &ClusterMap, node: NodeId) {
        let is_of = |device: &DeviceId| map.devices.get(device).is_some_and(|entry| entry.node == node);
        self.said.retain(|(by, of), _| *by != node && !is_of(of));
    }

    /// For the planner.
    pub(crate) fn accusations(&self, now_ms: u64) -> Vec<Accusation> {
        let told = self.said.iter().map(|((by, of), said)| Accusation {
            by: *by,
            of: *of,
            first_ms: now_ms.saturating_sub(said.first_ms),
            last_ms: now_ms.saturating_sub(said.last_ms),
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use quarry_clustermap::PartitionId;
    use quarry_planner::Lagging;

    use super::*;

    #[test]
    fn a_word_counts_while_it_is_repeated_and_ends_with_a_start() {
        let map = crate::map_store::tests::large(3, 2, 4, 1);
        let config = &map.partitions[0];
        let member = config.members().find(|device| *device != config.primary).unwrap();
        let (by, of) = (map.devices[&config.primary].node, map.devices[&member].node);
        let by_device = config.primary;
        let report = |epoch| {
            let (partition, by, device) = (PartitionId(0), by_device, member);
            [Report::Lagging(Lagging { partition, epoch, by, device })]
        };
        let mut accusers = Accusers::default();
        for at_ms in [1_000, 4_000, 7_000] {
            accusers.note(&map, &report(config.epoch), at_ms);
        }
        assert_eq!(
            accusers.accusations(8_000),
            [Accusation { by, of: member, first_ms: 7_000, last_ms: 1_000 }]
        );
        accusers.note(&map, &report(config.epoch), 30_000);
        let [word] = accusers.accusations(30_000)[..] else { panic!("one word") };
        assert_eq!((word.first_ms, word.last_ms), (0, 0), "there was a pause");
        accusers.note(&map, &[Report::Tick], 30_001 + SHUNNED_MS);
        assert_eq!(accusers.accusations(30_001 + SHUNNED_MS), []);
        accusers.note(&map, &report(config.epoch), 100_000);
        let start = crate::NodeRegistration {
            node: of,
            address: String::new(),
            rack: String::new(),
            devices: Vec::new(),
        };
        accusers.note(&map, &[Report::Register(start)], 100_000);
        assert_eq!(accusers.accusations(100_000), []);
    }
}
