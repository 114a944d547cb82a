//! What a core does for the devices it owns: shards, partition replicas, listings. Everything arrives as a
//! [`PeerRequest`] over the transport, also from the core itself.

mod links;
pub(crate) mod listing;
mod partition;
mod proposed;
mod shards;
mod space;
mod view;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use quarry_clustermap::{ClusterMap, DeviceId, NodeId, PartitionId, Sequence, Tier};
use quarry_controller::BucketTable;
use quarry_object::{
    metadata::ExecuteError,
    peer::{DeviceFill, PeerFault, PeerRequest, PeerResponse, Run, ShardName},
    transport::{Address, Parcel},
};
use quarry_partition::{
    Envelope,
    command::{Command, Framed, List, Lookup, Manifest, Outcome, Reply},
};
use quarry_storage::store::{Store, StoreError};

use self::shards::{ReadFault, Shards};
pub(crate) use self::{
    links::Links,
    partition::{PartitionHost, into_mutations},
    space::{DeviceSpace, SpaceTable},
};
use crate::{jobs::tiers::Watch, platform::Platform};

/// A device whose journal makes no progress for so long counts as failed, so that its partitions go on without it.
const STALL_MAX_MS: u64 = 30_000;

/// One device that this core owns.
pub(crate) struct DeviceHost<P: Platform> {
    pub(crate) store: Store<P::Device>,
    pub(crate) shards: Shards<P::Device>,
    partitions: RefCell<BTreeMap<PartitionId, Rc<PartitionHost<P>>>>,
    /// Partitions whose rows are being wiped: no replica is made before that has ended.
    forgetting: RefCell<BTreeSet<PartitionId>>,
    /// The journal's batch under way and when it was first seen; `None` while there is none.
    batch: Cell<Option<(u64, u64)>>,
}

impl<P: Platform> DeviceHost<P> {
    /// How long the journal has been at one batch, in ms.
    fn stalled_ms(&self, now_ms: u64) -> u64 {
        let known = self.batch.get();
        let batch = self.store.batch_under_way().map(|batch| match known {
            Some((same, since)) if same == batch => (batch, since),
            _ => (batch, now_ms),
        });
        self.batch.set(batch);
        batch.map_or(0, |(_, since)| now_ms.saturating_sub(since))
    }
}

/// Replicas of a core, for its metrics.
#[derive(Default)]
pub(crate) struct ReplicaTotals {
    pub(crate) replicas: u64,
    /// Those that serve as primaries.
    pub(crate) primaries: u64,
    /// Entries of their logs that are not committed, as far as known here.
    pub(crate) uncommitted_entries: u64,
    /// Epochs that replicas have taken up since the start.
    pub(crate) epoch_changes: u64,
}

/// All devices that this core owns.
pub(crate) struct CoreHost<P: Platform> {
    devices: BTreeMap<DeviceId, Rc<DeviceHost<P>>>,
    map: RefCell<Arc<ClusterMap>>,
    links: Rc<Links<P>>,
    watch: Watch,
    listings: listing::Turns,
}

impl<P: Platform> CoreHost<P> {
    /// Takes the recovered stores; nothing is served before the first [`CoreHost::set_map`].
    pub(crate) fn new(stores: Vec<Store<P::Device>>, map: Arc<ClusterMap>, links: Rc<Links<P>>) -> Rc<Self> {
        let host = |store: Store<P::Device>| {
            let (told, id) = (Rc::clone(&links), store.device_id());
            let report = Box::new(move |store: &Store<P::Device>, error: &StoreError| {
                told.index_damaged(store, error.to_string())
            });
            let shards = Shards::new(store.clone(), report);
            (
                id,
                Rc::new(DeviceHost {
                    store,
                    shards,
                    partitions: RefCell::default(),
                    forgetting: RefCell::default(),
                    batch: Cell::new(None),
                }),
            )
        };
        let devices = stores.into_iter().map(host).collect();
        Rc::new(Self {
            devices,
            map: RefCell::new(map),
            links,
            watch: Watch::new(),
            listings: listing::Turns::default(),
        })
    }

    /// The devices of this core.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (DeviceId, &Rc<DeviceHost<P>>)> {
        self.devices.iter().map(|(id, host)| (*id, host))
    }

    /// The newest map known here.
    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.map.borrow())
    }

    /// What clients read of the partitions served here.
    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Space of this node's devices of a tier that are in, and how much of it is used.
    pub(crate) fn space_of_tier(&self, map: &ClusterMap, tier: Tier) -> (u64, u64) {
        let is_of = |device| map.is_in(device) && map.devices[&device].tier == tier;
        self.links.space().used(is_of)
    }

    /// Whether this core serves a device.
    pub(crate) fn owns(&self, device: DeviceId) -> bool {
        self.devices.contains_key(&device)
    }

    /// A newer map: replicas are made for new members, and all are told their configuration.
    pub(crate) fn set_map(self: &Rc<Self>, map: Arc<ClusterMap>, buckets: Arc<BucketTable>) {
        self.links.set_buckets(&buckets);
        *self.map.borrow_mut() = map;
        self.configure();
    }

    /// Makes replicas for new members of the map, and tells all replicas their configuration.
    fn configure(self: &Rc<Self>) {
        let map = self.map();
        let min_copies = map.hot_profile.metadata_replicas().min(2);
        for (device, host) in &self.devices {
            for (index, config) in map.partitions.iter().enumerate() {
                let id = PartitionId(u16::try_from(index).expect("validated: partition ids are 16 bits"));
                // What has lost its history must not pass for a replica that never had any.
                let is_lost =
                    !config.has_history() || (config.replicas.contains(device) && host.store.is_lost(id));
                let is_member = config.members().any(|member| member == *device) && !is_lost;
                let known = host.partitions.borrow().get(&id).cloned();
                let replica = match known {
                    Some(replica) => replica,
                    None if is_member && !host.forgetting.borrow().contains(&id) => {
                        let store = host.store.clone();
                        let replica =
                            PartitionHost::new(id, *device, min_copies, store, Rc::clone(&self.links));
                        host.partitions.borrow_mut().insert(id, Rc::clone(&replica));
                        replica
                    }
                    None => continue,
                };
                replica.configure(config);
            }
        }
    }

    /// Partitions that a device holds rows of and is no member of, nor may soon be again.
    pub(crate) fn leftovers(&self) -> Vec<(DeviceId, PartitionId)> {
        let map = self.map();
        let of_device = |(id, host): (&DeviceId, &Rc<DeviceHost<P>>)| {
            let id = *id;
            let is_member = |partition: &PartitionId| {
                let config = map.partitions.get(usize::from(partition.0));
                config.is_none_or(|config| config.members().any(|member| member == id))
            };
            let mut left = host.store.partitions();
            let may_return = |partition: &PartitionId| {
                host.partitions.borrow().get(partition).is_some_and(|replica| replica.may_return())
            };
            left.retain(|partition| {
                !is_member(partition) && !may_return(partition) && host.store.has_rows(*partition)
            });
            left.into_iter().map(|partition| (id, partition)).collect::<Vec<_>>()
        };
        self.devices.iter().filter(|(id, _)| map.is_in(**id)).flat_map(of_device).collect()
    }

    /// Wipes what a device holds of a partition that the newest map does not have it as a member of.
    ///
    /// # Errors
    /// A newer epoch than the map's was seen, or the store is not serving; nothing is lost then.
    pub(crate) async fn forget(
        self: &Rc<Self>,
        device: DeviceId,
        partition: PartitionId,
    ) -> Result<(), StoreError> {
        let host = Rc::clone(&self.devices[&device]);
        let epoch = self.map().partition(partition).epoch;
        host.partitions.borrow_mut().remove(&partition);
        host.forgetting.borrow_mut().insert(partition);
        let result = host.store.reset(partition, epoch, Sequence(0)).await;
        host.forgetting.borrow_mut().remove(&partition);
        // It may have become a member meanwhile.
        self.configure();
        result
    }

    /// Time passes for every replica, and for what was lent to other nodes.
    pub(crate) fn tick(&self) {
        let now_ms = self.links.monotonic_ms();
        for (id, host) in &self.devices {
            host.shards.tick(now_ms);
            let stalled_ms = host.stalled_ms(now_ms);
            if stalled_ms >= STALL_MAX_MS && self.map.borrow().is_in(*id) {
                let reason = format!("its journal has been at one batch for {stalled_ms} ms");
                self.links.control.device_failed(*id, reason);
            }
            let replicas: Vec<_> = host.partitions.borrow().values().cloned().collect();
            self.links.together(|| replicas.iter().for_each(PartitionHost::tick));
        }
    }

    /// The node stops: primaries of this core finish what is in flight, and serve no more.
    pub(crate) fn hand_over(&self) {
        let primaries = self.primaries();
        self.links.together(|| primaries.iter().for_each(PartitionHost::hand_over));
    }

    /// Whether all of them have, or cannot.
    pub(crate) fn is_handed_over(&self) -> bool {
        let replicas =
            |host: &Rc<DeviceHost<P>>| host.partitions.borrow().values().cloned().collect::<Vec<_>>();
        self.devices.values().flat_map(replicas).all(|replica| !replica.is_handing_over())
    }

    /// The replicas of this core in numbers.
    pub(crate) fn totals(&self) -> ReplicaTotals {
        let mut totals = ReplicaTotals::default();
        for host in self.devices.values() {
            for replica in host.partitions.borrow().values() {
                totals.replicas += 1;
                totals.primaries += u64::from(replica.is_serving_primary());
                totals.uncommitted_entries += replica.uncommitted_entries();
            }
        }
        totals.epoch_changes = self.links.epoch_changes.get();
        totals
    }

    /// Replicas of this core that serve as primaries now, by partition.
    pub(crate) fn primaries(&self) -> Vec<Rc<PartitionHost<P>>> {
        let mut primaries: Vec<_> = self
            .devices
            .iter()
            .filter(|(device, _)| self.map.borrow().is_in(**device))
            .flat_map(|(_, host)| host.partitions.borrow().values().cloned().collect::<Vec<_>>())
            .filter(|replica| replica.is_serving_primary())
            .collect();
        primaries.sort_by_key(|replica| replica.partition());
        primaries
    }

    /// How full the devices of this node are.
    pub(crate) fn fill(&self) -> Vec<DeviceFill> {
        self.links.space().fill()
    }

    /// What another node says of its devices: these have only their reserve left.
    pub(crate) fn set_full(&self, node: NodeId, devices: Vec<DeviceId>) {
        self.links.set_full(node, devices);
    }

    /// What stands on a device beside shards was found damaged: the device is out, and mended at the next start.
    pub(crate) fn index_damaged(&self, device: DeviceId, reason: String) {
        self.links.index_damaged(&self.devices[&device].store, reason);
    }

    /// The device failed to read a range: it is not handed out again. A device with too many such blocks is out.
    pub(crate) async fn quarantine(&self, device: DeviceId, run: Run) {
        let Err(error) = self.devices[&device].store.quarantine(run.offset, run.len_bytes).await else {
            return;
        };
        tracing::warn!(event = "quarantine_failed", %device, offset = run.offset, %error);
        if let StoreError::QuarantineFull { .. } = error {
            self.links.control.device_failed(device, error.to_string());
        }
    }

    /// Answers one message.
    pub(crate) fn handle(self: &Rc<Self>, to: Address, parcel: Parcel) -> LocalBoxFuture<'static, Parcel> {
        let host = Rc::clone(self);
        Box::pin(async move {
            let (response, bulk) = match host.answer(to, parcel).await {
                Ok(answer) => answer,
                Err(fault) => (PeerResponse::Failed(fault), Bytes::new()),
            };
            Parcel { message: response.encode().into(), bulk }
        })
    }

    async fn answer(
        self: &Rc<Self>,
        to: Address,
        parcel: Parcel,
    ) -> Result<(PeerResponse, Bytes), PeerFault> {
        let request = PeerRequest::decode(&parcel.message)
            .map_err(|error| PeerFault::Damaged { detail: error.to_string() })?;
        let response = match (to, request) {
            (Address::Core(_), request) => self.answer_core(request).await,
            (Address::Node(_), request) => self.answer_node(request).await,
            (Address::Device(device), PeerRequest::ReadShard { name, pin, offset, len_bytes }) => {
                let bytes = self.read_for_peer(device, name, pin, (offset, len_bytes)).await?;
                return Ok((PeerResponse::Done, bytes));
            }
            (Address::Device(device), request) => self.answer_device(device, request, &parcel.bulk).await,
        };
        Ok((response?, Bytes::new()))
    }

    /// Reads (offset, length) of a shard for another node; what the device cannot read goes into quarantine while the
    /// reader's pin holds it.
    async fn read_for_peer(
        &self,
        device: DeviceId,
        name: ShardName,
        pin: u64,
        (offset, len_bytes): (u64, u32),
    ) -> Result<Bytes, PeerFault> {
        match self.device(device)?.shards.read(name, pin, offset, len_bytes).await {
            Ok(bytes) => Ok(bytes),
            Err(ReadFault::Refused(fault)) => Err(fault),
            Err(ReadFault::Device(error)) => {
                if let Some((offset, len_bytes)) = error.unreadable() {
                    self.quarantine(device, Run { offset, len_bytes }).await;
                }
                Err(PeerFault::Device { detail: error.to_string() })
            }
        }
    }

    fn device(&self, device: DeviceId) -> Result<&Rc<DeviceHost<P>>, PeerFault> {
        let host = self.devices.get(&device).ok_or(PeerFault::DeviceOut)?;
        if self.map.borrow().is_in(device) { Ok(host) } else { Err(PeerFault::DeviceOut) }
    }

    async fn answer_device(
        &self,
        device: DeviceId,
        request: PeerRequest,
        bulk: &[u8],
    ) -> Result<PeerResponse, PeerFault> {
        let host = self.device(device)?;
        match request {
            PeerRequest::ReserveShard { name, epoch, len_bytes, remote } => {
                host.shards.reserve(name, epoch, len_bytes, remote)
            }
            PeerRequest::WriteShard { name, epoch, offset } => {
                host.shards.write(name, epoch, offset, bulk).await
            }
            PeerRequest::CommitShard { name, epoch, owner, checksums } => {
                host.shards.commit(name, epoch, owner, checksums).await
            }
            PeerRequest::AbortShard { name, epoch } => host.shards.abort(name, epoch).await,
            PeerRequest::OpenShard { name, remote } => host.shards.open(name, remote).await,
            PeerRequest::CloseShard { name, pin } => Ok(host.shards.close(name, pin)),
            PeerRequest::FreeShard { name, epoch } => host.shards.free(name, epoch).await,
            PeerRequest::FenceGroup { pg, epoch } => host.shards.fence(pg, epoch).await,
            PeerRequest::ListShards { pg, after, limit } => host.shards.list(pg, after, limit).await,
            PeerRequest::ShardLengths { names } => host.shards.lengths(&names).await,
            PeerRequest::Quarantine { run } => {
                self.quarantine(device, run).await;
                Ok(PeerResponse::Done)
            }
            PeerRequest::Execute { partition, command } => {
                let replica =
                    host.partitions.borrow().get(&partition).cloned().ok_or(PeerFault::NotPrimary)?;
                execute(&replica, &command, |lookup, manifest| {
                    let about = (partition, lookup.bucket, lookup.key.as_str());
                    self.watch.read(about, manifest, &self.map.borrow(), self.links.unix_ms());
                })
                .await
            }
            PeerRequest::Replicate { messages } => {
                self.links
                    .together(|| messages.into_iter().for_each(|message| replicate(device, host, message)));
                Ok(PeerResponse::Done)
            }
            PeerRequest::ReadShard { .. }
            | PeerRequest::List { .. }
            | PeerRequest::BucketIsEmpty { .. }
            | PeerRequest::FullDevices
            | PeerRequest::BucketRevision => {
                Err(PeerFault::Damaged { detail: "this is no question to a device".into() })
            }
        }
    }

    async fn answer_core(self: &Rc<Self>, request: PeerRequest) -> Result<PeerResponse, PeerFault> {
        match request {
            PeerRequest::List { list } => {
                let _turn = self.listings.take().await;
                listing::list(&self.primaries(), &list).await
            }
            PeerRequest::BucketIsEmpty { bucket } => listing::is_empty(&self.primaries(), bucket).await,
            PeerRequest::BucketRevision => Ok(PeerResponse::ActsOn {
                revision: self.links.bucket_revision(),
                partitions: self.primaries().iter().map(|replica| replica.partition()).collect(),
            }),
            _ => Err(PeerFault::Damaged { detail: "a question to a device was sent to a core".into() }),
        }
    }

    /// One page over all cores of this node.
    async fn list(&self, list: List) -> Result<PeerResponse, PeerFault> {
        let mut each = listing::share(&list, self.links.cores());
        loop {
            let command = Command::List(List { max: each, ..list.clone() });
            let answers = self.links.ask_cores(&PeerRequest::List { list: command.encode() }).await?;
            let merged = listing::merge_pages(answers, list.max as usize)?;
            if merged.complete || each == list.max {
                let page = Reply::Page { entries: merged.entries, truncated: merged.truncated };
                return Ok(PeerResponse::Listed { page: page.encode(), partitions: merged.partitions });
            }
            each = list.max;
        }
    }

    /// For all cores of this node.
    async fn answer_node(&self, request: PeerRequest) -> Result<PeerResponse, PeerFault> {
        match &request {
            PeerRequest::List { list } => self.list(listing::decode_list(list)?).await,
            PeerRequest::BucketIsEmpty { .. } => listing::join_empty(self.links.ask_cores(&request).await?),
            PeerRequest::FullDevices => {
                Ok(PeerResponse::Full { devices: self.links.full(), fill: self.fill() })
            }
            PeerRequest::BucketRevision => listing::join_revisions(self.links.ask_cores(&request).await?),
            _ => Err(PeerFault::Damaged { detail: "a question to a device was sent to a node".into() }),
        }
    }
}

/// Gives a replica of a device what a peer says.
fn replicate<P: Platform>(device: DeviceId, host: &DeviceHost<P>, message: Vec<u8>) {
    match Envelope::decode(&Bytes::from(message)) {
        Ok(Envelope { partition, from, to, message }) if to == device => {
            let replica = host.partitions.borrow().get(&partition).cloned();
            if let Some(replica) = replica {
                replica.receive(from, message);
            }
        }
        Ok(envelope) => tracing::warn!(event = "replication_message_misrouted", to = %envelope.to, %device),
        Err(error) => tracing::warn!(event = "replication_message_refused", %device, %error),
    }
}

async fn execute<P: Platform>(
    replica: &Rc<PartitionHost<P>>,
    command: &[u8],
    read: impl FnOnce(&Lookup, &Manifest),
) -> Result<PeerResponse, PeerFault> {
    let command =
        Command::decode(command).map_err(|error| PeerFault::Damaged { detail: error.to_string() })?;
    let outcome = match replica.execute(&command).await {
        Ok(reply) => {
            if let (Command::Get(lookup), Reply::Object { manifest, .. }) = (&command, &reply) {
                read(lookup, manifest);
            }
            Outcome::Done(reply)
        }
        Err(ExecuteError::Refused(refusal)) => Outcome::Refused(refusal),
        Err(ExecuteError::Fault(fault)) => return Err(fault),
    };
    Ok(PeerResponse::Executed { outcome: outcome.encode() })
}
