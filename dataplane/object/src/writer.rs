//! Writes a body as one blob: reserve, stream, commit; all or nothing.
//!
//! The caller's future reads the body and fills one stripe while at most `STRIPES_IN_FLIGHT` earlier ones are
//! on their way to the devices. Whatever touches a device runs in a spawned task that holds the blob
//! (`Placed`), so a caller that goes away interrupts no write: the last task to end gives everything back.
//!
//! Invariants:
//! - a blob id is used once, also when the same body is written a second time;
//! - `Ok` is said only with a receipt of each shard, or, where the map has no whole group, of at least k+1 (m
//!   = 0: k), and then `missing_shards` names the others;
//! - what is not handed to the caller is aborted or freed by `Placed`'s drop, after the last I/O on it has
//!   ended;
//! - a body that fills its stripe for long while others wait for buffers loses (`STRIPE_PATIENCE`): senders that
//!   trickle do not keep others out;
//! - the pool is asked for a whole stripe (k+m) at once, and only when there are bytes to fill it with;
//!   nothing that holds buffers waits for buffers, but the body: one that reads other blobs must not use the
//!   pool (`ReadMemory::Heap`).
//!
//! Failure model: any shard call may fail, or take so much longer than the others that it counts as failed
//! (`patience`). A failed shard is not written any more. If shards are missing in
//! the end, the survivors are committed and the blob is rewritten from them to a group without the failed
//! devices; only if no such group takes it does the short blob stand.

mod patience;
mod placed;

use std::{
    collections::{BTreeSet, VecDeque},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures::{
    StreamExt,
    channel::oneshot,
    future::{Either, join_all, select},
};
use quarry_clustermap::{ClusterMap, DeviceId, PartitionId, PgId, PgState, PlacementGroup, Tier};
use quarry_erasure::Codec;
use quarry_meter::stage::{self, Stage};
use quarry_partition::BlobRef;
use quarry_storage::device::IoBuf;

use self::placed::{Group, Placed, run};
use crate::{
    api::{Body, BodyDigests, BodyError},
    checksum::unit_checksums,
    cluster::{Cluster, PeerError},
    reader::{ReadError, ReadMemory, read_range},
    stripe::{Layout, Stripe, shard_index},
};

/// Stripes of one blob on their way to devices, beside the one being filled: enough that a device always has
/// the next block queued, and 3 x (k+m) x 128 KiB of memory per upload.
const STRIPES_IN_FLIGHT: usize = 2;
/// A body that has not filled a stripe after this long holds its buffers only while nobody waits for any: 128 KiB/s
/// for the longest stripe of 4+2.
const STRIPE_PATIENCE: Duration = Duration::from_secs(4);
/// How often a body that is late looks whether somebody waits.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Groups asked for space before the write is given up: each failure rules out a device, so few are needed.
const RESERVE_ATTEMPTS_MAX: usize = 8;
/// Groups tried for a rewrite before the short blob stands.
const REWRITE_ATTEMPTS_MAX: usize = 2;

/// Why a blob was not written. Nothing of it is left, or will be soon.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WriteError {
    /// The body broke.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The body came too slowly while others waited for the memory that it held.
    #[error("the body comes too slowly for the memory that is left")]
    TooSlow,
    /// The devices of every group tried are full.
    #[error("the devices are full")]
    OutOfSpace,
    /// The tier has no group that can take a blob.
    #[error("no placement group takes new blobs")]
    NoGroup,
    /// Too few shards were stored.
    #[error("{stored} shards of {pg} were stored, {needed} are needed: {cause}")]
    TooFewShards {
        /// Where.
        pg: PgId,
        /// Shards that were reserved, written and committed so far.
        stored: usize,
        /// The least to go on with.
        needed: usize,
        /// One of the failures.
        cause: PeerError,
    },
}

/// Writes a body as one blob of a tier, owned by `owner`. See the module for what `Ok` promises.
///
/// The blob has no manifest yet: a caller that does not commit one frees the blob with [`free_blob`].
///
/// # Errors
/// See [`WriteError`].
pub async fn write_blob<C: Cluster, B: Body>(
    cluster: &Rc<C>,
    tier: Tier,
    owner: PartitionId,
    body: &mut B,
) -> Result<BlobRef, WriteError> {
    let len_bytes = body.len_bytes();
    let placed = place(cluster, tier, len_bytes).await?;
    let checksums = stream_body(&placed, len_bytes, body).await?;
    commit(&placed, owner, checksums).await?;
    if placed.missing_shards() == 0 {
        return Ok(placed.keep());
    }
    match rewrite(&placed, tier, owner).await {
        Some(whole) => Ok(whole),
        None => Ok(placed.keep()),
    }
}

/// Frees every shard of a blob. `Ok` when every member of its placement group has confirmed.
///
/// # Errors
/// The first error met; the other shards were tried all the same. Repeating is harmless.
pub async fn free_blob<C: Cluster>(cluster: &Rc<C>, blob: &BlobRef) -> Result<(), PeerError> {
    if blob.size_bytes == 0 {
        return Ok(());
    }
    let map = cluster.map();
    let Some(group) = map.placement_groups.get(&blob.pg) else { return Err(PeerError::DeviceOut) };
    let frees = group.members.iter().enumerate().map(|(index, device)| {
        cluster.free_shard(*device, blob.pg, group.epoch, blob.blob, shard_index(index))
    });
    join_all(frees).await.into_iter().collect()
}

/// Reserves a whole group, or failing that, the best that was found.
async fn place<C: Cluster>(cluster: &Rc<C>, tier: Tier, len_bytes: u64) -> Result<Rc<Placed<C>>, WriteError> {
    let map = cluster.map();
    let mut avoid = Avoid::default();
    let mut best: Option<Rc<Placed<C>>> = None;
    let mut error = WriteError::NoGroup;
    for _ in 0..RESERVE_ATTEMPTS_MAX {
        let whole = choose_group(&**cluster, whole_groups(&map, tier, &avoid));
        let group = match (whole, &best) {
            (Some(group), _) => group,
            (None, Some(_)) => break,
            (None, None) => match choose_group(&**cluster, short_groups(&map, tier, &avoid)) {
                Some(group) => group,
                None => break,
            },
        };
        let placed = Placed::reserve(cluster, group, len_bytes).await;
        if placed.missing_shards() == 0 {
            return Ok(placed);
        }
        avoid.learn(&placed);
        if placed.live() >= placed.needed() && placed.failures().all(|(_, cause)| allows_short(cause)) {
            if best.as_ref().is_none_or(|best| best.live() < placed.live()) {
                best = Some(placed);
            }
        } else if placed.failures().any(|(_, cause)| cause == PeerError::Full) {
            error = WriteError::OutOfSpace;
        } else if error != WriteError::OutOfSpace {
            error = placed.too_few();
        }
    }
    best.ok_or(error)
}

/// A blob may lack the shard of a device that is gone; one that is full, sealed or busy is a reason to wait.
fn allows_short(cause: PeerError) -> bool {
    matches!(cause, PeerError::DeviceOut | PeerError::Io | PeerError::Timeout)
}

/// What earlier attempts taught about groups and devices.
#[derive(Default)]
struct Avoid {
    groups: BTreeSet<PgId>,
    devices: BTreeSet<DeviceId>,
}

impl Avoid {
    fn learn<C: Cluster>(&mut self, placed: &Placed<C>) {
        self.groups.insert(placed.group().pg);
        // A stale epoch is about the group, not about the device.
        let bad = placed.failures().filter(|(_, cause)| !matches!(cause, PeerError::StaleEpoch { .. }));
        self.devices.extend(bad.map(|(device, _)| device));
    }

    fn allows(&self, pg: PgId, group: &PlacementGroup) -> bool {
        !self.groups.contains(&pg) && !group.members.iter().any(|device| self.devices.contains(device))
    }
}

fn whole_groups(map: &ClusterMap, tier: Tier, avoid: &Avoid) -> Vec<Group> {
    let groups = map.open_groups(tier).filter(|(pg, group)| avoid.allows(*pg, group));
    groups.map(|(pg, group)| Group::new(map, pg, group)).collect()
}

/// Open groups that have lost members but could still take a short blob.
fn short_groups(map: &ClusterMap, tier: Tier, avoid: &Avoid) -> Vec<Group> {
    let open = map.placement_groups.iter().filter(|(pg, group)| {
        group.tier == tier && group.state == PgState::Open && !avoid.groups.contains(pg)
    });
    let groups = open.map(|(pg, group)| Group::new(map, *pg, group));
    groups.filter(|group| group.members.iter().flatten().count() >= group.needed()).collect()
}

/// Two random choices, the cheaper of them.
fn choose_group<C: Cluster>(cluster: &C, mut groups: Vec<Group>) -> Option<Group> {
    let first = draw(cluster, &mut groups)?;
    let Some(second) = draw(cluster, &mut groups) else { return Some(first) };
    let cost = |group: &Group| group.members.iter().flatten().map(|device| cluster.write_cost(*device)).max();
    Some(if cost(&second) < cost(&first) { second } else { first })
}

fn draw<C: Cluster>(cluster: &C, groups: &mut Vec<Group>) -> Option<Group> {
    let index = cluster.random().checked_rem(groups.len() as u64)?;
    Some(groups.swap_remove(usize::try_from(index).expect("below the number of groups")))
}

/// Reads the body to its end and sends every stripe off; returns each shard's checksums.
async fn stream_body<C: Cluster, B: Body>(
    placed: &Rc<Placed<C>>,
    len_bytes: u64,
    body: &mut B,
) -> Result<Vec<Vec<u32>>, WriteError> {
    let profile = placed.group().profile;
    let layout = Layout::new(profile, len_bytes);
    let codec = Codec::new(profile).expect("a map holds valid profiles only");
    let mut checksums = vec![Vec::with_capacity(layout.shard_units()); profile.total()];
    let mut input = Input { body, piece: Bytes::new() };
    let mut in_flight: VecDeque<oneshot::Receiver<()>> = VecDeque::new();
    for index in 0..layout.stripes() {
        if in_flight.len() >= STRIPES_IN_FLIGHT {
            settle(placed, &mut in_flight).await?;
        }
        input.wait().await?;
        let stripe = layout.stripe(index);
        let mut blocks = placed.cluster().buffers().take_many(profile.total()).await;
        fill_in_time(&**placed.cluster(), input.fill(&stripe, &mut blocks, profile.data())).await?;
        stage::run(Stage::Encode, || encode(&codec, &mut blocks));
        stage::run(Stage::Checksum, || {
            for (shard, (block, checksums)) in blocks.iter().zip(&mut checksums).enumerate() {
                checksums.extend(unit_checksums(placed.id(), shard_index(shard), stripe.shard_offset, block));
            }
        });
        in_flight
            .push_back(run(placed.cluster(), Rc::clone(placed).write_stripe(stripe.shard_offset, blocks)));
    }
    input.end().await?;
    while !in_flight.is_empty() {
        settle(placed, &mut in_flight).await?;
    }
    Ok(checksums)
}

/// Fills a stripe whose buffers are held: not for long while somebody waits for buffers.
async fn fill_in_time<C: Cluster>(
    cluster: &C,
    fill: impl Future<Output = Result<(), WriteError>>,
) -> Result<(), WriteError> {
    let mut fill = pin!(fill);
    // Most bodies are there at once, and need no timer.
    if let Poll::Ready(filled) = futures::poll!(fill.as_mut()) {
        return filled;
    }
    let mut pause = STRIPE_PATIENCE;
    loop {
        match select(fill, pin!(cluster.sleep(pause))).await {
            Either::Left((filled, _)) => return filled,
            Either::Right(_) if cluster.buffers().is_waited_for() => return Err(WriteError::TooSlow),
            Either::Right(((), unfilled)) => fill = unfilled,
        }
        pause = LOOK_EVERY;
    }
}

/// Waits for the oldest stripe, and looks whether enough shards are left.
async fn settle<C: Cluster>(
    placed: &Placed<C>,
    in_flight: &mut VecDeque<oneshot::Receiver<()>>,
) -> Result<(), WriteError> {
    if let Some(done) = in_flight.pop_front() {
        done.await.expect("spawned tasks run to their end");
    }
    if placed.live() < placed.needed() { Err(placed.too_few()) } else { Ok(()) }
}

fn encode(codec: &Codec, blocks: &mut [IoBuf]) {
    let (data, parity) = blocks.split_at_mut(codec.profile().data());
    let data: Vec<&[u8]> = data.iter().map(|block| &**block).collect();
    let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(|block| &mut **block).collect();
    codec.encode(&data, &mut parity).expect("blocks of one stripe have one length, k+m of them");
}

/// The body, cut anew.
struct Input<'a, B> {
    body: &'a mut B,
    piece: Bytes,
}

impl<B: Body> Input<'_, B> {
    /// Until there is at least a byte.
    async fn wait(&mut self) -> Result<(), WriteError> {
        while self.piece.is_empty() {
            self.piece = self.body.next().await.ok_or(BodyError::Incomplete)??;
        }
        Ok(())
    }

    /// Fills the data blocks of a stripe, zeros after the data, and sets the length of all blocks.
    async fn fill(&mut self, stripe: &Stripe, blocks: &mut [IoBuf], k: usize) -> Result<(), WriteError> {
        blocks.iter_mut().for_each(|block| block.set_len(stripe.block_bytes));
        let mut left = stripe.data_bytes;
        for block in &mut blocks[..k] {
            let wanted = left.min(stripe.block_bytes);
            let mut filled = 0;
            while filled < wanted {
                self.wait().await?;
                let count = self.piece.len().min(wanted - filled);
                self.piece.copy_to_slice(&mut block[filled..filled + count]);
                filled += count;
            }
            block[filled..].fill(0);
            left -= filled;
        }
        assert_eq!(left, 0, "k blocks hold the data of a stripe");
        Ok(())
    }

    /// The body must end here, which is also when its digests are verified.
    async fn end(&mut self) -> Result<(), WriteError> {
        while self.piece.is_empty() {
            match self.body.next().await {
                None => return Ok(()),
                Some(piece) => self.piece = piece?,
            }
        }
        Err(BodyError::Malformed { problem: "longer than its announced length".to_owned() }.into())
    }
}

async fn commit<C: Cluster>(
    placed: &Rc<Placed<C>>,
    owner: PartitionId,
    checksums: Vec<Vec<u32>>,
) -> Result<(), WriteError> {
    let done = run(placed.cluster(), Rc::clone(placed).commit_shards(owner, checksums));
    done.await.expect("spawned tasks run to their end");
    if placed.live() < placed.needed() { Err(placed.too_few()) } else { Ok(()) }
}

/// Writes a committed short blob again, from its own shards, to a whole group without the devices that
/// failed. `None`: no group took all of it.
async fn rewrite<C: Cluster>(short: &Rc<Placed<C>>, tier: Tier, owner: PartitionId) -> Option<BlobRef> {
    let cluster = short.cluster();
    let mut avoid = Avoid::default();
    avoid.learn(short);
    for _ in 0..REWRITE_ATTEMPTS_MAX {
        let map = cluster.map();
        let group = choose_group(&**cluster, whole_groups(&map, tier, &avoid))?;
        let source = short.blob_ref();
        let placed = Placed::reserve(cluster, group, source.size_bytes).await;
        if placed.missing_shards() == 0 {
            let range = 0..source.size_bytes;
            let mut body = BlobBody {
                len_bytes: source.size_bytes,
                stream: Box::pin(read_range(Rc::clone(cluster), source, range, ReadMemory::Heap)),
            };
            let written = async {
                let checksums = stream_body(&placed, source.size_bytes, &mut body).await?;
                commit(&placed, owner, checksums).await
            };
            if written.await.is_ok() && placed.missing_shards() == 0 {
                tracing::info!(from = %source.blob, pg = %placed.group().pg, "blob_rewritten");
                return Some(placed.keep());
            }
        }
        avoid.learn(&placed);
    }
    None
}

/// A blob as a body.
struct BlobBody<S> {
    len_bytes: u64,
    stream: S,
}

impl<S: futures::Stream<Item = Result<Bytes, ReadError>> + Unpin> Body for BlobBody<S> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        Some(self.stream.next().await?.map_err(|_| BodyError::Incomplete))
    }

    fn digests(&mut self) -> BodyDigests {
        BodyDigests::default()
    }
}

#[cfg(test)]
mod tests;
