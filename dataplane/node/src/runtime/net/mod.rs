//! Messages between nodes, one set of connections per core and remote node: urgent, ordinary, bulk.
//!
//! A core dials the nodes that it asks, and answers those that dial it; the kernel spreads what is dialled over the
//! cores (SO_REUSEPORT), and a request for another core's device goes on by the queue between cores. Protocol and
//! bookkeeping have no I/O in them (`frame`, `handshake`, `outbox`); sockets are in `connection`, `link`, `server`.

mod connection;
mod frame;
mod handshake;
mod key;
mod link;
mod outbox;
mod server;
mod stats;
#[cfg(test)]
mod tests;

pub(crate) use self::{
    handshake::{Identity, Versions},
    key::ClusterKey,
    stats::LinkStats,
};

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use futures::future::LocalBoxFuture;
use glommio::net::TcpListener;
use quarry_clustermap::{ClusterMap, DeviceId, Incarnation, NodeId};
use quarry_object::transport::{Address, Class, Parcel, TransportError};

use self::{
    link::{Common, Link},
    server::{Handler, Server},
};

/// Where the counters of a node and class are.
pub(crate) type StatsOf = Rc<dyn Fn(NodeId, Class) -> Arc<LinkStats>>;

/// A node as the map has it.
struct Peer {
    address: SocketAddr,
    /// In the order of [`Class::ALL`].
    links: [Rc<Link>; 3],
}

/// One core's way to the other nodes.
pub(crate) struct Net {
    common: Rc<Common>,
    stats: StatsOf,
    peers: RefCell<BTreeMap<NodeId, Peer>>,
    owners: RefCell<BTreeMap<DeviceId, NodeId>>,
    incarnations: Rc<RefCell<BTreeMap<NodeId, Incarnation>>>,
    under_way: Rc<Cell<usize>>,
}

impl Net {
    pub(crate) fn new(
        me: Identity,
        key: ClusterKey,
        spawn: Rc<dyn Fn(LocalBoxFuture<'static, ()>)>,
        random: Box<dyn Fn() -> u64>,
        stats: StatsOf,
    ) -> Rc<Self> {
        Rc::new(Self {
            common: Rc::new(Common { me, key, spawn, random }),
            stats,
            peers: RefCell::default(),
            owners: RefCell::default(),
            incarnations: Rc::default(),
            under_way: Rc::default(),
        })
    }

    /// Answers other nodes at an address from now on, by `handler`. All cores of a node bind the same one.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub(crate) fn listen(&self, address: SocketAddr, handler: Handler) -> std::io::Result<SocketAddr> {
        let failed = |error: glommio::GlommioError<()>| std::io::Error::other(error.to_string());
        let listener = TcpListener::bind(address).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let incarnations = Rc::clone(&self.incarnations);
        let server = Server {
            common: Rc::clone(&self.common),
            handler,
            is_current: Rc::new(move |node, incarnation| {
                incarnations.borrow().get(&node).is_none_or(|newest| incarnation >= *newest)
            }),
            stats: Rc::clone(&self.stats),
            under_way: Rc::clone(&self.under_way),
        };
        (self.common.spawn)(Box::pin(Rc::new(server).run(listener)));
        Ok(bound)
    }

    /// Acts on a newer map: who owns which device, and where nodes are.
    pub(crate) fn set_map(&self, map: &ClusterMap) {
        *self.owners.borrow_mut() = map.devices.iter().map(|(id, entry)| (*id, entry.node)).collect();
        *self.incarnations.borrow_mut() =
            map.nodes.iter().map(|(id, entry)| (*id, entry.incarnation)).collect();
        let mut peers = self.peers.borrow_mut();
        let others = map.nodes.iter().filter(|(node, _)| **node != self.common.me.node);
        let mut wanted: BTreeMap<NodeId, SocketAddr> = BTreeMap::new();
        for (node, entry) in others {
            match entry.address.parse() {
                Ok(address) => drop(wanted.insert(*node, address)),
                Err(_) if entry.address.is_empty() => {}
                Err(error) => {
                    tracing::error!(event = "peer_address_unusable", %node, address = entry.address, %error);
                }
            }
        }
        peers.retain(|node, peer| {
            let keep = wanted.get(node) == Some(&peer.address);
            if !keep {
                peer.links.iter().for_each(|link| link.close());
            }
            keep
        });
        for (node, address) in wanted {
            peers.entry(node).or_insert_with(|| Peer {
                address,
                links: Class::ALL.map(|class| {
                    Link::new(Rc::clone(&self.common), (node, address), class, (self.stats)(node, class))
                }),
            });
        }
    }

    /// Whether anything is under way to or from other nodes.
    pub(crate) fn is_busy(&self) -> bool {
        self.under_way.get() > 0
            || self.peers.borrow().values().any(|peer| peer.links.iter().any(|link| link.is_busy()))
    }

    fn link(&self, to: Address, class: Class) -> Result<Rc<Link>, TransportError> {
        let node = match to {
            Address::Device(device) => self.owners.borrow().get(&device).copied(),
            Address::Node(node) => Some(node),
            Address::Core(_) => None,
        };
        let peers = self.peers.borrow();
        let peer = node.and_then(|node| peers.get(&node)).ok_or(TransportError::Unreachable)?;
        let index = Class::ALL.iter().position(|known| *known == class).expect("all are listed");
        Ok(Rc::clone(&peer.links[index]))
    }

    /// Sends without waiting for an answer; it may be lost.
    pub(crate) fn send(&self, to: Address, class: Class, parcel: Parcel) -> Result<(), TransportError> {
        self.link(to, class)?.send(to, parcel)
    }

    /// Sends and waits for the answer.
    pub(crate) async fn call(
        &self,
        to: Address,
        class: Class,
        parcel: Parcel,
    ) -> Result<Parcel, TransportError> {
        self.link(to, class)?.call(to, parcel).await
    }
}
