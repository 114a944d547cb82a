//! owners -> shards and shards -> owners: blobs that partitions name, and the shards that devices hold. Pure.
//!
//! Memory: 40 bytes per blob, in one vector per placement group, sorted before the first shard is judged.

use std::collections::{BTreeMap, BTreeSet};

use quarry_clustermap::{BlobId, ClusterMap, DeviceId, ErasureProfile, PartitionId, PgId};
use quarry_object::stripe::Layout;
use quarry_partition::{BlobRef, command::BlobStatus};
use quarry_storage::store::ShardRow;

use super::report::{Class, Findings};

/// Whether a blob's shards have to be there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Claim {
    /// An object version or part has it.
    Live,
    /// It is on a free list: shards may be there.
    Freed,
}

/// A blob that a partition names, and which of its shards were found. Bit `i` of a mask is shard `i`.
#[derive(Clone, Copy, Debug)]
struct Blob {
    id: BlobId,
    size_bytes: u64,
    missing: u32,
    found: u32,
    owner: PartitionId,
    profile: ErasureProfile,
    claim: Claim,
}

const _: () = assert!(size_of::<Blob>() == 40);

/// What is known of a device while shards are judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Known {
    /// All its shards were listed.
    Whole,
    /// Some were: the lack of one means nothing.
    Partly,
}

/// What a shard is, as far as the blobs tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// A live blob's.
    Live,
    /// A blob's that is being freed.
    Freed,
    /// Its partition could not be read.
    Unjudged,
    /// Nothing names it: the owner's partition has to be asked for [`orphan`].
    Orphan,
}

/// All blobs that partitions name.
pub(super) struct Blobs<'m> {
    map: &'m ClusterMap,
    groups: BTreeMap<PgId, Vec<Blob>>,
    /// Partitions without a readable replica.
    lost: BTreeSet<PartitionId>,
}

impl<'m> Blobs<'m> {
    pub(super) fn new(map: &'m ClusterMap) -> Self {
        Self { map, groups: BTreeMap::new(), lost: BTreeSet::new() }
    }

    /// Takes a blob that a row of `owner` names.
    pub(super) fn claim(&mut self, owner: PartitionId, blob: &BlobRef, claim: Claim) {
        self.groups.entry(blob.pg).or_default().push(Blob {
            id: blob.blob,
            size_bytes: blob.size_bytes,
            missing: blob.missing_shards,
            found: 0,
            owner,
            profile: blob.profile,
            claim,
        });
    }

    /// Nothing is known of the blobs of a partition.
    pub(super) fn lose(&mut self, partition: PartitionId) {
        self.lost.insert(partition);
    }

    /// Call it when all blobs are claimed, before the first shard. Returns the number of live ones.
    pub(super) fn seal(&mut self, findings: &mut Findings) -> u64 {
        let mut live = 0;
        for (pg, blobs) in &mut self.groups {
            blobs.sort_unstable_by_key(|blob| (blob.id, blob.claim));
            blobs.dedup_by(|second, first| {
                let twice = second.id == first.id;
                if twice {
                    findings.add(Class::DoubleOwnedBlob, || {
                        let (one, two) = (first.owner, second.owner);
                        format!("{pg} blob {}: {one} {:?}, {two} {:?}", first.id, first.claim, second.claim)
                    });
                }
                twice
            });
            blobs.shrink_to_fit();
            live += blobs.iter().filter(|blob| blob.claim == Claim::Live).count() as u64;
        }
        live
    }

    /// Judges a shard that `device` holds.
    pub(super) fn shard(&mut self, device: DeviceId, row: &ShardRow, findings: &mut Findings) -> Verdict {
        let blobs = self.groups.get_mut(&row.pg).map_or(&mut [][..], Vec::as_mut_slice);
        let Ok(index) = blobs.binary_search_by_key(&row.blob, |blob| blob.id) else {
            let lost = self.lost.contains(&row.owner_partition);
            return if lost { Verdict::Unjudged } else { Verdict::Orphan };
        };
        let blob = &mut blobs[index];
        let verdict = if blob.claim == Claim::Live { Verdict::Live } else { Verdict::Freed };
        let group = self.map.placement_groups.get(&row.pg);
        let position = usize::from(row.shard.0);
        let member = group.and_then(|group| group.members.get(position));
        // Read, and not freed, until the one that follows is whole.
        let former =
            group.and_then(|group| group.rebuilding.get(&row.shard.0)).filter(|former| **former == device);
        if former.is_none() && member != Some(&device) || position >= blob.profile.total() {
            findings.add(Class::MisplacedShard, || {
                let belongs = member.map_or("nowhere".into(), DeviceId::to_string);
                format!("{} is on {device}, belongs on {belongs}", name(row))
            });
            return verdict;
        }
        let expected = Layout::new(blob.profile, blob.size_bytes).shard_len_bytes();
        if row.owner_partition != blob.owner {
            let what =
                || format!("{} on {device}: of {}, owned by {}", name(row), row.owner_partition, blob.owner);
            findings.add(Class::WrongGeneration, what);
        }
        if let Some(group) = group.filter(|group| row.epoch > group.epoch) {
            let what =
                || format!("{} on {device}: {}, the group is at {}", name(row), row.epoch, group.epoch);
            findings.add(Class::WrongGeneration, what);
        }
        if row.len_bytes != expected {
            let what = || format!("{} on {device}: {} bytes instead of {expected}", name(row), row.len_bytes);
            findings.add(Class::WrongGeneration, what);
            return verdict;
        }
        blob.found |= 1 << position;
        verdict
    }

    /// Judges what was not found, after the last shard. A device that is not in `known` was not read.
    pub(super) fn finish(&self, known: &BTreeMap<DeviceId, Known>, findings: &mut Findings) {
        for (pg, blobs) in &self.groups {
            let members = self.map.placement_groups.get(pg).map(|group| &group.members[..]);
            let must_have =
                |device: &DeviceId| known.get(device) == Some(&Known::Whole) && self.map.is_in(*device);
            let judged =
                members.unwrap_or_default().iter().enumerate().filter(|(_, device)| must_have(device));
            let judged: u32 = judged.map(|(position, _)| 1 << position).sum();
            for blob in blobs.iter().filter(|blob| blob.claim == Claim::Live) {
                self.finish_blob(*pg, blob, judged, findings);
            }
        }
    }

    /// `judged`: positions whose devices must have their shards.
    fn finish_blob(&self, pg: PgId, blob: &Blob, judged: u32, findings: &mut Findings) {
        let total = blob.profile.total();
        let all = u32::try_from((1_u64 << total) - 1).expect("a blob has at most 32 shards");
        let absent = all & judged & !blob.missing & !blob.found;
        let Blob { id, owner, .. } = blob;
        for position in (0..total).filter(|position| absent & (1 << position) != 0) {
            let device = self.map.placement_groups.get(&pg).map(|group| group.members[position]);
            findings.add(Class::MissingShard, || {
                let device = device.map_or("nowhere".into(), |device| device.to_string());
                format!("{pg} blob {id} of {owner}: shard {position} is not on {device}")
            });
        }
        let left = (blob.found & all).count_ones() as usize;
        let what =
            || format!("{pg} blob {id} of {owner}: {left} of {total} shards, {} needed", blob.profile.data());
        if left < blob.profile.data() {
            findings.add(Class::ManifestWithoutShards, what);
        } else if left < total {
            findings.add(Class::Degraded, what);
        }
    }
}

/// Judges a shard that nothing names, given what its partition says about the blob: the collector frees those of
/// every earlier run of a node of the map, unless the owner claims the blob after all.
pub(super) fn orphan(
    map: &ClusterMap,
    device: DeviceId,
    row: &ShardRow,
    status: Option<BlobStatus>,
    findings: &mut Findings,
) {
    let ended = map.nodes.get(&row.blob.writer).is_some_and(|node| row.blob.incarnation <= node.incarnation);
    let class = match status {
        Some(BlobStatus::Unknown | BlobStatus::Revoked | BlobStatus::Freed) if ended => {
            Class::PendingCollection
        }
        _ => Class::ExtraShard,
    };
    findings.add(class, || {
        let status = status.map_or("does not exist".into(), |status| format!("says {status:?}"));
        format!("{} on {device}: {} {status}", name(row), row.owner_partition)
    });
}

/// A shard's name, for people.
pub(super) fn name(row: &ShardRow) -> String {
    format!("{} blob {} {}", row.pg, row.blob, row.shard)
}
