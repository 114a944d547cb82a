//! The other shards of a blob: opened together, read window by window, each byte verified.

use std::{collections::BTreeMap, rc::Rc};

use futures::future::join_all;
use quarry_clustermap::{PartitionId, PlacementGroup, ShardIndex};
use quarry_erasure::Codec;
use quarry_storage::device::IoBuf;

use super::RepairError;
use crate::{
    checksum::verify,
    cluster::{Cluster, DamageKind, OpenShard, PeerError},
    peer::ShardName,
    stripe::shard_index,
};

pub(super) struct Sources<'j, C: Cluster> {
    cluster: &'j Rc<C>,
    name: ShardName,
    codec: Codec,
    /// Those that have been good so far.
    open: BTreeMap<ShardIndex, OpenShard<C::Opened>>,
    /// Some shard may be there, but cannot be had now.
    some_transient: bool,
}

impl<'j, C: Cluster> Sources<'j, C> {
    /// Opens every other shard that can be had.
    pub(super) async fn open(cluster: &'j Rc<C>, name: &ShardName, group: &PlacementGroup) -> Self {
        let map = cluster.map();
        let codec = Codec::new(group.profile).expect("a map holds valid profiles only");
        let others = (0..group.members.len()).map(shard_index).filter(|shard| *shard != name.shard);
        let opened = join_all(others.map(|shard| {
            let holder = group.holder(&map, shard.0);
            async move {
                let opened = match holder {
                    Some(device) => cluster.open_shard(device, name.pg, name.blob, shard).await,
                    None => Err(PeerError::DeviceOut),
                };
                (shard, opened)
            }
        }))
        .await;
        let mut sources = Self { cluster, name: *name, codec, open: BTreeMap::new(), some_transient: false };
        for (shard, opened) in opened {
            match opened {
                Ok(open) => drop(sources.open.insert(shard, open)),
                Err(error) => sources.some_transient |= error.is_transient(),
            }
        }
        sources.leave_out_strangers();
        sources
    }

    /// Who owns the blob, if any shard tells.
    pub(super) fn owner(&self) -> Option<PartitionId> {
        self.open.values().next().map(|open| open.owner)
    }

    /// k.
    pub(super) fn needed(&self) -> usize {
        self.codec.profile().data()
    }

    /// Length and owner of every shard.
    pub(super) fn agreed(&self) -> (u64, PartitionId) {
        let first = self.open.values().next().expect("at least k, which is at least one");
        (first.len_bytes, first.owner)
    }

    /// Keeps those that say the same of length and owner as most do.
    fn leave_out_strangers(&mut self) {
        let mut votes: BTreeMap<(u64, PartitionId), usize> = BTreeMap::new();
        for open in self.open.values() {
            *votes.entry((open.len_bytes, open.owner)).or_default() += 1;
        }
        let Some((most, _)) = votes.into_iter().max_by_key(|(_, count)| *count) else { return };
        let strangers: Vec<ShardIndex> = self
            .open
            .iter()
            .filter(|(_, open)| (open.len_bytes, open.owner) != most)
            .map(|(shard, _)| *shard)
            .collect();
        strangers.into_iter().for_each(|shard| self.lose(shard, DamageKind::Corrupt));
    }

    fn lose(&mut self, shard: ShardIndex, kind: DamageKind) {
        self.open.remove(&shard);
        self.cluster.report_damage(self.name.pg, self.name.blob, shard, kind);
    }

    /// Whether there are k.
    pub(super) fn check_enough(&self) -> Result<(), RepairError> {
        let (present, needed) = (self.open.len(), self.needed());
        match () {
            () if present >= needed => Ok(()),
            () if self.some_transient => Err(RepairError::Unavailable),
            () => Err(RepairError::Lost { present, needed }),
        }
    }

    /// The wanted shard's bytes at `offset`, from k verified windows of the others.
    pub(super) async fn decode(&mut self, offset: u64, len: usize) -> Result<IoBuf, RepairError> {
        let mut good: BTreeMap<ShardIndex, IoBuf> = BTreeMap::new();
        // All at once: whoever waits for buffers holds none.
        let mut buffers = self.cluster.buffers().take_many(self.needed() + 1).await;
        let mut target = buffers.pop().expect("k+1 were taken");
        while good.len() < self.needed() {
            self.check_enough()?;
            let missing = self.needed() - good.len();
            let unread: Vec<ShardIndex> =
                self.open.keys().filter(|shard| !good.contains_key(shard)).take(missing).copied().collect();
            let reads = join_all(unread.into_iter().map(|shard| {
                let mut buf = buffers.pop().expect("one per source that is still to be read");
                buf.set_len(len);
                let (cluster, open) = (&self.cluster, &self.open[&shard]);
                async move { (shard, cluster.read_shard(&open.handle, offset, buf).await) }
            }))
            .await;
            for (shard, (result, buf)) in reads {
                let whole = result.is_ok()
                    && verify(self.name.blob, shard, offset, &buf, &self.open[&shard].checksums);
                if whole {
                    good.insert(shard, buf);
                    continue;
                }
                buffers.push(buf);
                match result {
                    Ok(()) => self.lose(shard, DamageKind::Corrupt),
                    Err(PeerError::Io) => self.lose(shard, DamageKind::Unreadable),
                    Err(_) => {
                        self.open.remove(&shard);
                        self.some_transient = true;
                    }
                }
            }
        }
        target.set_len(len);
        let present: Vec<(ShardIndex, &[u8])> = good.iter().map(|(shard, buf)| (*shard, &**buf)).collect();
        let mut wanted = [(self.name.shard, &mut *target)];
        self.codec.decode(&present, &mut wanted).expect("k distinct sources of one length");
        Ok(target)
    }
}
