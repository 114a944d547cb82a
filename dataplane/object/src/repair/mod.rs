//! One shard made anew from the others.
//!
//! All shards of a blob have one length, and coding works byte by byte across them, so a shard follows from any k
//! others at the same offsets: no manifest is needed, only the placement group and the length. While a position moves from
//! a device that is in, its shard is copied from there: one read instead of k; decoding is for what is not whole there.
//!
//! Order, so that a delete and a repair never leave a shard behind:
//! 1. the sources are opened (and pinned), then space is reserved under the shard's name;
//! 2. the owner is asked whether the blob still counts: a free that was begun before shows here;
//! 3. a free that comes later meets the reservation on the device, which then refuses the commit.
//!
//! Verified sources and a checksum list of the damaged copy that disagree are an error: never guess which is right.

mod budget;
mod sources;

use std::rc::Rc;

use quarry_clustermap::{BlobId, DeviceId, PartitionId, SHARD_BLOCK_BYTES};
use quarry_storage::device::IoBuf;

pub use self::budget::Budget;
use self::sources::Sources;
use crate::{
    checksum::{unit_checksums, verify},
    cluster::{Cluster, OpenShard, PeerError, ReserveShard},
    peer::ShardName,
};

/// What a repair came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repaired {
    /// The shard is there and whole; nothing was done.
    Healthy,
    /// It was made anew, and is durable.
    Rebuilt {
        /// Its length.
        bytes: u64,
    },
    /// The blob does not count any more: nothing is to be repaired.
    Gone,
}

/// Why a shard could not be repaired.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RepairError {
    /// Too few shards are whole, and none of the others will come back: data is lost.
    #[error("{present} whole shards are left of the {needed} that are needed")]
    Lost {
        /// Whole ones.
        present: usize,
        /// k.
        needed: usize,
    },
    /// The device that must have it is out.
    #[error("the shard's device is out")]
    DeviceOut,
    /// Perhaps later: an owner or a device does not answer, somebody else repairs it.
    #[error("the shard cannot be repaired now")]
    Unavailable,
    /// The device has no room for it.
    #[error("the device is full")]
    Full,
    /// What was computed is not what the damaged copy's checksums say.
    #[error("whole shards and the checksums of the damaged one contradict each other")]
    Contradiction,
}

impl From<PeerError> for RepairError {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::Full => Self::Full,
            _ => Self::Unavailable,
        }
    }
}

/// What the owner partition says of a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ownership {
    /// A version or part has it.
    Live,
    /// It knows nothing of it: the commit may be under way.
    Pending,
    /// It is being freed, or can never be committed.
    Gone,
}

/// Asks owners.
pub trait Owners {
    /// `None`: it could not be asked.
    fn ownership(&self, owner: PartitionId, blob: BlobId) -> impl Future<Output = Option<Ownership>>;
}

/// Which shard, and what is known of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suspect {
    /// The shard.
    pub name: ShardName,
    /// Partition that owns the blob, where that is known; else it is taken from the other shards.
    pub owner: Option<PartitionId>,
}

/// Makes the shard anew on the member of its placement group if it is not whole there.
///
/// # Errors
/// [`RepairError`]; then nothing has changed.
pub async fn repair_shard<C: Cluster>(
    cluster: &Rc<C>,
    owners: &impl Owners,
    budget: &Budget,
    suspect: Suspect,
) -> Result<Repaired, RepairError> {
    let name = suspect.name;
    let map = cluster.map();
    let Some(group) = map.placement_groups.get(&name.pg) else { return Ok(Repaired::Gone) };
    let position = usize::from(name.shard.0);
    let Some(device) = group.members.get(position).copied() else { return Ok(Repaired::Gone) };
    if !map.is_in(device) {
        return Err(RepairError::DeviceOut);
    }
    let job = Job { cluster, budget, name, device };
    let known = match cluster.open_shard(device, name.pg, name.blob, name.shard).await {
        Ok(open) => Some(open),
        Err(PeerError::NotFound) => None,
        Err(error) => return Err(error.into()),
    };
    let mut sources = Sources::open(cluster, &name, group).await;
    let former = match group.holder(&map, name.shard.0).filter(|former| *former != device) {
        Some(former) => cluster.open_shard(former, name.pg, name.blob, name.shard).await.ok(),
        None => None,
    };
    // Whole is what its own checksums say, and as long as the others: it may be of another time.
    if let Some(open) = &known
        && (sources.check_enough().is_err() || sources.agreed() == (open.len_bytes, open.owner))
        && job.is_whole(open).await?
    {
        return Ok(Repaired::Healthy);
    }
    let enough = sources.check_enough();
    let former = former.filter(|open| enough.is_err() || sources.agreed() == (open.len_bytes, open.owner));
    if let (Err(error), None) = (enough, &former) {
        // While a blob is being freed, its shards go one after the other.
        let owner = known.map(|open| open.owner).or(sources.owner()).or(suspect.owner);
        let Some(owner) = owner else { return Ok(Repaired::Gone) };
        return match owners.ownership(owner, name.blob).await {
            Some(Ownership::Live) => Err(error),
            Some(Ownership::Pending | Ownership::Gone) => Ok(Repaired::Gone),
            None => Err(RepairError::Unavailable),
        };
    }
    let agreed = |open: &OpenShard<C::Opened>| (open.len_bytes, open.owner);
    let (len_bytes, owner) = former.as_ref().map_or_else(|| sources.agreed(), agreed);
    let request =
        ReserveShard { pg: name.pg, epoch: group.epoch, blob: name.blob, shard: name.shard, len_bytes };
    let reserved = cluster.reserve_shard(device, request).await?;
    match owners.ownership(owner, name.blob).await {
        Some(Ownership::Live | Ownership::Pending) => {}
        ownership => {
            cluster.abort_shard(reserved).await;
            return if ownership.is_some() { Ok(Repaired::Gone) } else { Err(RepairError::Unavailable) };
        }
    }
    let expected = known.filter(|open| open.len_bytes == len_bytes).map(|open| open.checksums);
    let from = Origin { former: former.as_ref(), others: &mut sources };
    match job.rebuild(from, &reserved, len_bytes, expected.as_deref()).await {
        Ok(checksums) => {
            cluster.commit_shard(reserved, owner, checksums).await?;
            Ok(Repaired::Rebuilt { bytes: len_bytes })
        }
        Err(error) => {
            cluster.abort_shard(reserved).await;
            Err(error)
        }
    }
}

/// Where the bytes come from.
struct Origin<'f, 'j, C: Cluster> {
    /// The same shard on the device that had the position before.
    former: Option<&'f OpenShard<C::Opened>>,
    others: &'f mut Sources<'j, C>,
}

struct Job<'j, C: Cluster> {
    cluster: &'j Rc<C>,
    budget: &'j Budget,
    name: ShardName,
    device: DeviceId,
}

/// The pieces in which a shard is read and written: (offset, length).
fn windows(len_bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    let step = SHARD_BLOCK_BYTES as u64;
    (0..len_bytes.div_ceil(step)).map(move |index| {
        let offset = index * step;
        (offset, usize::try_from(step.min(len_bytes - offset)).expect("at most one block"))
    })
}

impl<C: Cluster> Job<'_, C> {
    /// Reads all of the copy that is there.
    async fn is_whole(&self, open: &OpenShard<C::Opened>) -> Result<bool, RepairError> {
        let (blob, shard) = (self.name.blob, self.name.shard);
        for (offset, len) in windows(open.len_bytes) {
            self.budget.spend(&**self.cluster, len as u64).await;
            let mut buf = self.cluster.buffers().take().await;
            buf.set_len(len);
            let (result, buf) = self.cluster.read_shard(&open.handle, offset, buf).await;
            match result {
                Ok(()) if verify(blob, shard, offset, &buf, &open.checksums) => {}
                Ok(()) | Err(PeerError::Io) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// One verified window: a copy if there is a former one that is good, else decoded.
    async fn window(
        &self,
        from: &mut Origin<'_, '_, C>,
        offset: u64,
        len: usize,
    ) -> Result<IoBuf, RepairError> {
        if let Some(open) = from.former {
            self.budget.spend(&**self.cluster, 2 * len as u64).await;
            let mut buf = self.cluster.buffers().take().await;
            buf.set_len(len);
            let (result, buf) = self.cluster.read_shard(&open.handle, offset, buf).await;
            if result.is_ok() && verify(self.name.blob, self.name.shard, offset, &buf, &open.checksums) {
                return Ok(buf);
            }
            from.former = None;
            // Another may have become readable, or none may be left to decode from.
            from.others.check_enough()?;
        }
        self.budget.spend(&**self.cluster, len as u64 * (from.others.needed() as u64 + 1)).await;
        from.others.decode(offset, len).await
    }

    /// Writes every window of the new copy; its checksums.
    async fn rebuild(
        &self,
        mut from: Origin<'_, '_, C>,
        reserved: &C::Reserved,
        len_bytes: u64,
        expected: Option<&[u32]>,
    ) -> Result<Vec<u32>, RepairError> {
        let (blob, shard) = (self.name.blob, self.name.shard);
        let mut checksums = Vec::new();
        for (offset, len) in windows(len_bytes) {
            let buf = self.window(&mut from, offset, len).await?;
            if expected.is_some_and(|expected| !verify(blob, shard, offset, &buf, expected)) {
                return Err(RepairError::Contradiction);
            }
            checksums.extend(unit_checksums(blob, shard, offset, &buf));
            self.cluster.write_shard(reserved, offset, buf).await.0?;
        }
        tracing::debug!(event = "shard_rebuilt", blob = %blob, %shard, device = %self.device, len_bytes);
        Ok(checksums)
    }
}

#[cfg(test)]
mod tests;
