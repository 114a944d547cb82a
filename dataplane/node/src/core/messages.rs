//! How a core is connected: to the other cores of its node, and to other nodes.

use std::{cell::OnceCell, rc::Rc, sync::Arc};

use futures::future::LocalBoxFuture;
use quarry_object::{cluster::Cluster, transport::Address};

use super::{Production, Queues, Shared, spawner};
use crate::{
    cluster::NodeCluster,
    runtime::{
        mesh::Mesh,
        net::{Identity, Net, Versions},
    },
};

pub(super) fn start_mesh(shared: &Shared, index: usize, queues: Queues) -> Rc<Mesh> {
    let owners = shared.clone();
    let route = Rc::new(move |to| match to {
        Address::Device(device) => owners.owner(device),
        Address::Core(core) => (core < owners.config.cores).then_some(core),
        Address::Node(_) => None,
    });
    let mesh = Mesh::new(index, shared.inboxes.clone(), route, spawner(queues.device));
    spawner(queues.device)(Box::pin(Rc::clone(&mesh).receive()));
    mesh
}

/// The way to and from other nodes, if this one has any. Nothing is sent before the first map.
pub(super) fn start_net(
    shared: &Shared,
    mesh: &Rc<Mesh>,
    cluster: &Rc<NodeCluster<Production>>,
    queues: Queues,
    known: &OnceCell<Rc<Net>>,
) -> anyhow::Result<()> {
    let Some((address, key)) = &shared.peers else { return Ok(()) };
    let me = Identity {
        cluster: shared.published.map.cluster,
        node: shared.node,
        incarnation: shared.incarnation,
        versions: Versions::OURS,
    };
    let (random, metrics) = (Rc::clone(cluster), Arc::clone(&shared.metrics));
    let random = Box::new(move || random.random());
    let stats = Rc::new(move |node, class| metrics.link(node, class));
    let net = Net::new(me, key.clone(), spawner(queues.device), random, stats);
    net.set_map(&shared.published.map);
    let answering = Rc::clone(mesh);
    let handler = move |to, _, parcel| -> LocalBoxFuture<'static, _> {
        let mesh = Rc::clone(&answering);
        Box::pin(async move { mesh.call_here(to, parcel).await })
    };
    net.listen(*address, Rc::new(handler))
        .map_err(|error| anyhow::anyhow!("cannot listen for other nodes on {address}: {error}"))?;
    mesh.set_net(Rc::clone(&net));
    assert!(known.set(net).is_ok(), "started once");
    Ok(())
}
