//! A controller in numbers, for its metrics: written by the controller, read by whoever shows them.

use quarry_clustermap::{ClusterMap, PgState};
use quarry_meter::Counter;

/// See the module.
#[derive(Debug, Default)]
pub struct LeaderNumbers {
    /// 1 while it leads.
    pub leads: Counter,
    /// Elections won.
    pub terms: Counter,
    /// Version of the newest map; 0: it has not led yet.
    pub map_version: Counter,
    /// Nodes of the map.
    pub nodes: Counter,
    /// Nodes whose lease lasts.
    pub nodes_alive: Counter,
    /// Reports that were there at the last look.
    pub reports_waiting: Counter,
    /// Plans: committed or nothing to do.
    pub plans_done: Counter,
    /// Plans that are put off: not with the devices that there are.
    pub plans_waiting: Counter,
    /// Plans that met a change of somebody else.
    pub plans_in_conflict: Counter,
    /// Plans that failed.
    pub plans_failed: Counter,
    /// Placement groups that are open, sealed, moving.
    pub groups: [Counter; 3],
}

impl LeaderNumbers {
    pub(super) fn set_map(&self, map: &ClusterMap) {
        self.map_version.set(map.version.0);
        self.nodes.set(map.nodes.len() as u64);
        let mut groups = [0; 3];
        for group in map.placement_groups.values() {
            groups[match group.state {
                PgState::Open => 0,
                PgState::Sealed => 1,
                PgState::Moving => 2,
            }] += 1;
        }
        self.groups.iter().zip(groups).for_each(|(counter, count)| counter.set(count));
    }
}
