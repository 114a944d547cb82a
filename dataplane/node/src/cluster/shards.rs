//! [`Cluster`]: shards on any device. Reservations, receipts and pins come from the device's owner by message; the
//! bytes go straight to the device.

use std::{rc::Rc, time::Duration};

use futures::future::LocalBoxFuture;
use quarry_clustermap::{BlobId, ClusterMap, DeviceId, Epoch, PartitionId, PgId, ShardIndex};
use quarry_object::{
    ReadLatency,
    cluster::{Cluster, DamageKind, OpenShard, PeerError, ReserveShard},
    peer::{PeerFault, PeerRequest, PeerResponse, Run, ShardName},
    repair::Suspect,
    transport::{Address, Transport},
};
use quarry_storage::device::{BufferPool, Device, DeviceError, IoBuf};

use super::{NodeCluster, reads::Reading, unexpected};
use crate::platform::{Platform, Timer};

/// Space on a device for a shard that is being written.
pub(crate) struct ReservedShard<D> {
    device: DeviceId,
    name: ShardName,
    epoch: Epoch,
    io: Rc<D>,
    runs: Vec<Run>,
}

/// A pinned shard. Dropping it drops the pin.
pub(crate) struct OpenedShard<P: Platform> {
    device: DeviceId,
    pin: u64,
    io: Rc<P::Device>,
    runs: Vec<Run>,
    transport: Rc<P::Transport>,
}

impl<P: Platform> Drop for OpenedShard<P> {
    fn drop(&mut self) {
        let close = PeerRequest::CloseShard { pin: self.pin };
        if let Err(error) = self.transport.send(Address::Device(self.device), close.encode().into()) {
            // The extents stay pinned until the node restarts: space, not safety.
            tracing::warn!(event = "pin_left", device = %self.device, %error);
        }
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

/// The part of a run list that covers `offset..offset + len` of a shard, as (device offset, length) pieces.
fn pieces(runs: &[Run], offset: u64, len: u64) -> Option<Vec<(u64, u64)>> {
    let (mut skip, mut left, mut found) = (offset, len, Vec::with_capacity(1));
    for run in runs {
        if skip >= run.len_bytes {
            skip -= run.len_bytes;
            continue;
        }
        let take = left.min(run.len_bytes - skip);
        found.push((run.offset + skip, take));
        (skip, left) = (0, left - take);
        if left == 0 {
            return Some(found);
        }
    }
    None
}

impl<P: Platform> NodeCluster<P> {
    fn device(&self, device: DeviceId) -> Result<Rc<P::Device>, PeerError> {
        self.parts.devices.get(&device).cloned().ok_or(PeerError::DeviceOut)
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
        (self.parts.spawn)(task);
    }

    fn buffers(&self) -> &BufferPool {
        &self.parts.buffers
    }

    fn read_latency(&self) -> &ReadLatency {
        &self.latency
    }

    fn write_cost(&self, device: DeviceId) -> u64 {
        self.times_given_up(device).into()
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
        let io = self.device(device)?;
        let ReserveShard { pg, epoch, blob, shard, len_bytes } = request;
        let name = ShardName { pg, blob, shard };
        let answer =
            self.ask(Address::Device(device), PeerRequest::ReserveShard { name, epoch, len_bytes }).await;
        match answer {
            Ok(PeerResponse::Reserved { runs }) => Ok(ReservedShard { device, name, epoch, io, runs }),
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
        let Some(pieces) = pieces(&shard.runs, offset, buf.len() as u64) else {
            return (Err(PeerError::Io), buf);
        };
        let (result, buf) = match pieces[..] {
            [(at, _)] => shard.io.write(at, buf).await,
            // A fragmented device: the block spans extents, so its pieces are copied out.
            _ => (write_pieces(&*shard.io, &pieces, &buf).await, buf),
        };
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
        match self.ask(Address::Device(shard.device), request).await {
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
        let io = self.device(device)?;
        let request = PeerRequest::OpenShard { name: ShardName { pg, blob, shard } };
        match self.ask(Address::Device(device), request).await {
            Ok(PeerResponse::Opened { pin, len_bytes, runs, checksums, owner }) => {
                let handle =
                    OpenedShard { device, pin, io, runs, transport: Rc::clone(&self.parts.transport) };
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
        let Some(pieces) = pieces(&shard.runs, offset, buf.len() as u64) else {
            return (Err(PeerError::Io), buf);
        };
        let (result, buf) = match pieces[..] {
            [(at, _)] => shard.io.read(at, buf).await,
            _ => read_pieces(&*shard.io, &pieces, buf).await,
        };
        let result = result.map_err(|error| {
            self.read_failed(shard.device, &error);
            PeerError::Io
        });
        (result, buf)
    }
}

async fn write_pieces(io: &impl Device, pieces: &[(u64, u64)], buf: &IoBuf) -> Result<(), DeviceError> {
    let mut from = 0;
    for (at, len) in pieces {
        let to = from + usize::try_from(*len).expect("a piece is part of one buffer");
        io.write(*at, IoBuf::copy_of(&buf[from..to])).await.0?;
        from = to;
    }
    Ok(())
}

async fn read_pieces(
    io: &impl Device,
    pieces: &[(u64, u64)],
    mut buf: IoBuf,
) -> (Result<(), DeviceError>, IoBuf) {
    let mut from = 0;
    for (at, len) in pieces {
        let to = from + usize::try_from(*len).expect("a piece is part of one buffer");
        let (result, piece) = io.read(*at, IoBuf::zeroed(to - from)).await;
        if let Err(error) = result {
            return (Err(error), buf);
        }
        buf[from..to].copy_from_slice(&piece);
        from = to;
    }
    (Ok(()), buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_the_runs() {
        let runs = [Run { offset: 1000, len_bytes: 10 }, Run { offset: 5000, len_bytes: 20 }];
        assert_eq!(pieces(&runs, 0, 10), Some(vec![(1000, 10)]));
        assert_eq!(pieces(&runs, 8, 4), Some(vec![(1008, 2), (5000, 2)]));
        assert_eq!(pieces(&runs, 10, 20), Some(vec![(5000, 20)]));
        assert_eq!(pieces(&runs, 25, 6), None);
    }
}
