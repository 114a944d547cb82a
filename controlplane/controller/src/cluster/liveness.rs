//! Which nodes are lost: pure.
//!
//! ```text
//!          lease ended            grace has passed
//!   alive -------------> absent ------------------> lost (reported until the map has its devices out)
//!         <-------------        <-------------------
//!          lease is back         lease is back; the node itself reports that its devices return
//! ```
//!
//! The time of an absence counts from when this leader first saw it, on a clock that does not jump: a new leader is
//! patient anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use quarry_clustermap::{ClusterMap, DeviceState, NodeId};

/// What a leader has seen of leases.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    absent_since: BTreeMap<NodeId, Duration>,
}

impl Liveness {
    /// Nodes of the map with a device in whose lease has been gone for `grace`, at `now` on any monotonic clock.
    pub(crate) fn lost(
        &mut self,
        map: &ClusterMap,
        alive: &BTreeSet<NodeId>,
        now: Duration,
        grace: Duration,
    ) -> Vec<NodeId> {
        let serving = map.devices.values().filter(|entry| entry.state == DeviceState::In);
        let absent: BTreeSet<NodeId> =
            serving.map(|entry| entry.node).filter(|node| !alive.contains(node)).collect();
        self.absent_since.retain(|node, _| absent.contains(node));
        let mut lost = Vec::new();
        for node in absent {
            let since = *self.absent_since.entry(node).or_insert(now);
            if now.saturating_sub(since) >= grace {
                lost.push(node);
            }
        }
        lost
    }

    /// Whether some node is absent and not lost yet: the time of that is to be watched.
    pub(crate) fn waits(&self) -> bool {
        !self.absent_since.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_lost_after_its_grace_and_not_for_having_nothing_in() {
        let mut map = crate::map_store::tests::large(3, 2, 4, 1);
        let (mut liveness, grace) = (Liveness::default(), Duration::from_secs(2));
        let mut at = |alive: &[u32], seconds, map: &ClusterMap| {
            let alive = alive.iter().copied().map(NodeId).collect();
            liveness.lost(map, &alive, Duration::from_secs(seconds), grace)
        };
        assert_eq!(at(&[1, 2, 3], 0, &map), []);
        assert_eq!(at(&[1, 3], 5, &map), []);
        assert_eq!(at(&[1, 3], 6, &map), []);
        assert_eq!(at(&[1, 2, 3], 7, &map), [], "it came back");
        assert_eq!(at(&[1, 3], 8, &map), []);
        assert_eq!(at(&[1], 10, &map), [NodeId(2)]);
        for entry in map.devices.values_mut().filter(|entry| entry.node == NodeId(2)) {
            entry.state = DeviceState::Out;
        }
        assert_eq!(at(&[1], 12, &map), [NodeId(3)]);
    }
}
