//! Every shard of a device: its bytes, and its place.

use std::rc::Rc;

use quarry_clustermap::{DeviceId, PgState};
use quarry_object::{
    checksum::unit_checksums,
    cluster::Cluster,
    peer::{PeerRequest, PeerResponse, ShardName},
    repair::{Budget, Suspect},
    transport::Address,
};
use quarry_storage::{
    device::{Device, IoBuf},
    store::{CHECKSUM_UNIT_BYTES, ShardExtent, ShardRow},
};

use crate::{cluster::NodeCluster, host::DeviceHost, platform::Platform};

/// Rows taken from the index at once.
const BATCH: usize = 128;
/// Bytes of one read.
const READ_BYTES: u64 = 8 * CHECKSUM_UNIT_BYTES;

/// Looks at every shard of the device; damage goes to the repair queue.
pub(super) async fn scrub<P: Platform>(
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    id: DeviceId,
    device: &Rc<DeviceHost<P>>,
) {
    let mut after = None;
    loop {
        let rows = match device.store.shards(after, BATCH).await {
            Ok(rows) => rows,
            Err(error) => return tracing::error!(event = "scrub_stopped", device = %id, %error),
        };
        let Some(last) = rows.last() else { return };
        after = Some(last.key());
        for row in &rows {
            let name = ShardName { pg: row.pg, blob: row.blob, shard: row.shard };
            match place(cluster, id, &name) {
                Place::Here => {
                    if !is_whole(cluster, budget, device, row).await {
                        damaged(cluster, id, row);
                    }
                }
                Place::On(other) => misplaced(cluster, device, row, other).await,
                Place::Unsettled => {}
            }
        }
    }
}

fn damaged<P: Platform>(cluster: &NodeCluster<P>, device: DeviceId, row: &ShardRow) {
    let ShardRow { pg, blob, shard, .. } = *row;
    tracing::warn!(event = "scrub_found_damage", %device, %pg, %blob, %shard);
    cluster.metrics().scrub_damage.inc();
    suspect(cluster, row);
}

fn suspect<P: Platform>(cluster: &NodeCluster<P>, row: &ShardRow) {
    let ShardRow { pg, blob, shard, .. } = *row;
    cluster.repairs().push(Suspect { name: ShardName { pg, blob, shard }, owner: Some(row.owner_partition) });
}

enum Place {
    /// The group has the shard on this device.
    Here,
    /// The group has it on another one.
    On(DeviceId),
    /// The group is moving, or unknown to this map.
    Unsettled,
}

fn place<P: Platform>(cluster: &NodeCluster<P>, id: DeviceId, name: &ShardName) -> Place {
    let map = cluster.map();
    let Some(group) = map.placement_groups.get(&name.pg) else { return Place::Unsettled };
    match group.members.get(usize::from(name.shard.0)) {
        Some(member) if *member == id => Place::Here,
        Some(member) if group.state != PgState::Moving && map.is_in(*member) => Place::On(*member),
        _ => Place::Unsettled,
    }
}

/// A copy left over from before a move, or put here by mistake: it goes when the right device has its own.
async fn misplaced<P: Platform>(
    cluster: &Rc<NodeCluster<P>>,
    device: &Rc<DeviceHost<P>>,
    row: &ShardRow,
    right: DeviceId,
) {
    let name = ShardName { pg: row.pg, blob: row.blob, shard: row.shard };
    let asked = PeerRequest::ShardLengths { names: vec![name] };
    match cluster.ask(Address::Device(right), asked).await {
        Ok(PeerResponse::Lengths { lengths }) if matches!(lengths[..], [Some(_)]) => {
            let epoch = row.epoch.max(device.store.pg_epoch(row.pg));
            match device.store.free_shard(row.pg, epoch, row.blob, row.shard).await {
                Ok(_) => {
                    tracing::info!(event = "scrub_freed_misplaced", blob = %row.blob, shard = %row.shard)
                }
                Err(error) => tracing::warn!(event = "scrub_free_failed", blob = %row.blob, %error),
            }
        }
        // Of a blob that was deleted while this device was away: the collector frees it. Or else the right device lacks it:
        // then it is made there, and the next pass frees this one.
        Ok(PeerResponse::Lengths { .. }) => {
            tracing::info!(event = "scrub_found_misplaced", blob = %row.blob, shard = %row.shard, device = %right);
            suspect(cluster, row);
        }
        Ok(_) | Err(_) => {}
    }
}

/// Reads a shard; `true` also if it was freed or replaced meanwhile.
async fn is_whole<P: Platform>(
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    device: &Rc<DeviceHost<P>>,
    row: &ShardRow,
) -> bool {
    // Taken before the shard is looked up again: from here on its extents are not reused.
    let _pin = device.store.pin(row.pg, row.blob, row.shard);
    match device.store.shard(row.pg, row.blob, row.shard).await {
        Ok(Some(now)) if now == *row => {}
        _ => return true,
    }
    let mut offset = 0;
    for piece in &row.extents {
        if !piece_is_whole(cluster, budget, device, row, (offset, piece)).await {
            return false;
        }
        offset += u64::from(piece.len_bytes);
    }
    true
}

async fn piece_is_whole<P: Platform>(
    cluster: &Rc<NodeCluster<P>>,
    budget: &Budget,
    host: &Rc<DeviceHost<P>>,
    row: &ShardRow,
    (offset, piece): (u64, &ShardExtent),
) -> bool {
    let (device, id) = (host.store.device(), host.store.device_id());
    let len = u64::from(piece.len_bytes);
    for (at, checksums) in (0..).zip(piece.checksums.chunks(units(READ_BYTES))) {
        let at = at * READ_BYTES;
        let bytes = (len - at).min(READ_BYTES);
        budget.spend(&**cluster, bytes).await;
        let buf = IoBuf::zeroed(usize::try_from(bytes).expect("one read is small"));
        let (result, buf) = device.read(piece.extent.start.offset_bytes() + at, buf).await;
        cluster.metrics().scrub_bytes.inc_by(bytes);
        if let Err(error) = &result {
            cluster.read_failed(id, error);
        }
        if result.is_err() || !unit_checksums_fit(row, offset + at, &buf, checksums) {
            return false;
        }
    }
    true
}

fn unit_checksums_fit(row: &ShardRow, offset: u64, bytes: &[u8], checksums: &[u32]) -> bool {
    unit_checksums(row.blob, row.shard, offset, bytes).eq(checksums.iter().copied())
}

fn units(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(CHECKSUM_UNIT_BYTES)).expect("one read is small")
}
