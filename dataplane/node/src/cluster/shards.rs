//! [`Cluster`]: shards on any device. Reservations, receipts and pins come from the device's owner by message. The
//! bytes go straight to a device of this node, and beside messages to and from a device of another one.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use quarry_clustermap::{BlobId, ClusterMap, DeviceId, Epoch, PartitionId, PgId, ShardIndex};
use quarry_meter::stage::{self, Stage};
use quarry_object::{
    ReadLatency,
    cluster::{Cluster, DamageKind, OpenShard, PeerError, ReserveShard},
    peer::{PeerFault, PeerRequest, PeerResponse, Run, ShardName},
    repair::Suspect,
    transport::{Address, BULK_BYTES_MAX, Class, Transport},
};
use quarry_storage::device::{BufferPool, IoBuf};

use super::{NodeCluster, reads::Reading, unexpected};
use crate::{
    platform::{Platform, Timer},
    runs,
};

/// How the bytes of a shard are reached.
enum Reach<D> {
    /// The device is one of this node: through this core's own ring.
    Here {
        io: Rc<D>,
        /// In shard order.
        runs: Vec<Run>,
    },
    /// Beside messages to the owner.
    There,
}

/// Space on a device for a shard that is being written.
pub(crate) struct ReservedShard<D> {
    device: DeviceId,
    name: ShardName,
    epoch: Epoch,
    reach: Reach<D>,
}

/// A pinned shard. Dropping it drops the pin.
pub(crate) struct OpenedShard<P: Platform> {
    device: DeviceId,
    name: ShardName,
    pin: u64,
    reach: Reach<P::Device>,
    transport: Rc<P::Transport>,
}

impl<P: Platform> Drop for OpenedShard<P> {
    fn drop(&mut self) {
        let close = PeerRequest::CloseShard { name: self.name, pin: self.pin };
        let sent = self.transport.send(Address::Device(self.device), Class::Ordinary, close.encode().into());
        // The pin of a reader on another node ends by itself.
        if let (Err(error), Reach::Here { .. }) = (sent, &self.reach) {
            // The extents stay pinned until the node restarts: space, not safety.
            tracing::warn!(event = "pin_left", device = %self.device, %error);
        }
    }
}

/// A buffer whose bytes are on their way to another node; it comes back when the transport has let go of it.
struct Lent(Arc<IoBuf>);

/// What the transport holds of it.
struct LentBytes(Arc<IoBuf>);

impl AsRef<[u8]> for LentBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Lent {
    fn new(buf: IoBuf) -> Self {
        Self(Arc::new(buf))
    }

    fn bytes(&self) -> Bytes {
        Bytes::from_owner(LentBytes(Arc::clone(&self.0)))
    }

    /// After a call that failed the bytes may still stand in a queue: then the caller gets other memory.
    fn take_back(self) -> IoBuf {
        Arc::try_unwrap(self.0).unwrap_or_else(|held| IoBuf::copy_of(&held))
    }
}

fn to_peer_error(fault: &PeerFault) -> PeerError {
    match fault {
        PeerFault::NotFound => PeerError::NotFound,
        PeerFault::Full => PeerError::Full,
        PeerFault::StaleEpoch { seen } => PeerError::StaleEpoch { newest: *seen },
        PeerFault::Busy => PeerError::Busy,
        PeerFault::OutcomeUnknown => PeerError::Timeout,
        PeerFault::Device { .. } | PeerFault::Damaged { .. } => PeerError::Io,
        PeerFault::DeviceOut | PeerFault::NotPrimary | PeerFault::TooFewCopies | PeerFault::BucketGone => {
            PeerError::DeviceOut
        }
    }
}

impl<P: Platform> NodeCluster<P> {
    /// The device, if it is one of this node.
    fn local(&self, device: DeviceId) -> Option<Rc<P::Device>> {
        self.parts.devices.get(&device).cloned()
    }

    async fn write_there(
        &self,
        shard: &ReservedShard<P::Device>,
        offset: u64,
        buf: IoBuf,
    ) -> (Result<(), PeerError>, IoBuf) {
        let (to, lent) = (Address::Device(shard.device), Lent::new(buf));
        let bytes = lent.bytes();
        let mut result = Ok(());
        for at in (0..bytes.len()).step_by(BULK_BYTES_MAX) {
            let piece = bytes.slice(at..bytes.len().min(at + BULK_BYTES_MAX));
            let (name, epoch) = (shard.name, shard.epoch);
            let request = PeerRequest::WriteShard { name, epoch, offset: offset + at as u64 };
            result = match self.ask_with(to, request, piece).await {
                Ok(_) => Ok(()),
                Err(fault) => {
                    if let PeerFault::Device { detail } = &fault {
                        self.write_failed(shard.device, detail);
                    }
                    Err(to_peer_error(&fault))
                }
            };
            if result.is_err() {
                break;
            }
        }
        drop(bytes);
        (result, lent.take_back())
    }

    /// Asks a device's owner; the wait is time of the request that is being served.
    async fn ask_owner(&self, device: DeviceId, request: PeerRequest) -> Result<PeerResponse, PeerFault> {
        let stage = if self.local(device).is_some() { Stage::Device } else { Stage::Peer };
        stage::timed(stage, self.ask(Address::Device(device), request)).await
    }

    async fn read_there(
        &self,
        shard: &OpenedShard<P>,
        offset: u64,
        buf: &mut IoBuf,
    ) -> Result<(), PeerError> {
        let mut offset = offset;
        for piece in buf.chunks_mut(BULK_BYTES_MAX) {
            let len_bytes = u32::try_from(piece.len()).expect("bounded by the chunk");
            let request = PeerRequest::ReadShard { name: shard.name, pin: shard.pin, offset, len_bytes };
            match self.ask_with(Address::Device(shard.device), request, Bytes::new()).await {
                Ok((PeerResponse::Done, bytes)) if bytes.len() == piece.len() => {
                    piece.copy_from_slice(&bytes)
                }
                Ok(_) => return Err(to_peer_error(&unexpected())),
                Err(fault) => {
                    if let PeerFault::Device { detail } = &fault {
                        self.count_read_error(shard.device, detail);
                    }
                    return Err(to_peer_error(&fault));
                }
            }
            offset += u64::from(len_bytes);
        }
        Ok(())
    }
}

impl<P: Platform> Cluster for NodeCluster<P> {
    type Reserved = ReservedShard<P::Device>;
    type Opened = OpenedShard<P>;
    type Reading = Reading;

    fn reading(&self, blobs: &[BlobId]) -> Reading {
        self.parts.reads.hold(blobs)
    }

    fn map(&self) -> Rc<ClusterMap> {
        Rc::clone(&self.map.borrow())
    }

    fn now_ms(&self) -> u64 {
        self.parts.timer.unix_ms()
    }

    fn monotonic(&self) -> Duration {
        self.parts.timer.monotonic()
    }

    fn next_blob_id(&self) -> BlobId {
        self.next_blob()
    }

    fn random(&self) -> u64 {
        self.next_random()
    }

    async fn sleep(&self, duration: Duration) {
        self.parts.timer.sleep(duration).await;
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        (self.parts.spawn)(Box::pin(stage::carried(task)));
    }

    fn buffers(&self) -> &BufferPool {
        &self.parts.buffers
    }

    fn read_latency(&self) -> &ReadLatency {
        &self.latency
    }

    fn write_cost(&self, device: DeviceId) -> u64 {
        self.cost_of(device)
    }

    fn give_up(&self, device: DeviceId) -> bool {
        self.try_give_up(device)
    }

    fn report_damage(&self, pg: PgId, blob: BlobId, shard: ShardIndex, kind: DamageKind) {
        tracing::warn!(event = "shard_damaged", %pg, %blob, %shard, ?kind);
        self.parts.control.count_damage();
        self.parts.repairs.push(Suspect { name: ShardName { pg, blob, shard }, owner: None });
    }

    async fn reserve_shard(
        &self,
        device: DeviceId,
        request: ReserveShard,
    ) -> Result<Self::Reserved, PeerError> {
        let io = self.local(device);
        let ReserveShard { pg, epoch, blob, shard, len_bytes } = request;
        let name = ShardName { pg, blob, shard };
        let request = PeerRequest::ReserveShard { name, epoch, len_bytes, remote: io.is_none() };
        match self.ask_owner(device, request).await {
            Ok(PeerResponse::Reserved { runs }) => {
                let reach = io.map_or(Reach::There, |io| Reach::Here { io, runs });
                Ok(ReservedShard { device, name, epoch, reach })
            }
            Ok(_) => Err(to_peer_error(&unexpected())),
            Err(fault) => Err(to_peer_error(&fault)),
        }
    }

    async fn write_shard(
        &self,
        shard: &Self::Reserved,
        offset: u64,
        buf: IoBuf,
    ) -> (Result<(), PeerError>, IoBuf) {
        let (io, runs) = match &shard.reach {
            Reach::Here { io, runs } => (io, runs),
            Reach::There => return stage::timed(Stage::Peer, self.write_there(shard, offset, buf)).await,
        };
        let Some(pieces) = runs::pieces(runs, offset, buf.len() as u64) else {
            return (Err(PeerError::Io), buf);
        };
        let (result, buf) = stage::timed(Stage::Device, runs::write(&**io, &pieces, buf)).await;
        let result = result.map_err(|error| {
            self.write_failed(shard.device, &error.to_string());
            PeerError::Io
        });
        (result, buf)
    }

    async fn commit_shard(
        &self,
        shard: Self::Reserved,
        owner: PartitionId,
        checksums: Vec<u32>,
    ) -> Result<(), PeerError> {
        let request = PeerRequest::CommitShard { name: shard.name, epoch: shard.epoch, owner, checksums };
        match self.ask_owner(shard.device, request).await {
            Ok(_) => Ok(()),
            Err(fault) => Err(to_peer_error(&fault)),
        }
    }

    async fn abort_shard(&self, shard: Self::Reserved) {
        let request = PeerRequest::AbortShard { name: shard.name, epoch: shard.epoch };
        if let Err(fault) = self.ask(Address::Device(shard.device), request).await {
            tracing::debug!(event = "abort_failed", device = %shard.device, %fault);
        }
    }

    async fn free_shard(
        &self,
        device: DeviceId,
        pg: PgId,
        epoch: Epoch,
        blob: BlobId,
        shard: ShardIndex,
    ) -> Result<(), PeerError> {
        let request = PeerRequest::FreeShard { name: ShardName { pg, blob, shard }, epoch };
        match self.ask(Address::Device(device), request).await {
            Ok(_) => Ok(()),
            Err(fault) => Err(to_peer_error(&fault)),
        }
    }

    async fn open_shard(
        &self,
        device: DeviceId,
        pg: PgId,
        blob: BlobId,
        shard: ShardIndex,
    ) -> Result<OpenShard<Self::Opened>, PeerError> {
        let io = self.local(device);
        let name = ShardName { pg, blob, shard };
        let request = PeerRequest::OpenShard { name, remote: io.is_none() };
        match self.ask_owner(device, request).await {
            Ok(PeerResponse::Opened { pin, len_bytes, runs, checksums, owner }) => {
                let reach = io.map_or(Reach::There, |io| Reach::Here { io, runs });
                let transport = Rc::clone(&self.parts.transport);
                let handle = OpenedShard { device, name, pin, reach, transport };
                Ok(OpenShard { handle, len_bytes, checksums, owner })
            }
            Ok(_) => Err(to_peer_error(&unexpected())),
            Err(fault) => Err(to_peer_error(&fault)),
        }
    }

    async fn read_shard(
        &self,
        shard: &Self::Opened,
        offset: u64,
        buf: IoBuf,
    ) -> (Result<(), PeerError>, IoBuf) {
        let (io, runs) = match &shard.reach {
            Reach::Here { io, runs } => (io, runs),
            Reach::There => {
                let mut buf = buf;
                return (stage::timed(Stage::Peer, self.read_there(shard, offset, &mut buf)).await, buf);
            }
        };
        let Some(pieces) = runs::pieces(runs, offset, buf.len() as u64) else {
            return (Err(PeerError::Io), buf);
        };
        let (result, buf) = stage::timed(Stage::Device, runs::read(&**io, &pieces, buf)).await;
        let result = result.map_err(|error| {
            self.read_failed(shard.device, &error);
            PeerError::Io
        });
        (result, buf)
    }
}
