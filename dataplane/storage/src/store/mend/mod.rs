//! Mending: a damaged device is opened with what is whole on it, and says what is not.
//!
//! | damage | what is kept |
//! |---|---|
//! | free map | everything: the map is computed anew from what the rows name |
//! | index page, out-of-line value, malformed row | every row outside the lost key ranges |
//! | journal | the index, and the records up to the damage; every partition counts as lost |
//! | shard rows that overlap or leave the data area | all others |
//!
//! | step | what it needs |
//! |---|---|
//! | survey the old tree: lost ranges, tables, everything it names | – |
//! | declare partitions lost: their rows and tails go, their epochs stay, a mark is kept ([`super::losses`]) | the tables |
//! | replay the journal into memory; a reset in it ends a loss | marks |
//! | write the tree without the lost pages and partitions beside the old one | room that nothing named so far uses |
//! | look through the new tree: which shards are whole and alone in their extents | both |
//! | compute the free map; what only the old tree used stays taken | both |
//! | the first checkpoint makes all this durable; the blocks of the old tree are free after it | – |
//!
//! Invariants: nothing that the old superblock leads to (tree, free map, ring) and no extent that a surviving shard
//! row names is overwritten before that checkpoint's superblock is durable, so a crash on the way mends again. What
//! lies below a damaged inner page counts as free. Memory follows the number of extents, not of rows.
//!
//! Failure model: a page that cannot be read twice counts as damaged; one of an unknown version is refused, never
//! dropped, and so is a device without room for the new pages.

mod blocks;
mod shards;
mod survey;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use quarry_clustermap::PartitionId;

use self::blocks::Blocks;
use self::shards::ShardSurvey;
use self::survey::Survey;
use super::core::{Core, Mode};
use super::quarantine;
use super::recovery::{Recovered, replay_batch, root_of};
use super::space::Space;
use super::{StoreError, StoreOptions};
use crate::device::Device;
use crate::extent::{BlockIndex, Extent, FreeMap};
use crate::format::rows;
use crate::format::superblock::{ReplayStart, Superblock};
use crate::index::{Applied, Cursor, IndexError, Tree};
use crate::journal::{RingReader, ScanEnd};

/// Rows deleted by one batch.
const DELETES_MAX: usize = 4096;
/// Batches that a damaged ring may hold unseen are older than the next one by this: far more than any ring holds.
const SEQUENCE_JUMP: u64 = 1 << 32;

/// Keeps the blocks of the old tree from being reused.
pub(super) struct OldTree<D>(#[expect(dead_code, reason = "held for its hold on a root")] Cursor<D>);

/// Whether the index is whole: reads all of it.
pub(super) async fn index_is_whole<D: Device>(tree: &Tree<D>) -> Result<bool, StoreError> {
    Ok(Survey::of(tree, false).await?.damages.is_empty())
}

/// Whether mending may help.
pub(super) fn is_damage(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::FreeMapDamaged { .. }
            | StoreError::JournalDamaged { .. }
            | StoreError::Index { .. }
            | StoreError::BadRow { .. }
            | StoreError::Device(_)
    )
}

/// Recovers what is whole. The caller writes a checkpoint before anything else and then drops the [`OldTree`].
pub(super) async fn mend<D: Device>(
    device: &Rc<D>,
    options: &StoreOptions,
    mut superblock: Superblock,
) -> Result<(Recovered<D>, OldTree<D>), StoreError> {
    let tree = Tree::open(Rc::clone(device), root_of(&superblock)?, options.cache_bytes);
    let mut survey = Survey::of(&tree, true).await?;
    let mut core = std::mem::take(&mut survey.core);
    let mut incomplete = survey.lose(&mut core);
    let (head, journal_damaged) = replay(&**device, &superblock, &mut core, options).await?;
    incomplete |= journal_damaged;

    let area = superblock.data.start..BlockIndex(superblock.data.start.0 + superblock.data.blocks);
    let mut old = std::mem::take(&mut survey.used);
    old.append(&mut superblock.free_map.extents);
    old.sort_unstable();
    let mut named = std::mem::take(&mut survey.shard_extents);
    named.extend(shards::extents_in(&core.active));
    named.extend_from_slice(&old);
    let free = RefCell::new(FreeMap::without(area.clone(), &mut named));
    drop(named);
    let recorded = quarantine::recorded(&core, &tree).await.unwrap_or_else(|error| {
        tracing::warn!(event = "quarantine_lost", device = %superblock.device, %error);
        Vec::new()
    });
    recorded.iter().chain(&survey.unreadable).for_each(|&extent| free.borrow_mut().quarantine(extent));
    quarantine::add_unreadable(&mut core, recorded, &survey.unreadable, area.clone());
    let pruner = Pruner { tree: &tree, free: &free, old: &old };
    pruner.drop_damaged(&survey).await?;
    for &partition in core.active.wiped() {
        pruner.drop_rows(partition).await?;
    }
    drop(free);

    let shards = ShardSurvey::of(&tree, &core.active, &area).await?;
    incomplete |= !shards.dropped.is_empty();
    let counts = (survey.damages.len(), survey.rows, shards.kept, shards.dropped.len());
    for key in shards.dropped {
        core.active.put(key, None);
    }
    let Blocks { free, retired } = Blocks::of(area, shards.extents, shards.tree_extents, &old);
    let holder = Tree::open(Rc::clone(device), None, 0);
    let hold = OldTree(holder.cursor(&[]));
    let space = Space::with_retired(free, holder.install(None), retired);
    mark(&mut core, incomplete);
    let (damages, rows_seen, shards_kept, shard_rows_dropped) = counts;
    let partitions_lost = core.logs.values().filter(|log| log.lost).count();
    tracing::warn!(
        event = "device_mended", device = %superblock.device, damages, rows_seen, partitions_lost,
        shards_kept, shard_rows_dropped, journal_damaged
    );
    Ok((Recovered { superblock, tree, space, core, head, checkpoint: true }, hold))
}

/// Puts the marks into the rows that the checkpoint will write.
fn mark(core: &mut Core, incomplete: bool) {
    for (&first, &last) in &core.lost_ranges {
        core.active.put(rows::lost_range_key(first), Some(rows::encode_lost_range(last)));
    }
    core.active.put(rows::local_key(rows::INDEX_DAMAGED), None);
    if incomplete {
        let value = Bytes::from_static(&[1]);
        core.active.put(rows::local_key(rows::SHARDS_INCOMPLETE), Some(value));
    }
}

/// Replays what the ring holds; after damage every partition is lost. Returns where the next batch goes, and whether
/// there was damage.
async fn replay<D: Device>(
    device: &D,
    superblock: &Superblock,
    core: &mut Core,
    options: &StoreOptions,
) -> Result<(ReplayStart, bool), StoreError> {
    let mut reader = RingReader::new(device, superblock.journal, superblock.device, superblock.replay);
    // Nobody knows yet what is free, and replay does not ask.
    let space = Space::new(FreeMap::new(BlockIndex(0)..BlockIndex(0)));
    while let Some((header, payload)) = reader.next_batch().await {
        replay_batch(core, &space, header.sequence, &payload, &Mode::Mend(&options.decode_entry))?;
    }
    let mut head = reader.next_start();
    let found = match reader.end().await {
        ScanEnd::Tail => return Ok((head, false)),
        ScanEnd::Damaged { found } => found,
        ScanEnd::Unreadable(_) => head.sequence,
    };
    head.sequence = found.max(head.sequence) + SEQUENCE_JUMP;
    core.lost_ranges = BTreeMap::from([(PartitionId(0), PartitionId(u16::MAX))]);
    let known: Vec<PartitionId> = core.logs.keys().copied().collect();
    known.into_iter().for_each(|partition| core.lose(partition));
    Ok((head, true))
}

/// Takes rows out of the tree, writing beside what is there.
struct Pruner<'a, D> {
    tree: &'a Tree<D>,
    free: &'a RefCell<FreeMap>,
    /// What the old root uses, sorted.
    old: &'a [Extent],
}

impl<D: Device> Pruner<'_, D> {
    async fn drop_damaged(&self, survey: &Survey) -> Result<(), StoreError> {
        let deletes = survey.damages.iter().map(|damage| (damage.keys.from.clone(), None)).collect();
        let pages = survey.damages.iter().filter_map(|damage| damage.page).collect();
        self.apply(deletes, &pages).await
    }

    async fn drop_rows(&self, partition: PartitionId) -> Result<(), StoreError> {
        let end = rows::partition_end(partition);
        loop {
            let mut deletes = BTreeMap::new();
            let mut cursor = self.tree.cursor(&rows::partition_key(partition, &[]));
            while deletes.len() < DELETES_MAX && cursor.next().await? && cursor.key() < &end[..] {
                deletes.insert(Bytes::copy_from_slice(cursor.key()), None);
            }
            drop(cursor);
            if deletes.is_empty() {
                return Ok(());
            }
            self.apply(deletes, &BTreeSet::new()).await?;
        }
    }

    async fn apply(
        &self,
        deletes: BTreeMap<Bytes, Option<Bytes>>,
        lost: &BTreeSet<BlockIndex>,
    ) -> Result<(), StoreError> {
        if deletes.is_empty() {
            return Ok(());
        }
        let applied = self.tree.apply_without(&deletes, lost, self.free).await;
        let Applied { root, freed, .. } = applied.map_err(|error| match error {
            IndexError::NoSpace => {
                let free_bytes = self.free.borrow().free_blocks() * crate::device::BLOCK_BYTES as u64;
                StoreError::Full { wanted_bytes: 0, free_bytes, reserve_bytes: 0 }
            }
            error => error.into(),
        })?;
        self.tree.install(root);
        let mut free = self.free.borrow_mut();
        let ours = |extent: &Extent| self.old.binary_search(extent).is_err();
        freed.into_iter().filter(ours).for_each(|extent| free.free(extent));
        Ok(())
    }
}
