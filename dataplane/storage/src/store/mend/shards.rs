//! Which shards are whole: all their rows are there and agree, and their extents are theirs alone.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;

use super::super::overlay::Layer;
use super::super::{ShardKey, ShardRow, StoreError};
use crate::device::Device;
use crate::extent::{BlockIndex, Extent};
use crate::format::rows::{self, ShardRowV1};
use crate::index::{Seen, Tree, WalkDepth};

/// Puts the rows of one shard after the other together, in key order.
#[derive(Default)]
pub(super) struct Groups {
    open: Option<(ShardKey, Vec<(u32, ShardRowV1)>)>,
    pub(super) whole: Vec<ShardRow>,
    broken: Vec<Bytes>,
}

impl Groups {
    pub(super) fn push(&mut self, key: ShardKey, n: u32, piece: ShardRowV1) {
        match &mut self.open {
            Some((current, pieces)) if *current == key => pieces.push((n, piece)),
            _ => {
                self.close();
                self.open = Some((key, vec![(n, piece)]));
            }
        }
    }

    /// No row of the last shard follows any more.
    pub(super) fn close(&mut self) {
        let Some((key, pieces)) = self.open.take() else { return };
        let numbers: Vec<u32> = pieces.iter().map(|(n, _)| *n).collect();
        let dense = (0..).zip(&numbers).all(|(expected, &n)| expected == n);
        let row = ShardRowV1::into_row(key, pieces.into_iter().map(|(_, piece)| piece).collect());
        match row {
            Ok(row) if dense => self.whole.push(row),
            _ => self.broken.extend(numbers.into_iter().map(|n| rows::shard_key(key, n))),
        }
    }

    /// Keys of rows that belong to no whole shard.
    pub(super) fn take_broken(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.broken)
    }

    fn push_row(&mut self, key: Bytes, value: &[u8]) {
        match (rows::parse_shard_key(&key), rows::decode_shard(value)) {
            (Some((shard, n)), Ok(piece)) => self.push(shard, n, piece),
            _ => self.broken.push(key),
        }
    }
}

/// The shard rows of a layer.
fn rows_in(layer: &Layer) -> impl Iterator<Item = (&Bytes, &Bytes)> {
    let range = Bytes::from_static(&[rows::TABLE_SHARDS])..Bytes::from_static(&[rows::TABLE_SHARDS + 1]);
    layer.rows().range(range).filter_map(|(key, value)| Some((key, value.as_ref()?)))
}

/// Every extent that shard rows of a layer name.
pub(super) fn extents_in(layer: &Layer) -> impl Iterator<Item = Extent> {
    rows_in(layer).filter_map(|(_, value)| Some(rows::decode_shard(value).ok()?.extent.into()))
}

/// See the [module](self).
pub(super) struct ShardSurvey {
    /// Extents of whole shards: disjoint, in the area.
    pub(super) extents: Vec<Extent>,
    /// Pages and values of the tree.
    pub(super) tree_extents: Vec<Extent>,
    /// Shards kept.
    pub(super) kept: u64,
    /// Keys of rows to be deleted.
    pub(super) dropped: Vec<Bytes>,
}

impl ShardSurvey {
    /// Looks through a tree that is whole, and a layer above it.
    pub(super) async fn of<D: Device>(
        tree: &Tree<D>,
        layer: &Layer,
        area: &Range<BlockIndex>,
    ) -> Result<Self, StoreError> {
        let mut survey = Self::pass(tree, layer, area, &BTreeSet::new()).await?;
        let shared = shared(&survey.extents, &survey.tree_extents);
        if !shared.is_empty() {
            survey = Self::pass(tree, layer, area, &shared).await?;
        }
        Ok(survey)
    }

    /// Shards that have an extent in `shared` are dropped.
    async fn pass<D: Device>(
        tree: &Tree<D>,
        layer: &Layer,
        area: &Range<BlockIndex>,
        shared: &BTreeSet<Extent>,
    ) -> Result<Self, StoreError> {
        let (extents, tree_extents, dropped) = (Vec::new(), Vec::new(), Vec::new());
        let mut survey = Self { extents, tree_extents, kept: 0, dropped };
        let mut groups = Groups::default();
        let mut failure = None;
        let good = |extent: &Extent| {
            let end = extent.start.0.checked_add(extent.blocks.into());
            extent.start >= area.start && end.is_some_and(|end| end <= area.end.0) && !shared.contains(extent)
        };
        let visit = |seen: Seen<'_>| match seen {
            Seen::Page { extent, .. } => survey.tree_extents.push(extent),
            Seen::Damaged { error, .. } => failure = Some(error),
            Seen::Row(row) => {
                survey.tree_extents.extend(row.out_of_line().map(|(extent, _)| extent));
                let key = row.key();
                if key.first() == Some(&rows::TABLE_SHARDS) && layer.get(&key).is_none() {
                    groups.push_row(key, row.value().unwrap_or_default());
                    survey.settle(&mut groups, good);
                }
            }
        };
        tree.walk_step(&[], WalkDepth::Pages, u64::MAX, visit).await;
        if let Some(error) = failure {
            return Err(error.into());
        }
        groups.close();
        for (key, value) in rows_in(layer) {
            groups.push_row(key.clone(), value);
        }
        groups.close();
        survey.settle(&mut groups, good);
        Ok(survey)
    }

    fn settle(&mut self, groups: &mut Groups, good: impl Fn(&Extent) -> bool) {
        self.dropped.append(&mut groups.broken);
        for row in groups.whole.drain(..) {
            let extents = || row.extents.iter().map(|piece| piece.extent);
            if extents().all(|extent| good(&extent)) {
                self.kept += 1;
                self.extents.extend(extents());
            } else {
                self.dropped.extend((0..).zip(&row.extents).map(|(n, _)| rows::shard_key(row.key(), n)));
            }
        }
    }
}

/// Extents of shards that overlap another shard's or the tree's.
fn shared(shards: &[Extent], tree: &[Extent]) -> BTreeSet<Extent> {
    let mut all: Vec<(Extent, bool)> = Vec::with_capacity(shards.len() + tree.len());
    all.extend(shards.iter().map(|&extent| (extent, true)));
    all.extend(tree.iter().map(|&extent| (extent, false)));
    all.sort_unstable();
    let mut shared = BTreeSet::new();
    let mut furthest: Option<(Extent, bool)> = None;
    for &(extent, is_shard) in &all {
        if let Some((other, other_is_shard)) = furthest
            && extent.start < other.end()
        {
            shared.extend(is_shard.then_some(extent));
            shared.extend(other_is_shard.then_some(other));
        }
        if furthest.is_none_or(|(other, _)| other.end() < extent.end()) {
            furthest = Some((extent, is_shard));
        }
    }
    shared
}
