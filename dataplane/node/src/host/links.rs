//! What a replica needs of its surroundings: peers, tasks, clock, buckets, the control plane.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::{LocalBoxFuture, join_all};
use quarry_clustermap::{BucketId, DeviceId, Epoch, NodeId, PartitionId, Versioning};
use quarry_controller::{BucketState, BucketTable};
use quarry_object::{
    peer::{PeerFault, PeerRequest, PeerResponse, REPLICATE_BYTES_MAX},
    transport::{Address, Parcel, Transport, TransportError},
};

use quarry_partition::LeaseTimes;
use quarry_storage::store::Store;

use super::SpaceTable;
use crate::{
    cluster::{Progress, to_fault},
    control::ControlHandle,
    platform::{Platform, Timer},
};

/// What a primary must know of a bucket.
#[derive(Clone, Copy)]
struct BucketRules {
    is_open: bool,
    versioning: Versioning,
}

/// See the module.
pub(crate) struct Links<P: Platform> {
    transport: Rc<P::Transport>,
    /// Starts a task on this core.
    pub(crate) spawn: Rc<dyn Fn(LocalBoxFuture<'static, ()>)>,
    /// The control plane.
    pub(crate) control: ControlHandle,
    progress: Progress,
    space: SpaceTable,
    timer: P::Timer,
    /// Of primaries; `None`: all replicas are in this process.
    pub(super) leases: Option<LeaseTimes>,
    /// Messages to the replicas of a device, while they are collected.
    together: RefCell<Option<BTreeMap<DeviceId, Vec<Vec<u8>>>>>,
    buckets: RefCell<BTreeMap<BucketId, BucketRules>>,
    /// Devices of other nodes that are full, as of a moment ago.
    full_elsewhere: RefCell<BTreeMap<NodeId, Vec<DeviceId>>>,
    /// Epochs that replicas have taken up, for the metrics.
    pub(super) epoch_changes: Cell<u64>,
}

impl<P: Platform> Links<P> {
    pub(crate) fn new(
        transport: Rc<P::Transport>,
        timer: P::Timer,
        spawn: Rc<dyn Fn(LocalBoxFuture<'static, ()>)>,
        control: ControlHandle,
        progress: Progress,
        space: SpaceTable,
        leases: Option<LeaseTimes>,
    ) -> Self {
        Self {
            transport,
            spawn,
            control,
            progress,
            space,
            timer,
            leases,
            together: RefCell::default(),
            buckets: RefCell::default(),
            full_elsewhere: RefCell::default(),
            epoch_changes: Cell::new(0),
        }
    }

    /// From now on only buckets that are active here take writes, and this is what they keep of older versions.
    pub(super) fn set_buckets(&self, table: &Arc<BucketTable>) {
        let rules = |bucket: &quarry_controller::Bucket| BucketRules {
            is_open: bucket.state == BucketState::Active,
            versioning: bucket.config.versioning,
        };
        let buckets = table.by_name.values();
        *self.buckets.borrow_mut() = buckets.map(|bucket| (bucket.id, rules(bucket))).collect();
    }

    pub(super) fn bucket_is_open(&self, bucket: BucketId) -> bool {
        self.buckets.borrow().get(&bucket).is_some_and(|rules| rules.is_open)
    }

    pub(super) fn versioning(&self, bucket: BucketId) -> Versioning {
        self.buckets.borrow().get(&bucket).map(|rules| rules.versioning).unwrap_or_default()
    }

    /// Whether a device has only its reserve left.
    pub(super) fn is_full(&self, device: DeviceId) -> bool {
        self.space.is_full(device) || self.full_elsewhere.borrow().values().any(|full| full.contains(&device))
    }

    /// Devices of this node that have only their reserve left.
    pub(super) fn full(&self) -> Vec<DeviceId> {
        self.space.full()
    }

    /// What another node says of its devices.
    pub(super) fn set_full(&self, node: NodeId, devices: Vec<DeviceId>) {
        self.full_elsewhere.borrow_mut().insert(node, devices);
    }

    /// Whether a device's journal has too much to do to begin more.
    pub(super) fn is_busy(&self, device: DeviceId) -> bool {
        self.space.is_busy(device)
    }

    /// Asks the control plane to record a new primary, and waits until no core takes the old one for it any more:
    /// what the new one acknowledges from then on, no core can miss.
    pub(super) async fn activate(&self, partition: PartitionId, epoch: Epoch) -> bool {
        if !self.control.activate(partition, epoch).await {
            return false;
        }
        while !self.progress.epoch_reached(epoch) {
            self.timer.sleep(Duration::from_millis(1)).await;
        }
        true
    }

    /// The oldest revision of the bucket table that a core of this node acts on.
    pub(super) fn bucket_revision(&self) -> u64 {
        self.progress.bucket_revision()
    }

    /// Cores of this node.
    pub(super) fn cores(&self) -> usize {
        self.progress.cores()
    }

    /// Asks every core of this node the same, itself too.
    pub(super) async fn ask_cores(&self, request: &PeerRequest) -> Result<Vec<PeerResponse>, PeerFault> {
        let frame = Bytes::from(request.encode());
        let ask = |core| {
            let parcel = Parcel { message: frame.clone(), bulk: Bytes::new() };
            self.transport.call(Address::Core(core), request.class(), parcel)
        };
        let answers = join_all((0..self.progress.cores()).map(ask)).await;
        let decode = |answer: Result<Parcel, TransportError>| match PeerResponse::decode(
            &answer.map_err(to_fault)?.message,
        ) {
            Ok(PeerResponse::Failed(fault)) => Err(fault),
            Ok(response) => Ok(response),
            Err(error) => Err(PeerFault::Damaged { detail: error.to_string() }),
        };
        answers.into_iter().map(decode).collect()
    }

    pub(super) fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.timer.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    /// Space of this node's devices.
    pub(super) fn space(&self) -> &SpaceTable {
        &self.space
    }

    pub(super) fn unix_ms(&self) -> u64 {
        self.timer.unix_ms()
    }

    /// A device's index cannot be read: it is out, and mended at the next start.
    pub(super) fn index_damaged(&self, store: &Store<P::Device>, reason: String) {
        let (store, control) = (store.clone(), self.control.clone());
        (self.spawn)(Box::pin(async move {
            // First, so that a start soon after knows it.
            if let Err(error) = store.mark_index_damaged().await {
                tracing::debug!(event = "index_not_marked", device = %store.device_id(), %error);
            }
            control.device_failed(store.device_id(), reason);
        }));
    }

    /// Sends a replication message, an encoded envelope; it may be lost, the state machine sends it again.
    pub(super) fn send(&self, to: DeviceId, message: Bytes) {
        let message = Vec::from(message);
        if let Some(together) = self.together.borrow_mut().as_mut() {
            return together.entry(to).or_default().push(message);
        }
        self.send_all(to, vec![message]);
    }

    /// What is sent while `work` is done travels together, for each device: the leases of idle partitions are few frames.
    pub(super) fn together(&self, work: impl FnOnce()) {
        let outermost = self.together.borrow().is_none();
        if outermost {
            *self.together.borrow_mut() = Some(BTreeMap::new());
        }
        work();
        if !outermost {
            return;
        }
        for (to, messages) in self.together.take().unwrap_or_default() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            for message in messages {
                if bytes + message.len() > REPLICATE_BYTES_MAX && !batch.is_empty() {
                    self.send_all(to, std::mem::take(&mut batch));
                    bytes = 0;
                }
                bytes += message.len();
                batch.push(message);
            }
            self.send_all(to, batch);
        }
    }

    fn send_all(&self, to: DeviceId, messages: Vec<Vec<u8>>) {
        let request = PeerRequest::Replicate { messages };
        let (class, frame) = (request.class(), request.encode());
        if let Err(error) = self.transport.send(Address::Device(to), class, frame.into()) {
            tracing::debug!(event = "replication_messages_lost", %to, %error);
        }
    }
}
