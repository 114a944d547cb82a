//! Keeps a core informed of how full the devices of all nodes are.
//!
//! An entry that a primary admits must find room on every replica, because a replica that cannot journal is lost: the nodes
//! of replicas of this core's primaries are asked once a second, and between two looks the reserve of a device takes what
//! was admitted. Where new blobs go depends on it too, but that need not be as new: of the other nodes one is asked each second.

use std::{collections::BTreeSet, ops::Bound, rc::Rc, time::Duration};

use futures::future::join_all;
use quarry_clustermap::{DeviceId, NodeId};
use quarry_object::{
    cluster::Cluster,
    peer::{PeerRequest, PeerResponse},
    transport::Address,
};

use crate::{cluster::NodeCluster, host::CoreHost, platform::Platform};

const EVERY: Duration = Duration::from_secs(1);

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(host: Rc<CoreHost<P>>, cluster: Rc<NodeCluster<P>>) {
    let mut turn = NodeId(0);
    loop {
        cluster.set_fill(host.fill());
        let mut asked = of_replicas(&host, &cluster);
        if let Some(next) = next_after(turn, &all_others(&cluster)) {
            turn = next;
            asked.insert(next);
        }
        let answers = join_all(asked.into_iter().map(|node| {
            let cluster = &cluster;
            async move { (node, cluster.ask(Address::Node(node), PeerRequest::FullDevices).await) }
        }));
        for (node, answer) in answers.await {
            // A node that does not answer is taken to be as it was.
            if let Ok(PeerResponse::Full { devices, fill }) = answer {
                host.set_full(node, devices);
                cluster.set_fill(fill);
            }
        }
        cluster.sleep(EVERY).await;
    }
}

/// Other nodes that have replicas of partitions whose primary is here.
fn of_replicas<P: Platform>(host: &CoreHost<P>, cluster: &NodeCluster<P>) -> BTreeSet<NodeId> {
    let map = cluster.map();
    let primaries = map.partitions.iter().filter(|config| host.owns(config.primary));
    let members: BTreeSet<DeviceId> = primaries.flat_map(|config| config.members()).collect();
    let others = members.into_iter().filter(|device| !cluster.has(*device));
    others.filter_map(|device| map.devices.get(&device).map(|entry| entry.node)).collect()
}

/// Other nodes with devices that are in.
fn all_others<P: Platform>(cluster: &NodeCluster<P>) -> BTreeSet<NodeId> {
    let map = cluster.map();
    let others = map.devices.iter().filter(|(device, _)| map.is_in(**device) && !cluster.has(**device));
    others.map(|(_, entry)| entry.node).collect()
}

/// Whose turn it is: the one after the last, and the first one again after the end.
fn next_after(last: NodeId, nodes: &BTreeSet<NodeId>) -> Option<NodeId> {
    let behind = (Bound::Excluded(last), Bound::Unbounded);
    nodes.range(behind).next().or_else(|| nodes.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_gets_its_turn() {
        let nodes = BTreeSet::from([2, 3, 7].map(NodeId));
        let mut turn = NodeId(0);
        let turns: Vec<u32> = (0..5)
            .map(|_| {
                turn = next_after(turn, &nodes).unwrap();
                turn.0
            })
            .collect();
        assert_eq!(turns, [2, 3, 7, 2, 3]);
        assert_eq!(next_after(NodeId(7), &BTreeSet::from([NodeId(3)])), Some(NodeId(3)), "that one is gone");
        assert_eq!(next_after(turn, &BTreeSet::new()), None);
    }
}
