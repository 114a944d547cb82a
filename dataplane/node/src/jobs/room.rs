//! Keeps primaries informed of which devices of other nodes are full: an entry that a primary admits must find room on
//! every replica, because a replica that cannot journal is lost. Only the nodes of replicas of this core's primaries
//! are asked, each once a second; between two looks the reserve of a device takes what was admitted.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

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
    loop {
        let answers = join_all(nodes(&host, &cluster).into_iter().map(|node| {
            let cluster = &cluster;
            async move { (node, cluster.ask(Address::Node(node), PeerRequest::FullDevices).await) }
        }));
        for (node, answer) in answers.await {
            // A node that does not answer is taken to be as it was.
            if let Ok(PeerResponse::Full { devices }) = answer {
                host.set_full(node, devices);
            }
        }
        cluster.sleep(EVERY).await;
    }
}

/// Other nodes that have replicas of partitions whose primary is here.
fn nodes<P: Platform>(host: &CoreHost<P>, cluster: &NodeCluster<P>) -> BTreeSet<NodeId> {
    let map = cluster.map();
    let primaries = map.partitions.iter().filter(|config| host.owns(config.primary));
    let members: BTreeSet<DeviceId> = primaries.flat_map(|config| config.members()).collect();
    let others = members.into_iter().filter(|device| !cluster.has(*device));
    others.filter_map(|device| map.devices.get(&device).map(|entry| entry.node)).collect()
}
