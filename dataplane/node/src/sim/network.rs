//! The network between simulated nodes: messages take a while, each a different one, and so overtake each other; they
//! are lost; those without an answer are also doubled; links are cut, one way or both, and nodes are not there.
//!
//! What a caller learns is what the transport of production tells it: a request that did not come back is lost, one to a
//! node that is down was not sent.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use futures::{FutureExt, channel::oneshot, future::LocalBoxFuture};
use quarry_clustermap::{DeviceId, NodeId};
use quarry_object::transport::{Address, Class, Parcel, Transport, TransportError};

use super::{
    Random,
    executor::{SimTimer, Spawn},
};
use crate::platform::Timer;

/// Longest journey.
const DELAY_US_MAX: u64 = 3000;
/// A connection on which nothing comes is given up after this.
pub(super) const SILENT_FOR: Duration = Duration::from_secs(4);
/// A call ends after this.
const CALL_FOR: Duration = Duration::from_secs(6);

type Handler = Rc<dyn Fn(Address, Parcel) -> LocalBoxFuture<'static, Parcel>>;

struct Attached {
    handler: Handler,
    /// Of the node's life.
    spawn: Spawn,
}

/// See the module.
pub(super) struct Network {
    timer: SimTimer,
    random: Random,
    /// Of the world: a message on its way outlives its sender.
    spawn: Spawn,
    owners: BTreeMap<DeviceId, NodeId>,
    nodes: RefCell<BTreeMap<NodeId, Attached>>,
    cut: RefCell<BTreeSet<(NodeId, NodeId)>>,
    /// Of a thousand messages between nodes, so many are lost, and so many doubled.
    pub(super) loss_permille: Cell<u64>,
    /// Messages between nodes.
    pub(super) carried: Cell<u64>,
}

impl Network {
    pub(super) fn new(
        timer: SimTimer,
        spawn: Spawn,
        owners: BTreeMap<DeviceId, NodeId>,
        seed: u64,
    ) -> Rc<Self> {
        Rc::new(Self {
            timer,
            random: Random::new(seed),
            spawn,
            owners,
            nodes: RefCell::default(),
            cut: RefCell::default(),
            loss_permille: Cell::new(0),
            carried: Cell::new(0),
        })
    }

    pub(super) fn attach(&self, node: NodeId, handler: Handler, spawn: Spawn) {
        self.nodes.borrow_mut().insert(node, Attached { handler, spawn });
    }

    pub(super) fn detach(&self, node: NodeId) {
        let gone = self.nodes.borrow_mut().remove(&node);
        drop(gone);
    }

    /// Nothing gets from one node to the other one.
    pub(super) fn cut(&self, from: NodeId, to: NodeId) {
        self.cut.borrow_mut().insert((from, to));
    }

    pub(super) fn heal(&self) {
        self.cut.borrow_mut().clear();
    }

    fn is_lost(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.borrow().contains(&(from, to)) || self.random.below(1000) < self.loss_permille.get()
    }

    async fn delay(&self) {
        self.timer.sleep(Duration::from_micros(self.random.below(DELAY_US_MAX))).await;
    }

    /// Whether a message of a call arrives; the caller hears of it later if not.
    async fn travel(&self, from: NodeId, to: NodeId) -> Result<(), TransportError> {
        self.carried.set(self.carried.get() + 1);
        self.delay().await;
        if !self.is_lost(from, to) {
            return Ok(());
        }
        let broken = Duration::from_millis(self.random.below(100));
        let cut = self.cut.borrow().contains(&(from, to));
        self.timer.sleep(if cut { SILENT_FOR } else { broken }).await;
        Err(TransportError::Lost)
    }

    fn receive(&self, node: NodeId, to: Address, parcel: Parcel) -> Option<oneshot::Receiver<Parcel>> {
        let nodes = self.nodes.borrow();
        let attached = nodes.get(&node)?;
        let (handler, (sender, receiver)) = (Rc::clone(&attached.handler), oneshot::channel());
        (attached.spawn)(Box::pin(async move {
            let _gone = sender.send(handler(to, parcel).await);
        }));
        Some(receiver)
    }
}

/// One node's end.
pub(crate) struct NetTransport {
    pub(super) me: NodeId,
    pub(super) network: Rc<Network>,
}

impl NetTransport {
    fn node_of(&self, to: Address) -> Result<NodeId, TransportError> {
        match to {
            Address::Device(device) => {
                self.network.owners.get(&device).copied().ok_or(TransportError::Unreachable)
            }
            Address::Node(node) => Ok(node),
            Address::Core(_) => Ok(self.me),
        }
    }
}

impl Transport for NetTransport {
    fn send(&self, to: Address, _: Class, parcel: Parcel) -> Result<(), TransportError> {
        let (me, node, network) = (self.me, self.node_of(to)?, Rc::clone(&self.network));
        let doubled = me != node && self.network.random.below(1000) < self.network.loss_permille.get();
        for _ in 0..=usize::from(doubled) {
            let (network, parcel) = (Rc::clone(&network), parcel.clone());
            (self.network.spawn)(Box::pin(async move {
                if me != node {
                    network.carried.set(network.carried.get() + 1);
                    network.delay().await;
                    if network.is_lost(me, node) {
                        return;
                    }
                }
                network.receive(node, to, parcel);
            }));
        }
        Ok(())
    }

    async fn call(&self, to: Address, _: Class, parcel: Parcel) -> Result<Parcel, TransportError> {
        let (me, node, network) = (self.me, self.node_of(to)?, &self.network);
        if me != node {
            network.travel(me, node).await?;
        }
        let answer = network.receive(node, to, parcel).ok_or(TransportError::Unreachable)?;
        if me == node {
            return answer.await.map_err(|_| TransportError::Lost);
        }
        let mut limit = std::pin::pin!(network.timer.sleep(CALL_FOR).fuse());
        let answer = futures::select_biased! {
            answer = answer.fuse() => answer.map_err(|_| TransportError::Lost)?,
            () = limit => return Err(TransportError::Lost),
        };
        network.travel(node, me).await?;
        Ok(answer)
    }
}
