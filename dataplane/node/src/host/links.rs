//! What a replica needs of its surroundings: peers, tasks, clock, buckets, the control plane.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use quarry_clustermap::{BucketId, DeviceId, Epoch, PartitionId, Versioning};
use quarry_controller::{BucketState, BucketTable};
use quarry_object::{
    peer::PeerRequest,
    transport::{Address, Transport},
};

use quarry_storage::store::Store;

use super::SpaceTable;
use crate::{
    cluster::Progress,
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
    buckets: RefCell<BTreeMap<BucketId, BucketRules>>,
}

impl<P: Platform> Links<P> {
    pub(crate) fn new(
        transport: Rc<P::Transport>,
        timer: P::Timer,
        spawn: Rc<dyn Fn(LocalBoxFuture<'static, ()>)>,
        control: ControlHandle,
        progress: Progress,
        space: SpaceTable,
    ) -> Self {
        Self { transport, spawn, control, progress, space, timer, buckets: RefCell::default() }
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
        self.space.is_full(device)
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

    pub(super) fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.timer.monotonic().as_millis()).unwrap_or(u64::MAX)
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

    /// Sends a replication message; it may be lost, the state machine sends it again.
    pub(super) fn send(&self, from: DeviceId, to: DeviceId, partition: PartitionId, message: Bytes) {
        let request = PeerRequest::Replicate { partition, from, message: message.to_vec() };
        if let Err(error) = self.transport.send(Address::Device(to), request.encode().into()) {
            tracing::debug!(event = "replication_message_lost", %partition, %to, %error);
        }
    }
}
